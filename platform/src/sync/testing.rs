//! What tests of schedules share.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::thread;

/// How many do something at this moment: at most one may.
#[derive(Default)]
pub struct Alone(AtomicUsize);

impl Alone {
    /// Does it, and lets others run meanwhile.
    pub fn act<T>(&self, act: impl FnOnce() -> T) -> T {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst), 0, "two at once");
        thread::yield_now();
        let done = act();
        self.0.fetch_sub(1, Ordering::SeqCst);
        done
    }
}
