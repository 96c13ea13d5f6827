//! SHOW STATS and its relatives: four tables from one list of counters (admin 3.13).

use super::show::View;
use super::table::{Cell, Kind, Table};
use crate::base::Micros;
use crate::core::database::DatabaseId;
use crate::core::stats::{Counter, PoolStats, COUNTERS};
use std::collections::BTreeMap;

/// A counter under the names that it has outside SHOW STATS.
struct Name {
    counter: Counter,
    /// Column of SHOW STATS_TOTALS.
    total: &'static str,
    /// Column of SHOW STATS_AVERAGES.
    average: &'static str,
    /// Rows of SHOW TOTALS, behind `total_` and `avg_`.
    suffix: &'static str,
}

const fn name(
    counter: Counter,
    total: &'static str,
    average: &'static str,
    suffix: &'static str,
) -> Name {
    Name { counter, total, average, suffix }
}

#[rustfmt::skip]
const NAMES: [Name; 12] = [
    name(Counter::Assignments, "server_assignment_count", "server_assignment_count", "server_assignment_count"),
    name(Counter::Transactions, "xact_count", "xact_count", "xact_count"),
    name(Counter::Queries, "query_count", "query_count", "query_count"),
    name(Counter::Received, "bytes_received", "bytes_received", "client_bytes"),
    name(Counter::Sent, "bytes_sent", "bytes_sent", "server_bytes"),
    name(Counter::TransactionTime, "xact_time", "xact_time", "xact_time"),
    name(Counter::QueryTime, "query_time", "query_time", "query_time"),
    name(Counter::WaitTime, "wait_time", "wait_time", "wait_time"),
    name(Counter::ClientParses, "client_parse_count", "avg_client_parse_count", "ps_client_parse_count"),
    name(Counter::ServerParses, "server_parse_count", "avg_server_parse_count", "ps_server_parse_count"),
    name(Counter::Binds, "bind_count", "avg_bind_count", "ps_bind_count"),
    name(Counter::Logins, "client_login_count", "avg_client_login_count", "client_login_count"),
];

/// Sums over pools, and the time that averages are made over.
struct Sum {
    stats: PoolStats,
    elapsed: Micros,
}

impl Sum {
    fn new(view: View<'_>) -> Sum {
        Sum { stats: PoolStats::default(), elapsed: view.core.now.since(view.core.period().older) }
    }

    fn total(&self, counter: Counter) -> u64 {
        self.stats.total.get(counter)
    }

    fn average(&self, counter: Counter) -> u64 {
        let (total, older) = (&self.stats.total, &self.stats.older);
        total.average(older, self.elapsed, counter)
    }
}

/// A column: its name, its counter, its value.
type Figure = (&'static str, Counter, fn(&Sum, Counter) -> u64);

/// One row per database that has a pool, in the order of their names.
fn by_database(view: View<'_>, figures: &[Figure]) -> Table {
    let mut sums: BTreeMap<DatabaseId, Sum> = BTreeMap::new();
    for (_, pool) in view.core.pools() {
        let sum = sums.entry(pool.database()).or_insert_with(|| Sum::new(view));
        sum.stats.merge(pool.stats());
    }
    let columns = figures.iter().map(|(name, ..)| ((*name).into(), Kind::Num));
    let heads: Vec<_> = std::iter::once(("database".into(), Kind::Text)).chain(columns).collect();
    let rows = view.core.databases().filter_map(|(id, database)| {
        let sum = sums.get(&id)?;
        let name: Cell = (&**database.name()).into();
        let values = figures.iter().map(|(_, counter, get)| get(sum, *counter).into());
        Some(std::iter::once(name).chain(values).collect())
    });
    Table::from_cells(heads, rows)
}

/// SHOW STATS.
pub(super) fn stats(view: View<'_>) -> Table {
    let totals = COUNTERS
        .iter()
        .map(|(counter, total, ..)| (*total, *counter, Sum::total as fn(&Sum, Counter) -> u64));
    let averages =
        COUNTERS.iter().map(|(counter, _, average, _)| (*average, *counter, Sum::average as _));
    by_database(view, &totals.chain(averages).collect::<Vec<Figure>>())
}

/// SHOW STATS_TOTALS.
pub(super) fn totals_by_database(view: View<'_>) -> Table {
    by_database(view, &NAMES.map(|n| (n.total, n.counter, Sum::total as _)))
}

/// SHOW STATS_AVERAGES.
pub(super) fn averages_by_database(view: View<'_>) -> Table {
    by_database(view, &NAMES.map(|n| (n.average, n.counter, Sum::average as _)))
}

/// SHOW TOTALS: all pools, the console's too.
pub(super) fn totals(view: View<'_>) -> Table {
    let mut sum = Sum::new(view);
    for (_, pool) in view.core.pools() {
        sum.stats.merge(pool.stats());
    }
    let total = |n: &Name| (format!("total_{}", n.suffix), sum.total(n.counter));
    let average = |n: &Name| (format!("avg_{}", n.suffix), sum.average(n.counter));
    let rows = NAMES.iter().map(total).chain(NAMES.iter().map(average));
    let heads = vec![("name".into(), Kind::Text), ("value".into(), Kind::Num)];
    Table::from_cells(heads, rows.map(|(name, value)| vec![name.into(), value.into()]))
}
