//! What PgBouncer gets wrong and we do not (pooling, appendix B); the others are tested where they
//! belong.

use std::sync::{Arc, Mutex};

use crate::cancel::sleeping;
use crate::rig::fake::{reply, Fake};
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{cstr, msg, query, startup, tags};

fn parameter(name: &str, value: &str) -> Vec<u8> {
    msg(b'S', &[cstr(name), cstr(value)].concat())
}

/// AuthenticationOk, these parameters, a cancel key, ready.
fn welcome(parameters: &[(&str, &str)]) -> Vec<u8> {
    let parameters = parameters.iter().flat_map(|(name, value)| parameter(name, value)).collect();
    let key = msg(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]);
    [msg(b'R', &[0, 0, 0, 0]), parameters, key, msg(b'Z', b"I")].concat()
}

fn pooler_of(fake: &Fake, settings: &str) -> Pooler {
    let mut setup = Setup::trust(&format!("pool_mode = transaction\n{settings}"));
    setup.databases = fake.database();
    Pooler::start(&setup)
}

/// D-6 and D-7: parameters larger than every buffer, at login and later, in any pieces.
#[test]
fn long_parameters_pass_whole() {
    let long = "x".repeat(90_000);
    let fake = Fake::start(|mut peer| {
        let long = "x".repeat(90_000);
        let hello = welcome(&[("at_login", &long), ("server_version", "15.0")]);
        for piece in hello[..40].chunks(1).chain(hello[40..].chunks(30_011)) {
            peer.raw.send(piece);
        }
        while peer.raw.recv().is_some_and(|msg| msg.tag == b'Q') {
            peer.raw.send(&[parameter("later", &long), reply("done")].concat());
        }
    });
    let pooler = pooler_of(&fake, "pkt_buf = 1024\n");
    let (mut client, first) = pooler.login("trusty", "fake", "").unwrap();
    assert!(first
        .iter()
        .any(|m| m.tag == b'S' && m.parameter() == ("at_login".into(), long.clone())));
    let answer = client.query("select 1");
    assert_eq!(answer[0].parameter(), ("later".into(), long));
    assert_eq!(tags(&answer), "STDCZ");
}

/// D-8: a cancel request arrives over TCP while everything is paused.
#[test]
fn cancel_requests_are_sent_while_paused() {
    for command in ["PAUSE", "PAUSE shop"] {
        let mut setup = Setup::trust("pool_mode = transaction\n");
        let database = postgres().new_database();
        setup.databases =
            format!("shop = host=127.0.0.1 port={} dbname={database}\n", postgres().port);
        let pooler = Pooler::start(&setup);
        let mut busy = pooler.client("shop");
        busy.send(&query("select pg_sleep(60)"));
        wait_until("it runs", || sleeping(&database));
        let mut console = pooler.console();
        console.send(&query(command));
        pooler.wait_log("command issued");
        let mut cancel = pooler.tcp();
        cancel.send(&busy.cancel_request());
        assert_eq!(cancel.rest(), [], "{command}");
        assert!(tags(&busy.until(b'Z')).contains('E'), "{command}");
        assert_eq!(tags(&console.until(b'Z')), "CZ", "{command}: now all is quiet");
    }
}

/// D-9: a long search_path keeps its end, and what follows it.
#[test]
fn long_search_path_is_set_whole() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let notes = heard.clone();
    let path = (0..40).map(|n| format!("schema_{n}")).collect::<Vec<_>>().join(", ");
    let wanted = path.clone();
    let fake = Fake::start(move |mut peer| {
        peer.raw.send(&welcome(&[("search_path", "public"), ("IntervalStyle", "postgres")]));
        while let Some(asked) = peer.raw.recv().filter(|msg| msg.tag == b'Q') {
            let sets = asked.body.starts_with(b"SET ");
            notes.lock().unwrap().push(asked.body);
            if sets {
                let both =
                    [parameter("search_path", &path), parameter("IntervalStyle", "iso_8601")];
                peer.raw.send(&both.concat());
            }
            peer.raw.send(&[msg(b'C', b"SET\0"), msg(b'Z', b"I")].concat());
        }
    });
    let pooler = pooler_of(&fake, "track_extra_parameters = search_path, IntervalStyle\n");
    let base = [("user", "trusty"), ("database", "fake")];
    let more = [("search_path", wanted.as_str()), ("IntervalStyle", "iso_8601")];
    let hello = startup(0, &[&base[..], &more].concat());
    let (mut client, _) = pooler.tcp().login_with(&hello, "trusty", "").unwrap();
    client.query("select 1");
    let set = format!("SET search_path={wanted};SET IntervalStyle='iso_8601';\0");
    assert!(wanted.len() > 300);
    assert_eq!(*heard.lock().unwrap(), [set.into_bytes(), b"select 1\0".to_vec()]);
}

/// D-11: empty elements of a host list are skipped; they do not stand for the Unix socket.
#[test]
fn empty_hosts_are_skipped() {
    let mut setup = Setup::trust("pool_mode = transaction\n");
    setup.databases =
        format!("shop = host=127.0.0.1,,127.0.0.1, port={} dbname=template1\n", postgres().port);
    let pooler = Pooler::start(&setup);
    let holders: Vec<Raw> = (0..5).map(|_| pooler.holder("shop")).collect();
    let places = pooler.show("SERVERS", "addr", ("database", "shop"));
    assert_eq!(places, ["127.0.0.1"; 5]);
    drop(holders);
}
