//! The admin console, PAUSE and RESUME, RELOAD (admin 2 to 4).

use nix::sys::signal::Signal;

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{last_error, msg, query, rows, tags};

fn start(more: &str) -> (Pooler, String) {
    let setup = Setup::trust(&format!("pool_mode = transaction\n{more}"));
    (Pooler::start(&setup), postgres().new_database())
}

/// The text of a console ERROR, which must be followed by ReadyForQuery.
fn refused(console: &mut Raw, command: &str) -> String {
    let answer = console.query(command);
    assert_eq!(tags(&answer), "EZ", "{command}: {answer:?}");
    assert_eq!(answer[0].field(b'S'), "ERROR");
    assert_eq!(answer[0].field(b'C'), "08P01");
    answer[0].field(b'M')
}

#[test]
fn psql_reads_every_show() {
    let (pooler, database) = start("");
    let mut client = pooler.client(&database);
    assert_eq!(client.value("select 1"), "1");
    let rows = [
        ("pools", format!("{database}|trusty|1|0|0|0|0|0|0|1|0|0|0|0|0|transaction")),
        ("databases", format!("{database}|127.0.0.1|{}|{database}|", postgres().port)),
        ("clients", format!("C|trusty|{database}|")),
        ("servers", format!("S|trusty|{database}|")),
        ("users", "trusty|".to_owned()),
        ("lists", "databases|".to_owned()),
        ("stats", format!("{database}|")),
        ("stats_totals", format!("{database}|")),
        ("stats_averages", format!("{database}|")),
        ("totals", "total_xact_count|".to_owned()),
        ("config", "pool_mode|transaction|session|yes".to_owned()),
        ("state", "active|yes".to_owned()),
        ("version", "PgBouncer 1.25.2".to_owned()),
    ];
    for (topic, expected) in rows {
        let mut psql = pooler.psql("admin", "pgbouncer", "admin-pw");
        let out = psql.args(["-c", &format!("show {topic}")]).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(text.lines().any(|l| l.starts_with(&expected)), "{topic}: no {expected} in {text}");
    }
}

#[test]
fn columns_are_those_of_the_specification() {
    let (pooler, _) = start("");
    let rows = [
        (
            "POOLS",
            "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active \
             sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us \
             pool_mode load_balance_hosts",
        ),
        (
            "DATABASES",
            "name host port database force_user pool_size min_pool_size reserve_pool_size \
             server_lifetime pool_mode load_balance_hosts max_connections current_connections \
             max_client_connections current_client_connections paused disabled",
        ),
        (
            "USERS",
            "name pool_size reserve_pool_size pool_mode max_user_connections current_connections \
             max_user_client_connections current_client_connections",
        ),
        ("LISTS", "list items"),
        ("CONFIG", "key value default changeable"),
        ("VERSION", "version"),
    ];
    for (topic, expected) in rows {
        let answer = pooler.command(&format!("show {topic}"));
        let names: Vec<String> = answer[0].cells().into_iter().flatten().collect();
        assert_eq!(names.join(" "), expected, "{topic}");
    }
}

#[test]
fn help_is_a_notice() {
    let (pooler, _) = start("");
    let answer = pooler.command("SHOW HELP");
    assert_eq!(tags(&answer), "NCZ");
    assert_eq!((answer[0].field(b'S'), answer[0].field(b'C')), ("NOTICE".into(), "00000".into()));
    assert_eq!(answer[0].field(b'M'), "Console usage");
    let detail = answer[0].field(b'D');
    assert!(
        detail.starts_with("\n\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION\n")
    );
    assert!(detail.ends_with("\tWAIT_CLOSE [<db>]"), "{detail}");
}

#[test]
fn bad_commands_are_refused_with_their_text() {
    let (pooler, _) = start("");
    let mut console = pooler.console();
    let long = "x".repeat(20);
    for text in ["nonsense", "", ";", "show", "show nothing", "select 1 + 1", "SHOW a; SHOW b"] {
        assert_eq!(
            refused(&mut console, text),
            format!("invalid command '{text}', use SHOW HELP;")
        );
    }
    let rows = [
        (long.as_str(), "bad arguments"),
        ("set nothing = 1", "SET failed"),
        ("set default_pool_size = 'x'", "SET failed"),
        ("resume", "pooler is not paused/suspended"),
        ("pause pgbouncer", "cannot pause admin db: pgbouncer"),
        ("kill pgbouncer", "cannot kill admin db: pgbouncer"),
        ("disable", "a database is required"),
    ];
    for (command, expected) in rows {
        assert_eq!(refused(&mut console, command), expected, "{command}");
    }
    assert_eq!(tags(&console.query("show version")), "TDCZ", "the console goes on");
}

