//! PostgreSQL's messages: framing, reading, writing.

pub mod frame;
