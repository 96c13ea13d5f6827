//! A client logs in: start-up packet, authentication, welcome (auth 1 to 3).

use super::client::{Access, ClientState};
use super::console::Console;
use super::database::{DatabaseId, Source, UserId, CONSOLE};
use super::face::{Addr, ClientId, Packet, Sink, Verdict};
use super::fault::{self, Fault};
use super::pool::PoolId;
use super::stats::Counter;
use super::Core;
use crate::auth::{self, Accepted, ScramError, ScramSecret, Secret, ServerExchange, Verifier};
use crate::base::text::in_word_list;
use crate::base::{Level, Micros};
use crate::config::AuthType;
use crate::wire::startup::Opening;
use crate::wire::{write, FromClient, Reader};

/// Packets of clients that are logging in may be so long, in bytes.
const LOGIN_PACKET_MAX: u32 = 70_000;
/// Longest user name in bytes.
const USER_NAME_MAX: usize = 127;
/// Database names are shown with at most so many bytes.
const DATABASE_NAME_SHOWN: usize = 63;

/// What exists of a client only until it is logged in.
pub(super) struct Login {
    pub(super) stage: Stage,
    pub(super) database: Option<DatabaseId>,
    /// The user whose secret counts; `None` for unknown users, whose login always fails.
    known: Option<UserId>,
    admin: Option<Access>,
}

/// What the client has to send next.
pub(super) enum Stage {
    /// A packet without type byte.
    Opening,
    /// A password in clear text.
    Plain,
    /// The answer to an MD5 challenge.
    Md5([u8; 4]),
    /// SASL messages. The flag tells that a stored secret is used, whose keys may be kept.
    Sasl(Box<ServerExchange>, bool),
    /// Nothing: authentication is over.
    Done,
}

impl Login {
    pub(super) fn new() -> Login {
        Login { stage: Stage::Opening, database: None, known: None, admin: None }
    }
}

impl Core {
    /// A packet of a client that has not been welcomed.
    pub(super) fn client_login_packet(
        &mut self,
        id: ClientId,
        packet: Packet<'_>,
        sink: &mut Sink,
    ) -> Verdict {
        // Nobody who has not logged in makes us collect much (auth 10.3-I): what is too long waits,
        // unread, for client_login_timeout.
        if packet.len > LOGIN_PACKET_MAX {
            return Verdict::Wait;
        }
        if !packet.is_whole() {
            return Verdict::Whole;
        }
        self.touch(id);
        let done = if packet.tag == 0 {
            self.opening(id, packet, sink)
        } else if FromClient::of(packet.tag) == FromClient::Password {
            self.password(id, packet.seen, sink)
        } else {
            Err(fault::BAD_PACKET)
        };
        match done {
            // A cancel request is not read any more: its client may hang up long before it is sent.
            Ok(()) if self.clients.get(id).is_some_and(|client| client.cancels.is_some()) => {
                Verdict::Stop
            }
            Ok(()) => Verdict::Drop,
            Err(fault) => {
                self.close_client(id, &fault);
                Verdict::Stop
            }
        }
    }

    fn opening(&mut self, id: ClientId, packet: Packet<'_>, sink: &mut Sink) -> Result<(), Fault> {
        match Opening::read(packet.seen) {
            Opening::SslRequest if packet.behind => Err(fault::DATA_BEHIND_SSL_REQUEST),
            Opening::GssEncRequest if packet.behind => Err(fault::DATA_BEHIND_GSS_REQUEST),
            Opening::SslRequest | Opening::GssEncRequest => {
                sink.to_client.push(b'N');
                Ok(())
            }
            Opening::CancelRequest(key) => self.cancel_request(id, key),
            Opening::OldProtocol => Err(fault::OLD_PROTOCOL),
            Opening::Startup { minor, parameters } => self.startup(id, minor, parameters, sink),
            Opening::Unknown => Err(bad_opening(&packet)),
        }
    }

