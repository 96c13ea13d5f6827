//! Console clients: what they have asked for, and what they wait for.

use super::super::ask::{Ask, Bind, Named};
use super::super::client::Access;
use super::super::console::{Console, Extended, Portal, Progress, Statement, Way};
use super::super::face::{Action, ClientId};
use super::super::fault::Fault;
use super::super::waits::{Wait, Waiter};
use super::super::Core;
use super::Known;
use crate::base::fields::{self, Fields};
use crate::base::Id;
use crate::tags;
use std::rc::Rc;

tags! {
    /// Fields of a console.
    CONSOLE_TAGS:
    1 ACCESS "what it may do: 1 SHOW, 2 everything",
    2 STATEMENT "a prepared statement; fields of what has a name",
    3 PORTAL "a portal; fields of what has a name",
    4 FAILED "there was an error: what comes before the next Sync is left out",
    5 ASKED "a request that has not been run; fields of a request",
    6 OWED "how many simple queries are not answered yet",
    7 HOLD "everything waits for the answer to a command that came by 1 Query, 2 Execute",
    8 STALLED "it is not read until all requests have been run",
    9 LEFT "it has had its share of a turn, and goes on in a later one",
    10 WAIT "what it waits for; fields of a wait",
}

tags! {
    /// Fields of a console's prepared statement or portal.
    NAMED_TAGS:
    1 NAME "its name",
    2 COMMAND "a command's word; a statement without any of 2 to 5 is empty",
    3 ARGUMENT "the command's argument",
    4 KEY "what is SET",
    5 VALUE "the value of that",
    6 OF_STATEMENT "of a portal: the name of the statement that it executes, unless there is no such name any more",
    7 BINARY "which columns are binary, a byte of 0 or 1 for each, or one for all",
    8 HAS_ROWS "it has been executed, and has a result",
    9 ROW "a packet of the result that has not been sent",
    10 IS_DONE "it is over",
}

tags! {
    /// Fields of a console's request.
    REQUEST_TAGS:
    1 ASK "1 Query, 2 Parse, 3 Bind, 4 Describe, 5 Execute, 6 Close, 7 Sync, 8 something that makes no sense",
    2 TEXT "the text of a query or statement; why it makes no sense",
    3 OF "the name of a statement",
    4 OF_PORTAL "the name of a portal",
    5 VALUES "Bind: how many values came with it",
    6 FORMATS "Bind: format codes of the result, two bytes each",
    7 MOST "Execute: so many rows at most",
}

tags! {
    /// Fields of what a console waits for.
    WAIT_TAGS:
    1 FOR "1 PAUSE, 2 PAUSE of a database, 3 WAIT_CLOSE",
    2 OF_DATABASE "the database, if it is about one",
}

/// Values of [`FOR`].
const PAUSE: u64 = 1;
const PAUSE_DATABASE: u64 = 2;
const CLOSE: u64 = 3;

/// The record makes no sense.
const UNREADABLE: &str = "online restart on the console";

impl Core {
    /// Writes the fields of a console.
    pub(super) fn hand_out_console(&self, id: ClientId, console: &Console, fields: &mut Fields) {
        let Console { access, extended, queue, owed, hold, stalled } = console;
        let Extended { statements, portals, failed } = extended;
        fields.number(ACCESS, if *access == Access::Admin { 2 } else { 1 });
        for (name, statement) in statements {
            fields.group(STATEMENT, |fields| {
                fields.put(NAME, name);
                hand_out_statement(statement, fields);
            });
        }
        for (name, portal) in portals {
            fields.group(PORTAL, |fields| {
                fields.put(NAME, name);
                hand_out_portal(portal, extended, fields);
            });
        }
        fields.flag(FAILED, *failed);
        for ask in queue {
            fields.group(ASKED, |fields| hand_out_ask(ask, fields));
        }
        fields.count(OWED, u64::from(*owed));
        match hold {
            None => {}
            Some(Way::Query) => fields.number(HOLD, 1),
            Some(Way::Execute) => fields.number(HOLD, 2),
        }
        fields.flag(STALLED, *stalled || self.stalled.contains(&id));
        fields.flag(LEFT, self.left_consoles.contains(&id));
        for Waiter { console: _, what } in self.waiters.iter().filter(|it| it.console == id) {
            fields.group(WAIT, |fields| self.hand_out_wait(*what, fields));
        }
    }

