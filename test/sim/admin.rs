//! The administrator: signals, RELOAD, and a console that speaks to the real console floor.

use crate::plan::Plan;
use crate::talk;
use crate::world::World;
use pgturnstile::base::{Micros, Objects};
use pgturnstile::config::Settings;
use pgturnstile::console::{self, Around, Listening};
use pgturnstile::core::client::ClientState;
use pgturnstile::core::pause::Signal;
use pgturnstile::core::pool::Pool;
use pgturnstile::core::{ClientId, Peer};
use pgturnstile::net::conn::Pending;
use pgturnstile::net::resolve::{Host, Zone};
use std::collections::BTreeSet;

struct Nowhere;

impl Around for Nowhere {
    fn set_up_tls(&self, _: &Settings) -> Result<(), String> {
        Ok(())
    }
    fn time_text(&self, at: Micros) -> String {
        at.secs().to_string()
    }
    fn dns_hosts(&self) -> Vec<Host> {
        Vec::new()
    }
    fn dns_zones(&self) -> Vec<Zone> {
        Vec::new()
    }
    fn pending(&self, _: Peer) -> Pending {
        Pending::default()
    }
    fn connection_size(&self) -> usize {
        0
    }
    fn buffers(&self) -> Objects {
        Objects::default()
    }
    fn descriptor(&self, _: Peer) -> Option<i32> {
        None
    }
    fn listening(&self) -> Vec<Listening> {
        Vec::new()
    }
}

/// A command that ends with a number.
const LIMIT: &str = "SET max_prepared_statements =";

/// What consoles say: so often, and whether it is left out of calm runs.
const COMMANDS: [(usize, &str, bool); 28] = [
    (8, "PAUSE", false),
    (12, "RESUME", false),
    (8, "SUSPEND", false),
    (4, "PAUSE db0", false),
    (4, "PAUSE db1", false),
    (6, "RESUME db0", false),
    (6, "RESUME db1", false),
    (2, "DISABLE db0", false),
    (4, "ENABLE db0", false),
    (2, "RECONNECT", true),
    (2, "RECONNECT db0", true),
    (3, "WAIT_CLOSE", false),
    (2, "WAIT_CLOSE db0", false),
    (1, "KILL", true),
    (2, "KILL db0", true),
    (2, "KILL db1", true),
    (3, "RELOAD", true),
    (8, "KILL_CLIENT", true),
    (1, "SHOW POOLS", false),
    (1, "SHOW CLIENTS", false),
    (1, "SHOW SERVERS", false),
    (1, "SHOW DATABASES", false),
    (1, "SHOW LISTS", false),
    (1, "NONSENSE", false),
    (10, LIMIT, false),
    (1, "SHUTDOWN WAIT_FOR_CLIENTS", false),
    (1, "SHUTDOWN WAIT_FOR_SERVERS", false),
    (1, "SHUTDOWN", true),
];

impl World {
    /// A console gives a command.
    pub fn console_speaks(&mut self, at: usize) {
        if !self.clients[at].expected.is_empty() || !self.dice.chance(30) || self.executes(at) {
            return;
        }
        let weights = COMMANDS.map(|(weight, text, wild)| (weight, (text, wild)));
        let (mut text, mut wild) = self.dice.weighted(&weights);
        if self.plan.brisk && self.dice.chance(80) {
            (text, wild) = (LIMIT, false);
        }
        let ends = text.starts_with("SHUTDOWN");
        if wild && self.plan.calm || ends && !self.dice.chance(40) {
            return;
        }
        let mut text = text.to_owned();
        if text == "KILL_CLIENT" {
            // Cancel requests have no other end that somebody could bring about.
            let cancels = self.dice.chance(50);
            let clients = self.core.clients().iter();
            let wanted =
                clients.filter(|(_, c)| !cancels || c.state() == ClientState::ActiveCancel);
            let numbers: Vec<u64> = wanted.map(|(_, client)| client.number()).collect();
            if numbers.is_empty() {
                return;
            }
            text = format!("KILL_CLIENT {}", self.dice.pick(&numbers));
        }
        if text == LIMIT {
            text = format!("{LIMIT} '{}'", self.dice.pick(self.plan.limits));
        }
        // What is refused by Parse would need a Sync.
        let prepares = text != "NONSENSE" && !text.starts_with(LIMIT);
        if self.dice.chance(50) && prepares {
            self.trace(|world| format!("client {} prepares {text}", world.clients[at].number));
            return talk::prepare(&mut self.clients[at], &text);
        }
        self.command(at, &text);
    }

