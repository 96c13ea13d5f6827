//! Configuration and user list come in from the file system (config 5.1, 5.4).

use crate::base::{Journal, Level};
use crate::config::hba::{self, Rules};
use crate::config::ident::{self, IdentMaps};
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

/// Reads the HBA file, and the ident file for its maps; `None` if they don't count, or if the HBA
/// file can't be opened (which is logged).
pub(super) fn load_rules(settings: &Settings, journal: &mut Journal) -> Option<Rules> {
    if settings.auth_type != AuthType::Hba {
        return None;
    }
    let maps = match settings.auth_ident_file.as_deref().map(|name| (name, read(name))) {
        None => IdentMaps::default(),
        Some((_, Ok(bytes))) => ident::parse(&bytes, journal),
        Some((name, Err(error))) => {
            let text = format!("could not open ident config file {name}: {}", reason(&error));
            journal.line(Level::Error, text);
            IdentMaps::default()
        }
    };
    let name = &settings.auth_hba_file;
    match read(name) {
        Ok(bytes) => Some(hba::parse(name, &bytes, &maps, &mut read, journal)),
        Err(error) => {
            let text = format!("could not open hba config file {name}: {}", reason(&error));
            journal.line(Level::Error, text);
            None
        }
    }
}
