//! What the core's objects take, for the console (admin 3.10).

use super::derive::{Adhoc, KeptKeys};
use super::replies::Replies;
use super::Core;
use crate::auth::{PassKeys, Secret};
use crate::base::Objects;
use crate::config::PeerEntry;

/// What the core's objects take, kind by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Users without their credentials.
    pub users: Objects,
    /// Secrets of users, and what was derived from them.
    pub credentials: Objects,
    /// Databases.
    pub databases: Objects,
    /// Peers.
    pub peers: Objects,
    /// Pools.
    pub pools: Objects,
    /// Replies that servers owe.
    pub replies: Objects,
    /// Servers.
    pub servers: Objects,
    /// Clients.
    pub clients: Objects,
    /// Sets of values of the tracked parameters.
    pub vars: Objects,
    /// Prepared statements on servers.
    pub statements: Objects,
}

/// The part of a user that depends on its secret, in bytes.
const CREDENTIALS: usize = size_of::<Secret>()
    + size_of::<Adhoc>()
    + size_of::<Option<PassKeys>>()
    + size_of::<Option<KeptKeys>>();

impl Core {
    /// What everything takes.
    pub fn memory(&self) -> Memory {
        let users = self.users.objects();
        let mut replies = Replies::default().objects();
        for (_, server) in self.servers.iter() {
            let owed = server.replies.objects();
            replies.used = replies.used.saturating_add(owed.used);
            replies.free = replies.free.saturating_add(owed.free);
        }
        Memory {
            users: Objects { size: users.size.saturating_sub(CREDENTIALS), ..users },
            credentials: Objects { size: CREDENTIALS, ..users },
            databases: self.databases.objects(),
            peers: Objects { size: size_of::<(u32, PeerEntry)>(), used: self.peers.len(), free: 0 },
            pools: self.pools.objects(),
            replies,
            servers: self.servers.objects(),
            clients: self.clients.objects(),
            vars: self.shared.objects(&self.tracked),
            statements: self.statements.objects(),
        }
    }
}
