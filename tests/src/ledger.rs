//! The ledger: what a store and a cache have promised, from the statements of a process.
//!
//! A process states what it intends before it requests the commit, and states the answer at once.
//! So after any fault it is known of each transaction whether it *must*, *must not* or *may* exist,
//! as a whole. The same holds for blobs in a cache.

use std::collections::{BTreeMap, BTreeSet};

use blobferry_protocol::{BlobId, Oid, Tid, TxnId};
use serde::{Deserialize, Serialize};

use crate::contents::{self, Kind};
use crate::failure::{Context, Problem, ensure};

/// What a transaction does with an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The object.
    pub oid: Oid,
    /// The size of its record in bytes; `None` deletes the object.
    pub record: Option<usize>,
    /// The size of its blob in bytes, if it has one.
    pub blob: Option<usize>,
}

/// A statement of a process to its parent, as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statement {
    /// The process pauses until its parent lets it continue.
    Waits,
    /// The store has allocated these oids.
    NewOids {
        /// The first.
        first: Oid,
        /// Their number.
        count: u32,
    },
    /// The process will request the commit of a transaction.
    Intends {
        /// The transaction.
        txn: TxnId,
        /// What it does.
        changes: Vec<Change>,
    },
    /// The answer was: committed.
    Committed {
        /// The transaction.
        txn: TxnId,
        /// Its tid.
        tid: Tid,
    },
    /// The answer was: not committed, now or later.
    Refused {
        /// The transaction.
        txn: TxnId,
        /// Why.
        reason: String,
    },
    /// The answer was: the outcome is unknown.
    Undecided {
        /// The transaction.
        txn: TxnId,
    },
    /// The process will request to pack revisions before this tid.
    PackBegins {
        /// The tid.
        before: Tid,
    },
    /// The store has packed revisions before this tid.
    PackDone {
        /// The tid.
        before: Tid,
    },
    /// The blob is in the cache, according to the cache.
    Cached {
        /// The blob.
        blob: BlobId,
    },
    /// The blob was removed from the cache, or may be.
    Uncached {
        /// The blob.
        blob: BlobId,
    },
    /// A request has failed.
    Failed {
        /// Which, and why.
        what: String,
    },
    /// A promise was broken.
    Violation {
        /// Which, and how.
        what: String,
    },
    /// The process has finished its work.
    Done,
}

/// What is known of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxnState {
    /// It may or may not be committed.
    Unknown,
    /// It is committed.
    Committed(Tid),
    /// It is not committed.
    NotCommitted,
}

/// A transaction that a process has stated.
#[derive(Clone, Debug)]
pub struct TxnEntry {
    /// What it does.
    pub changes: Vec<Change>,
    /// What became of it.
    pub state: TxnState,
    /// The last tid that was known when the process stated its intention. The transaction's own tid
    /// is later.
    after: Tid,
}

/// Everything that was promised.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    transactions: BTreeMap<TxnId, TxnEntry>,
    /// By the tid of each transaction that is known to be committed.
    committed: BTreeMap<Tid, TxnId>,
    /// The last oid that was allocated.
    last_oid: u64,
    cached: BTreeSet<BlobId>,
    /// Revisions before these tids may be gone, and are gone.
    packing: Tid,
    packed: Tid,
    /// The number of refused and failed requests.
    pub refusals: u64,
}

