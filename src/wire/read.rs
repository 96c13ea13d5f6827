//! Reading fields of packets. Every length is checked; a packet that ends early reads as `None`.

/// Walks over the body of one packet.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `body`.
    pub fn new(body: &'a [u8]) -> Self {
        Reader { rest: body }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.rest.split_at_checked(len)?;
        self.rest = tail;
        Some(head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    /// Two bytes, big endian.
    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(2)?.try_into().ok()?))
    }

    /// Four bytes, big endian.
    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(4)?.try_into().ok()?))
    }

    /// Eight bytes, big endian.
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.bytes(8)?.try_into().ok()?))
    }

    /// Bytes up to a zero, which is consumed and left out.
    pub fn text(&mut self) -> Option<&'a [u8]> {
        let len = self.rest.iter().position(|byte| *byte == 0)?;
        let text = self.bytes(len)?;
        self.u8()?;
        Some(text)
    }
}

/// The fields of ErrorResponse and NoticeResponse that the pooler uses; a server may leave out any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorFields<'a> {
    /// Field `S`.
    pub severity: Option<&'a [u8]>,
    /// Field `C`.
    pub sqlstate: Option<&'a [u8]>,
    /// Field `M`.
    pub message: Option<&'a [u8]>,
}

impl<'a> ErrorFields<'a> {
    /// Reads as many fields as there are; what follows a broken field is ignored.
    pub fn read(body: &'a [u8]) -> Self {
        let mut reader = Reader::new(body);
        let mut fields = ErrorFields::default();
        while let Some(code) = reader.u8() {
            if code == 0 {
                break;
            }
            let Some(text) = reader.text() else { break };
            match code {
                b'S' => fields.severity = Some(text),
                b'C' => fields.sqlstate = Some(text),
                b'M' => fields.message = Some(text),
                _ => {}
            }
        }
        fields
    }

    /// `severity: message`, or `severity message` with another separator, for log lines.
    pub fn line(&self, separator: &str) -> Option<String> {
        Some(format!("{}{separator}{}", lossy(self.severity?), lossy(self.message?)))
    }
}

/// Bytes from outside as text for log lines and messages.
pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Name and value of a ParameterStatus.
pub fn parameter_status(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut reader = Reader::new(body);
    Some((reader.text()?, reader.text()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_packets_read_as_none() {
        let mut reader = Reader::new(b"ab\0\x00\x01");
        assert_eq!(reader.text(), Some(&b"ab"[..]));
        assert_eq!(reader.u32(), None);
        assert_eq!(reader.u16(), Some(1));
        assert_eq!(reader.text(), None);
        assert_eq!(reader.u8(), None);
    }

    #[test]
    fn error_fields_may_be_missing() {
        let full = ErrorFields::read(b"SFATAL\0C57P03\0Mstarting\0Rx\0\0");
        assert_eq!(full.line(" ").as_deref(), Some("FATAL starting"));
        assert_eq!(full.sqlstate, Some(&b"57P03"[..]));
        assert_eq!(ErrorFields::read(b""), ErrorFields::default());
        assert_eq!(ErrorFields::read(b"Sopen end").severity, None);
        assert_eq!(ErrorFields::read(b"Mx\0\0").line(": "), None);
    }
}
