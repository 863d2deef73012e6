//! Limits: a client keeps to its server's limits and waits if it must. A request beyond a limit
//! fails with a typed error, and the connection stays open.

use std::thread::scope;

use blobferry_protocol::{BlobId, Limits, RequestError, Tid, TxnMeta, UsageError};
use blobferry_session::client::{BlobSource, CallError, ClientConfig, ConnectError, VoteError};
use blobferry_session::server::ServerConfig;
use blobferry_store::StoreConfig;

use super::transport::{Client, Transaction};
use super::world::{Pair, World};
use crate::support::bytes;

for_every_pair!(
    blobs_pass_through_the_smallest_windows_both_ways,
    calls_beyond_the_servers_limits_wait,
    transaction_beyond_the_limit_is_refused_alone,
    too_long_messages_are_refused_and_the_connection_lives,
    store_limits_refuse_one_transaction_and_spare_others,
    large_oid_requests_are_split_until_complete,
    client_beyond_the_limit_is_refused_until_one_leaves,
);

/// Stores blobs of several sizes, loads them and compares the bytes.
fn store_and_load(writer: &dyn Client, reader: &dyn Client, sizes: &[usize]) {
    let mut transaction = writer.begin();
    let oids = writer.new_oids(sizes.len() as u32).unwrap();
    scope(|scope| {
        for (oid, size) in oids.iter().zip(sizes) {
            let (transaction, source) = (&transaction, BlobSource::bytes(bytes("blob", *size)));
            scope.spawn(move || transaction.store_blob(*oid, Tid::ZERO, Vec::new(), source).unwrap());
        }
    });
    let tid = transaction.commit().unwrap();
    scope(|scope| {
        for (oid, size) in oids.iter().zip(sizes) {
            scope.spawn(move || {
                let cached = reader.load_blob(BlobId { oid: *oid, tid }).unwrap();
                assert!(std::fs::read(cached.path()).unwrap() == bytes("blob", *size));
            });
        }
    });
}

fn blobs_pass_through_the_smallest_windows_both_ways(pair: &Pair) {
    let narrow = |limits: &mut Limits| {
        *limits = Limits { chunk: 300, transfer_window: 1000, connection_window: 1500, ..*limits };
    };
    let world = World::serving(pair, |config| narrow(&mut config.connection.limits));
    let mut config = ClientConfig::default();
    narrow(&mut config.connection.limits);
    let connect = |cache| world.connect(world.address(), world.cache(cache), config.clone()).unwrap();
    let (writer, reader) = (connect("writer"), connect("reader"));
    store_and_load(&*writer, &*reader, &[0, 1, 299, 300, 1000, 1001, 20_000, 30_011]);
}

fn calls_beyond_the_servers_limits_wait(pair: &Pair) {
    let few = |limits: &mut Limits| *limits = Limits { transfers: 1, requests: 2, ..*limits };
    let world = World::serving(pair, |config| few(&mut config.connection.limits));
    let mut config = ClientConfig::default();
    few(&mut config.connection.limits);
    let connect = |cache| world.connect(world.address(), world.cache(cache), config.clone()).unwrap();
    let (writer, reader) = (connect("writer"), connect("reader"));
    scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| assert!(reader.status().is_ok()));
        }
        store_and_load(&*writer, &*reader, &[100_000; 10]);
    });
}

fn transaction_beyond_the_limit_is_refused_alone(pair: &Pair) {
    let world = World::serving(pair, |config| config.connection.limits.transactions = 2);
    let client = world.client("cache");
    let oids = client.new_oids(3).unwrap();
    let store = |n: usize| {
        let transaction = client.begin();
        let stored = transaction.store(oids[n], Tid::ZERO, Vec::new());
        (transaction, stored)
    };
    let (mut first, mut second) = (store(0).0, store(1).0);
    let (third, refused) = store(2);
    assert!(matches!(refused, Err(CallError::Usage(UsageError::Limit { limit: 2, .. }))), "{refused:?}");
    drop(third);
    first.commit().unwrap();
    second.commit().unwrap();
    store(2).0.commit().unwrap();
}

