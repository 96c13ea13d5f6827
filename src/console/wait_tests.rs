//! Tests of what consoles wait for, and of what ends their waiting (admin 4.1).

use super::fixture::{Fixture, START};
use crate::base::Micros;
use crate::core::pause::Signal;
use crate::core::{Addr, ClientId, Decisions, Loss, Origin, Packet, Peer, ServerId, Sink};

/// A fixture with a client of "one" in the middle of a query, its server, and two consoles.
fn busy() -> (Fixture, ServerId, ClientId, ClientId) {
    let mut at = Fixture::new();
    let (boss, other) = (at.console("boss"), at.console("boss"));
    let bob = at.client("one", "bob");
    let server = at.serve();
    at.feed(bob, "select 1");
    at.pump();
    (at, server, boss, other)
}

#[test]
fn wait_close_is_answered_when_no_server_has_to_be_replaced() {
    let (mut at, server, boss, other) = busy();
    assert_eq!(at.tag(boss, "wait_close"), "WAIT_CLOSE", "nothing is to be closed");
    assert_eq!(at.tag(boss, "reconnect"), "RECONNECT");
    assert_eq!(at.tag(boss, "wait_close two"), "WAIT_CLOSE", "two has no servers");
    at.log();
    at.run(boss, "wait_close");
    at.run(other, "wait_close one");
    let lines = ["Log WAIT_CLOSE command issued", "Log WAIT_CLOSE 'one' command issued"];
    assert_eq!(at.log(), lines);
    assert_eq!((at.taken(boss), at.taken(other)), (vec![], vec![]));
    at.ready(server, b'I');
    assert_eq!(at.answered(boss), "WAIT_CLOSE");
    assert_eq!(at.answered(other), "WAIT_CLOSE");
}

#[test]
fn wait_close_refuses_what_is_no_database() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let want = "cannot wait in admin db: pgbouncer";
    assert_eq!(at.refusal(boss, "wait_close pgbouncer"), want);
    assert_eq!(at.tag(boss, "wait_close fresh"), "WAIT_CLOSE", "made from `*`");
    let names = at.show(boss, "show databases");
    assert!(names.column("name").contains(&"fresh"));
}

#[test]
fn everyone_is_answered_with_the_tag_of_its_own_command() {
    let (mut at, server, boss, other) = busy();
    at.tag(boss, "reconnect one");
    at.run(other, "wait_close");
    at.run(boss, "pause");
    at.ready(server, b'I');
    assert_eq!(at.answered(boss), "PAUSE");
    assert_eq!(at.answered(other), "WAIT_CLOSE");
    assert_eq!(at.tag(boss, "resume"), "RESUME");
    // Nothing of the WAIT_CLOSE is left that could answer a later PAUSE.
    let bob = at.client("one", "bob");
    let server = at.serve();
    at.feed(bob, "select 1");
    at.run(boss, "pause");
    assert_eq!(at.taken(boss), []);
    at.ready(server, b'I');
    assert_eq!(at.answered(boss), "PAUSE");
}

#[test]
fn the_end_of_one_wait_is_not_the_end_of_another() {
    let (mut at, _, boss, other) = busy();
    let alice = at.client("two", "alice");
    let server = at.serve();
    at.feed(alice, "select 1");
    at.tag(boss, "reconnect two");
    at.run(other, "wait_close");
    at.run(boss, "pause");
    at.ready(server, b'I');
    assert_eq!(at.answered(other), "WAIT_CLOSE");
    assert_eq!(at.taken(boss), [], "one is still busy");
}

#[test]
fn one_console_may_wait_for_several_things() {
    let (mut at, server, boss, _) = busy();
    at.tag(boss, "reconnect");
    at.run(boss, "wait_close one");
    at.run(boss, "pause one");
    at.run(boss, "wait_close");
    at.ready(server, b'I');
    let reply = at.taken(boss);
    let tags: Vec<&str> = reply.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(tags, ["WAIT_CLOSE", "I", "PAUSE", "I", "WAIT_CLOSE", "I"]);
}

#[test]
fn whatever_ends_a_pause_answers_it() {
    for (command, end) in [
        ("pause", "resume"),
        ("suspend", "resume"),
        ("pause one", "resume one"),
        ("pause one", "kill one"),
    ] {
        let (mut at, _, boss, other) = busy();
        if command == "suspend" {
            // A client that is logging in keeps the suspension from being complete.
            let from = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
            at.core.accepted(from);
        }
        at.run(boss, command);
        assert_eq!(at.taken(boss), [], "{command}");
        let tag = end.split(' ').next().unwrap().to_uppercase();
        assert_eq!(at.tag(other, end), tag);
        let tag = command.split(' ').next().unwrap().to_uppercase();
        assert_eq!(at.answered(boss), tag, "{command}, {end}");
    }
}

