//! The short way for what almost all packets are: requests of a linked client and replies to them
//! that pass as they are. Whatever else comes goes the long way, packet by packet, in `query`.

use super::client::ClientState;
use super::deallocate;
use super::face::{ClientId, Run, ServerId, Sink};
use super::pool::PoolId;
use super::prepare::clears_all;
use super::query::read_status;
use super::replies::{Asker, Request};
use super::server::{ServerState, Status};
use super::stats::Counter;
use super::Core;
use crate::config::PoolMode;
use crate::wire::frame::{Frame, Framer};
use crate::wire::{FromClient, FromServer};

impl Core {
    /// The bytes at the front that are complete requests and need nothing but a server.
    pub(super) fn plain_requests(&mut self, id: ClientId, data: &[u8], sink: &mut Sink) -> Run {
        const LONG_WAY: Run = Run::Pass(0);
        let framer = Framer { startup: false, max: self.settings.max_packet_size };
        let Some(client) = self.clients.get(id) else { return LONG_WAY };
        let is_active = client.state == ClientState::Active && client.welcomed;
        let is_active = is_active && client.revoked.is_none();
        let is_served = is_active && client.console.is_none();
        let has_names = client.names.is_some();
        // What it calls its statements may change unseen.
        let is_served = is_served && (!has_names || self.tracks(client));
        let Some((first, _, behind)) = first_request(framer, data) else { return LONG_WAY };
        if !is_served || self.settings.disable_pqexec.on() {
            return LONG_WAY;
        }
        let server_id = match client.server {
            Some(server) => server,
            // What is left of a COPY that the server has ended is for nobody.
            None if first == Request::CopyData || client.replication.is_some() => return LONG_WAY,
            None => match self.take_alike(id) {
                Some(server) => server,
                None if self.wait_if_full(id) => return Run::Wait,
                None => return LONG_WAY,
            },
        };
        let Some(server) = self.servers.get(server_id) else { return LONG_WAY };
        if server.replies.next_asker() == Some(Asker::Align) {
            return LONG_WAY;
        }
        // One simple query is about no statement of a client that has none.
        let may_track = has_names || first != Request::Query || !behind.is_empty();
        if may_track && self.clients.get(id).is_some_and(|client| self.tracks(client)) {
            return self.tracked_requests(id, server_id, data, sink);
        }
        let Some(server) = self.servers.get_mut(server_id) else { return LONG_WAY };
        let mut rest = data;
        while let Some((request, packet, behind)) = first_request(framer, rest) {
            server.replies.sent(request, Asker::Client);
            rest = behind;
            if request == Request::Query {
                // Statements of other clients are on the server, too.
                if deallocate::may_clear(packet.get(5..).unwrap_or(&[])) {
                    server.replies.clears();
                }
            } else if request == Request::CopyData {
                // The queue notes the place once; as many as follow change nothing.
                rest = behind_alike(framer, rest, b'd');
            }
        }
        let done = data.len().saturating_sub(rest.len());
        server.status = Status::Busy;
        self.begin_query(id, done as u64);
        Run::Pass(done)
    }

    /// An idle server that has the client's parameters already, linked to it.
    fn take_alike(&mut self, id: ClientId) -> Option<ServerId> {
        let client = self.clients.get(id)?;
        let pool_id = client.pool?;
        let head = self.pools.get(pool_id)?.servers(ServerState::Idle).head()?;
        let server = self.servers.get(head)?;
        let fits = !server.close_needed && server.is_clean();
        if !fits || !client.vars.is_shared_with(&server.vars) || self.is_paused(pool_id) {
            return None;
        }
        self.link(id, head);
        self.count(pool_id, Counter::Assignments, 1);
        Some(head)
    }

    /// The first client of the queue gets a server that its client has just left, without the
    /// detour by the idle ones, if the server has its parameters already.
    pub(super) fn hand_over(&mut self, id: ServerId, pool_id: PoolId) -> bool {
        let pool = self.pools.get(pool_id);
        let head = pool.and_then(|pool| pool.clients(ClientState::Waiting).head());
        let Some(waiter) = head else { return false };
        let (Some(client), Some(server)) = (self.clients.get(waiter), self.servers.get(id)) else {
            return false;
        };
        let fits = client.welcomed
            && !client.needs_own_server()
            && client.vars.is_shared_with(&server.vars);
        if !fits || server.state != ServerState::Active || self.is_paused(pool_id) {
            return false;
        }
        self.tie(waiter, id);
        self.count(pool_id, Counter::Assignments, 1);
        self.activate(waiter);
        true
    }

