//! Can strangers find out who exists? That everybody gets the same answers for the same work is tested elsewhere
//! (`core/login_tests.rs`, `methods.rs`); here it is timed. Nothing is asserted about times:
//! `PGTURNSTILE_BINARY=target/release/pgturnstile cargo test --test live -- --ignored --nocapture enumeration`.

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::secrets::{md5_secret, scram_secret};
use crate::rig::wire::{cstr, msg, startup};
use std::time::{Duration, Instant};

/// Attempts for each of two users.
const TIMES: usize = 600;

/// How long the pooler takes to refuse one login, without what the client does meanwhile.
fn refusal(pooler: &Pooler, user: &str) -> Duration {
    let mut raw = pooler.tcp();
    let mut next = startup(0, &[("user", user), ("database", "shop")]);
    let mut waited = Duration::ZERO;
    loop {
        let start = Instant::now();
        raw.send(&next);
        let got = raw.recv().expect("an answer");
        waited += start.elapsed();
        if got.tag == b'E' {
            return waited;
        }
        let body = match got.body[3] {
            3 => cstr("wrong"),
            5 => cstr(&md5_secret("x", "wrong")),
            10 => b"SCRAM-SHA-256\0\0\0\0\x0dn,,n=,r=abcde".to_vec(),
            _ => {
                let nonce = std::str::from_utf8(&got.body[4..]).unwrap().split(',').next().unwrap();
                format!("c=biws,{nonce},p={}=", "A".repeat(43)).into_bytes()
            }
        };
        next = msg(b'p', &body);
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

/// A line with the medians of two kinds of users, who take turns.
fn compare(what: &str, pooler: &Pooler, names: [&dyn Fn(usize) -> String; 2]) {
    let mut times = [Vec::new(), Vec::new()];
    for number in 0..TIMES {
        for (times, name) in times.iter_mut().zip(names) {
            times.push(refusal(pooler, &name(number)));
        }
    }
    let [known, unknown] = times.map(median);
    let ratio = known / unknown;
    eprintln!("{what:<44} known {known:7.1} us, unknown {unknown:7.1} us, ratio {ratio:.2}");
}

fn pooler(auth_type: &str, users: &str) -> Pooler {
    let place = format!("host=127.0.0.1 port={} user=trusty dbname=template1", postgres().port);
    let settings =
        format!("auth_type = {auth_type}\nlog_connections = 0\nlog_disconnections = 0\n");
    let users = format!("\"trusty\" \"\"\n{users}");
    Pooler::start(&Setup { databases: format!("shop = {place}\n"), settings, users })
}

#[test]
#[ignore = "a measurement"]
fn known_users_against_unknown_ones() {
    let scram = scram_secret("pw", b"salt salt salt 1", 4096);
    let md5 = md5_secret("known", "pw");
    let (known, unknown) = (|_| "known".to_owned(), |_| "nobody".to_owned());
    for (auth_type, kind, secret) in [
        ("plain", "plain text", "pw"),
        ("plain", "md5", &md5),
        ("plain", "SCRAM", &scram),
        ("md5", "plain text", "pw"),
        ("md5", "md5", &md5),
        ("scram-sha-256", "plain text", "pw"),
        ("scram-sha-256", "md5", &md5),
        ("scram-sha-256", "SCRAM", &scram),
    ] {
        let pooler = pooler(auth_type, &format!("\"known\" \"{secret}\"\n"));
        compare(&format!("{auth_type}, secret {kind}"), &pooler, [&known, &unknown]);
    }
    let pooler = pooler("plain", &format!("\"other\" \"{scram}\"\n\"known\" \"pw\"\n"));
    compare("plain, secret plain text, others' SCRAM", &pooler, [&known, &unknown]);
    first_attempts();
}

/// The first attempt of each user, whose verifier exists by then.
fn first_attempts() {
    let list: String = (0..TIMES).map(|number| format!("\"known{number}\" \"pw\"\n")).collect();
    let pooler = pooler("scram-sha-256", &list);
    std::thread::sleep(Duration::from_secs(8));
    let (known, unknown) = (|n| format!("known{n}"), |n| format!("nobody{n}"));
    compare("scram-sha-256, plain text, first attempt", &pooler, [&known, &unknown]);
}
