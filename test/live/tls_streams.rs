//! Bytes through TLS on either side, on both or on none: large, small, slow, cut.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::{postgres, tls_postgres, Postgres};
use crate::rig::raw::Raw;
use crate::rig::tls::{connect, offers, Wishes};
use crate::rig::wire::{msg, query, startup, tags};

/// Whether clients and servers use TLS.
const SIDES: [(bool, bool); 4] = [(true, true), (true, false), (false, true), (false, false)];

fn start(servers: bool, settings: &str) -> (Pooler, &'static Postgres) {
    let server = if servers { tls_postgres() } else { postgres() };
    let mut setup = Setup::trust(&(offers("prefer", "server") + settings));
    setup.databases = format!("* = host=localhost port={}\n", server.port);
    (Pooler::start(&setup), server)
}

fn client(pooler: &Pooler, encrypted: bool, database: &str) -> Raw {
    let raw = if encrypted { Wishes::default().raw(pooler.port) } else { pooler.tcp() };
    raw.login("trusty", database, "").unwrap_or_else(|answer| panic!("{answer:?}")).0
}

/// Lines of all lengths, so that records and packets end everywhere.
fn lines() -> Vec<String> {
    let text = |n: usize| format!("{n} {}\n", "abcdefghij".repeat(n % 700));
    (0..3000).map(text).collect()
}

#[test]
fn results_and_copies_arrive_byte_for_byte() {
    for (encrypted, servers) in SIDES {
        let (pooler, server) = start(servers, "pool_mode = transaction\n");
        let database = server.new_database();
        let mut client = client(&pooler, encrypted, &database);
        let large = "select string_agg(md5(n::text), '') from generate_series(1, 300000) n";
        assert!(client.value(large) == server.value(&database, large), "{encrypted} {servers}");
        assert_eq!(tags(&client.query("create table t (n serial, line text)")), "CZ");
        client.send(&query("copy t (line) from stdin"));
        assert_eq!(tags(&client.until(b'G')), "G");
        let lines = lines();
        for some in lines.chunks(7) {
            let packets: Vec<_> = some.iter().flat_map(|line| msg(b'd', line.as_bytes())).collect();
            client.send(&packets);
        }
        client.send(&msg(b'c', b""));
        assert_eq!(tags(&client.until(b'Z')), "CZ");
        let out = client.query("copy (select line from t order by n) to stdout");
        let got: Vec<u8> = out.into_iter().filter(|m| m.tag == b'd').flat_map(|m| m.body).collect();
        assert!(got == lines.concat().into_bytes(), "{encrypted} {servers}");
        let shown = pooler.show("SERVERS", "tls", ("database", &database));
        assert_eq!(shown[0].is_empty(), !servers, "{shown:?}");
    }
}

#[test]
fn many_small_queries_come_in_one_record_or_byte_by_byte() {
    for (encrypted, servers) in SIDES {
        let (pooler, _) = start(servers, "pool_mode = transaction\n");
        let mut client = client(&pooler, encrypted, "postgres");
        let queries: Vec<u8> = (0..500).flat_map(|n| query(&format!("select {n}"))).collect();
        client.send(&queries);
        for n in 0..500 {
            let answer = client.until(b'Z');
            assert_eq!(answer[1].cells(), [Some(n.to_string())]);
        }
        for byte in query("select 'slow'") {
            client.send(&[byte]);
        }
        assert_eq!(client.until(b'Z')[1].cells(), [Some("slow".to_owned())]);
    }
}

#[test]
fn slow_reader_gets_everything_and_disturbs_nobody() {
    for servers in [true, false] {
        let (pooler, _) = start(servers, "pool_mode = transaction\n");
        let mut slow = client(&pooler, true, "postgres");
        slow.send(&query("select repeat('x', 1000) from generate_series(1, 40000)"));
        let mut other = client(&pooler, true, "postgres");
        for n in 0..50 {
            assert_eq!(other.value(&format!("select {n}")), n.to_string());
        }
        // It asks for more while it is owed the first answer.
        slow.send(&query("select 'last'"));
        std::thread::sleep(Duration::from_millis(200));
        let answer = slow.until(b'Z');
        assert_eq!(answer.iter().filter(|m| m.tag == b'D' && m.body.len() == 1006).count(), 40000);
        assert_eq!(slow.until(b'Z')[1].cells(), [Some("last".to_owned())]);
    }
}

