//! Log lines to syslog, in the form in which `syslog(3)` sends them (config 6.3). The crate
//! `syslog` and libc don't fit: one pads the day with 0 and knows UTC only, the other may block.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::base::journal::Level;

/// Where the system's logger listens.
const SOCKET: &str = "/dev/log";
/// How long a line may wait for a logger that is slow.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long nothing is sent to a logger that didn't take a line in this time.
const PAUSE: Duration = Duration::from_secs(1);

/// Names of facilities with their numbers; any other name means daemon.
const FACILITIES: &[(&str, u8)] = &[
    ("user", 1),
    ("daemon", DAEMON),
    ("auth", 4),
    ("authpriv", 10),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];
const DAEMON: u8 = 3;

/// The way to the system's logger.
pub(super) struct Syslog {
    path: PathBuf,
    on: bool,
    facility: u8,
    ident: String,
    open: Option<Open>,
}

/// Facility and name count as they were when the first line after opening was sent.
struct Open {
    facility: u8,
    ident: String,
    socket: Option<UnixDatagram>,
    paused_at: Option<Instant>,
}

impl Default for Syslog {
    fn default() -> Self {
        Syslog::at(PathBuf::from(SOCKET))
    }
}

impl Syslog {
    /// Sends nothing yet; later to this socket.
    pub(super) fn at(path: PathBuf) -> Syslog {
        Syslog { path, on: false, facility: DAEMON, ident: String::new(), open: None }
    }

    /// Takes the settings of the same names. Facility and ident count from the next opening on.
    pub(super) fn follow(&mut self, on: bool, facility: &str, ident: &str) {
        self.on = on;
        let row = FACILITIES.iter().find(|(name, _)| *name == facility);
        self.facility = row.map_or(DAEMON, |(_, number)| *number);
        ident.clone_into(&mut self.ident);
    }

    /// Closes; the next line opens anew.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// Sends a line if syslog is on and the level is one that goes there. `stamp` makes the time
    /// as RFC 3164 has it. What can't be sent is lost: there is nobody to tell.
    pub(super) fn line(
        &mut self,
        level: Level,
        stamp: impl FnOnce() -> String,
        pid: u32,
        text: &str,
    ) {
        let Some(severity) = severity(level).filter(|_| self.on) else {
            return;
        };
        let (facility, ident) = (self.facility, &self.ident);
        let open = self.open.get_or_insert_with(|| Open {
            facility,
            ident: ident.clone(),
            socket: None,
            paused_at: None,
        });
        if open.paused_at.is_some_and(|at| at.elapsed() < PAUSE) {
            return;
        }
        let priority = open.facility * 8 + severity;
        let line = format!("<{priority}>{} {}[{pid}]: {text}", stamp(), open.ident);
        let slow = open.send(&self.path, line.as_bytes()).is_err_and(|error| is_slow(&error));
        open.paused_at = slow.then(Instant::now);
    }
}

impl Open {
    /// Sends; if the logger has been restarted, over a new connection.
    fn send(&mut self, path: &std::path::Path, line: &[u8]) -> io::Result<()> {
        if let Some(socket) = &self.socket {
            match socket.send(line) {
                Err(error) if !is_slow(&error) => {}
                other => return other.map(drop),
            }
        }
        self.socket = None;
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let result = socket.send(line);
        self.socket = Some(socket);
        result.map(drop)
    }
}

