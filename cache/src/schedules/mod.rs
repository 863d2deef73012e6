//! Claims and followers under thousands of schedules: see
//! [`explore`](blobferry_platform::sync::explore).
//!
//! A body ends only when each claim was answered and all threads have ended, so a forgotten claim
//! is noticed. The tests assert what else they promise.

mod claims;
mod followers;

use crate::{Cache, CacheConfig};

/// The directory of a cache, which all schedules of a test share: creating one takes longer than a
/// schedule.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn open(&self) -> Cache {
        Cache::open(self.0.path(), CacheConfig::default()).unwrap()
    }
}
