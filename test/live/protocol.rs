//! Start-up and message flow on the wire (auth 1, pooling 5).

use std::net::TcpStream;

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{
    bind, close, cstr, describe, execute, flush, last_error, msg, parse, query, rows, special,
    startup, sync, tags, Msg, GSSENC_REQUEST, SSL_REQUEST,
};

fn start(mode: &str) -> (Pooler, String) {
    let settings = format!("pool_mode = {mode}\ndefault_pool_size = 1\n");
    (Pooler::start(&Setup::trust(&settings)), postgres().new_database())
}

fn hello(database: &str) -> Vec<u8> {
    startup(0, &[("user", "trusty"), ("database", database)])
}

fn refusal(mut raw: Raw, hello: &[u8]) -> String {
    raw.send(hello);
    let (severity, code, text) = last_error(&raw.rest());
    assert_eq!((severity.as_str(), code.as_str()), ("FATAL", "08P01"), "{text}");
    text
}

#[test]
fn welcome_has_its_parts_in_order() {
    let (pooler, database) = start("transaction");
    for _ in 0..2 {
        let (_, welcome) = pooler.login("trusty", &database, "").unwrap();
        let kinds = tags(&welcome);
        assert_eq!(kinds.trim_start_matches('R').trim_start_matches('S'), "KZ", "{kinds}");
        assert_eq!(welcome[0].body, [0, 0, 0, 0]);
        assert_eq!(welcome.last().unwrap().body, b"I");
        let statuses = welcome.iter().filter(|m| m.tag == b'S').map(|m| m.parameter().0);
        let names: Vec<String> = statuses.collect();
        let tracked = [
            "DateStyle",
            "client_encoding",
            "TimeZone",
            "standard_conforming_strings",
            "application_name",
            "IntervalStyle",
        ];
        assert!(names.ends_with(&tracked.map(String::from)), "{names:?}");
        assert!(names.iter().any(|n| n == "server_version"), "{names:?}");
    }
}

#[test]
fn console_welcome_is_fixed() {
    let (pooler, _) = start("transaction");
    let (_, welcome) = pooler.login("admin", "pgbouncer", "admin-pw").unwrap();
    let statuses: Vec<_> = welcome.iter().filter(|m| m.tag == b'S').map(Msg::parameter).collect();
    let expected = [
        ("server_version", "1.25.2/bouncer"),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "GMT"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "on"),
    ];
    assert_eq!(statuses, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
}

#[test]
fn encryption_requests_get_n_and_the_login_goes_on() {
    let (pooler, database) = start("transaction");
    for mut raw in [pooler.tcp(), pooler.unix()] {
        for code in [SSL_REQUEST, GSSENC_REQUEST, SSL_REQUEST, SSL_REQUEST] {
            raw.send(&special(code, b""));
            assert_eq!(raw.byte(), Some(b'N'));
        }
        raw.send(&special(SSL_REQUEST, b"ignored"));
        assert_eq!(raw.byte(), Some(b'N'));
        let (mut client, _) = raw.login("trusty", &database, "").unwrap();
        assert_eq!(client.value("select 1"), "1");
    }
}

#[test]
fn data_behind_an_encryption_request_is_refused() {
    let (mut pooler, database) = start("transaction");
    let rows = [
        (SSL_REQUEST, "received unencrypted data after SSL request"),
        (GSSENC_REQUEST, "received unencrypted data after GSSAPI encryption request"),
    ];
    for (code, text) in rows {
        let both = [special(code, b""), hello(&database)].concat();
        assert_eq!(refusal(pooler.tcp(), &both), text);
    }
    pooler.assert_serves(&database);
}

#[test]
fn newer_minor_protocol_is_negotiated_down() {
    let (pooler, database) = start("transaction");
    let parameters = [("user", "trusty"), ("database", database.as_str())];
    let rows: [(u32, &[&str]); 4] =
        [(2, &[]), (0, &["_pq_.one", "_pq_.two"]), (99, &["_pq_.one"]), (0xffff, &[])];
    for (minor, options) in rows {
        let extra: Vec<_> = options.iter().map(|name| (*name, "x")).collect();
        let hello = startup(minor, &[&parameters[..], &extra].concat());
        let (mut client, welcome) = pooler.tcp().login_with(&hello, "trusty", "").unwrap();
        let count = u32::try_from(options.len()).unwrap().to_be_bytes();
        let names: Vec<u8> = options.iter().flat_map(|name| cstr(name)).collect();
        let body = [&196_608_u32.to_be_bytes()[..], &count, &names].concat();
        assert_eq!(welcome[0], Msg { tag: b'v', body }, "first of all, before AuthenticationOk");
        assert_eq!(welcome.iter().filter(|m| m.tag == b'v').count(), 1);
        assert_eq!(client.key.len(), 8, "spoken is 3.0");
        assert_eq!(client.value("select 1"), "1");
    }
}

