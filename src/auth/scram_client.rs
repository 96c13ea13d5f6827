//! SCRAM-SHA-256 towards PostgreSQL: we are the one who proves (auth 5.4, 5.5).

use super::key::Key;
use super::scram::{hash, hmac, PassKeys, SaltedKeys, GS2_BOUND, MECHANISM, MECHANISM_PLUS};
use super::scram_error::ScramError;
use super::scram_text::{binding, decode, encode, iterations, until_nul, Reader};
use super::secret::Secret;
use std::fmt;
use zeroize::Zeroizing;

/// SASLResponse fits into 512 bytes, of which 5 are header.
const MAX_FINAL: usize = 507;
/// The longest text of a server's `e=` that we repeat, in bytes.
const MAX_SERVER_TEXT: usize = 400;
/// GS2 header of a client that does no channel binding.
const GS2_UNBOUND: &str = "n,,";
/// GS2 header of a client that would, but the server offered none.
const GS2_UNOFFERED: &str = "y,,";

/// What we have to log in to a server with.
#[derive(Clone)]
pub enum Credential {
    /// The plain password; may be empty.
    Password(Zeroizing<Vec<u8>>),
    /// The keys of a client's login. Their salt and iteration count are those of our own stored
    /// secret; if the server's differ, it refuses them.
    Keys(PassKeys),
}

impl Credential {
    /// Chooses by the kind of the secret (auth 6.3). `keys` are those that a client's SCRAM login
    /// with this very secret has left; only SCRAM secrets use them, and users of whom a process that
    /// has been taken over left nothing else.
    pub fn for_server(secret: &Secret, keys: Option<&PassKeys>) -> Result<Self, ScramError> {
        match secret {
            Secret::Empty => {
                Ok(keys.cloned().map_or_else(|| Self::Password(Zeroizing::default()), Self::Keys))
            }
            Secret::Plain(password) => Ok(Self::Password(password.clone())),
            Secret::Md5(_) => Err(ScramError::WrongSecretType),
            Secret::Scram(_) => keys.cloned().map(Self::Keys).ok_or(ScramError::NoKeys),
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password(_) => "Password(..)",
            Self::Keys(_) => "Keys(..)",
        })
    }
}

/// What a server-first-message leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    /// The body of SASLResponse.
    Answer(Vec<u8>),
    /// Keys are needed for these two: `SaltedKeys::derive`, then `ClientExchange::answer`. Slow, and
    /// a server may ask for up to 2147483647 iterations.
    Derive {
        /// Raw bytes.
        salt: Vec<u8>,
        /// At least 1.
        iterations: u32,
    },
}

/// One login to a server: `begin`, `challenge` (and `answer`), `finish`. Any order is
/// safe. AuthenticationOk counts only if `is_verified` (auth 10.3-F).
#[derive(Debug)]
pub struct ClientExchange {
    credential: Credential,
    /// Hash of the server's certificate; empty if there is none to bind to.
    end_point: Vec<u8>,
    gs2_header: &'static str,
    nonce: String,
    /// client-first-message-bare
    bare: String,
    state: State,
    complaint: Option<ScramError>,
}

#[derive(Debug)]
enum State {
    Start,
    Begun,
    Challenged(Box<Challenged>),
    Answered { server_signature: Key },
    Verified,
}

#[derive(Debug)]
struct Challenged {
    server_first: Vec<u8>,
    /// client-final-message-without-proof
    without_proof: Vec<u8>,
    salt: Vec<u8>,
    iterations: u32,
}

impl ClientExchange {
    /// `random` makes our nonce.
    pub fn new(credential: Credential, random: [u8; 18]) -> Self {
        let nonce = encode(&random);
        Self {
            credential,
            end_point: Vec::new(),
            gs2_header: GS2_UNBOUND,
            bare: format!("n=,r={nonce}"),
            nonce,
            state: State::Start,
            complaint: None,
        }
    }

    /// Chooses SCRAM-SHA-256-PLUS if the server offers it, and tells a server that does not what
    /// it did not offer, so that a list that was shortened on the way is found out. `end_point` is
    /// the hash of the certificate that the server showed (tls-server-end-point, RFC 5929, 4.1); if
    /// it is empty, nothing changes.
    pub fn bound_to(self, end_point: &[u8]) -> Self {
        Self { end_point: end_point.to_vec(), ..self }
    }

