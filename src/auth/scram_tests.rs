//! Both SCRAM roles against each other.

use super::scram_text::{binding, encode, until_nul};
use super::{mechanisms, MECHANISM, MECHANISM_PLUS};
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

/// Logs in with channel bindings (empty: none) at both ends; `list` is the offer that the client
/// gets to see. Returns what the client chose, and its GS2 flag.
fn log_in_bound(
    client_sees: &[u8],
    server_shows: &[u8],
    list: impl FnOnce(&'static [u8]) -> &'static [u8],
) -> Result<(&'static str, char), ScramError> {
    let password = Credential::Password(Zeroizing::new(b"pencil".to_vec()));
    let mut client = ClientExchange::new(password, [9; 18]).bound_to(client_sees);
    let mut server = ServerExchange::new(Verifier::Secret(secret(1))).bound_to(server_shows);
    let first = client.begin(list(mechanisms(server_shows)))?;
    let reply = server.first(client.mechanism().as_bytes(), &first, [3; 18])?;
    let accepted = server.last(&client.step(&reply)?)?;
    client.finish(&accepted.server_final)?;
    assert!(client.is_verified());
    Ok((client.mechanism(), char::from(first[0])))
}

const PLUS_ONLY: &[u8] = b"SCRAM-SHA-256-PLUS\0\0";
const PLAIN_ONLY: &[u8] = b"SCRAM-SHA-256\0\0";

#[test]
fn binding_is_used_if_both_have_one_and_must_be_the_same() {
    let (none, one, other, long) = (&b""[..], &[1; 32][..], &[2; 32][..], &[3; 64][..]);
    let untouched = |offer| offer;
    for (client, server, want) in [
        (none, none, Ok((MECHANISM, 'n'))),
        (none, one, Ok((MECHANISM, 'n'))),
        (one, none, Ok((MECHANISM, 'y'))),
        (one, one, Ok((MECHANISM_PLUS, 'p'))),
        (long, long, Ok((MECHANISM_PLUS, 'p'))),
        (one, other, Err(ScramError::BindingDiffers)),
        (one, &one[1..], Err(ScramError::BindingDiffers)),
        (&one[1..], one, Err(ScramError::BindingDiffers)),
        (one, long, Err(ScramError::BindingDiffers)),
    ] {
        assert_eq!(log_in_bound(client, server, untouched), want, "{client:?} {server:?}");
    }
}

#[test]
fn offer_that_was_changed_on_the_way_is_found_out_by_those_who_can_bind() {
    let (none, one) = (&b""[..], &[1; 32][..]);
    for (client, server, list, want) in [
        // PLUS taken out.
        (one, one, PLAIN_ONLY, Err(ScramError::BindingDowngrade)),
        (none, one, PLAIN_ONLY, Ok((MECHANISM, 'n'))),
        (one, none, PLAIN_ONLY, Ok((MECHANISM, 'y'))),
        // PLUS put in, or the only one offered.
        (one, none, PLUS_ONLY, Err(ScramError::Mechanism)),
        (one, one, PLUS_ONLY, Ok((MECHANISM_PLUS, 'p'))),
        (none, one, PLUS_ONLY, Err(ScramError::NoMechanism)),
    ] {
        assert_eq!(log_in_bound(client, server, |_| list), want, "{client:?} {server:?}");
    }
}

#[test]
fn better_mechanism_is_offered_first() {
    assert_eq!(mechanisms(b""), PLAIN_ONLY);
    let both = [&PLUS_ONLY[..PLUS_ONLY.len() - 1], PLAIN_ONLY].concat();
    assert_eq!(mechanisms(b"hash"), both);
}

#[test]
fn faulty_bindings_of_clients_are_named() {
    let missing = "malformed SCRAM message (client selected SCRAM-SHA-256-PLUS, but the message \
                   does not include channel binding data)";
    let required = "client requires SCRAM channel binding, but it is not supported";
    for (mechanism, message, bound, want) in [
        (MECHANISM_PLUS, "n,,n=,r=x", true, missing),
        (MECHANISM_PLUS, "y,,n=,r=x", true, missing),
        (
            MECHANISM_PLUS,
            "n,,n=,r=x",
            false,
            "client selected an invalid SASL authentication mechanism",
        ),
        (
            MECHANISM,
            "y,,n=,r=x",
            true,
            "SCRAM channel binding negotiation error (client supports channel binding, but thinks \
             that this server does not)",
        ),
        (
            MECHANISM,
            "p=tls-server-end-point,,n=,r=x",
            true,
            "malformed SCRAM message (client selected SCRAM-SHA-256 without channel binding, but \
             the message includes channel binding data)",
        ),
        (MECHANISM, "p=tls-server-end-point,,n=,r=x", false, required),
        (
            MECHANISM_PLUS,
            "p=tls-unique,,n=,r=x",
            true,
            "unsupported SCRAM channel-binding type \"tls-unique\"",
        ),
        (
            MECHANISM_PLUS,
            "p=\n\u{e4}234567890123456789012345678901,,n=,r=x",
            true,
            "unsupported SCRAM channel-binding type \"???234567890123456789012345678\"",
        ),
        (
            MECHANISM_PLUS,
            "p",
            true,
            "malformed SCRAM message (expected \"=\" after attribute \"p\")",
        ),
        (
            MECHANISM_PLUS,
            "p=tls-server-end-point",
            true,
            "malformed SCRAM message (unexpected attribute \"0x00\" in client-first-message)",
        ),
        (
            MECHANISM_PLUS,
            "p=tls-server-end-point,a=bob,n=,r=x",
            true,
            "client uses authorization identity, but it is not supported",
        ),
    ] {
        let end_point = if bound { &[1; 32][..] } else { b"" };
        let mut server = ServerExchange::new(Verifier::Secret(secret(1))).bound_to(end_point);
        let error = server.first(mechanism.as_bytes(), message.as_bytes(), [3; 18]).unwrap_err();
        assert_eq!(error.to_string(), want, "{mechanism} {message}");
    }
}

#[test]
fn final_message_must_repeat_the_binding() {
    let bound = binding("p=tls-server-end-point,,", &[1; 32]);
    let proof = encode(&[0; 32]);
    let failed = "SCRAM channel binding check failed";
    for (c, want) in [
        (&*bound, "password authentication failed"),
        (&bound[..bound.len() - 1], failed),
        ("biws", failed),
        ("eSws", failed),
        ("", failed),
        (&binding("p=tls-server-end-point,,", &[2; 32]), failed),
        (&binding("p=tls-server-end-point,", &[1; 32]), failed),
    ] {
        // Who has no secret gets the same answers.
        for mock in [false, true] {
            let verifier = match mock {
                true => Verifier::Mock { salt: [1; 16], iterations: 1 },
                false => Verifier::Secret(secret(1)),
            };
            let mut server = ServerExchange::new(verifier).bound_to(&[1; 32]);
            let first = b"p=tls-server-end-point,,n=,r=x";
            server.first(MECHANISM_PLUS.as_bytes(), first, [3; 18]).unwrap();
            let nonce = format!("x{}", encode(&[3; 18]));
            let error = server.last(format!("c={c},r={nonce},p={proof}").as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), want, "{c}");
            assert_eq!(error.client_text(), "SASL authentication failed");
        }
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
