//! Statistics against scripts with known counts (admin 3.13 and 5).

use std::time::{Duration, Instant};

use crate::rig::pooler::{in_transactions, Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{
    bind, close, describe, execute, flush, msg, parse, query, rows, startup, sync, terminate, Msg,
};

/// The columns of SHOW STATS_TOTALS behind the database's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    assignments: u64,
    transactions: u64,
    queries: u64,
    received: u64,
    sent: u64,
    transaction_time: u64,
    query_time: u64,
    wait_time: u64,
    client_parses: u64,
    server_parses: u64,
    binds: u64,
    logins: u64,
}

impl Counts {
    fn of(row: &[Option<String>]) -> Self {
        let at = |n: usize| row[n].as_ref().unwrap().parse().unwrap();
        Self {
            assignments: at(1),
            transactions: at(2),
            queries: at(3),
            received: at(4),
            sent: at(5),
            transaction_time: at(6),
            query_time: at(7),
            wait_time: at(8),
            client_parses: at(9),
            server_parses: at(10),
            binds: at(11),
            logins: at(12),
        }
    }

    /// Without what nobody can foretell.
    fn timeless(self) -> Self {
        Self { transaction_time: 0, query_time: 0, wait_time: 0, ..self }
    }

    fn since(self, before: Self) -> Self {
        Self {
            assignments: self.assignments - before.assignments,
            transactions: self.transactions - before.transactions,
            queries: self.queries - before.queries,
            received: self.received - before.received,
            sent: self.sent - before.sent,
            transaction_time: self.transaction_time - before.transaction_time,
            query_time: self.query_time - before.query_time,
            wait_time: self.wait_time - before.wait_time,
            client_parses: self.client_parses - before.client_parses,
            server_parses: self.server_parses - before.server_parses,
            binds: self.binds - before.binds,
            logins: self.logins - before.logins,
        }
    }
}

/// A database's counters; none if it has no pool.
fn row(pooler: &Pooler, database: &str) -> Option<Counts> {
    let all = rows(&pooler.command("SHOW STATS_TOTALS"));
    let found = all.iter().find(|row| row[0].as_deref() == Some(database));
    found.map(|row| Counts::of(row))
}

fn counts(pooler: &Pooler, database: &str) -> Counts {
    row(pooler, database).unwrap_or_default()
}

/// What an action adds, and how long it took at most.
fn added(pooler: &Pooler, database: &str, action: impl FnOnce()) -> (Counts, u64) {
    let before = counts(pooler, database);
    let start = Instant::now();
    action();
    let took = u64::try_from(start.elapsed().as_micros()).unwrap();
    (counts(pooler, database).since(before), took)
}

fn size(msgs: &[Msg]) -> u64 {
    msgs.iter().map(|m| 5 + m.body.len() as u64).sum()
}

/// Sends bytes, reads so many answers up to ReadyForQuery, and returns their size.
fn exchange(client: &mut Raw, bytes: &[u8], answers: usize) -> u64 {
    client.send(bytes);
    (0..answers).map(|_| size(&client.until(b'Z'))).sum()
}

/// One link, one transaction, one query.
const ONE: Counts = Counts {
    assignments: 1,
    transactions: 1,
    queries: 1,
    received: 0,
    sent: 0,
    transaction_time: 0,
    query_time: 0,
    wait_time: 0,
    client_parses: 0,
    server_parses: 0,
    binds: 0,
    logins: 0,
};

#[test]
fn the_first_query_of_a_pool_has_the_documented_size() {
    let (pooler, database) = in_transactions("");
    let (login, took) = added(&pooler, &database, || pooler.client(&database).bye());
    assert_eq!(login.timeless(), Counts { logins: 1, ..Counts::default() }, "nothing but a login");
    let waited = login.wait_time;
    assert!((1..=took).contains(&waited), "{waited} of {took}: for the pool's first server");
    let mut client = pooler.client(&database);
    let (one, took) = added(&pooler, &database, || assert_eq!(client.value("select 1"), "1"));
    assert_eq!(one.timeless(), Counts { received: 14, sent: 66, ..ONE });
    assert!(one.query_time > 0 && one.query_time == one.transaction_time, "{one:?}");
    assert!(one.query_time <= took && one.wait_time == 0, "{one:?}");
}

