//! The words in which `net` and the core talk: what happened, and what to do about it.

use super::client::Client;
use super::jobs::{Job, JobId, Outcome};
use super::server::Server;
use crate::auth::Names;
use crate::base::Id;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

/// Names a client.
pub type ClientId = Id<Client>;
/// Names a server.
pub type ServerId = Id<Server>;

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A connection that a client made to us.
    Client(ClientId),
    /// A connection that we made to PostgreSQL or to a peer pooler.
    Server(ServerId),
}

/// One packet as far as it has arrived; the header is always complete.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The type byte; 0 for the packets without one that begin a connection
    /// (StartupMessage, SSLRequest, GSSENCRequest, CancelRequest).
    pub tag: u8,
    /// Length of the whole packet in bytes, header included (5 bytes, or 4 if `tag` is 0).
    pub len: u32,
    /// What is here of the body: everything after the length field.
    pub seen: &'a [u8],
    /// True if bytes that belong to a later packet have already been received behind this one.
    pub behind: bool,
}

impl Packet<'_> {
    /// Length of the header in bytes.
    pub fn header_len(&self) -> u32 {
        if self.tag == 0 {
            4
        } else {
            5
        }
    }

    /// True if the whole body is here.
    pub fn is_whole(&self) -> bool {
        self.seen.len() as u64 + u64::from(self.header_len()) >= u64::from(self.len)
    }
}

/// What to do with a packet. Seven answers; an eighth needs a line in doc/architecture.md that says
/// which of these it could not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Hand the packet to the linked peer.
    Pass,
    /// Swallow it. What the core put into the sink still goes out.
    Drop,
    /// Send what is in the sink, leave out the first `skip` bytes of the packet (header included),
    /// pass the rest.
    Replace {
        /// Bytes to leave out.
        skip: u32,
    },
    /// Ask again when the whole packet is here.
    Whole,
    /// Ask again when so many bytes of the body are here.
    Need(u32),
    /// Keep the packet, stop reading this client until `Action::Resume` names it.
    Wait,
    /// Forget the rest: an action in the queue ends this connection.
    Stop,
}

/// What the pooler itself says while a packet is decided; both are empty outside such a call.
#[derive(Default)]
pub struct Sink {
    /// Bytes for the client of the link (or the client that sent the packet).
    pub to_client: Vec<u8>,
    /// Bytes for the server of the link (or the server that sent the packet).
    pub to_server: Vec<u8>,
}

/// The address of one end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addr {
    /// Not known (yet).
    Unknown,
    /// TCP.
    Inet(SocketAddr),
    /// A Unix socket, with the process id of the other side if the kernel told it (0 if not).
    Unix {
        /// Process id of the other side.
        pid: u32,
    },
}

/// Where an accepted client comes from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The client's end.
    pub remote: Addr,
    /// Our end.
    pub local: Addr,
    /// User id of the process at the other end of a Unix socket.
    pub uid: Option<u32>,
}

/// A socket whose descriptor is passed to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handed {
    /// The listening socket with this number.
    Listener(u32),
    /// A client's or a server's.
    Peer(Peer),
}

/// What is known of a connection that is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Version, cipher, key exchange as they are shown (auth 9.7).
    pub text: Box<str>,
    /// The names in the certificate that the other side has shown. A client's has been checked
    /// against the authorities, a server's if the mode says so.
    pub names: Option<Box<Names>>,
    /// The hash of the accepting side's certificate, for channel binding (RFC 5929); may be empty.
    pub end_point: Rc<[u8]>,
}

/// Why a connection ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// End of stream, or an error while receiving.
    Receive,
    /// The peer can't be written to.
    Send,
    /// Connecting failed.
    Connect,
    /// Connecting failed at once, before anything was on its way; a log line has said why.
    CannotConnect,
    /// The host name has no address.
    Dns,
    /// The server does not want TLS, and nothing else is allowed.
    TlsRefused,
    /// The server's answer to the request for TLS makes no sense.
    TlsAnswer,
    /// The server said something behind its answer to the request for TLS.
    TlsAnswerBehind,
    /// TLS can't be set up on our side; a log line has said why.
    TlsSetup,
}

