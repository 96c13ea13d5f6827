//! A client needs a server: take an idle one, or wait, and open a connection if that may help.

use super::client::{Client, ClientState};
use super::connect;
use super::face::{Action, ClientId, ServerId, Sink};
use super::fault::{self, Fault};
use super::pool::{Pool, PoolId};
use super::replies::{Asker, Request};
use super::server::{ServerState, Status};
use super::stats::Counter;
use super::vars;
use super::Core;
use crate::base::{Level, List, Micros};
use crate::wire::write;

/// What a client that needs a server gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Assigned {
    /// This server, ready for its packet.
    Server(ServerId),
    /// A server that is being given the client's parameters; `Resume` follows.
    Aligning,
    /// A place in the wait queue; `Resume` follows.
    Wait,
    /// Nothing: the client has been closed.
    Refused,
}

/// The numbers that decide about one more connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Servers that are logging in.
    pub logging_in: usize,
    /// Servers in all states.
    pub total: usize,
    /// Cancel requests that wait for a connection.
    pub cancels: usize,
    /// Servers that carry a cancel request.
    pub carriers: usize,
    /// How long ago the first waiting client sent its last packet.
    pub waited: Option<Micros>,
    /// Servers of the database, in all its pools.
    pub of_database: usize,
    /// Servers that are logged in as the pool's user, in all pools.
    pub of_user: usize,
}

/// The limits and facts that decide about one more connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// pool_size; 0 is without limit.
    pub pool_size: i32,
    /// reserve_pool_size.
    pub reserve_size: i32,
    /// reserve_pool_timeout; zero: the reserve is never used.
    pub reserve_timeout: Micros,
    /// max_db_connections; 0 is without limit.
    pub of_database: i32,
    /// max_user_connections; 0 is without limit.
    pub of_user: i32,
    /// The pool knows what its servers say at login: until then its size isn't checked.
    pub welcome_known: bool,
    /// When the last attempt was made, if it failed.
    pub failed_launch: Option<Micros>,
    /// server_login_retry.
    pub login_retry: Micros,
}

/// Whether to open one more connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// Now.
    Yes,
    /// Now, beyond pool_size.
    Reserve,
    /// Once another connection of the database has been given up.
    EvictFromDatabase,
    /// Once another connection of the user has been given up.
    EvictFromUser,
    /// Not now, and this is also why a client waits.
    No(Why),
}

/// Why no connection is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// One is being made already.
    LoginInProgress,
    /// The last attempt failed, and server_login_retry has not passed.
    ServerUnreachable,
    /// pool_size is reached.
    PoolFull,
}

/// server_login_retry = 0 means each look of the janitor, not as fast as connections are refused.
const LEAST_RETRY: Micros = Micros(300_000);

/// Decides about one more connection (pooling 2.3).
pub fn launch(count: Counts, limit: Limits, now: Micros) -> Launch {
    if count.logging_in > 0 {
        return Launch::No(Why::LoginInProgress);
    }
    let retry = limit.login_retry.max(LEAST_RETRY);
    if limit.failed_launch.is_some_and(|at| now.since(at) < retry) {
        return Launch::No(Why::ServerUnreachable);
    }
    let at_most = |limit: i32| usize::try_from(limit).unwrap_or(0);
    let size = at_most(limit.pool_size);
    let room = size == 0 || count.carriers < size || count.total < size.saturating_mul(2);
    if count.cancels > 0 && room {
        return Launch::Yes;
    }
    let full = size > 0 && count.total >= size && limit.welcome_known;
    if full && !may_use_reserve(count, limit) {
        return Launch::No(Why::PoolFull);
    }
    if limit.of_database > 0 && count.of_database >= at_most(limit.of_database) {
        return Launch::EvictFromDatabase;
    }
    if limit.of_user > 0 && count.of_user >= at_most(limit.of_user) {
        return Launch::EvictFromUser;
    }
    match full {
        true => Launch::Reserve,
        false => Launch::Yes,
    }
}

/// The first client has waited long enough for a connection beyond pool_size.
fn may_use_reserve(count: Counts, limit: Limits) -> bool {
    let size = limit.pool_size.saturating_add(limit.reserve_size);
    limit.reserve_size > 0
        && limit.reserve_timeout.is_set()
        && count.waited.is_some_and(|waited| waited >= limit.reserve_timeout)
        && count.total < usize::try_from(size).unwrap_or(0)
}

