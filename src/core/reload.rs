//! A new configuration meets the running state (config 5).

use super::database::{DatabaseId, Source};
use super::fault;
use super::pool::PoolId;
use super::server::ServerState;
use super::Core;
use crate::auth::Secret;
use crate::base::{Level, Micros};
use crate::config::{self, Config, DatabaseEntry, SetError, Settings, When};
use std::rc::Rc;

impl Core {
    /// Takes over a configuration. If it could not be read to its end (`complete` is false), what
    /// was read counts and nothing is removed.
    pub fn configure(&mut self, config: Config, complete: bool) {
        self.journal.set_verbose(config.settings.verbose);
        self.forget_overridden(&config.settings, complete);
        self.settings = Rc::new(config.settings);
        let star_changed = config.autodb.is_some() && config.autodb != self.autodb;
        if config.autodb.is_some() {
            self.autodb = config.autodb;
        }
        let names: Vec<String> = config.databases.keys().cloned().collect();
        for (name, entry) in config.databases {
            self.put_database(&name, entry);
        }
        for (name, entry) in config.users {
            let id = self.user(&name);
            if let Some(user) = self.users.get_mut(id) {
                user.entry = entry;
            }
        }
        self.some_user_idles = self
            .users
            .iter()
            .any(|(_, user)| user.entry.client_idle_timeout.is_some_and(Micros::is_set));
        if star_changed {
            self.renew_auto_databases();
        }
        if complete {
            self.drop_missing(&names);
        }
        self.put_peers(config.peers, complete);
        self.plan_verifiers();
        self.mark_all();
    }

    /// Changes settings one by one (SET); `apply` returns whether it did.
    pub fn change_settings(&mut self, apply: impl FnOnce(&mut Settings) -> bool) -> bool {
        let mut next = (*self.settings).clone();
        let changed = apply(&mut next);
        if changed {
            self.journal.set_verbose(next.verbose);
            self.settings = Rc::new(next);
            self.plan_verifiers();
            self.mark_all();
        }
        changed
    }

    /// SET: changes one parameter, as the files would at a reload.
    pub fn set_parameter(&mut self, name: &str, value: &str) -> Result<(), SetError> {
        let mut result = Ok(());
        self.change_settings(|settings| {
            result = settings.assign(name, value, false);
            result.is_ok()
        });
        result?;
        if let Some(param) = config::param(name).filter(|param| param.when == When::Reload) {
            self.set_by_hand.insert(param.name, value.to_owned());
        }
        Ok(())
    }

    /// Files have been read: what SET had changed has gone, but for parameters that no file resets.
    fn forget_overridden(&mut self, next: &Settings, complete: bool) {
        self.set_by_hand.retain(|name, value| {
            let Some(param) = config::param(name) else { return false };
            let mut as_set = next.clone();
            let stays = (param.set)(&mut as_set, value) && (param.same)(&as_set, next);
            stays && (param.default.is_none() || !complete)
        });
    }

    fn put_database(&mut self, name: &str, entry: DatabaseEntry) {
        let Some(id) = self.database_names.get(name).copied() else {
            self.add_database(name, entry, Source::Configured);
            return;
        };
        let Some(database) = self.databases.get_mut(id) else {
            return;
        };
        let recycle = !database.entry.connects_like(&entry);
        let lost_user = entry.user.is_none() && database.forced_user.is_some();
        if entry.user.is_some() {
            database.forced_user = entry.user.as_deref().map(Rc::from);
        }
        database.entry = Rc::new(entry);
        database.salted = None;
        database.source = Source::Configured;
        if lost_user {
            let line = "losing forced user not supported, keeping old setting".into();
            self.journal.line(Level::Warning, line);
        }
        if recycle {
            self.reconnect(Some(id));
        }
    }

