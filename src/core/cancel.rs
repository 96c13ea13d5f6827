//! Cancel keys and cancel requests (pooling 8.1 to 8.4); for what goes to a peer see `peer`, for
//! queries that wait for a server `revoke`.

use super::assign::{self, Counts, Launch, Limits};
use super::client::{ClientState, Counted};
use super::face::{Action, Addr, ClientId, Peer, ServerId};
use super::fault::{self, Fault};
use super::pool::{Pool, PoolId};
use super::server::{Carries, Server, ServerState};
use super::Core;
use crate::base::Level;
use crate::wire::write;

/// What a cancel request is to do.
#[derive(Clone, Copy)]
pub(super) enum Aim {
    /// End what this server does.
    Server(ServerId),
    /// Go on to a peer, with this key.
    Peer(u64),
}

impl Server {
    /// True if this element of the list of hosts, at this address, is where it is. A name may have
    /// several addresses, and at the others nobody knows its key.
    fn is_at(&self, host: u32, remote: Addr) -> bool {
        match (self.remote, remote) {
            (Addr::Inet(own), Addr::Inet(other)) => {
                (own.ip(), own.port()) == (other.ip(), other.port())
            }
            (Addr::Inet(_), Addr::Unix { .. }) => false,
            _ => self.host == host,
        }
    }
}

impl Core {
    /// Gives a client a cancel key that no other client has. The top bit is clear, so that the
    /// "process id" in it is not negative.
    pub(super) fn new_cancel_key(&mut self, id: ClientId) -> u64 {
        let own = self.peering();
        loop {
            let key = u64::from_be_bytes(self.random.bytes()) & (u64::MAX >> 1);
            let key = own.map_or(key, |own| own.marked(key));
            if key == 0 || self.cancel_keys.contains_key(&key) {
                continue;
            }
            self.cancel_keys.insert(key, id);
            if let Some(client) = self.clients.get_mut(id) {
                client.cancel_key = key;
            }
            return key;
        }
    }

    /// The key of a client that is gone belongs to nobody. That of a request to a peer never was in
    /// our list, whatever it looks like.
    pub(super) fn forget_cancel_key(&mut self, key: u64, id: ClientId) {
        if self.cancel_keys.get(&key) == Some(&id) {
            self.cancel_keys.remove(&key);
        }
    }

    /// The client whose key this is. Peers that have passed it on have counted down its last bits.
    fn named_by_key(&self, key: u64) -> Option<ClientId> {
        let renewed = || self.peering().map(|own| own.renewed(key));
        let known = self.cancel_keys.get(&key);
        known.or_else(|| self.cancel_keys.get(&renewed()?)).copied()
    }

    /// A CancelRequest has arrived as a connection's first packet. Every `Err` closes it silently.
    pub(super) fn cancel_request(&mut self, id: ClientId, key: &[u8]) -> Result<(), Fault> {
        let key: [u8; 8] = key.try_into().map_err(|_| fault::BAD_CANCEL_REQUEST)?;
        let key = u64::from_be_bytes(key);
        let Some(target) = self.named_by_key(key) else {
            return self.forward_cancel(id, key);
        };
        let client = self.clients.get(target).ok_or(fault::CANCEL_UNKNOWN_KEY)?;
        if client.console.is_some() {
            self.cancel_console(id, target);
            return Err(fault::CANCEL_CONSOLE);
        }
        let pool = client.pool;
        // A replication server that is logging in does nothing yet.
        let linked = client.server.filter(|id| {
            self.servers.get(*id).is_some_and(|server| server.state != ServerState::Login)
        });
        if self.revoke(target) {
            return Err(fault::CANCEL_REVOKED);
        }
        let server = linked.ok_or(fault::CANCEL_IDLE_CLIENT)?;
        let pool = pool.ok_or(fault::CANCEL_UNKNOWN_KEY)?;
        if self.servers.get(server).is_some_and(|server| server.is_aligning()) {
            return Err(fault::CANCEL_DURING_ALIGN);
        }
        self.queue_cancel(id, pool, Aim::Server(server));
        self.launch(pool, true);
        Ok(())
    }

    /// A request waits in this pool for a connection that carries it.
    pub(super) fn queue_cancel(&mut self, id: ClientId, pool: PoolId, aim: Aim) {
        // It may have said before what it wants.
        if let Some(counted) = self.clients.get(id).map(|client| self.counted_by(client)) {
            self.uncount(counted);
        }
        let now = self.now;
        if let Some(client) = self.clients.get_mut(id) {
            client.counted = Counted::Nowhere;
            client.pool = Some(pool);
            match aim {
                Aim::Server(server) => client.cancels = Some(server),
                Aim::Peer(key) => client.cancel_key = key,
            }
            client.last_packet = now;
            client.login = None;
        }
        self.move_client(id, ClientState::WaitingCancel);
        self.mark(pool);
    }

