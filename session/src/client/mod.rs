//! A client without sockets: calls go in from any thread, and answers come out through completions. Blobs come from the
//! cache, and go to it. A transport adds bytes and timers, and turns completions into what its users await.
//!
//! | type | what it is |
//! |---|---|
//! | [`Session`] | the calls, over one connection after the other |
//! | [`Transaction`] | one transaction, with the files that it stores |
//! | [`Handler`] | one connection, as a [`ConnectionHandler`] that a transport drives |
//!
//! A transport connects, drives the handler until the connection ends, and calls [`Session::lost`]. Then
//! [`Session::next_dial`] says when to connect to which address, and the session goes on with everything pending.
//!
//! **Tracing.** Events and spans have the target `blobferry::client`. Everything that a connection does is in a span
//! `connection{peer}`; the calls of a transaction are in a span `transaction{txn}`.
//!
//! [`ConnectionHandler`]: crate::io::ConnectionHandler

mod blob_source;
mod byte_range;
mod config;
mod dial;
mod download;
mod error;
mod events;
mod handler;
mod memory_download;
mod memory_transfers;
mod notifications;
mod queue;
mod reconnect;
mod requests;
mod session;
mod shared;
mod state;
mod transaction;

pub use blob_source::BlobSource;
pub use byte_range::byte_range;
pub use config::ClientConfig;
pub use dial::{Addresses, Dial, Reconnect};
pub use error::{CallError, Completion, ConnectError};
pub use events::{ConnectionEvent, Invalidation, Listener, Watcher};
pub use handler::Handler;
pub use notifications::{Coalesce, Ended, NotificationQueue, NotificationSender};
pub use shared::Session;
pub use transaction::{Transaction, VoteError};
