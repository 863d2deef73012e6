//! Transactions that go on after their connection was lost, and uploads that are resumed.

use blobferry_protocol::server::Event;
use blobferry_protocol::{
    Digest, Limits, Message, Oid, Phase, Reply, Request, RequestError, RequestId, Tid, Time, TransferEvent,
    TransferId, Unfinished, UsageError, client, server,
};

use crate::support::{self, begin, client_of, events, receive, request, said, store, txn};

const ATTACH: Request = Request::Attach { txn: blobferry_protocol::TxnId([1; 16]) };

fn attached() -> Result<Reply, RequestError> {
    let unfinished = vec![Unfinished { request: RequestId(7), upto: 300 }];
    Ok(Reply::Attached { last: RequestId(9), unfinished })
}

fn unknown() -> Result<Reply, RequestError> {
    Err(RequestError::NoSuchTransaction { txn: txn(1) })
}

/// Returns a server that has received an `Attach` of transaction 1, as request 1.
fn server_asked() -> server::Connection {
    let mut server = support::server();
    receive(&mut server, &request(1, ATTACH));
    assert_eq!(events(&mut server), [Event::Request { id: RequestId(1), request: ATTACH }]);
    server
}

/// Returns a client that has sent the same request.
fn client_asking() -> client::Connection {
    let mut client = support::client();
    assert_eq!(client.request(ATTACH), Ok(RequestId(1)));
    client
}

fn answer(client: &mut client::Connection, result: Result<Reply, RequestError>) {
    receive(client, &Message::Reply { id: RequestId(1), result });
}

#[test]
fn an_attached_transaction_is_open() {
    let mut server = server_asked();
    server.reply(RequestId(1), attached()).unwrap();
    assert_eq!(server.transactions().collect::<Vec<_>>(), [(txn(1), Phase::Open)]);
    receive(&mut server, &request(2, store(1)));
    receive(&mut server, &request(3, Request::Commit { txn: txn(1) }));
    assert_eq!(events(&mut server), [Event::Request { id: RequestId(2), request: store(1) }]);
    server.reply(RequestId(2), Ok(Reply::Done)).unwrap();
    let commit = Request::Commit { txn: txn(1) };
    assert_eq!(events(&mut server), [Event::Request { id: RequestId(3), request: commit }]);

    let mut client = client_asking();
    answer(&mut client, attached());
    assert_eq!(client.phase(txn(1)), Some(Phase::Open));
    assert!(client.request(store(1)).is_ok());
}

#[test]
fn an_early_vote_waits_for_the_attach() {
    let vote = Request::Vote { txn: txn(1) };
    let mut server = server_asked();
    receive(&mut server, &request(2, vote.clone()));
    assert_eq!(events(&mut server), []);
    server.reply(RequestId(1), attached()).unwrap();
    assert_eq!(events(&mut server), [Event::Request { id: RequestId(2), request: vote.clone() }]);

    let mut server = server_asked();
    receive(&mut server, &request(2, vote));
    server.reply(RequestId(1), unknown()).unwrap();
    assert_eq!(events(&mut server), [Event::Abandoned { txn: txn(1) }]);
    let doomed = Message::Reply { id: RequestId(2), result: Err(RequestError::Doomed { txn: txn(1) }) };
    assert_eq!(said(&mut server).last(), Some(&doomed));
}

#[test]
fn after_a_failed_attach_the_name_can_begin() {
    let mut server = server_asked();
    server.reply(RequestId(1), unknown()).unwrap();
    assert_eq!(server.transactions().count(), 0);
    said(&mut server);
    receive(&mut server, &request(2, begin(1)));
    assert_eq!(events(&mut server), [Event::Request { id: RequestId(2), request: begin(1) }]);

    let mut client = client_asking();
    answer(&mut client, unknown());
    assert_eq!(client.phase(txn(1)), None);
    assert_eq!(client.request(store(1)), Err(UsageError::NoSuchTransaction(txn(1))));
    assert!(client.request(begin(1)).is_ok());
}

