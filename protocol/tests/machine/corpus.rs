//! Hostile bytes, with one fault at a time. None of them panics, and none makes a connection
//! allocate memory for bytes that have not arrived.
//!
//! The faults: every message cut off at every byte, with bytes behind it, with one byte changed,
//! and with a wrong count; and every length that a frame can claim.

use std::fmt::Debug;

use allocation_counter::measure;
use blobferry_protocol::connection::{Connection, Side};
use blobferry_protocol::wire;
use blobferry_protocol::wire::{DecodeError, LENGTH_BYTES};
use blobferry_protocol::{
    BlobId, Conflict, Expect, HistoryEntry, Limits, Message, Oid, PeerError, Reply, Request, RequestId, Tid,
    Time, TransferId, Unfinished, client, server,
};

use crate::golden_table::table;
use crate::support::{self, begin, events, frame, receive, said, store_blob};

/// The memory in bytes that a step may use besides the bytes that arrive.
const OWN: u64 = 64 << 10;

/// The request that the golden messages belong to.
const FIVE: u64 = 5;

/// The effect of bytes that arrive: how many are taken, the events, and the messages in reply.
type Effect = (Result<usize, PeerError>, Vec<String>, Vec<Message>);

/// A connection of either side.
trait Receiver {
    fn receive(&mut self, bytes: &[u8]) -> Effect;
    fn take(&mut self, bytes: &[u8]) -> Result<usize, PeerError>;
    fn expect(&self) -> Expect;
}

impl<S: Side> Receiver for Connection<S>
where
    S::Event: Debug,
{
    fn receive(&mut self, bytes: &[u8]) -> Effect {
        let used = self.take(bytes);
        (used, events(self).iter().map(|event| format!("{event:?}")).collect(), said(self))
    }

    fn take(&mut self, bytes: &[u8]) -> Result<usize, PeerError> {
        self.handle_control(Time::ZERO, bytes)
    }

    fn expect(&self) -> Expect {
        Connection::expect(self)
    }
}

/// A kind of connection that receives bytes, and whether its handshake is done.
struct Listener {
    name: &'static str,
    connected: bool,
    begin: fn() -> Box<dyn Receiver>,
}

/// Connections that accept as many of the golden messages as possible.
const LISTENERS: [Listener; 4] = [
    Listener {
        name: "a server that waits for a hello",
        connected: false,
        begin: || Box::new(server::Connection::new(Time::ZERO, support::wide())),
    },
    Listener {
        name: "a server that receives a blob",
        connected: true,
        begin: || Box::new(receiving_server()),
    },
    Listener {
        name: "a client that waits for its welcome",
        connected: false,
        begin: || {
            let mut client = client::Connection::new(Time::ZERO, support::wide(), b"key");
            said(&mut client);
            Box::new(client)
        },
    },
    Listener {
        name: "a client that receives a blob",
        connected: true,
        begin: || Box::new(receiving_client()),
    },
];

fn receiving_server() -> server::Connection {
    let mut server = support::server_for(support::wide(), Limits::default());
    receive(&mut server, &support::request(1, begin(1)));
    receive(&mut server, &support::request(FIVE, store_blob(1)));
    receive(&mut server, &crate::receiving::start(TransferId(FIVE), 1000));
    events(&mut server);
    server
}

fn receiving_client() -> client::Connection {
    let mut client = support::client_of(support::wide(), Limits::default());
    let blob = BlobId { oid: Oid(7), tid: Tid(300) };
    for _ in 0..FIVE {
        client.request(Request::SendBlob { blob, from: 0, upto: u64::MAX }).unwrap();
    }
    receive(&mut client, &crate::receiving::start(TransferId(FIVE), 1000));
    events(&mut client);
    said(&mut client);
    client
}

fn frames() -> Vec<Vec<u8>> {
    table().iter().map(|(_, message, _)| frame(message)).collect()
}

/// Returns a frame with this body and its length.
fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes(), body].concat()
}

