//! The events do not depend on how a stream is cut into reads, or on how payload is moved.

use std::collections::BTreeMap;
use std::fmt::Debug;

use blobferry_protocol::connection::{Connection, Side};
use blobferry_protocol::testing::{Source, Style, digest_of};
use blobferry_protocol::{
    BlobId, Expect, Limits, Message, Oid, PeerError, Reply, Request, RequestError, RequestId, Slice, Tid,
    Time, TransferId, buffered, client, server,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::{self, begin, txn, wide};

/// What a side has received from a stream.
#[derive(Debug, PartialEq)]
struct Seen<E> {
    events: Vec<E>,
    payload: BTreeMap<TransferId, Vec<u8>>,
    error: Option<PeerError>,
}

/// Passes a stream to a connection in reads of these sizes, repeated.
fn feed<S: Side>(
    mut connection: Connection<S>,
    stream: &[u8],
    style: Style,
    sizes: &[usize],
) -> Seen<S::Event> {
    let mut seen = Seen { events: Vec::new(), payload: BTreeMap::new(), error: None };
    let mut rest = stream;
    for size in sizes.iter().cycle() {
        if rest.is_empty() || seen.error.is_some() {
            break;
        }
        let max = match (style, connection.expect()) {
            (Style::Buffered, _) => usize::MAX,
            (_, Expect::Control { max }) => max,
            (_, Expect::Payload(slice)) => slice.len as usize,
        };
        assert!(max > 0, "there is always something to read");
        let (read, left) = rest.split_at((*size).min(max).min(rest.len()).max(1));
        rest = left;
        seen.error = match style {
            Style::Buffered => feed_buffered(&mut connection, read, &mut seen),
            Style::Splicing => feed_spliced(&mut connection, read, &mut seen),
        }
        .err();
    }
    seen
}

fn feed_buffered<S: Side>(
    connection: &mut Connection<S>,
    read: &[u8],
    seen: &mut Seen<S::Event>,
) -> Result<(), PeerError> {
    buffered::receive(
        connection,
        Time::ZERO,
        read,
        seen,
        |seen, _, event| seen.events.push(event),
        |seen, slice, at| seen.payload.entry(slice.transfer).or_default().extend_from_slice(&read[at]),
    )
}

fn feed_spliced<S: Side>(
    connection: &mut Connection<S>,
    read: &[u8],
    seen: &mut Seen<S::Event>,
) -> Result<(), PeerError> {
    match connection.expect() {
        Expect::Control { .. } => {
            let used = connection.handle_control(Time::ZERO, read);
            seen.events.extend(support::events(connection));
            assert_eq!(used?, read.len(), "as much as was promised is control");
        }
        Expect::Payload(Slice { transfer, .. }) => {
            seen.payload.entry(transfer).or_default().extend_from_slice(read);
            connection.payload_moved(Time::ZERO, read.len() as u64).unwrap();
        }
    }
    Ok(())
}

/// Returns all bytes that a connection sends, with the payload.
fn stream_of<S: Side>(connection: &mut Connection<S>, sources: &BTreeMap<TransferId, Source>) -> Vec<u8> {
    let mut stream = Vec::new();
    buffered::transmit(connection, Time::ZERO, &mut stream, usize::MAX, |slice, into| {
        let source = &sources[&slice.transfer];
        if source.fails_at.is_some_and(|at| slice.offset + slice.len > at) {
            return Err(RequestError::Source { detail: "it fails".into() });
        }
        into.extend_from_slice(&source.bytes[slice.offset as usize..][..slice.len as usize]);
        Ok(())
    });
    stream
}

fn source() -> impl Strategy<Value = Source> {
    (vec(any::<u8>(), 0..600), proptest::option::of(0u64..600))
        .prop_map(|(bytes, fails_at)| Source { fails_at, ..Source::new(&bytes) })
}

/// Limits with small chunks, so that there are many.
fn chunky() -> Limits {
    Limits { chunk: 64, ..wide().limits }
}

/// Returns the stream of a client that stores these blobs, with a few other requests in between.
fn client_stream(sources: Vec<Source>) -> Vec<u8> {
    let mut client = support::client_of(wide(), chunky());
    let mut stream = Vec::new();
    let mut uploads = BTreeMap::new();
    client.request(begin(1)).unwrap();
    for source in sources {
        let digest = Some(digest_of(&source.bytes));
        let size = source.bytes.len() as u64;
        let transfer = client.upload(txn(1), Oid(size), Tid(3), vec![7; 5], size, digest).unwrap();
        uploads.insert(transfer, source);
        let load = client.request(Request::Load { oid: Oid(size) }).unwrap();
        if size.is_multiple_of(3) {
            client.cancel(load).unwrap();
        }
        if size.is_multiple_of(2) {
            stream.extend(stream_of(&mut client, &uploads));
        }
    }
    client.request(Request::Vote { txn: txn(1) }).unwrap();
    stream.extend(stream_of(&mut client, &uploads));
    stream
}

/// Returns a server that has welcomed the client of [`client_stream`].
fn connected_server() -> server::Connection {
    support::server_for(support::with(chunky()), wide().limits)
}

/// Returns the stream of a server to a client that has requested these blobs.
fn server_stream(sources: Vec<Source>) -> Vec<u8> {
    let mut server = support::server_for(wide(), chunky());
    let mut sending = BTreeMap::new();
    for (source, id) in sources.into_iter().zip(1..) {
        let whole = Request::SendBlob { blob: BlobId { oid: Oid(id), tid: Tid(1) }, from: 0, upto: u64::MAX };
        support::receive(&mut server, &support::request(id * 2 - 1, whole));
        support::receive(&mut server, &support::request(id * 2, Request::Status));
        server
            .start_blob(TransferId(id * 2 - 1), source.bytes.len() as u64, digest_of(&source.bytes))
            .unwrap();
        sending.insert(TransferId(id * 2 - 1), source);
        server.reply(RequestId(id * 2), Ok(Reply::Status(vec![("a".into(), id)]))).unwrap();
        server.invalidate(Tid(id), &[Oid(id), Oid(2)]).unwrap();
    }
    stream_of(&mut server, &sending)
}

/// Returns a client that has requested the blobs that [`server_stream`] sends.
fn connected_client(blobs: usize) -> client::Connection {
    let mut client = support::client_of(support::with(chunky()), wide().limits);
    for id in 1..=blobs as u64 {
        let blob = BlobId { oid: Oid(id), tid: Tid(1) };
        client.request(Request::SendBlob { blob, from: 0, upto: u64::MAX }).unwrap();
        client.request(Request::Status).unwrap();
    }
    client
}

/// Checks that a stream has the same events whole and in pieces, through buffers and past them.
fn all_the_same<S: Side<Event: PartialEq + Debug>>(
    connection: impl Fn() -> Connection<S>,
    stream: &[u8],
    sizes: &[usize],
) -> Seen<S::Event> {
    let whole = feed(connection(), stream, Style::Buffered, &[usize::MAX]);
    assert_eq!(whole, feed(connection(), stream, Style::Buffered, sizes));
    assert_eq!(whole, feed(connection(), stream, Style::Splicing, sizes));
    assert_eq!(whole, feed(connection(), stream, Style::Buffered, &[1]));
    whole
}

/// Applies changes to a stream: the place (as a part of its length), and the change.
fn damage(stream: &mut Vec<u8>, damages: Vec<(usize, u8, u8)>) {
    for (at, kind, byte) in damages {
        let at = at % stream.len().max(1);
        match kind % 4 {
            0 => stream.truncate(at),
            1 => stream.insert(at, byte),
            2 if at < stream.len() => drop(stream.remove(at)),
            _ => stream.iter_mut().skip(at).take(1).for_each(|old| *old ^= byte),
        }
    }
}

proptest! {
    #[test]
    fn a_server_has_the_same_events_in_all_cuts(
        sources in vec(source(), 0..5),
        sizes in vec(1usize..90, 1..20),
    ) {
        let stream = client_stream(sources.clone());
        let seen = all_the_same(connected_server, &stream, &sizes);
        prop_assert_eq!(seen.error, None);
        for (id, bytes) in seen.payload {
            let source = &sources[id.0 as usize / 2 - 1];
            if source.fails_at.is_none() {
                prop_assert_eq!(&bytes, &source.bytes);
            }
        }
    }

    #[test]
    fn a_client_has_the_same_events_in_all_cuts(
        sources in vec(source(), 0..5),
        sizes in vec(1usize..90, 1..20),
    ) {
        let stream = server_stream(sources.clone());
        let seen = all_the_same(|| connected_client(sources.len()), &stream, &sizes);
        prop_assert_eq!(seen.error, None);
    }

    #[test]
    fn a_damaged_stream_has_the_same_events_in_all_cuts(
        sources in vec(source(), 1..4),
        sizes in vec(1usize..90, 1..20),
        damages in vec(any::<(usize, u8, u8)>(), 1..4),
    ) {
        let mut stream = client_stream(sources.clone());
        damage(&mut stream, damages.clone());
        all_the_same(connected_server, &stream, &sizes);
        let mut stream = server_stream(sources.clone());
        damage(&mut stream, damages);
        all_the_same(|| connected_client(sources.len()), &stream, &sizes);
    }

    #[test]
    fn arbitrary_bytes_are_heard_the_same(
        stream in vec(any::<u8>(), 0..200),
        sizes in vec(1usize..90, 1..20),
    ) {
        all_the_same(connected_server, &stream, &sizes);
        all_the_same(|| connected_client(2), &stream, &sizes);
        all_the_same(|| server::Connection::new(Time::ZERO, wide()), &stream, &sizes);
        all_the_same(|| client::Connection::new(Time::ZERO, wide(), &[]), &stream, &sizes);
    }

    #[test]
    fn arbitrary_messages_are_heard_the_same(
        messages in vec(any::<Message>(), 0..20),
        sizes in vec(1usize..90, 1..20),
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(support::frame).collect();
        all_the_same(connected_server, &stream, &sizes);
        all_the_same(|| connected_client(2), &stream, &sizes);
    }
}

#[test]
fn credit_for_dropped_bytes_does_not_depend_on_cuts() {
    let limits = Limits { chunk: 34, transfer_window: 32, connection_window: 100, ..Limits::default() };
    let server = || support::server_for(support::with(limits), limits);
    let transfer = TransferId(1);
    // The upload is refused at once, so that its bytes are dropped. They are more than the first
    // window.
    let mut stream = support::frame(&support::request(1, support::store_blob(1)));
    stream.extend(support::frame(&Message::BlobStart { transfer, from: 0, end: 64, size: 64, digest: None }));
    for (offset, len) in [(0, 20), (20, 30)] {
        stream.extend(support::frame(&Message::BlobChunk { transfer, offset, len }));
        stream.extend(vec![7; len as usize]);
    }
    all_the_same(server, &stream, &[3, 1, 20]);
}
