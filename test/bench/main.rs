//! `make bench`: PgBouncer and pgturnstile side by side, with a fake server and a load generator of
//! our own so that the pooler is what is measured. doc/performance.md says how to run and read it.

#[path = "../rig/mod.rs"]
#[expect(dead_code, reason = "the rig serves the live tests, too; this needs a part of it")]
mod rig;

mod callgrind;
mod fake;
mod floor;
mod handoff;
mod histogram;
mod keeper;
mod link;
mod load;
mod login;
mod measure;
mod memory;
mod pgbench;
mod prepared;
mod process;
mod report;
mod run;
mod scenario;
mod tls;

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{unshare, CloneFlags};
use nix::sys::resource::{getrlimit, setrlimit, Resource};

use report::Result;
use run::Options;

/// Enough for 10,000 idle clients beside busy ones, in a pooler and on the load side.
const DESCRIPTORS: u64 = 12_000;

/// A network of our own, where congestion control is ours to choose: some pace even loopback.
/// Returns the words for the report.
fn network() -> String {
    let at = "/proc/sys/net/ipv4/tcp_congestion_control";
    let own = unshare(CloneFlags::CLONE_NEWNET).is_ok()
        && Command::new("ip").args(["link", "set", "lo", "up"]).status().is_ok_and(|s| s.success());
    if own {
        let _ = std::fs::write(at, "reno");
        let _ = std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 65000");
        let _ = std::fs::write("/proc/sys/net/core/somaxconn", "4096");
    }
    let control = std::fs::read_to_string(at).unwrap_or_default();
    let place = if own { "a network namespace of its own" } else { "the machine's network" };
    format!("{place}, congestion control {}", control.trim())
}

/// Raises the limit on open files, which poolers inherit.
fn raise_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let most = hard.max(DESCRIPTORS);
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("ulimit -n must allow 12,000 files");
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    variable(name).map_or(default, |value| {
        value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number"))
    })
}

/// True if `ONLY` (words, comma between) is unset or has a word that the name begins with.
fn wanted(name: &str) -> bool {
    variable("ONLY").is_none_or(|only| only.split(',').any(|word| name.starts_with(word)))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((listen, server, servers)) = process::floor_of(&arguments) {
        floor::run(&listen, &server, servers);
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let network = network();
    raise_limit();
    process::stay_away();
    let quick = variable("QUICK").is_some();
    let options = Options {
        rounds: number("ROUNDS", if quick { 1 } else { 5 }),
        time: Duration::from_secs_f64(number("SECONDS", if quick { 0.5 } else { 2.0 })),
    };
    let text = measure_all(options, &network);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench");
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(format!("{folder}/result.md"), &text).unwrap();
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Runs what is wanted; returns all tables.
fn measure_all(options: Options, network: &str) -> String {
    let began = Instant::now();
    let progress = |name: &str, what: &str| {
        let seconds = began.elapsed().as_secs();
        let _ = writeln!(std::io::stderr(), "bench {seconds:4} s  {name}: {what}");
    };
    let scenarios = scenario::all().into_iter().filter(|s| wanted(&s.name));
    if variable("CALLGRIND").is_some() {
        let lines = scenarios.map(|s| callgrind::run(&s, &mut |what| progress(&s.name, what)));
        return callgrind::HEAD.to_owned() + &lines.collect::<String>();
    }
    let mut results = Vec::new();
    for scenario in scenarios {
        let series = run::run(&scenario, options, &mut |what| progress(&scenario.name, what));
        results.push(Result { scenario, series });
    }
    let mut tables = vec![heading(options, network)];
    if !results.is_empty() {
        tables.push(report::ratios(&results));
        tables.push(report::figures(&results));
        tables.push(report::calls(&results));
    }
    if wanted("memory") {
        let rounds = options.rounds.min(3);
        tables.push(memory::run(rounds, &mut |what| progress("memory", what)));
    }
    if wanted("memory-tls") {
        let rounds = options.rounds.min(3);
        tables.push(tls::memory(rounds, &mut |what| progress("memory-tls", what)));
    }
    if wanted("handoff") {
        let rounds = options.rounds.min(3);
        tables.push(handoff::run(rounds, &mut |what| progress("handoff", what)));
    }
    if wanted("keeper") {
        tables.push(keeper::run(options, &mut |what| progress("keeper", what)));
    }
    if wanted("stall-tls") {
        tables.push(tls::stall(options, &mut |what| progress("stall-tls", what)));
    }
    if wanted("pgbench") {
        tables.push(pgbench::run(options, &mut |what| progress("pgbench", what)));
    }
    tables.join("\n")
}

fn heading(options: Options, network: &str) -> String {
    let (calls, instructions) = measure::abilities();
    format!(
        "{} rounds of {:?} each; {network}; system calls counted by {}, instructions {}.\n",
        options.rounds,
        options.time,
        if calls { "perf" } else { "strace" },
        if instructions { "counted" } else { "not counted on this machine" }
    )
}
