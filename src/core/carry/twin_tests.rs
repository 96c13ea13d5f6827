//! What single fields are for: what a process would do next its successor does. `LEAVE_OUT` leaves one
//! out (doc/reliability.md).

use super::super::attrs::{Question, Traits};
use super::super::client::{Access, ClientState};
use super::super::face::{Addr, Decisions, Facts, Loss, Origin, Peer, ServerId, Sink};
use super::super::fault::Fault;
use super::super::login::Stage;
use super::super::replication::Replication;
use super::super::run_tests::{packet, Scene, QUERY};
use super::super::server::ServerState;
use super::super::stats::Counter;
use super::super::vars::Tracked;
use super::tests::planted;
use crate::base::{Id, Micros};
use crate::wire::write;
use std::fmt::Debug;
use std::rc::Rc;

const FROM: Origin = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
const WELCOME: [&[u8]; 2] = [b"R\0\0\0\x08\0\0\0\0", b"S\0\0\0\x11TimeZone\0GMT\0"];
const KEY: &[u8] = b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x02";
const READY: &[u8] = b"Z\0\0\0\x05I";

/// A core with the same files and another clock that goes on with everything.
fn successor(scene: &Scene, settings: &str) -> Scene {
    let mut next = Scene::new(settings);
    next.core.now = Micros::from_secs(70_000);
    next.core.stats_period = next.core.settings.stats_period;
    take_over(scene, next)
}

fn take_over(scene: &Scene, mut next: Scene) -> Scene {
    let rows = scene.core.hand_out(Id::none()).into_iter();
    let rows = rows.map(|(row, peer)| (planted(row), peer.map(|_| FROM)));
    let taken = next.core.take_in(rows.collect());
    next.core.all_are_in(taken);
    next.act();
    next
}

/// What is found out of a scene by the process that is in it, and by its successor: the same.
fn both<T: PartialEq + Debug>(
    settings: &str,
    scene: impl Fn() -> Scene,
    ask: impl Fn(&mut Scene) -> T,
) -> T {
    let mut next = successor(&scene(), settings);
    let (here, there) = (ask(&mut scene()), ask(&mut next));
    assert_eq!(there, here, "the successor does something else");
    there
}

/// So much time passes, and the janitor comes. Connections that are begun then.
fn passes(scene: &mut Scene, secs: u64) -> usize {
    scene.core.now = scene.core.now + Micros::from_secs(secs);
    scene.core.tick();
    scene.core.turn_end();
    scene.act();
    scene.connects.len()
}

fn says(scene: &mut Scene, id: ServerId, packets: &[&[u8]]) {
    for bytes in packets {
        scene.core.server_packet(id, packet(bytes), &mut Sink::default());
    }
    scene.core.server_drained(id, &mut Sink::default());
    scene.act();
}

/// A server answers its client's query.
fn answers(scene: &mut Scene, id: ServerId) {
    says(scene, id, &[b"C\0\0\0\x05\0", READY]);
}

/// A connection logs in as a primary, or as one that says nothing of that.
fn logs_in(scene: &mut Scene, id: ServerId, reports: bool) {
    let reported: [&[u8]; 2] =
        [b"S\0\0\0\x17in_hot_standby\0off\0", b"S\0\0\0\x26default_transaction_read_only\0off\0"];
    scene.core.connected(id, Addr::Unknown, Addr::Unknown);
    says(scene, id, &WELCOME);
    if reports {
        says(scene, id, &reported);
    }
    says(scene, id, &[KEY, READY]);
    scene.core.turn_end();
    scene.act();
}

/// The next connection that is begun: which host it goes to. There is a primary at this one, and
/// nothing at the others.
fn tries(scene: &mut Scene, primary: u32) -> Option<u32> {
    let id = scene.connects.pop()?;
    let host = scene.core.servers.get(id).unwrap().host;
    match host == primary {
        true => logs_in(scene, id, true),
        false => scene.core.lost(Peer::Server(id), Loss::Connect),
    }
    scene.core.turn_end();
    scene.act();
    Some(host)
}

fn first_server(scene: &Scene) -> ServerId {
    scene.core.servers.ids()[0]
}

/// A client at work, with its server.
fn at_work(settings: &str) -> Scene {
    let mut scene = Scene::new(settings);
    let client = scene.client("u");
    while let Some(id) = scene.connects.pop() {
        logs_in(&mut scene, id, true);
    }
    scene.told(client, QUERY);
    assert_eq!(scene.core.server_of(client), Some(first_server(&scene)));
    scene
}

