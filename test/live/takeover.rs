//! `-R` against a scripted old process: what it tolerates, what it refuses, and that the old process
//! is left alone by whatever fails before it is told to end (takeover 5 to 9).

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;

use nix::sys::signal::Signal;

use crate::rig::old::{self, Old};
use crate::rig::pooler::{binary, in_transactions};
use crate::rig::raw::Raw;
use crate::rig::run::{Run, Running};
use crate::rig::wait_until;
use crate::rig::wire::{
    bind, error, execute, last_error, msg, parse, query, sync, tags, terminate,
};

/// The place of an old process, with the databases `one` and `own` (which forces a user) that point
/// to nowhere.
fn place(settings: &str) -> (Run, UnixListener) {
    let databases =
        "[databases]\none = host=127.0.0.1 port=1\nown = host=127.0.0.1 port=1 user=boss";
    let run = Run::new(&format!("pool_mode = transaction\n{settings}\n{databases}"));
    let listener = old::listen(&run.folder, run.port);
    (run.args(&["-R"]), listener)
}

/// Both ends of a TCP connection: the test's, the one to hand over.
fn pair() -> (Raw, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (Raw::over(ours), listener.accept().unwrap().0)
}

/// A row of this task for a socket of number `fd` that is linked to `link`.
fn row<'a>(task: &'a str, fd: &'a str, link: &'a str) -> Vec<Option<&'a str>> {
    let database = Some("one").filter(|_| task != "pooler");
    let user = Some("trusty").filter(|_| task != "pooler");
    let mut row = vec![Some(fd), Some(task), user, database, Some("127.0.0.1"), Some("1")];
    row.extend([Some("12345"), Some(link)]);
    row.resize(15, None);
    row
}

/// Hands these over, ends, and waits until the successor is up.
fn replaced(start: Run, listener: &UnixListener, hand: impl FnOnce(&mut Old)) -> Running {
    let running = start.start();
    let mut old = Old::suspended(listener);
    hand(&mut old);
    old.complete("SHOW");
    old.hear("SHUTDOWN;");
    drop(old);
    running.wait_for("process up: ");
    running
}

#[test]
fn a_linked_pair_goes_on_where_it_was() {
    let (run, listener) = place("");
    let (mut client, client_end) = pair();
    let (mut server, server_end) = pair();
    let running = replaced(run, &listener, |old| {
        old.row(&row("pooler", "7", "0"), &listener);
        old.row(&row("client", "8", "9"), &client_end);
        old.row(&row("server", "9", "8"), &server_end);
    });
    drop((client_end, server_end));
    // An answer that was under way, then a query in the transaction.
    server.send(&[msg(b'C', b"UPDATE 1\0"), msg(b'Z', b"T")].concat());
    assert_eq!(tags(&client.until(b'Z')), "CZ");
    client.send(&query("commit"));
    assert_eq!(server.recv().unwrap().body, b"commit\0");
    server.send(&[msg(b'C', b"COMMIT\0"), msg(b'Z', b"I")].concat());
    assert_eq!(tags(&client.until(b'Z')), "CZ");
    // Nobody knows what state that server is in otherwise.
    assert_eq!(server.rest().last().unwrap().tag, b'X');
    running.wait_for("got pooler socket: unix:");
    let mut console = Raw::unix(&running.run.folder, running.run.port);
    console = console.login("admin", "pgbouncer", "").unwrap().0;
    assert_eq!(tags(&console.query("show version")), "TDCZ");
}

#[test]
fn rows_may_come_in_pieces_with_descriptors_in_one_heap_and_fewer_columns() {
    let (run, listener) = place("");
    let (mut first, first_end) = pair();
    let (mut second, second_end) = pair();
    let running = run.start();
    let mut old = Old::suspended(&listener);
    let rows = [row("client", "8", "0"), row("client", "9", "0")];
    let bytes = [old::row(&rows[0][..8]), old::row(&rows[1])].concat();
    old.hand(&bytes[..3], &[first_end.as_raw_fd(), second_end.as_raw_fd()]);
    for byte in &bytes[3..] {
        old.say(&[*byte]);
    }
    old.row(&row("pooler", "7", "0"), &listener);
    old.complete("SHOW");
    old.hear("SHUTDOWN;");
    drop((old, first_end, second_end));
    running.wait_for("process up: ");
    for client in [&mut first, &mut second] {
        client.send(&terminate());
        assert!(client.rest().is_empty());
    }
    // A line follows what it tells of.
    wait_until("both are told of", || {
        running.all().matches("closing because: client close request").count() == 2
    });
}

