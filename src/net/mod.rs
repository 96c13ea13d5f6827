//! Sockets: connections, relay, listening, dialling, look-ups.
//!
//! [`Net`] owns them all. The loop calls [`Net::wait`], then takes one event after the other:
//! `Accept` is answered with [`Net::accept`] until that is `None`, `Internal` is the caller's own,
//! everything else goes to [`Net::handle`]. After each event the core's actions are performed with
//! [`Net::connect`], [`Net::resume`], [`Net::send`], [`Net::send_row`], [`Net::close`].

pub mod address;
pub mod cares;
pub mod carry;
pub mod conn;
mod dial;
pub mod facts;
pub mod handoff;
pub mod jobs;
pub mod keeper;
mod ldap;
pub mod listen;
mod names;
pub mod options;
mod pam;
pub mod relay;
pub mod resolve;
mod shake;
mod socket_file;
pub mod stream;
pub mod successor;
pub mod swap;
pub mod sys;
pub mod title;
pub mod tls;

use crate::base::{Journal, Level, Micros, Side};
use crate::core::server::Server;
use crate::core::{Addr, ClientId, Decisions, Handed, Job, JobId, Loss, Origin, Peer, ServerId};
use address::{Host, Place};
use cares::Nameservers;
use conn::Wire;
use dial::Dial;
use jobs::Jobs;
use listen::{Fatal, Kept, ListenOptions, Listeners};
use mio::event::{Event as Ready, Source};
use mio::{Events, Interest, Poll, Token, Waker};
use options::{reason, SocketOptions};
use relay::{Limits, Relay};
use resolve::{DnsTimes, Resolver};
use shake::Shaking;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use stream::{Common, Socket, Stream};
use tls::Tls;

#[cfg(test)]
mod script;
#[cfg(test)]
mod tests;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Connections wait at this listening socket.
    Accept(usize),
    /// This connection may have bytes for us, or waits for another turn.
    Readable(Peer),
    /// This connection has room for bytes.
    Writable(Peer),
    /// An attempt to connect has ended.
    Dialled(ServerId),
    /// A connection on its way to TLS may go on.
    Handshake(Peer),
    /// A helper thread has something: a job has ended, or whatever the holder of [`Net::waker`]
    /// means by it.
    Woken,
    /// Nameservers have answered, or did not in time.
    Names,
    /// Something happened to a source of the caller's own.
    Internal(u32),
}

/// Settings for [`Net::new`].
#[derive(Clone, Copy, Debug)]
pub struct NetOptions {
    /// For the relay.
    pub limits: Limits,
    /// For TCP sockets.
    pub sockets: SocketOptions,
    /// For names.
    pub dns: DnsTimes,
}

/// All sockets of the process.
pub struct Net {
    poll: Poll,
    common: Rc<Common>,
    batch: Events,
    events: VecDeque<Event>,
    waker: Arc<Waker>,
    now: Micros,
    relay: Relay<Socket>,
    dials: Side<Server, Dial>,
    tls: Tls,
    /// By token.
    shaking: BTreeMap<usize, Shaking>,
    shake_queue: VecDeque<Peer>,
    /// Memory that handshakes have given back since the allocator was last asked for its own.
    shaken: usize,
    looking: Vec<ServerId>,
    listeners: Listeners,
    resolver: Resolver,
    nameservers: Nameservers,
    jobs: Jobs,
    sockets: SocketOptions,
    journal: Journal,
}

/// How many events one wait takes from the kernel.
const BATCH: usize = 1024;
/// After so many bytes of buffers were given back the heap is trimmed.
const MUCH: usize = 1024 * 1024;
/// The caller's sources have numbers below this.
const WOKEN: u32 = u32::MAX;
/// The generation of internal tokens whose index is a socket to a nameserver.
const NAMES: u32 = 1;

const KIND_LISTENER: u64 = 0;
const KIND_CLIENT: u64 = 1;
const KIND_SERVER: u64 = 2;
const KIND_INTERNAL: u64 = 3;

