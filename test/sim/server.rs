//! A model of a PostgreSQL process: speaks the protocol properly unless its nature is another, and
//! complains about everything that one client must not see of another.

use crate::auth_query;
use crate::dice::Dice;
use crate::jobs::stored_secret;
use crate::line::Line;
use crate::speech::{self, Mark};
use crate::statements::Allowance;
use pgturnstile::auth::{ServerExchange, Verifier};
use pgturnstile::wire::startup::{Opening, CANCEL_REQUEST};
use pgturnstile::wire::write;
use statements::{Portal, Statement, FOR_DEALLOCATE};
use std::collections::{BTreeMap, BTreeSet};

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// As PostgreSQL does.
    Good,
    /// Answers the login with an error.
    Refuses,
    /// Never answers the login.
    Silent,
    /// Sends what is no login.
    Babbles,
    /// After some queries: a completion too many.
    OneTooMany,
    /// After some queries: a reply of another kind.
    WrongReply,
    /// After some queries: a packet of no known kind.
    WrongLetter,
    /// After some queries: a length that can't be.
    WrongLength,
    /// After some queries: a ReadyForQuery with an impossible status.
    WrongStatus,
    /// After some queries: half a packet and the end.
    HalfPacket,
    /// After some queries: FATAL and the end.
    Fatal,
    /// After some queries: no reply any more.
    Hangs,
}

/// What the world has to do for a server.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Cancel what the server with this key does.
    Cancel(u64),
}

/// A COPY from the client that is going on.
pub struct Copy {
    mark: Mark,
    extended: bool,
    /// Fails at this data message.
    fails_at: u32,
}

/// A query whose end is yet to come.
struct Running {
    mark: Mark,
    extended: bool,
    command: String,
}

#[derive(PartialEq, Eq)]
enum Stage {
    Opening,
    Asking,
    Ready,
    Gone,
}

/// One server.
pub struct Server {
    /// Its connection.
    pub line: Line,
    /// How it behaves.
    pub nature: Nature,
    /// Its cancel key.
    pub key: u64,
    /// It sent something while nobody had asked: being closed as dirty is right.
    pub excused: bool,
    /// It sent something at any time.
    pub chatty: bool,
    /// What one client leaves behind is cleared before the next one comes.
    pub is_reset: bool,
    /// It asks for a SCRAM proof.
    pub asks: bool,
    pub(super) exchange: Option<ServerExchange>,
    /// It has sent a completion too many.
    pub overdid: bool,
    /// Primary or standby.
    pub role: Role,
    /// What is expected of parameters that were not always tracked counts as of then.
    pub era: u32,
    /// Whom it can find when it is asked, and whether it may fail to.
    pub people: auth_query::Shared,
    pub is_wild: bool,
    /// The user that it logged in.
    pub(super) user: String,
    /// The user that it is asked for, while it is.
    pub(super) looked_up: Option<String>,
    pub(super) inbox: Vec<u8>,
    stage: Stage,
    defaults: BTreeMap<String, String>,
    pub(super) params: BTreeMap<String, String>,
    before_transaction: BTreeMap<String, String>,
    pub(super) status: u8,
    /// An error came in a series of the extended protocol: everything up to Sync is skipped.
    pub(super) skip: bool,
    /// A series of the extended protocol without its Sync.
    pub(super) series: bool,
    pub(super) copy: Option<Copy>,
    running: Option<Running>,
    statements: BTreeMap<String, Statement>,
    portals: BTreeMap<String, Portal>,
    /// What the rows of the statement that runs carry besides the mark.
    print: String,
    /// Statements that were prepared under the pooler's names.
    pub pooled_parses: u64,
    /// How many of them it may have.
    pub allowance: Allowance,
    /// Whose transaction, series or COPY is open.
    pub(super) holder: Option<u32>,
    /// Who left something in the session that only a reset removes.
    touched: Option<u32>,
    /// Queries until its nature shows.
    patience: u32,
}

/// The parameters that a server reports, with the values that it starts with.
const REPORTED: [(&str, &str); 8] = [
    ("server_version", "18.1"),
    ("in_hot_standby", "off"),
    ("DateStyle", "ISO, MDY"),
    ("client_encoding", "UTF8"),
    ("TimeZone", "UTC"),
    ("standard_conforming_strings", "on"),
    ("application_name", ""),
    ("IntervalStyle", "postgres"),
];

