//! Rows of a scene: read again as they are, and with all kinds of damage.

use super::super::client::ClientState;
use super::super::face::{Action, Addr, ClientId, Decisions, Loss, Origin, Peer, ServerId, Sink};
use super::super::run_tests::{packet, Scene, QUERY};
use super::super::server::ServerState;
use super::super::vars::Tracked;
use super::super::Core;
use super::{Kind, Row, TABLES};
use crate::base::fields::{self, Fields};
use crate::base::random::Random;
use crate::base::{Id, Level, Micros};
use crate::wire::write;
use std::rc::Rc;

const FROM: Origin = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
const SETTINGS: &str = "admin_users = w";

/// A row without the field that `LEAVE_OUT` names, as a test of the tests: `server.9.5` is field 5 of
/// field 9 of all servers (doc/reliability.md).
pub(crate) fn planted(mut row: Row) -> Row {
    row.state = planted_at(row.kind.word(), row.state);
    row
}

/// The same of the fields that are found at a place like `server.9`.
pub(in crate::core) fn planted_at(place: &str, state: Vec<u8>) -> Vec<u8> {
    let Ok(plant) = std::env::var("LEAVE_OUT") else { return state };
    match plant.strip_prefix(place).and_then(|rest| rest.strip_prefix('.')) {
        Some(path) => {
            without(&state, &path.split('.').map(|tag| tag.parse().unwrap()).collect::<Vec<u16>>())
        }
        None => state,
    }
}

fn without(state: &[u8], path: &[u16]) -> Vec<u8> {
    let mut left = Fields::default();
    for field in fields::read(state) {
        match path {
            [tag] if *tag == field.tag => {}
            [tag, rest @ ..] if *tag == field.tag => {
                left.put(field.tag, &without(field.value, rest));
            }
            _ => left.put(field.tag, field.value),
        }
    }
    left.into_bytes()
}

/// A Parse of a named statement with a Sync behind it.
fn parse(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    write::packet(&mut bytes, b'P', |out| {
        write::text(out, name.as_bytes());
        out.extend_from_slice(b"select 1\0\0\0");
    });
    bytes
}

/// Somebody in nearly every state.
fn scene() -> Scene {
    let mut scene = Scene::new(SETTINGS);
    let at_work = scene.client("u");
    scene.server();
    scene.told(at_work, &parse("s"));
    scene.told(at_work, &parse(""));
    scene.told(at_work, b"S\0\0\0\x04");
    let waiting = scene.client("u");
    scene.told(waiting, QUERY);
    scene.client("u");
    // The first server of another pool is awaited.
    scene.client("v");
    scene.beginner("v");
    let console = scene.beginner_who_says(&[(b"user", b"w"), (b"database", b"pgbouncer")]);
    scene.told(console, b"p\0\0\0\x06p\0");
    scene.told(console, b"Q\0\0\0\x0aPAUSE\0");
    for _ in 0..2 {
        let key = scene.core.clients.get(at_work).unwrap().cancel_key;
        let id = scene.core.accepted(FROM);
        let mut request = Vec::new();
        write::cancel_request(&mut request, key);
        scene.told(id, &request);
        let carrier = scene.connects.pop().unwrap();
        if carrier != Id::none() && scene.core.servers().len() < 4 {
            scene.core.connected(carrier, Addr::Unknown, Addr::Unknown);
        }
        scene.core.turn_end();
        scene.act();
    }
    scene
}

/// A core that has just been configured.
fn fresh() -> Core {
    Scene::new(SETTINGS).core
}

fn read(rows: &[Row]) -> (Core, usize) {
    let mut core = fresh();
    let rows = rows.iter().map(|row| (planted(row.clone()), Some(FROM)));
    let taken = core.take_in(rows.collect());
    let count = taken.peers.iter().flatten().count();
    core.all_are_in(taken);
    (core, count)
}

/// What always holds.
fn check(core: &Core) {
    use ServerState as S;
    let (mut clients, mut servers) = (core.login_clients.len(), 0);
    for id in core.all_pools() {
        let pool = core.pools.get(id).unwrap();
        (clients, servers) = (clients + pool.client_count(), servers + pool.server_count());
        for (state, _) in S::SHOWN {
            for id in pool.servers(state).ids(&core.servers) {
                assert_eq!(core.servers.get(id).unwrap().state, state);
            }
        }
        for state in [ClientState::Active, ClientState::Waiting, ClientState::ActiveCancel] {
            for id in pool.clients(state).ids(&core.clients) {
                assert_eq!(core.clients.get(id).unwrap().state, state);
            }
        }
    }
    assert_eq!((clients, servers), (core.clients.len(), core.servers.len()));
    for (id, server) in core.servers.iter() {
        assert!((server.state == S::Active) == server.client.is_some(), "{:?}", server.state);
        assert!(server.client.is_none_or(|client| core.server_of(client) == Some(id)));
    }
    for (id, client) in core.clients.iter() {
        assert!(client.server.is_none_or(|server| core.client_of(server) == Some(id)));
    }
    assert!(core.cancel_keys.values().all(|id| core.clients.get(*id).is_some()));
    let of_databases: usize = core.databases.iter().map(|(_, database)| database.servers).sum();
    assert_eq!(
        of_databases,
        core.servers.iter().filter(|(_, s)| has_database(core, s.pool)).count()
    );
}

