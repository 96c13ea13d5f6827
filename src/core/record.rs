//! What a connection is, as a row of SHOW FDS tells it (takeover 5.2): the words in which a process
//! hands its sockets to its successor.

use crate::auth::{Key, PassKeys, Secret};
use crate::wire::Reader;

/// A row, without its descriptor.
#[derive(Debug)]
pub enum Record {
    /// A listening socket.
    Listener,
    /// A connection that a client made.
    Client(Kept),
    /// A connection to PostgreSQL.
    Server(Kept),
}

/// What is kept of a client or a server.
#[derive(Debug, Default)]
pub struct Kept {
    /// Its descriptor in the old process, the name by which `link` calls it.
    pub fd: i64,
    /// The login user; of a server the one that it logged in as.
    pub user: Option<String>,
    /// The database, by our name for it.
    pub database: Option<String>,
    /// The client's or PostgreSQL's cancel key; 0 if none.
    pub cancel_key: u64,
    /// Descriptor of the other end of the link in the old process, 0 if there is none.
    pub link: i64,
    /// The values of [`PARAMETERS`].
    pub parameters: [Option<Vec<u8>>; PARAMETERS.len()],
    /// The secret of a user that the old process has looked up (PgBouncer before 1.23).
    pub secret: Option<Secret>,
    /// What servers of its pool can be logged in with.
    pub keys: Option<PassKeys>,
}

/// The tracked parameters that have a column.
pub const PARAMETERS: [&str; 4] =
    ["client_encoding", "standard_conforming_strings", "DateStyle", "TimeZone"];

/// The columns that matter here; the others are the socket's own business or say nothing.
#[derive(Clone, Copy)]
enum Column {
    Fd = 0,
    Task = 1,
    User = 2,
    Database = 3,
    Addr = 4,
    Cancel = 6,
    Link = 7,
    FirstParameter = 8,
    Password = 12,
    ClientKey = 13,
    ServerKey = 14,
}

impl Record {
    /// Reads the body of a DataRow. Missing columns count as NULL, more are ignored (takeover 5.1).
    /// The error is the text of a FATAL line.
    pub fn read(body: &[u8]) -> Result<Record, String> {
        let values = columns(body).ok_or("invalid data from old process")?;
        let get = |column: Column| values.get(column as usize).copied().flatten();
        let (Some(task), Some(_)) = (get(Column::Task), get(Column::Addr)) else {
            return Err("incomplete data from old process".into());
        };
        let name = |column| get(column).map(|value| String::from_utf8_lossy(value).into_owned());
        let kept = || {
            let parameter = |at: usize| values.get(Column::FirstParameter as usize + at).copied();
            Ok::<Kept, String>(Kept {
                fd: number(get(Column::Fd)),
                user: name(Column::User),
                database: name(Column::Database),
                cancel_key: number(get(Column::Cancel)),
                link: number(get(Column::Link)),
                parameters: std::array::from_fn(|at| parameter(at).flatten().map(<[u8]>::to_vec)),
                secret: get(Column::Password).map(Secret::classify),
                keys: keys(get(Column::ClientKey), get(Column::ServerKey))?,
            })
        };
        match task {
            b"pooler" => Ok(Record::Listener),
            b"client" => kept().map(Record::Client),
            b"server" => kept().map(Record::Server),
            other => Err(format!("unknown task: {}", String::from_utf8_lossy(other))),
        }
    }
}

/// The values of a DataRow.
pub fn columns(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let mut reader = Reader::new(body);
    let count = reader.u16()?;
    (0..count)
        .map(|_| match reader.u32()? {
            u32::MAX => Some(None),
            len => reader.bytes(usize::try_from(len).ok()?).map(Some),
        })
        .collect()
}

