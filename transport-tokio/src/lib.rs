//! blobferry on tokio: a [`Server`] over a [`Store`](blobferry_store::Store), and an async [`Client`] with a
//! [`Cache`](blobferry_cache::Cache).
//!
//! ```
//! use std::sync::Arc;
//! use blobferry_cache::{Cache, CacheConfig};
//! use blobferry_protocol::{BlobId, Tid, TxnMeta};
//! use blobferry_store::{MemoryStore, StoreConfig};
//! use blobferry_transport_tokio::{BlobSource, Client, ClientConfig, Server, ServerConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let home = tempfile::tempdir()?;
//! let store = Arc::new(MemoryStore::new(StoreConfig::default())?);
//! let server = Server::bind("127.0.0.1:0", store, ServerConfig::default()).await?;
//! let cache = Cache::open(home.path().join("cache"), CacheConfig::default())?;
//! let client = Client::connect(server.local_addr(), cache, ClientConfig::default()).await?;
//!
//! // Two files that appear at once, or not at all.
//! let transaction = client.begin(TxnMeta::default())?;
//! let oids = client.new_oids(2).await?;
//! for oid in &oids {
//!     let bytes: &[u8] = b"any number of bytes";
//!     transaction.store_blob(*oid, Tid::ZERO, b"a record".to_vec(), BlobSource::bytes(bytes)).await?;
//! }
//! let tid = transaction.commit().await?;
//!
//! // Loading gives an open file in the cache of this machine.
//! let cached = client.load_blob(BlobId { oid: oids[0], tid }).await?;
//! assert_eq!(std::fs::read(cached.path())?, b"any number of bytes");
//!
//! client.close().await;
//! server.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Runtimes
//! [`Server::bind`], [`Client::connect`], [`Transaction::store_reader`] and reading a [`Follow`] need a tokio runtime with
//! IO and time enabled, and panic without one. All other calls work on any executor, while that runtime runs.
//!
//! A call goes out when its future is first polled. The drop of the future does not take it back: each method says what
//! that means.
//!
//! # Features
//! `client` and `server`, both on by default. A crate that is only a client builds without SQLite.

#[cfg(feature = "client")]
mod client;
#[cfg(any(feature = "client", feature = "server"))]
mod driver;
#[cfg(feature = "client")]
mod follow;
#[cfg(feature = "client")]
mod notifications;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "client")]
mod transaction;
#[cfg(feature = "client")]
mod wait;
#[cfg(any(feature = "client", feature = "server"))]
mod wakeup;

#[cfg(feature = "client")]
pub use blobferry_session::client::{
    Addresses, BlobSource, CallError, ClientConfig, ConnectError, ConnectionEvent, Ended, Invalidation,
    Reconnect, VoteError,
};
pub use blobferry_session::io::Progress;
#[cfg(feature = "server")]
pub use blobferry_session::server::ServerConfig;
#[cfg(feature = "client")]
pub use client::Client;
#[cfg(feature = "client")]
pub use follow::Follow;
#[cfg(feature = "client")]
pub use notifications::{ConnectionEvents, Invalidations, Notifications};
#[cfg(feature = "server")]
pub use server::Server;
#[cfg(feature = "client")]
pub use transaction::{CommitError, Transaction};
#[cfg(feature = "client")]
pub use wait::wait;
