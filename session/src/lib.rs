//! A blobferry client and server without sockets, for transports to drive.
//!
//! | module | what it is |
//! |---|---|
//! | [`client`] | the calls of a client, with completions, over one connection after the other |
//! | [`server`] | answers requests from a store, and holds transactions whose connection was lost |
//! | [`io`] | buffers between a connection, the files behind it, and a socket |
//!
//! A transport supplies three things: it moves bytes between a socket and a handler, it calls
//! [`handle_timeout`](io::ConnectionHandler::handle_timeout) in time, and it lets its users wait for completions. With a
//! socket, an [`io::ConnectionIo`] around the handler does the reading and writing.
//!
//! # Example
//!
//! A client and a server in one process, joined by two buffers. The same loop, with a socket in place of the buffers, is
//! a transport.
//!
//! ```
//! use std::sync::{Arc, mpsc};
//!
//! use blobferry_cache::{Cache, CacheConfig};
//! use blobferry_protocol::{Oid, Tid, Time, TxnMeta};
//! use blobferry_session::client::{Addresses, BlobSource, ClientConfig, Session};
//! use blobferry_session::io::ConnectionHandler;
//! use blobferry_session::server::{Handler, ServerConfig, ServerCore};
//! use blobferry_store::{MemoryStore, StoreConfig};
//! use bytes::Bytes;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let home = tempfile::tempdir()?;
//! // A server on a store in memory, and a client with a cache of its own. Both wake the loop below when they have
//! // something to send.
//! let (wake, woken) = mpsc::channel();
//! let store = Arc::new(MemoryStore::new(StoreConfig::default())?);
//! let core = ServerCore::new(store, ServerConfig::default());
//! let mut server = Handler::new(&core, Time::ZERO, { let wake = wake.clone(); move || _ = wake.send(()) });
//!
//! let cache = Cache::open(home.path().join("cache"), CacheConfig::default())?;
//! let session = Session::new(cache, &ClientConfig::default(), Addresses::none(), 0);
//! let mut client = session.converse(Time::ZERO, { let wake = wake.clone(); move || _ = wake.send(()) });
//!
//! // The transport: moves all bytes, both ways, until there are none; then waits to be woken.
//! let mut drive = |answers: &mpsc::Receiver<_>| loop {
//!     if let Ok(answer) = answers.try_recv() {
//!         return Ok::<_, Box<dyn std::error::Error>>(answer);
//!     }
//!     let (mut up, mut down) = (Vec::new(), Vec::new());
//!     client.transmit(Time::ZERO, &mut up, usize::MAX, false);
//!     let is_idle = up.is_empty();
//!     server.receive(Time::ZERO, Bytes::from(up))?;
//!     server.transmit(Time::ZERO, &mut down, usize::MAX, false);
//!     if is_idle && down.is_empty() {
//!         woken.recv()?;
//!     }
//!     client.receive(Time::ZERO, Bytes::from(down))?;
//! };
//!
//! // Calls take completions, and are sent when the transport drives the client next.
//! let (answer, answers) = mpsc::channel();
//! let mut transaction = session.begin(TxnMeta::default())?;
//! let source = BlobSource::bytes("many bytes");
//! transaction.store_blob(Oid(1), Tid::ZERO, b"a record".to_vec(), source, None, |stored| drop(stored));
//! transaction.commit(move |committed| {
//!     let _ = answer.send(committed);
//!     let _ = wake.send(());
//! });
//! let tid = drive(&answers)??;
//! assert_eq!(session.last_tid(), tid);
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//! `client` and `server` (both on by default) can be used alone: the first needs `blobferry-cache`, the second
//! `blobferry-store`. `testing` and `shuttle` are for this project's own tests, and outside of semver.

#[cfg(feature = "client")]
pub mod client;
pub mod io;
#[cfg(test)]
#[cfg(all(feature = "shuttle", feature = "client", feature = "server"))]
mod schedules;
#[cfg(feature = "server")]
pub mod server;

#[cfg(test)]
mod tests {
    fn is_send<T: Send>() {}
    fn is_send_and_sync<T: Send + Sync>() {}

    #[test]
    fn types_are_send_and_sync() {
        #[cfg(feature = "client")]
        {
            is_send_and_sync::<crate::client::Session>();
            is_send_and_sync::<crate::client::Transaction>();
            is_send_and_sync::<crate::client::CallError>();
            is_send_and_sync::<crate::client::ConnectError>();
            is_send_and_sync::<crate::client::VoteError>();
            is_send_and_sync::<crate::client::BlobSource>();
            is_send::<crate::client::Handler>();
        }
        #[cfg(feature = "server")]
        {
            is_send_and_sync::<crate::server::ServerCore>();
            is_send::<crate::server::Handler>();
        }
        is_send_and_sync::<crate::io::CloseReason>();
        is_send::<crate::io::Source>();
        is_send::<crate::io::IncomingTransfers>();
    }
}
