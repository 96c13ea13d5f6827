//! Pause, resume and shutdown: global modes, and consoles that wait for them.

use super::client::{Client, ClientState};
use super::database::DatabaseId;
use super::face::{Action, Addr, ClientId};
use super::pool::PoolId;
use super::server::ServerState;
use super::waits::Wait;
use super::Core;
use crate::base::Level;

/// The process's global mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Normal operation.
    #[default]
    Active,
    /// PAUSE is in force.
    Paused,
    /// SUSPEND is in force.
    Suspended,
}

/// A shutdown that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Until no server is left.
    WaitForServers,
    /// Until no client is left.
    WaitForClients,
}

/// A signal, by what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// SIGQUIT.
    Quit,
    /// SIGUSR1.
    Pause,
    /// SIGUSR2.
    Resume,
}

impl Core {
    /// The global mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The shutdown that is under way.
    pub fn shutdown(&self) -> Option<Shutdown> {
        self.shutdown
    }

    pub(super) fn is_paused_globally(&self) -> bool {
        self.mode == Mode::Paused
    }

    /// Nothing is assigned in a paused pool.
    pub(super) fn is_paused(&self, pool: PoolId) -> bool {
        self.is_paused_globally()
            || self
                .pools
                .get(pool)
                .and_then(|pool| self.databases.get(pool.database))
                .is_some_and(|database| database.paused)
    }

    pub(super) fn refuses_waiters(&self) -> bool {
        self.shutdown == Some(Shutdown::WaitForServers)
    }

    /// PAUSE: nothing is assigned until RESUME. The console is answered when all is quiet.
    pub fn pause_all(&mut self, console: Option<ClientId>) {
        self.mode = Mode::Paused;
        self.mark_all();
        if let Some(console) = console {
            self.await_(console, Wait::Pause);
        }
    }

    /// PAUSE db; true if there is nothing to wait for, as it has no servers.
    pub fn pause_database(&mut self, id: DatabaseId, console: ClientId) -> bool {
        if let Some(database) = self.databases.get_mut(id) {
            database.paused = true;
        }
        self.mark_all();
        let has_servers =
            self.pools.iter().any(|(_, pool)| pool.database == id && pool.server_count() > 0);
        if has_servers {
            self.await_(console, Wait::PauseDatabase(id));
        }
        !has_servers
    }

    /// RESUME. Consoles that still wait for the pause are answered: it has ended.
    pub fn resume_all(&mut self) {
        self.mode = Mode::Active;
        self.end_suspension();
        self.mark_all();
        self.call_waiting();
        self.end_waits(|what| what == Wait::Pause);
    }

    /// RESUME db; false if it is not paused.
    pub fn resume_database(&mut self, id: DatabaseId) -> bool {
        let was =
            self.databases.get_mut(id).is_some_and(|database| std::mem::take(&mut database.paused));
        if was {
            self.mark_all();
            self.call_waiting();
            self.end_waits(|what| what == Wait::PauseDatabase(id));
        }
        was
    }

    /// Servers that came free during the pause are for who has waited, not for who comes next.
    fn call_waiting(&mut self) {
        for id in self.pools.ids() {
            let idle = self.pools.get(id).map_or(0, |pool| pool.servers(ServerState::Idle).len());
            for _ in 0..idle.min(self.waiting(id)) {
                self.activate_next(id);
            }
        }
    }

    pub(super) fn mark_all(&mut self) {
        for id in self.pools.ids() {
            self.mark(id);
        }
    }

    /// SHUTDOWN: at once.
    pub fn exit_now(&mut self, code: u8) {
        self.abandon_waits();
        self.actions.push_back(Action::Exit(code));
    }

    /// SHUTDOWN WAIT_FOR_...: stops listening on TCP, refuses new clients, ends when all are gone.
    pub fn begin_shutdown(&mut self, how: Shutdown) {
        if self.is_suspended() {
            self.resume_all();
        }
        self.shutdown = Some(how);
        self.actions.push_back(Action::CloseTcpListeners);
        if how == Shutdown::WaitForServers {
            self.mode = Mode::Paused;
            self.mark_all();
        }
    }

