//! Users who are not in auth_file are looked up in a database (auth 4). A look-up is a query of the
//! pooler's own on a server of the pool of the auth database and the auth user. The client that needs
//! it carries it: it stands in that pool's queue like anybody else, then it is linked to the server
//! that is asked. Who needs the same user meanwhile shares the result, and takes over if the carrier
//! is gone. Nothing that a client has said but its name reaches that server.

use super::client::{Client, ClientState};
use super::database::{DatabaseId, Source, User, UserId, CONSOLE};
use super::face::{Action, ClientId, Peer, ServerId, Sink, Verdict};
use super::fault::{self, Fault};
use super::login::Stage;
use super::pool::{Pool, PoolId};
use super::query::read_status;
use super::replies::{Asker, Request};
use super::server::Status;
use super::stats::Counter;
use super::Core;
use crate::auth::Secret;
use crate::base::Level;
use crate::config::hba::Method;
use crate::config::RESERVED_AUTH_DBNAME;
use crate::wire::read::{lossy, ErrorFields};
use crate::wire::{write, FromServer, Reader};
use std::collections::BTreeMap;
use std::rc::Rc;
use zeroize::Zeroizing;

/// Longer names are cut to so many bytes (auth 4.3).
const NAME_MAX: usize = 127;
/// Longer secrets are cut to so many bytes (auth 4.3).
const SECRET_MAX: usize = 65_530;

/// What is asked, and where: clients with the same key get the same answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LookupKey {
    pool: PoolId,
    user: Rc<str>,
    query: Rc<str>,
}

/// A look-up that has not ended.
pub(super) struct Lookup {
    /// Who waits for a server to ask, or is linked to the one that is asked.
    carrier: ClientId,
    /// Who shares the result, by number: in the order of their coming.
    joined: BTreeMap<u64, ClientId>,
    found: Option<Row>,
}

/// A row of auth_query.
struct Row {
    name: String,
    secret: Secret,
}

/// Where a user is looked up.
struct Place {
    pool: PoolId,
    query: Rc<str>,
}

impl Client {
    /// The look-up that it carries or shares.
    pub(super) fn lookup(&self) -> Option<&LookupKey> {
        match self.login.as_ref().map(|login| &login.stage) {
            Some(Stage::Lookup(key)) => Some(key),
            _ => None,
        }
    }

    /// True while its user is being looked up.
    pub fn is_looked_up(&self) -> bool {
        self.lookup().is_some()
    }

    /// It waits for what it is to be welcomed with, and for no server of its own.
    pub(super) fn awaits_welcome(&self) -> bool {
        !self.welcomed && self.lookup().is_none()
    }
}

impl Core {
    /// True if users who are in no list may be in a database: not where somebody else knows them
    /// (auth 4.1).
    pub(super) fn looks_up(&self, id: ClientId) -> bool {
        !matches!(self.method(id), Some(Method::Any | Method::Pam | Method::Ldap(_)))
    }

    /// The user who looks up others for clients of this database.
    fn auth_user(&self, database: DatabaseId) -> Option<&str> {
        let entry = &self.databases.get(database)?.entry;
        let name = entry.auth_user.as_deref().or(self.settings.auth_user.as_deref());
        name.filter(|name| !name.is_empty())
    }

    /// Begins to look up the user of a client whose user is in no list; false if nobody is configured
    /// to do that.
    pub(super) fn look_up(
        &mut self,
        id: ClientId,
        database: DatabaseId,
        user: &str,
    ) -> Result<bool, Fault> {
        let Some(auth_user) = self.auth_user(database).map(str::to_owned) else {
            return Ok(false);
        };
        let Place { pool, query } = self.lookup_place(id, database, &auth_user)?;
        if self.refuses_waiters() {
            return Err(fault::SERVER_SHUTTING_DOWN);
        }
        let key = LookupKey { pool, user: user.into(), query };
        let (now, number) = (self.now, self.clients.get(id).map_or(0, |client| client.number));
        if let Some(client) = self.clients.get_mut(id) {
            client.pool = Some(pool);
        }
        self.set_stage(id, Stage::Lookup(key.clone()));
        if let Some(lookup) = self.lookups.get_mut(&key) {
            lookup.joined.insert(number, id);
            self.move_client(id, ClientState::Joined);
            if let Some(client) = self.clients.get_mut(id) {
                client.wait_start = Some(now);
            }
            return Ok(true);
        }
        if let Some(fault) = self.fail_fast(pool).filter(|_| !self.is_paused(pool)) {
            self.mark(pool);
            self.launch(pool, true);
            return Err(fault);
        }
        self.lookups.insert(key, Lookup { carrier: id, joined: BTreeMap::new(), found: None });
        self.wait(id, pool);
        Ok(true)
    }

