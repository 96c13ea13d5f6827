//! Statements, the extended protocol and COPY of the model server.

use super::{Copy, Running, Server};
use crate::dice::Dice;
use crate::speech::{self, Mark};
use pgturnstile::wire::write;

impl Server {
    /// Parse, Bind, Describe, Execute, Close.
    pub(super) fn extended(&mut self, tag: u8, body: &[u8], dice: &mut Dice) -> Result<(), String> {
        let (first, rest) = speech::text(body);
        match tag {
            b'P' => {
                let (sql, _) = speech::text(rest);
                self.parse(&first, &sql)
            }
            b'B' => {
                let (statement, _) = speech::text(rest);
                self.bind(&first, &statement)
            }
            b'D' => self.describe(body),
            b'E' => self.execute_portal(&first, dice),
            b'C' => {
                self.in_series()?;
                let (name, _) = speech::text(&body[1..]);
                self.statements.remove(&name);
                self.say(|out| write::packet(out, b'3', |_| {}));
                Ok(())
            }
            _ => Err(format!("unknown message {}", tag as char)),
        }
    }

    /// A message that carries no mark must be part of a series, or begin one of its own.
    fn in_series(&mut self) -> Result<(), String> {
        self.series = true;
        Ok(())
    }

    fn parse(&mut self, name: &str, sql: &str) -> Result<(), String> {
        let Some(mark) = Mark::find(sql.as_bytes()) else {
            return Err(format!("HEART: Parse without a mark: {sql}"));
        };
        let (expected, command) = speech::read_request(sql);
        self.enter(mark, &expected)?;
        self.series = true;
        let ends = matches!(command, "COMMIT" | "ROLLBACK");
        if self.status == b'E' && !ends {
            self.fail(mark, true, "aborted");
        } else if command == "PFAIL" {
            self.fail(mark, true, "syntax");
        } else {
            self.statements.insert(name.to_owned(), sql.to_owned());
            self.say(|out| write::packet(out, b'1', |_| {}));
        }
        Ok(())
    }

    fn bind(&mut self, portal: &str, statement: &str) -> Result<(), String> {
        self.in_series()?;
        let Some(sql) = self.statements.get(statement).cloned() else {
            return Err(format!("HEART: Bind of unknown statement {statement:?}"));
        };
        if let Some(mark) = Mark::find(sql.as_bytes()) {
            self.enter(mark, &[])?;
        }
        self.portals.insert(portal.to_owned(), sql);
        self.say(|out| write::packet(out, b'2', |_| {}));
        Ok(())
    }

    fn describe(&mut self, body: &[u8]) -> Result<(), String> {
        self.in_series()?;
        let (name, _) = speech::text(&body[1..]);
        let table = match body[0] {
            b'S' => &self.statements,
            _ => &self.portals,
        };
        let Some(sql) = table.get(&name).cloned() else {
            return Err(format!("HEART: Describe of unknown {name:?}"));
        };
        let mark = Mark::find(sql.as_bytes());
        let (_, command) = speech::read_request(&sql);
        if body[0] == b'S' {
            self.say(|out| write::packet(out, b't', |out| out.extend_from_slice(&[0, 0])));
        }
        match mark.filter(|_| command.starts_with("SELECT")) {
            Some(mark) => self.columns(mark),
            None => self.say(|out| write::packet(out, b'n', |_| {})),
        }
        Ok(())
    }

    fn execute_portal(&mut self, portal: &str, dice: &mut Dice) -> Result<(), String> {
        self.in_series()?;
        let Some(sql) = self.portals.get(portal).cloned() else {
            return Err(format!("HEART: Execute of unknown portal {portal:?}"));
        };
        let Some(mark) = Mark::find(sql.as_bytes()) else {
            return Err("HEART: Execute without a mark".into());
        };
        self.enter(mark, &[])?;
        let (_, command) = speech::read_request(&sql);
        self.execute(mark, command, true, dice);
        Ok(())
    }

    fn columns(&mut self, mark: Mark) {
        let kind = write::ColumnType { oid: 25, size: -1 };
        let name = mark.to_string();
        self.say(|out| write::row_description(out, [(name.as_str(), kind, false)].into_iter()));
    }

