//! The files that an administrator writes.

use super::scene::configured;
use pgturnstile::auth::{ScramSecret, Secret};
use pgturnstile::base::Journal;
use pgturnstile::config::hba::{self, Connection};
use pgturnstile::config::{self, ident, users, Settings, PARAMS};
use std::io::{self, ErrorKind};

/// auth_file. What was read is written again and must read the same.
pub(super) fn userlist(data: &[u8]) {
    let (entries, _) = users::parse(data);
    let doubled = |bytes: &[u8]| {
        let parts: Vec<&[u8]> = bytes.split(|byte| *byte == b'"').collect();
        parts.join(&b"\"\""[..])
    };
    let mut written = Vec::new();
    for entry in &entries {
        let (name, secret) = (doubled(entry.name.as_bytes()), doubled(&entry.secret.0));
        written.extend([b"\"", &name[..], b"\" \"", &secret[..], b"\"\n"].concat());
        match Secret::classify(&entry.secret.0) {
            Secret::Scram(secret) => {
                assert_eq!(ScramSecret::parse(secret.text().as_bytes()), Some(secret));
            }
            Secret::Empty => assert!(entry.secret.0.is_empty()),
            _ => assert!(!entry.secret.0.is_empty()),
        }
    }
    let (again, error) = users::parse(&written);
    // What is no UTF-8 has become longer than it was.
    if entries.iter().all(|entry| doubled(entry.name.as_bytes()).len() <= users::NAME_MAX) {
        assert!(error.is_none());
        assert_eq!(entries, again);
    }
    let mut core = configured("[pgbouncer]\n");
    for _ in 0..2 {
        let users = entries.iter().map(|user| (user.name.clone(), user.secret.0.clone()));
        core.set_users(users.collect());
    }
}

/// The main file; behind a byte 1 begins the file that it may include. What was read is taken over
/// by a core; each parameter's text must give its value again.
pub(super) fn ini(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == 1);
    let main = parts.next().unwrap_or_default();
    let included = parts.next().unwrap_or_default();
    let mut read = |name: &str| -> io::Result<Vec<u8>> {
        match name {
            "x.ini" => Ok(main.to_vec()),
            "a" => Ok(included.to_vec()),
            _ => Err(ErrorKind::NotFound.into()),
        }
    };
    let mut journal = Journal::default();
    let mut core = configured("[databases]\nd = pool_size=2\nold =\n[pgbouncer]\n");
    for starting in [true, false] {
        let current = core.settings().clone();
        let (config, complete) = config::load(&current, "x.ini", starting, &mut read, &mut journal);
        let mut copy = Settings::default();
        for param in PARAMS {
            if let Some(text) = (param.show)(&config.settings) {
                assert!((param.set)(&mut copy, &text), "{} = {text}", param.name);
                let again = (param.show)(&copy);
                assert_eq!(again.as_ref(), Some(&text), "{}", param.name);
            }
        }
        core.configure(config, complete);
        core.turn_end();
        core.tick();
        while core.next_action().is_some() {}
    }
}

/// The HBA file; behind a byte 1 begins the file `@a`, behind another one the ident file. The rules
/// are asked about connections.
pub(super) fn hba(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == 1);
    let mut part = || parts.next().unwrap_or_default();
    let (main, named, maps) = (part(), part(), part());
    let mut journal = Journal::default();
    let maps = ident::parse(maps, &mut journal);
    let mut read = |name: &str| -> io::Result<Vec<u8>> {
        match name {
            "a" => Ok(named.to_vec()),
            _ => Err(ErrorKind::NotFound.into()),
        }
    };
    let rules = hba::parse("hba", main, &maps, &mut read, &mut journal);
    assert!(rules.len() <= main.split(|byte| *byte == b'\n').count());
    let addresses = [None, Some([127, 0, 0, 1].into()), Some([0xfe80, 0, 0, 0, 0, 0, 0, 1].into())];
    for address in addresses {
        for (tls, user) in [(false, "d"), (true, "u"), (true, "")] {
            let physical_replication = tls && user.is_empty();
            let at = Connection { address, tls, database: "d", user, physical_replication };
            rules.first(&at);
        }
    }
    let mut core = configured("[pgbouncer]\nauth_type = hba\n");
    core.set_rules(rules);
}

/// The ident file. Its maps are asked about names.
pub(super) fn ident(data: &[u8]) {
    let maps = ident::parse(data, &mut Journal::default());
    for map in maps.values() {
        for (user, name) in [("u", "u"), ("", ""), ("admin", "root@EXAMPLE.COM")] {
            map.admits(user, &[name], |other| other == name);
            assert!(!map.admits("nobody else", &[], |_| false), "a map without names");
        }
    }
}
