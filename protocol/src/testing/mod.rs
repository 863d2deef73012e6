//! Test support: strategies for [proptest], and simulated links with virtual time.
//!
//! The feature `testing` enables this module. It opens no socket, never sleeps, and reads no clock.
//!
//! * Every id and every message is [`Arbitrary`](proptest::arbitrary::Arbitrary):
//!   `any::<Message>()` is any message, `any::<Request>()` any request.
//! * [`Pair`] joins a client and a server by two [`Link`]s, with a delay, a capacity and the sizes
//!   of the reads. Each [`End`] has sources and sinks in memory, and moves payload through buffers
//!   or past them ([`Style`]). [`Pair::reconnect`] replaces both connections by new ones.
//! * [`Link::pair`] returns two ends that implement [`Read`](std::io::Read) and
//!   [`Write`](std::io::Write), to test a run loop without sockets.
//!
//! A download over a link that delivers three bytes, then one, then all that have arrived:
//!
//! ```
//! use blobferry_protocol::testing::{Link, Pair, PairConfig, Source, Style};
//! use blobferry_protocol::{BlobId, Oid, Request, Tid, client, server};
//!
//! let fragments = vec![3, 1, usize::MAX];
//! let down = Link { fragments, ..Link::default() };
//! let mut pair = Pair::connected(PairConfig { down, client_style: Style::Splicing, ..PairConfig::default() });
//!
//! let blob = BlobId { oid: Oid(1), tid: Tid(7) };
//! let id = pair.client.connection.request(Request::SendBlob { blob, from: 2, upto: u64::MAX })?;
//! pair.run();
//! assert!(matches!(pair.server.event(), Some(server::Event::Request { id: requested, .. }) if requested == id));
//!
//! pair.serve(id.into(), Source::new(b"a ferry"))?;
//! pair.run();
//! assert_eq!(pair.client.sink(id.into()).map(|sink| sink.bytes.as_slice()), Some(&b"ferry"[..]));
//! # Ok::<(), blobferry_protocol::UsageError>(())
//! ```
//!
//! [proptest]: https://docs.rs/proptest

mod arbitrary;
mod end;
mod link;
mod pair;
mod stream;

pub use end::{End, Sink, Source, Style, digest_of};
pub use link::Link;
pub use pair::{Pair, PairConfig};
pub use stream::{LinkClock, LinkEnd};
