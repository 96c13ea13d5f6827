//! Every timeout of clients: when it runs, when not, and who is told what (pooling 4).

use std::time::{Duration, Instant};

use crate::rig::fake::Fake;
use crate::rig::pooler::{in_transactions as start, Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::scratch::{scratch, DeadPort};
use crate::rig::wait_until;
use crate::rig::wire::{fatal, last_error, query, startup, tags, Msg};

/// A database `shop` of the forced user `trusty` with these keys, and another login user `other`.
fn shop(keys: &str, settings: &str) -> Pooler {
    let place = format!("host=127.0.0.1 port={}", postgres().port);
    Pooler::start(&Setup {
        databases: format!("shop = {place} dbname=template1 user=trusty {keys}\n"),
        settings: format!("pool_mode = transaction\n{settings}"),
        users: "\"trusty\" \"\"\n\"other\" \"\"\n".to_owned(),
    })
}

fn client_as(pooler: &Pooler, user: &str) -> Raw {
    pooler.login(user, "shop", "").unwrap_or_else(|e| panic!("no login: {e:?}")).0
}

/// Client and server end for the same reason: the server's line comes first.
fn assert_both_closed(pooler: &Pooler, database: &str, left: &[Msg], text: &str) {
    assert_eq!(last_error(left), fatal(text));
    pooler.wait_lines(&[
        &format!("LOG S {database}/trusty closing because: {text}"),
        &format!("LOG C {database}/trusty closing because: {text}"),
        &format!("WARNING C {database}/trusty pooler error: {text}"),
    ]);
}

/// Only a client ends.
fn assert_client_closed(pooler: &Pooler, who: &str, left: &[Msg], text: &str) {
    assert_eq!((tags(left).as_str(), last_error(left)), ("E", fatal(text)));
    pooler.wait_lines(&[
        &format!("LOG C {who} closing because: {text}"),
        &format!("WARNING C {who} pooler error: {text}"),
    ]);
    assert!(!pooler.lines().iter().any(|line| line.starts_with("LOG S") && line.ends_with(text)));
}

/// Runs a check for all rows at the same time.
fn at_once<T: Send>(rows: impl IntoIterator<Item = T>, check: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for row in rows {
            let check = &check;
            scope.spawn(move || check(row));
        }
    });
}

