//! Closing TCP sockets without losing who has connected already: the system would reset whoever
//! waits to be accepted.
//!
//! First nobody else can begin a connection: the packets that ask for one are dropped (by their
//! TTL, which needs no rights; it is that of few senders only that gets through), and the other side
//! asks again after a second. By then the socket is closed; of the sockets that share its
//! address (SO_REUSEPORT) another one takes it. Meanwhile handshakes that have begun come to their
//! end, and everybody who waits is accepted. None of this is needed where the system moves them to
//! the other sockets by itself (net.ipv4.tcp_migrate_req = 1).

use super::{Listener, Listeners};
use crate::base::Micros;
use crate::net::{sys, Net};
use mio::net::TcpListener;
use nix::sys::socket::{getsockopt, sockopt};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

/// How long a handshake that has begun may take, with the first packet behind it. Meanwhile those
/// who come lose a second.
const HANDSHAKE: Micros = Micros(50_000);

impl Listeners {
    /// Takes nobody who comes anew over TCP. Whoever waits is to be accepted, until `close_drained`
    /// has closed the sockets.
    pub(crate) fn drain_tcp(&mut self, now: Micros) {
        let ignores = |tcp: &TcpListener| hear(tcp, tcp.local_addr(), false).is_ok();
        // Where nobody else listens there is nowhere to move to.
        let is_lost = || self.is_alone() || !system_migrates();
        // Of sockets that somebody else has, too, the queue is not ours alone.
        match self.is_sole && is_lost() && self.tcp().all(ignores) {
            true => self.draining = self.draining.or(Some(now)),
            false => self.close_tcp(),
        }
    }

    /// Closes the TCP sockets if nobody is to be expected any more; to be called when those that
    /// waited have been accepted. False if they are still open.
    pub(crate) fn close_drained(&mut self, now: Micros) -> bool {
        let Some(since) = self.draining else { return true };
        // Who is alone says at once that it has closed.
        if self.is_alone() || now.since(since) >= HANDSHAKE {
            self.close_tcp();
            return true;
        }
        false
    }

    /// True until `close_drained` has closed the sockets.
    pub fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// True if nobody else has the TCP sockets: what is not told by a process before is not so.
    pub(crate) fn is_sole(&self) -> bool {
        self.is_sole
    }

    /// Another process is given these sockets. It needs some that hear; who comes anew is its
    /// affair then.
    pub(crate) fn share(&mut self) {
        self.is_sole = false;
        if self.is_draining() {
            for tcp in self.tcp() {
                // They are about to be closed here. If that fails the other one has what we have.
                let _ = hear(tcp, tcp.local_addr(), true);
            }
        }
    }

    /// True if no other socket can have the same address.
    fn is_alone(&self) -> bool {
        !self.tcp().any(|tcp| getsockopt(tcp, sockopt::ReusePort) == Ok(true))
    }

    pub(super) fn tcp(&self) -> impl Iterator<Item = &TcpListener> {
        self.all.iter().flatten().filter_map(|listener| match listener {
            Listener::Tcp(tcp, _) => Some(tcp),
            Listener::Unix(_) => None,
        })
    }
}

/// Whether a socket at this address hears the packets that come to it.
pub(super) fn hear(socket: &impl AsFd, local: io::Result<SocketAddr>, on: bool) -> io::Result<()> {
    sys::ignore_packets(socket, local?.is_ipv6(), !on)
}

impl Net {
    /// Begins to close the TCP listening sockets. Those who wait are to be accepted, then
    /// [`Net::close_drained`] is asked, until it says true.
    pub fn drain_tcp_listeners(&mut self) {
        self.listeners.drain_tcp(self.now);
    }

    /// True if the TCP listening sockets are closed.
    pub fn close_drained(&mut self) -> bool {
        self.listeners.close_drained(self.now)
    }
}

