//! Who gets which server, and when. No socket, no clock, no randomness of its own: everything is
//! told through [`Decisions`] and the methods below, and everything that has to be done comes out
//! of [`Core::next_action`].

mod admin;
pub mod ask;
pub mod assign;
pub mod attrs;
mod auth_query;
mod cancel;
#[cfg(test)]
mod cancel_tests;
pub mod carry;
pub mod client;
mod close;
mod connect;
pub mod console;
pub mod database;
mod deallocate;
mod derive;
pub mod face;
pub mod fault;
mod hosts;
mod identify;
pub mod janitor;
pub mod jobs;
mod leave;
mod limits;
mod login;
#[cfg(test)]
mod login_scene;
#[cfg(test)]
mod login_tests;
pub mod memory;
mod method;
pub mod pause;
pub mod peer;
pub mod pool;
mod prepare;
#[cfg(test)]
mod prepare_tests;
mod prove;
mod query;
pub mod reason;
pub mod record;
pub mod release;
mod reload;
pub mod replication;
#[cfg(test)]
mod replication_tests;
pub mod replies;
#[cfg(test)]
mod replies_tests;
mod revoke;
mod rewrite;
mod run;
#[cfg(test)]
mod run_tests;
pub mod secure;
pub mod server;
pub mod statements;
pub mod stats;
mod suspend;
mod takeover;
pub mod timeouts;
pub mod vars;
mod waits;
mod welcome;
mod wishes;

pub use face::{
    Action, Addr, ClientId, Decisions, Facts, Handed, Loss, Origin, Packet, Peer, Run, ServerId,
    Sink, Target, Verdict,
};
pub use jobs::{Attempt, Derivation, Job, JobId, Lane, Outcome};

use crate::base::random::Random;
use crate::base::{Arena, Journal, Level, Links, List, Micros};
use crate::config::hba::Rules;
use crate::config::{DatabaseEntry, PeerEntry, PoolMode, Settings};
use auth_query::{Lookup, LookupKey};
use client::{Client, ClientState, Counted};
use database::{Database, DatabaseId, Source, User, UserId, CONSOLE};
use jobs::Jobs;
use limits::Sharers;
use login::Login;
use pause::{Mode, Shutdown};
use pool::{Pool, PoolId};
use replication::Replication;
use secure::Modes;
use server::{Server, ServerState};
use statements::Statements;
use stats::Period;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use suspend::Suspension;
use vars::{Shared, Tracked, Vars};
use waits::Waiter;

/// What the core has to be told about the process it decides for.
pub struct Surroundings {
    /// The time now.
    pub now: Micros,
    /// Seed of cancel keys, salts and nonces: from the system's source of randomness.
    pub seed: [u8; 32],
    /// User id of this process.
    pub own_uid: u32,
    /// Name of this machine.
    pub host_name: String,
}

/// All clients, servers and pools of a process, and the rules for them.
pub struct Core {
    /// The time of this turn; set by the loop.
    pub now: Micros,
    /// Lines to be logged.
    pub journal: Journal,
    /// The latest line of statistics, until somebody takes it.
    pub status: Option<String>,
    settings: Rc<Settings>,
    /// What SET has changed since the files were read, by the parameter's name, as it was written.
    set_by_hand: BTreeMap<&'static str, String>,
    tracked: Rc<Tracked>,
    shared: Shared,
    databases: Arena<Database>,
    database_names: BTreeMap<Rc<str>, DatabaseId>,
    autodb: Option<String>,
    users: Arena<User>,
    /// The rules of the HBA file.
    rules: Rules,
    user_names: BTreeMap<Rc<str>, UserId>,
    /// What auth_query has found, for logging in to servers of a database.
    fetched: BTreeMap<(DatabaseId, Rc<str>), UserId>,
    lookups: BTreeMap<LookupKey, Lookup>,
    peers: BTreeMap<u32, PeerEntry>,
    pools: Arena<Pool>,
    pool_names: BTreeMap<(Rc<str>, Rc<str>), PoolId>,
    /// The pools of peers that something has been forwarded to.
    peer_pools: BTreeMap<u32, PoolId>,
    /// The process whose place we have taken, while it goes on with its clients.
    elder: Option<PeerEntry>,
    clients: Arena<Client>,
    servers: Arena<Server>,
    login_clients: List<Client>,
    /// The start-up parameter `options` of replication clients that sent it.
    startup_options: BTreeMap<ClientId, Rc<[u8]>>,
    /// Some entry of `[users]` has a client_idle_timeout.
    some_user_idles: bool,
    cancel_keys: BTreeMap<u64, ClientId>,
    actions: VecDeque<Action>,
    jobs: Jobs,
    /// Pools that `turn_end` looks at.
    pending: Vec<PoolId>,
    /// Pools that could not open a connection for max_db_connections or max_user_connections.
    starved: Vec<PoolId>,
    /// Who has nothing to give to a starved pool, as far as this turn has shown.
    exhausted: Vec<Sharers>,
    mode: Mode,
    tls: Modes,
    shutdown: Option<Shutdown>,
    is_draining: bool,
    waiters: Vec<Waiter>,
    /// Consoles that are read again from the end of this turn on.
    stalled: Vec<ClientId>,
    /// Consoles that go on in a later turn, one in each, the first that was left first.
    left_consoles: VecDeque<ClientId>,
    suspension: Option<Suspension>,
    period: Period,
    stats_period: i32,
    random: Random,
    mock_key: [u8; 32],
    own_uid: u32,
    host_name: String,
    last_number: u64,
    statements: Statements,
}

