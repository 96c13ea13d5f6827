//! Relaying: receive, ask the core about each packet, send what goes on straight from the scratch
//! buffer.
//!
//! What a destination refuses stays with the destination, and its source is not read until that is
//! gone: so memory is bounded by one scratch buffer per connection, and what the pooler itself says
//! is in order by being appended. What has no decision yet (half a header, a packet that must be
//! seen whole, the packets of a client that waits) stays with the source.
//!
//! The core may be asked about a connection that it has already given up (its `Close` is performed
//! after the event): `Stop` is the answer. What is passed while there is no link is dropped. The
//! bytes in the sink go out in front of the packet whose verdict came with them.

use super::conn::{Conn, Pending, Received, Wire};
use crate::base::{Buf, Objects, Side, Spare};
use crate::core::client::Client;
use crate::core::server::Server;
use crate::core::{ClientId, Decisions, Loss, Peer, Run, ServerId, Sink};
use rows::{Find, Rows};
use std::collections::{BTreeMap, VecDeque};
use std::{io, mem};

mod rows;
#[cfg(test)]
pub(super) mod tests;
mod walk;

/// Size of the scratch buffer in bytes; one per relay, so larger than `pkt_buf` at no cost.
pub const SCRATCH: usize = 64 * 1024;
/// Settings that the relay obeys.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Full buffers to receive from one connection before the others get a turn; 0 for no limit
    /// (`sbuf_loopcnt`).
    pub rounds: u32,
    /// A connection that has more unsent bytes than this is not read (`pkt_buf`).
    pub unsent: usize,
}

struct Conns<W> {
    clients: Side<Client, Conn<W>>,
    servers: Side<Server, Conn<W>>,
}

impl<W> Conns<W> {
    #[inline]
    fn get(&self, peer: Peer) -> Option<&Conn<W>> {
        match peer {
            Peer::Client(id) => self.clients.get(id),
            Peer::Server(id) => self.servers.get(id),
        }
    }

    #[inline]
    fn get_mut(&mut self, peer: Peer) -> Option<&mut Conn<W>> {
        match peer {
            Peer::Client(id) => self.clients.get_mut(id),
            Peer::Server(id) => self.servers.get_mut(id),
        }
    }
}

/// All open connections, and the bytes between them.
pub struct Relay<W> {
    conns: Conns<W>,
    limits: Limits,
    scratch: Box<[u8]>,
    joined: Vec<u8>,
    sink: Sink,
    spare: Spare,
    suspended: bool,
    ready: VecDeque<Peer>,
    /// Which of the unsent bytes of a console go out with a descriptor.
    rows: BTreeMap<ClientId, Rows>,
}

#[inline]
fn link<D: Decisions>(peer: Peer, core: &D) -> Option<Peer> {
    match peer {
        Peer::Client(id) => core.server_of(id).map(Peer::Server),
        Peer::Server(id) => core.client_of(id).map(Peer::Client),
    }
}

impl<W: Wire> Relay<W> {
    /// A relay without connections.
    pub fn new(limits: Limits) -> Self {
        Relay::with_scratch(limits, SCRATCH)
    }

    /// A relay that receives at most `bytes` at a time.
    pub fn with_scratch(limits: Limits, bytes: usize) -> Self {
        Relay {
            conns: Conns { clients: Side::default(), servers: Side::default() },
            limits,
            scratch: vec![0; bytes.max(16)].into_boxed_slice(),
            joined: Vec::new(),
            sink: Sink::default(),
            spare: Spare::default(),
            suspended: false,
            ready: VecDeque::new(),
            rows: BTreeMap::new(),
        }
    }

    /// Changes the settings.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Stops reading between two packets, or goes on. Servers are looked at in any case: somebody
    /// may wait for them.
    pub fn suspend(&mut self, suspended: bool) {
        self.suspended = suspended;
        let clients = self.conns.clients.iter().map(|(id, _)| Peer::Client(id));
        let clients = clients.filter(|_| !suspended);
        let servers = self.conns.servers.iter().map(|(id, _)| Peer::Server(id));
        for peer in clients.chain(servers).collect::<Vec<_>>() {
            self.enqueue(peer);
        }
    }

