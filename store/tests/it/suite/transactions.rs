//! The life of transactions: phases, limits, commits in batches, announcements.

use std::sync::{Arc, Mutex};

use blobferry_protocol::{Oid, Phase, RequestError, Tid, TxnId, TxnMeta};
use blobferry_store::{Store, StoreConfig, Vote};

use super::promises;
use crate::support::{Gate, Make, StoreExt, digest, new_txn, wait};

promises![
    everything_in_a_transaction_is_visible_at_once,
    an_empty_transaction_commits,
    calls_in_the_wrong_phase_change_nothing,
    a_name_is_not_taken_twice,
    a_failed_store_dooms_the_transaction,
    limits_are_typed_errors,
    an_abort_releases_everything,
    subscribers_get_a_commit_before_readers_see_it,
    a_subscription_ends_when_it_is_dropped,
    transactions_that_finish_together_are_one_batch,
    concurrent_commits_lose_no_change,
    a_completion_may_call_the_store,
    closing_aborts_what_is_open_and_keeps_reading,
    no_oid_is_allocated_twice,
];

fn everything_in_a_transaction_is_visible_at_once(make: Make) {
    let it = make(StoreConfig::default());
    let txn = it.store.begin_new();
    for oid in 1..=5 {
        it.store.store(txn, Oid(oid), Tid::ZERO, b"data".to_vec()).unwrap();
        assert!(it.store.load(Oid(oid)).is_err());
    }
    assert_eq!(it.store.vote_now(txn), Ok(Vote::Ready));
    assert!(it.store.load(Oid(1)).is_err());
    let tid = it.store.finish_now(txn).unwrap();
    assert!((1..=5).all(|oid| it.store.load(Oid(oid)).unwrap().tid == tid));
    assert_eq!(it.store.last_tid(), tid);
}

fn an_empty_transaction_commits(make: Make) {
    let it = make(StoreConfig::default());
    let tid = it.store.commit(it.store.begin_new());
    assert_eq!(it.store.last_tid(), tid);
    assert_eq!(it.store.revisions(None, 10), Ok(vec![]));
}

fn calls_in_the_wrong_phase_change_nothing(make: Make) {
    let it = make(StoreConfig::default());
    let unknown = new_txn();
    let missing = RequestError::NoSuchTransaction { txn: unknown };
    assert_eq!(it.store.store(unknown, Oid(1), Tid::ZERO, vec![]), Err(missing.clone()));
    assert_eq!(it.store.vote_now(unknown), Err(missing.clone()));
    assert_eq!(it.store.finish_now(unknown), Err(missing));
    it.store.abort(unknown);

    let txn = it.store.begin_new();
    let wrong = |phase| RequestError::WrongPhase { txn, phase };
    assert_eq!(it.store.finish_now(txn), Err(wrong(Phase::Open)));
    it.store.store(txn, Oid(1), Tid::ZERO, b"data".to_vec()).unwrap();
    assert_eq!(it.store.vote_now(txn), Ok(Vote::Ready));
    assert_eq!(it.store.store(txn, Oid(1), Tid::ZERO, vec![]), Err(wrong(Phase::Voted)));
    assert_eq!(it.store.delete(txn, Oid(1), Tid::ZERO), Err(wrong(Phase::Voted)));
    assert_eq!(it.store.vote_now(txn), Err(wrong(Phase::Voted)));
    it.store.finish_now(txn).unwrap();
    assert_eq!(it.store.load(Oid(1)).unwrap().data, b"data");
    assert_eq!(it.store.finish_now(txn), Err(RequestError::NoSuchTransaction { txn }));
}

fn a_name_is_not_taken_twice(make: Make) {
    let it = make(StoreConfig::default());
    let txn = it.store.begin_new();
    let exists = RequestError::TransactionExists { txn };
    assert_eq!(it.store.begin(txn, TxnMeta::default()), Err(exists.clone()));
    it.store.abort(txn);
    it.store.begin(txn, TxnMeta::default()).unwrap();
    it.store.commit(txn);
    // Committed names are found at the vote: begin does not search the database.
    it.store.begin(txn, TxnMeta::default()).unwrap();
    assert_eq!(it.store.vote_now(txn), Err(exists));
    assert_eq!(it.store.vote_now(txn), Err(RequestError::Doomed { txn }));
}

fn a_failed_store_dooms_the_transaction(make: Make) {
    let it = make(StoreConfig { max_objects: 2, ..StoreConfig::default() });
    let txn = it.store.begin_new();
    for oid in [1, 2, 1] {
        it.store.store(txn, Oid(oid), Tid::ZERO, vec![]).unwrap();
    }
    let limit = it.store.store(txn, Oid(3), Tid::ZERO, vec![]);
    assert!(matches!(limit, Err(RequestError::Limit { limit: 2, actual: 3, .. })), "{limit:?}");
    let doomed = RequestError::Doomed { txn };
    assert_eq!(it.store.store(txn, Oid(1), Tid::ZERO, vec![]), Err(doomed.clone()));
    assert_eq!(it.store.vote_now(txn), Err(doomed));
    it.store.abort(txn);
    assert_eq!(it.store.counts().open, 0);
}

