//! Group commit: how long the committer lingers for more transactions, so that they share a sync.
//!
//! A client that commits one transaction after the other comes back soon after its answer. A batch
//! without it costs as much as one with it, and makes it wait for the next. So the committer
//! lingers until as many jobs are queued as last time, but at most as long as a batch takes. If
//! none came, it skips lingering for some batches. A single client is never delayed.

use std::time::Duration;

/// The longest time to linger, however slow the disk is.
const MAX_LINGER: Duration = Duration::from_millis(2);
/// The most batches without lingering after lingering in vain.
const MAX_SKIPPED: u32 = 32;

/// What the committer has learned from its last batches.
#[derive(Debug, Default)]
pub(crate) struct GroupCommit {
    /// The jobs in the last batch, and those that were queued behind it.
    expected: usize,
    /// The time of a batch, smoothed.
    batch_time: Duration,
    /// The number of batches still to make without lingering.
    skip: u32,
    /// The value of `skip` before it was counted down.
    skip_next: u32,
}

impl GroupCommit {
    /// Notes a batch: its jobs, the jobs queued behind it, and the time that it took.
    pub(crate) fn batch_done(&mut self, batch: usize, behind: usize, took: Duration) {
        self.expected = batch + behind;
        self.batch_time = if self.batch_time.is_zero() { took } else { (self.batch_time * 7 + took) / 8 };
    }

    /// Returns how many jobs to linger for and for how long at most, with `queued` jobs there now.
    pub(crate) fn linger(&mut self, queued: usize) -> Option<(usize, Duration)> {
        let patience = self.batch_time.min(MAX_LINGER);
        if queued >= self.expected || patience.is_zero() {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        Some((self.expected, patience))
    }

    /// Notes how many jobs came while the committer lingered.
    pub(crate) fn lingered(&mut self, came: usize) {
        if came > 0 {
            self.skip_next = 0;
        } else {
            self.skip_next = (2 * self.skip_next).clamp(1, MAX_SKIPPED);
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
        assert_eq!(group.linger(1), Some((8, MAX_LINGER)));
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
