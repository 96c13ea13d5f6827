//! Peers: other processes behind the same address. A cancel request that reaches the wrong one is
//! passed on to the one that the key names (pooling 8.1, 8.5).

use super::cancel::Aim;
use super::client::ClientState;
use super::face::{ClientId, ServerId, Target};
use super::fault::{self, Fault};
use super::pool::{Pool, PoolId};
use super::server::{Server, ServerState};
use super::{connect, Core};
use crate::base::{Level, Micros};
use crate::config::entries::PEER_PORT;
use crate::config::PeerEntry;
use std::collections::BTreeMap;

/// This process among its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peering {
    own: u16,
}

/// Where a cancel request with a key that is nobody's here goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Nowhere: the key was given out here, if anywhere.
    Own,
    /// Nowhere: it has been passed on too often.
    Exhausted,
    /// To this peer, with this key.
    To(u32, u64),
}

/// Stands for a peer that no entry names: the process whose place we have taken and whose clients
/// are still with it.
const ELDER: u32 = u32::MAX;

/// The last two bits of a key count down how often it may be passed on.
const HOPS: u64 = 3;

impl Peering {
    /// A process with this peer_id, of which 16 bits count; `None` if it has no peers.
    pub fn new(peer_id: i32) -> Option<Peering> {
        (peer_id > 0).then_some(Peering { own: peer_id as u16 })
    }

    /// A key with our number in its second and third byte, little end first, and all hops left.
    pub fn marked(self, key: u64) -> u64 {
        let [first, _, _, rest @ ..] = key.to_be_bytes();
        let [low, high] = self.own.to_le_bytes();
        let [fourth, fifth, sixth, seventh, last] = rest;
        u64::from_be_bytes([first, low, high, fourth, fifth, sixth, seventh, last]) | HOPS
    }

    /// A key as it was given out.
    pub fn renewed(self, key: u64) -> u64 {
        key | HOPS
    }

    /// Where a request with this key goes (pooling 8.5).
    pub fn route(self, key: u64) -> Route {
        let [_, low, high, ..] = key.to_be_bytes();
        match u16::from_le_bytes([low, high]) {
            peer if peer == self.own => Route::Own,
            _ if key & HOPS == 0 => Route::Exhausted,
            peer => Route::To(peer.into(), key.wrapping_sub(1)),
        }
    }
}

/// The facts that decide about one more connection to a peer.
#[derive(Clone, Copy, Debug)]
pub struct PeerCounts {
    /// Requests that wait.
    pub waiting: usize,
    /// Connections that are not open yet.
    pub connecting: usize,
    /// Connections.
    pub total: usize,
    /// pool_size; 0 is none at all.
    pub pool_size: i32,
    /// How long ago the last attempt was made, if it failed.
    pub failed: Option<Micros>,
    /// How long to wait after such an attempt.
    pub retry: Micros,
}

/// Whether to open one more connection to a peer (pooling 2.3).
pub fn may_open(count: PeerCounts) -> bool {
    let size = usize::try_from(count.pool_size).unwrap_or(0);
    count.waiting > 0
        && count.connecting == 0
        && count.total < size
        && count.failed.is_none_or(|ago| ago >= count.retry)
}

/// How long to wait before another attempt: server_login_retry, but so that a request that waits at
/// most `wait` (0: for ever) sees several of them, and no faster than the janitor looks.
pub fn retry_after(login_retry: Micros, wait: Micros) -> Micros {
    const LEAST: Micros = Micros(300_000);
    let several = Micros(wait.0 / 4);
    let retry = if wait.is_set() { login_retry.min(several) } else { login_retry };
    retry.max(LEAST)
}

impl Core {
    /// This process among its peers, if it has any.
    pub(super) fn peering(&self) -> Option<Peering> {
        Peering::new(self.settings.peer_id)
    }

    /// The process whose place we have taken goes on with its clients, and listens at the Unix socket
    /// in this directory; or it has ended.
    pub fn set_elder(&mut self, host: Option<String>) {
        let entry = |host| PeerEntry { host: Some(host), ..PeerEntry::default() };
        self.elder = host.map(entry);
        if self.elder.is_none() {
            self.drop_peer_pool(ELDER);
        }
    }

    /// The pools of peers that something has been forwarded to, in the order of their ids.
    pub fn peer_pools(&self) -> impl Iterator<Item = (u32, PoolId, &Pool)> {
        let named = self.peer_pools.iter().filter(|(peer, _)| **peer != ELDER);
        named.filter_map(|(peer, id)| Some((*peer, *id, self.pools.get(*id)?)))
    }

    /// The entry of a pool's peer; `None` for pools of databases.
    pub fn peer_entry(&self, pool: &Pool) -> Option<&PeerEntry> {
        match pool.peer? {
            ELDER => self.elder.as_ref(),
            peer => self.peers.get(&peer),
        }
    }

