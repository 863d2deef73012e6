//! The two states of a request: queued on this side, or sent and not answered.

use std::ops::Range;

use blobferry_protocol::{BlobId, Digest, Oid, Reply, Request, RequestError, Tid, TxnId};
use bytes::Bytes;

use crate::client::error::{CallError, Completion};
use crate::io::{Sink, Source};

/// Where the bytes of a requested blob go.
pub(super) trait Destination: Send {
    /// Returns the blob, and the bytes of it that are still missing.
    fn missing(&self) -> (BlobId, Range<u64>);

    /// Converts it to the sink of a transfer.
    fn into_sink(self: Box<Self>) -> Box<dyn Sink>;

    /// Reports that the blob will not arrive.
    fn fail(self: Box<Self>, error: CallError);
}

/// A destination in memory, which takes a small blob in one piece.
pub(super) trait MemoryDestination: Destination {
    /// Queues the request again, for the next connection.
    fn enqueue(self: Box<Self>);

    /// Takes all bytes of the blob.
    fn finish(self: Box<Self>, bytes: Bytes, digest: Digest);

    /// Reports that the server does not send the blob, or not all of it.
    fn abort(self: Box<Self>, reason: RequestError);
}

/// A request that is not sent yet.
pub(super) enum Queued {
    /// A request that is answered by one message.
    Call { request: Request, done: Completion<Reply> },
    /// Attaches a transaction to the new connection.
    Attach(TxnId),
    /// A blob, or a part of it, that arrives through a sink.
    Download { to: Box<dyn Destination> },
    /// A blob that is wanted in memory.
    Load { to: Box<dyn MemoryDestination> },
    /// A blob to store.
    Upload {
        upload: Upload,
        /// The server has the bytes below this offset.
        from: u64,
        /// The bytes; `None` if the blob is empty.
        source: Option<Source>,
    },
}

/// A request that waits for its answer, with what is needed to repeat it. Downloads wait in their sinks.
pub(super) enum Sent {
    Call { request: Request, done: Completion<Reply> },
    Attach(TxnId),
    Upload(Upload),
}

/// The upload of one blob, with the record of its object.
pub(super) struct Upload {
    pub(super) txn: TxnId,
    pub(super) oid: Oid,
    pub(super) base: Tid,
    pub(super) data: Vec<u8>,
    /// The size of the whole blob, in bytes.
    pub(super) size: u64,
    /// The blob's digest, when it is known.
    pub(super) digest: Option<Digest>,
    pub(super) done: Completion<Digest>,
}

impl Queued {
    /// Returns the transaction that the request belongs to.
    pub(super) fn txn(&self) -> Option<TxnId> {
        match self {
            Queued::Call { request, .. } => request.txn(),
            Queued::Attach(txn) => Some(*txn),
            Queued::Upload { upload, .. } => Some(upload.txn),
            Queued::Download { .. } | Queued::Load { .. } => None,
        }
    }

    /// Returns about how many bytes the request queues.
    pub(super) fn len(&self) -> usize {
        match self {
            Queued::Call {
                request: Request::Store { data, .. } | Request::StoreShared { data, .. }, ..
            } => data.len(),
            Queued::Upload { upload, .. } => upload.data.len(),
            Queued::Call { .. } | Queued::Attach(_) | Queued::Download { .. } | Queued::Load { .. } => 0,
        }
    }

    /// Returns whether the request brings a transaction nearer to its end. Such requests are sent even after one side
    /// has said goodbye.
    pub(super) fn ends(&self) -> bool {
        matches!(self, Queued::Call { request, .. } if request.ends())
    }

    /// Reports that the request failed.
    pub(super) fn fail(self, error: CallError) {
        match self {
            Queued::Call { done, .. } => done(Err(error)),
            Queued::Upload { upload, .. } => (upload.done)(Err(error)),
            Queued::Download { to } => to.fail(error),
            Queued::Load { to } => to.fail(error),
            Queued::Attach(_) => {}
        }
    }
}
