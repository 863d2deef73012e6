//! blobferry on mio: a [`Server`] over a [`Store`](blobferry_store::Store), and a blocking [`Client`] over a
//! [`Cache`](blobferry_cache::Cache). Threads and `epoll`, no runtime.
//!
//! This crate is sockets, readiness and timers. What is said on a connection stands in `blobferry-protocol`, what a
//! server does about it in `blobferry-store`, what a client does in `blobferry-cache`.
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
//! let mut transaction = client.begin(TxnMeta::default())?;
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
//! A call blocks its thread, which drives the connection until its answer is there, or sleeps while another caller does.
//! Callbacks (progress, and those of [`Client::session`]) run on threads that work for everybody, a caller's among them:
//! they must not block. Those of answers may make calls that wait for answers, all the same; while they do, others drive.
//!
//! # Inside
//!
//! `connection` is one connection, and how much it may do in a turn. `event_loop` is a server's loop, which gives turns to
//! those that have something to do; `loop_handle` is how other threads tell it so, `server` is such a loop with a `acceptor`
//! beside it. `client` makes one connection after the other, and `leader` is who drives it: `parker` is where a caller waits
//! for its answer, and `thread_context` what is known of the thread that calls.

mod acceptor;
mod client;
mod connection;
mod event_loop;
mod leader;
mod loop_handle;
mod notifications;
mod parker;
mod server;
mod spin;
mod thread;
mod thread_context;
mod transaction;

pub use blobferry_session::client::{
    Addresses, BlobSource, CallError, ClientConfig, ConnectError, ConnectionEvent, Invalidation, Reconnect,
    VoteError,
};
pub use blobferry_session::io::Progress;
pub use blobferry_session::server::ServerConfig;
pub use client::Client;
pub use notifications::{ConnectionEvents, Invalidations, Notifications};
pub use parker::wait;
pub use server::Server;
pub use transaction::Transaction;
