//! The new side of a handoff from one of us (doc/handoff.md): everything that the old process knows
//! is taken in, then it is told to end. Until the line that is named the point of no return,
//! whatever fails here leaves the old process as it was.

use super::turn::Process;
use crate::base::Level;
use crate::core::carry::{Kind, Row, TakenIn};
use crate::core::server::ServerState;
use crate::core::{Addr, Core, Decisions, Loss, Origin, Peer};
use crate::net::carry::is_idle;
use crate::net::handoff::{Old, Parcel};
use crate::net::Event;
use std::os::fd::OwnedFd;

/// The ends of a connection are in its record: those of a kept one can't be asked for.
const UNTOLD: Origin = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };

/// Has the old process hand over everything and goes on where it was. The error is the text of a
/// FATAL line.
pub(super) fn go_on(process: &mut Process, old: &mut Old) -> Result<(), String> {
    process.say(Level::Log, "asking the old process for all that it has".into());
    let parcels = old.everything()?;
    // Ages are told as they are when the old process stops turning.
    process.core.now = process.clock.now();
    process.net.set_time(process.core.now);
    let settings = process.core.settings().clone();
    let listeners = take_in(process, parcels);
    // A unit whose main process ends has ended.
    process.service.become_main();
    // The point of no return, if it does not refuse.
    if let Err(text) = old.replace() {
        if let Some(pid) = old.pid() {
            process.service.follow(pid);
        }
        return Err(text);
    }
    let listens = process.net.take_in_listeners(listeners);
    // Whoever comes anew waits for those who were here.
    process.net.suspend_accepting(true);
    if !std::rc::Rc::ptr_eq(&settings, process.core.settings()) {
        process.reload_tls();
        process.settings_changed();
    }
    process.perform();
    listens.map_err(|_| "cannot listen".to_owned())
}

/// Clients with nothing to do: there may be thousands of them, and somebody who has something to do
/// would wait for all.
pub(super) struct Newcomers {
    waiting: Vec<Newcomer>,
    /// What the others have become.
    taken: TakenIn,
}

/// What is told of a client, and its socket.
struct Newcomer {
    row: Row,
    wire: Vec<u8>,
    socket: OwnedFd,
}

/// Gives each row its place; the listening sockets are left over, with what is told of them.
fn take_in(process: &mut Process, parcels: Vec<Parcel>) -> Vec<(OwnedFd, Vec<u8>)> {
    let (mut rows, mut sockets) = (Vec::new(), Vec::new());
    let (mut listeners, mut waiting) = (Vec::new(), Vec::new());
    for Parcel { kind, number, state, socket } in parcels {
        // A later version has something that we know nothing of.
        let Some(kind) = kind else { continue };
        let row = Row { kind, number, state };
        match socket {
            Some((wire, socket)) if kind == Kind::Listener => listeners.push((socket, wire)),
            Some((wire, socket)) if is_idle(&wire) && Core::may_come_late(&row) => {
                waiting.push(Newcomer { row, wire, socket });
            }
            socket => {
                rows.push((row, socket.as_ref().map(|_| UNTOLD)));
                sockets.push(socket);
            }
        }
    }
    let mut taken = process.core.take_in(rows);
    for (peer, socket) in std::mem::take(&mut taken.peers).into_iter().zip(sockets) {
        let Some(peer) = peer else { continue };
        match socket {
            Some((wire, socket)) => {
                let peer_of = |number| taken.peer(number);
                process.net.take_in(peer, socket, &wire, &peer_of, &mut process.core);
            }
            None => process.core.lost(peer, Loss::Receive),
        }
    }
    process.newcomers = Some(Newcomers { waiting, taken });
    listeners
}

impl Process {
    /// Takes in so many of the clients that have been left for later.
    pub(super) fn take_in_newcomers(&mut self, count: usize) {
        let Some(Newcomers { mut waiting, mut taken }) = self.newcomers.take() else { return };
        for Newcomer { row, wire, socket } in waiting.split_off(waiting.len().saturating_sub(count))
        {
            if let Some(peer) = self.core.take_in_late(&row, UNTOLD, &mut taken) {
                self.net.take_in(peer, socket, &wire, &|_| None, &mut self.core);
                // If it is closed the next one may get its place.
                self.perform();
            }
        }
        if waiting.is_empty() {
            self.core.all_are_in(taken);
            self.net.suspend_accepting(self.core.is_suspended());
        } else {
            self.newcomers = Some(Newcomers { waiting, taken });
        }
    }

    /// Takes in all of them, unless what has happened is traffic of those who are there.
    pub(super) fn await_newcomers(&mut self, event: &Event) {
        if self.newcomers.is_some() && !self.is_traffic(event) {
            self.take_in_newcomers(usize::MAX);
        }
    }

    fn is_traffic(&self, event: &Event) -> bool {
        match event {
            Event::Readable(Peer::Client(id)) | Event::Writable(Peer::Client(id)) => {
                let client = self.core.clients().get(*id);
                client.is_some_and(|client| client.is_inside() && !client.is_console())
            }
            Event::Readable(Peer::Server(id)) | Event::Writable(Peer::Server(id)) => {
                let server = self.core.servers().get(*id);
                server.is_some_and(|server| server.state() != ServerState::Login)
            }
            _ => false,
        }
    }
}
