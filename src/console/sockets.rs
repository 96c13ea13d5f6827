//! Tables with a row per connection (admin 3.7).

use super::show::View;
use super::table::{count, int, text, Column, Table};
use crate::base::Micros;
use crate::core::client::{self, Client, ClientState};
use crate::core::console::Console;
use crate::core::database::Database;
use crate::core::pool::Pool;
use crate::core::server::{Server, ServerState};
use crate::core::vars::{Vars, APPLICATION_NAME};
use crate::core::{Addr, ClientId, Peer, ServerId};

/// One end of a connection: who is there, and the port to show.
pub(super) struct End {
    addr: Addr,
    pub(super) port: i32,
}

impl End {
    /// `unix_port` stands for sockets that have none.
    pub(super) fn new(addr: Addr, unix_port: i32) -> End {
        let port = match addr {
            Addr::Inet(at) => at.port().into(),
            Addr::Unix { .. } => unix_port,
            Addr::Unknown => 0,
        };
        End { addr, port }
    }

    pub(super) fn text(&self) -> String {
        match self.addr {
            Addr::Inet(at) => at.ip().to_string(),
            Addr::Unix { .. } => "unix".into(),
            Addr::Unknown => "(bad-af)".into(),
        }
    }
}

/// A client or a server.
struct SocketRow<'a> {
    view: View<'a>,
    kind: &'static str,
    user: &'a str,
    database: &'a str,
    state: &'static str,
    remote: End,
    local: End,
    connect_time: Micros,
    request_time: Micros,
    wait: Micros,
    close_needed: bool,
    number: u64,
    /// Number of the other end of the link.
    link: Option<u64>,
    process_id: i64,
    prepared: usize,
    application_name: &'a [u8],
    tls: &'a str,
    buffer: Buffer,
}

/// The bytes of a connection as the reference's one buffer would have them: first what is decided
/// and not sent yet, then what is not decided yet.
#[derive(Clone, Copy)]
struct Buffer {
    unsent: usize,
    held: usize,
    /// Bytes of the packet in progress that have not come yet.
    missing: usize,
}

impl Buffer {
    /// What this connection sent is unsent with the one that it goes to.
    fn new(view: View<'_>, peer: Peer, link: Option<Peer>) -> Buffer {
        let own = view.around.pending(peer);
        let unsent = link.map_or(0, |link| view.around.pending(link).unsent);
        Buffer { unsent, held: own.held, missing: own.missing }
    }

    fn received(self) -> usize {
        self.unsent.saturating_add(self.held)
    }

    fn is_in_use(self) -> bool {
        self.received() > 0 || self.missing > 0
    }
}

/// The form in which an object's number is shown.
fn pointer(number: u64) -> String {
    format!("0x{:x}", client::pointer(number))
}

fn application_name(vars: &Vars) -> &[u8] {
    vars.get(APPLICATION_NAME).map_or(b"", |name| name)
}

fn client_row<'a>(
    view: View<'a>,
    id: ClientId,
    client: &'a Client,
    state: &'static str,
) -> SocketRow<'a> {
    let core = view.core;
    let port = core.settings().listen_port;
    let server = client.server().and_then(|id| core.servers().get(id));
    let mut buffer = Buffer::new(view, Peer::Client(id), client.server().map(Peer::Server));
    let asked = if id == view.asker { view.asked } else { 0 };
    let waiting = client.console().map_or(0, Console::waiting);
    buffer.held = buffer.held.saturating_add(waiting).saturating_add(asked);
    SocketRow {
        view,
        kind: "C",
        user: core.shown_user(client),
        database: client.pool().and_then(|id| core.pool(id)).map_or("(nodb)", |p| p.names().0),
        state,
        remote: End::new(client.remote(), port),
        local: End::new(client.local(), port),
        connect_time: client.connect_time(),
        request_time: client.last_packet(),
        wait: client.query_start().map_or(Micros(0), |start| core.now.since(start)),
        close_needed: false,
        number: client.number(),
        link: server.map(Server::number),
        process_id: match client.remote() {
            Addr::Unix { pid } => pid.into(),
            _ => 0,
        },
        prepared: client.prepared(),
        application_name: application_name(client.vars()),
        tls: client.tls().map_or("", |tls| &tls.text),
        buffer,
    }
}

fn server_row<'a>(
    view: View<'a>,
    pool: &'a Pool,
    id: ServerId,
    server: &'a Server,
    state: &'static str,
) -> SocketRow<'a> {
    let core = view.core;
    let port = core.database(pool.database()).map_or(0, Database::port);
    let client = server.client().and_then(|id| core.clients().get(id));
    SocketRow {
        view,
        kind: "S",
        user: pool.names().1,
        database: pool.names().0,
        state,
        remote: End::new(server.remote(), port),
        local: End::new(server.local(), core.settings().listen_port),
        connect_time: server.connect_time(),
        request_time: server.last_packet(),
        wait: Micros(0),
        close_needed: server.close_needed(),
        number: server.number(),
        link: client.map(Client::number),
        process_id: server.process_id().into(),
        prepared: server.prepared(),
        application_name: application_name(server.vars()),
        tls: server.tls().map_or("", |tls| &tls.text),
        buffer: Buffer::new(view, Peer::Server(id), server.client().map(Peer::Client)),
    }
}

/// States of clients with their words, in the order in which they are shown.
type ClientStates = &'static [(ClientState, &'static str)];
/// States of servers with their words, in the order in which they are shown.
type ServerStates = &'static [(ServerState, &'static str)];

