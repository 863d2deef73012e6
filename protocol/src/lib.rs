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
//! [`connection::Connection`] with another [half](connection::Side) of the conversation. Here they talk through two
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
//! fn bytes_of(blob: &[u8], slice: Slice, into: &mut Vec<u8>) -> Result<(), RequestError> {
//!     let bytes = blob.get(slice.offset as usize..(slice.offset + slice.len) as usize);
//!     into.extend_from_slice(bytes.ok_or(RequestError::Source { detail: "too short".into() })?);
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
//! (Here nobody says that the bytes are [`stored`](connection::Connection::stored), so a blob larger than a window would
//! not get through. A real program says so: see below.)
//!
//! # The run loop
//!
//! Every embedding is this loop, whatever waits in the middle of it: a blocking read, `epoll`, an io_uring, a simulator.
//!
//! 1. **Say.** [`poll_transmit`](connection::Connection::poll_transmit) until `None`. Each time send the head, then all
//!    of the body, then ask again: in between other messages get their turn, so that none waits behind more than one
//!    chunk. When the socket takes no more, stop asking. What was not asked for yet is still the machine's, and costs
//!    nothing.
//! 2. **Wait** until there is something to read, or room to write where step 1 was not done, or a call of your own, or the
//!    machine's timeout.
//! 3. **Hear.** Ask [`expect`](connection::Connection::expect). Control goes to
//!    [`handle_control`](connection::Connection::handle_control), which takes as much of it as is not payload; then
//!    [`poll_event`](connection::Connection::poll_event) until `None` (on a server after every answer, too: it may let
//!    a vote go that waited for it). Payload goes to the sink of its transfer; then
//!    [`payload_moved`](connection::Connection::payload_moved), and when the sink has taken it
//!    [`stored`](connection::Connection::stored), at once or much later. Again until all that was read is used up.
//! 4. [`handle_timeout`](connection::Connection::handle_timeout), when it is time or always; then `poll_event` again, for
//!    it may have given a transfer up. Then from the beginning: every call may have made something to say.
//!
//! The loop ends with an error, with the end of the stream, or, after a goodbye, when the half's `is_finished` says so and
//! step 1 is done. A blob that has arrived is one when [`TransferEvent::Stopped`] has come and the digest is right, not
//! before.
//!
//! [`buffered`] has steps 1 and 3 for everybody who reads into a buffer and writes from one. These examples are the whole
//! loop, each with another middle. All of them download a blob and check it:
//!
//! | `cargo run -p blobferry-examples --bin …` | is | look here for |
//! |---|---|---|
//! | `blocking_std` | one thread, `std::net::TcpStream`, `std::fs` | the loop at its smallest; uploads; a source that fails |
//! | `in_memory` | both machines, two vectors, time by hand | the server's half; timeouts; resuming a download |
//! | `io_uring` | completions, and buffers that the kernel owns | sinks that are done later, and in any order |
//! | `splice` | payload from socket to file in the kernel | reading exactly as much as is control |
//!
//! # Who owns which bytes
//!
//! The machine deals in heads and ranges: payload never enters it. `poll_transmit` writes a head and names the [`Slice`]
//! that follows; `expect` says whether the next bytes are for the machine or for the sink of a transfer. So a transport is
//! free to read into buffers, to `splice`, or to give the kernel buffers that it owns. A [`Slice`] is `Copy` and borrows
//! nothing: it can travel with an operation and come back with its completion.
//!
//! | bytes | who owns them |
//! |---|---|
//! | control that waits to be sent | the machine, until `poll_transmit` appends it to a buffer of the caller's |
//! | payload to be sent | the caller: the machine has seen none of it |
//! | what was read | the caller; the machine copies only the beginning of a frame that is not complete yet |
//! | payload that has arrived | the caller, who keeps it as long as it likes: the peer sends more when it is `stored` |
//!
//! What a caller holds of arrived payload is bounded by the windows that it announced in its [`Limits`].
//!
//! # Time
//!
//! There is no clock in here. Every connection has an epoch of the caller's choice, and hears what [`Time`] it is with the
//! calls where that matters. Ask [`poll_timeout`](connection::Connection::poll_timeout) before every wait, for it may
//! move with every call that takes `&mut self`: whatever is heard puts it off. There is one timeout for everything, be it
//! the handshake, a ping, or giving up. One that comes early or twice does nothing; one that comes late, because a process
//! was stopped for an hour, leads to a ping before it leads to an end.
//!
//! # Errors
//!
//! There are three kinds, and they say who has to do something.
//!
//! **[`RequestError`]: the answer is no.** It comes in an event, and nothing is wrong with the connection. What each
//! means for its transaction stands in `PROTOCOL.md`, section 8. One comes from the machine itself, whatever the peer
//! does: [`Deadline::Transfer`].
//!
//! **[`UsageError`]: this call made no sense now.** It changed nothing.
//!
//! | error | what to do |
//! |---|---|
//! | `NotConnected`, `Closing` | wait for [`client::Event::Connected`]; open another connection |
//! | `Limit`, `TooLong` | wait for an answer, or send what waits, and ask again; say it in smaller pieces |
//! | `NoSuchRequest`, `NoSuchTransfer` | usually nothing: it has ended while you were about to say something on it |
//! | `BadRange` of `start_blob` | the client has asked for what the blob does not have: reply [`RequestError::BadRange`] |
//! | `Dead` | what is to be done about the `PeerError` in it |
//! | all others | mend the caller: it is not where it thinks it is |
//!
//! **[`PeerError`]: the connection is dead.** Close the socket. A client that was in the middle of a commit asks for the
//! [`Outcome`] on another connection; one that was downloading asks for the rest, with `from`. A server aborts the
//! [transactions](server::Connection::transactions) that are left, except those whose finish it has taken on. The same
//! goes for a stream that ends or fails, which the machine does not hear of.
//!
//! | error | what it says of the peer |
//! |---|---|
//! | `Refused` | it wants no conversation: the [`Refusal`] says why, and whether to come back later |
//! | `BadMagic`, `BadVersion`, `BadLimits` | it is something else, or of another time: do not come back |
//! | `HandshakeTimeout`, `Silent` | it is gone, or the network between is: connect again |
//! | `NotReading` | it asks, and does not read the answers |
//! | all others | it broke the rule that the error names. If its code is good, look at your own: bytes that were lost or fed twice look like this (mistakes 1 and 3) |
//!
//! # Five mistakes, and how they show
//!
//! 1. **Payload is fed to the machine.** `handle_control` stops at it, and says that it took fewer bytes than it was given;
//!    called again it takes 0. A loop that does not look at the number loses its place in the stream.
//! 2. **Nobody says `stored`.** A download stops after exactly one window ([`Limits::transfer_window`]) with no error:
//!    pings are answered, no byte comes, and after [`Config::transfer_timeout`] it is given up. If it is said too early, before the bytes were moved, it is a
//!    [`UsageError::BadRange`].
//! 3. **A head goes out without all of its body.** The next head is then taken for payload, and the peer ends the
//!    connection, or finds a wrong digest. [`Transmit`] is `#[must_use]` for this. A source that fails is no way out:
//!    send zeros, and [`abort_blob`](connection::Connection::abort_blob).
//! 4. **Events wait while payload is moved.** Then `expect` names a transfer that nobody has heard of, because its
//!    [`TransferEvent::Started`] was not looked at. (Once all events are taken, a transfer without a sink is one that
//!    was cancelled. Its bytes are dropped, and `payload_moved` all the same.)
//! 5. **The timeout is asked for once.** A peer that is gone is then never noticed, or `handle_timeout` is called all the
//!    time, which does no harm and no good.
//!
//! What the machine answers to each of them:
//!
//! ```
//! use blobferry_protocol::testing::{Pair, PairConfig, Source};
//! use blobferry_protocol::{BlobId, Expect, Oid, PeerError, Request, Slice, Tid, Time, UsageError, client};
//!
//! // A client that has asked for a blob of 5,000,000 bytes, and all that a server says as far as its credit goes.
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
//! // Mistake 1. It takes the messages in front, and not a byte more.
//! let used = client.handle_control(now, &down)?;
//! assert!(used < down.len());
//! assert_eq!(client.handle_control(now, &down[used..])?, 0);
//!
//! // Mistake 4. The payload is for a transfer of which nobody has looked at the beginning.
//! let Expect::Payload(slice) = client.expect() else { panic!("payload was announced") };
//! assert_eq!((slice.transfer, slice.offset), (transfer, 0));
//! assert!(matches!(client.poll_event(), Some(client::Event::Transfer(_))));
//!
//! // Mistake 2. Stored can only be what was moved, and moved only what is expected.
//! assert_eq!(client.stored(transfer, 1), Err(UsageError::BadRange(transfer)));
//! let (moved, expected) = (slice.len + 1, slice.len);
//! assert_eq!(client.payload_moved(now, moved), Err(UsageError::NotExpected { moved, expected }));
//!
//! // Mistake 5. Too early is harmless. (Too late is not: try it with `Pair::advance`.)
//! assert_eq!(client.handle_timeout(now), Ok(()));
//! assert!(client.poll_timeout() > Some(now));
//!
//! // Mistake 3, and bytes that are fed twice: the two sides are out of step, and payload is taken for a message.
//! client.payload_moved(now, slice.len)?;
//! let error = client.handle_control(now, &down[used..]).expect_err("these bytes are payload");
//! assert!(matches!(error, PeerError::Malformed(_) | PeerError::FrameTooLong { .. }));
//! // From now on every call says so.
//! assert_eq!(client.stored(transfer, 1), Err(UsageError::Dead(error.clone())));
//! assert_eq!((client.poll_timeout(), client.error()), (None, Some(&error)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
