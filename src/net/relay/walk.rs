//! One pass over received bytes: packet by packet, verdict by verdict.

use super::{link, Relay, SCRATCH};
use crate::core::{Decisions, Loss, Packet, Peer, Run, Sink, Verdict};
use crate::net::conn::{Conn, Flow, Wire};
use crate::wire::frame::{Frame, Framer};
use std::mem;
use std::ops::Range;

/// A run of at most this many bytes is copied behind what the pooler says, to save a send.
const JOIN: usize = 4096;
/// The joining buffer is given up when it has grown beyond this many bytes.
const JOINED_MAX: usize = 64 * 1024;

/// One pass over received bytes. `run` and `joined` are what goes to `to` next: `joined` first.
struct Walk<'a> {
    from: Peer,
    data: &'a [u8],
    at: usize,
    flow: Flow,
    max: u32,
    to: Option<Peer>,
    joined: Vec<u8>,
    run: Range<usize>,
}

impl Walk<'_> {
    fn run_bytes(&self) -> &[u8] {
        self.data.get(self.run.clone()).unwrap_or_default()
    }

    fn left(&self) -> usize {
        self.data.len().saturating_sub(self.at)
    }

    fn begin(&mut self, drop: u32, len: u32, to: Option<Peer>) -> Step {
        let drop = if to.is_some() { drop.min(len) } else { len };
        self.flow = Flow { drop, pass: len.saturating_sub(drop), to, want: 0 };
        Step::Go
    }
}

enum Step {
    /// Look at the next packet.
    Go,
    /// Keep what is left for later.
    Leave,
    /// Nothing of what is left matters.
    Forget,
}

/// How many bytes at the front pass as they are.
fn ask<D: Decisions>(from: Peer, data: &[u8], sink: &mut Sink, core: &mut D) -> Run {
    match from {
        Peer::Client(id) => core.client_run(id, data, sink),
        Peer::Server(id) => Run::Pass(core.server_run(id, data).min(data.len())),
    }
}

impl<W: Wire> Relay<W> {
    /// The short way: if nothing is pending on this connection, asks the core for the whole packets
    /// at the front that pass as they are. If that is all of `data` it is handed on at once; else
    /// [`Relay::walk`] has to go on behind these bytes.
    pub(super) fn run<D: Decisions>(&mut self, from: Peer, data: &[u8], core: &mut D) -> Run {
        let is_between = |conn: &Conn<W>| conn.flow.at_boundary() && conn.flow.want == 0;
        if !self.conns.get(from).is_some_and(is_between) {
            return Run::Pass(0);
        }
        let run = ask(from, data, &mut self.sink, core);
        if run == Run::Pass(data.len()) || run == Run::Replace(data.len()) {
            if let Some(conn) = self.conns.get_mut(from) {
                conn.ask = false;
                conn.undrained = true;
            }
            match (run, link(from, core)) {
                (Run::Replace(_), to) => self.deliver_said(to, core),
                (_, Some(to)) => self.deliver(to, data, core),
                _ => {}
            }
        }
        if let (Run::Wait, Some(conn)) = (run, self.conns.get_mut(from)) {
            conn.ask = false;
            conn.waiting = true;
        }
        run
    }

    /// What the core said to the server is all that goes there.
    fn deliver_said<D: Decisions>(&mut self, to: Option<Peer>, core: &mut D) {
        let mut said = mem::take(&mut self.sink.to_server);
        if let Some(to) = to {
            self.deliver(to, &said, core);
        }
        said.clear();
        self.sink.to_server = said;
    }