    /// The pool and the query for clients of a database (auth 4.2).
    fn lookup_place(
        &mut self,
        id: ClientId,
        own: DatabaseId,
        auth_user: &str,
    ) -> Result<Place, Fault> {
        let own_database = self.databases.get(own).ok_or(fault::BOUNCER_CONFIG_ERROR)?;
        let entry = &own_database.entry;
        let query = entry.auth_query.as_deref().unwrap_or(&self.settings.auth_query).into();
        let other = entry.auth_dbname.clone().or_else(|| self.settings.auth_dbname.clone());
        let is_console = match other.as_deref() {
            Some(name) => name == CONSOLE,
            None => own_database.source == Source::Console,
        };
        if is_console {
            self.client_log(id, Level::Error, RESERVED_AUTH_DBNAME);
            return Err(fault::BOUNCER_CONFIG_ERROR);
        }
        let found = match other.as_deref() {
            Some(name) => self.find_database(name, id),
            None => Some(own),
        };
        let Some(database) = found else {
            let name = other.unwrap_or_default();
            let text = format!("authentication database \"{name}\" is not configured.");
            self.client_log(id, Level::Error, &text);
            return Err(fault::BOUNCER_CONFIG_ERROR);
        };
        if self.databases.get(database).is_some_and(|database| database.disabled) {
            let name = other.as_deref().unwrap_or("(null)");
            let text = format!("authentication database \"{name}\" is disabled");
            return Err(Fault::formatted(text));
        }
        let pool = self.pool_of(database, auth_user.into());
        Ok(Place { pool: pool.ok_or(fault::BOUNCER_CONFIG_ERROR)?, query })
    }

