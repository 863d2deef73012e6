//! Clients that violate the protocol: the server disconnects them and serves others.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::client::Client;
use super::decode::{Answer, Received};
use super::encode::{Body, Limits, error, message, request};
use super::with_timeouts;
use crate::conformance::world::{Pair, World};
use crate::support::bytes;

for_every_server!(
    invalid_peers_are_disconnected_and_others_served,
    every_violation_ends_connection_and_transactions,
    payload_beyond_the_credit_ends_the_connection,
    work_beyond_the_limits_ends_the_connection,
    incomplete_handshake_times_out,
    slow_reader_gets_all_answers_and_stalls_no_peer,
    non_reading_peer_is_dropped_at_queue_limit,
    peer_that_vanishes_mid_work_leaves_nothing,
);

const TXN: [u8; 16] = [1; 16];

/// Waits until the server closes the connection; it may send at most 100 bytes before.
fn wait_for_close(mut stream: TcpStream) {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => assert!(answer.len() < 100, "{answer:?}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

fn invalid_peers_are_disconnected_and_others_served(pair: &Pair) {
    let world = World::new(pair);
    let mut other = Client::new(world.address());
    let oid = other.new_oid();
    let silent = TcpStream::connect(world.address()).unwrap();
    let mut half = TcpStream::connect(world.address()).unwrap();
    half.write_all(&Body::default_hello().frame()[..10]).unwrap();
    let wrong_magic =
        [&Body::default_hello().frame()[..5], b"HTTP/1.1", &Body::default_hello().frame()[13..]].concat();
    let small_frame = Limits { frame: 4095, ..Limits::DEFAULT };
    let no_transfers = Limits { transfers: 0, ..Limits::DEFAULT };
    let garbage: [&[u8]; 14] = [
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        &[0xff; 100_000],
        &[0; 100_000],
        &u32::MAX.to_le_bytes(),
        &4097_u32.to_le_bytes(),
        &wrong_magic,
        &Body::hello(1, 1, small_frame, b"").frame(),
        &Body::hello(1, 1, no_transfers, b"").frame(),
        &Body::hello(1, 1, Limits::DEFAULT, &[0; 5000]).frame(),
        &Body::default_hello().raw(b"left over").frame(),
        &Body::new(message::PING).int(1).frame(),
        &[&Body::default_hello().frame()[..], &[5, 0, 0, 0, 0xff, 1, 2, 3, 4]].concat(),
        &[Body::default_hello().frame(), Body::default_hello().frame()].concat(),
        &[&Body::default_hello().frame()[..], &u32::MAX.to_le_bytes(), &[3; 1000]].concat(),
    ];
    for (n, bytes) in garbage.into_iter().enumerate() {
        let mut stream = with_timeouts(TcpStream::connect(world.address()).unwrap());
        // The server may close the connection before everything is written.
        let _ = stream.write_all(bytes);
        wait_for_close(stream);
        other.put([n as u8 + 1; 16], oid + n as u64 * 1000, 0, b"served");
    }
    drop((silent, half));
    assert_eq!(other.counter("commits"), 14);
}

/// Violations with a description each, for a connection on which transfer 2 uploads 1000 bytes.
fn violations() -> Vec<(&'static str, Vec<u8>)> {
    use super::encode::message::{
        BLOB_ABORT, CANCEL, CONNECTION_CREDIT, CREDIT, INVALIDATE, PONG, REPLY, WELCOME,
    };
    let chunk = |transfer, offset, len| {
        [Body::blob_chunk(transfer, offset, len).frame(), vec![0; len.min(2000) as usize]].concat()
    };
    let of = |message, fields: &[u64]| fields.iter().fold(Body::new(message), |body, n| body.int(*n)).frame();
    let numbered = |id, request: Body| Body::numbered(id, &request).frame();
    let upload = |id| numbered(id, request::store_blob(TXN, 1, 0, b""));
    vec![
        ("a server's message", of(REPLY, &[1, 0, 0])),
        ("a server's message", of(INVALIDATE, &[1, 0])),
        ("a server's message", Body::welcome(Limits::DEFAULT, 0).frame()),
        ("a server's message", of(WELCOME, &[1])),
        ("an unknown message", of(16, &[1])),
        ("an unknown request", numbered(3, Body::request(19))),
        ("a truncated request", of(message::REQUEST, &[3, 10])),
        ("an empty body", vec![0; 4]),
        ("bytes left over", Body::new(message::PING).int(1).int(1).frame()),
        ("an integer that is too large", Body::new(CANCEL).raw(&[0xff; 10]).frame()),
        ("a small message that is long", [&5000_u32.to_le_bytes()[..], &[PONG]].concat()),
        ("a request id again", numbered(2, request::status())),
        ("a request id of 0", numbered(0, request::status())),
        ("a transfer without a request", Body::blob_start(3, 0, 1, 1).frame()),
        ("a transfer that begins twice", Body::blob_start(2, 0, 1000, 1000).frame()),
        ("a range behind the end of its blob", [upload(3), Body::blob_start(3, 11, 11, 10).frame()].concat()),
        ("a blob that ends early", [upload(3), Body::blob_start(3, 0, 9, 10).frame()].concat()),
        ("a chunk of an unknown transfer", chunk(9, 0, 1)),
        ("a chunk before its start", [upload(3), chunk(3, 0, 1)].concat()),
        ("an empty chunk", chunk(2, 0, 0)),
        ("a chunk at another offset", chunk(2, 1, 10)),
        ("a chunk beyond the end", chunk(2, 0, 1001)),
        ("a chunk that is too long", chunk(2, 0, (256 << 10) + 1)),
        ("a stop before the end", Body::blob_stop(2, [0; 32]).frame()),
        ("a stop of an unknown transfer", Body::blob_stop(9, [0; 32]).frame()),
        ("an abort of an unknown transfer", of(BLOB_ABORT, &[9, error::CANCELLED])),
        ("credit for an unknown transfer", of(CREDIT, &[9, 1])),
        (
            "credit that is lowered",
            [of(CONNECTION_CREDIT, &[9 << 20]), of(CONNECTION_CREDIT, &[8 << 20])].concat(),
        ),
    ]
}

fn every_violation_ends_connection_and_transactions(pair: &Pair) {
    let mut world = World::new(pair);
    let mut other = Client::new(world.address());
    let oid = other.new_oid();
    for (n, (violation, bytes)) in violations().into_iter().enumerate() {
        let (mut client, txn) = (Client::new(world.address()), [n as u8 + 2; 16]);
        client.done(request::begin(txn, b"", b""));
        assert_eq!(client.start_upload(txn, oid, 0, 1000), 2);
        client.write(&bytes);
        let messages = client.receive_to_the_end();
        assert!(messages.len() <= 1, "{violation}: {messages:?}");
        while other.counter("connections") > 1 {}
        assert_eq!(other.call(request::outcome(txn)), Ok(Answer::Outcome(None)), "{violation}");
    }
    drop(other);
    world.take_server().stop();
    world.wait_for_no_leftovers();
}

fn payload_beyond_the_credit_ends_the_connection(pair: &Pair) {
    for (transfer_window, connection_window) in [(10, 1000), (1000, 10)] {
        let world = World::serving(pair, |config| {
            let limits = &mut config.connection.limits;
            (limits.transfer_window, limits.connection_window) = (transfer_window, connection_window);
        });
        let mut client = Client::new(world.address());
        client.done(request::begin(TXN, b"", b""));
        let transfer = client.start_upload(TXN, 1, 0, 100);
        client.send(Body::blob_chunk(transfer, 0, 11));
        client.receive_to_the_end();
        let mut other = Client::new(world.address());
        other.put_blob([2; 16], &bytes("blob", 5000));
    }
}

fn work_beyond_the_limits_ends_the_connection(pair: &Pair) {
    for (requests, transfers) in [(4, 100), (100, 4)] {
        let world = World::serving(pair, |config| {
            let limits = &mut config.connection.limits;
            (limits.requests, limits.transfers) = (requests, transfers);
        });
        let mut client = Client::new(world.address());
        client.done(request::begin(TXN, b"", b""));
        for n in 0..4 {
            client.start_upload(TXN, n, 0, 10);
        }
        // This number is allowed; the requests may wait.
        client.send(Body::new(message::PING).int(1));
        client.receive();
        client.submit(request::store_blob(TXN, 5, 0, b""));
        client.receive_to_the_end();
        let mut other = Client::new(world.address());
        other.put_blob([2; 16], b"served");
    }
}

fn incomplete_handshake_times_out(pair: &Pair) {
    let world = World::serving(pair, |config| {
        config.connection.handshake_timeout = Duration::from_millis(10);
    });
    for sent in [0, 1, 4, 10, Body::default_hello().frame().len() - 1] {
        let mut stream = with_timeouts(TcpStream::connect(world.address()).unwrap());
        stream.write_all(&Body::default_hello().frame()[..sent]).unwrap();
        wait_for_close(stream);
    }
}

fn slow_reader_gets_all_answers_and_stalls_no_peer(pair: &Pair) {
    const LOADS: u64 = 1000;
    let world = World::serving(pair, |config| config.connection.limits.control_queue = 1_000_000);
    let (mut late, mut other) = (Client::new(world.address()), Client::new(world.address()));
    let (oid, record) = (other.new_oid(), bytes("record", 60_000));
    let tid = other.put(TXN, oid, 0, &record);
    let load = |id| Body::numbered(id, &request::load(oid)).frame();
    late.write(&(1..=LOADS).flat_map(load).collect::<Vec<u8>>());
    // The answers exceed the server's queue and the socket buffers.
    for _ in 0..100 {
        assert!(other.call(request::load_serial(oid, tid)).is_ok());
    }
    let newer = other.put([2; 16], oid, tid, &record);
    for id in 1..=LOADS {
        let Ok(Answer::Revision(revision)) = late.answer(id) else { panic!("no revision") };
        assert!(revision.data == record);
        assert!(
            revision.tid == tid || late.invalidations.contains(&(newer, vec![oid])),
            "the notification precedes visibility"
        );
    }
}

fn non_reading_peer_is_dropped_at_queue_limit(pair: &Pair) {
    let world = World::serving(pair, |config| config.connection.limits.control_queue = 20_000);
    let mut other = Client::new(world.address());
    let blob = other.put_blob(TXN, &bytes("blob", 20_000_000));
    // A client that grants unlimited credit and does not read.
    let generous = Limits { transfer_window: 1 << 40, connection_window: 1 << 40, ..Limits::DEFAULT };
    let mut non_reading = Client::with(world.address(), generous);
    non_reading.submit(request::send_blob(blob.0, blob.1, 0, u64::MAX));
    let mut n = 1;
    while other.counter("connections") > 1 {
        n += 1;
        let txn = [n; 16];
        other.submit(request::begin(txn, b"", b""));
        for oid in 0..1000 {
            other.submit(request::store(txn, (u64::from(n) << 32) + oid, 0, b""));
        }
        other.commit(txn);
    }
    let messages = non_reading.receive_to_the_end();
    assert!(
        !messages.iter().any(|message| matches!(message, Received::BlobStop { .. })),
        "the download is incomplete"
    );
}

fn peer_that_vanishes_mid_work_leaves_nothing(pair: &Pair) {
    let mut world = World::new(pair);
    let mut other = Client::new(world.address());
    let whole = bytes("blob", 5_000_000);
    let blob = other.put_blob(TXN, &whole);
    for n in 2..6 {
        let mut client = Client::new(world.address());
        let (voted, open) = ([n; 16], [n + 100; 16]);
        client.begin_and_store(voted, blob.0, blob.1, b"never");
        // The second vote waits for the first one's lock, until that client is disconnected.
        client.submit(request::vote(voted));
        client.done(request::begin(open, b"", b""));
        client.submit(request::send_blob(blob.0, blob.1, 0, u64::MAX));
        let transfer = client.start_upload(open, 1 << 40, 0, 1_000_000);
        client.write(&Body::blob_chunk(transfer, 0, 200_000).frame());
        client.write(&whole[..100_000]);
        match n % 2 {
            0 => drop(client),
            // Half-closed: the client sends nothing more but could still receive.
            _ => client.shut(Shutdown::Write),
        }
    }
    // The locks are free, and the transactions are not committed.
    other.put([9; 16], blob.0, blob.1, b"new");
    assert!(other.download(blob, 0, u64::MAX).unwrap().bytes == whole);
    drop(other);
    world.take_server().stop();
    world.wait_for_no_leftovers();
}
