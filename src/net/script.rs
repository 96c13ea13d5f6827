//! A wire and decisions that follow a script.

use crate::core::{
    Addr, ClientId, Decisions, Facts, Loss, Packet, Peer, ServerId, Sink, Target, Verdict,
};
use crate::net::conn::Wire;
use crate::net::relay::{Limits, Relay};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::rc::Rc;

/// The far end of a wire, as the test sees it.
pub(super) struct Far {
    /// What it has sent and we have not received.
    pub(super) sent: VecDeque<u8>,
    /// It sends no more.
    pub(super) closed: bool,
    /// What we have sent.
    pub(super) got: Vec<u8>,
    /// How many bytes it takes before sends are refused.
    pub(super) room: usize,
    /// Sends fail.
    pub(super) broken: bool,
    /// A write event is wanted.
    pub(super) wanted: bool,
    pub(super) recvs: u32,
    pub(super) sends: u32,
    pub(super) polls: u32,
}

#[derive(Clone)]
pub(super) struct TestWire(pub(super) Rc<RefCell<Far>>);

impl TestWire {
    pub(super) fn new() -> Self {
        TestWire(Rc::new(RefCell::new(Far {
            sent: VecDeque::new(),
            closed: false,
            got: Vec::new(),
            room: usize::MAX,
            broken: false,
            wanted: false,
            recvs: 0,
            sends: 0,
            polls: 0,
        })))
    }
}

