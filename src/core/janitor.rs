//! What time alone changes; three times a second (pooling 3.5 and 4).

use super::client::ClientState;
use super::database::{Database, Source};
use super::face::{Addr, ServerId};
use super::fault::{self, Fault};
use super::pool::PoolId;
use super::server::ServerState;
use super::stats::{self, PoolStats};
use super::Core;
use crate::base::{Level, Micros};

/// What the janitor does with a server that nobody uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chore {
    /// Nothing.
    Keep,
    /// Close it.
    Close(Fault),
    /// Close it if its pool's last such close is long enough ago.
    CloseForAge,
    /// It has to be checked before it is used again.
    NeedsCheck,
}

/// The facts about a server that nobody uses.
#[derive(Clone, Copy, Debug)]
pub struct Unused {
    /// Its list: idle, used or tested.
    pub state: ServerState,
    /// Nothing is open or owed.
    pub is_clean: bool,
    /// It is marked for closing.
    pub close_needed: bool,
    /// Since its last packet.
    pub idle: Micros,
    /// Since connecting began.
    pub age: Micros,
    /// server_idle_timeout, server_lifetime.
    pub limits: (Micros, Micros),
    /// min_pool_size needs it.
    pub is_needed: bool,
    /// server_check_delay, if there is a check query.
    pub check_delay: Option<Micros>,
}

/// Decides about a server that nobody uses.
pub fn chore(server: Unused) -> Chore {
    let (idle_timeout, lifetime) = server.limits;
    if server.close_needed {
        return Chore::Close(fault::CONFIGURATION_CHANGED);
    }
    match server.state {
        ServerState::Idle if !server.is_clean => return Chore::Close(fault::IDLE_LIST_GOT_DIRTY),
        ServerState::Used if !server.is_clean => return Chore::Close(fault::USED_LIST_GOT_DIRTY),
        _ => {}
    }
    if idle_timeout.is_set() && server.idle > idle_timeout && !server.is_needed {
        return Chore::Close(fault::SERVER_IDLE_TIMEOUT);
    }
    if server.age >= lifetime {
        return Chore::CloseForAge;
    }
    if server.state == ServerState::Idle && server.check_delay.is_some_and(|d| server.idle > d) {
        return Chore::NeedsCheck;
    }
    Chore::Keep
}

impl Core {
    /// Everything that is due; pools in the order of their names.
    pub fn tick(&mut self) {
        if self.is_suspended() {
            return self.mark_waiting();
        }
        self.make_forced_pools();
        for id in self.pool_names.values().copied().collect::<Vec<_>>() {
            if self.pools.get(id).is_none_or(|pool| pool.is_console()) {
                continue;
            }
            self.tidy_servers(id);
            self.trim(id);
            self.fill(id);
            self.look_for_standby(id);
            self.expire_connecting(id);
            self.expire_clients(id);
            self.expire_cancels(id);
            if self.expire_pool(id) {
                continue;
            }
            if self.has_cancels(id) || self.waiting(id) > 0 {
                self.mark(id);
            }
        }
        self.tend_peers();
        self.age_auto_databases();
        self.expire_logins();
        self.shared.tidy();
        self.shift_statistics();
        self.check_shutdown();
    }

    fn tidy_servers(&mut self, pool_id: PoolId) {
        for state in [ServerState::Used, ServerState::Tested, ServerState::Idle] {
            let Some(pool) = self.pools.get(pool_id) else {
                return;
            };
            for id in pool.servers(state).ids(&self.servers) {
                match self.chore_of(id, pool_id) {
                    Chore::Keep => {}
                    Chore::Close(fault) => self.close_server(id, &fault, true),
                    Chore::CloseForAge => {
                        if self.lifetime_is_over(id) {
                            self.close_server(id, &fault::SERVER_LIFETIME, true);
                        }
                    }
                    Chore::NeedsCheck => self.move_server(id, ServerState::Used),
                }
            }
        }
        self.close_marked_replication(pool_id);
        self.close_marked(pool_id);
    }

    fn chore_of(&self, id: ServerId, pool: PoolId) -> Chore {
        let (Some(server), Some(pool)) = (self.servers.get(id), self.pools.get(pool)) else {
            return Chore::Keep;
        };
        let settings = &self.settings;
        let effective = self.effective(pool);
        let min = usize::try_from(effective.min_pool_size()).unwrap_or(0);
        chore(Unused {
            state: server.state,
            is_clean: server.is_clean(),
            close_needed: server.close_needed,
            idle: self.now.since(server.last_packet),
            age: self.now.since(server.connect_time),
            limits: (settings.server_idle_timeout, effective.server_lifetime()),
            is_needed: min > 0 && pool.connected_count() <= min,
            check_delay: (!settings.server_check_query.is_empty())
                .then_some(settings.server_check_delay),
        })
    }

