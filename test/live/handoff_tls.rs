//! TLS connections in a handoff: the old process goes on encrypting as their keeper, chains of
//! keepers never grow, and nobody sees a difference.

use std::process::Child;
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::rig::pooler::{binary, Pooler, Setup};
use crate::rig::postgres::{postgres, tls_postgres};
use crate::rig::raw::Raw;
use crate::rig::tls::{ask, connect, offers, setup, Wishes};
use crate::rig::wait_until;
use crate::rig::wire::{bind, execute, last_error, parse, query, rows, sync, tags};

fn file(child: &Child, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{}/{name}", child.id())).unwrap();
    text.replace('\0', " ").trim().to_owned()
}

fn ended(mut child: Child) -> Option<i32> {
    wait_until("the old process ends", || child.try_wait().unwrap().is_some());
    child.wait().unwrap().code()
}

fn encrypted(pooler: &Pooler, database: &str) -> Raw {
    Wishes::default().raw(pooler.port).login("trusty", database, "").unwrap().0
}

/// Of each client of a database: what the console shows and must stay.
fn shown(pooler: &Pooler, database: &str) -> Vec<[String; 4]> {
    let [pointers, addresses, ports, tls] = ["ptr", "addr", "port", "tls"]
        .map(|column| pooler.show("CLIENTS", column, ("database", database)));
    let others = addresses.into_iter().zip(ports).zip(tls);
    let all = pointers.into_iter().zip(others);
    let row = |(pointer, ((address, port), tls))| [pointer, address, port, tls];
    let mut rows: Vec<_> = all.map(row).collect();
    // Who does nothing comes behind the others in the next process.
    rows.sort_unstable();
    rows
}

#[test]
fn clients_go_on_through_two_handoffs_with_one_keeper() {
    let mut pooler = Pooler::start(&setup("prefer", "pool_mode = transaction\n"));
    let database = postgres().new_database();
    let mut idle = encrypted(&pooler, &database);
    assert_eq!(idle.value("select 1"), "1");
    let mut open = encrypted(&pooler, &database);
    assert_eq!(tags(&open.query("begin")), "CZ");
    let mut named = encrypted(&pooler, &database);
    named.send(&[parse("s", "select 7 + $1::int"), sync()].concat());
    named.until(b'Z');
    let mut cut = encrypted(&pooler, &database);
    cut.send(&query("select 'whole'")[..9]);
    let mut lazy = encrypted(&pooler, &database);
    lazy.send(&query("select repeat('l', 999) from generate_series(1, 20000)"));
    lazy.until(b'T');
    wait_until("all are there", || shown(&pooler, &database).len() == 5);
    let before = shown(&pooler, &database);
    assert!(before.iter().all(|row| row[3].starts_with("TLSv1.3/")), "{before:?}");

    let keeper = pooler.succeed(binary());
    pooler.wait_log("LOG keeping 5 TLS connections for the successor");
    wait_until("it has a name", || file(&keeper, "comm") == "pgt-keeper");
    assert!(file(&keeper, "cmdline").starts_with("pgturnstile: keeper of 5"));
    assert_eq!(shown(&pooler, &database), before);
    // The next ones have none of their own, and end.
    for _ in 0..2 {
        let old = pooler.succeed(binary());
        assert_eq!(ended(old), Some(0));
        assert_eq!(shown(&pooler, &database), before);
    }
    let mut new = encrypted(&pooler, &database);
    assert_eq!(new.value("select 2"), "2");
    assert_eq!(idle.value("select 3"), "3");
    assert_eq!(tags(&open.query("commit")), "CZ");
    named.send(&[bind("s", &["4"]), execute(), sync()].concat());
    assert_eq!(rows(&named.until(b'Z'))[0][0].as_deref(), Some("11"));
    cut.send(&query("select 'whole'")[9..]);
    assert_eq!(rows(&cut.until(b'Z'))[0][0].as_deref(), Some("whole"));
    assert_eq!(lazy.until(b'Z').iter().filter(|msg| msg.tag == b'D').count(), 20000);
    // A cancel request finds them.
    idle.send(&query("select pg_sleep(100)"));
    // PostgreSQL ignores a request that comes before the query.
    let sql = format!(
        "select count(*) from pg_stat_activity where datname = '{database}' and state = 'active' and \
         query like '%pg_sleep(100)%'"
    );
    wait_until("it runs", || postgres().value("postgres", &sql) == "1");
    let mut canceler = pooler.tcp();
    canceler.send(&idle.cancel_request());
    canceler.rest();
    assert_eq!(last_error(&idle.until(b'E')).1, "57014");
    idle.until(b'Z');
    for client in [idle, open, named, cut, lazy] {
        client.bye();
    }
    assert_eq!(ended(keeper), Some(0));
    pooler.wait_log("LOG no TLS connection is kept any more, exiting");
    assert_eq!(new.value("select 5"), "5");
}

