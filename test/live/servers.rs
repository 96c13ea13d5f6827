//! Logging in to servers, servers that are down, servers that misbehave (auth 6, pooling 10).

use crate::rig::fake::{reply, Fake};
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::scratch::DeadPort;
use crate::rig::wait_until;
use crate::rig::wire::{error, last_error, msg, query, startup, tags};

/// A database `shop` on PostgreSQL and, maybe, one called `fake`.
fn start(fake: Option<&Fake>, settings: &str) -> Pooler {
    let mut setup = Setup::trust(settings);
    let other = fake.map(Fake::database).unwrap_or_default();
    setup.databases =
        format!("shop = host=127.0.0.1 port={} dbname=template1\n{other}", postgres().port);
    Pooler::start(&setup)
}

#[test]
fn servers_ask_for_each_kind_of_password() {
    let at = postgres();
    let mut databases = String::new();
    for user in ["plainy", "md5y", "scramy"] {
        let tail = format!("port={} dbname=template1 user={user}", at.port);
        databases.push_str(&format!("{user}_tcp = host=127.0.0.1 {tail} password={user}-pw\n"));
        let folder = at.folder.display();
        databases.push_str(&format!("{user}_unix = host={folder} {tail} password='{user}-pw'\n"));
        databases.push_str(&format!("{user}_file = host=127.0.0.1 {tail}\n"));
    }
    let users = "\"trusty\" \"\"\n\"plainy\" \"plainy-pw\"\n\"md5y\" \"md5y-pw\"\n\"scramy\" \"scramy-pw\"\n";
    let pooler = Pooler::start(&Setup { databases, users: users.into(), ..Setup::default() });
    for user in ["plainy", "md5y", "scramy"] {
        for way in ["tcp", "unix", "file"] {
            let mut client = pooler.client(&format!("{user}_{way}"));
            assert_eq!(client.value("select current_user"), user, "{way}");
        }
    }
}

#[test]
fn md5_secret_answers_an_md5_server() {
    let mut setup = Setup::trust("auth_type = md5\n");
    let secret = crate::rig::secrets::md5_secret("md5y", "md5y-pw");
    setup.users = format!("\"md5y\" \"{secret}\"\n");
    let pooler = Pooler::start(&setup);
    let (mut client, _) = pooler.login("md5y", "template1", "md5y-pw").unwrap();
    assert_eq!(client.value("select current_user"), "md5y");
}

#[test]
fn scram_keys_are_passed_through() {
    let secret =
        postgres().value("postgres", "select rolpassword from pg_authid where rolname = 'passer'");
    assert!(secret.starts_with("SCRAM-SHA-256$"), "{secret}");
    for auth_type in ["scram-sha-256", "md5"] {
        let mut setup = Setup::trust(&format!("auth_type = {auth_type}\n"));
        setup.users = format!("\"passer\" \"{secret}\"\n");
        let pooler = Pooler::start(&setup);
        let (mut client, _) = pooler.login("passer", "template1", "passer-pw").unwrap();
        assert_eq!(client.value("select current_user"), "passer");
        pooler.command("RECONNECT");
        wait_until("the server was replaced", || client.query("select 1").len() == 4);
    }
}

/// auth 10.3-C: the keys of who logs in are no good for the forced user of its database.
#[test]
fn scram_keys_are_not_used_for_a_forced_user() {
    let sql = "select rolpassword from pg_authid where rolname = 'passer'";
    let secret = postgres().value("postgres", sql);
    let place = format!("host=127.0.0.1 port={} dbname=template1", postgres().port);
    let mut setup = Setup::trust("auth_type = scram-sha-256\nserver_login_retry = 0\n");
    setup.databases = format!("own = {place}\nforced = {place} user=scramy password=scramy-pw\n");
    setup.users = format!("\"passer\" \"{secret}\"\n\"scramy\" \"\"\n");
    let pooler = Pooler::start(&setup);
    for _ in 0..2 {
        for (database, want) in [("forced", "scramy"), ("own", "passer")] {
            let (mut client, _) = pooler.login("passer", database, "passer-pw").unwrap();
            assert_eq!(client.value("select current_user"), want);
        }
        pooler.command("RECONNECT");
    }
}

