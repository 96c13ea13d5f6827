//! Limits that pools share: connections of a database or a user, clients of a database or a user
//! (pooling 2.3 to 2.6).

use super::client::{Access, Client, ClientState, Counted};
use super::database::{DatabaseId, Source, UserId};
use super::face::{ClientId, ServerId};
use super::fault::{self, Fault};
use super::pool::{Pool, PoolId};
use super::server::ServerState;
use super::Core;

impl Core {
    /// Changes how many servers the database and the user of a pool have.
    pub(super) fn count_server(&mut self, pool: PoolId, change: impl Fn(usize) -> usize) {
        let Some(pool) = self.pools.get(pool) else { return };
        if let Some(database) = self.databases.get_mut(pool.database) {
            database.servers = change(database.servers);
        }
        if let Some(user) = self.users.get_mut(pool.user) {
            user.servers = change(user.servers);
        }
    }

    /// A client has named its database: it counts from now on, if there is room for it.
    pub(super) fn admit_to_database(
        &mut self,
        id: ClientId,
        database: DatabaseId,
        user: &str,
    ) -> Result<(), Fault> {
        let exempt = self.is_exempt(id, database, user);
        let Some(client) = self.clients.get_mut(id) else { return Ok(()) };
        let Some(database) = self.databases.get_mut(database) else { return Ok(()) };
        client.counted = Counted::Database;
        database.clients = database.clients.saturating_add(1);
        let own = database.entry.max_db_client_connections.filter(|limit| *limit > 0);
        let limit = own.unwrap_or(self.settings.max_db_client_connections);
        match is_over(database.clients, limit) && !exempt {
            true => Err(fault::TOO_MANY_DATABASE_CLIENTS),
            false => Ok(()),
        }
    }

    /// A client is known by name: it counts for its user from now on, if there is room for it.
    pub(super) fn admit_user(&mut self, id: ClientId, name: &str) -> Result<(), Fault> {
        let Some(client) = self.clients.get(id) else { return Ok(()) };
        let Some(database) = self.database_of(client) else { return Ok(()) };
        let Some(user) = self.counts_as(client) else { return Ok(()) };
        let exempt = self.is_exempt(id, database, name);
        if let Some(client) = self.clients.get_mut(id) {
            client.counted = Counted::DatabaseAndUser;
        }
        let Some(user) = self.users.get_mut(user) else { return Ok(()) };
        user.clients = user.clients.saturating_add(1);
        let own = user.entry.max_user_client_connections.filter(|limit| *limit > 0);
        let limit = own.unwrap_or(self.settings.max_user_client_connections);
        match is_over(user.clients, limit) && !exempt {
            true => Err(fault::TOO_MANY_USER_CLIENTS),
            false => Ok(()),
        }
    }

    /// Whom a client counts against, so that [`Core::uncount`] can end it.
    pub(super) fn counted_by(&self, client: &Client) -> (Option<DatabaseId>, Option<UserId>) {
        match client.counted {
            Counted::Nowhere => (None, None),
            Counted::Database => (self.database_of(client), None),
            Counted::DatabaseAndUser => (self.database_of(client), self.counts_as(client)),
        }
    }

