//! target_session_attrs: the pooler finds the servers that are as they are wanted, also after a
//! promotion.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;

use crate::cluster::Node;
use crate::rig::fake::{Fake, Peer};
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::wait_until;
use crate::rig::wire::{error, last_error, msg, query, tags};

const SETTINGS: &str = "pool_mode = transaction\nserver_login_retry = 1\n";

fn start(databases: String, settings: &str) -> Pooler {
    let settings = format!("{SETTINGS}{settings}");
    Pooler::start(&Setup { databases, settings, users: "\"trusty\" \"\"\n".into() })
}

/// A database entry per attribute, named like it, on these nodes.
fn entries(nodes: &[&Node]) -> String {
    let hosts: Vec<_> = nodes.iter().map(|node| node.folder.display().to_string()).collect();
    let all = ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"];
    all.map(|attrs| {
        format!("{attrs} = host={} dbname=postgres target_session_attrs={attrs}\n", hosts.join(","))
    })
    .concat()
}

/// The value of a query of a new client, or what it was told instead.
fn ask(pooler: &Pooler, database: &str, sql: &str) -> Result<String, String> {
    let (mut client, _) = match pooler.login("trusty", database, "") {
        Ok(login) => login,
        Err(msgs) => return Err(last_error(&msgs).2),
    };
    client.try_send(&query(sql));
    let mut all = Vec::new();
    while let Some(msg) = client.recv() {
        if msg.tag == b'Z' {
            break;
        }
        all.push(msg);
    }
    match all.iter().find(|m| m.tag == b'D') {
        Some(row) => Ok(row.cells()[0].clone().unwrap_or_default()),
        None if tags(&all).contains('E') => Err(last_error(&all).2),
        None => Err(tags(&all)),
    }
}

fn is_standby(pooler: &Pooler, database: &str) -> Result<String, String> {
    ask(pooler, database, "select pg_is_in_recovery()")
}

/// A client that writes numbers, beginning again whenever it is thrown out.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU32>,
    thread: Option<std::thread::JoinHandle<u32>>,
}

