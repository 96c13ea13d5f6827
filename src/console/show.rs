//! SHOW: its topics and the columns of their tables (admin 3).

use super::rows::{self, DatabaseRow, PeerRow, PoolRow, UserRow};
use super::table::{count, int, text, Column, Table};
use super::waiting::waiting;
use super::{dns, memory, sockets, statistics};
use super::{Answer, Around, Call, Outcome, Refusal, COMMANDS, SET_HELP};
use crate::config::{When, PARAMS};
use crate::core::client::Access;
use crate::core::pause::Mode;
use crate::core::pool::Pool;
use crate::core::{ClientId, Core};
use crate::wire::write;

/// What tables are made from.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) core: &'a Core,
    pub(super) around: &'a dyn Around,
    /// Who asks.
    pub(super) asker: ClientId,
    /// The question's bytes, which are not done with before it is answered.
    pub(super) asked: usize,
}

/// Something to SHOW.
struct Topic {
    name: &'static str,
    /// Its line of SHOW HELP, if it has one.
    line: Option<u8>,
    access: Access,
    show: Show,
}

/// How a topic is shown.
enum Show {
    /// As a notice.
    Help,
    /// As this table.
    Rows(fn(View<'_>) -> Table),
    /// As [`super::fds`] does.
    Fds,
}

const fn topic(line: u8, name: &'static str, show: fn(View<'_>) -> Table) -> Topic {
    Topic { name, line: Some(line), access: Access::Stats, show: Show::Rows(show) }
}

/// All topics but the parameters; those with a line in the order of SHOW HELP.
static TOPICS: &[Topic] = &[
    Topic { name: "HELP", line: Some(0), access: Access::Stats, show: Show::Help },
    topic(0, "CONFIG", config),
    topic(0, "DATABASES", databases),
    topic(0, "POOLS", pools),
    topic(0, "CLIENTS", sockets::clients),
    topic(0, "SERVERS", sockets::servers),
    topic(0, "USERS", users),
    topic(0, "VERSION", version),
    topic(1, "PEERS", peers),
    topic(1, "PEER_POOLS", peer_pools),
    Topic { name: "FDS", line: Some(2), access: Access::Admin, show: Show::Fds },
    topic(2, "SOCKETS", sockets::all),
    topic(2, "ACTIVE_SOCKETS", sockets::active),
    topic(2, "LISTS", |view| pairs("list", "items", rows::lists(view))),
    topic(2, "MEM", memory::memory),
    topic(2, "STATE", state),
    topic(3, "DNS_HOSTS", dns::hosts),
    topic(3, "DNS_ZONES", dns::zones),
    topic(4, "STATS", statistics::stats),
    topic(4, "STATS_TOTALS", statistics::totals_by_database),
    topic(4, "STATS_AVERAGES", statistics::averages_by_database),
    topic(4, "TOTALS", statistics::totals),
    // Scripts know the reference's SHOW HELP; this is beyond it.
    Topic { name: "WAITING", line: None, access: Access::Stats, show: Show::Rows(waiting) },
];

/// Parameters that drivers ask for and set (admin 1.5).
const PARAMETERS: [(&str, &str); 5] = [
    ("client_encoding", "UTF-8"),
    ("default_transaction_isolation", "read committed"),
    ("standard_conforming_strings", "on"),
    ("datestyle", "ISO"),
    ("timezone", "GMT"),
];

/// One of the parameters that only look real, whatever its letters' case: its name and value.
pub(super) fn parameter(name: &str) -> Option<(&'static str, &'static str)> {
    let named = |(known, _): &(&str, &str)| known.eq_ignore_ascii_case(name);
    PARAMETERS.into_iter().find(named)
}

fn topic_named(name: &str) -> Option<&'static Topic> {
    TOPICS.iter().find(|topic| topic.name.eq_ignore_ascii_case(name))
}

/// True if there is something of this name to SHOW.
pub(super) fn exists(name: &str) -> bool {
    parameter(name).is_some() || topic_named(name).is_some()
}

