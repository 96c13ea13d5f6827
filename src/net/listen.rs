//! Listening sockets (config 7.3, 7.6, 7.7) and what comes out of them.

use super::address::{listening_path, unix_addr, Place};
use super::handoff;
use super::listener_token;
use super::options::{reason, SocketOptions};
use super::socket_file::SocketFile;
use super::stream::Stream;
use super::sys;
use crate::base::{Journal, Level, Micros};
use crate::core::{Addr, Origin};
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry};
use nix::sys::socket::{
    self, sockopt, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage,
};
use nix::unistd::{chown, Gid, Group};
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

mod adopt;
mod drain;
mod kept;
#[cfg(test)]
mod tests;

pub use kept::Kept;

/// How long nothing is accepted after accepting has failed (pooling 5.7).
const PAUSE: Micros = Micros::from_secs(5);

/// The settings for listening.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// `listen_addr`: items separated by commas, `*` for all addresses; empty for no TCP.
    pub listen_addr: String,
    /// `listen_port`; not checked, TCP uses the lower 16 bits.
    pub port: i32,
    /// `listen_backlog`.
    pub backlog: i32,
    /// `unix_socket_dir`; `@name` for an abstract socket, empty for none.
    pub unix_dir: String,
    /// `unix_socket_mode`.
    pub unix_mode: u32,
    /// `unix_socket_group`, a name or a number; empty to leave it.
    pub unix_group: String,
    /// `so_reuseport`.
    pub reuse_port: bool,
    /// `tcp_defer_accept`.
    pub defer_accept: bool,
    /// The `tcp_*` settings.
    pub sockets: SocketOptions,
}

/// The process can't go on; the last line in the journal says why.
#[derive(Debug)]
pub struct Fatal;

enum Listener {
    /// With the address at which its connections arrive, if that is always the same one.
    Tcp(TcpListener, Option<SocketAddr>),
    Unix(UnixListener),
}

/// All listening sockets. Each keeps its number until the end.
#[derive(Default)]
pub struct Listeners {
    all: Vec<Option<Listener>>,
    socket_file: Option<SocketFile>,
    suspended: bool,
    failed_at: Option<Micros>,
    /// Since when the TCP sockets take nobody who comes anew.
    draining: Option<Micros>,
    /// Nobody else has got the TCP sockets.
    is_sole: bool,
    /// What the TCP sockets were given when they were opened: accepted ones inherit it.
    inherited: Option<SocketOptions>,
}

/// True if a live process listens on the Unix socket of this directory and port (config 7.3).
/// Abstract sockets are not tried.
pub fn unix_socket_in_use(dir: &str, port: i32) -> bool {
    !dir.is_empty() && !dir.starts_with('@') && {
        std::os::unix::net::UnixStream::connect(listening_path(dir, port)).is_ok()
    }
}

/// Where the Unix socket's file of these options is.
pub fn socket_path(options: &ListenOptions) -> PathBuf {
    listening_path(&options.unix_dir, options.port).into()
}

fn fatal<T>(journal: &mut Journal, text: String) -> Result<T, Fatal> {
    journal.line(Level::Fatal, text);
    Err(Fatal)
}

impl Listeners {
    /// Opens all of them, TCP first, and writes `listening on` lines, warnings and errors of
    /// config 1.4 into the journal.
    pub(super) fn open(
        options: &ListenOptions,
        kept: Kept,
        registry: &Registry,
        journal: &mut Journal,
    ) -> Result<Listeners, Fatal> {
        let mut listeners = Listeners::default();
        listeners.open_tcp(options, kept, journal)?;
        if !options.unix_dir.is_empty() {
            let listener = listeners.open_unix(options, journal)?;
            listeners.all.push(Some(Listener::Unix(listener)));
        }
        if listeners.all.is_empty() {
            return fatal(journal, "nowhere to listen on".to_owned());
        }
        listeners.watch(registry, journal)?;
        Ok(listeners)
    }

    /// Those of a process that is taken over, as they are.
    pub(super) fn inherit(
        sockets: Vec<OwnedFd>,
        registry: &Registry,
        journal: &mut Journal,
    ) -> Result<Listeners, Fatal> {
        let mut listeners = Listeners::default();
        for socket in sockets {
            if let Err(text) = listeners.inherit_one(socket) {
                return fatal(journal, text);
            }
        }
        listeners.watch(registry, journal)?;
        Ok(listeners)
    }

