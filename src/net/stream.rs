//! Sockets of both families as [`Wire`]s.

use super::conn::Wire;
use super::tls::Session;
use crate::core::Addr;
use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use nix::sys::socket::{getsockopt, sendmsg, sockopt, ControlMessage, MsgFlags};
use openssl::ssl::Ssl;
use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::Rc;

/// A connected (or connecting) stream socket, non-blocking.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls(Box<Session>),
    /// What a keeper encrypts: one end of a socketpair. What is known of the connection itself has
    /// been handed over with it.
    Kept(UnixStream),
}

impl Stream {
    /// Both ends: ours, theirs. Fails if the socket is not connected.
    pub fn ends(&self) -> io::Result<(Addr, Addr)> {
        let ends = |stream: &TcpStream| {
            Ok((Addr::Inet(stream.local_addr()?), Addr::Inet(stream.peer_addr()?)))
        };
        match self {
            Stream::Tcp(stream) => ends(stream),
            Stream::Tls(session) => ends(session.stream()),
            Stream::Unix(stream) => {
                stream.peer_addr()?;
                let pid = self.peer().map_or(0, |(pid, _)| pid);
                Ok((Addr::Unix { pid: 0 }, Addr::Unix { pid }))
            }
            Stream::Kept(_) => Err(ErrorKind::Unsupported.into()),
        }
    }

    /// Process id and user id at the other end of a Unix socket.
    pub fn peer(&self) -> Option<(u32, u32)> {
        match self {
            Stream::Tcp(_) | Stream::Tls(_) | Stream::Kept(_) => None,
            Stream::Unix(stream) => {
                let who = getsockopt(stream, sockopt::PeerCredentials).ok()?;
                Some((u32::try_from(who.pid()).unwrap_or(0), who.uid()))
            }
        }
    }

    /// The error that is pending on the socket; `Ok` if there is none.
    pub fn check(&self) -> io::Result<()> {
        let error = match self {
            Stream::Tcp(stream) => stream.take_error()?,
            Stream::Unix(stream) | Stream::Kept(stream) => stream.take_error()?,
            Stream::Tls(session) => session.stream().take_error()?,
        };
        error.map_or(Ok(()), Err)
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Stream::Tcp(stream) => stream,
            Stream::Unix(stream) | Stream::Kept(stream) => stream,
            Stream::Tls(session) => session.stream_mut(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) | Stream::Kept(stream) => stream.as_fd(),
            Stream::Tls(session) => session.stream().as_fd(),
        }
    }
}

/// A stream whose events are reported under a token. Dropping it closes the socket.
pub struct Socket {
    stream: Stream,
    token: Token,
    on: Rc<Common>,
}

/// What all sockets share.
pub(super) struct Common {
    /// Where they are registered.
    pub(super) registry: Registry,
    /// Log lines about connections that have failed.
    pub(super) troubles: RefCell<Vec<String>>,
}

impl Socket {
    /// Registers a stream, for reading only.
    pub(super) fn reading(stream: Stream, token: Token, on: &Rc<Common>) -> io::Result<Socket> {
        Socket::register(stream, token, on, Interest::READABLE)
    }

    /// Registers a stream that is connecting.
    pub(super) fn connecting(stream: Stream, token: Token, on: &Rc<Common>) -> io::Result<Socket> {
        Socket::register(stream, token, on, Interest::WRITABLE)
    }

    fn register(
        mut stream: Stream,
        token: Token,
        on: &Rc<Common>,
        interest: Interest,
    ) -> io::Result<Socket> {
        on.registry.register(stream.source(), token, interest)?;
        Ok(Socket { stream, token, on: Rc::clone(on) })
    }

    /// The stream.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The stream, watched by nobody.
    pub(super) fn unwatched(mut self) -> io::Result<Stream> {
        self.on.registry.deregister(self.stream.source())?;
        Ok(self.stream)
    }

