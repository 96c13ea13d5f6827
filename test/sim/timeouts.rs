//! Who is over a timeout when the janitor comes, and that he closes those and nobody else
//! (pooling 4). The clocks are the oracle's own; only the start of a query is the core's, which
//! is checked against what went over the border.

use crate::moved::Moved;
use crate::world::World;
use pgturnstile::base::Micros;
use pgturnstile::core::client::{self, Client, ClientState};
use pgturnstile::core::pool::{Pool, PoolId};
use pgturnstile::core::server::{Server, ServerState, Status};
use pgturnstile::core::{ClientId, Peer, ServerId};
use std::collections::{BTreeMap, BTreeSet};

/// Reasons that only the janitor may have.
pub const TEXTS: [&str; 11] = [
    "query timeout",
    "idle transaction timeout",
    "transaction timeout",
    "query_timeout",
    "query_wait_timeout",
    "client_idle_timeout",
    "client_login_timeout",
    "client_login_timeout (server down)",
    "cancel_wait_timeout",
    "connect timeout",
    "server idle timeout",
];

/// What the janitor has to do, as of the moment before he comes.
#[derive(Default)]
pub struct Due {
    /// Who must be gone, and why.
    must: Vec<(Peer, &'static str)>,
    /// Servers that idle for too long.
    idle: Vec<ServerId>,
    /// Why somebody may be closed, by the pointer in log lines.
    may: BTreeMap<u64, BTreeSet<&'static str>>,
    /// Pools with more servers than they may have.
    pub crowded: BTreeSet<(String, String)>,
    /// Pools that nobody has used for long: which may be freed, and which must be.
    pub unused: BTreeSet<(String, String)>,
    freed: Vec<PoolId>,
}

impl Due {
    fn add(&mut self, peer: Peer, number: u64, why: &'static str, certain: bool) {
        if certain {
            self.must.push((peer, why));
        }
        self.may.entry(client::pointer(number)).or_default().insert(why);
    }

    /// True if this is a reason to close whom a log line names so.
    pub fn allows(&self, pointer: u64, reason: &str) -> bool {
        self.may.get(&pointer).is_some_and(|reasons| reasons.contains(reason))
    }
}

/// The moments at which it is noted which pools are in use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before the janitor comes.
    Before,
    /// After he has been.
    After,
    /// At the end of a turn.
    End,
}

/// When a transaction began: not before, not after.
type Span = (Micros, Micros);

/// The oracle's clocks.
#[derive(Default)]
pub struct Clocks {
    /// When clients were accepted.
    pub accepted: BTreeMap<ClientId, Micros>,
    /// When connections to servers were begun.
    pub opened: BTreeMap<ServerId, Micros>,
    transactions: BTreeMap<ClientId, Span>,
    queries: BTreeMap<ClientId, Micros>,
    /// Clients that have been handed ReadyForQuery in the course of the query that goes on.
    late: BTreeSet<ClientId>,
    /// Since when pools have had neither clients nor servers, and when the janitor first saw it.
    unused: BTreeMap<PoolId, (Micros, Option<Micros>)>,
}

impl Clocks {
    /// Another core goes on.
    pub fn follow(&mut self, moved: &Moved) {
        moved.apply(&mut self.accepted);
        moved.apply(&mut self.opened);
        moved.apply(&mut self.transactions);
        moved.apply(&mut self.queries);
        moved.apply(&mut self.late);
        moved.apply(&mut self.unused);
    }
}

impl World {
    fn over(&self, limit: Micros, since: Option<Micros>) -> bool {
        limit.is_set() && since.is_some_and(|since| self.now.since(since) > limit)
    }

