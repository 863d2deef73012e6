//! The trait [`Store`]: the interface between servers and storage.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use blobferry_protocol::{
    BlobId, BlobInfo, Conflict, Digest, HistoryEntry, Oid, Outcome, Packed, RequestError, Revision, Tid,
    TxnId, TxnMeta,
};

use crate::staging::{Stage, Staged};

/// A completion: takes an answer that may come later, from another thread.
///
/// The store calls it exactly once and holds none of its own locks then, so a completion may call
/// the store. It must be quick, since other answers wait behind it.
pub type Done<T> = Box<dyn FnOnce(Result<T, RequestError>) + Send>;

/// Takes every commit: its id, and the objects that it stored or deleted.
pub type Subscriber = Arc<dyn Fn(Tid, &[Oid]) + Send + Sync>;

/// The most oids that one call of [`Store::new_oids`] allocates.
pub const MAX_NEW_OIDS: u32 = 10_000;
/// The most entries that one call of [`Store::history`] or [`Store::revisions`] returns.
pub const MAX_LISTED: u32 = 1_000;

/// The answer to a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vote {
    /// The transaction holds its locks and can be finished. Only a crash, a failed disk or a passed
    /// deadline can prevent that now.
    Ready,
    /// Other transactions have changed these objects since they were read. The transaction is open
    /// as before, without locks.
    Conflicts(Vec<Conflict>),
}

/// A blob that is ready to be read.
///
/// A server sends a file without copying it, and may read it more than once. So a store that gets
/// its blobs from elsewhere needs to return their bytes, or a file that has them.
#[derive(Debug)]
pub enum OpenBlob {
    /// A small blob, in memory.
    Small {
        /// Its size and digest.
        info: BlobInfo,
        /// All of its bytes.
        bytes: Vec<u8>,
    },
    /// A blob in a file of its own.
    File {
        /// Its size (which is the file's) and digest.
        info: BlobInfo,
        /// The file, open for reading. It stays readable if the blob is packed away in the
        /// meantime.
        file: File,
        /// Where it is, for reports of damage.
        path: PathBuf,
    },
}

impl OpenBlob {
    /// Returns the blob's size and digest.
    #[must_use]
    pub fn info(&self) -> BlobInfo {
        match self {
            OpenBlob::Small { info, .. } | OpenBlob::File { info, .. } => *info,
        }
    }
}

/// One revision as [`Store::revisions`] lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRevision {
    /// The transaction that stored it.
    pub tid: Tid,
    /// The object.
    pub oid: Oid,
    /// The size of its record in bytes; `None` if this revision deleted the object.
    pub size: Option<u64>,
    /// The blob, if it has one.
    pub blob: Option<BlobInfo>,
}

/// What a store contains, and what it has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Objects that exist now. Deleted ones are not counted.
    pub objects: u64,
    /// Revisions of all objects, including deletions.
    pub revisions: u64,
    /// Revisions that have a blob.
    pub blobs: u64,
    /// Bytes of all those blobs.
    pub blob_bytes: u64,
    /// Blobs whose file was missing or had the wrong length when the store was opened.
    pub damaged: u64,
    /// Transactions committed since the store was opened.
    pub commits: u64,
    /// Durable writes that these took: one for each batch of transactions that finished together.
    pub batches: u64,
    /// Syncs since the store was opened: how often it waited for the system to write to the disk.
    ///
    /// A batch takes one. Each blob in a file takes one more, and a large one several (see
    /// [`StoreConfig::sync_ahead`](crate::StoreConfig::sync_ahead)). Each directory that got a file
    /// takes one more. A checkpoint of the database, which only happens after many bytes of
    /// commits, takes three. A store in memory has none.
    pub syncs: u64,
    /// Transactions aborted since the store was opened, for whatever reason.
    pub aborts: u64,
    /// Those of them that missed a deadline: for their locks, or for being finished after the vote.
    pub timeouts: u64,
    /// Votes since the store was opened that found conflicts.
    pub conflicts: u64,
    /// Transactions that are open now, in any phase.
    pub open: u64,
    /// Bytes of records and blobs that open transactions have staged now.
    pub staged_bytes: u64,
    /// Blobs that are being staged now.
    pub uploads: u64,
}

