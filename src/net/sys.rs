//! The unsafe lines: socket options that `nix` lacks, received descriptors, fork, the allocator's own
//! call, what the crate of OpenSSL lacks, and OpenLDAP's client library.
#![allow(unsafe_code)]

use foreign_types::ForeignTypeRef;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{recvmsg, ControlMessageOwned, MsgFlags, UnixCredentials};
use nix::unistd::{fork, ForkResult};
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::ssl::{SslContextBuilder, SslRef};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;

/// More descriptors than this never come at once: one message carries at most 253.
const DESCRIPTORS: usize = 253;

/// Forks. Only the child returns; the parent ends without running destructors, with exit code 0, or
/// if it awaits something at the end of a pipe, when that has come; with 1 if it never will. It has
/// no use for `other`, the pipe's other end. Fails with EBUSY if the process has several threads.
pub fn go_on_in_child(awaited: Option<OwnedFd>, other: Option<&OwnedFd>) -> nix::Result<()> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(Errno::EBUSY);
    }
    // SAFETY: there is no other thread that could hold a lock at this moment, so that everything
    // works in the child as it did in the parent.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => {
            if let Some(other) = other {
                let _ = nix::unistd::close(other.as_raw_fd());
            }
            let mut byte = [0];
            let came = awaited.is_none_or(|pipe| File::from(pipe).read_exact(&mut byte).is_ok());
            std::process::exit(i32::from(!came))
        }
        ForkResult::Child => Ok(()),
    }
}

