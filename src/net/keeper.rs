//! The keeper: what is left of a process that has handed over. TLS can't be handed over, so it goes on
//! encrypting: each connection's bytes go through a socketpair whose other end the successor has. It
//! ends with the last of them.
//!
//! Bytes are read from one side only when the other side has taken all that was read before. What is
//! in OpenSSL's buffers no event tells: a session is read until it has nothing more.

use super::conn::until_done;
use super::stream::{Socket, Stream};
use super::tls::{Progress, Session};
use super::{facts, sys, token_of, Net, MUCH};
use crate::base::{Buf, Journal, Level, Spare};
use crate::core::Peer;
use mio::event::{Event, Source};
use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Registry, Token};
use slab::Slab;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// How much is received at a time, in bytes.
const SCRATCH: usize = 64 * 1024;
/// How often one side of a pair is received from before others get a turn.
const ROUNDS: u32 = 4;
/// How long the other side has for the last words of a successor.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// The same when the keeper is to end soon.
const SHORT_WORDS: Duration = Duration::from_secs(1);
/// How many events one wait takes from the kernel.
const BATCH: usize = 1024;
/// About what OpenSSL has for one session, in bytes.
const SESSION: usize = 8 * 1024;
/// The caller's own source.
const OWN: Token = Token(usize::MAX);

/// One side of a pair, as the kernel tells of it.
#[derive(Default)]
struct Side {
    /// There may be bytes to receive.
    readable: bool,
    /// There may be room for sending.
    writable: bool,
    /// The other end sends no more: a short receive doesn't mean "empty".
    hangup: bool,
    /// An event is wanted when there is room for sending.
    asks: bool,
    /// What it has refused.
    unsent: Buf,
}

/// A connection that is kept.
struct Pair {
    session: Box<Session>,
    /// To the successor.
    inside: UnixStream,
    near: Side,
    far: Side,
    /// The handshake is not over: the hash of the certificate that we show.
    shaking: Option<Rc<[u8]>>,
    /// The other side has ended; the successor has still to be given what came before.
    ended: bool,
    /// The successor takes no more, but may have said something.
    deaf: bool,
    queued: bool,
    /// It is among those that leave.
    leaves: bool,
}

/// What becomes of a pair.
#[derive(PartialEq, Eq)]
enum Next {
    /// It waits for events.
    Wait,
    /// It has more to do.
    Again,
    /// It is over.
    End,
}

/// All connections that are kept.
pub struct Keeper {
    poll: Poll,
    batch: Events,
    pairs: Slab<Pair>,
    ready: VecDeque<usize>,
    /// Those whose successor has ended, and when they are given up.
    leaving: VecDeque<(Instant, usize)>,
    last_words: Duration,
    scratch: Box<[u8]>,
    spare: Spare,
    /// Memory of connections that are gone, since the allocator was last asked for its own.
    freed: usize,
    journal: Journal,
}

impl Net {
    /// Becomes the keeper of these encrypted connections, each with our end of its [`Part::Pair`](super::carry::Part).
    /// Everything else is closed, and nobody is told. `own` is a source that was watched here and
    /// is so there.
    pub fn into_keeper(
        self,
        pairs: Vec<(Peer, OwnedFd)>,
        own: &mut dyn Source,
    ) -> io::Result<Keeper> {
        // It may not have been watched.
        let _ = self.common.registry.deregister(own);
        let kept = self.into_sessions(pairs);
        let mut keeper = Keeper::new(own)?;
        for (session, ours, unsent, shaking) in kept {
            keeper.add(session, ours, unsent, shaking);
        }
        Ok(keeper)
    }

    /// What is kept. When this is done everything else is closed: descriptors are to be had again.
    fn into_sessions(self, pairs: Vec<(Peer, OwnedFd)>) -> Vec<Kept> {
        let mut pairs: BTreeMap<usize, OwnedFd> =
            pairs.into_iter().map(|(peer, ours)| (token_of(peer).0, ours)).collect();
        let Net { relay, shaking, .. } = self;
        let open = relay
            .into_wires()
            .map(|(peer, socket, unsent)| (token_of(peer).0, socket, unsent, None));
        let begun = Net::into_handshakes(shaking)
            .map(|(token, socket, end_point)| (token, socket, Buf::default(), Some(end_point)));
        let mut kept = Vec::new();
        for (token, socket, unsent, shaking) in open.chain(begun) {
            match (session(socket), pairs.remove(&token)) {
                (Some(session), Some(ours)) => kept.push((session, ours, unsent, shaking)),
                (Some(mut session), None) => session.fall_silent(),
                (None, _) => {}
            }
        }
        kept
    }
}

