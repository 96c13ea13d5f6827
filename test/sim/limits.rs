//! The limits on servers and clients (pooling 2.3 to 2.7), worked out from the plan and from who
//! exists; never from what the core thinks of them.

use crate::auth_query::STRANGERS;
use crate::watch::Admission;
use crate::world::World;
use pgturnstile::base::Micros;
use pgturnstile::config::AuthType;
use pgturnstile::core::assign::{Launch, Why};
use pgturnstile::core::client::{self, ClientState};
use pgturnstile::core::pool::{Pool, PoolId};
use pgturnstile::core::server::ServerState;
use pgturnstile::core::{ClientId, ServerId};

/// What a client is told that is one too many.
const TOO_MANY: [&str; 3] = [
    "no more connections allowed (max_client_conn)",
    "client connections exceeded (max_db_client_connections)",
    "client connections exceeded (max_user_client_connections)",
];

impl World {
    /// A connection is opened only within the limits.
    pub fn check_launch(&self, id: ServerId) {
        let Some(server) = self.core.servers().get(id) else { return };
        let Some(pool) = self.core.pool(server.pool()) else { return };
        if pool.peer().is_some() {
            return self.check_peer_launch(pool);
        }
        let (database, user) = pool.names();
        let size = self.plan.pool_size(pool.names());
        let older = |pool: &Pool| self.older_servers(pool, server.number());
        let others = older(pool);
        let cancels = !pool.clients(ClientState::WaitingCancel).is_empty();
        let carriers = pool.servers(ServerState::ActiveCancel).len();
        let room = size == 0 || carriers < size || others < 2 * size;
        if (cancels || self.facts.canceled.contains(&server.pool())) && room {
            return;
        }
        let patient = self.facts.patient.contains(&server.pool());
        let reserve = self.may_use_reserve(pool, others) || patient && others < self.most(pool);
        if size > 0 && others >= size && self.knows(pool) && !reserve {
            self.fail(&format!(
                "LIMITS: connection {} of {:?}, where {size} are allowed",
                others + 1,
                pool.names()
            ));
        }
        let (of_database, of_user) = self.totals(pool, &older);
        for (what, count, limit) in [
            (database, of_database, self.plan.database_limit(database)),
            (user, of_user, self.plan.user_limit(user)),
        ] {
            if limit.is_some_and(|limit| count >= limit) {
                self.fail(&format!(
                    "LIMITS: {what} has {count} servers of {limit:?}, and {:?} gets one more",
                    pool.names()
                ));
            }
        }
    }

    fn older_servers(&self, pool: &Pool, number: u64) -> usize {
        let servers = self.core.servers().iter();
        let own = servers.filter(|(_, server)| {
            self.core.pool(server.pool()).is_some_and(|other| other.names() == pool.names())
        });
        own.filter(|(_, server)| server.number() < number).count()
    }

    /// Servers of a pool's database, and of its user.
    fn totals(&self, of: &Pool, count: &dyn Fn(&Pool) -> usize) -> (usize, usize) {
        let (mut of_database, mut of_user) = (0, 0);
        for (_, pool) in self.core.pools() {
            let same = |a: &str, b: &str| usize::from(a == b) * count(pool);
            of_database += same(pool.names().0, of.names().0);
            of_user += same(pool.names().1, of.names().1);
        }
        (of_database, of_user)
    }

    /// The first client of the queue has waited long enough for a connection beyond pool_size.
    fn may_use_reserve(&self, pool: &Pool, count: usize) -> bool {
        let patience = self.plan.settings.reserve_pool_timeout;
        let waited = self.longest_wait(pool).is_some_and(|waited| waited >= patience);
        patience.is_set() && waited && count < self.most(pool)
    }

    /// What pool_size and the reserve allow.
    fn most(&self, pool: &Pool) -> usize {
        self.plan.pool_size(pool.names()) + self.plan.reserve(pool.names())
    }

