//! Prepared statements of the protocol in transaction and statement mode (pooling 7): the store of
//! all statements, which of them each client has under which names, which are on each server.
//!
//! What is on a server is known for sure only when its replies have come: after an error it skips
//! requests. So an instance remembers what has been sent about it and not been answered, and where
//! in the server's queue of replies; see `Replies::is_certain`.

mod carry;

pub use carry::{NAMES_TAGS, SHELF_TAGS};

use super::face::ServerId;
use crate::base::list::{Linked, Links, List};
use crate::base::{Arena, Id, Objects};
use crate::wire::write;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Names a statement of the store.
pub type StatementId = Id<Statement>;

/// What servers know statements by: `PGBOUNCER_` and a number.
#[derive(Clone, Copy)]
pub struct ServerName {
    bytes: [u8; 30],
    len: u8,
}

impl ServerName {
    fn new(number: u64) -> ServerName {
        let text = format!("PGBOUNCER_{number}");
        let mut bytes = [0; 30];
        for (to, from) in bytes.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        ServerName { bytes, len: text.len().min(30) as u8 }
    }

    /// One that no server knows.
    pub fn nobodys() -> ServerName {
        ServerName::new(0)
    }

    /// Its bytes, without a zero.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// A statement that some client or server has.
pub struct Statement {
    /// Behind the name in a Parse: text, zero, number of declared types, the types.
    key: Rc<[u8]>,
    name: ServerName,
    holders: usize,
}

impl Statement {
    /// Its name on servers.
    pub fn name(&self) -> &ServerName {
        &self.name
    }

    /// Writes a Parse of it.
    pub fn write_parse(&self, out: &mut Vec<u8>) {
        write::packet(out, b'P', |out| {
            write::text(out, self.name.as_bytes());
            out.extend_from_slice(&self.key);
        });
    }
}

/// Writes a Close of a statement by its name on servers.
pub fn write_close(out: &mut Vec<u8>, name: &ServerName) {
    write::packet(out, b'C', |out| {
        out.push(b'S');
        write::text(out, name.as_bytes());
    });
}

/// A statement on a server.
pub struct Instance {
    statement: StatementId,
    links: Links<Instance>,
    /// It is there once all that has been sent is done; then it is in the server's list.
    is_wanted: bool,
    /// It is there as far as the server has answered.
    is_there: bool,
    /// How many Parse and Close packets have not been answered.
    pending: u32,
    /// The place of the last Parse in the server's queue of replies.
    place: u64,
}

impl Linked for Instance {
    fn links(&self) -> &Links<Instance> {
        &self.links
    }
    fn links_mut(&mut self) -> &mut Links<Instance> {
        &mut self.links
    }
}

/// Something that was sent to a server and has not been answered.
pub enum Sent {
    /// A Parse.
    Prepare(Id<Instance>),
    /// A Close.
    Discard(Id<Instance>),
    /// A client's DEALLOCATE of the name that it had for a statement.
    Forget(Box<[u8]>, StatementId),
}

/// What a server has, and has been sent.
#[derive(Default)]
pub struct Shelf {
    instances: BTreeMap<StatementId, Id<Instance>>,
    /// Those that are wanted, last used first.
    recent: List<Instance>,
    sent: VecDeque<Sent>,
    /// It may have more: statements of the process that had the server before, with names like ours.
    is_inherited: bool,
}

impl Shelf {
    /// The shelf of a server that another process had.
    pub fn inherited() -> Shelf {
        Shelf { is_inherited: true, ..Shelf::default() }
    }

    /// True if the server may have statements that nobody knows of.
    pub fn is_inherited(&self) -> bool {
        self.is_inherited
    }

    /// How many statements are prepared.
    pub fn len(&self) -> usize {
        self.recent.len()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.recent.is_empty()
    }

    /// Notes a DEALLOCATE.
    pub fn forgets(&mut self, name: Box<[u8]>, statement: StatementId) {
        self.sent.push_back(Sent::Forget(name, statement));
    }

    /// The oldest thing that has not been answered: now it has been.
    pub fn take_sent(&mut self) -> Option<Sent> {
        self.sent.pop_front()
    }
}

/// How a server stands to a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does not have it.
    Unknown,
    /// It is being closed, or may be.
    Doubtful,
    /// It has it if the request at this place in its queue is certain.
    Since(u64),
}

