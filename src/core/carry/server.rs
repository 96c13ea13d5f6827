//! Servers.

use super::super::face::{ClientId, Origin, Peer};
use super::super::Core;
use super::{Known, Row};

impl Core {
    /// The rows of servers.
    pub(super) fn hand_out_servers(&self, _except: ClientId, _rows: &mut Vec<(Row, Option<Peer>)>) {
    }

    /// Reads all servers: who each row is.
    pub(super) fn take_in_servers(
        &mut self,
        _rows: &[(Row, Option<Origin>)],
        _known: &mut Known,
        _peers: &mut [Option<Peer>],
    ) {
    }
}
