//! Helpers of schedule tests.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::simulated::thread;

/// Asserts that at most one thread at a time executes a section.
#[derive(Default)]
pub struct Alone(AtomicUsize);

impl Alone {
    /// Executes `act`, lets other threads run meanwhile, and panics if two threads are in here at
    /// once.
    pub fn act<T>(&self, act: impl FnOnce() -> T) -> T {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst), 0, "two at once");
        thread::yield_now();
        let done = act();
        self.0.fetch_sub(1, Ordering::SeqCst);
        done
    }
}
