//! The statements and portals of the model server, kept and lost as PostgreSQL does.

use super::Server;
use crate::dice::Dice;
use crate::speech::{self, Mark};
use crate::texts;
use pgturnstile::wire::write;

/// What the pooler sends for a DEALLOCATE that is its own business.
pub const FOR_DEALLOCATE: &str = "SELECT LIMIT 0";

/// What has been prepared.
#[derive(Clone)]
pub struct Statement {
    sql: String,
    /// The parameters' types, as Parse had them.
    types: Vec<u8>,
    /// What its rows carry: nothing if the text has a mark of its own.
    print: String,
}

/// A statement that has been bound.
pub struct Portal {
    statement: Statement,
    /// What replies carry.
    mark: Mark,
    /// The Bind's own, if it has one.
    asker: Mark,
}

/// True if the pooler has made up this name: clients use lower-case letters.
pub fn is_pooled(name: &str) -> bool {
    name.starts_with(|letter: char| letter.is_ascii_uppercase())
}

impl Server {
    /// Parse, Bind, Describe, Execute, Close.
    pub(super) fn extended(&mut self, tag: u8, body: &[u8], dice: &mut Dice) -> Result<(), String> {
        self.series = true;
        let (first, rest) = speech::text(body);
        match tag {
            b'P' => {
                let (sql, types) = speech::text(rest);
                self.parse(&first, &sql, types)
            }
            b'B' => {
                let (statement, values) = speech::text(rest);
                self.bind(&first, &statement, values)
            }
            b'D' => self.describe(body),
            b'E' => self.execute_portal(&first, dice),
            b'C' => {
                let (name, _) = speech::text(&body[1..]);
                if body[0] == b'S' {
                    self.statements.remove(&name);
                } else {
                    self.portals.remove(&name);
                }
                self.say(|out| write::packet(out, b'3', |_| {}));
                Ok(())
            }
            _ => Err(format!("unknown message {}", tag as char)),
        }
    }

    /// The statements that it has under names that the pooler has made up.
    pub fn pooled(&self) -> impl Iterator<Item = &str> {
        self.statements.keys().map(String::as_str).filter(|name| is_pooled(name))
    }

    /// A message is skipped. If it was to make room, there is none until the next Parse.
    pub(super) fn skipped(&mut self, tag: u8) {
        if tag == b'C' {
            self.allowance.limit_was(-1);
        }
    }

    fn parse(&mut self, name: &str, sql: &str, types: &[u8]) -> Result<(), String> {
        let mark = Mark::find(sql.as_bytes());
        let (expected, command) = speech::read_request(sql);
        match mark {
            Some(mark) => self.enter(mark, &expected)?,
            None if texts::is_shared(sql) => {}
            None => return Err(format!("HEART: Parse without a mark: {sql}")),
        }
        if name.is_empty() {
            self.statements.remove(name);
        }
        let print = match mark {
            Some(_) => String::new(),
            None => texts::print(sql, types),
        };
        let about = mark.map_or_else(|| print.clone(), |mark| mark.to_string());
        if self.refuses(command) {
            self.fail_with(b"25P02", &format!("aborted {about}"), true);
        } else if command == "PFAIL" {
            self.fail_with(b"42601", &format!("syntax {about}"), true);
        } else if let Some(has) = self.statements.get(name) {
            // The same again is how the pooler has a client told that its name is in use.
            if is_pooled(name) && (has.sql != sql || has.types != types) {
                return Err(format!("STATEMENTS: Parse of {name:?}, which the server has"));
            }
            self.fail_with(b"42P05", &format!("{name} exists {about}"), true);
        } else {
            self.pooled_parses += u64::from(is_pooled(name));
            let statement = Statement { sql: sql.to_owned(), types: types.to_vec(), print };
            self.statements.insert(name.to_owned(), statement);
            self.say(|out| write::packet(out, b'1', |_| {}));
        }
        Ok(())
    }

    /// In a failed transaction nothing is done but ending it.
    fn refuses(&self, command: &str) -> bool {
        self.status == b'E' && !matches!(command, "COMMIT" | "ROLLBACK")
    }

