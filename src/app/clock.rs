//! The clock: wall time at the start, carried on by the monotonic clock, so that setting the
//! system's time neither stops nor fires a timeout.

use crate::base::Micros;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Tells the time in microseconds since 1970.
pub struct Clock {
    origin: Micros,
    start: Instant,
}

impl Clock {
    /// A clock that shows the system's time now.
    pub fn start() -> Clock {
        let origin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { origin: micros(origin), start: Instant::now() }
    }

    /// The time now.
    pub fn now(&self) -> Micros {
        self.origin + micros(self.start.elapsed())
    }
}

fn micros(time: std::time::Duration) -> Micros {
    Micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}
