//! The whole of `Net` on loopback sockets.

use super::script::{packet, Script};
use super::*;
use crate::core::{Target, Verdict};
use crate::net::listen::Kept;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

/// A UDP port where nobody listens.
fn dead_port() -> u16 {
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(super) struct Process {
    pub(super) net: Net,
    pub(super) core: Script,
    pub(super) client: ClientId,
    pub(super) server: ServerId,
    internal: Vec<u32>,
}

/// Names come from the hosts file, and from a nameserver that isn't there.
pub(super) fn process() -> Process {
    let text = format!("nameserver [127.0.0.1]:{}\n", dead_port());
    let thread = std::thread::current().id();
    let name = format!("turnstile-{}-{thread:?}-resolv.conf", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    let nameservers = Nameservers::new(path.to_str().unwrap()).unwrap();
    std::fs::remove_file(path).unwrap();
    let seconds = Micros::from_secs;
    let options = NetOptions {
        limits: Limits { rounds: 5, unsent: 4096 },
        sockets: SocketOptions::default(),
        dns: DnsTimes { found: seconds(15), failed: seconds(15), zones: Micros(0) },
    };
    let net = Net::new(options, nameservers);
    let (client, server) = (ClientId::from_parts(5, 6), ServerId::from_parts(7, 8));
    Process {
        net: net.unwrap(),
        core: Script {
            rule: Box::new(|_, _, _| Verdict::Pass),
            links: vec![(client, server)],
            startup: false,
            suspends: false,
            both_ways: false,
            max: u32::MAX,
            log: Vec::new(),
            target: None,
        },
        client,
        server,
        internal: Vec::new(),
    }
}

impl Process {
    /// Turns the loop until `done`.
    pub(super) fn until(&mut self, mut done: impl FnMut(&mut Process) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", self.core.log);
            self.net.wait(Duration::from_millis(50)).unwrap();
            while let Some(event) = self.net.next_event() {
                match event {
                    Event::Accept(listener) => {
                        while let Some((stream, _)) = self.net.accept(listener) {
                            self.net.add_client(self.client, stream, &mut self.core);
                        }
                    }
                    Event::Internal(number) => self.internal.push(number),
                    other => self.net.handle(other, &mut self.core),
                }
            }
        }
    }

    pub(super) fn until_logged(&mut self, start: &str) {
        self.until(|process| process.core.log.iter().any(|line| line.starts_with(start)));
    }

    pub(super) fn connect(&mut self, host: &str, port: u16) {
        self.core.target = Some(Target { host: host.to_owned(), port });
        self.net.connect(self.server, &mut self.core);
    }

    pub(super) fn listen(&mut self, addr: &str, dir: &str) {
        self.net.listen(&options(addr, dir), Kept::default()).unwrap();
    }

    /// Listens at a socket that a service manager has passed.
    pub(super) fn listen_at(&mut self, passed: OwnedFd) {
        self.net.listen_at(vec![passed], &options("", "")).unwrap();
    }

    pub(super) fn lines(&mut self) -> Vec<String> {
        let journal = self.net.journal();
        std::iter::from_fn(|| journal.pop().map(|(_, text)| text)).collect()
    }
}

fn options(addr: &str, dir: &str) -> ListenOptions {
    ListenOptions {
        listen_addr: addr.to_owned(),
        port: 0,
        backlog: 128,
        unix_dir: dir.to_owned(),
        unix_mode: 0o777,
        unix_group: String::new(),
        reuse_port: false,
        defer_accept: false,
        sockets: SocketOptions::default(),
    }
}

pub(super) fn read_all(mut stream: impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn bytes_go_from_client_to_server_and_back() {
    let mut process = process();
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    process.connect("localhost", far.local_addr().unwrap().port());
    assert_eq!(process.net.dialling(), 1);
    process.until_logged("connected S7 Inet(");
    let (mut server, _) = far.accept().unwrap();

    process.listen("127.0.0.1", "");
    let at = process.net.listeners().tcp_addresses()[0];
    let mut client = TcpStream::connect(at).unwrap();
    process.until(|process| process.net.relay().counts() == (1, 1));

    let (query, reply) = (packet(b'Q', b"select"), packet(b'D', &vec![b'x'; 500_000]));
    client.write_all(&query).unwrap();
    let thread = std::thread::spawn(move || {
        assert_eq!(read_all(&server, query.len()), query);
        server.write_all(&reply).unwrap();
        (server, reply)
    });
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        let got = read_all(&client, 500_005);
        (client, got)
    });
    process.until_logged("drained");
    let (server, reply) = thread.join().unwrap();
    let (client, got) = reader.join().unwrap();
    assert!(got == reply);
    assert!(!process.net.relay().owns_memory(Peer::Client(process.client)));

    drop(client);
    process.until_logged("lost C5 Receive");
    process.net.close(Peer::Client(process.client));
    drop(server);
    process.until_logged("lost S7 Receive");
    process.net.close(Peer::Server(process.server));
    assert_eq!(process.net.relay().counts(), (0, 0));
}

