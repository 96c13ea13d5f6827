//! The console's grammar (admin 2.2), matched by hand.
//!
//! ```text
//! command:  ws0 word ( ws1 word )? end
//! set-str:  ws0 set ws1 word ws0 (=|to) ws0 '...' end
//! set-word: ws0 set ws1 word ws0 (=|to) ws0 word  end
//! ```

use crate::core::console::Statement;

/// Why a text is no statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// It does not fit the grammar.
    Invalid,
    /// A word is too long, or the key of a SET is empty.
    BadArguments,
}

/// Limits of the words in bytes, with their quotes: the raw word must be shorter.
const COMMAND_MAX: usize = 16;
const ARGUMENT_MAX: usize = 64;
const VALUE_MAX: usize = 256;

/// A word as it was written, quotes included.
type Raw<'a> = &'a [u8];

/// Reads one statement.
pub(super) fn parse(text: &[u8]) -> Result<Statement, Malformed> {
    if let Some((name, argument)) = command(text) {
        return Ok(Statement::Command {
            name: value(name, COMMAND_MAX)?,
            argument: value(argument, ARGUMENT_MAX)?,
        });
    }
    let (key, set_to) = set(text, string).or_else(|| set(text, word)).ok_or(Malformed::Invalid)?;
    let key = value(key, ARGUMENT_MAX)?;
    let set_to = value(set_to, VALUE_MAX)?;
    if key.is_empty() {
        return Err(Malformed::BadArguments);
    }
    Ok(Statement::Set { key, value: set_to })
}

/// True for a text that the extended protocol knows as an empty query: there is nothing in it.
pub(super) fn is_empty(text: &[u8]) -> bool {
    is_end(text)
}

fn command(text: &[u8]) -> Option<(Raw<'_>, Raw<'_>)> {
    let (name, rest) = word(blanks(text))?;
    if is_end(rest) {
        return Some((name, b""));
    }
    let (argument, rest) = word(some_blanks(rest)?)?;
    is_end(rest).then_some((name, argument))
}

type Split<'a> = Option<(Raw<'a>, &'a [u8])>;

fn set<'a>(text: &'a [u8], read: impl Fn(&'a [u8]) -> Split<'a>) -> Option<(Raw<'a>, Raw<'a>)> {
    let (keyword, rest) = blanks(text).split_at_checked(3)?;
    if !keyword.eq_ignore_ascii_case(b"set") {
        return None;
    }
    let rest = some_blanks(rest)?;
    let (longest, _) = word(rest)?;
    // As in any expression that matches the longest text, a plain key gives bytes back until the
    // rest fits: `SET verboseto 1` is `SET verbose to 1`.
    let shortest = match longest.first() {
        Some(b'"') => longest.len(),
        _ => 1,
    };
    let splits = (shortest..=longest.len()).rev().filter_map(|len| {
        let (key, rest) = rest.split_at_checked(len)?;
        Some((key, behind_sign(blanks(rest))?))
    });
    // The sign stands behind the key, is its last two letters, or is among them. If what follows it
    // does not fit there, it does not fit at an earlier place either.
    splits.take(3).find_map(|(key, rest)| {
        let (value, rest) = read(blanks(rest))?;
        is_end(rest).then_some((key, value))
    })
}

/// What follows `=` or `to`.
fn behind_sign(text: &[u8]) -> Option<&[u8]> {
    match text {
        [b'=', rest @ ..] | [b't' | b'T', b'o' | b'O', rest @ ..] => Some(rest),
        _ => None,
    }
}

/// A word at the start of the text: letters, digits and underscores, or anything in double quotes.
fn word(text: &[u8]) -> Split<'_> {
    if text.first() == Some(&b'"') {
        return quoted(text, b'"');
    }
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let len = text.iter().take_while(|byte| is_plain(byte)).count();
    text.split_at_checked(len).filter(|_| len > 0)
}

/// A text in single quotes.
fn string(text: &[u8]) -> Split<'_> {
    quoted(text, b'\'')
}

fn quoted(text: &[u8], quote: u8) -> Split<'_> {
    if text.first() != Some(&quote) {
        return None;
    }
    let mut at = 1;
    loop {
        at += text.get(at..)?.iter().position(|byte| *byte == quote)? + 1;
        if text.get(at) != Some(&quote) {
            return text.split_at_checked(at);
        }
        at += 1;
    }
}

