//! Running a scenario: all its poolers are up at the same time and take turns.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::fake::Replies;
use crate::histogram::Histogram;
use crate::link::Family;
use crate::load::Load;
use crate::measure::{machine, Counter, Counts, Usage};
use crate::prepared;
use crate::process::{Process, Setup};
use crate::rig::scratch::scratch;
use crate::scenario::{Scenario, Variant};

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) time: Duration,
}

/// One pooler's turn in one round.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) units: u64,
    pub(crate) usage: Usage,
    /// CPU time of the load side in nanoseconds.
    pub(crate) load: u64,
    /// Share of the machine that neither pooler nor load side used but somebody else.
    pub(crate) others: f64,
}

/// All about one pooler in one scenario.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) label: &'static str,
    pub(crate) samples: Vec<Sample>,
    pub(crate) latency: Histogram,
    /// Events that were counted in a run of their own, and the units of that run.
    pub(crate) counts: Counts,
    pub(crate) counted: u64,
}

/// A pooler with its load side.
pub(crate) struct Stand {
    pub(crate) process: Process,
    pub(crate) load: Load,
}

impl Stand {
    /// Starts fake server and pooler; no client yet.
    pub(crate) fn new(
        scenario: &Scenario,
        variant: &Variant,
        replies: &Rc<Replies>,
        under: &[String],
    ) -> Self {
        let folder = scratch().folder();
        let (mut load, port) = Load::new(scenario.family, &folder, replies);
        let host = match scenario.family {
            Family::Tcp => "127.0.0.1".to_owned(),
            Family::Unix => folder.display().to_string(),
        };
        let setup = Setup {
            program: variant.program,
            family: scenario.family,
            auth: scenario.auth,
            servers: scenario.servers,
            settings: variant.settings,
            host,
            port,
            dbname: "bench",
            under,
        };
        let process = setup.start();
        load.set_pooler(process.place(scenario.family));
        Self { process, load }
    }

    fn sample(&mut self, clients: usize, options: Options, latency: &mut Histogram) -> Sample {
        let pid = self.process.pid();
        let own = std::process::id();
        self.load.start(clients);
        self.load.run(options.time.min(Duration::from_millis(300)));
        self.load.take();
        let before = (Usage::of(pid), Usage::of(own), machine());
        let began = Instant::now();
        self.load.run(options.time);
        let seconds = began.elapsed().as_secs_f64();
        let after = (Usage::of(pid), Usage::of(own), machine());
        let (units, times) = self.load.take();
        self.load.stop();
        self.load.take();
        latency.merge(&times);
        let usage = after.0.since(before.0);
        let mine = after.1.since(before.1);
        let known = usage.user + usage.system + mine.user + mine.system;
        let others = (after.2 - before.2).saturating_sub(known) as f64 / (seconds * 200.0);
        Sample { seconds, units, usage, load: mine.cpu, others }
    }

    fn count(&mut self, clients: usize, options: Options) -> (Counts, u64) {
        self.load.take();
        let counter = Counter::start(self.process.pid(), &scratch().folder());
        self.load.start(clients);
        self.load.run(options.time.min(Duration::from_secs(1)));
        self.load.stop();
        (counter.stop(), self.load.take().0)
    }
}

/// Measures a scenario; `progress` is told what happens.
pub(crate) fn run(
    scenario: &Scenario,
    options: Options,
    progress: &mut dyn FnMut(&str),
) -> Vec<Series> {
    let replies = Rc::new(Replies::new());
    let script = scenario.work.script(&replies);
    let mut stands = Vec::new();
    let mut all = Vec::new();
    for variant in &scenario.variants {
        progress(&format!("starting {}", variant.label));
        let mut stand = Stand::new(scenario, variant, &replies, &[]);
        stand.load.connect(scenario.clients + variant.idle);
        prepared::begin(scenario, &mut stand.load, &replies);
        stand.load.set_script(&script);
        stands.push(stand);
        all.push(Series {
            label: variant.label,
            samples: Vec::new(),
            latency: Histogram::default(),
            counts: Counts::new(),
            counted: 0,
        });
    }
    for round in 1..=options.rounds {
        for (stand, series) in stands.iter_mut().zip(&mut all) {
            progress(&format!("round {round} of {}: {}", options.rounds, series.label));
            let sample = stand.sample(scenario.clients, options, &mut series.latency);
            series.samples.push(sample);
        }
    }
    for (stand, series) in stands.iter_mut().zip(&mut all) {
        progress(&format!("system calls of {}", series.label));
        (series.counts, series.counted) = stand.count(scenario.clients, options);
    }
    all
}
