//! Opening connections to servers (pooling 5.7, 10.1).

use super::address::{unix_addr, Place};
use super::options::SocketOptions;
use super::stream::{Socket, Stream};
use mio::net::{TcpStream, UnixStream};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

/// A connection that is not open yet.
pub(super) enum Dial {
    /// The name is being looked up.
    Looking {
        /// The name.
        name: String,
        /// Where to connect to on the host.
        port: u16,
    },
    /// The socket is connecting.
    Connecting(Socket),
}

/// Why a connection can't even be tried: log lines, in order.
pub(super) struct Refused {
    /// About a socket option.
    pub(super) option: Option<String>,
    /// The system's error.
    pub(super) error: io::Error,
}

impl From<Errno> for Refused {
    fn from(error: Errno) -> Self {
        Refused { option: None, error: error.into() }
    }
}

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// Starts connecting.
pub(super) fn open(place: &Place, options: &SocketOptions) -> Result<Stream, Refused> {
    match place {
        Place::Inet(addr) => {
            let family = match addr {
                SocketAddr::V4(_) => AddressFamily::Inet,
                SocketAddr::V6(_) => AddressFamily::Inet6,
            };
            let fd = socket::socket(family, SockType::Stream, FLAGS, None)?;
            options.apply(&fd).map_err(|failure| Refused {
                option: Some(failure.to_string()),
                error: failure.error,
            })?;
            start(&fd, &SockaddrStorage::from(*addr))?;
            Ok(Stream::Tcp(TcpStream::from_std(fd.into())))
        }
        Place::Unix(path) => {
            let fd = socket::socket(AddressFamily::Unix, SockType::Stream, FLAGS, None)?;
            start(&fd, &unix_addr(path)?)?;
            Ok(Stream::Unix(UnixStream::from_std(fd.into())))
        }
    }
}

fn start(fd: &OwnedFd, addr: &dyn SockaddrLike) -> Result<(), Errno> {
    match socket::connect(fd.as_raw_fd(), addr) {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(()),
        Err(error) => Err(error),
    }
}
