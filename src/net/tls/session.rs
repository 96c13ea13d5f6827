//! One encrypted connection: OpenSSL on top of a socket that tells readiness by edges.

use super::{words, ALPN, DH_BITS};
use crate::auth::Names;
use crate::core::Facts;
use crate::net::sys;
use mio::net::TcpStream;
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::Id;
use openssl::ssl::{ErrorCode, Ssl, SslRef, SslStream};
use openssl::x509::X509Ref;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

/// The socket below OpenSSL. A short receive says that it is empty: OpenSSL, which always asks once
/// more, is told so without a system call.
struct Below {
    stream: TcpStream,
    may_have_more: bool,
    hangup: bool,
    /// What is sent next is the rest of a record.
    within: bool,
    /// An alert was sent that anybody can tell from other records: up to TLS 1.2.
    alerted: bool,
}

/// The first byte of an alert.
const ALERT: u8 = 0x15;

impl Read for Below {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if !self.may_have_more {
            return Err(ErrorKind::WouldBlock.into());
        }
        let received = self.stream.read(into);
        let is_empty = match &received {
            Ok(count) => *count > 0 && *count < into.len() && !self.hangup,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        if is_empty {
            self.may_have_more = false;
        }
        received
    }
}

impl Write for Below {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.alerted |= !self.within && bytes.first() == Some(&ALERT);
        let sent = self.stream.write(bytes);
        if let Ok(count) = sent {
            self.within = count < bytes.len();
        }
        sent
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Up to TLS 1.2 the other side may want another handshake. OpenSSL refuses with a warning, the only
/// alert that may come out of a receive which goes well otherwise; here that is the end (auth 9.2).
const RENEGOTIATION: &str =
    "tls_sbufio_recv: read failed: unexpected handshake, closing connection";

/// What a step of a handshake led to.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::net) enum Progress {
    /// It is over.
    Done,
    /// The other side has to say something first.
    Reads,
    /// There is no room for what has to be sent.
    Writes,
    /// It failed, for this reason.
    Failed(String),
}

/// An encrypted connection, at first in its handshake.
pub struct Session {
    ssl: SslStream<Below>,
    /// The handshake is over and nothing has failed since.
    established: bool,
    /// Receiving needs room for sending first.
    stalled: bool,
    /// The stream has ended behind the bytes that were received last.
    ended: bool,
    /// What went wrong behind the bytes that were received last.
    failed: Option<io::Error>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Session").field(&self.ssl.get_ref().stream).finish()
    }
}

impl Session {
    /// `ssl` has been told which side it is on.
    pub(in crate::net) fn new(ssl: Ssl, stream: TcpStream) -> Result<Session, ErrorStack> {
        let below =
            Below { stream, may_have_more: true, hangup: false, within: false, alerted: false };
        Ok(Session {
            ssl: SslStream::new(ssl, below)?,
            established: false,
            stalled: false,
            ended: false,
            failed: None,
        })
    }

    pub(in crate::net) fn stream(&self) -> &TcpStream {
        &self.ssl.get_ref().stream
    }

    pub(in crate::net) fn stream_mut(&mut self) -> &mut TcpStream {
        &mut self.ssl.get_mut().stream
    }

    /// An event said that there may be something to receive.
    pub(in crate::net) fn set_readable(&mut self, hangup: bool) {
        let below = self.ssl.get_mut();
        below.may_have_more = true;
        below.hangup |= hangup;
    }

    /// Goes on with the handshake.
    pub(in crate::net) fn shake(&mut self) -> Progress {
        match self.ssl.do_handshake() {
            Ok(()) => {
                self.established = true;
                self.ssl.get_mut().alerted = false;
                Progress::Done
            }
            Err(error) if error.code() == ErrorCode::WANT_READ => Progress::Reads,
            Err(error) if error.code() == ErrorCode::WANT_WRITE => Progress::Writes,
            Err(error) => Progress::Failed(format!("handshake failed: {}", words::failure(&error))),
        }
    }

