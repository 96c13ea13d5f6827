//! Console clients: their packets become requests, kept until the console floor runs them. Answers
//! come in the order of the requests, but for simple queries that have to wait: these let later
//! simple queries pass (admin 2.1). Nothing passes an Execute that has to wait, and nothing of the
//! extended protocol passes anything, so that a driver can always tell which answer it reads.

use super::ask::Ask;
use super::client::Access;
use super::face::{Action, ClientId, Packet, Sink, Verdict};
use super::stats::Counter;
use super::{fault, Core};
use crate::base::Level;
use crate::wire::{write, FromClient};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Packets of consoles may be so long, in bytes with their header.
const CONSOLE_PACKET_MAX: u64 = 65_536;
/// So many requests are kept; the client is not read until they have been run.
const QUEUE_MAX: usize = 32;

/// What makes a client a console.
pub struct Console {
    /// What it may do.
    pub access: Access,
    /// What the extended protocol keeps from one packet to the next.
    pub extended: Extended,
    /// Requests that have not been run. If they may be run, `Action::Console` is on its way.
    pub(super) queue: VecDeque<Ask>,
    /// Simple queries that are not answered yet.
    pub(super) owed: u32,
    /// A command whose answer everything else has to wait for; how it came.
    pub(super) hold: Option<Way>,
    /// The client is not read until the queue is empty, or nothing in it would be missed.
    pub(super) stalled: bool,
}

/// How a command came, and so how its answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By Query: ReadyForQuery follows.
    Query,
    /// By Execute: ReadyForQuery comes with the Sync.
    Execute,
}

/// State of the extended protocol.
#[derive(Default)]
pub struct Extended {
    /// Prepared statements by name; the unnamed one's is empty.
    pub statements: BTreeMap<Vec<u8>, Rc<Statement>>,
    /// Portals by name; they end with the next Sync.
    pub portals: BTreeMap<Vec<u8>, Portal>,
    /// There was an error: what comes before the next Sync is left out.
    pub failed: bool,
}

/// A statement of the console's language; what its words mean is not looked at here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// No statement at all.
    Empty,
    /// A word and perhaps an argument, which is empty if there is none.
    Command {
        /// The word.
        name: String,
        /// The argument.
        argument: String,
    },
    /// SET key = value.
    Set {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
}

/// A statement that can be executed.
pub struct Portal {
    /// What it executes.
    pub statement: Rc<Statement>,
    /// Is the result binary? None (no), one for all columns, or one for each.
    pub binary: Vec<bool>,
    /// How far it is.
    pub progress: Progress,
}

/// How far a portal is.
pub enum Progress {
    /// It has not been executed.
    New,
    /// It has a result, of which these DataRow packets are left.
    Rows(VecDeque<Vec<u8>>),
    /// It is over.
    Done,
}

impl Console {
    /// A console that has not asked for anything.
    pub fn new(access: Access) -> Console {
        Console {
            access,
            extended: Extended::default(),
            queue: VecDeque::new(),
            owed: 0,
            hold: None,
            stalled: false,
        }
    }

    /// Bytes of the requests that have not been run.
    pub fn waiting(&self) -> usize {
        self.queue.iter().map(Ask::size).fold(0, usize::saturating_add)
    }

    /// True if the next request can't be run before an answer that is still to come.
    fn is_blocked(&self) -> bool {
        let is_simple = matches!(self.queue.front(), None | Some(Ask::Query(_)));
        self.hold.is_some() || self.owed > 0 && !is_simple
    }

    /// True if nothing is left of what it asked for that a packet would have to wait for.
    fn is_free(&self) -> bool {
        self.queue.is_empty() && self.hold.is_none()
    }

    /// True if nothing will be missed when it ends now.
    fn may_end(&self) -> bool {
        self.queue.is_empty() || self.is_blocked() && !self.queue.iter().any(Ask::is_command)
    }

