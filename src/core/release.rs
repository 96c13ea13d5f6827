//! A server comes free: what becomes of it, and who gets it next (pooling 3).

use super::attrs::{Fit, Question, Unfit};
use super::client::ClientState;
use super::face::{Action, Peer, ServerId};
use super::fault::{self, Fault};
use super::pool::PoolId;
use super::replies::{Asker, Request};
use super::server::{ServerState, Status};
use super::Core;
use crate::base::Micros;
use crate::config::PoolMode;
use crate::wire::write;

/// Queries of the pooler's own must fit into this many bytes with their header.
pub(super) const OWN_QUERY_MAX: usize = 500;

/// What becomes of a server that its client has left in good order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterRelease {
    /// It is free.
    Idle,
    /// The reset query runs first.
    Reset,
    /// It is free once the check query has run.
    Used,
    /// It is closed.
    Close(Fault),
    /// It is parked until cancel requests against it are through.
    BeingCanceled,
    /// It is asked first what it is like now.
    Ask(Question),
}

/// The facts that decide what becomes of a server.
#[derive(Clone, Copy, Debug)]
pub struct Leaving {
    /// Mode of the pool.
    pub mode: PoolMode,
    /// server_reset_query is not empty.
    pub has_reset: bool,
    /// server_reset_query_always.
    pub reset_always: bool,
    /// server_check_delay is 0 and there is a check query.
    pub check_always: bool,
    /// It is older than server_lifetime, and no other of its pool was closed for that just now.
    pub is_old: bool,
    /// Replies are missing.
    pub owes: bool,
    /// It is marked for closing.
    pub close_needed: bool,
    /// A cancel request against it is on its way.
    pub being_canceled: bool,
    /// It was opened for one client.
    pub is_replication: bool,
    /// The reset query has been run.
    pub was_tested: bool,
    /// It is what target_session_attrs wants.
    pub fit: Fit,
}

/// Decides what becomes of a server (pooling 3.2).
pub fn next_state(server: Leaving) -> AfterRelease {
    if server.is_old {
        return AfterRelease::Close(fault::SERVER_LIFETIME);
    }
    if server.owes {
        return AfterRelease::Close(fault::CLIENT_LEFT_IN_QUERIES);
    }
    if server.close_needed {
        return AfterRelease::Close(fault::CLOSE_NEEDED);
    }
    // What a client may have set itself is judged behind the reset.
    if let Fit::No(unfit @ (Unfit::Standby | Unfit::NotStandby | Unfit::NotPreferred)) = server.fit
    {
        return AfterRelease::Close(unfit.fault());
    }
    if server.being_canceled {
        return AfterRelease::BeingCanceled;
    }
    if server.is_replication {
        return AfterRelease::Close(fault::REPLICATION_CLIENT_CLOSED);
    }
    let is_reset = server.reset_always || server.mode == PoolMode::Session;
    if !server.was_tested && server.has_reset && is_reset {
        return AfterRelease::Reset;
    }
    match server.fit {
        Fit::No(unfit) => return AfterRelease::Close(unfit.fault()),
        Fit::Ask(question) => return AfterRelease::Ask(question),
        Fit::Yes => {}
    }
    if server.was_tested {
        return AfterRelease::Idle;
    }
    if server.check_always {
        return AfterRelease::Used;
    }
    AfterRelease::Idle
}

