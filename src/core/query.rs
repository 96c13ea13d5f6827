//! Packets of logged-in clients and servers: what may be forwarded, and what it changes.

use super::assign::Assigned;
use super::client::ClientState;
use super::face::{Action, ClientId, Packet, ServerId, Sink, Verdict};
use super::fault;
use super::prepare::{clears_all, CLEARING};
use super::replies::{Asker, Fate, Request};
use super::server::{Server, ServerState, Status};
use super::stats::Counter;
use super::Core;
use crate::base::{Level, Micros};
use crate::config::PoolMode;
use crate::wire::read::{self, ErrorFields};
use crate::wire::startup::Opening;
use crate::wire::{write, FromClient, FromServer};

impl Core {
    /// A packet of a client that is logged in.
    pub(super) fn query_packet(
        &mut self,
        id: ClientId,
        packet: Packet<'_>,
        sink: &mut Sink,
    ) -> Verdict {
        let kind = FromClient::of(packet.tag);
        let Some(client) = self.clients.get_mut(id) else {
            return Verdict::Stop;
        };
        client.last_packet = self.now;
        if packet.tag == 0 {
            return self.opening_again(id, packet);
        }
        if client.console.is_some() {
            return self.console_packet(id, packet, kind, sink);
        }
        match kind {
            FromClient::Terminate => {
                self.close_client(id, &fault::CLIENT_CLOSE_REQUEST);
                return Verdict::Stop;
            }
            FromClient::Unknown | FromClient::Password => {
                return self.unknown_packet(id, packet.tag);
            }
            FromClient::Query if self.settings.disable_pqexec.on() => {
                self.client_log(id, Level::Error, "client used \"Query\" packet type");
                self.close_client(id, &fault::PQEXEC_DISALLOWED);
                return Verdict::Stop;
            }
            // What is left of a COPY that the server has ended is for nobody.
            FromClient::CopyData | FromClient::CopyDone | FromClient::CopyFail
                if client.server.is_none() =>
            {
                return Verdict::Drop;
            }
            _ => {}
        }
        let decided = match self.clients.get(id) {
            Some(client) if self.tracks(client) => self.tracked_packet(id, kind, packet, sink),
            Some(client) if client.names.is_some() => self.untracked_packet(id, kind, packet, sink),
            _ => None,
        };
        if let Some(verdict) = decided {
            return verdict;
        }
        self.forward(id, kind, packet.len, sink)
    }

    /// Hands a packet to the client's server, which it gets now if it has none.
    fn forward(&mut self, id: ClientId, kind: FromClient, len: u32, sink: &mut Sink) -> Verdict {
        match self.acquire(id, sink) {
            Ok(server) => {
                self.forwarded(server, Request::of(kind), Asker::Client, len);
                Verdict::Pass
            }
            Err(verdict) => verdict,
        }
    }

    /// The server that a client's packet goes to; if there is none (yet), the answer to the packet.
    pub(super) fn acquire(&mut self, id: ClientId, sink: &mut Sink) -> Result<ServerId, Verdict> {
        let linked = self.clients.get(id).ok_or(Verdict::Stop)?.server;
        self.begin_query(id, 0);
        let server_id = match linked {
            Some(server) => server,
            None => match self.assign(id, sink) {
                Assigned::Server(server) => server,
                Assigned::Aligning | Assigned::Wait => return Err(Verdict::Wait),
                Assigned::Refused => return Err(Verdict::Stop),
            },
        };
        let server = self.servers.get(server_id).ok_or(Verdict::Stop)?;
        match server.replies.next_asker() {
            Some(Asker::Align) => Err(Verdict::Wait),
            _ => Ok(server_id),
        }
    }

    /// A packet of so many bytes is on its way to the server, and this comes back for it.
    pub(super) fn forwarded(
        &mut self,
        id: ServerId,
        request: Option<Request>,
        asker: Asker,
        len: u32,
    ) {
        let Some(server) = self.servers.get_mut(id) else { return };
        if let Some(request) = request {
            server.replies.sent(request, asker);
        }
        server.status = Status::Busy;
        let pool = server.pool;
        self.count(pool, Counter::Received, len.into());
    }

