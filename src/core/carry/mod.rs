//! The handoff from one process to the next (doc/handoff.md): everything that the core knows is
//! written out as rows of tagged fields, and read into another core that has been configured from
//! files of its own. Writing changes nothing; reading believes nothing.

mod client;
mod console;
mod login;
#[cfg(test)]
mod login_tests;
pub(super) mod parts;
mod process;
mod server;
mod statement;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod twin_tests;
mod user;

use super::face::{Action, ClientId, Origin, Peer, ServerId};
use super::pool::PoolId;
use super::statements::StatementId;
use super::Core;
use crate::base::fields::Tag;
use crate::base::Micros;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;

pub use super::pool::POOL_TAGS;
pub use super::replies::REPLIES_TAGS;
pub use super::statements::{NAMES_TAGS, SHELF_TAGS};
pub use crate::auth::EXCHANGE_TAGS;
pub use client::CLIENT_TAGS;
pub use console::{CONSOLE_TAGS, NAMED_TAGS, REQUEST_TAGS, WAIT_TAGS};
pub use login::LOGIN_TAGS;
pub use parts::{facts, put_facts, ADDRESS_TAGS, PLACE_TAGS, TLS_TAGS};
pub use process::{PROCESS_TAGS, SETTING_TAGS};
pub use server::SERVER_TAGS;
pub use statement::STATEMENT_TAGS;
pub use user::{DATABASE_TAGS, KEYS_TAGS, USER_TAGS};

pub(super) use parts::{number_of, value_of};

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
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// What it is.
    pub kind: Kind,
    /// The number of a client, a server or a statement; else 0.
    pub number: u64,
    /// Tagged fields (`base::fields`).
    pub state: Vec<u8>,
}

impl fmt::Debug for Row {
    /// There may be secrets in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row({} {}: {} bytes)", self.kind.word(), self.number, self.state.len())
    }
}

/// Is given each row, and the connection whose socket goes with it.
pub type Each<'a, E> = &'a mut dyn FnMut(&Row, Option<Peer>) -> Result<(), E>;

/// What has become of rows.
#[derive(Default)]
pub struct TakenIn {
    /// Who each row is now. With `None` its socket, if it has one, is to be closed.
    pub peers: Vec<Option<Peer>>,
    known: Known,
}

impl TakenIn {
    /// Who has this number.
    pub fn peer(&self, number: u64) -> Option<Peer> {
        self.known.numbers.get(&number).copied()
    }
}

/// What rows refer to, as far as it has been read.
#[derive(Default)]
pub(super) struct Known {
    /// When the old process has told them.
    now: Micros,
    /// Clients and servers by their numbers.
    numbers: BTreeMap<u64, Peer>,
    /// Statements by the numbers in their names; they are held until everybody is in.
    statements: BTreeMap<u64, StatementId>,
    /// Pools whose servers would be somewhere else now.
    pub(super) moved: BTreeSet<PoolId>,
    /// The places of the parameters that the old process has tracked.
    pub(super) tracked: BTreeSet<usize>,
    /// Parameters that are not tracked here: how many clients have set them.
    untracked: BTreeMap<String, usize>,
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

/// All tables of fields, each with what it is about.
pub const TABLES: &[(&str, &[Tag])] = &[
    ("process", PROCESS_TAGS),
    ("setting", SETTING_TAGS),
    ("user", USER_TAGS),
    ("database", DATABASE_TAGS),
    ("pool", POOL_TAGS),
    ("statement", STATEMENT_TAGS),
    ("client", CLIENT_TAGS),
    ("server", SERVER_TAGS),
    ("where a pool is found", PLACE_TAGS),
    ("one end of a connection", ADDRESS_TAGS),
    ("what is known of TLS", TLS_TAGS),
    ("what a server owes", REPLIES_TAGS),
    ("prepared statements of a server", SHELF_TAGS),
    ("prepared statements of a client", NAMES_TAGS),
    ("keys", KEYS_TAGS),
    ("a client's login", LOGIN_TAGS),
    ("an exchange", EXCHANGE_TAGS),
    ("a console", CONSOLE_TAGS),
    ("what has a name on the console", NAMED_TAGS),
    ("a request of a console", REQUEST_TAGS),
    ("what a console waits for", WAIT_TAGS),
];

/// Numbers of clients and servers are not larger: identifiers in the log are made of them.
const NUMBER_MAX: u64 = 1 << 48;

impl Core {
    /// Tells all that a successor has to know, in the order of `Kind::ALL`, but for the console that
    /// asks for it. Changes nothing. Each with the connection whose socket goes with it. To be called
    /// when no action is left. Ends at the first error.
    pub fn tell<E>(&self, except: ClientId, each: Each<'_, E>) -> Result<(), E> {
        let mut rows = Vec::new();
        self.hand_out_process(&mut rows);
        self.hand_out_users(&mut rows);
        self.hand_out_databases(&mut rows);
        self.hand_out_pools(&mut rows);
        self.hand_out_statements(&mut rows);
        rows.iter().try_for_each(|row| each(row, None))?;
        self.tell_clients(except, each)?;
        self.tell_servers(each)
    }

