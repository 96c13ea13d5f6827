//! Prepared statements through a core: what the server and the client get for which packets.

use super::face::{ClientId, Decisions, Peer, Run, ServerId, Sink, Verdict};
use super::prepare::{is_statement, name_in};
use super::replies::Request;
use super::run_tests::{packet, Scene, ANSWER, QUERY};
use super::stats::Counter;
use crate::wire::write;
use std::rc::Rc;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write::packet(&mut out, tag, |out| out.extend_from_slice(body));
    out
}

fn parse(name: &str, text: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{text}\0\0\0").as_bytes())
}

fn bind(name: &str) -> Vec<u8> {
    message(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes())
}

const SYNC: &[u8] = b"S\0\0\0\x04";
const READY: &[u8] = b"Z\0\0\0\x05I";

/// What was decided about a packet, and what the two sides get with it.
type Decided = (Verdict, Vec<u8>, Vec<u8>);

fn asks(scene: &mut Scene, client: ClientId, bytes: &[u8], behind: bool) -> Decided {
    let mut sink = Sink::default();
    let mut packet = packet(bytes);
    packet.behind = behind;
    let verdict = scene.core.client_packet(client, packet, &mut sink);
    scene.act();
    (verdict, sink.to_server, sink.to_client)
}

/// The server says this; what the client gets besides.
fn says(scene: &mut Scene, server: ServerId, packets: &[&[u8]]) -> Vec<u8> {
    let mut sink = Sink::default();
    for bytes in packets {
        scene.core.server_packet(server, packet(bytes), &mut sink);
    }
    scene.core.server_drained(server, &mut sink);
    scene.act();
    sink.to_client
}

/// A client that has prepared `s` on the only server.
fn prepared(settings: &str) -> (Scene, ClientId, ServerId) {
    let mut scene = Scene::new(settings);
    let (client, server) = (scene.client("u"), scene.server());
    let want = (Verdict::Drop, parse("PGBOUNCER_1", "select 1"), vec![]);
    assert_eq!(asks(&mut scene, client, &parse("s", "select 1"), true), want);
    assert_eq!(asks(&mut scene, client, SYNC, false).0, Verdict::Pass);
    assert_eq!(says(&mut scene, server, &[b"1\0\0\0\x04", READY]), b"");
    assert_eq!(scene.core.server_of(client), None);
    (scene, client, server)
}

#[test]
fn a_run_of_requests_gets_the_servers_names() {
    let (mut scene, client, server) = prepared("");
    let describe = |name: &str| message(b'D', format!("S{name}\0").as_bytes());
    let run = |name: &str| [&bind(name), &describe(name)[..], SYNC].concat();
    let (sent, mut sink) = (run("s"), Sink::default());
    assert_eq!(scene.core.client_run(client, &sent, &mut sink), Run::Replace(sent.len()));
    assert_eq!(sink.to_server, run("PGBOUNCER_1"));
    says(&mut scene, server, &[b"2\0\0\0\x04", b"n\0\0\0\x04", READY]);
    let pool = scene.core.clients().get(client).unwrap().pool().unwrap();
    let total = scene.core.pool(pool).unwrap().stats().total;
    assert_eq!(
        [Counter::ClientParses, Counter::ServerParses, Counter::Binds].map(|at| total.get(at)),
        [1, 1, 1]
    );
    // Parameters stream behind the name.
    let large = message(b'B', &[b"\0s\0", &[7; 10_000][..]].concat());
    assert_eq!(scene.core.client_run(client, &large, &mut Sink::default()), Run::Pass(0));
    let mut seen = packet(&large);
    seen.seen = &seen.seen[..20];
    let mut sink = Sink::default();
    let verdict = scene.core.client_packet(client, seen, &mut sink);
    assert_eq!(verdict, Verdict::Replace { skip: 8 });
    assert_eq!(sink.to_server, b"B\0\0\x27\x21\0PGBOUNCER_1\0");
}

#[test]
fn names_in_pieces_are_waited_for() {
    let (mut scene, client, _) = prepared("");
    let large = message(b'B', &[&[b'p'; 300][..], b"\0s\0", &[7; 10_000][..]].concat());
    for (here, verdict) in [
        (0, Verdict::Need(64)),
        (64, Verdict::Need(128)),
        (301, Verdict::Need(602)),
        (303, Verdict::Replace { skip: 308 }),
    ] {
        let mut seen = packet(&large);
        seen.seen = &seen.seen[..here];
        assert_eq!(scene.core.client_packet(client, seen, &mut Sink::default()), verdict);
    }
}

