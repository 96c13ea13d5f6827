//! Every signal in every state, and what a shutdown leaves open (config 8).

use nix::sys::signal::Signal::{self, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::run::{texts, Run, Running};
use crate::rig::wait_until;
use crate::rig::wire::{last_error, query, tags};

const HUP: &str = "got SIGHUP, re-reading config";
const TERM: &str = "got SIGTERM, shutting down, waiting for all clients disconnect";
const INT: &str = "got SIGINT, shutting down, waiting for all servers connections to be released";
const FAST_TERM: &str = "got SIGTERM while shutting down, fast exit";
const FAST_INT: &str = "got SIGINT while shutting down, fast exit";
const QUIT: &str = "got SIGQUIT, fast exit";
const PAUSE: &str = "got SIGUSR1, pausing all activity";
const AGAIN: &str = "got SIGUSR1, but already paused/suspended";
const RESUME: &str = "got SIGUSR2, continuing from PAUSE";
const NOT_PAUSED: &str = "got SIGUSR2, but not paused/suspended";
const IGNORED: &str = "got SIGUSR2 while shutting down, ignoring";

/// Sends signals one after the other, each when the one before has left its line.
fn send(running: &Running, signals: &[(Signal, &str)]) {
    for (signal, line) in signals {
        let count = || running.read("log").matches(line).count();
        let before = count();
        running.signal(*signal);
        wait_until(line, || count() == before + 1);
    }
}

#[test]
fn signals_do_what_their_state_asks_for() {
    let rows: [&[(Signal, &str)]; 9] = [
        &[
            (SIGHUP, HUP),
            (SIGUSR2, NOT_PAUSED),
            (SIGUSR1, PAUSE),
            (SIGUSR1, AGAIN),
            (SIGHUP, HUP),
            (SIGUSR2, RESUME),
            (SIGUSR2, NOT_PAUSED),
            (SIGQUIT, QUIT),
        ],
        &[(SIGTERM, TERM), (SIGTERM, FAST_TERM)],
        &[(SIGTERM, TERM), (SIGINT, FAST_INT)],
        &[(SIGTERM, TERM), (SIGHUP, HUP), (SIGQUIT, QUIT)],
        &[(SIGINT, INT), (SIGINT, FAST_INT)],
        &[(SIGINT, INT), (SIGTERM, FAST_TERM)],
        &[(SIGINT, INT), (SIGHUP, HUP), (SIGUSR1, AGAIN), (SIGUSR2, IGNORED), (SIGQUIT, QUIT)],
        &[
            (SIGTERM, TERM),
            (SIGUSR1, PAUSE),
            (SIGUSR1, AGAIN),
            (SIGUSR2, IGNORED),
            (SIGTERM, FAST_TERM),
        ],
        &[(SIGUSR1, PAUSE), (SIGTERM, TERM), (SIGUSR2, IGNORED), (SIGINT, FAST_INT)],
    ];
    for row in rows {
        let settings = format!(
            "logfile = log\npidfile = pid\n[databases]\n* = host=127.0.0.1 port={}",
            postgres().port
        );
        let mut running = Run::new(&settings).up();
        // A client with a server, so that no shutdown is over at once.
        let database = postgres().new_database();
        let mut client = Raw::tcp(running.run.port).login("trusty", &database, "").unwrap().0;
        client.query("begin");
        send(&running, row);
        assert_eq!(client.rest(), [], "cut without a word: {row:?}");
        assert_eq!(running.code(), 0);
        let log = running.read("log");
        assert!(!log.contains("closing because") && !log.contains("dropped, exiting"), "{log}");
        assert!(!running.path("pid").exists() && !running.socket().exists());
    }
}

#[test]
fn signals_that_wait_together_are_all_handled() {
    let running = Run::new("logfile = log").up();
    running.signal(Signal::SIGSTOP);
    for signal in [SIGUSR2, SIGHUP, SIGUSR1] {
        running.signal(signal);
    }
    running.signal(Signal::SIGCONT);
    running.wait_for(RESUME);
    let log = texts(&running.read("log"));
    let want = [HUP, PAUSE, RESUME].map(|line| format!("LOG {line}"));
    assert_eq!(log[log.len() - 3..], want, "in the order of their numbers");
}

#[test]
fn nothing_is_done_after_a_fast_exit() {
    let mut running = Run::new("logfile = log").up();
    let mut console = running.console();
    running.signal(Signal::SIGSTOP);
    // Stopped, it gets all of this at once.
    console.send(&query("RELOAD"));
    for signal in [SIGTERM, SIGUSR1, SIGQUIT] {
        running.signal(signal);
    }
    running.signal(Signal::SIGCONT);
    assert_eq!(running.code(), 0);
    let log = texts(&running.read("log"));
    assert_eq!(log.last(), Some(&format!("LOG {QUIT}")), "{log:#?}");
}

#[test]
fn signals_before_the_handlers_kill() {
    // The start hangs in opening its log file, a pipe without a reader.
    let run = Run::through("mkfifo log; chmod 600 log", "logfile = log");
    let mut running = run.start();
    wait_until("the pipe is there", || running.path("log").exists());
    std::thread::sleep(std::time::Duration::from_millis(300));
    running.signal(SIGTERM);
    assert_eq!(running.code(), -(SIGTERM as i32));
}

fn serving(settings: &str) -> (Pooler, String) {
    let setup = Setup::trust(&format!("pool_mode = transaction\n{settings}"));
    (Pooler::start(&setup), postgres().new_database())
}

fn unix_console(pooler: &Pooler) -> Raw {
    pooler.unix().login("admin", "pgbouncer", "").unwrap().0
}

#[test]
fn console_stays_reachable_over_the_unix_socket() {
    for (signal, paused) in [(SIGTERM, "no"), (SIGINT, "yes")] {
        let (mut pooler, database) = serving("");
        let mut client = pooler.client(&database);
        client.query("begin");
        pooler.signal(signal);
        pooler.wait_log("shutting down");
        assert!(std::net::TcpStream::connect(("127.0.0.1", pooler.port)).is_err());
        let refused = pooler.unix().login("trusty", &database, "").err().unwrap();
        assert_eq!(last_error(&refused).2, "pooler is shutting down");
        let stranger = pooler.unix().login("trusty", "pgbouncer", "").err().unwrap();
        assert_eq!(last_error(&stranger).2, "not allowed");

        let mut console = unix_console(&pooler);
        let state = console.query("SHOW STATE");
        assert!(
            state.iter().any(|m| m.tag == b'D'
                && m.cells() == [Some("paused".to_owned()), Some(paused.to_owned())]),
            "{state:?}"
        );
        let text = |answer: Vec<crate::rig::wire::Msg>| answer[0].field(b'M');
        assert_eq!(text(console.query("RESUME")), "pooler is shutting down");
        let reload = console.query("RELOAD");
        assert_eq!(tags(&reload), "CZ");
        if signal == SIGINT {
            let answer = console.query(&format!("PAUSE {database}"));
            assert_eq!(text(answer), "already suspended/paused");
            console.send(&query("SHUTDOWN"));
            assert_eq!(console.rest(), []);
            assert_eq!(client.rest(), []);
        } else {
            client.query("commit");
            client.bye();
            std::thread::sleep(std::time::Duration::from_millis(800));
            assert_eq!(pooler.exited(), None, "the console counts");
            console.bye();
            pooler.wait_log("client connections dropped, exiting");
        }
        assert_eq!(pooler.wait_exit().code(), Some(0));
    }
}

#[test]
fn without_unix_sockets_only_old_consoles_go_on() {
    let running = Run::new("unix_socket_dir =\nlogfile = log").up();
    let mut console = running.console();
    running.signal(SIGTERM);
    running.wait_for(TERM);
    assert!(std::net::TcpStream::connect(("127.0.0.1", running.run.port)).is_err());
    assert!(tags(&console.query("SHOW VERSION")).ends_with('Z'));
    console.bye();
    let mut running = running;
    assert_eq!(running.code(), 0);
}

#[test]
fn shutdown_by_console_can_change_and_counts_for_signals() {
    let (mut pooler, database) = serving("");
    let mut client = pooler.client(&database);
    client.query("begin");
    let mut console = pooler.console();
    let done = console.query("SHUTDOWN WAIT_FOR_CLIENTS");
    assert_eq!(tags(&done), "CZ");
    let done = console.query("SHUTDOWN WAIT_FOR_SERVERS");
    assert_eq!(tags(&done), "CZ");
    client.send(&query("commit"));
    client.rest();
    pooler.wait_log("server connections dropped, exiting");
    assert_eq!(pooler.wait_exit().code(), Some(0));

    let (mut pooler, database) = serving("");
    let mut client = pooler.client(&database);
    client.query("begin");
    assert_eq!(tags(&pooler.console().query("SHUTDOWN WAIT_FOR_SERVERS")), "CZ");
    pooler.signal(SIGTERM);
    assert_eq!(client.rest(), []);
    assert_eq!(pooler.wait_exit().code(), Some(0));
    pooler.wait_log(FAST_TERM);
}

#[test]
fn waiting_for_servers_closes_idle_ones_and_refuses_those_who_wait() {
    let (mut pooler, database) = serving("default_pool_size = 1\n");
    let other = postgres().new_database();
    pooler.client(&other).value("select 1");
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&database));
    let mut idle = pooler.client(&database);
    one.query("begin");
    two.send(&query("select 1"));
    wait_until("it waits", || pooler.pool(&database, "cl_waiting") == 1);
    pooler.signal(SIGINT);
    pooler.wait_log("closing because: pause mode (age=");
    assert_eq!(last_error(&two.rest()).2, "server shutting down");
    assert_eq!(pooler.exited(), None);
    one.send(&query("commit"));
    assert!(tags(&one.rest()).starts_with("CZ"));
    assert_eq!(idle.rest(), [], "those who remain are cut without a word");
    assert_eq!(pooler.wait_exit().code(), Some(0));
}

#[test]
fn waiting_for_clients_opens_servers_as_needed() {
    let (mut pooler, database) = serving("");
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&database));
    one.query("begin");
    pooler.signal(SIGTERM);
    pooler.wait_log(TERM);
    assert_eq!(two.value("select 2"), "2", "that takes a second server");
    let mut console = unix_console(&pooler);
    let answer = console.query(&format!("PAUSE {}", postgres().new_database()));
    assert_eq!(tags(&answer), "CZ", "PAUSE of a database works");
    console.bye();
    one.bye();
    assert_eq!(pooler.exited(), None);
    two.bye();
    assert_eq!(pooler.wait_exit().code(), Some(0));
}

#[test]
fn a_client_that_logs_in_counts_too() {
    let mut running = Run::new("logfile = log\ntcp_defer_accept = 0").up();
    let mut slow = Raw::unix(&running.run.folder, running.run.port);
    slow.send(&[0, 0, 0]);
    running.signal(SIGTERM);
    running.wait_for(TERM);
    std::thread::sleep(std::time::Duration::from_millis(800));
    assert_eq!(running.exited(), None);
    drop(slow);
    assert_eq!(running.code(), 0);
    running.wait_for("client connections dropped, exiting");
}