    /// A client counts for whom it says; see [`Core::uncount`].
    pub(super) fn count_client(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id) else { return };
        let (database, user) = self.counted_by(client);
        if let Some(database) = database.and_then(|database| self.databases.get_mut(database)) {
            database.clients = database.clients.saturating_add(1);
        }
        if let Some(user) = user.and_then(|user| self.users.get_mut(user)) {
            user.clients = user.clients.saturating_add(1);
        }
    }

    /// A client that is gone, or has turned into a cancel request, counts no more.
    pub(super) fn uncount(&mut self, (database, user): (Option<DatabaseId>, Option<UserId>)) {
        if let Some(database) = database.and_then(|database| self.databases.get_mut(database)) {
            database.clients = database.clients.saturating_sub(1);
        }
        if let Some(user) = user.and_then(|user| self.users.get_mut(user)) {
            user.clients = user.clients.saturating_sub(1);
        }
    }

    /// The user whose limit a client is held against: its own, or the pool's if it needed none.
    fn counts_as(&self, client: &Client) -> Option<UserId> {
        let pool = client.pool.and_then(|pool| self.pools.get(pool));
        client.user.or(pool.map(|pool| pool.user))
    }

    /// Who administers the pooler always gets in.
    fn is_exempt(&self, id: ClientId, database: DatabaseId, user: &str) -> bool {
        let database = self.databases.get(database);
        database.is_some_and(|database| database.source == Source::Console)
            && (self.console_access(user) == Some(Access::Admin)
                || self.is_own_process_owner(id, user))
    }

    /// Gives up the connection of a pool's database that has been unused for longest; false if all
    /// are in use.
    pub(super) fn evict_from_database(&mut self, pool: PoolId) -> bool {
        let Some(pool) = self.pools.get(pool) else { return false };
        self.evict(Sharers::Database(pool.database))
    }

    /// Gives up the connection of a pool's user that has been unused for longest; false if all are
    /// in use. Pools of databases that force a user leave each other alone (pooling 2.5).
    pub(super) fn evict_from_user(&mut self, pool: PoolId) -> bool {
        let Some(pool) = self.pools.get(pool) else { return false };
        self.evict(match self.forces_user(pool) {
            true => Sharers::ForcedUser(pool.user, pool.database),
            false => Sharers::User(pool.user),
        })
    }

    /// The pool is that of the user that its database forces.
    pub(super) fn forces_user(&self, pool: &Pool) -> bool {
        self.databases
            .get(pool.database)
            .is_some_and(|database| database.forced_user.as_ref() == Some(&pool.names.1))
    }

    fn evict(&mut self, sharers: Sharers) -> bool {
        if self.exhausted.contains(&sharers) {
            return false;
        }
        let oldest = self
            .pools()
            .filter(|(_, pool)| sharers.include(self, pool))
            .flat_map(|(_, pool)| unused_for_longest(pool))
            .flatten()
            .min_by_key(|id| self.servers.get(*id).map(|server| server.last_packet));
        match oldest {
            Some(id) => self.close_server(id, &fault::EVICTED, true),
            None => self.exhausted.push(sharers),
        }
        oldest.is_some()
    }

    /// A pool needs a connection that a limit of its database or user forbids.
    pub(super) fn starve(&mut self, id: PoolId) {
        if let Some(pool) = self.pools.get_mut(id) {
            if !std::mem::replace(&mut pool.starved, true) {
                self.starved.push(id);
            }
        }
    }

    /// A server of this pool has become free or has gone: pools that were refused one because of
    /// its database or user may try again.
    pub(super) fn feed_starved(&mut self, pool: PoolId) {
        self.exhausted.clear();
        if self.starved.is_empty() {
            return;
        }
        let Some(pool) = self.pools.get(pool) else { return };
        let (database, user) = (pool.database, pool.user);
        let mut starved = std::mem::take(&mut self.starved);
        starved.retain(|id| {
            let Some(pool) = self.pools.get_mut(*id) else { return false };
            pool.starved = pool.database != database && pool.user != user;
            let stays = pool.starved;
            if !stays {
                self.mark(*id);
            }
            stays
        });
        self.starved = starved;
    }
}

/// Pools whose connections make room for each other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharers {
    Database(DatabaseId),
    User(UserId),
    /// Of a user that this database forces.
    ForcedUser(UserId, DatabaseId),
}

impl Sharers {
    fn include(self, core: &Core, pool: &Pool) -> bool {
        match self {
            Sharers::Database(database) => pool.database == database,
            Sharers::User(user) => pool.user == user && !core.forces_user(pool),
            Sharers::ForcedUser(user, database) => pool.user == user && pool.database == database,
        }
    }
}

fn is_over(count: usize, limit: i32) -> bool {
    usize::try_from(limit).is_ok_and(|limit| limit > 0 && count > limit)
}

/// The servers that a pool can spare first, one per list. Servers that are or will be checked are
/// spared only if nobody waits for them.
fn unused_for_longest(pool: &Pool) -> [Option<ServerId>; 3] {
    let awaited = !pool.clients(ClientState::Waiting).is_empty();
    let last = |state| pool.servers(state).tail();
    match awaited {
        true => [last(ServerState::Idle), None, None],
        false => [ServerState::Idle, ServerState::Used, ServerState::Tested].map(last),
    }
}
