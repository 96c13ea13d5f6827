//! Connections end: the only two functions that close one, and what follows from it.

use super::attrs::Unfit;
use super::client::ClientState;
use super::connect::ENDED_BY_US;
use super::face::{Action, ClientId, Loss, Peer, ServerId};
use super::fault::{self, Fault};
use super::server::{Carries, Server, ServerState, Status};
use super::Core;
use crate::base::Level;
use crate::wire::write;

impl Core {
    /// Closes a client. It is told unless the fault is silent; its server is released or closed.
    pub(super) fn close_client(&mut self, id: ClientId, fault: &Fault) {
        let Some(client) = self.clients.get(id) else {
            return;
        };
        let (server, pool) = (client.server, client.pool);
        let waited = client.state == ClientState::Waiting;
        self.log_closed_client(id, fault);
        if fault.told {
            let mut packet = Vec::new();
            write::error(&mut packet, "FATAL", &fault.sqlstate, fault.text.as_bytes());
            self.actions.push_back(Action::Send(Peer::Client(id), packet));
        }
        self.actions.push_back(Action::Close(Peer::Client(id)));
        self.unlist_client(id);
        if let Some(server) = server {
            self.unlink(server);
        }
        if let Some(client) = self.clients.remove(id) {
            if let Some(job) = client.login.as_ref().and_then(|login| login.job) {
                self.leave_job(job, Peer::Client(id));
            }
            self.forget_cancel_key(client.cancel_key, id);
            if client.replication.is_some() {
                self.startup_options.remove(&id);
            }
            if let Some(names) = client.names.as_ref() {
                self.statements.forget_names(names);
            }
            self.uncount(self.counted_by(&client));
            self.leave_lookup(&client, id);
            if client.console.is_some() {
                self.forget_console(id);
            }
        }
        if let Some(server) = server {
            self.client_left(server);
        }
        // It may have been about to take a server that others wait for, also in other pools.
        if let Some(pool) = pool {
            self.mark(pool);
            if waited {
                self.feed_starved(pool);
            }
        }
    }

    fn log_closed_client(&mut self, id: ClientId, fault: &Fault) {
        let Some(client) = self.clients.get(id) else {
            return;
        };
        let age = self.now.since(client.connect_time).secs();
        // Leaving during login is nobody's business (pooling 0.1).
        let leaves = *fault == fault::CLIENT_EOF || *fault == fault::CLIENT_WRITE_FAILED;
        if client.state == ClientState::Login && leaves {
            return;
        }
        if self.settings.log_disconnections.on() {
            let line = format!("closing because: {} (age={age}s)", fault.text);
            self.client_log(id, Level::Log, &line);
        }
        if fault.told && self.settings.log_pooler_errors.on() {
            let line = format!("pooler error: {}", fault.text);
            self.client_log(id, Level::Warning, &line);
        }
    }

    /// Closes a server, with a Terminate packet if `term`. The client of its link goes with it.
    pub(super) fn close_server(&mut self, id: ServerId, fault: &Fault, term: bool) {
        let Some(server) = self.servers.get(id) else {
            return;
        };
        let (state, pool, carries) = (server.state, server.pool, server.carries);
        let riders = match carries {
            Carries::Nothing => Vec::new(),
            Carries::ToServer(_) | Carries::ToPeer => self.riders(id),
        };
        let age = self.now.since(server.connect_time).secs();
        let is_login = state == ServerState::Login;
        let refusal = is_login.then(|| self.note_failed_login(id, fault)).flatten();
        if self.settings.log_disconnections.on() {
            let line = format!("closing because: {} (age={age}s)", fault.text);
            self.server_log(id, Level::Log, &line);
        }
        if term {
            let packet = write::TERMINATE.to_vec();
            self.actions.push_back(Action::Send(Peer::Server(id), packet));
        }
        self.actions.push_back(Action::Close(Peer::Server(id)));
        let client = self.unlink(id);
        self.detach_cancels(id);
        self.unlist_server(id);
        if let Some(shelf) = self.servers.remove(id).and_then(|server| server.shelf) {
            self.statements.forget_shelf(*shelf);
        }
        if carries != Carries::Nothing {
            self.cancel_over(carries, riders, fault);
        }
        // Who waited for it goes on waiting, for the next host if this one is not what is wanted.
        let goes_on = is_login && (ENDED_BY_US.contains(fault) || Unfit::caused(fault));
        if let Some(client) = client.filter(|client| !goes_on && !self.lookup_failed(*client)) {
            self.close_client(client, refusal.as_ref().unwrap_or(fault));
        }
        self.mark(pool);
        self.feed_starved(pool);
    }

    /// A connection ended by itself.
    pub(super) fn connection_lost(&mut self, peer: Peer, why: Loss) {
        match peer {
            Peer::Client(id) => {
                let fault = match why {
                    Loss::Send => fault::CLIENT_WRITE_FAILED,
                    _ => fault::CLIENT_EOF,
                };
                self.close_client(id, &fault);
            }
            Peer::Server(id) => {
                let is_unused = |server: &Server| {
                    server.status == Status::Reserved && server.replies.is_empty()
                };
                if self.servers.get(id).is_some_and(is_unused) {
                    // Its next client has sent nothing yet; `Resume` finds it another server.
                    self.unlink(id);
                }
                let server = self.servers.get(id);
                let carries = server.is_some_and(|server| server.carries != Carries::Nothing);
                let fault = match why {
                    Loss::Receive if carries => fault::CANCEL_SENT,
                    Loss::Send if carries => self.cancel_not_sent(id),
                    _ => Core::loss_of_server(why),
                };
                self.close_server(id, &fault, false);
            }
        }
    }

    fn cancel_not_sent(&mut self, carrier: ServerId) -> Fault {
        for request in self.riders(carrier) {
            self.client_log(request, Level::Warning, "sending cancel request failed");
        }
        fault::CANCEL_SEND_FAILED
    }
}
