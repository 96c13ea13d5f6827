//! A server.

/// A server.
pub struct Server;
