//! pgturnstile, a connection pooler for PostgreSQL. Imports go down this list only:
//!
//! * `app`: a process: arguments, privileges, signals, log files, the loop, performing actions
//! * `console`: the admin database: commands and SHOW tables
//! * `net`: sockets: connections, relay, listening, dialling, look-ups
//! * `core`: who gets which server, and when; no socket, no clock
//! * `config`: settings, entries, user list; `auth`: md5, SCRAM, stored secrets
//! * `wire`: PostgreSQL's messages: framing, reading, writing
//! * `base`: arena, list, time

pub mod app;
pub mod auth;
pub mod base;
pub mod config;
pub mod console;
pub mod core;
pub mod net;
pub mod wire;