/// What a raw word stands for; bytes that are not UTF-8 are replaced, no name contains them.
fn value(raw: Raw<'_>, limit: usize) -> Result<String, Malformed> {
    if raw.len() >= limit {
        return Err(Malformed::BadArguments);
    }
    let text = String::from_utf8_lossy(raw).into_owned();
    for quote in ["\"", "'"] {
        let inner = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
        if let Some(inner) = inner {
            return Ok(inner.replace(&quote.repeat(2), quote));
        }
    }
    Ok(text)
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn blanks(text: &[u8]) -> &[u8] {
    let len = text.iter().take_while(|byte| is_blank(byte)).count();
    text.get(len..).unwrap_or_default()
}

fn some_blanks(text: &[u8]) -> Option<&[u8]> {
    text.first().filter(|byte| is_blank(byte))?;
    Some(blanks(text))
}

fn is_end(rest: &[u8]) -> bool {
    let rest = blanks(rest);
    rest.is_empty() || rest.strip_prefix(b";").is_some_and(|r| blanks(r).is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(name: &str, argument: &str) -> Result<Statement, Malformed> {
        Ok(Statement::Command { name: name.into(), argument: argument.into() })
    }

    fn set(key: &str, value: &str) -> Result<Statement, Malformed> {
        Ok(Statement::Set { key: key.into(), value: value.into() })
    }

    #[test]
    fn commands_have_one_or_two_words() {
        for (text, want) in [
            ("show version", command("show", "version")),
            (" \t\r\nSHOW\n\n version \r;\t\n", command("SHOW", "version")),
            ("pause;", command("pause", "")),
            ("pause", command("pause", "")),
            ("\"show\" \"version\"", command("show", "version")),
            ("PAUSE \"my-db\"", command("PAUSE", "my-db")),
            ("PAUSE \"a\"\"b\"", command("PAUSE", "a\"b")),
            ("PAUSE \"a'\n;-- b\"", command("PAUSE", "a'\n;-- b")),
            ("PAUSE \"\"", command("PAUSE", "")),
            ("PAUSE 12_ab", command("PAUSE", "12_ab")),
            ("PAUSE Db", command("PAUSE", "Db")),
            ("SET keyto1", command("SET", "keyto1")),
            ("set x", command("set", "x")),
            ("\"set\" x", command("set", "x")),
            ("\"a\"\"b\"", command("a\"b", "")),
        ] {
            assert_eq!(parse(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_invalid() {
        for text in [
            "",
            ";",
            "  ",
            "show version;;",
            "show; version",
            "SHOW a; SHOW b",
            "show\"version\"",
            "show -- x",
            "/* x */ show",
            "pause my-db",
            "pause 'db'",
            "pause a b",
            "pause \"db",
            "pause \"db\"x",
            "'show' version",
            "show\x0bversion",
            "show\x0cversion",
            "s\u{e4}t",
            "SELECT 1, 2",
            "SET listen_addr=127.0.0.1",
            "SET server_lifetime=1.5",
            "SET x=-1",
            "SET x=",
            "SET x = 1 2",
            "SET x := 1",
            "SET x = '1",
            "SET x = '1'2",
            "SET x=1;;",
            "SET 'x'=1",
            "SETx=1",
            "\"set\" x=1",
            "SET =1",
            "SET TIME ZONE 'x'",
            "SET SESSION x TO y",
            "SET search_path = \"$user\",public",
            "SET \"x\"y=1",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(Malformed::Invalid), "{text:?}");
        }
    }

    #[test]
    fn set_takes_many_forms() {
        for (text, want) in [
            ("SET k=1", set("k", "1")),
            ("set K = 1 ;", set("K", "1")),
            ("SET k to 1", set("k", "1")),
            ("SET k TO1", set("k", "1")),
            ("SET key to1", set("key", "1")),
            ("SET k='1'", set("k", "1")),
            ("SET k='it''s'", set("k", "it's")),
            ("SET k=''", set("k", "")),
            ("SET k=\"1\"", set("k", "1")),
            ("SET k = \"a\"\"b\"", set("k", "a\"b")),
            ("SET k='a\"b'", set("k", "a\"b")),
            ("SET k='\"\"'", set("k", "\"\"")),
            ("SET \"k\"=1", set("k", "1")),
            ("SET \"a b\"to'c d'", set("a b", "c d")),
            ("SET server_lifetime='1.5'", set("server_lifetime", "1.5")),
            ("SET k='; SHOW x'", set("k", "; SHOW x")),
            ("SET logto 1", set("log", "1")),
            ("SET logto=1", set("logto", "1")),
            ("SET logto'1'", set("log", "1")),
            ("SET toto 1", set("to", "1")),
            ("SET to to to", set("to", "to")),
            ("\nset\tk\t=\r\n1", set("k", "1")),
            ("SET totoxto 1", set("totox", "1")),
        ] {
            assert_eq!(parse(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn a_long_text_is_read_in_one_go() {
        let begun = std::time::Instant::now();
        for _ in 0..20 {
            let text = format!("set {}!", "to".repeat(32_000));
            assert_eq!(parse(text.as_bytes()), Err(Malformed::Invalid));
        }
        // Looking at each of the places again would take minutes.
        assert!(begun.elapsed().as_secs() < 5);
    }

    #[test]
    fn words_have_limits_that_count_their_quotes() {
        let plain = |len: usize| "x".repeat(len);
        for (text, fits) in [
            (plain(15), true),
            (plain(16), false),
            (format!("\"{}\"", plain(13)), true),
            (format!("\"{}\"", plain(14)), false),
            (format!("pause {}", plain(63)), true),
            (format!("pause {}", plain(64)), false),
            (format!("pause \"{}\"", plain(61)), true),
            (format!("pause \"{}\"", plain(62)), false),
            (format!("set {}=1", plain(63)), true),
            (format!("set {}=1", plain(64)), false),
            (format!("set k={}", plain(255)), true),
            (format!("set k={}", plain(256)), false),
            (format!("set k='{}'", plain(253)), true),
            (format!("set k='{}'", plain(254)), false),
            ("set \"\"=1".into(), false),
        ] {
            let result = parse(text.as_bytes());
            assert_eq!(result.is_ok(), fits, "{text}");
            if !fits {
                assert_eq!(result, Err(Malformed::BadArguments), "{text}");
            }
        }
    }

    #[test]
    fn blanks_and_one_semicolon_are_nothing() {
        for text in ["", " ", ";", "\t;\r\n"] {
            assert!(is_empty(text.as_bytes()), "{text:?}");
        }
        for text in [";;", "x", "; x", "--"] {
            assert!(!is_empty(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn a_name_that_is_not_utf8_is_no_name() {
        assert_eq!(parse(b"pause \"\xff\""), command("pause", "\u{fffd}"));
    }
}
