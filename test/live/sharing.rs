//! Servers of one database or user in several pools, minimum sizes, pools and databases that come
//! and go by themselves (pooling 1.4, 2.4, 2.5; config 3.4).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::rig::fake::Fake;
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{last_error, query, rows, startup, tags};

const PID: &str = "select pg_backend_pid()";

/// Two users, each with a pool of its own per database.
fn start(settings: &str) -> (Pooler, String) {
    let mut setup = Setup::trust(&format!("pool_mode = transaction\n{settings}"));
    setup.users.push_str("\"postgres\" \"\"\n");
    (Pooler::start(&setup), postgres().new_database())
}

/// Databases with these names and keys, all on template1.
fn databases(entries: &[(&str, &str)], settings: &str) -> Pooler {
    Pooler::start(&setup_of(entries, settings))
}

fn setup_of(entries: &[(&str, &str)], settings: &str) -> Setup {
    let line = |(name, keys): &(&str, &str)| {
        format!("{name} = host=127.0.0.1 port={} dbname=template1 {keys}\n", postgres().port)
    };
    Setup {
        databases: entries.iter().map(line).collect(),
        settings: format!("pool_mode = transaction\n{settings}"),
        users: "\"trusty\" \"\"\n\"postgres\" \"\"\n".to_owned(),
    }
}

fn client_as(pooler: &Pooler, user: &str, database: &str) -> Raw {
    pooler.login(user, database, "").unwrap_or_else(|e| panic!("no login: {e:?}")).0
}

/// The numbers of a pool: servers, and clients that wait.
fn pool_of(pooler: &Pooler, database: &str, user: &str) -> (i64, i64) {
    let answer = pooler.command("SHOW POOLS");
    let found = rows(&answer)
        .into_iter()
        .find(|row| (row[0].as_deref(), row[1].as_deref()) == (Some(database), Some(user)));
    let number =
        |row: &[Option<String>], at: usize| row[at].as_ref().unwrap().parse::<i64>().unwrap();
    found.map_or((0, 0), |row| ((6..13).map(|at| number(&row, at)).sum(), number(&row, 3)))
}

/// Servers of a pool, made in this order by clients that are gone again; the pids, oldest first.
fn idle_servers(pooler: &Pooler, user: &str, database: &str, count: usize) -> Vec<String> {
    let mut clients: Vec<Raw> = (0..count).map(|_| client_as(pooler, user, database)).collect();
    let pids = clients.iter_mut().map(|c| c.value(&format!("begin; {PID}"))).collect();
    for client in &mut clients {
        client.query("commit");
    }
    pids
}

fn is_running(pid: &str) -> bool {
    let sql = format!("select count(*) from pg_stat_activity where pid = {pid}");
    postgres().value("postgres", &sql) == "1"
}

#[test]
fn full_database_gives_up_what_was_unused_for_longest() {
    let (pooler, database) = start("max_db_connections = 3\n");
    let old = idle_servers(&pooler, "trusty", &database, 3);
    let mut other = client_as(&pooler, "postgres", &database);
    assert_eq!(tags(&other.query("begin")), "CZ");
    pooler.wait_lines(&[&format!("LOG S {database}/trusty closing because: evicted")]);
    wait_until("the oldest is gone", || !is_running(&old[0]));
    assert!(is_running(&old[1]) && is_running(&old[2]));
    let mut second = client_as(&pooler, "postgres", &database);
    second.query("begin");
    wait_until("the next is gone", || !is_running(&old[1]));
    assert!(is_running(&old[2]));
    let connections = pooler.show("DATABASES", "current_connections", ("name", &database));
    assert_eq!(connections, ["3"]);
}

#[test]
fn who_cannot_evict_waits_without_a_word() {
    let (pooler, database) = start("max_db_connections = 1\nquery_wait_timeout = 1\n");
    client_as(&pooler, "postgres", &database).bye();
    let mut holder = pooler.holder(&database);
    let mut other = client_as(&pooler, "postgres", &database);
    other.send(&query("select 1"));
    let left = other.rest();
    assert_eq!((tags(&left).as_str(), last_error(&left).2), ("E", "query_wait_timeout".into()));
    assert_eq!(holder.value("select 5"), "5", "active servers are never evicted");
    let evicted = format!("LOG S {database}/trusty closing because: evicted");
    assert_eq!(pooler.count(&evicted), 0);
    let mut other = client_as(&pooler, "postgres", &database);
    other.send(&query("select 2"));
    wait_until("it waits", || pool_of(&pooler, &database, "postgres").1 == 1);
    holder.query("commit");
    assert_eq!(tags(&other.until(b'Z')), "TDCZ");
    assert_eq!(pooler.count(&evicted), 1);
}

