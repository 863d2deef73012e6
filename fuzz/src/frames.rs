//! Fuzz target: arbitrary bytes as a stream of frames, compared with a second, simple frame parser.
//!
//! However the stream is cut, the machine takes the bytes that the simple parser expects and waits
//! for the same number of bytes. It reports the same error in the same frame, and keeps no more
//! memory than the received bytes account for.

use blobferry_protocol::connection::{Connection, Side};
use blobferry_protocol::wire;
use blobferry_protocol::wire::LENGTH_BYTES;
use blobferry_protocol::{BlobId, Expect, Limits, Message, Oid, PeerError, Request, Tid, Time};

use crate::memory::bounded;
use crate::message_gen;

/// Feeds the stream to a machine. The first byte chooses the machine and the size of the reads.
pub fn frames(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else { return };
    let limits = if choice & 2 == 0 { message_gen::tight_limits() } else { Limits::default() };
    let size = match choice >> 2 {
        0 => stream.len().max(1),
        size => usize::from(size),
    };
    bounded(data.len(), 64 << 10, || match choice & 1 {
        0 => feed(message_gen::server(limits), stream, size, Longest { max: limits.frame, kinds: &[3, 9] }),
        _ => {
            feed(client_with_requests(limits), stream, size, Longest { max: limits.frame, kinds: &[4, 5, 9] })
        }
    });
}

/// Returns a client with a few requests in flight.
fn client_with_requests(limits: Limits) -> blobferry_protocol::client::Connection {
    let mut client = message_gen::client(limits);
    let blob = BlobId { oid: Oid(1), tid: Tid(1) };
    for upto in [64, u64::MAX] {
        client.request(Request::SendBlob { blob, from: 0, upto }).unwrap();
    }
    client.request(Request::Load { oid: Oid(1) }).unwrap();
    client.request(Request::Status).unwrap();
    client
}

/// The longest frame, and the kinds of message that may be that long on one side.
#[derive(Clone, Copy)]
struct Longest {
    max: u32,
    kinds: &'static [u8],
}

/// What the simple parser finds at the beginning of some bytes.
enum Found {
    /// An incomplete frame; at least this number of bytes is missing.
    Part(usize),
    /// A message, and the length of its frame in bytes.
    Whole(usize, Message),
    /// An invalid frame.
    Bad(PeerError),
}

fn find_frame(bytes: &[u8], longest: Longest) -> Found {
    let Longest { max, kinds } = longest;
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else {
        return Found::Part(LENGTH_BYTES - bytes.len());
    };
    let len = u32::from_le_bytes(*length);
    let end = LENGTH_BYTES + len as usize;
    if len > max {
        return Found::Bad(PeerError::FrameTooLong { len, max });
    }
    if let Some(kind) = bytes.get(LENGTH_BYTES)
        && len > Limits::SMALL_FRAME
        && !kinds.contains(kind)
    {
        return Found::Bad(PeerError::FrameTooLong { len, max: Limits::SMALL_FRAME });
    }
    match bytes.get(LENGTH_BYTES..end).map(wire::decode) {
        None => Found::Part(end - bytes.len()),
        Some(Ok(message)) => Found::Whole(end, message),
        Some(Err(error)) => Found::Bad(error.into()),
    }
}

fn feed<H: Side>(mut machine: Connection<H>, stream: &[u8], size: usize, longest: Longest) {
    // The start of the current frame, and the end of the bytes that were fed.
    let (mut start, mut at) = (0, 0);
    while at < stream.len() {
        let read = &stream[at..stream.len().min(at + size)];
        match machine.expect() {
            Expect::Payload(slice) => {
                let n = slice.len.min(read.len() as u64);
                machine.payload_moved(Time::ZERO, n).unwrap();
                at += n as usize;
                start = at;
            }
            Expect::Control { max: missing } => {
                let Found::Part(expected) = find_frame(&stream[start..at], longest) else {
                    panic!("it was not taken")
                };
                assert_eq!(missing, expected);
                match machine.handle_control(Time::ZERO, read) {
                    Ok(used) => {
                        assert!(used > 0, "bytes that are not payload are taken");
                        at += used;
                        start =
                            check_accepted(stream, start, at, longest, machine.expect(), used < read.len());
                    }
                    Err(error) => return check_refused(&stream[start..at + read.len()], longest, &error),
                }
            }
        }
        while machine.poll_event().is_some() {}
        while machine.poll_transmit(Time::ZERO, &mut Vec::new()).is_some() {}
    }
}

/// Checks that the machine was right to take the bytes up to `at`. Returns the start of the last
/// incomplete frame.
fn check_accepted(
    stream: &[u8],
    start: usize,
    at: usize,
    longest: Longest,
    expect: Expect,
    stopped: bool,
) -> usize {
    let (mut start, mut last) = (start, None);
    loop {
        match find_frame(&stream[start..at], longest) {
            Found::Whole(end, message) => (start, last) = (start + end, Some(message)),
            Found::Part(_) => break,
            Found::Bad(error) => panic!("it was not found: {error}"),
        }
    }
    if let Expect::Payload(slice) = expect {
        assert_eq!(start, at, "payload begins where a frame ends");
        let Some(Message::BlobChunk { transfer, offset, len }) = last else { panic!("no chunk: {last:?}") };
        assert_eq!((slice.transfer, slice.offset, slice.len), (transfer, offset, len.into()));
    } else {
        assert!(!stopped, "only payload is left where it is");
    }
    start
}

/// Checks that the machine was right to refuse these bytes.
fn check_refused(bytes: &[u8], longest: Longest, error: &PeerError) {
    let of_frames = matches!(error, PeerError::Malformed(_) | PeerError::FrameTooLong { .. });
    let (mut start, mut whole) = (0, 0);
    loop {
        match find_frame(&bytes[start..], longest) {
            Found::Whole(end, _) => (start, whole) = (start + end, whole + 1),
            Found::Bad(found) if of_frames => return assert_eq!(&found, error),
            Found::Bad(_) | Found::Part(_) => break,
        }
    }
    assert!(!of_frames, "{error}, of frames that are none the worse");
    assert!(whole > 0, "{error}, of no message");
}