impl Core {
    /// Finds a server for a client that has something to send.
    pub(super) fn assign(&mut self, id: ClientId, sink: &mut Sink) -> Assigned {
        let Some(pool_id) = self.clients.get(id).and_then(|client| client.pool) else {
            return Assigned::Refused;
        };
        if self.is_paused(pool_id) {
            return self.enqueue(id, pool_id);
        }
        if self.clients.get(id).is_some_and(Client::needs_own_server) {
            let assigned = self.enqueue(id, pool_id);
            self.launch(pool_id, true);
            return assigned;
        }
        if let Some(server) = self.fit_server(pool_id) {
            self.link(id, server);
            self.count(pool_id, Counter::Assignments, 1);
            return self.align(id, server, sink);
        }
        if let Some(fault) = self.fail_fast(pool_id) {
            self.mark(pool_id);
            self.launch(pool_id, true);
            self.close_client(id, &fault);
            return Assigned::Refused;
        }
        self.enqueue(id, pool_id)
    }

    /// The idle server that is next; those that are not to be used again are closed.
    pub(super) fn fit_server(&mut self, pool: PoolId) -> Option<ServerId> {
        loop {
            let server = self.pools.get(pool)?.servers(ServerState::Idle).head()?;
            match self.servers.get(server) {
                Some(head) if head.close_needed => {
                    self.close_server(server, &fault::OBSOLETE, true);
                }
                Some(head) if !head.is_clean() => {
                    self.close_server(server, &fault::IDLE_GOT_DIRTY, true);
                }
                _ => return Some(server),
            }
        }
    }

    /// Sends the SET that gives the server the client's parameters, if they differ.
    fn align(&mut self, client: ClientId, server: ServerId, sink: &mut Sink) -> Assigned {
        let (Some(c), Some(s)) = (self.clients.get(client), self.servers.get_mut(server)) else {
            return Assigned::Refused;
        };
        let mut sql = Vec::new();
        vars::align(&mut sql, &self.tracked, &c.vars, &s.vars);
        if sql.is_empty() {
            return Assigned::Server(server);
        }
        write::query(&mut sink.to_server, &sql);
        s.replies.sent(Request::Query, Asker::Align);
        s.status = Status::Busy;
        s.delivered = false;
        Assigned::Aligning
    }

    /// Puts a client at the end of the wait queue; during a shutdown nobody waits any more.
    fn enqueue(&mut self, id: ClientId, pool: PoolId) -> Assigned {
        if self.refuses_waiters() {
            self.close_client(id, &fault::SERVER_SHUTTING_DOWN);
            return Assigned::Refused;
        }
        self.wait(id, pool);
        Assigned::Wait
    }

    /// Makes a client wait.
    pub(super) fn wait(&mut self, id: ClientId, pool: PoolId) {
        self.move_client(id, ClientState::Waiting);
        let now = self.now;
        if let Some(client) = self.clients.get_mut(id) {
            client.wait_start = Some(now);
        }
        self.read_servers_again();
        self.mark(pool);
    }

    /// The fault for a client of a pool whose last login failed and that has no server (pooling
    /// 10.5).
    pub(super) fn fail_fast(&self, pool: PoolId) -> Option<Fault> {
        let pool = self.pools.get(pool)?;
        let text = pool.login_failed.as_ref()?;
        if pool.server_count() > pool.servers(ServerState::Login).len() {
            return None;
        }
        Some(Fault::formatted(format!(
            "server login has been failing, cached error: {text} (server_login_retry)"
        )))
    }

    /// Ends a client's waiting. It is welcomed if it has not been yet, and read again; or its user
    /// is looked up.
    pub(super) fn activate(&mut self, id: ClientId) {
        if self.is_looked_up(id) {
            return self.ask_lookup(id);
        }
        self.move_client(id, ClientState::Active);
        let now = self.now;
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        client.notified = false;
        let waited = client.wait_start.take().map_or(Micros(0), |start| now.since(start));
        let (pool, welcomed) = (client.pool, client.welcomed);
        if let Some(pool) = pool {
            self.count(pool, Counter::WaitTime, waited.0);
        }
        if !welcomed {
            self.send_welcome(id);
        }
        self.actions.push_back(Action::Resume(id));
    }