impl Core {
    /// A core that knows nobody yet but the admin database.
    pub fn new(settings: Settings, around: Surroundings) -> Core {
        let mut random = Random::new(around.seed);
        let mut core = Core {
            now: around.now,
            journal: Journal::default(),
            status: None,
            tracked: Rc::new(Tracked::new(&settings.track_extra_parameters)),
            set_by_hand: BTreeMap::new(),
            shared: Shared::default(),
            databases: Arena::default(),
            database_names: BTreeMap::new(),
            autodb: None,
            users: Arena::default(),
            rules: Rules::default(),
            user_names: BTreeMap::new(),
            fetched: BTreeMap::new(),
            lookups: BTreeMap::new(),
            peers: BTreeMap::new(),
            pools: Arena::default(),
            pool_names: BTreeMap::new(),
            peer_pools: BTreeMap::new(),
            elder: None,
            clients: Arena::default(),
            servers: Arena::default(),
            login_clients: List::default(),
            startup_options: BTreeMap::new(),
            some_user_idles: false,
            cancel_keys: BTreeMap::new(),
            actions: VecDeque::new(),
            jobs: Jobs::default(),
            pending: Vec::new(),
            starved: Vec::new(),
            exhausted: Vec::new(),
            mode: Mode::Active,
            tls: Modes::default(),
            shutdown: None,
            is_draining: false,
            waiters: Vec::new(),
            stalled: Vec::new(),
            left_consoles: VecDeque::new(),
            suspension: None,
            period: Period {
                newer: around.now,
                older: Micros(around.now.0.saturating_sub(1_000_000)),
            },
            stats_period: settings.stats_period,
            mock_key: random.bytes(),
            random,
            own_uid: around.own_uid,
            host_name: around.host_name,
            last_number: 0,
            statements: Statements::default(),
            settings: Rc::new(settings),
        };
        let entry = DatabaseEntry {
            dbname: Some(CONSOLE.into()),
            port: Some(core.settings.listen_port.into()),
            user: Some(CONSOLE.into()),
            pool_size: Some(2),
            min_pool_size: Some(0),
            reserve_pool_size: Some(0),
            pool_mode: Some(PoolMode::Statement),
            ..DatabaseEntry::default()
        };
        core.add_database(CONSOLE, entry, Source::Console);
        core.user(CONSOLE);
        core
    }

    /// A client has connected.
    pub fn accepted(&mut self, from: Origin) -> ClientId {
        let number = self.next_number();
        let id = self.clients.insert(Client {
            state: ClientState::Login,
            server: None,
            pool: None,
            last_packet: self.now,
            query_start: None,
            transaction_start: None,
            wait_start: None,
            welcomed: false,
            notified: false,
            counted: Counted::default(),
            replication: Replication::None,
            vars: Vars::new(),
            links: Links::default(),
            user: None,
            user_name: None,
            database_name: None,
            cancel_key: 0,
            cancels: None,
            revoked: None,
            was_revoked: false,
            connect_time: self.now,
            number,
            remote: from.remote,
            local: from.local,
            uid: from.uid,
            login: Some(Box::new(Login::new())),
            console: None,
            names: None,
            tls: None,
        });
        self.login_clients.push_back(&mut self.clients, id);
        id
    }

    /// The next thing to do; called until there is none after each event.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// All events of a turn have been handled: look after the pools in which something may have
    /// changed, in the order of their names.
    pub fn turn_end(&mut self) {
        self.exhausted.clear();
        let mut pending = std::mem::take(&mut self.pending);
        if pending.len() > 1 {
            pending.sort_by_cached_key(|id| {
                self.pools.get(*id).map(|pool| (pool.peer, pool.names.clone()))
            });
        }
        for id in pending.drain(..) {
            if let Some(pool) = self.pools.get_mut(id) {
                pool.pending = false;
                self.serve(id);
            }
        }
        // What marks itself again while being served waits for the next turn.
        pending.append(&mut self.pending);
        self.pending = pending;
        self.check_waits();
        self.actions.extend(self.stalled.drain(..).map(Action::Resume));
    }

