//! Followers of a download under many schedules. There are few schedules, because the kernel is
//! slow to end a watch.

use std::io::Read;

use blobferry_protocol::{BlobId, Digest, Oid, Tid};

use crate::schedules::Home;
use crate::{Cache, Claim, Download, FollowError};
use blobferry_platform::sync::thread::JoinHandle;
use blobferry_platform::sync::{Arc, Mutex, explore, thread};

const BLOB: BlobId = BlobId { oid: Oid(3), tid: Tid(1) };
const BYTES: &[u8] = b"a blob that comes in pieces";

/// Asserts that no claim is in flight, and removes the blob.
fn check(cache: &Cache) {
    assert!(cache.0.is_idle());
    _ = std::fs::remove_file(cache.layout().blob_path(BLOB));
}

fn digest() -> Digest {
    Digest(*blake3::hash(BYTES).as_bytes())
}

/// Downloads piece by piece.
fn fill(download: &mut Download) {
    download.start(0, BYTES.len() as u64).unwrap();
    for piece in BYTES.chunks(9) {
        download.write(piece).unwrap();
        thread::yield_now();
    }
}

/// The threads that download for a follower.
type Downloads = Arc<Mutex<Vec<JoinHandle<()>>>>;

/// Joins them. There is exactly one.
fn join(downloads: &Downloads) {
    let [download]: [_; 1] = std::mem::take(&mut *downloads.lock()).try_into().unwrap();
    download.join().unwrap();
}

fn read(cache: &Cache, downloads: &Downloads) -> std::io::Result<Vec<u8>> {
    let counted = downloads.clone();
    let mut follow = cache
        .follow_with(BLOB, move |mut download, end| {
            let download = move || {
                fill(&mut download);
                end.tell(download.finish(digest()));
            };
            counted.lock().push(thread::spawn(download));
        })
        .unwrap();
    let mut bytes = Vec::new();
    follow.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn every_follower_reads_to_the_end() {
    let home = Home::new();
    explore(25, move || {
        let cache = home.open();
        let downloads = Downloads::default();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (cache, downloads) = (cache.clone(), downloads.clone());
                thread::spawn(move || assert_eq!(read(&cache, &downloads).unwrap(), BYTES))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        join(&downloads);
        check(&cache);
    });
}

#[test]
fn a_follower_takes_over_from_a_leader() {
    let home = Home::new();
    explore(25, move || {
        let cache = home.open();
        let downloads = Downloads::default();
        let Claim::Download(mut first) = cache.claim(BLOB).unwrap() else { unreachable!() };
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (cache, downloads) = (cache.clone(), downloads.clone());
                thread::spawn(move || assert_eq!(read(&cache, &downloads).unwrap(), BYTES))
            })
            .collect();
        first.start(0, BYTES.len() as u64).unwrap();
        first.write(&BYTES[..7]).unwrap();
        thread::yield_now();
        drop(first);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        join(&downloads);
        check(&cache);
    });
}

/// A dropped follower lets the claims behind it go on. A follower that cannot download learns that
/// no claim does.
#[test]
fn a_dropped_follower_blocks_no_claim() {
    let home = Home::new();
    explore(25, move || {
        let cache = home.open();
        let Claim::Download(first) = cache.claim(BLOB).unwrap() else { unreachable!() };
        let leaves = {
            let cache = cache.clone();
            thread::spawn(move || drop(cache.follow(BLOB).unwrap()))
        };
        let reads = {
            let cache = cache.clone();
            thread::spawn(move || match cache.follow(BLOB).unwrap().finish() {
                Ok(cached) => assert_eq!(cached.size(), BYTES.len() as u64),
                Err(error) => assert!(matches!(error, FollowError::Unattended { .. }), "{error}"),
            })
        };
        let claims = {
            let cache = cache.clone();
            thread::spawn(move || match cache.claim(BLOB).unwrap() {
                Claim::Hit(_) => unreachable!("the first download was dropped"),
                Claim::Download(mut download) => {
                    fill(&mut download);
                    drop(download.finish(digest()).unwrap());
                }
            })
        };
        thread::yield_now();
        drop(first);
        [leaves, reads, claims].into_iter().for_each(|thread| thread.join().unwrap());
        check(&cache);
    });
}

/// No change of a file reports this.
#[test]
fn a_follower_learns_that_no_claim_downloads() {
    let home = Home::new();
    explore(25, move || {
        let cache = home.open();
        let Claim::Download(first) = cache.claim(BLOB).unwrap() else { unreachable!() };
        let reads = {
            let cache = cache.clone();
            thread::spawn(move || cache.follow(BLOB).unwrap().finish())
        };
        thread::yield_now();
        drop(first);
        assert!(matches!(reads.join().unwrap(), Err(FollowError::Unattended { .. })));
        check(&cache);
    });
}
