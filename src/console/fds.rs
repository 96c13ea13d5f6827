//! SHOW FDS: every socket as a row from which another process can go on with it (takeover 5).
//!
//! The rows tell what there is at the moment; it is SUSPEND that leaves nothing but what a successor
//! can use.

use super::show::View;
use super::sockets::End;
use super::table::{bytea, int, long, text, Cell, Column, Table};
use super::Answer;
use crate::auth::PassKeys;
use crate::core::client::{Client, ClientState};
use crate::core::pool::Pool;
use crate::core::server::{Server, ServerState};
use crate::core::vars::Vars;
use crate::core::{ClientId, Core, Handed, Peer, ServerId};
use crate::wire::write;

/// Longer values of parameters are not told, in bytes: no SET can apply them (pooling 6), and a row
/// has to fit into what a successor reads at once (takeover 5.1).
const VALUE_MAX: usize = 127;

/// A socket.
struct FdRow<'a> {
    view: View<'a>,
    socket: Handed,
    fd: i32,
    task: &'static str,
    user: Option<&'a str>,
    database: Option<&'a str>,
    remote: End,
    cancel_key: u64,
    /// The other end of the link, 0 if there is none.
    link: i32,
    vars: Option<&'a Vars>,
    keys: Option<&'a PassKeys>,
}

impl FdRow<'_> {
    /// A tracked parameter of the connection.
    fn parameter(&self, name: &str) -> Cell {
        let at = self.view.core.tracked().find(name.as_bytes());
        let value = at.and_then(|at| self.vars?.get(at));
        value.filter(|value| value.len() <= VALUE_MAX).map(|value| &**value).into()
    }
}

fn columns<'a>() -> [Column<FdRow<'a>>; 15] {
    [
        int("fd", |r| r.fd.into()),
        text("task", |r| r.task.into()),
        text("user", |r| r.user.into()),
        text("database", |r| r.database.into()),
        text("addr", |r| r.remote.text().into()),
        int("port", |r| r.remote.port.into()),
        long("cancel", |r| r.cancel_key),
        int("link", |r| r.link.into()),
        text("client_encoding", |r| r.parameter("client_encoding")),
        text("std_strings", |r| r.parameter("standard_conforming_strings")),
        text("datestyle", |r| r.parameter("DateStyle")),
        text("timezone", |r| r.parameter("TimeZone")),
        // Only PAM and auth_query made users whose password a successor could not know otherwise.
        text("password", |_| Cell::Null),
        bytea("scram_client_key", |r| r.keys.map(|keys| &keys.client_key.as_bytes()[..])),
        bytea("scram_server_key", |r| r.keys.map(|keys| &keys.server_key.as_bytes()[..])),
    ]
}

/// The table, with descriptors and SCRAM keys for a console of the process's own user only.
pub(super) fn show(view: View<'_>, console: ClientId) -> Answer {
    let mut rows = rows(view);
    if !view.core.is_own_user(console) {
        rows.iter_mut().for_each(|row| row.keys = None);
        return Answer::Rows(Table::new(&columns(), rows));
    }
    let sockets = rows.iter().map(|row| row.socket).collect();
    Answer::Handed(Table::new(&columns(), rows), sockets)
}

/// Answers a console: each row is a packet that is sent by itself, its descriptor beside it.
pub(super) fn hand_over(core: &mut Core, id: ClientId, table: &Table, sockets: Vec<Handed>) {
    let mut head = Vec::new();
    table.describe(&mut head, &[]);
    core.answer_console(id, head);
    for (row, socket) in table.rows(&[]).zip(sockets) {
        core.answer_with_descriptor(id, row, socket);
    }
    let mut end = Vec::new();
    write::command_complete(&mut end, "SHOW");
    write::ready(&mut end, b'I');
    core.answer_console(id, end);
}