impl Counts {
    /// Returns all counts with their names, as [`Reply::Status`](blobferry_protocol::Reply::Status)
    /// has them.
    #[must_use]
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("objects", self.objects),
            ("revisions", self.revisions),
            ("blobs", self.blobs),
            ("blob_bytes", self.blob_bytes),
            ("damaged", self.damaged),
            ("commits", self.commits),
            ("batches", self.batches),
            ("syncs", self.syncs),
            ("aborts", self.aborts),
            ("timeouts", self.timeouts),
            ("conflicts", self.conflicts),
            ("open", self.open),
            ("staged_bytes", self.staged_bytes),
            ("uploads", self.uploads),
        ]
    }
}

/// Keeps a subscriber subscribed until it is dropped.
///
/// A commit that is being announced during the drop may still reach the subscriber once.
#[must_use = "dropping it ends the subscription"]
pub struct Subscription(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Subscription {
    /// Makes a subscription. Dropping it calls `end`.
    pub fn new(end: impl FnOnce() + Send + 'static) -> Subscription {
        Subscription(Mutex::new(Some(Box::new(end))))
    }

    /// Makes a subscription to a store that never changes.
    pub fn none() -> Subscription {
        Subscription(Mutex::new(None))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(end) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            end();
        }
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscription")
    }
}

fn read_only() -> RequestError {
    RequestError::ReadOnly { reason: "this store is read-only".to_owned() }
}

