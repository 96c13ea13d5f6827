//! One connection as the relay sees it: its wire, what is pending on it, and what became of the
//! packet in progress.

use crate::base::{Buf, Spare};
use crate::core::Peer;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;

/// A non-blocking stream of bytes, reported ready by edges.
pub trait Wire {
    /// Receives at most `into.len()` bytes; 0 at the end of the stream. Fewer than asked for means
    /// that nothing more is there at the moment.
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize>;
    /// Sends as many bytes as fit.
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Asks for (or no longer for) an event when there is room for sending. Asking raises one at
    /// once if there is room already.
    fn want_write(&mut self, wanted: bool) -> io::Result<()>;
    /// An event said that there may be something to receive; with `hangup` that nothing follows it.
    fn set_readable(&mut self, _hangup: bool) {}
    /// The end of the stream is here already, behind what was received last: no event will tell.
    fn has_end(&self) -> bool {
        false
    }
    /// Its descriptor, if another process could go on with that.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Like `send`, and passes a descriptor (SCM_RIGHTS) with the first byte.
    fn send_with(&self, _bytes: &[u8], _descriptor: BorrowedFd<'_>) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }
}

/// What happens to the bytes of the packet in progress, and how much of the next one is needed.
#[derive(Clone, Copy, Default)]
pub struct Flow {
    /// Bytes to swallow.
    pub drop: u32,
    /// Bytes behind those to hand to `to`.
    pub pass: u32,
    /// Whom the packet was meant for when it was decided; nobody else gets the rest of it.
    pub to: Option<Peer>,
    /// Bytes of the next packet that must be here before it is asked about again.
    pub want: u32,
}

impl Flow {
    /// True between two packets.
    pub fn at_boundary(&self) -> bool {
        self.drop == 0 && self.pass == 0
    }

    /// Bytes of the packet in progress that are still to come.
    fn in_progress(&self) -> usize {
        (self.drop as usize).saturating_add(self.pass as usize)
    }
}

/// What of a connection's bytes is in our memory or still to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Bytes from it that nothing has been decided about yet.
    pub held: usize,
    /// Bytes of its packet in progress that have not been received.
    pub missing: usize,
    /// Bytes for it that its stream has not taken.
    pub unsent: usize,
}

/// What a receive brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Nothing is there.
    Nothing,
    /// So many bytes at the front of the scratch buffer; these and no others are to be looked at.
    Scratch(usize),
    /// More bytes in `held`.
    Held,
    /// End of stream or an error.
    End,
}

/// Length of a packet's header in bytes.
const HEADER: usize = 5;
/// Held bytes up to this many are moved in front of what is received next; longer ones are added to.
const SHORT: usize = 1024;

/// A connection.
pub struct Conn<W> {
    /// Its stream.
    pub wire: W,
    /// The packet in progress.
    pub flow: Flow,
    /// There may be bytes to receive.
    pub readable: bool,
    /// The event said that the other side sends no more: a short receive doesn't mean "empty".
    pub hangup: bool,
    /// The core said `Wait`; nothing is received.
    pub waiting: bool,
    /// The core said `Stop` or the bytes made no sense: nothing is received any more.
    pub stopped: bool,
    /// The core knows that the connection is gone.
    pub lost: bool,
    /// Held bytes have to be looked at although nothing new came.
    pub ask: bool,
    /// Something was received since the core was last told that all has been handed on.
    pub undrained: bool,
    /// It is in the ready queue.
    pub queued: bool,
    /// The last bytes for it were the pooler's own.
    pub spoken_to: bool,
    /// Who sent a packet that was not complete when it was handed on.
    pub half_from: Option<Peer>,
    /// It has the beginning of a packet whose end will never come.
    pub cut: bool,
    /// Received, not yet decided.
    pub held: Buf,
    /// What the stream refused to take.
    pub unsent: Buf,
    /// Who is not read until `unsent` is empty.
    pub blocks: Option<Peer>,
}

impl<W: Wire> Conn<W> {
    /// A fresh connection without any bytes.
    pub fn new(wire: W) -> Self {
        Conn {
            wire,
            flow: Flow::default(),
            readable: false,
            hangup: false,
            waiting: false,
            stopped: false,
            lost: false,
            ask: false,
            undrained: false,
            queued: false,
            spoken_to: false,
            half_from: None,
            cut: false,
            held: Buf::default(),
            unsent: Buf::default(),
            blocks: None,
        }
    }

    /// True if no packet is in progress and nothing is pending in either direction.
    pub fn is_idle(&self) -> bool {
        self.is_between_packets() && self.unsent.is_empty()
    }