impl Ledger {
    /// Records a statement.
    ///
    /// # Errors
    /// The statement contradicts an earlier one, or reports a broken promise.
    pub fn record(&mut self, statement: Statement) -> Result<(), Problem> {
        match statement {
            Statement::Waits | Statement::Done => {}
            Statement::Failed { .. } => self.refusals += 1,
            Statement::NewOids { first, count } => {
                ensure!(first.0 > self.last_oid, "oid {first} was given, and {} before", self.last_oid);
                self.last_oid = first.0 + u64::from(count) - 1;
            }
            Statement::Intends { txn, changes } => {
                let after = self.last_tid();
                let before =
                    self.transactions.insert(txn, TxnEntry { changes, state: TxnState::Unknown, after });
                ensure!(before.is_none(), "transaction {txn} is intended twice");
            }
            Statement::Committed { txn, tid } => self.decide(txn, TxnState::Committed(tid))?,
            Statement::Refused { txn, .. } => {
                self.refusals += 1;
                self.decide(txn, TxnState::NotCommitted)?;
            }
            Statement::Undecided { .. } => self.refusals += 1,
            Statement::PackBegins { before } => self.packing = self.packing.max(before),
            Statement::PackDone { before } => self.packed = self.packed.max(before),
            Statement::Cached { blob } => _ = self.cached.insert(blob),
            Statement::Uncached { blob } => _ = self.cached.remove(&blob),
            Statement::Violation { what } => return Err(Problem(what)),
        }
        Ok(())
    }

    /// Forgets what the cache has promised: the machine has lost its power.
    pub fn forget_cached(&mut self) {
        self.cached.clear();
    }

    /// Records what became of a transaction.
    ///
    /// # Errors
    /// The transaction had another outcome before, or its tid is not later than those known before
    /// it.
    pub fn decide(&mut self, txn: TxnId, state: TxnState) -> Result<(), Problem> {
        let entry =
            self.transactions.get_mut(&txn).context(format!("transaction {txn} was never intended"))?;
        ensure!(
            entry.state == TxnState::Unknown || entry.state == state,
            "transaction {txn} was {:?}, and now is {state:?}",
            entry.state
        );
        entry.state = state;
        if let TxnState::Committed(tid) = state {
            ensure!(tid > entry.after, "{txn} has the tid {tid}, and {} was before it", entry.after);
            let other = self.committed.insert(tid, txn);
            ensure!(other.is_none_or(|other| other == txn), "two transactions have the tid {tid}");
        }
        Ok(())
    }

    /// Returns the transactions whose outcome is unknown.
    #[must_use]
    pub fn unknown(&self) -> Vec<TxnId> {
        self.transactions
            .iter()
            .filter(|(_, entry)| entry.state == TxnState::Unknown)
            .map(|(txn, _)| *txn)
            .collect()
    }

    /// Returns the last known tid.
    #[must_use]
    pub fn last_tid(&self) -> Tid {
        self.committed.last_key_value().map_or(Tid::ZERO, |(tid, _)| *tid)
    }

    /// Returns the number of committed transactions.
    #[must_use]
    pub fn commits(&self) -> usize {
        self.committed.len()
    }

    /// Returns the number of all transactions.
    #[must_use]
    pub fn transactions(&self) -> usize {
        self.transactions.len()
    }

    /// Returns the blobs that are in the cache, according to the cache.
    #[must_use]
    pub fn cached(&self) -> &BTreeSet<BlobId> {
        &self.cached
    }

    /// Returns the bytes that a blob must have, or `None` if there is no such blob.
    #[must_use]
    pub fn blob(&self, blob: BlobId) -> Option<Vec<u8>> {
        let txn = *self.committed.get(&blob.tid)?;
        let change = self.transactions.get(&txn)?.changes.iter().find(|change| change.oid == blob.oid)?;
        Some(contents::bytes(txn, blob.oid, Kind::Blob, change.blob?))
    }

