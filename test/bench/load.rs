//! The load side: clients and the fake server in one loop of one thread. A client sends its next
//! query when the answer to the last one is complete, never earlier.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Registry};

use crate::fake::{Replies, Server};
use crate::histogram::Histogram;
use crate::link::{Family, Got, Link, Listener, Place};
use crate::login::{hello, Keys, Login, Next};
use crate::rig::wire::terminate;
use crate::tls::Channel;

/// What one unit of work is: bytes to send and bytes to get back, again and again.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) steps: Vec<(Vec<u8>, usize)>,
    /// Log in and out instead.
    pub(crate) login: bool,
}

impl Script {
    /// A script that sends these, one after the other.
    pub(crate) fn new(sends: impl IntoIterator<Item = Vec<u8>>, replies: &Replies) -> Self {
        let expected = |send: Vec<u8>| {
            let length = replies.length(&send);
            (send, length)
        };
        Self { steps: sends.into_iter().map(expected).collect(), login: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    LoggingIn,
    Idle,
    Busy,
    /// Said goodbye, waits for the end of the connection.
    Leaving,
}

#[derive(Debug)]
struct Client {
    link: Channel,
    token: usize,
    state: State,
    step: usize,
    sent: usize,
    got: usize,
    began: Instant,
    login: Login,
}

/// What clients share.
struct Shared {
    script: Rc<Script>,
    /// Go on after a unit.
    running: bool,
    busy: usize,
    logged_in: usize,
    units: u64,
    latency: Histogram,
    keys: Keys,
    pooler: Place,
    family: Family,
}

enum End {
    Listener(Listener),
    Server(Server),
    Client(Client),
    Gone,
}

/// Clients, servers and the loop.
pub(crate) struct Load {
    poll: Poll,
    events: Events,
    ends: Vec<End>,
    clients: Vec<usize>,
    room: Box<[u8]>,
    replies: Rc<Replies>,
    shared: Shared,
    /// Clients don't read; what they missed is read afterwards.
    deaf: bool,
}

impl Load {
    /// A listening fake server without clients; returns its port, too.
    pub(crate) fn new(family: Family, folder: &Path, replies: &Rc<Replies>) -> (Self, u16) {
        let poll = Poll::new().unwrap();
        let (listener, port) = Listener::open(family, folder);
        listener.watch(poll.registry(), 0);
        let shared = Shared {
            script: Rc::default(),
            running: false,
            busy: 0,
            logged_in: 0,
            units: 0,
            latency: Histogram::default(),
            keys: Keys::default(),
            pooler: Place::Tcp(0),
            family,
        };
        let load = Self {
            poll,
            events: Events::with_capacity(1024),
            ends: vec![End::Listener(listener)],
            clients: Vec::new(),
            room: vec![0; 262_144].into(),
            replies: Rc::clone(replies),
            shared,
            deaf: false,
        };
        (load, port)
    }

    /// Where clients connect to from now on.
    pub(crate) fn set_pooler(&mut self, place: Place) {
        self.shared.pooler = place;
    }

    /// How clients connect from now on.
    pub(crate) fn set_family(&mut self, family: Family) {
        self.shared.family = family;
    }

    pub(crate) fn set_script(&mut self, script: &Rc<Script>) {
        self.shared.script = Rc::clone(script);
    }

    /// With true, clients read nothing until it is false again.
    pub(crate) fn set_deaf(&mut self, deaf: bool) {
        self.deaf = deaf;
        let Self { poll, ends, room, shared, .. } = self;
        for token in &self.clients {
            if let (false, End::Client(client)) = (deaf, &mut ends[*token]) {
                client.turn(room, shared, poll.registry());
            }
        }
    }

    /// Logs in so many more clients.
    pub(crate) fn connect(&mut self, count: usize) {
        let goal = self.clients.len() + count;
        while self.clients.len() < goal {
            for _ in 0..50.min(goal - self.clients.len()) {
                let token = self.ends.len();
                self.ends.push(End::Client(Client::new(token, &self.shared, self.poll.registry())));
                self.clients.push(token);
            }
            let deadline = Instant::now() + Duration::from_secs(20);
            while self.shared.logged_in < self.clients.len() {
                assert!(Instant::now() < deadline, "clients can't log in");
                self.turn();
            }
        }
    }

    /// Closes all clients.
    pub(crate) fn disconnect(&mut self) {
        self.stop();
        for token in self.clients.drain(..) {
            if let End::Client(mut client) = std::mem::replace(&mut self.ends[token], End::Gone) {
                client.link.send(&terminate());
            }
        }
        self.shared.logged_in = 0;
        self.run(Duration::from_millis(300));
    }

    /// Lets the first `count` clients work, without end.
    pub(crate) fn start(&mut self, count: usize) {
        self.shared.running = true;
        self.activate(0..count);
    }

    /// Lets these clients do one unit each, all at the same time, and waits for it.
    pub(crate) fn once(&mut self, range: std::ops::Range<usize>) {
        self.activate(range);
        self.stop();
    }

    fn activate(&mut self, range: std::ops::Range<usize>) {
        let registry = self.poll.registry();
        for token in &self.clients[range] {
            if let End::Client(client) = &mut self.ends[*token] {
                self.shared.busy += 1;
                client.begin(&self.shared, registry);
            }
        }
    }

    /// Starts no more units and waits for the ends of those that have begun.
    pub(crate) fn stop(&mut self) {
        self.shared.running = false;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.shared.busy > 0 {
            assert!(Instant::now() < deadline, "{} units don't end", self.shared.busy);
            self.turn();
        }
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.turn();
        }
    }

    /// Units since the last call, and how long they took.
    pub(crate) fn take(&mut self) -> (u64, Histogram) {
        let units = std::mem::take(&mut self.shared.units);
        (units, std::mem::take(&mut self.shared.latency))
    }

    fn turn(&mut self) {
        let Self { poll, events, ends, room, replies, shared, deaf, .. } = self;
        match poll.poll(events, Some(Duration::from_millis(5))) {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => panic!("{error}"),
            _ => {}
        }
        let registry = poll.registry();
        let mut accepted = Vec::new();
        for event in &*events {
            let end = &mut ends[event.token().0];
            let open = match end {
                End::Listener(listener) => {
                    accepted.extend(std::iter::from_fn(|| listener.accept()));
                    true
                }
                End::Server(server) => server.turn(room, replies, registry),
                End::Client(client) => {
                    if !*deaf {
                        client.turn(room, shared, registry);
                    }
                    true
                }
                End::Gone => true,
            };
            if !open {
                *end = End::Gone;
            }
        }
        for link in accepted {
            let token = ends.len();
            link.watch(registry, token);
            ends.push(End::Server(Server::new(link, token)));
        }
    }
}

impl Client {
    fn new(token: usize, shared: &Shared, registry: &Registry) -> Self {
        let mut client = Self {
            link: Self::dial(token, shared, registry),
            token,
            state: State::LoggingIn,
            step: 0,
            sent: 0,
            got: 0,
            began: Instant::now(),
            login: Login::default(),
        };
        client.greet();
        client
    }

