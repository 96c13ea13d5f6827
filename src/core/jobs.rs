//! Jobs: what would hold up the loop is done by helper threads. The core says what, with
//! [`Action::Job`], and is told how it ended; who waits for that is kept here. Jobs of one kind
//! begin in order. Those that there is no room for wait here.

use super::database::UserId;
use super::derive::ServerKeys;
use super::face::{Action, ClientId, Peer, ServerId};
use super::fault::{self, Fault};
use super::login::{Proof, Stage};
use super::Core;
use crate::auth::SaltedKeys;
use crate::base::Level;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use zeroize::Zeroizing;

/// Names a job; none is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(u64);

impl JobId {
    /// The job with this number, for tests of what does jobs.
    pub fn numbered(number: u64) -> JobId {
        JobId(number)
    }
}

/// Something that takes long; it owns all that it needs.
pub enum Job {
    /// Keys from a password (RFC 5802, Hi).
    Derive(Derivation),
    /// Ask PAM (auth 8.1).
    Pam(Attempt),
    /// Ask an LDAP server; the text are the options (auth 8.2).
    Ldap(Attempt, String),
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Job::Derive(derivation) => derivation.fmt(f),
            Job::Pam(attempt) | Job::Ldap(attempt, _) => attempt.fmt(f),
        }
    }
}

/// What keys are derived from.
#[derive(Clone)]
pub struct Derivation {
    /// As it was typed.
    pub password: Zeroizing<Vec<u8>>,
    /// Raw bytes.
    pub salt: Vec<u8>,
    /// PBKDF2 iterations.
    pub iterations: u32,
}

impl fmt::Debug for Derivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Derivation({} iterations)", self.iterations)
    }
}

/// A client's name and password, for somebody else to judge.
pub struct Attempt {
    /// The name that the client gave.
    pub user: String,
    /// The password that it sent.
    pub password: Zeroizing<Vec<u8>>,
    /// Where it comes from: an IP address or `unix`.
    pub host: String,
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attempt({:?} from {})", self.user, self.host)
    }
}

/// How a job ended.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Job::Derive`].
    Keys(SaltedKeys),
    /// Of the other two: whether the password is right, and what is to be logged as WARNING.
    Judged {
        /// The password is right.
        accepted: bool,
        /// Lines without prefix.
        lines: Vec<String>,
    },
    /// It was abandoned, or could not be begun.
    GivenUp,
}

/// Kinds of jobs that don't wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Computing.
    Derive,
    /// PAM.
    Pam,
    /// LDAP.
    Ldap,
}

impl Lane {
    /// Number of lanes.
    pub const COUNT: usize = 3;

    /// How many jobs are handed out at most; the others wait in the core.
    const ROOM: usize = 19;

    fn name(self) -> &'static str {
        match self {
            Lane::Derive => "SCRAM",
            Lane::Pam => "PAM",
            Lane::Ldap => "LDAP",
        }
    }
}

impl Job {
    /// Its kind.
    pub fn lane(&self) -> Lane {
        match self {
            Job::Derive(_) => Lane::Derive,
            Job::Pam(_) => Lane::Pam,
            Job::Ldap(..) => Lane::Ldap,
        }
    }
}

/// Who waits for a job, and for what.
pub(super) enum Awaited {
    /// The user's plain-text secret as these clients' proofs are held against it.
    Verifier(UserId, Vec<ClientId>),
    /// Whether this client has sent the password that belongs to a stored SCRAM secret.
    Password(ClientId),
    /// What PAM or LDAP think of this client.
    Outside(ClientId),
    /// Keys that these servers log in with.
    Servers(ServerKeys, Vec<ServerId>),
    /// Whoever waited has gone.
    Nobody,
}

#[derive(Default)]
struct Queue {
    handed_out: usize,
    waiting: VecDeque<(JobId, Job)>,
}