    /// A server has become idle: the first client of the queue may go on.
    pub(super) fn activate_next(&mut self, pool_id: PoolId) {
        if self.is_paused(pool_id) {
            self.mark(pool_id);
            return;
        }
        let Some(pool) = self.pools.get(pool_id) else {
            return;
        };
        let known = pool.welcome.is_some();
        let waiting = pool.clients(ClientState::Waiting);
        let (waiter, more) = (waiting.head(), waiting.len() > 1);
        match waiter.map(|waiter| (waiter, self.clients.get(waiter))) {
            // What it is to be welcomed with comes from a server that logs in later.
            Some((_, Some(client))) if client.awaits_welcome() && !known => self.mark(pool_id),
            // A replication client takes no server that is there: whoever is next may have it.
            Some((_, Some(client))) if client.takes_no_idle(known) => self.mark(pool_id),
            Some((waiter, _)) => self.activate(waiter),
            None => {}
        }
        // The server stays idle if that client needs its welcome only, or has gone.
        if more {
            self.mark(pool_id);
        }
        self.feed_starved(pool_id);
    }

    /// Why the pool opens no connection now, or that it would.
    pub fn may_launch(&self, id: PoolId) -> Option<Launch> {
        let pool = self.pools.get(id)?;
        let (count, limit) = self.launch_facts(pool);
        let cancels = if self.is_logins_turn(id) { 0 } else { count.cancels };
        Some(launch(Counts { cancels, ..count }, limit, self.now))
    }

    /// What decides about one more connection of a pool.
    pub(super) fn launch_facts(&self, pool: &Pool) -> (Counts, Limits) {
        let head = pool.clients(ClientState::Waiting).head();
        let head = head.and_then(|head| self.clients.get(head));
        let count = Counts {
            logging_in: pool.servers(ServerState::Login).len(),
            total: pool.server_count(),
            cancels: pool.clients(ClientState::WaitingCancel).len(),
            carriers: pool.servers(ServerState::ActiveCancel).len(),
            waited: head.map(|client| self.now.since(client.last_packet)),
            of_database: self.databases.get(pool.database).map_or(0, |database| database.servers),
            of_user: self.users.get(pool.user).map_or(0, |user| user.servers),
        };
        let effective = self.effective(pool);
        let limit = Limits {
            pool_size: effective.pool_size(),
            reserve_size: effective.reserve_pool_size(),
            reserve_timeout: self.settings.reserve_pool_timeout,
            of_database: effective.max_db_connections(),
            of_user: effective.max_user_connections(),
            welcome_known: pool.welcome.is_some() || self.has_replication(pool),
            failed_launch: (pool.connect_failed && !pool.hosts.is_in_round())
                .then_some(pool.last_launch),
            login_retry: self.settings.server_login_retry,
        };
        (count, limit)
    }

    /// How long hosts are left alone that failed.
    pub(super) fn retry_pause(&self) -> Micros {
        self.settings.server_login_retry.max(LEAST_RETRY)
    }

    /// When a pool whose last attempt to connect failed may try again.
    pub(super) fn retry_time(&self, pool: &Pool) -> Micros {
        pool.last_launch + self.retry_pause()
    }

    /// Opens a connection if that is allowed now; if `evict`, idle ones of other pools make room.
    pub(super) fn launch(&mut self, id: PoolId, evict: bool) {
        while let Some(launch) = self.may_launch(id) {
            match launch {
                Launch::Yes => connect::open(self, id),
                Launch::Reserve => {
                    self.log_reserve(id);
                    connect::open(self, id);
                }
                Launch::EvictFromDatabase if evict && self.evict_from_database(id) => continue,
                Launch::EvictFromUser if evict && self.evict_from_user(id) => continue,
                Launch::EvictFromDatabase | Launch::EvictFromUser if evict => self.starve(id),
                Launch::No(Why::PoolFull) if evict => self.evict_for_replication(id),
                Launch::EvictFromDatabase | Launch::EvictFromUser | Launch::No(_) => {}
            }
            return;
        }
    }

    fn log_reserve(&mut self, id: PoolId) {
        let pool = self.pools.get(id);
        if let Some(head) = pool.and_then(|pool| pool.clients(ClientState::Waiting).head()) {
            self.client_log(head, Level::Warning, "taking connection from reserve_pool");
        }
    }