/// A session, our end of its pair, what it has refused, what its handshake needs.
type Kept = (Box<Session>, OwnedFd, Buf, Option<Rc<[u8]>>);

/// The session of a socket that is encrypted. Another one is closed.
fn session(socket: Socket) -> Option<Box<Session>> {
    match socket.unwatched() {
        Ok(Stream::Tls(session)) => Some(session),
        _ => None,
    }
}

fn tokens(index: usize) -> (Token, Token) {
    let near = index.saturating_mul(2);
    (Token(near), Token(near.saturating_add(1)))
}

impl Keeper {
    /// Keeps nothing yet. Watches a source of the caller's own for reading.
    fn new(own: &mut dyn Source) -> io::Result<Keeper> {
        let poll = Poll::new()?;
        poll.registry().register(own, OWN, Interest::READABLE)?;
        Ok(Keeper {
            poll,
            batch: Events::with_capacity(BATCH),
            pairs: Slab::new(),
            ready: VecDeque::new(),
            leaving: VecDeque::new(),
            last_words: LAST_WORDS,
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            spare: Spare::default(),
            freed: 0,
            journal: Journal::default(),
        })
    }

    /// Keeps a connection that is established, or whose handshake is to be made.
    fn add(
        &mut self,
        mut session: Box<Session>,
        ours: OwnedFd,
        unsent: Buf,
        shaking: Option<Rc<[u8]>>,
    ) {
        let mut inside = UnixStream::from_std(StdUnixStream::from(ours));
        session.set_readable(false);
        let entry = self.pairs.vacant_entry();
        let (near, far) = tokens(entry.key());
        let registry = self.poll.registry();
        let watched = registry
            .register(&mut inside, near, Interest::READABLE)
            .and_then(|()| registry.register(session.stream_mut(), far, Interest::READABLE));
        if let Err(error) = watched {
            let text = format!("a TLS connection can't be kept: {error}");
            return self.journal.line(Level::Warning, text);
        }
        let side = || Side { readable: true, writable: true, ..Side::default() };
        self.ready.push_back(entry.key());
        entry.insert(Pair {
            session,
            inside,
            near: side(),
            far: Side { unsent, ..side() },
            shaking,
            ended: false,
            deaf: false,
            queued: true,
            leaves: false,
        });
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// True when there is nothing left to do.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// What is to be logged.
    pub fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// Gives memory that nobody uses back to the system; to be called once when everything else of
    /// the process is gone.
    pub fn trim(&mut self) {
        self.freed = 0;
        self.pairs.shrink_to_fit();
        sys::trim_heap();
    }

    /// Whoever doesn't take the last words of the successor at once is given up soon.
    pub fn hurry(&mut self) {
        self.last_words = SHORT_WORDS;
        let limit = Instant::now().checked_add(SHORT_WORDS);
        for (at, _) in &mut self.leaving {
            *at = limit.map_or(*at, |limit| limit.min(*at));
        }
    }

    /// Waits for events and deals with them. True if the caller's source has something.
    pub fn turn(&mut self) -> io::Result<bool> {
        let leaves = self.leaving.front();
        self.turn_within(leaves.map(|(at, _)| at.saturating_duration_since(Instant::now())))
    }

    fn turn_within(&mut self, limit: Option<Duration>) -> io::Result<bool> {
        let timeout = if self.ready.is_empty() { limit } else { Some(Duration::ZERO) };
        let mut batch = std::mem::replace(&mut self.batch, Events::with_capacity(0));
        if let Err(error) = self.poll.poll(&mut batch, timeout) {
            if error.kind() != ErrorKind::Interrupted {
                return Err(error);
            }
            batch.clear();
        }
        let mut is_own = false;
        for event in &batch {
            match event.token() {
                OWN => is_own = true,
                Token(token) => self.note(token / 2, token % 2 == 0, event),
            }
        }
        self.batch = batch;
        for _ in 0..self.ready.len() {
            if let Some(index) = self.ready.pop_front() {
                self.go_on(index);
            }
        }
        self.give_up();
        Ok(is_own)
    }

    fn note(&mut self, index: usize, is_near: bool, event: &Event) {
        let Some(pair) = self.pairs.get_mut(index) else { return };
        let hangup = event.is_read_closed() || event.is_error();
        let side = if is_near { &mut pair.near } else { &mut pair.far };
        side.hangup |= hangup;
        // OpenSSL may want the one for the other.
        side.writable |= event.is_writable() || !is_near || hangup;
        if event.is_readable() || hangup {
            side.readable = true;
            if !is_near {
                pair.session.set_readable(hangup);
            }
        }
        if event.is_writable() && !is_near && pair.session.is_stalled() {
            pair.session.forget_stall();
            pair.far.readable = true;
        }
        if !std::mem::replace(&mut pair.queued, true) {
            self.ready.push_back(index);
        }
    }

    fn go_on(&mut self, index: usize) {
        let Some(pair) = self.pairs.get_mut(index) else { return };
        pair.queued = false;
        let mut next = match pair.shaking.is_some() {
            true => pair.shake(&mut self.spare, &mut self.journal),
            false => Next::Again,
        };
        if next == Next::Again {
            next = pair.pump(&mut self.scratch, &mut self.spare, &mut self.journal);
        }
        if next != Next::End {
            let (near, far) = tokens(index);
            if pair.ask(near, far, self.poll.registry()).is_err() {
                next = Next::End;
            }
        }
        match next {
            Next::Wait => {}
            Next::Again => {
                pair.queued = true;
                self.ready.push_back(index);
            }
            Next::End => return self.remove(index),
        }
        if pair.is_leaving() && !std::mem::replace(&mut pair.leaves, true) {
            let at = Instant::now().checked_add(self.last_words);
            self.leaving.extend(at.map(|at| (at, index)));
        }
    }

    /// Closes both sides; the other one is told that nothing was cut off, if that goes for it.
    fn remove(&mut self, index: usize) {
        let Some(mut pair) = self.pairs.try_remove(index) else { return };
        pair.near.unsent.clear(&mut self.spare);
        pair.far.unsent.clear(&mut self.spare);
        // Unread bytes would turn the close into a reset, which destroys the last words.
        let _ = pair.session.stream_mut().read(&mut self.scratch);
        drop(pair);
        self.freed = self.freed.saturating_add(SESSION);
        if self.spare.take_released().max(self.freed) >= MUCH {
            self.trim();
        }
    }

    /// Who hasn't taken the last words of its successor in time is closed.
    fn give_up(&mut self) {
        while let Some((_, index)) = self.leaving.front().copied() {
            let is_late = self.leaving.front().is_some_and(|(at, _)| *at <= Instant::now());
            // Nobody is added, so that a number means the same as long as it means anything.
            if !is_late && self.pairs.contains(index) {
                return;
            }
            self.leaving.pop_front();
            self.remove(index);
        }
    }
}

impl Pair {
    /// Goes on with the handshake. Its facts are the first that the successor gets.
    fn shake(&mut self, spare: &mut Spare, journal: &mut Journal) -> Next {
        // What the successor may say before that is for nobody; that it leaves counts.
        while self.near.readable {
            match self.inside.read(&mut [0; 64]) {
                Ok(0) => return Next::End,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.near.readable = false,
                Err(_) => return Next::End,
            }
        }
        let text = match self.session.shake() {
            Progress::Reads => return Next::Wait,
            Progress::Writes => {
                self.far.writable = false;
                return Next::Wait;
            }
            Progress::Done => {
                let facts = self.session.facts(self.shaking.take());
                let _ = sys::acknowledge(self.session.stream());
                self.near.unsent.push(&facts::write(&facts), spare);
                self.far.readable = true;
                return Next::Again;
            }
            Progress::Failed(text) => text,
        };
        journal.line(Level::Warning, format!("TLS handshake error: {text}"));
        Next::End
    }

