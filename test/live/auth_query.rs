//! Users who are looked up in a database (auth 4).

use crate::rig::fake::{Fake, Peer};
use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::{Login, Raw};
use crate::rig::secrets::{md5_secret, scram_secret};
use crate::rig::wire::{cstr, fatal, last_error, msg, rows, startup, tags};
use crate::rig::{wait_until, DEADLINE};
use std::time::{Duration, Instant};

/// The secrets of these tests' users.
const TABLE: &str = "create table secrets (name text, secret text);
    create table asked (name text, at timestamptz default clock_timestamp(), path text);
    create function look(n text) returns table (name text, secret text) language plpgsql as $$
    begin
        insert into asked (name, path) values (n, current_setting('search_path'));
        perform pg_sleep(0.3);
        return query select s.name, s.secret from public.secrets s where s.name = n;
    end $$;";

const QUERY: &str = "select name, secret from secrets where name = $1";

/// A database with a table of secrets, and users of all kinds in it: the password is the name and `-pw`.
fn database() -> String {
    let name = postgres().new_database();
    let scram = scram_secret("scrammer-pw", b"salt salt salt 1", 4096);
    let users = [
        ("plain", "plain-pw"),
        ("md", &md5_secret("md", "md-pw")),
        ("scrammer", &scram),
        ("empty", ""),
    ];
    let values: Vec<_> = users.iter().map(|(n, s)| format!("('{n}', '{s}')")).collect();
    let fill = format!("insert into secrets values {}, ('null', null)", values.join(", "));
    postgres().value(&name, &format!("{TABLE} {fill}"));
    name
}

/// The line of a database whose servers are always reached as `trusty`, so that only the client's side is tested.
fn entry(name: &str, dbname: &str, more: &str) -> String {
    format!("{name} = host=127.0.0.1 port={} user=trusty dbname={dbname} {more}\n", postgres().port)
}

fn pooler(databases: &str, settings: &str) -> Pooler {
    Pooler::start(&Setup {
        databases: databases.into(),
        settings: format!("auth_type = md5\npool_mode = transaction\n{settings}"),
        users: String::new(),
    })
}

/// A pooler with one database `shop`, whose users are in its table of secrets.
pub(crate) fn shop(settings: &str) -> (Pooler, String) {
    let dbname = database();
    let settings = format!("auth_user = trusty\nauth_query = {QUERY}\n{settings}");
    (pooler(&entry("shop", &dbname, ""), &settings), dbname)
}

fn code(login: Login) -> (String, String, String) {
    match login {
        Ok(_) => (String::new(), String::new(), "got in".into()),
        Err(msgs) => last_error(&msgs),
    }
}

#[test]
fn look_ups_take_one_server_and_the_log_tells_who_is_not_found() {
    let (pooler, _) = shop("");
    for user in ["plain", "md", "scrammer"] {
        assert!(pooler.login(user, "shop", &format!("{user}-pw")).is_ok(), "{user}");
    }
    assert_eq!(pooler.refusal("nobody", "shop", "x"), "no such user");
    pooler.wait_log("login failed: db=shop");
    pooler.wait_log("closing because: no such user");
    assert_eq!(pooler.show("POOLS", "sv_idle", ("user", "trusty")), ["1"], "one server for all");
}

#[test]
fn default_query_finds_roles_and_their_secrets_open_servers() {
    let (name, port) = (postgres().new_database(), postgres().port);
    let databases = format!("{name} = host=127.0.0.1 port={port}\n");
    let role = format!("gone{}", postgres().port);
    let sql = format!(
        "create role {role} login password 'x' valid until '2001-01-01'; create role n{role} password 'x'"
    );
    postgres().value("postgres", &sql);
    let pooler = pooler(&databases, "auth_user = trusty\npool_mode = session");
    for user in ["md5y", "scramy"] {
        for _ in 0..2 {
            let login = pooler.login(user, &name, &format!("{user}-pw"));
            let (mut client, _) = login.unwrap_or_else(|e| panic!("{user}: {e:?}"));
            assert_eq!(client.value("select current_user"), user);
        }
        assert!(pooler.login(user, &name, "wrong").is_err());
    }
    assert_eq!(pooler.refusal(&role, &name, "x"), "password authentication failed");
    assert_eq!(
        pooler.refusal(&format!("n{role}"), &name, "x"),
        "no such user",
        "it may not log in"
    );
    let auth: Vec<_> = pooler.show("POOLS", "cl_active", ("user", "trusty"));
    assert_eq!(auth, ["0"], "nobody logs in as the auth user");
}

