//! Databases and users: what is configured, who is known, which pool a login gets.

use super::derive::{Adhoc, KeptKeys};
use super::face::ClientId;
use super::pool::{Pool, PoolId};
use super::Core;
use crate::auth::{PassKeys, Secret};
use crate::base::{Id, Level, Micros};
use crate::config::entries::SERVER_PORT;
use crate::config::{self, DatabaseEntry, UserEntry};
use std::rc::Rc;
use zeroize::Zeroizing;

/// Names a database.
pub type DatabaseId = Id<Database>;
/// Names a user.
pub type UserId = Id<User>;

/// Name of the admin database and of its user.
pub const CONSOLE: &str = "pgbouncer";

/// Longest database name in bytes.
const DATABASE_NAME_MAX: usize = 63;

/// Where a database comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An entry of its own in the configuration.
    Configured,
    /// Made from the `*` entry when a client asked for it.
    Auto,
    /// The admin database.
    Console,
}

/// A database that clients can name.
pub struct Database {
    pub(super) name: Rc<str>,
    pub(super) entry: Rc<DatabaseEntry>,
    pub(super) source: Source,
    pub(super) paused: bool,
    pub(super) disabled: bool,
    /// The forced user, which outlives the removal of `user=` (config 5.3).
    pub(super) forced_user: Option<Rc<str>>,
    /// Since when nobody uses it, if it was made from `*`.
    pub(super) idle_since: Option<Micros>,
    /// Servers in all its pools, for max_db_connections.
    pub(super) servers: usize,
    /// Clients from their start-up packet on, for max_db_client_connections.
    pub(super) clients: usize,
    /// Keys derived from the password in its entry.
    pub(super) salted: Option<KeptKeys>,
}

impl Database {
    /// Its name.
    pub fn name(&self) -> &Rc<str> {
        &self.name
    }
    /// Its configuration.
    pub fn entry(&self) -> &DatabaseEntry {
        &self.entry
    }
    /// Where it comes from.
    pub fn source(&self) -> Source {
        self.source
    }
    /// PAUSE db is in force.
    pub fn is_paused(&self) -> bool {
        self.paused
    }
    /// DISABLE db is in force.
    pub fn is_disabled(&self) -> bool {
        self.disabled
    }
    /// The user that all its servers log in as.
    pub fn forced_user(&self) -> Option<&Rc<str>> {
        self.forced_user.as_ref()
    }
    /// Name of the database at the server.
    pub fn server_name(&self) -> &str {
        self.entry.dbname.as_deref().unwrap_or(&self.name)
    }
    /// Port of its servers; with a list of ports, the first host's.
    pub fn port(&self) -> i32 {
        self.entry.hosts().first().map_or(SERVER_PORT, |(_, port)| *port)
    }
    /// Servers in all its pools.
    pub fn server_count(&self) -> usize {
        self.servers
    }
    /// Clients that count against it: from their start-up packet on, no cancel requests.
    pub fn client_count(&self) -> usize {
        self.clients
    }
    /// The list of hosts with their ports; one empty text if none is configured.
    pub fn hosts(&self) -> Vec<(&str, i32)> {
        self.entry.hosts()
    }
}

/// A user that the pooler has heard of.
#[derive(Default)]
pub struct User {
    pub(super) name: Rc<str>,
    pub(super) secret: Secret,
    /// How often the secret has changed.
    pub(super) secret_version: u64,
    /// Listed in auth_file.
    pub(super) listed: bool,
    pub(super) entry: UserEntry,
    /// Servers that are logged in as this user, for max_user_connections.
    pub(super) servers: usize,
    /// Clients that log in as this user, for max_user_client_connections.
    pub(super) clients: usize,
    /// What a plain-text secret is for clients that use SCRAM: made once, its salt stays.
    pub(super) adhoc: Adhoc,
    /// What the user's own login with a stored SCRAM secret left: logs in to servers in its name.
    pub(super) keys: Option<PassKeys>,
    /// Keys derived from a plain-text secret for the last SCRAM login to a server.
    pub(super) salted: Option<KeptKeys>,
    /// The password that PAM or LDAP found right last, for servers.
    pub(super) proved: Option<Zeroizing<Vec<u8>>>,
}

