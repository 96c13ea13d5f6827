//! Input that no client should send, in every state; the pooler answers as specified and lives on.

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wire::{cstr, last_error, msg, parse, query, startup, tags};

fn start(settings: &str) -> (Pooler, String) {
    let mut setup = Setup::trust(settings);
    setup.users.push_str("\"plainy\" \"plainy-pw\"\n");
    (Pooler::start(&setup), postgres().new_database())
}

/// The only thing that comes back is one FATAL with this text, then the end.
fn assert_fatal(raw: &mut Raw, text: &str) {
    let left = raw.rest();
    assert!(!left.is_empty(), "closed without {text:?}");
    let (severity, code, got) = last_error(&left);
    assert_eq!((severity.as_str(), code.as_str(), got.as_str()), ("FATAL", "08P01", text));
    assert!(left.iter().all(|m| m.tag != b'Z'), "no ReadyForQuery behind FATAL: {left:?}");
}

#[test]
fn bad_first_packets() {
    let (mut pooler, database) = start("");
    let rows: [(&[u8], &str); 9] = [
        (b"\0\0\0\x07\0\x03\0\0", "bad packet header: '0000000700030000'"),
        (b"\0\0\0\0\0\0\0\0", "bad packet header: '0000000000000000'"),
        (b"\0\x01\0\x08\0\x03\0\0", "bad packet header: '0001000800030000'"),
        (b"\0\0\0\x08\0\xbc\x61\x4e", "bad packet header: '0000000800bc614e'"),
        (b"\0\0\0\x10\x04\xd2\x16\x99aaaabbbb", "bad packet header: '0000001004d21699'"),
        (b"Q\0\0\0\x03", "bad packet header: '5100000003'"),
        (b"p\0\0\0\0", "bad packet header: '7000000000'"),
        (b"\xff\xff\xff\xff\xff", "bad packet header: 'ffffffffff'"),
        (b"p\0\0\0\x06x\0", "client password pkt before startup packet"),
    ];
    for (bytes, text) in rows {
        let mut raw = pooler.tcp();
        raw.send(bytes);
        assert_fatal(&mut raw, text);
    }
    pooler.assert_serves(&database);
}

#[test]
fn messages_before_login_close_silently() {
    let (mut pooler, database) = start("");
    for bytes in [query("select 1"), parse("", "select 1"), msg(b'X', b""), msg(b'd', b"abc")] {
        let mut raw = pooler.tcp();
        raw.send(&bytes);
        assert_eq!(raw.rest(), [], "{}", bytes.escape_ascii());
    }
    pooler.wait_log("closing because: bad packet (age=");
    pooler.assert_serves(&database);
}

#[test]
fn half_packets_end_with_the_login_timeout() {
    let (mut pooler, database) = start("client_login_timeout = 1\n");
    let hello = startup(0, &[("user", "trusty"), ("database", &database)]);
    let rows: [&[u8]; 5] = [
        b"\0",
        b"\0\0\0",
        &hello[..hello.len() - 1],
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ];
    let mut waiting: Vec<Raw> = rows
        .iter()
        .map(|bytes| {
            let mut raw = pooler.tcp();
            raw.send(bytes);
            raw
        })
        .collect();
    for raw in &mut waiting {
        assert_fatal(raw, "client_login_timeout");
    }
    pooler.assert_serves(&database);
}

#[test]
fn half_packets_and_a_close_leave_no_trace() {
    let (mut pooler, database) = start("");
    let hello = startup(0, &[("user", "trusty"), ("database", &database)]);
    for cut in [0, 1, 4, 7, 8, 20, hello.len() - 1] {
        let mut raw = pooler.tcp();
        raw.send(&hello[..cut]);
        raw.end_output();
        assert_eq!(raw.rest(), [], "cut at {cut}");
    }
    pooler.assert_serves(&database);
    // The connections above never said who they are; the one that has just been served did.
    let log = pooler.log();
    let mut closed = log.lines().filter(|line| line.contains("closing because"));
    assert!(closed.all(|line| line.contains("/trusty@")), "{log}");
}

/// Brings a connection to where a clear text password is asked for.
fn asked_for_password(pooler: &Pooler, database: &str) -> Raw {
    let mut raw = pooler.tcp();
    raw.send(&startup(0, &[("user", "plainy"), ("database", database)]));
    assert_eq!(raw.recv().unwrap().body, [0, 0, 0, 3]);
    raw
}

