//! Tables.

use std::fmt::Write;

use crate::run::{Sample, Series};
use crate::scenario::Scenario;

/// Least, middle and greatest of several values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = ((values.len() - 1) / 2, values.len() / 2);
        let median = f64::midpoint(values[low], values[high]);
        Self { least: values[0], median, most: values[values.len() - 1] }
    }

    /// The median, then the extremes.
    pub(crate) fn show(self) -> String {
        let digits = match self.median {
            m if m < 3.0 => 2,
            m if m < 100.0 => 1,
            _ => 0,
        };
        let [least, median, most] =
            [self.least, self.median, self.most].map(|value| format!("{value:.digits$}"));
        format!("{median} ({least}..{most})")
    }
}

impl Sample {
    pub(crate) fn rate(&self) -> f64 {
        self.units as f64 / self.seconds
    }

    /// CPU of the pooler per unit in microseconds.
    pub(crate) fn cost(&self) -> f64 {
        self.usage.cpu as f64 / 1000.0 / self.units as f64
    }
}

/// Words about a target.
pub(crate) fn verdict(wanted: Option<String>, reached: impl Fn() -> bool) -> String {
    match wanted {
        None => "-".to_owned(),
        Some(wanted) if reached() => format!("{wanted} reached"),
        Some(wanted) => format!("{wanted} **missed**"),
    }
}

/// A measured scenario.
pub(crate) struct Result {
    pub(crate) scenario: Scenario,
    pub(crate) series: Vec<Series>,
}

impl Series {
    fn spread(&self, value: impl Fn(&Sample) -> f64) -> Spread {
        Spread::of(self.samples.iter().map(value))
    }

    fn per_unit(&self, names: &[&str]) -> String {
        if self.counts.is_empty() {
            return "-".to_owned();
        }
        format!("{:.2}", self.sum(names))
    }

    fn sum(&self, names: &[&str]) -> f64 {
        let sum: u64 = names.iter().filter_map(|name| self.counts.get(*name)).sum();
        sum as f64 / self.counted.max(1) as f64
    }

    /// Ratios of two series, round by round.
    fn against(&self, other: &Self, value: impl Fn(&Sample) -> f64) -> Spread {
        let rounds = self.samples.iter().zip(&other.samples);
        Spread::of(rounds.map(|(a, b)| value(a) / value(b)))
    }
}

const SOCKET: &[&str] = &["sendto", "recvfrom", "sendmsg", "recvmsg"];

/// The most socket calls and waits per simple transaction of 200 busy clients.
const CALLS_MAX: f64 = 4.0;
const WAITS_MAX: f64 = 0.2;

fn waits(series: &Series) -> f64 {
    let waits = series.counts.get("epoll_wait").copied().unwrap_or(0);
    waits as f64 / series.counted.max(1) as f64
}

/// The table of figures.
pub(crate) fn figures(results: &[Result]) -> String {
    let mut text = String::from(
        "| scenario | pooler | units/s | CPU us/unit | of it user | core busy, load's core busy | instructions/unit \
         user + kernel | socket calls | waits | voluntary / involuntary switches | p50 us | p99 us | \
         p99.9 us | others' share of the machine |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for result in results {
        for series in &result.series {
            line(&mut text, &result.scenario.name, series);
        }
    }
    text
}

fn line(text: &mut String, name: &str, series: &Series) {
    let ticks = series.spread(|s| s.usage.user as f64 / (s.usage.user + s.usage.system) as f64);
    let busy = series.spread(|s| s.usage.cpu as f64 / 1e9 / s.seconds);
    let load = series.spread(|s| s.load as f64 / 1e9 / s.seconds);
    let voluntary = series.spread(|s| s.usage.voluntary as f64 / s.units as f64);
    let involuntary = series.spread(|s| s.usage.involuntary as f64 / s.units as f64);
    let others = series.spread(|s| s.others);
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| series.latency.percentile(share));
    let instructions = match ["instructions:u", "instructions:k"].map(|n| series.counts.get(n)) {
        [Some(user), Some(kernel)] => {
            let [user, kernel] = [user, kernel].map(|n| n / series.counted.max(1));
            format!("{user} + {kernel}")
        }
        _ => "not counted here".to_owned(),
    };
    let share = |value: f64| format!("{:.0} %", value * 100.0);
    writeln!(
        text,
        "| {name} | {} | {} | {} | {} | {}, {} | {instructions} | {} | {} | {:.2} / {:.2} | {p50:.0} | \
         {p99:.0} | {p999:.0} | {} |",
        series.label,
        series.spread(Sample::rate).show(),
        series.spread(Sample::cost).show(),
        share(ticks.median),
        share(busy.median),
        share(load.median),
        series.per_unit(SOCKET),
        format_args!("{:.3}", waits(series)),
        voluntary.median,
        involuntary.median,
        share(others.most),
    )
    .unwrap();
}

/// The table of system calls.
pub(crate) fn calls(results: &[Result]) -> String {
    let mut text = String::from("| scenario | pooler | system calls per unit |\n|---|---|---|\n");
    for result in results {
        for series in &result.series {
            let mut counts: Vec<(&String, f64)> = series
                .counts
                .iter()
                .filter(|(name, _)| !name.starts_with("instructions"))
                .map(|(name, count)| (name, *count as f64 / series.counted.max(1) as f64))
                .filter(|(_, share)| *share >= 0.0005)
                .collect();
            counts.sort_by(|a, b| b.1.total_cmp(&a.1));
            let shown: Vec<String> =
                counts.iter().map(|(name, share)| format!("{name} {share:.3}")).collect();
            let name = &result.scenario.name;
            writeln!(text, "| {name} | {} | {} |", series.label, shown.join(", ")).unwrap();
        }
    }
    text
}

/// The table of ratios and targets.
pub(crate) fn ratios(results: &[Result]) -> String {
    let mut text = String::from(
        "| scenario | CPU per unit, share | target | floor's share | rate, times | target |\n\
         |---|---|---|---|---|---|\n",
    );
    for result in results {
        let [ours, theirs, ..] = result.series.as_slice() else {
            continue;
        };
        let cost = ours.against(theirs, Sample::cost);
        let rate = ours.against(theirs, Sample::rate);
        let floor = result.series.iter().find(|series| series.label == "floor");
        let floor =
            floor.map_or("-".to_owned(), |floor| floor.against(theirs, Sample::cost).show());
        let target = result.scenario.target;
        let cheap = || target.cost.is_some_and(|most| cost.median <= most);
        let fast = || target.rate.is_some_and(|least| rate.median >= least);
        writeln!(
            text,
            "| {} | {} | {} | {floor} | {} | {} |",
            result.scenario.name,
            cost.show(),
            verdict(target.cost.map(|most| format!("<= {most:.2}")), cheap),
            rate.show(),
            verdict(target.rate.map(|least| format!(">= {least:.1}")), fast),
        )
        .unwrap();
    }
    for result in results.iter().filter(|result| result.scenario.name == "simple-tcp") {
        if let Some(ours) = result.series.first() {
            let (calls, waits) = (ours.sum(SOCKET), waits(ours));
            let most = |most: f64| Some(format!("<= {most}"));
            writeln!(
                text,
                "\nSystem calls of pgturnstile per simple transaction over TCP: {calls:.2} on sockets \
                 ({}), {waits:.3} waits ({}).",
                verdict(most(CALLS_MAX), || calls < CALLS_MAX + 0.01),
                verdict(most(WAITS_MAX), || waits <= WAITS_MAX),
            )
            .unwrap();
        }
    }
    text
}
