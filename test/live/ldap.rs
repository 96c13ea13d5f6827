//! auth_type=ldap against a real slapd (auth 8.2).

use crate::rig::pooler::{binary, Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::scratch::{scratch, write};
use crate::rig::wire::{cstr, msg, startup};
use crate::slapd::Slapd;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

/// A pooler with these options, which trusts this certificate.
pub(crate) fn start(options: &str, certificate: &str) -> Pooler {
    start_with(options, &format!("LDAPTLS_CACERT={certificate}"))
}

/// A pooler with these options and this variable in its environment.
fn start_with(options: &str, variable: &str) -> Pooler {
    let databases = format!(
        "shop = host=127.0.0.1 port={0} user=trusty dbname=template1\n\
         own = host=127.0.0.1 port={0} dbname=template1\n\
         asked = host=127.0.0.1 port={0} auth_user=asker\n",
        postgres().port
    );
    let settings =
        format!("auth_type = ldap\npool_mode = transaction\nauth_ldap_options = {options}\n");
    let program = scratch().folder().join("program");
    let text = format!("#!/bin/sh\nexport {variable}\nexec {} \"$@\"\n", binary().display());
    write(&program, text);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    Pooler::start_program(&program, &Setup { databases, settings, users: String::new() })
}

const FAILED: &str = "LDAP authentication failed";
pub(crate) const PEOPLE: &str = "ou=people,dc=example,dc=org";

#[test]
fn simple_bind_lets_in_whoever_the_server_knows() {
    let slapd = Slapd::start();
    let port = slapd.port;
    let options = format!(
        "ldapserver=127.0.0.1 ldapport={port} ldapprefix=\"uid=\" ldapsuffix=\",{PEOPLE}\""
    );
    let pooler = start(&options, "/dev/null");
    let (mut client, welcome) = pooler.login("ann", "shop", "ann-pw").expect("ann gets in");
    assert_eq!(welcome[0].body, [0, 0, 0, 3]);
    assert_eq!(client.value("select current_user"), "trusty");
    let (mut client, _) = pooler.login("scramy", "own", "scramy-pw").expect("gets in");
    assert_eq!(client.value("select current_user"), "scramy", "the password serves for the server");
    assert_eq!(pooler.refusal("ann", "shop", "wrong"), FAILED);
    pooler.wait_log(&format!(
        "WARNING LDAP login failed for user uid=ann,{PEOPLE} on server 127.0.0.1: Invalid credentials"
    ));
    assert_eq!(pooler.refusal("nobody", "shop", "x"), FAILED);
    assert_eq!(pooler.refusal("ann", "asked", "ann-pw"), "bouncer config error");
    pooler.wait_log("LDAP can't be used together with database authentication");
    assert_eq!(pooler.refusal("ann", "pgbouncer", "ann-pw"), "not allowed");
    drop(slapd);
    assert_eq!(pooler.refusal("ann", "shop", "ann-pw"), FAILED);
    pooler.wait_log("on server 127.0.0.1: Can't contact LDAP server");
}

#[test]
fn search_finds_the_one_who_logs_in() {
    let slapd = Slapd::start();
    let at = format!("ldapserver=127.0.0.1 ldapport={}", slapd.port);
    let base = "ldapbasedn=\"dc=example,dc=org\"";
    let pooler = start(&format!("{at} {base}"), "/dev/null");
    assert!(pooler.login("ann", "shop", "ann-pw").is_ok());
    let mut logged = Vec::new();
    for (user, password, lines) in [
        ("ann", "wrong", vec![format!("LDAP login failed for user uid=ann,{PEOPLE} on server 127.0.0.1: Invalid credentials")]),
        ("nobody", "x", vec![
            "LDAP user \"nobody\" does not exist".to_owned(),
            "LDAP search for filter \"(uid=nobody)\" on server \"127.0.0.1\" returned no entries.".to_owned(),
        ]),
        ("twin", "twin-pw", vec![
            "LDAP user \"twin\" is not unique".to_owned(),
            "LDAP search for filter \"(uid=twin)\" on server \"127.0.0.1\" returned 2 entries.".to_owned(),
        ]),
        ("a*", "x", vec!["invalid character in user name for LDAP authentication".to_owned()]),
    ] {
        assert_eq!(pooler.refusal(user, "shop", password), FAILED, "{user}");
        logged.extend(lines);
    }
    for line in logged {
        pooler.wait_log(&format!("WARNING {line}"));
    }
    for (options, user, gets_in) in [
        ("ldapbinddn=\"cn=admin,dc=example,dc=org\" ldapbindpasswd=admin-pw", "ann", true),
        ("ldapbinddn=\"cn=admin,dc=example,dc=org\" ldapbindpasswd=no", "ann", false),
        ("ldapsearchattribute=mail", "ann@example.org", true),
        ("ldapsearchfilter=\"(&(uid=$username)(sn=A))\"", "ann", true),
        ("ldapsearchfilter=\"(&(uid=$username)(sn=B))\"", "ann", false),
        ("ldapsearchfilter=\"(broken\"", "ann", false),
    ] {
        let pooler = start(&format!("{at} {base} {options}"), "/dev/null");
        assert_eq!(pooler.login(user, "shop", "ann-pw").is_ok(), gets_in, "{options}");
        if options.ends_with("=no") {
            pooler.wait_log(
                "WARNING could not perform initial LDAP bind for ldapbinddn \
                 \"cn=admin,dc=example,dc=org\" on server \"127.0.0.1\": Invalid credentials",
            );
        }
        if options.contains("broken") {
            pooler.wait_log("WARNING could not search LDAP for filter \"(broken\" on server");
        }
    }
}

#[test]
fn tls_is_spoken_if_the_certificate_is_trusted() {
    let slapd = Slapd::start();
    let (port, tls_port) = (slapd.port, slapd.tls_port);
    let certificate = slapd.certificate().display().to_string();
    let dn = format!("ldapprefix=\"uid=\" ldapsuffix=\",{PEOPLE}\"");
    for options in [
        format!("ldapserver=127.0.0.1 ldapport={port} ldaptls=1 {dn}"),
        format!("ldapserver=127.0.0.1 ldapport={tls_port} ldapscheme=ldaps {dn}"),
        format!("ldapurl=\"ldaps://127.0.0.1:{tls_port}/dc=example,dc=org?uid?sub\""),
        format!("ldapurl=\"ldap://127.0.0.1:{port}/{PEOPLE}?mail?one?(cn=$username)\"")
            .replace("?mail?", "??"),
    ] {
        let pooler = start(&options, &certificate);
        let user = if options.contains("(cn=") { "Ann" } else { "ann" };
        assert!(pooler.login(user, "shop", "ann-pw").is_ok(), "{options}: {}", pooler.log());
        assert_eq!(pooler.refusal(user, "shop", "wrong"), FAILED, "{options}");
        if options.contains("ldaps") || options.contains("ldaptls") {
            let pooler = start(&options, "/dev/null");
            assert_eq!(pooler.refusal(user, "shop", "ann-pw"), FAILED, "{options}");
        }
    }
}

/// An HBA rule brings options of its own; nobody needs to be listed for it, and other rules have
/// nothing of the password.
#[test]
fn hba_rules_bring_their_own_options() {
    let slapd = Slapd::start();
    let rules = scratch().folder().join("hba");
    let text = format!(
        "host own all 127.0.0.1/32 md5\nhost all all 127.0.0.1/32 ldap ldapserver=127.0.0.1 \
         ldapport={} ldapbasedn=\"dc=example,dc=org\" # people\n",
        slapd.port
    );
    write(&rules, text);
    let mut setup =
        Setup::trust(&format!("auth_type = hba\nauth_hba_file = {}\n", rules.display()));
    let place = format!("host=127.0.0.1 port={} user=trusty dbname=template1", postgres().port);
    setup.databases = format!("shop = {place}\nown = {place}\n");
    let pooler = Pooler::start(&setup);
    assert!(pooler.login("ann", "shop", "ann-pw").is_ok(), "{}", pooler.log());
    assert_eq!(pooler.refusal("ann", "shop", "wrong"), FAILED);
    assert_eq!(pooler.refusal("ann", "own", "ann-pw"), "password authentication failed");
}

#[test]
fn mistakes_in_options_appear_at_login() {
    let pooler = start("nonsense=1", "/dev/null");
    assert_eq!(pooler.refusal("ann", "shop", "ann-pw"), FAILED);
    pooler.wait_log("WARNING invalid LDAP option: \"nonsense\"");
    let mut setup = Setup::trust("auth_type = ldap\n");
    setup.databases = "shop = host=127.0.0.1 port=1\n".into();
    let pooler = Pooler::start(&setup);
    assert_eq!(pooler.refusal("ann", "shop", "ann-pw"), "auth_ldap_options is null");
}

/// The library is loaded by the first login; without it the log says what to do, and once that is
/// done logins work, without a restart. Empty files hide the system's library here.
#[test]
fn library_can_be_installed_later() {
    let slapd = Slapd::start();
    let folder = scratch().folder();
    let hidden =
        ["libldap-2.5.so.0", "libldap.so.2", "libldap_r-2.4.so.2"].map(|it| folder.join(it));
    for file in &hidden {
        write(file, "");
    }
    let options = format!(
        "ldapserver=127.0.0.1 ldapport={} ldapprefix=uid= ldapsuffix=\",{PEOPLE}\"",
        slapd.port
    );
    let pooler = start_with(&options, &format!("LD_LIBRARY_PATH={}", folder.display()));
    assert_eq!(pooler.refusal("ann", "shop", "ann-pw"), FAILED);
    pooler.wait_log("WARNING LDAP needs OpenLDAP's client library, please install libldap (");
    pooler.wait_log("libldap-2.5.so.0: file too short");
    for file in &hidden {
        std::fs::remove_file(file).unwrap();
    }
    assert!(pooler.login("ann", "shop", "ann-pw").is_ok(), "{}", pooler.log());
    assert_eq!(pooler.refusal("ann", "shop", "wrong"), FAILED);
}

/// An LDAP server that says nothing holds up nobody but those who wait for it.
#[test]
fn full_queue_does_not_stall_queries() {
    let slapd = Slapd::start();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let options = |port| {
        format!("ldapserver=127.0.0.1 ldapport={port} ldapprefix=uid= ldapsuffix=\",{PEOPLE}\"")
    };
    let pooler = start(&options(slapd.port), "/dev/null");
    let (mut querier, _) = pooler.login("ann", "shop", "ann-pw").expect("gets in");
    let admin = pooler.login("ann", "shop", "ann-pw").is_ok();
    assert!(admin);
    let ini = std::fs::read_to_string(pooler.folder.join("ini")).unwrap();
    write(&pooler.folder.join("ini"), ini.replace(&options(slapd.port), &options(port)));
    pooler.signal(nix::sys::signal::Signal::SIGHUP);
    pooler.wait_log("got SIGHUP");
    let waiting: Vec<_> = (0..25)
        .map(|_| {
            let mut raw = pooler.tcp();
            raw.send(&startup(0, &[("user", "ann"), ("database", "shop")]));
            assert_eq!(raw.recv().unwrap().body[3], 3);
            raw.send(&msg(b'p', &cstr("ann-pw")));
            raw
        })
        .collect();
    pooler.wait_log("LDAP queue is full, waiting");
    for number in 0..20 {
        assert_eq!(querier.value(&format!("select {number}")), number.to_string());
    }
    assert_eq!(pooler.log().matches("LDAP queue is full, waiting").count(), 1);
    drop(waiting);
}
