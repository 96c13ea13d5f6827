//! What a service manager is told, and the sockets that it passes (config 7.8): a stand-in for systemd
//! listens at the notify socket.

use std::cell::RefCell;
use std::fs::{File, Permissions};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::rig::fds::{datagram, Taker};
use crate::rig::old::{self, Old};
use crate::rig::raw::Raw;
use crate::rig::run::{is_root, Run, Running};
use crate::rig::wire::{error, query, tags};
use crate::rig::{wait_until, DEADLINE};

/// What it is told of its store.
const STORES: &str = "FDSTORE=1\nFDNAME=pgturnstile-tcp";
const EMPTIES: &str = "FDSTOREREMOVE=1\nFDNAME=pgturnstile-tcp";

/// The end of the service manager, and what it keeps for a process.
struct Manager(UnixDatagram, RefCell<Vec<OwnedFd>>);

impl Manager {
    /// Listens for this process at a file in its folder.
    fn of(run: Run) -> (Self, Run) {
        let path = run.folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        (Self(socket, RefCell::default()), run.env("NOTIFY_SOCKET", path.to_str().unwrap()))
    }

    fn hear(&self) -> String {
        let (text, passed) = datagram(&self.0).expect("the manager is told something");
        let mut store = self.1.borrow_mut();
        match text == STORES.as_bytes() {
            true => store.extend(passed),
            false if text == EMPTIES.as_bytes() => store.clear(),
            // What comes with a barrier is closed.
            false => {}
        }
        String::from_utf8(text).unwrap()
    }

    /// The next message that tells no statistics and is no sign of life.
    fn hear_state(&self) -> String {
        loop {
            let text = self.hear();
            if !text.starts_with("STATUS=") && text != "WATCHDOG=1" {
                return text;
            }
        }
    }

    /// Nothing else has been said.
    fn hears_nothing(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let silent = self.0.recv(&mut [0; 1000]).is_err();
        self.0.set_nonblocking(false).unwrap();
        silent
    }
}

#[test]
fn start_statistics_reload_and_stop_are_told() {
    let (manager, run) = Manager::of(Run::new("stats_period = 1\nlog_stats = 0\npidfile = pid"));
    let running = run.up();
    assert_eq!(manager.hear(), "READY=1");
    let status = manager.hear();
    assert!(status.starts_with("STATUS=stats: 0 xacts/s, 0 queries/s, "), "{status}");
    assert!(status.ends_with(" μs, wait 0 μs"), "{status}");
    assert!(!running.all().contains("stats: "));
    // The command is told to its console.
    running.command("RELOAD");
    running.run.rewrite("nonsense");
    for _ in 0..2 {
        running.signal(Signal::SIGHUP);
        let text = manager.hear_state();
        let at = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&text);
        assert!(at.parse::<u64>().is_ok(), "{text}");
        assert_eq!(manager.hear_state(), "READY=1");
    }
    let mut client = Raw::tcp(running.run.port).login("admin", "pgbouncer", "").unwrap().0;
    running.signal(Signal::SIGTERM);
    assert_eq!(manager.hear_state(), "STOPPING=1");
    assert!(running.is_alive());
    assert!(tags(&client.query("show version")).contains('D'));
}

#[test]
fn fast_exits_tell_nothing() {
    for command in [None, Some("SHUTDOWN")] {
        let (manager, run) = Manager::of(Run::new(""));
        let mut running = run.up();
        assert_eq!(manager.hear(), "READY=1");
        let mut console = running.console();
        match command {
            Some(command) => console.send(&query(command)),
            None => running.signal(Signal::SIGQUIT),
        }
        assert_eq!(running.code(), 0);
        assert!(manager.hears_nothing());
    }
}

#[test]
fn signs_of_life_come_in_time_if_they_are_ours_to_give() {
    let (manager, run) = Manager::of(Run::new(""));
    let _running = run.env("WATCHDOG_USEC", "1400000").up();
    assert_eq!(manager.hear(), "READY=1");
    let start = Instant::now();
    for _ in 0..5 {
        assert_eq!(manager.hear(), "WATCHDOG=1");
    }
    // At 0, then every third of a second or two of them; a busy machine may be late.
    let taken = start.elapsed();
    assert!(taken > Duration::from_millis(1200) && taken < Duration::from_secs(5), "{taken:?}");
    let (manager, run) = Manager::of(Run::new(""));
    let _running = run.env("WATCHDOG_USEC", "500000").env("WATCHDOG_PID", "1").up();
    assert_eq!(manager.hear(), "READY=1");
    std::thread::sleep(Duration::from_millis(700));
    assert!(manager.hears_nothing());
}