#[test]
fn scram_secret_without_keys_cannot_log_in() {
    let secret = crate::rig::secrets::scram_secret("scramy-pw", b"0123456789abcdef", 4096);
    let mut setup = Setup::trust("auth_type = trust\n");
    setup.users = format!("\"scramy\" \"{secret}\"\n");
    let pooler = Pooler::start(&setup);
    let text = pooler.refusal("scramy", "template1", "");
    assert_eq!(text, "server login failed: wrong password type");
    pooler.wait_log("cannot do SCRAM authentication: password is SCRAM secret but client authentication did not provide SCRAM keys");
}

#[test]
fn login_error_of_the_server_reaches_waiting_clients_with_its_code() {
    let rows = [
        (
            "missing = host=127.0.0.1 dbname=not_there user=trusty",
            "3D000",
            "database \"not_there\" does not exist",
        ),
        (
            "missing = host=127.0.0.1 dbname=template1 user=scramy password=wrong",
            "28P01",
            "password authentication failed for user \"scramy\"",
        ),
    ];
    for (entry, code, text) in rows {
        let mut setup = Setup::trust("");
        setup.databases = format!("{entry} port={}\n", postgres().port);
        let pooler = Pooler::start(&setup);
        let login = pooler.login("trusty", "missing", "");
        let expected = ("FATAL".to_owned(), code.to_owned(), text.to_owned());
        assert_eq!(last_error(&login.err().unwrap()), expected);
        pooler.wait_log(&format!("server login failed: FATAL {text}"));
        pooler.wait_log(&format!("closing because: {text} (age="));
    }
}

#[test]
fn clients_fail_fast_while_the_server_is_down() {
    let mut setup = Setup::trust("server_login_retry = 100\npool_mode = transaction\n");
    let fake = Fake::start(|mut peer| {
        peer.welcome();
        while peer.raw.recv().is_some_and(|m| m.tag == b'Q') {
            peer.answer("up");
        }
    });
    setup.databases = format!("shop = host=127.0.0.1 port={}\n", fake.port);
    let pooler = Pooler::start(&setup);
    let mut clients: Vec<_> = (0..3).map(|_| pooler.client("shop")).collect();
    assert_eq!(clients[0].value("select 1"), "up");
    let dead = DeadPort::new();
    setup.databases = format!("shop = host=127.0.0.1 port={}\n", dead.port);
    drop(fake);
    pooler.rewrite(&setup);
    pooler.command("RELOAD");
    let mut first = clients.remove(0);
    first.send(&query("select 1"));
    pooler.wait_log("closing because: connect failed");
    wait_until("the first waits", || pooler.pool("shop", "cl_waiting") == 1);
    for mut client in clients {
        client.send(&query("select 2"));
        let (severity, code, text) = last_error(&client.rest());
        let expected =
            "server login has been failing, cached error: connect failed (server_login_retry)";
        assert_eq!((severity.as_str(), code.as_str()), ("FATAL", "08P01"));
        assert_eq!(text, expected);
    }
}

#[test]
fn clients_wait_for_a_server_that_comes_up_late() {
    let dead = DeadPort::new();
    let port = dead.port;
    let mut setup = Setup::trust("server_login_retry = 1\n");
    setup.databases = format!("shop = host=127.0.0.1 port={port} dbname=template1\n");
    let pooler = Pooler::start(&setup);
    let mut raw = pooler.tcp();
    raw.send(&startup(0, &[("user", "trusty"), ("database", "shop")]));
    pooler.wait_log("closing because: connect failed");
    setup.databases = format!("shop = host=127.0.0.1 port={} dbname=template1\n", postgres().port);
    pooler.rewrite(&setup);
    pooler.command("RELOAD");
    raw.until(b'Z');
    assert_eq!(raw.value("select 1"), "1");
}

#[test]
fn client_that_waits_for_its_welcome_meets_the_login_timeout() {
    let mut setup = Setup::trust("client_login_timeout = 1\n");
    let dead = DeadPort::new();
    setup.databases = format!("shop = host=127.0.0.1 port={}\n", dead.port);
    let pooler = Pooler::start(&setup);
    let text = pooler.refusal("trusty", "shop", "");
    assert_eq!(text, "client_login_timeout (server down)");
}