    /// A server may be free for a client that waits with a look-up: it is asked, unless it was not
    /// fit for use.
    pub(super) fn ask_lookup(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id) else { return };
        let (Some(key), Some(start)) = (client.lookup().cloned(), client.wait_start) else {
            return;
        };
        let Some(server_id) = self.fit_server(key.pool) else { return };
        let now = self.now;
        self.move_client(id, ClientState::Login);
        if let Some(client) = self.clients.get_mut(id) {
            client.wait_start = None;
            client.query_start = Some(now);
            client.transaction_start = Some(now);
        }
        self.count(key.pool, Counter::WaitTime, now.since(start).0);
        self.link(id, server_id);
        self.count(key.pool, Counter::Assignments, 1);
        if let Some(lookup) = self.lookups.get_mut(&key) {
            lookup.found = None;
        }
        let Some(server) = self.servers.get_mut(server_id) else { return };
        use Request as R;
        for request in [R::Parse, R::Bind, R::Describe, R::Execute, R::Sync] {
            server.replies.sent(request, Asker::Lookup);
        }
        server.status = Status::Busy;
        server.delivered = false;
        let bytes = packets(&key);
        self.actions.push_back(Action::Send(Peer::Server(server_id), bytes));
        self.read_servers_again();
    }

    /// The server that is asked says something; it is all here.
    pub(super) fn lookup_reply(
        &mut self,
        id: ServerId,
        client: ClientId,
        kind: FromServer,
        body: &[u8],
    ) -> Verdict {
        use FromServer as S;
        let read = match kind {
            S::ParseComplete
            | S::BindComplete
            | S::CommandComplete
            | S::NoticeResponse
            | S::NotificationResponse
            | S::ParameterStatus => Ok(()),
            S::RowDescription => columns(body),
            S::DataRow => row(body).map(|row| self.note_row(client, row)),
            S::ReadyForQuery if read_status(body) == Some(Status::Ready) => Ok(()),
            S::ErrorResponse => {
                let text = ErrorFields::read(body).line(": ").unwrap_or_default();
                self.journal.line(Level::Error, format!("S: error in auth_query: {text}"));
                Err(fault::AUTH_QUERY_ERROR)
            }
            _ => Err(fault::AUTH_QUERY_UNEXPECTED),
        };
        match read {
            Ok(()) => Verdict::Drop,
            Err(fault) => {
                self.close_server(id, &fault, true);
                Verdict::Stop
            }
        }
    }

    fn note_row(&mut self, client: ClientId, row: Row) {
        let key = self.clients.get(client).and_then(Client::lookup);
        if let Some(lookup) = key.and_then(|key| self.lookups.get_mut(key)) {
            lookup.found = Some(row);
        }
    }

    /// A server is through with what it was asked by its client's look-up, if that is what it did:
    /// it is free, and everybody who shares the result goes on logging in. False if it did something
    /// else.
    pub(super) fn lookup_answered(&mut self, id: ServerId) -> bool {
        let client = self.servers.get(id).and_then(|server| server.client);
        let key = client.and_then(|id| self.clients.get(id)).and_then(Client::lookup).cloned();
        let Some(key) = key else { return false };
        self.release(id);
        let Some(lookup) = self.lookups.remove(&key) else { return true };
        for member in std::iter::once(lookup.carrier).chain(lookup.joined.into_values()) {
            self.end_lookup(member);
            let mut sink = Sink::default();
            let result = match &lookup.found {
                Some(row) => self.go_on_found(member, &key.user, row, &mut sink),
                None => Err(self.no_such_user(member, &key.user)),
            };
            if !sink.to_client.is_empty() {
                self.actions.push_back(Action::Send(Peer::Client(member), sink.to_client));
            }
            match result {
                Ok(()) => self.actions.push_back(Action::Resume(member)),
                Err(fault) => self.close_client(member, &fault),
            }
        }
        true
    }

    /// The user was found. What decides may be new by now: a client that has not been asked for its
    /// proof is judged by the rules and the list of users that are in force.
    fn go_on_found(
        &mut self,
        id: ClientId,
        asked: &str,
        row: &Row,
        sink: &mut Sink,
    ) -> Result<(), Fault> {
        self.choose_method(id, asked);
        if self.looks_up(id) && self.listed_user(asked).is_none() {
            return self.user_found(id, row, sink);
        }
        let database = self.login_database(id);
        self.begin_authentication(id, asked, database, sink)
    }

    /// The user that was found is the one that the client logs in as. Its secret is kept for the
    /// servers of this database.
    fn user_found(&mut self, id: ClientId, row: &Row, sink: &mut Sink) -> Result<(), Fault> {
        let name: Rc<str> = row.name.as_str().into();
        let user = self.user(&name);
        let database = self.login_database(id).ok_or(fault::BOUNCER_CONFIG_ERROR)?;
        let credentials = self.remember_fetched(database, &name, Some(&row.secret));
        if let Some(client) = self.clients.get_mut(id) {
            client.user_name = Some(name);
        }
        self.identified(id, &row.name, Some(user), Some(credentials), sink)
    }

    /// Keeps the secret of a user for the servers of a database, or that there is such a user.
    pub(super) fn remember_fetched(
        &mut self,
        database: DatabaseId,
        name: &str,
        secret: Option<&Secret>,
    ) -> UserId {
        let name: Rc<str> = name.into();
        let known = self.fetched.get(&(database, name.clone())).copied();
        let credentials = known.unwrap_or_else(|| {
            let id = self.users.insert(User { name: name.clone(), ..User::default() });
            self.fetched.insert((database, name), id);
            id
        });
        if let (Some(user), Some(secret)) = (self.users.get_mut(credentials), secret) {
            user.set_secret(secret.clone());
            user.proved = None;
        }
        credentials
    }

    fn login_database(&self, id: ClientId) -> Option<DatabaseId> {
        self.clients.get(id)?.login.as_ref()?.database
    }

    /// There is no row. What is known of the user from earlier look-ups counts no more (auth 10.3-A2).
    fn no_such_user(&mut self, id: ClientId, name: &Rc<str>) -> Fault {
        if let Some(database) = self.login_database(id) {
            if let Some(user) = self.fetched.remove(&(database, name.clone())) {
                self.users.remove(user);
            }
        }
        let database = self.clients.get(id).and_then(|client| client.database_name.clone());
        if self.settings.log_connections.on() {
            let line = format!("login failed: db={}", database.as_deref().unwrap_or(""));
            self.client_log(id, Level::Log, &line);
        }
        fault::NO_SUCH_USER
    }

    /// Whose secret and keys servers of a pool are logged in with: those in auth_file, else those that
    /// were looked up for its database.
    pub(super) fn credentials(&self, pool: &Pool) -> UserId {
        let is_listed = self.users.get(pool.user).is_some_and(|user| user.listed);
        if is_listed || self.forces_user(pool) {
            return pool.user;
        }
        let key = (pool.database, pool.names.1.clone());
        self.fetched.get(&key).copied().unwrap_or(pool.user)
    }

    /// What was looked up earlier for the user and the database of a client that PAM or LDAP know.
    pub(super) fn fetched_before(&self, id: ClientId) -> Option<UserId> {
        let name = self.clients.get(id)?.user_name.clone()?;
        self.fetched.get(&(self.login_database(id)?, name)).copied()
    }

    /// A database is gone, and what was looked up for it.
    pub(super) fn forget_fetched(&mut self, database: DatabaseId) {
        let gone: Vec<_> = self.fetched.keys().filter(|key| key.0 == database).cloned().collect();
        for key in gone {
            if let Some(user) = self.fetched.remove(&key) {
                self.users.remove(user);
            }
        }
    }

    /// A client that carried or shared a look-up is one that logs in, as before.
    fn end_lookup(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id) else { return };
        let (state, pool, start) = (client.state, client.pool, client.wait_start);
        if state != ClientState::Login {
            self.move_client(id, ClientState::Login);
        }
        self.set_stage(id, Stage::Opening);
        if let (Some(pool), Some(start)) = (pool, start) {
            let waited = self.now.since(start);
            self.count(pool, Counter::WaitTime, waited.0);
        }
        if let Some(client) = self.clients.get_mut(id) {
            client.pool = None;
            client.wait_start = None;
            client.query_start = None;
            client.transaction_start = None;
        }
    }

    /// The server that was asked is lost, or said what it should not: nobody who shares the look-up
    /// gets in. False if this client carries none.
    pub(super) fn lookup_failed(&mut self, carrier: ClientId) -> bool {
        let key = self.clients.get(carrier).and_then(Client::lookup).cloned();
        let Some(key) = key else { return false };
        let Some(lookup) = self.lookups.remove(&key) else { return false };
        for member in std::iter::once(carrier).chain(lookup.joined.into_values()) {
            self.close_client(member, &fault::BOUNCER_CONFIG_ERROR);
        }
        true
    }

    /// A client is gone. If it carried a look-up, the next one of those who share it takes over, at
    /// the end of the queue.
    pub(super) fn leave_lookup(&mut self, client: &Client, id: ClientId) {
        let Some(key) = client.lookup() else { return };
        let Some(lookup) = self.lookups.get_mut(key) else { return };
        if lookup.carrier != id {
            lookup.joined.remove(&client.number);
            return;
        }
        match lookup.joined.pop_first() {
            Some((_, next)) => {
                lookup.carrier = next;
                self.move_client(next, ClientState::Waiting);
                self.read_servers_again();
            }
            None => {
                self.lookups.remove(key);
            }
        }
    }

    /// True for a client whose user is being looked up.
    pub(super) fn is_looked_up(&self, id: ClientId) -> bool {
        self.clients.get(id).is_some_and(Client::is_looked_up)
    }
}

