//! Clients.

use super::super::face::{ClientId, Origin, Peer};
use super::super::Core;
use super::{Known, Row};

impl Core {
    /// The rows of clients.
    pub(super) fn hand_out_clients(&self, _except: ClientId, _rows: &mut Vec<(Row, Option<Peer>)>) {
    }

    /// Reads all clients: who each row is.
    pub(super) fn take_in_clients(
        &mut self,
        rows: &[(Row, Option<Origin>)],
        _known: &mut Known,
    ) -> Vec<Option<Peer>> {
        vec![None; rows.len()]
    }
}
