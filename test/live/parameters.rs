//! Tracked parameters follow the client over servers (pooling 6).

use std::collections::BTreeSet;

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wire::{last_error, query, startup, tags, Msg};

/// A pool with one server, in transaction mode.
fn one_server() -> (Pooler, String) {
    let pooler = Pooler::start(&Setup::trust("pool_mode = transaction\ndefault_pool_size = 1\n"));
    (pooler, postgres().new_database())
}

fn client_with(pooler: &Pooler, database: &str, more: &[(&str, &str)]) -> (Raw, Vec<Msg>) {
    let parameters = [&[("user", "trusty"), ("database", database)], more].concat();
    pooler.tcp().login_with(&startup(0, &parameters), "trusty", "").unwrap()
}

fn reported(welcome: &[Msg], name: &str) -> Vec<String> {
    let statuses = welcome.iter().filter(|m| m.tag == b'S').map(Msg::parameter);
    statuses.filter(|(key, _)| key == name).map(|(_, value)| value).collect()
}

#[test]
fn startup_values_reach_the_shared_server() {
    let (pooler, database) = one_server();
    let rows = [
        ("application_name", "application_name", "first", "it's \\ new"),
        ("datestyle", "DateStyle", "German", "ISO, MDY"),
        ("TimeZone", "TimeZone", "Asia/Tokyo", "UTC"),
        ("client_encoding", "client_encoding", "LATIN1", "UTF8"),
        ("standard_conforming_strings", "standard_conforming_strings", "off", "on"),
    ];
    for (key, name, first, second) in rows {
        let (mut one, welcome) = client_with(&pooler, &database, &[(key, first)]);
        assert_eq!(reported(&welcome, name), [first], "the value is echoed as typed");
        let (mut two, welcome) = client_with(&pooler, &database, &[(key, second)]);
        assert_eq!(reported(&welcome, name), [second]);
        let show = format!("show {key}");
        for _ in 0..3 {
            assert!(one.value(&show).starts_with(first), "{key}");
            assert_eq!(two.value(&show), second, "{key}");
        }
        one.bye();
        two.bye();
    }
}

#[test]
fn values_set_in_sql_follow_their_client() {
    let (pooler, database) = one_server();
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&database));
    let pid = one.value("select pg_backend_pid()");
    assert_eq!(two.value("select pg_backend_pid()"), pid, "both share one server");
    let answer = one.query("set timezone = 'Asia/Tokyo'; set application_name = 'set by one'");
    // PostgreSQL reports them in either order.
    let statuses: BTreeSet<_> =
        answer.iter().filter(|m| m.tag == b'S').map(Msg::parameter).collect();
    let expected = [("application_name", "set by one"), ("TimeZone", "Asia/Tokyo")];
    let expected = expected.map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(statuses, BTreeSet::from(expected));
    two.query("set datestyle = 'SQL, DMY'");
    for _ in 0..3 {
        assert_eq!(one.value("show timezone"), "Asia/Tokyo");
        assert_eq!(one.value("show application_name"), "set by one");
        assert_eq!(one.value("show datestyle"), "ISO, MDY");
        assert_ne!(two.value("show timezone"), "Asia/Tokyo");
        assert_eq!(two.value("show application_name"), "");
        assert_eq!(two.value("show datestyle"), "SQL, DMY");
    }
    assert_eq!(one.value("select pg_backend_pid()"), pid, "no server was replaced");
}

#[test]
fn the_pooler_s_own_set_is_invisible_to_the_client() {
    let (pooler, database) = one_server();
    let (mut one, _) = client_with(&pooler, &database, &[("application_name", "one")]);
    let (mut two, _) = client_with(&pooler, &database, &[("application_name", "two")]);
    for _ in 0..3 {
        assert_eq!(tags(&one.query("select 1")), "TDCZ");
        assert_eq!(tags(&two.query("select 1")), "TDCZ");
    }
}

#[test]
fn refused_startup_value_is_reported_at_the_first_query() {
    let (mut pooler, database) = one_server();
    assert_eq!(pooler.client(&database).value("select 1"), "1");
    let (mut one, welcome) = client_with(&pooler, &database, &[("TimeZone", "Nowhere/Land")]);
    assert_eq!(reported(&welcome, "TimeZone"), ["Nowhere/Land"]);
    one.send(&query("select 1"));
    let expected = ("FATAL", "08P01", "invalid server parameter");
    let (severity, code, text) = last_error(&one.rest());
    assert_eq!((severity.as_str(), code.as_str(), text.as_str()), expected);
    pooler.wait_log("varcache_apply failed: ERROR: invalid value for parameter \"TimeZone\"");
    pooler.assert_serves(&database);
}

#[test]
fn values_in_options_are_tracked() {
    let (pooler, database) = one_server();
    let options = "-c timezone=Asia/Tokyo --application_name=two\\ words -cdatestyle=SQL";
    let (mut one, welcome) = client_with(&pooler, &database, &[("options", options)]);
    assert_eq!(reported(&welcome, "TimeZone"), ["Asia/Tokyo"]);
    assert_eq!(one.value("show timezone"), "Asia/Tokyo");
    assert_eq!(one.value("show application_name"), "two words");
    assert!(one.value("show datestyle").starts_with("SQL"));
}

#[test]
fn extra_parameters_are_tracked() {
    let settings = "pool_mode = transaction\ndefault_pool_size = 1\n";
    let pooler = Pooler::start(&Setup::trust(settings));
    let database = postgres().new_database();
    let (mut one, _) = client_with(&pooler, &database, &[("IntervalStyle", "sql_standard")]);
    let mut two = pooler.client(&database);
    for _ in 0..2 {
        assert_eq!(one.value("show intervalstyle"), "sql_standard");
        assert_eq!(two.value("show intervalstyle"), "postgres");
    }
}

#[test]
fn host_is_added_to_the_application_name() {
    let settings = "pool_mode = transaction\napplication_name_add_host = 1\n";
    let pooler = Pooler::start(&Setup::trust(settings));
    let database = postgres().new_database();
    let (mut one, _) = client_with(&pooler, &database, &[("application_name", "shop")]);
    let shown = one.value("show application_name");
    assert!(shown.starts_with("shop - 127.0.0.1:"), "{shown}");
    let shown = pooler.client(&database).value("show application_name");
    assert!(shown.starts_with("app - 127.0.0.1:"), "{shown}");
}

#[test]
fn values_of_the_database_entry_are_sent_at_login() {
    let mut setup = Setup::trust("pool_mode = session\n");
    let database = postgres().new_database();
    setup.databases = format!(
        "shop = host=127.0.0.1 port={} dbname={database} timezone=Asia/Tokyo datestyle=German application_name=entry\n",
        postgres().port
    );
    let pooler = Pooler::start(&setup);
    let mut one = pooler.client("shop");
    assert_eq!(one.value("show timezone"), "Asia/Tokyo");
    assert!(one.value("show datestyle").starts_with("German"));
    assert_eq!(one.value("show application_name"), "entry");
    assert_eq!(one.value("select current_database()"), database);
}
