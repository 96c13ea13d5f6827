//! Tests of the tables with a row per connection.

use super::fixture::{Fixture, START};
use crate::base::Micros;
use crate::core::{Addr, ClientId, Decisions, Peer, Verdict};
use crate::net::conn::Pending;

#[test]
fn clients_and_servers_point_at_each_other() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let bob = at.client("one", "bob");
    at.serve();
    at.client_from(Addr::Unix { pid: 99 }, Some(1), "one", "bob");
    at.core.now = START + Micros::from_secs(3);
    at.feed(bob, "select 1");
    at.core.now = START + Micros(4_000_007);
    let clients = at.show(boss, "show clients");
    let servers = at.show(boss, "show servers");
    for (column, want) in [
        ("type", "C C C"),
        ("user", "bob bob boss"),
        ("database", "one one pgbouncer"),
        ("state", "active idle idle"),
        ("addr", "127.0.0.1 unix 127.0.0.1"),
        ("port", "4000 6432 4000"),
        ("local_addr", "127.0.0.2 unix 127.0.0.2"),
        ("local_port", "6432 6432 6432"),
        ("wait", "1 0 0"),
        ("wait_us", "7 0 0"),
        ("remote_pid", "0 99 0"),
        ("application_name", "app app app"),
        ("id", "2 4 1"),
    ] {
        assert_eq!(clients.column(column).join(" "), want, "{column}");
    }
    assert_eq!(clients.column("connect_time")[0], "second 1000000");
    assert_eq!(clients.column("request_time")[0], "second 1000003");
    for (column, want) in [
        ("type", "S"),
        ("user", "bob"),
        ("state", "active"),
        ("addr", "127.0.0.1"),
        ("port", "5432"),
        ("local_port", "5000"),
        ("wait", "0"),
        ("close_needed", "0"),
        ("remote_pid", "4097"),
        ("id", "3"),
    ] {
        assert_eq!(servers.column(column), [want], "{column}");
    }
    assert_eq!(clients.column("link")[0], servers.column("ptr")[0]);
    assert_eq!(servers.column("link")[0], clients.column("ptr")[0]);
    assert_eq!(clients.column("link")[1], "");
    assert!(servers.column("ptr")[0].starts_with("0x"));
}

#[test]
fn the_owner_of_the_process_is_shown_as_pgbouncer() {
    let mut at = Fixture::new();
    let owner = at.client_from(Addr::Unix { pid: 5 }, Some(1000), "pgbouncer", "pgbouncer");
    at.taken(owner);
    assert_eq!(at.show(owner, "show clients").column("user"), ["pgbouncer"]);
    let users = at.show(owner, "show users");
    let row = users.rows.iter().find(|row| row[0] == "pgbouncer").unwrap();
    assert_eq!(row[7], "0");
}

/// What the tables say of each row: its place in the order.
fn places(at: &mut Fixture, asker: ClientId, command: &str) -> Vec<String> {
    let shown = at.show(asker, command);
    let columns = ["type", "database", "user", "state", "id"].map(|name| shown.column(name));
    let row = |n: usize| columns.iter().map(|column| column[n]).collect::<Vec<_>>().join(" ");
    (0..shown.rows.len()).map(row).collect()
}

#[test]
fn sockets_are_listed_pool_by_pool_and_logins_last() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let bob = at.client("one", "bob");
    at.serve();
    let second = at.client("one", "bob");
    at.feed(bob, "begin");
    at.feed(second, "select 1");
    at.pump();
    at.client("two", "alice");
    at.stranger();
    at.client("one", "bob");
    assert_eq!(
        places(&mut at, boss, "show sockets"),
        [
            "C one bob cl_active 2",
            "C one bob cl_active 9",
            "C one bob cl_waiting 4",
            "S one bob sv_active 3",
            "S one bob sv_login 5",
            "C pgbouncer boss cl_active 1",
            "C two alice cl_waiting 6",
            "S two forced sv_login 7",
            "C (nodb) (nouser) cl_login 8",
        ]
    );
    assert_eq!(
        places(&mut at, boss, "show clients"),
        [
            "C one bob active 2",
            "C one bob idle 9",
            "C one bob waiting 4",
            "C pgbouncer boss idle 1",
            "C two alice waiting 6",
        ]
    );
    assert_eq!(
        places(&mut at, boss, "show servers"),
        ["S one bob active 3", "S one bob new 5", "S two forced new 7"]
    );
    let shown = at.show(boss, "show servers");
    assert_eq!(shown.column("addr"), ["127.0.0.1", "(bad-af)", "(bad-af)"]);
}

