//! What a transport and a connection exchange about payload: what to send, what to expect, and events of transfers.

#[cfg(doc)]
use crate::connection::Connection;
use crate::ids::{Digest, TransferId};
use crate::message::RequestError;

/// A run of a blob's bytes on their way: which transfer, where in the blob, how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The transfer.
    pub transfer: TransferId,
    /// The offset of the first byte in the blob.
    pub offset: u64,
    /// How many bytes, at least 1.
    pub len: u64,
}

/// What to send now: `head` bytes that were appended to the caller's buffer, then `body`.
///
/// Once the head is on the wire the peer counts on the body. If its source fails in the middle, send zeros for the
/// rest of it and call [`Connection::abort_blob`]: the receiver drops them.
#[must_use = "the bytes are lost if nobody sends them"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// How many bytes were appended to the buffer.
    pub head: usize,
    /// What the transport moves itself behind them, all of it, before it asks for more.
    pub body: Option<Slice>,
}

/// What the next bytes from the peer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Bytes for [`Connection::handle_control`]. No more than `max` of them are sure to be before the next payload:
    /// a transport that moves payload past user space reads at most so many.
    Control {
        /// At least 1.
        max: usize,
    },
    /// Payload for the sink of this transfer; report it with [`Connection::payload_moved`]. A transfer that nobody
    /// has a sink for was cancelled: drop the bytes, and report them all the same.
    Payload(Slice),
}

impl Expect {
    /// How many of the next bytes are payload for sure. Before they are there the peer can say nothing else: a transport need
    /// not be woken for fewer, as long as it reads what there is before it calls
    /// [`handle_timeout`](Connection::handle_timeout).
    #[must_use]
    pub fn payload_due(&self) -> u64 {
        match self {
            Expect::Control { .. } => 0,
            Expect::Payload(slice) => slice.len,
        }
    }
}

/// What becomes of a transfer towards this side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferEvent {
    /// It begins. Have a sink ready before the next payload is moved.
    Started {
        /// The transfer.
        transfer: TransferId,
        /// The offset of its first byte in the blob.
        from: u64,
        /// The offset behind its last byte.
        end: u64,
        /// The size of the whole blob.
        size: u64,
        /// The digest of the whole blob, where the sender knew it.
        digest: Option<Digest>,
    },
    /// All its bytes have been moved. They are worth something only if they have this digest.
    Stopped {
        /// The transfer.
        transfer: TransferId,
        /// The digest of the whole blob.
        digest: Digest,
    },
    /// It has failed: drop its bytes.
    Aborted {
        /// The transfer.
        transfer: TransferId,
        /// Why.
        reason: RequestError,
    },
}

impl TransferEvent {
    /// The transfer that this is about.
    #[must_use]
    pub fn transfer(&self) -> TransferId {
        match self {
            TransferEvent::Started { transfer, .. }
            | TransferEvent::Stopped { transfer, .. }
            | TransferEvent::Aborted { transfer, .. } => *transfer,
        }
    }
}
