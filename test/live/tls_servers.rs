//! TLS towards servers: modes, answers, names, certificates, cancel requests.

use std::io::{Read, Write};

use openssl::ssl::SslVersion;

use crate::rig::certs::certs;
use crate::rig::fake::Fake;
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::raw::Raw;
use crate::rig::tls::Encrypted;
use crate::rig::wait_until;
use crate::rig::wire::{query, tags};

/// A pooler with one database at this host and port.
fn pooler(host: &str, port: u16, settings: &str) -> Pooler {
    Pooler::start(&Setup {
        databases: format!("fake = host={host} port={port} dbname=fake\n"),
        settings: settings.to_owned(),
        users: "\"trusty\" \"\"\n".to_owned(),
    })
}

fn mode(mode: &str, ca: &str) -> String {
    format!("server_tls_sslmode = {mode}\nserver_tls_ca_file = {}/{ca}.crt\n", certs().display())
}

/// Tries to get an answer; then the log has a line with this text.
fn tries(pooler: &Pooler, works: bool, text: &str) {
    let mut raw = pooler.tcp();
    raw.send(&crate::rig::wire::startup(0, &[("user", "trusty"), ("database", "fake")]));
    if works {
        let answer = raw.until(b'Z');
        assert_eq!(answer[0].tag, b'R', "{text} {answer:?}");
        assert_eq!(raw.value("select 42"), "42");
    }
    pooler.wait_log(text);
}

const FAILED: &str = "WARNING TLS handshake error: handshake failed: \
                      error:0A000086:SSL routines::certificate verify failed";
const OTHER_NAME: &str = "WARNING TLS handshake error: name `";

#[test]
fn modes_decide_which_servers_are_trusted() {
    let text = " SSL established: TLSv1.3/TLS_AES_256_GCM_SHA384\n";
    for (sslmode, ca, pair, host, log) in [
        ("allow", "other-ca", "server", "localhost", text),
        ("prefer", "other-ca", "wrong", "localhost", text),
        ("require", "other-ca", "expired", "127.0.0.1", text),
        ("verify-ca", "ca", "wrong", "localhost", text),
        ("verify-ca", "other-ca", "server", "localhost", FAILED),
        ("verify-ca", "ca", "expired", "localhost", FAILED),
        ("verify-full", "ca", "server", "localhost", text),
        ("verify-full", "ca", "server", "127.0.0.1", text),
        ("verify-full", "ca", "wrong", "localhost", OTHER_NAME),
        ("verify-full", "ca", "wrong", "127.0.0.1", OTHER_NAME),
        ("verify-full", "other-ca", "server", "localhost", FAILED),
    ] {
        let server = Encrypted::start(pair, false, None);
        let pooler = pooler(host, server.fake.port, &mode(sslmode, ca));
        tries(&pooler, log == text, log);
        if log == text {
            // The name is said in each mode, an address never.
            let asked = if host == "localhost" { "localhost " } else { "- " };
            assert_eq!(server.seen(), [asked], "{sslmode}");
            let shown = pooler.show("SERVERS", "tls", ("database", "fake"));
            assert_eq!(shown, ["TLSv1.3/TLS_AES_256_GCM_SHA384"]);
        } else {
            pooler.wait_log("closing because: server conn crashed? (age=");
        }
    }
    let system = pooler("localhost", 1, "server_tls_sslmode = verify-full\n");
    drop(system);
}

#[test]
fn older_versions_and_suites_are_shown_with_their_key_exchange() {
    for (pair, settings, want) in [
        ("rsa", "server_tls_protocols = tlsv1.2\n", "TLSv1.2/ECDHE-RSA-AES256-GCM-SHA384"),
        (
            "rsa",
            "server_tls_protocols = tlsv1.2\nserver_tls_ciphers = AES128-SHA\n",
            "TLSv1.2/AES128-SHA",
        ),
        (
            "server",
            "server_tls13_ciphers = TLS_AES_128_GCM_SHA256\n",
            "TLSv1.3/TLS_AES_128_GCM_SHA256",
        ),
    ] {
        let server = Encrypted::start(pair, false, None);
        let pooler = pooler("localhost", server.fake.port, settings);
        tries(&pooler, true, &format!("SSL established: {want}\n"));
    }
    let old = Encrypted::start("server", false, Some(SslVersion::TLS1_2));
    let pooler = pooler("localhost", old.fake.port, "server_tls_protocols = tlsv1.3\n");
    tries(&pooler, false, "TLS handshake error: handshake failed: error:0A00042E:");
}