#[test]
fn buffers_are_those_of_both_ends() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let bob = at.client("one", "bob");
    let server = at.serve();
    at.feed(bob, "begin");
    at.client("two", "alice");
    let idle = at.client("one", "bob");
    let stranger = at.stranger();
    let pending = |held, missing, unsent| Pending { held, missing, unsent };
    at.process.pending = vec![
        (Peer::Client(bob), pending(0, 6, 2000)),
        (Peer::Server(server), pending(30, 0, 0)),
        // What the pooler itself said has no other end.
        (Peer::Client(idle), pending(0, 0, 70)),
        (Peer::Client(stranger), pending(3, 0, 0)),
    ];
    let rows = |at: &mut Fixture, topic: &str| -> Vec<String> {
        let shown = at.show(boss, topic);
        let start = shown.columns.len() - 7;
        shown.rows.iter().map(|row| format!("{} {}", row[4], row[start..].join(" "))).collect()
    };
    let active = [
        "cl_active 0 0 6 0 0 0 0",
        "sv_active 2030 2000 0 0 0 30 2000",
        // The question itself: `show active_sockets` in a packet.
        "cl_active 25 0 0 0 0 25 0",
        "cl_login 3 0 0 0 0 3 0",
    ];
    assert_eq!(rows(&mut at, "show active_sockets"), active);
    let all = rows(&mut at, "show sockets");
    assert_eq!(all.len(), 7);
    assert_eq!(all[1], "cl_active 0 0 0 0 0 0 0");
    assert!(all.contains(&"cl_active 18 0 0 0 0 18 0".to_owned()), "{all:?}");
    at.feed(boss, "show active_sockets");
    at.feed(boss, "show version");
    at.pump();
    let first = at.raw(boss).into_iter().filter(|(kind, _)| *kind == b'D').nth(2).unwrap().1;
    let first = String::from_utf8(first).unwrap();
    assert!(first.ends_with("\0\0\0\u{2}43\0\0\0\u{1}0"), "pipelined questions count: {first:?}");
}

#[test]
fn idle_servers_come_newest_first_and_obsolete_ones_last() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let clients: Vec<ClientId> = (0..3).map(|_| at.client("one", "bob")).collect();
    at.serve();
    at.feed(clients[0], "begin");
    for client in &clients[1..] {
        assert_eq!(at.feed(*client, "begin"), Verdict::Wait);
        at.pump();
        at.serve();
        at.feed(*client, "begin");
    }
    assert_eq!(at.show(boss, "show servers").column("state"), ["active"; 3]);
    let commit = |at: &mut Fixture, n: usize| {
        at.feed(clients[n], "commit");
        let server = at.core.server_of(clients[n]).unwrap();
        at.say(server, b'C', b"BEGIN\0");
        at.ready(server, b'T');
        at.say(server, b'C', b"COMMIT\0");
        at.ready(server, b'I');
        at.core.servers().get(server).unwrap().number().to_string()
    };
    let first = commit(&mut at, 0);
    let second = commit(&mut at, 1);
    let shown = at.show(boss, "show servers");
    assert_eq!(shown.column("state"), ["active", "idle", "idle"]);
    assert_eq!(shown.column("id")[1..], [second, first]);
    assert_eq!(shown.column("close_needed"), ["0", "0", "0"]);
    at.tag(boss, "set server_round_robin=1");
    let third = commit(&mut at, 2);
    assert_eq!(at.show(boss, "show servers").column("id")[2], third);
    at.tag(boss, "reconnect one");
    let shown = at.show(boss, "show servers");
    assert!(shown.column("close_needed").iter().all(|needed| *needed == "1"), "{shown:?}");
}

