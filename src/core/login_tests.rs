//! Logins step by step: what changes in the midst of one, who is told what, and what that costs.

use super::face::{Addr, ClientId, Decisions, Loss, Packet, Peer, ServerId, Sink, Verdict};
use super::jobs::Job;
use super::login_scene::{stored, users, users_but, Scene, Talk, PASSWORD};
use crate::auth::ScramSecret;
use crate::base::Micros;
use crate::config;
use crate::wire::write;

pub(super) const TYPES: &[(&str, &str)] = &[
    ("plain", "plain"),
    ("plain", "md"),
    ("plain", "scram"),
    ("md5", "plain"),
    ("md5", "md"),
    ("md5", "scram"),
    ("scram-sha-256", "plain"),
    ("scram-sha-256", "scram"),
];

#[test]
fn a_secret_that_is_gone_or_changed_lets_nobody_in_whenever_that_happens() {
    let other = ScramSecret::derive(b"other", b"0123456789abcdef", 2).text().into_bytes();
    for (auth_type, user) in TYPES {
        let mut scene = Scene::new(&format!("auth_type = {auth_type}"));
        while scene.end_job() {}
        let (_, outcome, steps) = scene.login(user, PASSWORD, |_, _| {});
        assert_eq!(outcome, "in", "{auth_type} {user}");
        for step in 0..steps {
            for secret in [None, Some(&b"other"[..]), Some(&other)] {
                let mut scene = Scene::new(&format!("auth_type = {auth_type}"));
                let (id, outcome, _) = scene.login(user, PASSWORD, |scene, at| {
                    if at == step {
                        scene.core.set_users(users_but(user, secret));
                        scene.act();
                    }
                });
                assert!(
                    outcome.ends_with(" authentication failed"),
                    "{auth_type} {user} {outcome}"
                );
                assert!(!scene.heard(id).iter().any(|(_, body)| *body == [0; 4]));
                let user = scene.core.users.get(scene.core.user_names[*user]).unwrap();
                assert!(user.keys.is_none(), "keys of a secret that is gone");
            }
            // The same list once more, other rules or iterations hurt nobody.
            let mut scene = Scene::new(&format!("auth_type = {auth_type}"));
            let (_, outcome, _) = scene.login(user, PASSWORD, |scene, at| {
                if at == step {
                    scene.core.set_users(users());
                    scene.configure("auth_type = scram-sha-256\nscram_iterations = 3");
                    scene.rules("local all all trust");
                }
            });
            assert_eq!(outcome, "in", "{auth_type} {user} {step}");
        }
    }
}

#[test]
fn a_database_that_goes_takes_who_logs_in_with_it_whenever_that_happens() {
    for (auth_type, user) in TYPES {
        for step in 0..3 {
            let mut scene = Scene::new(&format!("auth_type = {auth_type}"));
            let (_, outcome, steps) = scene.login(user, PASSWORD, |scene, at| {
                if at == step {
                    let id = scene.core.database_names["d"];
                    scene.core.drop_database(id);
                    scene.act();
                }
            });
            let is_late = steps < step;
            assert_eq!(outcome == "in", is_late, "{auth_type} {user} {step}: {outcome}");
            assert!(is_late || outcome == "database removed", "{outcome}");
            while scene.end_job() {}
            assert_eq!(scene.core.job_count(), 0);
        }
    }
}

/// What a client sees of its login: kinds and sizes of messages; the text of an error.
fn seen(scene: &Scene, id: ClientId) -> Vec<(u8, usize, Vec<u8>)> {
    let shape = |(tag, body): (u8, Vec<u8>)| match tag {
        b'E' => (tag, body.len(), body),
        _ => (tag, body.len(), body[..4].to_vec()),
    };
    scene.heard(id).into_iter().map(shape).collect()
}

