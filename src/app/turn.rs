//! One turn of the loop, and the only place where actions are performed.

use super::adopt::Successor;
use super::clock::Clock;
use super::daemon::OwnPidfile;
use super::handover::{self, Handover, Kept};
use super::heir::Newcomers;
use super::log::{Broken, LocalZone, Log};
use super::service::Service;
use super::signal::{Signal, Signals};
use super::{files, options};
use crate::base::{Level, Micros, Objects};
use crate::config::{AuthType, Settings};
use crate::console::{self, Around, Listening};
use crate::core::pause;
use crate::core::{Action, ClientId, Core, Origin, Peer};
use crate::net::conn::Pending;
use crate::net::resolve::{Host, Zone};
use crate::net::stream::Stream;
use crate::net::tls::Tls;
use crate::net::{Event, Net};
use nix::unistd::User;
use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// The number under which the loop watches for signals.
pub(super) const SIGNALS: u32 = 0;
/// The same for the end of an old process.
pub(super) const OLD_PROCESS: u32 = 1;

/// The janitor comes three times a second.
pub(super) const TICK: Micros = Micros(333_333);

/// So often it is looked whether listening sockets can be closed that are to be.
const DRAIN: Micros = Micros(10_000);

/// So many clients of the process before are taken in at the end of one turn: in a fraction of a
/// millisecond, for which everybody else waits.
const NEWCOMERS: usize = 50;

/// So often pools are looked after at the end of one turn; what is left waits for the next one.
const ROUNDS: usize = 16;

/// A running process.
pub(super) struct Process {
    pub(super) core: Core,
    pub(super) net: Net,
    pub(super) log: Log,
    pub(super) signals: Signals,
    pub(super) service: Service,
    pub(super) clock: Clock,
    pub(super) next_tick: Micros,
    /// Set if an old process was left with its clients.
    pub(super) successor: Option<Successor>,
    /// Set when the loop is to end.
    pub(super) exit: Option<u8>,
    /// Clients of the process before that are still to be taken in.
    pub(super) newcomers: Option<Newcomers>,
    /// A successor has asked for everything.
    pub(super) handover: Option<Handover>,
    /// A successor goes on with everything; these connections are left to be kept.
    pub(super) handed_over: Option<Kept>,
    pub(super) pidfile: Option<OwnPidfile>,
}

/// What the console asks the process for.
struct Surrounding<'a> {
    zone: &'a LocalZone,
    net: &'a Net,
    /// What SET has set up.
    tls: &'a RefCell<Option<Tls>>,
}

impl Around for Surrounding<'_> {
    fn time_text(&self, at: Micros) -> String {
        self.zone.seconds(i64::try_from(at.secs()).unwrap_or(i64::MAX))
    }
    fn dns_hosts(&self) -> Vec<Host> {
        self.net.resolver().hosts()
    }
    fn dns_zones(&self) -> Vec<Zone> {
        self.net.resolver().zones()
    }
    fn pending(&self, peer: Peer) -> Pending {
        self.net.relay().pending_on(peer)
    }
    fn connection_size(&self) -> usize {
        self.net.connection_size()
    }
    fn buffers(&self) -> Objects {
        self.net.relay().buffers()
    }
    fn descriptor(&self, peer: Peer) -> Option<i32> {
        self.net.descriptor(peer).map(|descriptor| descriptor.as_raw_fd())
    }
    fn set_up_tls(&self, settings: &Settings) -> Result<(), String> {
        *self.tls.borrow_mut() = Some(self.net.tls().renewed(settings)?);
        Ok(())
    }
    fn listening(&self) -> Vec<Listening> {
        let sockets = self.net.listening();
        sockets.map(|(number, addr, fd)| Listening { number, addr, fd: fd.as_raw_fd() }).collect()
    }
}

/// True if everything that was said to this client has been sent.
fn is_heard(net: &Net, id: ClientId) -> bool {
    net.relay().pending_on(Peer::Client(id)).unsent == 0
}

impl Process {
    /// Turns until something ends the process; its exit code.
    pub(super) fn run(&mut self) -> u8 {
        self.print();
        while self.exit.is_none() {
            self.turn();
        }
        self.exit.unwrap_or(0)
    }