/// Two pools take one connection from each other; a tick apiece would make it ten seconds.
#[test]
fn server_that_comes_free_is_evicted_at_once() {
    let (pooler, database) = start("max_db_connections = 1\n");
    client_as(&pooler, "postgres", &database).bye();
    let mut holder = pooler.holder(&database);
    let mut spent = Duration::ZERO;
    for turn in 0..30 {
        let user = ["postgres", "trusty"][turn % 2];
        let mut other = client_as(&pooler, user, &database);
        other.send(&query("begin"));
        wait_until("it waits", || pool_of(&pooler, &database, user).1 == 1);
        let began = Instant::now();
        holder.send(&query("commit"));
        assert_eq!(tags(&other.until(b'Z')), "CZ");
        spent += began.elapsed();
        holder = other;
    }
    assert!(spent < Duration::from_secs(6), "{spent:?}");
}

#[test]
fn a_database_s_own_limit_of_servers_counts_first() {
    for (own, global, servers) in [(2, 1, 2), (0, 2, 2), (-1, 1, 1), (1, 0, 1)] {
        let keys = format!("max_db_connections={own}");
        let settings = format!("max_db_connections = {global}\nmin_pool_size = 3\n");
        let pooler = databases(&[("shop", &keys)], &settings);
        let mut clients: Vec<Raw> = (0..3).map(|_| pooler.client("shop")).collect();
        for client in &mut clients {
            client.send(&query("begin"));
        }
        wait_until(&format!("{own} {global} make {servers}"), || {
            pool_of(&pooler, "shop", "trusty") == (servers, 3 - servers)
        });
        pooler.command("SET max_db_connections = 3");
        let all = if own > 0 { servers } else { 3 };
        wait_until("SET counts at once", || pool_of(&pooler, "shop", "trusty") == (all, 3 - all));
    }
}

#[test]
fn user_s_servers_are_limited_over_all_databases() {
    let (pooler, database) =
        start("max_user_connections = 2\n[users]\npostgres = max_user_connections=1\n");
    let second = postgres().new_database();
    let old = idle_servers(&pooler, "trusty", &database, 2);
    let mut client = pooler.client(&second);
    assert_eq!(tags(&client.query("begin")), "CZ");
    pooler.wait_lines(&[&format!("LOG S {database}/trusty closing because: evicted")]);
    wait_until("the oldest is gone", || !is_running(&old[0]));
    assert!(is_running(&old[1]));
    let shown = |column| pooler.show("USERS", column, ("name", "trusty")).concat();
    assert_eq!(shown("current_connections"), "2");
    assert_eq!(shown("max_user_connections"), "2");
    let _other = {
        let mut other = client_as(&pooler, "postgres", &database);
        assert_eq!(tags(&other.query("begin")), "CZ", "users do not share their limit");
        other
    };
    let mut third = pooler.tcp();
    third.send(&startup(0, &[("user", "postgres"), ("database", &second)]));
    wait_until("the user's own limit", || pool_of(&pooler, &second, "postgres") == (0, 1));
}

/// Pools of forced users count, but leave the pools of other databases alone.
#[test]
fn forced_users_evict_only_inside_their_database() {
    let entries = [("forced", "user=trusty"), ("free", ""), ("second", "user=trusty")];
    let pooler = databases(&entries, "max_user_connections = 1\nquery_wait_timeout = 1\n");
    let evicted = || pooler.log().contains("closing because: evicted");
    idle_servers(&pooler, "trusty", "forced", 1);
    for database in ["free", "second"] {
        let refused = pooler.login("trusty", database, "");
        assert_eq!(last_error(&refused.err().unwrap()).2, "query_wait_timeout", "{database}");
        assert!(!evicted(), "{database}");
    }
    assert_eq!(pooler.show("USERS", "current_connections", ("name", "trusty")), ["1"]);
    pooler.command("KILL forced");
    pooler.client("free").bye();
    let refused = pooler.login("trusty", "second", "");
    assert_eq!(last_error(&refused.err().unwrap()).2, "query_wait_timeout");
    assert!(!evicted());
}