    /// Makes the client wait if nothing else can become of it: no server is idle, and nobody is
    /// refused.
    fn wait_if_full(&mut self, id: ClientId) -> bool {
        let pool_id = self.clients.get(id).and_then(|client| client.pool);
        let Some(pool) = pool_id.and_then(|pool| self.pools.get(pool)) else { return false };
        let has_idle = !pool.servers(ServerState::Idle).is_empty();
        if has_idle || pool.login_failed.is_some() || self.refuses_waiters() {
            return false;
        }
        self.begin_query(id, 0);
        if let Some(pool_id) = pool_id {
            self.wait(id, pool_id);
        }
        true
    }

    /// The bytes at the front that are complete replies for the linked client, up to and including
    /// the first ReadyForQuery.
    pub(super) fn plain_replies(&mut self, id: ServerId, data: &[u8]) -> usize {
        let framer = Framer { startup: false, max: self.settings.max_packet_size };
        let Some(server) = self.servers.get_mut(id) else { return 0 };
        let (Some(client), ServerState::Active) = (server.client, server.state) else { return 0 };
        let pool_id = server.pool;
        let mut rest = data;
        let mut ended = None;
        while let Some((tag, packet, behind)) = first_whole(framer, rest) {
            let kind = FromServer::of(tag);
            if kind == FromServer::ReadyForQuery {
                ended = read_status(packet.get(5..).unwrap_or(&[]));
                if ended.is_some() {
                    rest = behind;
                }
                break;
            }
            let is_complete = kind == FromServer::CommandComplete;
            if is_complete && clears_all(packet.get(5..).unwrap_or(&[])) {
                break;
            }
            if !server.replies.received_plain(kind) {
                break;
            }
            rest = behind;
            if matches!(kind, FromServer::DataRow | FromServer::CopyData) {
                // What holds for one of them holds for the next.
                rest = behind_alike(framer, rest, tag);
            }
        }
        let mut done = data.len().saturating_sub(rest.len());
        if let Some(status) = ended {
            let is_refused = status != Status::Ready && self.server_mode(id) == PoolMode::Statement;
            let Some(server) = self.servers.get_mut(id) else { return 0 };
            if is_refused || !server.replies.received_ready() {
                done = done.saturating_sub(READY_LEN);
                ended = None;
            }
        }
        self.note_replies(id, pool_id, done, ended);
        if let Some(status) = ended {
            self.query_done(id, client, status);
        }
        done
    }

    /// So many bytes of replies are on their way to the client.
    fn note_replies(&mut self, id: ServerId, pool: PoolId, bytes: usize, ended: Option<Status>) {
        if bytes == 0 {
            return;
        }
        if let Some(server) = self.servers.get_mut(id) {
            server.status = ended.unwrap_or(Status::Busy);
            server.delivered = false;
            server.last_packet = self.now;
        }
        self.count(pool, Counter::Sent, bytes as u64);
    }
}

/// Length of a ReadyForQuery packet in bytes.
const READY_LEN: usize = 6;

/// The packet at the front if it is complete: its type byte, its bytes, what is behind it.
#[inline]
fn first_whole(framer: Framer, data: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let Frame::Packet { tag, len } = framer.first(data) else { return None };
    let (packet, behind) = data.split_at_checked(len as usize)?;
    Some((tag, packet, behind))
}

/// What is behind the whole packets of this type at the front.
#[inline]
pub(super) fn behind_alike(framer: Framer, data: &[u8], tag: u8) -> &[u8] {
    data.get(framer.alike(data, tag)..).unwrap_or_default()
}

/// The request at the front if it is complete and of a kind that needs no look inside: what comes
/// back for it, its bytes, what is behind it.
#[inline]
pub(super) fn first_request(framer: Framer, data: &[u8]) -> Option<(Request, &[u8], &[u8])> {
    let (tag, packet, behind) = first_whole(framer, data)?;
    let request = match FromClient::of(tag) {
        FromClient::Query => Request::Query,
        FromClient::Parse => Request::Parse,
        FromClient::Bind => Request::Bind,
        FromClient::Describe => Request::Describe,
        FromClient::Execute => Request::Execute,
        FromClient::Sync => Request::Sync,
        FromClient::CopyData => Request::CopyData,
        _ => return None,
    };
    Some((request, packet, behind))
}