    /// The mechanism chosen by `begin`.
    pub fn mechanism(&self) -> &'static str {
        match self.gs2_header {
            GS2_BOUND => MECHANISM_PLUS,
            _ => MECHANISM,
        }
    }

    /// Takes the list of AuthenticationSASL (zero-terminated names, then a zero). Returns the
    /// client-first-message for SASLInitialResponse; `mechanism` goes with it.
    pub fn begin(&mut self, mechanisms: &[u8]) -> Result<Vec<u8>, ScramError> {
        if !matches!(self.state, State::Start) {
            return Err(ScramError::DuplicateSasl);
        }
        let offers = |wanted: &str| {
            let mut names = mechanisms.split(|b| *b == 0).take_while(|name| !name.is_empty());
            names.any(|name| name == wanted.as_bytes())
        };
        self.gs2_header = match (self.end_point.is_empty(), offers(MECHANISM_PLUS)) {
            (false, true) => GS2_BOUND,
            _ if !offers(MECHANISM) => return Err(ScramError::NoMechanism),
            (false, false) => GS2_UNOFFERED,
            (true, _) => GS2_UNBOUND,
        };
        self.state = State::Begun;
        Ok(format!("{}{}", self.gs2_header, self.bare).into_bytes())
    }

    /// Takes the body of AuthenticationSASLContinue, after the code. The slow part is left to the
    /// caller.
    pub fn challenge(&mut self, server_first: &[u8]) -> Result<Challenge, ScramError> {
        match self.state {
            State::Begun => {}
            State::Start => return Err(ScramError::ContinueWithoutSasl),
            _ => return Err(ScramError::SecondContinue),
        }
        let challenged = self.read_first(until_nul(server_first))?;
        let (salt, iterations) = (challenged.salt.clone(), challenged.iterations);
        let ready = match &self.credential {
            Credential::Keys(keys) => Some(keys.clone()),
            Credential::Password(_) => None,
        };
        match ready {
            Some(keys) => Ok(Challenge::Answer(self.prove(&challenged, &keys))),
            None => {
                self.state = State::Challenged(Box::new(challenged));
                Ok(Challenge::Derive { salt, iterations })
            }
        }
    }

    /// The password that keys are derived from.
    pub fn password(&self) -> Option<&Zeroizing<Vec<u8>>> {
        match &self.credential {
            Credential::Password(password) => Some(password),
            Credential::Keys(_) => None,
        }
    }

    /// Goes on after `Challenge::Derive`. Returns the body of SASLResponse.
    pub fn answer(&mut self, salted: SaltedKeys) -> Result<Vec<u8>, ScramError> {
        let challenged = match std::mem::replace(&mut self.state, State::Begun) {
            State::Challenged(challenged) => challenged,
            other => {
                self.state = other;
                return Err(ScramError::OutOfOrder);
            }
        };
        let message = self.prove(&challenged, &salted.keys);
        Ok(message)
    }

    /// Takes the body of AuthenticationSASLFinal, after the code, and verifies the server.
    pub fn finish(&mut self, server_final: &[u8]) -> Result<(), ScramError> {
        let State::Answered { server_signature } = &self.state else {
            return Err(match self.state {
                State::Verified => ScramError::OutOfOrder,
                _ => ScramError::FinalWithoutContinue,
            });
        };
        let mut reader = Reader::new(until_nul(server_final));
        if reader.peek() == b'e' {
            return Err(ScramError::FromServer(printable(reader.value(b'e')?)));
        }
        let signature = reader.value(b'v')?;
        if !reader.rest().is_empty() {
            self.complaint = Some(ScramError::GarbageInServerFinal);
        }
        let signature = decode(signature)
            .and_then(|bytes| Key::from_slice(&bytes))
            .ok_or(ScramError::MalformedSignature)?;
        if signature != *server_signature {
            return Err(ScramError::InvalidServerSignature);
        }
        self.state = State::Verified;
        Ok(())
    }

    /// True once the server has proved that it knows the secret.
    pub fn is_verified(&self) -> bool {
        matches!(self.state, State::Verified)
    }

    /// A further line to log at level ERROR, before that of the error if there is one. Gives it
    /// once.
    pub fn take_complaint(&mut self) -> Option<ScramError> {
        self.complaint.take()
    }

    fn read_first(&self, message: &[u8]) -> Result<Challenged, ScramError> {
        let mut reader = Reader::new(message);
        let nonce = reader.value(b'r')?;
        if !nonce.starts_with(self.nonce.as_bytes()) {
            return Err(ScramError::NonceMismatch);
        }
        let salt = decode(reader.value(b's')?).ok_or(ScramError::InvalidSalt)?;
        let count = iterations(reader.value(b'i')?).ok_or(ScramError::InvalidIterations)?;
        if !reader.rest().is_empty() {
            return Err(ScramError::GarbageInServerFirst);
        }
        let data = if self.gs2_header == GS2_BOUND { &self.end_point[..] } else { b"" };
        let binding = binding(self.gs2_header, data);
        let without_proof = [b"c=", binding.as_bytes(), b",r=", nonce].concat();
        const PROOF: usize = ",p=".len() + 44;
        if without_proof.len().saturating_add(PROOF) > MAX_FINAL {
            return Err(ScramError::TooLong);
        }
        Ok(Challenged { server_first: message.to_vec(), without_proof, salt, iterations: count })
    }

    /// Makes the client-final-message and knows what the server must answer.
    fn prove(&mut self, challenged: &Challenged, keys: &PassKeys) -> Vec<u8> {
        let said: [&[u8]; 5] =
            [self.bare.as_bytes(), b",", &challenged.server_first, b",", &challenged.without_proof];
        let stored_key = hash(&keys.client_key);
        let proof = keys.client_key.xor(&hmac(stored_key.as_bytes(), &said));
        self.state = State::Answered { server_signature: hmac(keys.server_key.as_bytes(), &said) };
        let proof = encode(proof.as_bytes());
        [&challenged.without_proof, &b",p="[..], proof.as_bytes()].concat()
    }
}

