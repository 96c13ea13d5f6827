//! What statements do at the model server: rows, transactions, COPY.

use super::{Copy, Running, Server};
use crate::dice::Dice;
use crate::speech::Mark;
use pgturnstile::wire::write;
use std::collections::BTreeMap;

impl Server {
    pub(super) fn columns(&mut self, mark: Option<Mark>) {
        let kind = write::ColumnType { oid: 25, size: -1 };
        let name = mark.map_or_else(String::new, |mark| mark.to_string()) + &self.print;
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
                    self.columns(Some(mark));
                }
                let mut text = format!("{mark}{}", self.print);
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
                    self.columns(Some(mark));
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
                let text = format!("{mark}{}", self.print);
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
            "DEALLOCATE" => self.deallocate(argument, extended),
            _ => {
                if command == "DISCARD ALL" {
                    self.utility(command);
                    self.say(|out| write::command_complete(out, command));
                } else if self.utility(command) {
                    self.complete(mark);
                } else {
                    self.fail(mark, extended, "invalid");
                }
            }
        }
    }

    /// SET and DISCARD; false if that fails.
    pub(super) fn utility(&mut self, statement: &str) -> bool {
        if statement == "DISCARD ALL" {
            self.touched = None;
            self.forget_statements();
            let defaults = self.defaults.clone();
            self.change_params(defaults);
        } else if statement == "TOUCH" {
            self.touched = self.holder;
        } else if let Some((name, value)) =
            statement.strip_prefix("SET ").and_then(|rest| rest.split_once('='))
        {
            let value = value.trim_matches('\'');
            if value == "bad" {
                return false;
            }
            if let Some(slot) = self.param_slot(name) {
                let mut params = self.params.clone();
                params.insert(slot, value.to_owned());
                self.change_params(params);
            }
        }
        true
    }

    fn change_params(&mut self, params: BTreeMap<String, String>) {
        let old = std::mem::replace(&mut self.params, params.clone());
        for (name, value) in params {
            if old.get(&name) != Some(&value) {
                self.say(|out| write::parameter_status(out, name.as_bytes(), value.as_bytes()));
            }
        }
    }

    pub(super) fn fail(&mut self, mark: Mark, extended: bool, why: &str) {
        self.fail_with(b"22000", &format!("{why} {mark}"), extended);
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

    /// True if somebody has run another client's COPY unawares.
    pub(super) fn is_strays_copy(&self) -> bool {
        let copy = self.copy.as_ref();
        copy.is_some_and(|copy| self.holder.is_some_and(|holder| copy.mark.client != holder))
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
