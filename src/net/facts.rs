//! What a keeper tells of a handshake that it has made for its successor: the first bytes of a kept
//! connection. Their length (4 bytes), then tagged fields.

use crate::auth::Names;
use crate::base::fields::{self, Fields};
use crate::core::Facts;
use crate::tags;

tags! {
    /// What is known of an encrypted connection.
    FACTS:
    1 TEXT "version, cipher and key exchange as SHOW CLIENTS has them",
    2 END_POINT "the hash of the accepting side's certificate (RFC 5929)",
    3 SHOWN "the other side has shown a certificate: fields with its names",
    4 DNS "in it: a name of the kind dNSName",
    5 IP "in it: a name of the kind iPAddress",
    6 COMMON "in it: the first common name",
}

/// More bytes than this are no facts.
const MOST: usize = 1 << 20;
/// The bytes of the length.
const LENGTH: usize = 4;

/// The bytes that tell these facts.
pub(super) fn write(facts: &Facts) -> Vec<u8> {
    let Facts { text, names, end_point } = facts;
    let mut fields = Fields::default();
    fields.put(TEXT, text.as_bytes());
    fields.put(END_POINT, end_point);
    if let Some(names) = names {
        fields.group(SHOWN, |fields| {
            let [dns, ips, common] = names.parts();
            dns.iter().for_each(|name| fields.put(DNS, name));
            ips.iter().for_each(|name| fields.put(IP, name));
            common.iter().for_each(|name| fields.put(COMMON, name));
        });
    }
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
    let mut facts = Facts::default();
    for field in fields::read(heard.get(LENGTH..).unwrap_or_default()) {
        match field.tag {
            TEXT => facts.text = field.text().into(),
            END_POINT => facts.end_point = field.value.into(),
            SHOWN => facts.names = Some(Box::new(names(field.value))),
            _ => {}
        }
    }
    facts
}

fn names(bytes: &[u8]) -> Names {
    let all = |tag| {
        let of = fields::read(bytes).filter(move |field| field.tag == tag);
        of.map(|field| Box::<[u8]>::from(field.value))
    };
    let common = all(COMMON).next();
    Names::new(all(DNS), all(IP), common)
}

#[cfg(test)]
mod tests {
    use super::*;

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
