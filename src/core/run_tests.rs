//! Clients and servers of a core, driven by packets.

use super::face::{Action, Addr, ClientId, Decisions, Loss, Origin, Packet, Peer, Run, ServerId};
use super::face::{Sink, Verdict};
use super::{Core, Surroundings};
use crate::base::Micros;
use crate::config::{self, Settings};
use crate::wire::write;

/// A core, and what it wants done.
pub(super) struct Scene {
    pub(super) core: Core,
    pub(super) connects: Vec<ServerId>,
    pub(super) closed: Vec<Peer>,
    pub(super) sent: Vec<(Peer, Vec<u8>)>,
}

pub(super) fn packet(bytes: &[u8]) -> Packet<'_> {
    let header = if bytes[0] == 0 { 4 } else { 5 };
    let tag = if header == 4 { 0 } else { bytes[0] };
    Packet { tag, len: bytes.len() as u32, seen: &bytes[header..], behind: false }
}

pub(super) const QUERY: &[u8] = b"Q\0\0\0\x06;\0";
pub(super) const ANSWER: &[u8] = b"C\0\0\0\x05\0Z\0\0\0\x05I";
const READY: &[u8] = b"Z\0\0\0\x05I";

impl Scene {
    /// One database, with these settings besides.
    pub(super) fn new(settings: &str) -> Scene {
        let around = Surroundings {
            now: Micros::from_secs(1000),
            seed: [7; 32],
            own_uid: 1000,
            host_name: String::new(),
        };
        let mut core = Core::new(Settings::default(), around);
        let text = format!(
            "[databases]\nd = host=127.0.0.1 pool_size=1\n\
             [pgbouncer]\nauth_type = plain\npool_mode = transaction\n{settings}\n"
        );
        let mut read = |_: &str| Ok(text.clone().into_bytes());
        let journal = &mut core.journal;
        let (config, complete) =
            config::load(&Settings::default(), "x.ini", true, &mut read, journal);
        assert!(complete);
        core.configure(config, true);
        core.set_users(["u", "v", "w"].map(|name| (name.into(), b"p".to_vec())).to_vec());
        Scene { core, connects: Vec::new(), closed: Vec::new(), sent: Vec::new() }
    }

    pub(super) fn act(&mut self) {
        while let Some(action) = self.core.next_action() {
            match action {
                Action::Connect(id) => self.connects.push(id),
                Action::Close(peer) => self.closed.push(peer),
                Action::Send(peer, bytes) => self.sent.push((peer, bytes)),
                _ => {}
            }
        }
    }

    pub(super) fn told(&mut self, id: ClientId, bytes: &[u8]) -> Verdict {
        let verdict = self.core.client_packet(id, packet(bytes), &mut Sink::default());
        self.act();
        verdict
    }

    /// A client sends the query.
    fn ran(&mut self, id: ClientId) -> Run {
        self.core.client_run(id, QUERY, &mut Sink::default())
    }

    /// A client that has sent its start-up packet.
    pub(super) fn beginner(&mut self, user: &str) -> ClientId {
        self.beginner_with(user, b"GMT")
    }

    fn beginner_with(&mut self, user: &str, zone: &[u8]) -> ClientId {
        let user = user.as_bytes();
        self.beginner_who_says(&[(b"user", user), (b"database", b"d"), (b"timezone", zone)])
    }

    pub(super) fn beginner_who_says(&mut self, wishes: &[(&[u8], &[u8])]) -> ClientId {
        let id =
            self.core.accepted(Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None });
        let mut startup = Vec::new();
        write::startup(&mut startup, wishes.iter().copied());
        assert_eq!(self.told(id, &startup), Verdict::Drop);
        id
    }

    /// A client that has logged in, or waits for its welcome.
    pub(super) fn client(&mut self, user: &str) -> ClientId {
        let id = self.beginner(user);
        self.told(id, b"p\0\0\0\x06p\0");
        id
    }

    /// A server that has logged in.
    pub(super) fn server(&mut self) -> ServerId {
        let id = self.connects.pop().unwrap();
        self.core.connected(id, Addr::Unknown, Addr::Unknown);
        for bytes in [
            &b"R\0\0\0\x08\0\0\0\0"[..],
            b"S\0\0\0\x11TimeZone\0GMT\0",
            b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x02",
            b"Z\0\0\0\x05I",
        ] {
            let verdict = self.core.server_packet(id, packet(bytes), &mut Sink::default());
            assert_eq!(verdict, Verdict::Drop);
        }
        self.act();
        id
    }
}