    /// True if the next turn has something to do without waiting for an event; see also
    /// [`Core::has_left`].
    pub fn is_pending(&self) -> bool {
        !(self.actions.is_empty() && self.pending.is_empty() && self.stalled.is_empty())
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn touch(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(id) {
            client.last_packet = self.now;
        }
    }

    /// Logs a line about a client.
    fn client_log(&mut self, id: ClientId, level: Level, text: &str) {
        if self.journal.shows(level) {
            let mut line = self.client_prefix(id);
            line.push_str(text);
            self.journal.line(level, line);
        }
    }

    /// Logs a line about a server.
    fn server_log(&mut self, id: ServerId, level: Level, text: &str) {
        if self.journal.shows(level) {
            let mut line = self.server_prefix(id);
            line.push_str(text);
            self.journal.line(level, line);
        }
    }

    /// `C-0x...: db/user@host:port ` (config 6.5).
    fn client_prefix(&self, id: ClientId) -> String {
        let Some(client) = self.clients.get(id) else {
            return String::new();
        };
        let pool = client.pool.and_then(|pool| self.pools.get(pool));
        let at = match client.remote {
            Addr::Inet(at) => at.to_string(),
            Addr::Unix { pid: 0 } => format!("unix:{}", self.settings.listen_port),
            Addr::Unix { pid } => format!("unix({pid}):{}", self.settings.listen_port),
            Addr::Unknown => "(bad-af):0".into(),
        };
        let pointer = client::pointer(client.number);
        if let Some(peer) = pool.and_then(|pool| pool.peer) {
            return format!("C-0x{pointer:x}: peer-{peer}@{at} ");
        }
        let database = pool.map_or("(nodb)", |pool| &*pool.names.0);
        let user = client.user_name.as_deref().unwrap_or("(nouser)");
        format!("C-0x{pointer:x}: {database}/{user}@{at} ")
    }

    /// `S-0x...: db/user@host:port `.
    fn server_prefix(&self, id: ServerId) -> String {
        let Some(server) = self.servers.get(id) else {
            return String::new();
        };
        let Some(pool) = self.pools.get(server.pool) else {
            return String::new();
        };
        let at = match server.remote {
            Addr::Inet(at) => at.to_string(),
            Addr::Unix { .. } => {
                format!("unix:{}", self.server_port(id))
            }
            Addr::Unknown => "(bad-af):0".into(),
        };
        let pointer = client::pointer(server.number);
        if let Some(peer) = pool.peer {
            return format!("S-0x{pointer:x}: peer-{peer}@{at} ");
        }
        let (database, user) = pool.names();
        format!("S-0x{pointer:x}: {database}/{user}@{at} ")
    }
}

/// What the console and tests read.
impl Core {
    /// The settings in force.
    pub fn settings(&self) -> &Rc<Settings> {
        &self.settings
    }
    /// The clients.
    pub fn clients(&self) -> &Arena<Client> {
        &self.clients
    }
    /// The servers.
    pub fn servers(&self) -> &Arena<Server> {
        &self.servers
    }
    /// The pools in the order of their names.
    pub fn pools(&self) -> impl Iterator<Item = (PoolId, &Pool)> {
        self.pool_names.values().filter_map(|id| Some((*id, self.pools.get(*id)?)))
    }
    /// One pool.
    pub fn pool(&self, id: PoolId) -> Option<&Pool> {
        self.pools.get(id)
    }
    /// The databases in the order of their names.
    pub fn databases(&self) -> impl Iterator<Item = (DatabaseId, &Database)> {
        self.database_names.values().filter_map(|id| Some((*id, self.databases.get(*id)?)))
    }
    /// The users in the order of their names.
    pub fn users(&self) -> impl Iterator<Item = (UserId, &User)> {
        self.user_names.values().filter_map(|id| Some((*id, self.users.get(*id)?)))
    }
    /// The configured peers in the order of their ids.
    pub fn peers(&self) -> impl Iterator<Item = (u32, &PeerEntry)> {
        self.peers.iter().map(|(id, entry)| (*id, entry))
    }
    /// Clients that are logging in, oldest first.
    pub fn login_clients(&self) -> Vec<ClientId> {
        self.login_clients.ids(&self.clients)
    }
    /// The prepared statements.
    pub fn statements(&self) -> &Statements {
        &self.statements
    }
    /// Names of the tracked parameters.
    pub fn tracked(&self) -> &Tracked {
        &self.tracked
    }
    /// When the statistics' snapshots were taken.
    pub fn period(&self) -> Period {
        self.period
    }
    /// The database of this name, made from `*` if there is such an entry.
    pub fn database_named(&mut self, name: &str, console: ClientId) -> Option<DatabaseId> {
        self.find_database(name, console)
    }
    /// The database of this name if it exists; who asks for it shows it again (admin 4, lookup B).
    pub fn existing_database(&mut self, name: &str) -> Option<DatabaseId> {
        let id = self.database_names.get(name).copied()?;
        self.databases.get_mut(id)?.idle_since = None;
        Some(id)
    }
    /// One database.
    pub fn database(&self, id: DatabaseId) -> Option<&Database> {
        self.databases.get(id)
    }
}

impl Decisions for Core {
    #[inline]
    fn client_packet(&mut self, id: ClientId, packet: Packet<'_>, sink: &mut Sink) -> Verdict {
        if self.must_wait(id) {
            return Verdict::Wait;
        }
        match self.clients.get(id) {
            Some(client) if client.revoked.is_some() => self.revoked_packet(id, packet, sink),
            Some(client) if client.welcomed => self.query_packet(id, packet, sink),
            Some(_) => self.client_login_packet(id, packet, sink),
            None => Verdict::Stop,
        }
    }

