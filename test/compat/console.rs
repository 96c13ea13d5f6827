//! The console: commands, their answers and refusals, as far as 1.18 has them (admin 6.2).

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{msg, query, rows, terminate};
use crate::sessions::setup;
use crate::transcript::{same, Transcript};

/// Runs commands on a new console.
fn run(pooler: &Pooler, seen: &mut Transcript, commands: &[&str]) {
    let mut console = pooler.console();
    for command in commands {
        seen.query(&mut console, command);
    }
}

/// A database nobody uses and one with a special name beside `shop`.
fn databases(settings: &str) -> Setup {
    let mut more = setup(settings);
    let place = more.databases.trim_start_matches("shop = ").trim_end();
    more.databases = format!("shop = {place}\nunused = {place}\nmy-db = {place}\n");
    more
}

/// What is no command, or not well-formed (admin 2.2 and 2.3).
const TEXTS: &[&str] = &[
    "nonsense",
    "",
    " ",
    ";",
    "; ;",
    "show",
    "show;",
    "show nothing",
    "show all",
    "select 1",
    "select version()",
    "SELECT DateStyle",
    "SHOW a; SHOW b",
    "begin",
    "commit",
    "discard all",
    "set time zone 'UTC'",
    "set session timezone = 'UTC'",
    "set search_path = \"$user\",public",
    "show transaction_isolation",
    "show transaction isolation level",
    "show client_encoding;",
    "show client_encoding ;",
    "show client_encoding ; ",
    "show client_encoding;;",
    " \t\r\n show \t\r\n client_encoding \t\r\n ; \t\r\n ",
    "show\u{b}client_encoding",
    "sHoW CLIENT_ENCODING",
    "\"show\" \"client_encoding\"",
    "\"SHOW\" timezone",
    "show\"timezone\"",
    "\"show\"timezone",
    "show 'timezone'",
    "show timezone -- comment",
    "/* comment */ show timezone",
    "show time zone",
    "show \"time\"\"zone\"",
    "show timezone x",
    "show_",
    "pause my-db",
    "pause \"",
    "pause \"\"",
    "resume \"\"",
    "pause ''",
    "pause 'shop'",
    "pause shop shop",
    "pause \"shop\"\"\"",
    "resume sh\u{f6}p",
    "resume \"sh\u{f6}p\"",
    "reload now",
    "suspend now",
    "shutdown now",
    "reload \"\"",
    "suspend \"\"",
    "disable",
    "enable",
    "disable \"\"",
    "kill_nobody 1",
];

#[test]
fn texts_that_are_no_commands() {
    same(&databases(""), |pooler, seen| run(pooler, seen, TEXTS));
}

#[test]
fn tokens_that_are_too_long() {
    let x = |count: usize| "x".repeat(count);
    let texts = [
        x(15),
        x(16),
        format!("\"{}\"", x(13)),
        format!("\"{}\"", x(14)),
        format!("{} shop", x(16)),
        format!("show {}", x(63)),
        format!("show {}", x(64)),
        format!("show \"{}\"", x(61)),
        format!("show \"{}\"", x(62)),
        format!("resume {}", x(63)),
        format!("resume {}", x(64)),
        format!("resume \"{}\"", x(61)),
        format!("resume \"{}\"", x(62)),
        format!("resume \"{}\"", "\"\"".repeat(30)),
        format!("resume \"{}\"", "\"\"".repeat(31)),
        format!("set {} = 1", x(63)),
        format!("set {} = 1", x(64)),
        "set \"\" = 1".to_owned(),
        format!("set server_check_query = '{}'", x(253)),
        format!("set server_check_query = '{}'", x(254)),
        format!("set server_check_query = {}", x(255)),
        format!("set server_check_query = {}", x(256)),
        format!("set timezone = '{}'", x(253)),
        format!("set timezone = '{}'", x(254)),
        "-".repeat(450),
    ];
    // The older program logs even errors that it can't send.
    same(&databases("log_pooler_errors = 0\n"), |pooler, seen| {
        let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
        run(pooler, seen, &texts);
        for length in [451, 4000] {
            seen.throw(pooler.console(), &query(&"-".repeat(length)));
        }
    });
}

/// Every command with every kind of database, in all states (admin 4).
const COMMANDS: &[&str] = &[
    "pause nowhere",
    "resume nowhere",
    "disable nowhere",
    "enable nowhere",
    "reconnect nowhere",
    "kill nowhere",
    "wait_close nowhere",
    "pause SHOP",
    "pause pgbouncer",
    "resume pgbouncer",
    "disable pgbouncer",
    "reconnect pgbouncer",
    "kill pgbouncer",
    "wait_close pgbouncer",
    "resume",
    "resume shop",
    "resume unused",
    "pause shop",
    "pause shop",
    "suspend",
    "resume",
    "pause \"my-db\"",
    "RESUME \"my-db\";",
    "resume shop",
    "resume shop",
    "Pause",
    "pause",
    "pause shop",
    "pause nowhere",
    "pause pgbouncer",
    "kill shop",
    "kill nowhere",
    "suspend",
    "resume shop",
    "disable shop",
    "enable shop",
    "reconnect",
    "reconnect shop",
    "reload",
    "resume",
    "resume",
    "suspend",
    "suspend",
    "pause",
    "pause shop",
    "kill shop",
    "resume shop",
    "show datestyle",
    "RESUME",
    "disable unused",
    "disable unused",
    "enable unused",
    "enable unused",
    "enable shop",
    "reconnect unused",
    "wait_close",
    "wait_close shop",
    "wait_close unused",
    "kill shop",
    "kill shop",
    "kill unused",
    "suspend",
    "resume shop",
    "resume unused",
    "resume",
    "reload",
];