    fn renew_auto_databases(&mut self) {
        let Some(string) = self.autodb.clone() else {
            return;
        };
        let auto: Vec<(DatabaseId, Rc<str>)> = self
            .databases
            .iter()
            .filter(|(_, database)| database.source == Source::Auto)
            .map(|(id, database)| (id, database.name.clone()))
            .collect();
        for (id, name) in auto {
            if let Some(entry) = config::parse_autodb(&name, &string, &mut self.journal) {
                if let Some(database) = self.databases.get_mut(id) {
                    database.entry = Rc::new(entry);
                    database.salted = None;
                }
                self.reconnect(Some(id));
            }
        }
    }

    fn drop_missing(&mut self, names: &[String]) {
        let missing: Vec<DatabaseId> = self
            .databases
            .iter()
            .filter(|(_, database)| {
                database.source == Source::Configured
                    && !names.iter().any(|name| **name == *database.name)
            })
            .map(|(id, _)| id)
            .collect();
        for id in missing {
            self.drop_database(id);
        }
    }

    /// Removes a database with its pools, clients and servers.
    pub(super) fn drop_database(&mut self, id: DatabaseId) {
        let Some(database) = self.databases.get(id) else {
            return;
        };
        let name = database.name.clone();
        self.journal.line(
            Level::Warning,
            format!(
                "dropping database '{name}' as it does not exist anymore or inactive auto-database"
            ),
        );
        for pool in self.pools_of(Some(id)) {
            self.empty_pool(pool);
            self.forget_pool(pool);
        }
        let unfinished: Vec<_> = self
            .clients
            .iter()
            .filter(|(_, client)| {
                client.login.as_ref().is_some_and(|login| login.database == Some(id))
            })
            .map(|(client, _)| client)
            .collect();
        for client in unfinished {
            self.close_client(client, &fault::DATABASE_REMOVED);
        }
        self.forget_fetched(id);
        self.databases.remove(id);
        self.database_names.remove(&name);
    }

    /// Closes all clients and servers of a pool.
    pub(super) fn empty_pool(&mut self, id: PoolId) {
        let clients: Vec<_> = self
            .clients
            .iter()
            .filter(|(_, client)| client.pool == Some(id))
            .map(|(id, _)| id)
            .collect();
        for client in clients {
            self.close_client(client, &fault::DATABASE_REMOVED);
        }
        let servers: Vec<_> =
            self.servers.iter().filter(|(_, server)| server.pool == id).map(|(id, _)| id).collect();
        for server in servers {
            self.close_server(server, &fault::DATABASE_REMOVED, true);
        }
    }

    /// The pools of a database, or all; never the console's.
    pub(super) fn pools_of(&self, database: Option<DatabaseId>) -> Vec<PoolId> {
        self.pools
            .iter()
            .filter(|(_, pool)| !pool.is_console() && pool.peer.is_none())
            .filter(|(_, pool)| database.is_none_or(|id| pool.database == id))
            .map(|(id, _)| id)
            .collect()
    }

    /// Has every server of a database (or of all) replaced as soon as it is free (admin 4.5).
    pub fn reconnect(&mut self, database: Option<DatabaseId>) {
        for id in self.pools_of(database) {
            let Some(pool) = self.pools.get_mut(id) else {
                continue;
            };
            pool.welcome = None;
            pool.hosts.start_over();
            let logging_in = pool.servers(ServerState::Login).ids(&self.servers);
            use ServerState as S;
            for state in [S::Active, S::Idle, S::Used, S::Tested] {
                for server in pool.servers(state).ids(&self.servers) {
                    if let Some(server) = self.servers.get_mut(server) {
                        server.close_needed = true;
                    }
                }
            }
            for server in logging_in {
                self.close_server(server, &fault::CONNECT_STRING_CHANGED, true);
            }
            self.mark(id);
        }
    }

