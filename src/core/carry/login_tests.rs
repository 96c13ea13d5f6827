//! Logins that begin in one process and end in another one.

use crate::auth::{Challenge, ClientExchange, Credential, SaltedKeys, ScramSecret};
use crate::base::{Id, Micros};
use crate::core::face::{Addr, ClientId, Decisions, Facts, Origin, Peer, Verdict};
use crate::core::fault;
use crate::core::login::{Proof, Stage};
use crate::core::login_scene::{stored, users, users_but, Scene, Talk, PASSWORD};
use crate::core::login_tests::{answer_lookup, looked_up, serve, TYPES};
use crate::core::Core;
use crate::wire::write;

/// A successor with these settings, whose clock is another one.
fn successor(settings: &str) -> Scene {
    let mut scene = Scene::new(settings);
    scene.core.now = Micros::from_secs(77_000);
    scene
}

/// A whole login, whose process is left before step `at`; `change` is done to the successor before
/// it takes over. How it ended, how many steps it had.
fn log_in(
    settings: &str,
    (user, password): (&str, &[u8]),
    at: usize,
    change: impl Fn(&mut Scene),
) -> (Scene, String, usize) {
    let mut scene = Scene::new(settings);
    let mut id = scene.beginner(user, "d");
    let mut talk = Talk { user: user.to_owned(), heard: 0, exchange: None };
    for step in 0.. {
        if step == at && scene.core.clients().get(id).is_some() {
            let mut next = successor(settings);
            change(&mut next);
            id = scene.hand_over(&mut next)[&id];
            scene = next;
        }
        if !scene.answer(id, &mut talk, password) && !scene.end_job() {
            let outcome = scene.outcome(id);
            return (scene, outcome, step);
        }
    }
    unreachable!()
}

#[test]
fn a_login_ends_in_another_process_as_it_would_have_here() {
    let never = usize::MAX;
    let ldap = "ldap\nauth_ldap_options = x";
    for auth_type in ["plain", "md5", "scram-sha-256", "pam", ldap] {
        let settings = format!("auth_type = {auth_type}");
        for user in ["plain", "md", "scram", "empty", "nobody"] {
            for password in [PASSWORD, b"wrong"] {
                let who = (user, password);
                let (_, want, steps) = log_in(&settings, who, never, |_| {});
                assert_ne!(want, "asked", "{auth_type} {user}");
                for at in 0..=steps {
                    let (_, outcome, _) = log_in(&settings, who, at, |_| {});
                    assert_eq!(outcome, want, "{auth_type} {user} {at}");
                }
            }
        }
    }
}

#[test]
fn what_the_successors_list_says_of_the_user_counts() {
    let other = ScramSecret::derive(b"other", b"0123456789abcdef", 2).text().into_bytes();
    for (auth_type, user) in TYPES {
        let settings = format!("auth_type = {auth_type}");
        let mut first = Scene::new(&settings);
        while first.end_job() {}
        let (_, _, steps) = first.login(user, PASSWORD, |_, _| {});
        for at in 0..steps {
            for secret in [None, Some(&b"other"[..]), Some(&other)] {
                let (scene, outcome, _) = log_in(&settings, (user, PASSWORD), at, |scene| {
                    scene.core.set_users(users_but(user, secret));
                    scene.act();
                });
                let refused = outcome.ends_with(" authentication failed");
                assert!(refused, "{auth_type} {user} {at} {outcome}");
                let user = scene.core.users.get(scene.core.user_names[*user]).unwrap();
                assert!(user.keys.is_none(), "keys of another secret");
            }
            let (scene, outcome, _) = log_in(&settings, (user, PASSWORD), at, |scene| {
                scene.core.set_users(users());
                scene.rules("local all all trust");
            });
            assert_eq!(outcome, "in", "{auth_type} {user} {at}");
            let known = scene.core.users.get(scene.core.user_names[*user]).unwrap();
            assert_eq!(known.keys.is_some(), *user == "scram" && *auth_type != "plain");
        }
    }
}

