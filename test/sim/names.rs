//! What a client knows of its prepared statements, and what it makes of replies about them: rows
//! of exactly the text that it gave the name to, whatever server they come from.
//!
//! What it knows is kept twice: as of all that it has said, and as of all that has been answered.
//! When a batch turns out to have been ignored, the former is worked out anew.

use crate::client::{Client, Expected};
use crate::texts::{self, Text};
use std::collections::{BTreeMap, BTreeSet};

/// What a client is told that prepares under a name that it uses.
pub const IN_USE: &str = "prepared statement name is already in use";
/// What a client is told that uses a name without having prepared it.
pub const UNKNOWN: &str = "prepared statement did not exist";

/// Of a query that was canceled before it ran.
const CANCELED: &[u8] = b"57014";
/// Of a name that is not known, and of one that is in use.
const MISSING: &[u8] = b"26000";
const TAKEN: &[u8] = b"42P05";

/// Length of the long name.
const LONG: usize = 350;

/// A name of a statement: some short ones, a long one, and none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(usize);

impl Name {
    /// How many short names there are; the next is the long one, then comes that of the unnamed
    /// statement.
    pub const SHORT: usize = 3;
    /// That of the unnamed statement.
    pub const NONE: Name = Name(Name::SHORT + 1);

    /// A name by its number.
    pub fn of(number: usize) -> Name {
        Name(number)
    }

    /// As it is sent.
    pub fn text(self) -> String {
        match self.0 {
            0..Name::SHORT => format!("s{}", self.0),
            Name::SHORT => "l".repeat(LONG),
            _ => String::new(),
        }
    }
}

/// What a request does to the names, when it is answered or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Op {
    /// Nothing.
    #[default]
    None,
    /// A name is given to a text.
    Prepare(Name, Text),
    /// A name is given that is never used again.
    PrepareOther,
    /// An unnamed statement is prepared that is not used again.
    PrepareNone,
    /// Bind, Describe or Execute of a name.
    Use(Name),
    /// Close.
    Close(Name),
    /// A simple query.
    Query,
    /// DEALLOCATE of a name.
    Forget(Name),
    /// All names that were given before are forgotten.
    Clear,
}

/// What PostgreSQL finds wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// There is no such name.
    Missing,
    /// The name is in use.
    Taken,
}

impl Wrong {
    fn code(self) -> &'static [u8] {
        match self {
            Wrong::Missing => MISSING,
            Wrong::Taken => TAKEN,
        }
    }
}

/// One name.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// What it stands for.
    pub text: Text,
    /// Number of the Parse.
    parse: u32,
    /// ParseComplete has come.
    confirmed: bool,
    /// Number of the Sync that ended the batch with the Parse.
    sync: Option<u32>,
}

/// Names at one moment.
#[derive(Clone, Default)]
pub struct State {
    /// What they stand for.
    pub known: BTreeMap<Name, Known>,
    /// There may be an unnamed statement.
    pub has_unnamed: bool,
    /// How many more there are, which are never used again.
    pub others: usize,
}

impl State {
    fn apply(&mut self, request: &Expected) {
        match request.op {
            Op::None | Op::Use(_) => {}
            Op::Prepare(name, text) => {
                let (parse, confirmed, sync) = (request.number, false, None);
                let known = Known { text, parse, confirmed, sync };
                if name == Name::NONE {
                    self.has_unnamed = true;
                    self.known.insert(name, known);
                } else {
                    self.known.entry(name).or_insert(known);
                }
            }
            Op::PrepareOther => self.others += 1,
            Op::PrepareNone => {
                self.known.remove(&Name::NONE);
                self.has_unnamed = true;
            }
            Op::Close(name) => {
                self.known.remove(&name);
            }
            Op::Query => self.end_unnamed(),
            Op::Forget(name) => {
                self.known.remove(&name);
                self.end_unnamed();
            }
            Op::Clear => {
                self.known.clear();
                self.others = 0;
                self.has_unnamed &= request.tag != b'Q';
            }
        }
        if request.tag == b'S' {
            self.known.values_mut().for_each(|known| {
                known.sync.get_or_insert(request.number);
            });
        }
    }

    fn end_unnamed(&mut self) {
        self.known.remove(&Name::NONE);
        self.has_unnamed = false;
    }

    /// How many statements the pooler should keep.
    pub fn count(&self) -> usize {
        self.known.keys().filter(|name| **name != Name::NONE).count() + self.others
    }
}

/// What has to come before the client says anything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Awaits {
    /// Nothing.
    #[default]
    Nothing,
    /// All that was asked for before Flush, or an error.
    Flushed,
    /// Everything.
    All,
}