fn has_database(core: &Core, pool: super::PoolId) -> bool {
    core.pools.get(pool).is_some_and(|pool| core.databases.get(pool.database).is_some())
}

fn act(core: &mut Core) {
    while let Some(action) = core.next_action() {
        if let Action::Exit(_) = action {
            return;
        }
    }
}

/// Time passes, everybody leaves, and nothing is left.
fn farewell(mut core: Core) {
    for _ in 0..3 {
        act(&mut core);
        core.turn_end();
        core.tick();
        check(&core);
        core.now = core.now + Micros::from_secs(1);
    }
    while !core.clients.is_empty() || !core.servers.is_empty() {
        let clients: Vec<ClientId> = core.clients.ids();
        let servers: Vec<ServerId> = core.servers.ids();
        for id in servers {
            core.server_drained(id, &mut Sink::default());
        }
        clients.into_iter().for_each(|id| core.lost(Peer::Client(id), Loss::Receive));
        for id in core.servers.ids() {
            core.lost(Peer::Server(id), Loss::Receive);
        }
        act(&mut core);
        check(&core);
    }
    assert!(core.statements.is_empty() && core.cancel_keys.is_empty());
    assert!(core.startup_options.is_empty() && core.waiters.is_empty());
    let counted: usize = core.databases.iter().map(|(_, database)| database.clients).sum();
    assert_eq!(counted, 0);
    assert_eq!(core.users.iter().map(|(_, user)| user.clients + user.servers).sum::<usize>(), 0);
}

#[test]
fn what_is_read_is_what_was_written() {
    let scene = scene();
    let rows: Vec<Row> = scene.core.hand_out(Id::none()).into_iter().map(|(row, _)| row).collect();
    let states: Vec<_> = scene.core.clients.iter().map(|(_, client)| client.state).collect();
    use ClientState as S;
    for state in [S::Login, S::Active, S::Waiting, S::WaitingCancel, S::ActiveCancel] {
        assert!(states.contains(&state), "{state:?} {states:?}");
    }
    let (core, taken) = read(&rows);
    let all = scene.core.clients.len() + scene.core.servers.len();
    let login = scene.core.servers.iter().filter(|(_, s)| s.state == ServerState::Login).count();
    assert_eq!(taken, all - login);
    let again: Vec<Row> = core.hand_out(Id::none()).into_iter().map(|(row, _)| row).collect();
    assert_eq!(again, rows);
    farewell(core);
}

#[test]
fn damaged_rows_harm_nobody_but_their_connections() {
    let rows: Vec<Row> =
        scene().core.hand_out(Id::none()).into_iter().map(|(row, _)| row).collect();
    let mut random = Random::new([3; 32]);
    let mut below =
        |limit: usize| usize::try_from(u32::from_be_bytes(random.bytes())).unwrap() % limit.max(1);
    for _ in 0..3000 {
        let mut rows = rows.clone();
        for _ in 0..=below(4) {
            let at = below(rows.len());
            let (len, other) = (rows[at].state.len(), rows[below(rows.len())].clone());
            let place = below(len);
            match below(9) {
                0 => rows[at].state.truncate(place),
                1..=3 if len > 0 => rows[at].state[place] = below(256) as u8,
                4 if len > 0 => rows[at].state[place] ^= 1 << below(8),
                5 => rows[at].number = [0, 1, other.number, u64::MAX][below(4)],
                6 => rows[at].state = other.state,
                7 => rows[at].kind = Kind::ALL[below(Kind::ALL.len())],
                8 if below(2) == 0 => rows.insert(at, other),
                _ => {
                    rows.remove(at);
                }
            }
        }
        let (core, _) = read(&rows);
        check(&core);
        farewell(core);
    }
}

