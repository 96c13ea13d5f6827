//! Replication connections: each such client has a server of its own, which is opened for it,
//! speaks to nobody else and ends with it (pooling 9).

use super::client::{Client, ClientState};
use super::face::{ClientId, ServerId, Sink};
use super::fault;
use super::pool::{Pool, PoolId, Welcome};
use super::server::{Server, ServerState, Status};
use super::Core;
use crate::base::Level;
use crate::config::PoolMode;
use crate::wire::read::ErrorFields;
use std::rc::Rc;

/// What a client has asked for with the start-up parameter `replication`, and what its server is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replication {
    /// Nothing of that kind.
    #[default]
    None,
    /// A walsender of one database, which runs SQL, too.
    Logical,
    /// A walsender of the whole cluster.
    Physical,
}

impl Replication {
    /// Reads the parameter's value; words that mean nothing ask for nothing (auth 1.4).
    pub(super) fn read(value: &[u8]) -> Replication {
        match value {
            b"database" => Replication::Logical,
            _ if is_true(value) => Replication::Physical,
            _ => Replication::None,
        }
    }

    /// True for both kinds of replication.
    pub fn is_some(self) -> bool {
        self != Replication::None
    }

    /// The word of SHOW CLIENTS and SHOW SERVERS.
    pub fn shown(self) -> &'static str {
        match self {
            Replication::None => "none",
            Replication::Logical => "logical",
            Replication::Physical => "physical",
        }
    }

    /// The word that the log and servers are told.
    pub(super) fn word(self) -> &'static str {
        match self {
            Replication::None => "no",
            Replication::Logical => "database",
            Replication::Physical => "yes",
        }
    }
}

/// PostgreSQL's boolean words: unique prefixes of true, yes, on; 1.
fn is_true(value: &[u8]) -> bool {
    let value = value.to_ascii_lowercase();
    let prefix = |word: &[u8], least: usize| value.len() >= least && word.starts_with(&value);
    value == b"1" || prefix(b"true", 1) || prefix(b"yes", 1) || prefix(b"on", 2)
}

impl Client {
    /// What it has asked for.
    pub fn replication(&self) -> Replication {
        self.replication
    }

    /// It waits, or will wait, for a server that is opened for it. While its user is looked up it
    /// is like any other client.
    pub(super) fn needs_own_server(&self) -> bool {
        self.replication.is_some() && !self.is_looked_up()
    }

    /// It waits for more than its welcome, and for no server that is there. `known`: its pool knows
    /// what to welcome it with.
    pub(super) fn takes_no_idle(&self, known: bool) -> bool {
        self.needs_own_server() && (self.server.is_some() || self.welcomed || !known)
    }
}

impl Server {
    /// What it has been asked for: if anything, it belongs to one client from then to its end.
    pub fn replication(&self) -> Replication {
        self.replication
    }
}

impl Core {
    /// What a client wants, from its StartupMessage; the options go to its server as they are.
    pub(super) fn note_replication(
        &mut self,
        id: ClientId,
        wanted: Replication,
        options: Option<&[u8]>,
    ) {
        if let Some(client) = self.clients.get_mut(id) {
            client.replication = wanted;
        }
        if let Some(options) = options {
            self.startup_options.insert(id, options.into());
        }
    }

    /// A server is about to be told what it is for: if a replication client is the first to wait,
    /// it is for that one and nobody else.
    pub(super) fn dedicate(&mut self, id: ServerId) {
        let Some(server) = self.servers.get(id) else { return };
        let head = self.pools.get(server.pool).and_then(|pool| self.own_server_waiter(pool));
        let Some(client) = head else { return };
        let Some(wanted) = self.clients.get(client).map(|client| client.replication) else {
            return;
        };
        self.tie(client, id);
        if let Some(server) = self.servers.get_mut(id) {
            server.replication = wanted;
            server.status = Status::Busy;
        }
    }

    /// The head of the wait queue, if it is a replication client without a server.
    pub(super) fn own_server_waiter(&self, pool: &Pool) -> Option<ClientId> {
        let head = pool.clients(ClientState::Waiting).head()?;
        let client = self.clients.get(head)?;
        (client.needs_own_server() && client.server.is_none()).then_some(head)
    }

