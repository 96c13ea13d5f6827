//! SUSPEND: who is at rest is worked out here, from what has gone over the lines; then nothing may
//! stir until RESUME.

use crate::line::Line;
use crate::net::{key, peer_of, Key};
use crate::world::World;
use pgturnstile::base::Micros;
use pgturnstile::core::client::{pointer, ClientState};
use pgturnstile::core::pause::Signal;
use pgturnstile::core::server::ServerState;
use pgturnstile::core::{ClientId, Decisions, Peer, ServerId};
use std::collections::BTreeMap;

/// A SUSPEND that is in force.
pub struct Suspension {
    since: Micros,
    /// Who has asked for it.
    console: Option<ClientId>,
    /// Packets of each connection that had begun at the end of the last turn, and whether it could
    /// not rest yet.
    begun: BTreeMap<Key, (u64, bool)>,
    /// What had been received and sent on each connection when everything was at rest.
    frozen: Option<BTreeMap<Key, (u64, u64)>>,
    /// An administrator has changed something since.
    loose: bool,
}

/// Who is not at rest.
struct Restless {
    clients: Vec<ClientId>,
    servers: Vec<ServerId>,
}

impl World {
    /// Accepting and reading stop, or go on.
    pub fn suspend(&mut self, on: bool) {
        self.trace(|_| format!("  suspend {on}"));
        self.net.suspend(on);
        if !on {
            self.suspended = None;
        } else if self.suspended.is_some() {
            self.facts.waits_anew = true;
        } else {
            let begun = self.begun();
            let (since, console) = (self.now, self.suspender);
            self.suspended = Some(Suspension { since, console, begun, frozen: None, loose: false });
        }
    }

    fn begun(&self) -> BTreeMap<Key, (u64, bool)> {
        let peers = self.net.peers().into_iter();
        let lines = peers.filter_map(|peer| Some((peer, self.net.line(peer)?)));
        let begun = lines.map(|(peer, line)| (peer, line.borrow().read.packets));
        begun.map(|(peer, count)| (key(peer), (count, self.may_be_read(peer)))).collect()
    }

    /// It can't rest yet, or somebody waits for it.
    fn may_be_read(&self, peer: Peer) -> bool {
        match peer {
            Peer::Client(id) => self.core.clients().get(id).is_none_or(|client| {
                let is_served = client.state() == ClientState::Waiting
                    && client.query_start().is_some()
                    || client.state() == ClientState::Active;
                client.is_console() || !is_served || client.is_ignored()
            }),
            Peer::Server(id) => self.is_awaited(id),
        }
    }

    fn is_console(&self, id: ClientId) -> bool {
        self.core.clients().get(id).is_some_and(|client| client.is_console())
    }

    /// Nothing of it is in the pooler's memory, and it has been read up to the end of a packet.
    fn is_still(&self, peer: Peer) -> bool {
        let line = self.net.line(peer);
        let between = line.is_none_or(|line| line.borrow().read.is_between());
        between && self.net.is_quiet(peer)
    }

    fn restless(&self) -> Restless {
        let core = &self.core;
        let still = |id| self.is_still(Peer::Client(id));
        let clients = core.clients().iter().filter(|(id, client)| {
            let rests = client.state() == ClientState::Active && !client.is_ignored();
            !(client.is_console() || rests && still(*id))
        });
        let servers = core.servers().iter().filter(|(id, server)| {
            let rests = matches!(server.state(), ServerState::Active | ServerState::Idle);
            !(rests && self.is_still(Peer::Server(*id)))
        });
        Restless {
            clients: clients.map(|(id, _)| id).collect(),
            servers: servers.map(|(id, _)| id).collect(),
        }
    }

    /// At the end of a turn the core is told who is quiet.
    pub fn suspend_further(&mut self) {
        let Some(now) = &self.suspended else { return };
        if !self.core.is_suspended() {
            self.fail("SUSPEND: nobody is read, but it is over");
        }
        let (was_complete, since, console) = (now.frozen.is_some(), now.since, now.console);
        let limit = self.plan.settings.suspend_timeout;
        let is_over = limit.is_set() && self.now.since(since) > limit;
        self.facts.suspending |= !was_complete;
        if is_over && !was_complete {
            self.note_restless();
        }
        let is_there = console.is_some_and(|id| self.core.clients().get(id).is_some());
        let net = &self.net;
        self.core.check_suspension(|peer| net.is_quiet(peer));
        // What comes to rest while the core's wishes are performed is seen in the next turn.
        let left = self.restless();
        self.perform();
        let lasts = self.suspended.is_some();
        if was_complete && lasts != is_there {
            self.fail(&format!("SUSPEND: its console {is_there}, still in force {lasts}"));
        }
        let all_rest = left.clients.is_empty() && left.servers.is_empty();
        let frozen = (!was_complete && (is_over || all_rest)).then(|| self.moved());
        if let (Some(frozen), Some(suspended)) = (frozen, self.suspended.as_mut()) {
            suspended.frozen = Some(frozen);
            self.trace(|_| "suspended".into());
            self.check_rest();
            if self.suspender.is_some_and(|id| self.core.clients().get(id).is_some()) {
                self.fail("SUSPEND: complete, but not answered");
            }
        }
    }

