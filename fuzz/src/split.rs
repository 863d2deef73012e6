//! Fuzz target: one stream, cut into reads in different ways, and moved through buffers or past
//! them. Every cut leads to the same events, answers and errors.
//!
//! The first byte chooses the receiver, and whether the stream is arbitrary bytes or messages with
//! arbitrary payload. Then come the sizes of the reads. Only credit may be given in other steps.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::iter;

use blobferry_protocol::connection::{Connection, Side};
use blobferry_protocol::testing::Style;
use blobferry_protocol::wire;
use blobferry_protocol::wire::LENGTH_BYTES;
use blobferry_protocol::{
    BlobId, Expect, Limits, Message, Oid, PeerError, Reply, Request, RequestError, RequestId, Slice, Tid,
    Time, TransferEvent, TransferId, client, server,
};

use crate::input::Input;
use crate::message_gen::{self, Conversation, Generated, Sender};
use arbitrary::Unstructured;

/// Cuts a stream in several ways.
pub fn split(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let choice = input.byte();
    // A chunk may fill more than half of a transfer's window, and less than half of the
    // connection's.
    let tight_limits = Limits { chunk: 34, connection_window: 100, ..message_gen::tight_limits() };
    let limits = if choice & 1 == 0 { tight_limits } else { Limits::default() };
    let sizes: Vec<usize> = input.up_to(4).iter().map(|size| usize::from(*size).max(1)).collect();
    let sender = if choice & 2 == 0 { Sender::Client } else { Sender::Server };
    let stream = match choice & 4 {
        0 => messages(sender, input),
        _ => input.take_rest().to_vec(),
    };
    match sender {
        Sender::Client => check_all_cuts(|| message_gen::server(limits), &stream, &sizes),
        Sender::Server => check_all_cuts(|| client_with_requests(limits), &stream, &sizes),
    }
}

/// Generates messages, and payload after each chunk header.
fn messages(sender: Sender, mut input: Unstructured<'_>) -> Vec<u8> {
    let (mut stream, mut conversation) = (Vec::new(), Conversation::default());
    while let Some(payload) = input.next_byte() {
        let generated = message_gen::next_message(sender, &mut input, &mut conversation);
        stream.extend(generated.bytes());
        if let Generated::Message(Message::BlobChunk { len, .. }) = generated {
            stream.extend(vec![payload; len.min(300) as usize]);
        }
    }
    stream
}

/// Returns a client with a few requests in flight.
fn client_with_requests(limits: Limits) -> client::Connection {
    let mut client = message_gen::client(limits);
    let blob = BlobId { oid: Oid(1), tid: Tid(1) };
    for (from, upto) in [(0, u64::MAX), (0, u64::MAX), (16, 64)] {
        client.request(Request::SendBlob { blob, from, upto }).unwrap();
    }
    client.request(Request::Load { oid: Oid(1) }).unwrap();
    client.request(Request::Status).unwrap();
    client.cancel(RequestId(2)).unwrap();
    client
}

/// A side that answers every request at once.
trait Responder: Side {
    fn respond(connection: &mut Connection<Self>, event: &Self::Event);
}

impl Responder for client::Client {
    fn respond(_: &mut client::Connection, _: &client::Event) {}
}

impl Responder for server::Server {
    fn respond(connection: &mut server::Connection, event: &server::Event) {
        // The call fails if the machine has answered by itself.
        let _ = match event {
            server::Event::Request { request: Request::StoreBlob { .. }, .. } => Ok(()),
            server::Event::Request { id, request } => match message_gen::matching_reply(request) {
                Some(reply) => connection.reply(*id, Ok(reply)),
                None => connection.reply(*id, Err(RequestError::Cancelled)),
            },
            server::Event::Transfer(TransferEvent::Stopped { transfer, .. }) => {
                connection.reply((*transfer).into(), Ok(Reply::Done))
            }
            _ => Ok(()),
        };
    }
}