    /// What the StartupMessage of a replication server says besides.
    pub(super) fn replication_pairs(&self, id: ServerId) -> Vec<(&[u8], &[u8])> {
        let mut pairs: Vec<(&[u8], &[u8])> = Vec::new();
        let server = self.servers.get(id).filter(|server| server.replication.is_some());
        let Some((server, client_id)) = server.and_then(|server| Some((server, server.client?)))
        else {
            return pairs;
        };
        pairs.push((b"replication", server.replication.word().as_bytes()));
        if let Some(client) = self.clients.get(client_id) {
            for (at, name) in self.tracked.names().enumerate() {
                if let Some(value) = client.vars.get(at) {
                    pairs.push((name.as_bytes(), value));
                }
            }
        }
        if let Some(options) = self.startup_options.get(&client_id) {
            pairs.push((b"options", options));
        }
        pairs
    }

    /// True for a server that belongs to a replication client.
    pub(super) fn is_replication(&self, id: ServerId) -> bool {
        self.servers.get(id).is_some_and(|server| server.replication.is_some())
    }

    /// A replication server has logged in: its client goes on with it. What it said is a welcome
    /// for that client only, as it was asked for with that client's parameters.
    pub(super) fn replication_ready(
        &mut self,
        id: ServerId,
        pool: PoolId,
        untracked: Vec<u8>,
        sink: &mut Sink,
    ) {
        let Some((server, client)) =
            self.servers.get(id).and_then(|server| Some((server, server.client?)))
        else {
            return self.close_server(id, &fault::REPLICATION_CLIENT_LEFT, false);
        };
        let vars = server.vars.clone();
        self.move_server(id, ServerState::Active);
        if self.clients.get(client).is_some_and(|client| !client.welcomed) {
            let tracked = vars.packets(&self.tracked);
            let welcome = Rc::new(Welcome { untracked, vars, tracked });
            self.welcome_with(client, Some(welcome), &mut sink.to_client);
        }
        self.activate(client);
        self.mark(pool);
    }

    /// The pool is full, and the first to wait is a replication client: what is idle makes room for
    /// its server, which is opened when the pool is looked at again.
    pub(super) fn evict_for_replication(&mut self, id: PoolId) {
        let Some(pool) = self.pools.get(id) else { return };
        if self.own_server_waiter(pool).is_none() {
            return;
        }
        for server in pool.servers(ServerState::Idle).ids(&self.servers) {
            self.close_server(server, &fault::EVICTED, true);
        }
    }

    /// True if replication clients have servers in this pool: its size counts then, although these
    /// servers tell nothing that others could be welcomed with.
    pub(super) fn has_replication(&self, pool: &Pool) -> bool {
        let active = pool.servers(ServerState::Active).ids(&self.servers);
        active.into_iter().any(|id| self.is_replication(id))
    }

    /// A replication client and its server speak at the same time.
    pub(super) fn speaks_both_ways(&self, id: ClientId) -> bool {
        let client = self.clients.get(id);
        client.is_some_and(|client| client.replication.is_some() && client.server.is_some())
    }

    /// The mode in which a server is used: its client keeps a replication server.
    pub(super) fn server_mode(&self, id: ServerId) -> PoolMode {
        match self.servers.get(id) {
            Some(server) if !server.replication.is_some() => self.pool_mode(server.pool),
            _ => PoolMode::Session,
        }
    }

    /// PostgreSQL refuses a replication server: its client learns that it does, nobody else.
    pub(super) fn replication_refused(&mut self, id: ServerId, fields: &ErrorFields<'_>) {
        let line = fields.line(": ").unwrap_or_default();
        self.journal.line(Level::Error, format!("S: login failed: {line}"));
        self.close_server(id, &fault::LOGIN_FAILED, false);
    }

    /// Replication servers that are marked for closing wait for nothing: their clients leave late
    /// or never.
    pub(super) fn close_marked_replication(&mut self, pool: PoolId) {
        let Some(pool) = self.pools.get(pool) else { return };
        for id in pool.servers(ServerState::Active).ids(&self.servers) {
            let is_marked = self.servers.get(id).is_some_and(|server| server.close_needed);
            if is_marked && self.is_replication(id) {
                self.close_server(id, &fault::CONFIGURATION_CHANGED, true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameters_words_are_postgresqls() {
        for (words, want) in [
            (&["database"][..], Replication::Logical),
            (&["1", "t", "TRUE", "tr", "y", "yes", "on", "ON"], Replication::Physical),
            (
                &["0", "", "o", "off", "no", "f", "false", "11", "trues", "Database", "database "],
                Replication::None,
            ),
        ] {
            for word in words {
                assert_eq!(Replication::read(word.as_bytes()), want, "{word}");
            }
        }
    }
}
