//! Makes transactions in a store, and states for each what was intended and answered.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use blobferry_protocol::{Oid, Outcome, RequestError, Tid, TxnId, TxnMeta};
use blobferry_store::{Staged, Store, Vote};

use super::{Emit, wait_for};
use crate::contents::{Kind, bytes, digest};
use crate::ledger::{Change, Statement};

/// What to do with an object.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Stores a record of this size, and a blob if the second size is given. Sizes are in bytes.
    Store(usize, Option<usize>),
    /// Stores the same, with a blob in a file that the server takes over.
    Share(usize, usize),
    /// Deletes the object.
    Delete,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    /// Aborted after all stores.
    Abort,
    /// Aborted after the vote.
    AbortVoted,
}

/// Makes transactions, one after the other.
pub(crate) struct Committer<'a> {
    store: &'a dyn Store,
    /// Where the server takes files over.
    tmp: PathBuf,
    emit: Emit<'a>,
    /// The first half of its transactions' ids.
    stream: u64,
    next: u64,
    /// The objects that it has created, with their current revisions.
    objects: BTreeMap<Oid, Tid>,
    /// What was committed.
    committed: Vec<(Tid, TxnId, Change)>,
}

impl<'a> Committer<'a> {
    /// Creates a committer with a stream that no other has.
    pub(crate) fn new(store: &'a dyn Store, server: &Path, stream: u64, emit: Emit<'a>) -> Committer<'a> {
        let tmp = server.join("blobs/tmp");
        Committer { store, tmp, emit, stream, next: 0, objects: BTreeMap::new(), committed: Vec::new() }
    }

    /// Returns the existing objects.
    pub(crate) fn objects(&self) -> Vec<Oid> {
        self.objects.keys().copied().collect()
    }

    /// Returns what was committed, in order.
    pub(crate) fn committed(&self) -> &[(Tid, TxnId, Change)] {
        &self.committed
    }

    /// Allocates oids.
    pub(crate) fn new_oids(&self, count: u32) -> Result<Vec<Oid>, RequestError> {
        let (first, count) = self.store.new_oids(count).inspect_err(|error| self.failed(error))?;
        (self.emit)(Statement::NewOids { first, count });
        Ok((first.0..).take(count as usize).map(Oid).collect())
    }

    /// Commits a transaction.
    pub(crate) fn commit(&mut self, ops: &[(Oid, Op)]) -> Result<Tid, RequestError> {
        self.transact(ops, End::Commit).map(|tid| tid.unwrap_or(Tid::ZERO))
    }

    /// Makes one transaction. Returns `None` if it was to be aborted.
    pub(crate) fn transact(&mut self, ops: &[(Oid, Op)], end: End) -> Result<Option<Tid>, RequestError> {
        let txn = self.name();
        // Skips deletions of objects that do not exist: the transaction that creates one may have
        // been refused.
        let is_there = |(oid, op): &&(Oid, Op)| !matches!(op, Op::Delete) || self.objects.contains_key(oid);
        let ops: Vec<(Oid, Op)> = ops.iter().filter(is_there).copied().collect();
        let changes: Vec<Change> = ops.iter().map(|(oid, op)| change(*oid, *op)).collect();
        (self.emit)(Statement::Intends { txn, changes: changes.clone() });
        let prepared = self.prepare(txn, &ops, end);
        if prepared.is_err() || end != End::Commit {
            self.store.abort(txn);
            let reason = prepared.as_ref().err().map(ToString::to_string).unwrap_or_default();
            (self.emit)(Statement::Refused { txn, reason });
            return prepared.map(|()| None);
        }
        let finished = wait_for(|done| self.store.finish(txn, done));
        match &finished {
            Ok(tid) => {
                (self.emit)(Statement::Committed { txn, tid: *tid });
                for change in changes {
                    match change.record {
                        Some(_) => self.objects.insert(change.oid, *tid),
                        None => self.objects.remove(&change.oid),
                    };
                    self.committed.push((*tid, txn, change));
                }
            }
            Err(RequestError::Undecided { .. }) => (self.emit)(Statement::Undecided { txn }),
            Err(error) => (self.emit)(Statement::Refused { txn, reason: error.to_string() }),
        }
        finished.map(Some)
    }

    /// Does everything before the commit.
    fn prepare(&self, txn: TxnId, ops: &[(Oid, Op)], end: End) -> Result<(), RequestError> {
        let meta = TxnMeta { user: b"user1".to_vec(), description: txn.0.to_vec() };
        self.store.begin(txn, meta)?;
        for (oid, op) in ops {
            self.change(txn, *oid, *op)?;
        }
        if end == End::Abort {
            return Ok(());
        }
        match wait_for(|done| self.store.vote(txn, done))? {
            Vote::Ready => Ok(()),
            Vote::Conflicts(conflicts) => {
                Err(RequestError::Failed { detail: format!("it conflicts: {conflicts:?}") })
            }
        }
    }

    fn change(&self, txn: TxnId, oid: Oid, op: Op) -> Result<(), RequestError> {
        let base = self.objects.get(&oid).copied().unwrap_or(Tid::ZERO);
        match op {
            Op::Delete => self.store.delete(txn, oid, base),
            Op::Store(size, None) => self.store.store(txn, oid, base, bytes(txn, oid, Kind::Record, size)),
            Op::Store(size, Some(blob)) => {
                let staged = self.stage(&bytes(txn, oid, Kind::Blob, blob))?;
                self.store.store_blob(txn, oid, base, bytes(txn, oid, Kind::Record, size), staged)
            }
            Op::Share(size, blob) => {
                let (name, blob) = (format!("shared-{txn}"), bytes(txn, oid, Kind::Blob, blob));
                if let Err(error) = fs::write(self.tmp.join(&name), &blob) {
                    return Err(RequestError::Source { detail: error.to_string() });
                }
                let (record, size) = (bytes(txn, oid, Kind::Record, size), blob.len() as u64);
                self.store.store_shared(txn, oid, base, record, &name, size, digest(&blob))
            }
        }
    }

    fn stage(&self, blob: &[u8]) -> Result<Staged, RequestError> {
        let mut stage = self.store.stage(blob.len() as u64)?;
        blob.chunks(10_000).try_for_each(|chunk| stage.write(chunk))?;
        stage.complete(digest(blob))
    }

    /// Fences a transaction that was never begun: requests its outcome, after which it can never
    /// commit.
    pub(crate) fn fence(&mut self) -> Result<(), RequestError> {
        let txn = self.name();
        let outcome =
            wait_for(|done| self.store.outcome(txn, done)).inspect_err(|error| self.failed(error))?;
        if outcome != Outcome::NotCommitted {
            (self.emit)(Statement::Violation { what: format!("{txn} was never begun, and is {outcome:?}") });
        }
        Ok(())
    }

    /// Requests a pack of the revisions before a tid.
    pub(crate) fn pack(&self, before: Tid) -> Result<(), RequestError> {
        (self.emit)(Statement::PackBegins { before });
        self.store.pack(before).inspect_err(|error| self.failed(error))?;
        (self.emit)(Statement::PackDone { before });
        Ok(())
    }

    fn failed(&self, error: &RequestError) {
        (self.emit)(Statement::Failed { what: error.to_string() });
    }

    fn name(&mut self) -> TxnId {
        self.next += 1;
        let mut name = [0; 16];
        let (stream, number) = name.split_at_mut(8);
        stream.copy_from_slice(&self.stream.to_be_bytes());
        number.copy_from_slice(&self.next.to_be_bytes());
        TxnId(name)
    }
}

fn change(oid: Oid, op: Op) -> Change {
    let (record, blob) = match op {
        Op::Store(record, blob) => (Some(record), blob),
        Op::Share(record, blob) => (Some(record), Some(blob)),
        Op::Delete => (None, None),
    };
    Change { oid, record, blob }
}
