//! The new side of a handoff from one of us (doc/handoff.md): everything that the old process knows
//! is taken in, then it is told to end. Until the line that is named the point of no return,
//! whatever fails here leaves the old process as it was.

use super::daemon;
use super::turn::{Process, TICK};
use crate::base::{Level, Micros};
use crate::config::Settings;
use crate::core::carry::{Kind, Row, TakenIn};
use crate::core::server::ServerState;
use crate::core::{Action, Addr, ClientId, Core, Decisions, Loss, Origin, Peer};
use crate::net::carry::is_idle;
use crate::net::handoff::{Old, Parcel};
use crate::net::listen::Fatal as CannotListen;
use crate::net::Event;
use std::cmp::Reverse;
use std::os::fd::OwnedFd;
use std::rc::Rc;

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
    let listens = serve(process, listeners, &settings);
    listens.map_err(|_| "cannot listen".to_owned())
}

/// Everything is ours: goes on with it, but for clients that come later.
fn serve(
    process: &mut Process,
    listeners: Vec<(OwnedFd, Vec<u8>)>,
    settings: &Rc<Settings>,
) -> Result<(), CannotListen> {
    let listens = process.net.take_in_listeners(listeners);
    // Whoever comes anew waits for those who were here.
    process.net.suspend_accepting(true);
    process.go_on_with_settings(!Rc::ptr_eq(settings, process.core.settings()));
    // The janitor would have to wait for everybody.
    process.next_tick = process.clock.now() + TICK;
    process.report();
    process.perform();
    listens
}

/// Clients with nothing to do: there may be thousands of them, and somebody who has something to do
/// would wait for all.
pub(super) struct Newcomers {
    waiting: Vec<Newcomer>,
    /// What the others have become.
    taken: TakenIn,
    /// What is to be done when all are there.
    put_off: Vec<Action>,
}

/// What is told of a client, and its socket.
struct Newcomer {
    idle_for: Micros,
    row: Row,
    wire: Vec<u8>,
    socket: OwnedFd,
}

/// Gives each row its place; the listening sockets are left over, with what is told of them.
fn take_in(process: &mut Process, parcels: Vec<Parcel>) -> Vec<(OwnedFd, Vec<u8>)> {
    let (mut rows, mut sockets) = (Vec::new(), Vec::new());
    let (mut listeners, mut waiting) = (Vec::new(), Vec::new());
    for Parcel { kind, number, state, socket } in parcels {
        // A later version has something that we know nothing of.
        let Some(kind) = kind else { continue };
        let row = Row { kind, number, state };
        match socket {
            Some((wire, socket)) if kind == Kind::Listener => listeners.push((socket, wire)),
            socket => {
                let wire = socket.as_ref().map(|(wire, _)| wire);
                let idle_for = wire.filter(|wire| is_idle(wire)).and_then(|_| Core::idle_for(&row));
                match (idle_for, socket) {
                    (Some(idle_for), Some((wire, socket))) => {
                        waiting.push(Newcomer { idle_for, row, wire, socket });
                    }
                    (_, socket) => {
                        rows.push((row, socket.as_ref().map(|_| UNTOLD)));
                        sockets.push(socket);
                    }
                }
            }
        }
    }
    let mut taken = process.core.take_in(rows);
    for (peer, socket) in std::mem::take(&mut taken.peers).into_iter().zip(sockets) {
        let Some(peer) = peer else { continue };
        match socket {
            Some((wire, socket)) => {
                let peer_of = |number| taken.peer(number);
                process.net.take_in(peer, socket, &wire, &peer_of, &mut process.core);
            }
            None => process.core.lost(peer, Loss::Receive),
        }
    }
    // They are taken from its end: who has just been active may have said something already.
    waiting.sort_by_key(|newcomer| Reverse(newcomer.idle_for));
    process.newcomers = Some(Newcomers { waiting, taken, put_off: Vec::new() });
    listeners
}

impl Process {
    /// Takes in so many of the clients that have been left for later.
    pub(super) fn take_in_newcomers(&mut self, count: usize) {
        for _ in 0..count {
            let Some(newcomers) = self.newcomers.as_mut() else { return };
            let Some(Newcomer { row, wire, socket, .. }) = newcomers.waiting.pop() else { break };
            if let Some(peer) = self.core.take_in_late(&row, UNTOLD, &mut newcomers.taken) {
                self.net.take_in(peer, socket, &wire, &|_| None, &mut self.core);
                // If it is closed the next one may get its place.
                self.perform();
            }
        }
        if self.newcomers.as_ref().is_some_and(|newcomers| newcomers.waiting.is_empty()) {
            self.end_taking_in();
        }
    }

