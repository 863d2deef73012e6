//! The ledger records every transaction: its contents and the outcome that its client reported.
//!
//! Everything that a reader loads is compared with it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use blobferry_protocol::{BlobId, Oid, Revision, Tid, TxnId};

use super::random::Random;
use crate::support::bytes;

/// Content of an object at one revision. The blob's bytes follow from the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) record: String,
    /// Size of the blob in bytes, if there is one.
    pub(super) size: Option<usize>,
}

impl Content {
    pub(super) fn bytes(&self) -> Vec<u8> {
        bytes(&self.record, self.size.unwrap_or(0))
    }
}

/// Reported outcome of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reported {
    /// No outcome was reported yet.
    Open,
    /// Committed with this tid.
    Committed(Tid),
    /// Not committed, now and in the future.
    NotCommitted,
    /// Either committed or not.
    Unknown,
}

/// One transaction.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) txn: TxnId,
    pub(super) contents: BTreeMap<Oid, Content>,
    pub(super) outcome: Reported,
}

#[derive(Default)]
pub(super) struct Ledger(Mutex<State>);

#[derive(Default)]
struct State {
    attempts: Vec<Attempt>,
    committed: Vec<BlobId>,
    current: BTreeMap<Oid, Tid>,
    contents: BTreeMap<BlobId, Content>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Records the begin of a transaction; returns its number.
    pub(super) fn begin(&self, txn: TxnId) -> usize {
        let mut state = self.lock();
        state.attempts.push(Attempt { txn, contents: BTreeMap::new(), outcome: Reported::Open });
        state.attempts.len() - 1
    }

    /// Records a store into a transaction; returns unique content for it.
    pub(super) fn put(&self, number: usize, oid: Oid, size: Option<usize>) -> Content {
        let contents = &mut self.lock().attempts[number].contents;
        let version = contents.get(&oid).map_or(0, |content| content.record.len());
        let content =
            Content { record: format!("{oid} of attempt {number}{}", "!".repeat(version % 7)), size };
        contents.insert(oid, content.clone());
        content
    }

    /// Records the outcome of a transaction.
    pub(super) fn end(&self, number: usize, outcome: Reported) {
        let mut state = self.lock();
        state.attempts[number].outcome = outcome;
        let Reported::Committed(tid) = outcome else { return };
        for (oid, content) in state.attempts[number].contents.clone() {
            state.committed.push(BlobId { oid, tid });
            state.contents.insert(BlobId { oid, tid }, content);
            let current = state.current.entry(oid).or_insert(tid);
            *current = tid.max(*current);
        }
    }

    /// Returns the newest reported revision of an object.
    pub(super) fn current(&self, oid: Oid) -> Tid {
        self.lock().current.get(&oid).copied().unwrap_or(Tid::ZERO)
    }

    /// Returns a random reported revision.
    pub(super) fn any(&self, random: &mut Random) -> Option<(BlobId, Content)> {
        let state = self.lock();
        let blob = (!state.committed.is_empty()).then(|| *random.one_of(&state.committed))?;
        Some((blob, state.contents[&blob].clone()))
    }

    /// Returns all reported revisions.
    pub(super) fn committed(&self) -> BTreeMap<BlobId, Content> {
        self.lock().contents.clone()
    }

    /// Returns all transactions.
    pub(super) fn attempts(&self) -> Vec<Attempt> {
        self.lock().attempts.clone()
    }

    /// Panics unless a client has stored this revision of an object.
    pub(super) fn check(&self, oid: Oid, revision: &Revision) {
        let state = self.lock();
        let (tid, record) = (revision.tid, String::from_utf8(revision.data.clone()).unwrap());
        if let Some(content) = state.contents.get(&BlobId { oid, tid }) {
            assert_eq!((&content.record, content.size), (&record, size(revision)));
            return;
        }
        // The committing client may not have its answer yet.
        let is_it = |content: &Content| content.record == record && content.size == size(revision);
        let pending = |attempt: &&Attempt| matches!(attempt.outcome, Reported::Open | Reported::Unknown);
        let found = state
            .attempts
            .iter()
            .filter(pending)
            .any(|attempt| attempt.contents.get(&oid).is_some_and(is_it));
        assert!(found, "object {oid} is {record:?} at {tid}, which no client has committed");
    }
}

fn size(revision: &Revision) -> Option<usize> {
    revision.blob.map(|blob| usize::try_from(blob.size).unwrap())
}
