//! Prepared statements of the protocol in transaction mode (pooling 7), packet by packet.

use crate::rig::pooler::{in_transactions, Pooler};
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{bind, close, describe, execute, fatal, flush, last_error, msg, parse};
use crate::rig::wire::{query, rows, sync, tags, Msg};

/// A pool with one server, a database and so many clients.
fn scene<const N: usize>(settings: &str) -> (Pooler, String, [Raw; N]) {
    let (pooler, database) = in_transactions(&format!("default_pool_size = 1\n{settings}"));
    let clients = std::array::from_fn(|_| pooler.client(&database));
    (pooler, database, clients)
}

/// Sends these packets, reads up to ReadyForQuery.
fn ask(client: &mut Raw, packets: &[Vec<u8>]) -> Vec<Msg> {
    client.send(&packets.concat());
    client.until(b'Z')
}

fn cell(answer: &[Msg]) -> String {
    rows(answer).first().and_then(|row| row[0].clone()).unwrap_or_default()
}

/// Binds, executes, syncs; the first value.
fn value(client: &mut Raw, name: &str, values: &[&str]) -> String {
    cell(&ask(client, &[bind(name, values), execute(), sync()]))
}

/// The statements that PostgreSQL has in the server of the pool.
fn on_server(client: &mut Raw) -> Vec<String> {
    let answer =
        client.query("select name || '=' || statement from pg_prepared_statements order by 1");
    rows(&answer).into_iter().map(|row| row[0].clone().unwrap()).collect()
}

fn error(answer: &[Msg]) -> (String, String) {
    let error = answer.iter().find(|msg| msg.tag == b'E').expect("an error");
    (error.field(b'C'), error.field(b'M'))
}

/// What the clients and servers of a database have, as the console shows it.
fn shown(pooler: &Pooler, database: &str, topic: &str) -> Vec<String> {
    let answer = pooler.console().query(&format!("SHOW {topic}"));
    let names = answer[0].cells();
    let at = |name: &str| names.iter().position(|n| n.as_deref() == Some(name)).unwrap();
    let (of, count) = (at("database"), at("prepared_statements"));
    let own = rows(&answer).into_iter().filter(|row| row[of].as_deref() == Some(database));
    own.map(|row| row[count].clone().unwrap()).collect()
}

/// Sums of the statistics: Parse by clients, Parse to servers, Bind.
fn counted(pooler: &Pooler, database: &str) -> [String; 3] {
    let answer = pooler.console().query("SHOW STATS");
    let names = answer[0].cells();
    let row = rows(&answer).into_iter().find(|row| row[0].as_deref() == Some(database)).unwrap();
    ["total_client_parse_count", "total_server_parse_count", "total_bind_count"].map(|name| {
        let at = names.iter().position(|n| n.as_deref() == Some(name)).unwrap();
        row[at].clone().unwrap()
    })
}

#[test]
fn same_name_with_other_text_and_same_text_with_other_name() {
    let (pooler, database, [mut a, mut b]) = scene("");
    let parsed = ask(&mut a, &[parse("s", "select 'a' || $1"), describe(b'S', "s"), sync()]);
    assert_eq!(tags(&parsed), "1tTZ");
    assert_eq!(tags(&ask(&mut b, &[parse("s", "select 'b' || $1"), sync()])), "1Z");
    assert_eq!(tags(&ask(&mut b, &[parse("t", "select 'a' || $1"), sync()])), "1Z", "a fake one");
    for _ in 0..3 {
        assert_eq!(value(&mut a, "s", &["1"]), "a1");
        assert_eq!(value(&mut b, "s", &["2"]), "b2");
        assert_eq!(value(&mut b, "t", &["3"]), "a3");
    }
    let all = on_server(&mut a);
    assert_eq!(all, ["PGBOUNCER_1=select 'a' || $1", "PGBOUNCER_2=select 'b' || $1"]);
    assert_eq!(shown(&pooler, &database, "SERVERS"), ["2"]);
    let mut of_clients = shown(&pooler, &database, "CLIENTS");
    of_clients.sort();
    assert_eq!(of_clients, ["1", "2"]);
    assert_eq!(counted(&pooler, &database), ["3", "2", "9"]);
}

