//! Tests of SHOW: values against a core with known contents.

use super::fixture::{Fixture, START};
use crate::base::Micros;
use crate::config::PARAMS;
use crate::core::client::Client;
use crate::core::database::User;
use crate::net::resolve::{Host, Zone};

#[test]
fn small_tables_have_their_rows() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    assert_eq!(at.show(boss, "show version").rows, [["PgBouncer 1.25.2"]]);
    assert_eq!(at.show(boss, "show TimeZone").rows, [["GMT"]]);
    assert_eq!(at.show(boss, "show client_encoding").rows, [["UTF-8"]]);
    let isolation = at.show(boss, "select default_transaction_isolation").rows;
    assert_eq!(isolation, [["read committed"]]);
    let state = |at: &mut Fixture| at.show(boss, "show state").rows.concat().join(" ");
    assert_eq!(state(&mut at), "active yes paused no suspended no");
    at.tag(boss, "pause one");
    assert_eq!(state(&mut at), "active yes paused no suspended no");
    at.tag(boss, "pause");
    assert_eq!(state(&mut at), "active no paused yes suspended no");
    at.tag(boss, "resume");
    at.tag(boss, "resume one");
    at.tag(boss, "suspend");
    assert_eq!(state(&mut at), "active no paused no suspended yes");
}

#[test]
fn help_is_that_of_the_contract() {
    let mut at = Fixture::new();
    let watcher = at.console("watcher");
    at.run(watcher, "show help");
    let reply = at.raw(watcher);
    let want = "SNOTICE\0C00000\0MConsole usage\0D
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
\tSHOW PEERS|PEER_POOLS
\tSHOW FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE
\tSHOW DNS_HOSTS|DNS_ZONES
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
\tSET key = arg
\tRELOAD
\tPAUSE [<db>]
\tRESUME [<db>]
\tDISABLE <db>
\tENABLE <db>
\tRECONNECT [<db>]
\tKILL [<db>]
\tKILL_CLIENT <client_id>
\tSUSPEND
\tSHUTDOWN
\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS
\tWAIT_CLOSE [<db>]\0\0";
    assert_eq!(reply[0], (b'N', want.into()));
    assert_eq!(reply[1..], [(b'C', b"SHOW\0".to_vec()), (b'Z', b"I".to_vec())]);
}

#[test]
fn databases_show_configuration_and_use() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.client("one", "bob");
    at.serve();
    at.client("one", "alice");
    at.tag(boss, "set max_db_connections=50");
    at.tag(boss, "disable one");
    let rows = at.show(boss, "show databases").rows;
    let rows: Vec<String> = rows.iter().map(|row| row.join("|")).collect();
    assert_eq!(
        rows,
        [
            "my-db|NULL|5432|my-db|NULL|20|0|0|3600|NULL|NULL|50|0|0|0|0|0",
            "one|127.0.0.1|5432|first|NULL|3|0|0|3600|NULL|NULL|50|2|0|2|0|1",
            "pgbouncer|NULL|6432|pgbouncer|pgbouncer|2|0|0|3600|statement|NULL|50|0|0|1|0|0",
            "two|a.test,b.test|5432|two|forced|20|0|0|3600|transaction|round-robin|7|0|0|0|0|0",
        ]
    );
}

#[test]
fn pools_count_clients_and_servers_by_state() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let bob = at.client("one", "bob");
    at.serve();
    at.client("one", "bob");
    at.feed(bob, "select 1");
    at.client("two", "alice");
    at.run(boss, "pause");
    at.taken(boss);
    let second = at.client("one", "bob");
    at.feed(second, "select 1");
    at.core.now = START + Micros(2_500_000);
    let rows = at.show(boss, "show pools").rows;
    let rows: Vec<String> = rows.iter().map(|row| row.join("|")).collect();
    assert_eq!(
        rows,
        [
            "one|bob|2|1|0|0|1|0|0|0|0|0|0|2|500000|transaction|NULL",
            "pgbouncer|pgbouncer|1|0|0|0|0|0|0|0|0|0|0|0|0|statement|NULL",
            "two|forced|0|1|0|0|0|0|0|0|0|0|0|0|0|transaction|round-robin",
        ]
    );
}