/// SHOW and SELECT.
pub(super) fn run(call: &mut Call<'_>, name: &str) -> Outcome {
    if let Some((name, value)) = parameter(name) {
        return Ok(Answer::Rows(Table::new(&[text(name, |v: &&str| (*v).into())], [value])));
    }
    let topic = topic_named(name).ok_or(Refusal::Invalid)?;
    call.check(topic.access)?;
    let view = View { core: call.core, around: call.around, asker: call.id, asked: call.asked };
    match topic.show {
        Show::Help => Ok(help()),
        Show::Rows(show) => Ok(Answer::Rows(show(view))),
        Show::Fds => Ok(super::fds::show(view, call.id)),
    }
}

fn help() -> Answer {
    let mut lines = Vec::new();
    for line in 0..=TOPICS.iter().filter_map(|topic| topic.line).max().unwrap_or(0) {
        let on_it = TOPICS.iter().filter(|topic| topic.line == Some(line));
        let names: Vec<_> = on_it.map(|topic| topic.name).collect();
        lines.push(format!("SHOW {}", names.join("|")));
    }
    lines.push(SET_HELP.to_owned());
    let commands = COMMANDS.iter().flat_map(|command| command.help);
    lines.extend(commands.map(|line| (*line).to_owned()));
    let detail: String = lines.iter().map(|line| format!("\n\t{line}")).collect();
    let mut notice = Vec::new();
    write::notice_detail(&mut notice, b"Console usage", detail.as_bytes());
    Answer::Noticed(notice, "SHOW".into())
}

fn version(_: View<'_>) -> Table {
    Table::new(&[text("version", |v: &&str| (*v).into())], ["PgBouncer 1.25.2"])
}

fn state(view: View<'_>) -> Table {
    let mode = view.core.mode();
    let rows = [
        ("active", mode == Mode::Active),
        ("paused", mode == Mode::Paused),
        ("suspended", mode == Mode::Suspended),
    ];
    let columns = [
        text("key", |row: &(&str, bool)| row.0.into()),
        text("value", |row| if row.1 { "yes" } else { "no" }.into()),
    ];
    Table::new(&columns, rows)
}

