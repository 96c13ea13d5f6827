//! A successor has files of its own, which may say something new. What it makes of that is what a
//! RELOAD would: servers that lead somewhere else, or that know nothing of a parameter that is tracked
//! now, are replaced, and no others; whose database or peer is gone is told so; all else goes on.

use crate::dice::Dice;
use crate::handoff::Told;
use crate::moved::Moved;
use crate::plan::{edit_place, Plan};
use crate::talk::STYLE;
use crate::world::World;
use pgturnstile::base::fields::{read, Field};
use pgturnstile::core::carry::{Kind, Row};
use pgturnstile::core::client::{self, ClientState};
use pgturnstile::core::server::ServerState;
use pgturnstile::core::{ClientId, Core, ServerId};
use std::collections::BTreeSet;

/// What a run knows of its successors' files.
#[derive(Default)]
pub struct Files {
    /// They say something new now and then.
    pub change: bool,
    /// What SET has said of max_prepared_statements: that stays, whatever files say.
    pub limit: Option<i32>,
    /// How often other parameters were tracked than before.
    pub era: u32,
}

/// What a successor's files say and those before it did not.
pub struct News {
    /// Databases that are gone, and those whose servers are somewhere else.
    gone: BTreeSet<String>,
    elsewhere: BTreeSet<String>,
    /// Peers that are gone.
    peers: BTreeSet<u32>,
    /// Other parameters are tracked.
    tracking: bool,
    /// There are other users.
    users: bool,
    /// What max_prepared_statements was, if anything is new.
    limit: Option<i32>,
}

/// Somebody who can't go on: who it is now, its number, whether it is told, and what it is closed for.
pub type Doomed = (ClientId, u64, bool, String);

/// The database, or the peer, whose pool a row is about.
#[derive(PartialEq, Eq)]
enum Place {
    Nowhere,
    Database(String),
    Peer(u32),
}

/// Tags of doc/handoff.md: the place of a pool in rows of pools, and of clients and servers.
const POOL_PLACE: u16 = 1;
const PLACE: u16 = 2;
const PLACE_DATABASE: u16 = 1;
const PLACE_PEER: u16 = 3;
/// What other tracked parameters change: in rows of pools, clients and servers.
const POOL_TRACKED: [u16; 2] = [3, 5];
const CLIENT_PARAMETER: u16 = 13;
const SERVER_PARAMETER: u16 = 11;
/// A client's login, which knows about users, and what it is as a console, which knows databases.
const CLIENT_LOGIN: u16 = 24;
const CLIENT_CONSOLE: u16 = 25;
/// A server is to be closed.
const CLOSE_NEEDED: u16 = 5;

fn place(row: &Row) -> Place {
    let tag = if row.kind == Kind::Pool { POOL_PLACE } else { PLACE };
    let has_place = matches!(row.kind, Kind::Pool | Kind::Client | Kind::Server);
    let group = read(&row.state).find(|field| has_place && field.tag == tag);
    let Some(field) = group.and_then(|group| group.fields().next()) else {
        return Place::Nowhere;
    };
    match field.tag {
        PLACE_DATABASE => Place::Database(field.text()),
        PLACE_PEER => Place::Peer(field.number_u32()),
        _ => Place::Nowhere,
    }
}

impl News {
    fn between(old: &Plan, new: &Plan) -> News {
        let (mut gone, mut elsewhere) = (BTreeSet::new(), BTreeSet::new());
        for database in &old.databases {
            match new.databases.iter().find(|known| known.name == database.name) {
                None => gone.insert(database.name.clone()),
                Some(now) if Plan::recycles(&database.entry, &now.entry) => {
                    elsewhere.insert(database.name.clone())
                }
                Some(_) => false,
            };
        }
        let extra = |plan: &Plan| plan.settings.track_extra_parameters.clone();
        News {
            gone,
            elsewhere,
            peers: old.peers.keys().filter(|id| !new.peers.contains_key(id)).copied().collect(),
            tracking: extra(old) != extra(new),
            users: old.user_list() != new.user_list(),
            limit: None,
        }
    }

    /// True if there can't be a pool any more that a row is about.
    pub fn takes_away(&self, row: &Row) -> bool {
        match place(row) {
            Place::Nowhere => false,
            Place::Database(name) => self.gone.contains(&name),
            Place::Peer(id) => self.peers.contains(&id),
        }
    }

