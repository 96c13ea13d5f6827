//! SHOW WAITING: every client that waits for a server, and why. The reference has nothing like it.

use super::show::View;
use super::table::{int, long, text, Column, Table};
use crate::base::Micros;
use crate::core::client::{Client, ClientState};
use crate::core::reason::Reason;

/// A client in a wait queue.
struct WaitingRow<'a> {
    view: View<'a>,
    client: &'a Client,
    database: &'a str,
    reason: Reason,
}

impl WaitingRow<'_> {
    fn user(&self) -> &str {
        self.client.user_name().unwrap_or("(nouser)")
    }

    fn waited(&self) -> Micros {
        let now = self.view.core.now;
        self.client.wait_start().map_or(Micros(0), |start| now.since(start))
    }
}

/// Pool by pool, each in the order of its queue.
fn rows(view: View<'_>) -> impl Iterator<Item = WaitingRow<'_>> {
    let core = view.core;
    core.pools().flat_map(move |(id, pool)| {
        let states = [ClientState::Waiting, ClientState::Joined];
        let queue = states.map(|state| pool.clients(state).ids(core.clients())).concat();
        queue.into_iter().enumerate().filter_map(move |(place, client)| {
            let client = core.clients().get(client)?;
            let reason = core.reason_of(client, id, place)?;
            Some(WaitingRow { view, client, database: pool.names().0, reason })
        })
    })
}

/// SHOW WAITING; `waited` is in microseconds.
pub(super) fn waiting(view: View<'_>) -> Table {
    let columns: [Column<WaitingRow<'_>>; 6] = [
        int("id", |r| r.client.number() as i64),
        text("database", |r| r.database.into()),
        text("user", |r| r.user().into()),
        text("reason", |r| r.reason.word.into()),
        text("detail", |r| (&*r.reason.detail).into()),
        long("waited", |r| r.waited().0),
    ];
    Table::new(&columns, rows(view))
}
