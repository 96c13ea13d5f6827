//! On the way to TLS: the first byte of a client, the request to a server, handshakes.
//!
//! A connection is not in the relay meanwhile. One handshake goes on per wait: each step may take a
//! millisecond of arithmetic, and everybody else has a turn in between.

use super::conn::Wire;
use super::stream::Socket;
use super::tls::{Progress, ServerTls};
use super::{carry, facts, sys, token_of, Event, Net};
use crate::base::Level;
use crate::core::{Decisions, Facts, Loss, Peer};
use crate::wire::write;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::rc::Rc;

/// The first byte of a TLS handshake; of nothing that PostgreSQL's protocol begins with.
const HANDSHAKE: u8 = 0x16;

/// What is wrong with a server that takes a handshake for which it was not asked, and doesn't know
/// what for.
const NO_PROTOCOL: &str = "server has not chosen the protocol \"postgresql\"";

/// About what a handshake takes and gives back, from between blocks that stay, in bytes.
const HANDSHAKE_MEMORY: usize = 32 * 1024;

/// A connection on its way.
pub(super) struct Shaking {
    stage: Stage,
    hangup: bool,
    queued: bool,
}

enum Stage {
    /// A client has not said anything yet.
    Silent(Socket),
    /// A server has been asked.
    Asked(Socket, String),
    /// The handshake goes on.
    Shaking(Socket, Role),
    /// A keeper goes on with a client's handshake; so much of its facts has been received.
    Told(Socket, Vec<u8>),
}

/// Which side of a handshake we are.
enum Role {
    /// A client's server: the hash of the certificate that we show, which a reload may change.
    Accepts(Rc<[u8]>),
    /// A server's client: the name that its certificate has to have, and whether nobody was asked.
    Connects(Option<String>, bool),
}

/// What a step led to.
enum Step {
    /// Nothing yet.
    Stay(Stage),
    /// Somebody else's turn first.
    Later(Stage),
    /// It may be relayed.
    Enter(Socket, Option<Facts>),
    /// It is lost, for this reason.
    Lost(Loss),
}

impl Net {
    /// Watches a client that may begin with a handshake at once.
    pub(super) fn watch_client(&mut self, peer: Peer, socket: Socket) {
        self.put_shaking(peer, Stage::Silent(socket), false);
    }

    /// Goes over to TLS (`Action::StartTls`).
    pub fn start_tls<D: Decisions>(&mut self, peer: Peer, core: &mut D) {
        let Some((mut socket, hangup)) = self.relay.take_out(peer) else {
            return;
        };
        let host = match peer {
            Peer::Client(_) => None,
            Peer::Server(id) => {
                Some(core.target(id).map_or_else(String::new, |target| target.host))
            }
        };
        let is_direct = host.is_some() && self.tls.server().is_some_and(ServerTls::is_direct);
        let word: &[u8] = match host {
            _ if is_direct => b"",
            Some(_) => &write::SSL_REQUEST,
            None => b"S",
        };
        // Nothing has been sent before, so that there is room.
        if !word.is_empty() && !socket.send(word).is_ok_and(|count| count == word.len()) {
            return core.lost(peer, Loss::Send);
        }
        let step = match host {
            Some(host) if is_direct => self.approach(socket, host),
            Some(host) => Step::Later(Stage::Asked(socket, host)),
            None => self.welcome(socket),
        };
        match step {
            Step::Later(stage) => self.put_shaking(peer, stage, hangup),
            Step::Lost(why) => core.lost(peer, why),
            Step::Stay(_) | Step::Enter(..) => core.lost(peer, Loss::Receive),
        }
    }

    fn put_shaking(&mut self, peer: Peer, stage: Stage, hangup: bool) {
        self.shaking.insert(token_of(peer).0, Shaking { stage, hangup, queued: true });
        self.shake_queue.push_back(peer);
    }

    /// Goes on with a client whose handshake its keeper makes, and has told these bytes of its facts.
    pub(super) fn watch_keeper(&mut self, peer: Peer, socket: Socket, heard: &[u8]) {
        self.put_shaking(peer, Stage::Told(socket, heard.to_vec()), false);
    }

    /// How many clients are in the midst of a handshake.
    pub fn handshakes(&self) -> usize {
        let shakes = |shaking: &&Shaking| match &shaking.stage {
            Stage::Shaking(_, role) => matches!(role, Role::Accepts(_)),
            Stage::Told(..) => true,
            Stage::Silent(_) | Stage::Asked(..) => false,
        };
        self.shaking.values().filter(shakes).count()
    }

