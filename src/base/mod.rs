//! What every floor above builds on: keyed storage, lists through it, buffers, time, text helpers.

pub mod arena;
pub mod fields;
pub mod journal;
pub mod list;
pub mod random;
pub mod spare;
pub mod text;
pub mod time;

pub use arena::{Arena, Id, Objects, Side};
pub use fields::Fields;
pub use journal::{Journal, Level};
pub use list::{Links, List};
pub use spare::{Buf, Spare};
pub use time::Micros;
