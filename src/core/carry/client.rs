//! Clients.

use super::super::client::{Client, ClientState, Counted};
use super::super::face::{ClientId, Origin, Peer, ServerId};
use super::super::fault::{self, Fault};
use super::super::revoke::Revoked;
use super::super::server::{Carries, ServerState};
use super::super::Core;
use super::parts::{self, number_of, value_of, Place};
use super::{login, Each, Kind, Known, Row, NUMBER_MAX};
use crate::base::fields::{is_whole, read, Field, Fields};
use crate::base::{Level, Micros};
use crate::config::PoolMode;
use crate::tags;

tags! {
    /// What is told of a client; a time is how long ago it was, in microseconds.
    CLIENT_TAGS:
    1 STATE "0 logging in, 1 logged in, 2 waiting, 3 a cancel request that waits, 4 one that is sent",
    2 POOL "its pool, once that is known",
    3 SERVER "number of the server that it is linked to",
    4 LAST_PACKET "when its last packet came",
    5 QUERY_START "when the query began that is not finished",
    6 TRANSACTION_START "when the transaction began",
    7 WAIT_START "when it began to wait",
    8 WELCOMED "it has been told that it is logged in",
    9 NOTIFIED "it has been told that it waits",
    10 COUNTED "whose limits it counts against: 0 nobody's, 1 its database's, 2 its user's, too",
    11 REPLICATION "what it has asked for: 1 logical replication, 2 physical",
    12 OPTIONS "the start-up parameter `options` of a replication client",
    13 PARAMETER "a tracked parameter: its name, zero, its value",
    14 LOGIN_USER "name of the user that it has logged in as, if that is a known one",
    15 USER_NAME "the user name that it gave",
    16 DATABASE_NAME "the database name that it gave",
    17 CANCEL_KEY "the key that it was given; of a cancel request, the one that it takes to a peer",
    18 CANCELS "number of the server that a cancel request is aimed at, or that carries it",
    19 REVOKED "its query has been canceled: 1 and nothing said yet, 2 and the rest is ignored",
    20 CONNECT_TIME "when it was accepted",
    21 REMOTE "its end of the connection",
    22 LOCAL "our end",
    23 UID "user id of the process at the other end of a Unix socket",
    24 LOGIN "how far its login is",
    25 CONSOLE "what it is as a console",
    26 NAMES "its prepared statements",
    27 TLS "what is known of it if it is encrypted",
    28 WAS_REVOKED "requests of it have been ignored for a canceled query",
}

/// The numbers of states. Who shares a look-up is told as logging in.
const STATES: [ClientState; 5] = [
    ClientState::Login,
    ClientState::Active,
    ClientState::Waiting,
    ClientState::WaitingCancel,
    ClientState::ActiveCancel,
];

/// The numbers of what a client counts against.
const COUNTED_BY: [Counted; 3] = [Counted::Nowhere, Counted::Database, Counted::DatabaseAndUser];

/// The numbers of what is left of a canceled query.
const REVOKED_AS: [Option<Revoked>; 3] = [None, Some(Revoked::Whole), Some(Revoked::Rest)];

/// A client whose row has been read, with what refers to others.
pub(super) struct Newcomer<'a> {
    pub(super) id: ClientId,
    /// The server that it is linked to, by number; 0 if none.
    pub(super) server: u64,
    cancels: u64,
    counted: Counted,
    login: Option<&'a [u8]>,
    console: Option<&'a [u8]>,
    names: Option<&'a [u8]>,
    options: Option<&'a [u8]>,
    /// Values of parameters that are not tracked here.
    untracked: Vec<Field<'a>>,
    /// What it is closed for when everybody is there.
    pub(super) refusal: Option<Fault>,
}

