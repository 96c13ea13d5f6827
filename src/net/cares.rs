//! Asking nameservers, with c-ares in the loop: it opens sockets and tells which of them to watch,
//! the loop tells it what happened to them and when its time is up. Nothing here blocks.

use super::resolve::{Finding, Question};
use c_ares::{AddrInfoHints, Channel, Options};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::Duration;

/// What resolves names, as `--version` shows it.
pub fn version() -> String {
    format!("c-ares {}", c_ares::version().0)
}

/// A socket, and whether it is watched for reading and for writing.
type Watch = (RawFd, bool, bool);

/// Those who know about names.
pub struct Nameservers {
    channel: Channel,
    /// What c-ares wants to be watched from now on.
    changes: Receiver<Watch>,
    /// Filled by c-ares, maybe while it is being asked.
    answers: Receiver<Finding>,
    answer: Sender<Finding>,
    findings: VecDeque<Finding>,
    watched: BTreeMap<RawFd, Interest>,
    ready: Vec<Watch>,
    /// How many questions have no answer yet.
    open: usize,
}

impl Nameservers {
    /// Those that a resolver configuration file names; none is the system's (`resolv_conf`). A file
    /// that isn't there stands for the nameserver of this machine.
    pub fn new(resolv_conf: &str) -> Result<Nameservers, c_ares::Error> {
        let mut options = Options::new();
        let (change, changes) = channel();
        options.set_socket_state_callback(move |socket, read, write| {
            // Sockets are also closed at the very end, when nobody listens any more.
            let _ = change.send((socket, read, write));
        });
        let mut listed = None;
        if !resolv_conf.is_empty() {
            options.set_resolvconf_path(resolv_conf)?;
            let text = std::fs::read(resolv_conf).unwrap_or_default();
            listed = with_ports(&String::from_utf8_lossy(&text));
        }
        let mut channel_ = Channel::with_options(options)?;
        if let Some(servers) = listed {
            channel_.set_servers(servers.iter().map(SocketAddr::to_string))?;
        }
        let (answer, answers) = channel();
        Ok(Nameservers {
            channel: channel_,
            changes,
            answers,
            answer,
            findings: VecDeque::new(),
            watched: BTreeMap::new(),
            ready: Vec::new(),
            open: 0,
        })
    }

    /// Asks; [`Nameservers::next_finding`] has the answer when it is there. Sockets are watched in
    /// `registry`.
    pub(super) fn ask(&mut self, question: Question, registry: &Registry) {
        self.open = self.open.saturating_add(1);
        let answer = self.answer.clone();
        // The other end is only gone when the process ends.
        match question {
            Question::Addresses(name) => {
                let told = name.clone();
                let hints = AddrInfoHints::default();
                self.channel.get_addrinfo(&name, None, &hints, move |result| {
                    let addrs = result.map(|found| addresses(&found)).unwrap_or_default();
                    let _ = answer.send(Finding::Addresses(told, addrs));
                });
            }
            Question::Serial(zone) => {
                let told = zone.clone();
                self.channel.query_soa(&zone, move |result| {
                    let serial = result.map(|soa| soa.serial()).ok();
                    let _ = answer.send(Finding::Serial(told, serial));
                });
            }
        }
        self.settle(registry);
    }

    /// The next answer, good or bad.
    pub(super) fn next_finding(&mut self) -> Option<Finding> {
        self.findings.pop_front()
    }

    /// How long the loop may wait at most.
    pub(super) fn bound(&self, timeout: Duration) -> Duration {
        match (self.findings.is_empty(), self.open) {
            (false, _) => Duration::ZERO,
            (true, 0) => timeout,
            _ => self.channel.timeout(Some(timeout)).unwrap_or(timeout),
        }
    }

    /// Notes what happened to a socket.
    pub(super) fn note(&mut self, socket: RawFd, readable: bool, writable: bool) {
        self.ready.push((socket, readable, writable));
    }

    /// True if there are answers, or [`Nameservers::go_on`] has something to do.
    pub(super) fn is_due(&self) -> bool {
        let is_late = || self.open > 0 && self.channel.timeout(None) == Some(Duration::ZERO);
        !self.findings.is_empty() || !self.ready.is_empty() || is_late()
    }

