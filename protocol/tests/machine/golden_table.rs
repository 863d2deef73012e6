//! The messages that golden.rs checks, with their bytes.

use blobferry_protocol::{
    BlobId, BlobInfo, Conflict, Deadline, Digest, Hello, HistoryEntry, Limits, MAGIC, Message, Oid, Outcome,
    Packed, Phase, Refusal, Reply, Request, RequestError, RequestId, Revision, Tid, TransferId, TxnId,
    TxnMeta, Unfinished, Welcome,
};

fn txn() -> TxnId {
    TxnId(std::array::from_fn(|i| i as u8))
}

fn digest() -> Digest {
    Digest(std::array::from_fn(|i| 0xa0 + i as u8))
}

fn blob() -> BlobId {
    BlobId { oid: Oid(7), tid: Tid(300) }
}

fn revision() -> Revision {
    let blob = BlobInfo { size: 1000, digest: digest() };
    Revision { tid: Tid(300), next: Some(Tid(301)), data: b"rec".to_vec(), blob: Some(blob) }
}

fn request(request: Request) -> Message {
    Message::Request { id: RequestId(5), request }
}

fn reply(result: Result<Reply, RequestError>) -> Message {
    Message::Reply { id: RequestId(5), result }
}

/// Returns the name of each message in PROTOCOL.md, the message, and its frame in hexadecimal.
pub(crate) fn table() -> Vec<(&'static str, Message, &'static str)> {
    let mut table = handshake();
    table.extend(requests());
    table.extend(replies());
    table.extend(errors());
    table.extend(others());
    table
}

fn handshake() -> Vec<(&'static str, Message, &'static str)> {
    vec![
        (
            "Hello",
            Message::Hello(Hello {
                magic: MAGIC,
                version_min: 1,
                version_max: 1,
                limits: Limits::default(),
                credentials: b"key".to_vec(),
            }),
            "2800000000626c6f6266657279010180808008808010808080018080800280088020800280808010036b6579",
        ),
        (
            "Welcome",
            Message::Welcome(Welcome { version: 1, limits: Limits::default(), last_tid: Tid(300) }),
            "1d000000010180808008808010808080018080800280088020800280808010ac02",
        ),
        ("Refuse Version", Message::Refuse(Refusal::Version { min: 1, max: 2 }), "0400000002000102"),
        ("Refuse Credentials", Message::Refuse(Refusal::Credentials), "020000000201"),
        ("Refuse Full", Message::Refuse(Refusal::Full), "020000000202"),
        ("Refuse Stopping", Message::Refuse(Refusal::Stopping), "020000000203"),
    ]
}

fn requests() -> Vec<(&'static str, Message, &'static str)> {
    vec![
        (
            "Request Begin",
            request(Request::Begin {
                txn: txn(),
                meta: TxnMeta { user: b"ann".to_vec(), description: b"new".to_vec() },
            }),
            "1b000000030500000102030405060708090a0b0c0d0e0f03616e6e036e6577",
        ),
        (
            "Request Store",
            request(Request::Store { txn: txn(), oid: Oid(7), base: Tid(300), data: b"rec".to_vec() }),
            "1a000000030501000102030405060708090a0b0c0d0e0f07ac0203726563",
        ),
        (
            "Request StoreBlob",
            request(Request::StoreBlob { txn: txn(), oid: Oid(7), base: Tid(300), data: b"rec".to_vec() }),
            "1a000000030502000102030405060708090a0b0c0d0e0f07ac0203726563",
        ),
        (
            "Request StoreShared",
            request(Request::StoreShared {
                txn: txn(),
                oid: Oid(7),
                base: Tid(300),
                data: b"rec".to_vec(),
                name: "a.tmp".into(),
                size: 1000,
                digest: digest(),
            }),
            "42000000030503000102030405060708090a0b0c0d0e0f07ac020372656305612e746d70e807a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf",
        ),
        (
            "Request Delete",
            request(Request::Delete { txn: txn(), oid: Oid(7), base: Tid(300) }),
            "16000000030504000102030405060708090a0b0c0d0e0f07ac02",
        ),
        (
            "Request Vote",
            request(Request::Vote { txn: txn() }),
            "13000000030505000102030405060708090a0b0c0d0e0f",
        ),
        (
            "Request Finish",
            request(Request::Finish { txn: txn() }),
            "13000000030506000102030405060708090a0b0c0d0e0f",
        ),
        (
            "Request Commit",
            request(Request::Commit { txn: txn() }),
            "13000000030507000102030405060708090a0b0c0d0e0f",
        ),
        (
            "Request Abort",
            request(Request::Abort { txn: txn() }),
            "13000000030508000102030405060708090a0b0c0d0e0f",
        ),
        (
            "Request Outcome",
            request(Request::Outcome { txn: txn() }),
            "13000000030509000102030405060708090a0b0c0d0e0f",
        ),
        ("Request Load", request(Request::Load { oid: Oid(7) }), "0400000003050a07"),
        (
            "Request LoadBefore",
            request(Request::LoadBefore { oid: Oid(7), before: Tid(300) }),
            "0600000003050b07ac02",
        ),
        (
            "Request LoadSerial",
            request(Request::LoadSerial { oid: Oid(7), tid: Tid(300) }),
            "0600000003050c07ac02",
        ),
        ("Request History", request(Request::History { oid: Oid(7), limit: 10 }), "0500000003050d070a"),
        ("Request NewOids", request(Request::NewOids { count: 16 }), "0400000003050e10"),
        (
            "Request SendBlob",
            request(Request::SendBlob { blob: blob(), from: 128, upto: u64::MAX }),
            "1200000003050f07ac028001ffffffffffffffffff01",
        ),
        ("Request Status", request(Request::Status), "03000000030510"),
        ("Request Pack", request(Request::Pack { before: Tid(300) }), "05000000030511ac02"),
        (
            "Request Attach",
            request(Request::Attach { txn: txn() }),
            "13000000030512000102030405060708090a0b0c0d0e0f",
        ),
    ]
}

