//! Who is a client that has sent its start-up packet, and what may it do? (auth 2.2, 2.8)

use super::client::Access;
use super::database::{DatabaseId, Source, UserId, CONSOLE};
use super::face::{Addr, ClientId, Sink};
use super::fault::{self, Fault};
use super::Core;
use crate::base::text::in_word_list;
use crate::base::Level;
use crate::config::hba::Method;
use crate::config::AuthType;

impl Core {
    /// Finds out who the client is and asks for its proof.
    pub(super) fn begin_authentication(
        &mut self,
        id: ClientId,
        user: &str,
        database: Option<DatabaseId>,
        sink: &mut Sink,
    ) -> Result<(), Fault> {
        let is_console = database
            .and_then(|id| self.databases.get(id))
            .is_some_and(|database| database.source == Source::Console);
        if is_console && self.is_own_process_owner(id, user) {
            if self.settings.log_connections.on() {
                self.client_log(id, Level::Log, "pgbouncer access from unix socket");
            }
            self.set_admin(id, Access::Admin);
            self.attach(id);
            self.log_attempt(id);
            return self.authenticated_client(id, sink);
        }
        self.choose_method(id, user);
        let outside = self.outside(id);
        if let Some(name) = outside {
            self.refuse_lookup(id, database, name)?;
        }
        let known = match self.settings.auth_type {
            AuthType::Any => {
                if is_console {
                    self.set_admin(id, self.console_access(user).unwrap_or(Access::Stats));
                } else {
                    let forced = database
                        .and_then(|database| self.databases.get(database))
                        .and_then(|database| database.forced_user.clone());
                    if forced.is_none() {
                        self.client_log(id, Level::Error, "auth_type=any requires forced user");
                        return Err(fault::BOUNCER_CONFIG_ERROR);
                    }
                }
                None
            }
            // Others say who they are; nothing is kept of who fails (auth 10.3-H).
            _ if outside.is_some() => None,
            _ => self.listed_user(user),
        };
        if let Some(database) = database.filter(|_| known.is_none() && self.looks_up(id)) {
            if self.look_up(id, database, user)? {
                return Ok(());
            }
        }
        self.identified(id, user, known, known, sink)
    }

    /// Who knows the client's user, if neither we nor a database do.
    fn outside(&self, id: ClientId) -> Option<&'static str> {
        match self.method(id) {
            Some(Method::Pam) => Some("PAM"),
            Some(Method::Ldap(_)) => Some("LDAP"),
            _ => None,
        }
    }

    /// The user of this name is found, or there is none: asks for its proof, which is held against
    /// the secret in `credentials`.
    pub(super) fn identified(
        &mut self,
        id: ClientId,
        user: &str,
        known: Option<UserId>,
        credentials: Option<UserId>,
        sink: &mut Sink,
    ) -> Result<(), Fault> {
        let login = self.clients.get(id).and_then(|client| client.login.as_ref());
        let is_console = login
            .and_then(|login| self.databases.get(login.database?))
            .is_some_and(|database| database.source == Source::Console);
        let is_outside = self.outside(id).is_some();
        if is_console && (known.is_some() || is_outside) {
            match self.console_access(user) {
                Some(access) => self.set_admin(id, access),
                None => return Err(fault::NOT_ALLOWED),
            }
        }
        let log_name = known.is_some() || self.settings.auth_type == AuthType::Any;
        if !log_name && !is_outside {
            self.client_log(id, Level::Log, &format!("no such user: {user}"));
        }
        if let Some(client) = self.clients.get_mut(id) {
            client.user = known;
            if let Some(login) = client.login.as_mut() {
                login.known = credentials;
            }
        }
        if log_name {
            self.attach(id);
            self.admit_user(id, user)?;
        }
        self.log_attempt(id);
        self.ask(id, credentials, sink)
    }

    /// PAM and LDAP don't go together with users that are looked up (auth 10.2).
    fn refuse_lookup(
        &mut self,
        id: ClientId,
        database: Option<DatabaseId>,
        name: &str,
    ) -> Result<(), Fault> {
        let database = database.and_then(|database| self.databases.get(database));
        if database.is_none_or(|database| database.entry.auth_user.is_none()) {
            return Ok(());
        }
        let line = format!("{name} can't be used together with database authentication");
        self.client_log(id, Level::Error, &line);
        Err(fault::BOUNCER_CONFIG_ERROR)
    }

    pub(super) fn console_access(&self, user: &str) -> Option<Access> {
        if in_word_list(&self.settings.admin_users, user) {
            Some(Access::Admin)
        } else if in_word_list(&self.settings.stats_users, user) {
            Some(Access::Stats)
        } else {
            None
        }
    }

    /// The special console user, by a Unix socket from this process's own user.
    pub(super) fn is_own_process_owner(&self, id: ClientId, user: &str) -> bool {
        self.clients.get(id).filter(|_| user == CONSOLE).is_some_and(|client| {
            matches!(client.remote, Addr::Unix { .. }) && client.uid == Some(self.own_uid)
        })
    }
}