    /// The next request, if it may be run. A command is unanswered from now on.
    fn take(&mut self) -> Option<Ask> {
        if self.extended.failed {
            let skipped = self.queue.iter().take_while(|ask| **ask != Ask::Sync).count();
            self.queue.drain(..skipped);
        }
        if self.is_blocked() {
            return None;
        }
        let ask = self.queue.pop_front()?;
        match ask {
            Ask::Query(_) => self.owed = self.owed.saturating_add(1),
            Ask::Execute { .. } => self.hold = Some(Way::Execute),
            _ => {}
        }
        Some(ask)
    }
}

impl Core {
    /// A packet from a console client: requests are kept for the console floor.
    pub(super) fn console_packet(
        &mut self,
        id: ClientId,
        packet: Packet<'_>,
        kind: FromClient,
        sink: &mut Sink,
    ) -> Verdict {
        let Some(console) = self.console_mut(id) else { return Verdict::Stop };
        match kind {
            FromClient::CopyData
            | FromClient::CopyDone
            | FromClient::CopyFail
            | FromClient::Flush => return Verdict::Drop,
            FromClient::Terminate if console.may_end() => {
                self.close_client(id, &fault::CONSOLE_CLOSE_REQUEST);
                return Verdict::Stop;
            }
            _ => {}
        }
        let (is_free, has_room) = (console.is_free(), console.queue.len() < QUEUE_MAX);
        let is_refused = kind == FromClient::Query && self.settings.disable_pqexec.on();
        if u64::from(packet.len) <= CONSOLE_PACKET_MAX && !is_refused && has_room {
            let is_whole = packet.is_whole();
            if !is_whole && Ask::comes_as(kind) {
                return Verdict::Whole;
            }
            if let Some(ask) = Ask::read(kind, packet.seen) {
                self.keep_ask(id, ask);
                return Verdict::Drop;
            }
        }
        if !is_free {
            // What was asked before comes first, and may still need the connection.
            if let Some(console) = self.console_mut(id) {
                console.stalled = true;
            }
            return Verdict::Wait;
        }
        self.refuse_packet(id, packet, kind, sink)
    }

    fn keep_ask(&mut self, id: ClientId, ask: Ask) {
        let now = self.now;
        let Some(client) = self.clients.get_mut(id) else { return };
        let Some(console) = client.console.as_mut() else { return };
        let counts = ask.is_command() && client.query_start.is_none();
        if counts {
            client.query_start = Some(now);
        }
        console.queue.push_back(ask);
        if console.queue.len() == 1 && !console.is_blocked() {
            self.actions.push_back(Action::Console(id));
        }
        if let (true, Some(pool)) = (counts, client.pool) {
            self.count(pool, Counter::Queries, 1);
            self.count(pool, Counter::Transactions, 1);
        }
    }

    /// A packet that is no request, from a console that is owed nothing before.
    fn refuse_packet(
        &mut self,
        id: ClientId,
        packet: Packet<'_>,
        kind: FromClient,
        sink: &mut Sink,
    ) -> Verdict {
        let fault = match kind {
            FromClient::Unknown | FromClient::Password => {
                return self.unknown_packet(id, packet.tag);
            }
            FromClient::FunctionCall => return self.refuse_call(id, packet.tag, sink),
            FromClient::Query if self.settings.disable_pqexec.on() => {
                self.client_log(id, Level::Error, "client used \"Query\" packet type");
                &fault::PQEXEC_DISALLOWED
            }
            FromClient::Query if u64::from(packet.len) <= CONSOLE_PACKET_MAX => {
                &fault::INCOMPLETE_QUERY
            }
            _ => &fault::FAILURE,
        };
        self.close_client(id, fault);
        Verdict::Stop
    }

    fn refuse_call(&mut self, id: ClientId, tag: u8, sink: &mut Sink) -> Verdict {
        if self.console_mut(id).is_some_and(|console| console.extended.failed) {
            return Verdict::Drop;
        }
        let text = format!("unsupported packet type for admin console: {tag}");
        write::error(&mut sink.to_client, "ERROR", b"08P01", text.as_bytes());
        write::ready(&mut sink.to_client, b'I');
        self.journal.line(Level::Error, text.clone());
        if self.settings.log_pooler_errors.on() {
            self.client_log(id, Level::Warning, &format!("pooler error: {text}"));
        }
        self.close_client(id, &fault::CONSOLE_BAD_PACKET);
        Verdict::Stop
    }

