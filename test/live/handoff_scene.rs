//! From one of us to the next: whatever clients are in the midst of goes on (doc/handoff.md).

use std::time::Duration;

use crate::rig::pooler::{binary, in_transactions, Pooler, Setup};
use crate::rig::postgres::{postgres, primary};
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{bind, execute, last_error, msg, parse, query, rows, startup, sync, tags};
use crate::rig::wire::{terminate, Msg};

fn cell(answer: &[Msg]) -> String {
    rows(answer).first().and_then(|row| row[0].clone()).unwrap_or_default()
}

/// One line of the console's answer per row: these columns.
fn shown(pooler: &Pooler, topic: &str, columns: &[&str], filter: (&str, &str)) -> Vec<Vec<String>> {
    let by_column = columns.iter().map(|column| pooler.show(topic, column, filter));
    let by_column: Vec<Vec<String>> = by_column.collect();
    let count = by_column[0].len();
    let row = |at: usize| by_column.iter().map(|values| values[at].clone()).collect();
    let mut rows: Vec<Vec<String>> = (0..count).map(row).collect();
    // Who does nothing comes behind the others in the next process.
    rows.sort_unstable();
    rows
}

#[test]
fn packets_cut_anywhere_go_on_behind_the_cut() {
    let (mut pooler, database) = in_transactions("default_pool_size = 20\n");
    let whole = [query("select 'one'"), query("select 'two' as x, repeat('y', 3000)")].concat();
    let cuts = [1, 3, 5, 9, 17, 18, 19, 22, 30, whole.len() - 1];
    let mut clients: Vec<Raw> = cuts.iter().map(|_| pooler.client(&database)).collect();
    for (client, cut) in clients.iter_mut().zip(cuts) {
        client.send(&whole[..cut]);
    }
    // A long packet, of which some has been handed on already.
    let long = query(&format!("select length('{}')", "z".repeat(200_000)));
    let mut half = pooler.client(&database);
    half.send(&long[..100_000]);
    wait_until("servers are at work", || pooler.pool(&database, "sv_active") > 0);
    for _ in 0..2 {
        pooler.replace(binary());
    }
    for (client, cut) in clients.iter_mut().zip(cuts) {
        client.send(&whole[cut..]);
        assert_eq!(cell(&client.until(b'Z')), "one", "{cut}");
        assert_eq!(cell(&client.until(b'Z')), "two", "{cut}");
    }
    half.send(&long[100_000..]);
    assert_eq!(cell(&half.until(b'Z')), "200000");
}

#[test]
fn a_result_that_nobody_reads_and_data_on_their_way_in_arrive_whole() {
    let (mut pooler, database) = in_transactions("");
    let mut lazy = pooler.client(&database);
    let count = 300_000;
    lazy.send(&query(&format!("select i, 'row ' || i from generate_series(1, {count}) i")));
    lazy.until(b'T');
    postgres().value(&database, "create table t (x text); grant all on t to public");
    let mut busy = pooler.client(&database);
    busy.send(&query("copy t from stdin"));
    busy.until(b'G');
    let line = "c".repeat(999) + "\n";
    let data = msg(b'd', line.as_bytes()).repeat(2000);
    busy.send(&data[..700_001]);
    for _ in 0..3 {
        pooler.replace(binary());
    }
    busy.send(&[&data[700_001..], &msg(b'c', b"")].concat());
    assert_eq!(tags(&busy.until(b'Z')), "CZ");
    assert_eq!(busy.value("select count(*) || ' ' || max(length(x)) from t"), "2000 999");
    let mut expected = 1;
    loop {
        let row = lazy.recv().unwrap();
        if row.tag != b'D' {
            assert_eq!((row.tag, expected), (b'C', count + 1));
            break;
        }
        assert_eq!(row.cells()[1].as_deref(), Some(&*format!("row {expected}")));
        expected += 1;
    }
    lazy.until(b'Z');
    assert_eq!(lazy.value("select 5"), "5");
}

