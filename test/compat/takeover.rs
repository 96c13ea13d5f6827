//! Online restart in both directions: PgBouncer hands over to us, we hand over to PgBouncer, and
//! clients notice nothing (takeover 1 to 7).

use std::path::PathBuf;
use std::process::Stdio;

use crate::rig::pooler::{binary, Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::wait_until;
use crate::rig::wire::{last_error, query, tags, Msg};
use crate::transcript::reference;

fn setup(mode: &str) -> Setup {
    Setup::trust(&format!("pool_mode = {mode}\ndefault_pool_size = 4\nmax_client_conn = 100\n"))
}

/// Who takes over in each turn: PgBouncer has begun.
fn next(turn: usize) -> PathBuf {
    match turn % 2 {
        0 => binary().clone(),
        _ => reference(),
    }
}

/// pgbench with 16 clients, while the poolers take turns, `turns` times.
fn relay_race(mode: &str, script: &[&str], turns: usize) {
    let server = postgres();
    let database = server.new_bench_database();
    let mut setup = setup(mode);
    if mode == "session" {
        setup.settings += "default_pool_size = 16\n";
    }
    let mut pooler = Pooler::start_program(&reference(), &setup);
    let mut tool = server.tool("pgbench");
    tool.args(["-n", "-c", "16", "-T", "6", "-U", "trusty", "-h", "127.0.0.1"]).args(script);
    tool.args(["-p", &pooler.port.to_string(), &database]);
    let run = tool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let active = || pooler.show("CLIENTS", "state", ("database", &database)).len() == 16;
    wait_until("all are there", active);
    for turn in 0..turns {
        pooler.replace(&next(turn));
        let queries = || pooler.show("STATS", "total_query_count", ("database", &database));
        let before = queries();
        wait_until("queries run", || queries() != before);
    }
    let done = run.wait_with_output().unwrap();
    let [out, errors] = [done.stdout, done.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(done.status.success(), "{out}\n{errors}\n{}", pooler.log());
    assert!(out.contains("number of failed transactions: 0 (0.000%)"), "{out}\n{errors}");
}

#[test]
fn pgbench_in_transaction_mode_goes_on_through_four_restarts() {
    relay_race("transaction", &["-S"], 4);
}

#[test]
fn pgbench_in_session_mode_goes_on_through_four_restarts() {
    relay_race("session", &["-S"], 4);
}

fn cells(msgs: &[Msg]) -> Vec<Option<String>> {
    msgs.iter().find(|msg| msg.tag == b'D').map_or_else(Vec::new, Msg::cells)
}

/// Clients in all kinds of situations, and what they see of one restart.
fn scene(from: &PathBuf, to: &PathBuf) {
    let mut set = setup("session");
    let server = postgres();
    let (session, shared) = (server.new_database(), server.new_database());
    let place = format!("host=127.0.0.1 port={}", server.port);
    set.databases = format!("{session} = {place}\n{shared} = {place} pool_mode=transaction\n");
    let mut pooler = Pooler::start_program(from, &set);
    // A session with something of its own.
    let mut own = pooler.client(&session);
    assert_eq!(tags(&own.query("create temp table t as select 7 as x")), "CZ");
    // A transaction that is open, one that runs, and a client with nothing to do.
    let mut open = pooler.holder(&shared);
    let mut asleep = pooler.client(&shared);
    asleep.send(&query("select 'slept' from pg_sleep(1.5)"));
    let mut idle = pooler.client(&shared);
    assert_eq!(idle.value("select 1"), "1");
    assert_eq!(tags(&idle.query("set timezone = 'Europe/Rome'")), "CSZ");
    // Data on their way in.
    let mut copying = pooler.client(&session);
    assert_eq!(tags(&copying.query("create temp table c (x int)")), "CZ");
    copying.send(&query("copy c from stdin"));
    copying.until(b'G');
    copying.send(b"d\0\0\0\x061\n");
    let mut endless = pooler.client(&session);
    endless.send(&query("select pg_sleep(100)"));
    wait_until("it sleeps", || running(&session, "pg_sleep(100)"));

    pooler.replace(to);

    assert_eq!(own.value("select x from t"), "7");
    assert_eq!(open.value("select txid_current_if_assigned() is null"), "t");
    assert_eq!(tags(&open.query("commit")), "CZ");
    assert_eq!(cells(&asleep.until(b'Z')), [Some("slept".to_owned())]);
    assert_eq!(idle.value("show timezone"), "Europe/Rome");
    copying.send(b"d\0\0\0\x062\n");
    copying.send(b"c\0\0\0\x04");
    assert_eq!(tags(&copying.until(b'Z')), "CZ");
    assert_eq!(copying.value("select sum(x) from c"), "3");
    // The keys that clients were given still work.
    let mut canceler = pooler.tcp();
    canceler.send(&endless.cancel_request());
    assert_eq!(canceler.rest().len(), 0);
    assert_eq!(last_error(&endless.until(b'E')).1, "57014");
    endless.until(b'Z');
    // All of them go on being served, and new ones are.
    for (client, database) in
        [(&mut own, &session), (&mut open, &shared), (&mut asleep, &shared), (&mut idle, &shared)]
    {
        assert_eq!(client.value("select current_database()"), *database);
    }
    let mut new = pooler.client(&shared);
    assert_eq!(new.value("select 5"), "5");
    assert!(pooler.unix().login("trusty", &shared, "").is_ok());
}

fn running(database: &str, text: &str) -> bool {
    let sql = format!(
        "select count(*) from pg_stat_activity where datname = '{database}' and state = 'active' \
         and query like '%{text}%'"
    );
    postgres().value("postgres", &sql) == "1"
}

#[test]
fn clients_notice_nothing_when_we_take_over_from_pgbouncer() {
    scene(&reference(), binary());
}

#[test]
fn clients_notice_nothing_when_pgbouncer_takes_over_from_us() {
    scene(binary(), &reference());
}

#[test]
fn clients_notice_nothing_when_we_take_over_from_ourselves() {
    scene(binary(), binary());
}

#[test]
fn a_pgbouncer_that_cannot_finish_alone_is_left_as_it_was() {
    let database = postgres().new_database();
    let mut pooler = Pooler::start_program(&reference(), &setup("transaction"));
    let mut client = pooler.holder(&database);
    assert_eq!(pooler.fail_to_start(&["-R", "--adopt=soft"]), Some(1));
    pooler.wait_log("which does not know SHUTDOWN WAIT_FOR_CLIENTS (PgBouncer does since 1.23)");
    assert_eq!(client.value("select 1"), "1");
    pooler.assert_serves(&database);
    assert!(pooler.unix().login("trusty", &database, "").is_ok());
    let left = std::fs::read_dir(&pooler.folder).unwrap();
    assert!(left.flatten().all(|entry| !format!("{entry:?}").contains(".soft-")));
}
