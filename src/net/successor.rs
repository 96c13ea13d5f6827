//! The process that goes on with our connections: rows with descriptors go out to it over its
//! console's socket, and one answer comes in (doc/handoff.md).
//!
//! The loop does not turn meanwhile, so it waits as plain programs do, but never without an end.

use super::options::reason;
use crate::wire::frame::{Frame, Framer};
use crate::wire::write;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sendmsg, setsockopt, sockopt, ControlMessage, MsgFlags};
use std::io::{self, ErrorKind, IoSlice, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Rows are sent together until they have so many bytes.
const CHUNK: usize = 128 * 1024;
/// So many descriptors go with one message; the system takes 253.
const DESCRIPTORS: usize = 250;
/// What a successor says is short, in bytes.
const SAID_MAX: u32 = 1024;
/// Who waits says so this often.
const SLICE: Duration = Duration::from_millis(100);

/// A descriptor that goes with a row.
#[derive(Debug)]
pub enum Passed<'a> {
    /// One that stays here, too.
    Lent(BorrowedFd<'a>),
    /// One that is closed when it has been sent.
    Given(OwnedFd),
}

impl AsRawFd for Passed<'_> {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Passed::Lent(descriptor) => descriptor.as_raw_fd(),
            Passed::Given(descriptor) => descriptor.as_raw_fd(),
        }
    }
}

/// The line to a successor.
pub struct Successor<'a> {
    stream: UnixStream,
    bytes: Vec<u8>,
    descriptors: Vec<Passed<'a>>,
    /// When it is given up.
    until: Instant,
    /// Called now and then while it keeps us waiting.
    waits: &'a mut dyn FnMut(),
}

