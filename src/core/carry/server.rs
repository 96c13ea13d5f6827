//! Servers: those that have logged in, and connections that have sent a cancel request.

use super::super::attrs::{Question, Traits};
use super::super::client::{Client, ClientState};
use super::super::connect;
use super::super::face::{Origin, Peer, ServerId};
use super::super::fault;
use super::super::replies::Replies;
use super::super::server::{Carries, Server, ServerState, Status};
use super::super::Core;
use super::parts::{self, number_of, value_of, Place};
use super::{login, Each, Kind, Known, Row, NUMBER_MAX};
use crate::base::fields::{is_whole, read, Field, Fields};
use crate::base::{Id, Micros};
use crate::tags;

tags! {
    /// What is told of a server; a time is how long ago it was, in microseconds.
    SERVER_TAGS:
    1 STATE "1 idle, 2 linked, 3 to be checked, 4 tested, 5 carries a cancel request, 6 is canceled",
    2 POOL "its pool",
    3 STATUS "0 ready, 1 reserved, 2 busy, 3 in a transaction, 4 in a failed one",
    4 DELIVERED "all that it sent was complete packets and has been delivered",
    5 CLOSE_NEEDED "to be closed as soon as it is free",
    6 REPLICATION "what it was asked for: 1 logical replication, 2 physical",
    7 CLIENT "number of the client that it is linked to",
    8 LAST_PACKET "when its last packet came",
    9 REPLIES "what it owes",
    10 SHELF "its prepared statements",
    11 PARAMETER "a tracked parameter: its name, zero, its value",
    12 KEY "its cancel key",
    13 CARRIES "the cancel request that it carries: 1 to a server, 2 to a peer",
    14 TARGET "number of the server that it carries one to",
    15 HOST "which element of a list of hosts it is connected to",
    16 HOT_STANDBY "in_hot_standby as it reports it: 1 off, 2 on",
    17 DEFAULT_READ_ONLY "default_transaction_read_only as it reports it: 1 off, 2 on",
    18 IN_RECOVERY "what it has answered when it was asked: 1 no, 2 yes",
    19 READ_ONLY "what it has answered when it was asked: 1 no, 2 yes",
    20 ASKED "what it is being asked: 1 whether it is read-only, 2 whether it is a standby",
    21 SPURNED "it will do no longer: a standby has been found, or is to be looked for",
    22 CONNECT_TIME "when connecting began",
    23 REMOTE "its end of the connection",
    24 LOCAL "our end",
    25 TLS "what is known of it if it is encrypted",
}

/// The numbers of states. Who is still logging in is not told of.
const STATES: [ServerState; 7] = [
    ServerState::Login,
    ServerState::Idle,
    ServerState::Active,
    ServerState::Used,
    ServerState::Tested,
    ServerState::ActiveCancel,
    ServerState::BeingCanceled,
];

/// The numbers of statuses.
const STATUSES: [Status; 5] = [
    Status::Ready,
    Status::Reserved,
    Status::Busy,
    Status::InTransaction,
    Status::InFailedTransaction,
];

/// The numbers of what is known of a server.
const SIGNS: [Option<bool>; 3] = [None, Some(false), Some(true)];

/// The numbers of questions.
const QUESTIONS: [Option<Question>; 3] = [None, Some(Question::ReadOnly), Some(Question::Recovery)];

/// A server whose row has been read, with what refers to others.
pub(super) struct Newcomer {
    pub(super) id: ServerId,
    status: Status,
    /// The client that it is linked to, by number; 0 if none.
    pub(super) client: u64,
    carries: u64,
    target: u64,
}

impl Core {
    /// True if a server goes over to a successor.
    pub(super) fn is_handed_out(&self, id: ServerId) -> bool {
        let Some(server) = self.servers.get(id) else { return false };
        let client = server.client.and_then(|client| self.clients.get(client));
        server.state != ServerState::Login
            && !server.is_looking_up()
            && !client.is_some_and(login::begins_anew)
    }

    /// The rows of servers, each pool's in the order of its lists.
    pub(super) fn tell_servers<E>(&self, each: Each<'_, E>) -> Result<(), E> {
        for pool in self.all_pools().into_iter().filter_map(|id| self.pools.get(id)) {
            for (state, _) in ServerState::SHOWN {
                for id in pool.servers(state).ids(&self.servers) {
                    let server = self.servers.get(id).filter(|_| self.is_handed_out(id));
                    let Some(server) = server else { continue };
                    let mut fields = Fields::default();
                    parts::put_place(&mut fields, POOL, pool);
                    self.hand_out_server(server, &mut fields);
                    let state = fields.into_bytes();
                    let row = Row { kind: Kind::Server, number: server.number, state };
                    each(&row, Some(Peer::Server(id)))?;
                }
            }
        }
        Ok(())
    }

