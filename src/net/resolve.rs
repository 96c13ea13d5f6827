//! What is known of host names: a cache, and the zones that they belong to (pooling 10.3). It asks
//! nobody itself: [`Resolver::next_question`] is for who talks to nameservers, and what they said
//! comes back to [`Resolver::learn`].

use crate::base::{Journal, Level, Micros};
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

/// How long answers are good for, and how often zones are looked at.
#[derive(Clone, Copy, Debug)]
pub struct DnsTimes {
    /// Addresses (`dns_max_ttl`).
    pub found: Micros,
    /// Failures (`dns_nxdomain_ttl`).
    pub failed: Micros,
    /// Serial numbers of zones (`dns_zone_check_period`); 0 is never.
    pub zones: Micros,
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

/// What nameservers have to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The addresses of this host.
    Addresses(String),
    /// The serial number of this zone.
    Serial(String),
}

/// What they said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The addresses of this host; none if there are none, or none could be found out.
    Addresses(String, Vec<IpAddr>),
    /// The serial number of this zone, if it could be found out.
    Serial(String, Option<u32>),
}

/// What is known about one name.
#[derive(Debug, Default)]
struct Entry {
    /// What the last look-up that succeeded has found.
    addrs: Vec<IpAddr>,
    /// The last look-up has not succeeded.
    failed: bool,
    /// When it has to be looked up again.
    until: Micros,
    next: usize,
    pending: bool,
}

impl Entry {
    fn turn(&mut self) -> Answer {
        let Some(count) = self.shown().len().checked_sub(1) else {
            return Answer::Failed;
        };
        let at = self.next.min(count);
        self.next = if at == count { 0 } else { at.saturating_add(1) };
        self.addrs.get(at).map_or(Answer::Failed, |ip| Answer::Address(*ip))
    }

