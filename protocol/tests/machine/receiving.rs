//! Transfers to a side: which chunks are allowed, what credit allows, and when it is granted.

use blobferry_protocol::connection::{Connection, Side};
use blobferry_protocol::{
    BlobId, Digest, Expect, Limits, Message, Oid, PeerError, Reply, Request, RequestError, RequestId, Slice,
    Tid, Time, TransferId, UsageError, server,
};

use crate::support::{self, begin, events, receive, refuses, request, said, store_blob, txn};

pub(crate) const T: TransferId = TransferId(2);

fn small() -> Limits {
    Limits { chunk: 50, transfer_window: 100, connection_window: 150, ..Limits::default() }
}

pub(crate) fn start(transfer: TransferId, size: u64) -> Message {
    Message::BlobStart { transfer, from: 0, end: size, size, digest: None }
}

pub(crate) fn chunk(transfer: TransferId, offset: u64, len: u32) -> Message {
    Message::BlobChunk { transfer, offset, len }
}

pub(crate) fn stop(transfer: TransferId) -> Message {
    Message::BlobStop { transfer, digest: Digest([0; 32]) }
}

pub(crate) fn abort(transfer: TransferId) -> Message {
    Message::BlobAbort { transfer, reason: RequestError::Cancelled }
}

/// Returns a server with these limits, and two uploads of 1000 bytes that have begun, with the
/// numbers 2 and 3.
fn receiving(limits: Limits) -> server::Connection {
    let mut server = support::server_for(support::with(limits), Limits::default());
    receive(&mut server, &request(1, begin(1)));
    server.reply(RequestId(1), Ok(Reply::Done)).unwrap();
    for id in [2, 3] {
        receive(&mut server, &request(id, store_blob(1)));
        receive(&mut server, &start(TransferId(id), 1000));
    }
    said(&mut server);
    events(&mut server);
    server
}

/// Passes a chunk with all its payload to the connection.
pub(crate) fn arrives<S: Side>(connection: &mut Connection<S>, transfer: TransferId, offset: u64, len: u32) {
    receive(connection, &chunk(transfer, offset, len));
    let slice = Slice { transfer, offset, len: u64::from(len) };
    assert_eq!(connection.expect(), Expect::Payload(slice));
    assert_eq!(connection.handle_control(Time::ZERO, b"payload"), Ok(0), "payload is not for the machine");
    connection.payload_moved(Time::ZERO, u64::from(len)).unwrap();
    assert!(matches!(connection.expect(), Expect::Control { .. }));
}

#[test]
fn chunks_follow_each_other_within_their_transfer() {
    let bad =
        [chunk(T, 1, 10), chunk(T, 0, 0), chunk(T, 0, 51), chunk(TransferId(4), 0, 1), chunk(T, u64::MAX, 9)];
    for message in bad {
        let error = refuses(&mut receiving(small()), &message);
        assert!(matches!(error, PeerError::BadTransfer { .. }), "{message:?}: {error}");
    }
    let mut server = receiving(small());
    arrives(&mut server, T, 0, 50);
    for again in [chunk(T, 0, 10), chunk(T, 49, 10), chunk(T, 51, 10)] {
        let mut server = receiving(small());
        arrives(&mut server, T, 0, 50);
        assert!(matches!(refuses(&mut server, &again), PeerError::BadTransfer { .. }));
    }
    let mut server =
        receiving(Limits { chunk: 2000, transfer_window: 4000, connection_window: 9000, ..small() });
    assert!(
        matches!(refuses(&mut server, &chunk(T, 0, 1001)), PeerError::BadTransfer { .. }),
        "beyond its end"
    );
}