#[test]
fn the_process_in_the_background_says_who_it_is() {
    let name = format!("pgt-live-service-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let manager = Manager(UnixDatagram::bind_addr(&address).unwrap(), RefCell::default());
    manager.0.set_read_timeout(Some(DEADLINE)).unwrap();
    let run = Run::new("pidfile = pid\nlogfile = log").args(&["-d"]);
    let mut running = run.env("NOTIFY_SOCKET", &format!("@{name}")).start();
    running.follow_to_background();
    assert_eq!(manager.hear(), format!("READY=1\nMAINPID={}", running.pid));
}

/// A successor for this process, with a folder and a pidfile of its own.
fn successor(old: &Run) -> Run {
    let place = old.filled("unix_socket_dir = DIR\nlisten_port = PORT");
    Run::new(&format!("{place}\npidfile = pid\nlogfile = log")).args(&["-R", "-d"])
}

#[test]
fn the_unit_follows_the_successor_before_the_old_process_ends() {
    let run = Run::new("");
    let listener = old::listen(&run.folder, run.port);
    let (manager, run) = Manager::of(run.args(&["-R"]));
    let running = run.start();
    let mut old = Old::suspended(&listener);
    assert!(manager.hears_nothing());
    old.complete("SHOW");
    old.hear("SHUTDOWN;");
    assert!(!manager.hears_nothing(), "MAINPID comes before SHUTDOWN");
    drop((old, listener, running));

    let (manager, run) = Manager::of(Run::new("pidfile = pid"));
    let mut first = run.up();
    assert_eq!(manager.hear(), "READY=1");
    let mut client = Raw::unix(&first.run.folder, first.run.port);
    client = client.login("admin", "pgbouncer", "").unwrap().0;
    let socket = first.path("notify");
    let next = successor(&first.run).env("NOTIFY_SOCKET", socket.to_str().unwrap());
    let mut next = next.start();
    next.follow_to_background();
    assert_eq!(manager.hear_state(), format!("MAINPID={}", next.pid));
    assert_eq!(manager.hear_state(), format!("READY=1\nMAINPID={}", next.pid));
    assert_eq!(first.code(), 0);
    assert_eq!(tags(&client.query("show version")), "TDCZ", "consoles go on, too");
    next.signal(Signal::SIGHUP);
    assert!(manager.hear_state().starts_with("RELOADING=1\n"));
    assert_eq!(manager.hear_state(), format!("READY=1\nMAINPID={}", next.pid));
    // Nobody has told it of a watchdog: systemd does so at a start only.
    while manager.hear() != "WATCHDOG=1" {}
    assert!(next.all().contains("process up: ") && next.read("stderr").contains("process up: "));
    next.signal(Signal::SIGINT);
    assert_eq!(manager.hear_state(), "STOPPING=1");
}

#[test]
fn the_unit_stays_with_an_old_process_that_refuses_at_the_last_moment() {
    let run = Run::new("");
    let listener = old::listen(&run.folder, run.port);
    let (manager, run) = Manager::of(run.args(&["-R"]));
    let mut running = run.start();
    let mut old = Old::accept(&listener);
    old.welcome();
    old.hear("HANDOFF 0;");
    old.say(&old::row(&[Some("1")]));
    old.complete("SHOW");
    old.hear("HANDOFF 1;");
    assert!(manager.hears_nothing());
    old.complete("HANDOFF");
    old.hear("SHUTDOWN;");
    assert_eq!(manager.hear_state(), format!("MAINPID={}", running.pid));
    old.say(&error(&[(b'S', "ERROR"), (b'C', "08P01"), (b'M', "it did not answer in time")]));
    assert_eq!(running.code(), 1);
    assert_eq!(manager.hear_state(), format!("MAINPID={}", std::process::id()));
    assert!(manager.hears_nothing());
}

#[test]
fn the_unit_comes_back_from_a_successor_that_has_died() {
    let (manager, run) = Manager::of(Run::new(""));
    let running = run.up();
    assert_eq!(manager.hear(), "READY=1");
    let mut successor = Taker::own_user_at(&running.socket());
    successor.query("HANDOFF 0;");
    successor.ask("HANDOFF 1;");
    running.wait_for("HANDOFF command issued");
    drop(successor);
    assert_eq!(manager.hear_state(), format!("MAINPID={}", running.pid));
    assert!(is_served(&running));
}

/// A start with a TCP socket as descriptor 3 and a Unix socket as 4.
fn activated(pid: &str, settings: &str) -> Run {
    let shell =
        format!("exec 3<&0 4>&1 </dev/null >/dev/null; export LISTEN_FDS=2 LISTEN_PID={pid}");
    let run = Run::through(&shell, settings);
    let tcp = TcpListener::bind(("127.0.0.1", run.port)).unwrap();
    let unix = old::listen(&run.folder, run.port);
    run.streams(tcp, unix)
}

/// A console over TCP, and one over the Unix socket.
fn is_served(running: &Running) -> bool {
    let (folder, port) = (&running.run.folder, running.run.port);
    let answers = |client: Raw| {
        let (mut client, _) = client.login("admin", "pgbouncer", "").unwrap();
        tags(&client.query("show version")).contains('D')
    };
    answers(Raw::tcp(port)) && answers(Raw::unix(folder, port))
}

#[test]
fn passed_sockets_replace_our_own_and_stay() {
    let mut running = activated("$$", "pidfile = pid").args(&["-R"]).up();
    let want = [
        "LOG old process not found, try to continue normally",
        "LOG kernel file descriptor limit: ",
        "WARNING sockets passed from service manager, cf_listen_addr ignored",
        "WARNING sockets passed from service manager, cf_unix_socket_dir ignored",
        "LOG socket passed from service manager (fd 3)",
        "LOG socket passed from service manager (fd 4)",
        "LOG process up: ",
    ];
    let lines = running.texts();
    assert_eq!(lines.len(), want.len(), "{lines:#?}");
    for (line, want) in lines.iter().zip(want) {
        assert!(line.starts_with(want), "{line} is not {want}");
    }
    assert!(is_served(&running));
    running.signal(Signal::SIGTERM);
    wait_until("it is gone", || running.exited().is_some());
    assert!(running.socket().exists(), "the service manager's file");
}

#[test]
fn sockets_for_others_are_left_alone_and_unusable_ones_refused() {
    // Our own Unix socket replaces the file; the TCP port is taken.
    let run = activated("1", "listen_addr =");
    std::fs::remove_file(run.folder.join(format!(".s.PGSQL.{}", run.port))).unwrap();
    let running = run.up();
    let lines = running.texts();
    assert!(lines.iter().any(|line| line.starts_with("LOG listening on unix:")), "{lines:#?}");

    let nothing = || File::open("/dev/null").unwrap();
    let connected = || UnixDatagram::unbound().unwrap();
    let bad = [activated("$$", "").streams(nothing(), nothing())];
    let bad = bad.into_iter().chain([activated("$$", "").streams(connected(), connected())]);
    for run in bad {
        let (code, lines) = run.failure();
        let last = "FATAL failed to set up socket passed from service manager (fd 3)";
        assert_eq!((code, lines.last().unwrap().as_str()), (1, last), "{lines:#?}");
    }
}

#[test]
fn a_successor_leaves_the_files_of_the_service_manager_alone() {
    if !is_root() {
        return;
    }
    let mut first = activated("$$", "").up();
    let mut next = successor(&first.run).start();
    next.follow_to_background();
    assert_eq!(first.code(), 0);
    next.wait_for("process up: ");
    assert!(is_served(&first));
    next.signal(Signal::SIGTERM);
    wait_until("it is gone", || !next.is_alive());
    assert!(first.socket().exists());
}

/// A process that may store its sockets, up, and its manager.
fn storing(settings: &str) -> (Manager, Running) {
    let (manager, run) = Manager::of(Run::new(settings).env("FDSTORE", "9"));
    let running = run.up();
    assert_eq!(manager.hear(), STORES);
    assert_eq!(manager.hear(), "READY=1");
    (manager, running)
}

/// The next start after such a process, at its port, with what was kept as descriptor 3.
fn next_start(first: &Running, manager: &Manager, settings: &str) -> Run {
    let names = "LISTEN_FDNAMES=pgturnstile-tcp";
    let shell = format!("exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$ {names}");
    let mut run = Run::through(&shell, "");
    run.port = first.run.port;
    run.rewrite(settings);
    let kept = manager.1.borrow()[0].try_clone().unwrap();
    let socket = first.path("notify");
    let run = run.env("NOTIFY_SOCKET", socket.to_str().unwrap()).env("FDSTORE", "9");
    run.streams(kept, File::create("/dev/null").unwrap())
}

fn is_refused(running: &Running) -> bool {
    TcpStream::connect(("127.0.0.1", running.run.port)).is_err()
}

#[test]
fn who_connects_after_a_crash_is_served_by_the_next_process() {
    let (manager, mut first) = storing("pidfile = pid");
    first.signal(Signal::SIGKILL);
    assert_eq!(first.code(), -9);
    let waits = Raw::tcp(first.run.port);
    let next = next_start(&first, &manager, "listen_backlog = 7").up();
    let mut client = waits.login("admin", "pgbouncer", "").unwrap().0;
    assert!(tags(&client.query("show version")).contains('D'));
    let lines = next.texts();
    assert!(!lines.iter().any(|line| line.starts_with("WARNING")), "{lines:#?}");
    // A manager knows that it has it already.
    assert_eq!(manager.hear(), STORES);
    assert_eq!(manager.hear(), "READY=1");
    assert_eq!(tags(&client.query("shutdown wait_for_clients")), "CZ");
    assert_eq!(manager.hear_state(), EMPTIES);
    assert_eq!(manager.hear(), "BARRIER=1");
    wait_until("it does not listen any more", || is_refused(&next));
    assert!(next.is_alive());
}

#[test]
fn before_another_start_the_manager_keeps_the_sockets() {
    let (manager, mut first) = storing("pidfile = pid");
    // SIGRTMIN
    let told = Command::new("/bin/kill").args(["-34", &first.pid.to_string()]).status();
    assert!(told.unwrap().success());
    assert_eq!(manager.hear_state(), "STOPPING=1");
    assert_eq!(first.code(), 0);
    assert!(manager.hears_nothing() && !is_refused(&first));
    let text = "LOG got SIGINT, shutting down, waiting for all servers connections to be released";
    assert!(first.texts().iter().any(|line| line == text));
}

#[test]
fn kept_sockets_that_are_of_no_use_are_out_of_the_way_before_others_are_opened() {
    let (manager, mut first) = storing("");
    first.signal(Signal::SIGKILL);
    assert_eq!(first.code(), -9);
    let next = next_start(&first, &manager, "so_reuseport = 1").start();
    // systemd leaves the closing to a process of its own.
    let late = manager.1.borrow()[0].try_clone().unwrap();
    assert_eq!(manager.hear(), EMPTIES);
    std::thread::sleep(Duration::from_millis(100));
    drop(late);
    assert_eq!(manager.hear(), "READY=1");
    let lines = next.texts();
    assert!(!lines.iter().any(|line| line.starts_with("WARNING")), "{lines:#?}");
    assert!(is_served(&next));
    // Others of the group go on where this one has been.
    assert!(manager.hears_nothing());
}

#[test]
fn a_successor_stores_what_it_has_taken_over_if_the_next_start_can_use_it() {
    let (manager, mut first) = storing("pidfile = pid");
    let notify = first.path("notify");
    let place = first.run.filled("unix_socket_dir = DIR\nlisten_port = PORT\npidfile = DIR/pid");
    let port = first.run.port;
    for (settings, is_of_use) in [("listen_addr = 127.0.0.1", true), ("listen_addr = ::1", false)] {
        let run = Run::new(&format!("{place}\nlogfile = log\n{settings}"));
        let run = run.env("NOTIFY_SOCKET", notify.to_str().unwrap()).env("FDSTORE", "9");
        let mut next = run.args(&["-R"]).up();
        assert_eq!(manager.hear_state(), format!("MAINPID={}", next.pid));
        assert_eq!(manager.hear_state(), EMPTIES);
        if is_of_use {
            assert_eq!(manager.hear_state(), STORES);
        }
        assert_eq!(manager.hear_state(), "READY=1");
        assert_eq!(first.code(), 0);
        std::mem::swap(&mut first, &mut next);
    }
    assert!(manager.1.borrow().is_empty());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
}

#[test]
fn nothing_is_stored_where_that_would_not_help() {
    let quiet = |manager: &Manager, run: Run| {
        let running = run.up();
        assert_eq!(manager.hear(), "READY=1");
        assert!(manager.hears_nothing());
        running
    };
    let (manager, run) = Manager::of(Run::new("so_reuseport = 1").env("FDSTORE", "9"));
    drop(quiet(&manager, run));
    let (manager, run) = Manager::of(Run::new("").env("FDSTORE", "0"));
    let running = quiet(&manager, run);
    running.command("shutdown wait_for_servers");
    assert!(manager.hears_nothing());
    let (manager, run) = Manager::of(activated("$$", "").env("FDSTORE", "9"));
    drop(quiet(&manager, run));
}
