//! Cancel keys and cancel requests (pooling 8, without peers).

use super::client::{ClientState, Counted};
use super::face::{Action, ClientId, Peer, ServerId};
use super::fault::{self, Fault};
use super::pool::PoolId;
use super::server::ServerState;
use super::Core;
use crate::base::Level;
use crate::wire::write;

impl Core {
    /// Gives a client a cancel key that no other client has. The top bit is clear, so that the
    /// "process id" in it is not negative.
    pub(super) fn new_cancel_key(&mut self, id: ClientId) -> u64 {
        loop {
            let key = u64::from_be_bytes(self.random.bytes()) & (u64::MAX >> 1);
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

    /// A CancelRequest has arrived as a connection's first packet. Every `Err` closes it silently.
    pub(super) fn cancel_request(&mut self, id: ClientId, key: &[u8]) -> Result<(), Fault> {
        let key: [u8; 8] = key.try_into().map_err(|_| fault::BAD_CANCEL_REQUEST)?;
        let target = self.cancel_keys.get(&u64::from_be_bytes(key)).copied();
        let target = target.ok_or(fault::CANCEL_UNKNOWN_KEY)?;
        let client = self.clients.get(target).ok_or(fault::CANCEL_UNKNOWN_KEY)?;
        if client.console.is_some() {
            self.cancel_console(id, target);
            return Err(fault::CANCEL_CONSOLE);
        }
        // A replication server that is logging in does nothing yet.
        let linked = client.server.filter(|id| {
            self.servers.get(*id).is_some_and(|server| server.state != ServerState::Login)
        });
        let server = linked.ok_or(fault::CANCEL_IDLE_CLIENT)?;
        let pool = client.pool.ok_or(fault::CANCEL_UNKNOWN_KEY)?;
        if self.servers.get(server).is_some_and(|server| server.is_aligning()) {
            return Err(fault::CANCEL_DURING_ALIGN);
        }
        // It may have said before what it wants.
        if let Some(counted) = self.clients.get(id).map(|client| self.counted_by(client)) {
            self.uncount(counted);
        }
        let now = self.now;
        if let Some(client) = self.clients.get_mut(id) {
            client.counted = Counted::Nowhere;
            client.pool = Some(pool);
            client.cancels = Some(server);
            client.last_packet = now;
            client.login = None;
        }
        self.set_cancel_waiting(id);
        self.mark(pool);
        self.launch(pool, true);
        Ok(())
    }

    fn set_cancel_waiting(&mut self, id: ClientId) {
        self.move_client(id, ClientState::WaitingCancel);
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

    /// If a cancel request waits in the pool, the new connection carries it. Requests whose server
    /// has become free in the meantime are dropped.
    pub(super) fn carry_cancel(&mut self, server: ServerId, pool_id: PoolId) -> bool {
        let request = self
            .pools
            .get(pool_id)
            .and_then(|pool| pool.clients(ClientState::WaitingCancel).head());
        let Some(request) = request else { return false };
        // The connection works: neither its end nor that of the request is a failed login.
        if let Some(carrier) = self.servers.get_mut(server) {
            carrier.login = None;
        }
        if let Some(pool) = self.pools.get_mut(pool_id) {
            pool.connect_failed = false;
        }
        let target = self.clients.get(request).and_then(|client| client.cancels);
        let key = target.and_then(|target| self.servers.get(target)).and_then(|target| target.key);
        let (Some(target), Some(key)) = (target, key) else {
            self.close_client(request, &fault::CANCEL_NOW_IDLE);
            self.close_server(server, &fault::CANCEL_GIVEN_UP, false);
            return true;
        };
        if let Some(server) = self.servers.get_mut(target) {
            server.cancels_in_flight = server.cancels_in_flight.saturating_add(1);
        }
        self.move_client(request, ClientState::ActiveCancel);
        if let Some(carrier) = self.servers.get_mut(server) {
            carrier.carries = Some((request, target));
        }
        self.move_server(server, ServerState::ActiveCancel);
        // Who waits for a server may have one opened, now that no connection is being made.
        self.mark(pool_id);
        let mut packet = Vec::new();
        write::cancel_request(&mut packet, key);
        self.actions.push_back(Action::Send(Peer::Server(server), packet));
        true
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

    /// A cancel request that was sent is over: its target may be free now.
    pub(super) fn cancel_over(&mut self, target: ServerId) {
        let Some(server) = self.servers.get_mut(target) else {
            return;
        };
        server.cancels_in_flight = server.cancels_in_flight.saturating_sub(1);
        if server.cancels_in_flight == 0 && server.state == ServerState::BeingCanceled {
            self.release(target);
        }
    }
}
