//! What must hold after every turn. Each oracle is a function of its own; each message begins with
//! its name.

use crate::net::{key, Key};
use crate::world::World;
use pgturnstile::core::assign::Launch;
use pgturnstile::core::client::{self, ClientState};
use pgturnstile::core::pool::{Pool, PoolId};
use pgturnstile::core::server::ServerState;
use pgturnstile::core::{ClientId, Decisions, Peer, ServerId};
use std::collections::{BTreeMap, BTreeSet};

/// What the oracles remember from turn to turn.
#[derive(Default)]
pub struct Memory {
    /// Servers that behave, by the number in log lines.
    good: BTreeMap<u64, Key>,
    /// Servers that were linked in the last turn, and to whom.
    links: BTreeMap<ServerId, ClientId>,
    /// Pools that know what to welcome clients with.
    welcome: BTreeSet<(String, String)>,
    /// Servers that were logging in at the end of the last turn.
    logging_in: BTreeSet<ServerId>,
    /// Cancel requests under way by the server that carries them: the server that they are aimed
    /// at, and its client when they were sent.
    cancels: BTreeMap<ServerId, (ServerId, Option<ClientId>)>,
    /// Servers that are to be closed, as of the last turn.
    marked: BTreeSet<ServerId>,
}

impl Memory {
    /// A server has been connected to.
    pub fn meet(&mut self, number: u64, key: Key, good: bool) {
        if good {
            self.good.insert(client::pointer(number), key);
        }
    }

    /// A server may be closed as dirty from now on.
    pub fn excuse(&mut self, key: Key) {
        self.good.retain(|_, known| *known != key);
    }

    /// RECONNECT or RELOAD: what pools know is thrown away.
    pub fn forget_welcomes(&mut self, _database: &str) {
        self.welcome.clear();
    }
}

/// Reasons that a well-behaved server never gives.
const INNOCENT: [&str; 7] = [
    "unexpected reply from server",
    "unknown pkt",
    "bad pkt header",
    "idle server got dirty",
    "SV_IDLE server got dirty",
    "SV_USED server got dirty",
    "client disconnected with queries in progress",
];

/// What clients may be told while nothing goes wrong.
const CALM: [&str; 6] = [
    "transaction blocks not allowed in statement pooling mode",
    "invalid server parameter",
    "server shutting down",
    "pooler is shutting down",
    "server lifetime over",
    "the database system is shutting down",
];

impl World {
    /// Asks all oracles that can be asked after any turn.
    pub fn check(&mut self, ticked: bool) {
        self.check_lists();
        self.check_links();
        self.check_held_back();
        self.check_free_servers();
        self.check_cancels();
        if ticked {
            self.check_waiting();
        }
        self.remember();
    }

    /// Everybody is in exactly the list that its state names.
    fn check_lists(&self) {
        let core = &self.core;
        let (mut clients, mut servers) = (core.login_clients().len(), 0);
        for (id, pool) in core.pools() {
            clients += pool.client_count();
            servers += pool.server_count();
            for (state, name) in ServerState::SHOWN {
                for server in pool.servers(state).ids(core.servers()) {
                    let found = core.servers().get(server);
                    let fits = found.is_some_and(|s| s.state() == state && s.pool() == id);
                    if !fits {
                        self.fail(&format!("LISTS: {server:?} is listed as {name}"));
                    }
                }
            }
            let logging_in = pool.servers(ServerState::Login).len();
            if logging_in > 1 {
                self.fail(&format!("LIMITS: {logging_in} servers of one pool log in at once"));
            }
        }
        if clients != core.clients().len() || servers != core.servers().len() {
            self.fail(&format!(
                "LISTS: {clients} clients and {servers} servers listed, {} and {} exist",
                core.clients().len(),
                core.servers().len()
            ));
        }
    }

    /// Links are mutual; who is active is linked, and nobody else.
    fn check_links(&self) {
        let core = &self.core;
        for (id, server) in core.servers().iter() {
            let active = server.state() == ServerState::Active;
            if active != server.client().is_some() {
                let state = server.state();
                self.fail(&format!("LINKS: {id:?} is {state:?}, client {:?}", server.client()));
            }
            if let Some(client) = server.client() {
                if core.server_of(client) != Some(id) {
                    self.fail(&format!("LINKS: {id:?} has {client:?}, which does not have it"));
                }
                let new = self.memory.links.get(&id) != Some(&client);
                if new && self.memory.marked.contains(&id) {
                    self.fail(&format!("LINKS: {id:?} is to be closed, but got {client:?}"));
                }
            }
        }
        for (id, client) in core.clients().iter() {
            if let Some(server) = client.server() {
                if core.client_of(server) != Some(id) {
                    self.fail(&format!("LINKS: {id:?} has {server:?}, which does not have it"));
                }
            }
        }
    }

