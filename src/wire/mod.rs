//! PostgreSQL's messages (protocol chapter 55): their kinds, framing, reading the few that we look
//! into, writing those that we send.

pub mod frame;
pub mod packet;
pub mod read;
pub mod startup;
pub mod write;

pub use packet::{FromClient, FromServer};
pub use read::Reader;
