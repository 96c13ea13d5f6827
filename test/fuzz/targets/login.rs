//! Logins of two clients that take long: look-ups whose server says what it likes, and jobs that end at any time.

use super::scene::{assert_packets, Scene, PASSWORD};
use super::stream::WELCOME;
use super::Fields;
use pgturnstile::base::Journal;
use pgturnstile::config::hba;
use pgturnstile::config::ident::IdentMaps;
use pgturnstile::core::{Decisions, Peer};
use std::io::ErrorKind;

const METHODS: [&str; 7] = ["plain", "md5", "scram-sha-256", "hba", "pam", "ldap", "trust"];
const RULES: [&str; 4] = [
    "host all u all trust\nhost all all all md5\n",
    "host all all all scram-sha-256\n",
    "host d all all ldap x\nhost all all all password\n",
    "",
];

/// The first byte chooses the method, and whether users are looked up. Then come pieces: a byte with the sender in the top two
/// bits (two clients, the server that one of them is linked to, or something that happens) and in the others the length, or
/// what happens.
pub(super) fn login(data: &[u8]) {
    let mut fields = Fields(data);
    let choice = fields.byte();
    let method = METHODS[usize::from(choice & 7) % METHODS.len()];
    let looks_up = choice & 8 == 0;
    let auth_user = if looks_up { "auth_user = u\n" } else { "" };
    let mut scene = Scene::new(&format!(
        "auth_type = {method}\nauth_ldap_options = x\nclient_login_timeout = 9\nquery_wait_timeout = 9\n\
         pool_mode = transaction\nscram_iterations = 1\n{auth_user}"
    ));
    rules(&mut scene, 0);
    scene.jobs = Some(Vec::new());
    let clients = [scene.client(false), scene.client(false)];
    let mut servers = Vec::new();
    while !fields.0.is_empty() {
        let head = fields.byte();
        if head >= 0xc0 {
            happen(&mut scene, head & 0x3f, clients);
        } else {
            let bytes = fields.take(usize::from(head & 0x3f));
            match head >> 6 {
                0 => scene.say(clients[0], bytes),
                1 => scene.say(clients[1], bytes),
                _ => speaker(&scene, clients, &servers)
                    .into_iter()
                    .for_each(|at| scene.say(at, bytes)),
            }
        }
        while let Some(server) = scene.connect() {
            scene.say(server, WELCOME);
            servers.push(server);
        }
    }
    let said = clients.map(|client| scene.got(client));
    let is_in =
        said.iter().any(|said| said.windows(9).any(|window| window == b"R\0\0\0\x08\0\0\0\0"));
    let told = data.windows(PASSWORD.len()).any(|window| window == PASSWORD);
    match method {
        "pam" | "ldap" => assert!(told || !is_in, "the password was never sent"),
        "plain" => assert!(told || looks_up || !is_in, "the password was never sent"),
        "md5" | "scram-sha-256" => assert!(!is_in, "nobody can have made that proof up"),
        _ => {}
    }
    clients.into_iter().for_each(|client| scene.hang_up(client));
    scene.end_jobs();
    scene.pass(20);
    assert_eq!(scene.core.job_count(), 0);
    for client in clients {
        assert!(!scene.is_open(client), "a client that has gone away stays for ever");
        assert_packets(&scene.got(client), true);
    }
    for server in servers {
        let said = scene.got(server);
        let len = said.first_chunk().map_or(0, |len| u32::from_be_bytes(*len));
        assert_packets(said.get(len as usize..).unwrap_or_default(), false);
    }
    let known = String::from_utf8_lossy(PASSWORD);
    assert!(told || !scene.log.iter().any(|line| line.contains(&*known)), "a secret in the log");
}

/// The server of one of the clients, or the newest.
fn speaker(scene: &Scene, clients: [Peer; 2], servers: &[Peer]) -> Option<Peer> {
    let of = |client: Peer| match client {
        Peer::Client(id) => scene.core.server_of(id).map(Peer::Server),
        Peer::Server(_) => None,
    };
    clients.into_iter().find_map(of).or(servers.last().copied())
}

fn rules(scene: &mut Scene, which: u8) {
    let text = RULES[usize::from(which) % RULES.len()].as_bytes();
    let (maps, mut none) = (IdentMaps::default(), |_: &str| Err(ErrorKind::NotFound.into()));
    scene.core.set_rules(hba::parse("hba", text, &maps, &mut none, &mut Journal::default()));
}

fn happen(scene: &mut Scene, what: u8, clients: [Peer; 2]) {
    match what & 7 {
        0 | 1 => scene.end_job(usize::from(what >> 3)),
        2 => scene.pass(u64::from(what >> 3)),
        3 => scene.list_users(what & 8 != 0),
        4 => rules(scene, what >> 3),
        5 => scene.hang_up(clients[usize::from(what >> 3) & 1]),
        _ => scene.pass(1),
    }
}
