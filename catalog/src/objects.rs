//! What the catalog needs of a server: revisions of objects, and transactions.

use std::error::Error;
use std::future::Future;
use std::path::Path;

use blobferry_protocol::{BlobInfo, Conflict, Oid, Revision, Tid};

/// The objects of a server, read as of a transaction.
pub trait Objects {
    /// Why a request failed.
    type Error: Error + 'static;

    /// Returns the last transaction that this client knows of. Everything up to it can be read. It
    /// never decreases.
    fn last_tid(&self) -> Tid;

    /// Returns the last revision of an object that is older than a transaction; `None` if the
    /// object did not exist then.
    fn load_before(
        &self,
        oid: Oid,
        before: Tid,
    ) -> impl Future<Output = Result<Option<Revision>, Self::Error>>;

    /// Returns exactly `count` oids that no other client has.
    fn new_oids(&self, count: u32) -> impl Future<Output = Result<Vec<Oid>, Self::Error>>;
}

/// An open transaction. Dropping it aborts it.
pub trait Writes {
    /// Why a request failed.
    type Error: Error + 'static;

    /// Stores an object's record, made from its revision `base` ([`Tid::ZERO`] for a new object).
    fn store(&self, oid: Oid, base: Tid, data: Vec<u8>) -> impl Future<Output = Result<(), Self::Error>>;

    /// Stores an object's record with the bytes of a file, which stays in its place.
    ///
    /// Calls `progress` with the number of bytes sent so far. The number can go back if a transfer
    /// starts again.
    fn store_file(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: &Path,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> impl Future<Output = Result<BlobInfo, Self::Error>>;

    /// Deletes an object. With `base` [`Tid::ZERO`], it takes back what this transaction has stored
    /// or deleted of it.
    fn delete(&self, oid: Oid, base: Tid) -> impl Future<Output = Result<(), Self::Error>>;

    /// Commits, or returns the objects that other transactions have changed. After a conflict the
    /// transaction is still open.
    fn commit(&mut self) -> impl Future<Output = Result<Attempt, Self::Error>>;
}

/// The result of an attempt to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The transaction is committed and durable.
    Committed(Tid),
    /// Other transactions have changed these objects since their `base` revisions.
    Conflicts(Vec<Conflict>),
}
