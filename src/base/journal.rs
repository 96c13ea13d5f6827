//! Log lines as data: floors without system calls write them here, in order; `app` prints them and
//! a test reads them.

use std::collections::VecDeque;

/// How important a line is (config 6.2). `Debug` and `Noise` show only when asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The process is about to exit.
    Fatal,
    /// Something failed.
    Error,
    /// Something deserves attention.
    Warning,
    /// Normal operation.
    Log,
    /// `-v`.
    Debug,
    /// `-v -v`.
    Noise,
}

/// Lines that are waiting to be printed.
#[derive(Default)]
pub struct Journal {
    lines: VecDeque<(Level, String)>,
    verbose: i32,
}

impl Journal {
    /// Adds a line, unless its level is above the verbosity.
    pub fn line(&mut self, level: Level, text: String) {
        if self.shows(level) {
            self.lines.push_back((level, text));
        }
    }

    /// True if a line of this level would be kept: lets callers skip the work of making one.
    pub fn shows(&self, level: Level) -> bool {
        match level {
            Level::Debug => self.verbose >= 1,
            Level::Noise => self.verbose >= 2,
            _ => true,
        }
    }

    /// Sets the verbosity: 0 normal, 1 adds `Debug`, 2 and more add `Noise`.
    pub fn set_verbose(&mut self, verbose: i32) {
        self.verbose = verbose;
    }

    /// Takes the oldest line out.
    pub fn pop(&mut self) -> Option<(Level, String)> {
        self.lines.pop_front()
    }
}
