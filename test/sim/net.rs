//! The pooler's end of the lines, as the core sees it: one interface for the two rings. `Packets`
//! is the inner ring: it plays the relay, obeying each verdict in the simplest way.

use crate::dice::Dice;
use crate::line::Line;
use crate::moved::{Move, Moved};
use crate::speech;
use crate::watch::{self, Shared};
use pgturnstile::core::{ClientId, Core, Decisions, Loss, Packet, Peer, ServerId, Sink, Verdict};
use std::collections::{BTreeMap, VecDeque};

/// What stands between the lines and the core.
pub trait Net {
    /// A connection is open.
    fn insert(&mut self, peer: Peer, line: Line);
    /// Bytes have arrived, or the end.
    fn readable(&mut self, peer: Peer, core: &mut Core);
    /// There is room for sending.
    fn writable(&mut self, peer: Peer, core: &mut Core);
    /// Goes on with one connection that waited for its turn; false if none did.
    fn go_on(&mut self, core: &mut Core) -> bool;
    /// The pooler's own words.
    fn send(&mut self, peer: Peer, bytes: &[u8], core: &mut Core);
    /// The client may be read again.
    fn resume(&mut self, id: ClientId, core: &mut Core);
    /// The connection is closed.
    fn close(&mut self, peer: Peer);
    /// Stops reading between two packets, or goes on.
    fn suspend(&mut self, suspended: bool);
    /// True if nothing of this connection is in the pooler's memory.
    fn is_quiet(&self, peer: Peer) -> bool;
    /// True if a client is not read because the core said `Wait`.
    fn holds_back(&self, id: ClientId) -> bool;
    /// The lines that are open.
    fn peers(&self) -> Vec<Peer>;
    /// One line.
    fn line(&self, peer: Peer) -> Option<Line>;
    /// Another process goes on with those connections that it knows.
    fn hand_off(&mut self, moved: &Moved);
}

/// One connection.
pub struct Conn {
    line: Line,
    held: Vec<u8>,
    skip: usize,
    pass: usize,
    to: Option<Peer>,
    want: usize,
    waiting: bool,
    stopped: bool,
    lost: bool,
    undrained: bool,
    /// It got the beginning of a packet whose rest never comes: nothing may follow that.
    cut: bool,
    unsent: Vec<u8>,
}

impl Conn {
    /// Nothing of what it sent is here, and no packet has begun.
    fn is_between(&self) -> bool {
        self.held.is_empty() && self.skip == 0 && self.pass == 0
    }

    /// Bytes up to the end of the packet in progress, or of its header.
    fn missing(&self) -> usize {
        match self.skip + self.pass {
            0 => self.want.max(5).saturating_sub(self.held.len()),
            rest => rest,
        }
    }
}

/// The inner ring.
pub struct Packets {
    conns: BTreeMap<Key, Conn>,
    ready: VecDeque<Peer>,
    dice: Dice,
    sink: Sink,
    tracing: bool,
    watch: Shared,
    suspended: bool,
}

/// Peers in an order.
pub type Key = (bool, u32, u32);

/// The place of a peer in that order.
pub fn key(peer: Peer) -> Key {
    match peer {
        Peer::Client(id) => (false, id.index(), id.generation()),
        Peer::Server(id) => (true, id.index(), id.generation()),
    }
}

/// The peer of a place.
pub fn peer_of(key: Key) -> Peer {
    match key {
        (false, index, generation) => Peer::Client(ClientId::from_parts(index, generation)),
        (true, index, generation) => Peer::Server(ServerId::from_parts(index, generation)),
    }
}

fn link(peer: Peer, core: &Core) -> Option<Peer> {
    match peer {
        Peer::Client(id) => core.server_of(id).map(Peer::Server),
        Peer::Server(id) => core.client_of(id).map(Peer::Client),
    }
}

impl Packets {
    /// Without connections.
    pub fn new(seed: u64, tracing: bool, watch: Shared) -> Packets {
        Packets {
            conns: BTreeMap::new(),
            ready: VecDeque::new(),
            dice: Dice::new(seed ^ 0x5eed),
            sink: Sink::default(),
            tracing,
            watch,
            suspended: false,
        }
    }

