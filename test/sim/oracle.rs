//! What must hold after every turn. Each oracle is a function of its own; each message begins with
//! its name.

use crate::causes::Facts;
use crate::moved::Moved;
use crate::net::{key, Key};
use crate::timeouts::When;
use crate::world::World;
use pgturnstile::base::Micros;
use pgturnstile::core::assign::{Launch, Why};
use pgturnstile::core::client::{self, ClientState};
use pgturnstile::core::pool::{Pool, PoolId};
use pgturnstile::core::server::{Server, ServerState};
use pgturnstile::core::{ClientId, Decisions, Peer, ServerId};
use std::collections::{BTreeMap, BTreeSet};

/// What the oracles remember from turn to turn.
#[derive(Default)]
pub struct Memory {
    /// Servers that behave, by the number in log lines.
    good: BTreeMap<u64, Key>,
    /// Servers that were linked in the last turn, and to whom.
    links: BTreeMap<ServerId, ClientId>,
    /// Cancel requests under way by the server that carries them: the server that they are aimed
    /// at, and its client when they were sent.
    cancels: BTreeMap<ServerId, (ServerId, Option<ClientId>)>,
    /// Servers that are to be closed, as of the last turn.
    marked: BTreeSet<ServerId>,
    /// Servers by the pointer in log lines.
    pub servers: BTreeMap<u64, ServerId>,
    /// When each pool last opened a connection.
    pub launches: BTreeMap<PoolId, Micros>,
    /// Pools that must not try again yet, as of the last turn with a tick.
    unreachable: BTreeSet<PoolId>,
    /// Since when clients have been in their queue, as of the last turn.
    pub waits: BTreeMap<ClientId, Micros>,
    /// Since when clients had been in it that were called and had no server at the end of the last
    /// turn.
    pub called: BTreeMap<ClientId, Micros>,
    /// Pools in which cancel requests waited at the end of the last turn.
    pub canceled: BTreeSet<PoolId>,
    /// Clients that have been told that they wait, and since when they did.
    pub noticed: BTreeMap<ClientId, Micros>,
    /// The last command of each console.
    pub commands: BTreeMap<ClientId, String>,
    /// Consoles whose last command has not been run.
    pub unrun: BTreeSet<ClientId>,
    /// Databases that were paused at the end of the last turn.
    pub paused: BTreeSet<String>,
    /// A shutdown was under way at the end of the last turn.
    pub in_shutdown: bool,
    /// Clients that were logged in at the end of the last turn.
    pub inside: BTreeSet<ClientId>,
}

impl Memory {
    /// Another core goes on.
    pub fn follow(&mut self, moved: &Moved) {
        moved.apply(&mut self.good);
        moved.apply(&mut self.links);
        moved.apply(&mut self.cancels);
        moved.apply(&mut self.marked);
        moved.apply(&mut self.servers);
        moved.apply(&mut self.launches);
        moved.apply(&mut self.unreachable);
        moved.apply(&mut self.waits);
        moved.apply(&mut self.called);
        moved.apply(&mut self.canceled);
        moved.apply(&mut self.noticed);
        moved.apply(&mut self.commands);
        moved.apply(&mut self.unrun);
        moved.apply(&mut self.inside);
    }

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

    /// A connection has been begun.
    pub fn launched(&mut self, id: ServerId, server: &Server) {
        self.servers.insert(client::pointer(server.number()), id);
        self.launches.insert(server.pool(), server.connect_time());
    }

    /// True if this server behaves.
    pub fn is_good(&self, pointer: u64) -> bool {
        self.good.contains_key(&pointer)
    }

    /// True if this server was to be closed at the end of the last turn.
    pub fn is_marked(&self, id: ServerId) -> bool {
        self.marked.contains(&id)
    }

    /// True if these two were not linked at the end of the last turn.
    pub fn is_new_link(&self, server: ServerId, client: ClientId) -> bool {
        self.links.get(&server) != Some(&client)
    }
}

impl World {
    /// Asks all oracles that can be asked after any turn.
    pub fn check(&mut self, ticked: bool, at_rest: bool) {
        self.check_lists();
        self.check_counts();
        self.check_links();
        self.check_held_back();
        self.check_free_servers();
        self.check_roles();
        self.check_cancels();
        self.check_clocks();
        self.check_statistics();
        self.check_statements();
        self.check_admissions();
        self.check_order();
        self.check_logins();
        self.check_paused(at_rest);
        if at_rest {
            self.check_waiting(ticked);
            self.check_pause_waiters();
        }
        self.check_close_waiters();
        self.check_suspended(at_rest);
        self.check_exit();
        self.remember(ticked);
    }