/// 2 bits for the kind, 30 for the generation, 32 for the index.
fn token(kind: u64, generation: u32, index: u32) -> Token {
    Token(((kind << 62) | (u64::from(generation) << 32) | u64::from(index)) as usize)
}

fn listener_token(index: usize) -> Token {
    token(KIND_LISTENER, 0, index as u32)
}

fn token_of(peer: Peer) -> Token {
    match peer {
        Peer::Client(id) => token(KIND_CLIENT, id.generation(), id.index()),
        Peer::Server(id) => token(KIND_SERVER, id.generation(), id.index()),
    }
}

impl Net {
    /// No sockets yet. To be called after the last fork.
    pub fn new(options: NetOptions, nameservers: Nameservers) -> io::Result<Net> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), token(KIND_INTERNAL, 0, WOKEN))?);
        let jobs = Jobs::new(Arc::clone(&waker));
        Ok(Net {
            common: Rc::new(Common {
                registry: poll.registry().try_clone()?,
                troubles: RefCell::default(),
            }),
            poll,
            batch: Events::with_capacity(BATCH),
            events: VecDeque::new(),
            waker,
            now: Micros::default(),
            relay: Relay::new(options.limits),
            dials: Side::default(),
            tls: Tls::default(),
            shaking: BTreeMap::new(),
            shake_queue: VecDeque::new(),
            shaken: 0,
            looking: Vec::new(),
            listeners: Listeners::default(),
            resolver: Resolver::new(options.dns),
            nameservers,
            jobs,
            sockets: options.sockets,
            journal: Journal::default(),
        })
    }

    /// Changes the settings; those of TCP sockets reach what is opened later.
    pub fn set_options(&mut self, options: NetOptions) {
        self.relay.set_limits(options.limits);
        self.resolver.set_times(options.dns);
        self.sockets = options.sockets;
    }

    /// Log lines about sockets, to be printed before those that the core wrote at the same event.
    pub fn journal(&mut self) -> &mut Journal {
        for line in self.common.troubles.borrow_mut().drain(..) {
            self.journal.line(Level::Warning, line);
        }
        &mut self.journal
    }

    /// TLS from now on; connections that are open stay as they are.
    pub fn set_tls(&mut self, tls: Tls) {
        self.tls = tls;
    }

    /// The TLS that is in force.
    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    /// For helper threads: wakes the loop with [`Event::Woken`].
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Watches a source of the caller's own for reading: [`Event::Internal`] with this number.
    pub fn watch(&self, source: &mut dyn Source, number: u32) -> io::Result<()> {
        let token = token(KIND_INTERNAL, 0, number);
        self.common.registry.register(source, token, Interest::READABLE)
    }

    // Waiting.

    /// Waits for events, not at all if some are pending, at most `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let pending =
            self.relay.pending() || !self.events.is_empty() || !self.shake_queue.is_empty();
        let timeout = if pending { Duration::ZERO } else { self.nameservers.bound(timeout) };
        match self.poll.poll(&mut self.batch, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Err(_) => self.batch.clear(),
            Ok(()) => {}
        }
        let batch = std::mem::replace(&mut self.batch, Events::with_capacity(0));
        for ready in &batch {
            self.note(ready);
        }
        self.batch = batch;
        while let Some(peer) = self.relay.next_ready() {
            self.events.push_back(Event::Readable(peer));
        }
        if self.nameservers.is_due() {
            self.events.push_back(Event::Names);
        }
        self.let_shake();
        Ok(())
    }

    /// What time it is; to be called after each wait.
    pub fn set_time(&mut self, now: Micros) {
        self.now = now;
    }

    /// The next thing that happened.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Deals with an event that isn't the caller's own.
    pub fn handle<D: Decisions>(&mut self, event: Event, core: &mut D) {
        match event {
            Event::Readable(peer) => self.relay.pump(peer, core),
            Event::Writable(peer) => {
                let listeners = &self.listeners;
                self.relay.flush_with(peer, core, &|number| listeners.descriptor(number));
                self.unstall(peer, core);
            }
            Event::Handshake(peer) => self.shake(peer, core),
            Event::Dialled(id) => self.dialled(id, core),
            Event::Woken => {
                while let Some((id, outcome)) = self.jobs.next_outcome() {
                    core.job_done(id, outcome);
                }
            }
            Event::Names => self.hear_nameservers(core),
            Event::Accept(_) | Event::Internal(_) => {}
        }
    }

    /// A few times a second: ends the pause after a failed accept, gives memory back, looks at
    /// zones.
    pub fn tick(&mut self) {
        if self.relay.take_released().max(self.shaken) >= MUCH {
            self.shaken = 0;
            sys::trim_heap();
        }
        self.resolver.tick(self.now);
        self.ask_nameservers();
        if self.listeners.tick(self.now) {
            self.try_listeners();
        }
    }

    // Listening.

    /// Opens the listening sockets, or uses what has been kept; lines and errors go to the journal.
    pub fn listen(&mut self, options: &ListenOptions, kept: Kept) -> Result<(), Fatal> {
        let (registry, journal) = (&self.common.registry, &mut self.journal);
        self.listeners = Listeners::open(options, kept, registry, journal)?;
        Ok(())
    }

    /// Listens at sockets that a service manager has opened, with these options.
    pub fn listen_at(
        &mut self,
        sockets: Vec<OwnedFd>,
        options: &ListenOptions,
    ) -> Result<(), Fatal> {
        let (registry, journal) = (&self.common.registry, &mut self.journal);
        self.listeners = Listeners::passed(sockets, options, registry, journal)?;
        self.try_listeners();
        Ok(())
    }

    /// Listens where a process that is taken over did.
    pub fn inherit_listeners(&mut self, sockets: Vec<OwnedFd>) -> Result<(), Fatal> {
        let (registry, journal) = (&self.common.registry, &mut self.journal);
        self.listeners = Listeners::inherit(sockets, registry, journal)?;
        self.try_listeners();
        Ok(())
    }

    /// Takes over a stream of another process. On failure the core is told that it is lost.
    pub fn inherit<D: Decisions>(&mut self, peer: Peer, stream: Stream, core: &mut D) {
        match (peer, Socket::reading(stream, token_of(peer), &self.common)) {
            (Peer::Client(id), Ok(socket)) => self.relay.insert_client(id, socket),
            (Peer::Server(id), Ok(socket)) => self.relay.insert_server(id, socket),
            (_, Err(_)) => core.lost(peer, Loss::Receive),
        }
    }

    /// The next connection at a listening socket. Dropping the stream closes it.
    pub fn accept(&mut self, listener: usize) -> Option<(Stream, Origin)> {
        let journal = &mut self.journal;
        self.listeners.accept(listener, &self.sockets, self.now, journal)
    }

    /// Takes over the stream of an accepted client. On failure the core is told that it is lost.
    pub fn add_client<D: Decisions>(&mut self, id: ClientId, stream: Stream, core: &mut D) {
        let token = token_of(Peer::Client(id));
        let may_encrypt = matches!(stream, Stream::Tcp(_)) && self.tls.client().is_some();
        match Socket::reading(stream, token, &self.common) {
            Ok(socket) if may_encrypt => self.watch_client(Peer::Client(id), socket),
            Ok(socket) => self.relay.insert_client(id, socket),
            Err(_) => core.lost(Peer::Client(id), Loss::Receive),
        }
    }

    /// True if nothing of this connection is in our memory.
    pub fn is_quiet(&self, peer: Peer) -> bool {
        self.relay.is_idle(peer)
    }

    /// Stops accepting, and reading between two packets; or goes on.
    pub fn suspend(&mut self, suspended: bool) {
        self.relay.suspend(suspended);
        self.suspend_accepting(suspended);
    }

    /// Stops accepting, or goes on; everybody is served.
    pub fn suspend_accepting(&mut self, suspended: bool) {
        self.listeners.suspend(suspended);
        if !suspended {
            self.try_listeners();
        }
    }

    /// Closes the TCP listening sockets; those who wait to be accepted are lost.
    pub fn close_tcp_listeners(&mut self) {
        self.listeners.close_tcp();
    }

    /// Switches `tcp_defer_accept` of the listening sockets.
    pub fn set_defer_accept(&mut self, on: bool) {
        self.listeners.set_defer_accept(on, &mut self.journal);
    }

    /// The listening sockets, for unlinking the Unix socket at the end.
    pub fn listeners(&mut self) -> &mut Listeners {
        &mut self.listeners
    }

    fn try_listeners(&mut self) {
        let open = self.listeners.open_ones();
        self.events.extend(open.into_iter().map(Event::Accept));
    }

    // Actions.

    /// Opens the connection to a server (`Action::Connect`). The core is told how it ended:
    /// `connected`, or `lost` with `Connect` or `Dns`.
    pub fn connect<D: Decisions>(&mut self, id: ServerId, core: &mut D) {
        let Some(target) = core.target(id) else {
            return core.lost(Peer::Server(id), Loss::CannotConnect);
        };
        match address::host(&target.host, target.port) {
            Host::Place(place) => self.dial(id, &place, core),
            Host::Name => self.connect_by_name(id, target.host, target.port, core),
        }
    }

    /// Looks at what a client sent and goes on reading it (`Action::Resume`).
    pub fn resume<D: Decisions>(&mut self, id: ClientId, core: &mut D) {
        self.relay.resume(id, core);
    }

    /// Sends behind whatever is still unsent (`Action::Send`).
    pub fn send<D: Decisions>(&mut self, peer: Peer, bytes: &[u8], core: &mut D) {
        if !self.shaking.is_empty() {
            self.send_silent(peer, bytes);
        }
        self.relay.send(peer, bytes, core);
    }

    /// As [`Net::send`], with the descriptor of a socket (`Action::SendRow`).
    pub fn send_row<D: Decisions>(
        &mut self,
        id: ClientId,
        row: &[u8],
        socket: Handed,
        core: &mut D,
    ) {
        if matches!(socket, Handed::Listener(_)) {
            self.listeners.share();
        }
        let listeners = &self.listeners;
        self.relay.send_row(id, row, socket, core, &|number| listeners.descriptor(number));
    }

    /// Has a job done by a helper thread (`Action::Job`). The core is told how it ended.
    pub fn start_job(&mut self, id: JobId, job: Job) {
        self.jobs.start(id, job);
    }

    /// Nobody waits for this job any more (`Action::Abandon`).
    pub fn abandon_job(&mut self, id: JobId) {
        self.jobs.abandon(id);
    }

    /// The descriptor of an open connection.
    pub fn descriptor(&self, peer: Peer) -> Option<BorrowedFd<'_>> {
        self.relay.wire(peer)?.descriptor()
    }

    /// The open listening sockets in the order in which they were opened: number, where they
    /// listen, descriptor.
    pub fn listening(&self) -> impl Iterator<Item = (u32, Addr, BorrowedFd<'_>)> {
        self.listeners.open_sockets()
    }

    /// Closes a connection, open or not yet (`Action::Close`).
    pub fn close(&mut self, peer: Peer) {
        self.relay.close(peer);
        self.shaking.remove(&token_of(peer).0);
        if let Peer::Server(id) = peer {
            self.dials.remove(id);
        }
    }

    /// The connections and what is pending on them.
    pub fn relay(&self) -> &Relay<Socket> {
        &self.relay
    }

    /// The resolver, for display.
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// What each connection takes, in bytes, besides its buffers.
    pub fn connection_size(&self) -> usize {
        size_of::<conn::Conn<Socket>>()
    }

    /// How many connections are being opened.
    pub fn dialling(&self) -> usize {
        self.dials.len()
    }

    fn dial<D: Decisions>(&mut self, id: ServerId, place: &Place, core: &mut D) {
        let remote = match place {
            Place::Inet(at) => Addr::Inet(*at),
            Place::Unix(_) => Addr::Unix { pid: 0 },
        };
        core.dialling(id, remote);
        let opened = dial::open(place, &self.sockets).and_then(|stream| {
            let token = token_of(Peer::Server(id));
            Socket::connecting(stream, token, &self.common)
                .map_err(|error| dial::Refused { option: None, error })
        });
        match opened {
            Ok(socket) => self.dials.insert(id, Dial::Connecting(socket)),
            Err(refused) => {
                if let Some(text) = refused.option {
                    self.journal.line(Level::Warning, text);
                }
                let why = reason(&refused.error);
                let text = format!("sbuf_connect failed to connect to {place}: {why}");
                self.journal.line(Level::Warning, text);
                self.dials.remove(id);
                core.unreachable(id, &why);
                core.lost(Peer::Server(id), Loss::Connect);
            }
        }
    }

    fn dialled<D: Decisions>(&mut self, id: ServerId, core: &mut D) {
        let Some(Dial::Connecting(socket)) = self.dials.get(id) else {
            return;
        };
        let ends = match socket.stream().check() {
            Ok(()) => socket.stream().ends(),
            Err(error) => Err(error),
        };
        if matches!(&ends, Err(error) if error.kind() == io::ErrorKind::NotConnected) {
            return;
        }
        let Some(Dial::Connecting(mut socket)) = self.dials.remove(id) else {
            return;
        };
        match ends.and_then(|ends| socket.want_write(false).map(|()| ends)) {
            Ok((local, remote)) => {
                self.relay.insert_server(id, socket);
                core.connected(id, local, remote);
            }
            Err(error) => {
                core.unreachable(id, &reason(&error));
                core.lost(Peer::Server(id), Loss::Connect);
            }
        }
    }

    /// Goes on receiving what had to wait for room for sending.
    fn unstall<D: Decisions>(&mut self, peer: Peer, core: &mut D) {
        let Some(socket) = self.relay.wire_mut(peer).filter(|socket| socket.is_stalled()) else {
            return;
        };
        socket.forget_stall();
        let still_wanted = self.relay.pending_on(peer).unsent > 0;
        let socket = self.relay.wire_mut(peer).filter(|_| !still_wanted);
        if socket.is_some_and(|socket| socket.want_write(false).is_err()) {
            return core.lost(peer, Loss::Receive);
        }
        self.relay.mark_readable(peer, false);
        self.relay.pump(peer, core);
    }

    /// Turns one report of the kernel into events.
    fn note(&mut self, ready: &Ready) {
        let bits = ready.token().0 as u64;
        let index = bits as u32;
        let generation = (bits >> 32) as u32 & crate::base::arena::GENERATION_MASK;
        let peer = match bits >> 62 {
            KIND_LISTENER => return self.events.push_back(Event::Accept(index as usize)),
            KIND_CLIENT => Peer::Client(ClientId::from_parts(index, generation)),
            KIND_SERVER => {
                let id = ServerId::from_parts(index, generation);
                if self.dials.get(id).is_some() {
                    return self.events.push_back(Event::Dialled(id));
                }
                Peer::Server(id)
            }
            _ if generation == NAMES => {
                let error = ready.is_error() || ready.is_read_closed();
                let (readable, writable) = (ready.is_readable(), ready.is_writable());
                return self.nameservers.note(index as i32, readable || error, writable || error);
            }
            _ if index == WOKEN => return self.events.push_back(Event::Woken),
            _ => return self.events.push_back(Event::Internal(index)),
        };
        let hangup = ready.is_read_closed() || ready.is_error();
        if !self.shaking.is_empty() && self.note_shaking(peer, hangup) {
            return;
        }
        if ready.is_writable() {
            self.events.push_back(Event::Writable(peer));
        }
        if ready.is_readable() || hangup {
            self.relay.mark_readable(peer, hangup);
            self.events.push_back(Event::Readable(peer));
        }
    }
}
