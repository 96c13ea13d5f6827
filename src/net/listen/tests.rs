//! Listening on loopback addresses and on Unix sockets in a directory of the test's own.

use super::*;
use mio::Poll;
use nix::unistd::getuid;
use std::io::Write;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;

struct Room {
    dir: PathBuf,
    poll: Poll,
    journal: Journal,
}

impl Room {
    fn new(name: &str) -> Room {
        let dir = std::env::temp_dir().join(format!("turnstile-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Room { dir, poll: Poll::new().unwrap(), journal: Journal::default() }
    }

    fn options(&self) -> ListenOptions {
        ListenOptions {
            listen_addr: String::new(),
            port: 0,
            backlog: 128,
            unix_dir: self.dir.to_str().unwrap().to_owned(),
            unix_mode: 0o700,
            unix_group: String::new(),
            reuse_port: false,
            defer_accept: true,
            sockets: SocketOptions::default(),
        }
    }

    fn open(&mut self, options: &ListenOptions) -> Result<Listeners, Fatal> {
        Listeners::open(options, Kept::default(), self.poll.registry(), &mut self.journal)
    }

    /// The lines of an attempt that has to fail.
    fn failure(&mut self, options: &ListenOptions) -> Vec<String> {
        assert!(self.open(options).is_err());
        let lines = self.lines();
        assert_eq!(lines.last().map(|line| line.0), Some(Level::Fatal));
        lines.into_iter().map(|(_, text)| text).collect()
    }

    fn lines(&mut self) -> Vec<(Level, String)> {
        let dir = self.dir.to_str().unwrap().to_owned();
        std::iter::from_fn(|| self.journal.pop())
            .map(|(level, text)| (level, text.replace(&dir, "DIR")))
            .collect()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn line(level: Level, text: &str) -> (Level, String) {
    (level, text.to_owned())
}

#[test]
fn connections_come_with_their_origin() {
    let mut room = Room::new("origin");
    let mut options = room.options();
    options.listen_addr = " 127.0.0.1 , ".to_owned();
    let mut listeners = room.open(&options).unwrap();
    assert_eq!(
        room.lines(),
        [
            line(Level::Log, "listening on 127.0.0.1:0"),
            line(Level::Log, "listening on unix:DIR/.s.PGSQL.0"),
        ]
    );
    let at = listeners.tcp_addresses()[0];
    let mut tcp = TcpStream::connect(at).unwrap();
    tcp.write_all(b"x").unwrap();
    let path = room.dir.join(".s.PGSQL.0");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(unix_socket_in_use(&options.unix_dir, 0));
    let _unix = UnixStream::connect(&path).unwrap();

    let now = Micros::default();
    let mut accept = |index| loop {
        if let Some((_, origin)) = listeners.accept(index, &options.sockets, now, &mut room.journal)
        {
            break origin;
        }
    };
    let origin = accept(0);
    assert_eq!(origin.remote, Addr::Inet(tcp.local_addr().unwrap()));
    assert_eq!(origin.local, Addr::Inet(at));
    assert_eq!(origin.uid, None);
    // The first one is that of the probe.
    accept(1);
    let origin = accept(1);
    let pid = std::process::id();
    assert_eq!(origin.remote, Addr::Unix { pid });
    assert_eq!(origin.uid, Some(getuid().as_raw()));

    listeners.close_tcp();
    assert_eq!(listeners.open_ones(), [1]);
    assert!(TcpStream::connect(at).is_err());
    listeners.remove_socket_file();
    assert!(!path.exists());
    assert!(!unix_socket_in_use(&options.unix_dir, 0));
}

#[test]
fn suspended_sockets_accept_nothing() {
    let mut room = Room::new("suspended");
    let options = room.options();
    let mut listeners = room.open(&options).unwrap();
    let _client = UnixStream::connect(room.dir.join(".s.PGSQL.0")).unwrap();
    let mut accept = |listeners: &mut Listeners| {
        let now = Micros::default();
        let journal = &mut room.journal;
        listeners.accept(0, &options.sockets, now, journal).is_some()
    };
    listeners.suspend(true);
    assert!(!accept(&mut listeners));
    listeners.suspend(false);
    listeners.failed_at = Some(Micros::from_secs(1));
    assert!(!accept(&mut listeners));
    assert!(!listeners.tick(Micros::from_secs(5)));
    assert!(listeners.tick(Micros::from_secs(6)));
    assert!(accept(&mut listeners));
    assert!(!accept(&mut listeners));
}

#[test]
fn failures_are_explained() {
    let mut room = Room::new("failures");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = i32::from(taken.local_addr().unwrap().port());
    let plain = room.options();
    let mut none = room.options();
    none.unix_dir.clear();
    let with = |change: &dyn Fn(&mut ListenOptions)| {
        let mut options = none.clone();
        change(&mut options);
        options
    };
    let dir = plain.unix_dir.clone();
    fs::write(room.dir.join(".s.PGSQL.77.lock"), "").unwrap();
    let table: [(ListenOptions, Vec<String>); 5] = [
        (none.clone(), vec!["nowhere to listen on".to_owned()]),
        (
            with(&|options| {
                options.listen_addr = "127.0.0.1".to_owned();
                options.port = port + 65536;
            }),
            vec![
                format!("cannot listen on 127.0.0.1:{port}: bind(): Address already in use"),
                "failed to listen on any address in listen_addr list: 127.0.0.1".to_owned(),
            ],
        ),
        (
            with(&|options| options.unix_dir = format!("{dir}/missing")),
            vec![
                "cannot listen on unix:DIR/missing/.s.PGSQL.0: bind(): No such file or directory"
                    .to_owned(),
                "failed to create unix socket".to_owned(),
            ],
        ),
        (
            with(&|options| {
                options.unix_dir.clone_from(&dir);
                options.port = 77;
            }),
            vec!["unix port 77 is in use".to_owned()],
        ),
        (
            with(&|options| {
                options.unix_dir.clone_from(&dir);
                options.unix_group = "no such group".to_owned();
            }),
            vec!["could not find group 'no such group': Success".to_owned()],
        ),
    ];
    for (options, want) in table {
        assert_eq!(room.failure(&options), want);
    }
}

#[test]
fn wrong_owner_or_mode_is_explained() {
    let room = Room::new("owner");
    let mut options = room.options();
    let path = room.dir.join("missing");
    let path = path.to_str().unwrap();
    let missing = "No such file or directory";
    let text = format!("failure to chmod({path}, 0700): {missing}");
    assert_eq!(set_owner_and_mode(path, &options), Err(text));
    for group in ["0", "root"] {
        options.unix_group = group.to_owned();
        let text = format!("chown({path}, 4294967295, 0) failed: {missing}");
        assert_eq!(set_owner_and_mode(path, &options), Err(text));
    }
}

#[test]
fn ports_are_taken_as_getaddrinfo_takes_them() {
    let shown = |item, port| match addresses(item, port) {
        Ok(addrs) => addrs.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" "),
        Err(text) => text,
    };
    for (item, port, want) in [
        ("127.0.0.1", 99999, "127.0.0.1:34463"),
        ("::1", 0, "[::1]:0"),
        ("*", 6432, "0.0.0.0:6432 [::]:6432"),
        ("*", -5, "Servname not supported for ai_socktype [-8]"),
        ("no.such.name.invalid", 1, "Name or service not known [-2]"),
    ] {
        assert_eq!(shown(item, port), want);
    }
}

#[test]
fn backlog_is_the_one_asked_for_or_the_most_there_is() {
    for (count, want) in [(0, 0), (128, 128), (4096, 4096), (1_000_000, -1), (-7, -1)] {
        assert_eq!(i32::from(backlog(count)), want);
    }
}

#[test]
fn long_path_is_cut_everywhere() {
    let mut room = Room::new("long");
    let mut options = room.options();
    options.unix_dir = format!("{}/{}", options.unix_dir, "x".repeat(200));
    options.unix_mode = 0o640;
    let mut listeners = room.open(&options).unwrap();
    let lines = room.lines();
    let name = lines[0].1.strip_prefix("listening on unix:DIR/").unwrap();
    let path = room.dir.join(name);
    assert_eq!(path.as_os_str().len(), 107);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(unix_socket_in_use(&options.unix_dir, options.port));
    listeners.remove_socket_file();
    assert!(!path.exists());
}

#[test]
fn accepted_sockets_have_the_options_of_the_moment() {
    let mut room = Room::new("accepted");
    let mut options = room.options();
    options.listen_addr = "127.0.0.1".to_owned();
    options.defer_accept = false;
    let mut listeners = room.open(&options).unwrap();
    let at = listeners.tcp_addresses()[0];
    for idle in [33, 44] {
        let _client = TcpStream::connect(at).unwrap();
        let sockets = SocketOptions { keepidle: idle, ..SocketOptions::default() };
        let stream = loop {
            let journal = &mut room.journal;
            if let Some((stream, _)) = listeners.accept(0, &sockets, Micros::default(), journal) {
                break stream;
            }
        };
        assert_eq!(socket::getsockopt(&stream, sockopt::TcpKeepIdle).unwrap(), idle as u32);
        assert!(socket::getsockopt(&stream, sockopt::KeepAlive).unwrap());
        assert!(socket::getsockopt(&stream, sockopt::TcpNoDelay).unwrap());
    }
    // What can't be set drops the connection.
    let _client = TcpStream::connect(at).unwrap();
    let sockets = SocketOptions { keepidle: -1, ..SocketOptions::default() };
    let now = Micros::default();
    while room.journal.pop().is_none_or(|(level, text)| {
        level != Level::Warning || !text.starts_with("socket_set_keepalive(")
    }) {
        assert!(listeners.accept(0, &sockets, now, &mut room.journal).is_none());
    }
}

#[test]
fn failing_socket_option_is_named() {
    let mut room = Room::new("option");
    let mut options = room.options();
    options.listen_addr = "127.0.0.1".to_owned();
    options.sockets.keepidle = -1;
    let mut lines = room.failure(&options).into_iter();
    let first = lines.next().unwrap();
    assert!(first.starts_with("socket_set_keepalive("), "{first}");
    assert!(first.ends_with(") failed: Invalid argument"), "{first}");
    let rest: Vec<String> = lines.collect();
    assert_eq!(
        rest,
        [
            "cannot listen on 127.0.0.1:0: tune_socket(): Invalid argument",
            "failed to listen on any address in listen_addr list: 127.0.0.1",
        ]
    );
}

#[test]
fn abstract_sockets_have_no_file() {
    let mut room = Room::new("abstract");
    let mut options = room.options();
    let name = format!("turnstile-{}", std::process::id());
    options.unix_dir = format!("@{name}");
    let listeners = room.open(&options).unwrap();
    let text = format!("listening on unix:@{name}/.s.PGSQL.0");
    assert_eq!(room.lines(), [line(Level::Log, &text)]);
    let addr =
        std::os::unix::net::SocketAddr::from_abstract_name(format!("{name}/.s.PGSQL.0")).unwrap();
    UnixStream::connect_addr(&addr).unwrap();
    assert!(listeners.socket_file.is_none());
    assert!(!unix_socket_in_use(&options.unix_dir, 0));
    let again = room.open(&options);
    assert!(again.is_err());
    assert_eq!(room.lines().last(), Some(&line(Level::Fatal, "failed to create unix socket")));
}

#[test]
fn stale_socket_file_is_replaced() {
    let mut room = Room::new("stale");
    let options = room.options();
    let path = room.dir.join(".s.PGSQL.0");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists() && !unix_socket_in_use(&options.unix_dir, 0));
    let _listeners = room.open(&options).unwrap();
    assert!(UnixStream::connect(&path).is_ok());
}
