//! How long the committer waits for others, so that they share a sync.
//!
//! Whoever was answered in the last batch, or waited behind it, will be back soon if it commits one thing after the
//! other. A batch without them costs as much as one with them, and keeps them waiting for the next. So the committer waits
//! until as many are there as were there before, at most as long as a batch takes: who is disappointed has waited
//! twice as long, once. When nobody came it does not wait again for a while. One who is alone waits for nobody.

use std::time::Duration;

/// Nothing is waited for longer, however slow the disk is.
const LONGEST: Duration = Duration::from_millis(2);
/// Batches that are made without waiting after nobody came, again and again: so many at most.
const MOST_SKIPPED: u32 = 32;

/// What the committer knows of those who commit.
#[derive(Debug, Default)]
pub(crate) struct GroupCommit {
    /// Who was in the last batch, or waited behind it.
    there: usize,
    /// What a batch takes, smoothed.
    takes: Duration,
    /// Batches that are still to be made without waiting.
    skip: u32,
    /// And so many the next time that nobody comes.
    skip_next: u32,
}

impl GroupCommit {
    /// A batch was made of so many, and others wait behind it.
    pub(crate) fn batch_done(&mut self, batch: usize, behind: usize, took: Duration) {
        self.there = batch + behind;
        self.takes = if self.takes.is_zero() { took } else { (self.takes * 7 + took) / 8 };
    }

    /// So many are there now: until how many there are to wait, and for how long at most.
    pub(crate) fn linger(&mut self, here: usize) -> Option<(usize, Duration)> {
        let patience = self.takes.min(LONGEST);
        if here >= self.there || patience.is_zero() {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        Some((self.there, patience))
    }

    /// So many came while it waited.
    pub(crate) fn lingered(&mut self, came: usize) {
        if came > 0 {
            self.skip_next = 0;
        } else {
            self.skip_next = (2 * self.skip_next).clamp(1, MOST_SKIPPED);
            self.skip = self.skip_next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNC: Duration = Duration::from_micros(200);

    #[test]
    fn a_single_client_is_never_delayed() {
        let mut group = GroupCommit::default();
        for _ in 0..3 {
            assert_eq!(group.linger(1), None);
            group.batch_done(1, 0, SYNC);
        }
    }

    #[test]
    fn the_committer_lingers_for_as_many_as_before() {
        let mut group = GroupCommit::default();
        group.batch_done(3, 5, SYNC);
        assert_eq!(group.linger(5), Some((8, SYNC)));
        group.lingered(3);
        group.batch_done(8, 0, Duration::from_secs(1));
        assert_eq!(group.linger(1), Some((8, LONGEST)));
        assert_eq!(group.linger(8), None);
    }

    #[test]
    fn lingering_in_vain_becomes_rare() {
        let mut group = GroupCommit::default();
        let mut waits = 0;
        for _ in 0..1000 {
            group.batch_done(1, 1, SYNC);
            if group.linger(1).is_some() {
                waits += 1;
                group.lingered(0);
            }
        }
        assert!((20..50).contains(&waits), "{waits}");
        group.skip = 0;
        group.lingered(1);
        group.batch_done(1, 1, SYNC);
        assert!(group.linger(1).is_some());
    }

    #[test]
    fn without_batch_times_there_is_no_lingering() {
        let mut group = GroupCommit::default();
        group.batch_done(8, 8, Duration::ZERO);
        assert_eq!(group.linger(1), None);
    }
}
