//! blobferry on mio: a [`Server`] over a [`Store`](blobferry_store::Store), and a blocking [`Client`] with a
//! [`Cache`](blobferry_cache::Cache). It uses threads and `epoll`, and no runtime.
//!
//! ```
//! use std::sync::Arc;
//! use blobferry_cache::{Cache, CacheConfig};
//! use blobferry_protocol::{BlobId, Tid, TxnMeta};
//! use blobferry_store::{MemoryStore, StoreConfig};
//! use blobferry_transport_mio::{BlobSource, Client, ClientConfig, Server, ServerConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let home = tempfile::tempdir()?;
//! let store = Arc::new(MemoryStore::new(StoreConfig::default())?);
//! let server = Server::bind("127.0.0.1:0", store, ServerConfig::default())?;
//! let cache = Cache::open(home.path().join("cache"), CacheConfig::default())?;
//! let client = Client::connect(server.local_addr(), cache, ClientConfig::default())?;
//!
//! // Two files that appear at once, or not at all; stored by two threads over the one connection.
//! let transaction = client.begin(TxnMeta::default())?;
//! let oids = client.new_oids(2)?;
//! std::thread::scope(|threads| {
//!     let stores = oids.iter().map(|oid| threads.spawn(|| {
//!         let bytes: &[u8] = b"any number of bytes";
//!         transaction.store_blob(*oid, Tid::ZERO, b"a record".to_vec(), BlobSource::bytes(bytes))
//!     }));
//!     stores.collect::<Vec<_>>().into_iter().try_for_each(|store| store.join().unwrap().map(drop))
//! })?;
//! let tid = transaction.commit()?;
//!
//! // Loading gives an open file in the cache of this machine.
//! let cached = client.load_blob(BlobId { oid: oids[0], tid })?;
//! assert_eq!(std::fs::read(cached.path())?, b"any number of bytes");
//!
//! client.close();
//! server.stop();
//! # Ok(())
//! # }
//! ```
//!
//! # Threads
//! A call blocks its thread. The thread drives the connection until its answer is there, or sleeps while another caller
//! drives. While no call is under way, a thread of the client's own drives.
//!
//! Callbacks (of progress, and of [`Client::session`]) run on the thread that drives, which may be that of another caller.
//! They must not block. A callback of an answer may still make a blocking call: other threads drive meanwhile.
//!
//! # Features
//! `client` and `server`, both on by default. A crate that is only a client builds without SQLite.

#[cfg(feature = "server")]
mod acceptor;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "server")]
mod event_loop;
#[cfg(feature = "client")]
mod leader;
#[cfg(feature = "server")]
mod loop_handle;
#[cfg(feature = "client")]
mod notifications;
#[cfg(feature = "client")]
mod parker;
#[cfg(feature = "server")]
mod server;
#[cfg(any(feature = "client", feature = "server"))]
mod socket;
#[cfg(feature = "client")]
mod spin;
#[cfg(any(feature = "client", feature = "server"))]
mod thread;
#[cfg(feature = "client")]
mod thread_context;
#[cfg(feature = "client")]
mod transaction;
#[cfg(feature = "client")]
mod wait;

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
pub use notifications::{ConnectionEvents, Invalidations, Notifications};
#[cfg(feature = "server")]
pub use server::Server;
#[cfg(feature = "client")]
pub use transaction::{CommitError, Transaction};
#[cfg(feature = "client")]
pub use wait::wait;
