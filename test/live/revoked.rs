//! Queries that are canceled while their client waits for a server: the pooler answers as PostgreSQL
//! would, and the client goes on.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::rig::pooler::{in_transactions, Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{bind, close, describe, execute, flush, msg, parse, query, rows, sync};
use crate::rig::wire::{tags, Msg};

/// A pooler whose one server somebody holds.
struct Full {
    pooler: Pooler,
    database: String,
    holder: Raw,
}

impl Full {
    fn new() -> Self {
        // What JDBC asks for in each start-up packet.
        let settings = "default_pool_size = 1\nignore_startup_parameters = extra_float_digits\n";
        let (pooler, database) = in_transactions(settings);
        let holder = pooler.holder(&database);
        Full { pooler, database, holder }
    }

    /// Cancels what a client waits for.
    fn cancel(&self, client: &Raw) {
        wait_until("it waits", || self.pooler.pool(&self.database, "cl_waiting") == 1);
        let mut at = self.pooler.tcp();
        at.send(&client.cancel_request());
        assert_eq!(at.rest(), [], "a cancel request is never answered");
    }

    /// The server is free again.
    fn let_go(&mut self) {
        assert_eq!(tags(&self.holder.query("commit")), "CZ");
    }
}

/// A Parse, Bind, Describe, Execute without Sync.
fn batch(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", &[]), describe(b'P', ""), execute()].concat()
}

fn check_error(msgs: &[Msg]) {
    let error = msgs.iter().find(|m| m.tag == b'E').unwrap_or_else(|| panic!("{msgs:?}"));
    assert_eq!(error.field(b'S'), "ERROR");
    assert_eq!(error.field(b'C'), "57014");
    assert_eq!(error.field(b'M'), "canceling statement due to user request");
}