#[test]
fn an_ordinary_role_asks_a_function_that_may_look() {
    let name = postgres().new_database();
    let function = "create function lookup(inout n text, out s text) language sql security definer \
        set search_path = pg_catalog as $$ select rolname, rolpassword from pg_authid where rolname = n $$";
    postgres().value(&name, function);
    let databases = format!(
        "{name} = host=127.0.0.1 port={} auth_user=md5y auth_query='select * from lookup($1)'\n",
        postgres().port
    );
    let pooler = Pooler::start(&Setup {
        databases,
        settings: "auth_type = md5\nauth_user = other\nauth_query = nonsense".into(),
        users: "\"md5y\" \"md5y-pw\"\n".into(),
    });
    let login = pooler.login("scramy", &name, "scramy-pw");
    assert_eq!(login.expect("by the function").0.value("select current_user"), "scramy");
    // A row of nulls is what the function makes of nobody.
    assert_eq!(pooler.refusal("nobody", &name, "x"), "bouncer config error");
    pooler.wait_log("auth_query response contained null user name");
}

#[test]
fn auth_dbname_says_where_for_all_or_for_one_database() {
    let (here, there) = (database(), database());
    for name in [&here, &there] {
        postgres()
            .value(name, &format!("update secrets set secret = '{name}' where name = 'plain'"));
    }
    let databases = entry("shop", &here, "")
        + &entry("own", &here, "auth_dbname=here")
        + &entry("away", &here, "auth_dbname=missing")
        + &entry("wrong", &here, "auth_dbname=pgbouncer")
        + &entry("here", &here, "")
        + &entry("there", &there, "");
    let settings =
        format!("auth_user = trusty\nauth_query = {QUERY}\nauth_dbname = there\nauth_type = plain");
    let pooler = pooler(&databases, &settings);
    for (database, password) in [("shop", &there), ("own", &here)] {
        assert!(pooler.login("plain", database, password).is_ok(), "{database}");
    }
    assert!(pooler.login("plain", "shop", &here).is_err());
    assert_eq!(pooler.refusal("plain", "away", "x"), "bouncer config error");
    pooler.wait_log("authentication database \"missing\" is not configured.");
    assert_eq!(pooler.refusal("plain", "wrong", "x"), "bouncer config error");
    pooler.wait_log("cannot use the reserved \"pgbouncer\" database as an auth_dbname");
    pooler.command("DISABLE there");
    assert_eq!(
        pooler.refusal("plain", "shop", "x"),
        "authentication database \"there\" is disabled"
    );
    // An unknown database has no auth query: everything goes on as for an unknown user.
    assert_eq!(pooler.refusal("plain", "nowhere", "x"), "password authentication failed");
}

#[test]
fn results_that_make_no_sense_are_configuration_errors() {
    let dbname = database();
    let rows = [
        ("one", "select 1 where $1::text is not null", "expected 2 columns from auth_query, not 1"),
        ("three", "select $1::text, 2, 3", "expected 2 columns from auth_query, not 3"),
        ("anon", "select null::text, $1::text", "auth_query response contained null user name"),
        ("fails", "select $1::text, 1/0", "error response from auth_query"),
        ("syntax", "selekt", "error response from auth_query"),
        ("none", "insert into secrets values ($1)", "unexpected response from auth_query"),
    ];
    let line = |(name, query, _): &(&str, &str, &str)| {
        entry(name, &dbname, &format!("auth_query='{}'", query.replace('\'', "''")))
    };
    let databases: String = rows.iter().map(line).collect();
    let pooler = pooler(&databases, "auth_user = trusty");
    for (database, _, log) in rows {
        assert_eq!(pooler.refusal("plain", database, "x"), "bouncer config error", "{database}");
        pooler.wait_log(log);
    }
    pooler.wait_log("ERROR S: error in auth_query: ERROR: division by zero");
    assert_eq!(
        pooler.count(&format!(
            "LOG S {}/trusty closing because: error response from auth_query",
            "fails"
        )),
        1
    );
}

#[test]
fn a_disabled_database_of_its_own_has_no_name_in_the_message() {
    let (pooler, _) = shop("");
    pooler.command("DISABLE shop");
    assert_eq!(
        pooler.refusal("plain", "shop", "x"),
        "authentication database \"(null)\" is disabled"
    );
}

