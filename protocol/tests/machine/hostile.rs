//! A hostile peer that knows the protocol: messages that are nearly allowed, in any order. Nothing
//! panics, nothing grows without bounds, and nothing gets stuck.

use blobferry_protocol::connection::{Connection, Side};
use blobferry_protocol::{
    BlobId, Conflict, Digest, Expect, Limits, Message, Oid, PeerError, Reply, Request, RequestError,
    RequestId, Tid, Time, TransferId, client, server,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::{self, begin, frame, said, store, store_blob, txn};

/// Limits that are so low that a peer often reaches them.
fn tight() -> Limits {
    Limits {
        frame: 4096,
        chunk: 16,
        transfer_window: 32,
        connection_window: 48,
        transfers: 3,
        requests: 4,
        transactions: 2,
        control_queue: 4096,
    }
}

/// Offsets and lengths that often fit, and sometimes are extreme.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![8 => (0u64..6).prop_map(|n| n * 16), 1 => Just(u64::MAX), 1 => any::<u64>()]
}

fn transfer_message() -> impl Strategy<Value = Message> {
    let id = || (1u64..12).prop_map(TransferId);
    let digest = Digest([0; 32]);
    prop_oneof![
        (id(), offset(), offset()).prop_map(|(transfer, from, end)| {
            Message::BlobStart {
                transfer,
                from: if end > 60 { from } else { 0 },
                end,
                size: end,
                digest: None,
            }
        }),
        (id(), offset(), 1u32..18).prop_map(|(transfer, offset, len)| Message::BlobChunk {
            transfer,
            offset,
            len
        }),
        id().prop_map(move |transfer| Message::BlobStop { transfer, digest }),
        id().prop_map(|transfer| Message::BlobAbort { transfer, reason: RequestError::Cancelled }),
        (id(), offset()).prop_map(|(transfer, upto)| Message::Credit { transfer, upto }),
        offset().prop_map(|upto| Message::ConnectionCredit { upto }),
        (0u64..9).prop_map(|nonce| Message::Ping { nonce }),
        Just(Message::Goodbye),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let blob = BlobId { oid: Oid(1), tid: Tid(1) };
    (0u8..3, 0usize..12, offset(), offset()).prop_map(move |(n, kind, from, upto)| match kind {
        0 | 1 => begin(n),
        2 => store(n),
        3..=5 => store_blob(n),
        6 => Request::Vote { txn: txn(n) },
        7 => Request::Finish { txn: txn(n) },
        8 => Request::Commit { txn: txn(n) },
        9 => Request::Abort { txn: txn(n) },
        10 => Request::SendBlob { blob, from, upto },
        _ => Request::Status,
    })
}

/// What a hostile client does. Its request ids are in order, since wrong ids would hide every other
/// fault.
#[derive(Clone, Debug)]
enum Act {
    Ask(Request),
    Cancel(u64),
    Deliver(Message),
    /// The server answers a request.
    Answer(u64, bool),
    Send(u64),
    Abort(u64),
    Store(u64, u64),
    Discard(u64),
    Read,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => request().prop_map(Act::Ask),
        1 => (0u64..12).prop_map(Act::Cancel),
        8 => transfer_message().prop_map(Act::Deliver),
        6 => (1u64..12, any::<bool>()).prop_map(|(id, ok)| Act::Answer(id, ok)),
        2 => (1u64..12).prop_map(Act::Send),
        1 => (1u64..12).prop_map(Act::Abort),
        2 => (1u64..12, offset()).prop_map(|(id, upto)| Act::Store(id, upto)),
        1 => (1u64..12).prop_map(Act::Discard),
        4 => Just(Act::Read),
    ]
}

/// Passes a message to a connection, moves the payload that it expects, and takes its events.
fn deliver<S: Side>(connection: &mut Connection<S>, message: &Message) -> bool {
    let frame = frame(message);
    let mut rest = &frame[..];
    while !rest.is_empty() {
        let Ok(used) = connection.handle_control(Time::ZERO, rest) else { return false };
        assert!(used > 0, "bytes that are not payload are consumed");
        rest = &rest[used..];
        if let Expect::Payload(slice) = connection.expect() {
            connection.payload_moved(Time::ZERO, slice.len).unwrap();
        }
    }
    assert!(support::events(connection).len() <= 6, "one message means a few events");
    true
}

/// Returns the length of the `Debug` text of a connection after it has sent everything: a measure
/// of its state.
fn weight<S: Side>(connection: &mut Connection<S>) -> usize
where
    Connection<S>: std::fmt::Debug,
{
    said(connection);
    support::events(connection);
    format!("{connection:?}").len()
}

