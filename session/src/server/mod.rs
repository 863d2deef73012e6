//! A server without sockets: conversations answered from a [`Store`](blobferry_store::Store).
//!
//! [`ServerCore`] is what all connections of a server share; [`Handler`] is one of them, which a transport drives as an
//! [`ConnectionHandler`](crate::io::ConnectionHandler). The store's work is done by
//! [`BlockingPool`](blobferry_platform::pool::BlockingPool), its results come back through a mailbox, and the transport is woken
//! to fetch them. What is small, and syncs nothing, is done on the thread that drives the session, as long as the disk is
//! not asked: see `pace`.

mod core;
mod counters;
mod decide;
mod detached;
mod handler;
mod inline_policy;
mod mailbox;
mod reads;
mod requests;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod schedules;
mod strands;
mod upload;
mod verified;

pub use self::core::{ServerConfig, ServerCore};
pub use handler::Handler;
