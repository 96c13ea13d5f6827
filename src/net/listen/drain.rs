//! Closing TCP sockets without losing who has connected already: the system would reset whoever
//! waits to be accepted.
//!
//! First nobody else can begin a connection: the packets that ask for one are dropped, and the other
//! side asks again after a second. By then the socket is closed; of the sockets that share its
//! address (SO_REUSEPORT) another one takes it. Meanwhile handshakes that have begun come to their
//! end, and everybody who waits is accepted. None of this is needed where the system moves them to
//! the other sockets by itself (net.ipv4.tcp_migrate_req = 1).

use super::{Listener, Listeners};
use crate::base::Micros;
use crate::net::sys;
use mio::net::TcpListener;
use nix::sys::socket::{getsockopt, sockopt};

/// How long a handshake that has begun may take, with the first packet behind it.
const HANDSHAKE: Micros = Micros(100_000);

impl Listeners {
    /// Takes nobody who comes anew over TCP. Whoever waits is to be accepted, until `close_drained`
    /// has closed the sockets.
    pub(crate) fn drain_tcp(&mut self, now: Micros) {
        // Of sockets that somebody else has, too, the queue is not ours alone.
        let is_ours = self.inherited.is_some() && !self.is_shared;
        let ignores = |tcp: &TcpListener| sys::ignore_newcomers(tcp).is_ok();
        match is_ours && !system_migrates() && self.tcp().all(ignores) {
            true => self.draining = self.draining.or(Some(now)),
            false => self.close_tcp(),
        }
    }

    /// Closes the TCP sockets if nobody is to be expected any more; to be called when those that
    /// waited have been accepted. False if they are still open.
    pub(crate) fn close_drained(&mut self, now: Micros) -> bool {
        let Some(since) = self.draining else { return true };
        let is_alone = !self.tcp().any(|tcp| getsockopt(tcp, sockopt::ReusePort) == Ok(true));
        // Who is alone says at once that it has closed.
        if is_alone || now.since(since) >= HANDSHAKE {
            self.close_tcp();
            return true;
        }
        false
    }

    /// True until `close_drained` has closed the sockets.
    pub fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Another process is given these sockets.
    pub(crate) fn share(&mut self) {
        self.is_shared = true;
    }

    fn tcp(&self) -> impl Iterator<Item = &TcpListener> {
        self.all.iter().flatten().filter_map(|listener| match listener {
            Listener::Tcp(tcp, _) => Some(tcp),
            Listener::Unix(_) => None,
        })
    }
}

fn system_migrates() -> bool {
    let setting = std::fs::read("/proc/sys/net/ipv4/tcp_migrate_req");
    setting.is_ok_and(|text| text.first().is_some_and(|first| *first != b'0'))
}
