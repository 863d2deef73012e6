//! The public API: claims that do not wait, downloads of any source, the traits of its types.

use crate::util::{blob, bytes, digest, download, finish, open, read, send, size};
use blobferry_cache::{
    Buffered, Cache, CacheConfig, CacheEntry, CacheError, CachedBlob, Claim, Download, Evicted, Follow,
    FollowEnd, FollowError, SmallClaim, TransactionBuffer, Usage, Verified,
};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

/// Longer than any download in these tests takes.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn try_claim_leads_or_returns_none_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (here, elsewhere) = (open(dir.path()), open(dir.path()));
    let Some(Claim::Download(download)) = here.try_claim(blob(1)).unwrap() else { panic!() };
    assert!(here.try_claim(blob(1)).unwrap().is_none(), "another claim leads it");
    assert!(elsewhere.try_claim(blob(1)).unwrap().is_none(), "another process has the bucket");
    assert!(elsewhere.try_claim(blob(2)).unwrap().is_none());
    let Some(Claim::Download(other)) = here.try_claim(blob(2)).unwrap() else { panic!() };
    drop(other);
    finish(download);
    for cache in [&here, &elsewhere] {
        let Some(Claim::Hit(cached)) = cache.try_claim(blob(1)).unwrap() else { panic!() };
        assert_eq!(read(&cached), bytes());
    }
    let Some(Claim::Download(_)) = elsewhere.try_claim(blob(2)).unwrap() else { panic!() };
}

#[test]
fn claim_timeout_waits_no_longer_and_blocks_no_claim() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let first = download(&cache, blob(1));
    assert!(cache.claim_timeout(blob(1), Duration::from_millis(1)).unwrap().is_none());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| cache.claim_timeout(blob(1), LONG).unwrap());
        drop(first); // the claim that timed out hands it over
        let Some(Claim::Download(second)) = waits.join().unwrap() else { panic!() };
        finish(second);
    });
    assert!(matches!(cache.claim_timeout(blob(1), LONG), Ok(Some(Claim::Hit(_)))));
}

#[test]
fn a_source_without_size_and_digest_can_fill_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut download = download(&cache, blob(1));
    assert_eq!(download.digest(), digest(b""));
    download.start(0, None).unwrap();
    io::copy(&mut &bytes()[..], &mut download).unwrap();
    download.flush().unwrap();
    assert_eq!((download.written(), download.digest()), (size(), digest(&bytes())));
    let cached = download.finish(download.digest()).unwrap();
    assert_eq!(read(&cached), bytes());
}

#[test]
fn a_download_of_unknown_size_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut first = download(&cache, blob(1));
    first.start(0, None).unwrap();
    send(&mut first, 0, 1000);
    first.leave();
    let mut second = download(&cache, blob(1));
    assert_eq!(second.resume().unwrap(), 1000);
    assert!(matches!(second.write(b"x"), Err(CacheError::NotStarted { .. })));
    second.start(1000, None).unwrap();
    send(&mut second, 1000, 2000);
    second.start(2000, Some(size())).unwrap();
    send(&mut second, 2000, 300_000);
    assert!(second.write(b"too much").is_err(), "the size is known by now");
    assert_eq!(read(&second.finish(digest(&bytes())).unwrap()), bytes());
}

#[test]
fn a_finished_download_says_so_in_every_method() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut download = download(&cache, blob(1));
    download.start(0, 1).unwrap();
    download.write(b"x").unwrap();
    download.finish(digest(b"x")).unwrap();
    let finished = |result: Result<(), CacheError>| matches!(result, Err(CacheError::Finished { .. }));
    assert!(finished(download.write(b"y")));
    assert!(finished(download.start(0, 1)));
    assert!(finished(download.resume().map(drop)));
    assert!(finished(download.finish(digest(b"x")).map(drop)));
    let error = io::Write::write(&mut download, b"y").unwrap_err();
    assert!(error.to_string().contains("is over"), "{error}");
}

#[test]
fn a_cached_blob_can_be_read_cloned_and_passed_as_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut cached = finish(download(&cache, blob(1)));
    let clone = cached.try_clone().unwrap();
    assert_eq!((clone.blob(), clone.size(), clone.path()), (blob(1), size(), cached.path()));
    let path: &Path = cached.as_ref();
    assert_eq!(std::fs::read(path).unwrap(), bytes());
    assert_eq!(cached.as_fd().as_raw_fd(), cached.file().as_raw_fd());
    let mut whole = vec![0; 1000];
    cached.read_exact(&mut whole).unwrap();
    (&cached).read_to_end(&mut whole).unwrap();
    assert_eq!(whole, bytes());
    drop(cached);
    assert_eq!(cache.clear().unwrap().blobs, 0, "the clone is in use");
    drop(clone);
    assert_eq!(cache.clear().unwrap().blobs, 1);
}

#[test]
fn all_types_can_be_sent_and_shared() {
    fn send_and_sync<T: Send + Sync>() {}
    send_and_sync::<Cache>();
    send_and_sync::<CacheConfig>();
    send_and_sync::<CacheEntry>();
    send_and_sync::<CacheError>();
    send_and_sync::<CachedBlob>();
    send_and_sync::<Claim>();
    send_and_sync::<SmallClaim>();
    send_and_sync::<Download>();
    send_and_sync::<Follow>();
    send_and_sync::<FollowEnd>();
    send_and_sync::<FollowError>();
    send_and_sync::<TransactionBuffer>();
    send_and_sync::<Buffered>();
    send_and_sync::<Evicted>();
    send_and_sync::<Usage>();
    send_and_sync::<Verified>();
}
