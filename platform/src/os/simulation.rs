//! The interface of a simulator that replaces the operating system for one thread.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::step::{Job, Next, Step};

/// What a simulator provides in the operating system's place.
pub trait Simulation {
    /// Answers [`os::now`](super::now).
    fn now(&self) -> Instant;

    /// Answers [`os::unix_time`](super::unix_time).
    fn unix_time(&self) -> Duration;

    /// Answers [`os::random`](super::random).
    fn random(&self, bytes: &mut [u8]);

    /// Returns the identity of the current boot of the machine.
    fn boot(&self) -> [u8; 16];

    /// Accepts a job that a thread would run. The simulator runs it now or later, before or after
    /// other jobs.
    fn run(&self, job: Job);

    /// Accepts a step that a thread would repeat in a loop.
    fn serve(&self, step: Box<dyn FnMut() -> Next + Send>);

    /// Answers [`os::is_quick`](super::is_quick).
    fn is_quick(&self) -> bool {
        true
    }

    /// Returns the number of free bytes on the disk.
    fn free(&self) -> u64;

    /// Decides about a file operation, and returns how many bytes of a write are performed at once.
    ///
    /// # Errors
    /// Returns the error that the file system is to report. The operation is then not performed.
    fn file(&self, step: Step<'_>) -> io::Result<usize>;
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<dyn Simulation>>> = const { RefCell::new(None) };
}

/// Returns the simulation that this thread is in.
#[must_use]
pub fn current() -> Option<Rc<dyn Simulation>> {
    // While the thread ends, its thread-local values are gone.
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// A guard: the thread leaves the simulation when it is dropped.
#[must_use = "dropping it leaves the simulation"]
#[derive(Debug)]
pub struct Entered(());

/// Lets this thread enter a simulation, and leave any other.
pub fn enter(simulation: Rc<dyn Simulation>) -> Entered {
    CURRENT.set(Some(simulation));
    Entered(())
}

impl Drop for Entered {
    fn drop(&mut self) {
        let left = CURRENT.take();
        drop(left); // after the borrow: dropping the simulation may call `os::now`
    }
}
