//! Packets about prepared statements (pooling 7): which name a client means, what has to be sent in
//! front of them, who is answered by the pooler, what replies tell about the servers.

use super::client::Client;
use super::deallocate::{self, Found};
use super::face::{ClientId, Packet, ServerId, Sink, Verdict};
use super::fault::{self, Fault};
use super::replies::{Asker, Request};
use super::server::Status;
use super::statements::{write_close, Named, Sent, ServerName, Standing, StatementId};
use super::stats::Counter;
use super::Core;
use crate::base::Level;
use crate::config::PoolMode;
use crate::wire::read::{lossy, Reader};
use crate::wire::{write, FromClient};
use std::ops::Range;

/// Where the name of a statement is in the body of a packet; `None` if it is not complete, an empty
/// place if the packet is not about a statement. A Bind has the name of its portal in front.
#[inline]
pub(super) fn name_in(request: Request, body: &[u8]) -> Option<Range<usize>> {
    let from = match (request, body.first()?) {
        (Request::Parse, _) => 0,
        (Request::Bind, _) => body.iter().position(|byte| *byte == 0)?.saturating_add(1),
        (_, b'S') => 1,
        _ => return Some(0..0),
    };
    let len = body.get(from..)?.iter().position(|byte| *byte == 0)?;
    Some(from..from.saturating_add(len))
}

/// Writes the beginning of a packet, up to the end of the statement's name, with the name that
/// servers know; `before` is what its body has in front of that.
#[inline]
pub(super) fn rename(
    out: &mut Vec<u8>,
    (tag, len): (u8, u32),
    before: &[u8],
    name_len: usize,
    name: &ServerName,
) {
    let name = name.as_bytes();
    let len = len.saturating_sub(1).saturating_sub(name_len as u32);
    out.push(tag);
    out.extend_from_slice(&len.saturating_add(name.len() as u32).to_be_bytes());
    out.extend_from_slice(before);
    out.extend_from_slice(name);
    out.push(0);
}

/// True if this is what follows the name in a Parse: a text, and as many types as announced.
pub(super) fn is_statement(key: &[u8]) -> bool {
    let mut reader = Reader::new(key);
    let count = reader.text().and_then(|_| reader.u16());
    count.is_some_and(|count| reader.bytes(usize::from(count).saturating_mul(4)).is_some())
}

/// True if this is the tag of a command that deallocates all statements of a server.
#[inline]
pub(super) fn clears_all(body: &[u8]) -> bool {
    matches!(body, b"DEALLOCATE ALL\0" | b"DISCARD ALL\0")
}

/// Lengths of the packets with such a tag.
pub(super) const CLEARING: [u32; 2] = [17, 20];

/// With more replies to come than this nothing is answered by the pooler: what is sent to the server
/// is taken at the server's pace, while what is owed by the pooler would be remembered without end.
const OWED_MAX: usize = 1000;

/// True for packets with the name of a statement in them, or of a portal in its place.
fn names_a_statement(kind: FromClient) -> bool {
    use FromClient as F;
    matches!(kind, F::Parse | F::Bind | F::Describe | F::Close)
}

impl Core {
    /// True if the prepared statements of this client are looked after (pooling 7.1, 9).
    #[inline]
    pub(super) fn tracks(&self, client: &Client) -> bool {
        let is_on = self.settings.max_prepared_statements != 0 && !client.replication.is_some();
        is_on && client.pool.is_some_and(|pool| self.pool_mode(pool) != PoolMode::Session)
    }

    /// A packet of a client whose statements are looked after; `None` if it is none of those that
    /// matter and goes its usual way.
    pub(super) fn tracked_packet(
        &mut self,
        id: ClientId,
        kind: FromClient,
        packet: Packet<'_>,
        sink: &mut Sink,
    ) -> Option<Verdict> {
        let request = match kind {
            FromClient::Query => return self.tracked_query(id, packet, sink),
            kind if names_a_statement(kind) => Request::of(kind)?,
            FromClient::Flush => return self.tracked_flush(id, packet),
            _ => return None,
        };
        let Some(place) = name_in(request, packet.seen) else {
            return Some(self.incomplete(id, packet));
        };
        if place.start == 0 && request != Request::Parse {
            return None;
        }
        let is_unnamed = place.is_empty();
        Some(match request {
            Request::Parse if !packet.is_whole() => Verdict::Whole,
            Request::Parse if is_unnamed => self.parse_unnamed(id, packet, sink),
            Request::Parse => self.parse_named(id, packet, place, sink),
            Request::Close if is_unnamed => {
                self.end_unnamed(id);
                return None;
            }
            Request::Close => self.close_named(id, packet, place, sink),
            _ if is_unnamed => self.use_unnamed(id, request, packet, sink),
            _ => self.use_named(id, request, packet, place, sink),
        })
    }

