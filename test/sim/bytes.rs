//! The outer ring: the real relay, over wires that deliver what has arrived and take what fits.

use crate::dice::Dice;
use crate::line::Line;
use crate::moved::{Move, Moved};
use crate::net::{key, peer_of, Key, Net};
use crate::watch::{self, Shared};
use pgturnstile::core::{
    Addr, ClientId, Core, Decisions, Loss, Packet, Peer, Run, ServerId, Sink, Target, Verdict,
};
use pgturnstile::net::conn::Wire;
use pgturnstile::net::relay::{Limits, Relay};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};

/// The relay's end of a line.
struct SimWire(Line);

impl Wire for SimWire {
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut line = self.0.borrow_mut();
        let bytes = line.receive(into.len());
        if bytes.is_empty() && !line.at_end() {
            return Err(ErrorKind::WouldBlock.into());
        }
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.borrow_mut().send(bytes) {
            Some(0) => Err(ErrorKind::WouldBlock.into()),
            Some(count) => Ok(count),
            None => Err(ErrorKind::BrokenPipe.into()),
        }
    }

    /// Room comes only when the model reads, and the world says so each time.
    fn want_write(&mut self, _wanted: bool) -> io::Result<()> {
        Ok(())
    }
}

/// The outer ring.
pub struct Bytes {
    relay: Relay<SimWire>,
    /// What it is made with.
    sizes: (Limits, usize),
    lines: BTreeMap<Key, Line>,
    held_back: BTreeSet<ClientId>,
    tracing: bool,
    watch: Shared,
}

impl Bytes {
    /// Without connections; the sizes of its buffers come from the seed.
    pub fn new(seed: u64, tracing: bool, watch: Shared) -> Bytes {
        let mut dice = Dice::new(seed ^ 0xb17e5);
        let limits = Limits { rounds: dice.pick(&[0, 1, 2, 5]), unsent: dice.pick(&[0, 20, 4096]) };
        let scratch = dice.pick(&[16, 50, 300, 4096]);
        Bytes {
            relay: Relay::with_scratch(limits, scratch),
            sizes: (limits, scratch),
            lines: BTreeMap::new(),
            held_back: BTreeSet::new(),
            tracing,
            watch,
        }
    }

    /// Calls the relay with a core whose verdicts are watched.
    fn call<T>(
        &mut self,
        core: &mut Core,
        call: impl FnOnce(&mut Relay<SimWire>, &mut Watched<'_>) -> T,
    ) -> T {
        let mut watched = Watched {
            core,
            held_back: &mut self.held_back,
            tracing: self.tracing,
            watch: &self.watch,
        };
        call(&mut self.relay, &mut watched)
    }
}

impl Net for Bytes {
    fn insert(&mut self, peer: Peer, line: Line) {
        self.lines.insert(key(peer), line.clone());
        match peer {
            Peer::Client(id) => self.relay.insert_client(id, SimWire(line)),
            Peer::Server(id) => self.relay.insert_server(id, SimWire(line)),
        }
    }

    fn readable(&mut self, peer: Peer, core: &mut Core) {
        let line = self.lines.get(&key(peer));
        let hangup = line.is_some_and(|line| {
            let line = line.borrow();
            line.is_finished() && line.travelling() == 0
        });
        self.relay.mark_readable(peer, hangup);
        self.call(core, |relay, core| relay.pump(peer, core));
    }

    fn writable(&mut self, peer: Peer, core: &mut Core) {
        self.call(core, |relay, core| relay.flush(peer, core));
    }

    fn go_on(&mut self, core: &mut Core) -> bool {
        self.call(core, |relay, core| relay.pump_ready(core))
    }

    fn send(&mut self, peer: Peer, bytes: &[u8], core: &mut Core) {
        self.call(core, |relay, core| relay.send(peer, bytes, core));
    }

    fn resume(&mut self, id: ClientId, core: &mut Core) {
        self.held_back.remove(&id);
        self.call(core, |relay, core| relay.resume(id, core));
    }

    fn close(&mut self, peer: Peer) {
        self.relay.close(peer);
        if let Some(line) = self.lines.remove(&key(peer)) {
            line.borrow_mut().ended = true;
        }
        if let Peer::Client(id) = peer {
            self.held_back.remove(&id);
        }
    }

