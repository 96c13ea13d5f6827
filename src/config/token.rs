//! Words of a line of the HBA or ident file (auth 7.2).

/// One word of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// Bare text, which may be a keyword.
    Word(String),
    /// Text that stood in double quotes, doubled ones undone.
    Quoted(String),
    /// `,`
    Comma,
    /// A quote that the line does not close; nothing follows.
    Broken,
    /// The end of the line, or the beginning of a comment.
    End,
}

/// A position in a line.
pub(super) struct Tokens<'a> {
    /// The word at the position.
    pub(super) now: Token,
    rest: &'a str,
    /// The last text that was read, which some messages show.
    pub(super) last: String,
}

impl<'a> Tokens<'a> {
    /// At the first word of a line.
    pub(super) fn new(line: &'a str) -> Tokens<'a> {
        let mut tokens = Tokens { now: Token::End, rest: line, last: String::new() };
        tokens.advance();
        tokens
    }

    /// On to the next word.
    pub(super) fn advance(&mut self) {
        let rest = self.rest.trim_start_matches(is_space);
        let (token, rest) = match rest.chars().next() {
            None | Some('#') => (Token::End, ""),
            Some(',') => (Token::Comma, rest.strip_prefix(',').unwrap_or_default()),
            Some('"') => quoted(rest.strip_prefix('"').unwrap_or_default()),
            Some(_) => {
                let end = |c: char| is_space(c) || matches!(c, ',' | '#' | '"');
                let (word, rest) = rest.split_at(rest.find(end).unwrap_or(rest.len()));
                (Token::Word(word.to_owned()), rest)
            }
        };
        if let Token::Word(text) | Token::Quoted(text) = &token {
            self.last.clone_from(text);
        }
        self.now = token;
        self.rest = rest;
    }

    /// What follows the word at the position, as it is written.
    pub(super) fn rest(&self) -> &'a str {
        self.rest
    }

    /// True, and one word further, if the keyword is here.
    pub(super) fn eat(&mut self, keyword: &str) -> bool {
        let found = matches!(&self.now, Token::Word(word) if word == keyword);
        if found {
            self.advance();
        }
        found
    }

    /// The bare word that is here, and one word further.
    pub(super) fn word(&mut self) -> Option<String> {
        let Token::Word(word) = &self.now else {
            return None;
        };
        let word = word.clone();
        self.advance();
        Some(word)
    }
}

/// The lines of a file with their numbers from 1. Bytes that are no UTF-8 become U+FFFD, and a line
/// ends at a zero byte.
pub(super) fn lines(file: &[u8]) -> impl Iterator<Item = (usize, String)> + '_ {
    file.split(|byte| *byte == b'\n').zip(1_usize..).map(|(line, number)| {
        let line = line.split(|byte| *byte == 0).next().unwrap_or_default();
        (number, String::from_utf8_lossy(line).into_owned())
    })
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

/// The token behind an opening quote, and what follows it.
fn quoted(mut rest: &str) -> (Token, &str) {
    let mut text = String::new();
    while let Some((part, after)) = rest.split_once('"') {
        text.push_str(part);
        match after.strip_prefix('"') {
            Some(after) => {
                text.push('"');
                rest = after;
            }
            None => return (Token::Quoted(text), after),
        }
    }
    (Token::Broken, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(line: &str) -> String {
        let mut tokens = Tokens::new(line);
        let mut shown = Vec::new();
        loop {
            match tokens.now.clone() {
                Token::Word(text) => shown.push(text),
                Token::Quoted(text) => shown.push(format!("<{text}>")),
                Token::Comma => shown.push(",".into()),
                Token::Broken => shown.push("!".into()),
                Token::End => return shown.join(" "),
            }
            tokens.advance();
        }
    }

    #[test]
    fn lines_fall_into_words() {
        for (line, want) in [
            ("", ""),
            (" \t\r", ""),
            ("# a", ""),
            ("a b\tc\x0b\x0cd\r", "a b c d"),
            ("a,b , c", "a , b , c"),
            ("a#b", "a"),
            ("\"a#b, c\" d", "<a#b, c> d"),
            ("\"a\"\"b\" \"\"", "<a\"b> <>"),
            ("a\"b\"c", "a <b> c"),
            ("a \"b c", "a !"),
            ("a \"b\"\"", "a !"),
            ("@x +y /z ä", "@x +y /z ä"),
        ] {
            assert_eq!(all(line), want, "{line:?}");
        }
    }

    #[test]
    fn lines_are_counted_and_cut_at_zero_bytes() {
        let got: Vec<_> = lines(b"a\n\nb\0c\n\xe9").collect();
        let want = [(1, "a"), (2, ""), (3, "b"), (4, "\u{fffd}")];
        assert_eq!(got, want.map(|(number, line)| (number, line.to_owned())));
    }
}
