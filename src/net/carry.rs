//! Connections and listening sockets that go from one process to the next (doc/handoff.md): what is
//! told of each besides its descriptor. Telling changes nothing; who is told believes nothing.
//!
//! What is about to happen to a connection is not told but found out again: everything that is held
//! is looked at once more, what was not sent asks for room, and who waits for that room comes upon
//! it. So nothing is to be pumped before all are here; the first turn after that does.

use super::conn::{Conn, Flow, Wire};
use super::listen::Fatal;
use super::relay::Relay;
use super::stream::{Socket, Stream};
use super::{token_of, Net};
use crate::base::fields::{self, Field, Fields};
use crate::base::Spare;
use crate::core::{Decisions, Loss, Peer};
use crate::tags;
use mio::net::{TcpStream, UnixStream};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

#[cfg(test)]
mod tests;

tags! {
    /// What is told of a connection's bytes, in the column `wire`.
    WIRE:
    1 HELD "bytes from it that nothing has been decided about yet",
    2 UNSENT "bytes for it that its socket has not taken",
    3 DROP "of its packet in progress, so many bytes are still to be swallowed",
    4 PASS "behind those, so many bytes are still to be handed on",
    5 TO "the number of whom they are handed on to",
    6 WANT "so many bytes of its next packet must be there before that is asked about again",
    7 READABLE "there may be more from it than the last receive has brought",
    8 STOPPED "nothing is received from it any more",
    9 UNDRAINED "something has come from this server since it was last found heard out",
    10 SPOKEN_TO "the last bytes for it were the pooler's own",
    11 HALF_FROM "the number of who sent it the beginning of a packet",
    12 CUT "it has the beginning of a packet whose end will never come",
    13 KEPT "its socket is one end of a socketpair; a keeper encrypts what goes through it",
    14 SILENT "a client that has not said anything and may begin with TLS",
    16 UNIX "it is a Unix socket",
    15 SHAKING "a client whose handshake its keeper makes: its facts (see there) come first; HELD of them",
}

tags! {
    /// What is told of a listening socket, in the column `wire`.
    LISTENER:
    1 FILE "the path of the Unix socket that who listens removes at the end; a service manager's is not",
    2 SOLE "nobody else has it: who waits at it when it is closed would be lost",
}

/// True if there is nothing to be done about a connection of which this is told before something
/// comes from it.
pub fn is_idle(wire: &[u8]) -> bool {
    fields::read(wire).all(|field| matches!(field.tag, KEPT | UNIX | SPOKEN_TO))
}

/// Says who has a number.
pub type Numbers<'a> = &'a dyn Fn(u64) -> Option<Peer>;

/// A client on its way to TLS.
pub(super) enum Shaking<'a> {
    /// It has not said anything.
    Silent(&'a Socket),
    /// The handshake goes on.
    Begun,
    /// A keeper makes the handshake, and has told these bytes of its facts.
    Told(&'a Socket, &'a [u8]),
}

/// What goes to a successor as the socket of a connection.
pub enum Part<'a> {
    /// Its own.
    Socket(BorrowedFd<'a>),
    /// One end of a socketpair; the other one is for the keeper.
    Pair {
        /// For the successor.
        theirs: OwnedFd,
        /// For [`Net::into_keeper`](super::Net::into_keeper).
        ours: OwnedFd,
    },
}

impl Net {
    /// What a successor has to know of this connection besides what the core tells. `number` says
    /// how others are referred to. Changes nothing.
    pub fn hand_out(&self, peer: Peer, number: &dyn Fn(Peer) -> u64) -> Vec<u8> {
        let mut fields = Fields::default();
        if let Some(conn) = self.relay.conn(peer) {
            let stream = conn.wire.stream();
            fields.flag(KEPT, is_kept(stream));
            fields.flag(UNIX, matches!(stream, Stream::Unix(_)));
            // What OpenSSL has refused may have been sent in part: the keeper sends the rest.
            let keeps_unsent = matches!(stream, Stream::Tls(_));
            hand_out(peer, conn, keeps_unsent, number, &mut fields);
            return fields.into_bytes();
        }
        match self.shaking_part(peer) {
            None => {}
            Some(Shaking::Silent(_)) => fields.flag(SILENT, true),
            Some(Shaking::Begun) => {
                fields.flag(KEPT, true);
                fields.flag(SHAKING, true);
            }
            Some(Shaking::Told(_, heard)) => {
                fields.flag(KEPT, true);
                fields.flag(SHAKING, true);
                fields.put(HELD, heard);
            }
        }
        fields.into_bytes()
    }