/// All jobs that have not ended.
#[derive(Default)]
pub(super) struct Jobs {
    last: u64,
    awaited: BTreeMap<JobId, (Lane, Awaited)>,
    lanes: [Queue; Lane::COUNT],
    /// Users whose verifiers are made when there is nothing else to derive.
    pub(super) planned: VecDeque<UserId>,
}

impl Jobs {
    fn queue(&mut self, lane: Lane) -> &mut Queue {
        let [derive, pam, ldap] = &mut self.lanes;
        match lane {
            Lane::Derive => derive,
            Lane::Pam => pam,
            Lane::Ldap => ldap,
        }
    }

    /// True while keys are being derived.
    pub(super) fn derives(&self) -> bool {
        let [derive, ..] = &self.lanes;
        derive.handed_out > 0
    }

    /// Everything that somebody waits for.
    pub(super) fn awaited(&mut self) -> impl Iterator<Item = (JobId, &mut Awaited)> {
        self.awaited.iter_mut().map(|(id, (_, awaited))| (*id, awaited))
    }

    /// Who waits for this job.
    pub(super) fn awaited_by(&mut self, id: JobId) -> Option<&mut Awaited> {
        self.awaited.get_mut(&id).map(|(_, awaited)| awaited)
    }
}

impl Core {
    /// How many jobs have not ended.
    pub fn job_count(&self) -> usize {
        self.jobs.awaited.len()
    }

    /// Has a job done, as soon as there is room for it.
    pub(super) fn start_job(&mut self, job: Job, awaited: Awaited) -> JobId {
        self.jobs.last += 1;
        let id = JobId(self.jobs.last);
        let lane = job.lane();
        let client = match &awaited {
            Awaited::Outside(client) => Some(*client),
            _ => None,
        };
        self.jobs.awaited.insert(id, (lane, awaited));
        let queue = self.jobs.queue(lane);
        if queue.handed_out < Lane::ROOM {
            queue.handed_out += 1;
            self.actions.push_back(Action::Job(id, job));
            return id;
        }
        let is_first = queue.waiting.is_empty();
        queue.waiting.push_back((id, job));
        if let Some(client) = client.filter(|_| is_first) {
            let line = format!("{} queue is full, waiting", lane.name());
            self.client_log(client, Level::Warning, &line);
        }
        id
    }

    /// Somebody who waits for a job goes away. A job that nobody waits for is not done.
    pub(super) fn leave_job(&mut self, id: JobId, peer: Peer) {
        let Some((lane, awaited)) = self.jobs.awaited.get_mut(&id) else { return };
        let lane = *lane;
        let is_over = match (&mut *awaited, peer) {
            (Awaited::Servers(_, servers), Peer::Server(gone)) => {
                servers.retain(|server| *server != gone);
                servers.is_empty()
            }
            // The user's next client is glad of it.
            (Awaited::Verifier(_, clients), Peer::Client(gone)) => {
                clients.retain(|client| *client != gone);
                false
            }
            _ => true,
        };
        if !is_over {
            return;
        }
        *awaited = Awaited::Nobody;
        let queue = self.jobs.queue(lane);
        match queue.waiting.iter().position(|(waiting, _)| *waiting == id) {
            Some(at) => {
                queue.waiting.remove(at);
                self.jobs.awaited.remove(&id);
            }
            None => self.actions.push_back(Action::Abandon(id)),
        }
    }

    /// A job that was handed out has ended, however it did.
    pub(super) fn end_job(&mut self, id: JobId, outcome: Outcome) {
        let Some((lane, awaited)) = self.jobs.awaited.remove(&id) else { return };
        let queue = self.jobs.queue(lane);
        match queue.waiting.pop_front() {
            Some((next, job)) => self.actions.push_back(Action::Job(next, job)),
            None => queue.handed_out = queue.handed_out.saturating_sub(1),
        }
        self.tell_outcome(id, lane, awaited, outcome);
        self.make_planned_verifier();
    }

