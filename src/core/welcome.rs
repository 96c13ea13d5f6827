//! What a client is told when it has logged in (auth 1.8, admin 1.4).

use super::face::{Action, ClientId, Peer};
use super::pool::Welcome;
use super::Core;
use crate::wire::write;
use std::rc::Rc;

impl Core {
    /// Sends the welcome to a client that waited for it.
    pub(super) fn send_welcome(&mut self, id: ClientId) {
        let mut message = Vec::new();
        self.welcome(id, &mut message);
        self.actions.push_back(Action::Send(Peer::Client(id), message));
    }

    /// Writes the welcome with what the pool knows.
    pub(super) fn welcome(&mut self, id: ClientId, out: &mut Vec<u8>) {
        let pool = self.clients.get(id).and_then(|client| client.pool);
        let welcome = pool.and_then(|pool| self.pools.get(pool)?.welcome.clone());
        self.welcome_with(id, welcome, out);
    }

    /// Writes AuthenticationOk, the parameters, the cancel key and ReadyForQuery.
    pub(super) fn welcome_with(
        &mut self,
        id: ClientId,
        welcome: Option<Rc<Welcome>>,
        out: &mut Vec<u8>,
    ) {
        let key = self.new_cancel_key(id);
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        client.login = None;
        client.welcomed = true;
        write::authentication(out, 0, b"");
        if client.console.is_some() {
            for (name, value) in CONSOLE_PARAMETERS {
                write::parameter_status(out, name.as_bytes(), value.as_bytes());
            }
        }
        if let Some(welcome) = &welcome {
            out.extend_from_slice(&welcome.untracked);
            client.vars.fill(&self.tracked, &welcome.vars);
            self.shared.share(&mut client.vars);
        }
        match welcome {
            Some(welcome) if client.vars.is_shared_with(&welcome.vars) => {
                out.extend_from_slice(&welcome.tracked);
            }
            _ => out.extend_from_slice(&client.vars.packets(&self.tracked)),
        }
        write::backend_key(out, key);
        if !self.settings.login_notify_message.is_empty() {
            write::notice(out, self.settings.login_notify_message.as_bytes());
        }
        write::ready(out, b'I');
    }
}

/// What the admin database says at login (admin 1.4).
const CONSOLE_PARAMETERS: [(&str, &str); 7] = [
    ("server_version", "1.25.2/bouncer"),
    ("client_encoding", "UTF8"),
    ("server_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "GMT"),
    ("standard_conforming_strings", "on"),
    ("is_superuser", "on"),
];
