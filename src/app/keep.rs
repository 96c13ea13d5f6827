//! What is left of a process that has handed over: a keeper of its TLS connections, if it has some.

use super::handover::Kept;
use super::signal::{Signal, Signals};
use super::turn::Process;
use crate::base::Level;
use crate::net::keeper::Keeper;
use crate::net::options::reason;
use crate::net::sys;
use crate::net::title;

/// Goes on encrypting for the successor until nothing is left of that; the exit code.
pub(super) fn keep(mut process: Process, kept: Kept) -> u8 {
    if kept.is_empty() {
        let Process { log, signals, .. } = &mut process;
        forget_signals(signals, &mut |level, text| drop(log.line(level, text)));
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
    forget_signals(&mut signals, &mut say);
    say(Level::Log, &format!("keeping {} TLS connections for the successor", keeper.len()));
    let code = pump(&mut keeper, &mut signals, &mut say);
    say(Level::Log, "no TLS connection is kept any more, exiting");
    code
}

/// Whoever has sent a signal before this process is a keeper meant a pooler, and must not lose all
/// that is kept. It came when the successor could not be refused any more.
fn forget_signals(signals: &mut Signals, say: &mut impl FnMut(Level, &str)) {
    if !signals.take().is_empty() {
        say(Level::Warning, "a signal came too late for this process: send it to the successor");
    }
}

fn pump(keeper: &mut Keeper, signals: &mut Signals, say: &mut impl FnMut(Level, &str)) -> u8 {
    let mut shown = usize::MAX;
    let mut ends_soon = false;
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
        if !has_signal {
            continue;
        }
        for signal in signals.take() {
            match signal {
                // What stops a unit is sent to all of its processes, so the successor is told as well.
                Signal::Int | Signal::Restart if !ends_soon => {
                    say(Level::Log, "ending with the successor");
                    keeper.hurry();
                    ends_soon = true;
                }
                Signal::Term | Signal::Int | Signal::Restart | Signal::Quit => {
                    say(Level::Log, &format!("ending {} TLS connections at once", keeper.len()));
                    return 0;
                }
                Signal::Hup | Signal::Usr1 | Signal::Usr2 => {}
            }
        }
    }
    0
}
