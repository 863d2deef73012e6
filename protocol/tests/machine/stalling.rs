//! Transfers without progress, in virtual time: which side gives them up, when, and what remains.

use std::time::Duration;

use blobferry_protocol::testing::{Link, Pair, PairConfig, Source};
use blobferry_protocol::{
    BlobId, Config, Deadline, Limits, Message, Oid, Phase, Reply, Request, RequestError, RequestId, Tid,
    Time, TransferEvent, TransferId, client, server,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::receiving::{arrives, start, stop};
use crate::support::{self, begin, events, receive, request, said, store_blob, txn};

const TIMEOUT: Duration = Duration::from_secs(120);
const MOMENT: Duration = Duration::from_nanos(1);
const BLOB: BlobId = BlobId { oid: Oid(1), tid: Tid(1) };

fn late() -> RequestError {
    RequestError::Deadline { what: Deadline::Transfer, after_ms: 120_000 }
}

/// Returns settings with this transfer timeout.
fn within(transfer_timeout: Duration) -> Config {
    Config { transfer_timeout, ..Config::default() }
}

/// Returns settings of a side that never gives a transfer up, so that the other side does.
fn patient() -> Config {
    within(Duration::MAX)
}

/// Returns a pair with an upload of three windows under way, to a server whose sinks store nothing.
fn stalled_upload(client: Config, server: Config) -> (Pair, TransferId) {
    let mut pair = Pair::connected(PairConfig { client, server, ..PairConfig::default() });
    pair.server.hold_sinks();
    let begin = pair.client.connection.request(begin(1)).unwrap();
    pair.run();
    pair.server.connection.reply(begin, Ok(Reply::Done)).unwrap();
    pair.run();
    let transfer = pair.upload(txn(1), Oid(1), Tid(0), Source::new(&[7; 6 << 20])).unwrap();
    pair.run();
    while pair.client.event().is_some() || pair.server.event().is_some() {}
    (pair, transfer)
}

/// Returns a pair with a download of three windows under way, to a client whose sinks store
/// nothing.
fn stalled_download(client: Config, server: Config) -> (Pair, TransferId) {
    let mut pair = Pair::connected(PairConfig { client, server, ..PairConfig::default() });
    pair.client.hold_sinks();
    let whole = Request::SendBlob { blob: BLOB, from: 0, upto: u64::MAX };
    let transfer = pair.client.connection.request(whole).unwrap().into();
    pair.run();
    pair.serve(transfer, Source::new(&[7; 6 << 20])).unwrap();
    pair.run();
    while pair.client.event().is_some() || pair.server.event().is_some() {}
    (pair, transfer)
}

/// Advances the time to just before the timeout after the last byte, and then past it, with half a
/// second for the messages that follow.
fn advance(pair: &mut Pair, happened: impl Fn(&mut Pair) -> bool) {
    // The last bytes were sent and have arrived within the last few milliseconds.
    pair.advance(TIMEOUT - Duration::from_millis(500));
    assert!(!happened(pair), "it is too early");
    pair.advance(Duration::from_secs(1));
}

fn both_are_well(pair: &mut Pair) {
    let asked = pair.client.connection.request(Request::Status).unwrap();
    pair.run();
    pair.server.connection.reply(asked, Ok(Reply::Status(vec![]))).unwrap();
    pair.run();
    let answer = std::iter::from_fn(|| pair.client.event()).last();
    assert_eq!(answer, Some(client::Event::Reply { id: asked, result: Ok(Reply::Status(vec![])) }));
    assert_eq!((pair.client.connection.error(), pair.server.connection.error()), (None, None));
}

#[test]
fn a_server_gives_an_upload_up_that_gets_nowhere() {
    let (mut pair, transfer) = stalled_upload(patient(), Config::default());
    advance(&mut pair, |pair| pair.server.event().is_some());
    let aborted = TransferEvent::Aborted { transfer, reason: late() };
    assert_eq!(pair.server.event(), Some(server::Event::Transfer(aborted)));
    let answer = client::Event::Reply { id: transfer.into(), result: Err(late()) };
    assert_eq!((pair.client.event(), pair.client.event()), (Some(answer), None));
    assert_eq!(pair.client.connection.phase(txn(1)), Some(Phase::Doomed));
    let left = (pair.client.connection.requests_in_flight(), pair.server.connection.requests_in_flight());
    assert_eq!(left, (0, 0));
    both_are_well(&mut pair);
}

#[test]
fn a_client_gives_an_upload_up_that_gets_nowhere() {
    let (mut pair, transfer) = stalled_upload(Config::default(), patient());
    advance(&mut pair, |pair| pair.client.event().is_some());
    let answer = client::Event::Reply { id: transfer.into(), result: Err(late()) };
    assert_eq!((pair.client.event(), pair.client.event()), (Some(answer), None), "it is reported once");
    assert_eq!(pair.client.connection.phase(txn(1)), Some(Phase::Doomed));
    let aborted = TransferEvent::Aborted { transfer, reason: late() };
    assert_eq!(pair.server.event(), Some(server::Event::Transfer(aborted)));
    let left = (pair.client.connection.requests_in_flight(), pair.server.connection.requests_in_flight());
    assert_eq!(left, (0, 0));
    both_are_well(&mut pair);
}

#[test]
fn a_client_gives_a_download_up_that_gets_nowhere() {
    let (mut pair, transfer) = stalled_download(Config::default(), patient());
    advance(&mut pair, |pair| pair.client.event().is_some());
    let aborted = TransferEvent::Aborted { transfer, reason: late() };
    assert_eq!(pair.client.event(), Some(client::Event::Transfer(aborted)));
    assert_eq!(pair.client.event(), None, "it is reported once");
    assert_eq!(pair.server.event(), Some(server::Event::SendingAborted { transfer }));
    assert_eq!(pair.client.connection.requests_in_flight(), 0);
    both_are_well(&mut pair);
}

#[test]
fn a_server_gives_a_download_up_that_gets_nowhere() {
    let (mut pair, transfer) = stalled_download(patient(), Config::default());
    advance(&mut pair, |pair| pair.server.event().is_some());
    assert_eq!(pair.server.event(), Some(server::Event::SendingAborted { transfer }));
    assert!(!pair.server.connection.is_sending(transfer));
    let aborted = TransferEvent::Aborted { transfer, reason: late() };
    assert_eq!(pair.client.event(), Some(client::Event::Transfer(aborted)));
    both_are_well(&mut pair);
}

#[test]
fn an_upload_that_never_begins_is_given_up_on_time() {
    let mut server = support::server();
    receive(&mut server, &request(1, begin(1)));
    server.reply(RequestId(1), Ok(Reply::Done)).unwrap();
    receive(&mut server, &request(2, store_blob(1)));
    said(&mut server);
    events(&mut server);
    // The peer is alive.
    let soon = Time(TIMEOUT - Duration::from_secs(1));
    server.handle_control(soon, &support::frame(&Message::Pong { nonce: 1 })).unwrap();
    assert_eq!(server.poll_timeout(), Some(Time(TIMEOUT)));
    server.handle_timeout(Time(TIMEOUT - MOMENT)).unwrap();
    assert_eq!((events(&mut server), said(&mut server)), (vec![], vec![]));
    server.handle_timeout(Time(TIMEOUT)).unwrap();
    let transfer = TransferId(2);
    let aborted = TransferEvent::Aborted { transfer, reason: late() };
    assert_eq!(events(&mut server), [server::Event::Transfer(aborted)]);
    assert_eq!(said(&mut server), [Message::Reply { id: RequestId(2), result: Err(late()) }]);
    // The transfer begins after all, because the messages have crossed. It has no sink.
    receive(&mut server, &start(transfer, 10));
    arrives(&mut server, transfer, 0, 10);
    receive(&mut server, &stop(transfer));
    assert_eq!((events(&mut server), said(&mut server)), (vec![], vec![]));
    let idle = server.poll_timeout();
    assert_eq!(idle, Some(Time(TIMEOUT) + Config::default().ping_after), "nothing is watched any more");
}

#[test]
fn every_moved_or_stored_byte_restarts_the_timeout() {
    let mut server = support::server();
    receive(&mut server, &request(1, begin(1)));
    receive(&mut server, &request(2, store_blob(1)));
    let transfer = TransferId(2);
    receive(&mut server, &start(transfer, 100));
    receive(&mut server, &Message::BlobChunk { transfer, offset: 0, len: 50 });
    // A byte is moved just in time, again and again. Then bytes are stored, and nothing else
    // happens.
    let mut now = Time::ZERO;
    for _ in 0..50 {
        now = now + (TIMEOUT - MOMENT);
        server.handle_timeout(now).unwrap();
        server.payload_moved(now, 1).unwrap();
    }
    for stored in 1..=50 {
        now = now + (TIMEOUT - MOMENT);
        receive(&mut server, &Message::Pong { nonce: 1 });
        server.stored(transfer, stored).unwrap();
        let _ = server.poll_transmit(now, &mut Vec::new());
        server.handle_timeout(now).unwrap();
    }
    receive(&mut server, &Message::Pong { nonce: 1 });
    // A call of `stored` without more bytes is no progress.
    server.stored(transfer, 50).unwrap();
    server.payload_moved(now, 0).unwrap();
    let is_aborted =
        |event: &server::Event| matches!(event, server::Event::Transfer(TransferEvent::Aborted { .. }));
    assert!(!events(&mut server).iter().any(is_aborted));
    server.handle_timeout(now + TIMEOUT).unwrap();
    assert!(events(&mut server).iter().any(is_aborted));
}

#[test]
fn credit_restarts_the_timeout_only_if_it_is_new() {
    let small = Limits { transfer_window: 10, ..Limits::default() };
    let mut client = support::client_of(Config::default(), small);
    client.request(begin(1)).unwrap();
    let transfer = client.upload(txn(1), Oid(1), Tid(0), vec![], 1000, None).unwrap();
    said(&mut client);
    let half = Time(TIMEOUT / 2);
    let credit = |upto| support::frame(&Message::Credit { transfer, upto });
    client.handle_control(half, &credit(20)).unwrap();
    client.handle_control(Time(TIMEOUT), &credit(20)).unwrap();
    client.handle_timeout(half + (TIMEOUT - MOMENT)).unwrap();
    assert_eq!(events(&mut client), []);
    client.handle_timeout(half + TIMEOUT).unwrap();
    assert_eq!(events(&mut client), [client::Event::Reply { id: transfer.into(), result: Err(late()) }]);
}

#[test]
fn what_waits_for_this_sides_own_work_is_not_given_up() {
    // A sender that has sent all bytes, and has to compute the digest.
    let mut client = support::client();
    client.request(begin(1)).unwrap();
    client.upload(txn(1), Oid(1), Tid(0), vec![], 10, None).unwrap();
    said(&mut client);
    assert_eq!(client.poll_timeout(), Some(Time(Config::default().ping_after)));
    client.handle_control(Time(TIMEOUT), &support::frame(&Message::Pong { nonce: 1 })).unwrap();
    client.handle_timeout(Time(TIMEOUT)).unwrap();
    assert_eq!(events(&mut client), []);
    // A receiver that has received all bytes, and has to store them.
    let mut server = support::server();
    receive(&mut server, &request(1, begin(1)));
    receive(&mut server, &request(2, store_blob(1)));
    receive(&mut server, &start(TransferId(2), 10));
    arrives(&mut server, TransferId(2), 0, 10);
    receive(&mut server, &stop(TransferId(2)));
    events(&mut server);
    server.handle_control(Time(TIMEOUT), &support::frame(&Message::Pong { nonce: 1 })).unwrap();
    server.handle_timeout(Time(TIMEOUT)).unwrap();
    assert_eq!(events(&mut server), []);
}

/// Returns how many of fifty downloads fail on a link of five chunks a second, where a round takes
/// ten seconds.
fn failures_on_a_slow_link(timeout: Duration) -> usize {
    let limits = Limits { chunk: 1000, ..Limits::default() };
    let config = Config { limits, ..within(timeout) };
    let down = Link { delay: Duration::from_millis(200), capacity: 1, ..Link::default() };
    let mut pair =
        Pair::connected(PairConfig { client: config, server: config, down, ..PairConfig::default() });
    let whole = || Request::SendBlob { blob: BLOB, from: 0, upto: u64::MAX };
    let asked: Vec<TransferId> =
        (0..50).map(|_| pair.client.connection.request(whole()).unwrap().into()).collect();
    pair.run();
    for transfer in &asked {
        pair.serve(*transfer, Source::new(&[7; 5000])).unwrap();
    }
    pair.advance(Duration::from_secs(200));
    let outcome = |transfer: &TransferId| pair.client.sink(*transfer).unwrap().outcome.clone().unwrap();
    asked.iter().filter(|transfer| outcome(transfer).is_err()).count()
}

#[test]
fn transfers_that_share_a_slow_link_are_not_given_up() {
    assert_eq!(failures_on_a_slow_link(Duration::from_secs(11)), 0);
    assert!(failures_on_a_slow_link(Duration::from_secs(9)) > 0, "or this test shows nothing");
}

#[test]
fn machines_that_were_asleep_go_on_where_they_were() {
    for (mut pair, transfer) in [
        stalled_upload(Config::default(), Config::default()),
        stalled_download(Config::default(), Config::default()),
    ] {
        pair.oversleep(Duration::from_secs(3600));
        pair.handle_timeouts();
        pair.server.release_sinks();
        pair.client.release_sinks();
        pair.advance(Duration::from_secs(1));
        let sink = pair.server.sink(transfer).or(pair.client.sink(transfer)).unwrap();
        assert!(matches!(sink.outcome, Some(Ok(_))), "{:?}", sink.outcome);
    }
}

#[test]
fn a_transfer_that_is_over_is_not_waited_for() {
    let (mut pair, transfer) = stalled_download(Config::default(), Config::default());
    pair.client.connection.cancel(transfer.into()).unwrap();
    pair.run();
    let (mut other, _) = stalled_upload(Config::default(), Config::default());
    other.client.connection.request(Request::Abort { txn: txn(1) }).unwrap();
    other.run();
    for mut pair in [pair, other] {
        while pair.client.event().is_some() || pair.server.event().is_some() {}
        pair.advance(3 * TIMEOUT);
        assert_eq!((pair.client.event(), pair.server.event()), (None, None));
    }
}

/// One step of a download: after this time, the client's sink stores this number of bytes.
type Takes = Vec<(u64, bool)>;

/// Returns when the download was given up, if it was, and the number of bytes that had arrived by
/// then.
fn run(takes: &Takes, timeout: Duration) -> (Option<Time>, usize) {
    let (mut pair, transfer) = stalled_download(within(timeout), patient());
    for (seconds, takes) in takes {
        for _ in 0..*seconds {
            pair.advance(Duration::from_secs(1));
            if let Some(client::Event::Transfer(TransferEvent::Aborted { .. })) = pair.client.event() {
                return (Some(pair.now()), pair.client.sink(transfer).unwrap().bytes.len());
            }
        }
        if *takes {
            pair.client.release_sinks();
            pair.client.hold_sinks();
            pair.run();
        }
    }
    (None, pair.client.sink(transfer).unwrap().bytes.len())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_download_is_given_up_only_without_progress(
        takes in vec((1u64..30, any::<bool>()), 0..6),
        seconds in 5u64..40,
    ) {
        // The events take milliseconds, and the test checks every second: the timeout lies in
        // between.
        let timeout = Duration::from_secs(seconds) + Duration::from_millis(500);
        let (given_up, bytes) = run(&takes, timeout);
        prop_assert_eq!((given_up, bytes), run(&takes, timeout), "the same again");
        // The window is full while the sink stores nothing. Storing it opens it again, up to the
        // end.
        let (mut idle, mut passed, mut windows, mut expected) = (0, 0, 1, None);
        for (waits, takes) in &takes {
            if windows == 3 {
                break;
            }
            if idle + waits > seconds {
                expected = Some(passed + seconds + 1 - idle);
                break;
            }
            (idle, passed) = (idle + waits, passed + waits);
            if *takes {
                (idle, windows) = (0, windows + 1);
            }
        }
        prop_assert_eq!(given_up.map(|at| at.0.as_secs()), expected);
        prop_assert_eq!(bytes, windows << 21);
    }
}