impl User {
    /// Its name.
    pub fn name(&self) -> &Rc<str> {
        &self.name
    }
    /// Its entry in `[users]`.
    pub fn entry(&self) -> &UserEntry {
        &self.entry
    }
    /// Servers that are logged in, or log in, as this user.
    pub fn server_count(&self) -> usize {
        self.servers
    }
    /// Clients that have logged in, or try to, as this user; not the process owner's consoles.
    pub fn client_count(&self) -> usize {
        self.clients
    }
    /// Replaces the secret and forgets everything that came from the old one.
    pub(super) fn set_secret(&mut self, secret: Secret) {
        if self.secret != secret {
            self.adhoc = Adhoc::None;
            self.proved = None;
            self.keys = None;
            self.salted = None;
            self.secret = secret;
            self.secret_version = self.secret_version.wrapping_add(1);
        }
    }
}

impl Core {
    /// The user of this name, made if it is not known.
    pub(super) fn user(&mut self, name: &str) -> UserId {
        if let Some(id) = self.user_names.get(name) {
            return *id;
        }
        let name: Rc<str> = name.into();
        let id = self.users.insert(User { name: name.clone(), ..User::default() });
        self.user_names.insert(name, id);
        id
    }

    /// A user that can log in with a secret from auth_file.
    pub(super) fn listed_user(&self, name: &str) -> Option<UserId> {
        let id = *self.user_names.get(name)?;
        self.users.get(id).filter(|user| user.listed).map(|_| id)
    }

    /// The database of this name; made from the `*` entry if there is one (config 4.1). One that
    /// was made so and has been idle since is in use again.
    pub(super) fn find_database(&mut self, name: &str, client: ClientId) -> Option<DatabaseId> {
        if let Some(id) = self.existing_database(name) {
            return Some(id);
        }
        let id = self.make_auto_database(name)?;
        self.client_log(client, Level::Log, &format!("registered new auto-database: {name}"));
        Some(id)
    }

    /// A database made from the `*` entry if there is one, for a name that is not known.
    pub(super) fn make_auto_database(&mut self, name: &str) -> Option<DatabaseId> {
        let string = self.autodb.clone()?;
        if name.len() > DATABASE_NAME_MAX {
            self.journal.line(Level::Warning, format!("too long db name: {name}"));
            return None;
        }
        let entry = config::parse_autodb(name, &string, &mut self.journal)?;
        Some(self.add_database(name, entry, Source::Auto))
    }

    /// Adds a database that did not exist.
    pub(super) fn add_database(
        &mut self,
        name: &str,
        entry: DatabaseEntry,
        source: Source,
    ) -> DatabaseId {
        let name: Rc<str> = name.into();
        let forced_user = entry.user.as_deref().map(Rc::from);
        let id = self.databases.insert(Database {
            name: name.clone(),
            entry: Rc::new(entry),
            source,
            paused: false,
            disabled: false,
            forced_user,
            idle_since: None,
            servers: 0,
            clients: 0,
            salted: None,
        });
        self.database_names.insert(name, id);
        id
    }

    /// The pool of a database for a login user, made if it does not exist.
    pub(super) fn pool_for(&mut self, database: DatabaseId, login: &str) -> Option<PoolId> {
        let forced = self.databases.get(database)?.forced_user.clone();
        self.pool_of(database, forced.unwrap_or_else(|| login.into()))
    }

    /// The pool of a database for the user that its servers log in as, made if it does not exist.
    pub(super) fn pool_of(&mut self, database: DatabaseId, user: Rc<str>) -> Option<PoolId> {
        let key = (self.databases.get(database)?.name.clone(), user);
        if let Some(id) = self.pool_names.get(&key) {
            return Some(*id);
        }
        let user = self.user(&key.1);
        let id = self.pools.insert(Pool::new(database, user, key.clone()));
        self.pool_names.insert(key, id);
        Some(id)
    }

    /// Removes a pool that has neither clients nor servers.
    pub(super) fn forget_pool(&mut self, id: PoolId) {
        if let Some(pool) = self.pools.remove(id) {
            self.pool_names.remove(&pool.names);
        }
    }
}
