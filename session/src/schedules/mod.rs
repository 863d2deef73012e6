//! How threads work together in a session, tried under thousands of schedules: see
//! [`explore`](blobferry_platform::sync::explore).
//!
//! Every scene ends only when every call was answered and all threads are gone, so a forgotten call is found. What is asserted
//! beyond that is in the scenes.

mod conversations;

use std::time::Duration;

use blobferry_platform::sync::mpsc;
use blobferry_protocol::{RequestError, Tid, TxnId};
use blobferry_store::{Done, Store, StoreConfig, Vote};

/// A store in which nothing takes too long.
pub(crate) fn patient() -> StoreConfig {
    StoreConfig { vote_timeout: Duration::MAX, lock_timeout: Duration::MAX, ..StoreConfig::default() }
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
