//! The border of the core: both rings ask it through here. What goes over sets the oracles' own
//! clocks, and each login is compared with the limits on clients.

use crate::auth_query::Lookups;
use crate::cancels;
use crate::moved::Moved;
use crate::speech;
use crate::statistics::{Flow, Speaker};
use pgturnstile::base::Micros;
use pgturnstile::core::client::ClientState;
use pgturnstile::core::pool::PoolId;
use pgturnstile::core::server::ServerState;
use pgturnstile::core::{ClientId, Core, Decisions, Packet, Peer, Run, ServerId, Sink, Verdict};
use pgturnstile::wire::startup::Opening;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Database and user that a client asked for.
pub type Names = (String, String);

/// A StartupMessage that the core has been given.
pub struct Admission {
    /// The client.
    pub id: ClientId,
    /// Its number in log lines.
    pub number: u64,
    /// What it asked for.
    pub names: Names,
    /// Clients that exist; this one, too.
    pub total: usize,
    /// Clients that asked for the same database, the same user; this one, too.
    pub alike: (usize, usize),
    /// What it should be told by the limits of that moment, once that has been found out.
    pub judged: Option<Option<&'static str>>,
}

/// What has gone over the border.
#[derive(Default)]
pub struct Watch {
    /// When a client's last packet was looked at.
    pub heard: BTreeMap<ClientId, Micros>,
    /// When a server's last packet was looked at.
    pub said: BTreeMap<ServerId, Micros>,
    /// Clients that had something for a server in this turn.
    pub asked: BTreeSet<ClientId>,
    /// Clients that were handed ReadyForQuery in this turn.
    pub ready: BTreeSet<ClientId>,
    /// Clients whose query was canceled in this turn while it waited.
    pub canceled: BTreeSet<ClientId>,
    /// Clients that the pooler has answered for the server in this turn, which may end a query of
    /// which the server has been given nothing.
    pub answered: BTreeSet<ClientId>,
    /// Users that are in no list.
    pub unlisted: BTreeSet<String>,
    /// What clients asked for; no database or user if there was none of that name then.
    pub openings: BTreeMap<ClientId, Names>,
    /// Pools that know what to welcome clients with.
    pub welcome: BTreeSet<Names>,
    /// The look-ups that are under way.
    pub lookups: Lookups,
    /// The logins of this turn.
    pub admissions: Vec<Admission>,
    /// What pools must have counted.
    pub flows: BTreeMap<PoolId, Flow>,
}

/// Shared by the world and its net.
pub type Shared = Rc<RefCell<Watch>>;

/// Asks the core about a packet, with a trace line.
pub fn ask(
    watch: &Shared,
    core: &mut Core,
    peer: Peer,
    packet: Packet<'_>,
    sink: &mut Sink,
    tracing: bool,
) -> Verdict {
    let (tag, len, whole) = (packet.tag, packet.len, packet.is_whole());
    let speaker = Speaker::of(core, peer);
    let verdict = match peer {
        Peer::Client(id) => {
            let state = core.clients().get(id).map(|client| client.state());
            if tag == 0 && whole && state == Some(ClientState::Login) {
                watch.borrow_mut().meet(id, packet.seen, core);
            }
            let first = tag == 0 && whole && state == Some(ClientState::Login);
            let target = first.then(|| cancels::waiting_target(core, packet.seen)).flatten();
            let verdict = core.client_packet(id, packet, sink);
            watch.borrow_mut().revoked(target, core);
            if speaker.is_taken(tag, verdict) && matches!(tag, b'P' | b'B' | b'D') {
                let pool = core.clients().get(id).and_then(|client| client.pool());
                let mut bytes = vec![tag];
                bytes.extend_from_slice(&(len - 1).to_be_bytes());
                bytes.extend_from_slice(packet.seen);
                watch.borrow_mut().prepared(pool, &bytes, &sink.to_server, core);
            }
            let ignored = speaker.is_ignored();
            watch.borrow_mut().client(id, state, (tag, verdict, ignored), core.now);
            verdict
        }
        Peer::Server(id) => {
            let client = core.client_of(id);
            let before = core.servers().get(id).map(|server| server.state());
            let verdict = core.server_packet(id, packet, sink);
            let mut watch = watch.borrow_mut();
            if before == Some(ServerState::Login) {
                watch.welcome.extend(greeted(core, id));
            }
            if verdict != Verdict::Whole {
                watch.said.insert(id, core.now);
            }
            // Until it is whole, whoever comes shares what has been found.
            if tag == b'Z' && verdict != Verdict::Whole {
                watch.lookups.ended(id);
            }
            if tag == b'Z' && verdict == Verdict::Pass {
                watch.ready.extend(client);
            }
            verdict
        }
    };
    watch.borrow_mut().counted(speaker, (tag, u64::from(len)), verdict, core);
    if tracing {
        println!("      {peer:?} '{}' {len}: {verdict:?}", tag as char);
    }
    verdict
}

/// Asks the core how much of a client's words passes as it is, with a trace line.
pub fn client_run(
    watch: &Shared,
    core: &mut Core,
    id: ClientId,
    data: &[u8],
    sink: &mut Sink,
    tracing: bool,
) -> Run {
    let waited = core.clients().get(id).is_some_and(|c| c.state() == ClientState::Waiting);
    let run = core.client_run(id, data, sink);
    watch.borrow_mut().client_ran(id, &run, core);
    if let Run::Pass(done) | Run::Replace(done) = run {
        let pool = core.clients().get(id).and_then(|client| client.pool());
        watch.borrow_mut().prepared(pool, &data[..done], &sink.to_server, core);
    }
    if run != Run::Pass(0) && !waited {
        let mut watch = watch.borrow_mut();
        watch.heard.insert(id, core.now);
        watch.asked.insert(id);
    }
    if tracing && run != Run::Pass(0) {
        println!("      {id:?}: {run:?}");
    }
    run
}