    /// Lets c-ares receive, send, repeat and give up.
    pub(super) fn go_on(&mut self, registry: &Registry) {
        let ready = std::mem::take(&mut self.ready);
        if ready.is_empty() {
            self.channel.process_fd(None, None);
        }
        for (socket, readable, writable) in &ready {
            // A socket that was closed meanwhile is unknown to c-ares, too.
            self.channel.process_fd(readable.then_some(*socket), writable.then_some(*socket));
        }
        self.settle(registry);
        for (socket, ..) in ready {
            // Events come once, and c-ares does not always read all there is: ask for another one.
            if let Some(interest) = self.watched.get(&socket) {
                let _ = registry.reregister(&mut SourceFd(&socket), token(socket), *interest);
            }
        }
    }

    /// Takes over what c-ares said while it was called.
    fn settle(&mut self, registry: &Registry) {
        while let Ok((socket, read, write)) = self.changes.try_recv() {
            self.watch(socket, interest(read, write), registry);
        }
        while let Ok(finding) = self.answers.try_recv() {
            self.open = self.open.saturating_sub(1);
            self.findings.push_back(finding);
        }
    }

    /// Errors end in a question that is given up when its time is over. A socket that is closed is
    /// so already when we hear of it, and the same number may have been given out anew.
    fn watch(&mut self, socket: RawFd, interest: Option<Interest>, registry: &Registry) {
        let mut source = SourceFd(&socket);
        let _ = match (interest, self.watched.remove(&socket).is_some()) {
            (Some(interest), true) => registry.reregister(&mut source, token(socket), interest),
            (Some(interest), false) => registry.register(&mut source, token(socket), interest),
            (None, _) => registry.deregister(&mut source),
        };
        if let Some(interest) = interest {
            self.watched.insert(socket, interest);
        }
    }
}

fn token(socket: RawFd) -> Token {
    super::token(super::KIND_INTERNAL, super::NAMES, u32::try_from(socket).unwrap_or(0))
}

fn interest(read: bool, write: bool) -> Option<Interest> {
    match (read, write) {
        (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
        (true, false) => Some(Interest::READABLE),
        (false, true) => Some(Interest::WRITABLE),
        (false, false) => None,
    }
}

fn addresses(found: &c_ares::AddrInfoResults) -> Vec<IpAddr> {
    let mut addrs: Vec<IpAddr> = Vec::new();
    for addr in found.nodes().filter_map(|node| node.ip_addr()) {
        if !addrs.contains(&addr) {
            addrs.push(addr);
        }
    }
    addrs
}

/// The nameservers of a configuration file if one of them has a port, `[ADDRESS]:PORT` or
/// `ADDRESS:PORT`, which c-ares reads in files since 1.20 only.
fn with_ports(text: &str) -> Option<Vec<SocketAddr>> {
    const PORT: u16 = 53;
    let mut has_port = false;
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some("nameserver"), Some(word)) = (words.next(), words.next()) else {
            continue;
        };
        if let Ok(addr) = word.parse::<IpAddr>() {
            servers.push(SocketAddr::new(addr, PORT));
            continue;
        }
        let in_brackets = word.strip_prefix('[').and_then(|word| word.split_once("]:"));
        let parts = in_brackets.or_else(|| word.rsplit_once(':').filter(|_| !word.contains('[')));
        let addr = parts.and_then(|(addr, port)| {
            Some(SocketAddr::new(addr.parse().ok()?, port.parse().ok().filter(|port| *port > 0)?))
        });
        has_port |= addr.is_some();
        servers.extend(addr);
    }
    Some(servers).filter(|_| has_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_may_have_ports() {
        for (text, want) in [
            ("nameserver 127.0.0.1\n", None),
            ("nameserver 127.0.0.1:0\nnameserver x:1\noptions a:b\nnameserver\n", None),
            ("nameserver [127.0.0.1]:8600\n", Some("127.0.0.1:8600")),
            ("# x\nnameserver\t127.0.0.1:8600 # y\n", Some("127.0.0.1:8600")),
            ("nameserver ::1\nnameserver [::1]:99\n", Some("[::1]:53 [::1]:99")),
            (";nameserver 127.0.0.1:1\nnameserver 10.0.0.1", None),
        ] {
            let found = with_ports(text).map(|servers| {
                servers.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" ")
            });
            assert_eq!(found.as_deref(), want, "{text}");
        }
    }
}