    /// Runs a statement of a client. ReadyForQuery is the caller's business.
    pub(super) fn execute(&mut self, mark: Mark, command: &str, extended: bool, dice: &mut Dice) {
        let (word, argument) = command.split_once(' ').unwrap_or((command, ""));
        let number: u32 = argument.parse().unwrap_or(1);
        if self.status == b'E' && !matches!(word, "COMMIT" | "ROLLBACK") {
            return self.fail(mark, extended, "aborted");
        }
        match word {
            "FAIL" | "PFAIL" => self.fail(mark, extended, "failed"),
            "" => self.say(|out| write::packet(out, b'I', |_| {})),
            "SELECT" | "MULTI" | "SLOW" => {
                if !extended {
                    self.columns(mark);
                }
                let mut text = mark.to_string();
                text.extend(std::iter::repeat_n('x', dice.pick(&[0, 0, 50, 400])));
                for _ in 0..number {
                    self.say(|out| write::data_row(out, [Some(text.as_bytes())].into_iter()));
                    if dice.chance(5) {
                        self.say(|out| write::notice(out, text.as_bytes()));
                    }
                }
                if word == "SLOW" {
                    let command = command.to_owned();
                    self.running = Some(Running { mark, extended, command });
                    return;
                }
                if word == "MULTI" && !extended {
                    self.complete(mark);
                    self.columns(mark);
                }
                self.complete(mark);
            }
            "COPYIN" => {
                self.say(|out| write::packet(out, b'G', |out| out.extend_from_slice(&[0, 0, 0])));
                self.copy = Some(Copy {
                    mark,
                    extended,
                    fails_at: if number == 9 { 1 + dice.below(3) as u32 } else { 0 },
                });
            }
            "COPYOUT" => {
                let text = mark.to_string();
                self.say(|out| {
                    write::packet(out, b'H', |out| out.extend_from_slice(&[0, 0, 0]));
                    for _ in 0..number {
                        write::packet(out, b'd', |out| out.extend_from_slice(text.as_bytes()));
                    }
                    write::packet(out, b'c', |_| {});
                });
                self.complete(mark);
            }
            "BEGIN" | "COMMIT" | "ROLLBACK" => {
                self.transaction(word);
                self.complete(mark);
            }
            _ => {
                if self.utility(command) {
                    self.complete(mark);
                } else {
                    self.fail(mark, extended, "invalid");
                }
            }
        }
    }

    fn complete(&mut self, mark: Mark) {
        self.say(|out| write::command_complete(out, &mark.to_string()));
    }

    fn transaction(&mut self, word: &str) {
        match (word, self.status) {
            ("BEGIN", b'I') => {
                self.before_transaction = self.params.clone();
                self.status = b'T';
            }
            ("BEGIN", _) => {}
            (_, b'I') => {}
            (_, status) => {
                self.status = b'I';
                if word == "ROLLBACK" || status == b'E' {
                    let params = self.before_transaction.clone();
                    self.change_params(params);
                }
            }
        }
    }

    /// The end of a query that took long.
    pub(super) fn finish(&mut self, running: &Running) {
        debug_assert!(running.command.starts_with("SLOW"));
        self.complete(running.mark);
        if !running.extended {
            self.misbehave_or_ready();
        }
    }

    /// CopyData, CopyDone, CopyFail.
    pub(super) fn copy_message(&mut self, tag: u8, body: &[u8]) -> Result<(), String> {
        let from = Mark::find(body);
        if let Some(from) = from {
            let holder = self.holder.filter(|_| !self.is_free());
            if holder.is_some_and(|holder| holder != from.client) {
                return Err(format!(
                    "HEART: COPY data of {from} on a server where client {holder:?} has open work"
                ));
            }
        }
        let Some(copy) = self.copy.as_mut() else {
            return Ok(());
        };
        let (mark, extended) = (copy.mark, copy.extended);
        if from.is_some_and(|from| from != mark) {
            return Err(format!("HEART: COPY data of {from:?} in the COPY of {mark}"));
        }
        let fails = copy.fails_at == 1 || tag == b'f' || tag == b'c' && copy.fails_at > 0;
        copy.fails_at = copy.fails_at.saturating_sub(1);
        if !fails && tag == b'd' {
            return Ok(());
        }
        self.copy = None;
        if fails {
            self.fail(mark, extended, "copy failed");
        } else {
            self.complete(mark);
        }
        if !extended {
            self.misbehave_or_ready();
        }
        Ok(())
    }
}
