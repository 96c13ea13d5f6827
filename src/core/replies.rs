//! The queue of replies that a server still owes. A server is free for another client only when
//! this queue is empty; a packet that fits nothing in it is a fault of the server.

mod carry;

pub use carry::REPLIES_TAGS;

use crate::base::Objects;
use crate::wire::{FromClient, FromServer};
use std::collections::VecDeque;

/// A message that was sent to the server, as far as it matters for what comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Simple query: rows, completions, then ReadyForQuery.
    Query,
    /// Fast-path call: a result, then ReadyForQuery.
    FunctionCall,
    /// ParseComplete.
    Parse,
    /// BindComplete.
    Bind,
    /// RowDescription or NoData, for a statement after ParameterDescription.
    Describe,
    /// CloseComplete.
    Close,
    /// ParseComplete, for a statement of the store.
    Prepare,
    /// CloseComplete, for a statement of the store.
    Discard,
    /// Rows, then a completion.
    Execute,
    /// ReadyForQuery.
    Sync,
    /// A place in the stream where COPY data were sent: nothing of its own comes back.
    CopyData,
    /// CopyDone or CopyFail: ends a COPY if one is going on, else nothing comes back.
    CopyEnd,
}

impl Request {
    /// What a client's packet asks for; `None` if nothing comes back for it.
    pub fn of(kind: FromClient) -> Option<Request> {
        Some(match kind {
            FromClient::Query => Request::Query,
            FromClient::FunctionCall => Request::FunctionCall,
            FromClient::Parse => Request::Parse,
            FromClient::Bind => Request::Bind,
            FromClient::Describe => Request::Describe,
            FromClient::Close => Request::Close,
            FromClient::Execute => Request::Execute,
            FromClient::Sync => Request::Sync,
            FromClient::CopyData => Request::CopyData,
            FromClient::CopyDone | FromClient::CopyFail => Request::CopyEnd,
            _ => return None,
        })
    }
}

/// Who asked, and so who gets the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// The linked client.
    Client,
    /// The pooler: SET that aligns the parameters with the client's.
    Align,
    /// The pooler: server_reset_query or server_check_query.
    Test,
    /// The pooler: auth_query.
    Lookup,
    /// The pooler: a prepared statement that the client needs there, or that must make room.
    Keeper,
    /// The linked client; nothing was sent, the pooler answers when its turn comes.
    Local,
    /// The linked client, with a DEALLOCATE for which the pooler has sent something else.
    Forget,
    /// The pooler: what the server is like, for target_session_attrs.
    Traits,
}

/// What a packet from the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A reply, or part of one, for this asker.
    For(Asker),
    /// It may come at any time; nobody asked for anything.
    Unprompted,
    /// It fits nothing that was asked for.
    Unexpected,
}

#[derive(Clone, Copy)]
struct Expected {
    request: Request,
    asker: Asker,
}

impl Expected {
    /// True if its end is written down in `Settled`.
    fn is_noted(self) -> bool {
        matches!(self.request, Request::Prepare | Request::Discard) || self.asker == Asker::Forget
    }
}

/// How requests that have to do with prepared statements have ended, in their order: first those
/// that were done, then those that failed or were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// How many `Prepare`, `Discard` and `Forget` were done.
    pub done: u32,
    /// How many of them were not.
    pub dropped: u32,
    /// The number of a client's unnamed statement whose Parse was not done; 0 if there is none.
    pub unnamed: u64,
}

/// The unnamed statement of a server.
#[derive(Clone, Copy, Default)]
struct Unnamed {
    /// Number of the statement; 0 if there is none, or nobody knows which.
    number: u64,
    /// Place of its Parse.
    place: u64,
    /// The client sent that Parse, not the pooler for it.
    is_first: bool,
}

/// What a server owes, oldest first.
#[derive(Default)]
pub struct Replies {
    queue: VecDeque<Expected>,
    /// How many entries there have ever been.
    pushed: u64,
    /// Place of the first entry behind the last Sync.
    open_from: u64,
    /// Place of the last Query that may deallocate everything.
    clearing: Option<u64>,
    unnamed: Unnamed,
    settled: Settled,
    /// An ErrorResponse came since the last ReadyForQuery.
    failed: bool,
    /// The server reads COPY data and ignores Sync.
    copy_in: bool,
    inherited: Inherited,
}