/// All of a client's names.
#[derive(Default)]
pub struct Names {
    /// As of all that it has said.
    pub now: State,
    /// As of all that has been answered.
    answered: State,
    /// The pooler keeps them.
    pub tracked: bool,
    /// The pooler began or ceased to keep them while something was under way: errors are its own
    /// business, and it prepares nothing any more.
    pub hazy: bool,
    /// What it waits for.
    pub awaits: Awaits,
    /// What it will be told for what it has done.
    pub mistake: Option<&'static str>,
    /// A batch of it has been ignored: its mistakes are errors, no more its end.
    pub forgiven: bool,
    /// The batch that is being answered is ignored.
    ignored: bool,
    /// Number of a request that forgets all names given before, and those that the client had
    /// then: the pooler forgets them when it is done.
    clearing: Option<u32>,
    fading: BTreeSet<Name>,
}

impl Names {
    /// True if names are used as the pooler promises to keep them.
    pub fn are_kept(&self) -> bool {
        self.tracked && !self.hazy
    }

    /// True while the end of such a request has not come: what the pooler takes for prepared may be
    /// lost with it.
    pub fn is_clearing(&self) -> bool {
        self.clearing.is_some()
    }

    /// True if the pooler would take this name for one that is in use.
    pub fn is_taken(&self, name: Name) -> bool {
        self.now.known.contains_key(&name) || self.fading.contains(&name)
    }

    /// A request goes out, or is looked at again: what will come of it.
    fn say(&mut self, request: &mut Expected) {
        let known = |name| self.now.known.get(&name);
        let wrong = |name, wrong| (self.forgiven && name != Name::NONE).then_some(wrong);
        match request.op {
            Op::Use(name) => {
                request.text = known(name).map(|known| known.text);
                request.behind_clear |= self.is_clearing();
                request.may_miss = request.text.is_none() || request.behind_clear;
                request.wrong = wrong(name, Wrong::Missing).filter(|_| request.text.is_none());
            }
            Op::Prepare(name, text) => {
                request.wrong = wrong(name, Wrong::Taken).filter(|_| known(name).is_some());
                // Who is told that the name is in use is told of what it stands for.
                let told = known(name).filter(|_| request.wrong.is_some());
                request.text = Some(told.map_or(text, |known| known.text));
            }
            Op::Forget(name) => request.may_miss = known(name).is_none(),
            Op::Clear => {
                self.clearing = Some(request.number);
                self.fading = self.now.known.keys().copied().collect();
            }
            _ => {}
        }
        self.now.apply(request);
    }
}

impl Client {
    /// True if it is a client that mostly uses the unnamed statement.
    pub fn keeps_to_unnamed(&self) -> bool {
        self.number % 3 == 0
    }

    /// True if a Parse in an earlier batch has not been answered, and may yet fail or be skipped.
    pub fn is_uncertain(&self, known: &Known) -> bool {
        let is_open = |sync| self.expected.iter().any(|e| e.tag == b'S' && e.number == sync);
        !known.confirmed && known.sync.is_some_and(is_open)
    }

    /// True if what is said now is still kept back, as replies are missing.
    pub fn must_wait(&mut self) -> bool {
        let waits = match self.names.awaits {
            Awaits::Nothing => false,
            Awaits::Flushed => {
                let has_failed = self.failed && self.is_in_batch();
                !self.expected.is_empty() && !has_failed
            }
            Awaits::All => !self.expected.is_empty(),
        };
        if !waits {
            self.names.awaits = Awaits::Nothing;
        }
        waits
    }

    /// True if part of a batch is answered next.
    fn is_in_batch(&self) -> bool {
        self.expected.front().is_some_and(|head| !matches!(head.tag, b'Q' | b'F'))
    }

    /// Waits for the reply to a message that has to do with names.
    pub fn expect_of(&mut self, tag: u8, number: u32, op: Op) {
        let mut request = Expected { tag, number, op, ..Expected::default() };
        self.names.say(&mut request);
        self.expected.push_back(request);
    }

    /// The last message has to do with names in this way, too.
    pub fn amend(&mut self, op: Op) {
        if let Some(last) = self.expected.back_mut() {
            last.op = op;
            self.names.say(last);
        }
    }

    /// The oldest request has been answered.
    pub fn pop(&mut self) {
        let Some(request) = self.expected.pop_front() else { return };
        self.names.answered.apply(&request);
        if request.tag == b'P' {
            for state in [&mut self.names.answered, &mut self.names.now] {
                let mut known = state.known.values_mut();
                if let Some(known) = known.find(|known| known.parse == request.number) {
                    known.confirmed = true;
                }
            }
        }
    }