    /// A cancel request against a console ends PAUSE and SUSPEND, and whatever it waits for.
    fn cancel_console(&mut self, from: ClientId, target: ClientId) {
        if !self.console_waits(target) {
            self.client_log(from, Level::Warning, "admin cancel request for non-waiting client?");
        }
        if self.shutdown.is_none() {
            self.resume_all();
        }
        self.cancel_waits(target);
    }

    /// If a cancel request waits in the pool, the new connection carries it, and with it all that
    /// want the same. Requests whose server has become free in the meantime are dropped. False if
    /// the connection is to log in.
    pub(super) fn carry_cancel(&mut self, carrier: ServerId, pool_id: PoolId) -> bool {
        let has_requests = self.has_cancels(pool_id);
        if !has_requests || self.is_logins_turn(pool_id) {
            if let Some(pool) = self.pools.get_mut(pool_id) {
                pool.cancel_went_last = false;
            }
            return false;
        }
        let next = self.next_cancel(carrier, pool_id);
        if next.is_none() && self.has_cancels(pool_id) && self.has_room_for_login(pool_id) {
            // Their queries run elsewhere.
            return false;
        }
        // The connection works: neither its end nor that of the request is a failed login.
        if let Some(server) = self.servers.get_mut(carrier) {
            server.login = None;
        }
        if let Some(pool) = self.pools.get_mut(pool_id) {
            pool.connect_failed = false;
        }
        let Some((request, aim)) = next else {
            self.close_server(carrier, &fault::CANCEL_GIVEN_UP, false);
            return true;
        };
        let (carries, key) = match aim {
            Aim::Peer(key) => (Carries::ToPeer, Some(key)),
            Aim::Server(target) => {
                let server = self.servers.get_mut(target);
                let key = server.and_then(|server| {
                    server.cancels_in_flight = server.cancels_in_flight.saturating_add(1);
                    server.key
                });
                (Carries::ToServer(target), key)
            }
        };
        for rider in self.alike(request, pool_id) {
            self.move_client(rider, ClientState::ActiveCancel);
            if let Some(client) = self.clients.get_mut(rider) {
                client.cancels = Some(carrier);
            }
        }
        if let Some(server) = self.servers.get_mut(carrier) {
            server.carries = carries;
        }
        if let Some(pool) = self.pools.get_mut(pool_id) {
            pool.cancel_went_last = true;
        }
        self.move_server(carrier, ServerState::ActiveCancel);
        // Who waits for a server may have one opened, now that no connection is being made.
        self.mark(pool_id);
        let mut packet = Vec::new();
        write::cancel_request(&mut packet, key.unwrap_or(0));
        self.actions.push_back(Action::Send(Peer::Server(carrier), packet));
        true
    }

    /// True if cancel requests wait in the pool.
    pub(super) fn has_cancels(&self, pool: PoolId) -> bool {
        let waiting = |pool: &Pool| !pool.clients(ClientState::WaitingCancel).is_empty();
        self.pools.get(pool).is_some_and(waiting)
    }

    /// The first request that still makes sense and whose query, if it still runs, does so where
    /// this connection leads; those before it that make none are closed.
    fn next_cancel(&mut self, carrier: ServerId, pool_id: PoolId) -> Option<(ClientId, Aim)> {
        let (host, remote) =
            self.servers.get(carrier).map(|server| (server.host, server.remote))?;
        let pool = self.pools.get(pool_id)?;
        let is_peer = pool.peer.is_some();
        for request in pool.clients(ClientState::WaitingCancel).ids(&self.clients) {
            let client = self.clients.get(request)?;
            if is_peer {
                return Some((request, Aim::Peer(client.cancel_key)));
            }
            let target = client.cancels.and_then(|id| Some((id, self.servers.get(id)?)));
            match target.filter(|(_, target)| target.key.is_some()) {
                Some((id, target)) if target.is_at(host, remote) => {
                    return Some((request, Aim::Server(id)));
                }
                Some(_) => {}
                None => self.close_client(request, &fault::CANCEL_NOW_IDLE),
            }
        }
        None
    }

