//! How far something long is.

use std::sync::Arc;

/// How far a transfer is, in bytes of the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that have been moved.
    pub done: u64,
    /// Bytes there are.
    pub total: u64,
}

/// Told of the progress of a transfer, from any thread, often: it must not block.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;
