//! Consoles that another process goes on with: what they have, and what they wait for.

use super::fixture::Fixture;
use super::messages::*;
use crate::core::{ClientId, Peer, ServerId};
use crate::net::conn::Pending;

/// Another process goes on; who these are there.
fn leave<const N: usize>(at: &mut Fixture, ids: [ClientId; N]) -> (Fixture, [ClientId; N]) {
    let asker = at.console("boss");
    let (to, there) = at.hand_over(asker);
    assert!(there.iter().all(|(old, _)| *old != Peer::Client(asker)), "nobody asks there");
    let ids = ids.map(|id| match there.iter().find(|(old, _)| *old == Peer::Client(id)) {
        Some((_, Peer::Client(new))) => *new,
        other => panic!("{other:?}"),
    });
    (to, ids)
}

/// The only server that has something to do gets it done.
fn done(at: &mut Fixture) {
    let busy = at.core.servers().iter().find(|(_, server)| server.client().is_some());
    let id: ServerId = busy.map(|(id, _)| id).expect("a busy server");
    at.say(id, b'C', b"SELECT 1\0");
    at.ready(id, b'I');
}

#[test]
fn statements_portals_and_errors_stay() {
    let mut at = Fixture::new();
    let (boss, failed) = (at.console("boss"), at.console("watcher"));
    let rows = at.show(boss, "show lists").rows.len();
    let packets = [
        parse("l", "show lists"),
        bind("p", "l"),
        execute_some("p", 2),
        parse("set", "set log_stats = 0"),
        parse("", "show version"),
        bind_as("old", "", &[1]),
        parse("", ""),
        bind("done", "set"),
        execute("done"),
    ];
    let kinds = answer(&mut at, boss, &packets).0;
    assert_eq!(kinds, "12DDs11212C");
    at.throw(failed, &bind("", "nothing"));
    at.taken(failed);
    let (mut to, [boss, failed]) = leave(&mut at, [boss, failed]);
    assert_eq!((to.kinds(boss), to.kinds(failed)), (String::new(), String::new()));
    to.throw(failed, &[parse("", "show version"), sync()].concat());
    assert_eq!(to.kinds(failed), "Z");
    let rest = format!("{}CDC", "D".repeat(rows - 2));
    assert_eq!(answer(&mut to, boss, &[execute("p"), execute("old")]).0, rest);
    let again = "SERROR C55000 Mportal \"done\" cannot be run".to_owned();
    let more = [execute("done"), sync()];
    assert_eq!(answer(&mut to, boss, &more), ("EZ".into(), vec![again]));
    let more = [bind("", "set"), execute(""), bind("x", ""), execute("x"), bind("y", "l")];
    assert_eq!(answer(&mut to, boss, &more).0, "2C2I2");
    let gone = "SERROR C34000 Mportal \"y\" does not exist".to_owned();
    let more = [close("S", "l"), execute("y"), sync()];
    assert_eq!(answer(&mut to, boss, &more), ("3EZ".into(), vec![gone]));
}

#[test]
fn what_a_console_waits_for_comes_about_in_another_process() {
    let (mut at, boss, _) = with_busy_server();
    let ids = [boss, at.console("boss"), at.console("boss")];
    let [_, second, third] = ids;
    at.tag(second, "reconnect one");
    at.run(second, "wait_close");
    at.run(third, "wait_close one");
    at.throw(third, &query("pause one"));
    at.throw(boss, &[query("pause"), whole("show version"), query("show state")].concat());
    assert_eq!(ids.map(|id| at.kinds(id)), ["", "", ""]);
    let (mut to, ids) = leave(&mut at, ids);
    let [boss, second, third] = ids;
    assert_eq!(ids.map(|id| to.kinds(id)), ["", "", ""]);
    let fourth = to.console("boss");
    assert_eq!(to.refusal(fourth, "pause"), "already suspended/paused");
    done(&mut to);
    let tags = |to: &mut Fixture, id| {
        let replies = to.taken(id);
        replies.into_iter().filter(|(kind, _)| kind == "C").map(|(_, tag)| tag).collect::<Vec<_>>()
    };
    assert_eq!(tags(&mut to, boss), ["PAUSE", "SHOW", "SHOW"]);
    assert_eq!(tags(&mut to, second), ["WAIT_CLOSE"]);
    assert_eq!(tags(&mut to, third), ["WAIT_CLOSE", "PAUSE"]);
    assert_eq!(to.tag(boss, "resume"), "RESUME");
    assert_eq!(to.tag(boss, "resume one"), "RESUME");
}