/// The query for one user (auth 4.3).
fn packets(key: &LookupKey) -> Vec<u8> {
    let mut out = Vec::new();
    write::packet(&mut out, b'P', |out| {
        write::text(out, b"");
        write::text(out, key.query.as_bytes());
        out.extend_from_slice(&[0; 2]);
    });
    write::packet(&mut out, b'B', |out| {
        // Portal, statement, no formats, one value, no result formats.
        out.extend_from_slice(&[0, 0, 0, 0, 0, 1]);
        let len = u32::try_from(key.user.len()).unwrap_or(0);
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(key.user.as_bytes());
        out.extend_from_slice(&[0; 2]);
    });
    write::packet(&mut out, b'D', |out| out.extend_from_slice(b"P\0"));
    write::packet(&mut out, b'E', |out| out.extend_from_slice(&[0; 5]));
    write::packet(&mut out, b'S', |_| {});
    out
}

/// Two columns are expected.
fn columns(body: &[u8]) -> Result<(), Fault> {
    match Reader::new(body).u16() {
        Some(2) => Ok(()),
        Some(count) => Err(wrong_columns(count)),
        None => Err(fault::AUTH_QUERY_UNEXPECTED),
    }
}

fn wrong_columns(count: u16) -> Fault {
    Fault::formatted(format!("expected 2 columns from auth_query, not {count}"))
}

