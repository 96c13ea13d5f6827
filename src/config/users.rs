//! The auth_file: names and stored secrets (auth 3.1).

use super::value::Secret;

/// One entry of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileUser {
    /// Name; bytes that are no UTF-8 became U+FFFD.
    pub name: String,
    /// Password in clear text, MD5 hash or SCRAM verifier, byte by byte; may be empty.
    pub secret: Secret,
}

/// The longest name as written in the file, in bytes.
pub const NAME_MAX: usize = 127;
/// The longest secret as written in the file, in bytes.
pub const SECRET_MAX: usize = 65_530;

/// Reads a whole file. Returns the entries in front of the first error, in order (of two with one
/// name the later counts), and the ERROR line for that error.
pub fn parse(file: &[u8]) -> (Vec<FileUser>, Option<&'static str>) {
    let mut users = Vec::new();
    let mut rest = file.split(|byte| *byte == 0).next().unwrap_or_default();
    loop {
        rest = skip_idle(rest);
        if rest.is_empty() {
            return (users, None);
        }
        match entry(rest) {
            Ok((user, after)) => {
                users.push(user);
                rest = after;
            }
            Err(text) => return (users, Some(text)),
        }
    }
}

/// Skips white space and comment lines.
fn skip_idle(mut rest: &[u8]) -> &[u8] {
    loop {
        match rest {
            [b' ' | b'\t' | b'\n' | b'\x0b' | b'\x0c' | b'\r', after @ ..] => rest = after,
            [b';', ..] => rest = behind_line(rest),
            _ => return rest,
        }
    }
}

fn behind_line(rest: &[u8]) -> &[u8] {
    rest.splitn(2, |byte| *byte == b'\n').nth(1).unwrap_or_default()
}

const BROKEN: &str = "broken auth file";

fn entry(rest: &[u8]) -> Result<(FileUser, &[u8]), &'static str> {
    let rest = rest.strip_prefix(b"\"").ok_or(BROKEN)?;
    let (name, rest) = quoted(rest, NAME_MAX, "username too long in auth file")?;
    let rest = rest.splitn(2, |byte| *byte == b'"').nth(1).ok_or(BROKEN)?;
    let (secret, rest) = quoted(rest, SECRET_MAX, "password too long in auth file")?;
    let user =
        FileUser { name: String::from_utf8_lossy(&name).into_owned(), secret: Secret(secret) };
    Ok((user, behind_line(rest)))
}

/// The text behind an opening quote with doubled quotes undone, and what follows the closing one.
/// `max` counts the text as written.
fn quoted<'a>(
    rest: &'a [u8],
    max: usize,
    too_long: &'static str,
) -> Result<(Vec<u8>, &'a [u8]), &'static str> {
    let mut text = Vec::new();
    let mut raw = 0_usize;
    let mut at = rest;
    loop {
        match at {
            [b'"', b'"', after @ ..] => {
                text.push(b'"');
                raw = raw.saturating_add(2);
                at = after;
            }
            [b'"', ..] if raw > max => return Err(too_long),
            [b'"', after @ ..] => return Ok((text, after)),
            [byte, after @ ..] => {
                text.push(*byte);
                raw = raw.saturating_add(1);
                at = after;
            }
            [] => return Err(BROKEN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Users = &'static [(&'static str, &'static [u8])];
    type Row = (&'static [u8], Users, Option<&'static str>);

    fn rows(file: &[u8]) -> (Vec<(String, Vec<u8>)>, Option<&'static str>) {
        let (users, error) = parse(file);
        let users = users.into_iter().map(|user| (user.name, user.secret.0));
        (users.collect(), error)
    }

    #[test]
    fn files_are_read_up_to_the_first_error() {
        let rows_wanted: &[Row] = &[
            (b"", &[], None),
            (b" \n\t; note\n;\n", &[], None),
            (b"; note without end", &[], None),
            (b"\"a\" \"b\"\n\"c\" \"d\"", &[("a", b"b"), ("c", b"d")], None),
            (b"\"a\" \"b\"\r\n  \"c\"\"d\"\r\n", &[("a", b"b")], Some(BROKEN)),
            (b"\"a\" \"b\" \"third\" ; x\n\"c\" \"d\"", &[("a", b"b"), ("c", b"d")], None),
            (b"\"a\" junk\n = \"b\"", &[("a", b"b")], None),
            (b"\"a\"\"x\" \"p\"\"q\"", &[("a\"x", b"p\"q")], None),
            (b"\"a\nb\" \"c\\\"", &[("a\nb", b"c\\")], None),
            (b"\"a\" \"\"\n", &[("a", b"")], None),
            (b"\"\" \"x\"\n", &[("", b"x")], None),
            (b"\"a\" \"\xe9\"\n", &[("a", b"\xe9")], None),
            (b"\"a\" \"b\"\n# c\n", &[("a", b"b")], Some(BROKEN)),
            (b"\xef\xbb\xbf\"a\" \"b\"", &[], Some(BROKEN)),
            (b"\"a\"\"x\"", &[], Some(BROKEN)),
            (b"\"a\" \"b", &[], Some(BROKEN)),
            (b"\"a\" b\n", &[], Some(BROKEN)),
            (b"\"a", &[], Some(BROKEN)),
            (b"a \"b\"", &[], Some(BROKEN)),
            (b"\"a\" \"b\"\n\0broken", &[("a", b"b")], None),
        ];
        for (file, want, error) in rows_wanted {
            let want: Vec<_> = want.iter().map(|(n, s)| ((*n).to_owned(), s.to_vec())).collect();
            assert_eq!(rows(file), (want, *error), "{}", String::from_utf8_lossy(file));
        }
    }

    #[test]
    fn lengths_count_as_written() {
        for (name, secret, error) in [
            ("n".repeat(127), "s".repeat(65_530), None),
            ("n".repeat(128), String::new(), Some("username too long in auth file")),
            ("\"\"".repeat(64), String::new(), Some("username too long in auth file")),
            ("n".into(), "s".repeat(65_531), Some("password too long in auth file")),
        ] {
            let file = format!("\"{name}\" \"{secret}\"\n");
            assert_eq!(parse(file.as_bytes()).1, error);
        }
    }
}
