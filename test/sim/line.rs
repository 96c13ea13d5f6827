//! The connection between a model and the pooler: two streams of bytes, delayed and cut at will.

use crate::speech;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// What is on its way in both directions.
#[derive(Default)]
pub struct Pipe {
    /// From the model to the pooler.
    up: VecDeque<u8>,
    /// So many of these have arrived.
    arrived: usize,
    /// The model sends no more.
    up_end: bool,
    /// The pooler's end knows that.
    end_told: bool,
    /// From the pooler to the model.
    pub down: VecDeque<u8>,
    /// So many more bytes fit into `down`.
    room: usize,
    /// So many fit when it is empty.
    capacity: usize,
    /// The pooler has closed the connection.
    pub ended: bool,
    /// The model has closed the connection: what the pooler sends fails.
    pub broken: bool,
    /// What the model sends arrives in one piece.
    pub atomic: bool,
    /// What the pooler has received.
    pub read: Read,
    /// Bytes that the pooler has sent.
    pub sent: u64,
}

/// What the pooler has received, as packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Read {
    /// Bytes.
    pub bytes: u64,
    /// Packets that have begun.
    pub packets: u64,
    /// Nobody can tell where its packets begin.
    pub garbled: bool,
    head: [u8; 5],
    /// So many bytes of the packet's header are here, then so many are missing behind it.
    had: usize,
    missing: u64,
}

impl Read {
    /// True between two packets.
    pub fn is_between(&self) -> bool {
        self.garbled || self.had == 0 && self.missing == 0
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        for byte in bytes {
            if self.garbled {
                return;
            }
            if self.missing > 0 {
                self.missing -= 1;
                continue;
            }
            self.packets += u64::from(self.had == 0);
            self.head[self.had] = *byte;
            self.had += 1;
            let typed = self.head[0] != 0;
            if let Some(len) = speech::packet_len(&self.head[..self.had], typed) {
                self.garbled = len < self.had;
                self.missing = len.saturating_sub(self.had) as u64;
                self.had = 0;
            }
        }
    }
}

/// A connection, shared by the model and the pooler's end.
pub type Line = Rc<RefCell<Pipe>>;

/// A connection whose pooler end takes `room` bytes before it blocks.
pub fn line(room: usize) -> Line {
    Rc::new(RefCell::new(Pipe { room, capacity: room, ..Pipe::default() }))
}

impl Pipe {
    /// The model sends.
    pub fn say(&mut self, bytes: &[u8]) {
        if !self.up_end {
            self.up.extend(bytes);
        }
    }

    /// The model closes its end in order: what it has sent still arrives.
    pub fn finish(&mut self) {
        self.up_end = true;
        self.broken = true;
    }

    /// The model's end breaks: what has not arrived is lost.
    pub fn tear(&mut self) {
        self.up.truncate(self.arrived);
        self.finish();
    }

    /// Nothing of what has not been received ever is.
    pub fn swallow(&mut self) {
        self.up.clear();
        self.arrived = 0;
    }

    /// Bytes that are still on their way up.
    pub fn travelling(&self) -> usize {
        self.up.len() - self.arrived
    }

    /// True if bytes have arrived.
    pub fn has_bytes(&self) -> bool {
        self.arrived > 0
    }

    /// True if something is under way or has arrived.
    pub fn stirs(&self) -> bool {
        !self.up.is_empty() || self.up_end
    }

    /// So many more bytes arrive, or the end; false if nothing new did. As with the kernel's edges
    /// nobody is told twice.
    pub fn arrive(&mut self, count: usize) -> bool {
        let count = if self.atomic { self.up.len() } else { count };
        let before = self.arrived;
        self.arrived = self.up.len().min(self.arrived.saturating_add(count));
        let ends = self.up_end && self.travelling() == 0;
        let new_end = ends && !std::mem::replace(&mut self.end_told, ends);
        self.arrived > before || new_end
    }

    /// What has arrived and was not received, up to `limit` bytes.
    pub fn receive(&mut self, limit: usize) -> Vec<u8> {
        let count = self.arrived.min(limit);
        self.arrived -= count;
        let bytes: Vec<u8> = self.up.drain(..count).collect();
        self.read.add(&bytes);
        bytes
    }

    /// True if the model has closed its end and everything before has been received.
    pub fn at_end(&self) -> bool {
        self.up_end && self.up.is_empty()
    }

    /// The model has closed its end.
    pub fn is_finished(&self) -> bool {
        self.up_end
    }

    /// The pooler sends; returns how many bytes fit, `None` if nobody is there any more.
    pub fn send(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.broken {
            return None;
        }
        let count = bytes.len().min(self.room);
        self.room -= count;
        self.sent += count as u64;
        self.down.extend(&bytes[..count]);
        Some(count)
    }

    /// Nothing more fits until the model reads.
    pub fn is_full(&self) -> bool {
        self.room == 0
    }

    /// The model takes what has come, which makes room.
    pub fn hear(&mut self) -> Vec<u8> {
        self.room = self.capacity;
        self.down.drain(..).collect()
    }

    /// The model never blocks the pooler again.
    pub fn widen(&mut self) {
        self.capacity = usize::MAX / 2;
        self.room = self.capacity;
    }
}
