//! What connections cost in memory (Pss), and whether memory comes back.

use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

use crate::fake::{sql, Replies};
use crate::link::Family;
use crate::load::Script;
use crate::measure::{pss, Usage};
use crate::process::Auth;
use crate::report::{verdict, Spread};
use crate::rig::wire::query;
use crate::run::Stand;
use crate::scenario::{Scenario, Target, Variant, Work, OURS, THEIRS};

const CLIENTS: usize = 10_000;
const SERVERS: usize = 1000;
const BURST: usize = 100;

/// The figures of one pooler, in bytes (and one in microseconds).
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    none: f64,
    per_idle: f64,
    per_used: f64,
    per_server: f64,
    burst_before: f64,
    burst_most: f64,
    burst_after: f64,
    /// CPU time for each second with all those idle clients.
    idle: f64,
}

pub(crate) fn scenario(servers: usize) -> Scenario {
    Scenario {
        name: "memory".to_owned(),
        work: Work::Simple,
        family: Family::Tcp,
        auth: Auth::Trust,
        clients: 0,
        servers,
        variants: Vec::new(),
        target: Target::default(),
    }
}

fn script(text: &str, replies: &Replies) -> Rc<Script> {
    Rc::new(Script::new([query(text)], replies))
}

impl Figures {
    fn of_clients(&mut self, variant: &Variant, replies: &Rc<Replies>) {
        let mut stand = Stand::new(&scenario(20), variant, replies, &[]);
        let pid = stand.process.pid();
        stand.load.set_script(&script(sql::ONE, replies));
        stand.load.run(Duration::from_millis(500));
        self.none = pss(pid);
        // The first client brings a pool with it, which is not to be counted ten thousand times.
        stand.load.connect(1);
        stand.load.once(0..1);
        let first = pss(pid);
        stand.load.connect(CLIENTS);
        stand.load.run(Duration::from_secs(1));
        self.per_idle = (pss(pid) - first) / CLIENTS as f64;
        let before = Usage::of(pid);
        stand.load.run(Duration::from_secs(3));
        self.idle = Usage::of(pid).since(before).cpu as f64 / 3e3;
        stand.load.once(0..CLIENTS);
        stand.load.run(Duration::from_secs(1));
        self.per_used = (pss(pid) - first) / CLIENTS as f64;
    }

    /// The same clients in transactions, once all on one server, then each on its own.
    fn of_servers(&mut self, variant: &Variant, replies: &Rc<Replies>) {
        let (begin, commit) = (script("BEGIN", replies), script("COMMIT", replies));
        let mut both = [0.0; 2];
        for (servers, value) in [1, SERVERS].into_iter().zip(&mut both) {
            let mut stand = Stand::new(&scenario(servers), variant, replies, &[]);
            stand.load.connect(SERVERS);
            for start in (0..SERVERS).step_by(servers) {
                for part in [&begin, &commit] {
                    stand.load.set_script(part);
                    stand.load.once(start..start + servers);
                }
            }
            stand.load.disconnect();
            stand.load.run(Duration::from_secs(1));
            *value = pss(stand.process.pid());
        }
        self.per_server = (both[1] - both[0]) / (SERVERS - 1) as f64;
    }

    fn of_burst(&mut self, variant: &Variant, replies: &Rc<Replies>) {
        let mut stand = Stand::new(&scenario(BURST), variant, replies, &[]);
        let pid = stand.process.pid();
        stand.load.connect(BURST);
        stand.load.set_script(&script(sql::ONE, replies));
        stand.load.once(0..BURST);
        self.burst_before = pss(pid);
        stand.load.set_script(&script(sql::BIG, replies));
        stand.load.set_deaf(true);
        stand.load.start(BURST);
        stand.load.run(Duration::from_secs(1));
        self.burst_most = pss(pid);
        stand.load.set_deaf(false);
        for _ in 0..10 {
            stand.load.run(Duration::from_millis(100));
            self.burst_most = self.burst_most.max(pss(pid));
        }
        stand.load.stop();
        stand.load.run(Duration::from_secs(3));
        self.burst_after = pss(pid);
    }
}

fn measure(variant: &Variant, progress: &mut dyn FnMut(&str)) -> Figures {
    let replies = Rc::new(Replies::new());
    let mut figures = Figures::default();
    progress(&format!("{CLIENTS} clients of {}", variant.label));
    figures.of_clients(variant, &replies);
    progress(&format!("{SERVERS} servers of {}", variant.label));
    figures.of_servers(variant, &replies);
    progress(&format!("burst of {}", variant.label));
    figures.of_burst(variant, &replies);
    figures
}

/// Measures both poolers, so many times; returns the table.
pub(crate) fn run(rounds: usize, progress: &mut dyn FnMut(&str)) -> String {
    let mut all = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (variant, figures) in [OURS, THEIRS].iter().zip(&mut all) {
            figures.push(measure(variant, progress));
        }
    }
    let mut text =
        String::from("| memory (Pss) | pgturnstile | target | pgbouncer |\n|---|---|---|---|\n");
    let mut row = |what: &str, most: Option<f64>, value: &dyn Fn(&Figures) -> f64| {
        let [ours, theirs] = [0, 1].map(|i: usize| Spread::of(all[i].iter().map(value)));
        let judged = verdict(most.map(|most| format!("<= {most}")), || {
            most.is_some_and(|most| ours.median <= most)
        });
        writeln!(text, "| {what} | {} | {judged} | {} |", ours.show(), theirs.show()).unwrap();
    };
    let mib = |bytes: f64| bytes / 1_048_576.0;
    row("no client, MiB", Some(8.0), &|f| mib(f.none));
    row("idle client at 10,000, bytes each", Some(700.0), &|f| f.per_idle);
    row("after each has run a query, bytes each", Some(1000.0), &|f| f.per_used);
    row("idle server at 1,000, bytes each", Some(1200.0), &|f| f.per_server);
    row("100 clients before large results, MiB", None, &|f| mib(f.burst_before));
    row("most during the results, MiB", None, &|f| mib(f.burst_most));
    row("3 s after the results, MiB", None, &|f| mib(f.burst_after));
    row("CPU with 10,000 idle clients, us for each second", None, &|f| f.idle);
    text
}
