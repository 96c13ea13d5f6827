//! The sessions that are compared.

use crate::rig::pooler::Setup;
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::scratch::DeadPort;
use crate::rig::secrets::{md5_secret, scram_secret};
use crate::rig::wait_until;
use crate::rig::wire::{
    bind, close, describe, execute, flush, msg, parse, query, special, startup, sync,
    CANCEL_REQUEST, GSSENC_REQUEST, SSL_REQUEST,
};
use crate::transcript::{same, Transcript};

/// One database, always reached as `trusty`, and users with all kinds of secrets.
pub(crate) fn setup(settings: &str) -> Setup {
    let scram = scram_secret("scrammer-pw", b"salt salt salt 1", 4096);
    let users = format!(
        "\"trusty\" \"\"\n\"plain\" \"plain-pw\"\n\"md\" \"{}\"\n\"scrammer\" \"{scram}\"\n",
        md5_secret("md", "md-pw")
    );
    let databases = format!(
        "shop = host=127.0.0.1 port={} user=trusty dbname={}\n",
        postgres().port,
        postgres().new_database()
    );
    Setup { databases, settings: settings.to_owned(), users }
}

#[test]
fn logins_with_every_method() {
    for auth_type in ["trust", "any", "plain", "md5", "scram-sha-256"] {
        same(&setup(&format!("auth_type = {auth_type}\n")), |pooler, seen| {
            // With SCRAM a user with an MD5 secret is refused at the last step, as unknown users are: nobody is told who exists.
            let users = ["plain", "scrammer", "nobody", "md"];
            for user in &users[..users.len() - usize::from(auth_type == "scram-sha-256")] {
                for (password, kind) in [(format!("{user}-pw"), "right"), ("wrong".into(), "wrong")]
                {
                    let name = format!("{auth_type}: {user}, {kind} password");
                    if let Some(mut raw) = seen.login(&name, pooler.login(user, "shop", &password))
                    {
                        seen.query(&mut raw, "select current_user");
                        raw.bye();
                    }
                }
            }
            for (user, database) in
                [("plain", "nowhere"), ("nobody", "nowhere"), ("plain", "pgbouncer")]
            {
                let login = pooler.login(user, database, "plain-pw");
                seen.login(&format!("{user} to {database}"), login);
            }
        });
    }
}

#[test]
fn simple_queries() {
    for mode in ["session", "transaction"] {
        same(&setup(&format!("pool_mode = {mode}\n")), |pooler, seen| {
            let mut raw = seen.login("in", pooler.login("trusty", "shop", "")).unwrap();
            let batch = [
                "select 1 as one, null as two, 'text'::text",
                "",
                ";",
                "select 1; select 'second'; create temp table t (n int)",
                "insert into t values (1), (2); select * from t order by n",
                "select nothing",
                "select 1 / 0 -- with a comment",
                "begin",
                "select 5",
                "select 1 / 0",
                "select 6",
                "rollback",
                "begin; set local work_mem = '5MB'; show work_mem; commit",
                "do $$ begin raise notice 'look here'; end $$",
                "set application_name = 'new name'; set timezone = 'Asia/Tokyo'",
                "show application_name",
                "set datestyle = 'German'",
                "select date '2020-02-03', now() is not null",
                "drop table if exists missing",
                "discard all",
            ];
            for sql in batch {
                seen.query(&mut raw, sql);
            }
            raw.bye();
        });
    }
}

/// Batches over the unnamed statement, each with one Sync at its end.
fn unnamed_batches() -> Vec<Vec<u8>> {
    vec![
        [
            parse("", "select $1::text, 2"),
            describe(b'S', ""),
            bind("", &["x"]),
            describe(b'P', ""),
            execute(),
            sync(),
        ]
        .concat(),
        [parse("", "select 1 / 0"), bind("", &[]), execute(), parse("", "select 1"), sync()]
            .concat(),
        [parse("", "select nothing"), bind("", &[]), execute(), sync()].concat(),
        [parse("", "begin"), bind("", &[]), execute(), sync()].concat(),
        [parse("", "commit"), bind("", &[]), execute(), sync()].concat(),
        [
            parse("", ""),
            bind("", &[]),
            describe(b'P', ""),
            execute(),
            close(b'P', ""),
            close(b'S', ""),
            sync(),
        ]
        .concat(),
        sync(),
    ]
}