#[test]
fn what_cannot_go_on_is_told_so() {
    let (run, listener) = place("");
    let mut ends: Vec<(Raw, TcpStream)> = (0..5).map(|_| pair()).collect();
    let key = format!("\\x{}", "5a".repeat(32));
    let running = replaced(run, &listener, |old| {
        old.row(&row("pooler", "7", "0"), &listener);
        // In login, of an unknown database, with a link that leads nowhere.
        let mut nobody = row("client", "10", "0");
        (nobody[2], nobody[3]) = (None, None);
        old.row(&nobody, &ends[0].1);
        let mut elsewhere = row("client", "11", "0");
        elsewhere[3] = Some("gone");
        old.row(&elsewhere, &ends[1].1);
        old.row(&row("client", "12", "99"), &ends[2].1);
        // Keys that PgBouncer itself refuses; a server that nobody uses.
        let mut forced = row("client", "13", "0");
        (forced[3], forced[13], forced[14]) = (Some("own"), Some(key.as_str()), Some(key.as_str()));
        old.row(&forced, &ends[3].1);
        old.row(&row("server", "14", "0"), &ends[4].1);
    });
    let mut ends: Vec<Raw> = ends.drain(..).map(|(ours, _)| ours).collect();
    for (at, text) in [
        (0, "online restart during login"),
        (1, "no such database: gone"),
        (2, "server conn crashed?"),
    ] {
        assert_eq!(last_error(&ends[at].rest()), crate::rig::wire::fatal(text));
    }
    ends[3].send(&terminate());
    assert!(ends[3].rest().is_empty());
    assert_eq!(tags(&ends[4].rest()), "X");
    drop(running);
}

#[test]
fn refusals_of_the_old_process_end_the_start() {
    let refusal = error(&[(b'S', "ERROR"), (b'C', "08P01"), (b'M', "no")]);
    for (at, want) in [
        (0, "FATAL server login failed: ERROR no"),
        (1, "FATAL old bouncer sent: ERROR: no"),
        (2, "FATAL old bouncer sent: ERROR: no"),
        (3, "FATAL got bad CMD from old bouncer: WAIT_CLOSE; try again"),
        (4, "FATAL unexpected EOF"),
        (5, "FATAL got row without fd info"),
        (6, "FATAL unknown task: thing"),
        (7, "FATAL unexpected pkt: '!'"),
    ] {
        let (run, listener) = place("");
        let mut running = run.start();
        let mut old = Old::accept(&listener);
        if at > 0 {
            old.welcome();
            old.does_not_know_handoff();
            old.hear("SUSPEND;");
        }
        if at > 1 && at != 3 {
            old.complete("SUSPEND");
            old.hear("SHOW FDS;");
        }
        match at {
            3 => old.complete("WAIT_CLOSE"),
            4 => old.hand(&old::row(&row("pooler", "7", "0"))[..9], &[listener.as_raw_fd()]),
            5 => old.say(&old::row(&row("pooler", "7", "0"))),
            6 => old.row(&row("thing", "7", "0"), &listener),
            7 => old.say(&msg(b'!', b"")),
            _ => old.say(&refusal),
        }
        if at == 4 {
            drop(old);
        } else {
            // It hangs up without a word: the old process goes on.
            assert!(old.is_left());
        }
        assert_eq!(running.code(), 1);
        assert_eq!(running.texts().last().unwrap(), want);
    }
}

#[test]
fn what_an_old_process_may_say_and_hand_over_has_its_limits() {
    let (run, listener) = place("");
    let mut running = run.start();
    let mut old = Old::suspended(&listener);
    let notice = msg(b'N', &[b'x'; 60_000]);
    // It hangs up in the middle.
    while old.try_say(&notice) {}
    assert_eq!(running.code(), 1);
    assert_eq!(running.texts().last().unwrap(), "FATAL old process says too much");
    let run = Run::through("ulimit -n 40", "").args(&["-R"]);
    let listener = old::listen(&run.folder, run.port);
    let mut running = run.start();
    let mut old = Old::suspended(&listener);
    old.hand(&old::row(&row("pooler", "7", "0")), &[listener.as_raw_fd(); 60]);
    assert_eq!(running.code(), 1);
    assert_eq!(
        running.texts().last().unwrap(),
        "FATAL old process hands over more sockets than we may have open, which is 40 \
         descriptors; start with a higher limit (ulimit -n)"
    );
}