#[test]
fn challenges_stay_the_same() {
    let challenge = |scene: &mut Scene, user: &str| {
        let id = scene.beginner(user, "d");
        let mut talk = Talk { user: user.into(), heard: 0, exchange: None };
        assert!(scene.answer(id, &mut talk, PASSWORD));
        while scene.end_job() {}
        let body = String::from_utf8(scene.heard(id).pop().unwrap().1).unwrap();
        body.split_once(',').unwrap().1.to_owned()
    };
    let settings = "auth_type = scram-sha-256";
    let names = ["plain", "scram", "md", "empty", "nobody"];
    let mut first = Scene::new(settings);
    let before = names.map(|name| challenge(&mut first, name));
    let mut next = successor(settings);
    next.jobs.clear();
    first.hand_over(&mut next);
    assert_eq!(names.map(|name| challenge(&mut next, name)), before);
    assert!(next.jobs.is_empty(), "nothing is derived again");
}

#[test]
fn a_bound_exchange_goes_on() {
    let end_point = b"0123456789abcdef0123456789abcdef";
    let facts = || Facts { end_point: end_point[..].into(), ..Facts::default() };
    for (password, want) in [(PASSWORD, "in"), (b"wrong", "SASL authentication failed")] {
        for at in 0..3 {
            let mut scene = Scene::new("auth_type = scram-sha-256");
            let from = Addr::Inet(([127, 0, 0, 1], 4000).into());
            let from = Origin { remote: from, local: Addr::Unknown, uid: None };
            let mut id = scene.core.accepted(from);
            scene.core.secured(Peer::Client(id), Some(facts()));
            let leave = |scene: &mut Scene, id: &mut ClientId, step: usize| {
                if step == at {
                    let mut next = successor("auth_type = scram-sha-256");
                    *id = scene.hand_over(&mut next)[id];
                    *scene = next;
                }
            };
            leave(&mut scene, &mut id, 0);
            let mut packet = Vec::new();
            let wishes = [(&b"user"[..], &b"scram"[..]), (b"database", b"d")];
            write::startup(&mut packet, wishes.into_iter());
            scene.say(id, &packet);
            leave(&mut scene, &mut id, 1);
            let credential = Credential::Password(password.to_vec().into());
            let mut exchange = ClientExchange::new(credential, [3; 18]).bound_to(end_point);
            let list = scene.heard(id).pop().unwrap().1;
            let begin = exchange.begin(&list[4..]).unwrap();
            assert_eq!(exchange.mechanism(), "SCRAM-SHA-256-PLUS");
            packet.clear();
            write::sasl_initial(&mut packet, exchange.mechanism(), &begin);
            scene.say(id, &packet);
            leave(&mut scene, &mut id, 2);
            let challenge = scene.heard(id).pop().unwrap().1;
            packet.clear();
            let Ok(Challenge::Derive { salt, iterations }) = exchange.challenge(&challenge[4..])
            else {
                panic!("an odd challenge");
            };
            let keys = SaltedKeys::derive(password, &salt, iterations);
            write::sasl_response(&mut packet, &exchange.answer(keys).unwrap());
            scene.say(id, &packet);
            assert_eq!(scene.outcome(id), want, "{at}");
        }
    }
}

#[test]
fn a_look_up_begins_anew_and_is_shared_again() {
    for auth_type in ["plain", "scram-sha-256"] {
        for linked in [false, true] {
            let settings = format!("auth_type = {auth_type}");
            let mut first = Scene::new(&settings);
            let one = match linked {
                true => looked_up(&mut first).0,
                false => first.beginner("found", "q"),
            };
            let ids = [one, first.beginner("found", "q"), first.beginner("found", "q")];
            assert!(ids.iter().all(|id| first.core.is_looked_up(*id)));
            // Some say their password before they are asked for it.
            assert_eq!(first.say(ids[1], b"p\0\0\0\x0bpencil\0"), Verdict::Wait);
            let mut next = successor(&settings);
            let there = first.hand_over(&mut next);
            let ids = ids.map(|id| there[&id]);
            assert_eq!(ids.map(|id| next.outcome(id)), ["looked up"; 3]);
            next.core.turn_end();
            next.act();
            assert_eq!(next.connects.len(), 1);
            let server = serve(&mut next);
            let asked = next.sent.iter().filter(|(to, _)| *to == Peer::Server(server));
            let asked = asked.filter(|(_, bytes)| bytes.first() == Some(&b'P'));
            assert_eq!(asked.count(), 1, "one asks for all");
            answer_lookup(&mut next, server, Some(PASSWORD));
            for id in [ids[0], ids[2]] {
                let mut talk = Talk { user: "found".into(), heard: 0, exchange: None };
                while next.answer(id, &mut talk, PASSWORD) || next.end_job() {}
                assert_eq!(next.outcome(id), "in", "{auth_type}");
            }
            let early = next.heard(ids[1]).first().unwrap().clone();
            assert_ne!(early.1[..4], [0; 4], "it is asked first");
            let want = if auth_type == "plain" { "in" } else { "SASL authentication failed" };
            assert_eq!(next.outcome(ids[1]), want);
            assert!(next.core.lookups.is_empty());
        }
    }
}

