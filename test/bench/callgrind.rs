//! Instructions in user space, counted by valgrind: two runs that differ only in how many units
//! they do.

use std::fmt::Write;
use std::rc::Rc;

use crate::fake::Replies;
use crate::prepared;
use crate::rig::scratch::scratch;
use crate::run::Stand;
use crate::scenario::{Scenario, Variant, Work};

/// Total of a callgrind file.
fn total(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    line?.split_whitespace().next()?.parse().ok()
}

/// Instructions of a whole life in which each client does so many units.
fn life(scenario: &Scenario, variant: &Variant, units: usize) -> u64 {
    let replies = Rc::new(Replies::new());
    let folder = scratch().folder();
    let file = folder.join("callgrind");
    let under = [
        "/usr/bin/valgrind".to_owned(),
        "--tool=callgrind".to_owned(),
        format!("--callgrind-out-file={}", file.display()),
    ];
    let mut stand = Stand::new(scenario, variant, &replies, &under);
    stand.load.connect(scenario.clients);
    prepared::begin(scenario, &mut stand.load, &replies);
    stand.load.set_script(&scenario.work.script(&replies));
    for _ in 0..units {
        stand.load.once(0..scenario.clients);
    }
    stand.load.disconnect();
    stand.process.end();
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    if let Some(keep) = std::env::var_os("CALLGRIND_KEEP") {
        let name = format!("{}-{}-{units}", scenario.name, variant.label);
        std::fs::copy(&file, std::path::Path::new(&keep).join(name)).unwrap();
    }
    total(&text).unwrap_or_else(|| panic!("no total in {}", file.display()))
}

/// One line for each pooler.
pub(crate) fn run(scenario: &Scenario, progress: &mut dyn FnMut(&str)) -> String {
    let mut text = String::new();
    let large = matches!(scenario.work, Work::Bulk | Work::CopyIn | Work::CopyOut);
    let (few, many) = if large { (1, 4) } else { (5, 25) };
    for variant in &scenario.variants {
        if variant.idle > 0 {
            continue;
        }
        progress(&format!("{} under callgrind", variant.label));
        let [few_cost, many_cost] = [few, many].map(|units| life(scenario, variant, units));
        let units = (many - few) * scenario.clients;
        let cost = many_cost.saturating_sub(few_cost) as f64 / units as f64;
        writeln!(text, "| {} | {} | {cost:.0} |", scenario.name, variant.label).unwrap();
    }
    text
}

/// The head of the table.
pub(crate) const HEAD: &str =
    "| scenario | pooler | instructions in user space per unit (callgrind) |\n|---|---|---|\n";