#[test]
fn startup_packets_are_refused_with_their_text() {
    let (mut pooler, database) = start("transaction");
    let with = |key: &str, value: &str| {
        startup(0, &[("user", "trusty"), ("database", &database), (key, value)])
    };
    let layout = "invalid startup packet layout: expected terminator as last byte";
    let options = "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed";
    let code = 0x0003_0000;
    let rows = [
        (special(0x0002_0000, b"user\0x\0\0"), "old V2 protocol not supported"),
        (special(code, b"\0"), "no username supplied"),
        (special(code, b"user\0\0\0"), "no username supplied"),
        (with("search_path", "a"), "unsupported startup parameter: search_path"),
        (with("extra_float_digits", "3"), "unsupported startup parameter: extra_float_digits"),
        (special(0x0002_0001, b"\0"), "bad packet header: '0000000900020001'"),
        (special(0x0004_0000, b"\0"), "bad packet header: '0000000900040000'"),
        (special(code, b"user\0trusty\0\0more"), layout),
        (special(code, b""), layout),
        (special(code, b"user\0trusty\0"), layout),
        (special(code, b"user\0trusty\0database\0"), layout),
        (with("options", "-c geqo=off"), "unsupported startup parameter in options: geqo"),
        (with("options", "-x"), options),
        (with("options", "   "), options),
        (with("options", "-c timezone"), options),
    ];
    for (hello, text) in rows {
        assert_eq!(refusal(pooler.tcp(), &hello), text, "{}", hello.escape_ascii());
    }
    pooler.assert_serves(&database);
}

#[test]
fn ignored_startup_parameters_are_dropped() {
    let settings = "ignore_startup_parameters = extra_float_digits, search_path\n";
    let pooler = Pooler::start(&Setup::trust(settings));
    let database = postgres().new_database();
    let hello = startup(
        0,
        &[
            ("user", "trusty"),
            ("extra_float_digits", "3"),
            ("database", &database),
            ("search_path", "nowhere"),
        ],
    );
    let (mut client, _) = pooler.tcp().login_with(&hello, "trusty", "").unwrap();
    assert_eq!(client.value("show search_path"), "\"$user\", public");
}

#[test]
fn startup_packet_may_come_in_any_pieces_and_be_large() {
    let (pooler, database) = start("transaction");
    let mut raw = pooler.tcp();
    for byte in hello(&database) {
        raw.send(&[byte]);
    }
    raw.until(b'Z');
    let long = "n".repeat(60_000);
    let parameters = [("user", "trusty"), ("_pq_.long", &long), ("database", &database)];
    let (mut client, welcome) =
        pooler.tcp().login_with(&startup(0, &parameters), "trusty", "").unwrap();
    assert_eq!(welcome[0].tag, b'v');
    assert_eq!(client.value("select 1"), "1");
}

#[test]
fn database_defaults_to_the_user_name() {
    let mut setup = Setup::trust("");
    let at = postgres();
    setup.databases = format!("trusty = host=127.0.0.1 port={} dbname=template1\n", at.port);
    let pooler = Pooler::start(&setup);
    for hello in
        [startup(0, &[("user", "trusty")]), startup(0, &[("user", "trusty"), ("database", "")])]
    {
        let (mut client, _) = pooler.tcp().login_with(&hello, "trusty", "").unwrap();
        assert_eq!(client.value("select current_database()"), "template1");
    }
}

#[test]
fn flush_without_sync_delivers_answers_and_keeps_the_server() {
    let (pooler, database) = start("transaction");
    let mut one = pooler.client(&database);
    for n in ["11", "12"] {
        let sql = format!("select {n}");
        let batch = [parse("", &sql), bind("", &[]), describe(b'P', ""), execute(), flush()];
        one.send(&batch.concat());
        let answer = one.until(b'C');
        assert_eq!(tags(&answer), "12TDC");
        assert_eq!(rows(&answer), [[Some(n.to_owned())]]);
        assert_eq!(pooler.pool(&database, "sv_active"), 1, "no release without Sync");
    }
    one.send(&sync());
    assert_eq!(tags(&one.until(b'Z')), "Z");
    wait_until("the server is released", || pooler.pool(&database, "sv_active") == 0);
}