    fn dial(token: usize, shared: &Shared, registry: &Registry) -> Channel {
        let link = Link::connect(&shared.pooler).unwrap_or_else(|e| panic!("connect: {e}"));
        link.watch(registry, token);
        Channel::new(link, shared.family)
    }

    /// Begins its login, once it may.
    fn greet(&mut self) {
        if !self.link.is_shaking() {
            self.link.send(&hello());
        }
    }

    /// Begins a unit.
    fn begin(&mut self, shared: &Shared, registry: &Registry) {
        self.began = Instant::now();
        if shared.script.login {
            self.link.send(&terminate());
            self.state = State::Leaving;
        } else {
            self.state = State::Busy;
            self.step = 0;
            self.next_step(shared, registry);
        }
    }

    fn next_step(&mut self, shared: &Shared, registry: &Registry) {
        (self.sent, self.got) = (0, 0);
        self.flush(shared, registry);
    }

    fn flush(&mut self, shared: &Shared, registry: &Registry) {
        let bytes = &shared.script.steps[self.step].0;
        while self.sent < bytes.len() {
            let count = self.link.send(&bytes[self.sent..]);
            self.sent += count;
            if count == 0 {
                return self.link.want_write(true, registry, self.token);
            }
        }
        self.link.want_write(false, registry, self.token);
    }

    fn turn(&mut self, room: &mut [u8], shared: &mut Shared, registry: &Registry) {
        if self.link.shake() {
            self.greet();
        }
        if self.state == State::Busy && self.sent < shared.script.steps[self.step].0.len() {
            self.flush(shared, registry);
        }
        loop {
            let large = self.state == State::Busy && shared.script.steps[self.step].1 > room.len();
            let got = if large { self.link.skip(room) } else { self.link.recv(room) };
            match got {
                Got::Nothing => return,
                Got::End => return self.ended(shared, registry),
                Got::Bytes(count) => {
                    self.bytes(&room[..count], shared, registry);
                    if count < room.len() && self.state != State::Leaving {
                        return;
                    }
                }
            }
        }
    }

    fn bytes(&mut self, data: &[u8], shared: &mut Shared, registry: &Registry) {
        match self.state {
            State::LoggingIn => match self.login.feed(data, &mut shared.keys) {
                Next::Wait => {}
                Next::Send(bytes) => assert_eq!(self.link.send(&bytes), bytes.len()),
                Next::Ready => self.is_in(shared, registry),
            },
            State::Idle | State::Leaving => panic!("unasked: {}", data.escape_ascii()),
            State::Busy => {
                self.got += data.len();
                let expected = shared.script.steps[self.step].1;
                assert!(self.got <= expected, "{} bytes, not {expected}", self.got);
                if self.got < expected {
                    return;
                }
                self.step += 1;
                if self.step < shared.script.steps.len() {
                    self.next_step(shared, registry);
                } else {
                    self.done(shared, registry);
                }
            }
        }
    }

    fn is_in(&mut self, shared: &mut Shared, registry: &Registry) {
        self.state = State::Idle;
        shared.logged_in += 1;
        if shared.script.login && shared.busy > 0 {
            self.done(shared, registry);
        }
    }

    fn done(&mut self, shared: &mut Shared, registry: &Registry) {
        shared.units += 1;
        shared.latency.add(self.began.elapsed());
        self.state = State::Idle;
        if shared.running {
            self.begin(shared, registry);
        } else {
            shared.busy -= 1;
        }
    }

    fn ended(&mut self, shared: &mut Shared, registry: &Registry) {
        assert_eq!(self.state, State::Leaving, "the pooler closed a client's connection");
        shared.logged_in -= 1;
        self.link = Self::dial(self.token, shared, registry);
        self.greet();
        self.state = State::LoggingIn;
        self.login = Login::default();
    }
}