impl Server {
    /// A server that has just accepted a connection.
    pub fn new(line: Line, nature: Nature, key: u64, patience: u32) -> Server {
        line.borrow_mut().atomic = nature == Nature::OneTooMany;
        Server {
            line,
            nature,
            key,
            excused: false,
            chatty: false,
            is_reset: false,
            asks: false,
            exchange: None,
            overdid: false,
            role: Role::default(),
            era: 0,
            people: auth_query::Shared::default(),
            is_wild: false,
            user: String::new(),
            looked_up: None,
            inbox: Vec::new(),
            stage: Stage::Opening,
            defaults: BTreeMap::new(),
            params: BTreeMap::new(),
            before_transaction: BTreeMap::new(),
            status: b'I',
            skip: false,
            series: false,
            copy: None,
            running: None,
            statements: BTreeMap::new(),
            portals: BTreeMap::new(),
            print: String::new(),
            pooled_parses: 0,
            allowance: Allowance::default(),
            holder: None,
            touched: None,
            patience,
        }
    }

    /// True if it has ended.
    pub fn is_gone(&self) -> bool {
        self.stage == Stage::Gone
    }

    /// True if it will never answer by itself.
    pub fn hangs(&self) -> bool {
        match self.nature {
            Nature::Silent => true,
            Nature::Hangs => self.patience == 0,
            _ => false,
        }
    }

    /// True if nothing is running, open or owed.
    pub fn is_free(&self) -> bool {
        self.status == b'I'
            && !self.skip
            && !self.series
            && self.copy.is_none()
            && self.running.is_none()
    }

    /// True if it could do something now.
    pub fn has_work(&self) -> bool {
        let line = self.line.borrow();
        !self.is_gone()
            && !self.hangs()
            && (line.ended || !line.down.is_empty() || !self.inbox.is_empty())
            || self.running.is_some()
    }

    /// The key in a CancelRequest that it has not handled yet.
    pub fn carried_key(&self) -> Option<u64> {
        let mut bytes = self.inbox.clone();
        bytes.extend(&self.line.borrow().down);
        let code = CANCEL_REQUEST.to_be_bytes();
        let is_cancel = self.stage == Stage::Opening && bytes.get(4..8) == Some(&code[..]);
        let key = bytes.get(8..16).filter(|_| is_cancel)?;
        Some(u64::from_be_bytes(key.try_into().ok()?))
    }

    /// True if something that it will answer is on its way to it. COPY messages that come when
    /// the COPY is over are not, nor is Flush.
    pub fn is_asked(&self) -> bool {
        let mut bytes = self.inbox.clone();
        bytes.extend(&self.line.borrow().down);
        while let Some((tag, _)) = speech::take_packet(&mut bytes) {
            if !matches!(tag, b'd' | b'c' | b'f' | b'H') {
                return true;
            }
        }
        !matches!(bytes.first(), None | Some(b'd' | b'c' | b'f' | b'H'))
    }

    /// True if it has read part of a message.
    pub fn is_mid_message(&self) -> bool {
        let typed = self.stage != Stage::Opening;
        let len = speech::packet_len(&self.inbox, typed);
        len.is_none_or(|len| self.inbox.len() < len)
    }

    /// The process ends; what it has said still arrives unless `torn`.
    pub fn die(&mut self, torn: bool) {
        self.stage = Stage::Gone;
        let mut line = self.line.borrow_mut();
        if torn {
            line.tear();
        } else {
            line.finish();
        }
    }

    /// Takes a cancel request. `Err` if that hits somebody whom nobody wanted to cancel.
    pub fn cancel(&mut self, targets: &BTreeSet<u32>) -> Result<(), String> {
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        if !targets.contains(&running.mark.client) {
            return Err(format!("CANCEL: hits {} by mistake", running.mark));
        }
        self.fail(running.mark, running.extended, "canceled");
        if !running.extended {
            self.ready();
        }
        Ok(())
    }

    /// Does the next thing: ends a query, or handles a message. `Err` is a client's complaint.
    pub fn work(&mut self, dice: &mut Dice) -> Result<Effect, String> {
        let heard = self.line.borrow_mut().hear();
        self.inbox.extend(heard);
        if self.line.borrow().ended && (self.inbox.is_empty() || dice.chance(50)) {
            self.die(false);
            return Ok(Effect::None);
        }
        if self.is_gone() || self.hangs() {
            return Ok(Effect::None);
        }
        if let Some(running) = self.running.take() {
            self.finish(&running);
            return Ok(Effect::None);
        }
        if self.stage == Stage::Opening {
            return Ok(match speech::take_opening(&mut self.inbox) {
                Some(body) => self.opening(&body),
                None => Effect::None,
            });
        }
        if let Some((tag, body)) = speech::take_packet(&mut self.inbox) {
            match self.stage {
                Stage::Asking if tag == b'p' => self.prove(&body),
                Stage::Asking => self.die(false),
                _ => self.message(tag, &body, dice)?,
            }
        }
        Ok(Effect::None)
    }

