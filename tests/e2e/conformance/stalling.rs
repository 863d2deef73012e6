//! What takes too long: given up in time by whoever notices, with an error that says which it was, and nothing is left.

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

/// Far less than a transfer may take, and far more than one that moves needs for its next byte.
const SOON: Duration = Duration::from_millis(1000);

fn impatient(config: &mut Config) {
    config.transfer_timeout = SOON;
}

fn is_late<T: std::fmt::Debug>(result: Result<T, CallError>) {
    let late = RequestError::Deadline { what: Deadline::Transfer, after_ms: 1000 };
    assert!(matches!(&result, Err(CallError::Refused(error)) if *error == late), "{result:?}");
}

/// A client on a proxy, of which either it or its server gives up soon.
fn client_on(world: &World, proxy: &ThrottledProxy, is_impatient: bool) -> Box<dyn Client> {
    let mut config = ClientConfig::default();
    if is_impatient {
        impatient(&mut config.connection);
    }
    world.connect(&proxy.address, world.cache("cache"), config).unwrap()
}

fn stalled_upload_is_aborted_by_the_server(pair: &Pair) {
    let world = World::serving(pair, |config| impatient(&mut config.connection));
    let proxy = ThrottledProxy::to(world.address());
    let client = client_on(&world, &proxy, false);
    let (oid, mut transaction) = (client.new_oid(), client.begin());
    proxy.limit(UP, 1_000_000);
    let source = BlobSource::bytes(bytes("blob", 8_000_000));
    is_late(transaction.store_blob(oid, Tid::ZERO, Vec::new(), source));
    // While the proxy is still closed.
    world.wait_until_nothing_is_staged();
    proxy.open();
    transaction.commit().unwrap_err();
    assert!(client.status().is_ok(), "the connection goes on");
}

fn stalled_upload_is_aborted_by_the_client(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let client = client_on(&world, &proxy, true);
    let (oid, mut transaction) = (client.new_oid(), client.begin());
    proxy.limit(UP, 1_000_000);
    let source = BlobSource::bytes(bytes("blob", 8_000_000));
    // The server can not be told, and is not needed for this.
    is_late(transaction.store_blob(oid, Tid::ZERO, Vec::new(), source));
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
    let client = client_on(&world, &proxy, true);
    proxy.limit(DOWN, 1_000_000);
    is_late(client.load_blob(blob));
    assert_eq!(world.cached("cache").len(), 0);
    proxy.open();
    assert!(client.status().is_ok(), "the connection goes on");
    let cached = world.client("cache").load_blob(blob).unwrap();
    assert!(std::fs::read(cached.path()).unwrap() == whole);
    world.take_server().stop();
    world.nothing_is_left_at_the_server();
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
    // It gets the locks when the other one is given up.
    next.commit().unwrap();
    let told = late.finish();
    assert!(
        matches!(&told, Err(CallError::Refused(RequestError::Aborted { reason, .. })) if reason.contains("in time")),
        "{told:?}"
    );
    assert_eq!(client.load(oid).unwrap().data, b"next");
}
