//! What our own tests use, for the tests of those who embed the machines: strategies for [proptest], and a simulated
//! link. Under the feature `testing`; nothing here opens a socket, sleeps, or asks a clock.
//!
//! * Every word and every message is [`Arbitrary`](proptest::arbitrary::Arbitrary): `any::<Message>()` is any message,
//!   `any::<Request>()` any request.
//! * [`Pair`] joins a client's and a server's machine by two [`Link`]s with delay, capacity and a plan of how the
//!   stream is cut into reads. Each [`End`] has sources and sinks in memory, and moves payload through buffers or past
//!   them ([`Style`]).
//!
//! A download over a link that delivers three bytes, then one, then all there is:
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
//! assert!(matches!(pair.server.event(), Some(server::Event::Request { id: asked, .. }) if asked == id));
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

pub use end::{End, Sink, Source, Style, digest_of};
pub use link::Link;
pub use pair::{Pair, PairConfig};