#[test]
fn transfers_begin_once_in_their_range_and_end_once() {
    let begin =
        |from, end, size| Message::BlobStart { transfer: TransferId(4), from, end, size, digest: None };
    for message in [start(T, 1000), begin(0, 9, 9), stop(T), stop(TransferId(9)), abort(TransferId(1))] {
        assert!(
            matches!(refuses(&mut receiving(small()), &message), PeerError::BadTransfer { .. }),
            "{message:?}"
        );
    }
    for message in [begin(0, 8, 9), begin(0, 9, 8), begin(9, 8, 9), begin(9, 9, u64::MAX)] {
        let mut server = receiving(small());
        receive(&mut server, &request(4, store_blob(1)));
        assert!(matches!(refuses(&mut server, &message), PeerError::BadTransfer { .. }), "{message:?}");
    }
    for ended in [abort(T), stop(T)] {
        let mut server = receiving(Limits { chunk: 1000, ..support::wide().limits });
        arrives(&mut server, T, 0, 1000);
        receive(&mut server, &ended);
        assert!(matches!(refuses(&mut server, &chunk(T, 1000, 1)), PeerError::BadTransfer { .. }));
    }
    // A download, of bytes 10 to 20.
    for (from, end, size) in [(9, 20, 100), (10, 21, 100), (10, 19, 100), (10, 20, 15), (0, 0, 0)] {
        let mut client = support::client();
        let blob = BlobId { oid: Oid(1), tid: Tid(1) };
        let id = client.request(Request::SendBlob { blob, from: 10, upto: 20 }).unwrap();
        let message = Message::BlobStart { transfer: id.into(), from, end, size, digest: None };
        assert!(matches!(refuses(&mut client, &message), PeerError::BadTransfer { .. }), "{message:?}");
    }
}

#[test]
fn the_scenario_that_the_specification_works_through() {
    let mut server = receiving(small());
    let (first, second) = (TransferId(2), TransferId(3));
    for offset in [0, 50] {
        arrives(&mut server, first, offset, 50);
    }
    arrives(&mut server, second, 0, 50);
    assert_eq!(said(&mut server), [], "arriving opens nothing");
    server.stored(first, 100).unwrap();
    let credit = Message::Credit { transfer: first, upto: 200 };
    assert_eq!(said(&mut server), [credit, Message::ConnectionCredit { upto: 250 }]);
    receive(&mut server, &abort(second));
    assert!(matches!(said(&mut server)[..], [Message::Reply { .. }]));
    arrives(&mut server, first, 100, 50);
    server.stored(first, 150).unwrap();
    let credit = Message::Credit { transfer: first, upto: 250 };
    assert_eq!(said(&mut server), [credit, Message::ConnectionCredit { upto: 350 }]);
}

#[test]
fn nobody_may_send_beyond_either_credit() {
    let mut server = receiving(small());
    arrives(&mut server, T, 0, 50);
    arrives(&mut server, T, 50, 50);
    assert_eq!(refuses(&mut server, &chunk(T, 100, 1)), PeerError::CreditExceeded { transfer: T });
    let mut server = receiving(Limits { transfer_window: 1000, ..small() });
    for offset in [0, 50, 100] {
        arrives(&mut server, T, offset, 50);
    }
    let other = TransferId(3);
    assert_eq!(refuses(&mut server, &chunk(other, 0, 1)), PeerError::CreditExceeded { transfer: other });
}

#[test]
fn only_moved_bytes_store_and_only_expected_ones_move() {
    let mut server = receiving(small());
    assert_eq!(server.payload_moved(Time::ZERO, 1), Err(UsageError::NotExpected { moved: 1, expected: 0 }));
    receive(&mut server, &chunk(T, 0, 50));
    server.payload_moved(Time::ZERO, 20).unwrap();
    assert_eq!(server.expect(), Expect::Payload(Slice { transfer: T, offset: 20, len: 30 }));
    assert_eq!(
        server.payload_moved(Time::ZERO, 31),
        Err(UsageError::NotExpected { moved: 31, expected: 30 })
    );
    assert_eq!(server.stored(T, 21), Err(UsageError::BadRange(T)));
    server.stored(T, 20).unwrap();
    assert_eq!(server.stored(T, 19), Err(UsageError::BadRange(T)));
    assert_eq!(server.stored(TransferId(9), 1), Err(UsageError::NoSuchTransfer(TransferId(9))));
    assert_eq!(server.error(), None, "a call that makes no sense kills nothing");
}

