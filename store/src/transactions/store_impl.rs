//! Implements [`Store`] over any back end: the rules of reading, and the entry to transactions.

use std::sync::atomic::Ordering;

use blobferry_protocol::{
    BlobId, BlobInfo, Digest, HistoryEntry, Oid, Outcome, Packed, RequestError, Revision, Tid, TxnId, TxnMeta,
};

use crate::backend::{Backend, Found};
use crate::staging::{Stage, Staged};
use crate::store::{
    Counts, Done, MAX_LISTED, MAX_NEW_OIDS, OpenBlob, Store, StoredRevision, Subscriber, Subscription, Vote,
};
use crate::transactions::coordinator::Coordinator;

/// Returns the revision that was found, unless it is a deletion.
fn existing(oid: Oid, found: Found) -> Result<Revision, RequestError> {
    let Found { tid, next, data, blob } = found;
    let data = data.ok_or(RequestError::NoSuchObject { oid })?;
    Ok(Revision { tid, next, data, blob })
}

impl<B: Backend> Store for Coordinator<B> {
    fn last_tid(&self) -> Tid {
        self.core.publisher.last()
    }

    fn new_oids(&self, count: u32) -> Result<(Oid, u32), RequestError> {
        self.core.check_writable()?;
        let count = count.clamp(1, MAX_NEW_OIDS);
        Ok((self.core.backend.new_oids(count)?, count))
    }

    fn load(&self, oid: Oid) -> Result<Revision, RequestError> {
        let found = self.core.read(|visible| self.core.backend.newest(oid, visible, visible))?;
        existing(oid, found.ok_or(RequestError::NoSuchObject { oid })?)
    }

    fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, RequestError> {
        let backend = &self.core.backend;
        if let Some(upto) = before.0.checked_sub(1).map(Tid)
            && let Some(found) = self.core.read(|visible| backend.newest(oid, upto.min(visible), visible))?
        {
            return existing(oid, found).map(Some);
        }
        match self.core.read(|visible| backend.newest(oid, visible, visible))? {
            Some(_) => Ok(None),
            None => Err(RequestError::NoSuchObject { oid }),
        }
    }

    fn load_serial(&self, oid: Oid, tid: Tid) -> Result<Revision, RequestError> {
        let visible = self.core.publisher.last();
        match self.core.backend.newest(oid, tid.min(visible), visible)? {
            Some(found) if found.tid == tid => existing(oid, found),
            _ => Err(RequestError::NoSuchRevision { oid, tid }),
        }
    }

    fn history(&self, oid: Oid, limit: u32) -> Result<Vec<HistoryEntry>, RequestError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let limit = limit.min(MAX_LISTED);
        let some = |entries: Vec<HistoryEntry>| (!entries.is_empty()).then_some(entries);
        self.core
            .read(|visible| self.core.backend.history(oid, limit, visible).map(some))?
            .ok_or(RequestError::NoSuchObject { oid })
    }

    fn revisions(&self, after: Option<(Tid, Oid)>, limit: u32) -> Result<Vec<StoredRevision>, RequestError> {
        // No transaction has the id 0, so nothing is skipped.
        let after = after.unwrap_or((Tid::ZERO, Oid(u64::MAX)));
        self.core.backend.revisions(after, limit.min(MAX_LISTED), self.last_tid())
    }

    fn open_blob(&self, blob: BlobId) -> Result<OpenBlob, RequestError> {
        if blob.tid > self.last_tid() {
            return Err(RequestError::NoSuchBlob { blob });
        }
        self.core.backend.open_blob(blob)
    }

    fn begin(&self, txn: TxnId, meta: TxnMeta) -> Result<(), RequestError> {
        self.core.begin(txn, meta)
    }

    fn store(&self, txn: TxnId, oid: Oid, base: Tid, data: Vec<u8>) -> Result<(), RequestError> {
        self.core.change(txn, |changes| changes.put(oid, base, &data, None))
    }

    fn delete(&self, txn: TxnId, oid: Oid, base: Tid) -> Result<(), RequestError> {
        self.core.change(txn, |changes| match base {
            Tid::ZERO => {
                changes.take_back(oid);
                Ok(())
            }
            _ => changes.delete(oid, base),
        })
    }

    fn is_inline(&self, size: u64) -> bool {
        self.core.backend.is_inline(size)
    }

    fn stage(&self, size: u64) -> Result<Box<dyn Stage>, RequestError> {
        self.core.check_writable()?;
        let permit = self.core.quota.take(size)?;
        self.core.backend.stage(size, permit).map(|stage| self.core.quota.count(stage))
    }

    fn store_blob(
        &self,
        txn: TxnId,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        staged: Staged,
    ) -> Result<(), RequestError> {
        self.core.change(txn, |changes| changes.put(oid, base, &data, Some(staged)))
    }

    fn store_shared(
        &self,
        txn: TxnId,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        name: &str,
        size: u64,
        digest: Digest,
    ) -> Result<(), RequestError> {
        self.core.check_open(txn)?;
        let adopt = |permit| self.core.backend.adopt(name, BlobInfo { size, digest }, permit);
        let staged = self.core.quota.take(size).and_then(adopt);
        self.core.change(txn, |changes| changes.put(oid, base, &data, Some(staged?)))
    }

    fn vote(&self, txn: TxnId, done: Done<Vote>) {
        self.core.vote(txn, done);
    }

    fn finish(&self, txn: TxnId, done: Done<Tid>) {
        self.core.finish(txn, done);
    }

    fn abort(&self, txn: TxnId) {
        self.core.abort(txn);
    }

    fn outcome(&self, txn: TxnId, done: Done<Outcome>) {
        self.core.outcome(txn, done);
    }

    fn pack(&self, before: Tid) -> Result<Packed, RequestError> {
        self.core.check_writable()?;
        // A commit that is not announced yet replaces nothing for readers.
        let next = Tid(self.last_tid().0.saturating_add(1));
        self.core.backend.pack(before.min(next))
    }

    fn counts(&self) -> Counts {
        let totals = self.core.backend.totals();
        let (counters, open) = self.core.table.with_table(|table| (table.counters, table.open()));
        Counts {
            objects: totals.objects,
            revisions: totals.revisions,
            blobs: totals.blobs,
            blob_bytes: totals.blob_bytes,
            damaged: totals.damaged,
            commits: counters.commits,
            batches: self.core.batches.load(Ordering::Relaxed),
            syncs: self.core.backend.syncs(),
            aborts: counters.aborts,
            timeouts: counters.timeouts,
            conflicts: counters.conflicts,
            open,
            staged_bytes: self.core.quota.taken(),
            uploads: self.core.quota.uploads(),
        }
    }

    fn subscribe(&self, to: Subscriber) -> Subscription {
        self.core.publisher.subscribe(to)
    }

    fn close(&self) {
        self.threads.stop();
        self.core.backend.close();
    }
}