    fn end_taking_in(&mut self) {
        let Some(Newcomers { taken, put_off, .. }) = self.newcomers.take() else { return };
        self.core.all_are_in(taken);
        self.net.suspend_accepting(self.core.is_suspended());
        // What logins are told comes before they are read again.
        self.perform();
        for action in put_off {
            self.act(action);
            self.perform();
        }
    }

    /// Takes in all of them, unless what has happened is traffic of those who are there.
    pub(super) fn await_newcomers(&mut self, event: &Event) {
        if self.newcomers.is_some() && !self.is_traffic(event) {
            self.take_in_newcomers(usize::MAX);
        }
    }

    fn is_traffic(&self, event: &Event) -> bool {
        match event {
            Event::Readable(Peer::Client(id)) | Event::Writable(Peer::Client(id)) => {
                self.is_only_served(*id)
            }
            Event::Readable(Peer::Server(id)) | Event::Writable(Peer::Server(id)) => {
                let server = self.core.servers().get(*id);
                server.is_none_or(|server| server.state() != ServerState::Login)
            }
            // Nobody is accepted; who waits is looked for when that is over.
            Event::Accept(_) => true,
            _ => false,
        }
    }

    /// True if nothing but traffic can come of what this client sends, also if it is gone.
    fn is_only_served(&self, id: ClientId) -> bool {
        let client = self.core.clients().get(id);
        client.is_none_or(|client| client.is_inside() && !client.is_console())
    }

