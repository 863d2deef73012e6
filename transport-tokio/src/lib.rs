//! blobferry on tokio: a [`Server`] over a [`Store`](blobferry_store::Store), and an async [`Client`] over a
//! [`Cache`](blobferry_cache::Cache).
//!
//! This crate is sockets, readiness and timers. What is said on a connection stands in `blobferry-protocol`, what a
//! server does about it in `blobferry-store`, what a client does in `blobferry-cache`.
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
//! let mut transaction = client.begin(TxnMeta::default())?;
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

mod client;
mod driver;
mod notifications;
mod server;
mod transaction;
mod wakeup;

pub use blobferry_session::client::{
    Addresses, BlobSource, CallError, ClientConfig, ConnectError, ConnectionEvent, Invalidation, Reconnect,
    VoteError,
};
pub use blobferry_session::io::Progress;
pub use blobferry_session::server::ServerConfig;
pub use client::{Client, wait};
pub use notifications::{ConnectionEvents, Invalidations, Notifications};
pub use server::Server;
pub use transaction::Transaction;