#[test]
fn a_new_server_is_given_what_it_lacks() {
    let (_pooler, database) = in_transactions("default_pool_size = 2\n");
    let mut holder = _pooler.client(&database);
    let mut client = _pooler.client(&database);
    assert_eq!(tags(&ask(&mut client, &[parse("s", "select 7"), sync()])), "1Z");
    // The only server so far is taken: the client gets another one.
    assert_eq!(tags(&holder.query("begin")), "CZ");
    let answer = ask(&mut client, &[bind("s", &[]), describe(b'P', ""), execute(), sync()]);
    assert_eq!(tags(&answer), "2TDCZ");
    assert_eq!(tags(&ask(&mut client, &[describe(b'S', "s"), sync()])), "tTZ");
    assert_eq!(tags(&holder.query("commit")), "CZ");
}

#[test]
fn fatal_mistakes_of_clients() {
    let taken = "prepared statement name is already in use";
    let missing = "prepared statement did not exist";
    let unreadable = "failed to parse packet";
    let (pooler, database, [mut other]) = scene("");
    for (packets, text) in [
        (vec![parse("s", "select 1"), parse("s", "select 1")], taken),
        (vec![bind("s", &[])], missing),
        (vec![describe(b'S', "s")], missing),
        (vec![parse("s", "select 1"), close(b'S', "s"), bind("s", &[])], missing),
        (vec![msg(b'P', b"s\0select 1\0")], "broken Parse packet"),
        (vec![msg(b'P', b"s\0select 1\0\0\x02\0\0\0\0")], "broken Parse packet"),
        (vec![msg(b'P', b"s")], unreadable),
        (vec![msg(b'B', b"p\0s")], unreadable),
        (vec![msg(b'D', b"Ss")], unreadable),
        (vec![msg(b'D', b"")], unreadable),
        (vec![msg(b'C', b"S")], unreadable),
    ] {
        let mut client = pooler.client(&database);
        client.send(&packets.concat());
        assert_eq!(last_error(&client.rest()), fatal(text), "{packets:?}");
        assert_eq!(other.value("select 1"), "1");
    }
    let log = pooler.log();
    for line in [
        "prepared statement 's' was already prepared",
        "prepared statement 's' not found",
        "failed to parse prepared statement packet type 'B'",
    ] {
        assert!(log.contains(&format!("{database}/trusty")) && log.contains(line), "{line}: {log}");
    }
}

#[test]
fn close_is_answered_at_once_and_needs_no_server() {
    let (_pooler, _, [mut a, mut holder]) = scene("query_wait_timeout = 5\n");
    assert_eq!(tags(&ask(&mut a, &[parse("s", "select 1"), sync()])), "1Z");
    assert_eq!(tags(&holder.query("begin")), "CZ");
    a.send(&[close(b'S', "s"), close(b'S', "never"), flush()].concat());
    assert_eq!(tags(&[a.recv().unwrap(), a.recv().unwrap()]), "33");
    holder.bye();
    assert_eq!(tags(&ask(&mut a, &[sync()])), "Z");
    // Close in front of Parse, in one batch, behind something else.
    let batch = [
        parse("s", "select 1"),
        bind("s", &[]),
        execute(),
        close(b'S', "s"),
        parse("s", "select 2"),
        bind("s", &[]),
        execute(),
        sync(),
    ];
    let answer = ask(&mut a, &batch);
    assert_eq!(tags(&answer), "12DC312DCZ");
    assert_eq!(rows(&answer), [[Some("1".into())], [Some("2".into())]]);
}

#[test]
fn fakes_come_at_once_when_nothing_is_outstanding() {
    let (_pooler, _, [mut a, mut b]) = scene("");
    assert_eq!(tags(&ask(&mut a, &[parse("s", "select 1"), sync()])), "1Z");
    b.send(&[parse("x", "select 1"), flush()].concat());
    assert_eq!(tags(&b.until(b'1')), "1");
    assert_eq!(tags(&ask(&mut b, &[bind("x", &[]), execute(), sync()])), "2DCZ");
    // Behind replies that are not read as one, and with nothing behind it.
    b.send(&[bind("x", &[]), execute(), parse("y", "select 1"), flush()].concat());
    assert_eq!(tags(&b.until(b'1')), "2DC1");
    assert_eq!(tags(&ask(&mut b, &[sync()])), "Z");
    // As the last packet, behind Sync.
    b.send(&[bind("x", &[]), execute(), sync(), parse("z", "select 1")].concat());
    assert_eq!(tags(&b.until(b'1')), "2DCZ1");
    assert_eq!(a.value("select 1"), "1", "the server is free");
}

