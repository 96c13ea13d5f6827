//! What is left of a process that has handed over: a keeper of its TLS connections, if it has some.

use super::handover::Kept;
use super::signal::Signal;
use super::turn::Process;
use crate::base::Level;
use crate::net::keeper::Keeper;
use crate::net::options::reason;
use crate::net::sys;
use crate::net::title;

/// Goes on encrypting for the successor until nothing is left of that; the exit code.
pub(super) fn keep(process: Process, kept: Kept) -> u8 {
    if kept.is_empty() {
        // The successor has been waited for long enough: it gets the processor, and nobody tidies up
        // what the system is going to throw away as a whole.
        sys::step_back();
        std::thread::yield_now();
        std::mem::forget(process);
        return 0;
    }
    let Process { core, net, mut log, mut signals, service, .. } = process;
    drop((core, service));
    // Whom it belonged to is not asked again, and nothing but this is printed: who can't be told
    // must not keep connections from going on.
    let mut say = |level, text: &str| {
        let _ = log.line(level, text);
    };
    let mut keeper = match net.into_keeper(kept, signals.source()) {
        Ok(keeper) => keeper,
        Err(error) => {
            let text = format!("TLS connections can't be kept: {}", reason(&error));
            say(Level::Error, &text);
            return 1;
        }
    };
    keeper.trim();
    say(Level::Log, &format!("keeping {} TLS connections for the successor", keeper.len()));
    let code = pump(&mut keeper, &mut signals, &mut say);
    say(Level::Log, "no TLS connection is kept any more, exiting");
    code
}

fn pump(
    keeper: &mut Keeper,
    signals: &mut super::signal::Signals,
    say: &mut impl FnMut(Level, &str),
) -> u8 {
    let mut shown = usize::MAX;
    while !keeper.is_empty() {
        if shown != keeper.len() {
            shown = keeper.len();
            let line = format!("pgturnstile: keeper of {shown} TLS connections");
            title::set("pgt-keeper", &line);
        }
        let has_signal = match keeper.turn() {
            Ok(has_signal) => has_signal,
            Err(error) => {
                say(Level::Fatal, &format!("waiting for events failed: {}", reason(&error)));
                return 1;
            }
        };
        while let Some((level, text)) = keeper.journal().pop() {
            say(level, &text);
        }
        let ends = |signal: &Signal| matches!(signal, Signal::Term | Signal::Int | Signal::Quit);
        if has_signal && signals.take().iter().any(ends) {
            say(Level::Log, &format!("ending {} TLS connections at once", keeper.len()));
            return 0;
        }
    }
    0
}