    /// A console executes what it has prepared, if it has.
    fn executes(&mut self, at: usize) -> bool {
        let Some(text) = self.clients[at].prepared.take() else { return false };
        self.trace(|world| format!("client {} executes {text}", world.clients[at].number));
        self.note_command(at, text);
        let more = self.dice.pick(&[&[][..], &["SHOW STATE"], &["SHOW LISTS", "NONSENSE"]]);
        talk::execute(&mut self.clients[at], more);
        true
    }

    fn note_command(&mut self, at: usize, text: String) {
        let id = self.clients[at].id;
        self.memory.commands.insert(id, text);
        self.memory.unrun.insert(id);
    }

    /// A console says this.
    pub fn command(&mut self, at: usize, text: &str) {
        self.trace(|world| format!("client {} says {text}", world.clients[at].number));
        self.note_command(at, text.to_owned());
        self.clients[at].prepared = None;
        talk::command(&mut self.clients[at], text);
    }

    /// Runs what a console has asked for.
    pub fn console(&mut self, id: ClientId) {
        if self.core.clients().get(id).is_none() {
            // It has talked nonsense right behind its command.
            return;
        }
        if !self.memory.unrun.remove(&id) {
            // It prepares a command, or goes on behind one.
            console::run(&mut self.core, &Nowhere, id);
            return;
        }
        let command = self.memory.commands.get(&id).cloned().unwrap_or_default();
        self.trace(|_| format!("  console {command}"));
        let (word, name) = command.split_once(' ').unwrap_or((&command, ""));
        let active = !self.is_paused() && self.suspended.is_none();
        match word {
            "PAUSE" => {
                self.facts.paused = true;
                // Whoever asks when the end is decided gets no answer any more.
                if self.exit.is_none() {
                    self.pausing.insert(id);
                }
            }
            "SUSPEND" if active => self.suspender = Some(id),
            "WAIT_CLOSE" if self.exit.is_none() => {
                self.closing.insert(id, name.to_owned());
            }
            "RESUME" => self.facts.resumed = true,
            "RECONNECT" => {
                self.facts.replaced = true;
                self.forget(name);
            }
            "KILL" if active => {
                self.facts.paused = true;
                let pools: BTreeSet<String> = self
                    .core
                    .pools()
                    .map(|(_, pool)| pool.names().0.to_owned())
                    .filter(|database| name.is_empty() || name == database)
                    .filter(|database| database != "pgbouncer")
                    .collect();
                self.facts.removed.extend(pools);
                self.forget(name);
            }
            "KILL_CLIENT" => self.facts.killed = true,
            "SHUTDOWN" => {
                self.facts.paused = true;
                self.facts.must_exit |= name.is_empty();
            }
            _ => {}
        }
        let before = self.others();
        console::run(&mut self.core, &Nowhere, id);
        self.check_spared(&before);
        if let Some(limit) = command.strip_prefix(LIMIT) {
            let limit = limit.trim_matches([' ', '\'']);
            self.set_limit(limit.parse().unwrap_or_default());
        }
    }

    /// Those who are no business of a removal that has just been noted.
    fn others(&self) -> BTreeSet<ClientId> {
        let watch = self.watch.borrow();
        let clients = self.core.clients().iter();
        let concerned = |id: &ClientId| {
            let opening = watch.openings.get(id);
            let pool = self.core.clients().get(*id).and_then(|client| client.pool());
            let pool = pool.and_then(|pool| self.core.pool(pool));
            if let Some(peer) = pool.and_then(Pool::peer) {
                return !self.plan.peers.contains_key(&peer);
            }
            let by_pool = pool.map(|pool| pool.names().0);
            let own = opening.map(|names| &*names.0);
            let is_removed =
                |name: Option<&str>| name.is_some_and(|name| self.facts.removed.contains(name));
            // It may have to do with two databases while its user is looked up.
            is_removed(by_pool.or(own)) || self.is_looked_up(*id) && is_removed(own)
        };
        clients.map(|(id, _)| id).filter(|id| !concerned(id)).collect()
    }

    pub fn is_looked_up(&self, id: ClientId) -> bool {
        self.core.clients().get(id).is_some_and(|client| client.is_looked_up())
    }

