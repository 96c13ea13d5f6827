//! Options of TCP sockets (config 7.7).

use nix::sys::socket::{setsockopt, sockopt, SetSockOpt};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// The `tcp_*` settings that every TCP socket gets when it is made; 0 leaves the system's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// `tcp_keepalive`.
    pub keepalive: bool,
    /// `tcp_keepidle`, seconds.
    pub keepidle: i32,
    /// `tcp_keepintvl`, seconds.
    pub keepintvl: i32,
    /// `tcp_keepcnt`.
    pub keepcnt: i32,
    /// `tcp_user_timeout`, milliseconds.
    pub user_timeout: i32,
    /// `tcp_socket_buffer`, bytes.
    pub buffer: i32,
}

impl Default for SocketOptions {
    fn default() -> Self {
        SocketOptions {
            keepalive: true,
            keepidle: 0,
            keepintvl: 0,
            keepcnt: 0,
            user_timeout: 0,
            buffer: 0,
        }
    }
}

impl SocketOptions {
    /// Sets all of them.
    pub fn apply(&self, fd: &impl AsFd) -> Result<(), OptionError> {
        const KEEPALIVE: &str = "socket_set_keepalive";
        set(fd, KEEPALIVE, sockopt::KeepAlive, &self.keepalive)?;
        if self.keepalive {
            set_number(fd, KEEPALIVE, sockopt::TcpKeepIdle, self.keepidle)?;
            set_number(fd, KEEPALIVE, sockopt::TcpKeepInterval, self.keepintvl)?;
            if self.keepcnt > 0 {
                set_number(fd, KEEPALIVE, sockopt::TcpKeepCount, self.keepcnt)?;
            }
        }
        let timeout = self.user_timeout;
        set_number(fd, "setsockopt/TCP_USER_TIMEOUT", sockopt::TcpUserTimeout, timeout)?;
        if self.buffer != 0 {
            let bytes = usize::try_from(self.buffer).unwrap_or(0);
            set(fd, "setsockopt/SO_SNDBUF", sockopt::SndBuf, &bytes)?;
            set(fd, "setsockopt/SO_RCVBUF", sockopt::RcvBuf, &bytes)?;
        }
        set(fd, "setsockopt/TCP_NODELAY", sockopt::TcpNoDelay, &true)
    }
}

fn set_number(
    fd: &impl AsFd,
    call: &'static str,
    option: impl SetSockOpt<Val = u32>,
    value: i32,
) -> Result<(), OptionError> {
    match value {
        0 => Ok(()),
        _ => set(fd, call, option, &(value as u32)),
    }
}

fn set<O: SetSockOpt>(
    fd: &impl AsFd,
    call: &'static str,
    option: O,
    value: &O::Val,
) -> Result<(), OptionError> {
    setsockopt(fd, option, value).map_err(|error| OptionError {
        call,
        fd: fd.as_fd().as_raw_fd(),
        error: error.into(),
    })
}

/// An option can't be set. Its text is that of the log line (config 6.7).
#[derive(Debug)]
pub struct OptionError {
    call: &'static str,
    fd: RawFd,
    /// The system's error.
    pub error: io::Error,
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OptionError { call, fd, error } = self;
        write!(f, "{call}({fd}) failed: {}", reason(error))
    }
}

/// The system's text for an error, without Rust's addition of the number.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match (error.raw_os_error(), text.rfind(" (os error ")) {
        (Some(_), Some(end)) => text.get(..end).unwrap_or(&text).to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;

    #[test]
    fn options_reach_the_socket() {
        let none = SocketOptions::default();
        let all = SocketOptions {
            keepalive: true,
            keepidle: 77,
            keepintvl: 12,
            keepcnt: 4,
            user_timeout: 5000,
            buffer: 30_000,
        };
        // Keep-alive on, idle, interval, count, user timeout; 0 is the system's value.
        for (options, on, numbers) in [
            (none, true, [0, 0, 0, 0]),
            (all, true, [77, 12, 4, 5000]),
            (SocketOptions { keepcnt: -1, ..none }, true, [0, 0, 0, 0]),
            (SocketOptions { keepalive: false, ..all }, false, [0, 0, 0, 5000]),
        ] {
            let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let read = |socket: &std::net::TcpListener| {
                [
                    getsockopt(socket, sockopt::TcpKeepIdle).unwrap(),
                    getsockopt(socket, sockopt::TcpKeepInterval).unwrap(),
                    getsockopt(socket, sockopt::TcpKeepCount).unwrap(),
                    getsockopt(socket, sockopt::TcpUserTimeout).unwrap(),
                ]
            };
            let mut want = read(&socket);
            for (want, number) in want.iter_mut().zip(numbers) {
                *want = if number == 0 { *want } else { number };
            }
            options.apply(&socket).unwrap();
            assert_eq!(getsockopt(&socket, sockopt::KeepAlive).unwrap(), on);
            assert_eq!(read(&socket), want, "{options:?}");
            assert!(getsockopt(&socket, sockopt::TcpNoDelay).unwrap());
            let buffers = [
                getsockopt(&socket, sockopt::SndBuf).unwrap(),
                getsockopt(&socket, sockopt::RcvBuf).unwrap(),
            ];
            // Linux doubles what is asked for.
            assert_eq!(buffers == [60_000; 2], options.buffer != 0, "{buffers:?}");
        }
    }

    #[test]
    fn failure_names_the_call() {
        let options = SocketOptions { keepidle: -1, ..SocketOptions::default() };
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let text = options.apply(&socket).unwrap_err().to_string();
        assert!(text.starts_with("socket_set_keepalive("), "{text}");
        assert!(text.ends_with(") failed: Invalid argument"), "{text}");
    }

    #[test]
    fn errors_read_as_strerror_has_them() {
        for (error, want) in [
            (io::Error::from_raw_os_error(2), "No such file or directory"),
            (io::Error::other("odd (os error 9)"), "odd (os error 9)"),
        ] {
            assert_eq!(reason(&error), want);
        }
    }
}