    fn tell_outcome(&mut self, id: JobId, lane: Lane, awaited: Awaited, outcome: Outcome) {
        match (awaited, outcome) {
            (Awaited::Verifier(user, clients), outcome) => {
                self.verifier_made(id, user, clients, outcome);
            }
            (Awaited::Password(client), outcome) => self.password_judged(id, client, outcome),
            (Awaited::Servers(keys, servers), outcome) => {
                self.server_keys_made(id, &keys, servers, outcome);
            }
            (Awaited::Outside(client), Outcome::Judged { accepted, lines }) => {
                for line in lines {
                    self.journal.line(Level::Warning, line);
                }
                let fault = match lane {
                    Lane::Ldap => fault::LDAP_FAILED,
                    _ => fault::PAM_FAILED,
                };
                let proof = if accepted { Ok(Proof::Outside) } else { Err(fault) };
                self.go_on(id, client, Some(proof));
            }
            (Awaited::Outside(client), _) => {
                self.go_on(id, client, Some(Err(fault::BOUNCER_CONFIG_ERROR)));
            }
            (Awaited::Nobody, _) => {}
        }
    }

    /// The packet that a client waits with is looked at again; what has been found out about its
    /// password counts then.
    pub(super) fn go_on(&mut self, job: JobId, id: ClientId, judged: Option<Result<Proof, Fault>>) {
        let login = self.clients.get_mut(id).and_then(|client| client.login.as_mut());
        let Some(login) = login.filter(|login| login.job == Some(job)) else { return };
        login.job = None;
        if let Some(judged) = judged {
            login.stage = Stage::Judged(judged);
        }
        self.actions.push_back(Action::Resume(id));
    }

    /// The client is not read before this job has ended.
    pub(super) fn await_job(&mut self, id: ClientId, job: JobId) {
        if let Some(login) = self.clients.get_mut(id).and_then(|client| client.login.as_mut()) {
            login.job = Some(job);
        }
    }

