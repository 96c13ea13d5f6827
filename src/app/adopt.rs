//! `-R --adopt=soft`: takes the listening sockets of a running process, which goes on with its
//! clients and ends when they have left. Until the line that is named the point of no return,
//! whatever fails here leaves the old process as it was.

use super::daemon::{self, OwnPidfile, Pidfile};
use super::takeover::{listening_at, not_found};
use super::turn::{Process, OLD_PROCESS};
use super::{options, Fatal};
use crate::base::{Journal, Level};
use crate::config::Settings;
use crate::net::handoff::{self, Old};
use crate::net::swap::{self, Swap};
use crate::net::sys;
use mio::unix::SourceFd;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What an old process has handed over, and the line to it. It is suspended.
pub(super) struct Adoption {
    old: Old,
    tcp: Vec<OwnedFd>,
    /// The old process's Unix sockets.
    unix: Vec<OwnedFd>,
    swap: Swap,
    /// Our Unix socket.
    own: OwnedFd,
}

/// Finds the old process and has it hand over its listening sockets; `None` if there is none. The
/// error is the text of a FATAL line, after which the old process goes on.
pub(super) fn begin(
    settings: &Settings,
    journal: &mut Journal,
) -> Result<Option<Adoption>, String> {
    let Some(mut old) = Old::find(&settings.unix_socket_dir, settings.listen_port)? else {
        not_found(true, journal);
        return Ok(None);
    };
    journal.line(Level::Log, "takeover_init: launching connection".into());
    old.log_in()?;
    old.check_version()?;
    let (swap, own) = Swap::prepare(&options::listen(settings))?;
    journal.line(Level::Log, "login OK, sending SUSPEND".into());
    old.suspend()?;
    journal.line(Level::Log, "SUSPEND finished, sending SHOW FDS".into());
    let (mut tcp, mut unix) = (vec![], vec![]);
    for socket in old.listeners()? {
        match handoff::is_unix(&socket)? {
            true => unix.push(socket),
            false => {
                let at = listening_at(&socket, settings);
                journal.line(Level::Log, format!("got pooler socket: {at}"));
                tcp.push(socket);
            }
        }
    }
    journal.line(Level::Log, "SHOW FDS finished".into());
    Ok(Some(Adoption { old, tcp, unix, swap, own }))
}

/// Refuses to take everything from a process that has no pidfile yet, because the one before it is
/// not through with its clients: the file would never go away. The error is the text of a FATAL
/// line.
pub(super) fn refuse_second(old: &Old, pidfile: &str) -> Result<(), String> {
    let (Some(old), false) = (old.pid(), pidfile.is_empty()) else { return Ok(()) };
    let path = Path::new(pidfile);
    match daemon::running_pid(path) {
        Some(pid) if pid != old => Err(format!(
            "pidfile '{pidfile}' is that of process {pid}, but the one to replace is {old}; \
             if process {pid} still has clients since --adopt=soft, use that again"
        )),
        _ => Ok(()),
    }
}

impl Adoption {
    /// Takes the place of the old process. Everything else is ready.
    pub(super) fn finish(
        self,
        process: &mut Process,
        settings: &Settings,
    ) -> Result<Successor, Fatal> {
        let Adoption { mut old, tcp, unix, swap, own } = self;
        let listening = options::listen(settings);
        process.net.adopt_listeners(tcp, own, &listening).map_err(|_| Fatal)?;
        if let Err(text) = swap.take_place() {
            return Err(refused(process, swap, text));
        }
        process.net.listeners().claim_socket_file(swap.path().to_path_buf());
        // The old process does not accept anybody now, and nobody else can come to it any more.
        let waiting: Vec<_> = unix.into_iter().flat_map(swap::accept_waiting).collect();
        process.say(Level::Log, "sending SHUTDOWN WAIT_FOR_CLIENTS;".into());
        // A unit whose main process ends has ended.
        process.service.become_main();
        // The point of no return, if it does not refuse.
        if let Err(text) = old.retire() {
            if let Some(pid) = old.pid() {
                process.service.follow(pid);
            }
            return Err(refused(process, swap, text));
        }
        for (stream, origin) in waiting {
            process.welcome(stream, origin);
        }
        process.core.set_elder(Some(swap.dir().to_string_lossy().into_owned()));
        let pidfile = Some(&settings.pidfile).filter(|name| !name.is_empty()).map(PathBuf::from);
        let mut successor =
            Successor { swap, elder: Elder::Gone, pidfile, own_pidfile: None, is_told: false };
        successor.watch(old.pid(), process);
        let line = "old process goes on with its clients, new ones are ours".to_owned();
        process.say(Level::Log, line);
        process.perform();
        process.print();
        Ok(successor)
    }
}

