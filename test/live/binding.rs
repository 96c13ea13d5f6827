//! SCRAM-SHA-256-PLUS: logins that are bound to the TLS connection around them, with libpq and
//! PostgreSQL as the other ends, and with somebody in between.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::time::Duration;

use openssl::ssl::{Ssl, SslContext, SslFiletype, SslMethod, SslStream};

use crate::rig::certs::certs;
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::{postgres, tls_postgres};
use crate::rig::tls::offers;
use crate::rig::wire::{special, SSL_REQUEST};

/// A pooler in front of the PostgreSQL at this port, with TLS to both sides.
fn start(port: u16, method: &str, user: &str) -> Pooler {
    let settings = format!(
        "{}auth_type = {method}\nserver_tls_sslmode = require\n",
        offers("prefer", "server")
    );
    let databases = format!("* = host=127.0.0.1 port={port}\n");
    Pooler::start(&Setup { databases, settings, users: format!("{user}\n") })
}

/// What libpq makes of a query, told so much about binding.
fn psql(port: u16, tls: &str, binding: &str, user: &str, sql: &str) -> Output {
    let mut psql = postgres().tool("psql");
    let dsn = format!(
        "host=127.0.0.1 port={port} user={user} password={user}-pw dbname=template1 \
         sslmode={tls} channel_binding={binding}"
    );
    psql.args(["-X", "-A", "-t", &dsn, "-c", sql]).output().unwrap()
}

fn answer(out: &Output) -> String {
    let both = [&out.stdout[..], &out.stderr].concat();
    String::from_utf8_lossy(&both).trim().to_owned()
}

/// Ends TLS with a certificate of its own, begins it again towards `port`, and reads along.
fn somebody_in_between(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // Its victims hang up when they like.
            std::thread::spawn(move || drop(pass_on(stream.unwrap(), port)));
        }
    });
    own
}

fn pass_on(mut client: TcpStream, port: u16) -> std::io::Result<()> {
    let mut context = SslContext::builder(SslMethod::tls_server())?;
    let file = |kind: &str| certs().join(format!("wrong.{kind}"));
    context.set_certificate_chain_file(file("crt"))?;
    context.set_private_key_file(file("key"), SslFiletype::PEM)?;
    client.read_exact(&mut [0; 8])?;
    client.write_all(b"S")?;
    let mut client = SslStream::new(Ssl::new(&context.build())?, client)?;
    client.accept().map_err(std::io::Error::other)?;
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    server.write_all(&special(SSL_REQUEST, &[]))?;
    server.read_exact(&mut [0; 1])?;
    let context = SslContext::builder(SslMethod::tls_client())?.build();
    let mut server = SslStream::new(Ssl::new(&context)?, server)?;
    server.connect().map_err(std::io::Error::other)?;
    for end in [&client, &server] {
        end.get_ref().set_read_timeout(Some(Duration::from_millis(5)))?;
    }
    while hand_on(&mut client, &mut server)? && hand_on(&mut server, &mut client)? {}
    Ok(())
}

/// False at the end.
fn hand_on(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<bool> {
    let mut buffer = [0; 4096];
    match from.read(&mut buffer) {
        Ok(0) => Ok(false),
        Ok(count) => to.write_all(&buffer[..count]).map(|()| true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

#[test]
fn logins_are_bound_on_both_sides() {
    let at = tls_postgres();
    let stored = "select rolpassword from pg_authid where rolname = 'passer'";
    let secret = at.value("postgres", stored);
    for (user, line) in [
        ("scramy", "\"scramy\" \"scramy-pw\"".to_owned()),
        ("passer", format!("\"passer\" \"{secret}\"")),
    ] {
        for method in ["scram-sha-256", "md5"] {
            let pooler = start(at.port, method, &line);
            let encrypted = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
            for binding in ["require", "prefer", "disable"] {
                // A user with a plain password answers md5 with md5.
                let binds = binding != "require" || method != "md5" || user == "passer";
                let out = psql(pooler.port, "require", binding, user, encrypted);
                assert_eq!(answer(&out) == "t", binds, "{user} {method} {binding} {out:?}");
            }
            let out = psql(pooler.port, "disable", "prefer", user, "select 1");
            assert_eq!(answer(&out), "1", "{user} {method}");
            let out = psql(pooler.port, "disable", "require", user, "select 1");
            assert!(answer(&out).contains("channel binding"), "{user} {method} {out:?}");
        }
    }
}

#[test]
fn somebody_between_client_and_pooler_is_found_out() {
    let pooler = start(tls_postgres().port, "scram-sha-256", "\"scramy\" \"scramy-pw\"");
    let between = somebody_in_between(pooler.port);
    let bind = |binding| psql(between, "require", binding, "scramy", "select 1");
    assert_eq!(answer(&bind("disable")), "1");
    for binding in ["prefer", "require"] {
        let out = bind(binding);
        assert!(answer(&out).contains("FATAL:  SASL authentication failed"), "{out:?}");
        pooler.wait_lines(&["ERROR C template1/scramy SCRAM channel binding check failed"]);
    }
}

#[test]
fn somebody_between_pooler_and_server_is_found_out() {
    let at = tls_postgres();
    let between = somebody_in_between(at.port);
    // PostgreSQL tells who hears of the check only what a failed check means.
    let out = psql(between, "require", "prefer", "scramy", "select 1");
    assert!(answer(&out).contains("SCRAM channel binding check failed"), "{out:?}");
    let pooler = start(between, "scram-sha-256", "\"scramy\" \"scramy-pw\"");
    let out = psql(pooler.port, "require", "require", "scramy", "select 1");
    assert!(answer(&out).contains("SCRAM channel binding check failed"), "{out:?}");
}