    /// Receives until `into` is full or nothing more is there.
    pub(in crate::net) fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut count = 0_usize;
        while let Some(room) = into.get_mut(count..).filter(|room| !room.is_empty()) {
            if self.ended || self.failed.is_some() {
                break;
            }
            match self.ssl.ssl_read(room) {
                Ok(more) => count = count.saturating_add(more),
                Err(error) if wants(&error) && self.ssl.get_ref().alerted => {
                    self.established = false;
                    self.failed = Some(io::Error::other(RENEGOTIATION));
                }
                Err(error) if self.must_wait(&error) => match count {
                    0 => return Err(ErrorKind::WouldBlock.into()),
                    _ => break,
                },
                Err(error) => match is_end(&error) {
                    true => self.ended = true,
                    false => self.failed = Some(self.failure(&error, "recv: read")),
                },
            }
        }
        match count {
            0 => self.failed.take().map_or(Ok(0), Err),
            _ => Ok(count),
        }
    }

    /// True if both sides have agreed on PostgreSQL's protocol.
    pub(in crate::net) fn speaks_postgres(&self) -> bool {
        let chosen = self.ssl.ssl().selected_alpn_protocol();
        chosen.is_some() && chosen == ALPN.get(1..)
    }

    /// True if there is an end to be received that no event will tell of.
    pub(in crate::net) fn has_end(&self) -> bool {
        self.ended || self.failed.is_some()
    }

    /// True if receiving waits for room for sending.
    pub(in crate::net) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// It ends without a word: another process goes on with its socket, or nobody.
    pub(in crate::net) fn fall_silent(&mut self) {
        self.established = false;
    }

    /// Receiving is going to be tried again.
    pub(in crate::net) fn forget_stall(&mut self) {
        self.stalled = false;
    }

    /// Sends as much as there is room for. What is refused has to be offered again, all of it and in
    /// front of anything else: OpenSSL may have begun to send it.
    pub(in crate::net) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut count = 0_usize;
        while let Some(rest) = bytes.get(count..).filter(|rest| !rest.is_empty()) {
            match self.ssl.ssl_write(rest) {
                Ok(more) => count = count.saturating_add(more),
                Err(error) if wants(&error) => match count {
                    0 => return Err(ErrorKind::WouldBlock.into()),
                    _ => break,
                },
                Err(error) => return Err(self.failure(&error, "send: write")),
            }
        }
        Ok(count)
    }

    fn must_wait(&mut self, error: &openssl::ssl::Error) -> bool {
        self.stalled |= error.code() == ErrorCode::WANT_WRITE;
        wants(error)
    }

    /// The error with the text of its log line (auth 9.9). No alert may follow it.
    fn failure(&mut self, error: &openssl::ssl::Error, what: &str) -> io::Error {
        self.established = false;
        io::Error::other(format!("tls_sbufio_{what} failed: {}", words::failure(error)))
    }

    /// What the other floors want to know about it; `end_point` is the hash of our certificate, if
    /// we are the ones who show one.
    pub(in crate::net) fn facts(&self, end_point: Option<Rc<[u8]>>) -> Facts {
        let ssl = self.ssl.ssl();
        let shown = ssl.peer_certificate();
        Facts {
            text: text(ssl).into(),
            names: shown.as_deref().map(|certificate| Box::new(names(certificate))),
            end_point: end_point.or_else(|| shown.as_deref().map(end_point_of)).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
impl Session {
    /// How many certificates the other side has shown.
    pub(super) fn shown_chain(&self) -> usize {
        self.ssl.ssl().peer_cert_chain().map_or(0, |chain| chain.len())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.established {
            // The other side knows by this that nothing was cut off; it need not listen.
            let _ = self.ssl.shutdown();
        }
    }
}

fn wants(error: &openssl::ssl::Error) -> bool {
    matches!(error.code(), ErrorCode::WANT_READ | ErrorCode::WANT_WRITE)
}

fn is_end(error: &openssl::ssl::Error) -> bool {
    error.code() == ErrorCode::ZERO_RETURN
        || (error.code() == ErrorCode::SYSCALL && error.io_error().is_none())
}

/// `TLSv1.2/ECDHE-RSA-AES256-GCM-SHA384/ECDH=X25519` (auth 9.7).
fn text(ssl: &SslRef) -> String {
    let cipher = ssl.current_cipher().map_or("", |cipher| cipher.name());
    format!("{}/{cipher}{}", ssl.version_str(), key_exchange(ssl))
}

/// The key exchange, as far as the reference shows it: not of TLS 1.3 with clients, and no curves
/// but NIST's towards servers.
fn key_exchange(ssl: &SslRef) -> String {
    let cipher = ssl.current_cipher().map_or("", |cipher| cipher.name());
    let curve = |nid: Option<Nid>| {
        let name = nid.and_then(|nid| nid.short_name().ok());
        name.map_or_else(String::new, |name| format!("/ECDH={name}"))
    };
    let shown = match ssl.is_server() {
        true if cipher.starts_with("ECDHE-") => curve(sys::shared_group(ssl)),
        true if cipher.starts_with("DHE-") => format!("/DH={DH_BITS}"),
        true => String::new(),
        false => match ssl.peer_tmp_key() {
            Ok(key) if key.id() == Id::DH => format!("/DH={}", key.bits()),
            Ok(key) if key.id() == Id::EC => {
                curve(key.ec_key().ok().and_then(|key| key.group().curve_name()))
            }
            _ => String::new(),
        },
    };
    forget_errors();
    shown
}

/// Nothing that was asked for in vain may look like the failure of what comes next, on whatever
/// connection: OpenSSL keeps its errors by thread.
fn forget_errors() {
    drop(ErrorStack::get());
}

/// The names in a certificate.
pub(super) fn names(certificate: &X509Ref) -> Names {
    let listed = certificate.subject_alt_names();
    let listed = || listed.iter().flatten();
    // Something that isn't text is nobody's name, and kept as what spoils the certificate.
    let common = certificate.subject_name().entries_by_nid(Nid::COMMONNAME).next();
    let common = common.map(|entry| match entry.data().to_string() {
        Ok(text) => text.into_bytes().into(),
        Err(_) => Box::from(&b"\0"[..]),
    });
    // The list may have made no sense.
    forget_errors();
    Names::new(
        listed().filter_map(|name| name.dnsname()).map(|name| name.as_bytes().into()),
        listed().filter_map(|name| name.ipaddress()).map(Box::from),
        common,
    )
}

/// The certificate's hash for channel binding, tls-server-end-point (RFC 5929, 4.1); empty if its
/// signature names no hash function.
pub(super) fn end_point_of(certificate: &X509Ref) -> Rc<[u8]> {
    use openssl::hash::MessageDigest;
    let signature = certificate.signature_algorithm().object().nid().signature_algorithms();
    let digest = match signature.map(|signature| signature.digest) {
        Some(Nid::MD5 | Nid::SHA1) => Some(MessageDigest::sha256()),
        Some(nid) => MessageDigest::from_nid(nid),
        None => None,
    };
    let hash = digest.and_then(|digest| certificate.digest(digest).ok());
    forget_errors();
    hash.map_or_else(|| Rc::from([]), |hash| Rc::from(&*hash))
}
