//! A client and a server without sockets, for transports to drive.
//!
//! * [`client`]: the calls of a client, with callbacks, on one connection after the other.
//! * [`server`]: what a server answers, and the transactions that outlive a connection.
//! * [`io`]: buffers between a connection's bytes, the files behind it, and a stream.

pub mod client;
pub mod io;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod schedules;
pub mod server;

/// For the macros of [`client`], whose signatures have the protocol's words in them.
#[doc(hidden)]
pub use blobferry_protocol as protocol;
/// For the same.
#[doc(hidden)]
pub use {blobferry_cache as cache, bytes};
