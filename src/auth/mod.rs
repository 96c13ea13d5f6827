//! Passwords and proofs, towards clients and towards PostgreSQL: MD5, SCRAM-SHA-256 (RFC 5802,
//! RFC 7677) and stored secrets. Pure: random bytes come from the caller, nothing is logged here.

mod key;
mod md5;
mod names;
mod scram;
mod scram_client;
mod scram_error;
mod scram_server;
#[cfg(test)]
mod scram_tests;
mod scram_text;
mod secret;

pub use self::md5::{md5_answer, md5_hash, Md5Hash};
pub use key::{same, Key};
pub use names::Names;
pub use scram::{mock_salt, PassKeys, SaltedKeys, ScramSecret, MECHANISM, MECHANISM_PLUS};
pub use scram_client::{Challenge, ClientExchange, Credential};
pub use scram_error::ScramError;
pub use scram_server::{mechanisms, Accepted, ServerExchange, Verifier, EXCHANGE_TAGS};
pub use secret::{check_md5, check_plain, Secret};
