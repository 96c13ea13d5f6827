//! The end of every run: faults stop, whoever has begun something ends it, and then everything has
//! to come to rest; everybody leaves, and nothing may be left over.

use crate::client::Phase;
use crate::talk;
use crate::world::World;
use pgturnstile::core::assign::{Launch, Why};
use pgturnstile::core::client::ClientState;
use pgturnstile::core::pause::{Shutdown, Signal};
use pgturnstile::core::pool::{Pool, PoolId};
use pgturnstile::core::server::ServerState;
use pgturnstile::core::{Decisions, Peer};

/// Rounds until everything must be at rest; each takes a tenth of a second of the world's time.
const ROUNDS: usize = 1500;

impl World {
    /// Nothing goes wrong from now on: all that was begun has to end.
    pub fn settle(&mut self) {
        self.trace(|_| "settling".into());
        self.settling = true;
        self.begin_turn(0);
        self.end_faults();
        self.end_turn();
        self.rest();
        self.grow();
    }

    /// Plays until nothing stirs any more.
    pub fn rest(&mut self) {
        let mut calm_rounds = 0;
        for _ in 0..ROUNDS {
            if self.exit.is_some() || self.is_stuck_in_shutdown() {
                return;
            }
            self.round(100_000);
            calm_rounds = if self.is_at_rest() { calm_rounds + 1 } else { 0 };
            if calm_rounds > 8 {
                return;
            }
        }
        self.complain();
    }

    /// A pause that a shutdown has made final: who waits does so until everybody leaves.
    fn is_stuck_in_shutdown(&self) -> bool {
        let stopped = self.is_paused() || self.suspended.is_some();
        self.core.shutdown() == Some(Shutdown::WaitForClients) && stopped
    }

    /// Nothing is in the way of min_pool_size any more.
    fn grow(&mut self) {
        if self.core.shutdown().is_some() || self.exit.is_some() {
            return;
        }
        for _ in 0..60 {
            if self.short_of_servers().is_none() {
                return;
            }
            self.round(500_000);
        }
        if let Some(text) = self.short_of_servers() {
            self.fail(&text);
        }
    }

    fn end_faults(&mut self) {
        self.plan.calm_down();
        self.settle_roles();
        self.core.configure(self.plan.config(), true);
        for client in &mut self.clients {
            client.slow = false;
            client.line.borrow_mut().widen();
        }
        for server in self.servers.values_mut() {
            server.line.borrow_mut().widen();
            server.is_wild = false;
            if server.hangs() || server.nature != crate::server::Nature::Good {
                server.die(false);
            }
        }
        for peer in self.net.peers() {
            self.net.writable(peer, &mut self.core);
        }
        self.perform();
    }

    /// Everything that can move moves once.
    pub fn round(&mut self, micros: u64) {
        self.begin_turn(micros);
        if self.resumes {
            self.resume();
        }
        self.perform();
        while !self.dials.is_empty() {
            self.dial_ends(0, true);
            self.perform();
        }
        while !self.jobs.is_empty() {
            self.job_ends(0);
            self.perform();
        }
        for at in 0..self.clients.len() {
            self.client_hears(at);
            talk::wind_up(&mut self.clients[at]);
            self.perform();
        }
        self.clients.retain(|client| client.lives());
        for peer in self.net.peers() {
            self.arrive(peer, usize::MAX / 2);
            self.perform();
        }
        let keys: Vec<_> = self.servers.keys().copied().collect();
        for key in keys {
            while self.servers.get(&key).is_some_and(|server| server.has_work()) {
                let before = self.servers.len();
                self.server_works(key);
                self.perform();
                if before == self.servers.len() && self.is_stuck(key) {
                    break;
                }
            }
        }
        self.make_way();
        self.end_turn();
    }

    fn resume(&mut self) {
        self.facts.resumed = true;
        let stopped = self.is_paused() || self.suspended.is_some();
        if self.core.shutdown().is_none() && stopped {
            self.core.resume_all();
        }
        let databases: Vec<_> = self.core.databases().map(|(id, _)| id).collect();
        for id in databases {
            self.core.resume_database(id);
        }
    }

    /// True if a server's inbox holds only part of a message.
    fn is_stuck(&self, key: crate::net::Key) -> bool {
        let Some(server) = self.servers.get(&key) else {
            return true;
        };
        let line = server.line.borrow();
        line.down.is_empty() && !line.ended && server.is_mid_message()
    }

