//! An LDAP server decides about a password (auth 8.2), by OpenLDAP's client library: its words are
//! those of the contract, and certificates are checked as the system's ldap.conf says. Blocks, also
//! to load the library: only for helper threads.

use super::sys::{Ldap, LdapLibrary};
use crate::config::ldap::{self, Find, Place, Request, Scope, Search};
use crate::core::{Attempt, Outcome};
use std::ffi::{CStr, CString};

/// Seconds for a connection.
const CONNECT_TIME: i32 = 3;
/// Seconds for an answer; a server that never answers must not keep the thread.
const ANSWER_TIME: i32 = 15;

/// Asks the server that the options name.
pub(super) fn judge(attempt: &Attempt, options: &str) -> Outcome {
    let judged = ldap::request(options, &attempt.user)
        .map_err(|line| vec![line])
        .and_then(|request| ask(&request, attempt));
    match judged {
        Ok(()) => Outcome::Judged { accepted: true, lines: Vec::new() },
        Err(lines) => Outcome::Judged { accepted: false, lines },
    }
}

/// Where to, as URIs, and as messages show it.
struct Target {
    library: &'static LdapLibrary,
    uris: CString,
    server: String,
    port: i32,
    start_tls: bool,
}

fn ask(request: &Request, attempt: &Attempt) -> Result<(), Vec<String>> {
    let target = target(request).map_err(|line| vec![line])?;
    let server = &target.server;
    let dn = match &request.find {
        Find::Dn(dn) => text(dn),
        Find::Search(search) => find(&target, search, &attempt.user)?,
    };
    let connection = open(&target).map_err(|line| vec![line])?;
    connection.bind(&dn, &attempt.password).map_err(|why| {
        let dn = dn.to_string_lossy();
        vec![format!("LDAP login failed for user {dn} on server {server}: {why}")]
    })
}

fn target(request: &Request) -> Result<Target, String> {
    let library = LdapLibrary::get()?;
    let scheme = request.scheme;
    let (uris, server, port): (Vec<String>, _, _) = match &request.place {
        Place::Servers { server, port } => {
            let hosts = server.split_ascii_whitespace();
            let uris = hosts.map(|host| format!("{scheme}://{host}:{port}")).collect();
            (uris, server.clone(), *port)
        }
        Place::Domain(domain) => {
            let hosts = library.hosts(&text(domain)).ok_or_else(|| {
                format!("LDAP authentication could not find DNS SRV records for \"{domain}\"")
            })?;
            let uris = hosts.split_ascii_whitespace().map(|host| format!("{scheme}://{host}"));
            (uris.collect(), hosts.clone(), 0)
        }
    };
    let (uris, start_tls) = (text(&uris.join(" ")), request.start_tls);
    Ok(Target { library, uris, server, port, start_tls })
}

fn open(target: &Target) -> Result<Ldap, String> {
    let connection = target
        .library
        .prepare(&target.uris)
        .map_err(|why| format!("could not initialize LDAP: {why}"))?;
    connection
        .set_version()
        .map_err(|why| format!("could not set LDAP protocol version: {why}"))?;
    connection
        .set_timeouts(CONNECT_TIME, ANSWER_TIME)
        .map_err(|why| format!("could not set LDAP timeout: {why}"))?;
    if target.start_tls {
        connection.start_tls().map_err(|why| {
            let (server, port) = (&target.server, target.port);
            format!("could not start LDAP TLS session: {why}, server: {server}, port: {port}")
        })?;
    }
    Ok(connection)
}

/// The DN of the only entry that a search finds.
fn find(target: &Target, search: &Search, user: &str) -> Result<CString, Vec<String>> {
    let one = |line: String| vec![line];
    let connection = open(target).map_err(one)?;
    let Search { base, bind_dn, bind_password, scope, filter } = search;
    let server = &target.server;
    connection.bind(&text(bind_dn), bind_password.as_bytes()).map_err(|why| {
        one(format!(
            "could not perform initial LDAP bind for ldapbinddn \"{bind_dn}\" on server \
             \"{server}\": {why}"
        ))
    })?;
    let scope = match scope {
        Scope::Base => 0,
        Scope::One => 1,
        Scope::Subtree => 2,
        Scope::Children => 3,
    };
    let mut found = connection.search(&text(base), scope, &text(filter)).map_err(|why| {
        one(format!("could not search LDAP for filter \"{filter}\" on server \"{server}\": {why}"))
    })?;
    let told = format!("LDAP search for filter \"{filter}\" on server \"{server}\" returned");
    match (found.len(), found.pop()) {
        // To be nobody takes no password (RFC 4513, 5.1.2).
        (1, Some(dn)) if dn.is_empty() => {
            Err(one(format!("LDAP search for filter \"{filter}\" found an entry without a name")))
        }
        (1, Some(dn)) => Ok(dn),
        (0, _) => {
            let line = format!("LDAP user \"{user}\" does not exist");
            Err(vec![line, format!("{told} no entries.")])
        }
        (count, _) => {
            let line = format!("LDAP user \"{user}\" is not unique");
            Err(vec![line, format!("{told} {count} entries.")])
        }
    }
}

/// A text for C. None of ours has zeros in it; what follows one would be cut off.
fn text(text: &str) -> CString {
    let until = text.split('\0').next().unwrap_or_default();
    CString::new(until).unwrap_or_else(|_| CStr::to_owned(c""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(options: &str) -> Vec<String> {
        let attempt =
            Attempt { user: "bob".into(), password: b"x".to_vec().into(), host: "unix".into() };
        match judge(&attempt, options) {
            Outcome::Judged { accepted: false, lines } => lines,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_can_not_be_reached_is_named() {
        // Nothing listens on port 1.
        for (options, want) in [
            (
                "ldapserver=127.0.0.1 ldapport=1 ldapprefix=cn= ldapsuffix=\",o=x\"",
                "LDAP login failed for user cn=bob,o=x on server 127.0.0.1: \
                 Can't contact LDAP server",
            ),
            (
                "ldapserver=127.0.0.1 ldapport=1 ldapbasedn=o=x ldapbinddn=cn=me",
                "could not perform initial LDAP bind for ldapbinddn \"cn=me\" on server \
                 \"127.0.0.1\": Can't contact LDAP server",
            ),
            (
                "ldapserver=127.0.0.1 ldapport=1 ldaptls=1 ldapprefix=x",
                "could not start LDAP TLS session: Can't contact LDAP server, \
                 server: 127.0.0.1, port: 1",
            ),
            (
                "ldapserver=127.0.0.1:7 ldapport=1 ldapprefix=x",
                "could not initialize LDAP: Bad parameter to an ldap routine",
            ),
            ("ldapport=x", "invalid LDAP port number: \"x\""),
        ] {
            assert_eq!(lines(options), [want], "{options}");
        }
    }
}
