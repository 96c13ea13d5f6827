//! The packets without a type byte that begin a connection (protocol 55.7).

use super::Reader;

/// A packet that begins a connection, by its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening<'a> {
    /// Please encrypt.
    SslRequest,
    /// Please encrypt with GSSAPI.
    GssEncRequest,
    /// Cancel what another connection does; the body is its key.
    CancelRequest(&'a [u8]),
    /// Protocol 2.0, which nobody speaks any more.
    OldProtocol,
    /// Protocol 3.x with `minor` = x; the body holds the parameters.
    Startup {
        /// Minor version that the client asks for.
        minor: u16,
        /// Pairs of zero-terminated names and values, closed by one more zero.
        parameters: &'a [u8],
    },
    /// Any other code.
    Unknown,
}

/// Code of a CancelRequest.
pub const CANCEL_REQUEST: u32 = 80_877_102;
/// Code of an SSLRequest.
pub const SSL_REQUEST: u32 = 80_877_103;
/// Code of a GSSENCRequest.
pub const GSSENC_REQUEST: u32 = 80_877_104;
/// Code of a StartupMessage for protocol 3.0.
pub const PROTOCOL_3_0: u32 = 0x0003_0000;

impl<'a> Opening<'a> {
    /// Reads the code that follows the length, given everything after the length.
    pub fn read(body: &'a [u8]) -> Opening<'a> {
        let mut reader = Reader::new(body);
        match reader.u32() {
            Some(SSL_REQUEST) => Opening::SslRequest,
            Some(GSSENC_REQUEST) => Opening::GssEncRequest,
            Some(CANCEL_REQUEST) => Opening::CancelRequest(reader.rest()),
            Some(0x0002_0000) => Opening::OldProtocol,
            Some(code) if code >> 16 == 3 => {
                Opening::Startup { minor: (code & 0xffff) as u16, parameters: reader.rest() }
            }
            _ => Opening::Unknown,
        }
    }
}

/// Names and values as they stand in a packet.
pub type Pairs<'a> = Vec<(&'a [u8], &'a [u8])>;

/// Names and values out of the start-up parameter `options`.
pub type OptionPairs = Vec<(Vec<u8>, Vec<u8>)>;

/// The parameters of a StartupMessage in their order; `Err` if they don't end exactly with the
/// terminator (auth 1.4 step 5), with those that could be read before.
pub fn parameters(body: &[u8]) -> Result<Pairs<'_>, Pairs<'_>> {
    let mut pairs = Vec::new();
    let mut reader = Reader::new(body);
    loop {
        if reader.rest() == [0] {
            return Ok(pairs);
        }
        match (reader.text(), reader.text()) {
            (Some(name), Some(value)) if !name.is_empty() => pairs.push((name, value)),
            _ => return Err(pairs),
        }
    }
}

/// Splits the start-up parameter `options` into names and values (auth 1.6). `None` for anything
/// but a row of `-c name=value` and `--name=value`.
pub fn options(text: &[u8]) -> Option<OptionPairs> {
    let mut pairs = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        rest = rest.trim_ascii_start();
        rest = if let Some(after) = rest.strip_prefix(b"-c") {
            after.trim_ascii_start()
        } else {
            rest.strip_prefix(b"--")?
        };
        let token = take_token(&mut rest);
        let at = token.iter().position(|byte| *byte == b'=')?;
        let (name, value) = token.split_at(at);
        pairs.push((name.to_vec(), value.iter().skip(1).copied().collect()));
    }
    Some(pairs)
}

/// Takes bytes up to the next blank that no backslash protects.
fn take_token(rest: &mut &[u8]) -> Vec<u8> {
    let mut token = Vec::new();
    let mut bytes = rest.iter();
    let mut used = 0;
    while let Some(byte) = bytes.next() {
        if byte.is_ascii_whitespace() || *byte == 0x0b {
            break;
        }
        used += 1;
        if *byte == b'\\' {
            let Some(next) = bytes.next() else { break };
            used += 1;
            token.push(*next);
        } else {
            token.push(*byte);
        }
    }
    *rest = rest.get(used..).unwrap_or_default();
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_apart() {
        for (code, want) in [
            (80_877_103_u32, Opening::SslRequest),
            (80_877_104, Opening::GssEncRequest),
            (80_877_102, Opening::CancelRequest(b"xy")),
            (0x0002_0000, Opening::OldProtocol),
            (0x0003_0002, Opening::Startup { minor: 2, parameters: b"xy" }),
            (0x0004_0000, Opening::Unknown),
            (0x0002_0001, Opening::Unknown),
        ] {
            let mut body = code.to_be_bytes().to_vec();
            body.extend_from_slice(b"xy");
            assert_eq!(Opening::read(&body), want);
        }
        assert_eq!(Opening::read(b"abc"), Opening::Unknown);
    }

    #[test]
    fn parameters_must_end_with_the_terminator() {
        assert_eq!(parameters(b"a\0b\0\0"), Ok(vec![(&b"a"[..], &b"b"[..])]));
        assert_eq!(parameters(b"\0"), Ok(vec![]));
        for broken in [&b""[..], b"a\0b\0", b"a\0b\0\0x", b"a\0\0", b"a\0b", b"\0\0"] {
            assert!(parameters(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn options_follow_their_grammar() {
        let pair = |name: &[u8], value: &[u8]| (name.to_vec(), value.to_vec());
        assert_eq!(options(b""), Some(vec![]));
        assert_eq!(options(b"-c a=b --c=d"), Some(vec![pair(b"a", b"b"), pair(b"c", b"d")]));
        assert_eq!(options(b"-ca=b\\ c"), Some(vec![pair(b"a", b"b c")]));
        assert_eq!(options(b"  -c  a=b=c\\"), Some(vec![pair(b"a", b"b=c")]));
        for broken in [&b"-c a=b "[..], b" ", b"-c a", b"-x a=b", b"a=b", b"-- a=b"] {
            assert_eq!(options(broken), None, "{broken:?}");
        }
    }
}