    /// Takes over the user list. Users that it does not name any more can't log in, and whatever
    /// came from their secrets is forgotten (auth 10.3-B).
    pub fn set_users(&mut self, entries: Vec<(String, Vec<u8>)>) {
        let mut gone: Vec<_> =
            self.users.iter().filter(|(_, user)| user.listed).map(|(id, _)| id).collect();
        for (name, secret) in entries {
            let id = self.user(&name);
            if let Some(user) = self.users.get_mut(id) {
                user.listed = true;
                user.set_secret(Secret::classify(&secret));
            }
            gone.retain(|old| *old != id);
        }
        for id in gone {
            if let Some(user) = self.users.get_mut(id) {
                user.listed = false;
                user.set_secret(Secret::Empty);
            }
        }
        self.plan_verifiers();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PeerEntry;
    use crate::core::Surroundings;

    fn core() -> Core {
        let around =
            Surroundings { now: Micros(0), seed: [7; 32], own_uid: 0, host_name: String::new() };
        Core::new(Settings::default(), around)
    }

    #[test]
    fn what_set_has_changed_is_remembered_until_a_file_says_otherwise() {
        let mut core = core();
        for (name, value, good) in [
            ("default_pool_size", "7", true),
            ("query_timeout", "x", false),
            ("nonsense", "1", false),
            ("auth_dbname", "pgbouncer", false),
            ("listen_port", "abc", true),
            ("auth_user", "asker", true),
            ("verbose", "1", true),
        ] {
            assert_eq!(core.set_parameter(name, value).is_ok(), good, "{name}");
        }
        let load = |core: &mut Core, text: &str, complete: bool| {
            let mut read = |_: &str| Ok(text.as_bytes().to_vec());
            let settings = core.settings.clone();
            let (config, whole) = config::load(&settings, "x", false, &mut read, &mut core.journal);
            assert_eq!(whole, complete);
            core.configure(config, whole);
            core.set_by_hand.keys().copied().collect::<Vec<_>>().join(" ")
        };
        let all = "auth_user default_pool_size verbose";
        assert_eq!(core.set_by_hand.keys().copied().collect::<Vec<_>>().join(" "), all);
        assert_eq!(load(&mut core, "[databases]\nd = \nd\n", false), all);
        assert_eq!(load(&mut core, "[pgbouncer]\nverbose = 0\n", true), "auth_user");
        assert_eq!(core.settings.default_pool_size, 20);
        core.set_parameter("default_pool_size", "7").unwrap();
        let text = "[pgbouncer]\ndefault_pool_size = 7\n";
        assert_eq!(load(&mut core, text, true), "auth_user", "it is the file's");
        assert_eq!(load(&mut core, "[pgbouncer]\nauth_user = x\n", true), "");
    }

    #[test]
    fn peers_that_are_not_listed_any_more_are_dropped() {
        let mut core = core();
        let mut load = |peers: &[(u32, &str)], complete: bool| {
            let entry = |host: &str| PeerEntry { host: Some(host.into()), ..Default::default() };
            let peers = peers.iter().map(|(id, host)| (*id, entry(host))).collect();
            core.configure(Config { peers, ..Config::default() }, complete);
            let names: Vec<_> = core.peers().map(|(id, peer)| (id, peer.host.clone())).collect();
            let text: Vec<_> =
                names.into_iter().map(|(id, host)| format!("{id} {}", host.unwrap())).collect();
            let lines: Vec<_> = std::iter::from_fn(|| core.journal.pop()).collect();
            (text.join(", "), lines)
        };
        let gone = (Level::Warning, "dropping peer  as it does not exist anymore".to_owned());
        assert_eq!(load(&[(3, "c"), (1, "a"), (2, "b")], true), ("1 a, 2 b, 3 c".into(), vec![]));
        assert_eq!(load(&[(2, "x")], false), ("1 a, 2 x, 3 c".into(), vec![]));
        assert_eq!(load(&[(2, "y")], true), ("2 y".into(), vec![gone.clone(), gone]));
    }
}
