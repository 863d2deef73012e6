//! Deadlines, pings, goodbyes, refusals and versions, in virtual time.

use std::time::Duration;

use blobferry_protocol::testing::{Link, Pair, PairConfig, Source};
use blobferry_protocol::{
    BlobId, Config, Hello, Limits, MAGIC, Message, Oid, PeerError, Refusal, Reply, Request, RequestError,
    Tid, Time, UsageError, Welcome, client, server,
};

use crate::support::{self, begin, events, receive, refuses, said, txn};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_handshake_has_to_be_done_in_time() {
    let mut pair = Pair::new(PairConfig::default());
    pair.cut();
    pair.advance(Duration::from_secs(9));
    assert_eq!((pair.client.connection.error(), pair.server.connection.error()), (None, None));
    pair.advance(SECOND);
    let error = Some(&PeerError::HandshakeTimeout { after: Duration::from_secs(10) });
    assert_eq!((pair.client.connection.error(), pair.server.connection.error()), (error, error));
}

#[test]
fn pings_keep_an_idle_connection_alive() {
    let mut pair = Pair::connected(PairConfig::default());
    for _ in 0..100 {
        pair.advance(Duration::from_secs(600));
    }
    assert_eq!((pair.client.connection.error(), pair.server.connection.error()), (None, None));
}

#[test]
fn a_peer_that_is_gone_is_given_up_after_its_silence() {
    let mut pair = Pair::connected(PairConfig::default());
    pair.cut();
    pair.advance(Duration::from_secs(59));
    assert_eq!((pair.client.connection.error(), pair.server.connection.error()), (None, None));
    pair.advance(2 * SECOND);
    let silent = PeerError::Silent { after: Duration::from_secs(60) };
    let error = Some(&silent);
    assert_eq!((pair.client.connection.error(), pair.server.connection.error()), (error, error));
    assert_eq!(silent.to_string(), "the peer has gone silent: nothing was heard of it for 60s");
    assert_eq!(pair.client.connection.request(Request::Status), Err(UsageError::Dead(silent)));
}

#[test]
fn a_ping_is_sent_once_and_early_calls_do_nothing() {
    let mut client = support::client();
    let due = client.poll_timeout().unwrap();
    assert_eq!(due, Time(Config::default().ping_after));
    client.handle_timeout(Time(due.0 - Duration::from_nanos(1))).unwrap();
    assert_eq!(said(&mut client), []);
    client.handle_timeout(due).unwrap();
    client.handle_timeout(due).unwrap();
    assert_eq!(said(&mut client), [Message::Ping { nonce: 1 }]);
    assert_eq!(client.poll_timeout(), Some(Time(Config::default().silence_limit)));
}

#[test]
fn a_process_that_was_stopped_pings_before_it_gives_up() {
    let mut pair = Pair::connected(PairConfig::default());
    pair.oversleep(Duration::from_secs(3600));
    pair.handle_timeouts();
    assert_eq!((pair.client.connection.error(), pair.server.connection.error()), (None, None));
    pair.run();
    pair.advance(Duration::from_secs(600));
    assert_eq!((pair.client.connection.error(), pair.server.connection.error()), (None, None));
}

#[test]
fn payload_counts_as_a_sign_of_life() {
    let mut server = support::server();
    receive(&mut server, &support::request(1, begin(1)));
    receive(&mut server, &support::request(2, support::store_blob(1)));
    let transfer = blobferry_protocol::TransferId(2);
    receive(&mut server, &Message::BlobStart { transfer, from: 0, end: 9, size: 9, digest: None });
    receive(&mut server, &Message::BlobChunk { transfer, offset: 0, len: 9 });
    let before = server.poll_timeout();
    let later = Time(Duration::from_secs(15));
    server.payload_moved(later, 0).unwrap();
    assert_eq!(server.handle_control(later, &[]), Ok(0));
    assert_eq!(server.poll_timeout(), before);
    server.payload_moved(later, 3).unwrap();
    assert_eq!(server.poll_timeout(), Some(later + Config::default().ping_after));
}

