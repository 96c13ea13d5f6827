//! Keys from passwords, which helper threads derive: each once, for whoever waits for it
//! (auth 5.3, 5.5).

use super::database::{DatabaseId, UserId};
use super::face::{Action, ClientId, Peer, ServerId};
use super::fault::{self, Fault};
use super::jobs::{Awaited, Derivation, Job, JobId, Outcome};
use super::login::{Proof, Stage};
use super::pool::PoolId;
use super::Core;
use crate::auth::{self, SaltedKeys, ScramError, ScramSecret, Secret, Verifier};
use crate::base::Level;
use crate::config::AuthType;
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
        let iterations = self.scram_iterations();
        let mut is_md5 = false;
        if let Some((user_id, user)) = known.and_then(|id| Some((id, self.users.get(id)?))) {
            match (&user.secret, &user.adhoc) {
                (Secret::Scram(secret), _) => {
                    return Held::Against(Verifier::Secret(secret.clone()), true);
                }
                (Secret::Md5(_), _) => is_md5 = true,
                (Secret::Plain(_), Adhoc::Made(secret)) => {
                    return Held::Against(Verifier::Secret(secret.clone()), false);
                }
                (Secret::Plain(_), Adhoc::Making(job)) => return Held::After(*job),
                (Secret::Plain(password), Adhoc::None) => {
                    let password = password.clone();
                    return Held::After(self.make_verifier(user_id, password));
                }
                (Secret::Empty, _) => {}
            }
        }
        let name = self.clients.get(id).and_then(|client| client.user_name.clone());
        let name = name.as_deref().unwrap_or("");
        let salt = auth::mock_salt(name.as_bytes(), &self.mock_key);
        Held::Against(
            match is_md5 {
                true => Verifier::Md5Secret { salt, iterations },
                false => Verifier::Mock { salt, iterations },
            },
            false,
        )
    }

    fn make_verifier(&mut self, id: UserId, password: Zeroizing<Vec<u8>>) -> JobId {
        let iterations = self.scram_iterations();
        let salt = self.random.bytes::<16>().to_vec();
        let job = Job::Derive(Derivation { password, salt, iterations });
        let job = self.start_job(job, Awaited::Verifier(id, Vec::new()));
        if let Some(user) = self.users.get_mut(id) {
            user.adhoc = Adhoc::Making(job);
        }
        job
    }

    /// Users or methods have changed: verifiers that are missing will be made before somebody needs
    /// them. Else the first login of a user would take longer than one of a user who does not exist.
    pub(super) fn plan_verifiers(&mut self) {
        let wanted = match self.settings.auth_type {
            AuthType::ScramSha256 => true,
            AuthType::Hba => self.rules.ask_for_scram(),
            _ => false,
        };
        let users = self.users.iter().filter(|(_, user)| wanted && user.listed);
        self.jobs.planned = users.map(|(id, _)| id).collect();
        self.make_planned_verifier();
    }

    /// Makes the next verifier of those that were planned, unless there is something to derive.
    pub(super) fn make_planned_verifier(&mut self) {
        while !self.jobs.derives() {
            let Some(id) = self.jobs.planned.pop_front() else { return };
            let Some(user) = self.users.get(id) else { continue };
            if let (Secret::Plain(password), Adhoc::None) = (&user.secret, &user.adhoc) {
                let password = password.clone();
                self.make_verifier(id, password);
            }
        }
    }

    fn scram_iterations(&self) -> u32 {
        u32::try_from(self.settings.scram_iterations).unwrap_or(0).max(1)
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
    pub(super) fn judge_password(
        &mut self,
        id: ClientId,
        given: &[u8],
        stored: &ScramSecret,
    ) -> Result<(), Fault> {
        if stored.iterations > ITERATIONS_MAX {
            // Whoever may set a password of a database's may make up such a secret.
            let (count, most) = (stored.iterations, ITERATIONS_MAX);
            let line =
                format!("SCRAM iteration count {count} is too high (at most {most} are done)");
            self.client_log(id, Level::Error, &line);
            return Err(fault::PASSWORD_FAILED);
        }
        self.derive_from(id, given, stored.salt.clone(), stored.iterations);
        Ok(())
    }

    /// A password in clear text is wrong, or there is no such user. If some users' secrets take a
    /// derivation to find that out, this takes one, too: nobody shall tell from the time who exists.
    pub(super) fn refuse_password(&mut self, id: ClientId, given: &[u8]) -> Result<(), Fault> {
        if !self.users.iter().any(|(_, user)| matches!(user.secret, Secret::Scram(_))) {
            return Err(fault::PASSWORD_FAILED);
        }
        let iterations = self.scram_iterations();
        self.derive_from(id, given, self.mock_key.to_vec(), iterations);
        Ok(())
    }

    fn derive_from(&mut self, id: ClientId, given: &[u8], salt: Vec<u8>, iterations: u32) {
        self.set_stage(id, Stage::Plain);
        let password = Zeroizing::new(given.to_vec());
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
        self.note_secret(id);
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
    pub(super) password: Zeroizing<Vec<u8>>,
    pub(super) keys: SaltedKeys,
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

#[cfg(test)]
mod tests {
    use super::super::database::User;
    use super::super::face::Decisions;
    use super::super::login_scene::{stored, Scene, PASSWORD};
    use super::*;

    fn list(names: &[&str], secret: &[u8]) -> Vec<(String, Vec<u8>)> {
        names.iter().map(|name| ((*name).to_owned(), secret.to_vec())).collect()
    }

    #[test]
    fn verifiers_are_made_ahead_one_at_a_time_where_somebody_may_need_them() {
        for (settings, rules, want) in [
            ("auth_type = scram-sha-256", "", 3),
            ("auth_type = hba", "local all all scram-sha-256", 3),
            ("auth_type = hba", "local all all md5", 0),
            ("auth_type = md5", "", 0),
            ("auth_type = plain", "", 0),
        ] {
            let mut scene = Scene::new(settings);
            scene.rules(rules);
            while scene.end_job() {}
            let mut users = list(&["a", "b", "c"], PASSWORD);
            users.extend(list(&["s"], &stored()));
            users.extend(list(&["e"], b""));
            scene.core.set_users(users.clone());
            let mut made = 0;
            loop {
                scene.act();
                assert!(scene.jobs.len() <= 1);
                if !scene.end_job() {
                    break;
                }
                made += 1;
            }
            assert_eq!(made, want, "{settings}");
            // What is there is not made again.
            scene.core.set_users(users);
            scene.configure(settings);
            assert!(scene.jobs.is_empty(), "{settings}");
        }
    }

    #[test]
    fn a_changed_secret_gets_a_verifier_of_its_own() {
        let mut scene = Scene::new("auth_type = scram-sha-256");
        while scene.end_job() {}
        scene.core.set_users(list(&["a"], b"one"));
        scene.act();
        let (old, _) = scene.jobs.remove(0);
        scene.core.set_users(list(&["a"], b"two"));
        scene.act();
        assert!(scene.jobs.is_empty(), "one at a time");
        let keys = SaltedKeys::derive(b"one", b"salt", 1);
        scene.core.job_done(old, Outcome::Keys(keys.clone()));
        scene.act();
        let made = |scene: &Scene| match scene.core.users.get(scene.core.user_names["a"]) {
            Some(User { adhoc: Adhoc::Made(secret), .. }) => Some(secret.clone()),
            _ => None,
        };
        assert_eq!(made(&scene), None, "a verifier of the old one");
        assert!(scene.end_job());
        let verifier = made(&scene).unwrap();
        let of =
            |password: &[u8]| SaltedKeys::derive(password, &verifier.salt, verifier.iterations);
        assert!(verifier.is_of(&of(b"two")) && !verifier.is_of(&of(b"one")));
    }

    #[test]
    fn a_secret_that_takes_too_long_is_refused_at_once() {
        let mut scene = Scene::new("auth_type = plain");
        let text = String::from_utf8(stored()).unwrap().replace("$2:", "$10000001:");
        scene.core.set_users(list(&["slow"], text.as_bytes()));
        let id = scene.beginner("slow", "d");
        let mut packet = Vec::new();
        write::password(&mut packet, PASSWORD);
        scene.say(id, &packet);
        assert_eq!(scene.outcome(id), "password authentication failed");
        assert_eq!(scene.core.job_count(), 0);
        let want = "SCRAM iteration count 10000001 is too high (at most 10000000 are done)";
        assert!(scene.log().contains(want));
    }
}
