//! Connections that go from one relay to the next, and sockets that go from one `Net` to another.

use super::super::relay::tests::{mixed, stream as script, Dice};
use super::super::script::{packet, Script, World};
use super::super::tests::{process, read_all, Process};
use super::*;
use crate::core::{ClientId, Packet, ServerId, Sink, Verdict};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream as StdTcpStream};
use std::os::unix::net::UnixListener;

const NUMBERS: [u64; 2] = [77, 1 << 40];

type Rule = fn(Peer, &Packet<'_>, &mut Sink) -> Verdict;

/// The same wires in another process, where everybody has another place.
fn succeed(
    old: World,
    rule: impl FnMut(Peer, &Packet<'_>, &mut Sink) -> Verdict + 'static,
) -> World {
    let before = [old.client, old.server];
    let number = |peer| if peer == before[0] { NUMBERS[0] } else { NUMBERS[1] };
    let told = before.map(|peer| {
        let mut fields = Fields::default();
        hand_out(peer, old.relay.conn(peer).unwrap(), false, &number, &mut fields);
        fields.into_bytes()
    });
    let mut new = World::new(16, rule);
    let index = old.client_id.index() + 5;
    let (client, server) = (ClientId::from_parts(index, 9), ServerId::from_parts(index + 1, 4));
    new.relay = old.relay.successor();
    (new.client_id, new.client, new.server) = (client, Peer::Client(client), Peer::Server(server));
    let Script { startup, max, suspends, both_ways, .. } = old.core;
    new.core = Script {
        links: vec![(client, server)],
        startup,
        max,
        suspends,
        both_ways,
        log: old.core.log,
        ..new.core
    };
    (new.client_wire, new.server_wire) = (old.client_wire, old.server_wire);
    let after = [new.client, new.server];
    let peers = |number| NUMBERS.iter().position(|n| *n == number).map(|at| after[at]);
    for (peer, wire) in after.into_iter().zip(&told) {
        new.wire(peer).0.borrow_mut().wanted = false;
        let stream = new.wire(peer).clone();
        let fill = |conn: &mut Conn<_>, spare: &mut Spare| take_in(conn, wire, &peers, spare);
        new.relay.put_in(peer, stream, fill).unwrap();
    }
    wake(&mut new);
    new
}

/// The events that come because somebody watches now.
fn wake(new: &mut World) {
    while new.relay.pump_ready(&mut new.core) {}
    for peer in [new.client, new.server] {
        new.room(peer, 0);
        let (has_more, closed) = {
            let far = new.wire(peer).0.borrow();
            (!far.sent.is_empty() || far.closed, far.closed)
        };
        if has_more {
            new.relay.mark_readable(peer, closed);
            new.relay.pump(peer, &mut new.core);
        }
    }
    while new.relay.pump_ready(&mut new.core) {}
}

fn rule(from: Peer, packet: &Packet<'_>, sink: &mut Sink) -> Verdict {
    match from {
        Peer::Client(_) => mixed(from, packet, sink, |sink| sink.to_server.extend(b"<!>")),
        Peer::Server(_) => mixed(from, packet, sink, |sink| sink.to_client.extend(b"<!>")),
    }
}

#[test]
fn stream_may_be_cut_at_every_byte() {
    let (mut sent, mut want) = (Vec::new(), Vec::new());
    for (tag, len) in
        [(b'a', 3), (b'd', 9), (b'r', 7), (b'w', 30), (b'n', 0), (b'n', 8), (b'a', 90)]
    {
        let one = packet(tag, &vec![tag; len]);
        match tag {
            b'd' => {}
            b'r' => want.extend([b"<!>", &one[6..]].concat()),
            _ => want.extend_from_slice(&one),
        }
        sent.extend(one);
    }
    for scratch in [16, 1024] {
        for cut in 0..=sent.len() {
            for from_client in [false, true] {
                let sides = |world: &World| match from_client {
                    true => (world.client, world.server),
                    false => (world.server, world.client),
                };
                let mut old = World::new(scratch, rule as Rule);
                let (from, to) = sides(&old);
                old.send(from, &sent[..cut]);
                let mut got = old.got(to);
                let mut new = succeed(old, rule as Rule);
                let (from, to) = sides(&new);
                new.send(from, &sent[cut..]);
                while new.relay.pump_ready(&mut new.core) {}
                got.extend(new.got(to));
                assert_eq!(got, want, "cut at {cut}");
                assert!(new.relay.is_idle(from) && !new.relay.owns_memory(from));
            }
        }
    }
}

#[test]
fn every_byte_arrives_whoever_carries_it() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let scratch = [16, 50, 300, 5000][dice.below(4)];
        let moody = |seed: u64| {
            let mut moods = Dice(seed ^ 0xabcd);
            move |from: Peer, packet: &Packet<'_>, sink: &mut Sink| match from {
                Peer::Client(_) if moods.below(6) == 0 => Verdict::Wait,
                _ => rule(from, packet, sink),
            }
        };
        let mut world = World::new(scratch, moody(seed));
        world.core.both_ways = seed % 2 == 0;
        let streams = [script(&mut dice), script(&mut dice)];
        let (mut at, mut got) = ([0, 0], [Vec::new(), Vec::new()]);
        for peer in [world.client, world.server] {
            world.wire(peer).0.borrow_mut().room = 0;
        }
        let mut handed_over = 0;
        for turn in 0..100_000 {
            let side = dice.below(2);
            let peer = [world.client, world.server][side];
            match dice.below(20) {
                0..5 => {
                    let rest = &streams[side].0[at[side]..];
                    let count = dice.below(rest.len().min(200) + 1);
                    at[side] += count;
                    world.send(peer, &rest[..count]);
                }
                5..10 => world.room(peer, dice.below(400)),
                10..15 => world.relay.resume(world.client_id, &mut world.core),
                15..19 => {
                    world.relay.pump_ready(&mut world.core);
                }
                _ => {
                    world = succeed(world, moody(seed + turn));
                    handed_over += 1;
                }
            }
            let peer = [world.client, world.server][side];
            got[side].extend(world.got(peer));
            if got[0] == streams[1].1 && got[1] == streams[0].1 {
                break;
            }
        }
        assert!(got[0] == streams[1].1 && got[1] == streams[0].1, "seed {seed}");
        assert!(handed_over > 0 || streams.iter().all(|(sent, _)| sent.len() < 500));
    }
}

