//! Tests of SHOW WAITING: each reason for which a client waits.

use super::fixture::{Fixture, START};
use crate::base::Micros;
use crate::core::{Addr, ClientId, Decisions, Loss, Peer};

/// `reason: detail` of all who wait.
fn reasons(at: &mut Fixture, console: ClientId) -> Vec<String> {
    let table = at.show(console, "show waiting");
    let details = table.column("detail");
    table.column("reason").iter().zip(details).map(|(why, what)| format!("{why}: {what}")).collect()
}

/// A console; a client of database "one" and its server, which it keeps busy.
fn busy(setting: &str) -> (Fixture, ClientId) {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    if !setting.is_empty() {
        at.tag(boss, setting);
    }
    let bob = at.client("one", "bob");
    at.serve();
    at.run(bob, "begin");
    (at, boss)
}

#[test]
fn a_row_tells_who_waits_and_how_long() {
    let (mut at, boss) = busy("set max_db_connections=1");
    assert_eq!(reasons(&mut at, boss), Vec::<String>::new());
    let second = at.client("one", "bob");
    at.run(second, "select 1");
    let third = at.client("one", "alice");
    at.core.now = START + Micros(2_000_500);
    let number = |at: &Fixture, id| at.core.clients().get(id).unwrap().number().to_string();
    let rows = at.show(boss, "show waiting").rows;
    let text = "max_db_connections=1 is reached".to_owned();
    let row = |at: &Fixture, id, user: &str| {
        let (one, why) = ("one".to_owned(), "database limit".to_owned());
        vec![number(at, id), one, user.to_owned(), why, text.clone(), "2000500".to_owned()]
    };
    assert_eq!(rows, [row(&at, third, "alice"), row(&at, second, "bob")], "in the order of pools");
}

#[test]
fn a_full_pool_is_told_with_its_size() {
    for (setting, want) in [
        ("", "pool full: pool_size=3 is reached"),
        ("set reserve_pool_size=2", "pool full: pool_size=3 is reached, reserve_pool_size=2"),
    ] {
        let (mut at, boss) = busy(setting);
        for _ in 0..2 {
            let bob = at.client("one", "bob");
            at.run(bob, "begin");
            at.serve();
            at.run(bob, "begin");
        }
        let late = at.client("one", "bob");
        at.run(late, "begin");
        assert_eq!(reasons(&mut at, boss), [want]);
    }
}

#[test]
fn a_users_limit_is_told() {
    let (mut at, boss) = busy("set max_user_connections=1");
    let bob = at.client("two", "bob");
    at.serve();
    assert_eq!(reasons(&mut at, boss), Vec::<String>::new(), "two has a user of its own");
    let elsewhere = at.client("my-db", "bob");
    assert_eq!(reasons(&mut at, boss), ["user limit: max_user_connections=1 is reached"]);
    assert!(!at.is_closed(bob) && !at.is_closed(elsewhere));
}

#[test]
fn a_login_is_told_with_its_progress() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.client("one", "bob");
    at.client("one", "bob");
    let server = at.connects[0];
    let there = Addr::Inet("127.0.0.1:5432".parse().unwrap());
    at.core.dialling(server, there);
    at.core.now = START + Micros::from_secs(3);
    assert_eq!(reasons(&mut at, boss), ["server login: connecting for 3 s"; 2]);
    at.core.connected(server, there, there);
    assert_eq!(reasons(&mut at, boss), ["server login: logging in for 3 s"; 2]);
}

#[test]
fn a_look_up_is_told_with_the_name() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.client("two", "bob");
    assert_eq!(reasons(&mut at, boss), ["dns: host name a.test is being looked up, for 0 s"]);
}

#[test]
fn an_unreachable_server_is_told_with_its_error() {
    let (mut at, boss) = busy("");
    let second = at.client("one", "bob");
    at.run(second, "select 1");
    let server = at.connects.pop_front().unwrap();
    at.core.unreachable(server, "Connection refused");
    at.core.lost(Peer::Server(server), Loss::Connect);
    at.core.now = START + Micros::from_secs(5);
    let want = "server unreachable: connect failed: Connection refused; next attempt in 10 s";
    assert_eq!(reasons(&mut at, boss), [want]);
    at.core.now = START + Micros::from_secs(15);
    let want = "about to be served: a connection is about to be opened";
    assert_eq!(reasons(&mut at, boss), [want]);
    at.core.tick();
    at.pump();
    let server = at.connects.pop_front().unwrap();
    at.core.lost(Peer::Server(server), Loss::Dns);
    assert!(reasons(&mut at, boss)[0].starts_with("server unreachable: server DNS lookup failed;"));
}

#[test]
fn what_is_paused_is_told_before_anything_else() {
    for (command, want) in [
        ("pause", "paused: PAUSE is in force"),
        ("pause one", "paused: PAUSE or KILL of database one is in force"),
    ] {
        let (mut at, boss) = busy("set max_db_connections=1");
        let second = at.client("one", "bob");
        let other = at.console("boss");
        at.run(other, command);
        at.run(second, "select 1");
        assert_eq!(reasons(&mut at, boss), [want]);
    }
}