impl Core {
    /// The rows of clients: those that are logging in, then each pool's in the order of its lists.
    pub(super) fn tell_clients<E>(&self, except: ClientId, each: Each<'_, E>) -> Result<(), E> {
        let mut ids = self.login_clients.ids(&self.clients);
        for pool in self.all_pools().into_iter().filter_map(|id| self.pools.get(id)) {
            use ClientState as S;
            for state in [S::Active, S::Waiting, S::Joined, S::WaitingCancel, S::ActiveCancel] {
                ids.extend(pool.clients(state).ids(&self.clients));
            }
        }
        let mut row = Row { kind: Kind::Client, number: 0, state: Vec::new() };
        for id in ids.into_iter().filter(|id| *id != except) {
            let Some(client) = self.clients.get(id) else { continue };
            let mut fields = Fields::over(row.state);
            self.hand_out_client(id, client, &mut fields);
            row = Row { kind: Kind::Client, number: client.number, state: fields.into_bytes() };
            each(&row, Some(Peer::Client(id)))?;
        }
        Ok(())
    }

    fn hand_out_client(&self, id: ClientId, client: &Client, fields: &mut Fields) {
        let Client {
            state: _state,
            server: _server,
            pool: _pool,
            last_packet,
            query_start: _query_start,
            transaction_start: _transaction_start,
            wait_start: _wait_start,
            welcomed,
            notified,
            counted,
            replication,
            vars,
            // Rows come in the order of the lists.
            links: _links,
            user,
            user_name,
            database_name,
            cancel_key,
            cancels,
            revoked,
            was_revoked,
            connect_time,
            // The row itself has it.
            number: _number,
            remote,
            local,
            uid,
            login,
            console,
            names,
            tls,
        } = client;
        let now = self.now;
        self.hand_out_place(client, fields);
        fields.since(LAST_PACKET, *last_packet, now);
        fields.flag(WELCOMED, *welcomed);
        fields.flag(NOTIFIED, *notified);
        fields.count(COUNTED, number_of(&COUNTED_BY, counted));
        parts::put_replication(fields, REPLICATION, *replication);
        fields.put_some(OPTIONS, self.startup_options.get(&id).map(|options| &**options));
        parts::put_vars(fields, PARAMETER, &self.tracked, vars);
        let user = user.and_then(|user| self.users.get(user));
        fields.put_some(LOGIN_USER, user.map(|user| user.name.as_bytes()));
        fields.put_some(USER_NAME, user_name.as_ref().map(|name| name.as_bytes()));
        fields.put_some(DATABASE_NAME, database_name.as_ref().map(|name| name.as_bytes()));
        fields.count(CANCEL_KEY, *cancel_key);
        fields.count(CANCELS, self.number_of_server(*cancels));
        fields.count(REVOKED, number_of(&REVOKED_AS, revoked));
        fields.flag(WAS_REVOKED, *was_revoked);
        fields.since(CONNECT_TIME, *connect_time, now);
        parts::put_addr(fields, REMOTE, *remote);
        parts::put_addr(fields, LOCAL, *local);
        if let Some(uid) = uid {
            fields.number(UID, (*uid).into());
        }
        if let Some(login) = login {
            fields.group(LOGIN, |fields| self.hand_out_login(login, fields));
        }
        if let Some(console) = console {
            fields.group(CONSOLE, |fields| self.hand_out_console(id, console, fields));
        }
        if let Some(names) = names {
            let server = |id| self.servers.get(id).map(|server| server.number);
            fields.group(NAMES, |fields| self.statements.hand_out_names(names, server, fields));
        }
        parts::put_facts(fields, TLS, tls.as_deref());
    }

    /// Where a client is: in its login, if what it waits for is not carried over.
    fn hand_out_place(&self, client: &Client, fields: &mut Fields) {
        let now = self.now;
        if login::begins_anew(client) {
            return fields.number(STATE, number_of(&STATES, &ClientState::Login));
        }
        fields.number(STATE, number_of(&STATES, &client.state));
        if let Some(pool) = client.pool.and_then(|pool| self.pools.get(pool)) {
            parts::put_place(fields, POOL, pool);
        }
        let server = client.server.filter(|id| self.is_handed_out(*id));
        fields.count(SERVER, self.number_of_server(server));
        fields.since_some(QUERY_START, client.query_start, now);
        fields.since_some(TRANSACTION_START, client.transaction_start, now);
        fields.since_some(WAIT_START, client.wait_start, now);
    }

