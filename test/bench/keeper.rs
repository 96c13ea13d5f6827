//! What a keeper costs: the process that encrypts for its successor (doc/handoff.md). The same clients
//! and the same traffic before the handoff, when one process does it all, and after it.

use std::fmt::Write;
use std::process::Child;
use std::rc::Rc;
use std::time::Duration;

use crate::fake::{sql, Replies, COPY};
use crate::link::Family;
use crate::load::Script;
use crate::measure::{pss, Usage};
use crate::report::Spread;
use crate::rig::scratch::scratch;
use crate::rig::wait_until;
use crate::rig::wire::query;
use crate::run::{Options, Stand};
use crate::scenario::{Scenario, Work, OURS};

/// So many connections are compared with few.
const MANY: usize = 2000;
const FEW: usize = 10;

const GIB: f64 = (1_u64 << 30) as f64;

/// The old process of a handoff; it ends with its connections.
struct Keeper(Child);

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        scratch().forget(self.0.id());
    }
}

/// Something of the process before the handoff, of its successor, of the keeper.
type Triple = [f64; 3];

fn stand(clients: usize, replies: &Rc<Replies>) -> Stand {
    let scenario = Scenario { family: Family::Tls, ..crate::memory::scenario(20) };
    let mut stand = Stand::new(&scenario, &OURS, replies, &[]);
    stand.load.set_script(&Work::Simple.script(replies));
    stand.load.connect(clients);
    stand.load.once(0..clients);
    stand
}

/// Has a successor take over.
fn hand_over(stand: &mut Stand) -> Keeper {
    let successor = stand.process.begin_succession();
    let keeper = Keeper(stand.process.end_succession_kept(successor));
    stand.load.run(Duration::from_secs(1));
    keeper
}

/// Pss in bytes with so many clients, each of which has run a query.
fn memory_with(clients: usize, replies: &Rc<Replies>) -> Triple {
    let mut stand = stand(clients, replies);
    stand.load.run(Duration::from_secs(2));
    let before = pss(stand.process.pid());
    let keeper = hand_over(&mut stand);
    stand.load.once(0..clients);
    stand.load.run(Duration::from_secs(2));
    [before, pss(stand.process.pid()), pss(keeper.0.id())]
}

/// Pss in bytes per connection.
fn memory(replies: &Rc<Replies>) -> Triple {
    let (many, few) = (memory_with(MANY, replies), memory_with(FEW, replies));
    [0, 1, 2].map(|at: usize| (many[at] - few[at]) / (MANY - FEW) as f64)
}

/// CPU time in nanoseconds of each of these processes for a unit of work.
fn cost(stand: &mut Stand, clients: usize, pids: &[u32], time: Duration) -> Vec<f64> {
    stand.load.start(clients);
    stand.load.run(time.min(Duration::from_millis(300)));
    stand.load.take();
    let usages = || pids.iter().map(|pid| Usage::of(*pid)).collect::<Vec<_>>();
    let before = usages();
    stand.load.run(time);
    let after = usages();
    let (units, _) = stand.load.take();
    stand.load.stop();
    stand.load.take();
    let used = after.into_iter().zip(before).map(|(after, before)| after.since(before).cpu);
    used.map(|used| used as f64 / units.max(1) as f64).collect()
}

/// What is measured in CPU time: its name, the work, by how many clients, a unit's share of what is
/// shown, and how many nanoseconds that has.
fn works(replies: &Replies) -> [(&'static str, Rc<Script>, usize, f64, f64); 3] {
    let big = replies.length(&query(sql::BIG)) as f64;
    [
        ("CPU s per GiB of a large result", Work::Bulk.script(replies), 4, big / GIB, 1e9),
        ("CPU s per GiB of COPY IN", Work::CopyIn.script(replies), 20, COPY as f64 / GIB, 1e9),
        ("CPU us per simple query", Work::Simple.script(replies), 200, 1.0, 1e3),
    ]
}

fn costs(replies: &Rc<Replies>, time: Duration) -> [Triple; 3] {
    let mut stand = stand(200, replies);
    let mut costs = [[0.0; 3]; 3];
    for ((_, script, clients, share, unit), cost_of) in works(replies).iter().zip(&mut costs) {
        stand.load.set_script(script);
        let pids = [stand.process.pid()];
        cost_of[0] = cost(&mut stand, *clients, &pids, time)[0] / share / unit;
    }
    let keeper = hand_over(&mut stand);
    for ((_, script, clients, share, unit), cost_of) in works(replies).iter().zip(&mut costs) {
        stand.load.set_script(script);
        let pids = [stand.process.pid(), keeper.0.id()];
        let used = cost(&mut stand, *clients, &pids, time);
        (cost_of[1], cost_of[2]) = (used[0] / share / unit, used[1] / share / unit);
    }
    stand.load.disconnect();
    let mut keeper = keeper;
    wait_until("the keeper ends", || keeper.0.try_wait().unwrap().is_some());
    costs
}

/// Measures so many times; returns the table.
pub(crate) fn run(options: Options, progress: &mut dyn FnMut(&str)) -> String {
    let replies = Rc::new(Replies::new());
    let names = works(&replies).map(|(name, ..)| name);
    let mut rows: Vec<(&str, Vec<Triple>)> = vec![("bytes per TLS client (Pss)", Vec::new())];
    rows.extend(names.map(|name| (name, Vec::new())));
    let rounds = options.rounds.min(3);
    for round in 1..=rounds {
        progress(&format!("round {round} of {rounds}: memory"));
        rows[0].1.push(memory(&replies));
        progress(&format!("round {round} of {rounds}: time"));
        for (row, triple) in rows[1..].iter_mut().zip(costs(&replies, options.time)) {
            row.1.push(triple);
        }
    }
    let mut text = String::from(
        "| TLS clients after a handoff | one process, before | the successor | its keeper | both, as a \
         share of before |\n|---|---|---|---|---|\n",
    );
    for (name, figures) in rows {
        let spread = |at: usize| Spread::of(figures.iter().map(|triple| triple[at]));
        let [before, successor, keeper] = [0, 1, 2].map(spread);
        let share = (successor.median + keeper.median) / before.median;
        let [before, successor, keeper] = [before, successor, keeper].map(Spread::show);
        writeln!(text, "| {name} | {before} | {successor} | {keeper} | {share:.2} |").unwrap();
    }
    text
}
