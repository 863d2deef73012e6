//! How often a store has had the system bring something to the disk, and wait for it: the one figure that says what a
//! commit must cost.
//!
//! A commit of the database is one, with a second one where it begins the log anew; moving what is in the log to the
//! database is two; each file and each directory is one, a large file one more for each step that is
//! synced [ahead](super::ahead). What is done at open, before anybody is served, is not counted.

use blobferry_platform::sync::Arc;
use blobferry_platform::sync::atomic::{AtomicU64, Ordering};

/// So many. Clones count together.
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
