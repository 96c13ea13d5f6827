//! Time as a value: the clock is read in `app` only and handed down.

use std::ops::Add;

/// Microseconds since an origin that the process chose; also used for lengths of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub u64);

impl Micros {
    /// So many whole seconds.
    pub const fn from_secs(secs: u64) -> Micros {
        Micros(secs.saturating_mul(1_000_000))
    }

    /// Time from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: Micros) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }

    /// Whole seconds.
    pub fn secs(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Microseconds beyond the whole seconds.
    pub fn subsec_micros(self) -> u64 {
        self.0 % 1_000_000
    }

    /// True for a length of time that is not zero; settings use zero for "off".
    pub fn is_set(self) -> bool {
        self.0 != 0
    }
}

impl Add for Micros {
    type Output = Micros;
    fn add(self, other: Micros) -> Micros {
        Micros(self.0.saturating_add(other.0))
    }
}
