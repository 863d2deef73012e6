//! Announcements: subscribers get every commit, and before any reader sees it.

use std::sync::atomic::{AtomicU64, Ordering};

use blobferry_platform::sync::{Arc, Mutex, explore, thread};
use blobferry_protocol::{Oid, Tid};

use crate::schedules::{check, commit, patient};
use crate::transactions::publisher::CommitPublisher;
use crate::{MemoryStore, Store, Subscriber};

type Received = Arc<Mutex<Vec<Tid>>>;

fn record(received: &Received) -> Subscriber {
    let received = received.clone();
    Arc::new(move |tid, _| received.lock().push(tid))
}

#[test]
fn a_commit_not_yet_visible_reaches_the_subscriber() {
    explore(5000, || {
        let publisher = Arc::new(CommitPublisher::new(Tid::ZERO));
        let listeners: Vec<_> = (0..3)
            .map(|_| {
                let publisher = publisher.clone();
                thread::spawn(move || {
                    let received = Received::default();
                    let subscription = publisher.subscribe(record(&received));
                    (received, publisher.last(), subscription)
                })
            })
            .collect();
        // Another thread subscribes and unsubscribes in the meantime.
        let passes = {
            let publisher = publisher.clone();
            thread::spawn(move || drop(publisher.subscribe(Arc::new(|_, _| thread::yield_now()))))
        };
        (1..=3).for_each(|tid| publisher.publish(Tid(tid), &[]));
        for listener in listeners {
            let (received, seen, _subscription) = listener.join().unwrap();
            let received: Vec<u64> = received.lock().iter().map(|tid| tid.0).collect();
            assert!(received.len() as u64 >= 3 - seen.0, "after {seen}, it received only {received:?}");
            assert!(received.iter().copied().eq(4 - received.len() as u64..=3), "{received:?}");
        }
        passes.join().unwrap();
    });
}

#[test]
fn no_reader_sees_a_commit_before_its_subscribers() {
    explore(3000, || {
        let store = Arc::new(MemoryStore::new(patient()).unwrap());
        let notified = Arc::new(AtomicU64::new(0));
        let subscription = store.subscribe({
            let notified = notified.clone();
            Arc::new(move |tid, _| {
                thread::yield_now();
                let before = notified.swap(tid.0, Ordering::SeqCst);
                assert!(before < tid.0, "out of order");
                thread::yield_now();
            })
        });
        let reader = {
            let (store, notified) = (store.clone(), notified.clone());
            thread::spawn(move || {
                for _ in 0..4 {
                    let seen = store.last_tid();
                    assert!(seen.0 <= notified.load(Ordering::SeqCst), "the last transaction");
                    for oid in 1..=2 {
                        let seen = store.load(Oid(oid)).map_or(Tid::ZERO, |revision| revision.tid);
                        assert!(seen.0 <= notified.load(Ordering::SeqCst), "a revision");
                    }
                }
            })
        };
        let writers: Vec<_> = (1..=2)
            .map(|n| {
                let (store, notified) = (store.clone(), notified.clone());
                thread::spawn(move || {
                    let tid = commit(&*store, n, &[n.into()]).unwrap().unwrap();
                    assert!(
                        notified.load(Ordering::SeqCst) >= tid.0,
                        "answered before the subscriber was notified"
                    );
                    assert!(store.last_tid() >= tid, "answered before it was visible");
                    assert_eq!(store.load(Oid(n.into())).unwrap().tid, tid);
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        reader.join().unwrap();
        drop(subscription);
        store.close();
        check(&store);
    });
}