    fn hand_out_server(&self, server: &Server, fields: &mut Fields) {
        let Server {
            state,
            status,
            delivered,
            close_needed,
            replication,
            client,
            // Written by the caller.
            pool: _pool,
            last_packet,
            replies,
            shelf,
            vars,
            // Rows come in the order of the lists.
            links: _links,
            key,
            carries,
            // As many as carry requests to it.
            cancels_in_flight: _cancels_in_flight,
            host,
            traits,
            connect_time,
            // The row itself has it.
            number: _number,
            remote,
            local,
            // It has logged in.
            login: _login,
            tls,
        } = server;
        let now = self.now;
        fields.number(STATE, number_of(&STATES, state));
        fields.count(STATUS, number_of(&STATUSES, status));
        fields.flag(DELIVERED, *delivered);
        fields.flag(CLOSE_NEEDED, *close_needed);
        parts::put_replication(fields, REPLICATION, *replication);
        let client = client.and_then(|client| self.clients.get(client));
        fields.count(CLIENT, client.map_or(0, Client::number));
        fields.since(LAST_PACKET, *last_packet, now);
        fields.group(REPLIES, |fields| replies.hand_out(fields));
        if let Some(shelf) = shelf {
            fields.group(SHELF, |fields| self.statements.hand_out_shelf(shelf, fields));
        }
        parts::put_vars(fields, PARAMETER, &self.tracked, vars);
        if let Some(key) = key {
            fields.number(KEY, *key);
        }
        match carries {
            Carries::Nothing => {}
            Carries::ToServer(target) => {
                fields.number(CARRIES, 1);
                fields.count(TARGET, self.number_of_server(Some(*target)));
            }
            Carries::ToPeer => fields.number(CARRIES, 2),
        }
        fields.count(HOST, (*host).into());
        hand_out_traits(*traits, fields);
        fields.since(CONNECT_TIME, *connect_time, now);
        parts::put_addr(fields, REMOTE, *remote);
        parts::put_addr(fields, LOCAL, *local);
        parts::put_facts(fields, TLS, tls.as_deref());
    }

    /// Reads all servers, as far as they can be without the others.
    pub(super) fn take_in_servers(
        &mut self,
        rows: &[(Row, Option<Origin>)],
        known: &mut Known,
        peers: &mut [Option<Peer>],
    ) -> Vec<Newcomer> {
        let mut newcomers = Vec::new();
        for ((row, origin), peer) in rows.iter().zip(peers) {
            let is_number = (1..=NUMBER_MAX).contains(&row.number);
            let is_new = is_number && !known.numbers.contains_key(&row.number);
            let (true, Kind::Server, Some(origin)) = (is_new, row.kind, origin) else { continue };
            let Some(newcomer) = self.take_in_server(row, *origin, known) else {
                let number = row.number;
                let line = format!("a server of the old process is left: record {number}");
                self.journal.line(crate::base::Level::Warning, line);
                continue;
            };
            *peer = Some(Peer::Server(newcomer.id));
            known.numbers.insert(row.number, Peer::Server(newcomer.id));
            newcomers.push(newcomer);
        }
        newcomers
    }

    fn take_in_server(&mut self, row: &Row, origin: Origin, known: &Known) -> Option<Newcomer> {
        let of = |tag| read(&row.state).find(|field| field.tag == tag);
        let value = |tag| of(tag).map_or(0, |field| field.number());
        let state = value_of(&STATES, value(STATE)).filter(|state| *state != ServerState::Login)?;
        let status = value_of(&STATUSES, value(STATUS))?;
        let replies = Replies::take_in(of(REPLIES).map_or(b"", |field| field.value))?;
        let pool = self.pool_at(&Place::read(of(POOL)?.value))?;
        let found = self.pools.get(pool)?;
        let is_carrier = state == ServerState::ActiveCancel;
        let fits = found.peer.is_none() || is_carrier;
        if !fits || found.is_console() || !is_whole(&row.state) {
            return None;
        }
        let shelf = match of(SHELF) {
            Some(field) => {
                let statement = |number| known.statement(number);
                Some(Box::new(self.statements.take_in_shelf(field.value, statement)?))
            }
            None => None,
        };
        let last_number = self.last_number;
        let id = connect::insert(self, pool, u32::try_from(value(HOST)).unwrap_or(0));
        self.last_number = last_number.max(row.number);
        self.restate_server(id, state);
        let now = self.now;
        let server = self.servers.get_mut(id)?;
        server.number = row.number;
        server.login = None;
        server.delivered = false;
        (server.status, server.replies, server.shelf) = (status, replies, shelf);
        (server.remote, server.local) = (origin.remote, origin.local);
        let mut is_ahead = false;
        for field in read(&row.state) {
            match field.tag {
                PARAMETER => {
                    is_ahead |= !parts::take_in_var(&mut server.vars, &self.tracked, field);
                }
                _ => server.take_in(field, now),
            }
        }
        // What nobody has tracked nobody knows of it; what nobody tracks any more would stay as its
        // last client wanted it.
        let is_behind = (0..self.tracked.len()).any(|at| !known.tracked.contains(&at));
        let is_moved = known.moved.contains(&pool);
        server.close_needed |= (is_moved || is_behind || is_ahead) && !is_carrier;
        self.shared.share(&mut server.vars);
        let (client, carries) = (value(CLIENT), value(CARRIES));
        Some(Newcomer { id, status, client, carries, target: value(TARGET) })
    }