    #[inline]
    fn server_packet(&mut self, id: ServerId, packet: Packet<'_>, sink: &mut Sink) -> Verdict {
        match self.servers.get(id).map(|server| server.state) {
            Some(ServerState::Login) => self.login_packet(id, packet, sink),
            Some(ServerState::ActiveCancel) => Verdict::Drop,
            Some(_) => self.reply_packet(id, packet, sink),
            None => Verdict::Stop,
        }
    }

    fn client_run(&mut self, id: ClientId, data: &[u8], sink: &mut Sink) -> Run {
        self.plain_requests(id, data, sink)
    }

    fn server_run(&mut self, id: ServerId, data: &[u8]) -> usize {
        self.plain_replies(id, data)
    }

    fn server_drained(&mut self, id: ServerId, sink: &mut Sink) {
        self.drained(id, sink);
    }

    fn bad_header(&mut self, from: Peer, raw: &[u8]) {
        match from {
            Peer::Client(id) => self.close_client(id, &login::bad_header(raw)),
            Peer::Server(id) => self.close_server(id, &fault::SERVER_BAD_HEADER, true),
        }
    }

    fn lost(&mut self, peer: Peer, why: Loss) {
        self.connection_lost(peer, why);
    }

    fn server_of(&self, id: ClientId) -> Option<ServerId> {
        self.clients.get(id)?.server
    }

    fn client_of(&self, id: ServerId) -> Option<ClientId> {
        self.servers.get(id)?.client
    }

    fn in_startup(&self, id: ClientId) -> bool {
        self.clients.get(id).is_some()
    }

    fn reads_while_suspended(&self, peer: Peer) -> bool {
        self.reads_while_suspended(peer)
    }

    fn reads_while_unsent(&self, peer: Peer) -> bool {
        match peer {
            Peer::Client(id) => self.speaks_both_ways(id),
            Peer::Server(id) => self.servers.get(id).is_some_and(|server| server.client.is_some()),
        }
    }

    fn max_packet(&self, from: Peer) -> u32 {
        let limit = self.settings.max_packet_size;
        match from {
            Peer::Server(id) => match self.servers.get(id) {
                Some(server) if server.state == ServerState::Login => limit.min(query::WHOLE_MAX),
                _ => limit,
            },
            Peer::Client(_) => limit,
        }
    }

    fn job_done(&mut self, id: JobId, outcome: Outcome) {
        self.end_job(id, outcome);
    }

    fn dialling(&mut self, id: ServerId, remote: Addr) {
        if let Some(server) = self.servers.get_mut(id) {
            server.remote = remote;
        }
    }

    fn unreachable(&mut self, id: ServerId, why: &str) {
        self.server_unreachable(id, why);
    }

    fn address_vanished(&mut self, host: &str, addr: IpAddr) {
        self.leave_address(host, addr);
    }

    fn connected(&mut self, id: ServerId, local: Addr, remote: Addr) {
        self.server_connected(id, local, remote);
    }

    fn secured(&mut self, peer: Peer, facts: Option<Facts>) {
        self.connection_secured(peer, facts);
    }

    fn target(&self, id: ServerId) -> Option<Target> {
        self.server_target(id)
    }
}