#[test]
fn sessions_keep_what_they_have() {
    let (mut pooler, database) =
        in_transactions("default_pool_size = 2\ntrack_extra_parameters = search_path\n");
    let mut client = pooler.client(&database);
    for sql in ["set application_name = 'mine'", "set timezone = 'Asia/Tokyo'"] {
        assert_eq!(tags(&client.query(sql)), "CSZ");
    }
    // Statements with a name and without one, and one of another client with the same name.
    let mut other = pooler.client(&database);
    for (client, text) in [(&mut client, "select 'a' || $1"), (&mut other, "select 'b' || $1")] {
        client.send(&[parse("s", text), sync()].concat());
        assert_eq!(tags(&client.until(b'Z')), "1Z");
        client.send(&[parse("", &format!("{text} || '!'")), sync()].concat());
        assert_eq!(tags(&client.until(b'Z')), "1Z");
    }
    let mut open = pooler.holder(&database);
    assert_eq!(tags(&open.query("create temp table mine as select 11 as x")), "CZ");
    let columns =
        ["ptr", "connect_time", "application_name", "prepared_statements", "addr", "port"];
    let filter = ("database", database.as_str());
    let before = shown(&pooler, "CLIENTS", &columns, filter);
    let servers = shown(&pooler, "SERVERS", &["ptr", "remote_pid", "prepared_statements"], filter);
    let totals = shown(&pooler, "STATS_TOTALS", &["query_count", "client_parse_count"], filter);
    for _ in 0..3 {
        pooler.replace(binary());
        assert_eq!(shown(&pooler, "CLIENTS", &columns, filter), before);
        let now = shown(&pooler, "SERVERS", &["ptr", "remote_pid", "prepared_statements"], filter);
        assert_eq!(now, servers);
        let now = shown(&pooler, "STATS_TOTALS", &["query_count", "client_parse_count"], filter);
        assert_eq!(now, totals);
    }
    for (client, want) in [(&mut client, "a"), (&mut other, "b")] {
        client.send(&[bind("s", &["1"]), execute(), sync()].concat());
        assert_eq!(cell(&client.until(b'Z')), format!("{want}1"));
        client.send(&[bind("", &["2"]), execute(), sync()].concat());
        assert_eq!(cell(&client.until(b'Z')), format!("{want}2!"));
    }
    assert_eq!(client.value("show application_name"), "mine");
    assert_eq!(client.value("show timezone"), "Asia/Tokyo");
    assert_eq!(open.value("select x from mine"), "11");
    assert_eq!(tags(&open.query("rollback")), "CZ");
    assert!(!pooler.log().contains("WARNING"), "{}", pooler.log());
}

#[test]
fn who_waits_keeps_its_place_and_its_time() {
    let (mut pooler, database) = in_transactions("default_pool_size = 1\nquery_wait_timeout = 6\n");
    let mut holder = pooler.holder(&database);
    let mut first = pooler.waiter(&database, "select 'first'");
    let mut second = pooler.waiter(&database, "select 'second'");
    std::thread::sleep(Duration::from_millis(1200));
    pooler.replace(binary());
    let waits = pooler.show("CLIENTS", "wait", ("state", "waiting"));
    assert!(waits.len() == 2 && waits.iter().all(|wait| wait != "0"), "{waits:?}");
    // A third comes behind them.
    let mut third = pooler.waiter(&database, "select 'third'");
    pooler.replace(binary());
    assert_eq!(pooler.pool(&database, "cl_waiting"), 3);
    assert_eq!(tags(&holder.query("commit")), "CZ");
    for (client, want) in [(&mut first, "first"), (&mut second, "second"), (&mut third, "third")] {
        assert_eq!(cell(&client.until(b'Z')), want);
    }
    // Time does not begin anew either.
    assert_eq!(tags(&holder.query("begin")), "CZ");
    let mut late = pooler.waiter(&database, "select 'late'");
    let start = std::time::Instant::now();
    std::thread::sleep(Duration::from_secs(4));
    pooler.replace(binary());
    assert_eq!(last_error(&late.rest()).2, "query_wait_timeout");
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
}

#[test]
fn logins_go_on_at_every_step() {
    let mut setup = Setup::trust("pool_mode = transaction\nauth_type = plain\n");
    setup.users = "\"trusty\" \"secret\"\n".into();
    let mut pooler = Pooler::start(&setup);
    let database = postgres().new_database();
    let hello = startup(0, &[("user", "trusty"), ("database", &database)]);
    let password = msg(b'p', b"secret\0");
    let silent = pooler.tcp();
    let mut half = pooler.tcp();
    half.send(&hello[..11]);
    let mut asked = pooler.tcp();
    asked.send(&hello);
    asked.until(b'R');
    let mut proving = pooler.tcp();
    proving.send(&[&hello[..], &password[..7]].concat());
    proving.until(b'R');
    let mut wrong = pooler.tcp();
    wrong.send(&hello);
    wrong.until(b'R');
    for _ in 0..2 {
        pooler.replace(binary());
    }
    half.send(&hello[11..]);
    half.until(b'R');
    half.send(&password);
    asked.send(&password);
    proving.send(&password[7..]);
    for client in [&mut half, &mut asked, &mut proving] {
        client.until(b'Z');
        assert_eq!(client.value("select 3"), "3");
    }
    wrong.send(&msg(b'p', b"secrat\0"));
    assert_eq!(last_error(&wrong.rest()).2, "password authentication failed");
    let (mut silent, _) = silent.login("trusty", &database, "secret").unwrap();
    assert_eq!(silent.value("select 4"), "4");
}

