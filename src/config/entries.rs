//! The tables of keys in `[databases]`, `[users]` and `[peers]`, and how an entry is read
//! (config 2.6 and 4).

use super::connstr;
use super::value::{atoi, LoadBalance, PoolMode, Ports, Secret, SessionAttrs, Value};
use crate::base::{text::cut, Journal, Level, Micros};

/// One key of an entry of type `E`.
pub struct Key<E: 'static> {
    /// Name in the string.
    pub name: &'static str,
    /// What counts without it, for the manual.
    pub default: &'static str,
    /// Name of its type, for the manual.
    pub kind: &'static str,
    /// One or two sentences for the manual.
    pub help: &'static str,
    /// Parses and stores; false if the value is refused, which has been logged.
    pub set: fn(&mut E, &str, &mut Journal) -> bool,
}

/// Key: type, its reader = default.
macro_rules! entry {
    ($(#[doc = $doc:literal])+ $entry:ident, $keys:ident; $(
        $(#[doc = $help:literal])+ $name:ident: $type:ty, $read:ident = $default:literal;
    )+) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $entry {
            $($(#[doc = $help])+ pub $name: Option<$type>,)+
        }

        #[doc = concat!("The keys of a [`", stringify!($entry), "`].")]
        pub static $keys: &[Key<$entry>] = &[$(Key {
            name: stringify!($name),
            default: $default,
            kind: <$type as Value>::KIND,
            help: concat!($($help),+).trim_ascii_start(),
            set: |entry, text, journal| {
                let value = $read(text, journal);
                let good = value.is_some();
                if good {
                    entry.$name = value;
                }
                good
            },
        },)+];
    };
}

entry! {
    /// What an entry of `[databases]` says; `None` where it says nothing.
    DatabaseEntry, DATABASE_KEYS;
    /// Name of the database at the server. Always there after reading.
    dbname: String, text = "the name of the entry";
    /// Host name, address, or directory of a Unix socket (with @ in front: abstract); several may
    /// be separated by commas.
    host: String, text = "the Unix socket in unix_socket_dir";
    /// Port of the server: one for all hosts, or a list with as many as there are hosts, in which
    /// an empty element is 5432. SHOW DATABASES shows the first host's.
    port: Ports, ports = "5432";
    /// Log in to servers as this user, whoever the client is: one pool for all.
    user: String, user_name = "the client's user";
    /// Password of this user.
    password: Secret, password = "the one in auth_file";
    /// User who runs auth_query.
    auth_user: String, text = "auth_user";
    /// Query that fetches a user's password.
    auth_query: String, text = "auth_query";
    /// Database in which auth_query is run.
    auth_dbname: String, text = "auth_dbname";
    /// Sent to the server at its start as client_encoding.
    client_encoding: String, text = "not sent";
    /// Sent to the server at its start as datestyle.
    datestyle: String, text = "not sent";
    /// Sent to the server at its start as timezone.
    timezone: String, text = "not sent";
    /// Sent to the server at its start as application_name.
    application_name: String, text = "not sent";
    /// How many servers each pool may have; 0 is without limit, negative is not set.
    pool_size: i32, count = "default_pool_size";
    /// Keep at least this many servers in pools that are in use; negative is not set.
    min_pool_size: i32, count = "min_pool_size";
    /// How many servers a pool may have on top when clients wait too long; negative is not set.
    /// The old name reserve_pool means the same.
    reserve_pool_size: i32, count = "reserve_pool_size";
    /// How many servers the database may have; 0 and negative are not set.
    max_db_connections: i32, count = "max_db_connections";
    /// How many clients the database may have; 0 and negative are not set.
    max_db_client_connections: i32, count = "max_db_client_connections";
    /// Close unused servers that are older, in whole seconds; 0 is not set.
    server_lifetime: Micros, seconds = "server_lifetime";
    /// Drop clients that wait longer for a server, in whole seconds; 0 is never.
    query_wait_timeout: Micros, seconds = "query_wait_timeout";
    /// When a server goes back to its pool.
    pool_mode: PoolMode, pool_mode = "pool_mode";
    /// Which host of a list is connected next.
    load_balance_hosts: LoadBalance, load_balance = "round-robin";
    /// What servers must be like, with libpq's words. One that is not is closed, and the next host
    /// is tried at once; when all have been tried, they are again after server_login_retry. A server
    /// that does not fit any more is not used again. prefer-standby takes any server if no host is a
    /// standby, and looks for one again after server_login_retry.
    target_session_attrs: SessionAttrs, session_attrs = "any";
    /// Query to run after each login to a server.
    connect_query: String, text = "none";
}

entry! {
    /// What an entry of `[users]` says; `None` where it says nothing.
    UserEntry, USER_KEYS;
    /// When a server goes back to its pool; wins over the database's.
    pool_mode: PoolMode, pool_mode = "the database's, pool_mode";
    /// How many servers each pool may have; wins over the database's; negative is not set.
    pool_size: i32, count = "the database's, default_pool_size";
    /// How many servers a pool may have on top when clients wait too long; negative is not set.
    reserve_pool_size: i32, count = "the database's, reserve_pool_size";
    /// How many servers the user may have; 0 and negative are not set.
    max_user_connections: i32, count = "max_user_connections";
    /// How many clients the user may have; 0 and negative are not set.
    max_user_client_connections: i32, count = "max_user_client_connections";
    /// Drop server and client if a query runs longer, in whole seconds; 0 is not set.
    query_timeout: Micros, seconds = "query_timeout";
    /// Drop clients that wait longer for a server, in whole seconds; 0 is never.
    query_wait_timeout: Micros, seconds = "the database's, query_wait_timeout";
    /// Drop server and client that are idle in a transaction for longer, in whole seconds; 0 is
    /// not set.
    idle_transaction_timeout: Micros, seconds = "idle_transaction_timeout";
    /// Drop server and client if a transaction is open for longer, in whole seconds; 0 is not set.
    transaction_timeout: Micros, seconds = "transaction_timeout";
    /// Drop clients that sent nothing for longer, in whole seconds; 0 is not set.
    client_idle_timeout: Micros, seconds = "client_idle_timeout";
}

entry! {
    /// What an entry of `[peers]` says.
    PeerEntry, PEER_KEYS;
    /// Host name, address, or directory of a Unix socket. Always there after reading.
    host: String, text = "required";
    /// Port of the peer.
    port: i32, port = "6432";
    /// How many cancel requests may be forwarded at a time; negative is not set, 0 is none.
    pool_size: i32, count = "default_pool_size";
}

/// The port of a server if its entry has none.
pub const SERVER_PORT: i32 = 5432;
/// The port of a peer if its entry has none.
pub const PEER_PORT: i32 = 6432;
/// The longest name of a database, in bytes.
pub const DATABASE_NAME_MAX: usize = 63;
/// The longest name of a user, in bytes.
pub const USER_NAME_MAX: usize = 127;
/// The longest password, in bytes.
pub const PASSWORD_MAX: usize = 65_530;

impl DatabaseEntry {
    /// False if a reload from `self` to `other` must replace the servers (config 5.3).
    pub fn connects_like(&self, other: &DatabaseEntry) -> bool {
        self.dbname == other.dbname
            && self.host == other.host
            && self.ports() == other.ports()
            && self.user == other.user
            && self.connect_query == other.connect_query
            && self.auth_dbname == other.auth_dbname
            && self.auth_query == other.auth_query
            && self.load_balance_hosts.unwrap_or_default()
                == other.load_balance_hosts.unwrap_or_default()
            && self.target_session_attrs.unwrap_or_default()
                == other.target_session_attrs.unwrap_or_default()
    }

    /// All that `connects_like` compares, as a text for another process.
    pub fn place(&self) -> String {
        let balance = self.load_balance_hosts.unwrap_or_default().word();
        let attrs = self.target_session_attrs.unwrap_or_default().word();
        let names = [
            &self.dbname,
            &self.host,
            &self.ports().show(),
            &self.user,
            &self.connect_query,
            &self.auth_dbname,
            &self.auth_query,
        ];
        format!("{names:?} {balance} {attrs} ")
    }

    fn ports(&self) -> Ports {
        self.port.clone().unwrap_or(SERVER_PORT.into())
    }

    /// The list of hosts with their ports. Empty elements are left out; one empty text stands for
    /// the Unix socket if there is no host at all.
    pub fn hosts(&self) -> Vec<(&str, i32)> {
        let ports = self.ports();
        let elements = self.host.as_deref().unwrap_or("").split(',').enumerate();
        let hosts = elements.filter(|(_, host)| !host.is_empty());
        match hosts.map(|(at, host)| (host, ports.of(at))).collect::<Vec<_>>() {
            none if none.is_empty() => vec![("", ports.of(0))],
            list => list,
        }
    }

    /// False if there is a list of ports that is not as long as the list of hosts.
    fn has_matching_ports(&self, journal: &mut Journal) -> bool {
        let hosts = self.host.as_deref().map_or(1, |hosts| hosts.split(',').count());
        let ports = self.port.as_ref().map_or(1, Ports::count);
        let matches = ports == 1 || ports == hosts;
        if !matches {
            let hosts = if hosts == 1 { "1 host".into() } else { format!("{hosts} hosts") };
            let text = format!("could not match {ports} port numbers to {hosts}");
            journal.line(Level::Error, text);
        }
        matches
    }
}

fn text(value: &str, _: &mut Journal) -> Option<String> {
    Some(value.to_owned())
}

fn count(value: &str, _: &mut Journal) -> Option<i32> {
    Some(atoi(value))
}

/// Whole seconds; a negative number means "as good as never" (config 3.4).
fn seconds(value: &str, _: &mut Journal) -> Option<Micros> {
    Some(u64::try_from(atoi(value)).map_or(Micros(u64::MAX), Micros::from_secs))
}

fn port(value: &str, journal: &mut Journal) -> Option<i32> {
    refuse(atoi(value), |port| *port != 0, "port", value, journal)
}

fn ports(value: &str, journal: &mut Journal) -> Option<Ports> {
    let ports = Ports::read(value, SERVER_PORT);
    refuse(ports, Option::is_some, "port", value, journal)?
}

fn pool_mode(value: &str, journal: &mut Journal) -> Option<PoolMode> {
    let mode = PoolMode::parse(value);
    refuse(mode, Option::is_some, "pool mode", value, journal)?
}

fn load_balance(value: &str, journal: &mut Journal) -> Option<LoadBalance> {
    let choice = LoadBalance::parse(value);
    refuse(choice, Option::is_some, "load_balance_hosts", value, journal)?
}

fn session_attrs(value: &str, journal: &mut Journal) -> Option<SessionAttrs> {
    let choice = SessionAttrs::parse(value);
    refuse(choice, Option::is_some, "target_session_attrs", value, journal)?
}

fn refuse<T>(
    value: T,
    good: impl Fn(&T) -> bool,
    what: &str,
    text: &str,
    journal: &mut Journal,
) -> Option<T> {
    if !good(&value) {
        journal.line(Level::Error, format!("invalid {what}: {text}"));
        return None;
    }
    Some(value)
}

fn user_name(value: &str, journal: &mut Journal) -> Option<String> {
    Some(shorten(value, USER_NAME_MAX, journal).to_owned())
}

fn password(value: &str, journal: &mut Journal) -> Option<Secret> {
    Secret::parse(shorten(value, PASSWORD_MAX, journal))
}

/// Cuts what is too long, with the reference's WARNING, which names a line of source code.
fn shorten<'a>(value: &'a str, max: usize, journal: &mut Journal) -> &'a str {
    let short = cut(value, max);
    if short.len() < value.len() {
        let place = format!("{}:{}", file!(), line!());
        let text = format!("bug in {place} - string truncated");
        journal.line(Level::Warning, text);
    }
    short
}

