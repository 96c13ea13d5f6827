//! A client.

/// A client.
pub struct Client;
