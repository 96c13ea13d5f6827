//! A scripted process that is to be taken over: what it says and hands over is up to the test.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};

use super::wire::{error, msg};
use super::DEADLINE;

/// Listens where a pooler of this folder and port would, for everybody.
pub(crate) fn listen(folder: &Path, port: u16) -> UnixListener {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(format!(".s.PGSQL.{port}"));
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    listener
}

/// The console that the successor has opened.
pub(crate) struct Old(UnixStream);

impl Old {
    /// Has it log in.
    pub(crate) fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut old = Self(stream);
        let mut hello = [0; 43];
        old.0.read_exact(&mut hello).unwrap();
        assert_eq!(hello[..8], [0, 0, 0, 43, 0, 3, 0, 0]);
        assert_eq!(&hello[8..], b"database\0pgbouncer\0user\0pgbouncer\0\0");
        old
    }

    /// As `accept`, up to the row that answers SHOW FDS.
    pub(crate) fn suspended(listener: &UnixListener) -> Self {
        let mut old = Self::accept(listener);
        old.welcome();
        old.does_not_know_handoff();
        old.hear("SUSPEND;");
        old.complete("SUSPEND");
        old.hear("SHOW FDS;");
        old
    }

    /// It is a PgBouncer, which has no such command.
    pub(crate) fn does_not_know_handoff(&mut self) {
        self.hear("HANDOFF 0;");
        let text = "invalid command 'HANDOFF 0;', use SHOW HELP;";
        let error = error(&[(b'S', "ERROR"), (b'C', "08P01"), (b'M', text)]);
        self.say(&[error, msg(b'Z', b"I")].concat());
    }

    /// Accepts the login.
    pub(crate) fn welcome(&mut self) {
        self.say(&[msg(b'R', &[0; 4]), msg(b'Z', b"I")].concat());
    }

    /// A row without descriptors, as SHOW VERSION is answered.
    pub(crate) fn version(&mut self, text: &str) {
        self.hear("SHOW VERSION;");
        self.say(&row(&[Some(text)]));
        self.complete("SHOW");
    }

    /// The successor says this, in one piece.
    pub(crate) fn hear(&mut self, sql: &str) {
        let mut said = vec![0; sql.len() + 6];
        self.0.read_exact(&mut said).unwrap();
        assert_eq!(said, msg(b'Q', &[sql.as_bytes(), b"\0"].concat()));
    }

    /// True if the successor has hung up.
    pub(crate) fn is_left(&mut self) -> bool {
        self.0.read(&mut [0; 100]).unwrap() == 0
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Says it although the successor may have hung up; false if it has.
    pub(crate) fn try_say(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    pub(crate) fn complete(&mut self, tag: &str) {
        self.say(&[msg(b'C', &[tag.as_bytes(), b"\0"].concat()), msg(b'Z', b"I")].concat());
    }

    /// Bytes with descriptors.
    pub(crate) fn hand(&mut self, bytes: &[u8], descriptors: &[RawFd]) {
        let room = [std::io::IoSlice::new(bytes)];
        let control = [ControlMessage::ScmRights(descriptors)];
        let sent = sendmsg::<()>(self.0.as_raw_fd(), &room, &control, MsgFlags::empty(), None);
        assert_eq!(sent.unwrap(), bytes.len());
    }

    /// A row with a descriptor.
    pub(crate) fn row(&mut self, cells: &[Option<&str>], socket: &impl AsRawFd) {
        self.hand(&row(cells), &[socket.as_raw_fd()]);
    }
}

/// A DataRow.
pub(crate) fn row(cells: &[Option<&str>]) -> Vec<u8> {
    let mut body = u16::try_from(cells.len()).unwrap().to_be_bytes().to_vec();
    for cell in cells {
        match cell {
            None => body.extend([0xff; 4]),
            Some(text) => {
                body.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                body.extend(text.as_bytes());
            }
        }
    }
    msg(b'D', &body)
}
