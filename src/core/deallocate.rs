//! `DEALLOCATE name` in a simple query: drivers end statements of the protocol so, whose names the
//! server does not know.

/// What is sent instead: it does nothing, can't be done in a failed transaction and brings one
/// completion.
pub(super) const INSTEAD: &[u8] = b"SELECT LIMIT 0";

/// What a query is, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Something else.
    Nothing,
    /// It may be one, but its end is not here.
    Incomplete,
    /// It deallocates the statement of this name and does nothing else.
    Name(Box<[u8]>),
}

const COMMAND: &[u8] = b"deallocate";
/// PostgreSQL cuts identifiers to this many bytes.
const NAME_MAX: usize = 63;
/// A longer query is not looked at, so that none is collected that could stream.
const LONGEST: usize = 4096;

/// Reads the body of a Query of so many bytes, of which the end may be missing.
pub(super) fn find(body: &[u8], len: usize) -> Found {
    if len > LONGEST {
        return Found::Nothing;
    }
    let sql = skip_space(body);
    let head = sql.get(..COMMAND.len()).unwrap_or(sql);
    if !COMMAND.get(..head.len()).is_some_and(|command| command.eq_ignore_ascii_case(head)) {
        return Found::Nothing;
    }
    if body.len() < len {
        return Found::Incomplete;
    }
    let name = body.split_last().filter(|(zero, _)| **zero == 0).and_then(|(_, sql)| name_of(sql));
    name.map_or(Found::Nothing, Found::Name)
}

/// True if this Query may deallocate all statements.
#[inline]
pub(super) fn may_clear(body: &[u8]) -> bool {
    let sql = skip_space(body);
    matches!(sql.first(), Some(b'd' | b'D'))
        && [COMMAND, b"discard"].iter().any(|command| {
            sql.get(..command.len()).is_some_and(|head| head.eq_ignore_ascii_case(command))
        })
}

/// The name in a whole `DEALLOCATE [PREPARE] name [;]`.
fn name_of(sql: &[u8]) -> Option<Box<[u8]>> {
    let (command, rest) = word(skip_space(sql))?;
    if !matches!(command, Word::Plain(command) if command == COMMAND) {
        return None;
    }
    let (mut name, mut rest) = word(skip_space(rest))?;
    if matches!(&name, Word::Plain(text) if text == b"prepare") {
        // Without a name behind it, it is one itself.
        if let Some((next, behind)) = word(skip_space(rest)) {
            (name, rest) = (next, behind);
        }
    }
    let rest = skip_space(rest);
    let rest = skip_space(rest.strip_prefix(b";").unwrap_or(rest));
    match name {
        Word::Plain(text) if text == b"all" => None,
        Word::Plain(text) | Word::Quoted(text) if rest.is_empty() => Some(text.into()),
        _ => None,
    }
}

enum Word {
    /// In lower case.
    Plain(Vec<u8>),
    Quoted(Vec<u8>),
}

/// The identifier at the front, and what follows it.
fn word(sql: &[u8]) -> Option<(Word, &[u8])> {
    if let Some(rest) = sql.strip_prefix(b"\"") {
        return quoted(rest);
    }
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 128..);
    let len = sql.iter().position(|byte| !is_part(byte)).unwrap_or(sql.len());
    let (text, rest) = sql.split_at_checked(len)?;
    // `U&"..."` is another kind of quotes.
    if text.is_empty() || matches!(text.first(), Some(b'0'..=b'9' | b'$')) || rest.starts_with(b"&")
    {
        return None;
    }
    Some((Word::Plain(cut(text.to_ascii_lowercase())), rest))
}

fn quoted(mut sql: &[u8]) -> Option<(Word, &[u8])> {
    let mut text = Vec::new();
    loop {
        let at = sql.iter().position(|byte| *byte == b'"')?;
        let (part, rest) = sql.split_at_checked(at)?;
        text.extend_from_slice(part);
        let rest = rest.get(1..)?;
        match rest.strip_prefix(b"\"") {
            Some(rest) => {
                text.push(b'"');
                sql = rest;
            }
            None if text.is_empty() => return None,
            None => return Some((Word::Quoted(cut(text)), rest)),
        }
    }
}

/// Cut as PostgreSQL does, between two characters of UTF-8.
fn cut(mut text: Vec<u8>) -> Vec<u8> {
    if text.len() > NAME_MAX {
        let is_inside = |at: usize| text.get(at).is_some_and(|byte| byte & 0xC0 == 0x80);
        let end = (0..=NAME_MAX).rev().find(|at| !is_inside(*at)).unwrap_or(NAME_MAX);
        text.truncate(end);
    }
    text
}

fn skip_space(sql: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0b' | b'\x0c');
    let at = sql.iter().position(|byte| !is_space(byte)).unwrap_or(sql.len());
    sql.get(at..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_postgresql_reads_them() {
        let long = "a".repeat(70);
        let quoted_long = format!("deallocate \"{}é\"", "a".repeat(62));
        for (sql, want) in [
            ("DEALLOCATE pdo_stmt_00000001", "pdo_stmt_00000001"),
            ("deallocate Prepare X1$é ;", "x1$é"),
            (" \n\tDeAllocate\r\"a \"\"B\"\x0b;\x0c", "a \"B"),
            ("deallocate\"x\"", "x"),
            ("deallocate prepare", "prepare"),
            ("deallocate prepare;", "prepare"),
            ("deallocate prepare \"all\"", "all"),
            ("deallocate \"ALL\"", "ALL"),
            (&format!("deallocate {long}"), &long[..63]),
            (&quoted_long, &quoted_long[12..74]),
        ] {
            let body = format!("{sql}\0");
            assert_eq!(
                find(body.as_bytes(), body.len()),
                Found::Name(want.as_bytes().into()),
                "{sql}"
            );
        }
    }

    #[test]
    fn everything_else_is_left_alone() {
        for sql in [
            "",
            "deallocat",
            "deallocate",
            "deallocate ;",
            "deallocate all",
            "DEALLOCATE PREPARE ALL",
            "deallocate a; deallocate b",
            "deallocate a b",
            "deallocate a;;",
            "deallocate \"a",
            "deallocate \"\"",
            "deallocate U&\"a\"",
            "deallocate 1a",
            "deallocate $1",
            "deallocatea b",
            "deallocate -- x\n a",
            "select 1",
        ] {
            let body = format!("{sql}\0");
            assert_eq!(find(body.as_bytes(), body.len()), Found::Nothing, "{sql}");
        }
        assert_eq!(find(b"deallocate a", 12), Found::Nothing, "no zero at the end");
    }

    #[test]
    fn as_much_as_needed_is_waited_for() {
        for (body, want) in [
            (&b""[..], Found::Incomplete),
            (b" dea", Found::Incomplete),
            (b"deallocate a", Found::Incomplete),
            (b"sel", Found::Nothing),
            (b"deallocaX", Found::Nothing),
        ] {
            assert_eq!(find(body, 20), want, "{body:?}");
            assert_eq!(find(body, 20_000), Found::Nothing, "{body:?}");
        }
    }

    #[test]
    fn what_may_deallocate_everything_is_known() {
        for (sql, want) in [
            (&b"DISCARD ALL\0"[..], true),
            (b" \n deallocate all\0", true),
            (b"disc\0", false),
            (b"select 1\0", false),
            (b"", false),
        ] {
            assert_eq!(may_clear(sql), want, "{sql:?}");
        }
    }
}
