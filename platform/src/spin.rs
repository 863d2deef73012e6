//! How long a waiting thread spins before it sleeps.
//!
//! A large blob passes several threads, and each of them waits for the one before it every few
//! microseconds. Waking a thread whose processor sleeps takes longer than most of these waits. It
//! is worst on a virtual machine, because the host has to wake the processor. So a thread polls
//! first, and yields to other threads in between; only then it sleeps. If a sleep was long, polling
//! was useless: the thread then sleeps at once, until a sleep is short again. So a slow network
//! costs no processor time.

use std::time::{Duration, Instant};

use crate::sync;

/// How a thread spins.
///
/// Polls are counted instead of timed: the time of other threads, to which the thread yields, is
/// not lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpinPolicy {
    /// The maximum number of polls in one wait. 0 turns spinning off.
    pub max_polls: u32,
    /// The longest sleep after which the next wait spins again. After a longer sleep, spinning
    /// would not have avoided it.
    pub max_sleep: Duration,
}

impl SpinPolicy {
    /// Never spins.
    pub const OFF: SpinPolicy = SpinPolicy { max_polls: 0, max_sleep: Duration::ZERO };

    /// For the threads that a large blob passes: up to 400 polls, adapted to sleeps of up to 300
    /// µs.
    pub const PIPELINE: SpinPolicy = SpinPolicy::polls(400);

    /// For a thread that waits for the answer to one small request: up to 50 polls, about 30 µs.
    pub const REQUEST: SpinPolicy = SpinPolicy::polls(50);

    /// For a thread that waits for other transactions to join its group commit: up to 40 polls.
    pub const GROUP_COMMIT: SpinPolicy = SpinPolicy::polls(40);

    /// Returns a policy of at most `max_polls` polls. Schedule tests poll once: more polls only
    /// repeat schedules.
    #[must_use]
    pub const fn polls(max_polls: u32) -> SpinPolicy {
        let max_polls = if cfg!(feature = "shuttle") && max_polls > 1 { 1 } else { max_polls };
        SpinPolicy { max_polls, max_sleep: Duration::from_micros(300) }
    }
}

/// The default is [`SpinPolicy::PIPELINE`].
impl Default for SpinPolicy {
    fn default() -> SpinPolicy {
        SpinPolicy::PIPELINE
    }
}

/// The state of one thread that waits repeatedly.
///
/// # Example
/// ```
/// use blobferry_platform::spin::{AdaptiveSpin, SpinPolicy};
///
/// let mut spin = AdaptiveSpin::new(SpinPolicy::OFF);
/// assert!(!spin.should_spin()); // nothing has come: sleep
/// spin.reset(); // something has come
/// ```
#[derive(Debug, Default)]
pub struct AdaptiveSpin {
    policy: SpinPolicy,
    /// The number of polls in this wait.
    polls: u32,
    /// When the thread went to sleep.
    asleep: Option<Instant>,
    /// The last sleep was longer than the policy's `max_sleep`.
    useless: bool,
}

impl AdaptiveSpin {
    /// Creates the state of a thread that has not waited yet.
    #[must_use]
    pub fn new(policy: SpinPolicy) -> AdaptiveSpin {
        AdaptiveSpin { policy, ..AdaptiveSpin::default() }
    }

    /// Returns whether to poll once more. If not, the caller sleeps.
    pub fn should_spin(&mut self) -> bool {
        if self.useless || self.polls >= self.policy.max_polls {
            self.asleep.get_or_insert_with(sync::now);
            return false;
        }
        self.polls += 1;
        true
    }

    /// Ends the wait: what the thread waited for has come.
    pub fn reset(&mut self) {
        if let Some(asleep) = self.asleep.take() {
            self.useless = sync::now().saturating_duration_since(asleep) > self.policy.max_sleep;
        }
        self.polls = 0;
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    const POLICY: SpinPolicy = SpinPolicy::PIPELINE;

    /// Polls until it would sleep. Returns the number of polls.
    fn polls(spin: &mut AdaptiveSpin) -> u32 {
        std::iter::from_fn(|| spin.should_spin().then_some(1)).sum()
    }

    #[test]
    fn a_long_sleep_turns_spinning_off_until_a_short_one() {
        let (mut spin, most, short) = (AdaptiveSpin::default(), POLICY.max_polls, POLICY.max_sleep);
        assert_eq!(polls(&mut spin), most);
        assert_eq!(polls(&mut spin), 0);
        for (slept, expected) in [(short * 2, 0), (short * 2, 0), (Duration::ZERO, most), (short * 2, 0)] {
            let asleep = Instant::now().checked_sub(slept).unwrap();
            // A short sleep is one that began in the future: this thread may be preempted here.
            spin.asleep = Some(if slept.is_zero() { asleep + short * 1000 } else { asleep });
            spin.reset();
            assert_eq!(polls(&mut spin), expected, "after {slept:?}");
        }
    }

    #[test]
    fn a_reset_without_a_sleep_changes_nothing() {
        let mut spin = AdaptiveSpin::default();
        spin.reset();
        (0..POLICY.max_polls / 2).for_each(|_| assert!(spin.should_spin()));
        spin.reset();
        spin.reset();
        assert_eq!(polls(&mut spin), POLICY.max_polls);
    }

    #[test]
    fn a_policy_bounds_the_polls_and_off_never_polls() {
        assert_eq!(polls(&mut AdaptiveSpin::new(SpinPolicy::polls(7))), 7);
        assert_eq!(polls(&mut AdaptiveSpin::new(SpinPolicy::REQUEST)), 50);
        assert_eq!(polls(&mut AdaptiveSpin::new(SpinPolicy::OFF)), 0);
    }
}
