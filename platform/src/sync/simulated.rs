//! Threads, locks and time as [shuttle] has them: one thread runs at a time, and a scheduler with a seed says which.
//!
//! Shuttle does not know time. Here it passes whenever the scheduler likes: every wait that may time out has a thread
//! that ends it, and puts the clock forward to its end. A scene that wants to see whether something was *told*, rather
//! than found when a wait had timed out, [holds the time](hold_time).

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

/// Scenes that go on for so many steps do not end.
const STEPS: usize = 200_000;
/// Real code runs on the stacks of simulated threads.
const STACK: usize = 512 << 10;
/// How many threads are interrupted at moments of the scheduler's choice, at most, in schedules that are hostile rather than
/// random.
const DEPTH: usize = 4;
/// Where the schedules begin; `SHUTTLE_RANDOM_SEED` in the environment chooses others.
const SEED: u64 = 0xb10b_fe44;

/// Runs a scene under `schedules` schedules at random, and under as many that are hostile (few interruptions, but at the
/// worst moments). Always the same ones; the environment variable `BLOBFERRY_SCHEDULES` says how many times as many.
///
/// The scene is over when all its threads have ended. If that can not be, or if it panics, shuttle prints the schedule.
/// With that in `BLOBFERRY_SCHEDULE`, it is the only one that is run.
pub fn explore(schedules: usize, scene: impl Fn() + Send + Sync + 'static) {
    let scene = Arc::new(scene);
    if let Ok(schedule) = std::env::var("BLOBFERRY_SCHEDULE") {
        return run(ReplayScheduler::new_from_encoded(&schedule), scene);
    }
    let times = std::env::var("BLOBFERRY_SCHEDULES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    let schedules = schedules * times;
    run(RandomScheduler::new_from_seed(SEED, schedules), scene.clone());
    run(PctScheduler::new_from_seed(SEED, DEPTH, schedules), scene);
}

fn run(scheduler: impl Scheduler + 'static, scene: Arc<impl Fn() + Send + Sync + 'static>) {
    let mut config = shuttle::Config::new();
    config.stack_size = STACK;
    config.max_steps = shuttle::MaxSteps::FailAfter(STEPS);
    config.silence_warnings = true;
    shuttle::Runner::new(scheduler, config).run(move || {
        CLOCK.set(Clock::default());
        scene();
    });
}

/// Time, in one run of a scene. All of its threads run on one real one.
#[derive(Default)]
struct Clock {
    passed: Duration,
    /// Waits that would have timed out, while the time is held.
    held: Option<Vec<Arc<Waiter>>>,
}

std::thread_local! {
    static CLOCK: RefCell<Clock> = RefCell::default();
}

/// The moment now.
#[must_use]
pub fn now() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now) + CLOCK.with_borrow(|clock| clock.passed)
}

/// No wait times out from now on, until [`let_time_pass`].
pub fn hold_time() {
    CLOCK.with_borrow_mut(|clock| clock.held = Some(Vec::new()));
}

/// Ends [`hold_time`].
pub fn let_time_pass() {
    let held = CLOCK.with_borrow_mut(|clock| clock.held.take());
    held.into_iter().flatten().for_each(time_out);
}

/// Waits as a system call would that blocks: tries again and again, and lets others run in between.
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

/// See [`std::sync::MutexGuard`]. It knows its mutex, which a [`Condvar`] needs.
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

/// See [`std::sync::Condvar`]. A wait ends because of a notification or its time, never for nothing: so a
/// notification that is missing is missed.
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

/// A thread that waits. Real mutexes guard its state: none is held where threads are switched.
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

    /// Ends the wait, unless it is over. Another thread runs before it has any effect.
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
        // Shuttle lets others run before it unlocks, but not between that and what follows: so it unlocks and waits in
        // one step.
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

    /// See [`std::sync::Condvar::notify_one`]: any one.
    pub fn notify_one(&self) {
        thread::sleep(Duration::ZERO); // others may run before
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

    /// Those who wait still.
    fn waiters<R>(&self, with: impl FnOnce(&mut Vec<Arc<Waiter>>) -> R) -> R {
        let mut waiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiters.retain(|waiter| waiter.state() == Wait::Waiting);
        with(&mut waiters)
    }
}

/// Has a wait time out at some moment, if it is not over by then.
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
