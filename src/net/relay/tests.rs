//! What the relay does, byte by byte.

use crate::base::Objects;
use crate::core::{Peer, ServerId, Sink, Verdict};
use crate::net::conn::Pending;
use crate::net::script::{packet, TestWire, World};

fn pass_all(scratch: usize) -> World {
    World::new(scratch, |_, _, _| Verdict::Pass)
}

#[test]
fn simple_query_costs_four_calls_and_no_memory() {
    let mut world = pass_all(1024);
    let reply =
        [packet(b'T', b"x"), packet(b'D', b"1"), packet(b'C', b"SELECT 1\0"), packet(b'Z', b"I")]
            .concat();
    for _ in 0..3 {
        world.send(world.client, &packet(b'Q', b"select 1\0"));
        world.send(world.server, &reply);
        assert_eq!(world.got(world.server), packet(b'Q', b"select 1\0"));
        assert_eq!(world.got(world.client), reply);
        assert_eq!(world.log(), ["drained S7"]);
    }
    for peer in [world.client, world.server] {
        let far = world.wire(peer).0.borrow();
        assert_eq!((far.recvs, far.sends, far.polls), (3, 3, 0));
        assert!(world.relay.is_idle(peer) && !world.relay.owns_memory(peer));
    }
}

#[test]
fn what_is_pending_is_told_and_its_memory_counted() {
    let mut world = World::new(64, |_, packet, _| match packet.tag {
        b'w' => Verdict::Wait,
        _ => Verdict::Pass,
    });
    let pending = |held, missing, unsent| Pending { held, missing, unsent };
    let both =
        |world: &World| [world.client, world.server].map(|peer| world.relay.pending_on(peer));
    let none = Objects { size: 64, used: 0, free: 1 };
    assert_eq!((both(&world), world.relay.buffers()), ([pending(0, 0, 0); 2], none));
    let bytes = packet(b'Q', b"0123456789");
    world.send(world.client, &bytes[..3]);
    assert_eq!(both(&world), [pending(3, 0, 0), pending(0, 0, 0)]);
    assert_eq!((world.relay.buffers().used, world.relay.buffers().free), (1, 1));
    world.send(world.client, &bytes[3..9]);
    assert_eq!(both(&world), [pending(0, 6, 0), pending(0, 0, 0)]);
    assert_eq!((world.relay.buffers().used, world.relay.buffers().free), (0, 2));
    world.server_wire.0.borrow_mut().room = 2;
    world.send(world.client, &bytes[9..]);
    assert_eq!(both(&world), [pending(0, 0, 0), pending(0, 0, 4)]);
    world.room(world.server, 100);
    world.send(world.client, &packet(b'w', b"x"));
    assert_eq!(both(&world), [pending(6, 0, 0), pending(0, 0, 0)]);
    let buffers = world.relay.buffers();
    assert!(buffers.bytes() >= 64 + 6 && buffers.used == 1, "{buffers:?}");
    assert_eq!(world.relay.pending_on(Peer::Server(ServerId::from_parts(0, 1))), pending(0, 0, 0));
}

#[test]
fn suspended_connections_rest_between_two_packets() {
    let (first, second) = (packet(b'Q', b"first"), packet(b'Q', b"second"));
    let bytes = [first.as_slice(), &second].concat();
    for cut in 1..first.len() {
        let mut world = pass_all(64);
        world.core.suspends = true;
        world.send(world.client, &bytes[..cut]);
        world.relay.suspend(true);
        world.send(world.client, &bytes[cut..]);
        assert_eq!(world.got(world.server), first, "cut at {cut}");
        assert!(world.relay.is_idle(world.client), "cut at {cut}");
        world.relay.suspend(false);
        while world.relay.pump_ready(&mut world.core) {}
        assert_eq!(world.got(world.server), second, "cut at {cut}");
    }
}

