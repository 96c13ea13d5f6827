//! SCRAM-SHA-256 towards clients: we are the one who verifies (auth 5.1, 5.2).

mod handed;

use super::key::{same, Key};
use super::scram::{hash, hmac, PassKeys, ScramSecret, GS2_BOUND, MECHANISM, MECHANISM_PLUS};
use super::scram_error::ScramError;
use super::scram_text::{binding, decode, encode, until_nul, Reader};
use std::borrow::Cow;
use zeroize::Zeroizing;

pub use handed::EXCHANGE_TAGS;

/// AuthenticationSASLContinue fits into 512 bytes, of which 9 are header.
const MAX_FIRST: usize = 503;
/// The longest name of a channel binding that we repeat, in bytes.
const MAX_BINDING_TYPE: usize = 30;

/// What a client's proof is held against.
#[derive(Clone, Debug)]
pub enum Verifier {
    /// A stored secret, or one derived from a plain password.
    Secret(ScramSecret),
    /// Nothing: the user is unknown or has an empty secret. Goes all the way, then fails.
    Mock {
        /// See `mock_salt`.
        salt: [u8; 16],
        /// As for the secrets made from plain passwords.
        iterations: u32,
    },
    /// The user has an MD5 secret, which is no good here. Goes the same way, so that nobody can tell
    /// such a user from one who does not exist; the log can.
    Md5Secret {
        /// See `mock_salt`.
        salt: [u8; 16],
        /// As for the secrets made from plain passwords.
        iterations: u32,
    },
}

/// A successful login.
#[derive(Debug)]
pub struct Accepted {
    /// Body of AuthenticationSASLFinal, after the code.
    pub server_final: Vec<u8>,
    /// For logging in to servers in the client's name, if the secret was a stored one (auth 5.4).
    pub keys: PassKeys,
}

/// One client's exchange: `first`, then `last`. After an error it is good for nothing.
#[derive(Debug)]
pub struct ServerExchange {
    state: State,
    /// What `c=` must be under SCRAM-SHA-256-PLUS; `None` if that is not offered.
    bound: Option<String>,
    complaint: Option<ScramError>,
}

#[derive(Debug)]
enum State {
    Start(Verifier),
    Challenged(Box<Challenged>),
    Over,
}

#[derive(Debug)]
struct Challenged {
    secret: ScramSecret,
    /// Why it fails in any case, if it does.
    mock: Option<ScramError>,
    /// What `c=` must be.
    binding: Cow<'static, str>,
    plus: bool,
    /// The client's nonce and ours.
    nonce: Vec<u8>,
    /// client-first-message-bare `,` server-first-message `,`
    transcript: Vec<u8>,
}

/// The body of AuthenticationSASL, after the code: names to choose from, the best first. `end_point`
/// is what the exchange will be bound to.
pub fn mechanisms(end_point: &[u8]) -> &'static [u8] {
    match end_point {
        [] => b"SCRAM-SHA-256\0\0",
        _ => b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0",
    }
}

impl ServerExchange {
    /// Begins where AuthenticationSASL with `mechanisms` has been sent.
    pub fn new(verifier: Verifier) -> Self {
        Self { state: State::Start(verifier), bound: None, complaint: None }
    }

    /// Takes SCRAM-SHA-256-PLUS too. `end_point` is the hash of the certificate that we showed
    /// this client (tls-server-end-point, RFC 5929, 4.1); if it is empty, nothing changes.
    pub fn bound_to(self, end_point: &[u8]) -> Self {
        let bound = (!end_point.is_empty()).then(|| binding(GS2_BOUND, end_point));
        Self { bound, ..self }
    }

    /// Takes what SASLInitialResponse holds; `random` makes our nonce. Returns the body of
    /// AuthenticationSASLContinue, after the code.
    pub fn first(
        &mut self,
        mechanism: &[u8],
        client_first: &[u8],
        random: [u8; 18],
    ) -> Result<Vec<u8>, ScramError> {
        self.first_with_nonce(mechanism, client_first, &encode(&random))
    }

