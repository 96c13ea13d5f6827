//! The ident file: which system users may log in as which database users (auth 7.5). Beyond the
//! contract, an unquoted system user that begins with `/` is a regular expression, as in PostgreSQL.

use super::token::{lines, Token, Tokens};
use crate::base::{Journal, Level};
use regex_lite::Regex;
use std::collections::BTreeMap;
use std::rc::Rc;

/// All maps of a file by name.
pub type IdentMaps = BTreeMap<String, Rc<IdentMap>>;

/// The lines that have one map name, in order.
#[derive(Clone, Debug)]
pub struct IdentMap {
    /// Its name.
    pub name: String,
    lines: Vec<Line>,
}

#[derive(Clone, Debug)]
struct Line {
    system: System,
    user: User,
}

#[derive(Clone, Debug)]
enum System {
    Name(String),
    Pattern(Regex),
}

#[derive(Clone, Debug)]
enum User {
    Any,
    Name(String),
    /// What stands in front of `\1`, and behind it.
    Captured(String, String),
}

impl IdentMap {
    /// May somebody with these system names log in as `user`? `is` tells whether a name from the
    /// file is one of theirs.
    pub fn admits(&self, user: &str, names: &[&str], is: impl Fn(&str) -> bool) -> bool {
        self.lines.iter().any(|line| match &line.system {
            System::Name(name) => line.user.is(user, None) && is(name),
            System::Pattern(pattern) => names.iter().any(|name| {
                pattern.captures(name).is_some_and(|found| {
                    line.user.is(user, found.get(1).map(|capture| capture.as_str()))
                })
            }),
        })
    }
}

impl User {
    /// Is `user` meant, given what the first group of the regular expression caught?
    fn is(&self, user: &str, captured: Option<&str>) -> bool {
        match self {
            User::Any => true,
            User::Name(name) => name == user,
            User::Captured(before, behind) => captured.is_some_and(|captured| {
                let rest = user.strip_prefix(before.as_str());
                rest.and_then(|rest| rest.strip_suffix(behind.as_str())) == Some(captured)
            }),
        }
    }
}

/// Reads a whole file. Lines that can't be read are skipped with a WARNING.
pub fn parse(file: &[u8], journal: &mut Journal) -> IdentMaps {
    let mut maps: BTreeMap<String, IdentMap> = BTreeMap::new();
    for (number, text) in lines(file) {
        let mut tokens = Tokens::new(&text);
        if tokens.now == Token::End {
            continue;
        }
        match line(&mut tokens) {
            Ok((name, line)) => {
                let empty = || IdentMap { name: name.clone(), lines: Vec::new() };
                maps.entry(name.clone()).or_insert_with(empty).lines.push(line);
            }
            Err(complaint) => {
                if let Some(complaint) = complaint {
                    journal.line(Level::Warning, format!("ident line {number}: {complaint}"));
                }
                let text = format!("could not parse ident config line {number}");
                journal.line(Level::Warning, text);
            }
        }
    }
    maps.into_iter().map(|(name, map)| (name, Rc::new(map))).collect()
}

