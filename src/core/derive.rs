//! Keys from passwords, which helper threads derive: each once, for whoever waits for it
//! (auth 5.3, 5.5).

use super::database::{DatabaseId, UserId};
use super::face::{Action, ClientId, Peer, ServerId};
use super::fault;
use super::jobs::{Awaited, Derivation, Job, JobId, Outcome};
use super::login::Proof;
use super::pool::PoolId;
use super::Core;
use crate::auth::{self, SaltedKeys, ScramError, ScramSecret, Secret, Verifier};
use crate::base::Level;
use crate::wire::write;
use zeroize::Zeroizing;

/// A server that asks for more PBKDF2 iterations is refused. So many take a few seconds, which
/// still fits into server_connect_timeout; PostgreSQL's default are 4096.
const ITERATIONS_MAX: u32 = 10_000_000;

/// What a plain-text secret is for clients that use SCRAM: made once, its salt stays (auth 5.3).
#[derive(Default)]
pub(super) enum Adhoc {
    /// Nobody has asked for it.
    #[default]
    None,
    /// This job makes it.
    Making(JobId),
    /// It is here.
    Made(ScramSecret),
}

/// Keys for servers that are being made.
pub(super) struct ServerKeys {
    owner: Owner,
    from: Derivation,
}

/// Who keeps the keys that were derived for a server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    User(UserId),
    /// The entry brings the password for its forced user.
    Database(DatabaseId),
}

/// What a SCRAM proof is held against.
pub(super) enum Held {
    /// This. The flag tells whether it is a stored SCRAM secret.
    Against(Verifier, bool),
    /// What this job makes.
    After(JobId),
}

impl Core {
    /// What a SCRAM proof is held against; has it made if it does not exist yet.
    pub(super) fn verifier(&mut self, id: ClientId, known: Option<UserId>) -> Held {
        let iterations = u32::try_from(self.settings.scram_iterations).unwrap_or(0).max(1);
        if let Some((user_id, user)) = known.and_then(|id| Some((id, self.users.get(id)?))) {
            match (&user.secret, &user.adhoc) {
                (Secret::Scram(secret), _) => {
                    return Held::Against(Verifier::Secret(secret.clone()), true);
                }
                (Secret::Md5(_), _) => return Held::Against(Verifier::Md5Secret, false),
                (Secret::Plain(_), Adhoc::Made(secret)) => {
                    return Held::Against(Verifier::Secret(secret.clone()), false);
                }
                (Secret::Plain(_), Adhoc::Making(job)) => return Held::After(*job),
                (Secret::Plain(password), Adhoc::None) => {
                    let password = password.clone();
                    let salt = self.random.bytes::<16>().to_vec();
                    let job = Job::Derive(Derivation { password, salt, iterations });
                    let job = self.start_job(job, Awaited::Verifier(user_id, Vec::new()));
                    if let Some(user) = self.users.get_mut(user_id) {
                        user.adhoc = Adhoc::Making(job);
                    }
                    return Held::After(job);
                }
                (Secret::Empty, _) => {}
            }
        }
        let name = self.clients.get(id).and_then(|client| client.user_name.clone());
        let name = name.as_deref().unwrap_or("");
        let salt = auth::mock_salt(name.as_bytes(), &self.mock_key);
        Held::Against(Verifier::Mock { salt, iterations }, false)
    }

    /// The client waits for the verifier that this job makes.
    pub(super) fn await_verifier(&mut self, id: ClientId, job: JobId) {
        if let Some(Awaited::Verifier(_, clients)) = self.jobs.awaited_by(job) {
            clients.push(id);
            self.await_job(id, job);
        }
    }

    pub(super) fn verifier_made(
        &mut self,
        job: JobId,
        user: UserId,
        clients: Vec<ClientId>,
        outcome: Outcome,
    ) {
        let keys = match outcome {
            Outcome::Keys(keys) => Some(keys),
            _ => None,
        };
        let failed = keys.is_none();
        let user = self.users.get_mut(user);
        // A secret that has changed in the meantime needs another one.
        if let Some(user) = user.filter(|user| matches!(user.adhoc, Adhoc::Making(by) if by == job))
        {
            user.adhoc = keys.map_or(Adhoc::None, |keys| Adhoc::Made(keys.secret()));
        }
        for client in clients {
            self.go_on(job, client, failed.then_some(Err(fault::SASL_FAILED)));
        }
    }

    /// The client has sent a password in clear text; is it the one of this stored secret?
    pub(super) fn judge_password(&mut self, id: ClientId, given: &[u8], stored: &ScramSecret) {
        let password = Zeroizing::new(given.to_vec());
        let (salt, iterations) = (stored.salt.clone(), stored.iterations);
        let job = Job::Derive(Derivation { password, salt, iterations });
        let job = self.start_job(job, Awaited::Password(id));
        self.await_job(id, job);
    }