    /// Decides and hands on as much of `data` as possible, of which the first bytes are decided
    /// already as `run` says; returns how many bytes are done with.
    pub(super) fn walk<D: Decisions>(
        &mut self,
        from: Peer,
        data: &[u8],
        run: Run,
        core: &mut D,
    ) -> usize {
        let Some(conn) = self.conns.get_mut(from) else {
            return data.len();
        };
        conn.ask = false;
        conn.undrained = true;
        let mut walk = Walk {
            from,
            data,
            at: 0,
            flow: conn.flow,
            max: core.max_packet(from),
            to: None,
            joined: mem::take(&mut self.joined),
            run: 0..0,
        };
        match run {
            Run::Pass(run) if run > 0 => {
                walk.flow.pass = run as u32;
                walk.flow.to = link(from, core);
            }
            Run::Replace(run) => {
                walk.at = run;
                self.say(&mut walk, core);
            }
            Run::Pass(_) | Run::Wait => {}
        }
        if walk.flow.pass > 0 && walk.flow.to != link(from, core) {
            // The rest of a packet is for nobody but the one who got its beginning.
            self.cut(walk.flow.to);
            walk.flow.drop = walk.flow.drop.saturating_add(walk.flow.pass);
            walk.flow.pass = 0;
        }
        loop {
            self.carry(&mut walk, core);
            if walk.left() == 0 {
                break;
            }
            match self.decide(&mut walk, core) {
                Step::Go => {}
                Step::Leave => break,
                Step::Forget => {
                    walk.at = data.len();
                    break;
                }
            }
        }
        self.let_out(&mut walk, core);
        if walk.joined.capacity() <= JOINED_MAX {
            self.joined = walk.joined;
        }
        if walk.flow.pass > 0 {
            if let Some(to) = walk.flow.to.and_then(|to| self.conns.get_mut(to)) {
                to.half_from = Some(from);
            }
        }
        if let Some(conn) = self.conns.get_mut(from) {
            conn.flow = walk.flow;
        }
        walk.at
    }

    /// Moves over the bytes of the packet in progress.
    fn carry<D: Decisions>(&mut self, walk: &mut Walk<'_>, core: &mut D) {
        let dropped = walk.left().min(walk.flow.drop as usize);
        walk.flow.drop = walk.flow.drop.saturating_sub(dropped as u32);
        walk.at = walk.at.saturating_add(dropped);
        let passed = walk.left().min(walk.flow.pass as usize);
        if passed == 0 {
            return;
        }
        walk.flow.pass = walk.flow.pass.saturating_sub(passed as u32);
        let start = walk.at;
        walk.at = start.saturating_add(passed);
        if walk.to != walk.flow.to {
            self.let_out(walk, core);
            walk.to = walk.flow.to;
        }
        if walk.run.is_empty() {
            walk.run = start..walk.at;
        } else if walk.run.end == start {
            walk.run.end = walk.at;
        } else {
            self.join(walk, core);
            walk.run = start..walk.at;
        }
    }

    /// Asks the core about the packet at the front of what is left.
    fn decide<D: Decisions>(&mut self, walk: &mut Walk<'_>, core: &mut D) -> Step {
        let from = walk.from;
        let rest = walk.data.get(walk.at..).unwrap_or_default();
        let run = ask(from, rest, &mut self.sink, core);
        if run != Run::Pass(0) {
            return self.take_run(walk, run, core);
        }
        let startup = match (from, rest.first()) {
            (Peer::Client(id), Some(0)) => core.in_startup(id),
            _ => false,
        };
        let max = walk.max;
        let (tag, len) = match (Framer { startup, max }).first(rest) {
            Frame::NeedMore => return Step::Leave,
            // The limit may have risen with a packet before this one: login is over.
            Frame::Bad(_) if core.max_packet(from) != max => {
                walk.max = core.max_packet(from);
                return Step::Go;
            }
            Frame::Bad(raw) => {
                self.let_out(walk, core);
                core.bad_header(from, raw);
                return self.stop(walk);
            }
            Frame::Packet { tag, len } => (tag, len),
        };
        let here = rest.len().min(len as usize);
        if here < walk.flow.want as usize {
            return Step::Leave;
        }
        let header = if tag == 0 { 4 } else { 5 };
        let packet = Packet {
            tag,
            len,
            seen: rest.get(header..here).unwrap_or_default(),
            behind: rest.len() > here,
        };
        let verdict = match from {
            Peer::Client(id) => core.client_packet(id, packet, &mut self.sink),
            Peer::Server(id) => core.server_packet(id, packet, &mut self.sink),
        };
        if !(self.sink.to_client.is_empty() && self.sink.to_server.is_empty()) {
            self.say(walk, core);
            if self.conns.get(from).is_none_or(|conn| conn.lost) {
                return self.stop(walk);
            }
        }
        let want = match verdict {
            Verdict::Pass => return walk.begin(0, len, link(from, core)),
            Verdict::Replace { skip } => return walk.begin(skip, len, link(from, core)),
            Verdict::Drop => return walk.begin(len, len, None),
            Verdict::Stop => return self.stop(walk),
            Verdict::Wait => {
                self.set_waiting(from);
                0
            }
            Verdict::Whole => len,
            Verdict::Need(body) => len.min(packet.header_len().saturating_add(body)),
        };
        if want > 0 && here >= want as usize {
            // It asks for what it has been given: better to lose the connection than to loop.
            self.let_out(walk, core);
            self.lose(from, Loss::Receive, core);
            return self.stop(walk);
        }
        walk.flow.want = want;
        Step::Leave
    }

