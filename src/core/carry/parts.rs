//! What rows of several kinds have in common: pools, addresses, parameters, TLS.

use super::super::face::{Addr, Facts};
use super::super::pool::Pool;
use super::super::replication::Replication;
use super::super::vars::{Tracked, Vars};
use crate::auth::Names;
use crate::base::fields::{read, Field, Fields};
use crate::tags;
use std::net::{SocketAddr, SocketAddrV6};

/// The number that stands for a value: its place in a table that only grows.
pub(in crate::core) fn number_of<T: PartialEq>(table: &[T], value: &T) -> u64 {
    table.iter().position(|known| known == value).map_or(0, |at| at as u64)
}

/// The value that a number stands for; `None` if it is unknown here.
pub(in crate::core) fn value_of<T: Copy>(table: &[T], number: u64) -> Option<T> {
    table.get(usize::try_from(number).ok()?).copied()
}

/// The numbers of kinds of replication.
const REPLICATION: [Replication; 3] =
    [Replication::None, Replication::Logical, Replication::Physical];

/// Writes a kind of replication, unless it is none.
pub(in crate::core) fn put_replication(fields: &mut Fields, tag: u16, replication: Replication) {
    fields.count(tag, number_of(&REPLICATION, &replication));
}

/// Reads a kind of replication.
pub(in crate::core) fn replication(field: Field<'_>) -> Option<Replication> {
    value_of(&REPLICATION, field.number())
}

tags! {
    /// Where a pool is found.
    PLACE_TAGS:
    1 DATABASE "name of its database",
    2 USER "name of the user that its servers log in as",
    3 PEER "instead of both, the id of the peer that cancel requests go to",
}

/// The names of a pool, by which it is found again.
#[derive(Clone, Debug, Default)]
pub(in crate::core) struct Place {
    /// Database and user.
    pub(in crate::core) names: (String, String),
    /// The peer.
    pub(in crate::core) peer: Option<u32>,
}

impl Place {
    /// Reads where a pool is.
    pub(in crate::core) fn read(bytes: &[u8]) -> Place {
        let mut place = Place::default();
        for field in read(bytes) {
            match field.tag {
                DATABASE => place.names.0 = field.text(),
                USER => place.names.1 = field.text(),
                PEER => place.peer = Some(field.number_u32()),
                _ => {}
            }
        }
        place
    }
}

/// Writes where a pool is.
pub(in crate::core) fn put_place(fields: &mut Fields, tag: u16, pool: &Pool) {
    fields.group(tag, |fields| match pool.peer {
        Some(peer) => fields.number(PEER, peer.into()),
        None => {
            fields.put(DATABASE, pool.names.0.as_bytes());
            fields.put(USER, pool.names.1.as_bytes());
        }
    });
}

tags! {
    /// One end of a connection.
    ADDRESS_TAGS:
    1 INET "the port in two bytes, the IPv4 or IPv6 address in 4 or 16; the scope of the latter in 4 if it has one",
    2 UNIX "a Unix socket: the process id of the other side, 0 if it is not known",
}

/// Writes one end of a connection, if it is known.
pub(in crate::core) fn put_addr(fields: &mut Fields, tag: u16, addr: Addr) {
    match addr {
        Addr::Unknown => {}
        Addr::Inet(at) => fields.group(tag, |fields| put_inet(fields, at)),
        Addr::Unix { pid } => fields.group(tag, |fields| fields.number(UNIX, pid.into())),
    }
}

fn put_inet(fields: &mut Fields, at: SocketAddr) {
    let port = &at.port().to_be_bytes()[..];
    match at {
        SocketAddr::V4(at) => fields.put_parts(INET, [port, &at.ip().octets()]),
        SocketAddr::V6(at) if at.scope_id() == 0 => {
            fields.put_parts(INET, [port, &at.ip().octets()]);
        }
        SocketAddr::V6(at) => {
            fields.put_parts(INET, [port, &at.ip().octets(), &at.scope_id().to_be_bytes()]);
        }
    }
}

fn inet(value: &[u8]) -> Option<SocketAddr> {
    let (port, rest) = value.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    if let Ok(ip) = <[u8; 4]>::try_from(rest) {
        return Some((ip, port).into());
    }
    let (ip, scope) = rest.split_first_chunk::<16>()?;
    let scope = match scope {
        [] => 0,
        scope => u32::from_be_bytes(scope.try_into().ok()?),
    };
    Some(SocketAddrV6::new((*ip).into(), port, 0, scope).into())
}

/// Reads one end of a connection.
pub(in crate::core) fn addr(field: Field<'_>) -> Addr {
    let mut addr = Addr::Unknown;
    for field in field.fields() {
        match field.tag {
            INET => addr = inet(field.value).map_or(Addr::Unknown, Addr::Inet),
            UNIX => addr = Addr::Unix { pid: field.number_u32() },
            _ => {}
        }
    }
    addr
}

/// Writes the values of parameters that are known: name, zero, value.
pub(in crate::core) fn put_vars(fields: &mut Fields, tag: u16, tracked: &Tracked, vars: &Vars) {
    for (at, name) in tracked.names().enumerate() {
        if let Some(value) = vars.get(at) {
            put_parameter(fields, tag, name.as_bytes(), value);
        }
    }
}