fn is_slow(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn severity(level: Level) -> Option<u8> {
    match level {
        Level::Fatal => Some(2),
        Level::Error => Some(3),
        Level::Warning => Some(4),
        Level::Log => Some(6),
        Level::Debug | Level::Noise => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A logger in a folder of its own.
    struct Logger {
        folder: PathBuf,
        socket: UnixDatagram,
    }

    impl Logger {
        fn new(name: &str) -> Logger {
            let id = std::process::id();
            let folder = std::env::temp_dir().join(format!("pgt-syslog-{name}-{id}"));
            fs::create_dir_all(&folder).unwrap();
            let socket = Logger::listen(&folder);
            Logger { folder, socket }
        }

        fn listen(folder: &std::path::Path) -> UnixDatagram {
            let socket = UnixDatagram::bind(folder.join("log")).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        }

        /// A logger that takes the place of the one that listened here.
        fn restart(&mut self) {
            fs::remove_file(self.folder.join("log")).unwrap();
            self.socket = Logger::listen(&self.folder);
        }

        /// A way to it that is in use.
        fn way(&self) -> Syslog {
            let mut syslog = Syslog::at(self.folder.join("log"));
            syslog.follow(true, "daemon", "me");
            syslog
        }

        fn received(&self) -> Vec<String> {
            let mut buf = [0; 4096];
            std::iter::from_fn(|| {
                let len = self.socket.recv(&mut buf).ok()?;
                Some(String::from_utf8(buf[..len].to_vec()).unwrap())
            })
            .collect()
        }
    }

    impl Drop for Logger {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    fn say(syslog: &mut Syslog, level: Level, text: &str) {
        syslog.line(level, || "Nov  1 02:05:10".to_owned(), 77, text);
    }

    #[test]
    fn lines_have_priority_time_name_and_process() {
        let logger = Logger::new("form");
        let mut syslog = logger.way();
        for (facility, level, want) in [
            ("local3", Level::Log, Some("<158>Nov  1 02:05:10 me[77]: x y")),
            ("LOCAL3", Level::Log, Some("<30>Nov  1 02:05:10 me[77]: x y")),
            ("auth", Level::Warning, Some("<36>Nov  1 02:05:10 me[77]: x y")),
            ("authpriv", Level::Error, Some("<83>Nov  1 02:05:10 me[77]: x y")),
            ("user", Level::Fatal, Some("<10>Nov  1 02:05:10 me[77]: x y")),
            ("local0", Level::Debug, None),
            ("local0", Level::Noise, None),
        ] {
            syslog.follow(true, facility, "me");
            syslog.close();
            say(&mut syslog, level, "x y");
            assert_eq!(logger.received().first().map(String::as_str), want, "{facility}");
        }
    }

    #[test]
    fn switch_counts_at_once_and_names_after_opening() {
        let logger = Logger::new("switch");
        let mut syslog = logger.way();
        syslog.follow(false, "user", "one");
        say(&mut syslog, Level::Log, "unheard");
        syslog.follow(true, "user", "one");
        say(&mut syslog, Level::Log, "a");
        syslog.follow(true, "auth", "two");
        say(&mut syslog, Level::Log, "b");
        syslog.follow(false, "auth", "two");
        say(&mut syslog, Level::Log, "unheard");
        syslog.follow(true, "auth", "two");
        say(&mut syslog, Level::Log, "c");
        syslog.close();
        say(&mut syslog, Level::Log, "d");
        let short = |line: &String| line.replace("Nov  1 02:05:10 ", "");
        let lines: Vec<String> = logger.received().iter().map(short).collect();
        assert_eq!(lines, ["<14>one[77]: a", "<14>one[77]: b", "<14>one[77]: c", "<38>two[77]: d"]);
    }

    #[test]
    fn restarted_logger_is_found_again() {
        let mut logger = Logger::new("restart");
        let mut syslog = logger.way();
        say(&mut syslog, Level::Log, "a");
        logger.restart();
        say(&mut syslog, Level::Log, "b");
        assert_eq!(logger.received(), ["<30>Nov  1 02:05:10 me[77]: b"]);
        fs::remove_file(logger.folder.join("log")).unwrap();
        syslog.close();
        say(&mut syslog, Level::Log, "nobody hears this");
    }

    #[test]
    fn stuck_logger_costs_little_time() {
        let logger = Logger::new("stuck");
        let mut syslog = logger.way();
        let start = Instant::now();
        for _ in 0..10_000 {
            say(&mut syslog, Level::Log, "x");
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert!(!logger.received().is_empty());
    }
}
