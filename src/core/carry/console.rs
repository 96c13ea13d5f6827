//! Console clients.

use super::super::console::Console;
use super::super::face::ClientId;
use super::super::fault::Fault;
use super::super::Core;
use super::Known;
use crate::base::fields::Fields;

impl Core {
    /// Writes the fields of a console.
    pub(super) fn hand_out_console(&self, _id: ClientId, _console: &Console, _fields: &mut Fields) {
    }

    /// Reads them: puts a `Console` into a client that is there already. With a fault it is closed.
    /// Called when all clients and servers are there.
    pub(super) fn take_in_console(
        &mut self,
        _id: ClientId,
        _fields: &[u8],
        _known: &Known,
    ) -> Result<(), Fault> {
        Ok(())
    }
}
