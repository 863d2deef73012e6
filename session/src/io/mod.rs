//! Payload between connections and files: sinks for transfers that arrive, sources for those that leave, and the buffers
//! between both and a stream.
//!
//! Both halves of the conversation use it, and every transport: a client's downloads and a server's uploads are sinks
//! alike. Bytes that arrive are handed to a [lane](blobferry_platform::pool::Strand) at once, so that the thread with the sockets does not
//! wait for a disk, but where a sink [is quick](Sink::is_quick); what it has taken is reported back, and that, through
//! credit, is what keeps memory flat.

mod buffers;
mod connection_io;
mod incoming;
mod outgoing;

use blobferry_protocol::{PeerError, RequestError, Time, TransferId};
use bytes::Bytes;

pub use blobferry_platform::progress::{OnProgress, Progress};
pub use buffers::{CloseReason, set_accept_backlog};
pub use connection_io::ConnectionIo;
pub use incoming::{IncomingTransfers, Sink, SinkEvent};
pub use outgoing::{Drained, FileSlice, OutgoingTransfers, Source};

/// One end of a connection, with everything behind it. A transport drives it through a [`ConnectionIo`], and adds a socket,
/// its readiness, and a timer.
pub trait ConnectionHandler {
    /// Appends what is to be sent to `out` until that holds at least `enough` bytes or there is nothing to send now. With
    /// `lend`, it ends sooner where the next bytes lie in a file, and were hashed if they have to be: those are for the caller to
    /// move, right behind what is in `out`.
    fn transmit(&mut self, now: Time, out: &mut Vec<u8>, enough: usize, lend: bool) -> Option<FileSlice>;

    /// What was lent can not be read; zeros are sent in its place.
    fn body_failed(&mut self, transfer: TransferId, reason: RequestError);

    /// Takes bytes that have arrived.
    ///
    /// # Errors
    /// The rule that the peer broke: close the socket.
    fn receive(&mut self, now: Time, bytes: Bytes) -> Result<(), PeerError>;

    /// May more bytes be read from the socket now? While not, what has arrived is being worked off, and the end of
    /// that is reported like any other news: by the wake-up that the endpoint was made with.
    fn wants_input(&self) -> bool;

    /// Bytes of payload that are sure to come next. While they have not come, nothing else can.
    fn payload_due(&self) -> u64;

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    fn poll_timeout(&self) -> Option<Time>;

    /// Does what is due.
    ///
    /// # Errors
    /// The peer is gone: close the socket.
    fn handle_timeout(&mut self, now: Time) -> Result<(), PeerError>;

    /// Takes in what other threads have left for it, as [`transmit`](Self::transmit) does: while the stream takes
    /// nothing that would be the only one to look, and what waits must be counted.
    fn catch_up(&mut self);

    /// Why the connection is dead, where it is: close the socket. What was to be said may be too much for a peer that
    /// does not read.
    fn error(&self) -> Option<PeerError>;

    /// Has the conversation come to its end, so that the socket can be closed?
    fn is_finished(&self) -> bool;
}