#[test]
fn who_was_held_up_goes_on_when_there_is_room() {
    let mut old = World::new(1024, |_, _, _| Verdict::Pass);
    old.client_wire.0.borrow_mut().room = 2;
    old.server_wire.0.borrow_mut().sent.extend(packet(b'Z', b"I"));
    old.close(old.server);
    assert!(old.log().is_empty());
    let mut new = succeed(old, |_, _, _| Verdict::Pass);
    assert!(new.log().is_empty(), "its end is not heard before its answer has arrived");
    new.room(new.client, 100);
    assert_eq!(new.got(new.client), packet(b'Z', b"I"));
    while new.relay.pump_ready(&mut new.core) {}
    assert_eq!(new.log().len(), 2);
}

#[test]
fn bytes_for_who_is_gone_go_to_nobody() {
    let mut old = World::new(1024, |_, _, _| Verdict::Pass);
    let row = packet(b'D', b"secret of the first client");
    old.send(old.server, &row[..10]);
    let mut fields = Fields::default();
    hand_out(old.server, old.relay.conn(old.server).unwrap(), false, &|_| 5, &mut fields);
    let mut new = World::new(1024, |_, _, _| Verdict::Pass);
    let (server, wire, told) = (new.server, new.server_wire.clone(), fields.into_bytes());
    let fill = |conn: &mut Conn<_>, spare: &mut Spare| take_in(conn, &told, &|_| None, spare);
    new.relay.put_in(server, wire, fill).unwrap();
    new.send(server, &[&row[10..], &packet(b'Z', b"I")].concat());
    assert_eq!(new.got(new.client), packet(b'Z', b"I"));
}

