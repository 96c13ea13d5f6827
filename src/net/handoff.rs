//! Taking over from a running process: its own console hands us its sockets (takeover 2 to 7).
//!
//! A PgBouncer is asked for SHOW FDS, one of us for HANDOFF. All of it happens before our loop runs,
//! so it waits for answers as plain programs do. Until [`Old::replace`] or [`Old::send_shutdown`] the
//! old process goes on by itself if anything fails here.

use super::address::listening_path;
use super::options::reason;
use super::stream::Stream;
use super::sys;
use crate::core::carry::Kind;
use crate::core::record::{columns as cells, Record};
use crate::core::{Addr, Origin};
use crate::wire::frame::{Frame, Framer};
use crate::wire::read::{lossy, ErrorFields};
use crate::wire::write;
use mio::net::{TcpStream, UnixStream};
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::sys::resource::{getrlimit, Resource};
use nix::sys::socket::{
    getsockname, getsockopt, send, setsockopt, sockopt, AddressFamily, MsgFlags, SockaddrLike,
    SockaddrStorage,
};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::{Duration, Instant};

mod soft;

/// Bytes of one receive. A row has at most 2048.
const ROOM: usize = 64 * 1024;
/// Type and length of a packet, in bytes.
const HEADER: usize = 5;
/// The largest packet in bytes: a row of HANDOFF has all that is in memory of a connection.
const PACKET_MAX: u32 = i32::MAX as u32;
/// The largest number of a handoff's format that is understood. The old process tells its own; the
/// smaller one counts.
pub const FORMAT: u64 = 1;
/// An answer without rows has at most so many bytes.
const BUDGET: usize = 1 << 20;
/// Each row may add so many: a PgBouncer takes none that is longer (takeover 5.1).
const ROW: usize = 2048;
/// A process that has closed its sockets may take so long to end.
const GRACE: Duration = Duration::from_secs(2);
/// So often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(2);
pub(super) const LOOKING: &str = "looking at a socket of the old process";

/// A console of the process that is to be replaced.
pub struct Old {
    stream: StdUnixStream,
    /// Received; what is in front of `at` has been read.
    bytes: Vec<u8>,
    at: usize,
    descriptors: VecDeque<OwnedFd>,
    /// Who speaks, once it has.
    pid: Option<i32>,
    /// So many bytes it may still say in an answer.
    budget: usize,
}

/// A row of HANDOFF.
pub struct Parcel {
    /// What it is of; `None` if a later version has something that we know nothing of.
    pub kind: Option<Kind>,
    /// The number of a client or server.
    pub number: u64,
    /// What the core knew.
    pub state: Vec<u8>,
    /// What the net floor knew, and the socket.
    pub socket: Option<(Vec<u8>, OwnedFd)>,
}

/// A socket that the old process has handed over.
pub struct Inherited {
    /// What the old process says of it.
    pub record: Record,
    /// It.
    pub socket: OwnedFd,
}

/// What ended an answer.
enum Answer {
    /// A command is done; this is its tag.
    Complete(String),
    /// A row and its descriptor.
    Row(Box<Inherited>),
}

impl Old {
    /// Connects to the process that listens on the Unix socket of this directory and port. `None`
    /// if there is none; the error is the text of a FATAL line.
    pub fn find(dir: &str, port: i32) -> Result<Option<Old>, String> {
        if dir.is_empty() || dir.starts_with('@') {
            return Ok(None);
        }
        let Ok(stream) = StdUnixStream::connect(listening_path(dir, port)) else {
            return Ok(None);
        };
        let who = getsockopt(&stream, sockopt::PeerCredentials);
        let uid = who.map_err(|error| failed("asking who listens", &error.into()))?.uid();
        // Root could have what it wants anyway; anybody else might only pretend.
        if uid != 0 && uid != nix::unistd::getuid().as_raw() {
            return Err(format!(
                "the process at the Unix socket belongs to user {uid}; start with -R as that user"
            ));
        }
        setsockopt(&stream, sockopt::PassCred, &true)
            .map_err(|error| failed("asking who answers", &error.into()))?;
        let (bytes, descriptors) = (Vec::new(), VecDeque::new());
        Ok(Some(Old { stream, bytes, at: 0, descriptors, pid: None, budget: BUDGET }))
    }

