//! The floor: a relay that knows no more of the protocol than where a transaction ends. One receive
//! and one send per direction, servers in the order in which they came free. What any pooler has to
//! pay for moving bytes.

use std::collections::VecDeque;

use mio::{Events, Poll, Registry};

use crate::fake::welcome;
use crate::link::{Got, Link, Listener, Place};
use crate::login::hello;
use crate::rig::wire::msg;

const ROOM: usize = 65_536;
/// How every transaction ends, and how every login ends, too.
const READY: &[u8] = b"Z\0\0\0\x05I";

struct Conn {
    link: Link,
    is_server: bool,
    /// Server of a client, client of a server.
    other: Option<usize>,
    started: bool,
    /// What the link did not take.
    unsent: Vec<u8>,
    /// The last bytes that were received.
    tail: [u8; 6],
    /// Its bytes wait for the other's room.
    held_back: bool,
}

struct Floor {
    poll: Poll,
    conns: Vec<Option<Conn>>,
    idle: VecDeque<usize>,
    waiting: VecDeque<usize>,
    room: Box<[u8]>,
}

/// Runs until it is killed.
pub(crate) fn run(listen: &Place, server: &Place, servers: usize) -> ! {
    let poll = Poll::new().unwrap();
    let listener = Listener::at(listen);
    listener.watch(poll.registry(), 0);
    let mut floor = Floor {
        poll,
        conns: vec![None],
        idle: VecDeque::new(),
        waiting: VecDeque::new(),
        room: vec![0; ROOM].into(),
    };
    for _ in 0..servers {
        let link = Link::connect(server).unwrap();
        link.send(&hello());
        floor.add(link, true);
    }
    let mut events = Events::with_capacity(1024);
    loop {
        match floor.poll.poll(&mut events, None) {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => panic!("{error}"),
            _ => {}
        }
        for event in &events {
            match event.token().0 {
                0 => {
                    while let Some(link) = listener.accept() {
                        floor.add(link, false);
                    }
                }
                at => {
                    if event.is_writable() {
                        floor.writable(at);
                    }
                    if event.is_readable() {
                        floor.readable(at);
                    }
                }
            }
        }
    }
}

impl Floor {
    fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    fn add(&mut self, link: Link, is_server: bool) {
        link.watch(self.registry(), self.conns.len());
        self.conns.push(Some(Conn {
            link,
            is_server,
            other: None,
            started: false,
            unsent: Vec::new(),
            tail: [0; 6],
            held_back: false,
        }));
    }

    fn readable(&mut self, at: usize) {
        let Some(conn) = &mut self.conns[at] else {
            return;
        };
        if !conn.started {
            return self.begin(at);
        }
        if conn.other.is_none() {
            match self.idle.pop_front() {
                Some(server) => self.pair(at, server),
                None if !self.waiting.contains(&at) => return self.waiting.push_back(at),
                None => return,
            }
        }
        self.relay(at);
    }

    /// Welcomes a client; hears a server out.
    fn begin(&mut self, at: usize) {
        let Some(conn) = &mut self.conns[at] else {
            return;
        };
        let count = match conn.link.recv(&mut self.room) {
            Got::Bytes(count) => count,
            Got::Nothing => return,
            Got::End => return self.conns[at] = None,
        };
        if conn.is_server {
            if self.room[..count].ends_with(READY) {
                conn.started = true;
                self.idle.push_back(at);
            }
        } else {
            conn.started = true;
            conn.link.send(&[msg(b'R', &[0; 4]), welcome()].concat());
        }
    }

    fn pair(&mut self, client: usize, server: usize) {
        for (one, other) in [(client, server), (server, client)] {
            if let Some(conn) = &mut self.conns[one] {
                conn.other = Some(other);
            }
        }
    }

    fn relay(&mut self, from: usize) {
        loop {
            let Some(conn) = &mut self.conns[from] else {
                return;
            };
            let Some(to) = conn.other else {
                return;
            };
            if self.conns[to].as_ref().is_none_or(|to| !to.unsent.is_empty()) {
                if let Some(conn) = &mut self.conns[from] {
                    conn.held_back = true;
                }
                return;
            }
            let Some(conn) = &mut self.conns[from] else {
                return;
            };
            let count = match conn.link.recv(&mut self.room) {
                Got::Nothing => return,
                Got::End => return self.end(from, to),
                Got::Bytes(count) => count,
            };
            let is_server = conn.is_server;
            let data = &self.room[..count];
            let last = &data[count.saturating_sub(6)..];
            conn.tail.rotate_left(last.len() % 6);
            conn.tail[6 - last.len()..].copy_from_slice(last);
            let done = is_server && conn.tail == READY;
            if let Some(conn) = &mut self.conns[to] {
                let sent = conn.link.send(data);
                if sent < count {
                    conn.unsent.extend_from_slice(&data[sent..]);
                    conn.link.want_write(true, self.poll.registry(), to);
                }
            }
            if done {
                return self.release(from, to);
            }
            if count < ROOM {
                return;
            }
        }
    }

    fn release(&mut self, server: usize, client: usize) {
        for at in [server, client] {
            if let Some(conn) = &mut self.conns[at] {
                conn.other = None;
            }
        }
        match self.waiting.pop_front() {
            Some(next) => {
                self.pair(next, server);
                self.relay(next);
            }
            None => self.idle.push_back(server),
        }
    }

    fn end(&mut self, from: usize, to: usize) {
        let is_server = self.conns[from].as_ref().is_some_and(|conn| conn.is_server);
        assert!(!is_server, "a server has gone");
        self.conns[from] = None;
        self.release(to, from);
    }

    fn writable(&mut self, at: usize) {
        let Some(conn) = &mut self.conns[at] else {
            return;
        };
        let sent = conn.link.send(&conn.unsent);
        conn.unsent.drain(..sent);
        if !conn.unsent.is_empty() {
            return;
        }
        conn.link.want_write(false, self.poll.registry(), at);
        let Some(other) = conn.other else {
            return;
        };
        let Some(conn) = &mut self.conns[other] else {
            return;
        };
        if std::mem::take(&mut conn.held_back) {
            self.relay(other);
        }
    }
}
