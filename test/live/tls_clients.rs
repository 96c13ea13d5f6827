//! TLS with clients: modes, protocols, ciphers, certificates, direct TLS, handshakes that fail.

use openssl::ssl::SslVersion;

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::tls::{ask, connect, offers, setup, Wishes};
use crate::rig::wait_until;
use crate::rig::wire::{fatal, last_error, query, special, startup, GSSENC_REQUEST, SSL_REQUEST};

/// The text of the first suite of TLS 1.3.
const USUAL: &str = "TLSv1.3/TLS_AES_256_GCM_SHA384";

fn shown(pooler: &Pooler) -> Vec<String> {
    pooler.show("CLIENTS", "tls", ("user", "trusty"))
}

#[test]
fn modes_decide_who_gets_in() {
    let plain = |pooler: &Pooler| pooler.login("trusty", "postgres", "").is_ok();
    for (mode, without_tls, no_certificate, ours) in [
        ("allow", true, true, true),
        ("prefer", true, true, true),
        ("require", false, true, true),
        ("verify-ca", false, false, true),
        ("verify-full", false, false, true),
    ] {
        let pooler = Pooler::start(&setup(mode, ""));
        assert_eq!(plain(&pooler), without_tls, "{mode}");
        if !without_tls {
            assert_eq!(pooler.refusal("trusty", "postgres", ""), "SSL required");
        }
        assert_eq!(Wishes::default().gets_in(pooler.port), no_certificate, "{mode}");
        assert_eq!(Wishes::showing("client").gets_in(pooler.port), ours, "{mode}");
        assert!(!Wishes::showing("stranger").gets_in(pooler.port), "{mode}");
        assert!(!Wishes::showing("stale").gets_in(pooler.port), "{mode}");
        pooler.wait_log(
            "WARNING TLS handshake error: handshake failed: \
             error:0A000086:SSL routines::certificate verify failed",
        );
        if !no_certificate {
            pooler.wait_log(
                "WARNING TLS handshake error: handshake failed: \
                 error:0A0000C7:SSL routines::peer did not return a certificate",
            );
        }
        assert!(pooler.unix().login("trusty", "postgres", "").is_ok(), "{mode}: Unix sockets");
        assert!(!pooler.log().contains("closing because: client unexpected eof (nodb)"));
    }
    let pooler = Pooler::start(&Setup::trust(""));
    assert_eq!(ask(connect(pooler.port)).1, b'N');
}

