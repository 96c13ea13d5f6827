//! The queue of replies.

use super::replies::{Asker, Fate, Replies, Request, Settled};
use crate::wire::{FromClient, FromServer};

#[test]
fn fakes_are_answered_in_their_turn_and_dropped_with_their_batch() {
    let mut queue = Replies::default();
    queue.sent(Request::Discard, Asker::Keeper);
    queue.owe(Request::Parse);
    assert_eq!(queue.take_local(), None);
    assert!(!queue.received_plain(FromServer::CloseComplete), "it has to be noted");
    assert_eq!(queue.received(FromServer::CloseComplete), Fate::For(Asker::Keeper));
    assert_eq!(queue.take_local(), Some(Request::Parse));
    assert!(queue.is_empty());
    queue.sent(Request::Bind, Asker::Client);
    queue.owe(Request::Close);
    queue.sent(Request::Sync, Asker::Client);
    queue.owe(Request::Parse);
    queue.received(FromServer::ErrorResponse);
    assert_eq!(queue.take_local(), None);
    queue.received(FromServer::ReadyForQuery);
    assert_eq!((queue.take_local(), queue.len()), (Some(Request::Parse), 0));
}

#[test]
fn how_noted_requests_end_is_told() {
    let settled = |done, dropped| Some(Settled { done, dropped, unnamed: 0 });
    let mut queue = Replies::default();
    queue.sent(Request::Prepare, Asker::Client);
    queue.sent(Request::Discard, Asker::Keeper);
    queue.sent(Request::Execute, Asker::Client);
    queue.sent(Request::Prepare, Asker::Keeper);
    queue.sent(Request::Sync, Asker::Client);
    queue.sent(Request::Query, Asker::Forget);
    queue.received(FromServer::ParseComplete);
    assert_eq!(queue.take_settled(), settled(1, 0));
    queue.received(FromServer::CloseComplete);
    queue.received(FromServer::ErrorResponse);
    assert_eq!(queue.take_settled(), settled(1, 0));
    queue.received(FromServer::ReadyForQuery);
    assert_eq!(queue.take_settled(), settled(0, 1));
    queue.received(FromServer::CommandComplete);
    queue.received(FromServer::ReadyForQuery);
    assert_eq!(queue.take_settled(), settled(1, 0));
    queue.sent(Request::Query, Asker::Forget);
    queue.received(FromServer::ErrorResponse);
    queue.received(FromServer::ReadyForQuery);
    assert_eq!((queue.take_settled(), queue.take_settled()), (settled(0, 1), None));
}

#[test]
fn a_request_is_certain_in_its_batch_and_once_it_is_answered() {
    let mut queue = Replies::default();
    let place = queue.place();
    queue.sent(Request::Prepare, Asker::Client);
    assert!(queue.is_certain(place));
    queue.sent(Request::Sync, Asker::Client);
    assert!(!queue.is_certain(place));
    let next = queue.place();
    queue.sent(Request::Prepare, Asker::Client);
    assert!(queue.is_certain(next));
    queue.received(FromServer::ParseComplete);
    assert!(queue.is_certain(place));
}

#[test]
fn the_unnamed_statement_is_known_by_its_parse() {
    let mut queue = Replies::default();
    let parse = |queue: &mut Replies, number, is_first| {
        queue.sent(Request::Parse, Asker::Client);
        queue.set_unnamed(number, is_first);
    };
    assert!(!queue.has_unnamed(0));
    parse(&mut queue, 7, true);
    assert!(queue.has_unnamed(7) && !queue.has_unnamed(8));
    queue.sent(Request::Sync, Asker::Client);
    assert!(!queue.has_unnamed(7), "it may be skipped");
    queue.received(FromServer::ParseComplete);
    queue.received(FromServer::ReadyForQuery);
    assert!(queue.has_unnamed(7));
    queue.sent(Request::Query, Asker::Align);
    assert!(!queue.has_unnamed(7));
    queue.received(FromServer::CommandComplete);
    queue.received(FromServer::ReadyForQuery);
    for (is_first, lost) in [(true, Some(9)), (false, None)] {
        parse(&mut queue, 9, is_first);
        queue.sent(Request::Sync, Asker::Client);
        queue.received(FromServer::ErrorResponse);
        queue.received(FromServer::ReadyForQuery);
        assert_eq!(queue.take_settled().map(|settled| settled.unnamed), lost);
        assert!(!queue.has_unnamed(9));
    }
}

