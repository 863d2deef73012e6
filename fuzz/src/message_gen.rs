//! Generates the messages of a peer that knows the protocol but does not keep to it.
//!
//! The messages are almost valid. They are about the same few requests, objects and transactions,
//! so that they often refer to each other.

use std::collections::BTreeMap;

use blobferry_protocol::{
    BlobId, BlobInfo, Config, Conflict, Digest, Hello, Limits, MAGIC, Message, Oid, Outcome, Packed, Phase,
    Reply, Request, RequestError, RequestId, Revision, Tid, Time, TransferId, TxnId, TxnMeta, Unfinished,
    Welcome, client, server, wire,
};

use crate::input::Input;
use arbitrary::Unstructured;

/// The digest of every blob whose bytes are not checked.
pub(crate) const DIGEST: Digest = Digest([0xd1; 32]);

/// Returns limits that are small enough for a peer to hit them often.
pub(crate) fn tight_limits() -> Limits {
    Limits {
        frame: 4096,
        chunk: 16,
        transfer_window: 32,
        connection_window: 48,
        transfers: 3,
        requests: 6,
        transactions: 2,
        control_queue: 4096,
    }
}

pub(crate) fn config(limits: Limits) -> Config {
    Config { limits, ..Config::default() }
}

/// Returns a server that has welcomed a client with the same limits.
pub(crate) fn server(limits: Limits) -> server::Connection {
    let mut server = server::Connection::new(Time::ZERO, config(limits));
    server.handle_control(Time::ZERO, &frame(&hello(limits))).unwrap();
    assert!(matches!(server.poll_event(), Some(server::Event::Hello { .. })));
    server.welcome(Tid::ZERO).unwrap();
    assert!(server.poll_transmit(Time::ZERO, &mut Vec::new()).is_some());
    server
}

/// Returns a client that was welcomed by a server with the same limits.
pub(crate) fn client(limits: Limits) -> client::Connection {
    let mut client = client::Connection::new(Time::ZERO, config(limits), b"key");
    assert!(client.poll_transmit(Time::ZERO, &mut Vec::new()).is_some());
    client.handle_control(Time::ZERO, &frame(&welcome(limits))).unwrap();
    assert!(matches!(client.poll_event(), Some(client::Event::Connected(_))));
    client
}

pub(crate) fn hello(limits: Limits) -> Message {
    Message::Hello(Hello { magic: MAGIC, version_min: 1, version_max: 1, limits, credentials: Vec::new() })
}

pub(crate) fn welcome(limits: Limits) -> Message {
    Message::Welcome(Welcome { version: 1, limits, last_tid: Tid::ZERO })
}

pub(crate) fn frame(message: &Message) -> Vec<u8> {
    let mut frame = Vec::new();
    wire::encode(message, u32::MAX, &mut frame).unwrap();
    frame
}

/// Encodes a frame around bytes that may not be a message.
pub(crate) fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes(), body].concat()
}

/// What the peer sends next.
pub(crate) enum Generated {
    Message(Message),
    /// A frame whose body may not be a message.
    Body(Vec<u8>),
    /// Bytes that may not be a frame.
    Raw(Vec<u8>),
}

impl Generated {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Generated::Message(message) => frame(message),
            Generated::Body(body) => framed(body),
            Generated::Raw(bytes) => bytes.clone(),
        }
    }
}

/// The side that sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Client,
    Server,
}

/// What one side has sent so far, so that its next message often continues it.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    last: u64,
    /// The next offset of each transfer.
    offsets: BTreeMap<TransferId, u64>,
}