    /// True if nothing is known of what a row tells.
    pub fn outdates(&self, row: &Row) -> bool {
        let is_moved =
            matches!(place(row), Place::Database(name) if self.elsewhere.contains(&name));
        match row.kind {
            Kind::Pool => is_moved || self.takes_away(row),
            // Nobody may be left that has it.
            Kind::Statement => !self.gone.is_empty(),
            _ => self.takes_away(row),
        }
    }

    /// True if a field may say something else now.
    pub fn changes(&self, row: &Row, field: &Field<'_>) -> bool {
        match row.kind {
            Kind::Pool => self.tracking && POOL_TRACKED.contains(&field.tag),
            Kind::Client => match field.tag {
                CLIENT_PARAMETER => self.tracking,
                CLIENT_LOGIN => self.users,
                CLIENT_CONSOLE => !self.gone.is_empty(),
                _ => false,
            },
            // Asked for by itself.
            Kind::Server if field.tag == CLOSE_NEEDED => true,
            Kind::Server => self.tracking && field.tag == SERVER_PARAMETER,
            _ => false,
        }
    }
}

impl Plan {
    /// Somebody edits the files of a successor; that may be what no RELOAD changes, too.
    fn rewrite(&mut self, dice: &mut Dice) -> String {
        let at = dice.below(self.databases.len());
        match dice.below(10) {
            0 | 1 if self.databases.len() > 1 => {
                let gone = self.databases.remove(at);
                let text = format!("{} is gone", gone.name);
                self.removed.push(gone);
                text
            }
            2 | 3 => {
                edit_place(&mut self.databases[at].entry, dice);
                format!("{:?}", self.databases[at])
            }
            4 => {
                let extra = &mut self.settings.track_extra_parameters;
                let all = if extra.is_empty() { STYLE } else { "" };
                *extra = all.to_owned();
                format!("track_extra_parameters = {extra}")
            }
            5 => {
                self.settings.max_prepared_statements = dice.pick(&[0, 1, 3, 200]);
                format!("max_prepared_statements = {}", self.settings.max_prepared_statements)
            }
            _ => self.edit(dice),
        }
    }

    /// True if the pooler looks after more parameters than it has to.
    pub fn tracks_more(&self) -> bool {
        !self.settings.track_extra_parameters.is_empty()
    }
}

impl World {
    /// What the files of a successor say now.
    pub fn draw_news(&mut self) -> News {
        let old = self.plan.clone();
        let is_new = self.files.change && self.successor_dice.chance(60);
        if is_new {
            for _ in 0..=self.successor_dice.below(3) {
                let what = self.plan.rewrite(&mut self.successor_dice);
                self.trace(|_| format!("  the successor's files: {what}"));
            }
            let limit = &mut self.plan.settings.max_prepared_statements;
            *limit = self.files.limit.unwrap_or(*limit);
        }
        let mut news = News::between(&old, &self.plan);
        news.limit = is_new.then_some(old.settings.max_prepared_statements);
        news
    }

    /// What a successor reads. What SET has changed it hears from the old process: its files say
    /// something else.
    pub fn files_there(&mut self) -> Plan {
        let mut files = self.plan.clone();
        if self.files.limit.is_some() {
            files.settings.max_prepared_statements = self.successor_dice.pick(&[0, 1, 3, 200]);
        }
        files
    }

    /// A server is to be closed if and only if it was before, or leads to an old place, or is of old
    /// knowledge.
    pub fn check_replaced(&self, news: &News, moved: &Moved, next: &Core) {
        for (id, new_id) in moved.servers() {
            let (Some(old), Some(new)) = (self.core.servers().get(id), next.servers().get(new_id))
            else {
                continue;
            };
            let name = self.core.pool(old.pool()).map_or("", |pool| pool.names().0);
            let is_outdated = news.elsewhere.contains(name) || news.tracking;
            let is_carrier = old.state() == ServerState::ActiveCancel;
            let want = old.close_needed() || is_outdated && !is_carrier;
            if new.close_needed() != want {
                let state = old.state();
                self.fail(&format!("REPLACED: {id:?} of {name} ({state:?}) should be: {want}"));
            }
        }
    }