    /// Goes on listening where a predecessor did. With the file, if whoever listens removes it.
    pub(super) fn take_in(
        &mut self,
        sockets: Vec<(OwnedFd, Option<PathBuf>)>,
        is_sole: bool,
        registry: &Registry,
        journal: &mut Journal,
    ) -> Result<(), Fatal> {
        let mut listeners = Listeners { is_sole, ..Listeners::default() };
        let mut socket_file = None;
        for (socket, file) in sockets {
            if let Err(text) = listeners.inherit_one(socket) {
                return fatal(journal, text);
            }
            socket_file = file.and_then(SocketFile::at).or(socket_file);
        }
        listeners.socket_file = socket_file;
        listeners.watch(registry, journal)?;
        *self = listeners;
        Ok(())
    }

    /// The file of the Unix socket with this number, from the root, if it is removed at the end.
    pub(super) fn file_of(&self, number: u32) -> Option<PathBuf> {
        let Some(Some(Listener::Unix(unix))) = self.all.get(number as usize) else { return None };
        let at = unix.local_addr().ok()?;
        let ours = self.socket_file.as_ref()?.path();
        let bound = at.as_pathname()?.file_name();
        let is_its_own = bound == ours.file_name() || bound == Some("spare".as_ref());
        std::path::absolute(ours).ok().filter(|_| is_its_own)
    }

    /// Those that a service manager listens at. Their files are not ours to remove.
    pub(super) fn passed(
        sockets: Vec<OwnedFd>,
        options: &ListenOptions,
        registry: &Registry,
        journal: &mut Journal,
    ) -> Result<Listeners, Fatal> {
        let mut listeners = Listeners::default();
        for socket in sockets {
            let which = format!("passed from service manager (fd {})", socket.as_raw_fd());
            journal.line(Level::Log, format!("socket {which}"));
            let set_up = prepare_passed(&socket, options, journal);
            if set_up.and_then(|()| listeners.inherit_one(socket)).is_err() {
                return fatal(journal, format!("failed to set up socket {which}"));
            }
        }
        listeners.socket_file = None;
        listeners.watch(registry, journal)?;
        Ok(listeners)
    }

    fn inherit_one(&mut self, socket: OwnedFd) -> Result<(), String> {
        handoff::set_nonblocking(&socket)
            .map_err(|error| handoff::failed(handoff::LOOKING, &error))?;
        match handoff::is_unix(&socket)? {
            true => self.inherit_unix(UnixListener::from_std(socket.into())),
            false => self.inherit_tcp(TcpListener::from_std(socket.into())),
        }
        Ok(())
    }

    fn inherit_tcp(&mut self, listener: TcpListener) {
        let local = listener.local_addr().ok().filter(|local| !local.ip().is_unspecified());
        self.all.push(Some(Listener::Tcp(listener, local)));
    }

    fn inherit_unix(&mut self, listener: UnixListener) {
        let path = listener.local_addr().ok().and_then(|at| at.as_pathname().map(PathBuf::from));
        // A service manager may have passed it to the old process: then root has made its file.
        self.socket_file = path.and_then(SocketFile::at).or(self.socket_file.take());
        self.all.push(Some(Listener::Unix(listener)));
    }

    fn watch(&mut self, registry: &Registry, journal: &mut Journal) -> Result<(), Fatal> {
        for (index, listener) in self.all.iter_mut().enumerate() {
            let result = match listener {
                Some(Listener::Tcp(tcp, _)) => {
                    registry.register(tcp, listener_token(index), Interest::READABLE)
                }
                Some(Listener::Unix(unix)) => {
                    registry.register(unix, listener_token(index), Interest::READABLE)
                }
                None => Ok(()),
            };
            if let Err(error) = result {
                return fatal(
                    journal,
                    format!("cannot watch a listening socket: {}", reason(&error)),
                );
            }
        }
        Ok(())
    }

