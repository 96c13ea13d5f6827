//! target_session_attrs: does a server fit? The decision, from what the server reports (PostgreSQL
//! 14 and later) or else answers; and what becomes of servers that do not fit any more.

use super::face::{Action, Addr, Peer, ServerId, Verdict};
use super::fault::{self, Fault};
use super::pool::PoolId;
use super::replies::{Asker, Request};
use super::server::{Server, ServerState, Status};
use super::Core;
use crate::base::Level;
use crate::config::SessionAttrs;
use crate::wire::read::ErrorFields;
use crate::wire::{write, FromServer, Reader};

/// What is known of a server; `None` is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// in_hot_standby, as it reports it.
    pub hot_standby: Option<bool>,
    /// default_transaction_read_only, as it reports it.
    pub default_read_only: Option<bool>,
    /// What it answered to [`Question::Recovery`].
    pub in_recovery: Option<bool>,
    /// What it answered to [`Question::ReadOnly`].
    pub read_only: Option<bool>,
    /// What it is being asked.
    pub asked: Option<Question>,
    /// It will do no longer: a standby has been found, or is to be looked for.
    pub spurned: bool,
}

impl Traits {
    /// In hot standby mode.
    pub fn is_standby(self) -> Option<bool> {
        self.hot_standby.or(self.in_recovery)
    }

    /// Its sessions don't accept writes by default.
    pub fn is_read_only(self) -> Option<bool> {
        match (self.hot_standby, self.default_read_only) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (Some(false), Some(false)) => Some(false),
            _ => self.read_only,
        }
    }

    /// Something is known only because it was asked: it may have changed without a word.
    pub fn needs_asking(self) -> bool {
        self.in_recovery.is_some() || self.read_only.is_some()
    }

    /// What it answered may not be true any more.
    pub fn forget_answers(&mut self) {
        (self.in_recovery, self.read_only) = (None, None);
    }
}

/// Whether a server fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It does.
    Yes,
    /// It does not.
    No(Unfit),
    /// It has to be asked first.
    Ask(Question),
}

/// Why a server does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Its sessions don't accept writes.
    ReadOnly,
    /// Its sessions accept writes.
    NotReadOnly,
    /// It is a standby.
    Standby,
    /// It is no standby.
    NotStandby,
    /// It is no standby, and there may be one.
    NotPreferred,
}

impl Unfit {
    /// The reason for closing it.
    pub fn fault(self) -> Fault {
        match self {
            Unfit::ReadOnly => fault::UNFIT_READ_ONLY,
            Unfit::NotReadOnly => fault::UNFIT_NOT_READ_ONLY,
            Unfit::Standby => fault::UNFIT_STANDBY,
            Unfit::NotStandby => fault::UNFIT_NOT_STANDBY,
            Unfit::NotPreferred => fault::UNFIT_NOT_PREFERRED,
        }
    }

    /// True if this is why a server was closed.
    pub fn caused(fault: &Fault) -> bool {
        use Unfit as U;
        let all = [U::ReadOnly, U::NotReadOnly, U::Standby, U::NotStandby, U::NotPreferred];
        all.iter().any(|unfit| unfit.fault() == *fault)
    }
}

/// What the pooler asks a server that does not report it (libpq asks the same).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Does it accept writes?
    ReadOnly,
    /// Is it a standby?
    Recovery,
}

impl Question {
    /// The query; its answer is one boolean.
    pub fn sql(self) -> &'static [u8] {
        match self {
            Question::ReadOnly => b"SHOW transaction_read_only",
            Question::Recovery => b"SELECT pg_catalog.pg_is_in_recovery()",
        }
    }
}

/// Decides whether a server fits. `any_will_do` is the second pass of prefer-standby, which takes
/// what it gets.
pub fn fit(wanted: SessionAttrs, server: Traits, any_will_do: bool) -> Fit {
    use SessionAttrs as W;
    let (is_so, question) = match wanted {
        W::Any => return Fit::Yes,
        W::ReadWrite | W::ReadOnly => (server.is_read_only(), Question::ReadOnly),
        W::Primary | W::Standby | W::PreferStandby => (server.is_standby(), Question::Recovery),
    };
    let Some(is_so) = is_so else { return Fit::Ask(question) };
    match (wanted, is_so) {
        (W::ReadWrite, true) => Fit::No(Unfit::ReadOnly),
        (W::ReadOnly, false) => Fit::No(Unfit::NotReadOnly),
        (W::Primary, true) => Fit::No(Unfit::Standby),
        (W::Standby, false) => Fit::No(Unfit::NotStandby),
        (W::PreferStandby, false) if !any_will_do => Fit::No(Unfit::NotPreferred),
        _ => Fit::Yes,
    }
}

impl Server {
    /// Whether it still fits.
    #[inline]
    pub(super) fn fit(&self, wanted: SessionAttrs) -> Fit {
        fit(wanted, self.traits, !self.traits.spurned)
    }
}

/// SQLSTATE read_only_sql_transaction.
const READ_ONLY_TRANSACTION: &[u8] = b"25006";