    /// Who can't go on, and what it is told.
    pub fn doomed(&self, news: &News, moved: &Moved) -> Vec<Doomed> {
        let mut doomed = Vec::new();
        for (id, client) in self.core.clients().iter().filter(|(_, it)| !it.is_looked_up()) {
            let pool = client.pool().and_then(|pool| self.core.pool(pool));
            let Some(pool) = pool.filter(|_| client.state() != ClientState::Login) else {
                continue;
            };
            let why = match pool.peer() {
                Some(peer) if news.peers.contains(&peer) => "peer removed".to_owned(),
                None if news.gone.contains(pool.names().0) => {
                    format!("no such database: {}", pool.names().0)
                }
                _ => continue,
            };
            let is_told = matches!(client.state(), ClientState::Active | ClientState::Waiting);
            if let Some(id) = moved.client(id) {
                doomed.push((id, client.number(), is_told, why));
            }
        }
        doomed
    }

    /// What was done must show: who can't go on is closed, and told why.
    pub fn check_doomed(&self, doomed: &[Doomed]) {
        for (id, number, is_told, why) in doomed {
            let closed = self.facts.closed.get(&client::pointer(*number));
            let told = self.facts.fatals.get(id);
            let fits = closed == Some(why) && (!is_told || told == Some(why));
            if !fits || self.core.clients().get(*id).is_some() {
                self.fail(&format!(
                    "HANDOFF: {id:?} should hear {why:?}, hears {told:?}, closed for {closed:?}"
                ));
            }
        }
    }

    /// What is new is no surprise to the oracles, as after a RELOAD.
    pub fn take_news(&mut self, news: &News) {
        let Some(limit) = news.limit else { return };
        self.facts.reloaded = true;
        self.facts.replaced |= news.tracking || !news.elsewhere.is_empty();
        for name in news.gone.iter().chain(&news.elsewhere) {
            self.forget(name);
        }
        self.facts.removed.extend(news.gone.iter().cloned());
        self.watch.borrow_mut().lose_databases(&news.gone);
        self.note_unlisted();
        for server in self.servers.values_mut() {
            server.is_reset = false;
        }
        self.note_tracking(limit);
        if news.tracking {
            self.change_era();
        }
    }

    /// The list of users may be another one. Who is looked up counts as what is found out in the end.
    pub fn note_unlisted(&self) {
        if !self.plan.looks_up() {
            self.watch.borrow_mut().unlisted.clone_from(&self.plan.unlisted);
        }
    }

    /// Other parameters are tracked from now on. Who has no server has what its pool knows.
    fn change_era(&mut self) {
        self.files.era += 1;
        let era = self.files.era;
        let styles = self.plan.tracks_more().then_some(era);
        for server in self.servers.values_mut() {
            server.era = era;
        }
        for at in 0..self.clients.len() {
            let client = self.core.clients().get(self.clients[at].id);
            let free = client.filter(|client| client.server().is_none());
            let pool = free.and_then(|client| self.core.pool(client.pool()?));
            let is_known = pool.is_some_and(|pool| self.knows(pool));
            let client = &mut self.clients[at];
            client.params.remove(STYLE);
            if is_known {
                client.params.insert(STYLE.to_owned(), "postgres".to_owned());
            }
            // What is under way was said before.
            client.styles = styles.filter(|_| client.is_settled());
        }
    }
}

/// The fields of a row that another one does not have, but for those that may change.
pub fn besides<'a>(row: &'a Row, other: Option<&'a Told>, news: &News) -> Vec<Field<'a>> {
    let has = |field: &Field<'_>| {
        other.is_some_and(|(other, _)| read(&other.state).any(|it| it == *field))
    };
    read(&row.state).filter(|field| !has(field) && !news.changes(row, field)).collect()
}

impl Moved {
    /// All servers that have gone over: who each was, and who it is.
    pub fn servers(&self) -> impl Iterator<Item = (ServerId, ServerId)> + '_ {
        self.servers.iter().map(|(old, new)| (*old, *new))
    }

    /// Who a client is now.
    pub fn client(&self, old: ClientId) -> Option<ClientId> {
        self.clients.get(&old).copied()
    }
}
