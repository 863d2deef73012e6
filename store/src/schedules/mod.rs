//! How threads work together in a store, tried under thousands of schedules: see `explore` in the cache's `sync`.
//!
//! Every scene ends only when everybody was answered and all threads are gone, so whoever is forgotten is found. What is
//! asserted beyond that is in the scenes.

mod announcements;
mod transactions;

use std::time::Duration;

use blobferry_platform::sync::mpsc;
use blobferry_protocol::{Oid, Outcome, RequestError, Tid, TxnId, TxnMeta};

use crate::{Done, MemoryStore, Store, StoreConfig, Vote};

/// No time is so long.
const NEVER: Duration = Duration::MAX;

/// A store in which nothing takes too long.
pub(crate) fn patient() -> StoreConfig {
    StoreConfig { vote_timeout: NEVER, lock_timeout: NEVER, ..StoreConfig::default() }
}

pub(crate) fn txn(n: u8) -> TxnId {
    TxnId([n; 16])
}

/// Waits for an answer. That there is none is an error of its own.
fn wait<T: Send + 'static>(ask: impl FnOnce(Done<T>)) -> Result<T, RequestError> {
    let (answer, answered) = mpsc::channel();
    ask(Box::new(move |result| answer.send(result).unwrap()));
    answered.recv().expect("an answer was forgotten")
}

fn vote(store: &impl Store, n: u8) -> Result<Vote, RequestError> {
    wait(|done| store.vote(txn(n), done))
}

fn finish(store: &impl Store, n: u8) -> Result<Tid, RequestError> {
    wait(|done| store.finish(txn(n), done))
}

fn outcome(store: &impl Store, n: u8) -> Result<Outcome, RequestError> {
    wait(|done| store.outcome(txn(n), done))
}

/// Opens a transaction that changes these objects, all of them new.
fn begin(store: &impl Store, n: u8, oids: &[u64]) -> Result<(), RequestError> {
    store.begin(txn(n), TxnMeta::default())?;
    oids.iter().try_for_each(|oid| store.store(txn(n), Oid(*oid), Tid::ZERO, vec![n]))
}

/// From begin to finish.
fn commit(store: &impl Store, n: u8, oids: &[u64]) -> Result<Result<Tid, Vote>, RequestError> {
    begin(store, n, oids)?;
    match vote(store, n)? {
        Vote::Ready => finish(store, n).map(Ok),
        conflicts => {
            store.abort(txn(n));
            Ok(Err(conflicts))
        }
    }
}

/// Nothing is open any more.
fn check(store: &MemoryStore) {
    let counts = store.counts();
    assert_eq!((counts.open, counts.staged_bytes), (0, 0), "{counts:?}");
}
