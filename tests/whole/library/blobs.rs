//! Blobs: from every source, and into the cache, once.

use blobferry_cache::{Cache, CacheConfig};
use blobferry_protocol::{BlobId, Digest, RequestError, Tid, TxnMeta};
use blobferry_store::StoreConfig;
use blobferry_transport_tokio::{BlobSource, CallError, Client, ClientConfig, ServerConfig};
use tokio::io::AsyncRead;

use super::{World, counter, new_oid, store};
use crate::road::{Road, UP};
use crate::support::{blob_files, bytes};

/// Commits one new blob that comes as a stream.
async fn store_reader(client: &Client, reader: impl AsyncRead + Unpin) -> BlobId {
    let oid = new_oid(client).await;
    let mut transaction = client.begin(TxnMeta::default()).unwrap();
    transaction.store_reader(oid, Tid::ZERO, b"record".to_vec(), reader).await.unwrap();
    BlobId { oid, tid: transaction.commit().await.unwrap() }
}

#[tokio::test]
async fn a_file_of_a_million_lines_comes_back_as_it_was() {
    let world = World::new().await;
    let lines: String = (0..1_000_000).map(|n| format!("line {n}\n")).collect();
    let file = world.file("lines", &lines);
    let (writer, reader) = (world.client("writer").await, world.client("reader").await);
    let blob = store(&writer, BlobSource::streamed(&file)).await;
    let cached = reader.load_blob(blob).await.unwrap();
    assert_eq!(cached.size(), lines.len() as u64);
    assert!(std::fs::read_to_string(cached.path()).unwrap() == lines);
    let revision = reader.load(blob.oid).await.unwrap();
    assert_eq!(revision.blob.unwrap().digest, Digest(*blake3::hash(lines.as_bytes()).as_bytes()));
}

#[tokio::test]
async fn a_moved_file_is_the_cached_blob_at_finish_and_gone_at_abort() {
    let world = World::new().await;
    let client = world.client("cache").await;
    let file = world.file("moved", bytes("moved", 200_000));
    let blob = store(&client, BlobSource::moved(&file)).await;
    assert!(!file.exists(), "it was moved");
    let cached = client.load_blob(blob).await.unwrap();
    assert!(std::fs::read(cached.path()).unwrap() == bytes("moved", 200_000));
    assert_eq!(counter(&client, "blobs_sent").await, 0, "it never came from the server");

    let file = world.file("aborted", bytes("aborted", 200_000));
    let oid = new_oid(&client).await;
    let transaction = client.begin(TxnMeta::default()).unwrap();
    transaction.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::moved(&file)).await.unwrap();
    assert!(!file.exists());
    transaction.abort().await.unwrap();
    client.close().await;
    assert_eq!(blob_files(&world.path("cache")), [cached.path()]);
    assert_eq!(std::fs::read_dir(world.path("server/blobs/tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_is_copied_stays_and_is_cached_and_what_is_streamed_stays_and_is_not() {
    let world = World::new().await;
    let client = world.client("cache").await;
    let file = world.file("file", bytes("file", 200_000));
    let copied = store(&client, BlobSource::copied(&file)).await;
    let streamed = store(&client, BlobSource::streamed(&file)).await;
    let memory = store(&client, BlobSource::bytes(bytes("file", 200_000))).await;
    assert!(file.exists());
    assert!(client.cache().get(copied).unwrap().is_some());
    for blob in [streamed, memory] {
        assert!(client.cache().get(blob).unwrap().is_none());
    }
    for blob in [copied, streamed, memory] {
        let cached = client.load_blob(blob).await.unwrap();
        assert!(std::fs::read(cached.path()).unwrap() == bytes("file", 200_000));
    }
    assert_eq!(counter(&client, "blobs_sent").await, 2);
}

#[tokio::test]
async fn anything_that_can_be_read_is_a_source() {
    let world = World::new().await;
    let (writer, reader) = (world.client("writer").await, world.client("reader").await);
    let (mut pipe, end) = tokio::io::duplex(1000);
    let feed = tokio::spawn(async move {
        for piece in bytes("piped", 300_000).chunks(777) {
            tokio::io::AsyncWriteExt::write_all(&mut pipe, piece).await.unwrap();
        }
    });
    let blob = store_reader(&writer, end).await;
    feed.await.unwrap();
    for client in [&writer, &reader] {
        let cached = client.load_blob(blob).await.unwrap();
        assert!(std::fs::read(cached.path()).unwrap() == bytes("piped", 300_000));
    }
    assert_eq!(counter(&reader, "blobs_sent").await, 1, "the writer had it");
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let world = World::new().await;
    let (writer, reader) = (world.client("writer").await, world.client("reader").await);
    let sources = [BlobSource::bytes(""), BlobSource::copied(world.file("empty", ""))];
    let mut blobs = vec![store_reader(&writer, &b""[..]).await];
    for source in sources {
        blobs.push(store(&writer, source).await);
    }
    for blob in blobs {
        assert_eq!(reader.load_blob(blob).await.unwrap().size(), 0);
        assert_eq!(reader.load_range(blob, 0..10).await.unwrap(), b"");
    }
}

#[tokio::test]
async fn ten_tasks_that_want_one_blob_share_one_download() {
    let world = World::new().await;
    let (writer, reader) = (world.client("writer").await, world.client("reader").await);
    let blob = store(&writer, BlobSource::bytes(bytes("blob", 3_000_000))).await;
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let reader = reader.clone();
            tokio::spawn(async move { reader.load_blob(blob).await.unwrap() })
        })
        .collect();
    for task in tasks {
        assert!(std::fs::read(task.await.unwrap().path()).unwrap() == bytes("blob", 3_000_000));
    }
    assert_eq!(counter(&reader, "blobs_sent").await, 1);
}

