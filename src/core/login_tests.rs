//! Logins step by step: what changes in the midst of one, who is told what, and what that costs.

use super::client::ClientState;
use super::face::Verdict;
use super::face::{Action, Addr, ClientId, Decisions, Loss, Origin, Packet, Peer, ServerId, Sink};
use super::jobs::{Job, JobId, Outcome};
use super::{Core, Surroundings};
use crate::auth::{self, Challenge, ClientExchange, Credential, SaltedKeys, ScramSecret};
use crate::base::{Journal, Micros};
use crate::config::{self, hba, ident::IdentMaps, Settings};
use crate::wire::write;
use std::collections::BTreeMap;

/// The password of everybody who has one.
pub(super) const PASSWORD: &[u8] = b"pencil";

/// A core whose jobs end when the test says so.
pub(super) struct Scene {
    pub(super) core: Core,
    /// Jobs that were handed out.
    pub(super) jobs: Vec<(JobId, Job)>,
    pub(super) abandoned: Vec<JobId>,
    pub(super) connects: Vec<ServerId>,
    /// All that was sent to each connection.
    sent: Vec<(Peer, Vec<u8>)>,
    /// Packets that wait for the end of something.
    unread: BTreeMap<ClientId, Vec<u8>>,
}

fn packet(bytes: &[u8]) -> Packet<'_> {
    let header = if bytes[0] == 0 { 4 } else { 5 };
    let tag = if header == 4 { 0 } else { bytes[0] };
    Packet { tag, len: bytes.len() as u32, seen: &bytes[header..], behind: false }
}

/// A stored SCRAM secret of the password.
pub(super) fn stored() -> Vec<u8> {
    ScramSecret::derive(PASSWORD, b"0123456789abcdef", 2).text().into_bytes()
}

impl Scene {
    /// Databases `d` and, with an auth_user, `q`; `*` besides. These settings, and users with all
    /// kinds of secrets.
    pub(super) fn new(settings: &str) -> Scene {
        let around = Surroundings {
            now: Micros::from_secs(1000),
            seed: [7; 32],
            own_uid: 1000,
            host_name: String::new(),
        };
        let core = Core::new(Settings::default(), around);
        let (jobs, connects, sent) = (Vec::new(), Vec::new(), Vec::new());
        let (abandoned, unread) = (Vec::new(), BTreeMap::new());
        let mut scene = Scene { core, jobs, abandoned, connects, sent, unread };
        scene.configure(settings);
        scene.core.set_users(users());
        scene.act();
        scene
    }

    pub(super) fn configure(&mut self, settings: &str) {
        let text = format!(
            "[databases]\nd = host=127.0.0.1\nq = host=127.0.0.1 auth_user=asker\n* = host=127.0.0.1\n\
             [pgbouncer]\nscram_iterations = 2\npool_mode = transaction\n{settings}\n"
        );
        let mut read = |_: &str| Ok(text.clone().into_bytes());
        let journal = &mut self.core.journal;
        let (config, complete) =
            config::load(&Settings::default(), "x.ini", true, &mut read, journal);
        assert!(complete);
        self.core.configure(config, true);
        self.act();
    }

    pub(super) fn rules(&mut self, text: &str) {
        let mut none = |_: &str| Err(std::io::Error::from_raw_os_error(2));
        let (text, maps) = (text.as_bytes(), IdentMaps::default());
        self.core.set_rules(hba::parse("x", text, &maps, &mut none, &mut Journal::default()));
        self.act();
    }

    pub(super) fn act(&mut self) {
        while let Some(action) = self.core.next_action() {
            match action {
                Action::Connect(id) => self.connects.push(id),
                Action::Job(id, job) => self.jobs.push((id, job)),
                Action::Abandon(id) => self.abandoned.push(id),
                Action::Send(to, bytes) => self.sent.push((to, bytes)),
                Action::Resume(id) => {
                    if let Some(bytes) = self.unread.remove(&id) {
                        self.say(id, &bytes);
                    }
                }
                _ => {}
            }
        }
    }

    pub(super) fn say(&mut self, id: ClientId, bytes: &[u8]) -> Verdict {
        let mut sink = Sink::default();
        let verdict = self.core.client_packet(id, packet(bytes), &mut sink);
        self.sent.push((Peer::Client(id), sink.to_client));
        if verdict == Verdict::Wait {
            self.unread.insert(id, bytes.to_vec());
        }
        self.act();
        verdict
    }

    fn server_says(&mut self, id: ServerId, packets: &[&[u8]]) {
        for bytes in packets {
            self.core.server_packet(id, packet(bytes), &mut Sink::default());
        }
        self.act();
    }

    /// Ends the job that was handed out first.
    pub(super) fn end_job(&mut self) -> bool {
        if self.jobs.is_empty() {
            return false;
        }
        let (id, job) = self.jobs.remove(0);
        let outcome = match job {
            Job::Derive(from) => {
                Outcome::Keys(SaltedKeys::derive(&from.password, &from.salt, from.iterations))
            }
            Job::Pam(attempt) | Job::Ldap(attempt, _) => {
                Outcome::Judged { accepted: *attempt.password == PASSWORD, lines: Vec::new() }
            }
        };
        self.core.job_done(id, outcome);
        self.act();
        true
    }

    /// A client that has sent its start-up packet.
    pub(super) fn beginner(&mut self, user: &str, database: &str) -> ClientId {
        let at = Addr::Inet(([127, 0, 0, 1], 4000).into());
        let id = self.core.accepted(Origin { remote: at, local: Addr::Unknown, uid: None });
        let mut startup = Vec::new();
        let wishes = [("user", user), ("database", database)];
        let wishes = wishes.map(|(key, value)| (key.as_bytes(), value.as_bytes()));
        write::startup(&mut startup, wishes.into_iter());
        self.say(id, &startup);
        id
    }

