//! Pools: the clients and servers of one database and user, listed by state. The only functions
//! that change a state or a link are here.

mod carry;

pub use carry::POOL_TAGS;

use super::client::{Client, ClientState};
use super::database::{Database, DatabaseId, User, UserId};
use super::face::{ClientId, ServerId};
use super::hosts::Hosts;
use super::server::{Server, ServerState, Status};
use super::stats::{Counter, PoolStats};
use super::timeouts::is_positive;
use super::vars::Vars;
use super::Core;
use crate::base::{Id, Level, List, Micros};
use crate::config::{LoadBalance, PoolMode, SessionAttrs, Settings, UserEntry};
use std::rc::Rc;

/// Names a pool.
pub type PoolId = Id<Pool>;

/// What clients of a pool are told when they log in: from the pool's first server.
pub struct Welcome {
    /// ParameterStatus packets of everything that is not tracked, in the server's order.
    pub untracked: Vec<u8>,
    /// The tracked parameters.
    pub vars: Vars,
    /// ParameterStatus packets of the tracked parameters, for clients without wishes of their own.
    pub tracked: Vec<u8>,
}

/// The servers of one database and user, and the clients that share them.
pub struct Pool {
    pub(super) database: DatabaseId,
    /// The user that servers log in as.
    pub(super) user: UserId,
    /// Database and user name.
    pub(super) names: (Rc<str>, Rc<str>),
    /// The peer that it forwards cancel requests to; then database and user are none.
    pub(super) peer: Option<u32>,
    clients: [List<Client>; ClientState::COUNT],
    servers: [List<Server>; ServerState::COUNT],
    pub(super) welcome: Option<Rc<Welcome>>,
    pub(super) last_launch: Micros,
    /// The last connection attempt failed.
    pub(super) connect_failed: bool,
    /// Why the last login failed, if it did.
    pub(super) login_failed: Option<String>,
    /// The same with all that is known.
    pub(super) last_error: Option<String>,
    /// The last new connection took a cancel request.
    pub(super) cancel_went_last: bool,
    pub(super) last_lifetime_close: Micros,
    /// Since when it has had neither clients nor servers, as the janitor saw it.
    pub(super) idle_since: Option<Micros>,
    /// Where it is in its list of hosts.
    pub(super) hosts: Hosts,
    pub(super) stats: PoolStats,
    /// Listed in `Core::pending`.
    pub(super) pending: bool,
    /// Listed in `Core::starved`.
    pub(super) starved: bool,
}

impl Pool {
    pub(super) fn new(database: DatabaseId, user: UserId, names: (Rc<str>, Rc<str>)) -> Pool {
        Pool {
            database,
            user,
            names,
            peer: None,
            clients: Default::default(),
            servers: Default::default(),
            welcome: None,
            last_launch: Micros(0),
            connect_failed: false,
            login_failed: None,
            last_error: None,
            cancel_went_last: false,
            last_lifetime_close: Micros(0),
            idle_since: None,
            hosts: Hosts::default(),
            stats: PoolStats::default(),
            pending: false,
            starved: false,
        }
    }

    /// The pool of a peer: there is nothing in it but cancel requests and what carries them.
    pub(super) fn of_peer(peer: u32) -> Pool {
        let names = (format!("peer-{peer}").into(), "".into());
        Pool { peer: Some(peer), ..Pool::new(Id::none(), Id::none(), names) }
    }

    /// The peer that it forwards cancel requests to.
    pub fn peer(&self) -> Option<u32> {
        self.peer
    }
    /// Its database.
    pub fn database(&self) -> DatabaseId {
        self.database
    }
    /// Database and user name, its place in the order of pools.
    pub fn names(&self) -> (&str, &str) {
        (&self.names.0, &self.names.1)
    }
    /// The clients in one state; none are ever in `Login`.
    pub fn clients(&self, state: ClientState) -> &List<Client> {
        &self.clients[state as usize]
    }
    /// The servers in one state.
    pub fn servers(&self, state: ServerState) -> &List<Server> {
        &self.servers[state as usize]
    }
    /// Servers in any state.
    pub fn server_count(&self) -> usize {
        self.servers.iter().map(List::len).sum()
    }
    /// Clients in any state.
    pub fn client_count(&self) -> usize {
        self.clients.iter().map(List::len).sum()
    }
    /// Servers that have logged in.
    pub fn connected_count(&self) -> usize {
        use ServerState as S;
        let connecting = self.servers(S::Login).len() + self.servers(S::ActiveCancel).len();
        self.server_count() - connecting
    }
    /// The statistics.
    pub fn stats(&self) -> &PoolStats {
        &self.stats
    }
    /// The admin database's pool, which has no servers.
    pub fn is_console(&self) -> bool {
        self.peer.is_none() && &*self.names.0 == super::database::CONSOLE
    }
}

