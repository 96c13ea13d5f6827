//! Clients that wait, run or idle for too long (pooling 4); at each tick.

use super::client::ClientState;
use super::face::{Action, ClientId, Peer};
use super::fault::{self, Fault};
use super::pool::PoolId;
use super::server::{ServerState, Status};
use super::Core;
use crate::base::Micros;
use crate::wire::write;

/// How long a linked pair has been at it, and how long it may.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// Of the server.
    pub status: Status,
    /// Since the query began that is not finished.
    pub query: Option<Micros>,
    /// Since the transaction began.
    pub transaction: Option<Micros>,
    /// Since the server's last packet.
    pub silent: Micros,
    /// query_timeout, idle_transaction_timeout, transaction_timeout; zero is without limit.
    pub limits: (Micros, Micros, Micros),
}

/// True unless an entry says zero or less, which is not set (config 3.4): what is negative has been
/// read as the longest time there is.
pub(super) fn is_positive(time: Micros) -> bool {
    time.is_set() && time != Micros(u64::MAX)
}

/// What a linked pair is closed for, if it is.
pub fn overdue(pair: Running) -> Option<Fault> {
    let (query, idle, transaction) = pair.limits;
    let over = |limit: Micros, spent: Option<Micros>| {
        limit.is_set() && spent.is_some_and(|spent| spent > limit)
    };
    let in_transaction = matches!(pair.status, Status::InTransaction | Status::InFailedTransaction);
    match pair.status {
        Status::Ready | Status::Reserved => None,
        _ if over(query, pair.query) => Some(fault::QUERY_TIMEOUT),
        _ if in_transaction && pair.query.is_none() && over(idle, Some(pair.silent)) => {
            Some(fault::IDLE_TRANSACTION_TIMEOUT)
        }
        _ if over(transaction, pair.transaction) => Some(fault::TRANSACTION_TIMEOUT),
        _ => None,
    }
}

impl Core {
    /// Everything in a pool that clients are waited for.
    pub(super) fn expire_clients(&mut self, pool: PoolId) {
        self.expire_running(pool);
        self.expire_idle(pool);
        self.expire_waiting(pool);
    }

    fn expire_running(&mut self, id: PoolId) {
        let Some(pool) = self.pools.get(id) else { return };
        let effective = self.effective(pool);
        let limits = (
            effective.query_timeout(),
            effective.idle_transaction_timeout(),
            effective.transaction_timeout(),
        );
        if !limits.0.is_set() && !limits.1.is_set() && !limits.2.is_set() {
            return;
        }
        for id in pool.servers(ServerState::Active).ids(&self.servers) {
            let Some(server) = self.servers.get(id) else { continue };
            let Some(client) = server.client.and_then(|client| self.clients.get(client)) else {
                continue;
            };
            let since = |start: Option<Micros>| start.map(|start| self.now.since(start));
            let fault = overdue(Running {
                status: server.status,
                query: since(client.query_start),
                transaction: since(client.transaction_start),
                silent: self.now.since(server.last_packet),
                limits,
            });
            if let Some(fault) = fault {
                self.close_server(id, &fault, true);
            }
        }
    }

    /// Clients without a server that have sent nothing for long.
    fn expire_idle(&mut self, id: PoolId) {
        let Some(pool) = self.pools.get(id) else { return };
        let global = self.settings.client_idle_timeout;
        if !global.is_set() && !self.some_user_idles {
            return;
        }
        for id in pool.clients(ClientState::Active).ids(&self.clients) {
            let Some(client) = self.clients.get(id) else { continue };
            let user = client.user.and_then(|user| self.users.get(user));
            let own = user.and_then(|user| user.entry.client_idle_timeout);
            let limit = own.filter(|time| is_positive(*time)).unwrap_or(global);
            let idle = self.now.since(client.last_packet);
            if client.server.is_none() && limit.is_set() && idle > limit {
                self.close_client(id, &fault::CLIENT_IDLE_TIMEOUT);
            }
        }
    }

