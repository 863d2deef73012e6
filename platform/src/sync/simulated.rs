//! Threads, locks and time as [shuttle] simulates them: one thread runs at a time, and a scheduler
//! with a seed chooses it.
//!
//! Shuttle does not know time. Here time passes when the scheduler chooses: a helper thread ends
//! each wait with a timeout, and sets the clock to the end of that wait. A test that must tell a
//! notification from a timeout [holds the time](hold_time).

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, OnceLock, TryLockError, TryLockResult};
use std::time::{Duration, Instant};

use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
pub use shuttle::sync::{atomic, mpsc};
use shuttle::thread::Thread;
pub use shuttle::{thread, thread_local};
use std::sync::{Arc, PoisonError};

/// A test body that takes more steps than this does not end.
const STEPS: usize = 200_000;
/// The stack of a simulated thread in bytes. The code under test is real code.
const STACK: usize = 512 << 10;
/// The maximum number of preemptions in a hostile schedule (as opposed to a random one).
const DEPTH: usize = 4;
/// The seed of the first schedule. `SHUTTLE_RANDOM_SEED` in the environment selects another one.
const SEED: u64 = 0xb10b_fe44;

/// Runs a test body under `schedules` random schedules, and under as many hostile ones (few
/// preemptions, at the worst moments). The schedules are the same in each run. The environment
/// variable `BLOBFERRY_SCHEDULES` multiplies their number.
///
/// The body ends when all of its threads have ended. If it cannot end, or panics, shuttle prints
/// the schedule. With that text in `BLOBFERRY_SCHEDULE`, only this schedule runs.
pub fn explore(schedules: usize, body: impl Fn() + Send + Sync + 'static) {
    let body = Arc::new(body);
    if let Ok(schedule) = std::env::var("BLOBFERRY_SCHEDULE") {
        return run(ReplayScheduler::new_from_encoded(&schedule), body);
    }
    let times = std::env::var("BLOBFERRY_SCHEDULES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    let schedules = schedules * times;
    run(RandomScheduler::new_from_seed(SEED, schedules), body.clone());
    run(PctScheduler::new_from_seed(SEED, DEPTH, schedules), body);
}

fn run(scheduler: impl Scheduler + 'static, body: Arc<impl Fn() + Send + Sync + 'static>) {
    let mut config = shuttle::Config::new();
    config.stack_size = STACK;
    config.max_steps = shuttle::MaxSteps::FailAfter(STEPS);
    config.silence_warnings = true;
    shuttle::Runner::new(scheduler, config).run(move || {
        CLOCK.set(Clock::default());
        body();
    });
}

/// The clock of one run. All simulated threads of a run share one real thread.
#[derive(Default)]
struct Clock {
    passed: Duration,
    /// The waits that would have timed out while the time is held.
    held: Option<Vec<Arc<Waiter>>>,
}

std::thread_local! {
    static CLOCK: RefCell<Clock> = RefCell::default();
}

/// Returns the current simulated instant.
#[must_use]
pub fn now() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now) + CLOCK.with_borrow(|clock| clock.passed)
}

/// Stops the clock: no wait times out until [`let_time_pass`].
pub fn hold_time() {
    CLOCK.with_borrow_mut(|clock| clock.held = Some(Vec::new()));
}

/// Ends [`hold_time`].
pub fn let_time_pass() {
    let held = CLOCK.with_borrow_mut(|clock| clock.held.take());
    held.into_iter().flatten().for_each(time_out);
}

/// Waits as a blocking system call would: repeats an attempt, and lets other threads run in
/// between.
pub fn until<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        thread::yield_now();
    }
}

/// See [`std::sync::Mutex`].
#[derive(Debug, Default)]
pub struct Mutex<T: ?Sized>(shuttle::sync::Mutex<T>);

/// See [`std::sync::MutexGuard`]. It has a reference to its mutex, which a [`Condvar`] needs.
pub struct MutexGuard<'a, T: ?Sized> {
    guard: shuttle::sync::MutexGuard<'a, T>,
    mutex: &'a Mutex<T>,
}

