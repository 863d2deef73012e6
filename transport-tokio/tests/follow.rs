//! Following a blob does not block the executor, not even one with a single thread.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::sync::Arc;

use blobferry_cache::{Cache, CacheConfig};
use blobferry_protocol::{BlobId, Oid, Tid, TxnMeta};
use blobferry_store::{MemoryStore, StoreConfig};
use blobferry_transport_tokio::{
    BlobSource, Client, ClientConfig, CommitError, Follow, Invalidations, Server, ServerConfig, Transaction,
};
use tokio::io::AsyncReadExt;

/// A server, with a client whose cache is empty, and one that stores.
struct World {
    _home: tempfile::TempDir,
    _server: Server,
    reader: Client,
    writer: Client,
}

impl World {
    async fn new() -> World {
        let home = tempfile::tempdir().unwrap();
        let store = Arc::new(MemoryStore::new(StoreConfig::default()).unwrap());
        let server = Server::bind("127.0.0.1:0", store, ServerConfig::default()).await.unwrap();
        let connect = |name| {
            let cache = Cache::open(home.path().join(name), CacheConfig::default()).unwrap();
            Client::connect(server.local_addr(), cache, ClientConfig::default())
        };
        let (reader, writer) = (connect("reader").await.unwrap(), connect("writer").await.unwrap());
        World { _home: home, _server: server, reader, writer }
    }

    async fn store(&self, bytes: Vec<u8>) -> BlobId {
        let oid = self.writer.new_oids(1).await.unwrap()[0];
        let transaction = self.writer.begin(TxnMeta::default()).unwrap();
        transaction.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::bytes(bytes)).await.unwrap();
        BlobId { oid, tid: transaction.commit().await.unwrap() }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_blob_is_followed_on_a_single_thread() {
    let world = World::new().await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let blob = world.store(bytes.clone()).await;
    let mut follow = world.reader.follow_blob(blob).unwrap();
    let mut first = [0; 7];
    follow.read_exact(&mut first).await.unwrap();
    assert_eq!((&first[..], follow.size()), (&bytes[..7], Some(bytes.len() as u64)));
    let mut rest = Vec::new();
    follow.read_to_end(&mut rest).await.unwrap();
    assert!(rest == bytes[7..]);
    // The end stays the end.
    assert_eq!(follow.read(&mut first).await.unwrap(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn following_an_unknown_blob_fails() {
    let world = World::new().await;
    let mut follow = world.reader.follow_blob(BlobId { oid: Oid(77), tid: Tid(1) }).unwrap();
    follow.read_to_end(&mut Vec::new()).await.unwrap_err();
}

#[tokio::test(flavor = "current_thread")]
async fn a_dropped_read_loses_no_bytes() {
    let world = World::new().await;
    let bytes = vec![7; 1_000_000];
    let mut follow = world.reader.follow_blob(world.store(bytes.clone()).await).unwrap();
    let (mut all, mut buffer) = (Vec::new(), vec![0; 10_000]);
    loop {
        tokio::select! {
            biased;
            read = follow.read(&mut buffer) => match read.unwrap() {
                0 => break,
                n => all.extend_from_slice(&buffer[..n]),
            },
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(all == bytes);
}

#[tokio::test(flavor = "current_thread")]
async fn a_dropped_commit_commits() {
    let world = World::new().await;
    let oid = world.writer.new_oids(1).await.unwrap()[0];
    let mut invalidations = world.writer.invalidations();
    let transaction = world.writer.begin(TxnMeta::default()).unwrap();
    transaction.store(oid, Tid::ZERO, b"record".to_vec()).await.unwrap();
    let mut committing = Box::pin(transaction.commit());
    let polled = std::future::poll_fn(|context| std::task::Poll::Ready(committing.as_mut().poll(context)));
    assert!(polled.await.is_pending());
    drop(committing);
    let tid = invalidations.next().await.unwrap().tid;
    assert_eq!(world.reader.load(oid).await.unwrap().tid, tid);
}

#[tokio::test(flavor = "current_thread")]
async fn a_conflict_gives_the_transaction_back() {
    let world = World::new().await;
    let oid = world.writer.new_oids(1).await.unwrap()[0];
    let (first, second) =
        (world.writer.begin(TxnMeta::default()).unwrap(), world.reader.begin(TxnMeta::default()).unwrap());
    for transaction in [&first, &second] {
        transaction.store(oid, Tid::ZERO, b"record".to_vec()).await.unwrap();
    }
    let tid = first.commit().await.unwrap();
    let Err(CommitError::Conflict { transaction, conflicts }) = second.commit().await else {
        panic!("no conflict")
    };
    assert_eq!((conflicts[0].oid, conflicts[0].committed), (oid, tid));
    transaction.store(oid, tid, b"resolved".to_vec()).await.unwrap();
    let resolved = transaction.commit().await.unwrap();
    assert_eq!(world.writer.load_at(oid, resolved).await.unwrap().unwrap().data, b"resolved");
}

#[test]
fn handles_can_be_sent_to_and_shared_by_threads() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Client>();
    is_send_and_sync::<Transaction>();
    is_send_and_sync::<Invalidations>();
    is_send_and_sync::<Follow>();
    is_send_and_sync::<Server>();
}
