//! What live tests stand on: PostgreSQL, a pooler under test, raw clients and servers that misbehave on purpose.

pub(crate) mod certs;
pub(crate) mod dns;
pub(crate) mod fake;
pub(crate) mod fds;
pub(crate) mod hba;
pub(crate) mod old;
pub(crate) mod pooler;
pub(crate) mod postgres;
pub(crate) mod raw;
pub(crate) mod run;
pub(crate) mod scratch;
pub(crate) mod secrets;
pub(crate) mod tls;
pub(crate) mod wire;

use std::time::{Duration, Instant};

/// How long anything that must happen may take; generous, because test machines are slow.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Polls `holds` until it is true; panics with `what` after `DEADLINE`.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "did not happen in {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
