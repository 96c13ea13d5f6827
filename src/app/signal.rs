//! Signals as events of the loop: a handler sets a mark and writes to a socket that the loop
//! watches (config 8.1). SIGPIPE needs nothing: Rust's runtime ignores it from the start.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdUnixStream;

use mio::event::Source;
use mio::net::UnixStream;
use nix::libc::SIGRTMIN;
use nix::sys::socket::{recv, MsgFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::raw::WithRawSiginfo;

/// The signals that the program reacts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Read the configuration again.
    Hup,
    /// Shut down, wait until no server is needed.
    Int,
    /// The same, and a new start follows (SIGRTMIN).
    Restart,
    /// Exit at once.
    Quit,
    /// Shut down, wait for all clients to leave.
    Term,
    /// Pause all activity.
    Usr1,
    /// Go on after a pause.
    Usr2,
}

/// Handlers are installed as long as this exists; a second one would receive the same signals.
pub struct Signals {
    delivery: SignalDelivery<UnixStream, WithRawSiginfo>,
}

impl Signals {
    /// Installs the handlers.
    pub fn install() -> io::Result<Signals> {
        let (read, write) = StdUnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let watched = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGRTMIN()];
        let read = UnixStream::from_std(read);
        let delivery = SignalDelivery::with_pipe(read, write, WithRawSiginfo, watched)?;
        Ok(Signals { delivery })
    }

    /// What a poll has to watch.
    pub fn source(&mut self) -> &mut dyn Source {
        self.delivery.get_read_mut()
    }

    /// True if a signal has arrived that nobody has taken note of.
    pub fn has_some(&self) -> bool {
        let fd = self.delivery.get_read().as_raw_fd();
        recv(fd, &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).is_ok_and(|count| count > 0)
    }

    /// The signals that have arrived since the last call, in order of their numbers. One that came
    /// twice is there twice, because a second SIGTERM asks for something else than the first. To
    /// be called whenever the token is reported.
    pub fn take(&mut self) -> Vec<Signal> {
        self.delivery.pending().filter_map(|info| known(info.si_signo)).collect()
    }
}

fn known(number: i32) -> Option<Signal> {
    match number {
        SIGHUP => Some(Signal::Hup),
        SIGINT => Some(Signal::Int),
        SIGQUIT => Some(Signal::Quit),
        SIGTERM => Some(Signal::Term),
        SIGUSR1 => Some(Signal::Usr1),
        SIGUSR2 => Some(Signal::Usr2),
        _ if number == SIGRTMIN() => Some(Signal::Restart),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Interest, Poll, Token};
    use nix::sys::signal::{raise, Signal as Number};
    use std::time::Duration;

    #[test]
    fn signals_wake_the_poll_and_are_counted() {
        let mut signals = Signals::install().unwrap();
        let mut poll = Poll::new().unwrap();
        poll.registry().register(signals.source(), Token(7), Interest::READABLE).unwrap();
        assert_eq!(signals.take(), []);
        for _ in 0..2 {
            for number in [Number::SIGUSR2, Number::SIGTERM, Number::SIGHUP, Number::SIGHUP] {
                raise(number).unwrap();
            }
            let mut events = Events::with_capacity(4);
            poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
            assert!(events.iter().any(|event| event.token() == Token(7)));
            assert!(signals.has_some() && signals.has_some());
            assert_eq!(signals.take(), [Signal::Hup, Signal::Hup, Signal::Usr2, Signal::Term]);
            assert_eq!(signals.take(), []);
            assert!(!signals.has_some());
        }
    }
}