/// Generates the next message of a side. A client mostly numbers its requests in order.
pub(crate) fn next_message(
    sender: Sender,
    input: &mut Unstructured<'_>,
    conversation: &mut Conversation,
) -> Generated {
    let last = &mut conversation.last;
    Generated::Message(match input.below(16) {
        0..=4 if sender == Sender::Client => {
            let id = if input.below(16) == 15 { input.number() } else { last.saturating_add(1) };
            *last = id.max(*last);
            Message::Request { id: RequestId(id), request: request(input) }
        }
        0..=4 => Message::Reply { id: RequestId(input.below(16).into()), result: result(input) },
        5 if sender == Sender::Client => Message::Cancel { id: RequestId(input.below(16).into()) },
        5 => Message::Invalidate {
            tid: Tid(input.number()),
            oids: input.prefixed().iter().map(|n| Oid((*n).into())).collect(),
        },
        6 => start(input, conversation),
        7 | 8 => chunk(input, conversation),
        9 => Message::BlobStop { transfer: transfer(input), digest: DIGEST },
        10 => Message::BlobAbort { transfer: transfer(input), reason: error(input) },
        11 => Message::Credit { transfer: transfer(input), upto: offset(input) },
        12 => Message::ConnectionCredit { upto: offset(input) },
        13 => match input.below(8) {
            0 => Message::Goodbye,
            1 => Message::Pong { nonce: input.number() },
            _ => Message::Ping { nonce: input.number() },
        },
        14 => return Generated::Body(input.prefixed().to_vec()),
        _ => return Generated::Raw(input.prefixed().to_vec()),
    })
}

fn chunk(input: &mut Unstructured<'_>, conversation: &mut Conversation) -> Message {
    let (transfer, len) = (transfer(input), input.number());
    let at = conversation.offsets.entry(transfer).or_default();
    let offset = if len % 16 == 15 { offset(input) } else { *at };
    let len = match len {
        0..128 => len % 18,
        128..250 => len % 36,
        _ => len,
    };
    *at = offset.saturating_add(len);
    Message::BlobChunk { transfer, offset, len: u32::try_from(len).unwrap_or(u32::MAX) }
}

fn start(input: &mut Unstructured<'_>, conversation: &mut Conversation) -> Message {
    let (transfer, end) = (transfer(input), offset(input));
    let (from, size) = match input.below(8) {
        0 => (offset(input), end),
        1 => (0, offset(input)),
        _ => (0, end),
    };
    conversation.offsets.insert(transfer, from);
    Message::BlobStart { transfer, from, end, size, digest: input.flag().then_some(DIGEST) }
}

pub(crate) fn transfer(input: &mut Unstructured<'_>) -> TransferId {
    TransferId(input.below(16).into())
}

/// Returns an offset, often at the end of a chunk of the [`tight_limits`].
pub(crate) fn offset(input: &mut Unstructured<'_>) -> u64 {
    match input.number() {
        n @ 0..128 => n % 8 * 16,
        n => n,
    }
}

pub(crate) fn txn(input: &mut Unstructured<'_>) -> TxnId {
    TxnId([input.below(3); 16])
}

pub(crate) fn blob(input: &mut Unstructured<'_>) -> BlobId {
    BlobId { oid: Oid(input.below(4).into()), tid: Tid(input.below(4).into()) }
}

/// Generates a request of any kind.
pub(crate) fn request(input: &mut Unstructured<'_>) -> Request {
    let kind = input.below(24);
    let txn = txn(input);
    let (oid, base) = (Oid(u64::from(kind)), Tid::ZERO);
    match kind {
        0 | 1 => {
            Request::Begin { txn, meta: TxnMeta { user: input.prefixed().to_vec(), description: Vec::new() } }
        }
        2 => Request::Store { txn, oid, base, data: input.prefixed().to_vec() },
        3..=6 => Request::StoreBlob { txn, oid, base, data: vec![kind; 3] },
        7 => Request::StoreShared {
            txn,
            oid,
            base,
            data: Vec::new(),
            name: "a-b".into(),
            size: input.number(),
            digest: DIGEST,
        },
        8 => Request::Delete { txn, oid, base },
        9 => Request::Vote { txn },
        10 => Request::Finish { txn },
        11 => Request::Commit { txn },
        12 => Request::Abort { txn },
        13 => Request::Outcome { txn },
        14 => Request::Load { oid },
        15 => Request::LoadBefore { oid, before: Tid(input.number()) },
        16 => Request::LoadSerial { oid, tid: Tid(input.number()) },
        17 => Request::History { oid, limit: 9 },
        18 => Request::NewOids { count: input.byte().into() },
        19 => Request::Status,
        20 => Request::Pack { before: Tid(input.number()) },
        21 => Request::Attach { txn },
        _ => Request::SendBlob {
            blob: blob(input),
            from: offset(input),
            upto: if input.flag() { u64::MAX } else { offset(input) },
        },
    }
}

