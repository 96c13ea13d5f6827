//! A pooler whose logins are decided by an HBA file.

use std::path::Path;

use nix::unistd::{getuid, User};

use super::pooler::Setup;
use super::postgres::postgres;
use super::secrets::{md5_secret, scram_secret};

/// The name of the user that the test runs as.
pub(crate) fn own_name() -> String {
    User::from_uid(getuid()).unwrap().unwrap().name
}

/// Users with secrets of each kind, `<name>-pw`; rules are read from `hba` in this folder. Servers
/// are always reached as `trusty`.
pub(crate) fn ruled(folder: &Path, settings: &str) -> Setup {
    let at = postgres().port;
    let place = format!("host=127.0.0.1 port={at} user=trusty dbname=template1");
    let at = folder.display();
    let scram = scram_secret("scrammer-pw", b"salt salt salt 1", 4096);
    let names = ["app", "ann", "bob", "shop", &own_name()].map(|n| format!("\"{n}\" \"{n}-pw\"\n"));
    Setup {
        databases: format!("shop = {place}\nstore = {place}\nall = {place}\n"),
        settings: format!(
            "pool_mode = transaction\nlisten_addr = 127.0.0.1,::1\nauth_type = hba\n\
             auth_hba_file = {at}/hba\n{settings}"
        ),
        users: format!(
            "{}\"md\" \"{}\"\n\"scrammer\" \"{scram}\"\n\"empty\" \"\"\n",
            names.concat(),
            md5_secret("md", "md-pw")
        ),
    }
}
