//! What is asked of the operating system, and could be given by a simulator instead: the time, chance, threads, and the
//! steps with files that decide what a crash leaves.
//!
//! Everything in this crate and in the server's store that would make two runs differ goes through here. With the feature
//! `testing` a thread can [`enter`](simulation::enter) a simulation; then all that it does happens in there, and nothing
//! waits, sleeps or is left to chance.

use std::io;
use std::time::{Duration, Instant, SystemTime};

pub mod allocate;
mod file_stamp;
pub mod files;
#[cfg(feature = "testing")]
pub mod simulation;

pub use file_stamp::FileStamp;

/// Something to run on a thread that may block.
pub type Job = Box<dyn FnOnce() + Send>;

/// What one who works for as long as there is something to do has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There may be more at once.
    Now,
    /// There will be something at a moment, or before.
    At(Instant),
    /// There is nothing until somebody brings something.
    Waits,
    /// There will be nothing any more.
    Over,
}

/// Asks the simulation that this thread is in, where it is in one.
macro_rules! simulated {
    ($simulation:ident => $given:expr) => {
        #[cfg(feature = "testing")]
        if let Some($simulation) = $crate::os::simulation::current() {
            return $given;
        }
    };
}
pub(crate) use simulated;

/// This moment.
#[must_use]
pub fn now() -> Instant {
    simulated!(simulation => simulation.now());
    crate::sync::now()
}

/// The time of day, since 1970 began. It may jump, also back; before 1970 it does not move.
#[must_use]
pub fn unix_time() -> Duration {
    simulated!(simulation => simulation.unix_time());
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Fills `bytes` by chance.
///
/// # Errors
/// The system has no chance to give.
pub fn random(bytes: &mut [u8]) -> Result<(), getrandom::Error> {
    simulated!(simulation => {
        simulation.random(bytes);
        Ok(())
    });
    getrandom::fill(bytes)
}

/// Whether to expect that something is as quick as it mostly is. That is found out by trying; but no time passes in a
/// simulation while something is done, so it has to say.
#[must_use]
pub fn is_quick() -> bool {
    simulated!(simulation => simulation.is_quick());
    true
}

/// Runs a task on a thread of its own that nobody joins.
///
/// # Errors
/// There are no more threads.
pub fn spawn(name: &str, task: impl FnOnce() + Send + 'static) -> io::Result<()> {
    simulated!(simulation => {
        simulation.run(Box::new(task));
        Ok(())
    });
    crate::sync::thread::Builder::new().name(name.to_owned()).spawn(task).map(drop)
}

/// Has the simulation that this thread is in, where it is in one, take a step again and again, in the place of a thread
/// that would go on until there is nothing any more. Says whether it does.
pub fn register_step(step: impl FnMut() -> Next + Send + 'static) -> bool {
    simulated!(simulation => {
        simulation.serve(Box::new(step));
        true
    });
    drop(step);
    false
}