#[test]
fn a_login_that_begins_anew_counts_those_who_come_late() {
    let mut first = Scene::new("auth_type = plain");
    let (inside, server) = looked_up(&mut first);
    answer_lookup(&mut first, server, Some(PASSWORD));
    let mut talk = Talk { user: "found".into(), heard: 0, exchange: None };
    while first.answer(inside, &mut talk, PASSWORD) || first.end_job() {}
    first.core.turn_end();
    first.act();
    serve(&mut first);
    assert!(first.core.clients().get(inside).unwrap().is_inside());
    let begins = first.beginner("found", "q");
    assert!(first.core.is_looked_up(begins));
    let mut next = successor("auth_type = plain\nmax_user_client_connections = 1");
    next.core.set_users(vec![("found".into(), PASSWORD.to_vec())]);
    let from = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
    let rows = first.core.hand_out(Id::none()).into_iter();
    let rows = rows.map(|(row, peer)| (row, peer.map(|_| from)));
    let (late, early): (Vec<_>, Vec<_>) = rows.partition(|(row, _)| Core::idle_for(row).is_some());
    assert_eq!(late.len(), 1);
    let mut taken = next.core.take_in(early);
    assert!(next.core.take_in_late(&late[0].0, from, &mut taken).is_some());
    next.core.all_are_in(taken);
    next.act();
    let left: Vec<bool> = next.core.clients().iter().map(|(_, it)| it.is_inside()).collect();
    assert_eq!(left, [true], "there is no room for another one");
}

#[test]
fn users_that_were_looked_up_are_known_to_the_successor() {
    for secret in [PASSWORD, &stored()] {
        let mut first = Scene::new("auth_type = scram-sha-256");
        let (id, server) = looked_up(&mut first);
        answer_lookup(&mut first, server, Some(secret));
        let mut talk = Talk { user: "found".into(), heard: 0, exchange: None };
        assert!(first.answer(id, &mut talk, PASSWORD));
        while first.end_job() {}
        let mut next = successor("auth_type = scram-sha-256");
        let id = first.hand_over(&mut next)[&id];
        while next.answer(id, &mut talk, PASSWORD) || next.end_job() {}
        assert_eq!(next.outcome(id), "in");
        let key = (next.core.database_names["q"], "found".into());
        let user = next.core.users.get(next.core.fetched[&key]).unwrap();
        assert_eq!(user.keys.is_some(), secret != PASSWORD);
        let mut third = successor("auth_type = scram-sha-256");
        let keys = user.keys.clone();
        next.hand_over(&mut third);
        let key = (third.core.database_names["q"], "found".into());
        let again = third.core.users.get(third.core.fetched[&key]).unwrap();
        assert_eq!(again.keys, keys, "also before the next login");
        // Listed by now with another secret, the proof is held against that one.
        let mut fourth = successor("auth_type = scram-sha-256");
        fourth.core.set_users(vec![("found".into(), b"other".to_vec())]);
        let mut talk = Talk { user: "found".into(), heard: 0, exchange: None };
        let mut first = Scene::new("auth_type = scram-sha-256");
        let (id, server) = looked_up(&mut first);
        answer_lookup(&mut first, server, Some(secret));
        assert!(first.answer(id, &mut talk, PASSWORD));
        while first.end_job() {}
        let id = first.hand_over(&mut fourth)[&id];
        while fourth.answer(id, &mut talk, PASSWORD) || fourth.end_job() {}
        assert_eq!(fourth.outcome(id), "SASL authentication failed");
    }
}

