//! Listening sockets of the real program: addresses, sharing, Unix sockets, no descriptors left (config 7.6).

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::run::{is_root, Run};
use crate::rig::scratch::{scratch, unprivileged, write};
use crate::rig::wait_until;

/// The lines between that about descriptors and the last one.
fn listening(run: Run) -> Vec<String> {
    let running = run.up();
    let lines = running.texts();
    lines[1..lines.len() - 1]
        .iter()
        .map(|line| line.replace(&running.run.port.to_string(), "PORT"))
        .collect()
}

#[test]
fn star_is_every_address_of_both_families() {
    let running = Run::new("listen_addr = *\nunix_socket_dir =").up();
    let port = running.run.port;
    assert_eq!(running.texts()[1], format!("LOG listening on 0.0.0.0:{port}"));
    assert_eq!(running.texts()[2], format!("LOG listening on [::]:{port}"));
    for address in ["127.0.0.1", "::1"] {
        let stream = TcpStream::connect((address, port)).unwrap();
        let at = stream.local_addr().unwrap();
        let console = Raw::over(stream).login("admin", "pgbouncer", "");
        assert!(console.is_ok());
        running.wait_for(&format!(
            ": pgbouncer/admin@{at} login attempt: db=pgbouncer user=admin tls=no replication=no\n"
        ));
    }
}

#[test]
fn addresses_that_fail_are_skipped_while_one_is_left() {
    let lines = listening(Run::new("listen_addr = 127.0.0.1, 203.0.113.1 ,, ::1 ,127.0.0.1"));
    let want = [
        "LOG listening on 127.0.0.1:PORT",
        "WARNING cannot listen on 203.0.113.1:PORT: bind(): Cannot assign requested address",
        "LOG listening on [::1]:PORT",
        "WARNING cannot listen on 127.0.0.1:PORT: bind(): Address already in use",
    ];
    assert_eq!(lines[..4], want);
    assert!(lines[4].starts_with("LOG listening on unix:/"), "{lines:?}");

    let (code, lines) = Run::new("listen_addr = 203.0.113.1, 203.0.113.2").failure();
    let want =
        "FATAL failed to listen on any address in listen_addr list: 203.0.113.1, 203.0.113.2";
    assert_eq!((code, lines.len(), lines[3].as_str()), (1, 4, want));
    let run = Run::new("listen_addr = 127.0.0.1, no.such.name.invalid");
    let want = format!(
        "FATAL getaddrinfo('no.such.name.invalid', '{}') = Name or service not known [-2]",
        run.port
    );
    let (code, lines) = run.failure();
    assert_eq!((code, lines[2].as_str()), (1, want.as_str()));
}

#[test]
fn names_are_looked_up() {
    let lines = listening(Run::new("listen_addr = localhost"));
    assert!(lines.contains(&"LOG listening on 127.0.0.1:PORT".to_owned()), "{lines:?}");
}

#[test]
fn port_zero_is_any_port_and_keeps_its_name() {
    let running = Run::new("listen_port = 0").up();
    assert_eq!(running.texts()[1], "LOG listening on 127.0.0.1:0");
    let login = Raw::unix(&running.run.folder, 0).login("admin", "pgbouncer", "");
    assert!(login.is_ok());
}

#[test]
fn processes_share_a_port_if_both_want_to() {
    let one = Run::new("so_reuseport = 1").up();
    let port = one.run.port;
    let two = Run::new(&format!("so_reuseport = 1\nlisten_port = {port}")).up();
    assert_eq!(two.texts()[1], format!("LOG listening on 127.0.0.1:{port}"));
    let (code, lines) = Run::new(&format!("listen_port = {port}")).failure();
    let want = format!("WARNING cannot listen on 127.0.0.1:{port}: bind(): Address already in use");
    assert_eq!((code, &lines[1]), (1, &want));
    // One that shuts down leaves the port to the other.
    let keep = UnixStream::connect(two.path(&format!(".s.PGSQL.{port}"))).unwrap();
    two.signal(Signal::SIGTERM);
    two.wait_for("got SIGTERM");
    for _ in 0..20 {
        one.console().bye();
    }
    drop(keep);
}

#[test]
fn unix_socket_has_mode_and_group() {
    let group = unprivileged().map_or_else(nix::unistd::getgid, |user| user.gid).to_string();
    let settings = format!("listen_addr =\nunix_socket_mode = 0640\nunix_socket_group = {group}");
    let running = Run::new(&settings).up();
    let data = fs::metadata(running.socket()).unwrap();
    assert_eq!((data.permissions().mode() & 0o7777, data.gid().to_string()), (0o640, group));
    drop(running);
    let running = Run::through("umask 077", "listen_addr =").up();
    let data = fs::metadata(running.socket()).unwrap();
    assert_eq!(data.permissions().mode() & 0o7777, 0o777);
    if !is_root() {
        return;
    }
    let run = Run::new("listen_addr =\nunix_socket_group = root");
    let path = run.filled("DIR/.s.PGSQL.PORT");
    let (code, lines) = run.failure();
    let want = format!("FATAL chown({path}, 4294967295, 0) failed: Operation not permitted");
    assert_eq!((code, lines.last()), (1, Some(&want)));
    assert!(!fs::exists(path).unwrap());
}

