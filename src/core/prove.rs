//! A client proves who it is: requests and answers of each method (auth 2.3, 2.4, 5).

use super::database::UserId;
use super::face::{ClientId, Sink};
use super::fault::{self, Fault};
use super::login::Stage;
use super::Core;
use crate::auth::{self, Accepted, ScramError, ScramSecret, Secret, ServerExchange, Verifier};
use crate::base::Level;
use crate::config::hba::Method;
use crate::wire::{write, Reader};

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
                let (verifier, stored) = self.verifier(id, known);
                let tls = self.clients.get(id).and_then(|client| client.tls());
                let end_point = tls.map_or(&b""[..], |tls| &tls.end_point);
                let exchange = ServerExchange::new(verifier).bound_to(end_point);
                write::authentication(&mut sink.to_client, 10, exchange.mechanisms());
                Stage::Sasl(Box::new(exchange), stored)
            }
            // These come with a later version; until then they let nobody in.
            Method::Ldap(_) => return Err(fault::LDAP_MISSING),
            Method::Pam => return Err(fault::PAM_FAILED),
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
    pub(super) fn password(
        &mut self,
        id: ClientId,
        body: &[u8],
        sink: &mut Sink,
    ) -> Result<(), Fault> {
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
        let user = self.clients.get(id).and_then(|client| client.login.as_ref()?.known);
        if let Some(user) = user.and_then(|user| self.users.get_mut(user)).filter(|_| stored) {
            user.keys = Some(accepted.keys);
        }
        self.authenticated_client(id, sink)
    }
}

/// Mechanism and message of a SASLInitialResponse.
fn sasl_initial(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut reader = Reader::new(body);
    let mechanism = reader.text()?;
    let len = reader.u32()?;
    let first = reader.bytes(usize::try_from(len).ok()?)?;
    reader.rest().is_empty().then_some((mechanism, first))
}
