//! Latencies in buckets of about 3 percent.

use std::time::Duration;

/// Parts of a doubling.
const PARTS: usize = 32;

/// Counts of durations in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; 40 * PARTS], total: 0 }
    }
}

impl Histogram {
    pub(crate) fn add(&mut self, time: Duration) {
        let ns = usize::try_from(time.as_nanos()).unwrap().max(PARTS);
        let doubling = ns.ilog2() as usize - 5;
        let bucket = (doubling * PARTS + (ns >> doubling) - PARTS).min(self.counts.len() - 1);
        self.counts[bucket] += 1;
        self.total += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (to, from) in self.counts.iter_mut().zip(&other.counts) {
            *to += from;
        }
        self.total += other.total;
    }

    /// The duration in microseconds that this share of all took at most.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted.max(1) {
                let ns = (bucket % PARTS + PARTS + 1) << (bucket / PARTS);
                return ns as f64 / 1000.0;
            }
        }
        0.0
    }
}
