//! What a console client asks for, read from its packets (protocol chapter 55.7).

use crate::wire::{FromClient, Reader};

/// One request of a console client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Query: a text.
    Query(Vec<u8>),
    /// Parse; the types of parameters that it may declare are of no interest.
    Parse {
        /// Name of the prepared statement, empty for the unnamed one.
        name: Vec<u8>,
        /// The statement.
        text: Vec<u8>,
    },
    /// Bind.
    Bind(Bind),
    /// Describe.
    Describe(Named),
    /// Execute.
    Execute {
        /// Name of the portal, empty for the unnamed one.
        portal: Vec<u8>,
        /// How many rows are wanted at most; `None` for all.
        most: Option<usize>,
    },
    /// Close.
    Close(Named),
    /// Sync.
    Sync,
    /// A packet of the extended protocol that makes no sense; why.
    Malformed(String),
}

/// A portal that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Name of the portal, empty for the unnamed one.
    pub portal: Vec<u8>,
    /// Name of the prepared statement, empty for the unnamed one.
    pub statement: Vec<u8>,
    /// How many values for parameters came with it.
    pub values: u16,
    /// Format codes of the result: none (text), one for all columns, or one for each.
    pub formats: Vec<u16>,
}

/// Something that has a name; the empty one is the unnamed one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A prepared statement.
    Statement(Vec<u8>),
    /// A portal.
    Portal(Vec<u8>),
}

impl Ask {
    /// Reads the body of a packet; `None` if packets of its kind are no requests, or for a Query
    /// whose text does not end.
    pub fn read(kind: FromClient, body: &[u8]) -> Option<Ask> {
        let mut reader = Reader::new(body);
        let ask = match kind {
            FromClient::Query => return Some(Ask::Query(reader.text()?.to_vec())),
            FromClient::Sync => return Some(Ask::Sync),
            FromClient::Parse => parse(&mut reader),
            FromClient::Bind => bind(&mut reader),
            FromClient::Execute => execute(&mut reader),
            FromClient::Describe => named(&mut reader, "DESCRIBE", Ask::Describe),
            FromClient::Close => named(&mut reader, "CLOSE", Ask::Close),
            _ => return None,
        };
        let whole = ask.filter(|_| reader.rest().is_empty());
        Some(whole.unwrap_or_else(|| Ask::Malformed("invalid message format".into())))
    }

    /// Bytes of the packet that it came in, for a Query; the others are small and count as nothing.
    pub fn size(&self) -> usize {
        match self {
            Ask::Query(text) => text.len().saturating_add(6),
            _ => 0,
        }
    }

    /// True if requests come as packets of this kind.
    pub(super) fn comes_as(kind: FromClient) -> bool {
        use FromClient as C;
        matches!(
            kind,
            C::Query | C::Parse | C::Bind | C::Describe | C::Execute | C::Close | C::Sync
        )
    }

    /// True for what has something carried out.
    pub(super) fn is_command(&self) -> bool {
        matches!(self, Ask::Query(_) | Ask::Execute { .. })
    }
}

fn name(reader: &mut Reader<'_>) -> Option<Vec<u8>> {
    Some(reader.text()?.to_vec())
}

fn parse(reader: &mut Reader<'_>) -> Option<Ask> {
    let ask = Ask::Parse { name: name(reader)?, text: name(reader)? };
    let types = reader.u16()?;
    reader.bytes(usize::from(types) * 4)?;
    Some(ask)
}

fn bind(reader: &mut Reader<'_>) -> Option<Ask> {
    let (portal, statement) = (name(reader)?, name(reader)?);
    codes(reader)?;
    let values = reader.u16()?;
    for _ in 0..values {
        let len = reader.u32()? as i32;
        // NULL has the length -1.
        if len != -1 {
            reader.bytes(usize::try_from(len).ok()?)?;
        }
    }
    Some(Ask::Bind(Bind { portal, statement, values, formats: codes(reader)? }))
}

fn codes(reader: &mut Reader<'_>) -> Option<Vec<u16>> {
    let count = reader.u16()?;
    (0..count).map(|_| reader.u16()).collect()
}

