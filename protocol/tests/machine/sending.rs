//! Transfers from a side: the order of turns, waiting for credit, and sources that fail.

use blobferry_protocol::testing::{Pair, PairConfig, Source, Style, digest_of};
use blobferry_protocol::{
    BlobId, Config, Digest, Limits, Message, Oid, PeerError, Reply, Request, RequestError, Slice, Tid, Time,
    TransferEvent, TransferId, UsageError, buffered, client, server,
};

use crate::support::{self, begin, receive, refuses, request, said, txn};

use crate::receiving::{T, abort, arrives, chunk, start, stop};

/// Returns a client that uploads blobs of these sizes, numbered from 2, to a server with these
/// limits.
fn uploading(server: Limits, sizes: &[u64]) -> client::Connection {
    let mut client = support::client_of(Config::default(), server);
    client.request(begin(1)).unwrap();
    for size in sizes {
        client.upload(txn(1), Oid(1), Tid(0), vec![], *size, Some(Digest([0; 32]))).unwrap();
    }
    let mut heads = Vec::new();
    let first = client.poll_transmit(Time::ZERO, &mut heads).unwrap();
    assert_eq!(first.body.map(|slice| slice.transfer), sizes.first().map(|_| T));
    client
}

#[test]
fn transfers_take_turns_and_messages_overtake_them() {
    let limits = Limits { chunk: 10, ..Limits::default() };
    let mut client = uploading(limits, &[30, 20, 40]);
    let mut turns = Vec::new();
    let mut head = Vec::new();
    let mut asked = None;
    while let Some(transmit) = client.poll_transmit(Time::ZERO, &mut head) {
        assert_eq!(transmit.head, head.len());
        let said = support::messages(&head);
        if let Some(id) = asked.take() {
            let load = Message::Request { id, request: Request::Load { oid: Oid(1) } };
            assert_eq!(said.first(), Some(&load), "it waits for no chunk");
        }
        let Some(slice) = transmit.body else { break };
        assert_eq!(
            said.last(),
            Some(&chunk(slice.transfer, slice.offset, slice.len as u32)),
            "one chunk, at the end"
        );
        assert_eq!(said.iter().filter(|message| matches!(message, Message::BlobChunk { .. })).count(), 1);
        turns.push((slice.transfer.0, slice.offset));
        asked = Some(client.request(Request::Load { oid: Oid(1) }).unwrap());
        head.clear();
    }
    assert_eq!(turns, [(3, 0), (4, 0), (2, 10), (3, 10), (4, 10), (2, 20), (4, 20), (4, 30)]);
}

#[test]
fn a_transfer_without_credit_does_not_block_others() {
    let limits = Limits { chunk: 50, transfer_window: 50, connection_window: 120, ..Limits::default() };
    let mut client = uploading(limits, &[200, 50, 200]);
    let next = |client: &mut client::Connection| {
        client.poll_transmit(Time::ZERO, &mut Vec::new()).and_then(|transmit| transmit.body)
    };
    let slice = |transfer, offset, len| Some(Slice { transfer: TransferId(transfer), offset, len });
    assert_eq!(next(&mut client), slice(3, 0, 50));
    assert_eq!(next(&mut client), slice(4, 0, 20), "what the connection still allows");
    assert_eq!(next(&mut client), None);
    receive(&mut client, &Message::Credit { transfer: T, upto: 70 });
    assert_eq!(next(&mut client), None, "the connection allows nothing");
    receive(&mut client, &Message::ConnectionCredit { upto: 1000 });
    assert_eq!(next(&mut client), slice(2, 50, 20));
    assert_eq!(next(&mut client), slice(4, 20, 30));
    assert_eq!(next(&mut client), None);
}

