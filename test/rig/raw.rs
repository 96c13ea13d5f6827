//! A client that sends any bytes and reads messages, with deadlines on everything.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::secrets::{md5_answer, Scram};
use super::wire::{cstr, msg, query, special, startup, terminate, Msg, CANCEL_REQUEST};
use super::DEADLINE;

/// A TCP or Unix stream.
pub(crate) trait Stream: Read + Write + Send {
    fn end_output(&self);
}

impl Stream for TcpStream {
    fn end_output(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

impl Stream for UnixStream {
    fn end_output(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

/// One connection, blocking. Dropping it closes it without Terminate.
pub(crate) struct Raw {
    stream: Box<dyn Stream>,
    /// The eight bytes of BackendKeyData, once logged in.
    pub(crate) key: Vec<u8>,
}

/// How an attempt to log in ended: welcome messages, or everything until the connection closed.
pub(crate) type Login = Result<(Raw, Vec<Msg>), Vec<Msg>>;

impl Raw {
    /// Wraps an accepted or connected TCP stream.
    pub(crate) fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { stream: Box::new(stream), key: Vec::new() }
    }

    /// Wraps any other stream.
    pub(crate) fn through(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), key: Vec::new() }
    }

    pub(crate) fn tcp(port: u16) -> Self {
        Self::over(TcpStream::connect(("127.0.0.1", port)).unwrap())
    }

    pub(crate) fn unix(folder: &Path, port: u16) -> Self {
        let stream = UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { stream: Box::new(stream), key: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the connection does not take data");
    }

    /// Sends although the other side may have closed already.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Closes the sending half.
    pub(crate) fn end_output(&self) {
        self.stream.end_output();
    }

    /// Fills `buf`; false if the connection ended before its first byte.
    fn fill(&mut self, buf: &mut [u8]) -> bool {
        let mut got = 0;
        while got < buf.len() {
            match self.stream.read(&mut buf[got..]) {
                Ok(0) if got == 0 => return false,
                Ok(0) => panic!("connection ended inside a message after {got} bytes"),
                Ok(n) => got += n,
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return false,
                // Reads with a time limit are not restarted when the program was stopped meanwhile.
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => panic!("no data: {e}"),
            }
        }
        true
    }

    /// One byte outside of messages, as SSLRequest is answered; none at the end of the connection.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        self.fill(&mut byte).then_some(byte[0])
    }

    /// `N` bytes; panics if there are fewer.
    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        assert!(self.fill(&mut bytes), "connection closed, {N} bytes expected");
        bytes
    }

    /// The next message; none if the connection was closed.
    pub(crate) fn recv(&mut self) -> Option<Msg> {
        let tag = self.byte()?;
        let len = u32::from_be_bytes(self.bytes());
        let mut body = vec![0; usize::try_from(len).unwrap() - 4];
        assert!(self.fill(&mut body) || body.is_empty(), "message {tag} without body");
        Some(Msg { tag, body })
    }

    /// Messages up to and with the first of this type.
    pub(crate) fn until(&mut self, tag: u8) -> Vec<Msg> {
        let mut all = Vec::new();
        loop {
            let Some(msg) = self.recv() else {
                panic!("closed before '{}'; came: {all:?}", char::from(tag))
            };
            all.push(msg);
            if all.last().is_some_and(|m| m.tag == tag) {
                return all;
            }
        }
    }

    /// Everything until the other side closes.
    pub(crate) fn rest(&mut self) -> Vec<Msg> {
        std::iter::from_fn(|| self.recv()).collect()
    }

    /// Sends a simple query and reads its answer.
    pub(crate) fn query(&mut self, sql: &str) -> Vec<Msg> {
        self.send(&query(sql));
        self.until(b'Z')
    }

    /// The first value of a simple query; panics on an error.
    pub(crate) fn value(&mut self, sql: &str) -> String {
        let answer = self.query(sql);
        let row = answer.iter().find(|m| m.tag == b'D');
        let row = row.unwrap_or_else(|| panic!("no row for {sql}: {answer:?}"));
        row.cells()[0].clone().unwrap_or_else(|| "NULL".to_owned())
    }

    /// Ends politely and waits until the other side has closed, too.
    pub(crate) fn bye(mut self) {
        self.send(&terminate());
        assert_eq!(self.rest(), [], "nothing may follow Terminate");
    }

    /// Sends a StartupMessage and answers whatever is asked with this password.
    pub(crate) fn login(self, user: &str, database: &str, password: &str) -> Login {
        self.login_with(&startup(0, &[("user", user), ("database", database)]), user, password)
    }

    /// As `login`, with any StartupMessage. The welcome starts behind the authentication messages.
    pub(crate) fn login_with(mut self, hello: &[u8], user: &str, password: &str) -> Login {
        self.send(hello);
        let scram = Scram::new(password, "fyko+d2lbbFgONRv9qkxdawL");
        let mut all = Vec::new();
        let mut signature = String::new();
        while let Some(msg) = self.recv() {
            let request = match (msg.tag, msg.body.get(..4)) {
                (b'R', Some(code)) => u32::from_be_bytes(code.try_into().unwrap()),
                _ => u32::MAX,
            };
            match request {
                3 => self.answer(&cstr(password)),
                5 => self.answer(&cstr(&md5_answer(user, password, &msg.body[4..]))),
                10 => {
                    let first = scram.first();
                    let len = u32::try_from(first.len()).unwrap().to_be_bytes();
                    self.answer(&[&b"SCRAM-SHA-256\0"[..], &len, first.as_bytes()].concat());
                }
                11 => {
                    let (last, expected) = scram.last(std::str::from_utf8(&msg.body[4..]).unwrap());
                    signature = expected;
                    self.answer(last.as_bytes());
                }
                12 => assert_eq!(String::from_utf8_lossy(&msg.body[4..]), signature),
                _ => {}
            }
            if msg.tag == b'K' {
                self.key.clone_from(&msg.body);
            }
            let done = msg.tag == b'Z';
            all.push(msg);
            if done {
                return Ok((self, all));
            }
        }
        Err(all)
    }

    fn answer(&mut self, body: &[u8]) {
        self.try_send(&msg(b'p', body));
    }

    /// The CancelRequest for this client.
    pub(crate) fn cancel_request(&self) -> Vec<u8> {
        special(CANCEL_REQUEST, &self.key)
    }
}
