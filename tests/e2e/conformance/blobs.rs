//! Blobs are stored from every kind of source, and downloaded into the cache once.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{scope, spawn};

use blobferry_cache::{Cache, CacheConfig, CacheError};
use blobferry_platform::progress::Progress;
use blobferry_protocol::{BlobId, Digest, RequestError, Tid};
use blobferry_session::client::{BlobSource, CallError, ClientConfig, VoteError};
use blobferry_session::server::ServerConfig;
use blobferry_store::StoreConfig;

use super::transport::{Client, OnProgress};
use super::world::{Pair, World};
use crate::support::{blob_files, bytes};
use crate::throttled_proxy::{ThrottledProxy, UP};

for_every_pair!(
    stored_file_is_cached_and_loaded_by_ten_threads_in_one_send,
    streamed_file_is_loaded_unchanged,
    moved_file_is_cached_at_finish_and_removed_at_abort,
    copied_sources_are_cached_and_streamed_ones_are_not,
    any_readable_stream_is_a_source,
    empty_blobs_are_stored_and_loaded,
    ten_threads_share_one_download,
    two_clients_of_one_cache_share_one_download,
    ranges_are_read_with_and_without_the_cache,
    small_blobs_are_loaded_once_without_a_file_each,
    load_bytes_works_for_every_size_and_location,
    ten_threads_share_one_download_into_memory,
    progress_is_reported_up_to_the_last_byte,
    missing_blob_is_refused_and_leaves_nothing,
    unreadable_source_is_refused_before_sending,
    file_changed_during_upload_dooms_its_transaction,
    shared_directory_stores_and_loads_without_sending,
);

/// Commits one new blob from a stream.
fn store_reader(client: &dyn Client, reader: impl Into<OwnedFd>) -> BlobId {
    let oid = client.new_oid();
    let mut transaction = client.begin();
    transaction.store_reader(oid, Tid::ZERO, b"record".to_vec(), reader.into().into()).unwrap();
    BlobId { oid, tid: transaction.commit().unwrap() }
}

/// Loads a blob in ten threads at the same time.
fn load_in_ten_threads(client: &dyn Client, blob: BlobId, check: impl Fn(&[u8]) + Sync) {
    let barrier = Barrier::new(10);
    scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let client = client.another();
                barrier.wait();
                check(&std::fs::read(client.load_blob(blob).unwrap().path()).unwrap());
            });
        }
    });
}

/// The steps of ZEO's own test of blob storages (`testZEO.py`), in its order.
fn stored_file_is_cached_and_loaded_by_ten_threads_in_one_send(pair: &Pair) {
    let world = World::new(pair);
    let lines: String = (0..1_000_000).map(|n| format!("{n}\n")).collect();
    let (client, file) = (world.client("cache"), world.file("uncommitted", &lines));
    let blob = client.store(BlobSource::moved(&file));
    assert!(!file.exists(), "the uncommitted file is removed");
    let is_there = |files: &[std::path::PathBuf]| {
        assert_eq!(files.len(), 1);
        assert!(std::fs::read_to_string(&files[0]).unwrap() == lines);
    };
    is_there(&blob_files(&world.path("server/blobs")));
    let cached = world.cached("cache");
    is_there(&cached);
    std::fs::remove_file(&cached[0]).unwrap();
    load_in_ten_threads(&*client, blob, |bytes| assert!(bytes == lines.as_bytes()));
    assert_eq!(world.cached("cache"), cached, "the blob has the same path again");
    assert_eq!(client.counter("blobs_sent"), 1);
}

fn streamed_file_is_loaded_unchanged(pair: &Pair) {
    let world = World::new(pair);
    let whole = bytes("file", 7_000_000);
    let (writer, reader) = (world.client("writer"), world.client("reader"));
    let blob = writer.store(BlobSource::streamed(world.file("file", &whole)));
    let cached = reader.load_blob(blob).unwrap();
    assert_eq!((cached.blob(), cached.size()), (blob, whole.len() as u64));
    assert!(std::fs::read(cached.path()).unwrap() == whole);
    let revision = reader.load(blob.oid).unwrap();
    assert_eq!((revision.tid, &revision.data[..]), (blob.tid, &b"record"[..]));
    assert_eq!(revision.blob.unwrap().digest, Digest(*blake3::hash(&whole).as_bytes()));
}

