//! Kept connections: a client with TLS on one side, a successor with a plain stream on the other, all
//! in one thread.

use super::super::relay::tests::Dice;
use super::super::tests::{process, Process};
use super::super::tls::tests::{pair, Folder};
use super::super::tls::Tls;
use super::*;
use crate::core::ClientId;
use crate::net::carry::Part;
use crate::net::script::packet;
use std::net::TcpStream;

/// One client, and who has taken over its connection.
struct Kept {
    client: Option<Session>,
    successor: Option<StdUnixStream>,
    /// What each of them has received, and whether that was the end.
    heard: [Vec<u8>; 2],
    ended: [bool; 2],
}

struct Scene {
    keeper: Keeper,
    kept: Vec<Kept>,
    waker: StdUnixStream,
    tls: Tls,
    _folder: Folder,
}

const CLIENT: usize = 0;
const SUCCESSOR: usize = 1;

impl Scene {
    fn new(name: &str) -> Scene {
        let folder = Folder::new(name);
        let tls = Tls::new(&folder.settings()).unwrap();
        let (mut own, waker) = UnixStream::pair().unwrap();
        let keeper = Keeper::new(&mut own).unwrap();
        // Its descriptor has to stay open.
        std::mem::forget(own);
        let waker = StdUnixStream::from(OwnedFd::from(waker));
        Scene { keeper, kept: vec![], waker, tls, _folder: folder }
    }

    /// With what happened in the process before: bytes that were refused.
    fn keep(&mut self, ours: Session, client: Session, unsent: &[u8]) {
        let (inside, successor) = StdUnixStream::pair().unwrap();
        inside.set_nonblocking(true).unwrap();
        successor.set_nonblocking(true).unwrap();
        let mut buf = Buf::default();
        buf.push(unsent, &mut Spare::default());
        self.keeper.add(Box::new(ours), inside.into(), buf, None);
        self.kept.push(Kept {
            client: Some(client),
            successor: Some(successor),
            heard: Default::default(),
            ended: [false; 2],
        });
    }

    fn keep_one(&mut self) {
        let (ours, client) = pair(&self.tls);
        self.keep(ours, client, b"");
    }

    fn turn(&mut self) -> bool {
        self.keeper.turn_within(Some(Duration::ZERO)).unwrap()
    }

    /// Turns, and everybody hears what there is, until `done`.
    fn until(&mut self, mut done: impl FnMut(&Scene) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < Duration::from_secs(20), "{} left", self.keeper.len());
            self.turn();
            for kept in &mut self.kept {
                kept.hear(CLIENT, 100_000);
                kept.hear(SUCCESSOR, 100_000);
            }
        }
    }
}