    /// Takes the body of SASLResponse and decides.
    pub fn last(&mut self, client_final: &[u8]) -> Result<Accepted, ScramError> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Challenged(challenged) => {
                let answer = self.read_final(&challenged, until_nul(client_final))?;
                challenged.judge(&answer)
            }
            State::Start(_) | State::Over => Err(ScramError::OutOfOrder),
        }
    }

    /// True between `first` and `last`: the next password message is a SASLResponse.
    pub fn is_challenged(&self) -> bool {
        matches!(self.state, State::Challenged(_))
    }

    /// A further line to log at level ERROR, before that of the error if there is one: the step
    /// just done may have met something odd on its way. Gives it once.
    pub fn take_complaint(&mut self) -> Option<ScramError> {
        self.complaint.take()
    }

    fn first_with_nonce(
        &mut self,
        mechanism: &[u8],
        client_first: &[u8],
        our_nonce: &str,
    ) -> Result<Vec<u8>, ScramError> {
        let State::Start(verifier) = std::mem::replace(&mut self.state, State::Over) else {
            return Err(ScramError::OutOfOrder);
        };
        let plus = self.bound.is_some() && mechanism == MECHANISM_PLUS.as_bytes();
        if !plus && mechanism != MECHANISM.as_bytes() {
            return Err(ScramError::Mechanism);
        }
        let hello = self.read_first(plus, until_nul(client_first))?;
        let (secret, mock) = match verifier {
            Verifier::Secret(secret) => (secret, None),
            Verifier::Mock { salt, iterations } => {
                (mock_secret(&salt, iterations), Some(ScramError::WrongPassword))
            }
            Verifier::Md5Secret { salt, iterations } => {
                (mock_secret(&salt, iterations), Some(ScramError::Md5Secret))
            }
        };
        let nonce = [hello.nonce, our_nonce.as_bytes()].concat();
        let mut reply = [b"r=", &nonce[..]].concat();
        let rest = format!(",s={},i={}", encode(&secret.salt), secret.iterations);
        reply.extend_from_slice(rest.as_bytes());
        if reply.len() > MAX_FIRST {
            return Err(ScramError::TooLong);
        }
        self.state = State::Challenged(Box::new(Challenged {
            secret,
            mock,
            binding: hello.binding,
            plus,
            nonce,
            transcript: [hello.bare, b",", &reply, b","].concat(),
        }));
        Ok(reply)
    }

    fn read_first<'a>(&mut self, plus: bool, message: &'a [u8]) -> Result<Hello<'a>, ScramError> {
        let mut reader = Reader::new(message);
        let binding = self.read_flag(plus, &mut reader)?;
        match reader.peek() {
            b',' => reader.skip(),
            b'a' => return Err(ScramError::AuthorizationIdentity),
            other => return Err(ScramError::FirstAttribute(other)),
        }
        let bare = reader.rest();
        if reader.peek() == b'm' {
            return Err(ScramError::Extension);
        }
        // The name is the one of the start-up packet; without it here the login goes on.
        self.complaint = reader.value(b'n').err();
        let nonce = reader.value(b'r')?;
        if !nonce.iter().all(u8::is_ascii_graphic) {
            return Err(ScramError::NonceNotPrintable);
        }
        while !reader.rest().is_empty() {
            reader.any()?;
        }
        Ok(Hello { binding, bare, nonce })
    }

    /// The first part of the GS2 header. Returns what `c=` must be.
    fn read_flag(
        &self,
        plus: bool,
        reader: &mut Reader<'_>,
    ) -> Result<Cow<'static, str>, ScramError> {
        let binding = match (reader.peek(), &self.bound) {
            (b'n' | b'y', _) if plus => return Err(ScramError::PlusUnbound),
            (b'n', _) => "biws",
            (b'y', None) => "eSws",
            (b'y', Some(_)) => return Err(ScramError::BindingDowngrade),
            (b'p', None) => return Err(ScramError::BindingRequired),
            (b'p', Some(_)) if !plus => return Err(ScramError::BoundWithoutPlus),
            (b'p', Some(bound)) => {
                let name = reader.value(b'p')?;
                if name != b"tls-server-end-point" {
                    return Err(ScramError::BindingType(shown(name)));
                }
                return Ok(Cow::Owned(bound.clone()));
            }
            (other, _) => return Err(ScramError::BindingFlag(other)),
        };
        reader.skip();
        if reader.peek() != b',' {
            return Err(ScramError::NoComma(reader.peek()));
        }
        reader.skip();
        Ok(Cow::Borrowed(binding))
    }

    fn read_final<'a>(
        &mut self,
        challenged: &Challenged,
        message: &'a [u8],
    ) -> Result<Answer<'a>, ScramError> {
        let mut reader = Reader::new(message);
        if !same(reader.value(b'c')?, challenged.binding.as_bytes()) {
            return Err(match challenged.plus {
                true => ScramError::BindingDiffers,
                false => ScramError::BindingAttribute,
            });
        }
        let nonce = reader.value(b'r')?;
        let (before, proof) = loop {
            let before = message.len().saturating_sub(reader.rest().len());
            match reader.any() {
                Ok((b'p', value)) => break (before, value),
                Ok(_) => {}
                Err(reason) => {
                    self.complaint = Some(reason);
                    return Err(ScramError::UnreadableProof);
                }
            }
        };
        let proof = Zeroizing::new(decode(proof).ok_or(ScramError::UndecodableProof)?);
        let proof = Key::from_slice(&proof).ok_or(ScramError::MalformedProof)?;
        if !reader.rest().is_empty() {
            return Err(ScramError::GarbageInClientFinal);
        }
        Ok(Answer {
            nonce,
            without_proof: message.get(..before.saturating_sub(1)).unwrap_or_default(),
            proof,
        })
    }
}

