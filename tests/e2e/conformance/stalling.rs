//! Deadlines: the side that notices a stall aborts it in time with an error that names the
//! deadline.

use std::time::Duration;

use blobferry_protocol::{Config, Deadline, RequestError, Tid};
use blobferry_session::client::{BlobSource, CallError, ClientConfig, VoteError};
use blobferry_session::server::ServerConfig;
use blobferry_store::StoreConfig;

use super::transport::Client;
use super::world::{Pair, World};
use crate::support::bytes;
use crate::throttled_proxy::{DOWN, ThrottledProxy, UP};

for_every_pair!(
    stalled_upload_is_aborted_by_the_server,
    stalled_upload_is_aborted_by_the_client,
    stalled_download_is_aborted_by_the_client,
    vote_waiting_for_locks_times_out,
    late_finish_reports_the_abort,
);

/// Far less than the default limit, and far more than a moving transfer needs for its next byte.
const SHORT_TIMEOUT: Duration = Duration::from_millis(1000);

/// Shortens the deadline of transfers.
fn shorten_timeout(config: &mut Config) {
    config.transfer_timeout = SHORT_TIMEOUT;
}

/// Asserts that a transfer failed at its deadline.
fn assert_deadline<T: std::fmt::Debug>(result: Result<T, CallError>) {
    let late = RequestError::Deadline { what: Deadline::Transfer, after_ms: 1000 };
    assert!(matches!(&result, Err(CallError::Refused(error)) if *error == late), "{result:?}");
}

/// Connects a client through a proxy, with a shortened deadline on request.
fn client_via(world: &World, proxy: &ThrottledProxy, short_timeout: bool) -> Box<dyn Client> {
    let mut config = ClientConfig::default();
    if short_timeout {
        shorten_timeout(&mut config.connection);
    }
    world.connect(&proxy.address, world.cache("cache"), config).unwrap()
}

fn stalled_upload_is_aborted_by_the_server(pair: &Pair) {
    let world = World::serving(pair, |config| shorten_timeout(&mut config.connection));
    let proxy = ThrottledProxy::to(world.address());
    let client = client_via(&world, &proxy, false);
    let (oid, mut transaction) = (client.new_oid(), client.begin());
    proxy.limit(UP, 1_000_000);
    let source = BlobSource::bytes(bytes("blob", 8_000_000));
    assert_deadline(transaction.store_blob(oid, Tid::ZERO, Vec::new(), source));
    // The proxy still holds the upload.
    world.wait_until_nothing_is_staged();
    proxy.open();
    transaction.commit().unwrap_err();
    assert!(client.status().is_ok(), "the connection goes on");
}

fn stalled_upload_is_aborted_by_the_client(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let client = client_via(&world, &proxy, true);
    let (oid, mut transaction) = (client.new_oid(), client.begin());
    proxy.limit(UP, 1_000_000);
    let source = BlobSource::bytes(bytes("blob", 8_000_000));
    // The server cannot be notified, and is not needed for this.
    assert_deadline(transaction.store_blob(oid, Tid::ZERO, Vec::new(), source));
    assert_eq!(world.staged_files(), 1);
    proxy.open();
    world.wait_until_nothing_is_staged();
    transaction.commit().unwrap_err();
    assert!(client.status().is_ok(), "the connection goes on");
}

fn stalled_download_is_aborted_by_the_client(pair: &Pair) {
    let mut world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let whole = bytes("blob", 8_000_000);
    let blob = world.client("writer").store(BlobSource::bytes(whole.clone()));
    let client = client_via(&world, &proxy, true);
    proxy.limit(DOWN, 1_000_000);
    assert_deadline(client.load_blob(blob));
    assert_eq!(world.cached("cache").len(), 0);
    proxy.open();
    assert!(client.status().is_ok(), "the connection goes on");
    let cached = world.client("cache").load_blob(blob).unwrap();
    assert!(std::fs::read(cached.path()).unwrap() == whole);
    world.take_server().stop();
    world.wait_for_no_leftovers();
}

fn vote_waiting_for_locks_times_out(pair: &Pair) {
    let limits = StoreConfig { lock_timeout: Duration::from_millis(30), ..StoreConfig::default() };
    let world = World::with(pair, limits, ServerConfig::default());
    let (client, other) = (world.client("cache"), world.client("cache"));
    let oid = client.new_oid();
    let (mut first, mut second) = (client.begin(), other.begin());
    first.store(oid, Tid::ZERO, b"first".to_vec()).unwrap();
    first.vote().unwrap();
    second.store(oid, Tid::ZERO, b"second".to_vec()).unwrap();
    let late = second.commit();
    let deadline = RequestError::Deadline { what: Deadline::Locks, after_ms: 30 };
    assert!(
        matches!(&late, Err(VoteError::Call(CallError::Refused(error))) if *error == deadline),
        "{late:?}"
    );
    first.finish().unwrap();
    assert_eq!(other.load(oid).unwrap().data, b"first");
}

fn late_finish_reports_the_abort(pair: &Pair) {
    let limits = StoreConfig { vote_timeout: Duration::from_millis(30), ..StoreConfig::default() };
    let world = World::with(pair, limits, ServerConfig::default());
    let (client, other) = (world.client("cache"), world.client("cache"));
    let oid = client.new_oid();
    let (mut late, mut next) = (client.begin(), other.begin());
    late.store(oid, Tid::ZERO, b"late".to_vec()).unwrap();
    late.vote().unwrap();
    next.store(oid, Tid::ZERO, b"next".to_vec()).unwrap();
    // It gets the locks when the late transaction is aborted.
    next.commit().unwrap();
    let finished = late.finish();
    assert!(
        matches!(&finished, Err(CallError::Refused(RequestError::Aborted { reason, .. })) if reason.contains("in time")),
        "{finished:?}"
    );
    assert_eq!(client.load(oid).unwrap().data, b"next");
}
