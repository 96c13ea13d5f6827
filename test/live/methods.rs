//! One table of who gets in: method, stored secret, what the client sends, what it is told (auth 2.3, 2.4, 4.4, 8). Errors
//! are FATAL with SQLSTATE 08P01 throughout; where the table says "closed", nothing is said at all.

use crate::rig::pooler::Pooler;
use crate::rig::raw::Raw;
use crate::rig::secrets::{md5_secret, scram_secret};
use crate::rig::tls::Wishes;
use crate::rig::wire::{cstr, last_error, msg, query, startup, terminate};
use crate::slapd::Slapd;
use crate::{auth, auth_query, cert, ldap, pam};

/// What the client sends when it is asked for a proof.
#[derive(Clone, Copy, Debug)]
enum Sends {
    /// What belongs to this password.
    Of(&'static str),
    /// A PasswordMessage with these bytes, whatever it was asked for.
    Bytes(&'static [u8]),
    /// The stored secret itself, in clear text.
    Stored,
    /// A query.
    Query,
    /// Terminate.
    Bye,
    /// Nothing, but its certificate is for the user trusty.
    Certificate,
    /// Nothing, over a Unix socket.
    Unix,
}
use Sends::{Bye, Bytes, Certificate, Of, Query, Stored, Unix};

/// User (its kind of secret), what it sends, codes of the authentication requests, and the error; `""` gets in.
type Rows = &'static [(&'static str, Sends, &'static [u8], &'static str)];

const WRONG: &str = "password authentication failed";
const SASL: &str = "SASL authentication failed";
const EMPTY: &str = "empty password returned by client";
const NOBODY: &str = "no such user";
const LDAP: &str = "LDAP authentication failed";
const PAM: &str = "PAM authentication failed";
const CERT: &str = "certificate authentication failed";

/// In the list are `plain`, `md` and `scrammer` with secrets of these kinds, `quo"te`, `upper` and `broken` with texts that are
/// not quite such secrets, and `trusty` with an empty one; `nobody` is not.
const LISTED: &[(&str, Rows)] = &[
    ("any", &[("plain", Of("x"), &[0], ""), ("nobody", Of(""), &[0], "")]),
    (
        "trust",
        &[
            ("plain", Of("x"), &[0], ""),
            ("md", Of("x"), &[0], ""),
            ("scrammer", Of("x"), &[0], ""),
            ("trusty", Of("x"), &[0], ""),
            ("nobody", Of("x"), &[], "\"trust\" authentication failed"),
        ],
    ),
    (
        "plain",
        &[
            ("plain", Of("plain-pw"), &[3, 0], ""),
            ("md", Of("md-pw"), &[3, 0], ""),
            ("scrammer", Of("scrammer-pw"), &[3, 0], ""),
            ("quo\"te", Of("quo\"te-pw"), &[3, 0], ""),
            ("upper", Stored, &[3, 0], ""),
            ("broken", Stored, &[3, 0], ""),
            ("plain", Of("plain-pW"), &[3], WRONG),
            ("plain", Of("plain-p"), &[3], WRONG),
            ("plain", Bytes(b"plain-pw\0more\0"), &[3, 0], ""),
            ("md", Of("wrong"), &[3], WRONG),
            ("md", Stored, &[3], WRONG),
            ("scrammer", Of("wrong"), &[3], WRONG),
            ("scrammer", Stored, &[3], WRONG),
            ("upper", Of("upper-pw"), &[3], WRONG),
            ("trusty", Of("x"), &[3], WRONG),
            ("nobody", Of("x"), &[3], WRONG),
            ("plain", Of(""), &[3], EMPTY),
            ("md", Of(""), &[3], EMPTY),
            ("scrammer", Of(""), &[3], EMPTY),
            ("trusty", Of(""), &[3], EMPTY),
            ("nobody", Bytes(b"\0x\0"), &[3], EMPTY),
            ("plain", Query, &[3], "closed"),
            ("nobody", Bye, &[3], "closed"),
        ],
    ),
    (
        "md5",
        &[
            ("plain", Of("plain-pw"), &[5, 0], ""),
            ("md", Of("md-pw"), &[5, 0], ""),
            ("scrammer", Of("scrammer-pw"), &[10, 11, 12, 0], ""),
            ("plain", Of("wrong"), &[5], WRONG),
            ("plain", Bytes(b"plain-pw\0"), &[5], WRONG),
            ("md", Of("wrong"), &[5], WRONG),
            ("md", Stored, &[5], WRONG),
            ("scrammer", Of("wrong"), &[10, 11], SASL),
            ("upper", Of("upper-pw"), &[5], WRONG),
            ("trusty", Of(""), &[5], WRONG),
            ("trusty", Of("x"), &[5], WRONG),
            ("nobody", Of(""), &[5], WRONG),
            ("nobody", Of("x"), &[5], WRONG),
            ("plain", Bytes(b"\0"), &[5], EMPTY),
            ("nobody", Bytes(b"\0"), &[5], EMPTY),
            ("scrammer", Bytes(b"\0"), &[10], SASL),
            ("md", Query, &[5], "closed"),
        ],
    ),
    (
        "scram-sha-256",
        &[
            ("plain", Of("plain-pw"), &[10, 11, 12, 0], ""),
            ("scrammer", Of("scrammer-pw"), &[10, 11, 12, 0], ""),
            ("plain", Of("wrong"), &[10, 11], SASL),
            ("plain", Of(""), &[10, 11], SASL),
            ("scrammer", Of("wrong"), &[10, 11], SASL),
            ("scrammer", Of(""), &[10, 11], SASL),
            ("md", Of("md-pw"), &[10, 11], SASL),
            ("trusty", Of(""), &[10, 11], SASL),
            ("trusty", Of("x"), &[10, 11], SASL),
            ("nobody", Of(""), &[10, 11], SASL),
            ("nobody", Of("x"), &[10, 11], SASL),
            ("plain", Bytes(b"plain-pw\0"), &[10], SASL),
            ("nobody", Bytes(b"\0"), &[10], SASL),
            ("scrammer", Query, &[10], "closed"),
        ],
    ),
];

