//! `Arbitrary` for every id and every message.
//!
//! Numbers are often at the edges of their encodings. Lists, texts and records are short.

use std::string::String;
use std::vec;
use std::vec::Vec;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::{
    BlobId, BlobInfo, Conflict, Deadline, Digest, Hello, HistoryEntry, Limits, MAGIC, Message, Oid, Outcome,
    Packed, Phase, Refusal, Reply, Request, RequestError, RequestId, Revision, Tid, TransferId, TxnId,
    TxnMeta, Unfinished, Welcome,
};

/// Numbers of every length that a varint can have, and both extremes.
fn number() -> BoxedStrategy<u64> {
    prop_oneof![
        4 => 0u64..300,
        4 => (any::<u64>(), 0u32..64).prop_map(|(n, shift)| n >> shift),
        1 => Just(u64::MAX),
    ]
    .boxed()
}

fn short() -> BoxedStrategy<u32> {
    number().prop_map(|n| n as u32).boxed()
}

fn bytes() -> BoxedStrategy<Vec<u8>> {
    vec(any::<u8>(), 0..200).boxed()
}

fn text() -> BoxedStrategy<String> {
    "\\PC{0,16}".boxed()
}

/// A list of at most four elements.
fn few<T: Arbitrary + 'static>() -> BoxedStrategy<Vec<T>> {
    vec(any::<T>(), 0..5).boxed()
}

/// `arbitrary!(A = strategy, ...)`
macro_rules! arbitrary {
    ($($type:ty = $strategy:expr,)*) => { $(
        impl Arbitrary for $type {
            type Parameters = ();
            type Strategy = BoxedStrategy<$type>;

            fn arbitrary_with((): ()) -> BoxedStrategy<$type> {
                $strategy.boxed()
            }
        }
    )* };
}

arbitrary! {
    Oid = number().prop_map(Oid),
    Tid = number().prop_map(Tid),
    RequestId = number().prop_map(RequestId),
    TransferId = number().prop_map(TransferId),
    TxnId = any::<[u8; 16]>().prop_map(TxnId),
    Digest = any::<[u8; 32]>().prop_map(Digest),
    BlobId = any::<(Oid, Tid)>().prop_map(|(oid, tid)| BlobId { oid, tid }),
    // Limits that a peer accepts.
    Limits = (short(), short(), number(), number(), short(), short(), short(), short()).prop_map(
        |(frame, chunk, transfer_window, connection_window, transfers, requests, transactions, queue)| Limits {
            frame: frame.max(Limits::MIN.frame),
            chunk: chunk.max(Limits::MIN.chunk),
            transfer_window: transfer_window.max(Limits::MIN.transfer_window),
            connection_window: connection_window.max(Limits::MIN.connection_window),
            transfers: transfers.max(Limits::MIN.transfers),
            requests: requests.max(Limits::MIN.requests),
            transactions: transactions.max(Limits::MIN.transactions),
            control_queue: queue.max(Limits::MIN.control_queue),
        },
    ),
    TxnMeta = (bytes(), bytes()).prop_map(|(user, description)| TxnMeta { user, description }),
    Hello = (any::<(u16, u16, Limits)>(), bytes()).prop_map(|((version_min, version_max, limits), credentials)| {
        Hello { magic: MAGIC, version_min, version_max, limits, credentials }
    }),
    Welcome = any::<(u16, Limits, Tid)>()
        .prop_map(|(version, limits, last_tid)| Welcome { version, limits, last_tid }),
    Refusal = prop_oneof![
        any::<(u16, u16)>().prop_map(|(min, max)| Refusal::Version { min, max }),
        Just(Refusal::Credentials),
        Just(Refusal::Full),
        Just(Refusal::Stopping),
    ],
    Phase = prop_oneof![
        Just(Phase::Open),
        Just(Phase::Voting),
        Just(Phase::Voted),
        Just(Phase::Finishing),
        Just(Phase::Doomed),
    ],
    Deadline = prop_oneof![Just(Deadline::Transfer), Just(Deadline::Locks)],
    Conflict = any::<(Oid, Tid, Tid)>().prop_map(|(oid, committed, base)| Conflict { oid, committed, base }),
    Outcome = prop_oneof![
        any::<Tid>().prop_map(|tid| Outcome::Committed { tid }),
        Just(Outcome::NotCommitted),
    ],
    BlobInfo = (number(), any::<Digest>()).prop_map(|(size, digest)| BlobInfo { size, digest }),
    Revision = (any::<(Tid, Option<Tid>, Option<BlobInfo>)>(), bytes())
        .prop_map(|((tid, next, blob), data)| Revision { tid, next, data, blob }),
    HistoryEntry = (any::<(Tid, TxnMeta, Option<BlobInfo>)>(), option::of(number()))
        .prop_map(|((tid, meta, blob), size)| HistoryEntry { tid, meta, size, blob }),
    Packed = (number(), number(), number())
        .prop_map(|(revisions, blobs, bytes)| Packed { revisions, blobs, bytes }),
    Unfinished = (any::<RequestId>(), number()).prop_map(|(request, upto)| Unfinished { request, upto }),
    RequestError = request_error(),
    Request = request(),
    Reply = reply(),
    Message = message(),
}