    pub(super) fn number_of_server(&self, id: Option<ServerId>) -> u64 {
        id.and_then(|id| self.servers.get(id)).map_or(0, |server| server.number)
    }

    /// Reads all clients, as far as they can be without the others.
    pub(super) fn take_in_clients<'a>(
        &mut self,
        rows: &'a [(Row, Option<Origin>)],
        known: &mut Known,
        peers: &mut [Option<Peer>],
    ) -> Vec<Newcomer<'a>> {
        let mut newcomers = Vec::new();
        for ((row, origin), peer) in rows.iter().zip(peers) {
            let newcomer = origin.and_then(|origin| self.take_in_one(row, origin, known));
            *peer = newcomer.as_ref().map(|newcomer| Peer::Client(newcomer.id));
            newcomers.extend(newcomer);
        }
        newcomers
    }

    /// Reads a client; `None` if the row is about something else, or somebody has its number.
    pub(super) fn take_in_one<'a>(
        &mut self,
        row: &'a Row,
        origin: Origin,
        known: &mut Known,
    ) -> Option<Newcomer<'a>> {
        let is_number = (1..=NUMBER_MAX).contains(&row.number);
        let is_new = is_number && !known.numbers.contains_key(&row.number);
        if !is_new || row.kind != Kind::Client {
            return None;
        }
        let newcomer = self.take_in_client(row, origin, known);
        known.numbers.insert(row.number, Peer::Client(newcomer.id));
        self.note_untracked(&newcomer, known);
        Some(newcomer)
    }

    /// If a row is about a client that has logged in and does nothing: for how long. It may be taken
    /// in later than others.
    pub fn idle_for(row: &Row) -> Option<Micros> {
        let (mut is_inside, mut idle_for) = (false, Micros::default());
        let is_idle = read(&row.state).all(|field| match field.tag {
            STATE => field.number() == number_of(&STATES, &ClientState::Active),
            WELCOMED => {
                is_inside = true;
                true
            }
            LAST_PACKET => {
                idle_for = Micros(field.number());
                true
            }
            POOL | NOTIFIED | COUNTED | PARAMETER | LOGIN_USER | USER_NAME | DATABASE_NAME
            | CANCEL_KEY | CONNECT_TIME | REMOTE | LOCAL | UID | NAMES | TLS => true,
            _ => false,
        });
        (row.kind == Kind::Client && is_inside && is_idle).then_some(idle_for)
    }

    fn take_in_client<'a>(&mut self, row: &'a Row, origin: Origin, known: &Known) -> Newcomer<'a> {
        let last_number = self.last_number;
        let id = self.accepted(origin);
        self.last_number = last_number.max(row.number);
        let mut newcomer = Newcomer {
            id,
            server: 0,
            cancels: 0,
            counted: Counted::Nowhere,
            login: None,
            console: None,
            names: None,
            options: None,
            untracked: Vec::new(),
            refusal: None,
        };
        let (mut state, mut place) = (None, None);
        let now = known.now;
        let Some(client) = self.clients.get_mut(id) else { return newcomer };
        client.number = row.number;
        for field in read(&row.state) {
            match field.tag {
                STATE => state = value_of(&STATES, field.number()),
                POOL => place = Some(Place::read(field.value)),
                SERVER => newcomer.server = field.number(),
                CANCELS => newcomer.cancels = field.number(),
                COUNTED => {
                    newcomer.counted = value_of(&COUNTED_BY, field.number()).unwrap_or_default()
                }
                LOGIN => newcomer.login = Some(field.value),
                CONSOLE => newcomer.console = Some(field.value),
                NAMES => newcomer.names = Some(field.value),
                OPTIONS => newcomer.options = Some(field.value),
                PARAMETER => {
                    if !parts::take_in_var(&mut client.vars, &self.tracked, field) {
                        newcomer.untracked.push(field);
                    }
                }
                _ => client.take_in(field, now),
            }
        }
        let user = read(&row.state).find(|field| field.tag == LOGIN_USER);
        let user = user.map(|field| self.user(&field.text()));
        if let Some(client) = self.clients.get_mut(id) {
            client.user = user;
        }
        let state = state.filter(|_| is_whole(&row.state));
        newcomer.refusal = self.take_place(&newcomer, state, place, known).err();
        newcomer
    }

    /// Puts a client into the list of its state.
    fn take_place(
        &mut self,
        newcomer: &Newcomer<'_>,
        state: Option<ClientState>,
        place: Option<Place>,
        known: &Known,
    ) -> Result<(), Fault> {
        use ClientState as S;
        let id = newcomer.id;
        let state = state.ok_or_else(unreadable)?;
        let pool = match &place {
            Some(place) => Some(self.pool_at(place).ok_or_else(|| gone(place))?),
            None if state == S::Login => None,
            None => return Err(unreadable()),
        };
        let is_cancel = matches!(state, S::WaitingCancel | S::ActiveCancel);
        let found = pool.and_then(|pool| self.pools.get(pool));
        let is_console = found.is_some_and(|pool| pool.is_console()) && state != S::Login;
        let is_peer = found.is_some_and(|pool| pool.peer.is_some());
        let client = self.clients.get_mut(id).ok_or_else(unreadable)?;
        let fits = match state {
            S::Login => newcomer.login.is_some() && !client.welcomed,
            S::Active => client.welcomed && !is_peer,
            S::Waiting => (client.welcomed || newcomer.login.is_some()) && !is_console && !is_peer,
            S::WaitingCancel | S::ActiveCancel => !client.welcomed && !is_console,
            S::Joined => false,
        };
        if !fits || is_console != newcomer.console.is_some() {
            return Err(unreadable());
        }
        if client.welcomed || is_cancel {
            client.login = None;
        }
        if state == S::Waiting {
            client.wait_start.get_or_insert(self.now);
        }
        let key = client.cancel_key;
        if client.welcomed {
            if key != 0 && self.cancel_keys.contains_key(&key) {
                return Err(unreadable());
            }
            self.cancel_keys.insert(key, id);
        }
        self.unlist_client(id);
        if let Some(client) = self.clients.get_mut(id) {
            (client.state, client.pool) = (state, pool);
        }
        self.list_client(id);
        self.fill_newly_tracked(id, known);
        Ok(())
    }

    /// Parameters that the old process did not track: the client has the pool's.
    fn fill_newly_tracked(&mut self, id: ClientId, known: &Known) {
        let Some(client) = self.clients.get_mut(id) else { return };
        let pool = client.pool.and_then(|pool| self.pools.get(pool));
        if let Some(welcome) = pool.and_then(|pool| pool.welcome.as_ref()) {
            for at in (0..self.tracked.len()).filter(|at| !known.tracked.contains(at)) {
                if let (None, Some(value)) = (client.vars.get(at), welcome.vars.get(at)) {
                    client.vars.set(&self.tracked, at, value.clone());
                }
            }
        }
        self.shared.share(&mut client.vars);
    }

    /// Counts a client that has set what is not tracked here: it will have the server's value as
    /// soon as it gets another server.
    fn note_untracked(&self, newcomer: &Newcomer<'_>, known: &mut Known) {
        let pool = self.clients.get(newcomer.id).and_then(|client| client.pool);
        let keeps_server = newcomer.server != 0
            && pool.is_some_and(|pool| self.pool_mode(pool) == PoolMode::Session);
        if newcomer.refusal.is_some() || keeps_server {
            return;
        }
        let welcome = pool.and_then(|pool| self.pools.get(pool)).and_then(|it| it.welcome.as_ref());
        for (name, value) in newcomer.untracked.iter().filter_map(|it| parts::parameter(*it)) {
            if !welcome.is_some_and(|welcome| welcome.tells(name, value)) {
                let name = String::from_utf8_lossy(name).into_owned();
                let count = known.untracked.entry(name).or_default();
                *count = count.saturating_add(1);
            }
        }
    }

    /// Tells an operator whose values are lost.
    pub(super) fn report_untracked(&mut self, known: &Known) {
        for (name, count) in &known.untracked {
            let line = format!(
                "{name} is not tracked any more (track_extra_parameters): clients that have set it \
                 ({count}) have the server's value from their next server on"
            );
            self.journal.line(Level::Warning, line);
        }
    }

    /// Everybody is there: a client gets what refers to others. Its link is tied already.
    pub(super) fn settle_in(
        &mut self,
        newcomer: &Newcomer<'_>,
        known: &Known,
    ) -> Result<(), Fault> {
        let id = newcomer.id;
        let client = self.clients.get(id).ok_or_else(unreadable)?;
        let state = client.state;
        if newcomer.server != 0 && client.server.is_none() {
            return Err(fault::SERVER_CONN_CRASHED);
        }
        if let Some(names) = newcomer.names {
            let statement = |number| known.statement(number);
            let server = |number| known.server(number);
            let names = self.statements.take_in_names(names, statement, server);
            if let Some(client) = self.clients.get_mut(id) {
                client.names = Some(Box::new(names));
            }
        }
        let is_inside = self.clients.get(id).is_none_or(|client| client.login.is_none());
        if let Some(login) = newcomer.login.filter(|_| !is_inside) {
            self.take_in_login(id, login, known)?;
        }
        if let Some(console) = newcomer.console {
            self.take_in_console(id, console, known)?;
        }
        let target = known.server(newcomer.cancels);
        if state == ClientState::ActiveCancel && !self.is_carrier(target, id) {
            return Err(fault::CANCEL_SENT);
        }
        let counts_at_most = self.counts_at_most(id);
        let Some(client) = self.clients.get_mut(id) else { return Err(unreadable()) };
        client.cancels = target;
        client.counted = newcomer.counted.min(counts_at_most);
        if client.replication.is_some() {
            if let Some(options) = newcomer.options {
                self.startup_options.insert(id, options.into());
            }
        }
        self.count_client(id);
        Ok(())
    }

    /// True if this server may carry this cancel request.
    fn is_carrier(&self, server: Option<ServerId>, request: ClientId) -> bool {
        let server = server.and_then(|id| self.servers.get(id));
        let client = self.clients.get(request);
        server.zip(client).is_some_and(|(server, client)| {
            server.state == ServerState::ActiveCancel
                && server.carries != Carries::Nothing
                && client.pool == Some(server.pool)
        })
    }
}

