//! Servers and their states.

use super::connect::ServerLogin;
use super::face::{Addr, ClientId, Facts, ServerId};
use super::pool::PoolId;
use super::replies::Replies;
use super::statements::Shelf;
use super::vars::Vars;
use crate::base::list::{Linked, Links};
use crate::base::Micros;

/// A server's state is the list of its pool that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// Connecting and logging in.
    Login,
    /// Free.
    Idle,
    /// Linked to a client.
    Active,
    /// Free, but idle for so long that it is checked before use.
    Used,
    /// Running the reset or the check query.
    Tested,
    /// Carries a cancel request to PostgreSQL.
    ActiveCancel,
    /// Would be free, but a cancel request against it is still on its way.
    BeingCanceled,
}

impl ServerState {
    /// Number of states.
    pub const COUNT: usize = 7;

    /// All states in the order of SHOW SERVERS, with the word that it shows.
    pub const SHOWN: [(ServerState, &'static str); ServerState::COUNT] = [
        (ServerState::Active, "active"),
        (ServerState::Idle, "idle"),
        (ServerState::Used, "used"),
        (ServerState::Tested, "tested"),
        (ServerState::Login, "new"),
        (ServerState::ActiveCancel, "active_cancel"),
        (ServerState::BeingCanceled, "being_canceled"),
    ];

    /// May a server go from `self` to `to`?
    pub fn may_become(self, to: ServerState) -> bool {
        use ServerState as S;
        matches!(
            (self, to),
            (S::Login, S::Idle | S::ActiveCancel)
                | (S::Idle, S::Active | S::Used)
                | (S::Active, S::Idle | S::Tested | S::Used | S::BeingCanceled)
                | (S::Used, S::Tested | S::Idle)
                | (S::Tested, S::Idle)
                | (S::BeingCanceled, S::Idle | S::Tested | S::Used)
        )
    }
}

/// Where a logged-in server is in its conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Last ReadyForQuery said `I`, nothing was sent since.
    Ready,
    /// As `Ready`, and linked to a client whose first packet has not been forwarded yet.
    Reserved,
    /// Something was sent, ReadyForQuery has not come.
    Busy,
    /// Last ReadyForQuery said `T`.
    InTransaction,
    /// Last ReadyForQuery said `E`.
    InFailedTransaction,
}

/// A connection that we made to PostgreSQL.
pub struct Server {
    pub(super) state: ServerState,
    pub(super) status: Status,
    /// All that it sent so far was complete packets and has been delivered.
    pub(super) delivered: bool,
    /// To be closed as soon as it is free.
    pub(super) close_needed: bool,
    /// The client of the link; set and cleared in `Core::tie` and `Core::unlink` only.
    pub(super) client: Option<ClientId>,
    pub(super) pool: PoolId,
    pub(super) last_packet: Micros,
    pub(super) replies: Replies,
    /// Its prepared statements; exists from the first one on.
    pub(super) shelf: Option<Box<Shelf>>,
    pub(super) vars: Vars,
    pub(super) links: Links<Server>,
    pub(super) key: Option<u64>,
    /// The cancel request that this connection carries, and the server that it is aimed at: that
    /// one is nobody else's until this connection ends, also if the request's client is gone.
    pub(super) carries: Option<(ClientId, ServerId)>,
    /// Cancel requests against this server that have been sent and not been answered by a close.
    pub(super) cancels_in_flight: u32,
    /// Which element of a list of hosts it is connected to.
    pub(super) host: u32,
    pub(super) connect_time: Micros,
    pub(super) number: u64,
    pub(super) remote: Addr,
    pub(super) local: Addr,
    /// Exists until the server is logged in.
    pub(super) login: Option<Box<ServerLogin>>,
    /// What is known of it if it is encrypted.
    pub(super) tls: Option<Box<Facts>>,
}

impl Linked for Server {
    fn links(&self) -> &Links<Server> {
        &self.links
    }
    fn links_mut(&mut self) -> &mut Links<Server> {
        &mut self.links
    }
}

impl Server {
    /// What is known of its TLS; `None` in plain text.
    pub fn tls(&self) -> Option<&Facts> {
        self.tls.as_deref()
    }
    /// Its state.
    pub fn state(&self) -> ServerState {
        self.state
    }
    /// Where it is in its conversation.
    pub fn status(&self) -> Status {
        self.status
    }
    /// The client that it is linked to.
    pub fn client(&self) -> Option<ClientId> {
        self.client
    }
    /// Its pool.
    pub fn pool(&self) -> PoolId {
        self.pool
    }
    /// The cancel key that PostgreSQL gave us; 0 if none.
    pub fn cancel_key(&self) -> u64 {
        self.key.unwrap_or(0)
    }
    /// When connecting began.
    pub fn connect_time(&self) -> Micros {
        self.connect_time
    }
    /// When its last packet arrived.
    pub fn last_packet(&self) -> Micros {
        self.last_packet
    }
    /// Its number, unique among clients and servers.
    pub fn number(&self) -> u64 {
        self.number
    }
    /// The other end.
    pub fn remote(&self) -> Addr {
        self.remote
    }
    /// Our end.
    pub fn local(&self) -> Addr {
        self.local
    }
    /// True if it is closed as soon as it is free.
    pub fn close_needed(&self) -> bool {
        self.close_needed
    }
    /// The process id of the PostgreSQL process: the first half of its cancel key.
    pub fn process_id(&self) -> i32 {
        self.key.map_or(0, |key| (key >> 32) as u32 as i32)
    }
    /// The tracked parameters.
    pub fn vars(&self) -> &Vars {
        &self.vars
    }
    /// How many prepared statements it has.
    pub fn prepared(&self) -> usize {
        self.shelf.as_ref().map_or(0, |shelf| shelf.len())
    }
    /// True if nothing is running, open or owed.
    pub fn is_clean(&self) -> bool {
        matches!(self.status, Status::Ready | Status::Reserved) && self.replies.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_idle_server_becomes_active() {
        for (state, _) in ServerState::SHOWN {
            assert_eq!(state.may_become(ServerState::Active), state == ServerState::Idle);
        }
    }
}