    /// server_fast_close: servers marked for closing don't wait for their client to leave.
    fn close_marked(&mut self, pool: PoolId) {
        if !self.settings.server_fast_close.on() {
            return;
        }
        let Some(pool) = self.pools.get(pool) else {
            return;
        };
        for id in pool.servers(ServerState::Active).ids(&self.servers) {
            if self.servers.get(id).is_some_and(|server| server.close_needed && server.is_clean()) {
                self.close_server(id, &fault::CONFIGURATION_CHANGED, true);
            }
        }
    }

    /// Closes servers above a pool size that has become smaller.
    fn trim(&mut self, pool_id: PoolId) {
        loop {
            let Some(pool) = self.pools.get(pool_id) else {
                return;
            };
            let effective = self.effective(pool);
            let size = effective.pool_size();
            let most = usize::try_from(size.saturating_add(effective.reserve_pool_size()));
            if size <= 0 || most.is_ok_and(|most| pool.connected_count() <= most) {
                return;
            }
            let used = pool.servers(ServerState::Used).head();
            let Some(id) = used.or(pool.servers(ServerState::Idle).head()) else {
                return;
            };
            self.close_server(id, &fault::TOO_MANY_SERVERS, true);
        }
    }

    /// Opens one more connection for min_pool_size; nobody gives one up for that (pooling 2.4).
    fn fill(&mut self, id: PoolId) {
        let Some(pool) = self.pools.get(id) else {
            return;
        };
        let effective = self.effective(pool);
        let want = effective.min_pool_size().min(effective.pool_size());
        let has_clients = !pool.clients(ClientState::Active).is_empty()
            || !pool.clients(ClientState::Waiting).is_empty();
        let is_kept = has_clients || self.forces_user(pool);
        let is_short = usize::try_from(want).is_ok_and(|want| pool.connected_count() < want);
        if is_short && is_kept && !self.is_paused(id) {
            self.launch(id, false);
        }
    }

    /// Databases that force a user have their servers before the first client comes.
    fn make_forced_pools(&mut self) {
        let global = self.settings.min_pool_size;
        let wanting = |database: &Database| {
            let own = database.entry.min_pool_size.filter(|size| *size >= 0);
            database.source != Source::Console
                && database.forced_user.is_some()
                && own.unwrap_or(global) > 0
        };
        let wanting: Vec<_> = self
            .databases
            .iter()
            .filter(|(_, database)| wanting(database))
            .map(|(id, _)| id)
            .collect();
        for id in wanting {
            self.pool_for(id, "");
        }
    }

    /// Frees a pool that nobody has used for pool_idle_timeout; true if it is gone.
    fn expire_pool(&mut self, id: PoolId) -> bool {
        let limit = self.settings.pool_idle_timeout;
        let Some(pool) = self.pools.get(id) else {
            return true;
        };
        let in_use = pool.client_count() + pool.server_count() > 0;
        let is_kept = self.forces_user(pool) && self.effective(pool).min_pool_size() > 0;
        let since = (!in_use).then(|| pool.idle_since.unwrap_or(self.now));
        let idle = since.map_or(Micros(0), |since| self.now.since(since));
        if let Some(pool) = self.pools.get_mut(id) {
            pool.idle_since = since;
        }
        let is_over = limit.is_set() && idle > limit && !is_kept;
        // Somebody who is logging in may have it already.
        if !is_over || self.clients.iter().any(|(_, client)| client.pool == Some(id)) {
            return false;
        }
        if let Some(pool) = self.pools.get(id) {
            let (database, user) = pool.names();
            let age = idle.secs();
            let line = format!(
                "cleaning up idle pool for user {user} on db {database} \
                 because: pool idle timeout (age= {age}s)"
            );
            self.journal.line(Level::Log, line);
        }
        self.forget_pool(id);
        true
    }

    pub(super) fn expire_connecting(&mut self, pool: PoolId) {
        let limit = self.settings.server_connect_timeout;
        let Some(pool) = self.pools.get(pool).filter(|_| limit.is_set()) else {
            return;
        };
        for id in pool.servers(ServerState::Login).ids(&self.servers) {
            let Some(server) = self.servers.get(id) else {
                continue;
            };
            if self.now.since(server.connect_time) > limit {
                // A host name that is still being looked up counts as time, not as failure.
                let fault = match server.is_connecting() && server.remote != Addr::Unknown {
                    true => fault::CONNECT_FAILED,
                    false => fault::CONNECT_TIMEOUT,
                };
                self.close_server(id, &fault, true);
            }
        }
    }

