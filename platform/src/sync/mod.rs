//! The synchronization primitives of all crates: the standard library's, without poisoning.
//!
//! With the feature `shuttle`, which only tests turn on, they are simulated. `explore` then runs
//! one test body under thousands of schedules, and can repeat each schedule.

mod mutex;
#[cfg(feature = "shuttle")]
#[allow(unreachable_pub, reason = "it has the shape of std::sync")]
mod simulated;
#[cfg(not(feature = "shuttle"))]
mod std_backend;
#[cfg(feature = "shuttle")]
pub mod testing;

pub use std::sync::{Arc, Weak};

pub use self::mutex::{Condvar, Mutex, MutexGuard};
#[cfg(feature = "shuttle")]
pub use self::simulated::{
    atomic, explore, hold_time, let_time_pass, mpsc, now, thread, thread_local, until,
};
#[cfg(not(feature = "shuttle"))]
pub use self::std_backend::*;
