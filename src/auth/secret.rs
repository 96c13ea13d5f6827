//! Stored secrets and how they judge what a client sends.

use super::key::{same, Key};
use super::md5::{md5_answer, md5_answer_from_password, md5_hash, Md5Hash};
use super::scram::{hmac, ScramSecret};
use super::scram_error::ScramError;
use std::fmt;
use zeroize::Zeroizing;

/// A user's stored secret, from the user list, `auth_query` or a connection string (auth 2.4).
/// Printing it shows the kind only; plain passwords and keys are wiped when dropped.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Secret {
    /// No secret: no password method ever lets this user in (auth 10.3-A).
    #[default]
    Empty,
    /// The password itself.
    Plain(Zeroizing<Vec<u8>>),
    /// `md5` and 32 lower-case hex digits.
    Md5(Md5Hash),
    /// `SCRAM-SHA-256$…`.
    Scram(ScramSecret),
}

impl Secret {
    /// Tells the kind from the text. Whatever is not quite an MD5 or SCRAM secret is a plain
    /// password.
    pub fn classify(text: &[u8]) -> Self {
        if text.is_empty() {
            Self::Empty
        } else if let Some(hash) = Md5Hash::parse(text) {
            Self::Md5(hash)
        } else if let Some(secret) = ScramSecret::parse(text) {
            Self::Scram(secret)
        } else {
            Self::Plain(Zeroizing::new(text.to_vec()))
        }
    }

    /// The answer to a server's AuthenticationCleartextPassword (auth 6.3): the stored text itself,
    /// whatever its kind. SCRAM secrets come in their canonical form.
    pub fn cleartext_answer(&self) -> Zeroizing<Vec<u8>> {
        match self {
            Self::Empty => Zeroizing::default(),
            Self::Plain(password) => password.clone(),
            Self::Md5(hash) => Zeroizing::new(hash.as_bytes().to_vec()),
            Self::Scram(secret) => Zeroizing::new(secret.text().into_bytes()),
        }
    }

    /// The answer to a server's AuthenticationMD5Password (auth 6.3), 35 characters.
    pub fn md5_answer(&self, user: &[u8], salt: [u8; 4]) -> Result<String, ScramError> {
        match self {
            Self::Empty => Ok(md5_answer_from_password(b"", user, salt)),
            Self::Plain(password) => Ok(md5_answer_from_password(password, user, salt)),
            Self::Md5(hash) => Ok(md5_answer(hash.as_bytes(), salt)),
            Self::Scram(_) => Err(ScramError::Md5WithScramSecret),
        }
    }

    /// Tells two processes that know `process_key` whether they have the same secret, and nobody
    /// else anything.
    pub fn fingerprint(&self, process_key: &[u8; 32]) -> Key {
        hmac(process_key, &[&self.cleartext_answer()])
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Plain(_) => "Plain(..)",
            Self::Md5(_) => "Md5(..)",
            Self::Scram(_) => "Scram(..)",
        })
    }
}

/// True if `given`, the password that the client sent in clear, fits the secret. Always false for
/// SCRAM secrets: that takes keys, which are slow to derive (`ScramSecret::is_of`).
pub fn check_plain(secret: &Secret, user: &[u8], given: &[u8]) -> bool {
    if given.is_empty() {
        return false;
    }
    match secret {
        Secret::Empty | Secret::Scram(_) => false,
        Secret::Plain(password) => same(password, given),
        Secret::Md5(hash) => {
            let hashed = Zeroizing::new(md5_hash(given, user));
            same(hash.as_bytes(), hashed.as_bytes())
        }
    }
}

