//! The unsafe lines: socket options that `nix` lacks, the allocator's own calls.
#![allow(unsafe_code)]

use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Switches TCP_DEFER_ACCEPT of a listening socket on (with the value 1, pooling 5.7) or off.
pub(super) fn set_defer_accept(fd: &impl AsFd, on: bool) -> io::Result<()> {
    let value = libc::c_int::from(on);
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel reads exactly the
    // bytes of `value`.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            std::ptr::from_ref(&value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives memory that nobody uses back to the system; glibc keeps what lies below something in use.
pub(super) fn trim_heap() {
    // SAFETY: no pointer goes in or out; memory in use is not touched.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