#[test]
fn names_that_the_old_process_has_left_on_a_server_are_in_nobodys_way() {
    let (mut pooler, database) = in_transactions("");
    let mut client = pooler.client(&database);
    let value = |client: &mut Raw, name: &str, sql: &str| {
        client.send(&[parse(name, sql), bind(name, &[]), execute(), sync()].concat());
        let answer = client.until(b'Z');
        let row = answer.iter().find(|m| m.tag == b'D');
        row.unwrap_or_else(|| panic!("{answer:?}")).cells()[0].clone().unwrap()
    };
    client.query("begin");
    for (name, sql, want) in [("a", "select 1", "1"), ("b", "select 2", "2")] {
        assert_eq!(value(&mut client, name, sql), want);
    }
    let names = "select string_agg(name, ' ' order by name) from pg_prepared_statements";
    assert_eq!(client.value(names), "PGBOUNCER_1 PGBOUNCER_2");
    pooler.replace(binary());
    // Still on that server, whose names are those that we would give.
    for (name, sql, want) in [("c", "select 8", "8"), ("d", "select 9", "9")] {
        assert_eq!(value(&mut client, name, sql), want);
    }
    client.query("commit");
    assert_eq!(value(&mut client, "c2", "select 8"), "8");
}

#[test]
fn an_old_process_that_dies_when_all_is_handed_over_loses_nothing() {
    for shuts_down in [false, true] {
        let (run, listener) = place("pidfile = DIR/pid");
        let folder = run.folder.clone();
        // The number of a process that is gone.
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        crate::rig::scratch::write(&folder.join("pid"), format!("{}\n", gone.id()));
        let (mut client, end) = pair();
        let running = run.start();
        let mut old = Old::suspended(&listener);
        old.row(&row("pooler", "7", "0"), &listener);
        old.row(&row("client", "8", "0"), &end);
        old.complete("SHOW");
        if shuts_down {
            old.hear("SHUTDOWN;");
        }
        drop((old, end));
        running.wait_for("process up: ");
        running.wait_for("stale pidfile, removing");
        client.send(&terminate());
        assert!(client.rest().is_empty());
    }
}

#[test]
fn without_an_old_process_it_is_an_ordinary_start() {
    let running = Run::new("").args(&["-R"]).up();
    running.wait_for("LOG old process not found, try to continue normally");
}

#[test]
fn an_old_process_goes_on_if_its_successor_dies() {
    let (mut pooler, database) = in_transactions("");
    let mut client = pooler.client(&database);
    assert_eq!(client.value("select 1"), "1");
    // A monitor does not keep it from going on.
    let mut monitor = pooler.console();
    let mut console = crate::rig::fds::Taker::own_user(&pooler);
    console.query("SUSPEND;");
    console.show_fds();
    client.send(&query("select 2"));
    drop(console);
    assert_eq!(client.until(b'Z')[1].cells()[0].as_deref(), Some("2"));
    pooler.wait_log("admin disappeared when suspended, doing RESUME");
    assert_eq!(tags(&monitor.query("show version")), "TDCZ");
    pooler.assert_serves(&database);
}

#[test]
fn a_process_that_shuts_down_refuses_and_serves_on() {
    let (mut pooler, database) = in_transactions("");
    let mut client = pooler.client(&database);
    pooler.command("SHUTDOWN WAIT_FOR_CLIENTS");
    assert_eq!(pooler.fail_to_replace(), Some(1));
    pooler.wait_log("FATAL old bouncer sent: ERROR: pooler is shutting down");
    assert_eq!(client.value("select 1"), "1");
    client.bye();
    assert_eq!(pooler.wait_exit().code(), Some(0));
}

#[test]
fn the_successor_in_the_background_has_the_pidfile_and_can_be_replaced_itself() {
    let run = Run::new("pidfile = DIR/pid\nlogfile = DIR/log");
    let folder = run.folder.clone();
    let mut first = run.args(&["-d"]).start();
    first.follow_to_background();
    let mut before = first.pid;
    for _ in 0..2 {
        let status = crate::rig::scratch::command(binary())
            .args(["-R", "-d", "ini"])
            .current_dir(&folder)
            .status();
        assert!(status.unwrap().success(), "{}", first.all());
        let pid = || std::fs::read_to_string(folder.join("pid")).unwrap_or_default();
        wait_until("the pidfile is the successor's", || {
            pid().ends_with('\n') && pid().trim() != before.to_string()
        });
        before = pid().trim().parse().unwrap();
        first.pid = before;
        first.command("show version");
    }
    first.signal(Signal::SIGTERM);
    wait_until("all files are gone", || !folder.join("pid").exists() && !first.socket().exists());
}
