//! The `Store` trait: everything that a server asks of what keeps its revisions.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use blobferry_protocol::{
    BlobId, BlobInfo, Conflict, Digest, HistoryEntry, Oid, Outcome, Packed, RequestError, Revision, Tid,
    TxnId, TxnMeta,
};

use crate::staging::{Stage, Staged};

/// Takes an answer that may come later, from another thread. It is called exactly once, with none of the store's
/// locks held, so it may call the store; but it should be quick, as others wait behind it.
pub type Done<T> = Box<dyn FnOnce(Result<T, RequestError>) + Send>;

/// Is told of every commit: its id, and the objects that have a new revision (or were deleted).
pub type Subscriber = Arc<dyn Fn(Tid, &[Oid]) + Send + Sync>;

/// The most oids that one call of [`Store::new_oids`] gives.
pub const MAX_NEW_OIDS: u32 = 10_000;
/// The most entries that one call of [`Store::history`] or [`Store::revisions`] gives.
pub const MAX_LISTED: u32 = 1_000;

/// The answer to a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vote {
    /// The transaction holds its locks and can be finished: that fails only by a crash, a broken disk, or too late.
    Ready,
    /// Others have changed these objects since they were read. The transaction is open as before, without locks.
    Conflicts(Vec<Conflict>),
}

/// A blob that is ready to be read.
#[derive(Debug)]
pub enum OpenBlob {
    /// A small blob, read already.
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
        /// The file, open for reading. It stays readable when the blob is packed away meanwhile.
        file: File,
        /// Where it is, to be told to who has to mend it.
        path: PathBuf,
    },
}

/// One revision as [`Store::revisions`] lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRevision {
    /// The transaction that stored it.
    pub tid: Tid,
    /// The object.
    pub oid: Oid,
    /// The size of its record in bytes; `None` where this revision deleted the object.
    pub size: Option<u64>,
    /// The blob, where it has one.
    pub blob: Option<BlobInfo>,
}

