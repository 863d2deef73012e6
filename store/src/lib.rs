//! A server's durable revisions.
//!
//! A [`Store`] keeps every revision of every object: a record, and perhaps a blob of any size. Transactions change
//! objects: *begin*, *store* (with blobs that were *staged*), *vote*, *finish*. Either everything in one is visible
//! at one transaction id, for ever, or nothing is.
//!
//! * [`SqliteStore`] is the store of a server: SQLite and files in one directory.
//! * [`MemoryStore`] is the same in memory.
//! * [`check`] looks at all that is in a directory, byte by byte, while no server has it open.
//!
//! ```
//! use std::sync::{Arc, mpsc};
//! use blobferry_protocol::{BlobId, Digest, RequestError, Tid, TxnId, TxnMeta};
//! use blobferry_store::{Done, SqliteStore, OpenBlob, Store, StoreConfig, Vote};
//!
//! /// Answers come through callbacks, from whatever thread has them: here they are waited for.
//! fn wait<T: Send + 'static>(ask: impl FnOnce(Done<T>)) -> Result<T, RequestError> {
//!     let (answer, answers) = mpsc::channel();
//!     ask(Box::new(move |result| _ = answer.send(result)));
//!     answers.recv().map_err(|_| RequestError::Stopping)?
//! }
//!
//! let dir = tempfile::tempdir()?;
//! let store: Arc<dyn Store> = Arc::new(SqliteStore::open(dir.path(), StoreConfig::default())?);
//!
//! // A transaction's name is chosen by its client. A server keeps it: see `outcome`.
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
//! // Locks and checks, then the commit.
//! assert_eq!(wait(|done| store.vote(txn, done))?, Vote::Ready);
//! let tid = wait(|done| store.finish(txn, done))?;
//!
//! assert_eq!(store.load(oid)?.data, b"a record");
//! match store.open_blob(BlobId { oid, tid })? {
//!     OpenBlob::Small { bytes, .. } => assert_eq!(bytes, b"hello world"),
//!     OpenBlob::File { .. } => unreachable!("so small a blob is kept in the database"),
//! }
//! store.close();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Inside
//!
//! What is true of transactions in every store is written once. `desk` knows where each open transaction stands, with
//! its `locks`; `changes` has what it has stored; `coordinator` runs votes and commits, as many at once as
//! `gather` says; `publish` announces them. A
//! `backend` keeps the revisions: `model` in memory, `embedded` on the disk.

mod backend;
mod config;
mod errors;
mod memory;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod schedules;
mod sqlite;
mod staging;
mod store;
mod transactions;

pub use config::StoreConfig;
pub use errors::OpenError;
pub use memory::{MemoryBackend, MemoryStore};
pub use sqlite::{CheckOptions, CheckReport, Finding, FindingKind, SqliteBackend, SqliteStore, check};
pub use staging::{Stage, Staged};
pub use store::{
    Counts, Done, MAX_LISTED, MAX_NEW_OIDS, OpenBlob, Store, StoredRevision, Subscriber, Subscription, Vote,
};
pub use transactions::coordinator::Coordinator;