    /// Looks after a pool's queues: gives servers to waiting clients, tests servers that were idle
    /// for long, opens a connection (pooling 2.3, loop pass).
    pub(super) fn serve(&mut self, id: PoolId) {
        if self.pools.get(id).is_some_and(|pool| pool.peer.is_some()) {
            return self.serve_peer(id);
        }
        let cancels = self.has_cancels(id);
        if self.is_paused(id) {
            self.close_paused(id, cancels);
        }
        if cancels {
            self.launch(id, true);
        }
        if self.is_paused(id) {
            return;
        }
        let Some(pool) = self.pools.get(id) else {
            return;
        };
        let mut idle = pool.servers(ServerState::Idle).len();
        let mut tested = pool.servers(ServerState::Tested).len();
        let mut used = pool.servers(ServerState::Used).ids(&self.servers).into_iter();
        let mut next = pool.clients(ClientState::Waiting).head();
        while let Some(waiter) = next {
            next = List::after(&self.clients, waiter);
            let Some(client) = self.clients.get(waiter) else { continue };
            let welcomed = !client.awaits_welcome();
            let own = client.needs_own_server();
            let known = self.pools.get(id).is_some_and(|pool| pool.welcome.is_some());
            if own && client.server.is_some() {
                continue;
            }
            if !welcomed && known {
                self.activate(waiter);
            } else if own {
                self.launch(id, true);
                let left =
                    self.pools.get(id).map_or(0, |pool| pool.servers(ServerState::Idle).len());
                idle = idle.min(left);
            } else if !welcomed && idle > 0 {
                self.launch(id, true);
            } else if idle > 0 {
                idle -= 1;
                self.activate(waiter);
            } else if tested > 0 {
                tested -= 1;
            } else if let Some(server) = used.next() {
                self.check(server);
            } else {
                self.launch(id, true);
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launch_follows_its_rules_in_order() {
        let limit = Limits {
            pool_size: 2,
            reserve_size: 0,
            reserve_timeout: Micros::from_secs(5),
            of_database: 0,
            of_user: 0,
            welcome_known: true,
            failed_launch: None,
            login_retry: Micros::from_secs(15),
        };
        let count =
            |total, logging_in, cancels| Counts { logging_in, total, cancels, ..Counts::default() };
        let reserve = Limits { reserve_size: 1, ..limit };
        let waiting =
            |total, secs| Counts { waited: Some(Micros::from_secs(secs)), ..count(total, 0, 0) };
        let shared = Limits { of_database: 3, of_user: 4, ..reserve };
        let sum = |of_database, of_user| Counts { of_database, of_user, ..waiting(1, 9) };
        let endless = Limits { pool_size: 0, ..shared };
        let failed = Limits { failed_launch: Some(Micros::from_secs(90)), ..limit };
        let now = Micros::from_secs(100);
        let full = Launch::No(Why::PoolFull);
        let later = Micros::from_secs(105);
        for (count, limit, now, want) in [
            (count(0, 0, 0), limit, now, Launch::Yes),
            (count(1, 1, 0), limit, now, Launch::No(Why::LoginInProgress)),
            (count(1, 0, 0), limit, now, Launch::Yes),
            (count(2, 0, 0), limit, now, Launch::No(Why::PoolFull)),
            (count(2, 0, 1), limit, now, Launch::Yes),
            (Counts { carriers: 2, ..count(4, 0, 1) }, limit, now, full),
            (Counts { carriers: 1, ..count(4, 0, 1) }, limit, now, Launch::Yes),
            (Counts { of_database: 3, ..count(3, 0, 1) }, endless, now, Launch::Yes),
            (count(2, 0, 0), Limits { pool_size: 0, ..limit }, now, Launch::Yes),
            (count(2, 0, 0), Limits { welcome_known: false, ..limit }, now, Launch::Yes),
            (count(0, 0, 0), failed, now, Launch::No(Why::ServerUnreachable)),
            (count(0, 0, 0), failed, later, Launch::Yes),
            (waiting(2, 4), reserve, now, Launch::No(Why::PoolFull)),
            (waiting(2, 5), reserve, now, Launch::Reserve),
            (waiting(3, 5), reserve, now, Launch::No(Why::PoolFull)),
            (waiting(2, 5), Limits { reserve_timeout: Micros(0), ..reserve }, now, full),
            (count(2, 0, 0), reserve, now, Launch::No(Why::PoolFull)),
            (sum(2, 3), shared, now, Launch::Yes),
            (sum(3, 4), shared, now, Launch::EvictFromDatabase),
            (sum(2, 4), shared, now, Launch::EvictFromUser),
            (Counts { total: 2, ..sum(3, 3) }, shared, now, Launch::EvictFromDatabase),
            (Counts { total: 3, ..sum(3, 3) }, shared, now, Launch::No(Why::PoolFull)),
            (Counts { cancels: 1, ..sum(3, 4) }, shared, now, Launch::Yes),
        ] {
            assert_eq!(launch(count, limit, now), want, "{count:?} {limit:?}");
        }
    }
}