    /// How many bytes of a connection may be received; `None`: not even its end is noticed.
    fn room(&self, peer: Peer, core: &Core) -> Option<usize> {
        if !self.suspended || core.reads_while_suspended(peer) {
            return Some(usize::MAX);
        }
        let conn = self.conns.get(&key(peer))?;
        let other = link(peer, core).and_then(|other| self.conns.get(&key(other)));
        let is_server = matches!(peer, Peer::Server(_));
        // A server that is not read may not take what its client has begun.
        let needed = is_server
            && (!conn.unsent.is_empty() || other.is_some_and(|client| !client.is_between()));
        (needed || !conn.is_between()).then(|| conn.missing())
    }

    fn conn(&mut self, peer: Peer) -> Option<&mut Conn> {
        self.conns.get_mut(&key(peer))
    }

    fn is_blocked(&self, peer: Peer) -> bool {
        self.conns.get(&key(peer)).is_some_and(|conn| !conn.unsent.is_empty())
    }

    /// Whoever was not read because of another one's unsent bytes is looked at again.
    fn wake_all(&mut self) {
        self.ready.extend(self.conns.keys().map(|key| peer_of(*key)));
    }

    fn lose(&mut self, peer: Peer, why: Loss, core: &mut Core) {
        if let Some(conn) = self.conn(peer) {
            if !std::mem::replace(&mut conn.lost, true) {
                core.lost(peer, why);
            }
        }
    }

    fn deliver(&mut self, to: Peer, bytes: &[u8], core: &mut Core) {
        let Some(conn) = self.conn(to).filter(|conn| !conn.lost) else {
            return;
        };
        if !conn.unsent.is_empty() {
            conn.unsent.extend_from_slice(bytes);
            return;
        }
        let sent = conn.line.borrow_mut().send(bytes);
        match sent {
            Some(count) => conn.unsent.extend_from_slice(&bytes[count..]),
            None => self.lose(to, Loss::Send, core),
        }
    }

    fn pump(&mut self, peer: Peer, core: &mut Core) {
        let free = |conn: &mut Conn| conn.unsent.is_empty() && !conn.held.is_empty();
        if self.conn(peer).is_some_and(free) {
            // It was resumed while it had words of ours to read first.
            self.walk(peer, core);
        }
        loop {
            if link(peer, core).is_some_and(|other| self.is_blocked(other)) {
                return;
            }
            let limit = self.dice.pick(&[7, 40, 4000]);
            let Some(room) = self.room(peer, core) else {
                return self.settle_pair(peer, core);
            };
            let limit = limit.min(room);
            let Some(conn) = self.conn(peer) else {
                return;
            };
            if conn.waiting || conn.stopped || conn.lost {
                return;
            }
            let bytes = conn.line.borrow_mut().receive(limit);
            if bytes.is_empty() {
                break;
            }
            conn.undrained = true;
            conn.held.extend(bytes);
            self.walk(peer, core);
        }
        let at_end = self.conn(peer).is_some_and(|conn| conn.line.borrow().at_end());
        self.settle_pair(peer, core);
        if at_end {
            self.lose(peer, Loss::Receive, core);
        }
    }

    fn settle_pair(&mut self, peer: Peer, core: &mut Core) {
        match peer {
            Peer::Server(_) => self.settle(peer, core),
            Peer::Client(_) => {
                if let Some(server) = link(peer, core) {
                    self.settle(server, core);
                }
            }
        }
    }

    /// Tells the core if a server has been heard out and its client has been given all of it.
    fn settle(&mut self, peer: Peer, core: &mut Core) {
        let Peer::Server(id) = peer else {
            return;
        };
        let Some(other) = link(peer, core) else {
            return self.settle_free(id, core);
        };
        // Half a packet would swallow what the next client sends.
        let half = self.conn(other).is_some_and(|conn| conn.pass > 0 && conn.to == Some(peer));
        if !half && !self.is_blocked(other) {
            self.settle_free(id, core);
        }
    }

