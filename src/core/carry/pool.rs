//! Pools.

use super::super::Core;
use super::Row;

impl Core {
    /// The rows of pools.
    pub(super) fn hand_out_pools(&self, _rows: &mut Vec<Row>) {}

    /// What was known of a pool.
    pub(super) fn take_in_pool(&mut self, _state: &[u8]) {}
}
