//! Decides whether a request that may touch the disk runs inline on the socket thread or on the pool.
//!
//! Nearly all small reads are answered from memory, and two thread switches cost several times as much as such a read. So
//! a request that is quick as a rule runs inline, and its time is measured. If inline work proves slow, all of it goes to
//! the pool for [`PAUSE`] times the last duration; then inline is tried again. So the socket thread loses about a
//! twentieth of its time to a slow disk, at most. A single slow request counts little: most likely the scheduler has
//! preempted the thread.
//!
//! A [`WorkBudget`] bounds what one connection does per turn, so that other connections on the thread wait only briefly.

use std::time::{Duration, Instant};

use blobferry_platform::os;
use blobferry_platform::sync::Arc;
use blobferry_platform::sync::atomic::{AtomicU64, Ordering};

/// A request that takes longer has waited for the disk.
const SLOW: Duration = Duration::from_millis(1);
/// Quick requests that make up for a slow one.
const QUICK_PER_SLOW: u64 = 8;
/// The points at which inline work pauses. A slow request adds [`QUICK_PER_SLOW`] points, a quick one removes one.
const MAX_POINTS: u64 = 2 * QUICK_PER_SLOW;
/// The length of a pause, as a multiple of the duration of the last request.
const PAUSE: u32 = 20;
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Requests that run inline in one turn, at most.
const MAX_REQUESTS: u32 = 64;
/// How long a turn begins new requests. A request that has begun is finished.
const MAX_TIME: Duration = Duration::from_micros(400);

/// How quick inline work is at this time. Shared by all connections, because they have one disk.
#[derive(Debug)]
pub(super) struct InlinePolicy {
    start: Instant,
    /// See [`MAX_POINTS`].
    points: AtomicU64,
    /// The end of the last pause, in nanoseconds since `start`.
    paused_until: AtomicU64,
}

impl InlinePolicy {
    /// Creates a policy that allows inline work.
    pub(super) fn new() -> InlinePolicy {
        InlinePolicy { start: os::now(), points: AtomicU64::new(0), paused_until: AtomicU64::new(0) }
    }

    /// Returns whether a request that is quick as a rule may run inline now.
    pub(super) fn allows(&self) -> bool {
        self.may_try(os::now())
    }

    /// Runs a request inline, and measures its time.
    pub(super) fn run<T>(&self, act: impl FnOnce() -> T) -> T {
        let from = os::now();
        let done = act();
        self.note(from, os::now());
        done
    }

    fn may_try(&self, now: Instant) -> bool {
        let until = self.paused_until.load(Ordering::Relaxed);
        (until == 0 || self.nanos(now) >= until) && os::is_quick()
    }

    /// Notes that a request ran inline between two moments.
    fn note(&self, from: Instant, to: Instant) {
        let took = to.saturating_duration_since(from);
        let points = self.points.load(Ordering::Relaxed);
        if took < SLOW {
            if points > 0 {
                // Other threads may count at the same time. An update that is lost does no harm.
                self.points.store(points - 1, Ordering::Relaxed);
            }
            return;
        }
        // A slow request right after a pause starts another one.
        let points = (points + QUICK_PER_SLOW).min(MAX_POINTS);
        self.points.store(points, Ordering::Relaxed);
        if points == MAX_POINTS {
            let until = self.nanos(to + (took * PAUSE).min(LONGEST_PAUSE));
            self.paused_until.store(until, Ordering::Relaxed);
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.start).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

/// What one connection may still do inline in its turn.
#[derive(Debug)]
pub(super) struct WorkBudget {
    policy: Arc<InlinePolicy>,
    /// When the turn began; `None` until something was done.
    began: Option<Instant>,
    requests: u32,
}

impl WorkBudget {
    /// Creates a full budget.
    pub(super) fn new(policy: Arc<InlinePolicy>) -> WorkBudget {
        WorkBudget { policy, began: None, requests: 0 }
    }

    /// Begins a turn.
    pub(super) fn begin(&mut self) {
        (self.began, self.requests) = (None, 0);
    }

    /// Returns whether a request that is quick as a rule may run inline. If not, it is for the pool, or for the next turn.
    pub(super) fn allows(&mut self) -> bool {
        if self.requests >= MAX_REQUESTS {
            return false;
        }
        let now = os::now();
        let began = *self.began.get_or_insert(now);
        now.saturating_duration_since(began) < MAX_TIME && self.policy.may_try(now)
    }

    /// Runs a request inline that is allowed.
    pub(super) fn run<T>(&mut self, act: impl FnOnce() -> T) -> T {
        self.requests += 1;
        self.policy.run(act)
    }

    /// Returns whether the budget of this turn is spent.
    pub(super) fn is_over(&self) -> bool {
        let late = |began: Instant| os::now().saturating_duration_since(began) >= MAX_TIME;
        self.requests >= MAX_REQUESTS || self.began.is_some_and(late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(10);
    const DISK: Duration = Duration::from_millis(8);

    /// A clock that advances as requests run.
    struct Clock(InlinePolicy, Instant);

    impl Clock {
        fn new() -> Clock {
            let policy = InlinePolicy::new();
            let start = policy.start;
            Clock(policy, start)
        }

        /// Runs `times` requests inline. Returns how many ran if the policy stopped them.
        fn run(&mut self, times: u32, took: Duration) -> Result<(), u32> {
            for done in 0..times {
                if !self.0.may_try(self.1) {
                    return Err(done);
                }
                let from = self.1;
                self.1 += took;
                self.0.note(from, self.1);
            }
            Ok(())
        }
    }

    #[test]
    fn rare_slow_requests_do_not_pause_inline_work() {
        let mut clock = Clock::new();
        for _ in 0..100 {
            assert_eq!(clock.run(QUICK_PER_SLOW as u32, QUICK), Ok(()));
            assert_eq!(clock.run(1, DISK), Ok(()));
        }
    }

    #[test]
    fn slow_requests_pause_inline_work_for_a_multiple_of_their_time() {
        let mut clock = Clock::new();
        assert_eq!(clock.run(9, DISK), Err(2));
        clock.1 += DISK * PAUSE - QUICK;
        assert_eq!(clock.run(1, DISK), Err(0));
        clock.1 += QUICK;
        assert_eq!(clock.run(9, DISK), Err(1), "one is tried, and pauses it again");
        clock.1 += DISK * PAUSE;
        assert_eq!(clock.run(1000, QUICK), Ok(()));
        assert_eq!(clock.run(9, DISK), Err(2));
    }

    #[test]
    fn pause_after_a_hanging_disk_is_bounded() {
        let mut clock = Clock::new();
        assert_eq!(clock.run(9, Duration::from_secs(60)), Err(2));
        clock.1 += LONGEST_PAUSE;
        assert_eq!(clock.run(1, QUICK), Ok(()));
    }

    #[test]
    fn budget_is_spent_after_max_requests_and_refilled() {
        let mut budget = WorkBudget::new(Arc::new(InlinePolicy::new()));
        for _ in 0..2 {
            budget.begin();
            let mut requests = 0;
            while budget.allows() {
                budget.run(|| requests += 1);
            }
            assert!((1..=MAX_REQUESTS).contains(&requests) && budget.is_over());
        }
    }
}