    fn shown(&self) -> &[IpAddr] {
        match self.failed {
            true => &[],
            false => &self.addrs,
        }
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

struct Serial {
    zone: String,
    /// None before the first answer.
    number: Option<u32>,
}

/// The cache.
pub struct Resolver {
    hosts: BTreeMap<String, Entry>,
    /// By name in lower case.
    zones: BTreeMap<String, Serial>,
    times: DnsTimes,
    questions: VecDeque<Question>,
    vanished: Vec<(String, IpAddr)>,
    /// The zones, in lower case, that are asked next; the first one is being asked.
    sweep: VecDeque<String>,
    next_sweep: Option<Micros>,
}

fn zone_of(host: &str) -> Option<&str> {
    host.split_once('.').map(|(_, zone)| zone).filter(|zone| !zone.is_empty())
}

impl Resolver {
    /// Knows nothing yet.
    pub fn new(times: DnsTimes) -> Self {
        Resolver {
            hosts: BTreeMap::new(),
            zones: BTreeMap::new(),
            times,
            questions: VecDeque::new(),
            vanished: Vec::new(),
            sweep: VecDeque::new(),
            next_sweep: None,
        }
    }

    /// Changes how long later answers are good for, and the period of zone checks, which begins
    /// anew.
    pub fn set_times(&mut self, times: DnsTimes) {
        if times.zones != self.times.zones {
            self.next_sweep = None;
        }
        self.times = times;
    }

    /// The next address of a name. After `Pending`, ask [`Resolver::fresh`] when
    /// [`Resolver::learn`] has named it.
    pub fn ask(&mut self, name: &str, now: Micros) -> Answer {
        if let Some(entry) = self.hosts.get_mut(name) {
            if !entry.pending && now < entry.until {
                return entry.turn();
            }
        } else if let Some(zone) = zone_of(name) {
            let new = || Serial { zone: zone.to_owned(), number: None };
            self.zones.entry(zone.to_ascii_lowercase()).or_insert_with(new);
        }
        let entry = self.hosts.entry(name.to_owned()).or_default();
        if !entry.pending {
            entry.pending = true;
            self.questions.push_back(Question::Addresses(name.to_owned()));
        }
        Answer::Pending
    }

    /// What nameservers have to be asked next.
    pub fn next_question(&mut self) -> Option<Question> {
        self.questions.pop_front()
    }

    /// Takes in what nameservers said; returns the name whose look-up has ended by that.
    pub fn learn(
        &mut self,
        finding: Finding,
        now: Micros,
        journal: &mut Journal,
    ) -> Option<String> {
        match finding {
            Finding::Addresses(name, addrs) => {
                self.learn_addresses(&name, addrs, now, journal);
                Some(name)
            }
            Finding::Serial(zone, number) => {
                self.learn_serial(&zone, number, journal);
                None
            }
        }
    }

    fn learn_addresses(
        &mut self,
        name: &str,
        addrs: Vec<IpAddr>,
        now: Micros,
        journal: &mut Journal,
    ) {
        let Some(entry) = self.hosts.get_mut(name) else {
            return;
        };
        (entry.pending, entry.next, entry.failed) = (false, 0, addrs.is_empty());
        if entry.failed {
            let text = format!("DNS lookup failed: {name}: result=0");
            journal.line(Level::Warning, text);
            entry.until = now + self.times.failed;
            return;
        }
        // A failure in between doesn't change what was known before it.
        for gone in entry.addrs.iter().filter(|addr| !addrs.contains(addr)) {
            self.vanished.push((name.to_owned(), *gone));
        }
        entry.addrs = addrs;
        entry.until = now + self.times.found;
    }

    fn learn_serial(&mut self, key: &str, number: Option<u32>, journal: &mut Journal) {
        if self.sweep.front().is_some_and(|zone| zone == key) {
            self.sweep.pop_front();
            self.ask_zone();
        }
        let (Some(new), Some(serial)) = (number, self.zones.get_mut(key)) else {
            return;
        };
        let changed = match serial.number {
            None => new != 0,
            // Serial number arithmetic (RFC 1982): greater, if the way up is the shorter one.
            Some(old) => (1..1 << 31).contains(&new.wrapping_sub(old)),
        };
        let old = serial.number.unwrap_or(0);
        if serial.number.is_none() || changed {
            serial.number = Some(new);
        }
        if !changed {
            return;
        }
        let text = format!("zone '{}' serial changed: old={old} new={new}", serial.zone);
        journal.line(Level::Log, text);
        for (name, entry) in &mut self.hosts {
            let is_in = zone_of(name).is_some_and(|zone| zone.eq_ignore_ascii_case(key));
            if is_in && !entry.pending {
                entry.pending = true;
                self.questions.push_back(Question::Addresses(name.clone()));
            }
        }
    }

    /// Begins to ask for the serial number of each zone, one after the other, when it is time. A
    /// period that passes before all have answered is left out.
    pub fn tick(&mut self, now: Micros) {
        if self.times.zones == Micros(0) {
            self.next_sweep = None;
            return;
        }
        let due = *self.next_sweep.get_or_insert(now + self.times.zones);
        if now < due {
            return;
        }
        self.next_sweep = Some(now + self.times.zones);
        if self.sweep.is_empty() {
            self.sweep.extend(self.zones.keys().cloned());
            self.ask_zone();
        }
    }

    fn ask_zone(&mut self) {
        if let Some(zone) = self.sweep.front() {
            self.questions.push_back(Question::Serial(zone.clone()));
        }
    }

    /// The address to use for a look-up that has just ended, however short its life.
    pub fn fresh(&mut self, name: &str) -> Answer {
        self.hosts.get_mut(name).map_or(Answer::Failed, Entry::turn)
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
            addrs: entry.shown().to_vec(),
            until: entry.until,
            pending: entry.pending,
        };
        self.hosts.iter().map(host).collect()
    }

    /// The zones of these names in order, whatever their letters' case.
    pub fn zones(&self) -> Vec<Zone> {
        let zone = |(key, serial): (&String, &Serial)| {
            let zones = self.hosts.keys().filter_map(|name| zone_of(name));
            Zone {
                name: serial.zone.clone(),
                serial: serial.number.unwrap_or(0).into(),
                hosts: zones.filter(|zone| zone.eq_ignore_ascii_case(key)).count(),
            }
        };
        self.zones.iter().map(zone).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: fn(u64) -> Micros = Micros::from_secs;

    /// A resolver with 15 s for what is found, 5 s for what is not, 60 s between zone checks.
    struct Scene {
        resolver: Resolver,
        journal: Journal,
    }

    impl Scene {
        fn new() -> Scene {
            let times = DnsTimes { found: AT(15), failed: AT(5), zones: AT(60) };
            Scene { resolver: Resolver::new(times), journal: Journal::default() }
        }

        fn questions(&mut self) -> Vec<String> {
            let next = || self.resolver.next_question();
            let text = |question| match question {
                Question::Addresses(name) => name,
                Question::Serial(zone) => format!("SOA {zone}"),
            };
            std::iter::from_fn(next).map(text).collect()
        }

        fn lines(&mut self) -> Vec<(Level, String)> {
            std::iter::from_fn(|| self.journal.pop()).collect()
        }

        /// A look-up ends with addresses 10.0.0.x.
        fn found(&mut self, name: &str, last: &[u8], now: u64) {
            let addrs = last.iter().map(|last| [10, 0, 0, *last].into()).collect();
            let finding = Finding::Addresses(name.into(), addrs);
            let ended = self.resolver.learn(finding, AT(now), &mut self.journal);
            assert_eq!(ended.as_deref(), Some(name));
        }

        /// Asks, and has it found if it has to be looked up.
        fn look_up(&mut self, name: &str, last: &[u8], now: u64) {
            assert_eq!(self.resolver.ask(name, AT(now)), Answer::Pending);
            assert_eq!(self.questions(), [name]);
            self.found(name, last, now);
        }

        fn serial(&mut self, zone: &str, number: Option<u32>) -> Vec<String> {
            let finding = Finding::Serial(zone.into(), number);
            assert_eq!(self.resolver.learn(finding, AT(0), &mut self.journal), None);
            self.lines().into_iter().map(|(level, line)| format!("{level:?} {line}")).collect()
        }

        fn vanished(&mut self) -> Vec<String> {
            let next = || self.resolver.next_vanished();
            std::iter::from_fn(next).map(|(name, addr)| format!("{name} {addr}")).collect()
        }
    }

    fn address(last: u8) -> Answer {
        Answer::Address([10, 0, 0, last].into())
    }

    #[test]
    fn addresses_are_cached_and_taken_in_turn() {
        let mut at = Scene::new();
        assert_eq!(at.resolver.ask("two", AT(1)), Answer::Pending);
        assert_eq!(at.resolver.ask("two", AT(1)), Answer::Pending);
        assert_eq!(at.questions(), ["two"]);
        at.found("two", &[1, 2], 1);
        assert_eq!(at.resolver.fresh("two"), address(1));
        for last in [2, 1, 2] {
            assert_eq!(at.resolver.ask("two", AT(15)), address(last));
        }
        // The next look-up begins with the first one again.
        assert_eq!(at.resolver.ask("two", AT(15)), address(1));
        at.look_up("two", &[1, 2], 16);
        assert_eq!(at.resolver.fresh("two"), address(1));
        assert_eq!(at.lines(), []);
        // Names are told apart as they are written.
        assert_eq!(at.resolver.ask("Two", AT(16)), Answer::Pending);
    }

    #[test]
    fn failures_are_cached_for_their_own_time() {
        let mut at = Scene::new();
        at.look_up("none", &[], 1);
        assert_eq!(at.resolver.fresh("none"), Answer::Failed);
        let line = "DNS lookup failed: none: result=0".to_owned();
        assert_eq!(at.lines(), [(Level::Warning, line)]);
        assert_eq!(at.resolver.ask("none", AT(5)), Answer::Failed);
        assert_eq!(at.resolver.ask("none", AT(6)), Answer::Pending);
        at.found("none", &[1], 6);
        assert_eq!(at.resolver.ask("none", AT(20)), address(1));
    }

    #[test]
    fn times_count_for_what_is_found_later() {
        let mut at = Scene::new();
        at.look_up("a", &[1], 0);
        at.resolver.set_times(DnsTimes { found: AT(0), failed: AT(9), zones: AT(0) });
        assert_eq!(at.resolver.ask("a", AT(14)), address(1));
        at.look_up("a", &[1], 15);
        assert_eq!(at.resolver.fresh("a"), address(1));
        at.look_up("a", &[], 15);
        assert_eq!(at.resolver.ask("a", AT(23)), Answer::Failed);
    }

    #[test]
    fn addresses_that_are_gone_are_told() {
        for (answers, want) in [
            (&[&[1, 2][..], &[2, 1]][..], &[][..]),
            (&[&[1, 2], &[2, 3]], &["a 10.0.0.1"]),
            (&[&[1, 2], &[3]], &["a 10.0.0.2", "a 10.0.0.1"]),
            // A failure says nothing about addresses, and is not forgotten over.
            (&[&[1], &[], &[]], &[]),
            (&[&[1], &[], &[1]], &[]),
            (&[&[1], &[], &[2]], &["a 10.0.0.1"]),
        ] {
            let mut at = Scene::new();
            for (turn, last) in answers.iter().enumerate() {
                at.look_up("a", last, 15 * turn as u64);
            }
            assert_eq!(at.vanished(), want, "{answers:?}");
        }
    }

    #[test]
    fn zones_are_asked_in_turn_once_a_period() {
        let mut at = Scene::new();
        at.resolver.tick(AT(0));
        for name in ["h.b", "h.a", "plain", "dot."] {
            at.look_up(name, &[1], 0);
        }
        at.resolver.tick(AT(59));
        assert_eq!(at.questions(), [""; 0]);
        at.resolver.tick(AT(60));
        assert_eq!(at.questions(), ["SOA a"]);
        // A nameserver that does not answer holds up this round only.
        at.resolver.tick(AT(120));
        assert_eq!(at.questions(), [""; 0]);
        assert_eq!(at.serial("a", None), [""; 0]);
        assert_eq!(at.questions(), ["SOA b"]);
        assert_eq!(at.serial("b", None), [""; 0]);
        at.resolver.tick(AT(179));
        assert_eq!(at.questions(), [""; 0]);
        at.resolver.tick(AT(180));
        assert_eq!(at.questions(), ["SOA a"]);
        // Switched off, and on with another period.
        at.resolver.set_times(DnsTimes { found: AT(15), failed: AT(5), zones: AT(0) });
        at.serial("a", None);
        at.questions();
        at.serial("b", None);
        at.resolver.tick(AT(300));
        assert_eq!(at.questions(), [""; 0]);
        at.resolver.set_times(DnsTimes { found: AT(15), failed: AT(5), zones: AT(10) });
        at.resolver.tick(AT(301));
        at.resolver.tick(AT(310));
        assert_eq!(at.questions(), [""; 0]);
        at.resolver.tick(AT(311));
        assert_eq!(at.questions(), ["SOA a"]);
    }

    #[test]
    fn serial_numbers_count_if_they_are_greater() {
        let top = u32::MAX;
        for (before, now, counts) in [
            (None, 1, true),
            (None, top, true),
            (None, 0, false),
            (Some(5), 5, false),
            (Some(5), 6, true),
            (Some(5), 4, false),
            (Some(top), 0, true),
            (Some(top - 9), 9, true),
            (Some(9), top - 9, false),
            (Some(0), 1 << 31, false),
            (Some(0), (1 << 31) - 1, true),
        ] {
            let mut at = Scene::new();
            at.look_up("h.Zone", &[1], 0);
            if let Some(before) = before {
                at.serial("zone", Some(before));
                at.questions();
                at.found("h.Zone", &[1], 0);
            }
            let old = before.unwrap_or(0);
            let line = format!("Log zone 'Zone' serial changed: old={old} new={now}");
            let want: Vec<String> = counts.then_some(line).into_iter().collect();
            assert_eq!(at.serial("zone", Some(now)), want, "{before:?} {now}");
            assert_eq!(at.questions(), vec!["h.Zone"; usize::from(counts)]);
            let stored = if counts { now } else { old };
            assert_eq!(at.resolver.zones()[0].serial, u64::from(stored));
        }
    }

    #[test]
    fn changed_zone_has_all_its_names_looked_up_at_once() {
        let mut at = Scene::new();
        for name in ["a.x", "b.X", "c.y", "plain"] {
            at.look_up(name, &[1], 0);
        }
        assert_eq!(at.resolver.ask("pending.x", AT(1)), Answer::Pending);
        at.questions();
        assert_eq!(at.serial("x", Some(7)), ["Log zone 'x' serial changed: old=0 new=7"]);
        assert_eq!(at.questions(), ["a.x", "b.X"]);
        // Who asks now waits for the new address.
        assert_eq!(at.resolver.ask("a.x", AT(1)), Answer::Pending);
        at.found("a.x", &[2], 1);
        assert_eq!(at.vanished(), ["a.x 10.0.0.1"]);
        assert_eq!(at.resolver.ask("c.y", AT(1)), address(1));
    }

    #[test]
    fn names_belong_to_the_zone_behind_their_first_dot() {
        let mut at = Scene::new();
        for name in ["a.Test.org", "b.test.org", "plain", "c.org", "dot.", "d.ALPHA"] {
            at.resolver.ask(name, Micros(0));
        }
        let zones = at.resolver.zones();
        let zones = zones.into_iter().map(|zone| (zone.name, zone.serial, zone.hosts));
        let want = [("ALPHA", 1), ("org", 1), ("Test.org", 2)];
        assert_eq!(zones.collect::<Vec<_>>(), want.map(|(name, hosts)| (name.into(), 0, hosts)));
        at.found("plain", &[], 0);
        at.found("c.org", &[4], 0);
        let shown = |host: &Host| (host.pending, host.addrs.len());
        let hosts = at.resolver.hosts();
        let shown: Vec<_> = hosts.iter().map(shown).collect();
        let pending = (true, 0);
        assert_eq!(shown, [pending, pending, (false, 1), pending, pending, (false, 0)]);
        assert_eq!(hosts[0].name, "a.Test.org");
    }
}
