//! The extended protocol on the console: prepared statements and portals without parameters
//! (protocol chapter 55.2.3). Errors, and what ends when, are PostgreSQL's.

use super::{find, grammar, Answer, Argument, Call, Refusal};
use crate::base::text::cut;
use crate::core::ask::{Ask, Bind, Named};
use crate::core::console::{Portal, Progress, Statement};
use crate::core::{ClientId, Core};
use crate::wire::read::lossy;
use crate::wire::write;
use std::collections::VecDeque;
use std::mem;
use std::rc::Rc;

/// A console may have so many statements and portals together; the unnamed ones always find room.
const NAMED_MAX: usize = 1000;
/// Their names may be so long, in bytes; PostgreSQL cuts longer ones.
const NAME_MAX: usize = 63;
/// So many bytes of rows may be kept for a console's portals that were executed with a limit: SHOW
/// SOCKETS with 10,000 clients has less than 3 MB.
const KEPT_MAX: usize = 16 * 1024 * 1024;

/// An error.
struct Failure {
    sqlstate: &'static [u8; 5],
    text: Vec<u8>,
}

type Done = Result<(), Failure>;

fn failure(sqlstate: &'static [u8; 5], text: impl Into<Vec<u8>>) -> Failure {
    Failure { sqlstate, text: text.into() }
}

impl From<Refusal> for Failure {
    /// For statements that have been parsed: their commands exist.
    fn from(refusal: Refusal) -> Failure {
        failure(b"08P01", refusal.text(b""))
    }
}

/// Does what was asked for by a packet of the extended protocol, and answers.
pub(super) fn run(call: &mut Call<'_>, ask: Ask) {
    let mut reply = Vec::new();
    let out = &mut reply;
    let done = match ask {
        Ask::Query(text) => return call.query(&text),
        Ask::Parse { name, text } => call.parse(name, &text, out),
        Ask::Bind(bind) => call.bind(bind, out),
        Ask::Describe(named) => call.describe(&named, out),
        Ask::Execute { portal, most } => call.execute(&portal, most, out),
        Ask::Close(named) => call.close(named, out),
        Ask::Sync => call.sync(out),
        Ask::Malformed(text) => Err(failure(b"08P01", text)),
    };
    if let Err(Failure { sqlstate, text }) = done {
        fail(call.core, call.id);
        reply.extend(call.refuse(sqlstate, &text).unwrap_or_default());
    }
    if !reply.is_empty() {
        call.core.answer_console(call.id, reply);
    }
}

/// After an error nothing is done until Sync.
pub(super) fn fail(core: &mut Core, id: ClientId) {
    if let Some(console) = core.console_mut(id) {
        console.extended.failed = true;
    }
}

/// A simple query ends what has no name, and like Sync all portals.
pub(super) fn end_unnamed(core: &mut Core, id: ClientId) {
    if let Some(console) = core.console_mut(id) {
        console.extended.statements.remove(&[][..]);
        console.extended.portals.clear();
    }
}

/// A name as errors show it.
fn shown(name: &[u8]) -> String {
    cut(&lossy(name), NAME_MAX).to_owned()
}

fn no_portal(name: &[u8]) -> Failure {
    failure(b"34000", format!("portal \"{}\" does not exist", shown(name)))
}