impl<'a> Successor<'a> {
    /// Speaks over the socket of this console; all of it may not take longer than `patience`.
    pub fn over(
        console: BorrowedFd<'_>,
        patience: Duration,
        waits: &'a mut dyn FnMut(),
    ) -> io::Result<Successor<'a>> {
        let stream = UnixStream::from(console.try_clone_to_owned()?);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(SLICE.min(patience)))?;
        stream.set_write_timeout(Some(SLICE.min(patience)))?;
        let now = Instant::now();
        let until = now.checked_add(patience).unwrap_or(now);
        let (bytes, descriptors) = (Vec::with_capacity(CHUNK), Vec::new());
        Ok(Successor { stream, bytes, descriptors, until, waits })
    }

    /// It keeps us waiting; true if that is enough.
    fn is_late(&mut self) -> bool {
        (self.waits)();
        Instant::now() >= self.until
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
        descriptor: Option<Passed<'a>>,
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
        // Never when all has been sent: what it has heard to the end it may act upon.
        if self.is_late() {
            return Err(Errno::EAGAIN.into());
        }
        let bytes = std::mem::take(&mut self.bytes);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let raw: Vec<RawFd> = self.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
            let control = [ControlMessage::ScmRights(&raw)];
            let control = if raw.is_empty() { &control[..0] } else { &control[..] };
            let flags = MsgFlags::MSG_NOSIGNAL;
            // With a slow reader one call lasts as long as it has something to send.
            let room = [IoSlice::new(rest.get(..CHUNK).unwrap_or(rest))];
            match sendmsg::<()>(self.stream.as_raw_fd(), &room, control, flags, None) {
                Ok(count) => {
                    // They have gone with the first byte.
                    self.descriptors.clear();
                    rest = rest.get(count..).unwrap_or_default();
                    if !rest.is_empty() && self.is_late() {
                        return Err(Errno::EAGAIN.into());
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !self.is_late() => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.bytes = bytes;
        self.bytes.clear();
        Ok(())
    }

    /// Says that we go on ourselves. Whoever has heard everything takes our silence for our end, so
    /// this must get there also if nothing has been read yet and there is no more room for it.
    pub fn refuse(&mut self, text: &str) -> io::Result<()> {
        // The system makes twice of it, and never has more in it than one and a half times that.
        let room = getsockopt(&self.stream, sockopt::SndBuf)?;
        setsockopt(&self.stream, sockopt::SndBuf, &room)?;
        self.last_word(|out| write::error(out, "ERROR", b"08P01", text.as_bytes()))
    }

    /// Says that everything is the successor's. It has read all that was said before, so there is
    /// room.
    pub fn agree(&mut self) -> io::Result<()> {
        self.last_word(|out| write::command_complete(out, "HANDOFF"))
    }

    /// What has to be said however late it is.
    fn last_word(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let now = Instant::now();
        self.until = now.checked_add(SLICE).unwrap_or(now);
        self.say(write)?;
        self.send()
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
                    if self.is_late() {
                        return Err("it did not answer in time".into());
                    }
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
        let mut waits = || {};
        let mut successor =
            Successor::over(ours.as_fd(), Duration::from_secs(20), &mut waits).unwrap();
        let big = vec![7; 300_000];
        let mut want = 0;
        for (number, socket) in sockets.iter().enumerate() {
            let wire = if number == 300 { &big[..] } else { b"w" };
            let values = [Some(&b"client"[..]), Some(b"1"), Some(b""), Some(wire)];
            let mut row = Vec::new();
            write::data_row(&mut row, values.into_iter());
            want += row.len();
            let descriptor = match number % 2 {
                0 => Passed::Lent(socket.as_fd()),
                _ => Passed::Given(socket.try_clone().unwrap().into()),
            };
            successor.row(values, Some(descriptor)).unwrap();
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
            let mut waits = || {};
            let patience = Duration::from_secs(20);
            let mut successor = Successor::over(ours.as_fd(), patience, &mut waits).unwrap();
            assert_eq!(successor.hear_shutdown(), want.map_err(str::to_owned), "{said:?}");
        }
        let (ours, _theirs) = pair();
        let (count, mut waits) = (std::cell::Cell::new(0), || {});
        let patience = Duration::from_millis(10);
        let mut successor = Successor::over(ours.as_fd(), patience, &mut waits).unwrap();
        assert_eq!(successor.hear_shutdown(), Err("it did not answer in time".into()));
        drop(successor);
        let mut waits = || count.set(count.get() + 1);
        let patience = Duration::from_millis(350);
        let mut successor = Successor::over(ours.as_fd(), patience, &mut waits).unwrap();
        assert_eq!(successor.hear_shutdown(), Err("it did not answer in time".into()));
        assert!(count.get() > 2, "others hear of us meanwhile");
    }

    #[test]
    fn steps_of_any_number_take_no_longer_than_all_may() {
        let (ours, mut theirs) = pair();
        let reader = std::thread::spawn(move || {
            // Slow, but never so slow that nothing moves.
            let mut room = [0; 4096];
            while theirs.read(&mut room).is_ok_and(|count| count > 0) {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let start = Instant::now();
        let mut waits = || {};
        let patience = Duration::from_millis(300);
        let mut successor = Successor::over(ours.as_fd(), patience, &mut waits).unwrap();
        let error = successor.say(|out| out.resize(10_000_000, 7)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        drop((successor, ours));
        reader.join().unwrap();
    }

    #[test]
    fn agreement_arrives_however_late_it_is() {
        let (ours, mut theirs) = pair();
        theirs.write_all(b"Q\0\0\0\x0eSHUTDOWN;\0").unwrap();
        let mut waits = || {};
        let mut successor = Successor::over(ours.as_fd(), SLICE, &mut waits).unwrap();
        std::thread::sleep(SLICE * 2);
        assert_eq!(successor.hear_shutdown(), Ok(()));
        successor.agree().unwrap();
        drop((successor, ours));
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).unwrap();
        assert_eq!(said, b"C\0\0\0\x0cHANDOFF\0");
    }

    #[test]
    fn a_refusal_arrives_although_nothing_has_been_read() {
        for size in [100, 1000, 7000, 30_000, 60_000] {
            let (ours, mut theirs) = pair();
            ours.set_nonblocking(true).unwrap();
            let row = vec![b'x'; size];
            while (&ours).write(&row).is_ok_and(|count| count == size) {}
            let mut waits = || {};
            let patience = Duration::from_millis(10);
            let mut successor = Successor::over(ours.as_fd(), patience, &mut waits).unwrap();
            successor.hear_shutdown().unwrap_err();
            successor.refuse("no").unwrap();
            drop((successor, ours));
            let mut said = Vec::new();
            theirs.read_to_end(&mut said).unwrap();
            let end = said.iter().rposition(|byte| *byte == b'x').unwrap();
            assert_eq!(said.get(end + 1), Some(&b'E'), "{size}");
        }
    }
}