    fn expire_waiting(&mut self, pool_id: PoolId) {
        let Some(pool) = self.pools.get(pool_id) else { return };
        let states = [ClientState::Waiting, ClientState::Joined];
        if states.iter().all(|state| pool.clients(*state).is_empty()) {
            return;
        }
        let query_limit = self.settings.query_timeout;
        let login_limit = self.settings.client_login_timeout;
        let server_down = pool.welcome.is_none();
        let queue = states.map(|state| pool.clients(state).ids(&self.clients)).concat();
        for (place, id) in queue.into_iter().enumerate() {
            let (Some(client), Some(pool)) = (self.clients.get(id), self.pools.get(pool_id)) else {
                continue;
            };
            let login = client.user.and_then(|user| self.users.get(user));
            let wait_limit = self.effective(pool).query_wait_timeout(login);
            let since = client.query_start.unwrap_or(client.last_packet);
            let over = |limit: Micros, start| limit.is_set() && self.now.since(start) > limit;
            if over(query_limit, since) {
                self.close_client(id, &fault::QUERY_TIMEOUT_WAITING);
            } else if over(wait_limit, since) {
                self.close_client(id, &fault::QUERY_WAIT_TIMEOUT);
            } else if server_down
                && client.awaits_welcome()
                && over(login_limit, client.connect_time)
            {
                self.close_client(id, &fault::CLIENT_LOGIN_TIMEOUT_SERVER_DOWN);
            } else {
                self.notify_waiting(id, place);
            }
        }
    }

    /// Tells a client that it waits, once per wait (query_wait_notify). What is paused is meant to
    /// wait.
    fn notify_waiting(&mut self, id: ClientId, place: usize) {
        let limit = u64::try_from(self.settings.query_wait_notify).unwrap_or(0);
        let Some(client) = self.clients.get(id) else { return };
        let waited = client.wait_start.map_or(Micros(0), |start| self.now.since(start));
        let is_due = limit > 0 && waited.secs() > limit && client.welcomed && !client.notified;
        let Some(pool) = client.pool.filter(|pool| is_due && !self.is_paused(*pool)) else {
            return;
        };
        let reason =
            self.reason_of(client, pool, place).map_or_else(String::new, |why| why.for_client());
        if let Some(client) = self.clients.get_mut(id) {
            client.notified = true;
        }
        let mut packet = Vec::new();
        write::notice_detail(&mut packet, WAIT_NOTICE.as_bytes(), reason.as_bytes());
        self.actions.push_back(Action::Send(Peer::Client(id), packet));
    }
}

/// What a client that waits for long is told.
const WAIT_NOTICE: &str = "No server connection available in postgres backend, client being queued";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_limit_in_order_counts() {
        let secs = Micros::from_secs;
        let busy = Running {
            status: Status::Busy,
            query: Some(secs(5)),
            transaction: Some(secs(50)),
            silent: secs(5),
            limits: (Micros(0), Micros(0), Micros(0)),
        };
        let idle = Running { status: Status::InTransaction, query: None, ..busy };
        let limits = |query, idle, transaction| (secs(query), secs(idle), secs(transaction));
        for (pair, want) in [
            (busy, None),
            (Running { limits: limits(4, 4, 40), ..busy }, Some(fault::QUERY_TIMEOUT)),
            (Running { limits: limits(5, 4, 40), ..busy }, Some(fault::TRANSACTION_TIMEOUT)),
            (Running { limits: limits(5, 4, 0), ..busy }, None),
            (Running { limits: limits(4, 4, 40), ..idle }, Some(fault::IDLE_TRANSACTION_TIMEOUT)),
            (Running { limits: limits(4, 5, 40), ..idle }, Some(fault::TRANSACTION_TIMEOUT)),
            (Running { status: Status::Ready, limits: limits(1, 1, 1), ..busy }, None),
        ] {
            assert_eq!(overdue(pair), want, "{pair:?}");
        }
    }
}
