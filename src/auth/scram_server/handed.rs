//! An exchange that has begun goes on in another process (doc/handoff.md).

use super::{Challenged, ServerExchange, State};
use crate::auth::{ScramError, ScramSecret};
use crate::base::fields::{self, Fields};
use crate::tags;
use std::borrow::Cow;
use zeroize::Zeroizing;

tags! {
    /// Fields of an exchange whose client has been challenged.
    EXCHANGE_TAGS:
    1 SECRET "what the proof is held against, as PostgreSQL stores it; `SCRAM-SHA-256$...`",
    2 MOCK "why it fails in any case: 1 for want of a secret, 2 as the secret is an MD5 one",
    3 BINDING "what `c=` has to be in the client's last message",
    4 PLUS "the client has chosen SCRAM-SHA-256-PLUS",
    5 NONCE "the client's nonce and ours",
    6 TRANSCRIPT "what has been said: client-first-message-bare `,` server-first-message `,`",
}

/// Values of [`MOCK`].
const NO_SECRET: u64 = 1;
const MD5_SECRET: u64 = 2;

impl ServerExchange {
    /// Writes all that the client's last message is judged by; nothing if it has not been
    /// challenged, as such an exchange is begun anew.
    pub fn hand_out(&self, fields: &mut Fields) {
        let State::Challenged(challenged) = &self.state else { return };
        let Challenged { secret, mock, binding, plus, nonce, transcript } = &**challenged;
        fields.put(SECRET, Zeroizing::new(secret.text()).as_bytes());
        match mock {
            None => {}
            Some(ScramError::Md5Secret) => fields.number(MOCK, MD5_SECRET),
            Some(_) => fields.number(MOCK, NO_SECRET),
        }
        fields.put(BINDING, binding.as_bytes());
        fields.flag(PLUS, *plus);
        fields.put(NONCE, nonce);
        fields.put(TRANSCRIPT, transcript);
    }

    /// The exchange that these fields tell of; `None` if they don't. What is missing makes every
    /// proof fail.
    pub fn take_in(bytes: &[u8]) -> Option<ServerExchange> {
        let (mut secret, mut mock) = (None, None);
        let (mut binding, mut plus) = (String::new(), false);
        let (mut nonce, mut transcript) = (Vec::new(), Vec::new());
        for field in fields::read(bytes) {
            match field.tag {
                SECRET => secret = ScramSecret::parse(field.value),
                MOCK if field.number() == MD5_SECRET => mock = Some(ScramError::Md5Secret),
                MOCK => mock = Some(ScramError::WrongPassword),
                BINDING => binding = field.text(),
                PLUS => plus = true,
                NONCE => nonce = field.value.to_vec(),
                TRANSCRIPT => transcript = field.value.to_vec(),
                _ => {}
            }
        }
        let secret = secret?;
        // Without them, any message would be about this exchange.
        if binding.is_empty() || nonce.is_empty() || transcript.is_empty() {
            return None;
        }
        let binding = Cow::Owned(binding);
        let challenged = Challenged { secret, mock, binding, plus, nonce, transcript };
        let state = State::Challenged(Box::new(challenged));
        Some(ServerExchange { state, bound: None, complaint: None })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Accepted, ClientExchange, Credential, Verifier};
    use super::*;

    const END_POINT: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn secret() -> ScramSecret {
        ScramSecret::derive(b"pencil", b"0123456789abcdef", 2)
    }

    /// An exchange that goes over to another process between its two steps.
    fn log_in(verifier: Verifier, password: &[u8], plus: bool) -> Result<Accepted, ScramError> {
        let end_point = if plus { END_POINT } else { b"" };
        let credential = Credential::Password(password.to_vec().into());
        let mut client = ClientExchange::new(credential, [9; 18]).bound_to(end_point);
        let mut server = ServerExchange::new(verifier).bound_to(end_point);
        let first = client.begin(crate::auth::mechanisms(end_point))?;
        let challenge = server.first(client.mechanism().as_bytes(), &first, [3; 18])?;
        let last = client.step(&challenge)?;
        let mut fields = Fields::default();
        server.hand_out(&mut fields);
        let mut other = ServerExchange::take_in(&fields.into_bytes()).unwrap();
        assert!(other.is_challenged() && other.take_complaint().is_none());
        let accepted = other.last(&last)?;
        client.finish(&accepted.server_final)?;
        Ok(accepted)
    }

    #[test]
    fn an_exchange_ends_in_another_process_as_it_would_have_here() {
        let (salt, iterations) = ([1; 16], 2);
        for plus in [false, true] {
            for (verifier, password, want) in [
                (Verifier::Secret(secret()), "pencil", None),
                (Verifier::Secret(secret()), "pen", Some(ScramError::WrongPassword)),
                (Verifier::Mock { salt, iterations }, "pencil", Some(ScramError::WrongPassword)),
                (Verifier::Md5Secret { salt, iterations }, "pencil", Some(ScramError::Md5Secret)),
            ] {
                let result = log_in(verifier, password.as_bytes(), plus);
                assert_eq!(result.err(), want, "{password} {plus}");
            }
        }
    }

    #[test]
    fn what_is_not_complete_lets_nobody_in() {
        let mut server = ServerExchange::new(Verifier::Secret(secret()));
        let mut fields = Fields::default();
        server.hand_out(&mut fields);
        let nothing = fields.into_bytes();
        assert!(nothing.is_empty() && ServerExchange::take_in(&nothing).is_none());
        server.first(b"SCRAM-SHA-256", b"n,,n=,r=x", [3; 18]).unwrap();
        let mut fields = Fields::default();
        server.hand_out(&mut fields);
        let whole = fields.into_bytes();
        for len in 0..whole.len() {
            assert!(ServerExchange::take_in(&whole[..len]).is_none(), "{len}");
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut spoilt = whole.clone();
                spoilt[at] ^= 1 << bit;
                ServerExchange::take_in(&spoilt);
            }
        }
    }
}
