//! Recovery from lost connections: data that has arrived is not sent again, and every outcome is
//! determined.

use std::sync::{Arc, Mutex};
use std::thread::{scope, spawn};
use std::time::Duration;

use blobferry_protocol::{BlobId, Oid, Outcome, Tid};
use blobferry_session::client::{
    BlobSource, CallError, ClientConfig, ConnectionEvent, Invalidation, Reconnect, VoteError,
};

use super::transport::{Client, Transaction};
use super::world::{Pair, World};
use crate::support::bytes;
use crate::throttled_proxy::{DOWN, ThrottledProxy, UP};

for_every_pair!(
    interrupted_download_resumes_at_the_same_byte,
    interrupted_upload_resumes_at_the_same_byte,
    commit_with_lost_answer_returns_its_tid,
    finish_with_lost_answer_returns_its_tid,
    commit_without_any_answer_returns_its_tid,
    commit_that_never_arrived_is_resent,
    finish_that_never_arrived_is_not_committed,
    conflicts_found_while_disconnected_are_reported,
    conflicted_detached_transaction_expires,
    server_restart_ends_open_transactions,
    vote_does_not_outlive_its_connection,
    detached_transaction_is_aborted_at_its_timeout,
    closing_client_leaves_no_transaction,
    transaction_is_taken_over_from_a_half_open_connection,
    client_fails_over_to_the_next_address,
    calls_fail_after_timeout_and_work_after_reconnect,
    gap_in_invalidations_is_reported,
    closing_while_reconnecting_ends_the_client,
);

const SIZE: usize = 3_000_000;
/// Bytes that pass before the proxy is cut.
const PART: u64 = 1_000_000;

/// Waits until the server has only `other`'s connection left.
fn wait_until_alone(other: &dyn Client) {
    while other.counter("connections") > 1 {
        std::thread::yield_now();
    }
}

/// Waits until no transaction is open at the server and no bytes are staged.
fn wait_until_nothing_is_open(other: &dyn Client) {
    while other.counter("open") > 0 || other.counter("staged_bytes") > 0 {
        std::thread::yield_now();
    }
}

/// Cuts the proxy, and reopens it when the server has noticed.
fn interrupt(world: &World, proxy: &ThrottledProxy, other: &dyn Client) {
    proxy.cut();
    wait_until_alone(other);
    proxy.set_server(world.address());
}

/// Asserts that a blob has exactly these bytes.
fn assert_blob(client: &dyn Client, blob: BlobId, whole: &[u8]) {
    assert!(std::fs::read(client.load_blob(blob).unwrap().path()).unwrap() == whole);
}

fn interrupted_download_resumes_at_the_same_byte(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let whole = bytes("blob", SIZE);
    let blob = other.store(BlobSource::bytes(whole.clone()));
    proxy.limit(DOWN, PART);
    let offsets = Arc::new(Mutex::new(Vec::new()));
    let loading = spawn({
        let (client, offsets) = (client.clone(), offsets.clone());
        move || {
            client.load_blob_with(blob, Box::new(move |progress| offsets.lock().unwrap().push(progress.done)))
        }
    });
    proxy.wait_until_held();
    proxy.cut();
    wait_until_alone(&*other);
    let before = other.counter("bytes_sent");
    proxy.set_server(world.address());
    let cached = loading.join().unwrap().unwrap();
    assert!(std::fs::read(cached.path()).unwrap() == whole);
    // The offset of the resumption is reported twice: at the end of the first part and at the start
    // of the rest.
    let offsets = offsets.lock().unwrap();
    let from = offsets.windows(2).find(|pair| pair[0] == pair[1]).map_or(0, |pair| pair[0]);
    assert!(from > PART / 2, "{offsets:?}");
    assert_eq!(other.counter("bytes_sent") - before, SIZE as u64 - from);
    assert_eq!(client.load_range(blob, 5..9).unwrap(), &whole[5..9]);
}

