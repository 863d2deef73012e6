//! How long who waits for more looks for it before it sleeps.
//!
//! A large blob is worked off by several threads, each of which waits for the one before it every moment. To wake one whose
//! processor has gone to sleep takes longer than most of these waits, most of all on a virtual machine, whose host has to be
//! told. So each looks for a moment, lets others go first meanwhile, and sleeps only then. Where that was in vain it
//! sleeps at once the next time, until a wait is short again: a slow network costs nobody a processor.

use std::time::{Duration, Instant};

use crate::sync;

/// How often one looks before one sleeps. It is counted, and not timed: the time of others, who were let go first, is not lost.
const LOOKS: u32 = if cfg!(feature = "shuttle") { 1 } else { 400 };
/// A sleep that is no longer than this was hardly worth it.
const SHORT: Duration = Duration::from_micros(300);

/// One who waits for more, again and again.
#[derive(Debug, Default)]
pub struct AdaptiveSpin {
    /// How often one has looked in this wait.
    looks: u32,
    /// When one went to sleep.
    asleep: Option<Instant>,
    /// The last sleep was long.
    in_vain: bool,
}

impl AdaptiveSpin {
    /// There is nothing yet: whether to look once more, and to sleep if not.
    pub fn should_spin(&mut self) -> bool {
        if self.in_vain || self.looks == LOOKS {
            self.asleep.get_or_insert_with(sync::now);
            return false;
        }
        self.looks += 1;
        true
    }

    /// What was waited for is there.
    pub fn reset(&mut self) {
        if let Some(asleep) = self.asleep.take() {
            self.in_vain = sync::now().saturating_duration_since(asleep) > SHORT;
        }
        self.looks = 0;
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    /// Looks until it would sleep; how often that was.
    fn looks(looking: &mut AdaptiveSpin) -> usize {
        std::iter::from_fn(|| looking.should_spin().then_some(())).count()
    }

    #[test]
    fn who_waits_looks_some_times_and_not_at_all_after_a_long_sleep_until_one_is_short() {
        let (mut looking, most) = (AdaptiveSpin::default(), LOOKS as usize);
        assert_eq!(looks(&mut looking), most);
        assert_eq!(looks(&mut looking), 0);
        for (slept, expected) in [(SHORT * 2, 0), (SHORT * 2, 0), (Duration::ZERO, most), (SHORT * 2, 0)] {
            let asleep = Instant::now().checked_sub(slept).unwrap();
            // A short sleep is one that ends later than it began, even where this thread is kept from going on.
            looking.asleep = Some(if slept.is_zero() { asleep + SHORT * 1000 } else { asleep });
            looking.reset();
            assert_eq!(looks(&mut looking), expected, "after {slept:?}");
        }
    }

    #[test]
    fn what_is_there_at_once_is_no_wait() {
        let mut looking = AdaptiveSpin::default();
        looking.reset();
        (0..LOOKS / 2).for_each(|_| assert!(looking.should_spin()));
        looking.reset();
        looking.reset();
        assert_eq!(looks(&mut looking), LOOKS as usize);
    }
}
