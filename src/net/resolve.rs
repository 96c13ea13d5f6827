//! Host names to addresses: a cache, and one helper thread for the look-ups, which may block
//! (pooling 10.3).

use super::options::reason;
use crate::base::{Journal, Level, Micros};
use mio::Waker;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;

/// How long answers are good for.
#[derive(Clone, Copy, Debug)]
pub struct DnsTimes {
    /// Addresses (`dns_max_ttl`).
    pub found: Micros,
    /// Failures (`dns_nxdomain_ttl`).
    pub failed: Micros,
}

/// What is known about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The address to take this time.
    Address(IpAddr),
    /// There is none.
    Failed,
    /// It is being looked up.
    Pending,
}

/// What is known about one name.
#[derive(Debug, Default)]
struct Entry {
    /// None if the look-up failed or is the first one and still under way.
    addrs: Vec<IpAddr>,
    /// When it has to be looked up again.
    until: Micros,
    next: usize,
    pending: bool,
}

impl Entry {
    fn turn(&mut self) -> Answer {
        let Some(count) = self.addrs.len().checked_sub(1) else {
            return Answer::Failed;
        };
        let at = self.next.min(count);
        self.next = if at == count { 0 } else { at.saturating_add(1) };
        self.addrs.get(at).map_or(Answer::Failed, |ip| Answer::Address(*ip))
    }
}

/// A name as the console shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The name.
    pub name: String,
    /// Its addresses; none if the look-up failed or has not ended yet.
    pub addrs: Vec<IpAddr>,
    /// When it has to be looked up again.
    pub until: Micros,
    /// It is being looked up.
    pub pending: bool,
}

/// What host names have in common behind their first dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// As its first host has it; case makes no difference.
    pub name: String,
    /// The serial number that its nameserver told last; 0 is none.
    pub serial: u64,
    /// How many of the names that were asked for belong to it.
    pub hosts: usize,
}

/// A look-up function: the system's, or that of a test.
pub type Lookup = fn(&str) -> io::Result<Vec<IpAddr>>;

struct Helper {
    names: Sender<String>,
    found: Receiver<(String, io::Result<Vec<IpAddr>>)>,
}

/// The cache and the helper.
pub struct Resolver {
    lookup: Lookup,
    waker: Arc<Waker>,
    helper: Option<Helper>,
    cache: BTreeMap<String, Entry>,
    times: DnsTimes,
    vanished: Vec<(String, IpAddr)>,
}

impl Resolver {
    /// A resolver that wakes the loop through `waker` when it knows more. The thread starts with
    /// the first look-up.
    pub fn new(waker: Arc<Waker>, times: DnsTimes, lookup: Lookup) -> Self {
        Resolver {
            lookup,
            waker,
            helper: None,
            cache: BTreeMap::new(),
            times,
            vanished: Vec::new(),
        }
    }

    /// Changes how long later answers are good for.
    pub fn set_times(&mut self, times: DnsTimes) {
        self.times = times;
    }

    /// The next address of a name. After `Pending`, ask again when [`Resolver::collect`] has named
    /// it.
    pub fn ask(&mut self, name: &str, now: Micros) -> Answer {
        let known = self.cache.get_mut(name);
        if let Some(entry) = known {
            if entry.pending {
                return Answer::Pending;
            }
            if now < entry.until {
                return entry.turn();
            }
        }
        if self.start(name).is_err() {
            return Answer::Failed;
        }
        self.cache.entry(name.to_owned()).or_default().pending = true;
        Answer::Pending
    }

    /// Takes in what the helper has found out; returns the names with the first address of each.
    pub fn collect(&mut self, now: Micros, journal: &mut Journal) -> Vec<String> {
        let mut names = Vec::new();
        while let Some((name, result)) = self.helper.as_ref().and_then(|h| h.found.try_recv().ok())
        {
            let entry = self.cache.entry(name.clone()).or_default();
            entry.pending = false;
            entry.next = 0;
            match result {
                Ok(addrs) if !addrs.is_empty() => {
                    for gone in entry.addrs.iter().filter(|addr| !addrs.contains(addr)) {
                        self.vanished.push((name.clone(), *gone));
                    }
                    entry.addrs = addrs;
                    entry.until = now + self.times.found;
                }
                _ => {
                    let text = format!("DNS lookup failed: {name}: result=0");
                    journal.line(Level::Warning, text);
                    entry.addrs.clear();
                    entry.until = now + self.times.failed;
                }
            }
            names.push(name);
        }
        names
    }

    /// The address to use for a look-up that has just ended, however short its life.
    pub fn fresh(&mut self, name: &str) -> Answer {
        self.cache.get_mut(name).map_or(Answer::Failed, Entry::turn)
    }

    /// The next address that a name has no more: connections to it are to be closed
    /// (pooling 10.3).
    pub fn next_vanished(&mut self) -> Option<(String, IpAddr)> {
        self.vanished.pop()
    }

    /// All names that were asked for, in order.
    pub fn hosts(&self) -> Vec<Host> {
        let host = |(name, entry): (&String, &Entry)| Host {
            name: name.clone(),
            addrs: entry.addrs.clone(),
            until: entry.until,
            pending: entry.pending,
        };
        self.cache.iter().map(host).collect()
    }

