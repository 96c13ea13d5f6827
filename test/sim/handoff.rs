//! A successor takes over in the middle of everything: its core goes on with what the old one tells
//! it, and nobody may notice, no client, no server, no oracle.

use crate::moved::{Move, Moved};
use crate::net::key;
use crate::plan::Plan;
use crate::successor::{besides, Doomed, News};
use crate::world::{World, OWN_UID};
use pgturnstile::base::fields::{read, Fields};
use pgturnstile::base::Id;
use pgturnstile::config::SslMode;
use pgturnstile::core::carry::{Kind, Row};
use pgturnstile::core::client::ClientState;
use pgturnstile::core::server::ServerState;
use pgturnstile::core::{Addr, ClientId, Core, Origin, Peer, ServerId, Surroundings};
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// Model connections of the old process that did not go over get indexes from here on.
const LEFT: u32 = 1 << 30;

/// A row, and whose socket goes with it.
pub type Told = (Row, Option<Peer>);

/// A row as the successor has it, and the ends of the socket that came with it.
type Received = (Row, Option<Origin>);

impl World {
    /// Half of the runs are left in peace.
    pub fn draw_handoffs(&mut self) {
        let share = [0, 0, 2, 10];
        self.handoffs = self.successor_dice.pick(&share);
        // In half of the others files stay as they are.
        self.files.change = self.successor_dice.chance(70) && !self.plan.calm;
    }

    /// Now and then somebody else takes over; in a turn of its own.
    pub fn may_hand_off(&mut self) {
        let share = self.handoffs;
        if share == 0 || !self.successor_dice.chance(share) {
            return;
        }
        if self.core.refuses_handoff().is_some() || self.exit.is_some() {
            return;
        }
        self.begin_turn(0);
        let doomed = self.hand_off();
        self.perform();
        self.read_journal(None);
        self.check_doomed(&doomed);
        self.end_turn();
    }

    fn hand_off(&mut self) -> Vec<Doomed> {
        let mut rows = self.core.hand_out(Id::none());
        self.trace(|_| format!("handoff of {} rows", rows.len()));
        assert!(self.core.next_action().is_none(), "HANDOFF: something is left to do");
        let news = self.draw_news();
        let files = self.files_there();
        let seed = self.successor_dice.below(256) as u8;
        let told = rows.iter().map(|(row, peer)| (left_out(row), peer.map(|_| NOWHERE)));
        let mut told: Vec<_> = told.collect();
        if LEFT_OUT.as_ref().is_some_and(|(kind, _)| kind == "reversed") {
            rows.reverse();
            told.reverse();
        }
        let mut next = self.successor(seed, &files);
        let mut peers = self.take_in(&mut next, &told, 50);
        let mut places = BTreeSet::new();
        let is_taken = |peer: &Peer| {
            let (is_server, index, _) = key(*peer);
            !places.insert((is_server, index))
        };
        if peers.iter().flatten().any(is_taken) {
            // Who comes late has the place of somebody else, whose connection is closed before that.
            next = self.successor(seed, &files);
            peers = self.take_in(&mut next, &told, 0);
        }
        if LEFT_OUT.is_none() {
            self.check_again(&rows, &next, &news);
        }
        let moved = self.who_is_who(&rows, &peers, &next, &news);
        self.check_replaced(&news, &moved, &next);
        let doomed = self.doomed(&news, &moved);
        self.core = next;
        self.follow(&moved);
        self.take_news(&news);
        // The first wait tells of everything that can be read.
        for peer in self.net.peers() {
            let line = self.net.line(peer);
            if line.is_some_and(|line| line.borrow().has_bytes() || line.borrow().at_end()) {
                self.net.readable(peer, &mut self.core);
            }
        }
        doomed
    }

    /// A core that knows its files only.
    fn successor(&self, seed: u8, files: &Plan) -> Core {
        let around = Surroundings {
            now: self.now,
            seed: [seed; 32],
            own_uid: OWN_UID,
            host_name: "here".into(),
        };
        let mut next = Core::new(files.settings.clone(), around);
        next.configure(files.config(), true);
        next.set_users(files.user_list());
        next.set_tls_modes(SslMode::Disable, SslMode::Prefer, String::new());
        next
    }

    /// So many percent of those who may come late do; who each row is then.
    fn take_in(&mut self, next: &mut Core, rows: &[Received], late: usize) -> Vec<Option<Peer>> {
        let mut draws = |row| Core::idle_for(row).is_some() && self.successor_dice.chance(late);
        let is_late: Vec<bool> = rows.iter().map(|(row, _)| draws(row)).collect();
        let early = rows.iter().zip(&is_late).filter(|(_, is_late)| !**is_late);
        let mut taken = next.take_in(early.map(|(row, _)| row.clone()).collect());
        let mut early = std::mem::take(&mut taken.peers).into_iter();
        let mut peers = Vec::new();
        for ((row, from), is_late) in rows.iter().zip(is_late) {
            peers.push(match from {
                Some(from) if is_late => next.take_in_late(row, *from, &mut taken),
                _ => early.next().flatten(),
            });
        }
        next.all_are_in(taken);
        peers
    }