fn system_migrates() -> bool {
    let setting = std::fs::read("/proc/sys/net/ipv4/tcp_migrate_req");
    setting.is_ok_and(|text| text.first().is_some_and(|first| *first != b'0'))
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::HANDSHAKE;
    use mio::Poll;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::time::{Duration, Instant};

    const NOW: Micros = Micros(1_000_000);

    fn listeners(listen_addr: &str, reuse_port: bool) -> (Listeners, SocketAddr) {
        let options = ListenOptions {
            listen_addr: listen_addr.to_owned(),
            port: 0,
            backlog: 128,
            unix_dir: String::new(),
            unix_mode: 0o700,
            unix_group: String::new(),
            reuse_port,
            defer_accept: false,
            sockets: SocketOptions::default(),
        };
        let poll = Poll::new().unwrap();
        let opened =
            Listeners::open(&options, Kept::default(), poll.registry(), &mut Journal::default());
        let listeners = opened.unwrap();
        let at = listeners.tcp_addresses()[0];
        (listeners, at)
    }

    fn accept(listeners: &mut Listeners, now: Micros) -> Option<Stream> {
        let options = SocketOptions::default();
        listeners.accept(0, &options, now, &mut Journal::default()).map(|(stream, _)| stream)
    }

    #[test]
    fn who_has_connected_is_accepted_and_heard_and_nobody_else_comes() {
        for addr in ["127.0.0.1", "::1"] {
            let (mut listeners, at) = listeners(addr, true);
            let mut waits = TcpStream::connect(at).unwrap();
            listeners.drain_tcp(NOW);
            assert!(listeners.is_draining());
            let begun = Instant::now();
            assert!(TcpStream::connect_timeout(&at, Duration::from_millis(200)).is_err());
            assert!(begun.elapsed() >= Duration::from_millis(200), "it was refused");
            let accepted = accept(&mut listeners, NOW).unwrap();
            assert!(accept(&mut listeners, NOW).is_none());
            assert!(!listeners.close_drained(NOW));
            assert!(listeners.close_drained(NOW + HANDSHAKE));
            assert!(TcpStream::connect(at).is_err());
            waits.write_all(b"?").unwrap();
            std::thread::sleep(Duration::from_millis(20));
            let Stream::Tcp(mut accepted) = accepted else { panic!() };
            assert_eq!(accepted.read(&mut [0; 9]).unwrap(), 1);
        }
    }

    #[test]
    fn sockets_that_were_handed_over_are_drained_if_nobody_else_has_them() {
        for is_sole in [true, false] {
            let (before, at) = listeners("127.0.0.1", true);
            let _waits = TcpStream::connect(at).unwrap();
            let socket = before.descriptor(0).unwrap().try_clone_to_owned().unwrap();
            drop(before);
            let poll = Poll::new().unwrap();
            let mut next = Listeners::default();
            let sockets = vec![(socket, None)];
            next.take_in(sockets, is_sole, poll.registry(), &mut Journal::default()).unwrap();
            next.drain_tcp(NOW);
            assert_eq!(next.is_draining(), is_sole);
            assert_eq!(accept(&mut next, NOW).is_some(), is_sole);
            assert!(next.close_drained(NOW + HANDSHAKE));
        }
    }

    #[test]
    fn sockets_that_another_process_is_given_meanwhile_hear_again() {
        for addr in ["127.0.0.1", "::1"] {
            let (mut listeners, at) = listeners(addr, true);
            listeners.drain_tcp(NOW);
            assert!(TcpStream::connect_timeout(&at, Duration::from_millis(100)).is_err());
            let theirs = listeners.descriptor(0).unwrap().try_clone_to_owned().unwrap();
            listeners.share();
            assert!(listeners.close_drained(NOW + HANDSHAKE));
            assert!(TcpStream::connect_timeout(&at, Duration::from_secs(10)).is_ok());
            drop(theirs);
        }
    }

    #[test]
    fn sockets_that_are_alone_or_not_ours_alone_are_closed_at_once() {
        let (mut listeners, at) = listeners("127.0.0.1", false);
        let _waits = TcpStream::connect(at).unwrap();
        listeners.drain_tcp(NOW);
        assert!(accept(&mut listeners, NOW).is_some());
        assert!(listeners.close_drained(NOW));
        assert!(TcpStream::connect(at).is_err());
        let (mut listeners, at) = super::tests::listeners("127.0.0.1", true);
        listeners.share();
        listeners.drain_tcp(NOW);
        assert!(!listeners.is_draining());
        assert!(TcpStream::connect(at).is_err());
    }
}
