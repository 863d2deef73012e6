//! The place of the operating system, for who simulates one. A simulation is entered by a thread, and has it alone.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::os::files::Step;
use crate::os::{Job, Next};

/// What a simulation gives in the system's place.
pub trait Simulation {
    /// See [`now`](super::now).
    fn now(&self) -> Instant;

    /// See [`since_1970`](super::unix_time).
    fn unix_time(&self) -> Duration;

    /// See [`chance`](super::random).
    fn random(&self, bytes: &mut [u8]);

    /// Which boot of the machine this is, for who asks whether it was up all the time.
    fn boot(&self) -> [u8; 16];

    /// Takes a job that a thread would run: now or later, before or after others.
    fn run(&self, job: Job);

    /// Takes the place of a thread that would take a step again and again.
    fn serve(&self, step: Box<dyn FnMut() -> Next + Send>);

    /// See [`is_quick`](super::is_quick).
    fn is_quick(&self) -> bool {
        true
    }

    /// The bytes that are free on the disk.
    fn free(&self) -> u64;

    /// A step with a file is about to be taken. Says how many bytes of a write are done at once.
    ///
    /// # Errors
    /// What the file system is to answer. Then the step is not taken.
    fn file(&self, step: Step<'_>) -> io::Result<usize>;
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<dyn Simulation>>> = const { RefCell::new(None) };
}

/// The simulation that this thread is in.
#[must_use]
pub fn current() -> Option<Rc<dyn Simulation>> {
    // While the thread ends there is none any more.
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// A thread's stay in a simulation. Dropped, it leaves.
#[must_use = "dropping it leaves the simulation"]
#[derive(Debug)]
pub struct Entered(());

/// Has this thread enter a simulation, in place of any other.
pub fn enter(simulation: Rc<dyn Simulation>) -> Entered {
    CURRENT.set(Some(simulation));
    Entered(())
}

impl Drop for Entered {
    fn drop(&mut self) {
        let left = CURRENT.take();
        drop(left); // outside of the borrow: what it holds may want to know the time
    }
}
