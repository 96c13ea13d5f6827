//! The file dialect (config 2.2, 2.3, 2.7). Our own reader and not `rust-ini`: that has no
//! `%include`, keeps apostrophes of quoted keys, takes ':' for '=', and knows no positions.
//! Bytes that are no UTF-8 become U+FFFD in names and values.

use crate::base::{Journal, Level};
use std::borrow::Cow;
use std::io;

/// Who is told what a file contains, in order. False stops the reading.
pub trait Target {
    /// The content of a file; nothing for what is no regular file.
    fn open(&mut self, file: &str) -> io::Result<Vec<u8>>;
    /// A section begins.
    fn section(&mut self, name: &str) -> bool;
    /// `key = value` in the current section.
    fn assign(&mut self, key: &str, value: &str) -> bool;
    /// Where ERROR and DEBUG lines go.
    fn journal(&mut self) -> &mut Journal;
}

/// Files at this level may not include others; the main file is at level 0.
const DEEPEST: u32 = 10;

/// Reads `file` and what it includes; false if something went wrong, which has been logged.
pub fn read(target: &mut dyn Target, file: &str) -> bool {
    read_level(target, file, 0)
}

fn read_level(target: &mut dyn Target, file: &str, level: u32) -> bool {
    let text = match target.open(file) {
        Ok(text) => text,
        Err(error) => {
            let reason = strerror(&error);
            return fail(target, format!("could not load file \"{file}\": {reason}"));
        }
    };
    let mut scanner =
        Scanner { text: text.split(|byte| *byte == 0).next().unwrap_or_default(), at: 0 };
    loop {
        let element = scanner.element();
        let place = |extra: usize| format!("({file}:{})", scanner.line().saturating_add(extra));
        match element {
            Element::End => return true,
            Element::Broken => {
                let place = place(0);
                return fail(
                    target,
                    format!("syntax error in configuration {place}, stopping loading"),
                );
            }
            Element::Include(_) if level == DEEPEST => {
                let place = place(0);
                return fail(
                    target,
                    format!("include nesting level too deep {place}, stopping loading"),
                );
            }
            Element::Include(name) => {
                debug(target, || format!("processing include: {name}"));
                if !read_level(target, &name, level + 1) {
                    let text = "error processing include file in configuration";
                    return fail(target, format!("{text} {}, stopping loading", place(0)));
                }
                debug(target, || format!("returned to processing file {file}"));
            }
            Element::Section(name) => {
                debug(target, || format!("parse_ini_file: [{name}]"));
                if !target.section(&name) {
                    let place = place(0);
                    return fail(
                        target,
                        format!("invalid section \"{name}\" in configuration {place}"),
                    );
                }
            }
            Element::Assign { key, value, late } => {
                debug(target, || format!("parse_ini_file: '{key}' = '{}'", shown(&value)));
                let ok = target.assign(&key, &value);
                let digit = u8::from(ok);
                debug(target, || {
                    format!("parse_ini_file: '{key}' = '{}' ok:{digit}", shown(&value))
                });
                if !ok {
                    let text = format!("invalid value \"{}\" for parameter {key}", shown(&value));
                    return fail(target, format!("{text} in configuration {}", place(late)));
                }
            }
        }
    }
}

fn fail(target: &mut dyn Target, text: String) -> bool {
    target.journal().line(Level::Error, text);
    false
}

fn debug(target: &mut dyn Target, text: impl FnOnce() -> String) {
    let journal = target.journal();
    if journal.shows(Level::Debug) {
        journal.line(Level::Debug, text());
    }
}

/// A value as it may be logged: from a password on, nothing is shown.
fn shown(value: &str) -> Cow<'_, str> {
    match value.split_once("password") {
        Some((before, after)) if after.trim_start_matches(' ').starts_with('=') => {
            Cow::Owned(format!("{before}password=***"))
        }
        _ => Cow::Borrowed(value),
    }
}

/// The system's text for an error, without Rust's "(os error 2)".
pub fn strerror(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text.get(..end).unwrap_or(&text).to_owned(),
        None => text,
    }
}

enum Element {
    End,
    Broken,
    Include(String),
    Section(String),
    Assign {
        key: String,
        value: String,
        /// How many lines too far the reference counts before it reports a refused value.
        late: usize,
    },
}

