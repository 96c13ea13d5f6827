//! What helper threads do, played by the simulator: jobs end later, in any order, and whoever waits
//! for one may have gone.

use crate::auth_query::LISTED;
use crate::server::Server;
use crate::world::World;
use pgturnstile::auth::{SaltedKeys, ScramSecret, MECHANISM};
use pgturnstile::core::{Decisions, Derivation, Job, Outcome};
use pgturnstile::wire::write;

/// The password of everybody who is in a list.
pub const PASSWORD: &[u8] = LISTED.as_bytes();

/// A secret that belongs to the password, as servers and user lists have it.
pub fn stored_secret() -> ScramSecret {
    ScramSecret::derive(PASSWORD, b"0123456789abcdef", 1)
}

impl Server {
    /// A message of the SCRAM exchange.
    pub(super) fn prove(&mut self, body: &[u8]) {
        let Some(exchange) = &mut self.exchange else { return };
        if !exchange.is_challenged() {
            let first = body.get(MECHANISM.len() + 5..).unwrap_or_default();
            let challenge = exchange.first(MECHANISM.as_bytes(), first, [7; 18]);
            let challenge = challenge.expect("a proper message");
            return self.say(|out| write::authentication(out, 11, &challenge));
        }
        match exchange.last(body) {
            Ok(accepted) => {
                self.say(|out| write::authentication(out, 12, &accepted.server_final));
                self.welcome();
            }
            Err(_) => {
                self.say(|out| write::error(out, "FATAL", b"28P01", b"wrong password"));
                self.die(false);
            }
        }
    }
}

impl World {
    /// Some job ends.
    pub fn some_job_ends(&mut self) {
        if !self.jobs.is_empty() {
            let at = self.dice.below(self.jobs.len());
            self.job_ends(at);
        }
    }

    /// A job ends; one that was abandoned may have been done all the same.
    pub fn job_ends(&mut self, at: usize) {
        let (id, job) = self.jobs.remove(at);
        let abandoned = self.jobs_left.contains(&id);
        self.jobs_left.retain(|left| *left != id);
        let outcome = match job {
            _ if abandoned && self.dice.chance(50) => Outcome::GivenUp,
            _ if self.may_fail(2) => Outcome::GivenUp,
            Job::Derive(Derivation { password, salt, iterations }) => {
                Outcome::Keys(SaltedKeys::derive(&password, &salt, iterations))
            }
            Job::Pam(attempt) | Job::Ldap(attempt, _) => {
                assert_eq!(*attempt.password, PASSWORD, "JOBS: another password");
                Outcome::Judged { accepted: !self.may_fail(10), lines: vec!["a line".into()] }
            }
        };
        self.trace(|_| format!("{id:?} ends: {outcome:?}"));
        self.core.job_done(id, outcome);
    }

    fn may_fail(&mut self, percent: usize) -> bool {
        !self.plan.calm && !self.settling && self.dice.chance(percent)
    }
}