fn interrupted_upload_resumes_at_the_same_byte(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let oids = client.new_oids(3).unwrap();
    let names = ["bytes", "streamed", "moved"];
    let wholes = names.map(|name| bytes(name, SIZE));
    let files = [1, 2].map(|i| world.file(names[i], &wholes[i]));
    let sources =
        [BlobSource::bytes(wholes[0].clone()), BlobSource::streamed(&files[0]), BlobSource::moved(&files[1])];
    let mut transaction = client.begin();
    proxy.limit(UP, PART);
    scope(|scope| {
        let transaction = &*transaction;
        let store =
            |(&oid, source)| scope.spawn(move || transaction.store_blob(oid, Tid::ZERO, Vec::new(), source));
        let storing: Vec<_> = oids.iter().zip(sources).map(store).collect();
        // A part of each blob has arrived.
        proxy.wait_until_held();
        interrupt(&world, &proxy, &*other);
        for storing in storing {
            storing.join().unwrap().unwrap();
        }
    });
    assert_eq!(
        other.counter("bytes_received"),
        3 * SIZE as u64,
        "bytes that had arrived were not sent again"
    );
    let tid = transaction.commit().unwrap();
    for (oid, whole) in oids.into_iter().zip(wholes) {
        assert_blob(&*other, BlobId { oid, tid }, &whole);
        assert_blob(&*client, BlobId { oid, tid }, &whole);
    }
}

/// Commits a blob, loses all answers of the connection, and checks that the client still gets the
/// tid.
fn commit_with_lost_answer(
    pair: &Pair,
    commit: impl FnOnce(Box<dyn Transaction>) -> Result<Tid, CallError> + Send + 'static,
    vote: bool,
) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let file = world.file("file", bytes("file", 100_000));
    let (oid, mut transaction) = (client.new_oid(), client.begin());
    transaction.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::moved(&file)).unwrap();
    if vote {
        transaction.vote().unwrap();
    }
    let (id, mut invalidations) = (transaction.id(), other.invalidations());
    proxy.limit(DOWN, 0);
    let committing = spawn(move || commit(transaction));
    let tid = invalidations.next().unwrap().tid;
    proxy.wait_until_held();
    interrupt(&world, &proxy, &*other);
    assert_eq!(committing.join().unwrap().unwrap(), tid);
    assert_eq!(other.outcome(id).unwrap(), Outcome::Committed { tid });
    assert!(client.last_tid() >= tid);
    assert_eq!(world.cached("cache").len(), 1, "its file is the cached blob");
    assert_blob(&*client, BlobId { oid, tid }, &bytes("file", 100_000));
    assert_eq!(other.counter("blobs_sent"), 0);
}

fn commit_with_lost_answer_returns_its_tid(pair: &Pair) {
    let commit = |mut transaction: Box<dyn Transaction>| {
        transaction.commit().map_err(|error| match error {
            VoteError::Call(error) => error,
            VoteError::Conflict(_) => panic!("{error}"),
        })
    };
    commit_with_lost_answer(pair, commit, false);
}

fn finish_with_lost_answer_returns_its_tid(pair: &Pair) {
    commit_with_lost_answer(pair, |transaction| transaction.finish(), true);
}

fn commit_without_any_answer_returns_its_tid(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    // Not even the answer to `Begin` arrives.
    proxy.limit(DOWN, 0);
    let mut transaction = client.begin();
    let id = transaction.id();
    let committing = spawn(move || transaction.commit());
    while other.counter("commits") == 0 {
        std::thread::yield_now();
    }
    proxy.wait_until_held();
    interrupt(&world, &proxy, &*other);
    let tid = committing.join().unwrap().unwrap();
    assert_eq!(other.outcome(id).unwrap(), Outcome::Committed { tid });
    assert_eq!(other.counter("commits"), 1);
}

fn commit_that_never_arrived_is_resent(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let (oid, mut transaction) = (client.new_oid(), client.begin());
    transaction.store(oid, Tid::ZERO, b"record".to_vec()).unwrap();
    let id = transaction.id();
    proxy.limit(UP, 0);
    let committing = spawn(move || transaction.commit());
    proxy.wait_until_held();
    interrupt(&world, &proxy, &*other);
    let tid = committing.join().unwrap().unwrap();
    assert_eq!(other.outcome(id).unwrap(), Outcome::Committed { tid });
    assert_eq!(other.load(oid).unwrap().tid, tid);
}