fn limits_are_typed_errors(make: Make) {
    let config = StoreConfig { max_transactions: 2, max_meta: 10, max_staged: 100, ..StoreConfig::default() };
    let it = make(config);
    let limit = |result: Result<(), RequestError>| assert!(matches!(result, Err(RequestError::Limit { .. })));
    limit(it.store.begin(new_txn(), TxnMeta { user: vec![0; 6], description: vec![0; 5] }));
    let txn = it.store.begin_new();
    it.store.begin_new();
    limit(it.store.begin(new_txn(), TxnMeta::default()));
    limit(it.store.stage(101).map(drop));
    let staged = it.store.staged(&[0; 60]);
    limit(it.store.stage(50).map(drop));
    it.store.store_blob(txn, Oid(1), Tid::ZERO, vec![0; 30], staged).unwrap();
    limit(it.store.store(txn, Oid(2), Tid::ZERO, vec![0; 20]));
}

fn an_abort_releases_everything(make: Make) {
    let it = make(StoreConfig { inline_max: 4, ..StoreConfig::default() });
    let txn = it.store.begin_new();
    it.store.store_blob(txn, Oid(1), Tid::ZERO, vec![], it.store.staged(b"a blob in a file")).unwrap();
    assert_eq!(it.store.vote_now(txn), Ok(Vote::Ready));
    it.store.abort(txn);
    it.store.abort(txn);
    assert_eq!(it.store.finish_now(txn), Err(RequestError::NoSuchTransaction { txn }));
    let counts = it.store.counts();
    assert_eq!((counts.open, counts.staged_bytes, counts.aborts, counts.commits), (0, 0, 1, 0));
    it.store.put(1, Tid::ZERO, b"the locks are free");
}

fn subscribers_get_a_commit_before_readers_see_it(make: Make) {
    let it = make(StoreConfig::default());
    let first = it.store.put(1, Tid::ZERO, b"old");
    let received = Arc::new(Mutex::new(Vec::new()));
    let _subscription = it.store.subscribe({
        let (store, received) = (Arc::downgrade(&it.store), received.clone());
        Arc::new(move |tid, oids| {
            let store = store.upgrade().unwrap();
            let current = store.load(Oid(1)).unwrap();
            assert_eq!((current.tid, current.next, store.last_tid()), (first, None, first));
            assert!(store.load_serial(Oid(1), tid).is_err());
            assert_eq!(store.load_before(Oid(1), Tid::MAX).unwrap().unwrap().tid, first);
            assert_eq!(store.history(Oid(1), 10).unwrap().len(), 1);
            assert_eq!(store.revisions(None, 10).unwrap().len(), 1);
            assert!(store.blob(1, tid).is_err());
            store.pack(Tid::MAX).unwrap();
            assert_eq!(store.load(Oid(1)).unwrap().tid, first, "not even a pack removes a visible revision");
            received.lock().unwrap().push((tid, oids.to_vec()));
        })
    });
    let txn = it.store.begin_new();
    it.store.store_blob(txn, Oid(1), first, b"new".to_vec(), it.store.staged(b"blob")).unwrap();
    it.store.store(txn, Oid(2), Tid::ZERO, b"new".to_vec()).unwrap();
    let tid = it.store.commit(txn);
    assert_eq!(*received.lock().unwrap(), [(tid, vec![Oid(1), Oid(2)])]);
    assert_eq!(it.store.load(Oid(1)).unwrap().tid, tid);
}

fn a_subscription_ends_when_it_is_dropped(make: Make) {
    let it = make(StoreConfig::default());
    let received = Arc::new(Mutex::new(Vec::new()));
    let subscribe = |name: char| {
        let received = received.clone();
        it.store.subscribe(Arc::new(move |_, oids| received.lock().unwrap().push((name, oids[0].0))))
    };
    let (a, b) = (subscribe('a'), subscribe('b'));
    it.store.put(1, Tid::ZERO, b"");
    drop(a);
    it.store.put(2, Tid::ZERO, b"");
    drop(b);
    it.store.put(3, Tid::ZERO, b"");
    assert_eq!(*received.lock().unwrap(), [('a', 1), ('b', 1), ('b', 2)]);
}

fn transactions_that_finish_together_are_one_batch(make: Make) {
    let it = make(StoreConfig::default());
    let gate = Gate::close(&*it.store);
    let first = it.store.ask_finish(it.store.voted(1, Tid::ZERO));
    gate.wait();
    let others: Vec<_> = (2..12).map(|oid| it.store.ask_finish(it.store.voted(oid, Tid::ZERO))).collect();
    gate.open();
    let mut last = first.recv().unwrap().unwrap();
    for other in others {
        let tid = other.recv().unwrap().unwrap();
        assert!(tid > last, "tids follow the order of finishes");
        last = tid;
    }
    assert_eq!((it.store.counts().commits, it.store.counts().batches), (11, 2));
}