fn moved_file_is_cached_at_finish_and_removed_at_abort(pair: &Pair) {
    let mut world = World::new(pair);
    let client = world.client("cache");
    let file = world.file("moved", bytes("moved", 200_000));
    let blob = client.store(BlobSource::moved(&file));
    assert!(!file.exists(), "the file was moved");
    let cached = client.load_blob(blob).unwrap();
    assert!(std::fs::read(cached.path()).unwrap() == bytes("moved", 200_000));
    assert_eq!(client.counter("blobs_sent"), 0, "the blob was not downloaded");

    let file = world.file("aborted", bytes("aborted", 200_000));
    let transaction = client.begin();
    transaction.store_blob(client.new_oid(), Tid::ZERO, Vec::new(), BlobSource::moved(&file)).unwrap();
    assert!(!file.exists());
    transaction.abort().unwrap();
    client.close();
    assert_eq!(world.cached("cache"), [cached.path()]);
    world.take_server().stop();
    world.wait_for_no_leftovers();
}

fn copied_sources_are_cached_and_streamed_ones_are_not(pair: &Pair) {
    let world = World::new(pair);
    let client = world.client("cache");
    let file = world.file("file", bytes("file", 200_000));
    let copied = client.store(BlobSource::copied(&file));
    let streamed = client.store(BlobSource::streamed(&file));
    let memory = client.store(BlobSource::bytes(bytes("file", 200_000)));
    assert!(file.exists());
    assert!(client.cache().get(copied).unwrap().is_some());
    for blob in [streamed, memory] {
        assert!(client.cache().get(blob).unwrap().is_none());
    }
    for blob in [copied, streamed, memory] {
        let cached = client.load_blob(blob).unwrap();
        assert!(std::fs::read(cached.path()).unwrap() == bytes("file", 200_000));
    }
    assert_eq!(client.counter("blobs_sent"), 2);
}

fn any_readable_stream_is_a_source(pair: &Pair) {
    let world = World::new(pair);
    let (writer, reader) = (world.client("writer"), world.client("reader"));
    let (end, mut pipe) = std::io::pipe().unwrap();
    let feed = spawn(move || {
        for piece in bytes("piped", 300_000).chunks(777) {
            pipe.write_all(piece).unwrap();
        }
    });
    let blob = store_reader(&*writer, end);
    feed.join().unwrap();
    for client in [&writer, &reader] {
        let cached = client.load_blob(blob).unwrap();
        assert!(std::fs::read(cached.path()).unwrap() == bytes("piped", 300_000));
    }
    assert_eq!(reader.counter("blobs_sent"), 1, "the writer has it in its cache");
}

fn empty_blobs_are_stored_and_loaded(pair: &Pair) {
    let world = World::new(pair);
    let (writer, reader) = (world.client("writer"), world.client("reader"));
    let empty = world.file("empty", "");
    let mut blobs = vec![store_reader(&*writer, std::fs::File::open(&empty).unwrap())];
    let sources = [
        BlobSource::bytes(""),
        BlobSource::copied(&empty),
        BlobSource::streamed(&empty),
        BlobSource::moved(&empty),
    ];
    blobs.extend(sources.into_iter().map(|source| writer.store(source)));
    for blob in blobs {
        assert_eq!(reader.load_blob(blob).unwrap().size(), 0);
        assert_eq!(reader.load_range(blob, 0..10).unwrap(), b"");
        assert_eq!(writer.load_range(blob, 0..u64::MAX).unwrap(), b"");
    }
}

fn ten_threads_share_one_download(pair: &Pair) {
    let world = World::new(pair);
    let (writer, reader) = (world.client("writer"), world.client("reader"));
    let whole = bytes("blob", 3_000_000);
    let blob = writer.store(BlobSource::bytes(whole.clone()));
    load_in_ten_threads(&*reader, blob, |bytes| assert!(bytes == whole));
    assert_eq!(reader.counter("blobs_sent"), 1);
}