    /// The socket that goes to a successor with it; `None` if there is none, or none of use to
    /// anybody else: a connection that is being opened.
    pub fn part(&self, peer: Peer) -> io::Result<Option<Part<'_>>> {
        let socket = match (self.relay.wire(peer), self.shaking_part(peer)) {
            (Some(socket), _) | (_, Some(Shaking::Silent(socket) | Shaking::Told(socket, _))) => {
                socket
            }
            (None, Some(Shaking::Begun)) => return pair().map(Some),
            (None, None) => return Ok(None),
        };
        match socket.stream() {
            Stream::Tls(_) => pair().map(Some),
            stream => Ok(Some(Part::Socket(stream.as_fd()))),
        }
    }

    /// Goes on with a connection of another process. `peers` says who a number is. All of them have
    /// to be taken in before the next [`Net::wait`]. On failure the core is told that it is lost.
    pub fn take_in<D: Decisions>(
        &mut self,
        peer: Peer,
        socket: OwnedFd,
        wire: &[u8],
        peers: Numbers<'_>,
        core: &mut D,
    ) {
        if self.take_in_socket(peer, socket, wire, peers).is_err() {
            core.lost(peer, Loss::Receive);
        }
    }

    fn take_in_socket(
        &mut self,
        peer: Peer,
        socket: OwnedFd,
        wire: &[u8],
        peers: Numbers<'_>,
    ) -> io::Result<()> {
        let has = |tag| fields::read(wire).any(|field| field.tag == tag);
        let stream = stream(socket, has(KEPT), has(UNIX));
        let is_tcp = matches!(stream, Stream::Tcp(_));
        let socket = Socket::reading(stream, token_of(peer), &self.common)?;
        let is_client = matches!(peer, Peer::Client(_));
        if is_client && has(SILENT) && is_tcp && self.tls.client().is_some() {
            self.watch_client(peer, socket);
        } else if is_client && has(SHAKING) && has(KEPT) {
            let heard = fields::read(wire).find(|field| field.tag == HELD);
            self.watch_keeper(peer, socket, heard.map_or(b"", |field| field.value));
        } else {
            self.relay.take_in(peer, socket, wire, peers)?;
        }
        Ok(())
    }

    /// What a successor has to know of the listening socket with this number.
    pub fn hand_out_listener(&self, number: u32) -> Vec<u8> {
        let mut fields = Fields::default();
        let file = self.listeners.file_of(number);
        fields.put_some(FILE, file.as_deref().map(|file| file.as_os_str().as_encoded_bytes()));
        fields.flag(SOLE, self.listeners.is_sole());
        fields.into_bytes()
    }

    /// Listens where another process did: sockets, and what it has told of each.
    pub fn take_in_listeners(&mut self, sockets: Vec<(OwnedFd, Vec<u8>)>) -> Result<(), Fatal> {
        let is_sole = sockets.iter().all(|(_, wire)| is_sole(wire));
        let sockets = sockets.into_iter().map(|(socket, wire)| (socket, file(&wire))).collect();
        let (registry, journal) = (&self.common.registry, &mut self.journal);
        self.listeners.take_in(sockets, is_sole, registry, journal)?;
        self.try_listeners();
        Ok(())
    }
}

fn is_kept(stream: &Stream) -> bool {
    matches!(stream, Stream::Tls(_) | Stream::Kept(_))
}

fn pair<'a>() -> io::Result<Part<'a>> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    Ok(Part::Pair { theirs: theirs.into(), ours: ours.into() })
}

/// What is told of a socket is believed, and that it does not block: to ask ten thousand of them
/// would take longer than anything else.
fn stream(socket: OwnedFd, is_kept: bool, is_unix: bool) -> Stream {
    match (is_kept, is_unix) {
        (true, _) => Stream::Kept(UnixStream::from_std(socket.into())),
        (_, true) => Stream::Unix(UnixStream::from_std(socket.into())),
        (false, false) => Stream::Tcp(TcpStream::from_std(socket.into())),
    }
}

