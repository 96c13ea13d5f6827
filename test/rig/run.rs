//! The program under test with any switches, settings and surroundings, up or not.

use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::pooler::binary;
use super::raw::Raw;
use super::scratch::{command, free_port, scratch, write};
use super::wait_until;
use super::wire::tags;

/// A start that is being prepared, in a folder of its own with the files `ini` and `users`.
pub(crate) struct Run {
    pub(crate) folder: PathBuf,
    pub(crate) port: u16,
    command: Command,
    /// What the process starts with as its standard input and output.
    streams: Option<(OwnedFd, OwnedFd)>,
}

impl Run {
    /// With these lines at the end of the section [pgbouncer]; DIR and PORT in them stand for folder and port. The folder is
    /// the current directory, too.
    pub(crate) fn new(settings: &str) -> Self {
        Self::through(":", settings)
    }

    /// As `new`, out of a shell that runs this command line first.
    pub(crate) fn through(shell: &str, settings: &str) -> Self {
        let folder = scratch().folder();
        let mut command = command("/bin/sh");
        command.args(["-c", &format!("{shell}; exec \"$0\" \"$@\"")]).arg(binary());
        command.arg("ini").current_dir(&folder);
        let run = Self { folder, port: free_port(), command, streams: None };
        write(&run.folder.join("users"), "\"admin\" \"\"\n\"trusty\" \"\"\n");
        run.rewrite(settings);
        run
    }

    /// Writes the ini file anew with these lines at its end.
    pub(crate) fn rewrite(&self, settings: &str) {
        let text = format!(
            "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = PORT\nunix_socket_dir = DIR\n\
             auth_type = trust\nauth_file = users\nadmin_users = admin\n{settings}\n"
        );
        write(&self.folder.join("ini"), self.filled(&text));
    }

    /// A text with folder and port put in.
    pub(crate) fn filled(&self, text: &str) -> String {
        text.replace("DIR", self.folder.to_str().unwrap()).replace("PORT", &self.port.to_string())
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// These are the process's standard input and output instead of nothing and a file.
    pub(crate) fn streams(mut self, input: impl Into<OwnedFd>, output: impl Into<OwnedFd>) -> Self {
        self.streams = Some((input.into(), output.into()));
        self
    }

    /// With root's rights; only where the tests have them.
    pub(crate) fn with_root(mut self) -> Self {
        self.command.uid(0).gid(0);
        self
    }

    /// Writes a file in the folder.
    pub(crate) fn file(self, name: &str, text: &str) -> Self {
        write(&self.folder.join(name), self.filled(text));
        self
    }

    pub(crate) fn start(mut self) -> Running {
        let output = std::fs::File::create(self.folder.join("stdout")).unwrap();
        let errors = std::fs::File::create(self.folder.join("stderr")).unwrap();
        self.command.stdout(output).stderr(errors).stdin(Stdio::null());
        if let Some((input, output)) = self.streams.take() {
            self.command.stdin(input).stdout(output);
        }
        let child = self.command.spawn().unwrap();
        // Nobody else has them open any more.
        self.command.stdin(Stdio::null()).stdout(Stdio::null());
        scratch().watch(child.id());
        let pid = i32::try_from(child.id()).unwrap();
        Running { run: self, child: Some(child), pid }
    }

    /// Starts and waits until it is up.
    pub(crate) fn up(self) -> Running {
        let mut running = self.start();
        wait_until("the program is up or gone", || {
            running.all().contains("process up: ") || running.exited().is_some()
        });
        assert!(running.all().contains("process up: "), "{}", running.all());
        running
    }

    /// Runs it to its end; exit code and the texts of standard error.
    pub(crate) fn failure(self) -> (i32, Vec<String>) {
        let mut running = self.start();
        (running.code(), running.texts())
    }
}

/// A process; it ends with this.
pub(crate) struct Running {
    pub(crate) run: Run,
    child: Option<Child>,
    pub(crate) pid: i32,
}

impl Running {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.run.folder.join(name)
    }

    /// The socket's file.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path(&format!(".s.PGSQL.{}", self.run.port))
    }

    /// A file's text; nothing if there is no such file.
    pub(crate) fn read(&self, name: &str) -> String {
        let bytes = std::fs::read(self.path(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Standard error and the log file.
    pub(crate) fn all(&self) -> String {
        self.read("stderr") + &self.read("log")
    }

    /// The lines of standard error without time and process.
    pub(crate) fn texts(&self) -> Vec<String> {
        texts(&self.read("stderr"))
    }

    pub(crate) fn wait_for(&self, text: &str) {
        wait_until(&format!("{text}\nin {}", self.run.folder.display()), || {
            self.all().contains(text)
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).unwrap();
    }

    /// How it ended, if it did.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        let status = child.try_wait().unwrap();
        if status.is_some() {
            scratch().forget(child.id());
        }
        status
    }

    /// Waits for the end; the exit code, or the negative number of the signal.
    pub(crate) fn code(&mut self) -> i32 {
        wait_until("the program exits", || self.exited().is_some());
        let status = self.child.as_mut().unwrap().wait().unwrap();
        status.code().unwrap_or_else(|| -status.signal().unwrap())
    }

    /// Waits until the program has left a process in the background and looks after that one from now on.
    pub(crate) fn follow_to_background(&mut self) {
        assert_eq!(self.code(), 0, "{}", self.all());
        wait_until("there is a pidfile", || self.read("pid").ends_with('\n'));
        self.child = None;
        self.pid = self.read("pid").trim().parse().unwrap();
        scratch().watch(u32::try_from(self.pid).unwrap());
    }

    /// True if the process is there.
    pub(crate) fn is_alive(&self) -> bool {
        kill(Pid::from_raw(self.pid), None).is_ok()
    }

    /// A field of /proc/PID/status.
    pub(crate) fn status(&self, field: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
        line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The console over TCP.
    pub(crate) fn console(&self) -> Raw {
        Raw::tcp(self.run.port).login("admin", "pgbouncer", "").unwrap().0
    }

    /// A console command that must succeed.
    pub(crate) fn command(&self, sql: &str) {
        let answer = self.console().query(sql);
        assert!(!tags(&answer).contains('E'), "{sql}: {answer:?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        match &mut self.child {
            Some(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            None => {
                let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
            }
        }
        scratch().forget(u32::try_from(self.pid).unwrap());
    }
}

/// The lines of a log without time and process, so that they begin with their level.
pub(crate) fn texts(log: &str) -> Vec<String> {
    let text = |line: &str| line.split_once("] ").map_or(line.to_owned(), |(_, t)| t.to_owned());
    log.lines().map(text).collect()
}

/// True if the tests have root's rights.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Who owns a file: user and group.
pub(crate) fn owner(path: &Path) -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    let data = std::fs::metadata(path).unwrap();
    (data.uid(), data.gid())
}