    /// A client that is not read waits in the queue, or for its server to be aligned.
    fn check_held_back(&self) {
        for (id, client) in self.core.clients().iter() {
            if !self.net.holds_back(id) || client.state() == ClientState::Waiting {
                continue;
            }
            let server = client.server().and_then(|id| self.core.servers().get(id));
            if !server.is_some_and(|server| server.is_aligning()) {
                self.fail(&format!(
                    "WAKE-UP: {id:?} is held back in state {:?} with server {:?}",
                    client.state(),
                    client.server()
                ));
            }
        }
    }

    /// A server that the core takes for free has nothing open and nothing under way.
    fn check_free_servers(&self) {
        for (id, server) in self.core.servers().iter() {
            if !matches!(server.state(), ServerState::Idle | ServerState::Used) {
                continue;
            }
            let Some(model) = self.servers.get(&key(Peer::Server(id))) else {
                continue;
            };
            if model.is_gone() || model.nature != crate::server::Nature::Good {
                continue;
            }
            let line = model.line.borrow();
            if !model.is_free() || model.is_asked() {
                self.fail(&format!("HEART: {id:?} counts as free, but is at work"));
            }
            if line.stirs() && !model.chatty {
                self.fail(&format!("HEART: {id:?} counts as free, but replies are under way"));
            }
        }
    }

    /// While a cancel request is under way nobody else gets the server that it is aimed at.
    fn check_cancels(&mut self) {
        let mut cancels = BTreeMap::new();
        for (id, server) in self.core.servers().iter() {
            let carrier = self.servers.get(&key(Peer::Server(id)));
            let aim = carrier.and_then(|carrier| carrier.carried_key());
            let (ServerState::ActiveCancel, Some(aim)) = (server.state(), aim) else {
                continue;
            };
            let model = self.servers.iter().find(|(_, model)| model.key == aim);
            let Some(Peer::Server(target)) = model.map(|(key, _)| crate::net::peer_of(*key)) else {
                continue;
            };
            let Some(aimed_at) = self.core.servers().get(target) else {
                continue;
            };
            let known = self.memory.cancels.get(&id).copied();
            let (_, first) = known.unwrap_or((target, aimed_at.client()));
            cancels.insert(id, (target, first));
            let free = matches!(aimed_at.state(), ServerState::Idle | ServerState::Used);
            let passed_on = aimed_at.client().is_some() && aimed_at.client() != first;
            if free || passed_on {
                let text = format!("CANCEL: {target:?} is given away while a request is under way");
                self.fail(&text);
            }
        }
        self.memory.cancels = cancels;
    }

    /// Somebody waits only for a reason.
    fn check_waiting(&self) {
        for (id, pool) in self.core.pools() {
            let waiting = pool.clients(ClientState::Waiting).len();
            if waiting == 0 || self.is_pool_paused(pool) || pool.is_console() {
                continue;
            }
            if let Some(why) = self.no_reason(id, pool, waiting) {
                let names = pool.names();
                self.fail(&format!("WAKE-UP: {waiting} clients of {names:?} wait: {why}"));
            }
        }
    }

    fn is_pool_paused(&self, pool: &Pool) -> bool {
        let database = self.core.database(pool.database());
        self.is_paused() || database.is_some_and(|database| database.is_paused())
    }

    /// What is wrong if clients of this pool wait.
    fn no_reason(&self, id: PoolId, pool: &Pool, waiting: usize) -> Option<String> {
        let count = |state| pool.servers(state).len();
        let (idle, used) = (count(ServerState::Idle), count(ServerState::Used));
        let tested = count(ServerState::Tested);
        let known = self.memory.knows(pool);
        let cancels = pool.clients(ClientState::WaitingCancel).len();
        if cancels > 0 {
            // Cancel requests come first, until they are through or time out.
            return None;
        }
        if idle > 0 && known {
            return Some(format!("{idle} servers are idle"));
        }
        if used > 0 && waiting > tested && known {
            return Some(format!("{used} servers could be checked"));
        }
        let launch = self.core.may_launch(id);
        if waiting > idle + used + tested && launch == Launch::Yes {
            return Some("a connection could be opened".into());
        }
        let states = ServerState::SHOWN;
        let total: usize = states.iter().map(|(state, _)| count(*state)).sum();
        if total == 0 && launch == Launch::No(pgturnstile::core::assign::Why::PoolFull) {
            return Some("the pool counts as full without a server".into());
        }
        None
    }