/// What errors call a string and its keys; which keys have an older name.
struct Words {
    string: &'static str,
    key: &'static str,
    old_names: &'static [(&'static str, &'static str)],
}

const DATABASE_WORDS: Words = Words {
    string: "connection string",
    key: "connection",
    old_names: &[("reserve_pool", "reserve_pool_size")],
};
const USER_WORDS: Words = Words { string: "user settings", key: "user", old_names: &[] };
const PEER_WORDS: Words = Words { old_names: &[], ..DATABASE_WORDS };

/// Reads a string into an entry.
fn fill<E: Default>(
    keys: &'static [Key<E>],
    string: &str,
    words: &Words,
    journal: &mut Journal,
) -> Option<E> {
    let mut entry = E::default();
    for pair in connstr::pairs(string) {
        let Ok((name, value)) = pair else {
            journal.line(Level::Error, format!("syntax error in {}", words.string));
            return None;
        };
        let renamed = words.old_names.iter().find(|(old, _)| *old == name);
        let new_name = renamed.map_or(name, |(_, new)| new);
        let Some(key) = keys.iter().find(|key| key.name == new_name) else {
            let text = format!("unrecognized {} parameter: {name}", words.key);
            journal.line(Level::Error, text);
            return None;
        };
        if !(key.set)(&mut entry, &value, journal) {
            return None;
        }
    }
    Some(entry)
}