#[test]
fn stopped_and_cut_connections_stay_so() {
    let mut old = World::new(1024, |_, packet, _| match packet.tag {
        b'X' => Verdict::Stop,
        _ => Verdict::Pass,
    });
    old.send(old.client, &packet(b'd', &[1; 50])[..20]);
    old.got(old.server);
    let mut new = succeed(old, |_, _, _| Verdict::Stop);
    let (client, server) = (new.client, new.server);
    new.relay.send(server, b"into the middle", &mut new.core);
    assert_eq!(new.got(server), b"");
    new.send(client, &packet(b'd', &[1; 50])[20..]);
    new.relay.send(server, b"between", &mut new.core);
    assert!(new.got(server).ends_with(b"between"));
    new.send(client, &packet(b'X', b""));
    let mut last = succeed(new, |_, _, _| panic!("it is not heard any more"));
    last.send(last.client, &packet(b'X', b""));
}

#[test]
fn nothing_that_is_told_does_harm() {
    for seed in 0..3_000 {
        let mut dice = Dice(seed);
        let mut told = Fields::default();
        for _ in 0..dice.below(8) {
            let tag = dice.below(18) as u16;
            let body = packet(b"adrwn"[dice.below(5)], &vec![b'x'; dice.below(40)]);
            let cut = dice.below(body.len());
            match dice.below(3) {
                0 => told.put(tag, &body[cut..]),
                1 => told.number(tag, dice.below(usize::MAX) as u64 >> dice.below(40)),
                _ => told.number(tag, NUMBERS[dice.below(2)]),
            }
        }
        let mut told = told.into_bytes();
        for _ in 0..dice.below(3).min(told.len()) {
            let at = dice.below(told.len());
            told[at] = dice.below(256) as u8;
        }
        let mut world = World::new(64, rule as Rule);
        let after = [world.client, world.server];
        let peers = |number| NUMBERS.iter().position(|n| *n == number).map(|at| after[at]);
        for peer in after {
            let wire = world.wire(peer).clone();
            let fill = |conn: &mut Conn<_>, spare: &mut Spare| take_in(conn, &told, &peers, spare);
            world.relay.put_in(peer, wire, fill).unwrap();
        }
        wake(&mut world);
        for _ in 0..5 {
            for peer in [world.client, world.server] {
                world.send(peer, &packet(b'a', &vec![7; dice.below(100)]));
                world.relay.resume(world.client_id, &mut world.core);
            }
        }
    }
}

/// Everything that one process has goes to another one.
fn hand_over(old: &Process, new: &mut Process) {
    let before = [Peer::Client(old.client), Peer::Server(old.server)];
    let after = [Peer::Client(new.client), Peer::Server(new.server)];
    let number = |peer| if peer == before[0] { NUMBERS[0] } else { NUMBERS[1] };
    let peers = |number| NUMBERS.iter().position(|n| *n == number).map(|at| after[at]);
    for (old_peer, peer) in before.into_iter().zip(after) {
        let wire = old.net.hand_out(old_peer, &number);
        match old.net.part(old_peer).unwrap() {
            Some(Part::Socket(socket)) => {
                let socket = socket.try_clone_to_owned().unwrap();
                new.net.take_in(peer, socket, &wire, &peers, &mut new.core);
            }
            Some(Part::Pair { .. }) => panic!("nothing is encrypted here"),
            None => assert!(wire.is_empty()),
        }
    }
}