fn too_long_messages_are_refused_and_the_connection_lives(pair: &Pair) {
    let world = World::serving(pair, |config| config.connection.limits.frame = 100_000);
    let mut config = ClientConfig::default();
    config.connection.limits.frame = 50_000;
    let writer = world.client("cache");
    let reader = world.connect(world.address(), world.cache("cache"), config).unwrap();
    let oid = writer.new_oid();
    let mut transaction = writer.begin();
    let refused = transaction.store(oid, Tid::ZERO, vec![0; 100_001]);
    assert!(
        matches!(refused, Err(CallError::Usage(UsageError::TooLong { max: 100_000, .. }))),
        "{refused:?}"
    );
    // The refused request was not sent, but it dooms its transaction; the connection stays open.
    let doomed = transaction.commit();
    assert!(
        matches!(doomed, Err(VoteError::Call(CallError::Refused(RequestError::Doomed { .. })))),
        "{doomed:?}"
    );
    drop(transaction);
    let mut transaction = writer.begin();
    transaction.store(oid, Tid::ZERO, vec![0; 90_000]).unwrap();
    transaction.commit().unwrap();
    let refused = reader.load(oid);
    assert!(
        matches!(refused, Err(CallError::Refused(RequestError::Limit { limit: 50_000, .. }))),
        "{refused:?}"
    );
    let other = reader.new_oid();
    reader.put(other, Tid::ZERO, vec![0; 40_000]);
    assert_eq!(reader.load(other).unwrap().data.len(), 40_000);
}

fn store_limits_refuse_one_transaction_and_spare_others(pair: &Pair) {
    let limits = StoreConfig { max_meta: 100, max_staged: 1_000_000, ..StoreConfig::default() };
    let world = World::with(pair, limits, ServerConfig::default());
    let client = world.client("cache");
    let oid = client.new_oid();
    let is_limit = |result: Result<(), CallError>| {
        assert!(matches!(result, Err(CallError::Refused(RequestError::Limit { .. }))), "{result:?}");
    };
    let meta = TxnMeta { user: vec![b'a'; 101], description: Vec::new() };
    let long_meta = client.begin_with(meta).unwrap();
    is_limit(long_meta.store(oid, Tid::ZERO, Vec::new()));
    let store = |transaction: &dyn Transaction, size| {
        let source = BlobSource::bytes(bytes("blob", size));
        transaction.store_blob(oid, Tid::ZERO, Vec::new(), source).map(drop)
    };
    let too_large = client.begin();
    is_limit(store(&*too_large, 1_000_001));
    too_large.abort().unwrap();
    let mut fitting = client.begin();
    store(&*fitting, 900_000).unwrap();
    fitting.commit().unwrap();
    // Staged bytes of ended transactions no longer count.
    let mut again = client.begin();
    store(&*again, 900_000).unwrap();
    again.vote().unwrap_err();
}

fn large_oid_requests_are_split_until_complete(pair: &Pair) {
    let world = World::new(pair);
    let (one, other) = (world.client("cache"), world.client("cache"));
    let mut oids = one.new_oids(25_000).unwrap();
    assert_eq!(oids.len(), 25_000);
    oids.extend(other.new_oids(1000).unwrap());
    oids.sort();
    oids.dedup();
    assert_eq!(oids.len(), 26_000, "no oid is assigned twice");
    assert_eq!(one.new_oids(0).unwrap(), []);
}

fn client_beyond_the_limit_is_refused_until_one_leaves(pair: &Pair) {
    let world = World::serving(pair, |config| config.connections = 2);
    let connect = || world.connect(world.address(), world.cache("cache"), ClientConfig::default());
    let (first, second) = (connect().unwrap(), connect().unwrap());
    let refused = connect();
    let Err(ConnectError::Handshake { source: CallError::Disconnected { reason }, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(reason.contains("the server has no room"), "{reason}");
    second.close();
    // The server may need a moment to notice the closed connection.
    while first.counter("connections") > 1 {}
    connect().unwrap();
}
