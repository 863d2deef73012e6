//! What a store and a cache have promised: everything that a process statement before it came to its end.
//!
//! Whoever uses a store says what it intends before it asks for the commit, and what it was answered at once. So whatever
//! happens, it is known of each transaction whether it *must* be there, *must not* be there, or *may* be there, and then
//! as a whole. The same is true of blobs in a cache.

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
    /// The size of its record; `None` where it is deleted.
    pub record: Option<usize>,
    /// The size of its blob, where it has one.
    pub blob: Option<usize>,
}

/// One thing that a process says: to its parent, in a line of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statement {
    /// It waits for a word before it goes on.
    Waits,
    /// These oids were given.
    NewOids {
        /// The first.
        first: Oid,
        /// How many.
        count: u32,
    },
    /// A transaction will be asked to be committed.
    Intends {
        /// Which.
        txn: TxnId,
        /// What it does.
        changes: Vec<Change>,
    },
    /// It was answered that it is committed.
    Committed {
        /// Which.
        txn: TxnId,
        /// Its tid.
        tid: Tid,
    },
    /// It was answered that it is not, and never will be.
    Refused {
        /// Which.
        txn: TxnId,
        /// Why.
        reason: String,
    },
    /// It was answered that nobody knows.
    Undecided {
        /// Which.
        txn: TxnId,
    },
    /// Revisions before this one are to be forgotten.
    PackBegins {
        /// The transaction.
        before: Tid,
    },
    /// They are.
    PackDone {
        /// The transaction.
        before: Tid,
    },
    /// A blob is in the cache, as was answered.
    Cached {
        /// The blob.
        blob: BlobId,
    },
    /// A blob was removed from the cache, or is about to be.
    Uncached {
        /// The blob.
        blob: BlobId,
    },
    /// What it was asked for failed, with a reason.
    Failed {
        /// What.
        what: String,
    },
    /// What is not as it should be.
    Violation {
        /// What.
        what: String,
    },
    /// It has done all that it had to.
    Done,
}

/// What is known of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxnState {
    /// It may or may not be committed.
    Unknown,
    /// It is committed.
    Committed(Tid),
    /// It is not.
    NotCommitted,
}

/// A transaction as it was told.
#[derive(Clone, Debug)]
pub struct TxnEntry {
    /// What it does.
    pub changes: Vec<Change>,
    /// What became of it.
    pub state: TxnState,
    /// The last tid that had been told when this was intended: its own must be later.
    after: Tid,
}

/// Everything that was promised.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    transactions: BTreeMap<TxnId, TxnEntry>,
    /// By the tid of each transaction that is known to be committed.
    committed: BTreeMap<Tid, TxnId>,
    /// The last oid that was given.
    last_oid: u64,
    cached: BTreeSet<BlobId>,
    /// How far revisions may be forgotten, and how far they are.
    packing: Tid,
    packed: Tid,
    /// How often something was refused, or failed.
    pub refusals: u64,
}

impl Ledger {
    /// Takes note of what was statement.
    ///
    /// # Errors
    /// Where that can not be.
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

    /// The machine has lost its power: what a cache had promised to have counts no more.
    pub fn forget_cached(&mut self) {
        self.cached.clear();
    }

    /// What became of a transaction.
    ///
    /// # Errors
    /// Where something else became of it before, or its tid is not later than those that were known before it.
    pub fn decide(&mut self, txn: TxnId, state: TxnState) -> Result<(), Problem> {
        let told =
            self.transactions.get_mut(&txn).context(format!("transaction {txn} was never intended"))?;
        ensure!(
            told.state == TxnState::Unknown || told.state == state,
            "transaction {txn} was {:?}, and now is {state:?}",
            told.state
        );
        told.state = state;
        if let TxnState::Committed(tid) = state {
            ensure!(tid > told.after, "{txn} has the tid {tid}, and {} was before it", told.after);
            let other = self.committed.insert(tid, txn);
            ensure!(other.is_none_or(|other| other == txn), "two transactions have the tid {tid}");
        }
        Ok(())
    }

    /// The transactions of which nobody has told what became of them.
    #[must_use]
    pub fn unknown(&self) -> Vec<TxnId> {
        self.transactions
            .iter()
            .filter(|(_, told)| told.state == TxnState::Unknown)
            .map(|(txn, _)| *txn)
            .collect()
    }

    /// The last tid that is known.
    #[must_use]
    pub fn last_tid(&self) -> Tid {
        self.committed.last_key_value().map_or(Tid::ZERO, |(tid, _)| *tid)
    }

    /// How many transactions are committed.
    #[must_use]
    pub fn commits(&self) -> usize {
        self.committed.len()
    }

    /// How many transactions were told of, whatever became of them.
    #[must_use]
    pub fn transactions(&self) -> usize {
        self.transactions.len()
    }

    /// The blobs that a cache has statement to have.
    #[must_use]
    pub fn cached(&self) -> &BTreeSet<BlobId> {
        &self.cached
    }

    /// The bytes that a blob must have; `None` where there is no such blob.
    #[must_use]
    pub fn blob(&self, blob: BlobId) -> Option<Vec<u8>> {
        let txn = *self.committed.get(&blob.tid)?;
        let change = self.transactions.get(&txn)?.changes.iter().find(|change| change.oid == blob.oid)?;
        Some(contents::bytes(txn, blob.oid, Kind::Blob, change.blob?))
    }

    /// All revisions that were committed, by object, in the order of their tids, with whether they must, may, or must
    /// not be there: what was packed is not.
    #[must_use]
    pub fn revisions(&self) -> Vec<Expected> {
        let mut objects: BTreeMap<Oid, Vec<(Tid, TxnId, &Change)>> = BTreeMap::new();
        for (tid, txn) in &self.committed {
            let changes = self.transactions.get(txn).map(|told| told.changes.as_slice()).unwrap_or_default();
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

/// Whether a revision is to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It was committed, and is of use.
    Must,
    /// It is being packed away.
    May,
    /// It was packed away.
    MustNot,
}

/// A revision that was committed.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Its transaction.
    pub tid: Tid,
    /// That one's name.
    pub txn: TxnId,
    /// What was stored.
    pub change: Change,
    /// Whether it is to be there.
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
    fn tids_that_go_back_and_oids_that_are_given_twice_are_wrong() {
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
    fn what_was_answered_stays_so() {
        let mut ledger = Ledger::default();
        let txn = intends(&mut ledger, 1, 1, Some(1));
        assert_eq!(ledger.unknown(), [txn]);
        ledger.record(Statement::Refused { txn, reason: String::new() }).unwrap();
        assert_eq!(ledger.unknown(), []);
        assert!(committed(&mut ledger, txn, 5).is_err());
    }

    #[test]
    fn only_what_is_of_no_use_is_packed() {
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