/// Adds one to a number that other threads change too.
fn increment(store: &dyn Store, oid: Oid) {
    let txn = store.begin_new();
    loop {
        let (base, n) = match store.load(oid) {
            Ok(revision) => (revision.tid, u64::from_le_bytes(revision.data.try_into().unwrap())),
            Err(_) => (Tid::ZERO, 0),
        };
        store.store(txn, oid, base, (n + 1).to_le_bytes().to_vec()).unwrap();
        if store.vote_now(txn).unwrap() == Vote::Ready {
            store.finish_now(txn).unwrap();
            return;
        }
    }
}

fn concurrent_commits_lose_no_change(make: Make) {
    let it = make(StoreConfig::default());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = &*it.store;
            scope.spawn(move || (0..10).for_each(|n| increment(store, Oid((thread + n) % 3 + 1))));
        }
    });
    let count = |oid| u64::from_le_bytes(it.store.load(Oid(oid)).unwrap().data.try_into().unwrap());
    assert_eq!(count(1) + count(2) + count(3), 80);
    let counts = it.store.counts();
    assert_eq!((counts.commits, counts.revisions, counts.objects, counts.open), (80, 80, 3, 0));
    assert!(counts.batches <= 80);
}

fn a_completion_may_call_the_store(make: Make) {
    let it = make(StoreConfig::default());
    let txn = it.store.begin_new();
    it.store.store(txn, Oid(1), Tid::ZERO, b"data".to_vec()).unwrap();
    // Vote, finish, read, and vote once more: each in the completion of the call before.
    let data = wait(|done| {
        let store = it.store.clone();
        it.store.vote(
            txn,
            Box::new(move |vote| {
                assert_eq!(vote, Ok(Vote::Ready));
                let inner = store.clone();
                store.finish(
                    txn,
                    Box::new(move |tid| {
                        assert_eq!(inner.last_tid(), tid.unwrap());
                        let next = inner.voted(1, inner.last_tid());
                        inner.abort(next);
                        done(inner.load(Oid(1)).map(|revision| revision.data));
                    }),
                );
            }),
        );
    });
    assert_eq!(data, Ok(b"data".to_vec()));
}

fn closing_aborts_what_is_open_and_keeps_reading(make: Make) {
    let it = make(StoreConfig::default());
    it.store.put(1, Tid::ZERO, b"data");
    let (open, voted) = (it.store.begin_new(), it.store.voted(2, Tid::ZERO));
    let waiting = it.store.begin_new();
    it.store.store(waiting, Oid(2), Tid::ZERO, vec![]).unwrap();
    let vote = it.store.ask_vote(waiting);
    let gate = Gate::close(&*it.store);
    let finishing = it.store.ask_finish(it.store.voted(3, Tid::ZERO));
    gate.wait();
    gate.open();
    it.store.close();
    it.store.close();
    assert!(finishing.recv().unwrap().is_ok(), "what is being finished is finished");
    let aborted =
        |txn: TxnId, error| assert!(matches!(error, RequestError::Aborted { txn: it, .. } if it == txn));
    aborted(waiting, vote.recv().unwrap().unwrap_err());
    aborted(voted, it.store.finish_now(voted).unwrap_err());
    aborted(open, it.store.store(open, Oid(1), Tid::ZERO, vec![]).unwrap_err());
    assert_eq!(it.store.begin(new_txn(), TxnMeta::default()), Err(RequestError::Stopping));
    assert_eq!(it.store.stage(1).map(drop), Err(RequestError::Stopping));
    assert_eq!(it.store.new_oids(1), Err(RequestError::Stopping));
    assert_eq!(it.store.outcome_now(new_txn()), Err(RequestError::Stopping));
    let shared = it.store.store_shared(open, Oid(1), Tid::ZERO, vec![], "x", 0, digest(b""));
    aborted(open, shared.unwrap_err());
    assert_eq!(it.store.load(Oid(1)).unwrap().data, b"data");
}

fn no_oid_is_allocated_twice(make: Make) {
    let it = make(StoreConfig::default());
    let mut next = 1;
    for count in [1, 0, 7, 10_000, u32::MAX] {
        let (first, given) = it.store.new_oids(count).unwrap();
        assert_eq!((first, given), (Oid(next), count.clamp(1, 10_000)));
        next += u64::from(given);
    }
    it.store.put(5_000_000, Tid::ZERO, b"an oid of its own");
    assert_eq!(it.store.new_oids(2), Ok((Oid(5_000_001), 2)));
    it.store.put(1000, Tid::ZERO, b"a low oid");
    assert_eq!(it.store.new_oids(1), Ok((Oid(5_000_003), 1)));
}