#[test]
fn commands_in_all_states() {
    same(&databases("pool_mode = transaction\n"), |pooler, seen| run(pooler, seen, COMMANDS));
    // The same with a pool and an idle server.
    same(&databases("pool_mode = transaction\n"), |pooler, seen| {
        let mut client = pooler.client("shop");
        seen.query(&mut client, "select 1");
        run(pooler, seen, &COMMANDS[..COMMANDS.len() - 10]);
        seen.query(&mut client, "select 2");
        run(pooler, seen, &COMMANDS[COMMANDS.len() - 10..]);
        seen.until_closed(&mut client);
        let mut client = seen.login("again", pooler.login("trusty", "shop", "")).unwrap();
        seen.query(&mut client, "select 3");
    });
}

#[test]
fn messages_of_all_kinds() {
    let show = || query("show timezone");
    // Those of the extended protocol and of COPY are refused by the older program only.
    let rows = [
        msg(b'F', b"\0\0\0\0"),
        msg(b'y', b""),
        msg(b'p', b"secret\0"),
        msg(b'Q', b"no zero"),
        msg(b'Q', b""),
        b"Q\0\0\0\x03".to_vec(),
        b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec(),
        [show(), msg(b'y', b""), show()].concat(),
        [show(), msg(b'F', b"\0\0\0\0"), show()].concat(),
        [show(), msg(b'Q', b"no zero"), show()].concat(),
        terminate(),
        [terminate(), show()].concat(),
        [show(), terminate()].concat(),
        [show().repeat(30), terminate()].concat(),
        [query("nonsense"), query("disable shop"), query("reload"), show(), terminate()].concat(),
        [msg(b'Q', b"show timezone\0; and more"), terminate()].concat(),
        [msg(b'Q', b"nonsense \xff\xfe\0"), terminate()].concat(),
    ];
    same(&databases("max_packet_size = 5000\n"), |pooler, seen| {
        for bytes in &rows {
            seen.throw(pooler.console(), bytes);
        }
    });
}

/// Values for settings of every kind (admin 4.8).
const SETTINGS: &[&str] = &[
    "set nothing = 1",
    "set DEFAULT_POOL_SIZE = 1",
    "set \"default_pool_size\" = \"7\"",
    "set default_pool_size to 8;",
    "set default_pool_size to9",
    "set default_pool_size=10",
    "set default_pool_size = '11'",
    "set default_pool_size = 0x10",
    "set default_pool_size = '010'",
    "set default_pool_size = 12x",
    "set default_pool_size = x",
    "set default_pool_size = ''",
    "set default_pool_size = '-1'",
    "set default_pool_size = -1",
    "set default_pool_size = ' 13'",
    "set default_pool_size = '14 '",
    "set default_pool_size = '1.5'",
    "set default_pool_size 15",
    "set default_pool_size =",
    "set default_pool_size = 16 17",
    "set max_packet_size = 4000000000",
    "set server_lifetime = 1.5",
    "set server_lifetime = '1.5'",
    "set server_lifetime = '-1'",
    "set server_lifetime = '1e3'",
    "set server_lifetime = x",
    "set server_lifetime = ''",
    "set server_lifetime = 0",
    "set query_timeout = '0.123456'",
    "set pool_mode = Transaction",
    "set pool_mode = 'sometimes'",
    "set pool_mode = session",
    "set server_round_robin = 1",
    "set server_round_robin = 0",
    "set server_round_robin = yes",
    "set server_round_robin = 2",
    "set server_check_query = 'select ''quoted'''",
    "set server_reset_query = ''",
    "set server_reset_query = \"DISCARD \"\"ALL\"",
    "set ignore_startup_parameters = a",
    "set listen_port = 1",
    "set listen_port = x",
    "set listen_addr = 'nowhere'",
    "set unix_socket_dir = x",
    "set job_name = x",
    "set client_encoding = 'x'",
    "SET Client_Encoding to x",
    "set timezone=x",
    "SET DateStyle = 'ISO, MDY';",
    "set default_transaction_isolation = 'x'",
    "set standard_conforming_strings = on",
    "set application_name = 'psql'",
    "set extra_float_digits = 3",
];