#[test]
fn time_that_goes_backwards_does_no_harm() {
    let mut client = support::client();
    let hour = Time(Duration::from_secs(3600));
    let pong = support::frame(&Message::Pong { nonce: 7 });
    client.handle_control(hour, &pong).unwrap();
    client.handle_control(Time::ZERO, &pong).unwrap();
    assert_eq!(client.poll_timeout(), Some(hour + Config::default().ping_after));
    client.handle_control(Time(Duration::MAX), &pong).unwrap();
    assert_eq!(client.poll_timeout(), Some(Time(Duration::MAX)));
}

#[test]
fn after_a_goodbye_nothing_begins() {
    for from_server in [false, true] {
        let mut pair = Pair::connected(PairConfig::default());
        let blob = BlobId { oid: Oid(1), tid: Tid(1) };
        let id = pair.client.connection.request(Request::SendBlob { blob, from: 0, upto: u64::MAX }).unwrap();
        pair.client.connection.request(begin(1)).unwrap();
        pair.run();
        while let Some(event) = pair.server.event() {
            if let server::Event::Request { id, request: Request::Begin { .. } } = event {
                pair.server.connection.reply(id, Ok(Reply::Done)).unwrap();
            }
        }
        pair.run();
        if from_server {
            pair.server.connection.goodbye().unwrap();
        } else {
            pair.client.connection.goodbye().unwrap();
        }
        pair.run();
        assert_eq!(pair.client.connection.request(Request::Status), Err(UsageError::Closing));
        let vote = pair.client.connection.request(Request::Vote { txn: txn(1) }).unwrap();
        pair.serve(id.into(), Source::new(&[5; 3_000_000])).unwrap();
        pair.server.connection.reply(vote, Ok(Reply::Voted)).unwrap_err();
        pair.run();
        pair.server.connection.reply(vote, Ok(Reply::Voted)).unwrap();
        pair.run();
        assert_eq!(pair.client.sink(id.into()).unwrap().bytes.len(), 3_000_000);
        assert!(!pair.client.connection.is_finished(), "a transaction that is voted for is under way");
        assert!(!pair.server.connection.is_finished());
        let finish = pair.client.connection.request(Request::Finish { txn: txn(1) }).unwrap();
        pair.run();
        pair.server.connection.reply(finish, Ok(Reply::Finished { tid: Tid(2) })).unwrap();
        assert!(!pair.server.connection.is_finished(), "the answer is not sent yet");
        pair.run();
        assert!(pair.client.connection.is_finished() && pair.server.connection.is_finished());
    }
}

#[test]
fn a_request_that_crosses_a_goodbye_gets_stopping() {
    let mut pair = Pair::connected(PairConfig::default());
    let id = pair.client.connection.request(Request::Status).unwrap();
    pair.server.connection.goodbye().unwrap();
    pair.run();
    assert_eq!(pair.client.event(), Some(client::Event::Goodbye));
    assert_eq!(pair.client.event(), Some(client::Event::Reply { id, result: Err(RequestError::Stopping) }));
    assert!(pair.client.connection.is_finished() && pair.server.connection.is_finished());
}

#[test]
fn a_refused_client_learns_why() {
    let mut pair =
        Pair::new(PairConfig { up: Link { fragments: vec![1], ..Link::default() }, ..PairConfig::default() });
    pair.run();
    assert_eq!(pair.server.event(), Some(server::Event::Hello { credentials: vec![] }));
    pair.server.connection.refuse(Refusal::Full).unwrap();
    assert_eq!(pair.server.connection.welcome(Tid(1)), Err(UsageError::NotConnected));
    assert!(!pair.server.connection.is_finished());
    pair.run();
    assert!(pair.server.connection.is_finished());
    assert_eq!(pair.client.event(), Some(client::Event::Refused(Refusal::Full)));
    assert_eq!(pair.client.connection.error(), Some(&PeerError::Refused(Refusal::Full)));
}

