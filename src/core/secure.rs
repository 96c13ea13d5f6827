//! TLS as far as it is a decision: who is offered it, who must have it, what follows (auth 9).

use super::client::Client;
use super::face::{Action, Addr, ClientId, Facts, Peer};
use super::fault::{self, Fault};
use super::login::Stage;
use super::Core;
use crate::base::Level;
use crate::config::SslMode;

/// The modes that are in force: those of the settings, unless what these ask for can't be set up.
#[derive(Debug)]
pub(super) struct Modes {
    client: SslMode,
    server: SslMode,
    /// Mode, files and whatever else decides how servers are connected.
    pub(super) way_to_servers: String,
    /// The same of the process whose servers have been taken in, until they have been compared.
    pub(super) way_before: Option<String>,
}

impl Default for Modes {
    fn default() -> Modes {
        let (client, server) = (SslMode::Disable, SslMode::Disable);
        Modes { client, server, way_to_servers: String::new(), way_before: None }
    }
}

impl Core {
    /// TLS has been set up for these modes towards clients and servers. Servers that are connected
    /// in another way (a text) are others.
    pub fn set_tls_modes(&mut self, client: SslMode, server: SslMode, way_to_servers: String) {
        let way_before = self.tls.way_before.take();
        self.tls = Modes { client, server, way_to_servers, way_before };
    }

    /// Has servers replaced that another process has connected in another way than it is done here,
    /// as after a RELOAD. To be called when all that is SET has been set up.
    pub fn replace_otherwise_connected(&mut self) {
        let before = self.tls.way_before.take();
        if before.is_some_and(|before| before != self.tls.way_to_servers) {
            self.reconnect(None);
        }
    }

    /// True if TCP servers are asked whether they like TLS.
    pub(super) fn asks_servers_for_tls(&self) -> bool {
        self.tls.server != SslMode::Disable
    }

    /// True if this client may go over to TLS.
    pub(super) fn offers_tls(&self, id: ClientId) -> bool {
        let is_tcp = |client: &Client| matches!(client.remote, Addr::Inet(_));
        self.tls.client != SslMode::Disable && self.clients.get(id).is_some_and(is_tcp)
    }

    /// True if this client would have had to go over to TLS.
    pub(super) fn is_plain_where_forbidden(&self, client: &Client) -> bool {
        let is_tcp = matches!(client.remote, Addr::Inet(_));
        is_tcp && client.tls.is_none() && self.tls.client.forbids_plain()
    }

    /// A client asks for TLS; not in the middle of its login.
    pub(super) fn start_tls(&mut self, id: ClientId) -> Result<(), Fault> {
        if !matches!(self.login_stage(id), Some(Stage::Opening)) {
            return Err(fault::BAD_PACKET);
        }
        self.set_stage(id, Stage::Securing);
        self.actions.push_back(Action::StartTls(Peer::Client(id)));
        Ok(())
    }

    /// True if a client is about to make its handshake.
    pub(super) fn is_starting_tls(&self, id: ClientId) -> bool {
        matches!(self.login_stage(id), Some(Stage::Securing))
    }

    fn login_stage(&self, id: ClientId) -> Option<&Stage> {
        self.clients.get(id)?.login.as_ref().map(|login| &login.stage)
    }

    /// A handshake is over; without facts, a server wants none.
    pub(super) fn connection_secured(&mut self, peer: Peer, facts: Option<Facts>) {
        let facts = facts.map(Box::new);
        match peer {
            Peer::Client(id) => {
                if let Some(client) = self.clients.get_mut(id) {
                    client.tls = facts;
                    client.last_packet = self.now;
                }
                self.set_stage(id, Stage::Opening);
            }
            Peer::Server(id) => {
                if let Some(facts) = &facts {
                    let level = match self.settings.log_connections.on() {
                        true => Level::Log,
                        false => Level::Noise,
                    };
                    self.server_log(id, level, &format!("SSL established: {}", facts.text));
                }
                if let Some(server) = self.servers.get_mut(id) {
                    server.tls = facts;
                }
                self.begin_server_login(id);
            }
        }
    }
}