#[test]
fn handshakes_do_not_keep_others_from_their_answers() {
    let (pooler, _) = start(true, "pool_mode = transaction\nmax_client_conn = 500\n");
    let mut busy = client(&pooler, false, "postgres");
    let port = pooler.port;
    let crowd: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                let mut stay = Vec::new();
                for n in 0..20 {
                    let mut raw =
                        Wishes::default().raw(port).login("trusty", "postgres", "").unwrap().0;
                    assert_eq!(raw.value(&format!("select {n}")), n.to_string());
                    stay.push(raw);
                }
                stay.len()
            })
        })
        .collect();
    for n in 0..500 {
        assert_eq!(busy.value(&format!("select {n}")), n.to_string());
    }
    let stayed: usize = crowd.into_iter().map(|one| one.join().unwrap()).sum();
    assert_eq!(stayed, 160);
}

#[test]
fn both_ways_to_leave_are_an_end_of_stream() {
    let (pooler, _) = start(false, "");
    for says_goodbye in [true, false] {
        let mut session = Wishes::default().session(pooler.port).unwrap();
        let hello = startup(0, &[("user", "trusty"), ("database", "postgres")]);
        session.write_all(&hello).unwrap();
        let mut first = [0; 1];
        session.read_exact(&mut first).unwrap();
        // The connection stays open in the first case: nothing but close_notify tells.
        let _open = session.get_ref().try_clone().unwrap();
        if says_goodbye {
            session.shutdown().unwrap();
        } else {
            session.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
        }
        let expected = 1 + usize::from(!says_goodbye);
        crate::rig::wait_until("it is gone", || {
            pooler.log().matches("closing because: client unexpected eof (age=").count() == expected
        });
    }
    assert!(!pooler.log().contains("tls_sbufio"), "{}", pooler.log());
    // What is no TLS any more is told.
    let stream = connect(pooler.port);
    let mut under = stream.try_clone().unwrap();
    under.write_all(&crate::rig::wire::special(crate::rig::wire::SSL_REQUEST, &[])).unwrap();
    let mut answer = [0];
    under.read_exact(&mut answer).unwrap();
    let session = Wishes::default().over(stream).unwrap();
    under.write_all(b"\x17\x03\x03\0\x20this is nothing that decrypts...").unwrap();
    pooler.wait_log("WARNING tls_sbufio_recv: read failed: error:0A");
    drop(session);
}

#[test]
fn client_that_wants_another_handshake_is_sent_away() {
    let (pooler, _) = start(false, "");
    let mut client = Command::new("openssl");
    client.args(["s_client", "-starttls", "postgres", "-tls1_2", "-connect"]);
    client.arg(format!("127.0.0.1:{}", pooler.port)).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = client.stderr(Stdio::null()).spawn().unwrap();
    let mut input = client.stdin.take().unwrap();
    // It tells when it is through with its first handshake.
    let mut told = BufReader::new(client.stdout.take().unwrap()).lines();
    while !told.next().unwrap().unwrap().contains("Verify return code") {}
    input.write_all(b"R\n").unwrap();
    pooler
        .wait_log("WARNING tls_sbufio_recv: read failed: unexpected handshake, closing connection");
    assert!(told.all(|line| line.is_ok()), "the connection ends, and so does the client");
    client.wait().unwrap();
}

#[test]
fn passwords_are_proved_inside_tls() {
    let server = tls_postgres();
    for (user, auth_type) in [("plainy", "plain"), ("md5y", "md5"), ("scramy", "scram-sha-256")] {
        let mut setup = Setup::trust(&format!(
            "{}auth_type = {auth_type}\nserver_tls_sslmode = verify-full\nserver_tls_ca_file = {}/ca.crt\n",
            offers("require", "server"),
            crate::rig::certs::certs().display()
        ));
        setup.databases = format!("* = host=localhost port={}\n", server.port);
        setup.users = format!("\"{user}\" \"{user}-pw\"\n");
        let pooler = Pooler::start(&setup);
        let password = format!("{user}-pw");
        let mut client =
            Wishes::default().raw(pooler.port).login(user, "postgres", &password).unwrap().0;
        let sql = "select version from pg_stat_ssl where pid = pg_backend_pid()";
        assert_eq!(client.value(sql), "TLSv1.3");
        assert!(Wishes::default().raw(pooler.port).login(user, "postgres", "bad").is_err());
    }
}
