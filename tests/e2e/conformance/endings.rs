//! How connections end: closed by the client, stopped by the server, or cut, with and without
//! pending work.

use std::io::Read;
use std::net::TcpStream;
use std::thread::{scope, spawn};
use std::time::Duration;

use blobferry_protocol::{Outcome, Tid};
use blobferry_session::client::{BlobSource, CallError, ClientConfig, ConnectError};

use super::transport::Client;
use super::world::{Pair, World};
use crate::support::bytes;
use crate::throttled_proxy::{DOWN, ThrottledProxy, UP};

for_every_pair!(
    stopping_server_completes_transfers_and_refuses_new_work,
    stopping_server_lets_a_voted_transaction_finish,
    stopping_server_waits_no_longer_than_its_grace,
    dropped_server_disconnects_its_clients,
    committed_data_survives_a_server_restart,
    broken_connection_fails_its_download_and_leaves_nothing,
    broken_upload_leaves_nothing,
    outcome_of_an_unanswered_commit_can_be_queried,
    closed_client_finishes_pending_work_and_starts_none,
    clones_share_a_connection_until_the_last_is_dropped,
    silent_connection_is_closed,
    connecting_without_a_server_is_an_error,
);

/// Asserts that a client's calls fail because it is disconnected.
fn assert_disconnected(client: &dyn Client) {
    let status = client.status();
    assert!(matches!(status, Err(CallError::Disconnected { .. })), "{status:?}");
    let transaction = client.begin();
    let stored =
        transaction.store_blob(blobferry_protocol::Oid(1), Tid::ZERO, Vec::new(), BlobSource::bytes(""));
    assert!(matches!(stored, Err(CallError::Disconnected { .. })), "{stored:?}");
}

fn stopping_server_completes_transfers_and_refuses_new_work(pair: &Pair) {
    let mut world = World::serving(pair, |config| config.grace = Duration::from_secs(600));
    let proxy = ThrottledProxy::to(world.address());
    let (idle, loader) = (world.client("idle"), world.client_at(&proxy.address, "loader"));
    let blob = idle.store(BlobSource::bytes(bytes("blob", 8_000_000)));
    proxy.limit(DOWN, 1_000_000);
    let loading = spawn({
        let loader = loader.clone();
        move || loader.load_blob(blob)
    });
    proxy.wait_until_held();
    let invalidations = idle.invalidations();
    let server = world.take_server();
    let stopping = spawn(move || server.stop());
    // The server first closes the idle connection; from then on it accepts no new ones.
    invalidations.for_each(drop);
    assert_disconnected(&*idle);
    let late = world.connect(world.address(), world.cache("late"), ClientConfig::default());
    assert!(matches!(late, Err(ConnectError::Connect { .. })), "{late:?}");
    assert!(!stopping.is_finished());
    proxy.open();
    let cached = loading.join().unwrap().unwrap();
    assert!(std::fs::read(cached.path()).unwrap() == bytes("blob", 8_000_000));
    stopping.join().unwrap();
}

fn stopping_server_lets_a_voted_transaction_finish(pair: &Pair) {
    let mut world = World::serving(pair, |config| config.grace = Duration::from_secs(600));
    let (idle, voter) = (world.client("idle"), world.client("voter"));
    let oids = voter.new_oids(2).unwrap();
    let mut voted = voter.begin();
    voted.store_blob(oids[0], Tid::ZERO, Vec::new(), BlobSource::bytes(bytes("blob", 100_000))).unwrap();
    voted.vote().unwrap();
    let invalidations = idle.invalidations();
    let server = world.take_server();
    let stopping = spawn(move || server.stop());
    invalidations.for_each(drop);
    let id = voted.id();
    let tid = voted.finish().unwrap();
    stopping.join().unwrap();
    world.serve_again();
    let again = world.client("again");
    assert_eq!(again.outcome(id).unwrap(), Outcome::Committed { tid });
    assert_eq!(again.load(oids[0]).unwrap().tid, tid);
}

fn stopping_server_waits_no_longer_than_its_grace(pair: &Pair) {
    let mut world = World::serving(pair, |config| config.grace = Duration::from_millis(10));
    let client = world.client("cache");
    let oid = client.new_oid();
    let mut voted = client.begin();
    voted.store(oid, Tid::ZERO, b"never finished".to_vec()).unwrap();
    voted.vote().unwrap();
    let invalidations = client.invalidations();
    world.take_server().stop();
    // Wait until the client knows. A request sent earlier would have an unknown outcome.
    invalidations.for_each(drop);
    let finished = voted.finish();
    assert!(matches!(finished, Err(CallError::Disconnected { .. })), "{finished:?}");
    world.serve_again();
    world.client("again").put(oid, Tid::ZERO, "its lock is gone");
}

fn dropped_server_disconnects_its_clients(pair: &Pair) {
    let mut world = World::new(pair);
    let client = world.client("cache");
    let invalidations = client.invalidations();
    drop(world.take_server());
    invalidations.for_each(drop);
    assert_disconnected(&*client);
    client.close();
}