    /// Logs in as the process's own user (takeover 3).
    pub fn log_in(&mut self) -> Result<(), String> {
        let mut packet = Vec::new();
        let pairs: [(&[u8], &[u8]); 2] = [(b"database", b"pgbouncer"), (b"user", b"pgbouncer")];
        write::startup(&mut packet, pairs.into_iter());
        self.say(&packet)?;
        loop {
            let (tag, body) = self.packet()?;
            match (tag, body.as_slice()) {
                (b'R', [0, 0, 0, 0]) | (b'S' | b'K' | b'N', _) => {}
                (b'Z', _) => return Ok(()),
                (b'E', body) => {
                    let line = ErrorFields::read(body).line(" ").unwrap_or_default();
                    return Err(format!("server login failed: {line}"));
                }
                (b'R', _) => return Err("old process asks for a password".into()),
                _ => return Err(unexpected(tag)),
            }
        }
    }

    /// The old process, once it has logged us in; `None` if it is in another world of process ids.
    /// Who has opened its socket may have been somebody else.
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Has everything come to rest between two packets (takeover 4).
    pub fn suspend(&mut self) -> Result<(), String> {
        self.ask("SUSPEND;")?;
        match self.answer()? {
            Answer::Complete(tag) if tag == "SUSPEND" => Ok(()),
            // PgBouncer says WAIT_CLOSE if somebody has used that and it is busy (takeover 4).
            Answer::Complete(tag) => Err(format!("got bad CMD from old bouncer: {tag}; try again")),
            Answer::Row(_) => Err(unexpected(b'D')),
        }
    }

    /// Everything that it hands over (takeover 5).
    pub fn sockets(&mut self) -> Result<Vec<Inherited>, String> {
        self.sockets_of(|_| true)
    }

    /// Those of what it hands over that are wanted; the others are closed as they come.
    fn sockets_of(&mut self, is_wanted: fn(&Record) -> bool) -> Result<Vec<Inherited>, String> {
        self.ask("SHOW FDS;")?;
        let mut rows = Vec::new();
        loop {
            match self.answer()? {
                Answer::Row(row) => {
                    self.budget = self.budget.saturating_add(ROW);
                    rows.extend(Some(*row).filter(|row| is_wanted(&row.record)));
                }
                Answer::Complete(tag) if tag.starts_with("SHOW") => return Ok(rows),
                Answer::Complete(tag) => {
                    return Err(format!("got bad CMD from old bouncer: {tag}"));
                }
            }
        }
    }

    /// True if it is one of us: it can hand over everything (doc/handoff.md).
    pub fn knows_handoff(&mut self) -> Result<bool, String> {
        self.ask("HANDOFF 0;")?;
        let mut format = None;
        loop {
            match self.packet()? {
                (b'D', body) => format = cells(&body).and_then(|cells| number(cells.first()?)),
                (b'Z', _) => return Ok(format.is_some_and(|format: u64| format > 0)),
                (b'T' | b'C' | b'N' | b'S' | b'E', _) => {}
                (tag, _) => return Err(unexpected(tag)),
            }
        }
    }

    /// Everything that it knows. It does nothing else from its first row on, until it is told to
    /// end or we are gone.
    pub fn everything(&mut self) -> Result<Vec<Parcel>, String> {
        self.ask(&format!("HANDOFF {FORMAT};"))?;
        // What is in the memory of one of us has no bounds but its own.
        self.budget = usize::MAX;
        let mut parcels = Vec::new();
        loop {
            let (tag, body) = self.next_packet()?;
            match tag {
                b'D' => {
                    let body = self.bytes.get(body).unwrap_or_default();
                    parcels.push(parcel(body, &mut self.descriptors)?);
                }
                b'T' | b'N' | b'S' => {}
                // That is what ReadyForQuery is for otherwise.
                b'C' => return Ok(parcels),
                b'E' => return Err(refused(self.bytes.get(body).unwrap_or_default())),
                tag => return Err(unexpected(tag)),
            }
        }
    }

    /// The point of no return, for a process that has handed over everything: it agrees that its
    /// connections are ours, or is gone. The error says why it goes on itself.
    pub fn replace(&mut self) -> Result<(), String> {
        let process = self.pid.and_then(|pid| sys::open_process(pid).ok());
        // Whether it could be written shows in the answer.
        let _ = self.ask("SHUTDOWN;");
        loop {
            match self.packet() {
                Ok((b'C', _)) => return Ok(()),
                Ok((b'E', body)) => return Err(refused(&body)),
                Ok(_) => {}
                // Two that go on with the same connections would be worse than none.
                Err(text) if process.as_ref().is_some_and(|process| !ends(process)) => {
                    return Err(format!("{text}, but the old process lives"));
                }
                Err(_) => return Ok(()),
            }
        }
    }