    /// Whoever may be closed for suspend_timeout: who is not at rest, and the client of a server
    /// that is not.
    fn note_restless(&mut self) {
        let restless = self.restless();
        let linked = restless.servers.iter().filter_map(|id| self.core.client_of(*id));
        let clients = restless.clients.iter().copied().chain(linked);
        let clients = clients.filter_map(|id| self.core.clients().get(id));
        let servers = restless.servers.iter().filter_map(|id| self.core.servers().get(*id));
        let numbers: Vec<u64> =
            clients.map(|c| c.number()).chain(servers.map(|s| s.number())).collect();
        self.facts.restless.extend(numbers.into_iter().map(pointer));
    }

    /// Bytes received and sent on each connection but those of consoles.
    fn moved(&self) -> BTreeMap<Key, (u64, u64)> {
        let peers = self.net.peers().into_iter();
        let peers = peers.filter(|peer| !matches!(peer, Peer::Client(id) if self.is_console(*id)));
        let lines = peers.filter_map(|peer| Some((key(peer), self.net.line(peer)?)));
        lines.map(|(key, line)| (key, (line.borrow().read.bytes, line.borrow().sent))).collect()
    }

    /// Everybody is at rest.
    fn check_rest(&self) {
        let Restless { clients, servers } = self.restless();
        if let Some(id) = clients.first() {
            let state = self.core.clients().get(*id).map(|client| client.state());
            self.fail(&format!("SUSPEND: complete, but {id:?} is not at rest: {state:?}"));
        }
        if let Some(id) = servers.first() {
            let state = self.core.servers().get(*id).map(|server| server.state());
            self.fail(&format!("SUSPEND: complete, but {id:?} is not at rest: {state:?}"));
        }
    }

    /// Whoever has asked gets the answer to his own command; that to SUSPEND when all is at rest.
    pub fn check_suspend_answer(&self, peer: Peer, bytes: &[u8]) {
        let Peer::Client(id) = peer else { return };
        let answers = |word: &str| bytes.get(5..5 + word.len()) == Some(word.as_bytes());
        let word = ["SUSPEND", "PAUSE", "RESUME"].into_iter().find(|word| answers(word));
        let (Some(word), Some(b'C')) = (word, bytes.first()) else { return };
        let command = self.memory.commands.get(&id).map_or("", String::as_str);
        if !command.starts_with(word) {
            self.fail(&format!("SUSPEND: {id:?} said {command}, and is answered {word}"));
        }
        if word == "SUSPEND" && self.suspended.is_some() {
            self.check_rest();
        }
    }

    /// After a turn: nobody has begun a packet, and nothing has moved once all was at rest.
    pub fn check_suspended(&mut self, at_rest: bool) {
        let asks = self.suspender.is_some_and(|id| self.core.clients().get(id).is_some());
        if self.core.is_suspended() != self.suspended.is_some() {
            self.fail("SUSPEND: the core and the net disagree");
        }
        let Some(mut suspended) = self.suspended.take() else {
            if asks {
                self.fail("SUSPEND: it is over, but not answered");
            }
            return;
        };
        self.check_begun(&mut suspended);
        if at_rest && suspended.frozen.is_none() {
            self.check_unread();
        }
        let facts = &self.facts;
        let removed = !facts.removed.is_empty();
        suspended.loose |= facts.killed || facts.replaced || facts.reloaded || removed;
        if let Some(before) = suspended.frozen.as_ref().filter(|_| !suspended.loose) {
            let after = self.moved();
            let either = before.keys().chain(after.keys());
            if let Some(key) = either.copied().find(|key| before.get(key) != after.get(key)) {
                let (peer, was, is) = (peer_of(key), before.get(&key), after.get(&key));
                self.fail(&format!("SUSPEND: complete, but {peer:?} moves: {was:?}, {is:?}"));
            }
            if !self.dials.is_empty() {
                self.fail("SUSPEND: complete, but a connection is opened");
            }
        }
        self.suspended = Some(suspended);
    }