#[test]
fn a_failed_source_is_zeroed_and_aborted() {
    for style in [Style::Buffered, Style::Splicing] {
        for fails_at in [0, 1, 300_000, 599_999] {
            let mut pair = Pair::connected(PairConfig { client_style: style, ..PairConfig::default() });
            pair.client.connection.request(begin(1)).unwrap();
            let source = Source { fails_at: Some(fails_at), ..Source::new(&[7; 600_000]) };
            let transfer = pair.upload(txn(1), Oid(1), Tid(0), source).unwrap();
            pair.run();
            let sink = pair.server.sink(transfer).unwrap();
            assert!(matches!(sink.outcome, Some(Err(RequestError::Source { .. }))));
            let good = sink.bytes.iter().take_while(|byte| **byte == 7).count();
            assert!(good as u64 <= fails_at && sink.bytes[good..].iter().all(|byte| *byte == 0));
            let answer = std::iter::from_fn(|| pair.client.event()).last();
            let Some(client::Event::Reply { id, result: Err(RequestError::Source { .. }) }) = answer else {
                panic!("{answer:?}")
            };
            assert_eq!(id, transfer.into());
            assert_eq!((pair.client.connection.error(), pair.server.connection.error()), (None, None));
        }
    }
}

#[test]
fn a_digest_is_set_when_all_bytes_are_read() {
    for size in [0, 1, 600_000] {
        let mut client = support::client();
        client.request(begin(1)).unwrap();
        let bytes = vec![3; size];
        let transfer = client.upload(txn(1), Oid(1), Tid(0), vec![], size as u64, None).unwrap();
        if size > 0 {
            assert_eq!(client.finish_blob(transfer, digest_of(&bytes)), Err(UsageError::BadRange(transfer)));
        }
        let mut stream = Vec::new();
        buffered::transmit(&mut client, Time::ZERO, &mut stream, usize::MAX, |slice, into| {
            into.resize(into.len() + slice.len as usize, 3);
            Ok(())
        });
        assert!(!client.is_finished());
        client.finish_blob(transfer, digest_of(&bytes)).unwrap();
        assert_eq!(said(&mut client), [Message::BlobStop { transfer, digest: digest_of(&bytes) }]);
        assert_eq!(
            client.finish_blob(transfer, digest_of(&bytes)),
            Err(UsageError::NoSuchTransfer(transfer))
        );
    }
}

#[test]
fn extreme_sizes_and_offsets_do_no_harm() {
    let mut client = support::client();
    client.request(begin(1)).unwrap();
    client.upload(txn(1), Oid(1), Tid(0), vec![], u64::MAX, None).unwrap();
    let blob = BlobId { oid: Oid(1), tid: Tid(1) };
    let id = client.request(Request::SendBlob { blob, from: u64::MAX - 5, upto: u64::MAX }).unwrap();
    let (transfer, from, end) = (TransferId::from(id), u64::MAX - 5, u64::MAX);
    receive(&mut client, &Message::BlobStart { transfer, from, end, size: end, digest: None });
    arrives(&mut client, transfer, from, 5);
    client.stored(transfer, end).unwrap();
    receive(&mut client, &stop(transfer));

    let mut server = support::server();
    receive(&mut server, &request(1, Request::SendBlob { blob, from, upto: end }));
    assert_eq!(server.start_blob(TransferId(1), end, Digest([0; 32])), Ok(from..end));
    let last = server.poll_transmit(Time::ZERO, &mut Vec::new()).unwrap().body;
    assert_eq!(last, Some(Slice { transfer: TransferId(1), offset: from, len: 5 }));
    for (from, upto) in [(2, 1), (101, 200), (u64::MAX, 0)] {
        let mut server = support::server();
        receive(&mut server, &request(1, Request::SendBlob { blob, from, upto }));
        let refused = server.start_blob(TransferId(1), 100, Digest([0; 32]));
        assert_eq!(refused, Err(UsageError::BadRange(TransferId(1))));
        assert_eq!(server.requests_in_flight(), 1, "it still wants an answer");
    }
}