#[test]
fn pipeline_of_many_syncs_is_answered_in_order() {
    let (pooler, database) = start("transaction");
    let mut one = pooler.client(&database);
    let mut batch = Vec::new();
    for n in 0..300 {
        let sql = if n % 10 == 3 { "select 1 / 0".to_owned() } else { format!("select {n}") };
        batch.extend([parse("", &sql), bind("", &[]), execute(), sync()].concat());
        batch.extend(sync());
    }
    one.send(&batch);
    for n in 0..300 {
        let answer = one.until(b'Z');
        if n % 10 == 3 {
            assert_eq!(answer.iter().find(|m| m.tag == b'E').unwrap().field(b'C'), "22012");
        } else {
            assert_eq!(tags(&answer), "12DCZ");
            assert_eq!(rows(&answer), [[Some(n.to_string())]]);
        }
        assert_eq!(tags(&one.until(b'Z')), "Z");
    }
    wait_until("the server is released", || pooler.pool(&database, "sv_active") == 0);
}

#[test]
fn pipelines_of_two_clients_never_mix() {
    let (pooler, database) = start("transaction");
    let mut clients: Vec<_> = (0..6).map(|n| (n, pooler.client(&database))).collect();
    for _ in 0..5 {
        for (n, client) in &mut clients {
            let value = n.to_string();
            let batch = [
                parse("mine", &format!("select {n}, $1::text")),
                bind("mine", &[&value]),
                execute(),
                close(b'S', "mine"),
                sync(),
                query(&format!("select {n}, {n}")),
            ];
            client.send(&batch.concat());
        }
        for (n, client) in &mut clients {
            let answer = [client.until(b'Z'), client.until(b'Z')].concat();
            assert_eq!(tags(&answer), "12DC3ZTDCZ");
            let value = Some(n.to_string());
            assert_eq!(rows(&answer), [[value.clone(), value.clone()], [value.clone(), value]]);
        }
    }
}

#[test]
fn errors_in_a_batch_skip_to_sync_with_prepared_statements() {
    let (pooler, database) = start("transaction");
    let mut one = pooler.client(&database);
    one.send(&[parse("bad", "select nothing"), bind("bad", &[]), execute(), sync()].concat());
    let answer = one.until(b'Z');
    assert_eq!((tags(&answer).as_str(), answer[0].field(b'C')), ("EZ", "42703".into()));
    one.send(&[close(b'S', "bad"), parse("bad", "select 5"), sync()].concat());
    assert_eq!(tags(&one.until(b'Z')), "31Z");
    one.send(&[bind("bad", &[]), describe(b'P', ""), execute(), sync()].concat());
    let answer = one.until(b'Z');
    assert_eq!((tags(&answer).as_str(), rows(&answer)), ("2TDCZ", vec![vec![Some("5".into())]]));
}

#[test]
fn function_call_and_asynchronous_messages_pass() {
    let (pooler, database) = start("session");
    let mut one = pooler.client(&database);
    let oid: u32 = one.value("select 'abs(int4)'::regprocedure::oid::int").parse().unwrap();
    let call = [&oid.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 2], b"-9", &[0, 0]].concat();
    one.send(&msg(b'F', &call));
    let answer = one.until(b'Z');
    assert_eq!((tags(&answer).as_str(), &answer[0].body[..]), ("VZ", &b"\0\0\0\x019"[..]));

    one.query("listen news");
    postgres().value(&database, "notify news, 'hello'");
    let note = one.until(b'A').pop().unwrap();
    assert!(note.body.ends_with(b"news\0hello\0"), "{note:?}");
    let answer = one.query("do $$ begin raise notice 'look'; end $$");
    assert_eq!((tags(&answer).as_str(), answer[0].field(b'M')), ("NCZ", "look".into()));
}

#[test]
fn long_pipelines_do_not_get_stuck() {
    const COUNT: usize = 500;
    let (pooler, database) = start("transaction");
    let stream = TcpStream::connect(("127.0.0.1", pooler.port)).unwrap();
    let mut writer = Raw::over(stream.try_clone().unwrap());
    let login = Raw::over(stream).login("trusty", &database, "");
    let mut reader = login.unwrap_or_else(|e| panic!("no login: {e:?}")).0;
    // The server has far more to say than to hear: it takes a request when its answers are taken.
    let sql = format!("select repeat('y', 400000) /* {} */", "x".repeat(40_000));
    std::thread::scope(|scope| {
        scope.spawn(|| (0..COUNT).for_each(|_| writer.send(&query(&sql))));
        for _ in 0..COUNT {
            assert_eq!(tags(&reader.until(b'Z')), "TDCZ");
        }
    });
}