#[test]
fn a_query_that_waits_is_answered_with_an_error_and_never_runs() {
    let mut full = Full::new();
    let database = full.database.clone();
    let mut client = full.pooler.client(&full.database);
    let made = |n: usize| {
        let sql = format!("select count(*) from pg_tables where tablename = 'made{n}'");
        postgres().value(&database, &sql)
    };
    let sent = [
        query("create table made0 ()"),
        [batch("create table made1 ()"), sync()].concat(),
        // Nothing runs of a batch that a simple query stands in.
        [batch("create table made2 ()"), query("create table made2 ()"), sync()].concat(),
        [batch("create table made3 ()"), flush(), sync()].concat(),
        msg(b'F', &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for bytes in &sent {
        client.send(bytes);
        full.cancel(&client);
        let answer = client.until(b'Z');
        assert_eq!(tags(&answer), "EZ");
        check_error(&answer);
        assert_eq!(answer[1].body, b"I");
        assert_eq!(full.pooler.pool(&full.database, "cl_waiting"), 0);
    }
    full.pooler.wait_log("closing because: canceled a query that waited for a server (age=");
    full.pooler.wait_log("pooler error: canceling statement due to user request");
    full.let_go();
    assert_eq!(client.value("select 7"), "7");
    assert_eq!((0..4).map(made).collect::<Vec<_>>(), ["0"; 4]);
}

/// The Sync may come long after the cancel request; what is behind it is not concerned.
#[test]
fn a_batch_is_ignored_up_to_its_sync_whenever_that_comes() {
    let mut full = Full::new();
    let mut client = full.pooler.client(&full.database);
    let first = batch("select 1");
    // The cancel request comes in the middle of a packet.
    client.send(&first[..first.len() - 3]);
    full.cancel(&client);
    assert_eq!(tags(&client.until(b'E')), "E");
    client.send(&first[first.len() - 3..]);
    client.send(&[batch("select 2"), query("select 3")].concat());
    // Nothing is asked for while a batch is ignored.
    assert_eq!(full.pooler.pool(&full.database, "cl_waiting"), 0);
    client.send(&[sync(), query("select 4")].concat());
    assert_eq!(tags(&client.until(b'Z')), "Z");
    wait_until("the next query waits", || full.pooler.pool(&full.database, "cl_waiting") == 1);
    full.let_go();
    let answer = client.until(b'Z');
    assert_eq!(tags(&answer), "TDCZ");
    assert_eq!(answer[1].cells(), [Some("4".to_owned())]);
}

#[test]
fn only_the_first_of_a_pipeline_is_canceled() {
    let mut full = Full::new();
    let mut client = full.pooler.client(&full.database);
    let pipeline = [
        query("select 1"),
        query("select 2"),
        batch("select 3"),
        sync(),
        query("create table copied (n int); copy copied from stdin"),
    ];
    client.send(&pipeline.concat());
    full.cancel(&client);
    assert_eq!(tags(&client.until(b'Z')), "EZ");
    // Now the second one waits; it can be canceled, too.
    full.cancel(&client);
    assert_eq!(tags(&client.until(b'Z')), "EZ");
    wait_until("the batch waits", || full.pooler.pool(&full.database, "cl_waiting") == 1);
    full.let_go();
    assert_eq!(tags(&client.until(b'Z')), "12TDCZ");
    assert_eq!(tags(&client.until(b'G')), "CG");
    client.send(&[msg(b'd', b"1\n2\n"), msg(b'c', b"")].concat());
    assert_eq!(tags(&client.until(b'Z')), "CZ");
    assert_eq!(client.value("select sum(n) from copied"), "3");
}

/// COPY data that were sent ahead of their answer are for nobody.
#[test]
fn a_copy_that_waits_is_canceled_with_its_data() {
    let mut full = Full::new();
    let mut client = full.pooler.client(&full.database);
    client.send(&[query("copy t from stdin"), msg(b'd', b"1\n"), msg(b'c', b"")].concat());
    full.cancel(&client);
    assert_eq!(tags(&client.until(b'Z')), "EZ");
    client.send(&[msg(b'd', b"2\n"), msg(b'c', b"")].concat());
    full.let_go();
    assert_eq!(client.value("select 8"), "8");
}

#[test]
fn who_leaves_after_its_query_was_canceled_takes_nothing_with_it() {
    let mut full = Full::new();
    for torn in [false, true] {
        let mut client = full.pooler.client(&full.database);
        client.send(&batch("select 1"));
        full.cancel(&client);
        assert_eq!(tags(&client.until(b'E')), "E");
        if torn {
            drop(client);
        } else {
            client.bye();
        }
        wait_until("it is gone", || full.pooler.pool(&full.database, "cl_active") == 1);
    }
    full.let_go();
    full.pooler.assert_serves(&full.database);
}

/// Who waits in its login has no key yet; who is idle is not concerned either.
#[test]
fn a_waiting_login_is_nobodys_to_cancel() {
    let mut setup = Setup::trust("pool_mode = transaction\nserver_login_retry = 1\n");
    let dead = crate::rig::scratch::DeadPort::new();
    setup.databases = format!("* = host=127.0.0.1 port={}\n", dead.port);
    let pooler = Pooler::start(&setup);
    let mut login = pooler.tcp();
    login.send(&crate::rig::wire::startup(0, &[("user", "trusty"), ("database", "d")]));
    wait_until("it waits", || pooler.pool("d", "cl_waiting") == 1);
    let mut at = pooler.tcp();
    at.send(&crate::rig::wire::special(crate::rig::wire::CANCEL_REQUEST, &[0; 8]));
    assert_eq!(at.rest(), []);
    pooler.wait_log("closing because: failed cancel request (age=");
    assert_eq!(pooler.pool("d", "cl_waiting"), 1);
}

#[test]
fn waiting_clients_behind_the_canceled_one_keep_their_turn() {
    let mut full = Full::new();
    let mut first = full.pooler.waiter(&full.database, "select 1");
    let mut second = full.pooler.waiter(&full.database, "select 2");
    let mut at = full.pooler.tcp();
    at.send(&first.cancel_request());
    assert_eq!(at.rest(), []);
    assert_eq!(tags(&first.until(b'Z')), "EZ");
    assert_eq!(full.pooler.pool(&full.database, "cl_waiting"), 1);
    full.let_go();
    assert_eq!(tags(&second.until(b'Z')), "TDCZ");
    assert_eq!(first.value("select 3"), "3");
}

#[test]
fn psql_cancels_a_query_that_waits() {
    let mut full = Full::new();
    let mut psql = full.pooler.psql("trusty", &full.database, "");
    psql.args(["-v", "ON_ERROR_STOP=0", "-c", "select 1", "-c", "select 2"]);
    let child = psql.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it waits", || full.pooler.pool(&full.database, "cl_waiting") == 1);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    wait_until("it is canceled", || {
        full.pooler.log().contains("canceled a query that waited for a server")
    });
    full.let_go();
    let out = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(errors.contains("canceling statement due to user request"), "{errors}");
}

