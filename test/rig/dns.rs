//! A nameserver on a loopback port, over UDP and TCP, whose answers a test changes as it goes (RFC 1035).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::scratch::{scratch, write};

/// Codes of the types that are asked for.
pub(crate) const A: u16 = 1;
pub(crate) const AAAA: u16 = 28;
pub(crate) const SOA: u16 = 6;
const CNAME: u16 = 5;

/// Codes of failures.
pub(crate) const SERVFAIL: u8 = 2;
pub(crate) const NXDOMAIN: u8 = 3;

/// How a name is answered.
#[derive(Clone)]
pub(crate) enum Reply {
    /// With those of these addresses that are of the type asked for; maybe there are none.
    Addresses(Vec<IpAddr>),
    /// As above, by way of another name.
    Alias(Vec<IpAddr>),
    /// As above, so much later.
    Late(Duration, Vec<IpAddr>),
    /// As above, and without any addresses over UDP: the answer is said to be cut off.
    Cut(Vec<IpAddr>),
    /// The first packets, so many of each type, are lost.
    Lossy(usize, Vec<IpAddr>),
    /// Failure.
    Code(u8),
    /// Bytes that only begin like an answer.
    Nonsense,
    /// Never.
    Silence,
}

/// Addresses from their texts.
pub(crate) fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A question that has arrived: name, type, whether over TCP.
type Asked = (String, u16, bool);

#[derive(Default)]
struct Book {
    replies: BTreeMap<String, Reply>,
    serials: BTreeMap<String, u32>,
    asked: Vec<Asked>,
}

/// The nameserver. Names that it was told nothing of do not exist.
pub(crate) struct Dns {
    pub(crate) port: u16,
    book: Arc<Mutex<Book>>,
    stop: Arc<AtomicBool>,
}

/// What to send.
enum Say {
    Now(Vec<u8>),
    Late(Duration, Vec<u8>),
    Nothing,
}

/// A question taken apart.
struct Query<'a> {
    id: &'a [u8],
    /// As it was sent: name, type, class.
    raw: &'a [u8],
    name: String,
    kind: u16,
}

fn parse(packet: &[u8]) -> Option<Query<'_>> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let len = usize::from(*packet.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(packet.get(at..at + len)?).into_owned());
        at += len;
    }
    let kind = u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?);
    let raw = packet.get(12..at + 4)?;
    Some(Query { id: packet.get(..2)?, raw, name: labels.join("."), kind })
}

/// A record of the name at this offset; it may be kept for an hour.
fn record(name: u16, kind: u16, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(data.len()).unwrap();
    [
        &(0xc000 | name).to_be_bytes()[..],
        &kind.to_be_bytes(),
        &[0, 1, 0, 0, 14, 16],
        &len.to_be_bytes(),
        data,
    ]
    .concat()
}

fn message(query: &Query<'_>, code: u8, cut: bool, records: &[Vec<u8>]) -> Vec<u8> {
    let count = u16::try_from(records.len()).unwrap().to_be_bytes();
    let flags = [0x85 | u8::from(cut) << 1, 0x80 | code];
    let head = [query.id, &flags, &[0, 1], &count, &[0; 4], query.raw].concat();
    [head, records.concat()].concat()
}

fn addresses(query: &Query<'_>, all: &[IpAddr], alias: bool) -> Vec<u8> {
    let mut records = Vec::new();
    let mut owner = 12;
    if alias {
        records.push(record(12, CNAME, b"\x04real\x07example\0"));
        // The alias behind its record's own name, type, class, time and length.
        owner = u16::try_from(12 + query.raw.len() + 12).unwrap();
    }
    for ip in all {
        match ip {
            IpAddr::V4(ip) if query.kind == A => records.push(record(owner, A, &ip.octets())),
            IpAddr::V6(ip) if query.kind == AAAA => {
                records.push(record(owner, AAAA, &ip.octets()));
            }
            _ => {}
        }
    }
    message(query, 0, false, &records)
}

fn soa(query: &Query<'_>, serial: u32) -> Vec<u8> {
    let data = [&b"\x02ns\0\x05admin\0"[..], &serial.to_be_bytes(), &[0; 16]].concat();
    message(query, 0, false, &[record(12, SOA, &data)])
}