#[test]
fn eviction_is_hidden_and_fakes_behind_it_are_in_order() {
    let (pooler, database, [mut a, mut b]) = scene("max_prepared_statements = 2\n");
    for n in 0..4 {
        let (name, sql) = (format!("s{n}"), format!("select {n}"));
        assert_eq!(tags(&ask(&mut a, &[parse(&name, &sql), sync()])), "1Z");
    }
    assert_eq!(on_server(&mut a), ["PGBOUNCER_3=select 2", "PGBOUNCER_4=select 3"]);
    // The Parse evicts; the two behind it are fakes.
    let batch = [
        parse("n", "select 9"),
        parse("m", "select 9"),
        close(b'S', "m"),
        bind("n", &[]),
        execute(),
        sync(),
    ];
    let answer = ask(&mut b, &batch);
    assert_eq!(tags(&answer), "1132DCZ");
    for _ in 0..2 {
        for n in 0..4 {
            assert_eq!(value(&mut a, &format!("s{n}"), &[]), n.to_string());
        }
        assert_eq!(value(&mut b, "n", &[]), "9");
    }
    assert_eq!(on_server(&mut a).len(), 2);
    assert_eq!(shown(&pooler, &database, "SERVERS"), ["2"]);
    // Bind and Describe keep a statement from being evicted.
    assert_eq!(value(&mut a, "s0", &[]), "0");
    assert_eq!(value(&mut a, "s1", &[]), "1");
    assert_eq!(tags(&ask(&mut a, &[describe(b'S', "s0"), sync()])), "tTZ");
    assert_eq!(value(&mut a, "s2", &[]), "2");
    let texts = on_server(&mut a).join(" ");
    assert!(texts.contains("select 0") && texts.contains("select 2"), "{texts}");
}

#[test]
fn errors_undo_what_was_not_done() {
    let (_pooler, _, [mut a, mut b]) = scene("max_prepared_statements = 1\n");
    // A Parse that fails: the name stays, Bind fails alike, Close and Parse work.
    let bad = ("42601".to_owned(), "syntax error at or near \"nonsense\"".to_owned());
    let failed = ask(&mut a, &[parse("s", "nonsense"), describe(b'S', "s"), sync()]);
    assert_eq!((tags(&failed).as_str(), error(&failed)), ("EZ", bad.clone()));
    let failed = ask(&mut a, &[bind("s", &[]), execute(), sync()]);
    assert_eq!((tags(&failed).as_str(), error(&failed)), ("EZ", bad));
    let answer = ask(&mut a, &[close(b'S', "s"), parse("s", "select 1"), sync()]);
    assert_eq!(tags(&answer), "31Z");
    assert_eq!(value(&mut a, "s", &[]), "1");
    // An error in front of a Parse and the eviction that it causes: nothing of both was done.
    let zero = [parse("", "select 1/0"), bind("", &[]), execute()].concat();
    let failed = ask(&mut b, &[zero.clone(), parse("x", "select 2"), sync()]);
    assert_eq!(error(&failed).0, "22012");
    assert_eq!(on_server(&mut b).len(), 1);
    assert_eq!(value(&mut a, "s", &[]), "1");
    assert_eq!(value(&mut b, "x", &[]), "2");
    // The next batch is on its way before the error comes: it finds what it needs, too.
    let pipeline =
        [zero.clone(), bind("s", &[]), execute(), sync(), bind("s", &[]), execute(), sync()];
    a.send(&pipeline.concat());
    let (first, second) = (a.until(b'Z'), a.until(b'Z'));
    assert_eq!((error(&first).0.as_str(), tags(&second).as_str()), ("22012", "2DCZ"));
    assert_eq!(cell(&second), "1");
    // The same with what the skipped Close would have made room for.
    let pipeline = [zero, bind("x", &[]), sync(), bind("x", &[]), execute(), sync()];
    b.send(&pipeline.concat());
    let (_, second) = (b.until(b'Z'), b.until(b'Z'));
    assert_eq!(cell(&second), "2");
    assert_eq!(value(&mut a, "s", &[]), "1");
    // The Close of the one that was put back comes with the next Parse.
    assert_eq!(tags(&ask(&mut a, &[parse("y", "select 3"), sync()])), "1Z");
    assert_eq!(on_server(&mut a), ["PGBOUNCER_4=select 3"]);
}

