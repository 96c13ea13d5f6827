//! Sockets: connections, relay, listening, dialling, look-ups.

pub mod conn;
pub mod relay;