/// A server from another process: the client's letters are small, the server's big.
#[test]
fn a_server_from_another_process_is_free_after_the_first_ready() {
    for (said, is_free) in [
        ("", false),
        // It was answering.
        ("<DCZ", true),
        ("<N", false),
        ("<DEZ", true),
        ("<D>Q<CZ", false),
        ("<D>Q<CZTDCZ", true),
        // It was not.
        (">Q<DC", false),
        (">Q<DCZ", true),
        ("<S>PBES<12CZ", true),
        // It was reading data.
        (">ddc<CZ", true),
        (">ddcS<CZ", true),
        (">dfS<EZ", true),
    ] {
        let mut queue = Replies::inherited();
        let mut is_client = false;
        for letter in said.bytes() {
            match letter {
                b'<' => is_client = false,
                b'>' => is_client = true,
                _ if is_client => {
                    queue.sent(Request::of(FromClient::of(letter)).unwrap(), Asker::Client);
                }
                _ => {
                    let fate = queue.received(FromServer::of(letter));
                    assert_eq!(fate, Fate::For(Asker::Client), "{said}");
                }
            }
        }
        assert_eq!(queue.is_empty(), is_free, "{said}");
    }
}

/// Requests in the client's letters, replies in the server's; what is left afterwards, and the
/// first unexpected reply.
fn run(requests: &str, replies: &str) -> (usize, bool, Option<char>) {
    let mut queue = Replies::default();
    for letter in requests.bytes() {
        if let Some(request) = Request::of(FromClient::of(letter)) {
            queue.sent(request, Asker::Client);
        }
    }
    for letter in replies.chars() {
        if queue.received(FromServer::of(letter as u8)) == Fate::Unexpected {
            return (queue.len(), queue.is_empty(), Some(letter));
        }
    }
    (queue.len(), queue.is_empty(), None)
}

#[test]
fn queue_empties_exactly_with_the_last_reply() {
    for (requests, replies, left) in [
        ("Q", "TDDC", 1),
        ("Q", "TDDCZ", 0),
        ("Q", "TDCTDCNSAZ", 0),
        ("QQ", "CZ", 1),
        ("QQ", "CZCZ", 0),
        ("PBDES", "12TDC", 1),
        ("PBDES", "12TDCZ", 0),
        ("PDS", "1tnZ", 0),
        ("PBES", "12sZ", 0),
        ("PBES", "EZ", 0),
        ("PBESPBES", "EZ12CZ", 0),
        ("PBESPBES", "EZ", 4),
        ("PBE", "E", 3),
        ("PBEQS", "EZ", 0),
        ("S", "EZ", 0),
        ("F", "VZ", 0),
        ("F", "EZ", 0),
        ("CS", "3Z", 0),
    ] {
        assert_eq!(run(requests, replies), (left, left == 0, None), "{requests} {replies}");
    }
}

#[test]
fn copy_in_keeps_the_queue_right() {
    for (requests, replies, left) in [
        // simple: all at once, failed, followed by another query
        ("Qdddc", "GCZ", 0),
        ("Qddf", "GEZ", 0),
        ("QddcQ", "GCZ", 1),
        ("QddcQ", "EZ", 1),
        // both directions at once: a walsender's stream, ended by the client, failed, followed
        ("Qddc", "WdddcdCCZ", 0),
        ("Qdc", "WdcTDCCZ", 0),
        ("Qdd", "WdcCZ", 0),
        ("Qd", "WdEZ", 0),
        ("QdcQQ", "WdcdCCZ", 2),
        // several results and streams: BASE_BACKUP
        ("Q", "TDCTDCHddcHddcTDCCZ", 0),
        ("Qc", "CZ", 0),
        // extended: the Sync before the data is ignored by the server
        ("PBESdcS", "12GCZ", 0),
        ("PBEdcS", "12GCZ", 0),
        ("PBESdcS", "12GEZ", 0),
        ("PBESdS", "12GEZ", 0),
        ("PBEScSQ", "12GEZ", 1),
        // not a COPY at all: the messages are ignored, both Syncs count
        ("PBESdcS", "12CZZ", 0),
    ] {
        assert_eq!(run(requests, replies), (left, left == 0, None), "{requests} {replies}");
    }
}

#[test]
fn replies_nobody_asked_for_are_unexpected() {
    for (requests, replies, bad) in [
        ("", "Z", 'Z'),
        ("", "C", 'C'),
        ("Q", "CZZ", 'Z'),
        ("Q", "1", '1'),
        ("P", "2", '2'),
        ("PBS", "12C", 'C'),
        ("PBES", "12DZ", 'Z'),
        ("PBES", "ED", 'D'),
        ("S", "C", 'C'),
    ] {
        assert_eq!(run(requests, replies).2, Some(bad), "{requests} {replies}");
    }
}

#[test]
fn an_error_without_a_request_leaves_nothing_open() {
    assert_eq!(run("", "E"), (0, true, None));
    assert_eq!(run("c", ""), (0, true, None));
}