fn execute(reader: &mut Reader<'_>) -> Option<Ask> {
    let portal = name(reader)?;
    let most = usize::try_from(reader.u32()? as i32).ok();
    Some(Ask::Execute { portal, most: most.filter(|most| *most > 0) })
}

fn named(reader: &mut Reader<'_>, what: &str, ask: fn(Named) -> Ask) -> Option<Ask> {
    let kind = reader.u8()?;
    let name = name(reader)?;
    Some(match kind {
        b'S' => ask(Named::Statement(name)),
        b'P' => ask(Named::Portal(name)),
        _ => Ask::Malformed(format!("invalid {what} message subtype {kind}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(tag: u8, body: &[u8]) -> Option<Ask> {
        Ask::read(FromClient::of(tag), body)
    }

    #[test]
    fn packets_are_read_as_documented() {
        let (name, text) = (b"n".to_vec(), b"show".to_vec());
        let bind = |values, formats: &[u16]| {
            let formats = formats.to_vec();
            Ask::Bind(Bind { portal: b"p".to_vec(), statement: name.clone(), values, formats })
        };
        let execute = |most| Ask::Execute { portal: b"p".to_vec(), most };
        let statement = || Named::Statement(name.clone());
        for (tag, body, want) in [
            (b'Q', &b"show\0rest"[..], Ask::Query(text.clone())),
            (b'P', b"n\0show\0\0\0", Ask::Parse { name: name.clone(), text: text.clone() }),
            (
                b'P',
                b"n\0show\0\0\x02\0\0\0\x17\0\0\0\0",
                Ask::Parse { name: name.clone(), text: text.clone() },
            ),
            (b'B', b"p\0n\0\0\0\0\0\0\0", bind(0, &[])),
            (b'B', b"p\0n\0\0\x01\0\x01\0\0\0\x02\0\x01\0\x07", bind(0, &[1, 7])),
            (b'B', b"p\0n\0\0\0\0\x02\xff\xff\xff\xff\0\0\0\x01x\0\0", bind(2, &[])),
            (b'E', b"p\0\0\0\0\0", execute(None)),
            (b'E', b"p\0\0\0\0\x02", execute(Some(2))),
            (b'E', b"p\0\xff\xff\xff\xff", execute(None)),
            (b'D', b"Sn\0", Ask::Describe(statement())),
            (b'D', b"Pp\0", Ask::Describe(Named::Portal(b"p".to_vec()))),
            (b'C', b"Sn\0", Ask::Close(statement())),
            (b'S', b"", Ask::Sync),
            (b'S', b"more", Ask::Sync),
        ] {
            assert_eq!(read(tag, body), Some(want), "{}", body.escape_ascii());
        }
        for tag in [b'F', b'X', b'p', b'y', b'd', b'H'] {
            assert_eq!(read(tag, b""), None);
        }
        assert_eq!(read(b'Q', b"no end"), None);
    }

    #[test]
    fn what_ends_early_or_late_is_malformed() {
        let malformed = |text: &str| Some(Ask::Malformed(text.into()));
        for (tag, body) in [
            (b'P', &b""[..]),
            (b'P', b"n\0show\0"),
            (b'P', b"n\0show\0\0\x02\0\0\0\x17"),
            (b'P', b"n\0show\0\0\0x"),
            (b'B', b"p\0n\0\0\0\0\x01\0\0\0\x09x\0\0"),
            (b'B', b"p\0n\0\0\0\0\x01\xff\xff\xff\xfe\0\0"),
            (b'B', b"p\0n\0\0\0\0\0"),
            (b'E', b"p\0\0\0"),
            (b'D', b"S"),
            (b'C', b"Sn"),
        ] {
            let text = "invalid message format";
            assert_eq!(read(tag, body), malformed(text), "{}", body.escape_ascii());
        }
        assert_eq!(read(b'D', b"Xn\0"), malformed("invalid DESCRIBE message subtype 88"));
        assert_eq!(read(b'C', b"Xn\0"), malformed("invalid CLOSE message subtype 88"));
    }
}
