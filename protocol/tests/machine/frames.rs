//! Frames: those that are too long, those that are not messages, and those with wrong lengths or
//! counts.

use blobferry_protocol::connection::{Connection, Side};
use blobferry_protocol::wire;
use blobferry_protocol::wire::{DecodeError, EncodeError, LENGTH_BYTES};
use blobferry_protocol::{
    Expect, HistoryEntry, Limits, Message, Oid, PeerError, Reply, Request, RequestError, RequestId, Tid,
    Time, TransferId, client, server,
};
use proptest::prelude::*;

use crate::support::{self, client, frame, messages, receive, refuses, request, server, store};

proptest! {
    #[test]
    fn every_message_survives(message: Message) {
        let frame = frame(&message);
        prop_assert_eq!(messages(&frame), [message.clone()]);
        let len = frame.len() as u32 - 4;
        let mut out = b"before".to_vec();
        prop_assert_eq!(wire::encode(&message, len - 1, &mut out), Err(EncodeError::TooLong { len: u64::from(len), max: len - 1 }));
        prop_assert_eq!(out, b"before");
    }

    #[test]
    fn only_the_exact_bytes_are_a_message(message: Message, more in 1usize..9) {
        let frame = frame(&message);
        let body = &frame[LENGTH_BYTES..];
        for end in 0..body.len() {
            prop_assert_eq!(wire::decode(&body[..end]), Err(DecodeError::Malformed));
        }
        let longer = [body, &vec![0; more]].concat();
        prop_assert_eq!(wire::decode(&longer), Err(DecodeError::Trailing(more)));
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = wire::decode(&body) {
            // A number may be encoded with needless bytes, but the message has no additional
            // content.
            prop_assert!(frame(&message).len() - LENGTH_BYTES <= body.len());
        }
    }
}

#[test]
fn what_decode_refuses_is_not_encoded() {
    let oids = vec![Oid(1); Limits::LIST + 1];
    let mut out = vec![9];
    let message = Message::Invalidate { tid: Tid(1), oids };
    assert_eq!(wire::encode(&message, u32::MAX, &mut out), Err(EncodeError::ListTooLong));
    assert_eq!(out, [9], "nothing is left of it");
    let oids = vec![Oid(1); Limits::LIST];
    let message = Message::Invalidate { tid: Tid(1), oids };
    assert_eq!(messages(&frame(&message)), [message]);
}

#[test]
fn a_wrong_count_costs_nothing() {
    for count in [[0xff, 0xff, 0xff, 0xff, 0x0f], [0x80, 0x80, 0x80, 0x80, 0x08]] {
        // `Invalidate`, `Reply(Ok(Conflicts))`, the data of `Store`, the text of an error.
        let store = [&[3, 1, 1][..], &[0; 18]].concat();
        for head in [&[5, 1][..], &[4, 1, 0, 3], &store, &[4, 1, 1, 10]] {
            let body = [head, &count, &[0; 64]].concat();
            assert_eq!(wire::decode(&body), Err(DecodeError::Malformed));
        }
    }
}

fn length(len: u32) -> Vec<u8> {
    len.to_le_bytes().to_vec()
}

#[test]
fn before_the_handshake_frames_are_short() {
    let mut server = server::Connection::new(Time::ZERO, support::wide());
    let error = server.handle_control(Time::ZERO, &length(Limits::HANDSHAKE_FRAME + 1));
    assert_eq!(error, Err(PeerError::NotBlobferry { said: [1, 16, 0, 0] }));
    let mut server = server::Connection::new(Time::ZERO, support::wide());
    receive(&mut server, &support::hello(Limits::default()));
    let error = server.handle_control(Time::ZERO, &length(Limits::HANDSHAKE_FRAME + 1));
    assert_eq!(error, Err(PeerError::FrameTooLong { len: 4097, max: 4096 }), "it has said hello");
    let mut client = client::Connection::new(Time::ZERO, support::wide(), &[0; 10_000]);
    assert!(
        support::said(&mut client).len() == 1,
        "credentials that are too long are cut, so that the hello fits"
    );
    let error = client.handle_control(Time::ZERO, &length(u32::MAX));
    assert_eq!(error, Err(PeerError::NotBlobferry { said: [0xff; 4] }));
}