/// What clients may send at once, with the number of ReadyForQuery that come back. Each is one busy
/// period and one transaction.
fn requests() -> Vec<(&'static str, Vec<u8>, usize)> {
    let batch = [parse("", "select $1"), bind("", &["x"]), execute(), sync()].concat();
    let full = [
        parse("", "select 1"),
        describe(b'S', ""),
        bind("", &[]),
        describe(b'P', ""),
        execute(),
        flush(),
        close(b'P', ""),
        close(b'S', ""),
        sync(),
    ];
    let failing = [parse("", "select nothing"), bind("", &[]), execute(), sync()].concat();
    let call = [&2_u32.to_be_bytes()[..], &[0, 0, 0, 0, 0, 0]].concat();
    let rows = msg(b'd', b"1\n2\n3\n").repeat(2000);
    let copy_in = query("create temp table c (n int); copy c from stdin; drop table c");
    vec![
        ("a query", query("select 1"), 1),
        ("three statements", query("select 1; select 2; select 3"), 1),
        ("a block", query("begin; select 1; commit"), 1),
        ("nothing", query(""), 1),
        ("an error", query("select nothing"), 1),
        ("two queries", query("select 1").repeat(2), 2),
        ("fifty queries", query("select 1").repeat(50), 50),
        ("a batch", batch.clone(), 1),
        ("a batch with all kinds of messages", full.concat(), 1),
        ("twenty batches", batch.repeat(20), 20),
        ("a batch that fails", failing, 1),
        ("a query and a batch", [query("select 1"), batch].concat(), 2),
        ("a Sync", sync(), 1),
        ("two of them", sync().repeat(2), 2),
        ("a function call", msg(b'F', &call), 1),
        ("a long text", query(&format!("select length('{}')", "x".repeat(300_000))), 1),
        ("a long value", query("select repeat('x', 300000), 'y'"), 1),
        ("many rows", query("select * from generate_series(1, 30000)"), 1),
        ("COPY out", query("copy (select * from generate_series(1, 30000)) to stdout"), 1),
        ("COPY in", [copy_in.clone(), rows.clone(), msg(b'c', b"")].concat(), 1),
        ("a COPY given up", [copy_in, rows, msg(b'f', b"no\0")].concat(), 1),
    ]
}

#[test]
fn a_busy_period_is_one_query_and_every_byte_counts() {
    let (pooler, database) = in_transactions("default_pool_size = 1\n");
    let mut client = pooler.client(&database);
    for (name, bytes, answers) in requests() {
        let mut sent = 0;
        let action = || sent = exchange(&mut client, &bytes, answers);
        let (one, took) = added(&pooler, &database, action);
        assert_eq!(one.timeless(), Counts { received: bytes.len() as u64, sent, ..ONE }, "{name}");
        assert_eq!(one.query_time, one.transaction_time, "{name}");
        assert!(one.query_time <= took, "{name}: {one:?} in {took}");
    }
}

#[test]
fn bytes_that_come_in_pieces_count_once() {
    let (pooler, database) = in_transactions("default_pool_size = 1\n");
    let mut client = pooler.client(&database);
    for (name, bytes, answers) in requests() {
        let mut sent = 0;
        let (one, _) = added(&pooler, &database, || {
            // The first pieces end inside of a header and of a body.
            let (head, rest) = bytes.split_at(bytes.len().min(3));
            let (middle, rest) = rest.split_at(rest.len().min(4));
            for part in [head, middle] {
                client.send(part);
                std::thread::sleep(Duration::from_millis(2));
            }
            sent = exchange(&mut client, rest, answers);
        });
        assert_eq!((one.received, one.sent), (bytes.len() as u64, sent), "{name}");
        // A request that is answered before the next one comes is a period of its own.
        assert_eq!(one.queries, one.transactions, "{name}");
        assert!((1..=answers as u64).contains(&one.queries), "{name}: {one:?}");
    }
}

