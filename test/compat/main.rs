//! The same sessions against PgBouncer 1.18 (Debian's) and the program under test; what clients see must be equal where the
//! specification says that nothing changed since.

#[path = "../rig/mod.rs"]
#[expect(dead_code, reason = "the rig serves the live tests, too; these need a part of it")]
mod rig;

mod console;
mod exporter;
mod fds;
mod hba;
mod limits;
mod sessions;
mod tables;
mod takeover;
mod transcript;
