//! The console through drivers that speak the extended protocol only, or mostly: each sees the rows
//! that a simple query has, in text and in binary. Their scripts are in `drivers/`.

use std::collections::BTreeMap;
use std::error::Error;
use std::process::Command;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::Row;

use super::drivers::{connect, in_time};
use crate::rig::pooler::{in_transactions, Pooler};
use crate::rig::raw::Raw;
use crate::rig::wire::{bind, describe, execute, msg, parse, query, sync, tags};

const TOPICS: [&str; 3] = ["POOLS", "CLIENTS", "STATS"];

/// Where Debian puts the JDBC driver.
const JDBC: &str = "/usr/share/java/postgresql.jar";
/// Where npm (see test/bin/deps.sh) and Debian put node-postgres.
const NODE_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/drivers/node_modules");
const NODE_PATH_DEBIAN: &str = "/usr/share/nodejs";

/// A pooler with a database that has a client and a server, both with nothing to do.
struct Scene {
    pooler: Pooler,
    database: String,
    _client: Raw,
}

/// Lines `TOPIC|column=value|...` of the database's rows; averages change from one look to the next.
type Shown = BTreeMap<&'static str, Vec<String>>;

impl Scene {
    fn new() -> Self {
        // What JDBC asks for in each start-up packet.
        let (pooler, database) =
            in_transactions("ignore_startup_parameters = extra_float_digits\n");
        let mut client = pooler.client(&database);
        assert_eq!(client.value("select 1"), "1");
        Self { pooler, database, _client: client }
    }

    /// What simple queries show.
    fn shown(&self) -> Shown {
        let mut console = self.pooler.console();
        let lines = |topic: &str| {
            let answer = console.query(&format!("SHOW {topic}"));
            let names = answer[0].cells();
            let rows = answer.iter().filter(|m| m.tag == b'D').map(|row| row.cells());
            let named = rows.map(|row| {
                let cells = names.iter().flatten().zip(row);
                cells.map(|(name, value)| (name.clone(), value)).collect::<Vec<_>>()
            });
            let own = named.filter(|row| self.is_own(row));
            own.map(|row| line(topic, row)).collect::<Vec<_>>()
        };
        let shown: Shown = TOPICS.into_iter().zip(TOPICS.map(lines)).collect();
        assert!(shown.values().all(|lines| lines.len() == 1), "{shown:?}");
        shown
    }

    fn is_own(&self, row: &[(String, Option<String>)]) -> bool {
        row.contains(&("database".to_owned(), Some(self.database.clone())))
    }

    /// Runs a driver's script, which prints what it sees in each of these ways.
    fn check(&self, ways: &[&str], mut driver: Command) {
        let shown = self.shown();
        let out = driver
            .args([&self.pooler.port.to_string(), &self.database])
            .output()
            .unwrap_or_else(|e| panic!("{driver:?}: {e}"));
        let text = String::from_utf8_lossy(&out.stdout);
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{driver:?}; `make deps` installs drivers: {errors}");
        let lines: Vec<(&str, String)> = text
            .lines()
            .filter_map(|line| line.split_once('|'))
            .map(|(way, rest)| (way, without_averages(rest)))
            .collect();
        let of = |wanted: &str, kind: &str| {
            let kind = format!("{kind}|");
            let lines =
                lines.iter().filter(|(way, line)| *way == wanted && line.starts_with(&kind));
            let mut lines: Vec<String> = lines.map(|(_, line)| line.clone()).collect();
            lines.dedup();
            lines
        };
        for way in ways {
            for (topic, rows) in &shown {
                assert_eq!(of(way, topic), *rows, "{way}: {errors}");
            }
        }
        for way in ways.iter().filter(|way| !of(way, "error").is_empty()) {
            let text = "error|08P01|invalid command 'NONSENSE', use SHOW HELP;";
            assert_eq!(of(way, "error"), [text]);
            assert_eq!(of(way, "tag"), ["tag|PAUSE", "tag|RESUME"], "{errors}");
            assert_eq!(of(way, "paused"), ["paused|1", "paused|0"], "{errors}");
        }
        assert!(lines.iter().any(|(_, line)| line.starts_with("error|")), "{text}{errors}");
    }
}

fn line(topic: &str, row: Vec<(String, Option<String>)>) -> String {
    let cells = row.into_iter().map(|(name, value)| {
        let value = value.unwrap_or_else(|| "NULL".to_owned());
        format!("|{name}={value}")
    });
    without_averages(&format!("{topic}{}", cells.collect::<String>()))
}

fn without_averages(line: &str) -> String {
    line.split('|').filter(|cell| !cell.starts_with("avg_")).collect::<Vec<_>>().join("|")
}

/// A program with a script, killed if it hangs.
fn script(program: &[&str], name: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "60"]).args(program);
    command.arg(format!("{}/test/live/drivers/{name}", env!("CARGO_MANIFEST_DIR")));
    command
}

#[test]
fn psycopg_runs_console_commands() {
    let python = script(&["/usr/bin/python3"], "pools_psycopg.py");
    Scene::new().check(&["default", "prepared", "binary"], python);
}

#[test]
fn asyncpg_runs_console_commands() {
    Scene::new().check(&["fetch", "prepared"], script(&["/usr/bin/python3"], "pools_asyncpg.py"));
}

