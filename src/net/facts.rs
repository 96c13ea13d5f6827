//! What a keeper tells of a handshake that it has made for its successor: the first bytes of a kept
//! connection. Their length (4 bytes), then tagged fields.

use crate::base::fields::{self, Fields};
use crate::core::carry::{facts, put_facts};
use crate::core::Facts;
use crate::tags;

tags! {
    /// What a keeper tells first.
    FACTS:
    1 TLS "what is known of the connection: fields as in TLS_TAGS",
}

/// More bytes than this are no facts.
const MOST: usize = 1 << 20;
/// The bytes of the length.
const LENGTH: usize = 4;

/// The bytes that tell these facts.
pub(super) fn write(known: &Facts) -> Vec<u8> {
    let mut fields = Fields::default();
    put_facts(&mut fields, TLS, Some(known));
    let fields = fields.into_bytes();
    let len = u32::try_from(fields.len()).unwrap_or(u32::MAX);
    [&len.to_be_bytes(), &fields[..]].concat()
}

/// How many bytes must follow these before anything can be told from them; `None` if they are no
/// facts.
pub(super) fn missing(heard: &[u8]) -> Option<usize> {
    let Some((len, rest)) = heard.split_first_chunk::<LENGTH>() else {
        return Some(LENGTH.saturating_sub(heard.len()));
    };
    let len = usize::try_from(u32::from_be_bytes(*len)).ok().filter(|len| *len <= MOST)?;
    len.checked_sub(rest.len())
}

/// The facts; what can't be understood is missing in them.
pub(super) fn read(heard: &[u8]) -> Facts {
    let mut fields = fields::read(heard.get(LENGTH..).unwrap_or_default());
    fields.find(|field| field.tag == TLS).map(facts).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Names;

    #[test]
    fn facts_arrive_as_they_were_told() {
        let name = |name: &str| Box::<[u8]>::from(name.as_bytes());
        let names = Names::new(
            [name("a.example"), name("*.b")].into_iter(),
            [name("\x0a\0\0\x01")].into_iter(),
            Some(name("common")),
        );
        for names in [None, Some(Box::default()), Some(Box::new(names))] {
            let end_point = [7; 32][..].into();
            let facts = Facts { text: "TLSv1.3/X".into(), names, end_point };
            let bytes = write(&facts);
            for len in 0..bytes.len() {
                let want = if len < 4 { 4 } else { bytes.len() };
                assert_eq!(missing(&bytes[..len]), Some(want - len));
                read(&bytes[..len]);
            }
            assert_eq!((missing(&bytes), read(&bytes)), (Some(0), facts));
        }
        assert_eq!(missing(b"\xff\0\0\0"), None);
        assert_eq!(missing(b"\0\0\0\0x"), None);
    }
}
