//! The unsafe lines: socket options that `nix` lacks, fork, the allocator's own call, and a question
//! to OpenSSL that its crate lacks.
#![allow(unsafe_code)]

use foreign_types::ForeignTypeRef;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{fork, ForkResult};
use openssl::nid::Nid;
use openssl::ssl::SslRef;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Forks. Only the child returns; the parent ends with exit code 0, without running destructors.
/// Fails with EBUSY if the process has more than one thread.
pub fn go_on_in_child() -> nix::Result<()> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(Errno::EBUSY);
    }
    // SAFETY: there is no other thread that could hold a lock at this moment, so that everything
    // works in the child as it did in the parent.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => std::process::exit(0),
        ForkResult::Child => Ok(()),
    }
}

/// Switches TCP_DEFER_ACCEPT of a listening socket on (with the value 1, pooling 5.7) or off.
pub(super) fn set_defer_accept(fd: &impl AsFd, on: bool) -> io::Result<()> {
    set_tcp(fd, libc::TCP_DEFER_ACCEPT, on)
}

/// Has what was received acknowledged at once: a client that waits for that before it sends its
/// next few bytes (Nagle's algorithm) would otherwise lose 40 ms.
pub(super) fn acknowledge(fd: &impl AsFd) -> io::Result<()> {
    set_tcp(fd, libc::TCP_QUICKACK, true)
}

fn set_tcp(fd: &impl AsFd, option: libc::c_int, on: bool) -> io::Result<()> {
    let value = libc::c_int::from(on);
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel reads exactly the
    // bytes of `value`.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first of the groups for the key exchange that both sides of a session know: the one that is
/// used when we accept.
pub(super) fn shared_group(ssl: &SslRef) -> Option<Nid> {
    /// SSL_CTRL_GET_SHARED_GROUP of OpenSSL's ssl.h, what SSL_get_shared_group() asks for.
    const GET_SHARED_GROUP: libc::c_int = 93;
    // SAFETY: the session lives as long as it is borrowed; this question changes nothing in it and
    // reads nothing through the null pointer.
    let nid =
        unsafe { openssl_sys::SSL_ctrl(ssl.as_ptr(), GET_SHARED_GROUP, 0, std::ptr::null_mut()) };
    i32::try_from(nid).ok().filter(|nid| *nid > 0).map(Nid::from_raw)
}

/// Gives memory that nobody uses back to the system; glibc keeps what lies below something in use.
pub(super) fn trim_heap() {
    // SAFETY: no pointer goes in or out; memory in use is not touched.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deferred(fd: &impl AsFd) -> libc::c_int {
        let mut value = -1;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the descriptor is open, and the kernel writes at most `len` bytes to `value`.
        let result = unsafe {
            libc::getsockopt(
                fd.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_DEFER_ACCEPT,
                std::ptr::from_mut(&mut value).cast(),
                &raw mut len,
            )
        };
        assert_eq!(result, 0);
        value
    }

    #[test]
    fn accepting_can_be_deferred_and_not() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(deferred(&socket), 0);
        for (on, want) in [(true, 1), (false, 0)] {
            set_defer_accept(&socket, on).unwrap();
            assert_eq!(deferred(&socket), want);
        }
    }

    #[test]
    fn process_with_threads_is_not_forked() {
        let (ended, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv().is_err());
        assert_eq!(go_on_in_child(), Err(Errno::EBUSY));
        drop(ended);
        assert!(other.join().unwrap());
    }
}
