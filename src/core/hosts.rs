//! Which host of a list is connected to (pooling 10.2), and rounds through the list in search of a
//! server that is as target_session_attrs wants it.

use super::assign::{Launch, Why};
use super::attrs::Unfit;
use super::connect;
use super::face::{Addr, ServerId, Target};
use super::fault::Fault;
use super::pool::PoolId;
use super::server::{Server, ServerState};
use super::Core;
use crate::base::{Level, Micros};
use crate::config::{LoadBalance, SessionAttrs};
use std::net::SocketAddr;

/// Where a pool is in its list of hosts.
#[derive(Default)]
pub(super) struct Hosts {
    /// Which element is next.
    next: u32,
    round: Round,
    /// When no standby was found the last time that one was looked for.
    no_standby: Option<Micros>,
}

/// A round through the list.
#[derive(Default)]
struct Round {
    /// Hosts that don't come into question any more.
    tried: Vec<u32>,
    /// The second pass of prefer-standby: any server will do.
    any_will_do: bool,
    /// Nobody waits for it: it looks for a standby only.
    is_look: bool,
    /// When the last attempt failed; the next host is tried at once.
    failed: Option<Micros>,
    /// Why attempts failed.
    reasons: Vec<String>,
    /// Some server was not what is wanted.
    some_unfit: bool,
    /// What clients that wait are told when the round is over.
    refusal: Option<Fault>,
}

/// What follows from an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Another host, at once.
    Another,
    /// There is no standby: all hosts again, and any server will do.
    SecondPass,
    /// Nothing before server_login_retry.
    Over,
}

/// Decides what follows when an attempt failed, and so many of `hosts` do not come into question.
fn next(wanted: SessionAttrs, hosts: u32, tried: usize, any_will_do: bool) -> Next {
    if wanted == SessionAttrs::Any {
        return Next::Over;
    }
    if tried < hosts as usize {
        return Next::Another;
    }
    match wanted == SessionAttrs::PreferStandby && !any_will_do {
        true => Next::SecondPass,
        false => Next::Over,
    }
}

/// The first host from `next` on that has not been tried.
fn choose(hosts: u32, next: u32, tried: &[u32]) -> u32 {
    let hosts = hosts.max(1);
    let in_turn = |step: u32| next.wrapping_add(step) % hosts;
    let host = (0..hosts).map(in_turn).find(|host| !tried.contains(host));
    host.unwrap_or(in_turn(0))
}

impl Hosts {
    /// A round is under way: the next attempt need not wait for server_login_retry.
    pub(super) fn is_in_round(&self) -> bool {
        self.round.failed.is_some()
    }

    /// Any server will do for the connection that is being made.
    pub(super) fn any_will_do(&self) -> bool {
        self.round.any_will_do
    }

    /// What a successor goes on from: which element is next, when no standby was found. A round
    /// begins anew, as its connection is not carried over.
    pub(super) fn hand_out(&self) -> (u32, Option<Micros>) {
        let Hosts { next, round: _round, no_standby } = self;
        (*next, *no_standby)
    }

    /// Goes on where a predecessor was.
    pub(super) fn take_in(&mut self, next: u32, no_standby: Option<Micros>) {
        (self.next, self.no_standby) = (next, no_standby);
    }

    /// The list is another one.
    pub(super) fn start_over(&mut self) {
        self.round = Round::default();
        self.no_standby = None;
    }
}

/// A login came to nothing for good: what is noted on the pool.
pub(super) struct Failure {
    /// What clients that come are told.
    pub(super) text: String,
    /// The same with all that is known.
    pub(super) detail: String,
    /// What clients that wait are told.
    pub(super) refusal: Option<Fault>,
}

impl Core {
    /// Where a server connects to.
    pub(super) fn server_target(&self, id: ServerId) -> Option<Target> {
        let server = self.servers.get(id)?;
        let pool = self.pools.get(server.pool)?;
        if pool.peer.is_some() {
            return self.peer_target(pool);
        }
        if let Some(at) = self.address_to_cancel_at(server) {
            return Some(Target { host: at.ip().to_string(), port: at.port() });
        }
        let database = self.databases.get(pool.database)?;
        let list = database.hosts();
        let (host, port) = list.get(server.host as usize).copied().unwrap_or(("", 0));
        let host = match host {
            "" => self.settings.unix_socket_dir.clone(),
            host => host.to_owned(),
        };
        let port = u16::try_from(port).unwrap_or(0);
        (!host.is_empty()).then_some(Target { host, port })
    }

    /// The port that a server is connected to, also by its Unix socket.
    pub fn server_port(&self, id: ServerId) -> i32 {
        self.server_target(id).map_or(0, |target| target.port.into())
    }

