//! The time of the last progress of each transfer of one direction, and which transfers are
//! overdue.
//!
//! Not every call has a time. Progress in a call without one is dated by the next call with a time,
//! so no transfer is overdue too early. Deadlines move with every byte, so they are not kept in
//! order. One time is kept, before which no transfer is overdue; at that time all are checked.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use crate::ids::TransferId;
use crate::time::Time;

/// A process that is late for a deadline by more than this, and by more than the timeout, was
/// stopped meanwhile. It has not read yet what has arrived, so every transfer gets a new deadline.
const STOPPED: Duration = Duration::from_secs(1);

/// The transfers of one direction that have to make progress.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    last: BTreeMap<TransferId, Time>,
    /// Transfers with progress since the last call with a time.
    undated: BTreeSet<TransferId>,
    /// No transfer is overdue before this time.
    sweep: Option<Time>,
}

impl Progress {
    /// Starts the time limit of a transfer.
    pub(crate) fn watch(&mut self, id: TransferId) {
        self.last.insert(id, Time::ZERO);
        self.undated.insert(id);
    }

    /// Notes progress of a transfer.
    pub(crate) fn made(&mut self, id: TransferId) {
        if self.last.contains_key(&id) {
            self.undated.insert(id);
        }
    }

    /// Removes a transfer that is over, or that does not depend on the peer any more.
    pub(crate) fn forget(&mut self, id: TransferId) {
        self.undated.remove(&id);
        if self.last.remove(&id).is_some() && self.last.is_empty() {
            self.sweep = None;
        }
    }

    /// Dates the progress since the last call with `now`.
    pub(crate) fn date(&mut self, now: Time, timeout: Duration) {
        while let Some(id) = self.undated.pop_first() {
            self.last.insert(id, now);
            self.sweep.get_or_insert(now + timeout);
        }
    }

    /// Returns the time before which no transfer is overdue.
    pub(crate) fn sweep(&self) -> Option<Time> {
        self.sweep
    }

    /// Removes and returns the transfers without progress for `timeout`.
    pub(crate) fn overdue(&mut self, now: Time, timeout: Duration) -> Vec<TransferId> {
        let Some(due) = self.sweep.filter(|due| *due <= now) else { return Vec::new() };
        if now.since(due) > timeout.max(STOPPED) {
            self.last.values_mut().for_each(|last| *last = now);
        }
        let is_overdue = |(id, last): (&TransferId, &Time)| (*last + timeout <= now).then_some(*id);
        let overdue: Vec<TransferId> = self.last.iter().filter_map(is_overdue).collect();
        self.last.retain(|_, last| *last + timeout > now);
        self.sweep = self.last.values().min().map(|oldest| *oldest + timeout);
        overdue
    }
}
