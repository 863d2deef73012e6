//! The threads of a client and a server under thousands of schedules: see
//! [`explore`](blobferry_platform::sync::explore).
//!
//! A test ends only when every call is answered and all threads have ended, so it finds a call without an answer.

mod conversations;

use std::time::Duration;

use blobferry_platform::sync::mpsc;
use blobferry_protocol::{RequestError, Tid, TxnId};
use blobferry_store::{Done, Store, StoreConfig, Vote};

/// Returns the configuration of a store without timeouts.
pub(crate) fn patient() -> StoreConfig {
    StoreConfig { vote_timeout: Duration::MAX, lock_timeout: Duration::MAX, ..StoreConfig::default() }
}

pub(crate) fn txn(n: u8) -> TxnId {
    TxnId([n; 16])
}

/// Waits for an answer. Panics if there is none.
fn wait<T: Send + 'static>(call: impl FnOnce(Done<T>)) -> Result<T, RequestError> {
    let (answer, answered) = mpsc::channel();
    call(Box::new(move |result| answer.send(result).unwrap()));
    answered.recv().expect("no answer came")
}

fn vote(store: &impl Store, n: u8) -> Result<Vote, RequestError> {
    wait(|done| store.vote(txn(n), done))
}

fn finish(store: &impl Store, n: u8) -> Result<Tid, RequestError> {
    wait(|done| store.finish(txn(n), done))
}
