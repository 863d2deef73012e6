//! Why a request was not done, and the phases of a transaction, which are one of the reasons.

use alloc::string::String;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{BlobId, Oid, Tid, TxnId};

/// Why a request was not done, or a transfer given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The object does not exist (any more).
    #[error("object {oid} does not exist")]
    NoSuchObject {
        /// The object.
        oid: Oid,
    },
    /// The object has no revision of that transaction, or it was packed away.
    #[error("object {oid} has no revision {tid} (any more)")]
    NoSuchRevision {
        /// The object.
        oid: Oid,
        /// The transaction.
        tid: Tid,
    },
    /// That revision has no blob.
    #[error("there is no blob {blob} (any more)")]
    NoSuchBlob {
        /// The blob.
        blob: BlobId,
    },
    /// A range begins behind the blob's end, or ends before it begins.
    #[error("blob {blob} has {size} bytes: the range {from}..{upto} is not in it")]
    BadRange {
        /// The blob.
        blob: BlobId,
        /// Its size in bytes.
        size: u64,
        /// The first byte wanted.
        from: u64,
        /// The first byte not wanted.
        upto: u64,
    },
    /// No such transaction is open on this connection.
    #[error("transaction {txn} is not open on this connection")]
    NoSuchTransaction {
        /// The transaction.
        txn: TxnId,
    },
    /// The transaction's name is taken, or its outcome was asked for before.
    #[error("transaction {txn} can not begin: the name was used before")]
    TransactionExists {
        /// The transaction.
        txn: TxnId,
    },
    /// The transaction is not in the phase that the request is for.
    #[error("transaction {txn} is {phase}: that can not be done now")]
    WrongPhase {
        /// The transaction.
        txn: TxnId,
        /// The phase that it is in.
        phase: Phase,
    },
    /// Something stored in this transaction failed, so it can only be aborted.
    #[error("transaction {txn} can only be aborted: something stored in it failed before")]
    Doomed {
        /// The transaction.
        txn: TxnId,
    },
    /// The server gave the transaction up.
    #[error("transaction {txn} was aborted by the server: {reason}")]
    Aborted {
        /// The transaction.
        txn: TxnId,
        /// Why.
        reason: String,
    },
    /// More than a limit allows.
    #[error("{what}: {actual} is more than the server's limit of {limit}")]
    Limit {
        /// What the limit is for.
        what: String,
        /// The limit.
        limit: u64,
        /// What was asked for.
        actual: u64,
    },
    /// The server's disk is full.
    #[error("the server has no room left: {detail}")]
    NoSpace {
        /// Which file system, and what was asked of it.
        detail: String,
    },
    /// The server takes no writes.
    #[error("the server takes no writes: {reason}")]
    ReadOnly {
        /// Why.
        reason: String,
    },
    /// The server has found its copy of a blob damaged. It is not sent.
    #[error("blob {blob} is damaged on the server: {detail}")]
    Damaged {
        /// The blob.
        blob: BlobId,
        /// What is wrong with it.
        detail: String,
    },
    /// What arrived is not what was announced.
    #[error("the blob that arrived is not the one announced: {detail}")]
    Mismatch {
        /// The difference.
        detail: String,
    },
    /// The request was cancelled before it was done.
    #[error("cancelled")]
    Cancelled,
    /// The server is stopping, and begins nothing new.
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
    /// Something took longer than it may. What was held for it is free.
    #[error("{what} for {:?}; {}", Duration::from_millis(*after_ms), what.advice())]
    Deadline {
        /// What took so long.
        what: Deadline,
        /// How long it was allowed to take, in milliseconds.
        after_ms: u64,
    },
    /// The server's disk failed in the commit. What it kept is found out when the server is started again; then the
    /// transaction's outcome can be asked for.
    #[error("whether transaction {txn} is committed is known when the server was started again: {reason}")]
    Undecided {
        /// The transaction.
        txn: TxnId,
        /// What failed.
        reason: String,
    },
}

/// What may take only so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deadline {
    /// A transfer has to get on: see [`Config::transfer_timeout`](crate::Config::transfer_timeout).
    Transfer,
    /// A vote that waits for its locks has to get them. Its transaction is over.
    Locks,
}

impl Deadline {
    /// The error that says that it has passed.
    #[must_use]
    pub fn passed(self, after: Duration) -> RequestError {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        RequestError::Deadline { what: self, after_ms }
    }

    /// What to do about it.
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

/// Where a transaction stands, on either half of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It takes stores.
    Open,
    /// A vote is under way.
    Voting,
    /// It can be finished, and cannot fail any more.
    Voted,
    /// The commit is under way.
    Finishing,
    /// A store failed: it can only be aborted.
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
