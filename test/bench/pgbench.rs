//! End to end: pgbench and a real PostgreSQL on one core, the pooler on the other.

use std::fmt::Write;

use crate::link::Family;
use crate::measure::Usage;
use crate::process::{Auth, Process, Program, Setup};
use crate::report::Spread;
use crate::rig::postgres::postgres;
use crate::run::Options;

const CLIENTS: &str = "50";

/// What pgbench said, and what the pooler used meanwhile.
#[derive(Clone, Copy, Debug)]
struct Figures {
    rate: f64,
    /// Microseconds per transaction.
    cost: f64,
}

fn pooler(program: Program, dbname: &str) -> Process {
    let setup = Setup {
        program,
        family: Family::Tcp,
        auth: Auth::Trust,
        servers: 20,
        settings: "",
        host: "127.0.0.1".to_owned(),
        port: postgres().port,
        dbname,
        under: &[],
    };
    setup.start()
}

fn pgbench(pooler: &Process, arguments: &[&str], options: Options) -> Figures {
    let mut command = postgres().tool("pgbench");
    let seconds = options.time.as_secs().max(1).to_string();
    command.args(["-h", "127.0.0.1", "-p", &pooler.port.to_string(), "-U", "bench", "-n"]);
    command.args(["-c", CLIENTS, "-j", "1", "-T", &seconds]).args(arguments).arg("bench");
    let before = Usage::of(pooler.pid());
    let out = command.output().unwrap();
    let usage = Usage::of(pooler.pid()).since(before);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let number = |key: &str| -> f64 {
        let found = text.lines().find_map(|line| line.strip_prefix(key));
        let word = found.and_then(|rest| rest.split([' ', '/']).next());
        word.and_then(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("pgbench: {text}{}", String::from_utf8_lossy(&out.stderr)))
    };
    let count = number("number of transactions actually processed: ");
    Figures { rate: number("tps = "), cost: usage.cpu as f64 / 1000.0 / count }
}

/// Measures both poolers with each script and protocol; returns the table.
pub(crate) fn run(options: Options, progress: &mut dyn FnMut(&str)) -> String {
    progress("making tables");
    let database = postgres().new_database();
    postgres().value("postgres", "create role bench login superuser");
    crate::rig::scratch::write(
        &postgres().folder.join("data/pg_hba.conf"),
        "local all all trust\nhost all all 127.0.0.1/32 trust\n",
    );
    postgres().value("postgres", "select pg_reload_conf()");
    let mut init = postgres().tool("pgbench");
    init.args(["-i", "-q", "-s", "10", "-h", "127.0.0.1", "-p", &postgres().port.to_string()]);
    let made = init.args(["-U", "bench", &database]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let poolers = [Program::Ours, Program::PgBouncer].map(|program| pooler(program, &database));
    let mut text = format!(
        "| pgbench -c {CLIENTS}, 20 servers, TCP | pgturnstile tps | pgbouncer tps | rate, times | \
         pgturnstile CPU us | pgbouncer CPU us | CPU, share |\n|---|---|---|---|---|---|---|\n"
    );
    let tpcb = ["-b", "tpcb-like"];
    for (name, script) in [("-S", &["-S"][..]), ("TPC-B", &tpcb)] {
        for protocol in ["simple", "extended"] {
            let mut all = [Vec::new(), Vec::new()];
            for round in 1..=options.rounds {
                progress(&format!("{name} {protocol}, round {round} of {}", options.rounds));
                for (pooler, figures) in poolers.iter().zip(&mut all) {
                    let arguments = [script, &["-M", protocol]].concat();
                    figures.push(pgbench(pooler, &arguments, options));
                }
            }
            let spread = |i: usize, value: &dyn Fn(&Figures) -> f64| {
                Spread::of(all[i].iter().map(value)).show()
            };
            let ratio = |value: &dyn Fn(&Figures) -> f64| {
                let rounds = all[0].iter().zip(&all[1]);
                Spread::of(rounds.map(|(ours, theirs)| value(ours) / value(theirs))).show()
            };
            writeln!(
                text,
                "| {name}, {protocol} | {} | {} | {} | {} | {} | {} |",
                spread(0, &|f| f.rate),
                spread(1, &|f| f.rate),
                ratio(&|f| f.rate),
                spread(0, &|f| f.cost),
                spread(1, &|f| f.cost),
                ratio(&|f| f.cost),
            )
            .unwrap();
        }
    }
    text
}
