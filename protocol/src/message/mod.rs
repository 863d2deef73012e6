//! All messages, as they are on the wire.
//!
//! The order of an enum's variants is the wire format, so new variants are only appended. Both
//! directions share one [`Message`]. [`client`](crate::client), [`server`](crate::server) and
//! [`connection`](crate::connection) decide which side may send which message, and when.

mod bounded;
mod error;
mod reply;
mod request;

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Oid, RequestId, Tid, TransferId};
use crate::limits::Limits;

pub use error::{Deadline, Phase, RequestError};
pub use reply::{BlobInfo, Conflict, HistoryEntry, Outcome, Packed, Reply, Revision, Unfinished};
pub use request::{Request, TxnMeta};

/// The magic bytes at the beginning of the first message, which identify the protocol.
pub const MAGIC: [u8; 8] = *b"blobfery";

/// The versions of the protocol that this crate speaks, first and last.
pub const VERSIONS: (u16, u16) = (1, 1);

/// A message, in either direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Client: the first message, with its versions, limits and credentials.
    Hello(Hello),
    /// Server: the handshake is done.
    Welcome(Welcome),
    /// Server: the connection is refused, and ends.
    Refuse(Refusal),
    /// Client: a request. Exactly one answer follows: a [`Message::Reply`], or for
    /// [`Request::SendBlob`] a transfer that ends in [`Message::BlobStop`] or
    /// [`Message::BlobAbort`].
    Request {
        /// Greater than every id before it on this connection.
        id: RequestId,
        /// The request itself.
        request: Request,
    },
    /// Server: the answer to a request. Replies may come in any order.
    Reply {
        /// The request that this answers.
        id: RequestId,
        /// The answer, or why the request failed.
        result: Result<Reply, RequestError>,
    },
    /// Server: a transaction was committed. The server sends these in commit order, and each before
    /// any reply that exposes the transaction.
    Invalidate {
        /// The transaction.
        tid: Tid,
        /// The objects that have a new revision (or were deleted).
        #[serde(with = "bounded")]
        oids: Vec<Oid>,
    },
    /// Sender of a blob: the transfer begins.
    BlobStart {
        /// The transfer, which has the number of its request.
        transfer: TransferId,
        /// The offset in the blob of the first byte of this transfer.
        from: u64,
        /// The first offset that is not sent.
        end: u64,
        /// The size of the whole blob in bytes.
        size: u64,
        /// The digest of the whole blob, if the sender knows it already.
        digest: Option<Digest>,
    },
    /// Sender of a blob: `len` raw bytes follow this frame. They are not part of its length.
    BlobChunk {
        /// The transfer.
        transfer: TransferId,
        /// The offset of the bytes in the blob: always where the last chunk ended.
        offset: u64,
        /// The number of bytes that follow, at least 1.
        len: u32,
    },
    /// Sender of a blob: all bytes were sent.
    BlobStop {
        /// The transfer.
        transfer: TransferId,
        /// The digest of the whole blob.
        digest: Digest,
    },
    /// Sender of a blob: the transfer failed, and the receiver drops its bytes.
    BlobAbort {
        /// The transfer.
        transfer: TransferId,
        /// Why.
        reason: RequestError,
    },
    /// Receiver of a blob: the sender may send the bytes of this transfer below the offset `upto`.
    /// The value is absolute, and never lower than before.
    Credit {
        /// The transfer.
        transfer: TransferId,
        /// The first offset that may not be sent yet.
        upto: u64,
    },
    /// Receiver of blobs: the sender may have sent `upto` payload bytes since the connection began,
    /// all transfers together. The value is absolute, and never lower than before.
    ConnectionCredit {
        /// The first byte of the connection's payload that may not be sent yet.
        upto: u64,
    },
    /// Client: the request is cancelled. It still has exactly one answer, perhaps an early one.
    Cancel {
        /// The request.
        id: RequestId,
    },
    /// Either side: a check that the peer is alive.
    Ping {
        /// The number that the [`Message::Pong`] repeats.
        nonce: u64,
    },
    /// Either side: the answer to a [`Message::Ping`].
    Pong {
        /// The nonce of the ping.
        nonce: u64,
    },
    /// Either side: no new requests from now on. What is under way is finished, then the connection
    /// is closed.
    Goodbye,
}

impl Message {
    /// Returns the name of this kind of message, for errors.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) => "Hello",
            Message::Welcome(_) => "Welcome",
            Message::Refuse(_) => "Refuse",
            Message::Request { .. } => "Request",
            Message::Reply { .. } => "Reply",
            Message::Invalidate { .. } => "Invalidate",
            Message::BlobStart { .. } => "BlobStart",
            Message::BlobChunk { .. } => "BlobChunk",
            Message::BlobStop { .. } => "BlobStop",
            Message::BlobAbort { .. } => "BlobAbort",
            Message::Credit { .. } => "Credit",
            Message::ConnectionCredit { .. } => "ConnectionCredit",
            Message::Cancel { .. } => "Cancel",
            Message::Ping { .. } => "Ping",
            Message::Pong { .. } => "Pong",
            Message::Goodbye => "Goodbye",
        }
    }
}

/// The client's message of the handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// The first version that the client speaks.
    pub version_min: u16,
    /// The last version that the client speaks.
    pub version_max: u16,
    /// The limits of the client.
    pub limits: Limits,
    /// What identifies the client, at most 2048 bytes; empty if the server requires none.
    #[serde(with = "serde_bytes")]
    pub credentials: Vec<u8>,
}

/// The server's answer in the handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both sides use from now on.
    pub version: u16,
    /// The limits of the server.
    pub limits: Limits,
    /// The last committed transaction. [`Tid::successor`] of it reads as of that transaction.
    pub last_tid: Tid,
}

/// Why a server refuses a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No version in common.
    #[error("the server speaks versions {min} to {max} of the protocol only")]
    Version {
        /// The first version that the server speaks.
        min: u16,
        /// The last version that the server speaks.
        max: u16,
    },
    /// The credentials were not accepted.
    #[error("the server does not accept these credentials")]
    Credentials,
    /// The server has reached its limit of connections.
    #[error("the server has no room for another connection; try again later")]
    Full,
    /// The server is about to stop.
    #[error("the server is stopping")]
    Stopping,
}