/// Passes bytes to a new connection, checks that the memory used is bounded by their number, and
/// returns the effect.
#[track_caller]
fn cheaply(listener: &Listener, bytes: &[u8]) -> Effect {
    let (mut receiver, mut result) = ((listener.begin)(), None);
    let cost = measure(|| result = Some(receiver.take(bytes))).bytes_max;
    assert!(cost <= OWN + bytes.len() as u64, "{}: {cost} bytes for {:x?}", listener.name, head(bytes));
    let (_, events, said) = receiver.receive(&[]);
    (result.unwrap(), events, said)
}

/// Returns the first 100 bytes, for messages of assertions.
fn head(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(100)]
}

#[test]
fn a_message_that_is_cut_off_anywhere_is_waited_for() {
    for listener in &LISTENERS {
        for frame in frames() {
            let (whole, events, said) = (listener.begin)().receive(&frame);
            for at in 0..frame.len() {
                let mut receiver = (listener.begin)();
                let (begun, rest) = frame.split_at(at);
                assert_eq!(
                    receiver.receive(begun),
                    (Ok(at), vec![], vec![]),
                    "{}: {begun:x?}",
                    listener.name
                );
                let Expect::Control { max } = receiver.expect() else { panic!("payload behind {begun:x?}") };
                assert!(max <= LENGTH_BYTES.max(rest.len()), "{max} bytes more of {begun:x?}");
                let (result, late_events, late_said) = receiver.receive(rest);
                let used = result.map(|used| at + used);
                assert_eq!((used, &late_events, &late_said), (whole.clone(), &events, &said), "{begun:x?}");
            }
        }
    }
}

#[test]
fn a_body_that_is_not_one_message_ends_the_connection() {
    for listener in &LISTENERS {
        for frame in frames() {
            let body = &frame[LENGTH_BYTES..];
            for end in 0..body.len() {
                let (result, events, said) = cheaply(listener, &framed(&body[..end]));
                assert_eq!(
                    result,
                    Err(DecodeError::Malformed.into()),
                    "{}: {:x?}",
                    listener.name,
                    &body[..end]
                );
                assert_eq!((events, said), (vec![], vec![]));
            }
            for more in [1, 2, 100, 3000] {
                let (result, events, said) = cheaply(listener, &framed(&[body, &vec![0; more]].concat()));
                assert_eq!(result, Err(DecodeError::Trailing(more).into()), "{}: {body:x?}", listener.name);
                assert_eq!((events, said), (vec![], vec![]));
            }
        }
    }
}

#[test]
fn a_changed_byte_makes_another_message_or_an_error() {
    for frame in frames() {
        let mut body = frame[LENGTH_BYTES..].to_vec();
        for at in 0..body.len() {
            let right = body[at];
            for wrong in (0..=u8::MAX).filter(|wrong| *wrong != right) {
                body[at] = wrong;
                let mut decoded = Err(DecodeError::Malformed);
                let cost = measure(|| decoded = wire::decode(&body)).bytes_max;
                assert!(cost <= OWN, "{cost} bytes for {body:x?}");
                if let Ok(message) = decoded {
                    assert!(support::frame(&message).len() <= frame.len(), "{body:x?} is not {message:?}");
                }
            }
            body[at] = right;
        }
    }
}

#[test]
fn a_changed_byte_in_a_frame_does_no_harm() {
    for listener in &LISTENERS {
        for mut frame in frames() {
            for at in 0..frame.len() {
                let right = frame[at];
                let bits = (0..8).map(|bit| right ^ (1 << bit));
                for wrong in bits.chain([0, u8::MAX]) {
                    frame[at] = wrong;
                    // The bytes that follow may count as the rest of the frame.
                    let (result, _, said) = cheaply(listener, &[&frame[..], &[0; 8]].concat());
                    assert!(result.is_err() || result.is_ok_and(|used| used > 0), "{frame:x?}");
                    assert!(said.len() <= 2, "{frame:x?}: {said:?}");
                }
                frame[at] = right;
            }
        }
    }
}

