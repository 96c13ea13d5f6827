//! SCRAM messages, towards clients and towards servers.

use super::Fields;
use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use pgturnstile::auth::{Challenge, ClientExchange, Credential, SaltedKeys, ScramSecret};
use pgturnstile::auth::{ServerExchange, Verifier, MECHANISM, MECHANISM_PLUS};
use zeroize::Zeroizing;

const SALT: &[u8; 16] = b"0123456789abcdef";
const END_POINT: [u8; 32] = [1; 32];
/// More would only take time.
const MOST_ITERATIONS: u32 = 16;

/// A client's two messages. The first byte chooses what they are held against, and whether there
/// is a channel binding.
pub(super) fn server(data: &[u8]) {
    let mut fields = Fields(data);
    let choice = fields.byte();
    let verifier = match choice & 3 {
        0 | 1 => Verifier::Secret(ScramSecret::derive(b"pencil", SALT, 1)),
        2 => Verifier::Mock { salt: *SALT, iterations: 4096 },
        _ => Verifier::Md5Secret { salt: *SALT, iterations: 4096 },
    };
    let opens = choice & 3 < 2;
    let bound = choice & 4 != 0;
    let mut exchange = ServerExchange::new(verifier);
    if bound {
        exchange = exchange.bound_to(&END_POINT);
    }
    let mechanism = match choice & 24 {
        0 => MECHANISM.as_bytes(),
        8 => MECHANISM_PLUS.as_bytes(),
        _ => fields.next(),
    };
    let (first, last) = (fields.next(), fields.next());
    let challenged = exchange.first(mechanism, first, [3; 18]);
    assert_eq!(challenged.is_ok(), exchange.is_challenged());
    let plus = mechanism == MECHANISM_PLUS.as_bytes();
    if let Ok(challenge) = &challenged {
        assert!(challenge.len() <= 503 && challenge.starts_with(b"r="));
        assert!(!plus || bound, "a binding that was not offered");
        assert!(!(bound && first.starts_with(b"y")), "a list that was changed on the way");
        assert_eq!(plus, first.starts_with(b"p="));
    }
    let accepted = exchange.last(last);
    let complaint = exchange.take_complaint().map(|complaint| complaint.to_string());
    assert!(complaint.is_none_or(|text| !text.contains(char::is_control)));
    match accepted {
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
        Ok(accepted) => {
            assert!(opens && challenged.is_ok());
            assert_eq!(accepted.server_final.len(), 46);
            let header = match (plus, first.first()) {
                (true, _) => [&b"p=tls-server-end-point,,"[..], &END_POINT].concat(),
                (false, Some(b'y')) => b"y,,".to_vec(),
                _ => b"n,,".to_vec(),
            };
            let binding = format!("c={},", STANDARD.encode(header));
            assert!(last.starts_with(binding.as_bytes()), "a binding that was not checked");
        }
    }
    assert!(exchange.last(last).is_err());
}

/// A server's list and two messages. The first byte chooses what we log in with, and whether there
/// is a channel binding.
pub(super) fn client(data: &[u8]) {
    let mut fields = Fields(data);
    let choice = fields.byte();
    let keys = SaltedKeys::derive(b"pencil", SALT, 1);
    let credential = match choice & 1 {
        0 => Credential::Password(Zeroizing::new(b"pencil".to_vec())),
        _ => Credential::Keys(keys.keys),
    };
    let bound = choice & 4 != 0;
    let mut exchange = ClientExchange::new(credential, [9; 18]);
    if bound {
        exchange = exchange.bound_to(&END_POINT);
    }
    let list = match choice & 24 {
        0 => b"SCRAM-SHA-256\0\0",
        8 => &b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"[..],
        _ => fields.next(),
    };
    let (first, last) = (fields.next(), fields.next());
    let offered = |name: &str| list.split(|byte| *byte == 0).any(|word| word == name.as_bytes());
    if exchange.begin(list).is_ok() {
        assert!(offered(exchange.mechanism()), "what was not offered");
        let plus = exchange.mechanism() == MECHANISM_PLUS;
        assert_eq!(plus, bound && offered(MECHANISM_PLUS));
    }
    let answer = match exchange.challenge(first) {
        Ok(Challenge::Answer(message)) => Some(message),
        Ok(Challenge::Derive { salt, iterations }) if iterations <= MOST_ITERATIONS => {
            exchange.answer(SaltedKeys::derive(b"pencil", &salt, iterations)).ok()
        }
        _ => None,
    };
    if let Some(message) = &answer {
        assert!(message.len() <= 507 && message.starts_with(b"c="));
    }
    match exchange.finish(last) {
        Ok(()) => assert!(answer.is_some() && exchange.is_verified() && last.starts_with(b"v=")),
        Err(error) => {
            assert!(!exchange.is_verified());
            assert!(!error.to_string().contains(char::is_control));
        }
    }
}