    /// The key of this request is not one of ours: pass it on, if it is a peer's.
    pub(super) fn forward_cancel(&mut self, id: ClientId, key: u64) -> Result<(), Fault> {
        let (peer, key) = match self.peering().map_or(Route::Own, |own| own.route(key)) {
            Route::Own if self.elder.is_some() => (ELDER, key),
            Route::Own => return Err(fault::CANCEL_UNKNOWN_KEY),
            Route::Exhausted => return Err(fault::CANCEL_EXHAUSTED),
            Route::To(peer, key) if self.peers.contains_key(&peer) => (peer, key),
            Route::To(..) => return Err(fault::CANCEL_NO_PEER),
        };
        let pool = self.pool_of_peer(peer);
        self.queue_cancel(id, pool, Aim::Peer(key));
        self.serve_peer(pool);
        Ok(())
    }

    /// The pool of a peer, made if it does not exist.
    pub(super) fn pool_of_peer(&mut self, peer: u32) -> PoolId {
        if let Some(id) = self.peer_pools.get(&peer) {
            return *id;
        }
        let id = self.pools.insert(Pool::of_peer(peer));
        self.peer_pools.insert(peer, id);
        id
    }

    /// Where a connection to a peer goes.
    pub(super) fn peer_target(&self, pool: &Pool) -> Option<Target> {
        let entry = self.peer_entry(pool)?;
        let port = match pool.peer {
            Some(ELDER) => self.settings.listen_port,
            _ => entry.port.unwrap_or(PEER_PORT),
        };
        Some(Target { host: entry.host.clone()?, port: u16::try_from(port).unwrap_or(0) })
    }

    /// Opens a connection to a peer if requests wait for one.
    pub(super) fn serve_peer(&mut self, id: PoolId) {
        let Some(pool) = self.pools.get(id) else { return };
        let own = self.peer_entry(pool).and_then(|peer| peer.pool_size).filter(|size| *size >= 0);
        let settings = &self.settings;
        let opens = may_open(PeerCounts {
            waiting: pool.clients(ClientState::WaitingCancel).len(),
            connecting: pool.servers(ServerState::Login).len(),
            total: pool.server_count(),
            pool_size: own.unwrap_or(settings.default_pool_size),
            failed: pool.connect_failed.then(|| self.now.since(pool.last_launch)),
            retry: retry_after(settings.server_login_retry, settings.cancel_wait_timeout),
        });
        if opens {
            connect::open(self, id);
        }
    }

    /// A connection to a peer is open: it carries a request, or nobody needs it any more. False for
    /// servers.
    pub(super) fn peer_connected(&mut self, id: ServerId, pool: PoolId) -> bool {
        if self.pools.get(pool).is_none_or(|pool| pool.peer.is_none()) {
            return false;
        }
        if !self.carry_cancel(id, pool) {
            if let Some(server) = self.servers.get_mut(id) {
                // It works: this is no failed login.
                server.login = None;
            }
            if let Some(pool) = self.pools.get_mut(pool) {
                pool.connect_failed = false;
            }
            self.close_server(id, &fault::PEER_NOT_NEEDED, false);
        }
        true
    }

    /// What time changes for requests to peers; at each tick. A peer that does not answer keeps a
    /// connection no longer than a request may wait: what it was sent it has.
    pub(super) fn tend_peers(&mut self) {
        for id in self.peer_pools.values().copied().collect::<Vec<_>>() {
            self.expire_connecting(id);
            let limit = self.settings.cancel_wait_timeout;
            if let Some(pool) = self.pools.get(id).filter(|_| limit.is_set()) {
                let (now, servers) = (self.now, &self.servers);
                let since = |server: &Server| match server.state {
                    ServerState::Login => server.connect_time,
                    _ => server.last_packet,
                };
                let is_late = |id: &ServerId| {
                    servers.get(*id).is_some_and(|server| now.since(since(server)) > limit)
                };
                let both = [ServerState::Login, ServerState::ActiveCancel];
                let all = both.map(|state| pool.servers(state).ids(servers)).concat();
                for server in all.into_iter().filter(is_late).collect::<Vec<_>>() {
                    let in_login = |s: &Server| s.state == ServerState::Login;
                    let term = self.servers.get(server).is_some_and(in_login);
                    self.close_server(server, &fault::CANCEL_WAIT_TIMEOUT, term);
                }
            }
            self.expire_cancels(id);
            if self.has_cancels(id) {
                self.mark(id);
            }
        }
    }

    /// Takes over peers; those that are missing go if all were read.
    pub(super) fn put_peers(&mut self, peers: BTreeMap<u32, PeerEntry>, complete: bool) {
        let is_elsewhere = |(id, new): (&u32, &PeerEntry)| {
            let old = self.peers.get(id)?;
            ((&old.host, old.port) != (&new.host, new.port)).then_some(*id)
        };
        let moved: Vec<u32> = peers.iter().filter_map(is_elsewhere).collect();
        let gone = self.peers.keys().filter(|id| complete && !peers.contains_key(id));
        let gone: Vec<u32> = gone.copied().collect();
        self.peers.extend(peers);
        for id in gone {
            // Two blanks: the reference's peers have no name.
            let line = "dropping peer  as it does not exist anymore".into();
            self.journal.line(Level::Warning, line);
            self.peers.remove(&id);
            self.drop_peer_pool(id);
        }
        for id in moved {
            self.redirect_peer(id);
        }
    }

