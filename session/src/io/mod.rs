//! Payload between connections and files: sinks for transfers that arrive, sources for transfers that leave, and the
//! buffers between both and a socket. Client and server use the same code.
//!
//! Bytes that arrive go to a [`Strand`](blobferry_platform::pool::Strand) of a pool, so that the thread with the sockets
//! does not wait for a disk; only a [quick sink](Sink::is_quick) is called on that thread. A sink reports what it has
//! taken. The machine turns that into credit for the peer, and so bounds the memory of a connection.

mod buffers;
mod connection_io;
mod incoming;
mod outgoing;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;

use blobferry_protocol::{PeerError, RequestError, Time, TransferId};
use bytes::Bytes;

pub use blobferry_platform::progress::{OnProgress, Progress};
pub use buffers::{CloseReason, set_accept_backlog};
pub use connection_io::ConnectionIo;
pub use incoming::{IncomingTransfers, Sink, SinkEvent};
pub use outgoing::{Drained, FileSlice, OutgoingTransfers, Source};

/// One end of a connection, with everything behind it.
///
/// A transport drives it through a [`ConnectionIo`], and adds a socket, its readiness, and a timer. A program without
/// sockets calls these methods itself: it passes the bytes of one end's [`transmit`](Self::transmit) to the other end's
/// [`receive`](Self::receive), and calls [`handle_timeout`](Self::handle_timeout) in time.
pub trait ConnectionHandler {
    /// Appends bytes to send to `out`, until it holds at least `enough` bytes or there is nothing to send now.
    ///
    /// With `zero_copy` it ends sooner if the next bytes lie in a file: the caller sends the returned slice right behind
    /// `out`. Its bytes are hashed already, if they have to be.
    fn transmit(&mut self, now: Time, out: &mut Vec<u8>, enough: usize, zero_copy: bool)
    -> Option<FileSlice>;

    /// Reports that a file slice of this handler cannot be read. Zeros are sent in its place; the handler fails the
    /// transfer.
    fn body_failed(&mut self, transfer: TransferId, reason: RequestError);

    /// Takes bytes that have arrived.
    ///
    /// # Errors
    /// The peer has violated the protocol: close the socket.
    fn receive(&mut self, now: Time, bytes: Bytes) -> Result<(), PeerError>;

    /// Returns whether more bytes may be read from the socket now. If not, what has arrived is still being processed, and
    /// the handler wakes the transport when that is done.
    fn wants_input(&self) -> bool;

    /// Returns the number of payload bytes that are due. No other bytes can arrive before them.
    fn payload_due(&self) -> u64;

    /// Returns when [`handle_timeout`](Self::handle_timeout) must be called.
    fn poll_timeout(&self) -> Option<Time>;

    /// Handles the timeouts that have expired.
    ///
    /// # Errors
    /// The peer counts as dead: close the socket.
    fn handle_timeout(&mut self, now: Time) -> Result<(), PeerError>;

    /// Takes the messages of other threads, as [`transmit`](Self::transmit) does. A transport calls this if the socket
    /// accepts no bytes: the messages count towards the backlog, which [`error`](Self::error) checks.
    fn catch_up(&mut self);

    /// Returns why the connection is dead, if it is: close the socket. For instance, more is waiting to be sent than a
    /// peer that does not read may have.
    fn error(&self) -> Option<PeerError>;

    /// Returns whether everything is done, so that the socket can be closed.
    fn is_finished(&self) -> bool;
}