#[test]
fn packets_cut_anywhere_arrive_whole() {
    let bytes = [packet(b'Q', b"a"), packet(b'P', b""), packet(b'B', b"12345678901234567890")];
    let bytes = bytes.concat();
    for cut in 1..bytes.len() {
        let mut world = pass_all(16);
        world.send(world.client, &bytes[..cut]);
        world.send(world.client, &bytes[cut..]);
        assert_eq!(world.got(world.server), bytes, "cut at {cut}");
        assert!(!world.relay.owns_memory(world.client));
    }
}

#[test]
fn verdicts_shape_the_stream() {
    let rule = |_: Peer, packet: &crate::core::Packet<'_>, sink: &mut Sink| match packet.tag {
        b'd' => Verdict::Drop,
        b'r' => {
            sink.to_server.extend_from_slice(b"<new>");
            Verdict::Replace { skip: 7 }
        }
        b's' => {
            sink.to_client.extend_from_slice(b"<back>");
            sink.to_server.extend_from_slice(b"<across>");
            Verdict::Pass
        }
        b'w' if !packet.is_whole() => Verdict::Whole,
        b'n' if packet.seen.len() < 3 => Verdict::Need(3),
        _ => Verdict::Pass,
    };
    let mut sent = Vec::new();
    let mut want = Vec::new();
    for tag in [b'a', b'd', b's', b'r', b'w', b'n', b'r', b'd', b's'] {
        let one = packet(tag, b"body of it");
        sent.extend_from_slice(&one);
        match tag {
            b'd' => {}
            b'r' => want.extend([b"<new>", &one[7..]].concat()),
            b's' => want.extend([b"<across>", &one[..]].concat()),
            _ => want.extend_from_slice(&one),
        }
    }
    for step in [1, 2, 3, 7, 16, 1000] {
        for scratch in [16, 64, 4096] {
            let mut world = World::new(scratch, rule);
            for part in sent.chunks(step) {
                world.send(world.client, part);
            }
            while world.relay.pump_ready(&mut world.core) {}
            assert_eq!(world.got(world.server), want, "step {step} scratch {scratch}");
            assert_eq!(world.got(world.client), b"<back><back>");
            assert!(!world.relay.owns_memory(world.client));
        }
    }
}

#[test]
fn pipelined_rewrites_leave_in_one_send() {
    let mut world = World::new(4096, |_, packet, sink| match packet.tag {
        b'B' => {
            sink.to_server.extend_from_slice(b"BIND");
            Verdict::Replace { skip: 5 }
        }
        _ => Verdict::Pass,
    });
    let batch = [packet(b'B', b"1"), packet(b'E', b""), packet(b'B', b"2"), packet(b'S', b"")];
    world.send(world.client, &batch.concat());
    let want = [b"BIND1", &batch[1][..], b"BIND2", &batch[3][..]].concat();
    assert_eq!(world.got(world.server), want);
    assert_eq!(world.server_wire.0.borrow().sends, 1);
}

#[test]
fn behind_tells_about_the_next_packet_only() {
    let mut seen = Vec::new();
    let mut world = World::new(64, move |_, packet, sink| {
        seen.push(packet.behind);
        sink.to_client.push(if packet.behind { b'y' } else { b'n' });
        Verdict::Drop
    });
    world.send(world.client, &[packet(b'Q', b"1"), packet(b'Q', b"2")].concat());
    world.send(world.client, &packet(b'Q', b"3")[..6]);
    assert_eq!(world.got(world.client), b"ynn");
}

#[test]
fn huge_row_streams_through_little_memory() {
    const ROW: usize = 100 << 20;
    let mut world = pass_all(32 * 1024);
    world.relay.set_limits(super::Limits { rounds: 5, unsent: 4096 });
    let mut left = ROW;
    world.client_wire.0.borrow_mut().room = 0;
    let mut header = vec![b'D'];
    header.extend_from_slice(&(ROW as u32 + 4).to_be_bytes());
    world.send(world.server, &header);
    let mut received = 0;
    while received < ROW + 5 {
        let waiting = world.server_wire.0.borrow().sent.len();
        if waiting < 200_000 && left > 0 {
            let part = left.min(100_000);
            left -= part;
            world.send(world.server, &vec![b'x'; part]);
        }
        world.room(world.client, 50_000);
        while world.relay.pump_ready(&mut world.core) {}
        received += world.got(world.client).len();
        let kept = world.relay.conns.get(world.client).map_or(0, |conn| conn.unsent.len());
        assert!(kept <= 32 * 1024, "{kept}");
    }
    assert_eq!(received, ROW + 5);
    assert_eq!(world.log(), ["drained S7"]);
    assert!(world.relay.is_idle(world.server) && !world.relay.owns_memory(world.client));
}

