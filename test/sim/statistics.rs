//! Statistics beside what went over the core's border (admin 5): bytes of logged-in clients' and
//! servers' packets, and logins.

use crate::speech;
use crate::watch::Watch;
use crate::world::World;
use pgturnstile::config::PoolMode;
use pgturnstile::core::client::ClientState;
use pgturnstile::core::pool::PoolId;
use pgturnstile::core::server::ServerState;
use pgturnstile::core::stats::Counter;
use pgturnstile::core::{ClientId, Core, Peer, Run, ServerId, Verdict};

/// What a pool's counters must say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    received: u64,
    sent: u64,
    logins: u64,
    /// Parse of names by clients, Parse for servers, Bind to names, where the pooler keeps them.
    client_parses: u64,
    server_parses: u64,
    binds: u64,
}

/// Whose packet is going to be looked at.
#[derive(Clone, Copy)]
pub struct Speaker {
    id: Peer,
    /// Its pool, once it is logged in; consoles are not counted.
    pool: Option<PoolId>,
    logs_in: bool,
    /// Its query was canceled while it waited: what is left of that is for nobody.
    ignored: bool,
}

impl Speaker {
    /// Who it is before the core has a look.
    pub fn of(core: &Core, id: Peer) -> Speaker {
        match id {
            Peer::Client(client) => {
                let client = core.clients().get(client);
                let logs_in = client.is_some_and(|c| c.state() == ClientState::Login);
                let counts = client.filter(|c| !logs_in && !c.is_console());
                let ignored = client.is_some_and(|c| c.is_ignored());
                Speaker { id, pool: counts.and_then(|c| c.pool()), logs_in, ignored }
            }
            Peer::Server(server) => {
                let server = core.servers().get(server).filter(|server| {
                    !matches!(server.state(), ServerState::Login | ServerState::ActiveCancel)
                });
                let pool = server.map(|server| server.pool());
                Speaker { id, pool, logs_in: false, ignored: false }
            }
        }
    }

    /// True if its packet is ignored.
    pub fn is_ignored(self) -> bool {
        self.ignored
    }

    /// True if its packet, a client's, has been handed on, or answered for the server.
    pub fn is_taken(self, tag: u8, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Pass | Verdict::Replace { .. } => true,
            Verdict::Drop => matches!(tag, b'P' | b'C' | b'H' | b'Q') && !self.ignored,
            _ => false,
        }
    }
}

impl Watch {
    fn flow(&mut self, pool: Option<PoolId>) -> Option<&mut Flow> {
        Some(self.flows.entry(pool?).or_default())
    }

    /// A packet of so many bytes has been decided.
    pub fn counted(
        &mut self,
        speaker: Speaker,
        (tag, len): (u8, u64),
        verdict: Verdict,
        core: &Core,
    ) {
        match speaker.id {
            Peer::Client(id) if speaker.logs_in => self.entered(id, core),
            Peer::Client(_) if speaker.is_taken(tag, verdict) => {
                let Some(flow) = self.flow(speaker.pool) else { return };
                flow.received += len;
            }
            Peer::Server(_) if !matches!(verdict, Verdict::Whole | Verdict::Need(_)) => {
                let Some(flow) = self.flow(speaker.pool) else { return };
                flow.sent += len;
            }
            _ => {}
        }
    }

    /// A client's packet has been read in its login.
    fn entered(&mut self, id: ClientId, core: &Core) {
        let inside = [ClientState::Active, ClientState::Waiting];
        let client = core.clients().get(id).filter(|client| inside.contains(&client.state()));
        if let Some(flow) = self.flow(client.and_then(|client| client.pool())) {
            flow.logins += 1;
        }
    }

    /// Some of a client's words have been let pass.
    pub fn client_ran(&mut self, id: ClientId, run: &Run, core: &Core) {
        let pool = core.clients().get(id).and_then(|client| client.pool());
        if let (Run::Pass(bytes) | Run::Replace(bytes), Some(flow)) = (run, self.flow(pool)) {
            flow.received += *bytes as u64;
        }
    }

    /// A client's packets have been taken, and these are what the server gets for them.
    pub fn prepared(&mut self, pool: Option<PoolId>, packets: &[u8], said: &[u8], core: &Core) {
        let keeps = |id: &PoolId| {
            let mode = core.pool(*id).map(|pool| core.effective(pool).pool_mode());
            core.settings().max_prepared_statements != 0 && mode != Some(PoolMode::Session)
        };
        let Some(flow) = self.flow(pool.filter(keeps)) else { return };
        flow.client_parses += named(packets, b'P');
        flow.binds += named(packets, b'B');
        flow.server_parses += named(said, b'P');
    }

    /// So many bytes of a server's words have been let pass.
    pub fn server_ran(&mut self, id: ServerId, bytes: usize, core: &Core) {
        let pool = core.servers().get(id).map(|server| server.pool());
        if let Some(flow) = self.flow(pool) {
            flow.sent += bytes as u64;
        }
    }
}

/// How many of these packets, of which the last may not be complete, are of this kind and about a
/// statement with a name.
fn named(mut packets: &[u8], tag: u8) -> u64 {
    let mut count = 0;
    while let Some(len) = speech::packet_len(packets, true) {
        let (packet, rest) = packets.split_at(len.min(packets.len()));
        let (first, behind) = speech::text(&packet[5..]);
        let name = if tag == b'P' { first } else { speech::text(behind).0 };
        count += u64::from(packet[0] == tag && !name.is_empty());
        packets = rest;
    }
    count
}

impl World {
    /// Counters are what went over the border; no transaction is without a query.
    pub fn check_statistics(&self) {
        let mut watch = self.watch.borrow_mut();
        watch.flows.retain(|id, _| self.core.pool(*id).is_some());
        for (id, pool) in self.core.pools() {
            let get = |counter| pool.stats().total.get(counter);
            let has = Flow {
                received: get(Counter::Received),
                sent: get(Counter::Sent),
                logins: get(Counter::Logins),
                client_parses: get(Counter::ClientParses),
                server_parses: get(Counter::ServerParses),
                binds: get(Counter::Binds),
            };
            let mut want = watch.flows.get(&id).copied().unwrap_or_default();
            if self.plan.settings.auth_user.is_some() {
                // The end of a look-up may be a login, and no client's packet brings it.
                want.logins = has.logins;
            }
            let of = pool.names();
            if has != want {
                self.fail(&format!("STATISTICS: {of:?} counts {has:?}, {want:?} went over"));
            }
            let [transactions, queries] = [Counter::Transactions, Counter::Queries].map(get);
            if transactions > queries {
                self.fail(&format!("STATISTICS: {of:?} has {transactions} for {queries} queries"));
            }
        }
    }
}
