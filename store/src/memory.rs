//! A store in memory, for tests and for servers whose data may be lost. Other stores must behave
//! the same.

use std::collections::BTreeMap;
use std::ops::Bound;

use blobferry_platform::sync::{Arc, Mutex};
use blobferry_protocol::{
    BlobId, BlobInfo, Conflict, HistoryEntry, Oid, Outcome, Packed, RequestError, Tid, TxnId, TxnMeta,
};

use crate::backend::{Backend, Found, Totals, no_oids_left, now};
use crate::config::StoreConfig;
use crate::errors::OpenError;
use crate::staging::{QuotaPermit, SmallStage, Stage, Staged};
use crate::store::{OpenBlob, StoredRevision};
use crate::transactions::coordinator;
use crate::transactions::coordinator::Coordinator;
use crate::transactions::table::Work;
use crate::transactions::write_set::{Bytes, Spool, WriteSet};

/// A store in memory. Blobs of any size are held in memory. It has no directory, so clients cannot
/// share files with it.
///
/// ```
/// use blobferry_store::{MemoryStore, Store, StoreConfig};
/// use blobferry_protocol::Tid;
///
/// let store = MemoryStore::new(StoreConfig::default())?;
/// assert_eq!(store.last_tid(), Tid::ZERO);
/// # Ok::<(), blobferry_store::OpenError>(())
/// ```
pub type MemoryStore = Coordinator<MemoryBackend>;

impl MemoryStore {
    /// Makes an empty store, and starts its threads.
    ///
    /// # Errors
    /// [`OpenError::Thread`].
    pub fn new(config: StoreConfig) -> Result<MemoryStore, OpenError> {
        coordinator::start(MemoryBackend::default(), config, Tid::ZERO)
    }
}

/// The back end of a [`MemoryStore`]: revisions in memory.
#[derive(Debug, Default)]
pub struct MemoryBackend(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    revisions: BTreeMap<(Oid, Tid), StoredRecord>,
    transactions: BTreeMap<Tid, TxnMeta>,
    names: BTreeMap<TxnId, Outcome>,
    /// The last oid that was allocated or used.
    last_oid: u64,
    totals: Totals,
}

#[derive(Clone, Debug)]
struct StoredRecord {
    /// `None` for a deletion.
    data: Option<Vec<u8>>,
    blob: Option<(BlobInfo, Arc<[u8]>)>,
}

impl StoredRecord {
    fn size(&self) -> Option<u64> {
        self.data.as_ref().map(|data| data.len() as u64)
    }

    fn info(&self) -> Option<BlobInfo> {
        self.blob.as_ref().map(|(info, _)| *info)
    }
}

impl Tables {
    /// Iterates over the revisions of one object, oldest first.
    fn of(&self, oid: Oid) -> impl DoubleEndedIterator<Item = (Tid, &StoredRecord)> {
        self.revisions.range((oid, Tid::ZERO)..=(oid, Tid::MAX)).map(|((_, tid), kept)| (*tid, kept))
    }

    /// Returns the revision that a change of the object must be based on.
    fn base(&self, oid: Oid) -> Tid {
        match self.of(oid).next_back() {
            Some((tid, StoredRecord { data: Some(_), .. })) => tid,
            _ => Tid::ZERO,
        }
    }

    fn commit(
        &mut self,
        tid: Tid,
        txn: TxnId,
        meta: &TxnMeta,
        changes: &mut WriteSet,
    ) -> Result<(), RequestError> {
        let mut revisions = Vec::new();
        let mut after = None;
        while let Some(entry) = changes.entry_after(after)? {
            after = Some(entry.oid);
            revisions.push(entry);
        }
        for entry in revisions {
            let kept = match entry.body {
                None => StoredRecord { data: None, blob: None },
                Some(body) => {
                    let blob = body.blob.map(|(info, bytes)| match bytes {
                        Bytes::Small(bytes) => (info, bytes.into()),
                        Bytes::InFile => (info, Arc::default()), // cannot happen: this store stages no files
                    });
                    StoredRecord { data: Some(body.data), blob }
                }
            };
            self.totals.add(entry.base == Tid::ZERO, kept.data.is_none(), kept.info());
            self.revisions.insert((entry.oid, tid), kept);
        }
        self.last_oid = self.last_oid.max(changes.last_oid().map_or(0, |oid| oid.0));
        self.transactions.insert(tid, meta.clone());
        self.names.insert(txn, Outcome::Committed { tid });
        Ok(())
    }
}

impl Backend for MemoryBackend {
    fn check_writable(&self) -> Result<(), RequestError> {
        Ok(())
    }

    fn newest(&self, oid: Oid, upto: Tid, visible: Tid) -> Result<Option<Found>, RequestError> {
        let tables = self.0.lock();
        let found = tables.of(oid).rfind(|(tid, _)| *tid <= upto);
        Ok(found.map(|(tid, kept)| {
            let next = tables.of(oid).map(|(next, _)| next).find(|next| *next > tid && *next <= visible);
            Found { tid, next, data: kept.data.clone(), blob: kept.info() }
        }))
    }

