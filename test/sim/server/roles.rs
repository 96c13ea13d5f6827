//! Primary or standby: what a model server is, and how it says so.

use super::{Server, Stage};
use crate::dice::Dice;
use pgturnstile::wire::write;

/// What a server is.
#[derive(Clone, Debug, Default)]
pub struct Role {
    /// The host that it runs at.
    pub host: String,
    /// It is a standby; once promoted, it never is one again.
    pub is_standby: bool,
    /// It was one.
    pub was_standby: bool,
    /// It does not report what it is, and has to be asked.
    pub is_old: bool,
    /// What it has said about that last.
    pub said: Option<bool>,
}

const PARAMETER: &str = "in_hot_standby";

fn word(on: bool) -> &'static str {
    match on {
        true => "on",
        false => "off",
    }
}

impl Server {
    /// Its parameters are as its role wants them.
    pub(super) fn take_role(&mut self) {
        match self.role.is_old {
            true => {
                self.defaults.remove(PARAMETER);
                self.params.remove(PARAMETER);
            }
            false => self.set_standby(self.role.is_standby),
        }
    }

    fn set_standby(&mut self, on: bool) {
        for params in [&mut self.defaults, &mut self.params, &mut self.before_transaction] {
            params.insert(PARAMETER.to_owned(), word(on).to_owned());
        }
        self.role.said = Some(on);
    }

    /// It tells of its promotion in front of the next ReadyForQuery, as PostgreSQL does.
    pub(super) fn report_role(&mut self) {
        let is_standby = self.role.is_standby;
        if !self.role.is_old && self.role.said == Some(!is_standby) {
            self.set_standby(is_standby);
            let value = word(is_standby).as_bytes();
            self.say(|out| write::parameter_status(out, PARAMETER.as_bytes(), value));
        }
    }

    /// Answers the pooler's question about its role; false if that is not the question.
    pub(super) fn tell_role(&mut self, text: &str) -> bool {
        let on = self.role.is_standby;
        let answer = match text {
            "SHOW transaction_read_only" => word(on),
            "SELECT pg_catalog.pg_is_in_recovery()" => {
                &word(on).replace("on", "t").replace("off", "f")
            }
            _ => return false,
        };
        self.role.said = Some(on);
        let kind = write::ColumnType { oid: 25, size: -1 };
        self.say(|out| {
            write::row_description(out, [("mode", kind, false)].into_iter());
            write::data_row(out, [Some(answer.as_bytes())].into_iter());
            write::command_complete(out, "SHOW");
        });
        true
    }

    /// Sends something that nobody asked for; `tracked` never is a parameter of clients.
    pub fn speak_up(&mut self, dice: &mut Dice) {
        if self.stage != Stage::Ready || self.hangs() {
            return;
        }
        self.chatty = true;
        let mut out = Vec::new();
        match dice.below(3) {
            0 => write::packet(&mut out, b'A', |out| out.extend_from_slice(b"\0\0\0\x07x\0\0")),
            1 => {
                self.excused = true;
                write::notice(&mut out, b"checkpoint");
            }
            _ => {
                self.excused = true;
                write::parameter_status(&mut out, b"is_superuser", b"on");
            }
        }
        self.line.borrow_mut().say(&out);
    }
}
