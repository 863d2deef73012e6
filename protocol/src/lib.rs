//! The blobferry protocol as pure state machines.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod buffered;
mod call;
pub mod client;
pub mod connection;
mod error;
mod limits;
mod message;
pub mod server;
mod time;
pub mod wire;
mod words;

pub use connection::{Config, Expect, Slice, TransferEvent, Transmit};
pub use error::{PeerError, UsageError};
pub use limits::Limits;
pub use message::*;
pub use time::Time;
pub use words::*;
