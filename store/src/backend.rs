//! What differs between stores: where revisions are kept. Everything about transactions is in the
//! [coordinator](crate::transactions::coordinator), which drives a back end and is the only one to do so.

use blobferry_platform::os;
use blobferry_protocol::{
    BlobId, BlobInfo, Conflict, HistoryEntry, Oid, Outcome, Packed, RequestError, Tid, TxnId,
};

use crate::staging::{QuotaPermit, Stage, Staged};
use crate::store::{OpenBlob, StoredRevision};
use crate::transactions::table::Work;
use crate::transactions::write_set::{Spool, WriteSet};

/// Keeps revisions. `visible` is the last transaction that a reader may see: later ones are not announced yet.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Refuses with the reason if nothing can be written any more.
    fn check_writable(&self) -> Result<(), RequestError>;

    /// The last revision of an object that is not after `upto` (nor after `visible`).
    fn newest(&self, oid: Oid, upto: Tid, visible: Tid) -> Result<Option<Found>, RequestError>;

    /// The revisions of an object, newest first.
    fn history(&self, oid: Oid, limit: u32, visible: Tid) -> Result<Vec<HistoryEntry>, RequestError>;

    /// All revisions after one, in the order of tids and oids.
    fn revisions(
        &self,
        after: (Tid, Oid),
        limit: u32,
        visible: Tid,
    ) -> Result<Vec<StoredRevision>, RequestError>;

    /// Opens the blob of a revision that may be seen.
    fn open_blob(&self, blob: BlobId) -> Result<OpenBlob, RequestError>;

    /// Oids that were never given before; `count` is in range.
    fn new_oids(&self, count: u32) -> Result<Oid, RequestError>;

    /// A file for a transaction's records.
    fn spool(&self) -> Spool;

    /// See [`Store::is_inline`](crate::Store::is_inline).
    fn is_inline(&self, size: u64) -> bool;

    /// See [`Store::stage`](crate::Store::stage); the permit is taken already.
    fn stage(&self, size: u64, permit: QuotaPermit) -> Result<Box<dyn Stage>, RequestError>;

    /// Takes over a file that a client has left: see [`Store::store_shared`](crate::Store::store_shared).
    fn adopt(&self, name: &str, info: BlobInfo, permit: QuotaPermit) -> Result<Staged, RequestError>;

    /// The conflicts of a transaction whose objects are all locked.
    ///
    /// # Errors
    /// [`TransactionExists`](RequestError::TransactionExists) where its name was committed under or fenced off.
    fn check(&self, txn: TxnId, changes: &WriteSet) -> Result<Vec<Conflict>, RequestError>;

    /// Makes a batch of work durable, in order and all at once. Called by one thread. Every piece of work has its
    /// own result; what has failed has left nothing.
    fn commit(&self, after: Tid, batch: &[Work]) -> Vec<Result<Outcome, RequestError>>;

    /// Does what may be put off until a batch was answered.
    fn checkpoint_if_large(&self) {}

    /// See [`Store::pack`](crate::Store::pack); `before` is not after the transaction that comes next.
    fn pack(&self, before: Tid) -> Result<Packed, RequestError>;

    /// What there is.
    fn totals(&self) -> Totals;

    /// How often something was synced; see [`Counts::syncs`](crate::Counts::syncs).
    fn syncs(&self) -> u64 {
        0
    }

    /// There will be no more writes.
    fn close(&self) {}
}

/// A revision as a back end finds it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) tid: Tid,
    /// The visible revision that follows.
    pub(crate) next: Option<Tid>,
    /// `None` for a deletion.
    pub(crate) data: Option<Vec<u8>>,
    pub(crate) blob: Option<BlobInfo>,
}

/// What a back end has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Objects that exist.
    pub(crate) objects: u64,
    pub(crate) revisions: u64,
    pub(crate) blobs: u64,
    pub(crate) blob_bytes: u64,
    pub(crate) damaged: u64,
}

impl Totals {
    /// Counts one more revision. `is_new`: its object did not exist before.
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

    /// Counts what a pack has removed. The objects that it removes were deleted before.
    pub(crate) fn subtract(&mut self, packed: Packed) {
        self.revisions -= packed.revisions;
        self.blobs -= packed.blobs;
        self.blob_bytes -= packed.bytes;
    }
}

/// The moment now, as a tid.
pub(crate) fn now() -> Tid {
    Tid::from_unix(os::unix_time()) // where the clock does not move, tids just count
}

/// Every oid was given or used.
pub(crate) fn no_oids_left() -> RequestError {
    RequestError::Limit { what: "object ids".to_owned(), limit: u64::MAX, actual: u64::MAX }
}
