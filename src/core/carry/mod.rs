//! The handoff from one process to the next (doc/handoff.md): everything that the core knows is
//! written out as rows of tagged fields, and read into another core that has been configured from
//! files of its own. Writing changes nothing; reading believes nothing.

mod client;
mod console;
mod login;
#[cfg(test)]
mod login_tests;
mod pool;
mod process;
mod server;
mod statement;
mod user;

use super::face::{ClientId, Origin, Peer, ServerId};
use super::statements::StatementId;
use super::Core;
use std::collections::BTreeMap;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident $word:literal,)+) => {
        /// What a row tells of.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($(#[$doc])* $variant),+ }

        impl Kind {
            /// Every kind, in the order of rows.
            pub const ALL: &[Kind] = &[$(Kind::$variant),+];

            /// Its name in a row.
            pub fn word(self) -> &'static str {
                match self { $(Kind::$variant => $word),+ }
            }

            /// The kind with this name.
            pub fn of(word: &[u8]) -> Option<Kind> {
                Kind::ALL.iter().copied().find(|kind| kind.word().as_bytes() == word)
            }
        }
    };
}

kinds! {
    /// The process as a whole: one row, the first.
    Process "process",
    /// A parameter that SET has changed.
    Setting "setting",
    /// A user.
    User "user",
    /// A database.
    Database "database",
    /// A pool, also one of a peer.
    Pool "pool",
    /// A prepared statement of the store; its number is that of its name on servers.
    Statement "statement",
    /// A listening socket; written and read above the core.
    Listener "listener",
    /// A client.
    Client "client",
    /// A server.
    Server "server",
}

/// What is told of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it is.
    pub kind: Kind,
    /// The number of a client, a server or a statement; else 0.
    pub number: u64,
    /// Tagged fields (`base::fields`).
    pub state: Vec<u8>,
}

/// What has become of rows.
#[derive(Debug, Default)]
pub struct TakenIn {
    /// Who each row is now. With `None` its socket, if it has one, is to be closed.
    pub peers: Vec<Option<Peer>>,
    /// Who has which number.
    pub numbers: BTreeMap<u64, Peer>,
}

/// What rows refer to, as far as it has been read.
#[derive(Default)]
pub(super) struct Known {
    /// Clients and servers by their numbers.
    numbers: BTreeMap<u64, Peer>,
    /// Statements by the numbers in their names.
    statements: BTreeMap<u64, StatementId>,
}

impl Known {
    /// The client with this number.
    fn client(&self, number: u64) -> Option<ClientId> {
        match self.numbers.get(&number) {
            Some(Peer::Client(id)) => Some(*id),
            _ => None,
        }
    }

    /// The server with this number.
    fn server(&self, number: u64) -> Option<ServerId> {
        match self.numbers.get(&number) {
            Some(Peer::Server(id)) => Some(*id),
            _ => None,
        }
    }

    /// The statement with this number.
    fn statement(&self, number: u64) -> Option<StatementId> {
        self.statements.get(&number).copied()
    }
}

impl Core {
    /// All that a successor has to know, in the order of `Kind::ALL`, but for the console that asks
    /// for it. Changes nothing. Each with the connection whose socket goes with it.
    pub fn hand_out(&self, except: ClientId) -> Vec<(Row, Option<Peer>)> {
        let mut rows = Vec::new();
        self.hand_out_process(&mut rows);
        self.hand_out_users(&mut rows);
        self.hand_out_databases(&mut rows);
        self.hand_out_pools(&mut rows);
        self.hand_out_statements(&mut rows);
        let mut rows: Vec<_> = rows.into_iter().map(|row| (row, None)).collect();
        self.hand_out_clients(except, &mut rows);
        self.hand_out_servers(except, &mut rows);
        rows
    }

    /// Goes on with what another process knew, in a core that has been configured and has no clients
    /// yet. Rows of clients and servers come with the ends of their sockets. What can't be understood
    /// closes one connection.
    pub fn take_in(&mut self, rows: Vec<(Row, Option<Origin>)>) -> TakenIn {
        let mut known = Known::default();
        let of = |kind| rows.iter().map(|(row, _)| row).filter(move |row| row.kind == kind);
        of(Kind::Process).for_each(|row| self.take_in_process(&row.state));
        of(Kind::Setting).for_each(|row| self.take_in_setting(&row.state));
        of(Kind::User).for_each(|row| self.take_in_user(&row.state));
        of(Kind::Database).for_each(|row| self.take_in_database(&row.state));
        of(Kind::Pool).for_each(|row| self.take_in_pool(&row.state));
        of(Kind::Statement).for_each(|row| self.take_in_statement(row, &mut known));
        let mut peers = self.take_in_clients(&rows, &mut known);
        self.take_in_servers(&rows, &mut known, &mut peers);
        self.begin_logins_anew(&known);
        TakenIn { peers, numbers: known.numbers }
    }
}
