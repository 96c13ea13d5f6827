//! What clients feel of an online restart (`-R`): the longest time for an answer while one process
//! hands everything over to the next.

use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

use crate::fake::{sql, Replies};
use crate::load::Script;
use crate::report::{verdict, Spread};
use crate::rig::wire::query;
use crate::run::Stand;
use crate::scenario::{Variant, OURS, THEIRS};

/// Clients that have run a query and do nothing.
const IDLE: usize = 10_000;
/// Clients that query all the time, on 20 servers.
const ACTIVE: usize = 100;
/// Restarts of one run.
const TURNS: usize = 5;
/// The most that a client may feel, in milliseconds.
const LIMIT: f64 = 50.0;

/// The longest answers of one run in milliseconds: undisturbed, then with a restart.
fn longest(variant: &Variant) -> (Vec<f64>, Vec<f64>) {
    let replies = Rc::new(Replies::new());
    let scenario = crate::memory::scenario(20);
    let mut stand = Stand::new(&scenario, variant, &replies, &[]);
    stand.load.set_script(&Rc::new(Script::new([query(sql::ONE)], &replies)));
    stand.load.connect(IDLE + ACTIVE);
    stand.load.once(0..IDLE + ACTIVE);
    stand.load.start(ACTIVE);
    let (mut calm, mut restarts) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        stand.load.run(Duration::from_millis(200));
        for (is_restart, times) in [(false, &mut calm), (true, &mut restarts)] {
            stand.load.take();
            let successor = is_restart.then(|| stand.process.begin_succession());
            stand.load.run(Duration::from_secs(2));
            let (units, latency) = stand.load.take();
            assert!(units > 0, "nobody was served");
            times.push(latency.percentile(1.0) / 1e3);
            if let Some(successor) = successor {
                stand.process.end_succession(successor);
            }
        }
    }
    stand.load.stop();
    // Nobody has been lost.
    stand.load.once(0..IDLE + ACTIVE);
    (calm, restarts)
}

/// Measures both poolers, so many times; returns the table.
pub(crate) fn run(rounds: usize, progress: &mut dyn FnMut(&str)) -> String {
    let mut text = format!(
        "| longest answer, ms ({IDLE} idle clients, {ACTIVE} active) | undisturbed | with a restart | \
         target |\n|---|---|---|---|\n"
    );
    for variant in [OURS, THEIRS] {
        let (mut calm, mut restarts) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            progress(&format!("round {round} of {rounds}: {}", variant.label));
            let (undisturbed, restarted) = longest(&variant);
            calm.extend(undisturbed);
            restarts.extend(restarted);
        }
        let most = restarts.iter().copied().fold(0.0, f64::max);
        let [calm, restarts] = [calm, restarts].map(|times| Spread::of(times).show());
        let is_ours = variant.label == OURS.label;
        let judged = verdict(is_ours.then(|| format!("<= {LIMIT}")), || most <= LIMIT);
        writeln!(text, "| {} | {calm} | {restarts} | {judged} |", variant.label).unwrap();
    }
    text
}
