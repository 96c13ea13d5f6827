//! Real drivers and tools: tokio-postgres, psql, pgbench.

use std::future::Future;

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::DEADLINE;

/// Connects a driver; its connection runs as a task until the client is dropped.
pub(crate) async fn connect(dsn: &str) -> Client {
    let (client, connection) = in_time(tokio_postgres::connect(dsn, NoTls)).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Runs a driver's work with the deadline that drivers do not have themselves.
pub(crate) async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("the driver hangs")
}

/// Simple queries, an error, parameters of several types and a transaction over one driver connection.
async fn exercise(client: &mut Client) {
    let answer = client.simple_query("select 1 as a; select 'x' as b").await.unwrap();
    let values = answer.iter().filter_map(|m| match m {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    assert_eq!(values.collect::<Vec<_>>(), ["1", "x"]);

    let error = client.query("select 1 / $1::int4", &[&0]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");

    let sql = "select $1::text || $1, $2::int8 * 2, $3::bool";
    let row = client.query_one(sql, &[&"ab", &21_i64, &true]).await.unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), ("abab", 42_i64, true));

    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute("create table exercised (n int)").await.unwrap();
    assert_eq!(transaction.execute("insert into exercised values (7)", &[]).await.unwrap(), 1);
    transaction.rollback().await.unwrap();
    let gone = client.query("select n from exercised", &[]).await.unwrap_err();
    assert_eq!(gone.code().unwrap().code(), "42P01");
}

async fn driver_in_mode(mode: &str) {
    let pooler = Pooler::start(&Setup::trust(&format!("pool_mode = {mode}\n")));
    let database = postgres().new_database();
    let mut client = connect(&pooler.dsn("trusty", &database)).await;
    in_time(exercise(&mut client)).await;
}

#[tokio::test]
async fn driver_works_in_session_mode() {
    driver_in_mode("session").await;
}

#[tokio::test]
async fn driver_works_in_transaction_mode() {
    driver_in_mode("transaction").await;
}

#[tokio::test]
async fn driver_works_over_unix_socket_to_unix_socket() {
    let mut setup = Setup::trust("pool_mode = transaction\n");
    let server = postgres();
    setup.databases = format!("* = host={} port={}\n", server.folder.display(), server.port);
    let pooler = Pooler::start(&setup);
    let database = server.new_database();
    let dsn = format!(
        "host={} port={} user=trusty dbname={database}",
        pooler.folder.display(),
        pooler.port
    );
    let mut client = connect(&dsn).await;
    in_time(exercise(&mut client)).await;
    let peer = "select client_addr is null from pg_stat_activity where pid = pg_backend_pid()";
    assert!(client.query_one(peer, &[]).await.unwrap().get::<_, bool>(0));
}

/// Statements of the same name but other text must not meet when clients share servers (pooling 7.2).
#[tokio::test]
async fn prepared_statements_of_many_clients_stay_apart_in_transaction_mode() {
    let settings = "pool_mode = transaction\ndefault_pool_size = 2\nmax_prepared_statements = 3\n";
    let pooler = Pooler::start(&Setup::trust(settings));
    let dsn = pooler.dsn("trusty", &postgres().new_database());
    let mut prepared = Vec::new();
    for n in 0..8 {
        let client = connect(&dsn).await;
        let sql = format!("select $1::int4 + {n}");
        let statement = in_time(client.prepare(&sql)).await.unwrap();
        prepared.push((n, client, statement));
    }
    for round in 0..5 {
        for (n, client, statement) in &prepared {
            let sum: i32 = client.query_one(statement, &[&(100 * round)]).await.unwrap().get(0);
            assert_eq!(sum, 100 * round + n);
        }
    }
}

#[test]
fn psql_runs_queries_and_reports_errors() {
    let pooler = Pooler::start(&Setup::trust(""));
    let database = postgres().new_database();
    let mut psql = pooler.psql("trusty", &database, "");
    let out = psql.args(["-c", "select current_database(), 6 * 7"]).output().unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap(), format!("{database}|42\n"));
    let mut psql = pooler.psql("trusty", &database, "");
    let out = psql.args(["-c", "select nothing"]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    let errors = String::from_utf8(out.stderr).unwrap();
    assert!(errors.contains("column \"nothing\" does not exist"), "{errors}");
}

/// Two seconds of pgbench with 16 clients over 4 servers (session mode: 16) without a single failure.
fn pgbench(pool_mode: &str, pool_size: u32, protocol: &str) {
    let settings = format!(
        "pool_mode = {pool_mode}\ndefault_pool_size = {pool_size}\nignore_startup_parameters = extra_float_digits\n"
    );
    let mut pooler = Pooler::start(&Setup::trust(&settings));
    let server = postgres();
    let database = server.new_database();
    let mut tool = server.tool("pgbench");
    tool.args(["-i", "-q", "-h", "127.0.0.1", "-p", &server.port.to_string(), "-U", "trusty"]);
    let made = tool.arg(&database).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut tool = server.tool("pgbench");
    tool.args(["-n", "-h", "127.0.0.1", "-p", &pooler.port.to_string(), "-U", "trusty"]);
    tool.args(["-M", protocol, "-S", "-c", "16", "-j", "2", "-T", "2"]);
    let out = tool.arg(&database).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}{errors}");
    assert!(text.contains("number of failed transactions: 0 "), "{text}");
    let done = text.lines().find_map(|l| l.split_once("actually processed: ")).unwrap().1;
    let done: u64 = done.trim().parse().unwrap();
    assert!(done > 200, "only {done} transactions: {text}");
    assert!(!errors.to_lowercase().contains("error"), "{errors}");
    pooler.assert_serves(&database);
}

#[test]
fn pgbench_simple_in_transaction_mode() {
    pgbench("transaction", 4, "simple");
}

#[test]
fn pgbench_extended_in_transaction_mode() {
    pgbench("transaction", 4, "extended");
}

#[test]
fn pgbench_prepared_in_session_mode() {
    pgbench("session", 17, "prepared");
}
