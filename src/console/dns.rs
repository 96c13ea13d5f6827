//! What the resolver knows (admin 3.11).

use super::show::View;
use super::table::{count, int, long, text, Column, Table};
use crate::base::Micros;
use crate::net::resolve::{Host, Zone};
use std::net::SocketAddr;

/// A host name, and what time it is.
struct HostRow {
    host: Host,
    now: Micros,
}

impl HostRow {
    /// Whole seconds for which the answer is still good.
    fn ttl(&self) -> u64 {
        match self.host.pending {
            true => 0,
            false => self.host.until.since(self.now).secs(),
        }
    }

    /// The addresses, each with a port of 0.
    fn addrs(&self) -> String {
        let addrs = self.host.addrs.iter().filter(|_| !self.host.pending);
        let addrs: Vec<_> = addrs.map(|ip| SocketAddr::new(*ip, 0).to_string()).collect();
        addrs.join(",")
    }
}

/// SHOW DNS_HOSTS.
pub(super) fn hosts(view: View<'_>) -> Table {
    let columns: [Column<HostRow>; 3] = [
        text("hostname", |r| (&*r.host.name).into()),
        long("ttl", HostRow::ttl),
        text("addrs", |r| r.addrs().into()),
    ];
    let now = view.core.now;
    let hosts = view.around.dns_hosts().into_iter();
    Table::new(&columns, hosts.map(|host| HostRow { host, now }))
}

/// SHOW DNS_ZONES.
pub(super) fn zones(view: View<'_>) -> Table {
    let columns: [Column<Zone>; 3] = [
        text("zonename", |r| (&*r.name).into()),
        long("serial", |r| r.serial),
        int("count", |r| count(r.hosts)),
    ];
    Table::new(&columns, view.around.dns_zones())
}
