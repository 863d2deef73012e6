//! The trait [`Backend`]: what differs between stores, which is where they keep revisions.
//!
//! Everything about transactions is in the [coordinator](crate::transactions::coordinator), which
//! is the only caller of a back end.

use blobferry_platform::os;
use blobferry_protocol::{
    BlobId, BlobInfo, Conflict, HistoryEntry, Oid, Outcome, Packed, RequestError, Tid, TxnId,
};

use crate::staging::{QuotaPermit, Stage, Staged};
use crate::store::{OpenBlob, StoredRevision};
use crate::transactions::table::Work;
use crate::transactions::write_set::{Spool, WriteSet};

/// Keeps revisions. `visible` is the last transaction that a reader may see: later ones are not yet
/// announced.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Fails with the reason if nothing can be written any more.
    fn check_writable(&self) -> Result<(), RequestError>;

    /// Returns the last revision of an object up to `upto`, which is at most `visible`.
    fn newest(&self, oid: Oid, upto: Tid, visible: Tid) -> Result<Option<Found>, RequestError>;

    /// Returns at most `limit` revisions of an object, newest first.
    fn history(&self, oid: Oid, limit: u32, visible: Tid) -> Result<Vec<HistoryEntry>, RequestError>;

    /// Returns at most `limit` revisions after a given one, ordered by tid, then by oid.
    fn revisions(
        &self,
        after: (Tid, Oid),
        limit: u32,
        visible: Tid,
    ) -> Result<Vec<StoredRevision>, RequestError>;

    /// Opens the blob of a visible revision.
    fn open_blob(&self, blob: BlobId) -> Result<OpenBlob, RequestError>;

    /// Allocates `count` consecutive oids, and returns the first. `count` is in range.
    fn new_oids(&self, count: u32) -> Result<Oid, RequestError>;

    /// Makes a spool for a transaction's records.
    fn spool(&self) -> Spool;

    /// See [`Store::is_inline`](crate::Store::is_inline).
    fn is_inline(&self, size: u64) -> bool;

    /// See [`Store::stage`](crate::Store::stage).
    fn stage(&self, size: u64, permit: QuotaPermit) -> Result<Box<dyn Stage>, RequestError>;

    /// Takes over a client's file: see [`Store::store_shared`](crate::Store::store_shared).
    fn adopt(&self, name: &str, info: BlobInfo, permit: QuotaPermit) -> Result<Staged, RequestError>;

    /// Returns the conflicts of a transaction whose objects are all locked.
    ///
    /// # Errors
    /// [`TransactionExists`](RequestError::TransactionExists) if its name was committed under or
    /// fenced off.
    fn check(&self, txn: TxnId, changes: &WriteSet) -> Result<Vec<Conflict>, RequestError>;

    /// Makes a batch durable, in order and with one sync. Only one thread calls this.
    ///
    /// Returns one result for each item. A failed item has changed nothing.
    fn commit(&self, after: Tid, batch: &[Work]) -> Vec<Result<Outcome, RequestError>>;

    /// Checkpoints the log if it is large. The committer calls this after it has answered a batch.
    fn checkpoint_if_large(&self) {}

    /// See [`Store::pack`](crate::Store::pack). `before` is at most the tid after `last_tid`.
    fn pack(&self, before: Tid) -> Result<Packed, RequestError>;

    /// Returns the totals of all revisions.
    fn totals(&self) -> Totals;

    /// Returns the number of syncs: see [`Counts::syncs`](crate::Counts::syncs).
    fn syncs(&self) -> u64 {
        0
    }

    /// Ends all writing. Reads go on.
    fn close(&self) {}
}

/// A revision that a back end has found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) tid: Tid,
    /// The next visible revision of the object.
    pub(crate) next: Option<Tid>,
    /// `None` for a deletion.
    pub(crate) data: Option<Vec<u8>>,
    pub(crate) blob: Option<BlobInfo>,
}

/// Sums over all revisions of a back end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Objects that exist now.
    pub(crate) objects: u64,
    pub(crate) revisions: u64,
    pub(crate) blobs: u64,
    pub(crate) blob_bytes: u64,
    pub(crate) damaged: u64,
}

impl Totals {
    /// Adds one revision. `is_new`: its object did not exist before.
    pub(crate) fn add(&mut self, is_new: bool, is_deletion: bool, blob: Option<BlobInfo>) {
        self.revisions += 1;
        match (is_new, is_deletion) {
            (true, false) => self.objects += 1,
            (false, true) => self.objects -= 1,
            _ => {}
        }
        if let Some(blob) = blob {
            self.blobs += 1;
            self.blob_bytes += blob.size;
        }
    }

    /// Subtracts what a pack has removed. It only removes objects that were deleted before.
    pub(crate) fn subtract(&mut self, packed: Packed) {
        self.revisions -= packed.revisions;
        self.blobs -= packed.blobs;
        self.blob_bytes -= packed.bytes;
    }
}

/// Returns the current time as a tid.
pub(crate) fn now() -> Tid {
    Tid::from_unix(os::unix_time())
}

/// Returns the error for an exhausted range of oids.
pub(crate) fn no_oids_left() -> RequestError {
    RequestError::Limit { what: "object ids".to_owned(), limit: u64::MAX, actual: u64::MAX }
}