fn replies() -> Vec<(&'static str, Message, &'static str)> {
    vec![
        ("Reply Done", reply(Ok(Reply::Done)), "0400000004050000"),
        ("Reply Voted", reply(Ok(Reply::Voted)), "0400000004050001"),
        ("Reply Finished", reply(Ok(Reply::Finished { tid: Tid(300) })), "0600000004050002ac02"),
        (
            "Reply Conflicts",
            reply(Ok(Reply::Conflicts(vec![Conflict { oid: Oid(7), committed: Tid(301), base: Tid(300) }]))),
            "0a000000040500030107ad02ac02",
        ),
        (
            "Reply Outcome Committed",
            reply(Ok(Reply::Outcome(Outcome::Committed { tid: Tid(300) }))),
            "070000000405000400ac02",
        ),
        (
            "Reply Outcome NotCommitted",
            reply(Ok(Reply::Outcome(Outcome::NotCommitted))),
            "050000000405000401",
        ),
        (
            "Reply Revision",
            reply(Ok(Reply::Revision(revision()))),
            "3000000004050005ac0201ad020372656301e807a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf",
        ),
        (
            "Reply RevisionBefore some",
            reply(Ok(Reply::RevisionBefore(Some(revision())))),
            "310000000405000601ac0201ad020372656301e807a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf",
        ),
        ("Reply RevisionBefore none", reply(Ok(Reply::RevisionBefore(None))), "050000000405000600"),
        (
            "Reply History",
            reply(Ok(Reply::History(vec![HistoryEntry {
                tid: Tid(300),
                meta: TxnMeta { user: b"ann".to_vec(), description: b"new".to_vec() },
                size: Some(3),
                blob: None,
            }]))),
            "120000000405000701ac0203616e6e036e6577010300",
        ),
        ("Reply Oids", reply(Ok(Reply::Oids { first: Oid(7), count: 16 })), "06000000040500080710"),
        (
            "Reply Status",
            reply(Ok(Reply::Status(vec![("reads".into(), 5)]))),
            "0c000000040500090105726561647305",
        ),
        (
            "Reply Packed",
            reply(Ok(Reply::Packed(Packed { revisions: 1, blobs: 2, bytes: 300 }))),
            "080000000405000a0102ac02",
        ),
        (
            "Reply Attached",
            reply(Ok(Reply::Attached {
                last: RequestId(4),
                unfinished: vec![Unfinished { request: RequestId(3), upto: 300 }],
            })),
            "090000000405000b040103ac02",
        ),
    ]
}

