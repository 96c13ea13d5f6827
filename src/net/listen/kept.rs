//! Listening sockets that a service manager keeps while no process of ours lives: who connects
//! meanwhile waits for the next one (the store of sd_notify(3)).

use super::{addresses, listen_tcp, listen_with, ListenOptions, Listeners, Step};
use crate::base::Journal;
use crate::core::Addr;
use crate::net::handoff::{local, set_nonblocking};
use mio::net::TcpListener;
use nix::sys::socket::{getsockopt, sockopt, SockType};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// So often it is tried again to listen where a superfluous one has been, this long after the last time.
const ATTEMPTS: u32 = 100;
const REST: Duration = Duration::from_millis(10);

/// Sockets that listen where the configuration says.
#[derive(Debug, Default)]
pub struct Kept {
    all: Vec<(SocketAddr, OwnedFd)>,
    /// There were others. The manager may still have them open.
    has_refused: bool,
}

impl ListenOptions {
    /// The items of `listen_addr`.
    pub(super) fn items(&self) -> impl Iterator<Item = &str> {
        self.listen_addr.split(',').map(str::trim).filter(|item| !item.is_empty())
    }
}

impl Kept {
    /// Those of the sockets that these options have a use for. The others are closed.
    pub fn of(sockets: Vec<OwnedFd>, options: &ListenOptions) -> Kept {
        let wanted = wanted(options);
        let place = |socket: OwnedFd| match local(&socket) {
            Addr::Inet(at) if wanted.contains(&at) && is_fit(&socket) => {
                set_nonblocking(&socket).is_ok().then_some((at, socket))
            }
            _ => None,
        };
        let count = sockets.len();
        let all: Vec<_> = sockets.into_iter().filter_map(place).collect();
        Kept { has_refused: all.len() < count, all }
    }

    /// True if there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// True if some were of no use: the manager has to be told.
    pub fn has_refused(&self) -> bool {
        self.has_refused
    }

    /// Listens at this address, with what has been kept there or anew.
    pub(super) fn listen(
        &mut self,
        addr: SocketAddr,
        options: &ListenOptions,
        journal: &mut Journal,
    ) -> Result<TcpListener, Step> {
        if let Some(at) = self.all.iter().position(|(at, _)| *at == addr) {
            // Whoever waits stays; the queue has another length now.
            return listen_with(self.all.swap_remove(at).1, options, journal);
        }
        let mut left = if self.has_refused { ATTEMPTS } else { 0 };
        loop {
            match listen_tcp(addr, options, journal) {
                Err((_, error)) if left > 0 && error.kind() == ErrorKind::AddrInUse => {
                    left -= 1;
                    std::thread::sleep(REST);
                }
                done => return done,
            }
        }
    }
}

/// Where these options have us listen.
fn wanted(options: &ListenOptions) -> Vec<SocketAddr> {
    // The system would go on giving connections to a socket of a group that nobody accepts at, and
    // the others are there for those who come.
    if options.reuse_port {
        return vec![];
    }
    let addresses = |item| addresses(item, options.port).unwrap_or_default();
    options.items().flat_map(addresses).collect()
}

/// A socket that listens, and is not one of a group.
fn is_fit(socket: &impl AsFd) -> bool {
    getsockopt(socket, sockopt::SockType) == Ok(SockType::Stream)
        && getsockopt(socket, sockopt::AcceptConn) == Ok(true)
        && getsockopt(socket, sockopt::ReusePort) == Ok(false)
}

impl Listeners {
    /// The TCP sockets that a later start with these options would have a use for.
    pub fn worth_keeping(&self, options: &ListenOptions) -> Vec<BorrowedFd<'_>> {
        let wanted = wanted(options);
        let is_wanted = |tcp: &&TcpListener| {
            tcp.local_addr().is_ok_and(|at| wanted.contains(&at)) && is_fit(*tcp)
        };
        self.tcp().filter(is_wanted).map(AsFd::as_fd).collect()
    }
}
