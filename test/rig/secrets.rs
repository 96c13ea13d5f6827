//! The client's half of MD5 and SCRAM-SHA-256, so that raw clients can log in.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use hmac::{Hmac, Mac};
use md5::{Digest, Md5};
use sha2::Sha256;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The stored form of an MD5 secret: `md5` and 32 hex digits.
pub(crate) fn md5_secret(user: &str, password: &str) -> String {
    format!("md5{}", hex(&Md5::digest(format!("{password}{user}"))))
}

/// The answer to AuthenticationMD5Password with this salt.
pub(crate) fn md5_answer(user: &str, password: &str, salt: &[u8]) -> String {
    let mut inner = md5_secret(user, password).as_bytes()[3..].to_vec();
    inner.extend_from_slice(salt);
    format!("md5{}", hex(&Md5::digest(inner)))
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

fn xor(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(x, y)| x ^ y).collect()
}

/// PBKDF2 with one block (RFC 5802, Hi).
fn salted(password: &str, salt: &[u8], iterations: u32) -> Vec<u8> {
    let mut block = salt.to_vec();
    block.extend_from_slice(&1u32.to_be_bytes());
    let mut last = mac(password.as_bytes(), &block);
    let mut sum = last.clone();
    for _ in 1..iterations {
        last = mac(password.as_bytes(), &last);
        sum = xor(&sum, &last);
    }
    sum
}

/// The stored form of a SCRAM secret with a fixed salt.
pub(crate) fn scram_secret(password: &str, salt: &[u8], iterations: u32) -> String {
    let salted = salted(password, salt, iterations);
    let stored = Sha256::digest(mac(&salted, b"Client Key"));
    let server = mac(&salted, b"Server Key");
    let [salt, stored, server] = [salt, &stored, &server].map(|part| STANDARD.encode(part));
    format!("SCRAM-SHA-256${iterations}:{salt}${stored}:{server}")
}

/// The client's side of one SCRAM exchange.
pub(crate) struct Scram {
    password: String,
    nonce: String,
}

impl Scram {
    /// `nonce` may be constant: these exchanges protect nothing.
    pub(crate) fn new(password: &str, nonce: &str) -> Self {
        Self { password: password.to_owned(), nonce: nonce.to_owned() }
    }

    /// The client-first-message.
    pub(crate) fn first(&self) -> String {
        format!("n,,n=,r={}", self.nonce)
    }

    /// The client-final-message and the server signature that must follow.
    pub(crate) fn last(&self, server_first: &str) -> (String, String) {
        let part = |key: &str| {
            let found = server_first.split(',').find_map(|part| part.strip_prefix(key));
            found.unwrap_or_else(|| panic!("no {key} in {server_first:?}"))
        };
        let nonce = part("r=");
        assert!(nonce.starts_with(&self.nonce) && nonce.len() > self.nonce.len(), "{nonce}");
        let salt = STANDARD.decode(part("s=")).unwrap();
        let salted = salted(&self.password, &salt, part("i=").parse().unwrap());
        let bare = format!("c=biws,r={nonce}");
        let text = format!("n=,r={},{server_first},{bare}", self.nonce);
        let key = mac(&salted, b"Client Key");
        let proof = xor(&key, &mac(&Sha256::digest(&key), text.as_bytes()));
        let signature = mac(&mac(&salted, b"Server Key"), text.as_bytes());
        (
            format!("{bare},p={}", STANDARD.encode(proof)),
            format!("v={}", STANDARD.encode(signature)),
        )
    }
}
