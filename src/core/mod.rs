//! Who gets which server, and when.

pub mod client;
pub mod face;
pub mod server;

pub use face::{
    Action, Addr, ClientId, Decisions, Loss, Origin, Packet, Peer, ServerId, Sink, Target, Verdict,
};