#[test]
fn server_that_dies_unused_does_not_take_the_next_client_with_it() {
    let mut scene = Scene::new("");
    let (a, server) = (scene.client("u"), scene.server());
    let b = scene.client("u");
    assert_eq!(scene.ran(a), Run::Pass(QUERY.len()));
    assert_eq!(scene.ran(b), Run::Wait);
    assert_eq!(scene.core.server_run(server, ANSWER), ANSWER.len());
    scene.core.server_drained(server, &mut Sink::default());
    assert_eq!(scene.core.server_of(b), Some(server));
    scene.core.lost(Peer::Server(server), Loss::Receive);
    scene.act();
    assert_eq!(scene.closed, [Peer::Server(server)]);
    assert_eq!(scene.ran(b), Run::Wait);
    scene.core.turn_end();
    scene.act();
    assert_eq!(scene.connects.len(), 1);
}

#[test]
fn client_that_turns_into_a_cancel_request_counts_no_more() {
    let mut scene = Scene::new("");
    let a = scene.client("u");
    scene.server();
    assert_eq!(scene.ran(a), Run::Pass(QUERY.len()));
    let counts = |core: &Core| {
        let database = core.databases.get(core.database_names["d"]).unwrap();
        let user = core.users.get(core.user_names["u"]).unwrap();
        (database.clients, user.clients)
    };
    assert_eq!(counts(&scene.core), (1, 1));
    let b = scene.beginner("u");
    assert_eq!(counts(&scene.core), (2, 2));
    let key = scene.core.clients.get(a).unwrap().cancel_key;
    let mut request = Vec::new();
    write::cancel_request(&mut request, key);
    assert_eq!(scene.told(b, &request), Verdict::Stop);
    assert_eq!(counts(&scene.core), (1, 1));
    scene.core.lost(Peer::Client(b), Loss::Receive);
    assert_eq!(counts(&scene.core), (1, 1));
}

#[test]
fn pools_that_share_a_limit_take_turns() {
    let mut scene = Scene::new("max_db_connections = 1");
    let a = scene.client("u");
    let server = scene.server();
    assert_eq!(scene.ran(a), Run::Pass(QUERY.len()));
    scene.client("v");
    scene.client("w");
    scene.core.turn_end();
    scene.act();
    assert!(scene.connects.is_empty());
    assert!(!scene.core.is_pending(), "nobody can be helped");
    scene.core.server_run(server, ANSWER);
    scene.core.server_drained(server, &mut Sink::default());
    scene.core.turn_end();
    scene.act();
    assert_eq!(scene.closed, [Peer::Server(server)]);
    assert_eq!(scene.connects.len(), 1);
    let pool = scene.core.servers.get(scene.connects[0]).unwrap().pool;
    assert_eq!(scene.core.pools.get(pool).unwrap().names().1, "v");
}

#[test]
fn refused_connection_is_not_tried_again_in_the_same_moment() {
    let mut scene = Scene::new("server_login_retry = 0");
    scene.client("u");
    for round in 0..3 {
        let id = scene.connects.pop().unwrap();
        scene.core.lost(Peer::Server(id), Loss::Connect);
        scene.act();
        while scene.core.is_pending() {
            scene.core.turn_end();
            scene.act();
            assert!(scene.connects.is_empty(), "{round}");
        }
        scene.core.now.0 += 333_333;
        scene.core.tick();
        scene.core.turn_end();
        scene.act();
    }
}

#[test]
fn parameter_that_servers_do_not_report_costs_no_detour_for_ever() {
    let mut scene = Scene::new("track_extra_parameters = search_path");
    let a = scene.beginner_with("u", b"UTC");
    scene.told(a, b"p\0\0\0\x06p\0");
    let server = scene.server();
    assert_eq!(scene.ran(a), Run::Pass(0));
    assert_eq!(scene.told(a, QUERY), Verdict::Wait, "the server gets the client's time zone");
    for bytes in [&b"C\0\0\0\x08SET\0"[..], b"S\0\0\0\x11TimeZone\0UTC\0", b"Z\0\0\0\x05I"] {
        let verdict = scene.core.server_packet(server, packet(bytes), &mut Sink::default());
        assert_eq!(verdict, Verdict::Drop);
    }
    scene.core.server_drained(server, &mut Sink::default());
    scene.act();
    assert_eq!(scene.ran(a), Run::Pass(QUERY.len()));
    assert_eq!(scene.core.server_run(server, ANSWER), ANSWER.len());
    scene.core.server_drained(server, &mut Sink::default());
    assert_eq!(scene.core.server_of(a), None);
    assert_eq!(scene.ran(a), Run::Pass(QUERY.len()), "they agree already");
}

