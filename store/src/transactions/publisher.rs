//! Commits become visible: subscribers are told first, then readers see it.

use std::collections::BTreeMap;

use blobferry_platform::sync::atomic::{AtomicU64, Ordering};
use blobferry_platform::sync::{Arc, Mutex};
use blobferry_protocol::{Oid, Tid};

use crate::store::{Subscriber, Subscription};

/// The last transaction that readers see, and those who want to hear of the next.
pub(crate) struct CommitPublisher {
    /// Written under the lock of `subscribers` only.
    last: AtomicU64,
    subscribers: Mutex<Subscribers>,
}

#[derive(Default)]
struct Subscribers {
    next: u64,
    /// By number, in the order in which they came.
    here: BTreeMap<u64, Subscriber>,
}

impl CommitPublisher {
    pub(crate) fn new(last: Tid) -> CommitPublisher {
        CommitPublisher { last: AtomicU64::new(last.0), subscribers: Mutex::default() }
    }

    /// The last transaction that readers see.
    pub(crate) fn last(&self) -> Tid {
        Tid(self.last.load(Ordering::Acquire))
    }

    /// Tells all subscribers of a commit, then lets readers see it. Called by one thread, in commit order.
    ///
    /// No lock is held while a subscriber runs. Whoever subscribes meanwhile is told as well: so after
    /// subscribing, a reader who does not see a commit yet can rely on hearing of it.
    pub(crate) fn publish(&self, tid: Tid, oids: &[Oid]) {
        let mut told = 0;
        loop {
            let subscribers = self.subscribers.lock();
            let untold: Vec<Subscriber> = subscribers.here.range(told..).map(|(_, to)| to.clone()).collect();
            if untold.is_empty() {
                self.last.store(tid.0, Ordering::Release);
                return;
            }
            told = subscribers.next;
            drop(subscribers);
            for to in untold {
                to(tid, oids);
            }
        }
    }

    pub(crate) fn subscribe(self: &Arc<Self>, to: Subscriber) -> Subscription {
        let mut subscribers = self.subscribers.lock();
        let number = subscribers.next;
        subscribers.next += 1;
        subscribers.here.insert(number, to);
        let publisher = Arc::downgrade(self);
        Subscription::new(move || {
            if let Some(publisher) = publisher.upgrade() {
                // Taken out under the lock, dropped after it: what it holds may end other subscriptions.
                let gone = publisher.subscribers.lock().here.remove(&number);
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
        let heard = Arc::new(Mutex::new(Vec::new()));
        let late = Arc::new(Mutex::new(None));
        let subscription = publisher.subscribe({
            let (publisher, heard, late) = (publisher.clone(), heard.clone(), late.clone());
            Arc::new(move |_, _| {
                assert_eq!(publisher.last(), Tid::ZERO, "told before it is visible");
                let heard = heard.clone();
                let second = publisher.subscribe(Arc::new(move |tid, _| heard.lock().push(tid)));
                *late.lock() = Some(second);
            })
        });
        publisher.publish(Tid(1), &[]);
        assert_eq!(*heard.lock(), [Tid(1)]);
        assert_eq!(publisher.last(), Tid(1));
        drop(subscription);
        drop(late.lock().take());
        publisher.publish(Tid(2), &[]);
        assert_eq!(*heard.lock(), [Tid(1)]);
    }
}