fn two_clients_of_one_cache_share_one_download(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let (first, second) = (world.client_at(&proxy.address, "cache"), world.client("cache"));
    let whole = bytes("blob", 8_000_000);
    let blob = first.store(BlobSource::bytes(whole.clone()));
    proxy.limit(crate::throttled_proxy::DOWN, 1_000_000);
    let slow = spawn({
        let first = first.clone();
        move || first.load_blob(blob).unwrap()
    });
    proxy.wait_until_held();
    // Its own connection is free, but it waits: the first client holds the blob's claim.
    let waiting = spawn({
        let second = second.clone();
        move || second.load_blob(blob).unwrap()
    });
    // Its other requests are answered meanwhile.
    assert_eq!(second.load(blob.oid).unwrap().tid, blob.tid);
    proxy.open();
    let (one, other) = (slow.join().unwrap(), waiting.join().unwrap());
    assert_eq!(one.path(), other.path());
    assert!(std::fs::read(one.path()).unwrap() == whole);
    assert_eq!(second.counter("blobs_sent"), 1);
}

fn ranges_are_read_with_and_without_the_cache(pair: &Pair) {
    let world = World::new(pair);
    let client = world.client("cache");
    let whole = bytes("blob", 1_000_000);
    let blob = client.store(BlobSource::bytes(whole.clone()));
    for _ in 0..2 {
        assert!(client.load_range(blob, 10..700_000).unwrap() == whole[10..700_000]);
        assert!(client.load_range(blob, 999_990..u64::MAX).unwrap() == whole[999_990..]);
        assert_eq!(client.load_range(blob, 1_000_000..1_000_001).unwrap(), b"");
        assert_eq!(client.load_range(blob, 7..7).unwrap(), b"");
        let behind = client.load_range(blob, 1_000_001..1_000_002);
        assert!(matches!(behind, Err(CallError::Refused(RequestError::BadRange { .. }))), "{behind:?}");
        // From here on the blob is cached.
        client.load_blob(blob).unwrap();
    }
    assert_eq!(client.counter("blobs_sent"), 1);
}

fn small_blobs_are_loaded_once_without_a_file_each(pair: &Pair) {
    let world = World::new(pair);
    let (writer, reader) = (world.client("writer"), world.client("reader"));
    let small: Vec<(BlobId, Vec<u8>)> = (0..40)
        .map(|n| {
            let whole = bytes(&n.to_string(), n * 1600);
            (writer.store(BlobSource::bytes(whole.clone())), whole)
        })
        .collect();
    for _ in 0..2 {
        for (blob, whole) in &small {
            assert!(reader.load_bytes(*blob).unwrap() == *whole);
        }
    }
    // The second client may have to wait until the segments are written.
    let other = world.client("reader");
    for (blob, whole) in &small {
        assert!(other.load_bytes(*blob).unwrap() == *whole);
        let upto = whole.len().min(100);
        assert!(other.load_range(*blob, 0..100).unwrap() == whole[..upto]);
    }
    assert!(world.cached("reader").is_empty());
    for (blob, whole) in &small[..3] {
        for client in [&other, &reader] {
            let cached = client.load_blob(*blob).unwrap();
            assert!(std::fs::read(cached.path()).unwrap() == *whole);
            assert!(client.load_bytes(*blob).unwrap() == *whole);
        }
    }
    assert_eq!(world.cached("reader").len(), 3);
    assert_eq!(other.counter("blobs_sent"), 40);
}

fn load_bytes_works_for_every_size_and_location(pair: &Pair) {
    let world = World::new(pair);
    let (writer, reader) = (world.client("writer"), world.client("reader"));
    for size in [0, 1, 65_536, 65_537, 3_000_000] {
        let whole = bytes("whole", size);
        let cached = writer.store(BlobSource::copied(world.file("file", &whole)));
        let streamed = writer.store(BlobSource::bytes(whole.clone()));
        for client in [&writer, &reader] {
            for blob in [cached, streamed] {
                assert!(client.load_bytes(blob).unwrap() == whole, "{size}");
                assert!(client.load_bytes(blob).unwrap() == whole, "{size}");
            }
        }
    }
    assert_eq!(reader.counter("blobs_sent"), 5 + 10, "the writer had its copied blobs in the cache");
    let missing = BlobId { oid: reader.new_oid(), tid: Tid(1) };
    let refused = reader.load_bytes(missing);
    assert!(matches!(refused, Err(CallError::Refused(RequestError::NoSuchBlob { .. }))), "{refused:?}");
}