impl Call<'_> {
    fn parse(&mut self, name: Vec<u8>, text: &[u8], out: &mut Vec<u8>) -> Done {
        let Some(console) = self.core.console_mut(self.id) else { return Ok(()) };
        let named = &mut console.extended;
        if name.is_empty() {
            named.statements.remove(&name);
        } else if named.statements.contains_key(&name) {
            let text = format!("prepared statement \"{}\" already exists", shown(&name));
            return Err(failure(b"42P05", text));
        }
        check_name(&name, named.statements.len() + named.portals.len())?;
        let statement = match grammar::is_empty(text) {
            true => Statement::Empty,
            false => existing(text).map_err(|refusal| failure(b"08P01", refusal.text(text)))?,
        };
        named.statements.insert(name, Rc::new(statement));
        write::bare(out, b'1');
        Ok(())
    }

    fn statement(&mut self, name: &[u8]) -> Result<Rc<Statement>, Failure> {
        let console = self.core.console_mut(self.id);
        console.and_then(|console| console.extended.statements.get(name).cloned()).ok_or_else(
            || {
                let text = match name {
                    [] => "unnamed prepared statement does not exist".to_owned(),
                    _ => format!("prepared statement \"{}\" does not exist", shown(name)),
                };
                failure(b"26000", text)
            },
        )
    }

    fn portal(&mut self, name: &[u8]) -> Result<&mut Portal, Failure> {
        let console = self.core.console_mut(self.id);
        let portal = console.and_then(|console| console.extended.portals.get_mut(name));
        portal.ok_or_else(|| no_portal(name))
    }

    fn bind(&mut self, bind: Bind, out: &mut Vec<u8>) -> Done {
        let statement = self.statement(&bind.statement)?;
        if bind.values > 0 {
            return Err(failure(b"08P01", "the console takes no parameters"));
        }
        let Some(console) = self.core.console_mut(self.id) else { return Ok(()) };
        let named = &console.extended;
        if !bind.portal.is_empty() && named.portals.contains_key(&bind.portal) {
            let text = format!("cursor \"{}\" already exists", shown(&bind.portal));
            return Err(failure(b"42P03", text));
        }
        check_name(&bind.portal, named.statements.len() + named.portals.len())?;
        let binary = self.binary(&statement, &bind.formats)?;
        let portal = Portal { statement, binary, progress: Progress::New };
        if let Some(console) = self.core.console_mut(self.id) {
            console.extended.portals.insert(bind.portal, portal);
        }
        write::bare(out, b'2');
        Ok(())
    }

    /// Which columns of a result are binary, from Bind's format codes.
    fn binary(&mut self, statement: &Statement, codes: &[u16]) -> Result<Vec<bool>, Failure> {
        if let Some(code) = codes.iter().find(|code| **code > 1) {
            let code = *code as i16;
            return Err(failure(b"22023", format!("unsupported format code: {code}")));
        }
        if codes.len() > 1 {
            // What is refused has no columns either; that is told when it is executed.
            let width = match is_show(statement).then(|| self.perform(statement)) {
                Some(Ok(Answer::Rows(table) | Answer::Handed(table, _))) => table.width(),
                _ => return Ok(Vec::new()),
            };
            if width != codes.len() {
                let text = format!(
                    "bind message has {} result formats but query has {width} columns",
                    codes.len()
                );
                return Err(failure(b"08P01", text));
            }
        }
        Ok(codes.iter().map(|code| *code == 1).collect())
    }

    fn describe(&mut self, named: &Named, out: &mut Vec<u8>) -> Done {
        let (statement, binary) = match named {
            Named::Statement(name) => {
                let statement = self.statement(name)?;
                write::no_parameters(out);
                (statement, Vec::new())
            }
            Named::Portal(name) => {
                let portal = self.portal(name)?;
                (Rc::clone(&portal.statement), portal.binary.clone())
            }
        };
        if is_show(&statement) {
            match self.perform(&statement) {
                Ok(Answer::Rows(table) | Answer::Handed(table, _)) => {
                    table.describe(out, &binary);
                    return Ok(());
                }
                Ok(_) => {}
                Err(refusal) => {
                    out.clear();
                    return Err(refusal.into());
                }
            }
        }
        write::bare(out, b'n');
        Ok(())
    }

    fn execute(&mut self, name: &[u8], most: Option<usize>, out: &mut Vec<u8>) -> Done {
        let done = self.execute_portal(name, most, out);
        if !matches!(done, Ok(false)) {
            self.core.answered(self.id);
        }
        done.map(|_| ())
    }

    /// False if the answer comes later.
    fn execute_portal(
        &mut self,
        name: &[u8],
        most: Option<usize>,
        out: &mut Vec<u8>,
    ) -> Result<bool, Failure> {
        let portal = self.portal(name)?;
        let statement = Rc::clone(&portal.statement);
        if *statement == Statement::Empty {
            write::bare(out, b'I');
            return Ok(true);
        }
        let mut rows = match mem::replace(&mut portal.progress, Progress::Done) {
            Progress::Rows(rows) => rows,
            Progress::Done => {
                let text = format!("portal \"{}\" cannot be run", shown(name));
                return Err(failure(b"55000", text));
            }
            Progress::New => {
                let binary = mem::take(&mut portal.binary);
                let answer = self.perform(&statement)?;
                // The descriptors of SHOW FDS go with the answer to a Query only.
                let (Answer::Rows(table) | Answer::Handed(table, _)) = answer else {
                    return Ok(answer.write(out));
                };
                let rows = table.rows(&binary).collect();
                self.portal(name)?.binary = binary;
                rows
            }
        };
        let count = most.unwrap_or(usize::MAX).min(rows.len());
        out.extend(rows.drain(..count).flatten());
        if most == Some(count) {
            write::bare(out, b's');
        } else {
            write::command_complete(out, "SHOW");
        }
        self.keep_rows(name, rows)?;
        Ok(true)
    }

    /// Keeps what is left of a result for the next Execute.
    fn keep_rows(&mut self, name: &[u8], rows: VecDeque<Vec<u8>>) -> Done {
        let Some(console) = self.core.console_mut(self.id) else { return Ok(()) };
        let portals = &mut console.extended.portals;
        let Some(portal) = portals.get_mut(name) else { return Ok(()) };
        portal.progress = Progress::Rows(rows);
        let kept: usize = portals.values().map(kept).sum();
        match kept > KEPT_MAX {
            true => Err(failure(b"53400", "too many rows of open portals")),
            false => Ok(()),
        }
    }

    fn close(&mut self, named: Named, out: &mut Vec<u8>) -> Done {
        let Some(console) = self.core.console_mut(self.id) else { return Ok(()) };
        let all = &mut console.extended;
        match named {
            Named::Portal(name) => {
                all.portals.remove(&name);
            }
            Named::Statement(name) => {
                if let Some(closed) = all.statements.remove(&name) {
                    all.portals.retain(|_, portal| !Rc::ptr_eq(&portal.statement, &closed));
                }
            }
        }
        write::bare(out, b'3');
        Ok(())
    }

    fn sync(&mut self, out: &mut Vec<u8>) -> Done {
        if let Some(console) = self.core.console_mut(self.id) {
            console.extended.portals.clear();
            console.extended.failed = false;
        }
        write::ready(out, b'I');
        Ok(())
    }
}

fn check_name(name: &[u8], count: usize) -> Done {
    if name.len() > NAME_MAX {
        let text = format!("name \"{}...\" is too long", shown(name));
        return Err(failure(b"42622", text));
    }
    if !name.is_empty() && count >= NAMED_MAX {
        return Err(failure(b"53400", "too many prepared statements and portals"));
    }
    Ok(())
}

/// Reads a statement whose command exists.
fn existing(text: &[u8]) -> Result<Statement, Refusal> {
    let statement = grammar::parse(text)?;
    match &statement {
        Statement::Command { name, argument } if find(name, argument).is_none() => {
            Err(Refusal::Invalid)
        }
        _ => Ok(statement),
    }
}

/// True for what may have a result. It can be run only to see which.
fn is_show(statement: &Statement) -> bool {
    match statement {
        Statement::Command { name, argument } => {
            find(name, argument).is_some_and(|command| matches!(command.argument, Argument::Topic))
        }
        Statement::Empty | Statement::Set { .. } => false,
    }
}

fn kept(portal: &Portal) -> usize {
    match &portal.progress {
        Progress::Rows(rows) => rows.iter().map(Vec::len).sum(),
        Progress::New | Progress::Done => 0,
    }
}
