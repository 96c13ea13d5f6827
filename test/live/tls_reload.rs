//! TLS settings at the start, by RELOAD and by SET.

use std::fs;
use std::path::PathBuf;

use crate::rig::certs::{certs, Authority, Names};
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::tls_postgres;
use crate::rig::scratch::{scratch, write};
use crate::rig::tls::{ask, connect, setup, Wishes};
use crate::rig::wait_until;
use crate::rig::wire::tags;

const KEPT: &str = "ERROR TLS configuration could not be reloaded, keeping old configuration";

/// The common name of the certificate that a pooler shows.
fn shown(port: u16) -> String {
    let session = Wishes::default().session(port).unwrap();
    format!("{:?}", session.ssl().peer_certificate().unwrap().subject_name())
}

/// Copies a pair to a place of its own.
fn place(folder: &std::path::Path, pair: &str) {
    for kind in ["crt", "key"] {
        let bytes = fs::read(certs().join(format!("{pair}.{kind}"))).unwrap();
        write(&folder.join(format!("own.{kind}")), bytes);
    }
}

fn own_files(folder: &std::path::Path, mode: &str) -> String {
    let at = folder.display();
    format!(
        "client_tls_sslmode = {mode}\nclient_tls_cert_file = {at}/own.crt\n\
         client_tls_key_file = {at}/own.key\nclient_tls_ca_file = {}/ca.crt\n",
        certs().display()
    )
}

#[test]
fn changed_files_count_for_new_clients_and_broken_ones_for_nobody() {
    let folder: PathBuf = scratch().folder();
    place(&folder, "server");
    let mut pooler = Pooler::start(&Setup::trust(&own_files(&folder, "require")));
    let mut old = Wishes::default().raw(pooler.port).login("trusty", "postgres", "").unwrap().0;
    assert!(shown(pooler.port).contains("\"x\""), "{}", shown(pooler.port));

    let authority = Authority::new("test authority");
    authority.issue(
        &folder,
        "own",
        Names { common: "another", dns: &["localhost"], ..Names::default() },
    );
    // Signed by somebody else of the same name: our client refuses it, so it is a new one.
    let mut console = pooler.unix().login("admin", "pgbouncer", "admin-pw").unwrap().0;
    assert_eq!(tags(&console.query("RELOAD")), "CZ");
    assert!(Wishes::default().session(pooler.port).is_err());
    assert_eq!(old.value("select 1"), "1");

    write(&folder.join("own.key"), "nonsense");
    let answer = console.query("RELOAD");
    assert_eq!(tags(&answer), "EZ");
    assert_eq!(answer[0].field(b'C'), "F0000");
    pooler.wait_log("ERROR TLS setup failed: failed to load private key file");
    pooler.wait_log(KEPT);
    assert!(Wishes::default().session(pooler.port).unwrap_err().contains("verify failed"));

    place(&folder, "server");
    assert_eq!(tags(&console.query("RELOAD")), "CZ");
    assert!(shown(pooler.port).contains("\"x\""));
    assert_eq!(old.value("select 2"), "2");
    assert_eq!(pooler.exited(), None);
}

#[test]
fn set_changes_tls_at_once_or_says_why_not() {
    let pooler = Pooler::start(&Setup::trust(""));
    let mut console = pooler.console();
    let mut set = |what: &str| {
        let answer = console.query(&format!("SET {what}"));
        let notice = answer.iter().find(|m| m.tag == b'N').map(|m| m.field(b'M'));
        (tags(&answer), notice.unwrap_or_default())
    };
    let kept = "TLS settings could not be applied, still using old configuration".to_owned();
    assert_eq!(set("client_tls_sslmode = require"), ("NCZ".into(), kept.clone()));
    pooler.wait_log(
        "ERROR To allow TLS connections from clients, client_tls_key_file and \
         client_tls_cert_file must be set.",
    );
    assert!(pooler.login("trusty", "postgres", "").is_ok());
    let file = |name: &str| format!("'{}'", certs().join(name).display());
    assert_eq!(set(&format!("client_tls_cert_file = {}", file("server.crt"))).0, "NCZ");
    assert_eq!(set(&format!("client_tls_ca_file = {}", file("ca.crt"))).0, "NCZ");
    assert_eq!(set(&format!("client_tls_key_file = {}", file("server.key"))).0, "CZ");
    assert_eq!(pooler.refusal("trusty", "postgres", ""), "SSL required");
    assert!(Wishes::default().gets_in(pooler.port));
    assert_eq!(set("client_tls_protocols = tlsv9"), ("NCZ".into(), kept));
    assert!(Wishes::default().gets_in(pooler.port));
    assert_eq!(set("client_tls_protocols = secure").0, "CZ");
    assert_eq!(set("client_tls_sslmode = disable").0, "CZ");
    assert_eq!(ask(connect(pooler.port)).1, b'N');
}

