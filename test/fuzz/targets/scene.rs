//! A core and a real relay around it, over wires without sockets.

use pgturnstile::auth::SaltedKeys;
use pgturnstile::base::{Journal, Micros, Objects};
use pgturnstile::config::{self, Settings};
use pgturnstile::console::{self, Around, Listening};
use pgturnstile::core::{Action, Addr, ClientId, Core, Decisions, Loss, Origin, Peer};
use pgturnstile::core::{Job, JobId, Outcome, ServerId, Surroundings};
use pgturnstile::net::conn::{Pending, Wire};
use pgturnstile::net::relay::{Limits, Relay};
use pgturnstile::net::resolve::{Host, Zone};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::rc::Rc;

/// The password of every user with one.
pub(super) const PASSWORD: &[u8] = b"a long pencil";

/// The far end of a wire.
#[derive(Default)]
struct End {
    /// On its way to the pooler.
    sent: VecDeque<u8>,
    closed: bool,
    /// What the pooler has sent.
    got: Vec<u8>,
}

#[derive(Clone, Default)]
struct Pipe(Rc<RefCell<End>>);

impl Wire for Pipe {
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut end = self.0.borrow_mut();
        if end.sent.is_empty() && !end.closed {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = end.sent.len().min(into.len());
        for (to, from) in into.iter_mut().zip(end.sent.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().got.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn want_write(&mut self, _wanted: bool) -> io::Result<()> {
        Ok(())
    }
}

/// One process, its clients and servers.
pub(super) struct Scene {
    pub(super) core: Core,
    relay: Relay<Pipe>,
    ends: Vec<(Peer, Pipe)>,
    /// Servers that are wanted and not yet connected.
    pub(super) connects: Vec<ServerId>,
    /// The process wants to end.
    pub(super) exit: bool,
    /// The log so far.
    pub(super) log: Vec<String>,
    /// Jobs that have not ended; without such a list they end at once.
    pub(super) jobs: Option<Vec<(JobId, Job)>>,
}

/// Reads a configuration that must be right.
pub(super) fn configured(text: &str) -> Core {
    let around = Surroundings {
        now: Micros::from_secs(1_000_000),
        seed: [7; 32],
        own_uid: 1000,
        host_name: "host".into(),
    };
    let mut core = Core::new(Settings::default(), around);
    let mut read = |_: &str| Ok(text.as_bytes().to_vec());
    let mut journal = Journal::default();
    let (config, complete) =
        config::load(&Settings::default(), "x.ini", true, &mut read, &mut journal);
    assert!(complete, "{:?}", journal.pop());
    core.configure(config, true);
    core
}

impl Scene {
    /// Some databases; these lines besides go to `[pgbouncer]`.
    pub(super) fn new(settings: &str) -> Scene {
        let core = configured(&format!(
            "[databases]\nd = host=127.0.0.1 pool_size=2\n* = host=127.0.0.1\n\
             [users]\nu = pool_size=1\n[pgbouncer]\nadmin_users = boss\nstats_users = watcher\n\
             {settings}\n"
        ));
        let mut scene = Scene::around(core);
        scene.list_users(true);
        scene
    }

    fn around(core: Core) -> Scene {
        // A small scratch buffer cuts packets in many places.
        let relay = Relay::with_scratch(Limits { rounds: 5, unsent: 4096 }, 64);
        let (ends, connects, log) = (Vec::new(), Vec::new(), Vec::new());
        Scene { core, relay, ends, connects, exit: false, log, jobs: None }
    }

    /// Users with all kinds of secrets; or others, so that most are gone.
    pub(super) fn list_users(&mut self, all: bool) {
        let scram = b"SCRAM-SHA-256$1:MDEyMzQ1Njc4OWFiY2RlZg==\
                      $AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\
                      :AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let mut users = vec![
            ("u".into(), PASSWORD.to_vec()),
            ("boss".into(), PASSWORD.to_vec()),
            ("watcher".into(), PASSWORD.to_vec()),
            ("empty".into(), Vec::new()),
            ("md5".into(), b"md50123456789abcdef0123456789abcdef".to_vec()),
            ("scram".into(), scram.to_vec()),
        ];
        if !all {
            users.truncate(1);
            users.push(("scram".into(), b"another pencil".to_vec()));
        }
        self.core.set_users(users);
        self.settle();
    }

    /// A job ends, this one if there are so many.
    pub(super) fn end_job(&mut self, at: usize) {
        let Some(jobs) = self.jobs.as_mut().filter(|jobs| !jobs.is_empty()) else { return };
        let (id, job) = jobs.remove(at.min(jobs.len() - 1));
        self.core.job_done(id, outcome(&job));
        self.settle();
    }

    /// All jobs end, and those that follow from that.
    pub(super) fn end_jobs(&mut self) {
        while self.jobs.as_ref().is_some_and(|jobs| !jobs.is_empty()) {
            self.end_job(0);
        }
    }

    /// A client on TCP, or on a Unix socket of our own user.
    pub(super) fn client(&mut self, unix: bool) -> Peer {
        let remote = match unix {
            true => Addr::Unix { pid: 17 },
            false => Addr::Inet(([127, 0, 0, 1], 4000).into()),
        };
        let origin = Origin { remote, local: Addr::Unknown, uid: unix.then_some(1000) };
        let id = self.core.accepted(origin);
        let pipe = Pipe::default();
        self.ends.push((Peer::Client(id), pipe.clone()));
        self.relay.insert_client(id, pipe);
        self.settle();
        Peer::Client(id)
    }

    /// Opens the connection to the server that has been wanted longest.
    pub(super) fn connect(&mut self) -> Option<Peer> {
        if self.connects.is_empty() {
            return None;
        }
        let id = self.connects.remove(0);
        let far = Addr::Inet(([127, 0, 0, 1], 5432).into());
        self.core.dialling(id, far);
        let pipe = Pipe::default();
        self.ends.push((Peer::Server(id), pipe.clone()));
        self.relay.insert_server(id, pipe);
        self.core.connected(id, Addr::Unknown, far);
        self.settle();
        Some(Peer::Server(id))
    }

    /// Bytes from the far end.
    pub(super) fn say(&mut self, from: Peer, bytes: &[u8]) {
        let Some((_, pipe)) = self.ends.iter().find(|(peer, _)| *peer == from) else { return };
        pipe.0.borrow_mut().sent.extend(bytes);
        self.relay.mark_readable(from, false);
        self.relay.pump(from, &mut self.core);
        self.settle();
    }

    /// The end of the far end.
    pub(super) fn hang_up(&mut self, from: Peer) {
        let Some((_, pipe)) = self.ends.iter().find(|(peer, _)| *peer == from) else { return };
        pipe.0.borrow_mut().closed = true;
        self.relay.mark_readable(from, true);
        self.relay.pump(from, &mut self.core);
        self.settle();
    }

    /// Seconds pass.
    pub(super) fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.core.now = self.core.now + Micros::from_secs(1);
            self.core.tick();
            self.settle();
        }
    }

    /// True until the pooler has closed the connection.
    pub(super) fn is_open(&self, peer: Peer) -> bool {
        self.relay.wire(peer).is_some()
    }

    /// All that the pooler has sent to this far end.
    pub(super) fn got(&self, peer: Peer) -> Vec<u8> {
        let found = self.ends.iter().find(|(of, _)| *of == peer);
        found.map_or_else(Vec::new, |(_, pipe)| pipe.0.borrow().got.clone())
    }

    /// Everything that follows from what has happened, to the end of the turn.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.perform();
            if !self.relay.pump_ready(&mut self.core) {
                self.core.go_on_console(|_| true);
                self.core.turn_end();
                let relay = &self.relay;
                self.core.check_suspension(|peer| relay.is_idle(peer));
                self.perform();
                let more = self.core.is_pending() || self.core.has_left(|_| true);
                if !more && !self.relay.pending() {
                    return;
                }
            }
        }
        panic!("the turn never ends");
    }

    fn perform(&mut self) {
        while let Some(action) = self.core.next_action() {
            match action {
                Action::Connect(id) => self.connects.push(id),
                Action::Resume(id) => self.relay.resume(id, &mut self.core),
                Action::Send(peer, bytes) => self.relay.send(peer, &bytes, &mut self.core),
                Action::SendRow(id, row, socket) => {
                    self.relay.send_row(id, &row, socket, &mut self.core, &|_| None);
                }
                Action::Close(peer) => drop(self.relay.close(peer)),
                Action::Console(id) => {
                    console::run(&mut self.core, &Outside, id);
                }
                Action::Reload(id) => self.reload(id),
                Action::Suspend(on) => self.relay.suspend(on),
                Action::Exit(_) => self.exit = true,
                Action::StartTls(peer) => self.core.secured(peer, None),
                Action::Job(id, job) => match &mut self.jobs {
                    Some(jobs) => jobs.push((id, job)),
                    None => self.core.job_done(id, outcome(&job)),
                },
                _ => {}
            }
        }
        while let Some((_, line)) = self.core.journal.pop() {
            self.log.push(line);
        }
    }

    /// A configuration that can't be read changes nothing.
    fn reload(&mut self, console: Option<ClientId>) {
        if let Some(id) = console {
            console::reload_done(&mut self.core, id, false);
        }
    }

    /// No server can be reached.
    pub(super) fn refuse_servers(&mut self) {
        while let Some(id) = self.connects.pop() {
            self.core.lost(Peer::Server(id), Loss::Connect);
            self.settle();
        }
    }
}

