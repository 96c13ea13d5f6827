//! What is measured, and what issue 3 wants to see.

use std::rc::Rc;

use crate::fake::{sql, Replies, COPY};
use crate::link::Family;
use crate::load::Script;
use crate::prepared;
use crate::process::{Auth, Program};
use crate::rig::wire::{bind, describe, execute, msg, parse, query, sync};

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Simple,
    Extended,
    Prepared,
    Transaction,
    Rows,
    Bulk,
    CopyIn,
    CopyOut,
    Login,
}

/// One pooler in one setting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    pub(crate) label: &'static str,
    pub(crate) program: Program,
    pub(crate) settings: &'static str,
    /// Logged-in clients that do nothing.
    pub(crate) idle: usize,
}

/// The most that the first variant may cost, and the least it must reach, as shares of the second.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Target {
    pub(crate) cost: Option<f64>,
    pub(crate) rate: Option<f64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) work: Work,
    pub(crate) family: Family,
    pub(crate) auth: Auth,
    pub(crate) clients: usize,
    pub(crate) servers: usize,
    /// The first is compared with the second.
    pub(crate) variants: Vec<Variant>,
    pub(crate) target: Target,
}

pub(crate) const OURS: Variant =
    Variant { label: "pgturnstile", program: Program::Ours, settings: "", idle: 0 };
pub(crate) const THEIRS: Variant =
    Variant { label: "pgbouncer", program: Program::PgBouncer, settings: "", idle: 0 };
const THEIRS_LARGE: Variant =
    Variant { label: "pgbouncer, pkt_buf=65536", settings: "pkt_buf = 65536", ..THEIRS };
const FLOOR: Variant = Variant { label: "floor", program: Program::Floor, settings: "", idle: 0 };
const IDLE: usize = 10_000;

impl Work {
    /// The script of the clients.
    pub(crate) fn script(self, replies: &Replies) -> Rc<Script> {
        let sends = match self {
            Self::Simple => vec![query(sql::ONE)],
            Self::Extended => {
                vec![[parse("", sql::ONE), bind("", &[]), describe(b'P', ""), execute(), sync()]
                    .concat()]
            }
            Self::Prepared => vec![prepared::unit()],
            Self::Transaction => vec![query("BEGIN"), query(sql::ONE), query("COMMIT")],
            Self::Rows => vec![query(sql::HUNDRED)],
            Self::Bulk => vec![query(sql::BIG)],
            Self::CopyOut => vec![query(sql::COPY_OUT)],
            Self::CopyIn => {
                let piece = msg(b'd', &[&[b'x'; 99][..], b"\n"].concat().repeat(80));
                let data = piece.repeat(COPY / 8000);
                vec![query(sql::COPY_IN), [data, msg(b'c', b"")].concat()]
            }
            Self::Login => return Rc::new(Script { login: true, ..Script::default() }),
        };
        Rc::new(Script::new(sends, replies))
    }
}

fn scenario(name: &str, work: Work, family: Family, clients: usize) -> Scenario {
    let end = match family {
        Family::Tcp => "tcp",
        Family::Unix => "unix",
    };
    let mut variants = vec![OURS, THEIRS];
    match work {
        Work::Login => {}
        Work::Bulk => variants.extend([THEIRS_LARGE, FLOOR]),
        Work::CopyIn | Work::CopyOut => variants.push(THEIRS_LARGE),
        _ => variants.push(FLOOR),
    }
    Scenario {
        name: format!("{name}-{end}"),
        work,
        family,
        auth: Auth::Trust,
        clients,
        servers: clients.min(20),
        variants,
        target: Target::default(),
    }
}

fn cost(scenario: Scenario, share: f64) -> Scenario {
    let target = Target { cost: Some(share), ..scenario.target };
    Scenario { target, ..scenario }
}

/// All of them, in order.
pub(crate) fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    for family in [Family::Tcp, Family::Unix] {
        all.push(cost(scenario("simple", Work::Simple, family, 200), 0.80));
        all.push(scenario("simple-10", Work::Simple, family, 10));
        all.push(scenario("simple-1000", Work::Simple, family, 1000));
        all.push(cost(scenario("extended", Work::Extended, family, 200), 0.75));
        all.push(prepared::scenario(scenario("prepared", Work::Prepared, family, 200)));
        all.push(cost(scenario("transaction", Work::Transaction, family, 200), 0.90));
        all.push(cost(scenario("rows", Work::Rows, family, 50), 0.40));
        let mut bulk = cost(scenario("bulk", Work::Bulk, family, 4), 0.15);
        bulk.target.rate = Some(5.0);
        all.push(bulk);
        all.push(scenario("copy-in", Work::CopyIn, family, 20));
        all.push(scenario("copy-out", Work::CopyOut, family, 20));
        for (name, auth, share) in [
            ("login-trust", Auth::Trust, Some(1.0)),
            ("login-md5", Auth::Md5, Some(1.0)),
            ("login-scram", Auth::Scram, Some(0.9)),
            ("login-scram-plain", Auth::ScramPlain, None),
        ] {
            let mut login = scenario(name, Work::Login, family, 10);
            (login.auth, login.target.cost) = (auth, share);
            all.push(login);
        }
    }
    let mut idle = cost(scenario("idle-ours", Work::Simple, Family::Tcp, 100), 1.05);
    let label = "pgturnstile, 10,000 idle";
    idle.variants = vec![Variant { label, idle: IDLE, ..OURS }, OURS];
    all.push(idle);
    let mut idle = scenario("idle-pgbouncer", Work::Simple, Family::Tcp, 100);
    let label = "pgbouncer, 10,000 idle";
    idle.variants = vec![Variant { label, idle: IDLE, ..THEIRS }, THEIRS];
    all.push(idle);
    all
}
