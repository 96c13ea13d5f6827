//! Assignment and release of servers: sizes, modes, dirty and dead servers (pooling 2 and 3).

use std::collections::BTreeSet;

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{fatal, last_error, query, tags};

const PID: &str = "select pg_backend_pid()";

fn in_mode(mode: &str, more: &str) -> (Pooler, String) {
    let pooler = Pooler::start(&Setup::trust(&format!("pool_mode = {mode}\n{more}")));
    (pooler, postgres().new_database())
}

#[test]
fn thirty_clients_share_the_servers_of_the_pool() {
    let (pooler, database) = in_mode("transaction", "default_pool_size = 3\n");
    let counted = format!("select count(*) from pg_stat_activity where datname = '{database}'");
    let mut seen = BTreeSet::new();
    let mut clients: Vec<Raw> = (0..30).map(|_| pooler.client(&database)).collect();
    for client in &mut clients {
        client.send(&query(&format!("select pg_sleep(0.02); {counted}; {PID}")));
    }
    let mut most = 0;
    for client in &mut clients {
        let answer = client.until(b'Z');
        assert_eq!(tags(&answer), "TDCTDCTDCZ");
        let cell = |n: usize| answer[n].cells()[0].clone().unwrap();
        most = most.max(cell(4).parse().unwrap());
        seen.insert(cell(7));
    }
    assert_eq!(most, 3, "the pool is used up to its size, and never above");
    assert_eq!(seen.len(), 3, "servers are shared: {seen:?}");
    assert_eq!(pooler.pool(&database, "sv_idle"), 3);
    assert_eq!(pooler.pool(&database, "cl_active"), 30);
}

#[test]
fn server_follows_the_transaction_in_transaction_mode() {
    let (pooler, database) = in_mode("transaction", "default_pool_size = 1\n");
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&database));
    let pid = one.value(PID);
    assert_eq!(two.value(PID), pid, "one server serves both");
    assert_eq!(tags(&one.query("begin")), "CZ");
    two.send(&query(PID));
    wait_until("the other client waits", || pooler.pool(&database, "cl_waiting") == 1);
    assert_eq!(one.value(PID), pid, "the transaction keeps its server");
    assert_eq!(tags(&one.query("commit")), "CZ");
    assert_eq!(two.until(b'Z')[1].cells()[0].as_deref(), Some(pid.as_str()));
}

#[test]
fn server_stays_with_its_client_in_session_mode() {
    let (pooler, database) = in_mode("session", "default_pool_size = 1\n");
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&database));
    let pid = one.value(PID);
    two.send(&query(PID));
    wait_until("the other client waits", || pooler.pool(&database, "cl_waiting") == 1);
    assert_eq!(one.value("select 1"), "1", "no release between queries");
    one.bye();
    assert_eq!(two.until(b'Z')[1].cells()[0].as_deref(), Some(pid.as_str()));
}

#[test]
fn waiting_clients_are_served_in_order() {
    let (pooler, database) = in_mode("transaction", "default_pool_size = 1\n");
    let mut holder = pooler.client(&database);
    holder.query("create sequence turn");
    holder.query("begin");
    let mut clients: Vec<Raw> = (0..5).map(|_| pooler.client(&database)).collect();
    for (n, client) in (1..).zip(&mut clients) {
        client.send(&query("select nextval('turn')"));
        wait_until("it waits", || pooler.pool(&database, "cl_waiting") == n);
    }
    holder.query("commit");
    for (n, client) in (1..).zip(&mut clients) {
        let turn = client.until(b'Z')[1].cells()[0].clone().unwrap();
        assert_eq!(turn, n.to_string());
    }
}

#[test]
fn reset_query_cleans_the_server_between_sessions() {
    let (pooler, database) = in_mode("session", "default_pool_size = 1\n");
    let mut one = pooler.client(&database);
    let pid = one.value(PID);
    one.query("set work_mem = '77MB'; create temp table left_over (n int); prepare p as select 1");
    assert_eq!(one.value("show work_mem"), "77MB");
    one.bye();
    let mut two = pooler.client(&database);
    assert_eq!(two.value(PID), pid, "the server is used again");
    assert_ne!(two.value("show work_mem"), "77MB");
    assert_eq!(two.value("select count(*) from pg_prepared_statements"), "0");
    assert_eq!(two.value("select to_regclass('pg_temp.left_over')"), "NULL");
}

#[test]
fn reset_query_is_the_configured_one() {
    let (pooler, database) =
        in_mode("session", "default_pool_size = 1\nserver_reset_query = set work_mem = '55MB'\n");
    let mut one = pooler.client(&database);
    let pid = one.value(PID);
    one.query("set maintenance_work_mem = '66MB'");
    one.bye();
    let mut two = pooler.client(&database);
    assert_eq!(two.value(PID), pid);
    assert_eq!(two.value("show work_mem"), "55MB");
    assert_eq!(two.value("show maintenance_work_mem"), "66MB", "no DISCARD ALL");
}

