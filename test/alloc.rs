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

/// One client and one server of a pool in transaction mode.
struct World {
    core: Core,
    relay: Relay<Memory>,
    client: (Peer, Memory),
    server: Option<(Peer, Memory)>,
}

impl World {
    fn new() -> World {
        let settings = Settings {
            auth_type: AuthType::Trust,
            pool_mode: PoolMode::Transaction,
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
        let origin = Origin { remote: Addr::Unix { pid: 1 }, local: Addr::Unknown, uid: None };
        let id = core.accepted(origin);
        let wire = Memory::new();
        let mut relay = Relay::new(Limits { rounds: 5, unsent: 4096 });
        relay.insert_client(id, wire.clone());
        World { core, relay, client: (Peer::Client(id), wire), server: None }
    }

    /// One end sends; everything that follows from it happens.
    fn send(&mut self, from: Peer, bytes: &[u8]) {
        let far = match &self.server {
            Some((peer, far)) if *peer == from => far,
            _ => &self.client.1,
        };
        far.0.borrow_mut().sent.extend_from_slice(bytes);
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
                    self.server = Some((Peer::Server(id), wire));
                    self.core.connected(id, Addr::Unknown, Addr::Unix { pid: 0 });
                }
                Action::Resume(id) => self.relay.resume(id, &mut self.core),
                Action::Send(peer, bytes) => self.relay.send(peer, &bytes, &mut self.core),
                other => panic!("{other:?}"),
            }
        }
    }

    fn log_in(&mut self) -> (Peer, Peer) {
        let client = self.client.0;
        let mut hello = Vec::new();
        let pairs: [(&[u8], &[u8]); 2] = [(b"user", b"someone"), (b"database", b"db")];
        write::startup(&mut hello, pairs.into_iter());
        self.send(client, &hello);
        let server = self.server.as_ref().unwrap().0;
        let mut welcome = Vec::new();
        write::authentication(&mut welcome, 0, b"");
        write::parameter_status(&mut welcome, b"client_encoding", b"UTF8");
        write::parameter_status(&mut welcome, b"server_version", b"15.0");
        write::backend_key(&mut welcome, 1);
        write::ready(&mut welcome, b'I');
        self.send(server, &welcome);
        (client, server)
    }
}

#[test]
fn queries_allocate_nothing_and_idle_clients_own_nothing() {
    let mut world = World::new();
    let (client, server) = world.log_in();
    let mut query = Vec::new();
    write::query(&mut query, b"select 1");
    let mut reply = Vec::new();
    write::data_row(&mut reply, [Some(&b"1"[..])].into_iter());
    write::command_complete(&mut reply, "SELECT 1");
    write::ready(&mut reply, b'I');
    let mut before = 0;
    for round in 0..1010 {
        // What is needed once, such as the queue of replies, is there after the first rounds.
        if round == 10 {
            before = COUNT.get();
        }
        world.client.1 .0.borrow_mut().got.clear();
        world.send(client, &query);
        world.server.as_ref().unwrap().1 .0.borrow_mut().got.clear();
        world.send(server, &reply);
        assert_eq!(world.client.1 .0.borrow().got, reply);
    }
    assert_eq!(COUNT.get() - before, 0, "allocations in 1000 queries");
    assert!(!world.relay.owns_memory(client) && !world.relay.owns_memory(server));
}
