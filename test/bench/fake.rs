//! A fake PostgreSQL: one connection's state, and answers made beforehand.

use std::rc::Rc;

use mio::Registry;

use crate::link::{Got, Link};
use crate::rig::wire::{cstr, msg, SSL_REQUEST};

/// Rows of a 10 MB result have so many bytes each.
const BIG_ROW: usize = 1000;
const BIG: usize = 10_000_000;
/// What one COPY moves.
pub(crate) const COPY: usize = 1_000_000;

/// Answers made once.
#[derive(Debug)]
pub(crate) struct Replies {
    description: Vec<u8>,
    row: Vec<u8>,
    hundred: Vec<u8>,
    big: Rc<[u8]>,
    copy_out: Rc<[u8]>,
}

fn ready(status: u8) -> Vec<u8> {
    msg(b'Z', &[status])
}

fn complete(tag: &str) -> Vec<u8> {
    msg(b'C', &cstr(tag))
}

/// A row of one column.
fn data_row(bytes: usize) -> Vec<u8> {
    let len = u32::try_from(bytes).unwrap().to_be_bytes();
    msg(b'D', &[&[0, 1][..], &len, &vec![b'x'; bytes]].concat())
}

impl Replies {
    pub(crate) fn new() -> Self {
        let kind = [0, 0, 0, 0, 0, 0, 0, 0, 0, 23, 0, 4, 255, 255, 255, 255, 0, 0];
        let description = msg(b'T', &[&[0, 1][..], &cstr("?column?"), &kind].concat());
        let rows = |count: usize, bytes: usize| {
            let tag = format!("SELECT {count}");
            [description.clone(), data_row(bytes).repeat(count), complete(&tag)].concat()
        };
        let copied = msg(b'd', &[&[b'x'; 99][..], b"\n"].concat()).repeat(COPY / 100);
        let start = msg(b'H', &[0, 0, 1, 0, 0]);
        let copy = complete(&format!("COPY {}", COPY / 100));
        Self {
            row: [data_row(1), complete("SELECT 1")].concat(),
            hundred: rows(100, 100),
            big: [rows(BIG / BIG_ROW, BIG_ROW), ready(b'I')].concat().into(),
            copy_out: [start, copied, msg(b'c', b""), copy, ready(b'I')].concat().into(),
            description,
        }
    }

    /// How long the answer to these bytes of a client is, at a server outside a transaction.
    pub(crate) fn length(&self, from_client: &[u8]) -> usize {
        let mut state = State { started: true, ..State::default() };
        state.feed(from_client, self);
        state.out.len() + state.large.map_or(0, |large| large.len())
    }
}

/// What a client of the fake may ask for in a simple query.
pub(crate) mod sql {
    pub(crate) const ONE: &str = "select 1";
    pub(crate) const HUNDRED: &str = "rows";
    pub(crate) const BIG: &str = "big";
    pub(crate) const COPY_IN: &str = "copy in";
    pub(crate) const COPY_OUT: &str = "copy out";
}

/// The messages after a successful authentication, without it.
pub(crate) fn welcome() -> Vec<u8> {
    let pairs = [
        ("server_version", "15.0"),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("TimeZone", "UTC"),
        ("IntervalStyle", "postgres"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("application_name", ""),
        ("is_superuser", "off"),
        ("session_authorization", "bench"),
    ];
    let parameters = pairs.map(|(k, v)| msg(b'S', &[cstr(k), cstr(v)].concat())).concat();
    [parameters, msg(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]), ready(b'I')].concat()
}

#[derive(Debug, Default)]
struct State {
    started: bool,
    ended: bool,
    in_transaction: bool,
    /// The beginning of a message.
    carry: Vec<u8>,
    /// Bytes of CopyData to come.
    skip: usize,
    out: Vec<u8>,
    large: Option<Rc<[u8]>>,
}

impl State {
    fn feed(&mut self, data: &[u8], replies: &Replies) {
        if self.carry.is_empty() {
            let seen = self.walk(data, replies);
            self.carry.extend_from_slice(&data[seen..]);
        } else {
            let mut carry = std::mem::take(&mut self.carry);
            carry.extend_from_slice(data);
            let seen = self.walk(&carry, replies);
            carry.drain(..seen);
            self.carry = carry;
        }
    }

