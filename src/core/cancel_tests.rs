//! Cancel requests of a core, driven by packets.

use super::client::ClientState;
use super::face::{Addr, ClientId, Decisions, Loss, Origin, Peer, ServerId, Sink, Verdict};
use super::run_tests::{packet, Scene, ANSWER, QUERY};
use super::server::ServerState;
use crate::base::Micros;
use crate::wire::write;

impl Scene {
    /// A cancel request with this key.
    fn cancel(&mut self, key: u64) -> ClientId {
        let from = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
        let id = self.core.accepted(from);
        let mut request = Vec::new();
        write::cancel_request(&mut request, key);
        assert_eq!(self.told(id, &request), Verdict::Stop);
        id
    }

    fn key(&self, id: ClientId) -> u64 {
        self.core.clients().get(id).unwrap().cancel_key()
    }

    fn turn(&mut self) {
        self.core.turn_end();
        self.act();
    }

    /// The last connection that was begun is open.
    fn open(&mut self) -> ServerId {
        let id = self.connects.pop().unwrap();
        self.core.connected(id, Addr::Unknown, Addr::Unknown);
        self.act();
        id
    }

    fn state(&self, id: ServerId) -> Option<ServerState> {
        self.core.servers().get(id).map(|server| server.state())
    }

    /// A client whose query runs.
    fn busy(&mut self) -> (ClientId, ServerId) {
        let client = self.client("u");
        let server = self.server();
        assert_eq!(self.told(client, QUERY), Verdict::Pass);
        (client, server)
    }

    fn lose(&mut self, id: ServerId) {
        self.core.lost(Peer::Server(id), Loss::Receive);
        self.act();
    }
}

#[test]
fn logins_and_cancel_requests_take_turns() {
    let mut scene = Scene::new("[databases]\nd = host=127.0.0.1 pool_size=2");
    let (a, _) = scene.busy();
    let b = scene.client("u");
    assert_eq!(scene.told(b, QUERY), Verdict::Wait);
    scene.turn();
    let key = scene.key(a);
    scene.cancel(key);
    let carrier = scene.open();
    assert_eq!(scene.state(carrier), Some(ServerState::ActiveCancel));
    let second = scene.cancel(key);
    scene.turn();
    assert_eq!(scene.connects.len(), 0, "the carrier takes the place of the login");
    scene.lose(carrier);
    scene.turn();
    let login = scene.open();
    assert_eq!(scene.state(login), Some(ServerState::Login), "it is the login's turn");
    let waits = scene.core.clients().get(second).map(|client| client.state());
    assert_eq!(waits, Some(ClientState::WaitingCancel));
    scene.lose(login);
    // Once more: now a cancel request is next, as the last connection was to log in.
    scene.core.now = scene.core.now + Micros::from_secs(20);
    scene.turn();
    scene.core.tick();
    scene.cancel(key);
    scene.turn();
    let carrier = scene.open();
    assert_eq!(scene.state(carrier), Some(ServerState::ActiveCancel));
}

#[test]
fn a_full_pool_holds_no_cancel_request_back() {
    let mut scene = Scene::new("");
    let (a, _) = scene.busy();
    let b = scene.client("u");
    assert_eq!(scene.told(b, QUERY), Verdict::Wait);
    for _ in 0..3 {
        scene.cancel(scene.key(a));
        scene.turn();
        let carrier = scene.open();
        assert_eq!(scene.state(carrier), Some(ServerState::ActiveCancel));
        scene.lose(carrier);
    }
}

#[test]
fn requests_that_ride_together_free_their_server_together() {
    let mut scene = Scene::new("");
    let (a, server) = scene.busy();
    let requests: Vec<_> = (0..5).map(|_| scene.cancel(scene.key(a))).collect();
    let carrier = scene.open();
    assert_eq!(scene.connects.len(), 0);
    for bytes in [&ANSWER[..6], &ANSWER[6..]] {
        scene.core.server_packet(server, packet(bytes), &mut Sink::default());
    }
    scene.core.server_drained(server, &mut Sink::default());
    assert_eq!(scene.state(server), Some(ServerState::BeingCanceled));
    let late = scene.cancel(scene.key(a));
    assert!(scene.closed.contains(&Peer::Client(late)), "its client is idle");
    scene.lose(carrier);
    assert!(requests.iter().all(|id| scene.closed.contains(&Peer::Client(*id))));
    assert_eq!(scene.state(server), Some(ServerState::Idle));
}

