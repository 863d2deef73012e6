//! The ledger: every transaction that was begun, what was put into it, and what was said of its end. What anybody reads is
//! held against it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use blobferry_protocol::{BlobId, Oid, Revision, Tid, TxnId};

use super::random::Random;
use crate::support::bytes;

/// What an object is at one revision. Its blob's bytes follow from its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Thing {
    pub(super) record: String,
    /// The size of its blob.
    pub(super) size: Option<usize>,
}

impl Thing {
    pub(super) fn bytes(&self) -> Vec<u8> {
        bytes(&self.record, self.size.unwrap_or(0))
    }
}

/// What was said of a transaction's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing yet.
    Open,
    /// It is there, for ever.
    Committed(Tid),
    /// Nothing of it is there, nor ever will be.
    Never,
    /// One of both.
    Unknown,
}

/// One transaction.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) txn: TxnId,
    pub(super) things: BTreeMap<Oid, Thing>,
    pub(super) fate: Fate,
}

#[derive(Default)]
pub(super) struct Ledger(Mutex<Book>);

#[derive(Default)]
struct Book {
    attempts: Vec<Attempt>,
    committed: Vec<BlobId>,
    current: BTreeMap<Oid, Tid>,
    things: BTreeMap<BlobId, Thing>,
}

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap()
    }

    /// A transaction begins; its number.
    pub(super) fn begin(&self, txn: TxnId) -> usize {
        let mut book = self.book();
        book.attempts.push(Attempt { txn, things: BTreeMap::new(), fate: Fate::Open });
        book.attempts.len() - 1
    }

    /// Something is about to be put into it: how it is told from everything else.
    pub(super) fn put(&self, number: usize, oid: Oid, size: Option<usize>) -> Thing {
        let things = &mut self.book().attempts[number].things;
        let version = things.get(&oid).map_or(0, |thing| thing.record.len());
        let thing = Thing { record: format!("{oid} of attempt {number}{}", "!".repeat(version % 7)), size };
        things.insert(oid, thing.clone());
        thing
    }

    /// What became of it.
    pub(super) fn end(&self, number: usize, fate: Fate) {
        let mut book = self.book();
        book.attempts[number].fate = fate;
        let Fate::Committed(tid) = fate else { return };
        for (oid, thing) in book.attempts[number].things.clone() {
            book.committed.push(BlobId { oid, tid });
            book.things.insert(BlobId { oid, tid }, thing);
            let current = book.current.entry(oid).or_insert(tid);
            *current = tid.max(*current);
        }
    }

    /// The newest revision of an object that anybody was told of.
    pub(super) fn current(&self, oid: Oid) -> Tid {
        self.book().current.get(&oid).copied().unwrap_or(Tid::ZERO)
    }

    /// Any revision that somebody was told of.
    pub(super) fn any(&self, random: &mut Random) -> Option<(BlobId, Thing)> {
        let book = self.book();
        let blob = (!book.committed.is_empty()).then(|| *random.one_of(&book.committed))?;
        Some((blob, book.things[&blob].clone()))
    }

    /// All revisions that somebody was told of.
    pub(super) fn committed(&self) -> BTreeMap<BlobId, Thing> {
        self.book().things.clone()
    }

    /// All that was tried.
    pub(super) fn attempts(&self) -> Vec<Attempt> {
        self.book().attempts.clone()
    }

    /// Panics unless this revision of an object is what somebody has put there.
    pub(super) fn check(&self, oid: Oid, revision: &Revision) {
        let book = self.book();
        let (tid, record) = (revision.tid, String::from_utf8(revision.data.clone()).unwrap());
        if let Some(thing) = book.things.get(&BlobId { oid, tid }) {
            assert_eq!((&thing.record, thing.size), (&record, size(revision)));
            return;
        }
        // Whoever has committed it was not told yet.
        let is_it = |thing: &Thing| thing.record == record && thing.size == size(revision);
        let pending = |attempt: &&Attempt| matches!(attempt.fate, Fate::Open | Fate::Unknown);
        let found =
            book.attempts.iter().filter(pending).any(|attempt| attempt.things.get(&oid).is_some_and(is_it));
        assert!(found, "object {oid} is {record:?} at {tid}, which nobody has committed");
    }
}

fn size(revision: &Revision) -> Option<usize> {
    revision.blob.map(|blob| usize::try_from(blob.size).unwrap())
}
