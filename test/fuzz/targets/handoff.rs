//! What another process claims to have known. An input is a series of rows: a byte for the kind, one
//! for the number, two for the length of the rest, the rest. That is the state as it is if the highest
//! bit of the kind is set. Else it is a shorter form of it that no change makes unreadable: a tag, a
//! length, a value; tags and lengths have one byte. The length `OPEN` begins a group, the tag 0 ends it.

use super::scene::configured;
use super::Fields;
use pgturnstile::base::fields::Fields as State;
use pgturnstile::base::{Id, Micros};
use pgturnstile::core::carry::{Kind, Row};
use pgturnstile::core::server::ServerState;
use pgturnstile::core::{Addr, Core, Decisions, Loss, Origin, Peer, Sink};

const FROM: Origin = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
const OPEN: u8 = 255;
/// Fields are no deeper in one another.
const DEPTH: usize = 6;

/// Whatever is claimed, nobody is in a wrong place, and when everybody has left nobody counts; so it
/// is in the process that is told by this one next.
pub(crate) fn handoff(input: &[u8]) {
    let mut core = successor(rows(input));
    act(&mut core);
    let told = core.hand_out(Id::none()).into_iter().map(|(row, _)| row);
    let next = successor(told.collect());
    assert_eq!(core.clients().len(), next.clients().len(), "a client is lost on the way");
    go_on_and_end(core);
    go_on_and_end(next);
}

/// Who has been told this.
fn successor(rows: Vec<Row>) -> Core {
    let mut core = configured(
        "[databases]\nd = host=127.0.0.1 pool_size=1\ne = pool_mode=session\n\
         [peers]\n1 = host=127.0.0.1\n\
         [pgbouncer]\nauth_type = plain\npool_mode = transaction\nadmin_users = w\n",
    );
    core.set_users(["u", "v", "w"].map(|name| (name.into(), b"p".to_vec())).to_vec());
    let (late, rows): (Vec<_>, Vec<_>) =
        rows.into_iter().partition(|row| Core::idle_for(row).is_some());
    let mut taken = core.take_in(rows.into_iter().map(|row| (row, Some(FROM))).collect());
    check(&core);
    for row in late {
        core.take_in_late(&row, FROM, &mut taken);
        act(&mut core);
    }
    core.all_are_in(taken);
    check(&core);
    core
}

fn go_on_and_end(mut core: Core) {
    for _ in 0..3 {
        act(&mut core);
        core.turn_end();
        core.tick();
        check(&core);
        core.now = core.now + Micros::from_secs(1);
    }
    for _ in 0..100 {
        if core.clients().is_empty() && core.servers().is_empty() {
            break;
        }
        for id in core.servers().ids() {
            core.server_drained(id, &mut Sink::default());
        }
        core.clients().ids().into_iter().for_each(|id| core.lost(Peer::Client(id), Loss::Receive));
        core.servers().ids().into_iter().for_each(|id| core.lost(Peer::Server(id), Loss::Receive));
        act(&mut core);
        check(&core);
    }
    assert!(core.clients().is_empty() && core.servers().is_empty(), "somebody stays");
    assert!(core.statements().is_empty(), "a statement is left");
    let counted = core.databases().map(|(_, it)| it.client_count() + it.server_count());
    let counted = counted.chain(core.users().map(|(_, it)| it.client_count() + it.server_count()));
    assert_eq!(counted.sum::<usize>(), 0, "somebody counts");
}

fn rows(input: &[u8]) -> Vec<Row> {
    let (mut fields, mut rows) = (Fields(input), Vec::new());
    while !fields.0.is_empty() {
        let kind = fields.byte();
        let number = fields.byte().into();
        let len = usize::from(fields.byte()) << 8 | usize::from(fields.byte());
        let rest = fields.take(len);
        let state = match kind >> 7 {
            0 => {
                let mut state = State::default();
                fill(&mut state, &mut Fields(rest), DEPTH);
                state.into_bytes()
            }
            _ => rest.to_vec(),
        };
        let kind = Kind::ALL[usize::from(kind & 0x7f) % Kind::ALL.len()];
        rows.push(Row { kind, number, state });
    }
    rows
}

/// Writes what the shorter form says.
fn fill(state: &mut State, from: &mut Fields<'_>, depth: usize) {
    while !from.0.is_empty() {
        let tag = u16::from(from.byte());
        if tag == 0 {
            return;
        }
        match from.byte() {
            OPEN if depth > 0 => state.group(tag, |state| fill(state, from, depth - 1)),
            len => state.put(tag, from.take(len.into())),
        }
    }
}

fn act(core: &mut Core) {
    while core.next_action().is_some() {}
}

fn check(core: &Core) {
    let (mut clients, mut servers) = (core.login_clients().len(), 0);
    let pools = core.pools().map(|(_, pool)| pool);
    for pool in pools.chain(core.peer_pools().map(|(_, _, pool)| pool)) {
        (clients, servers) = (clients + pool.client_count(), servers + pool.server_count());
    }
    assert_eq!((clients, servers), (core.clients().len(), core.servers().len()), "lists");
    for (id, server) in core.servers().iter() {
        assert_eq!(server.state() == ServerState::Active, server.client().is_some(), "links");
        assert!(server.client().is_none_or(|client| core.server_of(client) == Some(id)), "links");
    }
    for (id, client) in core.clients().iter() {
        assert!(client.server().is_none_or(|server| core.client_of(server) == Some(id)), "links");
    }
}