    /// The zones of these names in order, whatever their letters' case. Nobody asks nameservers for
    /// serial numbers yet.
    pub fn zones(&self) -> Vec<Zone> {
        let mut zones: BTreeMap<String, Zone> = BTreeMap::new();
        let names = self.cache.keys().filter_map(|name| name.split_once('.'));
        for (_, name) in names.filter(|(_, name)| !name.is_empty()) {
            let none_yet = || Zone { name: name.to_owned(), serial: 0, hosts: 0 };
            let zone = zones.entry(name.to_ascii_lowercase()).or_insert_with(none_yet);
            zone.hosts = zone.hosts.saturating_add(1);
        }
        zones.into_values().collect()
    }

    fn start(&mut self, name: &str) -> io::Result<()> {
        if self.helper.is_none() {
            self.helper = Some(self.spawn()?);
        }
        let sent = self.helper.as_ref().map(|h| h.names.send(name.to_owned()));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn spawn(&self) -> io::Result<Helper> {
        let (names, asked) = channel::<String>();
        let (answers, found) = channel();
        let (lookup, waker) = (self.lookup, Arc::clone(&self.waker));
        std::thread::Builder::new().name("dns".to_owned()).spawn(move || {
            while let Ok(name) = asked.recv() {
                let result = lookup(&name);
                if answers.send((name, result)).is_err() || waker.wake().is_err() {
                    break;
                }
            }
        })?;
        Ok(Helper { names, found })
    }
}

/// Looks a name up with the system's resolver; may block for long.
pub fn getaddrinfo(name: &str) -> io::Result<Vec<IpAddr>> {
    let mut addrs: Vec<IpAddr> = Vec::new();
    for addr in (name, 0).to_socket_addrs()? {
        if !addrs.contains(&addr.ip()) {
            addrs.push(addr.ip());
        }
    }
    Ok(addrs)
}

/// The text of a failed look-up with its number, as in `Name or service not known [-2]`.
pub(super) fn getaddrinfo_reason(error: &io::Error) -> String {
    let text = reason(error);
    let text = text.rsplit_once(": ").map_or(&*text, |(_, text)| text);
    let code = match text {
        "Name or service not known" => -2,
        "Temporary failure in name resolution" => -3,
        "Non-recoverable failure in name resolution" => -4,
        "No address associated with hostname" => -5,
        _ => -11,
    };
    format!("{text} [{code}]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};
    use std::time::Duration;

    fn scripted(name: &str) -> io::Result<Vec<IpAddr>> {
        match name {
            "two" => Ok(vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()]),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn collect(poll: &mut Poll, resolver: &mut Resolver, now: Micros) -> Vec<(Level, String)> {
        let mut events = Events::with_capacity(4);
        let mut journal = Journal::default();
        while resolver.collect(now, &mut journal).is_empty() {
            poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
        }
        std::iter::from_fn(|| journal.pop()).collect()
    }

    #[test]
    fn answers_are_cached_and_taken_in_turn() {
        let mut poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let times = DnsTimes { found: Micros::from_secs(15), failed: Micros::from_secs(5) };
        let mut resolver = Resolver::new(waker, times, scripted);
        let at = Micros::from_secs;
        let address = |last| Answer::Address([10, 0, 0, last].into());

        assert_eq!(resolver.ask("two", at(1)), Answer::Pending);
        assert_eq!(resolver.ask("two", at(1)), Answer::Pending);
        assert_eq!(collect(&mut poll, &mut resolver, at(1)), []);
        for last in [1, 2, 1] {
            assert_eq!(resolver.ask("two", at(2)), address(last));
        }
        assert_eq!(resolver.ask("two", at(16)), Answer::Pending);
        collect(&mut poll, &mut resolver, at(16));
        assert_eq!(resolver.fresh("two"), address(1));
        assert_eq!(resolver.next_vanished(), None);

        assert_eq!(resolver.ask("none", at(1)), Answer::Pending);
        let line = "DNS lookup failed: none: result=0".to_owned();
        assert_eq!(collect(&mut poll, &mut resolver, at(1)), [(Level::Warning, line)]);
        assert_eq!(resolver.ask("none", at(5)), Answer::Failed);
        assert_eq!(resolver.ask("none", at(6)), Answer::Pending);
    }

    #[test]
    fn names_belong_to_the_zone_behind_their_first_dot() {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let times = DnsTimes { found: Micros::from_secs(15), failed: Micros::from_secs(5) };
        let mut resolver = Resolver::new(waker, times, scripted);
        for name in ["a.Test.org", "b.test.org", "plain", "c.org", "dot.", "d.ALPHA"] {
            resolver.ask(name, Micros(0));
        }
        let zones = resolver.zones().into_iter().map(|zone| (zone.name, zone.serial, zone.hosts));
        let want = [("ALPHA", 1), ("org", 1), ("Test.org", 2)];
        assert_eq!(zones.collect::<Vec<_>>(), want.map(|(name, hosts)| (name.into(), 0, hosts)));
        let hosts = resolver.hosts();
        assert_eq!(hosts.len(), 6);
        assert!(hosts.iter().all(|host| host.pending && host.addrs.is_empty()));
        assert_eq!(hosts[0].name, "a.Test.org");
    }

    #[test]
    fn literal_addresses_are_found_by_the_system() {
        let found = getaddrinfo("127.0.0.1").unwrap();
        assert_eq!(found, [IpAddr::from([127, 0, 0, 1])]);
    }
}