/// A client's name for a statement.
pub struct Named {
    /// Which one.
    pub statement: StatementId,
    /// The server that the client was linked to when it gave the name.
    pub server: Option<ServerId>,
    /// The next place in that server's queue of replies then.
    pub place: u64,
}

/// A client's names; the keys are its own bytes.
pub type NameMap = BTreeMap<Box<[u8]>, Named>;

/// What a client has.
#[derive(Default)]
pub struct Names {
    /// Its named statements.
    pub map: NameMap,
    /// Behind the name in its last unnamed Parse.
    unnamed: Vec<u8>,
    /// Number of its unnamed statement, unique in the process; 0 if it has none.
    number: u64,
}

/// A buffer for the unnamed statement is given up when it has this many bytes and is not needed.
const UNNAMED_MAX: usize = 16 * 1024;

impl Names {
    /// Keeps an unnamed statement: what is behind the name in its Parse.
    #[inline]
    pub fn keep_unnamed(&mut self, key: &[u8], number: u64) {
        if self.unnamed.capacity() > UNNAMED_MAX && key.len() < UNNAMED_MAX {
            self.unnamed = Vec::new();
        }
        self.unnamed.clear();
        self.unnamed.extend_from_slice(key);
        self.number = number;
    }

    /// There is no unnamed statement any more.
    #[inline]
    pub fn end_unnamed(&mut self) {
        self.number = 0;
        if self.unnamed.capacity() > UNNAMED_MAX {
            self.unnamed = Vec::new();
        }
    }

    /// The number of the unnamed statement, 0 if there is none.
    #[inline]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What is behind the name in the Parse of the unnamed statement.
    pub fn unnamed(&self) -> Option<&[u8]> {
        (self.number != 0).then_some(&self.unnamed)
    }
}

/// The store: one copy of each statement, and what is on which server.
#[derive(Default)]
pub struct Statements {
    all: Arena<Statement>,
    by_key: BTreeMap<Rc<[u8]>, StatementId>,
    instances: Arena<Instance>,
    last_name: u64,
    last_unnamed: u64,
}

impl Statements {
    /// How many statements there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What the statements on servers take.
    pub fn objects(&self) -> Objects {
        self.instances.objects()
    }

    /// A number for an unnamed statement.
    #[inline]
    pub fn next_unnamed(&mut self) -> u64 {
        self.last_unnamed = self.last_unnamed.saturating_add(1);
        self.last_unnamed
    }

    /// One statement.
    #[inline]
    pub fn get(&self, id: StatementId) -> Option<&Statement> {
        self.all.get(id)
    }

    /// The statement with this text and these types, with one holder more.
    pub fn intern(&mut self, key: &[u8]) -> StatementId {
        if let Some(id) = self.by_key.get(key).copied() {
            self.hold(id);
            return id;
        }
        self.last_name = self.last_name.saturating_add(1);
        let key: Rc<[u8]> = key.into();
        let name = ServerName::new(self.last_name);
        let id = self.all.insert(Statement { key: key.clone(), name, holders: 1 });
        self.by_key.insert(key, id);
        id
    }

    fn hold(&mut self, id: StatementId) {
        if let Some(statement) = self.all.get_mut(id) {
            statement.holders = statement.holders.saturating_add(1);
        }
    }

    /// One holder less; without any the statement is forgotten.
    pub fn drop(&mut self, id: StatementId) {
        let Some(statement) = self.all.get_mut(id) else { return };
        statement.holders = statement.holders.saturating_sub(1);
        if statement.holders == 0 {
            if let Some(statement) = self.all.remove(id) {
                self.by_key.remove(&statement.key);
            }
        }
    }

    /// How a server stands to a statement.
    pub fn standing(&self, shelf: &Shelf, id: StatementId) -> Standing {
        let instance = shelf.instances.get(&id).and_then(|at| self.instances.get(*at));
        match instance {
            Some(instance) if instance.is_wanted => Standing::Since(instance.place),
            Some(_) => Standing::Doubtful,
            None => Standing::Unknown,
        }
    }

