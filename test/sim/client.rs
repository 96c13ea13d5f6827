//! A model of a client: logs in, asks, and checks that every reply is the one to its own request,
//! in order, with none missing.

use crate::auth_query::SECRET_MARK;
use crate::line::Line;
use crate::names::{Names, Op, Wrong};
use crate::speech::{self, Mark};
use crate::texts::Text;
use pgturnstile::core::ClientId;
use pgturnstile::wire::read::ErrorFields;
use pgturnstile::wire::write;
use std::collections::{BTreeMap, VecDeque};

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// StartupMessage is sent, ReadyForQuery has not come.
    Login,
    /// Logged in.
    Ready,
    /// It carries a cancel request, or sends nonsense: gets no replies.
    Mute,
    /// It has left by itself.
    Left,
    /// The pooler has closed its connection.
    Closed,
}

/// A reply that a client waits for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected {
    /// The message's letter.
    pub tag: u8,
    /// The request's number.
    pub number: u32,
    /// A COPY from the client, and whether its data have been sent with the request.
    pub copy: Option<bool>,
    /// A Sync between a COPY and its data: ignored if the COPY begins.
    pub before_data: bool,
    /// The statement that it is about.
    pub text: Option<Text>,
    /// It may be about a statement that does not exist.
    pub may_miss: bool,
    /// It was said behind a request that forgets all names, before that was answered.
    pub behind_clear: bool,
    /// What it does to the client's names.
    pub op: Op,
    /// It is about a name in a way that can't be done.
    pub wrong: Option<Wrong>,
}

/// A COPY whose data the client has to send now.
#[derive(Clone, Copy, Debug)]
pub struct Copying {
    /// The request's number.
    pub number: u32,
    /// Begun with Execute: a Sync ends it.
    pub extended: bool,
}

/// One client.
pub struct Client {
    /// Its number, part of its marks.
    pub number: u32,
    /// Its key in the core.
    pub id: ClientId,
    /// Its connection.
    pub line: Line,
    /// How far it has come.
    pub phase: Phase,
    /// Name of its database.
    pub database: String,
    /// Who it says that it is, and its password.
    pub user: String,
    pub password: String,
    /// Replies to come.
    pub expected: VecDeque<Expected>,
    /// Status of the last ReadyForQuery.
    pub status: u8,
    /// COPY data that it has to send.
    pub copying: Option<Copying>,
    /// Messages of the extended protocol without their Sync.
    pub unsynced: bool,
    /// A console's command that it has prepared and not executed.
    pub prepared: Option<String>,
    /// Number of the last request.
    pub last: u32,
    /// Its cancel key.
    pub key: Option<u64>,
    /// Parameters that the server reported.
    pub params: BTreeMap<String, String>,
    /// What the last FATAL said.
    pub told: Option<String>,
    /// What it does not send at once: the rest of a packet cut in two.
    pub later: Vec<u8>,
    /// Reads rarely.
    pub slow: bool,
    /// A request that changes parameters is on its way.
    pub unsure: bool,
    /// One byte that answers an SSLRequest is expected.
    pub asked_for_tls: bool,
    /// It wants no parameters of its own when it comes.
    pub is_plain: bool,
    /// It may expect its IntervalStyle to be looked after, as of the last change of that.
    pub styles: Option<u32>,
    /// Its prepared statements.
    pub names: Names,
    /// How many texts are prepared in this run.
    pub texts: usize,
    /// What is being answered has failed: nothing comes before ReadyForQuery.
    pub failed: bool,
    inbox: Vec<u8>,
}

impl Client {
    /// A client that has just connected.
    pub fn new(number: u32, id: ClientId, line: Line, database: &str) -> Client {
        Client {
            number,
            id,
            line,
            phase: Phase::Login,
            database: database.to_owned(),
            user: String::new(),
            password: String::new(),
            expected: VecDeque::new(),
            status: b'I',
            copying: None,
            unsynced: false,
            prepared: None,
            last: 0,
            key: None,
            params: BTreeMap::new(),
            told: None,
            later: Vec::new(),
            slow: false,
            unsure: false,
            asked_for_tls: false,
            is_plain: false,
            styles: None,
            names: Names::default(),
            texts: 1,
            failed: false,
            inbox: Vec::new(),
        }
    }

    /// True if it is neither gone nor closed.
    pub fn lives(&self) -> bool {
        !matches!(self.phase, Phase::Left | Phase::Closed)
    }

    /// True if it waits for nothing and has nothing half said.
    pub fn is_quiet(&self) -> bool {
        self.expected.is_empty()
            && self.copying.is_none()
            && !self.unsynced
            && self.later.is_empty()
    }

    /// True if it is logged in, and nothing is on its way between it and the pooler.
    pub fn is_settled(&self) -> bool {
        let line = self.line.borrow();
        self.phase == Phase::Ready && self.is_quiet() && !line.stirs() && line.down.is_empty()
    }

    /// The mark of its next request.
    pub fn next_mark(&mut self) -> Mark {
        self.last += 1;
        Mark { client: self.number, number: self.last }
    }

    /// Waits for the reply to a message.
    pub fn expect(&mut self, tag: u8, number: u32) {
        self.expected.push_back(Expected { tag, number, ..Expected::default() });
    }