    /// The session of an encrypted stream.
    pub(super) fn session(&mut self) -> Option<&mut Session> {
        match &mut self.stream {
            Stream::Tls(session) => Some(session),
            Stream::Tcp(_) | Stream::Unix(_) | Stream::Kept(_) => None,
        }
    }

    /// Goes over to TLS; the handshake is still to be made.
    pub(super) fn encrypted(self, ssl: Ssl) -> io::Result<Socket> {
        let Stream::Tcp(stream) = self.stream else {
            return Err(ErrorKind::Unsupported.into());
        };
        let session = Session::new(ssl, stream)?;
        Ok(Socket { stream: Stream::Tls(Box::new(session)), ..self })
    }

    /// The first byte that waits to be received, without receiving it; `None` at the end.
    pub(super) fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut first = [0];
        let count = match &self.stream {
            Stream::Tcp(stream) => stream.peek(&mut first)?,
            _ => return Err(ErrorKind::Unsupported.into()),
        };
        Ok(first.first().copied().filter(|_| count > 0))
    }

    /// Receives what is there, once, and forgets it: unread bytes would turn the close into a reset,
    /// which destroys our last words.
    pub(super) fn forget_input(&mut self) {
        let mut bytes = [0; 4096];
        let _ = match &mut self.stream {
            Stream::Tcp(stream) => stream.read(&mut bytes),
            Stream::Unix(stream) | Stream::Kept(stream) => stream.read(&mut bytes),
            Stream::Tls(session) => session.stream_mut().read(&mut bytes),
        };
    }

    /// True if receiving waits for room for sending.
    pub(super) fn is_stalled(&self) -> bool {
        matches!(&self.stream, Stream::Tls(session) if session.is_stalled())
    }

    /// Receiving is going to be tried again.
    pub(super) fn forget_stall(&mut self) {
        if let Some(session) = self.session() {
            session.forget_stall();
        }
    }

    /// Keeps the text of what has failed, if it is TLS that failed.
    #[cold]
    fn note(&self, error: io::Error) -> io::Error {
        if error.kind() == ErrorKind::Other {
            self.on.troubles.borrow_mut().push(error.to_string());
        }
        error
    }

    fn recv_encrypted(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(session) = self.session() else {
            return Err(ErrorKind::Unsupported.into());
        };
        let received = session.recv(into);
        if session.is_stalled() {
            self.want_write(true)?;
        }
        received.map_err(|error| self.note(error))
    }
}

impl Wire for Socket {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.stream {
            // A successor by SHOW FDS would take it for what it is not.
            Stream::Tls(_) | Stream::Kept(_) => None,
            stream => Some(stream.as_fd()),
        }
    }

    fn send_with(&self, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
        let Stream::Unix(stream) = &self.stream else {
            return Err(ErrorKind::Unsupported.into());
        };
        let (data, passed) = ([IoSlice::new(bytes)], [descriptor.as_raw_fd()]);
        let rights = [ControlMessage::ScmRights(&passed)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        Ok(sendmsg::<()>(stream.as_raw_fd(), &data, &rights, flags, None)?)
    }

    #[inline]
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.read(into),
            Stream::Unix(stream) | Stream::Kept(stream) => stream.read(into),
            Stream::Tls(_) => self.recv_encrypted(into),
        }
    }

    #[inline]
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) | Stream::Kept(stream) => stream.write(bytes),
            Stream::Tls(session) => session.send(bytes).map_err(|error| self.note(error)),
        }
    }

    #[inline]
    fn set_readable(&mut self, hangup: bool) {
        if let Stream::Tls(session) = &mut self.stream {
            session.set_readable(hangup);
        }
    }

    fn has_end(&self) -> bool {
        matches!(&self.stream, Stream::Tls(session) if session.has_end())
    }

    fn want_write(&mut self, wanted: bool) -> io::Result<()> {
        let interest = match wanted {
            true => Interest::READABLE | Interest::WRITABLE,
            false => Interest::READABLE,
        };
        self.on.registry.reregister(self.stream.source(), self.token, interest)
    }
}
