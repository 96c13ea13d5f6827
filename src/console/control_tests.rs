//! Tests of the commands that do something: state, order of checks, log lines, effects.

use super::fixture::Fixture;

/// What is run before, if anything; the command; its error.
const REFUSALS: &[(&str, &str, &str)] = &[
    ("pause", "pause", "already suspended/paused"),
    ("pause", "pause no", "already suspended/paused"),
    ("pause", "kill", "already suspended/paused"),
    ("pause", "kill one", "already suspended/paused"),
    ("suspend", "suspend", "already suspended/paused"),
    ("suspend", "pause", "already suspended/paused"),
    ("suspend", "kill", "already suspended/paused"),
    ("pause", "suspend", "already suspended/paused"),
    ("pause one", "suspend", "cannot suspend with paused databases"),
    ("", "pause pgbouncer", "cannot pause admin db: pgbouncer"),
    ("", "kill pgbouncer", "cannot kill admin db: pgbouncer"),
    ("", "reconnect pgbouncer", "cannot reconnect admin db: pgbouncer"),
    ("", "disable pgbouncer", "cannot disable admin db: pgbouncer"),
    ("", "enable pgbouncer", "cannot enable admin db: pgbouncer"),
    ("", "resume pgbouncer", "database pgbouncer is not paused"),
    ("", "resume", "pooler is not paused/suspended"),
    ("pause one", "resume", "pooler is not paused/suspended"),
    ("kill", "resume", "pooler is not paused/suspended"),
    ("", "resume one", "database one is not paused"),
    ("", "resume nowhere", "no such database: nowhere"),
    ("", "enable nowhere", "no such database: nowhere"),
    ("", "resume ONE", "no such database: ONE"),
    ("shutdown wait_for_servers", "resume", "pooler is shutting down"),
    ("shutdown wait_for_clients", "resume", "pooler is shutting down"),
    ("shutdown wait_for_servers", "pause", "already suspended/paused"),
    ("", "kill_client", "invalid client pointer supplied"),
    ("", "kill_client x1", "invalid client pointer supplied"),
    ("", "kill_client 999", "client not found"),
    ("", "set nothing=1", "SET failed"),
    ("", "set LOG_STATS=1", "SET failed"),
    ("", "set log_stats=x", "SET failed"),
    ("", "set log_stats=''", "SET failed"),
    ("", "set pool_mode=fast", "SET failed"),
];

#[test]
fn commands_check_state_and_database_in_order() {
    for (before, command, want) in REFUSALS {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        if !before.is_empty() {
            at.tag(boss, before);
        }
        assert_eq!(at.refusal(boss, command), *want, "{command}");
    }
}

#[test]
fn commands_answer_with_their_names_and_are_logged() {
    for (command, tag, log) in [
        ("Pause;", "PAUSE", Some("PAUSE command issued")),
        ("pause one", "PAUSE", Some("PAUSE 'one' command issued")),
        ("pause \"my-db\"", "PAUSE", Some("PAUSE 'my-db' command issued")),
        ("suspend", "SUSPEND", Some("SUSPEND command issued")),
        ("kill", "KILL", Some("KILL command issued")),
        ("kill \"one\"", "KILL", Some("KILL 'one' command issued")),
        ("reconnect", "RECONNECT", Some("RECONNECT command issued")),
        ("reconnect two", "RECONNECT", Some("RECONNECT 'two' command issued")),
        ("disable one", "DISABLE", Some("DISABLE 'one' command issued")),
        ("enable one", "ENABLE", Some("ENABLE 'one' command issued")),
        ("shutdown Wait_For_Servers", "SHUTDOWN", Some("SHUTDOWN WAIT_FOR_SERVERS command issued")),
        ("shutdown wait_for_clients", "SHUTDOWN", Some("SHUTDOWN WAIT_FOR_CLIENTS command issued")),
        ("set log_stats to 0", "SET log_stats=0", None),
        ("set server_lifetime='1.5'", "SET server_lifetime=1.5", None),
        ("set listen_port=x", "SET listen_port=x", None),
        ("set default_pool_size = 0x10", "SET default_pool_size=0x10", None),
        ("set Client_Encoding to 'x'", "SET", None),
    ] {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        at.log();
        assert_eq!(at.tag(boss, command), tag);
        let want = log.map(|line| format!("Log {line}"));
        assert_eq!(at.log(), Vec::from_iter(want), "{command}");
    }
}

