//! Configuration and user list come in from the file system (config 5.1, 5.4).

use crate::base::{Journal, Level};
use crate::config::{self, users, AuthType, Config, Settings};
use crate::net::options::reason;
use std::fs::{self, File};
use std::io::{self, Read};

/// Names and secrets, as `Core::set_users` takes them.
pub(super) type Users = Vec<(String, Vec<u8>)>;

/// Reads the configuration on top of the settings in force; false if an error ended it early.
pub(super) fn load(
    current: &Settings,
    file: &str,
    starting: bool,
    journal: &mut Journal,
) -> (Config, bool) {
    config::load(current, file, starting, &mut read, journal)
}

/// The bytes of a file; nothing for what is no regular file (config 2.1).
fn read(name: &str) -> io::Result<Vec<u8>> {
    let mut file = File::open(name)?;
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Reads auth_file; `None` if there is nothing new to know: then the old users stay.
pub(super) fn load_users(settings: &Settings, journal: &mut Journal) -> Option<Users> {
    if matches!(settings.auth_type, AuthType::Any | AuthType::Pam) {
        return None;
    }
    let name = settings.auth_file.as_ref().filter(|name| !name.is_empty())?;
    journal.line(Level::Debug, format!("loading auth_file: \"{name}\""));
    let bytes = match fs::read(name) {
        Ok(bytes) => bytes,
        Err(error) => {
            let text = format!("could not open auth_file {name}: {}", reason(&error));
            journal.line(Level::Error, text);
            return None;
        }
    };
    let (entries, error) = users::parse(&bytes);
    if let Some(text) = error {
        journal.line(Level::Error, text.into());
    }
    Some(entries.into_iter().map(|user| (user.name, user.secret.0)).collect())
}