#[test]
fn users_show_their_own_values_or_the_global_ones() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.client("one", "alice");
    at.client("two", "bob");
    let rows = at.show(boss, "show users").rows;
    let rows: Vec<String> = rows.iter().map(|row| row.join("|")).collect();
    assert_eq!(
        rows,
        [
            "alice|        4||statement|9|1|0|1",
            "bob|||NULL|0|0|0|1",
            "boss|||NULL|0|0|0|1",
            "forced|||NULL|0|1|0|0",
            "pgbouncer|||NULL|0|0|0|0",
            "watcher|||NULL|0|0|0|0",
        ]
    );
}

#[test]
fn lists_count_what_exists() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.client("one", "alice");
    at.stranger();
    at.process.hosts = vec![host("a.test", &[], 0, true), host("b", &[], 0, false)];
    at.process.hosts.push(host("c.test", &["127.0.0.1"], 0, true));
    at.process.zones = vec![Zone { name: "test".into(), serial: 0, hosts: 2 }];
    let shown = at.show(boss, "show lists");
    assert_eq!(
        shown.column("list").join(" "),
        "databases users peers pools peer_pools free_clients used_clients login_clients \
         free_servers used_servers dns_names dns_zones dns_queries dns_pending"
    );
    let items = shown.column("items");
    assert_eq!(items[..5], ["4", "5", "2", "2", "0"]);
    assert_eq!((items[6], items[7], items[9]), ("3", "1", "1"));
    assert_eq!(items[10..], ["3", "1", "2", "0"]);
}

#[test]
fn config_shows_every_parameter() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let rows = at.show(boss, "show config").rows;
    assert_eq!(rows.len(), PARAMS.len());
    for want in [
        ["admin_users", "boss", "", "yes"],
        ["auth_file", "NULL", "NULL", "yes"],
        ["auth_type", "trust", "md5", "yes"],
        ["listen_port", "6432", "6432", "no"],
        ["unix_socket_mode", "511", "0777", "no"],
        ["verbose", "0", "NULL", "yes"],
    ] {
        assert!(rows.iter().any(|row| *row == want), "{want:?}");
    }
}

#[test]
fn statistics_are_summed_and_averaged() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let bob = at.client("one", "bob");
    let server = at.serve();
    at.core.now = START + Micros::from_secs(1);
    at.feed(bob, "select 1");
    at.core.now = START + Micros::from_secs(3);
    at.say(server, b'C', b"SELECT 1\0");
    at.ready(server, b'I');
    let stats = at.show(boss, "show stats");
    assert_eq!(stats.column("database"), ["one", "pgbouncer"]);
    for (column, want) in [
        ("total_server_assignment_count", ["1", "0"]),
        ("total_xact_count", ["1", "1"]),
        ("total_query_count", ["1", "1"]),
        ("total_received", ["14", "0"]),
        ("total_query_time", ["2000000", "0"]),
        ("total_client_login_count", ["1", "1"]),
        ("avg_query_count", ["0", "0"]),
        ("avg_recv", ["3", "0"]),
        ("avg_query_time", ["2000000", "0"]),
    ] {
        assert_eq!(stats.column(column), want, "{column}");
    }
    let totals = at.show(boss, "show stats_totals");
    let averages = at.show(boss, "show stats_averages");
    for (row, all) in stats.rows.iter().enumerate() {
        assert_eq!(totals.rows[row][1..], all[1..13]);
        assert_eq!(averages.rows[row][1..], all[13..]);
    }
    let all = at.show(boss, "show totals");
    let rows: Vec<String> = all.rows.iter().map(|row| row.join("=")).collect();
    assert_eq!(rows.len(), 24);
    let names = "server_assignment_count xact_count query_count client_bytes server_bytes \
                 xact_time query_time wait_time ps_client_parse_count ps_server_parse_count \
                 ps_bind_count client_login_count";
    let total = names.split(' ').map(|name| format!("total_{name}"));
    let average = names.split(' ').map(|name| format!("avg_{name}"));
    let want: Vec<String> = total.chain(average).collect();
    assert_eq!(all.column("name"), want);
    assert!(rows.contains(&"total_query_count=2".into()), "{rows:?}");
    assert!(rows.contains(&"total_client_bytes=14".into()), "{rows:?}");
}