/// How a job ends: everybody else knows the one password, and nobody takes long.
fn outcome(job: &Job) -> Outcome {
    const ITERATIONS_MAX: u32 = 10_000;
    match job {
        Job::Derive(from) if from.iterations <= ITERATIONS_MAX => {
            Outcome::Keys(SaltedKeys::derive(&from.password, &from.salt, from.iterations))
        }
        Job::Derive(_) => Outcome::GivenUp,
        Job::Pam(attempt) | Job::Ldap(attempt, _) => {
            Outcome::Judged { accepted: *attempt.password == PASSWORD, lines: Vec::new() }
        }
    }
}

/// A process of which there is nothing to tell.
struct Outside;

impl Around for Outside {
    fn time_text(&self, at: Micros) -> String {
        format!("second {}", at.secs())
    }
    fn dns_hosts(&self) -> Vec<Host> {
        Vec::new()
    }
    fn dns_zones(&self) -> Vec<Zone> {
        Vec::new()
    }
    fn pending(&self, _peer: Peer) -> Pending {
        Pending::default()
    }
    fn connection_size(&self) -> usize {
        100
    }
    fn buffers(&self) -> Objects {
        Objects::default()
    }
    fn descriptor(&self, _peer: Peer) -> Option<i32> {
        Some(9)
    }
    fn set_up_tls(&self, _settings: &Settings) -> Result<(), String> {
        Ok(())
    }
    fn listening(&self) -> Vec<Listening> {
        vec![Listening { number: 0, fd: 7, addr: Addr::Inet(([127, 0, 0, 1], 6432).into()) }]
    }
}

/// Panics unless the bytes are packets one behind the other; the last may be incomplete. `answers`
/// tells that an `N` for an SSLRequest may come first.
pub(super) fn assert_packets(mut bytes: &[u8], mut answers: bool) {
    while let [tag, rest @ ..] = bytes {
        let len = rest.first_chunk().map(|len| u32::from_be_bytes(*len));
        answers &= *tag == b'N';
        if answers && len.is_none_or(|len| len > 0x10_0000) {
            bytes = rest;
            continue;
        }
        assert!(tag.is_ascii_graphic(), "no type: {tag}");
        let Some(len) = len else { return };
        assert!(len >= 4, "no length: {len}");
        bytes = rest.get(len as usize..).unwrap_or_default();
    }
}
