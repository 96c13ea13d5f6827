//! Every reason in the journal for which a connection was closed must be true.

use crate::moved::Moved;
use crate::names;
use crate::timeouts::{self, Due};
use crate::world::World;
use pgturnstile::core::pause::Shutdown;
use pgturnstile::core::pool::PoolId;
use pgturnstile::core::{ClientId, Peer};
use std::collections::{BTreeMap, BTreeSet};

/// Reasons that a well-behaved server never gives.
const INNOCENT: [&str; 7] = [
    "unexpected reply from server",
    "unknown pkt",
    "bad pkt header",
    "idle server got dirty",
    "SV_IDLE server got dirty",
    "SV_USED server got dirty",
    "client disconnected with queries in progress",
];

/// What clients may be told while nothing goes wrong.
const CALM: [&str; 9] = [
    "no such user",
    "password authentication failed",
    "transaction blocks not allowed in statement pooling mode",
    "invalid server parameter",
    "server shutting down",
    "pooler is shutting down",
    "suspend_timeout",
    "server lifetime over",
    "the database system is shutting down",
];

/// What has happened in a turn that may be a reason to close somebody.
#[derive(Default)]
pub struct Facts {
    /// Databases that were removed or killed.
    pub removed: BTreeSet<String>,
    /// RECONNECT, or a reload that replaces servers.
    pub replaced: bool,
    /// Somebody may have ended a pause.
    pub resumed: bool,
    /// Pools that had cancel requests when the janitor came.
    pub canceled: BTreeSet<PoolId>,
    /// Pools in which somebody had waited long enough for the reserve when he came.
    pub patient: BTreeSet<PoolId>,
    /// Some client was called out of a queue, or read again.
    pub called: bool,
    /// Something was paused.
    pub paused: bool,
    /// The limits have changed.
    pub reloaded: bool,
    /// KILL_CLIENT.
    pub killed: bool,
    /// The process is to end at once.
    pub must_exit: bool,
    /// With this code.
    pub exit_code: u8,
    /// Who was not at rest when suspend_timeout had passed, by the pointer in log lines.
    pub restless: BTreeSet<u64>,
    /// Somebody began to wait while SUSPEND was in force.
    pub waits_anew: bool,
    /// SUSPEND was in force, and not complete.
    pub suspending: bool,
    /// What clients were told at their end.
    pub fatals: BTreeMap<ClientId, String>,
    /// Why connections were closed, by the pointer in log lines.
    pub closed: BTreeMap<u64, String>,
}

impl Facts {
    /// Another core goes on.
    pub fn follow(&mut self, moved: &Moved) {
        moved.apply(&mut self.canceled);
        moved.apply(&mut self.patient);
        moved.apply(&mut self.fatals);
    }
}

impl World {
    /// Reads what has been logged. `due` is what the janitor had to do, if he has just been.
    pub fn read_journal(&mut self, due: Option<&Due>) {
        while let Some((_, line)) = self.core.journal.pop() {
            self.trace(|_| format!("    {line}"));
            if line.contains("impossible change of state") {
                self.fail(&format!("STATES: {line}"));
            }
            if let Some(rest) = line.strip_prefix("cleaning up idle pool for user ") {
                self.check_freed(rest, due);
            }
            let Some((prefix, reason)) = line.split_once("closing because: ") else {
                continue;
            };
            let reason = reason.split(" (age=").next().unwrap_or_default();
            let Some(who) = Named::read(prefix) else {
                self.fail(&format!("CAUSES: nobody knows who this is: {line}"));
            };
            if who.is_server && self.memory.is_good(who.pointer) && INNOCENT.contains(&reason) {
                self.fail(&format!("BLAME: a server that behaves: {line}"));
            }
            if !self.is_true(&who, reason, due) {
                self.fail(&format!("CAUSES: no cause for this: {line}"));
            }
            self.facts.closed.insert(who.pointer, reason.to_owned());
        }
    }