impl Kept {
    fn hear(&mut self, side: usize, most: usize) {
        let mut room = vec![0; most];
        let heard = match (side, &mut self.client, &mut self.successor) {
            (CLIENT, Some(client), _) => {
                client.set_readable(false);
                client.recv(&mut room)
            }
            (SUCCESSOR, _, Some(successor)) => successor.read(&mut room),
            _ => return,
        };
        match heard {
            Ok(0) => self.ended[side] = most > 0,
            Ok(count) => self.heard[side].extend_from_slice(&room[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{side}"),
        }
    }

    fn say(&mut self, side: usize, bytes: &[u8]) -> usize {
        let sent = match side {
            CLIENT => self.client.as_mut().unwrap().send(bytes),
            _ => self.successor.as_mut().unwrap().write(bytes),
        };
        match sent {
            Ok(count) => count,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                0
            }
        }
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed);
    (0..len).map(|_| dice.below(256) as u8).collect()
}

#[test]
fn every_byte_arrives_both_ways_whoever_is_slow() {
    const PAIRS: usize = 12;
    let mut scene = Scene::new("keeper-bytes");
    let mut dice = Dice(5);
    (0..PAIRS).for_each(|_| scene.keep_one());
    let len = |index: usize| 1_000 + index * 150_000;
    let scripts: Vec<[Vec<u8>; 2]> = (0..PAIRS)
        .map(|index| [0, 1].map(|side| bytes((index * 2 + side) as u64, len(index))))
        .collect();
    // What OpenSSL has refused has to be offered again.
    let mut at = [[0; 2]; PAIRS];
    let mut offered = [[0; 2]; PAIRS];
    let start = Instant::now();
    while scene.kept.iter().zip(&scripts).any(|(kept, script)| {
        kept.heard[SUCCESSOR] != script[CLIENT] || kept.heard[CLIENT] != script[SUCCESSOR]
    }) {
        assert!(start.elapsed() < Duration::from_secs(60));
        for (index, kept) in scene.kept.iter_mut().enumerate() {
            for side in [CLIENT, SUCCESSOR] {
                let script = &scripts[index][side];
                let (at, end) = (&mut at[index][side], &mut offered[index][side]);
                *end = script.len().min((*end).max(*at + dice.below(200_000)));
                *at += kept.say(side, &script[*at..*end]);
                // Every third one reads little.
                let most = if index % 3 == side { 5_000 } else { 300_000 };
                if dice.below(3) > 0 {
                    kept.hear(side, dice.below(most));
                }
            }
        }
        scene.turn();
    }
    for pair in scene.keeper.pairs.iter().map(|(_, pair)| pair) {
        assert!(!pair.near.unsent.owns_memory() && !pair.far.unsent.owns_memory());
        assert!(!pair.near.asks && !pair.far.asks);
    }
    assert_eq!(scene.keeper.len(), PAIRS);
}

#[test]
fn end_of_a_client_comes_behind_what_it_said() {
    let mut scene = Scene::new("keeper-end");
    scene.keep_one();
    let said = bytes(1, 2_000_000);
    let mut at = 0;
    while at < said.len() {
        at += scene.kept[0].say(CLIENT, &said[at..]);
        scene.turn();
        scene.kept[0].hear(SUCCESSOR, 30_000);
    }
    scene.kept[0].client = None;
    scene.until(|scene| scene.kept[0].ended[SUCCESSOR]);
    assert!(scene.kept[0].heard[SUCCESSOR] == said);
    assert!(scene.keeper.is_empty() && scene.keeper.journal().pop().is_none());
}

#[test]
fn last_words_of_a_successor_arrive_and_then_the_end() {
    let mut scene = Scene::new("keeper-words");
    scene.keep_one();
    let said = bytes(2, 1_000_000);
    let mut at = 0;
    while at < said.len() {
        at += scene.kept[0].say(SUCCESSOR, &said[at..]);
        scene.turn();
        scene.kept[0].hear(CLIENT, 30_000);
    }
    // What it has not read makes no difference.
    assert_eq!(scene.kept[0].say(CLIENT, b"unheard"), 7);
    scene.turn();
    assert_eq!(scene.kept[0].say(CLIENT, b"unheard, too"), 12);
    scene.kept[0].successor = None;
    scene.until(|scene| scene.kept[0].ended[CLIENT]);
    assert!(scene.kept[0].heard[CLIENT] == said);
    assert!(scene.keeper.is_empty());
}

#[test]
fn client_that_does_not_take_the_last_words_is_given_up() {
    let mut scene = Scene::new("keeper-late");
    scene.keep_one();
    let said = bytes(2, 300_000);
    while scene.keeper.pairs.iter().all(|(_, pair)| pair.far.unsent.is_empty()) {
        assert_eq!(scene.keeper.len(), 1, "{:?}", scene.keeper.journal().pop());
        scene.kept[0].say(SUCCESSOR, &said);
        scene.turn();
    }
    scene.kept[0].successor = None;
    for _ in 0..9 {
        scene.turn();
    }
    assert_eq!(scene.keeper.leaving.len(), 1);
    assert_eq!(scene.keeper.len(), 1);
    let soon = Instant::now() + SHORT_WORDS * 9;
    assert!(scene.keeper.leaving[0].0 > soon);
    scene.keeper.hurry();
    assert!(scene.keeper.leaving[0].0 < soon);
    for (at, _) in &mut scene.keeper.leaving {
        *at = Instant::now();
    }
    scene.turn();
    assert!(scene.keeper.is_empty() && scene.keeper.leaving.is_empty());
}

#[test]
fn who_can_do_nothing_sleeps() {
    let mut scene = Scene::new("keeper-sleeps");
    (0..5).for_each(|_| scene.keep_one());
    let said = [7; 100_000];
    // Says all that there is room for.
    let fill = |scene: &mut Scene, index: usize, side| {
        let mut refused = 0;
        while refused < 50 {
            let is_full = scene.kept[index].say(side, &said) == 0;
            refused = if is_full { refused + 1 } else { 0 };
            scene.turn();
            std::thread::sleep(Duration::from_millis(u64::from(is_full)));
        }
    };
    for (index, side) in [(1, CLIENT), (2, SUCCESSOR), (3, CLIENT), (3, SUCCESSOR), (4, SUCCESSOR)]
    {
        fill(&mut scene, index, side);
    }
    // Ends behind what the other side does not take, and one that comes upon an end.
    scene.kept[1].client = None;
    scene.kept[2].successor = None;
    assert_eq!(scene.kept[4].say(CLIENT, b"for nobody"), 10);
    scene.kept[4].successor = None;
    for _ in 0..50 {
        scene.turn();
    }
    assert!(scene.keeper.ready.is_empty());
    // The system may have found room for some of them.
    assert!(scene.keeper.pairs.contains(0) && scene.keeper.pairs.contains(3));
}

#[test]
fn client_that_vanishes_is_gone_for_its_successor() {
    let mut scene = Scene::new("keeper-gone");
    scene.keep_one();
    scene.keep_one();
    assert_eq!(scene.kept[1].say(CLIENT, b"half a quer"), 11);
    for kept in &mut scene.kept {
        let mut client = kept.client.take().unwrap();
        client.fall_silent();
    }
    scene.until(|scene| scene.kept.iter().all(|kept| kept.ended[SUCCESSOR]));
    assert_eq!(scene.kept[1].heard[SUCCESSOR], b"half a quer");
    assert!(scene.keeper.is_empty());

    // One that breaks the protocol.
    scene.kept.clear();
    scene.keep_one();
    let mut client = scene.kept[0].client.take().unwrap();
    client.stream_mut().write_all(b"no record of TLS at all").unwrap();
    scene.until(|scene| scene.kept[0].ended[SUCCESSOR] && scene.keeper.is_empty());
    let (_, text) = scene.keeper.journal().pop().unwrap();
    assert!(text.starts_with("tls_sbufio_recv: read failed: "), "{text}");
}

#[test]
fn nothing_of_what_was_begun_before_is_lost() {
    let mut scene = Scene::new("keeper-before");
    let (mut ours, mut client) = pair(&scene.tls);
    // Received and decrypted, or received only: no event tells of it.
    let said = bytes(3, 3_000);
    assert_eq!(client.send(&said[..1_000]).unwrap(), 1_000);
    assert_eq!(client.send(&said[1_000..]).unwrap(), 2_000);
    let mut first = [0; 10];
    while ours.recv(&mut first).is_err() {
        ours.set_readable(false);
    }
    // Sent in part.
    let answer = bytes(4, 3_000_000);
    let mut sent = 0;
    loop {
        match ours.send(&answer[sent..]) {
            Ok(count) => sent += count,
            Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    scene.keep(ours, client, &answer[sent..]);
    assert_eq!(scene.kept[0].say(SUCCESSOR, b"behind it"), 9);
    scene.until(|scene| {
        let [client, successor] = &scene.kept[0].heard;
        client.len() == answer.len() + 9 && successor.len() == said.len() - 10
    });
    let [client, successor] = &scene.kept[0].heard;
    assert!(first == said[..10] && *successor == said[10..]);
    assert!(client.starts_with(&answer) && client.ends_with(b"behind it"));
}

#[test]
fn callers_own_source_is_heard() {
    let mut scene = Scene::new("keeper-own");
    assert!(!scene.turn());
    scene.waker.write_all(b"x").unwrap();
    assert!(scene.keeper.turn().unwrap());
    assert!(scene.keeper.is_empty());
}

/// Who accepts clients with TLS.
fn encrypting(tls: Tls, client: ClientId) -> Process {
    let mut process = process();
    process.net.set_tls(tls);
    process.client = client;
    process.core.links.clear();
    process
}

/// Hands the one client over; what is left becomes its keeper.
fn hand_over(old: Process, new: &mut Process) -> (Keeper, UnixStream) {
    let Process { net, client, .. } = old;
    let wire = net.hand_out(Peer::Client(client), &|_| 1);
    let (peer, mut pairs) = (Peer::Client(new.client), vec![]);
    match net.part(Peer::Client(client)).unwrap().unwrap() {
        Part::Socket(socket) => {
            let socket = socket.try_clone_to_owned().unwrap();
            new.net.take_in(peer, socket, &wire, &|_| None, &mut new.core);
        }
        Part::Pair { theirs, ours } => {
            new.net.take_in(peer, theirs, &wire, &|_| None, &mut new.core);
            pairs.push((Peer::Client(client), ours));
        }
    }
    let (mut own, other) = UnixStream::pair().unwrap();
    net.watch(&mut own, 3).unwrap();
    let keeper = net.into_keeper(pairs, &mut own).unwrap();
    std::mem::forget(own);
    (keeper, other)
}

/// Goes on until a line is logged.
fn until_logged(new: &mut Process, keeper: &mut Keeper, start: &str) {
    new.until(|new| {
        keeper.turn_within(Some(Duration::ZERO)).unwrap();
        new.core.log.iter().any(|line| line.starts_with(start))
    });
}

#[test]
fn client_is_handed_over_at_every_stage_of_its_handshake() {
    let folder = Folder::new("keeper-stages");
    let settings = folder.settings();
    let tls = || Tls::new(&settings).unwrap();
    // How many bytes of its first message it has sent by then; none, some, all of what it says.
    for stage in 0..4 {
        let mut old = encrypting(tls(), ClientId::from_parts(1, 1));
        old.listen("127.0.0.1", "");
        let at = old.net.listeners().tcp_addresses()[0];
        let far = TcpStream::connect(at).unwrap();
        far.set_nonblocking(true).unwrap();
        let connects = tls();
        let ssl = connects.server().unwrap().begin("db.example.com").unwrap();
        let mut client = Session::new(ssl, mio::net::TcpStream::from_std(far)).unwrap();
        if stage > 0 {
            assert_eq!(client.shake(), Progress::Reads);
        }
        let peer = Peer::Client(old.client);
        old.until(|old| match stage {
            0 => old.net.part(peer).is_ok_and(|part| part.is_some()),
            1 => old.net.handshakes() == 1,
            // It hears the other side's answer, and maybe gives its own.
            2 => old.net.handshakes() == 1 && client.stream().peek(&mut [0]).is_ok(),
            _ => {
                client.set_readable(false);
                client.shake();
                old.core.log.iter().any(|line| line.starts_with("secured"))
            }
        });
        let mut new = encrypting(tls(), ClientId::from_parts(9, 4));
        let (mut keeper, _own) = hand_over(old, &mut new);
        assert_eq!(keeper.len(), usize::from(stage > 0));
        let mut done = stage == 3;
        new.until(|new| {
            keeper.turn_within(Some(Duration::ZERO)).unwrap();
            client.set_readable(false);
            done |= client.shake() == Progress::Done;
            done && (stage == 3 || !new.core.log.is_empty())
        });
        let told = ["secured C9 TLSv1.3/TLS_AES_256_GCM_SHA384"];
        assert_eq!(new.core.log, if stage == 3 { &[][..] } else { &told });
        go_on_elsewhere(new, keeper, &mut client, encrypting(tls(), ClientId::from_parts(3, 1)));
    }
}

/// And on to the last process, in the middle of a packet.
fn go_on_elsewhere(mut new: Process, mut keeper: Keeper, client: &mut Session, mut last: Process) {
    assert_eq!(client.send(&packet(b'p', b"word")[..7]).unwrap(), 7);
    let peer = Peer::Client(new.client);
    new.core.rule = Box::new(|_, packet, _| match packet.is_whole() {
        true => crate::core::Verdict::Drop,
        false => crate::core::Verdict::Whole,
    });
    new.until(|new| {
        keeper.turn_within(Some(Duration::ZERO)).unwrap();
        new.net.relay().pending_on(peer).held == 7
    });
    let is_new = keeper.is_empty();
    let (mut second, _own) = hand_over(new, &mut last);
    assert_eq!(second.len(), usize::from(is_new), "chains do not grow");
    assert_eq!(client.send(&packet(b'p', b"word")[7..]).unwrap(), 2);
    let peer = Peer::Client(last.client);
    last.core.rule = Box::new(|_, packet, sink| {
        assert_eq!(packet.seen, b"word");
        sink.to_client.extend_from_slice(b"answer");
        crate::core::Verdict::Drop
    });
    let mut heard = vec![];
    last.until(|_| {
        for keeper in [&mut keeper, &mut second] {
            keeper.turn_within(Some(Duration::ZERO)).unwrap();
        }
        client.set_readable(false);
        let mut room = [0; 10];
        let count = client.recv(&mut room).unwrap_or(0);
        heard.extend_from_slice(&room[..count]);
        !heard.is_empty()
    });
    assert_eq!(heard.len(), 6);
    last.net.close(peer);
    last.until(|_| {
        for keeper in [&mut keeper, &mut second] {
            keeper.turn_within(Some(Duration::ZERO)).unwrap();
        }
        client.set_readable(false);
        matches!(client.recv(&mut [0; 10]), Ok(0))
    });
    assert!(keeper.is_empty() && second.is_empty());
}

#[test]
fn client_that_leaves_in_its_handshake_is_lost() {
    let folder = Folder::new("keeper-leaves");
    let mut old = encrypting(Tls::new(&folder.settings()).unwrap(), ClientId::from_parts(1, 1));
    old.listen("127.0.0.1", "");
    let at = old.net.listeners().tcp_addresses()[0];
    let mut far = TcpStream::connect(at).unwrap();
    far.write_all(b"\x16\x03\x01").unwrap();
    old.until(|old| old.net.handshakes() == 1);
    let mut new = encrypting(Tls::default(), ClientId::from_parts(9, 4));
    let (mut keeper, _own) = hand_over(old, &mut new);
    drop(far);
    until_logged(&mut new, &mut keeper, "lost C9 Receive");
    assert!(keeper.is_empty() && keeper.journal().pop().is_some());
}

#[test]
fn successor_that_says_something_and_leaves_in_a_handshake_is_gone() {
    let mut scene = Scene::new("keeper-words-early");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let _far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, _) = listener.accept().unwrap();
    near.set_nonblocking(true).unwrap();
    let accepts = scene.tls.client().unwrap();
    let stream = mio::net::TcpStream::from_std(near);
    let ours = Box::new(Session::new(accepts.begin().unwrap(), stream).unwrap());
    let (inside, mut successor) = StdUnixStream::pair().unwrap();
    inside.set_nonblocking(true).unwrap();
    scene.keeper.add(ours, inside.into(), Buf::default(), Some(accepts.end_point()));
    scene.turn();
    assert_eq!(scene.keeper.len(), 1);
    successor.write_all(&[0; 300]).unwrap();
    drop(successor);
    scene.turn();
    assert!(scene.keeper.is_empty());
}
