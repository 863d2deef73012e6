//! The blobferry protocol as pure state machines.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod limits;
mod message;
mod time;
pub mod wire;
mod words;

pub use limits::Limits;
pub use message::*;
pub use time::Time;
pub use words::*;