    /// True if no part of a packet has been received whose rest has not.
    pub fn is_between_packets(&self) -> bool {
        self.flow.at_boundary() && self.held.is_empty()
    }

    /// How many bytes have to be received before the packet in progress, or as much of it as has to
    /// be seen, is complete.
    pub fn missing(&self) -> usize {
        let wanted = (self.flow.want as usize).max(HEADER);
        match self.flow.in_progress() {
            0 => wanted.saturating_sub(self.held.len()).max(1),
            in_progress => in_progress,
        }
    }

    /// What is pending on it.
    pub fn pending(&self) -> Pending {
        Pending {
            held: self.held.len(),
            missing: self.flow.in_progress(),
            unsent: self.unsent.len(),
        }
    }

    /// The memory of its buffers in bytes, 0 for one that it does not own.
    pub fn buffers(&self) -> [usize; 2] {
        [self.held.capacity(), self.unsent.capacity()]
    }

    /// True if it owns a buffer.
    pub fn owns_memory(&self) -> bool {
        self.held.owns_memory() || self.unsent.owns_memory()
    }

    /// True if there is a reason to go on with what it sent. `limit`: with so many bytes held, and
    /// no packet that needs more, the held ones come first.
    pub fn has_work(&self, limit: usize) -> bool {
        let closed_for_now = self.waiting || self.stopped || self.lost;
        !closed_for_now && (self.ask || self.may_receive(limit))
    }

    fn may_receive(&self, limit: usize) -> bool {
        self.readable && (self.held.len() < limit || (self.flow.want as usize) > self.held.len())
    }

    /// Receives at most `most` bytes, once, if there may be something.
    pub fn receive(&mut self, scratch: &mut [u8], most: usize, spare: &mut Spare) -> Received {
        if !self.may_receive(scratch.len()) {
            return Received::Nothing;
        }
        let kept =
            if self.held.len() <= SHORT.min(scratch.len() / 2) { self.held.len() } else { 0 };
        let (front, room) = scratch.split_at_mut(kept);
        let most = room.len().min(most);
        let Some(room) = room.get_mut(..most) else { return Received::Nothing };
        match recv(&mut self.wire, room) {
            Ok(0) => Received::End,
            Ok(count) => {
                self.spoken_to = false;
                if count < room.len() && !self.hangup && !self.wire.has_end() {
                    self.readable = false;
                }
                if kept < self.held.len() {
                    self.held.push(room.get(..count).unwrap_or_default(), spare);
                    return Received::Held;
                }
                for (to, from) in front.iter_mut().zip(self.held.as_slice()) {
                    *to = *from;
                }
                self.held.clear(spare);
                Received::Scratch(kept.saturating_add(count))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Received::Nothing
            }
            Err(_) => Received::End,
        }
    }

    /// Sends now, or keeps what does not fit. An error means that the connection is gone.
    pub fn send(&mut self, bytes: &[u8], spare: &mut Spare) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if !self.unsent.is_empty() {
            self.unsent.push(bytes, spare);
            return Ok(());
        }
        let count = send(&mut self.wire, bytes)?;
        match bytes.get(count..) {
            None | Some([]) => Ok(()),
            Some(rest) => {
                self.unsent.push(rest, spare);
                self.wire.want_write(true)
            }
        }
    }

    /// Sends at most so many of the bytes that were kept, and returns how many the stream took.
    pub fn send_kept(&mut self, most: usize, spare: &mut Spare) -> io::Result<usize> {
        let kept = self.unsent.as_slice();
        let count = send(&mut self.wire, kept.get(..most).unwrap_or(kept))?;
        self.unsent.take(count, spare);
        Ok(count)
    }

    /// Sends what was kept, until it is gone or the stream is full.
    pub fn flush(&mut self, spare: &mut Spare) -> io::Result<()> {
        while !self.unsent.is_empty() {
            if self.send_kept(usize::MAX, spare)? == 0 {
                return Ok(());
            }
            if self.unsent.is_empty() {
                self.wire.want_write(false)?;
            }
        }
        Ok(())
    }
}

fn recv<W: Wire>(wire: &mut W, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match wire.recv(room) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Like [`Wire::send`], with 0 for a stream that is full.
fn send<W: Wire>(wire: &mut W, bytes: &[u8]) -> io::Result<usize> {
    until_done(|| wire.send(bytes))
}

/// Sends again when interrupted; 0 for a stream that is full.
pub(super) fn until_done(mut send: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match send() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            other => return other,
        }
    }
}
