//! The world around a core: model clients, model servers, time, and the pooler's net between them.

use crate::auth_query;
use crate::causes::Facts;
use crate::client::Client;
use crate::dice::Dice;
use crate::hosts;
use crate::line::{self, Line};
use crate::net::{key, Key, Net};
use crate::oracle::Memory;
use crate::plan::Plan;
use crate::server::{Effect, Nature, Server};
use crate::successor::Files;
use crate::suspend::Suspension;
use crate::timeouts::{Clocks, When};
use crate::watch::Shared;
use pgturnstile::base::Micros;
use pgturnstile::config::{PoolMode, SslMode};
use pgturnstile::core::{
    Action, Addr, ClientId, Core, Decisions, Job, JobId, Loss, Origin, Peer, ServerId, Surroundings,
};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

thread_local! {
    /// The turn that is being played, for the report of a failure.
    pub static STEP: Cell<u64> = const { Cell::new(0) };
}

/// Time between ticks, in microseconds.
const TICK: u64 = 333_333;

/// Everything.
pub struct World {
    pub core: Core,
    pub net: Box<dyn Net>,
    pub plan: Plan,
    pub dice: Dice,
    pub clients: Vec<Client>,
    pub servers: BTreeMap<Key, Server>,
    /// Connections that are being opened.
    pub dials: Vec<ServerId>,
    /// Those of them whose host names are still being looked up.
    pub lookups: BTreeSet<ServerId>,
    /// Clients whose queries somebody wanted to cancel.
    pub targets: BTreeSet<u32>,
    pub now: Micros,
    next_tick: Micros,
    pub next_number: u32,
    next_key: u64,
    pub exit: Option<u8>,
    /// From here on nothing goes wrong any more.
    pub settling: bool,
    /// Everything paused is resumed while the run settles.
    pub resumes: bool,
    /// TCP listeners are open.
    listening: bool,
    pub memory: Memory,
    pub facts: Facts,
    pub clocks: Clocks,
    pub watch: Shared,
    /// Which host is a primary, which a standby.
    pub roles: hosts::Roles,
    /// Who can be looked up.
    pub people: auth_query::Shared,
    /// Consoles that await the answer to PAUSE.
    pub pausing: BTreeSet<ClientId>,
    /// Consoles that wait until no server of a database, or of all, has to be replaced.
    pub closing: BTreeMap<ClientId, String>,
    /// The SUSPEND that is in force, and the console that awaits its answer.
    pub suspended: Option<Suspension>,
    pub suspender: Option<ClientId>,
    /// Jobs that have not ended.
    pub jobs: Vec<(JobId, Job)>,
    /// Those of them that nobody waits for.
    pub jobs_left: Vec<JobId>,
    /// In so many of a hundred turns a successor takes over; drawn by dice of their own.
    pub handoffs: usize,
    pub successor_dice: Dice,
    /// What their files say.
    pub files: Files,
    /// Model servers that old processes have left.
    pub left: u32,
    pub tracing: bool,
}

/// User id that the pooler runs under.
pub const OWN_UID: u32 = 1000;

impl World {
    /// A world that begins now.
    pub fn new(seed: u64, tracing: bool, net: Box<dyn Net>, watch: Shared) -> World {
        let mut dice = Dice::new(seed);
        let plan = Plan::new(&mut dice);
        let roles = hosts::Roles::new(&mut dice, plan.calm);
        let now = Micros::from_secs(1_000);
        let around = Surroundings {
            now,
            seed: [seed as u8; 32],
            own_uid: OWN_UID,
            host_name: "here".into(),
        };
        let mut world = World {
            core: Core::new(plan.settings.clone(), around),
            net,
            plan,
            dice,
            clients: Vec::new(),
            servers: BTreeMap::new(),
            dials: Vec::new(),
            lookups: BTreeSet::new(),
            targets: BTreeSet::new(),
            now,
            next_tick: now,
            next_number: 0,
            next_key: 0x7000_0000_0000_0001,
            exit: None,
            settling: false,
            resumes: true,
            listening: true,
            memory: Memory::default(),
            facts: Facts::default(),
            clocks: Clocks::default(),
            watch,
            roles,
            people: auth_query::Shared::default(),
            pausing: BTreeSet::new(),
            closing: BTreeMap::new(),
            suspended: None,
            suspender: None,
            jobs: Vec::new(),
            jobs_left: Vec::new(),
            handoffs: 0,
            successor_dice: Dice::new(seed ^ 0x4a2d_0ff5),
            files: Files::default(),
            left: 0,
            tracing,
        };
        world.draw_handoffs();
        world.trace(|world| format!("{:#?} {:#?}", world.plan.databases, world.plan.entries));
        world.core.configure(world.plan.config(), true);
        world.core.set_users(world.plan.user_list());
        world.core.set_tls_modes(SslMode::Disable, SslMode::Prefer, String::new());
        world
    }