    fn open_tcp(
        &mut self,
        options: &ListenOptions,
        mut kept: Kept,
        journal: &mut Journal,
    ) -> Result<(), Fatal> {
        self.is_sole = true;
        // Those who wait at a kept one have what that was given then.
        self.inherited = kept.is_empty().then_some(options.sockets);
        for item in options.items() {
            let addrs = match addresses(item, options.port) {
                Ok(addrs) => addrs,
                Err(why) => {
                    let text = format!("getaddrinfo('{item}', '{}') = {why}", options.port);
                    return fatal(journal, text);
                }
            };
            for addr in addrs {
                match kept.listen(addr, options, journal) {
                    Ok(listener) => {
                        journal.line(Level::Log, format!("listening on {addr}"));
                        self.inherit_tcp(listener);
                    }
                    Err((step, error)) => {
                        warn_cannot_listen(journal, &Place::Inet(addr), step, &error)
                    }
                }
            }
        }
        if options.items().next().is_some() && self.all.is_empty() {
            let list = &options.listen_addr;
            let text = format!("failed to listen on any address in listen_addr list: {list}");
            return fatal(journal, text);
        }
        Ok(())
    }

    fn open_unix(
        &mut self,
        options: &ListenOptions,
        journal: &mut Journal,
    ) -> Result<UnixListener, Fatal> {
        let path = listening_path(&options.unix_dir, options.port);
        let is_file = !path.starts_with('@');
        if is_file {
            if Path::new(&format!("{path}.lock")).exists() {
                return fatal(journal, format!("unix port {} is in use", options.port));
            }
            let _ = fs::remove_file(&path);
        }
        let place = Place::Unix(path.clone());
        let (listener, file) = match listen_unix(&path, options.backlog) {
            Ok(opened) => opened,
            Err((step, error)) => {
                warn_cannot_listen(journal, &place, step, &error);
                return fatal(journal, "failed to create unix socket".to_owned());
            }
        };
        if is_file {
            self.socket_file = file;
            if let Err(text) = set_owner_and_mode(&path, options) {
                self.remove_socket_file();
                return fatal(journal, text);
            }
        }
        journal.line(Level::Log, format!("listening on {place}"));
        Ok(UnixListener::from_std(listener.into()))
    }

    /// The next connection that waits at a listening socket, with its options set. `None` if there
    /// is none, if accepting is suspended, or if it failed: then it pauses.
    pub(super) fn accept(
        &mut self,
        index: usize,
        options: &SocketOptions,
        now: Micros,
        journal: &mut Journal,
    ) -> Option<(Stream, Origin)> {
        if self.suspended || self.failed_at.is_some() {
            return None;
        }
        let listener = self.all.get(index)?.as_ref()?;
        let options = (self.inherited != Some(*options)).then_some(options);
        loop {
            let accepted = match listener {
                Listener::Tcp(tcp, local) => tcp.accept().map(|(tcp, remote)| {
                    if self.draining.is_some() {
                        // If that fails the client hears nothing, as if the network had failed.
                        let _ = drain::hear(&tcp, Ok(remote), true);
                    }
                    welcome_tcp(tcp, *local, remote, options)
                }),
                Listener::Unix(unix) => unix.accept().map(|(unix, _)| Ok(welcome_unix(unix))),
            };
            match accepted {
                Ok(Ok(found)) => return Some(found),
                Ok(Err(text)) => journal.line(Level::Warning, text),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return None,
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                    _ => {
                        let text = format!("accept() failed: {}", reason(&error));
                        journal.line(Level::Error, text);
                        self.failed_at = Some(now);
                        return None;
                    }
                },
            }
        }
    }

    /// Ends the pause after a failure when its time has come; true if sockets must be tried again.
    pub(super) fn tick(&mut self, now: Micros) -> bool {
        match self.failed_at {
            Some(at) if now.since(at) >= PAUSE => {
                self.failed_at = None;
                true
            }
            _ => false,
        }
    }

    /// Stops accepting, or goes on; in the second case sockets must be tried again.
    pub(super) fn suspend(&mut self, suspended: bool) {
        self.suspended = suspended;
    }

    /// Closes the TCP sockets; Unix sockets stay.
    pub(super) fn close_tcp(&mut self) {
        self.draining = None;
        for listener in &mut self.all {
            listener.take_if(|listener| matches!(listener, Listener::Tcp(..)));
        }
    }

    /// Numbers of the open sockets.
    pub fn open_ones(&self) -> Vec<usize> {
        let open = self.all.iter().enumerate().filter(|(_, l)| l.is_some());
        open.map(|(index, _)| index).collect()
    }

    /// Where the TCP sockets are bound, in the order of the list.
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        let tcp = self.all.iter().filter_map(|listener| match listener {
            Some(Listener::Tcp(tcp, _)) => tcp.local_addr().ok(),
            _ => None,
        });
        tcp.collect()
    }

    /// The open sockets: number, where they listen, descriptor.
    pub(super) fn open_sockets(&self) -> impl Iterator<Item = (u32, Addr, BorrowedFd<'_>)> {
        (0..).zip(&self.all).filter_map(|(number, listener)| {
            let addr = match listener.as_ref()? {
                Listener::Tcp(tcp, _) => tcp.local_addr().map_or(Addr::Unknown, Addr::Inet),
                Listener::Unix(_) => Addr::Unix { pid: 0 },
            };
            Some((number, addr, self.descriptor(number)?))
        })
    }

    /// The descriptor of the socket with this number, if it is open.
    pub(super) fn descriptor(&self, number: u32) -> Option<BorrowedFd<'_>> {
        Some(match self.all.get(number as usize)?.as_ref()? {
            Listener::Tcp(tcp, _) => tcp.as_fd(),
            Listener::Unix(unix) => unix.as_fd(),
        })
    }

    /// Switches `tcp_defer_accept` of the open sockets.
    pub(super) fn set_defer_accept(&self, on: bool, journal: &mut Journal) {
        for listener in self.all.iter().flatten() {
            if let Listener::Tcp(tcp, _) = listener {
                defer_accept(tcp, on, journal);
            }
        }
    }

    /// Unlinks the Unix socket, as a process does when it ends (except while suspended).
    pub fn remove_socket_file(&mut self) {
        if let Some(file) = self.socket_file.take() {
            file.remove();
        }
    }

    /// The file at this path is that of our Unix socket, whatever name that was bound to.
    pub fn claim_socket_file(&mut self, path: PathBuf) {
        self.socket_file = SocketFile::at(path).or(self.socket_file.take());
    }
}

