//! Log lines out of the process: to standard error, to a file (config 6.2) and to syslog, and times
//! as the console shows them.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::tz::TimeZone;
use jiff::Timestamp;

use super::syslog::Syslog;
use crate::base::journal::Level;
use crate::base::text::cut;
use crate::config::Settings;
use crate::net::options::reason;

/// Longest text of a line in bytes, socket prefix included (config 6.2).
const LONGEST: usize = 2047;

/// The log file can't be opened. The complaint has been written to standard error; the process
/// has to end with exit code 1 (config 1.4).
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

/// Where log lines go.
pub struct Log {
    zone: LocalZone,
    stamp: Stamp,
    /// The last line; its memory is used again.
    line: String,
    quiet: bool,
    path: String,
    file: Option<File>,
    syslog: Syslog,
    broken: bool,
}

impl Log {
    /// A log to standard error, or to nowhere yet if `quiet` (`-q`).
    pub fn new(quiet: bool) -> Log {
        Log {
            zone: LocalZone::load(),
            stamp: Stamp::default(),
            line: String::new(),
            quiet,
            path: String::new(),
            file: None,
            syslog: Syslog::default(),
            broken: false,
        }
    }

    /// Writes nothing to standard error from now on.
    pub fn set_quiet(&mut self) {
        self.quiet = true;
    }

    /// Takes the places from the settings. An open log file stays until it is reopened, whatever
    /// its new name (config 3.2).
    pub fn follow(&mut self, settings: &Settings) {
        settings.logfile.clone_into(&mut self.path);
        let (facility, ident) = (&settings.syslog_facility, &settings.syslog_ident);
        self.syslog.follow(settings.syslog.on(), facility, ident);
    }

    /// Closes log file and syslog. The next line opens them anew, and if need be creates the file
    /// (config 6.4).
    pub fn reopen(&mut self) {
        self.file = None;
        self.syslog.close();
    }

    /// Writes one line to each place; none any more after the log file could not be opened.
    pub fn line(&mut self, level: Level, text: &str) -> Result<(), Broken> {
        if self.broken {
            return Err(Broken);
        }
        let now = now_ms();
        let pid = process::id();
        self.line.clear();
        self.stamp.write(now, &self.zone, &mut self.line);
        if let Err(error) = self.open() {
            let (path, why, stamp) = (&self.path, reason(&error), &self.line);
            write_stderr(&format!("{stamp} {pid} FATAL Cannot open logfile: '{path}': {why}\n"));
            self.broken = true;
            return Err(Broken);
        }
        let text = one_line(text);
        // Writing to a String can't fail.
        let _ = write!(self.line, " [{pid}] {} ", tag(level));
        self.line.push_str(&text);
        self.line.push('\n');
        if !self.quiet {
            write_stderr(&self.line);
        }
        if let Some(file) = &mut self.file {
            // A full disk must not stop the pooler, and there is nowhere to complain.
            let _ = file.write_all(self.line.as_bytes());
        }
        self.syslog.line(level, || self.zone.syslog_stamp(now), pid, &text);
        Ok(())
    }

    /// The zone in which lines are stamped.
    pub fn zone(&self) -> &LocalZone {
        &self.zone
    }

    fn open(&mut self) -> io::Result<()> {
        if self.file.is_none() && !self.path.is_empty() {
            self.file = Some(OpenOptions::new().append(true).create(true).open(&self.path)?);
        }
        Ok(())
    }
}

/// How lines of the present second begin: lines come in bursts, and a time is dear to render.
#[derive(Default)]
struct Stamp {
    second: Option<i64>,
    time: String,
    zone: String,
}

impl Stamp {
    /// Appends milliseconds since 1970 as log lines begin: `YYYY-MM-DD HH:MM:SS.mmm ZONE`.
    fn write(&mut self, unix_ms: i64, zone: &LocalZone, to: &mut String) {
        let (second, millis) = (unix_ms.div_euclid(1000), unix_ms.rem_euclid(1000));
        if self.second != Some(second) {
            self.second = Some(second);
            let whole = zone.seconds(second);
            let (time, name) = whole.rsplit_once(' ').unwrap_or((&whole, ""));
            (self.time, self.zone) = (time.to_owned(), name.to_owned());
        }
        to.push_str(&self.time);
        // Writing to a String can't fail.
        let _ = write!(to, ".{millis:03} ");
        to.push_str(&self.zone);
    }
}

/// The local time zone, from TZ or the system, as it was when it was loaded.
pub struct LocalZone(TimeZone);

impl LocalZone {
    /// Reads the zone; UTC if there is none or it can't be read.
    pub fn load() -> LocalZone {
        LocalZone(TimeZone::try_system().unwrap_or(TimeZone::UTC))
    }

    /// Seconds since 1970 as the columns of type `time` in SHOW tables: `YYYY-MM-DD HH:MM:SS ZONE`.
    pub fn seconds(&self, unix_secs: i64) -> String {
        self.render(Timestamp::from_second(unix_secs), "%Y-%m-%d %H:%M:%S %Z")
    }

    /// Milliseconds since 1970 as syslog lines begin: `Mon DD HH:MM:SS`, the day padded with a space.
    fn syslog_stamp(&self, unix_ms: i64) -> String {
        self.render(Timestamp::from_millisecond(unix_ms), "%b %e %H:%M:%S")
    }