/// Generates an answer, which may not fit the request.
pub(crate) fn result(input: &mut Unstructured<'_>) -> Result<Reply, RequestError> {
    match input.below(16) {
        0..=4 => Ok(Reply::Done),
        5 => Ok(Reply::Voted),
        6 => Ok(Reply::Conflicts(vec![conflict(); input.below(64).into()])),
        7 => Ok(Reply::Finished { tid: Tid(7) }),
        8 => Err(error(input)),
        _ => Ok(other(input)),
    }
}

fn conflict() -> Conflict {
    Conflict { oid: Oid(1), committed: Tid(2), base: Tid(1) }
}

fn other(input: &mut Unstructured<'_>) -> Reply {
    let blob = Some(BlobInfo { size: 64, digest: DIGEST });
    let revision = Revision { tid: Tid(1), next: None, data: input.prefixed().to_vec(), blob };
    match input.below(8) {
        0 => Reply::Outcome(Outcome::NotCommitted),
        1 => Reply::Revision(revision),
        2 => Reply::RevisionBefore(Some(revision)),
        3 => Reply::History(Vec::new()),
        4 => Reply::Oids { first: Oid(9), count: 3 },
        5 => Reply::Status(vec![("a".into(), 1)]),
        6 => Reply::Packed(Packed::default()),
        _ => Reply::Attached {
            last: RequestId(3),
            unfinished: vec![Unfinished { request: RequestId(3), upto: 16 }],
        },
    }
}

/// Returns the answer of a server that accepts the request, or `None` if the request needs a blob.
pub(crate) fn matching_reply(request: &Request) -> Option<Reply> {
    let revision = || Revision { tid: Tid(1), next: None, data: vec![1, 2, 3], blob: None };
    Some(match request {
        Request::Vote { .. } => Reply::Voted,
        Request::Finish { .. } | Request::Commit { .. } => Reply::Finished { tid: Tid(9) },
        Request::Outcome { .. } => Reply::Outcome(Outcome::Committed { tid: Tid(9) }),
        Request::Load { .. } | Request::LoadSerial { .. } => Reply::Revision(revision()),
        Request::LoadBefore { .. } => Reply::RevisionBefore(Some(revision())),
        Request::History { .. } => Reply::History(Vec::new()),
        Request::NewOids { count } => Reply::Oids { first: Oid(100), count: *count },
        Request::Status => Reply::Status(vec![("a".into(), 1)]),
        Request::Pack { .. } => Reply::Packed(Packed::default()),
        Request::Attach { .. } => Reply::Attached { last: RequestId(0), unfinished: Vec::new() },
        Request::SendBlob { .. } => return None,
        _ => Reply::Done,
    })
}

/// Generates an error.
pub(crate) fn error(input: &mut Unstructured<'_>) -> RequestError {
    let txn = txn(input);
    match input.below(8) {
        0 => RequestError::Doomed { txn },
        // Sometimes longer than the frame limit.
        1 => RequestError::Failed { detail: "x".repeat(if input.byte() > 250 { 5000 } else { 5 }) },
        2 => RequestError::NoSuchBlob { blob: blob(input) },
        3 => RequestError::WrongPhase { txn, phase: Phase::Voting },
        4 => RequestError::Aborted { txn, reason: String::new() },
        5 => RequestError::Stopping,
        _ => RequestError::Cancelled,
    }
}
