//! Hosts with roles that change, and what target_session_attrs means for them.

use crate::dice::Dice;
use crate::net::key;
use crate::plan::Plan;
use crate::server::Role;
use crate::world::World;
use pgturnstile::config::{DatabaseEntry, SessionAttrs};
use pgturnstile::core::client::ClientState;
use pgturnstile::core::server::ServerState;
use pgturnstile::core::{Addr, Decisions, Peer, ServerId};
use std::collections::BTreeSet;

/// The hosts that there are.
const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

/// Who is what.
pub struct Roles {
    standbys: BTreeSet<&'static str>,
    /// No server reports what it is.
    are_old: bool,
}

impl Roles {
    /// In a calm run there are always a primary and a standby.
    pub fn new(dice: &mut Dice, calm: bool) -> Roles {
        let mut roles = Roles::settled(dice.chance(30));
        if !calm && dice.chance(50) {
            roles.standbys = HOSTS.into_iter().filter(|_| dice.chance(50)).collect();
        }
        roles
    }

    fn settled(are_old: bool) -> Roles {
        Roles { standbys: ["h2"].into(), are_old }
    }

    /// The role of a server at this host.
    pub fn of(&self, host: &str) -> Role {
        let is_standby = self.standbys.contains(host);
        Role {
            host: host.to_owned(),
            is_standby,
            was_standby: is_standby,
            is_old: self.are_old,
            said: None,
        }
    }
}

/// Draws what a database wants; then it has a list in which there may be that.
pub fn draw(entry: &mut DatabaseEntry, dice: &mut Dice) {
    use SessionAttrs as W;
    let all = [W::Any, W::ReadWrite, W::ReadOnly, W::Primary, W::Standby, W::PreferStandby];
    entry.target_session_attrs = dice.chance(40).then(|| dice.pick(&all));
    fix(entry, dice);
}

/// Who wants something has a list in which there may be that.
pub fn fix(entry: &mut DatabaseEntry, dice: &mut Dice) {
    if entry.target_session_attrs.is_some() {
        entry.host = Some(dice.pick(&["h1,h2", "h2,h1", "h1,h2,h3"]).to_owned());
    }
}

/// True if a server that says this of itself is not what is wanted.
fn is_unfit(wanted: SessionAttrs, is_standby: bool) -> bool {
    match wanted {
        SessionAttrs::Any | SessionAttrs::PreferStandby => false,
        SessionAttrs::ReadWrite | SessionAttrs::Primary => is_standby,
        SessionAttrs::ReadOnly | SessionAttrs::Standby => !is_standby,
    }
}

impl Plan {
    fn wanted(&self, database: &str) -> SessionAttrs {
        self.database(database).target_session_attrs.unwrap_or_default()
    }
}

impl World {
    /// The name of the host that a server is at, or is to be.
    pub fn host_of(&self, id: ServerId) -> String {
        let host = self.core.target(id).map_or_else(String::new, |target| target.host);
        // Cancel requests go to an address.
        let mut known = (1..).zip(HOSTS);
        let named = known.find(|(last, _)| host == format!("127.0.0.{last}"));
        named.map_or(host, |(_, name)| name.to_owned())
    }

    /// The address of a server's host.
    pub fn address_of(&self, id: ServerId) -> Addr {
        let host = self.host_of(id);
        let last = HOSTS.iter().position(|name| *name == host).map_or(9, |at| at as u8 + 1);
        Addr::Inet(([127, 0, 0, last], 5432).into())
    }

    /// A host changes its role: promoted while it runs, or started anew as a standby.
    pub fn role_changes(&mut self) {
        let host = self.dice.pick(&HOSTS);
        let is_standby = self.roles.standbys.contains(host);
        self.set_role(host, !is_standby);
    }

    fn set_role(&mut self, host: &'static str, is_standby: bool) {
        let before = self.roles.standbys.contains(host);
        if before == is_standby {
            return;
        }
        match is_standby {
            true => self.roles.standbys.insert(host),
            false => self.roles.standbys.remove(host),
        };
        self.trace(|_| format!("{host} is a standby: {is_standby}"));
        for server in self.servers.values_mut().filter(|server| server.role.host == host) {
            match is_standby {
                true => server.die(false),
                false => server.role.is_standby = false,
            }
        }
    }

    /// From now on there are a primary and a standby.
    pub fn settle_roles(&mut self) {
        for (host, is_standby) in [("h1", false), ("h2", true)] {
            self.set_role(host, is_standby);
        }
    }

    /// True if a pool of a database that wants something tries a host, or would when it is time.
    pub fn is_searching(&self) -> bool {
        self.core.pools().any(|(_, pool)| {
            let tries = !pool.servers(ServerState::Login).is_empty()
                || !pool.servers(ServerState::Tested).is_empty()
                || !pool.clients(ClientState::Waiting).is_empty();
            tries && self.plan.wanted(pool.names().0) != SessionAttrs::Any
        })
    }

    /// A server was closed for its role: it has to be wrong.
    pub fn is_role_wrong(&self, database: &str, id: Option<&ServerId>) -> bool {
        let wanted = self.plan.wanted(database);
        let model = id.and_then(|id| self.servers.get(&key(Peer::Server(*id))));
        // What it says may not have arrived; then it is closed for what a neighbour said, or for
        // what it was before.
        let unfit = model.is_none_or(|model| {
            is_unfit(wanted, model.role.is_standby)
                || is_unfit(wanted, model.role.was_standby)
                || self.is_said_of(&model.role.host, wanted)
        });
        unfit || self.facts.replaced || self.facts.reloaded
    }

    /// True if a server that was at this host before, and has gone since, has said what is wrong: that
    /// may be heard only now.
    fn is_said_of(&self, host: &str, wanted: SessionAttrs) -> bool {
        let mut gone = self.servers.values().filter(|other| other.is_gone());
        gone.any(|other| {
            other.role.host == host && other.role.said.is_some_and(|is| is_unfit(wanted, is))
        })
    }

    /// A standby was preferred: there is such a pool, and the server is none.
    pub fn is_not_preferred(&self, database: &str, id: Option<&ServerId>) -> bool {
        let model = id.and_then(|id| self.servers.get(&key(Peer::Server(*id))));
        let is_primary =
            model.is_none_or(|model| model.role.said == Some(false) || !model.role.is_standby);
        let prefers = self.plan.wanted(database) == SessionAttrs::PreferStandby;
        is_primary && prefers || self.facts.replaced || self.facts.reloaded
    }

    /// A free server is what is wanted, as far as it has told.
    pub fn check_roles(&self) {
        for (id, server) in self.core.servers().iter() {
            let free = matches!(server.state(), ServerState::Idle | ServerState::Used);
            let Some(model) = self.servers.get(&key(Peer::Server(id))) else { continue };
            let Some(pool) = self.core.pool(server.pool()) else { continue };
            let quiet = !model.line.borrow().stirs() && !model.is_gone() && !model.chatty;
            let Some(said) = model.role.said.filter(|_| free && quiet && !server.close_needed())
            else {
                continue;
            };
            let wanted = self.plan.wanted(pool.names().0);
            if is_unfit(wanted, said) {
                self.fail(&format!("ROLES: {id:?} is free, {wanted:?} is wanted, standby {said}"));
            }
        }
    }
}
