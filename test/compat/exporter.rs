//! Debian's exporter for Prometheus reads both programs' consoles: what it exports must be equal.
//!
//! The packaged version 1.7 is of 2016. It wants a column that PgBouncer dropped in 1.8, so out of the box it works with neither
//! program, and with 1.24 a second one got a new name. `LAUNCHER` tells it both names and leaves everything else to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::scratch::{command, scratch};
use crate::rig::wait_until;
use crate::rig::wire::{bind, execute, parse, sync, tags};
use crate::rig::DEADLINE;
use crate::transcript::reference;

/// Runs the package's own program after its names were brought up to date; the kernel chooses the
/// port, which is the first line of the output. Arguments: collector and column, old and new, then
/// those of the program.
const LAUNCHER: &str = r#"
import sys
from prometheus_pgbouncer_exporter import cli, collectors

class Server(cli.HTTPServer):
    def server_activate(self):
        super().server_activate()
        print(self.server_port, flush=True)

cli.HTTPServer = Server
for name in sys.argv[1].split():
    collector, old, new = name.split(":")
    metrics = getattr(collectors, collector).metrics
    metrics[new] = metrics.pop(old)
sys.argv = ["prometheus-pgbouncer-exporter"] + sys.argv[2:]
cli.main()
"#;

/// Columns under their names of 1.8 and later, and of 1.24 and later (admin 6.1).
const SINCE_1_8: &str = "StatsCollector:total_requests:total_query_count";
const SINCE_1_24: &str = "DatabasesCollector:reserve_pool:reserve_pool_size";

/// Samples, by how they begin, whose values need not be equal, and why.
const NOT_COMPARED: &[(&str, &str)] = &[
    ("pgbouncer_query_microseconds_total", "time"),
    ("pgbouncer_free_clients", "how memory is kept (admin 3.9)"),
    ("pgbouncer_free_servers", "how memory is kept (admin 3.9)"),
    ("pgbouncer_requests_total{database=\"pgbouncer\"}", "how often this test had to look"),
];

/// What the package exports for these programs: 4 figures per database of SHOW STATS, 2 per pool, 2 per database, 12 of SHOW LISTS.
const METRICS: usize = 20;

/// A running exporter.
struct Exporter {
    child: Child,
    port: u16,
}

/// The switches that lead to a pooler.
fn switches(pooler: &Pooler) -> [String; 5] {
    [
        "--host=127.0.0.1".to_owned(),
        "--port=0".to_owned(),
        "--pgbouncer-host=127.0.0.1".to_owned(),
        format!("--pgbouncer-port={}", pooler.port),
        "--pgbouncer-user=stats".to_owned(),
    ]
}

/// The package's program as it is; it must end by itself.
fn as_packaged(pooler: &Pooler) -> Output {
    let program = PathBuf::from("/usr/bin/prometheus-pgbouncer-exporter");
    assert!(program.exists(), "no {}; see `make deps`", program.display());
    let mut exporter = command("timeout");
    exporter.args(["-s", "KILL", "20"]).arg(program).args(switches(pooler));
    exporter.output().unwrap()
}

impl Exporter {
    /// Starts the package's code with renamed columns.
    fn start(pooler: &Pooler, renamed: &str) -> Self {
        let errors = std::fs::File::create(pooler.folder.join("exporter")).unwrap();
        let mut child = command("/usr/bin/python3")
            .args(["-c", LAUNCHER, renamed])
            .args(switches(pooler))
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        scratch().watch(child.id());
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let Ok(port) = line.trim().parse() else {
            let log = std::fs::read_to_string(pooler.folder.join("exporter"));
            panic!("the exporter does not start: {log:?}")
        };
        Self { child, port }
    }

    /// Every sample of the pooler: name with labels, and value.
    fn scrape(&self) -> BTreeMap<String, String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        let (head, body) = page.split_once("\r\n\r\n").unwrap();
        assert!(head.lines().next().unwrap().ends_with(" 200 OK"), "{page}");
        let samples = body.lines().filter(|line| line.starts_with("pgbouncer_"));
        let pair = |line: &str| line.rsplit_once(' ').map(|(k, v)| (k.to_owned(), v.to_owned()));
        samples.filter_map(pair).collect()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        scratch().forget(self.child.id());
    }
}

fn setup() -> Setup {
    let place =
        || format!("host=127.0.0.1 port={} dbname={}", postgres().port, postgres().new_database());
    let [shop, store, unused] = [place(), place(), place()];
    Setup {
        databases: format!(
            "shop = {shop} pool_size=1\nstore = {store} reserve_pool=3\nunused = {unused}\n"
        ),
        settings: "pool_mode = transaction\ndefault_pool_size = 7\nreserve_pool_size = 2\n".into(),
        users: "\"trusty\" \"\"\n\"postgres\" \"\"\n\"stats\" \"\"\n".to_owned(),
    }
}

/// Traffic of known size; the clients that stay, one of them waiting.
fn load(pooler: &Pooler) -> Vec<Raw> {
    let mut one = pooler.client("shop");
    for sql in ["select 1", "", "select 1; select 2", "select nothing", "begin", "rollback"] {
        one.query(sql);
    }
    one.send(&[parse("", "select $1"), bind("", &["x"]), execute(), sync()].concat());
    assert_eq!(tags(&one.until(b'Z')), "12DCZ");
    let (mut other, _) = pooler.login("postgres", "store", "").unwrap();
    other.query("create temp table t (n int); insert into t select generate_series(1, 5000)");
    other.query("select * from t");
    pooler.client("store").bye();
    let holder = pooler.holder("shop");
    let waiter = pooler.waiter("shop", "select 1");
    wait_until("who left has gone", || {
        pooler.show("LISTS", "items", ("list", "used_clients")) == ["5"]
    });
    vec![one, other, holder, waiter]
}

fn name(sample: &str) -> &str {
    sample.split('{').next().unwrap()
}

#[test]
fn the_same_load_leaves_the_same_metrics() {
    let setup = setup();
    let play = |pooler: &Pooler, renamed: &str| {
        let _clients = load(pooler);
        Exporter::start(pooler, renamed).scrape()
    };
    let theirs = play(&Pooler::start_program(&reference(), &setup), SINCE_1_8);
    let renamed = format!("{SINCE_1_8} {SINCE_1_24}");
    let ours = play(&Pooler::start(&setup), &renamed);
    assert!(theirs.contains_key("pgbouncer_waiting_clients{database=\"shop\",user=\"trusty\"}"));
    let names: BTreeSet<&str> = theirs.keys().map(|sample| name(sample)).collect();
    assert_eq!(names.len(), METRICS, "{names:?}");
    let samples = |of: &BTreeMap<String, String>| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(samples(&theirs), samples(&ours), "names and labels (left: reference)");
    let compared = |of: BTreeMap<String, String>| {
        of.into_iter()
            .filter(|(sample, _)| !NOT_COMPARED.iter().any(|(start, _)| sample.starts_with(start)))
    };
    assert_eq!(
        compared(theirs).collect::<Vec<_>>(),
        compared(ours).collect::<Vec<_>>(),
        "values (left: reference)"
    );
}

#[test]
fn as_packaged_it_misses_the_same_column_in_both() {
    let setup = setup();
    for pooler in [Pooler::start_program(&reference(), &setup), Pooler::start(&setup)] {
        pooler.client("shop").value("select 1");
        let ended = as_packaged(&pooler);
        let text = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{text}");
        assert!(text.ends_with("KeyError: 'total_requests'\n"), "{text}");
    }
}