    /// Clients that hold a server in session mode without using it leave if others wait, also
    /// consoles for a WAIT_CLOSE, or for a PAUSE that a shutdown has made final.
    fn make_way(&mut self) {
        let somebody = |state, pool: &Pool| !pool.clients(state).is_empty();
        let waits = self.core.pools().any(|(_, pool)| {
            somebody(ClientState::Waiting, pool) || somebody(ClientState::WaitingCancel, pool)
        });
        if waits || !self.closing.is_empty() || self.resumes && !self.pausing.is_empty() {
            self.holder_leaves();
        }
    }

    /// A client that holds a server without using it leaves.
    fn holder_leaves(&mut self) {
        let at = self.clients.iter().position(|client| {
            client.is_quiet()
                && client.phase == Phase::Ready
                && self.core.server_of(client.id).is_some()
        });
        if let Some(at) = at {
            self.clients[at].leave(false);
            self.clients.remove(at);
        }
    }

    /// A console among clients that are all at work; nothing in so many of a hundred runs, and when
    /// the process is about to end.
    pub fn begin_trial(&mut self, skipped: usize) -> Option<u32> {
        let shutdown = self.core.shutdown().is_some();
        if shutdown || self.exit.is_some() || self.dice.chance(skipped) {
            return None;
        }
        let console = self.connect_client("pgbouncer");
        let number = self.clients[console].number;
        talk::opening(&mut self.clients[console], "pgbouncer", &mut self.dice);
        self.rest();
        self.resumes = false;
        self.ask_something();
        Some(number)
    }

    /// While everybody is at work somebody says PAUSE: the answer comes, and then no server is
    /// left; RESUME serves whoever has waited.
    pub fn pause_trial(&mut self) {
        let Some(number) = self.begin_trial(60) else { return };
        self.tell(number, "PAUSE");
        for round in 0.. {
            self.round(100_000);
            if round == 3 {
                self.ask_something();
            }
            self.holder_leaves();
            let paused = self.pausing.is_empty() && self.is_paused();
            let at_rest = self.core.servers().is_empty() && self.dials.is_empty();
            if round > 5 && paused && at_rest {
                break;
            }
            if round > 200 {
                let left = self.core.servers().iter().map(|(id, server)| (id, server.state()));
                let left: Vec<_> = left.collect();
                self.fail(&format!("PAUSE: no end, answered {paused}, servers {left:?}"));
            }
        }
        self.tell(number, "RESUME");
        self.round(100_000);
        self.resumes = true;
        self.rest();
    }

    /// Some clients say something.
    pub fn ask_something(&mut self) {
        for at in 0..self.clients.len() {
            if self.dice.chance(50) {
                self.client_acts(at);
            }
        }
    }

    pub fn tell(&mut self, number: u32, text: &str) {
        if let Some(at) = self.clients.iter().position(|client| client.number == number) {
            self.command(at, text);
        }
    }

    fn is_at_rest(&self) -> bool {
        let quiet = self.clients.iter().all(|client| {
            client.is_quiet() && client.status == b'I' && client.phase == Phase::Ready
        });
        let lines = self.net.peers();
        let mut lines = lines.into_iter().filter_map(|peer| self.net.line(peer));
        quiet
            && self.dials.is_empty()
            && self.core.job_count() == 0
            && !lines.any(|line| line.borrow().stirs())
            && !self.servers.values().any(|server| server.has_work())
    }

    fn complain(&self) -> ! {
        for client in &self.clients {
            if client.is_quiet() && client.phase == Phase::Ready && client.status == b'I' {
                continue;
            }
            let known = self.core.clients().get(client.id);
            let server = known.and_then(|known| known.server());
            let server = server.and_then(|id| self.core.servers().get(id));
            let pool = known.and_then(|known| known.pool());
            self.fail(&format!(
                "LIVENESS: client {} ({:?}, {:?}) never ends: {:?} expects {:?}, server {:?}, {}",
                client.number,
                client.id,
                known.map(|known| known.state()),
                client.phase,
                client.expected.front(),
                server.map(|server| (server.state(), server.status())),
                pool.map_or_else(String::new, |pool| self.describe(pool)),
            ));
        }
        let lines = self.net.peers().into_iter();
        let lines = lines.filter(|peer| self.net.line(*peer).is_some_and(|l| l.borrow().stirs()));
        let servers = self.servers.iter().filter(|(_, server)| server.has_work());
        self.fail(&format!(
            "LIVENESS: no rest; dials {:?}, lines {:?}, servers {:?}",
            self.dials,
            lines.map(|peer| (peer, self.state_of(peer))).collect::<Vec<_>>(),
            servers.map(|(key, _)| key).collect::<Vec<_>>()
        ));
    }