#[test]
fn unix_sockets_may_be_relative_abstract_or_locked() {
    let run = Run::new("listen_addr =\nunix_socket_dir = sub");
    fs::create_dir(run.folder.join("sub")).unwrap();
    fs::set_permissions(run.folder.join("sub"), fs::Permissions::from_mode(0o777)).unwrap();
    let mut running = run.up();
    let port = running.run.port;
    assert_eq!(running.texts()[1], format!("LOG listening on unix:sub/.s.PGSQL.{port}"));
    Raw::unix(&running.path("sub"), port).login("admin", "pgbouncer", "").unwrap();
    running.signal(Signal::SIGINT);
    assert_eq!(running.code(), 0);
    assert!(!running.path("sub").join(format!(".s.PGSQL.{port}")).exists());

    let name = format!("pgt-{}-{}", std::process::id(), scratch().serial());
    let settings =
        format!("listen_addr =\nunix_socket_dir = @{name}\nunix_socket_group = nobody's");
    let running = Run::new(&settings).up();
    let path = format!("{name}/.s.PGSQL.{}", running.run.port);
    assert_eq!(running.texts()[1], format!("LOG listening on unix:@{path}"));
    let mut stream =
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(path).unwrap()).unwrap();
    stream.write_all(b"x").unwrap();
    let again = Run::new(&format!("{settings}\nlisten_port = {}", running.run.port));
    let (code, lines) = again.failure();
    assert!(lines[1].ends_with(": bind(): Address already in use"), "{lines:?}");
    assert_eq!((code, lines[2].as_str()), (1, "FATAL failed to create unix socket"));

    let run = Run::new("");
    let lock = run.filled("DIR/.s.PGSQL.PORT.lock");
    write(lock.as_ref(), "");
    let want = run.filled("FATAL unix port PORT is in use");
    let (code, lines) = run.failure();
    assert_eq!((code, lines.last()), (1, Some(&want)));
    assert!(lines[1].starts_with("LOG listening on 127.0.0.1:"), "TCP sockets come first");
}

#[test]
fn accepting_stops_and_resumes_when_descriptors_run_out() {
    let settings = "pool_mode = transaction\ntcp_defer_accept = 0\nserver_idle_timeout = 0\n";
    let database = postgres().new_database();
    let run = Run::through(
        "ulimit -n 30",
        &format!("{settings}\n[databases]\n* = host=127.0.0.1 port={}\n", postgres().port),
    );
    let running = run.up();
    let port = running.run.port;
    let mut served = Raw::tcp(port).login("trusty", &database, "").unwrap().0;
    assert_eq!(served.value("select 1"), "1");
    let crowd: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    running.wait_for("ERROR accept() failed: Too many open files");
    let start = Instant::now();
    let before = cpu_ticks(running.pid);
    let errors = || running.all().matches("accept() failed").count();
    while start.elapsed() < Duration::from_secs(3) {
        assert_eq!(served.value("select 2"), "2", "who is in is served");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(errors(), 1, "one line per pause");
    let spent = cpu_ticks(running.pid) - before;
    assert!(spent < 100, "{spent} of 300 ticks spent");
    drop(crowd);
    Raw::tcp(port).login("trusty", &database, "").unwrap();
    assert!(start.elapsed() > Duration::from_secs(4), "{:?}", start.elapsed());
}

/// Processor time of a process in hundredths of a second.
fn cpu_ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn servers_are_reached_after_a_shortage_of_descriptors() {
    let settings = "server_login_retry = 1\ntcp_defer_accept = 0\n";
    let database = postgres().new_database();
    let run = Run::through(
        "ulimit -n 30",
        &format!("{settings}\n[databases]\n* = host=127.0.0.1 port={}\n", postgres().port),
    );
    let running = run.up();
    let port = running.run.port;
    let first = Raw::tcp(port).login("trusty", &database, "");
    let crowd: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    running.wait_for("accept() failed");
    drop(crowd);
    assert_eq!(first.unwrap().0.value("select 1"), "1");
}

#[test]
fn reload_leaves_listening_sockets_alone() {
    let pooler = Pooler::start(&Setup::trust(""));
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    drop(other);
    pooler.rewrite(&Setup::trust(&format!("listen_port = {port}\ntcp_defer_accept = 0\n")));
    pooler.command("RELOAD");
    assert_eq!(pooler.show("CONFIG", "value", ("key", "tcp_defer_accept")), ["0"]);
    assert_eq!(pooler.show("CONFIG", "value", ("key", "listen_port")), [pooler.port.to_string()]);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    wait_until("it still listens", || TcpStream::connect(("127.0.0.1", pooler.port)).is_ok());
}
