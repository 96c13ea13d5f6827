//! What the rows of SHOW tables are made from, in their order (admin 3).

use super::show::View;
use crate::base::Micros;
use crate::config::entries::PEER_PORT;
use crate::config::{DatabaseEntry, PeerEntry, Settings};
use crate::core::client::ClientState;
use crate::core::database::{Database, User};
use crate::core::pool::Pool;

/// A database.
pub(super) struct DatabaseRow<'a> {
    view: View<'a>,
    pub(super) database: &'a Database,
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
pub(super) fn databases(view: View<'_>) -> impl Iterator<Item = DatabaseRow<'_>> {
    let visible = view.core.databases().filter(|(_, database)| !database.is_idle());
    visible.map(move |(_, database)| DatabaseRow { view, database })
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

/// A user.
pub(super) struct UserRow<'a> {
    view: View<'a>,
    pub(super) user: &'a User,
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
pub(super) fn users(view: View<'_>) -> impl Iterator<Item = UserRow<'_>> {
    view.core.users().map(move |(_, user)| UserRow { view, user })
}

/// A peer.
pub(super) struct PeerRow<'a> {
    view: View<'a>,
    pub(super) id: u32,
    pub(super) entry: &'a PeerEntry,
}

impl PeerRow<'_> {
    pub(super) fn port(&self) -> i64 {
        self.entry.port.unwrap_or(PEER_PORT).into()
    }

    pub(super) fn pool_size(&self) -> i64 {
        let own = self.entry.pool_size.filter(|size| *size >= 0);
        own.unwrap_or(self.view.core.settings().default_pool_size).into()
    }
}

/// SHOW PEERS.
pub(super) fn peers(view: View<'_>) -> impl Iterator<Item = PeerRow<'_>> {
    view.core.peers().map(move |(id, entry)| PeerRow { view, id, entry })
}

/// SHOW PEER_POOLS.
pub(super) fn peer_pools(view: View<'_>) -> impl Iterator<Item = (u32, &Pool)> {
    view.core.peer_pools().map(|(peer, _, pool)| (peer, pool))
}

/// SHOW LISTS.
pub(super) fn lists(view: View<'_>) -> Vec<(&'static str, usize)> {
    let core = view.core;
    let hosts = view.around.dns_hosts();
    vec![
        ("databases", databases(view).count()),
        ("users", core.users().count()),
        ("peers", core.peers().count()),
        ("pools", core.pools().count()),
        ("peer_pools", core.peer_pools().count()),
        ("free_clients", core.clients().spare()),
        ("used_clients", core.clients().len()),
        ("login_clients", core.login_clients().len()),
        ("free_servers", core.servers().spare()),
        ("used_servers", core.servers().len()),
        ("dns_names", hosts.len()),
        ("dns_zones", view.around.dns_zones().len()),
        ("dns_queries", hosts.iter().filter(|host| host.pending).count()),
        ("dns_pending", 0),
    ]
}