#[test]
fn whole_packets_of_any_size_are_collected() {
    let mut world = World::new(1024, |_, packet, _| match packet.is_whole() {
        true => Verdict::Pass,
        false => Verdict::Whole,
    });
    let large = packet(b'P', &vec![b'p'; 1 << 20]);
    for part in large.chunks(700) {
        assert_eq!(world.got(world.server), b"");
        world.send(world.client, part);
    }
    assert_eq!(world.got(world.server), large);
    assert!(!world.relay.owns_memory(world.client));
}

#[test]
fn turns_are_limited() {
    let mut world = pass_all(100);
    let query = packet(b'Q', &[0; 95]);
    world.send(world.client, &query.repeat(12));
    assert_eq!(world.client_wire.0.borrow().recvs, 5);
    assert!(world.relay.pending());
    assert!(world.relay.pump_ready(&mut world.core));
    assert!(world.relay.pump_ready(&mut world.core));
    assert!(!world.relay.pending());
    assert_eq!(world.got(world.server), query.repeat(12));
    world.relay.limits.rounds = 0;
    world.send(world.client, &query.repeat(50));
    assert_eq!(world.got(world.server).len(), 5000);
}

/// The rule: the client waits as long as it has no link.
fn waiting(scratch: usize) -> World {
    let mut waits = 1;
    let mut world = World::new(scratch, move |_, _, _| {
        waits -= 1;
        match waits {
            0 => Verdict::Wait,
            _ => Verdict::Pass,
        }
    });
    world.send(world.client, &[packet(b'Q', b"one"), packet(b'Q', b"two")].concat());
    world
}

#[test]
fn waiting_client_is_not_read_until_it_is_resumed() {
    let mut world = waiting(1024);
    let calls = world.client_wire.0.borrow().recvs;
    world.send(world.client, &packet(b'Q', b"three"));
    assert_eq!(world.client_wire.0.borrow().recvs, calls);
    assert_eq!(world.got(world.server), b"");
    world.relay.resume(world.client_id, &mut world.core);
    let want = [packet(b'Q', b"one"), packet(b'Q', b"two"), packet(b'Q', b"three")].concat();
    assert_eq!(world.got(world.server), want);
    assert!(!world.relay.owns_memory(world.client));
}

#[test]
fn waiting_client_that_left_asks_for_nothing() {
    let mut world = waiting(1024);
    world.close(world.client);
    assert!(world.log().is_empty());
    world.relay.resume(world.client_id, &mut world.core);
    assert_eq!(world.log(), ["lost C3 Receive"]);
    assert_eq!(world.got(world.server), b"");
}

#[test]
fn resumed_client_is_not_held_up_by_an_old_end_of_a_packet() {
    let mut world = waiting(1024);
    world.server_wire.0.borrow_mut().room = 0;
    world.relay.send(world.server, b"set", &mut world.core);
    world.relay.resume(world.client_id, &mut world.core);
    assert_eq!(world.got(world.server), b"");
    world.room(world.server, 1000);
    let want = [&b"set"[..], &packet(b'Q', b"one"), &packet(b'Q', b"two")].concat();
    assert_eq!(world.got(world.server), want);
}