    /// More of a packet is needed, unless all of it is here: then it is broken.
    fn incomplete(&mut self, id: ClientId, packet: Packet<'_>) -> Verdict {
        if !packet.is_whole() {
            let body = packet.len.saturating_sub(packet.header_len());
            let more = (packet.seen.len() as u32).saturating_mul(2).max(64);
            return Verdict::Need(more.min(body));
        }
        let tag = packet.tag as char;
        let line = format!("failed to parse prepared statement packet type '{tag}'");
        self.client_log(id, Level::Error, &line);
        self.refuse(id, &fault::STATEMENT_UNREADABLE)
    }

    fn refuse(&mut self, id: ClientId, fault: &Fault) -> Verdict {
        self.close_client(id, fault);
        Verdict::Stop
    }

    fn unknown_name(&mut self, id: ClientId, name: &[u8]) -> Verdict {
        let line = format!("prepared statement '{}' not found", lossy(name));
        self.client_log(id, Level::Error, &line);
        self.refuse(id, &fault::STATEMENT_MISSING)
    }

    fn count_received(&mut self, id: ClientId, packet: Packet<'_>) {
        if let Some(pool) = self.clients.get(id).and_then(|client| client.pool) {
            self.count(pool, Counter::Received, packet.len.into());
        }
    }

    pub(super) fn count_for(&mut self, id: ServerId, counter: Counter) {
        if let Some(pool) = self.servers.get(id).map(|server| server.pool) {
            self.count(pool, counter, 1);
        }
    }

    /// The client's Parse or Close has been dealt with here: it is answered now, if nothing else
    /// comes before, else in its turn.
    fn answer_here(&mut self, id: ServerId, request: Request, sink: &mut Sink) {
        let Some(server) = self.servers.get_mut(id) else { return };
        match server.replies.is_empty() && server.delivered {
            true => write_answer(&mut sink.to_client, request),
            false => server.replies.owe(request),
        }
    }

    /// A server that has been given nothing by its client yet does not wait for it, if all that the
    /// client has sent is done.
    fn give_back(&mut self, id: ServerId, packet: Packet<'_>) {
        let Some(server) = self.servers.get(id) else { return };
        if packet.behind || server.status != Status::Reserved || !server.replies.is_empty() {
            return;
        }
        if let Some(client) = server.client {
            self.query_done(id, client, Status::Ready);
        }
        self.release(id);
    }

    /// A Flush brings nothing if nothing is owed.
    fn tracked_flush(&mut self, id: ClientId, packet: Packet<'_>) -> Option<Verdict> {
        let server = self.clients.get(id)?.server;
        let owes = |id| self.servers.get(id).is_some_and(|server| !server.replies.is_empty());
        if server.is_some_and(owes) {
            return None;
        }
        self.count_received(id, packet);
        if let Some(server) = server {
            self.give_back(server, packet);
        }
        Some(Verdict::Drop)
    }

    /// Answers what is for the pooler to answer and whose turn has come. Behind ReadyForQuery that may
    /// end the client's query.
    #[inline]
    pub(super) fn answer_local(&mut self, id: ServerId, sink: &mut Sink) {
        let Some(server) = self.servers.get_mut(id) else { return };
        let mut any = false;
        while let Some(request) = server.replies.take_local() {
            write_answer(&mut sink.to_client, request);
            any = true;
        }
        let (status, client) = (server.status, server.client);
        let is_rest =
            matches!(status, Status::Ready | Status::InTransaction | Status::InFailedTransaction);
        if let (true, true, Some(client)) = (any, is_rest, client) {
            self.query_done(id, client, status);
        }
    }