impl Core {
    /// Takes a server away from its client, or out of a test, and finds its next use.
    pub(super) fn release(&mut self, id: ServerId) {
        self.unlink(id);
        self.detach_cancels(id);
        let is_old = self.lifetime_is_over(id);
        let Some(server) = self.servers.get(id) else { return };
        let pool = server.pool;
        let Some(effective) = self.pools.get(pool).map(|pool| self.effective(pool)) else { return };
        let leaving = Leaving {
            mode: effective.pool_mode(),
            has_reset: !self.settings.server_reset_query.is_empty(),
            reset_always: self.settings.server_reset_query_always.on(),
            check_always: !self.settings.server_check_delay.is_set()
                && !self.settings.server_check_query.is_empty(),
            is_old,
            owes: !server.replies.is_empty(),
            close_needed: server.close_needed,
            being_canceled: server.cancels_in_flight > 0,
            is_replication: server.replication.is_some(),
            was_tested: server.state == ServerState::Tested || server.state == ServerState::Login,
            fit: server.fit(effective.session_attrs()),
        };
        match next_state(leaving) {
            AfterRelease::Close(fault) => self.close_server(id, &fault, true),
            AfterRelease::BeingCanceled => self.move_server(id, ServerState::BeingCanceled),
            AfterRelease::Ask(question) => self.ask_traits(id, question),
            AfterRelease::Used => {
                self.move_server(id, ServerState::Used);
                self.mark(pool);
                self.feed_starved(pool);
            }
            AfterRelease::Reset => {
                let query = self.settings.server_reset_query.clone();
                self.test(id, query.as_bytes(), &fault::RESET_FAILED);
            }
            AfterRelease::Idle if self.hand_over(id, pool) => {}
            AfterRelease::Idle => {
                self.move_server(id, ServerState::Idle);
                if let Some(server) = self.servers.get_mut(id) {
                    server.status = Status::Ready;
                }
                self.activate_next(pool);
            }
        }
    }

    /// Runs a query of the pooler's own on a server that nobody uses; `too_long` is for one that
    /// can't be sent.
    fn test(&mut self, id: ServerId, query: &[u8], too_long: &Fault) {
        if query.len() > OWN_QUERY_MAX {
            self.close_server(id, too_long, false);
            return;
        }
        self.move_server(id, ServerState::Tested);
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        server.replies.sent(Request::Query, Asker::Test);
        server.status = Status::Busy;
        let pool = server.pool;
        let mut packet = Vec::new();
        write::query(&mut packet, query);
        self.actions.push_back(Action::Send(Peer::Server(id), packet));
        self.feed_starved(pool);
    }

    /// A client waits for a server that was idle for long: check it, or take it as it is.
    pub(super) fn check(&mut self, id: ServerId) {
        let Some(server) = self.servers.get(id) else {
            return;
        };
        let (pool, idle) = (server.pool, self.now.since(server.last_packet));
        if server.close_needed {
            self.close_server(id, &fault::OBSOLETE, true);
        } else if !server.is_clean() {
            self.close_server(id, &fault::IDLE_GOT_DIRTY, true);
        } else if self.settings.server_check_query.is_empty()
            || idle < self.settings.server_check_delay
        {
            self.move_server(id, ServerState::Idle);
            self.activate_next(pool);
        } else {
            if let Some(server) = self.servers.get_mut(id) {
                server.traits.forget_answers();
            }
            let query = self.settings.server_check_query.clone();
            let query = if query == "<empty>" { "" } else { query.as_str() };
            self.test(id, query.as_bytes(), &fault::CHECK_FAILED);
        }
    }

