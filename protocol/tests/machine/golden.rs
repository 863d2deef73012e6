//! The golden bytes of every message and every variant on the wire. They never change, and
//! PROTOCOL.md shows them too.

use std::collections::BTreeSet;

use blobferry_protocol::wire::DecodeError;
use blobferry_protocol::{Message, Refusal, Reply, Request, RequestError, wire};

use crate::golden_table::table;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_bytes_of_messages_never_change() {
    for (name, message, golden) in table() {
        let mut frame = Vec::new();
        wire::encode(&message, u32::MAX, &mut frame).unwrap();
        assert_eq!(hex(&frame), golden, "{name}");
        assert_eq!(wire::decode(&frame[wire::LENGTH_BYTES..]).unwrap(), message, "{name}");
    }
}

#[test]
fn the_specification_shows_the_golden_bytes() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../PROTOCOL.md")).unwrap();
    for (name, _, golden) in table() {
        assert!(document.contains(&format!("`{golden}`")), "PROTOCOL.md does not show {name}: {golden}");
    }
}

/// Returns the numbers of a message's variants, as PROTOCOL.md counts them. A new variant has to be
/// added here.
fn numbers(message: &Message) -> Vec<u8> {
    match message {
        Message::Hello(_) => vec![0],
        Message::Welcome(_) => vec![1],
        Message::Refuse(refusal) => vec![2, refusal_number(refusal)],
        Message::Request { id, request } => vec![3, id.0 as u8, request_number(request)],
        Message::Reply { id, result: Ok(reply) } => vec![4, id.0 as u8, 0, reply_number(reply)],
        Message::Reply { id, result: Err(error) } => vec![4, id.0 as u8, 1, error_number(error)],
        Message::Invalidate { .. } => vec![5],
        Message::BlobStart { .. } => vec![6],
        Message::BlobChunk { .. } => vec![7],
        Message::BlobStop { .. } => vec![8],
        Message::BlobAbort { transfer, reason } => vec![9, transfer.0 as u8, error_number(reason)],
        Message::Credit { .. } => vec![10],
        Message::ConnectionCredit { .. } => vec![11],
        Message::Cancel { .. } => vec![12],
        Message::Ping { .. } => vec![13],
        Message::Pong { .. } => vec![14],
        Message::Goodbye => vec![15],
    }
}

fn refusal_number(refusal: &Refusal) -> u8 {
    match refusal {
        Refusal::Version { .. } => 0,
        Refusal::Credentials => 1,
        Refusal::Full => 2,
        Refusal::Stopping => 3,
        refusal => panic!("{refusal:?} has no number here"),
    }
}

fn request_number(request: &Request) -> u8 {
    match request {
        Request::Begin { .. } => 0,
        Request::Store { .. } => 1,
        Request::StoreBlob { .. } => 2,
        Request::StoreShared { .. } => 3,
        Request::Delete { .. } => 4,
        Request::Vote { .. } => 5,
        Request::Finish { .. } => 6,
        Request::Commit { .. } => 7,
        Request::Abort { .. } => 8,
        Request::Outcome { .. } => 9,
        Request::Load { .. } => 10,
        Request::LoadBefore { .. } => 11,
        Request::LoadSerial { .. } => 12,
        Request::History { .. } => 13,
        Request::NewOids { .. } => 14,
        Request::SendBlob { .. } => 15,
        Request::Status => 16,
        Request::Pack { .. } => 17,
        Request::Attach { .. } => 18,
    }
}

fn reply_number(reply: &Reply) -> u8 {
    match reply {
        Reply::Done => 0,
        Reply::Voted => 1,
        Reply::Finished { .. } => 2,
        Reply::Conflicts(_) => 3,
        Reply::Outcome(_) => 4,
        Reply::Revision(_) => 5,
        Reply::RevisionBefore(_) => 6,
        Reply::History(_) => 7,
        Reply::Oids { .. } => 8,
        Reply::Status(_) => 9,
        Reply::Packed(_) => 10,
        Reply::Attached { .. } => 11,
    }
}

fn error_number(error: &RequestError) -> u8 {
    match error {
        RequestError::NoSuchObject { .. } => 0,
        RequestError::NoSuchRevision { .. } => 1,
        RequestError::NoSuchBlob { .. } => 2,
        RequestError::BadRange { .. } => 3,
        RequestError::NoSuchTransaction { .. } => 4,
        RequestError::TransactionExists { .. } => 5,
        RequestError::WrongPhase { .. } => 6,
        RequestError::Doomed { .. } => 7,
        RequestError::Aborted { .. } => 8,
        RequestError::Limit { .. } => 9,
        RequestError::NoSpace { .. } => 10,
        RequestError::ReadOnly { .. } => 11,
        RequestError::Damaged { .. } => 12,
        RequestError::Mismatch { .. } => 13,
        RequestError::Cancelled => 14,
        RequestError::Stopping => 15,
        RequestError::Source { .. } => 16,
        RequestError::Failed { .. } => 17,
        RequestError::Unsupported { .. } => 18,
        RequestError::Deadline { .. } => 19,
        RequestError::Undecided { .. } => 20,
        error => panic!("{error:?} has no number here"),
    }
}

#[test]
fn variant_numbers_never_change_and_none_is_missing() {
    let mut seen = BTreeSet::new();
    for (name, message, _) in table() {
        let numbers = numbers(&message);
        let mut frame = Vec::new();
        wire::encode(&message, u32::MAX, &mut frame).unwrap();
        assert_eq!(frame[wire::LENGTH_BYTES..][..numbers.len()], numbers, "{name}");
        seen.insert(numbers);
    }
    let with_first = |first: &[u8]| seen.iter().filter(|numbers| numbers.starts_with(first)).count();
    assert_eq!(
        [with_first(&[2]), with_first(&[3]), with_first(&[4, 5, 0]), with_first(&[4, 5, 1])],
        [4, 19, 12, 21]
    );
    assert_eq!(seen.iter().map(|numbers| numbers[0]).collect::<BTreeSet<_>>().len(), 16);
    // These two enums are non-exhaustive, so the compiler does not find a variant that is missing
    // above.
    for (prefix, count) in [(&[2][..], 4), (&[4, 5, 1], 21)] {
        let with = |number: u8| wire::decode(&[prefix, &[number], &[0; 100]].concat());
        assert!(matches!(with(count - 1), Err(DecodeError::Trailing(_))), "{prefix:?} has {count} variants");
        assert_eq!(with(count), Err(DecodeError::Malformed), "{prefix:?} has more than {count} variants");
    }
}
