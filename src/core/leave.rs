//! Leaving addresses that a host name has no more (pooling 10.3).

use super::face::{Addr, ServerId};
use super::server::ServerState;
use super::{fault, Core};
use std::net::IpAddr;

impl Core {
    /// Has the servers at this address replaced as soon as they are free, those of pools whose host
    /// is this very name; a name in a list of hosts is none. Who is still logging in there is
    /// closed at once (admin 4.5).
    pub(super) fn leave_address(&mut self, host: &str, addr: IpAddr) {
        for id in self.pools_of(None) {
            let Some(pool) = self.pools.get(id) else {
                continue;
            };
            let database = self.databases.get(pool.database);
            if database.and_then(|database| database.entry().host.as_deref()) != Some(host) {
                continue;
            }
            use ServerState as S;
            let states = [S::Active, S::Idle, S::Used, S::Tested, S::Login, S::BeingCanceled];
            let servers = states.map(|state| pool.servers(state).ids(&self.servers));
            for server in servers.concat() {
                self.leave_if_at(server, addr);
            }
            self.mark(id);
        }
    }

    fn leave_if_at(&mut self, id: ServerId, addr: IpAddr) {
        let Some(server) = self.servers.get_mut(id) else {
            return;
        };
        match server.remote {
            Addr::Inet(at) if at.ip() == addr => server.close_needed = true,
            _ => return,
        }
        if server.state == ServerState::Login {
            self.close_server(id, &fault::CONNECT_STRING_CHANGED, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Micros;
    use crate::config::{self, Settings};
    use crate::core::{Action, Decisions, Origin, Packet, Sink, Surroundings};
    use crate::wire::write;

    const NAMES: [&str; 4] = ["a.test", "a.test,b.test", "A.test", "10.0.0.1"];

    /// A core with a database `d0`, `d1`... for each of these hosts.
    fn core() -> Core {
        let around =
            Surroundings { now: Micros(1), seed: [7; 32], own_uid: 0, host_name: String::new() };
        let mut core = Core::new(Settings::default(), around);
        let entry = |(number, host): (usize, &&str)| format!("d{number} = host={host}\n");
        let entries: String = NAMES.iter().enumerate().map(entry).collect();
        let text = format!("[databases]\n{entries}[pgbouncer]\nauth_type = trust\n");
        let mut read = |_: &str| Ok(text.clone().into_bytes());
        let journal = &mut core.journal;
        let (config, _) = config::load(&Settings::default(), "x", true, &mut read, journal);
        core.configure(config, true);
        core.set_users(vec![("u".into(), b"p".to_vec())]);
        core
    }

    /// The server that a client of this database waits for, on its way to an address.
    fn server(core: &mut Core, number: usize, addr: &str) -> ServerId {
        let origin = Origin { remote: Addr::Unknown, local: Addr::Unknown, uid: None };
        let id = core.accepted(origin);
        let mut startup = Vec::new();
        let database = format!("d{number}");
        let wishes = [(&b"user"[..], &b"u"[..]), (b"database", database.as_bytes())];
        write::startup(&mut startup, wishes.into_iter());
        let len = startup.len() as u32;
        let packet = Packet { tag: 0, len, seen: &startup[4..], behind: false };
        core.client_packet(id, packet, &mut Sink::default());
        core.turn_end();
        let server = std::iter::from_fn(|| core.next_action()).find_map(|action| match action {
            Action::Connect(id) => Some(id),
            _ => None,
        });
        let server = server.unwrap();
        core.dialling(server, Addr::Inet(format!("{addr}:5432").parse().unwrap()));
        server
    }

    #[test]
    fn only_servers_at_the_address_of_this_very_name_are_left() {
        for (number, addr, want) in [
            (0, "10.0.0.1", true),
            (0, "10.0.0.2", false),
            (1, "10.0.0.1", false),
            (2, "10.0.0.1", false),
            (3, "10.0.0.1", false),
        ] {
            let mut core = core();
            let id = server(&mut core, number, addr);
            core.address_vanished("a.test", [10, 0, 0, 1].into());
            assert_eq!(core.servers().get(id).is_none(), want, "{} at {addr}", NAMES[number]);
        }
    }
}
