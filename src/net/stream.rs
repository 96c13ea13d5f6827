//! Sockets of both families as [`Wire`]s.

use super::conn::Wire;
use crate::core::Addr;
use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use nix::sys::socket::{getsockopt, sendmsg, sockopt, ControlMessage, MsgFlags};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::Rc;

/// A connected (or connecting) stream socket, non-blocking.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Both ends: ours, theirs. Fails if the socket is not connected.
    pub fn ends(&self) -> io::Result<(Addr, Addr)> {
        match self {
            Stream::Tcp(stream) => {
                Ok((Addr::Inet(stream.local_addr()?), Addr::Inet(stream.peer_addr()?)))
            }
            Stream::Unix(stream) => {
                stream.peer_addr()?;
                let pid = self.peer().map_or(0, |(pid, _)| pid);
                Ok((Addr::Unix { pid: 0 }, Addr::Unix { pid }))
            }
        }
    }

    /// Process id and user id at the other end of a Unix socket.
    pub fn peer(&self) -> Option<(u32, u32)> {
        match self {
            Stream::Tcp(_) => None,
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
            Stream::Unix(stream) => stream.take_error()?,
        };
        error.map_or(Ok(()), Err)
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Stream::Tcp(stream) => stream,
            Stream::Unix(stream) => stream,
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

/// A stream whose events are reported under a token. Dropping it closes the socket.
pub struct Socket {
    stream: Stream,
    token: Token,
    registry: Rc<Registry>,
}

impl Socket {
    /// Registers a stream, for reading only.
    pub(super) fn reading(stream: Stream, token: Token, on: &Rc<Registry>) -> io::Result<Socket> {
        Socket::register(stream, token, on, Interest::READABLE)
    }

    /// Registers a stream that is connecting.
    pub(super) fn connecting(
        stream: Stream,
        token: Token,
        on: &Rc<Registry>,
    ) -> io::Result<Socket> {
        Socket::register(stream, token, on, Interest::WRITABLE)
    }

    fn register(
        mut stream: Stream,
        token: Token,
        on: &Rc<Registry>,
        interest: Interest,
    ) -> io::Result<Socket> {
        on.register(stream.source(), token, interest)?;
        Ok(Socket { stream, token, registry: Rc::clone(on) })
    }

    /// The stream.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }
}

impl Wire for Socket {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.stream.as_fd())
    }

    fn send_with(&self, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
        let Stream::Unix(stream) = &self.stream else {
            return Err(io::ErrorKind::Unsupported.into());
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
            Stream::Unix(stream) => stream.read(into),
        }
    }

    #[inline]
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn want_write(&mut self, wanted: bool) -> io::Result<()> {
        let interest = match wanted {
            true => Interest::READABLE | Interest::WRITABLE,
            false => Interest::READABLE,
        };
        self.registry.reregister(self.stream.source(), self.token, interest)
    }
}
