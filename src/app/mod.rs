//! A process: arguments, privileges, signals, log files, the loop.

mod adopt;
pub mod args;
pub mod clock;
pub mod daemon;
mod files;
pub mod format;
mod handover;
mod heir;
mod keep;
pub mod log;
mod options;
mod service;
pub mod signal;
mod syslog;
mod takeover;
mod turn;

use crate::base::{Journal, Level};
use crate::config::{Config, Settings};
use crate::core::{Core, Surroundings};
use crate::net::listen::{self, Kept};
use crate::net::options::reason;
use crate::net::tls::Tls;
use crate::net::{cares, Net};
use adopt::Adoption;
use args::{Adopt, Args, Run};
use clock::Clock;
use log::Log;
use service::Service;
use signal::Signals;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use takeover::Takeover;
use turn::{Process, SIGNALS};

/// Runs the program with these arguments; its exit code.
pub fn run(argv: &[OsString]) -> u8 {
    let posix = std::env::var_os("POSIXLY_CORRECT").is_some();
    match args::parse(argv, posix, &cares::version()) {
        Args::Print(text) => {
            // Nobody is left to be told when standard output is closed.
            let _ = io::stdout().write_all(text.as_bytes());
            0
        }
        Args::Usage(text) => {
            let _ = io::stderr().write_all(text.as_bytes());
            1
        }
        Args::Run(run) => start(&run).unwrap_or(1),
    }
}

/// Something ended the start; a FATAL line has been written.
struct Fatal;

/// What there is to begin with.
enum Inheritance {
    /// Nothing.
    None,
    /// Everything that an old process had.
    All(Takeover),
    /// The listening sockets of an old process.
    Listeners(Box<Adoption>),
}

/// A log with the lines that wait for it.
struct Starting {
    log: Log,
    journal: Journal,
}

impl Starting {
    /// Writes what the journal holds.
    fn print(&mut self) -> Result<(), Fatal> {
        while let Some((level, text)) = self.journal.pop() {
            self.log.line(level, &text).map_err(|log::Broken| Fatal)?;
        }
        Ok(())
    }

    fn say(&mut self, level: Level, text: String) -> Result<(), Fatal> {
        self.journal.line(level, text);
        self.print()
    }

    /// Turns the text of a FATAL line into the end of the start.
    fn check<T>(&mut self, result: Result<T, String>) -> Result<T, Fatal> {
        match result {
            Ok(value) => Ok(value),
            Err(text) => {
                self.say(Level::Fatal, text)?;
                Err(Fatal)
            }
        }
    }
}

/// The start in the order of config 7.1, then the loop until its end.
fn start(run: &Run) -> Result<u8, Fatal> {
    let service = Service::take(run.reboot);
    let mut starting = Starting { log: Log::new(run.quiet), journal: Journal::default() };
    let config = load(run, &mut starting)?;
    let settings = config.settings.clone();
    let users = files::load_users(&settings, &mut starting.journal);
    let rules = files::load_rules(&settings, &mut starting.journal);
    // Keys may be readable by root only.
    let tls = set_up_tls(&settings, &mut starting)?;
    // Nothing has been written so far, so that the log file belongs to the user to switch to.
    let user = run.user.as_deref().or(settings.user.as_deref());
    starting.check(daemon::become_user(user.unwrap_or("")))?;
    starting.check(daemon::refuse_root())?;
    starting.print()?;
    let clock = Clock::start();
    let around = starting.check(surroundings(&clock))?;
    let mut core = Core::new(settings.clone(), around);
    core.configure(config, true);
    let (clients, servers) = tls.modes();
    core.set_tls_modes(clients, servers, tls.way_to_servers());
    core.set_users(users.unwrap_or_default());
    core.set_rules(rules.unwrap_or_default());
    let has_sockets = !service.sockets.is_empty();
    let inheritance = match has_sockets {
        true => {
            takeover::not_found(run.reboot, &mut starting.journal);
            Inheritance::None
        }
        false => take_over(run, &settings, &mut core, &mut starting)?,
    };
    if matches!(inheritance, Inheritance::None) {
        refuse_second_instance(&settings, has_sockets, &mut starting)?;
    }
    let is_awaited = matches!(inheritance, Inheritance::All(Takeover::Everything(_)));
    let news = go_to_background(run, &settings, &service, is_awaited, &mut starting)?;
    let mut process = assemble(core, tls, service, clock, starting)?;
    let code = match open(&mut process, &settings, inheritance) {
        Ok(()) => {
            // Whoever has started us may go on.
            let _ = news.map(|pipe| std::fs::File::from(pipe).write_all(b"!"));
            process.run()
        }
        Err(Fatal) => 1,
    };
    if let Some(kept) = process.handed_over.take() {
        return Ok(keep::keep(process, kept));
    }
    // Another process may listen on it already.
    if !process.core.is_suspended() {
        process.net.listeners().remove_socket_file();
    }
    Ok(code)
}