#[test]
fn refused_commands_are_logged_if_they_pass_the_first_check() {
    for (before, command, first) in [
        ("pause", "pause one", "Error already suspended/paused"),
        ("pause", "kill", "Error already suspended/paused"),
        ("set x", "resume", "Log RESUME command issued"),
        ("set x", "resume one", "Log RESUME 'one' command issued"),
        ("set x", "pause pgbouncer", "Log PAUSE 'pgbouncer' command issued"),
        ("set x", "kill pgbouncer", "Log KILL 'pgbouncer' command issued"),
        ("set x", "enable nowhere", "Log ENABLE 'nowhere' command issued"),
        ("set x", "set nothing=1", "Error unknown parameter: pgbouncer/nothing"),
        ("set x", "set log_stats=x", "Error SET failed"),
    ] {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        at.run(boss, before);
        at.taken(boss);
        at.log();
        at.refusal(boss, command);
        assert_eq!(at.log()[0], first, "{command}");
    }
}

#[test]
fn pause_is_answered_when_servers_are_free() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let alice = at.client("one", "bob");
    let server = at.serve();
    at.feed(alice, "select 1");
    at.run(boss, "pause");
    assert_eq!(at.taken(boss), []);
    assert_eq!(at.tag(boss, "reconnect"), "RECONNECT");
    at.say(server, b'C', b"SELECT 1\0");
    at.ready(server, b'I');
    assert_eq!(at.answered(boss), "PAUSE");
    assert_eq!(at.tag(boss, "resume"), "RESUME");
}

#[test]
fn pause_of_a_database_waits_for_all_that_are_paused() {
    let mut at = Fixture::new();
    let (boss, other) = (at.console("boss"), at.console("boss"));
    let bob = at.client("one", "bob");
    let busy = at.serve();
    let alice = at.client("two", "alice");
    let free = at.serve();
    at.feed(bob, "select 1");
    assert_eq!(at.tag(boss, "pause \"my-db\""), "PAUSE", "it has no servers");
    at.feed(alice, "select 1");
    at.run(boss, "pause two");
    assert_eq!(at.taken(boss), []);
    at.run(other, "pause one");
    at.ready(free, b'I');
    assert_eq!(at.taken(boss), [], "one is still busy");
    at.ready(busy, b'I');
    assert_eq!(at.answered(boss), "PAUSE");
    assert_eq!(at.answered(other), "PAUSE");
    assert_eq!(at.tag(boss, "resume one"), "RESUME");
    assert_eq!(at.tag(boss, "resume two"), "RESUME");
}

#[test]
fn resume_ends_the_wait_of_others() {
    let mut at = Fixture::new();
    let (boss, other) = (at.console("boss"), at.console("boss"));
    let bob = at.client("one", "bob");
    at.serve();
    at.feed(bob, "select 1");
    at.run(boss, "pause");
    assert_eq!(at.tag(other, "resume"), "RESUME");
    assert_eq!(at.answered(boss), "PAUSE");
}

#[test]
fn kill_drops_clients_and_pools_and_pauses_the_database() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let bob = at.client("one", "bob");
    at.serve();
    let alice = at.client("two", "alice");
    at.taken(bob);
    assert_eq!(at.tag(boss, "kill one"), "KILL");
    let (clients, servers) = (at.core.clients().len(), at.core.servers().len());
    assert_eq!((clients, servers), (2, 1));
    let told = ("E".to_owned(), "SFATAL C08P01 Mdatabase removed".to_owned());
    assert_eq!(at.taken(bob), [told]);
    assert!(at.is_closed(bob) && !at.is_closed(alice));
    assert_eq!(at.tag(boss, "kill"), "KILL");
    assert!(at.is_closed(alice) && !at.is_closed(boss));
    let shown = at.show(boss, "show databases");
    let paused = shown.column("name").into_iter().zip(shown.column("paused"));
    let paused: Vec<_> = paused.filter(|(_, paused)| *paused == "1").collect();
    assert_eq!(paused, [("one", "1"), ("two", "1")]);
    assert_eq!(at.show(boss, "show pools").rows.len(), 1);
}

