//! From one of us to the next under load: pgbench in all its ways, five handoffs each, not one error.

use std::process::Stdio;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::rig::pooler::{binary, Pooler, Setup};
use crate::rig::postgres::{postgres, tls_postgres};
use crate::rig::tls::setup as tls_setup;
use crate::rig::wait_until;

/// Handoffs of one run.
const TURNS: usize = 5;
/// Clients of one run.
const CLIENTS: usize = 16;

/// pgbench waits for the answer to each Parse: with fewer threads than clients those who have a server
/// would not be heard meanwhile.
const PREPARED: [&str; 4] = ["-M", "prepared", "-j", "16"];

/// Runs pgbench with these switches while poolers take over from one another.
fn race(mode: &str, encrypted: bool, switches: &[&str]) {
    let server = if encrypted { tls_postgres() } else { postgres() };
    let database = server.new_bench_database();
    let size = if mode == "session" { CLIENTS } else { 4 };
    let settings = format!("pool_mode = {mode}\ndefault_pool_size = {size}\n");
    let mut setup = Setup::trust(&settings);
    if encrypted {
        setup = tls_setup("prefer", &format!("{settings}server_tls_sslmode = require\n"));
        setup.databases = format!("* = host=127.0.0.1 port={}\n", server.port);
    }
    let mut pooler = Pooler::start(&setup);
    let mut tool = server.tool("pgbench");
    tool.args(["-n", "-T", "50", "-c", &CLIENTS.to_string(), "-U", "trusty", "-h", "127.0.0.1"]);
    tool.args(["-p", &pooler.port.to_string()]).args(switches).arg(&database);
    tool.env("PGSSLMODE", if encrypted { "require" } else { "disable" });
    let mut run = tool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let show = |pooler: &Pooler, topic, column| pooler.show(topic, column, ("database", &database));
    wait_until("all are there", || show(&pooler, "CLIENTS", "state").len() == CLIENTS);
    let mut keepers = Vec::new();
    for _ in 0..TURNS {
        let before = show(&pooler, "STATS", "total_query_count");
        keepers.push(pooler.succeed(binary()));
        let after = show(&pooler, "STATS", "total_query_count");
        let number = |texts: &[String]| texts[0].parse::<u64>().unwrap();
        assert!(number(&after) >= number(&before), "statistics go on: {before:?} {after:?}");
        wait_until("queries run", || show(&pooler, "STATS", "total_query_count") != after);
        let word = if encrypted { "TLSv1.3" } else { "" };
        let tls = show(&pooler, "CLIENTS", "tls");
        assert!(tls.len() == CLIENTS && tls.iter().all(|text| text.starts_with(word)), "{tls:?}");
    }
    // Who saw an error has left.
    assert!(run.try_wait().unwrap().is_none(), "it was to run on");
    kill(Pid::from_raw(i32::try_from(run.id()).unwrap()), Signal::SIGTERM).unwrap();
    let done = run.wait_with_output().unwrap();
    let [out, errors] = [done.stdout, done.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(errors.matches("error").count(), 0, "{out}\n{errors}\n{}", pooler.log());
    drop(pooler);
    // Whoever kept TLS connections for others ends with them.
    for mut keeper in keepers {
        wait_until("the keeper ends", || keeper.try_wait().unwrap().is_some());
    }
}

#[test]
fn tpcb_in_transaction_mode() {
    race("transaction", false, &[]);
}

#[test]
fn tpcb_in_session_mode() {
    race("session", false, &["-M", "extended"]);
}

#[test]
fn prepared_statements_in_transaction_mode() {
    race("transaction", false, &PREPARED);
}

#[test]
fn prepared_statements_in_session_mode() {
    race("session", false, &["-M", "prepared", "-S"]);
}

#[test]
fn selects_in_transaction_mode() {
    race("transaction", false, &["-S"]);
}

#[test]
fn tls_with_prepared_statements_in_transaction_mode() {
    race("transaction", true, &PREPARED);
}

#[test]
fn tls_in_session_mode() {
    race("session", true, &["-S"]);
}
