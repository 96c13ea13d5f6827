//! What can go wrong in a SCRAM exchange, in the words of the log.

use std::fmt;

/// A failed login step. `Display` is the text of the log line at level ERROR (auth 5.1, 5.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScramError {
    /// The client chose a mechanism that was not offered.
    Mechanism,
    /// GS2 flag other than `n`, `y`, `p`.
    BindingFlag(u8),
    /// Something else where a comma must be.
    NoComma(u8),
    /// Something else than `a=` or nothing between the GS2 commas.
    FirstAttribute(u8),
    /// A certain attribute must come here.
    Expected(u8),
    /// A certain attribute came without its `=`.
    ExpectedEquals(u8),
    /// Any attribute must come here, and this is no letter.
    NotAnAttribute(u8),
    /// Some attribute came without its `=`.
    AnyEquals(u8),
    /// GS2 flag `p` where no channel binding is to be had.
    BindingRequired,
    /// SCRAM-SHA-256-PLUS without GS2 flag `p`.
    PlusUnbound,
    /// GS2 flag `p` without SCRAM-SHA-256-PLUS.
    BoundWithoutPlus,
    /// GS2 flag `y`, though SCRAM-SHA-256-PLUS was offered: somebody took it out of the list.
    BindingDowngrade,
    /// A type of channel binding other than tls-server-end-point; printable.
    BindingType(String),
    /// `c=` speaks of another TLS connection than ours: somebody is in between.
    BindingDiffers,
    /// `a=` in the GS2 header.
    AuthorizationIdentity,
    /// `m=` in a client-first-message.
    Extension,
    /// The client's nonce holds something else than printable ASCII.
    NonceNotPrintable,
    /// A nonce is so long that our message would not fit into 512 bytes.
    TooLong,
    /// `c=` does not repeat the GS2 header.
    BindingAttribute,
    /// No `p=` was found in a client-final-message.
    UnreadableProof,
    /// `p=` is not base64.
    UndecodableProof,
    /// `p=` is not 32 bytes.
    MalformedProof,
    /// Something follows the proof.
    GarbageInClientFinal,
    /// The client-final-message has another nonce than ours.
    NonceDiffers,
    /// Wrong password or unknown user.
    WrongPassword,
    /// The user has an MD5 secret, which cannot do SCRAM.
    Md5Secret,
    /// A message came that does not fit the state of the exchange with the client.
    OutOfOrder,
    /// The server offers no SASL mechanism that we know.
    NoMechanism,
    /// The stored secret is SCRAM, and there are no keys from a client's login.
    NoKeys,
    /// The stored secret is MD5, and the server wants SCRAM.
    WrongSecretType,
    /// The stored secret is SCRAM, and the server wants MD5.
    Md5WithScramSecret,
    /// The server did not prove that it knows the secret.
    InvalidServerSignature,
    /// A second AuthenticationSASL.
    DuplicateSasl,
    /// AuthenticationSASLContinue before AuthenticationSASL.
    ContinueWithoutSasl,
    /// A second AuthenticationSASLContinue.
    SecondContinue,
    /// AuthenticationSASLFinal before AuthenticationSASLContinue.
    FinalWithoutContinue,
    /// The server's nonce does not begin with ours.
    NonceMismatch,
    /// `s=` is not base64.
    InvalidSalt,
    /// `i=` is not a number from 1 to 2147483647.
    InvalidIterations,
    /// Something follows `i=`.
    GarbageInServerFirst,
    /// `v=` is not base64 of 32 bytes.
    MalformedSignature,
    /// Something follows `v=`; the login goes on.
    GarbageInServerFinal,
    /// The server sent `e=`: its text, without control characters.
    FromServer(String),
}