    /// Everybody who is over a limit now.
    pub fn due(&self) -> Due {
        let mut due = Due::default();
        for (id, client) in self.core.clients().iter() {
            let pool = client.pool().and_then(|pool| self.core.pool(pool));
            match (client.state(), pool) {
                (ClientState::Login, _) => {
                    let since = self.clocks.accepted.get(&id).copied();
                    if self.over(self.plan.settings.client_login_timeout, since) {
                        due.add(Peer::Client(id), client.number(), "client_login_timeout", true);
                    }
                }
                (_, Some(pool)) if !pool.is_console() => {
                    if let Some(why) = self.client_due(id, client, pool) {
                        due.add(Peer::Client(id), client.number(), why, true);
                    }
                }
                _ => {}
            }
        }
        for (id, server) in self.core.servers().iter() {
            if let Some(pool) = self.core.pool(server.pool()) {
                self.server_due(id, server, pool, &mut due);
            }
        }
        for (id, pool) in self.core.pools().filter(|(_, pool)| !pool.is_console()) {
            let (database, user) = pool.names();
            if self.is_crowded(pool) {
                due.crowded.insert((database.to_owned(), user.to_owned()));
            }
            let Some((since, seen)) = self.clocks.unused.get(&id) else { continue };
            let limit = self.plan.settings.pool_idle_timeout;
            if self.over(limit, Some(*since)) && !self.is_kept(pool) {
                // Whoever is logging in may have it, and may be late, too, or go in this very tick.
                let mut clients = self.core.clients().iter();
                let is_held = clients.any(|(_, client)| client.pool() == Some(id));
                let is_used = is_held || pool.client_count() + pool.server_count() > 0;
                due.unused.insert((database.to_owned(), user.to_owned()));
                due.freed.extend((self.over(limit, *seen) && !is_used).then_some(id));
            }
        }
        due
    }

    /// A pool that has its servers before the first client comes.
    fn is_kept(&self, pool: &Pool) -> bool {
        let database = self.core.database(pool.database());
        let forced = database.and_then(|database| database.forced_user());
        forced.is_some_and(|user| **user == *pool.names().1) && self.plan.min_size(pool.names()) > 0
    }

    /// Which pools are not in use: right before the janitor comes, right after, and at the end of
    /// each turn. Only what he finds in use has its clock begin again.
    pub fn note_unused(&mut self, when: When) {
        let now = self.now;
        let mut unused = BTreeMap::new();
        for (id, pool) in self.core.pools().filter(|(_, pool)| !pool.is_console()) {
            let known = self.clocks.unused.get(&id).copied();
            let is_used = pool.client_count() + pool.server_count() > 0;
            if is_used && (when == When::After || known.is_none()) {
                continue;
            }
            let (since, before) = known.unwrap_or((now, None));
            let seen = match (when, is_used) {
                (When::Before, true) => None,
                (When::Before, false) => before.or(Some(now)),
                _ => before,
            };
            unused.insert(id, (since, seen));
        }
        self.clocks.unused = unused;
    }

