//! blobferry publishes large files so that they appear everywhere together or not at all, and every process of a machine
//! reads them from one cache.
//!
//! Programs add this crate. It has no code of its own: it gives the crates of the project one name and one set of features.
//!
//! | module | feature | what it is |
//! |---|---|---|
//! | [`tokio`] | `tokio` (default) | a server and an async client on tokio |
#![cfg_attr(feature = "mio", doc = "| [`mio`] | `mio` | a server and a blocking client on threads |")]
#![cfg_attr(not(feature = "mio"), doc = "| `mio` | `mio` | a server and a blocking client on threads |")]
//! | [`cache`] | `client` (default) | the blob directory that all processes of a machine share |
//! | [`catalog`] | `catalog` (default) | the tree of names that the command publishes |
//! | [`store`] | `server`, `sqlite` (default) | what a server keeps its revisions in |
//! | [`session`] | | a client and a server without sockets, for a transport of your own |
//! | [`protocol`] | | the protocol as state machines without I/O |
//!
//! A program that only reads and publishes needs no store, and no C compiler:
//!
//! ```toml
//! blobferry = { version = "0.1", default-features = false, features = ["tokio", "client"] }
//! ```
//!
//! # Example
//!
//! A server and a client in one process. Two blobs become visible in one transaction, and one of them is read.
//!
//! ```
//! use std::sync::Arc;
//! use blobferry::cache::{Cache, CacheConfig};
//! use blobferry::store::{MemoryStore, StoreConfig};
//! use blobferry::tokio::{BlobSource, Client, ClientConfig, Server, ServerConfig};
//! use blobferry::{BlobId, Tid, TxnMeta};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let home = tempfile::tempdir()?;
//! let store = Arc::new(MemoryStore::new(StoreConfig::default())?);
//! let server = Server::bind("127.0.0.1:0", store, ServerConfig::default()).await?;
//! let cache = Cache::open(home.path().join("cache"), CacheConfig::default())?;
//! let client = Client::connect(server.local_addr(), cache, ClientConfig::default()).await?;
//!
//! let transaction = client.begin(TxnMeta::default())?;
//! let oids = client.new_oids(2).await?;
//! for oid in &oids {
//!     let source = BlobSource::bytes("any number of bytes");
//!     transaction.store_blob(*oid, Tid::ZERO, b"a record".to_vec(), source).await?;
//! }
//! let tid = transaction.commit().await?;
//!
//! let cached = client.load_blob(BlobId { oid: oids[0], tid }).await?;
//! assert_eq!(std::fs::read(cached.path())?, b"any number of bytes");
//!
//! client.close().await;
//! server.stop().await;
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "client")]
pub use blobferry_cache as cache;
#[cfg(feature = "catalog")]
pub use blobferry_catalog as catalog;
pub use blobferry_protocol as protocol;
pub use blobferry_session as session;
#[cfg(feature = "server")]
pub use blobferry_store as store;
#[cfg(feature = "mio")]
pub use blobferry_transport_mio as mio;
#[cfg(feature = "tokio")]
pub use blobferry_transport_tokio as tokio;

pub use blobferry_protocol::{BlobId, BlobInfo, Digest, Oid, Revision, Tid, TxnId, TxnMeta};