#[test]
fn every_end_of_a_transfer_reopens_the_window() {
    type End = fn(&mut server::Connection);
    let ends: [(&str, End); 5] = [
        ("the sender aborts", |server| receive(server, &abort(T))),
        ("the sink is given up", |server| server.discard(T)),
        ("it is answered early", |server| {
            server.reply(T.into(), Err(RequestError::Cancelled)).unwrap();
        }),
        ("its transaction is aborted", |server| receive(server, &request(9, Request::Abort { txn: txn(1) }))),
        ("it is stored", |server| server.stored(T, 100).unwrap()),
    ];
    for (name, end) in ends {
        let mut server = receiving(small());
        arrives(&mut server, T, 0, 50);
        arrives(&mut server, T, 50, 50);
        end(&mut server);
        let granted = Message::ConnectionCredit { upto: 250 };
        assert!(said(&mut server).contains(&granted), "{name}");
    }
}

#[test]
fn a_sink_may_end_after_its_transfer_has_stopped() {
    for give_up in [false, true] {
        let mut server =
            receiving(Limits { chunk: 1000, transfer_window: 1000, connection_window: 1000, ..small() });
        arrives(&mut server, T, 0, 1000);
        receive(&mut server, &stop(T));
        assert_eq!(said(&mut server), []);
        if give_up {
            server.discard(T);
        } else {
            server.stored(T, 500).unwrap();
            server.stored(T, 1000).unwrap();
        }
        assert_eq!(said(&mut server).last(), Some(&Message::ConnectionCredit { upto: 2000 }));
        assert_eq!(server.stored(T, 1000), Err(UsageError::NoSuchTransfer(T)), "nothing is kept of it");
        assert!(server.reply(T.into(), Ok(Reply::Done)).is_ok());
    }
}

#[test]
fn a_slow_sink_does_not_count_as_a_transfer() {
    let limits = Limits { transfers: 1, ..support::wide().limits };
    let mut server = support::server_for(support::with(limits), Limits::default());
    receive(&mut server, &request(1, begin(1)));
    for id in 2..9 {
        receive(&mut server, &request(id, store_blob(1)));
        receive(&mut server, &start(TransferId(id), 10));
        arrives(&mut server, TransferId(id), 0, 10);
        receive(&mut server, &stop(TransferId(id)));
    }
    assert_eq!(server.requests_in_flight(), 8);
    receive(&mut server, &request(9, store_blob(1)));
    let error = refuses(&mut server, &request(10, store_blob(1)));
    assert_eq!(error, PeerError::TooManyTransfers { limit: 1 });
}

#[test]
fn credit_is_never_lowered_and_only_for_what_was_sent() {
    let mut client = support::client();
    client.request(begin(1)).unwrap();
    let transfer = client.upload(txn(1), Oid(1), Tid(0), vec![], 10, None).unwrap();
    let window = Limits::default().transfer_window;
    receive(&mut client, &Message::Credit { transfer, upto: window });
    receive(&mut client, &Message::Credit { transfer, upto: u64::MAX });
    let error = refuses(&mut client, &Message::Credit { transfer, upto: window });
    assert_eq!(error, PeerError::BadCredit { upto: window, before: u64::MAX });

    let mut client = support::client();
    let before = Limits::default().connection_window;
    let error = refuses(&mut client, &Message::ConnectionCredit { upto: before - 1 });
    assert_eq!(error, PeerError::BadCredit { upto: before - 1, before });
    let unsent = Message::Credit { transfer, upto: u64::MAX };
    assert!(matches!(refuses(&mut support::client(), &unsent), PeerError::BadTransfer { .. }));
}

#[test]
fn a_discarded_upload_is_answered_by_the_caller() {
    for end in [stop(T), abort(T)] {
        let mut server = receiving(Limits { chunk: 1000, ..support::wide().limits });
        server.discard(T);
        arrives(&mut server, T, 0, 1000);
        receive(&mut server, &end);
        assert_eq!((events(&mut server), said(&mut server)), (vec![], vec![]));
        server.reply(T.into(), Err(RequestError::NoSpace { detail: "full".into() })).unwrap();
        assert_eq!(said(&mut server).len(), 1);
    }
}