    fn hand_out_wait(&self, what: Wait, fields: &mut Fields) {
        let (number, database) = match what {
            Wait::Pause => (PAUSE, None),
            Wait::PauseDatabase(id) => (PAUSE_DATABASE, Some(id)),
            Wait::Close(id) => (CLOSE, id),
            // There is no handoff while that is in force.
            Wait::Suspend => return,
        };
        fields.number(FOR, number);
        if let Some(id) = database {
            // Of one that is gone, nothing is left to wait for.
            let name = self.databases.get(id).map_or(&b""[..], |it| it.name.as_bytes());
            fields.put(OF_DATABASE, name);
        }
    }

    /// Reads them: puts a `Console` into a client that is there already. With a fault it is closed.
    /// Called when all clients and servers are there.
    pub(super) fn take_in_console(
        &mut self,
        id: ClientId,
        fields: &[u8],
        _known: &Known,
    ) -> Result<(), Fault> {
        let mut access = None;
        let (mut left, mut waits) = (false, Vec::new());
        let mut console = Console::new(Access::Stats);
        for field in fields::read(fields) {
            match field.tag {
                ACCESS if field.number() == 2 => access = Some(Access::Admin),
                ACCESS => access = Some(Access::Stats),
                STATEMENT => {
                    let (name, statement) = statement(field.value);
                    console.extended.statements.insert(name, Rc::new(statement));
                }
                PORTAL => {
                    let (name, portal) = portal(field.value, &console.extended);
                    console.extended.portals.insert(name, portal);
                }
                FAILED => console.extended.failed = true,
                ASKED => console.queue.extend(ask(field.value)),
                OWED => console.owed = field.number_u32(),
                HOLD if field.number() == 2 => console.hold = Some(Way::Execute),
                HOLD => console.hold = Some(Way::Query),
                STALLED => console.stalled = true,
                LEFT => left = true,
                WAIT => waits.extend(self.wait_there(field.value)),
                _ => {}
            }
        }
        console.access = access.ok_or_else(|| Fault::formatted(UNREADABLE.into()))?;
        let Some(client) = self.clients.get_mut(id) else { return Ok(()) };
        let has_asked = !console.queue.is_empty();
        client.console = Some(Box::new(console));
        self.waiters.extend(waits.into_iter().map(|what| Waiter { console: id, what }));
        match left {
            true => self.left_consoles.push_back(id),
            // Whatever may be run is run.
            false if has_asked => self.actions.push_back(Action::Console(id)),
            false => {}
        }
        Ok(())
    }

    fn wait_there(&self, bytes: &[u8]) -> Option<Wait> {
        let (mut number, mut database) = (0, None);
        for field in fields::read(bytes) {
            match field.tag {
                FOR => number = field.number(),
                OF_DATABASE => {
                    let id = self.database_names.get(field.text().as_str()).copied();
                    database = Some(id.unwrap_or(Id::none()));
                }
                _ => {}
            }
        }
        match number {
            PAUSE => Some(Wait::Pause),
            PAUSE_DATABASE => Some(Wait::PauseDatabase(database?)),
            CLOSE => Some(Wait::Close(database)),
            _ => None,
        }
    }
}

fn hand_out_statement(statement: &Statement, fields: &mut Fields) {
    match statement {
        Statement::Empty => {}
        Statement::Command { name, argument } => {
            fields.put(COMMAND, name.as_bytes());
            fields.put(ARGUMENT, argument.as_bytes());
        }
        Statement::Set { key, value } => {
            fields.put(KEY, key.as_bytes());
            fields.put(VALUE, value.as_bytes());
        }
    }
}

fn hand_out_portal(portal: &Portal, extended: &Extended, fields: &mut Fields) {
    let Portal { statement, binary, progress } = portal;
    let mut named = extended.statements.iter();
    match named.find(|(_, other)| Rc::ptr_eq(other, statement)) {
        Some((name, _)) => fields.put(OF_STATEMENT, name),
        None => hand_out_statement(statement, fields),
    }
    let binary: Vec<u8> = binary.iter().map(|binary| u8::from(*binary)).collect();
    fields.put(BINARY, &binary);
    match progress {
        Progress::New => {}
        Progress::Rows(rows) => {
            fields.flag(HAS_ROWS, true);
            rows.iter().for_each(|row| fields.put(ROW, row));
        }
        Progress::Done => fields.flag(IS_DONE, true),
    }
}

