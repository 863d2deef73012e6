//! A server without sockets: requests are answered from a [`Store`](blobferry_store::Store).
//!
//! | type | what it is |
//! |---|---|
//! | [`ServerCore`] | what all connections of a server share |
//! | [`Handler`] | one connection, as a [`ConnectionHandler`](crate::io::ConnectionHandler) that a transport drives |
//!
//! Work that may block runs on a [`BlockingPool`](blobferry_platform::pool::BlockingPool). Its results come back through
//! the handler's mailbox, and the transport is woken to take them. Small requests, usually answered from memory, run on
//! the thread that drives the handler: see `inline_policy.rs`.
//!
//! **A handler that is driven needs no wake-up.** It drains its mailbox before it goes idle, so a message that is posted
//! while it runs causes none. Therefore a transport must call `transmit` or `catch_up` after every `receive`.
//!
//! **Tracing.** Events and spans have the target `blobferry::server`. Everything that a connection does is in a span
//! `connection{peer}`; the requests of a transaction are in a span `transaction{txn}`. A transport names the peer with
//! [`Handler::set_peer`].

mod config;
mod core;
mod counters;
mod decide;
mod detached;
mod handler;
mod inline_policy;
mod mailbox;
mod message;
mod reads;
mod requests;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod schedules;
mod strands;
mod upload;
mod verified;

pub use self::config::ServerConfig;
pub use self::core::ServerCore;
pub use handler::Handler;