    /// The ends of a connection are in its record.
    fn who_is_who(&self, rows: &[Told], peers: &[Option<Peer>], next: &Core, news: &News) -> Moved {
        let mut moved = Moved::new(&self.core, next);
        for ((row, old), new) in rows.iter().zip(peers) {
            match (old, new) {
                (Some(old), Some(new)) => moved.note(*old, *new),
                (Some(_), None) if row.kind == Kind::Server && news.takes_away(row) => {}
                (Some(old), None) => self.fail(&format!("HANDOFF: {old:?} is left: {row:?}")),
                _ => {}
            }
        }
        moved
    }

    /// What the successor would tell its own successor is what it has been told. Of logins that are
    /// begun anew it is something else, and then there may be connections that they need.
    fn check_again(&self, rows: &[Told], next: &Core, news: &News) {
        let again = next.hand_out(Id::none());
        let anew = self.core.clients().iter().any(|(_, client)| client.is_looked_up());
        let is_inside = |peer: &Option<Peer>| match peer {
            Some(Peer::Client(id)) => {
                let client = self.core.clients().get(*id);
                client.is_some_and(|client| client.state() != ClientState::Login)
            }
            _ => true,
        };
        for (row, peer) in rows.iter().filter(|(_, peer)| is_inside(peer)) {
            let counts = !news.outdates(row)
                && match row.kind {
                    Kind::Client | Kind::Statement => true,
                    // A look-up that is begun anew may need the place of one that is free.
                    Kind::Server => !anew || !self.is_free(*peer),
                    Kind::Pool => !anew,
                    _ => false,
                };
            let is_same = |other: &Told| {
                other.0 == *row
                    || (other.0.kind, other.0.number) == (row.kind, row.number)
                        && besides(row, Some(other), news).is_empty()
                        && besides(&other.0, Some(&(row.clone(), None)), news).is_empty()
            };
            if counts && !again.iter().any(is_same) {
                if anew && matches!(peer, Some(Peer::Client(id)) if self.is_looked_up(*id)) {
                    continue;
                }
                let alike = |other: &&Told| shared(&other.0, row) > 0;
                let other = again.iter().filter(alike).max_by_key(|other| shared(&other.0, row));
                self.fail(&format!(
                    "HANDOFF: {:?} {} was {:?}, is {:?}",
                    row.kind,
                    row.number,
                    besides(row, other, news),
                    other.map(|(other, _)| besides(
                        other,
                        rows.iter().find(|(it, _)| it == row),
                        news
                    ))
                ));
            }
        }
    }

    fn is_free(&self, peer: Option<Peer>) -> bool {
        let Some(Peer::Server(id)) = peer else { return false };
        let server = self.core.servers().get(id);
        server.is_some_and(|server| matches!(server.state(), ServerState::Idle | ServerState::Used))
    }

    /// All that is remembered is about the new core's keys.
    fn follow(&mut self, moved: &Moved) {
        self.dials.clear();
        self.lookups.clear();
        self.jobs.clear();
        self.jobs_left.clear();
        self.net.hand_off(moved);
        for client in &mut self.clients {
            let gone = || ClientId::from_parts(LEFT + client.number, 0);
            client.id = client.id.moved(moved).unwrap_or_else(gone);
        }
        let mut servers = std::mem::take(&mut self.servers);
        while let Some((at, server)) = servers.pop_first() {
            let to = at.moved(moved).unwrap_or_else(|| {
                self.left += 1;
                key(Peer::Server(ServerId::from_parts(LEFT + self.left, 0)))
            });
            self.servers.insert(to, server);
        }
        moved.apply(&mut self.pausing);
        moved.apply(&mut self.closing);
        moved.apply(&mut self.suspender);
        self.memory.follow(moved);
        self.facts.follow(moved);
        self.clocks.follow(moved);
        self.watch.borrow_mut().follow(moved);
    }
}

/// A field that is left out on its way, as a test of the oracles: `LEAVE_OUT=server.9.5` is field 5
/// of field 9 of all servers; `reversed.` has clients in the wrong order.
static LEFT_OUT: LazyLock<Option<(String, Vec<u16>)>> = LazyLock::new(|| {
    let text = std::env::var("LEAVE_OUT").ok()?;
    let (kind, path) = text.split_once('.')?;
    Some((kind.to_owned(), path.split('.').filter_map(|tag| tag.parse().ok()).collect()))
});

/// A row without what is to be left out.
fn left_out(row: &Row) -> Row {
    let mut row = row.clone();
    if let Some((_, path)) = LEFT_OUT.as_ref().filter(|(kind, _)| *kind == row.kind.word()) {
        row.state = without(&row.state, path);
    }
    row
}

fn without(fields: &[u8], path: &[u16]) -> Vec<u8> {
    let mut left = Fields::default();
    for field in read(fields) {
        match path {
            [tag] if *tag == field.tag => {}
            [tag, rest @ ..] if *tag == field.tag => {
                left.put(field.tag, &without(field.value, rest));
            }
            _ => left.put(field.tag, field.value),
        }
    }
    left.into_bytes()
}

/// The ends of connections are told by the records.
const NOWHERE: Origin = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };

/// How many fields two rows have in common.
fn shared(one: &Row, other: &Row) -> usize {
    let is_same = (one.kind, one.number) == (other.kind, other.number);
    let fields = read(&one.state).filter(|field| read(&other.state).any(|it| it == *field));
    if is_same {
        fields.count()
    } else {
        0
    }
}