#[test]
fn requests_for_queries_that_have_ended_make_way() {
    let mut scene = Scene::new("[databases]\nd = host=127.0.0.1 pool_size=2");
    let (a, first) = scene.busy();
    let (b, _) = {
        let b = scene.client("u");
        assert_eq!(scene.told(b, QUERY), Verdict::Wait);
        scene.turn();
        (b, scene.server())
    };
    assert_eq!(scene.told(b, QUERY), Verdict::Pass);
    let over = scene.cancel(scene.key(a));
    let real = scene.cancel(scene.key(b));
    for bytes in [&ANSWER[..6], &ANSWER[6..]] {
        scene.core.server_packet(first, packet(bytes), &mut Sink::default());
    }
    scene.core.server_drained(first, &mut Sink::default());
    let carrier = scene.open();
    assert!(scene.closed.contains(&Peer::Client(over)));
    assert!(!scene.closed.contains(&Peer::Client(real)));
    assert_eq!(scene.state(carrier), Some(ServerState::ActiveCancel));
}

/// A key that was given out before peering was switched on is still known.
#[test]
fn a_change_of_peer_id_forgets_nobody() {
    let mut scene = Scene::new("");
    let (a, _) = scene.busy();
    for peer_id in [7, 300, 0] {
        scene.core.change_settings(|settings| {
            settings.peer_id = peer_id;
            true
        });
        scene.cancel(scene.key(a));
        scene.turn();
        let carrier = scene.open();
        assert_eq!(scene.state(carrier), Some(ServerState::ActiveCancel));
        scene.lose(carrier);
    }
}

impl Scene {
    /// As `open`, at this address.
    fn open_at(&mut self, addr: &str) -> ServerId {
        let id = self.connects.pop().unwrap();
        let remote = Addr::Inet(addr.parse().unwrap());
        self.core.dialling(id, remote);
        self.core.connected(id, Addr::Unknown, remote);
        self.act();
        id
    }

    /// A server that logs in says all that is needed.
    fn log_in(&mut self, id: ServerId) {
        for bytes in
            [&b"R\0\0\0\x08\0\0\0\0"[..], b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x02", b"Z\0\0\0\x05I"]
        {
            self.core.server_packet(id, packet(bytes), &mut Sink::default());
        }
        self.act();
    }

    /// The query that runs there ends.
    fn end(&mut self, server: ServerId) {
        for bytes in [&ANSWER[..6], &ANSWER[6..]] {
            self.core.server_packet(server, packet(bytes), &mut Sink::default());
        }
        self.core.server_drained(server, &mut Sink::default());
        self.act();
    }
}

#[test]
fn a_connection_that_leads_to_no_query_exceeds_no_limit() {
    let mut scene = Scene::new("[databases]\nd = host=127.0.0.1,127.0.0.2 pool_size=2");
    let (a, first) = scene.busy();
    let b = scene.client("u");
    assert_eq!(scene.told(b, QUERY), Verdict::Wait);
    scene.turn();
    scene.server();
    assert_eq!(scene.told(b, QUERY), Verdict::Pass);
    scene.cancel(scene.key(a));
    scene.cancel(scene.key(b));
    scene.end(first);
    // It leads to the first host, where nothing is to be canceled any more.
    let useless = scene.open();
    assert_eq!(scene.state(useless), None);
    scene.turn();
    let carrier = scene.open();
    assert_eq!(scene.state(carrier), Some(ServerState::ActiveCancel));
    // With a place to spare it logs in.
    let c = scene.client("u");
    assert_eq!(scene.told(c, QUERY), Verdict::Pass);
}

#[test]
fn requests_go_to_the_address_of_their_query() {
    let mut scene = Scene::new("[databases]\nd = host=a.test port=99 pool_size=3");
    let a = scene.client("u");
    let first = scene.open_at("10.0.0.1:99");
    scene.log_in(first);
    assert_eq!(scene.told(a, QUERY), Verdict::Pass);
    let b = scene.client("u");
    assert_eq!(scene.told(b, QUERY), Verdict::Wait);
    scene.turn();
    scene.cancel(scene.key(a));
    let second = scene.open_at("10.0.0.2:99");
    assert_eq!(scene.state(second), Some(ServerState::Login));
    scene.log_in(second);
    scene.turn();
    let target = scene.core.target(scene.connects[0]).unwrap();
    assert_eq!((target.host.as_str(), target.port), ("10.0.0.1", 99));
    let carrier = scene.open_at("10.0.0.1:99");
    assert_eq!(scene.state(carrier), Some(ServerState::ActiveCancel));
}

#[test]
fn a_host_that_cannot_be_reached_keeps_no_client_from_another() {
    let hosts = "[databases]\nd = host=127.0.0.1,127.0.0.2 pool_size=2";
    let mut scene = Scene::new(&format!("server_login_retry = 5\n{hosts}"));
    let (a, _) = scene.busy();
    let (b, key) = (scene.client("u"), scene.key(a));
    scene.cancel(key);
    assert_eq!(scene.told(b, QUERY), Verdict::Wait);
    for want in [0, 1, 0] {
        let id = scene.connects.pop().unwrap();
        assert_eq!(scene.core.servers().get(id).unwrap().host, want);
        scene.core.lost(Peer::Server(id), Loss::Connect);
        scene.core.now = scene.core.now + Micros::from_secs(6);
        scene.cancel(key);
        scene.core.tick();
        scene.turn();
    }
}