#[test]
fn a_transaction_is_one_however_many_queries_it_has() {
    let (pooler, database) = in_transactions("");
    let mut client = pooler.client(&database);
    let script = ["begin", "select 1", "commit"];
    let mut sent = 0;
    let (block, took) = added(&pooler, &database, || {
        for sql in script {
            sent += exchange(&mut client, &query(sql), 1);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let received = script.iter().map(|sql| query(sql).len() as u64).sum();
    assert_eq!(block.timeless(), Counts { queries: 3, received, sent, ..ONE });
    let idle = block.transaction_time - block.query_time;
    assert!(idle >= 40_000 && block.transaction_time <= took, "{block:?} in {took}");
    // A failed one, too; it ends with the rollback.
    let (failed, _) = added(&pooler, &database, || {
        for sql in ["begin", "select nothing", "select 1", "rollback"] {
            client.query(sql);
        }
    });
    assert_eq!((failed.assignments, failed.transactions, failed.queries), (1, 1, 4));
    // A transaction that its client leaves open has no end that could be counted.
    let (left, _) = added(&pooler, &database, || {
        drop(pooler.holder(&database));
        wait_until("its server has gone", || pooler.pool(&database, "sv_active") == 0);
    });
    assert_eq!((left.transactions, left.queries, left.transaction_time), (1, 1, 0));
    assert!(left.query_time > 0);
}

#[test]
fn query_time_is_what_the_server_took() {
    let (pooler, database) = in_transactions("");
    let mut client = pooler.client(&database);
    let (one, took) = added(&pooler, &database, || {
        client.query("select pg_sleep(0.1)");
    });
    assert!((100_000..=took).contains(&one.query_time), "{one:?} in {took}");
    assert_eq!(one.transaction_time, one.query_time);
    // Of several at once, the time until the last answer.
    let (two, took) = added(&pooler, &database, || {
        exchange(&mut client, &query("select pg_sleep(0.05)").repeat(2), 2);
    });
    assert!((100_000..=took).contains(&two.query_time), "{two:?} in {took}");
}

#[test]
fn copies_and_flushes_do_not_end_a_query() {
    let (pooler, database) = in_transactions("");
    let mut client = pooler.client(&database);
    client.query("create table c (n int)");
    let data = [msg(b'd', b"1\n"), msg(b'd', b"2\n3\n"), msg(b'c', b"")];
    let mut sent = 0;
    let (copy, _) = added(&pooler, &database, || {
        client.send(&query("copy c from stdin"));
        sent += size(&client.until(b'G'));
        for part in &data {
            client.send(part);
            std::thread::sleep(Duration::from_millis(2));
        }
        sent += size(&client.until(b'Z'));
    });
    let received = (query("copy c from stdin").len() + data.concat().len()) as u64;
    assert_eq!(copy.timeless(), Counts { received, sent, ..ONE });
    let start = [parse("", "select 1"), bind("", &[]), execute(), flush()].concat();
    let mut sent = 0;
    let (batch, _) = added(&pooler, &database, || {
        client.send(&start);
        sent += size(&client.until(b'C'));
        sent += exchange(&mut client, &sync(), 1);
    });
    let received = (start.len() + sync().len()) as u64;
    assert_eq!(batch.timeless(), Counts { received, sent, ..ONE });
}

#[test]
fn terminate_and_what_is_refused_count_nothing() {
    let (pooler, database) = in_transactions("max_packet_size = 100\n");
    pooler.client(&database).value("select 1");
    for bytes in [terminate(), msg(b'y', b""), msg(b'p', b"secret\0"), query(&"x".repeat(100))] {
        let mut client = pooler.client(&database);
        let (nothing, _) = added(&pooler, &database, || {
            client.send(&bytes);
            client.rest();
        });
        assert_eq!(nothing, Counts::default(), "{}", bytes.escape_ascii());
    }
}

#[test]
fn a_session_is_one_assignment() {
    let (pooler, database) = in_transactions("pool_mode = session\n");
    let mut client = pooler.client(&database);
    let mut sent = 0;
    let (session, _) = added(&pooler, &database, || {
        for _ in 0..3 {
            sent += exchange(&mut client, &query("select 1"), 1);
        }
    });
    let expected = Counts { transactions: 3, queries: 3, received: 3 * 14, sent, ..ONE };
    assert_eq!(session.timeless(), expected);
    // Named statements are the server's own in session mode, they are not counted as such.
    let named =
        [parse("s", "select 1"), bind("s", &[]), execute(), close(b'S', "s"), sync()].concat();
    let action = || sent = exchange(&mut client, &named, 1);
    let (batch, _) = added(&pooler, &database, action);
    let received = named.len() as u64;
    assert_eq!(batch.timeless(), Counts { assignments: 0, received, sent, ..ONE });
    // What a server says on its own is sent, too.
    client.query("listen here");
    let (notified, _) = added(&pooler, &database, || {
        postgres().value(&database, "notify here, 'text'");
        sent = size(&client.until(b'A'));
    });
    assert_eq!(notified, Counts { sent, ..Counts::default() });
    // The answer to DISCARD ALL, which nobody else sees; LISTEN and the rest are gone with it.
    let (reset, _) = added(&pooler, &database, || {
        client.bye();
        wait_until("it is reset", || pooler.pool(&database, "sv_idle") == 1);
    });
    let answer = msg(b'C', b"DISCARD ALL\0").len() + 6;
    assert_eq!(reset, Counts { sent: answer as u64, ..Counts::default() });
}

#[test]
fn what_the_pooler_asks_itself_is_sent_but_no_query() {
    let check = "server_check_delay = 0.2\nserver_check_query = select 1\n";
    let (pooler, database) = in_transactions(check);
    let mut client = pooler.client(&database);
    client.value("select 1");
    wait_until("it wants a check", || pooler.pool(&database, "sv_used") == 1);
    let (checked, took) = added(&pooler, &database, || assert_eq!(client.value("select 1"), "1"));
    assert_eq!(checked.timeless(), Counts { received: 14, sent: 2 * 66, ..ONE });
    assert!((1..=took).contains(&checked.wait_time), "the client waits for that: {checked:?}");
    let (pooler, database) = in_transactions("");
    pooler.client(&database).value("select 1");
    let hello =
        startup(0, &[("user", "trusty"), ("database", &database), ("application_name", "other")]);
    let (mut client, _) = pooler.tcp().login_with(&hello, "trusty", "").unwrap();
    let (aligned, _) = added(&pooler, &database, || assert_eq!(client.value("select 1"), "1"));
    let status = msg(b'S', b"application_name\0other\0");
    let answer = msg(b'C', b"SET\0").len() + status.len() + 6;
    assert_eq!(aligned.timeless(), Counts { received: 14, sent: 66 + answer as u64, ..ONE });
}

#[test]
fn statement_mode_counts_what_it_refuses() {
    let (pooler, database) = in_transactions("pool_mode = statement\n");
    let mut client = pooler.client(&database);
    client.value("select 1");
    let (begin, _) = added(&pooler, &database, || {
        client.send(&query("begin"));
        client.rest();
    });
    let sent = (msg(b'C', b"BEGIN\0").len() + 6) as u64;
    let received = query("begin").len() as u64;
    assert_eq!(begin, Counts { received, sent, ..ONE }, "it has no end either");
}

#[test]
fn wait_time_is_that_of_clients_who_get_a_server() {
    let (pooler, database) = in_transactions("default_pool_size = 1\n");
    let mut holder = pooler.holder(&database);
    let mut queued = Instant::now();
    let (waited, took) = added(&pooler, &database, || {
        let mut waiter = pooler.waiter(&database, "select 1");
        queued = Instant::now();
        std::thread::sleep(Duration::from_millis(50));
        holder.query("commit");
        waiter.until(b'Z');
    });
    assert!((50_000..=took).contains(&waited.wait_time), "{waited:?} in {took}");
    assert!(waited.query_time > waited.wait_time, "waiting is part of a query's time: {waited:?}");
    assert_eq!((waited.assignments, waited.queries, waited.logins), (1, 2, 1));
    let _holder = pooler.holder(&database);
    let (died, _) = added(&pooler, &database, || {
        let mut waiter = pooler.waiter(&database, "select 1");
        let ids = pooler.show("CLIENTS", "id", ("state", "waiting"));
        pooler.command(&format!("KILL_CLIENT {}", ids[0]));
        waiter.rest();
    });
    let expected = Counts { transactions: 1, queries: 1, logins: 1, ..Counts::default() };
    assert_eq!(died, expected, "neither time nor bytes");
}

#[test]
fn logins_count_when_they_succeed() {
    let mut setup = Setup::trust("auth_type = plain\n");
    setup.users.push_str("\"plainy\" \"plainy-pw\"\n");
    let pooler = Pooler::start(&setup);
    let database = postgres().new_database();
    let logins = || counts(&pooler, &database).logins;
    let enter = || pooler.login("plainy", &database, "plainy-pw").map(|(client, _)| client.bye());
    assert_eq!(pooler.refusal("plainy", &database, "wrong"), "password authentication failed");
    assert_eq!(row(&pooler, &database), Some(Counts::default()), "a pool, but nothing more");
    for expected in 1..=3 {
        enter().unwrap();
        assert_eq!(logins(), expected);
    }
    assert_eq!(pooler.refusal("plainy", &database, "wrong"), "password authentication failed");
    pooler.command(&format!("DISABLE {database}"));
    enter().unwrap_err();
    assert_eq!(logins(), 3);
}

#[test]
fn pools_of_a_database_are_summed_and_vanish_with_kill() {
    let mut setup = Setup::trust("pool_mode = transaction\n");
    setup.users.push_str("\"postgres\" \"\"\n");
    let pooler = Pooler::start(&setup);
    let [database, other] = [postgres().new_database(), postgres().new_database()];
    for (user, database, queries) in
        [("trusty", &database, 2), ("postgres", &database, 3), ("trusty", &other, 1)]
    {
        let (mut client, _) = pooler.login(user, database, "").unwrap();
        (0..queries).for_each(|_| drop(client.query("select 1")));
    }
    let all = Counts {
        assignments: 5,
        transactions: 5,
        queries: 5,
        received: 5 * 14,
        sent: 5 * 66,
        logins: 2,
        ..Counts::default()
    };
    assert_eq!(counts(&pooler, &database).timeless(), all);
    pooler.command(&format!("KILL {database}"));
    assert_eq!(row(&pooler, &database), None);
    assert_eq!(counts(&pooler, &other).queries, 1, "those of others stay");
    pooler.command(&format!("RESUME {database}"));
    pooler.client(&database).value("select 1");
    let fresh = Counts { received: 14, sent: 66, logins: 1, ..ONE };
    assert_eq!(counts(&pooler, &database).timeless(), fresh);
}

#[test]
fn consoles_count_their_first_command_only() {
    let (pooler, _) = in_transactions("");
    let mut console = pooler.console();
    let mut seen = |bytes: &[u8], answers: usize| {
        console.send(bytes);
        let all = (0..answers).map(|_| console.until(b'Z')).last().unwrap();
        let all = rows(&all);
        Counts::of(all.iter().find(|row| row[0].as_deref() == Some("pgbouncer")).unwrap())
    };
    let first = Counts { transactions: 1, queries: 1, logins: 1, ..Counts::default() };
    let show = query("SHOW STATS_TOTALS");
    assert_eq!(seen(&show, 1), first, "itself included");
    let more = [query("SHOW VERSION"), query("nonsense"), query("RELOAD"), show.clone()].concat();
    assert_eq!(seen(&more, 4), first);
    let silent = pooler.console();
    assert_eq!(seen(&show, 1), Counts { logins: 2, ..first });
    silent.bye();
    pooler.console().query("nonsense");
    assert_eq!(seen(&show, 1), Counts { logins: 3, transactions: 2, queries: 2, ..first });
    assert_eq!(pooler.refusal("trusty", "pgbouncer", ""), "not allowed");
    assert_eq!(seen(&show, 1), Counts { logins: 3, transactions: 2, queries: 2, ..first });
}