impl Writer {
    fn start(pooler: &Arc<Pooler>) -> Writer {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (ended, count, pooler) = (stop.clone(), written.clone(), pooler.clone());
        let thread = std::thread::spawn(move || {
            let mut refused = 0;
            while !ended.load(Ordering::Relaxed) {
                let next = count.load(Ordering::Relaxed) + 1;
                let sql = format!("insert into log values ({next}) returning n");
                match ask(&pooler, "read-write", &sql) {
                    Ok(_) => count.store(next, Ordering::Relaxed),
                    Err(_) => {
                        refused += 1;
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                }
            }
            refused
        });
        Writer { stop, written, thread: Some(thread) }
    }

    fn wait_for_more(&self) {
        let before = self.written.load(Ordering::Relaxed);
        wait_until("more is written", || self.written.load(Ordering::Relaxed) > before + 10);
    }

    fn end(mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.written.load(Ordering::Relaxed)
    }
}

#[test]
fn writers_and_readers_follow_a_promotion() {
    let old = Node::primary();
    let new = old.standby();
    let pooler = Arc::new(start(entries(&[&old, &new]), ""));
    for (database, standby) in [
        ("read-write", "f"),
        ("primary", "f"),
        ("read-only", "t"),
        ("standby", "t"),
        ("prefer-standby", "t"),
    ] {
        for _ in 0..3 {
            assert_eq!(is_standby(&pooler, database), Ok(standby.into()), "{database}");
        }
    }
    assert_eq!(ask(&pooler, "read-write", "create table log (n int)"), Err("C".into()));
    let writer = Writer::start(&pooler);
    writer.wait_for_more();
    // A reader in the middle of a transaction keeps its server through the promotion.
    let mut reader = pooler.holder("standby");
    assert_eq!(reader.value("select pg_is_in_recovery()"), "t");
    old.stop();
    new.promote();
    writer.wait_for_more();
    let written = writer.end();
    assert_eq!(new.value("select count(distinct n) from log"), written.to_string());
    wait_until("primary has moved", || is_standby(&pooler, "primary") == Ok("f".into()));

    // What was a standby is given up by all who want one.
    assert_eq!(reader.value("select pg_is_in_recovery()"), "f");
    assert_eq!(tags(&reader.query("commit")), "CZ");
    pooler.wait_lines(&["LOG S standby/trusty closing because: server is not in hot standby mode (target_session_attrs)"]);
    reader.send(&query("select pg_is_in_recovery()"));
    let told = "server login has been failing, cached error: \
                no host fits target_session_attrs=standby (server_login_retry)";
    wait_until("a round is over", || {
        let details = pooler.show("WAITING", "detail", ("database", "standby"));
        details.concat().contains("no host fits")
    });
    let mut other = pooler.client("standby");
    other.send(&query("select 1"));
    assert_eq!(last_error(&other.rest()).2, told);

    // The old primary comes back as a standby: who waited gets it.
    old.start_behind(&new);
    let row = reader.until(b'Z').into_iter().find(|m| m.tag == b'D').unwrap();
    assert_eq!(row.cells()[0].as_deref(), Some("t"));
    for (database, standby) in [("read-only", "t"), ("prefer-standby", "t"), ("read-write", "f")] {
        wait_until(database, || is_standby(&pooler, database) == Ok(standby.into()));
    }
}

#[test]
fn prefer_standby_falls_back_and_returns() {
    let primary = Node::primary();
    let standby = primary.standby();
    let pooler = start(entries(&[&standby, &primary]), "");
    assert_eq!(is_standby(&pooler, "prefer-standby"), Ok("t".into()));
    assert_eq!(is_standby(&pooler, "any"), Ok("t".into()));
    // A client that stays keeps its pool busy.
    let mut holder = pooler.holder("prefer-standby");
    standby.stop();
    assert_eq!(last_error(&holder.rest()).0, "FATAL");
    for database in ["prefer-standby", "any", "read-write"] {
        wait_until(&format!("{database} is served by the primary"), || {
            is_standby(&pooler, database) == Ok("f".into())
        });
    }
    standby.start();
    wait_until("the standby is used again", || {
        is_standby(&pooler, "prefer-standby") == Ok("t".into())
    });
    pooler.wait_lines(&["LOG S prefer-standby/trusty closing because: a standby is preferred (target_session_attrs)"]);
    assert_eq!(is_standby(&pooler, "read-write"), Ok("f".into()));
}

/// A server that does not report what it is, as those before PostgreSQL 14.
fn old_server(name: &'static str, read_only: &Arc<AtomicBool>, asked: &Arc<AtomicU32>) -> Fake {
    let (read_only, asked) = (read_only.clone(), asked.clone());
    Fake::start(move |mut peer: Peer| {
        peer.welcome();
        while let Some(request) = peer.raw.recv().filter(|m| m.tag == b'Q') {
            let sql = String::from_utf8_lossy(&request.body).trim_end_matches('\0').to_owned();
            let on = read_only.load(Ordering::Relaxed);
            match sql.as_str() {
                "SHOW transaction_read_only" => {
                    asked.fetch_add(1, Ordering::Relaxed);
                    peer.answer(if on { "on" } else { "off" });
                }
                "SELECT pg_catalog.pg_is_in_recovery()" => peer.answer(if on { "t" } else { "f" }),
                "write" if on => {
                    let text = "cannot execute INSERT in a read-only transaction";
                    let fields = [(b'S', "ERROR"), (b'C', "25006"), (b'M', text)];
                    peer.raw.send(&[error(&fields), msg(b'Z', b"I")].concat());
                }
                _ => peer.answer(name),
            }
        }
    })
}

#[test]
fn servers_that_do_not_report_what_they_are_are_asked() {
    let modes = [true, false].map(|on| Arc::new(AtomicBool::new(on)));
    let asked = Arc::new(AtomicU32::new(0));
    let one = old_server("one", &modes[0], &asked);
    let two = old_server("two", &modes[1], &asked);
    let hosts = format!("host=127.0.0.1,127.0.0.1 port={},{}", one.port, two.port);
    let mut databases = String::new();
    for attrs in ["read-write", "read-only", "primary", "standby", "prefer-standby"] {
        databases.push_str(&format!("{attrs} = {hosts} target_session_attrs={attrs}\n"));
    }
    let pooler = start(databases, "");
    for (database, name) in [
        ("primary", "two"),
        ("standby", "one"),
        ("read-only", "one"),
        ("prefer-standby", "one"),
        ("read-write", "two"),
    ] {
        assert_eq!(ask(&pooler, database, "select 1"), Ok(name.into()), "{database}");
    }
    let before = asked.load(Ordering::Relaxed);
    assert_eq!(ask(&pooler, "read-write", "write"), Ok("two".into()));
    assert_eq!(asked.load(Ordering::Relaxed), before, "asked once per login");
    modes[1].store(true, Ordering::Relaxed);
    modes[0].store(false, Ordering::Relaxed);
    let failed = ask(&pooler, "read-write", "write").unwrap_err();
    assert!(failed.contains("read-only"), "{failed}");
    wait_until("the other one is found", || {
        ask(&pooler, "read-write", "write") == Ok("one".into())
    });
    pooler.wait_lines(&[
        "LOG S read-write/trusty closing because: session is read-only (target_session_attrs)",
    ]);
}

#[test]
fn clients_are_told_that_no_host_fits() {
    let modes = [true, true].map(|on| Arc::new(AtomicBool::new(on)));
    let asked = Arc::new(AtomicU32::new(0));
    let fakes = [("one", 0), ("two", 1)].map(|(name, at)| old_server(name, &modes[at], &asked));
    let databases = format!(
        "shop = host=127.0.0.1,127.0.0.1 port={},{} target_session_attrs=read-write \
         load_balance_hosts=disable\n",
        fakes[0].port, fakes[1].port
    );
    modes[1].store(false, Ordering::Relaxed);
    let pooler = start(databases, "server_login_retry = 100\nserver_check_delay = 0\n");
    let mut clients: Vec<_> = (0..2).map(|_| pooler.client("shop")).collect();
    assert_eq!(clients[0].value("select 1"), "two");
    modes[1].store(true, Ordering::Relaxed);
    // Checked before its next use, the server turns out to be read-only; no other one is left.
    clients[0].send(&query("select 1"));
    let detail = || pooler.show("WAITING", "detail", ("database", "shop")).concat();
    wait_until("a round is over", || detail().contains("next attempt in"));
    let reason = "session is read-only (target_session_attrs)";
    assert!(detail().contains(&format!("host 2: {reason}; host 1: {reason}")), "{}", detail());
    clients[1].send(&query("select 1"));
    let told = "server login has been failing, cached error: \
                no host fits target_session_attrs=read-write (server_login_retry)";
    assert_eq!(last_error(&clients[1].rest()).2, told);
    assert_eq!(asked.load(Ordering::Relaxed), 5, "one round, and one check");
}

#[test]
fn server_that_a_client_made_read_only_is_given_up() {
    let entry = |name: &str, mode: &str| {
        format!(
            "{name} = host=127.0.0.1 port={} dbname=template1 target_session_attrs=read-write \
             pool_mode={mode}\n",
            postgres().port
        )
    };
    let databases = entry("by_session", "session") + &entry("by_transaction", "transaction");
    let pooler = start(databases, "");
    let line = |database: &str| {
        let text = "closing because: session is read-only (target_session_attrs)";
        pooler.count(&format!("LOG S {database}/trusty {text}"))
    };
    for database in ["by_session", "by_transaction"] {
        let mut one = pooler.client(database);
        let before = pooler.servers(database);
        one.query("set default_transaction_read_only = on");
        one.bye();
        wait_until("the server is free or gone", || pooler.pool(database, "sv_active") == 0);
        let mut two = pooler.client(database);
        assert_eq!(two.value("show transaction_read_only"), "off");
        let is_reset = database == "by_session";
        assert_eq!(pooler.servers(database) == before, is_reset, "{database}");
        assert_eq!(line(database), usize::from(!is_reset));
    }
}
