//! Tests of commands whose answer comes later, and of what is kept meanwhile.

use super::fixture::Fixture;
use super::messages::*;
use super::reload_done;
use crate::core::{ClientId, Peer};
use crate::net::conn::Pending;
use crate::wire::write::TERMINATE;

/// Has the server become free.
fn done(at: &mut Fixture, server: crate::core::ServerId) {
    at.say(server, b'C', b"SELECT 1\0");
    at.ready(server, b'I');
}

/// Command tags among what was sent to a client, and the types of everything.
fn tags(at: &mut Fixture, id: ClientId) -> (String, Vec<String>) {
    let replies = at.taken(id);
    let tags = replies.iter().filter(|(kind, _)| kind == "C").map(|(_, tag)| tag.clone());
    (replies.iter().map(|(kind, _)| &**kind).collect(), tags.collect())
}

#[test]
fn what_is_behind_an_execute_waits_for_its_answer() {
    let (mut at, boss, server) = with_busy_server();
    at.throw(boss, &[whole("pause"), whole("show version"), query("show state")].concat());
    assert_eq!(at.kinds(boss), "12n");
    at.throw(boss, &[parse("more", "show lists"), sync()].concat());
    assert_eq!(at.kinds(boss), "");
    done(&mut at, server);
    assert_eq!(tags(&mut at, boss).0, "CZ12TDCZTDDDCZ1Z");
    assert_eq!(at.tag(boss, "resume"), "RESUME");
}

#[test]
fn a_simple_query_that_waits_lets_simple_ones_pass_and_nothing_else() {
    let (mut at, boss, server) = with_busy_server();
    at.throw(boss, &[query("pause"), query("show version")].concat());
    assert_eq!(at.kinds(boss), "TDCZ");
    at.throw(boss, &[sync(), query("show version")].concat());
    assert_eq!(at.kinds(boss), "", "what follows the Sync has to wait, too");
    done(&mut at, server);
    assert_eq!(tags(&mut at, boss).0, "CZZTDCZ");
}

#[test]
fn every_wait_has_an_answer_of_its_own() {
    let (mut at, boss, server) = with_busy_server();
    let alice = at.client("two", "alice");
    let other = at.serve();
    at.feed(alice, "select 1");
    at.throw(boss, &[query("pause one"), query("pause two"), query("show version")].concat());
    assert_eq!(at.kinds(boss), "TDCZ");
    at.throw(boss, &[whole("suspend"), whole("resume one"), whole("pause two")].concat());
    at.throw(boss, &query("resume two"));
    assert_eq!(at.kinds(boss), "");
    done(&mut at, server);
    assert_eq!(at.kinds(boss), "", "PAUSE db waits for all databases");
    done(&mut at, other);
    let (kinds, tags) = tags(&mut at, boss);
    assert_eq!(kinds, "CZCZ12nEZ12nCZ12nCZCZ");
    assert_eq!(tags, ["PAUSE", "PAUSE", "RESUME", "PAUSE", "RESUME"]);
}

#[test]
fn the_end_of_a_pause_ends_the_wait() {
    let (mut at, boss, _) = with_busy_server();
    let other = at.console("boss");
    at.throw(boss, &[whole("pause"), whole("resume")].concat());
    assert_eq!(at.kinds(boss), "12n");
    assert_eq!(answer(&mut at, other, &[whole("resume")]).0, "12nCZ");
    let (kinds, tags) = tags(&mut at, boss);
    assert_eq!((&*kinds, &*tags), ("CZ12nEZ", &["PAUSE".to_owned()][..]));
}

#[test]
fn a_database_without_servers_is_paused_at_once() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.throw(boss, &[whole("pause one"), query("pause two"), whole("resume two")].concat());
    assert_eq!(at.kinds(boss), "12nCZCZ12nCZ");
}