    fn settle_free(&mut self, id: ServerId, core: &mut Core) {
        if let Some(conn) = self.conn(Peer::Server(id)) {
            let read = conn.held.is_empty() && !conn.line.borrow().has_bytes();
            let between = read && conn.skip == 0 && conn.pass == 0;
            if conn.undrained && between && !conn.stopped && !conn.lost {
                conn.undrained = false;
                let client = core.client_of(id);
                let mut sink = Sink::default();
                core.server_drained(id, &mut sink);
                if let (Some(client), false) = (client, sink.to_client.is_empty()) {
                    self.deliver(Peer::Client(client), &sink.to_client, core);
                }
            }
        }
    }

    fn walk(&mut self, peer: Peer, core: &mut Core) {
        while let Some(conn) = self.conn(peer) {
            if conn.waiting || conn.stopped || conn.lost {
                return;
            }
            let count = conn.skip.min(conn.held.len());
            conn.skip -= count;
            conn.held.drain(..count);
            if conn.skip == 0 && conn.pass > 0 {
                let count = conn.pass.min(conn.held.len());
                conn.pass -= count;
                let bytes: Vec<u8> = conn.held.drain(..count).collect();
                if let Some(to) = conn.to {
                    self.deliver(to, &bytes, core);
                }
                if count == 0 {
                    return;
                }
                continue;
            }
            if conn.held.len() < conn.want.max(1) || !self.ask(peer, core) {
                return;
            }
        }
    }

    /// Asks about the packet at the front of `held`; false if more bytes are needed.
    fn ask(&mut self, peer: Peer, core: &mut Core) -> bool {
        let cut = self.dice.chance(30);
        let share = self.dice.below(100);
        let Some(conn) = self.conns.get_mut(&key(peer)) else {
            return false;
        };
        let typed = conn.held[0] != 0;
        let head = if typed { 5 } else { 4 };
        let Some(len) = speech::packet_len(&conn.held, typed) else {
            return false;
        };
        let in_startup = matches!(peer, Peer::Client(id) if core.in_startup(id));
        let least = if typed { 5 } else { 8 };
        if len < least || (!typed && !in_startup) || len > core.max_packet(peer) as usize {
            let raw: Vec<u8> = conn.held.iter().take(8).copied().collect();
            conn.stopped = true;
            core.bad_header(peer, &raw);
            return false;
        }
        let mut seen = conn.held.len().min(len);
        if conn.want == 0 && cut {
            seen = head + (seen - head) * share / 100;
        }
        let held = std::mem::take(&mut conn.held);
        let packet = Packet {
            tag: if typed { held[0] } else { 0 },
            len: len as u32,
            seen: &held[head..seen.max(head)],
            behind: held.len() > len,
        };
        let verdict = watch::ask(&self.watch, core, peer, packet, &mut self.sink, self.tracing);
        if let Some(conn) = self.conn(peer) {
            conn.held = held;
        }
        let to = link(peer, core);
        self.empty_sink(peer, verdict, core);
        self.obey(peer, verdict, (head, len), to)
    }

    fn empty_sink(&mut self, peer: Peer, verdict: Verdict, core: &mut Core) {
        let to_client = std::mem::take(&mut self.sink.to_client);
        let to_server = std::mem::take(&mut self.sink.to_server);
        let (client, server) = match peer {
            Peer::Client(_) => (Some(peer), link(peer, core)),
            Peer::Server(_) => (link(peer, core), Some(peer)),
        };
        for (to, bytes) in [(client, to_client), (server, to_server)] {
            if !bytes.is_empty() {
                match to {
                    Some(to) => self.deliver(to, &bytes, core),
                    // Whoever is being closed is told nothing more.
                    None => assert!(verdict == Verdict::Stop, "NET: the sink is for nobody"),
                }
            }
        }
    }