/// What is known of the conversation of a server that came from another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Inherited {
    /// Everything.
    #[default]
    Known,
    /// Whether it is answering something: neither side has said anything since.
    Silent,
    /// It is answering something; that ends with ReadyForQuery.
    Answering,
    /// It is reading COPY data.
    Copying,
}

impl Replies {
    /// True if the server owes nothing.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && !self.failed && !self.copy_in && self.inherited == Inherited::Known
    }

    /// The queue of a server that another process was linked to: whatever it says belongs to its
    /// client until a ReadyForQuery tells where the two are.
    pub fn inherited() -> Replies {
        Replies { inherited: Inherited::Silent, ..Replies::default() }
    }

    /// How many replies are expected.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// What the queue takes.
    pub fn objects(&self) -> Objects {
        let free = self.queue.capacity().saturating_sub(self.queue.len());
        Objects { size: size_of::<Expected>(), used: self.queue.len(), free }
    }

    /// The asker whose reply comes next.
    pub fn next_asker(&self) -> Option<Asker> {
        self.queue.front().map(|expected| expected.asker)
    }

    /// Notes that a request is on its way to the server.
    #[inline]
    pub fn sent(&mut self, request: Request, asker: Asker) {
        if self.inherited == Inherited::Silent {
            // Who asks is not waiting for an answer, unless it sends data.
            self.inherited = match request {
                Request::CopyData | Request::CopyEnd => Inherited::Copying,
                _ => Inherited::Known,
            };
        }
        match request {
            // Outside a request the server ignores COPY messages (protocol 55.2.6).
            Request::CopyData | Request::CopyEnd if self.queue.is_empty() => return,
            Request::CopyData => {
                if matches!(self.queue.back(), Some(last) if last.request == Request::CopyData) {
                    return;
                }
            }
            // These replace the unnamed statement (protocol 55.2.3), or may end it.
            Request::Query | Request::Parse => self.unnamed.number = 0,
            Request::Close if asker == Asker::Client => self.unnamed.number = 0,
            Request::Sync => self.open_from = self.pushed.wrapping_add(1),
            _ => {}
        }
        self.push(request, asker);
    }

    /// Notes that the pooler will answer a request of the client's at this place.
    pub fn owe(&mut self, request: Request) {
        self.push(request, Asker::Local);
    }

    #[inline]
    fn push(&mut self, request: Request, asker: Asker) {
        self.queue.push_back(Expected { request, asker });
        self.pushed = self.pushed.wrapping_add(1);
    }

    /// The request at the front, if it is for the pooler to answer: it is answered now.
    pub fn take_local(&mut self) -> Option<Request> {
        let head = self.queue.front().filter(|head| head.asker == Asker::Local)?;
        if self.failed || self.inherited != Inherited::Known {
            return None;
        }
        let request = head.request;
        self.pop();
        Some(request)
    }

    /// The place of the next entry, counted from the server's first.
    pub fn place(&self) -> u64 {
        self.pushed
    }

    /// The place of the oldest entry that has not ended.
    pub fn answered(&self) -> u64 {
        self.pushed.wrapping_sub(self.queue.len() as u64)
    }

    /// True if what is sent now finds the request at this place done, or is skipped like it. What
    /// an error skips ends with a Sync.
    pub fn is_certain(&self, place: u64) -> bool {
        let is_cleared = self.clearing.is_some_and(|at| place < at && at >= self.answered());
        !is_cleared && (place >= self.open_from || place < self.answered())
    }

    /// The Query that was sent last may deallocate all statements of the server.
    pub fn clears(&mut self) {
        self.clearing = Some(self.pushed.wrapping_sub(1));
    }

    /// The Parse that was sent last is that of the unnamed statement with this number.
    pub fn set_unnamed(&mut self, number: u64, is_first: bool) {
        self.unnamed = Unnamed { number, place: self.pushed.wrapping_sub(1), is_first };
    }

    /// The unnamed statement is closed.
    pub fn end_unnamed(&mut self) {
        self.unnamed.number = 0;
    }

    /// True if the server's unnamed statement is the one with this number.
    pub fn has_unnamed(&self, number: u64) -> bool {
        number != 0 && self.unnamed.number == number && self.is_certain(self.unnamed.place)
    }

    /// How requests have ended since the last call; `None` if none has that has to be known.
    pub fn take_settled(&mut self) -> Option<Settled> {
        let settled = std::mem::take(&mut self.settled);
        (settled != Settled::default()).then_some(settled)
    }

    /// Takes note of a packet from the server and says what it is.
    pub fn received(&mut self, kind: FromServer) -> Fate {
        if self.inherited != Inherited::Known {
            self.received_inherited(kind);
            return Fate::For(Asker::Client);
        }
        let head = self.queue.front().copied();
        let fate = head.map_or(Fate::Unprompted, |expected| Fate::For(expected.asker));
        match kind {
            FromServer::NoticeResponse
            | FromServer::NotificationResponse
            | FromServer::ParameterStatus => return fate,
            FromServer::ErrorResponse => {
                self.error(head);
                return fate;
            }
            FromServer::ReadyForQuery => return self.ready(fate),
            _ => {}
        }
        let Some(head) = head else {
            return Fate::Unexpected;
        };
        if self.failed {
            return Fate::Unexpected;
        }
        match step(head.request, kind) {
            Step::Stay => {}
            Step::Done => self.pop(),
            Step::Noted => {
                self.settled.done = self.settled.done.saturating_add(1);
                self.pop();
            }
            Step::CopyIn => self.copy_in = true,
            Step::Complete => self.complete(head.request),
            Step::Unexpected => return Fate::Unexpected,
        }
        fate
    }

    fn received_inherited(&mut self, kind: FromServer) {
        match kind {
            FromServer::NoticeResponse
            | FromServer::NotificationResponse
            | FromServer::ParameterStatus => {}
            FromServer::ReadyForQuery => {
                if self.inherited == Inherited::Copying {
                    // The Sync behind the data is what it answers, if there was one.
                    self.drop_through(0, Request::Sync);
                }
                self.inherited = Inherited::Known;
            }
            _ if self.inherited == Inherited::Silent => self.inherited = Inherited::Answering,
            _ => {}
        }
    }

    /// As `received`, for replies that begin or end nothing but one request of the client's. False
    /// for all others, of which no note is taken.
    #[inline]
    pub fn received_plain(&mut self, kind: FromServer) -> bool {
        let Some(head) = self.queue.front() else { return false };
        let is_odd = self.failed || self.copy_in || self.inherited != Inherited::Known;
        if is_odd || head.asker != Asker::Client {
            return false;
        }
        // What step() says of nearly all replies to simple queries.
        use FromServer as S;
        if head.request == Request::Query
            && matches!(kind, S::DataRow | S::RowDescription | S::CommandComplete)
        {
            return true;
        }
        match step(head.request, kind) {
            Step::Stay => true,
            Step::Done => {
                self.pop();
                true
            }
            Step::Complete => {
                self.complete(head.request);
                true
            }
            Step::Noted | Step::CopyIn | Step::Unexpected => false,
        }
    }

    /// As `received`, for ReadyForQuery. False if it ends nothing of the client's; then no note is
    /// taken.
    #[inline]
    pub fn received_ready(&mut self) -> bool {
        match self.queue.front() {
            Some(head)
                if head.asker == Asker::Client
                    && !self.failed
                    && self.inherited == Inherited::Known =>
            {
                self.ready(Fate::Unprompted) != Fate::Unexpected
            }
            _ => false,
        }
    }

    fn error(&mut self, head: Option<Expected>) {
        if self.queue.is_empty() {
            return;
        }
        self.failed = true;
        let was_copy = std::mem::take(&mut self.copy_in);
        // Syncs that the server read while it copied were ignored: they were sent before the data.
        if was_copy && head.is_some_and(|head| head.request == Request::Execute) {
            let data = |expected: &Expected| {
                matches!(expected.request, Request::CopyData | Request::CopyEnd)
            };
            if let Some(at) = self.queue.iter().position(data) {
                self.lose(0, at.saturating_add(1));
            }
        }
    }

    fn ready(&mut self, fate: Fate) -> Fate {
        let head = self.queue.front().map(|expected| expected.request);
        match head {
            Some(Request::Query) if self.next_asker() == Some(Asker::Forget) => {
                let settled = &mut self.settled;
                let count = if self.failed { &mut settled.dropped } else { &mut settled.done };
                *count = count.saturating_add(1);
                self.queue.pop_front();
            }
            Some(Request::Query | Request::FunctionCall | Request::Sync) => {
                self.queue.pop_front();
            }
            // After an error the server skips everything up to the next Sync (protocol 55.2.3).
            _ if self.failed => {
                if !self.drop_through(0, Request::Sync) {
                    self.lose(0, self.queue.len());
                }
            }
            _ => return Fate::Unexpected,
        }
        self.failed = false;
        self.copy_in = false;
        self.pop_markers();
        fate
    }

    fn complete(&mut self, head: Request) {
        let from = usize::from(head == Request::Query);
        if std::mem::take(&mut self.copy_in) && self.drop_through(from, Request::CopyEnd) {
            self.pop_markers();
        } else if head == Request::Execute {
            self.pop();
        }
    }

    fn pop(&mut self) {
        self.queue.pop_front();
        self.pop_markers();
    }

    /// COPY messages whose request is answered have no effect any more.
    fn pop_markers(&mut self) {
        while let Some(Request::CopyData | Request::CopyEnd) =
            self.queue.front().map(|expected| expected.request)
        {
            self.queue.pop_front();
        }
    }

    /// Removes entries from `from` on, up to and including the first `last`; false if there is none.
    fn drop_through(&mut self, from: usize, last: Request) -> bool {
        let at = self.queue.iter().skip(from).position(|expected| expected.request == last);
        if let Some(at) = at {
            self.lose(from, at.saturating_add(1));
        }
        at.is_some()
    }

    /// Removes `count` entries from `from` on: the server has skipped them.
    fn lose(&mut self, from: usize, count: usize) {
        let first = self.answered().wrapping_add(from as u64);
        let lost = first..first.wrapping_add(count as u64);
        if self.unnamed.number != 0 && lost.contains(&self.unnamed.place) {
            if self.unnamed.is_first {
                self.settled.unnamed = self.unnamed.number;
            }
            self.unnamed.number = 0;
        }
        for expected in self.queue.drain(from..from.saturating_add(count)) {
            if expected.is_noted() {
                self.settled.dropped = self.settled.dropped.saturating_add(1);
            }
        }
    }
}