#[test]
fn a_length_beyond_the_limits_is_refused_at_once() {
    let frame_limit = support::wide().limits.frame;
    let edges = [0, 4095, 4096, frame_limit - 1, frame_limit, 1 << 31, u32::MAX - 1, u32::MAX];
    for listener in &LISTENERS {
        let server = listener.name.contains("server");
        for len in edges.into_iter().chain(edges.map(|edge| edge.saturating_add(1))) {
            for kind in 0..=u8::MAX {
                let first = if listener.connected { frame_limit } else { 4096 };
                let may_be_long = if server { matches!(kind, 3 | 9) } else { matches!(kind, 4 | 5 | 9) };
                let max = if may_be_long { first } else { 4096 };
                let start = [&len.to_le_bytes()[..], &[kind]].concat();
                let (result, ..) = cheaply(listener, &start);
                let mut slow = (listener.begin)();
                let known = slow.take(&start[..LENGTH_BYTES]);
                match len {
                    0 => assert_eq!(known, Err(DecodeError::Malformed.into())),
                    1 => assert_eq!(known, Ok(4)), // a whole message, perhaps
                    _ if len > max => {
                        let (max, known) =
                            if len > first { (first, known) } else { (max, slow.take(&[kind])) };
                        let error = if listener.connected {
                            PeerError::FrameTooLong { len, max }
                        } else {
                            PeerError::NotBlobferry { said: len.to_le_bytes() }
                        };
                        assert_eq!(result, Err(error.clone()), "{}: {start:x?}", listener.name);
                        assert_eq!(known, Err(error), "{}: {start:x?}", listener.name);
                    }
                    _ => {
                        assert_eq!((result, known), (Ok(5), Ok(4)), "{}: {start:x?}", listener.name);
                        assert_eq!(slow.take(&[kind]), Ok(1));
                        assert_eq!(slow.expect(), Expect::Control { max: len as usize - 1 });
                    }
                }
            }
        }
    }
}

/// Counts that are larger than the list, text or record behind them, and integers that fit no type.
fn lies() -> Vec<Vec<u8>> {
    let numbers = [127, 128, 4096, (1 << 20) + 1, u64::from(u32::MAX), 1 << 32, 1 << 62, u64::MAX];
    let varint = |mut number: u64| {
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    };
    let mut lies: Vec<Vec<u8>> = numbers.into_iter().map(varint).collect();
    // A little above `u64`, far above it, one without an end, and a zero with needless bytes.
    lies.extend([[&[0xff; 9][..], &[2]].concat(), [&[0xff; 9][..], &[0x7f]].concat(), vec![0xff; 30]]);
    lies.push([&[0x80; 9][..], &[0]].concat());
    lies
}

#[test]
fn a_wrong_count_anywhere_costs_nothing() {
    for listener in &LISTENERS {
        for frame in frames() {
            let body = &frame[LENGTH_BYTES..];
            for at in 0..body.len() {
                for lie in lies() {
                    for rest in [&body[at + 1..], &[], &[0; 40], &[0xff; 40]] {
                        let bytes = framed(&[&body[..at], &lie, rest].concat());
                        // Most of these are not messages. One that is may be accepted or refused.
                        let (result, ..) = cheaply(listener, &bytes);
                        assert!(result.is_err() || result == Ok(bytes.len()), "{bytes:x?}");
                    }
                }
            }
        }
    }
}

/// Returns messages with lists of this length, of the smallest elements.
fn long_lists(len: usize) -> Vec<Message> {
    let reply = |reply| Message::Reply { id: RequestId(1), result: Ok(reply) };
    let conflict = Conflict { oid: Oid(0), committed: Tid::ZERO, base: Tid::ZERO };
    let entry = HistoryEntry { tid: Tid::ZERO, meta: Default::default(), size: None, blob: None };
    let unfinished = Unfinished { request: RequestId(0), upto: 0 };
    vec![
        Message::Invalidate { tid: Tid::ZERO, oids: vec![Oid(0); len] },
        reply(Reply::Conflicts(vec![conflict; len])),
        reply(Reply::History(vec![entry; len])),
        reply(Reply::Status(vec![(String::new(), 0); len])),
        reply(Reply::Attached { last: RequestId(0), unfinished: vec![unfinished; len] }),
    ]
}