    /// Moves bytes both ways.
    fn pump(&mut self, scratch: &mut [u8], spare: &mut Spare, journal: &mut Journal) -> Next {
        if self.flush_far(spare).is_err() || self.outwards(scratch, spare).is_err() {
            return Next::End;
        }
        self.flush_near(spare);
        self.inwards(scratch, spare, journal);
        let near_is_done = self.near.unsent.is_empty();
        if self.ended && near_is_done {
            return Next::End;
        }
        let goes_outwards = self.near.readable && self.far.unsent.is_empty();
        let goes_inwards = self.far.readable && near_is_done && !self.is_unheard();
        match goes_outwards || goes_inwards {
            true => Next::Again,
            false => Next::Wait,
        }
    }

    /// True if nothing more is received from the other side.
    fn is_unheard(&self) -> bool {
        self.ended || self.deaf
    }

    /// True if the successor has closed its end; what it said last has still to be sent.
    fn is_leaving(&self) -> bool {
        self.deaf || self.near.hangup
    }

    /// Hands on what the successor says. An error means that one of both is gone.
    fn outwards(&mut self, scratch: &mut [u8], spare: &mut Spare) -> io::Result<()> {
        for _ in 0..ROUNDS {
            if !self.near.readable || !self.far.unsent.is_empty() {
                break;
            }
            let count = match self.inside.read(scratch) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.near.readable = false;
                    break;
                }
                // All that it said before has been sent.
                Ok(0) | Err(_) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
            };
            self.near.readable = count == scratch.len() || self.near.hangup;
            let said = scratch.get(..count).unwrap_or_default();
            let sent = until_done(|| self.session.send(said))?;
            let rest = said.get(sent..).unwrap_or_default();
            self.far.writable = rest.is_empty();
            self.far.unsent.push(rest, spare);
        }
        Ok(())
    }

    fn flush_far(&mut self, spare: &mut Spare) -> io::Result<()> {
        if self.far.writable && !self.far.unsent.is_empty() {
            let sent = until_done(|| self.session.send(self.far.unsent.as_slice()))?;
            self.far.unsent.take(sent, spare);
            self.far.writable = self.far.unsent.is_empty();
        }
        Ok(())
    }

    /// Hands on what the other side says.
    fn inwards(&mut self, scratch: &mut [u8], spare: &mut Spare, journal: &mut Journal) {
        for _ in 0..ROUNDS {
            if !self.far.readable || self.is_unheard() || !self.near.unsent.is_empty() {
                break;
            }
            match self.session.recv(scratch) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.far.readable = false,
                Err(error) => {
                    journal.line(Level::Warning, error.to_string());
                    self.ended = true;
                }
                Ok(0) => self.ended = true,
                Ok(count) => {
                    let heard = scratch.get(..count).unwrap_or_default();
                    let sent = until_done(|| self.inside.write(heard));
                    let sent = sent.unwrap_or_else(|_| self.fall_deaf(count));
                    let rest = heard.get(sent..).unwrap_or_default();
                    self.near.writable = rest.is_empty();
                    self.near.unsent.push(rest, spare);
                }
            }
        }
    }

    fn flush_near(&mut self, spare: &mut Spare) {
        if !self.near.writable || self.near.unsent.is_empty() {
            return;
        }
        match until_done(|| self.inside.write(self.near.unsent.as_slice())) {
            Ok(sent) => {
                self.near.unsent.take(sent, spare);
                self.near.writable = self.near.unsent.is_empty();
            }
            Err(_) => {
                self.near.unsent.clear(spare);
                self.fall_deaf(0);
            }
        }
    }

    /// The successor has closed its end: so many bytes are for nobody. What it said before may still
    /// be here.
    fn fall_deaf(&mut self, count: usize) -> usize {
        self.near.readable = true;
        self.deaf = true;
        count
    }

    /// Asks for events when there is room where bytes wait for it.
    fn ask(&mut self, near: Token, far: Token, registry: &Registry) -> io::Result<()> {
        let asks = !self.near.unsent.is_empty();
        if asks != self.near.asks {
            self.near.asks = asks;
            registry.reregister(&mut self.inside, near, interest(asks))?;
        }
        let shakes = self.shaking.is_some() && !self.far.writable;
        let asks = shakes || !self.far.unsent.is_empty() || self.session.is_stalled();
        if asks != self.far.asks {
            self.far.asks = asks;
            registry.reregister(self.session.stream_mut(), far, interest(asks))?;
        }
        Ok(())
    }
}

fn interest(asks: bool) -> Interest {
    match asks {
        true => Interest::READABLE | Interest::WRITABLE,
        false => Interest::READABLE,
    }
}
