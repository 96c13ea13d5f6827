//! A new server: connecting, authentication, parameters, connect_query, ready (pooling 5.6).

use super::attrs::{self, Fit, Traits, Unfit};
use super::database::User;
use super::face::{Action, Addr, Loss, Packet, Peer, ServerId, Sink, Verdict};
use super::fault::{self, Fault};
use super::jobs::JobId;
use super::pool::{PoolId, Welcome};
use super::release::OWN_QUERY_MAX;
use super::replication::Replication;
use super::replies::Replies;
use super::server::{Carries, Server, ServerState, Status};
use super::vars::Vars;
use super::Core;
use crate::auth::{Challenge, ClientExchange, Credential, ScramError, Secret};
use crate::base::list::Links;
use crate::base::Level;
use crate::wire::read::{self, lossy, ErrorFields};
use crate::wire::{write, FromServer, Reader};
use std::rc::Rc;

/// How far a server's login has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The connection is not open yet.
    Connecting,
    /// It has been asked for TLS.
    Securing,
    /// StartupMessage is sent, AuthenticationOk has not come.
    Authenticating,
    /// Parameters come in.
    Authenticated,
    /// It has been asked what it is like.
    Asked,
    /// connect_query runs.
    ConnectQuery,
}

/// What exists of a server only until it is ready.
pub(super) struct ServerLogin {
    stage: Stage,
    /// A cancel request had it opened.
    is_for_cancel: bool,
    pub(super) scram: Option<ClientExchange>,
    /// The job that makes the keys for it.
    pub(super) job: Option<JobId>,
    /// ParameterStatus packets of parameters that are not tracked.
    untracked: Vec<u8>,
    /// Why the login failed, if the pooler found it out: for the clients that wait.
    refusal: Option<Fault>,
    /// The system's words about a connection that could not be opened.
    error: Option<String>,
}

/// Connections that are being made end for these reasons, too, of which none is the server's. A client
/// for whom one was made goes on waiting.
pub(super) const ENDED_BY_US: [Fault; 3] =
    [fault::PAUSE_MODE, fault::CONNECT_STRING_CHANGED, fault::SUSPEND_TIMEOUT];

/// Begins to open a connection for a pool.
pub(super) fn open(core: &mut Core, pool_id: PoolId) {
    let is_for_cancel = core.next_to_cancel(pool_id).is_some();
    let host = core.choose_host(pool_id);
    core.miss_socket_dir(pool_id, host);
    let Some(pool) = core.pools.get_mut(pool_id) else {
        return;
    };
    pool.last_launch = core.now;
    let id = insert(core, pool_id, host);
    if let Some(login) = core.servers.get_mut(id).and_then(|server| server.login.as_mut()) {
        login.is_for_cancel = is_for_cancel;
    }
    core.actions.push_back(Action::Connect(id));
}

/// A new server of a pool that knows nothing yet, for an element of its list of hosts.
pub(super) fn insert(core: &mut Core, pool_id: PoolId, host: u32) -> ServerId {
    let number = core.next_number();
    let now = core.now;
    let id = core.servers.insert(Server {
        state: ServerState::Login,
        status: Status::Busy,
        delivered: true,
        shelf: None,
        close_needed: false,
        replication: Replication::None,
        client: None,
        pool: pool_id,
        last_packet: now,
        replies: Replies::default(),
        vars: Vars::new(),
        links: Links::default(),
        key: None,
        carries: Carries::Nothing,
        cancels_in_flight: 0,
        host,
        traits: Traits::default(),
        connect_time: now,
        number,
        remote: Addr::Unknown,
        local: Addr::Unknown,
        login: Some(Box::new(ServerLogin {
            stage: Stage::Connecting,
            is_for_cancel: false,
            scram: None,
            job: None,
            untracked: Vec::new(),
            refusal: None,
            error: None,
        })),
        tls: None,
    });
    core.list_server(id);
    id
}

impl Server {
    /// Its connection is not open yet.
    pub(super) fn is_connecting(&self) -> bool {
        self.login.as_ref().is_some_and(|login| login.stage == Stage::Connecting)
    }
}

