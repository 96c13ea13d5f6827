//! Servers that misbehave: each connection is handed to a script in a thread of its own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use super::raw::Raw;
use super::wire::{cstr, msg, SSL_REQUEST};

/// A listening fake; scripts run until their connection ends.
pub(crate) struct Fake {
    pub(crate) port: u16,
    at: SocketAddr,
    stop: Arc<AtomicBool>,
}

/// The server's end of one connection.
pub(crate) struct Peer {
    pub(crate) raw: Raw,
    /// Keys and values of the StartupMessage, in order; empty for a cancel request.
    pub(crate) hello: Vec<String>,
}

impl Fake {
    /// Listens and runs `script` for each connection, after its first packet was read and SSLRequest was refused.
    pub(crate) fn start(script: impl Fn(Peer) + Send + Sync + 'static) -> Self {
        Self::start_over(|stream| Some(Raw::over(stream)), script)
    }

    /// As `start`; `open` makes of a connection what is spoken over.
    pub(crate) fn start_over(
        open: impl Fn(TcpStream) -> Option<Raw> + Send + Sync + 'static,
        script: impl Fn(Peer) + Send + Sync + 'static,
    ) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_at(any, open, script).unwrap()
    }

    /// As `start_over`, at this address.
    pub(crate) fn start_at(
        at: SocketAddr,
        open: impl Fn(TcpStream) -> Option<Raw> + Send + Sync + 'static,
        script: impl Fn(Peer) + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(at)?;
        let at = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, script) = (stop.clone(), Arc::new((open, script)));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (stream, script) = (stream.unwrap(), script.clone());
                std::thread::spawn(move || {
                    let (open, script) = &*script;
                    if let Some(peer) = open(stream).and_then(Peer::accept) {
                        script(peer);
                    }
                });
            }
        });
        Ok(Self { port: at.port(), at, stop })
    }

    /// The line of `[databases]` for this fake.
    pub(crate) fn database(&self) -> String {
        format!("fake = host=127.0.0.1 port={} dbname=fake\n", self.port)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.at);
    }
}

impl Peer {
    /// Reads the first packet; SSLRequest is refused.
    pub(crate) fn accept(mut raw: Raw) -> Option<Self> {
        loop {
            let first = raw.byte()?;
            let [a, b, c] = raw.bytes();
            let len = usize::try_from(u32::from_be_bytes([first, a, b, c])).unwrap();
            let code = u32::from_be_bytes(raw.bytes());
            let body: Vec<u8> = (8..len).map_while(|_| raw.byte()).collect();
            if code == SSL_REQUEST {
                raw.send(b"N");
                continue;
            }
            let texts = body.split(|b| *b == 0).map(|t| String::from_utf8_lossy(t).into_owned());
            let hello = texts.take_while(|t| !t.is_empty()).collect();
            return Some(Self { raw, hello });
        }
    }

    /// Lets the pooler in: AuthenticationOk, two parameters, a cancel key, ready.
    pub(crate) fn welcome(&mut self) {
        self.raw.send(
            &[
                msg(b'R', &[0, 0, 0, 0]),
                msg(b'S', &[cstr("server_version"), cstr("15.0")].concat()),
                msg(b'S', &[cstr("client_encoding"), cstr("UTF8")].concat()),
                msg(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]),
                msg(b'Z', b"I"),
            ]
            .concat(),
        );
    }

    /// Answers a simple query with one row of one text column.
    pub(crate) fn answer(&mut self, value: &str) {
        self.raw.send(&reply(value));
    }
}

/// RowDescription, one row, CommandComplete and ReadyForQuery.
pub(crate) fn reply(value: &str) -> Vec<u8> {
    let len = u32::try_from(value.len()).unwrap().to_be_bytes();
    let column =
        [&cstr("v")[..], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 255, 255, 255, 255, 255, 255, 0, 0]];
    [
        msg(b'T', &[&[0, 1][..], &column.concat()].concat()),
        msg(b'D', &[&[0, 1][..], &len, value.as_bytes()].concat()),
        msg(b'C', b"SELECT 1\0"),
        msg(b'Z', b"I"),
    ]
    .concat()
}
