//! The oracle of prepared statements that the pooler keeps: for whom it does, how many a server may
//! have, and what is left when everybody has gone.

use crate::net::key;
use crate::plan::Plan;
use crate::server::{Nature, Server};
use crate::talk;
use crate::world::World;
use pgturnstile::config::PoolMode;
use pgturnstile::core::server::ServerState;
use pgturnstile::core::{ClientId, Peer};
use std::collections::BTreeSet;

/// How many statements a server may have more than the limit says: what it had before a limit was
/// lowered goes with the next new one, and so does what was not closed behind an error.
#[derive(Clone, Copy, Default)]
pub struct Allowance {
    surplus: usize,
    /// The limit has just changed, and new statements may be on their way.
    changed: bool,
    /// New statements as of then.
    parses: u64,
}

impl Allowance {
    /// More was allowed until now.
    pub fn limit_was(&mut self, limit: i32) {
        if limit != 0 {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            self.surplus = self.surplus.max(limit);
        }
        self.changed = true;
    }

    /// What is allowed to a server that is at rest, has so many and has been given so many.
    fn at_rest(&mut self, limit: usize, has: usize, parses: u64) -> usize {
        if std::mem::take(&mut self.changed) {
            self.parses = parses;
        }
        if limit > 0 && (has <= limit || parses > self.parses) {
            self.surplus = 0;
        }
        limit.max(self.surplus)
    }
}

impl Plan {
    /// True if the pooler keeps the statements of a pool's clients.
    pub fn keeps_statements(&self, (database, user): (&str, &str)) -> bool {
        let own = self.user(user).pool_mode.or(self.database(database).pool_mode);
        let mode = own.unwrap_or(self.settings.pool_mode);
        mode != PoolMode::Session && self.settings.max_prepared_statements != 0
    }
}

impl World {
    /// A client says something.
    pub fn client_acts(&mut self, at: usize) -> &'static str {
        let client = &self.clients[at];
        let tracked = self.is_tracked(client.id);
        let client = &mut self.clients[at];
        client.names.tracked = tracked;
        client.texts = self.plan.texts;
        talk::act(client, &mut self.dice)
    }

    fn is_tracked(&self, id: ClientId) -> bool {
        let pool = self.core.clients().get(id).and_then(|client| client.pool());
        let pool = pool.and_then(|pool| self.core.pool(pool));
        pool.is_some_and(|pool| !pool.is_console() && self.plan.keeps_statements(pool.names()))
    }

    /// Modes or the number of statements may have changed: what clients have under way may be
    /// taken either way, and what they have prepared is out of sight.
    pub fn note_tracking(&mut self, limit_before: i32) {
        let changed: Vec<(usize, bool)> = (0..self.clients.len())
            .map(|at| (at, self.is_tracked(self.clients[at].id)))
            .filter(|(at, tracked)| *tracked != self.clients[*at].names.tracked)
            .collect();
        for (at, tracked) in changed {
            let client = &mut self.clients[at];
            client.names.hazy |= !client.is_quiet() || !client.names.now.known.is_empty();
            client.names.tracked = tracked;
            if client.names.mistake.is_some() {
                // Whether it was one is an open question now.
                client.leave(false);
            }
        }
        let lower = limit_before != self.plan.settings.max_prepared_statements;
        for server in self.servers.values_mut().filter(|_| lower) {
            server.allowance.limit_was(limit_before);
        }
    }

    /// SET of the number of statements.
    pub fn set_limit(&mut self, limit: i32) {
        let settings = &mut self.plan.settings;
        let before = std::mem::replace(&mut settings.max_prepared_statements, limit);
        self.files.limit = Some(limit);
        self.note_tracking(before);
    }

    /// A server that is at rest has no more statements than it may, and as many as the core says;
    /// so has a client.
    pub fn check_statements(&mut self) {
        let limit = self.plan.settings.max_prepared_statements;
        for (id, server) in self.core.servers().iter() {
            if !matches!(server.state(), ServerState::Idle | ServerState::Used) {
                continue;
            }
            let Some(model) = self.servers.get_mut(&key(Peer::Server(id))) else { continue };
            let is_good = model.nature == Nature::Good && !model.is_gone();
            let has = model.pooled().count();
            if is_good && has != server.prepared() {
                let text = format!("{id:?} has {has}, the core says {}", server.prepared());
                self.fail(&format!("STATEMENTS: {text}"));
            }
            let Ok(limit) = usize::try_from(limit) else { continue };
            let allowed = model.allowance.at_rest(limit, has, model.pooled_parses);
            let bad = limit > 0 && has > allowed && !model.is_gone();
            if bad {
                self.fail(&format!("STATEMENTS: {id:?} has {has}, {allowed} are allowed"));
            }
        }
        for client in &self.clients {
            let names = &client.names;
            let known = self.core.clients().get(client.id).filter(|_| client.is_quiet());
            let known = known.filter(|_| names.are_kept() && names.mistake.is_none());
            let has = names.now.count();
            if known.is_some_and(|known| known.prepared() != has) {
                let says = known.map(|known| known.prepared());
                let number = client.number;
                self.fail(&format!(
                    "STATEMENTS: client {number} has {has}, the core says {says:?}"
                ));
            }
        }
    }

    /// When all clients have left, the store has what servers have, and nothing else.
    pub fn check_store(&self) {
        let servers = self.core.servers().iter();
        let held: usize = servers.map(|(_, server)| server.prepared()).sum();
        let models: Option<Vec<&Server>> = self
            .core
            .servers()
            .iter()
            .map(|(id, _)| self.servers.get(&key(Peer::Server(id))))
            .collect();
        let Some(models) = models else { return };
        let names: BTreeSet<&str> = models.iter().flat_map(|model| model.pooled()).collect();
        let has = self.core.statements().len();
        if has != names.len() {
            self.fail(&format!(
                "LEAK: the store has {has} statements, servers have {held}: {names:?}"
            ));
        }
    }
}