#[test]
fn another_protocol_is_recognised_at_once() {
    let mut server = server::Connection::new(Time::ZERO, support::wide());
    let error = server.handle_control(Time::ZERO, b"GET / HTTP/1.1\r\n").unwrap_err();
    assert_eq!(error, PeerError::NotBlobferry { said: *b"GET " });
    let mut client = client::Connection::new(Time::ZERO, support::wide(), &[]);
    let error = client.handle_control(Time::ZERO, b"SSH-2.0-OpenSSH_9.9\r\n").unwrap_err();
    assert_eq!(error, PeerError::NotBlobferry { said: *b"SSH-" });
    assert!(error.to_string().ends_with("its first bytes are \"SSH-\""), "{error}");
    let mut server = server::Connection::new(Time::ZERO, support::wide());
    let Message::Hello(mut hello) = support::hello(Limits::default()) else { unreachable!() };
    hello.magic = *b"ferryblo";
    assert_eq!(refuses(&mut server, &Message::Hello(hello)), PeerError::BadMagic);
}

#[test]
fn a_length_prefix_of_4_gib_is_refused_at_once() {
    let max = Limits::default().frame;
    let error = server().handle_control(Time::ZERO, &length(u32::MAX));
    assert_eq!(error, Err(PeerError::FrameTooLong { len: u32::MAX, max }));
    let mut server = server();
    for byte in length(max) {
        assert_eq!(server.handle_control(Time::ZERO, &[byte]), Ok(1));
    }
    assert_eq!(
        server.expect(),
        Expect::Control { max: max as usize },
        "the longest allowed frame is expected"
    );
}

#[test]
fn kinds_that_carry_nothing_long_are_short() {
    fn takes_a_long_one<S: Side>(mut connection: Connection<S>, kind: u8) -> bool {
        assert_eq!(connection.handle_control(Time::ZERO, &length(Limits::SMALL_FRAME + 1)), Ok(4));
        connection.handle_control(Time::ZERO, &[kind]).is_ok()
    }
    for kind in 0..=u8::MAX {
        assert_eq!(takes_a_long_one(server(), kind), matches!(kind, 3 | 9), "{kind}");
        assert_eq!(takes_a_long_one(client(), kind), matches!(kind, 4 | 5 | 9), "{kind}");
    }
}

#[test]
fn an_empty_frame_is_no_message() {
    let error = PeerError::Malformed(DecodeError::Malformed);
    assert_eq!(server().handle_control(Time::ZERO, &[0; 4]), Err(error.clone()));
    let mut server = server();
    assert_eq!(server.handle_control(Time::ZERO, &[0; 2]), Ok(2));
    assert_eq!(server.handle_control(Time::ZERO, &[0; 2]), Err(error));
}

#[test]
fn bytes_behind_a_message_end_the_connection() {
    let mut bytes = frame(&Message::Ping { nonce: 1 });
    bytes[0] += 2;
    bytes.extend([0, 0]);
    let error = server().handle_control(Time::ZERO, &bytes);
    assert_eq!(error, Err(PeerError::Malformed(DecodeError::Trailing(2))));
}

#[test]
fn an_answer_that_is_too_long_becomes_an_error() {
    let mut server = support::server_for(support::wide(), Limits { frame: 4096, ..Limits::default() });
    receive(&mut server, &request(1, Request::History { oid: Oid(1), limit: 1000 }));
    let entry = HistoryEntry { tid: Tid::MAX, meta: Default::default(), size: None, blob: None };
    server.reply(RequestId(1), Ok(Reply::History(vec![entry; 1000]))).unwrap();
    let said = support::said(&mut server);
    assert!(matches!(
        &said[..],
        [Message::Reply { id: RequestId(1), result: Err(RequestError::Limit { limit: 4096, .. }) }]
    ));
}

#[test]
fn an_abort_with_a_long_reason_reaches_the_peer() {
    let mut client = support::client_of(support::wide(), Limits { frame: 4096, ..Limits::default() });
    client.request(support::begin(1)).unwrap();
    let transfer = client.upload(support::txn(1), Oid(1), Tid::ZERO, Vec::new(), 10, None).unwrap();
    client.abort_blob(transfer, RequestError::Source { detail: "x".repeat(5000) }).unwrap();
    let said = support::said(&mut client);
    assert!(
        matches!(said.last(), Some(Message::BlobAbort { reason: RequestError::Limit { .. }, .. })),
        "{said:?}"
    );
}

#[test]
fn a_request_longer_than_the_server_takes_is_not_sent() {
    let mut client = support::client_of(support::wide(), Limits { frame: 4096, ..Limits::default() });
    client.request(support::begin(1)).unwrap();
    support::said(&mut client);
    let data = vec![0; 4096];
    let error = client.request(Request::Store { txn: support::txn(1), oid: Oid(1), base: Tid(0), data });
    assert!(matches!(error, Err(blobferry_protocol::UsageError::TooLong { max: 4096, .. })));
    assert_eq!((support::said(&mut client), client.requests_in_flight()), (vec![], 1));
}