/// A name and a secret; one that is NULL fits no password.
fn row(body: &[u8]) -> Result<Row, Fault> {
    let mut reader = Reader::new(body);
    let count = reader.u16().ok_or(fault::AUTH_QUERY_UNEXPECTED)?;
    if count != 2 {
        return Err(wrong_columns(count));
    }
    let name = value(&mut reader)?.ok_or(fault::AUTH_QUERY_NULL_NAME)?;
    let secret = value(&mut reader)?;
    if !reader.rest().is_empty() {
        return Err(fault::AUTH_QUERY_UNEXPECTED);
    }
    let cut =
        |bytes: &[u8], most: usize| Zeroizing::new(bytes.get(..most).unwrap_or(bytes).to_vec());
    // It goes into start-up packets, where a zero would end it.
    if name.contains(&0) {
        return Err(fault::AUTH_QUERY_UNEXPECTED);
    }
    let name = lossy(name);
    let name = crate::base::text::cut(&name, NAME_MAX).to_owned();
    let secret = secret.map_or(Secret::Empty, |text| Secret::classify(&cut(text, SECRET_MAX)));
    Ok(Row { name, secret })
}

/// The next value of a row; `None` is NULL.
fn value<'a>(reader: &mut Reader<'a>) -> Result<Option<&'a [u8]>, Fault> {
    let len = reader.u32().ok_or(fault::AUTH_QUERY_UNEXPECTED)?;
    if len == u32::MAX {
        return Ok(None);
    }
    let len = usize::try_from(len).map_err(|_| fault::AUTH_QUERY_UNEXPECTED)?;
    reader.bytes(len).map(Some).ok_or(fault::AUTH_QUERY_UNEXPECTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[Option<&[u8]>]) -> Result<(String, Secret), String> {
        let mut out = Vec::new();
        write::data_row(&mut out, values.iter().copied());
        let row = row(out.get(5..).unwrap_or_default());
        row.map(|row| (row.name, row.secret)).map_err(|fault| fault.text.into_owned())
    }

    #[test]
    fn rows_are_a_name_and_a_secret() {
        let (name, plain) = (Some(&b"bob"[..]), |text: &[u8]| Secret::Plain(text.to_vec().into()));
        for (values, want) in [
            (vec![name, Some(&b"pw"[..])], Ok(("bob".to_owned(), plain(b"pw")))),
            (vec![name, None], Ok(("bob".into(), Secret::Empty))),
            (vec![name, Some(b"")], Ok(("bob".into(), Secret::Empty))),
            (vec![Some(&[b'n'; 200]), None], Ok(("n".repeat(NAME_MAX), Secret::Empty))),
            (vec![name, Some(&[b'p'; 70_000])], Ok(("bob".into(), plain(&[b'p'; SECRET_MAX])))),
            (
                vec![Some(b"bob\0database\0d"), None],
                Err(fault::AUTH_QUERY_UNEXPECTED.text.into_owned()),
            ),
            (vec![None, Some(b"pw")], Err(fault::AUTH_QUERY_NULL_NAME.text.into_owned())),
            (vec![name], Err("expected 2 columns from auth_query, not 1".into())),
            (vec![name; 3], Err("expected 2 columns from auth_query, not 3".into())),
        ] {
            assert!(read(&values) == want, "{values:?}");
        }
    }

    #[test]
    fn rows_that_end_early_or_late_are_refused() {
        let whole = b"\0\x02\0\0\0\x03bob\0\0\0\x02pw";
        assert!(row(whole).is_ok());
        for len in 0..whole.len() {
            assert!(row(&whole[..len]).is_err(), "{len}");
        }
        assert!(row(&[&whole[..], b"x"].concat()).is_err());
        assert!(row(b"\0\x02\0\0\0\x03bob\xff\xff\xff\xfe").is_err());
    }
}
