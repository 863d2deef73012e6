//! Events of a session that are not answers: commits, and changes of the connection.

use std::sync::Arc;

use blobferry_protocol::{Oid, Tid};

/// A commit, as a client is notified of it: these objects have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// The committed transaction.
    pub tid: Tid,
    /// The objects that have a new revision or were deleted. With `None` every object may have changed, up to and
    /// including the transaction: the connection was lost meanwhile, or the receiver fell too far behind.
    pub oids: Option<Arc<[Oid]>>,
}

/// A change of a client's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// A connection was made, and its handshake is done.
    Connected {
        /// The server's address.
        address: String,
    },
    /// The connection was lost. Pending calls go on with the next connection.
    Lost {
        /// The server's address.
        address: String,
        /// Why it was lost.
        reason: String,
    },
    /// An attempt to reconnect has failed.
    Failed {
        /// The address of the attempt.
        address: String,
        /// Why it failed.
        reason: String,
    },
    /// The server was unreachable for
    /// [`unreachable_timeout`](super::Reconnect::unreachable_timeout). Calls fail until there is a connection again.
    Unreachable {
        /// Why the last attempt failed.
        reason: String,
    },
}

/// Receives invalidations. It returns `false` to unsubscribe.
pub type Listener = Box<dyn FnMut(&Invalidation) -> bool + Send>;

/// Receives connection events. It returns `false` to unsubscribe.
pub type Watcher = Box<dyn FnMut(&ConnectionEvent) -> bool + Send>;

/// Called from any thread, when there is something to send.
pub(super) type Wake = Arc<dyn Fn() + Send + Sync>;