fn request_error() -> BoxedStrategy<RequestError> {
    let of_objects = prop_oneof![
        any::<Oid>().prop_map(|oid| RequestError::NoSuchObject { oid }),
        any::<(Oid, Tid)>().prop_map(|(oid, tid)| RequestError::NoSuchRevision { oid, tid }),
        any::<BlobId>().prop_map(|blob| RequestError::NoSuchBlob { blob }),
        (any::<BlobId>(), number(), number(), number())
            .prop_map(|(blob, size, from, upto)| RequestError::BadRange { blob, size, from, upto }),
        (any::<BlobId>(), text()).prop_map(|(blob, detail)| RequestError::Damaged { blob, detail }),
    ];
    let of_transactions = prop_oneof![
        any::<TxnId>().prop_map(|txn| RequestError::NoSuchTransaction { txn }),
        any::<TxnId>().prop_map(|txn| RequestError::TransactionExists { txn }),
        any::<(TxnId, Phase)>().prop_map(|(txn, phase)| RequestError::WrongPhase { txn, phase }),
        any::<TxnId>().prop_map(|txn| RequestError::Doomed { txn }),
        (any::<TxnId>(), text()).prop_map(|(txn, reason)| RequestError::Aborted { txn, reason }),
        (any::<TxnId>(), text()).prop_map(|(txn, reason)| RequestError::Undecided { txn, reason }),
    ];
    let of_servers = prop_oneof![
        (text(), number(), number()).prop_map(|(what, limit, actual)| RequestError::Limit {
            what,
            limit,
            actual
        }),
        text().prop_map(|detail| RequestError::NoSpace { detail }),
        text().prop_map(|reason| RequestError::ReadOnly { reason }),
        text().prop_map(|detail| RequestError::Mismatch { detail }),
        Just(RequestError::Cancelled),
        Just(RequestError::Stopping),
        text().prop_map(|detail| RequestError::Source { detail }),
        text().prop_map(|detail| RequestError::Failed { detail }),
        text().prop_map(|what| RequestError::Unsupported { what }),
        (any::<Deadline>(), number()).prop_map(|(what, after_ms)| RequestError::Deadline { what, after_ms }),
    ];
    prop_oneof![of_objects, of_transactions, of_servers].boxed()
}