#[test]
fn kill_client_finds_clients_by_number() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let bob = at.client("one", "bob");
    let server = at.serve();
    at.feed(bob, "select 1");
    let ids = at.show(boss, "show servers");
    let server_id = ids.column("id")[0].to_owned();
    let clients = at.show(boss, "show clients");
    let bob_id = clients.column("id")[0].to_owned();
    let text = at.refusal(boss, &format!("kill_client {server_id}"));
    assert_eq!(text, "client not found");
    at.taken(bob);
    let command = format!("kill_client \" {bob_id}abc\"");
    assert_eq!(at.tag(boss, &command), "KILL_CLIENT");
    let told = ("E".to_owned(), "SFATAL C08P01 Madmin forced disconnect".to_owned());
    assert_eq!(at.taken(bob), [told]);
    assert!(at.core.servers().get(server).is_none(), "it was busy");
    let own = at.show(boss, "show clients").column("id")[0].to_owned();
    at.run(boss, &format!("kill_client {own}"));
    assert!(at.is_closed(boss));
}

#[test]
fn a_disabled_database_takes_no_new_clients() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let old = at.client("one", "bob");
    at.tag(boss, "disable one");
    let new = at.client("one", "bob");
    assert!(at.is_closed(new) && !at.is_closed(old));
    assert_eq!(at.taken(new)[0].1, "SFATAL C08P01 Mdatabase \"one\" is disabled");
    at.tag(boss, "enable one");
    let newer = at.client("one", "bob");
    assert!(!at.is_closed(newer));
}

#[test]
fn commands_make_databases_from_the_star_entry() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.log();
    assert_eq!(at.tag(boss, "disable new"), "DISABLE");
    let log = at.log();
    assert!(log[1].ends_with("registered new auto-database: new"), "{log:?}");
    assert_eq!(at.tag(boss, "enable new"), "ENABLE");
}

#[test]
fn a_database_that_is_spoken_of_is_shown_again() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let is_shown =
        |at: &mut Fixture| at.show(boss, "show databases").column("name").contains(&"new");
    at.tag(boss, "disable new");
    at.core.tick();
    at.pump();
    assert!(!is_shown(&mut at), "nobody uses it");
    at.tag(boss, "enable new");
    assert!(is_shown(&mut at));
}

#[test]
fn reconnect_replaces_servers() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.client("one", "bob");
    at.serve();
    at.tag(boss, "reconnect two");
    assert_eq!(at.show(boss, "show servers").column("close_needed"), ["0"]);
    at.tag(boss, "reconnect one");
    assert_eq!(at.show(boss, "show servers").column("close_needed"), ["1"]);
}

#[test]
fn shutdown_exits_or_waits() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.tag(boss, "shutdown wait_for_clients");
    assert_eq!((at.exit, at.closed_listeners), (None, true));
    assert_eq!(at.show(boss, "show state").column("value"), ["yes", "no", "no"]);
    at.tag(boss, "shutdown wait_for_servers");
    assert_eq!(at.show(boss, "show state").column("value"), ["no", "yes", "no"]);
    at.log();
    at.run(boss, "shutdown");
    assert_eq!((at.exit, at.taken(boss)), (Some(0), vec![]));
    assert_eq!(at.log(), ["Log SHUTDOWN command issued"]);
}

#[test]
fn set_changes_what_may_be_changed() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.tag(boss, "set default_pool_size='0x10'");
    at.tag(boss, "set listen_port=1");
    at.tag(boss, "set query_wait_timeout='2.5'");
    let config = at.show(boss, "show config");
    for (key, value) in
        [("default_pool_size", "16"), ("listen_port", "6432"), ("query_wait_timeout", "2.5")]
    {
        let row = config.rows.iter().find(|row| row[0] == key).unwrap();
        assert_eq!(row[1], value, "{key}");
    }
    let watcher = at.console("watcher");
    at.run(watcher, "set DATESTYLE = iso");
    let reply = at.taken(watcher);
    assert_eq!(reply[0], ("N".into(), "SNOTICE C00000 MSET ignored".into()));
    assert_eq!(reply[1], ("C".into(), "SET".into()));
}