#[test]
fn bad_messages_in_the_password_phase() {
    let (mut pooler, database) = start("auth_type = plain\n");
    let again = startup(0, &[("user", "plainy"), ("database", &database)]);
    let rows = [
        (msg(b'p', b"\0"), "empty password returned by client"),
        (msg(b'p', b"wrong\0"), "password authentication failed"),
        (again, "client re-sent startup pkt"),
        (b"p\0\0\0\x03".to_vec(), "bad packet header: '7000000003'"),
    ];
    for (bytes, text) in rows {
        let mut raw = asked_for_password(&pooler, &database);
        raw.send(&bytes);
        assert_fatal(&mut raw, text);
    }
    for bytes in [query("select 1"), msg(b'X', b""), msg(b'y', b"zz")] {
        let mut raw = asked_for_password(&pooler, &database);
        raw.send(&bytes);
        assert_eq!(raw.rest(), [], "{}", bytes.escape_ascii());
    }
    drop(asked_for_password(&pooler, &database));
    let (mut client, _) = pooler.login("plainy", &database, "plainy-pw").unwrap();
    assert_eq!(client.value("select 1"), "1");
    assert_eq!(pooler.exited(), None);
}

#[test]
fn password_larger_than_the_buffers_is_compared() {
    let mut setup = Setup::trust("auth_type = plain\n");
    let long = "long ".repeat(12_000);
    setup.users = format!("\"trusty\" \"{long}\"\n");
    let pooler = Pooler::start(&setup);
    assert!(pooler.login("trusty", "template1", &long).is_ok());
    let failed = "password authentication failed";
    assert_eq!(pooler.refusal("trusty", "template1", &long[..59_999]), failed);
}

#[test]
fn bad_scram_messages() {
    let (mut pooler, database) = start("auth_type = scram-sha-256\n");
    let initial = |mechanism: &str, text: &str| {
        let len = u32::try_from(text.len()).unwrap().to_be_bytes();
        msg(b'p', &[&cstr(mechanism)[..], &len, text.as_bytes()].concat())
    };
    let failed = "SASL authentication failed";
    let good = "SCRAM-SHA-256";
    let rows = [
        (
            initial("SCRAM-SHA-1", "n,,n=,r=abc"),
            "client selected an invalid SASL authentication mechanism",
        ),
        (initial(good, ""), failed),
        (initial(good, "p=tls-unique,,n=,r=abc"), failed),
        (initial(good, "n,a=me,n=,r=abc"), failed),
        (initial(good, "n,,m=x,n=,r=abc"), failed),
        (initial(good, "n,,n=,r="), ""),
        (initial(good, "n,,n=,r=a\u{7f}c"), failed),
        // CVE-2026-6664: lengths beyond the packet, or of all bits.
        (msg(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xffn,,n=,r=abc"), failed),
        (msg(b'p', b"SCRAM-SHA-256\0\x7f\xff\xff\xffn,,n=,r=abc"), failed),
        (msg(b'p', b"SCRAM-SHA-256\0\0\0\0\x0cn,,n=,r=abc"), failed),
        (msg(b'p', b"SCRAM-SHA-256\0\0\0"), failed),
        (msg(b'p', b"SCRAM-SHA-256"), failed),
        (initial(good, &format!("n,,n=,r={}", "x".repeat(600))), failed),
    ];
    for (bytes, text) in rows {
        let mut raw = pooler.tcp();
        raw.send(&startup(0, &[("user", "plainy"), ("database", &database)]));
        assert_eq!(raw.recv().unwrap().body, b"\0\0\0\x0aSCRAM-SHA-256\0\0");
        raw.send(&bytes);
        if text.is_empty() {
            assert_eq!(raw.recv().unwrap().body[..4], [0, 0, 0, 11], "an empty nonce is fine");
        } else {
            let answer = raw.rest();
            let sent = bytes.escape_ascii().to_string();
            let got = answer.last().map(|error| error.field(b'M'));
            assert_eq!(got.as_deref(), Some(text), "{sent}");
        }
    }
    let finals = [
        "c=biws,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "",
        "c=biws,r=other,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "c=eSws,r=abc",
        "c=biws,r=abc,p=AA==",
    ];
    for text in finals {
        let mut raw = pooler.tcp();
        raw.send(&startup(0, &[("user", "plainy"), ("database", &database)]));
        raw.send(&initial(good, "n,,n=,r=abc"));
        raw.until(b'R');
        raw.until(b'R');
        raw.send(&msg(b'p', text.as_bytes()));
        assert_fatal(&mut raw, failed);
    }
    assert_eq!(pooler.exited(), None);
    let (mut client, _) = pooler.login("plainy", &database, "plainy-pw").unwrap();
    assert_eq!(client.value("select 1"), "1");
}

#[test]
fn unknown_packets_after_login() {
    let (mut pooler, database) = start("pool_mode = transaction\n");
    let hello = startup(0, &[("user", "trusty"), ("database", &database)]);
    let rows = [
        (msg(b'y', b"what"), "unknown pkt"),
        (msg(b'p', b"secret\0"), "unknown pkt"),
        (msg(b'Z', b"I"), "unknown pkt"),
        (hello, "unknown pkt"),
        (b"Q\0\0\0\x03".to_vec(), "bad packet header: '5100000003'"),
        (b"\0\0\0\x05abcd".to_vec(), "bad packet header: '0000000561626364'"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(), "bad packet header: 'ffffffffffffffff'"),
    ];
    for (bytes, text) in rows {
        let mut client = pooler.client(&database);
        client.send(&bytes);
        assert_fatal(&mut client, text);
    }
    pooler.wait_log("unknown pkt from client: 121/0x79");
    pooler.assert_serves(&database);
}

#[test]
fn unknown_packet_inside_a_transaction_closes_its_server() {
    let (mut pooler, database) = start("pool_mode = transaction\ndefault_pool_size = 1\n");
    let mut client = pooler.client(&database);
    let pid = client.value("begin; select pg_backend_pid()");
    client.send(&msg(b'y', b""));
    assert_fatal(&mut client, "unknown pkt");
    pooler.wait_log("closing because: client disconnect while server was not ready");
    assert_ne!(pooler.client(&database).value("select pg_backend_pid()"), pid);
    pooler.assert_serves(&database);
}

#[test]
fn packets_above_the_limit_are_refused() {
    let (mut pooler, database) = start("max_packet_size = 2000\n");
    let mut client = pooler.client(&database);
    assert_eq!(client.query(&format!("select 1 -- {}", "x".repeat(1900))).len(), 4);
    client.send(b"Q\0\0\x07\xd0selec");
    assert_fatal(&mut client, "bad packet header: '51000007d073656c'");
    pooler.assert_serves(&database);
}

#[test]
fn truncated_query_and_close_run_nothing() {
    let (mut pooler, database) = start("pool_mode = transaction\n");
    let mut one = pooler.client(&database);
    one.query("create table kept (n int)");
    let insert = query("insert into kept values (1)");
    for cut in [1, 4, 5, 12, insert.len() - 1] {
        let mut client = pooler.client(&database);
        client.send(&insert[..cut]);
        client.end_output();
        assert_eq!(client.rest(), [], "cut at {cut}");
    }
    assert_eq!(one.value("select count(*) from kept"), "0");
    pooler.assert_serves(&database);
}

/// Numbers that look random and are the same in every run (xorshift).
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::from_fn(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(state.to_le_bytes()[3])
    })
}