    fn startup(
        &mut self,
        id: ClientId,
        minor: u16,
        parameters: &[u8],
        sink: &mut Sink,
    ) -> Result<(), Fault> {
        let client = self.clients.get(id).ok_or(fault::BAD_PACKET)?;
        let is_tcp = matches!(client.remote, Addr::Inet(_));
        if is_tcp && self.settings.client_tls_sslmode.forbids_plain() {
            return Err(fault::SSL_REQUIRED);
        }
        if !matches!(client.login.as_ref().map(|login| &login.stage), Some(Stage::Opening)) {
            return Err(fault::STARTUP_AGAIN);
        }
        let wishes = self.read_wishes(id, parameters)?;
        let user = wishes.user.filter(|user| !user.is_empty()).ok_or(fault::NO_USER_NAME)?;
        let database =
            wishes.database.filter(|name| !name.is_empty()).unwrap_or_else(|| user.clone());
        let limit = usize::try_from(self.settings.max_client_conn).unwrap_or(0);
        if self.clients.len() > limit && database != CONSOLE {
            return Err(fault::TOO_MANY_CLIENTS);
        }
        if minor > 0 || !wishes.extensions.is_empty() {
            write::negotiate(&mut sink.to_client, &wishes.extensions);
        }
        let database_id = self.find_database(&database, id);
        if let Some(client) = self.clients.get_mut(id) {
            client.user_name = Some(user.as_str().into());
            client.database_name = Some(database.as_str().into());
            if let Some(login) = client.login.as_mut() {
                login.database = database_id;
            }
        }
        if let Some(database_id) = database_id {
            self.admit_to_database(id, database_id, &user)?;
        }
        if wishes.replication {
            return Err(fault::REPLICATION_MISSING);
        }
        if user.len() > USER_NAME_MAX {
            self.log_failed_login(id);
            return Err(fault::USER_NAME_TOO_LONG);
        }
        self.begin_authentication(id, &user, database_id, sink)
    }

    /// Finds out who the client is and asks for its proof.
    fn begin_authentication(
        &mut self,
        id: ClientId,
        user: &str,
        database: Option<DatabaseId>,
        sink: &mut Sink,
    ) -> Result<(), Fault> {
        let is_console = database
            .and_then(|id| self.databases.get(id))
            .is_some_and(|database| database.source == Source::Console);
        if is_console && self.is_own_process_owner(id, user) {
            if self.settings.log_connections.on() {
                self.client_log(id, Level::Log, "pgbouncer access from unix socket");
            }
            self.set_admin(id, Access::Admin);
            self.attach(id);
            self.log_attempt(id);
            return self.authenticated_client(id, sink);
        }
        let known = match self.settings.auth_type {
            AuthType::Any => {
                if is_console {
                    self.set_admin(id, self.console_access(user).unwrap_or(Access::Stats));
                } else {
                    let forced = database
                        .and_then(|database| self.databases.get(database))
                        .and_then(|database| database.forced_user.clone());
                    if forced.is_none() {
                        self.client_log(id, Level::Error, "auth_type=any requires forced user");
                        return Err(fault::BOUNCER_CONFIG_ERROR);
                    }
                }
                None
            }
            _ => self.listed_user(user),
        };
        if is_console && known.is_some() {
            match self.console_access(user) {
                Some(access) => self.set_admin(id, access),
                None => return Err(fault::NOT_ALLOWED),
            }
        }
        let log_name = known.is_some() || self.settings.auth_type == AuthType::Any;
        if !log_name {
            self.client_log(id, Level::Log, &format!("no such user: {user}"));
        }
        if let Some(client) = self.clients.get_mut(id) {
            client.user = known;
            if let Some(login) = client.login.as_mut() {
                login.known = known;
            }
        }
        if log_name {
            self.attach(id);
            self.admit_user(id, user)?;
        }
        self.log_attempt(id);
        self.ask(id, known, sink)
    }