fn pause(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

#[test]
fn query_timeout_closes_both_sides() {
    let (pooler, database) = start("query_timeout = 0.7\n");
    let mut client = pooler.client(&database);
    let began = Instant::now();
    client.send(&query("select pg_sleep(60)"));
    assert_both_closed(&pooler, &database, &client.rest(), "query timeout");
    let spent = began.elapsed();
    assert!(spent >= Duration::from_millis(700) && spent < Duration::from_secs(5), "{spent:?}");
    assert_eq!(pooler.client(&database).value("select 3"), "3");
}

#[test]
fn query_timeout_does_not_run_between_queries() {
    for mode in ["transaction", "session"] {
        let (pooler, database) = start(&format!("query_timeout = 0.7\npool_mode = {mode}\n"));
        let mut client = pooler.holder(&database);
        for _ in 0..3 {
            pause(600);
            assert_eq!(client.value("select 1"), "1", "{mode}");
        }
        pause(1200);
        assert_eq!(tags(&client.query("commit")), "CZ", "{mode}");
        pause(1200);
        assert_eq!(client.value("select 2"), "2", "{mode}");
    }
}

#[test]
fn query_timeout_counts_for_unfinished_batches() {
    let (pooler, database) = start("query_timeout = 0.7\n");
    let mut client = pooler.client(&database);
    client.send(&crate::rig::wire::parse("", "select 1"));
    assert_both_closed(&pooler, &database, &client.rest(), "query timeout");
}

#[test]
fn query_timeout_ends_a_wait_under_its_other_name() {
    let (pooler, database) = start("default_pool_size = 1\n");
    let mut holder = pooler.holder(&database);
    let mut waiter = pooler.waiter(&database, "select 1");
    pooler.command("SET query_wait_timeout = 1");
    pooler.command("SET query_timeout = '0.3'");
    assert_client_closed(&pooler, &format!("{database}/trusty"), &waiter.rest(), "query_timeout");
    assert_eq!(holder.value("select 5"), "5");
}

#[test]
fn idle_transaction_timeout_closes_both_sides() {
    for (begin, mode) in [("begin", "transaction"), ("begin; select 1 / 0", "session")] {
        let (pooler, database) =
            start(&format!("idle_transaction_timeout = 0.7\npool_mode = {mode}\n"));
        let mut client = pooler.client(&database);
        client.query(begin);
        assert_both_closed(&pooler, &database, &client.rest(), "idle transaction timeout");
    }
}

#[test]
fn idle_transaction_timeout_runs_only_while_idle_in_a_transaction() {
    let (pooler, database) = start("idle_transaction_timeout = 0.7\npool_mode = session\n");
    let mut client = pooler.holder(&database);
    assert_eq!(client.value("select 1 from pg_sleep(1.5)"), "1");
    for _ in 0..3 {
        pause(400);
        assert_eq!(client.value("select 1"), "1");
    }
    client.query("commit");
    pause(1400);
    assert_eq!(client.value("select 2"), "2");
}

#[test]
fn transaction_timeout_runs_whatever_happens_inside() {
    let (pooler, database) = start("transaction_timeout = 1\n");
    let mut client = pooler.holder(&database);
    let left = loop {
        client.try_send(&query("select 1"));
        let answer: Vec<Msg> = (0..4).map_while(|_| client.recv()).collect();
        if !tags(&answer).ends_with('Z') {
            break answer;
        }
        pause(100);
    };
    assert_both_closed(&pooler, &database, &left, "transaction timeout");
    let mut client = pooler.client(&database);
    client.send(&query("select pg_sleep(60)"));
    assert_both_closed(&pooler, &database, &client.rest(), "transaction timeout");
}

#[test]
fn transaction_timeout_begins_anew_with_each_transaction() {
    let (pooler, database) = start("transaction_timeout = 0.8\npool_mode = session\n");
    let mut client = pooler.client(&database);
    for _ in 0..4 {
        assert_eq!(client.value("begin; select 1"), "1");
        pause(350);
        assert_eq!(tags(&client.query("commit")), "CZ");
    }
    pause(1300);
    assert_eq!(client.value("select 2"), "2");
}

/// The forced user's timeouts count, not the login user's.
#[test]
fn user_s_timeouts_count_before_the_global_ones() {
    let rows = [
        ("query_timeout", "select pg_sleep(60)", "query timeout"),
        ("idle_transaction_timeout", "begin", "idle transaction timeout"),
        ("transaction_timeout", "begin", "transaction timeout"),
    ];
    at_once(rows, |(name, sql, text)| {
        let users = format!("[users]\ntrusty = {name}=1\nother = {name}=3600\n");
        for global in ["0", "3600"] {
            let pooler = shop("", &format!("{name} = {global}\n{users}"));
            let mut client = client_as(&pooler, "other");
            client.send(&query(sql));
            assert_eq!(last_error(&client.rest()), fatal(text), "{name} {global}");
        }
        let users = format!("[users]\ntrusty = {name}=3600\nother = {name}=1\n");
        let pooler = shop("", &format!("{name} = 0.5\n{users}"));
        let mut client = client_as(&pooler, "other");
        client.send(&query(&sql.replace("60", "1.5")));
        client.until(b'Z');
        pause(1500);
        assert_eq!(client.value("select 1"), "1", "{name}");
    });
}

#[test]
fn client_idle_timeout_closes_clients_without_a_server() {
    let (pooler, database) = start("client_idle_timeout = 0.8\ndefault_pool_size = 1\n");
    let who = format!("{database}/trusty");
    let mut fresh = pooler.client(&database);
    assert_client_closed(&pooler, &who, &fresh.rest(), "client_idle_timeout");
    let mut holder = pooler.holder(&database);
    let mut waiter = pooler.waiter(&database, "select 1");
    pause(1600);
    assert_eq!(pooler.pool(&database, "cl_waiting"), 1, "it is not idle but waits");
    assert_eq!(tags(&holder.query("commit")), "CZ", "it has a server");
    assert_eq!(tags(&waiter.until(b'Z')), "TDCZ");
    assert_client_closed(&pooler, &who, &holder.rest(), "client_idle_timeout");
}

#[test]
fn client_idle_timeout_spares_sessions_with_a_server() {
    let (pooler, database) = start("client_idle_timeout = 0.6\npool_mode = session\n");
    let mut client = pooler.client(&database);
    assert_eq!(client.value("select 1"), "1");
    pause(1500);
    assert_eq!(client.value("select 2"), "2");
    let mut console = pooler.console();
    pause(1500);
    assert!(!console.query("SHOW VERSION").is_empty(), "consoles are never idle");
}

/// The login user's counts; who has none is not closed because of others.
#[test]
fn client_idle_timeout_of_a_user_is_for_that_user() {
    let users = "[users]\nother = client_idle_timeout=1\ntrusty = client_idle_timeout=0\n";
    let pooler = shop("", users);
    let (mut other, mut trusty) = (client_as(&pooler, "other"), client_as(&pooler, "trusty"));
    assert_client_closed(&pooler, "shop/other", &other.rest(), "client_idle_timeout");
    pause(700);
    assert_eq!(trusty.value("select 1"), "1");
}

/// SET counts for what is going on already.
#[test]
fn timeouts_change_at_run_time() {
    let rows = [
        ("query_timeout", "select pg_sleep(60)", "query timeout"),
        ("idle_transaction_timeout", "begin", "idle transaction timeout"),
        ("transaction_timeout", "begin", "transaction timeout"),
        ("client_idle_timeout", "", "client_idle_timeout"),
    ];
    at_once(rows, |(name, sql, text)| {
        let (pooler, database) = start("");
        let mut client = pooler.client(&database);
        client.send(&query(sql));
        pause(700);
        pooler.command(&format!("SET {name} = '0.5'"));
        assert_eq!(last_error(&client.rest()), fatal(text));
    });
}

#[test]
fn client_login_timeout_ends_an_unfinished_login() {
    let pooler = shop("", "client_login_timeout = 0.6\nauth_type = plain\n");
    let mut silent = pooler.tcp();
    let mut asked = pooler.tcp();
    asked.send(&startup(0, &[("user", "other"), ("database", "shop")]));
    assert_eq!(asked.recv().unwrap().tag, b'R');
    let mut done = pooler.console();
    assert_client_closed(&pooler, "(nodb)/(nouser)", &silent.rest(), "client_login_timeout");
    assert_client_closed(&pooler, "shop/other", &asked.rest(), "client_login_timeout");
    assert!(!done.query("SHOW VERSION").is_empty());
    pooler.command("SET client_login_timeout = 0");
    let mut silent = pooler.tcp();
    pause(1200);
    silent.send(&startup(0, &[("user", "admin"), ("database", "pgbouncer")]));
    assert_eq!(silent.recv().unwrap().tag, b'R');
}

#[test]
fn client_login_timeout_ends_the_wait_for_a_server_that_is_down() {
    let settings = "client_login_timeout = 0.8\nquery_wait_timeout = 60\n";
    let mut setup = Setup::trust(settings);
    let dead = DeadPort::new();
    setup.databases = format!("down = host=127.0.0.1 port={}\n", dead.port);
    let pooler = Pooler::start(&setup);
    let login = pooler.login("trusty", "down", "");
    let text = "client_login_timeout (server down)";
    assert_client_closed(&pooler, "down/trusty", &login.err().unwrap(), text);
    pooler.command("SET query_wait_timeout = '0.3'");
    let login = pooler.login("trusty", "down", "");
    assert_client_closed(&pooler, "down/trusty", &login.err().unwrap(), "query_wait_timeout");
}

#[test]
fn query_wait_timeout_runs_while_paused_and_stops_with_the_wait() {
    let (pooler, database) = start("default_pool_size = 1\nquery_wait_timeout = 0.8\n");
    let mut holder = pooler.holder(&database);
    let mut waiter = pooler.waiter(&database, "begin");
    holder.query("commit");
    assert_eq!(tags(&waiter.until(b'Z')), "CZ");
    pause(1400);
    assert_eq!(tags(&waiter.query("commit")), "CZ");
    pooler.command(&format!("PAUSE {database}"));
    waiter.send(&query("select 1"));
    let who = format!("{database}/trusty");
    assert_client_closed(&pooler, &who, &waiter.rest(), "query_wait_timeout");
}

/// User before database before all, and 0 is without limit everywhere.
#[test]
fn query_wait_timeout_of_user_and_database_count_first() {
    let set = "query_wait_timeout=";
    let rows = [
        (format!("{set}1"), "", "0", true),
        (format!("{set}1"), "", "60", true),
        (format!("{set}60"), "1", "0", true),
        (String::new(), "1", "0", true),
        (format!("{set}0"), "", "0.4", false),
        (format!("{set}1"), "0", "0.4", false),
        (format!("{set}-1"), "", "0.4", false),
    ];
    at_once(rows, |(keys, user, global, ends)| {
        let own = if user.is_empty() { String::new() } else { format!("{set}{user}") };
        let users = format!("[users]\nother = {own}\ntrusty = {set}600\n");
        let sizes = format!("default_pool_size = 1\nquery_wait_timeout = {global}\n");
        let pooler = shop(&keys, &format!("{sizes}{users}"));
        let mut holder = client_as(&pooler, "other");
        assert_eq!(tags(&holder.query("begin")), "CZ");
        let mut waiter = client_as(&pooler, "other");
        waiter.send(&query("select 1"));
        if ends {
            let left = waiter.rest();
            assert_eq!(last_error(&left), fatal("query_wait_timeout"), "{keys} {own} {global}");
        } else {
            pause(1800);
            holder.query("commit");
            assert_eq!(tags(&waiter.until(b'Z')), "TDCZ", "{keys} {own} {global}");
        }
    });
}

const NOTICE: &str = "No server connection available in postgres backend, client being queued";

#[test]
fn queued_client_is_told_once_per_wait() {
    let (pooler, database) = start("default_pool_size = 1\nquery_wait_notify = 1\n");
    let mut holder = pooler.holder(&database);
    let began = Instant::now();
    let mut waiter = pooler.waiter(&database, "begin");
    let notice = waiter.recv().unwrap();
    assert!(began.elapsed() >= Duration::from_secs(2), "more than one whole second");
    let detail = b"\0Dpool full: pool_size=1 is reached\0\0";
    assert_eq!(notice.body, [b"SNOTICE\0C00000\0M", NOTICE.as_bytes(), detail].concat());
    pause(2500);
    holder.query("commit");
    assert_eq!(tags(&waiter.until(b'Z')), "CZ", "no second notice");
    waiter.query("commit");
    holder.query("begin");
    waiter.send(&query("select 1"));
    let second = waiter.recv().unwrap();
    assert_eq!((second.tag, second.field(b'M')), (b'N', NOTICE.to_owned()), "another wait");
    holder.query("commit");
    assert_eq!(tags(&waiter.until(b'Z')), "TDCZ");
    assert!(!pooler.log().contains(NOTICE));
}

#[test]
fn nobody_is_told_while_paused_or_before_the_welcome_or_when_it_is_off() {
    let (pooler, database) = start("default_pool_size = 1\nquery_wait_notify = 1\n");
    let mut client = pooler.client(&database);
    pooler.command("PAUSE");
    client.send(&query("select 1"));
    let mut fresh = pooler.tcp();
    let other = postgres().new_database();
    fresh.send(&startup(0, &[("user", "trusty"), ("database", &other)]));
    pause(3000);
    // Nobody may be told of the time that its server takes from here on.
    pooler.command("SET query_wait_notify = 0");
    pooler.command("RESUME");
    assert_eq!(tags(&client.until(b'Z')), "TDCZ");
    assert!(!tags(&fresh.until(b'Z')).contains('N'));
    let mut holder = pooler.holder(&database);
    client.send(&query("select 2"));
    pause(2500);
    holder.query("commit");
    assert_eq!(tags(&client.until(b'Z')), "TDCZ");
}

#[test]
fn server_that_does_not_accept_is_given_up() {
    let full = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = full.local_addr().unwrap().port();
    nix::sys::socket::listen(&full, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let wait = Duration::from_millis(300);
    let mut queue = Vec::new();
    while let Ok(stream) =
        std::net::TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), wait)
    {
        queue.push(stream);
    }
    let mut setup = Setup::trust("server_connect_timeout = 0.5\nserver_login_retry = 60\n");
    setup.databases = format!("full = host=127.0.0.1 port={port}\n");
    let pooler = Pooler::start(&setup);
    let mut client = pooler.tcp();
    client.send(&startup(0, &[("user", "trusty"), ("database", "full")]));
    pooler
        .wait_log(&format!(" full/trusty@127.0.0.1:{port} closing because: connect failed (age="));
}

