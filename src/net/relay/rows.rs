//! Packets that go out with a descriptor each (SHOW FDS), in order with everything else that is said
//! to their console.
//!
//! Nothing here waits: what the stream does not take is kept among the unsent bytes of the
//! connection, and the marks below say which of them a descriptor goes with. A descriptor is looked
//! up when its packet is sent. So no copy of it is needed (the kernel makes the receiver's), pending
//! rows don't count against the limit of open files, and a socket that has been closed is closed.

use super::{Conns, Relay};
use crate::core::{ClientId, Decisions, Handed, Loss, Peer};
use crate::net::conn::{self, Wire};
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

/// Finds the descriptor of a listening socket.
pub(super) type Find<'a> = &'a dyn Fn(u32) -> Option<BorrowedFd<'a>>;

/// One packet among unsent bytes.
struct Mark {
    /// Bytes in front of it, behind the packet of the mark before.
    ahead: usize,
    /// Its length.
    row: usize,
    socket: Handed,
}

/// All of them in one connection's unsent bytes.
#[derive(Default)]
pub(super) struct Rows {
    marks: VecDeque<Mark>,
    /// How many bytes there are up to the end of the last mark's packet.
    len: usize,
}

impl Rows {
    /// A packet is added behind so many unsent bytes.
    fn add(&mut self, unsent: usize, row: usize, socket: Handed) {
        let ahead = unsent.saturating_sub(self.len);
        self.marks.push_back(Mark { ahead, row, socket });
        self.len = unsent.saturating_add(row);
    }

    /// How many bytes are to be sent next, and what goes with them.
    fn next(&self) -> (usize, Option<Handed>) {
        match self.marks.front() {
            None => (usize::MAX, None),
            Some(mark) if mark.ahead > 0 => (mark.ahead, None),
            Some(mark) => (mark.row, Some(mark.socket)),
        }
    }

    /// So many of the bytes that `next` named have been sent.
    fn sent(&mut self, count: usize) {
        self.len = self.len.saturating_sub(count);
        let Some(mark) = self.marks.front_mut() else { return };
        if mark.ahead > 0 {
            mark.ahead = mark.ahead.saturating_sub(count);
            return;
        }
        // The descriptor went with the first byte; the others are like any.
        let rest = mark.row.saturating_sub(count);
        self.marks.pop_front();
        if let Some(mark) = self.marks.front_mut() {
            mark.ahead = mark.ahead.saturating_add(rest);
        }
    }
}

fn descriptor<'c, 'l: 'c, W: Wire>(
    conns: &'c Conns<W>,
    listeners: Find<'l>,
    of: Handed,
) -> Option<BorrowedFd<'c>> {
    match of {
        Handed::Listener(number) => listeners(number),
        Handed::Peer(peer) => conns.get(peer)?.wire.descriptor(),
    }
}

impl<W: Wire> Relay<W> {
    /// Sends a packet behind whatever is still unsent, and the descriptor of a socket with it; alone
    /// if that socket is closed by then.
    pub fn send_row<D: Decisions>(
        &mut self,
        id: ClientId,
        row: &[u8],
        socket: Handed,
        core: &mut D,
        listeners: Find<'_>,
    ) {
        let Some(conn) = self.conns.clients.get_mut(id).filter(|conn| !conn.lost) else {
            return;
        };
        conn.spoken_to = true;
        let unsent = conn.unsent.len();
        conn.unsent.push(row, &mut self.spare);
        self.rows.entry(id).or_default().add(unsent, row.len(), socket);
        if unsent == 0 && self.send_rows(id, listeners, true).is_err() {
            self.lose(Peer::Client(id), Loss::Send, core);
        }
    }

    /// There is room: sends what was kept.
    pub(super) fn flush_rows(&mut self, id: ClientId, listeners: Find<'_>) -> io::Result<()> {
        self.send_rows(id, listeners, false)
    }

    /// Nothing of this connection's unsent bytes will be sent.
    pub(super) fn forget_rows(&mut self, peer: Peer) {
        if let Peer::Client(id) = peer {
            self.rows.remove(&id);
        }
    }

    /// Sends unsent bytes until they are gone or the stream is full. Asks for an event then if this
    /// is the `first` attempt, and for no more of them when all is sent if it is not.
    fn send_rows(&mut self, id: ClientId, listeners: Find<'_>, first: bool) -> io::Result<()> {
        let Some(rows) = self.rows.get_mut(&id) else { return Ok(()) };
        let is_full = loop {
            let Some(conn) = self.conns.clients.get(id) else { return Ok(()) };
            let unsent = conn.unsent.as_slice();
            if unsent.is_empty() {
                break false;
            }
            let (count, socket) = rows.next();
            let bytes = unsent.get(..count).unwrap_or(unsent);
            let passed = socket.and_then(|socket| descriptor(&self.conns, listeners, socket));
            let sent = match passed {
                Some(passed) => conn::until_done(|| conn.wire.send_with(bytes, passed))?,
                None => {
                    let Some(conn) = self.conns.clients.get_mut(id) else { return Ok(()) };
                    let bytes = conn.unsent.as_slice().get(..count);
                    let bytes = bytes.unwrap_or(conn.unsent.as_slice());
                    conn::until_done(|| conn.wire.send(bytes))?
                }
            };
            if sent == 0 {
                break true;
            }
            rows.sent(sent);
            if let Some(conn) = self.conns.clients.get_mut(id) {
                conn.unsent.take(sent, &mut self.spare);
            }
        };
        if rows.marks.is_empty() {
            self.rows.remove(&id);
        }
        match self.conns.clients.get_mut(id) {
            Some(conn) if is_full == first => conn.wire.want_write(is_full),
            _ => Ok(()),
        }
    }
}