    fn bind(&mut self, portal: &str, name: &str, values: &[u8]) -> Result<(), String> {
        let value = Mark::find(values);
        let Some(statement) = self.statements.get(name).cloned() else {
            let mark = value.map_or_else(String::new, |mark| mark.to_string());
            self.fail_with(b"26000", &format!("no statement {name} {mark}"), true);
            return Ok(());
        };
        let own = Mark::find(statement.sql.as_bytes());
        let Some(mark) = own.or(value) else {
            return Err(format!("HEART: Bind of {name:?} without a mark"));
        };
        let asker = value.unwrap_or(mark);
        self.enter(asker, &[])?;
        let (_, command) = speech::read_request(&statement.sql);
        if self.refuses(command) {
            self.fail(mark, true, "aborted");
            return Ok(());
        }
        self.portals.insert(portal.to_owned(), Portal { statement, mark, asker });
        self.say(|out| write::packet(out, b'2', |_| {}));
        Ok(())
    }

    fn describe(&mut self, body: &[u8]) -> Result<(), String> {
        let (name, _) = speech::text(&body[1..]);
        let of_statement = body[0] == b'S';
        let (statement, mark) = match (of_statement, self.portals.get(&name)) {
            (true, _) => match self.statements.get(&name) {
                Some(statement) => (statement.clone(), Mark::find(statement.sql.as_bytes())),
                None => {
                    self.fail_with(b"26000", &format!("no statement {name}"), true);
                    return Ok(());
                }
            },
            (false, Some(portal)) => (portal.statement.clone(), Some(portal.mark)),
            (false, None) => return Err(format!("HEART: Describe of unknown portal {name:?}")),
        };
        let (_, command) = speech::read_request(&statement.sql);
        let has_rows = command.starts_with("SELECT");
        if has_rows && self.status == b'E' {
            self.fail_with(b"25P02", "aborted", true);
            return Ok(());
        }
        if of_statement {
            let types = &statement.types;
            self.say(|out| write::packet(out, b't', |out| out.extend_from_slice(types)));
        }
        match has_rows {
            true => {
                self.print = statement.print;
                self.columns(mark);
            }
            false => self.say(|out| write::packet(out, b'n', |_| {})),
        }
        Ok(())
    }

    fn execute_portal(&mut self, name: &str, dice: &mut Dice) -> Result<(), String> {
        let Some(portal) = self.portals.get(name) else {
            return Err(format!("HEART: Execute of unknown portal {name:?}"));
        };
        let (statement, mark, asker) = (portal.statement.clone(), portal.mark, portal.asker);
        self.enter(asker, &[])?;
        self.print = statement.print;
        let (_, command) = speech::read_request(&statement.sql);
        self.execute(mark, command, true, dice);
        Ok(())
    }

    /// DEALLOCATE as a simple query of a client's.
    pub(super) fn deallocate_simply(&mut self, text: &str) -> Result<(), String> {
        let name = text.trim_start_matches("DEALLOCATE ").trim_end_matches(';');
        if self.refuses("") {
            self.fail_with(b"25P02", "aborted", false);
        } else if text == FOR_DEALLOCATE {
            self.say(|out| {
                write::row_description(out, [].into_iter());
                write::command_complete(out, "SELECT 0");
            });
        } else {
            self.deallocate(name.trim_start_matches("PREPARE "), false);
        }
        self.misbehave_or_ready();
        Ok(())
    }

    pub(super) fn deallocate(&mut self, name: &str, extended: bool) {
        let tag = match name {
            "ALL" => {
                self.forget_statements();
                "DEALLOCATE ALL"
            }
            name => {
                let name = name.trim_matches('"');
                if self.statements.remove(name).is_none() {
                    let text = format!("no statement {name}");
                    return self.fail_with(b"26000", &text, extended);
                }
                "DEALLOCATE"
            }
        };
        self.say(|out| write::command_complete(out, tag));
    }

    /// The unnamed one stays.
    pub(super) fn forget_statements(&mut self) {
        self.statements.retain(|name, _| name.is_empty());
    }

    /// Fails with a code.
    pub(super) fn fail_with(&mut self, code: &[u8], text: &str, extended: bool) {
        self.say(|out| write::error(out, "ERROR", code, text.as_bytes()));
        if self.status == b'T' {
            self.status = b'E';
        }
        self.skip = extended;
    }
}