    /// True if a server has reached its age and its pool has not closed another one just now.
    pub(super) fn lifetime_is_over(&mut self, id: ServerId) -> bool {
        let Some(server) = self.servers.get(id) else {
            return false;
        };
        let Some(pool) = self.pools.get(server.pool) else {
            return false;
        };
        let effective = self.effective(pool);
        let lifetime = effective.server_lifetime();
        if self.now.since(server.connect_time) < lifetime {
            return false;
        }
        let size = u64::try_from(effective.pool_size()).unwrap_or(0);
        let gap = Micros(lifetime.0.checked_div(size).unwrap_or(0));
        if self.now < pool.last_lifetime_close + gap {
            return false;
        }
        let (pool, now) = (server.pool, self.now);
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.last_lifetime_close = now;
        }
        true
    }

    /// A client is gone or thrown out: its server is released if it is in good order, else closed
    /// (pooling 3.4).
    pub(super) fn client_left(&mut self, id: ServerId) {
        let Some(server) = self.servers.get(id) else {
            return;
        };
        if server.state == ServerState::Login {
            return self.close_server(id, &fault::REPLICATION_CLIENT_LEFT, false);
        }
        let fault = match server.status {
            Status::Reserved => None,
            Status::Ready if !server.replies.is_empty() => Some(fault::CLIENT_LEFT_IN_QUERY),
            Status::Ready if !server.delivered => Some(fault::CLIENT_LEFT_UNDELIVERED),
            Status::Ready => None,
            _ => Some(fault::CLIENT_LEFT_NOT_READY),
        };
        match fault {
            Some(fault) => {
                self.unlink(id);
                self.close_server(id, &fault, true);
            }
            None => self.release(id),
        }
    }

    /// Closes what a paused pool does not need (pooling 3.7); `cancels` are about to need the
    /// connection that is being made.
    pub(super) fn close_paused(&mut self, id: PoolId, cancels: bool) {
        let login = (!cancels).then_some(ServerState::Login);
        for state in [ServerState::Idle, ServerState::Used].into_iter().chain(login) {
            let Some(pool) = self.pools.get(id) else {
                return;
            };
            for server in pool.servers(state).ids(&self.servers) {
                self.close_server(server, &fault::PAUSE_MODE, true);
            }
        }
    }

    /// Clients in the wait queue of a pool.
    pub fn waiting(&self, id: PoolId) -> usize {
        self.pools.get(id).map_or(0, |pool| pool.clients(ClientState::Waiting).len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_decides_in_the_contracts_order() {
        let fine = Leaving {
            mode: PoolMode::Transaction,
            has_reset: true,
            reset_always: false,
            check_always: false,
            is_old: false,
            owes: false,
            close_needed: false,
            being_canceled: false,
            is_replication: false,
            was_tested: false,
            fit: Fit::Yes,
        };
        let reported = |unfit| Leaving { fit: Fit::No(unfit), ..fine };
        let in_doubt = Leaving { fit: Fit::Ask(Question::ReadOnly), ..fine };
        let session = Leaving { mode: PoolMode::Session, ..fine };
        for (leaving, want) in [
            (fine, AfterRelease::Idle),
            (session, AfterRelease::Reset),
            (Leaving { reset_always: true, ..fine }, AfterRelease::Reset),
            (Leaving { has_reset: false, ..session }, AfterRelease::Idle),
            (Leaving { was_tested: true, ..session }, AfterRelease::Idle),
            (Leaving { check_always: true, ..fine }, AfterRelease::Used),
            (
                Leaving { is_replication: true, check_always: true, ..session },
                AfterRelease::Close(fault::REPLICATION_CLIENT_CLOSED),
            ),
            (
                Leaving { is_replication: true, being_canceled: true, ..fine },
                AfterRelease::BeingCanceled,
            ),
            (Leaving { being_canceled: true, ..session }, AfterRelease::BeingCanceled),
            (
                Leaving { close_needed: true, being_canceled: true, ..fine },
                AfterRelease::Close(fault::CLOSE_NEEDED),
            ),
            (
                Leaving { owes: true, close_needed: true, ..fine },
                AfterRelease::Close(fault::CLIENT_LEFT_IN_QUERIES),
            ),
            (
                Leaving { is_old: true, owes: true, ..fine },
                AfterRelease::Close(fault::SERVER_LIFETIME),
            ),
            (reported(Unfit::Standby), AfterRelease::Close(fault::UNFIT_STANDBY)),
            (
                Leaving { mode: PoolMode::Session, ..reported(Unfit::NotStandby) },
                AfterRelease::Close(fault::UNFIT_NOT_STANDBY),
            ),
            (reported(Unfit::ReadOnly), AfterRelease::Close(fault::UNFIT_READ_ONLY)),
            (Leaving { mode: PoolMode::Session, ..reported(Unfit::ReadOnly) }, AfterRelease::Reset),
            (
                Leaving { was_tested: true, ..reported(Unfit::NotReadOnly) },
                AfterRelease::Close(fault::UNFIT_NOT_READ_ONLY),
            ),
            (in_doubt, AfterRelease::Ask(Question::ReadOnly)),
            (Leaving { mode: PoolMode::Session, ..in_doubt }, AfterRelease::Reset),
            (Leaving { was_tested: true, ..in_doubt }, AfterRelease::Ask(Question::ReadOnly)),
            (Leaving { being_canceled: true, ..in_doubt }, AfterRelease::BeingCanceled),
        ] {
            assert_eq!(next_state(leaving), want, "{leaving:?}");
        }
    }
}