/// `-d`; what is returned is told when the start is over, if somebody awaits that.
fn go_to_background(
    run: &Run,
    settings: &Settings,
    service: &Service,
    is_awaited: bool,
    starting: &mut Starting,
) -> Result<Option<OwnedFd>, Fatal> {
    if !run.daemon {
        return Ok(None);
    }
    // As part of a unit a successor writes to where the old process has.
    let keeps_log = run.reboot && service.is_present();
    let gone = daemon::go_to_background(&settings.pidfile, keeps_log, is_awaited);
    let news = starting.check(gone)?;
    if !keeps_log {
        starting.log.set_quiet();
    }
    Ok(news)
}

/// All that a process needs but its listening sockets.
fn assemble(
    core: Core,
    tls: Tls,
    service: Service,
    clock: Clock,
    mut starting: Starting,
) -> Result<Process, Fatal> {
    let settings = core.settings().clone();
    let expected = expected_descriptors(&core, &settings);
    let limit = daemon::limit_line(i64::from(settings.max_client_conn), expected);
    starting.say(Level::Log, limit)?;
    let nameservers = cares::Nameservers::new(&settings.resolv_conf);
    let nameservers = starting.check(nameservers.map_err(|_| "dns setup failed".into()))?;
    let net = Net::new(options::net(&settings), nameservers);
    let mut net = starting.check(net.map_err(setup_failed))?;
    net.set_tls(tls);
    let signals = starting.check(Signals::install().map_err(setup_failed))?;
    Ok(Process {
        core,
        net,
        log: starting.log,
        signals,
        service,
        next_tick: clock.now(),
        clock,
        successor: None,
        exit: None,
        newcomers: None,
        handover: None,
        handed_over: None,
        pidfile: None,
    })
}

/// `-R`: has a running process hand over what it has.
fn take_over(
    run: &Run,
    settings: &Settings,
    core: &mut Core,
    starting: &mut Starting,
) -> Result<Inheritance, Fatal> {
    if !run.reboot {
        return Ok(Inheritance::None);
    }
    let begun = match run.adopt {
        Adopt::Full => takeover::begin(settings, core, &mut starting.journal)
            .map(|takeover| takeover.map_or(Inheritance::None, Inheritance::All)),
        Adopt::Soft => adopt::begin(settings, &mut starting.journal).map(|adoption| {
            adoption.map_or(Inheritance::None, |it| Inheritance::Listeners(Box::new(it)))
        }),
    };
    while let Some((level, text)) = core.journal.pop() {
        starting.journal.line(level, text);
    }
    starting.check(begun)
}

/// Opens the listening sockets, or goes on with those of an old process, then writes the pidfile;
/// the last line of the start.
fn open(process: &mut Process, settings: &Settings, inheritance: Inheritance) -> Result<(), Fatal> {
    if let Err(error) = process.net.watch(process.signals.source(), SIGNALS) {
        return Err(fail(process, setup_failed(error)));
    }
    let has_everything = matches!(inheritance, Inheritance::All(_));
    let is_taken_over = !matches!(inheritance, Inheritance::None);
    let is_passed = !process.service.sockets.is_empty();
    let opened = match inheritance {
        Inheritance::All(takeover) => takeover.finish(process, settings),
        Inheritance::Listeners(adoption) => {
            adoption.finish(process, settings).map(|successor| process.successor = Some(successor))
        }
        Inheritance::None => listen(process, settings),
    };
    process.print();
    if opened.is_err() || process.exit.is_some() {
        return Err(Fatal);
    }
    // An old process that goes on with its clients has it as long as it lives.
    if !settings.pidfile.is_empty() && process.successor.is_none() {
        match daemon::OwnPidfile::create(Path::new(&settings.pidfile)) {
            Ok(pidfile) => process.pidfile = Some(pidfile),
            // The connections are nobody's but ours.
            Err(text) if has_everything => process.say(Level::Error, text),
            Err(text) => return Err(fail(process, text)),
        }
    }
    process.core.journal.line(Level::Log, args::process_up(&cares::version()));
    process.print();
    // What of them has not been used goes: a takeover has made it superfluous.
    process.service.kept.clear();
    if process.service.has_store && !is_passed {
        let sockets = process.net.listeners().worth_keeping(&options::listen(settings));
        process.service.store(&sockets, is_taken_over);
    }
    process.service.ready();
    Ok(())
}