#[test]
fn server_that_does_not_finish_its_login_is_given_up() {
    let fake = Fake::start(|mut peer| {
        peer.raw.send(&crate::rig::wire::msg(b'R', &[0, 0, 0, 0]));
        peer.raw.rest();
    });
    let mut setup = Setup::trust("server_connect_timeout = 0.5\nserver_login_retry = 60\n");
    setup.databases = fake.database();
    let pooler = Pooler::start(&setup);
    let mut client = pooler.tcp();
    client.send(&startup(0, &[("user", "trusty"), ("database", "fake")]));
    pooler.wait_log(&format!(
        " fake/trusty@127.0.0.1:{} closing because: connect timeout (age=",
        fake.port
    ));
    drop(client);
    pooler.command("SET server_connect_timeout = 0");
    pooler.command("SET server_login_retry = 0");
    let mut client = pooler.tcp();
    client.send(&startup(0, &[("user", "trusty"), ("database", "fake")]));
    pause(1500);
    assert_eq!(pooler.count("LOG S fake/trusty closing because: connect timeout"), 1, "0 is off");
}

/// Fractions of a second work for servers that do answer.
#[test]
fn short_connect_timeout_lets_servers_in() {
    let (pooler, database) = start("server_connect_timeout = 0.9\n");
    assert_eq!(pooler.client(&database).value("select 1"), "1");
}