/// What is wrong with a row that makes no sense.
pub(super) fn unreadable() -> Fault {
    Fault::formatted("online restart: the old process's record can't be read".into())
}

/// What is wrong with a row of a pool that there can't be any more.
fn gone(place: &Place) -> Fault {
    match place.peer {
        Some(_) => fault::PEER_REMOVED,
        None => Fault::formatted(format!("no such database: {}", place.names.0)),
    }
}

impl Client {
    /// Reads a field that is about nobody else.
    fn take_in(&mut self, field: Field<'_>, now: Micros) {
        let text = || Some(field.text().into());
        match field.tag {
            LAST_PACKET => self.last_packet = field.since(now),
            QUERY_START => self.query_start = Some(field.since(now)),
            TRANSACTION_START => self.transaction_start = Some(field.since(now)),
            WAIT_START => self.wait_start = Some(field.since(now)),
            WELCOMED => self.welcomed = true,
            NOTIFIED => self.notified = true,
            REPLICATION => self.replication = parts::replication(field).unwrap_or_default(),
            USER_NAME => self.user_name = text(),
            DATABASE_NAME => self.database_name = text(),
            CANCEL_KEY => self.cancel_key = field.number(),
            REVOKED => self.revoked = value_of(&REVOKED_AS, field.number()).flatten(),
            WAS_REVOKED => self.was_revoked = true,
            CONNECT_TIME => self.connect_time = field.since(now),
            REMOTE => self.remote = parts::addr(field),
            LOCAL => self.local = parts::addr(field),
            UID => self.uid = Some(field.number_u32()),
            TLS => self.tls = Some(Box::new(parts::facts(field))),
            _ => {}
        }
    }
}
