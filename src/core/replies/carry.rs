//! The queue of replies in a handoff.

use super::{Asker, Expected, Inherited, Replies, Request, Unnamed};
use crate::base::fields::{read, Fields};
use crate::core::carry::{number_of, value_of};
use crate::tags;
use std::collections::VecDeque;

tags! {
    /// What a server owes.
    REPLIES_TAGS:
    1 QUEUE "what it has been asked, oldest first; two bytes each: for what, by whom",
    2 PUSHED "how many requests there have been",
    3 OPEN_FROM "place of the first request behind the last Sync",
    4 CLEARING "place of the last query that may deallocate everything",
    5 UNNAMED "number of its unnamed statement",
    6 UNNAMED_PLACE "place of the Parse of that",
    7 UNNAMED_IS_FIRST "the client has sent that Parse",
    8 FAILED "an error came since the last ReadyForQuery",
    9 COPY_IN "it reads COPY data",
    10 INHERITED "from a process that told nothing of it: 1 silent since, 2 answering, 3 copying",
}

/// The numbers of requests.
const REQUESTS: [Request; 12] = [
    Request::Query,
    Request::FunctionCall,
    Request::Parse,
    Request::Bind,
    Request::Describe,
    Request::Close,
    Request::Prepare,
    Request::Discard,
    Request::Execute,
    Request::Sync,
    Request::CopyData,
    Request::CopyEnd,
];

/// The numbers of askers.
const ASKERS: [Asker; 8] = [
    Asker::Client,
    Asker::Align,
    Asker::Test,
    Asker::Lookup,
    Asker::Keeper,
    Asker::Local,
    Asker::Forget,
    Asker::Traits,
];

/// The numbers of what is known of a server from another process.
const INHERITED_AS: [Inherited; 4] =
    [Inherited::Known, Inherited::Silent, Inherited::Answering, Inherited::Copying];

impl Replies {
    /// Writes the queue.
    pub fn hand_out(&self, fields: &mut Fields) {
        let Replies {
            queue,
            pushed,
            open_from,
            clearing,
            unnamed: Unnamed { number, place, is_first },
            // It is taken as soon as there is something in it.
            settled: _settled,
            failed,
            copy_in,
            inherited,
        } = self;
        let code = |expected: &Expected| {
            let Expected { request, asker } = expected;
            [number_of(&REQUESTS, request) as u8, number_of(&ASKERS, asker) as u8]
        };
        if !queue.is_empty() {
            fields.put(QUEUE, &queue.iter().flat_map(code).collect::<Vec<u8>>());
        }
        fields.count(PUSHED, *pushed);
        fields.count(OPEN_FROM, *open_from);
        if let Some(place) = clearing {
            fields.number(CLEARING, *place);
        }
        fields.count(UNNAMED, *number);
        fields.count(UNNAMED_PLACE, *place);
        fields.flag(UNNAMED_IS_FIRST, *is_first);
        fields.flag(FAILED, *failed);
        fields.flag(COPY_IN, *copy_in);
        fields.count(INHERITED, number_of(&INHERITED_AS, inherited));
    }

    /// Reads a queue; `None` if something in it is unknown here.
    pub fn take_in(bytes: &[u8]) -> Option<Replies> {
        let mut replies = Replies::default();
        for field in read(bytes) {
            match field.tag {
                QUEUE => replies.queue = queue(field.value)?,
                PUSHED => replies.pushed = field.number(),
                OPEN_FROM => replies.open_from = field.number(),
                CLEARING => replies.clearing = Some(field.number()),
                UNNAMED => replies.unnamed.number = field.number(),
                UNNAMED_PLACE => replies.unnamed.place = field.number(),
                UNNAMED_IS_FIRST => replies.unnamed.is_first = true,
                FAILED => replies.failed = true,
                COPY_IN => replies.copy_in = true,
                INHERITED => replies.inherited = value_of(&INHERITED_AS, field.number())?,
                _ => {}
            }
        }
        Some(replies)
    }
}

fn queue(bytes: &[u8]) -> Option<VecDeque<Expected>> {
    let expected = |pair: &[u8]| {
        let [request, asker] = pair else { return None };
        let request = value_of(&REQUESTS, u64::from(*request))?;
        Some(Expected { request, asker: value_of(&ASKERS, u64::from(*asker))? })
    };
    bytes.chunks(2).map(expected).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::carry::tests::planted_at;
    use crate::wire::FromServer;

    fn again(replies: &Replies) -> Replies {
        let mut fields = Fields::default();
        replies.hand_out(&mut fields);
        Replies::take_in(&planted_at("server.9", fields.into_bytes())).unwrap()
    }

    #[test]
    fn a_batch_ends_as_it_would_have() {
        let mut replies = Replies::default();
        use Request as R;
        for request in [R::Sync, R::Prepare, R::Parse, R::Bind, R::Execute, R::Sync] {
            replies.sent(request, Asker::Client);
            if request == R::Parse {
                replies.set_unnamed(7, true);
            }
        }
        let mut replies = again(&replies);
        assert_eq!((replies.len(), replies.place(), replies.answered()), (6, 6, 0));
        replies.received(FromServer::ReadyForQuery);
        replies.received(FromServer::ErrorResponse);
        let mut replies = again(&replies);
        assert!(!replies.is_certain(5) && replies.is_certain(6));
        replies.received(FromServer::ReadyForQuery);
        let settled = replies.take_settled().unwrap();
        assert_eq!((settled.done, settled.dropped, settled.unnamed), (0, 1, 7));
        assert!(replies.is_empty() && again(&replies).is_empty());
    }

    #[test]
    fn what_a_query_may_clear_stays_uncertain() {
        let mut replies = Replies::default();
        replies.sent(Request::Query, Asker::Client);
        replies.sent(Request::Query, Asker::Client);
        replies.clears();
        let mut replies = again(&replies);
        assert!(!replies.is_certain(0));
        replies.received(FromServer::ReadyForQuery);
        replies.received(FromServer::ReadyForQuery);
        assert!(again(&replies).is_certain(0));
    }

    #[test]
    fn what_a_stranger_left_open_stays_so() {
        let mut replies = again(&Replies::inherited());
        assert!(!replies.is_empty());
        replies.received(FromServer::DataRow);
        let mut replies = again(&replies);
        replies.received(FromServer::ReadyForQuery);
        assert!(replies.is_empty());
    }

    #[test]
    fn a_queue_with_something_unknown_is_refused() {
        for (bytes, is_fine) in
            [(&[0, 0, 11, 7][..], true), (&[12, 0], false), (&[0, 8], false), (&[0, 0, 0], false)]
        {
            let mut fields = Fields::default();
            fields.put(QUEUE, bytes);
            assert_eq!(Replies::take_in(&fields.into_bytes()).is_some(), is_fine, "{bytes:?}");
        }
    }
}