#[test]
fn failed_logins_are_tried_again_after_server_login_retry() {
    let mut setup = Setup::trust("server_login_retry = 0.7\nclient_login_timeout = 0\n");
    let dead = DeadPort::new();
    setup.databases = format!("down = host=127.0.0.1 port={}\n", dead.port);
    let pooler = Pooler::start(&setup);
    let began = Instant::now();
    let mut client = pooler.tcp();
    client.send(&startup(0, &[("user", "trusty"), ("database", "down")]));
    let failed = "LOG S down/trusty closing because: connect failed";
    wait_until("it is tried again and again", || pooler.count(failed) >= 3);
    assert!(began.elapsed() >= Duration::from_millis(1400), "{:?}", began.elapsed());
    pooler.command("SET server_login_retry = 60");
    let count = pooler.count(failed);
    pause(1500);
    assert!(pooler.count(failed) <= count + 1);
}

/// PostgreSQL's socket is reached through a link, which then goes.
#[test]
fn cancel_request_that_cannot_be_sent_is_dropped_silently() {
    let folder = scratch().folder();
    let name = format!(".s.PGSQL.{}", postgres().port);
    std::os::unix::fs::symlink(postgres().folder.join(&name), folder.join(&name)).unwrap();
    let mut setup = Setup::trust("pool_mode = transaction\ncancel_wait_timeout = 0.6\n");
    setup.databases =
        format!("shop = host={} port={} dbname=template1\n", folder.display(), postgres().port);
    let pooler = Pooler::start(&setup);
    let mut busy = pooler.client("shop");
    busy.send(&query("select 7 from pg_sleep(3)"));
    wait_until("it runs", || pooler.pool("shop", "sv_active") == 1);
    std::fs::remove_file(folder.join(&name)).unwrap();
    let mut cancel = pooler.tcp();
    cancel.send(&busy.cancel_request());
    assert_eq!(cancel.rest(), []);
    pooler.wait_lines(&["LOG C shop/(nouser) closing because: cancel_wait_timeout"]);
    assert!(!pooler.log().contains("pooler error: cancel_wait_timeout"));
    assert_eq!(tags(&busy.until(b'Z')), "TDCZ", "the query goes on");
}

#[test]
fn welcome_brings_the_login_message() {
    let pooler = shop("", "login_notify_message = mind the gap\n");
    for (user, database, password) in [("other", "shop", ""), ("admin", "pgbouncer", "admin-pw")] {
        let (_raw, welcome) = pooler.login(user, database, password).unwrap();
        assert!(tags(&welcome).ends_with("KNZ"), "{welcome:?}");
        assert_eq!(welcome[welcome.len() - 2].body, b"SNOTICE\0C00000\0Mmind the gap\0\0");
    }
    pooler.command("SET login_notify_message = ''");
    assert!(!tags(&pooler.login("other", "shop", "").unwrap().1).contains('N'));
}