    /// Adds the connection of a client.
    pub fn insert_client(&mut self, id: ClientId, wire: W) {
        self.conns.clients.insert(id, Conn::new(wire));
    }

    /// Adds the connection to a server.
    pub fn insert_server(&mut self, id: ServerId, wire: W) {
        self.conns.servers.insert(id, Conn::new(wire));
    }

    /// How many bytes of buffers were given back to the allocator since the last call.
    pub fn take_released(&mut self) -> usize {
        self.spare.take_released()
    }

    /// Takes a connection out to have it put in again: nothing is done about what it is owed.
    pub fn take_out(&mut self, peer: Peer) -> Option<(W, bool)> {
        let mut conn = match peer {
            Peer::Client(id) => self.conns.clients.remove(id),
            Peer::Server(id) => self.conns.servers.remove(id),
        }?;
        conn.held.clear(&mut self.spare);
        conn.unsent.clear(&mut self.spare);
        Some((conn.wire, conn.hangup))
    }

    /// A connection as it is.
    pub(super) fn conn(&self, peer: Peer) -> Option<&Conn<W>> {
        self.conns.get(peer)
    }

    /// Adds a connection that `fill` makes what it was elsewhere. It gets a turn if there is anything
    /// to be done, when everybody is here whom that concerns.
    pub(super) fn put_in(
        &mut self,
        peer: Peer,
        wire: W,
        fill: impl FnOnce(&mut Conn<W>, &mut Spare),
    ) -> io::Result<()> {
        let mut conn = Conn::new(wire);
        fill(&mut conn, &mut self.spare);
        if !conn.unsent.is_empty() {
            conn.wire.want_write(true)?;
        }
        let has_turn = conn.has_work(usize::MAX) || conn.undrained;
        match peer {
            Peer::Client(id) => self.conns.clients.insert(id, conn),
            Peer::Server(id) => self.conns.servers.insert(id, conn),
        }
        if has_turn {
            self.enqueue(peer);
        }
        Ok(())
    }

    /// The streams of all connections and what they have not sent. Nobody is told anything.
    pub(super) fn into_wires(self) -> impl Iterator<Item = (Peer, W, Buf)> {
        let Conns { mut clients, mut servers } = self.conns;
        let peers: Vec<Peer> = (clients.iter().map(|(id, _)| Peer::Client(id)))
            .chain(servers.iter().map(|(id, _)| Peer::Server(id)))
            .collect();
        peers.into_iter().filter_map(move |peer| {
            let conn = match peer {
                Peer::Client(id) => clients.remove(id),
                Peer::Server(id) => servers.remove(id),
            };
            conn.map(|conn| (peer, conn.wire, conn.unsent))
        })
    }

    /// The stream of a connection, to be changed.
    pub fn wire_mut(&mut self, peer: Peer) -> Option<&mut W> {
        self.conns.get_mut(peer).map(|conn| &mut conn.wire)
    }

    /// The stream of a connection.
    pub fn wire(&self, peer: Peer) -> Option<&W> {
        self.conns.get(peer).map(|conn| &conn.wire)
    }

    /// True if nothing is pending on this connection in either direction.
    pub fn is_idle(&self, peer: Peer) -> bool {
        self.conns.get(peer).is_none_or(Conn::is_idle)
    }

    /// True if this connection owns a buffer.
    pub fn owns_memory(&self, peer: Peer) -> bool {
        self.conns.get(peer).is_some_and(Conn::owns_memory)
    }

    /// What is pending on this connection.
    pub fn pending_on(&self, peer: Peer) -> Pending {
        self.conns.get(peer).map_or_else(Pending::default, Conn::pending)
    }

    /// The buffers that exist: those that connections own, those that nobody uses and the one that
    /// everything is received into. Their size is the average.
    pub fn buffers(&self) -> Objects {
        let clients = self.conns.clients.iter().flat_map(|(_, conn)| conn.buffers());
        let servers = self.conns.servers.iter().flat_map(|(_, conn)| conn.buffers());
        let (mut used, mut bytes) =
            (0_usize, self.spare.bytes().saturating_add(self.scratch.len()));
        for capacity in clients.chain(servers).filter(|capacity| *capacity > 0) {
            used = used.saturating_add(1);
            bytes = bytes.saturating_add(capacity);
        }
        let free = self.spare.len().saturating_add(1);
        Objects { size: bytes.div_ceil(used.saturating_add(free)), used, free }
    }

