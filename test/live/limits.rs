//! Limits of clients and pools (pooling 2.2 to 2.4, 2.6).

use std::time::{Duration, Instant};

use crate::cancel::sleeping;
use crate::rig::pooler::{in_transactions as start, Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{last_error, query, startup, tags};

const TOO_MANY: &str = "no more connections allowed (max_client_conn)";
const TOO_MANY_OF_DATABASE: &str = "client connections exceeded (max_db_client_connections)";
const TOO_MANY_OF_USER: &str = "client connections exceeded (max_user_client_connections)";
const PID: &str = "select pg_backend_pid()";

/// A database `shop` whose servers are `trusty`'s, with these keys, and users with a password.
fn shop(keys: &str, settings: &str) -> Pooler {
    let place = format!("host=127.0.0.1 port={}", postgres().port);
    Pooler::start(&Setup {
        databases: format!("shop = {place} dbname=template1 user=trusty {keys}\n"),
        settings: format!("pool_mode = transaction\n{settings}"),
        users: "\"trusty\" \"\"\n\"stats\" \"stats-pw\"\n\"plain\" \"plain-pw\"\n\"other\" \"other-pw\"\n"
            .to_owned(),
    })
}

/// How a login ends: the text of its refusal, or nothing.
fn refused(pooler: &Pooler, user: &str, database: &str) -> Option<String> {
    let login = pooler.login(user, database, &format!("{user}-pw"));
    login.err().map(|msgs| last_error(&msgs).2)
}

fn clients_of(pooler: &Pooler, topic: &str, name: &str) -> String {
    pooler.show(topic, "current_client_connections", ("name", name)).concat()
}

/// Waits until a login is accepted: the end of another connection may not have been noticed yet.
fn admitted(pooler: &Pooler, user: &str, database: &str) -> Raw {
    let mut login = None;
    wait_until("the login is accepted", || {
        login = pooler.login(user, database, &format!("{user}-pw")).ok();
        login.is_some()
    });
    login.unwrap().0
}

#[test]
fn max_client_conn_is_for_all_but_consoles() {
    let (pooler, database) = start("max_client_conn = 2\n");
    let (one, two) = (pooler.client(&database), pooler.client(&database));
    assert_eq!(pooler.refusal("trusty", &database, ""), TOO_MANY);
    pooler.wait_lines(&[
        &format!("LOG C (nodb)/(nouser) closing because: {TOO_MANY}"),
        &format!("WARNING C (nodb)/(nouser) pooler error: {TOO_MANY}"),
    ]);
    assert_eq!(pooler.refusal("nobody", "nowhere", ""), TOO_MANY, "before anything else");
    let consoles = [pooler.console(), pooler.console(), pooler.console()];
    drop((one, two));
    assert_eq!(pooler.refusal("trusty", &database, ""), TOO_MANY, "consoles count");
    drop(consoles);
    admitted(&pooler, "trusty", &database);
}

#[test]
fn max_client_conn_counts_who_has_not_logged_in() {
    let (pooler, database) = start("max_client_conn = 2\n");
    let mut silent = [pooler.tcp(), pooler.tcp()];
    wait_until("they are known", || {
        pooler.show("LISTS", "items", ("list", "login_clients")) == ["2"]
    });
    assert_eq!(pooler.refusal("trusty", &database, ""), TOO_MANY);
    for raw in &mut silent {
        raw.send(&startup(0, &[("user", "admin"), ("database", "pgbouncer")]));
        assert!(tags(&raw.until(b'Z')).starts_with('R'));
    }
}

#[test]
fn consoles_and_cancel_requests_come_through_when_no_client_does() {
    let (pooler, database) = start("default_pool_size = 1\nmax_db_connections = 1\n");
    let mut busy = pooler.client(&database);
    busy.send(&query("select pg_sleep(60)"));
    wait_until("it runs", || sleeping(&database));
    let _waiter = pooler.waiter(&database, "select 1");
    for limit in ["0", "1"] {
        pooler.command(&format!("SET max_client_conn = {limit}"));
        assert_eq!(pooler.refusal("trusty", &database, ""), TOO_MANY, "{limit}");
        assert!(!pooler.command("SHOW CLIENTS").is_empty());
    }
    let mut cancel = pooler.tcp();
    cancel.send(&busy.cancel_request());
    assert_eq!(cancel.rest(), []);
    let answer = busy.until(b'Z');
    assert_eq!(answer.iter().find(|m| m.tag == b'E').unwrap().field(b'C'), "57014");
}

#[test]
fn cancel_requests_find_room_in_pools_without_size() {
    let (pooler, database) = start("default_pool_size = 0\nmax_db_connections = 1\n");
    let mut busy = pooler.client(&database);
    busy.send(&query("select pg_sleep(60)"));
    wait_until("it runs", || sleeping(&database));
    let mut cancel = pooler.tcp();
    cancel.send(&busy.cancel_request());
    assert_eq!(cancel.rest(), []);
    assert!(tags(&busy.until(b'Z')).contains('E'));
}

#[test]
fn clients_of_a_database_are_limited() {
    let (pooler, database) = start("max_db_client_connections = 2\n");
    let (one, _two) = (pooler.client(&database), pooler.client(&database));
    assert_eq!(pooler.refusal("trusty", &database, ""), TOO_MANY_OF_DATABASE);
    assert_eq!(pooler.refusal("nobody", &database, ""), TOO_MANY_OF_DATABASE, "before the login");
    pooler.wait_log(&format!("closing because: {TOO_MANY_OF_DATABASE} (age="));
    pooler.wait_log(&format!("pooler error: {TOO_MANY_OF_DATABASE}"));
    let _elsewhere = pooler.client(&postgres().new_database());
    assert_eq!(clients_of(&pooler, "DATABASES", &database), "2");
    one.bye();
    let _three = admitted(&pooler, "trusty", &database);
    pooler.command("SET max_db_client_connections = 0");
    let _four = pooler.client(&database);
    assert_eq!(clients_of(&pooler, "DATABASES", &database), "3");
}

#[test]
fn a_database_s_own_limit_of_clients_counts_first() {
    for (own, global, admitted) in [(3, 1, 3), (0, 2, 2), (-1, 2, 2), (1, 0, 1)] {
        let keys = format!("max_db_client_connections={own}");
        let pooler = shop(&keys, &format!("max_db_client_connections = {global}\n"));
        let _in: Vec<Raw> = (0..admitted).map(|_| pooler.client("shop")).collect();
        let text = refused(&pooler, "trusty", "shop");
        assert_eq!(text.as_deref(), Some(TOO_MANY_OF_DATABASE), "{own} {global}");
    }
}

#[test]
fn clients_of_a_database_count_from_their_startup_packet_on() {
    let pooler = shop("max_db_client_connections=1", "auth_type = plain\n");
    let mut asked = pooler.tcp();
    asked.send(&startup(0, &[("user", "plain"), ("database", "shop")]));
    assert_eq!(asked.recv().unwrap().tag, b'R');
    assert_eq!(refused(&pooler, "plain", "shop").as_deref(), Some(TOO_MANY_OF_DATABASE));
    drop(asked);
    admitted(&pooler, "plain", "shop").bye();
}

#[test]
fn failed_logins_do_not_use_up_a_limit() {
    let pooler =
        shop("max_db_client_connections=1", "auth_type = plain\nmax_user_client_connections = 1\n");
    for _ in 0..3 {
        assert!(pooler.refusal("plain", "shop", "wrong").contains("authentication failed"));
        assert!(pooler.refusal("nobody", "shop", "wrong").contains("authentication failed"));
        assert_eq!(pooler.refusal("plain", "nowhere", "plain-pw"), "no such database: nowhere");
        let mut leaves = pooler.tcp();
        leaves.send(&startup(0, &[("user", "plain"), ("database", "shop")]));
        assert_eq!(leaves.recv().unwrap().tag, b'R');
        drop(leaves);
        wait_until("it is gone", || clients_of(&pooler, "DATABASES", "shop") == "0");
    }
    pooler.command("DISABLE shop");
    wait_until("the last one is gone", || {
        refused(&pooler, "plain", "shop").unwrap() == "database \"shop\" is disabled"
    });
    pooler.command("ENABLE shop");
    let client = admitted(&pooler, "plain", "shop");
    assert_eq!(clients_of(&pooler, "DATABASES", "shop"), "1");
    assert_eq!(clients_of(&pooler, "USERS", "plain"), "1");
    assert_eq!(refused(&pooler, "plain", "shop").as_deref(), Some(TOO_MANY_OF_DATABASE));
    client.bye();
    assert_eq!(clients_of(&pooler, "DATABASES", "shop"), "0");
    assert_eq!(clients_of(&pooler, "USERS", "plain"), "0");
    pooler.command("KILL shop");
    pooler.command("RESUME shop");
    admitted(&pooler, "plain", "shop").bye();
}

#[test]
fn clients_of_a_user_are_limited_over_all_databases() {
    let (pooler, database) = start(
        "max_user_client_connections = 2\n[users]\nother = max_user_client_connections=1\n\
         trusty = max_user_client_connections=0\n",
    );
    let second = postgres().new_database();
    let (_one, two) = (pooler.client(&database), pooler.client(&second));
    assert_eq!(pooler.refusal("trusty", &database, ""), TOO_MANY_OF_USER);
    pooler.wait_lines(&[
        &format!("LOG C {database}/trusty closing because: {TOO_MANY_OF_USER}"),
        &format!("WARNING C {database}/trusty pooler error: {TOO_MANY_OF_USER}"),
    ]);
    assert_eq!(clients_of(&pooler, "USERS", "trusty"), "2");
    let limit = |user| pooler.show("USERS", "max_user_client_connections", ("name", user));
    assert_eq!((limit("trusty"), limit("other")), (vec!["2".into()], vec!["1".into()]));
    two.bye();
    let _three = admitted(&pooler, "trusty", &second);
    pooler.command("SET max_user_client_connections = 3");
    let _four = pooler.client(&second);
    assert_eq!(clients_of(&pooler, "USERS", "trusty"), "3");
}

/// The login user counts, not the user that the database forces.
#[test]
fn a_user_s_own_limit_of_clients_counts_first() {
    let users = "[users]\nplain = max_user_client_connections=2\nother = pool_size=3\n";
    let pooler = shop("", &format!("max_user_client_connections = 1\n{users}"));
    let _plain = [admitted(&pooler, "plain", "shop"), admitted(&pooler, "plain", "shop")];
    assert_eq!(refused(&pooler, "plain", "shop").as_deref(), Some(TOO_MANY_OF_USER));
    let _other = admitted(&pooler, "other", "shop");
    assert_eq!(refused(&pooler, "other", "shop").as_deref(), Some(TOO_MANY_OF_USER));
    assert_eq!(clients_of(&pooler, "USERS", "trusty"), "0");
}

#[test]
fn administrators_are_never_too_many() {
    let limits = "max_db_client_connections = 1\nmax_user_client_connections = 1\n";
    let pooler = shop("", limits);
    let _consoles = [pooler.console(), pooler.console()];
    assert_eq!(refused(&pooler, "stats", "pgbouncer").as_deref(), Some(TOO_MANY_OF_DATABASE));
    pooler.command("SET max_db_client_connections = 0");
    let _stats = admitted(&pooler, "stats", "pgbouncer");
    assert_eq!(refused(&pooler, "stats", "pgbouncer").as_deref(), Some(TOO_MANY_OF_USER));
    let _third = pooler.console();
    assert_eq!(clients_of(&pooler, "USERS", "stats"), "1");
}

/// `pool_size` of the user, else of the database, else of all; 0 is without limit.
#[test]
fn pool_sizes_of_user_and_database_count_first() {
    let rows = [
        ("", "", 2),
        ("pool_size=3", "", 3),
        ("pool_size=3", "pool_size=1", 1),
        ("pool_size=-1", "pool_size=-1", 2),
        ("pool_size=0", "", 5),
        ("pool_size=1", "pool_size=0", 5),
    ];
    for (keys, user, size) in rows {
        // The pool's user is the one that the database forces; the login user's size is nothing.
        let users = format!("[users]\nplain = pool_size=4\ntrusty = {user}\n");
        let pooler = shop(keys, &format!("default_pool_size = 2\n{users}"));
        let mut clients: Vec<Raw> = (0..5).map(|_| admitted(&pooler, "plain", "shop")).collect();
        for client in &mut clients {
            client.send(&query("begin"));
        }
        wait_until(&format!("'{keys}' '{user}' make {size}"), || {
            pooler.pool("shop", "sv_active") == size
                && pooler.pool("shop", "cl_waiting") == 5 - size
        });
    }
}

#[test]
fn a_pool_that_became_smaller_is_trimmed() {
    let (pooler, database) = start("default_pool_size = 4\n");
    let holders: Vec<Raw> = (0..4).map(|_| pooler.holder(&database)).collect();
    let mut holders = holders.into_iter();
    let mut kept = holders.next().unwrap();
    for mut other in holders {
        other.query("commit");
    }
    let closed = format!("LOG S {database}/trusty closing because: too many servers in the pool");
    pooler.rewrite(&Setup::trust("pool_mode = transaction\ndefault_pool_size = 2\n"));
    pooler.command("RELOAD");
    wait_until("two are left", || pooler.servers(&database).len() == 2);
    assert_eq!(pooler.count(&closed), 2);
    pooler.command("SET default_pool_size = 1");
    wait_until("one is left", || pooler.servers(&database).len() == 1);
    assert_eq!(pooler.count(&closed), 3);
    assert_eq!(kept.value("select 7"), "7", "active servers are never trimmed");
    pooler.command("SET default_pool_size = 2");
    let mut one = pooler.holder(&database);
    kept.query("commit");
    pooler.command("SET reserve_pool_size = 1");
    pooler.command("SET default_pool_size = 1");
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(pooler.servers(&database).len(), 2, "the reserve is not trimmed");
    assert_eq!(tags(&one.query("commit")), "CZ");
}

#[test]
fn pool_size_grows_at_run_time() {
    let (pooler, database) = start("default_pool_size = 1\n");
    let _holder = pooler.holder(&database);
    let mut waiter = pooler.waiter(&database, "select 5");
    pooler.command("SET default_pool_size = 2");
    assert_eq!(tags(&waiter.until(b'Z')), "TDCZ");
}

#[test]
fn reserve_pool_serves_who_waits_for_long() {
    let (pooler, database) =
        start("default_pool_size = 1\nreserve_pool_size = 1\nreserve_pool_timeout = 0.8\n");
    let _holder = pooler.holder(&database);
    let began = Instant::now();
    let mut first = pooler.waiter(&database, "begin");
    let _second = pooler.waiter(&database, "begin");
    assert_eq!(tags(&first.until(b'Z')), "CZ");
    assert!(began.elapsed() >= Duration::from_millis(800), "{:?}", began.elapsed());
    let line = format!("WARNING C {database}/trusty taking connection from reserve_pool");
    assert_eq!(pooler.count(&line), 1);
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(pooler.servers(&database).len(), 2, "the reserve has an end");
    assert_eq!(pooler.pool(&database, "cl_waiting"), 1);
    assert_eq!(pooler.count(&line), 1);
    pooler.command("SET reserve_pool_size = 2");
    wait_until("it grows", || pooler.servers(&database).len() == 3);
}

#[test]
fn reserve_of_user_and_database_count_first() {
    let rows = [
        ("reserve_pool_size=1", "", 0, 2),
        ("reserve_pool=2", "", 0, 3),
        ("reserve_pool_size=2", "reserve_pool_size=1", 0, 2),
        ("reserve_pool_size=0", "", 5, 1),
        ("", "reserve_pool_size=-1", 2, 3),
    ];
    for (keys, user, global, servers) in rows {
        let users = format!("[users]\ntrusty = {user}\n");
        let sizes = "default_pool_size = 1\nreserve_pool_timeout = 0.1\n";
        let pooler = shop(keys, &format!("{sizes}reserve_pool_size = {global}\n{users}"));
        let mut clients: Vec<Raw> = (0..4).map(|_| pooler.client("shop")).collect();
        for client in &mut clients {
            client.send(&query("begin"));
        }
        wait_until(&format!("'{keys}' '{user}' {global} make {servers}"), || {
            pooler.servers("shop").len() == servers
        });
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(pooler.servers("shop").len(), servers, "'{keys}' '{user}' {global}");
    }
}

#[test]
fn reserve_pool_timeout_of_zero_means_no_reserve() {
    let (pooler, database) =
        start("default_pool_size = 1\nreserve_pool_size = 5\nreserve_pool_timeout = 0\n");
    let _holder = pooler.holder(&database);
    let _waiter = pooler.waiter(&database, "select 1");
    std::thread::sleep(Duration::from_millis(1000));
    assert_eq!(pooler.servers(&database).len(), 1);
}

/// Each waits for the one in front of it; a tick apiece would make it ten seconds.
#[test]
fn released_server_is_handed_on_at_once() {
    let (pooler, database) = start("default_pool_size = 1\n");
    let mut holder = pooler.holder(&database);
    let mut waiters: Vec<Raw> = (0..30).map(|_| pooler.waiter(&database, "select 1")).collect();
    let began = Instant::now();
    holder.query("commit");
    for waiter in &mut waiters {
        assert_eq!(tags(&waiter.until(b'Z')), "TDCZ");
    }
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}

#[test]
fn idle_servers_are_used_newest_first_or_in_turn() {
    for (round_robin, different) in [("0", 1), ("1", 3)] {
        let (pooler, database) = start(&format!("server_round_robin = {round_robin}\n"));
        let mut holders: Vec<Raw> = (0..3).map(|_| pooler.holder(&database)).collect();
        let last = holders[2].value(PID);
        for holder in &mut holders {
            holder.query("commit");
        }
        let mut client = pooler.client(&database);
        let mut pids: Vec<String> = (0..6).map(|_| client.value(PID)).collect();
        assert_eq!(pids[0] == last, round_robin == "0", "{round_robin}");
        assert_eq!(pids[..3], pids[3..], "{round_robin}");
        pids.sort();
        pids.dedup();
        assert_eq!(pids.len(), different, "{round_robin}");
    }
}

#[test]
fn query_of_a_client_that_left_the_queue_is_not_run() {
    let (pooler, database) = start("default_pool_size = 1\n");
    let mut holder = pooler.client(&database);
    holder.query("create table seen (n int)");
    holder.query("begin");
    drop(pooler.waiter(&database, "insert into seen values (1)"));
    let mut behind = pooler.waiter(&database, "select count(*) from seen");
    holder.query("commit");
    assert_eq!(behind.until(b'Z')[1].cells()[0].as_deref(), Some("0"));
    pooler
        .wait_lines(&[&format!("LOG C {database}/trusty closing because: client unexpected eof")]);
}