    /// Writes what a server needs to have this statement; false if it has it.
    pub(super) fn supply(
        &mut self,
        id: ServerId,
        statement: StatementId,
        asker: Asker,
        out: &mut Vec<u8>,
    ) -> bool {
        let most = usize::try_from(self.settings.max_prepared_statements).unwrap_or(usize::MAX);
        let Some(server) = self.servers.get_mut(id) else { return false };
        let shelf = server.shelf.get_or_insert_default();
        let (replies, store) = (&mut server.replies, &mut self.statements);
        if asker == Asker::Keeper && store.touch(shelf, statement, |at| replies.is_certain(at)) {
            return false;
        }
        match store.standing(shelf, statement) {
            Standing::Since(place)
                if replies.is_certain(place)
                    && (asker == Asker::Keeper || replies.len() < OWED_MAX) =>
            {
                return false;
            }
            Standing::Unknown if shelf.is_inherited() => {
                store.close(statement, out);
                replies.sent(Request::Close, Asker::Keeper);
            }
            Standing::Unknown => {}
            // Closing what does not exist is no error, but making it again is.
            Standing::Since(_) | Standing::Doubtful => {
                store.discard(shelf, statement, out);
                replies.sent(Request::Discard, Asker::Keeper);
            }
        }
        store.prepare(shelf, statement, replies.place(), out);
        replies.sent(Request::Prepare, asker);
        while shelf.len() > most {
            let Some(oldest) = store.oldest(shelf) else { break };
            store.discard(shelf, oldest, out);
            replies.sent(Request::Discard, Asker::Keeper);
        }
        self.count_for(id, Counter::ServerParses);
        true
    }

    fn parse_named(
        &mut self,
        id: ClientId,
        packet: Packet<'_>,
        place: Range<usize>,
        sink: &mut Sink,
    ) -> Verdict {
        let key = packet.seen.get(place.end.saturating_add(1)..).unwrap_or_default();
        let name = packet.seen.get(place).unwrap_or_default();
        if !is_statement(key) {
            return self.refuse(id, &fault::BROKEN_PARSE);
        }
        let Some(client) = self.clients.get(id) else { return Verdict::Stop };
        if let Some(statement) = client.statement(name) {
            if client.was_revoked {
                return self.parse_taken(id, statement, packet, sink);
            }
            let line = format!("prepared statement '{}' was already prepared", lossy(name));
            self.client_log(id, Level::Error, &line);
            return self.refuse(id, &fault::STATEMENT_NAME_TAKEN);
        }
        let server = match self.acquire(id, sink) {
            Ok(server) => server,
            Err(verdict) => return verdict,
        };
        let statement = self.statements.intern(key);
        let place = self.servers.get(server).map_or(0, |server| server.replies.place());
        if let Some(client) = self.clients.get_mut(id) {
            let named = Named { statement, server: Some(server), place };
            client.names.get_or_insert_default().map.insert(name.into(), named);
        }
        self.count_for(server, Counter::ClientParses);
        if self.supply(server, statement, Asker::Client, &mut sink.to_server) {
            self.forwarded(server, None, Asker::Client, packet.len);
        } else {
            self.count_received(id, packet);
            self.answer_here(server, Request::Parse, sink);
            self.give_back(server, packet);
        }
        Verdict::Drop
    }

    /// Bind or Describe of a named statement.
    fn use_named(
        &mut self,
        id: ClientId,
        request: Request,
        packet: Packet<'_>,
        place: Range<usize>,
        sink: &mut Sink,
    ) -> Verdict {
        let before = packet.seen.get(..place.start).unwrap_or_default();
        let name = packet.seen.get(place.clone()).unwrap_or_default();
        let Some(client) = self.clients.get(id) else { return Verdict::Stop };
        let statement = client.statement(name);
        if statement.is_none() && !client.was_revoked {
            return self.unknown_name(id, name);
        }
        let server = match self.acquire(id, sink) {
            Ok(server) => server,
            Err(verdict) => return verdict,
        };
        let mut known = ServerName::nobodys();
        if let Some(statement) = statement {
            self.supply(server, statement, Asker::Keeper, &mut sink.to_server);
            known = self.statements.get(statement).map_or(known, |statement| *statement.name());
        }
        rename(&mut sink.to_server, (packet.tag, packet.len), before, name.len(), &known);
        self.forwarded(server, Some(request), Asker::Client, packet.len);
        if request == Request::Bind {
            self.count_for(server, Counter::Binds);
        }
        let skip = packet.header_len().saturating_add(place.end as u32).saturating_add(1);
        Verdict::Replace { skip }
    }