#[test]
fn what_the_pooler_answers_takes_no_server_for_long() {
    let (mut scene, client, server) = prepared("");
    let fake = (Verdict::Drop, vec![], b"1\0\0\0\x04".to_vec());
    assert_eq!(asks(&mut scene, client, &parse("t", "select 1"), false), fake);
    assert_eq!(scene.core.server_of(client), None);
    assert_eq!(asks(&mut scene, client, &parse("u", "select 1"), true), fake);
    assert_eq!(scene.core.server_of(client), Some(server));
    let flush = asks(&mut scene, client, b"H\0\0\0\x04", false);
    assert_eq!((flush.0, scene.core.server_of(client)), (Verdict::Drop, None));
    let close = message(b'C', b"Ss\0");
    let want = (Verdict::Drop, vec![], b"3\0\0\0\x04".to_vec());
    assert_eq!(asks(&mut scene, client, &close, false), want);
    assert_eq!(scene.core.server_of(client), None);
}

#[test]
fn statements_go_with_those_who_have_them() {
    let (mut scene, client, server) = prepared("");
    assert_eq!(scene.core.statements().len(), 1);
    asks(&mut scene, client, b"X\0\0\0\x04", false);
    assert_eq!(scene.core.statements().len(), 1, "the server has it");
    scene.core.lost(Peer::Server(server), super::face::Loss::Receive);
    scene.act();
    assert!(scene.core.statements().is_empty());
}

#[test]
fn a_bind_of_nothing_is_preceded_by_a_close() {
    let (mut scene, client, server) = prepared("");
    let close = message(b'C', b"S\0");
    assert_eq!(asks(&mut scene, client, &bind(""), true), (Verdict::Pass, close, vec![]));
    asks(&mut scene, client, SYNC, false);
    let error = b"E\0\0\0\x05\0";
    says(&mut scene, server, &[b"3\0\0\0\x04", error, READY]);
    let unnamed = parse("", "select 2");
    assert_eq!(asks(&mut scene, client, &unnamed, true), (Verdict::Pass, vec![], vec![]));
    assert_eq!(asks(&mut scene, client, &bind(""), true), (Verdict::Pass, vec![], vec![]));
    asks(&mut scene, client, SYNC, true);
    let again = asks(&mut scene, client, &bind(""), true);
    assert_eq!(again, (Verdict::Pass, unnamed, vec![]), "nobody knows yet");
}

#[test]
fn a_long_query_is_not_collected_because_of_its_beginning() {
    let (mut scene, client, _) = prepared("");
    let text = [b"DEALLOCATE s -- ".as_slice(), &[b'x'; 10_000], b"\0"].concat();
    let long = message(b'Q', &text);
    for here in [0, 5, 100] {
        let mut seen = packet(&long);
        seen.seen = &seen.seen[..here];
        let verdict = scene.core.client_packet(client, seen, &mut Sink::default());
        assert_eq!(verdict, Verdict::Pass, "{here}");
    }
    let short = message(b'Q', b"DEALLOCATE s\0");
    let (mut scene, client, _) = prepared("");
    let mut seen = packet(&short);
    seen.seen = &[];
    assert_eq!(scene.core.client_packet(client, seen, &mut Sink::default()), Verdict::Whole);
}

#[test]
fn no_end_of_answers_is_owed() {
    let (mut scene, client, _) = prepared("");
    asks(&mut scene, client, &bind("s"), true);
    let close = message(b'C', b"Snothing\0");
    let mut owed = 0;
    while asks(&mut scene, client, &close, true).1.is_empty() {
        owed += 1;
        assert!(owed < 10_000);
    }
    let to_server = asks(&mut scene, client, &close, true).1;
    assert_eq!(to_server, message(b'C', b"SPGBOUNCER_0\0"));
    let to_server = asks(&mut scene, client, &parse("t", "select 1"), true).1;
    let again = [message(b'C', b"SPGBOUNCER_1\0"), parse("PGBOUNCER_1", "select 1")].concat();
    assert_eq!(to_server, again);
}

#[test]
fn what_is_said_while_nobody_listens_makes_names_stale() {
    let (mut scene, client, server) = prepared("");
    asks(&mut scene, client, &parse("", "select 2"), true);
    asks(&mut scene, client, SYNC, false);
    says(&mut scene, server, &[b"1\0\0\0\x04", READY]);
    Rc::make_mut(&mut scene.core.settings).max_prepared_statements = 0;
    for (sent, back) in [(parse("", "x"), b'1'), (message(b'C', b"Ss\0"), b'3')] {
        assert_eq!(scene.core.client_run(client, &sent, &mut Sink::default()), Run::Pass(0));
        let mut seen = packet(&sent);
        seen.seen = &[];
        let verdict = scene.core.client_packet(client, seen, &mut Sink::default());
        assert!(matches!(verdict, Verdict::Need(_)));
        assert_eq!(asks(&mut scene, client, &sent, true), (Verdict::Pass, vec![], vec![]));
        asks(&mut scene, client, SYNC, false);
        says(&mut scene, server, &[&[back, 0, 0, 0, 4], READY]);
    }
    Rc::make_mut(&mut scene.core.settings).max_prepared_statements = 200;
    assert_eq!(asks(&mut scene, client, &bind(""), true).1, message(b'C', b"S\0"));
    assert_eq!(asks(&mut scene, client, &bind("s"), true).0, Verdict::Stop);
}

