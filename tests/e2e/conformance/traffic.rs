//! Concurrent work on one connection: transfers in both directions, small calls between them,
//! pings.

use std::thread::scope;
use std::time::Duration;

use blobferry_protocol::{BlobId, Tid};
use blobferry_session::client::{BlobSource, ClientConfig};

use super::world::{Pair, World};
use crate::support::bytes;
use crate::throttled_proxy::{DOWN, ThrottledProxy};

for_every_pair!(
    small_calls_are_answered_between_many_transfers,
    blobs_go_both_ways_at_once,
    stuck_download_blocks_no_other_client,
    idle_connection_is_kept_alive_by_pings,
    thousand_calls_from_ten_threads_are_all_answered,
);

fn small_calls_are_answered_between_many_transfers(pair: &Pair) {
    let world = World::new(pair);
    let (writer, reader) = (world.client("writer"), world.client("reader"));
    let mut transaction = writer.begin();
    let oids = writer.new_oids(30).unwrap();
    scope(|scope| {
        for oid in &oids {
            let (transaction, source) = (&transaction, BlobSource::bytes(bytes(&oid.to_string(), 500_000)));
            scope.spawn(move || transaction.store_blob(*oid, Tid::ZERO, Vec::new(), source).unwrap());
            assert!(writer.status().is_ok());
        }
    });
    let tid = transaction.commit().unwrap();
    scope(|scope| {
        for oid in &oids {
            let (reader, blob) = (&reader, BlobId { oid: *oid, tid });
            scope.spawn(move || {
                let cached = reader.load_blob(blob).unwrap();
                assert!(std::fs::read(cached.path()).unwrap() == bytes(&blob.oid.to_string(), 500_000));
            });
        }
        for _ in 0..50 {
            assert_eq!(reader.counter("commits"), 1);
        }
    });
    assert_eq!(reader.counter("blobs_sent"), 30);
}

fn blobs_go_both_ways_at_once(pair: &Pair) {
    const EACH: usize = 10;
    let world = World::new(pair);
    let client = world.client("cache");
    let existing: Vec<_> = (0..EACH)
        .map(|n| client.store(BlobSource::bytes(bytes(&format!("existing {n}"), 700_000))))
        .collect();
    let stored = scope(|scope| {
        let storing: Vec<_> = (0..EACH)
            .map(|n| {
                let (client, source) = (&client, BlobSource::bytes(bytes(&format!("new {n}"), 700_000)));
                scope.spawn(move || client.store(source))
            })
            .collect();
        for (n, blob) in existing.into_iter().enumerate() {
            let client = &client;
            scope.spawn(move || {
                let cached = client.load_blob(blob).unwrap();
                assert!(std::fs::read(cached.path()).unwrap() == bytes(&format!("existing {n}"), 700_000));
            });
        }
        storing.into_iter().map(|storing| storing.join().unwrap()).collect::<Vec<_>>()
    });
    for (n, blob) in stored.into_iter().enumerate() {
        let cached = client.load_blob(blob).unwrap();
        assert!(std::fs::read(cached.path()).unwrap() == bytes(&format!("new {n}"), 700_000));
    }
}

fn stuck_download_blocks_no_other_client(pair: &Pair) {
    let world = World::new(pair);
    let (free, proxy) = (world.client("free"), ThrottledProxy::to(world.address()));
    let stuck = world.client_at(&proxy.address, "stuck");
    let blob = free.store(BlobSource::bytes(bytes("blob", 8_000_000)));
    proxy.limit(DOWN, 1_000_000);
    scope(|scope| {
        let loading = scope.spawn(|| stuck.load_blob(blob).unwrap());
        proxy.wait_until_held();
        // The server cannot send more to the stuck client, and serves another one.
        free.put(free.new_oid(), Tid::ZERO, "meanwhile");
        assert!(std::fs::read(free.load_blob(blob).unwrap().path()).unwrap() == bytes("blob", 8_000_000));
        proxy.open();
        assert_eq!(loading.join().unwrap().size(), 8_000_000);
    });
}

fn idle_connection_is_kept_alive_by_pings(pair: &Pair) {
    // Both sides send a ping after 1 ms of silence.
    let ping_soon = |config: &mut blobferry_protocol::Config| config.ping_after = Duration::from_millis(1);
    let world = World::serving(pair, |config| ping_soon(&mut config.connection));
    let mut config = ClientConfig::default();
    ping_soon(&mut config.connection);
    let proxy = ThrottledProxy::to(world.address());
    let client = world.connect(&proxy.address, world.cache("cache"), config).unwrap();
    let before = proxy.passed();
    // No call is made, and yet bytes pass in both directions.
    for direction in [0, 1] {
        proxy.wait_until_passed(direction, before[direction] + 1000);
    }
    assert!(client.status().is_ok());
}

fn thousand_calls_from_ten_threads_are_all_answered(pair: &Pair) {
    let world = World::new(pair);
    let client = world.client("cache");
    let oids = client.new_oids(10).unwrap();
    for (n, oid) in oids.iter().enumerate() {
        client.put(*oid, Tid::ZERO, n.to_string());
    }
    scope(|scope| {
        for (n, oid) in oids.iter().enumerate() {
            let client = client.another();
            scope.spawn(move || {
                for _ in 0..100 {
                    assert_eq!(client.load(*oid).unwrap().data, n.to_string().as_bytes());
                }
            });
        }
    });
}
