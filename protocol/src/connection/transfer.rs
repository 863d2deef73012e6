//! What a transport and a connection exchange about payload: what to send, what to expect, and
//! events of transfers.

#[cfg(doc)]
use crate::connection::Connection;
use crate::ids::{Digest, TransferId};
use crate::message::RequestError;

/// A range of bytes of one transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The transfer.
    pub transfer: TransferId,
    /// The offset of the first byte in the blob.
    pub offset: u64,
    /// The number of bytes, at least 1.
    pub len: u64,
}

/// What to send now: the `head` bytes that were appended to the caller's buffer, then `body`.
///
/// When the head is on the wire, the peer takes the following bytes for the body. If the source
/// fails in the middle, send zeros for the rest of the body and call [`Connection::abort_blob`]:
/// the receiver drops them.
#[must_use = "the peer loses its place in the stream if these bytes are not sent"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The number of bytes appended to the buffer.
    pub head: usize,
    /// The payload that the transport sends behind the head: all of it, before the next
    /// [`poll_transmit`](Connection::poll_transmit).
    pub body: Option<Slice>,
}

/// What the next bytes from the peer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Bytes for [`Connection::handle_control`]. Only the first `max` of them certainly come before
    /// the next payload. A transport that moves payload past user space therefore reads at most
    /// `max` bytes.
    Control {
        /// At least 1.
        max: usize,
    },
    /// Payload for the sink of this transfer. Report it with [`Connection::payload_moved`].
    ///
    /// A transfer without a sink was cancelled: drop the bytes, and report them all the same.
    Payload(Slice),
}

impl Expect {
    /// Returns how many of the next bytes are certainly payload.
    ///
    /// The peer cannot send anything else before them. A transport can sleep until all of them are
    /// there, if it reads what has arrived before it calls
    /// [`handle_timeout`](Connection::handle_timeout).
    #[must_use]
    pub fn payload_due(&self) -> u64 {
        match self {
            Expect::Control { .. } => 0,
            Expect::Payload(slice) => slice.len,
        }
    }
}

/// The progress of a transfer to this side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferEvent {
    /// The transfer begins. Create its sink before the next payload is moved.
    Started {
        /// The transfer.
        transfer: TransferId,
        /// The offset of its first byte in the blob.
        from: u64,
        /// The offset behind its last byte.
        end: u64,
        /// The size of the whole blob in bytes.
        size: u64,
        /// The digest of the whole blob, if the sender knows it already.
        digest: Option<Digest>,
    },
    /// All bytes of the transfer have been moved. Use them only if they have this digest.
    Stopped {
        /// The transfer.
        transfer: TransferId,
        /// The digest of the whole blob.
        digest: Digest,
    },
    /// The transfer has failed: drop its bytes.
    Aborted {
        /// The transfer.
        transfer: TransferId,
        /// Why.
        reason: RequestError,
    },
}

impl TransferEvent {
    /// Returns the transfer of this event.
    #[must_use]
    pub fn transfer(&self) -> TransferId {
        match self {
            TransferEvent::Started { transfer, .. }
            | TransferEvent::Stopped { transfer, .. }
            | TransferEvent::Aborted { transfer, .. } => *transfer,
        }
    }
}
