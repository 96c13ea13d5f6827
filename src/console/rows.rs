//! What the rows of SHOW tables are made from, in their order (admin 3).

use super::show::View;
use crate::base::Micros;
use crate::config::{DatabaseEntry, Settings};
use crate::core::client::{self, Client, ClientState};
use crate::core::database::{Database, DatabaseId, User, UserId};
use crate::core::pool::Pool;
use crate::core::server::{Server, ServerState};
use crate::core::vars::{Vars, APPLICATION_NAME};
use crate::core::Addr;
use std::collections::BTreeMap;

/// A database and who uses it.
pub(super) struct DatabaseRow<'a> {
    view: View<'a>,
    pub(super) database: &'a Database,
    pub(super) servers: usize,
    pub(super) clients: usize,
}

impl DatabaseRow<'_> {
    pub(super) fn entry(&self) -> &DatabaseEntry {
        self.database.entry()
    }

    /// The entry's own value if it is at least `least`, else the global one.
    pub(super) fn or_global(
        &self,
        own: Option<i32>,
        least: i32,
        global: fn(&Settings) -> i32,
    ) -> i64 {
        let own = own.filter(|value| *value >= least);
        own.unwrap_or_else(|| global(self.view.core.settings())).into()
    }

    pub(super) fn server_lifetime(&self) -> i64 {
        let own = self.entry().server_lifetime.filter(|time| time.is_set());
        let time = own.unwrap_or(self.view.core.settings().server_lifetime);
        time.secs() as i64
    }
}

/// SHOW DATABASES: all but those that were made from `*` and are not used.
pub(super) fn databases(view: View<'_>) -> Vec<DatabaseRow<'_>> {
    let core = view.core;
    let mut servers: BTreeMap<DatabaseId, usize> = BTreeMap::new();
    for (_, pool) in core.pools() {
        *servers.entry(pool.database()).or_default() += pool.server_count();
    }
    let clients = tally(core.clients().iter().map(|(_, c)| core.database_of(c)));
    let visible = core.databases().filter(|(_, database)| !database.is_idle());
    visible
        .map(|(id, database)| DatabaseRow {
            view,
            database,
            servers: servers.get(&id).copied().unwrap_or(0),
            clients: clients.get(&id).copied().unwrap_or(0),
        })
        .collect()
}

/// How often each key occurs.
fn tally<K: Ord>(keys: impl Iterator<Item = Option<K>>) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    for key in keys.flatten() {
        *counts.entry(key).or_default() += 1;
    }
    counts
}

/// The word for how hosts are chosen, if there is a choice.
pub(super) fn load_balance(database: &Database) -> Option<&'static str> {
    let entry = database.entry();
    let has_list = entry.host.as_ref().is_some_and(|host| host.contains(','));
    has_list.then(|| entry.load_balance_hosts.unwrap_or_default().word())
}

/// A pool.
pub(super) struct PoolRow<'a> {
    pub(super) view: View<'a>,
    pub(super) pool: &'a Pool,
}

impl PoolRow<'_> {
    /// How long the first client of the queue has been at its current query.
    pub(super) fn longest_wait(&self) -> Micros {
        let first = self.pool.clients(ClientState::Waiting).head();
        let client = first.and_then(|id| self.view.core.clients().get(id));
        let start = client.and_then(|client| client.query_start());
        start.map_or(Micros(0), |start| self.view.core.now.since(start))
    }

    pub(super) fn load_balance(&self) -> Option<&'static str> {
        load_balance(self.view.core.database(self.pool.database())?)
    }
}

/// SHOW POOLS.
pub(super) fn pools(view: View<'_>) -> impl Iterator<Item = PoolRow<'_>> {
    view.core.pools().map(move |(_, pool)| PoolRow { view, pool })
}

/// One end of a connection: who is there, and the port to show.
pub(super) struct End {
    addr: Addr,
    pub(super) port: i32,
}

impl End {
    /// `unix_port` stands for sockets that have none.
    pub(super) fn new(addr: Addr, unix_port: i32) -> End {
        let port = match addr {
            Addr::Inet(at) => at.port().into(),
            Addr::Unix { .. } => unix_port,
            Addr::Unknown => 0,
        };
        End { addr, port }
    }

    pub(super) fn text(&self) -> String {
        match self.addr {
            Addr::Inet(at) => at.ip().to_string(),
            Addr::Unix { .. } => "unix".into(),
            Addr::Unknown => "(bad-af)".into(),
        }
    }
}

/// A client or a server.
pub(super) struct SocketRow<'a> {
    pub(super) view: View<'a>,
    pub(super) kind: &'static str,
    pub(super) user: &'a str,
    pub(super) database: &'a str,
    pub(super) state: &'static str,
    pub(super) remote: End,
    pub(super) local: End,
    pub(super) connect_time: Micros,
    pub(super) request_time: Micros,
    pub(super) wait: Micros,
    pub(super) close_needed: bool,
    pub(super) number: u64,
    /// Number of the other end of the link.
    pub(super) link: Option<u64>,
    pub(super) process_id: i64,
    pub(super) application_name: &'a [u8],
}

/// The form in which an object's number is shown.
pub(super) fn pointer(number: u64) -> String {
    format!("0x{:x}", client::pointer(number))
}

fn application_name(vars: &Vars) -> &[u8] {
    vars.get(APPLICATION_NAME).map_or(b"", |name| name)
}

