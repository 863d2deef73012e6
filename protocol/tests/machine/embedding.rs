//! What a program that embeds the crate relies on: threads, generic loops, and the simulated links
//! of `testing`.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use blobferry_protocol::connection::{Connection, Side};
use blobferry_protocol::testing::{Link, LinkClock, LinkEnd, Pair, PairConfig, Source};
use blobferry_protocol::wire::{DecodeError, EncodeError};
use blobferry_protocol::{
    BlobId, Config, Digest, Limits, Message, Oid, ParseBlobIdError, ParseIdError, PeerError, Request,
    RequestError, RequestId, Tid, TransferId, TxnId, UsageError, buffered, client, server,
};

use crate::support::{begin, txn};

#[test]
fn public_types_are_send_and_sync() {
    fn check<T: Send + Sync + 'static>() {}
    check::<client::Connection>();
    check::<server::Connection>();
    check::<client::Event>();
    check::<server::Event>();
    check::<Message>();
    check::<(Config, Limits)>();
    check::<(Oid, Tid, BlobId, TxnId, Digest, RequestId, TransferId)>();
    check::<(PeerError, UsageError, RequestError)>();
    check::<(EncodeError, DecodeError, ParseIdError, ParseBlobIdError)>();
    check::<(Pair, Link, LinkEnd, LinkClock)>();
}

/// Runs one round of a run loop of either side over one end of a link.
fn turn<S: Side>(connection: &mut Connection<S>, end: &mut LinkEnd, clock: &LinkClock) -> Vec<S::Event> {
    let (mut out, mut events) = (Vec::new(), Vec::new());
    buffered::transmit(connection, clock.now(), &mut out, usize::MAX, |_, _| Ok(()));
    end.write_all(&out).unwrap();
    let mut bytes = [0; 1000];
    match end.read(&mut bytes) {
        Ok(read) => {
            let received = buffered::receive(
                connection,
                clock.now(),
                &bytes[..read],
                &mut events,
                |events, _, event| events.push(event),
                |_, _, _| {},
            );
            received.unwrap();
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    assert!(events.iter().all(|event| S::transfer_event(event).is_none()));
    events
}

#[test]
fn a_generic_run_loop_works_over_the_ends_of_a_link() {
    let slow = Link { fragments: vec![3], ..Link::default() };
    let (mut client_end, mut server_end, clock) = Link::default().pair(slow);
    let mut client = client::Connection::new(clock.now(), Config::default(), b"key");
    let mut server = server::Connection::new(clock.now(), Config::default());
    while !client.is_connected() {
        for event in turn(&mut server, &mut server_end, &clock) {
            assert_eq!(event, server::Event::Hello { credentials: b"key".to_vec() });
            server.welcome(Tid::ZERO).unwrap();
        }
        turn(&mut client, &mut client_end, &clock);
        clock.advance(Duration::from_millis(1));
        assert!(clock.now().0 < Duration::from_secs(1));
    }
    client.goodbye().unwrap();
    turn(&mut client, &mut client_end, &clock);
    assert_eq!((client.requests_in_flight(), client.is_finished()), (0, true));
}

#[test]
fn a_cut_link_ends_reads_and_breaks_writes() {
    let (mut first, mut second, clock) = Link { capacity: 3, ..Link::default() }.pair(Link::default());
    assert_eq!(first.write(b"abc").unwrap(), 3);
    assert_eq!(first.write(b"d").unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(clock.next_arrival(), Some(clock.now() + Duration::from_millis(1)));
    clock.cut();
    assert_eq!(second.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(second.write(b"e").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_pair_reconnects_and_numbers_requests_above_the_old_ones() {
    let mut pair = Pair::connected(PairConfig::default());
    pair.client.connection.request(begin(1)).unwrap();
    let old = pair.client.connection.request(Request::Status).unwrap();
    pair.cut();
    pair.run();
    assert_eq!(pair.server.event(), None, "the link is cut");
    pair.reconnect();
    let id = pair.client.connection.request(begin(1)).unwrap();
    assert!(id > old);
    pair.run();
    assert_eq!(pair.server.event(), Some(server::Event::Request { id, request: begin(1) }));
    let transfer = pair.upload(txn(1), Oid(1), Tid::ZERO, Source::new(b"a ferry")).unwrap();
    pair.run();
    assert_eq!(pair.server.sink(transfer).map(|sink| sink.bytes.as_slice()), Some(&b"a ferry"[..]));
}