/// The settings that count for a pool: user, else database, else global (pooling 1.1).
pub struct Effective<'a> {
    settings: &'a Settings,
    database: Option<&'a Database>,
    user: Option<&'a User>,
}

impl Effective<'_> {
    /// Pool mode.
    pub fn pool_mode(&self) -> PoolMode {
        self.user
            .and_then(|user| user.entry.pool_mode)
            .or(self.database.and_then(|database| database.entry.pool_mode))
            .unwrap_or(self.settings.pool_mode)
    }

    /// The largest number of servers; 0 is without limit.
    pub fn pool_size(&self) -> i32 {
        self.user
            .and_then(|user| user.entry.pool_size)
            .filter(|size| *size >= 0)
            .or(self.database.and_then(|database| database.entry.pool_size))
            .filter(|size| *size >= 0)
            .unwrap_or(self.settings.default_pool_size)
    }

    /// How many servers beyond pool_size a long wait may bring.
    pub fn reserve_pool_size(&self) -> i32 {
        self.user
            .and_then(|user| user.entry.reserve_pool_size)
            .filter(|size| *size >= 0)
            .or(self.database.and_then(|database| database.entry.reserve_pool_size))
            .filter(|size| *size >= 0)
            .unwrap_or(self.settings.reserve_pool_size)
    }

    /// How many servers are kept connected.
    pub fn min_pool_size(&self) -> i32 {
        self.database
            .and_then(|database| database.entry.min_pool_size)
            .filter(|size| *size >= 0)
            .unwrap_or(self.settings.min_pool_size)
    }

    /// How many servers the database may have in all its pools; 0 is without limit.
    pub fn max_db_connections(&self) -> i32 {
        self.database
            .and_then(|database| database.entry.max_db_connections)
            .filter(|limit| *limit > 0)
            .unwrap_or(self.settings.max_db_connections)
    }

    /// How many servers may be logged in as the user in all pools; 0 is without limit.
    pub fn max_user_connections(&self) -> i32 {
        self.user
            .and_then(|user| user.entry.max_user_connections)
            .filter(|limit| *limit > 0)
            .unwrap_or(self.settings.max_user_connections)
    }

    /// How old a server may get.
    pub fn server_lifetime(&self) -> Micros {
        self.database
            .and_then(|database| database.entry.server_lifetime)
            .filter(|time| time.is_set())
            .unwrap_or(self.settings.server_lifetime)
    }

    /// How long a query may run.
    pub fn query_timeout(&self) -> Micros {
        self.of_user(|user| user.query_timeout, self.settings.query_timeout)
    }

    /// How long a server may be idle in a transaction.
    pub fn idle_transaction_timeout(&self) -> Micros {
        self.of_user(|user| user.idle_transaction_timeout, self.settings.idle_transaction_timeout)
    }

    /// How long a transaction may be open.
    pub fn transaction_timeout(&self) -> Micros {
        self.of_user(|user| user.transaction_timeout, self.settings.transaction_timeout)
    }

    fn of_user(&self, get: impl Fn(&UserEntry) -> Option<Micros>, global: Micros) -> Micros {
        let own = self.user.and_then(|user| get(&user.entry));
        own.filter(|time| is_positive(*time)).unwrap_or(global)
    }

    /// How long a client of this login user may wait; zero is without limit.
    pub fn query_wait_timeout(&self, login: Option<&User>) -> Micros {
        login
            .and_then(|user| user.entry.query_wait_timeout)
            .or(self.database.and_then(|database| database.entry.query_wait_timeout))
            .unwrap_or(self.settings.query_wait_timeout)
    }

    /// What servers must be like.
    pub fn session_attrs(&self) -> SessionAttrs {
        let wanted = self.database.and_then(|database| database.entry.target_session_attrs);
        wanted.unwrap_or_default()
    }

    /// How the element of a list of hosts is chosen.
    pub fn load_balance(&self) -> LoadBalance {
        self.database
            .and_then(|database| database.entry.load_balance_hosts)
            .unwrap_or(LoadBalance::RoundRobin)
    }
}