    /// What is to be done now. That a login or a console goes on is left for when all are there.
    pub(super) fn put_off(&mut self, action: Action) -> Option<Action> {
        if self.newcomers.is_none() {
            return Some(action);
        }
        let may_be_done = match &action {
            Action::Resume(id) => self.is_only_served(*id),
            Action::Console(_) => false,
            _ => true,
        };
        match &mut self.newcomers {
            Some(newcomers) if !may_be_done => {
                newcomers.put_off.push(action);
                None
            }
            _ => Some(action),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::Log;
    use super::super::{assemble, surroundings, Clock, Service, Starting};
    use super::*;
    use crate::base::fields::{Fields, Tag};
    use crate::base::Journal;
    use crate::config;
    use crate::core::carry::{CLIENT_TAGS, CONSOLE_TAGS, LOGIN_TAGS, PLACE_TAGS, REQUEST_TAGS};
    use crate::net::carry::WIRE;
    use crate::net::tls::Tls;
    use crate::wire::write;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    fn tag(table: &[Tag], name: &str) -> u16 {
        table.iter().find(|tag| tag.name == name).unwrap().tag
    }

    fn process(settings: &str) -> Process {
        let text = format!("[databases]\nd = host=127.0.0.1\n[pgbouncer]\n{settings}\n");
        let mut read = |_: &str| Ok(text.clone().into_bytes());
        let mut journal = Journal::default();
        let (config, complete) =
            config::load(&Settings::default(), "x.ini", true, &mut read, &mut journal);
        assert!(complete);
        let clock = Clock::start();
        let around = surroundings(&clock).unwrap();
        let mut core = Core::new(config.settings.clone(), around);
        core.configure(config, true);
        let starting = Starting { log: Log::new(true), journal };
        let process = assemble(core, Tls::default(), Service::default(), clock, starting);
        process.unwrap_or_else(|_| panic!("no process"))
    }

    /// A client of this database that the old process tells of, and its other end.
    fn client(
        number: u64,
        database: &str,
        held: &[u8],
        more: impl FnOnce(&mut Fields),
    ) -> (Parcel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut fields = Fields::default();
        let is_inside = !database.is_empty();
        fields.number(tag(CLIENT_TAGS, "STATE"), is_inside.into());
        if is_inside {
            fields.flag(tag(CLIENT_TAGS, "WELCOMED"), true);
            fields.number(tag(CLIENT_TAGS, "COUNTED"), 1);
            fields.group(tag(CLIENT_TAGS, "POOL"), |fields| {
                fields.put(tag(PLACE_TAGS, "DATABASE"), database.as_bytes());
                fields.put(tag(PLACE_TAGS, "USER"), b"u");
            });
        }
        fields.number(tag(CLIENT_TAGS, "CANCEL_KEY"), number);
        more(&mut fields);
        let mut wire = Fields::default();
        wire.flag(tag(WIRE, "UNIX"), true);
        wire.flag(tag(WIRE, "SPOKEN_TO"), number % 2 == 0);
        if !held.is_empty() {
            wire.put(tag(WIRE, "HELD"), held);
        }
        let socket = Some((wire.into_bytes(), ours.into()));
        let kind = Some(Kind::Client);
        (Parcel { kind, number, state: fields.into_bytes(), socket }, theirs)
    }

    /// As many clients with nothing to do, and this one; their other ends, that of this one last.
    fn with_idle(process: &mut Process, count: u64, one: (Parcel, UnixStream)) -> Vec<UnixStream> {
        let mut all: Vec<_> = (1..=count).map(|number| client(number, "d", b"", |_| {})).collect();
        all.push(one);
        let (parcels, ends) = all.into_iter().unzip();
        assert!(take_in(process, parcels).is_empty());
        ends
    }

    fn said(mut end: &UnixStream) -> Vec<u8> {
        let mut said = vec![0; 1 << 20];
        let count = end.read(&mut said).unwrap_or(0);
        said.truncate(count);
        said
    }

    fn rows(mut answer: &[u8]) -> usize {
        let mut count = 0;
        while let [tag, a, b, c, d, ..] = answer {
            count += usize::from(*tag == b'D');
            answer = &answer[1 + u32::from_be_bytes([*a, *b, *c, *d]) as usize..];
        }
        count
    }

    fn waiting(process: &Process) -> Option<usize> {
        process.newcomers.as_ref().map(|newcomers| newcomers.waiting.len())
    }

    #[test]
    fn clients_come_in_turns_and_a_console_waits_for_all() {
        let mut process = process("auth_type = trust\nadmin_users = u");
        let settings = process.core.settings().clone();
        let console = client(200, "pgbouncer", b"", |fields| {
            fields.group(tag(CLIENT_TAGS, "CONSOLE"), |fields| {
                fields.number(tag(CONSOLE_TAGS, "ACCESS"), 2);
                fields.number(tag(CONSOLE_TAGS, "OWED"), 1);
                fields.group(tag(CONSOLE_TAGS, "ASKED"), |fields| {
                    fields.number(tag(REQUEST_TAGS, "ASK"), 1);
                    fields.put(tag(REQUEST_TAGS, "TEXT"), b"SHOW CLIENTS");
                });
            });
        });
        let ends = with_idle(&mut process, 120, console);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _new = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(serve(&mut process, vec![(listener.into(), vec![])], &settings).is_ok());
        for left in [Some(120), Some(70), Some(20)] {
            assert_eq!(waiting(&process), left);
            assert_eq!(said(&ends[120]), b"", "nobody is shown of whom some are missing");
            process.turn();
        }
        assert_eq!(waiting(&process), None);
        let answer = said(&ends[120]);
        assert!(answer.ends_with(b"C\0\0\0\x09SHOW\0Z\0\0\0\x05I"), "{}", answer.escape_ascii());
        assert_eq!(rows(&answer), 121);
        // Who has come in the meantime is accepted.
        assert_eq!(process.core.clients().len(), 121);
        process.turn();
        assert_eq!(process.core.clients().len(), 122);
    }

    #[test]
    fn a_login_counts_those_who_come_late() {
        let mut process = process("auth_type = any\nmax_db_client_connections = 60");
        let settings = process.core.settings().clone();
        let mut hello = Vec::new();
        let pairs: [(&[u8], &[u8]); 2] = [(b"database", b"d"), (b"user", b"u")];
        write::startup(&mut hello, pairs.into_iter());
        let login = client(200, "", &hello, |fields| {
            fields.group(tag(CLIENT_TAGS, "LOGIN"), |fields| {
                fields.number(tag(LOGIN_TAGS, "STAGE"), 1);
            });
        });
        let ends = with_idle(&mut process, 60, login);
        assert!(serve(&mut process, vec![], &settings).is_ok());
        process.turn();
        assert_eq!((waiting(&process), process.core.clients().len()), (None, 60));
        let said = said(&ends[60]);
        assert!(said.starts_with(b"E"), "{}", said.escape_ascii());
    }
}