#[test]
fn handshake_is_seen_by_psql_and_shown_by_the_console() {
    let pooler = Pooler::start(&setup("require", ""));
    let mut psql = postgres().tool("psql");
    let dsn = format!(
        "host=localhost port={} user=trusty dbname=postgres sslmode=verify-full sslrootcert={}",
        pooler.port,
        crate::rig::certs::certs().join("ca.crt").display()
    );
    let out = psql.args(["-X", "-A", "-t", &dsn, "-c", "select 42"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "42\n", "{out:?}");
    pooler.wait_log(&format!("login attempt: db=postgres user=trusty tls={USUAL} replication=no"));

    // The file has the certificate alone; what stands above it is among those who are trusted.
    let session = Wishes::default().session(pooler.port).unwrap();
    assert_eq!(session.ssl().peer_cert_chain().unwrap().len(), 2);
    let mut client = Wishes::default().raw(pooler.port).login("trusty", "postgres", "").unwrap().0;
    assert_eq!(client.value("select 1"), "1");
    let mut console = pooler.unix().login("admin", "pgbouncer", "admin-pw").unwrap().0;
    for topic in ["CLIENTS", "SOCKETS"] {
        let answer = console.query(&format!("SHOW {topic}"));
        let texts = String::from_utf8_lossy(
            &answer.iter().flat_map(|m| m.body.clone()).collect::<Vec<_>>(),
        )
        .into_owned();
        assert!(texts.contains(USUAL), "{topic} {texts}");
    }
}

#[test]
fn protocols_ciphers_and_curves_are_restricted() {
    use SslVersion as V;
    let old = |newest| Wishes { newest: Some(newest), ..Wishes::default() };
    let cipher = |ciphers| Wishes { ciphers: Some(ciphers), ..old(V::TLS1_2) };
    let suite = |suites| Wishes { suites: Some(suites), ..Wishes::default() };
    let group = |groups| Wishes { groups: Some(groups), ..Wishes::default() };
    let weak = "client_tls_protocols = all\nclient_tls_ciphers = ALL:@SECLEVEL=0\n";
    let one = "client_tls_ciphers = ECDHE-RSA-AES256-GCM-SHA384\n";
    let small = "client_tls13_ciphers = TLS_AES_128_GCM_SHA256\n";
    let curve = "client_tls_ecdhcurve = secp384r1\n";
    for (settings, client, want) in [
        ("", Wishes::default(), USUAL),
        ("", old(V::TLS1_2), "TLSv1.2/ECDHE-RSA-AES256-GCM-SHA384/ECDH=X25519"),
        ("", old(V::TLS1_1), ""),
        ("", suite("TLS_AES_128_GCM_SHA256"), "TLSv1.3/TLS_AES_128_GCM_SHA256"),
        (
            "client_tls_protocols = tlsv1.2\n",
            Wishes::default(),
            "TLSv1.2/ECDHE-RSA-AES256-GCM-SHA384/ECDH=X25519",
        ),
        ("client_tls_protocols = secure,!tlsv1.2\n", old(V::TLS1_2), ""),
        (weak, old(V::TLS1), "TLSv1/ECDHE-RSA-AES256-SHA/ECDH=X25519"),
        (weak, old(V::TLS1_1), "TLSv1.1/ECDHE-RSA-AES256-SHA/ECDH=X25519"),
        (one, cipher("ECDHE-RSA-AES128-GCM-SHA256"), ""),
        (
            one,
            cipher("ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384"),
            "TLSv1.2/ECDHE-RSA-AES256-GCM-SHA384/ECDH=X25519",
        ),
        ("", cipher("DHE-RSA-AES128-GCM-SHA256"), "TLSv1.2/DHE-RSA-AES128-GCM-SHA256/DH=2048"),
        ("", cipher("AES128-SHA"), "TLSv1.2/AES128-SHA"),
        ("client_tls_dheparams = none\n", cipher("DHE-RSA-AES128-GCM-SHA256"), ""),
        (small, Wishes::default(), "TLSv1.3/TLS_AES_128_GCM_SHA256"),
        (small, suite("TLS_AES_256_GCM_SHA384"), ""),
        (curve, old(V::TLS1_2), "TLSv1.2/ECDHE-RSA-AES256-GCM-SHA384/ECDH=secp384r1"),
        (curve, group("X25519"), ""),
    ] {
        let pooler = Pooler::start(&Setup::trust(&(offers("prefer", "rsa") + settings)));
        let session = client.session(pooler.port);
        assert_eq!(session.is_ok(), !want.is_empty(), "{settings}{want} {:?}", session.err());
        let Ok(session) = session else { continue };
        let client = Raw::through(session).login("trusty", "postgres", "").unwrap().0;
        assert_eq!(shown(&pooler), [want], "{settings}");
        drop(client);
    }
}

#[test]
fn direct_tls_needs_no_request_and_knows_one_protocol() {
    let pooler = Pooler::start(&setup("require", ""));
    for (alpn, want) in [
        (None, true),
        (Some(&b"\x0apostgresql"[..]), true),
        (Some(b"\x02h2\x0apostgresql"), true),
        (Some(b"\x02h2"), false),
    ] {
        for direct in [true, false] {
            let wishes = Wishes { alpn, direct, ..Wishes::default() };
            let session = wishes.session(pooler.port);
            assert_eq!(session.is_ok(), want, "{alpn:?} {direct}");
            let Ok(session) = session else { continue };
            let selected = session.ssl().selected_alpn_protocol();
            assert_eq!(selected, alpn.map(|_| &b"postgresql"[..]));
            let (mut client, _) = Raw::through(session).login("trusty", "postgres", "").unwrap();
            assert_eq!(client.value("select 2"), "2");
        }
    }
    pooler.wait_log("handshake failed: error:0A0000EB:SSL routines::no application protocol");
    let mut plain = Pooler::start(&Setup::trust("client_login_timeout = 1\n"));
    let mut raw = plain.tcp();
    raw.send(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03");
    assert_eq!(last_error(&raw.rest()), fatal("client_login_timeout"));
    plain.assert_serves("postgres");
}

#[test]
fn requests_come_in_any_order_but_not_inside_one_another() {
    let pooler = Pooler::start(&setup("require", ""));
    let request = special(SSL_REQUEST, &[]);
    let hello = startup(0, &[("user", "trusty"), ("database", "postgres")]);
    let mut early = pooler.tcp();
    early.send(&[&request[..], &hello].concat());
    let text = "received unencrypted data after SSL request";
    assert_eq!(last_error(&early.rest()), fatal(text));

    let mut raw = pooler.tcp();
    raw.send(&special(GSSENC_REQUEST, &[]));
    assert_eq!(raw.byte(), Some(b'N'));
    raw.send(&special(SSL_REQUEST, b"more"));
    assert_eq!(raw.byte(), Some(b'S'));

    let mut inside = Wishes::default().raw(pooler.port);
    inside.send(&special(GSSENC_REQUEST, &[]));
    assert_eq!(inside.byte(), Some(b'N'));
    inside.send(&request);
    assert_eq!(inside.byte(), None);
    pooler.wait_log("closing because: SSL req inside SSL (age=");

    let mut twice = Wishes::default().raw(pooler.port);
    twice.send(&[&hello[..], &hello].concat());
    assert!(!twice.rest().is_empty());
    // A mode that forbids plain text doesn't forbid to cancel.
    let mut busy = Wishes::default().raw(pooler.port).login("trusty", "postgres", "").unwrap().0;
    for encrypted in [false, true] {
        busy.send(&query("select pg_sleep(30)"));
        wait_until("it runs", || {
            !postgres().value("postgres",
            "select 1 from pg_stat_activity where query = 'select pg_sleep(30)' and state = 'active'").is_empty()
        });
        let mut cancel = match encrypted {
            true => Wishes::default().raw(pooler.port),
            false => pooler.tcp(),
        };
        cancel.send(&busy.cancel_request());
        assert_eq!(cancel.byte(), None);
        let answer = busy.until(b'Z');
        let error = answer.iter().find(|m| m.tag == b'E').unwrap();
        assert_eq!(error.field(b'C'), "57014", "{encrypted}");
    }
}

#[test]
fn broken_and_silent_handshakes_end() {
    let mut pooler = Pooler::start(&setup("require", "client_login_timeout = 2\n"));
    let garbage: [&[u8]; 5] = [
        b"\x16\x03\x01\0\x05garbage and more garbage",
        b"\x16\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x15\x03\x01\0\x02\x02\x28",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 300],
    ];
    for bytes in garbage {
        let (mut raw, answer) = ask(connect(pooler.port));
        assert_eq!(answer, b'S');
        raw.send(bytes);
        raw.end_output();
        while raw.byte().is_some() {}
    }
    pooler.wait_log("WARNING TLS handshake error: handshake failed: error:0A");
    let (raw, _) = ask(connect(pooler.port));
    drop(raw);
    pooler.wait_log("WARNING TLS handshake error: handshake failed: unexpected EOF");
    for direct in [false, true] {
        let mut silent = match direct {
            true => {
                let mut raw = pooler.tcp();
                raw.send(b"\x16\x03\x01");
                raw
            }
            false => ask(connect(pooler.port)).0,
        };
        while silent.byte().is_some() {}
    }
    wait_until("both are over their time", || {
        pooler.log().matches("closing because: client_login_timeout (age=").count() == 2
    });
    assert!(!pooler.log().contains("closing because: client unexpected eof"));
    assert!(Wishes::default().gets_in(pooler.port));
    assert_eq!(pooler.exited(), None);
}

#[test]
fn who_leaves_with_the_first_bytes_is_gone_at_once() {
    let pooler = Pooler::start(&setup("allow", "client_login_timeout = 0\n"));
    for _ in 0..20 {
        let mut stream = connect(pooler.port);
        std::io::Write::write_all(&mut stream, b"\x16\x03\x01\x02\0\x01").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
    }
    pooler.wait_log("WARNING TLS handshake error: handshake failed: unexpected EOF");
}

#[test]
fn who_says_nothing_is_told_why_it_has_to_go() {
    let pooler = Pooler::start(&setup("allow", "client_login_timeout = 0.6\n"));
    assert_eq!(last_error(&pooler.tcp().rest()), fatal("client_login_timeout"));
}