    /// True if a job has to end before the client is read on.
    pub fn awaits_job(&self, id: ClientId) -> bool {
        let login = self.clients.get(id).and_then(|client| client.login.as_ref());
        login.is_some_and(|login| login.job.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::super::face::{Addr, Decisions, Loss, Origin, Verdict};
    use super::super::login_scene::{stored, Scene, PASSWORD};
    use super::*;
    use crate::wire::write;

    /// A client that has been asked for a password and sends one.
    fn sender(scene: &mut Scene, user: &str, password: &[u8]) -> ClientId {
        let id = scene.beginner(user, "d");
        let mut packet = Vec::new();
        write::password(&mut packet, password);
        scene.say(id, &packet);
        id
    }

    fn judged(accepted: bool) -> Outcome {
        Outcome::Judged { accepted, lines: vec!["a line".into()] }
    }

    #[test]
    fn an_outcome_reaches_nobody_but_who_waits_for_it() {
        let mut scene = Scene::new("auth_type = pam");
        let gone = sender(&mut scene, "ann", PASSWORD);
        let (old, _) = scene.jobs.remove(0);
        scene.core.lost(Peer::Client(gone), Loss::Receive);
        scene.act();
        assert_eq!(scene.abandoned, [old]);
        // The next one takes the place of the one that has gone, under another key.
        let next = sender(&mut scene, "bob", b"wrong");
        assert_ne!(next, gone);
        let (new, _) = scene.jobs.remove(0);
        for _ in 0..2 {
            scene.core.job_done(old, judged(true));
            scene.act();
            assert_eq!(scene.outcome(next), "asked");
        }
        scene.core.job_done(JobId::numbered(99), judged(true));
        scene.core.job_done(new, judged(false));
        scene.act();
        assert_eq!(scene.outcome(next), "PAM authentication failed");
        scene.core.job_done(new, judged(true));
        assert_eq!(scene.core.job_count(), 0);
        assert!(scene.log().contains("Warning a line"));
    }

    #[test]
    fn outcomes_of_another_kind_let_nobody_in() {
        for auth_type in ["pam", "ldap\nauth_ldap_options = x", "plain"] {
            let outcomes: [fn() -> Outcome; 3] = [
                || Outcome::GivenUp,
                || Outcome::Keys(SaltedKeys::derive(PASSWORD, b"salt", 1)),
                || judged(true),
            ];
            for (number, outcome) in outcomes.into_iter().enumerate() {
                let mut scene = Scene::new(&format!("auth_type = {auth_type}"));
                let id = sender(&mut scene, "scram", PASSWORD);
                let (job, _) = scene.jobs.remove(0);
                scene.core.job_done(job, outcome());
                scene.act();
                let fits = number == 2 && auth_type != "plain";
                assert_eq!(scene.outcome(id) == "in", fits, "{auth_type} {number}");
                assert_ne!(scene.outcome(id), "asked", "{auth_type} {number}");
            }
        }
    }

    #[test]
    fn jobs_of_a_kind_are_bounded_and_begin_in_order() {
        let mut scene = Scene::new("auth_type = pam");
        let total = Lane::ROOM + 4;
        let ids: Vec<_> = (0..total).map(|_| sender(&mut scene, "ann", PASSWORD)).collect();
        assert_eq!((scene.jobs.len(), scene.core.job_count()), (Lane::ROOM, total));
        assert_eq!(scene.log().matches("PAM queue is full, waiting").count(), 1);
        // Another kind has room of its own.
        scene.configure("auth_type = plain");
        let other = sender(&mut scene, "scram", PASSWORD);
        assert!(matches!(scene.jobs.pop(), Some((_, Job::Derive(_)))));
        scene.core.lost(Peer::Client(other), Loss::Receive);
        scene.act();
        // One that waits goes away: its job never begins. One whose job runs does not make room.
        for (at, left) in [(Lane::ROOM + 1, 0), (3, 1)] {
            scene.abandoned.clear();
            scene.core.lost(Peer::Client(ids[at]), Loss::Receive);
            scene.act();
            assert_eq!((scene.jobs.len(), scene.abandoned.len()), (Lane::ROOM, left));
        }
        let mut begun: Vec<JobId> = scene.jobs.iter().map(|(id, _)| *id).collect();
        while scene.end_job() {
            begun.extend(scene.jobs.last().map(|(id, _)| *id));
        }
        begun.dedup();
        assert_eq!(begun.len(), total - 1);
        assert!(begun.is_sorted());
        for (at, id) in ids.into_iter().enumerate() {
            let want = if at == 3 || at == Lane::ROOM + 1 { "closed" } else { "in" };
            assert_eq!(scene.outcome(id), want, "{at}");
        }
        assert_eq!(scene.core.jobs.lanes[1].handed_out, 0);
        let [derive, ..] = &scene.core.jobs.lanes;
        assert_eq!(derive.handed_out, 1, "nobody has said how that one ended");
    }

    #[test]
    fn secrets_are_not_shown() {
        let user = "ann".to_owned();
        let attempt = || Attempt {
            user: user.clone(),
            password: PASSWORD.to_vec().into(),
            host: "unix".into(),
        };
        let salt = stored();
        let derivation = Derivation { password: PASSWORD.to_vec().into(), salt, iterations: 1 };
        for (job, want) in [
            (Job::Derive(derivation), "Derivation(1 iterations)"),
            (Job::Pam(attempt()), "Attempt(\"ann\" from unix)"),
            (Job::Ldap(attempt(), "ldapbindpasswd=x".into()), "Attempt(\"ann\" from unix)"),
        ] {
            assert_eq!(format!("{job:?}"), want);
        }
    }

    #[test]
    fn who_waits_for_a_job_is_not_read() {
        let mut scene = Scene::new("auth_type = pam");
        let at = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
        let idle = scene.core.accepted(at);
        let id = sender(&mut scene, "ann", PASSWORD);
        assert!(scene.core.awaits_job(id) && !scene.core.awaits_job(idle));
        for bytes in [&b"p\0\0\0\x06x\0"[..], b"X\0\0\0\x04", b"\0\0\0\x08\x04\xd2\x16\x2f"] {
            assert_eq!(scene.say(id, bytes), Verdict::Wait);
        }
    }
}
