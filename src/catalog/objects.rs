//! What the catalog needs of a server, and nothing else: revisions of objects, and transactions.
//!
//! The client of the transport is one implementation; the tests of the catalog have one in memory.

use std::path::Path;

use blobferry_protocol::{BlobInfo, Conflict, Oid, Revision, Tid};

use crate::remote::RemoteError;

/// The objects of a server, read as of a moment.
pub(crate) trait Objects {
    /// The last transaction that this side knows of: everything up to it can be read, and it never goes back.
    fn last_tid(&self) -> Tid;

    /// The last revision of an object before a transaction; `None` where it did not exist then.
    async fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, RemoteError>;

    /// Exactly `count` oids that nobody else has.
    async fn new_oids(&self, count: u32) -> Result<Vec<Oid>, RemoteError>;
}

/// An open transaction. Dropped, it is aborted.
pub(crate) trait Writes {
    /// Stores an object's record, made from its revision `base` ([`Tid::ZERO`]: the object is new).
    async fn store(&self, oid: Oid, base: Tid, data: Vec<u8>) -> Result<(), RemoteError>;

    /// Stores an object's record with the bytes of a file, which stays where it is. `progress` is told how many
    /// bytes have gone.
    async fn store_file(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: &Path,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<BlobInfo, RemoteError>;

    /// Deletes an object. With `base` [`Tid::ZERO`]: takes back what this transaction has stored of it, or deleted.
    async fn delete(&self, oid: Oid, base: Tid) -> Result<(), RemoteError>;

    /// Commits, or tells the objects that others have changed; then it is still open.
    async fn commit(&mut self) -> Result<Attempt, RemoteError>;
}

/// What came of trying to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// It is committed and durable.
    Committed(Tid),
    /// Others were faster.
    Conflicts(Vec<Conflict>),
}