fn finish_that_never_arrived_is_not_committed(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let (oid, mut transaction) = (client.new_oid(), client.begin());
    transaction.store(oid, Tid::ZERO, b"record".to_vec()).unwrap();
    transaction.vote().unwrap();
    let id = transaction.id();
    proxy.limit(UP, 0);
    let finishing = spawn(move || transaction.finish());
    proxy.wait_until_held();
    interrupt(&world, &proxy, &*other);
    let finished = finishing.join().unwrap();
    assert!(matches!(finished, Err(CallError::NotCommitted { txn }) if txn == id), "{finished:?}");
    assert_eq!(other.outcome(id).unwrap(), Outcome::NotCommitted);
    other.put(oid, Tid::ZERO, "another client's");
}

/// State after a commit that met a conflict while its connection was lost.
struct Conflicted {
    transaction: Box<dyn Transaction>,
    result: Result<Tid, VoteError>,
    oid: Oid,
    /// Kept alive for the transaction.
    _open: (ThrottledProxy, Box<dyn Client>),
}

/// Commits while another transaction holds the locks, and cuts the connection meanwhile.
///
/// The other transaction then commits, which is a conflict. `before_reconnect` runs before the
/// client can reconnect.
fn conflict_while_disconnected(
    world: &World,
    before_reconnect: impl FnOnce(&ThrottledProxy, &dyn Client),
) -> Conflicted {
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let file = world.file("file", bytes("file", 100_000));
    let (oid, mut first, mut second) = (client.new_oid(), other.begin(), client.begin());
    second.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::streamed(&file)).unwrap();
    first.store(oid, Tid::ZERO, b"first".to_vec()).unwrap();
    first.vote().unwrap();
    let requests = other.counter("requests");
    let committing = spawn(move || {
        let result = second.commit();
        (second, result)
    });
    // Each `status` request counts as well.
    let mut queries = 1;
    while other.counter("requests") == requests + queries {
        queries += 1;
    }
    proxy.cut();
    wait_until_alone(&*other);
    first.finish().unwrap();
    before_reconnect(&proxy, &*other);
    proxy.set_server(world.address());
    let (second, result) = committing.join().unwrap();
    Conflicted { transaction: second, result, oid, _open: (proxy, client) }
}

fn conflicts_found_while_disconnected_are_reported(pair: &Pair) {
    let world = World::new(pair);
    let Conflicted { mut transaction, result, oid, _open } = conflict_while_disconnected(&world, |_, _| {});
    let Err(VoteError::Conflict(conflicts)) = result else { panic!("{result:?}") };
    assert_eq!(conflicts[0].oid, oid);
    transaction.store(oid, conflicts[0].committed, b"resolved".to_vec()).unwrap();
    transaction.commit().unwrap();
    assert_eq!(world.client("another").load(oid).unwrap().data, b"resolved");
}

fn conflicted_detached_transaction_expires(pair: &Pair) {
    let mut world = World::serving(pair, |config| config.detach_timeout = Duration::from_millis(10));
    let Conflicted { result, .. } =
        conflict_while_disconnected(&world, |_, other| wait_until_nothing_is_open(other));
    assert!(matches!(result, Err(VoteError::Call(CallError::NotCommitted { .. }))), "{result:?}");
    world.take_server().stop();
    world.wait_for_no_leftovers();
}