    /// The point of no return: the old process ends, and from here on its connections are nobody's
    /// but ours. Also if it has died before it could hear this: what it had is here.
    pub fn send_shutdown(&mut self) {
        let _ = self.ask("SHUTDOWN;");
    }

    /// True if the old process is gone, as far as this long a wait shows.
    pub fn is_gone(&mut self, wait: Duration) -> bool {
        let _ = self.stream.set_read_timeout(Some(wait));
        let mut room = [0; 4096];
        loop {
            match sys::receive_with_descriptors(&self.stream, &mut room) {
                Ok(received) if received.count == 0 => return true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return !is_timeout(error.kind()),
            }
        }
    }

    fn ask(&mut self, sql: &str) -> Result<(), String> {
        let mut packet = Vec::new();
        write::query(&mut packet, sql.as_bytes());
        self.budget = BUDGET;
        self.say(&packet)
    }

    fn say(&mut self, packet: &[u8]) -> Result<(), String> {
        self.stream.write_all(packet).map_err(|error| failed("writing to old process", &error))
    }

    /// The next thing that matters of an answer.
    fn answer(&mut self) -> Result<Answer, String> {
        loop {
            let (tag, body) = self.packet()?;
            match tag {
                b'T' | b'Z' | b'N' | b'S' => {}
                b'D' => {
                    let socket = self.descriptors.pop_front();
                    let socket = socket.ok_or("got row without fd info")?;
                    return Record::read(&body)
                        .map(|record| Answer::Row(Box::new(Inherited { record, socket })));
                }
                b'C' => {
                    let tag = body.split(|byte| *byte == 0).next().unwrap_or_default();
                    return Ok(Answer::Complete(lossy(tag)));
                }
                b'E' => return Err(refused(&body)),
                other => return Err(unexpected(other)),
            }
        }
    }

    /// The next packet, whole: its type and body.
    fn packet(&mut self) -> Result<(u8, Vec<u8>), String> {
        let (tag, body) = self.next_packet()?;
        Ok((tag, self.bytes.get(body).unwrap_or_default().to_vec()))
    }

    /// The next packet, whole: its type, and where its body is until the next one is asked for.
    fn next_packet(&mut self) -> Result<(u8, Range<usize>), String> {
        let framer = Framer { startup: false, max: PACKET_MAX };
        loop {
            let bytes = self.bytes.get(self.at..).unwrap_or_default();
            match framer.first(bytes) {
                Frame::Packet { tag, len } if bytes.len() >= len as usize => {
                    let body = self.at.saturating_add(HEADER);
                    self.at = self.at.saturating_add(len as usize);
                    return Ok((tag, body..self.at));
                }
                Frame::Bad(_) => return Err("cannot parse packet".into()),
                Frame::Packet { .. } | Frame::NeedMore => self.receive()?,
            }
        }
    }

    fn receive(&mut self) -> Result<(), String> {
        self.bytes.drain(..self.at.min(self.bytes.len()));
        self.at = 0;
        let mut room = [0; ROOM];
        loop {
            match sys::receive_with_descriptors(&self.stream, &mut room) {
                Ok(received) if received.count == 0 => return Err("unexpected EOF".into()),
                Ok(received) => {
                    let count = received.count;
                    self.bytes.extend_from_slice(room.get(..count).unwrap_or_default());
                    self.descriptors.extend(received.descriptors);
                    self.pid = received.sender.or(self.pid);
                    let left = self.budget.checked_sub(count);
                    self.budget = left.ok_or("old process says too much")?;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    return Err(too_many_descriptors());
                }
                Err(error) => return Err(failed("reading from old process", &error)),
            }
        }
    }
}

/// A row of HANDOFF.
fn parcel(body: &[u8], descriptors: &mut VecDeque<OwnedFd>) -> Result<Parcel, String> {
    let parcel = cells(body).and_then(|cells| {
        let cell = |at: usize| cells.get(at).copied().flatten();
        let number = number(cells.get(1)?)?;
        Some((Kind::of(cell(0)?), number, cell(2)?.to_vec(), cell(3).map(<[u8]>::to_vec)))
    });
    let (kind, number, state, wire) = parcel.ok_or("invalid data from old process")?;
    let socket = match wire {
        None => None,
        Some(wire) => Some((wire, descriptors.pop_front().ok_or("got row without fd info")?)),
    };
    Ok(Parcel { kind, number, state, socket })
}

