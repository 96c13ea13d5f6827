//! A core with clients and servers, fed with packets, for the tests of this floor.

use super::{run, Around, Listening};
use crate::base::{Micros, Objects};
use crate::config::{self, Settings, SslMode};
use crate::core::carry;
use crate::core::{
    Action, Addr, ClientId, Core, Decisions, Handed, Loss, Origin, Packet, Peer, ServerId,
};
use crate::core::{Sink, Surroundings, Verdict};
use crate::net::conn::Pending;
use crate::net::resolve::{Host, Zone};
use crate::wire::startup::CANCEL_REQUEST;
use crate::wire::{write, Reader};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

/// Files of the test's process.
const CONFIG: &str = "
[databases]
one = host=127.0.0.1 port=5432 dbname=first pool_size=3
two = host=a.test,b.test user=forced pool_mode=transaction max_db_connections=7
my-db =
* = host=/tmp port=5433
[users]
alice = pool_size=4 max_user_connections=9 pool_mode=statement
[peers]
10 = host=a.test port=7000 pool_size=0
2 = host=/tmp pool_size=-1
[pgbouncer]
auth_type = trust
admin_users = boss
stats_users = watcher
pool_mode = transaction
";

/// The time at which a fixture starts.
pub(super) const START: Micros = Micros::from_secs(1_000_000);

/// What the console asks for, as a test wants it.
#[derive(Default)]
pub(super) struct Process {
    pub(super) hosts: Vec<Host>,
    pub(super) zones: Vec<Zone>,
    pub(super) pending: Vec<(Peer, Pending)>,
}

impl Process {
    fn is_heard(&self, id: ClientId) -> bool {
        self.pending(Peer::Client(id)).unsent == 0
    }
}

impl Around for Process {
    fn time_text(&self, at: Micros) -> String {
        format!("second {}", at.secs())
    }
    fn dns_hosts(&self) -> Vec<Host> {
        self.hosts.clone()
    }
    fn dns_zones(&self) -> Vec<Zone> {
        self.zones.clone()
    }
    fn pending(&self, peer: Peer) -> Pending {
        let found = self.pending.iter().find(|(of, _)| *of == peer);
        found.map_or_else(Pending::default, |(_, pending)| *pending)
    }
    fn connection_size(&self) -> usize {
        100
    }
    fn buffers(&self) -> Objects {
        Objects { size: 4096, used: 2, free: 3 }
    }
    fn descriptor(&self, peer: Peer) -> Option<i32> {
        Some(match peer {
            Peer::Client(id) => 100 + id.index() as i32,
            Peer::Server(id) => 200 + id.index() as i32,
        })
    }
    fn set_up_tls(&self, settings: &Settings) -> Result<(), String> {
        match settings.client_tls_sslmode {
            SslMode::Disable => Ok(()),
            _ => Err("no files".into()),
        }
    }
    fn listening(&self) -> Vec<Listening> {
        let tcp = Addr::Inet("127.0.0.1:6432".parse().unwrap());
        let sockets = [(0, 7, tcp), (1, 8, Addr::Unix { pid: 0 })];
        sockets.map(|(number, fd, addr)| Listening { number, fd, addr }).to_vec()
    }
}

/// A packet for a client: its type and its fields joined by blanks.
pub(super) type Reply = (String, String);

/// A core, and what it said to whom.
pub(super) struct Fixture {
    pub(super) core: Core,
    /// What is around it.
    pub(super) process: Process,
    /// Servers that wait for a connection.
    pub(super) connects: VecDeque<ServerId>,
    /// The last RELOAD.
    pub(super) reloads: Option<ClientId>,
    /// TCP listeners closed, exit code.
    pub(super) closed_listeners: bool,
    pub(super) exit: Option<u8>,
    /// Whose descriptors went with packets.
    pub(super) handed: Vec<Handed>,
    closed: Vec<Peer>,
    said: BTreeMap<ClientId, Vec<u8>>,
    /// What clients sent that nobody has looked at, and who is not read until `Resume`.
    unread: BTreeMap<ClientId, Vec<u8>>,
    waiting: BTreeSet<ClientId>,
}