#[test]
fn stats_user_may_look_but_not_touch() {
    let mut setup = Setup::trust("");
    setup.users.push_str("\"stats\" \"stats-pw\"\n");
    let pooler = Pooler::start(&setup);
    let (mut console, _) = pooler.login("stats", "pgbouncer", "stats-pw").unwrap();
    assert_eq!(tags(&console.query("show version")), "TDCZ");
    for command in ["pause", "reload", "shutdown", "set verbose = 1", "show fds", "kill_client 1"] {
        assert_eq!(refused(&mut console, command), "admin access needed", "{command}");
    }
    assert_eq!(pooler.refusal("trusty", "pgbouncer", ""), "not allowed");
}

#[test]
fn extended_protocol_is_not_for_the_console() {
    let (mut pooler, database) = start("");
    let mut console = pooler.console();
    console.send(&crate::rig::wire::parse("", "show pools"));
    let answer = console.rest();
    assert_eq!(tags(&answer), "EZE");
    let text = "extended query protocol not supported by admin console";
    assert_eq!(answer[0].field(b'M'), text);
    assert_eq!(last_error(&answer).2, "bad packet");
    let mut console = pooler.console();
    console.send(&msg(b'y', b""));
    assert_eq!(last_error(&console.rest()).2, "unknown pkt");
    pooler.assert_serves(&database);
}

#[test]
fn paused_clients_wait_for_resume() {
    let (pooler, database) = start("");
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&database));
    assert_eq!(one.value("begin; select 1"), "1");
    let mut console = pooler.console();
    console.send(&query("PAUSE"));
    pooler.wait_log("PAUSE command issued");
    two.send(&query("select 2"));
    wait_until("the client waits", || pooler.pool(&database, "cl_waiting") == 1);
    assert_eq!(one.value("select 3"), "3", "an open transaction goes on");
    one.query("commit");
    let done = console.until(b'Z');
    assert_eq!((tags(&done).as_str(), &done[0].body[..]), ("CZ", &b"PAUSE\0"[..]));
    let left = format!("select count(*) from pg_stat_activity where datname = '{database}'");
    wait_until("all servers are closed", || postgres().value("postgres", &left) == "0");
    assert_eq!(refused(&mut console, "PAUSE"), "already suspended/paused");
    assert_eq!(console.query("RESUME")[0].body, b"RESUME\0");
    assert_eq!(two.until(b'Z')[1].cells()[0].as_deref(), Some("2"));
}

#[test]
fn one_database_is_paused_while_others_go_on() {
    let (pooler, database) = start("");
    let other = postgres().new_database();
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&other));
    assert_eq!(one.value("select 1"), "1");
    pooler.command(&format!("PAUSE {database}"));
    assert_eq!(pooler.show("DATABASES", "paused", ("name", &database)), ["1"]);
    one.send(&query("select 10"));
    wait_until("the client waits", || pooler.pool(&database, "cl_waiting") == 1);
    assert_eq!(two.value("select 2"), "2");
    pooler.command(&format!("RESUME {database}"));
    assert_eq!(one.until(b'Z')[1].cells()[0].as_deref(), Some("10"));
    let text = format!("database {database} is not paused");
    assert_eq!(refused(&mut pooler.console(), &format!("RESUME {database}")), text);
}

#[test]
fn disabled_database_lets_nobody_in() {
    let (pooler, database) = start("");
    let mut old = pooler.client(&database);
    pooler.command(&format!("DISABLE {database}"));
    let text = format!("database \"{database}\" is disabled");
    assert_eq!(pooler.refusal("trusty", &database, ""), text);
    assert_eq!(old.value("select 1"), "1", "old clients stay");
    pooler.command(&format!("ENABLE {database}"));
    assert_eq!(pooler.client(&database).value("select 2"), "2");
}

#[test]
fn state_shows_pause() {
    let (pooler, _) = start("");
    let mut console = pooler.console();
    let mut state = |command: &str| {
        console.query(command);
        let all = rows(&console.query("SHOW STATE"));
        let yes = all.into_iter().filter(|row| row[1].as_deref() == Some("yes"));
        yes.filter_map(|row| row[0].clone()).collect::<Vec<_>>()
    };
    assert_eq!(state("SHOW VERSION"), ["active"]);
    assert_eq!(state("PAUSE"), ["paused"]);
    assert_eq!(state("RESUME"), ["active"]);
}

#[test]
fn kill_closes_clients_and_servers() {
    let (pooler, database) = start("");
    let mut one = pooler.client(&database);
    assert_eq!(one.value("select 1"), "1");
    pooler.command(&format!("KILL {database}"));
    assert_eq!(last_error(&one.rest()).2, "database removed");
    pooler.command(&format!("RESUME {database}"));
    assert_eq!(pooler.client(&database).value("select 2"), "2");
}

#[test]
fn kill_client_closes_one_client() {
    let (pooler, database) = start("");
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&database));
    assert_eq!((one.value("select 1"), two.value("select 2")), ("1".into(), "2".into()));
    let ids = pooler.show("CLIENTS", "id", ("database", &database));
    assert_eq!(ids.len(), 2, "{ids:?}");
    let mut console = pooler.console();
    assert_eq!(refused(&mut console, "kill_client 999999"), "client not found");
    assert_eq!(refused(&mut console, "kill_client x"), "invalid client pointer supplied");
    pooler.command(&format!("KILL_CLIENT {}", ids[0]));
    assert_eq!(last_error(&one.rest()).2, "admin forced disconnect");
    assert_eq!(two.value("select 3"), "3");
}

