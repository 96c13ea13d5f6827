//! Users and databases.

use super::super::Core;
use super::Row;

impl Core {
    /// The rows of users, also of those that auth_query has found.
    pub(super) fn hand_out_users(&self, _rows: &mut Vec<Row>) {}

    /// What was known of a user.
    pub(super) fn take_in_user(&mut self, _state: &[u8]) {}

    /// The rows of databases.
    pub(super) fn hand_out_databases(&self, _rows: &mut Vec<Row>) {}

    /// What was known of a database.
    pub(super) fn take_in_database(&mut self, _state: &[u8]) {}
}