fn request() -> BoxedStrategy<Request> {
    let of_transactions = prop_oneof![
        any::<(TxnId, TxnMeta)>().prop_map(|(txn, meta)| Request::Begin { txn, meta }),
        (any::<(TxnId, Oid, Tid)>(), bytes()).prop_map(|((txn, oid, base), data)| Request::Store {
            txn,
            oid,
            base,
            data
        }),
        (any::<(TxnId, Oid, Tid)>(), bytes()).prop_map(|((txn, oid, base), data)| Request::StoreBlob {
            txn,
            oid,
            base,
            data
        }),
        (any::<(TxnId, Oid, Tid, Digest)>(), bytes(), text(), number()).prop_map(
            |((txn, oid, base, digest), data, name, size)| Request::StoreShared {
                txn,
                oid,
                base,
                data,
                name,
                size,
                digest
            }
        ),
        any::<(TxnId, Oid, Tid)>().prop_map(|(txn, oid, base)| Request::Delete { txn, oid, base }),
        any::<TxnId>().prop_map(|txn| Request::Vote { txn }),
        any::<TxnId>().prop_map(|txn| Request::Finish { txn }),
        any::<TxnId>().prop_map(|txn| Request::Commit { txn }),
        any::<TxnId>().prop_map(|txn| Request::Abort { txn }),
        any::<TxnId>().prop_map(|txn| Request::Outcome { txn }),
    ];
    let reads = prop_oneof![
        any::<Oid>().prop_map(|oid| Request::Load { oid }),
        any::<(Oid, Tid)>().prop_map(|(oid, before)| Request::LoadBefore { oid, before }),
        any::<(Oid, Tid)>().prop_map(|(oid, tid)| Request::LoadSerial { oid, tid }),
        (any::<Oid>(), short()).prop_map(|(oid, limit)| Request::History { oid, limit }),
        short().prop_map(|count| Request::NewOids { count }),
        (any::<BlobId>(), number(), number()).prop_map(|(blob, from, upto)| Request::SendBlob {
            blob,
            from,
            upto
        }),
        Just(Request::Status),
        any::<Tid>().prop_map(|before| Request::Pack { before }),
        any::<TxnId>().prop_map(|txn| Request::Attach { txn }),
    ];
    prop_oneof![of_transactions, reads].boxed()
}

fn reply() -> BoxedStrategy<Reply> {
    prop_oneof![
        Just(Reply::Done),
        Just(Reply::Voted),
        any::<Tid>().prop_map(|tid| Reply::Finished { tid }),
        few().prop_map(Reply::Conflicts),
        any::<Outcome>().prop_map(Reply::Outcome),
        any::<Revision>().prop_map(Reply::Revision),
        any::<Option<Revision>>().prop_map(Reply::RevisionBefore),
        few().prop_map(Reply::History),
        (any::<Oid>(), short()).prop_map(|(first, count)| Reply::Oids { first, count }),
        vec((text(), number()), 0..5).prop_map(Reply::Status),
        any::<Packed>().prop_map(Reply::Packed),
        (any::<RequestId>(), few()).prop_map(|(last, unfinished)| Reply::Attached { last, unfinished }),
    ]
    .boxed()
}

fn message() -> BoxedStrategy<Message> {
    let handshake = prop_oneof![
        any::<Hello>().prop_map(Message::Hello),
        any::<Welcome>().prop_map(Message::Welcome),
        any::<Refusal>().prop_map(Message::Refuse),
    ];
    let conversation = prop_oneof![
        4 => any::<(RequestId, Request)>().prop_map(|(id, request)| Message::Request { id, request }),
        4 => any::<(RequestId, Result<Reply, RequestError>)>()
            .prop_map(|(id, result)| Message::Reply { id, result }),
        1 => (any::<Tid>(), few()).prop_map(|(tid, oids)| Message::Invalidate { tid, oids }),
        1 => any::<RequestId>().prop_map(|id| Message::Cancel { id }),
        1 => number().prop_map(|nonce| Message::Ping { nonce }),
        1 => number().prop_map(|nonce| Message::Pong { nonce }),
        1 => Just(Message::Goodbye),
    ];
    let transfers = prop_oneof![
        (any::<(TransferId, Option<Digest>)>(), number(), number(), number()).prop_map(
            |((transfer, digest), from, end, size)| Message::BlobStart { transfer, from, end, size, digest }
        ),
        (any::<TransferId>(), number(), short()).prop_map(|(transfer, offset, len)| Message::BlobChunk {
            transfer,
            offset,
            len
        }),
        any::<(TransferId, Digest)>().prop_map(|(transfer, digest)| Message::BlobStop { transfer, digest }),
        any::<(TransferId, RequestError)>()
            .prop_map(|(transfer, reason)| Message::BlobAbort { transfer, reason }),
        (any::<TransferId>(), number()).prop_map(|(transfer, upto)| Message::Credit { transfer, upto }),
        number().prop_map(|upto| Message::ConnectionCredit { upto }),
    ];
    prop_oneof![1 => handshake, 3 => conversation, 3 => transfers].boxed()
}