#[test]
fn requests_that_wait_do_not_end_the_connection() {
    let limits = Limits { control_queue: 8192, ..Limits::default() };
    let mut client = support::client_of(support::with(limits), Limits::default());
    client.request(support::begin(1)).unwrap();
    let mut sent = 1;
    let error = loop {
        match client.request(Request::Status) {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, blobferry_protocol::UsageError::Limit { limit: 4096, .. }), "{error}");
    assert!(
        client.request(Request::Abort { txn: support::txn(1) }).is_ok(),
        "what ends a transaction does not wait"
    );
    assert_eq!(support::said(&mut client).len(), sent + 1);
    let data = vec![0; 4096 - 24];
    let longest = Request::Store { txn: support::txn(2), oid: Oid(1), base: Tid(0), data };
    client.request(support::begin(2)).unwrap();
    assert!(client.request(longest.clone()).is_err());
    support::said(&mut client);
    assert_eq!(frame(&request(1000, longest.clone())).len(), 4096 + 4);
    assert!(client.request(longest).is_ok(), "there is room again, for the longest that there may be");
}

#[test]
fn a_long_invalidation_is_split_into_frames_that_fit() {
    let mut server = support::server_for(support::wide(), Limits { frame: 4096, ..Limits::default() });
    let oids: Vec<Oid> = (0..10_000).map(|n| Oid(u64::MAX - n)).collect();
    server.invalidate(Tid::MAX, &oids).unwrap();
    let mut announced = Vec::new();
    for message in support::said(&mut server) {
        let Message::Invalidate { tid: Tid::MAX, oids } = message else { panic!("{message:?}") };
        announced.extend(oids);
    }
    assert_eq!(announced, oids);
}

#[test]
fn a_commit_that_changed_nothing_is_announced_too() {
    let mut server = support::server_for(support::wide(), Limits::default());
    server.invalidate(Tid(7), &[]).unwrap();
    assert_eq!(support::said(&mut server), [Message::Invalidate { tid: Tid(7), oids: Vec::new() }]);
}

#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let limits = Limits { control_queue: 4096, ..Limits::default() };
    let mut server = support::server_for(support::with(limits), Limits::default());
    let refused = frame(&request(1, store(1)));
    let mut id = 1;
    let error = loop {
        id += 1;
        if let Err(error) = server.handle_control(Time::ZERO, &frame(&request(id, store(1)))) {
            break error;
        }
        assert!(id < 4096, "it must not grow for ever");
    };
    assert!(matches!(error, PeerError::NotReading { waiting } if waiting < 4096 + refused.len() as u64 * 2));
}

#[test]
fn endless_pings_are_a_flood_unless_pongs_are_sent() {
    let mut server = server();
    for round in 0..3 {
        for nonce in 0..64 {
            receive(&mut server, &Message::Ping { nonce });
        }
        assert_eq!(support::said(&mut server).len(), 64, "round {round}");
    }
    let flood = frame(&Message::Ping { nonce: 1 }).repeat(65);
    assert_eq!(server.handle_control(Time::ZERO, &flood), Err(PeerError::Flood { message: "Ping" }));
}

#[test]
fn a_side_accepts_only_messages_of_the_other() {
    let for_servers = [Message::Cancel { id: RequestId(1) }, request(1, Request::Status)];
    for message in for_servers {
        assert!(matches!(refuses(&mut client(), &message), PeerError::Unexpected { .. }));
    }
    let reply = Message::Reply { id: RequestId(1), result: Ok(Reply::Done) };
    let invalidate = Message::Invalidate { tid: Tid(1), oids: vec![] };
    for message in [reply.clone(), invalidate, support::hello(Limits::default())] {
        assert!(matches!(refuses(&mut server(), &message), PeerError::Unexpected { .. }));
    }
    assert!(matches!(refuses(&mut client(), &reply), PeerError::WrongReply { .. }));
    let mut early = server::Connection::new(Time::ZERO, support::wide());
    assert_eq!(refuses(&mut early, &Message::Ping { nonce: 1 }), PeerError::Unexpected { message: "Ping" });
    let credit = Message::Credit { transfer: TransferId(1), upto: 1 };
    assert!(matches!(refuses(&mut server(), &credit), PeerError::BadTransfer { .. }));
}