#[test]
fn jdbc_runs_console_commands() {
    assert!(std::path::Path::new(JDBC).exists(), "no {JDBC}; `make deps` installs it");
    Scene::new().check(&["default", "prepared"], script(&["java", "-cp", JDBC], "Pools.java"));
}

#[test]
fn node_postgres_runs_console_commands() {
    let mut node = script(&["node"], "pools.js");
    node.env("NODE_PATH", format!("{NODE_PATH}:{NODE_PATH_DEBIAN}"));
    Scene::new().check(&["default", "prepared", "binary"], node);
}

/// A `numeric` without fraction.
struct Number(u128);

impl<'a> FromSql<'a> for Number {
    fn from_sql(_: &Type, bytes: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let words: Vec<u16> = bytes.chunks(2).map(|w| u16::from_be_bytes([w[0], w[1]])).collect();
        assert_eq!(words.len(), 4 + usize::from(words[0]), "{words:?}");
        let digits = words[4..].iter().copied().chain(std::iter::repeat(0));
        let digits = digits.take(usize::from(words[1]) + 1);
        Ok(Self(digits.fold(0, |sum, digit| sum * 10_000 + u128::from(digit))))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::NUMERIC
    }
}

fn cells(row: &Row) -> Vec<(String, Option<String>)> {
    let value = |at: usize, kind: &Type| match *kind {
        Type::INT4 => Some(row.get::<_, i32>(at).to_string()),
        Type::NUMERIC => Some(row.get::<_, Number>(at).0.to_string()),
        _ => row.get::<_, Option<String>>(at),
    };
    let columns = row.columns().iter().enumerate();
    columns.map(|(at, column)| (column.name().to_owned(), value(at, column.type_()))).collect()
}

#[tokio::test]
async fn tokio_postgres_runs_console_commands() {
    let scene = Scene::new();
    let shown = scene.shown();
    let client = connect(&scene.pooler.dsn("admin", "pgbouncer")).await;
    for topic in TOPICS {
        let statement = in_time(client.prepare(&format!("SHOW {topic}"))).await.unwrap();
        for _ in 0..2 {
            let rows = in_time(client.query(&statement, &[])).await.unwrap();
            let own = rows.iter().map(cells).filter(|row| scene.is_own(row));
            assert_eq!(own.map(|row| line(topic, row)).collect::<Vec<_>>(), shown[topic]);
        }
    }
    let error = in_time(client.query("NONSENSE", &[])).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code(), &SqlState::PROTOCOL_VIOLATION);
    assert_eq!(error.message(), "invalid command 'NONSENSE', use SHOW HELP;");
    for (command, paused) in [("PAUSE", 1), ("RESUME", 0)] {
        let sql = format!("{command} {}", scene.database);
        in_time(client.execute(&sql, &[])).await.unwrap();
        let rows = in_time(client.query("SHOW DATABASES", &[])).await.unwrap();
        let own = rows.iter().find(|row| row.get::<_, &str>("name") == scene.database).unwrap();
        assert_eq!(own.get::<_, i32>("paused"), paused);
    }
}

/// A command that waits, by the extended protocol, and what is behind it.
#[test]
fn what_follows_a_waiting_execute_waits_for_its_answer() {
    let (pooler, database) = in_transactions("");
    let mut one = pooler.client(&database);
    assert_eq!(one.value("begin; select 1"), "1");
    let command = |sql: &str| [parse("", sql), bind("", &[]), execute(), sync()].concat();
    let mut console = pooler.console();
    console.send(&[command("PAUSE"), command("SHOW STATE"), query("SHOW STATE")].concat());
    assert_eq!(tags(&console.until(b'2')), "12");
    pooler.wait_log("PAUSE command issued");
    let mut left = pooler.console();
    left.send(&[command(&format!("PAUSE {database}")), msg(b'X', b"")].concat());
    assert_eq!(tags(&left.rest()), "12EZ", "already paused, and the end is noticed");
    one.query("commit");
    let mut answers = || (0..3).map(|_| tags(&console.until(b'Z'))).collect::<Vec<_>>();
    assert_eq!(answers(), ["CZ", "12DDDCZ", "TDDDCZ"]);
    console.send(&[command("RESUME"), command("RESUME"), command("SHOW VERSION")].concat());
    let mut answers = || (0..3).map(|_| tags(&console.until(b'Z'))).collect::<Vec<_>>();
    assert_eq!(answers(), ["12CZ", "12EZ", "12DCZ"]);
}

/// A console that leaves while its command waits is gone at once; one that only falls silent stays.
#[test]
fn a_driver_that_leaves_while_its_command_waits_is_gone() {
    let (mut pooler, database) = in_transactions("");
    let mut one = pooler.client(&database);
    assert_eq!(one.value("begin; select 1"), "1");
    let pause = [parse("", "PAUSE"), bind("", &[]), describe(b'P', ""), execute(), sync()].concat();
    let mut polite = pooler.console();
    polite.send(&[pause.clone(), msg(b'X', b"")].concat());
    assert_eq!(tags(&polite.rest()), "12n");
    pooler.command("RESUME");
    let mut rude = pooler.console();
    rude.send(&[pause, query("SHOW VERSION").repeat(100)].concat());
    assert_eq!(tags(&rude.until(b'n')), "12n");
    drop(rude);
    one.query("commit");
    pooler.command("RESUME");
    crate::rig::wait_until("only this console is left", || {
        pooler.show("CLIENTS", "id", ("database", "pgbouncer")).len() == 1
    });
    pooler.assert_serves(&database);
}