/// A number; what can't be read is 0.
fn number<T: std::str::FromStr + Default>(value: Option<&[u8]>) -> T {
    let text = value.and_then(|value| std::str::from_utf8(value).ok());
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn keys(client: Option<&[u8]>, server: Option<&[u8]>) -> Result<Option<PassKeys>, String> {
    match (client, server) {
        (None, None) => Ok(None),
        (Some(client), Some(server)) => {
            let keys = key(client).zip(key(server));
            let keys = keys.ok_or("incompatible SCRAM key data")?;
            Ok(Some(PassKeys { client_key: keys.0, server_key: keys.1 }))
        }
        _ => Err("incomplete SCRAM key data".into()),
    }
}

/// `\x` and 64 hexadecimal digits.
fn key(text: &[u8]) -> Option<Key> {
    let digits = std::str::from_utf8(text.strip_prefix(b"\\x")?).ok()?;
    let bytes: Option<Vec<u8>> = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits.get(at..at.checked_add(2)?)?, 16).ok())
        .collect();
    Key::from_slice(&bytes?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::write;

    fn read(values: &[Option<&str>]) -> Result<Record, String> {
        let mut packet = Vec::new();
        write::data_row(&mut packet, values.iter().map(|value| value.map(str::as_bytes)));
        Record::read(&packet[5..])
    }

    /// A row of this task, then what else it is to say.
    fn row<'a>(task: &'a str, more: &[(usize, &'a str)]) -> Vec<Option<&'a str>> {
        let mut values = vec![None; 15];
        values[1] = Some(task);
        values[4] = Some("127.0.0.1");
        for (at, value) in more {
            values[*at] = Some(value);
        }
        values
    }

    #[test]
    fn rows_of_both_releases_are_read() {
        let key = format!("\\x{}", "5a".repeat(32));
        let mut values = row("client", &[(0, "11"), (2, "alice"), (3, "ses"), (7, "17")]);
        values[6] = Some("18446744073709551615");
        (values[8], values[11]) = (Some("UTF8"), Some("Mars"));
        (values[13], values[14]) = (Some(key.as_str()), Some(key.as_str()));
        let Ok(Record::Client(kept)) = read(&values) else { panic!() };
        assert_eq!((kept.fd, kept.link, kept.cancel_key), (11, 17, u64::MAX));
        assert_eq!((kept.user.as_deref(), kept.database.as_deref()), (Some("alice"), Some("ses")));
        let shown = kept.parameters.map(|value| value.map(|v| String::from_utf8(v).unwrap()));
        assert_eq!(shown, [Some("UTF8".into()), None, None, Some("Mars".into())]);
        assert_eq!(kept.keys.unwrap().server_key.as_bytes(), &[0x5a; 32]);
        // Eight columns were all there once; more than fifteen may come.
        let Ok(Record::Server(kept)) = read(&row("server", &[(7, "3")])[..8]) else { panic!() };
        assert_eq!((kept.link, kept.user, kept.keys.is_some()), (3, None, false));
        let mut more = row("pooler", &[]);
        more.push(Some("new"));
        assert!(matches!(read(&more), Ok(Record::Listener)));
    }

    #[test]
    fn rows_that_make_no_sense_are_refused() {
        let key = "\\x5a";
        let long = format!("\\x{}é", "5a".repeat(31));
        for (values, want) in [
            (vec![], "incomplete data from old process"),
            (vec![Some("1"), Some("client")], "incomplete data from old process"),
            (row("thing", &[]), "unknown task: thing"),
            (row("client", &[(13, key)]), "incomplete SCRAM key data"),
            (row("server", &[(14, key)]), "incomplete SCRAM key data"),
            (row("client", &[(13, key), (14, key)]), "incompatible SCRAM key data"),
            (row("client", &[(13, &long), (14, &long)]), "incompatible SCRAM key data"),
        ] {
            assert_eq!(read(&values).unwrap_err(), want, "{values:?}");
        }
        for body in [&b""[..], b"\0", b"\0\x01\0\0\0\x05abc"] {
            assert_eq!(Record::read(body).unwrap_err(), "invalid data from old process");
        }
        let odd = read(&row("client", &[(0, "x"), (6, "-1"), (7, "")])).unwrap();
        let Record::Client(kept) = odd else { panic!() };
        assert_eq!((kept.fd, kept.cancel_key, kept.link), (0, 0, 0));
    }
}
