//! What a client knows of its prepared statements, and what it makes of replies about them: rows
//! of exactly the text that it gave the name to, whatever server they come from.

use crate::client::{Client, Expected};
use crate::texts::{self, Text};
use std::collections::{BTreeMap, BTreeSet};

/// What a client is told that prepares under a name that it uses.
pub const IN_USE: &str = "prepared statement name is already in use";
/// What a client is told that uses a name without having prepared it.
pub const UNKNOWN: &str = "prepared statement did not exist";

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
    /// By name; the unnamed statement's is empty.
    pub known: BTreeMap<String, Known>,
    /// The pooler keeps them.
    pub tracked: bool,
    /// The pooler began or ceased to keep them while something was under way: errors are its own
    /// business, and it prepares nothing any more.
    pub hazy: bool,
    /// What it waits for.
    pub awaits: Awaits,
    /// What it will be told for what it has done.
    pub mistake: Option<&'static str>,
    /// Number of a request that forgets all names given before, and those that the client had
    /// then: the pooler forgets them when it is done.
    clearing: Option<u32>,
    fading: BTreeSet<String>,
    /// It may have an unnamed statement.
    pub has_unnamed: bool,
    /// How many more it has, which are never used again.
    pub others: usize,
}

impl Names {
    /// True if names are used as the pooler promises to keep them.
    pub fn are_kept(&self) -> bool {
        self.tracked && !self.hazy
    }

    /// A name is given to a text.
    pub fn prepare(&mut self, name: &str, text: Text, parse: u32) {
        let known = Known { text, parse, confirmed: false, sync: None };
        self.has_unnamed |= name.is_empty();
        self.known.insert(name.to_owned(), known);
    }

    /// A batch ends.
    pub fn synced(&mut self, number: u32) {
        for known in self.known.values_mut() {
            known.sync.get_or_insert(number);
        }
    }

    /// All names that were given before this request are gone when it is done.
    pub fn clear(&mut self, number: u32) {
        self.clearing = Some(number);
        self.fading = std::mem::take(&mut self.known).into_keys().collect();
        self.others = 0;
    }

    /// True while the end of such a request has not come: what the pooler takes for prepared may be
    /// lost with it.
    pub fn is_clearing(&self) -> bool {
        self.clearing.is_some()
    }

    /// True if the pooler would take this name for one that is in use.
    pub fn is_taken(&self, name: &str) -> bool {
        self.known.contains_key(name) || self.fading.contains(name)
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
            Awaits::Flushed => !self.expected.is_empty() && !self.failed,
            Awaits::All => !self.expected.is_empty(),
        };
        if !waits {
            self.names.awaits = Awaits::Nothing;
        }
        waits
    }

    /// A simple query goes out: it is the end of the unnamed statement.
    pub fn end_unnamed(&mut self) {
        self.names.known.remove("");
        self.names.has_unnamed = false;
    }

    /// Another unnamed statement is prepared, or something went wrong with it.
    pub fn forget_unnamed(&mut self) {
        self.names.known.remove("");
        self.names.has_unnamed = true;
    }

    /// ParseComplete for this request.
    pub fn confirm(&mut self, number: u32) {
        let mut known = self.names.known.values_mut();
        if let Some(known) = known.find(|known| known.parse == number) {
            known.confirmed = true;
        }
    }

    /// A request is complete.
    pub fn note_complete(&mut self, number: u32) {
        if self.names.clearing == Some(number) {
            self.names.clearing = None;
            self.names.fading.clear();
        }
    }

    /// A request has failed, or its batch has.
    fn note_failed(&mut self, number: u32) {
        // It should not: now the names are out of sight.
        self.names.hazy |= self.names.clearing.is_some_and(|clearing| clearing >= number);
    }

    /// A batch has failed: nobody can say what the unnamed statement is now.
    pub fn note_failed_batch(&mut self) {
        if self.names.known.get("").is_some_and(|known| !known.confirmed) {
            self.forget_unnamed();
        }
    }

    /// What a reply shows of the statement that was run.
    pub fn check_text(&self, head: &Expected, tag: u8, body: &[u8]) -> Result<(), String> {
        let print = texts::find_print(body);
        let want = head.text.map(Text::print);
        if self.names.hazy {
            return Ok(());
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
        self.note_failed(head.number);
        let about_names = matches!(code, Some(b"26000" | b"42P05"));
        if about_names && !head.may_miss && !self.names.hazy {
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
