//! What becomes of servers that nobody uses: checks, resets, age, idleness, replacement (pooling
//! 1.3, 3.2 to 3.5, 3.7, 4).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::rig::fake::Fake;
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::wait_until;
use crate::rig::wire::{last_error, query, startup, tags};

const PID: &str = "select pg_backend_pid()";

fn start(mode: &str, settings: &str) -> (Pooler, String) {
    let setup = Setup::trust(&format!("pool_mode = {mode}\n{settings}"));
    (Pooler::start(&setup), postgres().new_database())
}

fn closing(database: &str, text: &str) -> String {
    format!("LOG S {database}/trusty closing because: {text}")
}

fn pause(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

/// A server that notes the queries that it gets, and answers each.
struct Listener {
    fake: Fake,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Listener {
    fn start() -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let notes = heard.clone();
        let fake = Fake::start(move |mut peer| {
            peer.welcome();
            while let Some(msg) = peer.raw.recv().filter(|msg| msg.tag == b'Q') {
                let text = String::from_utf8_lossy(&msg.body).trim_end_matches('\0').to_owned();
                notes.lock().unwrap().push(text);
                peer.answer("heard");
            }
        });
        Self { fake, heard }
    }

    fn pooler(&self, mode: &str, settings: &str) -> Pooler {
        let mut setup = Setup::trust(&format!("pool_mode = {mode}\n{settings}"));
        setup.databases = self.fake.database();
        Pooler::start(&setup)
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

#[test]
fn server_idle_for_long_is_checked_before_use() {
    let rows = [
        ("", vec!["select 1", "", "select 2"]),
        ("server_check_query = select 'check'\n", vec!["select 1", "select 'check'", "select 2"]),
    ];
    for (setting, expected) in rows {
        let listener = Listener::start();
        let settings = format!("server_check_delay = 0.5\n{setting}");
        let pooler = listener.pooler("transaction", &settings);
        let mut client = pooler.client("fake");
        client.query("select 1");
        assert_eq!(pooler.pool("fake", "sv_idle"), 1);
        wait_until("it is used", || pooler.pool("fake", "sv_used") == 1);
        pause(300);
        client.query("select 2");
        assert_eq!(listener.heard(), expected, "{setting}");
        client.query("select 3");
        assert_eq!(listener.heard().len(), 4, "no check in between");
    }
}

#[test]
fn no_check_without_a_query_or_before_its_time() {
    for settings in
        ["server_check_delay = 0.2\nserver_check_query =\n", "server_check_delay = 60\n"]
    {
        let listener = Listener::start();
        let pooler = listener.pooler("transaction", settings);
        let mut client = pooler.client("fake");
        client.query("select 1");
        pause(900);
        assert_eq!(pooler.pool("fake", "sv_idle"), 1, "{settings}");
        client.query("select 2");
        assert_eq!(listener.heard(), ["select 1", "select 2"], "{settings}");
    }
}

#[test]
fn check_delay_of_zero_checks_before_every_use() {
    let listener = Listener::start();
    let pooler = listener.pooler("transaction", "server_check_delay = 0\n");
    let mut client = pooler.client("fake");
    for sql in ["select 1", "select 2"] {
        client.query(sql);
        wait_until("it is used", || pooler.pool("fake", "sv_used") == 1);
    }
    let heard = listener.heard();
    assert_eq!(heard[heard.len() - 3..], ["select 1", "", "select 2"]);
}

/// A server that died unnoticed: its check fails, the client gets another one.
#[test]
fn check_finds_dead_servers() {
    let fake = Fake::start(|mut peer| {
        peer.welcome();
        while let Some(msg) = peer.raw.recv().filter(|msg| msg.tag == b'Q') {
            if msg.body == [0] {
                return;
            }
            peer.answer("alive");
        }
    });
    let mut setup = Setup::trust("pool_mode = transaction\nserver_check_delay = 0.3\n");
    setup.databases = fake.database();
    let pooler = Pooler::start(&setup);
    let mut client = pooler.client("fake");
    assert_eq!(client.value("select 1"), "alive");
    wait_until("it is used", || pooler.pool("fake", "sv_used") == 1);
    pause(300);
    assert_eq!(client.value("select 2"), "alive");
    pooler.wait_lines(&[&closing("fake", "server conn crashed?")]);
}

#[test]
fn own_queries_that_are_too_long_close_the_server() {
    let long = "x".repeat(501);
    let listener = Listener::start();
    let pooler = listener.pooler("session", &format!("server_reset_query = {long}\n"));
    let mut client = pooler.client("fake");
    client.query("select 1");
    client.bye();
    pooler.wait_lines(&[&closing("fake", "reset query failed")]);
    let settings = format!("server_check_query = {long}\nserver_check_delay = 0.2\n");
    let pooler = listener.pooler("transaction", &settings);
    let mut client = pooler.client("fake");
    client.query("select 1");
    wait_until("it is used", || pooler.pool("fake", "sv_used") == 1);
    client.query("select 2");
    pooler.wait_lines(&[&closing("fake", "test query failed")]);
}

#[test]
fn errors_of_the_reset_query_are_ignored() {
    let (pooler, database) = start("session", "server_reset_query = select 1 / 0\n");
    let mut client = pooler.client(&database);
    let pid = client.value(PID);
    client.bye();
    assert_eq!(pooler.client(&database).value(PID), pid);
}

#[test]
fn reset_query_that_opens_a_transaction_makes_the_server_useless() {
    let (pooler, database) = start(
        "session",
        "server_reset_query = begin\nserver_idle_timeout = 0.5\nquery_wait_timeout = 10\n",
    );
    let mut client = pooler.client(&database);
    let pid = client.value(PID);
    client.bye();
    wait_until("it is tested", || pooler.pool(&database, "sv_tested") == 1);
    pooler.wait_lines(&[&closing(&database, "server idle timeout")]);
    assert_ne!(pooler.client(&database).value(PID), pid);
}

#[test]
fn idle_server_is_closed_after_its_timeout() {
    let (pooler, database) = start("transaction", "server_idle_timeout = 0.8\n");
    let mut client = pooler.client(&database);
    let pid = client.value(PID);
    for _ in 0..4 {
        pause(300);
        assert_eq!(client.value(PID), pid, "use keeps it");
    }
    let used = Instant::now();
    pooler.wait_lines(&[&closing(&database, "server idle timeout")]);
    assert!(used.elapsed() >= Duration::from_millis(750), "{:?}", used.elapsed());
    client.query("begin");
    pause(1500);
    assert_eq!(tags(&client.query("commit")), "CZ", "linked servers are not idle");
    pooler.command("SET server_idle_timeout = 0");
    pause(1500);
    assert_eq!(pooler.servers(&database).len(), 1);
}

#[test]
fn old_server_is_closed_when_nobody_uses_it() {
    let (pooler, database) = start("transaction", "server_lifetime = 1\n");
    let mut client = pooler.client(&database);
    let pid = client.value(&format!("begin; {PID}"));
    pause(1600);
    assert_eq!(client.value(PID), pid, "its client keeps it");
    assert_eq!(pooler.count(&closing(&database, "server lifetime over")), 0);
    client.query("commit");
    pooler.wait_lines(&[&closing(&database, "server lifetime over")]);
    assert_ne!(client.value(PID), pid);
    wait_until("so is an idle one", || {
        pooler.count(&closing(&database, "server lifetime over")) == 2
    });
    assert!(pooler.servers(&database).is_empty());
}

#[test]
fn lifetime_of_zero_means_one_transaction() {
    let (pooler, database) = start("transaction", "server_lifetime = 0\n");
    let mut client = pooler.client(&database);
    let first = client.value(PID);
    assert_ne!(client.value(PID), first);
    wait_until("no server is left", || pooler.servers(&database).is_empty());
    assert!(pooler.count(&closing(&database, "server lifetime over")) >= 2);
}

#[test]
fn database_s_own_lifetime_counts_first() {
    let port = postgres().port;
    let mut setup = Setup::trust("pool_mode = transaction\nserver_lifetime = 3600\n");
    let place = format!("host=127.0.0.1 port={port} dbname=template1");
    setup.databases =
        format!("short = {place} server_lifetime=1\nsame = {place} server_lifetime=0\n");
    let pooler = Pooler::start(&setup);
    for name in ["short", "same"] {
        assert_eq!(pooler.client(name).value("select 1"), "1");
    }
    pooler.wait_lines(&[&closing("short", "server lifetime over")]);
    pause(500);
    assert_eq!(pooler.pool("same", "sv_idle"), 1);
}

/// Servers of one age don't all go at once: one per lifetime / pool_size.
#[test]
fn old_servers_go_one_after_the_other() {
    let (pooler, database) = start("transaction", "server_lifetime = 2\ndefault_pool_size = 2\n");
    let mut holders = [pooler.holder(&database), pooler.holder(&database)];
    pause(2200);
    let over = closing(&database, "server lifetime over");
    for holder in &mut holders {
        holder.query("commit");
    }
    pause(500);
    assert_eq!(pooler.count(&over), 1, "the second one has to wait");
    wait_until("its time comes", || pooler.count(&over) == 2);
    let (pooler, database) = start("transaction", "server_lifetime = 4\ndefault_pool_size = 0\n");
    let mut holders = [pooler.holder(&database), pooler.holder(&database)];
    pause(4200);
    let began = Instant::now();
    for holder in &mut holders {
        holder.query("commit");
    }
    let over = closing(&database, "server lifetime over");
    wait_until("both go", || pooler.count(&over) == 2);
    assert!(began.elapsed() < Duration::from_secs(3), "without size there is no gap");
}

#[test]
fn reconnect_replaces_every_server_with_its_reason() {
    let (pooler, database) = start("transaction", "");
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&database));
    let busy = one.value(&format!("begin; {PID}"));
    let idle = two.value(PID);
    assert_ne!(busy, idle);
    pooler.command("RECONNECT");
    pooler.wait_lines(&[&closing(&database, "database configuration changed")]);
    assert_eq!(one.value(PID), busy, "not during a transaction");
    assert_eq!(pooler.show("SERVERS", "close_needed", ("remote_pid", &busy)), ["1"]);
    one.query("commit");
    pooler.wait_lines(&[&closing(&database, "close_needed")]);
    assert_ne!(one.value(PID), busy);
    assert_eq!(tags(&pooler.client(&database).query("select 1")), "TDCZ");
}

#[test]
fn reconnect_ends_logins_to_servers() {
    let fake = Fake::start(|mut peer| {
        peer.raw.rest();
    });
    let mut setup = Setup::trust("");
    setup.databases = fake.database();
    let pooler = Pooler::start(&setup);
    let mut client = pooler.tcp();
    client.send(&startup(0, &[("user", "trusty"), ("database", "fake")]));
    let login = || pooler.pool("fake", "sv_login") == 1;
    wait_until("a server logs in", login);
    pooler.command("RECONNECT fake");
    pooler.wait_lines(&[&closing("fake", "connect string changed")]);
    wait_until("the next one follows without delay", login);
}

#[test]
fn obsolete_server_of_a_session_stays_with_its_client_unless_fast() {
    let (pooler, database) = start("session", "");
    let (mut idle, mut busy) = (pooler.client(&database), pooler.client(&database));
    let pid = idle.value(PID);
    busy.query("begin");
    pooler.command("RECONNECT");
    pause(900);
    assert_eq!(idle.value(PID), pid);
    pooler.command("SET server_fast_close = 1");
    let text = "database configuration changed";
    assert_eq!(last_error(&idle.rest()), ("FATAL".into(), "08P01".into(), text.into()));
    pooler.wait_lines(&[
        &closing(&database, text),
        &format!("LOG C {database}/trusty closing because: {text}"),
        &format!("WARNING C {database}/trusty pooler error: {text}"),
    ]);
    pause(700);
    assert_eq!(busy.value("select 1"), "1", "not inside a transaction");
    busy.send(&query("commit"));
    let left = busy.rest();
    assert_eq!((tags(&left).as_str(), last_error(&left).2), ("CZE", text.into()));
}

/// New places replace servers; new sizes, limits and passwords don't.
#[test]
fn reload_replaces_servers_only_for_a_new_place() {
    let database = postgres().new_database();
    let entry = |keys: &str| {
        let mut setup = Setup::trust("pool_mode = transaction\n");
        let port = postgres().port;
        setup.databases = format!("shop = host=127.0.0.1 port={port} {keys}\n");
        setup
    };
    let pooler = Pooler::start(&entry("dbname=template1 user=trusty"));
    let mut client = pooler.client("shop");
    let pid = client.value(PID);
    for keys in [
        "pool_size=3 min_pool_size=1 reserve_pool_size=1 max_db_connections=9 pool_mode=session",
        "server_lifetime=99 password=x client_encoding=utf8 datestyle=iso timezone=utc",
        "query_wait_timeout=7 max_db_client_connections=5",
    ] {
        pooler.rewrite(&entry(&format!("dbname=template1 user=trusty {keys}")));
        pooler.command("RELOAD");
        pause(400);
        assert!(pooler.servers("shop").contains(&pid), "{keys}");
    }
    let changes = [
        format!("dbname={database} user=trusty"),
        format!("dbname={database} user=postgres"),
        format!("dbname={database} user=postgres connect_query='select 1'"),
        format!("dbname={database} user=postgres load_balance_hosts=disable"),
    ];
    for (count, keys) in (1..).zip(changes) {
        pooler.rewrite(&entry(&keys));
        pooler.command("RELOAD");
        wait_until(&format!("servers are replaced for {keys}"), || {
            let lines = pooler.lines();
            let text = "closing because: database configuration changed";
            lines.iter().filter(|line| line.ends_with(text)).count() >= count
        });
        assert_eq!(pooler.client("shop").value("select 1"), "1");
    }
    pooler.rewrite(&entry(&format!("dbname={database}")));
    pooler.command("RELOAD");
    assert_eq!(pooler.count("WARNING losing forced user not supported, keeping old setting"), 1);
    assert_eq!(pooler.client("shop").value("select current_user"), "postgres");
}

#[test]
fn pause_closes_what_is_not_in_use() {
    let (pooler, database) = start("transaction", "min_pool_size = 2\n");
    let mut holder = pooler.holder(&database);
    wait_until("there is an idle one", || pooler.pool(&database, "sv_idle") == 1);
    let mut console = pooler.console();
    console.send(&query("PAUSE"));
    pooler.wait_lines(&[&closing(&database, "pause mode")]);
    pause(700);
    assert_eq!(pooler.servers(&database).len(), 1, "min_pool_size does not count now");
    holder.query("commit");
    assert_eq!(tags(&console.until(b'Z')), "CZ");
    assert!(pooler.servers(&database).is_empty());
    pooler.command("RESUME");
    wait_until("it grows again", || pooler.pool(&database, "sv_idle") == 2);
}

/// RECONNECT while a server is parked for a cancel request. When that server comes free, clients
/// that log in still wait for one that can tell what to welcome them with.
#[test]
fn nobody_is_welcomed_without_parameters_after_a_reconnect() {
    let [may_answer, may_end, may_log_in] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));
    let flags = [may_answer.clone(), may_end.clone(), may_log_in.clone()];
    let fake = Fake::start(move |mut peer| {
        let wait = |flag: &AtomicBool| wait_until("go on", || flag.load(Ordering::Relaxed));
        match peer.hello.is_empty() {
            true => return wait(&flags[1]),
            false if flags[0].load(Ordering::Relaxed) => wait(&flags[2]),
            false => {}
        }
        peer.welcome();
        while peer.raw.recv().is_some_and(|msg| msg.tag == b'Q') {
            wait(&flags[0]);
            peer.answer("done");
        }
    });
    let mut setup = Setup::trust("pool_mode = transaction\n");
    setup.databases = fake.database();
    let pooler = Pooler::start(&setup);
    let count = |state| wait_until(state, || pooler.pool("fake", state) == 1);
    let mut busy = pooler.client("fake");
    busy.send(&query("select 1"));
    count("sv_active");
    let mut cancel = pooler.tcp();
    cancel.send(&busy.cancel_request());
    count("sv_active_cancel");
    may_answer.store(true, Ordering::Relaxed);
    busy.until(b'Z');
    count("sv_being_canceled");
    pooler.command("RECONNECT");
    let mut fresh = pooler.tcp();
    fresh.send(&startup(0, &[("user", "trusty"), ("database", "fake")]));
    count("sv_login");
    may_end.store(true, Ordering::Relaxed);
    count("sv_idle");
    pause(500);
    assert_eq!(pooler.pool("fake", "cl_waiting"), 1);
    may_log_in.store(true, Ordering::Relaxed);
    assert!(tags(&fresh.until(b'Z')).starts_with("RS"));
}