    fn close_named(
        &mut self,
        id: ClientId,
        packet: Packet<'_>,
        place: Range<usize>,
        sink: &mut Sink,
    ) -> Verdict {
        let name = packet.seen.get(place).unwrap_or_default();
        let Some(client) = self.clients.get_mut(id) else { return Verdict::Stop };
        let server = client.server;
        if let Some(named) = client.names.as_mut().and_then(|names| names.map.remove(name)) {
            self.statements.drop(named.statement);
        }
        let owes_much = |id| self.servers.get(id).is_some_and(|s| s.replies.len() >= OWED_MAX);
        if let Some(server) = server.filter(|server| owes_much(*server)) {
            write_close(&mut sink.to_server, &ServerName::nobodys());
            self.forwarded(server, Some(Request::Close), Asker::Client, packet.len);
            return Verdict::Drop;
        }
        self.count_received(id, packet);
        match server {
            Some(server) => {
                self.answer_here(server, Request::Close, sink);
                self.give_back(server, packet);
            }
            None => write_answer(&mut sink.to_client, Request::Close),
        }
        Verdict::Drop
    }

    pub(super) fn end_unnamed(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(id) else { return };
        if let Some(names) = client.names.as_mut() {
            names.end_unnamed();
        }
        if let Some(server) = client.server.and_then(|server| self.servers.get_mut(server)) {
            server.replies.end_unnamed();
        }
    }

    /// The Parse of an unnamed statement is kept, for a Bind that comes when the client is linked to
    /// another server.
    fn parse_unnamed(&mut self, id: ClientId, packet: Packet<'_>, sink: &mut Sink) -> Verdict {
        let server = match self.acquire(id, sink) {
            Ok(server) => server,
            Err(verdict) => return verdict,
        };
        let number = self.statements.next_unnamed();
        if let Some(client) = self.clients.get_mut(id) {
            let names = client.names.get_or_insert_default();
            names.keep_unnamed(packet.seen.get(1..).unwrap_or_default(), number);
        }
        self.forwarded(server, Some(Request::Parse), Asker::Client, packet.len);
        if let Some(server) = self.servers.get_mut(server) {
            server.replies.set_unnamed(number, true);
        }
        Verdict::Pass
    }

    /// Bind or Describe of the unnamed statement.
    fn use_unnamed(
        &mut self,
        id: ClientId,
        request: Request,
        packet: Packet<'_>,
        sink: &mut Sink,
    ) -> Verdict {
        let server_id = match self.acquire(id, sink) {
            Ok(server) => server,
            Err(verdict) => return verdict,
        };
        let Some(server) = self.servers.get_mut(server_id) else { return Verdict::Stop };
        let names = self.clients.get(id).and_then(|client| client.names.as_deref());
        let number = names.map_or(0, |names| names.number());
        if !server.replies.has_unnamed(number) {
            match names.and_then(|names| names.unnamed()) {
                Some(key) => {
                    write::packet(&mut sink.to_server, b'P', |out| {
                        out.push(0);
                        out.extend_from_slice(key);
                    });
                    server.replies.sent(Request::Parse, Asker::Keeper);
                    server.replies.set_unnamed(number, false);
                }
                // What is there may be another client's: PostgreSQL is to say that there is none.
                None => {
                    write::packet(&mut sink.to_server, b'C', |out| {
                        out.extend_from_slice(b"S\0");
                    });
                    server.replies.sent(Request::Close, Asker::Keeper);
                    server.replies.end_unnamed();
                }
            }
        }
        self.forwarded(server_id, Some(request), Asker::Client, packet.len);
        Verdict::Pass
    }

    /// A simple query ends the unnamed statement, and may be a DEALLOCATE.
    fn tracked_query(
        &mut self,
        id: ClientId,
        packet: Packet<'_>,
        sink: &mut Sink,
    ) -> Option<Verdict> {
        let names = self.clients.get(id)?.names.as_deref();
        let body = packet.len.saturating_sub(packet.header_len());
        let named = names.filter(|names| !names.map.is_empty());
        let found = named.map(|names| (deallocate::find(packet.seen, body as usize), &names.map));
        let name = match found {
            Some((Found::Incomplete, _)) => return Some(Verdict::Whole),
            Some((Found::Name(name), map)) if map.contains_key(&*name) => Some(name),
            _ => None,
        };
        if let Some(names) = self.clients.get_mut(id)?.names.as_mut() {
            names.end_unnamed();
        }
        let may_clear = deallocate::may_clear(packet.seen);
        if name.is_none() && !may_clear {
            return None;
        }
        let server_id = match self.acquire(id, sink) {
            Ok(server) => server,
            Err(verdict) => return Some(verdict),
        };
        let Some(name) = name else {
            self.forwarded(server_id, Some(Request::Query), Asker::Client, packet.len);
            self.servers.get_mut(server_id)?.replies.clears();
            return Some(Verdict::Pass);
        };
        let names = self.clients.get_mut(id)?.names.as_deref_mut()?;
        let named = names.map.remove(&*name)?;
        let server = self.servers.get_mut(server_id)?;
        server.shelf.get_or_insert_default().forgets(name, named.statement);
        write::query(&mut sink.to_server, deallocate::INSTEAD);
        self.forwarded(server_id, Some(Request::Query), Asker::Forget, packet.len);
        Some(Verdict::Drop)
    }

