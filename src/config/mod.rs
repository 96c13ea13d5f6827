//! What the configuration files say: typed settings, databases, users, peers. Pure: files are read
//! through a closure.

pub mod connstr;
pub mod entries;
pub mod ini;
pub mod settings;
pub mod users;
pub mod value;

pub use entries::{DatabaseEntry, PeerEntry, UserEntry};
pub use ini::strerror;
pub use settings::{param, Param, SetError, Settings, When, PARAMS};
pub use value::{AuthType, Flag, LoadBalance, PoolMode, Secret, SslMode, Value};

use crate::base::{Journal, Level};
use entries::{Key, DATABASE_KEYS, PEER_KEYS, USER_KEYS};
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
        config: Config {
            settings: current.clone(),
            ..Config::default()
        },
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

/// Names every parameter that is not at its default, and every key that is given, although this
/// version does nothing with it: "server_tls_sslmode", "databases/foo: auth_user".
pub fn without_effect(config: &Config) -> Vec<String> {
    let default = Settings::default();
    let mut names: Vec<String> = PARAMS
        .iter()
        .filter(|param| param.later && !(param.same)(&config.settings, &default))
        .map(|param| param.name.to_owned())
        .collect();
    let autodb = config
        .autodb
        .as_ref()
        .and_then(|string| parse_autodb("*", string, &mut Journal::default()));
    for (name, entry) in autodb.iter().map(|entry| ("*", entry)) {
        idle_keys("databases", name, entry, DATABASE_KEYS, &mut names);
    }
    for (name, entry) in &config.databases {
        idle_keys("databases", name, entry, DATABASE_KEYS, &mut names);
    }
    for (name, entry) in &config.users {
        idle_keys("users", name, entry, USER_KEYS, &mut names);
    }
    for (id, entry) in &config.peers {
        idle_keys("peers", &id.to_string(), entry, PEER_KEYS, &mut names);
    }
    names
}

fn idle_keys<E>(section: &str, name: &str, entry: &E, keys: &[Key<E>], names: &mut Vec<String>) {
    for key in keys.iter().filter(|key| key.later && (key.given)(entry)) {
        names.push(format!("{section}/{name}: {}", key.name));
    }
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
                self.journal.set_verbose(self.config.settings.verbose);
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