    /// Ends the process when a shutdown has nothing left to wait for; at each tick.
    pub(super) fn check_shutdown(&mut self) {
        let line = match self.shutdown {
            Some(Shutdown::WaitForServers) if self.servers.is_empty() => "server",
            Some(Shutdown::WaitForClients) if self.clients.is_empty() && !self.is_draining => {
                "client"
            }
            Some(Shutdown::WaitForServers) => {
                for id in self.pools.ids() {
                    self.refuse_waiting(id);
                }
                return;
            }
            _ => return,
        };
        self.journal.line(Level::Log, format!("{line} connections dropped, exiting"));
        self.exit_now(0);
    }

    /// Whether connections may still come out of listening sockets that are being closed: a shutdown
    /// waits for them.
    pub fn set_draining(&mut self, on: bool) {
        self.is_draining = on;
    }

    /// True if a shutdown leaves this client out. Over TCP only those come that had connected before:
    /// they count among the clients to wait for.
    pub(super) fn shuts_out(&self, client: &Client) -> bool {
        match self.shutdown {
            Some(Shutdown::WaitForClients) => !matches!(client.remote, Addr::Inet(_)),
            Some(Shutdown::WaitForServers) => true,
            None => false,
        }
    }

    fn refuse_waiting(&mut self, pool: PoolId) {
        let Some(pool) = self.pools.get(pool) else {
            return;
        };
        let states = [ClientState::Joined, ClientState::Waiting];
        for id in states.map(|state| pool.clients(state).ids(&self.clients)).concat() {
            self.close_client(id, &super::fault::SERVER_SHUTTING_DOWN);
        }
    }

    /// Another process may have the sockets already: nothing is ended in good order.
    fn die_suspended(&mut self, line: &str) {
        self.journal.line(Level::Log, line.into());
        let line = "suspend was in progress, going down immediately";
        self.journal.line(Level::Fatal, line.into());
        self.exit_now(1);
    }

    /// A signal has arrived (config 8.1); SIGHUP is `Action::Reload`.
    pub fn signalled(&mut self, signal: Signal) {
        let in_shutdown = self.shutdown.is_some();
        let line = match signal {
            Signal::Quit => {
                self.exit_now(0);
                "got SIGQUIT, fast exit"
            }
            Signal::Terminate if in_shutdown => {
                self.exit_now(0);
                "got SIGTERM while shutting down, fast exit"
            }
            Signal::Interrupt if in_shutdown => {
                self.exit_now(0);
                "got SIGINT while shutting down, fast exit"
            }
            Signal::Terminate if self.is_suspended() => {
                self.die_suspended(
                    "got SIGTERM, shutting down, waiting for all clients disconnect",
                );
                return;
            }
            Signal::Interrupt if self.is_suspended() => {
                self.die_suspended(
                    "got SIGINT, shutting down, waiting for all servers connections to be released",
                );
                return;
            }
            Signal::Terminate => {
                self.begin_shutdown(Shutdown::WaitForClients);
                "got SIGTERM, shutting down, waiting for all clients disconnect"
            }
            Signal::Interrupt => {
                self.begin_shutdown(Shutdown::WaitForServers);
                "got SIGINT, shutting down, waiting for all servers connections to be released"
            }
            Signal::Pause if self.mode != Mode::Active => {
                "got SIGUSR1, but already paused/suspended"
            }
            Signal::Pause => {
                self.pause_all(None);
                "got SIGUSR1, pausing all activity"
            }
            Signal::Resume if in_shutdown => "got SIGUSR2 while shutting down, ignoring",
            Signal::Resume if self.is_suspended() => {
                self.resume_all();
                "got SIGUSR2, continuing from SUSPEND"
            }
            Signal::Resume if self.is_paused_globally() => {
                self.resume_all();
                "got SIGUSR2, continuing from PAUSE"
            }
            Signal::Resume => "got SIGUSR2, but not paused/suspended",
        };
        self.journal.line(Level::Log, line.into());
    }
}
