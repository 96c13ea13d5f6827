//! Settings in the forms that the net floor takes.

use crate::config::Settings;
use crate::net::listen::ListenOptions;
use crate::net::options::SocketOptions;
use crate::net::relay::Limits;
use crate::net::resolve::DnsTimes;
use crate::net::NetOptions;

/// What `net` needs to know.
pub(super) fn net(settings: &Settings) -> NetOptions {
    NetOptions {
        limits: Limits {
            rounds: u32::try_from(settings.sbuf_loopcnt).unwrap_or(0),
            unsent: usize::try_from(settings.pkt_buf).unwrap_or(4096),
        },
        sockets: sockets(settings),
        dns: DnsTimes {
            found: settings.dns_max_ttl,
            failed: settings.dns_nxdomain_ttl,
            zones: settings.dns_zone_check_period,
        },
    }
}

fn sockets(settings: &Settings) -> SocketOptions {
    SocketOptions {
        keepalive: settings.tcp_keepalive.on(),
        keepidle: settings.tcp_keepidle,
        keepintvl: settings.tcp_keepintvl,
        keepcnt: settings.tcp_keepcnt,
        user_timeout: settings.tcp_user_timeout,
        buffer: settings.tcp_socket_buffer,
    }
}

/// Where to listen.
pub(super) fn listen(settings: &Settings) -> ListenOptions {
    ListenOptions {
        listen_addr: settings.listen_addr.clone(),
        port: settings.listen_port,
        backlog: settings.listen_backlog,
        unix_dir: settings.unix_socket_dir.clone(),
        unix_mode: u32::try_from(settings.unix_socket_mode).unwrap_or(0o777),
        unix_group: settings.unix_socket_group.clone(),
        reuse_port: settings.so_reuseport.on(),
        defer_accept: settings.tcp_defer_accept.on(),
        sockets: sockets(settings),
    }
}
