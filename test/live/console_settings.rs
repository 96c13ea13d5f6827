//! RELOAD, SET and SHUTDOWN on the console (admin 4.6 to 4.8).

use nix::sys::signal::Signal;

use crate::console::refused;
use crate::console_commands::{done, state, tag_of_next};
use crate::rig::pooler::{in_transactions, Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::run::texts;
use crate::rig::scratch::write;
use crate::rig::wait_until;
use crate::rig::wire::{last_error, query, tags};

fn setting(pooler: &Pooler, key: &str) -> String {
    pooler.show("CONFIG", "value", ("key", key)).remove(0)
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
fn a_failed_reload_has_changed_what_came_before_its_error() {
    let mut setup = Setup::trust("default_pool_size = 7\n");
    let mut pooler = Pooler::start(&setup);
    let database = postgres().new_database();
    let mut client = pooler.client(&database);
    let mut console = pooler.console();
    for (settings, complaint, size) in [
        ("default_pool_size = 8\nnonsense = 1", "unknown parameter: pgbouncer/nonsense", "8"),
        (
            "default_pool_size = many",
            "invalid value \"many\" for parameter default_pool_size in",
            "20",
        ),
        ("[nowhere]\nx = 1", "invalid section \"nowhere\" in configuration (", "20"),
        ("no assignment", "syntax error in configuration (", "20"),
        ("[databases]\npgbouncer = host=x", "database name \"pgbouncer\" is reserved", "20"),
    ] {
        setup.settings = format!("{settings}\nreserve_pool_size = 5\n");
        pooler.rewrite(&setup);
        failed_reload(&pooler, &mut console, complaint);
        // The section's beginning has set everything back.
        assert_eq!(setting(&pooler, "default_pool_size"), size, "{settings}");
        assert_eq!(setting(&pooler, "reserve_pool_size"), "0", "{settings}");
    }
    write(&pooler.folder.join("ini"), "");
    failed_reload(&pooler, &mut console, "load_init_file: main section missing from config file");
    std::fs::remove_file(pooler.folder.join("ini")).unwrap();
    failed_reload(&pooler, &mut console, "could not load file \"");
    assert_eq!(client.value("select 1"), "1");
    pooler.assert_serves(&database);
    assert_eq!(refused(&mut console, "RELOAD x"), "invalid command 'RELOAD x', use SHOW HELP;");
    // Without its users' file it goes on with those it knows.
    setup.settings = "auth_file = /nowhere/users\n".to_owned();
    pooler.rewrite(&setup);
    done(&mut console, "RELOAD", "RELOAD");
    pooler.assert_serves(&database);
}

/// RELOAD has to fail, and to say so in the log.
fn failed_reload(pooler: &Pooler, console: &mut Raw, complaint: &str) {
    let before = pooler.log().len();
    let answer = console.query("RELOAD");
    assert_eq!(tags(&answer), "EZ");
    let text = b"SERROR\0CF0000\0MRELOAD failed, see logs for additional details\0\0";
    assert_eq!(answer[0].body, text);
    let end = "pooler error: RELOAD failed, see logs for additional details\n";
    wait_until("it is logged", || pooler.log()[before..].ends_with(end));
    let lines = texts(&pooler.log()[before..]);
    let begin = lines.iter().position(|line| line == "LOG RELOAD command issued").unwrap();
    let [_, causes @ .., failed, told, warned] = &lines[begin..] else { panic!("{lines:#?}") };
    let cause = format!("ERROR {complaint}");
    assert!(causes.iter().any(|line| line.starts_with(&cause)), "{lines:#?}");
    assert_eq!(failed, "WARNING config file loading failed");
    assert_eq!(told, "ERROR RELOAD Failed, see logs for more details");
    assert!(warned.starts_with("WARNING C-0x"), "{warned}");
}

#[test]
fn set_changes_a_setting_until_reload() {
    let (pooler, _) = in_transactions("");
    let mut console = pooler.console();
    done(&mut console, "SET default_pool_size = 0x21", "SET default_pool_size=0x21");
    assert_eq!(setting(&pooler, "default_pool_size"), "33");
    // Without a default nothing takes it back.
    done(&mut console, "SET verbose to 1;", "SET verbose=1");
    // What only a start can change is not even looked at.
    let port = setting(&pooler, "listen_port");
    done(&mut console, "SET listen_port = nonsense", "SET listen_port=nonsense");
    assert_eq!(setting(&pooler, "listen_port"), port);
    for command in ["SET nothing = 1", "SET POOL_MODE = session", "SET pool_mode = sometimes"] {
        assert_eq!(refused(&mut console, command), "SET failed", "{command}");
    }
    pooler.wait_log("ERROR unknown parameter: pgbouncer/nothing");
    done(&mut console, "RELOAD", "RELOAD");
    assert_eq!(setting(&pooler, "default_pool_size"), "20");
    assert_eq!(setting(&pooler, "verbose"), "1");
    for key in [
        "client_encoding",
        "Default_Transaction_Isolation",
        "STANDARD_CONFORMING_STRINGS",
        "datestyle",
        "TimeZone",
    ] {
        let ignored = console.query(&format!("SET {key} = 'x'"));
        assert_eq!(tags(&ignored), "NCZ", "{key}");
        assert_eq!(ignored[0].body, b"SNOTICE\0C00000\0MSET ignored\0\0");
        assert_eq!(ignored[1].body, b"SET\0");
    }
}

#[test]
fn commands_behind_a_reload_come_after_it() {
    let (pooler, _) = in_transactions("");
    let mut console = pooler.console();
    let set = |value: u32| query(&format!("SET default_pool_size = {value}"));
    let reload = query("RELOAD");
    console.send(&[set(1), reload.clone(), set(2), reload.clone(), reload, set(3)].concat());
    let tags: Vec<String> = (0..6).map(|_| tag_of_next(&mut console)).collect();
    let expected = [
        "SET default_pool_size=1",
        "RELOAD",
        "SET default_pool_size=2",
        "RELOAD",
        "RELOAD",
        "SET default_pool_size=3",
    ];
    assert_eq!(tags, expected);
    assert_eq!(setting(&pooler, "default_pool_size"), "3");
}

#[test]
fn shutdown_takes_two_words_only() {
    let (mut pooler, database) = in_transactions("");
    let mut console = pooler.console();
    for command in ["SHUTDOWN now", "shutdown \"wait\"", "SHUTDOWN WAIT_FOR_CLIENT"] {
        let text = format!("invalid command '{command}', use SHOW HELP;");
        assert_eq!(refused(&mut console, command), text);
    }
    pooler.assert_serves(&database);
    assert!(!pooler.log().contains("SHUTDOWN command issued"));
    done(&mut console, "shutdown \"Wait_For_Clients\";", "SHUTDOWN");
    pooler.wait_log("LOG SHUTDOWN WAIT_FOR_CLIENTS command issued");
    assert_eq!(state(&mut console), "active");
    done(&mut console, "SHUTDOWN WAIT_FOR_SERVERS", "SHUTDOWN");
    assert_eq!(state(&mut console), "paused");
    assert_eq!(pooler.wait_exit().code(), Some(0));
    assert_eq!(console.rest(), []);
}
