//! SCRAM-SHA-256's keys: deriving, storing and proving them (RFC 5802, RFC 7677).

use super::key::Key;
use super::scram_text::{decode, encode, iterations};
use hmac::{Hmac, Mac};
use sha2::digest::KeyInit;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use zeroize::{Zeroize, Zeroizing};

/// The SASL mechanism spoken in both directions (RFC 7677).
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The same, tied to the TLS connection around it.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The GS2 header of `MECHANISM_PLUS`: the only type of channel binding spoken (RFC 5929, 4).
pub(super) const GS2_BOUND: &str = "p=tls-server-end-point,,";

/// A stored SCRAM secret: enough to verify a password, not enough to prove knowing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScramSecret {
    /// PBKDF2 iterations, at least 1.
    pub iterations: u32,
    /// The salt, raw bytes.
    pub salt: Vec<u8>,
    /// SHA-256 of the ClientKey.
    pub stored_key: Key,
    /// Signs for the server.
    pub server_key: Key,
}

impl ScramSecret {
    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`; `None` if anything about
    /// the text is wrong (auth 2.4).
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (params, keys) = text.strip_prefix(MECHANISM)?.strip_prefix('$')?.split_once('$')?;
        let (count, salt) = params.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        Some(Self {
            iterations: iterations(count.as_bytes())?,
            salt: decode(salt.as_bytes())?,
            stored_key: decode_key(stored_key)?,
            server_key: decode_key(server_key)?,
        })
    }

    /// The secret of a plain password. Slow; an iteration count of 0 counts as 1.
    pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        SaltedKeys::derive(password, salt, iterations).secret()
    }

    /// The text as PostgreSQL stores it, in canonical form.
    pub fn text(&self) -> String {
        format!(
            "{MECHANISM}${}:{}${}:{}",
            self.iterations,
            encode(&self.salt),
            encode(self.stored_key.as_bytes()),
            encode(self.server_key.as_bytes())
        )
    }

    /// True if the keys are those of the password.
    pub fn is_of(&self, keys: &SaltedKeys) -> bool {
        keys.fit(&self.salt, self.iterations) && keys.keys.server_key == self.server_key
    }
}

fn decode_key(text: &str) -> Option<Key> {
    let bytes = Zeroizing::new(decode(text.as_bytes())?);
    Key::from_slice(&bytes)
}

/// What a client's SCRAM login leaves behind: enough to log in as that client to a server whose
/// stored secret has the same salt and iteration count (auth 5.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassKeys {
    /// Proves knowing the password.
    pub client_key: Key,
    /// Signs for the server.
    pub server_key: Key,
}

/// What a password amounts to under a certain salt and iteration count. Deriving is slow; whoever
/// logs in again and again keeps these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaltedKeys {
    /// PBKDF2 iterations, at least 1.
    pub iterations: u32,
    /// The salt, raw bytes.
    pub salt: Vec<u8>,
    /// The keys.
    pub keys: PassKeys,
}

impl SaltedKeys {
    /// Derives the keys from a password: SASLprep (the raw bytes if that refuses them), then
    /// PBKDF2. Slow; an iteration count of 0 counts as 1.
    pub fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        Self::of(salted_password(&prepare(password), salt, iterations), salt, iterations)
    }

    /// As `derive`, but asks `goes_on` now and then, and gives up if that says no.
    pub fn derive_while(
        password: &[u8],
        salt: &[u8],
        iterations: u32,
        goes_on: impl FnMut() -> bool,
    ) -> Option<Self> {
        let salted = salted_while(&prepare(password), salt, iterations, goes_on)?;
        Some(Self::of(salted, salt, iterations))
    }

    fn of(salted: Key, salt: &[u8], iterations: u32) -> Self {
        Self {
            iterations: iterations.max(1),
            salt: salt.to_vec(),
            keys: PassKeys {
                client_key: hmac(salted.as_bytes(), &[b"Client Key"]),
                server_key: hmac(salted.as_bytes(), &[b"Server Key"]),
            },
        }
    }

    /// What a server would store.
    pub fn secret(&self) -> ScramSecret {
        ScramSecret {
            iterations: self.iterations,
            salt: self.salt.clone(),
            stored_key: hash(&self.keys.client_key),
            server_key: self.keys.server_key.clone(),
        }
    }

    /// True if the keys are good for this salt and count.
    pub fn fit(&self, salt: &[u8], iterations: u32) -> bool {
        self.iterations == iterations && self.salt == salt
    }
}

/// The salt that an unknown user is shown: the same for the same name as long as the process lives
/// (`process_key` is random), and unpredictable from outside (auth 5.2).
pub fn mock_salt(user: &[u8], process_key: &[u8; 32]) -> [u8; 16] {
    let sum: [u8; 32] =
        Sha256::new().chain_update(user).chain_update(process_key).finalize().into();
    let mut salt = [0; 16];
    salt.iter_mut().zip(sum).for_each(|(out, b)| *out = b);
    salt
}

/// SHA-256 of a key.
pub(super) fn hash(key: &Key) -> Key {
    Key::new(Sha256::digest(key.as_bytes()).into())
}

/// HMAC-SHA-256 over the parts, one after the other.
pub(super) fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = keyed(key);
    for part in parts {
        mac.update(part);
    }
    Key::new(mac.finalize().into_bytes().into())
}

/// HMAC-SHA-256 after its key and before its text.
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    const BLOCK: usize = 64;
    let mut block = Zeroizing::new([0; BLOCK]);
    if key.len() <= BLOCK {
        block.iter_mut().zip(key).for_each(|(out, b)| *out = *b);
    } else {
        let sum = Sha256::digest(key);
        block.iter_mut().zip(sum).for_each(|(out, b)| *out = b);
    }
    <Hmac<Sha256> as KeyInit>::new((&*block).into())
}

/// PBKDF2 with HMAC-SHA-256, one block. The keyed state is made once and copied for each round.
struct Rounds {
    mac: Hmac<Sha256>,
    round: [u8; 32],
    sum: [u8; 32],
}

impl Rounds {
    /// The first round is done.
    fn new(password: &[u8], salt: &[u8]) -> Self {
        let mac = keyed(password);
        let first = mac.clone().chain_update(salt).chain_update(1u32.to_be_bytes());
        let round = first.finalize().into_bytes().into();
        Self { mac, round, sum: round }
    }

    fn go_on(&mut self, rounds: u32) {
        for _ in 0..rounds {
            self.round = self.mac.clone().chain_update(self.round).finalize().into_bytes().into();
            for (out, b) in self.sum.iter_mut().zip(self.round) {
                *out ^= b;
            }
        }
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        self.round.zeroize();
        self.sum.zeroize();
    }
}

fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let mut rounds = Rounds::new(password, salt);
    rounds.go_on(iterations.saturating_sub(1));
    Key::new(rounds.sum)
}

/// Rounds between two questions whether to go on: about a millisecond.
const ROUNDS_AT_ONCE: u32 = 2048;

fn salted_while(
    password: &[u8],
    salt: &[u8],
    iterations: u32,
    mut goes_on: impl FnMut() -> bool,
) -> Option<Key> {
    let mut rounds = Rounds::new(password, salt);
    let mut left = iterations.saturating_sub(1);
    while left > 0 {
        if !goes_on() {
            return None;
        }
        let now = left.min(ROUNDS_AT_ONCE);
        rounds.go_on(now);
        left -= now;
    }
    Some(Key::new(rounds.sum))
}

/// SASLprep (RFC 4013). What it refuses, or would make empty, stays as it is, as in PostgreSQL.
fn prepare(password: &[u8]) -> Zeroizing<Vec<u8>> {
    let prepared = std::str::from_utf8(password)
        .ok()
        .and_then(|text| stringprep::saslprep(text).ok())
        .filter(|text| !text.is_empty());
    Zeroizing::new(match prepared {
        Some(Cow::Owned(text)) => text.into_bytes(),
        Some(Cow::Borrowed(text)) => text.as_bytes().to_vec(),
        None => password.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::text::hex;

    #[test]
    fn pbkdf2_gives_the_published_vectors() {
        // RFC 7914, section 11 (first half of the 64 bytes), and the well-known SHA-256 counterparts
        // of RFC 6070.
        for (password, salt, count, want) in [
            (
                "passwd",
                "salt",
                1,
                "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc",
            ),
            (
                "password",
                "salt",
                2,
                "ae4d0c95af6b46d32d0adff928f06dd02a303f8ef3c251dfd6e2d85a95474c43",
            ),
            (
                "password",
                "salt",
                4096,
                "c5e478d59288c841aa530db6845c4c8d962893a001ce4e11a4963873aa98134a",
            ),
        ] {
            let key = salted_password(password.as_bytes(), salt.as_bytes(), count);
            assert_eq!(hex(key.as_bytes()), want, "{password} {count}");
        }
    }

    #[test]
    fn a_derivation_can_be_given_up() {
        let want = SaltedKeys::derive(b"pencil", b"salt", 5000);
        let mut asked = 0;
        let derived = SaltedKeys::derive_while(b"pencil", b"salt", 5000, || {
            asked += 1;
            true
        });
        assert_eq!((derived, asked), (Some(want), 3));
        assert_eq!(SaltedKeys::derive_while(b"pencil", b"salt", u32::MAX, || false), None);
        let one = SaltedKeys::derive(b"pencil", b"salt", 1);
        assert_eq!(SaltedKeys::derive_while(b"pencil", b"salt", 0, || false), Some(one));
    }

    #[test]
    fn hmac_gives_the_vectors_of_rfc_4231() {
        let long = [0xaa; 131];
        let text = b"Test Using Larger Than Block-Size Key - Hash Key First";
        for (key, parts, want) in [
            (
                &b"Jefe"[..],
                &[&b"what do ya want "[..], b"for nothing?"][..],
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &long,
                &[&text[..]],
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ] {
            assert_eq!(hex(hmac(key, parts).as_bytes()), want);
        }
    }

    #[test]
    fn passwords_are_prepared_or_left_alone() {
        for (password, want) in [
            // RFC 4013, section 3.
            (&b"I\xc2\xadX"[..], &b"IX"[..]),
            (b"user", b"user"),
            (b"USER", b"USER"),
            (b"\xc2\xaa", b"a"),
            (b"\xe2\x85\xa8", b"IX"),
            // Refused: a control character, mixed directions; not UTF-8; would be empty.
            (b"\x07", b"\x07"),
            (b"\xd8\xa71", b"\xd8\xa71"),
            (b"\xff\xfe", b"\xff\xfe"),
            (b"\xc2\xad", b"\xc2\xad"),
            (b"", b""),
            (b"a\xc2\xa0b", b"a b"),
        ] {
            assert_eq!(*prepare(password), want, "{password:?}");
        }
    }

    #[test]
    fn secrets_survive_being_written_and_read() {
        let secret = ScramSecret::derive(b"pencil", b"some salt", 7);
        let text = secret.text();
        assert!(text.starts_with("SCRAM-SHA-256$7:c29tZSBzYWx0$"));
        assert_eq!(ScramSecret::parse(text.as_bytes()), Some(secret.clone()));
        for (password, salt, count, fits) in [
            ("pencil", "some salt", 7, true),
            ("pencils", "some salt", 7, false),
            ("", "some salt", 7, false),
            ("pencil", "some sal", 7, false),
            ("pencil", "some salt", 8, false),
        ] {
            let keys = SaltedKeys::derive(password.as_bytes(), salt.as_bytes(), count);
            assert_eq!(secret.is_of(&keys), fits, "{password} {salt} {count}");
        }
        assert_eq!(ScramSecret::derive(b"x", b"y", 0).iterations, 1);
    }

    #[test]
    fn keys_are_not_printed() {
        let keys = SaltedKeys::derive(b"pencil", b"s", 1);
        let shown = format!("{keys:?} {:?}", keys.secret());
        assert_eq!(shown.matches("Key(..)").count(), 4);
    }

    #[test]
    fn keys_fit_their_salt_and_count_only() {
        let keys = SaltedKeys::derive(b"pencil", b"salt", 3);
        assert!(keys.fit(b"salt", 3));
        assert!(!keys.fit(b"salt", 4));
        assert!(!keys.fit(b"sal", 3));
    }

    #[test]
    fn mock_salts_depend_on_user_and_process() {
        let salt = mock_salt(b"bob", &[1; 32]);
        assert_eq!(salt, mock_salt(b"bob", &[1; 32]));
        assert_ne!(salt, mock_salt(b"bob", &[2; 32]));
        assert_ne!(salt, mock_salt(b"eve", &[1; 32]));
    }
}