#[test]
fn an_auth_user_that_is_refused_is_told_in_the_servers_words_then_at_once() {
    let databases = entry("shop", "template1", "auth_user=ghost");
    let pooler = pooler(&databases, "");
    let (severity, sqlstate, text) = code(pooler.login("plain", "shop", "x"));
    assert_eq!((severity.as_str(), sqlstate.as_str()), ("FATAL", "28000"), "{text}");
    assert!(text.contains("no pg_hba.conf entry"), "{text}");
    let again = pooler.refusal("plain", "shop", "x");
    let cached = "server login has been failing, cached error: no pg_hba.conf entry";
    assert!(again.starts_with(cached), "{again}");
}

#[test]
fn who_waits_for_an_unreachable_database_waits_for_query_wait_timeout() {
    let databases = "shop = host=127.0.0.1 port=1\n";
    let settings = "auth_user = trusty\nquery_wait_timeout = 2\nclient_login_timeout = 1";
    let pooler = pooler(databases, settings);
    let start = Instant::now();
    assert_eq!(pooler.refusal("plain", "shop", "x"), "query_wait_timeout");
    assert!(start.elapsed() > Duration::from_millis(1900), "the login timeout does not apply");
}

#[test]
fn a_paused_auth_database_makes_clients_wait_as_its_own() {
    let dbname = database();
    let databases = entry("shop", &dbname, "auth_dbname=auth") + &entry("auth", &dbname, "");
    let settings = format!("auth_user = trusty\nauth_query = {QUERY}");
    let pooler = pooler(&databases, &settings);
    pooler.command("PAUSE auth");
    let ask = |user: &str| {
        let mut client = pooler.tcp();
        client.send(&startup(0, &[("user", user), ("database", "shop")]));
        client
    };
    let mut clients = [ask("plain"), ask("plain"), ask("md")];
    let waiting = || pooler.show("POOLS", "cl_waiting", ("database", "auth"));
    wait_until("all wait", || waiting() == ["3"]);
    let shown = |column| pooler.show("CLIENTS", column, ("database", "auth"));
    assert_eq!(shown("state"), ["waiting", "waiting", "waiting"]);
    assert_eq!(shown("user"), ["(nouser)", "(nouser)", "(nouser)"]);
    let why = |column| pooler.show("WAITING", column, ("database", "auth"));
    assert_eq!(why("reason"), ["auth query", "auth query", "auth query"]);
    let mut users = why("user");
    users.sort();
    assert_eq!(users, ["md", "plain", "plain"]);
    let shared = "the user is being looked up for another client";
    let paused = "paused: PAUSE or KILL of database auth is in force";
    assert_eq!(why("detail"), [paused, paused, shared]);
    assert_eq!(pooler.show("DATABASES", "current_client_connections", ("name", "shop")), ["3"]);
    pooler.command("RESUME auth");
    for client in &mut clients {
        assert_eq!(client.recv().map(|m| m.tag), Some(b'R'));
    }
    assert_eq!(waiting(), ["0"]);
    assert_eq!(pooler.show("STATS", "total_server_assignment_count", ("database", "auth")), ["2"]);
}

#[test]
fn a_hundred_clients_of_one_user_cause_one_look_up() {
    let dbname = database();
    let query = "auth_query='select * from look($1)'";
    let databases = entry("shop", &dbname, query) + &entry("idle", &dbname, query);
    let pooler = pooler(&databases, "auth_user = trusty\nmax_client_conn = 500");
    for warm in [false, true] {
        // With and without a server that is free already.
        assert!(pooler.login("plain", "idle", "plain-pw").is_ok());
        let database = if warm { "idle" } else { "shop" };
        postgres().value(&dbname, "truncate asked");
        let hello = startup(0, &[("user", "plain"), ("database", database)]);
        let mut clients: Vec<Raw> = (0..100).map(|_| pooler.tcp()).collect();
        for client in &mut clients {
            client.send(&hello);
        }
        for mut client in clients {
            let request = client.recv().expect("a request for a password");
            assert_eq!((request.tag, request.body[3]), (b'R', 5));
        }
        assert_eq!(postgres().value(&dbname, "select count(*) from asked"), "1");
    }
}

