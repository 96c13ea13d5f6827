//! Packets that go out with a descriptor each (SHOW FDS), in order with everything else that is said
//! to their console.
//!
//! Nothing here waits: what the stream does not take is kept among the unsent bytes of the
//! connection, and the marks below say which of them a descriptor goes with. A descriptor is looked
//! up when its packet is sent. So no copy of it is needed (the kernel makes the receiver's), pending
//! rows don't count against the limit of open files, and a socket that has been closed is closed.

use super::{Conns, Relay};
use crate::core::{ClientId, Decisions, Handed, Loss, Peer};
use crate::net::conn::{self, Wire};
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

/// Finds the descriptor of a listening socket.
pub(super) type Find<'a> = &'a dyn Fn(u32) -> Option<BorrowedFd<'a>>;

/// One packet among unsent bytes.
struct Mark {
    /// Bytes in front of it, behind the packet of the mark before.
    ahead: usize,
    /// Its length.
    row: usize,
    socket: Handed,
}

/// All of them in one connection's unsent bytes.
#[derive(Default)]
pub(super) struct Rows {
    marks: VecDeque<Mark>,
    /// How many bytes there are up to the end of the last mark's packet.
    len: usize,
}

impl Rows {
    /// A packet is added behind so many unsent bytes.
    fn add(&mut self, unsent: usize, row: usize, socket: Handed) {
        let ahead = unsent.saturating_sub(self.len);
        self.marks.push_back(Mark { ahead, row, socket });
        self.len = unsent.saturating_add(row);
    }

    /// How many bytes are to be sent next, and what goes with them.
    fn next(&self) -> (usize, Option<Handed>) {
        match self.marks.front() {
            None => (usize::MAX, None),
            Some(mark) if mark.ahead > 0 => (mark.ahead, None),
            Some(mark) => (mark.row, Some(mark.socket)),
        }
    }

    /// So many of the bytes that `next` named have been sent.
    fn sent(&mut self, count: usize) {
        self.len = self.len.saturating_sub(count);
        let Some(mark) = self.marks.front_mut() else { return };
        if mark.ahead > 0 {
            mark.ahead = mark.ahead.saturating_sub(count);
            return;
        }
        // The descriptor went with the first byte; the others are like any.
        let rest = mark.row.saturating_sub(count);
        self.marks.pop_front();
        if let Some(mark) = self.marks.front_mut() {
            mark.ahead = mark.ahead.saturating_add(rest);
        }
    }
}

fn descriptor<'c, 'l: 'c, W: Wire>(
    conns: &'c Conns<W>,
    listeners: Find<'l>,
    of: Handed,
) -> Option<BorrowedFd<'c>> {
    match of {
        Handed::Listener(number) => listeners(number),
        Handed::Peer(peer) => conns.get(peer)?.wire.descriptor(),
    }
}

impl<W: Wire> Relay<W> {
    /// Sends a packet behind whatever is still unsent, and the descriptor of a socket with it; alone
    /// if that socket is closed by then.
    pub fn send_row<D: Decisions>(
        &mut self,
        id: ClientId,
        row: &[u8],
        socket: Handed,
        core: &mut D,
        listeners: Find<'_>,
    ) {
        let Some(conn) = self.conns.clients.get_mut(id).filter(|conn| !conn.lost) else {
            return;
        };
        conn.spoken_to = true;
        let unsent = conn.unsent.len();
        conn.unsent.push(row, &mut self.spare);
        self.rows.entry(id).or_default().add(unsent, row.len(), socket);
        if unsent == 0 && self.send_rows(id, listeners, true).is_err() {
            self.lose(Peer::Client(id), Loss::Send, core);
        }
    }

    /// There is room: sends what was kept.
    pub(super) fn flush_rows(&mut self, id: ClientId, listeners: Find<'_>) -> io::Result<()> {
        self.send_rows(id, listeners, false)
    }

    /// Nothing of this connection's unsent bytes will be sent.
    pub(super) fn forget_rows(&mut self, peer: Peer) {
        if let Peer::Client(id) = peer {
            self.rows.remove(&id);
        }
    }

