//! The blobferry protocol as pure state machines: bytes and calls in, bytes and events out. The
//! crate uses no sockets, files, clocks, threads or runtimes. It is deterministic: the same calls
//! produce the same bytes.
//!
//! Most programs use a transport crate, and this one only through it. Use it directly to write a
//! transport, to embed the protocol in another event loop (an io_uring, an actor system, a
//! simulator), or to test such code. `PROTOCOL.md` in the repository specifies what is on the wire.
//!
//! # Two state machines
//!
//! [`client::Connection`] sends requests, and [`server::Connection`] answers them. Both are the
//! same [`connection::Connection`] with another [side](connection::Side). In this example they
//! exchange bytes through two vectors, and [`buffered`] runs the inner loops. A transaction stores
//! a blob, then the blob is loaded.
//!
//! ```
//! use blobferry_protocol::{
//!     BlobId, Config, Digest, Oid, Reply, Request, RequestError, Slice, Tid, Time, TransferEvent, TxnId, TxnMeta,
//!     buffered, client, server,
//! };
//!
//! // The server's store, which is one blob. And what the client has received.
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
//! // Appends the bytes of a slice that is to be sent.
//! fn bytes_of(blob: &[u8], slice: Slice, into: &mut Vec<u8>) -> Result<(), RequestError> {
//!     let bytes = blob.get(slice.offset as usize..(slice.offset + slice.len) as usize);
//!     into.extend_from_slice(bytes.ok_or(RequestError::Source { detail: "too short".into() })?);
//!     Ok(())
//! }
//!
//! // Handles the events of the server. A real server passes most of them to threads, and answers later.
//! fn serve(store: &mut Store, connection: &mut server::Connection, event: server::Event) {
//!     use server::Event;
//!     let result = match event {
//!         Event::Hello { .. } => connection.welcome(Tid::ZERO),
//!         // The answer follows when the bytes have arrived.
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
//!             store.digest = Some(digest); // a real server syncs the file first
//!             connection.reply(transfer.into(), Ok(Reply::Done))
//!         }
//!         _ => Ok(()),
//!     };
//!     result.expect("these calls are allowed");
//! }
//!
//! // Handles the events of the client.
//! fn handle(state: &mut Client, _: &mut client::Connection, event: client::Event) {
//!     match event {
//!         client::Event::Reply { result: Ok(Reply::Finished { tid }), .. } => state.tid = Some(tid),
//!         client::Event::Transfer(TransferEvent::Stopped { .. }) => state.done = true,
//!         _ => {}
//!     }
//! }
//!
//! let now = Time::ZERO; // from any clock
//! let mut server = server::Connection::new(now, Config::default());
//! let mut client = client::Connection::new(now, Config::default(), b"");
//! let (mut store, mut state) = (Store::default(), Client::default());
//!
//! // Moves bytes in both directions until neither side has anything to send.
//! let mut exchange = |client: &mut client::Connection, state: &mut Client| -> Result<(), blobferry_protocol::PeerError> {
//!     loop {
//!         let (mut up, mut down) = (Vec::new(), Vec::new());
//!         buffered::transmit(client, now, &mut up, usize::MAX, |slice, into| bytes_of(BLOB, slice, into));
//!         buffered::receive(&mut server, now, &up, &mut store, serve, |store, _, at| {
//!             store.blob.extend_from_slice(&up[at]);
//!         })?;
//!         buffered::transmit(&mut server, now, &mut down, usize::MAX, |slice, into| bytes_of(&store.blob, slice, into));
//!         buffered::receive(client, now, &down, state, handle, |state, _, at| {
//!             state.received.extend_from_slice(&down[at]);
//!         })?;
//!         if up.is_empty() && down.is_empty() {
//!             return Ok(());
//!         }
//!     }
//! };
//!
//! exchange(&mut client, &mut state)?;
//! assert!(client.is_connected());
//!
//! // All requests can be sent at once: the server holds the commit until the blob is stored.
//! let (txn, oid) = (TxnId([1; 16]), Oid(1));
//! client.request(Request::Begin { txn, meta: TxnMeta::default() })?;
//! let transfer = client.upload(txn, oid, Tid::ZERO, b"its record".to_vec(), BLOB.len() as u64, None)?;
//! client.request(Request::Commit { txn })?;
//! exchange(&mut client, &mut state)?;
//! // The digest was not known when the transfer began. Now all bytes have been read.
//! client.finish_blob(transfer, digest_of(BLOB))?;
//! exchange(&mut client, &mut state)?;
//! let tid = state.tid.expect("it is committed");
//!
//! client.request(Request::SendBlob { blob: BlobId { oid, tid }, from: 0, upto: u64::MAX })?;
//! exchange(&mut client, &mut state)?;
//! assert!(state.done && state.received == BLOB);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! (The example never calls [`stored`](connection::Connection::stored), so a blob larger than the
//! window would not arrive. A real program has to call it: see below.)
//!
//! # The run loop
//!
//! Every embedding is this loop. Only the wait in its middle differs: a blocking read, `epoll`, an
//! io_uring, a simulator.
//!
//! 1. **Send.** Call [`poll_transmit`](connection::Connection::poll_transmit) until it returns
//!    `None`. Each time send the head, then all of the body, then call it again: between two chunks
//!    other messages are sent, so that none waits behind more than one chunk. When the socket
//!    accepts no more, stop. What was not polled stays in the connection.
//! 2. **Wait** until there is something to read, or room to write if step 1 was interrupted, or a
//!    call of the application, or the connection's timeout.
//! 3. **Receive.** Call [`expect`](connection::Connection::expect).
//!    * Control goes to [`handle_control`](connection::Connection::handle_control), which processes
//!      the bytes up to the next payload. Then call
//!      [`poll_event`](connection::Connection::poll_event) until it returns `None`. On a server do
//!      the same after every answer: it may release a vote that has waited.
//!    * Payload goes to the sink of its transfer. Then call
//!      [`payload_moved`](connection::Connection::payload_moved), and when the sink has stored the
//!      bytes [`stored`](connection::Connection::stored), at once or later.
//!
//!    Repeat this until all bytes that were read are processed.
//! 4. **Time.** Call [`handle_timeout`](connection::Connection::handle_timeout) when the timeout
//!    has passed, or in every round. Then call `poll_event` again, since the timeout may have given
//!    a transfer up. Then begin with step 1: every call may have queued a message.
//!
//! The loop ends with an error, or with the end of the stream. After a goodbye it ends when
//! [`is_finished`](connection::Connection::is_finished) returns true and step 1 is done. A blob has
//! arrived when [`TransferEvent::Stopped`] has come and the digest is right, not before.
//!
//! [`buffered`] has steps 1 and 3 for a transport that reads into a buffer and writes from one.
//! These examples are complete loops with different waits. Each downloads a blob and checks it:
//!
//! | `cargo run -p blobferry-examples --bin …` | is | shows |
//! |---|---|---|
//! | `blocking_std` | one thread, `std::net::TcpStream`, `std::fs` | the smallest loop; uploads; a source that fails |
//! | `in_memory` | both state machines, two vectors, virtual time | the server side; timeouts; resuming a download |
//! | `io_uring` | completions, and buffers that the kernel owns | sinks that finish later, in any order |
//! | `splice` | payload from socket to file in the kernel | reading exactly the control bytes |
//!
//! # Who owns which bytes
//!
//! Payload never enters the state machine, which handles only heads and ranges. `poll_transmit`
//! writes a head and names the [`Slice`] that follows. `expect` says whether the next bytes are
//! control or payload of a transfer. So a transport can read into buffers, use `splice`, or give
//! the kernel buffers that it owns. A [`Slice`] is `Copy` and borrows nothing: it can travel with
//! an operation and come back with its completion.
//!
//! | bytes | owner |
//! |---|---|
//! | control that waits to be sent | the connection, until `poll_transmit` appends it to the caller's buffer |
//! | payload to be sent | the caller; the connection never reads it |
//! | what was read | the caller; the connection copies only the beginning of an incomplete frame |
//! | payload that has arrived | the caller, as long as it likes: the peer sends more only when it is `stored` |
//!
//! The windows in a side's [`Limits`] bound the payload that has arrived and is not stored.
//!
//! # Time
//!
//! The crate has no clock. The caller chooses an epoch for each connection, and passes the [`Time`]
//! to the calls that need it. Call [`poll_timeout`](connection::Connection::poll_timeout) before
//! every wait, because every call that takes `&mut self` may move the timeout. There is one timeout
//! for everything: the handshake, pings, stalled transfers and silence. A call of `handle_timeout`
//! that comes early or twice does nothing. If a process was stopped for an hour, its late call
//! sends a ping first, and does not end the connection.
//!
//! # Errors
//!
//! There are three kinds of errors, which differ in what the caller has to do.
//!
//! **[`RequestError`]: a request has failed.** It comes in an event, and the connection goes on.
//! `PROTOCOL.md`, section 8, says what each means for its transaction. One of them comes from the
//! connection itself, whatever the peer does: [`Deadline::Transfer`].
//!
//! **[`UsageError`]: a call was not possible now.** The call has changed nothing.
//!
//! | error | what to do |
//! |---|---|
//! | `NotConnected`, `Closing` | wait for [`client::Event::Connected`]; open another connection |
//! | `Limit`, `TooLong` | wait for an answer, or send what waits, and try again; use smaller messages |
//! | `NoSuchRequest`, `NoSuchTransfer` | usually nothing: the request or transfer has ended meanwhile |
//! | `BadRange` of `start_blob` | the client has requested bytes beyond the blob: reply [`RequestError::BadRange`] |
//! | `Dead` | handle the `PeerError` in it |
//! | all others | correct the caller, which has lost track of the connection's state |
//!
//! **[`PeerError`]: the connection is dead.** Close the socket. A client that was committing
//! requests the [`Outcome`] on another connection. A client that was downloading requests the rest,
//! with `from`. A server aborts the remaining [transactions](server::Connection::transactions),
//! except those that it is finishing already. Do the same when the stream ends or fails, which the
//! connection itself does not notice.
//!
//! | error | meaning |
//! |---|---|
//! | `NotBlobferry` | another program listens there: check the address |
//! | `Refused` | the server has refused the connection: the [`Refusal`] says why, and whether to try again |
//! | `BadMagic`, `BadVersion`, `BadLimits` | the peer speaks another protocol or version: do not try again |
//! | `HandshakeTimeout`, `Silent` | the peer or the network is gone: connect again |
//! | `NotReading` | the peer sends requests, and does not read the answers |
//! | all others | the peer broke the rule that the error names. If the peer is correct, check your own code: lost or repeated bytes have this effect (mistakes 1 and 3) |
//!
//! # Five mistakes, and how they show
//!
//! 1. **Payload is passed to `handle_control`.** It stops at payload, and returns fewer bytes than
//!    it was given; the next call returns 0. A loop that ignores the number loses its place in the
//!    stream.
//! 2. **`stored` is never called.** A download stops after exactly one window
//!    ([`Limits::transfer_window`]) without an error: pings are answered, and no byte comes. After
//!    [`Config::transfer_timeout`] the transfer is given up. A call that is too early, before the
//!    bytes were moved, returns [`UsageError::BadRange`].
//! 3. **A head is sent without all of its body.** The peer takes the next head for payload, and
//!    ends the connection or finds a wrong digest. [`Transmit`] is `#[must_use]` for this reason.
//!    If a source fails, send zeros and call [`abort_blob`](connection::Connection::abort_blob).
//! 4. **Events wait while payload is moved.** Then `expect` names an unknown transfer, because its
//!    [`TransferEvent::Started`] was not polled. (If all events were polled, a transfer without a
//!    sink is one that was cancelled. Drop its bytes, and call `payload_moved` all the same.)
//! 5. **The timeout is polled only once.** Then a peer that is gone is never noticed, or
//!    `handle_timeout` is called all the time, which has no effect.
//!
//! What the connection returns for each of them:
//!
//! ```
//! use blobferry_protocol::testing::{Pair, PairConfig, Source};
//! use blobferry_protocol::{BlobId, Expect, Oid, PeerError, Request, Slice, Tid, Time, UsageError, client};
//!
//! // A client that has requested a blob of 5,000,000 bytes, and all bytes that the server sends with its first credit.
//! let mut pair = Pair::connected(PairConfig::default());
//! let blob = BlobId { oid: Oid(1), tid: Tid(7) };
//! let client = &mut pair.client.connection;
//! let transfer = client.request(Request::SendBlob { blob, from: 0, upto: u64::MAX })?.into();
//! # let now = Time::ZERO;
//! # let (server, mut up, mut down) = (&mut pair.server.connection, Vec::new(), Vec::new());
//! # while client.poll_transmit(now, &mut up).is_some() {}
//! # server.handle_control(now, &up)?;
//! # server.start_blob(transfer, 5_000_000, blobferry_protocol::Digest([0; 32]))?;
//! # let zeros = |slice: Slice, into: &mut Vec<u8>| Ok(into.resize(into.len() + slice.len as usize, 0));
//! # blobferry_protocol::buffered::transmit(server, now, &mut down, usize::MAX, zeros);
//!
//! // Mistake 1. The call processes the messages before the payload, and not a byte more.
//! let used = client.handle_control(now, &down)?;
//! assert!(used < down.len());
//! assert_eq!(client.handle_control(now, &down[used..])?, 0);
//!
//! // Mistake 4. The payload belongs to a transfer whose `Started` event has not been polled.
//! let Expect::Payload(slice) = client.expect() else { panic!("payload was announced") };
//! assert_eq!((slice.transfer, slice.offset), (transfer, 0));
//! assert!(matches!(client.poll_event(), Some(client::Event::Transfer(_))));
//!
//! // Mistake 2. Only moved bytes can be stored, and only expected bytes can be moved.
//! assert_eq!(client.stored(transfer, 1), Err(UsageError::BadRange(transfer)));
//! let (moved, expected) = (slice.len + 1, slice.len);
//! assert_eq!(client.payload_moved(now, moved), Err(UsageError::NotExpected { moved, expected }));
//!
//! // Mistake 5. An early call is harmless. (A late one is not: try it with `Pair::advance`.)
//! assert_eq!(client.handle_timeout(now), Ok(()));
//! assert!(client.poll_timeout() > Some(now));
//!
//! // Mistake 3, and bytes that are passed twice: payload is taken for a message.
//! client.payload_moved(now, slice.len)?;
//! let error = client.handle_control(now, &down[used..]).expect_err("these bytes are payload");
//! assert!(matches!(error, PeerError::Malformed(_) | PeerError::FrameTooLong { .. }));
//! // From now on every call returns this error.
//! assert_eq!(client.stored(transfer, 1), Err(UsageError::Dead(error.clone())));
//! assert_eq!((client.poll_timeout(), client.error()), (None, Some(&error)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Invariants
//!
//! * **Everything is bounded.** Frames, lists, waiting control bytes, requests, transfers and
//!   transactions have [`Limits`]. A length or a count in a message allocates nothing. The bytes of
//!   one `handle_control` bound the events.
//! * **A call at the wrong time changes nothing.** It returns a [`UsageError`], and never panics.
//! * **A peer that breaks a rule ends the connection.** A [`PeerError`] names the rule. Afterwards
//!   every call returns that error, nothing is sent, and only earlier events can be polled.
//! * **Every request has exactly one answer** while the connection lives: one event on a client,
//!   one call on a server.
//! * **The events do not depend on how the stream is cut into reads.**
//! * **Deterministic.** There is no clock, no randomness, and no order of a hash map.
//!
//! # Features
//!
//! The crate is `no_std` (with `alloc`). The feature `testing` adds the module `testing`:
//! strategies for [proptest](https://docs.rs/proptest), and a simulated link. It needs `std`.
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
mod ids;
mod limits;
mod message;
#[doc(hidden)]
pub mod planted;
pub mod server;
#[cfg(feature = "testing")]
pub mod testing;
mod time;
pub mod wire;

pub use connection::{Config, Expect, Slice, TransferEvent, Transmit};
pub use error::{PeerError, UsageError};
pub use ids::*;
pub use limits::Limits;
pub use message::*;
pub use time::Time;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
