//! What a query costs in memory: nothing. Core and relay together, over wires of memory.

use pgturnstile::base::Micros;
use pgturnstile::config::{AuthType, Config, DatabaseEntry, PoolMode, Settings};
use pgturnstile::core::{Action, Addr, Core, Decisions, Origin, Peer, Surroundings};
use pgturnstile::net::conn::Wire;
use pgturnstile::net::relay::{Limits, Relay};
use pgturnstile::wire::write;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::rc::Rc;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, and a count of what this thread asked it for.
struct Counting;

#[expect(unsafe_code, reason = "a global allocator can't be written without; it only counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The far end of a wire; its buffers are given their size beforehand.
struct Far {
    sent: Vec<u8>,
    got: Vec<u8>,
}

#[derive(Clone)]
struct Memory(Rc<RefCell<Far>>);

impl Memory {
    fn new() -> Memory {
        let far = Far { sent: Vec::with_capacity(65_536), got: Vec::with_capacity(65_536) };
        Memory(Rc::new(RefCell::new(far)))
    }
}

impl Wire for Memory {
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut far = self.0.borrow_mut();
        if far.sent.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = far.sent.len().min(into.len());
        into[..count].copy_from_slice(&far.sent[..count]);
        far.sent.drain(..count);
        Ok(count)
    }
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().got.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn want_write(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Clients of a pool in transaction mode, and its only server.
struct World {
    core: Core,
    relay: Relay<Memory>,
    far: Vec<(Peer, Memory)>,
}

impl World {
    fn new() -> World {
        let settings = Settings {
            auth_type: AuthType::Trust,
            pool_mode: PoolMode::Transaction,
            default_pool_size: 1,
            ..Settings::default()
        };
        let around = Surroundings {
            now: Micros::from_secs(1_000_000),
            seed: [7; 32],
            own_uid: 1,
            host_name: String::new(),
        };
        let mut core = Core::new(settings.clone(), around);
        let entry = DatabaseEntry { host: Some("/nowhere".into()), ..DatabaseEntry::default() };
        let databases = [("db".to_owned(), entry)].into();
        core.configure(Config { settings, databases, ..Config::default() }, true);
        core.set_users(vec![("someone".into(), b"secret".to_vec())]);
        let relay = Relay::new(Limits { rounds: 5, unsent: 4096 });
        World { core, relay, far: Vec::new() }
    }

    fn far(&self, peer: Peer) -> &Memory {
        &self.far.iter().find(|(known, _)| *known == peer).unwrap().1
    }

    /// What one end has got since the last look; the buffer stays.
    fn assert_got(&self, peer: Peer, want: &[u8]) {
        let mut far = self.far(peer).0.borrow_mut();
        assert!(far.got == want, "{peer:?}: {:?}", String::from_utf8_lossy(&far.got));
        far.got.clear();
    }

    /// One end sends; everything that follows from it happens.
    fn send(&mut self, from: Peer, bytes: &[u8]) {
        self.far(from).0.borrow_mut().sent.extend_from_slice(bytes);
        self.relay.mark_readable(from, false);
        self.relay.pump(from, &mut self.core);
        self.perform();
        self.core.turn_end();
        self.perform();
        while self.core.journal.pop().is_some() {}
    }

    fn perform(&mut self) {
        while let Some(action) = self.core.next_action() {
            match action {
                Action::Connect(id) => {
                    let wire = Memory::new();
                    self.relay.insert_server(id, wire.clone());
                    self.far.push((Peer::Server(id), wire));
                    self.core.connected(id, Addr::Unknown, Addr::Unix { pid: 0 });
                }
                Action::Resume(id) => self.relay.resume(id, &mut self.core),
                Action::Send(peer, bytes) => self.relay.send(peer, &bytes, &mut self.core),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A client logs in, and with the first one the server does.
    fn log_in(&mut self) -> Peer {
        let origin = Origin { remote: Addr::Unix { pid: 1 }, local: Addr::Unknown, uid: None };
        let id = self.core.accepted(origin);
        let wire = Memory::new();
        self.relay.insert_client(id, wire.clone());
        let (client, is_first) = (Peer::Client(id), self.far.is_empty());
        self.far.push((client, wire));
        let mut hello = Vec::new();
        let pairs: [(&[u8], &[u8]); 2] = [(b"user", b"someone"), (b"database", b"db")];
        write::startup(&mut hello, pairs.into_iter());
        self.send(client, &hello);
        if is_first {
            let mut welcome = Vec::new();
            write::authentication(&mut welcome, 0, b"");
            write::parameter_status(&mut welcome, b"client_encoding", b"UTF8");
            write::parameter_status(&mut welcome, b"server_version", b"15.0");
            write::backend_key(&mut welcome, 1);
            write::ready(&mut welcome, b'I');
            self.send(self.server(), &welcome);
        }
        for (_, far) in &self.far {
            far.0.borrow_mut().got.clear();
        }
        client
    }

    fn server(&self) -> Peer {
        let is_server = |(peer, _): &&(Peer, Memory)| matches!(peer, Peer::Server(_));
        self.far.iter().find(is_server).unwrap().0
    }
}

/// Packets with a body that fits all of them: names are empty.
fn tagged(tags: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for tag in tags.bytes() {
        write::packet(&mut out, tag, |body| body.extend_from_slice(b"\0\0b\0\0\0"));
    }
    out
}

/// Bind and Describe of a statement with this name, Execute, Sync.
fn uses(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, before, after) in [(b'B', 0, 6), (b'D', b'S', 0)] {
        write::packet(&mut out, tag, |body| {
            body.push(before);
            write::text(body, name.as_bytes());
            body.resize(body.len() + after, 0);
        });
    }
    out.extend(tagged("ES"));
    out
}

/// A simple and an extended query, each with its reply.
fn queries() -> [(Vec<u8>, Vec<u8>); 2] {
    let mut simple = Vec::new();
    write::query(&mut simple, b"select 1");
    let extended = tagged("PBDES");
    [(simple, "TDC"), (extended, "12TDC")].map(|(query, tags)| {
        let mut reply = tagged(tags);
        write::ready(&mut reply, b'I');
        (query, reply)
    })
}

/// Counts the allocations of a thousand rounds, after a few in which is made what is needed once,
/// such as the queue of replies.
fn allocations(mut round: impl FnMut()) -> usize {
    for _ in 0..10 {
        round();
    }
    let before = COUNT.get();
    for _ in 0..1000 {
        round();
    }
    COUNT.get() - before
}

#[test]
fn queries_allocate_nothing_and_idle_clients_own_nothing() {
    let mut world = World::new();
    let client = world.log_in();
    let server = world.server();
    for (query, reply) in queries() {
        let count = allocations(|| {
            world.send(client, &query);
            world.assert_got(server, &query);
            world.send(server, &reply);
            world.assert_got(client, &reply);
        });
        assert_eq!(count, 0, "{}", String::from_utf8_lossy(&query));
        assert!(!world.relay.owns_memory(client) && !world.relay.owns_memory(server));
    }
}

#[test]
fn waiting_for_a_server_allocates_nothing() {
    let mut world = World::new();
    let (one, two) = (world.log_in(), world.log_in());
    let server = world.server();
    for (query, reply) in queries() {
        let count = allocations(|| {
            world.send(one, &query);
            world.send(two, &query);
            for client in [one, two] {
                world.assert_got(server, &query);
                world.send(server, &reply);
                world.assert_got(client, &reply);
            }
        });
        assert_eq!(count, 0, "{}", String::from_utf8_lossy(&query));
    }
}

#[test]
fn packets_in_pieces_allocate_nothing() {
    let mut world = World::new();
    let client = world.log_in();
    let server = world.server();
    for (query, reply) in queries() {
        let (half, rest) = query.split_at(3);
        let (first, last) = reply.split_at(3);
        let count = allocations(|| {
            world.send(client, half);
            world.send(client, rest);
            world.assert_got(server, &query);
            world.send(server, first);
            world.send(server, last);
            world.assert_got(client, &reply);
        });
        assert_eq!(count, 0, "{}", String::from_utf8_lossy(&query));
        assert!(!world.relay.owns_memory(client) && !world.relay.owns_memory(server));
    }
}

#[test]
fn statements_that_a_server_has_are_bound_without_allocating() {
    let mut world = World::new();
    let clients = [world.log_in(), world.log_in()];
    let server = world.server();
    let (names, texts) = (["one", "another"], ["select 1", "select 2"]);
    let own = ["PGBOUNCER_1", "PGBOUNCER_2"];
    let ready = |tags: &str| {
        let mut out = tagged(tags);
        write::ready(&mut out, b'I');
        out
    };
    let parse = |name: &str, text: &str| {
        let mut out = Vec::new();
        write::packet(&mut out, b'P', |body| {
            write::text(body, name.as_bytes());
            write::text(body, text.as_bytes());
            body.extend_from_slice(&[0; 2]);
        });
        out.extend(tagged("S"));
        out
    };
    for at in [0, 1] {
        world.send(clients[at], &parse(names[at], texts[at]));
        world.assert_got(server, &parse(own[at], texts[at]));
        world.send(server, &ready("1"));
        world.assert_got(clients[at], &ready("1"));
    }
    let (sent, replies) = (names.map(uses), ready("2tTDC"));
    let renamed = own.map(uses);
    let count = allocations(|| {
        for at in [0, 1] {
            world.send(clients[at], &sent[at]);
            world.assert_got(server, &renamed[at]);
            world.send(server, &replies);
            world.assert_got(clients[at], &replies);
        }
    });
    assert_eq!(count, 0);
    // The same when the packets come in pieces, the long way.
    let count = allocations(|| {
        let (first, rest) = sent[0].split_at(9);
        world.send(clients[0], first);
        world.send(clients[0], rest);
        world.assert_got(server, &renamed[0]);
        world.send(server, &replies);
        world.assert_got(clients[0], &replies);
    });
    assert_eq!(count, 0);
}