fn answer(server: &mut server::Connection, id: u64, ok: bool) {
    let id = RequestId(id);
    let conflict = Conflict { oid: Oid(1), committed: Tid(2), base: Tid(1) };
    let replies = [
        Reply::Done,
        Reply::Voted,
        Reply::Finished { tid: Tid(1) },
        Reply::Conflicts(vec![conflict]),
        Reply::Status(vec![]),
    ];
    // The first state that fits.
    let answered = ok && replies.into_iter().any(|reply| server.reply(id, Ok(reply)).is_ok());
    if !answered {
        let _ = server.reply(id, Err(RequestError::Cancelled));
    }
}

proptest! {
    #[test]
    fn a_server_survives_a_client_that_keeps_to_nothing(acts in vec(act(), 0..200)) {
        let mut server = support::server_for(support::with(tight()), tight());
        let mut last = 0;
        for act in acts {
            let alive = match act {
                Act::Ask(request) => {
                    last += 1;
                    deliver(&mut server, &support::request(last, request))
                }
                Act::Cancel(id) => deliver(&mut server, &Message::Cancel { id: RequestId(id) }),
                Act::Deliver(message) => deliver(&mut server, &message),
                Act::Answer(id, ok) => { answer(&mut server, id, ok); true }
                Act::Send(id) => { let _ = server.start_blob(TransferId(id), 64, Digest([0; 32])); true }
                Act::Abort(id) => { let _ = server.abort_blob(TransferId(id), RequestError::Cancelled); true }
                Act::Store(id, upto) => { let _ = server.stored(TransferId(id), upto); true }
                Act::Discard(id) => { server.discard(TransferId(id)); true }
                Act::Read => { said(&mut server); true }
            };
            prop_assert_eq!(alive, server.error().is_none());
            prop_assert!(server.requests_in_flight() <= 4);
            prop_assert!(server.transactions().count() <= 2);
            prop_assert!(server.backlog() <= 4096 + 200, "{}", server.backlog());
            if !alive {
                prop_assert!(support::said(&mut server).is_empty());
                break;
            }
        }
        prop_assert!(weight(&mut server) < 6_000, "{server:?}");
    }

    #[test]
    fn a_client_survives_a_server_that_keeps_to_nothing(
        acts in vec((act(), any::<Reply>(), 0u64..20), 0..200),
    ) {
        let mut client = support::client_of(support::with(tight()), tight());
        for (act, reply, id) in acts {
            let id = RequestId(id);
            let alive = match act {
                Act::Ask(Request::StoreBlob { txn, oid, base, data }) => {
                    let _ = client.upload(txn, oid, base, data, 64, Some(Digest([0; 32])));
                    true
                }
                Act::Ask(request) => { let _ = client.request(request); true }
                Act::Cancel(id) => { let _ = client.cancel(RequestId(id)); true }
                Act::Deliver(message) => deliver(&mut client, &message),
                Act::Answer(id, ok) => {
                    let result = if ok { Ok(Reply::Done) } else { Err(RequestError::Cancelled) };
                    deliver(&mut client, &Message::Reply { id: RequestId(id), result })
                }
                Act::Send(_) => deliver(&mut client, &Message::Reply { id, result: Ok(reply) }),
                Act::Abort(id) => { let _ = client.abort_blob(TransferId(id), RequestError::Cancelled); true }
                Act::Store(id, upto) => { let _ = client.stored(TransferId(id), upto); true }
                Act::Discard(id) => { client.discard(TransferId(id)); true }
                Act::Read => { said(&mut client); true }
            };
            prop_assert_eq!(alive, client.error().is_none());
            prop_assert!(client.requests_in_flight() <= 4);
            prop_assert!(client.backlog() <= 4096 + 200, "{}", client.backlog());
            if !alive {
                break;
            }
        }
        prop_assert!(weight(&mut client) < 6_000, "{client:?}");
    }
}

#[test]
fn repeated_goodbyes_are_reported_once() {
    let goodbyes = frame(&Message::Goodbye).repeat(10_000);
    let (mut server, mut client) = (support::server(), support::client());
    assert_eq!(server.handle_control(Time::ZERO, &goodbyes), Ok(goodbyes.len()));
    assert_eq!(support::events(&mut server), [server::Event::Goodbye]);
    assert_eq!(client.handle_control(Time::ZERO, &goodbyes), Ok(goodbyes.len()));
    assert_eq!(support::events(&mut client), [client::Event::Goodbye]);
    // A side that has said goodbye first is notified too.
    let mut server = support::server();
    server.goodbye().unwrap();
    support::receive(&mut server, &Message::Goodbye);
    assert_eq!(support::events(&mut server), [server::Event::Goodbye]);
}