#[test]
fn suspend_is_answered_when_it_is_complete() {
    let (mut at, boss, server) = with_busy_server();
    at.throw(boss, &[whole("suspend"), whole("resume")].concat());
    let (kinds, tags) = tags(&mut at, boss);
    assert_eq!((&*kinds, &*tags), ("12nCZ12nCZ", &["SUSPEND".to_owned(), "RESUME".into()][..]));
    done(&mut at, server);
}

#[test]
fn nothing_passes_a_reload() {
    for reload in [query("reload"), whole("reload")] {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        at.throw(boss, &[reload.clone(), query("show version"), whole("show version")].concat());
        at.bytes(boss);
        assert_eq!((at.reloads.take(), at.kinds(boss)), (Some(boss), String::new()));
        reload_done(&mut at.core, boss, true);
        at.pump();
        assert_eq!(tags(&mut at, boss).0, "CZTDCZ12TDCZ");
        at.throw(boss, &[reload.clone(), query("show version")].concat());
        at.bytes(boss);
        reload_done(&mut at.core, boss, false);
        at.pump();
        let replies = at.taken(boss);
        let text = "SERROR CF0000 MRELOAD failed, see logs for additional details";
        assert_eq!(replies[0], ("E".into(), text.into()));
        let kinds: String = replies.iter().map(|(kind, _)| &**kind).collect();
        assert_eq!(kinds, "EZTDCZ");
    }
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.throw(boss, &[command("reload"), command("pause"), query("pause"), sync()].concat());
    reload_done(&mut at.core, boss, false);
    at.pump();
    assert_eq!(at.kinds(boss), "12EZ", "nothing is done before Sync");
    assert_eq!(at.show(boss, "show state").column("value"), ["yes", "no", "no"]);
}

#[test]
fn a_driver_that_leaves_is_noticed_at_once_unless_it_wants_more_to_be_done() {
    for packets in [whole("pause"), command("pause"), query("pause")] {
        let (mut at, boss, server) = with_busy_server();
        at.throw(boss, &[packets, TERMINATE.to_vec()].concat());
        assert!(at.is_closed(boss));
        done(&mut at, server);
    }
    for more in [query("disable one"), command("disable one")] {
        let (mut at, boss, server) = with_busy_server();
        at.throw(boss, &[whole("pause"), more, TERMINATE.to_vec()].concat());
        assert!(!at.is_closed(boss));
        done(&mut at, server);
        assert!(at.is_closed(boss));
        let (_, one) = at.core.databases().find(|(_, one)| &**one.name() == "one").unwrap();
        assert!(one.is_disabled());
    }
    let mut at = Fixture::new();
    let boss = at.console("boss");
    at.throw(boss, &[whole("show version"), TERMINATE.to_vec()].concat());
    assert_eq!((&*at.kinds(boss), at.is_closed(boss)), ("12TDCZ", true));
}

#[test]
fn a_console_that_is_gone_is_not_answered() {
    let (mut at, boss, server) = with_busy_server();
    at.throw(boss, &[whole("pause"), whole("show version")].concat());
    at.bytes(boss);
    at.lose(boss);
    done(&mut at, server);
    assert_eq!(at.bytes(boss), b"");
    let other = at.console("boss");
    assert_eq!(at.show(other, "show clients").column("database"), ["one", "pgbouncer"]);
    at.throw(other, &[whole("suspend"), TERMINATE.to_vec()].concat());
    assert!(at.is_closed(other));
}

#[test]
fn what_is_kept_has_a_bound() {
    let (mut at, boss, server) = with_busy_server();
    let many = query("show version").repeat(1000);
    at.throw(boss, &many);
    assert_eq!(at.kinds(boss), "TDCZ".repeat(1000));
    at.throw(boss, &[command("pause"), many.clone(), sync()].concat());
    assert!(at.is_unread(boss), "the socket keeps the rest");
    at.throw(boss, &[query("show state"), TERMINATE.to_vec()].concat());
    at.bytes(boss);
    done(&mut at, server);
    let want = ["C", &"TDCZ".repeat(1000), "ZTDDDCZ"].concat();
    assert_eq!(at.kinds(boss), want);
    assert!(at.is_closed(boss));
}