#[test]
fn server_that_never_answers_is_given_up() {
    let fake = Fake::start(|mut peer| assert_eq!(peer.raw.rest(), []));
    let pooler = start(Some(&fake), "server_connect_timeout = 1\nclient_login_timeout = 3\n");
    let text = pooler.refusal("trusty", "fake", "");
    assert_eq!(text, "client_login_timeout (server down)");
    assert!(pooler.log().contains("closing because: connect timeout"), "{}", pooler.log());
    assert_eq!(pooler.client("shop").value("select 1"), "1");
}

#[test]
fn startup_packet_to_the_server_has_only_what_it_must() {
    let (send, receive) = std::sync::mpsc::channel();
    let fake = Fake::start(move |mut peer| {
        send.send(peer.hello.clone()).unwrap();
        peer.welcome();
        peer.raw.rest();
    });
    let pooler = start(Some(&fake), "");
    let hello = [("user", "trusty"), ("application_name", "mine"), ("database", "fake")];
    pooler.tcp().login_with(&startup(0, &hello), "trusty", "").unwrap();
    let sent = receive.recv_timeout(crate::rig::DEADLINE).unwrap();
    assert_eq!(sent, ["database", "fake", "user", "trusty"]);
}

/// Each fake breaks during login; the log has the reason and the pooler lives on.
#[test]
fn garbage_during_server_login() {
    let rows: [(&[u8], &str); 8] = [
        (b"R\0\0\0\x08\0\0\0\x02", "unknown/unsupported auth method: 2"),
        (b"R\0\0\0\x08\0\0\0\x02", "closing because: failed to answer authreq"),
        (b"q\0\0\0\x04", "unknown pkt from server: 'q'"),
        (b"q\0\0\0\x04", "closing because: unknown pkt from server"),
        (b"S\0\0\0\x0eno zero at", "closing because: broken ParameterStatus packet"),
        (b"R\0\0\0\x08\0\0\0\0K\0\0\0\x08\0\0\0\0", "closing because: bad cancel key"),
        (b"R\0\0\0\x02", "closing because: bad pkt header"),
        (b"", "closing because: server conn crashed?"),
    ];
    for (bytes, text) in rows {
        let garbage = bytes.to_vec();
        let fake = Fake::start(move |mut peer| {
            peer.raw.try_send(&garbage);
            if !garbage.is_empty() {
                peer.raw.rest();
            }
        });
        let mut pooler = start(Some(&fake), "");
        let mut raw = pooler.tcp();
        raw.send(&startup(0, &[("user", "trusty"), ("database", "fake")]));
        pooler.wait_log(text);
        pooler.assert_serves("shop");
    }
}

#[test]
fn garbage_after_server_login() {
    let rows: [(&[u8], &str); 4] = [
        (b"q\0\0\0\x04", "unknown pkt"),
        (b"D\0\0\0\x02", "bad pkt header"),
        (b"\xff\xff\xff\xff\xff\xff", "bad pkt header"),
        (b"", "server conn crashed?"),
    ];
    for (bytes, text) in rows {
        let garbage = bytes.to_vec();
        let fake = Fake::start(move |mut peer| {
            peer.welcome();
            if peer.raw.recv().is_some() && !garbage.is_empty() {
                peer.raw.send(&garbage);
                peer.raw.rest();
            }
        });
        let mut pooler = start(Some(&fake), "pool_mode = transaction\n");
        let mut client = pooler.client("fake");
        client.send(&query("select 1"));
        assert_eq!(last_error(&client.rest()).2, text);
        pooler.wait_log(&format!("closing because: {text} (age="));
        pooler.assert_serves("shop");
    }
}

#[test]
fn server_s_messages_in_any_pieces_arrive_whole() {
    let fake = Fake::start(|mut peer| {
        peer.welcome();
        while peer.raw.recv().is_some_and(|m| m.tag == b'Q') {
            for byte in reply("in pieces") {
                peer.raw.send(&[byte]);
            }
        }
    });
    let pooler = start(Some(&fake), "pool_mode = transaction\n");
    let mut client = pooler.client("fake");
    for _ in 0..3 {
        assert_eq!(client.value("select 1"), "in pieces");
    }
}