impl ScramError {
    /// What the client is told (FATAL, 08P01) when it is the client's login that failed.
    pub fn client_text(&self) -> &'static str {
        match self {
            Self::Mechanism => "client selected an invalid SASL authentication mechanism",
            _ => "SASL authentication failed",
        }
    }

    /// What the clients waiting for a server are told (FATAL, 08P01) when it is the login to that
    /// server that failed; `None` if they go on waiting (auth 5.5).
    pub fn waiting_text(&self) -> Option<&'static str> {
        match self {
            Self::NoMechanism => Some(
                "server login failed: none of the server's SASL authentication mechanisms are \
                 supported",
            ),
            Self::NoKeys | Self::WrongSecretType | Self::Md5WithScramSecret => {
                Some("server login failed: wrong password type")
            }
            Self::InvalidServerSignature => Some("server login failed: invalid server signature"),
            _ => None,
        }
    }

    /// What a malformed message has wrong, for the errors with that frame around them.
    fn malformed(&self) -> Option<String> {
        let what = match self {
            Self::BindingFlag(c) => format!("unexpected channel-binding flag \"{}\"", Shown(*c)),
            Self::NoComma(c) => format!("comma expected, but found character \"{}\"", Shown(*c)),
            Self::FirstAttribute(c) => {
                format!("unexpected attribute \"{}\" in client-first-message", Shown(*c))
            }
            Self::Expected(name) => format!("attribute \"{}\" expected", char::from(*name)),
            Self::ExpectedEquals(name) => {
                format!("expected \"=\" after attribute \"{}\"", char::from(*name))
            }
            Self::NotAnAttribute(c) => {
                format!("attribute expected, but found invalid character \"{}\"", Shown(*c))
            }
            Self::AnyEquals(name) => {
                format!("expected character \"=\" after attribute \"{}\"", char::from(*name))
            }
            Self::PlusUnbound => {
                "client selected SCRAM-SHA-256-PLUS, but the message does not include \
                                  channel binding data"
                    .into()
            }
            Self::BoundWithoutPlus => "client selected SCRAM-SHA-256 without channel binding, but \
                                       the message includes channel binding data"
                .into(),
            Self::MalformedProof => "malformed proof in client-final-message".into(),
            Self::GarbageInClientFinal => "garbage at the end of client-final-message".into(),
            Self::TooLong => "nonce too long".into(),
            Self::InvalidSalt => "invalid salt".into(),
            Self::InvalidIterations => "invalid iteration count".into(),
            Self::GarbageInServerFirst => "garbage at end of server-first-message".into(),
            Self::MalformedSignature => "malformed server signature".into(),
            Self::GarbageInServerFinal => "garbage at end of server-final-message".into(),
            _ => return None,
        };
        Some(what)
    }

    /// The errors with a fixed text.
    fn plain(&self) -> &'static str {
        match self {
            Self::Mechanism => "client selected an invalid SASL authentication mechanism",
            Self::BindingRequired => {
                "client requires SCRAM channel binding, but it is not supported"
            }
            Self::BindingDowngrade => {
                "SCRAM channel binding negotiation error (client supports channel binding, but \
                 thinks that this server does not)"
            }
            Self::BindingDiffers => "SCRAM channel binding check failed",
            Self::AuthorizationIdentity => {
                "client uses authorization identity, but it is not supported"
            }
            Self::Extension => "client requires an unsupported SCRAM extension",
            Self::NonceNotPrintable => "non-printable characters in SCRAM nonce",
            Self::BindingAttribute => {
                "unexpected SCRAM channel-binding attribute in client-final-message"
            }
            Self::UnreadableProof => "could not read proof",
            Self::UndecodableProof => "could not decode proof",
            Self::NonceDiffers => "invalid SCRAM response (nonce does not match)",
            Self::WrongPassword => "password authentication failed",
            Self::Md5Secret => "SCRAM authentication failed: user has MD5 secret",
            Self::NoMechanism => {
                "none of the server's SASL authentication mechanisms are supported"
            }
            Self::NoKeys => {
                "cannot do SCRAM authentication: password is SCRAM secret but client \
                 authentication did not provide SCRAM keys"
            }
            Self::WrongSecretType => "cannot do SCRAM authentication: wrong password type",
            Self::Md5WithScramSecret => "cannot do MD5 authentication: wrong password type",
            Self::InvalidServerSignature => "invalid server signature",
            Self::DuplicateSasl => {
                "protocol error: duplicate AuthenticationSASL message from server"
            }
            Self::ContinueWithoutSasl => {
                "protocol error: AuthenticationSASLContinue without prior AuthenticationSASL"
            }
            Self::SecondContinue => {
                "SCRAM exchange protocol error: received second AuthenticationSASLContinue"
            }
            Self::FinalWithoutContinue => {
                "protocol error: AuthenticationSASLFinal without prior AuthenticationSASLContinue"
            }
            Self::NonceMismatch => "invalid SCRAM response (nonce mismatch)",
            _ => "SCRAM message out of order",
        }
    }
}

impl fmt::Display for ScramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.malformed()) {
            (Self::FromServer(text), _) => {
                write!(f, "error received from server in SCRAM exchange: {text}")
            }
            (Self::BindingType(name), _) => {
                write!(f, "unsupported SCRAM channel-binding type \"{name}\"")
            }
            (_, Some(what)) => write!(f, "malformed SCRAM message ({what})"),
            (_, None) => f.write_str(self.plain()),
        }
    }
}

impl std::error::Error for ScramError {}

/// A byte from a peer: `'x'` if printable, else `0x..`.
struct Shown(u8);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_ascii_graphic() {
            write!(f, "'{}'", char::from(self.0))
        } else {
            write!(f, "0x{:02x}", self.0)
        }
    }
}