    /// How long ago the first client of the queue said something.
    fn longest_wait(&self, pool: &Pool) -> Option<Micros> {
        let first = pool.clients(ClientState::Waiting).head()?;
        self.watch.borrow().heard.get(&first).map(|heard| self.now.since(*heard))
    }

    /// What counts for connections that the janitor opens, before he closes clients.
    pub fn note_waiting(&mut self) {
        for (id, pool) in self.core.pools() {
            if !pool.clients(ClientState::WaitingCancel).is_empty() {
                self.facts.canceled.insert(id);
            }
            let patience = self.plan.settings.reserve_pool_timeout;
            let waited = self.longest_wait(pool).is_some_and(|waited| waited >= patience);
            if patience.is_set() && waited {
                self.facts.patient.insert(id);
            }
        }
    }

    /// True if a connection could be opened for a pool that nobody opens: within pool_size, and
    /// with the limits on database and user, or with somebody to evict.
    pub fn could_open(&self, id: PoolId, pool: &Pool, ticked: bool) -> bool {
        let (size, count) = (self.plan.pool_size(pool.names()), pool.server_count());
        // That a client has waited long enough for the reserve is noticed at the next tick.
        let reserve = ticked && self.may_use_reserve(pool, count);
        let full = size > 0 && count >= size && !reserve;
        if full && self.knows(pool) || !pool.servers(ServerState::Login).is_empty() {
            return false;
        }
        if self.core.may_launch(id) == Some(Launch::No(Why::ServerUnreachable)) {
            // That is right for so long only; then the next tick sees to it.
            let tick = Micros(400_000);
            let since = self.memory.launches.get(&id).copied().unwrap_or(Micros(0));
            return self.now.since(since) > self.plan.settings.server_login_retry + tick;
        }
        let (of_database, of_user) = self.totals(pool, &Pool::server_count);
        let (database, user) = pool.names();
        let forced = |pool: &Pool| {
            let database = self.core.database(pool.database());
            database.is_some_and(|database| database.forced_user().is_some())
        };
        let fits = |count: usize, limit: Option<usize>, near: &dyn Fn(&Pool) -> bool| {
            limit.is_none_or(|limit| count < limit)
                || limit == Some(count) && self.core.pools().any(|(_, p)| near(p) && is_spare(p))
        };
        fits(of_database, self.plan.database_limit(database), &|p| p.names().0 == database)
            && fits(of_user, self.plan.user_limit(user), &|p| {
                let same = p.names().1 == user;
                same && !forced(pool) && !forced(p) || p.names() == pool.names()
            })
    }

    /// Whoever logged in was within the limits on clients; whoever was not has been told why.
    pub fn check_admissions(&self) {
        for admission in &self.watch.borrow().admissions {
            let reason = self.facts.closed.get(&client::pointer(admission.number));
            let reason = reason.map(String::as_str);
            let refused = reason.filter(|reason| TOO_MANY.contains(reason));
            // A stranger's own limit is looked at when somebody has found out who that is.
            let stranger = STRANGERS.contains(&admission.names.1.as_str());
            let refused = refused.filter(|reason| !stranger || *reason != TOO_MANY[2]);
            let over = admission.judged.unwrap_or_else(|| self.over_limit(admission));
            if refused != over {
                self.fail(&format!(
                    "LIMITS: client {:?} is one of {} {:?} and should be told {over:?}, not {reason:?}",
                    admission.id, admission.total, admission.alike
                ));
            }
        }
    }

    /// The limits are about to change.
    pub fn judge_admissions(&self) {
        for admission in &mut self.watch.borrow_mut().admissions {
            let over = self.over_limit(admission);
            admission.judged.get_or_insert(over);
        }
    }

