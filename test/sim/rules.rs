//! What a plan means for one pool or client: which of several settings counts (pooling 1.1,
//! config 3.4), worked out without the core.

use crate::plan::Plan;
use pgturnstile::base::Micros;
use pgturnstile::config::{DatabaseEntry, UserEntry};

/// A size or limit: the first of these that is set; what is negative is not.
fn size(given: &[Option<i32>], global: i32) -> usize {
    let set = given.iter().flatten().copied().find(|size| *size >= 0);
    usize::try_from(set.unwrap_or(global)).unwrap_or(0)
}

/// A limit whose zero is not set either; `None` is without limit.
fn limit(given: Option<i32>, global: i32) -> Option<usize> {
    let limit = given.filter(|limit| *limit > 0).unwrap_or(global);
    usize::try_from(limit).ok().filter(|limit| *limit > 0)
}

/// A time that counts if it is above zero; negative ones are read as the longest there is.
fn time(given: Option<Micros>, global: Micros) -> Micros {
    given.filter(|time| time.is_set() && *time != Micros(u64::MAX)).unwrap_or(global)
}

impl Plan {
    /// The entry of a database; an empty one if there is none.
    pub fn database(&self, name: &str) -> DatabaseEntry {
        let found = self.databases.iter().find(|database| database.name == name);
        found.map_or_else(DatabaseEntry::default, |database| database.entry.clone())
    }

    /// The entry of a user; an empty one if there is none.
    pub fn user(&self, name: &str) -> UserEntry {
        self.entries.get(name).cloned().unwrap_or_default()
    }

    /// pool_size of a pool; 0 is without limit.
    pub fn pool_size(&self, (database, user): (&str, &str)) -> usize {
        let given = [self.user(user).pool_size, self.database(database).pool_size];
        size(&given, self.settings.default_pool_size)
    }

    /// reserve_pool_size of a pool.
    pub fn reserve(&self, (database, user): (&str, &str)) -> usize {
        let given = [self.user(user).reserve_pool_size, self.database(database).reserve_pool_size];
        size(&given, self.settings.reserve_pool_size)
    }

    /// min_pool_size of a pool.
    pub fn min_size(&self, (database, _): (&str, &str)) -> usize {
        size(&[self.database(database).min_pool_size], self.settings.min_pool_size)
    }

    /// max_db_connections of a database.
    pub fn database_limit(&self, database: &str) -> Option<usize> {
        limit(self.database(database).max_db_connections, self.settings.max_db_connections)
    }

    /// max_user_connections of a pool's user.
    pub fn user_limit(&self, user: &str) -> Option<usize> {
        limit(self.user(user).max_user_connections, self.settings.max_user_connections)
    }

    /// max_db_client_connections of a database.
    pub fn database_clients(&self, database: &str) -> Option<usize> {
        let given = self.database(database).max_db_client_connections;
        limit(given, self.settings.max_db_client_connections)
    }

    /// max_user_client_connections of a login user.
    pub fn user_clients(&self, user: &str) -> Option<usize> {
        let given = self.user(user).max_user_client_connections;
        limit(given, self.settings.max_user_client_connections)
    }

    /// query_timeout, idle_transaction_timeout and transaction_timeout of a pool's user.
    pub fn running(&self, user: &str) -> [Micros; 3] {
        let (entry, settings) = (self.user(user), &self.settings);
        [
            time(entry.query_timeout, settings.query_timeout),
            time(entry.idle_transaction_timeout, settings.idle_transaction_timeout),
            time(entry.transaction_timeout, settings.transaction_timeout),
        ]
    }

    /// client_idle_timeout of a login user.
    pub fn client_idle(&self, user: &str) -> Micros {
        time(self.user(user).client_idle_timeout, self.settings.client_idle_timeout)
    }

    /// query_wait_timeout of a login user in a database; a zero in an entry is off.
    pub fn query_wait(&self, database: &str, user: &str) -> Micros {
        let given =
            self.user(user).query_wait_timeout.or(self.database(database).query_wait_timeout);
        given.unwrap_or(self.settings.query_wait_timeout)
    }

    /// server_lifetime of a database.
    pub fn lifetime(&self, database: &str) -> Micros {
        let own = self.database(database).server_lifetime.filter(|time| time.is_set());
        own.unwrap_or(self.settings.server_lifetime)
    }

    /// True if a reload from `old` to `new` must replace the servers (config 5.3).
    pub fn recycles(old: &DatabaseEntry, new: &DatabaseEntry) -> bool {
        old.dbname != new.dbname
            || old.host != new.host
            || old.port != new.port
            || old.user != new.user
            || old.connect_query != new.connect_query
            || old.load_balance_hosts.unwrap_or_default()
                != new.load_balance_hosts.unwrap_or_default()
            || old.target_session_attrs.unwrap_or_default()
                != new.target_session_attrs.unwrap_or_default()
    }
}