    /// A connection is opened only within the limits (pooling 2.3).
    pub fn check_launch(&self, id: ServerId) {
        let Some(server) = self.core.servers().get(id) else {
            return;
        };
        let Some(pool) = self.core.pool(server.pool()) else {
            return;
        };
        let size = usize::try_from(self.core.effective(pool).pool_size()).unwrap_or(0);
        let cancels = pool.clients(ClientState::WaitingCancel).len();
        let carriers = pool.servers(ServerState::ActiveCancel).len();
        if cancels > 0 && carriers < size {
            return;
        }
        let limit = if cancels > 0 { 2 * size } else { size };
        let total = pool.server_count();
        if size > 0 && total > limit && self.memory.knows(pool) {
            self.fail(&format!(
                "LIMITS: connection {total} of {:?}, where {limit} are allowed",
                pool.names()
            ));
        }
    }

    /// PAUSE is answered only when nothing is at work.
    pub fn check_pause_answer(&self, peer: Peer, bytes: &[u8]) {
        let answer = b"C\0\0\0\nPAUSE\0";
        if !self.is_paused() || !bytes.starts_with(answer) {
            return;
        }
        let Peer::Client(id) = peer else { return };
        let Some(client) = self.clients.iter().find(|client| client.id == id) else {
            return;
        };
        if client.commands.last().is_none_or(|last| last != "PAUSE") {
            return;
        }
        for (_, pool) in self.core.pools() {
            for state in [ServerState::Active, ServerState::Tested] {
                if !pool.servers(state).is_empty() {
                    self.fail(&format!("PAUSE: answered, but {:?} has {state:?}", pool.names()));
                }
            }
        }
    }

    /// While nothing goes wrong, clients are closed for few reasons only.
    pub fn check_told(&self, told: Option<&str>) {
        if let Some(told) = told {
            if !CALM.contains(&told) && !told.starts_with("no such database") {
                self.fail(&format!("REASONS: a client was told: {told}"));
            }
        }
    }

    /// The journal never blames a server that behaves.
    pub fn read_journal(&mut self) {
        while let Some((_, line)) = self.core.journal.pop() {
            self.trace(|_| format!("    {line}"));
            if line.contains("impossible change of state") {
                self.fail(&format!("STATES: {line}"));
            }
            let Some((prefix, reason)) = line.split_once("closing because: ") else {
                continue;
            };
            let reason = reason.split(" (age=").next().unwrap_or_default();
            let pointer = prefix.strip_prefix("S-0x").and_then(|rest| rest.split(':').next());
            let pointer = pointer.and_then(|hex| u64::from_str_radix(hex, 16).ok());
            let good = pointer.is_some_and(|pointer| self.memory.good.contains_key(&pointer));
            if good && INNOCENT.contains(&reason) {
                self.fail(&format!("BLAME: a server that behaves: {line}"));
            }
        }
    }

    fn remember(&mut self) {
        self.memory.links.clear();
        self.memory.marked.clear();
        for (id, server) in self.core.servers().iter() {
            if let Some(client) = server.client() {
                self.memory.links.insert(id, client);
            }
            if server.close_needed() {
                self.memory.marked.insert(id);
            }
        }
        let mut logging_in = BTreeSet::new();
        for (id, server) in self.core.servers().iter() {
            let Some(pool) = self.core.pool(server.pool()) else {
                continue;
            };
            match server.state() {
                ServerState::Login => {
                    logging_in.insert(id);
                }
                ServerState::ActiveCancel => {}
                _ if self.memory.logging_in.contains(&id) && !server.close_needed() => {
                    let (database, user) = pool.names();
                    let name = (database.to_owned(), user.to_owned());
                    self.memory.welcome.insert(name);
                }
                _ => {}
            }
        }
        self.memory.logging_in = logging_in;
    }
}

impl Memory {
    fn knows(&self, pool: &Pool) -> bool {
        let (database, user) = pool.names();
        self.welcome.contains(&(database.to_owned(), user.to_owned()))
    }
}
