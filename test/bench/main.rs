//! `make bench`: PgBouncer and pgturnstile side by side, with a fake server and a load generator of
//! our own so that the pooler is what is measured. doc/performance.md says how to run and read it.

#[path = "../rig/mod.rs"]
#[expect(dead_code, reason = "the rig serves the live tests, too; this needs a part of it")]
mod rig;

mod fake;
mod floor;
mod histogram;
mod link;
mod load;
mod login;
mod measure;
mod process;
mod report;
mod run;
mod scenario;

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
    let began = Instant::now();
    let mut results = Vec::new();
    for scenario in scenario::all().into_iter().filter(|s| wanted(&s.name)) {
        let mut progress = |what: &str| {
            let _ = writeln!(
                std::io::stderr(),
                "bench {:4.0} s  {}: {what}",
                began.elapsed().as_secs_f64(),
                scenario.name
            );
        };
        let series = run::run(&scenario, options, &mut progress);
        results.push(Result { scenario, series });
    }
    let (calls, instructions) = measure::abilities();
    let counting = format!(
        "system calls counted by {}, instructions {}",
        if calls { "perf" } else { "strace" },
        if instructions { "counted" } else { "not counted on this machine" }
    );
    let text = format!(
        "{} rounds of {:?} each; {network}; {counting}.\n\n{}\n{}\n{}",
        options.rounds,
        options.time,
        report::ratios(&results),
        report::figures(&results),
        report::calls(&results)
    );
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench");
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(format!("{folder}/result.md"), &text).unwrap();
    let _ = std::io::stdout().write_all(text.as_bytes());
}