#[tokio::test]
async fn a_range_is_read_with_and_without_the_cache() {
    let world = World::new().await;
    let client = world.client("cache").await;
    let whole = bytes("blob", 1_000_000);
    let blob = store(&client, BlobSource::bytes(whole.clone())).await;
    for _ in 0..2 {
        assert!(client.load_range(blob, 10..700_000).await.unwrap() == whole[10..700_000]);
        assert!(client.load_range(blob, 999_990..u64::MAX).await.unwrap() == whole[999_990..]);
        assert_eq!(client.load_range(blob, 1_000_000..1_000_001).await.unwrap(), b"");
        let behind = client.load_range(blob, 1_000_001..1_000_002).await;
        assert!(matches!(behind, Err(CallError::Refused(RequestError::BadRange { .. }))), "{behind:?}");
        // From here on it is cached.
        client.load_blob(blob).await.unwrap();
    }
    assert_eq!(counter(&client, "blobs_sent").await, 1);
}

#[tokio::test]
async fn small_calls_get_through_between_many_transfers() {
    let world = World::new().await;
    let (writer, reader) = (world.client("writer").await, world.client("reader").await);
    let mut transaction = writer.begin(TxnMeta::default()).unwrap();
    let oids = writer.new_oids(30).await.unwrap();
    let mut uploads = tokio::task::JoinSet::new();
    let shared = std::sync::Arc::new(transaction);
    for oid in oids.clone() {
        let transaction = shared.clone();
        let source = BlobSource::bytes(bytes(&oid.to_string(), 1_000_000));
        uploads
            .spawn(async move { transaction.store_blob(oid, Tid::ZERO, Vec::new(), source).await.unwrap() });
        assert!(writer.status().await.is_ok());
    }
    uploads.join_all().await;
    transaction = std::sync::Arc::into_inner(shared).unwrap();
    let tid = transaction.commit().await.unwrap();
    let mut downloads = tokio::task::JoinSet::new();
    for oid in oids {
        let reader = reader.clone();
        downloads.spawn(async move { reader.load_blob(BlobId { oid, tid }).await.unwrap() });
    }
    for _ in 0..50 {
        assert_eq!(counter(&reader, "commits").await, 1);
    }
    for cached in downloads.join_all().await {
        assert!(std::fs::read(cached.path()).unwrap() == bytes(&cached.blob().oid.to_string(), 1_000_000));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_while_it_is_sent_is_refused_with_its_transaction() {
    let world = World::new().await;
    let road = Road::to(&world.server.local_addr().to_string());
    let client = world.client_at(&road.address, "cache").await;
    let file = world.file("file", bytes("file", 8_000_000));
    let oid = new_oid(&client).await;
    let mut transaction = client.begin(TxnMeta::default()).unwrap();
    road.limit(UP, 500_000);
    let stored = {
        let storing = transaction.store_blob(oid, Tid::ZERO, Vec::new(), BlobSource::streamed(&file));
        let meddling = async {
            tokio::task::block_in_place(|| road.wait_until_held());
            std::fs::write(&file, "short").unwrap();
            road.open();
        };
        tokio::join!(storing, meddling).0
    };
    assert!(matches!(stored, Err(CallError::Refused(RequestError::Source { .. }))), "{stored:?}");
    transaction.commit().await.unwrap_err();
}

#[tokio::test]
async fn who_shares_the_servers_directory_moves_files_and_nothing_is_sent() {
    let settings = StoreConfig { inline_max: 0, ..StoreConfig::default() };
    let world = World::with(settings, ServerConfig::default()).await;
    let cache = Cache::open(world.path("server/blobs"), CacheConfig { shared: true }).unwrap();
    let client = Client::connect(world.server.local_addr(), cache, ClientConfig::default()).await.unwrap();
    let file = world.file("file", bytes("file", 500_000));
    let blob = store(&client, BlobSource::moved(&file)).await;
    assert!(!file.exists());
    let copied = store(&client, BlobSource::copied(world.file("copied", "copied"))).await;
    let cached = client.load_blob(blob).await.unwrap();
    assert!(cached.path().starts_with(world.path("server/blobs")), "{cached:?}");
    assert!(std::fs::read(cached.path()).unwrap() == bytes("file", 500_000));
    assert_eq!(std::fs::read(client.load_blob(copied).await.unwrap().path()).unwrap(), b"copied");
    for counted in ["bytes_sent", "bytes_received", "blobs_sent"] {
        assert_eq!(counter(&client, counted).await, 0, "{counted}");
    }
    // Who is somewhere else gets them over the network.
    let other = world.client("cache").await;
    assert!(std::fs::read(other.load_blob(blob).await.unwrap().path()).unwrap() == bytes("file", 500_000));
}