/// A statement and its name.
fn statement(bytes: &[u8]) -> (Vec<u8>, Statement) {
    let (mut of, mut statement) = (Vec::new(), Statement::Empty);
    for field in fields::read(bytes) {
        match (field.tag, &mut statement) {
            (NAME, _) => of = field.value.to_vec(),
            (COMMAND, _) => {
                let (name, argument) = (field.text(), String::new());
                statement = Statement::Command { name, argument };
            }
            (ARGUMENT, Statement::Command { argument, .. }) => *argument = field.text(),
            (KEY, _) => statement = Statement::Set { key: field.text(), value: String::new() },
            (VALUE, Statement::Set { value, .. }) => *value = field.text(),
            _ => {}
        }
    }
    (of, statement)
}

/// A portal and its name; its statement has been read before.
fn portal(bytes: &[u8], extended: &Extended) -> (Vec<u8>, Portal) {
    let (name, own) = statement(bytes);
    let mut portal =
        Portal { statement: Rc::new(own), binary: Vec::new(), progress: Progress::New };
    for field in fields::read(bytes) {
        match (field.tag, &mut portal.progress) {
            (OF_STATEMENT, _) => {
                if let Some(statement) = extended.statements.get(field.value) {
                    portal.statement = Rc::clone(statement);
                }
            }
            (BINARY, _) => portal.binary = field.value.iter().map(|byte| *byte != 0).collect(),
            (HAS_ROWS, _) => portal.progress = Progress::Rows([].into()),
            (ROW, Progress::Rows(rows)) => rows.push_back(field.value.to_vec()),
            (IS_DONE, _) => portal.progress = Progress::Done,
            _ => {}
        }
    }
    (name, portal)
}

fn hand_out_ask(ask: &Ask, fields: &mut Fields) {
    let number = match ask {
        Ask::Query(text) => {
            fields.put(TEXT, text);
            1
        }
        Ask::Parse { name, text } => {
            fields.put(OF, name);
            fields.put(TEXT, text);
            2
        }
        Ask::Bind(Bind { portal, statement, values, formats }) => {
            fields.put(OF_PORTAL, portal);
            fields.put(OF, statement);
            fields.count(VALUES, u64::from(*values));
            let codes: Vec<u8> = formats.iter().flat_map(|code| code.to_be_bytes()).collect();
            fields.put(FORMATS, &codes);
            3
        }
        Ask::Describe(named) => {
            hand_out_named(named, fields);
            4
        }
        Ask::Execute { portal, most } => {
            fields.put(OF_PORTAL, portal);
            if let Some(most) = most {
                fields.number(MOST, u64::try_from(*most).unwrap_or(u64::MAX));
            }
            5
        }
        Ask::Close(named) => {
            hand_out_named(named, fields);
            6
        }
        Ask::Sync => 7,
        Ask::Malformed(text) => {
            fields.put(TEXT, text.as_bytes());
            8
        }
    };
    fields.number(ASK, number);
}

fn hand_out_named(named: &Named, fields: &mut Fields) {
    match named {
        Named::Statement(name) => fields.put(OF, name),
        Named::Portal(name) => fields.put(OF_PORTAL, name),
    }
}

/// A request; `None` for one that is not known here.
fn ask(bytes: &[u8]) -> Option<Ask> {
    let mut number = 0;
    let (mut text, mut of, mut of_portal) = (Vec::new(), None, None);
    let (mut values, mut formats, mut most) = (0, Vec::new(), None);
    for field in fields::read(bytes) {
        match field.tag {
            ASK => number = field.number(),
            TEXT => text = field.value.to_vec(),
            OF => of = Some(field.value.to_vec()),
            OF_PORTAL => of_portal = Some(field.value.to_vec()),
            VALUES => values = u16::try_from(field.number()).unwrap_or(u16::MAX),
            FORMATS => {
                let codes = field.value.chunks_exact(2).filter_map(|code| code.try_into().ok());
                formats = codes.map(u16::from_be_bytes).collect();
            }
            MOST => most = Some(usize::try_from(field.number()).unwrap_or(usize::MAX)),
            _ => {}
        }
    }
    let named = |of: Option<Vec<u8>>, of_portal: Option<Vec<u8>>| match of {
        Some(name) => Some(Named::Statement(name)),
        None => of_portal.map(Named::Portal),
    };
    Some(match number {
        1 => Ask::Query(text),
        2 => Ask::Parse { name: of?, text },
        3 => Ask::Bind(Bind { portal: of_portal?, statement: of?, values, formats }),
        4 => Ask::Describe(named(of, of_portal)?),
        5 => Ask::Execute { portal: of_portal?, most },
        6 => Ask::Close(named(of, of_portal)?),
        7 => Ask::Sync,
        8 => Ask::Malformed(String::from_utf8_lossy(&text).into_owned()),
        _ => return None,
    })
}