impl Book {
    fn answer(&mut self, packet: &[u8], tcp: bool) -> Say {
        let Some(query) = parse(packet) else {
            return Say::Nothing;
        };
        let asked = (query.name.clone(), query.kind, tcp);
        let before = self.asked.iter().filter(|other| **other == asked).count();
        self.asked.push(asked);
        if query.kind == SOA {
            return Say::Now(match self.serials.get(&query.name) {
                Some(serial) => soa(&query, *serial),
                None => message(&query, SERVFAIL, false, &[]),
            });
        }
        match self.replies.get(&query.name).unwrap_or(&Reply::Code(NXDOMAIN)) {
            Reply::Addresses(all) => Say::Now(addresses(&query, all, false)),
            Reply::Alias(all) => Say::Now(addresses(&query, all, true)),
            Reply::Late(after, all) => Say::Late(*after, addresses(&query, all, false)),
            Reply::Cut(all) if tcp => Say::Now(addresses(&query, all, false)),
            Reply::Cut(_) => Say::Now(message(&query, 0, true, &[])),
            Reply::Lossy(count, _) if before < *count => Say::Nothing,
            Reply::Lossy(_, all) => Say::Now(addresses(&query, all, false)),
            Reply::Code(code) => Say::Now(message(&query, *code, false, &[])),
            Reply::Nonsense => {
                let mut bytes = message(&query, 0, false, &[record(12, query.kind, &[7; 3])]);
                // A name that points to itself, and more records than there are.
                bytes.extend([0xc0, u8::try_from(bytes.len() & 0xff).unwrap(), 0, 1]);
                bytes[7] = 200;
                Say::Now(bytes)
            }
            Reply::Silence => Say::Nothing,
        }
    }
}

impl Dns {
    pub(crate) fn start() -> Self {
        let (udp, tcp) = (0..100)
            .find_map(|_| {
                let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
                let tcp = TcpListener::bind(udp.local_addr().unwrap()).ok()?;
                Some((udp, tcp))
            })
            .expect("a port that is free for both");
        let port = tcp.local_addr().unwrap().port();
        let book = Arc::new(Mutex::new(Book::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (own, ended) = (book.clone(), stop.clone());
        std::thread::spawn(move || serve_udp(&udp, &own, &ended));
        let (own, ended) = (book.clone(), stop.clone());
        std::thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let own = own.clone();
                std::thread::spawn(move || serve_tcp(stream, &own));
            }
        });
        Self { port, book, stop }
    }

    /// Changes what a name is answered with.
    pub(crate) fn set(&self, name: &str, reply: Reply) {
        self.book.lock().unwrap().replies.insert(name.to_owned(), reply);
    }

    /// The name has these addresses.
    pub(crate) fn point(&self, name: &str, addrs: &[&str]) {
        self.set(name, Reply::Addresses(ips(addrs)));
    }

    /// Changes a zone's serial number; without one the question fails.
    pub(crate) fn serial(&self, zone: &str, number: u32) {
        self.book.lock().unwrap().serials.insert(zone.to_owned(), number);
    }

    /// How often this was asked, over UDP and over TCP.
    pub(crate) fn asked(&self, name: &str, kind: u16) -> (usize, usize) {
        let book = self.book.lock().unwrap();
        let count = |tcp| book.asked.iter().filter(|a| **a == (name.into(), kind, tcp)).count();
        (count(false), count(true))
    }

    /// The settings that make a pooler use it: what is lost is asked for again after a moment.
    pub(crate) fn settings(&self) -> String {
        // Versions of c-ares differ in which words they know; the last one that is known counts.
        self.settings_with("retrans:300 retry:2 timeout:1 attempts:2")
    }

    /// As `settings`, with other options of resolv.conf(5).
    pub(crate) fn settings_with(&self, options: &str) -> String {
        let path = scratch().folder().join("resolv.conf");
        let at = format!("nameserver [127.0.0.1]:{}", self.port);
        let text = format!("{at}\nsearch search.test\noptions {options}\n");
        write(&path, text);
        format!("resolv_conf = {}\n", path.display())
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve_udp(socket: &UdpSocket, book: &Mutex<Book>, stop: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut packet = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut packet) else {
            continue;
        };
        let say = book.lock().unwrap().answer(&packet[..len], false);
        match say {
            Say::Now(bytes) => drop(socket.send_to(&bytes, from)),
            Say::Late(after, bytes) => {
                let socket = socket.try_clone().unwrap();
                std::thread::spawn(move || {
                    std::thread::sleep(after);
                    drop(socket.send_to(&bytes, from));
                });
            }
            Say::Nothing => {}
        }
    }
}

/// One byte at a time goes back, so that whoever reads has to wait for the rest.
fn serve_tcp(mut stream: TcpStream, book: &Mutex<Book>) {
    stream.set_nodelay(true).unwrap();
    let mut len = [0; 2];
    while stream.read_exact(&mut len).is_ok() {
        let mut packet = vec![0; usize::from(u16::from_be_bytes(len))];
        if stream.read_exact(&mut packet).is_err() {
            return;
        }
        let say = book.lock().unwrap().answer(&packet, true);
        let Say::Now(bytes) = say else {
            continue;
        };
        let len = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        let mut all = [&len[..], &bytes].concat();
        let rest = all.split_off(5);
        for piece in all.chunks(1).chain([&rest[..]]) {
            if stream.write_all(piece).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
