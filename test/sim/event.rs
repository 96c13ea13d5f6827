//! What may happen in a turn, and how often.

use crate::client::Phase;
use crate::net::peer_of;
use crate::talk;
use crate::world::World;
use pgturnstile::core::Peer;

#[derive(Clone, Copy)]
enum Kind {
    Arrive,
    Work,
    Hear,
    Act,
    Dial,
    Job,
    Connect,
    Leave,
    Nonsense,
    Fault,
    Cancel,
    Admin,
    People,
    Role,
}

/// How often each kind comes, per thousand or so.
const OFTEN: [(usize, Kind); 14] = [
    (300, Kind::Arrive),
    (240, Kind::Work),
    (150, Kind::Hear),
    (160, Kind::Act),
    (150, Kind::Dial),
    (100, Kind::Job),
    (35, Kind::Connect),
    (12, Kind::Leave),
    (2, Kind::Nonsense),
    (6, Kind::Fault),
    (25, Kind::Cancel),
    (10, Kind::Admin),
    (15, Kind::People),
    (4, Kind::Role),
];

impl World {
    /// Something happens.
    pub fn event(&mut self) {
        if self.suspended.is_some() && self.dice.chance(2) {
            return self.administrate();
        }
        let kind = self.dice.weighted(&OFTEN);
        let rare = matches!(kind, Kind::Admin | Kind::Leave | Kind::Cancel);
        if self.plan.brisk && rare && self.dice.chance(70) {
            return self.some_client_acts();
        }
        match kind {
            Kind::Arrive => self.something_arrives(),
            Kind::Work => self.some_server_works(),
            Kind::Hear => self.some_client_hears(),
            Kind::Act => self.some_client_acts(),
            Kind::Dial => self.some_dial_ends(),
            Kind::Job => self.some_job_ends(),
            Kind::Connect => self.somebody_connects(),
            Kind::Leave => self.somebody_leaves(),
            Kind::Nonsense if !self.plan.calm => self.somebody_talks_nonsense(),
            Kind::Fault if !self.plan.calm => self.some_server_fails(),
            Kind::Cancel => self.somebody_cancels(),
            Kind::Admin => self.administrate(),
            Kind::People => self.people_change(),
            Kind::Role if !self.plan.calm => self.role_changes(),
            Kind::Nonsense | Kind::Fault | Kind::Role => {}
        }
    }

    fn something_arrives(&mut self) {
        let peers: Vec<Peer> = self
            .net
            .peers()
            .into_iter()
            .filter(|peer| {
                let line = self.net.line(*peer);
                line.is_some_and(|line| line.borrow().stirs())
            })
            .collect();
        if peers.is_empty() {
            return;
        }
        let peer = self.dice.pick(&peers);
        let whole = self.plan.brisk && self.dice.chance(80);
        let count = if whole { usize::MAX / 2 } else { self.dice.pick(&[1, 6, 30, 200, 5_000]) };
        self.trace(|_| format!("arrive {peer:?} {count}"));
        self.arrive(peer, count);
    }

    fn some_server_works(&mut self) {
        let busy: Vec<_> = self
            .servers
            .iter()
            .filter(|(_, server)| server.has_work())
            .map(|(key, _)| *key)
            .collect();
        if !busy.is_empty() {
            let at = self.dice.pick(&busy);
            self.trace(|_| format!("server {:?} works", peer_of(at)));
            let most = if self.plan.brisk && self.dice.chance(80) { 12 } else { 1 };
            for _ in 0..most {
                if self.servers.get(&at).is_some_and(|server| server.has_work()) {
                    self.server_works(at);
                }
            }
        }
    }

    fn some_client_hears(&mut self) {
        let at = self.dice.below(self.clients.len());
        let Some(client) = self.clients.get(at) else {
            return;
        };
        if client.slow && !self.dice.chance(20) {
            return;
        }
        self.client_hears(at);
        if !self.clients[at].lives() {
            self.clients.swap_remove(at);
        }
    }