/// True if a process whose sockets are closed ends: the one comes a moment before the other.
fn ends(process: &OwnedFd) -> bool {
    let end = Instant::now().checked_add(GRACE);
    while !sys::has_ended(process) {
        if end.is_none_or(|end| Instant::now() >= end) {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}

fn too_many_descriptors() -> String {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    format!(
        "old process hands over more sockets than we may have open, which is {limit} descriptors; \
         start with a higher limit (ulimit -n)"
    )
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

pub(super) fn failed(what: &str, error: &io::Error) -> String {
    format!("{what} failed: {}", reason(error))
}

fn refused(error: &[u8]) -> String {
    let line = ErrorFields::read(error).line(": ").unwrap_or_default();
    format!("old bouncer sent: {line}")
}

/// A number in decimal digits.
fn number(cell: &Option<&[u8]>) -> Option<u64> {
    std::str::from_utf8((*cell)?).ok()?.parse().ok()
}

fn unexpected(tag: u8) -> String {
    format!("unexpected pkt: '{}'", tag.escape_ascii())
}

/// A connection that was handed over, with both of its ends. The error says what is wrong with it.
pub fn stream(socket: OwnedFd) -> Result<(Stream, Origin), String> {
    set_nonblocking(&socket).map_err(|error| failed(LOOKING, &error))?;
    let stream = match is_unix(&socket)? {
        true => Stream::Unix(UnixStream::from_std(socket.into())),
        false => Stream::Tcp(TcpStream::from_std(socket.into())),
    };
    // The other side may have gone already; that is noticed when it is read.
    let (local, remote) = stream.ends().unwrap_or((Addr::Unknown, Addr::Unknown));
    let uid = stream.peer().map(|(_, uid)| uid);
    Ok((stream, Origin { remote, local, uid }))
}

/// Nobody but a faulty old process would hand over sockets that block.
pub(super) fn set_nonblocking(socket: &OwnedFd) -> io::Result<()> {
    fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// What family a socket is of; an error if it is none of ours.
pub fn is_unix(socket: &OwnedFd) -> Result<bool, String> {
    let name = getsockname::<SockaddrStorage>(socket.as_raw_fd());
    let name = name.map_err(|error| failed(LOOKING, &error.into()))?;
    match name.family() {
        Some(AddressFamily::Unix) => Ok(true),
        Some(AddressFamily::Inet | AddressFamily::Inet6) => Ok(false),
        _ => Err("old process has handed over a socket of an unknown family".into()),
    }
}

/// Tells a server that nobody will use it. It may have gone already, or be slow: that is its affair.
pub fn say_goodbye(server: &OwnedFd) {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let _ = send(server.as_raw_fd(), &write::TERMINATE, flags);
}

/// Where a listening socket listens.
pub fn local(socket: &OwnedFd) -> Addr {
    let name = getsockname::<SockaddrStorage>(socket.as_raw_fd());
    match name {
        Ok(name) => match (name.as_sockaddr_in(), name.as_sockaddr_in6()) {
            (Some(at), _) => Addr::Inet(SocketAddr::V4((*at).into())),
            (_, Some(at)) => Addr::Inet(SocketAddr::V6((*at).into())),
            _ => Addr::Unix { pid: 0 },
        },
        Err(_) => Addr::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of the last word to a process that says this and closes its end.
    fn replaced(pid: Option<i32>, says: &[u8]) -> Result<(), String> {
        let (stream, mut other) = StdUnixStream::pair().unwrap();
        other.write_all(says).unwrap();
        drop(other);
        let (bytes, descriptors) = (Vec::new(), VecDeque::new());
        Old { stream, bytes, at: 0, descriptors, pid, budget: BUDGET }.replace()
    }

    #[test]
    fn silence_counts_as_the_end_of_a_process_that_has_ended() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let (own, ended) = (std::process::id() as i32, child.id() as i32);
        let mut agreed = Vec::new();
        write::command_complete(&mut agreed, "HANDOFF");
        let mut refusal = Vec::new();
        write::error(&mut refusal, "ERROR", b"08P01", b"it did not answer in time");
        for (pid, says, want) in [
            (own, &agreed, Ok(())),
            (own, &refusal, Err("it did not answer in time")),
            (own, &Vec::new(), Err("unexpected EOF, but the old process lives")),
            (ended, &refusal, Err("it did not answer in time")),
            (ended, &Vec::new(), Ok(())),
        ] {
            let result = replaced(Some(pid), says);
            match want {
                Ok(()) => assert_eq!(result, Ok(())),
                Err(text) => assert!(result.is_err_and(|error| error.contains(text)), "{text}"),
            }
        }
        assert_eq!(replaced(None, b""), Ok(()));
    }
}
