//! What only the admin database asks for: commands against many at once, and facts for its tables.

use super::client::{Client, ClientState};
use super::database::{Database, DatabaseId};
use super::face::{Action, ClientId, Handed, Peer};
use super::pool::Pool;
use super::{fault, Core};
use crate::auth::PassKeys;
use crate::base::Level;

impl Core {
    /// Sends bytes to a console behind everything that is on its way to it.
    pub fn answer_console(&mut self, console: ClientId, bytes: Vec<u8>) {
        match self.actions.back_mut() {
            // Small answers to one driver go out together.
            Some(Action::Send(Peer::Client(id), before)) if *id == console => before.extend(bytes),
            _ => self.actions.push_back(Action::Send(Peer::Client(console), bytes)),
        }
    }

    /// As [`Core::answer_console`], one packet with a descriptor.
    pub fn answer_with_descriptor(&mut self, console: ClientId, packet: Vec<u8>, of: Handed) {
        self.actions.push_back(Action::SendRow(console, packet, of));
    }

    /// True if this console was let in for being this process's own user (admin 1.2, rule 1).
    pub fn is_own_user(&self, console: ClientId) -> bool {
        let client = self.clients.get(console).filter(|client| client.console.is_some());
        let name = client.and_then(Client::user_name);
        name.is_some_and(|name| self.is_own_process_owner(console, name))
    }

    /// Logs a line about a client.
    pub fn log_about(&mut self, id: ClientId, level: Level, text: &str) {
        self.client_log(id, level, text);
    }

    /// Closes a console whose error message can't be sent (admin 2.4).
    pub fn fail_console(&mut self, id: ClientId) {
        self.close_client(id, &fault::FAILURE);
    }

    /// DISABLE and ENABLE.
    pub fn set_disabled(&mut self, id: DatabaseId, disabled: bool) {
        if let Some(database) = self.databases.get_mut(id) {
            database.disabled = disabled;
        }
    }

    /// KILL: pauses a database, or every database that has a pool, and destroys its pools with
    /// their clients and servers (admin 4.4).
    pub fn kill(&mut self, database: Option<DatabaseId>) {
        let pools = self.pools_of(database);
        let with_pool: Vec<DatabaseId> =
            pools.iter().filter_map(|id| self.pools.get(*id)).map(|pool| pool.database).collect();
        for id in with_pool.into_iter().chain(database) {
            if let Some(database) = self.databases.get_mut(id) {
                database.paused = true;
            }
        }
        for id in pools {
            self.empty_pool(id);
            self.forget_pool(id);
        }
    }

    /// KILL_CLIENT: disconnects the client with this number, unless it is still logging in; false
    /// if there is none.
    pub fn kill_client(&mut self, number: u64) -> bool {
        let found = self
            .clients
            .iter()
            .find(|(_, client)| client.number == number && client.state != ClientState::Login)
            .map(|(id, _)| id);
        if let Some(id) = found {
            self.close_client(id, &fault::ADMIN_FORCED_DISCONNECT);
        }
        found.is_some()
    }

    /// The database that a client counts against: from its start-up packet on; none for cancel
    /// requests.
    pub(super) fn database_of(&self, client: &Client) -> Option<DatabaseId> {
        if is_cancel(client) {
            return None;
        }
        // Its pool may be the one where its user is looked up.
        let by_pool = client.pool.and_then(|pool| self.pools.get(pool));
        let by_login = client.login.as_ref().and_then(|login| login.database);
        by_login.or(by_pool.map(|pool| pool.database))
    }

    /// The name of the user that a client has logged in as, or is logging in as: the one that was
    /// given, whoever that is, or the pool's if nobody asked for a proof of it; none if that is not
    /// known, and for cancel requests.
    pub fn login_user<'a>(&'a self, client: &'a Client) -> Option<&'a str> {
        if client.lookup().is_some() {
            let name = client.user_name.as_deref();
            return name.filter(|name| self.user_names.contains_key(*name));
        }
        let pool = client.pool.and_then(|pool| self.pools.get(pool));
        let by_pool = pool.filter(|_| client.user.is_none()).map(|pool| &*pool.names.1);
        by_pool.or(client.user_name.as_deref()).filter(|_| !is_cancel(client))
    }

    /// The user name that SHOW CLIENTS shows.
    pub fn shown_user<'a>(&'a self, client: &'a Client) -> &'a str {
        self.login_user(client).unwrap_or("(nouser)")
    }

    /// What a client's SCRAM login left for logging in to the servers of this pool. A forced user
    /// has its own credentials, which nobody else's login changes (takeover 5.2).
    pub fn pass_keys(&self, pool: &Pool) -> Option<&PassKeys> {
        let database = self.databases.get(pool.database)?;
        let user = self.credentials(pool);
        let user = self.users.get(user).filter(|_| database.forced_user.is_none())?;
        user.keys.as_ref()
    }
}

fn is_cancel(client: &Client) -> bool {
    matches!(client.state, ClientState::WaitingCancel | ClientState::ActiveCancel)
}

impl Database {
    /// True for a database made from `*` that nobody used at the last look.
    pub fn is_idle(&self) -> bool {
        self.idle_since.is_some()
    }
}
