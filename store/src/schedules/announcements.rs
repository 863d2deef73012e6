//! Who hears of commits, and when they are seen.

use std::sync::atomic::{AtomicU64, Ordering};

use blobferry_platform::sync::{Arc, Mutex, explore, thread};
use blobferry_protocol::{Oid, Tid};

use crate::schedules::{check, commit, patient};
use crate::transactions::publisher::CommitPublisher;
use crate::{MemoryStore, Store, Subscriber};

type Heard = Arc<Mutex<Vec<Tid>>>;

fn hear(heard: &Heard) -> Subscriber {
    let heard = heard.clone();
    Arc::new(move |tid, _| heard.lock().push(tid))
}

#[test]
fn a_commit_not_yet_visible_reaches_the_subscriber() {
    explore(5000, || {
        let publisher = Arc::new(CommitPublisher::new(Tid::ZERO));
        let listeners: Vec<_> = (0..3)
            .map(|_| {
                let publisher = publisher.clone();
                thread::spawn(move || {
                    let heard = Heard::default();
                    let subscription = publisher.subscribe(hear(&heard));
                    (heard, publisher.last(), subscription)
                })
            })
            .collect();
        // Others come and go.
        let passes = {
            let publisher = publisher.clone();
            thread::spawn(move || drop(publisher.subscribe(Arc::new(|_, _| thread::yield_now()))))
        };
        (1..=3).for_each(|tid| publisher.publish(Tid(tid), &[]));
        for listener in listeners {
            let (heard, seen, _subscription) = listener.join().unwrap();
            let heard: Vec<u64> = heard.lock().iter().map(|tid| tid.0).collect();
            assert!(heard.len() as u64 >= 3 - seen.0, "after {seen}, it heard only of {heard:?}");
            assert!(heard.iter().copied().eq(4 - heard.len() as u64..=3), "{heard:?}");
        }
        passes.join().unwrap();
    });
}

#[test]
fn no_reader_sees_a_commit_before_its_subscribers() {
    explore(3000, || {
        let store = Arc::new(MemoryStore::new(patient()).unwrap());
        let told = Arc::new(AtomicU64::new(0));
        let subscription = store.subscribe({
            let told = told.clone();
            Arc::new(move |tid, _| {
                thread::yield_now();
                let before = told.swap(tid.0, Ordering::SeqCst);
                assert!(before < tid.0, "out of order");
                thread::yield_now();
            })
        });
        let reader = {
            let (store, told) = (store.clone(), told.clone());
            thread::spawn(move || {
                for _ in 0..4 {
                    let seen = store.last_tid();
                    assert!(seen.0 <= told.load(Ordering::SeqCst), "the last transaction");
                    for oid in 1..=2 {
                        let seen = store.load(Oid(oid)).map_or(Tid::ZERO, |revision| revision.tid);
                        assert!(seen.0 <= told.load(Ordering::SeqCst), "a revision");
                    }
                }
            })
        };
        let writers: Vec<_> = (1..=2)
            .map(|n| {
                let (store, told) = (store.clone(), told.clone());
                thread::spawn(move || {
                    let tid = commit(&*store, n, &[n.into()]).unwrap().unwrap();
                    assert!(told.load(Ordering::SeqCst) >= tid.0, "answered before it was told");
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
