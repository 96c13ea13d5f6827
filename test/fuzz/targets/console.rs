//! The admin database: its grammar, and packets of the extended protocol.

use super::scene::{assert_packets, Scene};
use super::Fields;
use pgturnstile::wire::write;

/// Somebody on the console, while another client waits for a server. The first byte chooses who,
/// and how: 1 bit for the user, 1 bit for lines of text instead of packets, the rest for the size of
/// the pieces.
pub(super) fn console(data: &[u8]) {
    let mut fields = Fields(data);
    let choice = fields.byte();
    let mut scene = Scene::new("auth_type = trust\npool_mode = transaction\n");
    let user = if choice & 1 == 0 { &b"boss"[..] } else { b"watcher" };
    let other = scene.client(false);
    scene.say(other, &startup(b"u", b"d"));
    let console = scene.client(true);
    scene.say(console, &startup(user, b"pgbouncer"));
    if choice & 2 != 0 {
        for line in fields.0.split(|byte| *byte == b'\n') {
            let mut packet = Vec::new();
            write::query(&mut packet, line);
            scene.say(console, &packet);
        }
    } else {
        let piece = if choice & 4 != 0 { 3 } else { 4096 };
        fields.0.chunks(piece).for_each(|bytes| scene.say(console, bytes));
    }
    if !scene.exit {
        scene.pass(2);
    }
    scene.hang_up(console);
    assert!(!scene.is_open(console), "a console that has gone away stays for ever");
    assert_packets(&scene.got(console), false);
    assert_packets(&scene.got(other), false);
}

fn startup(user: &[u8], database: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    write::startup(&mut packet, [(&b"user"[..], user), (b"database", database)].into_iter());
    packet
}