    fn over_limit(&self, admission: &Admission) -> Option<&'static str> {
        let (database, user) = (&*admission.names.0, &*admission.names.1);
        if database == "pgbouncer" {
            return None;
        }
        let limit = usize::try_from(self.plan.settings.max_client_conn).unwrap_or(0);
        let (of_database, of_user) = admission.alike;
        let exists = self.plan.databases.iter().any(|known| known.name == database);
        let known = self.plan.users.iter().any(|name| name == user);
        let known = known && !self.plan.unlisted.contains(user);
        // Users that PAM knows count when it has said so.
        let known = known && self.plan.settings.auth_type != AuthType::Pam;
        let above = |count, limit: Option<usize>| limit.is_some_and(|limit| count > limit);
        if admission.total > limit {
            Some(TOO_MANY[0])
        } else if exists && above(of_database, self.plan.database_clients(database)) {
            Some(TOO_MANY[1])
        } else if exists && known && above(of_user, self.plan.user_clients(user)) {
            Some(TOO_MANY[2])
        } else {
            None
        }
    }

    /// Nobody gets a server ahead of somebody who was in the queue before.
    pub fn check_order(&self) {
        for (id, server) in self.core.servers().iter() {
            let Some(client) = server.client().filter(|c| self.memory.is_new_link(id, *c)) else {
                continue;
            };
            let Some(pool) = self.core.pool(server.pool()) else { continue };
            if self.called(pool) > 0 || !self.facts.closed.is_empty() {
                // Somebody was called and does not come: who comes late then has lost its place.
                continue;
            }
            // Who was called and is gone or does not read leaves the server to whoever comes first,
            // and while cancel requests wait nobody is called.
            let cancels = !pool.clients(ClientState::WaitingCancel).is_empty()
                || self.memory.canceled.contains(&server.pool());
            let (waits, called) = (&self.memory.waits, &self.memory.called);
            // Nor does one who was called before this turn and is slower than who came in it.
            let in_pool = |client: &ClientId| {
                let known = self.core.clients().get(*client);
                known.is_some_and(|known| known.pool() == Some(server.pool()))
            };
            let was_called = self.facts.called || called.keys().any(in_pool);
            let new = (!was_called && !cancels).then_some(self.now);
            let place = waits.get(&client).or(called.get(&client)).copied();
            let Some(began) = place.or(new) else { continue };
            for waiter in pool.clients(ClientState::Waiting).ids(self.core.clients()) {
                let earlier = self.memory.waits.get(&waiter).is_some_and(|at| *at < began);
                // Who was served in this turn waits anew.
                let watch = self.watch.borrow();
                let served = watch.ready.contains(&waiter) || watch.answered.contains(&waiter);
                let known = self.core.clients().get(waiter);
                if earlier && !served && known.is_some_and(|known| known.query_start().is_some()) {
                    self.fail(&format!("ORDER: {client:?} has {id:?}, but {waiter:?} was first"));
                }
            }
        }
    }

    /// When nothing is in the way a pool that is in use has min_pool_size servers.
    pub fn short_of_servers(&self) -> Option<String> {
        for (id, pool) in self.core.pools() {
            let (min, size) = (self.plan.min_size(pool.names()), self.plan.pool_size(pool.names()));
            let in_use = [ClientState::Active, ClientState::Waiting]
                .iter()
                .any(|state| !pool.clients(*state).is_empty());
            let (of_database, of_user) = self.totals(pool, &Pool::server_count);
            let room = self.plan.database_limit(pool.names().0).is_none_or(|l| of_database < l)
                && self.plan.user_limit(pool.names().1).is_none_or(|l| of_user < l);
            let count = pool.connected_count();
            if in_use && !pool.is_console() && room && count < min.min(size) {
                return Some(format!(
                    "LIMITS: {:?} never has {min} servers, but {count}; {:?}",
                    pool.names(),
                    self.core.may_launch(id)
                ));
            }
        }
        None
    }
}

/// A pool that could give up a connection for another one.
fn is_spare(pool: &Pool) -> bool {
    let some = |state| !pool.servers(state).is_empty();
    let waiting = !pool.clients(ClientState::Waiting).is_empty();
    some(ServerState::Idle) || !waiting && (some(ServerState::Used) || some(ServerState::Tested))
}
