//! Credit, cancellation and liveness: a server never sends beyond its credit, and a blocked
//! transfer blocks nothing else.

use std::time::Duration;

use super::client::{Client, digest};
use super::decode::{Answer, Error, Received};
use super::encode::{Body, Limits, error, message, request};
use crate::conformance::world::{Pair, World};
use crate::support::bytes;

for_every_server!(
    server_stays_within_credit_and_answers_meanwhile,
    server_grants_credit_as_it_stores,
    pings_are_answered_between_many_transfers,
    cancelled_download_ends_and_frees_its_credit,
    upload_aborted_by_its_client_is_answered_with_reason,
    abort_answers_uploads_of_its_transaction_first,
    stalled_transfer_is_aborted_with_deadline_error,
);

const TXN: [u8; 16] = [1; 16];
const NARROW: Limits =
    Limits { chunk: 300, transfer_window: 1000, connection_window: 1500, ..Limits::DEFAULT };

/// Sends a ping and receives payload of two transfers until the pong.
fn receive_until_pong(client: &mut Client, transfers: [u64; 2], parts: [&mut Vec<u8>; 2]) {
    client.send(Body::new(message::PING).int(7));
    loop {
        match client.receive() {
            Received::BlobStart { .. } => {}
            Received::BlobChunk { transfer, offset, payload } => {
                let at = transfers.iter().position(|id| *id == transfer).unwrap();
                assert_eq!(offset, parts[at].len() as u64);
                parts[at].extend(payload);
            }
            Received::Pong { nonce: 7 } => return,
            other => panic!("{other:?}"),
        }
    }
}

fn server_stays_within_credit_and_answers_meanwhile(pair: &Pair) {
    let world = World::new(pair);
    let mut client = Client::with(world.address(), NARROW);
    let whole = bytes("blob", 100_000);
    let (oid, tid) = client.put_blob(TXN, &whole);
    let transfers = [(); 2].map(|()| client.submit(request::send_blob(oid, tid, 0, u64::MAX)));
    let [mut one, mut other] = [Vec::new(), Vec::new()];
    // The server fills the connection's window. It answers pings whether the window is full or not.
    while one.len() + other.len() < 1500 {
        receive_until_pong(&mut client, transfers, [&mut one, &mut other]);
    }
    for _ in 0..3 {
        receive_until_pong(&mut client, transfers, [&mut one, &mut other]);
        assert_eq!(one.len() + other.len(), 1500);
    }
    // With more connection credit, each transfer fills its own window.
    client.grant_connection(50_000);
    while one.len() + other.len() < 2000 {
        receive_until_pong(&mut client, transfers, [&mut one, &mut other]);
    }
    receive_until_pong(&mut client, transfers, [&mut one, &mut other]);
    assert_eq!((one.len(), other.len()), (1000, 1000));
    // Credit belongs to one transfer; granting it twice changes nothing.
    for _ in 0..2 {
        client.grant(transfers[0], 500);
        while one.len() < 1500 {
            receive_until_pong(&mut client, transfers, [&mut one, &mut other]);
        }
        receive_until_pong(&mut client, transfers, [&mut one, &mut other]);
        assert_eq!((one.len(), other.len()), (1500, 1000));
    }
    assert!(one == whole[..1500] && other == whole[..1000]);
}

fn server_grants_credit_as_it_stores(pair: &Pair) {
    let world = World::serving(pair, |config| {
        let limits = &mut config.connection.limits;
        (limits.chunk, limits.transfer_window, limits.connection_window) = (300, 1000, 1500);
    });
    let mut client = Client::new(world.address());
    assert_eq!(client.limits, NARROW);
    let (oid, whole) = (client.new_oid(), bytes("blob", 50_000));
    client.done(request::begin(TXN, b"", b""));
    // Two uploads alternate, each within its own credit.
    let transfers = [oid, oid + 1000].map(|oid| client.start_upload(TXN, oid, 0, whole.len() as u64));
    for (n, part) in whole.chunks(300).enumerate() {
        for transfer in transfers {
            client.send_payload(transfer, n as u64 * 300, part);
        }
    }
    for transfer in transfers {
        client.send(Body::blob_stop(transfer, digest(&whole)));
        assert_eq!(client.answer(transfer), Ok(Answer::Done));
    }
    let tid = client.commit(TXN);
    assert!(client.download((oid + 1000, tid), 0, u64::MAX).unwrap().bytes == whole);
}