    /// Nobody is read beyond the packet that was in progress, but those who can't rest yet, and the
    /// servers that somebody waits for.
    fn check_begun(&self, suspended: &mut Suspension) {
        for (key, (packets, reads)) in self.begun() {
            let was = suspended.begun.insert(key, (packets, reads));
            let peer = peer_of(key);
            // Somebody may have waited for a moment.
            let passing = self.facts.waits_anew && matches!(peer, Peer::Server(_));
            // What is behind a query that has been canceled is looked at with it.
            let canceled = &self.watch.borrow().canceled;
            let passing = passing || matches!(peer, Peer::Client(id) if canceled.contains(&id));
            let reads = reads || passing;
            if was.is_some_and(|(before, read)| !reads && !read && before < packets) {
                self.fail(&format!("SUSPEND: {peer:?} is read: {was:?}, now {packets} packets"));
            }
        }
    }

    /// What a server says is read if somebody waits for its pool's servers, or if its own client
    /// can't come to rest without it.
    fn check_unread(&self) {
        for (id, server) in self.core.servers().iter() {
            let Some(pool) = self.core.pool(server.pool()) else { continue };
            let line = |peer| self.net.line(peer);
            let client = server.client().and_then(|id| line(Peer::Client(id)));
            let Some(own) = line(Peer::Server(id)) else { continue };
            let waits = !pool.clients(ClientState::Waiting).is_empty();
            let is_mid = client.as_ref().is_some_and(|line| !line.borrow().read.is_between());
            let is_full =
                own.borrow().is_full() || client.is_some_and(|line| line.borrow().is_full());
            let needed = waits || is_mid || server.is_aligning() || server.is_looking_up();
            if needed && own.borrow().has_bytes() && !is_full {
                self.fail(&format!(
                    "SUSPEND: {id:?} ({:?}) is not read; aligning {}, waiting {waits}, client {is_mid}",
                    server.state(),
                    server.is_aligning()
                ));
            }
        }
    }

    fn is_awaited(&self, id: ServerId) -> bool {
        let Some(server) = self.core.servers().get(id) else { return true };
        let rests = matches!(server.state(), ServerState::Active | ServerState::Idle);
        let mut clients = self.core.clients().iter();
        let waits = |id, state| state == ClientState::Waiting || !self.is_still(Peer::Client(id));
        let is_full = |line: Line| line.borrow().is_full();
        !rests
            || server.is_looking_up()
            || self.net.line(Peer::Server(id)).is_some_and(is_full)
            || clients.any(|(id, c)| c.pool() == Some(server.pool()) && waits(id, c.state()))
    }

    /// While everybody is at work somebody says SUSPEND: the answer comes; then RESUME in one of
    /// its forms, and all queries get their answers.
    pub fn suspend_trial(&mut self) {
        let Some(number) = self.begin_trial(50) else { return };
        self.begin_turn(1_000);
        for peer in self.net.peers() {
            let count = self.dice.pick(&[0, 1, 6, 30, 200]);
            self.arrive(peer, count);
            self.perform();
        }
        self.end_turn();
        self.tell(number, "SUSPEND");
        self.await_suspension();
        self.ask_something();
        for _ in 0..5 {
            self.round(100_000);
        }
        self.end_suspension(number);
    }

    fn await_suspension(&mut self) {
        for round in 0.. {
            self.round(100_000);
            if self.suspended.as_ref().is_some_and(|now| now.frozen.is_some()) {
                return;
            }
            if round > 150 {
                let Restless { clients, servers } = self.restless();
                self.fail(&format!("SUSPEND: no end, {clients:?} and {servers:?} don't rest"));
            }
        }
    }

    fn end_suspension(&mut self, number: u32) {
        let at = self.clients.iter().position(|client| client.number == number);
        match (self.dice.below(4), at) {
            (0 | 1, Some(_)) => self.tell(number, "RESUME"),
            (2, Some(at)) => {
                self.clients[at].leave(false);
                self.clients.remove(at);
            }
            _ => {
                self.begin_turn(1_000);
                self.signal(Signal::Resume);
                self.perform();
                self.end_turn();
            }
        }
        self.round(100_000);
        if self.dice.chance(90) {
            self.resumes = true;
            self.rest();
        }
    }
}