    /// Answers complete messages; returns how many bytes those were.
    fn walk(&mut self, data: &[u8], replies: &Replies) -> usize {
        let mut at = 0;
        loop {
            let step = self.skip.min(data.len() - at);
            self.skip -= step;
            at += step;
            let rest = &data[at..];
            if !self.started {
                let Some(length) = length(rest, 0).filter(|length| *length <= rest.len()) else {
                    return at;
                };
                self.hello(&rest[4..length]);
                at += length;
                continue;
            }
            let Some(length) = length(rest, 1).map(|length| length + 1) else {
                return at;
            };
            if rest[0] == b'd' {
                self.skip = length;
            } else if rest.len() < length {
                return at;
            } else {
                self.message(rest[0], &rest[5..length], replies);
                at += length;
            }
        }
    }

    fn hello(&mut self, body: &[u8]) {
        match u32::from_be_bytes(body[..4].try_into().unwrap()) {
            SSL_REQUEST => self.out.push(b'N'),
            0x0003_0000..=0x0003_ffff => {
                self.started = true;
                self.out.extend(msg(b'R', &[0; 4]));
                self.out.extend(welcome());
            }
            _ => self.ended = true,
        }
    }

    fn message(&mut self, tag: u8, body: &[u8], replies: &Replies) {
        match tag {
            b'Q' => self.query(body, replies),
            b'P' => self.out.extend_from_slice(b"1\0\0\0\x04"),
            b'B' => self.out.extend_from_slice(b"2\0\0\0\x04"),
            b'C' => self.out.extend_from_slice(b"3\0\0\0\x04"),
            b'D' => self.out.extend_from_slice(&replies.description),
            b'E' => self.out.extend_from_slice(&replies.row),
            b'S' => self.ready(),
            b'c' => {
                self.out.extend(complete(&format!("COPY {}", COPY / 100)));
                self.ready();
            }
            b'X' => self.ended = true,
            _ => {}
        }
    }

    fn ready(&mut self) {
        let status = if self.in_transaction { b'T' } else { b'I' };
        self.out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status]);
    }

    fn query(&mut self, body: &[u8], replies: &Replies) {
        match body.strip_suffix(b"\0").unwrap_or(body) {
            b"select 1" => {
                self.out.extend_from_slice(&replies.description);
                self.out.extend_from_slice(&replies.row);
            }
            b"rows" => self.out.extend_from_slice(&replies.hundred),
            b"BEGIN" => {
                self.in_transaction = true;
                self.out.extend_from_slice(b"C\0\0\0\x0aBEGIN\0");
            }
            b"COMMIT" => {
                self.in_transaction = false;
                self.out.extend_from_slice(b"C\0\0\0\x0bCOMMIT\0");
            }
            b"big" => return self.large = Some(Rc::clone(&replies.big)),
            b"copy out" => return self.large = Some(Rc::clone(&replies.copy_out)),
            b"copy in" => return self.out.extend_from_slice(&msg(b'G', &[0, 0, 1, 0, 0])),
            _ => self.out.extend_from_slice(b"C\0\0\0\x08SET\0"),
        }
        self.ready();
    }
}

/// The length field behind `tag` bytes.
fn length(data: &[u8], tag: usize) -> Option<usize> {
    let field = data.get(tag..tag + 4)?;
    usize::try_from(u32::from_be_bytes(field.try_into().unwrap())).ok()
}

/// A connection of the pooler to the fake.
#[derive(Debug)]
pub(crate) struct Server {
    link: Link,
    token: usize,
    state: State,
    sent: usize,
}

impl Server {
    pub(crate) fn new(link: Link, token: usize) -> Self {
        Self { link, token, state: State::default(), sent: 0 }
    }

    /// Receives and answers; false at the end of the connection.
    pub(crate) fn turn(&mut self, room: &mut [u8], replies: &Replies, registry: &Registry) -> bool {
        self.flush(registry);
        loop {
            match self.link.recv(room) {
                Got::Nothing => return true,
                Got::End => return false,
                Got::Bytes(count) => {
                    self.state.feed(&room[..count], replies);
                    self.flush(registry);
                    if self.state.ended {
                        return false;
                    }
                    if count < room.len() {
                        return true;
                    }
                }
            }
        }
    }

    /// Sends small answers at once, the large one as fast as the pooler takes it.
    fn flush(&mut self, registry: &Registry) {
        if !self.state.out.is_empty() {
            let count = self.link.send(&self.state.out);
            assert_eq!(count, self.state.out.len(), "small answers fit");
            self.state.out.clear();
        }
        let Some(large) = &self.state.large else {
            return;
        };
        while self.sent < large.len() {
            let piece = &large[self.sent..large.len().min(self.sent + 65_536)];
            let count = self.link.send(piece);
            self.sent += count;
            if count < piece.len() {
                return self.link.want_write(true, registry, self.token);
            }
        }
        self.link.want_write(false, registry, self.token);
        self.state.large = None;
        self.sent = 0;
    }
}