    /// Sends the authentication request of the method (auth 2.3, 2.4).
    fn ask(&mut self, id: ClientId, known: Option<UserId>, sink: &mut Sink) -> Result<(), Fault> {
        let secret = known.and_then(|user| self.users.get(user)).map(|user| &user.secret);
        let is_scram = matches!(secret, Some(Secret::Scram(_)));
        let stage = match self.settings.auth_type {
            AuthType::Any => return self.authenticated_client(id, sink),
            AuthType::Trust if known.is_some() => return self.authenticated_client(id, sink),
            AuthType::Trust => return Err(fault::TRUST_FAILED),
            AuthType::Plain => {
                write::authentication(&mut sink.to_client, 3, b"");
                Stage::Plain
            }
            AuthType::Md5 if !is_scram => {
                let salt = self.random.bytes();
                write::authentication(&mut sink.to_client, 5, &salt);
                Stage::Md5(salt)
            }
            AuthType::Md5 | AuthType::ScramSha256 => {
                let (verifier, stored) = self.verifier(id, known);
                write::authentication(&mut sink.to_client, 10, b"SCRAM-SHA-256\0\0");
                Stage::Sasl(Box::new(ServerExchange::new(verifier)), stored)
            }
            // These come with a later version; until then they let nobody in.
            AuthType::Cert => return Err(fault::CERT_FAILED),
            AuthType::Hba => return Err(fault::NO_METHOD),
            AuthType::Ldap => return Err(fault::LDAP_MISSING),
            AuthType::Pam => return Err(fault::PAM_FAILED),
        };
        self.set_stage(id, stage);
        Ok(())
    }

    /// What a SCRAM proof is held against, and whether that is a stored SCRAM secret.
    fn verifier(&mut self, id: ClientId, known: Option<UserId>) -> (Verifier, bool) {
        let iterations = u32::try_from(self.settings.scram_iterations).unwrap_or(0).max(1);
        let salt: [u8; 16] = self.random.bytes();
        if let Some(user) = known.and_then(|user| self.users.get_mut(user)) {
            match &user.secret {
                Secret::Scram(secret) => return (Verifier::Secret(secret.clone()), true),
                Secret::Md5(_) => return (Verifier::Md5Secret, false),
                Secret::Plain(password) => {
                    let derive = || ScramSecret::derive(password, &salt, iterations);
                    let secret = user.adhoc.get_or_insert_with(derive).clone();
                    return (Verifier::Secret(secret), false);
                }
                Secret::Empty => {}
            }
        }
        let name = self.clients.get(id).and_then(|client| client.user_name.clone());
        let name = name.as_deref().unwrap_or("");
        let salt = auth::mock_salt(name.as_bytes(), &self.mock_key);
        (Verifier::Mock { salt, iterations }, false)
    }

    /// PasswordMessage, SASLInitialResponse and SASLResponse.
    fn password(&mut self, id: ClientId, body: &[u8], sink: &mut Sink) -> Result<(), Fault> {
        let client = self.clients.get_mut(id).ok_or(fault::BAD_PACKET)?;
        let login = client.login.as_mut().ok_or(fault::BAD_PACKET)?;
        let known = login.known;
        match std::mem::replace(&mut login.stage, Stage::Done) {
            Stage::Opening => Err(fault::PASSWORD_BEFORE_STARTUP),
            Stage::Done => Err(fault::BAD_PACKET),
            Stage::Sasl(exchange, stored) => self.sasl(id, *exchange, stored, body, sink),
            stage => {
                let Some(given) = Reader::new(body).text() else {
                    self.set_stage(id, stage);
                    return Ok(());
                };
                if given.is_empty() {
                    return Err(fault::EMPTY_PASSWORD);
                }
                let user = known.and_then(|user| self.users.get(user));
                let fits = user.is_some_and(|user| match stage {
                    Stage::Md5(salt) => {
                        auth::check_md5(&user.secret, user.name.as_bytes(), salt, given)
                    }
                    _ => auth::check_plain(&user.secret, user.name.as_bytes(), given),
                });
                if !fits {
                    return Err(fault::PASSWORD_FAILED);
                }
                self.authenticated_client(id, sink)
            }
        }
    }

