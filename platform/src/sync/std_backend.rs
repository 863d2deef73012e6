//! The standard library's threads, channels, atomics and clock.

pub use std::sync::{atomic, mpsc};
pub use std::{thread, thread_local};

/// Returns the current instant.
#[must_use]
pub fn now() -> std::time::Instant {
    std::time::Instant::now()
}
