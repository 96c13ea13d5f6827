//! Signals and SHUTDOWN (config 8), and starts that must fail (config 1.4, 2.7).

use nix::sys::signal::Signal;

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::wire::{last_error, query, tags};

fn start() -> (Pooler, String) {
    (Pooler::start(&Setup::trust("pool_mode = transaction\n")), postgres().new_database())
}

/// Socket and pid file are gone after every orderly exit.
fn assert_left_nothing(pooler: &Pooler) {
    assert!(!pooler.folder.join("pid").exists());
    assert!(!pooler.folder.join(format!(".s.PGSQL.{}", pooler.port)).exists());
}

#[test]
fn pid_file_has_the_pid_while_it_runs() {
    let (pooler, _) = start();
    let pid = std::fs::read_to_string(pooler.folder.join("pid")).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.trim())).unwrap();
    assert!(status.contains(pooler.folder.join("ini").to_str().unwrap()), "{status}");
    assert_eq!(pid, format!("{}\n", pid.trim()));
}

#[test]
fn shutdown_ends_at_once() {
    let (mut pooler, database) = start();
    let mut one = pooler.client(&database);
    one.query("begin");
    let mut console = pooler.console();
    console.send(&query("SHUTDOWN"));
    assert_eq!(console.rest(), [], "no reply");
    assert_eq!(one.rest(), [], "clients see nothing but the end");
    assert_eq!(pooler.wait_exit().code(), Some(0));
    assert_left_nothing(&pooler);
}

#[test]
fn sigquit_ends_at_once() {
    let (mut pooler, database) = start();
    let mut one = pooler.client(&database);
    one.query("begin");
    pooler.signal(Signal::SIGQUIT);
    assert_eq!(one.rest(), []);
    assert_eq!(pooler.wait_exit().code(), Some(0));
    pooler.wait_log("got SIGQUIT, fast exit");
    assert_left_nothing(&pooler);
}