/// Writes the value of a parameter.
pub(in crate::core) fn put_parameter(fields: &mut Fields, tag: u16, name: &[u8], value: &[u8]) {
    fields.put_parts(tag, [name, b"\0", value]);
}

/// Reads the name and the value of a parameter.
pub(in crate::core) fn parameter(field: Field<'_>) -> Option<(&[u8], &[u8])> {
    let end = field.value.iter().position(|byte| *byte == 0)?;
    let (name, value) = field.value.split_at_checked(end)?;
    Some((name, value.get(1..)?)).filter(|(name, value)| !name.is_empty() && !value.contains(&0))
}

/// Reads the value of a parameter; false if that is not tracked here.
pub(in crate::core) fn take_in_var(vars: &mut Vars, tracked: &Tracked, field: Field<'_>) -> bool {
    let found = parameter(field).and_then(|(name, value)| Some((tracked.find(name)?, value)));
    if let Some((at, value)) = found {
        vars.set(tracked, at, value.into());
    }
    found.is_some()
}

tags! {
    /// What is known of a connection that is encrypted.
    TLS_TAGS:
    1 SHOWN "version, cipher and key exchange, as they are shown",
    2 END_POINT "the hash of the accepting side's certificate, for channel binding",
    3 CERTIFICATE "the names in the certificate that the other side has shown",
    4 DNS_NAME "one of kind dNSName",
    5 IP_NAME "one of kind iPAddress, 4 or 16 bytes",
    6 COMMON_NAME "the first common name of the subject",
}

/// Writes what is known of a connection that is encrypted.
pub fn put_facts(fields: &mut Fields, tag: u16, facts: Option<&Facts>) {
    let Some(Facts { text, names, end_point }) = facts else { return };
    fields.group(tag, |fields| {
        fields.put(SHOWN, text.as_bytes());
        fields.put(END_POINT, end_point);
        let Some(names) = names else { return };
        fields.group(CERTIFICATE, |fields| {
            let [dns, ips, common] = names.parts();
            dns.iter().for_each(|name| fields.put(DNS_NAME, name));
            ips.iter().for_each(|name| fields.put(IP_NAME, name));
            common.iter().for_each(|name| fields.put(COMMON_NAME, name));
        });
    });
}

/// Reads what is known of a connection that is encrypted.
pub fn facts(field: Field<'_>) -> Facts {
    let mut facts = Facts::default();
    for field in field.fields() {
        match field.tag {
            SHOWN => facts.text = field.text().into(),
            END_POINT => facts.end_point = field.value.into(),
            CERTIFICATE => {
                let of = |tag| {
                    let found = field.fields().filter(move |field| field.tag == tag);
                    found.map(|field| Box::from(field.value))
                };
                let common = of(COMMON_NAME).next();
                facts.names = Some(Box::new(Names::new(of(DNS_NAME), of(IP_NAME), common)));
            }
            _ => {}
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes back of a field that `put` writes.
    fn again<T>(put: impl Fn(&mut Fields), take: impl Fn(Field<'_>) -> T) -> Option<T> {
        let mut fields = Fields::default();
        put(&mut fields);
        let bytes = fields.into_bytes();
        let field = read(&bytes).next();
        field.map(take)
    }

    #[test]
    fn addresses_come_back_as_they_were() {
        for text in ["127.0.0.1:6432", "[fe80::1%3]:1", "[::]:0"] {
            let known = Addr::Inet(text.parse().unwrap());
            assert_eq!(again(|fields| put_addr(fields, 9, known), addr), Some(known));
        }
        let known = Addr::Unix { pid: 4_000_000_000 };
        assert_eq!(again(|fields| put_addr(fields, 9, known), addr), Some(known));
        assert_eq!(again(|fields| put_addr(fields, 9, Addr::Unknown), addr), None);
    }

    #[test]
    fn what_is_known_of_tls_comes_back_as_it_was() {
        let boxed = |names: &[&str]| {
            names.iter().map(|name| Box::from(name.as_bytes())).collect::<Vec<Box<[u8]>>>()
        };
        let names = Names::new(
            boxed(&["a.test", "b.test"]).into_iter(),
            boxed(&["\0\0\0\x01"]).into_iter(),
            Some(b"c"[..].into()),
        );
        for names in [None, Some(names)] {
            let known = Facts {
                text: "TLSv1.3".into(),
                names: names.map(Box::new),
                end_point: b"\x01\0"[..].into(),
            };
            let put = |fields: &mut Fields| put_facts(fields, 9, Some(&known));
            assert_eq!(again(put, facts), Some(known.clone()));
        }
    }

    #[test]
    fn a_parameter_is_a_name_and_a_value() {
        for (bytes, want) in [
            (&b"a\0b"[..], Some((&b"a"[..], &b"b"[..]))),
            (b"a\0", Some((b"a", b""))),
            (b"\0b", None),
            (b"ab", None),
            (b"a\0b\0", None),
            (b"", None),
        ] {
            assert_eq!(parameter(Field { tag: 1, value: bytes }), want);
        }
    }
}