/// Batches, a pipeline and a Flush, all with the unnamed statement.
fn unnamed(seen: &mut Transcript, raw: &mut Raw) {
    for batch in unnamed_batches() {
        seen.note(&batch.escape_ascii().to_string());
        raw.send(&batch);
        seen.until_ready(raw);
    }
    seen.note("pipeline");
    let many: Vec<u8> = (0..20)
        .flat_map(|n| {
            [parse("", &format!("select {n}")), bind("", &[]), execute(), sync()].concat()
        })
        .collect();
    raw.send(&many);
    for _ in 0..20 {
        seen.until_ready(raw);
    }
    seen.note("flush");
    raw.send(&[parse("", "select 9"), bind("", &[]), execute(), flush()].concat());
    let msgs = raw.until(b'C');
    seen.take(&msgs);
    raw.send(&sync());
    seen.until_ready(raw);
}

#[test]
fn extended_queries() {
    for mode in ["session", "transaction"] {
        same(&setup(&format!("pool_mode = {mode}\n")), |pooler, seen| {
            let mut raw = seen.login("in", pooler.login("trusty", "shop", "")).unwrap();
            unnamed(seen, &mut raw);
            if mode == "session" {
                let named = [
                    parse("s", "select $1::int4 + 1"),
                    describe(b'S', "s"),
                    bind("s", &["41"]),
                    execute(),
                    sync(),
                    parse("s", "select 2"),
                    sync(),
                    bind("unknown", &[]),
                    sync(),
                    close(b'S', "s"),
                    close(b'S', "s"),
                    sync(),
                ];
                raw.send(&named.concat());
                for _ in 0..4 {
                    seen.until_ready(&mut raw);
                }
            }
            raw.bye();
        });
    }
}

#[test]
fn copies() {
    for mode in ["session", "transaction"] {
        same(&setup(&format!("pool_mode = {mode}\n")), |pooler, seen| {
            let mut raw = seen.login("in", pooler.login("trusty", "shop", "")).unwrap();
            raw.query("drop table if exists c; create table c (n int)");
            let ends = [
                [msg(b'd', b"1\n2\n"), msg(b'd', b"3\n"), msg(b'c', b"")].concat(),
                [msg(b'd', b"1\n"), msg(b'f', b"no more\0")].concat(),
                msg(b'd', b"not a number\n"),
            ];
            for end in ends {
                seen.note(&end.escape_ascii().to_string());
                raw.send(&query("copy c from stdin"));
                let start = raw.until(b'G');
                seen.take(&start);
                raw.send(&end);
                if end.starts_with(b"d\0\0\0\x11not") {
                    raw.send(&msg(b'c', b""));
                }
                seen.until_ready(&mut raw);
            }
            raw.bye();
            let mut raw = seen.login("again", pooler.login("trusty", "shop", "")).unwrap();
            seen.query(&mut raw, "copy (select n, n * 2 from c order by n) to stdout");
            seen.query(&mut raw, "copy c to '/nowhere/at/all'");
            raw.send(&[parse("", "copy c to stdout"), bind("", &[]), execute(), sync()].concat());
            seen.until_ready(&mut raw);
            raw.bye();
        });
    }
}

#[test]
fn startup_packets() {
    same(&setup("ignore_startup_parameters = extra_float_digits\n"), |pooler, seen| {
        let base = [("user", "trusty"), ("database", "shop")];
        let with = |more: &[(&str, &str)]| startup(0, &[&base[..], more].concat());
        seen.login("first", pooler.login("trusty", "shop", ""));
        for more in [
            &[("application_name", "mine"), ("client_encoding", "LATIN1")][..],
            &[("DATESTYLE", "German"), ("timezone", "Asia/Tokyo")],
            &[("extra_float_digits", "3"), ("standard_conforming_strings", "off")],
            &[("search_path", "x")],
            &[("Application_Name", "other case"), ("geqo", "off")],
            &[("database", "nowhere")],
            &[("user", "nobody")],
        ] {
            let login = pooler.tcp().login_with(&with(more), "trusty", "");
            if let Some(mut raw) = seen.login(&format!("{more:?}"), login) {
                for name in ["application_name", "client_encoding", "datestyle", "timezone"] {
                    seen.query(&mut raw, &format!("show {name}"));
                }
            }
        }
        for bytes in [
            special(0x0002_0000, b"user\0x\0\0"),
            special(0x0003_0000, b"\0"),
            special(0x0002_0001, b"\0"),
            special(0x0004_0000, b"\0"),
            [special(SSL_REQUEST, b""), query("select 1")].concat(),
            msg(b'p', b"secret\0"),
            query("select 1"),
            b"\0\0\0\x07\0\x03\0\0".to_vec(),
            b"\0\0\0\x10\x04\xd2\x16\x99aaaabbbb".to_vec(),
            b"p\0\0\0\0".to_vec(),
            b"\xff\xff\xff\xff\xff".to_vec(),
            special(CANCEL_REQUEST, b"12345678"),
            special(CANCEL_REQUEST, b"1234"),
        ] {
            seen.throw(pooler.tcp(), &bytes);
        }
        let mut raw = pooler.tcp();
        for code in [SSL_REQUEST, GSSENC_REQUEST] {
            raw.send(&special(code, b""));
            seen.note(&format!("{:?}", raw.byte()));
        }
        seen.login("behind them", raw.login("trusty", "shop", ""));
    });
}