#[test]
fn nobody_is_told_who_exists() {
    let everybody = ["nobody", "other", "empty", "plain", "md", "scram"];
    for (auth_type, users) in [
        ("plain", &everybody[..]),
        // Who has a SCRAM secret is asked for SCRAM: so the contract has it.
        ("md5", &everybody[..5]),
        ("scram-sha-256", &everybody),
    ] {
        let mut scene = Scene::new(&format!("auth_type = {auth_type}"));
        while scene.end_job() {}
        let mut first = None;
        for user in users {
            for _ in 0..2 {
                let mut jobs = 0;
                let (id, outcome, steps) = scene.login(user, b"wrong", |scene, _| {
                    jobs += scene.jobs.len();
                });
                assert!(outcome.ends_with(" authentication failed"), "{auth_type} {user}");
                let got = (steps, jobs, seen(&scene, id));
                assert_eq!(*first.get_or_insert_with(|| got.clone()), got, "{auth_type} {user}");
            }
        }
        // A derivation for everybody, if it takes one for somebody.
        assert_eq!(first.map(|(_, jobs, _)| jobs), Some(usize::from(auth_type == "plain")));
    }
}

#[test]
fn wrong_passwords_cost_no_derivation_where_no_secret_needs_one() {
    let mut scene = Scene::new("auth_type = plain");
    scene.core.set_users(users_but("scram", None));
    for user in ["nobody", "plain", "md"] {
        let (_, outcome, steps) = scene.login(user, b"wrong", |_, _| {});
        assert_eq!((&*outcome, steps), ("password authentication failed", 1));
        assert_eq!(scene.core.job_count(), 0);
    }
}

#[test]
fn salts_stay_whoever_is_asked_about() {
    let mut scene = Scene::new("auth_type = scram-sha-256");
    while scene.end_job() {}
    let mut challenge = |user: &str| {
        let (id, ..) = scene.login(user, b"wrong", |_, _| {});
        let (_, body) = scene.heard(id).into_iter().find(|(_, body)| body[3] == 11).unwrap();
        let text = String::from_utf8(body[4..].to_vec()).unwrap();
        text[text.find(",s=").unwrap()..].to_owned()
    };
    let mut all = Vec::new();
    for user in ["nobody", "other", "empty", "md", "plain", "scram"] {
        let one = challenge(user);
        assert_eq!(one, challenge(user), "{user}");
        assert_eq!(one.len(), ",s=,i=2".len() + 24);
        assert!(!all.contains(&one), "{user}");
        all.push(one);
    }
}

/// Packets without a type byte in the midst of a login.
#[test]
fn openings_have_their_time() {
    let ssl = &[0, 0, 0, 8, 4, 210, 22, 47][..];
    let gss = &[0, 0, 0, 8, 4, 210, 22, 48][..];
    let hello = b"\0\0\0\x10\0\x03\0\0user\0u\0\0";
    for (tls, bytes, want, logged) in [
        (false, ssl, "asked", ""),
        (true, ssl, "closed", "bad packet"),
        (false, gss, "asked", ""),
        (true, gss, "asked", ""),
        (true, &hello[..], "client re-sent startup pkt", ""),
    ] {
        let mut scene = Scene::new("auth_type = md5");
        if tls {
            scene.core.set_tls_modes(
                config::SslMode::Prefer,
                config::SslMode::Disable,
                String::new(),
            );
        }
        let id = scene.beginner("plain", "d");
        scene.say(id, bytes);
        assert_eq!(scene.outcome(id), want, "{tls} {bytes:?}");
        assert!(scene.log().contains(logged), "{tls} {bytes:?}");
        if want == "asked" {
            assert_eq!(scene.sent.last().unwrap().1, b"N");
            let mut talk = Talk { user: "plain".into(), heard: 0, exchange: None };
            let challenge = scene.heard(id)[0].clone();
            scene.sent = vec![(Peer::Client(id), packet_of(&challenge))];
            assert!(scene.answer(id, &mut talk, PASSWORD));
            assert_eq!(scene.outcome(id), "in", "the login goes on");
        }
    }
}

