//! Simulation of the core and the relay: random worlds from seeds, checked by oracles.
//! `SEEDS=5000` sweeps so many seeds, `SEED=17` replays one with a trace; doc/reliability.md.

#![allow(clippy::print_stdout, reason = "a trace is printed")]
#![allow(unreachable_pub, reason = "a test has no other users")]

mod admin;
mod auth_query;
mod bytes;
mod cancels;
mod causes;
mod client;
mod counts;
mod dice;
mod event;
mod handoff;
mod hosts;
mod jobs;
mod limits;
mod line;
mod modes;
mod moved;
mod names;
mod net;
mod oracle;
mod plan;
mod rules;
mod server;
mod settle;
mod speech;
mod statements;
mod statistics;
mod successor;
mod suspend;
mod talk;
mod texts;
mod timeouts;
mod watch;
mod world;

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::Instant;
use world::{World, STEP};

/// One of the two rings that a seed is played in.
#[derive(Clone, Copy, Debug)]
enum Ring {
    /// The core, with the relay played by the simulator.
    Core,
    /// The core and the relay over wires that cut and refuse.
    Bytes,
}

impl Ring {
    const ALL: [Ring; 2] = [Ring::Core, Ring::Bytes];
}

/// A seed that failed.
struct Failure {
    seed: u64,
    step: u64,
    text: String,
}

fn main() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let rings = match std::env::var("RING").as_deref() {
        Ok("core") => &Ring::ALL[..1],
        Ok("bytes") => &Ring::ALL[1..],
        _ => &Ring::ALL[..],
    };
    if let Some(seed) = number("SEED") {
        for ring in rings {
            play(*ring, seed, true);
            println!("{ring:?}: seed {seed} passes");
        }
        return;
    }
    let seeds = number("SEEDS").unwrap_or(2000);
    let first = number("FIRST").unwrap_or(1);
    panic::set_hook(Box::new(|_| {}));
    let mut failed = false;
    for ring in rings {
        let start = Instant::now();
        let failures = sweep(*ring, first, seeds);
        for Failure { seed, step, text } in failures.iter().take(20) {
            println!("{ring:?} SEED={seed} step {step}: {text}");
        }
        let (count, time) = (failures.len(), start.elapsed().as_secs_f64());
        println!("{ring:?}: {seeds} seeds, {count} failures, {time:.1} s");
        failed |= count > 0;
    }
    if failed {
        std::process::exit(1);
    }
}

/// Plays so many seeds on all processors.
fn sweep(ring: Ring, first: u64, seeds: u64) -> Vec<Failure> {
    let next = AtomicU64::new(first);
    let failures = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + seeds {
                    break;
                }
                if let Err(failure) = attempt(ring, seed) {
                    failures.lock().expect("no thread panics here").push(failure);
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no thread panics here");
    failures.sort_by_key(|failure: &Failure| failure.seed);
    failures
}

fn attempt(ring: Ring, seed: u64) -> Result<(), Failure> {
    let result = panic::catch_unwind(AssertUnwindSafe(|| play(ring, seed, false)));
    result.map_err(|cause| Failure {
        seed,
        step: STEP.with(Cell::get),
        text: cause
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default(),
    })
}

/// One run from its first turn to the farewell.
fn play(ring: Ring, seed: u64, tracing: bool) {
    STEP.with(|step| step.set(0));
    let watch = watch::Shared::default();
    let net: Box<dyn net::Net> = match ring {
        Ring::Core => Box::new(net::Packets::new(seed, tracing, watch.clone())),
        Ring::Bytes => Box::new(bytes::Bytes::new(seed, tracing, watch.clone())),
    };
    let mut world = World::new(seed, tracing, net, watch);
    for _ in 0..100 + world.dice.below(300) {
        world.turn();
        world.may_hand_off();
        if world.exit.is_some() {
            return;
        }
    }
    world.settle();
    world.pause_trial();
    world.suspend_trial();
    world.farewell();
}
