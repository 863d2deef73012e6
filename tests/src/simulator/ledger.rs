//! The ledger: all that users have written and were answered, and the rules that were broken.

use std::collections::BTreeMap;

use blobferry_protocol::{Oid, Outcome, Revision, Tid, TxnId};
use fastrand::Rng;

use super::history::{Operation, What};

/// What became of a transaction, as far as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TxnState {
    /// Not answered yet, or never.
    Unknown,
    Committed(Tid),
    /// Not committed, and it never will be.
    Failed,
}

/// What a transaction stores for an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Put {
    /// The revision that it was made from.
    pub(super) base: Tid,
    /// The size of its blob in bytes, if it has one.
    pub(super) blob: Option<u64>,
}

/// A transaction that a user has begun.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) txn: TxnId,
    /// What it stores.
    pub(super) puts: BTreeMap<Oid, Put>,
    pub(super) state: TxnState,
    begin: u64,
    end: u64,
}

/// The ledger of a simulation.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) writings: Vec<Writing>,
    reads: Vec<Operation>,
    /// The first rule that was broken.
    broken: Option<String>,
    /// Revisions before this tid may have been packed away.
    packed: Tid,
    pub(super) blobs_read: u64,
    pub(super) conflicts: u64,
}

/// Returns the record that a transaction stores for an object.
pub(super) fn record(writing: usize, oid: Oid, blob: Option<u64>) -> Vec<u8> {
    let mut record = format!("{writing}:{}:{}:", oid.0, blob.map_or("-".to_owned(), |size| size.to_string()));
    let more = (writing * 37 + oid.0 as usize * 11) % 600;
    record.extend(std::iter::repeat_n('.', if more > 590 { 20_000 } else { more }));
    record.into_bytes()
}

/// Returns the bytes of the blob that a transaction stores for an object.
pub(super) fn blob_bytes(writing: usize, oid: Oid, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    Rng::with_seed(writing as u64 * 1_000_003 + oid.0).fill(&mut bytes);
    bytes
}

impl Ledger {
    /// Records that a rule was broken.
    pub(super) fn break_rule(&mut self, what: impl Into<String>) {
        self.broken.get_or_insert(what.into());
    }

    pub(super) fn broken(&self) -> Option<&String> {
        self.broken.as_ref()
    }

    pub(super) fn begin(&mut self, txn: TxnId, moment: u64) -> usize {
        let puts = BTreeMap::new();
        self.writings.push(Writing { txn, puts, state: TxnState::Unknown, begin: moment, end: u64::MAX });
        self.writings.len() - 1
    }

    pub(super) fn put(&mut self, writing: usize, oid: Oid, put: Put) {
        if let Some(writing) = self.writings.get_mut(writing) {
            writing.puts.insert(oid, put);
        }
    }

    /// Records what became of a transaction.
    pub(super) fn decide(&mut self, place: usize, state: TxnState, moment: u64) {
        let Some(writing) = self.writings.get_mut(place) else { return };
        match (writing.state, state) {
            (_, TxnState::Unknown) => {}
            (TxnState::Unknown, state) => (writing.state, writing.end) = (state, moment),
            (before, now) if before == now => writing.end = writing.end.min(moment),
            (before, now) => {
                let txn = writing.txn;
                self.break_rule(format!("transaction {txn} was said to be {before:?}, and then {now:?}"));
            }
        }
    }

    /// Records an outcome that was requested.
    pub(super) fn outcome(&mut self, place: usize, outcome: Outcome, moment: u64) {
        let state = match outcome {
            Outcome::Committed { tid } => TxnState::Committed(tid),
            Outcome::NotCommitted => TxnState::Failed,
        };
        self.decide(place, state, moment);
    }

    pub(super) fn pack(&mut self, before: Tid) {
        self.packed = self.packed.max(before);
    }

