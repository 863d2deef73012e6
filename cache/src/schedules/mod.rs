//! How threads work together here, tried under thousands of schedules: see [`explore`](blobferry_platform::sync::explore).
//!
//! Every scene ends only when everybody was answered and all threads are gone, so whoever is forgotten is found. What is
//! asserted beyond that is in the scenes.

mod claims;
mod followers;

use crate::{Cache, CacheConfig};

/// The directory of a cache, in which one schedule after the other is run. (To make one takes longer than a scene.)
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn open(&self) -> Cache {
        Cache::open(self.0.path(), CacheConfig::default()).unwrap()
    }
}