/// The value of a setting.
fn value(console: &mut Raw, key: &str) -> Option<String> {
    let all = rows(&console.query("SHOW CONFIG"));
    all.into_iter().find(|row| row[0].as_deref() == Some(key)).and_then(|row| row[1].clone())
}

#[test]
fn settings_of_every_kind() {
    same(&setup(""), |pooler, seen| {
        let mut console = pooler.console();
        for command in SETTINGS {
            seen.query(&mut console, command);
            let key = command.split([' ', '=', '"']).filter(|word| !word.is_empty()).nth(1);
            if let Some(value) =
                value(&mut console, key.unwrap()).filter(|_| key != Some("listen_port"))
            {
                seen.note(&value.replace(pooler.folder.to_str().unwrap(), "DIR"));
            }
        }
        seen.query(&mut console, "reload");
        for key in ["default_pool_size", "server_lifetime", "server_reset_query", "query_timeout"] {
            seen.note(&format!("{key} {:?}", value(&mut console, key)));
        }
    });
}

#[test]
fn rights() {
    let mut with_stats = setup("auth_type = plain\n");
    with_stats.users.push_str("\"stats\" \"stats-pw\"\n");
    same(&with_stats, |pooler, seen| {
        for (user, password) in [("stats", "wrong"), ("plain", "plain-pw"), ("nobody", "x")] {
            seen.login(user, pooler.login(user, "pgbouncer", password));
        }
        let login = pooler.login("stats", "pgbouncer", "stats-pw");
        let mut raw = seen.login("stats", login).unwrap();
        for command in [
            "pause",
            "pause nowhere",
            "resume",
            "suspend",
            "suspend x",
            "kill shop",
            "disable",
            "disable shop",
            "enable",
            "reconnect",
            "wait_close",
            "reload",
            "reload x",
            "shutdown",
            "shutdown x",
            "set x = 1",
            "set listen_port = 1",
            "set pool_mode = x",
            "set datestyle = x",
            "set x",
            "show fds",
            "show nothing",
            "show timezone",
            "nonsense",
        ] {
            seen.query(&mut raw, command);
        }
    });
}

#[test]
fn columns_that_are_the_same() {
    same(&setup(""), |pooler, seen| {
        pooler.client("shop").value("select 1");
        for topic in ["CONFIG", "LISTS", "DNS_HOSTS", "DNS_ZONES", "VERSION"] {
            let answer = pooler.console().query(&format!("show {topic}"));
            seen.note(topic);
            seen.take(&answer[..1]);
            seen.take(&answer[answer.len() - 2..]);
        }
    });
}

#[test]
fn what_clients_see_of_commands() {
    same(&databases("pool_mode = transaction\n"), |pooler, seen| {
        let (mut one, mut two) = (pooler.client("shop"), pooler.client("shop"));
        seen.query(&mut one, "begin");
        let mut console = pooler.console();
        console.send(&query("pause"));
        pooler.wait_log("PAUSE command issued");
        two.send(&query("select 2"));
        wait_until("it waits", || pooler.pool("shop", "cl_waiting") == 1);
        seen.query(&mut one, "commit");
        seen.until_ready(&mut console);
        seen.query(&mut console, "resume");
        seen.until_ready(&mut two);
        seen.query(&mut console, "disable shop");
        seen.login("disabled", pooler.login("trusty", "shop", ""));
        seen.query(&mut two, "select 3");
        seen.query(&mut console, "enable shop");
        seen.login("enabled", pooler.login("trusty", "shop", ""));
        let pid = two.value("begin; select pg_backend_pid()");
        seen.query(&mut console, "reconnect shop");
        seen.note(&format!("{}", two.value("select pg_backend_pid()") == pid));
        seen.query(&mut two, "commit");
        seen.note(&format!("{}", two.value("select pg_backend_pid()") == pid));
        seen.query(&mut one, "begin");
        let mut waiter = pooler.client("shop");
        seen.query(&mut console, "kill shop");
        for client in [&mut one, &mut two, &mut waiter] {
            seen.until_closed(client);
        }
        let gone = "select count(*) from pg_stat_activity where application_name = 'shop'";
        seen.note(&postgres().value("postgres", gone));
    });
}

#[test]
fn a_cancel_request_for_a_console_resumes() {
    same(&setup(""), |pooler, seen| {
        for state in ["pause", "suspend", "show timezone", "pause shop"] {
            let mut console = pooler.console();
            seen.query(&mut console, state);
            let mut cancel = pooler.unix();
            if state == "suspend" {
                cancel = pooler.tcp();
                // Nobody is accepted while suspended.
                seen.query(&mut console, "resume");
            }
            cancel.send(&console.cancel_request());
            seen.until_closed(&mut cancel);
            seen.query(&mut console, "resume");
            seen.query(&mut console, "resume shop");
        }
        let log = pooler.log();
        seen.note(&log.matches("cancel request for console client").count().to_string());
        let warning = "admin cancel request for non-waiting client?";
        seen.note(&log.matches(warning).count().to_string());
    });
}
