//! A core for tests of logins: packets in, packets and jobs out.

use super::client::ClientState;
use super::face::Verdict;
use super::face::{Action, Addr, ClientId, Decisions, Origin, Packet, Peer, ServerId, Sink};
use super::jobs::{Job, JobId, Outcome};
use super::{Core, Surroundings};
use crate::auth::{self, Challenge, ClientExchange, Credential, SaltedKeys, ScramSecret};
use crate::base::{Id, Journal, Micros};
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
    pub(super) sent: Vec<(Peer, Vec<u8>)>,
    /// Packets that wait for the end of something.
    pub(super) unread: BTreeMap<ClientId, Vec<u8>>,
}

pub(super) fn packet(bytes: &[u8]) -> Packet<'_> {
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

    pub(super) fn server_says(&mut self, id: ServerId, packets: &[&[u8]]) {
        for bytes in packets {
            self.core.server_packet(id, packet(bytes), &mut Sink::default());
        }
        self.act();
    }

    /// Another core goes on with everybody: who they are there. What they have heard and what waits
    /// of theirs goes with them.
    pub(super) fn hand_over(&self, to: &mut Scene) -> BTreeMap<ClientId, ClientId> {
        let at = Addr::Inet(([127, 0, 0, 1], 4000).into());
        let from = Origin { remote: at, local: Addr::Unknown, uid: None };
        let (rows, peers): (Vec<_>, Vec<_>) = self.core.hand_out(Id::none()).into_iter().unzip();
        let ends = peers.iter().map(|peer| peer.map(|_| from));
        let rows = rows.into_iter().map(super::carry::tests::planted);
        let taken = to.core.take_in(rows.zip(ends).collect());
        let pairs = peers.into_iter().zip(&taken.peers).filter_map(|pair| match pair {
            (Some(Peer::Client(old)), Some(Peer::Client(new))) => Some((old, *new)),
            _ => None,
        });
        let there: BTreeMap<ClientId, ClientId> = pairs.collect();
        to.core.all_are_in(taken);
        for (peer, bytes) in &self.sent {
            if let Some(new) = old_client(*peer).and_then(|old| there.get(&old)) {
                to.sent.push((Peer::Client(*new), bytes.clone()));
            }
        }
        for (old, bytes) in &self.unread {
            to.unread.extend(there.get(old).map(|new| (*new, bytes.clone())));
        }
        to.act();
        there
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
    pub(super) fn answer(&mut self, id: ClientId, talk: &mut Talk, password: &[u8]) -> bool {
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
    pub(super) fn login(
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

fn old_client(peer: Peer) -> Option<ClientId> {
    match peer {
        Peer::Client(id) => Some(id),
        Peer::Server(_) => None,
    }
}

/// How far a client has come.
pub(super) struct Talk {
    pub(super) user: String,
    pub(super) heard: usize,
    pub(super) exchange: Option<ClientExchange>,
}

/// Users with all kinds of secrets.
pub(super) fn users() -> Vec<(String, Vec<u8>)> {
    let of = |name: &str, secret: &[u8]| (name.to_owned(), secret.to_vec());
    let md5 = auth::md5_hash(PASSWORD, b"md");
    vec![of("plain", PASSWORD), of("md", md5.as_bytes()), of("scram", &stored()), of("empty", b"")]
}

/// Users without one of theirs, or with another secret for it.
pub(super) fn users_but(name: &str, secret: Option<&[u8]>) -> Vec<(String, Vec<u8>)> {
    let mut users = users();
    users.retain(|(user, _)| user != name);
    users.extend(secret.map(|secret| (name.to_owned(), secret.to_vec())));
    users
}