    fn some_client_acts(&mut self) {
        let mut at = self.dice.below(self.clients.len());
        if self.plan.brisk && self.clients.get(at).is_some_and(|c| c.phase != Phase::Ready) {
            at = self.dice.below(self.clients.len());
        }
        if at < self.clients.len() {
            let what = self.client_acts(at);
            if !what.is_empty() {
                self.trace(|world| {
                    let client = &world.clients[at];
                    format!("client {} ({:?}): {what}", client.number, client.id)
                });
            }
            let client = &mut self.clients[at];
            if client.database == "pgbouncer" && client.phase == Phase::Ready {
                self.console_speaks(at);
            }
        }
    }

    fn some_dial_ends(&mut self) {
        if self.dials.is_empty() {
            return;
        }
        let at = self.dice.below(self.dials.len());
        let works = self.plan.calm || self.dice.chance(88);
        self.dial_ends(at, works);
    }

    fn somebody_connects(&mut self) {
        if self.clients.len() >= self.plan.clients || self.suspended.is_some() {
            return;
        }
        let console = self.dice.chance(10);
        let database = match console {
            true => "pgbouncer".to_owned(),
            false if self.dice.chance(2) && !self.plan.calm => "nowhere".to_owned(),
            false => {
                let at = self.dice.below(self.plan.databases.len());
                let removed = self.plan.removed.first().filter(|_| self.dice.chance(20));
                removed.unwrap_or(&self.plan.databases[at]).name.clone()
            }
        };
        let (user, password) = match console {
            true => ("pgbouncer".to_owned(), String::new()),
            false => self.somebody(),
        };
        let at = self.connect_client(&database);
        self.clients[at].user.clone_from(&user);
        self.clients[at].password = password;
        self.trace(|world| {
            let client = &world.clients[at];
            format!("client {} ({:?}) connects: {database}/{user}", client.number, client.id)
        });
        self.clients[at].is_plain = self.plan.brisk && self.dice.chance(70);
        talk::opening(&mut self.clients[at], &user, &mut self.dice);
    }

    fn somebody_leaves(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let at = self.dice.below(self.clients.len());
        let torn = self.dice.chance(40);
        let client = &mut self.clients[at];
        if client.phase == Phase::Ready && !torn && self.dice.chance(60) && client.later.is_empty()
        {
            client.line.borrow_mut().say(b"X\0\0\0\x04");
        }
        client.leave(torn);
        self.trace(|world| format!("client {} leaves", world.clients[at].number));
        self.clients.swap_remove(at);
    }

    fn somebody_talks_nonsense(&mut self) {
        if !self.clients.is_empty() {
            let at = self.dice.below(self.clients.len());
            if self.clients[at].later.is_empty() {
                talk::nonsense(&mut self.clients[at], &mut self.dice);
            }
            self.clients[at].leave(false);
            self.trace(|world| format!("client {} talks nonsense", world.clients[at].number));
            self.clients.swap_remove(at);
        }
    }

    /// A server crashes, or speaks up without being asked.
    fn some_server_fails(&mut self) {
        let keys: Vec<_> = self.servers.keys().copied().collect();
        if keys.is_empty() {
            return;
        }
        let at = self.dice.pick(&keys);
        let torn = self.dice.chance(50);
        let Some(server) = self.servers.get_mut(&at) else {
            return;
        };
        if self.dice.chance(40) {
            server.die(torn);
            self.trace(|_| format!("server {:?} dies", peer_of(at)));
        } else {
            server.speak_up(&mut self.dice);
            let excused = server.excused;
            self.trace(|_| format!("server {:?} speaks up", peer_of(at)));
            if excused {
                self.memory.excuse(at);
            }
        }
    }

    fn somebody_cancels(&mut self) {
        if self.dice.chance(25) {
            return self.somebody_cancels_elsewhere();
        }
        let targets: Vec<_> = self
            .clients
            .iter()
            .filter(|client| client.phase == Phase::Ready && !client.expected.is_empty())
            .filter_map(|client| Some((client.number, client.key?, client.database.clone())))
            .collect();
        let full = self.clients.len() > self.plan.clients + 3;
        if targets.is_empty() || full || self.suspended.is_some() {
            return;
        }
        let (number, cancel_key, database) = &targets[self.dice.below(targets.len())];
        self.targets.insert(*number);
        let cancel_key = self.travelled(*cancel_key);
        let at = self.connect_client(database);
        talk::cancel(&mut self.clients[at], cancel_key);
        self.trace(|world| format!("client {} cancels {number}", world.clients[at].number));
    }
}