#[test]
fn data_comes_before_the_end_that_came_with_it() {
    let mut world = pass_all(1024);
    let reply = packet(b'Z', b"I");
    world.server_wire.0.borrow_mut().sent.extend(&reply);
    world.close(world.server);
    assert_eq!(world.got(world.client), reply);
    assert_eq!(world.log(), ["drained S7", "lost S7 Receive"]);
    world.close(world.server);
    assert!(world.log().is_empty(), "told once");
}

#[test]
fn server_that_hangs_up_is_heard_out_before_it_is_free() {
    let mut world = pass_all(64);
    let answer = [packet(b'C', &[b'x'; 53]), packet(b'Z', b"I"), packet(b'E', b"last")].concat();
    world.send(world.client, &packet(b'Q', b"select 1"));
    world.wire(world.server).0.borrow_mut().sent.extend(&answer);
    world.close(world.server);
    assert_eq!(world.got(world.client), answer);
    assert_eq!(world.log(), ["drained S7", "lost S7 Receive"], "nobody else hears the last words");
}

#[test]
fn slow_client_delays_the_end_of_its_server() {
    let mut world = pass_all(1024);
    world.client_wire.0.borrow_mut().room = 2;
    world.server_wire.0.borrow_mut().sent.extend(packet(b'Z', b"I"));
    world.close(world.server);
    assert!(world.log().is_empty());
    world.room(world.client, 100);
    assert_eq!(world.got(world.client), packet(b'Z', b"I"));
    assert_eq!(world.log(), ["drained S7", "lost S7 Receive"]);
    assert_eq!(world.client_wire.0.borrow().polls, 2);
}

#[test]
fn failed_send_is_told_once() {
    let mut world = pass_all(1024);
    world.server_wire.0.borrow_mut().broken = true;
    world.send(world.client, &packet(b'Q', b"1"));
    world.send(world.client, &packet(b'Q', b"2"));
    assert_eq!(world.log(), ["lost S7 Send"]);
    world.close(world.server);
    world.relay.send(world.server, b"X", &mut world.core);
    assert!(world.log().is_empty());
}

#[test]
fn rest_of_a_packet_never_goes_to_somebody_else() {
    let mut world = pass_all(1024);
    let row = packet(b'D', b"secret of the first client");
    world.send(world.server, &row[..10]);
    assert_eq!(world.got(world.client), row[..10]);
    let other = crate::core::ClientId::from_parts(9, 9);
    let wire = TestWire::new();
    world.relay.insert_client(other, wire.clone());
    let server = world.core.links[0].1;
    world.core.links = vec![(other, server)];
    world.send(world.server, &[&row[10..], &packet(b'Z', b"I")].concat());
    assert_eq!(wire.0.borrow().got, packet(b'Z', b"I"));
    assert_eq!(world.got(world.client), b"");
}

#[test]
fn bad_bytes_and_stop_end_reading() {
    let mut world = World::new(1024, |_, packet, _| match packet.tag {
        b'X' => Verdict::Stop,
        _ => Verdict::Pass,
    });
    let good = packet(b'Q', b"1");
    world.send(world.client, &[&good[..], b"Q\0\0\0\x01more"].concat());
    assert_eq!(world.got(world.server), good);
    assert_eq!(world.log(), ["bad C3 [81, 0, 0, 0, 1, 109, 111, 114]"]);
    world.send(world.client, &good);
    world.close(world.client);
    assert!(world.log().is_empty());
    let mut world = World::new(1024, |_, packet, _| match packet.tag {
        b'X' => Verdict::Stop,
        _ => Verdict::Pass,
    });
    world.send(world.client, &[packet(b'X', b""), good].concat());
    assert_eq!(world.got(world.server), b"");
    assert!(!world.relay.owns_memory(world.client));
}

#[test]
fn decision_that_asks_for_what_it_has_loses_the_connection() {
    let mut world = World::new(1024, |_, _, _| Verdict::Whole);
    world.send(world.client, &packet(b'Q', b"1"));
    assert_eq!(world.log(), ["lost C3 Receive"]);
}

