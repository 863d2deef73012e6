//! The progress of a transfer.

use std::sync::Arc;

/// The progress of a transfer, in bytes of the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The number of bytes that have been moved.
    pub done: u64,
    /// The number of bytes of the blob.
    pub total: u64,
}

/// A callback for the progress of a transfer. Any thread may call it, often: it must not block.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;