    /// One line of a replay.
    pub fn trace(&self, text: impl FnOnce(&World) -> String) {
        if self.tracing {
            let step = STEP.with(Cell::get);
            println!("{step:5} {:9.3} {}", self.now.0 as f64 / 1e6, text(self));
        }
    }

    /// An oracle has found something.
    pub fn fail(&self, text: &str) -> ! {
        self.trace(|_| format!("FAILED {text}"));
        panic!("{text}");
    }

    /// A turn of the loop, with some random events.
    pub fn turn(&mut self) {
        let micros = self.dice.below(60_000) as u64;
        let jump = if self.dice.chance(2) { self.dice.pick(&[1, 2, 20]) } else { 0 };
        self.begin_turn(micros + jump * 1_000_000);
        let most = if self.plan.brisk { 10 } else { 4 };
        for _ in 0..=self.dice.below(most) {
            self.event();
            self.perform();
        }
        self.end_turn();
    }

    /// Time goes on.
    pub fn begin_turn(&mut self, micros: u64) {
        STEP.with(|step| step.set(step.get() + 1));
        self.now = self.now + Micros(micros);
        self.core.now = self.now;
    }

    /// What the loop does after the events; then the oracles are asked.
    pub fn end_turn(&mut self) {
        self.read_journal(None);
        let ticked = self.now >= self.next_tick;
        if ticked {
            self.next_tick = self.now + Micros(TICK);
            self.tick();
        }
        self.core.go_on_console(|_| true);
        self.perform();
        self.core.turn_end();
        self.perform();
        self.suspend_further();
        // What was marked while pools were served has its turn, too; the loop does not sleep. Now
        // and then other events come first, but not before some rounds.
        let at_rest = ticked || self.settling || self.dice.chance(70);
        let mut turns = 0;
        let is_pending = |core: &Core| core.is_pending() || core.has_left(|_| true);
        while is_pending(&self.core) && (at_rest || turns < 15) {
            self.core.go_on_console(|_| true);
            self.core.turn_end();
            self.perform();
            self.suspend_further();
            turns += 1;
            if turns > 50 {
                self.fail("LIVENESS: the loop never sleeps again");
            }
        }
        self.read_journal(None);
        self.check(ticked, at_rest);
    }

    /// The janitor comes; he does nothing while SUSPEND is in force.
    fn tick(&mut self) {
        if self.suspended.is_some() {
            self.core.tick();
            self.read_journal(None);
            return self.perform();
        }
        let due = self.due();
        self.note_waiting();
        self.note_unused(When::Before);
        self.core.tick();
        self.note_unused(When::After);
        self.check_due(&due);
        self.expect_exit();
        self.read_journal(Some(&due));
        self.perform();
        self.check_due_told(&due);
    }