#[test]
fn nothing_is_trusted_behind_a_discard() {
    let again = [message(b'C', b"SPGBOUNCER_1\0"), parse("PGBOUNCER_1", "select 1")].concat();
    let discard = message(b'Q', b" Discard All;\0");
    // The long way and the short way.
    for is_long in [true, false] {
        let (mut scene, client, server) = prepared("");
        let other = scene.client("u");
        if is_long {
            assert_eq!(asks(&mut scene, other, &discard, true).0, Verdict::Pass);
        } else {
            let run = scene.core.client_run(other, &discard, &mut Sink::default());
            assert_eq!(run, Run::Pass(discard.len()));
        }
        let parsed = asks(&mut scene, other, &parse("t", "select 1"), true);
        assert_eq!(parsed, (Verdict::Drop, again.clone(), vec![]));
        asks(&mut scene, other, SYNC, false);
        says(&mut scene, server, &[b"C\0\0\0\x10DISCARD ALL\0", READY]);
        says(&mut scene, server, &[b"3\0\0\0\x04", b"1\0\0\0\x04", READY]);
        assert_eq!(scene.core.servers().get(server).unwrap().prepared(), 1);
        let fake = (Verdict::Drop, vec![], b"1\0\0\0\x04".to_vec());
        assert_eq!(asks(&mut scene, client, &parse("u", "select 1"), false), fake);
        assert_eq!(scene.core.clients().get(other).unwrap().prepared(), 1);
    }
}

#[test]
fn a_close_by_somebody_else_ends_the_servers_unnamed_statement() {
    let (mut scene, client, server) = prepared("");
    asks(&mut scene, client, &parse("", "select 2"), true);
    asks(&mut scene, client, SYNC, false);
    says(&mut scene, server, &[b"1\0\0\0\x04", READY]);
    // It takes the server with this very packet.
    let other = scene.client("u");
    let close = message(b'C', b"S\0");
    assert_eq!(asks(&mut scene, other, &close, true).0, Verdict::Pass);
    asks(&mut scene, other, SYNC, false);
    says(&mut scene, server, &[b"3\0\0\0\x04", READY]);
    let repeated = parse("", "select 2");
    assert_eq!(asks(&mut scene, client, &bind(""), true).1, repeated);
}

/// A client's query that waits for the only server is canceled; then the server is free again.
fn canceled(scene: &mut Scene, client: ClientId, server: ServerId, sent: &[u8]) {
    let holder = scene.client("u");
    assert_eq!(asks(scene, holder, QUERY, false).0, Verdict::Pass);
    assert_eq!(asks(scene, client, sent, true).0, Verdict::Wait);
    assert!(scene.core.revoke(client));
    let (verdict, to_server, mut told) = asks(scene, client, sent, true);
    assert_eq!((verdict, to_server), (Verdict::Drop, vec![]));
    if sent[0] != b'Q' {
        told.extend(asks(scene, client, SYNC, false).2);
    }
    assert!(told.starts_with(b"E") && told.windows(5).any(|code| code == b"57014"));
    assert!(told.ends_with(READY));
    says(scene, server, &[&ANSWER[..6], READY]);
    assert_eq!(scene.core.client_of(server), None);
}

#[test]
fn errors_about_names_are_the_end_unless_a_batch_was_ignored() {
    // What it was: a name that is not known, or one that is in use.
    for (sent, to_server) in [
        (bind("t"), bind("PGBOUNCER_0")),
        (message(b'D', b"St\0"), message(b'D', b"SPGBOUNCER_0\0")),
        (parse("s", "select 3"), parse("PGBOUNCER_1", "select 1")),
    ] {
        let (mut scene, client, server) = prepared("");
        assert_eq!(asks(&mut scene, client, &sent, true).0, Verdict::Stop);
        assert!(scene.core.clients().get(client).is_none());
        let client = scene.client("u");
        assert_eq!(asks(&mut scene, client, &parse("s", "select 1"), true).0, Verdict::Drop);
        assert_eq!(asks(&mut scene, client, b"H\0\0\0\x04", false).0, Verdict::Drop);
        canceled(&mut scene, client, server, &parse("t", "select 2"));
        let mut sink = Sink::default();
        assert_eq!(scene.core.client_run(client, &sent, &mut sink), Run::Pass(0));
        let (verdict, said, told) = asks(&mut scene, client, &sent, true);
        let said = match verdict {
            Verdict::Replace { skip } => [&said, &sent[skip as usize..]].concat(),
            verdict => {
                assert_eq!(verdict, Verdict::Drop);
                said
            }
        };
        assert_eq!((said, told), (to_server, vec![]));
        asks(&mut scene, client, SYNC, false);
        says(&mut scene, server, &[b"E\0\0\0\x05\0", READY]);
        assert_eq!(scene.core.clients().get(client).unwrap().prepared(), 1);
        let run = [&bind("s"), SYNC].concat();
        let mut sink = Sink::default();
        assert_eq!(scene.core.client_run(client, &run, &mut sink), Run::Replace(run.len()));
        assert_eq!(sink.to_server, [&bind("PGBOUNCER_1"), SYNC].concat());
    }
}