    fn drop_peer_pool(&mut self, peer: u32) {
        let Some(id) = self.peer_pools.remove(&peer) else { return };
        let (requests, servers) = self.members(id).unwrap_or_default();
        for request in requests {
            self.close_client(request, &fault::PEER_REMOVED);
        }
        for server in servers {
            self.close_server(server, &fault::PEER_REMOVED, true);
        }
        self.pools.remove(id);
    }

    /// Requests and connections of a peer's pool.
    fn members(&self, id: PoolId) -> Option<(Vec<ClientId>, Vec<ServerId>)> {
        let pool = self.pools.get(id)?;
        let requests = [ClientState::ActiveCancel, ClientState::WaitingCancel];
        let servers = [ServerState::Login, ServerState::ActiveCancel];
        Some((
            requests.map(|state| pool.clients(state).ids(&self.clients)).concat(),
            servers.map(|state| pool.servers(state).ids(&self.servers)).concat(),
        ))
    }

    /// A peer is somewhere else now: what is still on its way to the old place is given up, and
    /// that nobody answered there means nothing.
    fn redirect_peer(&mut self, peer: u32) {
        let Some(id) = self.peer_pools.get(&peer).copied() else { return };
        let connecting = self.pools.get(id).map(|pool| pool.servers(ServerState::Login));
        for server in connecting.map_or_else(Vec::new, |list| list.ids(&self.servers)) {
            self.close_server(server, &fault::CONNECT_STRING_CHANGED, true);
        }
        if let Some(pool) = self.pools.get_mut(id) {
            pool.connect_failed = false;
        }
        self.mark(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_carry_the_peers_number_and_their_hops() {
        let own = Peering::new(0x0102).unwrap();
        assert_eq!(own.marked(0), 0x00_02_01_00_00_00_00_03);
        assert_eq!(own.marked(u64::MAX >> 1), 0x7f_02_01_ff_ff_ff_ff_ff);
        assert_eq!(own.renewed(0x7f_02_01_ff_ff_ff_ff_fc), 0x7f_02_01_ff_ff_ff_ff_ff);
        assert_eq!(Peering::new(0), None);
        assert_eq!(Peering::new(-1), None);
        assert_eq!(Peering::new(65_537), Peering::new(1), "16 bits count");
    }

    #[test]
    fn a_key_goes_to_its_peer_three_times_at_most() {
        let own = Peering::new(7).unwrap();
        let of = |peer: u64, last: u64| 0x11_00_00_22_33_44_55_00 | peer << 40 | last;
        let peer_3 = 0x03_00;
        for (key, want) in [
            (of(0x07_00, 0x43), Route::Own),
            (of(0x07_00, 0x40), Route::Own),
            (of(peer_3, 0x43), Route::To(3, of(peer_3, 0x42))),
            (of(peer_3, 0x42), Route::To(3, of(peer_3, 0x41))),
            (of(peer_3, 0x41), Route::To(3, of(peer_3, 0x40))),
            (of(peer_3, 0x40), Route::Exhausted),
            (of(0x07_01, 0x03), Route::To(0x0107, of(0x07_01, 0x02))),
            (of(0x00_00, 0x01), Route::To(0, of(0x00_00, 0x00))),
            (of(0xff_ff, 0xff), Route::To(65_535, of(0xff_ff, 0xfe))),
        ] {
            assert_eq!(own.route(key), want, "{key:x}");
        }
    }

    #[test]
    fn a_connection_to_a_peer_is_opened_only_if_that_may_help() {
        let secs = Micros::from_secs;
        let fine = PeerCounts {
            waiting: 1,
            connecting: 0,
            total: 1,
            pool_size: 2,
            failed: None,
            retry: secs(3),
        };
        for (count, want) in [
            (fine, true),
            (PeerCounts { waiting: 0, ..fine }, false),
            (PeerCounts { connecting: 1, ..fine }, false),
            (PeerCounts { total: 2, ..fine }, false),
            (PeerCounts { total: 0, pool_size: 0, ..fine }, false),
            (PeerCounts { failed: Some(secs(2)), ..fine }, false),
            (PeerCounts { failed: Some(secs(3)), ..fine }, true),
        ] {
            assert_eq!(may_open(count), want, "{count:?}");
        }
    }

    #[test]
    fn a_request_sees_several_attempts() {
        let secs = Micros::from_secs;
        for (login_retry, wait, want) in [
            (secs(15), secs(10), Micros(2_500_000)),
            (secs(1), secs(10), secs(1)),
            (secs(15), Micros(0), secs(15)),
            (Micros(0), secs(10), Micros(300_000)),
            (secs(15), Micros(400_000), Micros(300_000)),
        ] {
            assert_eq!(retry_after(login_retry, wait), want);
        }
    }
}
