//! PAUSE and shutdown: what must not happen while they are in force, and when they are over.

use crate::world::World;
use pgturnstile::core::client::ClientState;
use pgturnstile::core::pause::{Mode, Shutdown};
use pgturnstile::core::pool::Pool;
use pgturnstile::core::server::ServerState;
use pgturnstile::core::{Addr, ClientId, Peer};

impl World {
    /// True if PAUSE of everything is in force.
    pub fn is_paused(&self) -> bool {
        self.core.mode() == Mode::Paused
    }

    /// True if PAUSE of everything or of this database is in force.
    pub fn is_paused_at(&self, database: &str) -> bool {
        let mut databases = self.core.databases();
        self.is_paused()
            || databases.any(|(_, known)| &**known.name() == database && known.is_paused())
    }

    /// Nothing is assigned in a paused pool, and nothing idles there.
    pub fn check_paused(&self, at_rest: bool) {
        for (_, pool) in self.core.pools() {
            let name = pool.names().0;
            if pool.is_console() || !self.is_paused_at(name) {
                continue;
            }
            if self.memory.paused.contains(name) && !self.facts.resumed {
                for id in pool.servers(ServerState::Active).ids(self.core.servers()) {
                    let client = self.core.servers().get(id).and_then(|server| server.client());
                    if let Some(client) = client.filter(|c| self.memory.is_new_link(id, *c)) {
                        self.fail(&format!("PAUSE: {client:?} gets {id:?} of {name}"));
                    }
                }
            }
            let count = |state| pool.servers(state).len();
            let cancels = !pool.clients(ClientState::WaitingCancel).is_empty();
            let login = if cancels { 0 } else { count(ServerState::Login) };
            let free = count(ServerState::Idle) + count(ServerState::Used) + login;
            if at_rest && free > 0 {
                self.fail(&format!("PAUSE: {free} servers of {:?} stay", pool.names()));
            }
        }
    }

    /// PAUSE is answered only when nothing is at work.
    pub fn check_pause_answer(&self, peer: Peer, bytes: &[u8]) {
        if !bytes.starts_with(b"C\0\0\0\nPAUSE\0") {
            return;
        }
        let Peer::Client(id) = peer else { return };
        // Only one command is under way at a time, and RESUME answers those who wait.
        let Some(command) = self.memory.commands.get(&id) else { return };
        let database = command.strip_prefix("PAUSE ").unwrap_or("");
        let mut databases = self.core.databases();
        let in_force = match database {
            "" => self.is_paused(),
            name => databases.any(|(_, known)| &**known.name() == name && known.is_paused()),
        };
        if !in_force {
            return;
        }
        for (_, pool) in self.core.pools().filter(|(_, pool)| !pool.is_console()) {
            let meant = database.is_empty() || pool.names().0 == database;
            if meant && is_at_work(pool) {
                self.fail(&format!("PAUSE: answered, but {:?} is at work", pool.names()));
            }
        }
    }

    /// Who waits for the end of a PAUSE although nothing is at work any more.
    pub fn check_pause_waiters(&self) {
        if self.core.pools().any(|(_, pool)| is_at_work(pool)) {
            return;
        }
        if let Some(id) = self.pausing.iter().find(|id| self.core.clients().get(**id).is_some()) {
            self.fail(&format!("PAUSE: {id:?} is not answered"));
        }
    }

    /// True if a server of this database, or of any if the name is empty, has to be replaced.
    fn has_to_close(&self, database: &str) -> bool {
        self.core.servers().iter().any(|(_, server)| {
            let pool = self.core.pool(server.pool());
            let meant = pool.is_some_and(|pool| database.is_empty() || pool.names().0 == database);
            server.close_needed() && meant
        })
    }

    /// WAIT_CLOSE is answered only when nothing is left to be replaced.
    pub fn check_close_answer(&self, peer: Peer, bytes: &[u8]) {
        let Peer::Client(id) = peer else { return };
        let Some(database) = self.closing.get(&id) else { return };
        if bytes.starts_with(b"C\0\0\0\x0fWAIT_CLOSE\0") && self.has_to_close(database) {
            self.fail(&format!("WAIT_CLOSE: {id:?} is answered too early"));
        }
        if matches!(bytes.first(), Some(b'C')) && !bytes[5..].starts_with(b"WAIT_CLOSE") {
            self.fail(&format!("WAIT_CLOSE: {id:?} gets {}", bytes.escape_ascii()));
        }
    }

    /// Who waits although nothing is left to be replaced, or although the process has ended.
    pub fn check_close_waiters(&self) {
        for (id, database) in &self.closing {
            if self.core.clients().get(*id).is_none() {
                continue;
            }
            if self.exit.is_some() || !self.has_to_close(database) {
                self.fail(&format!("WAIT_CLOSE: {id:?} is not answered"));
            }
        }
        let waits = |id: &ClientId| self.core.clients().get(*id).is_some();
        if self.exit.is_some() && self.pausing.iter().any(waits) {
            self.fail("PAUSE: not answered at the end of the process");
        }
    }

    /// The janitor has just been. The process ends if and only if nothing is left to wait for.
    pub fn expect_exit(&mut self) {
        let shutdown = self.core.shutdown();
        self.facts.must_exit |= match shutdown {
            Some(Shutdown::WaitForClients) => self.core.clients().is_empty(),
            Some(Shutdown::WaitForServers) => self.core.servers().is_empty(),
            None => false,
        };
        if shutdown == Some(Shutdown::WaitForServers) && !self.facts.must_exit {
            for (_, pool) in self.core.pools() {
                let waiting = pool.clients(ClientState::Waiting).len();
                if waiting > 0 {
                    self.fail(&format!("SHUTDOWN: {waiting} clients of {:?} wait", pool.names()));
                }
            }
        }
    }

    /// At the end of a turn: did the process end when it had to, and not before?
    pub fn check_exit(&self) {
        match (self.exit, self.facts.must_exit) {
            (None, false) => {}
            (Some(code), true) if code == self.facts.exit_code => {}
            (exit, must) => {
                let mode = self.core.shutdown();
                self.fail(&format!("SHUTDOWN: exit {exit:?}, must {must}, mode {mode:?}"));
            }
        }
    }

    /// Nobody logs in during a shutdown, but consoles, and who had connected over TCP before it if
    /// clients are waited for.
    pub fn check_logins(&self) {
        if !self.memory.in_shutdown {
            return;
        }
        for (id, client) in self.core.clients().iter() {
            let inside = matches!(client.state(), ClientState::Active | ClientState::Waiting);
            let inside = inside && !client.is_looked_up();
            let waits = self.core.shutdown() == Some(Shutdown::WaitForClients);
            let has_come_before = waits && matches!(client.remote(), Addr::Inet(_));
            if inside
                && !client.is_console()
                && !has_come_before
                && !self.memory.inside.contains(&id)
            {
                self.fail(&format!("SHUTDOWN: {id:?} has logged in"));
            }
        }
    }
}

fn is_at_work(pool: &Pool) -> bool {
    let some = |state| !pool.servers(state).is_empty();
    !pool.is_console() && (some(ServerState::Active) || some(ServerState::Tested))
}