    pub(super) fn expire_cancels(&mut self, pool: PoolId) {
        let limit = self.settings.cancel_wait_timeout;
        let Some(pool) = self.pools.get(pool).filter(|_| limit.is_set()) else {
            return;
        };
        for id in pool.clients(ClientState::WaitingCancel).ids(&self.clients) {
            let asked = self.clients.get(id).map_or(self.now, |client| client.last_packet);
            if self.now.since(asked) > limit {
                self.close_client(id, &fault::CANCEL_WAIT_TIMEOUT);
            }
        }
    }

    /// Drops databases made from `*` that nobody has used for autodb_idle_timeout.
    fn age_auto_databases(&mut self) {
        let limit = self.settings.autodb_idle_timeout;
        let mut in_use: Vec<_> = self
            .pools
            .iter()
            .filter(|(_, pool)| pool.client_count() + pool.server_count() > 0)
            .map(|(_, pool)| pool.database)
            .collect();
        // Who logs in has no pool yet, or stands in that of the database where its user is looked up.
        let logins = self.clients.iter().filter_map(|(_, client)| client.login.as_ref()?.database);
        in_use.extend(logins);
        in_use.sort_unstable();
        let mut over = Vec::new();
        for (id, database) in self.databases.iter_mut() {
            if database.source != Source::Auto || in_use.binary_search(&id).is_ok() {
                database.idle_since = None;
                continue;
            }
            let since = *database.idle_since.get_or_insert(self.now);
            if limit.is_set() && self.now.since(since) > limit && !database.paused {
                over.push(id);
            }
        }
        for id in over {
            self.drop_database(id);
        }
    }

    fn shift_statistics(&mut self) {
        let period = Micros::from_secs(u64::try_from(self.stats_period).unwrap_or(0));
        let elapsed = self.now.since(self.period.newer);
        let is_due = match self.stats_period {
            // One look right after the start, then none.
            0 => {
                self.stats_period = -1;
                true
            }
            _ => period.is_set() && elapsed >= period,
        };
        if !is_due {
            return;
        }
        let mut sum = PoolStats::default();
        for (_, pool) in self.pools.iter() {
            sum.merge(&pool.stats);
        }
        let line = stats::line(&sum, elapsed);
        if self.settings.log_stats.on() {
            self.journal.line(Level::Log, line.clone());
        }
        self.status = Some(line);
        self.period.older = self.period.newer;
        self.period.newer = self.now;
        for (_, pool) in self.pools.iter_mut() {
            pool.stats.shift();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chores_follow_the_contracts_order() {
        let fine = Unused {
            state: ServerState::Idle,
            is_clean: true,
            close_needed: false,
            idle: Micros::from_secs(5),
            age: Micros::from_secs(50),
            limits: (Micros::from_secs(600), Micros::from_secs(3600)),
            is_needed: false,
            check_delay: Some(Micros::from_secs(30)),
        };
        let dirty = Unused { is_clean: false, ..fine };
        let long = Micros::from_secs(601);
        for (server, want) in [
            (fine, Chore::Keep),
            (Unused { close_needed: true, ..dirty }, Chore::Close(fault::CONFIGURATION_CHANGED)),
            (dirty, Chore::Close(fault::IDLE_LIST_GOT_DIRTY)),
            (
                Unused { state: ServerState::Used, ..dirty },
                Chore::Close(fault::USED_LIST_GOT_DIRTY),
            ),
            (Unused { state: ServerState::Tested, ..dirty }, Chore::Keep),
            (Unused { idle: long, ..fine }, Chore::Close(fault::SERVER_IDLE_TIMEOUT)),
            (Unused { idle: Micros::from_secs(31), ..fine }, Chore::NeedsCheck),
            (Unused { idle: long, is_needed: true, ..fine }, Chore::NeedsCheck),
            (
                Unused { idle: long, limits: (Micros(0), Micros::from_secs(3600)), ..fine },
                Chore::NeedsCheck,
            ),
            (Unused { age: Micros::from_secs(3600), ..fine }, Chore::CloseForAge),
        ] {
            assert_eq!(chore(server), want, "{server:?}");
        }
    }
}
