//! Non-blocking sockets of the load side, with as few system calls as can be.

use std::fs::Permissions;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::sys::socket::{recv, send, MsgFlags};

/// A family of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Tcp,
    Unix,
    /// Clients use TLS over TCP, servers plain TCP.
    Tls,
}

/// Where somebody listens.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A port of 127.0.0.1.
    Tcp(u16),
    Unix(PathBuf),
}

impl Place {
    /// The place of a PostgreSQL or a pooler with this port, whose sockets are in this folder.
    pub(crate) fn of(family: Family, folder: &Path, port: u16) -> Self {
        match family {
            Family::Tcp | Family::Tls => Self::Tcp(port),
            Family::Unix => Self::Unix(folder.join(format!(".s.PGSQL.{port}"))),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Link {
    fd: OwnedFd,
    tcp: bool,
    writing: bool,
}

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Nothing,
    Bytes(usize),
    End,
}

impl Link {
    /// Connects; over loopback this doesn't wait.
    pub(crate) fn connect(place: &Place) -> io::Result<Self> {
        match place {
            Place::Tcp(port) => Self::tcp(TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?),
            Place::Unix(path) => Self::unix(UnixStream::connect(path)?),
        }
    }

    fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { fd: stream.into(), tcp: true, writing: false })
    }

    fn unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { fd: stream.into(), tcp: false, writing: false })
    }

    /// Watches for bytes that come.
    pub(crate) fn watch(&self, registry: &Registry, token: usize) {
        let fd = self.fd.as_raw_fd();
        registry.register(&mut SourceFd(&fd), Token(token), Interest::READABLE).unwrap();
    }

    /// Watches for room, or no longer.
    pub(crate) fn want_write(&mut self, wanted: bool, registry: &Registry, token: usize) {
        if self.writing == wanted {
            return;
        }
        self.writing = wanted;
        let fd = self.fd.as_raw_fd();
        let both = Interest::READABLE | Interest::WRITABLE;
        let interest = if wanted { both } else { Interest::READABLE };
        registry.reregister(&mut SourceFd(&fd), Token(token), interest).unwrap();
    }

    pub(crate) fn recv(&self, room: &mut [u8]) -> Got {
        self.receive(room, MsgFlags::empty())
    }

    /// As `recv`, but nobody wants to see the bytes; on TCP the kernel doesn't copy them then.
    pub(crate) fn skip(&self, room: &mut [u8]) -> Got {
        let flags = if self.tcp { MsgFlags::MSG_TRUNC } else { MsgFlags::empty() };
        self.receive(room, flags)
    }

    fn receive(&self, room: &mut [u8], flags: MsgFlags) -> Got {
        match recv(self.fd.as_raw_fd(), room, flags) {
            Ok(0) => Got::End,
            Ok(count) => Got::Bytes(count),
            Err(Errno::EAGAIN) => Got::Nothing,
            Err(Errno::ECONNRESET) => Got::End,
            Err(errno) => panic!("recv: {errno}"),
        }
    }

    /// Sends what fits, returns how much that was.
    pub(crate) fn send(&self, bytes: &[u8]) -> usize {
        match send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
            Ok(count) => count,
            Err(Errno::EAGAIN) => 0,
            Err(Errno::EPIPE | Errno::ECONNRESET) => bytes.len(),
            Err(errno) => panic!("send: {errno}"),
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Opens it, on a free port or as the socket of port 5432 in `folder`; returns the port.
    pub(crate) fn open(family: Family, folder: &Path) -> (Self, u16) {
        match family {
            Family::Tcp | Family::Tls => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                let port = listener.local_addr().unwrap().port();
                listener.set_nonblocking(true).unwrap();
                (Self::Tcp(listener), port)
            }
            Family::Unix => {
                let path = folder.join(".s.PGSQL.5432");
                let listener = UnixListener::bind(&path).unwrap();
                std::fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
                listener.set_nonblocking(true).unwrap();
                (Self::Unix(listener), 5432)
            }
        }
    }

    /// Opens it at a place.
    pub(crate) fn at(place: &Place) -> Self {
        match place {
            Place::Tcp(port) => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).unwrap();
                listener.set_nonblocking(true).unwrap();
                Self::Tcp(listener)
            }
            Place::Unix(path) => {
                let listener = UnixListener::bind(path).unwrap();
                listener.set_nonblocking(true).unwrap();
                Self::Unix(listener)
            }
        }
    }

    pub(crate) fn watch(&self, registry: &Registry, token: usize) {
        let fd = match self {
            Self::Tcp(listener) => listener.as_raw_fd(),
            Self::Unix(listener) => listener.as_raw_fd(),
        };
        registry.register(&mut SourceFd(&fd), Token(token), Interest::READABLE).unwrap();
    }

    /// The next connection.
    pub(crate) fn accept(&self) -> Option<Link> {
        let link = match self {
            Self::Tcp(listener) => listener.accept().and_then(|(stream, _)| Link::tcp(stream)),
            Self::Unix(listener) => listener.accept().and_then(|(stream, _)| Link::unix(stream)),
        };
        match link {
            Ok(link) => Some(link),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("accept: {error}"),
        }
    }
}
