//! The admin console: its language and its tables (admin 2 and 3).

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wire::{last_error, msg, query, rows, tags};

fn start(more: &str) -> (Pooler, String) {
    let setup = Setup::trust(&format!("pool_mode = transaction\n{more}"));
    (Pooler::start(&setup), postgres().new_database())
}

/// The text of a console ERROR, which must be followed by ReadyForQuery.
pub(crate) fn refused(console: &mut Raw, command: &str) -> String {
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
        ("sockets", format!("C|trusty|{database}|none|cl_active|")),
        ("active_sockets", "C|admin|pgbouncer|none|cl_active|".to_owned()),
        ("mem", "user_cache|".to_owned()),
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
fn function_calls_and_nonsense_are_not_for_the_console() {
    let (mut pooler, database) = start("");
    let mut console = pooler.console();
    console.send(&msg(b'F', b""));
    let answer = console.rest();
    assert_eq!(tags(&answer), "EZE");
    let text = "unsupported packet type for admin console: 70";
    assert_eq!(answer[0].field(b'M'), text);
    assert_eq!(last_error(&answer).2, "bad packet");
    let mut console = pooler.console();
    console.send(&msg(b'y', b""));
    assert_eq!(last_error(&console.rest()).2, "unknown pkt");
    pooler.assert_serves(&database);
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
fn commands_ahead_of_a_terminate_are_run() {
    let (pooler, database) = start("");
    let mut console = pooler.console();
    let disable = query(&format!("DISABLE {database}"));
    let copy = [msg(b'd', b"data"), msg(b'c', b""), msg(b'f', b"text\0")].concat();
    console.send(&[disable, copy, query("SHOW VERSION"), msg(b'X', b"")].concat());
    assert_eq!(tags(&console.rest()), "CZTDCZ");
    let expected = format!("database \"{database}\" is disabled");
    assert_eq!(pooler.refusal("trusty", &database, ""), expected);
}