    /// Reads what has come. `Err` is a reply that is not its own, or not in order.
    pub fn hear(&mut self) -> Result<(), String> {
        let (bytes, ended) = {
            let mut line = self.line.borrow_mut();
            (line.hear(), line.ended)
        };
        if !self.lives() {
            return Ok(());
        }
        self.inbox.extend(bytes);
        if self.asked_for_tls && !self.inbox.is_empty() {
            self.asked_for_tls = false;
            let answer = self.inbox.remove(0);
            if answer != b'N' && answer != b'E' {
                return Err(format!("answer {answer} to SSLRequest"));
            }
        }
        while let Some((tag, body)) = speech::take_packet(&mut self.inbox) {
            self.packet(tag, &body)
                .map_err(|text| format!("REPLIES: client {}: {text}", self.number))?;
        }
        if ended {
            self.phase = Phase::Closed;
            self.line.borrow_mut().finish();
        }
        Ok(())
    }

    /// Leaves; what it has sent still arrives unless `torn`.
    pub fn leave(&mut self, torn: bool) {
        self.phase = Phase::Left;
        let mut line = self.line.borrow_mut();
        if torn {
            line.tear();
        } else {
            line.finish();
        }
    }

    fn packet(&mut self, tag: u8, body: &[u8]) -> Result<(), String> {
        let mark = Mark::find(body);
        let stray = mark.filter(|mark| mark.client != self.number && !self.runs_anything());
        if let Some(mark) = stray {
            return Err(format!("got '{}' of another client: {mark}", tag as char));
        }
        if body.windows(SECRET_MARK.len()).any(|bytes| bytes == SECRET_MARK) {
            return Err("LOOK-UPS: it is sent a secret".into());
        }
        match tag {
            b'N' | b'A' => return Ok(()),
            b'S' => {
                let (name, rest) = speech::text(body);
                let (value, _) = speech::text(rest);
                self.params.insert(name, value);
                return Ok(());
            }
            b'E' => {
                let fields = ErrorFields::read(body);
                if fields.severity == Some(b"FATAL") {
                    let message = fields.message.unwrap_or_default();
                    self.told = Some(String::from_utf8_lossy(message).into_owned());
                    return self.check_mistake();
                }
            }
            _ => {}
        }
        if self.phase != Phase::Ready {
            return self.login_packet(tag, body);
        }
        if self.told.is_some() {
            return Err(format!("got '{}' after FATAL", tag as char));
        }
        self.reply(tag, body, mark.map(|mark| mark.number))
    }

    fn login_packet(&mut self, tag: u8, body: &[u8]) -> Result<(), String> {
        match tag {
            b'R' if body == [0, 0, 0, 3] => {
                let mut out = Vec::new();
                write::password(&mut out, self.password.as_bytes());
                self.line.borrow_mut().say(&out);
            }
            b'R' | b'v' => {}
            b'K' => self.key = body.try_into().ok().map(u64::from_be_bytes),
            b'Z' if self.key.is_some() => {
                let told = |name: &&str| self.params.contains_key(*name);
                if self.database != "pgbouncer" && !["server_version", "TimeZone"].iter().all(told)
                {
                    return Err("it is not told all parameters".into());
                }
                self.phase = Phase::Ready;
            }
            _ => return Err(format!("got '{}' during login", tag as char)),
        }
        Ok(())
    }

    fn reply(&mut self, tag: u8, body: &[u8], number: Option<u32>) -> Result<(), String> {
        let head = self.expected.front().copied();
        let Some(head) = head else {
            return Err(format!("got '{}' {number:?} without a request", tag as char));
        };
        let what = || format!("got '{}' {number:?}, expected {head:?}", tag as char);
        // Whose statement it is may be out of sight.
        if number.is_some_and(|number| number != head.number) && !self.names.hazy {
            return Err(what());
        }
        self.check_text(&head, tag, body)?;
        if tag == b'Z' {
            return self.ready(head, body.first().copied().unwrap_or(0));
        }
        if self.failed {
            return Err(format!("{} after an error", what()));
        }
        match (head.tag, tag) {
            (b'Q' | b'E', b'G') => self.begin_copy(head),
            (_, b'E') => {
                self.check_code(&head, ErrorFields::read(body).sqlstate)?;
                self.copying = None;
                self.failed = true;
            }
            (b'Q', b'C') => {
                self.note_complete(head.number);
                self.copying = None;
            }
            (b'Q', b'T' | b'D' | b'I' | b'H' | b'd' | b'c') | (b'F', b'V') => {}
            (b'E', b'D' | b'H' | b'd' | b'c') | (b'D', b't') => {}
            (b'P', b'1') | (b'B', b'2') | (b'C', b'3') | (b'D', b'T' | b'n') => self.pop(),
            (b'E', b'C' | b'I' | b's') => {
                self.note_complete(head.number);
                self.copying = None;
                self.pop();
            }
            _ => return Err(what()),
        }
        Ok(())
    }

    fn ready(&mut self, head: Expected, status: u8) -> Result<(), String> {
        match head.tag {
            b'Q' | b'F' | b'S' if self.failed => self.end_failed(1),
            b'Q' | b'F' | b'S' => self.pop(),
            _ if self.failed => {
                let sync = self.expected.iter().position(|e| e.tag == b'S');
                let sync = sync.ok_or("ReadyForQuery without a Sync")?;
                self.end_failed(sync + 1);
            }
            _ => return Err(format!("got ReadyForQuery, expected {head:?}")),
        }
        self.failed = false;
        self.status = status;
        if self.expected.is_empty() {
            self.unsure = false;
        }
        Ok(())
    }

    fn begin_copy(&mut self, head: Expected) {
        let extended = head.tag == b'E';
        self.expected.retain(|expected| !expected.before_data);
        if head.copy == Some(false) {
            // The server has swallowed the Sync that was sent before the data.
            self.unsynced |= extended;
            self.copying = Some(Copying { number: head.number, extended });
        }
    }
}