#[test]
fn own_certificate_is_shown_and_read_for_each_connection() {
    let server = Encrypted::start("server", true, Some(SslVersion::TLS1_2));
    let folder = certs().display();
    let settings = format!(
        "server_tls_sslmode = require\nserver_tls_cert_file = {folder}/client.crt\n\
         server_tls_key_file = {folder}/client.key\n"
    );
    let with = pooler("localhost", server.fake.port, &settings);
    tries(&with, true, "SSL established: TLSv1.2/");
    assert!(server.seen()[0].contains("trusty"), "{:?}", server.seen());
    let without = pooler("localhost", server.fake.port, "server_tls_sslmode = require\n");
    tries(&without, false, "WARNING TLS handshake error: handshake failed: error:0A000410:");
    for (line, want) in [
        ("server_tls_cert_file = FOLDER/client.crt\n", "private/public key mismatch"),
        (
            "server_tls_cert_file = FOLDER/none\n",
            "failed to load certificate file \"FOLDER/none\": \
          error:80000002:system library::No such file or directory",
        ),
        (
            "server_tls_cert_file = FOLDER/client.crt\nserver_tls_key_file = FOLDER/server.key\n",
            "failed to load private key file \"FOLDER/server.key\": \
          error:05800074:x509 certificate routines::key values mismatch",
        ),
    ] {
        let fill = |text: &str| text.replace("FOLDER", &folder.to_string());
        let broken = pooler("localhost", server.fake.port, &fill(line));
        tries(&broken, false, &format!("WARNING TLS connect error: {}\n", fill(want)));
        broken.wait_log("closing because: sslreq processing failed (age=");
    }
}

#[test]
fn direct_handshakes_need_a_server_that_knows_what_for() {
    let direct = "server_tls_sslnegotiation = direct\n";
    for (sslmode, chooses, log) in [
        ("require", true, " SSL established: TLSv1.3/"),
        ("verify-full", true, " SSL established: TLSv1.3/"),
        (
            "require",
            false,
            "WARNING TLS handshake error: server has not chosen the protocol \"postgresql\"",
        ),
    ] {
        let server = Encrypted::direct("server", chooses);
        let pooler = pooler("localhost", server.fake.port, &(mode(sslmode, "ca") + direct));
        tries(&pooler, chooses, log);
        if chooses {
            assert_eq!(server.seen()[0], "localhost ");
        } else {
            pooler.wait_log("closing because: server conn crashed? (age=");
        }
    }
    // One who expects a request takes it for nonsense.
    let server = Encrypted::start("server", false, None);
    let settings = "server_tls_sslmode = require\n".to_owned() + direct;
    let with = pooler("localhost", server.fake.port, &settings);
    tries(&with, false, "WARNING TLS handshake error: handshake failed: ");
    assert_eq!(server.seen()[0], "plain");
    with.wait_log("closing because: server conn crashed? (age=");
    assert_eq!(tags(&with.command("SET server_tls_sslnegotiation = 'postgres'")), "CZ");
    tries(&with, true, " SSL established: TLSv1.3/");
}

/// A server that answers the request for TLS with these bytes, then lets everybody in.
fn answering(answer: &'static [u8]) -> Fake {
    Fake::start_over(
        move |mut stream| {
            let mut request = [0; 8];
            stream.read_exact(&mut request).ok()?;
            stream.write_all(answer).unwrap();
            Some(Raw::over(stream))
        },
        |mut peer| {
            peer.welcome();
            while peer.raw.recv().is_some_and(|message| message.tag == b'Q') {
                peer.answer("42");
            }
        },
    )
}

#[test]
fn answers_to_the_request_are_taken_at_their_word() {
    for (answer, sslmode, works, text) in [
        (&b"N"[..], "prefer", true, "new connection to server"),
        (b"N", "allow", true, "new connection to server"),
        (b"N", "require", false, "closing because: server refused SSL (age="),
        (b"N", "verify-full", false, "closing because: server refused SSL (age="),
        (b"E", "prefer", false, "closing because: bad sslreq answer (age="),
        (
            b"SX",
            "prefer",
            false,
            "closing because: received unencrypted data after SSL response (age=",
        ),
        (
            b"NX",
            "prefer",
            false,
            "closing because: received unencrypted data after SSL response (age=",
        ),
        (b"", "prefer", false, "closing because: connect timeout (age="),
    ] {
        let server = answering(answer);
        let settings = mode(sslmode, "ca") + "server_connect_timeout = 1\n";
        let pooler = pooler("localhost", server.port, &settings);
        tries(&pooler, works, text);
        assert!(!pooler.log().contains("SSL established"));
    }
    // Nothing is retried in plain text.
    let failing = Fake::start_over(
        |mut stream| {
            let mut request = [0; 8];
            stream.read_exact(&mut request).ok()?;
            stream.write_all(b"S").unwrap();
            stream.write_all(b"this is not TLS").unwrap();
            Some(Raw::over(stream))
        },
        |_| {},
    );
    let pooler = pooler("localhost", failing.port, "server_tls_sslmode = prefer\n");
    tries(&pooler, false, "closing because: ");
    wait_until("it fails", || !pooler.log().contains("SSL established"));
}

#[test]
fn cancel_requests_go_in_plain_text() {
    let server = Encrypted::start("server", false, None);
    let pooler = pooler("localhost", server.fake.port, "server_tls_sslmode = require\n");
    let mut client = pooler.tcp().login("trusty", "fake", "").unwrap().0;
    assert_eq!(client.value("select 42"), "42");
    client.send(&query("begin")[..5]);
    let mut cancel = pooler.tcp();
    cancel.send(&client.cancel_request());
    assert_eq!(cancel.byte(), None);
    wait_until("it came", || server.seen().contains(&"plain".to_owned()));
}