#[test]
fn long_answers_come_in_shares_and_only_to_who_takes_them() {
    let describe = [parse("c", "show config"), describe("S", "c").repeat(25)].concat();
    for (packets, kind, want) in [
        (query("show config").repeat(25), 'Z', 25),
        (whole("show config").repeat(6), 'Z', 6),
        ([describe, sync()].concat(), 'T', 25),
    ] {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        let count = |at: &mut Fixture| at.kinds(boss).matches(kind).count();
        at.process.pending =
            vec![(Peer::Client(boss), Pending { unsent: 1, ..Pending::default() })];
        at.throw(boss, &packets);
        let first = count(&mut at);
        assert!(first > 0 && first <= 10, "{first}");
        at.pump();
        assert_eq!(count(&mut at), 0);
        let other = at.console("boss");
        assert_eq!(at.tag(other, "reconnect"), "RECONNECT");
        at.process.pending.clear();
        at.pump();
        assert_eq!(first + count(&mut at), want);
        at.process.pending =
            vec![(Peer::Client(boss), Pending { unsent: 1, ..Pending::default() })];
        at.throw(boss, &query("show config").repeat(25));
        at.lose(boss);
        at.process.pending.clear();
        at.pump();
        assert!(!at.core.has_left(|_| true));
    }
}

#[test]
fn bad_packets_wait_for_their_turn() {
    for (packet, kinds, text) in [
        (message(b'y', &[]), "C", "unknown pkt"),
        (message(b'F', &[]), "CEZ", "bad packet"),
        (message(b'Q', &[b"no end"]), "C", "incomplete query"),
        (message(b'P', &[&[b'x'; 65_536]]), "C", "failure"),
        (message(b'Q', &[&[b'x'; 65_536]]), "C", "failure"),
    ] {
        let (mut at, boss, server) = with_busy_server();
        at.throw(boss, &[command("pause"), packet, query("show version")].concat());
        assert!(!at.is_closed(boss));
        at.bytes(boss);
        done(&mut at, server);
        let replies = at.taken(boss);
        let shown: String = replies.iter().map(|(kind, _)| &**kind).collect();
        assert_eq!(shown, format!("{kinds}E"));
        assert_eq!(replies.last().unwrap().1, format!("SFATAL C08P01 M{text}"));
        assert!(at.is_closed(boss));
    }
}

#[test]
fn statements_and_portals_are_counted() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let names: Vec<_> = (1..999).map(|n| parse(&format!("s{n}"), "show version")).collect();
    assert_eq!(answer(&mut at, boss, &names).0, "1".repeat(998));
    let rest = [parse("", "show version"), bind("p", "s1"), bind("", ""), bind("", ""), sync()];
    assert_eq!(answer(&mut at, boss, &rest).0, "1222Z");
    let full = "SERROR C53400 Mtoo many prepared statements and portals".to_owned();
    let more = [bind("p", "s1"), bind("q", "s1"), sync()];
    assert_eq!(answer(&mut at, boss, &more), ("2EZ".into(), vec![full.clone()]));
    let more = [parse("s999", "show version"), parse("t", "show version"), sync()];
    assert_eq!(answer(&mut at, boss, &more), ("1EZ".into(), vec![full]));
    let rest = [close("S", "s1"), parse("t", "show version"), sync()];
    assert_eq!(answer(&mut at, boss, &rest).0, "31Z");
}

#[test]
fn a_console_may_end_itself() {
    let mut at = Fixture::new();
    let boss = at.console("boss");
    let own = at.show(boss, "show clients").column("id")[0].to_owned();
    at.throw(boss, &[whole(&format!("kill_client {own}")), query("pause")].concat());
    assert!(at.is_closed(boss));
    let told = ("E".to_owned(), "SFATAL C08P01 Madmin forced disconnect".to_owned());
    assert_eq!(at.taken(boss).last(), Some(&told));
    let other = at.console("boss");
    at.throw(other, &[command("shutdown"), sync()].concat());
    assert_eq!((at.exit, at.kinds(other)), (Some(0), "12".into()));
}