    /// A statement is to be used on a server: true if that has it, which is certain if the request
    /// at a place in its queue is.
    #[inline]
    pub fn touch(
        &mut self,
        shelf: &mut Shelf,
        id: StatementId,
        is_certain: impl Fn(u64) -> bool,
    ) -> bool {
        let Some(at) = shelf.instances.get(&id).copied() else { return false };
        let Some(instance) = self.instances.get(at) else { return false };
        if !instance.is_wanted || !is_certain(instance.place) {
            return false;
        }
        if shelf.recent.head() != Some(at) {
            shelf.recent.remove(&mut self.instances, at);
            shelf.recent.push_front(&mut self.instances, at);
        }
        true
    }

    /// Writes a Parse of the statement for this server; it takes this place in the queue of replies.
    pub fn prepare(&mut self, shelf: &mut Shelf, id: StatementId, place: u64, out: &mut Vec<u8>) {
        let Some(statement) = self.all.get_mut(id) else { return };
        statement.write_parse(out);
        let at = match shelf.instances.get(&id) {
            Some(at) => *at,
            None => {
                statement.holders = statement.holders.saturating_add(1);
                let at = self.instances.insert(Instance {
                    statement: id,
                    links: Links::default(),
                    is_wanted: false,
                    is_there: false,
                    pending: 0,
                    place,
                });
                shelf.instances.insert(id, at);
                at
            }
        };
        let Some(instance) = self.instances.get_mut(at) else { return };
        instance.place = place;
        instance.pending = instance.pending.saturating_add(1);
        if !std::mem::replace(&mut instance.is_wanted, true) {
            shelf.recent.push_front(&mut self.instances, at);
        }
        shelf.sent.push_back(Sent::Prepare(at));
    }

    /// Writes a Close of a statement that the server has, or may have.
    pub fn discard(&mut self, shelf: &mut Shelf, id: StatementId, out: &mut Vec<u8>) {
        let Some(at) = shelf.instances.get(&id).copied() else { return };
        let Some(instance) = self.instances.get_mut(at) else { return };
        instance.pending = instance.pending.saturating_add(1);
        if std::mem::replace(&mut instance.is_wanted, false) {
            shelf.recent.remove(&mut self.instances, at);
        }
        shelf.sent.push_back(Sent::Discard(at));
        self.close(id, out);
    }

    /// Writes a Close of the server's name for a statement.
    pub fn close(&self, id: StatementId, out: &mut Vec<u8>) {
        if let Some(statement) = self.all.get(id) {
            write_close(out, &statement.name);
        }
    }

    /// The statement of a server that has not been used for longest.
    pub fn oldest(&self, shelf: &Shelf) -> Option<StatementId> {
        Some(self.instances.get(shelf.recent.tail()?)?.statement)
    }

    /// A request about an instance has been answered: with `Some(true)` it is there now, with
    /// `Some(false)` it is not, and `None` changes nothing.
    pub fn answered(&mut self, shelf: &mut Shelf, at: Id<Instance>, is_there: Option<bool>) {
        let Some(instance) = self.instances.get_mut(at) else { return };
        instance.pending = instance.pending.saturating_sub(1);
        instance.is_there = is_there.unwrap_or(instance.is_there);
        self.settle(shelf, at);
    }

    /// With all answers there is no doubt any more about what the server has.
    fn settle(&mut self, shelf: &mut Shelf, at: Id<Instance>) {
        let Some(instance) = self.instances.get_mut(at) else { return };
        if instance.pending > 0 {
            return;
        }
        let (statement, is_there) = (instance.statement, instance.is_there);
        let was_wanted = std::mem::replace(&mut instance.is_wanted, is_there);
        match (was_wanted, is_there) {
            (true, false) => shelf.recent.remove(&mut self.instances, at),
            // A Close was skipped: it is the next that is closed.
            (false, true) => shelf.recent.push_back(&mut self.instances, at),
            _ => {}
        }
        if !is_there {
            shelf.instances.remove(&statement);
            self.instances.remove(at);
            self.drop(statement);
        }
    }

    /// A server has deallocated everything.
    pub fn clear(&mut self, shelf: &mut Shelf) {
        shelf.is_inherited = false;
        let all: Vec<_> = shelf.instances.values().copied().collect();
        for at in all {
            if let Some(instance) = self.instances.get_mut(at) {
                instance.is_there = false;
                self.settle(shelf, at);
            }
        }
    }

    /// A server is gone.
    pub fn forget_shelf(&mut self, mut shelf: Shelf) {
        while let Some(sent) = shelf.take_sent() {
            if let Sent::Forget(_, statement) = sent {
                self.drop(statement);
            }
        }
        for (statement, at) in shelf.instances {
            self.instances.remove(at);
            self.drop(statement);
        }
    }

