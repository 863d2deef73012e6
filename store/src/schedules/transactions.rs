//! Votes, commits, deadlines and closing.

use std::time::Duration;

use blobferry_platform::sync::thread::JoinHandle;
use blobferry_platform::sync::{Arc, Mutex, explore, hold_time, let_time_pass, mpsc, thread};
use blobferry_protocol::{Outcome, RequestError, Tid};

use crate::schedules::{NEVER, begin, check, commit, finish, outcome, patient, txn, vote};
use crate::{MemoryStore, Store, StoreConfig, Vote};

const SECOND: Duration = Duration::from_secs(1);

fn with<T: Send + 'static>(
    store: &Arc<MemoryStore>,
    act: impl FnOnce(&MemoryStore) -> T + Send + 'static,
) -> JoinHandle<T> {
    let store = store.clone();
    thread::spawn(move || act(&store))
}

#[test]
fn of_rival_creators_one_commits_and_all_others_conflict() {
    explore(2000, || {
        let store = Arc::new(MemoryStore::new(patient()).unwrap());
        let wanted: [&'static [u64]; 4] = [&[1, 2], &[2, 3], &[2], &[4]];
        let threads: Vec<_> = (0..)
            .zip(wanted)
            .map(|(n, oids)| {
                with(&store, move |store| {
                    let result = commit(store, n, oids).unwrap();
                    if let Err(Vote::Conflicts(conflicts)) = &result {
                        let seen = store.last_tid();
                        assert!(
                            conflicts.iter().all(|conflict| conflict.committed <= seen),
                            "answered before the commit is visible"
                        );
                    }
                    result
                })
            })
            .collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let committed: Vec<Tid> =
            results[..3].iter().filter_map(|result| result.as_ref().ok()).copied().collect();
        assert_eq!(committed.len(), 1, "{results:?}");
        for result in &results {
            if let Err(vote) = result {
                let Vote::Conflicts(conflicts) = vote else { panic!("{vote:?}") };
                assert!(conflicts.iter().all(|conflict| conflict.committed == committed[0]));
            }
        }
        assert!(results[3].is_ok());
        store.close();
        check(&store);
    });
}

/// All transactions finish at once. Whatever the batches are, each gets its own answer and tid.
#[test]
fn each_transaction_of_a_batch_gets_its_own_answer() {
    explore(2000, || {
        let store = Arc::new(MemoryStore::new(patient()).unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let _subscription = store.subscribe({
            let received = received.clone();
            Arc::new(move |tid, oids| received.lock().push((tid, oids[0].0)))
        });
        let threads: Vec<_> = (1..=4)
            .map(|n| {
                with(&store, move |store| (commit(store, n, &[n.into()]).unwrap().unwrap(), u64::from(n)))
            })
            .collect();
        let mut answers: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        answers.sort_unstable();
        assert_eq!(*received.lock(), answers, "notified in the order of tids");
        assert!(answers.is_sorted_by(|one, next| one.0 < next.0));
        store.close();
        check(&store);
    });
}

/// Time passes only when all threads wait for it. So the maintenance thread must know the deadline.
#[test]
fn a_vote_without_locks_fails_at_its_deadline() {
    explore(2000, || {
        let store = Arc::new(MemoryStore::new(StoreConfig { lock_timeout: SECOND, ..patient() }).unwrap());
        begin(&*store, 1, &[1]).unwrap();
        assert_eq!(vote(&*store, 1), Ok(Vote::Ready));
        let waits = with(&store, |store| begin(store, 2, &[1]).and_then(|()| vote(store, 2)));
        assert!(matches!(waits.join().unwrap(), Err(RequestError::Deadline { .. })));
        finish(&*store, 1).unwrap();
        store.close();
        check(&store);
    });
}

#[test]
fn locks_of_an_unfinished_vote_go_to_the_next() {
    explore(2000, || {
        let store = Arc::new(MemoryStore::new(StoreConfig { vote_timeout: SECOND, ..patient() }).unwrap());
        begin(&*store, 1, &[1]).unwrap();
        assert_eq!(vote(&*store, 1), Ok(Vote::Ready));
        let late = with(&store, |store| finish(store, 1));
        let next = with(&store, |store| begin(store, 2, &[1]).and_then(|()| vote(store, 2)));
        let (late, next) = (late.join().unwrap(), next.join().unwrap());
        match (&late, &next) {
            (Ok(_), Ok(Vote::Conflicts(_))) => {}
            (Err(RequestError::Aborted { .. }), Ok(Vote::Ready)) => {}
            // The next one has expired too, or its abort was so late that its reason is forgotten.
            (_, Err(RequestError::Aborted { .. })) => {}
            other => panic!("{other:?}"),
        }
        store.close();
        check(&store);
    });
}

/// The maintenance thread has no other task in which it would find this deadline.
#[test]
fn a_vote_that_is_never_finished_expires() {
    explore(2000, || {
        let store = Arc::new(MemoryStore::new(StoreConfig { vote_timeout: SECOND, ..patient() }).unwrap());
        begin(&*store, 1, &[1]).unwrap();
        assert_eq!(vote(&*store, 1), Ok(Vote::Ready));
        while store.counts().open > 0 {
            thread::yield_now();
        }
        assert!(matches!(finish(&*store, 1), Err(RequestError::Aborted { .. })));
        store.close();
        check(&store);
    });
}

/// No deadline passes here, so a waiting vote must be notified.
#[test]
fn waiting_votes_continue_when_their_locks_are_free() {
    explore(2000, || {
        hold_time();
        let config = StoreConfig { vote_timeout: SECOND, lock_timeout: SECOND, ..patient() };
        let store = Arc::new(MemoryStore::new(config).unwrap());
        let threads: Vec<_> = (0..4)
            .map(|n| {
                with(&store, move |store| {
                    let oids: &[u64] = [&[1, 2][..], &[2, 3], &[3, 1], &[2]][usize::from(n)];
                    begin(store, n, oids).unwrap();
                    let vote = vote(store, n).unwrap();
                    thread::yield_now();
                    match (vote, n % 2) {
                        (Vote::Ready, 0) => drop(finish(store, n).unwrap()),
                        (_, _) => store.abort(txn(n)),
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let_time_pass();
        store.close();
        check(&store);
    });
}

#[test]
fn an_outcome_never_changes() {
    explore(2000, || {
        let store = Arc::new(MemoryStore::new(patient()).unwrap());
        let commits = with(&store, |store| commit(store, 1, &[1]));
        let outcomes: Vec<_> = (0..2).map(|_| with(&store, |store| outcome(store, 1).unwrap())).collect();
        let aborts = with(&store, |store| store.abort(txn(1)));
        let committed = commits.join().unwrap();
        let answers: Vec<_> = outcomes.into_iter().map(|outcomes| outcomes.join().unwrap()).collect();
        aborts.join().unwrap();
        let last = outcome(&*store, 1).unwrap();
        let expected = match committed {
            Ok(Ok(tid)) => Outcome::Committed { tid },
            _ => Outcome::NotCommitted,
        };
        assert_eq!(last, expected, "{committed:?}");
        assert!(answers.iter().all(|outcome| *outcome == expected), "{answers:?}, {committed:?}");
        store.close();
        check(&store);
    });
}

/// The store is closed at any moment, and twice. Every call is answered, and every answer is true.
#[test]
fn closing_answers_every_pending_call() {
    explore(3000, || {
        let config = StoreConfig { vote_timeout: SECOND, lock_timeout: NEVER, ..patient() };
        let store = Arc::new(MemoryStore::new(config).unwrap());
        let commits: Vec<_> =
            (1..=3).map(|n| with(&store, move |store| commit(store, n, &[1, u64::from(n) + 1]))).collect();
        let outcomes = with(&store, |store| outcome(store, 1));
        let closes = with(&store, MemoryStore::close);
        store.close();
        let committed = commits.into_iter().map(|thread| thread.join().unwrap());
        let committed = committed.filter(|result| matches!(result, Ok(Ok(_)))).count();
        if let Ok(Outcome::Committed { .. }) = outcomes.join().unwrap() {
            assert!(committed > 0);
        }
        closes.join().unwrap();
        assert!(committed <= 1);
        check(&store);
        assert!(matches!(begin(&*store, 9, &[9]), Err(RequestError::Stopping)));
    });
}

/// The last owner of the store may be a completion that runs on one of its own threads.
#[test]
fn a_completion_may_drop_the_last_store() {
    explore(2000, || {
        let store = Arc::new(MemoryStore::new(patient()).unwrap());
        begin(&*store, 1, &[1]).unwrap();
        let (answer, answered) = mpsc::channel();
        let held = store.clone();
        let done = move |voted| {
            assert_eq!(voted, Ok(Vote::Ready));
            let last = held.clone();
            let done = move |finished| {
                drop(last);
                answer.send(finished).unwrap();
            };
            held.finish(txn(1), Box::new(done));
        };
        store.vote(txn(1), Box::new(done));
        drop(store);
        answered.recv().unwrap().unwrap();
    });
}