#[test]
fn who_carries_a_look_up_may_leave_and_nobody_is_lost() {
    let dbname = database();
    let databases = entry(
        "shop",
        &dbname,
        "auth_query='select name, secret from secrets, pg_sleep(2) where name = $1'",
    );
    let pooler = pooler(&databases, "auth_user = trusty");
    let ask = || {
        let mut client = pooler.tcp();
        client.send(&startup(0, &[("user", "plain"), ("database", "shop")]));
        client
    };
    let first = ask();
    let asked = || {
        postgres().value(&dbname, "select count(*) from pg_stat_activity where query like '%pg_sleep(2) where name = $1' and state = 'active'")
    };
    wait_until("it is asked", || asked() == "1");
    let mut others = [ask(), ask()];
    wait_until("they wait", || pooler.pool("shop", "cl_waiting") == 2);
    drop(first);
    for client in &mut others {
        assert_eq!(client.recv().map(|m| m.tag), Some(b'R'));
    }
}

#[test]
fn nothing_that_a_client_says_reaches_the_server_that_is_asked() {
    let dbname = database();
    let evil = "create schema evil; create table evil.secrets as select 'plain'::text as name, 'mine'::text as secret; \
        grant all on schema evil to public";
    postgres().value(&dbname, evil);
    let settings = format!(
        "auth_user = trusty\nauth_query = {QUERY}\nauth_type = plain\ntrack_extra_parameters = search_path"
    );
    let pooler = pooler(&entry("shop", &dbname, ""), &settings);
    for _ in 0..2 {
        for more in [("search_path", "evil"), ("options", "-c search_path=evil")] {
            let hello = startup(0, &[("user", "plain"), ("database", "shop"), more]);
            let refused = pooler.tcp().login_with(&hello, "plain", "mine");
            assert_eq!(code(refused), fatal("password authentication failed"), "{more:?}");
            let allowed = pooler.tcp().login_with(&hello, "plain", "plain-pw");
            let (mut client, _) = allowed.expect("with its password");
            assert_eq!(client.value("select 7"), "7");
        }
    }
}

#[test]
fn a_user_that_is_gone_is_unknown_whatever_was_known_before() {
    let (pooler, dbname) = shop("auth_type = trust");
    assert!(pooler.login("plain", "shop", "").is_ok());
    postgres().value(&dbname, "delete from secrets where name = 'plain'");
    assert_eq!(pooler.refusal("plain", "shop", ""), "no such user");
    let (pooler, dbname) = shop("auth_type = scram-sha-256");
    assert!(pooler.login("scrammer", "shop", "scrammer-pw").is_ok());
    postgres().value(&dbname, "update secrets set secret = 'new' where name = 'scrammer'");
    assert!(pooler.login("scrammer", "shop", "scrammer-pw").is_err(), "nothing is cached");
    assert!(pooler.login("scrammer", "shop", "new").is_ok());
    postgres().value(&dbname, "delete from secrets where name = 'scrammer'");
    for password in ["new", "", "md5"] {
        assert_eq!(pooler.refusal("scrammer", "shop", password), "no such user");
    }
}

#[test]
fn databases_have_secrets_of_their_own() {
    let (one, two) = (database(), database());
    postgres().value(&two, "update secrets set secret = 'other' where name = 'plain'");
    let databases = entry("one", &one, "") + &entry("two", &two, "");
    let settings = format!("auth_user = trusty\nauth_query = {QUERY}");
    let pooler = pooler(&databases, &settings);
    for _ in 0..2 {
        assert!(pooler.login("plain", "one", "plain-pw").is_ok());
        assert!(pooler.login("plain", "two", "other").is_ok());
        assert!(pooler.login("plain", "one", "other").is_err());
        assert!(pooler.login("plain", "two", "plain-pw").is_err());
    }
}

#[test]
fn the_name_that_was_found_is_the_users_name() {
    let dbname = database();
    let query = "auth_query='select name, secret from secrets where name = lower($1)'";
    let pooler = pooler(&entry("shop", &dbname, query), "auth_user = trusty\nauth_type = plain");
    let (_client, _) = pooler.login("PLAIN", "shop", "plain-pw").expect("plain password");
    assert_eq!(pooler.show("CLIENTS", "user", ("database", "shop")), ["plain"]);
    assert_eq!(pooler.show("USERS", "name", ("name", "PLAIN")), Vec::<String>::new());
    pooler.wait_log("login attempt: db=shop user=plain");
}