#[test]
fn what_waits_behind_an_execute_is_run_by_the_successor() {
    let (mut at, boss, _) = with_busy_server();
    let packets = [
        command("pause"),
        sync(),
        parse("s", "show version"),
        bind_as("b", "s", &[1]),
        describe("P", "b"),
        describe("S", "s"),
        execute_some("b", 5),
        close("P", "b"),
        close("S", "s"),
        message(b'D', &[b"?"]),
        sync(),
    ];
    at.throw(boss, &packets.concat());
    assert_eq!(at.kinds(boss), "12");
    let (mut to, [boss]) = leave(&mut at, [boss]);
    assert_eq!(to.kinds(boss), "");
    done(&mut to);
    assert_eq!(to.kinds(boss), "CZ12TtTDC33EZ");
}

#[test]
fn what_was_asked_means_the_same_to_the_successor() {
    let answers = |is_left: bool| {
        let (mut at, mut boss, _) = with_busy_server();
        let packets = [
            parse("d", "disable one"),
            parse("c", "show config"),
            bind_as("p", "c", &[1, 0, 0, 1]),
            command("pause"),
            describe("P", "p"),
            execute_some("p", 2),
            bind_as("q", "c", &[0, 1, 1, 0]),
            describe("P", "q"),
            execute_some("q", 3),
            bind("x", "d"),
            execute("x"),
            // A value that nobody has asked for.
            message(b'B', &[b"y\0d\0", &[0, 0, 0, 1, 0, 0, 0, 1, b'x', 0, 0]]),
            sync(),
        ];
        at.throw(boss, &packets.concat());
        at.taken(boss);
        if is_left {
            let (to, [there]) = leave(&mut at, [boss]);
            (at, boss) = (to, there);
        }
        done(&mut at);
        at.raw(boss)
    };
    let here = answers(false);
    let kinds: Vec<u8> = here.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, b"CTDDs2TDDDs2CEZ");
    assert_eq!(answers(true), here);
}

#[test]
fn what_was_commanded_stays_in_force() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    for (command, tag) in [
        ("pause two", "PAUSE"),
        ("disable one", "DISABLE"),
        ("pause fresh", "PAUSE"),
        ("set default_pool_size = 7", "SET default_pool_size=7"),
    ] {
        assert_eq!(at.tag(boss, command), tag);
    }
    let shown = |at: &mut Fixture, id| {
        let table = at.show(id, "show databases");
        let columns = ["name", "paused", "disabled", "pool_size"].map(|name| table.column(name));
        let rows = (0..table.rows.len()).map(|row| columns.each_ref().map(|column| column[row]));
        rows.map(|row| row.join(" ")).collect::<Vec<_>>()
    };
    let before = shown(&mut at, boss);
    let (mut to, [boss]) = leave(&mut at, [boss]);
    assert_eq!(shown(&mut to, boss), before);
    assert!(before.contains(&"fresh 1 0 7".to_owned()), "{before:?}");
    assert_eq!(to.tag(boss, "resume two"), "RESUME");
    assert_eq!(to.tag(boss, "enable one"), "ENABLE");
}

#[test]
fn a_console_that_has_not_had_all_of_its_answers_gets_the_rest() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.process.pending = vec![(Peer::Client(boss), Pending { unsent: 1, ..Pending::default() })];
    assert!(at.core.is_settled());
    at.throw(boss, &[query("show config").repeat(25), whole("show config").repeat(25)].concat());
    assert!(!at.core.is_settled());
    let first = at.kinds(boss).matches('Z').count();
    assert!(first < 25);
    let (mut to, [boss]) = leave(&mut at, [boss]);
    assert_eq!(first + to.kinds(boss).matches('Z').count(), 50);
    assert!(to.core.is_settled());
    assert_eq!(to.tag(boss, "reconnect"), "RECONNECT");
}