/// A position in a text. Lines are not its unit: see the grammar.
struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip(&mut self, count: usize) {
        self.at = self.at.saturating_add(count).min(self.text.len());
    }

    fn take_while(&mut self, keep: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = self.rest();
        let len = rest.iter().position(|byte| !keep(*byte));
        let taken = rest.get(..len.unwrap_or(rest.len())).unwrap_or_default();
        self.skip(taken.len());
        taken
    }

    /// The number of the line that the position is on, from 1.
    fn line(&self) -> usize {
        let before = self.text.get(..self.at).unwrap_or_default();
        newlines(before).saturating_add(1)
    }

    fn rest_of_line(&mut self) -> &'a [u8] {
        self.take_while(|byte| byte != b'\n')
    }

    fn element(&mut self) -> Element {
        loop {
            self.take_while(is_space);
            match self.rest() {
                [] => return Element::End,
                [b'#' | b';', ..] => {
                    self.rest_of_line();
                }
                [b'[', ..] => return self.section(),
                [b'%', b'i', b'n', b'c', b'l', b'u', b'd', b'e', next, ..] if is_blank(*next) => {
                    self.skip(8);
                    self.take_while(is_blank);
                    return Element::Include(lossy(trim_end(self.rest_of_line())));
                }
                _ => return self.assignment(),
            }
        }
    }

    fn section(&mut self) -> Element {
        self.skip(1);
        let name = self.take_while(|byte| byte != b']' && byte != b'\n');
        if self.rest().first() != Some(&b']') {
            return Element::Broken;
        }
        self.skip(1);
        Element::Section(lossy(name))
    }

    fn assignment(&mut self) -> Element {
        let Some(key) = self.key() else {
            return Element::Broken;
        };
        self.take_while(is_blank);
        if self.rest().first() != Some(&b'=') {
            return Element::Broken;
        }
        self.skip(1);
        self.take_while(is_blank);
        let line = self.rest_of_line();
        let value = trim_end(line);
        // The reference has overwritten one byte behind the value, and counts the line ends that
        // it skips after that one.
        let tail = line.get(value.len()..).unwrap_or_default();
        let rest = self.rest();
        let gap = rest.iter().take_while(|byte| is_space(**byte)).count();
        let ends = newlines(rest.get(..gap).unwrap_or_default());
        let late = if tail.is_empty() { ends.saturating_sub(1) } else { ends };
        Element::Assign { key: lossy(key), value: lossy(value), late }
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        if self.rest().first() != Some(&b'\'') {
            return Some(self.take_while(is_bare));
        }
        self.skip(1);
        let key = self.take_while(|byte| byte != b'\'');
        if key.is_empty() || self.rest().is_empty() {
            return None;
        }
        self.skip(1);
        Some(key)
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\x0b' | b'\x0c' | b'\r')
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'*' | b'-')
}

fn trim_end(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|byte| !is_space(*byte));
    let end = end.map_or(0, |last| last.saturating_add(1));
    text.get(..end).unwrap_or_default()
}