#[test]
fn data_from_an_idle_server_is_dropped_and_the_server_replaced() {
    let (go, wait) = std::sync::mpsc::channel();
    let wait = std::sync::Mutex::new(wait);
    let fake = Fake::start(move |mut peer| {
        peer.welcome();
        if peer.raw.recv().is_some_and(|m| m.tag == b'Q') {
            peer.answer("clean");
            wait.lock().unwrap().recv().unwrap();
            peer.raw.send(&reply("stale")[..27]);
            peer.raw.rest();
        }
    });
    let pooler = start(Some(&fake), "pool_mode = transaction\n");
    let mut client = pooler.client("fake");
    for n in 1..5 {
        assert_eq!(client.value("select 1"), "clean", "round {n}");
        wait_until("no server is linked", || pooler.pool("fake", "sv_active") == 0);
        go.send(()).unwrap();
        let dropped = "got packet 'T' from server when not linked";
        wait_until("it is dropped", || pooler.log().matches(dropped).count() == n);
    }
    pooler.wait_log("server got dirty");
}

#[test]
fn errors_without_fields_at_login_are_survived() {
    for fields in [&[][..], &[(b'S', "FATAL")][..], &[(b'C', "28000"), (b'M', "go away")][..]] {
        let packet = error(fields);
        let fake = Fake::start(move |mut peer| {
            peer.raw.try_send(&packet);
        });
        let mut pooler = start(Some(&fake), "");
        let mut raw = pooler.tcp();
        raw.send(&startup(0, &[("user", "trusty"), ("database", "fake")]));
        pooler.wait_log("server login failed");
        let left = raw.rest();
        if fields.len() == 2 {
            assert_eq!(last_error(&left).1, "28000");
            assert_eq!(last_error(&left).2, "go away");
        } else {
            assert!(tags(&left).trim_start_matches('R').is_empty(), "{left:?}");
        }
        pooler.assert_serves("shop");
    }
}

#[test]
fn server_without_any_parameter_is_accepted() {
    let fake = Fake::start(|mut peer| {
        peer.raw.send(&[msg(b'R', &[0, 0, 0, 0]), msg(b'Z', b"I")].concat());
        while peer.raw.recv().is_some_and(|m| m.tag == b'Q') {
            peer.answer("bare");
        }
    });
    let mut pooler = start(Some(&fake), "");
    let (mut client, welcome) = pooler.login("trusty", "fake", "").unwrap();
    assert_eq!(tags(&welcome), "RKZ");
    assert_eq!(client.value("select 1"), "bare");
    pooler.assert_serves("shop");
}

#[test]
fn server_that_skips_its_scram_proof_is_refused() {
    let fake = Fake::start(|mut peer| {
        peer.raw.send(&msg(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"));
        peer.raw.recv();
        peer.raw.try_send(&msg(b'R', &[0, 0, 0, 0]));
        peer.raw.try_send(&msg(b'Z', b"I"));
        peer.raw.rest();
    });
    let mut setup = Setup::trust("");
    setup.databases = format!("fake = host=127.0.0.1 port={} user=u password=p\n", fake.port);
    let pooler = Pooler::start(&setup);
    let mut raw = pooler.tcp();
    raw.send(&startup(0, &[("user", "trusty"), ("database", "fake")]));
    pooler.wait_log("closing because: failed to answer authreq");
}

#[test]
fn starting_server_makes_clients_wait() {
    let tries = std::sync::atomic::AtomicU32::new(0);
    let fake = Fake::start(move |mut peer| {
        if tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            let text = "the database system is starting up";
            peer.raw.send(&error(&[(b'S', "FATAL"), (b'C', "57P03"), (b'M', text)]));
            return;
        }
        peer.welcome();
        while peer.raw.recv().is_some_and(|m| m.tag == b'Q') {
            peer.answer("started");
        }
    });
    let pooler = start(Some(&fake), "server_login_retry = 1\n");
    assert_eq!(pooler.client("fake").value("select 1"), "started");
    assert!(pooler.log().contains("the database system is starting up"));
}

#[test]
fn connect_query_runs_before_the_first_client() {
    let mut setup = Setup::trust("pool_mode = session\nserver_reset_query =\n");
    setup.databases = format!(
        "shop = host=127.0.0.1 port={} dbname=template1 connect_query='set work_mem = ''88MB'''\n",
        postgres().port
    );
    let pooler = Pooler::start(&setup);
    assert_eq!(pooler.client("shop").value("show work_mem"), "88MB");
}