#[test]
fn a_query_can_be_canceled_and_timers_run_on() {
    let (mut pooler, database) = in_transactions("query_timeout = 4\n");
    let mut asleep = pooler.client(&database);
    asleep.send(&query("select pg_sleep(100)"));
    let mut timed = pooler.client(&database);
    timed.send(&query("select pg_sleep(101)"));
    wait_until("they run", || pooler.pool(&database, "sv_active") == 2);
    pooler.replace(binary());
    let mut canceler = pooler.tcp();
    canceler.send(&asleep.cancel_request());
    assert!(canceler.rest().is_empty());
    assert_eq!(last_error(&asleep.until(b'E')).1, "57014");
    asleep.until(b'Z');
    assert_eq!(last_error(&timed.rest()).2, "query timeout");
}

#[test]
fn what_the_operator_has_said_stays_in_force() {
    let (mut pooler, database) = in_transactions("");
    let other = postgres().new_database();
    let mut console = pooler.console();
    let mut client = pooler.client(&database);
    assert_eq!(client.value("select 1"), "1");
    pooler.client(&other).bye();
    for sql in ["SET query_wait_timeout = 77", &format!("DISABLE {other}")] {
        assert!(!tags(&console.query(sql)).contains('E'), "{sql}");
    }
    assert_eq!(tags(&console.query(&format!("PAUSE {database}"))), "CZ");
    client.send(&query("select 2"));
    wait_until("it waits", || pooler.pool(&database, "cl_waiting") == 1);
    for _ in 0..2 {
        pooler.replace(binary());
    }
    // The same console as before.
    let answer = console.query("SHOW CONFIG");
    let rows = rows(&answer);
    let row = rows.iter().find(|row| row[0].as_deref() == Some("query_wait_timeout")).unwrap();
    assert_eq!(row[1].as_deref(), Some("77"));
    assert!(pooler.refusal("trusty", &other, "").contains("is disabled"));
    assert_eq!(pooler.pool(&database, "cl_waiting"), 1);
    assert_eq!(tags(&console.query(&format!("RESUME {database}"))), "CZ");
    assert_eq!(cell(&client.until(b'Z')), "2");
    // PAUSE of everything, with a console that waits for it.
    let mut open = pooler.holder(&database);
    console.send(&query("PAUSE"));
    wait_until("it is paused", || pooler.show("STATE", "value", ("key", "paused")) == ["yes"]);
    pooler.replace(binary());
    assert_eq!(tags(&open.query("commit")), "CZ");
    assert_eq!(tags(&console.until(b'Z')), "CZ");
    open.send(&query("select 6"));
    pooler.replace(binary());
    assert_eq!(tags(&console.query("RESUME")), "CZ");
    assert_eq!(cell(&open.until(b'Z')), "6");
    open.send(&terminate());
}

#[test]
fn replication_connections_go_on() {
    let server = primary();
    let mut setup = Setup::trust("pool_mode = transaction\n");
    setup.databases = format!("* = host={} port={}\n", server.folder.display(), server.port);
    let mut pooler = Pooler::start(&setup);
    let database = server.new_database();
    let parameters =
        [("user", "trusty"), ("database", database.as_str()), ("replication", "database")];
    let mut client = pooler.tcp().login_with(&startup(0, &parameters), "trusty", "").unwrap().0;
    let identity = client.value("IDENTIFY_SYSTEM");
    let slot = format!("CREATE_REPLICATION_SLOT s{} TEMPORARY LOGICAL test_decoding", pooler.port);
    assert!(tags(&client.query(&slot)).ends_with("CZ"));
    server.value(&database, "create table t (x int)");
    for _ in 0..2 {
        pooler.replace(binary());
        assert_eq!(pooler.show("CLIENTS", "replication", ("database", &database)), ["logical"]);
        assert_eq!(client.value("IDENTIFY_SYSTEM"), identity);
    }
    let start = format!("START_REPLICATION SLOT s{} LOGICAL 0/0", pooler.port);
    client.send(&query(&start));
    client.until(b'W');
    for text in ["first", "second"] {
        server.value(&database, "insert into t values (1)");
        // A keepalive, BEGIN, the row, COMMIT; they come while nobody asks.
        let is_row = |msg: &Msg| String::from_utf8_lossy(&msg.body).contains("table public.t");
        while !is_row(&client.recv().unwrap()) {}
        if text == "first" {
            pooler.replace(binary());
        }
    }
}

#[test]
fn nobody_else_can_ask_for_it() {
    let (mut pooler, database) = in_transactions("");
    let mut console = pooler.console();
    for sql in ["HANDOFF 0", "HANDOFF 1"] {
        let answer = console.query(sql);
        let text = answer.iter().find(|msg| msg.tag == b'E').unwrap().field(b'M');
        assert_eq!(text, format!("invalid command '{sql}', use SHOW HELP;"));
    }
    pooler.assert_serves(&database);
}