    pub(super) fn password_judged(&mut self, job: JobId, id: ClientId, outcome: Outcome) {
        let login = self.clients.get(id).and_then(|client| client.login.as_ref());
        let user = login.and_then(|login| login.known).and_then(|user| self.users.get(user));
        let fits = match (user.map(|user| &user.secret), outcome) {
            (Some(Secret::Scram(stored)), Outcome::Keys(keys)) => stored.is_of(&keys),
            _ => false,
        };
        let judged = if fits { Ok(Proof::Known) } else { Err(fault::PASSWORD_FAILED) };
        self.go_on(job, id, Some(judged));
    }

    /// A server wants a proof that takes keys; answers if they are here, has them made if not. One
    /// derivation at a time for a server: what it sends meanwhile can't be another challenge.
    pub(super) fn derive_for_server(
        &mut self,
        id: ServerId,
        pool: PoolId,
        (salt, iterations): (Vec<u8>, u32),
        out: &mut Vec<u8>,
    ) -> Result<(), Option<ScramError>> {
        if iterations > ITERATIONS_MAX {
            let line = format!(
                "SCRAM iteration count {iterations} is too high (at most {ITERATIONS_MAX} are done)"
            );
            self.server_log(id, Level::Error, &line);
            return Err(None);
        }
        let owner = self.key_owner(pool).ok_or(None)?;
        let password = self.exchange(id).and_then(|exchange| exchange.password()).cloned();
        let from = Derivation { password: password.ok_or(None)?, salt, iterations };
        let known = self.kept_keys(owner).and_then(|kept| kept.as_ref());
        if let Some(keys) = known.filter(|kept| kept.are_of(&from)).map(|kept| kept.keys.clone()) {
            let answer = self.exchange(id).map(|exchange| exchange.answer(keys)).ok_or(None)?;
            write::sasl_response(out, &answer.map_err(Some)?);
            return Ok(());
        }
        let shared = self.jobs.awaited().find_map(|(job, awaited)| match awaited {
            Awaited::Servers(keys, servers) if keys.owner == owner && keys.from == from => {
                servers.push(id);
                Some(job)
            }
            _ => None,
        });
        let job = match shared {
            Some(job) => job,
            None => {
                let keys = ServerKeys { owner, from: from.clone() };
                self.start_job(Job::Derive(from), Awaited::Servers(keys, vec![id]))
            }
        };
        if let Some(login) = self.servers.get_mut(id).and_then(|server| server.login.as_mut()) {
            login.job = Some(job);
        }
        Ok(())
    }

    pub(super) fn server_keys_made(
        &mut self,
        job: JobId,
        made: &ServerKeys,
        servers: Vec<ServerId>,
        outcome: Outcome,
    ) {
        let keys = match outcome {
            Outcome::Keys(keys) => Some(keys),
            _ => None,
        };
        if let (Some(kept), Some(keys)) = (self.kept_keys(made.owner), &keys) {
            *kept = Some(KeptKeys { password: made.from.password.clone(), keys: keys.clone() });
        }
        for id in servers {
            let login = self.servers.get_mut(id).and_then(|server| server.login.as_mut());
            let Some(login) = login.filter(|login| login.job == Some(job)) else { continue };
            login.job = None;
            let exchange = login.scram.as_mut();
            let answer = exchange.zip(keys.clone()).map(|(exchange, keys)| exchange.answer(keys));
            match answer {
                Some(Ok(answer)) => {
                    let mut packet = Vec::new();
                    write::sasl_response(&mut packet, &answer);
                    self.actions.push_back(Action::Send(Peer::Server(id), packet));
                }
                Some(Err(error)) => self.answer_failed(id, Some(&error)),
                None => self.answer_failed(id, None),
            }
        }
    }

    fn key_owner(&self, pool: PoolId) -> Option<Owner> {
        let pool = self.pools.get(pool)?;
        Some(match self.has_own_password(pool) {
            true => Owner::Database(pool.database),
            false => Owner::User(self.credentials(pool)),
        })
    }

    fn kept_keys(&mut self, owner: Owner) -> Option<&mut Option<KeptKeys>> {
        match owner {
            Owner::User(user) => self.users.get_mut(user).map(|user| &mut user.salted),
            Owner::Database(id) => self.databases.get_mut(id).map(|database| &mut database.salted),
        }
    }
}

/// Keys from the last SCRAM login to a server, with the password that they were derived from.
pub(super) struct KeptKeys {
    password: Zeroizing<Vec<u8>>,
    keys: SaltedKeys,
}

impl KeptKeys {
    fn are_of(&self, from: &Derivation) -> bool {
        self.keys.fit(&from.salt, from.iterations) && auth::same(&self.password, &from.password)
    }
}

impl PartialEq for Derivation {
    fn eq(&self, other: &Derivation) -> bool {
        self.iterations == other.iterations
            && self.salt == other.salt
            && auth::same(&self.password, &other.password)
    }
}
