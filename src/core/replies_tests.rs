//! The queue of replies, as far as prepared statements need it.

use super::replies::{Asker, Fate, Replies, Request, Settled};
use crate::wire::FromServer;

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