/// One line: name of the map, system user, database user.
fn line(tokens: &mut Tokens<'_>) -> Result<(String, Line), Option<String>> {
    let name = tokens.word().ok_or(None)?;
    let system = match &tokens.now {
        Token::Quoted(name) => System::Name(name.clone()),
        Token::Word(word) => match word.strip_prefix('/') {
            Some(pattern) => System::Pattern(Regex::new(pattern).map_err(|error| {
                Some(format!("invalid regular expression \"{pattern}\": {error}"))
            })?),
            None => System::Name(word.clone()),
        },
        _ => return Err(None),
    };
    tokens.advance();
    let user = match (&tokens.now, &system) {
        (Token::Quoted(name), _) => User::Name(name.clone()),
        (Token::Word(word), _) if word == "all" => User::Any,
        (Token::Word(word), System::Pattern(pattern)) => match word.split_once("\\1") {
            Some(_) if pattern.captures_len() < 2 => {
                let complaint = "regular expression has no group for \"\\1\" in";
                return Err(Some(format!("{complaint} \"{word}\"")));
            }
            Some((before, behind)) => User::Captured(before.to_owned(), behind.to_owned()),
            None => User::Name(word.clone()),
        },
        (Token::Word(word), System::Name(_)) => User::Name(word.clone()),
        _ => return Err(None),
    };
    tokens.advance();
    match tokens.now {
        Token::End => Ok((name, Line { system, user })),
        _ => Err(Some("unsupported parameters".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str) -> (IdentMaps, Vec<String>) {
        let mut journal = Journal::default();
        let maps = parse(file.as_bytes(), &mut journal);
        let lines = std::iter::from_fn(|| journal.pop());
        (maps, lines.map(|(level, text)| format!("{level:?} {text}")).collect())
    }

    #[test]
    fn broken_lines_are_skipped_with_the_contract_s_words() {
        let bad = |number: u32| format!("Warning could not parse ident config line {number}");
        for (line, complaint) in [
            ("m", None),
            ("m a", None),
            ("\"m\" a b", None),
            ("m , b", None),
            ("m a ,", None),
            ("m a \"b", None),
            ("m \"a b", None),
            ("m a b c", Some("unsupported parameters")),
            ("m a b, c", Some("unsupported parameters")),
            ("m a b \"c", Some("unsupported parameters")),
            (
                "m /( b",
                Some("invalid regular expression \"(\": found open group without closing ')'"),
            ),
            ("m /a \\1", Some("regular expression has no group for \"\\1\" in \"\\1\"")),
        ] {
            let (maps, lines) = read(&format!("# note\n\nk x y\n{line}\nk z y # note\n"));
            let mut want = Vec::new();
            want.extend(complaint.map(|text| format!("Warning ident line 4: {text}")));
            want.push(bad(4));
            assert_eq!(lines, want, "{line}");
            assert_eq!(maps.keys().collect::<Vec<_>>(), ["k"], "{line}");
            assert_eq!(maps.get("k").map(|map| map.lines.len()), Some(2), "{line}");
        }
    }

    #[test]
    fn a_map_admits_by_its_first_fitting_line() {
        for (file, system, user, want) in [
            ("m joe app", "joe", "app", true),
            ("m joe app", "Joe", "app", false),
            ("m joe app", "joe", "App", false),
            ("m joe app\nm joe other", "joe", "other", true),
            ("m joe all", "joe", "anybody", true),
            ("m joe \"all\"", "joe", "anybody", false),
            ("m joe \"all\"", "joe", "all", true),
            ("m all app", "joe", "app", false),
            ("m \"jo e\" \"a b\"", "jo e", "a b", true),
            ("other joe app\nm ann app", "joe", "app", false),
            ("m /^(.*)@corp$ \\1", "joe@corp", "joe", true),
            ("m /^(.*)@corp$ \\1", "joe@corp", "ann", false),
            ("m /^(.*)@corp$ \\1", "joe@home", "joe", false),
            ("m /^(.*)@corp$ db_\\1_rw", "joe@corp", "db_joe_rw", true),
            ("m /^(.*)@corp$ db_\\1_rw", "joe@corp", "db_joe", false),
            ("m /^(a)?b$ \\1", "b", "", false),
            ("m /^j app", "joe", "app", true),
            ("m /^j all", "joe", "x", true),
            ("m /o app", "joe", "app", true),
            ("m \"/^j\" app", "joe", "app", false),
            ("m \"/^j\" app", "/^j", "app", true),
            ("m /^(j) \"\\1\"", "joe", "j", false),
            ("m /^(j) \"\\1\"", "joe", "\\1", true),
            ("m joe \\1", "joe", "\\1", true),
        ] {
            let (maps, lines) = read(file);
            assert!(lines.is_empty(), "{lines:?}");
            let map = maps.get("m").unwrap();
            assert_eq!(map.admits(user, &[system], |name| name == system), want, "{file:?} {user}");
        }
    }

    #[test]
    fn of_several_names_one_must_fit() {
        let (maps, _) = read("m /^(.*)\\.corp$ \\1\nm EXTRA x");
        let map = maps.get("m").unwrap();
        let names = ["ann.home", "joe.corp", "extra"];
        let is = |name: &str| names.iter().any(|own| own.eq_ignore_ascii_case(name));
        let admitted = |user: &str| map.admits(user, &names, is);
        assert_eq!(["joe", "ann", "x", "extra"].map(admitted), [true, false, true, false]);
    }

    #[test]
    fn anything_can_be_read() {
        let mut seed = 7_u32;
        for _ in 0..2000 {
            let pieces = ["m ", "\"", "/", "(", "[", "\\1", " ", ",", "#", "\n", "ä", "{9}", "*"];
            let file: String = (0..12)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    pieces[(seed >> 16) as usize % pieces.len()]
                })
                .collect();
            for map in read(&file).0.values() {
                map.admits("u", &["mä"], |name| name == "x");
            }
        }
    }
}