/// Keeps a server's revisions: the one interface between servers and storage.
///
/// Errors are what the client sees. Every call may block for a disk read, and those that are said
/// to block may wait for a sync. Only [`begin`](Store::begin), [`last_tid`](Store::last_tid) and
/// [`subscribe`](Store::subscribe) never block.
///
/// # Transactions
///
/// Nothing is checked or locked before the vote. In a transaction, the last store of an object
/// counts: it replaces earlier ones, including their blobs. An error of a store dooms the
/// transaction: it is incomplete, so it can only be aborted.
///
/// A call that does not fit its transaction fails with
/// [`NoSuchTransaction`](RequestError::NoSuchTransaction),
/// [`WrongPhase`](RequestError::WrongPhase), [`Doomed`](RequestError::Doomed), or
/// [`Aborted`](RequestError::Aborted) if the store has aborted it. After a failed sync, every write
/// is refused with [`ReadOnly`](RequestError::ReadOnly). After [`close`](Store::close), every write
/// is refused with [`Stopping`](RequestError::Stopping).
///
/// # Implementing it
///
/// A read-only store implements the seven methods that read: all others have defaults. Those that
/// would write refuse with [`ReadOnly`](RequestError::ReadOnly). A store whose contents can change
/// must also implement [`subscribe`](Store::subscribe), as clients rely on it to drop what they
/// have cached.
pub trait Store: Send + Sync + 'static {
    /// Returns the last transaction that readers see.
    fn last_tid(&self) -> Tid;

    /// Returns the current revision of an object.
    ///
    /// The answer is from a moment during the call. A commit that is announced during it may or may
    /// not be included.
    ///
    /// # Errors
    /// [`NoSuchObject`](RequestError::NoSuchObject), also if it was deleted.
    fn load(&self, oid: Oid) -> Result<Revision, RequestError>;

    /// Returns the last revision of an object before a transaction. Returns `None` if the object
    /// exists now, but did not then.
    ///
    /// # Errors
    /// [`NoSuchObject`](RequestError::NoSuchObject) if it never existed, or was deleted at that
    /// time.
    fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, RequestError>;

    /// Returns one exact revision of an object.
    ///
    /// # Errors
    /// [`NoSuchRevision`](RequestError::NoSuchRevision), or
    /// [`NoSuchObject`](RequestError::NoSuchObject) if that revision deleted the object.
    fn load_serial(&self, oid: Oid, tid: Tid) -> Result<Revision, RequestError>;

    /// Returns the revisions of an object, newest first: at most `limit`, and at most
    /// [`MAX_LISTED`].
    ///
    /// # Errors
    /// [`NoSuchObject`](RequestError::NoSuchObject) if it never existed. A deleted object has a
    /// history.
    fn history(&self, oid: Oid, limit: u32) -> Result<Vec<HistoryEntry>, RequestError>;

    /// Lists the revisions of all objects after a given one, ordered by transaction, then by oid.
    ///
    /// Returns at most `limit`, and at most [`MAX_LISTED`]. An empty list is the end.
    ///
    /// # Errors
    /// Those of the disk.
    fn revisions(&self, after: Option<(Tid, Oid)>, limit: u32) -> Result<Vec<StoredRevision>, RequestError>;

    /// Opens a blob.
    ///
    /// # Errors
    /// [`NoSuchBlob`](RequestError::NoSuchBlob). [`Damaged`](RequestError::Damaged) if its file is
    /// missing, is unreadable or has the wrong length, or if a small blob's bytes have another
    /// digest.
    fn open_blob(&self, blob: BlobId) -> Result<OpenBlob, RequestError>;

    /// Allocates consecutive oids for new objects. Returns the first, and how many there are: at
    /// least 1, at most `count`, and at most [`MAX_NEW_OIDS`].
    ///
    /// No oid is allocated twice, even after a crash, and none is 0. A commit of an object under an
    /// oid of the client's choice uses up all oids below it. Blocks for a sync once in about a
    /// million oids.
    ///
    /// # Errors
    /// [`Limit`](RequestError::Limit) if none are left, and errors of the disk.
    fn new_oids(&self, count: u32) -> Result<(Oid, u32), RequestError> {
        let _ = count;
        Err(read_only())
    }

    /// Opens a transaction, in memory only.
    ///
    /// A name that was committed under, or whose outcome was requested, is refused here or at the
    /// vote.
    ///
    /// # Errors
    /// [`TransactionExists`](RequestError::TransactionExists), [`Limit`](RequestError::Limit).
    fn begin(&self, txn: TxnId, meta: TxnMeta) -> Result<(), RequestError> {
        let _ = (txn, meta);
        Err(read_only())
    }

    /// Stores an object's record, without a blob. `base` is the revision that it was made from:
    /// [`Tid::ZERO`] for an object that does not exist.
    ///
    /// # Errors
    /// [`Limit`](RequestError::Limit) and errors of the disk.
    fn store(&self, txn: TxnId, oid: Oid, base: Tid, data: Vec<u8>) -> Result<(), RequestError> {
        let _ = (txn, oid, base, data);
        Err(read_only())
    }

    /// Deletes an object: stores a revision that says so.
    ///
    /// With base [`Tid::ZERO`] there is nothing to delete. That takes back everything that this
    /// transaction has stored for the object.
    ///
    /// # Errors
    /// [`Limit`](RequestError::Limit).
    fn delete(&self, txn: TxnId, oid: Oid, base: Tid) -> Result<(), RequestError> {
        let _ = (txn, oid, base);
        Err(read_only())
    }

    /// Returns whether a blob of `size` bytes is kept beside its object's record. Such a blob is
    /// staged without a file, and without waiting for a sync.
    fn is_inline(&self, size: u64) -> bool {
        let _ = size;
        false
    }

    /// Reserves space for `size` bytes of a blob that is about to arrive.
    ///
    /// # Errors
    /// [`NoSpace`](RequestError::NoSpace), [`Limit`](RequestError::Limit).
    fn stage(&self, size: u64) -> Result<Box<dyn Stage>, RequestError> {
        let _ = size;
        Err(read_only())
    }

    /// Stores an object's record with a blob that was staged in this store.
    ///
    /// # Errors
    /// As for [`store`](Store::store), and [`Failed`](RequestError::Failed) for a blob of another
    /// store.
    fn store_blob(
        &self,
        txn: TxnId,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        staged: Staged,
    ) -> Result<(), RequestError> {
        let _ = (txn, oid, base, data, staged);
        Err(read_only())
    }

    /// Stores an object's record with a blob that a client has put into the server's `blobs/tmp` as
    /// the file `name`. The store takes the file over, reads it to check `size` and `digest`, and
    /// syncs it: this blocks.
    ///
    /// No path from a peer is followed (CVE-2009-2701): `name` is one plain component, not hidden,
    /// and must be a regular file of the server's own user with one link.
    ///
    /// # Errors
    /// [`Mismatch`](RequestError::Mismatch) if it is not such a file, or not the one announced.
    /// [`Unsupported`](RequestError::Unsupported) from a store that has no directory.
    #[expect(clippy::too_many_arguments, reason = "they are the fields of one message")]
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
        let _ = (txn, oid, base, data, name, size, digest);
        Err(read_only())
    }

    /// Votes: checks whether a transaction can be committed, and ensures that it can from then on.
    ///
    /// The vote locks all of the transaction's objects at once. It waits until none of them is
    /// locked, or wanted by an earlier vote. Then each base is compared with the object's current
    /// revision. The store calls `done` at once, or from another thread after the wait. If the wait
    /// takes too long, the vote fails with [`Deadline`](RequestError::Deadline) and the transaction
    /// is aborted. The locks are held until the transaction is finished or aborted, or misses its
    /// deadline for being finished.
    fn vote(&self, txn: TxnId, done: Done<Vote>) {
        let _ = txn;
        done(Err(read_only()));
    }

    /// Commits a transaction that was voted for. The store calls `done` from another thread when
    /// the commit is durable, its subscribers were notified, and readers see it.
    fn finish(&self, txn: TxnId, done: Done<Tid>) {
        let _ = txn;
        done(Err(read_only()));
    }

    /// Aborts a transaction, whatever its phase, if it exists. A pending vote gets
    /// [`Aborted`](RequestError::Aborted). A transaction that is being finished is not affected.
    fn abort(&self, txn: TxnId) {
        let _ = txn;
    }

    /// Determines what became of a transaction.
    ///
    /// If the transaction is being finished, the answer waits for that. If it is not committed, it
    /// is aborted and its name can never be committed under again. So the answer stays true.
    fn outcome(&self, txn: TxnId, done: Done<Outcome>) {
        let _ = txn;
        done(Err(read_only()));
    }

    /// Removes old revisions. Blocks.
    ///
    /// Of each object, the revision that was current just before the transaction `before` stays,
    /// with all later ones. An object that was deleted by then is removed altogether.
    ///
    /// # Errors
    /// Those of the disk. What was removed before the error stays removed.
    fn pack(&self, before: Tid) -> Result<Packed, RequestError> {
        let _ = before;
        Err(read_only())
    }

    /// Returns what the store contains and has done. The default has only zeros.
    fn counts(&self) -> Counts {
        Counts::default()
    }

    /// Calls `to` for every later commit, in commit order, each before any reader can see it.
    ///
    /// A reader that calls [`last_tid`](Store::last_tid) after this is certain that `to` is called
    /// for every commit after that one. The default is for a store that never changes.
    fn subscribe(&self, to: Subscriber) -> Subscription {
        drop(to);
        Subscription::none()
    }

    /// Commits what is being finished, aborts everything else, and stops writing for good. Blocks.
    ///
    /// Closing again does nothing. Reads go on until the store is dropped.
    fn close(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_ends_once_and_can_be_shared() {
        let (ended, ends) = std::sync::mpsc::channel();
        let subscription = Arc::new(Subscription::new(move || ended.send(()).unwrap()));
        let other = subscription.clone();
        std::thread::spawn(move || drop(other)).join().unwrap();
        assert!(ends.try_recv().is_err());
        drop(subscription);
        assert_eq!(ends.try_iter().count(), 1);
    }
}
