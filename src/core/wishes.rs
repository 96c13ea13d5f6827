//! What a client asks for in its StartupMessage (auth 1.4 to 1.7).

use super::face::{Addr, ClientId};
use super::fault::{self, Fault};
use super::replication::Replication;
use super::vars::APPLICATION_NAME;
use super::Core;
use crate::base::text::in_word_list;
use crate::base::Level;
use crate::wire::read::lossy;
use crate::wire::startup;

/// The parameters of a StartupMessage that are not stored as tracked ones.
#[derive(Default)]
pub(super) struct Wishes {
    pub(super) user: Option<String>,
    pub(super) database: Option<String>,
    pub(super) replication: Replication,
    /// What a replication client sent as `options`, which is not for us to read.
    pub(super) options: Option<Vec<u8>>,
    /// Names that begin with `_pq_.`, none of which is known.
    pub(super) extensions: Vec<Vec<u8>>,
}

impl Core {
    /// Reads the parameters; tracked ones become the client's values.
    pub(super) fn read_wishes(&mut self, id: ClientId, body: &[u8]) -> Result<Wishes, Fault> {
        let (pairs, complete) = match startup::parameters(body) {
            Ok(pairs) => (pairs, true),
            Err(pairs) => (pairs, false),
        };
        let mut wishes = Wishes::default();
        for (name, value) in &pairs {
            if *name == b"replication" {
                wishes.replication = Replication::read(value);
            }
        }
        let mut application_name = None;
        for (name, value) in pairs {
            match name {
                b"user" => wishes.user = Some(lossy(value)),
                b"database" => wishes.database = Some(lossy(value)),
                b"replication" => {}
                b"options" if wishes.replication.is_some() => {
                    wishes.options = Some(value.to_vec());
                }
                b"options" => self.read_options(id, value)?,
                b"application_name" => application_name = Some(value),
                _ if name.starts_with(b"_pq_.") => wishes.extensions.push(name.to_vec()),
                _ => self.read_parameter(id, name, value, "startup parameter")?,
            }
        }
        self.set_application_name(id, application_name);
        if !complete {
            return Err(fault::BAD_STARTUP_LAYOUT);
        }
        Ok(wishes)
    }

    /// Stores one parameter, or finds that it may be ignored. `what` is how it came, for messages.
    fn read_parameter(
        &mut self,
        id: ClientId,
        name: &[u8],
        value: &[u8],
        what: &str,
    ) -> Result<(), Fault> {
        if let Some(at) = self.tracked.find(name) {
            if let Some(client) = self.clients.get_mut(id) {
                client.vars.set(&self.tracked, at, value.into());
            }
            return Ok(());
        }
        let (name, value) = (lossy(name), lossy(value));
        let ignored = &self.settings.ignore_startup_parameters;
        let in_options = what != "startup parameter";
        if in_word_list(ignored, &name) || in_options && in_word_list(ignored, "options") {
            return Ok(());
        }
        self.client_log(id, Level::Warning, &format!("unsupported {what}: {name}={value}"));
        Err(Fault::formatted(format!("unsupported {what}: {name}")))
    }

    fn read_options(&mut self, id: ClientId, value: &[u8]) -> Result<(), Fault> {
        let pairs = startup::options(value).ok_or(fault::BAD_OPTIONS)?;
        for (name, value) in pairs {
            self.read_parameter(id, &name, &value, "startup parameter in options")?;
        }
        Ok(())
    }

    fn set_application_name(&mut self, id: ClientId, given: Option<&[u8]>) {
        let add_host = self.settings.application_name_add_host.on();
        let Some(client) = self.clients.get(id) else {
            return;
        };
        let value = match (given, add_host) {
            (None, false) => return,
            (Some(name), false) => name.to_vec(),
            (name, true) => {
                let mut text = name.unwrap_or(b"app").to_vec();
                text.extend_from_slice(b" - ");
                text.extend_from_slice(self.address_details(client.remote).as_bytes());
                text
            }
        };
        if let Some(client) = self.clients.get_mut(id) {
            client.vars.set(&self.tracked, APPLICATION_NAME, value.into());
        }
    }

    /// An address as application_name_add_host shows it.
    fn address_details(&self, addr: Addr) -> String {
        match addr {
            Addr::Inet(at) => at.to_string(),
            Addr::Unix { pid } => {
                format!("unix({pid}@{}):{}", self.host_name, self.settings.listen_port)
            }
            Addr::Unknown => "(bad-af):0".into(),
        }
    }
}
