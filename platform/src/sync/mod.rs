//! What threads work together with, here and in the crates above: the standard library's primitives.
//!
//! With the feature `shuttle`, which only tests turn on, it is all simulated instead: `explore`
//! runs one scene under thousands of schedules, and every schedule can be run again.

#[cfg(feature = "shuttle")]
mod simulated;
#[cfg(feature = "shuttle")]
pub mod testing;

#[cfg(not(feature = "shuttle"))]
pub use real::*;
#[cfg(feature = "shuttle")]
pub use simulated::*;

#[cfg(not(feature = "shuttle"))]
mod real {
    pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, atomic, mpsc};
    pub use std::{thread, thread_local};

    /// The moment now.
    #[must_use]
    pub fn now() -> std::time::Instant {
        std::time::Instant::now()
    }
}

/// Locks a mutex. If a thread panicked while it held the lock, the value is used as that thread left it: every change under
/// a lock is complete in itself.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