#[test]
fn reconnect_replaces_servers_after_their_transaction() {
    let (pooler, database) = start("");
    let mut one = pooler.client(&database);
    let pid = one.value("begin; select pg_backend_pid()");
    pooler.command("RECONNECT");
    assert_eq!(one.value("select pg_backend_pid()"), pid, "the transaction keeps its server");
    one.query("commit");
    assert_ne!(one.value("select pg_backend_pid()"), pid);
    pooler.wait_log("closing because: close_needed");
}

#[test]
fn reload_changes_the_pool_size() {
    for by_signal in [false, true] {
        let mut setup = Setup::trust("pool_mode = transaction\ndefault_pool_size = 1\n");
        let pooler = Pooler::start(&setup);
        let database = postgres().new_database();
        let (mut one, mut two) = (pooler.client(&database), pooler.client(&database));
        one.query("begin");
        two.send(&query("select 2"));
        wait_until("the other waits", || pooler.pool(&database, "cl_waiting") == 1);
        setup.settings = "pool_mode = transaction\ndefault_pool_size = 2\n".to_owned();
        pooler.rewrite(&setup);
        if by_signal {
            pooler.signal(Signal::SIGHUP);
            pooler.wait_log("got SIGHUP, re-reading config");
        } else {
            assert_eq!(pooler.command("RELOAD")[0].body, b"RELOAD\0");
        }
        assert_eq!(two.until(b'Z')[1].cells()[0].as_deref(), Some("2"), "a second server");
        assert_eq!(one.value("select 1"), "1");
        assert_eq!(pooler.show("CONFIG", "value", ("key", "default_pool_size")), ["2"]);
    }
}

#[test]
fn reload_of_a_broken_file_keeps_the_old_settings() {
    let mut setup = Setup::trust("default_pool_size = 7\n");
    let mut pooler = Pooler::start(&setup);
    let database = postgres().new_database();
    setup.settings = "nonsense = 1\n".to_owned();
    pooler.rewrite(&setup);
    let answer = pooler.console().query("RELOAD");
    assert_eq!(tags(&answer), "EZ");
    assert_eq!(answer[0].field(b'C'), "F0000");
    assert_eq!(answer[0].field(b'M'), "RELOAD failed, see logs for additional details");
    pooler.wait_log("unknown parameter: pgbouncer/nonsense");
    pooler.assert_serves(&database);
}

#[test]
fn reload_removes_a_database_with_its_clients() {
    let database = postgres().new_database();
    let mut setup = Setup::trust("");
    setup.databases = format!("shop = host=127.0.0.1 port={} dbname={database}\n", postgres().port);
    let pooler = Pooler::start(&setup);
    let mut one = pooler.client("shop");
    assert_eq!(one.value("select 1"), "1");
    setup.databases.clear();
    pooler.rewrite(&setup);
    pooler.command("RELOAD");
    assert_eq!(last_error(&one.rest()).2, "database removed");
    let gone = "dropping database 'shop' as it does not exist anymore or inactive auto-database";
    pooler.wait_log(gone);
    assert_eq!(pooler.refusal("trusty", "shop", ""), "no such database: shop");
}

#[test]
fn set_changes_a_setting_until_reload() {
    let (pooler, _) = start("");
    let answer = pooler.command("SET default_pool_size = 33");
    assert_eq!(answer[0].body, b"SET default_pool_size=33\0");
    let value = || pooler.show("CONFIG", "value", ("key", "default_pool_size"));
    assert_eq!(value(), ["33"]);
    pooler.command("RELOAD");
    assert_eq!(value(), ["20"]);
    let ignored = pooler.command("SET client_encoding = 'UTF8'");
    assert_eq!((tags(&ignored).as_str(), ignored[0].field(b'M')), ("NCZ", "SET ignored".into()));
}

#[test]
fn counters_of_a_database_grow() {
    let (pooler, database) = start("");
    let mut one = pooler.client(&database);
    for _ in 0..10 {
        assert_eq!(one.value("begin; select 1; commit"), "1");
    }
    let total = |column| pooler.show("STATS_TOTALS", column, ("database", &database))[0].clone();
    assert_eq!((total("xact_count"), total("query_count")), ("10".into(), "10".into()));
    assert!(total("bytes_received").parse::<u64>().unwrap() >= 10 * 28);
    assert!(total("bytes_sent").parse::<u64>().unwrap() > 300);
}

#[test]
fn commands_ahead_of_a_terminate_are_run() {
    let (pooler, database) = start("");
    let mut console = pooler.console();
    let disable = query(&format!("DISABLE {database}"));
    console.send(&[disable, query("SHOW VERSION"), msg(b'X', b"")].concat());
    assert_eq!(tags(&console.rest()), "CZTDCZ");
    let expected = format!("database \"{database}\" is disabled");
    assert_eq!(pooler.refusal("trusty", &database, ""), expected);
}