/// Somebody wants the query canceled of the client at work.
fn cancels(scene: &mut Scene) {
    let linked = scene.core.clients.iter().find(|(_, client)| client.server.is_some());
    let key = linked.unwrap().1.cancel_key;
    let id = scene.core.accepted(FROM);
    let mut request = Vec::new();
    write::cancel_request(&mut request, key);
    scene.told(id, &request);
    scene.core.turn_end();
    scene.act();
}

fn closings(scene: &mut Scene) -> String {
    let lines = std::iter::from_fn(|| scene.core.journal.pop()).map(|(_, line)| line);
    lines.filter(|line| line.contains("closing because")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_failed_connection_is_not_tried_again_too_early() {
    let scene = || {
        let mut scene = Scene::new("");
        scene.client("u");
        let id = scene.connects.pop().unwrap();
        scene.core.lost(Peer::Server(id), Loss::Connect);
        scene.act();
        scene
    };
    assert_eq!(both("", scene, |scene| [5, 5, 6].map(|secs| passes(scene, secs))), [0, 0, 1]);
}

#[test]
fn why_a_login_failed_is_told_to_whoever_asks_and_shown_for_who_waits() {
    let scene = || {
        let mut scene = at_work("");
        scene.client("u");
        let (id, first) = (first_server(&scene), scene.core.clients.ids()[0]);
        answers(&mut scene, id);
        scene.core.lost(Peer::Server(id), Loss::Receive);
        scene.told(first, QUERY);
        scene.core.turn_end();
        scene.act();
        let id = scene.connects.pop().unwrap();
        scene.core.lost(Peer::Server(id), Loss::Connect);
        scene.act();
        scene
    };
    let told = both("", scene, |scene| {
        while scene.core.journal.pop().is_some() {}
        let with = |wanted| {
            let mut clients = scene.core.clients.iter();
            clients.find(|(_, client)| client.state == wanted).unwrap()
        };
        let (_, waiting) = with(ClientState::Waiting);
        let reason = scene.core.reason_of(waiting, waiting.pool.unwrap(), 0).unwrap();
        let (id, _) = with(ClientState::Active);
        scene.told(id, QUERY);
        (reason.detail, closings(scene).split("because: ").nth(1).map(str::to_owned))
    });
    assert_eq!(told.0, "connect failed; next attempt in 15 s");
    assert!(told.1.unwrap().starts_with("server login has been failing, cached error: "));
}

#[test]
fn cancel_requests_and_logins_take_turns() {
    let settings = "[databases]\nd = host=127.0.0.1 pool_size=3";
    let scene = || {
        let mut scene = at_work(settings);
        cancels(&mut scene);
        let id = scene.connects.pop().unwrap();
        scene.core.connected(id, Addr::Unknown, Addr::Unknown);
        assert_eq!(scene.core.servers.get(id).unwrap().state, ServerState::ActiveCancel);
        let waiting = scene.client("u");
        scene.told(waiting, QUERY);
        cancels(&mut scene);
        scene
    };
    let state = both(settings, scene, |scene| {
        scene.core.turn_end();
        scene.act();
        let id = scene.connects.pop().unwrap();
        scene.core.connected(id, Addr::Unknown, Addr::Unknown);
        scene.core.servers.get(id).unwrap().state
    });
    assert_eq!(state, ServerState::Login);
}

#[test]
fn old_servers_are_replaced_one_by_one() {
    let settings =
        "server_lifetime = 100\nserver_idle_timeout = 0\n[databases]\nd = host=a pool_size=2";
    let scene = || {
        let mut scene = at_work(settings);
        let other = scene.client("u");
        scene.told(other, QUERY);
        scene.core.turn_end();
        scene.act();
        let id = scene.connects.pop().unwrap();
        logs_in(&mut scene, id, true);
        scene.told(other, QUERY);
        for id in scene.core.servers.ids() {
            answers(&mut scene, id);
        }
        passes(&mut scene, 101);
        assert_eq!(scene.core.servers.len(), 1);
        scene
    };
    let count = |scene: &mut Scene| {
        [10, 41].map(|secs| {
            passes(scene, secs);
            scene.core.servers.len()
        })
    };
    assert_eq!(both(settings, scene, count), [1, 0]);
}

#[test]
fn hosts_take_turns() {
    let settings = "[databases]\nd = host=a,b,c pool_size=3";
    let host = both(
        settings,
        || at_work(settings),
        |scene| {
            let other = scene.client("u");
            scene.told(other, QUERY);
            scene.core.turn_end();
            scene.act();
            tries(scene, 1)
        },
    );
    assert_eq!(host, Some(1));
}

const PREFER: &str = "[databases]\nd = host=a,b,c target_session_attrs=prefer-standby";

/// No standby was found: the primary at the second host has been taken.
fn without_standby() -> Scene {
    let mut scene = Scene::new(PREFER);
    scene.client("u");
    for host in [0, 1, 2, 0, 1] {
        assert_eq!(tries(&mut scene, 1), Some(host));
    }
    scene
}

#[test]
fn a_standby_is_looked_for_again_when_it_is_time_and_not_where_none_is() {
    let looks = both(PREFER, without_standby, |scene| {
        [5, 5, 6, 0, 0, 5].map(|secs| {
            passes(scene, secs);
            tries(scene, 1)
        })
    });
    assert_eq!(looks, [None, None, Some(2), Some(0), None, None]);
}

#[test]
fn a_look_for_a_standby_that_is_under_way_is_begun_anew() {
    let mut scene = without_standby();
    assert_eq!(passes(&mut scene, 16), 1);
    let mut next = successor(&scene, PREFER);
    let mut looks = [(); 3].map(|()| {
        passes(&mut next, 0);
        tries(&mut next, 1)
    });
    looks.sort_unstable();
    assert_eq!(looks, [None, Some(0), Some(2)]);
    assert_eq!(passes(&mut next, 10), 0, "none was found just now");
    assert_eq!(passes(&mut next, 6), 1);
}

#[test]
fn a_search_that_somebody_waits_for_goes_round_all_hosts() {
    let mut scene = Scene::new(PREFER);
    let client = scene.client("u");
    assert_eq!(tries(&mut scene, 0), Some(0));
    assert_eq!(scene.connects.len(), 1, "the second host is being tried");
    let number = scene.core.clients.get(client).unwrap().number;
    let mut next = successor(&scene, PREFER);
    passes(&mut next, 0);
    let tried: Vec<u32> = std::iter::from_fn(|| tries(&mut next, 0)).collect();
    assert!(tried.contains(&1) && tried.contains(&2), "{tried:?}");
    assert_eq!(tried.last(), Some(&0), "any will do in the second pass");
    assert!(tried.len() <= 5, "{tried:?}");
    let (_, client) = next.core.clients.iter().find(|(_, it)| it.number == number).unwrap();
    assert!(client.welcomed);
}

#[test]
fn what_is_known_of_a_server_decides_when_it_is_released() {
    let (off, nothing) = (Some(false), Traits::default());
    for (attrs, traits, want) in [
        ("read-write", Traits { hot_standby: off, default_read_only: off, ..nothing }, "Idle"),
        ("read-write", Traits { read_only: off, ..nothing }, "Idle"),
        ("read-write", nothing, "Tested"),
        ("primary", Traits { in_recovery: off, ..nothing }, "Idle"),
        ("primary", Traits { in_recovery: Some(true), ..nothing }, "closed"),
        ("prefer-standby", Traits { hot_standby: off, ..nothing }, "Idle"),
        ("prefer-standby", Traits { hot_standby: off, spurned: true, ..nothing }, "closed"),
    ] {
        let settings = format!("[databases]\nd = host=a target_session_attrs={attrs}");
        let scene = || {
            let mut scene = at_work(&settings);
            let id = first_server(&scene);
            scene.core.servers.get_mut(id).unwrap().traits = traits;
            scene
        };
        let state = both(&settings, scene, |scene| {
            let id = first_server(scene);
            answers(scene, id);
            let server = scene.core.servers.get(id);
            server.map_or("closed".to_owned(), |server| format!("{:?}", server.state))
        });
        assert_eq!(state, want, "{attrs} {traits:?}");
    }
}

#[test]
fn the_answer_to_what_a_server_was_asked_is_understood() {
    let settings = "[databases]\nd = host=a target_session_attrs=primary";
    let scene = || {
        let mut scene = at_work(settings);
        let id = first_server(&scene);
        scene.core.servers.get_mut(id).unwrap().traits = Traits::default();
        answers(&mut scene, id);
        let server = scene.core.servers.get(id).unwrap();
        assert_eq!(server.traits.asked, Some(Question::Recovery));
        scene
    };
    let state = both(settings, scene, |scene| {
        let id = first_server(scene);
        says(scene, id, &[b"D\0\0\0\x0b\0\x01\0\0\0\x01f", b"C\0\0\0\x05\0", READY]);
        scene.core.servers.get(id).map(|server| server.state)
    });
    assert_eq!(state, Some(ServerState::Idle));
}

#[test]
fn a_server_that_was_opened_for_one_client_goes_with_it() {
    let scene = || {
        let mut scene = at_work("");
        let id = first_server(&scene);
        scene.core.servers.get_mut(id).unwrap().replication = Replication::Logical;
        scene
    };
    let left = both("", scene, |scene| {
        let id = first_server(scene);
        answers(scene, id);
        let client = scene.core.clients.ids()[0];
        scene.told(client, b"X\0\0\0\x04");
        scene.core.servers.len()
    });
    assert_eq!(left, 0);
}

#[test]
fn a_cancel_request_goes_to_the_servers_address_with_its_key() {
    for is_early in [false, true] {
        let scene = || {
            let mut scene = at_work("");
            let id = first_server(&scene);
            let at = Addr::Inet(([10, 0, 0, 9], 5432).into());
            scene.core.servers.get_mut(id).unwrap().remote = at;
            if is_early {
                cancels(&mut scene);
            }
            scene
        };
        let sent = both("", scene, |scene| {
            if !is_early {
                cancels(scene);
            }
            scene.core.turn_end();
            scene.act();
            let id = scene.connects.pop().unwrap();
            let host = scene.core.target(id).unwrap().host;
            scene.core.connected(id, Addr::Unknown, Addr::Unknown);
            scene.act();
            let sent = scene.sent.iter().find(|(to, _)| *to == Peer::Server(id));
            (host, sent.map(|(_, bytes)| bytes[8..].to_vec()))
        });
        assert_eq!(sent, ("10.0.0.9".to_owned(), Some(KEY[5..].to_vec())));
    }
}

#[test]
fn a_replication_client_gets_the_server_that_it_has_asked_for() {
    let scene = || {
        let mut scene = at_work("[databases]\nd = host=a pool_size=2");
        let id = scene.beginner_who_says(&[
            (b"user", b"u"),
            (b"options", b"-c any=thing"),
            (b"replication", b"database"),
            (b"database", b"d"),
        ]);
        scene.told(id, b"p\0\0\0\x06p\0");
        scene
    };
    let told = both("[databases]\nd = host=a pool_size=2", scene, |scene| {
        let found = scene.core.clients.iter().find(|(_, client)| client.replication.is_some());
        let id = found.unwrap().0;
        scene.told(id, QUERY);
        scene.core.turn_end();
        scene.act();
        let id = scene.connects.pop().unwrap();
        scene.core.connected(id, Addr::Unknown, Addr::Unknown);
        scene.act();
        let sent = scene.sent.iter().find(|(to, _)| *to == Peer::Server(id));
        String::from_utf8_lossy(&sent.unwrap().1).into_owned()
    });
    for parameter in ["replication\0database\0", "options\0-c any=thing\0"] {
        assert!(told.contains(parameter), "{told:?}");
    }
}

#[test]
fn a_login_keeps_what_it_was_told_of() {
    let stages: [fn() -> Stage; 2] = [
        || Stage::Ldap("ldapserver=x".into()),
        || Stage::Judged(Err(Fault::relayed(b"no", Some(b"28P09")))),
    ];
    for stage in stages {
        let scene = || {
            let mut scene = Scene::new("");
            let id = scene.beginner("u");
            scene.core.set_stage(id, stage());
            scene.core.set_admin(id, Access::Admin);
            let login = scene.core.clients.get_mut(id).unwrap().login.as_mut().unwrap();
            login.system_user = Some("root".into());
            scene
        };
        let login = both("", scene, |scene| {
            let (_, client) = scene.core.clients.iter().next().unwrap();
            let login = client.login.as_ref().unwrap();
            let stage = match &login.stage {
                Stage::Ldap(options) => options.clone(),
                Stage::Judged(Err(fault)) => format!("{} {:?}", fault.text, fault.sqlstate),
                _ => String::new(),
            };
            (stage, login.system_user.clone(), login.admin)
        });
        assert!(!login.0.is_empty());
        assert_eq!((login.1.as_deref(), login.2), (Some("root"), Some(Access::Admin)));
    }
}

#[test]
fn what_is_shown_stays() {
    let scene = || {
        let mut scene = at_work("");
        let ends = [1, 2, 3, 4].map(|last| Addr::Inet(([10, 0, 0, last], 5432).into()));
        let facts = |text: &str| Some(Box::new(Facts { text: text.into(), ..Facts::default() }));
        let (server, client) = (first_server(&scene), scene.core.clients.ids()[0]);
        let server = scene.core.servers.get_mut(server).unwrap();
        (server.remote, server.local, server.tls) = (ends[0], ends[1], facts("TLSv1.3"));
        let client = scene.core.clients.get_mut(client).unwrap();
        (client.remote, client.local, client.tls) = (ends[2], ends[3], facts("TLSv1.2"));
        scene
    };
    let shown = both("", scene, |scene| {
        let (_, server) = scene.core.servers.iter().next().unwrap();
        let (_, client) = scene.core.clients.iter().next().unwrap();
        let ends = [server.remote, server.local, client.remote, client.local];
        let text = |tls: &Option<Box<Facts>>| tls.as_ref().map(|facts| facts.text.clone());
        (ends, text(&server.tls), text(&client.tls), client.database_name.clone())
    });
    assert_eq!((shown.1.as_deref(), shown.3.as_deref()), (Some("TLSv1.3"), Some("d")));
}

#[test]
fn clients_are_welcomed_with_what_the_pool_knows() {
    let told = both(
        "",
        || at_work(""),
        |scene| {
            let id = scene.beginner("u");
            let mut sink = Sink::default();
            scene.core.client_packet(id, packet(b"p\0\0\0\x06p\0"), &mut sink);
            String::from_utf8_lossy(&sink.to_client).into_owned()
        },
    );
    assert!(told.contains("TimeZone\0GMT"), "{told:?}");
    assert!(told.contains("in_hot_standby\0off"), "{told:?}");
}

#[test]
fn statistics_count_on_and_so_does_a_wait() {
    let settings = "server_check_delay = 1000";
    let scene = || {
        let mut scene = at_work(settings);
        let id = first_server(&scene);
        answers(&mut scene, id);
        passes(&mut scene, 61);
        let client = scene.core.clients.ids()[0];
        for _ in 0..2 {
            scene.told(client, QUERY);
            answers(&mut scene, id);
            passes(&mut scene, 61);
        }
        scene.told(client, QUERY);
        let waiting = scene.client("u");
        scene.told(waiting, QUERY);
        scene.core.now = scene.core.now + Micros::from_secs(3);
        scene
    };
    let counted = both(settings, scene, |scene| {
        scene.core.now = scene.core.now + Micros::from_secs(4);
        let id = first_server(scene);
        answers(scene, id);
        let (_, pool) = scene.core.pools.iter().find(|(_, pool)| !pool.is_console()).unwrap();
        let stats = &pool.stats;
        let queries = [&stats.total, &stats.newer, &stats.older].map(|it| it.get(Counter::Queries));
        (queries, stats.total.get(Counter::WaitTime))
    });
    assert_eq!(counted.0[1..], [3, 2]);
    assert!(counted.1 >= 7_000_000, "{counted:?}");
}

#[test]
fn a_period_of_none_has_one_line_of_statistics() {
    let settings = "stats_period = 0";
    let scene = || {
        let mut scene = Scene::new(settings);
        scene.core.stats_period = 0;
        passes(&mut scene, 1);
        scene
    };
    let lines = both(settings, scene, |scene| {
        while scene.core.journal.pop().is_some() {}
        passes(scene, 1);
        std::iter::from_fn(|| scene.core.journal.pop())
            .filter(|(_, l)| l.contains("stats:"))
            .count()
    });
    assert_eq!(lines, 0);
}

#[test]
fn clients_have_the_pools_values_of_parameters_that_are_tracked_now() {
    let name = "default_transaction_read_only";
    let mut next = Scene::new("");
    next.core.tracked = Rc::new(Tracked::new(name));
    let next = take_over(&at_work(""), next);
    let at = next.core.tracked.find(name.as_bytes()).unwrap();
    let (_, client) = next.core.clients.iter().next().unwrap();
    assert_eq!(client.vars.get(at).map(|value| &**value), Some(&b"off"[..]));
}

#[test]
fn numbers_are_not_used_again() {
    let scene = || {
        let mut scene = Scene::new("");
        let id = scene.core.statements.intern(b"select 1\0\0\0");
        scene.core.statements.drop(id);
        scene.core.statements.go_on_from((0, 7));
        for _ in 0..3 {
            let id = scene.core.accepted(FROM);
            scene.core.lost(Peer::Client(id), Loss::Receive);
        }
        scene.act();
        scene.core.mock_key = [9; 32];
        scene
    };
    let numbers = both("", scene, |scene| {
        assert_eq!(scene.core.mock_key, [9; 32]);
        let id = scene.core.accepted(FROM);
        (scene.core.statements.last_numbers(), scene.core.clients.get(id).unwrap().number)
    });
    assert_eq!(numbers, ((1, 7), 4));
}