    /// Links a server with its client, if both say so.
    pub(super) fn tie_newcomer(&mut self, newcomer: &Newcomer, wanted: u64, known: &Known) {
        let Some(client_id) = known.client(newcomer.client) else { return };
        let (Some(client), Some(server)) =
            (self.clients.get(client_id), self.servers.get_mut(newcomer.id))
        else {
            return;
        };
        let fits = client.state == ClientState::Active
            && server.state == ServerState::Active
            && client.server.is_none()
            && client.console.is_none()
            && client.pool == Some(server.pool)
            && wanted == server.number;
        if fits {
            self.tie(client_id, newcomer.id);
            if let Some(server) = self.servers.get_mut(newcomer.id) {
                server.status = newcomer.status;
            }
        }
    }

    /// Everybody is there: which cancel requests a server carries. False if it makes no sense.
    pub(super) fn settle_in_server(&mut self, newcomer: &Newcomer, known: &Known) -> bool {
        let target = known.server(newcomer.target);
        let carries = match newcomer.carries {
            1 => Carries::ToServer(target.unwrap_or(Id::none())),
            2 => Carries::ToPeer,
            _ => Carries::Nothing,
        };
        let Some(server) = self.servers.get_mut(newcomer.id) else { return true };
        let is_carrier = server.state == ServerState::ActiveCancel;
        if is_carrier != (carries != Carries::Nothing) {
            return false;
        }
        server.carries = carries;
        let is_linked = server.client.is_some() == (server.state == ServerState::Active);
        if let Some(target) = target.filter(|_| is_carrier) {
            if let Some(target) = self.servers.get_mut(target) {
                target.cancels_in_flight = target.cancels_in_flight.saturating_add(1);
            }
        }
        is_linked
    }

    /// Closes servers that have nothing to wait for, and who can't go on.
    pub(super) fn close_newcomers(&mut self, newcomers: &[Newcomer], refused: &[ServerId]) {
        for id in refused {
            self.close_server(*id, &fault::SERVER_CONN_CRASHED, true);
        }
        for newcomer in newcomers {
            let is_over = |server: &Server| {
                server.state == ServerState::BeingCanceled && server.cancels_in_flight == 0
            };
            if self.servers.get(newcomer.id).is_some_and(is_over) {
                self.release(newcomer.id);
            }
        }
    }
}

fn hand_out_traits(traits: Traits, fields: &mut Fields) {
    let Traits { hot_standby, default_read_only, in_recovery, read_only, asked, spurned } = traits;
    fields.count(HOT_STANDBY, number_of(&SIGNS, &hot_standby));
    fields.count(DEFAULT_READ_ONLY, number_of(&SIGNS, &default_read_only));
    fields.count(IN_RECOVERY, number_of(&SIGNS, &in_recovery));
    fields.count(READ_ONLY, number_of(&SIGNS, &read_only));
    fields.count(ASKED, number_of(&QUESTIONS, &asked));
    fields.flag(SPURNED, spurned);
}

impl Server {
    /// Reads a field that is about nobody else.
    fn take_in(&mut self, field: Field<'_>, now: Micros) {
        let sign = || value_of(&SIGNS, field.number()).flatten();
        match field.tag {
            DELIVERED => self.delivered = true,
            CLOSE_NEEDED => self.close_needed = true,
            REPLICATION => self.replication = parts::replication(field).unwrap_or_default(),
            LAST_PACKET => self.last_packet = field.since(now),
            KEY => self.key = Some(field.number()),
            HOT_STANDBY => self.traits.hot_standby = sign(),
            DEFAULT_READ_ONLY => self.traits.default_read_only = sign(),
            IN_RECOVERY => self.traits.in_recovery = sign(),
            READ_ONLY => self.traits.read_only = sign(),
            ASKED => self.traits.asked = value_of(&QUESTIONS, field.number()).flatten(),
            SPURNED => self.traits.spurned = true,
            CONNECT_TIME => self.connect_time = field.since(now),
            REMOTE => self.remote = parts::addr(field),
            LOCAL => self.local = parts::addr(field),
            TLS => self.tls = Some(Box::new(parts::facts(field))),
            _ => {}
        }
    }
}
