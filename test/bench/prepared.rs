//! Bind, Describe, Execute, Sync of a named statement, with and without the pooler looking after it.

use std::rc::Rc;

use crate::fake::{sql, Replies};
use crate::load::{Load, Script};
use crate::rig::wire::{bind, describe, execute, parse, sync};
use crate::scenario::{Scenario, Target, Variant, Work, OURS, THEIRS};

const NAME: &str = "statement_17";
/// The same packets pass as they are.
const RAW: Variant =
    Variant { label: "pgturnstile, raw", settings: "max_prepared_statements = 0", ..OURS };

/// Ours beside the bare relay; PgBouncer 1.18 does not track either.
pub(crate) fn scenario(plain: Scenario) -> Scenario {
    let target = Target { cost: Some(1.25), ..plain.target };
    Scenario { variants: vec![OURS, RAW, THEIRS], target, ..plain }
}

/// What a client sends in each unit.
pub(crate) fn unit() -> Vec<u8> {
    [bind(NAME, &[]), describe(b'P', ""), execute(), sync()].concat()
}

/// Every client prepares its statement.
pub(crate) fn begin(scenario: &Scenario, load: &mut Load, replies: &Replies) {
    if scenario.work == Work::Prepared {
        let parse = [parse(NAME, sql::ONE), sync()].concat();
        load.set_script(&Rc::new(Script::new([parse], replies)));
        load.once(0..scenario.clients);
    }
}