impl Wire for TestWire {
    fn recv(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut far = self.0.borrow_mut();
        far.recvs += 1;
        if far.sent.is_empty() && !far.closed {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = far.sent.len().min(into.len());
        for (to, from) in into.iter_mut().zip(far.sent.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut far = self.0.borrow_mut();
        far.sends += 1;
        if far.broken {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let count = bytes.len().min(far.room);
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        far.room -= count;
        far.got.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn want_write(&mut self, wanted: bool) -> io::Result<()> {
        let mut far = self.0.borrow_mut();
        far.polls += 1;
        far.wanted = wanted;
        Ok(())
    }
}

type Rule = Box<dyn FnMut(Peer, &Packet<'_>, &mut Sink) -> Verdict>;

/// Decides as a rule says, and writes down what it was told.
pub(super) struct Script {
    pub(super) rule: Rule,
    pub(super) links: Vec<(ClientId, ServerId)>,
    pub(super) startup: bool,
    pub(super) max: u32,
    pub(super) log: Vec<String>,
    pub(super) target: Option<Target>,
    /// SUSPEND is for its connections, too.
    pub(super) suspends: bool,
    /// Its connections are read however much they leave unread.
    pub(super) both_ways: bool,
}

impl Script {
    fn packet(&mut self, from: Peer, packet: &Packet<'_>, sink: &mut Sink) -> Verdict {
        assert!(sink.to_client.is_empty() && sink.to_server.is_empty());
        (self.rule)(from, packet, sink)
    }
}

pub(super) fn name(peer: Peer) -> String {
    match peer {
        Peer::Client(id) => format!("C{}", id.index()),
        Peer::Server(id) => format!("S{}", id.index()),
    }
}

impl Decisions for Script {
    fn client_packet(&mut self, id: ClientId, packet: Packet<'_>, sink: &mut Sink) -> Verdict {
        self.packet(Peer::Client(id), &packet, sink)
    }
    fn server_packet(&mut self, id: ServerId, packet: Packet<'_>, sink: &mut Sink) -> Verdict {
        self.packet(Peer::Server(id), &packet, sink)
    }
    fn server_drained(&mut self, id: ServerId, _: &mut Sink) {
        self.log.push(format!("drained {}", name(Peer::Server(id))));
    }
    fn bad_header(&mut self, from: Peer, raw: &[u8]) {
        self.log.push(format!("bad {} {raw:?}", name(from)));
    }
    fn lost(&mut self, peer: Peer, why: Loss) {
        self.log.push(format!("lost {} {why:?}", name(peer)));
    }
    fn server_of(&self, id: ClientId) -> Option<ServerId> {
        self.links.iter().find(|link| link.0 == id).map(|link| link.1)
    }
    fn client_of(&self, id: ServerId) -> Option<ClientId> {
        self.links.iter().find(|link| link.1 == id).map(|link| link.0)
    }
    fn in_startup(&self, _: ClientId) -> bool {
        self.startup
    }
    fn reads_while_suspended(&self, _: Peer) -> bool {
        !self.suspends
    }
    fn reads_while_unsent(&self, _: Peer) -> bool {
        self.both_ways
    }
    fn max_packet(&self, _: Peer) -> u32 {
        self.max
    }
    fn dialling(&mut self, _: ServerId, _: Addr) {}

    fn connected(&mut self, id: ServerId, local: Addr, remote: Addr) {
        let server = name(Peer::Server(id));
        self.log.push(format!("connected {server} {local:?} {remote:?}"));
    }
    fn secured(&mut self, peer: Peer, facts: Option<Facts>) {
        let text = facts.map_or("".into(), |facts| facts.text);
        self.log.push(format!("secured {} {text}", name(peer)));
    }

    fn target(&self, _: ServerId) -> Option<Target> {
        self.target.clone()
    }
}

/// One client, one server, linked, and the relay between them.
pub(super) struct World {
    pub(super) relay: Relay<TestWire>,
    pub(super) core: Script,
    pub(super) client_id: ClientId,
    pub(super) client: Peer,
    pub(super) server: Peer,
    pub(super) client_wire: TestWire,
    pub(super) server_wire: TestWire,
}

impl World {
    pub(super) fn new(
        scratch: usize,
        rule: impl FnMut(Peer, &Packet<'_>, &mut Sink) -> Verdict + 'static,
    ) -> World {
        let limits = Limits { rounds: 5, unsent: 4096 };
        let (client_id, server_id) = (ClientId::from_parts(3, 1), ServerId::from_parts(7, 2));
        let (client_wire, server_wire) = (TestWire::new(), TestWire::new());
        let mut relay = Relay::with_scratch(limits, scratch);
        relay.insert_client(client_id, client_wire.clone());
        relay.insert_server(server_id, server_wire.clone());
        World {
            relay,
            core: Script {
                rule: Box::new(rule),
                links: vec![(client_id, server_id)],
                startup: false,
                max: u32::MAX,
                suspends: false,
                both_ways: false,
                log: Vec::new(),
                target: None,
            },
            client_id,
            client: Peer::Client(client_id),
            server: Peer::Server(server_id),
            client_wire,
            server_wire,
        }
    }

    pub(super) fn wire(&self, peer: Peer) -> &TestWire {
        match peer {
            Peer::Client(_) => &self.client_wire,
            Peer::Server(_) => &self.server_wire,
        }
    }

    /// The far end of `peer` sends; the event arrives.
    pub(super) fn send(&mut self, peer: Peer, bytes: &[u8]) {
        self.wire(peer).0.borrow_mut().sent.extend(bytes);
        self.relay.mark_readable(peer, false);
        self.relay.pump(peer, &mut self.core);
    }

    /// The far end of `peer` closes; the event arrives.
    pub(super) fn close(&mut self, peer: Peer) {
        self.wire(peer).0.borrow_mut().closed = true;
        self.relay.mark_readable(peer, true);
        self.relay.pump(peer, &mut self.core);
    }

    /// The far end of `peer` reads `count` bytes; the event arrives, if one was wanted.
    pub(super) fn room(&mut self, peer: Peer, count: usize) {
        let wanted = {
            let mut far = self.wire(peer).0.borrow_mut();
            far.room += count;
            far.wanted
        };
        if wanted {
            self.relay.flush(peer, &mut self.core);
        }
    }

    /// Takes what we have sent to the far end of `peer`.
    pub(super) fn got(&self, peer: Peer) -> Vec<u8> {
        std::mem::take(&mut self.wire(peer).0.borrow_mut().got)
    }

    pub(super) fn log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.core.log)
    }
}

/// A packet with this tag and body.
pub(super) fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}
