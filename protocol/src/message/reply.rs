//! What a server answers.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Oid, RequestId, Tid};
use crate::message::bounded;
use crate::message::request::TxnMeta;

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done; there is nothing to tell.
    Done,
    /// The transaction can be finished, and is locked in until then.
    Voted,
    /// The transaction is committed and durable.
    Finished {
        /// Its id.
        tid: Tid,
    },
    /// Other transactions have changed objects of this one since they were read. It stays open: store what is
    /// resolved with `base` set to `committed`, and vote again.
    Conflicts(#[serde(with = "bounded")] Vec<Conflict>),
    /// What has become of a transaction.
    Outcome(Outcome),
    /// One revision of an object.
    Revision(Revision),
    /// One revision of an object, or none that early.
    RevisionBefore(Option<Revision>),
    /// Revisions of an object, newest first.
    History(#[serde(with = "bounded")] Vec<HistoryEntry>),
    /// Unused oids: `count` of them from `first` on.
    Oids {
        /// The first.
        first: Oid,
        /// How many.
        count: u32,
    },
    /// Counters by name. Names are only ever added.
    Status(#[serde(with = "bounded")] Vec<(String, u64)>),
    /// What a pack has removed.
    Packed(Packed),
    /// The transaction goes on. Of the requests that it was sent on the connection that was lost, those up to `last` had
    /// arrived, and were done, but for the ones that are `unfinished`.
    Attached {
        /// The last request in this transaction that arrived on the connection that was lost.
        last: RequestId,
        /// Those up to `last` that were not done, in the order of their numbers.
        #[serde(with = "bounded")]
        unfinished: Vec<Unfinished>,
    },
}

/// A request in a transaction that was not done when its connection was lost. It has to be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// The number that it had on that connection.
    pub request: RequestId,
    /// For a blob: the bytes below this offset are kept, so that its upload can go on from there. Else 0.
    pub upto: u64,
}

/// An object that two transactions changed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The object.
    pub oid: Oid,
    /// Its current revision; [`Tid::ZERO`] where it has none.
    pub committed: Tid,
    /// The revision that this transaction was made from.
    pub base: Tid,
}

/// What has become of a transaction, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is committed.
    Committed {
        /// Its id.
        tid: Tid,
    },
    /// It is not committed, and never will be.
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
    /// The blob, where it has one.
    pub blob: Option<BlobInfo>,
}

/// What is known of a blob without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobInfo {
    /// Bytes.
    pub size: u64,
    /// Of those bytes.
    pub digest: Digest,
}

/// One revision in an object's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The transaction that stored it.
    pub tid: Tid,
    /// Who, and what for.
    pub meta: TxnMeta,
    /// The size of the record in bytes; `None` where this revision deleted the object.
    pub size: Option<u64>,
    /// The blob, where it has one.
    pub blob: Option<BlobInfo>,
}

/// What a pack has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Revisions of objects.
    pub revisions: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of those blobs.
    pub bytes: u64,
}
