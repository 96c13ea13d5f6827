//! Replication clients and servers of a core, driven by packets.

use super::face::{Addr, ClientId, Decisions, Loss, Origin, Peer, Run, ServerId, Sink, Verdict};
use super::replication::Replication;
use super::run_tests::{packet, Scene, ANSWER, QUERY};
use super::server::ServerState;
use crate::wire::write;

const REFUSAL: &[u8] = b"E\0\0\0\x18SFATAL\0C28000\0Mno\0\0";

impl Scene {
    /// A replication client that has logged in, or waits for its welcome.
    fn replicator(&mut self) -> ClientId {
        let id = self.beginner_who_says(&[
            (b"user", b"u"),
            (b"application_name", b"a"),
            (b"options", b"-c any=thing --at=all x"),
            (b"replication", b"database"),
            (b"database", b"d"),
            (b"datestyle", b"ISO"),
        ]);
        self.told(id, b"p\0\0\0\x06p\0");
        id
    }

    fn connected(&mut self) -> ServerId {
        let id = self.connects.pop().unwrap();
        self.core.connected(id, Addr::Unknown, Addr::Unknown);
        self.act();
        id
    }

    fn pass(&mut self) {
        self.core.turn_end();
        self.act();
    }

    fn replication(&self, id: ServerId) -> Replication {
        self.core.servers().get(id).unwrap().replication()
    }
}

#[test]
fn servers_are_told_whom_they_are_for_in_the_contracts_order() {
    let mut scene = Scene::new("");
    scene.replicator();
    let server = scene.connected();
    let mut want = Vec::new();
    let pairs: [(&[u8], &[u8]); 6] = [
        (b"database", b"d"),
        (b"replication", b"database"),
        (b"DateStyle", b"ISO"),
        (b"application_name", b"a"),
        (b"options", b"-c any=thing --at=all x"),
        (b"user", b"u"),
    ];
    write::startup(&mut want, pairs.into_iter());
    assert_eq!(scene.sent, [(Peer::Server(server), want)]);
    assert_eq!(scene.replication(server), Replication::Logical);
}

#[test]
fn the_head_of_the_queue_decides_what_a_server_is_for() {
    let mut scene = Scene::new("");
    let usual = scene.client("u");
    let replicator = scene.replicator();
    let server = scene.server();
    assert_eq!(scene.replication(server), Replication::None);
    scene.pass();
    // Both have been welcomed; the replication client passes by the idle server, which makes room.
    assert_eq!(scene.core.client_run(replicator, QUERY, &mut Sink::default()), Run::Pass(0));
    assert_eq!(scene.told(replicator, QUERY), Verdict::Wait);
    assert_eq!((&scene.closed[..], scene.connects.len()), (&[Peer::Server(server)][..], 0));
    assert_eq!(scene.core.client_run(usual, QUERY, &mut Sink::default()), Run::Wait);
    scene.pass();
    assert_eq!(scene.connects.len(), 1);
    let own = scene.server();
    assert_eq!(scene.replication(own), Replication::Logical);
    assert_eq!(scene.core.server_of(replicator), Some(own));
    assert_eq!(scene.core.servers().get(own).unwrap().state(), ServerState::Active);
    // It is full, and what the replication client leaves is for nobody.
    assert_eq!(
        scene.core.client_run(replicator, QUERY, &mut Sink::default()),
        Run::Pass(QUERY.len())
    );
    assert_eq!(scene.core.server_run(own, ANSWER), ANSWER.len());
    scene.core.server_drained(own, &mut Sink::default());
    scene.pass();
    assert_eq!(scene.core.server_of(replicator), Some(own));
    assert!(scene.connects.is_empty());
    scene.core.lost(Peer::Client(replicator), Loss::Receive);
    scene.act();
    assert_eq!(scene.closed[1..], [Peer::Client(replicator), Peer::Server(own)]);
    scene.pass();
    let next = scene.server();
    assert_eq!(scene.replication(next), Replication::None);
}

#[test]
fn welcome_from_an_own_server_is_for_one_client() {
    let mut scene = Scene::new("");
    let replicator = scene.replicator();
    let server = scene.connected();
    let mut sink = Sink::default();
    for bytes in [&b"R\0\0\0\x08\0\0\0\0"[..], b"S\0\0\0\x11TimeZone\0GMT\0", b"Z\0\0\0\x05I"] {
        assert_eq!(scene.core.server_packet(server, packet(bytes), &mut sink), Verdict::Drop);
    }
    scene.act();
    assert!(sink.to_client.starts_with(b"R") && sink.to_client.ends_with(b"Z\0\0\0\x05I"));
    assert_eq!(scene.core.server_of(replicator), Some(server));
    // Others need a server, for which there is no room.
    scene.client("u");
    scene.pass();
    assert!(scene.connects.is_empty());
    assert!(scene.core.startup_options.contains_key(&replicator));
    scene.told(replicator, b"X\0\0\0\x04");
    assert!(scene.core.startup_options.is_empty());
    scene.pass();
    assert_eq!(scene.connects.len(), 1);
}