    fn sasl(
        &mut self,
        id: ClientId,
        mut exchange: ServerExchange,
        stored: bool,
        body: &[u8],
        sink: &mut Sink,
    ) -> Result<(), Fault> {
        if exchange.is_challenged() {
            let result = exchange.last(body);
            let accepted = self.sasl_result(id, &mut exchange, result)?;
            return self.sasl_accepted(id, accepted, stored, sink);
        }
        let (mechanism, first) = sasl_initial(body).ok_or(fault::SASL_FAILED)?;
        let random = self.random.bytes();
        let result = exchange.first(mechanism, first, random);
        let challenge = self.sasl_result(id, &mut exchange, result)?;
        write::authentication(&mut sink.to_client, 11, &challenge);
        self.set_stage(id, Stage::Sasl(Box::new(exchange), stored));
        Ok(())
    }

    fn sasl_result<T>(
        &mut self,
        id: ClientId,
        exchange: &mut ServerExchange,
        result: Result<T, ScramError>,
    ) -> Result<T, Fault> {
        if let Some(complaint) = exchange.take_complaint() {
            self.client_log(id, Level::Error, &complaint.to_string());
        }
        result.map_err(|error| {
            if matches!(error, ScramError::Mechanism) {
                return fault::BAD_MECHANISM;
            }
            self.client_log(id, Level::Error, &error.to_string());
            fault::SASL_FAILED
        })
    }

    fn sasl_accepted(
        &mut self,
        id: ClientId,
        accepted: Accepted,
        stored: bool,
        sink: &mut Sink,
    ) -> Result<(), Fault> {
        write::authentication(&mut sink.to_client, 12, &accepted.server_final);
        let user = self.clients.get(id).and_then(|client| client.user);
        if let Some(user) = user.and_then(|user| self.users.get_mut(user)).filter(|_| stored) {
            user.keys = Some(accepted.keys);
        }
        self.authenticated_client(id, sink)
    }

    /// The client is who it says it is: is its database there for it? (auth 1.8)
    fn authenticated_client(&mut self, id: ClientId, sink: &mut Sink) -> Result<(), Fault> {
        self.set_stage(id, Stage::Done);
        let client = self.clients.get(id).ok_or(fault::BAD_PACKET)?;
        let name = client.database_name.clone().unwrap_or_else(|| "".into());
        let database = client.login.as_ref().and_then(|login| login.database);
        let Some(database) = database.and_then(|database| self.databases.get(database)) else {
            self.log_failed_login(id);
            let shown = crate::base::text::cut(&name, DATABASE_NAME_SHOWN);
            return Err(Fault::formatted(format!("no such database: {shown}")));
        };
        let is_console = database.source == Source::Console;
        if database.disabled {
            return Err(Fault::formatted(format!("database \"{name}\" is disabled")));
        }
        if self.shutdown.is_some() && !is_console {
            return Err(fault::SHUTTING_DOWN);
        }
        if client.pool.is_none() {
            self.attach(id);
        }
        let pool = self.clients.get(id).and_then(|client| client.pool);
        let pool = pool.ok_or(fault::BOUNCER_CONFIG_ERROR)?;
        self.count(pool, Counter::Logins, 1);
        if is_console {
            return self.console_login(id, sink);
        }
        self.move_to_pool(id, pool, sink);
        Ok(())
    }

    /// Welcomes the client, or has it wait for the pool's first server.
    fn move_to_pool(&mut self, id: ClientId, pool_id: PoolId, sink: &mut Sink) {
        if self.pools.get(pool_id).is_some_and(|pool| pool.welcome.is_some()) {
            self.move_client(id, ClientState::Active);
            self.welcome(id, &mut sink.to_client);
            return;
        }
        self.wait(id, pool_id);
        if !self.is_paused_globally() {
            self.launch(pool_id, true);
        }
    }

