//! What the configuration files say: typed settings, databases, users, peers. Pure: files are read
//! through a closure.

pub mod connstr;
pub mod entries;
pub mod hba;
pub mod ident;
pub mod ini;
pub mod ldap;
mod ldap_url;
pub mod manual;
pub mod settings;
mod token;
pub mod users;
pub mod value;

pub use entries::{DatabaseEntry, PeerEntry, UserEntry};
pub use ini::strerror;
pub use settings::{param, Param, SetError, Settings, When, PARAMS, RESERVED_AUTH_DBNAME};
pub use value::{
    AuthType, Flag, LoadBalance, PoolMode, Ports, Secret, SessionAttrs, SslMode, SslNegotiation,
    Value,
};

use crate::base::{Journal, Level};
use std::collections::BTreeMap;
use std::io;

/// One snapshot of everything that the main file and its includes say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// The parameters of `[pgbouncer]`.
    pub settings: Settings,
    /// `[databases]` by name, without `*`.
    pub databases: BTreeMap<String, DatabaseEntry>,
    /// The string of the database `*`: not looked at before a client needs it.
    pub autodb: Option<String>,
    /// `[users]` by name.
    pub users: BTreeMap<String, UserEntry>,
    /// `[peers]` by id.
    pub peers: BTreeMap<u32, PeerEntry>,
}

/// Reads `file` on top of the settings in force. Returns what was read and whether all was read:
/// after an error the part in front of it still counts (config 5.2). ERROR and DEBUG lines go to
/// the journal, whose verbosity follows the parameter `verbose`. `read` returns a file's bytes;
/// nothing for what is no regular file.
pub fn load(
    current: &Settings,
    file: &str,
    starting: bool,
    read: &mut dyn FnMut(&str) -> io::Result<Vec<u8>>,
    journal: &mut Journal,
) -> (Config, bool) {
    let mut loader = Loader {
        config: Config { settings: current.clone(), ..Config::default() },
        section: Section::None,
        main_seen: false,
        starting,
        read,
        journal,
    };
    let mut complete = ini::read(&mut loader, file);
    if complete && !loader.main_seen {
        complete = loader.fail("load_init_file: main section missing from config file".into());
    }
    (loader.config, complete)
}

/// Reads the string of the database `*` for a database that a client asked for. `None` if the
/// string or the name is wrong, which has been logged (config 4.1).
pub fn parse_autodb(name: &str, string: &str, journal: &mut Journal) -> Option<DatabaseEntry> {
    entries::parse_database(name, string, journal)
}

#[derive(Clone, Copy)]
enum Section {
    None,
    Main,
    Databases,
    Users,
    Peers,
}

struct Loader<'a> {
    config: Config,
    section: Section,
    main_seen: bool,
    starting: bool,
    read: &'a mut dyn FnMut(&str) -> io::Result<Vec<u8>>,
    journal: &'a mut Journal,
}

impl Loader<'_> {
    /// Logs an ERROR line; false for the caller to return.
    fn fail(&mut self, text: String) -> bool {
        self.journal.line(Level::Error, text);
        false
    }

    fn assign_param(&mut self, key: &str, value: &str) -> bool {
        match self.config.settings.assign(key, value, self.starting) {
            Ok(()) => {
                if key == "verbose" {
                    self.journal.set_verbose(self.config.settings.verbose);
                }
                true
            }
            Err(SetError::Unknown) => self.fail(format!("unknown parameter: pgbouncer/{key}")),
            Err(SetError::Refused(Some(text))) => self.fail(text.to_owned()),
            Err(SetError::Refused(None)) => false,
        }
    }

    fn assign_database(&mut self, key: &str, value: &str) -> Option<()> {
        if key == "*" {
            self.config.autodb = Some(value.to_owned());
            return Some(());
        }
        let entry = entries::parse_database(key, value, self.journal)?;
        self.config.databases.insert(key.to_owned(), entry);
        Some(())
    }

    fn assign_user(&mut self, key: &str, value: &str) -> Option<()> {
        let (name, entry) = entries::parse_user(key, value, self.journal)?;
        self.config.users.insert(name, entry);
        Some(())
    }

    fn assign_peer(&mut self, key: &str, value: &str) -> Option<()> {
        let (id, entry) = entries::parse_peer(key, value, self.journal)?;
        self.config.peers.insert(id, entry);
        Some(())
    }
}

