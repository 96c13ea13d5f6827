//! Sessions about limits, timeouts and the upkeep of servers, as far as 1.18 has them.

use std::time::Duration;

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{query, startup};
use crate::transcript::{same, Transcript};

const PID: &str = "select pg_backend_pid()";

/// Databases `shop` and `store` for two users.
fn setup(settings: &str) -> Setup {
    let place =
        format!("host=127.0.0.1 port={} dbname={}", postgres().port, postgres().new_database());
    Setup {
        databases: format!("shop = {place}\nstore = {place}\n"),
        settings: format!("pool_mode = transaction\n{settings}"),
        users: "\"trusty\" \"\"\n\"postgres\" \"\"\n".to_owned(),
    }
}

fn client_as(pooler: &Pooler, user: &str, database: &str) -> Raw {
    pooler.login(user, database, "").unwrap_or_else(|e| panic!("no login: {e:?}")).0
}

fn pause(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

/// Waits until a pool has so many servers or clients in a state, and notes that.
fn reach(pooler: &Pooler, seen: &mut Transcript, database: &str, state: &str, count: i64) {
    wait_until(&format!("{count} {state} in {database}"), || pooler.pool(database, state) == count);
    seen.note(&format!("{database} {state} {count}"));
}

fn logged(pooler: &Pooler, seen: &mut Transcript, text: &str) {
    pooler.wait_log(text);
    seen.note(text);
}

#[test]
fn sizes_of_pools() {
    same(&setup("min_pool_size = 2\nserver_idle_timeout = 1\n"), |pooler, seen| {
        let mut raw = pooler.client("shop");
        seen.query(&mut raw, "select 1");
        reach(pooler, seen, "shop", "sv_idle", 2);
        pause(2000);
        reach(pooler, seen, "shop", "sv_idle", 2);
    });
    let reserve = "default_pool_size = 1\nreserve_pool_size = 1\nreserve_pool_timeout = 1\n";
    same(&setup(reserve), |pooler, seen| {
        let _holder = pooler.holder("shop");
        let mut first = pooler.waiter("shop", "begin");
        let _second = pooler.waiter("shop", "begin");
        seen.until_ready(&mut first);
        logged(pooler, seen, "taking connection from reserve_pool");
        pause(1000);
        reach(pooler, seen, "shop", "sv_active", 2);
        reach(pooler, seen, "shop", "cl_waiting", 1);
    });
    same(&setup("default_pool_size = 3\n"), |pooler, seen| {
        let mut holders: Vec<Raw> = (0..3).map(|_| pooler.holder("shop")).collect();
        for holder in &mut holders {
            seen.query(holder, "commit");
        }
        pooler.command("SET default_pool_size = 1");
        reach(pooler, seen, "shop", "sv_idle", 1);
        logged(pooler, seen, "closing because: too many servers in the pool");
    });
}

#[test]
fn servers_shared_by_pools() {
    same(&setup("max_db_connections = 1\nquery_wait_timeout = 2\n"), |pooler, seen| {
        let mut one = pooler.client("shop");
        seen.query(&mut one, "select 1");
        let mut two = client_as(pooler, "postgres", "shop");
        logged(pooler, seen, "closing because: evicted");
        seen.query(&mut two, "begin");
        one.send(&query("select 2"));
        seen.until_closed(&mut one);
        seen.query(&mut two, "commit");
    });
    same(&setup("max_user_connections = 1\nquery_wait_timeout = 2\n"), |pooler, seen| {
        let mut one = pooler.client("shop");
        seen.query(&mut one, "select 1");
        pooler.client("store").bye();
        logged(pooler, seen, "closing because: evicted");
        seen.query(&mut one, "select 2");
    });
}

#[test]
fn limits_of_clients() {
    same(&setup("max_client_conn = 1\n"), |pooler, seen| {
        let one = pooler.client("shop");
        let consoles = [pooler.console(), pooler.console()];
        seen.login("too many", pooler.login("trusty", "shop", ""));
        one.bye();
        seen.login("consoles count", pooler.login("trusty", "shop", ""));
        drop(consoles);
    });
}

#[test]
fn waits_that_end() {
    let small = "default_pool_size = 1\n";
    for (setting, paused) in [
        ("query_wait_timeout = 1", false),
        ("query_wait_timeout = 1", true),
        ("query_timeout = 1", true),
    ] {
        same(&setup(&format!("{small}{setting}\n")), |pooler, seen| {
            let mut raw = pooler.client("shop");
            seen.query(&mut raw, "select 1");
            let _holder = (!paused).then(|| {
                let mut holder = pooler.client("shop");
                holder.query("begin");
                holder
            });
            if paused {
                pooler.command("PAUSE");
            }
            raw.send(&query("select 1"));
            seen.until_closed(&mut raw);
        });
    }
}

#[test]
fn clients_that_do_nothing() {
    same(&setup("client_login_timeout = 1\nauth_type = plain\n"), |pooler, seen| {
        let mut asked = pooler.tcp();
        asked.send(&startup(0, &[("user", "trusty"), ("database", "shop")]));
        for raw in [&mut pooler.tcp(), &mut asked] {
            seen.until_closed(raw);
        }
    });
    same(&setup("client_idle_timeout = 1\n"), |pooler, seen| {
        let (mut fresh, mut holder) = (pooler.client("shop"), pooler.holder("shop"));
        seen.until_closed(&mut fresh);
        seen.query(&mut holder, "commit");
        seen.until_closed(&mut holder);
    });
}

#[test]
fn transactions_that_do_nothing() {
    for mode in ["transaction", "session"] {
        let settings = format!("pool_mode = {mode}\nidle_transaction_timeout = 1\n");
        same(&setup(&settings), |pooler, seen| {
            for sql in ["begin", "begin; select 1 / 0"] {
                let mut raw = pooler.client("shop");
                seen.query(&mut raw, sql);
                seen.until_closed(&mut raw);
            }
            logged(pooler, seen, "closing because: idle transaction timeout");
        });
    }
}

#[test]
fn order_of_service() {
    same(&setup("default_pool_size = 1\n"), |pooler, seen| {
        let mut holder = pooler.client("shop");
        holder.query("create sequence if not exists turn; alter sequence turn restart; begin");
        let mut waiters: Vec<Raw> =
            (0..4).map(|_| pooler.waiter("shop", "select nextval('turn')")).collect();
        seen.query(&mut holder, "commit");
        for waiter in &mut waiters {
            seen.until_ready(waiter);
        }
    });
    for round_robin in ["0", "1"] {
        same(&setup(&format!("server_round_robin = {round_robin}\n")), |pooler, seen| {
            let mut holders: Vec<Raw> = (0..3).map(|_| pooler.holder("shop")).collect();
            let pids: Vec<String> = holders.iter_mut().map(|holder| holder.value(PID)).collect();
            for holder in &mut holders {
                holder.query("commit");
            }
            let mut raw = pooler.client("shop");
            for _ in 0..6 {
                let pid = raw.value(PID);
                seen.note(&format!("server {:?}", pids.iter().position(|known| *known == pid)));
            }
        });
    }
}

#[test]
fn upkeep_of_servers() {
    let rows = [
        ("server_idle_timeout = 1\n", "server idle timeout"),
        ("server_lifetime = 1\n", "server lifetime over"),
        ("server_lifetime = 0\n", "server lifetime over"),
    ];
    for (setting, text) in rows {
        same(&setup(setting), |pooler, seen| {
            let mut raw = pooler.client("shop");
            let pid = raw.value(&format!("begin; {PID}"));
            pause(1800);
            seen.note(&format!("{}", raw.value(PID) == pid));
            seen.query(&mut raw, "commit");
            logged(pooler, seen, &format!("closing because: {text}"));
            seen.note(&format!("{}", raw.value(PID) == pid));
            reach(pooler, seen, "shop", "sv_idle", 0);
        });
    }
}

#[test]
fn checked_and_replaced_servers() {
    same(&setup("server_check_delay = 1\n"), |pooler, seen| {
        let mut raw = pooler.client("shop");
        let pid = raw.value(PID);
        seen.query(&mut raw, "select 1");
        reach(pooler, seen, "shop", "sv_used", 1);
        seen.note(&format!("{}", raw.value(PID) == pid));
        reach(pooler, seen, "shop", "sv_used", 1);
    });
    same(&setup("pool_mode = session\n"), |pooler, seen| {
        let (mut idle, mut busy) = (pooler.client("shop"), pooler.client("shop"));
        seen.query(&mut idle, "select 1");
        seen.query(&mut busy, "begin");
        pooler.command("RECONNECT");
        pause(700);
        seen.query(&mut idle, "select 2");
        pooler.command("SET server_fast_close = 1");
        seen.until_closed(&mut idle);
        seen.query(&mut busy, "select 3");
        seen.query(&mut busy, "commit");
        seen.until_closed(&mut busy);
    });
}

#[test]
fn automatic_databases() {
    let mut any = setup("autodb_idle_timeout = 1\nserver_idle_timeout = 1\n");
    let database = postgres().new_database();
    any.databases = format!("* = host=127.0.0.1 port={}\n", postgres().port);
    same(&any, |pooler, seen| {
        let listed = |name: &str| pooler.show("DATABASES", "name", ("name", name)).len();
        let raw = pooler.client(&database);
        pooler.wait_log("registered new auto-database: ");
        pause(1500);
        seen.note(&format!("{}", listed(&database)));
        raw.bye();
        logged(
            pooler,
            seen,
            &format!("WARNING dropping database '{database}' as it does not exist"),
        );
        seen.note(&format!("{}", listed(&database)));
        let mut raw = seen.login("again", pooler.login("trusty", &database, "")).unwrap();
        seen.query(&mut raw, "select 1");
    });
}