#[test]
fn reset_query_does_not_run_in_transaction_mode_unless_always() {
    for (always, expected) in [("0", "77MB"), ("1", "4MB")] {
        let (pooler, database) = in_mode(
            "transaction",
            &format!("default_pool_size = 1\nserver_reset_query_always = {always}\n"),
        );
        let mut one = pooler.client(&database);
        one.query("set work_mem = '77MB'");
        assert_eq!(one.value("show work_mem"), expected, "always = {always}");
    }
}

/// The client vanishes; its server must be closed, and the next client gets another one.
fn vanishing_client(mode: &str, last_words: &str, reason: &str) {
    let (mut pooler, database) = in_mode(mode, "default_pool_size = 1\n");
    let mut one = pooler.client(&database);
    let pid = one.value(PID);
    one.query("create table kept (n int)");
    one.send(&query(last_words));
    one.recv().unwrap();
    drop(one);
    pooler.wait_log(reason);
    let mut two = pooler.client(&database);
    assert_ne!(two.value(PID), pid, "a dirty server was used again");
    assert_eq!(two.value("select count(*) from kept"), "0", "the transaction was not rolled back");
    assert_eq!(two.value("select 1 where pg_current_xact_id_if_assigned() is null"), "1");
    drop(two);
    pooler.assert_serves(&database);
}

#[test]
fn client_lost_in_transaction_leaves_no_dirty_server() {
    for mode in ["transaction", "session"] {
        vanishing_client(
            mode,
            "begin; insert into kept values (1)",
            "closing because: client disconnect while server was not ready",
        );
    }
}

#[test]
fn client_lost_in_mid_result_leaves_no_dirty_server() {
    let rows = "select repeat('x', 1000) from generate_series(1, 200000)";
    vanishing_client(
        "transaction",
        rows,
        "closing because: client disconnect while server was not ready",
    );
}

#[test]
fn client_lost_while_idle_returns_its_server() {
    let (pooler, database) = in_mode("session", "default_pool_size = 1\n");
    let mut one = pooler.client(&database);
    let pid = one.value(PID);
    drop(one);
    pooler.wait_log("closing because: client unexpected eof");
    assert_eq!(pooler.client(&database).value(PID), pid);
}

#[test]
fn server_terminated_while_linked_takes_its_client_along() {
    let (mut pooler, database) = in_mode("transaction", "");
    let mut one = pooler.client(&database);
    let pid = one.value(&format!("begin; {PID}"));
    postgres().value("postgres", &format!("select pg_terminate_backend({pid})"));
    let left = one.rest();
    assert_eq!(left[0].field(b'C'), "57P01", "PostgreSQL's own words come first");
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(last_error(&left), fatal("server conn crashed?"));
    pooler.wait_log("closing because: server conn crashed? (age=");
    pooler.wait_log("pooler error: server conn crashed?");
    pooler.assert_serves(&database);
}

#[test]
fn server_terminated_while_idle_disturbs_nobody() {
    let (pooler, database) = in_mode("transaction", "");
    let mut one = pooler.client(&database);
    let pid = one.value(PID);
    postgres().value("postgres", &format!("select pg_terminate_backend({pid})"));
    pooler.wait_log("got packet 'E' from server when not linked");
    // Whatever comes first: the end of the stream, or the janitor.
    wait_until("it is closed", || {
        let reasons = ["server conn crashed?", "SV_IDLE server got dirty"];
        reasons.iter().any(|why| pooler.log().contains(&format!("closing because: {why}")))
    });
    assert_ne!(one.value(PID), pid, "the client goes on with another server");
}

#[test]
fn statement_mode_rejects_transactions() {
    let (mut pooler, database) = in_mode("statement", "");
    let mut one = pooler.client(&database);
    assert_eq!(one.value("select 5"), "5");
    one.send(&query("begin"));
    let left = one.rest();
    assert_eq!(
        last_error(&left),
        fatal("transaction blocks not allowed in statement pooling mode")
    );
    pooler.wait_log("closing because: transaction blocks not allowed in statement pooling mode");
    pooler.assert_serves(&database);
}

#[test]
fn queued_queries_of_one_client_are_all_answered_in_order() {
    let (pooler, database) = in_mode("transaction", "default_pool_size = 2\n");
    let mut one = pooler.client(&database);
    let many: Vec<u8> = (0..500).flat_map(|n| query(&format!("select {n}"))).collect();
    one.send(&many);
    for n in 0..500 {
        let answer = one.until(b'Z');
        assert_eq!(answer[1].cells()[0], Some(n.to_string()));
    }
    wait_until("its server is released", || pooler.pool(&database, "sv_active") == 0);
}