fn packet_of((tag, body): &(u8, Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write::packet(&mut out, *tag, |out| out.extend_from_slice(body));
    out
}

/// A client whose user is being looked up by this server.
pub(super) fn looked_up(scene: &mut Scene) -> (ClientId, ServerId) {
    let id = scene.beginner("found", "q");
    assert_eq!(scene.outcome(id), "looked up");
    scene.core.turn_end();
    scene.act();
    (id, serve(scene))
}

/// The server that is to be connected logs in.
pub(super) fn serve(scene: &mut Scene) -> ServerId {
    let server = scene.connects.pop().unwrap();
    scene.core.connected(server, Addr::Unknown, Addr::Unknown);
    let welcome: [&[u8]; 4] = [
        b"R\0\0\0\x08\0\0\0\0",
        b"S\0\0\0\x11TimeZone\0GMT\0",
        b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x02",
        b"Z\0\0\0\x05I",
    ];
    scene.server_says(server, &welcome);
    scene.core.turn_end();
    scene.act();
    server
}

/// The answer to a look-up: a row with this secret, if there is one.
pub(super) fn answer_lookup(scene: &mut Scene, server: ServerId, secret: Option<&[u8]>) {
    let mut row = Vec::new();
    if let Some(secret) = secret {
        write::data_row(&mut row, [Some(&b"found"[..]), Some(secret)].into_iter());
    }
    let mut packets = vec![&b"1\0\0\0\x04"[..], b"2\0\0\0\x04", b"T\0\0\0\x06\0\x02"];
    packets.extend((!row.is_empty()).then_some(&row[..]));
    packets.extend([&b"C\0\0\0\x05\0"[..], b"Z\0\0\0\x05I"]);
    scene.server_says(server, &packets);
    scene.core.server_drained(server, &mut Sink::default());
    scene.core.turn_end();
    scene.act();
}

#[test]
fn what_a_reload_brings_during_a_look_up_counts() {
    type Change = fn(&mut Scene);
    for (change, want) in [
        ((|_| {}) as Change, "in"),
        (|scene| scene.rules("host all all all reject"), "login rejected"),
        (|scene| scene.rules("host d all all trust"), "no authentication method is found"),
        (|scene| scene.rules("host all all all md5"), "asked"),
        (|scene| scene.configure("auth_type = md5"), "asked"),
        (|scene| scene.configure("auth_type = pam"), "bouncer config error"),
        (|scene| scene.configure("auth_type = any"), "bouncer config error"),
    ] {
        let mut scene = Scene::new("auth_type = hba");
        scene.rules("host all all all trust");
        let (id, server) = looked_up(&mut scene);
        change(&mut scene);
        answer_lookup(&mut scene, server, Some(PASSWORD));
        assert_eq!(scene.outcome(id), want);
    }
    // Who is listed by now has the secret of the list.
    let mut scene = Scene::new("auth_type = plain");
    let (id, server) = looked_up(&mut scene);
    scene.core.set_users(vec![("found".into(), b"listed".to_vec())]);
    answer_lookup(&mut scene, server, Some(PASSWORD));
    let mut talk = Talk { user: "found".into(), heard: 0, exchange: None };
    scene.answer(id, &mut talk, b"listed");
    assert_eq!(scene.outcome(id), "in");
}

#[test]
fn what_a_later_look_up_finds_counts_for_who_is_logging_in() {
    let other = ScramSecret::derive(b"other", b"0123456789abcdef", 2).text().into_bytes();
    for auth_type in ["plain", "md5", "scram-sha-256"] {
        for first in [PASSWORD, &stored()] {
            for later in [Some(first), None, Some(&b"other"[..]), Some(&other)] {
                let mut scene = Scene::new(&format!("auth_type = {auth_type}"));
                let (id, server) = looked_up(&mut scene);
                answer_lookup(&mut scene, server, Some(first));
                let mut talk = Talk { user: "found".into(), heard: 0, exchange: None };
                if auth_type == "scram-sha-256" {
                    assert!(scene.answer(id, &mut talk, PASSWORD));
                    while scene.end_job() {}
                }
                let second = scene.beginner("found", "q");
                scene.core.turn_end();
                scene.act();
                answer_lookup(&mut scene, server, later);
                assert_ne!(scene.outcome(second), "looked up");
                while scene.answer(id, &mut talk, PASSWORD) || scene.end_job() {}
                let is_in = scene.outcome(id) == "in";
                assert_eq!(is_in, later == Some(first), "{auth_type} {}", scene.outcome(id));
            }
        }
    }
}

#[test]
fn a_database_is_in_use_while_somebody_logs_in() {
    let settings = "auth_type = plain\nautodb_idle_timeout = 100\nclient_login_timeout = 0\n\
                    query_wait_timeout = 0\nauth_user = asker\nauth_dbname = d";
    let mut scene = Scene::new(settings);
    let ids = [scene.beginner("found", "made"), scene.beginner("plain", "other")];
    for _ in 0..200 {
        scene.core.now = scene.core.now + Micros::from_secs(1);
        scene.core.tick();
        scene.act();
    }
    assert_eq!(ids.map(|id| scene.outcome(id)), ["looked up", "asked"]);
    for id in ids {
        scene.core.lost(Peer::Client(id), Loss::Receive);
    }
    for _ in 0..200 {
        scene.core.now = scene.core.now + Micros::from_secs(1);
        scene.core.tick();
        scene.act();
    }
    for name in ["made", "other"] {
        assert!(!scene.core.database_names.contains_key(name), "{name}");
    }
}

/// auth 10.3-B: also for the methods that look at no secret.
#[test]
fn removed_users_are_unknown_to_every_method() {
    let mut scene = Scene::new("auth_type = trust");
    let enters = |scene: &mut Scene, user: &str| {
        let id = scene.beginner(user, "d");
        scene.outcome(id)
    };
    assert_eq!(enters(&mut scene, "empty"), "in");
    scene.core.set_users(users_but("empty", None));
    assert_eq!(enters(&mut scene, "empty"), "\"trust\" authentication failed");
    for (method, text) in
        [("peer", "unix socket login rejected"), ("cert", "certificate authentication failed")]
    {
        scene.configure("auth_type = hba");
        scene.rules(&format!("host all all all {method}"));
        assert_eq!(enters(&mut scene, "empty"), text);
    }
}

/// auth 10.3-G and L: one rule decides, for known and unknown users, and brings its own options.
#[test]
fn one_rule_decides_and_brings_its_own_options() {
    let mut scene = Scene::new("auth_type = hba\nauth_ldap_options = global");
    scene.rules(
        "host replication all all trust\nhost d one all ldap ldapscheme=ldaps ldapsearchfilter=f\n\
         host d two all ldap\nhost d plain all ldap third\nhost all all all reject\n",
    );
    for (user, want) in [
        ("one", "ldapscheme=ldaps ldapsearchfilter=f"),
        ("two", ""),
        ("plain", "third"),
        ("one", "ldapscheme=ldaps ldapsearchfilter=f"),
    ] {
        let (id, outcome, _) = scene.login(user, b"wrong", |scene, _| {
            if let Some((_, job)) = scene.jobs.first() {
                assert!(matches!(job, Job::Ldap(_, options) if options == want), "{user}");
            }
        });
        assert_eq!(outcome, "LDAP authentication failed", "{user}");
        assert_eq!(scene.heard(id)[0].1, [0, 0, 0, 3]);
    }
    let (_, outcome, _) = scene.login("three", b"wrong", |_, _| {});
    assert_eq!(outcome, "login rejected");
}

/// auth 10.3-H.
#[test]
fn nothing_is_kept_of_strangers() {
    for auth_type in
        ["plain", "md5", "scram-sha-256", "trust", "pam", "ldap\nauth_ldap_options = x"]
    {
        let mut scene = Scene::new(&format!("auth_type = {auth_type}"));
        while scene.end_job() {}
        let counts = |scene: &Scene| (scene.core.users.len(), scene.core.pools.len());
        let before = counts(&scene);
        for number in 0..50 {
            let (_, outcome, _) = scene.login(&format!("s{number}"), b"wrong", |_, _| {});
            assert!(outcome.ends_with("failed"), "{outcome}");
        }
        assert_eq!(counts(&scene), before, "{auth_type}");
        assert_eq!((scene.core.job_count(), scene.core.clients.len()), (0, 0));
    }
}

/// auth 10.3-I: what is too long is neither read nor refused; the login timeout ends it.
#[test]
fn strangers_can_not_make_us_collect_much() {
    let mut scene = Scene::new("auth_type = plain");
    let id = scene.beginner("plain", "d");
    for (len, want) in
        [(70_001, Verdict::Wait), (70_000, Verdict::Whole), (u32::MAX, Verdict::Wait)]
    {
        let announced = Packet { tag: b'p', len, seen: b"x", behind: false };
        assert_eq!(scene.core.client_packet(id, announced, &mut Sink::default()), want, "{len}");
    }
    assert_eq!(scene.outcome(id), "asked");
}

/// CVE-2012-4575.
#[test]
fn overlong_names_of_automatic_databases_are_unknown_ones() {
    let mut scene = Scene::new("auth_type = trust");
    let long = "d".repeat(64);
    let id = scene.beginner("plain", &long);
    let shown = &long[..63];
    assert_eq!(scene.outcome(id), format!("no such database: {shown}"));
    assert!(scene.log().contains(&format!("Warning too long db name: {long}")));
}
