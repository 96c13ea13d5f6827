//! A service manager such as systemd: the sockets that it passes to us (sd_listen_fds(3)), what it
//! is told, and what it keeps for us (sd_notify(3), config 7.8). Without one all of this does nothing.

use crate::base::Micros;
use crate::config::Settings;
use crate::net::sys;
use nix::errno::Errno;
use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags, UnixAddr};
use nix::time::{clock_gettime, ClockId};
use std::env;
use std::ffi::OsStr;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process;
use std::time::Duration;

/// So often something that must arrive is tried again, this long after the last time.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// The limit of a watchdog that we know nothing of, in microseconds.
const ASSUMED: u64 = 2_000_000;

/// Whoever is named so in the manager's store is a listening TCP socket of ours.
const STORED: &str = "pgturnstile-tcp";
/// So many descriptors go with one message; systemd takes more.
const MOST: usize = 200;

/// All that a service manager may have put into the environment.
const NAMES: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "FDSTORE",
];

/// The service manager that has started us, if any.
#[derive(Debug, Default)]
pub(super) struct Service {
    line: Option<Line>,
    /// Listening sockets to use instead of our own.
    pub(super) sockets: Vec<OwnedFd>,
    /// Listening sockets of ours that the manager has kept while no process of ours lived.
    pub(super) kept: Vec<OwnedFd>,
    /// It keeps some if we ask for it. systemd says so from version 254 on, older ones by our unit.
    pub(super) has_store: bool,
    /// It has been given some.
    has_stored: bool,
    /// Our number when we were started; `-d` changes it.
    started_as: u32,
    /// How much time may pass between two signs of life.
    watchdog: Option<Micros>,
    next_sign: Micros,
}

/// Where messages go.
#[derive(Debug)]
struct Line {
    socket: UnixDatagram,
    to: UnixAddr,
}

impl Service {
    /// Takes everything out of the environment: programs that a library starts (PAM) must not speak
    /// for us. To be called once, before anything is opened or any thread is started.
    ///
    /// systemd tells processes of ExecReload= nothing of the watchdog, so a successor (`-R`) that
    /// hears nothing assumes that there is one.
    pub(super) fn take(is_successor: bool) -> Service {
        let own = process::id();
        let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let is_ours = |pid: Option<u64>| pid == Some(own.into());
        let passed = number("LISTEN_FDS").filter(|_| is_ours(number("LISTEN_PID")));
        let has_watchdog = env::var_os("WATCHDOG_PID").is_none() || is_ours(number("WATCHDOG_PID"));
        let limit = number("WATCHDOG_USEC").filter(|limit| has_watchdog && *limit > 0);
        let has_store = number("FDSTORE").is_some_and(|limit| limit > 0);
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let line = env::var_os("NOTIFY_SOCKET").and_then(|name| Line::new(&name));
        let unknown = is_successor && has_watchdog && line.is_some();
        let limit = limit.or_else(|| unknown.then_some(ASSUMED));
        for name in NAMES {
            env::remove_var(name);
        }
        let (kept, sockets) = sort(sys::passed_descriptors(passed.unwrap_or(0)), &names);
        Service {
            line,
            sockets,
            has_store,
            has_stored: !kept.is_empty(),
            kept,
            started_as: own,
            watchdog: limit.map(|limit| Micros(limit / 2)),
            next_sign: Micros(0),
        }
    }

    /// True if there is one that listens. It takes our standard error as well.
    pub(super) fn is_present(&self) -> bool {
        self.line.is_some()
    }

    /// We are about to take the place of the main process, or have done so by going to the
    /// background: the unit follows us.
    pub(super) fn become_main(&self) {
        self.follow(process::id() as i32);
    }

    /// The unit's main process is this one.
    pub(super) fn follow(&self, pid: i32) {
        self.insist(&format!("MAINPID={pid}"));
    }

    /// The start is over.
    pub(super) fn ready(&self) {
        let own = process::id();
        match own == self.started_as {
            true => self.insist("READY=1"),
            false => self.insist(&format!("READY=1\nMAINPID={own}")),
        }
    }

