//! The short way for clients whose prepared statements are looked after: runs of requests that pass
//! as they are, or with another name. What needs more than a name goes the long way, in `prepare`.

use super::deallocate::{self, Found};
use super::face::{ClientId, Run, ServerId, Sink};
use super::prepare::{name_in, rename};
use super::replies::{Asker, Request};
use super::run::{behind_alike, first_request};
use super::server::{Server, Status};
use super::statements::{Names, ServerName, Statements};
use super::stats::Counter;
use super::Core;
use crate::wire::frame::Framer;
use std::ops::Range;

/// Larger packets are not copied to have another name.
const COPY_MAX: usize = 4096;

/// What becomes of a request.
enum Course {
    /// It passes as it is.
    Plain,
    /// It gets this name at this place of its body.
    Renamed(Range<usize>, ServerName),
    /// The long way.
    Long,
}

impl Core {
    /// The bytes at the front that are complete requests and need nothing but a server, and perhaps
    /// the name of a statement that it has.
    pub(super) fn tracked_requests(
        &mut self,
        id: ClientId,
        server_id: ServerId,
        data: &[u8],
        sink: &mut Sink,
    ) -> Run {
        let framer = Framer { startup: false, max: self.settings.max_packet_size };
        let (Some(client), Some(server)) =
            (self.clients.get_mut(id), self.servers.get_mut(server_id))
        else {
            return Run::Pass(0);
        };
        let out = &mut sink.to_server;
        // What is in front of `copied` is in the sink, if anything is.
        let (mut rest, mut copied, mut binds) = (data, 0_usize, 0_u64);
        while let Some((request, packet, behind)) = first_request(framer, rest) {
            let body = packet.get(5..).unwrap_or(&[]);
            match course(&mut client.names, server, &mut self.statements, request, body) {
                Course::Plain => {}
                Course::Renamed(at, name) if packet.len() <= COPY_MAX => {
                    let done = data.len().saturating_sub(rest.len());
                    out.extend_from_slice(data.get(copied..done).unwrap_or(&[]));
                    let tag = packet.first().copied().unwrap_or_default();
                    let before = body.get(..at.start).unwrap_or(&[]);
                    rename(out, (tag, packet.len() as u32), before, at.len(), &name);
                    out.extend_from_slice(body.get(at.end.saturating_add(1)..).unwrap_or(&[]));
                    copied = done.saturating_add(packet.len());
                    binds = binds.saturating_add(u64::from(request == Request::Bind));
                }
                Course::Renamed(..) | Course::Long => break,
            }
            server.replies.sent(request, Asker::Client);
            rest = behind;
            if request == Request::Parse {
                if let Some(names) = client.names.as_deref() {
                    server.replies.set_unnamed(names.number(), true);
                }
            } else if request == Request::Query && deallocate::may_clear(body) {
                server.replies.clears();
            } else if request == Request::CopyData {
                // The queue notes the place once; as many as follow change nothing.
                rest = behind_alike(framer, rest, b'd');
            }
        }
        let done = data.len().saturating_sub(rest.len());
        if done == 0 {
            return Run::Pass(0);
        }
        server.status = Status::Busy;
        let pool = server.pool;
        self.begin_query(id, done as u64);
        if copied == 0 {
            return Run::Pass(done);
        }
        out.extend_from_slice(data.get(copied..done).unwrap_or(&[]));
        self.count(pool, Counter::Binds, binds);
        Run::Replace(done)
    }
}

/// What becomes of a request, of which the body is complete. The unnamed statement is kept or ended.
#[inline]
fn course(
    names: &mut Option<Box<Names>>,
    server: &mut Server,
    store: &mut Statements,
    request: Request,
    body: &[u8],
) -> Course {
    match request {
        Request::Query => match names.as_deref_mut() {
            Some(names) => course_of_query(names, body),
            None => Course::Plain,
        },
        Request::Parse if body.first() == Some(&0) => {
            let key = body.get(1..).unwrap_or(&[]);
            names.get_or_insert_default().keep_unnamed(key, store.next_unnamed());
            Course::Plain
        }
        Request::Parse => Course::Long,
        Request::Bind | Request::Describe => {
            let Some(at) = name_in(request, body) else { return Course::Long };
            match (at.is_empty(), at.start) {
                (true, 0) => Course::Plain,
                (true, _) => {
                    let number = names.as_deref().map_or(0, Names::number);
                    match server.replies.has_unnamed(number) {
                        true => Course::Plain,
                        false => Course::Long,
                    }
                }
                (false, _) => course_of_named(names.as_deref(), server, store, body, at),
            }
        }
        _ => Course::Plain,
    }
}

fn course_of_query(names: &mut Names, body: &[u8]) -> Course {
    if !names.map.is_empty() && deallocate::find(body, body.len()) != Found::Nothing {
        return Course::Long;
    }
    names.end_unnamed();
    Course::Plain
}

/// A named statement, if the server has it.
#[inline]
fn course_of_named(
    names: Option<&Names>,
    server: &mut Server,
    store: &mut Statements,
    body: &[u8],
    at: Range<usize>,
) -> Course {
    let name = body.get(at.clone()).unwrap_or(&[]);
    let (Some(named), Some(shelf)) =
        (names.and_then(|names| names.map.get(name)), server.shelf.as_deref_mut())
    else {
        return Course::Long;
    };
    if !store.touch(shelf, named.statement, |place| server.replies.is_certain(place)) {
        return Course::Long;
    }
    match store.get(named.statement) {
        Some(statement) => Course::Renamed(at, *statement.name()),
        None => Course::Long,
    }
}