enum Step {
    Stay,
    Done,
    Noted,
    CopyIn,
    Complete,
    Unexpected,
}

/// What a packet means for the request at the head of the queue.
fn step(head: Request, kind: FromServer) -> Step {
    use FromServer as S;
    match (head, kind) {
        (Request::Query | Request::Execute, S::CopyInResponse | S::CopyBothResponse) => {
            Step::CopyIn
        }
        (Request::Query | Request::Execute, S::CommandComplete) => Step::Complete,
        (
            Request::Query | Request::Execute,
            S::DataRow | S::CopyOutResponse | S::CopyData | S::CopyDone,
        ) => Step::Stay,
        (Request::Query, S::RowDescription | S::EmptyQueryResponse) => Step::Stay,
        (Request::Execute, S::EmptyQueryResponse | S::PortalSuspended) => Step::Done,
        (Request::FunctionCall, S::FunctionCallResponse) => Step::Stay,
        (Request::Parse, S::ParseComplete)
        | (Request::Bind, S::BindComplete)
        | (Request::Close, S::CloseComplete)
        | (Request::Describe, S::RowDescription | S::NoData) => Step::Done,
        (Request::Prepare, S::ParseComplete) | (Request::Discard, S::CloseComplete) => Step::Noted,
        (Request::Describe, S::ParameterDescription) => Step::Stay,
        _ => Step::Unexpected,
    }
}
