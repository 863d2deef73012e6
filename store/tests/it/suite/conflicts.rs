//! Votes: locks, queues, conflicts and deadlines.

use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use blobferry_protocol::{Conflict, Deadline, Oid, Outcome, RequestError, Tid, TxnId};
use blobferry_store::{Store, StoreConfig, Vote};

use super::promises;
use crate::support::{Make, StoreExt};

promises![
    a_conflict_names_both_revisions_and_can_be_resolved,
    creating_existing_or_changing_missing_is_a_conflict,
    a_conflicting_object_can_be_dropped,
    the_second_voter_waits_and_then_has_a_conflict,
    the_second_voter_continues_when_the_first_aborts,
    voters_without_a_common_object_do_not_wait,
    votes_are_first_come_first_served,
    an_aborted_vote_is_answered_and_lets_others_pass,
    a_conflict_releases_all_locks,
    a_vote_not_finished_in_time_is_aborted,
    a_vote_that_waits_too_long_is_aborted,
    an_expired_waiting_vote_lets_later_votes_pass,
    a_vote_granted_late_has_its_full_time_to_finish,
    a_deadline_that_never_comes_is_no_deadline,
];

/// Begins a transaction with new data for some objects that do not exist.
fn creating(store: &dyn Store, oids: &[u64]) -> TxnId {
    let txn = store.begin_new();
    for oid in oids {
        store.store(txn, Oid(*oid), Tid::ZERO, b"new".to_vec()).unwrap();
    }
    txn
}

fn conflict(oid: u64, committed: Tid, base: Tid) -> Conflict {
    Conflict { oid: Oid(oid), committed, base }
}

fn a_conflict_names_both_revisions_and_can_be_resolved(make: Make) {
    let it = make(StoreConfig::default());
    let base = it.store.put(1, Tid::ZERO, b"base");
    let txn = it.store.begin_new();
    it.store.store(txn, Oid(1), base, b"mine".to_vec()).unwrap();
    it.store.store_blob(txn, Oid(2), Tid::ZERO, b"too".to_vec(), it.store.staged(b"blob")).unwrap();
    let theirs = it.store.put(1, base, b"theirs");

    let conflicts = vec![conflict(1, theirs, base)];
    assert_eq!(it.store.vote_now(txn), Ok(Vote::Conflicts(conflicts.clone())));
    assert_eq!(it.store.vote_now(txn), Ok(Vote::Conflicts(conflicts)), "nothing has changed");
    assert_eq!(it.store.load_serial(Oid(1), base).unwrap().data, b"base");
    assert_eq!(it.store.load_serial(Oid(1), theirs).unwrap().data, b"theirs");
    it.store.store(txn, Oid(1), theirs, b"merged".to_vec()).unwrap();
    let tid = it.store.commit(txn);
    assert_eq!(it.store.load(Oid(1)).unwrap().data, b"merged");
    assert_eq!(it.store.blob(2, tid), Ok(b"blob".to_vec()));
    assert_eq!(it.store.counts().conflicts, 2);
}

fn creating_existing_or_changing_missing_is_a_conflict(make: Make) {
    let it = make(StoreConfig::default());
    let there = it.store.put(1, Tid::ZERO, b"");
    let stored = it.store.put(2, Tid::ZERO, b"");
    let deleted = it.store.remove(2, stored);
    let txn = it.store.begin_new();
    let bases = [(1, Tid::ZERO), (2, stored), (3, Tid(7))];
    for (oid, base) in bases {
        it.store.store(txn, Oid(oid), base, vec![]).unwrap();
    }
    it.store.delete(txn, Oid(4), deleted).unwrap();
    let conflicts = vec![
        conflict(1, there, Tid::ZERO),
        conflict(2, Tid::ZERO, stored),
        conflict(3, Tid::ZERO, Tid(7)),
        conflict(4, Tid::ZERO, deleted),
    ];
    assert_eq!(it.store.vote_now(txn), Ok(Vote::Conflicts(conflicts)));
}

