//! Where sockets are: forms of addresses in the configuration and in log lines.

use crate::base::text;
use nix::sys::socket::UnixAddr;
use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What `sun_path` holds beside its terminator; longer paths are cut, as config 7.6 has it.
pub(super) const PATH_MAX: usize = 107;

/// Where to listen or to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// TCP.
    Inet(SocketAddr),
    /// The path of a Unix socket, or its abstract name with `@` in front.
    Unix(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Inet(addr) => write!(f, "{addr}"),
            Place::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// A `host` of the configuration (pooling 10.1) together with its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A place.
    Place(Place),
    /// A name that has to be looked up.
    Name,
}

/// Tells what form of address a host is.
pub fn host(host: &str, port: u16) -> Host {
    if host.starts_with(['/', '@']) {
        return Host::Place(Place::Unix(socket_path(host, i32::from(port))));
    }
    match host.parse::<IpAddr>() {
        Ok(ip) => Host::Place(Place::Inet(SocketAddr::new(ip, port))),
        Err(_) => Host::Name,
    }
}

/// The path of PostgreSQL's socket in a directory (or behind an abstract name).
pub fn socket_path(dir: &str, port: i32) -> String {
    format!("{dir}/.s.PGSQL.{port}")
}

/// The path of the socket to listen on: one that is too long is cut, and the file has that name
/// then (config 7.6).
pub(super) fn listening_path(dir: &str, port: i32) -> String {
    text::cut(&socket_path(dir, port), PATH_MAX).to_owned()
}

/// The system's form of a Unix socket's path.
pub(super) fn unix_addr(path: &str) -> nix::Result<UnixAddr> {
    match path.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(cut(name)),
        None => UnixAddr::new(Path::new(OsStr::from_bytes(cut(path)))),
    }
}

fn cut(path: &str) -> &[u8] {
    path.as_bytes().get(..PATH_MAX).unwrap_or(path.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_hosts() {
        for (text, want) in [
            ("/tmp", "unix:/tmp/.s.PGSQL.5432"),
            ("@name", "unix:@name/.s.PGSQL.5432"),
            ("127.0.0.1", "127.0.0.1:5432"),
            ("::1", "[::1]:5432"),
            ("localhost", ""),
            ("1.2.3", ""),
            ("::x", ""),
        ] {
            match host(text, 5432) {
                Host::Place(place) => assert_eq!(place.to_string(), want),
                Host::Name => assert_eq!("", want),
            }
        }
    }

    #[test]
    fn long_paths_are_cut() {
        let long = format!("/{}", "x".repeat(300));
        let addr = unix_addr(&long).unwrap();
        assert_eq!(addr.path().unwrap().as_os_str().len(), PATH_MAX);
        assert!(unix_addr(&format!("@{long}")).is_ok());
        assert!(unix_addr("a\0b").is_err());
    }
}
