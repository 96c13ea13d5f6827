//! Prepared statements in a handoff: the store, what is on a server, a client's names.

use super::{Instance, Named, Names, Sent, ServerName, Shelf, Statement, StatementId, Statements};
use crate::base::fields::{read, Field, Fields};
use crate::base::list::Links;
use crate::base::Id;
use crate::core::face::ServerId;
use crate::tags;
use std::collections::BTreeMap;

tags! {
    /// What a server has, and has been sent.
    SHELF_TAGS:
    1 INSTANCE "a statement on it; those that are wanted come first, last used first",
    2 SENT "a request about a statement that has not been answered; oldest first",
    3 INHERITED "it may have more statements, with names like ours",
    4 STATEMENT "which one: the number in its name",
    5 WANTED "it is there once all that has been sent is done",
    6 THERE "it is there as far as the server has answered",
    7 PLACE "place of its last Parse in the server's queue",
    8 CLOSES "the request is a Close, not a Parse",
    9 FORGETS "the request is a DEALLOCATE of this name of a client's",
}

tags! {
    /// A client's names for statements.
    NAMES_TAGS:
    1 NAMED "a named statement",
    2 UNNAMED "behind the name in the Parse of its unnamed statement",
    3 UNNAMED_NUMBER "the number of that, unique in the process",
    4 NAME "its name",
    5 NAMED_STATEMENT "which one: the number in its name on servers",
    6 SERVER "number of the server that the client was linked to when it gave the name",
    7 NAMED_PLACE "the next place in that server's queue then",
}

impl ServerName {
    /// The number in the name.
    fn number(&self) -> u64 {
        let digits = self.as_bytes().iter().filter(|byte| byte.is_ascii_digit());
        digits.fold(0, |number: u64, digit| {
            number.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0')))
        })
    }
}

impl Statements {
    /// The last numbers of names on servers, and of unnamed statements.
    pub fn last_numbers(&self) -> (u64, u64) {
        (self.last_name, self.last_unnamed)
    }

    /// Goes on with numbers from here, if that is not behind where it is.
    pub fn go_on_from(&mut self, (name, unnamed): (u64, u64)) {
        self.last_name = self.last_name.max(name);
        self.last_unnamed = self.last_unnamed.max(unnamed);
    }

    /// All statements: the number in the name, what is behind the name in a Parse.
    pub fn hand_out(&self) -> Vec<(u64, &[u8])> {
        let Statements {
            all,
            // These follow from the other rows.
            by_key: _by_key,
            instances: _instances,
            last_name: _last_name,
            last_unnamed: _last_unnamed,
        } = self;
        let mut rows = Vec::with_capacity(all.len());
        for (_, statement) in all.iter() {
            // Who holds it says so.
            let Statement { key, name, holders: _holders } = statement;
            rows.push((name.number(), &**key));
        }
        rows.sort_unstable();
        rows
    }

    /// Takes in a statement; one with the same text is the same. The caller is a holder of it.
    pub fn take_in(&mut self, number: u64, key: &[u8]) -> StatementId {
        if let Some(id) = self.by_key.get(key).copied() {
            self.hold(id);
            return id;
        }
        self.go_on_from((number, 0));
        let key: std::rc::Rc<[u8]> = key.into();
        let name = ServerName::new(number);
        let id = self.all.insert(Statement { key: key.clone(), name, holders: 1 });
        self.by_key.insert(key, id);
        id
    }

    fn number(&self, id: StatementId) -> u64 {
        self.all.get(id).map_or(0, |statement| statement.name.number())
    }

    fn number_at(&self, at: Id<Instance>) -> u64 {
        self.instances.get(at).map_or(0, |instance| self.number(instance.statement))
    }

