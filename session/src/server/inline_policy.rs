//! What is done on the thread that has heard of it, although a disk might be asked, and what by a worker.
//!
//! Two changes of threads cost several times what a small read costs that is answered from memory, and nearly all of
//! them are. So what is quick by its kind is tried on the thread with the sockets, and the time is taken. Where many
//! were slow, all go to the workers for a while, and then one is tried again: twenty times as long as the last one
//! took, so that the thread loses no more than about a twentieth of its time to a disk. One that is slow now and then
//! says nothing: most likely the system has given the processor to somebody else.
//!
//! And nobody else on the thread waits for long: what one connection does in a [`WorkBudget`] is bounded.

use std::time::{Duration, Instant};

use blobferry_platform::os;
use blobferry_platform::sync::Arc;
use blobferry_platform::sync::atomic::{AtomicU64, Ordering};

/// Who takes longer has asked the disk.
const SLOW: Duration = Duration::from_millis(1);
/// So many quick ones make one slow one good.
const GOOD: u64 = 8;
/// That many points, [`GOOD`] for each slow one and less one for each quick one, are too many.
const TOO_MANY: u64 = 2 * GOOD;
/// So many times as long as it took nothing is tried after one too many.
const REST: u32 = 20;
/// And at most so long.
const LONGEST: Duration = Duration::from_secs(10);

/// What is done here in one turn, at most.
const ACTS: u32 = 64;
/// And for so long. What was begun before is finished.
const TURN: Duration = Duration::from_micros(400);

/// How quick things are at this time. Shared by all connections: they have one disk.
#[derive(Debug)]
pub(super) struct InlinePolicy {
    start: Instant,
    /// See [`TOO_MANY`].
    points: AtomicU64,
    /// Nothing is tried before, in nanoseconds since `start`.
    rests_until: AtomicU64,
}

impl InlinePolicy {
    pub(super) fn new() -> InlinePolicy {
        InlinePolicy { start: os::now(), points: AtomicU64::new(0), rests_until: AtomicU64::new(0) }
    }

    /// Whether something that is quick by its kind may be done on a thread with sockets now.
    pub(super) fn is_quick(&self) -> bool {
        self.may_try(os::now())
    }

    /// Does it there, and notes how long it took.
    pub(super) fn act<T>(&self, act: impl FnOnce() -> T) -> T {
        let from = os::now();
        let done = act();
        self.note(from, os::now());
        done
    }

    fn may_try(&self, now: Instant) -> bool {
        let until = self.rests_until.load(Ordering::Relaxed);
        (until == 0 || self.nanos(now) >= until) && os::is_quick()
    }

    /// Something was done here from one moment to another.
    fn note(&self, from: Instant, to: Instant) {
        let took = to.saturating_duration_since(from);
        let points = self.points.load(Ordering::Relaxed);
        if took < SLOW {
            if points > 0 {
                // Others may count at the same time: that one is lost now and then does not matter.
                self.points.store(points - 1, Ordering::Relaxed);
            }
            return;
        }
        // One that is slow after a rest is one too many again.
        let points = (points + GOOD).min(TOO_MANY);
        self.points.store(points, Ordering::Relaxed);
        if points == TOO_MANY {
            let until = self.nanos(to + (took * REST).min(LONGEST));
            self.rests_until.store(until, Ordering::Relaxed);
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.start).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

/// What one connection does at a time before it is others' turn.
#[derive(Debug)]
pub(super) struct WorkBudget {
    pace: Arc<InlinePolicy>,
    /// When it began; unknown as long as nothing was done.
    began: Option<Instant>,
    acts: u32,
}

impl WorkBudget {
    pub(super) fn new(pace: Arc<InlinePolicy>) -> WorkBudget {
        WorkBudget { pace, began: None, acts: 0 }
    }

    /// It is this connection's turn.
    pub(super) fn begin(&mut self) {
        (self.began, self.acts) = (None, 0);
    }

    /// Whether something that is quick by its kind may be done here. If not, it is for a worker, or for the next turn.
    pub(super) fn allows(&mut self) -> bool {
        if self.acts >= ACTS {
            return false;
        }
        let now = os::now();
        let began = *self.began.get_or_insert(now);
        now.saturating_duration_since(began) < TURN && self.pace.may_try(now)
    }

    /// Does something here that is allowed.
    pub(super) fn act<T>(&mut self, act: impl FnOnce() -> T) -> T {
        self.acts += 1;
        self.pace.act(act)
    }

    /// Whether this was all for this turn, so that it would be for the next.
    pub(super) fn is_over(&self) -> bool {
        let late = |began: Instant| os::now().saturating_duration_since(began) >= TURN;
        self.acts >= ACTS || self.began.is_some_and(late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(10);
    const DISK: Duration = Duration::from_millis(8);

    /// A moment that goes on as things are done.
    struct Clock(InlinePolicy, Instant);

    impl Clock {
        fn new() -> Clock {
            let pace = InlinePolicy::new();
            let start = pace.start;
            Clock(pace, start)
        }

        /// Does something as often, or says when it was not tried any more.
        fn act(&mut self, times: u32, took: Duration) -> Result<(), u32> {
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
    fn what_is_quick_goes_on_for_ever_though_one_is_slow_now_and_then() {
        let mut clock = Clock::new();
        for _ in 0..100 {
            assert_eq!(clock.act(GOOD as u32, QUICK), Ok(()));
            assert_eq!(clock.act(1, DISK), Ok(()));
        }
    }

    #[test]
    fn slow_ones_are_not_tried_for_many_times_as_long_as_they_take() {
        let mut clock = Clock::new();
        assert_eq!(clock.act(9, DISK), Err(2));
        clock.1 += DISK * REST - QUICK;
        assert_eq!(clock.act(1, DISK), Err(0));
        clock.1 += QUICK;
        assert_eq!(clock.act(9, DISK), Err(1), "one is tried, and is enough");
        clock.1 += DISK * REST;
        assert_eq!(clock.act(1000, QUICK), Ok(()));
        assert_eq!(clock.act(9, DISK), Err(2));
    }

    #[test]
    fn a_disk_that_hangs_is_tried_again_before_long() {
        let mut clock = Clock::new();
        assert_eq!(clock.act(9, Duration::from_secs(60)), Err(2));
        clock.1 += LONGEST;
        assert_eq!(clock.act(1, QUICK), Ok(()));
    }

    #[test]
    fn a_turn_is_over_after_so_many_acts_and_another_begins() {
        let mut turn = WorkBudget::new(Arc::new(InlinePolicy::new()));
        for _ in 0..2 {
            turn.begin();
            let mut acts = 0;
            while turn.allows() {
                turn.act(|| acts += 1);
            }
            assert!((1..=ACTS).contains(&acts) && turn.is_over());
        }
    }
}