    /// All packets that a client has got.
    pub(super) fn heard(&self, id: ClientId) -> Vec<(u8, Vec<u8>)> {
        let mut packets = Vec::new();
        for (_, bytes) in self.sent.iter().filter(|(to, _)| *to == Peer::Client(id)) {
            let mut rest = &bytes[..];
            while let [tag, a, b, c, d, more @ ..] = rest {
                let len = u32::from_be_bytes([*a, *b, *c, *d]) as usize - 4;
                packets.push((*tag, more[..len].to_vec()));
                rest = &more[len..];
            }
        }
        packets
    }

    /// "in", the text of the error, "closed", or "asked".
    pub(super) fn outcome(&self, id: ClientId) -> String {
        let fatal = self.heard(id).into_iter().find(|(tag, _)| *tag == b'E');
        match (fatal, self.core.clients.get(id)) {
            (Some((_, body)), None) => {
                let text = body.split(|byte| *byte == 0).find(|field| field.starts_with(b"M"));
                String::from_utf8_lossy(&text.unwrap()[1..]).into_owned()
            }
            (None, None) => "closed".into(),
            (_, Some(client)) if client.state == ClientState::Login => "asked".into(),
            (_, Some(client)) if client.is_looked_up() => "looked up".into(),
            _ => "in".into(),
        }
    }

    pub(super) fn log(&mut self) -> String {
        let lines = std::iter::from_fn(|| self.core.journal.pop());
        lines.map(|(level, line)| format!("{level:?} {line}\n")).collect()
    }

    /// The next thing that a client has to say to log in with this password, as libpq would; false
    /// if there is nothing.
    fn answer(&mut self, id: ClientId, talk: &mut Talk, password: &[u8]) -> bool {
        let heard = self.heard(id);
        let Some((b'R', body)) = heard.last().filter(|_| heard.len() > talk.heard) else {
            return false;
        };
        talk.heard = heard.len();
        let mut out = Vec::new();
        match (body[3], &body[4..]) {
            (3, _) => write::password(&mut out, password),
            (5, salt) => {
                let hash = auth::md5_hash(password, talk.user.as_bytes());
                let salt = salt.try_into().unwrap();
                write::password(&mut out, auth::md5_answer(hash.as_bytes(), salt).as_bytes());
            }
            (10, list) => {
                let credential = Credential::Password(password.to_vec().into());
                let mut exchange = ClientExchange::new(credential, [3; 18]);
                let first = exchange.begin(list).unwrap();
                write::sasl_initial(&mut out, exchange.mechanism(), &first);
                talk.exchange = Some(exchange);
            }
            (11, first) => {
                let exchange = talk.exchange.as_mut().unwrap();
                let Ok(Challenge::Derive { salt, iterations }) = exchange.challenge(first) else {
                    panic!("an odd challenge");
                };
                let keys = SaltedKeys::derive(password, &salt, iterations);
                write::sasl_response(&mut out, &exchange.answer(keys).unwrap());
            }
            _ => return false,
        }
        self.say(id, &out);
        true
    }

    /// A whole login with this password; `between` is called before each step, from 0 on. Returns
    /// how it ended and how many steps it had.
    fn login(
        &mut self,
        user: &str,
        password: &[u8],
        mut between: impl FnMut(&mut Scene, usize),
    ) -> (ClientId, String, usize) {
        let id = self.beginner(user, "d");
        let mut talk = Talk { user: user.to_owned(), heard: 0, exchange: None };
        for step in 0.. {
            between(self, step);
            if !self.answer(id, &mut talk, password) && !self.end_job() {
                return (id, self.outcome(id), step);
            }
        }
        unreachable!()
    }
}

struct Talk {
    user: String,
    heard: usize,
    exchange: Option<ClientExchange>,
}

fn users() -> Vec<(String, Vec<u8>)> {
    let of = |name: &str, secret: &[u8]| (name.to_owned(), secret.to_vec());
    let md5 = auth::md5_hash(PASSWORD, b"md");
    vec![of("plain", PASSWORD), of("md", md5.as_bytes()), of("scram", &stored()), of("empty", b"")]
}

/// Users without one of theirs, or with another secret for it.
fn users_but(name: &str, secret: Option<&[u8]>) -> Vec<(String, Vec<u8>)> {
    let mut users = users();
    users.retain(|(user, _)| user != name);
    users.extend(secret.map(|secret| (name.to_owned(), secret.to_vec())));
    users
}

const TYPES: &[(&str, &str)] = &[
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
            scene.core.set_tls_modes(config::SslMode::Prefer, config::SslMode::Disable);
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
fn looked_up(scene: &mut Scene) -> (ClientId, ServerId) {
    let id = scene.beginner("found", "q");
    assert_eq!(scene.outcome(id), "looked up");
    scene.core.turn_end();
    scene.act();
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
    (id, server)
}

/// The answer to a look-up: a row with this secret, if there is one.
fn answer_lookup(scene: &mut Scene, server: ServerId, secret: Option<&[u8]>) {
    let mut row = Vec::new();
    if let Some(secret) = secret {
        write::data_row(&mut row, [Some(&b"found"[..]), Some(secret)].into_iter());
    }
    let mut packets = vec![&b"1\0\0\0\x04"[..], b"2\0\0\0\x04", b"T\0\0\0\x06\0\x02"];
    packets.extend((!row.is_empty()).then_some(&row[..]));
    packets.extend([&b"C\0\0\0\x05\0"[..], b"Z\0\0\0\x05I"]);
    scene.server_says(server, &packets);
    scene.core.server_drained(server);
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
