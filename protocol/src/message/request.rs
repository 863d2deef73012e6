//! The requests of a client.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{BlobId, Digest, Oid, Tid, TxnId};
#[cfg(doc)]
use crate::{Message, Reply};

/// A request. Each variant names the [`Reply`] that answers it if it succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Opens a transaction under a name that the client chooses. Reply: [`Reply::Done`].
    Begin {
        /// The name, which was never used before.
        txn: TxnId,
        /// The user and the description.
        meta: TxnMeta,
    },
    /// Stores an object's record. Reply: [`Reply::Done`].
    Store {
        /// The transaction.
        txn: TxnId,
        /// The object.
        oid: Oid,
        /// The revision that the client has changed; [`Tid::ZERO`] for a new object.
        base: Tid,
        /// The record.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Stores an object's record with a blob. Reply, when the blob is complete and durable:
    /// [`Reply::Done`].
    ///
    /// A transfer with the same number follows. An empty blob is a transfer without chunks.
    StoreBlob {
        /// The transaction.
        txn: TxnId,
        /// The object.
        oid: Oid,
        /// The revision that the client has changed; [`Tid::ZERO`] for a new object.
        base: Tid,
        /// The record.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Stores an object's record with a blob that the client has moved into the server's `tmp`
    /// directory. Reply: [`Reply::Done`].
    StoreShared {
        /// The transaction.
        txn: TxnId,
        /// The object.
        oid: Oid,
        /// The revision that the client has changed; [`Tid::ZERO`] for a new object.
        base: Tid,
        /// The record.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
        /// The file's name in `tmp`: one component, not a path.
        name: String,
        /// The file's size in bytes.
        size: u64,
        /// The digest of its bytes.
        digest: Digest,
    },
    /// Deletes an object: from this transaction on it does not exist. Reply: [`Reply::Done`].
    ///
    /// With the base [`Tid::ZERO`] it undoes what this transaction has stored for the object, or
    /// its deletion.
    Delete {
        /// The transaction.
        txn: TxnId,
        /// The object.
        oid: Oid,
        /// The revision that the client deletes; [`Tid::ZERO`] to undo.
        base: Tid,
    },
    /// Prepares the transaction, so that [`Request::Finish`] cannot fail. Reply: [`Reply::Voted`],
    /// or [`Reply::Conflicts`] with the transaction open as before.
    Vote {
        /// The transaction.
        txn: TxnId,
    },
    /// Commits a voted transaction. Reply: [`Reply::Finished`].
    Finish {
        /// The transaction.
        txn: TxnId,
    },
    /// Votes and finishes in one round trip. Reply: [`Reply::Finished`], or [`Reply::Conflicts`]
    /// with the transaction open as before.
    Commit {
        /// The transaction.
        txn: TxnId,
    },
    /// Aborts the transaction. Reply: [`Reply::Done`], even if the transaction is unknown.
    Abort {
        /// The transaction.
        txn: TxnId,
    },
    /// Returns whether the transaction is committed. Reply: [`Reply::Outcome`].
    ///
    /// The answer is final: a transaction that is not committed then never will be.
    Outcome {
        /// The transaction.
        txn: TxnId,
    },
    /// Loads the current revision of an object. Reply: [`Reply::Revision`].
    Load {
        /// The object.
        oid: Oid,
    },
    /// Loads the last revision of an object before a transaction. Reply: [`Reply::RevisionBefore`].
    ///
    /// To load the state as of `tid`, set `before` to [`tid.successor()`](Tid::successor).
    LoadBefore {
        /// The object.
        oid: Oid,
        /// Only revisions of earlier transactions count.
        before: Tid,
    },
    /// Loads one exact revision of an object. Reply: [`Reply::Revision`].
    LoadSerial {
        /// The object.
        oid: Oid,
        /// The transaction that stored it.
        tid: Tid,
    },
    /// Lists the revisions of an object, newest first. Reply: [`Reply::History`].
    History {
        /// The object.
        oid: Oid,
        /// The most revisions to send. The server may send fewer.
        limit: u32,
    },
    /// Allocates oids for new objects. Reply: [`Reply::Oids`].
    NewOids {
        /// The number of oids, at least 1. The server may allocate fewer.
        count: u32,
    },
    /// Downloads a blob. The answer is a transfer with the same number, or a [`Message::Reply`]
    /// with an error.
    SendBlob {
        /// The blob.
        blob: BlobId,
        /// The offset of the first byte: more than 0 to resume a download or to read a range.
        from: u64,
        /// The offset behind the last byte; [`u64::MAX`] for all up to the end.
        upto: u64,
    },
    /// Returns the server's counters. Reply: [`Reply::Status`].
    Status,
    /// Removes the revisions that were replaced before a transaction. Reply: [`Reply::Packed`].
    Pack {
        /// The pack keeps what was current just before this transaction, and everything after that.
        before: Tid,
    },
    /// Moves an open transaction, whose connection was lost, to this connection. Reply:
    /// [`Reply::Attached`].
    Attach {
        /// The transaction.
        txn: TxnId,
    },
}

/// The user and the description of a transaction, at most 64 KiB together.
///
/// Both are bytes of a format that the application chooses. The `blobferry` command uses UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TxnMeta {
    /// The user.
    #[serde(with = "serde_bytes")]
    pub user: Vec<u8>,
    /// The description.
    #[serde(with = "serde_bytes")]
    pub description: Vec<u8>,
}

impl Request {
    /// Returns the transaction that this request belongs to, if it belongs to one.
    #[must_use]
    pub fn txn(&self) -> Option<TxnId> {
        match self {
            Request::Begin { txn, .. }
            | Request::Store { txn, .. }
            | Request::StoreBlob { txn, .. }
            | Request::StoreShared { txn, .. }
            | Request::Delete { txn, .. }
            | Request::Vote { txn }
            | Request::Finish { txn }
            | Request::Commit { txn }
            | Request::Abort { txn }
            | Request::Attach { txn } => Some(*txn),
            Request::Outcome { .. }
            | Request::Load { .. }
            | Request::LoadBefore { .. }
            | Request::LoadSerial { .. }
            | Request::History { .. }
            | Request::NewOids { .. }
            | Request::SendBlob { .. }
            | Request::Status
            | Request::Pack { .. } => None,
        }
    }

    /// Returns true if the request brings a transaction nearer to its end.
    ///
    /// A connection sends and answers these even after a goodbye.
    #[must_use]
    pub fn ends(&self) -> bool {
        matches!(
            self,
            Request::Vote { .. }
                | Request::Finish { .. }
                | Request::Commit { .. }
                | Request::Abort { .. }
                | Request::Outcome { .. }
        )
    }
}