/// Nothing has come of it: the old process has its place again.
fn refused(process: &mut Process, swap: Swap, text: String) -> Fatal {
    swap.give_back();
    process.say(Level::Fatal, text);
    Fatal
}

/// What is known of the process whose clients are still with it.
enum Elder {
    /// This becomes readable when it ends.
    Watched(OwnedFd),
    /// Its number is all there is.
    Known(Pid),
    /// Nobody can tell when it ends.
    Unknown,
    /// It has ended.
    Gone,
}

/// What is left to do for a process that has only its clients left: it unlinks the Unix socket that
/// is ours now when it ends, and the pidfile is its own until then.
pub(super) struct Successor {
    swap: Swap,
    elder: Elder,
    /// Where our pidfile is to be.
    pidfile: Option<PathBuf>,
    own_pidfile: Option<OwnPidfile>,
    /// A failure has been reported.
    is_told: bool,
}

impl Successor {
    fn watch(&mut self, pid: Option<i32>, process: &mut Process) {
        let Some(pid) = pid else {
            self.elder = Elder::Unknown;
            return;
        };
        self.elder = match sys::open_process(pid) {
            Ok(fd) => {
                // What fails here is noticed by the janitor.
                let _ = process.net.watch(&mut SourceFd(&fd.as_raw_fd()), OLD_PROCESS);
                Elder::Watched(fd)
            }
            Err(_) => Elder::Known(Pid::from_raw(pid)),
        };
    }

    fn is_over(&self) -> bool {
        match &self.elder {
            Elder::Watched(fd) => sys::has_ended(fd),
            Elder::Known(pid) => kill(*pid, None) == Err(Errno::ESRCH),
            Elder::Unknown | Elder::Gone => false,
        }
    }

    /// Writes the pidfile as soon as that of the old process is gone.
    fn write_pidfile(&mut self) -> Result<(), String> {
        let Some(path) = self.pidfile.as_deref().filter(|_| self.own_pidfile.is_none()) else {
            return Ok(());
        };
        let is_over = matches!(self.elder, Elder::Gone);
        if is_over && daemon::check_pidfile(path) == Ok(Pidfile::Stale) {
            daemon::remove_stale_pidfile(path)?;
        }
        if !path.exists() {
            self.own_pidfile = Some(OwnPidfile::create(path)?);
        }
        Ok(())
    }
}

impl Process {
    /// Looks after what an old process leaves behind; at each tick, and when it ends.
    pub(super) fn tend_succession(&mut self) {
        let Some(successor) = self.successor.as_mut() else { return };
        if successor.is_over() {
            successor.elder = Elder::Gone;
            successor.swap.forget_elder();
            self.core.set_elder(None);
            let line = "old process has ended".to_owned();
            self.core.journal.line(Level::Log, line);
        }
        // Whoever has taken our place by now sees to the rest.
        if self.core.shutdown().is_some() || self.core.is_suspended() {
            return;
        }
        if successor.swap.restore() {
            let line = "Unix socket was gone, put back".to_owned();
            self.core.journal.line(Level::Log, line);
        }
        if let Err(text) = successor.write_pidfile() {
            if !std::mem::replace(&mut successor.is_told, true) {
                self.core.journal.line(Level::Warning, text);
            }
        }
    }
}