    /// Returns whether a revision may have been packed away.
    pub(super) fn may_be_forgotten(&self, tid: Tid) -> bool {
        tid < self.packed
    }

    /// Records the read of an object's current revision.
    pub(super) fn read(&mut self, oid: Oid, found: Option<&Revision>, begin: u64, end: u64) {
        let tid = found.map_or(0, |revision| revision.tid.0);
        self.reads.push(Operation { begin, end, what: What::Read { oid: oid.0, tid } });
        if let Some(revision) = found {
            self.check_revision(oid, revision);
        }
    }

    /// Checks that a revision is what a user has stored. Returns the index of its transaction.
    pub(super) fn check_revision(&mut self, oid: Oid, revision: &Revision) -> Option<usize> {
        let tid = revision.tid;
        let text = String::from_utf8_lossy(&revision.data);
        let number = text.split(':').next().and_then(|number| number.parse::<usize>().ok());
        let whose = number.and_then(|number| Some((number, self.writings.get(number)?)));
        let Some((number, writing)) = whose else {
            self.break_rule(format!("the record of object {oid} at {tid} was never stored"));
            return None;
        };
        let Some(Put { blob, .. }) = writing.puts.get(&oid).copied() else {
            self.break_rule(format!("object {oid} at {tid} is of a transaction that has not stored it"));
            return None;
        };
        let is_right = revision.data == record(number, oid, blob);
        let (state, txn) = (writing.state, writing.txn);
        if !is_right || revision.blob.map(|info| info.size) != blob {
            self.break_rule(format!("the revision of object {oid} at {tid} is not what {txn} has stored"));
        }
        match state {
            TxnState::Failed => {
                self.break_rule(format!(
                    "{txn} was not committed, and yet object {oid} has its revision {tid}"
                ));
            }
            TxnState::Committed(at) if at != tid => {
                self.break_rule(format!("{txn} was committed at {at}, and yet object {oid} has it at {tid}"));
            }
            TxnState::Committed(_) => {}
            // The revision proves the commit. Its own client may never learn of it.
            TxnState::Unknown => self.writings[number].state = TxnState::Committed(tid),
        }
        Some(number)
    }

    /// Returns all commits and reads, for the check of the history.
    pub(super) fn history(&self) -> Vec<Operation> {
        let commits = self.writings.iter().filter_map(|writing| match writing.state {
            TxnState::Committed(tid) => {
                let oids = writing.puts.keys().map(|oid| oid.0).collect();
                let what = What::Commit { tid: tid.0, oids };
                Some(Operation { begin: writing.begin, end: writing.end, what })
            }
            _ => None,
        });
        commits.chain(self.reads.iter().cloned()).collect()
    }

    /// Checks that no two transactions were made from the same revision of an object.
    pub(super) fn check_bases(&self) -> Result<(), String> {
        let mut current: BTreeMap<Oid, Tid> = BTreeMap::new();
        let mut committed: Vec<(Tid, &Writing)> = Vec::new();
        for writing in &self.writings {
            if let TxnState::Committed(tid) = writing.state {
                committed.push((tid, writing));
            }
        }
        committed.sort_by_key(|(tid, _)| *tid);
        for (tid, Writing { txn, puts, .. }) in committed {
            for (oid, Put { base, .. }) in puts {
                let before = current.insert(*oid, tid).unwrap_or(Tid::ZERO);
                // The transaction that wrote a packed revision may never have been answered.
                if before != *base && !self.may_be_forgotten(*base) {
                    return Err(format!(
                        "{txn} was committed at {tid} with object {oid} made from {base}, and that was at {before}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Returns all known commits, with their objects.
    pub(super) fn commits(&self) -> BTreeMap<Tid, Vec<Oid>> {
        let commits = self.writings.iter().filter_map(|writing| match writing.state {
            TxnState::Committed(tid) => Some((tid, writing.puts.keys().copied().collect())),
            _ => None,
        });
        commits.collect()
    }
}