    fn history(&self, oid: Oid, limit: u32, visible: Tid) -> Result<Vec<HistoryEntry>, RequestError> {
        let tables = self.0.lock();
        let entry = |(tid, kept): (Tid, &StoredRecord)| HistoryEntry {
            tid,
            meta: tables.transactions.get(&tid).cloned().unwrap_or_default(),
            size: kept.size(),
            blob: kept.info(),
        };
        let seen = tables.of(oid).rev().filter(|(tid, _)| *tid <= visible);
        Ok(seen.take(limit as usize).map(entry).collect())
    }

    fn revisions(
        &self,
        after: (Tid, Oid),
        limit: u32,
        visible: Tid,
    ) -> Result<Vec<StoredRevision>, RequestError> {
        let tables = self.0.lock();
        let all = tables.revisions.iter().map(|((oid, tid), kept)| ((*tid, *oid), kept));
        let sorted: BTreeMap<(Tid, Oid), &StoredRecord> =
            all.filter(|((tid, _), _)| *tid <= visible).collect();
        let listed = sorted.range((Bound::Excluded(after), Bound::Unbounded)).take(limit as usize);
        let entry = |(&(tid, oid), kept): (&(Tid, Oid), &&StoredRecord)| StoredRevision {
            tid,
            oid,
            size: kept.size(),
            blob: kept.info(),
        };
        Ok(listed.map(entry).collect())
    }

    fn open_blob(&self, blob: BlobId) -> Result<OpenBlob, RequestError> {
        let tables = self.0.lock();
        let kept = tables.revisions.get(&(blob.oid, blob.tid)).and_then(|kept| kept.blob.as_ref());
        let (info, bytes) = kept.ok_or(RequestError::NoSuchBlob { blob })?;
        Ok(OpenBlob::Small { info: *info, bytes: bytes.to_vec() })
    }

    fn new_oids(&self, count: u32) -> Result<Oid, RequestError> {
        let mut tables = self.0.lock();
        let first = tables.last_oid.saturating_add(1);
        tables.last_oid = tables.last_oid.checked_add(count.into()).ok_or_else(no_oids_left)?;
        Ok(Oid(first))
    }

    fn spool(&self) -> Spool {
        Spool::new(usize::MAX, "memory".as_ref())
    }

    fn is_inline(&self, _: u64) -> bool {
        true
    }

    fn stage(&self, size: u64, permit: QuotaPermit) -> Result<Box<dyn Stage>, RequestError> {
        Ok(Box::new(SmallStage::new(size, permit)))
    }

    fn adopt(&self, _: &str, _: BlobInfo, _: QuotaPermit) -> Result<Staged, RequestError> {
        Err(RequestError::Unsupported {
            what: "files can be shared with a store that has a directory only".to_owned(),
        })
    }

    fn check(&self, txn: TxnId, changes: &WriteSet) -> Result<Vec<Conflict>, RequestError> {
        let tables = self.0.lock();
        if tables.names.contains_key(&txn) {
            return Err(RequestError::TransactionExists { txn });
        }
        let conflict = |(oid, base)| {
            let committed = tables.base(oid);
            (base != committed).then_some(Conflict { oid, committed, base })
        };
        Ok(changes.bases().filter_map(conflict).collect())
    }

    fn commit(&self, after: Tid, batch: &[Work]) -> Vec<Result<Outcome, RequestError>> {
        let mut tables = self.0.lock();
        let mut last = after;
        let mut work = |work: &Work| match work {
            Work::Commit { txn, meta, changes } => {
                last = last.next(now());
                tables.commit(last, *txn, meta, &mut changes.lock())?;
                Ok(Outcome::Committed { tid: last })
            }
            Work::Fence(txn) => Ok(*tables.names.entry(*txn).or_insert(Outcome::NotCommitted)),
        };
        batch.iter().map(&mut work).collect()
    }

    fn pack(&self, before: Tid) -> Result<Packed, RequestError> {
        let mut tables = self.0.lock();
        let mut packed = Packed::default();
        let mut kept = BTreeMap::new();
        // In descending order: of each object, the first revision before `before` is the one to
        // keep.
        let mut current_of = None;
        for ((oid, tid), revision) in std::mem::take(&mut tables.revisions).into_iter().rev() {
            let newest_of_all =
                kept.range((oid, Tid::ZERO)..).next().is_none_or(|((next, _), _)| *next != oid);
            let keep =
                tid >= before || current_of != Some(oid) && (revision.data.is_some() || !newest_of_all);
            if tid < before {
                current_of = Some(oid);
            }
            if keep {
                kept.insert((oid, tid), revision);
            } else {
                packed.revisions += 1;
                packed.blobs += u64::from(revision.blob.is_some());
                packed.bytes += revision.info().map_or(0, |info| info.size);
            }
        }
        tables.revisions = kept;
        tables.totals.subtract(packed);
        Ok(packed)
    }

    fn totals(&self) -> Totals {
        self.0.lock().totals
    }
}