fn ten_threads_share_one_download_into_memory(pair: &Pair) {
    let world = World::new(pair);
    let writer = world.client("writer");
    let whole = bytes("whole", 50_000);
    let blob = writer.store(BlobSource::bytes(whole.clone()));
    let readers = [world.client("reader"), world.client("reader")];
    let barrier = Barrier::new(10);
    scope(|scope| {
        for n in 0..10 {
            let (barrier, whole) = (&barrier, &whole);
            let client = readers[n % 2].another();
            scope.spawn(move || {
                barrier.wait();
                match n {
                    0..8 => assert!(client.load_bytes(blob).unwrap() == *whole),
                    _ => assert!(std::fs::read(client.load_blob(blob).unwrap().path()).unwrap() == *whole),
                }
            });
        }
    });
    assert_eq!(writer.counter("blobs_sent"), 1);
}

fn progress_is_reported_up_to_the_last_byte(pair: &Pair) {
    let world = World::new(pair);
    let (writer, reader) = (world.client("writer"), world.client("reader"));
    let size = 3_000_000;
    let recorder = || -> (Arc<Mutex<Vec<Progress>>>, OnProgress) {
        let reports = Arc::new(Mutex::new(Vec::new()));
        (reports.clone(), Box::new(move |progress| reports.lock().unwrap().push(progress)))
    };
    let is_whole = |reports: &Mutex<Vec<Progress>>| {
        let reports = reports.lock().unwrap();
        assert!(reports.is_sorted_by_key(|progress| progress.done), "{reports:?}");
        let last = reports.last().unwrap();
        assert_eq!((last.done, last.total), (size, size));
    };
    let oid = writer.new_oid();
    let mut transaction = writer.begin();
    let (reports, record) = recorder();
    let source = BlobSource::bytes(bytes("blob", size as usize));
    let info = transaction.store_blob_with(oid, Tid::ZERO, Vec::new(), source, record).unwrap();
    is_whole(&reports);
    let blob = BlobId { oid, tid: transaction.commit().unwrap() };
    assert_eq!(writer.load(oid).unwrap().blob, Some(info));
    let (reports, record) = recorder();
    reader.load_blob_with(blob, record).unwrap();
    is_whole(&reports);
    let (reports, record) = recorder();
    reader.load_blob_with(blob, record).unwrap();
    assert!(reports.lock().unwrap().is_empty(), "a cached blob reports no progress");
}

fn missing_blob_is_refused_and_leaves_nothing(pair: &Pair) {
    let world = World::new(pair);
    let client = world.client("cache");
    let oid = client.new_oid();
    let tid = client.put(oid, Tid::ZERO, "no blob");
    for blob in [BlobId { oid, tid }, BlobId { oid, tid: Tid(1) }, BlobId { oid: client.new_oid(), tid }] {
        for _ in 0..2 {
            let loaded = client.load_blob(blob);
            let is_missing = matches!(
                loaded,
                Err(CallError::Refused(
                    RequestError::NoSuchBlob { .. }
                        | RequestError::NoSuchRevision { .. }
                        | RequestError::NoSuchObject { .. }
                ))
            );
            assert!(is_missing, "{loaded:?}");
            assert!(matches!(client.load_range(blob, 0..1), Err(CallError::Refused(_))));
        }
    }
    assert_eq!(world.cached("cache").len(), 0);
}