    /// Sends unsent bytes until they are gone or the stream is full. Asks for an event then if this
    /// is the `first` attempt, and for no more of them when all is sent if it is not.
    fn send_rows(&mut self, id: ClientId, listeners: Find<'_>, first: bool) -> io::Result<()> {
        let Some(rows) = self.rows.get_mut(&id) else { return Ok(()) };
        let is_full = loop {
            let Some(conn) = self.conns.clients.get(id) else { return Ok(()) };
            let unsent = conn.unsent.as_slice();
            if unsent.is_empty() {
                break false;
            }
            let (most, socket) = rows.next();
            let bytes = unsent.get(..most).unwrap_or(unsent);
            let passed = socket.and_then(|socket| descriptor(&self.conns, listeners, socket));
            let sent = passed.map(|fd| conn::until_done(|| conn.wire.send_with(bytes, fd)));
            let sent = sent.transpose()?;
            let Some(conn) = self.conns.clients.get_mut(id) else { return Ok(()) };
            let sent = match sent {
                Some(count) => {
                    conn.unsent.take(count, &mut self.spare);
                    count
                }
                None => conn.send_kept(most, &mut self.spare)?,
            };
            if sent == 0 {
                break true;
            }
            rows.sent(sent);
        };
        if rows.marks.is_empty() {
            self.rows.remove(&id);
        }
        match self.conns.clients.get_mut(id) {
            Some(conn) if is_full == first => conn.wire.want_write(is_full),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limits;
    use super::*;
    use crate::core::{ServerId, Verdict};
    use crate::net::script::Script;
    use crate::net::stream::{Common, Socket, Stream};
    use mio::{Poll, Token};
    use nix::cmsg_space;
    use nix::sys::socket::{recvmsg, setsockopt, sockopt, ControlMessageOwned, MsgFlags};
    use nix::unistd::close;
    use std::io::IoSliceMut;
    use std::os::fd::{AsFd, AsRawFd, RawFd};
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;

    /// A console, two connections and a listening socket whose descriptors it is given.
    struct World {
        relay: Relay<Socket>,
        core: Script,
        console: ClientId,
        sockets: [Handed; 3],
        /// By what the descriptors of `sockets` are known again.
        inodes: [u64; 3],
        listener: UnixStream,
        far: UnixStream,
        _poll: Poll,
    }

    fn inode(fd: RawFd) -> u64 {
        std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap().ino()
    }

    fn socket(stream: UnixStream, on: &Rc<Common>) -> Socket {
        stream.set_nonblocking(true).unwrap();
        let stream = Stream::Unix(mio::net::UnixStream::from_std(stream));
        Socket::reading(stream, Token(0), on).unwrap()
    }

    fn world() -> World {
        let poll = Poll::new().unwrap();
        let registry = Rc::new(Common {
            registry: poll.registry().try_clone().unwrap(),
            troubles: std::cell::RefCell::default(),
        });
        let mut relay = Relay::new(Limits { rounds: 5, unsent: 4096 });
        let (near, far) = UnixStream::pair().unwrap();
        setsockopt(&near, sockopt::SndBuf, &4096).unwrap();
        far.set_nonblocking(true).unwrap();
        let (console, client) = (ClientId::from_parts(1, 1), ClientId::from_parts(2, 1));
        let server = ServerId::from_parts(1, 1);
        let [one, two, listener] = [(); 3].map(|()| UnixStream::pair().unwrap().0);
        let inodes = [&one, &two, &listener].map(|stream| inode(stream.as_raw_fd()));
        relay.insert_client(console, socket(near, &registry));
        relay.insert_client(client, socket(one, &registry));
        relay.insert_server(server, socket(two, &registry));
        let core = Script {
            rule: Box::new(|_, _, _| Verdict::Drop),
            links: Vec::new(),
            startup: false,
            max: u32::MAX,
            log: Vec::new(),
            target: None,
            suspends: false,
            both_ways: false,
        };
        let (client, server) = (Peer::Client(client), Peer::Server(server));
        let sockets = [Handed::Peer(client), Handed::Peer(server), Handed::Listener(3)];
        World { relay, core, console, sockets, inodes, listener, far, _poll: poll }
    }

    impl World {
        fn row(&mut self, row: &[u8], socket: Handed) {
            let listener = &self.listener;
            let find = |number| (number == 3).then(|| listener.as_fd());
            self.relay.send_row(self.console, row, socket, &mut self.core, &find);
        }

        fn say(&mut self, text: &[u8]) {
            self.relay.send(Peer::Client(self.console), text, &mut self.core);
        }

        fn flush(&mut self) {
            let listener = &self.listener;
            let find = |number| (number == 3).then(|| listener.as_fd());
            self.relay.flush_with(Peer::Client(self.console), &mut self.core, &find);
        }

        fn is_stalled(&self) -> bool {
            !self.relay.is_idle(Peer::Client(self.console))
        }

        /// What one receive brings: bytes, and which socket came with them.
        fn receive(&self) -> Option<(String, Option<Handed>)> {
            let mut bytes = [0; 2048];
            let mut space = cmsg_space!([RawFd; 4]);
            let (far, flags) = (self.far.as_raw_fd(), MsgFlags::MSG_CMSG_CLOEXEC);
            let mut room = [IoSliceMut::new(&mut bytes)];
            let message = recvmsg::<()>(far, &mut room, Some(&mut space), flags).ok()?;
            let mut passed = Vec::new();
            for control in message.cmsgs().unwrap() {
                let ControlMessageOwned::ScmRights(fds) = control else { panic!("{control:?}") };
                for fd in fds {
                    let at = self.inodes.iter().position(|known| *known == inode(fd));
                    passed.push(self.sockets[at.unwrap()]);
                    close(fd).unwrap();
                }
            }
            assert!(passed.len() < 2);
            let count = message.bytes;
            Some((String::from_utf8(bytes[..count].to_vec()).unwrap(), passed.pop()))
        }

        /// Sends rows with the socket until the console takes no more; how many that are.
        fn stall(&mut self, socket: Handed) -> usize {
            let mut count = 0;
            while !self.is_stalled() {
                self.row(b"row ", socket);
                count += 1;
                assert!(count < 1000);
            }
            count
        }
    }

    #[test]
    fn each_row_is_received_with_its_descriptor() {
        let mut at = world();
        at.say(b"head ");
        for (socket, name) in at.sockets.into_iter().zip(["one ", "two ", "three "]) {
            at.row(name.as_bytes(), socket);
        }
        at.say(b"end");
        assert!(!at.is_stalled());
        let [one, two, three] = at.sockets;
        let want = [
            ("head one ".to_owned(), Some(one)),
            ("two ".to_owned(), Some(two)),
            ("three ".to_owned(), Some(three)),
            ("end".to_owned(), None),
        ];
        for want in want {
            assert_eq!(at.receive(), Some(want));
        }
        assert_eq!(at.receive(), None);
    }

    #[test]
    fn what_is_refused_is_sent_later_in_order() {
        let mut at = world();
        let [one, two, three] = at.sockets;
        let count = at.stall(two);
        at.say(b"between ");
        at.row(b"next ", three);
        at.row(b"gone ", one);
        at.say(b"end");
        let Handed::Peer(peer) = one else { panic!() };
        at.relay.close(peer);
        let mut got = Vec::new();
        for _ in 0..10_000 {
            match at.receive() {
                Some(received) => got.push(received),
                None if at.is_stalled() => at.flush(),
                None => break,
            }
        }
        let rest = got.split_off(count);
        assert!(got.iter().all(|received| *received == ("row ".to_owned(), Some(two))));
        let want = [("between next ".to_owned(), Some(three)), ("gone end".to_owned(), None)];
        assert_eq!(rest, want);
        assert!(at.relay.rows.is_empty() && !at.relay.owns_memory(Peer::Client(at.console)));
    }

    #[test]
    fn a_console_that_goes_takes_its_rows_with_it() {
        let mut at = world();
        let [one, ..] = at.sockets;
        at.stall(one);
        let wire = at.relay.close(Peer::Client(at.console));
        assert!(wire.is_some() && at.relay.rows.is_empty());
        at.row(b"late", one);
        assert!(at.relay.rows.is_empty());

        let mut at = world();
        at.stall(one);
        at.far.shutdown(std::net::Shutdown::Both).unwrap();
        at.flush();
        assert_eq!(at.core.log, ["lost C1 Send"]);
        at.row(b"late", one);
        assert!(at.relay.rows.is_empty());
    }

    #[test]
    fn a_row_sent_in_part_has_given_its_descriptor() {
        let [a, b] = [1, 2].map(Handed::Listener);
        let mut rows = Rows::default();
        rows.add(10, 5, a);
        rows.add(15, 5, b);
        let mut steps = Vec::new();
        for sent in [4, 6, 3, 2, 5] {
            steps.push(rows.next());
            rows.sent(sent);
        }
        assert_eq!(steps, [(10, None), (6, None), (5, Some(a)), (2, None), (5, Some(b))]);
        assert_eq!((rows.next(), rows.len), ((usize::MAX, None), 0));
    }
}