#[test]
fn a_download_cancelled_before_it_began_is_not_sent() {
    let mut pair = Pair::connected(PairConfig::default());
    let blob = BlobId { oid: Oid(1), tid: Tid(1) };
    let id = pair.client.connection.request(Request::SendBlob { blob, from: 0, upto: u64::MAX }).unwrap();
    pair.run();
    pair.client.connection.cancel(id).unwrap();
    pair.client.connection.cancel(id).unwrap();
    pair.run();
    assert!(matches!(pair.server.event(), Some(server::Event::Request { .. })));
    assert_eq!(pair.server.event(), Some(server::Event::Cancelled { id }));
    assert_eq!(pair.server.event(), None, "it is said once");
    pair.serve(id.into(), Source::new(&[1; 1_000_000])).unwrap();
    assert_eq!(pair.server.event(), Some(server::Event::SendingAborted { transfer: id.into() }));
    pair.run();
    let aborted = TransferEvent::Aborted { transfer: id.into(), reason: RequestError::Cancelled };
    assert_eq!(pair.client.event(), Some(client::Event::Transfer(aborted)));
    assert_eq!((pair.client.dropped, pair.client.connection.requests_in_flight()), (0, 0));
}

#[test]
fn an_answer_while_its_transfer_runs_is_refused() {
    let mut client = support::client();
    let blob = BlobId { oid: Oid(1), tid: Tid(1) };
    let id = client.request(Request::SendBlob { blob, from: 0, upto: u64::MAX }).unwrap();
    receive(&mut client, &start(id.into(), 10));
    let error = Message::Reply { id, result: Err(RequestError::Cancelled) };
    assert!(matches!(refuses(&mut client, &error), PeerError::WrongReply { .. }));

    let mut client = uploading(Limits::default(), &[10_000_000]);
    let done = Message::Reply { id: T.into(), result: Ok(Reply::Done) };
    assert!(matches!(refuses(&mut client, &done), PeerError::WrongReply { .. }));
    let mut client = uploading(Limits::default(), &[10_000_000]);
    receive(&mut client, &Message::Reply { id: T.into(), result: Err(RequestError::Cancelled) });
    assert_eq!(said(&mut client), [abort(T)], "the server wants no more of it");
    let done = Message::Reply { id: T.into(), result: Ok(Reply::Done) };
    assert!(matches!(refuses(&mut client, &done), PeerError::WrongReply { .. }), "nothing is answered twice");
}

#[test]
fn a_cancelled_download_gives_its_credit_back() {
    let limits = Limits { transfer_window: 1000, connection_window: 1000, ..Limits::default() };
    let mut pair = Pair::connected(PairConfig { client: support::with(limits), ..PairConfig::default() });
    pair.client.hold_sinks();
    let blob = BlobId { oid: Oid(1), tid: Tid(1) };
    let whole = || Request::SendBlob { blob, from: 0, upto: u64::MAX };
    let id = pair.client.connection.request(whole()).unwrap();
    pair.run();
    pair.serve(id.into(), Source::new(&[1; 1_000_000])).unwrap();
    pair.run();
    assert_eq!(pair.client.sink(id.into()).unwrap().bytes.len(), 1000, "the windows are full");
    pair.client.connection.cancel(id).unwrap();
    pair.client.connection.cancel(id).unwrap();
    let granted = Message::ConnectionCredit { upto: 2000 };
    let transfer = Message::Credit { transfer: id.into(), upto: 2000 };
    assert_eq!(said(&mut pair.client.connection), [Message::Cancel { id }, transfer, granted], "once");
    receive(&mut pair.server.connection, &Message::Cancel { id });
    assert!(!pair.server.connection.is_sending(id.into()));
    pair.run();
    let outcome = pair.client.sink(id.into()).unwrap().outcome.clone();
    assert_eq!(outcome, Some(Err(RequestError::Cancelled)));
}