/// A text from a peer, fit for one line of the log.
fn printable(text: &[u8]) -> String {
    let text = text.get(..MAX_SERVER_TEXT).unwrap_or(text);
    String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
impl ClientExchange {
    /// As `challenge`, and derives keys on the spot if it must.
    pub(super) fn step(&mut self, server_first: &[u8]) -> Result<Vec<u8>, ScramError> {
        match self.challenge(server_first)? {
            Challenge::Answer(message) => Ok(message),
            Challenge::Derive { salt, iterations } => {
                let password = self.password().cloned().unwrap_or_default();
                self.answer(SaltedKeys::derive(&password, &salt, iterations))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{md5_hash, ScramSecret, ServerExchange, Verifier};

    const LIST: &[u8] = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
    const NONCE: &str = "CQkJCQkJCQkJCQkJCQkJCQkJ";
    const SALT: &[u8] = b"0123456789abcdef";

    fn password() -> Credential {
        Credential::Password(Zeroizing::new(b"pencil".to_vec()))
    }

    fn begun(credential: Credential) -> ClientExchange {
        let mut exchange = ClientExchange::new(credential, [9; 18]);
        let message = exchange.begin(LIST).unwrap();
        assert_eq!(message, format!("n,,n=,r={NONCE}").into_bytes());
        exchange
    }

    fn answered() -> ClientExchange {
        let mut exchange = begun(password());
        exchange.step(server_first("x", "1").as_bytes()).unwrap();
        exchange
    }

    fn server_first(more_nonce: &str, rest: &str) -> String {
        format!("r={NONCE}{more_nonce},s={},i={rest}", encode(SALT))
    }

    /// A want in parentheses is what is said of a malformed message.
    fn whole(want: &str) -> String {
        match want.strip_prefix('(') {
            Some(_) => format!("malformed SCRAM message {want}"),
            None => want.into(),
        }
    }

    #[test]
    fn rfc_7677_example_is_produced_and_verified() {
        let mut exchange = ClientExchange::new(password(), [9; 18]);
        exchange.nonce = "rOprNGfwEbeRWgbNEkqO".into();
        exchange.bare = format!("n=user,r={}", exchange.nonce);
        let message = exchange.begin(b"SCRAM-SHA-256\0\0").unwrap();
        assert_eq!(message, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let message = exchange
            .step(
                b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                  s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            )
            .unwrap();
        assert_eq!(
            message,
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
              p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert!(!exchange.is_verified());
        let signature = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        exchange.finish(signature).unwrap();
        assert!(exchange.is_verified());
        assert_eq!(exchange.finish(signature), Err(ScramError::OutOfOrder));
    }

    #[test]
    fn credential_follows_the_kind_of_the_secret() {
        let keys = SaltedKeys::derive(b"pencil", SALT, 1).keys;
        let scram = ScramSecret::derive(b"pencil", SALT, 1).text();
        let wrong_type = Some("server login failed: wrong password type");
        for (secret, keys, want) in [
            ("", None, Ok("Password(..)")),
            ("pencil", Some(&keys), Ok("Password(..)")),
            (&*scram, Some(&keys), Ok("Keys(..)")),
            (
                &*scram,
                None,
                Err("cannot do SCRAM authentication: password is SCRAM secret but client \
                     authentication did not provide SCRAM keys"),
            ),
            (
                &*md5_hash(b"pencil", b"bob"),
                Some(&keys),
                Err("cannot do SCRAM authentication: wrong password type"),
            ),
        ] {
            match Credential::for_server(&Secret::classify(secret.as_bytes()), keys) {
                Ok(credential) => assert_eq!(Ok(&*format!("{credential:?}")), want),
                Err(error) => {
                    assert_eq!(Err(&*error.to_string()), want);
                    assert_eq!(error.waiting_text(), wrong_type);
                }
            }
        }
    }

    #[test]
    fn mechanism_must_be_offered() {
        for (list, offered) in [
            (LIST, true),
            (b"SCRAM-SHA-256", true),
            (b"SCRAM-SHA-256-PLUS\0\0", false),
            (b"\0SCRAM-SHA-256\0\0", false),
            (b"", false),
        ] {
            let result = ClientExchange::new(password(), [9; 18]).begin(list);
            assert_eq!(result.is_ok(), offered);
            if let Err(error) = result {
                let text = "none of the server's SASL authentication mechanisms are supported";
                assert_eq!(error.to_string(), text);
                let told = format!("server login failed: {text}");
                assert_eq!(error.waiting_text(), Some(&*told));
            }
        }
    }

    #[test]
    fn faulty_server_first_messages_are_named() {
        let salt = encode(SALT);
        for (message, want) in [
            (String::new(), "(attribute \"r\" expected)"),
            ("m=x".into(), "(attribute \"r\" expected)"),
            ("r".into(), "(expected \"=\" after attribute \"r\")"),
            ("r=,s=,i=1".into(), "invalid SCRAM response (nonce mismatch)"),
            (format!("r={},s={salt},i=1", &NONCE[1..]), "invalid SCRAM response (nonce mismatch)"),
            (format!("r={NONCE}x"), "(attribute \"s\" expected)"),
            (format!("r={NONCE}x,s=!,i=1"), "(invalid salt)"),
            (format!("r={NONCE}x,s={salt}"), "(attribute \"i\" expected)"),
            (server_first("x", ""), "(invalid iteration count)"),
            (server_first("x", "0"), "(invalid iteration count)"),
            (server_first("x", "-4"), "(invalid iteration count)"),
            (server_first("x", "4x"), "(invalid iteration count)"),
            (server_first("x", "2147483648"), "(invalid iteration count)"),
            (server_first("x", "1,x=1"), "(garbage at end of server-first-message)"),
            (server_first(&"x".repeat(428), "1"), "(nonce too long)"),
            (server_first(&"x".repeat(90_000), "1"), "(nonce too long)"),
        ] {
            let error = begun(password()).step(message.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), whole(want), "{message}");
            assert_eq!(error.waiting_text(), None);
        }
        let message =
            begun(password()).step(server_first(&"x".repeat(427), "1").as_bytes()).unwrap();
        assert_eq!(message.len(), MAX_FINAL);
    }

    #[test]
    fn faulty_server_final_messages_are_named() {
        let zeros = encode(&[0; 32]);
        for (message, want) in [
            (String::new(), "(attribute \"v\" expected)"),
            ("v".into(), "(expected \"=\" after attribute \"v\")"),
            ("v=!".into(), "(malformed server signature)"),
            ("v=".into(), "(malformed server signature)"),
            ("v=AAAA".into(), "(malformed server signature)"),
            (format!("v={zeros}"), "invalid server signature"),
            ("e=other-error,x".into(), "error received from server in SCRAM exchange: other-error"),
            ("e=a\nb".into(), "error received from server in SCRAM exchange: a?b"),
            ("e".into(), "(expected \"=\" after attribute \"e\")"),
        ] {
            let mut exchange = answered();
            let error = exchange.finish(message.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), whole(want), "{message}");
            assert!(!exchange.is_verified());
            let told = error == ScramError::InvalidServerSignature;
            assert_eq!(error.waiting_text().is_some(), told);
        }
    }

    #[test]
    fn messages_out_of_order_are_named() {
        let challenge = server_first("x", "1");
        let mut exchange = ClientExchange::new(password(), [9; 18]);
        let mut errors = vec![
            exchange.finish(b"v=").unwrap_err(),
            exchange.step(challenge.as_bytes()).unwrap_err(),
        ];
        exchange.begin(LIST).unwrap();
        errors.push(exchange.begin(LIST).unwrap_err());
        errors.push(exchange.finish(b"v=").unwrap_err());
        let salted = SaltedKeys::derive(b"pencil", SALT, 1);
        errors.push(exchange.answer(salted).unwrap_err());
        exchange.step(challenge.as_bytes()).unwrap();
        errors.push(exchange.step(challenge.as_bytes()).unwrap_err());
        let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "protocol error: AuthenticationSASLFinal without prior AuthenticationSASLContinue",
                "protocol error: AuthenticationSASLContinue without prior AuthenticationSASL",
                "protocol error: duplicate AuthenticationSASL message from server",
                "protocol error: AuthenticationSASLFinal without prior AuthenticationSASLContinue",
                "SCRAM message out of order",
                "SCRAM exchange protocol error: received second AuthenticationSASLContinue",
            ]
        );
    }

    #[test]
    fn deriving_is_left_to_the_caller() {
        let first = server_first("x", "2");
        let mut exchange = begun(password());
        let Challenge::Derive { salt, iterations } = exchange.challenge(first.as_bytes()).unwrap()
        else {
            panic!("keys out of nothing");
        };
        assert_eq!((&salt[..], iterations), (SALT, 2));
        let again = exchange.challenge(first.as_bytes());
        assert_eq!(again, Err(ScramError::SecondContinue));
        let keys = SaltedKeys::derive(exchange.password().unwrap(), &salt, iterations);
        let message = exchange.answer(keys.clone()).unwrap();
        assert_eq!(begun(password()).step(first.as_bytes()), Ok(message));
        assert_eq!(begun(Credential::Keys(keys.keys)).password(), None);
    }

    #[test]
    fn keys_of_a_client_open_a_server_with_the_same_secret() {
        let keys = SaltedKeys::derive(b"pencil", SALT, 3).keys;
        for (server_salt, opens) in [(SALT, true), (b"another", false)] {
            let secret = ScramSecret::derive(b"pencil", server_salt, 3);
            let mut server = ServerExchange::new(Verifier::Secret(secret));
            let mut client = begun(Credential::Keys(keys.clone()));
            let hello = format!("n,,n=,r={NONCE}");
            let first = server.first(MECHANISM.as_bytes(), hello.as_bytes(), [3; 18]).unwrap();
            let accepted = server.last(&client.step(&first).unwrap());
            assert_eq!(accepted.is_ok(), opens);
            if let Ok(accepted) = accepted {
                let odd = [&accepted.server_final[..], b",x=1"].concat();
                client.finish(&odd).unwrap();
                assert_eq!(
                    client.take_complaint().map(|e| e.to_string()).as_deref(),
                    Some("malformed SCRAM message (garbage at end of server-final-message)")
                );
            }
        }
    }

    #[test]
    fn altered_server_messages_neither_panic_nor_verify() {
        let mut seed = 0x1234_5678_u32;
        let mut next = move |below: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as usize % below.max(1)
        };
        let first = server_first("x", "1");
        let keys = SaltedKeys::derive(b"pencil", SALT, 1).keys;
        let mut server = answered();
        let State::Answered { server_signature } = &mut server.state else {
            panic!("no signature");
        };
        let good = format!("v={}", encode(server_signature.as_bytes()));
        for _ in 0..20_000 {
            let mut message = first.clone().into_bytes();
            for _ in 0..=next(3) {
                alter(&mut message, &mut next);
            }
            let mut exchange = begun(Credential::Keys(keys.clone()));
            if let Ok(Challenge::Answer(_)) = exchange.challenge(&message) {
                let same_text = until_nul(&message) == first.as_bytes();
                assert_eq!(exchange.finish(good.as_bytes()).is_ok(), same_text);
            }
            let mut message = good.clone().into_bytes();
            alter(&mut message, &mut next);
            let mut exchange = begun(Credential::Keys(keys.clone()));
            exchange.challenge(first.as_bytes()).unwrap();
            if exchange.finish(&message).is_ok() {
                assert!(message.starts_with(&good.as_bytes()[..good.len() - 2]));
            }
        }
    }

    fn alter(message: &mut Vec<u8>, next: &mut impl FnMut(usize) -> usize) {
        let at = next(message.len());
        match next(4) {
            0 => message.truncate(at),
            1 => message.insert(at, next(256) as u8),
            2 if at < message.len() => message[at] = next(256) as u8,
            _ => message.extend_from_within(at..),
        }
    }
}