#[test]
fn servers_are_replaced_if_other_parameters_are_tracked_now() {
    let (few, many) = ("", "search_path");
    for (before, now, want) in
        [(few, few, false), (many, many, false), (few, many, true), (many, few, true)]
    {
        let new = |names| {
            let mut scene = Scene::new("");
            scene.core.tracked = Rc::new(Tracked::new(names));
            scene
        };
        let mut scene = new(before);
        scene.client("u");
        let server = scene.server();
        let status = packet(b"S\0\0\0\x12search_path\0a\0");
        scene.core.server_packet(server, status, &mut Sink::default());
        let rows = scene.core.hand_out(Id::none());
        let mut core = new(now).core;
        let rows = rows.into_iter().map(|(row, peer)| (planted(row), peer.map(|_| FROM)));
        core.take_in(rows.collect());
        let marked: Vec<bool> = core.servers.iter().map(|(_, it)| it.close_needed).collect();
        assert_eq!(marked, [want], "{before} {now}");
    }
}

/// A scene that tracks search_path, too; its pool's servers report `a` and clients have these values,
/// the last of them in the midst of something.
fn scene_with_paths(mode: &str, values: [&[u8]; 3]) -> Scene {
    let mut scene = Scene::new(&format!("pool_mode = {mode}"));
    scene.core.tracked = Rc::new(Tracked::new("search_path"));
    let tracked = Rc::clone(&scene.core.tracked);
    let at = tracked.find(b"search_path").unwrap();
    let first = scene.client("u");
    scene.server();
    let clients = [first, scene.client("u"), scene.client("u")];
    let pool = scene.core.clients.get(first).unwrap().pool.unwrap();
    let pool = scene.core.pools.get_mut(pool).unwrap();
    let welcome = Rc::get_mut(pool.welcome.as_mut().unwrap()).unwrap();
    welcome.vars.set(&tracked, at, Rc::from(&b"a"[..]));
    for (id, value) in clients.into_iter().zip(values) {
        scene.core.clients.get_mut(id).unwrap().vars.set(&tracked, at, value.into());
    }
    scene.told(clients[2], QUERY);
    scene
}

#[test]
fn values_that_are_lost_because_nobody_tracks_them_any_more_are_told_of() {
    for (mode, values, tracked, want) in [
        ("transaction", [b"a", b"a", b"a"], "", None),
        ("transaction", [b"b", b"a", b"c"], "", Some(2)),
        ("transaction", [b"b", b"a", b"c"], "Search_Path", None),
        // It has its server to the end.
        ("session", [b"a", b"b", b"c"], "", Some(1)),
        ("session", [b"a", b"a", b"c"], "", None),
    ] {
        let scene = scene_with_paths(mode, values.map(|value| &value[..]));
        let rows = scene.core.hand_out(Id::none());
        let mut next = Scene::new(&format!("pool_mode = {mode}"));
        next.core.tracked = Rc::new(Tracked::new(tracked));
        let (late, rows): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|(row, _)| Core::idle_for(row).is_some());
        let rows = rows.into_iter().map(|(row, peer)| (row, peer.map(|_| FROM)));
        let mut taken = next.core.take_in(rows.collect());
        for (row, _) in late {
            next.core.take_in_late(&row, FROM, &mut taken).unwrap();
        }
        next.core.all_are_in(taken);
        let lines = std::iter::from_fn(|| next.core.journal.pop());
        let lines: Vec<_> = lines.filter(|(level, _)| *level == Level::Warning).collect();
        let want = want.map(|count| {
            let line = format!(
                "search_path is not tracked any more (track_extra_parameters): clients that have set \
                 it ({count}) have the server's value from their next server on"
            );
            (Level::Warning, line)
        });
        assert_eq!(lines, Vec::from_iter(want), "{mode} {values:?} {tracked}");
    }
}

#[test]
fn servers_that_were_connected_by_other_tls_are_replaced() {
    use crate::config::SslMode::Disable;
    for (before, now, want) in [("a", "a", false), ("a", "b", true), ("", "b", true)] {
        let mut scene = Scene::new("");
        scene.core.set_tls_modes(Disable, Disable, before.into());
        scene.client("u");
        scene.server();
        let rows = scene.core.hand_out(Id::none());
        let mut core = fresh();
        core.set_tls_modes(Disable, Disable, "of the files, SET has changed it".into());
        core.take_in(rows.into_iter().map(|(row, peer)| (row, peer.map(|_| FROM))).collect());
        core.set_tls_modes(Disable, Disable, now.into());
        core.replace_otherwise_connected();
        let marked: Vec<bool> = core.servers.iter().map(|(_, it)| it.close_needed).collect();
        assert_eq!(marked, [want], "{before} {now}");
    }
}

#[test]
fn no_tag_is_used_twice_in_a_table() {
    for (what, tags) in TABLES {
        let mut numbers: Vec<u16> = tags.iter().map(|tag| tag.tag).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), tags.len(), "{what}");
    }
    for kind in Kind::ALL {
        assert_eq!(Kind::of(kind.word().as_bytes()), Some(*kind));
    }
}