    /// A client asks for something, in so many bytes for its server: the clocks of its query and
    /// its transaction run from the first packet on.
    pub(super) fn begin_query(&mut self, id: ClientId, bytes: u64) {
        let now = self.now;
        let Some(client) = self.clients.get_mut(id) else { return };
        client.last_packet = now;
        let starts_query = client.query_start.is_none();
        let starts_transaction = client.transaction_start.is_none();
        client.query_start.get_or_insert(now);
        client.transaction_start.get_or_insert(now);
        if let Some(pool) = client.pool.and_then(|pool| self.pools.get_mut(pool)) {
            let counters = &mut pool.stats.total;
            counters.add(Counter::Queries, u64::from(starts_query));
            counters.add(Counter::Transactions, u64::from(starts_transaction));
            counters.add(Counter::Received, bytes);
        }
    }

    /// A packet that may only begin a connection.
    fn opening_again(&mut self, id: ClientId, packet: Packet<'_>) -> Verdict {
        if packet.seen.len() < 4 {
            return Verdict::Need(4);
        }
        if Opening::read(packet.seen) != Opening::Unknown {
            return self.unknown_packet(id, packet.tag);
        }
        self.close_client(id, &super::login::bad_opening(&packet));
        Verdict::Stop
    }

    pub(super) fn unknown_packet(&mut self, id: ClientId, tag: u8) -> Verdict {
        let text = format!("unknown pkt from client: {tag}/0x{tag:02x}");
        self.client_log(id, Level::Error, &text);
        self.close_client(id, &fault::UNKNOWN_PACKET);
        Verdict::Stop
    }

