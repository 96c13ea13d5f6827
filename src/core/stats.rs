//! Statistics: one table of counters, kept per pool; periods and averages (admin 5).

use crate::base::Micros;

/// How the average of a counter is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Average {
    /// Per second.
    PerSecond,
    /// Microseconds per unit of another counter.
    PerUnit(Counter),
}

/// A row of the table of counters: where it is shown, under which names.
#[derive(Clone, Copy, Debug)]
pub struct CounterRow {
    /// The counter.
    pub counter: Counter,
    /// SHOW STATS: its sum.
    pub total: &'static str,
    /// SHOW STATS: its average.
    pub average: &'static str,
    /// SHOW STATS_TOTALS.
    pub in_totals: &'static str,
    /// SHOW STATS_AVERAGES.
    pub in_averages: &'static str,
    /// SHOW TOTALS, behind `total_` and `avg_`.
    pub suffix: &'static str,
    /// How it is averaged.
    pub how: Average,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident
        $total:literal $average:literal $in_totals:literal $in_averages:literal $suffix:literal
        $how:expr;)*) => {
        /// A statistics counter; its number is its place in [`Counters`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($(#[$doc])* $variant),* }
        /// Every counter, in the order of the columns of SHOW STATS (admin 3.13).
        pub const COUNTERS: &[CounterRow] = &[$(CounterRow {
            counter: Counter::$variant,
            total: $total,
            average: $average,
            in_totals: $in_totals,
            in_averages: $in_averages,
            suffix: $suffix,
            how: $how,
        }),*];
    };
}

counters! {
    /// Servers linked to clients.
    Assignments "total_server_assignment_count" "avg_server_assignment_count"
        "server_assignment_count" "server_assignment_count" "server_assignment_count" Average::PerSecond;
    /// Transactions begun.
    Transactions "total_xact_count" "avg_xact_count"
        "xact_count" "xact_count" "xact_count" Average::PerSecond;
    /// Queries begun: busy periods of a client, not statements.
    Queries "total_query_count" "avg_query_count"
        "query_count" "query_count" "query_count" Average::PerSecond;
    /// Bytes of packets from clients.
    Received "total_received" "avg_recv"
        "bytes_received" "bytes_received" "client_bytes" Average::PerSecond;
    /// Bytes of packets from servers.
    Sent "total_sent" "avg_sent"
        "bytes_sent" "bytes_sent" "server_bytes" Average::PerSecond;
    /// Microseconds in transactions.
    TransactionTime "total_xact_time" "avg_xact_time"
        "xact_time" "xact_time" "xact_time" Average::PerUnit(Counter::Transactions);
    /// Microseconds in queries.
    QueryTime "total_query_time" "avg_query_time"
        "query_time" "query_time" "query_time" Average::PerUnit(Counter::Queries);
    /// Microseconds that clients waited for a server.
    WaitTime "total_wait_time" "avg_wait_time"
        "wait_time" "wait_time" "wait_time" Average::PerUnit(Counter::Assignments);
    /// Named Parse packets from clients.
    ClientParses "total_client_parse_count" "avg_client_parse_count"
        "client_parse_count" "avg_client_parse_count" "ps_client_parse_count" Average::PerSecond;
    /// Parse packets for them sent to servers.
    ServerParses "total_server_parse_count" "avg_server_parse_count"
        "server_parse_count" "avg_server_parse_count" "ps_server_parse_count" Average::PerSecond;
    /// Bind packets to named statements.
    Binds "total_bind_count" "avg_bind_count"
        "bind_count" "avg_bind_count" "ps_bind_count" Average::PerSecond;
    /// Clients that finished authentication.
    Logins "total_client_login_count" "avg_client_login_count"
        "client_login_count" "avg_client_login_count" "client_login_count" Average::PerSecond;
}

/// One value of each counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters([u64; COUNTERS.len()]);

impl Counters {
    /// Adds to one counter.
    #[inline]
    pub fn add(&mut self, counter: Counter, amount: u64) {
        if let Some(value) = self.0.get_mut(counter as usize) {
            *value = value.wrapping_add(amount);
        }
    }

    /// One counter's value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Counters) {
        for (value, more) in self.0.iter_mut().zip(other.0) {
            *value = value.wrapping_add(more);
        }
    }

    /// The average over the time `elapsed`, in which the counters grew from `older` to `self`.
    pub fn average(&self, older: &Counters, elapsed: Micros, counter: Counter) -> u64 {
        let grown = |counter| self.get(counter).saturating_sub(older.get(counter));
        let how = COUNTERS.get(counter as usize).map_or(Average::PerSecond, |row| row.how);
        let (amount, divisor) = match how {
            Average::PerSecond => (u128::from(grown(counter)) * 1_000_000, elapsed.0),
            Average::PerUnit(unit) => (u128::from(grown(counter)), grown(unit)),
        };
        amount.checked_div(u128::from(divisor)).map_or(0, |value| value.min(u64::MAX.into()) as u64)
    }
}

/// A pool's counters with the two snapshots that averages need.
#[derive(Clone, Copy, Debug, Default)]
pub struct PoolStats {
    /// Since the pool exists.
    pub total: Counters,
    /// At the last shift.
    pub newer: Counters,
    /// At the shift before.
    pub older: Counters,
}

/// When the snapshots were taken; the same for all pools.
#[derive(Clone, Copy, Debug)]
pub struct Period {
    /// Time of `newer`.
    pub newer: Micros,
    /// Time of `older`.
    pub older: Micros,
}

impl PoolStats {
    /// Begins a new period.
    pub fn shift(&mut self) {
        self.older = self.newer;
        self.newer = self.total;
    }

    /// Adds another pool's numbers, for sums per database.
    pub fn merge(&mut self, other: &PoolStats) {
        self.total.merge(&other.total);
        self.newer.merge(&other.newer);
        self.older.merge(&other.older);
    }
}

/// The periodic line (config 6.6): averages of the period that ends now.
pub fn line(sum: &PoolStats, elapsed: Micros) -> String {
    let average = |counter| sum.total.average(&sum.newer, elapsed, counter);
    format!(
        "stats: {} xacts/s, {} queries/s, {} client parses/s, {} server parses/s, {} binds/s, \
         {} client logins/s, in {} B/s, out {} B/s, xact {} us, query {} us, wait {} us",
        average(Counter::Transactions),
        average(Counter::Queries),
        average(Counter::ClientParses),
        average(Counter::ServerParses),
        average(Counter::Binds),
        average(Counter::Logins),
        average(Counter::Received),
        average(Counter::Sent),
        average(Counter::TransactionTime),
        average(Counter::QueryTime),
        average(Counter::WaitTime),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_its_own_row() {
        for (at, row) in COUNTERS.iter().enumerate() {
            assert_eq!(row.counter as usize, at);
        }
    }

    #[test]
    fn averages_are_per_second_or_per_unit() {
        let mut now = Counters::default();
        now.add(Counter::Queries, 10);
        now.add(Counter::QueryTime, 5_000);
        let older = Counters::default();
        let elapsed = Micros::from_secs(4);
        assert_eq!(now.average(&older, elapsed, Counter::Queries), 2);
        assert_eq!(now.average(&older, elapsed, Counter::QueryTime), 500);
        assert_eq!(now.average(&older, elapsed, Counter::WaitTime), 0);
        assert_eq!(now.average(&older, Micros(0), Counter::Queries), 0);
    }
}
