//! The old side of a handoff (doc/handoff.md): a successor asks for everything, this process goes
//! on until nobody is in the midst of something that can't be told, then the loop does not turn any
//! more: all is written down and handed over. If the successor does not take it, the loop turns on as
//! if nothing had happened.

use super::daemon;
use super::turn::{Process, TICK};
use crate::base::{Level, Micros};
use crate::core::carry::{Kind, Row};
use crate::core::client::Client;
use crate::core::server::Server;
use crate::core::{ClientId, Core, Peer};
use crate::net::carry::Part;
use crate::net::options::reason;
use crate::net::successor::{Passed, Successor, COLUMNS};
use crate::net::Net;
use crate::wire::write::{self, ColumnType};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// So long we wait for those who are in the midst of something.
const SETTLE: Micros = Micros(1_000_000);
/// So often it is looked whether they are done.
pub(super) const LOOK: Micros = Micros(2_000);
/// A step of the successor may take so long if suspend_timeout does not say.
const PATIENCE: Micros = Micros(10_000_000);

/// A handoff that has been asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handover {
    console: ClientId,
    since: Micros,
}

impl Process {
    /// A successor asks for everything (`Action::Handoff`).
    pub(super) fn begin_handover(&mut self, console: ClientId) {
        let other = self.handover.map(|other| other.console);
        if other.is_some_and(|other| self.core.clients().get(other).is_some()) {
            return self.refuse_handover(console, "another process is taking over already");
        }
        self.net.suspend_accepting(true);
        self.handover = Some(Handover { console, since: self.core.now });
    }

    /// At the end of a turn: hands over if it is time.
    pub(super) fn hand_over_when_settled(&mut self) {
        let Some(Handover { console, since }) = self.handover else { return };
        if self.exit.is_some() {
            return;
        }
        let is_there = self.core.clients().get(console).is_some();
        // Others may have said something since it was asked for.
        let refusal = self.core.refuses_handoff();
        let may_wait = is_there && refusal.is_none();
        if may_wait && !self.core.is_settled() && self.core.now.since(since) < SETTLE {
            return;
        }
        self.handover = None;
        let done = match (is_there, refusal) {
            (false, _) => Err("it has gone".into()),
            (true, Some(text)) => {
                self.refuse_handover(console, text);
                Err(text.into())
            }
            // The keeper's socketpairs are two more for each TLS connection.
            (true, None) => daemon::with_all_descriptors(|| self.hand_over(console)),
        };
        match done {
            Ok(kept) => {
                self.handed_over = Some(kept);
                self.exit = Some(0);
            }
            Err(text) => {
                // It may have said that it is the unit's main process.
                self.service.become_main();
                let line = format!("handoff failed, going on: {text}");
                self.core.journal.line(Level::Warning, line);
                if refusal.is_none() {
                    self.core.fail_console(console);
                }
                self.net.suspend_accepting(self.core.is_suspended());
                self.perform();
            }
        }
    }

    /// Answers that there will be no handoff, before anything else of an answer.
    fn refuse_handover(&mut self, console: ClientId, text: &str) {
        let mut error = Vec::new();
        write::error(&mut error, "ERROR", b"08P01", text.as_bytes());
        self.core.fail_waiter(console, error);
    }

    /// Hands over; what is returned is for a keeper. The error says why the successor does not go on
    /// where we are.
    fn hand_over(&mut self, console: ClientId) -> Result<Kept, String> {
        let limit = self.core.settings().suspend_timeout;
        let limit = if limit.is_set() { limit } else { PATIENCE };
        let (service, clock) = (&mut self.service, &self.clock);
        // The unit's watchdog has to know that this is no standstill.
        let mut waits = || service.tick(clock.now(), TICK);
        let failed = |error| format!("writing failed: {}", reason(&error));
        let socket = self.net.descriptor(Peer::Client(console)).ok_or("it has gone")?;
        let successor = Successor::over(socket, Duration::from_micros(limit.0), &mut waits);
        let mut successor = successor.map_err(|error| reason(&error))?;
        let kept = tell(&self.core, &self.net, console, &mut successor).map_err(failed)?;
        let heard = successor.hear_shutdown().and_then(|()| match self.signals.has_some() {
            // Whoever has sent it meant the pooler, which is this process.
            true => Err("a signal came".into()),
            false => Ok(()),
        });
        if let Err(text) = heard {
            // If it is still there it must not believe that this process is gone. What fails then
            // is that it has gone.
            let _ = successor.refuse(&text);
            return Err(text);
        }
        // From here on everything is the successor's. It waits for the pidfile to be gone.
        self.pidfile = None;
        self.successor = None;
        let _ = successor.agree();
        drop(successor);
        Ok(kept)
    }
}

/// Connections that a keeper pumps, with its ends of the socketpairs.
pub(super) type Kept = Vec<(Peer, OwnedFd)>;

/// Tells all there is to tell: the listening sockets, then what the core knows, each with its
/// socket. Rows go out while others are being written.
fn tell<'a>(
    core: &Core,
    net: &'a Net,
    console: ClientId,
    line: &mut Successor<'a>,
) -> io::Result<Kept> {
    line.say(describe)?;
    for (number, _, socket) in net.listening() {
        let row = Row { kind: Kind::Listener, number: number.into(), state: Vec::new() };
        tell_row(line, &row, Some((&net.hand_out_listener(number), Passed::Lent(socket))))?;
    }
    let mut kept = Kept::new();
    let number = |peer| match peer {
        Peer::Client(id) => core.clients().get(id).map_or(0, Client::number),
        Peer::Server(id) => core.servers().get(id).map_or(0, Server::number),
    };
    core.tell(console, &mut |row, peer| {
        let Some(peer) = peer else { return tell_row(line, row, None) };
        let socket = match net.part(peer)? {
            None => return tell_row(line, row, None),
            Some(Part::Socket(socket)) => Passed::Lent(socket),
            Some(Part::Pair { theirs, ours }) => {
                kept.push((peer, ours));
                Passed::Given(theirs)
            }
        };
        tell_row(line, row, Some((&net.hand_out(peer, &number), socket)))
    })?;
    line.say(|out| write::command_complete(out, "HANDOFF"))?;
    line.send()?;
    Ok(kept)
}

/// A row, what the net floor knows of its socket, and the socket.
fn tell_row<'a>(
    line: &mut Successor<'a>,
    row: &Row,
    socket: Option<(&[u8], Passed<'a>)>,
) -> io::Result<()> {
    let number = row.number.to_string();
    let (kind, number) = (row.kind.word().as_bytes(), number.as_bytes());
    let (wire, descriptor) = socket.unzip();
    line.row([Some(kind), Some(number), Some(&row.state), wire], descriptor)
}

fn describe(out: &mut Vec<u8>) {
    let columns = COLUMNS.iter().map(|(name, is_binary)| {
        // bytea or text
        let oid = if *is_binary { 17 } else { 25 };
        (*name, ColumnType { oid, size: -1 }, *is_binary)
    });
    write::row_description(out, columns);
}