/// Reads an entry of `[databases]`, or the string of `*` for a database that a client asked for.
/// `None` if it is wrong, which has been logged.
pub fn parse_database(name: &str, string: &str, journal: &mut Journal) -> Option<DatabaseEntry> {
    if name == "pgbouncer" {
        let text = "database name \"pgbouncer\" is reserved";
        journal.line(Level::Error, text.to_owned());
        return None;
    }
    let mut entry = fill(DATABASE_KEYS, string, &DATABASE_WORDS, journal)?;
    if name.len() > DATABASE_NAME_MAX {
        journal.line(Level::Warning, format!("too long db name: {name}"));
        let text = "cannot create database, no memory?";
        journal.line(Level::Error, text.to_owned());
        return None;
    }
    if !entry.has_matching_ports(journal) {
        return None;
    }
    entry.dbname.get_or_insert_with(|| name.to_owned());
    Some(entry)
}

/// Reads an entry of `[users]`; the name may come back shortened.
pub fn parse_user(name: &str, string: &str, journal: &mut Journal) -> Option<(String, UserEntry)> {
    let entry = fill(USER_KEYS, string, &USER_WORDS, journal)?;
    Some((user_name(name, journal)?, entry))
}

/// Reads an entry of `[peers]`; the name is a number from 1 to 65535.
pub fn parse_peer(name: &str, string: &str, journal: &mut Journal) -> Option<(u32, PeerEntry)> {
    let digits = name.bytes().all(|byte| byte.is_ascii_digit());
    let id = name.parse::<u32>().ok().filter(|_| digits);
    let Some(id) = id.filter(|id| (1..=65_535).contains(id)) else {
        let text = "ids of peers must be a number larger than 0 and at most 65536";
        journal.line(Level::Error, text.to_owned());
        return None;
    };
    let entry = fill(PEER_KEYS, string, &PEER_WORDS, journal)?;
    if entry.host.is_none() {
        let text = format!("host was not provided for peer {id}");
        journal.line(Level::Error, text);
        return None;
    }
    Some((id, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(journal: &mut Journal) -> Vec<String> {
        let lines = std::iter::from_fn(|| journal.pop());
        lines.map(|(level, text)| format!("{level:?} {text}")).collect()
    }

    fn database(name: &str, string: &str) -> (Option<DatabaseEntry>, Vec<String>) {
        let mut journal = Journal::default();
        let entry = parse_database(name, string, &mut journal);
        (entry, lines(&mut journal))
    }

    #[test]
    fn databases_take_what_is_given_and_nothing_else() {
        let empty = DatabaseEntry { dbname: Some("foo".into()), ..DatabaseEntry::default() };
        assert_eq!(database("foo", ""), (Some(empty.clone()), vec![]));
        let string = "dbname=d host=a,b port=5432x user=u password='a''b' pool_size=abc \
                      server_lifetime=1.5 pool_mode=Transaction load_balance_hosts=DISABLE \
                      query_wait_timeout=-1 reserve_pool_size=4 reserve_pool=5";
        let want = DatabaseEntry {
            dbname: Some("d".into()),
            host: Some("a,b".into()),
            port: Some(5432.into()),
            user: Some("u".into()),
            password: Some(Secret(b"a'b".to_vec())),
            pool_size: Some(0),
            server_lifetime: Some(Micros::from_secs(1)),
            pool_mode: Some(PoolMode::Transaction),
            load_balance_hosts: Some(LoadBalance::Disable),
            query_wait_timeout: Some(Micros(u64::MAX)),
            reserve_pool_size: Some(5),
            ..DatabaseEntry::default()
        };
        assert_eq!(database("foo", string), (Some(want), vec![]));
        let last = database("foo", "reserve_pool=5 reserve_pool_size=4 port=1 port=-2").0;
        let last = last.map(|entry| (entry.reserve_pool_size, entry.port));
        assert_eq!(last, Some((Some(4), Some(Ports::from(-2)))));
    }

    #[test]
    fn wrong_databases_are_refused_with_the_reference_s_words() {
        let long = "n".repeat(64);
        let too_long = format!("Warning too long db name: {long}");
        for (name, string, want) in [
            ("a", "host=", "Error syntax error in connection string"),
            ("a", "host=x ; y", "Error syntax error in connection string"),
            ("a", "host='x'port=5", "Error unrecognized connection parameter: ort"),
            ("a", "Host=x", "Error unrecognized connection parameter: Host"),
            ("a", "query_timeout=1", "Error unrecognized connection parameter: query_timeout"),
            ("a", "port=0", "Error invalid port: 0"),
            ("a", "port=x", "Error invalid port: x"),
            ("a", "pool_mode=x", "Error invalid pool mode: x"),
            ("a", "load_balance_hosts=x", "Error invalid load_balance_hosts: x"),
            ("a", "target_session_attrs=x", "Error invalid target_session_attrs: x"),
            ("a", "host=a,b port=1,0", "Error invalid port: 1,0"),
            ("a", "host=a,b,c port=1,2", "Error could not match 2 port numbers to 3 hosts"),
            ("a", "port=1,2", "Error could not match 2 port numbers to 1 host"),
            ("pgbouncer", "", "Error database name \"pgbouncer\" is reserved"),
            (&long, "", &too_long),
        ] {
            let (entry, lines) = database(name, string);
            assert_eq!((entry, lines.first().map(String::as_str)), (None, Some(want)), "{string}");
        }
        let (_, lines) = database(&long, "");
        assert_eq!(lines[1], "Error cannot create database, no memory?");
        assert!(database(&"n".repeat(63), "").0.is_some());
        assert!(database("", "").0.is_some());
    }

    #[test]
    fn hosts_have_one_port_or_one_each() {
        for (string, want) in [
            ("", vec![("", 5432)]),
            ("port=7", vec![("", 7)]),
            ("host=a", vec![("a", 5432)]),
            ("host=a,b port=7", vec![("a", 7), ("b", 7)]),
            ("host=a,b port=7,8x", vec![("a", 7), ("b", 8)]),
            ("host=a,,b, port=1,2,,4", vec![("a", 1), ("b", 5432)]),
            ("host=, port=1,2", vec![("", 1)]),
            ("host=' a,b '", vec![(" a", 5432), ("b ", 5432)]),
        ] {
            assert_eq!(database("a", string).0.unwrap_or_default().hosts(), want, "{string}");
        }
    }

    #[test]
    fn long_names_and_passwords_are_cut_with_a_warning() {
        let (user, password) = ("u".repeat(128), "p".repeat(65_531));
        let (entry, lines) = database("a", &format!("user={user} password={password}"));
        let entry = entry.unwrap_or_default();
        assert_eq!(entry.user.map(|user| user.len()), Some(127));
        assert_eq!(entry.password.map(|password| password.0.len()), Some(65_530));
        assert_eq!(lines.len(), 2);
        for line in lines {
            assert!(line.starts_with("Warning bug in ") && line.ends_with(" - string truncated"));
        }
    }

    #[test]
    fn users_have_their_own_keys() {
        let mut journal = Journal::default();
        let (name, entry) =
            parse_user("*", "pool_size=3 query_timeout=2x", &mut journal).unwrap_or_default();
        assert_eq!((name.as_str(), entry.pool_size), ("*", Some(3)));
        assert_eq!(entry.query_timeout, Some(Micros::from_secs(2)));
        for (string, want) in [
            ("pool_size", "Error syntax error in user settings"),
            ("reserve_pool=1", "Error unrecognized user parameter: reserve_pool"),
            ("pool_mode=x", "Error invalid pool mode: x"),
        ] {
            assert_eq!(parse_user("a", string, &mut journal), None);
            assert_eq!(lines(&mut journal), [want]);
        }
        let long = parse_user(&"u".repeat(200), "", &mut journal).unwrap_or_default();
        assert_eq!((long.0.len(), lines(&mut journal).len()), (127, 1));
        assert!(parse_user("pgbouncer", "", &mut journal).is_some());
    }

    #[test]
    fn peers_need_an_id_and_a_host() {
        let mut journal = Journal::default();
        let ids = "Error ids of peers must be a number larger than 0 and at most 65536";
        for (id, string, want) in [
            ("0", "host=x", Err(ids)),
            ("65536", "host=x", Err(ids)),
            ("-1", "host=x", Err(ids)),
            ("+1", "host=x", Err(ids)),
            ("1x", "host=x", Err(ids)),
            ("", "host=x", Err(ids)),
            ("99999999999", "host=x", Err(ids)),
            ("7", "port=1", Err("Error host was not provided for peer 7")),
            ("7", "", Err("Error host was not provided for peer 7")),
            ("7", "host=x port=0", Err("Error invalid port: 0")),
            ("7", "host=x dbname=y", Err("Error unrecognized connection parameter: dbname")),
            (
                "7",
                "host=x reserve_pool=1",
                Err("Error unrecognized connection parameter: reserve_pool"),
            ),
            ("1", "host=x port=1 pool_size=2", Ok(1)),
            ("0065535", "host=x", Ok(65_535)),
        ] {
            let read = parse_peer(id, string, &mut journal).map(|(id, _)| id);
            let lines = lines(&mut journal);
            let got = read.ok_or(lines.first().map_or("", String::as_str));
            assert_eq!(got, want, "{id} {string}");
        }
    }

    #[test]
    fn only_what_a_connection_is_made_of_replaces_servers() {
        let base = database("a", "host=h").0.unwrap_or_default();
        for (string, alike) in [
            ("host=h port=5432 load_balance_hosts=round-robin dbname=a", true),
            ("host=h password=x pool_size=3 pool_mode=statement application_name=y", true),
            ("host=h auth_user=x timezone=y server_lifetime=1 query_wait_timeout=1", true),
            ("host=i", false),
            ("host=h port=1", false),
            ("host=h dbname=b", false),
            ("host=h user=u", false),
            ("host=h connect_query=x", false),
            ("host=h auth_dbname=x", false),
            ("host=h auth_query=x", false),
            ("host=h load_balance_hosts=disable", false),
            ("host=h target_session_attrs=any", true),
            ("host=h target_session_attrs=primary", false),
        ] {
            let other = database("a", string).0.unwrap_or_default();
            assert_eq!(base.connects_like(&other), alike, "{string}");
            assert_eq!(base.place() == other.place(), alike, "{string}");
        }
    }
}