    /// A client is gone.
    pub fn forget_names(&mut self, names: &Names) {
        for named in names.map.values() {
            self.drop(named.statement);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&[u8]; 3] = [b"select 1\0\0\0", b"select 1\0\0\x01\0\0\0\x17", b"select 2\0\0\0"];

    /// Answers the oldest request of a server.
    fn answer(store: &mut Statements, shelf: &mut Shelf, is_done: bool) {
        match shelf.take_sent() {
            Some(Sent::Prepare(at)) => store.answered(shelf, at, is_done.then_some(true)),
            Some(Sent::Discard(at)) => store.answered(shelf, at, is_done.then_some(false)),
            _ => panic!("nothing was sent"),
        }
    }

    #[test]
    fn a_statement_is_kept_once_and_as_long_as_somebody_has_it() {
        let mut store = Statements::default();
        let ids = KEYS.map(|key| store.intern(key));
        assert_eq!(store.intern(KEYS[0]), ids[0]);
        let names = ids.map(|id| store.get(id).unwrap().name().as_bytes().to_vec());
        assert_eq!(names, [&b"PGBOUNCER_1"[..], b"PGBOUNCER_2", b"PGBOUNCER_3"]);
        store.drop(ids[0]);
        assert!(store.get(ids[0]).is_some());
        ids.iter().for_each(|id| store.drop(*id));
        assert!(store.is_empty() && store.by_key.is_empty());
        let again = store.intern(KEYS[0]);
        assert_eq!(store.get(again).unwrap().name().as_bytes(), b"PGBOUNCER_4");
        assert_eq!(ServerName::new(u64::MAX).as_bytes(), b"PGBOUNCER_18446744073709551615");
    }

    #[test]
    fn a_server_has_what_its_answers_say() {
        let mut store = Statements::default();
        let ids = KEYS.map(|key| store.intern(key));
        let (mut shelf, mut out) = (Shelf::default(), Vec::new());
        for id in ids {
            store.prepare(&mut shelf, id, 5, &mut out);
        }
        assert_eq!(out[..28], *b"P\0\0\0\x1bPGBOUNCER_1\0select 1\0\0\0");
        assert!(!store.touch(&mut shelf, ids[0], |place| place != 5));
        assert!(store.touch(&mut shelf, ids[0], |place| place == 5));
        assert_eq!(store.oldest(&shelf), Some(ids[1]));
        out.clear();
        store.discard(&mut shelf, ids[1], &mut out);
        assert_eq!(out, b"C\0\0\0\x11SPGBOUNCER_2\0");
        assert_eq!(store.standing(&shelf, ids[1]), Standing::Doubtful);
        // The second Parse is done, the third and the Close are skipped.
        for is_done in [true, true, false, false] {
            answer(&mut store, &mut shelf, is_done);
        }
        let standing = ids.map(|id| store.standing(&shelf, id));
        assert_eq!(standing, [Standing::Since(5), Standing::Since(5), Standing::Unknown]);
        assert_eq!((shelf.len(), store.oldest(&shelf)), (2, Some(ids[1])));
        ids.iter().for_each(|id| store.drop(*id));
        assert_eq!(store.len(), 2, "the server has them");
        store.prepare(&mut shelf, ids[0], 9, &mut out);
        store.clear(&mut shelf);
        assert_eq!((store.len(), shelf.len()), (1, 1), "one was sent again");
        answer(&mut store, &mut shelf, true);
        assert_eq!(shelf.len(), 1);
        shelf.forgets(b"x"[..].into(), store.intern(KEYS[2]));
        store.forget_shelf(shelf);
        assert!(store.is_empty() && store.instances.is_empty());
    }

    #[test]
    fn a_large_unnamed_statement_does_not_stay() {
        let mut names = Names::default();
        names.keep_unnamed(&[1; 100_000], 1);
        assert_eq!(names.unnamed().map(<[u8]>::len), Some(100_000));
        names.keep_unnamed(b"small", 2);
        assert!(names.unnamed.capacity() < 1000 && names.unnamed() == Some(b"small"));
        names.end_unnamed();
        assert_eq!((names.unnamed(), names.number()), (None, 0));
    }
}