impl Core {
    /// What servers of this pool must be like.
    pub(super) fn wanted(&self, pool: PoolId) -> SessionAttrs {
        let pool = self.pools.get(pool);
        pool.map_or(SessionAttrs::Any, |pool| self.effective(pool).session_attrs())
    }

    /// Whether a server that has logged in still fits.
    pub(super) fn fit_of(&self, id: ServerId) -> Fit {
        self.servers.get(id).map_or(Fit::Yes, |server| server.fit(self.wanted(server.pool)))
    }

    /// A server reports a parameter: take note if it is about what it is like.
    pub(super) fn note_trait(&mut self, id: ServerId, name: &[u8], value: &[u8]) {
        let is_on = Some(value == b"on");
        let Some(server) = self.servers.get_mut(id) else { return };
        match name {
            b"in_hot_standby" => {
                let before = std::mem::replace(&mut server.traits.hot_standby, is_on);
                if before.is_some_and(|before| Some(before) != is_on) {
                    self.tell_neighbours(id);
                }
            }
            // Where clients have values of their own, only the login shows the server's.
            b"default_transaction_read_only"
                if server.state == ServerState::Login || self.tracked.find(name).is_none() =>
            {
                server.traits.default_read_only = is_on;
            }
            _ => {}
        }
    }

    /// A server was promoted: so were the other connections to it. Free ones that do not fit any
    /// more are closed, others when they are released.
    fn tell_neighbours(&mut self, id: ServerId) {
        let Some(teller) = self.servers.get(id) else { return };
        let (news, remote) = (teller.traits.hot_standby, teller.remote);
        let place = |core: &Core, server: &Server| {
            Some((core.pools.get(server.pool)?.database, server.host))
        };
        let own_place = place(self, teller);
        let is_near = |core: &Core, server: &Server| match remote {
            Addr::Inet(_) => server.remote == remote,
            _ => server.remote == remote && place(core, server) == own_place,
        };
        let servers = self.servers.iter();
        let near =
            servers.filter(|(other, s)| *other != id && s.login.is_none() && is_near(self, s));
        for other in near.map(|(other, _)| other).collect::<Vec<_>>() {
            if let Some(server) = self.servers.get_mut(other) {
                server.traits.hot_standby = news;
            }
            self.drop_unfit(other);
        }
    }

    /// Closes a server that nobody uses if it does not fit any more.
    fn drop_unfit(&mut self, id: ServerId) {
        let state = self.servers.get(id).map(Server::state);
        if let (Some(ServerState::Idle | ServerState::Used), Fit::No(unfit)) =
            (state, self.fit_of(id))
        {
            self.close_server(id, &unfit.fault(), true);
        }
    }

    /// Servers of a prefer-standby pool that are no standbys.
    pub(super) fn not_preferred(&self, pool: PoolId) -> Vec<ServerId> {
        use ServerState as S;
        let Some(pool) = self.pools.get(pool) else { return Vec::new() };
        let lists = [S::Idle, S::Used, S::Tested, S::BeingCanceled, S::Active];
        let ids = lists.map(|state| pool.servers(state).ids(&self.servers)).concat();
        let is_so = |id: &ServerId| {
            let server = self.servers.get(*id).filter(|server| !server.close_needed);
            server.is_some_and(|server| server.traits.is_standby() == Some(false))
        };
        ids.into_iter().filter(is_so).collect()
    }

    /// A server of a prefer-standby pool has to go as soon as nobody uses it; true if it has gone.
    pub(super) fn spurn(&mut self, id: ServerId) -> bool {
        if let Some(server) = self.servers.get_mut(id) {
            server.traits.spurned = true;
        }
        self.drop_unfit(id);
        self.servers.get(id).is_none()
    }

    /// A client's request failed because the session is read-only: what the server said of itself
    /// may not be true any more.
    pub(super) fn doubt_traits(&mut self, id: ServerId, error: &[u8]) {
        let Some(server) = self.servers.get_mut(id) else { return };
        if server.traits.needs_asking()
            && ErrorFields::read(error).sqlstate == Some(READ_ONLY_TRANSACTION)
        {
            server.traits.forget_answers();
        }
    }

    /// Asks a server that nobody uses; it is released again when it has answered.
    pub(super) fn ask_traits(&mut self, id: ServerId, question: Question) {
        if self.servers.get(id).is_some_and(|server| server.state != ServerState::Tested) {
            self.move_server(id, ServerState::Tested);
        }
        let Some(server) = self.servers.get_mut(id) else { return };
        server.replies.sent(Request::Query, Asker::Traits);
        server.status = Status::Busy;
        server.traits.asked = Some(question);
        let pool = server.pool;
        let mut packet = Vec::new();
        write::query(&mut packet, question.sql());
        self.actions.push_back(Action::Send(Peer::Server(id), packet));
        self.feed_starved(pool);
    }