fn unreadable_source_is_refused_before_sending(pair: &Pair) {
    let world = World::new(pair);
    let client = world.client("cache");
    let oid = client.new_oid();
    let sources: [fn(std::path::PathBuf) -> BlobSource; 3] =
        [BlobSource::moved, BlobSource::copied, BlobSource::streamed];
    for source in sources {
        let mut transaction = client.begin();
        let missing = transaction.store_blob(oid, Tid::ZERO, Vec::new(), source(world.path("missing")));
        assert!(
            matches!(missing, Err(CallError::File { .. } | CallError::Cache(_))),
            "the error must name the file: {missing:?}"
        );
        let directory = transaction.store_blob(oid, Tid::ZERO, Vec::new(), source(world.path("server")));
        assert!(matches!(directory, Err(CallError::Cache(CacheError::NotAFile { .. }))), "{directory:?}");
        // A failed store dooms its transaction, but sends nothing; the next transaction is unaffected.
        let doomed = transaction.vote();
        assert!(
            matches!(doomed, Err(VoteError::Call(CallError::Refused(RequestError::Doomed { .. })))),
            "{doomed:?}"
        );
        drop(transaction);
        let mut transaction = client.begin();
        let other = BlobSource::bytes("other");
        transaction.store_blob(oid, Tid::ZERO, Vec::new(), other).unwrap();
        transaction.vote().unwrap();
        transaction.abort().unwrap();
    }
    assert_eq!(client.counter("blobs_received"), 3);
}

fn file_changed_during_upload_dooms_its_transaction(pair: &Pair) {
    let world = World::new(pair);
    let proxy = ThrottledProxy::to(world.address());
    let client = world.client_at(&proxy.address, "cache");
    let file = world.file("file", bytes("file", 8_000_000));
    let oid = client.new_oid();
    let mut transaction = client.begin();
    proxy.limit(UP, 500_000);
    let stored = scope(|scope| {
        let source = BlobSource::streamed(&file);
        let storing = scope.spawn(|| transaction.store_blob(oid, Tid::ZERO, Vec::new(), source));
        proxy.wait_until_held();
        std::fs::write(&file, "short").unwrap();
        proxy.open();
        storing.join().unwrap()
    });
    assert!(matches!(stored, Err(CallError::Refused(RequestError::Source { .. }))), "{stored:?}");
    transaction.commit().unwrap_err();
    assert!(matches!(client.load(oid), Err(CallError::Refused(RequestError::NoSuchObject { .. }))));
}

fn shared_directory_stores_and_loads_without_sending(pair: &Pair) {
    let settings = StoreConfig { inline_max: 0, ..StoreConfig::default() };
    let world = World::with(pair, settings, ServerConfig::default());
    let cache =
        Cache::open(world.path("server/blobs"), CacheConfig { shared: true, ..CacheConfig::default() })
            .unwrap();
    let client = world.connect(world.address(), cache, ClientConfig::default()).unwrap();
    let file = world.file("file", bytes("file", 500_000));
    let blob = client.store(BlobSource::moved(&file));
    assert!(!file.exists());
    let copied = client.store(BlobSource::copied(world.file("copied", "copied")));
    let memory = client.store(BlobSource::bytes("memory"));
    let cached = client.load_blob(blob).unwrap();
    assert!(cached.path().starts_with(world.path("server/blobs")), "{cached:?}");
    assert!(std::fs::read(cached.path()).unwrap() == bytes("file", 500_000));
    assert_eq!(std::fs::read(client.load_blob(copied).unwrap().path()).unwrap(), b"copied");
    assert_eq!(std::fs::read(client.load_blob(memory).unwrap().path()).unwrap(), b"memory");
    let file = world.file("aborted", "aborted");
    let transaction = client.begin();
    transaction.store_blob(client.new_oid(), Tid::ZERO, Vec::new(), BlobSource::moved(&file)).unwrap();
    transaction.abort().unwrap();
    assert!(!file.exists(), "the file was moved, and removed with its transaction");
    for counted in ["bytes_sent", "bytes_received", "blobs_sent"] {
        assert_eq!(client.counter(counted), 0, "{counted}");
    }
    // A client with another cache downloads the blob.
    let other = world.client("cache");
    assert!(std::fs::read(other.load_blob(blob).unwrap().path()).unwrap() == bytes("file", 500_000));
}
