//! A client proves who it is: requests and answers of each method (auth 2.3, 2.4, 5).

use super::client::Client;
use super::database::UserId;
use super::derive::Held;
use super::face::{Addr, ClientId, Sink};
use super::fault::{self, Fault};
use super::jobs::{Attempt, Awaited, Job};
use super::login::{Proof, Stage};
use super::Core;
use crate::auth::{self, Accepted, ScramError, Secret, ServerExchange};
use crate::base::Level;
use crate::config::hba::Method;
use crate::wire::{write, Reader};
use zeroize::Zeroizing;

/// Longest password in bytes that is passed on (auth 2.6).
const PASSWORD_MAX: usize = 65_530;

impl Core {
    /// Sends the authentication request of the method (auth 2.3, 2.4).
    pub(super) fn ask(
        &mut self,
        id: ClientId,
        known: Option<UserId>,
        sink: &mut Sink,
    ) -> Result<(), Fault> {
        let secret = known.and_then(|user| self.users.get(user)).map(|user| &user.secret);
        let is_scram = matches!(secret, Some(Secret::Scram(_)));
        let stage = match self.method(id).ok_or(fault::NO_METHOD)? {
            Method::Any => return self.authenticated_client(id, sink),
            Method::Trust if known.is_some() => return self.authenticated_client(id, sink),
            Method::Trust => return Err(fault::TRUST_FAILED),
            Method::Reject => return Err(fault::REJECTED),
            Method::Peer(map) => {
                self.check_peer(id, known, map.as_deref())?;
                return self.authenticated_client(id, sink);
            }
            Method::Cert(map) => {
                self.check_certificate(id, known, map.as_deref())?;
                return self.authenticated_client(id, sink);
            }
            Method::Password => {
                write::authentication(&mut sink.to_client, 3, b"");
                Stage::Plain
            }
            Method::Md5 if !is_scram => {
                let salt = self.random.bytes();
                write::authentication(&mut sink.to_client, 5, &salt);
                Stage::Md5(salt)
            }
            Method::Md5 | Method::ScramSha256 => {
                // What takes long begins while the client makes up its answer.
                self.verifier(id, known);
                let mechanisms = auth::mechanisms(self.end_point(id));
                write::authentication(&mut sink.to_client, 10, mechanisms);
                Stage::SaslBegin
            }
            Method::Pam => return self.ask_outside(id, Stage::Pam, sink),
            Method::Ldap(options) => {
                let options = options.map(|options| options.to_string());
                let options = options.or_else(|| self.settings.auth_ldap_options.clone());
                let stage = Stage::Ldap(options.ok_or(fault::LDAP_OPTIONS_MISSING)?);
                return self.ask_outside(id, stage, sink);
            }
        };
        self.set_stage(id, stage);
        Ok(())
    }

    /// Asks for a password in clear text that others judge (auth 8).
    pub(super) fn ask_outside(
        &mut self,
        id: ClientId,
        stage: Stage,
        sink: &mut Sink,
    ) -> Result<(), Fault> {
        write::authentication(&mut sink.to_client, 3, b"");
        self.set_stage(id, stage);
        Ok(())
    }

    /// PasswordMessage, SASLInitialResponse and SASLResponse.
    pub(super) fn password(
        &mut self,
        id: ClientId,
        body: &[u8],
        sink: &mut Sink,
    ) -> Result<(), Fault> {
        let client = self.clients.get_mut(id).ok_or(fault::BAD_PACKET)?;
        let login = client.login.as_mut().ok_or(fault::BAD_PACKET)?;
        match std::mem::replace(&mut login.stage, Stage::Done) {
            Stage::Opening => Err(fault::PASSWORD_BEFORE_STARTUP),
            Stage::Done => Err(fault::BAD_PACKET),
            Stage::SaslBegin => self.sasl_begin(id, body, sink),
            Stage::Sasl(exchange, stored) => self.sasl(id, *exchange, stored, body, sink),
            Stage::Judged(Ok(Proof::Known)) if self.is_secret_as_noted(id) => {
                self.authenticated_client(id, sink)
            }
            Stage::Judged(Ok(Proof::Known)) => Err(fault::PASSWORD_FAILED),
            Stage::Judged(Ok(Proof::Outside)) => self.adopt(id, body, sink),
            Stage::Judged(Err(fault)) => Err(fault),
            stage => {
                let Some(given) = Reader::new(body).text() else {
                    self.set_stage(id, stage);
                    return Ok(());
                };
                if given.is_empty() {
                    return Err(fault::EMPTY_PASSWORD);
                }
                self.given(id, stage, given, sink)
            }
        }
    }