/// In the database are the same three, `empty` and `null`; `nobody` has no row.
const LOOKED_UP: &[(&str, Rows)] = &[
    (
        "trust",
        &[
            ("plain", Of("x"), &[0], ""),
            ("null", Of(""), &[0], ""),
            ("nobody", Of("x"), &[], NOBODY),
        ],
    ),
    (
        "plain",
        &[
            ("plain", Of("plain-pw"), &[3, 0], ""),
            ("md", Of("md-pw"), &[3, 0], ""),
            ("scrammer", Of("scrammer-pw"), &[3, 0], ""),
            ("plain", Of("wrong"), &[3], WRONG),
            ("md", Of("wrong"), &[3], WRONG),
            ("scrammer", Of("wrong"), &[3], WRONG),
            ("empty", Of("x"), &[3], WRONG),
            ("null", Of("md5"), &[3], WRONG),
            ("empty", Of(""), &[3], EMPTY),
            ("null", Of(""), &[3], EMPTY),
            ("nobody", Of(""), &[], NOBODY),
        ],
    ),
    (
        "md5",
        &[
            ("plain", Of("plain-pw"), &[5, 0], ""),
            ("md", Of("md-pw"), &[5, 0], ""),
            ("scrammer", Of("scrammer-pw"), &[10, 11, 12, 0], ""),
            ("plain", Of("wrong"), &[5], WRONG),
            ("md", Of("wrong"), &[5], WRONG),
            ("scrammer", Of("wrong"), &[10, 11], SASL),
            ("empty", Of(""), &[5], WRONG),
            ("null", Of("md5"), &[5], WRONG),
            ("nobody", Of("x"), &[], NOBODY),
        ],
    ),
    (
        "scram-sha-256",
        &[
            ("plain", Of("plain-pw"), &[10, 11, 12, 0], ""),
            ("scrammer", Of("scrammer-pw"), &[10, 11, 12, 0], ""),
            ("plain", Of("wrong"), &[10, 11], SASL),
            ("md", Of("md-pw"), &[10, 11], SASL),
            ("scrammer", Of(""), &[10, 11], SASL),
            ("empty", Of(""), &[10, 11], SASL),
            ("null", Of(""), &[10, 11], SASL),
            ("nobody", Of(""), &[], NOBODY),
        ],
    ),
];

/// `ann` is known there with the password ann-pw.
const BIND: Rows = &[
    ("ann", Of("ann-pw"), &[3, 0], ""),
    ("ann", Of("wrong"), &[3], LDAP),
    // A bind without a password would succeed (RFC 4513, 5.1.2).
    ("ann", Of(""), &[3], EMPTY),
    ("ann", Bytes(b"\0ann-pw\0"), &[3], EMPTY),
    ("nobody", Of(""), &[3], EMPTY),
    ("nobody", Of("ann-pw"), &[3], LDAP),
    ("ann,ou=people", Of("ann-pw"), &[3], LDAP),
    ("*", Of("ann-pw"), &[3], LDAP),
    ("ann)(uid=*", Of("ann-pw"), &[3], LDAP),
    ("ann", Query, &[3], "closed"),
];

const MODULES: Rows = &[
    ("ann", Of("ann-pw"), &[3, 0], ""),
    ("ann", Of("wrong"), &[3], PAM),
    ("ann", Of(""), &[3], EMPTY),
    ("nobody", Of("ann-pw"), &[3], PAM),
    ("nobody", Of(""), &[3], EMPTY),
    // The account is for another service.
    ("bob", Of("bob-pw"), &[3], PAM),
    ("ann", Bye, &[3], "closed"),
];