#[test]
fn failed_transactions_and_pipelines_with_flush() {
    let (_pooler, _, [mut a]) = scene("");
    a.send(&[parse("s", "select $1::int4"), flush()].concat());
    assert_eq!(tags(&a.until(b'1')), "1");
    a.send(&[describe(b'S', "s"), flush()].concat());
    assert_eq!(tags(&a.until(b'T')), "tT");
    a.send(&[bind("s", &["5"]), execute(), flush(), bind("s", &["6"]), execute(), sync()].concat());
    let answer = a.until(b'Z');
    assert_eq!(rows(&answer), [[Some("5".into())], [Some("6".into())]]);
    assert_eq!(tags(&a.query("begin")), "CZ");
    assert_eq!(tags(&a.query("nonsense")), "EZ");
    assert_eq!(error(&ask(&mut a, &[bind("s", &["1"]), execute(), sync()])).0, "25P02");
    assert_eq!(tags(&ask(&mut a, &[parse("t", "rollback"), sync()])), "1Z");
    assert_eq!(tags(&ask(&mut a, &[bind("t", &[]), execute(), sync()])), "2CZ");
    assert_eq!(value(&mut a, "s", &["8"]), "8");
}

#[test]
fn deallocating_all_clears_the_server_and_this_client() {
    let (pooler, database, [mut a, mut b]) = scene("");
    for command in ["deallocate all", "DISCARD ALL"] {
        for client in [&mut a, &mut b] {
            assert_eq!(tags(&ask(client, &[parse("s", "select 1"), sync()])), "1Z");
        }
        assert_eq!(tags(&a.query(command)), "CZ");
        assert_eq!(on_server(&mut a), [""; 0]);
        assert_eq!(shown(&pooler, &database, "SERVERS"), ["0"]);
        assert_eq!(value(&mut b, "s", &[]), "1", "other clients are not concerned");
        assert_eq!(tags(&ask(&mut a, &[parse("s", "select 2"), sync()])), "1Z", "the name is free");
        assert_eq!(tags(&ask(&mut b, &[close(b'S', "s"), sync()])), "3Z");
        assert_eq!(tags(&ask(&mut a, &[close(b'S', "s"), sync()])), "3Z");
    }
    // What is parsed behind it stays.
    assert_eq!(tags(&ask(&mut a, &[parse("old", "select 1"), sync()])), "1Z");
    a.send(&[query("deallocate all"), parse("new", "select 5"), sync()].concat());
    assert_eq!(tags(&a.until(b'Z')), "CZ");
    assert_eq!(tags(&a.until(b'Z')), "1Z");
    assert_eq!(value(&mut a, "new", &[]), "5");
    assert_eq!(on_server(&mut a).len(), 1);
    a.send(&bind("old", &[]));
    assert_eq!(last_error(&a.rest()), fatal("prepared statement did not exist"));
}

#[test]
fn reset_query_clears_the_server() {
    let settings = "server_reset_query = discard all\nserver_reset_query_always = 1\n";
    let (pooler, database, [mut a, mut b]) = scene(settings);
    assert_eq!(tags(&ask(&mut a, &[parse("s", "select 1"), sync()])), "1Z");
    assert_eq!(b.value("select 2"), "2");
    assert_eq!(shown(&pooler, &database, "SERVERS"), ["0"]);
    assert_eq!(value(&mut a, "s", &[]), "1");
}

#[test]
fn the_limit_changes_while_running() {
    let (pooler, _, [mut a]) = scene("");
    let mut console = pooler.console();
    let mut set = |value: &str| {
        assert_eq!(tags(&console.query(&format!("SET max_prepared_statements = '{value}'"))), "CZ");
    };
    for n in 0..5 {
        let (name, sql) = (format!("s{n}"), format!("select {n}"));
        assert_eq!(tags(&ask(&mut a, &[parse(&name, &sql), sync()])), "1Z");
    }
    set("2");
    assert_eq!(value(&mut a, "s3", &[]), "3");
    assert_eq!(on_server(&mut a).len(), 5, "until something new comes");
    assert_eq!(tags(&ask(&mut a, &[parse("t", "select 9"), sync()])), "1Z");
    assert_eq!(on_server(&mut a), ["PGBOUNCER_4=select 3", "PGBOUNCER_6=select 9"]);
    set("-1");
    for n in 0..5 {
        assert_eq!(value(&mut a, &format!("s{n}"), &[]), n.to_string());
    }
    assert_eq!(on_server(&mut a).len(), 6);
    set("0");
    let failed = ask(&mut a, &[bind("s1", &[]), execute(), sync()]);
    assert_eq!(error(&failed).1, "prepared statement \"s1\" does not exist");
    assert_eq!(tags(&ask(&mut a, &[parse("raw", "select 1"), sync()])), "1Z");
    assert_eq!(on_server(&mut a).len(), 7);
    set("200");
    assert_eq!(value(&mut a, "s1", &[]), "1");
}