fn clients_of<'a>(
    view: View<'a>,
    pool: &'a Pool,
    states: ClientStates,
) -> impl Iterator<Item = SocketRow<'a>> {
    let arena = view.core.clients();
    states.iter().flat_map(move |(state, word)| {
        let ids = pool.clients(*state).ids(arena).into_iter();
        ids.filter_map(move |id| Some(client_row(view, id, arena.get(id)?, word)))
    })
}

fn servers_of<'a>(
    view: View<'a>,
    pool: &'a Pool,
    states: ServerStates,
) -> impl Iterator<Item = SocketRow<'a>> {
    let arena = view.core.servers();
    states.iter().flat_map(move |(state, word)| {
        let ids = pool.servers(*state).ids(arena).into_iter();
        ids.filter_map(move |id| Some(server_row(view, pool, id, arena.get(id)?, word)))
    })
}

/// The columns that all four tables have.
fn columns<'a>() -> Vec<Column<SocketRow<'a>>> {
    vec![
        text("type", |r| r.kind.into()),
        text("user", |r| r.user.into()),
        text("database", |r| r.database.into()),
        // Replication connections come with a later version.
        text("replication", |_| "none".into()),
        text("state", |r| r.state.into()),
        text("addr", |r| r.remote.text().into()),
        int("port", |r| r.remote.port.into()),
        text("local_addr", |r| r.local.text().into()),
        int("local_port", |r| r.local.port.into()),
        text("connect_time", |r| r.view.around.time_text(r.connect_time).into()),
        text("request_time", |r| r.view.around.time_text(r.request_time).into()),
        int("wait", |r| r.wait.secs() as i64),
        int("wait_us", |r| r.wait.subsec_micros() as i64),
        int("close_needed", |r| r.close_needed.into()),
        text("ptr", |r| pointer(r.number).into()),
        text("link", |r| r.link.map_or_else(String::new, pointer).into()),
        int("remote_pid", |r| r.process_id),
        text("tls", |r| r.tls.into()),
        text("application_name", |r| r.application_name.into()),
        int("prepared_statements", |r| count(r.prepared)),
        int("id", |r| r.number as i64),
    ]
}

/// The columns of SHOW SOCKETS and SHOW ACTIVE_SOCKETS.
fn columns_with_buffer<'a>() -> Vec<Column<SocketRow<'a>>> {
    let mut columns = columns();
    columns.extend([
        int("recv_pos", |r: &SocketRow<'a>| count(r.buffer.received())),
        int("pkt_pos", |r| count(r.buffer.unsent)),
        int("pkt_remain", |r| count(r.buffer.missing)),
        // What was sent is not kept.
        int("send_pos", |_| 0),
        int("send_remain", |_| 0),
        int("pkt_avail", |r| count(r.buffer.held)),
        int("send_avail", |r| count(r.buffer.unsent)),
    ]);
    columns
}

/// SHOW CLIENTS: pool by pool; clients that are logging in are not shown.
pub(super) fn clients(view: View<'_>) -> Table {
    use ClientState as C;
    const SHOWN: ClientStates = &[
        (C::Active, "active"),
        (C::Waiting, "waiting"),
        (C::Joined, "waiting"),
        (C::ActiveCancel, "active_cancel_req"),
        (C::WaitingCancel, "waiting_cancel_req"),
    ];
    let rows = view.core.pools().flat_map(|(_, pool)| clients_of(view, pool, SHOWN));
    let rows = rows.map(|row| match (row.state, row.link) {
        ("active", None) => SocketRow { state: "idle", ..row },
        _ => row,
    });
    Table::new(&columns(), rows)
}

/// SHOW SERVERS: pool by pool.
pub(super) fn servers(view: View<'_>) -> Table {
    let pools = view.core.pools();
    let rows = pools.flat_map(|(_, pool)| servers_of(view, pool, &ServerState::SHOWN));
    Table::new(&columns(), rows)
}

/// Everything but cancel requests and what carries them: pool by pool, then who is logging in.
fn sockets(view: View<'_>) -> impl Iterator<Item = SocketRow<'_>> {
    use ClientState as C;
    use ServerState as S;
    const CLIENTS: ClientStates =
        &[(C::Active, "cl_active"), (C::Waiting, "cl_waiting"), (C::Joined, "cl_waiting")];
    const SERVERS: ServerStates = &[
        (S::Active, "sv_active"),
        (S::Idle, "sv_idle"),
        (S::Used, "sv_used"),
        (S::Tested, "sv_tested"),
        (S::Login, "sv_login"),
    ];
    let arena = view.core.clients();
    let in_pools = view.core.pools().flat_map(move |(_, pool)| {
        clients_of(view, pool, CLIENTS).chain(servers_of(view, pool, SERVERS))
    });
    let login = view.core.login_clients().into_iter();
    let login = login.filter_map(move |id| Some(client_row(view, id, arena.get(id)?, "cl_login")));
    in_pools.chain(login)
}

/// SHOW SOCKETS.
pub(super) fn all(view: View<'_>) -> Table {
    Table::new(&columns_with_buffer(), sockets(view))
}

/// SHOW ACTIVE_SOCKETS: those with bytes in memory or in the middle of a packet.
pub(super) fn active(view: View<'_>) -> Table {
    let rows = sockets(view).filter(|row| row.buffer.is_in_use());
    Table::new(&columns_with_buffer(), rows)
}
