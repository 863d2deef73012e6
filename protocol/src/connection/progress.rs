//! Which transfers get nowhere: when each one of a direction has last got on, and who has not for too long.
//!
//! Not every call tells the time. What gets on in one that does not has got on by the next that does, so nobody is
//! found overdue too early. Deadlines that move on with every byte are not kept in order: one moment is, before which
//! nobody is overdue, and only then all are looked at.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use crate::ids::TransferId;
use crate::time::Time;

/// Who notices a deadline later than this, and later again than it is long, was asleep: what has arrived meanwhile was
/// not looked at yet.
const ASLEEP: Duration = Duration::from_secs(1);

/// The transfers of one direction that have to get on.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    last: BTreeMap<TransferId, Time>,
    /// Those that have got on since the time was told last.
    undated: BTreeSet<TransferId>,
    /// Nobody is overdue before.
    sweep: Option<Time>,
}

impl Progress {
    /// From now on this transfer has to get on.
    pub(crate) fn watch(&mut self, id: TransferId) {
        self.last.insert(id, Time::ZERO);
        self.undated.insert(id);
    }

    /// This transfer has got on.
    pub(crate) fn made(&mut self, id: TransferId) {
        if self.last.contains_key(&id) {
            self.undated.insert(id);
        }
    }

    /// This transfer is over, or does not depend on the peer any more.
    pub(crate) fn forget(&mut self, id: TransferId) {
        self.undated.remove(&id);
        if self.last.remove(&id).is_some() && self.last.is_empty() {
            self.sweep = None;
        }
    }

    /// It is now: whoever has got on since this was said last has done so by now.
    pub(crate) fn date(&mut self, now: Time, timeout: Duration) {
        while let Some(id) = self.undated.pop_first() {
            self.last.insert(id, now);
            self.sweep.get_or_insert(now + timeout);
        }
    }

    /// When to look for the overdue.
    pub(crate) fn sweep(&self) -> Option<Time> {
        self.sweep
    }

    /// Those that have not got on for too long. They are forgotten.
    pub(crate) fn overdue(&mut self, now: Time, timeout: Duration) -> Vec<TransferId> {
        let Some(due) = self.sweep.filter(|due| *due <= now) else { return Vec::new() };
        if now.since(due) > timeout.max(ASLEEP) {
            self.last.values_mut().for_each(|last| *last = now);
        }
        let is_overdue = |(id, last): (&TransferId, &Time)| (*last + timeout <= now).then_some(*id);
        let overdue: Vec<TransferId> = self.last.iter().filter_map(is_overdue).collect();
        self.last.retain(|_, last| *last + timeout > now);
        self.sweep = self.last.values().min().map(|oldest| *oldest + timeout);
        overdue
    }
}
