//! PostgreSQL's own programs replicate through the pooler, while other clients are served.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::replication::replicating;
use crate::rig::pooler::Pooler;
use crate::rig::postgres::primary;
use crate::rig::scratch::scratch;
use crate::rig::wait_until;

/// One of the programs, to be run through the pooler.
pub(crate) fn tool(pooler: &Pooler, program: &str, args: &[&str]) -> Command {
    let mut tool = primary().tool(program);
    tool.args(["-w", "-h", "127.0.0.1", "-p", &pooler.port.to_string(), "-U", "trusty"]);
    tool.args(args);
    tool
}

pub(crate) fn run(mut tool: Command) -> Output {
    let out = tool.output().unwrap();
    assert!(out.status.success(), "{tool:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

/// A program in the background, told to end with SIGINT as from a keyboard.
pub(crate) struct Background(Child);

impl Background {
    pub(crate) fn start(mut tool: Command) -> Background {
        let child = tool.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        scratch().watch(child.id());
        Background(child)
    }

    /// `timeout` passes the signal on to the program that it runs.
    pub(crate) fn interrupt(mut self) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGINT).unwrap();
        wait_until("the program ends", || self.0.try_wait().unwrap().is_some());
        scratch().forget(self.0.id());
        let out = self.0.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

/// Runs `work` while a client in transaction mode asks, and is answered, again and again.
fn beside_usual_clients(pooler: &Pooler, database: &str, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| {
            let mut client = pooler.client(database);
            let mut asked = 0_u32;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(client.value(&format!("select {asked}")), asked.to_string());
                asked += 1;
            }
            asked
        });
        work();
        done.store(true, Ordering::Relaxed);
        assert!(asker.join().unwrap() > 0);
    });
}

/// All walsenders of the pooler's have ended, on both sides.
fn assert_all_gone(pooler: &Pooler) {
    wait_until("no replication connection is left", || {
        ["CLIENTS", "SERVERS"].iter().all(|table| {
            ["logical", "physical"]
                .iter()
                .all(|kind| pooler.show(table, "id", ("replication", kind)).is_empty())
        })
    });
}

fn folder_for_tool() -> PathBuf {
    scratch().folder().join("out")
}

#[test]
fn pg_recvlogical_gets_changes_until_it_is_interrupted() {
    let (pooler, database) = replicating("");
    primary().value(&database, "create table t (a text)");
    let slot = format!("recv{}", scratch().serial());
    let file = folder_for_tool();
    let at = file.display().to_string();
    let base = ["-d", &database, "-S", &slot];
    run(tool(
        &pooler,
        "pg_recvlogical",
        &[&base[..], &["--create-slot", "-P", "test_decoding"]].concat(),
    ));
    let start = [&base[..], &["--start", "-f", &at, "-F", "1", "-s", "1", "--no-loop"]].concat();
    let receiver = Background::start(tool(&pooler, "pg_recvlogical", &start));
    beside_usual_clients(&pooler, &database, || {
        for round in 0..5 {
            primary().value(&database, &format!("insert into t values ('change {round}.')"));
            let text = format!("change {round}.");
            wait_until("the change arrives", || {
                std::fs::read_to_string(&file).is_ok_and(|seen| seen.contains(&text))
            });
        }
    });
    wait_until("it confirms what it has written", || {
        let sql = format!(
            "select confirmed_flush_lsn > restart_lsn from pg_replication_slots \
             where slot_name = '{slot}'"
        );
        primary().value("postgres", &sql) == "t"
    });
    receiver.interrupt();
    assert_all_gone(&pooler);
    run(tool(&pooler, "pg_recvlogical", &[&base[..], &["--drop-slot"]].concat()));
    assert_all_gone(&pooler);
}