    /// Gives the client its pool, as far as database and user are known.
    fn attach(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id) else {
            return;
        };
        let database = client.login.as_ref().and_then(|login| login.database);
        let (Some(database), Some(user)) = (database, client.user_name.clone()) else {
            return;
        };
        let pool = self.pool_for(database, &user);
        if let Some(client) = self.clients.get_mut(id) {
            client.pool = pool;
        }
    }

    fn console_login(&mut self, id: ClientId, sink: &mut Sink) -> Result<(), Fault> {
        let access = self
            .clients
            .get(id)
            .and_then(|client| client.login.as_ref())
            .and_then(|login| login.admin)
            .ok_or(fault::NOT_ALLOWED)?;
        if let Some(client) = self.clients.get_mut(id) {
            client.console = Some(Box::new(Console::new(access)));
        }
        self.move_client(id, ClientState::Active);
        self.welcome(id, &mut sink.to_client);
        Ok(())
    }

    fn set_stage(&mut self, id: ClientId, stage: Stage) {
        if let Some(login) = self.clients.get_mut(id).and_then(|client| client.login.as_mut()) {
            login.stage = stage;
        }
    }

    fn set_admin(&mut self, id: ClientId, access: Access) {
        if let Some(login) = self.clients.get_mut(id).and_then(|client| client.login.as_mut()) {
            login.admin = Some(access);
        }
    }

    pub(super) fn console_access(&self, user: &str) -> Option<Access> {
        if in_word_list(&self.settings.admin_users, user) {
            Some(Access::Admin)
        } else if in_word_list(&self.settings.stats_users, user) {
            Some(Access::Stats)
        } else {
            None
        }
    }

    /// The special console user, by a Unix socket from this process's own user.
    pub(super) fn is_own_process_owner(&self, id: ClientId, user: &str) -> bool {
        self.clients.get(id).filter(|_| user == CONSOLE).is_some_and(|client| {
            matches!(client.remote, Addr::Unix { .. }) && client.uid == Some(self.own_uid)
        })
    }

    fn log_failed_login(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id).filter(|_| self.settings.log_connections.on())
        else {
            return;
        };
        let database = client.database_name.as_deref().unwrap_or("");
        let user = client.user_name.as_deref().unwrap_or("");
        let line = format!("login failed: db={database} user={user}");
        self.client_log(id, Level::Log, &line);
    }

    fn log_attempt(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id).filter(|_| self.settings.log_connections.on())
        else {
            return;
        };
        let database = client.database_name.as_deref().unwrap_or("");
        let user = client.user_name.as_deref().unwrap_or("");
        let line = format!("login attempt: db={database} user={user} tls=no replication=no");
        self.client_log(id, Level::Log, &line);
    }

    /// Login-phase clients that are over client_login_timeout.
    pub(super) fn expire_logins(&mut self) {
        let limit = self.settings.client_login_timeout;
        if !limit.is_set() {
            return;
        }
        for id in self.login_clients.ids(&self.clients) {
            let age = self.clients.get(id).map_or(Micros(0), |c| self.now.since(c.connect_time));
            if age > limit {
                self.close_client(id, &fault::CLIENT_LOGIN_TIMEOUT);
            }
        }
    }
}

/// The fault for a packet with a length and a code that nobody knows.
pub(super) fn bad_opening(packet: &Packet<'_>) -> Fault {
    let len = packet.len.to_be_bytes();
    let raw: Vec<u8> = len.iter().chain(packet.seen).take(8).copied().collect();
    bad_header(&raw)
}

/// The fault for bytes that can't be a packet.
pub(super) fn bad_header(raw: &[u8]) -> Fault {
    Fault::formatted(format!("bad packet header: '{}'", crate::base::text::hex(raw)))
}

/// Mechanism and message of a SASLInitialResponse.
fn sasl_initial(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut reader = Reader::new(body);
    let mechanism = reader.text()?;
    let len = reader.u32()?;
    let first = reader.bytes(usize::try_from(len).ok()?)?;
    reader.rest().is_empty().then_some((mechanism, first))
}