    /// Part of the answer to a question.
    pub(super) fn traits_reply(&mut self, id: ServerId, kind: FromServer, body: &[u8]) -> Verdict {
        match kind {
            FromServer::DataRow => self.note_answer(id, body),
            FromServer::ErrorResponse => {
                let text = ErrorFields::read(body).line(": ").unwrap_or_default();
                self.server_log(id, Level::Warning, &format!("asked for its mode: {text}"));
            }
            FromServer::ReadyForQuery if matches!(self.fit_of(id), Fit::Ask(_)) => {
                self.close_server(id, &fault::TRAITS_UNKNOWN, true);
                return Verdict::Stop;
            }
            _ => {}
        }
        Verdict::Drop
    }

    /// The row that answers a question: one boolean, `t` and `f` or `on` and `off`.
    pub(super) fn note_answer(&mut self, id: ServerId, row: &[u8]) {
        let mut reader = Reader::new(row);
        let answer = match (reader.u16(), reader.u32(), reader.rest()) {
            (Some(1), Some(_), b"t" | b"on") => Some(true),
            (Some(1), Some(_), b"f" | b"off") => Some(false),
            _ => None,
        };
        let Some(server) = self.servers.get_mut(id) else { return };
        match server.traits.asked.take() {
            Some(Question::ReadOnly) => server.traits.read_only = answer,
            Some(Question::Recovery) => server.traits.in_recovery = answer,
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SessionAttrs as W;

    const ON: Option<bool> = Some(true);
    const OFF: Option<bool> = Some(false);

    fn reports(hot_standby: Option<bool>, default_read_only: Option<bool>) -> Traits {
        Traits { hot_standby, default_read_only, ..Traits::default() }
    }

    #[test]
    fn servers_that_report_what_they_are_are_not_asked() {
        use Unfit as U;
        let (primary, standby) = (reports(OFF, OFF), reports(ON, OFF));
        let (tame, both) = (reports(OFF, ON), reports(ON, ON));
        for (wanted, server, want) in [
            (W::Any, Traits::default(), Fit::Yes),
            (W::Any, standby, Fit::Yes),
            (W::ReadWrite, primary, Fit::Yes),
            (W::ReadWrite, standby, Fit::No(U::ReadOnly)),
            (W::ReadWrite, tame, Fit::No(U::ReadOnly)),
            (W::ReadWrite, both, Fit::No(U::ReadOnly)),
            (W::ReadOnly, primary, Fit::No(U::NotReadOnly)),
            (W::ReadOnly, standby, Fit::Yes),
            (W::ReadOnly, tame, Fit::Yes),
            (W::Primary, primary, Fit::Yes),
            (W::Primary, tame, Fit::Yes),
            (W::Primary, standby, Fit::No(U::Standby)),
            (W::Standby, primary, Fit::No(U::NotStandby)),
            (W::Standby, tame, Fit::No(U::NotStandby)),
            (W::Standby, both, Fit::Yes),
            (W::PreferStandby, primary, Fit::No(U::NotPreferred)),
            (W::PreferStandby, standby, Fit::Yes),
        ] {
            assert_eq!(fit(wanted, server, false), want, "{wanted:?} {server:?}");
        }
        assert_eq!(fit(W::PreferStandby, primary, true), Fit::Yes);
        assert_eq!(fit(W::Standby, primary, true), Fit::No(U::NotStandby));
    }

    #[test]
    fn others_are_asked_once() {
        let nothing = Traits::default();
        let writes = |read_only| Traits { read_only, ..nothing };
        let recovers = |in_recovery| Traits { in_recovery, ..nothing };
        let (read_only, recovery) = (Fit::Ask(Question::ReadOnly), Fit::Ask(Question::Recovery));
        for (wanted, server, want) in [
            (W::ReadWrite, nothing, read_only),
            (W::ReadOnly, nothing, read_only),
            (W::ReadWrite, reports(OFF, None), read_only),
            (W::ReadWrite, reports(ON, None), Fit::No(Unfit::ReadOnly)),
            (W::ReadWrite, reports(None, ON), Fit::No(Unfit::ReadOnly)),
            (W::ReadWrite, writes(OFF), Fit::Yes),
            (W::ReadWrite, writes(ON), Fit::No(Unfit::ReadOnly)),
            (W::ReadOnly, writes(ON), Fit::Yes),
            (W::Primary, nothing, recovery),
            (W::Primary, writes(OFF), recovery),
            (W::Standby, nothing, recovery),
            (W::PreferStandby, nothing, recovery),
            (W::Primary, recovers(OFF), Fit::Yes),
            (W::Standby, recovers(ON), Fit::Yes),
            (W::PreferStandby, recovers(OFF), Fit::No(Unfit::NotPreferred)),
            // What it reports wins over what it once answered.
            (W::Standby, Traits { hot_standby: OFF, ..recovers(ON) }, Fit::No(Unfit::NotStandby)),
        ] {
            assert_eq!(fit(wanted, server, false), want, "{wanted:?} {server:?}");
        }
        let mut server = writes(OFF);
        assert!(server.needs_asking());
        server.forget_answers();
        assert_eq!(fit(W::ReadWrite, server, false), read_only);
        assert!(!reports(OFF, OFF).needs_asking());
    }
}