#[test]
fn sigterm_waits_for_clients() {
    let (mut pooler, database) = start();
    let mut one = pooler.client(&database);
    pooler.signal(Signal::SIGTERM);
    pooler.wait_log("got SIGTERM, shutting down, waiting for all clients disconnect");
    assert_eq!(one.value("select 1"), "1", "old clients go on");
    let refused = std::net::TcpStream::connect(("127.0.0.1", pooler.port)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let login = pooler.unix().login("trusty", &database, "");
    assert_eq!(last_error(&login.err().unwrap()).2, "pooler is shutting down");
    assert_eq!(pooler.exited(), None);
    one.bye();
    assert_eq!(pooler.wait_exit().code(), Some(0));
    pooler.wait_log("client connections dropped, exiting");
    assert_left_nothing(&pooler);
}

#[test]
fn second_sigterm_is_a_fast_exit() {
    let (mut pooler, database) = start();
    let mut one = pooler.client(&database);
    pooler.signal(Signal::SIGTERM);
    pooler.wait_log("got SIGTERM, shutting down");
    pooler.signal(Signal::SIGTERM);
    assert_eq!(one.rest(), []);
    assert_eq!(pooler.wait_exit().code(), Some(0));
    pooler.wait_log("got SIGTERM while shutting down, fast exit");
}

#[test]
fn sigint_waits_for_servers() {
    let (mut pooler, database) = start();
    let (mut one, mut two) = (pooler.client(&database), pooler.client(&database));
    assert_eq!(one.value("begin; select 1"), "1");
    pooler.signal(Signal::SIGINT);
    pooler
        .wait_log("got SIGINT, shutting down, waiting for all servers connections to be released");
    two.send(&query("select 2"));
    assert_eq!(last_error(&two.rest()).2, "server shutting down");
    assert_eq!(one.value("select 3"), "3", "the open transaction goes on");
    one.send(&query("commit"));
    let left = one.rest();
    assert!(tags(&left).starts_with("CZ"), "its answer is delivered before the end: {left:?}");
    assert_eq!(pooler.wait_exit().code(), Some(0));
    pooler.wait_log("server connections dropped, exiting");
}

#[test]
fn console_command_waits_for_clients() {
    let (mut pooler, database) = start();
    let one = pooler.client(&database);
    let mut console = pooler.console();
    let done = console.query("SHUTDOWN WAIT_FOR_CLIENTS");
    assert_eq!((tags(&done).as_str(), &done[0].body[..]), ("CZ", &b"SHUTDOWN\0"[..]));
    let answer = console.query("RESUME");
    assert_eq!(answer[0].field(b'M'), "pooler is shutting down");
    one.bye();
    assert_eq!(pooler.exited(), None, "the console still counts");
    console.bye();
    assert_eq!(pooler.wait_exit().code(), Some(0));
}

#[test]
fn sigusr1_pauses_and_sigusr2_resumes() {
    let (pooler, database) = start();
    let mut one = pooler.client(&database);
    pooler.signal(Signal::SIGUSR1);
    pooler.wait_log("got SIGUSR1, pausing all activity");
    one.send(&query("select 1"));
    crate::rig::wait_until("it waits", || pooler.pool(&database, "cl_waiting") == 1);
    pooler.signal(Signal::SIGUSR2);
    pooler.wait_log("got SIGUSR2, continuing from PAUSE");
    assert_eq!(tags(&one.until(b'Z')), "TDCZ");
}

/// An ini file in `folder` with these settings on top.
fn ini(folder: &std::path::Path, port: u16, settings: &str) -> String {
    let at = folder.display();
    format!(
        "[pgbouncer]\nlogfile = {at}/log\nunix_socket_dir = {at}\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\n{settings}\n"
    )
}

#[test]
fn broken_ini_files_are_fatal_with_their_line() {
    let rows = [
        ("nonsense = 1", "ERROR unknown parameter: pgbouncer/nonsense"),
        (
            "pool_mode = sometimes",
            "ERROR invalid value \"sometimes\" for parameter pool_mode in configuration (",
        ),
        (
            "default_pool_size = many",
            "ERROR invalid value \"many\" for parameter default_pool_size",
        ),
        ("[nowhere]\nx = 1", "ERROR invalid section \"nowhere\" in configuration ("),
        ("no assignment", "ERROR syntax error in configuration ("),
        (
            "[databases]\npgbouncer = host=127.0.0.1",
            "ERROR database name \"pgbouncer\" is reserved",
        ),
        ("auth_type = peer", "ERROR invalid value \"peer\" for parameter auth_type"),
    ];
    for (settings, expected) in rows {
        let (status, log) = Pooler::run_to_end(&|folder| ini(folder, 0, settings));
        assert_eq!(status.code(), Some(1), "{settings}: {log}");
        assert!(log.contains(expected), "{settings}: no {expected} in {log}");
        assert!(log.contains("FATAL cannot load config file"), "{settings}: {log}");
    }
}

#[test]
fn missing_section_is_fatal() {
    let (status, log) = Pooler::run_to_end(&|_| String::new());
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("load_init_file: main section missing from config file"), "{log}");
}

#[test]
fn port_in_use_is_fatal() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (status, log) = Pooler::run_to_end(&|folder| ini(folder, port, ""));
    assert_eq!(status.code(), Some(1), "{log}");
    let warning =
        format!("WARNING cannot listen on 127.0.0.1:{port}: bind(): Address already in use");
    assert!(log.contains(&warning), "{log}");
    let fatal = "FATAL failed to listen on any address in listen_addr list: 127.0.0.1";
    assert!(log.contains(fatal), "{log}");
}

#[test]
fn unix_socket_in_use_is_fatal() {
    let (mut pooler, database) = start();
    let at = pooler.folder.clone();
    let port = pooler.port;
    let (status, log) = Pooler::run_to_end(&|folder| {
        ini(folder, port, &format!("listen_addr =\nunix_socket_dir = {}", at.display()))
    });
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("FATAL unix socket is in use, cannot continue"), "{log}");
    pooler.assert_serves(&database);
}

#[test]
fn nowhere_to_listen_is_fatal() {
    let (status, log) =
        Pooler::run_to_end(&|folder| ini(folder, 0, "listen_addr =\nunix_socket_dir ="));
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("FATAL nowhere to listen on"), "{log}");
}

#[test]
fn pid_file_of_a_living_process_is_respected() {
    let pid = std::process::id();
    let (status, log) = Pooler::run_to_end(&|folder| {
        let file = folder.join("other.pid");
        crate::rig::scratch::write(&file, format!("{pid}\n"));
        ini(folder, 0, &format!("pidfile = {}", file.display()))
    });
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("other.pid' exists, another instance running?"), "{log}");
}