#[test]
fn sockets_go_on_in_another_process() {
    const LEN: usize = 30_000_000;
    let mut old = process();
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    old.connect("127.0.0.1", far.local_addr().unwrap().port());
    old.until_logged("connected S7 Inet(");
    let (mut server, _) = far.accept().unwrap();
    old.listen("127.0.0.1", "");
    let at = old.net.listeners().tcp_addresses()[0];
    let mut client = StdTcpStream::connect(at).unwrap();
    old.until(|old| old.net.relay().counts() == (1, 1));

    let reply = packet(b'D', &(0..LEN).map(|n| (n * 7 / 5) as u8).collect::<Vec<_>>());
    let sent = reply.clone();
    let (tell, told) = std::sync::mpsc::channel();
    let sender = std::thread::spawn(move || {
        server.write_all(&sent).unwrap();
        tell.send(()).unwrap();
        server
    });
    client.write_all(&packet(b'Q', b"abc")[..6]).unwrap();
    let peer = Peer::Client(old.client);
    old.until(|old| old.net.relay().pending_on(peer).unsent > 0);
    let mut new = process();
    (new.client, new.server) = (ClientId::from_parts(1, 2), ServerId::from_parts(2, 3));
    new.core.links = vec![(new.client, new.server)];
    let first = hand_over_listeners(&old, &mut new);
    hand_over(&old, &mut new);
    drop(old);
    let reader = std::thread::spawn(move || {
        let got = read_all(&client, LEN + 5);
        client.write_all(&packet(b'Q', b"abc")[6..]).unwrap();
        (client, got)
    });
    new.until(|_| told.try_recv().is_ok() || reader.is_finished());
    new.until(|_| reader.is_finished());
    let (client, got) = reader.join().unwrap();
    assert!(got == reply);
    let mut server = sender.join().unwrap();
    server.set_nonblocking(true).unwrap();
    let mut got = Vec::new();
    new.until(|_| {
        let mut room = [0; 100];
        let count = server.read(&mut room).unwrap_or(0);
        got.extend_from_slice(&room[..count]);
        got.len() == 8
    });
    assert_eq!(got, packet(b'Q', b"abc"));
    drop(client);
    new.until_logged("lost C1 Receive");
    assert_eq!(new.net.listeners().tcp_addresses(), [first]);
}

/// All of them; where the first TCP one listens.
fn hand_over_listeners(old: &Process, new: &mut Process) -> std::net::SocketAddr {
    let sockets: Vec<_> = (old.net.listening())
        .map(|(number, _, socket)| {
            (socket.try_clone_to_owned().unwrap(), old.net.hand_out_listener(number))
        })
        .collect();
    new.net.take_in_listeners(sockets).unwrap();
    new.net.listeners().tcp_addresses().first().copied().unwrap_or(([0, 0, 0, 0], 0).into())
}

#[test]
fn socket_file_is_removed_by_who_listens_last() {
    let dir = std::env::temp_dir().join(format!("turnstile-{}-carry", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join(".s.PGSQL.0");
    let mut old = process();
    old.listen("", dir.to_str().unwrap());
    for _ in 0..3 {
        let mut new = process();
        hand_over_listeners(&old, &mut new);
        old = new;
    }
    assert!(file.exists());
    old.net.listeners().remove_socket_file();
    assert!(!file.exists());

    // One that somebody else has opened stays his.
    let passed = UnixListener::bind(&file).unwrap();
    old.listen_at(passed.into());
    let mut new = process();
    hand_over_listeners(&old, &mut new);
    new.net.listeners().remove_socket_file();
    assert!(file.exists());
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn sockets_that_nobody_else_has_are_drained_by_who_has_been_handed_them() {
    let mut old = process();
    old.listen("127.0.0.1", "");
    for is_shared in [false, false, true, true] {
        if is_shared {
            old.net.listeners().share();
        }
        let mut new = process();
        hand_over_listeners(&old, &mut new);
        assert_eq!(new.net.listeners().is_sole(), !is_shared);
        old = new;
    }
    // A service manager has them, too.
    let passed = TcpListener::bind("127.0.0.1:0").unwrap();
    old.listen_at(passed.into());
    let mut new = process();
    hand_over_listeners(&old, &mut new);
    assert!(!new.net.listeners().is_sole());
}

#[test]
fn what_is_no_socket_is_a_lost_connection() {
    let mut new = process();
    let client = Peer::Client(new.client);
    let file = std::fs::File::open("/dev/null").unwrap();
    new.net.take_in(client, file.into(), b"", &|_| None, &mut new.core);
    assert_eq!(new.core.log, ["lost C5 Receive"]);
    assert_eq!(new.net.relay().counts(), (0, 0));
}