fn client_row<'a>(view: View<'a>, pool: &'a Pool, client: &'a Client) -> SocketRow<'a> {
    let core = view.core;
    let port = core.settings().listen_port;
    let server = client.server().and_then(|id| core.servers().get(id));
    SocketRow {
        view,
        kind: "C",
        user: core.shown_user(client),
        database: pool.names().0,
        state: match client.state() {
            ClientState::Login => "login",
            ClientState::Active if server.is_some() => "active",
            ClientState::Active => "idle",
            ClientState::Waiting => "waiting",
            ClientState::ActiveCancel => "active_cancel_req",
            ClientState::WaitingCancel => "waiting_cancel_req",
        },
        remote: End::new(client.remote(), port),
        local: End::new(client.local(), port),
        connect_time: client.connect_time(),
        request_time: client.last_packet(),
        wait: client.query_start().map_or(Micros(0), |start| core.now.since(start)),
        close_needed: false,
        number: client.number(),
        link: server.map(Server::number),
        process_id: match client.remote() {
            Addr::Unix { pid } => pid.into(),
            _ => 0,
        },
        application_name: application_name(client.vars()),
    }
}

/// SHOW CLIENTS: pool by pool; clients that are logging in are not shown.
pub(super) fn clients(view: View<'_>) -> impl Iterator<Item = SocketRow<'_>> {
    const SHOWN: [ClientState; 4] = [
        ClientState::Active,
        ClientState::Waiting,
        ClientState::ActiveCancel,
        ClientState::WaitingCancel,
    ];
    let arena = view.core.clients();
    view.core.pools().flat_map(move |(_, pool)| {
        let ids = SHOWN.map(|state| pool.clients(state).ids(arena));
        let ids = ids.into_iter().flatten();
        ids.filter_map(move |id| Some(client_row(view, pool, arena.get(id)?)))
    })
}

fn server_row<'a>(
    view: View<'a>,
    pool: &'a Pool,
    server: &'a Server,
    state: &'static str,
) -> SocketRow<'a> {
    let core = view.core;
    let port = core.database(pool.database()).map_or(0, Database::port);
    let client = server.client().and_then(|id| core.clients().get(id));
    SocketRow {
        view,
        kind: "S",
        user: pool.names().1,
        database: pool.names().0,
        state,
        remote: End::new(server.remote(), port),
        local: End::new(server.local(), core.settings().listen_port),
        connect_time: server.connect_time(),
        request_time: server.last_packet(),
        wait: Micros(0),
        close_needed: server.close_needed(),
        number: server.number(),
        link: client.map(Client::number),
        process_id: server.process_id().into(),
        application_name: application_name(server.vars()),
    }
}

/// SHOW SERVERS: pool by pool.
pub(super) fn servers(view: View<'_>) -> impl Iterator<Item = SocketRow<'_>> {
    let arena = view.core.servers();
    view.core.pools().flat_map(move |(_, pool)| {
        let lists = ServerState::SHOWN.into_iter();
        lists.flat_map(move |(state, word)| {
            let ids = pool.servers(state).ids(arena).into_iter();
            ids.filter_map(move |id| Some(server_row(view, pool, arena.get(id)?, word)))
        })
    })
}

/// A user and its connections.
pub(super) struct UserRow<'a> {
    view: View<'a>,
    pub(super) user: &'a User,
    pub(super) servers: usize,
    pub(super) clients: usize,
}

impl UserRow<'_> {
    /// The user's own value if it is a limit, else the global one.
    pub(super) fn or_global(&self, own: Option<i32>, global: fn(&Settings) -> i32) -> i64 {
        let own = own.filter(|value| *value > 0);
        own.unwrap_or_else(|| global(self.view.core.settings())).into()
    }
}

/// A user's pool size: nothing if it has none of its own.
pub(super) fn size_text(size: Option<i32>) -> String {
    let size = size.filter(|size| *size >= 0);
    size.map_or_else(String::new, |size| format!("{size:>9}"))
}

/// SHOW USERS.
pub(super) fn users(view: View<'_>) -> Vec<UserRow<'_>> {
    let core = view.core;
    let mut servers: BTreeMap<UserId, usize> = BTreeMap::new();
    for (_, pool) in core.pools() {
        *servers.entry(pool.user()).or_default() += pool.server_count();
    }
    let clients = tally(core.clients().iter().map(|(_, c)| core.user_of(c)));
    core.users()
        .map(|(id, user)| UserRow {
            view,
            user,
            servers: servers.get(&id).copied().unwrap_or(0),
            clients: clients.get(&id).copied().unwrap_or(0),
        })
        .collect()
}

/// SHOW LISTS. Peers come with a later version.
pub(super) fn lists(view: View<'_>) -> Vec<(&'static str, usize)> {
    let core = view.core;
    let dns = view.around.dns();
    let shown = core.databases().filter(|(_, database)| !database.is_idle());
    vec![
        ("databases", shown.count()),
        ("users", core.users().count()),
        ("peers", 0),
        ("pools", core.pools().count()),
        ("peer_pools", 0),
        ("free_clients", core.clients().spare()),
        ("used_clients", core.clients().len()),
        ("login_clients", core.login_clients().len()),
        ("free_servers", core.servers().spare()),
        ("used_servers", core.servers().len()),
        ("dns_names", dns.names),
        ("dns_zones", dns.zones),
        ("dns_queries", dns.queries),
        ("dns_pending", 0),
    ]
}