/// The call that has failed, and how.
pub(super) type Step = (&'static str, io::Error);

fn at<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> Step {
    move |error| (step, error.into())
}

fn warn_cannot_listen(journal: &mut Journal, place: &Place, step: &str, error: &io::Error) {
    let why = reason(error);
    let text = format!("cannot listen on {place}: {step}(): {why}");
    journal.line(Level::Warning, text);
}

/// What an item of the list stands for. The port is cut to 16 bits as `getaddrinfo` does it; the
/// error is its text.
fn addresses(item: &str, port: i32) -> Result<Vec<SocketAddr>, String> {
    if port < 0 {
        return Err("Servname not supported for ai_socktype [-8]".to_owned());
    }
    let port = port as u16;
    if item == "*" {
        return Ok(vec![
            (Ipv4Addr::UNSPECIFIED, port).into(),
            (Ipv6Addr::UNSPECIFIED, port).into(),
        ]);
    }
    let found = (item, port).to_socket_addrs().map_err(|error| getaddrinfo_reason(&error))?;
    Ok(found.collect())
}

/// The text of a failed look-up with its number, as in `Name or service not known [-2]`.
fn getaddrinfo_reason(error: &io::Error) -> String {
    let text = reason(error);
    let text = text.rsplit_once(": ").map_or(&*text, |(_, text)| text);
    let code = match text {
        "Name or service not known" => -2,
        "Temporary failure in name resolution" => -3,
        "Non-recoverable failure in name resolution" => -4,
        "No address associated with hostname" => -5,
        _ => -11,
    };
    format!("{text} [{code}]")
}

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// What `nix` finds too large or negative becomes as much as the system allows.
fn backlog(count: i32) -> Backlog {
    Backlog::new(count).unwrap_or(Backlog::MAXALLOWABLE)
}

type Opened = Result<TcpListener, Step>;

fn listen_tcp(addr: SocketAddr, options: &ListenOptions, journal: &mut Journal) -> Opened {
    let family = match addr {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket::socket(family, SockType::Stream, FLAGS, None).map_err(at("socket"))?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(at("setsockopt"))?;
    if addr.is_ipv6() {
        socket::setsockopt(&fd, sockopt::Ipv6V6Only, &true)
            .map_err(at("setsockopt/IPV6_V6ONLY"))?;
    }
    if options.reuse_port {
        socket::setsockopt(&fd, sockopt::ReusePort, &true)
            .map_err(at("setsockopt/SO_REUSEPORT"))?;
    }
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(addr)).map_err(at("bind"))?;
    listen_with(fd, options, journal)
}

/// Listens at a socket that is bound.
fn listen_with(fd: OwnedFd, with: &ListenOptions, journal: &mut Journal) -> Opened {
    with.sockets.apply(&fd).map_err(|failure| {
        journal.line(Level::Warning, failure.to_string());
        ("tune_socket", failure.error)
    })?;
    socket::listen(&fd, backlog(with.backlog)).map_err(at("listen"))?;
    defer_accept(&fd, with.defer_accept, journal);
    Ok(TcpListener::from_std(fd.into()))
}

/// Sets the options of a socket that somebody else has opened. The error says nothing more: it is no
/// listening stream socket, or the journal has a line.
fn prepare_passed(
    socket: &OwnedFd,
    options: &ListenOptions,
    journal: &mut Journal,
) -> Result<(), String> {
    if socket::getsockopt(socket, sockopt::SockType) != Ok(SockType::Stream)
        || socket::getsockopt(socket, sockopt::AcceptConn) != Ok(true)
    {
        return Err(String::new());
    }
    if !handoff::is_unix(socket)? {
        if let Err(failure) = options.sockets.apply(socket) {
            journal.line(Level::Warning, failure.to_string());
            return Err(String::new());
        }
        defer_accept(socket, options.defer_accept, journal);
    }
    Ok(())
}

fn defer_accept(fd: &impl AsFd, on: bool, journal: &mut Journal) {
    if let Err(error) = sys::set_defer_accept(fd, on) {
        let what = if on { "install" } else { "uninstall" };
        let why = reason(&error);
        let text = format!("tune_accept: {what} TCP_DEFER_ACCEPT: {why}");
        journal.line(Level::Warning, text);
    }
}

/// A socket that listens, and its file if it has one.
pub(super) fn listen_unix(path: &str, count: i32) -> Result<(OwnedFd, Option<SocketFile>), Step> {
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, FLAGS, None);
    let fd: OwnedFd = fd.map_err(at("socket"))?;
    let addr = unix_addr(path).map_err(at("bind"))?;
    socket::bind(fd.as_raw_fd(), &addr).map_err(at("bind"))?;
    let file = addr.path().and_then(|path| SocketFile::at(path.to_path_buf()));
    socket::listen(&fd, backlog(count)).map_err(at("listen"))?;
    Ok((fd, file))
}