#[test]
fn pg_basebackup_makes_a_complete_backup() {
    let (pooler, database) = replicating("");
    for wal in ["fetch", "stream"] {
        let target = folder_for_tool();
        let at = target.display().to_string();
        beside_usual_clients(&pooler, &database, || {
            run(tool(&pooler, "pg_basebackup", &["-D", &at, "-X", wal, "-c", "fast"]));
        });
        let mut check = primary().tool("pg_verifybackup");
        check.arg(&target);
        run(check);
        assert_all_gone(&pooler);
    }
    pooler.wait_log("login attempt: db=replication user=trusty tls=no replication=yes");
}

#[test]
fn pg_receivewal_archives_segments() {
    let (pooler, database) = replicating("");
    let target = scratch().folder();
    let slot = format!("wal{}", scratch().serial());
    let at = target.display().to_string();
    run(tool(&pooler, "pg_receivewal", &["--create-slot", "-S", &slot]));
    let receiver = Background::start(tool(
        &pooler,
        "pg_receivewal",
        &["-D", &at, "-S", &slot, "--synchronous", "--no-loop", "-s", "1"],
    ));
    primary().value(&database, "create table w (a int)");
    beside_usual_clients(&pooler, &database, || {
        primary().value(&database, "insert into w select generate_series(1, 1000)");
        primary().value(&database, "select pg_switch_wal()");
        wait_until("a whole segment is there", || {
            let files = std::fs::read_dir(&target).unwrap().flatten();
            files.into_iter().any(|file| !file.file_name().to_string_lossy().ends_with(".partial"))
        });
    });
    receiver.interrupt();
    assert_all_gone(&pooler);
    run(tool(&pooler, "pg_receivewal", &["--drop-slot", "-S", &slot]));
}

#[test]
fn psql_speaks_both_languages_on_a_logical_connection() {
    let (pooler, database) = replicating("");
    let ask = |commands: &[&str]| {
        let dsn = format!("{} replication=database", pooler.dsn("trusty", &database));
        let mut psql = primary().tool("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &dsn]);
        psql.args(commands.iter().flat_map(|command| ["-c", command]));
        String::from_utf8(run(psql).stdout).unwrap()
    };
    let answer = ask(&["IDENTIFY_SYSTEM", "select 6 * 7", "SHOW wal_level"]);
    let lines: Vec<&str> = answer.lines().collect();
    assert!(lines[0].ends_with(&format!("|{database}")), "{answer}");
    assert_eq!(lines[1..], ["42", "logical"]);
    assert_all_gone(&pooler);
}

#[test]
fn subscription_follows_its_publication_through_the_pooler() {
    let (pooler, database) = replicating("");
    let other = primary().new_database();
    let slot = format!("sub{}", scratch().serial());
    for database in [&database, &other] {
        primary().value(database, "create table t (a int primary key, b text)");
    }
    primary().value(&database, "create publication p for table t");
    // A subscription to its own cluster can't make its slot itself.
    primary().value(
        &database,
        &format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')"),
    );
    primary().value(
        &other,
        &format!(
            "create subscription s connection '{}' publication p \
         with (create_slot = false, slot_name = '{slot}', copy_data = false)",
            pooler.dsn("trusty", &database)
        ),
    );
    beside_usual_clients(&pooler, &database, || {
        primary().value(
            &database,
            "insert into t select i, 'row ' || i from generate_series(1, 5000) i",
        );
        primary().value(&database, "update t set b = 'changed' where a = 17");
        wait_until("everything has arrived", || {
            primary().value(
                &other,
                "select count(*) || ' ' || count(*) filter (where b = 'changed') from t",
            ) == "5000 1"
        });
    });
    assert_eq!(pooler.show("SERVERS", "application_name", ("replication", "logical")), ["s"]);
    primary().value(&other, "alter subscription s disable");
    primary().value(&other, "alter subscription s set (slot_name = none)");
    primary().value(&other, "drop subscription s");
    assert_all_gone(&pooler);
    primary().value("postgres", &format!("select pg_drop_replication_slot('{slot}')"));
}
