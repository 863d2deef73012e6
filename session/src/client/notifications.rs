//! What was told to somebody who listens, and is not heard yet. Whoever listens slowly, or not at all, costs no more than
//! this much memory, however much there is to tell.

use blobferry_platform::sync::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;

use crate::client::events::{ConnectionEvent, Invalidation};

/// How much may wait: objects that have changed, each with what else there is to tell.
const MOST: usize = 100_000;

/// What can be told, and squeezed where too much of it waits.
pub trait Coalesce: Clone {
    /// How much room it takes.
    fn weight(&self) -> usize;

    /// Makes less of all that waits, the last of it at least.
    fn coalesce(waiting: &mut VecDeque<Self>);
}

impl Coalesce for Invalidation {
    fn weight(&self) -> usize {
        8 + self.oids.as_ref().map_or(0, |oids| oids.len())
    }

    /// Everything may have changed, up to the last of them.
    fn coalesce(waiting: &mut VecDeque<Invalidation>) {
        let last = waiting.back().map(|last| Invalidation { tid: last.tid, oids: None });
        *waiting = last.into_iter().collect();
    }
}

impl Coalesce for ConnectionEvent {
    fn weight(&self) -> usize {
        100
    }

    /// The oldest are forgotten.
    fn coalesce(waiting: &mut VecDeque<ConnectionEvent>) {
        waiting.drain(..waiting.len() / 2);
    }
}

/// What was told and is not heard yet, in order. Clones are the same.
#[derive(Debug)]
pub struct NotificationQueue<T>(Arc<Mutex<Waiting<T>>>);

#[derive(Debug)]
struct Waiting<T> {
    told: VecDeque<T>,
    weight: usize,
}

impl<T> Clone for NotificationQueue<T> {
    fn clone(&self) -> NotificationQueue<T> {
        NotificationQueue(self.0.clone())
    }
}

impl<T> Default for NotificationQueue<T> {
    fn default() -> NotificationQueue<T> {
        NotificationQueue(Arc::new(Mutex::new(Waiting { told: VecDeque::new(), weight: 0 })))
    }
}

impl<T: Coalesce> NotificationQueue<T> {
    /// Tells something.
    pub fn tell(&self, what: &T) {
        let mut waiting = self.lock();
        waiting.told.push_back(what.clone());
        waiting.weight += what.weight();
        if waiting.weight > MOST {
            T::coalesce(&mut waiting.told);
            waiting.weight = waiting.told.iter().map(T::weight).sum();
        }
    }

    /// Hears what was told first.
    pub fn hear(&self) -> Option<T> {
        let mut waiting = self.lock();
        let first = waiting.told.pop_front()?;
        waiting.weight = waiting.weight.saturating_sub(first.weight());
        Some(first)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use blobferry_protocol::{Oid, Tid};

    use super::*;

    fn commit(tid: u64, oids: usize) -> Invalidation {
        Invalidation { tid: Tid(tid), oids: Some(vec![Oid(tid); oids].into()) }
    }

    fn heard(unheard: &NotificationQueue<Invalidation>) -> Vec<Invalidation> {
        std::iter::from_fn(|| unheard.hear()).collect()
    }

    #[test]
    fn what_is_told_is_heard_in_order() {
        let unheard = NotificationQueue::default();
        let told: Vec<Invalidation> = (1..1000).map(|tid| commit(tid, 2)).collect();
        // Over and over: what was heard takes no room.
        for _ in 0..20 {
            told.iter().for_each(|commit| unheard.tell(commit));
            assert_eq!(heard(&unheard), told);
        }
    }

    #[test]
    fn of_more_commits_than_can_wait_it_is_told_that_everything_may_have_changed() {
        let unheard = NotificationQueue::default();
        for tid in 1..=1_000_000 {
            unheard.tell(&commit(tid, 3));
            let waiting = unheard.lock();
            assert!(waiting.told.len() <= MOST / 8 && waiting.weight <= MOST);
        }
        let heard = heard(&unheard);
        assert_eq!(heard[0].oids, None);
        assert_eq!(heard.last(), Some(&commit(1_000_000, 3)));
        let tids = heard.windows(2).all(|two| two[0].tid.0 + 1 == two[1].tid.0);
        assert!(tids, "nothing is missing behind the first");
        // One that is too large by itself.
        unheard.tell(&commit(5, MOST));
        assert_eq!(unheard.hear(), Some(Invalidation { tid: Tid(5), oids: None }));
        assert_eq!(unheard.hear(), None);
    }

    #[test]
    fn a_connection_that_comes_and_goes_while_nobody_looks_is_forgotten_in_time() {
        let unheard = NotificationQueue::default();
        let event = |n: u64| ConnectionEvent::Connected { address: n.to_string() };
        (0..10_000).for_each(|n| unheard.tell(&event(n)));
        let heard: Vec<ConnectionEvent> = std::iter::from_fn(|| unheard.hear()).collect();
        assert!(heard.len() <= MOST / 100);
        assert_eq!(heard.last(), Some(&event(9999)));
    }
}
