//! The replies of a server.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Oid, RequestId, Tid};
use crate::message::bounded;
use crate::message::request::TxnMeta;

/// A reply: the successful answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The request is done, and has no result.
    Done,
    /// The transaction can be finished, and keeps its locks until then.
    Voted,
    /// The transaction is committed and durable.
    Finished {
        /// Its id.
        tid: Tid,
    },
    /// Other transactions have changed objects of this one. The transaction stays open.
    ///
    /// Store the resolved objects with `base` set to [`Conflict::committed`], and vote again.
    Conflicts(#[serde(with = "bounded")] Vec<Conflict>),
    /// The outcome of a transaction.
    Outcome(Outcome),
    /// One revision of an object.
    Revision(Revision),
    /// One revision of an object; `None` if the object has no revision before that transaction.
    RevisionBefore(Option<Revision>),
    /// The revisions of an object, newest first.
    History(#[serde(with = "bounded")] Vec<HistoryEntry>),
    /// Unused oids: `count` of them from `first` on.
    Oids {
        /// The first oid.
        first: Oid,
        /// The number of oids.
        count: u32,
    },
    /// Counters by name. Names are only ever added.
    Status(#[serde(with = "bounded")] Vec<(String, u64)>),
    /// What the pack has removed.
    Packed(Packed),
    /// The transaction goes on, on this connection.
    ///
    /// Of the requests that the client sent for it on the lost connection, those up to `last`
    /// arrived. They are done, except the `unfinished` ones.
    Attached {
        /// The last request of this transaction that arrived on the lost connection.
        last: RequestId,
        /// The requests up to `last` that are not done, in the order of their numbers.
        #[serde(with = "bounded")]
        unfinished: Vec<Unfinished>,
    },
}

/// A request of a transaction that was not done when its connection was lost. The client has to
/// send it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// The number of the request on that connection.
    pub request: RequestId,
    /// For a blob, the offset where its upload can go on: the server has kept the bytes below it.
    /// Else 0.
    pub upto: u64,
}

/// An object that another transaction has changed meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The object.
    pub oid: Oid,
    /// Its current revision; [`Tid::ZERO`] if it has none.
    pub committed: Tid,
    /// The revision that this transaction has changed.
    pub base: Tid,
}

/// The final outcome of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The transaction is committed.
    Committed {
        /// Its id.
        tid: Tid,
    },
    /// The transaction is not committed, and never will be.
    NotCommitted,
}

/// One revision of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// The transaction that stored it.
    pub tid: Tid,
    /// The transaction that stored the next one; `None` while this is the current revision.
    pub next: Option<Tid>,
    /// The record.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// The blob, if the revision has one.
    pub blob: Option<BlobInfo>,
}

/// The size and the digest of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobInfo {
    /// The size in bytes.
    pub size: u64,
    /// The digest of those bytes.
    pub digest: Digest,
}

/// One revision in an object's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The transaction that stored it.
    pub tid: Tid,
    /// The user and the description of that transaction.
    pub meta: TxnMeta,
    /// The size of the record in bytes; `None` if this revision deleted the object.
    pub size: Option<u64>,
    /// The blob, if the revision has one.
    pub blob: Option<BlobInfo>,
}

/// The result of a pack: what it has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// The number of revisions.
    pub revisions: u64,
    /// The number of blobs.
    pub blobs: u64,
    /// The size of those blobs in bytes.
    pub bytes: u64,
}