fn errors() -> Vec<(&'static str, Message, &'static str)> {
    vec![
        (
            "Reply error NoSuchObject",
            reply(Err(RequestError::NoSuchObject { oid: Oid(7) })),
            "050000000405010007",
        ),
        (
            "Reply error NoSuchRevision",
            reply(Err(RequestError::NoSuchRevision { oid: Oid(7), tid: Tid(300) })),
            "070000000405010107ac02",
        ),
        (
            "Reply error NoSuchBlob",
            reply(Err(RequestError::NoSuchBlob { blob: blob() })),
            "070000000405010207ac02",
        ),
        (
            "Reply error BadRange",
            reply(Err(RequestError::BadRange { blob: blob(), size: 100, from: 128, upto: 256 })),
            "0c0000000405010307ac026480018002",
        ),
        (
            "Reply error NoSuchTransaction",
            reply(Err(RequestError::NoSuchTransaction { txn: txn() })),
            "1400000004050104000102030405060708090a0b0c0d0e0f",
        ),
        (
            "Reply error TransactionExists",
            reply(Err(RequestError::TransactionExists { txn: txn() })),
            "1400000004050105000102030405060708090a0b0c0d0e0f",
        ),
        (
            "Reply error WrongPhase Open",
            reply(Err(RequestError::WrongPhase { txn: txn(), phase: Phase::Open })),
            "1500000004050106000102030405060708090a0b0c0d0e0f00",
        ),
        (
            "Reply error WrongPhase Voting",
            reply(Err(RequestError::WrongPhase { txn: txn(), phase: Phase::Voting })),
            "1500000004050106000102030405060708090a0b0c0d0e0f01",
        ),
        (
            "Reply error WrongPhase Voted",
            reply(Err(RequestError::WrongPhase { txn: txn(), phase: Phase::Voted })),
            "1500000004050106000102030405060708090a0b0c0d0e0f02",
        ),
        (
            "Reply error WrongPhase Finishing",
            reply(Err(RequestError::WrongPhase { txn: txn(), phase: Phase::Finishing })),
            "1500000004050106000102030405060708090a0b0c0d0e0f03",
        ),
        (
            "Reply error WrongPhase Doomed",
            reply(Err(RequestError::WrongPhase { txn: txn(), phase: Phase::Doomed })),
            "1500000004050106000102030405060708090a0b0c0d0e0f04",
        ),
        (
            "Reply error Doomed",
            reply(Err(RequestError::Doomed { txn: txn() })),
            "1400000004050107000102030405060708090a0b0c0d0e0f",
        ),
        (
            "Reply error Aborted",
            reply(Err(RequestError::Aborted { txn: txn(), reason: "late".into() })),
            "1900000004050108000102030405060708090a0b0c0d0e0f046c617465",
        ),
        (
            "Reply error Limit",
            reply(Err(RequestError::Limit { what: "oids".into(), limit: 10, actual: 11 })),
            "0b00000004050109046f6964730a0b",
        ),
        (
            "Reply error NoSpace",
            reply(Err(RequestError::NoSpace { detail: "full".into() })),
            "090000000405010a0466756c6c",
        ),
        (
            "Reply error ReadOnly",
            reply(Err(RequestError::ReadOnly { reason: "copy".into() })),
            "090000000405010b04636f7079",
        ),
        (
            "Reply error Damaged",
            reply(Err(RequestError::Damaged { blob: blob(), detail: "torn".into() })),
            "0c0000000405010c07ac0204746f726e",
        ),
        (
            "Reply error Mismatch",
            reply(Err(RequestError::Mismatch { detail: "size".into() })),
            "090000000405010d0473697a65",
        ),
        ("Reply error Cancelled", reply(Err(RequestError::Cancelled)), "040000000405010e"),
        ("Reply error Stopping", reply(Err(RequestError::Stopping)), "040000000405010f"),
        (
            "Reply error Source",
            reply(Err(RequestError::Source { detail: "gone".into() })),
            "090000000405011004676f6e65",
        ),
        (
            "Reply error Failed",
            reply(Err(RequestError::Failed { detail: "disk".into() })),
            "0900000004050111046469736b",
        ),
        (
            "Reply error Unsupported",
            reply(Err(RequestError::Unsupported { what: "pack".into() })),
            "0900000004050112047061636b",
        ),
        (
            "Reply error Deadline Transfer",
            reply(Err(RequestError::Deadline { what: Deadline::Transfer, after_ms: 120_000 })),
            "080000000405011300c0a907",
        ),
        (
            "Reply error Deadline Locks",
            reply(Err(RequestError::Deadline { what: Deadline::Locks, after_ms: 30_000 })),
            "080000000405011301b0ea01",
        ),
        (
            "Reply error Undecided",
            reply(Err(RequestError::Undecided { txn: txn(), reason: "disk".into() })),
            "1900000004050114000102030405060708090a0b0c0d0e0f046469736b",
        ),
    ]
}

fn others() -> Vec<(&'static str, Message, &'static str)> {
    vec![
        (
            "Invalidate",
            Message::Invalidate { tid: Tid(300), oids: vec![Oid(7), Oid(300)] },
            "0700000005ac020207ac02",
        ),
        (
            "BlobStart with digest",
            Message::BlobStart {
                transfer: TransferId(5),
                from: 0,
                end: 1000,
                size: 1000,
                digest: Some(digest()),
            },
            "28000000060500e807e80701a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf",
        ),
        (
            "BlobStart without digest",
            Message::BlobStart { transfer: TransferId(5), from: 128, end: 256, size: 1000, digest: None },
            "09000000060580018002e80700",
        ),
        (
            "BlobChunk",
            Message::BlobChunk { transfer: TransferId(5), offset: 128, len: 128 },
            "06000000070580018001",
        ),
        (
            "BlobStop",
            Message::BlobStop { transfer: TransferId(5), digest: digest() },
            "220000000805a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf",
        ),
        (
            "BlobAbort",
            Message::BlobAbort { transfer: TransferId(5), reason: RequestError::Cancelled },
            "0300000009050e",
        ),
        ("Credit", Message::Credit { transfer: TransferId(5), upto: 300 }, "040000000a05ac02"),
        ("ConnectionCredit", Message::ConnectionCredit { upto: 4_194_304 }, "050000000b80808002"),
        ("Cancel", Message::Cancel { id: RequestId(5) }, "020000000c05"),
        ("Ping", Message::Ping { nonce: 1 }, "020000000d01"),
        ("Pong", Message::Pong { nonce: 1 }, "020000000e01"),
        ("Goodbye", Message::Goodbye, "010000000f"),
    ]
}
