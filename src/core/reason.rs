//! Why does a client wait? The assignment's own answer, in words: for SHOW WAITING, and for the
//! notice that a client gets after query_wait_notify.

use super::assign::{Launch, Why};
use super::client::{Client, ClientState};
use super::database::Database;
use super::face::{Addr, ServerId};
use super::pause::Shutdown;
use super::pool::{Pool, PoolId};
use super::server::ServerState;
use super::Core;
use std::net::IpAddr;

/// Why a client waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What kind of reason it is.
    pub word: &'static str,
    /// What is behind it.
    pub detail: String,
    /// The detail names machines, which clients need not know.
    is_private: bool,
}

impl Reason {
    fn new(word: &'static str, detail: String) -> Reason {
        Reason { word, detail, is_private: false }
    }

    /// What the client itself is told.
    pub(super) fn for_client(&self) -> String {
        match self.is_private {
            true => self.word.to_owned(),
            false => format!("{}: {}", self.word, self.detail),
        }
    }
}

impl Core {
    /// Why this client at this place of a pool's wait queue waits. What keeps a look-up of its user
    /// from being asked is the detail.
    pub fn reason_of(&self, client: &Client, id: PoolId, place: usize) -> Option<Reason> {
        if client.state == ClientState::Joined {
            let detail = "the user is being looked up for another client".into();
            return Some(Reason::new("auth query", detail));
        }
        let reason = match client.needs_own_server() {
            true => self.launch_reason(id),
            false => self.reason(id, place),
        }?;
        match client.lookup() {
            Some(_) => {
                let detail = format!("{}: {}", reason.word, reason.detail);
                Some(Reason { word: "auth query", detail, ..reason })
            }
            None => Some(reason),
        }
    }

    /// Why the client at this place of a pool's wait queue, counted from 0, has no server.
    fn reason(&self, id: PoolId, place: usize) -> Option<Reason> {
        let pool = self.pools.get(id)?;
        if self.is_paused(id) {
            return self.launch_reason(id);
        }
        let count = |state| pool.servers(state).len();
        let (idle, tested) = (count(ServerState::Idle), count(ServerState::Tested));
        if place < idle {
            return Some(served("a server is free"));
        }
        if place < idle.saturating_add(tested) {
            return Some(served("a server is being reset or checked"));
        }
        if place < idle.saturating_add(tested).saturating_add(count(ServerState::Used)) {
            return Some(served("a server has to be checked first"));
        }
        self.launch_reason(id)
    }

    /// Why no connection is opened for the clients of a pool.
    fn launch_reason(&self, id: PoolId) -> Option<Reason> {
        let pool = self.pools.get(id)?;
        if self.is_paused(id) {
            return Some(Reason::new("paused", self.what_pauses(pool)));
        }
        Some(match self.may_launch(id)? {
            Launch::Yes | Launch::Reserve => served("a connection is about to be opened"),
            Launch::No(Why::LoginInProgress) => self.login_reason(pool),
            Launch::No(Why::ServerUnreachable) => self.unreachable_reason(pool),
            Launch::No(Why::PoolFull) => {
                let (size, reserve) = self.sizes(pool);
                let mut detail = format!("pool_size={size} is reached");
                if reserve > 0 {
                    detail.push_str(&format!(", reserve_pool_size={reserve}"));
                }
                Reason::new("pool full", detail)
            }
            Launch::EvictFromDatabase => {
                let limit = self.effective(pool).max_db_connections();
                let detail = format!("max_db_connections={limit} is reached");
                Reason::new("database limit", detail)
            }
            Launch::EvictFromUser => {
                let limit = self.effective(pool).max_user_connections();
                let detail = format!("max_user_connections={limit} is reached");
                Reason::new("user limit", detail)
            }
        })
    }

    fn sizes(&self, pool: &Pool) -> (i32, i32) {
        let effective = self.effective(pool);
        (effective.pool_size(), effective.reserve_pool_size())
    }

    fn what_pauses(&self, pool: &Pool) -> String {
        let database = self.databases.get(pool.database);
        match self.shutdown() {
            Some(Shutdown::WaitForServers) => "SHUTDOWN WAIT_FOR_SERVERS is in force".into(),
            _ if database.is_some_and(Database::is_paused) => {
                format!("PAUSE or KILL of database {} is in force", pool.names.0)
            }
            _ => "PAUSE is in force".into(),
        }
    }

    fn login_reason(&self, pool: &Pool) -> Reason {
        let id = pool.servers(ServerState::Login).head();
        let since = id.and_then(|id| self.servers.get(id)).map_or(0, |server| {
            let since = self.now.since(server.connect_time);
            since.secs()
        });
        if let Some(host) = id.and_then(|id| self.name_looked_up(id)) {
            let detail = format!("host name {host} is being looked up, for {since} s");
            return Reason { word: "dns", detail, is_private: true };
        }
        let connecting = id.and_then(|id| self.servers.get(id)).is_some_and(|s| s.is_connecting());
        let what = match connecting {
            true => "connecting",
            false => "logging in",
        };
        Reason::new("server login", format!("{what} for {since} s"))
    }

    /// The host that has to be looked up before this server can be connected to.
    fn name_looked_up(&self, id: ServerId) -> Option<String> {
        let server = self.servers.get(id)?;
        if !server.is_connecting() || server.remote != Addr::Unknown {
            return None;
        }
        let host = self.server_target(id)?.host;
        let is_name = !host.starts_with(['/', '@']) && host.parse::<IpAddr>().is_err();
        is_name.then_some(host)
    }

    fn unreachable_reason(&self, pool: &Pool) -> Reason {
        let error = pool.last_error.as_deref().unwrap_or("the last attempt failed");
        let next = self.retry_time(pool).since(self.now).secs();
        Reason::new("server unreachable", format!("{error}; next attempt in {next} s"))
    }
}

fn served(how: &str) -> Reason {
    Reason::new("about to be served", how.to_owned())
}