    pub(super) fn turn(&mut self) {
        let net = &self.net;
        let is_due = self.core.is_pending() || self.core.has_left(|id| is_heard(net, id));
        let until_tick = match is_due {
            true => Micros(0),
            false if self.newcomers.is_some() => Micros(0),
            false if self.handover.is_some() => handover::LOOK,
            false => self.next_tick.since(self.clock.now()),
        };
        let until_tick = match self.net.listeners().is_draining() {
            true => until_tick.min(DRAIN),
            false => until_tick,
        };
        if let Err(error) = self.net.wait(Duration::from_micros(until_tick.0)) {
            let text = format!("waiting for events failed: {error}");
            self.core.journal.line(Level::Fatal, text);
            self.exit = Some(1);
        }
        self.core.now = self.clock.now();
        self.net.set_time(self.core.now);
        while let Some(event) = self.net.next_event() {
            self.await_newcomers(&event);
            match event {
                Event::Accept(listener) => self.accept(listener),
                Event::Internal(SIGNALS) => self.signals(),
                Event::Internal(OLD_PROCESS) => self.tend_succession(),
                event => self.net.handle(event, &mut self.core),
            }
            self.perform();
            if self.exit.is_some() {
                // What else has happened is of no interest any more.
                return self.print();
            }
        }
        self.drain_listeners();
        if self.core.now >= self.next_tick {
            self.next_tick = self.core.now + TICK;
            self.take_in_newcomers(usize::MAX);
            self.core.tick();
            self.net.tick();
            self.tend_succession();
            self.report();
            self.perform();
            if self.exit.is_some() {
                return self.print();
            }
        }
        let net = &self.net;
        self.core.go_on_console(|id| is_heard(net, id));
        self.perform();
        // Whom a client that has gone makes room for comes before what happens next.
        for _ in 0..ROUNDS {
            self.core.turn_end();
            self.perform();
            if !self.core.is_pending() {
                break;
            }
        }
        if self.core.is_suspended() {
            let net = &self.net;
            self.core.check_suspension(|peer| net.is_quiet(peer));
            self.perform();
        }
        self.take_in_newcomers(NEWCOMERS);
        self.hand_over_when_settled();
        self.print();
    }

    fn accept(&mut self, listener: usize) {
        while let Some((stream, origin)) = self.net.accept(listener) {
            self.welcome(stream, origin);
        }
    }

    /// Who waits for clients to leave leaves nobody out who has connected already.
    fn stop_listening(&mut self) {
        self.service.take_back();
        match self.core.shutdown() {
            Some(pause::Shutdown::WaitForClients) => {
                // Nothing will come of a handoff that has been asked for.
                self.net.suspend_accepting(false);
                self.net.drain_tcp_listeners();
                self.drain_listeners();
            }
            _ => {
                self.net.close_tcp_listeners();
                self.core.set_draining(false);
            }
        }
    }

    /// Accepts who is left at listening sockets that are being closed.
    fn drain_listeners(&mut self) {
        if self.net.listeners().is_draining() {
            for listener in self.net.listeners().open_ones() {
                self.accept(listener);
            }
            let is_done = self.net.close_drained();
            self.core.set_draining(!is_done);
        }
    }

    /// Takes a new client.
    pub(super) fn welcome(&mut self, stream: Stream, origin: Origin) {
        let id = self.core.accepted(origin);
        if origin.uid.is_some() {
            self.name_peers();
        }
        self.net.add_client(id, stream, &mut self.core);
    }

    /// Looks up who is at the other end of Unix sockets, if that is asked for. The system's user
    /// database may answer slowly if it is a network service; everybody waits for it.
    fn name_peers(&mut self) {
        for (id, uid) in self.core.unnamed_peers() {
            if let Ok(Some(user)) = User::from_uid(uid.into()) {
                self.core.name_peer(id, user.name);
            }
        }
    }

    /// Tells the service manager how we are.
    pub(super) fn report(&mut self) {
        self.service.tick(self.clock.now(), TICK);
        if let Some(line) = self.core.status.take() {
            self.service.status(&line);
        }
    }

    fn signals(&mut self) {
        for signal in self.signals.take() {
            let signal = match signal {
                Signal::Hup => {
                    let line = "got SIGHUP, re-reading config".to_owned();
                    self.core.journal.line(Level::Log, line);
                    self.service.reloading();
                    self.reload(None);
                    self.service.ready();
                    continue;
                }
                Signal::Restart => {
                    self.service.leave_stored();
                    pause::Signal::Interrupt
                }
                Signal::Int => pause::Signal::Interrupt,
                Signal::Quit => pause::Signal::Quit,
                Signal::Term => pause::Signal::Terminate,
                Signal::Usr1 => pause::Signal::Pause,
                Signal::Usr2 => pause::Signal::Resume,
            };
            if matches!(signal, pause::Signal::Interrupt | pause::Signal::Terminate) {
                self.service.stopping();
            }
            self.core.signalled(signal);
            self.perform();
            if self.exit.is_some() {
                return;
            }
        }
    }