    /// Everybody is in exactly the list that its state names.
    fn check_lists(&self) {
        let core = &self.core;
        let (mut clients, mut servers) = self.in_peer_pools();
        clients += core.login_clients().len();
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

    /// A client that is not read waits in the queue, for a job, for its server to be aligned, or, as a
    /// console, for an answer, be it the end of the process.
    fn check_held_back(&self) {
        for (id, client) in self.core.clients().iter() {
            let waits = client.state() == ClientState::Waiting || client.is_looked_up();
            let waits = waits || self.core.awaits_job(id);
            if !self.net.holds_back(id) || waits {
                continue;
            }
            let server = client.server().and_then(|id| self.core.servers().get(id));
            let awaits_answer = self.exit.is_some()
                || self.pausing.contains(&id)
                || self.closing.contains_key(&id)
                || self.suspender == Some(id);
            if !awaits_answer && !server.is_some_and(|server| server.is_aligning()) {
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

    /// Somebody waits only for a reason, also between the janitor's visits.
    fn check_waiting(&self, ticked: bool) {
        for (id, pool) in self.core.pools() {
            let waiting = pool.clients(ClientState::Waiting).len();
            if waiting == 0 || self.is_paused_at(pool.names().0) || pool.is_console() {
                continue;
            }
            if let Some(why) = self.no_reason(id, pool, ticked) {
                let pool = self.describe(id);
                self.fail(&format!("WAKE-UP: {waiting} clients wait: {why}; {pool}"));
            }
        }
    }

    /// What is wrong if clients of this pool wait.
    fn no_reason(&self, id: PoolId, pool: &Pool, ticked: bool) -> Option<String> {
        let count = |state| pool.servers(state).len();
        let waiting = pool.clients(ClientState::Waiting).len();
        let (idle, used) = (count(ServerState::Idle), count(ServerState::Used));
        let tested = count(ServerState::Tested);
        let known = self.knows(pool);
        let cancels = pool.clients(ClientState::WaitingCancel).len();
        if cancels > 0 {
            // Cancel requests come first, until they are through or time out.
            return None;
        }
        // Whoever was called and does not read what it is told takes its server later.
        let called = self.called(pool);
        if idle > called && known {
            return Some(format!("{idle} servers are idle, {called} clients are called"));
        }
        if used > 0 && waiting > tested && known {
            return Some(format!("{used} servers could be checked"));
        }
        let launch = self.core.may_launch(id);
        let more = waiting > idle + used + tested;
        let soon = !ticked && self.memory.unreachable.contains(&id);
        if more && !soon && self.could_open(id, pool, ticked) {
            return Some(format!("a connection could be opened, the core says {launch:?}"));
        }
        if more && ticked && matches!(launch, Some(Launch::Yes | Launch::Reserve)) {
            return Some(format!("the core says {launch:?}"));
        }
        let states = ServerState::SHOWN;
        let total: usize = states.iter().map(|(state, _)| count(*state)).sum();
        if total == 0 && launch == Some(Launch::No(Why::PoolFull)) {
            return Some("the pool counts as full without a server".into());
        }
        None
    }

    /// Clients of a pool that have left its queue and not taken a server.
    pub fn called(&self, pool: &Pool) -> usize {
        let active = pool.clients(ClientState::Active).ids(self.core.clients()).into_iter();
        let clients = active.filter_map(|id| self.core.clients().get(id));
        clients.filter(|c| c.server().is_none() && c.query_start().is_some()).count()
    }

    /// True if a pool knows what to welcome clients with.
    pub fn knows(&self, pool: &Pool) -> bool {
        let (database, user) = pool.names();
        self.watch.borrow().welcome.contains(&(database.to_owned(), user.to_owned()))
    }

    /// What the pools of a database (of all, without a name) know is thrown away.
    pub fn forget(&self, database: &str) {
        let mut watch = self.watch.borrow_mut();
        watch.welcome.retain(|(name, _)| !database.is_empty() && name != database);
    }

    fn remember(&mut self, ticked: bool) {
        self.note_unused(When::End);
        self.remember_clients();
        self.remember_pools(ticked);
        self.remember_servers();
        self.watch.borrow_mut().turn_over(&self.core);
        self.facts = Facts::default();
    }

    fn remember_clients(&mut self) {
        let memory = &mut self.memory;
        let mut waiting = BTreeSet::new();
        let mut places = std::mem::take(&mut memory.waits);
        places.append(&mut memory.called);
        memory.inside.clear();
        for (id, client) in self.core.clients().iter() {
            match client.state() {
                ClientState::Waiting => {
                    memory.waits.extend(client.wait_start().map(|at| (id, at)));
                    waiting.insert(id);
                    memory.inside.insert(id);
                }
                ClientState::Active => {
                    // Who was called has its place until it takes its server.
                    let called = client.server().is_none() && client.query_start().is_some();
                    let since = places.get(&id).copied().unwrap_or(self.now);
                    memory.called.extend(called.then_some((id, since)));
                    memory.inside.insert(id);
                }
                _ => {}
            }
        }
        memory.noticed.retain(|id, _| waiting.contains(id));
        self.pausing.retain(|id| self.core.clients().get(*id).is_some());
        self.closing.retain(|id, _| self.core.clients().get(*id).is_some());
    }

    fn remember_pools(&mut self, ticked: bool) {
        self.memory.paused = self
            .core
            .databases()
            .map(|(_, database)| database.name().to_string())
            .filter(|name| self.is_paused_at(name))
            .collect();
        self.memory.in_shutdown = self.core.shutdown().is_some();
        let mut names = BTreeSet::new();
        let mut unreachable = BTreeSet::new();
        self.memory.canceled.clear();
        for (id, pool) in self.core.pools() {
            if !pool.clients(ClientState::WaitingCancel).is_empty() {
                self.memory.canceled.insert(id);
            }
            names.insert((pool.names().0.to_owned(), pool.names().1.to_owned()));
            let still = !ticked && self.memory.unreachable.contains(&id);
            if still || self.core.may_launch(id) == Some(Launch::No(Why::ServerUnreachable)) {
                unreachable.insert(id);
            }
        }
        self.memory.unreachable = unreachable;
        self.watch.borrow_mut().welcome.retain(|name| names.contains(name));
        self.memory.servers.retain(|_, id| self.core.servers().get(*id).is_some());
        self.memory.launches.retain(|id, _| self.core.pool(*id).is_some());
    }

    fn remember_servers(&mut self) {
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
    }
}