#[test]
fn the_longest_lists_cost_a_server_nothing() {
    let lists =
        |len: usize| long_lists(len).into_iter().map(|message| frame(&message)[LENGTH_BYTES..].to_vec());
    let elements = lists(1).zip(lists(2)).map(|(one, two)| two.len() - one.len());
    for (mut body, element) in lists(Limits::LIST).zip(elements) {
        let result = cheaply(&LISTENERS[1], &framed(&body)).0;
        assert!(matches!(result, Err(PeerError::FrameTooLong { max: 4096, .. })), "{:x?}", head(&body));
        let mut decoded = Ok(Message::Goodbye);
        let cost = measure(|| decoded = wire::decode(&body)).bytes_max;
        assert!(decoded.is_ok());
        // Memory grows with the elements that have arrived. None is 64 times as large as on the
        // wire, and a list exists twice while it grows.
        assert!(cost <= OWN + 3 * 64 * body.len() as u64, "{cost} bytes for {}", body.len());
        // One element more than allowed, which `encode` refuses.
        let count = body.windows(3).position(|bytes| bytes == [0x80, 0x80, 0x40]).unwrap();
        body[count] |= 1;
        body.resize(body.len() + element, 0);
        assert_eq!(wire::decode(&body), Err(DecodeError::Malformed));
    }
}

#[test]
fn the_longest_frame_costs_no_more_than_its_length() {
    let limits = Limits { frame: 1_000_000, ..support::wide().limits };
    let record = |data: usize| {
        let request = Request::Store { txn: support::txn(1), oid: Oid(1), base: Tid(1), data: vec![7; data] };
        frame(&support::request(1, request))
    };
    let head = record(999_000).len() - 999_000;
    for (data, fits) in [(1_000_000 + 4 - head, true), (1_000_000 + 5 - head, false)] {
        let bytes = record(data);
        for piece in [1 << 20, 65_536, 1000] {
            let mut server = support::server_for(support::with(limits), Limits::default());
            let mut result = Ok(0);
            let cost = measure(|| {
                result = bytes.chunks(piece).try_fold(0, |sum, piece| {
                    server.handle_control(Time::ZERO, piece).map(|used| sum + used)
                });
            });
            match result {
                Ok(used) => assert!(fits && used == bytes.len()),
                Err(error) => {
                    assert!(!fits);
                    assert_eq!(error, PeerError::FrameTooLong { len: 1_000_001, max: 1_000_000 });
                    assert!(cost.bytes_max <= OWN);
                }
            }
            // The pieces of the frame, in a buffer that grows, and the record in it.
            assert!(cost.bytes_max <= OWN + 4 * bytes.len() as u64, "{} bytes", cost.bytes_max);
        }
    }
}

#[test]
fn small_messages_without_end_leave_nothing_behind() {
    let small = [
        Message::Cancel { id: RequestId(FIVE) },
        Message::Cancel { id: RequestId(1 << 40) },
        Message::ConnectionCredit { upto: u64::MAX },
        Message::Credit { transfer: TransferId(1), upto: u64::MAX },
        Message::Pong { nonce: 1 },
        Message::Ping { nonce: 1 },
        Message::Goodbye,
    ];
    for listener in LISTENERS.iter().filter(|listener| listener.connected) {
        for message in &small {
            let flood = frame(message).repeat(100_000);
            let (mut receiver, mut result) = ((listener.begin)(), Ok(0));
            let cost = measure(|| result = receiver.take(&flood));
            assert!(cost.bytes_max <= OWN, "{}: {} for {message:?}", listener.name, cost.bytes_max);
            let (_, events, said) = receiver.receive(&[]);
            assert!(events.len() <= 2 && said.len() <= 64, "{message:?}: {events:?}, {said:?}");
        }
    }
}