/// Something that `app` or `net` has to do, in order, before the next event is looked at.
/// Actions on keys that have become stale do nothing.
#[derive(Debug)]
pub enum Action {
    /// Open the connection; [`Decisions::target`] tells where to.
    Connect(ServerId),
    /// Look at what this client sent, then go on reading it.
    Resume(ClientId),
    /// Send these bytes behind whatever is still unsent.
    Send(Peer, Vec<u8>),
    /// Send this one packet to a console behind whatever is still unsent, and the descriptor with
    /// it (takeover 5.1). If that has been closed in the meantime, the packet goes alone.
    SendRow(ClientId, Vec<u8>, Handed),
    /// Close the socket; unsent bytes are lost.
    Close(Peer),
    /// Go over to TLS: with a client that has asked for it (its request is the packet that waits),
    /// or with a server if it likes; [`Decisions::secured`] follows.
    StartTls(Peer),
    /// Have this done by a helper thread; [`Decisions::job_done`] tells how it ended.
    Job(JobId, Job),
    /// Nobody waits for this job any more: it need not be done, but its end is told.
    Abandon(JobId),
    /// A console client has requests waiting (`Core::next_ask`).
    Console(ClientId),
    /// Read the configuration again; the console client, if any, awaits the answer.
    Reload(Option<ClientId>),
    /// Hand over everything to the successor behind this console.
    Handoff(ClientId),
    /// Close the TCP listening sockets.
    CloseTcpListeners,
    /// Stop accepting clients and reading between packets (SUSPEND); or go on. Said again when
    /// servers have to be read after all.
    Suspend(bool),
    /// Leave the loop with this exit code.
    Exit(u8),
}

/// Where a server connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `/dir`, `@name`, an address or a host name; one element of the configured list.
    pub host: String,
    /// TCP port or number in the socket's name.
    pub port: u16,
}

/// What [`Decisions::client_run`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// So many bytes pass.
    Pass(usize),
    /// What is in the sink goes to the server instead of so many bytes.
    Replace(usize),
    /// None, as there is no server yet: [`Verdict::Wait`].
    Wait,
}

/// What `net` asks and tells: implemented by the core, and by scripts in tests of the relay.
pub trait Decisions {
    /// A client packet whose header is complete. Called again for the same packet after `Whole`,
    /// `Need` or `Wait`.
    fn client_packet(&mut self, id: ClientId, packet: Packet<'_>, sink: &mut Sink) -> Verdict;
    /// A server packet whose header is complete.
    fn server_packet(&mut self, id: ServerId, packet: Packet<'_>, sink: &mut Sink) -> Verdict;
    /// How many bytes at the front of `data`, received from this client, are complete packets that
    /// its server gets as they are. A shorter way for what [`Decisions::client_packet`] would say
    /// of each of them; `Pass(0)` sends the first one there.
    fn client_run(&mut self, _id: ClientId, _data: &[u8], _sink: &mut Sink) -> Run {
        Run::Pass(0)
    }
    /// How many bytes at the front of `data`, received from this server, are complete packets that
    /// its client gets as they are. A shorter way for what [`Decisions::server_packet`] would say
    /// of each of them; 0 sends the first one there.
    fn server_run(&mut self, _id: ServerId, _data: &[u8]) -> usize {
        0
    }
    /// Everything that this server sent so far was complete packets, and its client has been given
    /// all of it. Not called while the server has only the beginning of a packet of that client.
    /// What the core puts into the sink for that client goes out at once.
    fn server_drained(&mut self, id: ServerId, sink: &mut Sink);
    /// The bytes can't be a packet; `raw` are up to 8 of them.
    fn bad_header(&mut self, from: Peer, raw: &[u8]);
    /// The connection is gone; its socket has not been closed yet.
    fn lost(&mut self, peer: Peer, why: Loss);
    /// The server linked to a client.
    fn server_of(&self, id: ClientId) -> Option<ServerId>;
    /// The client linked to a server.
    fn client_of(&self, id: ServerId) -> Option<ClientId>;
    /// True if packets of this client may begin with a length instead of a type byte: what they
    /// mean when it has logged in already is for `client_packet` to say.
    fn in_startup(&self, id: ClientId) -> bool;
    /// True if this connection is read on while everything else comes to rest between two packets
    /// (SUSPEND).
    fn reads_while_suspended(&self, _peer: Peer) -> bool {
        true
    }
    /// True if this connection is read however much it leaves unread itself, as nothing of what it
    /// says comes back to it from us: PostgreSQL goes on only when its answers are taken, and a
    /// walsender hears its client while it sends.
    fn reads_while_unsent(&self, _peer: Peer) -> bool {
        false
    }
    /// The largest packet that this peer may send, in bytes.
    fn max_packet(&self, from: Peer) -> u32;
    /// A job has ended ([`Action::Job`]).
    fn job_done(&mut self, _id: JobId, _outcome: Outcome) {}
    /// Connecting to this address begins; the host's name, if it has one, has been looked up.
    fn dialling(&mut self, id: ServerId, remote: Addr);
    /// The system's words about a connection that can't be opened; `lost` follows.
    fn unreachable(&mut self, _id: ServerId, _why: &str) {}
    /// The host with this name had this address, and has it no more.
    fn address_vanished(&mut self, _host: &str, _addr: IpAddr) {}
    /// A connection to this server is open.
    fn connected(&mut self, id: ServerId, local: Addr, remote: Addr);
    /// TLS has begun on this connection; or, without facts, the server goes on without it.
    fn secured(&mut self, _peer: Peer, _facts: Option<Facts>) {}
    /// Where to connect to.
    fn target(&self, id: ServerId) -> Option<Target>;
}