#[test]
fn refused_packets_after_login() {
    same(&setup("pool_mode = transaction\nmax_packet_size = 3000\n"), |pooler, seen| {
        for bytes in [
            msg(b'y', b"what"),
            msg(b'p', b"secret\0"),
            b"Q\0\0\0\x03".to_vec(),
            b"\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
            b"Q\0\0\x0b\xb8selec".to_vec(),
        ] {
            let (raw, _) = pooler.login("trusty", "shop", "").unwrap();
            seen.throw(raw, &bytes);
        }
    });
    same(&setup("auth_type = plain\n"), |pooler, seen| {
        let hello = startup(0, &[("user", "plain"), ("database", "shop")]);
        for bytes in [
            msg(b'p', b"\0"),
            msg(b'p', b"wrong\0"),
            query("select 1"),
            msg(b'X', b""),
            b"p\0\0\0\x03".to_vec(),
            hello.clone(),
        ] {
            let mut raw = pooler.tcp();
            raw.send(&hello);
            let asked = raw.recv().unwrap();
            seen.take(&[asked]);
            seen.throw(raw, &bytes);
        }
    });
}

#[test]
fn limits_and_waiting() {
    same(&setup("max_client_conn = 2\n"), |pooler, seen| {
        let _kept = [pooler.client("shop"), pooler.client("shop")];
        seen.login("one too many", pooler.login("trusty", "shop", ""));
        seen.login("to nowhere", pooler.login("trusty", "nowhere", ""));
        seen.note("end");
    });
    let waiting = "pool_mode = transaction\ndefault_pool_size = 1\nquery_wait_timeout = 1\n";
    same(&setup(waiting), |pooler, seen| {
        let (mut holder, mut waiter) = (pooler.client("shop"), pooler.client("shop"));
        seen.query(&mut holder, "begin");
        waiter.send(&query("select 1"));
        seen.until_closed(&mut waiter);
        seen.query(&mut holder, "commit");
    });
    let rows = [
        ("query_timeout = 1", "select pg_sleep(30)"),
        ("idle_transaction_timeout = 1", "begin"),
        ("client_idle_timeout = 1", "select 1"),
    ];
    for (setting, sql) in rows {
        same(&setup(&format!("pool_mode = transaction\n{setting}\n")), |pooler, seen| {
            let mut raw = pooler.client("shop");
            raw.send(&query(sql));
            seen.until_closed(&mut raw);
        });
    }
    same(&setup("pool_mode = statement\n"), |pooler, seen| {
        let mut raw = pooler.client("shop");
        seen.query(&mut raw, "select 1");
        raw.send(&query("begin"));
        let left = raw.rest();
        seen.take(&left[left.len() - 1..]);
    });
    let mut down = setup("client_login_timeout = 1\n");
    let dead = DeadPort::new();
    down.databases = format!("shop = host=127.0.0.1 port={}\n", dead.port);
    same(&down, |pooler, seen| {
        seen.login("server down", pooler.login("trusty", "shop", ""));
    });
}

#[test]
fn lost_clients_and_servers() {
    same(&setup("pool_mode = transaction\ndefault_pool_size = 1\n"), |pooler, seen| {
        let mut raw = pooler.client("shop");
        seen.query(&mut raw, "begin");
        drop(raw);
        pooler.wait_log("client disconnect while server was not ready");
        let mut raw = pooler.client("shop");
        let pid = raw.value("begin; select pg_backend_pid()");
        postgres().value("postgres", &format!("select pg_terminate_backend({pid})"));
        seen.until_closed(&mut raw);

        let mut raw = pooler.client("shop");
        raw.send(&query("select pg_sleep(60)"));
        let running = "select count(*) from pg_stat_activity where state = 'active' and query = 'select pg_sleep(60)'";
        wait_until("the query runs", || postgres().value("postgres", running) == "1");
        let mut other = pooler.tcp();
        other.send(&raw.cancel_request());
        seen.until_closed(&mut other);
        seen.until_ready(&mut raw);
        seen.query(&mut raw, "select 1");
    });
}