    /// All that [`Core::tell`] tells.
    pub fn hand_out(&self, except: ClientId) -> Vec<(Row, Option<Peer>)> {
        let mut rows = Vec::new();
        let Ok(()) = self.tell(except, &mut |row, peer| {
            rows.push((row.clone(), peer));
            Ok::<(), Infallible>(())
        });
        rows
    }

    /// Goes on with what another process knew, in a core that has been configured and has no clients
    /// yet. Rows of clients and servers come with the ends of their sockets. What can't be understood
    /// closes one connection. Actions follow, when the sockets are ours. Others may come later, see
    /// [`Core::idle_for`]. In the end it has to be said that [`Core::all_are_in`]; no login or
    /// console may go on before that.
    pub fn take_in(&mut self, rows: Vec<(Row, Option<Origin>)>) -> TakenIn {
        let mut known = Known { now: self.now, ..Known::default() };
        let of = |kind| rows.iter().map(|(row, _)| row).filter(move |row| row.kind == kind);
        of(Kind::Process).for_each(|row| self.take_in_process(&row.state));
        of(Kind::Setting).for_each(|row| self.take_in_setting(&row.state));
        of(Kind::User).for_each(|row| self.take_in_user(&row.state));
        of(Kind::Database).for_each(|row| self.take_in_database(&row.state));
        of(Kind::Pool).for_each(|row| self.take_in_pool(&row.state, &mut known));
        of(Kind::Statement).for_each(|row| self.take_in_statement(row, &mut known));
        let mut peers = vec![None; rows.len()];
        let clients = self.take_in_clients(&rows, &mut known, &mut peers);
        let servers = self.take_in_servers(&rows, &mut known, &mut peers);
        self.settle_all_in(clients, &servers, &known);
        self.mark_all();
        TakenIn { peers, known }
    }

    /// Takes in a client that may come late. Until it has come nothing may happen but traffic of
    /// those who are there: it is not counted, not found and not shown.
    pub fn take_in_late(&mut self, row: &Row, from: Origin, taken: &mut TakenIn) -> Option<Peer> {
        let known = &mut taken.known;
        let newcomer = self.take_in_one(row, from, known)?;
        let id = newcomer.id;
        let refusal = newcomer.refusal.clone();
        match refusal.or_else(|| self.settle_in(&newcomer, known).err()) {
            Some(fault) => self.close_client(id, &fault),
            None => self.actions.push_back(Action::Resume(id)),
        }
        Some(Peer::Client(id))
    }

    /// Everybody is there: what nobody has turned out to need is forgotten, and logins may count who
    /// is there. What they are told comes before anything that is still to be done.
    pub fn all_are_in(&mut self, taken: TakenIn) {
        self.report_untracked(&taken.known);
        taken.known.statements.into_values().for_each(|id| self.statements.drop(id));
        self.begin_logins_anew();
    }

    /// Everybody is there: links are tied, and who can't go on is closed.
    fn settle_all_in(
        &mut self,
        mut clients: Vec<client::Newcomer<'_>>,
        servers: &[server::Newcomer],
        known: &Known,
    ) {
        let wanted: BTreeMap<ClientId, u64> =
            clients.iter().map(|newcomer| (newcomer.id, newcomer.server)).collect();
        for newcomer in servers {
            let wanted = known.client(newcomer.client).and_then(|id| wanted.get(&id));
            self.tie_newcomer(newcomer, wanted.copied().unwrap_or(0), known);
        }
        let refused = servers.iter().filter(|newcomer| !self.settle_in_server(newcomer, known));
        let refused: Vec<ServerId> = refused.map(|newcomer| newcomer.id).collect();
        for newcomer in &mut clients {
            if newcomer.refusal.is_none() {
                newcomer.refusal = self.settle_in(newcomer, known).err();
            }
        }
        for newcomer in &clients {
            match &newcomer.refusal {
                Some(fault) => self.close_client(newcomer.id, fault),
                // It may have been on its way to be read again.
                None => self.actions.push_back(Action::Resume(newcomer.id)),
            }
        }
        self.close_newcomers(servers, &refused);
    }
}