    pub(super) fn perform(&mut self) {
        while let Some(action) = self.core.next_action() {
            if let Some(action) = self.put_off(action) {
                self.act(action);
            }
        }
    }

    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::Connect(id) => self.net.connect(id, &mut self.core),
            Action::Resume(id) => self.net.resume(id, &mut self.core),
            Action::Send(peer, bytes) => self.net.send(peer, &bytes, &mut self.core),
            Action::SendRow(id, row, socket) => {
                self.net.send_row(id, &row, socket, &mut self.core);
            }
            Action::StartTls(peer) => self.net.start_tls(peer, &mut self.core),
            Action::Close(peer) => self.net.close(peer),
            Action::Job(id, job) => self.net.start_job(id, job),
            Action::Abandon(id) => self.net.abandon_job(id),
            Action::Console(id) => self.console(id),
            Action::Reload(console) => self.reload(console),
            Action::Suspend(on) => self.net.suspend(on),
            Action::Handoff(console) => self.begin_handover(console),
            Action::CloseTcpListeners => self.stop_listening(),
            Action::Exit(code) => {
                self.exit.get_or_insert(code);
            }
        }
    }

    fn console(&mut self, id: ClientId) {
        let tls = RefCell::default();
        let around = Surrounding { zone: self.log.zone(), net: &self.net, tls: &tls };
        let changed = console::run(&mut self.core, &around, id);
        if let Some(tls) = tls.into_inner() {
            self.set_tls(tls);
        }
        if changed {
            self.settings_changed();
        }
    }

    /// Reads all files again (config 5.1).
    fn reload(&mut self, console: Option<ClientId>) {
        // Lines up to here go where the old settings send them.
        self.print();
        let settings = self.core.settings().clone();
        let file = settings.conffile.clone().unwrap_or_default();
        let (config, complete) = files::load(&settings, &file, false, &mut self.core.journal);
        self.core.configure(config, complete);
        let mut succeeded = complete;
        if complete {
            let settings = self.core.settings().clone();
            if let Some(users) = files::load_users(&settings, &mut self.core.journal) {
                self.core.set_users(users);
            }
            succeeded = self.reload_rules(&settings);
        } else {
            let line = "config file loading failed".to_owned();
            self.core.journal.line(Level::Warning, line);
        }
        let has_tls = self.reload_tls();
        self.settings_changed();
        self.print();
        self.log.reopen();
        if let Some(id) = console {
            console::reload_done(&mut self.core, id, succeeded && has_tls);
        }
    }

    /// Reads the HBA file again; false if it can't be opened: then the rules in force stay (config
    /// 5.4).
    fn reload_rules(&mut self, settings: &Settings) -> bool {
        let rules = files::load_rules(settings, &mut self.core.journal);
        let missing = rules.is_none() && settings.auth_type == AuthType::Hba;
        if !missing {
            self.core.set_rules(rules.unwrap_or_default());
        }
        self.name_peers();
        !missing
    }

    /// Sets TLS up again; on failure all stays as it was.
    fn reload_tls(&mut self) -> bool {
        let tls = self.renewed_tls();
        let succeeded = tls.is_some();
        if let Some(tls) = tls {
            self.set_tls(tls);
        }
        succeeded
    }

    /// TLS as the settings want it; if that can't be, the log says so.
    fn renewed_tls(&mut self) -> Option<Tls> {
        let renewed = self.net.tls().renewed(self.core.settings());
        let log = |text| {
            self.core.journal.line(Level::Error, text);
            self.core.journal.line(Level::Error, console::TLS_KEPT.to_owned());
        };
        renewed.map_err(log).ok()
    }

    fn set_tls(&mut self, tls: Tls) {
        if tls.changes_servers(self.net.tls()) {
            self.core.reconnect(None);
        }
        self.put_tls(tls);
    }

    fn put_tls(&mut self, tls: Tls) {
        let (clients, servers) = tls.modes();
        self.core.set_tls_modes(clients, servers, tls.way_to_servers());
        self.net.set_tls(tls);
    }

    /// What SET had changed in the process before is in force here. Its servers stay, unless we
    /// connect in another way.
    pub(super) fn go_on_with_settings(&mut self, is_changed: bool) {
        if is_changed {
            if let Some(tls) = self.renewed_tls() {
                self.put_tls(tls);
            }
            self.settings_changed();
        }
        self.core.replace_otherwise_connected();
    }

    /// Hands changed settings on to the net floor and the log.
    pub(super) fn settings_changed(&mut self) {
        let settings = self.core.settings();
        self.net.set_options(options::net(settings));
        self.net.set_defer_accept(settings.tcp_defer_accept.on());
        self.log.follow(settings);
    }

    /// Writes a line at once.
    pub(super) fn say(&mut self, level: Level, text: String) {
        self.core.journal.line(level, text);
        self.print();
    }

    /// Prints what the floors below have to say: sockets first, then decisions.
    pub(super) fn print(&mut self) {
        loop {
            let line = self.net.journal().pop().or_else(|| self.core.journal.pop());
            let Some((level, text)) = line else { return };
            if self.log.line(level, &text) == Err(Broken) {
                self.exit = Some(1);
                return;
            }
        }
    }
}
