//! Tests of SHOW: columns against the lists of admin 3, values against a core with known contents.

use super::fixture::{Fixture, START};
use crate::base::Micros;
use crate::config::PARAMS;
use crate::core::Addr;

/// `name type` per line, as the tables of admin 3 have them.
const COLUMNS: &[(&str, &str)] = &[
    ("version", "version text"),
    ("state", "key text, value text"),
    (
        "databases",
        "name text, host text, port int4, database text, force_user text, pool_size int4, \
         min_pool_size int4, reserve_pool_size int4, server_lifetime int4, pool_mode text, \
         load_balance_hosts text, max_connections int4, current_connections int4, \
         max_client_connections int4, current_client_connections int4, paused int4, disabled int4",
    ),
    (
        "pools",
        "database text, user text, cl_active int4, cl_waiting int4, cl_active_cancel_req int4, \
         cl_waiting_cancel_req int4, sv_active int4, sv_active_cancel int4, \
         sv_being_canceled int4, sv_idle int4, sv_used int4, sv_tested int4, sv_login int4, \
         maxwait int4, maxwait_us int4, pool_mode text, load_balance_hosts text",
    ),
    ("clients", SOCKETS),
    ("servers", SOCKETS),
    (
        "users",
        "name text, pool_size text, reserve_pool_size text, pool_mode text, \
         max_user_connections int4, current_connections int4, max_user_client_connections int4, \
         current_client_connections int4",
    ),
    ("lists", "list text, items int4"),
    ("config", "key text, value text, default text, changeable text"),
    (
        "stats",
        "database text, total_server_assignment_count num, total_xact_count num, \
         total_query_count num, total_received num, total_sent num, total_xact_time num, \
         total_query_time num, total_wait_time num, total_client_parse_count num, \
         total_server_parse_count num, total_bind_count num, total_client_login_count num, \
         avg_server_assignment_count num, avg_xact_count num, avg_query_count num, avg_recv num, \
         avg_sent num, avg_xact_time num, avg_query_time num, avg_wait_time num, \
         avg_client_parse_count num, avg_server_parse_count num, avg_bind_count num, \
         avg_client_login_count num",
    ),
    (
        "stats_totals",
        "database text, server_assignment_count num, xact_count num, query_count num, \
         bytes_received num, bytes_sent num, xact_time num, query_time num, wait_time num, \
         client_parse_count num, server_parse_count num, bind_count num, client_login_count num",
    ),
    (
        "stats_averages",
        "database text, server_assignment_count num, xact_count num, query_count num, \
         bytes_received num, bytes_sent num, xact_time num, query_time num, wait_time num, \
         avg_client_parse_count num, avg_server_parse_count num, avg_bind_count num, \
         avg_client_login_count num",
    ),
    ("totals", "name text, value num"),
    ("timezone", "timezone text"),
    ("Client_Encoding", "client_encoding text"),
];

const SOCKETS: &str = "type text, user text, database text, replication text, state text, \
    addr text, port int4, local_addr text, local_port int4, connect_time text, request_time text, \
    wait int4, wait_us int4, close_needed int4, ptr text, link text, remote_pid int4, tls text, \
    application_name text, prepared_statements int4, id int4";

#[test]
fn columns_are_those_of_the_contract() {
    let mut at = Fixture::new();
    let watcher = at.console("watcher");
    for (topic, columns) in COLUMNS {
        let want: Vec<String> = columns
            .replace(" text", " 25 -1")
            .replace(" int4", " 23 4")
            .replace(" num", " 1700 -1")
            .split(", ")
            .map(str::to_owned)
            .collect();
        let shown = at.show(watcher, &format!("SHOW {topic}"));
        assert_eq!(shown.columns, want, "{topic}");
        assert!(shown.rows.iter().all(|row| row.len() == want.len()));
        assert_eq!(at.show(watcher, &format!("select {topic};")).columns, want);
    }
}

#[test]
fn small_tables_have_their_rows() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let version = at.show(boss, "show version").rows;
    assert!(version[0][0].starts_with("PgBouncer 1.25.2 (pgturnstile "));
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
fn help_lists_what_there_is() {
    let mut at = Fixture::new();
    let watcher = at.console("watcher");
    at.run(watcher, "show help");
    let reply = at.taken(watcher);
    let want = "SNOTICE C00000 MConsole usage D
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
\tSHOW LISTS|STATE
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
\tWAIT_CLOSE [<db>]";
    assert_eq!(reply[0], ("N".into(), want.into()));
    assert_eq!(reply[1], ("C".into(), "SHOW".into()));
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
    let shown = at.show(boss, "show lists");
    assert_eq!(
        shown.column("list").join(" "),
        "databases users peers pools peer_pools free_clients used_clients login_clients \
         free_servers used_servers dns_names dns_zones dns_queries dns_pending"
    );
    let items = shown.column("items");
    assert_eq!(items[..5], ["4", "5", "0", "2", "0"]);
    assert_eq!((items[6], items[7], items[9]), ("2", "0", "1"));
    assert_eq!(items[10..], ["5", "6", "7", "0"]);
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

#[test]
fn what_a_later_version_shows_is_refused() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    for topic in
        ["PEERS", "PEER_POOLS", "SOCKETS", "ACTIVE_SOCKETS", "MEM", "DNS_HOSTS", "DNS_ZONES", "FDS"]
    {
        let text = at.refusal(boss, &format!("show {topic}"));
        let want = format!("SHOW {topic} is not supported by this version of pgturnstile");
        assert_eq!(text, want);
    }
}