/// A client-first-message.
struct Hello<'a> {
    binding: Cow<'static, str>,
    bare: &'a [u8],
    nonce: &'a [u8],
}

/// A client-final-message.
struct Answer<'a> {
    nonce: &'a [u8],
    without_proof: &'a [u8],
    proof: Key,
}

impl Challenged {
    fn judge(&self, answer: &Answer<'_>) -> Result<Accepted, ScramError> {
        if !same(answer.nonce, &self.nonce) {
            return Err(ScramError::NonceDiffers);
        }
        let said: [&[u8]; 2] = [&self.transcript, answer.without_proof];
        let signature = hmac(self.secret.stored_key.as_bytes(), &said);
        let client_key = answer.proof.xor(&signature);
        // A mock does all the work too, so that it takes as long.
        let right = hash(&client_key) == self.secret.stored_key;
        match &self.mock {
            Some(reason) => return Err(reason.clone()),
            None if !right => return Err(ScramError::WrongPassword),
            None => {}
        }
        let signature = hmac(self.secret.server_key.as_bytes(), &said);
        Ok(Accepted {
            server_final: format!("v={}", encode(signature.as_bytes())).into_bytes(),
            keys: PassKeys { client_key, server_key: self.secret.server_key.clone() },
        })
    }
}

/// The name of a channel binding, fit for the log.
fn shown(name: &[u8]) -> String {
    let graphic = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' };
    name.iter().take(MAX_BINDING_TYPE).map(graphic).collect()
}

