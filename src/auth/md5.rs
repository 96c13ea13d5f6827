//! PostgreSQL's MD5 password scheme.

use super::key::same;
use crate::base::text::hex;
use md5::{Digest, Md5};
use std::fmt;
use zeroize::{Zeroize, Zeroizing};

const PREFIX: &[u8] = b"md5";

/// A stored MD5 secret: `md5` and 32 lower-case hex digits of md5(password, user).
#[derive(Clone, Eq)]
pub struct Md5Hash([u8; 35]);

impl Md5Hash {
    /// Reads a stored secret; `None` if the text is not of exactly this shape (upper-case digits
    /// are not, auth 2.4).
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits = text.strip_prefix(PREFIX)?;
        let lower_hex = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if !digits.iter().all(lower_hex) {
            return None;
        }
        text.try_into().ok().map(Self)
    }

    /// The whole text, 35 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Md5Hash {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}

impl fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Hash(..)")
    }
}

impl Drop for Md5Hash {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// What PostgreSQL stores for a user under `password_encryption = md5`: `md5` and 32 hex digits of
/// md5(password, user).
pub fn md5_hash(password: &[u8], user: &[u8]) -> String {
    prefixed(password, user)
}

/// The answer to AuthenticationMD5Password: `md5` and 32 hex digits of md5(digits of the stored
/// hash, salt). `stored_md5_hash` is the `md5…` text of 35 bytes.
pub fn md5_answer(stored_md5_hash: &[u8], salt: [u8; 4]) -> String {
    let digits = stored_md5_hash.strip_prefix(PREFIX).unwrap_or(stored_md5_hash);
    prefixed(digits, &salt)
}

/// The answer to AuthenticationMD5Password of somebody who knows the password.
pub(super) fn md5_answer_from_password(password: &[u8], user: &[u8], salt: [u8; 4]) -> String {
    let hash = Zeroizing::new(md5_hash(password, user));
    md5_answer(hash.as_bytes(), salt)
}

fn prefixed(first: &[u8], second: &[u8]) -> String {
    let sum = Md5::new().chain_update(first).chain_update(second).finalize();
    let digits = Zeroizing::new(hex(&sum));
    let mut text = String::with_capacity(35);
    text.push_str("md5");
    text.push_str(&digits);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_of_password_then_user() {
        // RFC 1321: md5("abc"), md5("message digest").
        for (password, user, want) in [
            ("ab", "c", "md5900150983cd24fb0d6963f7d28e17f72"),
            ("", "abc", "md5900150983cd24fb0d6963f7d28e17f72"),
            ("message ", "digest", "md5f96b697d7cb7938d525a2f31aaf161d0"),
        ] {
            assert_eq!(md5_hash(password.as_bytes(), user.as_bytes()), want);
        }
    }

    #[test]
    fn answer_hashes_the_digits_and_the_salt() {
        let stored = md5_hash(b"secret", b"bob");
        let want = md5_hash(&stored.as_bytes()[3..], &[1, 2, 3, 4]);
        assert_eq!(md5_answer(stored.as_bytes(), [1, 2, 3, 4]), want);
        assert_eq!(md5_answer_from_password(b"secret", b"bob", [1, 2, 3, 4]), want);
        assert_eq!(md5_answer(b"", [0; 4]).len(), 35);
    }

    #[test]
    fn only_lower_case_hex_is_a_hash() {
        for (text, want) in [
            ("md5900150983cd24fb0d6963f7d28e17f72", true),
            ("md5900150983CD24FB0D6963F7D28E17F72", false),
            ("MD5900150983cd24fb0d6963f7d28e17f72", false),
            ("md5900150983cd24fb0d6963f7d28e17f7", false),
            ("md5900150983cd24fb0d6963f7d28e17f720", false),
            ("md5900150983cd24fb0d6963f7d28e17f7g", false),
            ("md5", false),
            ("", false),
        ] {
            assert_eq!(Md5Hash::parse(text.as_bytes()).is_some(), want, "{text}");
        }
    }
}
