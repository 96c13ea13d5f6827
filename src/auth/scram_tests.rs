//! Both SCRAM roles against each other.

use super::scram_text::until_nul;
use super::{ClientExchange, Credential, Key, ScramError, ScramSecret, ServerExchange, Verifier};
use zeroize::Zeroizing;

fn secret(iterations: u32) -> ScramSecret {
    ScramSecret::derive(b"pencil", b"0123456789abcdef", iterations)
}

/// Both roles against each other, with what the client sends altered by `alter`.
fn log_in(
    verifier: Verifier,
    password: &[u8],
    mut alter: impl FnMut(&mut Vec<u8>),
) -> Result<(), ScramError> {
    let password = Zeroizing::new(password.to_vec());
    let mut client = ClientExchange::new(Credential::Password(password), [9; 18]);
    let mut server = ServerExchange::new(verifier);
    let mut message = client.begin(b"SCRAM-SHA-256\0\0")?;
    alter(&mut message);
    let reply = server.first(b"SCRAM-SHA-256", &message, [3; 18])?;
    let mut message = client.step(&reply)?;
    alter(&mut message);
    let accepted = server.last(&message)?;
    client.finish(&accepted.server_final)
}

#[test]
fn both_roles_understand_each_other() {
    let (salt, iterations) = ([1; 16], 2);
    let zero_keys = ScramSecret {
        iterations,
        salt: salt.to_vec(),
        stored_key: Key::new([0; 32]),
        server_key: Key::new([0; 32]),
    };
    for (verifier, password, want) in [
        (Verifier::Secret(secret(4)), "pencil", Ok(())),
        (Verifier::Secret(secret(4)), "pen", Err(ScramError::WrongPassword)),
        (Verifier::Secret(secret(4)), "", Err(ScramError::WrongPassword)),
        (Verifier::Secret(zero_keys), "pencil", Err(ScramError::WrongPassword)),
        (Verifier::Mock { salt, iterations }, "", Err(ScramError::WrongPassword)),
    ] {
        assert_eq!(log_in(verifier, password.as_bytes(), |_| {}), want);
    }
}

#[test]
fn altered_messages_neither_panic_nor_log_in() {
    let mut seed = 0x2545_f491_u32;
    let mut next = move |below: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % below.max(1)
    };
    for round in 0..20_000 {
        let target = round % 2;
        let (mut sent, mut harmless) = (0, true);
        let result = log_in(Verifier::Secret(secret(1)), b"pencil", |message| {
            if sent == target {
                let before = message.clone();
                for _ in 0..=next(3) {
                    mutate(message, &mut next);
                }
                harmless = means_the_same(&before, message);
            }
            sent += 1;
        });
        assert!(harmless || result.is_err());
    }
}

/// True if only what follows a NUL differs, or the unused bits and the comma after the proof.
fn means_the_same(before: &[u8], after: &[u8]) -> bool {
    let after = until_nul(after);
    let after_proof = after.strip_suffix(b",").unwrap_or(after);
    let proof_starts = before.windows(3).position(|w| w == b",p=");
    proof_starts.map_or(before == after, |at| {
        after_proof.len() == before.len() && after_proof[..at + 45] == before[..at + 45]
    })
}

fn mutate(message: &mut Vec<u8>, next: &mut impl FnMut(usize) -> usize) {
    let at = next(message.len());
    match next(6) {
        0 => message.truncate(at),
        1 => message.insert(at, next(256) as u8),
        2 if !message.is_empty() => drop(message.remove(at)),
        3 if !message.is_empty() => message[at] = next(256) as u8,
        4 => message.insert(at, b",=\0npcr"[next(7)]),
        _ => message.extend_from_within(at..),
    }
}