#[test]
fn server_that_is_asked_for_a_user_says_nothing_to_the_client() {
    let mut scene = Scene::new("auth_user = u");
    let a = scene.beginner_with("stranger", b"UTC");
    scene.core.turn_end();
    scene.act();
    let server = scene.server();
    scene.core.turn_end();
    scene.act();
    assert_eq!(scene.core.client_of(server), Some(a), "the look-up goes on");
    let row = b"D\0\0\0\x1a\0\x02\0\0\0\x08stranger\0\0\0\x02pw";
    let zone = b"S\0\0\0\x12TimeZone\0Asia\0";
    for bytes in [
        &b"1\0\0\0\x04"[..],
        b"2\0\0\0\x04",
        b"T\0\0\0\x06\0\x02",
        row,
        b"C\0\0\0\x05\0",
        zone,
        b"Z\0\0\0\x05I",
        // Behind the end of the look-up, before the client is told that it is over.
        zone,
        b"N\0\0\0\x05\0",
        b"A\0\0\0\x0a\0\0\0\x01\0\0",
    ] {
        let verdict = scene.core.server_packet(server, packet(bytes), &mut Sink::default());
        assert_eq!(verdict, Verdict::Drop, "{bytes:?}");
    }
    let client = scene.core.clients.get(a).unwrap();
    let own = client.vars().packets(&scene.core.tracked);
    assert_eq!(own, b"S\0\0\0\x11TimeZone\0UTC\0");
    scene.core.server_drained(server, &mut Sink::default());
    scene.act();
    assert_eq!(scene.core.client_of(server), None);
    assert!(!scene.core.clients.get(a).unwrap().is_looked_up());
}

#[test]
fn who_has_waited_through_a_pause_is_served_before_who_comes_behind_it() {
    for of_database in [false, true] {
        let mut scene = Scene::new("");
        let (a, server) = (scene.client("u"), scene.server());
        let [b, c] = [scene.client("u"), scene.client("u")];
        assert_eq!(scene.told(a, QUERY), Verdict::Pass);
        assert_eq!(scene.told(b, QUERY), Verdict::Wait);
        let database = scene.core.database_names["d"];
        match of_database {
            true => assert!(!scene.core.pause_database(database, a)),
            false => scene.core.pause_all(None),
        }
        // All this in one turn: the server comes free, the pause ends, somebody else comes.
        scene.core.server_run(server, ANSWER);
        scene.core.server_drained(server, &mut Sink::default());
        match of_database {
            true => assert!(scene.core.resume_database(database)),
            false => scene.core.resume_all(),
        }
        scene.act();
        assert_eq!(scene.told(b, QUERY), Verdict::Pass);
        assert_eq!(scene.told(c, QUERY), Verdict::Wait);
    }
}

#[test]
fn a_standby_is_looked_for_as_long_as_there_is_a_server_to_be_replaced() {
    let hosts = "[databases]\nd = host=a,b,c target_session_attrs=prefer-standby";
    for is_lost in [false, true] {
        let mut scene = Scene::new(hosts);
        let client = scene.client("u");
        let host_of = |scene: &Scene, id| scene.core.servers().get(id).unwrap().host;
        // Only the first host can be reached, and it is a primary: it is taken in the second pass.
        for host in [0, 1, 2, 0] {
            let id = scene.connects.pop().unwrap();
            assert_eq!(host_of(&scene, id), host);
            if host > 0 {
                scene.core.lost(Peer::Server(id), Loss::Connect);
            } else {
                scene.core.connected(id, Addr::Unknown, Addr::Unknown);
                for bytes in
                    [&b"R\0\0\0\x08\0\0\0\0"[..], b"S\0\0\0\x17in_hot_standby\0off\0", READY]
                {
                    scene.core.server_packet(id, packet(bytes), &mut Sink::default());
                }
            }
            scene.core.turn_end();
            scene.act();
        }
        let primary = scene.core.servers.ids()[0];
        scene.core.now = scene.core.now + Micros::from_secs(20);
        let tick = |scene: &mut Scene| {
            scene.core.tick();
            scene.core.turn_end();
            scene.act();
            let ids: Vec<_> = scene.connects.drain(..).collect();
            ids.first().map(|id| (*id, host_of(scene, *id)))
        };
        let (look, host) = tick(&mut scene).unwrap();
        assert_eq!(host, 1);
        scene.core.lost(Peer::Server(look), Loss::Connect);
        if is_lost {
            scene.told(client, b"X\0\0\0\x04");
            scene.core.lost(Peer::Server(primary), Loss::Receive);
        }
        let next = tick(&mut scene).map(|(_, host)| host);
        assert_eq!(next, (!is_lost).then_some(2));
        assert_eq!(scene.core.servers.len(), if is_lost { 0 } else { 2 });
    }
}