    /// Writes what a server has.
    pub fn hand_out_shelf(&self, shelf: &Shelf, fields: &mut Fields) {
        let Shelf { instances, recent, sent, is_inherited } = shelf;
        let is_unwanted =
            |at: &Id<Instance>| self.instances.get(*at).is_some_and(|instance| !instance.is_wanted);
        let mut unwanted: Vec<_> = instances.values().copied().filter(is_unwanted).collect();
        unwanted.sort_unstable_by_key(|at| self.number_at(*at));
        for at in recent.ids(&self.instances).into_iter().chain(unwanted) {
            let Some(instance) = self.instances.get(at) else { continue };
            let Instance {
                statement,
                links: _links,
                is_wanted,
                is_there,
                // As many as are in the list of what was sent.
                pending: _pending,
                place,
            } = instance;
            fields.group(INSTANCE, |fields| {
                fields.number(STATEMENT, self.number(*statement));
                fields.flag(WANTED, *is_wanted);
                fields.flag(THERE, *is_there);
                fields.count(PLACE, *place);
            });
        }
        for sent in sent {
            fields.group(SENT, |fields| match sent {
                Sent::Prepare(at) => fields.number(STATEMENT, self.number_at(*at)),
                Sent::Discard(at) => {
                    fields.number(STATEMENT, self.number_at(*at));
                    fields.flag(CLOSES, true);
                }
                Sent::Forget(name, statement) => {
                    fields.number(STATEMENT, self.number(*statement));
                    fields.put(FORGETS, name);
                }
            });
        }
        fields.flag(INHERITED, *is_inherited);
    }

    /// Reads what a server has; `of` knows the statements by their numbers. `None` if it is about one
    /// that does not exist.
    pub fn take_in_shelf(
        &mut self,
        bytes: &[u8],
        of: impl Fn(u64) -> Option<StatementId>,
    ) -> Option<Shelf> {
        let mut shelf = Shelf::default();
        let done = self.fill_shelf(&mut shelf, bytes, of);
        if done.is_none() {
            self.forget_shelf(shelf);
            return None;
        }
        // With nothing on its way what is there is what is wanted.
        for at in shelf.instances.values().copied().collect::<Vec<_>>() {
            self.settle(&mut shelf, at);
        }
        Some(shelf)
    }

    fn fill_shelf(
        &mut self,
        shelf: &mut Shelf,
        bytes: &[u8],
        of: impl Fn(u64) -> Option<StatementId>,
    ) -> Option<()> {
        for field in read(bytes) {
            match field.tag {
                INSTANCE => self.take_in_instance(shelf, field, &of)?,
                SENT => self.take_in_sent(shelf, field, &of)?,
                INHERITED => shelf.is_inherited = true,
                _ => {}
            }
        }
        Some(())
    }

    fn take_in_instance(
        &mut self,
        shelf: &mut Shelf,
        field: Field<'_>,
        of: impl Fn(u64) -> Option<StatementId>,
    ) -> Option<()> {
        let (mut number, mut is_wanted, mut is_there, mut place) = (0, false, false, 0);
        for field in field.fields() {
            match field.tag {
                STATEMENT => number = field.number(),
                WANTED => is_wanted = true,
                THERE => is_there = true,
                PLACE => place = field.number(),
                _ => {}
            }
        }
        let statement = of(number).filter(|id| !shelf.instances.contains_key(id))?;
        let links = Links::default();
        let instance = Instance { statement, links, is_wanted, is_there, pending: 0, place };
        let at = self.instances.insert(instance);
        shelf.instances.insert(statement, at);
        if is_wanted {
            shelf.recent.push_back(&mut self.instances, at);
        }
        self.hold(statement);
        Some(())
    }

