//! Names for the objects of a store: a tree of directories and files, over any client or store.
//!
//! The command `blobferry` publishes files under names. This crate is the library behind that: a
//! program can [publish](commit()), [resolve](View::get_file), [list](View::list) and
//! [watch](Watch) the same names.
//!
//! ```
//! use std::sync::Arc;
//! use blobferry_cache::{Cache, CacheConfig};
//! use blobferry_catalog::{Edit, Entry, FileRecord, NamePath, Record, View, commit, session};
//! use blobferry_protocol::{BlobId, TxnMeta};
//! use blobferry_store::{MemoryStore, StoreConfig};
//! use blobferry_transport_tokio::{Client, ClientConfig, Server, ServerConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let home = tempfile::tempdir()?;
//! let store = Arc::new(MemoryStore::new(StoreConfig::default())?);
//! let server = Server::bind("127.0.0.1:0", store, ServerConfig::default()).await?;
//! let cache = Cache::open(home.path().join("cache"), CacheConfig::default())?;
//! let client = Client::connect(server.local_addr(), cache, ClientConfig::default()).await?;
//! let session = client.session();
//!
//! // Publish two names in one transaction: readers see both of them, or neither.
//! let paths: Vec<NamePath> = vec!["models/small.bin".parse()?, "models/notes.txt".parse()?];
//! let view = View::now(session);
//! let mut edit = Edit::default();
//! let targets = edit.put_files(&view, &paths).await?;
//! let mut transaction = session.begin(TxnMeta::default())?;
//! for (target, bytes) in targets.iter().zip(["weights", "notes"]) {
//!     let record = Record::File(FileRecord { executable: false, modified: 0 }).encode();
//!     session::store_bytes(&transaction, target.oid, target.base, record, bytes).await?;
//! }
//! let tid = commit(view, &mut transaction, &edit).await?;
//!
//! // List them.
//! let view = View::now(session);
//! let Entry::Directory { oid } = view.get(&"models".parse()?).await? else { panic!("a file") };
//! let names: Vec<String> = view.list(oid).await?.keys().map(ToString::to_string).collect();
//! assert_eq!(names, ["notes.txt", "small.bin"]);
//!
//! // Read one.
//! let file = view.get_file(&"models/small.bin".parse()?).await?;
//! assert_eq!(file.tid, tid);
//! let blob = BlobId { oid: file.oid, tid: file.tid };
//! assert_eq!(client.load_bytes(blob).await?, "weights");
//!
//! client.close().await;
//! server.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # How names are stored
//!
//! The tree lies in ordinary objects and is changed by ordinary transactions.
//!
//! * The root directory is object 0, [`Oid::ROOT`](blobferry_protocol::Oid::ROOT). The first commit
//!   creates it.
//! * A directory is a trie of small records, so that it can hold 100,000 names without a large
//!   record.
//! * A file is an object with a small [`Record`] and a blob. A new revision of the file is a new
//!   revision of the same object; its directory does not change.
//! * A [`View`] reads everything as of one transaction.
//! * An [`Edit`] says what a transaction does to names. [`commit()`] applies it, and merges it with
//!   what other transactions commit at the same time. Two writers of one directory both succeed.
//!   Two writers of one *file* conflict.
//!
//! **Two transactions that disagree about a name write at least one object in common.** A
//! transaction that adds or removes a name writes the leaf that contains the name. A transaction
//! that removes a directory deletes every object of its trie and every file below it. Nothing else
//! takes an object out of a trie. The server therefore reports a conflict to the later transaction,
//! and no name is lost. `tests/model.rs` checks this.
//!
//! # What it runs on
//!
//! The crate needs an implementation of [`Objects`] and [`Writes`] and nothing else: no sockets, no
//! runtime. With the feature `session` (the default),
//! [`Session`](blobferry_session::client::Session) and
//! [`Transaction`](blobferry_session::client::Transaction) implement them; their futures run on any
//! executor.

mod commit;
mod edit;
mod error;
mod objects;
mod path;
mod plan;
mod record;
#[cfg(feature = "session")]
pub mod session;
mod view;
mod watch;

#[cfg(any(test, feature = "testing"))]
pub mod memory;
#[cfg(test)]
mod tests;

/// The number of small requests that one operation has under way at once. It hides the round-trip
/// time.
pub const REQUESTS: usize = 32;

pub use commit::commit;
pub use edit::{Edit, Target};
pub use error::{CatalogError, NameConflict};
pub use objects::{Attempt, Objects, Writes};
pub use path::{MAX_NAME, Name, NameAt, NameError, NamePath};
pub use record::{Directory, FAN_OUT};
pub use record::{Entry, FileRecord, Record, RecordError};
pub use view::{File, View};
pub use watch::Watch;
