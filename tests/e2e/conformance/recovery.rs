//! Connections that are lost, and what goes on: nothing is sent twice that has arrived, and nothing is left in doubt.

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
/// What is carried of it before the proxy is cut.
const PART: u64 = 1_000_000;

/// Waits until the server has seen that only its other clients are left.
fn until_alone(other: &dyn Client) {
    while other.counter("connections") > 1 {
        std::thread::yield_now();
    }
}

/// Waits until no transaction is open at the server, and nothing staged.
fn until_nothing_is_open(other: &dyn Client) {
    while other.counter("open") > 0 || other.counter("staged_bytes") > 0 {
        std::thread::yield_now();
    }
}

/// Cuts the proxy, and opens it again when the server knows.
fn interrupt(world: &World, proxy: &ThrottledProxy, other: &dyn Client) {
    proxy.cut();
    until_alone(other);
    proxy.set_server(world.address());
}

fn is_exactly(client: &dyn Client, blob: BlobId, whole: &[u8]) {
    assert!(std::fs::read(client.load_blob(blob).unwrap().path()).unwrap() == whole);
}

fn interrupted_download_resumes_at_the_same_byte(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let whole = bytes("blob", SIZE);
    let blob = other.store(BlobSource::bytes(whole.clone()));
    proxy.limit(DOWN, PART);
    let told = Arc::new(Mutex::new(Vec::new()));
    let loading = spawn({
        let (client, told) = (client.clone(), told.clone());
        move || {
            client.load_blob_with(blob, Box::new(move |progress| told.lock().unwrap().push(progress.done)))
        }
    });
    proxy.wait_until_held();
    proxy.cut();
    until_alone(&*other);
    let before = other.counter("bytes_sent");
    proxy.set_server(world.address());
    let cached = loading.join().unwrap().unwrap();
    assert!(std::fs::read(cached.path()).unwrap() == whole);
    // Where it goes on is told twice: as the end of what has come, and as the beginning of the rest.
    let told = told.lock().unwrap();
    let from = told.windows(2).find(|pair| pair[0] == pair[1]).map_or(0, |pair| pair[0]);
    assert!(from > PART / 2, "{told:?}");
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
        // Once, and once more, both times a part of each has come.
        proxy.wait_until_held();
        interrupt(&world, &proxy, &*other);
        for storing in storing {
            storing.join().unwrap().unwrap();
        }
    });
    assert_eq!(other.counter("bytes_received"), 3 * SIZE as u64, "nothing was sent twice that had arrived");
    let tid = transaction.commit().unwrap();
    for (oid, whole) in oids.into_iter().zip(wholes) {
        is_exactly(&*other, BlobId { oid, tid }, &whole);
        is_exactly(&*client, BlobId { oid, tid }, &whole);
    }
}

/// Commits something; the answer to that, and whatever else is said from then on, is lost. What the client hears.
fn lose_the_answer(
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
    let (id, mut told) = (transaction.id(), other.invalidations());
    proxy.limit(DOWN, 0);
    let committing = spawn(move || commit(transaction));
    let tid = told.next().unwrap().tid;
    proxy.wait_until_held();
    interrupt(&world, &proxy, &*other);
    assert_eq!(committing.join().unwrap().unwrap(), tid);
    assert_eq!(other.outcome(id).unwrap(), Outcome::Committed { tid });
    assert!(client.last_tid() >= tid);
    assert_eq!(world.cached("cache").len(), 1, "its file is the cached blob");
    is_exactly(&*client, BlobId { oid, tid }, &bytes("file", 100_000));
    assert_eq!(other.counter("blobs_sent"), 0);
}

fn commit_with_lost_answer_returns_its_tid(pair: &Pair) {
    let commit = |mut transaction: Box<dyn Transaction>| {
        transaction.commit().map_err(|error| match error {
            VoteError::Call(error) => error,
            VoteError::Conflict(_) => panic!("{error}"),
        })
    };
    lose_the_answer(pair, commit, false);
}

fn finish_with_lost_answer_returns_its_tid(pair: &Pair) {
    lose_the_answer(pair, |transaction| transaction.finish(), true);
}

fn commit_without_any_answer_returns_its_tid(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    // Not even that it has begun.
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
    let told = finishing.join().unwrap();
    assert!(matches!(told, Err(CallError::NotCommitted { txn }) if txn == id), "{told:?}");
    assert_eq!(other.outcome(id).unwrap(), Outcome::NotCommitted);
    other.put(oid, Tid::ZERO, "somebody else's");
}

/// What is left when a commit has met with a conflict while its connection was lost.
struct Meanwhile {
    transaction: Box<dyn Transaction>,
    told: Result<Tid, VoteError>,
    oid: Oid,
    /// What it needs to go on.
    _open: (ThrottledProxy, Box<dyn Client>),
}

/// A commit that waits for the locks of another transaction while its connection is lost, and then meets what that one
/// has committed. Gives what the client holds and hears when `found` has dealt with that.
fn conflict_meanwhile(world: &World, found: impl FnOnce(&ThrottledProxy, &dyn Client)) -> Meanwhile {
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let file = world.file("file", bytes("file", 100_000));
    let (oid, mut first, mut second) = (client.new_oid(), other.begin(), client.begin());
    second.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::streamed(&file)).unwrap();
    first.store(oid, Tid::ZERO, b"first".to_vec()).unwrap();
    first.vote().unwrap();
    let requests = other.counter("requests");
    let committing = spawn(move || {
        let told = second.commit();
        (second, told)
    });
    // This question is a request, too.
    let mut questions = 1;
    while other.counter("requests") == requests + questions {
        questions += 1;
    }
    proxy.cut();
    until_alone(&*other);
    first.finish().unwrap();
    found(&proxy, &*other);
    proxy.set_server(world.address());
    let (second, told) = committing.join().unwrap();
    Meanwhile { transaction: second, told, oid, _open: (proxy, client) }
}

