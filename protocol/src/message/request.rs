//! What a client asks for.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{BlobId, Digest, Oid, Tid, TxnId};
#[cfg(doc)]
use crate::{Message, Reply};

/// What a client can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Opens a transaction under a name of the client's choice. Reply: [`Reply::Done`].
    Begin {
        /// The name; never used before.
        txn: TxnId,
        /// Who, and what for.
        meta: TxnMeta,
    },
    /// Stores an object's record. Reply: [`Reply::Done`].
    Store {
        /// The transaction.
        txn: TxnId,
        /// The object.
        oid: Oid,
        /// The revision that the new one was made from; [`Tid::ZERO`] for a new object.
        base: Tid,
        /// The record.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Stores an object's record with a blob. A transfer of the same number follows; an empty blob is a transfer
    /// without chunks. Reply, when the blob is complete and durable: [`Reply::Done`].
    StoreBlob {
        /// The transaction.
        txn: TxnId,
        /// The object.
        oid: Oid,
        /// The revision that the new one was made from; [`Tid::ZERO`] for a new object.
        base: Tid,
        /// The record.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Stores an object's record with a blob that the client has moved into the server's `tmp` directory, which
    /// both can reach. Reply: [`Reply::Done`].
    StoreShared {
        /// The transaction.
        txn: TxnId,
        /// The object.
        oid: Oid,
        /// The revision that the new one was made from; [`Tid::ZERO`] for a new object.
        base: Tid,
        /// The record.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
        /// The file's name in `tmp`: one plain component, never a path.
        name: String,
        /// The file's size in bytes.
        size: u64,
        /// The digest of its bytes.
        digest: Digest,
    },
    /// Deletes an object: from this transaction on it does not exist. With the base [`Tid::ZERO`], takes back whatever
    /// this transaction has stored for the object, or deleted. Reply: [`Reply::Done`].
    Delete {
        /// The transaction.
        txn: TxnId,
        /// The object.
        oid: Oid,
        /// The revision that the decision was based on; [`Tid::ZERO`] to take back.
        base: Tid,
    },
    /// Asks whether the transaction can be committed, and makes sure that it then can. Reply: [`Reply::Voted`], or
    /// [`Reply::Conflicts`] with the transaction open as before.
    Vote {
        /// The transaction.
        txn: TxnId,
    },
    /// Commits a transaction that was voted for. Reply: [`Reply::Finished`].
    Finish {
        /// The transaction.
        txn: TxnId,
    },
    /// Vote and finish in one round trip. Reply: [`Reply::Finished`], or [`Reply::Conflicts`] with the transaction
    /// open as before.
    Commit {
        /// The transaction.
        txn: TxnId,
    },
    /// Gives the transaction up. Reply: [`Reply::Done`], whatever was known of it.
    Abort {
        /// The transaction.
        txn: TxnId,
    },
    /// Did this transaction commit? The answer is definite: where it has not, it never will. Reply:
    /// [`Reply::Outcome`].
    Outcome {
        /// The transaction.
        txn: TxnId,
    },
    /// The current revision of an object. Reply: [`Reply::Revision`].
    Load {
        /// The object.
        oid: Oid,
    },
    /// The last revision of an object before a transaction. Reply: [`Reply::RevisionBefore`].
    LoadBefore {
        /// The object.
        oid: Oid,
        /// Revisions of this transaction and later ones do not count.
        before: Tid,
    },
    /// One exact revision of an object. Reply: [`Reply::Revision`].
    LoadSerial {
        /// The object.
        oid: Oid,
        /// The transaction that stored it.
        tid: Tid,
    },
    /// The revisions of an object, newest first. Reply: [`Reply::History`].
    History {
        /// The object.
        oid: Oid,
        /// At most so many (the server may send fewer).
        limit: u32,
    },
    /// Unused oids, for new objects. Reply: [`Reply::Oids`].
    NewOids {
        /// How many, at least 1 (the server may give fewer).
        count: u32,
    },
    /// The bytes of a blob. Answered by a transfer of the same number, or a [`Message::Reply`] with an error.
    SendBlob {
        /// The blob.
        blob: BlobId,
        /// The first byte wanted: more than 0 to go on with a broken download or to read a range.
        from: u64,
        /// The first byte not wanted; [`u64::MAX`] for all to the end.
        upto: u64,
    },
    /// The server's counters. Reply: [`Reply::Status`].
    Status,
    /// Forgets the revisions that were replaced before a transaction. Reply: [`Reply::Packed`].
    Pack {
        /// What was current just before this transaction stays, and all that came after.
        before: Tid,
    },
    /// Goes on with a transaction whose connection was lost while it took stores: it belongs to this connection from
    /// here on. Reply: [`Reply::Attached`].
    Attach {
        /// The transaction.
        txn: TxnId,
    },
}

/// Who commits, and what for. Bytes, so that any application's notion fits; the command uses UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TxnMeta {
    /// Who.
    #[serde(with = "serde_bytes")]
    pub user: Vec<u8>,
    /// What for.
    #[serde(with = "serde_bytes")]
    pub description: Vec<u8>,
}

impl Request {
    /// The transaction that this request belongs to, where it belongs to one.
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

    /// Does it bring a transaction nearer to its end? Those are asked and answered even after a goodbye.
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
