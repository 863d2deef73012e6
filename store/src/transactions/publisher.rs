//! Announces commits: calls the subscribers first, then lets readers see it.

use std::collections::BTreeMap;

use blobferry_platform::sync::atomic::{AtomicU64, Ordering};
use blobferry_platform::sync::{Arc, Mutex};
use blobferry_protocol::{Oid, Tid};

use crate::store::{Subscriber, Subscription};

/// The last transaction that readers see, and the subscribers to the next ones.
pub(crate) struct CommitPublisher {
    /// Written under the lock of `subscribers` only.
    last: AtomicU64,
    subscribers: Mutex<Subscribers>,
}

#[derive(Default)]
struct Subscribers {
    next: u64,
    /// By number, in the order of subscription.
    subscribed: BTreeMap<u64, Subscriber>,
}

impl CommitPublisher {
    pub(crate) fn new(last: Tid) -> CommitPublisher {
        CommitPublisher { last: AtomicU64::new(last.0), subscribers: Mutex::default() }
    }

    /// Returns the last transaction that readers see.
    pub(crate) fn last(&self) -> Tid {
        Tid(self.last.load(Ordering::Acquire))
    }

    /// Calls all subscribers with a commit, then lets readers see it. Only one thread calls this,
    /// in commit order.
    ///
    /// No lock is held while a subscriber runs. A subscriber that is added in the meantime is
    /// called too. So a reader that subscribes and does not see a commit yet is certain to be
    /// notified of it.
    pub(crate) fn publish(&self, tid: Tid, oids: &[Oid]) {
        let mut notified = 0;
        loop {
            let subscribers = self.subscribers.lock();
            let pending: Vec<Subscriber> =
                subscribers.subscribed.range(notified..).map(|(_, to)| to.clone()).collect();
            if pending.is_empty() {
                self.last.store(tid.0, Ordering::Release);
                return;
            }
            notified = subscribers.next;
            drop(subscribers);
            for to in pending {
                to(tid, oids);
            }
        }
    }

    pub(crate) fn subscribe(self: &Arc<Self>, to: Subscriber) -> Subscription {
        let mut subscribers = self.subscribers.lock();
        let number = subscribers.next;
        subscribers.next += 1;
        subscribers.subscribed.insert(number, to);
        let publisher = Arc::downgrade(self);
        Subscription::new(move || {
            if let Some(publisher) = publisher.upgrade() {
                // Dropped without the lock, since dropping a subscriber may end other
                // subscriptions.
                let gone = publisher.subscribers.lock().subscribed.remove(&number);
                drop(gone);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_during_an_announcement_gets_it_too() {
        let publisher = Arc::new(CommitPublisher::new(Tid::ZERO));
        let received = Arc::new(Mutex::new(Vec::new()));
        let late = Arc::new(Mutex::new(None));
        let subscription = publisher.subscribe({
            let (publisher, received, late) = (publisher.clone(), received.clone(), late.clone());
            Arc::new(move |_, _| {
                assert_eq!(publisher.last(), Tid::ZERO, "notified before it is visible");
                let received = received.clone();
                let second = publisher.subscribe(Arc::new(move |tid, _| received.lock().push(tid)));
                *late.lock() = Some(second);
            })
        });
        publisher.publish(Tid(1), &[]);
        assert_eq!(*received.lock(), [Tid(1)]);
        assert_eq!(publisher.last(), Tid(1));
        drop(subscription);
        drop(late.lock().take());
        publisher.publish(Tid(2), &[]);
        assert_eq!(*received.lock(), [Tid(1)]);
    }
}