    /// The client has answered a request for a password in clear text or as MD5.
    fn given(
        &mut self,
        id: ClientId,
        stage: Stage,
        given: &[u8],
        sink: &mut Sink,
    ) -> Result<(), Fault> {
        let client = self.clients.get(id).ok_or(fault::BAD_PACKET)?;
        let known = client.login.as_ref().and_then(|login| login.known);
        let user = known.and_then(|user| self.users.get(user));
        let name = user.map_or(&b""[..], |user| user.name.as_bytes());
        let secret = user.map_or(&Secret::Empty, |user| &user.secret);
        let fits = match (stage, secret) {
            (Stage::Md5(salt), secret) => match auth::check_md5(secret, name, salt, given) {
                true => true,
                false => return Err(fault::PASSWORD_FAILED),
            },
            (Stage::Pam, _) => {
                self.await_outside(id, Stage::Pam, Job::Pam(attempt(client, given)));
                return Ok(());
            }
            (Stage::Ldap(options), _) => {
                let job = Job::Ldap(attempt(client, given), options.clone());
                self.await_outside(id, Stage::Ldap(options), job);
                return Ok(());
            }
            (_, Secret::Scram(stored)) => {
                let stored = stored.clone();
                return self.judge_password(id, given, &stored);
            }
            (_, secret) => auth::check_plain(secret, name, given),
        };
        match fits {
            true => self.authenticated_client(id, sink),
            false => self.refuse_password(id, given),
        }
    }

    /// Until the job ends, the client is where it was: another process may have to ask again.
    fn await_outside(&mut self, id: ClientId, stage: Stage, job: Job) {
        self.set_stage(id, stage);
        let job = self.start_job(job, Awaited::Outside(id));
        self.await_job(id, job);
    }

    /// PAM or LDAP know the client: so do we, from now on; the password serves for servers, too.
    fn adopt(&mut self, id: ClientId, body: &[u8], sink: &mut Sink) -> Result<(), Fault> {
        let client = self.clients.get(id).ok_or(fault::BAD_PACKET)?;
        let name = client.user_name.clone().ok_or(fault::BAD_PACKET)?;
        let given = Reader::new(body).text().ok_or(fault::BAD_PACKET)?;
        let user_id = self.user(&name);
        for user in [Some(user_id), self.fetched_before(id)].into_iter().flatten() {
            if let Some(user) = self.users.get_mut(user) {
                user.proved = Some(limited(given));
            }
        }
        if let Some(client) = self.clients.get_mut(id) {
            client.user = Some(user_id);
        }
        self.attach(id);
        self.admit_user(id, &name)?;
        self.authenticated_client(id, sink)
    }

    /// Hash of the certificate that the client was shown, for channel binding; empty without TLS.
    fn end_point(&self, id: ClientId) -> &[u8] {
        let tls = self.clients.get(id).and_then(|client| client.tls());
        tls.map_or(&b""[..], |tls| &tls.end_point)
    }

    fn sasl_begin(&mut self, id: ClientId, body: &[u8], sink: &mut Sink) -> Result<(), Fault> {
        let login = self.clients.get(id).and_then(|client| client.login.as_ref());
        match self.verifier(id, login.and_then(|login| login.known)) {
            Held::Against(verifier, stored) => {
                let exchange = ServerExchange::new(verifier).bound_to(self.end_point(id));
                self.sasl(id, exchange, stored, body, sink)
            }
            Held::After(job) => {
                self.set_stage(id, Stage::SaslBegin);
                self.await_verifier(id, job);
                Ok(())
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
        self.note_secret(id);
        write::authentication(&mut sink.to_client, 11, &challenge);
        self.set_stage(id, Stage::Sasl(Box::new(exchange), stored));
        Ok(())
    }

    fn secret_version(&self, id: ClientId) -> Option<u64> {
        let login = self.clients.get(id)?.login.as_ref()?;
        self.users.get(login.known?).map(|user| user.secret_version)
    }

    /// From here on the client's proof is held against the secret that its user has now.
    pub(super) fn note_secret(&mut self, id: ClientId) {
        let version = self.secret_version(id);
        if let Some(login) = self.clients.get_mut(id).and_then(|client| client.login.as_mut()) {
            login.held_against = version;
        }
    }

    /// A proof is good only for the secret that it was held against: the user may have been removed
    /// in the meantime, or have got another one (auth 5.4, 10.3-B).
    fn is_secret_as_noted(&self, id: ClientId) -> bool {
        let login = self.clients.get(id).and_then(|client| client.login.as_ref());
        let noted = login.and_then(|login| login.held_against);
        noted.is_some() && noted == self.secret_version(id)
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
        if !self.is_secret_as_noted(id) {
            self.client_log(id, Level::Error, &ScramError::WrongPassword.to_string());
            return Err(fault::SASL_FAILED);
        }
        write::authentication(&mut sink.to_client, 12, &accepted.server_final);
        let user = self.clients.get(id).and_then(|client| client.login.as_ref()?.known);
        if let Some(user) = user.and_then(|user| self.users.get_mut(user)).filter(|_| stored) {
            user.keys = Some(accepted.keys);
        }
        self.authenticated_client(id, sink)
    }
}

/// A password, cut to what we pass on.
fn limited(given: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(given.get(..PASSWORD_MAX).unwrap_or(given).to_vec())
}

/// What others are asked about a client.
fn attempt(client: &Client, given: &[u8]) -> Attempt {
    let host = match client.remote {
        Addr::Inet(at) => at.ip().to_string(),
        Addr::Unix { .. } | Addr::Unknown => "unix".to_owned(),
    };
    let user = client.user_name.as_deref().unwrap_or("").to_owned();
    Attempt { user, password: limited(given), host }
}

/// Mechanism and message of a SASLInitialResponse.
fn sasl_initial(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut reader = Reader::new(body);
    let mechanism = reader.text()?;
    let len = reader.u32()?;
    let first = reader.bytes(usize::try_from(len).ok()?)?;
    reader.rest().is_empty().then_some((mechanism, first))
}