#[test]
fn unix_sockets_serve_both_sides() {
    let dir = std::env::temp_dir().join(format!("turnstile-{}-net", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let text = dir.to_str().unwrap().to_owned();
    let mut process = process();
    process.connect(&text, 1);
    let line = format!(
        "sbuf_connect failed to connect to unix:{text}/.s.PGSQL.1: No such file or directory"
    );
    assert_eq!(process.lines(), [line]);
    assert_eq!(process.core.log, ["lost S7 Connect"]);

    let far = UnixListener::bind(dir.join(".s.PGSQL.1")).unwrap();
    process.connect(&text, 1);
    process.until_logged(&format!(
        "connected S7 Unix {{ pid: 0 }} Unix {{ pid: {} }}",
        std::process::id()
    ));
    let (server, _) = far.accept().unwrap();
    process.listen("", &text);
    let mut client = UnixStream::connect(dir.join(".s.PGSQL.0")).unwrap();
    client.write_all(b"Q\0\0\0\x04").unwrap();
    drop(client);
    process.until_logged("lost C5 Receive");
    assert_eq!(read_all(&server, 5), b"Q\0\0\0\x04");
    process.net.listeners().remove_socket_file();
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn refused_connection_is_reported() {
    let mut process = process();
    let port = {
        let far = TcpListener::bind("127.0.0.1:0").unwrap();
        far.local_addr().unwrap().port()
    };
    process.connect("127.0.0.1", port);
    process.until_logged("lost S7 Connect");
    // Whether connect() says so at once is up to the kernel; only then there is a line.
    let line = format!("sbuf_connect failed to connect to 127.0.0.1:{port}: Connection refused");
    let lines = process.lines();
    assert!(lines.is_empty() || lines == [line], "{lines:?}");
    assert_eq!(process.net.dialling(), 0);
}

#[test]
fn unknown_names_are_reported_and_closed_ones_forgotten() {
    let mut process = process();
    process.connect("nowhere", 5432);
    process.until_logged("lost S7 Dns");
    assert_eq!(process.lines(), ["DNS lookup failed: nowhere: result=0"]);
    process.connect("nowhere", 5432);
    assert_eq!(process.core.log, ["lost S7 Dns", "lost S7 Dns"]);
    process.connect("elsewhere", 5432);
    process.net.close(Peer::Server(process.server));
    process.until(|process| !process.lines().is_empty());
    assert_eq!(process.core.log.len(), 2);
}

#[test]
fn own_sources_and_helpers_wake_the_loop() {
    let mut process = process();
    let (mut near, mut far) = mio::net::UnixStream::pair().unwrap();
    process.net.watch(&mut near, 9).unwrap();
    far.write_all(b"x").unwrap();
    process.until(|process| process.internal == [9]);
    process.net.waker().wake().unwrap();
    process.net.wait(Duration::from_secs(5)).unwrap();
    assert_eq!(process.net.next_event(), Some(Event::Woken));
}

#[test]
fn events_of_older_connections_find_nothing() {
    let mut process = process();
    let stale = Peer::Client(ClientId::from_parts(5, 1));
    process.net.handle(Event::Readable(stale), &mut process.core);
    process.net.handle(Event::Writable(stale), &mut process.core);
    let stale = ServerId::from_parts(5, 1);
    process.net.handle(Event::Dialled(stale), &mut process.core);
    process.net.close(Peer::Server(stale));
    process.net.send(Peer::Server(stale), b"x", &mut process.core);
    assert!(process.core.log.is_empty());
}

#[test]
fn connection_at_rest_is_small() {
    assert!(size_of::<conn::Conn<Socket>>() <= 192);
}
