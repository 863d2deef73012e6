//! A server without sockets: conversations answered from a [`Store`](crate::Store).
//!
//! [`Service`] is what all connections of a server share; [`Session`] is one of them, which a transport drives as an
//! [`Endpoint`](blobferry_cache::carry::Endpoint). Nothing in here waits for a disk on the thread that drives it: the
//! store's work is done by [`Workers`](blobferry_cache::workers::Workers), its results come back through a mailbox,
//! and the transport is woken to fetch them.

mod conversation;
mod counters;
mod decide;
mod keep;
mod mailbox;
mod proofs;
mod reads;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod schedules;
mod service;
mod upload;

pub use conversation::Session;
pub use service::{ServerConfig, Service};