    /// What a client that has no server is closed for.
    fn client_due(&self, id: ClientId, client: &Client, pool: &Pool) -> Option<&'static str> {
        let heard = self.watch.borrow().heard.get(&id).copied();
        let looked_up = client.is_looked_up();
        // Nobody knows yet who that is.
        let user = client.user_name().filter(|_| !looked_up).unwrap_or("");
        let database = pool.names().0;
        let settings = &self.plan.settings;
        match client.state() {
            ClientState::Active if client.server().is_none() => {
                let limit = self.plan.client_idle(user);
                self.over(limit, heard).then_some("client_idle_timeout")
            }
            ClientState::WaitingCancel => {
                let limit = settings.cancel_wait_timeout;
                self.over(limit, heard).then_some("cancel_wait_timeout")
            }
            ClientState::Waiting | ClientState::Joined => {
                // Who waits for its welcome has no query.
                let since = client.query_start().or(heard);
                let accepted = self.clocks.accepted.get(&id).copied();
                let unwelcome = client.query_start().is_none() && !self.knows(pool) && !looked_up;
                if self.over(settings.query_timeout, since) {
                    Some("query_timeout")
                } else if self.over(self.plan.query_wait(database, user), since) {
                    Some("query_wait_timeout")
                } else if unwelcome && self.over(settings.client_login_timeout, accepted) {
                    Some("client_login_timeout (server down)")
                } else {
                    None
                }
            }
            _ => None,
        }
    }

    fn server_due(&self, id: ServerId, server: &Server, pool: &Pool, due: &mut Due) {
        let said = self.watch.borrow().said.get(&id).copied();
        let (peer, number, settings) = (Peer::Server(id), server.number(), &self.plan.settings);
        let opened = self.clocks.opened.get(&id).copied();
        if pool.peer().is_some() && self.peer_due(id, [opened, said]) {
            due.add(peer, number, "cancel_wait_timeout", true);
        }
        match server.state() {
            ServerState::Login => {
                let since = self.clocks.opened.get(&id).copied();
                if self.over(settings.server_connect_timeout, since) {
                    // A look-up that takes long is no failure to connect.
                    let dialled = self.dials.contains(&id) && !self.lookups.contains(&id);
                    let why = if dialled { "connect failed" } else { "connect timeout" };
                    due.add(peer, number, why, true);
                }
            }
            ServerState::Idle | ServerState::Used | ServerState::Tested
                if self.over(settings.server_idle_timeout, said) =>
            {
                due.idle.push(id);
                let min = self.plan.min_size(pool.names());
                if min == 0 || pool.connected_count() > min {
                    due.add(peer, number, "server idle timeout", false);
                }
            }
            ServerState::Active => self.pair_due(id, server, pool, due),
            _ => {}
        }
    }

    /// What a server and its client are closed for.
    fn pair_due(&self, id: ServerId, server: &Server, pool: &Pool, due: &mut Due) {
        let Some(client_id) = server.client() else { return };
        let Some(client) = self.core.clients().get(client_id) else { return };
        if matches!(server.status(), Status::Ready | Status::Reserved) {
            return;
        }
        let [query, idle, transaction] = self.plan.running(pool.names().1);
        let in_transaction =
            matches!(server.status(), Status::InTransaction | Status::InFailedTransaction);
        let said = self.watch.borrow().said.get(&id).copied();
        let asked = client.query_start().filter(|_| client.is_looked_up());
        let asked = asked.map(|at| (at, at));
        let span = self.clocks.transactions.get(&client_id).copied().or(asked);
        let (why, certain) = if self.over(query, client.query_start()) {
            ("query timeout", true)
        } else if in_transaction && client.query_start().is_none() && self.over(idle, said) {
            ("idle transaction timeout", true)
        } else if self.over(transaction, span.map(|span| span.0)) {
            // One that ended in this turn may have been followed by another.
            let ended = self.watch.borrow().ready.contains(&client_id);
            ("transaction timeout", !ended && self.over(transaction, span.map(|span| span.1)))
        } else {
            return;
        };
        due.add(Peer::Server(id), server.number(), why, certain);
        due.add(Peer::Client(client_id), client.number(), why, certain);
    }

    /// The janitor has been: whoever was over a limit is gone.
    pub fn check_due(&self, due: &Due) {
        for (peer, why) in &due.must {
            let lives = match peer {
                Peer::Client(id) => self.core.clients().get(*id).is_some(),
                Peer::Server(id) => self.core.servers().get(*id).is_some(),
            };
            if lives {
                self.fail(&format!("TIMEOUTS: {peer:?} is over its {why}, but lives"));
            }
        }
        for id in &due.freed {
            let mut clients = self.core.clients().iter();
            if self.core.pool(*id).is_some() && !clients.any(|(_, c)| c.pool() == Some(*id)) {
                self.fail(&format!(
                    "TIMEOUTS: pool {id:?} is over its pool_idle_timeout, but lives"
                ));
            }
        }
        for id in &due.idle {
            let pool = self.core.servers().get(*id).and_then(|s| self.core.pool(s.pool()));
            let Some(pool) = pool else { continue };
            let min = self.plan.min_size(pool.names());
            if min == 0 || pool.connected_count() > min {
                self.fail(&format!("TIMEOUTS: {id:?} is over its server_idle_timeout, but lives"));
            }
        }
        for (_, pool) in self.core.pools() {
            let count = |state| pool.servers(state).len();
            let spare = count(ServerState::Idle) + count(ServerState::Used);
            if !pool.is_console() && self.is_crowded(pool) && spare > 0 {
                self.fail(&format!(
                    "LIMITS: {:?} has too many servers, {spare} spare",
                    pool.names()
                ));
            }
        }
    }

    /// Whoever was closed for being over a limit has been told so.
    pub fn check_due_told(&self, due: &Due) {
        for (peer, why) in &due.must {
            let Peer::Client(id) = peer else { continue };
            let told = self.facts.fatals.get(id).map(String::as_str);
            let silent = *why == "cancel_wait_timeout";
            if silent && told.is_some() || !silent && told.is_none() {
                self.fail(&format!("TIMEOUTS: {id:?} is over its {why} and is told {told:?}"));
            }
        }
    }

    /// More servers than pool_size and the reserve allow (pooling 2.4).
    fn is_crowded(&self, pool: &Pool) -> bool {
        let size = self.plan.pool_size(pool.names());
        size > 0 && pool.connected_count() > size + self.plan.reserve(pool.names())
    }

    /// Compares the core's idea of when queries begin with what went over the border, and sets
    /// the clocks of transactions.
    pub fn check_clocks(&mut self) {
        let watch = self.watch.borrow();
        let mut queries = BTreeMap::new();
        let mut transactions = BTreeMap::new();
        let mut late = BTreeSet::new();
        for (id, client) in self.core.clients().iter() {
            if client.is_console() || client.state() == ClientState::Login {
                continue;
            }
            let (was, is) = (self.clocks.queries.get(&id).copied(), client.query_start());
            let (asked, ready) = (watch.asked.contains(&id), watch.ready.contains(&id));
            // What the pooler answers itself may have to follow ReadyForQuery, and end the query.
            let ends = ready
                || watch.answered.contains(&id)
                || watch.canceled.contains(&id)
                || self.clocks.late.contains(&id);
            let server = client.server().and_then(|server| self.core.servers().get(server));
            let status = server.map(|server| server.status());
            let right = match (was, is) {
                (None, Some(at)) => asked && at == self.now,
                (Some(_), None) => ends,
                (Some(was), Some(is)) if was != is => asked && ends && is == self.now,
                _ => true,
            };
            let fits = match status {
                Some(Status::Ready) => is.is_none() || server.is_some_and(|s| !s.is_clean()),
                Some(Status::Busy | Status::Reserved) => is.is_some(),
                Some(_) => true,
                // Who waited with its next query within this turn may have been called, but need more.
                None => {
                    let called = asked && is == Some(self.now) && self.facts.called;
                    client.state() != ClientState::Active || is.is_none() || !ready || called
                }
            };
            if !right || !fits {
                self.fail(&format!(
                    "CLOCKS: query of {id:?} began {was:?}, now {is:?}; asked {asked}, \
                     ready {ready}, {status:?}"
                ));
            }
            queries.extend(is.map(|at| (id, at)));
            if ends && is.is_some() {
                late.insert(id);
            }
            let open = match status {
                Some(Status::Ready) => server.is_some_and(|server| !server.is_clean()),
                Some(_) => true,
                None => is.is_some(),
            };
            if open {
                let began = is.unwrap_or(self.now);
                let known = self.clocks.transactions.get(&id).copied();
                let known = known.filter(|_| !watch.canceled.contains(&id));
                let (first, last) = known.unwrap_or((began, began));
                transactions.insert(id, (first, if ready { last.max(began) } else { last }));
            }
        }
        drop(watch);
        self.clocks.late = late;
        (self.clocks.queries, self.clocks.transactions) = (queries, transactions);
        self.clocks.accepted.retain(|id, _| self.core.clients().get(*id).is_some());
        self.clocks.opened.retain(|id, _| self.core.servers().get(*id).is_some());
    }
}
