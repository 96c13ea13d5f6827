//! Clients that are logging in.

use super::super::client::Client;
use super::super::face::ClientId;
use super::super::fault::Fault;
use super::super::login::Login;
use super::super::Core;
use super::Known;
use crate::base::fields::Fields;

/// True if a login is begun anew by who takes it in, because of what it waits for: it is told as a
/// client in `ClientState::Login` without a pool that does not wait.
pub(super) fn begins_anew(_client: &Client) -> bool {
    false
}

impl Core {
    /// Writes the fields of a login.
    pub(super) fn hand_out_login(&self, _login: &Login, _fields: &mut Fields) {}

    /// Reads them: puts a `Login` into a client that is there already, listed by its state, with
    /// everything that is not in the login. With a fault it is closed. Called when all clients and
    /// servers are there.
    pub(super) fn take_in_login(
        &mut self,
        _id: ClientId,
        _fields: &[u8],
        _known: &Known,
    ) -> Result<(), Fault> {
        Ok(())
    }

    /// Everything has been read: logins go on that are begun anew.
    pub(super) fn begin_logins_anew(&mut self, _known: &Known) {}
}