    /// A client on its way, for a successor; nothing of a server.
    pub(super) fn shaking_part(&self, peer: Peer) -> Option<carry::Shaking<'_>> {
        match &self.shaking.get(&token_of(peer).0)?.stage {
            Stage::Silent(socket) => Some(carry::Shaking::Silent(socket)),
            Stage::Shaking(_, Role::Accepts(_)) => Some(carry::Shaking::Begun),
            Stage::Told(socket, heard) => Some(carry::Shaking::Told(socket, heard)),
            Stage::Shaking(_, Role::Connects(..)) | Stage::Asked(..) => None,
        }
    }

    /// Of those on their way, the clients whose handshake a keeper can make: their streams and the
    /// hashes of the certificates that we show.
    pub(super) fn into_handshakes(
        shaking: BTreeMap<usize, Shaking>,
    ) -> impl Iterator<Item = (usize, Socket, Rc<[u8]>)> {
        shaking.into_iter().filter_map(|(token, shaking)| match shaking.stage {
            Stage::Shaking(socket, Role::Accepts(end_point)) => Some((token, socket, end_point)),
            _ => None,
        })
    }

    /// Last words for a client that has not said anything: it has not asked for TLS either.
    pub(super) fn send_silent(&mut self, peer: Peer, bytes: &[u8]) {
        let shaking = self.shaking.get_mut(&token_of(peer).0);
        if let Some(Shaking { stage: Stage::Silent(socket), .. }) = shaking {
            // Nothing has been sent before, so that there is room.
            let _ = socket.send(bytes);
        }
    }

    /// An event for a connection that may be on its way; false if it is not.
    pub(super) fn note_shaking(&mut self, peer: Peer, hangup: bool) -> bool {
        let Some(shaking) = self.shaking.get_mut(&token_of(peer).0) else {
            return false;
        };
        shaking.hangup |= hangup;
        if !std::mem::replace(&mut shaking.queued, true) {
            self.shake_queue.push_back(peer);
        }
        true
    }

    /// Gives those on their way a turn: as many as cost nothing, and one that does.
    pub(super) fn let_shake(&mut self) {
        while let Some(peer) = self.shake_queue.pop_front() {
            let Some(shaking) = self.shaking.get(&token_of(peer).0) else {
                continue;
            };
            let costs = matches!(shaking.stage, Stage::Shaking(..));
            self.events.push_back(Event::Handshake(peer));
            if costs {
                break;
            }
        }
    }

    /// Goes on with one.
    pub(super) fn shake<D: Decisions>(&mut self, peer: Peer, core: &mut D) {
        let Some(Shaking { stage, hangup, .. }) = self.shaking.remove(&token_of(peer).0) else {
            return;
        };
        let step = match stage {
            Stage::Silent(socket) => self.look(socket),
            Stage::Asked(socket, host) => self.answered(socket, host),
            Stage::Shaking(socket, role) => self.go_on(socket, role, hangup),
            Stage::Told(socket, heard) => hear(socket, heard),
        };
        match step {
            Step::Stay(stage) => {
                let shaking = Shaking { stage, hangup, queued: false };
                self.shaking.insert(token_of(peer).0, shaking);
            }
            Step::Later(stage) => self.put_shaking(peer, stage, hangup),
            Step::Enter(socket, facts) => self.enter(peer, socket, facts, hangup, core),
            Step::Lost(why) => core.lost(peer, why),
        }
    }

    /// A client's first byte tells whether it begins with TLS (auth 1.2).
    fn look(&mut self, socket: Socket) -> Step {
        match socket.first_byte() {
            Ok(Some(HANDSHAKE)) if self.tls.client().is_some() => self.welcome(socket),
            Ok(Some(_)) => Step::Enter(socket, None),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Step::Stay(Stage::Silent(socket))
            }
            Ok(None) | Err(_) => Step::Lost(Loss::Receive),
        }
    }

    /// Begins the handshake with a client.
    fn welcome(&mut self, socket: Socket) -> Step {
        let Some(tls) = self.tls.client() else {
            return Step::Lost(Loss::Receive);
        };
        let role = Role::Accepts(tls.end_point());
        match tls.begin().map_err(Into::into).and_then(|ssl| socket.encrypted(ssl)) {
            Ok(socket) => Step::Later(Stage::Shaking(socket, role)),
            Err(error) => {
                self.journal.line(Level::Warning, format!("TLS accept error: {error}"));
                Step::Lost(Loss::Receive)
            }
        }
    }

    /// A server's answer to the request (auth 9.4).
    fn answered(&mut self, mut socket: Socket, host: String) -> Step {
        let mut answer = [0; 2];
        let count = match socket.recv(&mut answer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Step::Stay(Stage::Asked(socket, host));
            }
            Ok(0) | Err(_) => return Step::Lost(Loss::Receive),
            Ok(count) => count,
        };
        match (answer, self.tls.server()) {
            ([b'S' | b'N', _], _) if count > 1 => Step::Lost(Loss::TlsAnswerBehind),
            ([b'S', _], Some(_)) => self.approach(socket, host),
            ([b'N', _], Some(tls)) if tls.forbids_plain() => Step::Lost(Loss::TlsRefused),
            ([b'N', _], _) => Step::Enter(socket, None),
            _ => Step::Lost(Loss::TlsAnswer),
        }
    }

    /// Begins the handshake with a server.
    fn approach(&mut self, socket: Socket, host: String) -> Step {
        let Some(tls) = self.tls.server() else {
            return Step::Lost(Loss::TlsSetup);
        };
        let begun = tls.begin(&host);
        let role = Role::Connects(tls.checks_name().then_some(host), tls.is_direct());
        match begun.and_then(|ssl| socket.encrypted(ssl).map_err(|error| error.to_string())) {
            Ok(socket) => Step::Later(Stage::Shaking(socket, role)),
            Err(text) => {
                self.journal.line(Level::Warning, format!("TLS connect error: {text}"));
                Step::Lost(Loss::TlsSetup)
            }
        }
    }

    fn go_on(&mut self, mut socket: Socket, role: Role, hangup: bool) -> Step {
        let Some(session) = socket.session() else {
            return Step::Lost(Loss::Receive);
        };
        session.set_readable(hangup);
        let text = match session.shake() {
            Progress::Reads => return Step::Stay(Stage::Shaking(socket, role)),
            Progress::Writes => match socket.want_write(true) {
                Ok(()) => return Step::Stay(Stage::Shaking(socket, role)),
                Err(error) => format!("handshake failed: {error}"),
            },
            Progress::Done => {
                let (end_point, name, is_direct) = match role {
                    Role::Accepts(end_point) => (Some(end_point), None, false),
                    Role::Connects(name, is_direct) => (None, name, is_direct),
                };
                let is_other = is_direct && !session.speaks_postgres();
                let facts = session.facts(end_point);
                // The end of a handshake of TLS 1.3 gets no other answer.
                let _ = sys::acknowledge(socket.stream());
                let names = facts.names.as_deref();
                let deceived = name.filter(|name| !names.is_some_and(|names| names.include(name)));
                match deceived {
                    None if is_other => NO_PROTOCOL.to_owned(),
                    None => return Step::Enter(socket, Some(facts)),
                    Some(name) => format!("name `{name}' not present in server certificate"),
                }
            }
            Progress::Failed(text) => text,
        };
        self.journal.line(Level::Warning, format!("TLS handshake error: {text}"));
        socket.forget_input();
        Step::Lost(Loss::Receive)
    }

    /// The connection may be relayed.
    fn enter<D: Decisions>(
        &mut self,
        peer: Peer,
        mut socket: Socket,
        facts: Option<Facts>,
        hangup: bool,
        core: &mut D,
    ) {
        let encrypted = facts.is_some();
        if encrypted {
            self.shaken = self.shaken.saturating_add(HANDSHAKE_MEMORY);
        }
        if encrypted && socket.want_write(false).is_err() {
            return core.lost(peer, Loss::Receive);
        }
        let tells = match peer {
            Peer::Client(id) => {
                self.relay.insert_client(id, socket);
                encrypted
            }
            Peer::Server(id) => {
                self.relay.insert_server(id, socket);
                true
            }
        };
        self.relay.mark_readable(peer, hangup);
        if tells {
            core.secured(peer, facts);
        }
        self.relay.pump(peer, core);
    }
}

/// What a keeper tells of a handshake that it has made; no byte of what follows is received.
fn hear(mut socket: Socket, mut heard: Vec<u8>) -> Step {
    loop {
        let missing = match facts::missing(&heard) {
            Some(0) => return Step::Enter(socket, Some(facts::read(&heard))),
            Some(missing) => missing,
            None => return Step::Lost(Loss::Receive),
        };
        let mut room = [0; 1024];
        let most = missing.min(room.len());
        let Some(room) = room.get_mut(..most) else { return Step::Lost(Loss::Receive) };
        match socket.recv(room) {
            Ok(0) => return Step::Lost(Loss::Receive),
            Ok(count) => heard.extend_from_slice(room.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Step::Stay(Stage::Told(socket, heard));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Step::Lost(Loss::Receive),
        }
    }
}
