//! SUSPEND: every connection stops between two packets with nothing in our memory, so that another
//! process could take over the sockets (admin 4.3).

use super::client::ClientState;
use super::face::{Action, ClientId, Peer, ServerId};
use super::fault;
use super::pause::Mode;
use super::pool::Pool;
use super::server::ServerState;
use super::waits::Wait;
use super::Core;
use crate::base::{Level, Micros};

/// A SUSPEND that is in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspension {
    since: Micros,
    /// Who has asked for it.
    console: ClientId,
    is_complete: bool,
}

/// Who is not at rest yet.
#[derive(Default)]
struct Restless {
    clients: Vec<ClientId>,
    servers: Vec<ServerId>,
}

impl Core {
    /// SUSPEND. The console is answered when everything is at rest.
    pub fn suspend(&mut self, console: ClientId) {
        self.mode = Mode::Suspended;
        self.suspension = Some(Suspension { since: self.now, console, is_complete: false });
        self.await_(console, Wait::Suspend);
        self.actions.push_back(Action::Suspend(true));
    }

    /// True while SUSPEND is in force: `check_suspension` wants to know at the end of each turn.
    pub fn is_suspended(&self) -> bool {
        self.suspension.is_some()
    }

    /// Ends a suspension, if one is in force. Who still waits for it is answered: it has ended.
    pub(super) fn end_suspension(&mut self) {
        if self.suspension.take().is_some() {
            self.actions.push_back(Action::Suspend(false));
            self.end_waits(|what| what == Wait::Suspend);
        }
    }

    /// A suspended connection is not read between two packets, unless it has no such rest to come
    /// to: consoles, logins, tests and cancel requests go on. So do the servers of a pool as long as
    /// clients wait for one (admin 4.3).
    pub(super) fn reads_while_suspended(&self, peer: Peer) -> bool {
        match peer {
            Peer::Client(id) => self
                .clients
                .get(id)
                .is_none_or(|c| c.console.is_some() || !c.welcomed || c.is_ignored()),
            Peer::Server(id) => self.servers.get(id).is_none_or(|server| {
                let may_rest = matches!(server.state, ServerState::Active | ServerState::Idle);
                let pool = self.pools.get(server.pool);
                let waits = |pool: &Pool| !pool.clients(ClientState::Waiting).is_empty();
                !may_rest || server.is_ours() || pool.is_some_and(waits)
            }),
        }
    }

    /// A client has begun to wait: while SUSPEND is in force, servers that had stopped being read
    /// are read again.
    pub(super) fn read_servers_again(&mut self) {
        if self.is_suspended() {
            self.actions.push_back(Action::Suspend(true));
        }
    }

    /// Looks how far a suspension has come; `is_quiet` tells of a connection that nothing of it is
    /// in our memory. What is not at rest after suspend_timeout is closed.
    pub fn check_suspension(&mut self, is_quiet: impl Fn(Peer) -> bool) {
        let Some(suspension) = self.suspension else { return };
        if suspension.is_complete {
            // Others may be monitoring; they can't know that a successor has died.
            if self.clients.get(suspension.console).is_none() {
                let line = "admin disappeared when suspended, doing RESUME";
                self.journal.line(Level::Log, line.into());
                self.resume_all();
            }
            return;
        }
        self.close_unusable();
        let restless = self.restless(is_quiet);
        let limit = self.settings.suspend_timeout;
        let is_over = limit.is_set() && self.now.since(suspension.since) > limit;
        if is_over {
            for id in &restless.clients {
                self.close_client(*id, &fault::SUSPEND_TIMEOUT);
            }
            for id in &restless.servers {
                self.close_server(*id, &fault::SUSPEND_TIMEOUT, true);
            }
            // Servers of clients that have just been closed would first have to be reset.
            self.close_unusable();
        }
        if is_over || restless.clients.is_empty() && restless.servers.is_empty() {
            if let Some(suspension) = self.suspension.as_mut() {
                suspension.is_complete = true;
            }
            self.end_waits(|what| what == Wait::Suspend);
        }
    }

    /// The janitor does not come, but who waits still gets what time allows: a retry, the reserve.
    pub(super) fn mark_waiting(&mut self) {
        for id in self.pools.ids() {
            let waits = |pool: &Pool| {
                !pool.clients(ClientState::Waiting).is_empty()
                    || !pool.clients(ClientState::WaitingCancel).is_empty()
            };
            if self.pools.get(id).is_some_and(waits) {
                self.mark(id);
            }
        }
    }

    /// Servers that would first have to be tested are of no use to a successor, once nobody waits
    /// for them; nor are those that are not to be used again.
    fn close_unusable(&mut self) {
        for id in self.pools.ids() {
            let Some(pool) = self.pools.get(id) else { continue };
            if !pool.clients(ClientState::Waiting).is_empty() {
                continue;
            }
            let list = |state| pool.servers(state).ids(&self.servers).into_iter();
            let idle = list(ServerState::Idle).filter(|id| {
                self.servers.get(*id).is_none_or(|server| server.close_needed || !server.is_clean())
            });
            let untested = list(ServerState::Used).chain(list(ServerState::Tested));
            for server in untested.chain(idle).collect::<Vec<_>>() {
                self.close_server(server, &fault::UNSAFE_ON_SUSPEND, true);
            }
        }
    }

    fn restless(&self, is_quiet: impl Fn(Peer) -> bool) -> Restless {
        let clients = self.clients.iter().filter(|(id, client)| {
            let at_rest = client.state == ClientState::Active && !client.is_ignored();
            let at_rest = at_rest && is_quiet(Peer::Client(*id));
            client.console.is_none() && !at_rest
        });
        let servers = self.servers.iter().filter(|(id, server)| {
            let may_rest = matches!(server.state, ServerState::Active | ServerState::Idle);
            !(may_rest && is_quiet(Peer::Server(*id)))
        });
        Restless {
            clients: clients.map(|(id, _)| id).collect(),
            servers: servers.map(|(id, _)| id).collect(),
        }
    }
}
