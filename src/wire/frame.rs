//! What is the next packet in a stream of bytes (pooling 5.2)?

/// The rules for one side of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Framer {
    /// Packets may begin with a length instead of a type byte: StartupMessage and its relatives,
    /// recognised by their first byte, which is 0 because they are at most 65535 bytes long.
    pub startup: bool,
    /// The largest allowed packet in bytes, header included (`max_packet_size`).
    pub max: u32,
}

/// What a [`Framer`] found at the front of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The header is not complete.
    NeedMore,
    /// This can't be a packet; up to 8 of the bytes.
    Bad(&'a [u8]),
    /// A packet begins here.
    Packet {
        /// The type byte, 0 for a start-up packet.
        tag: u8,
        /// Length of the whole packet in bytes, header included.
        len: u32,
    },
}

/// The shortest start-up packet: length and code.
const STARTUP_MIN: u32 = 8;
/// The shortest length field of a regular packet: itself.
const LENGTH_FIELD: u32 = 4;

impl Framer {
    /// Looks at the header at the front of `bytes`.
    #[inline]
    pub fn first<'a>(&self, bytes: &'a [u8]) -> Frame<'a> {
        let (tag, len) = match *bytes {
            [0, second, third, fourth, ..] => {
                let len = u32::from_be_bytes([0, 0, third, fourth]);
                if !self.startup || second != 0 || len < STARTUP_MIN {
                    return bad(bytes);
                }
                (0, len)
            }
            [tag, a, b, c, d, ..] if tag != 0 => {
                let field = u32::from_be_bytes([a, b, c, d]);
                match field.checked_add(1) {
                    Some(len) if field >= LENGTH_FIELD => (tag, len),
                    _ => return bad(bytes),
                }
            }
            _ => return Frame::NeedMore,
        };
        if len > self.max {
            return bad(bytes);
        }
        Frame::Packet { tag, len }
    }

    /// Length in bytes of the whole packets of this type at the front of `bytes`. Rows and COPY data
    /// come by the thousand.
    #[inline]
    pub fn alike(&self, bytes: &[u8], tag: u8) -> usize {
        let mut at = 0_usize;
        while let Some(rest) = bytes.get(at..) {
            match self.first(rest) {
                Frame::Packet { tag: other, len } if other == tag && len as usize <= rest.len() => {
                    at = at.saturating_add(len as usize);
                }
                _ => break,
            }
        }
        at
    }
}

fn bad(bytes: &[u8]) -> Frame<'_> {
    Frame::Bad(bytes.get(..8).unwrap_or(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let packet = |tag, len| Frame::Packet { tag, len };
        let table: &[(bool, u32, &[u8], Frame<'_>)] = &[
            (false, 100, b"", Frame::NeedMore),
            (false, 100, b"Q\0\0\0", Frame::NeedMore),
            (false, 100, b"Q\0\0\0\x04", packet(b'Q', 5)),
            (false, 100, b"Q\0\0\0\x63rest", packet(b'Q', 100)),
            (false, 100, b"Q\0\0\0\x64", Frame::Bad(b"Q\0\0\0\x64")),
            (false, 100, b"Q\0\0\0\x03abcdef", Frame::Bad(b"Q\0\0\0\x03abc")),
            (false, u32::MAX, b"Q\xff\xff\xff\xfe", packet(b'Q', u32::MAX)),
            (false, u32::MAX, b"Q\xff\xff\xff\xff", Frame::Bad(b"Q\xff\xff\xff\xff")),
            (false, 100, b"\0\0\0\x08", Frame::Bad(b"\0\0\0\x08")),
            (true, 100, b"\0\0\0", Frame::NeedMore),
            (true, 100, b"\0\0\0\x08", packet(0, 8)),
            (true, 100, b"\0\0\0\x07", Frame::Bad(b"\0\0\0\x07")),
            (true, 100, b"\0\x01\0\x08", Frame::Bad(b"\0\x01\0\x08")),
            (true, 100, b"\0\0\0\x65", Frame::Bad(b"\0\0\0\x65")),
            (true, 70000, b"\0\0\xff\xff", packet(0, 65535)),
            (true, 100, b"p\0\0\0\x08", packet(b'p', 9)),
        ];
        for (startup, max, bytes, want) in table {
            let framer = Framer { startup: *startup, max: *max };
            assert_eq!(framer.first(bytes), *want, "{startup} {max} {bytes:?}");
        }
    }

    #[test]
    fn whole_packets_of_one_type_are_measured_together() {
        let framer = Framer { startup: false, max: 100 };
        let row = b"D\0\0\0\x06ab";
        let three = row.repeat(3);
        for (bytes, want) in [
            (&b""[..], 0),
            (&three[..], 21),
            (&three[..20], 14),
            (&three[..15], 14),
            (&[&three[..], b"C\0\0\0\x04"].concat(), 21),
            (&[&row[..], b"D\0\0\0\x03"].concat(), 7),
            (b"C\0\0\0\x04D\0\0\0\x04", 0),
        ] {
            assert_eq!(framer.alike(bytes, b'D'), want, "{bytes:?}");
        }
    }

    #[test]
    fn nothing_panics() {
        let framer = Framer { startup: true, max: u32::MAX };
        let mut seed = 1_u64;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let bytes = seed.to_be_bytes();
            let count = (seed >> 7) as usize % 9;
            framer.first(&bytes[..count]);
            framer.alike(&bytes[..count], bytes[0]);
        }
    }
}
