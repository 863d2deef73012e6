//! Every message of the conversation, as it is on the wire.
//!
//! The order of an enum's variants is the wire format: variants are only ever appended. Both directions share one
//! [`Message`]; which half may send which message, and when, is decided in [`client`](crate::client),
//! [`server`](crate::server) and [`connection`](crate::connection), never here.

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

/// The first bytes of the first message: what tells blobferry from everything else that may call a port.
pub const MAGIC: [u8; 8] = *b"blobfery";

/// The versions of the protocol that this crate speaks, first and last.
pub const VERSIONS: (u16, u16) = (1, 1);

/// One framed message, in either direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Client, first of all: who calls, and what it can do.
    Hello(Hello),
    /// Server: the handshake is done.
    Welcome(Welcome),
    /// Server: no conversation, and why. The connection ends.
    Refuse(Refusal),
    /// Client: asks for one thing. Exactly one answer follows: a [`Message::Reply`], or for
    /// [`Request::SendBlob`] a transfer that ends in [`Message::BlobStop`] or [`Message::BlobAbort`].
    Request {
        /// Greater than every id before it on this connection.
        id: RequestId,
        /// What is asked for.
        request: Request,
    },
    /// Server: the answer to a request. Replies may come in any order.
    Reply {
        /// The request that this answers.
        id: RequestId,
        /// What was asked for, or why not.
        result: Result<Reply, RequestError>,
    },
    /// Server: a transaction was committed. In commit order, and never behind a reply that exposes it.
    Invalidate {
        /// The transaction.
        tid: Tid,
        /// The objects that have a new revision (or were deleted).
        #[serde(with = "bounded")]
        oids: Vec<Oid>,
    },
    /// Sender of a blob: the transfer begins.
    BlobStart {
        /// The transfer: the number of its request.
        transfer: TransferId,
        /// Where the bytes of this transfer begin in the blob.
        from: u64,
        /// Where they end: the first offset that is not sent.
        end: u64,
        /// The size of the whole blob in bytes.
        size: u64,
        /// The digest of the whole blob, where the sender knows it already.
        digest: Option<Digest>,
    },
    /// Sender of a blob: `len` raw bytes follow this frame. They are not part of its length.
    BlobChunk {
        /// The transfer.
        transfer: TransferId,
        /// Where the bytes belong in the blob: always where the last chunk ended.
        offset: u64,
        /// How many bytes follow, at least 1.
        len: u32,
    },
    /// Sender of a blob: all bytes were sent.
    BlobStop {
        /// The transfer.
        transfer: TransferId,
        /// The digest of the whole blob.
        digest: Digest,
    },
    /// Sender of a blob: the transfer failed; what was sent of it is worth nothing.
    BlobAbort {
        /// The transfer.
        transfer: TransferId,
        /// Why.
        reason: RequestError,
    },
    /// Receiver of a blob: bytes of this transfer below the offset `upto` may be sent. Absolute, never lower than
    /// before.
    Credit {
        /// The transfer.
        transfer: TransferId,
        /// The first offset that may not be sent yet.
        upto: u64,
    },
    /// Receiver of blobs: so many payload bytes may have been sent on this connection, all transfers together,
    /// since it began. Absolute, never lower than before.
    ConnectionCredit {
        /// The first byte of the connection's payload that may not be sent yet.
        upto: u64,
    },
    /// Client: the answer to this request is not wanted any more. It still gets exactly one, perhaps an early one.
    Cancel {
        /// The request.
        id: RequestId,
    },
    /// Either: are you there?
    Ping {
        /// Comes back in the [`Message::Pong`].
        nonce: u64,
    },
    /// Either: the answer to a [`Message::Ping`].
    Pong {
        /// The nonce of the ping.
        nonce: u64,
    },
    /// Either: no new requests from now on; what is under way is finished, then the connection is closed.
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

/// The client's half of the handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// The first version that the client speaks.
    pub version_min: u16,
    /// The last version that the client speaks.
    pub version_max: u16,
    /// What the client can take.
    pub limits: Limits,
    /// What proves who the client is; empty where the server asks for nothing.
    #[serde(with = "serde_bytes")]
    pub credentials: Vec<u8>,
}

/// The server's half of the handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both speak from here on.
    pub version: u16,
    /// What the server can take.
    pub limits: Limits,
    /// The last transaction that is committed.
    pub last_tid: Tid,
}

/// Why a server wants no conversation.
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
    /// The server has as many connections as it wants.
    #[error("the server has no room for another connection; try again later")]
    Full,
    /// The server is about to stop.
    #[error("the server is stopping")]
    Stopping,
}
