//! What the crates use of the operating system: time, randomness, threads, and the file operations
//! that decide what a crash leaves.
//!
//! A simulator can replace all of it. Everything that would make two runs differ goes through this
//! module. With the feature `testing` a thread can enter a simulation (`simulation::enter`). From
//! then on the simulation answers these functions on that thread: nothing waits, sleeps or depends
//! on randomness.

use std::io;
use std::time::{Duration, Instant, SystemTime};

pub mod allocate;
mod file_stamp;
pub mod files;
#[cfg(feature = "testing")]
pub mod simulation;
mod step;

pub use file_stamp::FileStamp;
pub use step::{Job, Next};

/// Returns what the simulation answers, if this thread is in one.
macro_rules! simulated {
    ($simulation:ident => $given:expr) => {
        #[cfg(feature = "testing")]
        if let Some($simulation) = $crate::os::simulation::current() {
            return $given;
        }
    };
}
pub(crate) use simulated;

/// Returns the current instant.
#[must_use]
pub fn now() -> Instant {
    simulated!(simulation => simulation.now());
    crate::sync::now()
}

/// Returns the time since 1970-01-01 00:00 UTC. It may jump in both directions; before 1970 it is
/// 0.
#[must_use]
pub fn unix_time() -> Duration {
    simulated!(simulation => simulation.unix_time());
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Fills `bytes` with random bytes.
///
/// # Errors
/// Returns an error if the system has no source of randomness.
pub fn random(bytes: &mut [u8]) -> Result<(), getrandom::Error> {
    simulated!(simulation => {
        simulation.random(bytes);
        Ok(())
    });
    getrandom::fill(bytes)
}

/// Returns whether the caller may assume that an operation is as fast as it usually is.
///
/// Outside a simulation the caller measures that by itself, so this returns `true`. In a simulation
/// no time passes during an operation, so the simulation decides.
#[must_use]
pub fn is_quick() -> bool {
    simulated!(simulation => simulation.is_quick());
    true
}

/// Runs a task on a new detached thread of this name.
///
/// # Errors
/// Returns the system's error if it cannot start a thread.
pub fn spawn(name: &str, task: impl FnOnce() + Send + 'static) -> io::Result<()> {
    simulated!(simulation => {
        simulation.run(Box::new(task));
        Ok(())
    });
    crate::sync::thread::Builder::new().name(name.to_owned()).spawn(task).map(drop)
}

/// Registers a step with the simulation, which calls it repeatedly in the place of a thread with a
/// loop.
///
/// Returns `false`, and drops the step, if this thread is in no simulation.
pub fn register_step(step: impl FnMut() -> Next + Send + 'static) -> bool {
    simulated!(simulation => {
        simulation.serve(Box::new(step));
        true
    });
    drop(step);
    false
}
