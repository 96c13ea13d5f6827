//! The store of prepared statements.

use super::super::Core;
use super::{Known, Row};

impl Core {
    /// The rows of the store's statements.
    pub(super) fn hand_out_statements(&self, _rows: &mut Vec<Row>) {}

    /// A statement of the store.
    pub(super) fn take_in_statement(&mut self, _row: &Row, _known: &mut Known) {}
}
