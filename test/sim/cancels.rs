//! Cancel requests beyond those that find their server: against clients that wait, and with keys of
//! peers, which are other processes behind the same address.

use crate::dice::Dice;
use crate::net::Key;
use crate::talk;
use crate::watch::Watch;
use crate::world::World;
use pgturnstile::config::PeerEntry;
use pgturnstile::core::client::ClientState;
use pgturnstile::core::pool::Pool;
use pgturnstile::core::server::ServerState;
use pgturnstile::core::{ClientId, Core, Peer, ServerId};
use pgturnstile::wire::startup::Opening;
use std::collections::BTreeMap;

/// The last bits of a key, which peers count down.
const HOPS: u64 = 3;

/// A process's number and its peers, if it has any.
pub fn draw(dice: &mut Dice) -> (i32, BTreeMap<u32, PeerEntry>) {
    let own = dice.pick(&[0, 7, 300]);
    (own, if own > 0 { peers(dice) } else { BTreeMap::new() })
}

/// Peers as a reload may bring them.
pub fn peers(dice: &mut Dice) -> BTreeMap<u32, PeerEntry> {
    let mut peers = BTreeMap::new();
    for id in [3, 4, 258] {
        let host = Some(dice.pick(&["one", "two"]).to_owned());
        let entry = PeerEntry { host, port: None, pool_size: Some(dice.pick(&[1, 2, 5])) };
        if dice.chance(80) {
            peers.insert(id, entry);
        }
    }
    peers
}

/// The number of the process that has given out a key.
fn peer_of_key(key: u64) -> u32 {
    let [_, low, high, ..] = key.to_be_bytes();
    u16::from_le_bytes([low, high]).into()
}

/// The client that waits for a server and that a cancel request in this packet is about.
pub fn waiting_target(core: &Core, body: &[u8]) -> Option<ClientId> {
    let Opening::CancelRequest(key) = Opening::read(body) else { return None };
    let key = u64::from_be_bytes(key.try_into().ok()?);
    let own = core.settings().peer_id;
    let is_own = own > 0 && peer_of_key(key) == own as u32;
    let key = if is_own { key | HOPS } else { key };
    let mut clients = core.clients().iter();
    let meant = |client: &pgturnstile::core::client::Client| {
        client.cancel_key() == key && client.state() == ClientState::Waiting
    };
    clients.find(|(_, client)| meant(client)).map(|(id, _)| id)
}

impl Watch {
    /// A cancel request has been looked at: its client waits no more, and has no query.
    pub fn revoked(&mut self, target: Option<ClientId>, core: &Core) {
        let Some(id) = target else { return };
        let waits = |id| core.clients().get(id).is_some_and(|c| c.state() == ClientState::Waiting);
        assert!(!waits(id), "CANCEL: {id:?} waits although its query has been canceled");
        self.canceled.insert(id);
    }
}

impl World {
    /// The key in a cancel request, as it arrives behind some hops.
    pub fn travelled(&mut self, key: u64) -> u64 {
        match self.plan.settings.peer_id > 0 && self.dice.chance(40) {
            true => key & !HOPS | self.dice.below(4) as u64,
            false => key,
        }
    }

    /// A cancel request with a key that was given out elsewhere, if anywhere.
    pub fn somebody_cancels_elsewhere(&mut self) {
        let full = self.clients.len() > self.plan.clients + 3;
        if self.plan.settings.peer_id == 0 || full || self.suspended.is_some() {
            return;
        }
        let peer = self.dice.pick(&[3_u16, 3, 4, 258, 9, 7]);
        let [low, high] = peer.to_le_bytes();
        let last = self.dice.below(8) as u8;
        let key = u64::from_be_bytes([1, low, high, 2, 3, 4, 5, last]);
        let at = self.connect_client("elsewhere");
        talk::cancel(&mut self.clients[at], key);
        self.trace(|world| format!("client {} cancels with {key:x}", world.clients[at].number));
    }

    /// A connection to a peer is opened only for a request, one at a time, and no more than allowed.
    pub fn check_peer_launch(&self, pool: &Pool) {
        let count = |state| pool.servers(state).len();
        let own = pool.peer().and_then(|peer| self.plan.peers.get(&peer)?.pool_size);
        let size = own.unwrap_or(self.plan.settings.default_pool_size);
        let all = count(ServerState::Login) + count(ServerState::ActiveCancel);
        let waiting = pool.clients(ClientState::WaitingCancel).len();
        if count(ServerState::Login) != 1 || waiting == 0 || all > size as usize {
            let name = pool.names().0;
            self.fail(&format!("PEERS: connection {all} of {size} to {name}, {waiting} wait"));
        }
    }

    /// A peer gets nothing but requests with its number that may go on, counted down by one.
    pub fn check_forwarded(&self, at: Key, key: u64) {
        let Peer::Server(id) = crate::net::peer_of(at) else { return };
        let server = self.core.servers().get(id);
        let pool = server.and_then(|server| self.core.pool(server.pool()));
        if let Some(peer) = pool.and_then(Pool::peer) {
            if peer_of_key(key) != peer || key & HOPS == HOPS {
                self.fail(&format!("PEERS: {key:x} goes to {peer}"));
            }
        }
    }

    /// What is in the pools of peers: clients, servers.
    pub fn in_peer_pools(&self) -> (usize, usize) {
        let pools = || self.core.peer_pools().map(|(_, _, pool)| pool);
        (pools().map(Pool::client_count).sum(), pools().map(Pool::server_count).sum())
    }

    /// True if the janitor may end this connection to a peer: it has been opened, or has had its
    /// request, for too long.
    pub fn peer_due(&self, id: ServerId, since: [Option<pgturnstile::base::Micros>; 2]) -> bool {
        let limit = self.plan.settings.cancel_wait_timeout;
        let state = self.core.servers().get(id).map(|server| server.state());
        let since = if state == Some(ServerState::Login) { since[0] } else { since[1] };
        limit.is_set() && since.is_some_and(|since| self.now.since(since) > limit)
    }
}