    /// A packet of a client that has names while its statements are not looked after: what it says
    /// of them to the server itself holds no more when they are looked after again.
    pub(super) fn untracked_packet(
        &mut self,
        id: ClientId,
        kind: FromClient,
        packet: Packet<'_>,
        sink: &mut Sink,
    ) -> Option<Verdict> {
        let request = match kind {
            kind if names_a_statement(kind) => Request::of(kind)?,
            FromClient::Query => {
                self.end_unnamed(id);
                return None;
            }
            _ => return None,
        };
        let Some(place) = name_in(request, packet.seen) else {
            return (!packet.is_whole()).then(|| self.incomplete(id, packet));
        };
        if matches!(request, Request::Bind | Request::Describe) {
            // Its unnamed statement is of the time before: its server may have somebody else's.
            let number = self.clients.get(id)?.names.as_deref()?.number();
            let is_its_own = place.is_empty() && place.start > 0 && number != 0;
            return is_its_own.then(|| self.use_unnamed(id, request, packet, sink));
        }
        let name = packet.seen.get(place.clone()).unwrap_or_default();
        if !name.is_empty() {
            let names = self.clients.get_mut(id)?.names.as_deref_mut()?;
            if let Some(named) = names.map.remove(name) {
                self.statements.drop(named.statement);
            }
        } else if place.start == 1 || request == Request::Parse {
            self.end_unnamed(id);
        }
        None
    }

    /// Takes note of how requests about prepared statements have ended.
    pub(super) fn settle(&mut self, id: ServerId, client: Option<ClientId>) {
        let Some(server) = self.servers.get_mut(id) else { return };
        let Some(settled) = server.replies.take_settled() else { return };
        let mut names = client
            .and_then(|client| self.clients.get_mut(client))
            .and_then(|client| client.names.as_deref_mut());
        if let Some(names) = names.as_deref_mut().filter(|n| n.number() == settled.unnamed) {
            names.end_unnamed();
        }
        let Some(shelf) = server.shelf.as_deref_mut() else { return };
        let done = std::iter::repeat_n(true, settled.done as usize);
        for is_done in done.chain(std::iter::repeat_n(false, settled.dropped as usize)) {
            match shelf.take_sent() {
                Some(Sent::Prepare(at)) => {
                    self.statements.answered(shelf, at, is_done.then_some(true));
                }
                Some(Sent::Discard(at)) => {
                    self.statements.answered(shelf, at, is_done.then_some(false));
                }
                Some(Sent::Forget(name, statement)) => match names.as_deref_mut() {
                    // PostgreSQL would have kept the name, too.
                    Some(names) if !is_done && !names.map.contains_key(&name) => {
                        names.map.insert(name, Named { statement, server: None, place: 0 });
                    }
                    _ => self.statements.drop(statement),
                },
                None => {}
            }
        }
    }

    /// The command at this place has deallocated all statements of a server, and all names of its
    /// client that are not younger (pooling 7.6).
    pub(super) fn deallocated(&mut self, id: ServerId, client: Option<ClientId>, place: u64) {
        let Some(server) = self.servers.get_mut(id) else { return };
        if let Some(shelf) = server.shelf.as_deref_mut() {
            self.statements.clear(shelf);
        }
        let names = client
            .and_then(|client| self.clients.get_mut(client))
            .and_then(|client| client.names.as_deref_mut());
        let Some(names) = names else { return };
        let store = &mut self.statements;
        names.map.retain(|_, named| {
            let is_younger = named.server == Some(id) && named.place > place;
            if !is_younger {
                store.drop(named.statement);
            }
            is_younger
        });
    }
}

fn write_answer(out: &mut Vec<u8>, request: Request) {
    write::bare(out, if request == Request::Close { b'3' } else { b'1' });
}

impl Client {
    /// The statement that it has given this name.
    #[inline]
    pub(super) fn statement(&self, name: &[u8]) -> Option<StatementId> {
        Some(self.names.as_ref()?.map.get(name)?.statement)
    }

    /// How many named statements it has.
    pub fn prepared(&self) -> usize {
        self.names.as_ref().map_or(0, |names| names.map.len())
    }
}