    /// A packet of a server that is logged in.
    pub(super) fn reply_packet(
        &mut self,
        id: ServerId,
        packet: Packet<'_>,
        sink: &mut Sink,
    ) -> Verdict {
        self.answer_local(id, sink);
        let kind = FromServer::of(packet.tag);
        let Some(server) = self.servers.get_mut(id) else {
            return Verdict::Stop;
        };
        // ParameterStatus is read even when it is for nobody; errors of the pooler's own queries
        // are logged, and all that a look-up brings counts.
        let inspected = match kind {
            FromServer::ParameterStatus => true,
            FromServer::ReadyForQuery => true,
            FromServer::ErrorResponse => {
                server.is_ours() || server.traits.needs_asking() && packet.len <= WHOLE_MAX
            }
            FromServer::CommandComplete if CLEARING.contains(&packet.len) => true,
            _ => server.is_looking_up() || server.replies.next_asker() == Some(Asker::Traits),
        };
        if inspected && !packet.is_whole() && packet.len <= WHOLE_MAX {
            return Verdict::Whole;
        }
        server.last_packet = self.now;
        server.delivered = false;
        let (pool, client) = (server.pool, server.client);
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.stats.total.add(Counter::Sent, u64::from(packet.len));
        }
        if inspected && !packet.is_whole() {
            self.close_server(id, &fault::SERVER_BAD_HEADER, true);
            return Verdict::Stop;
        }
        if kind == FromServer::Unknown {
            let text = format!("unknown pkt: '{}'", packet.tag as char);
            self.server_log(id, Level::Error, &text);
            self.close_server(id, &fault::UNKNOWN_PACKET, true);
            return Verdict::Stop;
        }
        if kind == FromServer::ParameterStatus && !self.parameter_status(id, client, packet.seen) {
            self.close_server(id, &fault::BROKEN_PARAMETER_STATUS, true);
            return Verdict::Stop;
        }
        if kind == FromServer::ErrorResponse {
            self.doubt_traits(id, packet.seen);
        }
        let is_tested = self.servers.get(id).is_some_and(|s| s.state == ServerState::Tested);
        if client.is_none() && !is_tested {
            return self.unasked_packet(id, kind, packet);
        }
        self.reply(id, client, kind, packet, sink)
    }

    fn reply(
        &mut self,
        id: ServerId,
        client: Option<ClientId>,
        kind: FromServer,
        packet: Packet<'_>,
        sink: &mut Sink,
    ) -> Verdict {
        let Some(server) = self.servers.get_mut(id) else {
            return Verdict::Stop;
        };
        let place = server.replies.answered();
        let fate = server.replies.received(kind);
        // A reply behind ReadyForQuery belongs to a request that no Sync has ended yet.
        let status = match kind {
            FromServer::ReadyForQuery => read_status(packet.seen),
            FromServer::NoticeResponse
            | FromServer::NotificationResponse
            | FromServer::ParameterStatus => Some(server.status),
            _ => Some(Status::Busy),
        };
        let (Some(status), true) = (status, fate != Fate::Unexpected) else {
            let text = format!("unexpected packet '{}' from server", packet.tag as char);
            self.server_log(id, Level::Error, &text);
            self.close_server(id, &fault::UNEXPECTED_REPLY, true);
            return Verdict::Stop;
        };
        server.status = status;
        self.settle(id, client);
        if kind == FromServer::CommandComplete && clears_all(packet.seen) {
            self.deallocated(id, client, place);
        }
        match (fate, client) {
            (Fate::For(Asker::Align), Some(client)) => {
                self.align_reply(id, client, kind, packet.seen)
            }
            (Fate::For(Asker::Lookup), Some(client)) => {
                self.lookup_reply(id, client, kind, packet.seen)
            }
            (Fate::For(Asker::Traits), _) => self.traits_reply(id, kind, packet.seen),
            (Fate::For(Asker::Align | Asker::Test | Asker::Lookup), _) | (_, None) => Verdict::Drop,
            // Behind the end of a look-up: nothing of it is for the client.
            (_, Some(client)) if self.is_looked_up(client) => Verdict::Drop,
            (Fate::For(Asker::Keeper), _)
                if matches!(kind, FromServer::ParseComplete | FromServer::CloseComplete) =>
            {
                Verdict::Drop
            }
            (Fate::For(Asker::Forget), _) if kind == FromServer::RowDescription => Verdict::Drop,
            (Fate::For(Asker::Forget), _) if kind == FromServer::CommandComplete => {
                write::command_complete(&mut sink.to_client, "DEALLOCATE");
                Verdict::Drop
            }
            (_, Some(client)) => {
                if kind == FromServer::ReadyForQuery {
                    return self.query_ended(id, client);
                }
                Verdict::Pass
            }
        }
    }

    /// ReadyForQuery for a client: statistics, and the rule of statement mode.
    fn query_ended(&mut self, id: ServerId, client_id: ClientId) -> Verdict {
        let Some(server) = self.servers.get(id) else {
            return Verdict::Stop;
        };
        let status = server.status;
        if status != Status::Ready && self.server_mode(id) == PoolMode::Statement {
            self.close_server(id, &fault::NO_TRANSACTIONS, true);
            return Verdict::Stop;
        }
        self.query_done(id, client_id, status);
        Verdict::Pass
    }

    /// ReadyForQuery goes to a client. If nothing else is owed, its query is over.
    pub(super) fn query_done(&mut self, id: ServerId, client_id: ClientId, status: Status) {
        let Some(server) = self.servers.get(id).filter(|server| server.replies.is_empty()) else {
            return;
        };
        let (now, pool_id) = (self.now, server.pool);
        let Some(client) = self.clients.get_mut(client_id) else {
            return;
        };
        let mut spent = |start: &mut Option<Micros>, counter| {
            if let (Some(start), Some(pool)) = (start.take(), self.pools.get_mut(pool_id)) {
                pool.stats.total.add(counter, now.since(start).0);
            }
        };
        spent(&mut client.query_start, Counter::QueryTime);
        if status == Status::Ready {
            spent(&mut client.transaction_start, Counter::TransactionTime);
        }
    }

    /// The server answers the SET that gives it the client's parameters.
    fn align_reply(
        &mut self,
        id: ServerId,
        client_id: ClientId,
        kind: FromServer,
        body: &[u8],
    ) -> Verdict {
        match kind {
            FromServer::ErrorResponse => {
                let text = ErrorFields::read(body).line(": ").unwrap_or_default();
                let line = format!("varcache_apply failed: {text}");
                self.journal.line(Level::Error, line);
                self.close_server(id, &fault::INVALID_PARAMETER, true);
                Verdict::Stop
            }
            FromServer::ReadyForQuery => {
                let Some(server) = self.servers.get_mut(id) else {
                    return Verdict::Stop;
                };
                if server.status != Status::Ready || !server.replies.is_empty() {
                    self.close_server(id, &fault::UNEXPECTED_REPLY, true);
                    return Verdict::Stop;
                }
                server.status = Status::Reserved;
                self.shared.share(&mut server.vars);
                if let Some(client) = self.clients.get_mut(client_id) {
                    client.vars.adopt(&self.tracked, &server.vars);
                    self.shared.share(&mut client.vars);
                }
                self.actions.push_back(Action::Resume(client_id));
                Verdict::Drop
            }
            _ => Verdict::Drop,
        }
    }

    /// Takes note of a parameter; false if the packet can't be read.
    fn parameter_status(&mut self, id: ServerId, client: Option<ClientId>, body: &[u8]) -> bool {
        let Some((name, value)) = read::parameter_status(body) else {
            return false;
        };
        self.note_trait(id, name, value);
        let Some(at) = self.tracked.find(name) else {
            return true;
        };
        let value: super::vars::Value = value.into();
        let Some(server) = self.servers.get_mut(id) else {
            return false;
        };
        server.vars.set(&self.tracked, at, value.clone());
        // While a server is being aligned the client's own wishes count.
        if server.replies.next_asker() != Some(Asker::Align) {
            self.shared.share(&mut server.vars);
            let client = client.and_then(|client| self.clients.get_mut(client));
            // What the server of a look-up reports is not about the client's own servers.
            if let Some(client) = client.filter(|client| !client.is_looked_up()) {
                client.vars.set(&self.tracked, at, value);
                self.shared.share(&mut client.vars);
            }
        }
        true
    }

    /// A packet from a server that nobody uses (pooling 3.6).
    fn unasked_packet(&mut self, id: ServerId, kind: FromServer, packet: Packet<'_>) -> Verdict {
        let text = format!("got packet '{}' from server when not linked", packet.tag as char);
        self.server_log(id, Level::Warning, &text);
        if let Some(server) = self.servers.get_mut(id) {
            if kind != FromServer::NotificationResponse {
                server.status = Status::Busy;
            }
        }
        Verdict::Drop
    }

    /// All that a server sent is complete and delivered: it may be free now.
    pub(super) fn drained(&mut self, id: ServerId, sink: &mut Sink) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        server.delivered = true;
        if server.replies.next_asker() == Some(Asker::Local) {
            self.answer_local(id, sink);
        }
        let Some(server) = self.servers.get(id) else {
            return;
        };
        if server.status != Status::Ready || !server.replies.is_empty() {
            return;
        }
        let (state, pool) = (server.state, server.pool);
        let is_kept = server.replication.is_some();
        match state {
            ServerState::Active if self.lookup_answered(id) => {}
            // In session mode the client keeps it until it leaves.
            ServerState::Active if is_kept || self.pool_mode(pool) == PoolMode::Session => {}
            ServerState::Active | ServerState::Tested => self.release(id),
            _ => {}
        }
    }

    /// True if packets of this client are to be kept until `Resume`.
    pub(super) fn must_wait(&self, id: ClientId) -> bool {
        self.clients.get(id).is_some_and(|client| {
            matches!(client.state, ClientState::Waiting | ClientState::Joined)
        })
    }
}

/// The status in a ReadyForQuery; `None` if it can't be one.
pub(super) fn read_status(body: &[u8]) -> Option<Status> {
    match body {
        b"I" => Some(Status::Ready),
        b"T" => Some(Status::InTransaction),
        b"E" => Some(Status::InFailedTransaction),
        _ => None,
    }
}

/// The largest ParameterStatus or other packet that is collected whole from a server, in bytes.
pub(super) const WHOLE_MAX: u32 = 1 << 20;

impl Server {
    /// True while the pooler gives the server its client's parameters.
    pub fn is_aligning(&self) -> bool {
        self.replies.next_asker() == Some(Asker::Align)
    }

    /// True while auth_query runs on it.
    pub fn is_looking_up(&self) -> bool {
        self.replies.next_asker() == Some(Asker::Lookup)
    }

    /// True while something of the pooler's own is done for its client.
    pub(super) fn is_ours(&self) -> bool {
        self.is_aligning() || self.is_looking_up()
    }
}