fn a_conflicting_object_can_be_dropped(make: Make) {
    let it = make(StoreConfig::default());
    let txn = creating(&*it.store, &[1, 2]);
    let theirs = it.store.put(1, Tid::ZERO, b"theirs");
    assert_eq!(it.store.vote_now(txn), Ok(Vote::Conflicts(vec![conflict(1, theirs, Tid::ZERO)])));
    it.store.delete(txn, Oid(1), Tid::ZERO).unwrap();
    it.store.delete(txn, Oid(9), Tid::ZERO).unwrap();
    let tid = it.store.commit(txn);
    assert_eq!(it.store.load(Oid(1)).unwrap().tid, theirs);
    assert_eq!(it.store.load(Oid(2)).unwrap().tid, tid);
}

fn the_second_voter_waits_and_then_has_a_conflict(make: Make) {
    let it = make(StoreConfig::default());
    let base = it.store.put(1, Tid::ZERO, b"");
    let first = it.store.voted(1, base);
    let second = it.store.begin_new();
    it.store.store(second, Oid(1), base, vec![]).unwrap();
    let vote = it.store.ask_vote(second);
    assert_eq!(vote.try_recv(), Err(TryRecvError::Empty));
    let tid = it.store.finish_now(first).unwrap();
    assert_eq!(vote.recv().unwrap(), Ok(Vote::Conflicts(vec![conflict(1, tid, base)])));
}

fn the_second_voter_continues_when_the_first_aborts(make: Make) {
    let it = make(StoreConfig::default());
    let first = it.store.voted(1, Tid::ZERO);
    let second = creating(&*it.store, &[1]);
    let vote = it.store.ask_vote(second);
    it.store.abort(first);
    assert_eq!(vote.recv().unwrap(), Ok(Vote::Ready));
    it.store.finish_now(second).unwrap();
}

fn voters_without_a_common_object_do_not_wait(make: Make) {
    let it = make(StoreConfig::default());
    let voted: Vec<TxnId> = (1..20).map(|oid| it.store.voted(oid, Tid::ZERO)).collect();
    for txn in voted.into_iter().rev() {
        it.store.finish_now(txn).unwrap();
    }
}

fn votes_are_first_come_first_served(make: Make) {
    let it = make(StoreConfig::default());
    let holder = it.store.voted(1, Tid::ZERO);
    let wide = creating(&*it.store, &[1, 2]);
    let narrow = creating(&*it.store, &[2]);
    let wide_vote = it.store.ask_vote(wide);
    let narrow_vote = it.store.ask_vote(narrow);
    assert_eq!(
        narrow_vote.try_recv(),
        Err(TryRecvError::Empty),
        "object 2 is free, but another waits for it"
    );
    it.store.abort(holder);
    assert_eq!(wide_vote.recv().unwrap(), Ok(Vote::Ready));
    assert_eq!(narrow_vote.try_recv(), Err(TryRecvError::Empty));
    let tid = it.store.finish_now(wide).unwrap();
    assert_eq!(narrow_vote.recv().unwrap(), Ok(Vote::Conflicts(vec![conflict(2, tid, Tid::ZERO)])));
}

fn an_aborted_vote_is_answered_and_lets_others_pass(make: Make) {
    let it = make(StoreConfig::default());
    let holder = it.store.voted(1, Tid::ZERO);
    let wide = creating(&*it.store, &[1, 2]);
    let narrow = creating(&*it.store, &[2]);
    let wide_vote = it.store.ask_vote(wide);
    let narrow_vote = it.store.ask_vote(narrow);
    it.store.abort(wide);
    assert!(matches!(wide_vote.recv().unwrap(), Err(RequestError::Aborted { txn, .. }) if txn == wide));
    assert_eq!(narrow_vote.recv().unwrap(), Ok(Vote::Ready));
    it.store.finish_now(holder).unwrap();
}

fn a_conflict_releases_all_locks(make: Make) {
    let it = make(StoreConfig::default());
    let txn = creating(&*it.store, &[1, 2]);
    it.store.put(1, Tid::ZERO, b"theirs");
    assert!(matches!(it.store.vote_now(txn), Ok(Vote::Conflicts(_))));
    it.store.put(2, Tid::ZERO, b"not locked");
}

