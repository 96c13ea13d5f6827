//! Consoles whose command is answered later: PAUSE, SUSPEND, WAIT_CLOSE (admin 4.1). Every wait ends
//! with an answer of its own, unless the console leaves first.

use super::database::{Database, DatabaseId};
use super::face::ClientId;
use super::fault::{self, Fault};
use super::pool::Pool;
use super::server::ServerState;
use super::Core;
use crate::wire::write;

/// What a console waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// No server is at work any more.
    Pause,
    /// The same, for one database.
    PauseDatabase(DatabaseId),
    /// Everything is at rest.
    Suspend,
    /// No server of this database, or of any, is to be closed any more.
    Close(Option<DatabaseId>),
}

impl Wait {
    fn tag(self) -> &'static str {
        match self {
            Wait::Pause | Wait::PauseDatabase(_) => "PAUSE",
            Wait::Suspend => "SUSPEND",
            Wait::Close(_) => "WAIT_CLOSE",
        }
    }
}

/// A console and what it waits for; it may wait for several things.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) console: ClientId,
    pub(super) what: Wait,
}

impl Core {
    /// The console will be answered when this has come about.
    pub(super) fn await_(&mut self, console: ClientId, what: Wait) {
        self.waiters.push(Waiter { console, what });
    }

    /// WAIT_CLOSE of one database or all; true if there is nothing to wait for.
    pub fn wait_close(&mut self, database: Option<DatabaseId>, console: ClientId) -> bool {
        let over = self.is_over(Wait::Close(database));
        if !over {
            self.await_(console, Wait::Close(database));
        }
        over
    }

    /// True if this console waits for an answer.
    pub(super) fn console_waits(&self, id: ClientId) -> bool {
        self.waiters.iter().any(|waiter| waiter.console == id)
    }

    /// Answers consoles: what they wait for has come about.
    pub(super) fn end_waits(&mut self, is_over: impl Fn(Wait) -> bool) {
        for waiter in self.take_waiters(|waiter| is_over(waiter.what)) {
            self.answer_waiter(waiter.console, waiter.what.tag());
        }
    }

    /// A cancel request ends what its console waits for.
    pub(super) fn cancel_waits(&mut self, console: ClientId) {
        for waiter in self.take_waiters(|waiter| waiter.console == console) {
            let reply = packet("ERROR", &fault::WAIT_CANCELED);
            self.fail_waiter(waiter.console, reply);
        }
    }

    /// The process ends: so does all waiting.
    pub(super) fn abandon_waits(&mut self) {
        self.check_waits();
        for waiter in self.take_waiters(|_| true) {
            self.answer_console(waiter.console, packet("FATAL", &fault::SHUTTING_DOWN));
        }
    }

    fn take_waiters(&mut self, is_meant: impl Fn(&Waiter) -> bool) -> Vec<Waiter> {
        let (meant, others) = std::mem::take(&mut self.waiters).into_iter().partition(is_meant);
        self.waiters = others;
        meant
    }

    /// Answers the consoles that have nothing left to wait for; at the end of each turn.
    pub(super) fn check_waits(&mut self) {
        let over: Vec<Wait> =
            self.waiters.iter().map(|w| w.what).filter(|what| self.is_over(*what)).collect();
        if !over.is_empty() {
            self.end_waits(|what| over.contains(&what));
        }
    }

    fn is_over(&self, what: Wait) -> bool {
        match what {
            Wait::Pause => !self.pools.iter().any(|(_, pool)| is_at_work(pool)),
            // It waits for all databases that are paused this way (admin 4).
            Wait::PauseDatabase(_) => !self.pools.iter().any(|(_, pool)| {
                let database = self.databases.get(pool.database);
                is_at_work(pool) && database.is_some_and(Database::is_paused)
            }),
            // `check_suspension` knows.
            Wait::Suspend => false,
            Wait::Close(database) => !self.servers.iter().any(|(_, server)| {
                let pool = self.pools.get(server.pool);
                let is_meant = |pool: &Pool| database.is_none_or(|id| pool.database == id);
                server.close_needed && pool.is_some_and(is_meant)
            }),
        }
    }

    /// A console is gone: it waits no more.
    pub(super) fn forget_console(&mut self, id: ClientId) {
        self.waiters.retain(|waiter| waiter.console != id);
    }
}

fn packet(severity: &str, fault: &Fault) -> Vec<u8> {
    let mut packet = Vec::new();
    write::error(&mut packet, severity, &fault.sqlstate, fault.text.as_bytes());
    packet
}

fn is_at_work(pool: &Pool) -> bool {
    let some = |state| !pool.servers(state).is_empty();
    some(ServerState::Active) || some(ServerState::Tested)
}
