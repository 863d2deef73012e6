//! A server's durable revisions.
//!
//! A [`Store`] keeps every revision of every object: a record, and optionally a blob of any size.
//! Transactions change objects: *begin*, *store* (with blobs that were *staged*), *vote*, *finish*.
//! All changes of a transaction become visible at one transaction id, or none does.
//!
//! * [`MemoryStore`] is a store in memory.
#![cfg_attr(
    feature = "sqlite",
    doc = "* [`SqliteStore`] is the store of a server: SQLite and blob files in one directory.
* [`check`] checks everything in such a directory, byte by byte, while no server has it open."
)]
//! * [`Store`] can be implemented by other crates. A read-only store needs seven methods.
//!
//! # Example
#![cfg_attr(feature = "sqlite", doc = "```")]
#![cfg_attr(not(feature = "sqlite"), doc = "```ignore")]
//! use std::sync::{Arc, mpsc};
//! use blobferry_protocol::{BlobId, Digest, RequestError, Tid, TxnId, TxnMeta};
//! use blobferry_store::{Done, SqliteStore, OpenBlob, Store, StoreConfig, Vote};
//!
//! /// Answers come through completions, from another thread: here the caller waits for them.
//! fn wait<T: Send + 'static>(call: impl FnOnce(Done<T>)) -> Result<T, RequestError> {
//!     let (answer, answers) = mpsc::channel();
//!     call(Box::new(move |result| _ = answer.send(result)));
//!     answers.recv().map_err(|_| RequestError::Stopping)?
//! }
//!
//! let dir = tempfile::tempdir()?;
//! let store: Arc<dyn Store> = Arc::new(SqliteStore::open(dir.path(), StoreConfig::default())?);
//!
//! // The client chooses a transaction's name. The server remembers it: see `outcome`.
//! let txn = TxnId([7; 16]);
//! store.begin(txn, TxnMeta { user: b"ada".to_vec(), description: b"first".to_vec() })?;
//!
//! // The blob's bytes, as they arrive. They belong to no transaction yet.
//! let mut stage = store.stage(11)?;
//! stage.write(b"hello ")?;
//! stage.write(b"world")?;
//! let staged = stage.complete(Digest(*blake3::hash(b"hello world").as_bytes()))?;
//!
//! // A new object: it was made from no revision.
//! let (oid, _) = store.new_oids(1)?;
//! store.store_blob(txn, oid, Tid::ZERO, b"a record".to_vec(), staged)?;
//!
//! // The vote locks and checks; then comes the commit.
//! assert_eq!(wait(|done| store.vote(txn, done))?, Vote::Ready);
//! let tid = wait(|done| store.finish(txn, done))?;
//!
//! assert_eq!(store.load(oid)?.data, b"a record");
//! match store.open_blob(BlobId { oid, tid })? {
//!     OpenBlob::Small { bytes, .. } => assert_eq!(bytes, b"hello world"),
//!     OpenBlob::File { .. } => unreachable!("a blob this small is kept in the database"),
//! }
//! store.close();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! * `sqlite` (on by default): the store in SQLite, and the check of its directory. It builds
//!   SQLite and so needs a C compiler. Set `LIBSQLITE3_FLAGS=-DHAVE_FDATASYNC=1` in your build's
//!   environment (for example in `.cargo/config.toml`): commits are slower without it.
//!
//! # Internals
//!
//! `transactions/` has what holds for transactions in every store. `table` has the state of each
//! open transaction, and `locks` its locks. `write_set` has what it stored. `coordinator` runs
//! votes and commits, in batches that `group_commit` sizes, and `publisher` announces them. A
//! `backend` keeps the revisions: `memory` in memory, `sqlite/` on the disk.

mod backend;
mod config;
mod errors;
mod memory;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod schedules;
#[cfg(feature = "sqlite")]
mod sqlite;
mod staging;
mod store;
mod transactions;

pub use blobferry_platform::blobdir::LayoutError;
pub use blobferry_platform::os::FileStamp;
pub use config::StoreConfig;
pub use errors::{DatabaseError, OpenError};
pub use memory::{MemoryBackend, MemoryStore};
#[cfg(feature = "sqlite")]
pub use sqlite::{
    CheckOptions, CheckReport, Finding, FindingKind, Progress, SqliteBackend, SqliteStore, check,
};
pub use staging::{Stage, Staged, StagedContent, StagedFile};
pub use store::{
    Counts, Done, MAX_LISTED, MAX_NEW_OIDS, OpenBlob, Store, StoredRevision, Subscriber, Subscription, Vote,
};
pub use transactions::coordinator::Coordinator;

#[cfg(test)]
mod tests {
    use super::*;

    fn is_send_and_sync<T: Send + Sync + ?Sized>() {}

    #[test]
    fn public_types_are_send_and_sync() {
        is_send_and_sync::<dyn Store>();
        is_send_and_sync::<MemoryStore>();
        is_send_and_sync::<OpenBlob>();
        is_send_and_sync::<OpenError>();
        is_send_and_sync::<Staged>();
        is_send_and_sync::<Subscription>();
        #[cfg(feature = "sqlite")]
        {
            is_send_and_sync::<SqliteStore>();
            is_send_and_sync::<CheckReport>();
        }
    }
}
