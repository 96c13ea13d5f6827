//! SHOW MEM: what our objects take (admin 3.10).

use super::show::View;
use super::table::{count, int, text, Column, Table};
use crate::base::Objects;

type Row = (&'static str, Objects);

/// What there is none of in this version.
const NONE: Objects = Objects { size: 0, used: 0, free: 0 };

/// SHOW MEM.
pub(super) fn memory(view: View<'_>) -> Table {
    let columns: [Column<Row>; 5] = [
        text("name", |r| r.0.into()),
        int("size", |r| count(r.1.size)),
        int("used", |r| count(r.1.used)),
        int("free", |r| count(r.1.free)),
        int("memtotal", |r| count(r.1.bytes())),
    ];
    Table::new(&columns, rows(view))
}

fn rows(view: View<'_>) -> [Row; 12] {
    let of = view.core.memory();
    let socket = view.around.connection_size();
    let connected = |half: Objects| Objects { size: half.size.saturating_add(socket), ..half };
    [
        ("user_cache", of.users),
        ("credentials_cache", of.credentials),
        ("db_cache", of.databases),
        ("peer_cache", of.peers),
        ("peer_pool_cache", NONE),
        ("pool_cache", of.pools),
        ("outstanding_request_cache", of.replies),
        ("server_cache", connected(of.servers)),
        ("client_cache", connected(of.clients)),
        ("iobuf_cache", view.around.buffers()),
        ("var_list_cache", of.vars),
        ("server_prepared_statement_cache", of.statements),
    ]
}