#[test]
fn an_aborted_upload_is_not_answered_with_success() {
    type GiveUp = fn(&mut client::Connection, TransferId);
    let ways: [(&str, GiveUp); 3] = [
        ("its source fails", |client, id| client.abort_blob(id, RequestError::Cancelled).unwrap()),
        ("it is cancelled", |client, id| client.cancel(id.into()).unwrap()),
        ("its transaction is given up", |client, _| {
            client.request(Request::Abort { txn: txn(1) }).unwrap();
        }),
    ];
    for (way, give_up) in ways {
        let mut client = support::client();
        client.request(begin(1)).unwrap();
        let upload = client.upload(txn(1), Oid(1), Tid::ZERO, Vec::new(), 10, Some(Digest([0; 32]))).unwrap();
        give_up(&mut client, upload);
        let id = upload.into();
        let error = support::refuses(&mut client, &Message::Reply { id, result: Ok(Reply::Done) });
        assert_eq!(error, PeerError::WrongReply { id, what: "its blob is not complete" }, "{way}");
    }
}

#[test]
fn a_long_life_leaves_nothing_behind() {
    let mut server = support::server_for(support::with(tight()), tight());
    let mut after_one = 0;
    for round in 0..500u64 {
        let ask = |server: &mut server::Connection, n, request| {
            assert!(deliver(server, &support::request(round * 10 + n, request)));
            TransferId(round * 10 + n)
        };
        let begun = ask(&mut server, 1, begin(1));
        answer(&mut server, begun.0, true);
        let blob = BlobId { oid: Oid(1), tid: Tid(1) };
        for (n, end) in [(2, 0), (3, 1), (4, 2)] {
            let transfer = ask(&mut server, n, store_blob(1));
            let digest = Digest([0; 32]);
            assert!(deliver(
                &mut server,
                &Message::BlobStart { transfer, from: 0, end: 16, size: 16, digest: None }
            ));
            assert!(deliver(&mut server, &Message::BlobChunk { transfer, offset: 0, len: 16 }));
            match end {
                0 => assert!(deliver(&mut server, &Message::BlobStop { transfer, digest })),
                1 => assert!(deliver(
                    &mut server,
                    &Message::BlobAbort { transfer, reason: RequestError::Cancelled }
                )),
                _ => {
                    answer(&mut server, transfer.0, false);
                    assert!(deliver(&mut server, &Message::BlobStop { transfer, digest }));
                }
            }
            let _ = server.stored(transfer, 16);
            answer(&mut server, transfer.0, true);
        }
        let sent = ask(&mut server, 5, Request::SendBlob { blob, from: 0, upto: 16 });
        server.start_blob(sent, 64, Digest([0; 32])).unwrap();
        assert!(deliver(&mut server, &Message::Cancel { id: sent.into() }));
        let aborted = ask(&mut server, 6, Request::Abort { txn: txn(1) });
        answer(&mut server, aborted.0, true);
        let weight = weight(&mut server);
        if round == 0 {
            after_one = weight;
        }
        assert!(weight < after_one + 200, "round {round}: {server:?}");
    }
}

#[test]
fn uploads_aborted_without_credit_leave_nothing_behind() {
    let mut client =
        support::client_of(support::wide(), Limits { connection_window: 1, ..Limits::default() });
    client.request(begin(1)).unwrap();
    let mut after_one = 0;
    for round in 0..500 {
        let transfer = client.upload(txn(1), Oid(1), Tid::ZERO, Vec::new(), 100, None).unwrap();
        said(&mut client);
        client.abort_blob(transfer, RequestError::Cancelled).unwrap();
        assert!(deliver(
            &mut client,
            &Message::Reply { id: transfer.into(), result: Err(RequestError::Cancelled) }
        ));
        client.request(Request::Abort { txn: txn(1) }).unwrap();
        let begun = client.request(begin(1)).unwrap();
        for id in [begun.0 - 1, begun.0] {
            assert!(deliver(&mut client, &Message::Reply { id: RequestId(id), result: Ok(Reply::Done) }));
        }
        let weight = weight(&mut client);
        if round == 0 {
            after_one = weight;
        }
        assert!(weight < after_one + 200, "round {round}: {client:?}");
    }
}