impl Core {
    /// The settings that count for a pool.
    pub fn effective(&self, pool: &Pool) -> Effective<'_> {
        Effective {
            settings: &self.settings,
            database: self.databases.get(pool.database),
            user: self.users.get(pool.user),
        }
    }

    /// The pool mode that counts for a pool.
    #[inline]
    pub(super) fn pool_mode(&self, id: PoolId) -> PoolMode {
        self.pools.get(id).map_or(self.settings.pool_mode, |pool| self.effective(pool).pool_mode())
    }

    /// Adds to a counter of a pool.
    pub(super) fn count(&mut self, pool: PoolId, counter: Counter, amount: u64) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.stats.total.add(counter, amount);
        }
    }

    /// Has the pool looked at when the turn ends.
    pub(super) fn mark(&mut self, id: PoolId) {
        if let Some(pool) = self.pools.get_mut(id) {
            if !std::mem::replace(&mut pool.pending, true) {
                self.pending.push(id);
            }
        }
    }

    /// Changes a client's state and moves it to that state's list.
    pub(super) fn move_client(&mut self, id: ClientId, to: ClientState) {
        let Some(client) = self.clients.get(id) else {
            return;
        };
        let from = client.state;
        if !from.may_become(to) {
            let prefix = self.client_prefix(id);
            let line = format!("{prefix}impossible change of state: {from:?} to {to:?}");
            self.journal.line(Level::Error, line);
            return;
        }
        self.unlist_client(id);
        if let Some(client) = self.clients.get_mut(id) {
            client.state = to;
        }
        self.list_client(id);
    }

    /// Puts a client that is in no list into the one that its state names.
    pub(super) fn list_client(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id) else {
            return;
        };
        match (client.state, client.pool) {
            (ClientState::Login, _) => self.login_clients.push_back(&mut self.clients, id),
            (state, Some(pool)) => {
                if let Some(pool) = self.pools.get_mut(pool) {
                    pool.clients[state as usize].push_back(&mut self.clients, id);
                }
            }
            (_, None) => {}
        }
    }

    /// Takes a client out of the list that its state names.
    pub(super) fn unlist_client(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id) else {
            return;
        };
        match (client.state, client.pool) {
            (ClientState::Login, _) => self.login_clients.remove(&mut self.clients, id),
            (state, Some(pool)) => {
                if let Some(pool) = self.pools.get_mut(pool) {
                    pool.clients[state as usize].remove(&mut self.clients, id);
                }
            }
            (_, None) => {}
        }
    }

    /// Changes a server's state and moves it to that state's list.
    pub(super) fn move_server(&mut self, id: ServerId, to: ServerState) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let (from, pool, old) = (server.state, server.pool, server.close_needed);
        if !from.may_become(to) {
            let prefix = self.server_prefix(id);
            let line = format!("{prefix}impossible change of state: {from:?} to {to:?}");
            self.journal.line(Level::Error, line);
            return;
        }
        server.state = to;
        let Some(pool) = self.pools.get_mut(pool) else {
            return;
        };
        pool.servers[from as usize].remove(&mut self.servers, id);
        let list = &mut pool.servers[to as usize];
        let newest_first = match to {
            ServerState::Idle => !old && !self.settings.server_round_robin.on(),
            ServerState::Used => true,
            _ => false,
        };
        if newest_first {
            list.push_front(&mut self.servers, id);
        } else {
            list.push_back(&mut self.servers, id);
        }
    }

    /// Puts a new server into the list that its state names.
    pub(super) fn list_server(&mut self, id: ServerId) {
        let Some(server) = self.servers.get(id) else {
            return;
        };
        let (state, pool) = (server.state, server.pool);
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.servers[state as usize].push_back(&mut self.servers, id);
        }
        self.count_server(pool, |count| count.saturating_add(1));
    }

    /// A new server is in this state already: it came from another process.
    pub(super) fn restate_server(&mut self, id: ServerId, to: ServerState) {
        self.unlist_server(id);
        if let Some(server) = self.servers.get_mut(id) {
            server.state = to;
        }
        self.list_server(id);
    }

    /// Takes a server out of the list that its state names.
    pub(super) fn unlist_server(&mut self, id: ServerId) {
        let Some(server) = self.servers.get(id) else {
            return;
        };
        let (state, pool) = (server.state, server.pool);
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.servers[state as usize].remove(&mut self.servers, id);
        }
        self.count_server(pool, |count| count.saturating_sub(1));
    }

    /// Links a client and an idle server.
    pub(super) fn link(&mut self, client: ClientId, server: ServerId) {
        self.move_server(server, ServerState::Active);
        self.tie(client, server);
    }

    /// Links a client and a server that is active already.
    pub(super) fn tie(&mut self, client: ClientId, server: ServerId) {
        if let Some(server) = self.servers.get_mut(server) {
            server.client = Some(client);
            server.status = Status::Reserved;
        }
        if let Some(client) = self.clients.get_mut(client) {
            client.server = Some(server);
        }
    }

    /// Ends a link, given the server.
    pub(super) fn unlink(&mut self, server: ServerId) -> Option<ClientId> {
        let client = self.servers.get_mut(server)?.client.take()?;
        self.clients.get_mut(client)?.server = None;
        Some(client)
    }
}