    /// Returns all committed revisions, by object and in the order of their tids, with whether they
    /// must exist.
    #[must_use]
    pub fn revisions(&self) -> Vec<Expected> {
        let mut objects: BTreeMap<Oid, Vec<(Tid, TxnId, &Change)>> = BTreeMap::new();
        for (tid, txn) in &self.committed {
            let changes =
                self.transactions.get(txn).map(|entry| entry.changes.as_slice()).unwrap_or_default();
            for change in changes {
                objects.entry(change.oid).or_default().push((*tid, *txn, change));
            }
        }
        let mut all = Vec::new();
        for revisions in objects.values() {
            let tids = || revisions.iter().map(|(tid, ..)| *tid);
            for (tid, txn, change) in revisions {
                let useless = |before: Tid| {
                    let replaced = tids().any(|later| later > *tid && later < before);
                    let last_deletion = change.record.is_none() && !tids().any(|later| later > *tid);
                    *tid < before && (replaced || last_deletion)
                };
                let presence = match (useless(self.packed), useless(self.packing)) {
                    (true, _) => Presence::MustNot,
                    (false, true) => Presence::May,
                    (false, false) => Presence::Must,
                };
                all.push(Expected { tid: *tid, txn: *txn, change: (*change).clone(), presence });
            }
        }
        all
    }
}

/// Whether a revision exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It was committed, and is not packed away.
    Must,
    /// It is being packed away.
    May,
    /// It was packed away.
    MustNot,
}

/// A revision that was committed.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Its tid.
    pub tid: Tid,
    /// Its transaction.
    pub txn: TxnId,
    /// What was stored.
    pub change: Change,
    /// Whether it exists.
    pub presence: Presence,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intends(ledger: &mut Ledger, n: u8, oid: u64, record: Option<usize>) -> TxnId {
        let txn = TxnId([n; 16]);
        let changes = vec![Change { oid: Oid(oid), record, blob: None }];
        ledger.record(Statement::Intends { txn, changes }).unwrap();
        txn
    }

    fn committed(ledger: &mut Ledger, txn: TxnId, tid: u64) -> Result<(), Problem> {
        ledger.record(Statement::Committed { txn, tid: Tid(tid) })
    }

    #[test]
    fn descending_tids_and_repeated_oids_are_refused() {
        let mut ledger = Ledger::default();
        let (early, first) = (intends(&mut ledger, 1, 1, Some(1)), intends(&mut ledger, 2, 2, Some(1)));
        committed(&mut ledger, first, 7).unwrap();
        committed(&mut ledger, early, 5).unwrap(); // it was intended before the other was answered
        let late = intends(&mut ledger, 3, 3, Some(1));
        assert!(committed(&mut ledger, late, 6).is_err());
        ledger.record(Statement::NewOids { first: Oid(1), count: 3 }).unwrap();
        assert!(ledger.record(Statement::NewOids { first: Oid(3), count: 1 }).is_err());
    }

    #[test]
    fn answered_outcome_stays() {
        let mut ledger = Ledger::default();
        let txn = intends(&mut ledger, 1, 1, Some(1));
        assert_eq!(ledger.unknown(), [txn]);
        ledger.record(Statement::Refused { txn, reason: String::new() }).unwrap();
        assert_eq!(ledger.unknown(), []);
        assert!(committed(&mut ledger, txn, 5).is_err());
    }

    #[test]
    fn only_unused_revisions_are_packed() {
        let mut ledger = Ledger::default();
        for (n, oid, record) in
            [(1, 1, Some(1)), (2, 1, Some(1)), (3, 2, Some(1)), (4, 2, None), (5, 1, Some(1))]
        {
            let txn = intends(&mut ledger, n, oid, record);
            committed(&mut ledger, txn, n.into()).unwrap();
        }
        let presences = |ledger: &Ledger| -> Vec<(u64, Presence)> {
            ledger.revisions().iter().map(|revision| (revision.tid.0, revision.presence)).collect()
        };
        use Presence::{May, Must, MustNot};
        ledger.record(Statement::PackBegins { before: Tid(5) }).unwrap();
        assert_eq!(presences(&ledger), [(1, May), (2, Must), (5, Must), (3, May), (4, May)]);
        ledger.record(Statement::PackDone { before: Tid(4) }).unwrap();
        assert_eq!(presences(&ledger), [(1, MustNot), (2, Must), (5, Must), (3, May), (4, May)]);
    }
}
