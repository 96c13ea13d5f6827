//! What drivers need beyond the reference (issue 6.1): unnamed statements that live longer than a
//! transaction, and DEALLOCATE of a statement of the protocol.

use std::process::Command;

use crate::rig::pooler::{in_transactions, Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wire::{bind, close, describe, execute, fatal, last_error, parse, query, rows};
use crate::rig::wire::{sync, tags, Msg};

fn scene<const N: usize>(settings: &str) -> (Pooler, [Raw; N]) {
    let (pooler, database) = in_transactions(&format!("default_pool_size = 1\n{settings}"));
    let clients = std::array::from_fn(|_| pooler.client(&database));
    (pooler, clients)
}

fn ask(client: &mut Raw, packets: &[Vec<u8>]) -> Vec<Msg> {
    client.send(&packets.concat());
    client.until(b'Z')
}

fn value(client: &mut Raw, name: &str) -> String {
    let answer = ask(client, &[bind(name, &[]), execute(), sync()]);
    rows(&answer).first().and_then(|row| row[0].clone()).unwrap_or_default()
}

fn code(answer: &[Msg]) -> String {
    answer.iter().find(|msg| msg.tag == b'E').map_or_else(String::new, |msg| msg.field(b'C'))
}

fn status(answer: &[Msg]) -> u8 {
    answer.last().unwrap().body[0]
}

/// As lib/pq and pg8000 do: Parse and Describe in one round, Bind in the next.
#[test]
fn unnamed_statements_find_their_client_again() {
    let (_pooler, [mut a, mut b, mut c]) = scene("");
    for round in 0..3 {
        let texts = [format!("select 'a{round}'"), format!("select 'b{round}'")];
        for (client, sql) in [&mut a, &mut b].into_iter().zip(&texts) {
            let answer = ask(client, &[parse("", sql), describe(b'S', ""), sync()]);
            assert_eq!(tags(&answer), "1tTZ");
        }
        for _ in 0..2 {
            assert_eq!(value(&mut a, ""), format!("a{round}"));
            assert_eq!(value(&mut b, ""), format!("b{round}"));
            assert_eq!(c.value("select 'c'"), "c", "which ends the one of the server");
        }
        assert_eq!(tags(&ask(&mut a, &[describe(b'S', ""), sync()])), "tTZ");
    }
}

#[test]
fn nobody_runs_the_unnamed_statement_of_another() {
    let (_pooler, [mut a, mut b]) = scene("");
    let unused = |client: &mut Raw| {
        let answer = ask(client, &[bind("", &[]), execute(), sync()]);
        (tags(&answer), code(&answer))
    };
    let none = ("EZ".to_owned(), "26000".to_owned());
    assert_eq!(unused(&mut b), none);
    assert_eq!(tags(&ask(&mut a, &[parse("", "select 'a'"), sync()])), "1Z");
    assert_eq!(unused(&mut b), none);
    assert_eq!(code(&ask(&mut b, &[describe(b'S', ""), sync()])), "26000");
    assert_eq!(value(&mut a, ""), "a");
    // What ends it for its own client.
    assert_eq!(tags(&a.query("select 1")), "TDCZ");
    assert_eq!(unused(&mut a), none);
    assert_eq!(tags(&ask(&mut a, &[parse("", "select 'a'"), sync()])), "1Z");
    assert_eq!(tags(&ask(&mut a, &[close(b'S', ""), sync()])), "3Z");
    assert_eq!(unused(&mut a), none);
    assert_eq!(code(&ask(&mut a, &[parse("", "nonsense"), sync()])), "42601");
    assert_eq!(unused(&mut a), none);
    // An error that comes first leaves the server with what it had: another client's.
    assert_eq!(tags(&ask(&mut b, &[parse("", "select 'b'"), sync()])), "1Z");
    let bad = [parse("x", "nonsense"), parse("", "select 'a'"), sync()].concat();
    a.send(&[bad, bind("", &[]), execute(), sync()].concat());
    let (first, second) = (a.until(b'Z'), a.until(b'Z'));
    assert_eq!(code(&first), "42601");
    let shown = rows(&second);
    assert!(shown.is_empty() || shown == [[Some("a".into())]], "{second:?}");
}

/// Statements are looked after in transaction mode and not in session mode.
#[test]
fn unnamed_statements_stay_their_clients_when_reload_changes_the_mode() {
    let mut setup = Setup::trust("pool_mode = transaction\ndefault_pool_size = 1\n");
    let (pooler, database) = (Pooler::start(&setup), postgres().new_database());
    let [mut a, mut b, mut c] = [(); 3].map(|()| pooler.client(&database));
    for (client, sql) in [(&mut a, "select 'a'"), (&mut b, "select 'b'")] {
        assert_eq!(tags(&ask(client, &[parse("", sql), sync()])), "1Z");
    }
    setup.settings = "pool_mode = session\ndefault_pool_size = 1\n".to_owned();
    pooler.rewrite(&setup);
    pooler.command("RELOAD");
    // The server keeps it behind its reset.
    assert_eq!(tags(&ask(&mut c, &[parse("", "select 'c'"), sync()])), "1Z");
    drop(c);
    let answer = ask(&mut a, &[describe(b'S', ""), bind("", &[]), execute(), sync()]);
    assert_eq!(tags(&answer), "tT2DCZ");
    assert_eq!(rows(&answer), [[Some("a".into())]]);
    drop(a);
    assert_eq!(value(&mut b, ""), "b");
    assert_eq!(tags(&ask(&mut b, &[parse("", "select 'new'"), sync()])), "1Z");
    assert_eq!(value(&mut b, ""), "new");
}

#[test]
fn deallocate_means_the_clients_own_name() {
    let (_pooler, [mut a, mut b]) = scene("");
    for (client, text) in [(&mut a, "select 'a'"), (&mut b, "select 'a'")] {
        for name in ["s", "Big \"one\""] {
            assert_eq!(tags(&ask(client, &[parse(name, text), sync()])), "1Z");
        }
    }
    for sql in ["DEALLOCATE S", "deallocate prepare \"Big \"\"one\"\"\" ;"] {
        let answer = a.query(sql);
        assert_eq!(tags(&answer), "CZ");
        assert_eq!(answer[0].body, b"DEALLOCATE\0");
    }
    assert_eq!(value(&mut b, "s"), "a");
    assert_eq!(code(&a.query("deallocate s")), "26000", "PostgreSQL's own answer");
    assert_eq!(tags(&ask(&mut a, &[parse("s", "select 'again'"), sync()])), "1Z");
    assert_eq!(value(&mut a, "s"), "again");
    // Statements of SQL are PostgreSQL's business.
    let made = a.query("begin; prepare mine as select 1; deallocate mine; commit");
    assert_eq!(tags(&made), "CCCCZ");
    assert_eq!(tags(&a.query("begin")), "CZ");
    assert_eq!(tags(&a.query("prepare mine as select 1")), "CZ");
    assert_eq!(tags(&a.query("deallocate mine")), "CZ");
    // Within a transaction, pipelined, and in a failed one.
    a.send(
        &[query("deallocate s"), parse("s", "select 'new'"), bind("s", &[]), execute(), sync()]
            .concat(),
    );
    let (first, second) = (a.until(b'Z'), a.until(b'Z'));
    assert_eq!((tags(&first).as_str(), status(&first)), ("CZ", b'T'));
    assert_eq!(rows(&second), [[Some("new".into())]]);
    assert_eq!(tags(&a.query("nonsense")), "EZ");
    let refused = a.query("deallocate s");
    assert_eq!((code(&refused).as_str(), status(&refused)), ("25P02", b'E'));
    assert_eq!(tags(&a.query("rollback")), "CZ");
    assert_eq!(value(&mut a, "s"), "new", "it was not deallocated");
    let answer = a.query("deallocate s");
    assert_eq!((tags(&answer).as_str(), status(&answer)), ("CZ", b'I'));
    a.send(&bind("s", &[]));
    assert_eq!(last_error(&a.rest()), fatal("prepared statement did not exist"));
}

/// Runs a driver's script against a pool of two servers and three statements each.
fn driver(program: &[&str], name: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/target/drivers/node_modules");
    let (pooler, database) = in_transactions(
        "default_pool_size = 2\nmax_prepared_statements = 3\n\
         ignore_startup_parameters = extra_float_digits\n",
    );
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "60"]).args(program);
    command.arg(format!("{}/test/live/drivers/{name}", env!("CARGO_MANIFEST_DIR")));
    command.env("NODE_PATH", format!("{path}:/usr/share/nodejs"));
    let out = command.args([&pooler.port.to_string(), &database]).output().unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}; `make deps` installs drivers: {errors}");
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(text.trim(), "done", "{errors}");
    let log = pooler.log();
    assert!(!log.contains("pooler error"), "{log}");
}

#[test]
fn psycopg_prepares() {
    driver(&["/usr/bin/python3"], "prepared_psycopg.py");
}

#[test]
fn asyncpg_prepares() {
    driver(&["/usr/bin/python3"], "prepared_asyncpg.py");
}

#[test]
fn jdbc_prepares() {
    driver(&["java", "-cp", "/usr/share/java/postgresql.jar"], "Prepared.java");
}

#[test]
fn node_postgres_prepares() {
    driver(&["node"], "prepared.js");
}