fn mock_secret(salt: &[u8; 16], iterations: u32) -> ScramSecret {
    ScramSecret {
        iterations: iterations.max(1),
        salt: salt.to_vec(),
        stored_key: Key::new([0; 32]),
        server_key: Key::new([0; 32]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRAM: &[u8] = b"SCRAM-SHA-256";
    const PROOF: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const NONCE: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcH"; // 21 bytes; ours is of 18
    const OURS: &str = "AwMDAwMDAwMDAwMDAwMDAwMD";

    fn secret() -> ScramSecret {
        ScramSecret::derive(b"pencil", b"0123456789abcdef", 4)
    }

    fn exchange() -> ServerExchange {
        ServerExchange::new(Verifier::Secret(secret()))
    }

    fn first(exchange: &mut ServerExchange, message: &[u8]) -> Result<Vec<u8>, ScramError> {
        exchange.first(SCRAM, message, [3; 18])
    }

    /// A want in parentheses is what is said of a malformed message.
    fn whole(want: &str) -> String {
        match want.strip_prefix('(') {
            Some(_) => format!("malformed SCRAM message {want}"),
            None => want.into(),
        }
    }

    #[test]
    fn rfc_7677_example_is_accepted() {
        let salt = decode(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let secret = ScramSecret::derive(b"pencil", &salt, 4096);
        let mut exchange = ServerExchange::new(Verifier::Secret(secret));
        let reply = exchange
            .first_with_nonce(
                SCRAM,
                b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
                "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
            )
            .unwrap();
        assert_eq!(
            reply,
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
              s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        assert!(exchange.is_challenged());
        let accepted = exchange
            .last(
                b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                  p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            )
            .unwrap();
        assert_eq!(accepted.server_final, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert!(!exchange.is_challenged());
    }

    #[test]
    fn faulty_first_messages_are_named() {
        for (message, want) in [
            ("", "(unexpected channel-binding flag \"0x00\")"),
            ("x,,", "(unexpected channel-binding flag \"'x'\")"),
            ("\x01,,", "(unexpected channel-binding flag \"0x01\")"),
            ("n", "(comma expected, but found character \"0x00\")"),
            ("nn", "(comma expected, but found character \"'n'\")"),
            ("n,", "(unexpected attribute \"0x00\" in client-first-message)"),
            ("n,b=,", "(unexpected attribute \"'b'\" in client-first-message)"),
            (
                "p=tls-unique,,n=,r=x",
                "client requires SCRAM channel binding, but it is not supported",
            ),
            ("n,a=bob,n=,r=x", "client uses authorization identity, but it is not supported"),
            ("n,,m=x,n=,r=x", "client requires an unsupported SCRAM extension"),
            ("n,,n=", "(attribute \"r\" expected)"),
            ("n,,n=,x=r", "(attribute \"r\" expected)"),
            ("n,,n=,r", "(expected \"=\" after attribute \"r\")"),
            ("n,,n=,r=a b", "non-printable characters in SCRAM nonce"),
            ("n,,n=,r=\u{e4}", "non-printable characters in SCRAM nonce"),
            ("n,,n=,r=x,1=", "(attribute expected, but found invalid character \"'1'\")"),
            ("n,,n=,r=x,y", "(expected character \"=\" after attribute \"y\")"),
        ] {
            let error = first(&mut exchange(), message.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), whole(want), "{message}");
            assert_eq!(error.client_text(), "SASL authentication failed");
        }
    }

    #[test]
    fn unusual_first_messages_pass() {
        let want = format!(",s={},i=4", encode(b"0123456789abcdef"));
        for (message, nonce, complains) in [
            (&b"n,,n=,r=abc"[..], "abc", false),
            (b"y,,n=bob,r=abc", "abc", false),
            (b"n,,r=abc", "abc", true),
            (b"n,,n=,r=", "", false),
            (b"n,,n=,r=abc,", "abc", false),
            (b"n,,n=,r=abc,x=1,Y=", "abc", false),
            (b"n,,n=,r=abc\0p,,garbage", "abc", false),
        ] {
            let mut exchange = exchange();
            let reply = first(&mut exchange, message).unwrap();
            assert_eq!(String::from_utf8(reply).unwrap(), format!("r={nonce}{OURS}{want}"));
            let complaint = exchange.take_complaint().map(|e| e.to_string());
            let want = complains.then_some("malformed SCRAM message (attribute \"n\" expected)");
            assert_eq!(complaint.as_deref(), want);
            assert_eq!(exchange.take_complaint(), None);
        }
    }

    #[test]
    fn the_reply_fits_into_512_bytes() {
        for (len, iterations, fits) in [(443, 4096, true), (444, 4096, false), (70_000, 1, false)] {
            let salt = [1; 16];
            let mut exchange = ServerExchange::new(Verifier::Mock { salt, iterations });
            let message = [b"n,,n=,r=", &vec![b'x'; len][..]].concat();
            let reply = first(&mut exchange, &message);
            assert_eq!(reply.is_ok(), fits, "{len}");
        }
    }

    #[test]
    fn wrong_mechanism_is_refused() {
        let error = exchange().first(b"SCRAM-SHA-256-PLUS", b"n,,n=,r=x", [3; 18]);
        let text = "client selected an invalid SASL authentication mechanism";
        assert_eq!(error.unwrap_err().client_text(), text);
    }

    /// Nobody is told, by the steps or the words, whether there is a user and which secret it has;
    /// no proof, however made, is good for who has none.
    #[test]
    fn who_has_no_secret_fails_where_a_wrong_password_does() {
        let (salt, iterations) = ([1; 16], 4);
        let wrong = "password authentication failed";
        for (verifier, want) in [
            (Verifier::Secret(secret()), wrong),
            (Verifier::Mock { salt, iterations }, wrong),
            (
                Verifier::Md5Secret { salt, iterations },
                "SCRAM authentication failed: user has MD5 secret",
            ),
        ] {
            let mut exchange = ServerExchange::new(verifier);
            let reply = first(&mut exchange, b"n,,n=,r=x").unwrap();
            assert_eq!(reply.len(), format!("r=x{OURS},s={},i=4", "x".repeat(24)).len());
            let error = exchange.last(format!("c=biws,r=x{OURS},p={PROOF}").as_bytes());
            let error = error.unwrap_err();
            assert_eq!(
                (&*error.to_string(), error.client_text()),
                (want, "SASL authentication failed")
            );
        }
    }

    #[test]
    fn faulty_final_messages_are_named() {
        let r = format!("x{OURS}");
        for (message, want) in [
            (String::new(), "(attribute \"c\" expected)"),
            ("c".into(), "(expected \"=\" after attribute \"c\")"),
            (
                format!("c=eSws,r={r},p={PROOF}"),
                "unexpected SCRAM channel-binding attribute in client-final-message",
            ),
            (
                format!("c=,r={r},p={PROOF}"),
                "unexpected SCRAM channel-binding attribute in client-final-message",
            ),
            (format!("c=biws,p={PROOF}"), "(attribute \"r\" expected)"),
            ("c=biws,r".into(), "(expected \"=\" after attribute \"r\")"),
            (format!("c=biws,r={r}"), "could not read proof"),
            (format!("c=biws,r={r},x=1,"), "could not read proof"),
            (format!("c=biws,r={r},p"), "could not read proof"),
            (format!("c=biws,r={r},p=!"), "could not decode proof"),
            (format!("c=biws,r={r},p= {PROOF}"), "could not decode proof"),
            (format!("c=biws,r={r},p="), "(malformed proof in client-final-message)"),
            (format!("c=biws,r={r},p=AAAA"), "(malformed proof in client-final-message)"),
            (format!("c=biws,r={r},p={PROOF},x=1"), "(garbage at the end of client-final-message)"),
            (format!("c=biws,r={r},p={PROOF},,"), "(garbage at the end of client-final-message)"),
            (
                format!("c=biws,r=x{NONCE},p={PROOF}"),
                "invalid SCRAM response (nonce does not match)",
            ),
            (format!("c=biws,r={r},p={PROOF}"), "password authentication failed"),
            (format!("c=biws,r={r},p={PROOF},"), "password authentication failed"),
            (format!("c=biws,r={r},x=1,p={PROOF}"), "password authentication failed"),
            (format!("c=biws,r={r},p={PROOF}\0,x"), "password authentication failed"),
        ] {
            let mut exchange = exchange();
            first(&mut exchange, b"n,,n=,r=x").unwrap();
            let error = exchange.last(message.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), whole(want), "{message}");
            let unreadable = error == ScramError::UnreadableProof;
            assert_eq!(exchange.take_complaint().is_some(), unreadable);
        }
    }

    #[test]
    fn steps_out_of_order_are_refused() {
        let mut exchange = exchange();
        assert_eq!(exchange.last(b"c=biws").unwrap_err(), ScramError::OutOfOrder);
        assert_eq!(first(&mut exchange, b"n,,n=,r=x"), Err(ScramError::OutOfOrder));
        let mut exchange = self::exchange();
        first(&mut exchange, b"n,,n=,r=x").unwrap();
        assert_eq!(first(&mut exchange, b"n,,n=,r=x"), Err(ScramError::OutOfOrder));
    }
}
