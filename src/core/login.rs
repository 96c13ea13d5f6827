//! A client logs in: start-up packet, authentication, welcome (auth 1 to 3).

use super::auth_query::LookupKey;
use super::client::{Access, ClientState};
use super::console::Console;
use super::database::{DatabaseId, Source, UserId, CONSOLE};
use super::face::{ClientId, Packet, Sink, Verdict};
use super::fault::{self, Fault};
use super::jobs::JobId;
use super::pool::PoolId;
use super::stats::Counter;
use super::Core;
use crate::auth::ServerExchange;
use crate::base::{Level, Micros};
use crate::config::hba::Method;
use crate::wire::startup::Opening;
use crate::wire::{write, FromClient};

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
    pub(super) known: Option<UserId>,
    /// How it has to prove that; none if no rule of the HBA file fits.
    pub(super) method: Option<Method>,
    /// Name of the user at the other end of a Unix socket, if some rule asks for it.
    pub(super) system_user: Option<Box<str>>,
    pub(super) admin: Option<Access>,
    /// The version of the user's secret that its proof is held against.
    pub(super) held_against: Option<u64>,
    /// The job that has to end before it is read on.
    pub(super) job: Option<JobId>,
}

/// What the client has to send next.
pub(super) enum Stage {
    /// A packet without type byte.
    Opening,
    /// A TLS handshake.
    Securing,
    /// A password in clear text.
    Plain,
    /// The answer to an MD5 challenge.
    Md5([u8; 4]),
    /// SASLInitialResponse.
    SaslBegin,
    /// Further SASL messages. The flag tells that a stored secret is used, whose keys may be kept.
    Sasl(Box<ServerExchange>, bool),
    /// Nothing: its user is being looked up.
    Lookup(LookupKey),
    /// A password in clear text for PAM.
    Pam,
    /// A password in clear text for an LDAP server, with the options for that.
    Ldap(String),
    /// The password that a job has judged, once again.
    Judged(Result<Proof, Fault>),
    /// Nothing: authentication is over.
    Done,
}

/// Who says that a password is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// We, by the secret of a known user.
    Known,
    /// PAM or LDAP: the user need not have been known.
    Outside,
}

impl Login {
    pub(super) fn new() -> Login {
        Login {
            stage: Stage::Opening,
            database: None,
            known: None,
            method: None,
            system_user: None,
            admin: None,
            held_against: None,
            job: None,
        }
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
        // unread, for client_login_timeout. What is said during a look-up or a job waits for its end.
        let waits = self.is_looked_up(id) || self.awaits_job(id);
        if packet.len > LOGIN_PACKET_MAX || waits {
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
            // TLS begins behind this packet, which nobody looks at again.
            Ok(()) if self.is_starting_tls(id) => Verdict::Wait,
            // A cancel request is not read any more: its client may hang up long before it is sent.
            Ok(())
                if self.clients.get(id).is_some_and(|c| c.state == ClientState::WaitingCancel) =>
            {
                Verdict::Stop
            }
            // It is looked at once more when the job has ended.
            Ok(()) if self.awaits_job(id) => Verdict::Wait,
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
            Opening::SslRequest if self.clients.get(id).is_some_and(|c| c.tls.is_some()) => {
                Err(fault::SSL_INSIDE_SSL)
            }
            Opening::SslRequest if self.offers_tls(id) => self.start_tls(id),
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
        if self.is_plain_where_forbidden(client) {
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
        self.note_replication(id, wishes.replication, wishes.options.as_deref());
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
        if user.len() > USER_NAME_MAX {
            self.log_failed_login(id);
            return Err(fault::USER_NAME_TOO_LONG);
        }
        self.begin_authentication(id, &user, database_id, sink)
    }

    /// The client is who it says it is: is its database there for it? (auth 1.8)
    pub(super) fn authenticated_client(
        &mut self,
        id: ClientId,
        sink: &mut Sink,
    ) -> Result<(), Fault> {
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
        if self.shuts_out(client) && !is_console {
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
    pub(super) fn attach(&mut self, id: ClientId) {
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

    pub(super) fn set_stage(&mut self, id: ClientId, stage: Stage) {
        if let Some(login) = self.clients.get_mut(id).and_then(|client| client.login.as_mut()) {
            login.stage = stage;
        }
    }

    pub(super) fn set_admin(&mut self, id: ClientId, access: Access) {
        if let Some(login) = self.clients.get_mut(id).and_then(|client| client.login.as_mut()) {
            login.admin = Some(access);
        }
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

    pub(super) fn log_attempt(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(id).filter(|_| self.settings.log_connections.on())
        else {
            return;
        };
        let database = client.database_name.as_deref().unwrap_or("");
        let user = client.user_name.as_deref().unwrap_or("");
        let tls = client.tls().map_or("no", |tls| &tls.text);
        let replication = client.replication.word();
        let line =
            format!("login attempt: db={database} user={user} tls={tls} replication={replication}");
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