    /// The core has decided about a run of packets.
    fn take_run<D: Decisions>(&mut self, walk: &mut Walk<'_>, run: Run, core: &mut D) -> Step {
        match run {
            Run::Pass(run) => walk.begin(0, run as u32, link(walk.from, core)),
            Run::Replace(run) => {
                self.say(walk, core);
                walk.begin(run as u32, run as u32, None)
            }
            Run::Wait => {
                self.set_waiting(walk.from);
                walk.flow.want = 0;
                Step::Leave
            }
        }
    }

    fn set_waiting(&mut self, peer: Peer) {
        if let Some(conn) = self.conns.get_mut(peer) {
            conn.waiting = true;
        }
    }

    fn stop(&mut self, walk: &mut Walk<'_>) -> Step {
        walk.flow = Flow::default();
        if let Some(conn) = self.conns.get_mut(walk.from) {
            conn.stopped = true;
        }
        Step::Forget
    }

    /// Empties the sink: to the source at once, to its peer behind the run.
    fn say<D: Decisions>(&mut self, walk: &mut Walk<'_>, core: &mut D) {
        let Sink { to_client, to_server } = mem::take(&mut self.sink);
        let (mut back, mut across) = match walk.from {
            Peer::Client(_) => (to_client, to_server),
            Peer::Server(_) => (to_server, to_client),
        };
        if !back.is_empty() {
            self.spoke_to(walk.from);
            self.deliver(walk.from, &back, core);
        }
        if let (false, Some(to)) = (across.is_empty(), link(walk.from, core)) {
            if walk.to != Some(to) {
                self.let_out(walk, core);
                walk.to = Some(to);
            }
            self.spoke_to(to);
            self.join(walk, core);
            walk.joined.extend_from_slice(&across);
        }
        for said in [&mut back, &mut across] {
            said.clear();
            if said.capacity() > JOINED_MAX {
                *said = Vec::new();
            }
        }
        self.sink = match walk.from {
            Peer::Client(_) => Sink { to_client: back, to_server: across },
            Peer::Server(_) => Sink { to_client: across, to_server: back },
        };
    }

    /// Puts the run behind the joined bytes, or sends both if they are many.
    fn join<D: Decisions>(&mut self, walk: &mut Walk<'_>, core: &mut D) {
        if walk.run.len() > JOIN || walk.joined.len() > SCRATCH {
            self.let_out(walk, core);
            return;
        }
        let run = walk.data.get(walk.run.clone()).unwrap_or_default();
        walk.joined.extend_from_slice(run);
        walk.run = 0..0;
    }

    /// Sends what has been gathered for the present destination.
    fn let_out<D: Decisions>(&mut self, walk: &mut Walk<'_>, core: &mut D) {
        let Some(to) = walk.to else {
            return;
        };
        if !walk.joined.is_empty() {
            if walk.run.len() <= JOIN {
                let run = walk.data.get(walk.run.clone()).unwrap_or_default();
                walk.joined.extend_from_slice(run);
                walk.run = 0..0;
            }
            self.deliver(to, &walk.joined, core);
            walk.joined.clear();
        }
        if !walk.run.is_empty() {
            self.deliver(to, walk.run_bytes(), core);
            walk.run = 0..0;
        }
    }
}
