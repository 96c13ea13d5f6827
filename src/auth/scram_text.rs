//! Reading SCRAM messages: `name=value` pairs separated by commas, and base64 (RFC 5802, section 5).

use super::scram_error::ScramError;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::Engine;

/// Padding is required, unused bits of the last character are not looked at, as PostgreSQL does.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Base64 with padding.
pub(super) fn encode(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// What `c=` must be: the GS2 header and the channel binding's data, in base64 (RFC 5802, 5.1).
pub(super) fn binding(header: &str, data: &[u8]) -> String {
    encode(&[header.as_bytes(), data].concat())
}

/// The bytes of a base64 text; `None` if there is anything in it that is not base64.
pub(super) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

/// A count of iterations: decimal digits, 1 to 2147483647.
pub(super) fn iterations(text: &[u8]) -> Option<u32> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: i32 = std::str::from_utf8(text).ok()?.parse().ok()?;
    u32::try_from(count).ok().filter(|count| *count > 0)
}

/// A message up to its first NUL; what follows is ignored (auth 5.1).
pub(super) fn until_nul(message: &[u8]) -> &[u8] {
    message.split(|b| *b == 0).next().unwrap_or_default()
}

/// Walks through a message from left to right.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// What has not been read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next byte, not consumed; 0 at the end.
    pub(super) fn peek(&self) -> u8 {
        self.rest.first().copied().unwrap_or(0)
    }

    /// Consumes one byte.
    pub(super) fn skip(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }

    /// The value of the attribute `name`, which must come next. Reads nothing on error.
    pub(super) fn value(&mut self, name: u8) -> Result<&'a [u8], ScramError> {
        let Some((first, rest)) = self.rest.split_first() else {
            return Err(ScramError::Expected(name));
        };
        if *first != name {
            return Err(ScramError::Expected(name));
        }
        let value = rest.strip_prefix(b"=").ok_or(ScramError::ExpectedEquals(name))?;
        Ok(self.consume(value))
    }

    /// Name and value of the next attribute, whatever it is. Reads nothing on error.
    pub(super) fn any(&mut self) -> Result<(u8, &'a [u8]), ScramError> {
        let name = self.peek();
        if !name.is_ascii_alphabetic() {
            return Err(ScramError::NotAnAttribute(name));
        }
        let after = self.rest.get(1..).unwrap_or_default();
        let value = after.strip_prefix(b"=").ok_or(ScramError::AnyEquals(name))?;
        Ok((name, self.consume(value)))
    }

    /// Takes everything up to the next comma, and the comma too.
    fn consume(&mut self, from: &'a [u8]) -> &'a [u8] {
        let mut parts = from.splitn(2, |b| *b == b',');
        let value = parts.next().unwrap_or_default();
        self.rest = parts.next().unwrap_or_default();
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_in_turn() {
        let mut reader = Reader::new(b"r=a=b,x=,p=1");
        assert_eq!(reader.value(b's'), Err(ScramError::Expected(b's')));
        assert_eq!(reader.value(b'r').unwrap(), b"a=b");
        assert_eq!(reader.any().unwrap(), (b'x', &b""[..]));
        assert_eq!(reader.value(b'p').unwrap(), b"1");
        assert_eq!(reader.rest(), b"");
        assert_eq!(reader.any(), Err(ScramError::NotAnAttribute(0)));
        assert_eq!(Reader::new(b"r").value(b'r'), Err(ScramError::ExpectedEquals(b'r')));
        assert_eq!(Reader::new(b"r").any(), Err(ScramError::AnyEquals(b'r')));
    }

    #[test]
    fn base64_is_strict_about_characters_and_padding() {
        for (text, want) in [
            ("", Some(&b""[..])),
            ("YWI=", Some(b"ab")),
            ("YWJ=", Some(b"ab")),
            ("YWI", None),
            ("YW I=", None),
            ("YWI=\n", None),
            ("YWI==", None),
            ("YW-_", None),
        ] {
            assert_eq!(decode(text.as_bytes()).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn iterations_are_positive_integers() {
        for (text, want) in [
            ("1", Some(1)),
            ("4096", Some(4096)),
            ("2147483647", Some(2_147_483_647)),
            ("2147483648", None),
            ("0", None),
            ("-1", None),
            ("+1", None),
            ("", None),
            ("1x", None),
        ] {
            assert_eq!(iterations(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn nul_ends_a_message() {
        assert_eq!(until_nul(b"ab\0c\0"), b"ab");
        assert_eq!(until_nul(b""), b"");
    }
}
