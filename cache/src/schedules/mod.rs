//! How threads work together here, tried under thousands of schedules: see [`explore`](crate::sync::explore).
//!
//! Every scene ends only when everybody was answered and all threads are gone, so whoever is forgotten is found. What is
//! asserted beyond that is in the scenes.

mod claims;
mod followers;
mod lanes;

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sync::thread;
use crate::{Cache, CacheConfig};

/// How many do something at this moment: at most one may.
#[derive(Default)]
struct Alone(AtomicUsize);

impl Alone {
    /// Does it, and lets others run meanwhile.
    fn act<T>(&self, act: impl FnOnce() -> T) -> T {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst), 0, "two at once");
        thread::yield_now();
        let done = act();
        self.0.fetch_sub(1, Ordering::SeqCst);
        done
    }
}

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