#[test]
fn consoles_need_an_auth_dbname() {
    let (pooler, _) = shop("admin_users = admin, plain");
    assert_eq!(pooler.refusal("plain", "pgbouncer", "plain-pw"), "bouncer config error");
    pooler.wait_log("cannot use the reserved \"pgbouncer\" database as an auth_dbname");
    pooler.command("SET auth_dbname = shop");
    let (mut console, _) = pooler.login("plain", "pgbouncer", "plain-pw").expect("an admin");
    assert_eq!(tags(&console.query("PAUSE shop")), "CZ");
    assert_eq!(tags(&console.query("RESUME shop")), "CZ");
    assert_eq!(pooler.refusal("md", "pgbouncer", "md-pw"), "not allowed");
    assert_eq!(pooler.refusal("nobody", "pgbouncer", "x"), "no such user");
}

#[test]
fn timeouts_count_from_the_look_up_on() {
    let dbname = database();
    let slow = entry("slow", &dbname, "auth_query='select * from look($1)'")
        + &entry(
            "stuck",
            &dbname,
            "auth_query='select name, secret from secrets, pg_sleep(30) where name = $1'",
        );
    // The reference ends every look-up at the next tick if there is a transaction_timeout.
    let pooler = pooler(&slow, "auth_user = trusty\ntransaction_timeout = 20\nquery_timeout = 2");
    assert!(pooler.login("plain", "slow", "plain-pw").is_ok());
    let start = Instant::now();
    assert_eq!(pooler.refusal("plain", "stuck", "plain-pw"), "bouncer config error");
    assert!(start.elapsed() < DEADLINE / 2);
    pooler.wait_log("closing because: query timeout");
}

/// A server that lets the auth user in, reads the query up to its Sync and says this, then ends.
fn saying(words: &'static [u8]) -> Fake {
    Fake::start(move |mut peer: Peer| {
        peer.welcome();
        let mut letters = String::new();
        while !letters.ends_with('S') {
            match peer.raw.recv() {
                Some(message) => letters.push(char::from(message.tag)),
                None => return,
            }
        }
        assert_eq!(letters, "PBDES");
        peer.raw.send(words);
        while peer.raw.recv().is_some() {}
    })
}

#[test]
fn servers_that_answer_badly_let_nobody_in() {
    let good: Vec<u8> = [
        msg(b'1', b""),
        msg(b'2', b""),
        msg(b'T', &[&[0, 2][..], &cstr("a"), &[0; 18], &cstr("b"), &[0; 18]].concat()),
    ]
    .concat();
    let row = |body: &[u8]| msg(b'D', body);
    let end = [msg(b'C', b"SELECT 1\0"), msg(b'Z', b"I")].concat();
    let named: &[u8] = b"\0\x02\0\0\0\x05plain\0\0\0\x01x";
    for (words, log) in [
        (msg(b'Z', b"I"), "unexpected reply from server"),
        ([good.clone(), row(b"\0\x02\0\0\0\x05pl"), end.clone()].concat(), "unexpected response"),
        ([good.clone(), row(b"\0\x01\0\0\0\x05plain"), end.clone()].concat(), "expected 2 columns"),
        (
            [good.clone(), row(b"\0\x02\0\0\0\x05plain\x7f\0\0\x01x"), end.clone()].concat(),
            "unexpected response",
        ),
        (
            [good.clone(), row(named), msg(b'C', b"SELECT 1\0"), msg(b'Z', b"T")].concat(),
            "unexpected response",
        ),
        (
            [good.clone(), row(named), end.clone(), msg(b'Z', b"I")].concat(),
            "unexpected reply from server",
        ),
        ([good.clone(), msg(b'G', b"\0\0\0")].concat(), "unexpected response"),
        ([good.clone(), msg(b'~', b"")].concat(), "unknown pkt"),
    ] {
        let fake = saying(Box::leak(words.into_boxed_slice()));
        let pooler = pooler(&fake.database(), "auth_user = trusty\nauth_type = trust");
        assert_eq!(pooler.refusal("plain", "fake", "x"), "bouncer config error", "{log}");
        pooler.wait_log(&format!("closing because: {log}"));
    }
}

#[test]
fn a_server_that_dies_while_it_is_asked_fails_everybody_who_shares() {
    let fake = Fake::start(|mut peer: Peer| {
        peer.welcome();
        std::thread::sleep(Duration::from_millis(500));
    });
    let pooler = pooler(&fake.database(), "auth_user = trusty");
    let ask = || {
        let mut client = pooler.tcp();
        client.send(&startup(0, &[("user", "plain"), ("database", "fake")]));
        client
    };
    for mut client in [ask(), ask(), ask()] {
        assert_eq!(last_error(&client.rest()), fatal("bouncer config error"));
    }
    assert_eq!(rows(&pooler.command("SHOW CLIENTS")).len(), 1, "only the console is left");
}
