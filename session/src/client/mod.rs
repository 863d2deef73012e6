//! The client without a socket: calls go in from any thread, answers come out through
//! callbacks, blobs go from and to the cache. A transport adds bytes, and turns callbacks into what its users await.
//!
//! [`Session`] makes calls, on one connection after the other; [`Transaction`] is one transaction with the files that it
//! stores; [`ConnectionHandler`] is one connection, which the transport drives. When it was lost the session says whom to call
//! next ([`Session::next_dial`]), and goes on with all that was under way.
//!
//! [`ConnectionHandler`]: crate::io::ConnectionHandler

mod api_macros;
mod blob_source;
mod dial;
mod download;
mod error;
mod handler;
mod memory_download;
mod notifications;
mod reconnect;
mod requests;
pub(crate) mod session;
mod state;
mod transaction;

pub use blob_source::BlobSource;
pub use dial::{Addresses, ConnectionEvent, Dial, Reconnect};
pub use error::{CallError, Completion, ConnectError};
pub use handler::Handler;
pub use notifications::{Coalesce, NotificationQueue};
pub use session::{ClientConfig, Invalidation, Listener, Session, Watcher};
pub use transaction::{Transaction, VoteError};
