//! What takes long is done by helper threads: nobody else waits for it (auth 5, 8).

use crate::rig::fake::Fake;
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::secrets::{scram_secret, Scram};
use crate::rig::wait_until;
use crate::rig::wire::{cstr, last_error, msg, startup};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

/// So many take a second in a build without optimisation, and a tenth of one in any other.
const MANY: u32 = 600_000;

fn querier(scram_iterations: u32, users: &str) -> (Pooler, Raw) {
    let secret = scram_secret("q-pw", b"salt salt salt 1", 1);
    let setup = Setup {
        databases: format!(
            "shop = host=127.0.0.1 port={} user=trusty dbname=template1\n",
            postgres().port
        ),
        settings: format!("auth_type = scram-sha-256\nscram_iterations = {scram_iterations}\n"),
        users: format!("\"trusty\" \"\"\n\"querier\" \"{secret}\"\n{users}"),
    };
    let pooler = Pooler::start(&setup);
    let (querier, _) = pooler.login("querier", "shop", "q-pw").expect("the querier gets in");
    (pooler, querier)
}

/// Sends all that a client can before it needs the pooler's challenge.
fn begin(pooler: &Pooler, user: &str) -> Raw {
    let mut raw = pooler.tcp();
    raw.send(&startup(0, &[("user", user), ("database", "shop")]));
    let first = Scram::new("x", "fyko+d2lbbFgONRv9qkxdawL").first();
    let len = u32::try_from(first.len()).unwrap().to_be_bytes();
    let body = [&b"SCRAM-SHA-256\0"[..], &len, first.as_bytes()].concat();
    assert_eq!(raw.recv().unwrap().body[3], 10);
    raw.send(&msg(b'p', &body));
    raw
}

/// By order, not by time: the queries are over before the storm is.
#[test]
fn a_storm_of_logins_does_not_stall_queries() {
    let users: Vec<String> = (0..12).map(|number| format!("storm{number}")).collect();
    let list: String = users.iter().map(|user| format!("\"{user}\" \"{user}-pw\"\n")).collect();
    let (pooler, mut querier) = querier(MANY, &list);
    let challenged = Arc::new(AtomicUsize::new(0));
    let storm: Vec<_> = users
        .iter()
        .map(|user| {
            let mut raw = begin(&pooler, user);
            let challenged = challenged.clone();
            std::thread::spawn(move || {
                let got = raw.recv().expect("a challenge");
                challenged.fetch_add(1, Ordering::SeqCst);
                assert_eq!(got.body[3], 11);
            })
        })
        .collect();
    for number in 0..50 {
        assert_eq!(querier.value(&format!("select {number}")), number.to_string());
    }
    let before = challenged.load(Ordering::SeqCst);
    assert!(before < users.len(), "the queries came after the storm");
    for client in storm {
        client.join().unwrap();
    }
}

#[test]
fn clients_of_one_user_wait_for_one_derivation() {
    let (pooler, _) = querier(MANY, "\"one\" \"one-pw\"\n");
    let salts: Vec<String> = (0..10)
        .map(|_| begin(&pooler, "one"))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|mut raw| String::from_utf8(raw.recv().unwrap().body).unwrap())
        .map(|text| text[text.find(",s=").unwrap()..].to_owned())
        .collect();
    assert!(salts.iter().all(|salt| *salt == salts[0] && salt.ends_with(&format!(",i={MANY}"))));
}

/// Derivations that take seconds each, of clients that have gone: they are given up. A secret that
/// would take minutes is refused at once.
#[test]
fn login_timeout_ends_a_derivation() {
    let secret = |name: &str, count: &str| {
        let secret = scram_secret("slow-pw", b"salt salt salt 1", 1);
        format!("\"{name}\" \"{}\"\n", secret.replace("$1:", count))
    };
    let setup = Setup {
        databases: format!(
            "shop = host=127.0.0.1 port={} user=trusty dbname=template1\n",
            postgres().port
        ),
        settings: "auth_type = plain\nclient_login_timeout = 1\n".to_owned(),
        users: [
            secret("slow", "$10000000:"),
            secret("slower", "$10000001:"),
            secret("quick", "$1:"),
            "\"trusty\" \"\"\n".to_owned(),
        ]
        .concat(),
    };
    let pooler = Pooler::start(&setup);
    let refused = pooler.refusal("slower", "shop", "slow-pw");
    assert_eq!(refused, "password authentication failed");
    let asked = |_| {
        let mut raw = pooler.tcp();
        raw.send(&startup(0, &[("user", "slow"), ("database", "shop")]));
        assert_eq!(raw.recv().unwrap().body[3], 3);
        raw.send(&msg(b'p', &cstr("slow-pw")));
        raw
    };
    // More than threads can do in that time, and than there is room for.
    let slow: Vec<_> = (0..25).map(asked).collect();
    let ends = slow.into_iter().map(|mut raw| last_error(&raw.rest()).2);
    let late = ends.filter(|text| text == "client_login_timeout").count();
    assert!(late > 10, "{late}");
    assert!(pooler.login("quick", "shop", "slow-pw").is_ok());
}

/// A server asks for a proof that takes far too long.
#[test]
fn a_server_can_not_keep_the_pooler_computing() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let fake = Fake::start(move |mut peer| {
        peer.raw.send(&msg(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"));
        let Some(first) = peer.raw.recv() else { return };
        let text = String::from_utf8_lossy(&first.body).into_owned();
        let nonce = text.split("r=").nth(1).unwrap_or_default().to_owned();
        let challenge = format!("\0\0\0\x0br={nonce}x,s=c2FsdA==,i=2147483647");
        peer.raw.send(&msg(b'R', challenge.as_bytes()));
        count.fetch_add(1, Ordering::SeqCst);
        peer.raw.recv();
    });
    let mut setup = Setup::trust("server_login_retry = 1\n");
    setup.databases = fake.database();
    setup.users = "\"u\" \"u-pw\"\n".to_owned();
    let pooler = Pooler::start(&setup);
    let mut waiting = pooler.tcp();
    waiting.send(&startup(0, &[("user", "u"), ("database", "fake")]));
    pooler.wait_log("ERROR S-");
    pooler.wait_log("SCRAM iteration count 2147483647 is too high (at most 10000000 are done)");
    pooler.wait_log("closing because: failed to answer authreq");
    wait_until("it is tried again", || asked.load(Ordering::SeqCst) > 1);
}

/// Several databases of one server, one user with a plain-text secret: it is derived once, and all
/// its servers get in.
#[test]
fn servers_log_in_with_scram_as_before() {
    let database = postgres().new_database();
    let setup = Setup {
        databases: format!("* = host=127.0.0.1 port={}\n", postgres().port),
        settings: "auth_type = plain\n".to_owned(),
        users: "\"scramy\" \"scramy-pw\"\n".to_owned(),
    };
    let pooler = Pooler::start(&setup);
    for name in [&database[..], "template1", "postgres", &database[..]] {
        let (mut client, _) = pooler.login("scramy", name, "scramy-pw").expect("gets in");
        assert_eq!(client.value("select current_user"), "scramy");
    }
}
