//! Bytes of clients and servers, through the relay, into the core.

use super::scene::{assert_packets, Scene, PASSWORD};
use super::Fields;
use pgturnstile::base::Journal;
use pgturnstile::config::hba;
use pgturnstile::config::ident::IdentMaps;
use pgturnstile::core::{Decisions, Peer};
use pgturnstile::wire::write;
use std::io::ErrorKind;

/// What a server that lets everybody in says first.
pub(super) const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x11TimeZone\0GMT\0\
                         K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";
const ANSWER: &[u8] = b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";

/// A client that has not logged in: start-up packet, passwords, first queries. The first byte
/// chooses the method, where the client comes from, whether there is a server, and the size of the
/// pieces; the rest is what the client sends.
pub(super) fn startup(data: &[u8]) {
    let mut fields = Fields(data);
    let choice = fields.byte();
    let method = ["any", "trust", "plain", "md5", "scram-sha-256", "hba"];
    let method = method[usize::from(choice & 7) % method.len()];
    let mut scene = Scene::new(&format!(
        "auth_type = {method}\nclient_login_timeout = 5\nquery_wait_timeout = 5\n\
         pool_mode = transaction\nscram_iterations = 1\napplication_name_add_host = 1\n\
         login_notify_message = hello\nignore_startup_parameters = ssl_renegotiation, options\n"
    ));
    let rules = b"local all u trust\nhost d u 127.0.0.1/32 scram-sha-256\nhost all all all md5\n";
    let (maps, mut none) = (IdentMaps::default(), |_: &str| Err(ErrorKind::NotFound.into()));
    scene.core.set_rules(hba::parse("hba", rules, &maps, &mut none, &mut Journal::default()));
    let client = scene.client(choice & 8 != 0);
    let piece = if choice & 32 != 0 { 7 } else { 4096 };
    let mut answered = 0;
    for bytes in fields.0.chunks(piece) {
        scene.say(client, bytes);
        match choice & 16 {
            0 => serve(&mut scene, &mut answered),
            _ => scene.refuse_servers(),
        }
    }
    scene.pass(12);
    let mut said = scene.got(client);
    scene.hang_up(client);
    scene.pass(12);
    assert!(!scene.is_open(client), "a client that has gone away stays for ever");
    said.extend(scene.got(client).split_off(said.len()));
    assert_packets(&said, true);
    let told = data.windows(PASSWORD.len()).any(|window| window == PASSWORD);
    let known = String::from_utf8_lossy(PASSWORD);
    assert!(told || !scene.log.iter().any(|line| line.contains(&*known)), "a secret in the log");
}

/// Plays all servers: welcomes the pooler, answers what it asks.
fn serve(scene: &mut Scene, answered: &mut usize) {
    while let Some(server) = scene.connect() {
        scene.say(server, WELCOME);
    }
    let servers: Vec<_> = scene.core.servers().iter().map(|(id, _)| Peer::Server(id)).collect();
    for server in servers {
        let asked = scene.got(server).len();
        if asked > *answered {
            *answered = asked;
            scene.say(server, ANSWER);
        }
    }
}

/// A client and its server, both logged in. The first byte chooses the pool mode; then come pieces:
/// a byte with the sender in the top bit and the length in the others, then so many bytes. Length 0
/// lets a second pass.
pub(super) fn frame(data: &[u8]) {
    let mut fields = Fields(data);
    let choice = fields.byte();
    let mode = ["session", "transaction", "statement"][usize::from(choice % 3)];
    let mut scene = Scene::new(&format!(
        "auth_type = trust\npool_mode = {mode}\nquery_timeout = 4\nquery_wait_timeout = 4\n\
         server_reset_query = select 1\nmax_packet_size = 1000000\n"
    ));
    let client = scene.client(false);
    let mut startup = Vec::new();
    let parameters = [(&b"user"[..], &b"u"[..]), (b"database", b"d"), (b"timezone", b"UTC")];
    write::startup(&mut startup, parameters.into_iter());
    scene.say(client, &startup);
    let mut servers: Vec<_> = scene.connect().into_iter().collect();
    servers.iter().for_each(|server| scene.say(*server, WELCOME));
    while !fields.0.is_empty() {
        let head = fields.byte();
        let bytes = fields.take(usize::from(head & 127));
        match (head, linked(&scene, client)) {
            (0 | 128, _) => scene.pass(1),
            (..128, _) => scene.say(client, bytes),
            (_, Some(server)) => scene.say(server, bytes),
            (_, None) => {}
        }
        while let Some(server) = scene.connect() {
            scene.say(server, WELCOME);
            servers.push(server);
        }
    }
    scene.hang_up(client);
    scene.pass(10);
    assert!(!scene.is_open(client), "a client that has gone away stays for ever");
    assert_packets(&scene.got(client), false);
    for server in servers {
        let said = scene.got(server);
        // The start-up packet is the only one without a type.
        let len = said.first_chunk().map_or(0, |len| u32::from_be_bytes(*len));
        assert_packets(said.get(len as usize..).unwrap_or_default(), false);
    }
}

fn linked(scene: &Scene, client: Peer) -> Option<Peer> {
    match client {
        Peer::Client(id) => scene.core.server_of(id).map(Peer::Server),
        Peer::Server(_) => None,
    }
}