    fn state_of(&self, peer: Peer) -> String {
        match peer {
            Peer::Client(id) => {
                let client = self.core.clients().get(id);
                let pool = client.and_then(|client| client.pool());
                let pool = pool.map_or_else(String::new, |pool| self.describe(pool));
                format!("{:?} {pool}", client.map(|client| client.state()))
            }
            Peer::Server(id) => format!("{:?}", self.core.servers().get(id).map(|s| s.state())),
        }
    }

    pub fn describe(&self, id: PoolId) -> String {
        let Some(pool) = self.core.pool(id) else {
            return String::new();
        };
        let servers = ServerState::SHOWN.map(|(state, _)| pool.servers(state).len());
        format!(
            "pool {:?}: servers {servers:?}, {} wait, {} cancels, launch {:?}",
            pool.names(),
            pool.clients(ClientState::Waiting).len(),
            pool.clients(ClientState::WaitingCancel).len(),
            self.core.may_launch(id)
        )
    }

    /// Everybody leaves; nothing may be left but free servers, and a shutdown ends the process.
    pub fn farewell(&mut self) {
        let shutdown = self.dice.chance(50);
        let signal = self.dice.pick(&[Signal::Interrupt, Signal::Terminate]);
        let early = self.dice.chance(50);
        let again = self.core.shutdown().is_some();
        if shutdown && early && !again && self.exit.is_none() {
            self.begin_turn(0);
            self.signal(signal);
            self.end_turn();
        }
        for client in &mut self.clients {
            client.leave(false);
        }
        self.clients.clear();
        for _ in 0..20 {
            if self.exit.is_some() {
                return;
            }
            self.round(100_000);
        }
        if shutdown && !early && !again && self.exit.is_none() {
            self.begin_turn(0);
            self.signal(signal);
            self.end_turn();
            for _ in 0..20 {
                if self.exit.is_some() {
                    return;
                }
                self.round(100_000);
            }
        }
        self.end_searches();
        if self.exit.is_some() {
            return;
        }
        // Nobody notices that clients in a queue have left until it is their turn (pooling 1.2).
        if self.is_stuck_in_shutdown() && self.core.login_clients().is_empty() {
            return;
        }
        if let Some(mode) = self.core.shutdown() {
            let servers = self.core.servers().iter();
            let states: Vec<_> = servers.map(|(id, server)| (id, server.state())).collect();
            self.fail(&format!("SHUTDOWN: {mode:?} does not end with {states:?}"));
        }
        self.check_empty();
    }

    /// A pool that tries its hosts for the right kind of server comes to an end of that, too, or one
    /// that must not connect for a while after a failure, and who has waited for it is served.
    fn end_searches(&mut self) {
        let mut left = 0;
        for _ in 0..200 {
            left = if self.is_searching() || self.is_unreachable() { 20 } else { left };
            if left == 0 || self.exit.is_some() {
                return;
            }
            self.round(100_000);
            left -= 1;
        }
    }

    /// True if somebody waits for the next attempt to connect.
    fn is_unreachable(&self) -> bool {
        self.core.pools().any(|(id, pool)| {
            let is_awaited = !pool.clients(ClientState::Waiting).is_empty();
            is_awaited && self.core.may_launch(id) == Some(Launch::No(Why::ServerUnreachable))
        })
    }

    fn check_empty(&self) {
        if let Some((id, _)) = self.core.clients().iter().next() {
            let state = self.state_of(Peer::Client(id));
            self.fail(&format!("LEAK: everybody has left, but {id:?} is {state}"));
        }
        for (id, server) in self.core.servers().iter() {
            let free = matches!(server.state(), ServerState::Idle | ServerState::Used);
            let pool = self.core.pool(server.pool());
            let is_kept = pool.is_some_and(|pool| self.plan.min_size(pool.names()) > 0);
            let opens = is_kept && server.state() == ServerState::Login;
            if !free && !opens {
                let state = server.state();
                self.fail(&format!("LEAK: everybody has left, but {id:?} is {state:?}"));
            }
        }
        let counted = self.core.databases().map(|(_, database)| database.client_count());
        let counted: usize = counted.chain(self.core.users().map(|(_, u)| u.client_count())).sum();
        if counted > 0 {
            self.fail(&format!("LEAK: everybody has left, but {counted} clients count"));
        }
        self.check_store();
        let open = self.net.peers().len();
        if open + self.dials.len() != self.core.servers().len() {
            self.fail(&format!("LEAK: {open} lines for {} servers", self.core.servers().len()));
        }
        if let Some(Peer::Client(id)) = self.net.peers().first() {
            self.fail(&format!("LEAK: the line of {id:?} is still there"));
        }
    }
}