    /// A host name may have several addresses: a cancel request goes to the one of its query, also
    /// if the database is somewhere else now.
    fn address_to_cancel_at(&self, server: &Server) -> Option<SocketAddr> {
        if server.remote != Addr::Unknown || !server.is_connecting() {
            return None;
        }
        match self.next_to_cancel(server.pool)?.remote {
            Addr::Inet(at) => Some(at),
            _ => None,
        }
    }

    /// Logs that there is no Unix socket to connect to.
    pub(super) fn miss_socket_dir(&mut self, pool: PoolId, host: u32) {
        let Some(pool) = self.pools.get(pool).filter(|pool| pool.peer.is_none()) else { return };
        let database = self.databases.get(pool.database);
        let hosts = database.map(|database| database.hosts()).unwrap_or_default();
        if self.settings.unix_socket_dir.is_empty()
            && hosts.get(host as usize).is_none_or(|(host, _)| host.is_empty())
        {
            let line = format!("unix socket dir not configured: {}", pool.names.0);
            self.journal.line(Level::Error, line);
        }
    }

    /// The element of the list of hosts that the next connection of a pool goes to.
    pub(super) fn choose_host(&mut self, id: PoolId) -> u32 {
        if let Some(target) = self.next_to_cancel(id) {
            return target.host;
        }
        let wanted = self.wanted(id);
        let (now, retry) = (self.now, self.retry_pause());
        let no_standbys: Vec<u32> = match wanted {
            SessionAttrs::PreferStandby => self.hosts_without_standby(id),
            _ => Vec::new(),
        };
        let Some(pool) = self.pools.get(id) else { return 0 };
        let stays = self.effective(pool).load_balance() == LoadBalance::Disable;
        let failed = pool.connect_failed || pool.login_failed.is_some();
        let count = self.host_count(id);
        let Some(pool) = self.pools.get_mut(id) else { return 0 };
        let hosts = &mut pool.hosts;
        if hosts.round.failed.is_some_and(|at| now.since(at) >= retry) {
            hosts.round = Round::default();
        }
        if !hosts.is_in_round() && wanted == SessionAttrs::PreferStandby {
            let looked = hosts.no_standby.is_some_and(|at| now.since(at) < retry);
            let is_futile = no_standbys.len() >= count as usize;
            hosts.round.any_will_do = !hosts.round.is_look && (looked || is_futile);
            hosts.round.tried = if hosts.round.any_will_do { Vec::new() } else { no_standbys };
        }
        if stays && failed && !hosts.is_in_round() {
            hosts.next = hosts.next.wrapping_add(1);
        }
        let host = choose(count, hosts.next, &hosts.round.tried);
        hosts.next = if stays { host } else { host.wrapping_add(1) };
        host
    }

    fn host_count(&self, id: PoolId) -> u32 {
        let database = self.pools.get(id).and_then(|pool| self.databases.get(pool.database));
        let count = database.map_or(1, |database| database.hosts().len());
        u32::try_from(count).unwrap_or(1).max(1)
    }