#[test]
fn refusal_of_a_replication_server_reaches_its_client_only() {
    let mut scene = Scene::new("");
    let replicator = scene.replicator();
    let usual = scene.client("u");
    let server = scene.connected();
    let verdict = scene.core.server_packet(server, packet(REFUSAL), &mut Sink::default());
    assert_eq!(verdict, Verdict::Stop);
    scene.act();
    assert_eq!(scene.closed, [Peer::Server(server), Peer::Client(replicator)]);
    scene.pass();
    let next = scene.server();
    assert_eq!(scene.replication(next), Replication::None);
    assert_eq!(scene.core.client_run(usual, QUERY, &mut Sink::default()), Run::Pass(QUERY.len()));
}

#[test]
fn replication_client_outlives_a_login_that_we_end() {
    for reconnect in [true, false] {
        let mut scene = Scene::new("");
        let replicator = scene.replicator();
        let server = scene.connected();
        if reconnect {
            scene.core.reconnect(None);
        } else {
            scene.core.pause_all(None);
        }
        scene.pass();
        scene.core.resume_all();
        scene.pass();
        assert_eq!(scene.closed, [Peer::Server(server)]);
        let next = scene.server();
        assert_eq!(scene.core.server_of(replicator), Some(next));
    }
}

#[test]
fn client_that_goes_while_its_server_logs_in_takes_it_along() {
    let mut scene = Scene::new("");
    let replicator = scene.replicator();
    let server = scene.connected();
    scene.core.lost(Peer::Client(replicator), Loss::Receive);
    scene.act();
    assert_eq!(scene.closed, [Peer::Client(replicator), Peer::Server(server)]);
    assert!(scene.core.servers().is_empty());
    // That says nothing about the server.
    scene.client("u");
    assert_eq!(scene.connects.len(), 1);
}

#[test]
fn request_that_is_canceled_while_its_server_logs_in_ends_that() {
    let mut scene = Scene::new("");
    scene.client("u");
    scene.server();
    scene.pass();
    let replicator = scene.replicator();
    assert_eq!(scene.told(replicator, QUERY), Verdict::Wait);
    scene.pass();
    let server = scene.connected();
    assert_eq!(scene.core.server_of(replicator), Some(server));
    let key = scene.core.clients().get(replicator).unwrap().cancel_key();
    let mut request = Vec::new();
    write::cancel_request(&mut request, key);
    let from = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
    let cancel = scene.core.accepted(from);
    assert_eq!(scene.told(cancel, &request), Verdict::Stop);
    assert!(scene.closed.ends_with(&[Peer::Server(server), Peer::Client(cancel)]));
    let mut sink = Sink::default();
    let verdict = scene.core.client_packet(replicator, packet(QUERY), &mut sink);
    assert_eq!((verdict, sink.to_client.ends_with(b"Z\0\0\0\x05I")), (Verdict::Drop, true));
    // What it asks for next waits for another server.
    assert_eq!(scene.core.client_run(replicator, QUERY, &mut Sink::default()), Run::Pass(0));
    assert_eq!(scene.told(replicator, QUERY), Verdict::Wait);
    scene.pass();
    let next = scene.server();
    assert_eq!(scene.core.server_of(replicator), Some(next));
}

#[test]
fn replication_takes_the_primary_where_there_is_no_standby() {
    let mut scene =
        Scene::new("[databases]\nd = host=127.0.0.1 target_session_attrs=prefer-standby");
    let replicator = scene.replicator();
    let log_in = |scene: &mut Scene| {
        let server = scene.connected();
        let mut verdict = Verdict::Drop;
        for bytes in
            [&b"R\0\0\0\x08\0\0\0\0"[..], b"S\0\0\0\x17in_hot_standby\0off\0", b"Z\0\0\0\x05I"]
        {
            verdict = scene.core.server_packet(server, packet(bytes), &mut Sink::default());
        }
        scene.act();
        (server, verdict)
    };
    let (unfit, verdict) = log_in(&mut scene);
    assert_eq!((&scene.closed[..], verdict), (&[Peer::Server(unfit)][..], Verdict::Stop));
    scene.pass();
    let (server, verdict) = log_in(&mut scene);
    assert_eq!(verdict, Verdict::Drop);
    assert_eq!(scene.core.server_of(replicator), Some(server));
}
