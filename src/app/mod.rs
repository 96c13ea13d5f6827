//! A process: arguments, privileges, signals, log files.

pub mod args;
pub mod daemon;
pub mod log;
pub mod signal;