pub(super) fn set_owner_and_mode(path: &str, options: &ListenOptions) -> Result<(), String> {
    if !options.unix_group.is_empty() {
        let group = &options.unix_group;
        let Some(gid) = group_id(group) else {
            return Err(format!("could not find group '{group}': Success"));
        };
        if let Err(error) = chown(path, None, Some(gid)) {
            let why = reason(&error.into());
            return Err(format!("chown({path}, {}, {gid}) failed: {why}", u32::MAX));
        }
    }
    let mode = options.unix_mode;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(|error| {
        let why = reason(&error);
        format!("failure to chmod({path}, 0{mode:o}): {why}")
    })
}

fn group_id(group: &str) -> Option<Gid> {
    if let Ok(number) = group.parse::<u32>() {
        return Some(Gid::from_raw(number));
    }
    Group::from_name(group).ok()?.map(|found| found.gid)
}

/// An accepted TCP socket, with its options set where it has not inherited them. The error is a log
/// line; the connection is dropped.
fn welcome_tcp(
    tcp: TcpStream,
    local: Option<SocketAddr>,
    remote: SocketAddr,
    options: Option<&SocketOptions>,
) -> Result<(Stream, Origin), String> {
    if let Some(options) = options {
        options.apply(&tcp).map_err(|failure| failure.to_string())?;
    }
    let local = local.or_else(|| tcp.local_addr().ok()).map_or(Addr::Unknown, Addr::Inet);
    Ok((Stream::Tcp(tcp), Origin { remote: Addr::Inet(remote), local, uid: None }))
}

/// An accepted Unix socket, and who is at the other end.
pub(super) fn welcome_unix(unix: UnixStream) -> (Stream, Origin) {
    let stream = Stream::Unix(unix);
    let (pid, uid) = stream.peer().map_or((0, None), |(pid, uid)| (pid, Some(uid)));
    let origin = Origin { remote: Addr::Unix { pid }, local: Addr::Unix { pid: 0 }, uid };
    (stream, origin)
}
