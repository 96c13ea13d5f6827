//! Clients and servers of another process go on here: what its rows say becomes ours (takeover 6).
//!
//! A PgBouncer tells little: nothing of application_name, of prepared statements, of what a server
//! has still to answer. So a linked server serves its client until it is free and is closed then,
//! and one without a link is of no use.

use super::client::ClientState;
use super::connect;
use super::face::{ClientId, Origin, Peer, ServerId};
use super::fault::{self, Fault};
use super::pool::PoolId;
use super::record::{Kept, Record, PARAMETERS};
use super::replies::Replies;
use super::server::{ServerState, Status};
use super::statements::Shelf;
use super::vars::Vars;
use super::Core;
use std::collections::BTreeMap;

/// The old process told too little of a client: it was not logged in.
const NOT_LOGGED_IN: &str = "online restart during login";

impl Core {
    /// Takes over what the rows of an old process tell; each comes with both ends of its socket.
    /// Says of each row whose socket it is from now on: `None` for listening sockets, and for those
    /// that are to be closed. Actions follow when the sockets are ours.
    pub fn take_over(&mut self, rows: Vec<(Record, Origin)>) -> Vec<Option<Peer>> {
        let mut clients = BTreeMap::new();
        // Closed at the end, when no other can be given their place.
        let mut refused = Vec::new();
        let mut peers = vec![None; rows.len()];
        for ((record, from), peer) in rows.iter().zip(&mut peers) {
            if let Record::Client(kept) = record {
                let id = self.accepted(*from);
                if let Err(fault) = self.admit_inherited(id, kept) {
                    refused.push((id, fault));
                }
                *peer = Some(Peer::Client(id));
                if kept.link != 0 {
                    clients.insert(kept.fd, (id, kept.link));
                }
            }
        }
        for ((record, from), peer) in rows.into_iter().zip(&mut peers) {
            let Record::Server(kept) = record else { continue };
            let client = clients.get(&kept.link).filter(|(_, link)| *link == kept.fd);
            let Some((client, _)) = client.copied() else { continue };
            if let Some(id) = self.inherit_server(&kept, from, client) {
                clients.remove(&kept.link);
                *peer = Some(Peer::Server(id));
            }
        }
        let orphans = clients.into_values().map(|(id, _)| (id, fault::SERVER_CONN_CRASHED));
        for (id, fault) in refused.into_iter().chain(orphans) {
            self.close_client(id, &fault);
        }
        peers
    }

    /// A client that has proved itself to the old process: it is not asked again, and no limit
    /// refuses it.
    fn admit_inherited(&mut self, id: ClientId, kept: &Kept) -> Result<(), Fault> {
        let (Some(user), Some(name)) = (&kept.user, &kept.database) else {
            return Err(Fault::formatted(NOT_LOGGED_IN.into()));
        };
        let database = self.find_database(name, id);
        if let Some(client) = self.clients.get_mut(id) {
            client.user_name = Some(user.as_str().into());
            client.database_name = Some(name.as_str().into());
            if let Some(login) = client.login.as_mut() {
                login.database = database;
            }
        }
        let Some(database) = database else {
            return Err(Fault::formatted(format!("no such database: {name}")));
        };
        let _ = self.admit_to_database(id, database, user);
        let known = self.listed_user(user);
        if let Some(client) = self.clients.get_mut(id) {
            client.user = known;
        }
        self.attach(id);
        let _ = self.admit_user(id, user);
        self.log_attempt(id);
        let pool = self.clients.get(id).and_then(|client| client.pool);
        let pool = pool.ok_or(fault::BOUNCER_CONFIG_ERROR)?;
        if known.is_none() && (kept.secret.is_some() || kept.keys.is_some()) {
            self.remember_fetched(database, user, kept.secret.as_ref());
        }
        self.inherit_keys(pool, kept);
        self.move_client(id, ClientState::Active);
        if kept.cancel_key != 0 {
            self.cancel_keys.insert(kept.cancel_key, id);
        }
        let vars = self.inherited_vars(kept);
        if let Some(client) = self.clients.get_mut(id) {
            client.login = None;
            client.welcomed = true;
            client.cancel_key = kept.cancel_key;
            client.vars = vars;
            self.shared.share(&mut client.vars);
        }
        Ok(())
    }