#[test]
fn handshakes_and_logins_go_on() {
    let mut set = Setup::trust(&offers("require", "server"));
    set.settings += "auth_type = plain\n";
    set.users = "\"trusty\" \"secret\"\n".into();
    let mut pooler = Pooler::start(&set);
    let database = postgres().new_database();
    let silent = connect(pooler.port);
    let asked = connect(pooler.port);
    let (_raw, answer) = ask(asked.try_clone().unwrap());
    assert_eq!(answer, b'S');
    let quiet = Wishes::default().raw(pooler.port);
    let keeper = pooler.succeed(binary());
    let second = pooler.succeed(binary());
    assert_eq!(ended(second), Some(0));
    let (_raw, answer) = ask(silent.try_clone().unwrap());
    assert_eq!(answer, b'S');
    let streams = [silent, asked].map(|stream| Wishes::default().over(stream).unwrap());
    for raw in streams.map(Raw::through).into_iter().chain([quiet]) {
        let mut client = raw.login("trusty", &database, "secret").unwrap().0;
        assert_eq!(client.value("select 6"), "6");
        client.bye();
    }
    assert_eq!(ended(keeper), Some(0));
}

#[test]
fn servers_stay_encrypted_and_are_used_again() {
    let mut set = Setup::trust("pool_mode = transaction\nserver_tls_sslmode = require\n");
    set.databases = format!("* = host=127.0.0.1 port={}\n", tls_postgres().port);
    let mut pooler = Pooler::start(&set);
    let database = tls_postgres().new_database();
    let mut client = pooler.client(&database);
    let mut open = pooler.holder(&database);
    assert_eq!(client.value("select 1"), "1");
    let servers = pooler.servers(&database);
    let keeper = pooler.succeed(binary());
    assert_eq!(ended(pooler.succeed(binary())), Some(0));
    let pid = client.value("select pg_backend_pid()");
    assert!(servers.contains(&pid), "{pid} of {servers:?}");
    assert_eq!(tags(&open.query("commit")), "CZ");
    let tls = pooler.show("SERVERS", "tls", ("database", &database));
    assert!(tls.len() == 2 && tls.iter().all(|text| text.starts_with("TLSv1.3/")), "{tls:?}");
    pooler.command("RECONNECT");
    wait_until("they are replaced", || pooler.servers(&database).is_empty());
    assert_eq!(ended(keeper), Some(0));
    assert_eq!(client.value("select 2"), "2");
}

#[test]
fn a_keeper_that_is_told_to_end_ends_its_connections() {
    let mut pooler = Pooler::start(&setup("prefer", "pool_mode = transaction\n"));
    let database = postgres().new_database();
    let mut kept = encrypted(&pooler, &database);
    let mut plain = pooler.client(&database);
    assert_eq!(tags(&plain.query("begin")), "CZ");
    let keeper = pooler.succeed(binary());
    assert_eq!(kept.value("select 1"), "1");
    // This one is meant for the successor as well if it comes from a service manager.
    let tell = |signal| kill(Pid::from_raw(i32::try_from(keeper.id()).unwrap()), signal).unwrap();
    tell(Signal::SIGINT);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(kept.value("select 2"), "2");
    tell(Signal::SIGTERM);
    assert_eq!(ended(keeper), Some(0));
    assert!(kept.rest().is_empty());
    assert_eq!(tags(&plain.query("commit")), "CZ");
    wait_until("it is gone", || shown(&pooler, &database).len() == 1);
}