#[test]
fn what_a_canceled_request_would_have_replaced_is_gone() {
    let close = message(b'C', b"S\0");
    for (sent, want) in [
        (parse("", "select 3"), close.clone()),
        (close.clone(), close.clone()),
        (QUERY.to_vec(), close),
        (parse("t", "select 3"), parse("", "select 2")),
        (bind("s"), parse("", "select 2")),
    ] {
        let (mut scene, client, server) = prepared("");
        asks(&mut scene, client, &parse("", "select 2"), true);
        asks(&mut scene, client, SYNC, false);
        says(&mut scene, server, &[b"1\0\0\0\x04", READY]);
        canceled(&mut scene, client, server, &sent);
        // The server has no unnamed statement, as it has run a simple query.
        assert_eq!(asks(&mut scene, client, &bind(""), true).1, want, "{sent:?}");
    }
}

#[test]
fn unnamed_statements_of_before_are_their_clients_also_when_nobody_looks_after_them() {
    let describe = message(b'D', b"S\0");
    for sent in [bind(""), describe] {
        let (mut scene, client, server) = prepared("");
        let own = parse("", "select 2");
        asks(&mut scene, client, &own, true);
        asks(&mut scene, client, SYNC, false);
        says(&mut scene, server, &[b"1\0\0\0\x04", READY]);
        Rc::make_mut(&mut scene.core.settings).max_prepared_statements = 0;
        // The server has it, as far as is known.
        assert_eq!(asks(&mut scene, client, &sent, true), (Verdict::Pass, vec![], vec![]));
        asks(&mut scene, client, SYNC, false);
        let error = b"E\0\0\0\x05\0";
        says(&mut scene, server, &[error, READY]);
        let other = scene.client("u");
        asks(&mut scene, other, &parse("", "select 3"), true);
        asks(&mut scene, other, SYNC, false);
        says(&mut scene, server, &[b"1\0\0\0\x04", READY]);
        // What is not about it passes, as does whatever a client without one says.
        let portal = message(b'D', b"P\0");
        for (who, sent) in [(client, &portal), (client, &bind("s")), (other, &sent)] {
            assert_eq!(asks(&mut scene, who, sent, true), (Verdict::Pass, vec![], vec![]));
            asks(&mut scene, who, SYNC, false);
            says(&mut scene, server, &[error, READY]);
        }
        // Less than all of it shows which statement it is about.
        let mut seen = packet(&sent);
        seen.seen = &[];
        let verdict = scene.core.client_packet(client, seen, &mut Sink::default());
        assert!(matches!(verdict, Verdict::Need(_)));
        assert_eq!(asks(&mut scene, client, &sent, true), (Verdict::Pass, own, vec![]));
    }
}

#[test]
fn names_are_found_in_packets() {
    use Request::{Bind, Close, Describe, Parse};
    for (request, body, want) in [
        (Parse, &b""[..], None),
        (Parse, b"abc", None),
        (Parse, b"abc\0select", Some(0..3)),
        (Parse, b"\0select", Some(0..0)),
        (Bind, b"por", None),
        (Bind, b"por\0", None),
        (Bind, b"por\0s", None),
        (Bind, b"por\0st\0", Some(4..6)),
        (Bind, b"\0\0", Some(1..1)),
        (Describe, b"S", None),
        (Describe, b"Ss\0", Some(1..2)),
        (Close, b"S\0", Some(1..1)),
        (Close, b"Pp\0", Some(0..0)),
        (Describe, b"P", Some(0..0)),
    ] {
        assert_eq!(name_in(request, body), want, "{request:?} {body:?}");
    }
}

#[test]
fn statements_have_as_many_types_as_they_say() {
    for (key, want) in [
        (&b"select 1\0\0\0"[..], true),
        (b"\0\0\x01\0\0\0\x17", true),
        (b"\0\0\x01\0\0\0", false),
        (b"\0\0", false),
        (b"select 1", false),
    ] {
        assert_eq!(is_statement(key), want, "{key:?}");
    }
}