#[test]
fn servers_are_replaced_when_their_settings_change() {
    let server = tls_postgres();
    let mut setup = Setup::trust("pool_mode = transaction\n");
    setup.databases = format!("* = host=localhost port={}\n", server.port);
    let pooler = Pooler::start(&setup);
    let mut client = pooler.client("postgres");
    let first = client.value("select pg_backend_pid()");
    pooler.command("RELOAD");
    pooler.command("SET client_tls_ciphers = 'ALL'");
    assert_eq!(client.value("select pg_backend_pid()"), first);
    pooler.command("SET server_tls_protocols = 'tlsv1.2'");
    wait_until("it is replaced", || client.value("select pg_backend_pid()") != first);
    let text = &pooler.show("SERVERS", "tls", ("database", "postgres"))[0];
    assert!(text.starts_with("TLSv1.2/"), "{text}");
}

#[test]
fn mistakes_end_the_start() {
    let folder = certs().display();
    let pair = format!(
        "client_tls_cert_file = {folder}/server.crt\nclient_tls_key_file = {folder}/server.key\n"
    );
    let full = format!("{pair}client_tls_ca_file = {folder}/ca.crt\n");
    let missing = "error:80000002:system library::No such file or directory";
    for (settings, want) in [
        ("client_tls_sslmode = allow\n".to_owned(),
         "To allow TLS connections from clients, client_tls_key_file and client_tls_cert_file must be set.".to_owned()),
        ("auth_type = cert\n".into(),
         "auth_type=cert requires client_tls_sslmode=SSLMODE_VERIFY_FULL".into()),
        (format!("auth_type = cert\nclient_tls_sslmode = verify-full\n{pair}"),
         "auth_type=cert requires client_tls_ca_file".into()),
        (format!("client_tls_sslmode = verify-full\n{pair}"),
         "client_tls_sslmode requires client_tls_ca_file".into()),
        (format!("client_tls_sslmode = allow\n{full}client_tls_cert_file = {folder}/no\n"),
         format!("TLS setup failed: failed to load certificate file \"{folder}/no\": {missing}")),
        (format!("client_tls_sslmode = allow\n{full}client_tls_key_file = {folder}/no\n"),
         format!("TLS setup failed: failed to load private key file \"{folder}/no\": {missing}")),
        (format!("client_tls_sslmode = allow\n{full}client_tls_ca_file = {folder}/no\n"),
         format!("TLS setup failed: failed to load CA: {missing}")),
        (format!("client_tls_sslmode = allow\n{full}client_tls13_ciphers = nonsense\n"),
         "TLS setup failed: failed to set the TLSv1.3 cipher suites".into()),
        (format!("client_tls_sslmode = allow\n{full}client_tls_ecdhcurve = X25519\n"),
         "TLS setup failed: failed to set ECDHE curve".into()),
        (format!("client_tls_sslmode = allow\n{full}client_tls_ecdhcurve = P-384\n"),
         "invalid client_tls_ecdhecurve: P-384".into()),
        (format!("client_tls_sslmode = allow\n{full}client_tls_dheparams = legacy\n"),
         "invalid client_tls_dheparams: legacy".into()),
        (format!("client_tls_sslmode = allow\n{full}client_tls_ciphers = all\n"),
         "invalid client_tls_ciphers: all".into()),
        ("server_tls_protocols = legacy\n".into(), "invalid server_tls_protocols: legacy".into()),
        ("server_tls_sslmode = prefer\nserver_tls_sslnegotiation = direct\n".into(),
         "server_tls_sslnegotiation=direct requires server_tls_sslmode=require, verify-ca or verify-full".into()),
        ("server_tls_ciphers = nonsense\n".into(), "invalid server_tls_ciphers: nonsense".into()),
    ] {
        let text = |_: &std::path::Path| format!("[databases]\n[pgbouncer]\nlisten_port = 1\n{settings}");
        let (status, log) = Pooler::run_to_end(&text);
        assert_eq!(status.code(), Some(1), "{log}");
        let lines: Vec<_> = log.lines().filter_map(|line| Some(line.split_once("] ")?.1)).collect();
        assert_eq!(lines, [&format!("ERROR {want}"), "FATAL TLS setup failed"], "{settings}");
    }
}

#[test]
fn encrypted_connections_stay_out_of_show_fds() {
    let pooler = Pooler::start(&setup("prefer", ""));
    let encrypted = Wishes::default().raw(pooler.port).login("trusty", "postgres", "").unwrap();
    let plain = pooler.client("postgres");
    let mut console = pooler.unix().login("admin", "pgbouncer", "admin-pw").unwrap().0;
    let answer = console.query("SHOW FDS");
    let tasks: Vec<_> =
        crate::rig::wire::rows(&answer).into_iter().map(|row| row[1].clone()).collect();
    let clients = tasks.iter().filter(|task| task.as_deref() == Some("client")).count();
    assert_eq!(clients, 1, "{tasks:?}");
    drop((encrypted, plain));
}
