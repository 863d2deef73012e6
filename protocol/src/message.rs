//! Every message of the conversation, as it is on the wire.
//!
//! The order of an enum's variants is the wire format: variants are only ever appended. Both directions share one
//! [`Message`]; which half may send which message, and when, is decided in [`client`](crate::client),
//! [`server`](crate::server) and [`connection`](crate::connection), never here.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::wire::bounded;
use crate::words::{BlobId, Digest, Oid, RequestId, Tid, TransferId, TxnId};

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
        #[serde(deserialize_with = "bounded::list")]
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
    /// Deletes an object: from this transaction on it does not exist. Reply: [`Reply::Done`].
    Delete {
        /// The transaction.
        txn: TxnId,
        /// The object.
        oid: Oid,
        /// The revision that the decision was based on.
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
}

/// Who commits, and what for. Bytes, so that any application's notion fits; the command uses UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnMeta {
    /// Who.
    #[serde(with = "serde_bytes")]
    pub user: Vec<u8>,
    /// What for.
    #[serde(with = "serde_bytes")]
    pub description: Vec<u8>,
}

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
    Conflicts(#[serde(deserialize_with = "bounded::list")] Vec<Conflict>),
    /// What has become of a transaction.
    Outcome(Outcome),
    /// One revision of an object.
    Revision(Revision),
    /// One revision of an object, or none that early.
    RevisionBefore(Option<Revision>),
    /// Revisions of an object, newest first.
    History(#[serde(deserialize_with = "bounded::list")] Vec<HistoryEntry>),
    /// Unused oids: `count` of them from `first` on.
    Oids {
        /// The first.
        first: Oid,
        /// How many.
        count: u32,
    },
    /// Counters by name. Names are only ever added.
    Status(#[serde(deserialize_with = "bounded::list")] Vec<(String, u64)>),
    /// What a pack has removed.
    Packed(Packed),
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// Why a request was not done, or a transfer given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
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
            | Request::Abort { txn } => Some(*txn),
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
}