    fn take_in_sent(
        &mut self,
        shelf: &mut Shelf,
        field: Field<'_>,
        of: impl Fn(u64) -> Option<StatementId>,
    ) -> Option<()> {
        let (mut number, mut closes, mut name) = (0, false, None);
        for field in field.fields() {
            match field.tag {
                STATEMENT => number = field.number(),
                CLOSES => closes = true,
                FORGETS => name = Some(field.value),
                _ => {}
            }
        }
        let statement = of(number)?;
        let sent = match name {
            Some(name) => {
                self.hold(statement);
                Sent::Forget(name.into(), statement)
            }
            None => {
                let at = *shelf.instances.get(&statement)?;
                let instance = self.instances.get_mut(at)?;
                instance.pending = instance.pending.saturating_add(1);
                if closes {
                    Sent::Discard(at)
                } else {
                    Sent::Prepare(at)
                }
            }
        };
        shelf.sent.push_back(sent);
        Some(())
    }

    /// Writes a client's names; `server` tells the numbers of servers.
    pub fn hand_out_names(
        &self,
        names: &Names,
        server: impl Fn(ServerId) -> Option<u64>,
        fields: &mut Fields,
    ) {
        let Names { map, unnamed, number } = names;
        for (name, Named { statement, server: given_at, place }) in map {
            fields.group(NAMED, |fields| {
                fields.put(NAME, name);
                fields.number(NAMED_STATEMENT, self.number(*statement));
                fields.count(SERVER, given_at.and_then(&server).unwrap_or(0));
                fields.count(NAMED_PLACE, *place);
            });
        }
        if *number != 0 {
            fields.put(UNNAMED, unnamed);
            fields.number(UNNAMED_NUMBER, *number);
        }
    }

    /// Reads a client's names; `of` knows the statements by their numbers, `server` the servers. One
    /// of a statement that does not exist is left out.
    pub fn take_in_names(
        &mut self,
        bytes: &[u8],
        of: impl Fn(u64) -> Option<StatementId>,
        server: impl Fn(u64) -> Option<ServerId>,
    ) -> Names {
        let mut names = Names { map: BTreeMap::new(), ..Names::default() };
        let (mut unnamed, mut number) = (&b""[..], 0);
        for field in read(bytes) {
            match field.tag {
                NAMED => {
                    let (name, named) = named(field, &of, &server);
                    if let (Some(named), false) = (named, names.map.contains_key(name)) {
                        self.hold(named.statement);
                        names.map.insert(name.into(), named);
                    }
                }
                UNNAMED => unnamed = field.value,
                UNNAMED_NUMBER => number = field.number(),
                _ => {}
            }
        }
        if number != 0 {
            self.go_on_from((0, number));
            names.keep_unnamed(unnamed, number);
        }
        names
    }
}