/// When servers connected, in milliseconds of the day.
fn connects(pooler: &Pooler) -> Vec<i64> {
    let log = pooler.log();
    let lines = log.lines().filter(|line| line.contains("new connection to server"));
    let time = |line: &str| {
        let digits = |range: std::ops::Range<usize>| {
            line.as_bytes()[range].iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'))
        };
        ((digits(11..13) * 60 + digits(14..16)) * 60 + digits(17..19)) * 1000 + digits(20..23)
    };
    lines.map(time).collect()
}

#[test]
fn min_pool_size_is_reached_while_there_are_clients_and_kept() {
    let (pooler, database) = start("min_pool_size = 3\nserver_idle_timeout = 1\n");
    let mut client = pooler.client(&database);
    let idle = || pooler.pool(&database, "sv_idle");
    wait_until("it grows", || idle() == 3);
    let times = connects(&pooler);
    assert_eq!(times.len(), 3);
    let gap = (times[2] - times[1]).rem_euclid(24 * 3_600_000);
    assert!(gap >= 150, "one at a tick, but: {times:?}");
    std::thread::sleep(Duration::from_millis(1800));
    assert_eq!(idle(), 3, "server_idle_timeout spares them");
    for pid in pooler.servers(&database) {
        postgres().value("postgres", &format!("select pg_terminate_backend({pid})"));
    }
    wait_until("they are replaced", || connects(&pooler).len() == 6 && idle() == 3);
    idle_servers(&pooler, "trusty", &database, 5);
    let closed = format!("LOG S {database}/trusty closing because: server idle timeout");
    wait_until("the surplus goes", || pooler.count(&closed) == 2 && idle() == 3);
    assert_eq!(client.value("select 1"), "1");
}

#[test]
fn min_pool_size_needs_a_client_or_a_forced_user() {
    let entries = [
        ("kept", "user=trusty min_pool_size=2"),
        ("small", "user=trusty min_pool_size=4 pool_size=1"),
        ("endless", "user=trusty min_pool_size=4 pool_size=0"),
        ("unlike", "user=trusty min_pool_size=0"),
        ("limited", "user=trusty min_pool_size=4 max_db_connections=2"),
        ("free", "min_pool_size=2"),
    ];
    let pooler = databases(&entries, "min_pool_size = 1\nserver_idle_timeout = 1\n");
    let sizes = [("kept", 2), ("small", 1), ("limited", 2)];
    wait_until("the servers are there", || {
        sizes.iter().all(|(name, size)| pooler.pool(name, "sv_idle") == *size)
    });
    for pid in pooler.servers("kept") {
        postgres().value("postgres", &format!("select pg_terminate_backend({pid})"));
    }
    std::thread::sleep(Duration::from_millis(1500));
    for (name, size) in sizes.into_iter().chain([("endless", 0), ("unlike", 0), ("free", 0)]) {
        assert_eq!(pooler.pool(name, "sv_idle"), size, "{name}");
    }
    let client = pooler.client("free");
    wait_until("now there is a client", || pooler.pool("free", "sv_idle") == 2);
    client.bye();
    for pid in pooler.servers("free") {
        postgres().value("postgres", &format!("select pg_terminate_backend({pid})"));
    }
    std::thread::sleep(Duration::from_millis(1000));
    assert_eq!(pooler.pool("free", "sv_idle"), 0, "nobody needs them now");
}

/// The first pool by name gets the connection that all want, whichever was there first.
#[test]
fn min_pool_size_evicts_nobody() {
    let entries = [("b", "user=trusty min_pool_size=1"), ("a", "user=trusty min_pool_size=1")];
    let limit = "max_user_connections = 1\n";
    let pooler = databases(&entries[..1], limit);
    wait_until("one is there", || pooler.pool("b", "sv_idle") == 1);
    pooler.rewrite(&setup_of(&entries, limit));
    pooler.command("PAUSE");
    pooler.command("RELOAD");
    wait_until("there are two pools", || {
        !pooler.show("POOLS", "user", ("database", "a")).is_empty()
    });
    assert_eq!(pooler.servers("b").len(), 0);
    pooler.command("RESUME");
    wait_until("one is there", || pooler.pool("a", "sv_idle") == 1);
    std::thread::sleep(Duration::from_millis(1000));
    assert_eq!(pooler.pool("b", "sv_idle"), 0);
    assert!(!pooler.log().contains("evicted"));
}

