//! The process as a whole, and what SET has changed in it.

use super::super::Core;
use super::Row;

impl Core {
    /// The rows of the process and of its settings.
    pub(super) fn hand_out_process(&self, _rows: &mut Vec<Row>) {}

    /// What the process was doing.
    pub(super) fn take_in_process(&mut self, _state: &[u8]) {}

    /// A parameter that had been changed by SET.
    pub(super) fn take_in_setting(&mut self, _state: &[u8]) {}
}