const CERTIFICATES: Rows = &[
    ("trusty", Certificate, &[0], ""),
    ("app", Certificate, &[], CERT),
    ("nobody", Certificate, &[], CERT),
    ("trusty", Unix, &[], CERT),
    ("trusty", Of("pw"), &[], "SSL required"),
];

/// The codes of the authentication requests, and how the login ended.
fn attempt(
    pooler: &Pooler,
    user: &str,
    sends: Sends,
    stored: &dyn Fn(&str) -> String,
) -> (Vec<u8>, String) {
    let connection = || match sends {
        Certificate => Wishes::showing("client").raw(pooler.port),
        Unix => pooler.unix(),
        _ => pooler.tcp(),
    };
    let crude = |bytes: Vec<u8>| {
        let mut raw: Raw = connection();
        raw.send(&startup(0, &[("user", user), ("database", "shop")]));
        let mut got = vec![raw.recv().expect("a request")];
        raw.send(&bytes);
        while got.last().is_some_and(|m| m.tag != b'Z') {
            match raw.recv() {
                Some(msg) => got.push(msg),
                None => return Err(got),
            }
        }
        Ok((raw, got))
    };
    let login = match sends {
        Of(password) => connection().login(user, "shop", password),
        Certificate | Unix => connection().login(user, "shop", ""),
        Bytes(body) => crude(msg(b'p', body)),
        Stored => crude(msg(b'p', &cstr(&stored(user)))),
        Query => crude(query("select 1")),
        Bye => crude(terminate()),
    };
    let codes = |msgs: &[crate::rig::wire::Msg]| {
        msgs.iter().filter(|m| m.tag == b'R').map(|m| m.body[3]).collect()
    };
    match login {
        Ok((mut client, welcome)) => {
            assert_eq!(client.value("select current_user"), "trusty");
            (codes(&welcome), String::new())
        }
        Err(msgs) if msgs.last().is_some_and(|m| m.tag == b'R') => (codes(&msgs), "closed".into()),
        Err(msgs) => {
            let (severity, code, text) = last_error(&msgs);
            assert_eq!((severity.as_str(), code.as_str()), ("FATAL", "08P01"), "{text}");
            (codes(&msgs), text)
        }
    }
}

fn check(method: &str, pooler: &Pooler, rows: Rows, stored: &dyn Fn(&str) -> String) {
    for (user, sends, codes, want) in rows {
        let got = attempt(pooler, user, *sends, stored);
        assert_eq!(got, (codes.to_vec(), (*want).to_owned()), "{method}: {user} {sends:?}");
    }
}

/// The list has all kinds of secrets; servers are always reached as `trusty`.
fn secret(user: &str) -> String {
    match user {
        "trusty" => String::new(),
        "md" => md5_secret(user, "md-pw"),
        "upper" => md5_secret(user, "upper-pw").to_uppercase().replace("MD5", "md5"),
        "scrammer" => scram_secret("scrammer-pw", b"salt salt salt 1", 4096),
        "broken" => scram_secret("broken-pw", b"salt salt salt 1", 1).replace("$1:", "$one:"),
        user => format!("{user}-pw"),
    }
}

#[test]
fn listed_users_get_in_with_the_right_secret_only() {
    for (method, rows) in LISTED {
        check(method, &auth::start(method, &secret), rows, &secret);
    }
}

#[test]
fn looked_up_users_get_in_with_the_right_secret_only() {
    for (method, rows) in LOOKED_UP {
        let (pooler, _) = auth_query::shop(&format!("auth_type = {method}"));
        check(&format!("auth_query, {method}"), &pooler, rows, &secret);
    }
}

#[test]
fn users_whom_ldap_knows_get_in_with_the_right_secret_only() {
    let slapd = Slapd::start();
    let at = format!("ldapserver=127.0.0.1 ldapport={}", slapd.port);
    for options in [
        format!("{at} ldapprefix=\"uid=\" ldapsuffix=\",{}\"", ldap::PEOPLE),
        format!("{at} ldapbasedn=\"dc=example,dc=org\""),
    ] {
        check(&options, &ldap::start(&options, "/dev/null"), BIND, &secret);
    }
}

#[test]
fn users_whom_pam_knows_get_in_with_the_right_secret_only() {
    let _alone = pam::alone();
    check("pam", &pam::start(pam::SERVICE, "", ""), MODULES, &secret);
}

#[test]
fn users_whom_a_certificate_names_get_in() {
    check("cert", &cert::start("verify-full", "auth_type = cert\n"), CERTIFICATES, &secret);
}