#[test]
fn who_waits_for_the_first_server_is_welcomed_by_the_successor() {
    let mut first = Scene::new("auth_type = trust");
    let id = first.beginner("plain", "d");
    assert!(first.heard(id).is_empty());
    let mut next = successor("auth_type = trust");
    let id = first.hand_over(&mut next)[&id];
    assert!(next.heard(id).is_empty());
    next.core.turn_end();
    next.act();
    serve(&mut next);
    let kinds: String = next.heard(id).iter().map(|(tag, _)| char::from(*tag)).collect();
    assert_eq!(kinds.chars().next().zip(kinds.chars().last()), Some(('R', 'Z')));
}

#[test]
fn a_job_is_waited_for_and_a_handshake_goes_on() {
    let mut first = Scene::new("auth_type = pam");
    assert!(first.core.is_settled());
    let id = first.beginner("plain", "d");
    let other = first.beginner("plain", "d");
    assert!(first.core.is_settled());
    first.say(other, b"p\0\0\0\x0bpencil\0");
    assert!(!first.core.is_settled(), "a job");
    while first.end_job() {}
    assert!(first.core.is_settled());
    first.core.set_stage(id, Stage::Securing);
    assert!(first.core.is_settled(), "the keeper goes on with it");
    let mut next = successor("auth_type = pam");
    let there = first.hand_over(&mut next);
    assert!(next.core.is_starting_tls(there[&id]));
    assert_eq!(next.outcome(there[&other]), "in");
    next.core.secured(Peer::Client(there[&id]), None);
    assert!(!next.core.is_starting_tls(there[&id]));
}

#[test]
fn a_judgement_is_not_asked_for_again() {
    type Change = fn(&mut Scene);
    let same: Change = |_| {};
    let other: Change = |scene| scene.core.set_users(users_but("scram", Some(b"other")));
    for (judged, change, want) in [
        (Ok(Proof::Known), same, "in"),
        (Ok(Proof::Known), other, "password authentication failed"),
        (Ok(Proof::Outside), same, "in"),
        (Err(fault::LDAP_FAILED), same, "LDAP authentication failed"),
    ] {
        let mut first = Scene::new("auth_type = plain");
        let id = first.beginner("scram", "d");
        first.core.note_secret(id);
        first.core.set_stage(id, Stage::Judged(judged));
        let mut next = successor("auth_type = plain");
        change(&mut next);
        let id = first.hand_over(&mut next)[&id];
        next.say(id, b"p\0\0\0\x0bpencil\0");
        assert_eq!(next.outcome(id), want);
        assert!(next.jobs.is_empty());
    }
}

#[test]
fn spoilt_rows_are_survived() {
    let mut first = Scene::new("auth_type = scram-sha-256");
    let (id, server) = looked_up(&mut first);
    answer_lookup(&mut first, server, Some(&stored()));
    let mut talk = Talk { user: "found".into(), heard: 0, exchange: None };
    assert!(first.answer(id, &mut talk, PASSWORD));
    first.beginner("plain", "d");
    first.core.set_parameter("default_pool_size", "7").unwrap();
    while first.end_job() {}
    let rows = first.core.hand_out(Id::none());
    let from = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
    for (at, (row, _)) in rows.iter().enumerate() {
        for byte in 0..row.state.len() {
            let mut next = Scene::new("auth_type = scram-sha-256");
            let mut all: Vec<_> =
                rows.iter().map(|(row, end)| (row.clone(), end.map(|_| from))).collect();
            all[at].0.state[byte] ^= 1 << (byte % 8);
            let len = all.len();
            let taken = next.core.take_in(all);
            assert_eq!(taken.peers.len(), len);
            next.core.all_are_in(taken);
            next.act();
            next.core.turn_end();
            next.core.tick();
            next.act();
        }
    }
}