fn named<'a>(
    field: Field<'a>,
    of: impl Fn(u64) -> Option<StatementId>,
    server: impl Fn(u64) -> Option<ServerId>,
) -> (&'a [u8], Option<Named>) {
    let (mut name, mut statement, mut given_at, mut place) = (&b""[..], None, None, 0);
    for field in field.fields() {
        match field.tag {
            NAME => name = field.value,
            NAMED_STATEMENT => statement = of(field.number()),
            SERVER => given_at = server(field.number()),
            NAMED_PLACE => place = field.number(),
            _ => {}
        }
    }
    (name, statement.map(|statement| Named { statement, server: given_at, place }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::carry::tests::planted_at;

    const KEYS: [&[u8]; 3] = [b"select 1\0\0\0", b"select 2\0\0\0", b"select 3\0\0\0"];

    /// Another store with the same statements, and how to find them.
    fn again(store: &Statements) -> (Statements, BTreeMap<u64, StatementId>) {
        let mut next = Statements::default();
        let rows = store.hand_out().into_iter();
        let known = rows.map(|(number, key)| (number, next.take_in(number, key))).collect();
        next.go_on_from(store.last_numbers());
        (next, known)
    }

    #[test]
    fn a_shelf_goes_on_with_its_requests() {
        let (mut store, mut shelf) = (Statements::default(), Shelf::default());
        store.intern(b"gone\0\0\0");
        let ids = KEYS.map(|key| store.intern(key));
        for (place, id) in ids.iter().enumerate() {
            store.prepare(&mut shelf, *id, place as u64, &mut Vec::new());
        }
        for _ in 0..2 {
            let Some(Sent::Prepare(at)) = shelf.take_sent() else { panic!() };
            store.answered(&mut shelf, at, Some(true));
        }
        store.discard(&mut shelf, ids[1], &mut Vec::new());
        shelf.forgets(b"n"[..].into(), ids[2]);
        store.touch(&mut shelf, ids[0], |_| true);
        shelf.is_inherited = true;
        let mut fields = Fields::default();
        store.hand_out_shelf(&shelf, &mut fields);
        let bytes = planted_at("server.10", fields.into_bytes());
        let (mut next, known) = again(&store);
        let mut shelf = next.take_in_shelf(&bytes, |n| known.get(&n).copied()).unwrap();
        known.values().for_each(|id| next.drop(*id));
        assert_eq!((next.len(), shelf.len(), next.last_numbers()), (3, 2, (4, 0)));
        assert_eq!(next.oldest(&shelf), Some(known[&4]), "the order of use is kept");
        assert!(shelf.is_inherited);
        assert_eq!(next.get(known[&4]).unwrap().name().as_bytes(), b"PGBOUNCER_4");
        let Some(Sent::Prepare(at)) = shelf.take_sent() else { panic!() };
        next.answered(&mut shelf, at, Some(true));
        let Some(Sent::Discard(at)) = shelf.take_sent() else { panic!() };
        next.answered(&mut shelf, at, Some(false));
        let Some(Sent::Forget(name, statement)) = shelf.take_sent() else { panic!() };
        assert_eq!((&*name, statement), (&b"n"[..], known[&4]));
        next.drop(statement);
        assert_eq!((next.len(), shelf.len()), (2, 2));
        next.forget_shelf(shelf);
        assert!(next.is_empty());
    }

    #[test]
    fn a_shelf_with_an_unknown_statement_is_refused_and_nothing_of_it_left() {
        let (mut store, mut shelf) = (Statements::default(), Shelf::default());
        for key in KEYS {
            let id = store.intern(key);
            store.prepare(&mut shelf, id, 0, &mut Vec::new());
        }
        let mut fields = Fields::default();
        store.hand_out_shelf(&shelf, &mut fields);
        let bytes = fields.into_bytes();
        let (mut next, known) = again(&store);
        let of = |n| known.get(&n).copied().filter(|_| n != 1);
        assert!(next.take_in_shelf(&bytes, of).is_none());
        known.values().for_each(|id| next.drop(*id));
        assert!(next.is_empty() && next.objects().used == 0);
    }

    #[test]
    fn names_come_back_with_their_statements() {
        let mut store = Statements::default();
        let ids = KEYS.map(|key| store.intern(key));
        let mut names = Names::default();
        let server = ServerId::from_parts(3, 4);
        for (id, name) in ids.iter().zip([&b"a"[..], b"b\xff", b""]) {
            let named = Named { statement: *id, server: Some(server), place: 9 };
            names.map.insert(name.into(), named);
        }
        names.keep_unnamed(KEYS[1], 12);
        let mut fields = Fields::default();
        store.hand_out_names(&names, |id| (id == server).then_some(77), &mut fields);
        let bytes = planted_at("client.26", fields.into_bytes());
        let (mut next, known) = again(&store);
        let find = |n| known.get(&n).copied();
        let names = next.take_in_names(&bytes, find, |n| (n == 77).then_some(server));
        known.values().for_each(|id| next.drop(*id));
        assert_eq!((names.map.len(), names.number(), next.len()), (3, 12, 3));
        assert_eq!(names.unnamed(), Some(KEYS[1]));
        let named = &names.map[&b"b\xff"[..]];
        assert_eq!((named.server, named.place, named.statement), (Some(server), 9, known[&2]));
        assert_eq!(next.last_numbers(), (3, 12));
        next.forget_names(&names);
        assert!(next.is_empty());
    }
}
