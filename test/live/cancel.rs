//! Cancellation (pooling 8).

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{query, special, tags, CANCEL_REQUEST};

fn start() -> (Pooler, String) {
    (Pooler::start(&Setup::trust("pool_mode = transaction\n")), postgres().new_database())
}

/// True if PostgreSQL runs a query of `pg_sleep` in this database.
pub(crate) fn sleeping(database: &str) -> bool {
    let sql = format!(
        "select count(*) from pg_stat_activity where datname = '{database}' and state = 'active' and query like '%pg_sleep%'"
    );
    postgres().value("postgres", &sql) == "1"
}

/// Sends a cancel request and waits until its connection is closed without an answer.
fn cancel(mut raw: Raw, request: &[u8]) {
    raw.send(request);
    assert_eq!(raw.rest(), [], "a cancel request is never answered");
}

#[test]
fn cancel_request_stops_the_query_of_its_client() {
    let (pooler, database) = start();
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&database));
    for over_unix in [false, true] {
        one.send(&query("select pg_sleep(60)"));
        wait_until("the query runs", || sleeping(&database));
        assert_eq!(two.value("select 2"), "2");
        let raw = if over_unix { pooler.unix() } else { pooler.tcp() };
        cancel(raw, &one.cancel_request());
        let answer = one.until(b'Z');
        assert_eq!(answer.iter().find(|m| m.tag == b'E').unwrap().field(b'C'), "57014");
        assert_eq!(one.value("select 1"), "1", "the client lives on");
    }
    pooler.wait_log("closing because: successfully sent cancel request");
}

#[tokio::test]
async fn driver_cancels() {
    let (pooler, database) = start();
    let client = crate::drivers::connect(&pooler.dsn("trusty", &database)).await;
    let token = client.cancel_token();
    let seen = database.clone();
    let canceler = tokio::spawn(async move {
        while !sleeping(&seen) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        token.cancel_query(tokio_postgres::NoTls).await.unwrap();
    });
    let asleep = client.simple_query("select pg_sleep(60)");
    let error = crate::drivers::in_time(asleep).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57014");
    canceler.await.unwrap();
}

#[test]
fn cancel_requests_that_hit_nothing_are_closed_silently() {
    let (mut pooler, database) = start();
    let mut one = pooler.client(&database);
    assert_eq!(one.value("select 1"), "1");
    let rows = [
        (special(CANCEL_REQUEST, &[1, 2, 3, 4, 5, 6, 7, 8]), "failed cancel request"),
        (one.cancel_request(), "cancel request for idle client"),
        (special(CANCEL_REQUEST, &[1, 2, 3, 4]), "bad cancel request"),
        (special(CANCEL_REQUEST, &[7; 40]), "bad cancel request"),
    ];
    for (request, reason) in rows {
        cancel(pooler.tcp(), &request);
        pooler.wait_log(&format!("closing because: {reason} (age="));
    }
    assert_eq!(one.value("select 3"), "3");
    pooler.assert_serves(&database);
}

/// The pool is full with one busy server; the cancel needs a connection of its own all the same.
#[test]
fn cancel_works_when_the_pool_is_full() {
    let pooler = Pooler::start(&Setup::trust("pool_mode = transaction\ndefault_pool_size = 1\n"));
    let database = postgres().new_database();
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&database));
    one.send(&query("select pg_sleep(60)"));
    wait_until("the query runs", || sleeping(&database));
    two.send(&query("select 2"));
    wait_until("the other waits", || pooler.pool(&database, "cl_waiting") == 1);
    cancel(pooler.tcp(), &one.cancel_request());
    assert!(tags(&one.until(b'Z')).ends_with("EZ"));
    assert_eq!(tags(&two.until(b'Z')), "TDCZ");
}

#[test]
fn cancel_key_has_no_sign_bit_and_differs_per_client() {
    let (pooler, database) = start();
    let mut keys = std::collections::BTreeSet::new();
    for _ in 0..24 {
        let client = pooler.client(&database);
        assert_eq!(client.key.len(), 8);
        assert!(client.key[0] < 128, "negative pid in {:?}", client.key);
        keys.insert(client.key.clone());
    }
    assert_eq!(keys.len(), 24);
}
