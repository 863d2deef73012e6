//! Counts the syncs of a store: how often it waited for the system to write to the disk.
//!
//! A commit of the database is one sync, or two if it restarts the log. A checkpoint is two. Each
//! file and each directory is one, and a large file one more for each [early
//! sync](super::early_sync). Syncs at open are not counted.

use blobferry_platform::sync::Arc;
use blobferry_platform::sync::atomic::{AtomicU64, Ordering};

/// A number of syncs. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct SyncCounter(Arc<AtomicU64>);

impl SyncCounter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