    /// A removal hits nobody else, and all whom it has to.
    fn check_spared(&self, others: &BTreeSet<ClientId>) {
        if self.facts.killed {
            return;
        }
        let now: BTreeSet<ClientId> = self.core.clients().iter().map(|(id, _)| id).collect();
        if let Some(id) = others.difference(&now).next() {
            self.fail(&format!("RELOAD: {id:?} is closed without need"));
        }
        for (id, _) in self.core.pools() {
            let name = self.core.pool(id).map_or("", |pool| pool.names().0);
            let gone = !self.plan.databases.iter().any(|database| database.name == name);
            if gone && name != "pgbouncer" {
                self.fail(&format!("RELOAD: {name} is removed, but has a pool"));
            }
        }
        let listed = |name: &String| self.plan.databases.iter().any(|known| known.name == *name);
        let dropped = self.facts.removed.iter().any(|name| !listed(name));
        // KILL does not concern whoever is still proving who it is.
        let proves = |id: &&ClientId| {
            let client = self.core.clients().get(**id);
            client.is_some_and(|client| client.pool().is_none()) && !dropped
        };
        let mut left = now.difference(others);
        let spared = left.find(|id| !proves(id) && !self.is_looked_up(**id));
        if let Some(id) = spared.filter(|_| !self.facts.removed.is_empty()) {
            let state = self.core.clients().get(*id).map(|client| client.state());
            let text =
                format!("RELOAD: the database of {id:?} ({state:?}) is removed, but it lives");
            self.fail(&text);
        }
    }

    /// A new configuration; `console` asked for it.
    pub fn reload(&mut self, console: Option<ClientId>) {
        self.judge_admissions();
        self.facts.reloaded = true;
        self.files.limit = None;
        let old = self.plan.clone();
        let what = match self.settling {
            true => "nothing is new".into(),
            false => self.plan.edit(&mut self.dice),
        };
        self.trace(|_| format!("reload: {what}"));
        for database in &old.databases {
            let name = database.name.as_str();
            let new = self.plan.databases.iter().find(|known| known.name == name);
            match new {
                None => {
                    self.facts.removed.insert(name.to_owned());
                    self.forget(name);
                }
                Some(new) if Plan::recycles(&database.entry, &new.entry) => {
                    self.facts.replaced = true;
                    self.forget(name);
                }
                Some(_) => {}
            }
        }
        // What a server was told about resets when it was met may not hold any more.
        for server in self.servers.values_mut() {
            server.is_reset = false;
        }
        self.note_unlisted();
        let before = self.others();
        self.core.configure(self.plan.config(), true);
        self.core.set_users(self.plan.user_list());
        self.check_spared(&before);
        self.note_tracking(old.settings.max_prepared_statements);
        if let Some(id) = console {
            console::reload_done(&mut self.core, id, true);
        }
    }

    /// A signal, or a reload.
    pub fn administrate(&mut self) {
        let choice = self.dice.below(if self.plan.calm { 40 } else { 80 });
        match choice {
            0..=19 if self.is_paused() || self.suspended.is_some() => self.signal(Signal::Resume),
            0..=9 => self.signal(Signal::Pause),
            10..=29 => {
                self.facts.resumed = true;
                let databases: Vec<_> = self.core.databases().map(|(id, _)| id).collect();
                for id in databases {
                    self.core.resume_database(id);
                }
            }
            30 => self.signal(Signal::Terminate),
            31 => self.signal(Signal::Interrupt),
            32..=39 => {}
            40 => self.signal(Signal::Quit),
            41..=69 => self.reload(None),
            _ => {
                self.trace(|_| "reconnect".into());
                self.facts.replaced = true;
                self.forget("");
                self.core.reconnect(None);
            }
        }
    }

    /// A signal arrives.
    pub fn signal(&mut self, signal: Signal) {
        self.trace(|_| format!("signal: {signal:?}"));
        let again = self.core.shutdown().is_some();
        match signal {
            Signal::Resume => self.facts.resumed = true,
            Signal::Pause => self.facts.paused = true,
            Signal::Quit => self.facts.must_exit = true,
            Signal::Terminate | Signal::Interrupt => {
                let dies = self.suspended.is_some() && !again;
                self.facts.paused = true;
                self.facts.must_exit |= again || dies;
                self.facts.exit_code = u8::from(dies);
            }
        }
        self.core.signalled(signal);
    }

    /// The pooler answers a console.
    pub fn note_answer(&mut self, peer: Peer, bytes: &[u8]) {
        let Peer::Client(id) = peer else { return };
        if matches!(bytes.first(), Some(b'C' | b'E')) {
            self.pausing.remove(&id);
            self.closing.remove(&id);
            self.suspender = self.suspender.filter(|console| *console != id);
        }
    }
}