#[test]
fn who_logs_in_is_shown_by_the_name_that_was_given() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.tag(boss, "set auth_type=md5");
    at.client("one", "alice");
    at.client("one", "nobody");
    at.client("two", "bob");
    at.tag(boss, "set auth_type=any");
    at.client("two", "nobody");
    at.client("pgbouncer", "nobody");
    let rows = places(&mut at, boss, "show sockets");
    assert_eq!(
        rows,
        [
            "C pgbouncer boss cl_active 1",
            "C pgbouncer pgbouncer cl_active 7",
            "C two forced cl_waiting 5",
            "S two forced sv_login 6",
            "C one alice cl_login 2",
            "C (nodb) nobody cl_login 3",
            "C two bob cl_login 4",
        ]
    );
    let users = at.show(boss, "show users");
    let counts = users.rows.iter().map(|row| format!("{} {} {}", row[0], row[5], row[7]));
    assert_eq!(
        counts.collect::<Vec<_>>().join(", "),
        "alice 0 1, bob 0 1, boss 0 1, forced 1 1, pgbouncer 0 1, watcher 0 0"
    );
    let databases = at.show(boss, "show databases");
    assert_eq!(databases.column("name").join(" "), "my-db one pgbouncer two");
    assert_eq!(databases.column("current_client_connections").join(" "), "0 2 2 2");
    assert_eq!(databases.column("current_connections").join(" "), "0 0 0 1");
}

#[test]
fn consoles_count_from_their_first_command() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.show(boss, "show version");
    at.core.now = START + Micros(3_000_004);
    let shown = at.show(boss, "show clients");
    assert_eq!((shown.column("wait")[0], shown.column("wait_us")[0]), ("3", "4"));
    assert_eq!(shown.column("request_time"), ["second 1000003"]);
}

#[test]
fn cancel_requests_belong_to_nobody_and_count_nowhere() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let bob = at.client("one", "bob");
    at.serve();
    let key = at.raw(bob).into_iter().find(|(kind, _)| *kind == b'K').unwrap().1;
    at.feed(bob, "select 1");
    at.cancel(&key);
    let counts = |at: &mut Fixture| {
        let databases = at.show(boss, "show databases");
        let [servers, clients] = ["current_connections", "current_client_connections"]
            .map(|name| databases.column(name)[1].to_owned());
        let users = at.show(boss, "show users");
        let bob = users.rows.iter().find(|row| row[0] == "bob").unwrap();
        format!("{servers} {clients}, {} {}", bob[5], bob[7])
    };
    let others = ["C one bob active 2", "C pgbouncer boss idle 1"];
    assert_eq!(
        places(&mut at, boss, "show clients"),
        [others[0], "C one (nouser) waiting_cancel_req 4", others[1]]
    );
    let servers = places(&mut at, boss, "show servers");
    assert_eq!(servers, ["S one bob active 3", "S one bob new 5"]);
    assert_eq!(counts(&mut at), "2 1, 2 1");
    let carrier = at.connects.pop_front().unwrap();
    let address = Addr::Inet("127.0.0.1:5432".parse().unwrap());
    at.core.connected(carrier, address, address);
    at.pump();
    assert_eq!(
        places(&mut at, boss, "show clients"),
        [others[0], "C one (nouser) active_cancel_req 4", others[1]]
    );
    let servers = places(&mut at, boss, "show servers");
    assert_eq!(servers, ["S one bob active 3", "S one bob active_cancel 5"]);
    assert_eq!(counts(&mut at), "2 1, 2 1");
    let sockets = places(&mut at, boss, "show sockets");
    let want = ["C one bob cl_active 2", "S one bob sv_active 3", "C pgbouncer boss cl_active 1"];
    assert_eq!(sockets, want);
}