    /// True unless this can't be why somebody was closed.
    fn is_true(&self, who: &Named, reason: &str, due: Option<&Due>) -> bool {
        let (facts, database) = (&self.facts, who.database.as_str());
        if timeouts::TEXTS.contains(&reason) {
            return due.is_some_and(|due| due.allows(who.pointer, reason));
        }
        let server = self.memory.servers.get(&who.pointer);
        match reason {
            // It may be looked up in another one.
            "database removed" if database == "(nodb)" || !who.is_server => {
                !facts.removed.is_empty()
            }
            "database removed" => facts.removed.contains(database),
            "admin forced disconnect" => facts.killed,
            "suspend_timeout" => facts.restless.contains(&who.pointer),
            "close unsafe file descriptors on suspend" => facts.suspending && who.is_server,
            "server shutting down" => self.core.shutdown() == Some(Shutdown::WaitForServers),
            "pooler is shutting down" => self.core.shutdown().is_some(),
            "evicted" => {
                let limits = (self.plan.database_limit(database), self.plan.user_limit(&who.user));
                who.is_server && (limits != (None, None) || facts.reloaded)
            }
            _ if !who.is_server => true,
            "pause mode" => facts.paused || self.is_paused_at(database),
            "connect string changed" => facts.replaced || database.starts_with("peer-"),
            "database configuration changed" | "obsolete connection" | "close_needed" => {
                facts.replaced || server.is_some_and(|id| self.memory.is_marked(*id))
            }
            "server lifetime over" => {
                let opened = server.and_then(|id| self.clocks.opened.get(id));
                let lifetime = self.plan.lifetime(database);
                let is_old = opened.is_none_or(|opened| self.now.since(*opened) >= lifetime);
                // The plan has forgotten how long servers of a removed database lived.
                is_old || facts.removed.contains(database)
            }
            "a standby is preferred (target_session_attrs)" => {
                self.is_not_preferred(database, server)
            }
            _ if reason.ends_with("(target_session_attrs)") => self.is_role_wrong(database, server),
            "too many servers in the pool" => {
                let pool = (who.database.clone(), who.user.clone());
                due.is_some_and(|due| due.crowded.contains(&pool))
            }
            _ => true,
        }
    }

    fn check_freed(&self, rest: &str, due: Option<&Due>) {
        let (user, rest) = rest.split_once(" on db ").unwrap_or_default();
        let (database, _) = rest.split_once(" because: ").unwrap_or_default();
        let pool = (database.to_owned(), user.to_owned());
        if !due.is_some_and(|due| due.unused.contains(&pool)) {
            self.fail(&format!("CAUSES: no cause to free the pool {pool:?}"));
        }
    }

    /// A client is told that it waits once per wait, after query_wait_notify whole seconds, and
    /// not while it is meant to wait.
    pub fn check_notice(&mut self, peer: Peer, bytes: &[u8]) {
        let Peer::Client(id) = peer else { return };
        let text = String::from_utf8_lossy(bytes);
        if bytes.first() != Some(&b'N') || !text.contains("No server connection available") {
            return;
        }
        let client = self.core.clients().get(id);
        let since = client.and_then(|client| client.wait_start()).unwrap_or(self.now);
        let pool = client.and_then(|client| self.core.pool(client.pool()?));
        let paused = pool.is_some_and(|pool| self.is_paused_at(pool.names().0));
        let limit = u64::try_from(self.plan.settings.query_wait_notify).unwrap_or(0);
        let welcomed = client.is_some_and(|client| client.query_start().is_some());
        let waited = self.now.since(since).secs();
        let again = self.memory.noticed.insert(id, since) == Some(since);
        if again || limit == 0 || waited <= limit || paused || !welcomed {
            self.fail(&format!(
                "NOTICE: {id:?} is told that it waits after {waited} s, again {again}, \
                 paused {paused}, welcomed {welcomed}"
            ));
        }
    }

    /// While nothing goes wrong, clients are closed for few reasons only.
    pub fn check_told(&self, told: Option<&str>) {
        let Some(told) = told else { return };
        // The client itself knows better.
        if matches!(told, names::IN_USE | names::UNKNOWN) {
            return;
        }
        let starts = [
            "no such database",
            "database \"",
            "database removed",
            "admin forced",
            "authentication database \"",
        ];
        if !CALM.contains(&told) && !starts.iter().any(|start| told.starts_with(start)) {
            self.fail(&format!("REASONS: a client was told: {told}"));
        }
    }

    /// The pooler's own words to a client.
    pub fn note_fatal(&mut self, peer: Peer, bytes: &[u8]) {
        let Peer::Client(id) = peer else { return };
        if bytes.first() != Some(&b'E') || bytes.get(5..11) != Some(b"SFATAL") {
            return;
        }
        let fields = pgturnstile::wire::read::ErrorFields::read(&bytes[5..]);
        let text = String::from_utf8_lossy(fields.message.unwrap_or_default()).into_owned();
        self.facts.fatals.insert(id, text);
    }
}

/// Whom the prefix of a log line names.
struct Named {
    is_server: bool,
    pointer: u64,
    database: String,
    user: String,
}

impl Named {
    fn read(prefix: &str) -> Option<Named> {
        let (is_server, rest) = match prefix.strip_prefix("S-0x") {
            Some(rest) => (true, rest),
            None => (false, prefix.strip_prefix("C-0x")?),
        };
        let (hex, rest) = rest.split_once(": ")?;
        let (name, _) = rest.split_once('@')?;
        let (database, user) = name.split_once('/').unwrap_or((name, ""));
        Some(Named {
            is_server,
            pointer: u64::from_str_radix(hex, 16).ok()?,
            database: database.to_owned(),
            user: user.to_owned(),
        })
    }
}