    /// Performs actions until none is left.
    pub fn perform(&mut self) {
        for _ in 0..20_000 {
            while let Some(action) = self.core.next_action() {
                self.act(action);
            }
            if !self.net.go_on(&mut self.core) {
                return;
            }
        }
        self.fail("LIVENESS: actions without end");
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send(peer, bytes) => {
                self.trace(|_| format!("  send {peer:?} {}", bytes.escape_ascii()));
                self.check_pause_answer(peer, &bytes);
                self.check_close_answer(peer, &bytes);
                self.check_suspend_answer(peer, &bytes);
                self.note_answer(peer, &bytes);
                self.note_fatal(peer, &bytes);
                self.note_lookup(peer, &bytes);
                self.check_notice(peer, &bytes);
                self.net.send(peer, &bytes, &mut self.core);
            }
            // There are no descriptors.
            Action::SendRow(id, row, _) => self.net.send(Peer::Client(id), &row, &mut self.core),
            Action::Connect(id) => {
                let target = self.core.target(id);
                self.trace(|_| format!("  connect {id:?} to {target:?}"));
                self.check_launch(id);
                self.note_launch(id);
                if target.is_some() {
                    self.dials.push(id);
                    self.lookups.insert(id);
                    if self.settling || self.dice.chance(70) {
                        self.look_up(id);
                    }
                }
            }
            Action::Resume(id) => {
                self.trace(|_| format!("  resume {id:?}"));
                self.facts.called = true;
                self.net.resume(id, &mut self.core);
            }
            // No line carries TLS: servers don't like it, and clients are not offered it.
            Action::StartTls(peer) => self.core.secured(peer, None),
            Action::Close(peer) => {
                self.trace(|_| format!("  close {peer:?}"));
                if let Peer::Server(id) = peer {
                    self.dials.retain(|dialled| *dialled != id);
                    self.lookups.remove(&id);
                }
                self.net.close(peer);
            }
            Action::Job(id, job) => self.jobs.push((id, job)),
            Action::Abandon(id) => self.jobs_left.push(id),
            Action::Console(id) => self.console(id),
            Action::Exit(code) => self.exit = Some(code),
            Action::CloseTcpListeners => self.listening = false,
            Action::Reload(console) => self.reload(console),
            Action::Suspend(on) => self.suspend(on),
            // The simulator's own move does that.
            Action::Handoff(_) => {}
        }
    }

    fn note_launch(&mut self, id: ServerId) {
        let Some(server) = self.core.servers().get(id) else { return };
        self.memory.launched(id, server);
        self.clocks.opened.insert(id, self.now);
        self.watch.borrow_mut().said.insert(id, self.now);
    }

    /// A model client connects; over a Unix socket if it is for the console, or nothing else is
    /// listening any more.
    pub fn connect_client(&mut self, database: &str) -> usize {
        let console = database == "pgbouncer";
        let remote = match console || !self.listening {
            true => Addr::Unix { pid: 7 },
            false => Addr::Inet(([127, 0, 0, 1], 40_000).into()),
        };
        let id = self.core.accepted(Origin {
            remote,
            local: Addr::Unknown,
            uid: console.then_some(OWN_UID),
        });
        self.clocks.accepted.insert(id, self.now);
        let room = match self.settling {
            true => usize::MAX / 2,
            false => self.dice.pick(&[40, 300, 100_000, 100_000]),
        };
        let line = line::line(room);
        self.net.insert(Peer::Client(id), line.clone());
        self.next_number += 1;
        let mut client = Client::new(self.next_number, id, line, database);
        client.slow = self.dice.chance(15) && !self.settling;
        client.styles = self.plan.tracks_more().then_some(self.files.era);
        self.clients.push(client);
        self.clients.len() - 1
    }

    /// A host name is looked up; the connection is being opened from now on.
    fn look_up(&mut self, id: ServerId) {
        self.lookups.remove(&id);
        self.core.dialling(id, self.address_of(id));
    }

    /// A connection that is being opened succeeds or fails.
    pub fn dial_ends(&mut self, at: usize, works: bool) {
        let id = self.dials[at];
        if works && self.lookups.contains(&id) {
            self.trace(|_| format!("host of {id:?} is found"));
            self.look_up(id);
            if !self.settling {
                return;
            }
        }
        self.dials.remove(at);
        self.lookups.remove(&id);
        let Some(server) = self.core.servers().get(id) else {
            return;
        };
        let (number, pool) = (server.number(), server.pool());
        if !works {
            let why = self.dice.pick(&[Loss::Connect, Loss::CannotConnect, Loss::Dns]);
            self.trace(|_| format!("dial {id:?} fails"));
            return self.core.lost(Peer::Server(id), why);
        }
        self.watch.borrow_mut().said.insert(id, self.now);
        let nature = self.draw_nature();
        let small = !self.settling && nature != Nature::OneTooMany && self.dice.chance(50);
        let room = if small { 60 } else { usize::MAX / 2 };
        let line: Line = line::line(room);
        self.next_key += 1;
        let patience = self.dice.below(6) as u32;
        let mut model = Server::new(line.clone(), nature, self.next_key, patience);
        model.people = self.people.clone();
        model.era = self.files.era;
        model.role = self.roles.of(&self.host_of(id));
        model.is_wild = !self.plan.calm && !self.settling;
        if let Some(pool) = self.core.pool(pool) {
            let session = self.core.effective(pool).pool_mode() == PoolMode::Session;
            let settings = self.core.settings();
            let always = settings.server_reset_query_always.on();
            model.is_reset = !settings.server_reset_query.is_empty() && (session || always);
        }
        model.asks = self.plan.servers_ask && self.dice.chance(50);
        self.trace(|_| format!("dial {id:?} works, server is {nature:?}"));
        self.memory.meet(number, key(Peer::Server(id)), nature == Nature::Good);
        self.servers.insert(key(Peer::Server(id)), model);
        self.net.insert(Peer::Server(id), line);
        let at = self.address_of(id);
        self.core.connected(id, at, at);
    }

    fn draw_nature(&mut self) -> Nature {
        use Nature as N;
        if self.plan.calm || self.settling {
            return N::Good;
        }
        self.dice.weighted(&[
            (80, N::Good),
            (3, N::Refuses),
            (2, N::Silent),
            (1, N::Babbles),
            (2, N::OneTooMany),
            (2, N::WrongReply),
            (1, N::WrongLetter),
            (1, N::WrongLength),
            (1, N::WrongStatus),
            (2, N::HalfPacket),
            (3, N::Fatal),
            (2, N::Hangs),
        ])
    }

    /// A model server does its next thing.
    pub fn server_works(&mut self, at: Key) {
        let Some(server) = self.servers.get_mut(&at) else {
            return;
        };
        let effect = match server.work(&mut self.dice) {
            Ok(effect) => effect,
            Err(text) => self.fail(&format!("{text} (server {at:?})")),
        };
        let overdid = std::mem::take(&mut server.overdid);
        let gone = server.is_gone() && server.line.borrow().ended;
        if gone {
            self.servers.remove(&at);
        } else {
            self.net.writable(crate::net::peer_of(at), &mut self.core);
        }
        if overdid {
            self.show_at_once(at);
        }
        if let Effect::Cancel(key) = effect {
            self.check_forwarded(at, key);
            let target = self.servers.values_mut().find(|server| server.key == key);
            if let Some(Err(text)) = target.map(|server| server.cancel(&self.targets)) {
                self.fail(&text);
            }
        }
    }

    /// A completion too many must not meet the next request, or nobody could tell what it is.
    fn show_at_once(&mut self, at: Key) {
        self.arrive(crate::net::peer_of(at), usize::MAX / 2);
        if let Some(server) = self.servers.get_mut(&at) {
            if server.line.borrow().stirs() {
                server.line.borrow_mut().swallow();
                server.die(true);
            }
        }
    }

    /// A model client reads.
    pub fn client_hears(&mut self, at: usize) {
        let was = self.clients[at].phase;
        if let Err(text) = self.clients[at].hear() {
            self.fail(&text);
        }
        self.check_lookup(&self.clients[at], was);
        let id = self.clients[at].id;
        self.net.writable(Peer::Client(id), &mut self.core);
        let client = &self.clients[at];
        if !client.lives() && self.plan.calm {
            self.check_told(client.told.as_deref());
        }
    }

    /// Bytes of a line arrive.
    pub fn arrive(&mut self, peer: Peer, count: usize) {
        if let Some(line) = self.net.line(peer) {
            let news = line.borrow_mut().arrive(count);
            if news {
                self.net.readable(peer, &mut self.core);
            }
        }
    }
}
