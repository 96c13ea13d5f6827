//! The process that goes on with our connections: rows with descriptors go out to it over its
//! console's socket, and one answer comes in (doc/handoff.md).
//!
//! The loop does not turn meanwhile, so it waits as plain programs do, but never without an end.

use super::options::reason;
use crate::wire::frame::{Frame, Framer};
use crate::wire::write;
use nix::errno::Errno;
use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};
use std::io::{self, ErrorKind, IoSlice, Read};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Rows are sent together until they have so many bytes.
const CHUNK: usize = 128 * 1024;
/// So many descriptors go with one message; the system takes 253.
const DESCRIPTORS: usize = 250;
/// What a successor says is short, in bytes.
const SAID_MAX: u32 = 1024;

/// The line to a successor. Descriptors are borrowed until they have been sent.
pub struct Successor<'a> {
    stream: UnixStream,
    bytes: Vec<u8>,
    descriptors: Vec<BorrowedFd<'a>>,
}

impl<'a> Successor<'a> {
    /// Speaks over the socket of this console; no single step may take longer than `patience`.
    pub fn over(console: BorrowedFd<'_>, patience: Duration) -> io::Result<Successor<'a>> {
        let stream = UnixStream::from(console.try_clone_to_owned()?);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Successor { stream, bytes: Vec::with_capacity(CHUNK), descriptors: Vec::new() })
    }

    /// Packets without a descriptor.
    pub fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        write(&mut self.bytes);
        self.send_much()
    }

    /// A row, and the descriptor that goes with it.
    pub fn row(
        &mut self,
        values: [Option<&[u8]>; COLUMNS.len()],
        descriptor: Option<BorrowedFd<'a>>,
    ) -> io::Result<()> {
        if self.descriptors.len() >= DESCRIPTORS {
            self.send()?;
        }
        self.descriptors.extend(descriptor);
        self.say(|bytes| write::data_row(bytes, values.into_iter()))
    }

    fn send_much(&mut self) -> io::Result<()> {
        match self.bytes.len() < CHUNK {
            true => Ok(()),
            false => self.send(),
        }
    }

    /// Sends what has not been sent.
    pub fn send(&mut self) -> io::Result<()> {
        let mut rest = self.bytes.as_slice();
        while !rest.is_empty() {
            let raw: Vec<RawFd> = self.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
            let control = [ControlMessage::ScmRights(&raw)];
            let control = if raw.is_empty() { &control[..0] } else { &control[..] };
            let flags = MsgFlags::MSG_NOSIGNAL;
            let room = [IoSlice::new(rest)];
            match sendmsg::<()>(self.stream.as_raw_fd(), &room, control, flags, None) {
                Ok(count) => {
                    // They have gone with the first byte.
                    self.descriptors.clear();
                    rest = rest.get(count..).unwrap_or_default();
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.bytes.clear();
        Ok(())
    }

    /// Waits for the word that it has all and goes on with it. The error says why it does not.
    pub fn hear_shutdown(&mut self) -> Result<(), String> {
        let mut said = Vec::new();
        let framer = Framer { startup: false, max: SAID_MAX };
        loop {
            match framer.first(&said) {
                Frame::Packet { tag, len } if said.len() >= len as usize => {
                    let body = said.get(5..len as usize).unwrap_or_default();
                    let text = body.strip_suffix(b"\0").unwrap_or(body);
                    return match (tag, text) {
                        (b'Q', b"SHUTDOWN;") => Ok(()),
                        _ => Err("it said something else than SHUTDOWN".into()),
                    };
                }
                Frame::Bad(_) => return Err("what it said makes no sense".into()),
                Frame::Packet { .. } | Frame::NeedMore => {}
            }
            let mut room = [0; 256];
            match self.stream.read(&mut room) {
                Ok(0) => return Err("it has gone".into()),
                Ok(count) => said.extend_from_slice(room.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err("it did not answer in time".into());
                }
                Err(error) => return Err(format!("reading failed: {}", reason(&error))),
            }
        }
    }
}

impl Drop for Successor<'_> {
    fn drop(&mut self) {
        // The loop may go on with this socket. If that fails, so will what it does next.
        let _ = self.stream.set_nonblocking(true);
    }
}

/// The columns of the answer: their names, and whether their bytes are sent as they are.
pub const COLUMNS: [(&str, bool); 4] =
    [("kind", false), ("number", false), ("state", true), ("wire", true)];

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    /// Both ends, and what is to be handed over.
    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    #[test]
    fn rows_and_descriptors_arrive_in_order() {
        let (ours, theirs) = pair();
        let sockets: Vec<UnixStream> = (0..600).map(|_| pair().0).collect();
        let reader = std::thread::spawn(move || {
            let (mut bytes, mut count) = (0, 0);
            let mut room = vec![0; 1 << 16];
            let mut receive =
                || super::super::sys::receive_with_descriptors(&theirs, &mut room).ok();
            while let Some(received) = receive().filter(|received| received.count > 0) {
                bytes += received.count;
                count += received.descriptors.len();
            }
            (bytes, count)
        });
        let mut successor = Successor::over(ours.as_fd(), Duration::from_secs(20)).unwrap();
        let big = vec![7; 300_000];
        let mut want = 0;
        for (number, socket) in sockets.iter().enumerate() {
            let wire = if number == 300 { &big[..] } else { b"w" };
            let values = [Some(&b"client"[..]), Some(b"1"), Some(b""), Some(wire)];
            let mut row = Vec::new();
            write::data_row(&mut row, values.into_iter());
            want += row.len();
            successor.row(values, Some(socket.as_fd())).unwrap();
        }
        successor.send().unwrap();
        drop(successor);
        drop(ours);
        assert_eq!(reader.join().unwrap(), (want, 600));
    }

    #[test]
    fn only_one_word_ends_us() {
        for (said, want) in [
            (&b"Q\0\0\0\x0eSHUTDOWN;\0"[..], Ok(())),
            (b"Q\0\0\0\x0dSHUTDOWN\0", Err("it said something else than SHUTDOWN")),
            (b"X\0\0\0\x04", Err("it said something else than SHUTDOWN")),
            (b"Q\0\0", Err("it has gone")),
            (b"\xff\xff\xff\xff\xff\xff", Err("what it said makes no sense")),
            (b"", Err("it has gone")),
        ] {
            let (ours, mut theirs) = pair();
            theirs.write_all(said).unwrap();
            drop(theirs);
            let mut successor = Successor::over(ours.as_fd(), Duration::from_secs(20)).unwrap();
            assert_eq!(successor.hear_shutdown(), want.map_err(str::to_owned), "{said:?}");
        }
        let (ours, _theirs) = pair();
        let mut successor = Successor::over(ours.as_fd(), Duration::from_millis(10)).unwrap();
        assert_eq!(successor.hear_shutdown(), Err("it did not answer in time".into()));
    }
}