#[test]
fn last_words_are_not_destroyed_by_unread_bytes() {
    let mut world = waiting(1024);
    world.send(world.client, b"unread");
    world.relay.send(world.client, b"error", &mut world.core);
    assert!(world.relay.close(world.client).is_some());
    assert!(world.relay.close(world.client).is_none());
    let far = world.client_wire.0.borrow();
    assert!(far.sent.is_empty());
    assert_eq!(far.got, b"error");
}

#[test]
fn refusal_from_a_decision_is_not_destroyed_by_unread_bytes() {
    let mut world = World::new(16, |_, _, sink| {
        sink.to_client.extend_from_slice(b"no");
        Verdict::Stop
    });
    world.send(world.client, &packet(b'Q', &[0; 20]));
    assert!(!world.client_wire.0.borrow().sent.is_empty());
    world.relay.close(world.client);
    let far = world.client_wire.0.borrow();
    assert!(far.sent.is_empty());
    assert_eq!(far.got, b"no");
}

#[test]
fn server_is_heard_after_its_slow_client_was_closed() {
    let mut world = pass_all(64);
    world.client_wire.0.borrow_mut().room = 0;
    world.send(world.server, &packet(b'D', b"1"));
    world.send(world.server, &packet(b'Z', b"I"));
    assert!(world.log().is_empty());
    world.relay.close(world.client);
    world.core.links.clear();
    assert!(world.relay.pump_ready(&mut world.core));
    assert_eq!(world.log(), ["drained S7"]);
}

#[test]
fn server_is_heard_after_another_took_its_place() {
    let mut world = pass_all(64);
    world.client_wire.0.borrow_mut().room = 0;
    world.send(world.server, &packet(b'D', b"1"));
    world.send(world.server, &packet(b'Z', b"I"));
    let (other, wire) = (ServerId::from_parts(8, 8), TestWire::new());
    world.relay.insert_server(other, wire.clone());
    world.core.links = vec![(world.client_id, other)];
    wire.0.borrow_mut().sent.extend(packet(b'Z', b"I"));
    world.relay.mark_readable(Peer::Server(other), false);
    world.relay.pump(Peer::Server(other), &mut world.core);
    assert_eq!(wire.0.borrow().recvs, 0);
    while world.relay.pump_ready(&mut world.core) {}
    assert_eq!(world.log(), ["drained S7"]);
    world.room(world.client, 100);
    assert_eq!(world.log(), ["drained S8"]);
}

#[test]
fn startup_packets_have_no_type() {
    let mut world = World::new(64, |_, packet, sink| {
        sink.to_client.push(packet.tag);
        match packet.tag {
            0 if !packet.is_whole() => Verdict::Whole,
            _ => Verdict::Drop,
        }
    });
    world.core.startup = true;
    world.send(world.client, b"\0\0\0\x09\0\x03");
    world.send(world.client, b"\0\0xp\0\0\0\x04");
    assert_eq!(world.got(world.client), b"\0\0p");
    assert!(world.relay.is_idle(world.client) && !world.relay.owns_memory(world.client));
}

pub(in crate::net) struct Dice(pub(in crate::net) u64);

