//! Tests of the store's threads under thousands of schedules: see `explore` in `platform::sync`.
//!
//! Every test ends only when each call was answered and all threads have ended. So a forgotten
//! answer or wake-up fails it as a deadlock.

mod announcements;
mod transactions;

use std::time::Duration;

use blobferry_platform::sync::mpsc;
use blobferry_protocol::{Oid, Outcome, RequestError, Tid, TxnId, TxnMeta};

use crate::{Done, MemoryStore, Store, StoreConfig, Vote};

/// A time that never passes.
const NEVER: Duration = Duration::MAX;

/// Settings of a store in which no deadline passes.
pub(crate) fn patient() -> StoreConfig {
    StoreConfig { vote_timeout: NEVER, lock_timeout: NEVER, ..StoreConfig::default() }
}

pub(crate) fn txn(n: u8) -> TxnId {
    TxnId([n; 16])
}

/// Waits for an answer, and panics if the completion was dropped.
fn wait<T: Send + 'static>(call: impl FnOnce(Done<T>)) -> Result<T, RequestError> {
    let (answer, answered) = mpsc::channel();
    call(Box::new(move |result| answer.send(result).unwrap()));
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

/// Runs a transaction from begin to finish.
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

/// Asserts that no transaction is open.
fn check(store: &MemoryStore) {
    let counts = store.counts();
    assert_eq!((counts.open, counts.staged_bytes), (0, 0), "{counts:?}");
}
