//! A server without sockets: conversations answered from a [`Store`](crate::Store).
//!
//! [`Service`] is what all connections of a server share; [`Session`] is one of them, which a transport drives as an
//! [`Endpoint`](blobferry_cache::carry::Endpoint). The store's work is done by
//! [`Workers`](blobferry_cache::workers::Workers), its results come back through a mailbox, and the transport is woken
//! to fetch them. What is small, and syncs nothing, is done on the thread that drives the session, as long as the disk is
//! not asked: see `pace`.

mod conversation;
mod counters;
mod decide;
mod keep;
mod lanes;
mod mailbox;
mod pace;
mod proofs;
mod reads;
mod requests;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod schedules;
mod service;
mod upload;

pub use conversation::Session;
pub use service::{ServerConfig, Service};
