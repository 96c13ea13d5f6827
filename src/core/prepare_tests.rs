//! Prepared statements through a core: what the server and the client get for which packets.

use super::face::{ClientId, Decisions, Peer, Run, ServerId, Sink, Verdict};
use super::run_tests::{packet, Scene};
use super::stats::Counter;
use crate::wire::write;

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