fn committed_data_survives_a_server_restart(pair: &Pair) {
    let mut world = World::new(pair);
    let client = world.client("cache");
    let small = client.store(BlobSource::bytes(bytes("small", 1000)));
    let large = client.store(BlobSource::bytes(bytes("large", 200_000)));
    let open = client.begin();
    open.store(client.new_oid(), Tid::ZERO, b"never committed".to_vec()).unwrap();
    world.take_server().stop();
    assert_disconnected(&*client);
    world.serve_again();
    let again = world.client("again");
    assert_eq!(again.last_tid(), large.tid);
    for (blob, whole) in [(small, bytes("small", 1000)), (large, bytes("large", 200_000))] {
        assert!(std::fs::read(again.load_blob(blob).unwrap().path()).unwrap() == whole);
    }
    assert_eq!(again.outcome(open.id()).unwrap(), Outcome::NotCommitted);
    assert!(!again.new_oids(10).unwrap().contains(&large.oid));
}

fn broken_connection_fails_its_download_and_leaves_nothing(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let client = world.client_at(&proxy.address, "cache");
    let blob = client.store(BlobSource::bytes(bytes("blob", 3_000_000)));
    proxy.limit(DOWN, 1_000_000);
    let loading = spawn({
        let client = client.clone();
        move || client.load_blob(blob)
    });
    proxy.wait_until_held();
    proxy.cut();
    let lost = loading.join().unwrap();
    assert!(matches!(lost, Err(CallError::Disconnected { .. })), "{lost:?}");
    assert_disconnected(&*client);
    assert_eq!(world.cached("cache").len(), 0);
    // Another client finds a clean cache and loads the blob.
    let again = world.client("cache");
    let cached = again.load_blob(blob).unwrap();
    assert!(std::fs::read(cached.path()).unwrap() == bytes("blob", 3_000_000));
}

fn broken_upload_leaves_nothing(pair: &Pair) {
    let mut world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.client_at(&proxy.address, "cache"), world.client("other"));
    let (oid, file) = (client.new_oid(), world.file("file", bytes("file", 3_000_000)));
    let transaction = client.begin();
    proxy.limit(UP, 1_000_000);
    scope(|scope| {
        let storing = scope
            .spawn(|| transaction.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::moved(&file)).map(drop));
        proxy.wait_until_held();
        proxy.cut();
        let lost = storing.join().unwrap();
        assert!(matches!(lost, Err(CallError::Disconnected { .. })), "{lost:?}");
    });
    assert_eq!(other.outcome(transaction.id()).unwrap(), Outcome::NotCommitted);
    other.put(oid, Tid::ZERO, "another client's");
    drop(transaction);
    client.close();
    assert_eq!(world.cached("cache").len(), 0);
    world.take_server().stop();
    world.wait_for_no_leftovers();
}

fn outcome_of_an_unanswered_commit_can_be_queried(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.client_at(&proxy.address, "cache"), world.client("other"));
    let oid = client.new_oid();
    let mut transaction = client.begin();
    transaction.store(oid, Tid::ZERO, b"committed".to_vec()).unwrap();
    transaction.vote().unwrap();
    let (id, mut invalidations) = (transaction.id(), other.invalidations());
    // From here on the client receives nothing.
    proxy.limit(DOWN, 0);
    let finishing = spawn(move || transaction.finish());
    let tid = invalidations.next().unwrap().tid;
    proxy.wait_until_held();
    proxy.cut();
    let lost = finishing.join().unwrap();
    assert!(matches!(lost, Err(CallError::OutcomeUnknown { txn, .. }) if txn == id), "{lost:?}");
    assert_eq!(world.client("again").outcome(id).unwrap(), Outcome::Committed { tid });
}

fn closed_client_finishes_pending_work_and_starts_none(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let client = world.client_at(&proxy.address, "cache");
    let blob = client.store(BlobSource::bytes(bytes("blob", 8_000_000)));
    proxy.limit(DOWN, 1_000_000);
    let loading = spawn({
        let client = client.clone();
        move || client.load_blob(blob)
    });
    proxy.wait_until_held();
    let closing = spawn({
        let client = client.clone();
        move || client.close()
    });
    proxy.open();
    let cached = loading.join().unwrap().unwrap();
    assert!(std::fs::read(cached.path()).unwrap() == bytes("blob", 8_000_000));
    closing.join().unwrap();
    assert!(client.status().is_err());
}

fn clones_share_a_connection_until_the_last_is_dropped(pair: &Pair) {
    let world = World::new(pair);
    let (other, client) = (world.client("other"), world.client("cache"));
    let clone = client.clone();
    assert_eq!(other.counter("connections"), 2);
    drop(client);
    assert!(clone.status().is_ok());
    drop(clone);
    // The server may need a moment to notice the closed connection.
    while other.counter("connections") > 1 {}
    assert_eq!(other.counter("accepted"), 2);
}

fn silent_connection_is_closed(pair: &Pair) {
    let short_timeout = |config: &mut blobferry_session::server::ServerConfig| {
        config.connection.handshake_timeout = Duration::from_millis(10);
    };
    let world = World::serving(pair, short_timeout);
    let mut silent = TcpStream::connect(world.address()).unwrap();
    assert_eq!(silent.read_to_end(&mut Vec::new()).unwrap(), 0);
}

fn connecting_without_a_server_is_an_error(pair: &Pair) {
    let mut world = World::new(pair);
    world.take_server().stop();
    for nowhere in [world.address(), "not an address"] {
        let lost = world.connect(nowhere, world.cache("cache"), ClientConfig::default());
        assert!(matches!(lost, Err(ConnectError::Connect { .. })), "{lost:?}");
    }
}