fn visible(pooler: &Pooler, database: &str) -> bool {
    !pooler.show("DATABASES", "name", ("name", database)).is_empty()
}

#[test]
fn automatic_database_goes_when_nobody_used_it_for_long() {
    let settings = "autodb_idle_timeout = 1\nserver_idle_timeout = 0.5\nserver_lifetime = 0\n";
    let (pooler, database) = start(settings);
    let mut client = pooler.client(&database);
    client.query("select 1");
    let made = format!("LOG C (nodb)/(nouser) registered new auto-database: {database}");
    pooler.wait_lines(&[&made]);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(visible(&pooler, &database), "a client keeps it");
    client.bye();
    wait_until("it is not listed any more", || !visible(&pooler, &database));
    let again = pooler.client(&database);
    assert!(visible(&pooler, &database));
    assert_eq!(pooler.count(&made), 1, "it was still there");
    again.bye();
    let gone = format!(
        "WARNING dropping database '{database}' as it does not exist anymore or inactive auto-database"
    );
    pooler.wait_lines(&[&gone]);
    assert_eq!(pooler.show("POOLS", "user", ("database", &database)).len(), 0);
    assert_eq!(pooler.client(&database).value("select 5"), "5");
    assert_eq!(pooler.count(&made), 2);
}

#[test]
fn paused_or_wanted_automatic_databases_stay() {
    let settings = "autodb_idle_timeout = 0.7\nserver_lifetime = 0\nauth_type = plain\n";
    let (pooler, database) = start(settings);
    let wanted = postgres().new_database();
    pooler.command(&format!("PAUSE {database}"));
    let end = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < end {
        let mut raw = pooler.tcp();
        let hello = startup(0, &[("user", "trusty"), ("database", &wanted)]);
        raw.send(&hello);
        assert_eq!(raw.recv().unwrap().tag, b'R');
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(!pooler.log().contains("dropping database"), "{}", pooler.log());
    pooler.command(&format!("RESUME {database}"));
    for name in [database, wanted] {
        pooler.wait_log(&format!("dropping database '{name}' as"));
    }
}

#[test]
fn unused_pool_is_freed() {
    let entries = [
        ("shop", ""),
        ("kept", "user=trusty min_pool_size=1"),
        ("down", "user=trusty min_pool_size=1 port=1"),
        ("busy", ""),
    ];
    let settings = "pool_idle_timeout = 1\nserver_idle_timeout = 0.4\n";
    let pooler = databases(&entries, settings);
    let _busy = pooler.client("busy");
    pooler.client("shop").query("select 1");
    assert_eq!(pooler.show("STATS", "total_query_count", ("database", "shop")), ["1"]);
    pooler.wait_log(" LOG cleaning up idle pool for user trusty on db shop because: pool idle timeout (age= 1s)\n");
    assert_eq!(pooler.show("POOLS", "user", ("database", "shop")).len(), 0);
    assert!(!pooler.show("STATS", "total_query_count", ("database", "shop")).contains(&"1".into()));
    std::thread::sleep(Duration::from_millis(800));
    for name in ["kept", "down", "busy"] {
        assert_eq!(pooler.show("POOLS", "user", ("database", name)), ["trusty"], "{name}");
    }
    for name in ["kept", "down", "busy"] {
        assert!(!pooler.log().contains(&format!("on db {name} because")), "{name}");
    }
    assert_eq!(pooler.client("shop").value("select 3"), "3");
}

#[test]
fn of_many_pools_the_one_unused_for_longest_gives_up_its_server() {
    let pooler = databases(&[("a", ""), ("b", ""), ("c", "")], "max_user_connections = 2\n");
    let use_one = |name: &str| assert_eq!(pooler.client(name).value("select 1"), "1");
    let left = || ["a", "b", "c"].map(|name| pooler.pool(name, "sv_idle"));
    use_one("a");
    use_one("b");
    use_one("c");
    wait_until("the oldest goes", || left() == [0, 1, 1]);
    use_one("b");
    use_one("a");
    wait_until("use makes young", || left() == [1, 1, 0]);
}

/// Whatever ends a server, its place under the limits is free again.
#[test]
fn every_end_of_a_server_makes_room_for_another() {
    let (pooler, database) = start("max_db_connections = 1\nmax_user_connections = 1\n");
    let mut client = pooler.client(&database);
    let mut last = String::new();
    let mut replaced = |client: &mut Raw, what: &str| {
        let pid = client.value(PID);
        assert_ne!(std::mem::replace(&mut last, pid.clone()), pid, "{what}");
        pid
    };
    let pid = replaced(&mut client, "the first");
    postgres().value("postgres", &format!("select pg_terminate_backend({pid})"));
    // Its last words may be looked at before its end has been seen.
    let ends = ["server conn crashed?", "server got dirty"];
    wait_until("it is gone", || ends.iter().any(|end| pooler.log().contains(end)));
    replaced(&mut client, "PostgreSQL ended it");
    pooler.command("RECONNECT");
    replaced(&mut client, "RECONNECT");
    let mut lost = pooler.holder(&database);
    lost.send(&query("select pg_sleep(60)"));
    drop(lost);
    pooler.wait_log("closing because: client disconnect while server was not ready");
    replaced(&mut client, "its client left in a query");
    pooler.command("PAUSE");
    pooler.command("RESUME");
    let pid = replaced(&mut client, "PAUSE");
    client.send(&query("select pg_sleep(60)"));
    let asleep = format!(
        "select count(*) from pg_stat_activity where pid = {pid} and query like '%pg_sleep%'"
    );
    wait_until("it runs", || postgres().value("postgres", &asleep) == "1");
    let mut cancel = pooler.tcp();
    cancel.send(&client.cancel_request());
    assert_eq!(cancel.rest(), []);
    assert!(tags(&client.until(b'Z')).contains('E'));
    pooler.command("SET server_lifetime = 0");
    wait_until("no server is left", || pooler.servers(&database).is_empty());
    for _ in 0..3 {
        replaced(&mut client, "it was old");
    }
    pooler.command(&format!("KILL {database}"));
    pooler.command(&format!("RESUME {database}"));
    replaced(&mut pooler.client(&database), "KILL");
    assert_eq!(pooler.show("USERS", "current_connections", ("name", "postgres")).len(), 1);
}

/// A server that is being checked for somebody is not given up for somebody else.
#[test]
fn awaited_check_protects_from_eviction() {
    let answers = Arc::new(AtomicBool::new(false));
    let may_answer = answers.clone();
    let fake = Fake::start(move |mut peer| {
        peer.welcome();
        while let Some(msg) = peer.raw.recv().filter(|msg| msg.tag == b'Q') {
            wait_until("go on", || msg.body != [0] || may_answer.load(Ordering::Relaxed));
            peer.answer("here");
        }
    });
    let pooler = Pooler::start(&Setup {
        databases: fake.database(),
        settings: "pool_mode = transaction\nmax_db_connections = 1\nserver_check_delay = 0.2\n"
            .into(),
        users: "\"trusty\" \"\"\n\"postgres\" \"\"\n".into(),
    });
    let mut other = client_as(&pooler, "postgres", "fake");
    let mut client = client_as(&pooler, "trusty", "fake");
    assert_eq!(client.value("select 1"), "here");
    std::thread::sleep(Duration::from_millis(900));
    client.send(&query("select 2"));
    wait_until("it waits", || pool_of(&pooler, "fake", "trusty") == (1, 1));
    other.send(&query("select 3"));
    wait_until("both wait", || pool_of(&pooler, "fake", "postgres") == (0, 1));
    std::thread::sleep(Duration::from_millis(800));
    let evicted = "LOG S fake/trusty closing because: evicted";
    assert_eq!(pooler.count(evicted), 0);
    answers.store(true, Ordering::Relaxed);
    assert_eq!(tags(&client.until(b'Z')), "TDCZ");
    assert_eq!(tags(&other.until(b'Z')), "TDCZ");
    pooler.wait_lines(&[evicted]);
}
