//! The client without a socket: calls go in from any thread, answers come out through
//! callbacks, blobs go from and to the cache. A transport adds bytes, and turns callbacks into what its users await.
//!
//! [`Session`] makes calls, on one connection after the other; [`Transaction`] is one transaction with the files that it
//! stores; [`Endpoint`] is one connection, which the transport drives. When it was lost the session says whom to call
//! next ([`Session::next_dial`]), and goes on with all that was under way.
//!
//! [`Endpoint`]: crate::carry::Endpoint

mod asks;
mod call;
mod calls;
mod collect;
mod dial;
mod download;
mod endpoint;
mod news;
mod recover;
mod session;
mod source;
mod surface;
mod transaction;

pub use call::{CallError, Completion, ConnectError};
pub use dial::{Addresses, ConnectionEvent, Dial, Reconnect};
pub use endpoint::SessionEndpoint;
pub use news::{Told, Unheard};
pub use session::{ClientConfig, Invalidation, Listener, Session, Watcher};
pub use source::BlobSource;
pub use transaction::{Transaction, VoteError};