fn a_vote_not_finished_in_time_is_aborted(make: Make) {
    let it = make(StoreConfig { vote_timeout: Duration::from_millis(30), ..StoreConfig::default() });
    let late = it.store.voted(1, Tid::ZERO);
    let next = creating(&*it.store, &[1]);
    // This waits for the locks, so for the deadline.
    assert_eq!(it.store.vote_now(next), Ok(Vote::Ready));
    let aborted = it.store.finish_now(late).unwrap_err();
    assert!(
        matches!(&aborted, RequestError::Aborted { txn, reason } if *txn == late && reason.contains("in time"))
    );
    assert_eq!(it.store.vote_now(late), Err(aborted.clone()));
    assert_eq!(it.store.store(late, Oid(1), Tid::ZERO, vec![]), Err(aborted));
    assert!(it.store.counts().timeouts >= 1);
}

/// Settings with a short deadline for locks, and no other.
fn impatient() -> StoreConfig {
    StoreConfig {
        lock_timeout: Duration::from_millis(30),
        vote_timeout: Duration::MAX,
        ..StoreConfig::default()
    }
}

fn a_vote_that_waits_too_long_is_aborted(make: Make) {
    let it = make(impatient());
    let holder = it.store.voted(1, Tid::ZERO);
    let late = creating(&*it.store, &[1, 2]);
    let deadline = RequestError::Deadline { what: Deadline::Locks, after_ms: 30 };
    assert_eq!(it.store.vote_now(late), Err(deadline));
    // The transaction has ended, and later calls get the reason.
    let has_reason = |error: RequestError| matches!(&error, RequestError::Aborted { txn, reason } if *txn == late && reason.contains("locks"));
    assert!(has_reason(it.store.finish_now(late).unwrap_err()));
    assert!(has_reason(it.store.vote_now(late).unwrap_err()));
    assert!(has_reason(it.store.store(late, Oid(2), Tid::ZERO, vec![]).unwrap_err()));
    assert_eq!(it.store.outcome_now(late), Ok(Outcome::NotCommitted));
    let counts = it.store.counts();
    assert_eq!((counts.timeouts, counts.open), (1, 1));
    it.store.finish_now(holder).unwrap();
    it.store.put(2, Tid::ZERO, b"not locked");
}

fn an_expired_waiting_vote_lets_later_votes_pass(make: Make) {
    let it = make(impatient());
    let holder = it.store.voted(1, Tid::ZERO);
    let wide = creating(&*it.store, &[1, 2]);
    let narrow = creating(&*it.store, &[2]);
    let wide_vote = it.store.ask_vote(wide);
    let narrow_vote = it.store.ask_vote(narrow);
    assert!(matches!(wide_vote.recv().unwrap(), Err(RequestError::Deadline { .. })));
    // Its own deadline may have passed too, but it has its locks now.
    assert_eq!(narrow_vote.recv().unwrap(), Ok(Vote::Ready));
    it.store.finish_now(narrow).unwrap();
    it.store.finish_now(holder).unwrap();
}

fn a_vote_granted_late_has_its_full_time_to_finish(make: Make) {
    let it = make(StoreConfig { lock_timeout: Duration::from_millis(200), ..impatient() });
    // The first is granted its locks, then the second waits for a whole deadline. The first does
    // not expire with it.
    let holder = it.store.voted(1, Tid::ZERO);
    let first = creating(&*it.store, &[1]);
    let first_vote = it.store.ask_vote(first);
    it.store.abort(holder);
    if first_vote.recv().unwrap().is_err() {
        return; // the machine was too slow
    }
    let second = creating(&*it.store, &[1]);
    assert!(matches!(it.store.vote_now(second), Err(RequestError::Deadline { .. })));
    it.store.finish_now(first).unwrap();
}

fn a_deadline_that_never_comes_is_no_deadline(make: Make) {
    let it = make(StoreConfig {
        lock_timeout: Duration::MAX,
        vote_timeout: Duration::MAX,
        ..StoreConfig::default()
    });
    let first = it.store.voted(1, Tid::ZERO);
    let second = creating(&*it.store, &[1]);
    let vote = it.store.ask_vote(second);
    it.store.abort(first);
    assert_eq!(vote.recv().unwrap(), Ok(Vote::Ready));
    it.store.finish_now(second).unwrap();
}