fn greeted(
    version_min: u16,
    version_max: u16,
    limits: Limits,
) -> (server::Connection, Result<usize, PeerError>) {
    let mut server = server::Connection::new(Time::ZERO, Config::default());
    let hello = Hello { magic: MAGIC, version_min, version_max, limits, credentials: b"me".to_vec() };
    let result = server.handle_control(Time::ZERO, &support::frame(&Message::Hello(hello)));
    (server, result)
}

#[test]
fn the_highest_version_that_both_speak_is_chosen() {
    for (min, max) in [(0, 1), (1, 1), (1, 9), (0, u16::MAX)] {
        let (mut server, _) = greeted(min, max, Limits::default());
        assert_eq!(events(&mut server), [server::Event::Hello { credentials: b"me".to_vec() }]);
        server.welcome(Tid(5)).unwrap();
        let welcome = Welcome { version: 1, limits: Limits::default(), last_tid: Tid(5) };
        assert_eq!(said(&mut server), [Message::Welcome(welcome)]);
        assert_eq!(server.welcome(Tid(5)), Err(UsageError::Connected));
        assert_eq!(server.refuse(Refusal::Full), Err(UsageError::Connected));
    }
}

#[test]
fn without_a_version_in_common_the_client_is_refused() {
    for (min, max) in [(2, 9), (0, 0), (2, 1)] {
        let (mut server, _) = greeted(min, max, Limits::default());
        assert_eq!(events(&mut server), []);
        assert_eq!(said(&mut server), [Message::Refuse(Refusal::Version { min: 1, max: 1 })]);
        assert!(server.is_finished());
    }
    let mut client = client::Connection::new(Time::ZERO, Config::default(), &[]);
    let welcome = Welcome { version: 2, limits: Limits::default(), last_tid: Tid(5) };
    assert_eq!(refuses(&mut client, &Message::Welcome(welcome)), PeerError::BadVersion(2));
}

#[test]
fn limits_that_nobody_can_work_with_are_refused() {
    let bad = [
        Limits { frame: 4095, ..Limits::MIN },
        Limits { chunk: 0, ..Limits::MIN },
        Limits { transfer_window: 0, ..Limits::MIN },
        Limits { connection_window: 0, ..Limits::MIN },
        Limits { transfers: 0, ..Limits::MIN },
        Limits { requests: 0, ..Limits::MIN },
        Limits { transactions: 0, ..Limits::MIN },
        Limits { control_queue: 4095, ..Limits::MIN },
    ];
    for limits in bad {
        assert_eq!(greeted(1, 1, limits).1, Err(PeerError::BadLimits(limits)));
        let mut client = client::Connection::new(Time::ZERO, Config::default(), &[]);
        let welcome = Welcome { version: 1, limits, last_tid: Tid(5) };
        assert_eq!(refuses(&mut client, &Message::Welcome(welcome)), PeerError::BadLimits(limits));
    }
    assert!(greeted(1, 1, Limits::MIN).1.is_ok());
}

#[test]
fn nothing_can_be_asked_before_the_handshake_is_done() {
    let mut client = client::Connection::new(Time::ZERO, Config::default(), &[]);
    assert_eq!(client.request(begin(1)), Err(UsageError::NotConnected));
    assert_eq!(client.upload(txn(1), Oid(1), Tid(0), vec![], 1, None), Err(UsageError::NotConnected));
    assert_eq!(client.goodbye(), Err(UsageError::NotConnected));
    assert_eq!(client.payload_moved(Time::ZERO, 1), Err(UsageError::NotConnected));
    let mut server = server::Connection::new(Time::ZERO, Config::default());
    assert_eq!(server.welcome(Tid(1)), Err(UsageError::NotConnected));
    assert_eq!(server.invalidate(Tid(1), &[Oid(1)]), Err(UsageError::NotConnected));
    assert_eq!((said(&mut client).len(), said(&mut server)), (1, vec![]));
}

#[test]
fn a_pair_stops_when_an_end_dies_with_bytes_under_way() {
    let mut pair = Pair::connected(PairConfig::default());
    pair.set_down(Link { delay: Duration::from_secs(100), ..Link::default() });
    pair.advance(Duration::from_secs(200));
    assert!(matches!(pair.client.connection.error(), Some(PeerError::Silent { .. })));
}