    /// The configuration is about to be read again; `ready` says when that is done.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
        let now = now.unwrap_or_default().as_micros();
        self.insist(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    /// A shutdown has begun.
    pub(super) fn stopping(&self) {
        self.insist("STOPPING=1");
    }

    /// Has the manager keep these sockets, and no others, for the next start. `anew` if it may have
    /// some of a process before us.
    pub(super) fn store(&mut self, sockets: &[BorrowedFd<'_>], anew: bool) {
        if anew {
            self.empty_store();
        }
        for some in sockets.chunks(MOST) {
            self.insist_with(&format!("FDSTORE=1\nFDNAME={STORED}"), some);
        }
        self.has_stored |= !sockets.is_empty();
    }

    /// Takes them back, if it has some: when this returns the manager has let go of them, unless it
    /// is very slow. Who connects would wait for nobody.
    pub(super) fn take_back(&mut self) {
        if !std::mem::take(&mut self.has_stored) {
            return;
        }
        self.empty_store();
        let Ok((mut ours, theirs)) = UnixStream::pair() else { return };
        // It closes this as soon as it has heard everything before it.
        self.insist_with("BARRIER=1", &[theirs.as_fd()]);
        drop(theirs);
        if ours.set_read_timeout(Some(PAUSE * ATTEMPTS)).is_ok() {
            let _ = ours.read(&mut [0]);
        }
    }

    /// They stay for the next start, whatever becomes of ours.
    pub(super) fn leave_stored(&mut self) {
        self.has_stored = false;
    }

    /// Has the manager close what it has kept of ours. It takes a moment for that.
    pub(super) fn empty_store(&self) {
        self.insist(&format!("FDSTOREREMOVE=1\nFDNAME={STORED}"));
    }

    /// The line of statistics, for `systemctl status`.
    pub(super) fn status(&self, text: &str) {
        self.say(&format!("STATUS={}", text.replace(" us", " \u{3bc}s")), &[]);
    }

    /// The loop turns; it will be so kind as to say so again after `pause` at the latest.
    pub(super) fn tick(&mut self, now: Micros, pause: Micros) {
        let Some(half) = self.watchdog else { return };
        if now >= self.next_sign {
            self.next_sign = now + Micros(half.0.saturating_sub(pause.0));
            self.say("WATCHDOG=1", &[]);
        }
    }

    /// Says something once, with descriptors; true if there is no use in trying again.
    fn say(&self, text: &str, sockets: &[BorrowedFd<'_>]) -> bool {
        let Some(line) = &self.line else { return true };
        let sockets: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&sockets)];
        let rights = if sockets.is_empty() { &[][..] } else { &rights };
        let (fd, text) = (line.socket.as_raw_fd(), [IoSlice::new(text.as_bytes())]);
        match sendmsg(fd, &text, rights, MsgFlags::MSG_NOSIGNAL, Some(&line.to)) {
            Ok(_) => true,
            // A manager that is gone must not end us.
            Err(errno) => !matches!(errno, Errno::EAGAIN | Errno::EINTR),
        }
    }

    /// Says something that the manager has to know, even if it is slow.
    fn insist(&self, text: &str) {
        self.insist_with(text, &[]);
    }

    fn insist_with(&self, text: &str, sockets: &[BorrowedFd<'_>]) {
        for _ in 0..ATTEMPTS {
            if self.say(text, sockets) {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Those that are named as ours, and the others, by the names of sd_listen_fds_with_names(3).
fn sort(passed: Vec<OwnedFd>, names: &str) -> (Vec<OwnedFd>, Vec<OwnedFd>) {
    let mut names = names.split(':');
    passed.into_iter().partition(|_| names.next() == Some(STORED))
}

impl Line {
    /// A path, or `@` and an abstract name; other kinds of sockets are for other machines.
    fn new(name: &OsStr) -> Option<Line> {
        let to = match name.as_bytes() {
            [b'/', ..] => UnixAddr::new(name),
            [b'@', rest @ ..] => UnixAddr::new_abstract(rest),
            _ => return None,
        };
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(Line { socket, to: to.ok()? })
    }
}

/// Warnings about settings that passed sockets replace (config 6.7).
pub(super) fn ignored(settings: &Settings) -> Vec<String> {
    let mut names = Vec::new();
    if !settings.listen_addr.is_empty() {
        names.push("cf_listen_addr");
    }
    let dir = &settings.unix_socket_dir;
    if !dir.is_empty() && *dir != Settings::default().unix_socket_dir {
        names.push("cf_unix_socket_dir");
    }
    let text = |name| format!("sockets passed from service manager, {name} ignored");
    names.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    /// A service that talks to a socket of ours with an abstract name.
    fn service(name: &str) -> (Service, UnixDatagram) {
        let name = format!("pgt-service-{name}-{}", process::id());
        let ours = SocketAddr::from_abstract_name(&name).unwrap();
        let ours = UnixDatagram::bind_addr(&ours).unwrap();
        ours.set_nonblocking(true).unwrap();
        let line = Line::new(OsStr::new(&format!("@{name}")));
        let started_as = process::id();
        (Service { line, started_as, ..Service::default() }, ours)
    }

    fn heard(ours: &UnixDatagram) -> Option<String> {
        let mut room = [0; 1000];
        let len = ours.recv(&mut room).ok()?;
        Some(String::from_utf8(room[..len].to_vec()).unwrap())
    }

    #[test]
    fn states_are_told_and_the_main_process_only_if_it_has_changed() {
        let (mut service, ours) = service("states");
        service.ready();
        assert_eq!(heard(&ours).unwrap(), "READY=1");
        service.started_as += 1;
        let own = process::id();
        service.ready();
        assert_eq!(heard(&ours).unwrap(), format!("READY=1\nMAINPID={own}"));
        service.become_main();
        assert_eq!(heard(&ours).unwrap(), format!("MAINPID={own}"));
        service.reloading();
        let text = heard(&ours).unwrap();
        let at = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(at.parse::<u64>().unwrap() > 0);
        service.stopping();
        assert_eq!(heard(&ours).unwrap(), "STOPPING=1");
        service.status("stats: 1 xacts/s, xact 2 us, wait 3 us");
        assert_eq!(heard(&ours).unwrap(), "STATUS=stats: 1 xacts/s, xact 2 μs, wait 3 μs");
        assert_eq!(heard(&ours), None);
    }

    #[test]
    fn signs_of_life_come_within_half_of_the_time() {
        let (mut service, ours) = service("life");
        service.tick(Micros(0), Micros(3));
        assert_eq!(heard(&ours), None);
        service.watchdog = Some(Micros(10));
        let mut signs = vec![];
        for now in (100..130).step_by(3) {
            service.tick(Micros(now), Micros(3));
            signs.extend(heard(&ours).map(|text| (now, text)));
        }
        let signs: Vec<u64> = signs.iter().map(|(now, _)| *now).collect();
        assert_eq!(signs, [100, 109, 118, 127]);
    }

    #[test]
    fn passed_descriptors_are_told_apart_by_their_names() {
        for (names, want) in [
            ("", "ooo"),
            ("pgturnstile-tcp", "koo"),
            ("pgturnstile.socket:pgturnstile-tcp:pgturnstile-tcp", "okk"),
            ("::pgturnstile-tcp:more", "ook"),
            ("pgturnstile-tcp2:unknown", "ooo"),
        ] {
            let passed: Vec<OwnedFd> =
                (0..3).map(|_| UnixDatagram::unbound().unwrap().into()).collect();
            let mut kinds: Vec<_> = passed.iter().map(|fd| (fd.as_raw_fd(), 'o')).collect();
            let (kept, others) = sort(passed, names);
            for (fd, kind) in &mut kinds {
                let is_in = |all: &[OwnedFd]| all.iter().any(|one| one.as_raw_fd() == *fd);
                *kind = if is_in(&kept) { 'k' } else { 'o' };
                assert!(is_in(&kept) != is_in(&others));
            }
            assert_eq!(kinds.iter().map(|(_, kind)| kind).collect::<String>(), want, "{names}");
        }
    }

    #[test]
    fn without_a_manager_or_with_a_dead_one_nothing_happens() {
        for name in ["", "relative", "vsock:2:1", "/nowhere/at/all", "@nobody-listens-here"] {
            let line = Line::new(OsStr::new(name));
            Service { line, ..Service::default() }.ready();
        }
    }

    #[test]
    fn settings_that_do_not_count_are_named() {
        let warned = |listen_addr: &str, dir: &str| {
            let (listen_addr, unix_socket_dir) = (listen_addr.into(), dir.into());
            ignored(&Settings { listen_addr, unix_socket_dir, ..Settings::default() })
        };
        assert!(warned("", "/tmp").is_empty() && warned("", "").is_empty());
        let text = |name| format!("sockets passed from service manager, {name} ignored");
        let want = [text("cf_listen_addr"), text("cf_unix_socket_dir")];
        assert_eq!(warned("*", "/run"), want);
    }
}