/// A driver's script: it prints what becomes of its queries, then `ready`, and asks again when it
/// has been told that the server is free.
fn driver(program: &str, arguments: &[&str], want: &[&[&str]]) {
    let mut full = Full::new();
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "60", program]).args(arguments);
    command.args([&full.pooler.port.to_string(), &full.database]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut input = child.stdin.take().unwrap();
    for part in want {
        for expected in *part {
            let line = lines.next().and_then(Result::ok).unwrap_or_default();
            assert!(line.contains(expected), "{line} instead of {expected}; see `make deps`");
        }
        assert_eq!(lines.next().and_then(Result::ok).as_deref(), Some("ready"));
        full.let_go();
        writeln!(input).unwrap();
        assert_eq!(lines.next().and_then(Result::ok).as_deref(), Some("42"));
        assert_eq!(tags(&full.holder.query("begin")), "CZ");
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

const CANCELED: &str = "canceling statement due to user request";

fn folder(name: &str) -> String {
    format!("{}/test/live/drivers/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn psycopg_cancels_a_query_that_waits() {
    let canceled = "57014 canceling statement due to user request IDLE";
    driver("/usr/bin/python3", &[&folder("waits_psycopg.py")], &[&[canceled, canceled]]);
}

#[test]
fn asyncpg_cancels_a_query_that_waits() {
    driver("/usr/bin/python3", &[&folder("waits_asyncpg.py")], &[&["timeout", "timeout"]]);
}

#[test]
fn jdbc_cancels_a_query_that_waits() {
    let java = ["-cp", "/usr/share/java/postgresql.jar", &folder("Waits.java")];
    driver("java", &java, &[&[CANCELED], &[CANCELED]]);
}

/// What follows an ignored batch may be about names that it would have given or taken.
#[test]
fn names_of_an_ignored_batch_are_errors_and_not_the_end() {
    let mut full = Full::new();
    let mut client = full.pooler.client(&full.database);
    let use_it = [bind("s", &[]), execute(), sync()].concat();
    client.send(&[parse("s", "select 's'"), use_it.clone(), use_it.clone()].concat());
    full.cancel(&client);
    check_error(&client.until(b'Z'));
    full.let_go();
    let answer = client.until(b'Z');
    assert_eq!((tags(&answer).as_str(), answer[0].field(b'C').as_str()), ("EZ", "26000"));
    client.send(&[parse("s", "select 's'"), use_it.clone()].concat());
    assert_eq!(tags(&client.until(b'Z')), "12DCZ");
    assert_eq!(tags(&full.holder.query("begin")), "CZ");
    // Close is ignored with the rest.
    let batch = [bind("s", &[]), execute(), close(b'S', "s"), sync()].concat();
    client.send(&[batch, parse("s", "select 'new'"), sync(), use_it.clone()].concat());
    full.cancel(&client);
    check_error(&client.until(b'Z'));
    full.let_go();
    let answer = client.until(b'Z');
    assert_eq!((tags(&answer).as_str(), answer[0].field(b'C').as_str()), ("EZ", "42P05"));
    assert_eq!(rows(&client.until(b'Z')), [[Some("s".into())]]);
}