    fn obey(
        &mut self,
        peer: Peer,
        verdict: Verdict,
        (head, len): (usize, usize),
        to: Option<Peer>,
    ) -> bool {
        let Some(conn) = self.conn(peer) else {
            return false;
        };
        conn.want = 0;
        match verdict {
            Verdict::Pass => (conn.pass, conn.to) = (len, to),
            Verdict::Drop => conn.skip = len,
            Verdict::Replace { skip } => {
                conn.skip = skip as usize;
                (conn.pass, conn.to) = (len - skip as usize, to);
            }
            Verdict::Whole => conn.want = len,
            Verdict::Need(body) => conn.want = head + body as usize,
            Verdict::Wait => conn.waiting = true,
            Verdict::Stop => conn.stopped = true,
        }
        assert!(verdict != Verdict::Pass || to.is_some(), "NET: Pass without a link");
        true
    }
}

impl Net for Packets {
    fn insert(&mut self, peer: Peer, line: Line) {
        let conn = Conn {
            line,
            held: Vec::new(),
            skip: 0,
            pass: 0,
            to: None,
            want: 0,
            waiting: false,
            stopped: false,
            lost: false,
            undrained: false,
            cut: false,
            unsent: Vec::new(),
        };
        self.conns.insert(key(peer), conn);
    }

    fn readable(&mut self, peer: Peer, core: &mut Core) {
        self.pump(peer, core);
    }

    fn writable(&mut self, peer: Peer, core: &mut Core) {
        let Some(conn) = self.conn(peer) else {
            return;
        };
        if conn.unsent.is_empty() || conn.lost {
            return;
        }
        let unsent = std::mem::take(&mut conn.unsent);
        self.deliver(peer, &unsent, core);
        if !self.is_blocked(peer) {
            self.wake_all();
        }
    }

    fn go_on(&mut self, core: &mut Core) -> bool {
        let Some(peer) = self.ready.pop_front() else {
            return false;
        };
        self.pump(peer, core);
        true
    }

    fn send(&mut self, peer: Peer, bytes: &[u8], core: &mut Core) {
        let open = |conn: &Conn| conn.pass > 0 && conn.to == Some(peer);
        if self.conn(peer).is_some_and(|conn| conn.cut) || self.conns.values().any(open) {
            return;
        }
        self.deliver(peer, bytes, core);
    }

    fn resume(&mut self, id: ClientId, core: &mut Core) {
        let peer = Peer::Client(id);
        let Some(conn) = self.conn(peer) else {
            return;
        };
        conn.waiting = false;
        if conn.line.borrow().is_finished() && conn.line.borrow().travelling() == 0 {
            return self.lose(peer, Loss::Receive, core);
        }
        if !self.is_blocked(peer) {
            self.walk(peer, core);
        }
        self.pump(peer, core);
    }

    fn close(&mut self, peer: Peer) {
        if let Some(conn) = self.conns.remove(&key(peer)) {
            conn.line.borrow_mut().ended = true;
            if let Some(to) = conn.to.filter(|_| conn.pass > 0) {
                if let Some(to) = self.conn(to) {
                    to.cut = true;
                }
            }
        }
        self.wake_all();
    }

    fn suspend(&mut self, suspended: bool) {
        self.suspended = suspended;
        self.wake_all();
    }

    fn is_quiet(&self, peer: Peer) -> bool {
        let quiet = |conn: &Conn| conn.is_between() && conn.unsent.is_empty();
        self.conns.get(&key(peer)).is_none_or(quiet)
    }

    fn holds_back(&self, id: ClientId) -> bool {
        self.conns.get(&key(Peer::Client(id))).is_some_and(|conn| conn.waiting && !conn.lost)
    }

    fn peers(&self) -> Vec<Peer> {
        self.conns.keys().map(|key| peer_of(*key)).collect()
    }

    fn line(&self, peer: Peer) -> Option<Line> {
        self.conns.get(&key(peer)).map(|conn| conn.line.clone())
    }

    fn hand_off(&mut self, moved: &Moved) {
        let left = self.conns.keys().filter(|key| key.moved(moved).is_none());
        for key in left.copied().collect::<Vec<_>>() {
            self.close(peer_of(key));
        }
        moved.apply(&mut self.conns);
        for conn in self.conns.values_mut() {
            conn.to = conn.to.and_then(|to| to.moved(moved));
        }
        self.ready.clear();
        self.wake_all();
    }
}
