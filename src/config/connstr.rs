//! The `key=value` strings of `[databases]`, `[users]` and `[peers]` (config 2.6).

/// A string that breaks the grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Splits a string into keys and values, lazily: pairs in front of an error are still delivered,
/// because the reference acts on them before it meets the error.
pub fn pairs(text: &str) -> Pairs<'_> {
    Pairs { rest: text }
}

/// See [`pairs`].
pub struct Pairs<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Result<(&'a str, String), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rest = self.rest.trim_start_matches(' ');
        if self.rest.is_empty() {
            return None;
        }
        let pair = self.pair();
        if pair.is_none() {
            self.rest = "";
        }
        Some(pair.ok_or(Malformed))
    }
}

impl<'a> Pairs<'a> {
    fn pair(&mut self) -> Option<(&'a str, String)> {
        let (key, rest) = self.rest.split_at(self.rest.find([' ', '='])?);
        if key.is_empty() {
            return None;
        }
        let rest = rest.trim_start_matches(' ').strip_prefix('=')?;
        let rest = rest.trim_start_matches(' ');
        let (value, rest) = match rest.strip_prefix('\'') {
            Some(rest) => quoted(rest)?,
            None => {
                let (value, rest) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
                (value.to_owned(), rest)
            }
        };
        self.rest = rest;
        (!value.is_empty()).then_some((key, value))
    }
}

/// The value behind an opening apostrophe, and what follows the closing one and the character
/// behind that, which is lost whatever it is.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '\'' => match chars.next() {
                Some('\'') => value.push('\''),
                _ => return Some((value, chars.as_str())),
            },
            c => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row = (&'static str, &'static [(&'static str, &'static str)], bool);

    #[test]
    fn strings_are_split_as_the_reference_does() {
        let rows: &[Row] = &[
            ("", &[], true),
            ("   ", &[], true),
            ("host=x", &[("host", "x")], true),
            ("  host = x   port=1 ", &[("host", "x"), ("port", "1")], true),
            ("host=x\tport=1", &[("host", "x\tport=1")], true),
            ("host='x y' port=1", &[("host", "x y"), ("port", "1")], true),
            ("password='a''b'", &[("password", "a'b")], true),
            ("password='a\\'", &[("password", "a\\")], true),
            ("host='x'port=5", &[("host", "x"), ("ort", "5")], true),
            ("host=x'y", &[("host", "x'y")], true),
            ("host=\"x y\"", &[("host", "\"x")], false),
            ("a=1 a=2", &[("a", "1"), ("a", "2")], true),
            ("a=b=c", &[("a", "b=c")], true),
            ("'k'=1", &[("'k'", "1")], true),
            ("host=", &[], false),
            ("host= ", &[], false),
            ("host=''", &[], false),
            ("password=", &[], false),
            ("host='x", &[], false),
            ("host='x''", &[], false),
            ("host", &[], false),
            ("=x", &[], false),
            ("host x", &[], false),
            ("host=x ; y", &[("host", "x")], false),
            ("host=x port", &[("host", "x")], false),
        ];
        for (text, want, good) in rows {
            let all: Vec<_> = pairs(text).collect();
            let read: Vec<_> = all.iter().flatten().map(|(k, v)| (*k, v.as_str())).collect();
            assert_eq!(read, *want, "{text}");
            assert_eq!(all.iter().all(Result::is_ok), *good, "{text}");
        }
    }
}
