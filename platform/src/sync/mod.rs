//! What threads work together with, here and in the crates above: the standard library's primitives.
//!
//! With the feature `shuttle`, which only tests turn on, it is all simulated instead: `explore`
//! runs one scene under thousands of schedules, and every schedule can be run again.

mod mutex;
#[cfg(feature = "shuttle")]
#[allow(unreachable_pub, reason = "it has the shape of std::sync")]
mod simulated;
#[cfg(feature = "shuttle")]
pub mod testing;

#[cfg(feature = "shuttle")]
use self::simulated as backend;
#[cfg(not(feature = "shuttle"))]
use std::sync as backend;

pub use std::sync::{Arc, Weak};

pub use self::mutex::{Condvar, Mutex, MutexGuard};
#[cfg(not(feature = "shuttle"))]
pub use self::real::*;
#[cfg(feature = "shuttle")]
pub use self::simulated::{
    atomic, explore, hold_time, let_time_pass, mpsc, now, thread, thread_local, until,
};

#[cfg(not(feature = "shuttle"))]
mod real {
    pub use std::sync::{atomic, mpsc};
    pub use std::{thread, thread_local};

    /// Returns the current time.
    #[must_use]
    pub fn now() -> std::time::Instant {
        std::time::Instant::now()
    }
}