fn server_restart_ends_open_transactions(pair: &Pair) {
    let mut world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let client = world.reconnecting_client(&proxy.address, "cache");
    let (oids, file) = (client.new_oids(2).unwrap(), world.file("file", bytes("file", SIZE)));
    let (mut first, second) = (client.begin(), client.begin());
    first.store(oids[0], Tid::ZERO, b"record".to_vec()).unwrap();
    proxy.limit(UP, PART);
    scope(|scope| {
        let storing =
            scope.spawn(|| second.store_blob(oids[1], Tid::ZERO, Vec::new(), BlobSource::moved(&file)));
        proxy.wait_until_held();
        proxy.cut();
        world.take_server().stop();
        world.wait_for_no_leftovers();
        world.serve_again();
        proxy.set_server(world.address());
        let lost = storing.join().unwrap();
        assert!(matches!(lost, Err(CallError::Disconnected { .. })), "{lost:?}");
    });
    let lost = first.commit();
    assert!(matches!(lost, Err(VoteError::Call(CallError::Disconnected { .. }))), "{lost:?}");
    for transaction in [first, second] {
        let id = transaction.id();
        drop(transaction);
        assert_eq!(client.outcome(id).unwrap(), Outcome::NotCommitted);
    }
    client.put(oids[0], Tid::ZERO, "the client goes on");
    client.close();
    assert_eq!(world.cached("cache").len(), 0);
}

fn vote_does_not_outlive_its_connection(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let (oid, mut transaction) = (client.new_oid(), client.begin());
    transaction.store(oid, Tid::ZERO, b"record".to_vec()).unwrap();
    transaction.vote().unwrap();
    proxy.cut();
    // Succeeds at once; no deadline is needed.
    other.put(oid, Tid::ZERO, "its lock is free");
    proxy.set_server(world.address());
    let id = transaction.id();
    let lost = transaction.finish();
    assert!(matches!(lost, Err(CallError::Disconnected { .. } | CallError::NotCommitted { .. })), "{lost:?}");
    assert_eq!(other.outcome(id).unwrap(), Outcome::NotCommitted);
    assert_eq!(other.counter("open"), 0);
}

fn detached_transaction_is_aborted_at_its_timeout(pair: &Pair) {
    let world = World::serving(pair, |config| config.detach_timeout = Duration::from_millis(10));
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let (oid, file) = (client.new_oid(), world.file("file", bytes("file", SIZE)));
    let transaction = client.begin();
    // The client has the answer to `Begin`; otherwise it could begin the transaction again.
    transaction.store(client.new_oid(), Tid::ZERO, Vec::new()).unwrap();
    proxy.limit(UP, PART);
    scope(|scope| {
        let storing =
            scope.spawn(|| transaction.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::moved(&file)));
        proxy.wait_until_held();
        // The server may not have processed the request yet.
        while other.counter("open") == 0 {}
        proxy.cut();
        wait_until_nothing_is_open(&*other);
        assert_eq!(other.counter("kept"), 0);
        world.wait_until_nothing_is_staged();
        proxy.set_server(world.address());
        let lost = storing.join().unwrap();
        assert!(matches!(lost, Err(CallError::Disconnected { .. })), "{lost:?}");
    });
    assert!(client.status().is_ok());
}

fn closing_client_leaves_no_transaction(pair: &Pair) {
    let world = World::new(pair);
    let (client, other) = (world.reconnecting_client(world.address(), "cache"), world.client("other"));
    let transaction = client.begin();
    let source = BlobSource::bytes(bytes("blob", 100_000));
    transaction.store_blob(client.new_oid(), Tid::ZERO, Vec::new(), source).unwrap();
    assert_eq!(other.counter("open"), 1);
    client.close();
    wait_until_alone(&*other);
    assert_eq!(other.counter("kept"), 0);
    wait_until_nothing_is_open(&*other);
}

fn transaction_is_taken_over_from_a_half_open_connection(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let oids = client.new_oids(2).unwrap();
    let mut transaction = client.begin();
    transaction.store(oids[0], Tid::ZERO, b"before".to_vec()).unwrap();
    proxy.limit(UP, PART);
    scope(|scope| {
        let source = BlobSource::bytes(bytes("blob", SIZE));
        let storing = scope.spawn(|| transaction.store_blob(oids[1], Tid::ZERO, Vec::new(), source));
        proxy.wait_until_held();
        assert_eq!(other.counter("connections"), 2);
        proxy.leave_half_open();
        storing.join().unwrap().unwrap();
    });
    assert_eq!(other.counter("bytes_received"), SIZE as u64);
    let tid = transaction.commit().unwrap();
    assert_eq!(other.load(oids[0]).unwrap().tid, tid);
    assert_blob(&*other, BlobId { oid: oids[1], tid }, &bytes("blob", SIZE));
    // The server closes the old connection.
    while other.counter("connections") > 2 {
        std::thread::yield_now();
    }
}

