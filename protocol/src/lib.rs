//! The blobferry protocol as pure state machines: bytes and calls in, bytes and events out. There is no socket in here,
//! no file, no clock, no thread and no runtime, and after the handshake no surprise: the same calls give the same bytes.
//!
//! Most programs want a transport crate and never see this one. It is for those who write a transport, embed the
//! protocol in an event loop of their own (an io_uring, an actor system, a simulator), or test what they have built.
//! What is on the wire is specified in `PROTOCOL.md`.
//!
//! # Two machines
//!
//! [`client::Connection`] asks and stores, [`server::Connection`] answers. Both are the same
//! [`connection::Connection`] with another [half](connection::Half) of the conversation. Here they talk through two
//! vectors, with [`buffered`] doing the inner loops: a transaction that stores a blob, then the blob is loaded.
//!
//! ```
//! use blobferry_protocol::{
//!     BlobId, Config, Digest, Oid, Reply, Request, RequestError, Slice, Tid, Time, TransferEvent, TxnId, TxnMeta,
//!     buffered, client, server,
//! };
//!
//! // A server's store, as simple as can be: one blob. And what the client has received.
//! #[derive(Default)]
//! struct Store { blob: Vec<u8>, digest: Option<Digest> }
//! #[derive(Default)]
//! struct Client { received: Vec<u8>, done: bool, tid: Option<Tid> }
//! const BLOB: &[u8] = b"as large as you like";
//!
//! fn digest_of(bytes: &[u8]) -> Digest {
//!     Digest(*blake3::hash(bytes).as_bytes())
//! }
//!
//! // What goes from one machine to the other: sources fill the slices that are asked for.
//! fn bytes_of(blob: &[u8], slice: Slice, into: &mut [u8]) -> Result<(), RequestError> {
//!     let at = slice.offset as usize;
//!     let bytes = blob.get(at..at + into.len());
//!     into.copy_from_slice(bytes.ok_or(RequestError::Source { detail: "too short".into() })?);
//!     Ok(())
//! }
//!
//! // What a server does with its events. A real one sends most of them to threads and answers later.
//! fn serve(store: &mut Store, connection: &mut server::Connection, event: server::Event) {
//!     use server::Event;
//!     let answered = match event {
//!         Event::Hello { .. } => connection.welcome(Tid::ZERO),
//!         // Answered when the bytes are there.
//!         Event::Request { request: Request::StoreBlob { .. }, .. } => Ok(()),
//!         Event::Request { id, request: Request::Commit { .. } } => {
//!             connection.reply(id, Ok(Reply::Finished { tid: Tid(7) }))
//!         }
//!         Event::Request { id, request: Request::SendBlob { .. } } => {
//!             let digest = store.digest.unwrap_or(Digest([0; 32]));
//!             connection.start_blob(id.into(), store.blob.len() as u64, digest).map(drop)
//!         }
//!         Event::Request { id, .. } => connection.reply(id, Ok(Reply::Done)),
//!         Event::Transfer(TransferEvent::Stopped { transfer, digest }) if digest == digest_of(&store.blob) => {
//!             store.digest = Some(digest); // a real one syncs the file first
//!             connection.reply(transfer.into(), Ok(Reply::Done))
//!         }
//!         _ => Ok(()),
//!     };
//!     answered.expect("these calls make sense");
//! }
//!
//! // What a client does with its events.
//! fn hear(state: &mut Client, _: &mut client::Connection, event: client::Event) {
//!     match event {
//!         client::Event::Reply { result: Ok(Reply::Finished { tid }), .. } => state.tid = Some(tid),
//!         client::Event::Transfer(TransferEvent::Stopped { .. }) => state.done = true,
//!         _ => {}
//!     }
//! }
//!
//! let now = Time::ZERO; // whatever clock you have
//! let mut server = server::Connection::new(now, Config::default());
//! let mut client = client::Connection::new(now, Config::default(), b"");
//! let (mut store, mut state) = (Store::default(), Client::default());
//!
//! // One round: all that the client has to say, then all that the server has to say.
//! let mut talk = |client: &mut client::Connection, state: &mut Client| -> Result<(), blobferry_protocol::PeerError> {
//!     loop {
//!         let (mut up, mut down) = (Vec::new(), Vec::new());
//!         buffered::transmit(client, now, &mut up, usize::MAX, |slice, into| bytes_of(BLOB, slice, into));
//!         buffered::receive(&mut server, now, &up, &mut store, serve, |store, _, at| {
//!             store.blob.extend_from_slice(&up[at]);
//!         })?;
//!         buffered::transmit(&mut server, now, &mut down, usize::MAX, |slice, into| bytes_of(&store.blob, slice, into));
//!         buffered::receive(client, now, &down, state, hear, |state, _, at| {
//!             state.received.extend_from_slice(&down[at]);
//!         })?;
//!         if up.is_empty() && down.is_empty() {
//!             return Ok(());
//!         }
//!     }
//! };
//!
//! talk(&mut client, &mut state)?;
//! assert!(client.is_connected());
//!
//! // Everything may be asked at once: the server holds the commit until the blob is stored.
//! let (txn, oid) = (TxnId([1; 16]), Oid(1));
//! client.request(Request::Begin { txn, meta: TxnMeta::default() })?;
//! let transfer = client.upload(txn, oid, Tid::ZERO, b"its record".to_vec(), BLOB.len() as u64, None)?;
//! client.request(Request::Commit { txn })?;
//! talk(&mut client, &mut state)?;
//! // The digest was not known when the transfer began. Now all bytes have been read.
//! client.finish_blob(transfer, digest_of(BLOB))?;
//! talk(&mut client, &mut state)?;
//! let tid = state.tid.expect("it is committed");
//!
//! client.request(Request::SendBlob { blob: BlobId { oid, tid }, from: 0, upto: u64::MAX })?;
//! talk(&mut client, &mut state)?;
//! assert!(state.done && state.received == BLOB);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! (The example tells nobody that its sinks have stored what came, which is why the blob is small: see
//! [`stored`](connection::Connection::stored).)
//!
//! # Payload never enters
//!
//! The machine deals in heads and ranges. [`poll_transmit`](connection::Connection::poll_transmit) writes a head and
//! names the [`Slice`] that follows it; the transport moves those bytes from the file to the socket itself.
//! [`expect`](connection::Connection::expect) says whether the next bytes are for the machine or for the sink of a
//! transfer. So a transport is free to read into buffers, to `splice`, or to give the kernel buffers that it owns.
//!
//! | buffer | who owns it |
//! |---|---|
//! | control bytes to be sent | the machine, until `poll_transmit` appends them to a buffer of the caller's |
//! | payload to be sent | the caller: the machine has seen no byte of it |
//! | bytes that were read | the caller; the machine copies only the beginning of a frame that is not complete yet |
//! | payload that arrived | the caller |
//!
//! # Invariants
//!
//! * **Bounded.** Nothing grows with what the peer says: frames, lists, control bytes that wait, requests, transfers,
//!   transactions are limited ([`Limits`]), and no memory is taken because a length says so. Events are bounded by the
//!   bytes of one `handle_control`.
//! * **A call at the wrong time changes nothing**: it returns a [`UsageError`]. It never panics.
//! * **What the peer does wrong kills the connection**: a [`PeerError`] names the rule. From then on every call says so,
//!   nothing is sent, and only events from before are still there.
//! * **Every request has exactly one answer**, while the connection lives: on a client one event, on a server one call.
//! * **However the stream is cut into reads, the events are the same.**
//! * **Deterministic**: no clock, no randomness, no order of a hash map.
//!
//! # Features
//!
//! The crate is `no_std` (with `alloc`). `testing` adds strategies for [proptest](https://docs.rs/proptest) and a
//! simulated link; it needs `std`.
#![no_std]
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

extern crate alloc;
#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod buffered;
mod call;
pub mod client;
pub mod connection;
mod error;
mod limits;
mod message;
pub mod server;
#[cfg(feature = "testing")]
pub mod testing;
mod time;
pub mod wire;
mod words;

pub use connection::{Config, Expect, Slice, TransferEvent, Transmit};
pub use error::{PeerError, UsageError};
pub use limits::Limits;
pub use message::*;
pub use time::Time;
pub use words::*;
