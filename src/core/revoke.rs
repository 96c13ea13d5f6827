//! A query is canceled while its client still waits for a server. The client leaves the queue and is
//! answered by the pooler as PostgreSQL would: an error, then ReadyForQuery; for a batch of the
//! extended protocol behind its Sync, up to which everything is ignored (protocol 55.2.3). What was
//! sent behind that goes on as usual. It may be about names that the ignored batch would have given
//! or taken: from then on PostgreSQL is to say what is wrong with the client's names, and an error
//! does not end the connection.
//!
//! A client that waits in its login has no key yet, so nobody can cancel that.

use super::client::{Client, ClientState};
use super::face::{Action, ClientId, Packet, Sink, Verdict};
use super::fault;
use super::replies::{Asker, Request};
use super::statements::StatementId;
use super::stats::Counter;
use super::Core;
use crate::base::{Level, Micros};
use crate::wire::{write, FromClient};

/// What is left of a query that was canceled before it got a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Revoked {
    /// All of it.
    Whole,
    /// The client has been told; what is left of its batch, up to the Sync, is ignored.
    Rest,
}

/// What is done about one packet of such a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    error: bool,
    ready: bool,
    left: Option<Revoked>,
}

/// Answers one packet; never asked about those that end the connection.
fn answer(left: Revoked, kind: FromClient) -> Answer {
    let begins = left == Revoked::Whole;
    match kind {
        // There is nothing in a Sync alone that could be canceled.
        FromClient::Sync => Answer { error: false, ready: true, left: None },
        FromClient::Query | FromClient::FunctionCall if begins => {
            Answer { error: true, ready: true, left: None }
        }
        _ => Answer { error: begins, ready: false, left: Some(Revoked::Rest) },
    }
}

impl Client {
    /// What it sends is ignored up to the next Sync.
    pub fn is_ignored(&self) -> bool {
        self.revoked.is_some()
    }
}

impl Core {
    /// Cancels what a client waits for; false if it does not wait.
    pub(super) fn revoke(&mut self, id: ClientId) -> bool {
        let waits = |client: &&Client| client.state == ClientState::Waiting && client.welcomed;
        let Some(pool) = self.clients.get(id).filter(waits).map(|client| client.pool) else {
            return false;
        };
        self.move_client(id, ClientState::Active);
        // A replication server that is logging in is for nobody else.
        if let Some(server) = self.clients.get(id).and_then(|client| client.server) {
            self.unlink(server);
            self.client_left(server);
        }
        let now = self.now;
        let Some(client) = self.clients.get_mut(id) else { return false };
        client.notified = false;
        client.revoked = Some(Revoked::Whole);
        // It has not run: that took no time.
        client.query_start = None;
        client.transaction_start = None;
        let waited = client.wait_start.take().map_or(Micros(0), |start| now.since(start));
        if let Some(pool) = pool {
            self.count(pool, Counter::WaitTime, waited.0);
            // Others may go on that waited for its sake, also in other pools.
            self.mark(pool);
            self.feed_starved(pool);
        }
        if self.settings.log_pooler_errors.on() {
            let line = format!("pooler error: {}", fault::QUERY_CANCELED.text);
            self.client_log(id, Level::Warning, &line);
        }
        self.actions.push_back(Action::Resume(id));
        true
    }

    /// A packet of a client whose query has been canceled while it waited.
    pub(super) fn revoked_packet(
        &mut self,
        id: ClientId,
        packet: Packet<'_>,
        sink: &mut Sink,
    ) -> Verdict {
        let kind = FromClient::of(packet.tag);
        let ends =
            matches!(kind, FromClient::Terminate | FromClient::Unknown | FromClient::Password);
        let Some(left) = self.clients.get(id).and_then(|client| client.revoked) else {
            return Verdict::Stop;
        };
        if packet.tag == 0 || ends {
            return self.query_packet(id, packet, sink);
        }
        if kind == FromClient::Parse && packet.seen.is_empty() && !packet.is_whole() {
            return Verdict::Need(1);
        }
        self.touch(id);
        let answer = answer(left, kind);
        if answer.error {
            // Either would have been the end of it before anything else (protocol 55.2.3); so would
            // Close, which has ended it before it waited.
            if kind == FromClient::Query
                || kind == FromClient::Parse && packet.seen.starts_with(&[0])
            {
                self.end_unnamed(id);
            }
            let fault = fault::QUERY_CANCELED;
            let text = fault.text.as_bytes();
            write::error(&mut sink.to_client, "ERROR", &fault::QUERY_CANCELED_CODE, text);
        }
        if answer.ready {
            write::ready(&mut sink.to_client, b'I');
        }
        if let Some(client) = self.clients.get_mut(id) {
            client.revoked = answer.left;
            client.was_revoked |= answer.error;
        }
        Verdict::Drop
    }

    /// Parse of a name that such a client uses already: the server is told to prepare the statement
    /// that it has by that name, and says that it has it.
    pub(super) fn parse_taken(
        &mut self,
        id: ClientId,
        statement: StatementId,
        packet: Packet<'_>,
        sink: &mut Sink,
    ) -> Verdict {
        let server = match self.acquire(id, sink) {
            Ok(server) => server,
            Err(verdict) => return verdict,
        };
        self.supply(server, statement, Asker::Keeper, &mut sink.to_server);
        if let Some(statement) = self.statements.get(statement) {
            statement.write_parse(&mut sink.to_server);
        }
        self.forwarded(server, Some(Request::Parse), Asker::Client, packet.len);
        self.count_for(server, Counter::ClientParses);
        self.count_for(server, Counter::ServerParses);
        Verdict::Drop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said to a client that sends these packets, and how many of them are done with.
    fn run(sent: &str) -> (String, usize) {
        let (mut said, mut left, mut done) = (String::new(), Some(Revoked::Whole), 0);
        for tag in sent.bytes() {
            let Some(before) = left else { break };
            let answer = answer(before, FromClient::of(tag));
            said.extend(answer.error.then_some('E'));
            said.extend(answer.ready.then_some('Z'));
            left = answer.left;
            done += 1;
        }
        (said, done)
    }

    #[test]
    fn a_query_is_answered_as_postgresql_would_and_no_more_than_that() {
        for (sent, said, done) in [
            ("Q", "EZ", 1),
            ("QQ", "EZ", 1),
            ("QPBES", "EZ", 1),
            ("Qddc", "EZ", 1),
            ("F", "EZ", 1),
            ("PBDESPBES", "EZ", 5),
            ("PBE", "E", 3),
            ("PBEHS", "EZ", 5),
            ("PBEdcS", "EZ", 6),
            // Whatever comes before the Sync is ignored, also a simple query.
            ("PBEQS", "EZ", 5),
            ("CS", "EZ", 2),
            ("S", "Z", 1),
        ] {
            assert_eq!(run(sent), (said.to_owned(), done), "{sent}");
        }
    }
}
