//! `-R`: goes on with the sockets of a running process (takeover 1 to 7). Until the line that is
//! named the point of no return, whatever fails here leaves the old process as it was: it goes on by
//! itself when this one is gone.

use super::daemon::{self, Pidfile};
use super::heir;
use super::turn::Process;
use super::{adopt, options, Fatal};
use crate::base::{Journal, Level};
use crate::config::Settings;
use crate::core::record::Record;
use crate::core::{Addr, Core, Peer};
use crate::net::handoff::{self, Inherited, Old};
use crate::net::listen;
use crate::net::stream::Stream;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// So often it is looked whether the old process is gone.
const STEP: Duration = Duration::from_millis(100);
/// A pidfile that is still there after so many steps was left behind.
const PATIENCE: u32 = 5;
/// After so many steps it is said that this takes long.
const LONG: u32 = 100;

/// How we come by what an old process has.
pub(super) enum Takeover {
    /// It is a PgBouncer, or an older one of us; this is what it has handed over.
    Sockets(Box<Sockets>),
    /// It is one of us, and will hand over everything when we are ready for it.
    Everything(Box<Old>),
}

/// What an old process has handed over, and the line to it.
pub(super) struct Sockets {
    old: Old,
    listeners: Vec<OwnedFd>,
    /// Connections that go on.
    streams: Vec<(Peer, Stream)>,
    /// Servers that nobody is linked to.
    idle: Vec<OwnedFd>,
}

/// Finds the old process and has it hand over everything; `None` if there is none. The error is the
/// text of a FATAL line, after which the old process goes on.
pub(super) fn begin(
    settings: &Settings,
    core: &mut Core,
    journal: &mut Journal,
) -> Result<Option<Takeover>, String> {
    let Some(mut old) = Old::find(&settings.unix_socket_dir, settings.listen_port)? else {
        return Ok(not_found(true, journal));
    };
    journal.line(Level::Log, "takeover_init: launching connection".into());
    old.log_in()?;
    adopt::refuse_second(&old, &settings.pidfile)?;
    if old.knows_handoff()? {
        return Ok(Some(Takeover::Everything(Box::new(old))));
    }
    journal.line(Level::Log, "login OK, sending SUSPEND".into());
    old.suspend()?;
    journal.line(Level::Log, "SUSPEND finished, sending SHOW FDS".into());
    // The limit may have been a higher one for the old process.
    let sockets = daemon::with_all_descriptors(|| old.sockets())?;
    let sockets = sort(old, sockets, settings, core, journal)?;
    journal.line(Level::Log, "SHOW FDS finished".into());
    journal.line(Level::Log, "disko over, going background".into());
    Ok(Some(Takeover::Sockets(Box::new(sockets))))
}

/// Says that there is no old process, if one was asked for.
pub(super) fn not_found(asked: bool, journal: &mut Journal) -> Option<Takeover> {
    if asked {
        journal.line(Level::Log, "old process not found, try to continue normally".into());
    }
    None
}

/// Gives each socket its place.
fn sort(
    old: Old,
    sockets: Vec<Inherited>,
    settings: &Settings,
    core: &mut Core,
    journal: &mut Journal,
) -> Result<Sockets, String> {
    let mut takeover = Sockets { old, listeners: vec![], streams: vec![], idle: vec![] };
    let mut rows = Vec::new();
    let mut streams = Vec::new();
    for Inherited { record, socket } in sockets {
        match &record {
            Record::Listener => {
                let line = format!("got pooler socket: {}", listening_at(&socket, settings));
                journal.line(Level::Log, line);
                takeover.listeners.push(socket);
            }
            Record::Server(kept) if kept.link == 0 => takeover.idle.push(socket),
            Record::Client(_) | Record::Server(_) => {
                let (stream, origin) = handoff::stream(socket)?;
                rows.push((record, origin));
                streams.push(stream);
            }
        }
    }
    let peers = core.take_over(rows);
    // What the core does without is closed.
    let pairs = peers.into_iter().zip(streams);
    takeover.streams = pairs.filter_map(|(peer, stream)| Some((peer?, stream))).collect();
    Ok(takeover)
}

/// Where a listening socket of the old process listens.
pub(super) fn listening_at(socket: &OwnedFd, settings: &Settings) -> String {
    match handoff::local(socket) {
        Addr::Inet(at) => at.to_string(),
        Addr::Unix { .. } | Addr::Unknown => format!("unix:{}", settings.listen_port),
    }
}

impl Takeover {
    /// Ends the old process and goes on where it was. Everything else is ready.
    pub(super) fn finish(self, process: &mut Process, settings: &Settings) -> Result<(), Fatal> {
        let pidfile = &settings.pidfile;
        match self {
            Takeover::Sockets(sockets) => sockets.finish(process, settings),
            Takeover::Everything(mut old) => {
                if let Err(text) = heir::go_on(process, &mut old) {
                    process.say(Level::Fatal, text);
                    return Err(Fatal);
                }
                if !pidfile.is_empty() {
                    let path = Path::new(pidfile);
                    // It removes the file before it agrees; so it has died, even if nobody has taken
                    // note of that yet.
                    if daemon::running_pid(path).is_some_and(|pid| Some(pid) == old.pid()) {
                        process.say(Level::Log, daemon::STALE.into());
                        let _ = daemon::remove_stale_pidfile(path);
                    }
                    wait_for_pidfile(process, path);
                }
                Ok(())
            }
        }
    }
}

impl Sockets {
    fn finish(mut self, process: &mut Process, settings: &Settings) -> Result<(), Fatal> {
        let pidfile = &settings.pidfile;
        process.say(Level::Log, "sending SHUTDOWN;".into());
        // A unit whose main process ends has ended.
        process.service.become_main();
        // The point of no return.
        self.old.send_shutdown();
        let mut steps = 0_u32;
        while !self.old.is_gone(STEP) {
            wait(process, &mut steps, "the old process to end");
        }
        if !pidfile.is_empty() {
            process.say(Level::Log, "waiting for old pidfile to go away".into());
            wait_for_pidfile(process, Path::new(pidfile));
        }
        process.say(Level::Log, "old process killed, resuming work".into());
        let done = process.net.inherit_listeners(self.listeners);
        let path = listen::socket_path(&options::listen(settings));
        process.net.listeners().claim_socket_file(path);
        for (peer, stream) in self.streams {
            process.net.inherit(peer, stream, &mut process.core);
        }
        // PostgreSQL is told; what it would have to say is of no interest.
        for socket in self.idle {
            handoff::say_goodbye(&socket);
        }
        process.perform();
        process.print();
        done.map_err(|_| Fatal)
    }
}

/// Waits until the old process has removed its pidfile. One that it left behind by dying is removed
/// for it.
fn wait_for_pidfile(process: &mut Process, path: &Path) {
    let mut steps = 0_u32;
    while path.exists() {
        if steps >= PATIENCE && daemon::check_pidfile(path) == Ok(Pidfile::Stale) {
            process.say(Level::Log, daemon::STALE.into());
            if let Err(text) = daemon::remove_stale_pidfile(path) {
                process.say(Level::Warning, text);
            }
        }
        std::thread::sleep(STEP);
        wait(process, &mut steps, "its pidfile to go away");
    }
}

/// Counts a step; now and then tells an operator why nothing seems to happen.
fn wait(process: &mut Process, steps: &mut u32, what: &str) {
    process.report();
    *steps = steps.saturating_add(1);
    if *steps % LONG == 0 {
        let line = format!("still waiting for {what}; clients are not served until then");
        process.say(Level::Warning, line);
    }
}
