//! What the kernel knows about a process, and what perf and strace count.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// CPU time and context switches of all threads of a process so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// From /proc/PID/task/*/schedstat, in nanoseconds.
    pub(crate) cpu: u64,
    /// In ticks.
    pub(crate) user: u64,
    pub(crate) system: u64,
    pub(crate) voluntary: u64,
    pub(crate) involuntary: u64,
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Self {
        let mut usage = Self::default();
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            let read = |name: &str| read_to_string(task.path().join(name)).unwrap_or_default();
            usage.cpu += number(Some(&read("schedstat")));
            let stat = read("stat");
            let fields: Vec<&str> =
                stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            usage.user += number(fields.get(11).copied());
            usage.system += number(fields.get(12).copied());
            let status = read("status");
            let line = |key: &str| number(status.lines().find_map(|l| l.strip_prefix(key)));
            usage.voluntary += line("voluntary_ctxt_switches:");
            usage.involuntary += line("nonvoluntary_ctxt_switches:");
        }
        usage
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu - before.cpu,
            user: self.user - before.user,
            system: self.system - before.system,
            voluntary: self.voluntary - before.voluntary,
            involuntary: self.involuntary - before.involuntary,
        }
    }
}

/// Busy and stolen time of all cores so far, in ticks.
pub(crate) fn machine() -> u64 {
    let stat = read_to_string("/proc/stat").unwrap();
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .skip(1)
        .map(|f| f.parse().unwrap())
        .collect();
    fields.iter().take(8).sum::<u64>() - fields[3] - fields[4]
}

/// Pss in bytes.
pub(crate) fn pss(pid: u32) -> f64 {
    let text = read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    number(text.lines().find_map(|line| line.strip_prefix("Pss:"))) as f64 * 1024.0
}

/// System calls that are told apart; the rest is `other`.
const CALLS: &[&str] = &[
    "sendto",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "write",
    "read",
    "epoll_wait",
    "epoll_ctl",
    "accept",
    "accept4",
    "close",
    "fcntl",
    "setsockopt",
    "getsockopt",
    "getsockname",
    "getpeername",
    "getrandom",
    "shutdown",
    "futex",
    "mmap",
    "brk",
];

/// Names and counts.
pub(crate) type Counts = BTreeMap<String, u64>;

/// Something that counts events of a process until it is stopped.
#[derive(Debug)]
pub(crate) struct Counter {
    child: Child,
    strace: bool,
    output: std::path::PathBuf,
}

fn perf_can(event: &str) -> bool {
    let tried = Command::new("perf").args(["stat", "-x", ",", "-e", event, "true"]).output();
    tried.is_ok_and(|out| {
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        out.status.success() && text.starts_with(|c: char| c.is_ascii_digit())
    })
}

/// What this machine counts: system calls with perf, instructions.
pub(crate) fn abilities() -> (bool, bool) {
    (perf_can("raw_syscalls:sys_enter"), perf_can("instructions:u"))
}

impl Counter {
    /// Starts counting system calls, and instructions where the machine does. The process should be
    /// idle now.
    pub(crate) fn start(pid: u32, folder: &Path) -> Self {
        let (calls, instructions) = abilities();
        let output = folder.join("counts");
        let mut command = if calls {
            let mut events: Vec<String> =
                CALLS.iter().map(|call| format!("syscalls:sys_enter_{call}")).collect();
            events.push("raw_syscalls:sys_enter".to_owned());
            if instructions {
                events.extend(["instructions:u", "instructions:k"].map(str::to_owned));
            }
            let mut perf = Command::new("perf");
            perf.args(["stat", "-x", ",", "-e", &events.join(","), "-o"]);
            perf
        } else {
            let mut strace = Command::new("strace");
            strace.args(["-c", "-f", "-o"]);
            strace
        };
        command.arg(&output).args(["-p", &pid.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(if calls { 300 } else { 1000 }));
        Self { child, strace: !calls, output }
    }

    /// Ends the counting.
    pub(crate) fn stop(mut self) -> Counts {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGINT).unwrap();
        self.child.wait().unwrap();
        let text = read_to_string(&self.output).unwrap_or_default();
        if self.strace {
            strace_counts(&text)
        } else {
            perf_counts(&text)
        }
    }
}

/// Lines are `count,unit,event,...`.
fn perf_counts(text: &str) -> Counts {
    let mut counts = Counts::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(',').collect();
        let [count, _, event, ..] = fields.as_slice() else {
            continue;
        };
        if let Ok(count) = count.parse::<u64>() {
            let name = event.trim_start_matches("syscalls:sys_enter_");
            counts.insert(name.to_owned(), count);
        }
    }
    if let Some(all) = counts.remove("raw_syscalls:sys_enter") {
        let known: u64 = CALLS.iter().filter_map(|call| counts.get(*call)).sum();
        counts.insert("other".to_owned(), all.saturating_sub(known));
    }
    counts
}

/// Lines are `% seconds usecs calls [errors] name`.
fn strace_counts(text: &str) -> Counts {
    let mut counts = Counts::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(calls), Some(name)) = (fields.get(3), fields.last()) else {
            continue;
        };
        if let (Ok(calls), false) = (calls.parse::<u64>(), *name == "total") {
            let name = if CALLS.contains(name) { *name } else { "other" };
            *counts.entry(name.to_owned()).or_default() += calls;
        }
    }
    counts
}