/// A name that the resolver knows.
fn host(name: &str, addrs: &[&str], until: u64, pending: bool) -> Host {
    let addrs = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
    Host { name: name.into(), addrs, until: Micros::from_secs(until), pending }
}

#[test]
fn names_show_addresses_and_seconds_to_live() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let now = START.secs();
    at.process.hosts = vec![
        host("a.test", &["10.0.0.1", "::1"], now + 15, false),
        host("expired", &["10.0.0.2"], now - 1, false),
        host("failed", &[], now + 3, false),
        host("pending", &["10.0.0.3"], now + 9, true),
    ];
    at.process.zones = vec![
        Zone { name: "Alpha".into(), serial: u64::MAX, hosts: 2 },
        Zone { name: "test".into(), serial: 0, hosts: 1 },
    ];
    at.core.now = START + Micros(1);
    let rows: Vec<String> =
        at.show(boss, "show dns_hosts").rows.iter().map(|row| row.join("|")).collect();
    assert_eq!(
        rows,
        ["a.test|14|10.0.0.1:0,[::1]:0", "expired|0|10.0.0.2:0", "failed|2|", "pending|0|"]
    );
    let zones = at.show(boss, "show dns_zones").rows;
    assert_eq!(zones, [["Alpha", "18446744073709551615", "2"], ["test", "0", "1"]]);
}

#[test]
fn peers_show_their_values_or_the_defaults() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.tag(boss, "set default_pool_size=30");
    let peers = at.show(boss, "show peers").rows;
    assert_eq!(peers, [["2", "/tmp", "6432", "30"], ["10", "a.test", "7000", "0"]]);
    assert_eq!(at.show(boss, "show peer_pools").rows.len(), 0);
}

#[test]
fn memory_is_counted_by_kind_of_object() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let bob = at.client("one", "bob");
    at.serve();
    at.feed(bob, "select 1");
    let shown = at.show(boss, "show mem");
    assert_eq!(
        shown.column("name").join(" "),
        "user_cache credentials_cache db_cache peer_cache peer_pool_cache pool_cache \
         outstanding_request_cache server_cache client_cache iobuf_cache var_list_cache \
         server_prepared_statement_cache"
    );
    assert_eq!(shown.column("used").join(" "), "5 5 4 2 0 2 1 1 2 2 1 0");
    assert_eq!(shown.rows[9], ["iobuf_cache", "4096", "2", "3", "20480"]);
    let number = |cell: &String| cell.parse::<usize>().unwrap();
    for row in &shown.rows {
        let [size, used, free, total] = [1, 2, 3, 4].map(|at| number(&row[at]));
        assert_eq!(total, size * (used + free), "{row:?}");
        let exists = &*row[0] != "peer_pool_cache";
        assert_eq!(size > 0, exists, "{row:?}");
    }
    let nobody = Fixture::new().core.memory();
    assert!(nobody.replies.size > 0 && nobody.replies.used == 0);
    let shown_size = |name: &str| number(&shown.rows.iter().find(|row| row[0] == name).unwrap()[1]);
    assert_eq!(shown_size("client_cache"), size_of::<(u32, Client)>() + 100);
    let user = shown_size("user_cache") + shown_size("credentials_cache");
    assert_eq!(user, size_of::<(u32, User)>());
}