fn pairs(name: &'static str, items: &'static str, rows: Vec<(&'static str, usize)>) -> Table {
    let columns = [text(name, |row: &(&str, usize)| row.0.into()), int(items, |row| count(row.1))];
    Table::new(&columns, rows)
}

fn config(view: View<'_>) -> Table {
    let settings = view.core.settings();
    let columns = [
        text("key", |(param, _): &(&crate::config::Param, _)| param.name.into()),
        text("value", |(_, value): &(_, Option<String>)| value.clone().into()),
        text("default", |(param, _)| param.default.into()),
        text("changeable", |(param, _)| {
            match param.when {
                When::Reload => "yes",
                When::Restart => "no",
            }
            .into()
        }),
    ];
    let rows = PARAMS.iter().map(|param| (param, (param.show)(settings)));
    Table::new(&columns, rows)
}

fn databases(view: View<'_>) -> Table {
    let columns: [Column<DatabaseRow<'_>>; 17] = [
        text("name", |r| (&**r.database.name()).into()),
        text("host", |r| r.entry().host.as_deref().into()),
        int("port", |r| r.database.port().into()),
        text("database", |r| r.database.server_name().into()),
        text("force_user", |r| r.database.forced_user().map(|u| &**u).into()),
        int("pool_size", |r| r.or_global(r.entry().pool_size, 0, |s| s.default_pool_size)),
        int("min_pool_size", |r| r.or_global(r.entry().min_pool_size, 0, |s| s.min_pool_size)),
        int("reserve_pool_size", |r| {
            r.or_global(r.entry().reserve_pool_size, 0, |s| s.reserve_pool_size)
        }),
        int("server_lifetime", DatabaseRow::server_lifetime),
        text("pool_mode", |r| r.entry().pool_mode.map(|mode| mode.word()).into()),
        text("load_balance_hosts", |r| rows::load_balance(r.database).into()),
        int("max_connections", |r| {
            r.or_global(r.entry().max_db_connections, 1, |s| s.max_db_connections)
        }),
        int("current_connections", |r| count(r.database.server_count())),
        int("max_client_connections", |r| {
            let own = r.entry().max_db_client_connections;
            r.or_global(own, 1, |s| s.max_db_client_connections)
        }),
        int("current_client_connections", |r| count(r.database.client_count())),
        int("paused", |r| r.database.is_paused().into()),
        int("disabled", |r| r.database.is_disabled().into()),
    ];
    Table::new(&columns, rows::databases(view))
}

fn pools(view: View<'_>) -> Table {
    use crate::core::client::ClientState as C;
    use crate::core::server::ServerState as S;
    let columns: [Column<PoolRow<'_>>; 17] = [
        text("database", |r| r.pool.names().0.into()),
        text("user", |r| r.pool.names().1.into()),
        int("cl_active", |r| count(r.pool.clients(C::Active).len())),
        int("cl_waiting", |r| {
            count(r.pool.clients(C::Waiting).len() + r.pool.clients(C::Joined).len())
        }),
        int("cl_active_cancel_req", |r| count(r.pool.clients(C::ActiveCancel).len())),
        int("cl_waiting_cancel_req", |r| count(r.pool.clients(C::WaitingCancel).len())),
        int("sv_active", |r| count(r.pool.servers(S::Active).len())),
        int("sv_active_cancel", |r| count(r.pool.servers(S::ActiveCancel).len())),
        int("sv_being_canceled", |r| count(r.pool.servers(S::BeingCanceled).len())),
        int("sv_idle", |r| count(r.pool.servers(S::Idle).len())),
        int("sv_used", |r| count(r.pool.servers(S::Used).len())),
        int("sv_tested", |r| count(r.pool.servers(S::Tested).len())),
        int("sv_login", |r| count(r.pool.servers(S::Login).len())),
        int("maxwait", |r| r.longest_wait().secs() as i64),
        int("maxwait_us", |r| r.longest_wait().subsec_micros() as i64),
        text("pool_mode", |r| r.view.core.effective(r.pool).pool_mode().word().into()),
        text("load_balance_hosts", |r| r.load_balance().into()),
    ];
    Table::new(&columns, rows::pools(view))
}

fn users(view: View<'_>) -> Table {
    let columns: [Column<UserRow<'_>>; 8] = [
        text("name", |r| (&**r.user.name()).into()),
        text("pool_size", |r| rows::size_text(r.user.entry().pool_size).into()),
        text("reserve_pool_size", |r| rows::size_text(r.user.entry().reserve_pool_size).into()),
        text("pool_mode", |r| r.user.entry().pool_mode.map(|mode| mode.word()).into()),
        int("max_user_connections", |r| {
            r.or_global(r.user.entry().max_user_connections, |s| s.max_user_connections)
        }),
        int("current_connections", |r| count(r.user.server_count())),
        int("max_user_client_connections", |r| {
            let own = r.user.entry().max_user_client_connections;
            r.or_global(own, |s| s.max_user_client_connections)
        }),
        int("current_client_connections", |r| count(r.user.client_count())),
    ];
    Table::new(&columns, rows::users(view))
}

fn peers(view: View<'_>) -> Table {
    let columns: [Column<PeerRow<'_>>; 4] = [
        int("peer_id", |r| r.id.into()),
        text("host", |r| r.entry.host.as_deref().into()),
        int("port", PeerRow::port),
        int("pool_size", PeerRow::pool_size),
    ];
    Table::new(&columns, rows::peers(view))
}

fn peer_pools(view: View<'_>) -> Table {
    use crate::core::client::ClientState as C;
    use crate::core::server::ServerState as S;
    let columns: [Column<(u32, &Pool)>; 5] = [
        int("peer_id", |(peer, _)| (*peer).into()),
        int("cl_active_cancel_req", |(_, pool)| count(pool.clients(C::ActiveCancel).len())),
        int("cl_waiting_cancel_req", |(_, pool)| count(pool.clients(C::WaitingCancel).len())),
        int("sv_active_cancel", |(_, pool)| count(pool.servers(S::ActiveCancel).len())),
        int("sv_login", |(_, pool)| count(pool.servers(S::Login).len())),
    ];
    Table::new(&columns, rows::peer_pools(view))
}