fn newlines(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count()
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes down what it is told; refuses values and sections named "bad".
    struct Notes<'a> {
        files: &'a [(&'a str, &'a [u8])],
        told: String,
        journal: Journal,
    }

    impl Target for Notes<'_> {
        fn open(&mut self, file: &str) -> io::Result<Vec<u8>> {
            let found = self.files.iter().find(|(name, _)| *name == file);
            match found {
                Some((_, text)) => Ok(text.to_vec()),
                None => Err(io::Error::from_raw_os_error(2)),
            }
        }
        fn section(&mut self, name: &str) -> bool {
            self.told.push_str(&format!("[{name}]"));
            name != "bad"
        }
        fn assign(&mut self, key: &str, value: &str) -> bool {
            self.told.push_str(&format!("{key}={value}|"));
            value != "bad"
        }
        fn journal(&mut self) -> &mut Journal {
            &mut self.journal
        }
    }

    fn run(files: &[(&str, &[u8])], verbose: i32) -> (bool, String, Vec<String>) {
        let mut notes = Notes { files, told: String::new(), journal: Journal::default() };
        notes.journal.set_verbose(verbose);
        let good = read(&mut notes, "f");
        let lines = std::iter::from_fn(|| notes.journal.pop());
        let lines = lines.map(|(level, text)| format!("{level:?} {text}")).collect();
        (good, notes.told, lines)
    }

    #[test]
    fn elements_are_found_wherever_they_start() {
        for (text, told) in [
            (&b""[..], ""),
            (b" \n\t\x0b\x0c\r\n", ""),
            (b"# a = b\n  ; c = d", ""),
            (b"[s]\na = b\n", "[s]a=b|"),
            (b"  [s]\r\n   a=b\r\n", "[s]a=b|"),
            (b"[pgbouncer] listen_port = 7000", "[pgbouncer]listen_port=7000|"),
            (b"[pgbouncer] ; note\n[x][y]", "[pgbouncer][x][y]"),
            (b"a = b ; c\n", "a=b ; c|"),
            (b"a = b # c\n", "a=b # c|"),
            (b"a = 'select 1'\n", "a='select 1'|"),
            (b"a = $x ~ \\\\ \"q\"\n", "a=$x ~ \\\\ \"q\"|"),
            (b"a =\n", "a=|"),
            (b"a =", "a=|"),
            (b"a = \r\n", "a=|"),
            (b"a\t=\t b  c \x0b\x0c\t \n", "a=b  c|"),
            (b"= x\n", "=x|"),
            (b"A_b.*-9 = x = y\n", "A_b.*-9=x = y|"),
            (b"'my db' = x\n", "my db=x|"),
            (b"'a=[\n\"b' = x\n", "a=[\n\"b=x|"),
            (b"'\xc3\xa4@/' = \xc3\xa4\n", "\u{e4}@/=\u{e4}|"),
            (b"a = \xe4\n", "a=\u{fffd}|"),
            (b"[ pgbouncer ]\n", "[ pgbouncer ]"),
            (b"[]\n", "[]"),
            (b"a = b\n\0junk", "a=b|"),
            (b"a = b\0junk", "a=b|"),
        ] {
            let shown = String::from_utf8_lossy(text).into_owned();
            assert_eq!(run(&[("f", text)], 0), (true, told.to_owned(), vec![]), "{shown}");
        }
    }

    #[test]
    fn broken_structure_is_reported_with_its_line() {
        for (text, told, line) in [
            (&b"a = b\n  c\n"[..], "a=b|", 2),
            (b"a = b \\\n  c", "a=b \\|", 2),
            (b"key\n= 5\n", "", 1),
            (b"key =\n5\n", "key=|", 2),
            (b"\n\n\"a\" = b\n", "", 3),
            (b"\xc3\xa4 = b\n", "", 1),
            (b"\xef\xbb\xbf[s]\n", "", 1),
            (b"a b = c\n", "", 1),
            (b"a@b = c\n", "", 1),
            (b"'' = c\n", "", 1),
            (b"'a = b\nc\nd", "", 3),
            (b"'a'\n= b\n", "", 1),
            (b"[s\n]\n", "", 1),
            (b"[s", "", 1),
            (b"%include", "", 1),
            (b"\n%include\n", "", 2),
            (b"%includex f\n", "", 1),
        ] {
            let shown = String::from_utf8_lossy(text).into_owned();
            let error = format!("Error syntax error in configuration (f:{line}), stopping loading");
            let want = (false, told.to_owned(), vec![error]);
            assert_eq!(run(&[("f", text)], 0), want, "{shown}");
        }
    }

    #[test]
    fn refused_values_are_reported_with_the_line_that_the_reference_counts() {
        for (text, line) in [
            ("a = bad", 1),
            ("a = bad\n", 1),
            ("\n\na = bad\nb = c\n", 3),
            ("a = bad\n   b = c\n", 1),
            ("a = bad \nb = c\n", 2),
            ("a = bad\r\nb = c\r\n", 2),
            ("a = bad\n\nb = c\n", 2),
            ("a = bad\n \n\t\nb = c\n", 3),
            ("a = bad \n\n\nb = c\n", 4),
            ("a = bad\n\n", 2),
            ("a = bad ", 1),
        ] {
            let error =
                format!("Error invalid value \"bad\" for parameter a in configuration (f:{line})");
            let want = (false, "a=bad|".to_owned(), vec![error]);
            assert_eq!(run(&[("f", text.as_bytes())], 0), want, "{text:?}");
        }
        let error = "Error invalid section \"bad\" in configuration (f:2)".to_owned();
        let want = (false, "[bad]".to_owned(), vec![error]);
        assert_eq!(run(&[("f", b"\n[bad] a = b\n")], 0), want);
    }

    #[test]
    fn includes_share_the_section_and_report_every_level() {
        let (good, told, lines) =
            run(&[("f", b"%include\tg h \r\na = 1\n"), ("g h", b"[s]\nb = 2")], 0);
        assert_eq!((good, told.as_str(), lines.len()), (true, "[s]b=2|a=1|", 0));

        let want = [
            "Error invalid value \"bad\" for parameter a in configuration (g:1)",
            "Error error processing include file in configuration (f:2), stopping loading",
        ];
        let files: &[(&str, &[u8])] = &[("f", b"\n%include g\nx=y"), ("g", b"a = bad\n")];
        let (good, told, lines) = run(files, 0);
        assert_eq!((good, told.as_str()), (false, "a=bad|"));
        assert_eq!(lines, want);

        let want = [
            "Error could not load file \"'g' ; x\": No such file or directory",
            "Error error processing include file in configuration (f:1), stopping loading",
        ];
        assert_eq!(run(&[("f", b"%include 'g' ; x\n")], 0).2, want);
        let want = ["Error could not load file \"f\": No such file or directory"];
        assert_eq!(run(&[], 0).2, want);
    }

    #[test]
    fn eleven_levels_are_read_and_the_twelfth_is_refused() {
        let names: Vec<String> = (0..12).map(|n| format!("f{n}")).collect();
        let texts: Vec<String> =
            (1..12).map(|n| format!("k{} = v\n%include f{n}\n", n - 1)).collect();
        for (last, good) in [("k10 = v\n", true), (texts[10].as_str(), false)] {
            let mut files: Vec<(&str, &[u8])> = vec![("f", texts[0].as_bytes())];
            for level in 1..10 {
                files.push((&names[level], texts[level].as_bytes()));
            }
            files.push(("f10", last.as_bytes()));
            let (ok, told, lines) = run(&files, 0);
            assert_eq!(ok, good);
            assert!(told.ends_with("k9=v|k10=v|"), "{told}");
            if !good {
                let deep = "Error include nesting level too deep (f10:2), stopping loading";
                assert_eq!((lines[0].as_str(), lines.len()), (deep, 11));
                let text = "Error error processing include file in configuration";
                assert_eq!(lines[1], format!("{text} (f9:2), stopping loading"));
                assert_eq!(lines[10], format!("{text} (f:2), stopping loading"));
            }
        }
    }

    #[test]
    fn debug_lines_tell_each_step() {
        let files: &[(&str, &[u8])] = &[("f", b"[s]\n%include g\n"), ("g", b"a = 1\nb = bad")];
        let want = [
            "Debug parse_ini_file: [s]",
            "Debug processing include: g",
            "Debug parse_ini_file: 'a' = '1'",
            "Debug parse_ini_file: 'a' = '1' ok:1",
            "Debug parse_ini_file: 'b' = 'bad'",
            "Debug parse_ini_file: 'b' = 'bad' ok:0",
            "Error invalid value \"bad\" for parameter b in configuration (g:2)",
            "Error error processing include file in configuration (f:2), stopping loading",
        ];
        assert_eq!(run(files, 1).2, want);
        let files: &[(&str, &[u8])] = &[("f", b"%include g\n"), ("g", b"")];
        let want = ["Debug processing include: g", "Debug returned to processing file f"];
        assert_eq!(run(files, 1).2, want);
    }

    #[test]
    fn passwords_are_not_logged() {
        for (value, want) in [
            ("host=h password='it''s' port=1", "host=h password=***"),
            ("password =x", "password=***"),
            ("my_password_table", "my_password_table"),
            ("host=h", "host=h"),
        ] {
            assert_eq!(shown(value), want);
        }
    }
}
