//! COPY in both directions, failing and aborted (pooling 5.5).

use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt;

use crate::drivers::{connect, in_time};
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{bind, cstr, execute, msg, parse, query, sync, tags};

const MODES: [&str; 2] = ["session", "transaction"];

/// A pool with one server, a client, and an empty table `t (n int)`.
fn table(mode: &str) -> (Pooler, String, Raw) {
    let settings = format!("pool_mode = {mode}\ndefault_pool_size = 1\n");
    let pooler = Pooler::start(&Setup::trust(&settings));
    let database = postgres().new_database();
    let mut client = pooler.client(&database);
    assert_eq!(tags(&client.query("create table t (n int)")), "CZ");
    (pooler, database, client)
}

#[test]
fn copy_in_and_out() {
    for mode in MODES {
        let (pooler, _, mut client) = table(mode);
        client.send(&query("copy t from stdin"));
        assert_eq!(tags(&client.until(b'G')), "G");
        for n in 0..5000 {
            client.send(&msg(b'd', format!("{n}\n").as_bytes()));
        }
        client.send(&msg(b'c', b""));
        let done = client.until(b'Z');
        assert_eq!((tags(&done).as_str(), &done[0].body[..]), ("CZ", &b"COPY 5000\0"[..]));
        assert_eq!(client.value("select sum(n) from t"), "12497500");

        let out = client.query("copy (select n from t order by n) to stdout");
        let lines = out.iter().filter(|m| m.tag == b'd').flat_map(|m| m.body.clone());
        let text = String::from_utf8(lines.collect()).unwrap();
        assert_eq!(text, (0..5000).map(|n| format!("{n}\n")).collect::<String>());
        assert_eq!(tags(&out[5001..]), "cCZ");
        drop(pooler);
    }
}

#[tokio::test]
async fn driver_copies_in() {
    for mode in MODES {
        let (pooler, database, maker) = table(mode);
        maker.bye();
        let client = connect(&pooler.dsn("trusty", &database)).await;
        let work = async {
            let mut sink = pin!(client.copy_in("copy t from stdin").await.unwrap());
            for n in 0..1000 {
                sink.send(Bytes::from(format!("{n}\n"))).await.unwrap();
            }
            assert_eq!(sink.finish().await.unwrap(), 1000);
            client.query_one("select sum(n) from t", &[]).await.unwrap().get::<_, i64>(0)
        };
        assert_eq!(in_time(work).await, 499_500, "{mode}");
    }
}

#[test]
fn psql_copies_both_ways() {
    let (pooler, database, client) = table("transaction");
    client.bye();
    let script =
        "\\copy t from program 'seq 1 2000'\n\\copy (select count(*), sum(n) from t) to stdout\n";
    let file = pooler.folder.join("script.sql");
    crate::rig::scratch::write(&file, script);
    let out = pooler.psql("trusty", &database, "").arg("-f").arg(&file).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "2000\t2001000\n", "{out:?}");
}

#[test]
fn copy_in_with_bad_data_fails_once_and_the_client_goes_on() {
    for mode in MODES {
        let (mut pooler, database, mut client) = table(mode);
        client.send(&query("copy t from stdin"));
        assert_eq!(tags(&client.until(b'G')), "G");
        client.send(&msg(b'd', b"1\nnot a number\n"));
        // The server fails before the end is sent; more data and the end come after its answer.
        let failed = client.until(b'Z');
        assert_eq!(tags(&failed), "EZ");
        assert_eq!(failed[0].field(b'C'), "22P02");
        client.send(&msg(b'd', b"2\n"));
        client.send(&msg(b'c', b""));
        assert_eq!(client.value("select count(*) from t"), "0");
        if mode == "transaction" {
            wait_until("the server is released", || pooler.pool(&database, "sv_active") == 0);
        }
        drop(client);
        pooler.assert_serves(&database);
    }
}

#[test]
fn copy_fail_ends_the_copy() {
    for mode in MODES {
        let (mut pooler, database, mut client) = table(mode);
        client.send(&query("copy t from stdin"));
        client.until(b'G');
        client.send(&msg(b'd', b"1\n"));
        client.send(&msg(b'f', &cstr("changed my mind")));
        let failed = client.until(b'Z');
        assert_eq!(tags(&failed), "EZ");
        assert!(failed[0].field(b'M').contains("changed my mind"), "{failed:?}");
        assert_eq!(client.value("select count(*) from t"), "0");
        drop(client);
        pooler.assert_serves(&database);
    }
}

#[test]
fn sync_inside_extended_copy_is_swallowed() {
    let (pooler, database, mut client) = table("transaction");
    let start = [parse("", "copy t from stdin"), bind("", &[]), execute(), sync()];
    client.send(&start.concat());
    assert_eq!(tags(&client.until(b'G')), "12G");
    client.send(&[msg(b'd', b"1\n2\n"), msg(b'c', b""), sync()].concat());
    let done = client.until(b'Z');
    assert_eq!((tags(&done).as_str(), &done[0].body[..]), ("CZ", &b"COPY 2\0"[..]));
    wait_until("the server is released", || pooler.pool(&database, "sv_active") == 0);
    assert_eq!(client.value("select count(*) from t"), "2");
}

#[test]
fn client_that_vanishes_inside_copy_in_leaves_nothing_behind() {
    for mode in MODES {
        let (mut pooler, database, mut client) = table(mode);
        let pid = client.value("select pg_backend_pid()");
        client.send(&query("copy t from stdin"));
        client.until(b'G');
        client.send(&msg(b'd', b"1\n2\n"));
        drop(client);
        pooler.wait_log("closing because: client disconnect while server was not ready");
        let mut next = pooler.client(&database);
        assert_ne!(next.value("select pg_backend_pid()"), pid);
        assert_eq!(next.value("select count(*) from t"), "0");
        drop(next);
        pooler.assert_serves(&database);
    }
}

#[test]
fn client_that_vanishes_inside_copy_out_leaves_nothing_behind() {
    let (pooler, database, mut client) = table("transaction");
    let pid = client.value("select pg_backend_pid()");
    client.send(&query("copy (select repeat('y', 900) from generate_series(1, 100000)) to stdout"));
    assert_eq!(tags(&client.until(b'd')), "Hd");
    drop(client);
    pooler.wait_log("closing because: client disconnect while server was not ready");
    let mut next = pooler.client(&database);
    assert_ne!(next.value("select pg_backend_pid()"), pid);
    let answer = next.query("copy (values (1), (2)) to stdout");
    assert_eq!(tags(&answer), "HddcCZ");
}