/// What a store has, and what it has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Objects that exist now (deleted ones do not count).
    pub objects: u64,
    /// Revisions of all objects, deletions included.
    pub revisions: u64,
    /// Revisions that have a blob.
    pub blobs: u64,
    /// Bytes of all those blobs.
    pub blob_bytes: u64,
    /// Blobs whose file was missing, or had another length than it should, when the store was opened.
    pub damaged: u64,
    /// Transactions committed since the store was opened.
    pub commits: u64,
    /// Durable writes that these took: one for each batch of transactions that finished together.
    pub batches: u64,
    /// Syncs since the store was opened: how often it had the system bring something to the disk, and waited for it. A
    /// batch is one, with one more for each blob in a file (some more for a large one, see
    /// [`StoreConfig::sync_ahead`](crate::StoreConfig::sync_ahead)) and for each directory that got a file; now and then the
    /// database is tidied up, which is three. A store in memory has none.
    pub syncs: u64,
    /// Transactions given up since the store was opened, for whatever reason.
    pub aborts: u64,
    /// Those of them whose time was up: they did not get their locks, or were voted for and not finished.
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
    /// All counts with their names, for people and for [`Reply::Status`](blobferry_protocol::Reply::Status).
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
/// A commit that is being announced at that moment may still reach the subscriber once.
#[must_use = "dropping it ends the subscription"]
pub struct Subscription(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Subscription {
    /// A subscription that `end` ends.
    pub fn new(end: impl FnOnce() + Send + Sync + 'static) -> Subscription {
        Subscription(Some(Box::new(end)))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscription")
    }
}

/// What keeps a server's revisions: the one interface between servers and storage.
///
/// Errors are what the client will see. Any call may block for as long as a disk read takes, and those that are
/// said to, for as long as a sync takes; only [`begin`](Store::begin), [`last_tid`](Store::last_tid) and
/// [`subscribe`](Store::subscribe) never do.
///
/// # Transactions
///
/// Nothing is checked or locked before the vote. What is stored last for an object in a transaction is what counts,
/// and replaces all that was stored for it before, its blob included. An error of a store dooms the transaction: it
/// can only be aborted, as it is not whole any more.
///
/// Where a call is made for a transaction that does not fit it, the error is
/// [`NoSuchTransaction`](RequestError::NoSuchTransaction), [`WrongPhase`](RequestError::WrongPhase),
/// [`Doomed`](RequestError::Doomed), or [`Aborted`](RequestError::Aborted) if the store has given it up. Every call
/// that would write is refused with [`ReadOnly`](RequestError::ReadOnly) once a sync has failed, and with
/// [`Stopping`](RequestError::Stopping) after [`close`](Store::close).
pub trait Store: Send + Sync + 'static {
    /// The last transaction that readers see.
    fn last_tid(&self) -> Tid;

    /// Oids for new objects: the first, and how many follow on each other (at least 1, at most
    /// [`MAX_NEW_OIDS`]; so perhaps fewer than `count`).
    ///
    /// They are never given twice, not even after a crash, and never 0. Whoever commits an object under an oid of
    /// its own choice uses up all oids below it. Blocks for a sync once in a great many calls.
    ///
    /// # Errors
    /// [`Limit`](RequestError::Limit) when there are none left, and errors of the disk.
    fn new_oids(&self, count: u32) -> Result<(Oid, u32), RequestError>;

    /// The current revision of an object.
    ///
    /// The answer is from a moment during the call: a commit that is announced meanwhile may or may not be in it.
    ///
    /// # Errors
    /// [`NoSuchObject`](RequestError::NoSuchObject), also for a deleted one.
    fn load(&self, oid: Oid) -> Result<Revision, RequestError>;

    /// The last revision of an object before a transaction; `None` where it exists, but not that early.
    ///
    /// # Errors
    /// [`NoSuchObject`](RequestError::NoSuchObject) where it never was, or was deleted at that time.
    fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, RequestError>;

    /// One exact revision of an object.
    ///
    /// # Errors
    /// [`NoSuchRevision`](RequestError::NoSuchRevision), or [`NoSuchObject`](RequestError::NoSuchObject) where that
    /// revision deleted it.
    fn load_serial(&self, oid: Oid, tid: Tid) -> Result<Revision, RequestError>;

    /// The revisions of an object, newest first: at most `limit`, and at most [`MAX_LISTED`].
    ///
    /// # Errors
    /// [`NoSuchObject`](RequestError::NoSuchObject) where it never was. A deleted object has a history.
    fn history(&self, oid: Oid, limit: u32) -> Result<Vec<HistoryEntry>, RequestError>;

    /// All revisions of all objects after one, in the order of their transactions, then of oids: at most `limit`,
    /// and at most [`MAX_LISTED`]. An empty list is the end.
    ///
    /// # Errors
    /// Those of the disk.
    fn revisions(&self, after: Option<(Tid, Oid)>, limit: u32) -> Result<Vec<StoredRevision>, RequestError>;

    /// Opens a blob.
    ///
    /// # Errors
    /// [`NoSuchBlob`](RequestError::NoSuchBlob); [`Damaged`](RequestError::Damaged) where its file is missing, can not
    /// be read, or has another length than was committed, and where the bytes of a small blob are others.
    fn open_blob(&self, blob: BlobId) -> Result<OpenBlob, RequestError>;

    /// Opens a transaction, in memory only.
    ///
    /// A name that was committed under, or whose outcome was asked for, is refused here or at the vote.
    ///
    /// # Errors
    /// [`TransactionExists`](RequestError::TransactionExists), [`Limit`](RequestError::Limit).
    fn begin(&self, txn: TxnId, meta: TxnMeta) -> Result<(), RequestError>;

    /// Stores an object's record, without a blob. `base` is the revision that it was made from; [`Tid::ZERO`] for an
    /// object that does not exist.
    ///
    /// # Errors
    /// [`Limit`](RequestError::Limit) and errors of the disk.
    fn store(&self, txn: TxnId, oid: Oid, base: Tid, data: Vec<u8>) -> Result<(), RequestError>;

    /// Deletes an object, by a revision that says so. With base [`Tid::ZERO`] there is nothing to delete: that takes
    /// back whatever this transaction has stored for the object, as if it had never been in it.
    ///
    /// # Errors
    /// [`Limit`](RequestError::Limit).
    fn delete(&self, txn: TxnId, oid: Oid, base: Tid) -> Result<(), RequestError>;

    /// Is a blob of `size` bytes kept beside its object's record? Then it is staged without a file, and without waiting
    /// for a sync.
    fn is_inline(&self, size: u64) -> bool;

    /// Makes room for `size` bytes of a blob that is about to arrive.
    ///
    /// # Errors
    /// [`NoSpace`](RequestError::NoSpace), [`Limit`](RequestError::Limit).
    fn stage(&self, size: u64) -> Result<Box<dyn Stage>, RequestError>;

    /// Stores an object's record with a blob that has arrived.
    ///
    /// # Errors
    /// As for [`store`](Store::store).
    fn store_blob(
        &self,
        txn: TxnId,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        staged: Staged,
    ) -> Result<(), RequestError>;

    /// Stores an object's record with a blob that lies in the server's `blobs/tmp` as the file `name`, which is
    /// taken over. It is read (to check `size` and `digest`) and synced: this blocks.
    ///
    /// No path from a peer is followed (CVE-2009-2701): `name` is one plain component, not hidden, and must be a
    /// regular file of the server's own user with one link.
    ///
    /// # Errors
    /// [`Mismatch`](RequestError::Mismatch) where it is not such a file, or not the one announced;
    /// [`Unsupported`](RequestError::Unsupported) by a store that has no directory.
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
    ) -> Result<(), RequestError>;

    /// Asks whether a transaction can be committed, and makes sure that it then can.
    ///
    /// All its objects are locked at once, or it waits its turn: until none of them is locked, nor wanted by a
    /// vote that was there before. Then each base is compared with the object's current revision. `done` is called
    /// at once, or from another thread when its turn has come, or with [`Deadline`](RequestError::Deadline) when that
    /// takes too long: then the transaction is given up. The locks are kept until the transaction is finished, aborted,
    /// or given up for not being finished in time.
    fn vote(&self, txn: TxnId, done: Done<Vote>);

    /// Commits a transaction that was voted for. `done` is called, from another thread, when it is durable, its
    /// subscribers were told and readers see it.
    fn finish(&self, txn: TxnId, done: Done<Tid>);

    /// Gives a transaction up, whatever is known of it. A vote that is under way gets
    /// [`Aborted`](RequestError::Aborted). One that is being finished is not touched: that is decided already.
    fn abort(&self, txn: TxnId);

    /// What has become of a transaction? One that is being finished is waited for. One that is not committed is
    /// aborted, and its name can never be committed under again: so the answer is true for ever.
    fn outcome(&self, txn: TxnId, done: Done<Outcome>);

    /// Forgets old revisions. Of each object stay the revision that was current just before the transaction
    /// `before`, and all from then on; an object that was deleted by then goes altogether. Blocks.
    ///
    /// # Errors
    /// Those of the disk. What was removed until then is removed.
    fn pack(&self, before: Tid) -> Result<Packed, RequestError>;

    /// What the store has, and has done.
    fn counts(&self) -> Counts;

    /// Has `to` told of every commit from now on, in commit order, each before any reader can see it.
    ///
    /// A commit after [`last_tid`](Store::last_tid) (asked for after this call) is certain to be told of.
    fn subscribe(&self, to: Subscriber) -> Subscription;

    /// Commits what is being finished, aborts everything else, and stops writing for good. Blocks. To close again
    /// does nothing. Reads go on until the store is dropped.
    fn close(&self);
}
