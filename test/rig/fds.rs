//! The console of the pooler's own user, and the descriptors that it is given.

use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::sys::socket::{self, ControlMessageOwned, MsgFlags};
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType};

use super::pooler::Pooler;
use super::raw::Stream;
use super::scratch::{command, unprivileged};
use super::wire::{query, startup, Msg};
use super::DEADLINE;

/// Connects the Unix socket that is its standard input.
const CONNECT: &str =
    r#"use Socket; open(S, "+<&=0") && connect(S, pack_sockaddr_un($ARGV[0])) or die "$!""#;

/// Connects as the user that poolers run as. The kernel tells them who has called `connect`, so
/// somebody else has to do that on behalf of root.
fn connect(path: &Path) -> UnixStream {
    if unprivileged().is_none() {
        return UnixStream::connect(path).unwrap();
    }
    let (family, kind) = (AddressFamily::Unix, SockType::Stream);
    let socket = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let mut perl = command("perl");
    perl.arg("-e").arg(CONNECT).arg(path).stdin(Stdio::from(socket.try_clone().unwrap()));
    assert!(perl.status().unwrap().success(), "perl can't connect to {}", path.display());
    UnixStream::from(socket)
}

/// The next datagram, with the descriptors that came with it.
#[expect(unsafe_code, reason = "what has been received is nobody else's")]
pub(crate) fn datagram(socket: &UnixDatagram) -> std::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = [0; 2048];
    let mut space = cmsg_space!([RawFd; 8]);
    let mut room = [IoSliceMut::new(&mut bytes)];
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_CMSG_CLOEXEC);
    let message = socket::recvmsg::<()>(fd, &mut room, Some(&mut space), flags)?;
    let mut passed = Vec::new();
    for control in message.cmsgs().unwrap() {
        let ControlMessageOwned::ScmRights(fds) = control else { panic!("{control:?}") };
        // SAFETY: the kernel has just made them for us.
        passed.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    let count = message.bytes;
    Ok((bytes[..count].to_vec(), passed))
}

/// What one receive brought.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) msgs: Vec<Msg>,
    pub(crate) passed: Option<Passed>,
}

/// A console over a Unix socket that receives as a successor does: 2048 bytes at a time, nothing but
/// whole messages.
pub(crate) struct Taker(UnixStream);

impl Taker {
    /// Logged in as the process's own user, who needs no password.
    pub(crate) fn own_user(pooler: &Pooler) -> Self {
        Self::own_user_at(&socket_of(pooler))
    }

    /// The same at this socket.
    pub(crate) fn own_user_at(socket: &Path) -> Self {
        Self::login(connect(socket), "pgbouncer")
    }

    /// Logged in as a trusted user, with the uid of the test.
    pub(crate) fn trusted(pooler: &Pooler, user: &str) -> Self {
        Self::login(UnixStream::connect(socket_of(pooler)).unwrap(), user)
    }

    fn login(stream: UnixStream, user: &str) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut taker = Taker(stream);
        taker.0.write_all(&startup(0, &[("database", "pgbouncer"), ("user", user)])).unwrap();
        let welcome = taker.answer();
        let Some(last) = welcome.last().and_then(|received| received.msgs.last()) else { panic!() };
        assert_eq!(last.tag, b'Z', "{welcome:?}");
        taker
    }

    /// Sends a command; its answer can be left where it is.
    pub(crate) fn ask(&mut self, sql: &str) {
        self.0.write_all(&query(sql)).unwrap();
    }

    /// Receives so many bytes and forgets them.
    pub(crate) fn skip(&mut self, count: usize) {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
    }

    /// All that comes until the other side closes.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Receives once.
    pub(crate) fn receive(&mut self) -> Received {
        let mut bytes = [0; 2048];
        let mut space = cmsg_space!([RawFd; 8]);
        let mut room = [IoSliceMut::new(&mut bytes)];
        let fd = self.0.as_raw_fd();
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = socket::recvmsg::<()>(fd, &mut room, Some(&mut space), flags).unwrap();
        let mut passed = Vec::new();
        for control in message.cmsgs().unwrap() {
            let ControlMessageOwned::ScmRights(fds) = control else { panic!("{control:?}") };
            passed.extend(fds.into_iter().map(Passed));
        }
        assert!(passed.len() < 2, "several descriptors at once");
        let count = message.bytes;
        Received { msgs: messages(&bytes[..count]), passed: passed.pop() }
    }

    /// Receives up to and with ReadyForQuery.
    pub(crate) fn answer(&mut self) -> Vec<Received> {
        let mut all = Vec::new();
        loop {
            let received = self.receive();
            assert!(!received.msgs.is_empty(), "closed after {all:?}");
            let is_last = received.msgs.iter().any(|msg| msg.tag == b'Z');
            all.push(received);
            if is_last {
                return all;
            }
        }
    }

    /// A command and its answer.
    pub(crate) fn query(&mut self, sql: &str) -> Vec<Received> {
        self.ask(sql);
        self.answer()
    }

    /// SHOW FDS: one row per receive, in order.
    pub(crate) fn show_fds(&mut self) -> Vec<Row> {
        let all = self.query("SHOW FDS");
        let rows = all.into_iter().filter_map(|received| {
            let row = received.msgs.iter().find(|msg| msg.tag == b'D')?.cells();
            Some(Row { cells: row, passed: received.passed })
        });
        rows.collect()
    }
}

fn socket_of(pooler: &Pooler) -> std::path::PathBuf {
    pooler.folder.join(format!(".s.PGSQL.{}", pooler.port))
}

/// Panics if there is anything but whole messages.
fn messages(mut bytes: &[u8]) -> Vec<Msg> {
    let mut all = Vec::new();
    while let [tag, a, b, c, d, rest @ ..] = bytes {
        let len = u32::from_be_bytes([*a, *b, *c, *d]) as usize - 4;
        let (body, behind) = rest.split_at(len);
        all.push(Msg { tag: *tag, body: body.to_vec() });
        bytes = behind;
    }
    assert!(bytes.is_empty(), "a part of a message is left");
    all
}

/// A row of SHOW FDS.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) cells: Vec<Option<String>>,
    pub(crate) passed: Option<Passed>,
}

impl Row {
    /// One of the cells, counted from 1 as in the specification.
    pub(crate) fn cell(&self, number: usize) -> &str {
        self.cells[number - 1].as_deref().unwrap_or("NULL")
    }

    /// The descriptor.
    pub(crate) fn take(&mut self) -> Passed {
        self.passed.take().unwrap_or_else(|| panic!("no descriptor: {self:?}"))
    }
}

/// A descriptor that was passed to us; non-blocking, so reads wait here.
#[derive(Debug)]
pub(crate) struct Passed(pub(crate) RawFd);

impl Passed {
    /// The next connection at a listening socket.
    pub(crate) fn accept(&self) -> Passed {
        Passed(wait(|| Ok(socket::accept(self.0)?)).unwrap())
    }
}

fn wait<T>(mut attempt: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    let end = Instant::now() + DEADLINE;
    loop {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(2));
            }
            other => return other,
        }
    }
}

impl Read for Passed {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        wait(|| Ok(socket::recv(self.0, into, MsgFlags::empty())?))
    }
}

impl Write for Passed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        wait(|| Ok(socket::send(self.0, bytes, MsgFlags::MSG_NOSIGNAL)?))
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Stream for Passed {
    fn end_output(&self) {
        socket::shutdown(self.0, Shutdown::Write).unwrap();
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        let _ = nix::unistd::close(self.0);
    }
}