/// Descriptors that the parent process has left to us as sd_listen_fds(3) tells: this many from 3 on, as
/// far as they are open. They are closed when a program is executed. Nothing the second time.
pub fn passed_descriptors(count: u64) -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if count == 0 || TAKEN.swap(true, Ordering::Relaxed) {
        return vec![];
    }
    let end = RawFd::try_from(count.saturating_add(3)).unwrap_or(RawFd::MAX);
    // SAFETY: only numbers are passed.
    let is_open = |fd: &RawFd| unsafe { libc::fcntl(*fd, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    // SAFETY: they are open, the caller says that they were meant for us, and as this happens once
    // only, nobody else has got them from here.
    (3..end).take_while(is_open).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

/// What one receive has brought.
pub(super) struct Received {
    /// So many bytes; 0 are the end of the stream.
    pub(super) count: usize,
    /// Descriptors that came with them. They are closed when a program is executed.
    pub(super) descriptors: Vec<OwnedFd>,
    /// The process that has sent them, where the socket has SO_PASSCRED; `None` also if it is in
    /// another world of process ids.
    pub(super) sender: Option<i32>,
}

/// Receives bytes and what comes with them. ENOBUFS if not all descriptors could be received.
pub(super) fn receive_with_descriptors(
    stream: &UnixStream,
    bytes: &mut [u8],
) -> io::Result<Received> {
    let mut space = cmsg_space!([RawFd; DESCRIPTORS], UnixCredentials);
    let mut room = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let got = recvmsg::<()>(stream.as_raw_fd(), &mut room, Some(&mut space), flags)?;
    let mut received = Received { count: got.bytes, descriptors: vec![], sender: None };
    for part in got.cmsgs()? {
        match part {
            ControlMessageOwned::ScmRights(raw) => {
                let raw = raw.into_iter();
                // SAFETY: the kernel has just made these descriptors for us, and nobody else knows
                // them.
                received.descriptors.extend(raw.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
            ControlMessageOwned::ScmCredentials(who) => {
                received.sender = Some(who.pid()).filter(|pid| *pid > 0);
            }
            _ => {}
        }
    }
    Ok(received)
}

/// A descriptor that becomes readable when this process ends.
pub fn open_process(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: only numbers are passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// True if the process of this descriptor from [`open_process`] has ended.
pub fn has_ended(process: &OwnedFd) -> bool {
    let mut ask = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: there is one entry, which is written to, and the descriptor is open.
    unsafe { libc::poll(&mut ask, 1, 0) == 1 }
}

/// Has a TCP socket ignore packets that have come over a router, and those of the usual senders, who
/// give them fewer hops than 255 to begin with: so a listening one takes nobody who comes anew, as
/// if the network had lost the packet. Handshakes that have begun come to their end; the sockets
/// that they lead to are as deaf as the listening one, until this is switched off for them.
pub(super) fn ignore_packets(fd: &impl AsFd, is_v6: bool, on: bool) -> io::Result<()> {
    let least: libc::c_int = if on { 255 } else { 0 };
    match is_v6 {
        true => set(fd, libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT, &least),
        false => set(fd, libc::IPPROTO_IP, libc::IP_MINTTL, &least),
    }
}

/// From Linux's in6.h.
const IPV6_MINHOPCOUNT: libc::c_int = 73;

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
    set(fd, libc::IPPROTO_TCP, option, &libc::c_int::from(on))
}

/// `T` is what the option's documentation says; what it points to is read before this returns.
fn set<T>(fd: &impl AsFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel reads exactly the
    // bytes of `value`.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of_val(value) as libc::socklen_t,
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

/// Puts the authorities that stand between our certificate and the root together once, from those
/// that are trusted, unless the file of the certificate has some. OpenSSL would do so in each
/// handshake, and check all their signatures. What can't be put together is left to it.
pub(super) fn build_chain(context: &mut SslContextBuilder) {
    /// SSL_CTRL_BUILD_CERT_CHAIN of OpenSSL's ssl.h, SSL_CTX_build_cert_chain().
    const BUILD: libc::c_int = 105;
    /// SSL_CTRL_GET_CHAIN_CERTS, SSL_CTX_get0_chain_certs().
    const GET: libc::c_int = 115;
    /// SSL_BUILD_CHAIN_FLAG_IGNORE_ERROR and SSL_BUILD_CHAIN_FLAG_CLEAR_ERROR: as in a handshake.
    const FLAGS: libc::c_long = 0x8 | 0x10;
    let mut chain: *mut libc::c_void = std::ptr::null_mut();
    // SAFETY: the context lives as long as it is borrowed. The first call writes a pointer, which
    // is compared only, to `chain`; the second reads nothing through its null pointer.
    unsafe {
        openssl_sys::SSL_CTX_ctrl(context.as_ptr(), GET, 0, (&raw mut chain).cast());
        if chain.is_null() {
            openssl_sys::SSL_CTX_ctrl(context.as_ptr(), BUILD, FLAGS, std::ptr::null_mut());
        }
    }
    drop(ErrorStack::get());
}

/// OpenLDAP's client library by the names of its releases, 2.5's first. 2.4 has a variety for
/// programs with threads; what it calls libldap-2.4 is not safe for them.
const LDAP_NAMES: [&CStr; 3] = [c"libldap-2.5.so.0", c"libldap.so.2", c"libldap_r-2.4.so.2"];

/// OpenLDAP's client library, which is loaded when the first user asks for it: with all that it
/// brings it takes more memory than the rest of a pooler.
pub(super) struct LdapLibrary {
    call: ldap::Functions,
}

impl LdapLibrary {
    /// Loads the library unless that was done; never in the loop, as it reads files. What has
    /// failed is tried anew: the library may have been installed. Errors say what to do.
    pub(super) fn get() -> Result<&'static LdapLibrary, String> {
        static LOADED: OnceLock<LdapLibrary> = OnceLock::new();
        match LOADED.get() {
            Some(library) => Ok(library),
            None => LdapLibrary::load(&LDAP_NAMES).map(|library| LOADED.get_or_init(|| library)),
        }
    }

    /// The first of these that there is.
    fn load(names: &[&CStr]) -> Result<LdapLibrary, String> {
        let mut reasons = Vec::new();
        for name in names {
            // SAFETY: the name ends with a zero. The library is trusted with what it does when it
            // is loaded, as one that is linked is. It is never unloaded.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            let functions = NonNull::new(handle).and_then(ldap::Functions::of);
            match functions {
                Some(call) => return Ok(LdapLibrary { call }),
                None => reasons.push(loader_text()),
            }
        }
        let reasons = reasons.join("; ");
        Err(format!("LDAP needs OpenLDAP's client library, please install libldap ({reasons})"))
    }

    /// Prepares connections to the first of these URIs (separated by spaces) that can be reached.
    pub(super) fn prepare(&'static self, uris: &CStr) -> Result<Ldap, String> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the text ends with a zero; the handle is written to a pointer of ours.
        self.check(unsafe { (self.call.ldap_initialize)(&mut handle, uris.as_ptr()) })?;
        let handle = NonNull::new(handle).ok_or_else(|| self.text(ldap::NO_MEMORY))?;
        Ok(Ldap { library: self, handle })
    }

    /// The hosts, with ports and separated by spaces, that a domain's SRV records name.
    pub(super) fn hosts(&self, domain: &CStr) -> Option<String> {
        let mut list = std::ptr::null_mut();
        // SAFETY: the text ends with a zero; the list is written to a pointer of ours.
        let code = unsafe { (self.call.ldap_domain2hostlist)(domain.as_ptr(), &mut list) };
        if code != 0 || list.is_null() {
            return None;
        }
        // SAFETY: the list ends with a zero; it is copied, then freed as the library wants it.
        let text = unsafe {
            let text = CStr::from_ptr(list).to_string_lossy().into_owned();
            (self.call.ldap_memfree)(list.cast());
            text
        };
        Some(text).filter(|text| !text.is_empty())
    }

    /// What the library says of a failure.
    fn text(&self, code: libc::c_int) -> String {
        // SAFETY: the text is static; any number has one.
        let text = unsafe { (self.call.ldap_err2string)(code) };
        if text.is_null() {
            return format!("error {code}");
        }
        // SAFETY: it ends with a zero and is never freed.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    fn check(&self, code: libc::c_int) -> Result<(), String> {
        match code {
            0 => Ok(()),
            code => Err(self.text(code)),
        }
    }
}

/// Why the last thing that this thread wanted of the dynamic loader has failed.
fn loader_text() -> String {
    // SAFETY: the text belongs to this thread and stays until its next question to the loader.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: as above; it ends with a zero and is copied.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A connection to an LDAP server by OpenLDAP's client library, whose handles may be used in any
/// thread, by one at a time. Everything blocks; errors are the library's words.
pub(super) struct Ldap {
    library: &'static LdapLibrary,
    handle: NonNull<libc::c_void>,
}

impl Ldap {
    /// LDAPv3.
    pub(super) fn set_version(&self) -> Result<(), String> {
        let version: libc::c_int = 3;
        self.set_option(ldap::OPT_PROTOCOL_VERSION, &version)
    }

    /// How long connecting, and then an answer, may take.
    pub(super) fn set_timeouts(&self, connect: i32, answer: i32) -> Result<(), String> {
        let secs = |secs: i32| libc::timeval { tv_sec: secs.into(), tv_usec: 0 };
        self.set_option(ldap::OPT_NETWORK_TIMEOUT, &secs(connect))?;
        self.set_option(ldap::OPT_TIMEOUT, &secs(answer))
    }

    /// `T` is what the option's documentation says.
    fn set_option<T>(&self, option: libc::c_int, value: &T) -> Result<(), String> {
        let value = std::ptr::from_ref(value).cast();
        // SAFETY: the handle is alive; the value is copied from a reference of the option's type.
        self.library.check(unsafe {
            (self.library.call.ldap_set_option)(self.handle.as_ptr(), option, value)
        })
    }

    /// StartTLS; certificates are checked as ldap.conf says.
    pub(super) fn start_tls(&self) -> Result<(), String> {
        let none = std::ptr::null_mut;
        // SAFETY: the handle is alive; there are no controls.
        self.library.check(unsafe {
            (self.library.call.ldap_start_tls_s)(self.handle.as_ptr(), none(), none())
        })
    }

    /// A simple bind.
    pub(super) fn bind(&self, dn: &CStr, password: &[u8]) -> Result<(), String> {
        let password = ldap::BerVal {
            len: password.len() as libc::c_ulong,
            value: password.as_ptr().cast_mut().cast(),
        };
        let none = std::ptr::null_mut;
        // SAFETY: the handle is alive, the DN ends with a zero, the password's bytes outlive the
        // call and are not written to; there are no controls, and no answer of the server is asked
        // for.
        self.library.check(unsafe {
            (self.library.call.ldap_sasl_bind_s)(
                self.handle.as_ptr(),
                dn.as_ptr(),
                std::ptr::null(),
                &password,
                none(),
                none(),
                none(),
            )
        })
    }

    /// The DNs that a search finds.
    pub(super) fn search(
        &self,
        base: &CStr,
        scope: libc::c_int,
        filter: &CStr,
    ) -> Result<Vec<CString>, String> {
        let attributes = [c"1.1".as_ptr(), std::ptr::null()];
        let mut found = std::ptr::null_mut();
        let none = std::ptr::null_mut;
        let handle = self.handle.as_ptr();
        // SAFETY: the handle is alive, texts end with a zero, the list of attributes with a null
        // pointer; all outlive the call. The result is written to a pointer of ours.
        let code = unsafe {
            (self.library.call.ldap_search_ext_s)(
                handle,
                base.as_ptr(),
                scope,
                filter.as_ptr(),
                attributes.as_ptr(),
                0,
                none(),
                none(),
                std::ptr::null_mut(),
                0,
                &mut found,
            )
        };
        let mut names = Vec::new();
        // SAFETY: entries belong to the result, which is freed once, at the end, also if it came
        // with an error; each DN is copied, then freed as the library wants it.
        unsafe {
            let mut entry = match found.is_null() {
                true => none(),
                false => (self.library.call.ldap_first_entry)(handle, found),
            };
            while !entry.is_null() {
                let name = (self.library.call.ldap_get_dn)(handle, entry);
                if !name.is_null() {
                    names.push(CStr::from_ptr(name).to_owned());
                    (self.library.call.ldap_memfree)(name.cast());
                }
                entry = (self.library.call.ldap_next_entry)(handle, entry);
            }
            (self.library.call.ldap_msgfree)(found);
        }
        self.library.check(code).map(|()| names)
    }
}

impl Drop for Ldap {
    fn drop(&mut self) {
        let none = std::ptr::null_mut;
        // SAFETY: the handle is alive and not used again.
        unsafe { (self.library.call.ldap_unbind_ext_s)(self.handle.as_ptr(), none(), none()) };
    }
}

/// OpenLDAP's client library, as its manual pages declare it.
mod ldap {
    use nix::libc::{c_char, c_int, c_ulong, c_void, dlsym, timeval};
    use std::ffi::CStr;
    use std::mem::transmute;
    use std::ptr::NonNull;

    pub(super) const OPT_PROTOCOL_VERSION: c_int = 0x11;
    pub(super) const OPT_TIMEOUT: c_int = 0x5002;
    pub(super) const OPT_NETWORK_TIMEOUT: c_int = 0x5005;
    pub(super) const NO_MEMORY: c_int = -10;

    #[repr(C)]
    pub(super) struct BerVal {
        pub(super) len: c_ulong,
        pub(super) value: *mut c_char,
    }

    /// Declares functions, finds them in a loaded library.
    macro_rules! functions {
        ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)*) => {
            pub(super) struct Functions {
                $(pub(super) $name: unsafe extern "C" fn($($arg: $type),*) $(-> $result)?,)*
            }

            impl Functions {
                /// None, of which the loader says more, if one is missing. The library must stay.
                pub(super) fn of(library: NonNull<c_void>) -> Option<Functions> {
                    $(let $name = find(library, concat!(stringify!($name), "\0").as_bytes())?;)*
                    // SAFETY: these are the library's functions of these names, which its manual
                    // pages declare with these types; a pointer to a function is one to void, too
                    // (POSIX, dlsym).
                    Some(unsafe {
                        Functions {
                            $($name: transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($type),*) $(-> $result)?,
                            >($name.as_ptr()),)*
                        }
                    })
                }
            }
        };
    }

    functions! {
        fn ldap_initialize(handle: *mut *mut c_void, uris: *const c_char) -> c_int;
        fn ldap_err2string(code: c_int) -> *const c_char;
        fn ldap_set_option(
            handle: *mut c_void,
            option: c_int,
            value: *const c_void,
        ) -> c_int;
        fn ldap_start_tls_s(
            handle: *mut c_void,
            server_controls: *mut c_void,
            client_controls: *mut c_void,
        ) -> c_int;
        fn ldap_sasl_bind_s(
            handle: *mut c_void,
            dn: *const c_char,
            mechanism: *const c_char,
            password: *const BerVal,
            server_controls: *mut c_void,
            client_controls: *mut c_void,
            answer: *mut c_void,
        ) -> c_int;
        fn ldap_search_ext_s(
            handle: *mut c_void,
            base: *const c_char,
            scope: c_int,
            filter: *const c_char,
            attributes: *const *const c_char,
            names_only: c_int,
            server_controls: *mut c_void,
            client_controls: *mut c_void,
            timeout: *mut timeval,
            size_limit: c_int,
            found: *mut *mut c_void,
        ) -> c_int;
        fn ldap_first_entry(handle: *mut c_void, found: *mut c_void) -> *mut c_void;
        fn ldap_next_entry(handle: *mut c_void, entry: *mut c_void) -> *mut c_void;
        fn ldap_get_dn(handle: *mut c_void, entry: *mut c_void) -> *mut c_char;
        fn ldap_memfree(text: *mut c_void);
        fn ldap_msgfree(found: *mut c_void) -> c_int;
        fn ldap_unbind_ext_s(
            handle: *mut c_void,
            server_controls: *mut c_void,
            client_controls: *mut c_void,
        ) -> c_int;
        fn ldap_domain2hostlist(domain: *const c_char, hosts: *mut *mut c_char)
            -> c_int;
    }

    /// A function; its name has a zero at the end.
    fn find(library: NonNull<c_void>, name: &[u8]) -> Option<NonNull<c_void>> {
        let name = CStr::from_bytes_with_nul(name).ok()?;
        // SAFETY: the library is loaded and stays; the name ends with a zero.
        NonNull::new(unsafe { dlsym(library.as_ptr(), name.as_ptr()) })
    }
}

/// Has all others go first; there is no way back from that.
pub fn step_back() {
    // SAFETY: only a number is passed.
    unsafe {
        libc::nice(19);
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
        assert_eq!(go_on_in_child(None, None), Err(Errno::EBUSY));
        drop(ended);
        assert!(other.join().unwrap());
    }

    #[test]
    fn missing_ldap_library_is_told_with_what_to_do() {
        let told = |names: &[&CStr]| LdapLibrary::load(names).map(drop).unwrap_err();
        let text = told(&[c"libnobody-1.so.7", c"libnobody-2.so.8"]);
        assert!(text.starts_with("LDAP needs OpenLDAP's client library, please install libldap ("));
        assert!(text.contains("libnobody-1.so.7: ") && text.contains("; libnobody-2.so.8: "));
        // One that can be loaded and is something else.
        let text = told(&[c"libcrypto.so.3"]);
        assert!(text.contains("ldap_initialize"), "{text}");
    }
}
