//! Clients and their states.

use super::console::Console;
use super::database::UserId;
use super::face::{Addr, Facts, ServerId};
use super::login::Login;
use super::pool::PoolId;
use super::replication::Replication;
use super::revoke::Revoked;
use super::statements::Names;
use super::vars::Vars;
use crate::base::list::{Linked, Links};
use crate::base::Micros;
use std::rc::Rc;

/// A client's state is the list that it is in: `Login` is the core's, the others are its pool's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientState {
    /// Start-up and authentication.
    Login,
    /// Logged in: linked to a server, or with nothing to do.
    Active,
    /// In the wait queue of its pool; or of the one where its user is to be looked up.
    Waiting,
    /// Its user is being looked up for another client, which carries the look-up.
    Joined,
    /// A cancel request that waits for a connection to carry it.
    WaitingCancel,
    /// A cancel request that has been sent.
    ActiveCancel,
}

impl ClientState {
    /// Number of states.
    pub const COUNT: usize = 6;

    /// May a client go from `self` to `to`?
    pub fn may_become(self, to: ClientState) -> bool {
        use ClientState as S;
        matches!(
            (self, to),
            (S::Login, S::Active | S::Waiting | S::Joined | S::WaitingCancel)
                | (S::Active, S::Waiting)
                | (S::Waiting, S::Active | S::Login)
                | (S::Joined, S::Waiting | S::Login)
                | (S::WaitingCancel, S::ActiveCancel)
        )
    }
}

/// What a console client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// SHOW only.
    Stats,
    /// Everything.
    Admin,
}

/// Whose limits a client counts against, until it closes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Counted {
    /// Nobody's: it has not said what it wants, or is a cancel request.
    #[default]
    Nowhere,
    /// Its database's.
    Database,
    /// Its database's and its login user's, or if it has none the pool's user's.
    DatabaseAndUser,
}

/// A connection that a client made to us. Times of zero mean "not running".
pub struct Client {
    pub(super) state: ClientState,
    /// The server of the link; set and cleared in `Core::tie` and `Core::unlink` only.
    pub(super) server: Option<ServerId>,
    pub(super) pool: Option<PoolId>,
    pub(super) last_packet: Micros,
    pub(super) query_start: Option<Micros>,
    pub(super) transaction_start: Option<Micros>,
    pub(super) wait_start: Option<Micros>,
    /// The welcome message has been sent.
    pub(super) welcomed: bool,
    /// It has been told that it waits (query_wait_notify).
    pub(super) notified: bool,
    /// Whose client limits it counts against.
    pub(super) counted: Counted,
    /// What it has asked for; its start-up options are in `Core::startup_options`.
    pub(super) replication: Replication,
    pub(super) vars: Vars,
    pub(super) links: Links<Client>,
    /// The login user, if it is a known one.
    pub(super) user: Option<UserId>,
    pub(super) user_name: Option<Rc<str>>,
    pub(super) database_name: Option<Rc<str>>,
    /// The key that it was given; of a cancel request, the one that it takes to a peer.
    pub(super) cancel_key: u64,
    /// The server that a cancel request is aimed at, as long as it makes sense to send it; when it
    /// has been sent, the connection that carries it.
    pub(super) cancels: Option<ServerId>,
    /// What is left of a query that was canceled while it waited for a server.
    pub(super) revoked: Option<Revoked>,
    /// Some of what it sent has been ignored for that: what it says of names may be wrong.
    pub(super) was_revoked: bool,
    pub(super) connect_time: Micros,
    pub(super) number: u64,
    pub(super) remote: Addr,
    pub(super) local: Addr,
    /// User id of the process at the other end of a Unix socket.
    pub(super) uid: Option<u32>,
    /// Exists until the client is logged in.
    pub(super) login: Option<Box<Login>>,
    pub(super) console: Option<Box<Console>>,
    /// Its prepared statements; exists from the first one on.
    pub(super) names: Option<Box<Names>>,
    /// What is known of it if it is encrypted.
    pub(super) tls: Option<Box<Facts>>,
}

impl Linked for Client {
    fn links(&self) -> &Links<Client> {
        &self.links
    }
    fn links_mut(&mut self) -> &mut Links<Client> {
        &mut self.links
    }
}

impl Client {
    /// Its state.
    pub fn state(&self) -> ClientState {
        self.state
    }
    /// The server that it is linked to.
    pub fn server(&self) -> Option<ServerId> {
        self.server
    }
    /// Its pool, once that is known.
    pub fn pool(&self) -> Option<PoolId> {
        self.pool
    }
    /// The cancel key that it was given; 0 if none.
    pub fn cancel_key(&self) -> u64 {
        self.cancel_key
    }
    /// When it was accepted.
    pub fn connect_time(&self) -> Micros {
        self.connect_time
    }
    /// When its last packet arrived.
    pub fn last_packet(&self) -> Micros {
        self.last_packet
    }
    /// When the query that is not finished yet began.
    pub fn query_start(&self) -> Option<Micros> {
        self.query_start
    }
    /// When it entered the wait queue.
    pub fn wait_start(&self) -> Option<Micros> {
        self.wait_start
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
    /// The user name that it gave.
    pub fn user_name(&self) -> Option<&str> {
        self.user_name.as_deref()
    }
    /// The tracked parameters.
    pub fn vars(&self) -> &Vars {
        &self.vars
    }
    /// What is known of its TLS; `None` in plain text.
    pub fn tls(&self) -> Option<&Facts> {
        self.tls.as_deref()
    }
    /// True if it has been told that it is logged in.
    pub fn is_inside(&self) -> bool {
        self.welcomed
    }
    /// True for clients of the admin database.
    pub fn is_console(&self) -> bool {
        self.console.is_some()
    }
    /// The console that it is.
    pub fn console(&self) -> Option<&Console> {
        self.console.as_deref()
    }
    /// What it may do on the console.
    pub fn access(&self) -> Option<Access> {
        self.console.as_ref().map(|console| console.access)
    }
}

/// What `Core::prefix` shows of an object: an identifier made from its number, stable while it
/// lives and never used again, in the form of the reference's addresses.
pub fn pointer(number: u64) -> u64 {
    number.wrapping_mul(0x400).wrapping_add(0x0055_0000_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_shares_a_look_up_never_gets_a_server_by_it() {
        assert!(ClientState::Waiting.may_become(ClientState::Active));
        assert!(!ClientState::Joined.may_become(ClientState::Active));
        assert!(!ClientState::ActiveCancel.may_become(ClientState::Active));
    }

    #[test]
    fn a_client_is_small() {
        assert!(size_of::<Client>() <= 368, "{}", size_of::<Client>());
    }
}