impl<W: Wire> Relay<W> {
    /// What is told of a connection's bytes; `None` if there is none.
    pub fn hand_out(&self, peer: Peer, number: &dyn Fn(Peer) -> u64) -> Option<Vec<u8>> {
        let mut fields = Fields::default();
        hand_out(peer, self.conn(peer)?, false, number, &mut fields);
        Some(fields.into_bytes())
    }

    /// Goes on with a connection of which that has been told.
    pub fn take_in(
        &mut self,
        peer: Peer,
        wire: W,
        told: &[u8],
        peers: Numbers<'_>,
    ) -> io::Result<()> {
        self.put_in(peer, wire, |conn, spare| take_in(conn, told, peers, spare))
    }
}

/// The file of a listening socket.
fn file(wire: &[u8]) -> Option<std::path::PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let field = fields::read(wire).find(|field| field.tag == FILE);
    field.map(|field| std::ffi::OsStr::from_bytes(field.value).into())
}

/// True if nobody else has a listening socket.
fn is_sole(wire: &[u8]) -> bool {
    fields::read(wire).any(|field| field.tag == SOLE)
}

/// Writes what is told of a connection.
fn hand_out<W: Wire>(
    peer: Peer,
    conn: &Conn<W>,
    keeps_unsent: bool,
    number: &dyn Fn(Peer) -> u64,
    fields: &mut Fields,
) {
    let Conn {
        // What carries it: the descriptor, and KEPT.
        wire: _,
        flow: Flow { drop, pass, to, want },
        readable,
        // The first event tells again.
        hangup: _,
        // Who is asked again is told to wait again.
        waiting: _,
        stopped,
        // The core has forgotten it; there is no row.
        lost: _,
        // All that is held is looked at.
        ask: _,
        undrained,
        // Where a turn is of use there is one.
        queued: _,
        spoken_to,
        half_from,
        cut,
        held,
        unsent,
        // They come upon the unsent bytes again.
        blocks: _,
    } = conn;
    if !held.is_empty() {
        fields.put(HELD, held.as_slice());
    }
    if !unsent.is_empty() && !keeps_unsent {
        fields.put(UNSENT, unsent.as_slice());
    }
    fields.count(DROP, (*drop).into());
    fields.count(PASS, (*pass).into());
    if let Some(to) = to.filter(|_| *pass > 0) {
        fields.number(TO, number(to));
    }
    fields.count(WANT, (*want).into());
    fields.flag(READABLE, *readable);
    fields.flag(STOPPED, *stopped);
    fields.flag(UNDRAINED, *undrained && matches!(peer, Peer::Server(_)));
    fields.flag(SPOKEN_TO, *spoken_to);
    if let Some(from) = half_from {
        fields.number(HALF_FROM, number(*from));
    }
    fields.flag(CUT, *cut);
}

/// Makes a connection what was told of it.
fn take_in<W: Wire>(conn: &mut Conn<W>, wire: &[u8], peers: Numbers<'_>, spare: &mut Spare) {
    for field in fields::read(wire) {
        let peer = |field: Field<'_>| peers(field.number());
        match field.tag {
            HELD => conn.held.push(field.value, spare),
            UNSENT => conn.unsent.push(field.value, spare),
            DROP => conn.flow.drop = field.number_u32(),
            PASS => conn.flow.pass = field.number_u32(),
            TO => conn.flow.to = peer(field),
            WANT => conn.flow.want = field.number_u32(),
            READABLE => conn.readable = true,
            STOPPED => conn.stopped = true,
            UNDRAINED => conn.undrained = true,
            SPOKEN_TO => conn.spoken_to = true,
            HALF_FROM => conn.half_from = peer(field),
            CUT => conn.cut = true,
            _ => {}
        }
    }
    if conn.flow.to.is_none() {
        // Whoever was to get the rest is gone.
        let Flow { drop, pass, .. } = conn.flow;
        conn.flow.drop = drop.saturating_add(pass);
        conn.flow.pass = 0;
    }
    conn.ask = !conn.held.is_empty();
}