    /// A client as a console, if it is one and still there.
    pub fn console_mut(&mut self, id: ClientId) -> Option<&mut Console> {
        self.clients.get_mut(id)?.console.as_deref_mut()
    }

    /// The next request of a console, if it is time for it. Query and Execute have to be followed by
    /// [`Core::answered`], at once or when their answer comes.
    pub fn next_ask(&mut self, id: ClientId) -> Option<Ask> {
        let console = self.clients.get_mut(id)?.console.as_mut()?;
        let ask = console.take();
        if ask.is_none() && console.may_end() && std::mem::take(&mut console.stalled) {
            self.stalled.push(id);
        }
        ask
    }

    /// A console has had its share of this turn: what else it has asked for is run in a later one.
    pub fn leave_console(&mut self, id: ClientId) {
        let Some(console) = self.console_mut(id) else { return };
        let has_more = console.stalled || !console.queue.is_empty();
        if has_more && !self.left_consoles.contains(&id) {
            self.left_consoles.push_back(id);
        }
    }

    /// True if a console that was left may go on; `is_heard` tells whether it has been sent all that
    /// it was answered, so that nobody makes us keep more than one share of answers.
    pub fn has_left(&self, is_heard: impl Fn(ClientId) -> bool) -> bool {
        self.left_consoles.iter().any(|id| is_heard(*id))
    }

    /// Lets the next one of them go on; once in each turn.
    pub fn go_on_console(&mut self, is_heard: impl Fn(ClientId) -> bool) {
        let next = self.left_consoles.iter().position(|id| is_heard(*id));
        let next = next.and_then(|at| self.left_consoles.remove(at));
        self.actions.extend(next.map(Action::Console));
    }

    /// A Query or Execute is answered with what is sent next. Says how it came; `None` if the console
    /// is gone.
    pub fn answered(&mut self, id: ClientId) -> Option<Way> {
        let console = self.console_mut(id)?;
        let way = console.hold.take().unwrap_or(Way::Query);
        if way == Way::Query {
            console.owed = console.owed.saturating_sub(1);
        }
        Some(way)
    }

    /// Answers a command that a console has been waiting for: its tag, and ReadyForQuery if that is
    /// how the command came. What had to wait for it is run.
    pub fn answer_waiter(&mut self, console: ClientId, tag: &str) {
        let mut reply = Vec::new();
        write::command_complete(&mut reply, tag);
        self.end_wait(console, reply);
    }

    /// As [`Core::answer_waiter`], with an error: behind an Execute nothing is done until Sync.
    pub fn fail_waiter(&mut self, id: ClientId, error: Vec<u8>) {
        if self.end_wait(id, error) == Some(Way::Execute) {
            if let Some(console) = self.console_mut(id) {
                console.extended.failed = true;
            }
        }
    }

    /// Says how the command came.
    fn end_wait(&mut self, id: ClientId, mut reply: Vec<u8>) -> Option<Way> {
        let was_blocked = self.console_mut(id)?.is_blocked();
        let way = self.answered(id)?;
        if way == Way::Query {
            write::ready(&mut reply, b'I');
        }
        self.answer_console(id, reply);
        let console = self.console_mut(id)?;
        let has_more = console.stalled || !console.queue.is_empty();
        if was_blocked && has_more && !console.is_blocked() {
            self.actions.push_back(Action::Console(id));
        }
        Some(way)
    }

    /// RELOAD: `app` reads the files and answers the console. It is a command like any other to who
    /// asks, so nothing passes it.
    pub fn request_reload(&mut self, id: ClientId) {
        self.hold(id);
        self.actions.push_back(Action::Reload(Some(id)));
    }

    /// HANDOFF: `app` hands over everything to who asks. Nothing passes it.
    pub fn request_handoff(&mut self, id: ClientId) {
        self.hold(id);
        self.actions.push_back(Action::Handoff(id));
    }

    fn hold(&mut self, id: ClientId) {
        if let Some(console) = self.console_mut(id) {
            console.hold.get_or_insert(Way::Query);
        }
    }
}