impl<T> Mutex<T> {
    /// See [`std::sync::Mutex::new`].
    #[track_caller]
    pub const fn new(value: T) -> Mutex<T> {
        Mutex(shuttle::sync::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    /// See [`std::sync::Mutex::lock`].
    ///
    /// # Errors
    /// A holder has panicked.
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        match self.0.lock() {
            Ok(guard) => Ok(MutexGuard { guard, mutex: self }),
            Err(poison) => Err(PoisonError::new(MutexGuard { guard: poison.into_inner(), mutex: self })),
        }
    }

    /// See [`std::sync::Mutex::try_lock`].
    ///
    /// # Errors
    /// It is locked, or a holder has panicked.
    pub fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Ok(MutexGuard { guard, mutex: self }),
            Err(TryLockError::WouldBlock) => Err(TryLockError::WouldBlock),
            Err(TryLockError::Poisoned(poison)) => {
                let poisoned = MutexGuard { guard: poison.into_inner(), mutex: self };
                Err(TryLockError::Poisoned(PoisonError::new(poisoned)))
            }
        }
    }

    /// See [`std::sync::Mutex::get_mut`].
    ///
    /// # Errors
    /// A holder has panicked.
    pub fn get_mut(&mut self) -> LockResult<&mut T> {
        self.0.get_mut()
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.fmt(f)
    }
}

/// See [`std::sync::Condvar`]. A wait ends by a notification or a timeout, never spuriously, so
/// that a test notices a missing notification.
#[derive(Debug, Default)]
pub struct Condvar(std::sync::Mutex<Vec<Arc<Waiter>>>);

/// See [`std::sync::WaitTimeoutResult`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// See [`std::sync::WaitTimeoutResult::timed_out`].
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

/// A waiting thread. A real mutex guards its state, which is never locked while threads are
/// switched.
#[derive(Debug)]
struct Waiter {
    thread: Thread,
    until: Option<Instant>,
    state: std::sync::Mutex<Wait>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Waiting,
    Notified,
    TimedOut,
}

impl Waiter {
    fn state(&self) -> Wait {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the wait, unless it has ended. Another thread runs before that has an effect.
    fn end(&self, why: Wait) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == Wait::Waiting {
            *state = why;
            drop(state);
            self.thread.unpark();
        }
    }
}

impl Condvar {
    /// See [`std::sync::Condvar::wait`].
    ///
    /// # Errors
    /// A holder of the mutex has panicked.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.wait_until(guard, None).0
    }

    /// See [`std::sync::Condvar::wait_timeout`].
    ///
    /// # Errors
    /// A holder of the mutex has panicked.
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        time: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let (locked, result) = self.wait_until(guard, now().checked_add(time));
        match locked {
            Ok(guard) => Ok((guard, result)),
            Err(poison) => Err(PoisonError::new((poison.into_inner(), result))),
        }
    }

    fn wait_until<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        until: Option<Instant>,
    ) -> (LockResult<MutexGuard<'a, T>>, WaitTimeoutResult) {
        let mutex = guard.mutex;
        let state = std::sync::Mutex::new(Wait::Waiting);
        let waiter = Arc::new(Waiter { thread: thread::current(), until, state });
        // Shuttle lets other threads run before it unlocks, but not after it: so this unlocks and
        // waits in one step.
        drop(guard);
        self.waiters(|waiters| waiters.push(waiter.clone()));
        if until.is_some() {
            time_out(waiter.clone());
        }
        while waiter.state() == Wait::Waiting {
            thread::park();
        }
        (mutex.lock(), WaitTimeoutResult(waiter.state() == Wait::TimedOut))
    }

    /// See [`std::sync::Condvar::notify_one`]. Any waiting thread may be chosen.
    pub fn notify_one(&self) {
        thread::sleep(Duration::ZERO); // other threads may run before
        let one = self.waiters(|waiters| {
            if waiters.is_empty() {
                return None;
            }
            let chosen = shuttle::rand::thread_rng().gen_range(0..waiters.len());
            Some(waiters.swap_remove(chosen))
        });
        one.into_iter().for_each(|one| one.end(Wait::Notified));
    }

    /// See [`std::sync::Condvar::notify_all`].
    pub fn notify_all(&self) {
        thread::sleep(Duration::ZERO);
        let all = self.waiters(std::mem::take);
        all.into_iter().for_each(|one| one.end(Wait::Notified));
    }

    /// Calls `with` with the threads that still wait.
    fn waiters<R>(&self, with: impl FnOnce(&mut Vec<Arc<Waiter>>) -> R) -> R {
        let mut waiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiters.retain(|waiter| waiter.state() == Wait::Waiting);
        with(&mut waiters)
    }
}

/// Lets a wait time out at some moment, if it has not ended by then.
fn time_out(waiter: Arc<Waiter>) {
    let held = CLOCK.with_borrow_mut(|clock| clock.held.as_mut().map(|held| held.push(waiter.clone())));
    if held.is_some() {
        return;
    }
    thread::spawn(move || {
        if waiter.state() == Wait::Waiting
            && let Some(until) = waiter.until
        {
            let left = until.saturating_duration_since(now());
            CLOCK.with_borrow_mut(|clock| clock.passed += left);
            waiter.end(Wait::TimedOut);
        }
    });
}
