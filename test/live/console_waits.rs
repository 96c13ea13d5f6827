//! Who waits, and why: consoles in PAUSE and WAIT_CLOSE (admin 4.1), clients in SHOW WAITING.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::rig::pooler::{in_transactions as start, Pooler, Setup};
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{fatal, last_error, query, startup, tags, Msg};

/// The command tag of an answer without rows.
fn tag(answer: &[Msg]) -> String {
    assert_eq!(tags(answer), "CZ");
    String::from_utf8_lossy(&answer[0].body).trim_end_matches('\0').to_owned()
}

/// A console that is told nothing by this command until somebody else does something.
fn console_waiting(pooler: &Pooler, command: &str) -> Raw {
    let mut console = pooler.console();
    console.send(&query(command));
    console.send(&query("SHOW VERSION"));
    // What waits doesn't hold up what comes behind it.
    assert_eq!(tags(&console.until(b'Z')), "TDCZ", "{command}");
    console
}

#[test]
fn wait_close_ends_when_the_last_old_server_is_gone() {
    let (pooler, database) = start("");
    let mut holder = pooler.holder(&database);
    assert_eq!(tag(&pooler.command("WAIT_CLOSE")), "WAIT_CLOSE");
    pooler.command(&format!("RECONNECT {database}"));
    let mut all = console_waiting(&pooler, "WAIT_CLOSE");
    let mut one = console_waiting(&pooler, &format!("WAIT_CLOSE {database}"));
    let mut pause = console_waiting(&pooler, "PAUSE");
    holder.query("commit");
    for (console, want) in
        [(&mut all, "WAIT_CLOSE"), (&mut one, "WAIT_CLOSE"), (&mut pause, "PAUSE")]
    {
        assert_eq!(tag(&console.until(b'Z')), want);
    }
    let mut refused = pooler.console().query("WAIT_CLOSE pgbouncer");
    refused.truncate(1);
    assert_eq!(last_error(&refused).2, "cannot wait in admin db: pgbouncer");
    pooler.wait_log(&format!("WAIT_CLOSE '{database}' command issued"));
}

#[test]
fn waiting_consoles_are_told_that_the_process_ends() {
    let (mut pooler, database) = start("");
    let _holder = pooler.holder(&database);
    pooler.command("RECONNECT");
    let commands = ["WAIT_CLOSE".to_owned(), format!("PAUSE {database}"), "PAUSE".to_owned()];
    let mut waiting = commands.map(|command| console_waiting(&pooler, &command));
    let mut ender = pooler.console();
    ender.send(&query("SHUTDOWN"));
    for console in &mut waiting {
        assert_eq!(last_error(&console.rest()), fatal("pooler is shutting down"));
    }
    assert_eq!(tags(&ender.rest()), "", "who says SHUTDOWN is told nothing");
    assert_eq!(pooler.wait_exit().code(), Some(0));
}

/// Control-C in psql sends a cancel request.
#[test]
fn an_interrupted_psql_gets_its_prompt_back() {
    let (pooler, database) = start("");
    let _holder = pooler.holder(&database);
    pooler.command("RECONNECT");
    for (command, succeeds) in [
        ("WAIT_CLOSE".to_owned(), false),
        (format!("PAUSE {database}"), false),
        ("PAUSE".into(), true),
    ] {
        let line = issued_line(&command);
        let issued = || pooler.log().matches(&line).count();
        let before = issued();
        let mut psql = pooler.psql("admin", "pgbouncer", "admin-pw");
        let psql = psql.args(["-c", &command]).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("it waits", || issued() > before);
        kill(Pid::from_raw(psql.id() as i32), Signal::SIGINT).unwrap();
        let output = psql.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Interrupted, it fails whatever the answer is.
        let refused = said.contains("canceling wait due to cancel request");
        assert_eq!(refused, !succeeds, "{command}: {said}");
    }
    assert_eq!(pooler.show("STATE", "value", ("key", "active")), ["yes"], "PAUSE is over");
}

fn issued_line(command: &str) -> String {
    match command.split_once(' ') {
        Some((verb, name)) => format!("{verb} '{name}' command issued"),
        None => format!("{command} command issued"),
    }
}

/// `reason: detail` of the clients of a database that wait.
fn reasons(pooler: &Pooler, database: &str) -> Vec<String> {
    let column = |name| pooler.show("WAITING", name, ("database", database));
    let both = column("reason").into_iter().zip(column("detail"));
    both.map(|(reason, detail)| format!("{reason}: {detail}")).collect()
}

#[test]
fn show_waiting_tells_why_clients_wait() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut setup = Setup::trust("pool_mode = transaction\ndefault_pool_size = 1\n");
    setup.databases.push_str(&format!("down = host=127.0.0.1 port={nobody} dbname=x\n"));
    let pooler = Pooler::start(&setup);
    let database = crate::rig::postgres::postgres().new_database();
    let mut holder = pooler.holder(&database);
    assert_eq!(reasons(&pooler, &database), Vec::<String>::new());
    let mut waiter = pooler.waiter(&database, "select 1");
    assert_eq!(reasons(&pooler, &database), ["pool full: pool_size=1 is reached"]);
    let mut pause = console_waiting(&pooler, "PAUSE");
    assert_eq!(reasons(&pooler, &database), ["paused: PAUSE is in force"]);
    pooler.command("RESUME");
    assert_eq!(tag(&pause.until(b'Z')), "PAUSE");
    let id = pooler.show("WAITING", "id", ("database", &database));
    assert_eq!(pooler.show("CLIENTS", "id", ("state", "waiting")), id);
    let waited = || pooler.show("WAITING", "waited", ("database", &database))[0].parse::<u64>();
    let before = waited().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(waited().unwrap() >= before + 20_000, "microseconds");
    holder.query("commit");
    assert_eq!(tags(&waiter.until(b'Z')), "TDCZ");

    let mut login = pooler.tcp();
    login.send(&startup(0, &[("user", "trusty"), ("database", "down")]));
    let want = "server unreachable: connect failed: Connection refused; next attempt in ";
    wait_until("it is known", || reasons(&pooler, "down").iter().any(|r| r.starts_with(want)));
    assert_eq!(pooler.show("WAITING", "user", ("database", "down")), ["trusty"]);
}