/// Listening sockets, clients that are logging in, then pool by pool: clients, servers.
fn rows(view: View<'_>) -> Vec<FdRow<'_>> {
    use ClientState as C;
    use ServerState as S;
    let (clients, servers) = (view.core.clients(), view.core.servers());
    let mut rows = listeners(view);
    let logging_in = view.core.login_clients().into_iter();
    rows.extend(logging_in.filter_map(|id| client(view, id, clients.get(id)?)));
    for (_, pool) in view.core.pools().filter(|(_, pool)| !pool.is_console()) {
        for state in [C::Active, C::Waiting, C::Joined] {
            let ids = pool.clients(state).ids(clients).into_iter();
            rows.extend(ids.filter_map(|id| client(view, id, clients.get(id)?)));
        }
        for state in [S::Active, S::Idle, S::Used, S::Tested, S::Login] {
            let ids = pool.servers(state).ids(servers).into_iter();
            rows.extend(ids.filter_map(|id| server(view, pool, id, servers.get(id)?)));
        }
    }
    rows
}

fn listeners(view: View<'_>) -> Vec<FdRow<'_>> {
    let port = view.core.settings().listen_port;
    let row = |socket: super::Listening| FdRow {
        view,
        socket: Handed::Listener(socket.number),
        fd: socket.fd,
        task: "pooler",
        user: None,
        database: None,
        remote: End::new(socket.addr, port),
        cancel_key: 0,
        link: 0,
        vars: None,
        keys: None,
    };
    view.around.listening().into_iter().map(row).collect()
}

/// The descriptor of the other end of a link, 0 if there is no link. Nothing if that end can't be
/// passed on: half a pair is of no use (takeover 5.3).
fn partner(view: View<'_>, peer: Option<Peer>) -> Option<i32> {
    peer.map_or(Some(0), |peer| view.around.descriptor(peer))
}

/// A client that is not, and will not become, a console.
fn client<'a>(view: View<'a>, id: ClientId, client: &'a Client) -> Option<FdRow<'a>> {
    let core = view.core;
    let pool = client.pool().and_then(|pool| core.pool(pool));
    // What a replication pair is can't be told: a successor would give its server to others.
    if pool.is_some_and(Pool::is_console) || client.replication().is_some() {
        return None;
    }
    Some(FdRow {
        view,
        socket: Handed::Peer(Peer::Client(id)),
        fd: view.around.descriptor(Peer::Client(id))?,
        task: "client",
        user: core.login_user(client),
        database: pool.map(|pool| pool.names().0),
        remote: End::new(client.remote(), core.settings().listen_port),
        cancel_key: client.cancel_key(),
        link: partner(view, client.server().map(Peer::Server))?,
        vars: Some(client.vars()),
        keys: pool.and_then(|pool| core.pass_keys(pool)),
    })
}

/// A server whose connection is open.
fn server<'a>(
    view: View<'a>,
    pool: &'a Pool,
    id: ServerId,
    server: &'a Server,
) -> Option<FdRow<'a>> {
    let core = view.core;
    if server.replication().is_some() {
        return None;
    }
    Some(FdRow {
        view,
        socket: Handed::Peer(Peer::Server(id)),
        fd: view.around.descriptor(Peer::Server(id))?,
        task: "server",
        user: Some(pool.names().1),
        database: Some(pool.names().0),
        remote: End::new(server.remote(), core.server_port(id)),
        cancel_key: server.cancel_key(),
        link: partner(view, server.client().map(Peer::Client))?,
        vars: Some(server.vars()),
        keys: core.pass_keys(pool),
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;
    use crate::core::{Addr, Origin};

    const LOCAL: Addr = Addr::Unix { pid: 77 };
    /// What the fixture's servers say in BackendKeyData.
    const SERVER_KEY: u64 = 0x1001_0102_0304;

    /// The console of the process's own user.
    fn own(at: &mut Fixture) -> ClientId {
        let id = at.client_from(LOCAL, Some(1000), "pgbouncer", "pgbouncer");
        at.taken(id);
        id
    }

    #[test]
    fn columns_are_those_of_the_contract() {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        let want = "fd int4, task text, user text, database text, addr text, port int4, \
                    cancel int8, link int4, client_encoding text, std_strings text, \
                    datestyle text, timezone text, password text, scram_client_key bytea, \
                    scram_server_key bytea";
        let types = [(" int4", " 23 4"), (" text", " 25 -1"), (" int8", " 20 8")];
        let want = types.into_iter().fold(want.to_owned(), |text, (word, oid)| {
            text.replace(&format!("{word},"), &format!("{oid},"))
        });
        let want = want.replace(" bytea", " 17 -1");
        assert_eq!(at.show(boss, "show fds").columns.join(", "), want);
    }

    #[test]
    fn the_order_is_listeners_logins_then_each_pool() {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        // Two clients of one pool: the first has a server, the second waits.
        let first = at.client("two", "alice");
        let server = at.serve();
        at.run(first, "begin");
        let second = at.client("two", "bob");
        let unix = at.client_from(LOCAL, Some(5), "one", "bob");
        let other = at.serve();
        let early = at.core.accepted(Origin { remote: LOCAL, local: LOCAL, uid: None });
        let shown = at.show(boss, "show fds");
        let fd = |id: ClientId| 100 + id.index();
        let server_fd = |id: ServerId| 200 + id.index();
        let key = |id| at.core.clients().get(id).unwrap().cancel_key();
        let (one, two) = (server_fd(server), server_fd(other));
        let want = [
            "7 pooler NULL NULL 127.0.0.1 6432 0 0".to_owned(),
            "8 pooler NULL NULL unix 6432 0 0".to_owned(),
            format!("{} client NULL NULL unix 6432 0 0", fd(early)),
            format!("{} client bob one unix 6432 {} 0", fd(unix), key(unix)),
            format!("{two} server bob one 127.0.0.1 5432 {SERVER_KEY} 0"),
            format!("{} client alice two 127.0.0.1 4000 {} {one}", fd(first), key(first)),
            format!("{} client bob two 127.0.0.1 4000 {} 0", fd(second), key(second)),
            format!("{one} server forced two 127.0.0.1 5432 {SERVER_KEY} {}", fd(first)),
        ];
        let got: Vec<String> = shown.rows.iter().map(|row| row[..8].join(" ")).collect();
        assert_eq!(got, want);
        assert!(shown.rows.iter().all(|row| row[12..] == ["NULL"; 3]));
    }

    #[test]
    fn parameters_are_those_of_each_connection() {
        let mut at = Fixture::new();
        let boss = at.console("boss");
        at.client("one", "bob");
        let server = at.serve();
        for (name, value) in
            [("TimeZone", "Mars"), ("DateStyle", "ISO, YMD"), ("standard_conforming_strings", "on")]
        {
            let body = [name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat();
            at.say(server, b'S', &body);
        }
        let long = [&b"client_encoding\0"[..], &[b'x'; VALUE_MAX + 1], b"\0"].concat();
        at.say(server, b'S', &long);
        let shown = at.show(boss, "show fds");
        assert_eq!(shown.rows[3][1], "server");
        assert_eq!(shown.rows[3][8..12], ["NULL", "on", "ISO, YMD", "Mars"]);
        assert_eq!(shown.rows[0][8..12], ["NULL"; 4]);
        let long = [&b"client_encoding\0"[..], &[b'x'; VALUE_MAX], b"\0"].concat();
        at.say(server, b'S', &long);
        let shown = at.show(boss, "show fds");
        assert_eq!(shown.rows[3][8], "x".repeat(VALUE_MAX));
    }

    #[test]
    fn only_the_processes_own_user_gets_descriptors() {
        let mut at = Fixture::new();
        let (boss, own) = (at.console("boss"), own(&mut at));
        let first = at.client("one", "bob");
        let server = at.serve();
        let rows = at.show(boss, "show fds").rows;
        assert_eq!(at.handed, []);
        assert_eq!(at.show(own, "SHOW FDS;").rows, rows);
        let peers = [Peer::Client(first), Peer::Server(server)].map(Handed::Peer);
        assert_eq!(at.handed, [&[Handed::Listener(0), Handed::Listener(1)], &peers[..]].concat());
        assert_eq!(rows.len(), 4);
        for (uid, user) in [(1000, "boss"), (1001, "boss")] {
            let other = at.client_from(LOCAL, Some(uid), "pgbouncer", user);
            at.taken(other);
            at.handed.clear();
            assert_eq!(at.show(other, "show fds").rows, rows);
            assert_eq!(at.handed, []);
        }
    }
}
