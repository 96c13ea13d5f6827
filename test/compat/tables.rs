//! SHOW tables: names and types of columns, and the keys of tables that are lists, modulo what was added since (admin 6.1).

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wire::{query, rows, Msg};
use crate::rig::{wait_until, DEADLINE};
use crate::transcript::reference;

/// What a table has that the older program's does not.
struct Added {
    topic: &'static str,
    columns: &'static str,
    /// Values of the first column, if that is a fixed list.
    keys: Option<&'static str>,
}

const fn same(topic: &'static str) -> Added {
    columns(topic, "")
}

const fn columns(topic: &'static str, columns: &'static str) -> Added {
    Added { topic, columns, keys: None }
}

const fn keys(topic: &'static str, keys: &'static str) -> Added {
    Added { topic, columns: "", keys: Some(keys) }
}

const SOCKETS: &str = "replication prepared_statements id";
const COUNTERS: &str =
    "server_assignment_count client_parse_count server_parse_count bind_count client_login_count";
const AVERAGES: &str =
    "server_assignment_count avg_client_parse_count avg_server_parse_count avg_bind_count avg_client_login_count";

const ADDED: &[Added] = &[
    same("VERSION"),
    columns(
        "DATABASES",
        "server_lifetime load_balance_hosts max_client_connections current_client_connections",
    ),
    columns("POOLS", "load_balance_hosts"),
    columns("CLIENTS", SOCKETS),
    columns("SERVERS", SOCKETS),
    columns("SOCKETS", SOCKETS),
    columns("ACTIVE_SOCKETS", SOCKETS),
    columns(
        "USERS",
        "pool_size reserve_pool_size max_user_connections current_connections max_user_client_connections \
         current_client_connections",
    ),
    keys("LISTS", "peers peer_pools"),
    keys(
        "MEM",
        "credentials_cache peer_cache peer_pool_cache outstanding_request_cache var_list_cache \
         server_prepared_statement_cache",
    ),
    same("FDS"),
    same("DNS_HOSTS"),
    same("DNS_ZONES"),
    keys(
        "CONFIG",
        "auth_dbname cancel_wait_timeout peer_id track_extra_parameters max_prepared_statements auth_ident_file \
         max_db_client_connections max_user_client_connections auth_ldap_options client_tls13_ciphers query_wait_notify \
         scram_iterations server_tls13_ciphers transaction_timeout login_notify_message pool_idle_timeout \
         server_tls_sslnegotiation",
    ),
    columns(
        "STATS",
        "total_server_assignment_count total_client_parse_count total_server_parse_count total_bind_count \
         total_client_login_count avg_server_assignment_count avg_client_parse_count avg_server_parse_count avg_bind_count \
         avg_client_login_count",
    ),
    columns("STATS_TOTALS", COUNTERS),
    columns("STATS_AVERAGES", AVERAGES),
    keys(
        "TOTALS",
        "total_server_assignment_count total_ps_client_parse_count total_ps_server_parse_count total_ps_bind_count \
         total_client_login_count avg_server_assignment_count avg_ps_client_parse_count avg_ps_server_parse_count \
         avg_ps_bind_count avg_client_login_count",
    ),
];

/// Columns that have another name now.
const RENAMED: [(&str, &str); 1] = [("reserve_pool", "reserve_pool_size")];

/// The columns of a RowDescription: name, and everything behind it but the table's OID.
fn described(msg: &Msg) -> Vec<(String, Vec<u8>)> {
    assert_eq!(msg.tag, b'T', "{msg:?}");
    let mut rest = &msg.body[2..];
    let mut columns = Vec::new();
    while let Some(end) = rest.iter().position(|b| *b == 0) {
        let (name, tail) = rest.split_at(end + 1);
        columns.push((String::from_utf8_lossy(&name[..end]).into_owned(), tail[4..18].to_vec()));
        rest = &tail[18..];
    }
    columns
}

fn first_column(answer: &[Msg]) -> Vec<String> {
    rows(answer).into_iter().map(|row| row[0].clone().unwrap()).collect()
}