    /// Hosts that servers of the pool are connected to, and that are no standbys.
    fn hosts_without_standby(&self, id: PoolId) -> Vec<u32> {
        let servers = self.not_preferred(id).into_iter();
        let mut hosts: Vec<u32> =
            servers.filter_map(|id| Some(self.servers.get(id)?.host)).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    /// An attempt to log in to a server has failed. `None`: the next host is tried at once.
    pub(super) fn attempt_failed(
        &mut self,
        id: PoolId,
        host: u32,
        reason: &Fault,
        error: Option<String>,
        refusal: Option<Fault>,
    ) -> Option<Failure> {
        let detail = error
            .map_or_else(|| reason.text.to_string(), |error| format!("{}: {error}", reason.text));
        let wanted = self.wanted(id);
        let text = reason.text.to_string();
        if wanted == SessionAttrs::Any {
            return Some(Failure { text, detail, refusal });
        }
        let (count, now) = (self.host_count(id), self.now);
        let pool = self.pools.get_mut(id)?;
        let hosts = &mut pool.hosts;
        let round = &mut hosts.round;
        if !round.tried.contains(&host) {
            round.tried.push(host);
        }
        round.some_unfit |= Unfit::caused(reason);
        round.refusal = refusal.or(round.refusal.take());
        round.reasons.push(format!("host {}: {detail}", host.saturating_add(1)));
        match next(wanted, count, round.tried.len(), round.any_will_do) {
            Next::Another => {
                round.failed = Some(now);
                None
            }
            Next::SecondPass => {
                hosts.no_standby = Some(now);
                // Nobody needs what a mere look would find now.
                let failed = (!round.is_look).then_some(now);
                hosts.round = Round { any_will_do: true, failed, ..Round::default() };
                None
            }
            Next::Over => {
                let round = std::mem::take(round);
                let no_host = || format!("no host fits target_session_attrs={}", wanted.word());
                let text = if round.some_unfit { no_host() } else { text };
                let detail = match count {
                    1 => detail,
                    _ => format!("{text} ({})", round.reasons.join("; ")),
                };
                Some(Failure { text, detail, refusal: round.refusal })
            }
        }
    }

    /// A server has logged in and fits. If it is a standby, a prefer-standby pool does without the
    /// others from now on.
    pub(super) fn round_won(&mut self, id: PoolId, server: ServerId) {
        let wanted = self.wanted(id);
        let traits = self.servers.get(server).map(|server| server.traits).unwrap_or_default();
        let Some(pool) = self.pools.get_mut(id) else { return };
        pool.hosts.round = Round::default();
        if wanted == SessionAttrs::PreferStandby && traits.is_standby() == Some(true) {
            pool.hosts.no_standby = None;
            for other in self.not_preferred(id) {
                self.spurn(other);
            }
        }
    }

    /// server_login_retry after a prefer-standby pool found no standby, one is looked for again. If
    /// the pool is full, one of its servers makes room.
    pub(super) fn look_for_standby(&mut self, id: PoolId) {
        if self.wanted(id) != SessionAttrs::PreferStandby || self.is_paused(id) {
            return;
        }
        let (now, retry) = (self.now, self.retry_pause());
        let Some(pool) = self.pools.get(id) else { return };
        if !pool.servers(ServerState::Login).is_empty() {
            return;
        }
        if pool.hosts.is_in_round() {
            if pool.hosts.round.is_look {
                self.go_on_looking(id);
            }
            return;
        }
        let looked = pool.hosts.no_standby.is_some_and(|at| now.since(at) < retry);
        let is_spurned = |server: &ServerId| {
            self.servers.get(*server).is_some_and(|server| server.traits.spurned)
        };
        let (leaving, others): (Vec<_>, Vec<_>) =
            self.not_preferred(id).into_iter().partition(is_spurned);
        let is_futile = self.hosts_without_standby(id).len() >= self.host_count(id) as usize;
        if looked || others.is_empty() || is_futile || self.shutdown.is_some() {
            return;
        }
        let gone = match (self.may_launch(id), others.first()) {
            (Some(Launch::Yes), _) => true,
            (Some(Launch::No(Why::ServerUnreachable)) | None, _) | (_, None) => false,
            // One makes room already.
            _ if !leaving.is_empty() => false,
            // Free ones come first. One that is in use makes room when it is released; whoever
            // waits then has the next connection opened, and it looks for a standby, too.
            (Some(_), Some(first)) => self.spurn(*first),
        };
        if gone && self.may_launch(id) == Some(Launch::Yes) {
            if let Some(pool) = self.pools.get_mut(id) {
                pool.hosts.round = Round { is_look: true, ..Round::default() };
            }
            connect::open(self, id);
        }
    }

    /// The next host of a look, unless all servers have gone that a standby would be better than.
    fn go_on_looking(&mut self, id: PoolId) {
        if !self.not_preferred(id).is_empty() {
            return self.launch(id, false);
        }
        if let Some(pool) = self.pools.get_mut(id) {
            pool.hosts.round = Round::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_chosen_in_turn_and_not_twice_in_a_round() {
        for (hosts, next, tried, want) in [
            (1, 0, &[][..], 0),
            (1, 7, &[], 0),
            (3, 4, &[], 1),
            (3, 1, &[1], 2),
            (3, 2, &[2, 0], 1),
            (2, 1, &[0, 1], 1),
            (0, 5, &[], 0),
        ] {
            assert_eq!(choose(hosts, next, tried), want, "{hosts} {next} {tried:?}");
        }
    }

    #[test]
    fn a_round_ends_when_all_hosts_have_been_tried() {
        use SessionAttrs as W;
        for (wanted, hosts, tried, any_will_do, want) in [
            (W::Any, 3, 1, false, Next::Over),
            (W::Primary, 1, 1, false, Next::Over),
            (W::Primary, 2, 1, false, Next::Another),
            (W::ReadOnly, 2, 2, false, Next::Over),
            (W::PreferStandby, 2, 1, false, Next::Another),
            (W::PreferStandby, 2, 2, false, Next::SecondPass),
            (W::PreferStandby, 2, 1, true, Next::Another),
            (W::PreferStandby, 2, 2, true, Next::Over),
            (W::PreferStandby, 1, 1, false, Next::SecondPass),
        ] {
            assert_eq!(next(wanted, hosts, tried, any_will_do), want, "{wanted:?} {tried}");
        }
    }
}