    /// The server whose query the next connection is to cancel; none if one is to log in.
    pub(super) fn next_to_cancel(&self, id: PoolId) -> Option<&Server> {
        let pool = self.pools.get(id).filter(|_| self.has_cancels(id))?;
        if self.is_logins_turn(id) {
            return None;
        }
        let requests = pool.clients(ClientState::WaitingCancel).ids(&self.clients).into_iter();
        let target = |request| self.servers.get(self.clients.get(request)?.cancels?);
        requests.filter_map(target).find(|target| target.key.is_some())
    }

    /// The requests that wait for the same as this one, itself included: one connection does for
    /// all of them.
    fn alike(&self, request: ClientId, pool: PoolId) -> Vec<ClientId> {
        let (Some(first), Some(pool)) = (self.clients.get(request), self.pools.get(pool)) else {
            return Vec::new();
        };
        let wanted = (first.cancels, first.cancel_key);
        let same = |id: &ClientId| {
            let client = self.clients.get(*id);
            client.is_some_and(|client| (client.cancels, client.cancel_key) == wanted)
        };
        pool.clients(ClientState::WaitingCancel)
            .ids(&self.clients)
            .into_iter()
            .filter(same)
            .collect()
    }

    /// The requests that a connection carries.
    pub(super) fn riders(&self, carrier: ServerId) -> Vec<ClientId> {
        let pool = self.servers.get(carrier).and_then(|server| self.pools.get(server.pool));
        let Some(pool) = pool else { return Vec::new() };
        let rides = |id: &ClientId| {
            self.clients.get(*id).is_some_and(|client| client.cancels == Some(carrier))
        };
        pool.clients(ClientState::ActiveCancel)
            .ids(&self.clients)
            .into_iter()
            .filter(rides)
            .collect()
    }

    /// The last new connection of the pool took a cancel request, and a client waits for one that
    /// logs in and would get it if there were no cancel requests: they take turns, so that a storm of
    /// them keeps nobody from a server.
    pub(super) fn is_logins_turn(&self, id: PoolId) -> bool {
        let Some(pool) = self.pools.get(id).filter(|pool| pool.cancel_went_last) else {
            return false;
        };
        let count = |state: ServerState| pool.servers(state).len();
        let coming =
            count(ServerState::Idle) + count(ServerState::Used) + count(ServerState::Tested);
        let waiting = pool.clients(ClientState::Waiting).len();
        let is_short = waiting > coming || waiting > 0 && pool.welcome.is_none();
        is_short && self.has_room_for_login(id)
    }

    /// One more server is within the limits, but for the connections that carry cancel requests, and
    /// for the one that is being made.
    fn has_room_for_login(&self, id: PoolId) -> bool {
        let Some(pool) = self.pools.get(id).filter(|_| !self.is_paused(id)) else {
            return false;
        };
        let (counts, limits) = self.launch_facts(pool);
        let limits = Limits { failed_launch: None, ..limits };
        let others = counts.carriers.saturating_add(counts.logging_in);
        let without = Counts {
            logging_in: 0,
            cancels: 0,
            carriers: 0,
            total: counts.total.saturating_sub(others),
            of_database: counts.of_database.saturating_sub(others),
            of_user: counts.of_user.saturating_sub(others),
            ..counts
        };
        matches!(assign::launch(without, limits, self.now), Launch::Yes | Launch::Reserve)
    }

    /// A server has been released: requests against it that were not sent yet make no sense.
    pub(super) fn detach_cancels(&mut self, server: ServerId) {
        let Some(pool) = self.servers.get(server).and_then(|s| self.pools.get(s.pool)) else {
            return;
        };
        if pool.clients(ClientState::WaitingCancel).is_empty() {
            return;
        }
        for id in pool.clients(ClientState::WaitingCancel).ids(&self.clients) {
            if let Some(client) = self.clients.get_mut(id).filter(|c| c.cancels == Some(server)) {
                client.cancels = None;
            }
        }
    }

    /// A connection that carried cancel requests is gone, and so are they; its target may be free
    /// now.
    pub(super) fn cancel_over(&mut self, carries: Carries, riders: Vec<ClientId>, fault: &Fault) {
        let fault = match *fault == fault::CANCEL_SEND_FAILED {
            true => &fault::CANCEL_SEND_FAILED,
            false => &fault::CANCEL_SENT,
        };
        for request in riders {
            self.close_client(request, fault);
        }
        let Carries::ToServer(target) = carries else { return };
        let Some(server) = self.servers.get_mut(target) else {
            return;
        };
        server.cancels_in_flight = server.cancels_in_flight.saturating_sub(1);
        if server.cancels_in_flight == 0 && server.state == ServerState::BeingCanceled {
            self.release(target);
        }
    }
}