impl Dice {
    pub(in crate::net) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

/// A rule by tag, and what should come out for it.
pub(in crate::net) fn mixed(
    _: Peer,
    packet: &crate::core::Packet<'_>,
    sink: &mut Sink,
    across: fn(&mut Sink),
) -> Verdict {
    match packet.tag {
        b'd' => Verdict::Drop,
        b'r' => {
            across(sink);
            Verdict::Replace { skip: 6 }
        }
        b'w' if !packet.is_whole() => Verdict::Whole,
        b'n' if packet.seen.len() < 2 && !packet.is_whole() => Verdict::Need(2),
        _ => Verdict::Pass,
    }
}

pub(in crate::net) fn stream(dice: &mut Dice) -> (Vec<u8>, Vec<u8>) {
    let (mut sent, mut want) = (Vec::new(), Vec::new());
    for _ in 0..dice.below(60) {
        let tag = b"adrwn"[dice.below(5)];
        let size = if dice.below(8) == 0 { 3000 } else { 40 };
        let body: Vec<u8> = (0..dice.below(size)).map(|n| n as u8).collect();
        let one = packet(tag, &body);
        match tag {
            b'd' => {}
            b'r' => want.extend([b"<!>", one.get(6..).unwrap_or_default()].concat()),
            _ => want.extend_from_slice(&one),
        }
        sent.extend(one);
    }
    (sent, want)
}

#[test]
fn who_reads_nothing_is_heard_if_it_speaks_both_ways() {
    for both_ways in [false, true] {
        let mut world = pass_all(1024);
        world.core.both_ways = both_ways;
        for (deaf, other) in [(world.client, world.server), (world.server, world.client)] {
            world.relay.limits.unsent = 100;
            world.wire(deaf).0.borrow_mut().room = 0;
            let flood = packet(b'd', &[7; 500]);
            world.send(other, &flood);
            world.send(other, &flood);
            let word = packet(b'd', b"still here");
            world.send(deaf, &word);
            assert_eq!(world.got(other), if both_ways { word } else { Vec::new() });
            assert!(world.relay.pending_on(deaf).unsent <= 1024, "memory is bounded");
            world.room(deaf, 10_000);
            world.got(deaf);
            world.got(other);
        }
    }
}

#[test]
fn every_byte_arrives_whatever_the_network_does() {
    for seed in 0..500 {
        let mut dice = Dice(seed);
        let scratch = [16, 50, 300, 5000][dice.below(4)];
        let mut moods = Dice(seed ^ 0xabcd);
        let mut world = World::new(scratch, move |from, packet, sink| match from {
            Peer::Client(_) if moods.below(6) == 0 => Verdict::Wait,
            Peer::Client(_) => mixed(from, packet, sink, |sink| sink.to_server.extend(b"<!>")),
            Peer::Server(_) => mixed(from, packet, sink, |sink| sink.to_client.extend(b"<!>")),
        });
        world.relay.limits.unsent = 20;
        world.core.both_ways = seed % 2 == 0;
        let peers = [world.client, world.server];
        let streams = [stream(&mut dice), stream(&mut dice)];
        let mut at = [0, 0];
        let mut got = [Vec::new(), Vec::new()];
        for peer in peers {
            world.wire(peer).0.borrow_mut().room = 0;
        }
        for turn in 0..100_000 {
            let side = dice.below(2);
            match dice.below(4) {
                0 => {
                    let rest = &streams[side].0[at[side]..];
                    let count = dice.below(rest.len().min(200) + 1);
                    at[side] += count;
                    if count > 0 {
                        world.send(peers[side], &rest[..count]);
                    }
                }
                1 => world.room(peers[side], dice.below(400)),
                2 => world.relay.resume(world.client_id, &mut world.core),
                _ => {
                    world.relay.pump_ready(&mut world.core);
                }
            }
            got[side].extend(world.got(peers[side]));
            let finished = got[0] == streams[1].1 && got[1] == streams[0].1;
            if finished && at[0] == streams[0].0.len() && at[1] == streams[1].0.len() {
                break;
            }
            assert!(turn < 99_999, "seed {seed} is stuck");
        }
        for peer in peers {
            world.room(peer, 10_000);
        }
        while world.relay.pump_ready(&mut world.core) {}
        while !world.relay.is_idle(world.client) {
            world.relay.resume(world.client_id, &mut world.core);
        }
        for peer in peers {
            assert!(world.relay.is_idle(peer), "seed {seed}");
            assert!(!world.relay.owns_memory(peer), "seed {seed}");
        }
        if !streams[1].0.is_empty() {
            assert_eq!(world.log().last().map(String::as_str), Some("drained S7"), "seed {seed}");
        }
    }
}

impl<W: crate::net::conn::Wire> super::Relay<W> {
    /// One like this without connections.
    pub(in crate::net) fn successor(&self) -> super::Relay<W> {
        super::Relay::with_scratch(self.limits, self.scratch.len())
    }
}