/// Listens at the sockets of the service manager if it has passed some, otherwise at our own.
fn listen(process: &mut Process, settings: &Settings) -> Result<(), Fatal> {
    let options = options::listen(settings);
    let sockets = std::mem::take(&mut process.service.sockets);
    let all_kept = std::mem::take(&mut process.service.kept);
    // Sockets of the manager's own leave nothing to listen at for ours.
    let has_others = !sockets.is_empty() && !all_kept.is_empty();
    let kept = match sockets.is_empty() {
        true => Kept::of(all_kept, &options),
        false => Kept::default(),
    };
    if has_others || kept.has_refused() {
        process.service.empty_store();
    }
    if sockets.is_empty() {
        return process.net.listen(&options, kept).map_err(|_| Fatal);
    }
    for text in service::ignored(settings) {
        process.say(Level::Warning, text);
    }
    process.net.listen_at(sockets, &options).map_err(|_| Fatal)
}

fn fail(process: &mut Process, text: String) -> Fatal {
    process.core.journal.line(Level::Fatal, text);
    process.print();
    Fatal
}

fn setup_failed(error: io::Error) -> String {
    format!("could not set up the event loop: {}", reason(&error))
}

fn load(run: &Run, starting: &mut Starting) -> Result<Config, Fatal> {
    let file = run.config.to_string_lossy().into_owned();
    starting.journal.set_verbose(run.verbose);
    let given =
        Settings { conffile: Some(file.clone()), verbose: run.verbose, ..Settings::default() };
    let (config, complete) = files::load(&given, &file, true, &mut starting.journal);
    starting.log.follow(&config.settings);
    if complete {
        return Ok(config);
    }
    starting.say(Level::Fatal, "cannot load config file".into())?;
    Err(Fatal)
}

fn set_up_tls(settings: &Settings, starting: &mut Starting) -> Result<Tls, Fatal> {
    match Tls::new(settings) {
        Ok(tls) => Ok(tls),
        Err(text) => {
            starting.say(Level::Error, text)?;
            starting.check(Err("TLS setup failed".into()))
        }
    }
}

/// Looks for another process at the Unix socket, then in the pidfile (config 7.3, 7.5).
fn refuse_second_instance(
    settings: &Settings,
    has_sockets: bool,
    starting: &mut Starting,
) -> Result<(), Fatal> {
    if !has_sockets && listen::unix_socket_in_use(&settings.unix_socket_dir, settings.listen_port) {
        return starting.check(Err("unix socket is in use, cannot continue".into()));
    }
    if settings.pidfile.is_empty() {
        return Ok(());
    }
    let path = Path::new(&settings.pidfile);
    let found = daemon::check_pidfile(path);
    if starting.check(found)? == daemon::Pidfile::Stale {
        starting.say(Level::Log, daemon::STALE.into())?;
        starting.check(daemon::remove_stale_pidfile(path))?;
    }
    Ok(())
}

fn surroundings(clock: &Clock) -> Result<Surroundings, String> {
    let mut seed = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut seed))
        .map_err(|error| format!("could not read /dev/urandom: {}", reason(&error)))?;
    let host_name = nix::unistd::gethostname().unwrap_or_default();
    Ok(Surroundings {
        now: clock.now(),
        seed,
        own_uid: nix::unistd::getuid().as_raw(),
        host_name: host_name.to_string_lossy().into_owned(),
    })
}

/// How many descriptors this configuration may come to need (config 6.7).
fn expected_descriptors(core: &Core, settings: &Settings) -> i64 {
    let users = i64::try_from(core.users().count()).unwrap_or(i64::MAX);
    let servers: i64 = core
        .databases()
        .map(|(_, database)| {
            let entry = database.entry();
            let size = entry.pool_size.filter(|size| *size >= 0);
            let size = i64::from(size.unwrap_or(settings.default_pool_size));
            match database.forced_user() {
                Some(_) => size,
                None => size.saturating_mul(users),
            }
        })
        .fold(0, i64::saturating_add);
    i64::from(settings.max_client_conn).saturating_add(10).saturating_add(servers)
}