#[test]
fn attached_transactions_count_as_open() {
    let limits = Limits { transactions: 1, ..Limits::default() };
    let mut server = support::server_for(support::with(limits), Limits::default());
    receive(&mut server, &request(1, begin(2)));
    events(&mut server);
    receive(&mut server, &request(2, ATTACH));
    assert_eq!(events(&mut server), []);
    assert!(matches!(
        said(&mut server)[..],
        [Message::Reply { result: Err(RequestError::Limit { limit: 1, .. }), .. }]
    ));
    let mut client = client_of(Default::default(), limits);
    client.request(begin(2)).unwrap();
    assert_eq!(client.request(ATTACH), Err(UsageError::Limit { what: "transactions", limit: 1 }));
}

#[test]
fn only_an_answer_about_what_has_arrived_fits() {
    let mut server = server_asked();
    assert_eq!(server.reply(RequestId(1), Ok(Reply::Done)), Err(UsageError::WrongReply(RequestId(1))));
    let mut client = client_asking();
    support::refuses(&mut client, &Message::Reply { id: RequestId(1), result: Ok(Reply::Done) });
}

#[test]
fn a_resumed_upload_has_a_window_from_its_offset() {
    let limits = Limits { transfer_window: 100, ..Limits::default() };
    let mut client = client_of(Default::default(), limits);
    client.request(ATTACH).unwrap();
    answer(&mut client, attached());
    said(&mut client);
    let data = vec![1];
    let transfer = client.resume_upload(txn(1), Oid(1), Tid::ZERO, data, 300..1000, None).unwrap();
    let heads = said(&mut client);
    assert!(matches!(heads[0], Message::Request { .. }));
    assert_eq!(heads[1], Message::BlobStart { transfer, from: 300, end: 1000, size: 1000, digest: None });
    assert_eq!(heads[2], Message::BlobChunk { transfer, offset: 300, len: 100 });
    assert_eq!(heads.len(), 3, "the window is closed");

    let mut server = server_asked();
    server.reply(RequestId(1), attached()).unwrap();
    for message in &heads[..2] {
        receive(&mut server, message);
    }
    let started = TransferEvent::Started { transfer, from: 300, end: 1000, size: 1000, digest: None };
    assert_eq!(events(&mut server).pop(), Some(Event::Transfer(started)));
    receive(&mut server, &heads[2]);
    assert_eq!(server.payload_moved(Time::ZERO, 100), Ok(()));
    assert_eq!(server.stored(transfer, 400), Ok(()));
}

#[test]
fn a_resumed_upload_without_rest_only_ends() {
    let mut client = client_asking();
    answer(&mut client, attached());
    said(&mut client);
    let digest = Digest([7; 32]);
    let upload = client.resume_upload(txn(1), Oid(1), Tid::ZERO, vec![], 1000..1000, Some(digest));
    let transfer = upload.unwrap();
    let stop = Message::BlobStop { transfer, digest };
    assert_eq!(said(&mut client).last(), Some(&stop));
}

#[test]
fn a_new_connection_numbers_above_the_old_one() {
    let mut client = client_asking();
    let last = client.request(Request::Status).unwrap();
    assert_eq!(client.last_request(), last);
    let mut next = client::Connection::after(Time::ZERO, Default::default(), b"", last);
    let welcome = blobferry_protocol::Welcome { version: 1, limits: Limits::default(), last_tid: Tid::ZERO };
    receive(&mut next, &Message::Welcome(welcome));
    assert_eq!(next.request(ATTACH), Ok(RequestId(last.0 + 1)));
}

#[test]
fn an_upload_has_to_go_on_to_its_end() {
    for (from, end, size) in [(10, 20, 30), (31, 31, 30)] {
        let mut server = server_asked();
        server.reply(RequestId(1), attached()).unwrap();
        let blob = Request::StoreBlob { txn: txn(1), oid: Oid(1), base: Tid::ZERO, data: vec![] };
        receive(&mut server, &request(2, blob));
        let start = Message::BlobStart { transfer: TransferId(2), from, end, size, digest: None };
        support::refuses(&mut server, &start);
    }
}
