//! Clients' half of logging in. What SCRAM derives from a salt is kept, so that a stored secret
//! costs the load generator nothing.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::rig::secrets::md5_answer;
use crate::rig::wire::{cstr, msg, startup};

pub(crate) const USER: &str = "bench";
pub(crate) const PASSWORD: &str = "bench-pw";
const NONCE: &str = "bm9uY2Utb2YtYmVuY2g";

type Sha = Hmac<Sha256>;

/// The StartupMessage.
pub(crate) fn hello() -> Vec<u8> {
    startup(0, &[("user", USER), ("database", "bench"), ("client_encoding", "UTF8")])
}

/// Client key and stored key of a salt and an iteration count, as the server's first message has
/// them.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    of: String,
    client: Vec<u8>,
    stored: Vec<u8>,
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    Sha::new_from_slice(key).unwrap().chain_update(data).finalize().into_bytes().to_vec()
}

fn xor(into: &mut [u8], other: &[u8]) {
    for (a, b) in into.iter_mut().zip(other) {
        *a ^= b;
    }
}

/// PBKDF2 with one block (RFC 5802, Hi).
fn salted(salt: &[u8], iterations: u32) -> Vec<u8> {
    let keyed = Sha::new_from_slice(PASSWORD.as_bytes()).unwrap();
    let mut last = keyed.clone().chain_update(salt).chain_update([0, 0, 0, 1]).finalize();
    let mut sum = last.clone().into_bytes();
    for _ in 1..iterations {
        last = keyed.clone().chain_update(last.into_bytes()).finalize();
        xor(&mut sum, &last.clone().into_bytes());
    }
    sum.to_vec()
}

impl Keys {
    fn derive(&mut self, of: &str, salt: &str, iterations: &str) {
        if self.of == of {
            return;
        }
        let salt = STANDARD.decode(salt).unwrap();
        let salted = salted(&salt, iterations.parse().unwrap());
        self.client = mac(&salted, b"Client Key");
        self.stored = Sha256::digest(&self.client).to_vec();
        of.clone_into(&mut self.of);
    }

    /// The client-final-message.
    fn last(&mut self, first: &str) -> String {
        let (nonce, of) = first.split_once(",s=").unwrap();
        let (salt, iterations) = of.split_once(",i=").unwrap();
        self.derive(of, salt, iterations);
        let bare = format!("c=biws,{nonce}");
        let signed = format!("n=,r={NONCE},{first},{bare}");
        let mut proof = mac(&self.stored, signed.as_bytes());
        xor(&mut proof, &self.client);
        format!("{bare},p={}", STANDARD.encode(proof))
    }
}

/// What a client has of the pooler's answers.
#[derive(Debug, Default)]
pub(crate) struct Login {
    carry: Vec<u8>,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Wait,
    Send(Vec<u8>),
    /// The client is in.
    Ready,
}

impl Login {
    /// Looks at what came.
    pub(crate) fn feed(&mut self, data: &[u8], keys: &mut Keys) -> Next {
        self.carry.extend_from_slice(data);
        let mut at = 0;
        let mut next = Next::Wait;
        while let Some(field) = self.carry.get(at + 1..at + 5) {
            let end = at + 1 + u32::from_be_bytes(field.try_into().unwrap()) as usize;
            let Some(body) = self.carry.get(at + 5..end) else {
                break;
            };
            match self.carry[at] {
                b'R' => next = answer(body, keys),
                b'Z' => next = Next::Ready,
                b'E' => panic!("no login: {}", body.escape_ascii()),
                _ => {}
            }
            at = end;
        }
        self.carry.drain(..at);
        if next == Next::Ready {
            self.carry = Vec::new();
        }
        next
    }
}

fn answer(body: &[u8], keys: &mut Keys) -> Next {
    let (code, rest) = body.split_at(4);
    let password = |body: &[u8]| Next::Send(msg(b'p', body));
    match u32::from_be_bytes(code.try_into().unwrap()) {
        3 => password(&cstr(PASSWORD)),
        5 => password(&cstr(&md5_answer(USER, PASSWORD, rest))),
        10 => {
            let first = format!("n,,n=,r={NONCE}");
            let len = u32::try_from(first.len()).unwrap().to_be_bytes();
            password(&[&b"SCRAM-SHA-256\0"[..], &len, first.as_bytes()].concat())
        }
        11 => password(keys.last(std::str::from_utf8(rest).unwrap()).as_bytes()),
        _ => Next::Wait,
    }
}