/// Asks the core how much of a server's words passes as it is, with a trace line.
pub fn server_run(
    watch: &Shared,
    core: &mut Core,
    id: ServerId,
    data: &[u8],
    tracing: bool,
) -> usize {
    let client = core.client_of(id);
    let len = core.server_run(id, data);
    watch.borrow_mut().server_ran(id, len, core);
    if len > 0 {
        let mut watch = watch.borrow_mut();
        watch.said.insert(id, core.now);
        // A run ends with the first ReadyForQuery at the latest.
        if is_ready_at_end(&data[..len]) {
            watch.ready.extend(client);
        }
        if tracing {
            println!("      {id:?} passes {len} bytes");
        }
    }
    len
}

/// True if the last of these packets is a ReadyForQuery.
fn is_ready_at_end(packets: &[u8]) -> bool {
    let (head, status) = packets.split_at(packets.len().saturating_sub(1));
    head.ends_with(b"Z\0\0\0\x05") && matches!(status, b"I" | b"T" | b"E")
}

/// The pool of a server that has finished its login.
fn greeted(core: &Core, id: ServerId) -> Option<Names> {
    let server = core.servers().get(id).filter(|server| server.state() != ServerState::Login)?;
    let (database, user) = core.pool(server.pool())?.names();
    Some((database.to_owned(), user.to_owned()))
}

impl Watch {
    /// Another core goes on.
    pub fn follow(&mut self, moved: &Moved) {
        moved.apply(&mut self.heard);
        moved.apply(&mut self.said);
        moved.apply(&mut self.asked);
        moved.apply(&mut self.ready);
        moved.apply(&mut self.canceled);
        moved.apply(&mut self.answered);
        moved.apply(&mut self.openings);
        moved.apply(&mut self.flows);
        self.admissions.clear();
        self.lookups.follow(moved);
    }

    /// A successor does not know these databases. Who is logging in goes on as if there had never been
    /// such a one, which is told at the end.
    pub fn lose_databases(&mut self, gone: &BTreeSet<String>) {
        for (id, (database, _)) in &mut self.openings {
            if gone.contains(database) {
                database.clear();
                self.lookups.lose(*id);
            }
        }
    }

    fn client(
        &mut self,
        id: ClientId,
        state: Option<ClientState>,
        (tag, verdict, ignored): (u8, Verdict, bool),
        now: Micros,
    ) {
        // Who waits in the queue is not looked at, and a login's packet only when it is whole.
        let counts = match state {
            Some(ClientState::Active) => true,
            Some(ClientState::Login) => !matches!(verdict, Verdict::Whole | Verdict::Wait),
            _ => false,
        };
        if counts {
            self.heard.insert(id, now);
        }
        // What the pooler answers for the server is asked all the same, but for Close.
        let passes = verdict != Verdict::Drop || matches!(tag, b'P' | b'Q') && !ignored;
        let for_server = b"QFPBDCESHdcf".contains(&tag) && passes;
        if state == Some(ClientState::Active) && for_server {
            self.asked.insert(id);
        }
        if verdict == Verdict::Drop && matches!(tag, b'P' | b'C' | b'H') && !ignored {
            self.answered.insert(id);
        }
    }

    fn meet(&mut self, id: ClientId, body: &[u8], core: &Core) {
        let Opening::Startup { parameters, .. } = Opening::read(body) else {
            return;
        };
        let mut names = Names::default();
        let mut rest = parameters;
        while rest.len() > 1 {
            let (name, after) = speech::text(rest);
            let (value, after) = speech::text(after);
            rest = after;
            match name.as_str() {
                "database" => names.0 = value,
                "user" => names.1 = value,
                _ => {}
            }
        }
        // What does not exist now may come to exist, but not for this client.
        let meant = if exists(core, &names.0) { names.0.clone() } else { String::new() };
        if !meant.is_empty() {
            self.lookups.meet(id, &names.1, core.now);
        }
        let user = if self.unlisted.contains(&names.1) { "" } else { names.1.as_str() };
        self.openings.insert(id, (meant, user.to_owned()));
        let alive = self.openings.iter().filter(|(id, _)| core.clients().get(**id).is_some());
        let (mut of_database, mut of_user) = (0, 0);
        // Whose user is being looked up counts as nobody's yet, nor does who asked for nothing that
        // exists and still proves who it is.
        let nobody = |id, database: &str| {
            let client = core.clients().get(id);
            !exists(core, database) || client.is_some_and(|client| client.is_looked_up())
        };
        for (id, (database, user)) in alive {
            of_database += usize::from(*database == names.0);
            of_user += usize::from(*user == names.1 && !nobody(*id, database));
        }
        let total = core.clients().len();
        let number = core.clients().get(id).map_or(0, |client| client.number());
        let alike = (of_database, of_user);
        self.admissions.push(Admission { id, number, names, total, alike, judged: None });
    }

    /// Forgets who is gone, and what belongs to one turn.
    pub fn turn_over(&mut self, core: &Core) {
        self.asked.clear();
        self.ready.clear();
        self.canceled.clear();
        self.answered.clear();
        self.admissions.clear();
        self.heard.retain(|id, _| core.clients().get(*id).is_some());
        self.openings.retain(|id, _| core.clients().get(*id).is_some());
        self.said.retain(|id, _| core.servers().get(*id).is_some());
    }
}

fn exists(core: &Core, database: &str) -> bool {
    core.databases().any(|(_, known)| &**known.name() == database)
}