#[test]
fn noise_in_every_state_is_survived() {
    let (mut pooler, database) = start("pool_mode = transaction\nmax_packet_size = 100000\n");
    for seed in 0..150 {
        let len = 1 + usize::from(noise(seed).nth(7).unwrap()) * 8;
        let mut bytes: Vec<u8> = noise(seed).take(len).collect();
        let mut raw = match seed % 3 {
            0 => pooler.tcp(),
            1 => pooler.unix(),
            _ => pooler.client(&database),
        };
        if seed % 2 == 0 {
            // A well-formed header makes the noise reach further.
            bytes = msg(*b"QPBDECSHdcfFp".get(len % 13).unwrap(), &bytes);
        }
        raw.try_send(&bytes);
        drop(raw);
    }
    pooler.assert_serves(&database);
    let log = pooler.log();
    assert!(!log.contains("FATAL") && !log.contains("panicked"), "{log}");
}

#[test]
fn broken_auth_file_keeps_the_users_in_front_of_the_fault() {
    let rows = [
        ("\"good\" \"good-pw\"\n\"bad\n", "broken auth file"),
        ("\"good\" \"good-pw\"\n\"bad\" \"no end\n", "broken auth file"),
        ("\"good\" \"good-pw\"\nbad \"x\"\n", "broken auth file"),
        ("\"good\" \"good-pw\"\n\"a\"\"x\"\n", "broken auth file"),
    ];
    for (users, error) in rows {
        let mut setup = Setup::trust("auth_type = plain\n");
        setup.databases =
            format!("* = host=127.0.0.1 port={} user=trusty dbname=template1\n", postgres().port);
        setup.users = users.to_owned();
        let pooler = Pooler::start(&setup);
        pooler.wait_log(&format!("ERROR {error}"));
        let (mut client, _) = pooler.login("good", "any", "good-pw").unwrap();
        assert_eq!(client.value("select current_user"), "trusty");
        assert_eq!(pooler.refusal("bad", "any", "x"), "password authentication failed");
    }
}

#[test]
fn overlong_names_are_refused() {
    let (mut pooler, database) = start("auth_type = plain\n");
    let long = "u".repeat(128);
    assert_eq!(pooler.refusal(&long, &database, "x"), "username too long");
    let login = pooler.login("plainy", &"d".repeat(64), "plainy-pw");
    let text = last_error(&login.err().unwrap()).2;
    assert_eq!(text, format!("no such database: {}", "d".repeat(63)));
    assert_eq!(pooler.exited(), None);
    let (mut client, _) = pooler.login("plainy", &database, "plainy-pw").unwrap();
    assert_eq!(tags(&client.query("")), "IZ");
}