/// Takes every name of a list out of these; each must be there.
fn without<T>(topic: &str, all: Vec<T>, added: &str, name: impl Fn(&T) -> &str) -> Vec<T> {
    for wanted in added.split_whitespace() {
        assert!(all.iter().any(|item| name(item) == wanted), "SHOW {topic} has no {wanted}");
    }
    all.into_iter().filter(|item| !added.split_whitespace().any(|a| a == name(item))).collect()
}

fn setup() -> Setup {
    let database = postgres().new_database();
    let at = format!("port={} dbname={database}", postgres().port);
    Setup {
        databases: format!("shop = host=127.0.0.1 {at}\nnamed = host=localhost {at}\n"),
        settings: "pool_mode = transaction\ndefault_pool_size = 1\n".to_owned(),
        users: "\"trusty\" \"\"\n".to_owned(),
    }
}

#[test]
fn tables_differ_by_what_was_added_only() {
    let setup = setup();
    let (old, new) = (Pooler::start_program(&reference(), &setup), Pooler::start(&setup));
    for pooler in [&old, &new] {
        assert_eq!(pooler.client("shop").value("select 1"), "1");
    }
    for Added { topic, columns, keys } in ADDED {
        let show = |pooler: &Pooler| pooler.command(&format!("SHOW {topic}"));
        let (before, now) = (show(&old), show(&new));
        let mut want = described(&before[0]);
        for (name, _) in &mut want {
            if let Some((_, renamed)) = RENAMED.iter().find(|(old, _)| old == name) {
                (*renamed).clone_into(name);
            }
        }
        let have = without(topic, described(&now[0]), columns, |(name, _)| name);
        assert_eq!(want, have, "SHOW {topic} (left: reference)");
        if let Some(keys) = keys {
            let have = without(topic, first_column(&now), keys, |name| name);
            assert_eq!(first_column(&before), have, "SHOW {topic} (left: reference)");
        }
    }
}

/// What SHOW SOCKETS or ACTIVE_SOCKETS says of each connection: state and buffer.
fn buffers(console: &mut Raw, topic: &str) -> Vec<String> {
    let answer = console.query(&format!("SHOW {topic}"));
    let names: Vec<String> = described(&answer[0]).into_iter().map(|(name, _)| name).collect();
    let wanted =
        "database user state recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail";
    let row = |row: &Vec<Option<String>>| {
        let cell = |name: &str| {
            let at = names.iter().position(|n| n == name).unwrap();
            format!("{} ", row[at].as_deref().unwrap_or("NULL"))
        };
        wanted.split(' ').map(cell).collect::<String>()
    };
    rows(&answer).iter().map(row).collect()
}

/// Clients in all states; what is said of them once it is `expected`, or at last.
fn scene(pooler: &Pooler, expected: Option<&[Vec<String>]>) -> Vec<Vec<String>> {
    let mut console = pooler.console();
    let mut half = pooler.client("shop");
    half.send(&query("select 12345")[..9]);
    let mut waiter = pooler.client("shop");
    wait_until("the first one has the server", || pooler.pool("shop", "sv_active") == 1);
    waiter.send(&[query("select 1"), query("select 22")].concat());
    let mut begun = pooler.client("shop");
    begun.send(&query("select 1")[..3]);
    let mut stranger = pooler.tcp();
    stranger.send(&[0, 0, 0]);
    let _idle = pooler.client("named");
    let end = std::time::Instant::now() + DEADLINE;
    loop {
        let seen = ["SOCKETS", "ACTIVE_SOCKETS"].map(|topic| buffers(&mut console, topic)).to_vec();
        let logging_in = seen[0].iter().any(|row| row.contains("cl_login"));
        let waits = seen[0].iter().any(|row| row.contains("cl_waiting 29"));
        let three = seen[0].iter().filter(|row| row.contains(" 3 0 0 0 0 3 0")).count() == 2;
        let done = expected.map_or(logging_in && waits && three, |expected| expected == seen);
        if done || std::time::Instant::now() > end {
            return seen;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn buffers_mean_the_same() {
    let setup = setup();
    let want = scene(&Pooler::start_program(&reference(), &setup), None);
    assert_eq!(want[1].len(), 5, "{want:#?}");
    let have = scene(&Pooler::start(&setup), Some(&want));
    assert_eq!(want, have, "left: reference");
}
