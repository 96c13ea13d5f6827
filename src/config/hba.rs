//! The rules of the HBA file: which connection may log in by which method (auth 7.4).

mod parse;

pub use parse::parse;

use super::ident::IdentMap;
use super::value::AuthType;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;

/// How a client proves who it is.
#[derive(Clone, Debug)]
pub enum Method {
    /// No proof, no user of its own (`auth_type` only).
    Any,
    /// No proof.
    Trust,
    /// Nobody gets in.
    Reject,
    /// The password in clear text; `plain` as `auth_type`.
    Password,
    /// MD5, or SCRAM if the stored secret asks for it.
    Md5,
    /// SCRAM-SHA-256.
    ScramSha256,
    /// The user of the process at the other end of a Unix socket.
    Peer(Option<Rc<IdentMap>>),
    /// A client certificate.
    Cert(Option<Rc<IdentMap>>),
    /// PAM (`auth_type` only).
    Pam,
    /// LDAP, with the text that follows `ldap` in the rule; without one, `auth_ldap_options` counts.
    Ldap(Option<Rc<str>>),
}

impl Method {
    /// The method of an `auth_type`; none for `hba`, where the rules decide.
    pub fn of(auth_type: AuthType) -> Option<Method> {
        Some(match auth_type {
            AuthType::Any => Method::Any,
            AuthType::Trust => Method::Trust,
            AuthType::Plain => Method::Password,
            AuthType::Md5 => Method::Md5,
            AuthType::ScramSha256 => Method::ScramSha256,
            AuthType::Cert => Method::Cert(None),
            AuthType::Pam => Method::Pam,
            AuthType::Ldap => Method::Ldap(None),
            AuthType::Hba => return None,
        })
    }
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// The client's address; none for a Unix socket.
    pub address: Option<IpAddr>,
    /// TLS is in use.
    pub tls: bool,
    /// The database as the client named it.
    pub database: &'a str,
    /// The user that it wants to be.
    pub user: &'a str,
    /// It asked for physical replication. Logical replication is like any other connection.
    pub physical_replication: bool,
}

/// The kinds of connection that a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Local,
    Host,
    HostSsl,
    HostNoSsl,
}

/// A list of databases or users.
#[derive(Clone, Debug, Default)]
struct Names {
    all: bool,
    same_user: bool,
    replication: bool,
    listed: BTreeSet<String>,
}

/// Addresses, as network and mask. A network with bits outside its mask contains none.
#[derive(Clone, Copy, Debug)]
enum Addresses {
    All,
    V4(u32, u32),
    V6(u128, u128),
}

impl Addresses {
    fn contain(&self, address: IpAddr) -> bool {
        match (self, address) {
            (Addresses::All, _) => true,
            (Addresses::V4(net, mask), IpAddr::V4(address)) => address.to_bits() & mask == *net,
            (Addresses::V6(net, mask), IpAddr::V6(address)) => address.to_bits() & mask == *net,
            _ => false,
        }
    }
}

/// One line.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its number in the file, from 1.
    pub line: usize,
    /// What it asks for.
    pub method: Method,
    kind: Kind,
    databases: Names,
    users: Names,
    addresses: Addresses,
}

impl Rule {
    fn fits(&self, at: &Connection<'_>) -> bool {
        let kind = match self.kind {
            Kind::Local => at.address.is_none(),
            Kind::Host => at.address.is_some(),
            Kind::HostSsl => at.address.is_some() && at.tls,
            Kind::HostNoSsl => at.address.is_some() && !at.tls,
        };
        let same = at.user == at.database;
        let database = if at.physical_replication {
            self.databases.replication
        } else {
            self.databases.name(at.database, same)
        };
        kind && database
            && self.users.name(at.user, same)
            && at.address.is_none_or(|address| self.addresses.contain(address))
    }
}

impl Names {
    /// Is this one of them? `same` tells that user and database have one name.
    fn name(&self, name: &str, same: bool) -> bool {
        self.all || self.same_user && same || self.listed.contains(name)
    }
}