impl Core {
    /// The connection is open: carry a cancel request, or log in.
    pub(super) fn server_connected(&mut self, id: ServerId, local: Addr, remote: Addr) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        (server.local, server.remote) = (local, remote);
        server.last_packet = self.now;
        let pool = server.pool;
        if self.settings.log_connections.on() {
            let from = match local {
                Addr::Inet(at) => format!(" (from {at})"),
                _ => String::new(),
            };
            self.server_log(id, Level::Log, &format!("new connection to server{from}"));
        }
        if self.peer_connected(id, pool) || self.carry_cancel(id, pool) {
            return;
        }
        if matches!(remote, Addr::Inet(_)) && self.asks_servers_for_tls() {
            self.go_to(id, Stage::Securing);
            self.actions.push_back(Action::StartTls(Peer::Server(id)));
            return;
        }
        self.begin_server_login(id);
    }

    /// Says to a server whom it is for.
    pub(super) fn begin_server_login(&mut self, id: ServerId) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        server.last_packet = self.now;
        if let Some(login) = server.login.as_mut() {
            login.stage = Stage::Authenticating;
        }
        self.dedicate(id);
        let startup = self.startup_packet(id);
        self.actions.push_back(Action::Send(Peer::Server(id), startup));
    }

    /// A connection can't be opened, for this reason; its loss follows.
    pub(super) fn server_unreachable(&mut self, id: ServerId, why: &str) {
        if let Some(login) = self.servers.get_mut(id).and_then(|server| server.login.as_mut()) {
            login.error = Some(why.to_owned());
        }
    }

    fn startup_packet(&self, id: ServerId) -> Vec<u8> {
        let mut packet = Vec::new();
        let Some(pool) = self.servers.get(id).and_then(|server| self.pools.get(server.pool)) else {
            return packet;
        };
        let Some(database) = self.databases.get(pool.database) else {
            return packet;
        };
        let entry = &database.entry;
        let mut pairs: Vec<(&[u8], &[u8])> = vec![(b"database", database.server_name().as_bytes())];
        for (name, value) in [
            ("client_encoding", &entry.client_encoding),
            ("datestyle", &entry.datestyle),
            ("timezone", &entry.timezone),
            ("application_name", &entry.application_name),
        ] {
            if let Some(value) = value {
                pairs.push((name.as_bytes(), value.as_bytes()));
            }
        }
        pairs.extend(self.replication_pairs(id));
        pairs.push((b"user", pool.names.1.as_bytes()));
        write::startup(&mut packet, pairs.into_iter());
        packet
    }

    /// A packet of a server that is not ready yet.
    pub(super) fn login_packet(
        &mut self,
        id: ServerId,
        packet: Packet<'_>,
        sink: &mut Sink,
    ) -> Verdict {
        if !packet.is_whole() {
            return Verdict::Whole;
        }
        let Some(server) = self.servers.get_mut(id) else {
            return Verdict::Stop;
        };
        server.last_packet = self.now;
        let body = packet.seen;
        match FromServer::of(packet.tag) {
            FromServer::Authentication => return self.authentication(id, body, sink),
            FromServer::ErrorResponse => return self.login_error(id, body),
            FromServer::ReadyForQuery => return self.login_ready(id, sink),
            FromServer::NoticeResponse => {}
            FromServer::ParameterStatus => match read::parameter_status(body) {
                Some((name, value)) => self.login_parameter(id, name, value),
                None => {
                    self.login_failed(id, fault::BROKEN_PARAMETER_STATUS, None, true);
                    return Verdict::Stop;
                }
            },
            FromServer::BackendKeyData => match Reader::new(body).u64() {
                Some(key) => server.key = Some(key),
                None => {
                    self.login_failed(id, fault::BAD_CANCEL_KEY, None, true);
                    return Verdict::Stop;
                }
            },
            FromServer::DataRow if self.stage(id) == Some(Stage::Asked) => {
                self.note_answer(id, body);
            }
            _ if self.in_own_query(id) => {}
            _ => {
                let text = format!("unknown pkt from server: '{}'", packet.tag as char);
                self.server_log(id, Level::Error, &text);
                self.login_failed(id, fault::UNKNOWN_LOGIN_PACKET, None, true);
                return Verdict::Stop;
            }
        }
        Verdict::Drop
    }

    fn stage(&self, id: ServerId) -> Option<Stage> {
        self.servers.get(id)?.login.as_ref().map(|login| login.stage)
    }

    fn in_own_query(&self, id: ServerId) -> bool {
        matches!(self.stage(id), Some(Stage::Asked | Stage::ConnectQuery))
    }

    fn go_to(&mut self, id: ServerId, stage: Stage) {
        if let Some(login) = self.servers.get_mut(id).and_then(|server| server.login.as_mut()) {
            login.stage = stage;
        }
    }

    fn login_parameter(&mut self, id: ServerId, name: &[u8], value: &[u8]) {
        self.note_trait(id, name, value);
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        match self.tracked.find(name) {
            Some(at) => server.vars.set(&self.tracked, at, value.into()),
            None => {
                if let Some(login) = server.login.as_mut() {
                    write::parameter_status(&mut login.untracked, name, value);
                }
            }
        }
    }

    fn authentication(&mut self, id: ServerId, body: &[u8], sink: &mut Sink) -> Verdict {
        let mut reader = Reader::new(body);
        let answered = match (self.stage(id), reader.u32()) {
            (Some(Stage::Authenticating), Some(request)) => {
                self.answer(id, request, reader.rest(), &mut sink.to_server)
            }
            _ => Err(None),
        };
        match answered {
            Ok(()) => Verdict::Drop,
            Err(error) => {
                self.answer_failed(id, error.as_ref());
                Verdict::Stop
            }
        }
    }

    /// No answer to an authentication request; without an error a line has been logged already.
    pub(super) fn answer_failed(&mut self, id: ServerId, error: Option<&ScramError>) {
        if let Some(error) = error {
            self.server_log(id, Level::Error, &error.to_string());
        }
        let refusal = error.and_then(ScramError::waiting_text);
        let refusal = refusal.map(|text| Fault::formatted(text.into()));
        self.login_failed(id, fault::AUTH_ANSWER_FAILED, refusal, false);
    }

    /// Answers an authentication request (auth 6.3). `Err(None)` if a line has been logged already.
    fn answer(
        &mut self,
        id: ServerId,
        request: u32,
        rest: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Option<ScramError>> {
        let pool = self.servers.get(id).map(|server| server.pool).ok_or(None)?;
        let (secret, name) = self.server_secret(pool);
        match request {
            0 => return self.authenticated(id),
            3 => write::password(out, &secret.cleartext_answer()),
            5 => {
                let salt = Reader::new(rest).u32().ok_or(None)?.to_be_bytes();
                let answer = secret.md5_answer(name.as_bytes(), salt).map_err(Some)?;
                write::password(out, answer.as_bytes());
            }
            10 => {
                let user = self.server_credentials(pool);
                let keys = user.and_then(|user| user.keys.as_ref());
                let credential = Credential::for_server(&secret, keys).map_err(Some)?;
                let random = self.random.bytes();
                let tls = self.servers.get(id).and_then(|server| server.tls());
                let end_point = tls.map_or(&b""[..], |tls| &tls.end_point);
                let exchange = ClientExchange::new(credential, random).bound_to(end_point);
                let exchange = self.scram(id)?.get_or_insert(exchange);
                let first = exchange.begin(rest).map_err(Some)?;
                write::sasl_initial(out, exchange.mechanism(), &first);
            }
            11 => {
                let challenge = match self.scram(id)? {
                    Some(exchange) => exchange.challenge(rest).map_err(Some)?,
                    None => return Err(Some(ScramError::ContinueWithoutSasl)),
                };
                match challenge {
                    Challenge::Answer(answer) => write::sasl_response(out, &answer),
                    Challenge::Derive { salt, iterations } => {
                        return self.derive_for_server(id, pool, (salt, iterations), out);
                    }
                }
            }
            12 => self.scram_final(id, rest)?,
            other => {
                let text = format!("unknown/unsupported auth method: {other}");
                self.server_log(id, Level::Error, &text);
                return Err(None);
            }
        }
        Ok(())
    }

    /// The exchange that a server has begun.
    pub(super) fn exchange(&mut self, id: ServerId) -> Option<&mut ClientExchange> {
        self.servers.get_mut(id)?.login.as_mut()?.scram.as_mut()
    }

    fn scram(&mut self, id: ServerId) -> Result<&mut Option<ClientExchange>, Option<ScramError>> {
        let login = self.servers.get_mut(id).and_then(|server| server.login.as_mut());
        login.map(|login| &mut login.scram).ok_or(None)
    }

    fn scram_final(&mut self, id: ServerId, rest: &[u8]) -> Result<(), Option<ScramError>> {
        let Some(exchange) = self.scram(id)? else {
            return Err(Some(ScramError::FinalWithoutContinue));
        };
        exchange.finish(rest).map_err(Some)?;
        if let Some(complaint) = exchange.take_complaint() {
            self.server_log(id, Level::Error, &complaint.to_string());
        }
        Ok(())
    }

    /// AuthenticationOk. A server that began SCRAM must have proved itself before (auth 10.3-F).
    fn authenticated(&mut self, id: ServerId) -> Result<(), Option<ScramError>> {
        let login =
            self.servers.get_mut(id).and_then(|server| server.login.as_mut()).ok_or(None)?;
        if login.scram.as_ref().is_some_and(|exchange| !exchange.is_verified()) {
            return Err(None);
        }
        login.stage = Stage::Authenticated;
        Ok(())
    }

    fn server_credentials(&self, pool: PoolId) -> Option<&User> {
        let pool = self.pools.get(pool)?;
        self.users.get(self.credentials(pool)).filter(|_| !self.has_own_password(pool))
    }

    /// The database entry brings the password for its forced user.
    pub(super) fn has_own_password(&self, pool: &super::pool::Pool) -> bool {
        let database = self.databases.get(pool.database);
        self.forces_user(pool) && database.is_some_and(|database| database.entry.password.is_some())
    }

    /// The secret and name to log in with.
    fn server_secret(&self, pool: PoolId) -> (Secret, Rc<str>) {
        let Some(pool) = self.pools.get(pool) else {
            return (Secret::Empty, "".into());
        };
        let name = pool.names.1.clone();
        let own = self
            .databases
            .get(pool.database)
            .filter(|_| self.has_own_password(pool))
            .and_then(|database| database.entry.password.as_ref())
            .map(|password| Secret::classify(&password.0));
        let secret = own.or_else(|| {
            let user = self.users.get(self.credentials(pool))?;
            Some(user.proved.clone().map_or_else(|| user.secret.clone(), Secret::Plain))
        });
        (secret.unwrap_or_default(), name)
    }

    /// ReadyForQuery during login.
    fn login_ready(&mut self, id: ServerId, sink: &mut Sink) -> Verdict {
        let stage = self.stage(id);
        let Some(pool) = self.servers.get(id).map(|server| server.pool) else {
            return Verdict::Stop;
        };
        if !matches!(stage, Some(Stage::Authenticated | Stage::Asked | Stage::ConnectQuery)) {
            self.login_failed(id, fault::UNKNOWN_LOGIN_PACKET, None, true);
            return Verdict::Stop;
        }
        match self.fit_at_login(id, pool) {
            Fit::Yes => {}
            Fit::No(unfit) => {
                self.login_failed(id, unfit.fault(), None, true);
                return Verdict::Stop;
            }
            Fit::Ask(question) if stage == Some(Stage::Authenticated) => {
                write::query(&mut sink.to_server, question.sql());
                self.go_to(id, Stage::Asked);
                if let Some(server) = self.servers.get_mut(id) {
                    server.traits.asked = Some(question);
                }
                return Verdict::Drop;
            }
            Fit::Ask(_) => {
                self.login_failed(id, fault::TRAITS_UNKNOWN, None, true);
                return Verdict::Stop;
            }
        }
        let query = self
            .pools
            .get(pool)
            .and_then(|pool| self.databases.get(pool.database))
            .and_then(|database| database.entry.connect_query.clone())
            .filter(|query| stage != Some(Stage::ConnectQuery) && !query.is_empty());
        if let Some(query) = query {
            if query.len() > OWN_QUERY_MAX {
                self.login_failed(id, fault::CONNECT_QUERY_TOO_LONG, None, false);
                return Verdict::Stop;
            }
            write::query(&mut sink.to_server, query.as_bytes());
            self.go_to(id, Stage::ConnectQuery);
            return Verdict::Drop;
        }
        self.login_done(id, pool, sink);
        Verdict::Drop
    }

    fn fit_at_login(&self, id: ServerId, pool: PoolId) -> Fit {
        let traits = self.servers.get(id).map(|server| server.traits).unwrap_or_default();
        let any_will_do = self.pools.get(pool).is_some_and(|pool| pool.hosts.any_will_do());
        attrs::fit(self.wanted(pool), traits, any_will_do)
    }

    fn login_done(&mut self, id: ServerId, pool_id: PoolId, sink: &mut Sink) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        let untracked = server.login.take().map_or_else(Vec::new, |login| login.untracked);
        server.status = Status::Ready;
        self.shared.share(&mut server.vars);
        let vars = server.vars.clone();
        let Some(pool) = self.pools.get_mut(pool_id) else {
            return;
        };
        pool.connect_failed = false;
        pool.login_failed = None;
        pool.last_error = None;
        if self.is_replication(id) {
            self.round_won(pool_id, id);
            return self.replication_ready(id, pool_id, untracked, sink);
        }
        let Some(pool) = self.pools.get_mut(pool_id) else {
            return;
        };
        if pool.welcome.is_none() {
            let tracked = vars.packets(&self.tracked);
            pool.welcome = Some(Rc::new(Welcome { untracked, vars, tracked }));
            self.fill_inherited(pool_id);
        }
        self.move_server(id, ServerState::Idle);
        self.round_won(pool_id, id);
        self.activate_next(pool_id);
        self.mark(pool_id);
    }

    /// ErrorResponse during login (pooling 10.5).
    fn login_error(&mut self, id: ServerId, body: &[u8]) -> Verdict {
        let fields = ErrorFields::read(body);
        if self.stage(id) == Some(Stage::Asked) {
            let text = fields.line(": ").unwrap_or_default();
            self.server_log(id, Level::Warning, &format!("asked for its mode: {text}"));
            return Verdict::Drop;
        }
        if self.stage(id) == Some(Stage::ConnectQuery) {
            let line = fields.line(": ").unwrap_or_default();
            let line = format!("S: error while executing exec_on_query: {line}");
            self.journal.line(Level::Error, line);
            return Verdict::Drop;
        }
        if self.is_replication(id) {
            self.replication_refused(id, &fields);
            return Verdict::Stop;
        }
        let line = match fields.line(" ") {
            Some(line) => format!("server login failed: {line}"),
            None => "server login failed".into(),
        };
        self.journal.line(Level::Warning, line);
        let starting = fields.sqlstate == Some(b"57P03");
        let message = fields.message.unwrap_or(b"(null)");
        let mut relayed = Fault::relayed(message, fields.sqlstate);
        relayed.told = fields.message.is_some();
        let mut reason = Fault::formatted(lossy(message));
        reason.told = relayed.told;
        self.login_failed(id, reason, (!starting).then_some(relayed), false);
        Verdict::Stop
    }

    /// A login came to nothing. `refusal` goes to all clients that wait, unless the pool has other
    /// servers and knows what to welcome clients with.
    fn login_failed(&mut self, id: ServerId, reason: Fault, refusal: Option<Fault>, term: bool) {
        if let Some(login) = self.servers.get_mut(id).and_then(|server| server.login.as_mut()) {
            login.refusal = refusal;
        }
        self.close_server(id, &reason, term);
    }

    /// Notes on the pool that a server was lost before it was ready; called by `close_server`. What
    /// is returned is for the client of a replication server.
    pub(super) fn note_failed_login(&mut self, id: ServerId, reason: &Fault) -> Option<Fault> {
        let server = self.servers.get_mut(id)?;
        let (pool_id, host) = (server.pool, server.host);
        let is_replication = server.replication.is_some();
        let login = server.login.take()?;
        if let Some(job) = login.job {
            self.leave_job(job, Peer::Server(id));
        }
        // What a walsender refuses may be allowed to others.
        if is_replication && !Unfit::caused(reason) {
            return login.refusal;
        }
        // What we ended ourselves says nothing about the server.
        if ENDED_BY_US.contains(reason) {
            return None;
        }
        let failure = self.attempt_failed(pool_id, host, reason, login.error, login.refusal);
        let failure = failure?;
        let pool = self.pools.get_mut(pool_id)?;
        // One that can't be reached must not keep clients from other hosts.
        pool.cancel_went_last = login.is_for_cancel && login.stage == Stage::Connecting;
        pool.connect_failed = true;
        pool.login_failed = Some(crate::base::text::cut(&failure.text, 99).to_owned());
        pool.last_error = Some(failure.detail);
        let refused =
            failure.refusal.filter(|_| pool.connected_count() == 0 || pool.welcome.is_none());
        if let Some(refusal) = refused {
            use super::client::ClientState as C;
            // Who shares a look-up goes first, or it would take it over.
            let queue = [C::Joined, C::Waiting].map(|state| pool.clients(state).ids(&self.clients));
            for client in queue.concat() {
                self.close_client(client, &refusal);
            }
        }
        None
    }

    /// The reason for the loss of a server.
    pub(super) fn loss_of_server(why: Loss) -> Fault {
        match why {
            Loss::Receive => fault::SERVER_CONN_CRASHED,
            Loss::Send => fault::SERVER_WRITE_FAILED,
            Loss::Connect => fault::CONNECT_FAILED,
            Loss::CannotConnect => fault::CANNOT_CONNECT,
            Loss::Dns => fault::DNS_FAILED,
            Loss::TlsRefused => fault::SERVER_REFUSED_SSL,
            Loss::TlsAnswer => fault::BAD_SSL_ANSWER,
            Loss::TlsAnswerBehind => fault::DATA_BEHIND_SSL_ANSWER,
            Loss::TlsSetup => fault::SSL_SETUP_FAILED,
        }
    }
}