    fn render(&self, time: Result<Timestamp, jiff::Error>, format: &str) -> String {
        let zoned = time.unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(self.0.clone());
        zoned.strftime(format).to_string()
    }
}

fn now_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

fn tag(level: Level) -> &'static str {
    match level {
        Level::Fatal => "FATAL",
        Level::Error => "ERROR",
        Level::Warning => "WARNING",
        Level::Log => "LOG",
        Level::Debug => "DEBUG",
        Level::Noise => "NOISE",
    }
}

/// The text in its shortest allowed form. Further lines of a text begin with a tab, so that only
/// real log lines begin with a time (config 6.2).
fn one_line(text: &str) -> Cow<'_, str> {
    let text = cut(text, LONGEST);
    if !text.contains('\n') {
        return text.into();
    }
    let indented = text.replace('\n', "\n\t");
    cut(&indented, LONGEST).trim_end().to_owned().into()
}

fn write_stderr(line: &str) {
    let _ = io::stderr().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    fn zone(name: &str) -> LocalZone {
        LocalZone(TimeZone::posix(name).unwrap())
    }

    /// A new directory below the system's temporary one, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("pgt-log-{name}-{}", process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn file(&self, name: &str) -> String {
            self.0.join(name).to_str().unwrap().to_string()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn times_carry_the_zone_in_force_at_that_time() {
        let berlin = zone("CET-1CEST,M3.5.0,M10.5.0/3");
        let mut stamp = Stamp::default();
        for (ms, want) in [
            (1_795_225_282_006, "2026-11-21 02:41:22.006 CET"),
            (1_795_225_282_566, "2026-11-21 02:41:22.566 CET"),
            (1_795_225_283_000, "2026-11-21 02:41:23.000 CET"),
            (1_783_000_000_000, "2026-07-02 15:46:40.000 CEST"),
        ] {
            let mut line = String::new();
            stamp.write(ms, &berlin, &mut line);
            assert_eq!(line, want);
        }
        assert_eq!(berlin.seconds(1_783_000_000), "2026-07-02 15:46:40 CEST");
        assert_eq!(zone("UTC0").syslog_stamp(1_795_225_282_566), "Nov 21 01:41:22");
        assert_eq!(berlin.syslog_stamp(1_793_577_599_999), "Nov  2 00:59:59");
        assert_eq!(zone("UTC0").seconds(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(zone("UTC0").seconds(i64::MAX), "1970-01-01 00:00:00 UTC");
    }

    #[test]
    fn text_is_cut_and_kept_apart_from_real_lines() {
        let long = "x".repeat(3000);
        for (text, want) in [
            ("plain ", "plain "),
            ("two\nlines", "two\n\tlines"),
            ("ends\n", "ends"),
            ("ends \n\n", "ends"),
            (long.as_str(), &long[..2047]),
        ] {
            assert_eq!(one_line(text), want);
        }
    }

    fn to_file(path: &str) -> Settings {
        Settings { logfile: path.to_owned(), ..Settings::default() }
    }

    /// The lines of a file behind the process's number.
    fn texts(path: &str) -> Vec<String> {
        let mark = format!(" [{}] ", process::id());
        let whole = fs::read_to_string(path).unwrap();
        whole.lines().map(|line| line.split_once(&mark).unwrap().1.to_string()).collect()
    }

    #[test]
    fn file_is_opened_by_the_next_line_and_followed_after_rotation() {
        let folder = Folder::new("rotation");
        let (path, old) = (folder.file("a.log"), folder.file("a.log.1"));
        let mut log = Log::new(true);
        log.follow(&to_file(&path));
        assert!(!fs::exists(&path).unwrap());
        log.line(Level::Log, "one").unwrap();
        fs::rename(&path, &old).unwrap();
        log.line(Level::Warning, "two").unwrap();
        log.reopen();
        assert!(!fs::exists(&path).unwrap());
        log.line(Level::Fatal, "three").unwrap();
        log.follow(&to_file(""));
        log.reopen();
        log.line(Level::Log, "four").unwrap();
        assert_eq!(texts(&old), ["LOG one", "WARNING two"]);
        assert_eq!(texts(&path), ["FATAL three"]);
    }

    #[test]
    fn open_file_stays_until_it_is_reopened() {
        let folder = Folder::new("stays");
        let (one, two) = (folder.file("one.log"), folder.file("two.log"));
        let mut log = Log::new(true);
        log.line(Level::Log, "nowhere").unwrap();
        log.follow(&to_file(&one));
        log.line(Level::Log, "a").unwrap();
        log.follow(&to_file(&two));
        log.line(Level::Debug, "b").unwrap();
        log.reopen();
        log.line(Level::Noise, "c").unwrap();
        assert_eq!(texts(&one), ["LOG a", "DEBUG b"]);
        assert_eq!(texts(&two), ["NOISE c"]);
    }

    #[test]
    fn log_file_that_cannot_be_opened_ends_the_process() {
        let folder = Folder::new("broken");
        let mut log = Log::new(true);
        log.follow(&to_file(&folder.file("missing/a.log")));
        assert_eq!(log.line(Level::Log, "x"), Err(Broken));
    }
}
