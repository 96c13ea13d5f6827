//! The new side of a handoff from one of us (doc/handoff.md): everything that the old process knows
//! is taken in, then it is told to end. Until the line that is named the point of no return,
//! whatever fails here leaves the old process as it was.

use super::daemon;
use super::turn::Process;
use crate::base::Level;
use crate::core::carry::{Kind, Row};
use crate::core::client::{Client, ClientState};
use crate::core::{Addr, Decisions, Loss, Origin, Peer};
use crate::net::carry::is_idle as is_idle_told;
use crate::net::handoff::{Old, Parcel};
use std::os::fd::OwnedFd;

/// The ends of a connection are in its record: those of a kept one can't be asked for.
const UNTOLD: Origin = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };

/// Has the old process hand over everything and goes on where it was. The error is the text of a
/// FATAL line.
pub(super) fn go_on(process: &mut Process, old: &mut Old) -> Result<(), String> {
    process.say(Level::Log, "asking the old process for all that it has".into());
    // The limit may have been a higher one for the old process.
    let parcels = daemon::with_all_descriptors(|| old.everything())?;
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
    process.go_on_with_settings(!std::rc::Rc::ptr_eq(&settings, process.core.settings()));
    process.perform();
    listens.map_err(|_| "cannot listen".to_owned())
}

/// Gives each row its place; the listening sockets are left over, with what is told of them.
fn take_in(process: &mut Process, parcels: Vec<Parcel>) -> Vec<(OwnedFd, Vec<u8>)> {
    let (mut rows, mut sockets) = (Vec::new(), Vec::new());
    let mut listeners = Vec::new();
    for Parcel { kind, number, state, socket } in parcels {
        match (Kind::of(kind.as_bytes()), socket) {
            (Some(Kind::Listener), Some((wire, socket))) => listeners.push((socket, wire)),
            (Some(kind), socket) => {
                rows.push((Row { kind, number, state }, socket.as_ref().map(|_| UNTOLD)));
                sockets.push(socket);
            }
            // A later version has something that we know nothing of.
            (None, _) => {}
        }
    }
    let taken = process.core.take_in(rows);
    let peer_of = |number| taken.numbers.get(&number).copied();
    for (peer, socket) in taken.peers.into_iter().zip(sockets) {
        let Some(peer) = peer else { continue };
        match socket {
            Some((wire, socket)) if may_wait(process, peer, &wire) => {
                process.newcomers.push((peer, socket, wire));
            }
            Some((wire, socket)) => {
                process.net.take_in(peer, socket, &wire, &peer_of, &mut process.core);
            }
            None => process.core.lost(peer, Loss::Receive),
        }
    }
    listeners
}

/// True if the socket of this connection can be taken in a little later: a client with nothing to do.
fn may_wait(process: &Process, peer: Peer, wire: &[u8]) -> bool {
    let Peer::Client(id) = peer else { return false };
    let is_idle = |client: &Client| {
        client.state() == ClientState::Active && client.server().is_none() && !client.is_console()
    };
    process.core.clients().get(id).is_some_and(is_idle) && is_idle_told(wire)
}

/// Sockets of clients with nothing to do: there may be thousands of them, and somebody who has
/// something to do would wait for all.
pub(super) type Newcomers = Vec<(Peer, OwnedFd, Vec<u8>)>;

impl Process {
    /// Takes in so many of the clients that have been left for later.
    pub(super) fn take_in_newcomers(&mut self, count: usize) {
        let from = self.newcomers.len().saturating_sub(count);
        for (peer, socket, wire) in self.newcomers.split_off(from) {
            let Peer::Client(id) = peer else { continue };
            // Otherwise it has been closed already, and its socket is now.
            if self.core.clients().get(id).is_some() {
                self.net.take_in(peer, socket, &wire, &|_| None, &mut self.core);
            }
        }
    }
}
