//! A mutex and a condition variable that ignore poisoning.
//!
//! If a thread panics while it holds a lock, the next thread uses the value as it was left. This is
//! safe here because every change under a lock is complete in itself: the crates of this workspace
//! keep that rule.

use std::sync::{PoisonError, TryLockError};
use std::time::Duration;

#[cfg(feature = "shuttle")]
use super::simulated as backend;
#[cfg(feature = "shuttle")]
use super::simulated::now;
#[cfg(not(feature = "shuttle"))]
use super::std_backend::now;
#[cfg(not(feature = "shuttle"))]
use std::sync as backend;

pub use backend::MutexGuard;

/// A mutual exclusion lock: [`std::sync::Mutex`] without poisoning.
#[derive(Debug, Default)]
pub struct Mutex<T: ?Sized>(backend::Mutex<T>);

impl<T> Mutex<T> {
    /// Creates an unlocked mutex.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex(backend::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Locks the mutex, and blocks the thread until that is possible.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the mutex if no thread holds it; otherwise returns `None` at once.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poison)) => Some(poison.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Returns the value without locking: the caller has the only reference.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A condition variable: [`std::sync::Condvar`] without poisoning.
#[derive(Debug, Default)]
pub struct Condvar(backend::Condvar);

impl Condvar {
    /// Creates a condition variable that no thread waits for.
    #[must_use]
    pub fn new() -> Condvar {
        Condvar::default()
    }

    /// Releases the lock, blocks the thread until it is notified, and locks again.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the same for at most `time`. The second value is `true` if the time ran out.
    pub fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, time: Duration) -> (MutexGuard<'a, T>, bool) {
        let (guard, result) = self.0.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner);
        (guard, result.timed_out())
    }

    /// Blocks as long as `condition` holds, for at most `time`.
    pub fn wait_timeout_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        time: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        let end = now().checked_add(time);
        while condition(&mut guard) {
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(now()));
            if left.is_zero() {
                break;
            }
            (guard, _) = self.wait_timeout(guard, left);
        }
        guard
    }

    /// Wakes one thread that waits.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all threads that wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