/// All that a side has received from a stream and sent in answer.
#[derive(Debug, PartialEq)]
struct Seen<E> {
    events: Vec<E>,
    payload: BTreeMap<TransferId, Vec<u8>>,
    error: Option<PeerError>,
    sent: Vec<Message>,
}

fn check_all_cuts<H>(connection: impl Fn() -> Connection<H>, stream: &[u8], sizes: &[usize])
where
    H: Responder<Event: PartialEq + Debug>,
{
    let whole = feed(connection(), stream, Style::Buffered, &[usize::MAX]);
    for (style, sizes) in [(Style::Buffered, sizes), (Style::Splicing, sizes), (Style::Buffered, &[1])] {
        if !sizes.is_empty() {
            assert_eq!(whole, feed(connection(), stream, style, sizes), "{style:?} in {sizes:?}");
        }
    }
}

/// Feeds a stream to a machine in reads of these sizes, repeated in a cycle.
fn feed<H: Responder>(
    mut connection: Connection<H>,
    stream: &[u8],
    style: Style,
    sizes: &[usize],
) -> Seen<H::Event> {
    let mut seen = Seen { events: Vec::new(), payload: BTreeMap::new(), error: None, sent: Vec::new() };
    let mut sinks = BTreeMap::new();
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
        let (read, left) = rest.split_at((*size).min(max).min(rest.len()).max(1));
        rest = left;
        seen.error = feed_read(&mut connection, read, style, &mut seen, &mut sinks).err();
    }
    // The answers come last: an earlier answer could change what a later request leads to.
    for event in &seen.events {
        H::respond(&mut connection, event);
    }
    seen.events.extend(iter::from_fn(|| connection.poll_event()));
    seen.sent = sent_messages(&mut connection);
    seen
}

/// The stored bytes of each sink.
type Sinks = BTreeMap<TransferId, u64>;

fn feed_read<H: Responder>(
    connection: &mut Connection<H>,
    read: &[u8],
    style: Style,
    seen: &mut Seen<H::Event>,
    sinks: &mut Sinks,
) -> Result<(), PeerError> {
    let mut rest = read;
    while !rest.is_empty() {
        match connection.expect() {
            Expect::Control { .. } => {
                let used = connection.handle_control(Time::ZERO, rest);
                while let Some(event) = connection.poll_event() {
                    if let Some(&TransferEvent::Started { transfer, from, .. }) = H::transfer_event(&event) {
                        sinks.insert(transfer, from);
                    }
                    seen.events.push(event);
                }
                let used = used?;
                assert!(used == rest.len() || style == Style::Buffered, "as much as was promised is control");
                rest = &rest[used..];
            }
            Expect::Payload(Slice { transfer, len, .. }) => {
                let (payload, left) = rest.split_at(rest.len().min(usize::try_from(len).unwrap()));
                seen.payload.entry(transfer).or_default().extend_from_slice(payload);
                connection.payload_moved(Time::ZERO, payload.len() as u64).unwrap();
                if let Some(upto) = sinks.get_mut(&transfer) {
                    *upto += payload.len() as u64;
                    // Stores only whole chunks, so that the stream alone decides when credit is
                    // given.
                    if matches!(connection.expect(), Expect::Control { .. }) {
                        let _ = connection.stored(transfer, *upto);
                    }
                }
                rest = left;
            }
        }
    }
    Ok(())
}

/// Returns all messages that a machine sends, except credit.
fn sent_messages<H: Side>(connection: &mut Connection<H>) -> Vec<Message> {
    let mut heads = Vec::new();
    while connection.poll_transmit(Time::ZERO, &mut heads).is_some() {}
    let (mut sent, mut rest) = (Vec::new(), &heads[..]);
    while let Some((length, frames)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let (frame, more) = frames.split_at(u32::from_le_bytes(*length) as usize);
        sent.push(wire::decode(frame).unwrap());
        rest = more;
    }
    sent.retain(|message| !matches!(message, Message::Credit { .. } | Message::ConnectionCredit { .. }));
    sent
}