fn conflicts_found_while_disconnected_are_reported(pair: &Pair) {
    let world = World::new(pair);
    let Meanwhile { mut transaction, told, oid, _open } = conflict_meanwhile(&world, |_, _| {});
    let Err(VoteError::Conflict(conflicts)) = told else { panic!("{told:?}") };
    assert_eq!(conflicts[0].oid, oid);
    transaction.store(oid, conflicts[0].committed, b"resolved".to_vec()).unwrap();
    transaction.commit().unwrap();
    assert_eq!(world.client("another").load(oid).unwrap().data, b"resolved");
}

fn conflicted_detached_transaction_expires(pair: &Pair) {
    let mut world = World::serving(pair, |config| config.keep = Duration::from_millis(10));
    let Meanwhile { told, .. } = conflict_meanwhile(&world, |_, other| until_nothing_is_open(other));
    assert!(matches!(told, Err(VoteError::Call(CallError::NotCommitted { .. }))), "{told:?}");
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
    // Waits for no deadline.
    other.put(oid, Tid::ZERO, "its lock is free");
    proxy.set_server(world.address());
    let id = transaction.id();
    let lost = transaction.finish();
    assert!(matches!(lost, Err(CallError::Disconnected { .. } | CallError::NotCommitted { .. })), "{lost:?}");
    assert_eq!(other.outcome(id).unwrap(), Outcome::NotCommitted);
    assert_eq!(other.counter("open"), 0);
}

fn detached_transaction_is_aborted_at_its_timeout(pair: &Pair) {
    let world = World::serving(pair, |config| config.keep = Duration::from_millis(10));
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let (oid, file) = (client.new_oid(), world.file("file", bytes("file", SIZE)));
    let transaction = client.begin();
    // It has begun, and the client has heard of it: else it may begin again.
    transaction.store(client.new_oid(), Tid::ZERO, Vec::new()).unwrap();
    proxy.limit(UP, PART);
    scope(|scope| {
        let storing =
            scope.spawn(|| transaction.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::moved(&file)));
        proxy.wait_until_held();
        // The server may not have come to it yet.
        while other.counter("open") == 0 {}
        proxy.cut();
        until_nothing_is_open(&*other);
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
    until_alone(&*other);
    assert_eq!(other.counter("kept"), 0);
    until_nothing_is_open(&*other);
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
    is_exactly(&*other, BlobId { oid: oids[1], tid }, &bytes("blob", SIZE));
    // The server has given the old connection up.
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
    // Who comes now finds it as well; and who leaves ends the events.
    assert!(world.reconnecting_client(&both, "another").status().is_ok());
    client.close();
    assert_eq!(events.next(), None);
}

fn calls_fail_after_timeout_and_work_after_reconnect(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let reconnect = Reconnect { patience: Duration::ZERO, ..Reconnect::default() };
    let config = ClientConfig { reconnect: Some(reconnect), ..ClientConfig::default() };
    let client = world.connect(&proxy.address, world.cache("cache"), config).unwrap();
    let mut events = client.connection_events();
    let transaction = client.begin();
    transaction.store(client.new_oid(), Tid::ZERO, b"lost".to_vec()).unwrap();
    proxy.cut();
    while !matches!(events.next().unwrap(), ConnectionEvent::OutOfPatience { .. }) {}
    let lost = client.status();
    assert!(matches!(lost, Err(CallError::Disconnected { .. })), "{lost:?}");
    let lost = transaction.store(Oid(7), Tid::ZERO, b"lost".to_vec());
    assert!(matches!(lost, Err(CallError::Disconnected { .. })), "{lost:?}");
    proxy.set_server(world.address());
    while !matches!(events.next().unwrap(), ConnectionEvent::Connected { .. }) {}
    client.put(client.new_oid(), Tid::ZERO, "found");
    let lost = transaction.store(Oid(7), Tid::ZERO, b"lost".to_vec());
    assert!(matches!(lost, Err(CallError::Disconnected { .. })), "it stays lost: {lost:?}");
}

fn gap_in_invalidations_is_reported(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (client, other) = (world.reconnecting_client(&proxy.address, "cache"), world.client("other"));
    let mut told = client.invalidations();
    let oid = other.new_oid();
    let first = other.put(oid, Tid::ZERO, "heard");
    assert_eq!(told.next().unwrap(), Invalidation { tid: first, oids: Some([oid].into()) });
    proxy.cut();
    until_alone(&*other);
    let missed = other.put(oid, first, "not heard");
    proxy.set_server(world.address());
    assert_eq!(told.next().unwrap(), Invalidation { tid: missed, oids: None });
    let last = other.put(oid, missed, "heard again");
    assert_eq!(told.next().unwrap(), Invalidation { tid: last, oids: Some([oid].into()) });
}

fn closing_while_reconnecting_ends_the_client(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let client = world.reconnecting_client(&proxy.address, "cache");
    let mut events = client.connection_events();
    proxy.cut();
    assert!(matches!(events.next(), Some(ConnectionEvent::Lost { .. })));
    let closing = spawn(move || client.close());
    // It ends with the session.
    events.for_each(drop);
    proxy.set_server(world.address());
    closing.join().unwrap();
}