#[test]
fn a_signal_that_resumes_answers_too() {
    let (mut at, _, boss, _) = busy();
    at.run(boss, "pause");
    at.core.signalled(Signal::Resume);
    assert_eq!(at.answered(boss), "PAUSE");
}

/// A cancel request with this console's key.
fn cancel(at: &mut Fixture, console: ClientId) {
    let key = at.core.clients().get(console).unwrap().cancel_key();
    let from = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
    let id = at.core.accepted(from);
    let body = [&[4, 210, 22, 46][..], &key.to_be_bytes()].concat();
    let packet = Packet { tag: 0, len: 16, seen: &body, behind: false };
    at.core.client_packet(id, packet, &mut Sink::default());
    at.pump();
}

#[test]
fn a_cancel_request_ends_what_its_console_waits_for() {
    for (command, own) in
        [("pause", "PAUSE"), ("pause one", ""), ("wait_close", ""), ("suspend", "SUSPEND")]
    {
        let (mut at, _, boss, other) = busy();
        at.tag(boss, "reconnect");
        if command == "suspend" {
            let from = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
            at.core.accepted(from);
        }
        at.run(boss, command);
        at.run(other, "wait_close");
        cancel(&mut at, boss);
        if own.is_empty() {
            let reply = at.taken(boss);
            let text = "SERROR C08P01 Mcanceling wait due to cancel request";
            assert_eq!(reply, [("E".into(), text.into()), ("Z".into(), "I".into())], "{command}");
        } else {
            assert_eq!(at.answered(boss), own);
        }
        assert_eq!(at.taken(other), [], "{command}: the other console waits on");
        let state = at.show(boss, "show state").rows.concat();
        assert_eq!(state[1], "yes", "{command}: active");
    }
}

#[test]
fn who_leaves_waits_no_more() {
    let (mut at, server, boss, other) = busy();
    at.run(boss, "pause");
    at.core.lost(Peer::Client(boss), Loss::Receive);
    at.ready(server, b'I');
    let state = at.show(other, "show state").rows.concat().join(" ");
    assert_eq!(state, "active no paused yes suspended no");
    assert_eq!(at.tag(other, "resume"), "RESUME");
}

#[test]
fn the_end_of_the_process_is_told_to_who_waits() {
    let fatal = [("E".to_owned(), "SFATAL C08P01 Mpooler is shutting down".to_owned())];
    let ends: [fn(&mut Fixture, ClientId); 3] = [
        |at, other| at.run(other, "shutdown"),
        |at, _| at.core.signalled(Signal::Quit),
        |at, other| {
            at.run(other, "shutdown wait_for_clients");
            at.core.signalled(Signal::Terminate);
        },
    ];
    for end in ends {
        for command in ["pause", "pause one", "wait_close"] {
            let (mut at, _, boss, other) = busy();
            at.tag(boss, "reconnect");
            at.run(boss, command);
            end(&mut at, other);
            at.pump();
            assert_eq!(at.exit, Some(0));
            let mut reply = at.taken(boss);
            reply.retain(|(kind, _)| kind != "Z");
            assert_eq!(reply, fatal, "{command}");
        }
    }
}

#[test]
fn a_pause_that_is_complete_at_the_end_of_the_process_is_answered() {
    let (mut at, server, boss, other) = busy();
    at.run(boss, "pause one");
    at.tag(other, "shutdown wait_for_servers");
    at.core.lost(Peer::Server(server), Loss::Receive);
    at.core.now = START + Micros::from_secs(1);
    at.core.tick();
    at.pump();
    assert_eq!(at.exit, Some(0));
    assert_eq!(at.answered(boss), "PAUSE");
}

#[test]
fn killing_ones_own_console_closes_it() {
    let (mut at, _, boss, other) = busy();
    let number = at.core.clients().get(boss).unwrap().number();
    at.run(boss, "pause");
    at.run(boss, &format!("kill_client {number}"));
    assert!(at.is_closed(boss));
    let text = "SFATAL C08P01 Madmin forced disconnect";
    assert_eq!(at.taken(boss), [("E".into(), text.into())]);
    assert_eq!(at.tag(other, "resume"), "RESUME");
}

#[test]
fn a_suspension_leaves_no_server_that_has_to_be_replaced() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    for (database, replaced) in [("one", true), ("my-db", false)] {
        at.client(database, "bob");
        at.serve();
        if replaced {
            at.tag(boss, "reconnect one");
        }
    }
    assert_eq!(at.core.servers().len(), 2);
    assert_eq!(at.tag(boss, "suspend"), "SUSPEND");
    assert_eq!(at.show(boss, "show servers").column("database"), ["my-db"]);
}
