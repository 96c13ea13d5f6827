//! SHOW STATS and its relatives: four tables from one list of counters (admin 3.13).

use super::show::View;
use super::table::{Cell, Kind, Table};
use crate::base::Micros;
use crate::core::database::DatabaseId;
use crate::core::stats::{Counter, CounterRow, PoolStats, COUNTERS};
use std::collections::BTreeMap;

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
type Figure = (&'static str, Counter, Value);

type Value = fn(&Sum, Counter) -> u64;
const TOTAL: Value = Sum::total;
const AVERAGE: Value = Sum::average;

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
    let totals = COUNTERS.iter().map(|row| (row.total, row.counter, TOTAL));
    let averages = COUNTERS.iter().map(|row| (row.average, row.counter, AVERAGE));
    by_database(view, &totals.chain(averages).collect::<Vec<_>>())
}

/// SHOW STATS_TOTALS.
pub(super) fn totals_by_database(view: View<'_>) -> Table {
    let totals = COUNTERS.iter().map(|row| (row.in_totals, row.counter, TOTAL));
    by_database(view, &totals.collect::<Vec<_>>())
}

/// SHOW STATS_AVERAGES.
pub(super) fn averages_by_database(view: View<'_>) -> Table {
    let averages = COUNTERS.iter().map(|row| (row.in_averages, row.counter, AVERAGE));
    by_database(view, &averages.collect::<Vec<_>>())
}

/// SHOW TOTALS: all pools, the console's too.
pub(super) fn totals(view: View<'_>) -> Table {
    let mut sum = Sum::new(view);
    for (_, pool) in view.core.pools() {
        sum.stats.merge(pool.stats());
    }
    let total = |row: &CounterRow| (format!("total_{}", row.suffix), sum.total(row.counter));
    let average = |row: &CounterRow| (format!("avg_{}", row.suffix), sum.average(row.counter));
    let rows = COUNTERS.iter().map(total).chain(COUNTERS.iter().map(average));
    let heads = vec![("name".into(), Kind::Text), ("value".into(), Kind::Num)];
    Table::from_cells(heads, rows.map(|(name, value)| vec![name.into(), value.into()]))
}