    /// How many connections there are: of clients, of servers.
    pub fn counts(&self) -> (usize, usize) {
        (self.conns.clients.len(), self.conns.servers.len())
    }

    /// An event said that there may be something to receive; with `hangup` also that nothing follows
    /// it. [`Relay::pump`] has to be called next.
    pub fn mark_readable(&mut self, peer: Peer, hangup: bool) {
        if let Some(conn) = self.conns.get_mut(peer) {
            conn.readable = true;
            conn.hangup |= hangup;
            conn.wire.set_readable(hangup);
        }
    }

    /// True if connections wait for another turn; the loop must not sleep.
    pub fn pending(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The connection that has waited longest for its turn; [`Relay::pump`] it.
    pub fn next_ready(&mut self) -> Option<Peer> {
        self.ready.pop_front()
    }

    /// Pumps the connection that has waited longest for its turn; false if there is none.
    pub fn pump_ready<D: Decisions>(&mut self, core: &mut D) -> bool {
        match self.next_ready() {
            Some(peer) => {
                self.pump(peer, core);
                true
            }
            None => false,
        }
    }

    /// Receives what this connection sent and hands it on, as far as it may be read.
    pub fn pump<D: Decisions>(&mut self, peer: Peer, core: &mut D) {
        let mut scratch = mem::take(&mut self.scratch);
        if let Some(conn) = self.conns.get_mut(peer) {
            conn.queued = false;
        }
        let mut rounds = 0_u32;
        loop {
            let server = match peer {
                Peer::Server(id) => Some(id),
                Peer::Client(id) => core.server_of(id),
            };
            if let Some(server) = server {
                self.settle(server, core);
            }
            if !self.may_go_on(peer, scratch.len(), core) {
                break;
            }
            if self.limits.rounds > 0 && rounds >= self.limits.rounds {
                self.enqueue(peer);
                break;
            }
            rounds = rounds.saturating_add(1);
            self.round(peer, &mut scratch, core);
        }
        self.scratch = scratch;
    }

    /// There is room for sending: sends what was kept, then goes on with whoever waited for that.
    pub fn flush<D: Decisions>(&mut self, peer: Peer, core: &mut D) {
        self.flush_with(peer, core, &|_| None);
    }

    /// As `flush`; the last argument finds the descriptors of listening sockets.
    pub fn flush_with<D: Decisions>(&mut self, peer: Peer, core: &mut D, listeners: Find<'_>) {
        let Some(conn) = self.conns.get_mut(peer) else {
            return;
        };
        if conn.lost || conn.unsent.is_empty() {
            return;
        }
        let flushed = match peer {
            Peer::Client(id) if self.rows.contains_key(&id) => self.flush_rows(id, listeners),
            _ => conn.flush(&mut self.spare),
        };
        if flushed.is_err() {
            return self.lose(peer, Loss::Send, core);
        }
        let Some(conn) = self.conns.get_mut(peer).filter(|conn| conn.unsent.is_empty()) else {
            return;
        };
        let blocked = conn.blocks.take();
        if conn.has_work(usize::MAX) {
            self.enqueue(peer);
        }
        if let Some(blocked) = blocked {
            self.pump(blocked, core);
        }
    }

    /// Sends the pooler's own words behind whatever is still unsent; not into the middle of a
    /// packet, of which they would become a part.
    pub fn send<D: Decisions>(&mut self, peer: Peer, bytes: &[u8], core: &mut D) {
        if self.is_cut(peer) {
            return;
        }
        self.spoke_to(peer);
        self.deliver(peer, bytes, core);
    }

    /// Ends the wait of a client: what it sent is looked at again. If it has gone away in the
    /// meantime that is noticed first, and what it asked for is not done (pooling 1.2).
    pub fn resume<D: Decisions>(&mut self, id: ClientId, core: &mut D) {
        let Some(conn) = self.conns.clients.get_mut(id) else {
            return;
        };
        conn.waiting = false;
        conn.ask = !conn.held.is_empty();
        self.pump(Peer::Client(id), core);
    }

    /// Takes a connection out; dropping the stream that is returned closes it. Unsent bytes are
    /// lost.
    pub fn close(&mut self, peer: Peer) -> Option<W> {
        let mut conn = match peer {
            Peer::Client(id) => self.conns.clients.remove(id),
            Peer::Server(id) => self.conns.servers.remove(id),
        }?;
        if let Some(blocked) = conn.blocks.take() {
            self.enqueue(blocked);
        }
        if conn.flow.pass > 0 {
            self.cut(conn.flow.to);
        }
        if conn.spoken_to && !conn.lost && matches!(peer, Peer::Client(_)) {
            // Unread bytes would turn the close into a reset, which destroys our last words.
            let _ = conn.wire.recv(&mut self.scratch);
        }
        conn.held.clear(&mut self.spare);
        conn.unsent.clear(&mut self.spare);
        self.forget_rows(peer);
        Some(conn.wire)
    }

    /// The packet that this connection has the beginning of will never be complete.
    fn cut(&mut self, peer: Option<Peer>) {
        if let Some(conn) = peer.and_then(|peer| self.conns.get_mut(peer)) {
            conn.cut = true;
        }
    }

    /// True if this connection has been given the beginning of a packet only.
    fn is_cut(&self, peer: Peer) -> bool {
        self.conns.get(peer).is_some_and(|conn| {
            let from = conn.half_from;
            conn.cut || from.is_some_and(|from| self.is_sending(from, peer))
        })
    }

    fn spoke_to(&mut self, peer: Peer) {
        if let Some(conn) = self.conns.get_mut(peer) {
            conn.spoken_to = true;
        }
    }

    fn enqueue(&mut self, peer: Peer) {
        if let Some(conn) = self.conns.get_mut(peer) {
            if !mem::replace(&mut conn.queued, true) {
                self.ready.push_back(peer);
            }
        }
    }

    /// True if this connection has something to say and everybody concerned can take more. If the
    /// linked peer can't, it remembers whom to pump later.
    fn may_go_on<D: Decisions>(&mut self, peer: Peer, limit: usize, core: &D) -> bool {
        let Some(conn) = self.conns.get(peer) else {
            return false;
        };
        if !conn.has_work(limit) {
            return false;
        }
        if conn.unsent.len() > self.limits.unsent && !core.reads_while_unsent(peer) {
            return false;
        }
        let may_rest = self.suspended && conn.is_between_packets();
        if may_rest && !core.reads_while_suspended(peer) && !self.is_needed(peer, core) {
            return false;
        }
        match link(peer, core) {
            Some(other) => !self.must_wait_for(other, peer),
            None => true,
        }
    }

    /// A server that is not heard may not take what its client has begun to say.
    fn is_needed<D: Decisions>(&self, peer: Peer, core: &D) -> bool {
        let Peer::Server(id) = peer else {
            return false;
        };
        let client = core.client_of(id).and_then(|client| self.conns.clients.get(client));
        client.is_some_and(|client| !client.is_between_packets())
            || self.conns.get(peer).is_some_and(|conn| !conn.unsent.is_empty())
    }

    /// True if `to` has unsent bytes; then `from` is pumped when they are gone.
    #[inline]
    fn must_wait_for(&mut self, to: Peer, from: Peer) -> bool {
        let is_full = self.conns.get(to).is_some_and(|conn| !conn.unsent.is_empty());
        is_full && self.wait_for(to, from)
    }

    fn wait_for(&mut self, to: Peer, from: Peer) -> bool {
        let before = self.conns.get_mut(to).and_then(|conn| conn.blocks.replace(from));
        if let Some(before) = before.filter(|before| *before != from) {
            self.enqueue(before);
        }
        true
    }

    fn round<D: Decisions>(&mut self, peer: Peer, scratch: &mut [u8], core: &mut D) {
        let Some(conn) = self.conns.get_mut(peer) else {
            return;
        };
        let most = match self.suspended && !core.reads_while_suspended(peer) {
            // What is here may be all of a packet: then nothing behind it is received.
            true if conn.ask => return self.walk_held(peer, core),
            true => conn.missing(),
            false => usize::MAX,
        };
        match conn.receive(scratch, most, &mut self.spare) {
            Received::End => {
                conn.readable = false;
                if let Peer::Server(id) = peer {
                    self.settle(id, core);
                }
                self.lose(peer, Loss::Receive, core);
            }
            Received::Scratch(count) => {
                let data = scratch.get(..count).unwrap_or_default();
                let seen = match self.run(peer, data, core) {
                    Run::Pass(run) | Run::Replace(run) if run == count => return,
                    Run::Wait => 0,
                    run => self.walk(peer, data, run, core),
                };
                if let Some(conn) = self.conns.get_mut(peer).filter(|conn| !conn.lost) {
                    let rest = data.get(seen..).unwrap_or_default();
                    conn.held.push(rest, &mut self.spare);
                }
            }
            Received::Held => self.walk_held(peer, core),
            Received::Nothing if conn.ask => self.walk_held(peer, core),
            Received::Nothing => {}
        }
    }

    fn walk_held<D: Decisions>(&mut self, peer: Peer, core: &mut D) {
        let Some(conn) = self.conns.get_mut(peer) else {
            return;
        };
        let mut held = mem::take(&mut conn.held);
        let seen = match self.run(peer, held.as_slice(), core) {
            Run::Pass(run) | Run::Replace(run) if run == held.len() => run,
            Run::Wait => 0,
            run => self.walk(peer, held.as_slice(), run, core),
        };
        held.take(seen, &mut self.spare);
        if let Some(conn) = self.conns.get_mut(peer) {
            conn.held = held;
        }
    }

    fn deliver<D: Decisions>(&mut self, to: Peer, bytes: &[u8], core: &mut D) {
        let Some(conn) = self.conns.get_mut(to) else {
            return;
        };
        if !conn.lost && conn.send(bytes, &mut self.spare).is_err() {
            self.lose(to, Loss::Send, core);
        }
    }

    /// Tells the core, once, that a connection is gone.
    fn lose<D: Decisions>(&mut self, peer: Peer, why: Loss, core: &mut D) {
        let Some(conn) = self.conns.get_mut(peer) else {
            return;
        };
        if mem::replace(&mut conn.lost, true) {
            return;
        }
        conn.held.clear(&mut self.spare);
        conn.unsent.clear(&mut self.spare);
        if let Some(blocked) = conn.blocks.take() {
            self.enqueue(blocked);
        }
        self.forget_rows(peer);
        core.lost(peer, why);
    }

    /// True if `to` has been given the beginning of a packet from `from` but not its end.
    fn is_sending(&self, from: Peer, to: Peer) -> bool {
        let flow = self.conns.get(from).map(|conn| conn.flow);
        flow.is_some_and(|flow| flow.pass > 0 && flow.to == Some(to))
    }

    /// Tells the core when a server has been heard out and its client has been given all of it.
    #[inline]
    fn settle<D: Decisions>(&mut self, id: ServerId, core: &mut D) {
        if self.conns.servers.get(id).is_some_and(|conn| conn.undrained) {
            self.settle_undrained(id, core);
        }
    }

    fn settle_undrained<D: Decisions>(&mut self, id: ServerId, core: &mut D) {
        let Some(conn) = self.conns.servers.get(id) else {
            return;
        };
        let peer = Peer::Server(id);
        let more_to_come = conn.readable;
        if !conn.is_between_packets() || more_to_come || conn.stopped || conn.lost {
            return;
        }
        let client = core.client_of(id);
        if let Some(client) = client {
            // Half a packet would swallow what the next client sends.
            if self.is_sending(Peer::Client(client), peer)
                || self.must_wait_for(Peer::Client(client), peer)
            {
                return;
            }
        }
        if let Some(conn) = self.conns.servers.get_mut(id) {
            conn.undrained = false;
        }
        core.server_drained(id, &mut self.sink);
        if let (Some(client), false) = (client, self.sink.to_client.is_empty()) {
            let mut said = mem::take(&mut self.sink.to_client);
            self.spoke_to(Peer::Client(client));
            self.deliver(Peer::Client(client), &said, core);
            said.clear();
            self.sink.to_client = said;
        }
    }
}