    fn suspend(&mut self, suspended: bool) {
        self.relay.suspend(suspended);
    }

    fn is_quiet(&self, peer: Peer) -> bool {
        self.relay.is_idle(peer)
    }

    fn holds_back(&self, id: ClientId) -> bool {
        self.held_back.contains(&id)
    }

    fn peers(&self) -> Vec<Peer> {
        self.lines.keys().map(|key| peer_of(*key)).collect()
    }

    fn line(&self, peer: Peer) -> Option<Line> {
        self.lines.get(&key(peer)).cloned()
    }

    /// Another relay goes on with what this one tells of each connection.
    fn hand_off(&mut self, moved: &Moved) {
        let (limits, scratch) = self.sizes;
        let old = std::mem::replace(&mut self.relay, Relay::with_scratch(limits, scratch));
        let peers = self.peers();
        let number = |peer| peers.iter().position(|other| *other == peer).unwrap_or(999) as u64;
        let who = |number: u64| peers.get(number as usize)?.moved(moved);
        self.held_back.clear();
        for (at, line) in std::mem::take(&mut self.lines) {
            let Some(peer) = peer_of(at).moved(moved) else {
                line.borrow_mut().ended = true;
                continue;
            };
            if let Some(told) = old.hand_out(peer_of(at), &number) {
                let taken = self.relay.take_in(peer, SimWire(line.clone()), &told, &who);
                taken.expect("a wire without system calls");
                self.lines.insert(key(peer), line);
            }
        }
    }
}

/// The core, with a note of whom it told to wait.
struct Watched<'a> {
    core: &'a mut Core,
    held_back: &'a mut BTreeSet<ClientId>,
    tracing: bool,
    watch: &'a Shared,
}

impl Decisions for Watched<'_> {
    fn client_packet(&mut self, id: ClientId, packet: Packet<'_>, sink: &mut Sink) -> Verdict {
        let peer = Peer::Client(id);
        let verdict = watch::ask(self.watch, self.core, peer, packet, sink, self.tracing);
        if verdict == Verdict::Wait {
            self.held_back.insert(id);
        }
        verdict
    }

    fn server_packet(&mut self, id: ServerId, packet: Packet<'_>, sink: &mut Sink) -> Verdict {
        watch::ask(self.watch, self.core, Peer::Server(id), packet, sink, self.tracing)
    }

    fn client_run(&mut self, id: ClientId, data: &[u8], sink: &mut Sink) -> Run {
        let run = watch::client_run(self.watch, self.core, id, data, sink, self.tracing);
        if run == Run::Wait {
            self.held_back.insert(id);
        }
        run
    }

    fn server_run(&mut self, id: ServerId, data: &[u8]) -> usize {
        watch::server_run(self.watch, self.core, id, data, self.tracing)
    }

    fn server_drained(&mut self, id: ServerId, sink: &mut Sink) {
        self.core.server_drained(id, sink);
    }

    fn bad_header(&mut self, from: Peer, raw: &[u8]) {
        self.core.bad_header(from, raw);
    }

    fn lost(&mut self, peer: Peer, why: Loss) {
        if let Peer::Client(id) = peer {
            self.held_back.remove(&id);
        }
        self.core.lost(peer, why);
    }

    fn server_of(&self, id: ClientId) -> Option<ServerId> {
        self.core.server_of(id)
    }

    fn client_of(&self, id: ServerId) -> Option<ClientId> {
        self.core.client_of(id)
    }

    fn in_startup(&self, id: ClientId) -> bool {
        self.core.in_startup(id)
    }

    fn reads_while_suspended(&self, peer: Peer) -> bool {
        self.core.reads_while_suspended(peer)
    }

    fn max_packet(&self, from: Peer) -> u32 {
        self.core.max_packet(from)
    }

    fn dialling(&mut self, id: ServerId, remote: Addr) {
        self.core.dialling(id, remote);
    }

    fn connected(&mut self, id: ServerId, local: Addr, remote: Addr) {
        self.core.connected(id, local, remote);
    }

    fn target(&self, id: ServerId) -> Option<Target> {
        self.core.target(id)
    }
}