#[test]
fn session_mode_is_left_alone() {
    let (_pooler, _, [mut a]) = scene("pool_mode = session\n");
    assert_eq!(tags(&ask(&mut a, &[parse("mine", "select 1"), sync()])), "1Z");
    assert_eq!(on_server(&mut a), ["mine=select 1"]);
    assert_eq!(tags(&a.query("deallocate mine")), "CZ");
}

#[test]
fn packets_and_names_larger_than_any_buffer() {
    let (_pooler, _, [mut a, mut b]) = scene("");
    let text = format!("select length($1) /* {} */", "x".repeat(3_000_000));
    let name = "n".repeat(200_000);
    assert_eq!(tags(&ask(&mut a, &[parse(&name, &text), describe(b'S', &name), sync()])), "1tTZ");
    let large = "y".repeat(5_000_000);
    for _ in 0..2 {
        assert_eq!(value(&mut a, &name, &[&large]), "5000000");
    }
    assert_eq!(tags(&ask(&mut b, &[parse("s", &text), sync()])), "1Z");
    assert_eq!(value(&mut b, "s", &[&large]), "5000000");
    assert_eq!(tags(&ask(&mut a, &[close(b'S', &name), sync()])), "3Z");
    // A portal's name in front of the statement's, and pieces of any size.
    let portal = "p".repeat(100_000);
    let mut body = [portal.as_bytes(), b"\0s\0\0\0\0\x01\0\0\0\x02"].concat();
    body.extend(b"ab\0\0");
    let packet = [msg(b'B', &body), sync()].concat();
    for piece in packet.chunks(30_001) {
        b.send(piece);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert_eq!(tags(&b.until(b'Z')), "2Z");
    let small = [bind("s", &["abc"]), execute(), sync()].concat();
    for byte in small.chunks(1) {
        b.send(byte);
    }
    assert_eq!(cell(&b.until(b'Z')), "3");
    // The unnamed one is kept, too.
    assert_eq!(tags(&ask(&mut a, &[parse("", &text), sync()])), "1Z");
    assert_eq!(b.value("select 1"), "1");
    assert_eq!(value(&mut a, "", &[&large]), "5000000");
}

#[test]
fn types_make_another_statement() {
    let (_pooler, _, [mut a]) = scene("");
    let typed = |name: &str, kind: u8| {
        let body = [name.as_bytes(), b"\0select $1\0\0\x01\0\0\0", &[kind]].concat();
        msg(b'P', &body)
    };
    assert_eq!(tags(&ask(&mut a, &[typed("i", 23), typed("t", 25), sync()])), "11Z");
    assert_eq!(value(&mut a, "i", &["012"]), "12");
    assert_eq!(value(&mut a, "t", &["012"]), "012");
}

#[test]
fn a_statement_that_nobody_has_is_forgotten() {
    let (pooler, database, [mut a]) = scene("");
    let used = |pooler: &Pooler| {
        let answer = pooler.console().query("SHOW MEM");
        let row = rows(&answer)
            .into_iter()
            .find(|row| row[0].as_deref() == Some("server_prepared_statement_cache"));
        row.unwrap()[2].clone().unwrap()
    };
    assert_eq!(tags(&ask(&mut a, &[parse("s", "select 1"), sync()])), "1Z");
    assert_eq!(used(&pooler), "1");
    a.bye();
    let mut b = pooler.client(&database);
    assert_eq!(tags(&ask(&mut b, &[parse("s", "select 1"), sync()])), "1Z");
    assert_eq!(on_server(&mut b), ["PGBOUNCER_1=select 1"]);
    b.query("deallocate all");
    assert_eq!(used(&pooler), "0");
    assert_eq!(tags(&ask(&mut b, &[parse("s", "select 1"), sync()])), "1Z");
    assert_eq!(on_server(&mut b), ["PGBOUNCER_2=select 1"], "numbers are not used again");
}

#[test]
fn servers_that_die_take_their_statements_with_them() {
    let (pooler, database, [mut a]) = scene("");
    assert_eq!(tags(&ask(&mut a, &[parse("s", "select 1"), sync()])), "1Z");
    assert_eq!(tags(&pooler.console().query("RECONNECT")), "CZ");
    wait_until("the server is gone", || shown(&pooler, &database, "SERVERS").is_empty());
    assert_eq!(value(&mut a, "s", &[]), "1");
}