impl ini::Target for Loader<'_> {
    fn open(&mut self, file: &str) -> io::Result<Vec<u8>> {
        (self.read)(file)
    }

    fn section(&mut self, name: &str) -> bool {
        self.section = match name {
            "pgbouncer" => Section::Main,
            "databases" => Section::Databases,
            "users" => Section::Users,
            "peers" => Section::Peers,
            _ => return self.fail("fill_defaults fail".to_owned()),
        };
        if name == "pgbouncer" {
            self.main_seen = true;
            self.config.settings.reset(self.starting);
        }
        true
    }

    fn assign(&mut self, key: &str, value: &str) -> bool {
        match self.section {
            Section::None => self.fail(format!("load_init_file: value without section: {key}")),
            Section::Main => self.assign_param(key, value),
            Section::Databases => self.assign_database(key, value).is_some(),
            Section::Users => self.assign_user(key, value).is_some(),
            Section::Peers => self.assign_peer(key, value).is_some(),
        }
    }

    fn journal(&mut self) -> &mut Journal {
        self.journal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Loaded = (Config, bool, Vec<String>);

    fn load_over(current: &Settings, text: &str, starting: bool) -> Loaded {
        let mut journal = Journal::default();
        let mut read = |file: &str| match file {
            "x.ini" => Ok(text.as_bytes().to_vec()),
            _ => Err(io::Error::from_raw_os_error(13)),
        };
        let (config, good) = load(current, "x.ini", starting, &mut read, &mut journal);
        let lines = std::iter::from_fn(|| journal.pop());
        let lines = lines.map(|(level, text)| format!("{level:?} {text}")).collect();
        (config, good, lines)
    }

    fn start(text: &str) -> Loaded {
        load_over(&Settings::default(), text, true)
    }

    #[test]
    fn sections_come_in_any_order_and_number() {
        let (config, good, lines) = start(
            "[users]\nu = pool_size=1\n[databases]\na = host=x\n* = nonsense\n'b c' =\n= \n\
             a = port=6\n[peers]\n1 = host=y\n[pgbouncer]\n[databases]\n[pgbouncer]\n\
             listen_port = 7000\nlisten_port = 7001\n",
        );
        assert_eq!((good, lines), (true, vec![]));
        let names: Vec<&str> = config.databases.keys().map(String::as_str).collect();
        assert_eq!(names, ["", "a", "b c"]);
        let a = config.databases.get("a").cloned().unwrap_or_default();
        assert_eq!((a.host, a.port), (None, Some(6.into())));
        assert_eq!(config.autodb.as_deref(), Some("nonsense"));
        assert_eq!((config.users.len(), config.peers.len()), (1, 1));
        assert_eq!(config.settings.listen_port, 7001);
    }

    #[test]
    fn a_header_throws_away_what_came_before_it() {
        let text = "[pgbouncer]\nlisten_port = 1\nauth_file = f\nverbose = 0\n[pgbouncer]\n";
        let (config, _, _) = start(text);
        assert_eq!(config.settings.listen_port, 6432);
        assert_eq!(config.settings.auth_file.as_deref(), Some("f"));

        let running = Settings {
            listen_port: 7000,
            default_pool_size: 5,
            auth_user: Some("u".into()),
            conffile: Some("x.ini".into()),
            ..Settings::default()
        };
        let (config, good, lines) = load_over(&running, "[pgbouncer]\nlisten_port = abc\n", false);
        assert_eq!((good, lines), (true, vec![]));
        let want = Settings { default_pool_size: 20, ..running };
        assert_eq!(config.settings, want);
    }

    #[test]
    fn errors_stop_the_load_with_the_reference_s_lines() {
        let at = |key: &str, value: &str, line: u32| {
            let value = format!("Error invalid value \"{value}\"");
            format!("{value} for parameter {key} in configuration (x.ini:{line})")
        };
        for (text, first, key, value, line) in [
            ("a = b", "load_init_file: value without section: a", "a", "b", 1),
            ("[pgbouncer]\nx = y", "unknown parameter: pgbouncer/x", "x", "y", 2),
            ("[pgbouncer]\n= y", "unknown parameter: pgbouncer/", "", "y", 2),
            (
                "[pgbouncer]\nListen_Port = 1",
                "unknown parameter: pgbouncer/Listen_Port",
                "Listen_Port",
                "1",
                2,
            ),
            (
                "[pgbouncer]\nauth_dbname = pgbouncer",
                "cannot use the reserved \"pgbouncer\" database as an auth_dbname",
                "auth_dbname",
                "pgbouncer",
                2,
            ),
            ("[databases]\na = b", "syntax error in connection string", "a", "b", 2),
            ("[users]\na = b", "syntax error in user settings", "a", "b", 2),
            (
                "[peers]\n0 = host=x",
                "ids of peers must be a number larger than 0 and at most 65536",
                "0",
                "host=x",
                2,
            ),
        ] {
            let want = vec![format!("Error {first}"), at(key, value, line)];
            let (_, good, lines) = start(text);
            assert_eq!((good, lines), (false, want), "{text:?}");
        }
        let (_, good, lines) = start("[pgbouncer]\nlisten_port = a");
        assert_eq!((good, lines), (false, vec![at("listen_port", "a", 2)]));
    }

    #[test]
    fn sections_must_be_known_and_the_main_one_there() {
        let no_main = "Error load_init_file: main section missing from config file";
        for text in ["", "[databases]\na =\n", "[users]\n"] {
            let (_, good, lines) = start(text);
            assert_eq!((good, lines), (false, vec![no_main.to_owned()]), "{text:?}");
        }
        for section in ["PgBouncer", " pgbouncer ", "", "pgturnstile"] {
            let text = format!("Error invalid section \"{section}\" in configuration (x.ini:1)");
            let want = vec!["Error fill_defaults fail".to_owned(), text];
            let (_, good, lines) = start(&format!("[{section}]\n"));
            assert_eq!((good, lines), (false, want));
        }
    }

    #[test]
    fn what_stands_before_an_error_counts() {
        let running =
            Settings { max_client_conn: 7, admin_users: "root".into(), ..Settings::default() };
        let text = "[databases]\na =\n[pgbouncer]\nmax_client_conn = 8\nx = y\nadmin_users = r\n";
        let (config, good, _) = load_over(&running, text, false);
        assert!(!good && config.databases.contains_key("a"));
        assert_eq!(config.settings.max_client_conn, 8);
        assert_eq!(config.settings.admin_users, "");
    }

    #[test]
    fn a_missing_file_changes_nothing_and_says_why() {
        let mut journal = Journal::default();
        let running = Settings { max_client_conn: 7, ..Settings::default() };
        let mut read = |_: &str| Err(io::Error::from_raw_os_error(13));
        let (config, good) = load(&running, "y.ini", false, &mut read, &mut journal);
        assert_eq!((good, config.settings), (false, running));
        let line = "could not load file \"y.ini\": Permission denied".to_owned();
        assert_eq!(journal.pop(), Some((Level::Error, line)));
        assert_eq!(journal.pop(), None);
    }

    #[test]
    fn verbose_counts_from_its_line_on() {
        let (_, _, lines) = start("[pgbouncer]\nverbose = 1\n[users]\nverbose=0");
        let want = "Debug parse_ini_file: 'verbose' = '1' ok:1";
        assert_eq!(lines.first().map(String::as_str), Some(want));
        assert_eq!(lines.get(1).map(String::as_str), Some("Debug parse_ini_file: [users]"));
    }

    #[test]
    fn auto_databases_are_read_when_needed() {
        let mut journal = Journal::default();
        let entry = parse_autodb("shop", "host=h", &mut journal).unwrap_or_default();
        assert_eq!(entry.dbname.as_deref(), Some("shop"));
        assert_eq!(parse_autodb("shop", "nonsense", &mut journal), None);
        assert_eq!(parse_autodb(&"n".repeat(64), "", &mut journal), None);
    }
}
