//! The client above one connection, without a socket: calls go in from any thread, answers come out through
//! callbacks, blobs go from and to the cache. A transport adds bytes, and turns callbacks into what its users await.
//!
//! [`Session`] makes calls; [`Transaction`] is one transaction with the files that it stores; [`Endpoint`] is what
//! the transport drives.
//!
//! [`Endpoint`]: crate::carry::Endpoint

mod call;
mod calls;
mod download;
mod session;
mod source;
mod surface;
mod transaction;

pub use call::{CallError, Completion, ConnectError};
pub use session::{ClientConfig, Invalidation, Listener, Session, SessionEndpoint};
pub use source::BlobSource;
pub use transaction::{Transaction, VoteError};