fn pings_are_answered_between_many_transfers(pair: &Pair) {
    const MANY: u64 = 30;
    let world = World::new(pair);
    let mut client = Client::new(world.address());
    let whole = bytes("blob", 300_000);
    let (oid, tid) = client.put_blob(TXN, &whole);
    let first = client.submit(request::send_blob(oid, tid, 0, u64::MAX));
    for _ in 1..MANY {
        client.submit(request::send_blob(oid, tid, 0, u64::MAX));
    }
    let (mut parts, mut stopped, mut pongs) = (vec![Vec::new(); MANY as usize], 0, 0);
    while stopped < MANY {
        match client.receive() {
            Received::BlobStart { size, .. } => assert_eq!(size, 300_000),
            Received::BlobChunk { transfer, offset, payload } => {
                let part = &mut parts[(transfer - first) as usize];
                assert_eq!(part.len() as u64, offset);
                part.extend(payload);
                let upto = part.len() as u64;
                client.grant(transfer, upto);
                // One ping for each 100,000 bytes received.
                if pongs == 0 || parts.iter().map(Vec::len).sum::<usize>() > pongs * 100_000 {
                    client.send(Body::new(message::PING).int(pongs as u64));
                    pongs += 1;
                }
            }
            Received::BlobStop { digest: of, .. } => {
                assert_eq!(of, digest(&whole));
                stopped += 1;
            }
            Received::Pong { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(parts.iter().all(|part| *part == whole));
    client.send(Body::new(message::PING).int(u64::MAX));
    while client.receive() != (Received::Pong { nonce: u64::MAX }) {}
}

fn cancelled_download_ends_and_frees_its_credit(pair: &Pair) {
    let world = World::new(pair);
    let mut client = Client::with(world.address(), NARROW);
    let whole = bytes("blob", 100_000);
    let (oid, tid) = client.put_blob(TXN, &whole);
    for _ in 0..10 {
        let id = client.submit(request::send_blob(oid, tid, 0, u64::MAX));
        let mut received = 0;
        while received < 1000 {
            match client.receive() {
                Received::BlobChunk { payload, .. } => received += payload.len(),
                Received::BlobStart { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        client.send(Body::new(message::CANCEL).int(id));
        let reason = Error { number: error::CANCELLED, ints: Vec::new(), text: None, txn: None };
        assert_eq!(client.receive(), Received::BlobAbort { transfer: id, reason });
        // Bytes of a cancelled download also count.
        client.grant_received();
    }
    // A download that is cancelled before it starts gets exactly one answer.
    let id = client.submit(request::send_blob(oid, tid, 0, u64::MAX));
    client.send(Body::new(message::CANCEL).int(id));
    client.send(Body::new(message::CANCEL).int(id));
    let cancelled = loop {
        match client.receive() {
            Received::BlobStart { .. } | Received::BlobChunk { .. } => {}
            Received::BlobAbort { transfer, reason } if transfer == id => break reason,
            Received::Reply { id: answered, result } if answered == id => break result.unwrap_err(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(cancelled.number, error::CANCELLED);
    // Cancelling unknown or answered requests has no effect.
    for id in [1, id, u64::MAX] {
        client.send(Body::new(message::CANCEL).int(id));
    }
    client.grant_received();
    assert!(client.download((oid, tid), 0, u64::MAX).unwrap().bytes == whole);
}

fn upload_aborted_by_its_client_is_answered_with_reason(pair: &Pair) {
    let world = World::new(pair);
    let mut client = Client::new(world.address());
    let oid = client.new_oid();
    client.done(request::begin(TXN, b"", b""));
    let transfer = client.start_upload(TXN, oid, 0, 1_000_000);
    client.send_payload(transfer, 0, &bytes("blob", 300_000));
    // The client sends zeros for unreadable bytes, then aborts; nothing is kept.
    client.send(Body::blob_chunk(transfer, 300_000, 10));
    client.write(&[0; 10]);
    client.send(Body::blob_abort(transfer, error::SOURCE).bytes(b"gone"));
    let refused = client.answer(transfer).unwrap_err();
    assert_eq!((refused.number, refused.text.as_deref()), (error::SOURCE, Some("gone")));
    assert_eq!(client.refused(request::commit(TXN)).number, error::DOOMED);
    assert_eq!(client.counter("blobs_received"), 0);
}

fn abort_answers_uploads_of_its_transaction_first(pair: &Pair) {
    let mut world = World::new(pair);
    let mut client = Client::new(world.address());
    let oid = client.new_oid();
    client.done(request::begin(TXN, b"", b""));
    let transfer = client.start_upload(TXN, oid, 0, 100_000);
    client.send_payload(transfer, 0, &bytes("blob", 50_000));
    let commit = client.submit(request::commit(TXN));
    // A waiting commit is finishing and cannot be aborted. A waiting vote can.
    assert_eq!(client.refused(request::abort(TXN)).number, error::WRONG_PHASE);
    client.send_payload(transfer, 50_000, &bytes("blob", 50_000));
    client.send(Body::blob_stop(transfer, digest(&[bytes("blob", 50_000), bytes("blob", 50_000)].concat())));
    assert!(client.answer(commit).is_ok());

    let other = [2; 16];
    client.done(request::begin(other, b"", b""));
    let transfer = client.start_upload(other, oid + 1000, 0, 100_000);
    client.send_payload(transfer, 0, &bytes("blob", 50_000));
    let vote = client.submit(request::vote(other));
    let abort = client.submit(request::abort(other));
    let answered: Vec<(u64, Result<Answer, u64>)> = std::iter::from_fn(|| {
        loop {
            match client.receive() {
                Received::Reply { id, result } => return Some((id, result.map_err(|error| error.number))),
                Received::Credit { .. } | Received::ConnectionCredit { .. } | Received::Invalidate { .. } => {
                }
                other => panic!("{other:?}"),
            }
        }
    })
    .skip_while(|(id, _)| *id < transfer)
    .take(3)
    .collect();
    let aborted = Err(error::ABORTED);
    assert_eq!(answered, [(transfer, aborted.clone()), (vote, aborted), (abort, Ok(Answer::Done))]);
    client.send(Body::blob_abort(transfer, error::CANCELLED));
    assert_eq!(client.call(request::outcome(other)), Ok(Answer::Outcome(None)));
    client.send(Body::new(message::GOODBYE));
    client.receive_to_the_end();
    world.take_server().stop();
    world.wait_for_no_leftovers();
}

fn stalled_transfer_is_aborted_with_deadline_error(pair: &Pair) {
    let world =
        World::serving(pair, |config| config.connection.transfer_timeout = Duration::from_millis(1000));
    let late = Error { number: error::DEADLINE, ints: vec![0, 1000], text: None, txn: None };
    let mut client = Client::with(world.address(), NARROW);
    let (oid, tid) = client.put_blob(TXN, &bytes("blob", 5000));
    // The client grants no credit.
    let transfer = client.submit(request::send_blob(oid, tid, 0, u64::MAX));
    let message = std::iter::repeat_with(|| client.receive())
        .find(|message| !matches!(message, Received::BlobStart { .. } | Received::BlobChunk { .. }));
    assert_eq!(message, Some(Received::BlobAbort { transfer, reason: late.clone() }));
    // One upload does not start, the other does not continue.
    client.done(request::begin([2; 16], b"", b""));
    let (silent, stuck) = (
        client.submit(request::store_blob([2; 16], oid, tid, b"")),
        client.start_upload([2; 16], 9, 0, 1000),
    );
    client.send_payload(stuck, 0, b"no more");
    assert_eq!(client.answer(silent), Err(late.clone()));
    assert_eq!(client.answer(stuck), Err(late));
    assert_eq!(client.refused(request::vote([2; 16])).number, error::DOOMED);
    // Late messages are dropped, and the connection stays open.
    client.send_payload(stuck, 7, b"late");
    client.send(Body::blob_abort(stuck, error::CANCELLED));
    client.send(Body::blob_start(silent, 0, 4, 4));
    client.send(Body::blob_abort(silent, error::CANCELLED));
    assert_eq!(client.counter("blobs_received"), 1);
}