    /// A request is complete.
    pub fn note_complete(&mut self, number: u32) {
        if self.names.clearing == Some(number) {
            self.names.clearing = None;
            self.names.fading.clear();
        }
    }

    /// The oldest request has failed. If it was canceled in the queue, its batch is ignored, and so
    /// may be what the client was about to do wrong.
    fn note_error(&mut self, code: Option<&[u8]>) {
        let Some(head) = self.expected.front_mut() else { return };
        if head.tag == b'Q' && head.op != Op::None {
            head.op = Op::Query;
        }
        if code != Some(CANCELED) {
            return;
        }
        self.names.ignored = true;
        self.names.forgiven = true;
        if self.names.mistake.take().is_some() {
            self.expected.pop_back();
            self.unsynced = true;
        }
    }

    /// ReadyForQuery behind an error: what was skipped. The pooler keeps names of Parses that were
    /// not done, but nobody can say what the unnamed statement is then. Of a batch that it has
    /// ignored itself nothing is kept, but what the first request does to the unnamed statement.
    pub fn end_failed(&mut self, count: usize) {
        let ignored = std::mem::take(&mut self.names.ignored);
        let skipped: Vec<Expected> = self.expected.drain(..count).collect();
        let of_none = |e: &Expected| matches!(e.op, Op::Prepare(Name::NONE, _) | Op::PrepareNone);
        let answered = &mut self.names.answered;
        match skipped.first() {
            Some(first) if ignored => {
                if of_none(first) || matches!(first.op, Op::Query | Op::Close(Name::NONE)) {
                    answered.end_unnamed();
                }
            }
            _ => {
                skipped.iter().filter(|e| e.op != Op::Clear).for_each(|e| answered.apply(e));
                if skipped.iter().any(of_none) {
                    answered.known.remove(&Name::NONE);
                    answered.has_unnamed = true;
                }
            }
        }
        self.names.now = self.names.answered.clone();
        (self.names.clearing, self.names.fading) = (None, BTreeSet::new());
        for request in &mut self.expected {
            self.names.say(request);
        }
    }

    /// True if it is using an unnamed statement without having one, and nobody looks after it any
    /// more: whatever the server has is run.
    pub fn runs_anything(&self) -> bool {
        let uses_none = |e: &Expected| e.op == Op::Use(Name::NONE) && e.text.is_none();
        self.names.hazy && self.expected.front().is_some_and(uses_none)
    }

    /// What a reply shows of the statement that was run.
    pub fn check_text(&self, head: &Expected, tag: u8, body: &[u8]) -> Result<(), String> {
        let print = texts::find_print(body);
        let want = head.text.map(Text::print);
        if self.names.hazy {
            return Ok(());
        }
        if head.wrong.is_some() && !matches!(tag, b'E' | b'Z') {
            return Err(format!("STATEMENTS: got '{}' for {head:?}", tag as char));
        }
        let must = matches!(tag, b'D' | b'T') && want.is_some();
        if (print.is_some() || must) && print != want.as_deref().map(str::as_bytes) {
            return Err(format!(
                "STATEMENTS: got '{}' of {:?}, wants {:?} {want:?}",
                tag as char,
                print.map(String::from_utf8_lossy),
                head.text
            ));
        }
        if let (b't', Some(text)) = (tag, head.text) {
            if body != text.types() {
                return Err(format!("STATEMENTS: got types {body:?} for {text:?}"));
            }
        }
        Ok(())
    }

    /// An error about a name that a server knows or doesn't.
    pub fn check_code(&mut self, head: &Expected, code: Option<&[u8]>) -> Result<(), String> {
        self.note_error(code);
        let about_names = matches!(code, Some(MISSING | TAKEN));
        let is_right = head.may_miss || head.wrong.is_some_and(|wrong| code == Some(wrong.code()));
        if about_names && !is_right && !self.names.hazy {
            return Err(format!(
                "STATEMENTS: {:?} for {head:?}",
                code.map(String::from_utf8_lossy)
            ));
        }
        Ok(())
    }

    /// What it is told at its end about its names.
    pub fn check_mistake(&self) -> Result<(), String> {
        let told = self.told.as_deref().filter(|told| matches!(*told, IN_USE | UNKNOWN));
        match told {
            Some(_) if told != self.names.mistake && !self.names.hazy => {
                Err(format!("STATEMENTS: told {told:?}, its mistake {:?}", self.names.mistake))
            }
            _ => Ok(()),
        }
    }
}