/// The rules of a file in their order.
#[derive(Clone, Debug, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// The rule that decides: the first that fits.
    pub fn first(&self, connection: &Connection<'_>) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.fits(connection))
    }

    /// True if some rule asks who is at the other end of a Unix socket.
    pub fn ask_for_peers(&self) -> bool {
        self.0.iter().any(|rule| matches!(rule.method, Method::Peer(_)))
    }

    /// True if some rule asks for SCRAM-SHA-256, whatever the secret.
    pub fn ask_for_scram(&self) -> bool {
        self.0.iter().any(|rule| matches!(rule.method, Method::ScramSha256))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Journal;
    use crate::config::ident::IdentMaps;
    use std::io;

    fn rules(file: &str) -> Rules {
        let mut journal = Journal::default();
        let mut read = |_: &str| Err(io::Error::from_raw_os_error(2));
        let rules = parse("hba", file.as_bytes(), &IdentMaps::default(), &mut read, &mut journal);
        while let Some((_, line)) = journal.pop() {
            assert!(line.starts_with("address does not match mask"), "{line}");
        }
        rules
    }

    /// "unix", "1.2.3.4", "1.2.3.4 tls"; then user and database.
    fn line(rules: &Rules, from: &str, user: &str, database: &str) -> usize {
        let (address, tls) = match from.split_once(' ') {
            Some((address, _)) => (address, true),
            None => (from, false),
        };
        let address = (address != "unix").then(|| address.parse().unwrap());
        let at = Connection { address, tls, database, user, physical_replication: false };
        rules.first(&at).map_or(0, |rule| rule.line)
    }

    #[test]
    fn kinds_of_connections_are_told_apart() {
        let of = |kind: &str| match kind {
            "local" => rules("local all all trust"),
            kind => rules(&format!("{kind} all all all trust")),
        };
        for (kind, want) in [
            ("local", [1, 0, 0, 0]),
            ("host", [0, 1, 1, 1]),
            ("hostssl", [0, 0, 1, 0]),
            ("hostnossl", [0, 1, 0, 1]),
        ] {
            let got =
                ["unix", "1.2.3.4", "1.2.3.4 tls", "::1"].map(|c| line(&of(kind), c, "u", "d"));
            assert_eq!(got, want, "{kind}");
        }
    }

    #[test]
    fn addresses_are_compared_under_the_mask() {
        for (address, fits, misses) in [
            ("all", "1.2.3.4 ::1 2001:db8::1", ""),
            ("10.0.0.0/8", "10.0.0.0 10.255.255.255", "11.0.0.0 9.255.255.255 ::a00:0"),
            ("10.0.0.0 255.0.0.0", "10.0.0.0 10.255.255.255", "11.0.0.0"),
            ("10.0.0.1 255.0.0.255", "10.0.0.1 10.9.9.1", "10.0.0.2"),
            ("1.2.3.4/32", "1.2.3.4", "1.2.3.5"),
            ("0.0.0.0/0", "0.0.0.0 255.255.255.255", "::1 ::ffff:1.2.3.4"),
            ("0.0.0.0/", "1.2.3.4", "::1"),
            ("::/0", "::1 ffff:: ::ffff:1.2.3.4", "1.2.3.4"),
            ("::1/128", "::1", "::2 127.0.0.1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("2001:db8:: ffff:ffff::", "2001:db8:ffff::1", "2001:db9::"),
            ("::ffff:1.2.3.0/120", "::ffff:1.2.3.4", "1.2.3.4"),
            // Bits beyond the mask: never.
            ("10.0.0.1/8", "", "10.0.0.1 10.0.0.0"),
            ("1.2.3.4/", "", "1.2.3.4"),
            ("::1/64", "", "::1 ::"),
        ] {
            let rules = rules(&format!("host all all {address} trust"));
            for (addresses, want) in [(fits, 1), (misses, 0)] {
                for from in addresses.split_whitespace() {
                    assert_eq!(line(&rules, from, "u", "d"), want, "{address}: {from}");
                }
            }
        }
    }

    #[test]
    fn names_are_lists_with_keywords() {
        // Databases and users of the rule; user and database that fit, and that don't.
        for (names, fits, misses) in [
            ("all all", "u d", ""),
            ("d,e all", "u d,x e", "u f,u D"),
            ("all u,v", "u d,v d", "w d,U d"),
            ("d u", "u d", "d u,u u,d d"),
            ("\"all\" all", "u all", "u d"),
            ("ALL all", "u ALL", "u d"),
            ("sameuser all", "u u", "u d"),
            ("\"sameuser\" all", "u sameuser", "u u"),
            ("sameuser,d all", "u u,u d", "u e"),
            ("all sameuser", "u u", "u d"),
            ("all sameuser,v", "u u,v d", "u d"),
            ("replication all", "", "u replication,u d"),
            ("\"replication\" all", "u replication", "u d"),
            ("all replication", "", "replication d,u d"),
            ("replication,d all", "u d", "u replication"),
            ("/d all", "u /d", "u d"),
            ("\"+d\" \"@u\"", "@u +d", "u d"),
        ] {
            let rules = rules(&format!("local {names} trust"));
            for (pairs, want) in [(fits, 1), (misses, 0)] {
                for (user, database) in pairs.split(',').filter_map(|pair| pair.split_once(' ')) {
                    assert_eq!(
                        line(&rules, "unix", user, database),
                        want,
                        "{names}: {user} {database}"
                    );
                }
            }
        }
    }

    #[test]
    fn physical_replication_needs_its_keyword() {
        let rules = rules(
            "local all all trust\nlocal \"replication\" all md5\nlocal replication u trust\n",
        );
        let at = |user, physical_replication| Connection {
            address: None,
            tls: false,
            database: "replication",
            user,
            physical_replication,
        };
        let found = |at: Connection<'_>| rules.first(&at).map(|rule| rule.line);
        assert_eq!(found(at("u", true)), Some(3));
        assert_eq!(found(at("v", true)), None);
        assert_eq!(found(at("u", false)), Some(1));
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rules = rules(
            "# note\nhost d all 10.0.0.0/8 reject\n\nhost all u 10.1.0.0/16 md5\n\
             host all all all password\nlocal all all peer\n",
        );
        for (from, user, database, want) in [
            ("10.1.0.1", "u", "d", 2),
            ("10.1.0.1", "u", "e", 4),
            ("10.1.0.1", "v", "e", 5),
            ("11.0.0.1", "u", "d", 5),
            ("::1", "u", "d", 5),
            ("unix", "u", "d", 6),
        ] {
            assert_eq!(line(&rules, from, user, database), want, "{from} {user} {database}");
        }
        assert!(rules.ask_for_peers() && rules.len() == 4 && !rules.ask_for_scram());
        assert!(Rules::default().is_empty() && !Rules::default().ask_for_peers());
    }
}
