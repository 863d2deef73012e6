//! Outcomes: definite, whatever the phase of the transaction.

use blobferry_protocol::{Oid, Outcome, RequestError, Tid, TxnMeta};
use blobferry_store::{StoreConfig, Vote};

use super::promises;
use crate::support::{Gate, Make, StoreExt, ask, new_txn};

promises![
    an_unknown_name_is_never_committed_under,
    an_outcome_aborts_an_open_transaction,
    an_outcome_aborts_a_waiting_vote,
    an_outcome_aborts_a_voted_transaction,
    an_outcome_waits_for_a_finishing_transaction,
    a_committed_transaction_stays_committed,
];

fn an_unknown_name_is_never_committed_under(make: Make) {
    let it = make(StoreConfig::default());
    let txn = new_txn();
    assert_eq!(it.store.outcome_now(txn), Ok(Outcome::NotCommitted));
    // The name is refused here or at the vote: it never commits.
    let exists = Err(RequestError::TransactionExists { txn });
    if it.store.begin(txn, TxnMeta::default()).is_ok() {
        assert_eq!(it.store.vote_now(txn).map(drop), exists.clone());
    }
    assert_eq!(it.store.outcome_now(txn), Ok(Outcome::NotCommitted));
}

fn an_outcome_aborts_an_open_transaction(make: Make) {
    let it = make(StoreConfig::default());
    let txn = it.store.begin_new();
    it.store.store(txn, Oid(1), Tid::ZERO, vec![]).unwrap();
    assert_eq!(it.store.outcome_now(txn), Ok(Outcome::NotCommitted));
    assert!(matches!(it.store.vote_now(txn), Err(RequestError::Aborted { .. })));
    assert_eq!(it.store.begin(txn, TxnMeta::default()), Err(RequestError::TransactionExists { txn }));
}

fn an_outcome_aborts_a_waiting_vote(make: Make) {
    let it = make(StoreConfig::default());
    let holder = it.store.voted(1, Tid::ZERO);
    let txn = it.store.begin_new();
    it.store.store(txn, Oid(1), Tid::ZERO, vec![]).unwrap();
    let vote = it.store.ask_vote(txn);
    assert_eq!(it.store.outcome_now(txn), Ok(Outcome::NotCommitted));
    assert!(matches!(vote.recv().unwrap(), Err(RequestError::Aborted { .. })));
    it.store.finish_now(holder).unwrap();
}

fn an_outcome_aborts_a_voted_transaction(make: Make) {
    let it = make(StoreConfig::default());
    let txn = it.store.voted(1, Tid::ZERO);
    assert_eq!(it.store.outcome_now(txn), Ok(Outcome::NotCommitted));
    assert!(matches!(it.store.finish_now(txn), Err(RequestError::Aborted { .. })));
    it.store.put(1, Tid::ZERO, b"the locks are free");
}

fn an_outcome_waits_for_a_finishing_transaction(make: Make) {
    let it = make(StoreConfig::default());
    let gate = Gate::close(&*it.store);
    let first = it.store.voted(1, Tid::ZERO);
    let first_tid = it.store.ask_finish(first);
    let announced = gate.wait();
    let second = it.store.voted(2, Tid::ZERO);
    let second_tid = it.store.ask_finish(second);
    let outcomes = [first, second].map(|txn| ask(|done| it.store.outcome(txn, done)));
    it.store.abort(first);
    it.store.abort(second);
    gate.open();
    let tids = [first_tid, second_tid].map(|finish| finish.recv().unwrap().unwrap());
    assert_eq!(tids[0], announced);
    for (outcome, tid) in outcomes.into_iter().zip(tids) {
        assert_eq!(outcome.recv().unwrap(), Ok(Outcome::Committed { tid }));
    }
}

fn a_committed_transaction_stays_committed(make: Make) {
    let it = make(StoreConfig::default());
    let txn = it.store.voted(1, Tid::ZERO);
    let tid = it.store.finish_now(txn).unwrap();
    assert_eq!(it.store.outcome_now(txn), Ok(Outcome::Committed { tid }));
    let gone = it.store.remove(1, tid);
    it.store.pack(Tid(gone.0 + 1)).unwrap();
    assert_eq!(it.store.outcome_now(txn), Ok(Outcome::Committed { tid }), "also when its revisions are gone");
    assert_eq!(it.store.begin(txn, TxnMeta::default()), Ok(()));
    assert_eq!(it.store.vote_now(txn), Err::<Vote, _>(RequestError::TransactionExists { txn }));
}