impl Fixture {
    /// The configuration above, nobody connected.
    pub(super) fn new() -> Fixture {
        let around =
            Surroundings { now: START, seed: [7; 32], own_uid: 1000, host_name: "host".into() };
        let mut core = Core::new(Settings::default(), around);
        let mut read = |_: &str| -> io::Result<Vec<u8>> { Ok(CONFIG.as_bytes().to_vec()) };
        let settings = Settings::default();
        let journal = &mut core.journal;
        let (config, complete) = config::load(&settings, "x.ini", true, &mut read, journal);
        assert!(complete, "{:?}", core.journal.pop());
        core.configure(config, true);
        let users = ["boss", "watcher", "alice", "bob"];
        core.set_users(users.map(|name| (name.into(), b"pw".to_vec())).to_vec());
        Fixture {
            core,
            process: Process::default(),
            connects: VecDeque::new(),
            reloads: None,
            closed_listeners: false,
            exit: None,
            handed: Vec::new(),
            closed: Vec::new(),
            said: BTreeMap::new(),
            unread: BTreeMap::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// A client on TCP port 4000 plus its number.
    pub(super) fn client(&mut self, database: &str, user: &str) -> ClientId {
        let remote = Addr::Inet("127.0.0.1:4000".parse().unwrap());
        self.client_from(remote, None, database, user)
    }

    /// A client with an address; it is logging in or logged in.
    pub(super) fn client_from(
        &mut self,
        remote: Addr,
        uid: Option<u32>,
        database: &str,
        user: &str,
    ) -> ClientId {
        let local = match remote {
            Addr::Unix { .. } => Addr::Unix { pid: 0 },
            _ => Addr::Inet("127.0.0.2:6432".parse().unwrap()),
        };
        let id = self.core.accepted(Origin { remote, local, uid });
        let mut packet = Vec::new();
        let parameters = [("user", user), ("database", database), ("application_name", "app")];
        let parameters = parameters.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        write::startup(&mut packet, parameters.into_iter());
        let packet = Packet { tag: 0, len: packet.len() as u32, seen: &packet[4..], behind: false };
        self.decide(id, packet);
        self.pump();
        id
    }

    /// Another process goes on with everybody but the console that asks for it; who they are there.
    pub(super) fn hand_over(&mut self, except: ClientId) -> (Fixture, Vec<(Peer, Peer)>) {
        let mut to = Fixture::new();
        to.core.now = Micros(START.0 * 3);
        let rows = self.core.hand_out(except);
        let from = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
        let told = |row: &carry::Row| carry::tests::planted(row.clone());
        let ends = rows.iter().map(|(row, peer)| (told(row), peer.map(|_| from)));
        let taken = to.core.take_in(ends.collect());
        let pairs = rows.iter().map(|(_, peer)| *peer).zip(taken.peers);
        let there = pairs.filter_map(|(old, new)| old.zip(new)).collect::<Vec<_>>();
        for (old, new) in &there {
            if let (Peer::Client(old), Peer::Client(new)) = (old, new) {
                to.unread.extend(self.unread.get(old).map(|bytes| (*new, bytes.clone())));
                to.waiting.extend(self.waiting.get(old).map(|_| *new));
            }
        }
        to.pump();
        (to, there)
    }

    /// A client that has not said anything yet.
    pub(super) fn stranger(&mut self) -> ClientId {
        let remote = Addr::Inet("127.0.0.1:4001".parse().unwrap());
        self.core.accepted(Origin { remote, local: Addr::Unknown, uid: None })
    }

    /// A cancel request with this key.
    pub(super) fn cancel(&mut self, key: &[u8]) {
        let id = self.stranger();
        let seen = [&CANCEL_REQUEST.to_be_bytes()[..], key].concat();
        self.decide(id, Packet { tag: 0, len: 16, seen: &seen, behind: false });
        self.pump();
    }

    /// A client of the admin database.
    pub(super) fn console(&mut self, user: &str) -> ClientId {
        let id = self.client("pgbouncer", user);
        assert!(self.core.clients().get(id).unwrap().is_console());
        self.taken(id);
        id
    }

    fn decide(&mut self, id: ClientId, packet: Packet<'_>) -> Verdict {
        let mut sink = Sink::default();
        let verdict = self.core.client_packet(id, packet, &mut sink);
        self.said.entry(id).or_default().extend(sink.to_client);
        verdict
    }

    /// Packets of a client, and the end of the turn.
    pub(super) fn throw(&mut self, id: ClientId, bytes: &[u8]) {
        self.unread.entry(id).or_default().extend(bytes);
        self.read(id);
        self.pump();
    }

    /// The end of a client's connection.
    pub(super) fn lose(&mut self, id: ClientId) {
        self.core.lost(Peer::Client(id), Loss::Receive);
        self.pump();
    }

    /// True if not all that a client sent has been looked at.
    pub(super) fn is_unread(&self, id: ClientId) -> bool {
        !self.unread.get(&id).is_none_or(Vec::is_empty)
    }

    fn read(&mut self, id: ClientId) {
        let bytes = self.unread.remove(&id).unwrap_or_default();
        let mut rest = Reader::new(&bytes);
        while !self.is_closed(id) && !self.waiting.contains(&id) {
            let mut next = rest;
            let Some(tag) = next.u8() else { return };
            let len = next.u32().unwrap();
            let seen = next.bytes(len as usize - 4).unwrap();
            match self.decide(id, Packet { tag, len: len + 1, seen, behind: false }) {
                Verdict::Wait => drop(self.waiting.insert(id)),
                Verdict::Stop => return,
                verdict => {
                    assert_eq!(verdict, Verdict::Drop);
                    rest = next;
                }
            }
        }
        self.unread.insert(id, rest.rest().to_vec());
    }

    /// A Query packet; what follows from it is done by `pump`.
    pub(super) fn feed(&mut self, id: ClientId, sql: &str) -> Verdict {
        let body = [sql.as_bytes(), b"\0"].concat();
        let packet = Packet { tag: b'Q', len: body.len() as u32 + 5, seen: &body, behind: false };
        self.decide(id, packet)
    }

    /// A Query packet, and the end of the turn.
    pub(super) fn run(&mut self, id: ClientId, sql: &str) {
        self.feed(id, sql);
        self.pump();
    }

    /// Connects the oldest server that waits for it, and logs it in.
    pub(super) fn serve(&mut self) -> ServerId {
        let id = self.connects.pop_front().expect("a server to connect");
        let local = Addr::Inet("127.0.0.1:5000".parse().unwrap());
        let remote = Addr::Inet("127.0.0.1:5432".parse().unwrap());
        self.core.connected(id, local, remote);
        self.say(id, b'R', &[0; 4]);
        self.say(id, b'S', b"server_version\x0017\0");
        self.say(id, b'K', &[0, 0, 16, 1, 1, 2, 3, 4]);
        self.ready(id, b'I');
        id
    }

    /// A packet of a server.
    pub(super) fn say(&mut self, id: ServerId, tag: u8, body: &[u8]) {
        let packet = Packet { tag, len: body.len() as u32 + 5, seen: body, behind: false };
        self.core.server_packet(id, packet, &mut Sink::default());
    }

    /// ReadyForQuery, with which all of the server's packets are delivered.
    pub(super) fn ready(&mut self, id: ServerId, status: u8) {
        self.say(id, b'Z', &[status]);
        self.core.server_drained(id, &mut Sink::default());
        self.pump();
    }

    /// Does what the core asks for, to the end of the turn.
    pub(super) fn pump(&mut self) {
        self.perform();
        loop {
            let process = &self.process;
            self.core.go_on_console(|id| process.is_heard(id));
            self.perform();
            self.core.turn_end();
            self.perform();
            self.core.check_suspension(|_| true);
            self.perform();
            let process = &self.process;
            if !self.core.is_pending() && !self.core.has_left(|id| process.is_heard(id)) {
                break;
            }
        }
    }

    fn perform(&mut self) {
        while let Some(action) = self.core.next_action() {
            match action {
                Action::Connect(id) => self.connects.push_back(id),
                Action::Send(Peer::Client(id), bytes) => {
                    if !self.is_closed(id) {
                        self.said.entry(id).or_default().extend(bytes);
                    }
                }
                Action::SendRow(id, packet, socket) => {
                    self.handed.push(socket);
                    self.said.entry(id).or_default().extend(packet);
                }
                Action::Close(peer) => self.closed.push(peer),
                Action::Console(id) => {
                    run(&mut self.core, &self.process, id);
                }
                Action::Reload(id) => self.reloads = id,
                Action::CloseTcpListeners => self.closed_listeners = true,
                Action::Exit(code) => self.exit = Some(code),
                Action::Resume(id) => {
                    self.waiting.remove(&id);
                    self.read(id);
                }
                Action::Send(Peer::Server(_), _)
                | Action::StartTls(_)
                | Action::Suspend(_)
                | Action::Handoff(_)
                | Action::Job(..)
                | Action::Abandon(_) => {}
            }
        }
    }

    /// True if the client has been closed.
    pub(super) fn is_closed(&self, id: ClientId) -> bool {
        self.closed.contains(&Peer::Client(id))
    }

    /// Packets sent to a client since the last look.
    pub(super) fn taken(&mut self, id: ClientId) -> Vec<Reply> {
        self.raw(id)
            .into_iter()
            .map(|(kind, body)| {
                let text = String::from_utf8_lossy(&body).replace('\0', " ");
                (char::from(kind).to_string(), text.trim().to_owned())
            })
            .collect()
    }

    /// What was sent to a client since the last look.
    pub(super) fn bytes(&mut self, id: ClientId) -> Vec<u8> {
        self.said.remove(&id).unwrap_or_default()
    }

    /// The types of the packets sent to a client since the last look.
    pub(super) fn kinds(&mut self, id: ClientId) -> String {
        self.raw(id).into_iter().map(|(kind, _)| char::from(kind)).collect()
    }

    /// As `taken`, with the bodies as they are.
    pub(super) fn raw(&mut self, id: ClientId) -> Vec<(u8, Vec<u8>)> {
        let bytes = self.bytes(id);
        let mut reader = Reader::new(&bytes);
        let mut packets = Vec::new();
        while let Some(kind) = reader.u8() {
            let len = reader.u32().unwrap() as usize;
            packets.push((kind, reader.bytes(len - 4).unwrap().to_vec()));
        }
        packets
    }

    /// The complete answer that a console has been given: its command tag.
    pub(super) fn answered(&mut self, id: ClientId) -> String {
        self.pump();
        let mut reply = self.taken(id);
        assert_eq!(reply.pop(), Some(("Z".into(), "I".into())));
        let (kind, tag) = reply.pop().expect("a tag");
        assert_eq!(kind, "C", "{tag}");
        tag
    }

    /// Runs a command that succeeds at once: its tag.
    pub(super) fn tag(&mut self, id: ClientId, command: &str) -> String {
        self.run(id, command);
        self.answered(id)
    }

    /// Runs a command that is refused: the error's text.
    pub(super) fn refusal(&mut self, id: ClientId, command: &str) -> String {
        self.run(id, command);
        let reply = self.taken(id);
        assert_eq!(reply.len(), 2, "{command}: {reply:?}");
        assert_eq!(reply[1], ("Z".into(), "I".into()));
        let text = reply[0].1.strip_prefix("SERROR C08P01 M");
        text.expect("an error").to_owned()
    }

    /// Runs a SHOW: its columns as `name oid size`, and its rows.
    pub(super) fn show(&mut self, id: ClientId, command: &str) -> Table {
        self.run(id, command);
        let mut packets = self.raw(id).into_iter();
        let (kind, body) = packets.next().unwrap();
        assert_eq!(kind, b'T', "{command}");
        let mut reader = Reader::new(&body);
        let columns = (0..reader.u16().unwrap())
            .map(|_| {
                let name = String::from_utf8(reader.text().unwrap().to_vec()).unwrap();
                assert_eq!(reader.bytes(6), Some(&[0; 6][..]));
                let (oid, size) = (reader.u32().unwrap(), reader.u16().unwrap() as i16);
                assert_eq!(reader.bytes(6), Some(&b"\xff\xff\xff\xff\0\0"[..]));
                format!("{name} {oid} {size}")
            })
            .collect();
        assert_eq!(reader.rest(), b"");
        let mut rows = Vec::new();
        for (kind, body) in packets {
            match kind {
                b'D' => rows.push(row(&body)),
                b'C' => assert_eq!(body, b"SHOW\0"),
                _ => assert_eq!((kind, body), (b'Z', b"I".to_vec())),
            }
        }
        Table { columns, rows }
    }

    /// The lines logged since the last look, as `Level text`.
    pub(super) fn log(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.core.journal.pop())
            .map(|(level, text)| format!("{level:?} {text}"))
            .collect()
    }
}

fn row(body: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(body);
    (0..reader.u16().unwrap())
        .map(|_| match reader.u32().unwrap() {
            u32::MAX => "NULL".to_owned(),
            len => String::from_utf8(reader.bytes(len as usize).unwrap().to_vec()).unwrap(),
        })
        .collect()
}

/// The result of a SHOW; NULL is the word.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    /// One column of all rows.
    pub(super) fn column(&self, name: &str) -> Vec<&str> {
        let is_it = |column: &String| column.split(' ').next() == Some(name);
        let at = self.columns.iter().position(is_it).expect(name);
        self.rows.iter().map(|row| row[at].as_str()).collect()
    }
}