fn client_fails_over_to_the_next_address(pair: &Pair) {
    let world = World::new(pair);
    let (first, second) = (ThrottledProxy::to(world.address()), ThrottledProxy::to(world.address()));
    let (one, two) = (first.address.clone(), second.address.clone());
    let both = format!("{one},{two}");
    let client = world.reconnecting_client(&both, "cache");
    let mut events = client.connection_events();
    drop(first);
    assert!(client.status().is_ok());
    let event = events.next().unwrap();
    assert!(matches!(&event, ConnectionEvent::Lost { address, .. } if *address == one), "{event:?}");
    let event = events.next().unwrap();
    assert!(matches!(&event, ConnectionEvent::Failed { address, .. } if *address == one), "{event:?}");
    assert_eq!(events.next(), Some(ConnectionEvent::Connected { address: two.clone() }));
    // A new client also finds the second server. Closing the client ends its events.
    assert!(world.reconnecting_client(&both, "another").status().is_ok());
    client.close();
    assert_eq!(events.next(), None);
}

fn calls_fail_after_timeout_and_work_after_reconnect(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let reconnect = Reconnect { unreachable_timeout: Duration::ZERO, ..Reconnect::default() };
    let config = ClientConfig { reconnect: Some(reconnect), ..ClientConfig::default() };
    let client = world.connect(&proxy.address, world.cache("cache"), config).unwrap();
    let mut events = client.connection_events();
    let transaction = client.begin();
    transaction.store(client.new_oid(), Tid::ZERO, b"lost".to_vec()).unwrap();
    proxy.cut();
    while !matches!(events.next().unwrap(), ConnectionEvent::Unreachable { .. }) {}
    let lost = client.status();
    assert!(matches!(lost, Err(CallError::Disconnected { .. })), "{lost:?}");
    let lost = transaction.store(Oid(7), Tid::ZERO, b"lost".to_vec());
    assert!(matches!(lost, Err(CallError::Disconnected { .. })), "{lost:?}");
    proxy.set_server(world.address());
    while !matches!(events.next().unwrap(), ConnectionEvent::Connected { .. }) {}
    client.put(client.new_oid(), Tid::ZERO, "found");
    let lost = transaction.store(Oid(7), Tid::ZERO, b"lost".to_vec());
    assert!(matches!(lost, Err(CallError::Disconnected { .. })), "the transaction stays lost: {lost:?}");
}

fn gap_in_invalidations_is_reported(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let mut invalidations = client.invalidations();
    let oid = other.new_oid();
    let first = other.put(oid, Tid::ZERO, "received");
    assert_eq!(invalidations.next().unwrap(), Invalidation { tid: first, oids: Some([oid].into()) });
    proxy.cut();
    wait_until_alone(&*other);
    let missed = other.put(oid, first, "missed");
    proxy.set_server(world.address());
    assert_eq!(invalidations.next().unwrap(), Invalidation { tid: missed, oids: None });
    let last = other.put(oid, missed, "received again");
    assert_eq!(invalidations.next().unwrap(), Invalidation { tid: last, oids: Some([oid].into()) });
}

fn closing_while_reconnecting_ends_the_client(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let client = world.reconnecting_client(&proxy.address, "cache");
    let mut events = client.connection_events();
    proxy.cut();
    assert!(matches!(events.next(), Some(ConnectionEvent::Lost { .. })));
    let closing = spawn(move || client.close());
    // The events end with the session.
    events.for_each(drop);
    proxy.set_server(world.address());
    closing.join().unwrap();
}
