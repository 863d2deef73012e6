//! Why a request failed, and the phases of a transaction.

use alloc::string::String;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{BlobId, Oid, Tid, TxnId};

/// Why a request or a transfer failed. The connection goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The object does not exist, or was deleted.
    #[error("object {oid} does not exist")]
    NoSuchObject {
        /// The object.
        oid: Oid,
    },
    /// The object has no revision of that transaction, or a pack has removed it.
    #[error("object {oid} has no revision {tid} (any more)")]
    NoSuchRevision {
        /// The object.
        oid: Oid,
        /// The transaction.
        tid: Tid,
    },
    /// The revision has no blob, or a pack has removed it.
    #[error("there is no blob {blob} (any more)")]
    NoSuchBlob {
        /// The blob.
        blob: BlobId,
    },
    /// The range begins behind the blob's end, or ends before it begins.
    #[error("blob {blob} has {size} bytes: the range {from}..{upto} is not in it")]
    BadRange {
        /// The blob.
        blob: BlobId,
        /// Its size in bytes.
        size: u64,
        /// The offset of the first byte.
        from: u64,
        /// The offset behind the last byte.
        upto: u64,
    },
    /// No such transaction is open on this connection.
    #[error("transaction {txn} is not open on this connection")]
    NoSuchTransaction {
        /// The transaction.
        txn: TxnId,
    },
    /// The transaction's name was used before, or its [`Outcome`](crate::Outcome) was requested
    /// before.
    #[error("transaction {txn} cannot begin: the name was used before")]
    TransactionExists {
        /// The transaction.
        txn: TxnId,
    },
    /// The transaction is not in the phase that the request is for.
    #[error("transaction {txn} is {phase}: that cannot be done now")]
    WrongPhase {
        /// The transaction.
        txn: TxnId,
        /// The phase that it is in.
        phase: Phase,
    },
    /// A store in this transaction failed, so it can only be aborted.
    #[error("transaction {txn} can only be aborted: something stored in it failed before")]
    Doomed {
        /// The transaction.
        txn: TxnId,
    },
    /// The server has aborted the transaction.
    #[error("transaction {txn} was aborted by the server: {reason}")]
    Aborted {
        /// The transaction.
        txn: TxnId,
        /// Why.
        reason: String,
    },
    /// The request is beyond a limit of the server.
    #[error("{what}: {actual} is more than the server's limit of {limit}")]
    Limit {
        /// What the limit is for.
        what: String,
        /// The limit.
        limit: u64,
        /// The requested value.
        actual: u64,
    },
    /// The server's disk is full.
    #[error("the server has no room left: {detail}")]
    NoSpace {
        /// The file system, and what the server wanted to write.
        detail: String,
    },
    /// The server accepts no writes.
    #[error("the server takes no writes: {reason}")]
    ReadOnly {
        /// Why.
        reason: String,
    },
    /// The server's copy of a blob is damaged, so the server does not send it.
    #[error("blob {blob} is damaged on the server: {detail}")]
    Damaged {
        /// The blob.
        blob: BlobId,
        /// What is wrong with it.
        detail: String,
    },
    /// The blob that arrived is not the one that was announced.
    #[error("the blob that arrived is not the one announced: {detail}")]
    Mismatch {
        /// The difference.
        detail: String,
    },
    /// The request was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The server is stopping, and accepts no new requests.
    #[error("the server is stopping")]
    Stopping,
    /// The sender of a blob could not read it.
    #[error("the source of the blob failed: {detail}")]
    Source {
        /// What happened.
        detail: String,
    },
    /// The server failed.
    #[error("the server failed: {detail}")]
    Failed {
        /// What happened.
        detail: String,
    },
    /// The server does not offer this.
    #[error("the server does not offer this: {what}")]
    Unsupported {
        /// What.
        what: String,
    },
    /// A time limit has passed. The server has released what the request held.
    #[error("{what} for {:?}; {}", Duration::from_millis(*after_ms), what.advice())]
    Deadline {
        /// The limit that has passed.
        what: Deadline,
        /// The limit in milliseconds.
        after_ms: u64,
    },
    /// The server's disk failed during the commit. After the next start of the server, request the
    /// [`Outcome`](crate::Request::Outcome) of the transaction.
    #[error("whether transaction {txn} is committed is known when the server was started again: {reason}")]
    Undecided {
        /// The transaction.
        txn: TxnId,
        /// What failed.
        reason: String,
    },
}

/// What has a time limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deadline {
    /// The time without progress of a transfer: see
    /// [`Config::transfer_timeout`](crate::Config::transfer_timeout).
    Transfer,
    /// The time that a vote waits for its locks. After it, the server ends the transaction.
    Locks,
}

impl Deadline {
    /// Returns the error for a limit of length `after` that has passed.
    #[must_use]
    pub fn passed(self, after: Duration) -> RequestError {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        RequestError::Deadline { what: self, after_ms }
    }

    /// Returns what the user can do.
    fn advice(self) -> &'static str {
        match self {
            Deadline::Transfer => "try again, and allow more time where a network or a disk is that slow",
            Deadline::Locks => "others that change the same objects were not done: run the transaction again",
        }
    }
}

impl core::fmt::Display for Deadline {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Deadline::Transfer => "nothing of the blob has moved",
            Deadline::Locks => "the vote has waited for its locks",
        })
    }
}

/// The phase of a transaction, on either side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The transaction accepts stores.
    Open,
    /// A vote is under way.
    Voting,
    /// The transaction can be finished, and cannot fail any more.
    Voted,
    /// The commit is under way.
    Finishing,
    /// A store failed, so the transaction can only be aborted.
    Doomed,
}

impl core::fmt::Display for Phase {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Phase::Open => "open",
            Phase::Voting => "being voted on",
            Phase::Voted => "voted",
            Phase::Finishing => "being finished",
            Phase::Doomed => "doomed",
        })
    }
}