    /// A server goes on with its client; `None` if that has been refused.
    fn inherit_server(&mut self, kept: &Kept, from: Origin, client: ClientId) -> Option<ServerId> {
        let pool = self.clients.get(client)?.pool?;
        let vars = self.inherited_vars(kept);
        let id = connect::insert(self, pool, 0);
        self.move_server(id, ServerState::Idle);
        self.link(client, id);
        let server = self.servers.get_mut(id)?;
        server.login = None;
        server.status = Status::Busy;
        server.replies = Replies::inherited();
        server.shelf = Some(Box::new(Shelf::inherited()));
        server.close_needed = true;
        server.key = Some(kept.cancel_key).filter(|key| *key != 0);
        (server.local, server.remote) = (from.local, from.remote);
        server.vars = vars;
        self.shared.share(&mut server.vars);
        if let Some(client) = self.clients.get_mut(client) {
            client.transaction_start = Some(self.now);
        }
        Some(id)
    }

    /// Servers of the pool are logged in with what the old process knew, unless we know better.
    fn inherit_keys(&mut self, pool: PoolId, kept: &Kept) {
        let Some(pool) = self.pools.get(pool) else { return };
        let Some(keys) = kept.keys.as_ref().filter(|_| !self.forces_user(pool)) else { return };
        let user = self.credentials(pool);
        if let Some(user) = self.users.get_mut(user) {
            user.keys.get_or_insert_with(|| keys.clone());
        }
    }

    fn inherited_vars(&self, kept: &Kept) -> Vars {
        let mut vars = Vars::new();
        for (name, value) in PARAMETERS.iter().zip(&kept.parameters) {
            let at = self.tracked.find(name.as_bytes());
            if let (Some(at), Some(value)) = (at, value) {
                vars.set(&self.tracked, at, value.as_slice().into());
            }
        }
        vars
    }

    /// The pool's first server tells what its clients should have been welcomed with: what is not
    /// known of those that came from another process.
    pub(super) fn fill_inherited(&mut self, id: PoolId) {
        let Some(pool) = self.pools.get(id) else { return };
        let Some(welcome) = pool.welcome.clone() else { return };
        let states = [ClientState::Active, ClientState::Waiting];
        for client in states.map(|state| pool.clients(state).ids(&self.clients)).concat() {
            if let Some(client) = self.clients.get_mut(client).filter(|client| client.welcomed) {
                client.vars.fill(&self.tracked, &welcome.vars);
                self.shared.share(&mut client.vars);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::face::{Addr, Verdict};
    use super::super::run_tests::{Scene, QUERY};
    use super::*;

    #[test]
    fn a_client_that_waits_for_the_first_server_learns_its_parameters_too() {
        let mut scene = Scene::new("");
        let name = |name: &str| Some(name.to_owned());
        let kept = || Kept { user: name("u"), database: name("d"), ..Kept::default() };
        let from = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
        let rows = [kept(), kept()].map(|kept| (Record::Client(kept), from));
        let ids = scene.core.take_over(rows.into()).into_iter().map(|peer| match peer {
            Some(Peer::Client(id)) => id,
            other => panic!("{other:?}"),
        });
        let ids: Vec<_> = ids.collect();
        assert_eq!(scene.told(ids[0], QUERY), Verdict::Wait);
        scene.core.turn_end();
        scene.act();
        scene.server();
        for id in ids {
            let vars = &scene.core.clients.get(id).unwrap().vars;
            let at = scene.core.tracked.find(b"TimeZone").unwrap();
            assert_eq!(vars.get(at).map(|value| value.to_vec()), Some(b"GMT".to_vec()));
        }
    }
}