    fn opening(&mut self, body: &[u8]) -> Effect {
        let parameters = match Opening::read(body) {
            Opening::CancelRequest(key) => {
                self.die(false);
                let key = key.try_into().map_or(0, u64::from_be_bytes);
                debug_assert_eq!(body[..4], CANCEL_REQUEST.to_be_bytes());
                return Effect::Cancel(key);
            }
            Opening::Startup { parameters, .. } => parameters.to_vec(),
            other => {
                self.say(|out| {
                    write::error(out, "FATAL", b"08P01", format!("{other:?}").as_bytes())
                });
                self.die(false);
                return Effect::None;
            }
        };
        for (name, value) in REPORTED {
            self.defaults.insert(name.to_owned(), value.to_owned());
        }
        let mut rest = &parameters[..];
        while rest.len() > 1 {
            let (name, after) = speech::text(rest);
            let (value, after) = speech::text(after);
            rest = after;
            if name == "user" {
                self.user.clone_from(&value);
            }
            if let Some(slot) = self.param_slot(&name) {
                self.defaults.insert(slot, value);
            }
        }
        self.params = self.defaults.clone();
        self.take_role();
        self.greet();
        Effect::None
    }

    fn greet(&mut self) {
        match self.nature {
            Nature::Refuses => {
                self.say(|out| write::error(out, "FATAL", b"53300", b"too many connections"));
                return self.die(false);
            }
            Nature::Babbles => {
                self.say(|out| out.extend_from_slice(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
                return self.die(false);
            }
            _ => {}
        }
        if self.asks {
            self.stage = Stage::Asking;
            self.exchange = Some(ServerExchange::new(Verifier::Secret(stored_secret())));
            return self.say(|out| write::authentication(out, 10, b"SCRAM-SHA-256\0\0"));
        }
        self.welcome();
    }

    pub(super) fn welcome(&mut self) {
        let params = self.params.clone();
        let key = self.key;
        self.say(|out| {
            write::authentication(out, 0, b"");
            for (name, value) in &params {
                write::parameter_status(out, name.as_bytes(), value.as_bytes());
            }
            write::backend_key(out, key);
        });
        self.stage = Stage::Ready;
        self.ready();
    }

    pub(super) fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut out = Vec::new();
        write(&mut out);
        self.line.borrow_mut().say(&out);
    }

    fn param_slot(&self, name: &str) -> Option<String> {
        let names = REPORTED.iter().map(|(known, _)| *known);
        names.into_iter().find(|known| known.eq_ignore_ascii_case(name)).map(str::to_owned)
    }

    fn ready(&mut self) {
        if self.status == b'I' {
            self.holder = None;
        }
        self.report_role();
        let status = self.status;
        self.say(|out| write::ready(out, status));
    }

    /// A request of a client comes in: nobody else's work may be open.
    fn enter(&mut self, mark: Mark, expected: &[(&str, &str)]) -> Result<(), String> {
        if !self.is_free() && self.holder.is_some_and(|holder| holder != mark.client) {
            return Err(format!(
                "HEART: request {mark} while work of client {:?} is open on the server",
                self.holder
            ));
        }
        if let Some(other) = self.touched.filter(|other| *other != mark.client && self.is_reset) {
            return Err(format!(
                "HEART: request {mark} on a server that was not reset after client {other}"
            ));
        }
        self.holder = Some(mark.client);
        for (name, value) in expected {
            let (name, era) = name.split_once('/').unwrap_or((name, ""));
            if era.parse().is_ok_and(|era: u32| era != self.era) {
                continue;
            }
            let has = self.params.get(name).map_or("", String::as_str);
            if !has.eq_ignore_ascii_case(value) {
                return Err(format!(
                    "PARAMETERS: request {mark} expects {name}={value}, server has {has}"
                ));
            }
        }
        Ok(())
    }

    fn message(&mut self, tag: u8, body: &[u8], dice: &mut Dice) -> Result<(), String> {
        if self.skip && !matches!(tag, b'S' | b'X') {
            self.skipped(tag);
            return Ok(());
        }
        if self.copy.is_some() && !matches!(tag, b'd' | b'c' | b'f' | b'S' | b'H' | b'X') {
            if self.is_strays_copy() {
                self.copy = None;
                self.fail_with(b"08P01", "unexpected message during COPY", true);
                return Ok(());
            }
            return Err(format!("message {} in the middle of COPY", tag as char));
        }
        match tag {
            b'X' => self.die(false),
            b'S' if self.copy.is_some() => {}
            b'S' => {
                self.skip = false;
                self.series = false;
                self.looked_up = None;
                self.misbehave_or_ready();
            }
            b'H' => {}
            b'd' | b'c' | b'f' => return self.copy_message(tag, body),
            b'Q' => {
                let (text, _) = speech::text(body);
                return self.simple(&text, dice);
            }
            b'F' => return self.function_call(body),
            _ => {
                let done = self.look_up(tag, body, dice);
                return done.unwrap_or_else(|| self.extended(tag, body, dice));
            }
        }
        Ok(())
    }

    fn simple(&mut self, text: &str, dice: &mut Dice) -> Result<(), String> {
        self.statements.remove("");
        self.print.clear();
        let Some(mark) = Mark::find(text.as_bytes()) else {
            return match text.starts_with("DEALLOCATE ") || text == FOR_DEALLOCATE {
                true => self.deallocate_simply(text),
                false => self.own_query(text),
            };
        };
        let (expected, command) = speech::read_request(text);
        self.enter(mark, &expected)?;
        self.execute(mark, command, false, dice);
        if self.copy.is_none() && self.running.is_none() && !self.is_gone() {
            self.misbehave_or_ready();
        }
        Ok(())
    }

    fn function_call(&mut self, body: &[u8]) -> Result<(), String> {
        let Some(mark) = Mark::find(body) else {
            return Err("HEART: function call without a mark".into());
        };
        self.enter(mark, &[])?;
        if self.status == b'E' {
            self.fail(mark, false, "aborted");
        } else {
            self.say(|out| {
                write::packet(out, b'V', |out| write::text(out, mark.to_string().as_bytes()));
            });
        }
        self.misbehave_or_ready();
        Ok(())
    }

    /// A query of the pooler: SET, reset, check or connect query.
    fn own_query(&mut self, text: &str) -> Result<(), String> {
        if !self.is_free() {
            return Err(format!(
                "HEART: the pooler's query {text:?} while work of client {:?} is open",
                self.holder
            ));
        }
        if self.tell_role(text) {
            self.ready();
            return Ok(());
        }
        if text.is_empty() {
            self.say(|out| write::packet(out, b'I', |_| {}));
        }
        if self.user == auth_query::LOOKER && text.starts_with("SET ") {
            return Err(format!("LOOK-UPS: {text} reaches a server for look-ups"));
        }
        for statement in text.split(';').filter(|statement| !statement.is_empty()) {
            let done = self.utility(statement);
            if !done {
                self.say(|out| write::error(out, "ERROR", b"22023", b"invalid value"));
                break;
            }
            let tag = if statement == "DISCARD ALL" { statement } else { "OK" };
            self.say(|out| write::command_complete(out, tag));
        }
        self.ready();
        Ok(())
    }

    fn misbehave_or_ready(&mut self) {
        use Nature as N;
        let shows = !matches!(self.nature, N::Good | N::Refuses | N::Silent | N::Babbles);
        // A completion too many that meets another request can't be told from its reply.
        let more = !self.inbox.is_empty() || !self.line.borrow().down.is_empty();
        let not_now = self.nature == N::OneTooMany && more;
        if !shows || self.patience > 1 || not_now {
            self.patience = self.patience.saturating_sub(1);
            return self.ready();
        }
        self.patience = 0;
        let owner = Mark { client: self.holder.unwrap_or(0), number: 999_999 };
        let complete = |out: &mut Vec<u8>| write::command_complete(out, &owner.to_string());
        match self.nature {
            N::OneTooMany => {
                self.ready();
                self.say(complete);
                self.ready();
                self.overdid = true;
            }
            N::WrongReply => self.say(|out| write::packet(out, b'2', |_| {})),
            N::WrongLetter => self.say(|out| write::packet(out, b'~', |_| {})),
            N::WrongLength => self.say(|out| out.extend_from_slice(b"Z\0\0\0\x03")),
            N::WrongStatus => self.say(|out| write::ready(out, b'X')),
            N::HalfPacket => {
                self.say(|out| out.extend_from_slice(b"N\0\0\x01\0half"));
                self.die(false);
            }
            N::Fatal => {
                self.say(|out| write::error(out, "FATAL", b"57P01", b"terminating"));
                self.die(false);
            }
            _ => {}
        }
    }
}

mod queries;
mod roles;
mod statements;
pub use roles::Role;