/// True if `answer`, the client's reply to AuthenticationMD5Password with this salt, fits the
/// secret. Always false for SCRAM secrets: such users are asked for SCRAM instead (auth 2.4).
pub fn check_md5(secret: &Secret, user: &[u8], salt: [u8; 4], answer: &[u8]) -> bool {
    let (want, fits) = match secret {
        Secret::Plain(password) => (md5_answer_from_password(password, user, salt), true),
        Secret::Md5(hash) => (md5_answer(hash.as_bytes(), salt), true),
        // Who has no secret takes as long as the others.
        Secret::Empty | Secret::Scram(_) => (md5_answer_from_password(b"", user, salt), false),
    };
    same(want.as_bytes(), answer) & fits
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &[u8] = b"bob";

    fn scram_text() -> String {
        ScramSecret::derive(b"secret", b"0123456789abcdef", 10).text()
    }

    fn of_each_kind() -> [Secret; 4] {
        [
            Secret::Empty,
            Secret::classify(b"secret"),
            Secret::classify(md5_hash(b"secret", USER).as_bytes()),
            Secret::classify(scram_text().as_bytes()),
        ]
    }

    #[test]
    fn classify_tells_the_kind() {
        let good = scram_text();
        for (text, want) in [
            (String::new(), "Empty"),
            ("secret".into(), "Plain(..)"),
            (md5_hash(b"secret", USER), "Md5(..)"),
            (md5_hash(b"secret", USER).to_uppercase(), "Plain(..)"),
            (good.clone(), "Scram(..)"),
            (good.replace("SCRAM", "scram"), "Plain(..)"),
            (good.replace("$10:", "$ten:"), "Plain(..)"),
            (good.replace("$10:", "$0:"), "Plain(..)"),
            (good.replace("$10:", "$-1:"), "Plain(..)"),
            (good.replace("$10:", "$99999999999:"), "Plain(..)"),
            (good.replace("$10:", "$10:!"), "Plain(..)"),
            (good.replace("=:", "A:"), "Plain(..)"),
            (format!("{good} "), "Plain(..)"),
            (good[..good.len() - 4].into(), "Plain(..)"),
            ("SCRAM-SHA-256$".into(), "Plain(..)"),
            ("SCRAM-SHA-256$1:$:".into(), "Plain(..)"),
        ] {
            assert_eq!(format!("{:?}", Secret::classify(text.as_bytes())), want, "{text}");
        }
    }

    #[test]
    fn fingerprints_are_equal_where_secrets_are() {
        for (at, one) in of_each_kind().iter().enumerate() {
            for (other_at, other) in of_each_kind().iter().enumerate() {
                let same = one.fingerprint(&[1; 32]) == other.fingerprint(&[1; 32]);
                assert_eq!(same, at == other_at, "{one:?} {other:?}");
            }
            assert_ne!(one.fingerprint(&[1; 32]), one.fingerprint(&[2; 32]));
        }
    }

    #[test]
    fn plain_method_accepts_the_password_of_plain_and_md5_secrets() {
        for (secret, want) in of_each_kind().iter().zip([false, true, true, false]) {
            assert_eq!(check_plain(secret, USER, b"secret"), want, "{secret:?}");
            assert!(!check_plain(secret, USER, b"secreT"), "{secret:?}");
            assert!(!check_plain(secret, USER, b""), "{secret:?}");
            assert!(!check_plain(secret, USER, &[b's'; 70_000]), "{secret:?}");
        }
        let empty_md5 = Secret::classify(md5_hash(b"", USER).as_bytes());
        assert!(!check_plain(&empty_md5, USER, b""));
    }

    #[test]
    fn md5_method_accepts_the_answer_for_plain_and_md5_secrets() {
        let salt = [9, 8, 7, 6];
        let answer = md5_answer(md5_hash(b"secret", USER).as_bytes(), salt);
        for (secret, want) in of_each_kind().iter().zip([false, true, true, false]) {
            assert_eq!(check_md5(secret, USER, salt, answer.as_bytes()), want);
            assert!(!check_md5(secret, USER, [0; 4], answer.as_bytes()));
            assert!(!check_md5(secret, USER, salt, &answer.as_bytes()[..34]));
            assert!(!check_md5(secret, USER, salt, b""));
        }
        let empty = md5_answer(md5_hash(b"", USER).as_bytes(), salt);
        assert!(!check_md5(&Secret::Empty, USER, salt, empty.as_bytes()));
    }

    #[test]
    fn servers_get_the_answer_of_the_kind() {
        let salt = [1, 2, 3, 4];
        let [empty, plain, hashed, scram] = of_each_kind();
        assert_eq!(*empty.cleartext_answer(), b"");
        assert_eq!(*plain.cleartext_answer(), b"secret");
        assert_eq!(*hashed.cleartext_answer(), md5_hash(b"secret", USER).into_bytes());
        assert_eq!(*scram.cleartext_answer(), scram_text().into_bytes());
        let want = md5_answer(md5_hash(b"secret", USER).as_bytes(), salt);
        assert_eq!(plain.md5_answer(USER, salt).unwrap(), want);
        assert_eq!(hashed.md5_answer(USER, salt).unwrap(), want);
        assert_eq!(empty.md5_answer(USER, salt).unwrap().len(), 35);
        assert_eq!(
            scram.md5_answer(USER, salt).unwrap_err().to_string(),
            "cannot do MD5 authentication: wrong password type"
        );
    }
}
