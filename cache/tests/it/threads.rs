//! Threads of one process, and two caches in one process, which exclude each other as processes do.

use crate::util::{blob, bytes, digest, download, finish, open, read, unfinished};
use blobferry_cache::{Cache, CacheError, Claim, WriteError};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;

#[test]
fn one_of_ten_threads_downloads() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let downloads = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let cached = match cache.claim(blob(1)).unwrap() {
                    Claim::Hit(cached) => cached,
                    Claim::Download(download) => {
                        downloads.fetch_add(1, Ordering::Relaxed);
                        finish(download)
                    }
                };
                assert_eq!(read(&cached), bytes());
            });
        }
    });
    assert_eq!(downloads.into_inner(), 1);
    assert_eq!(unfinished(&cache), 0);
}

#[test]
fn a_dropped_download_goes_to_the_next_claim() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut first = download(&cache, blob(1));
    let (answer, answers) = mpsc::channel();
    for n in 0..3 {
        let answer = answer.clone();
        cache.claim_with(blob(1), move |claim| answer.send((n, claim.unwrap())).unwrap());
    }
    assert!(answers.try_recv().is_err(), "they wait");

    first.start(0, 10).unwrap();
    first.write(b"half").unwrap();
    drop(first);
    let (n, Claim::Download(second)) = answers.try_recv().unwrap() else { panic!() };
    assert_eq!(n, 0);
    assert_eq!(unfinished(&cache), 0);
    assert!(answers.try_recv().is_err(), "the others still wait");

    finish(second);
    for expected in 1..3 {
        let (n, Claim::Hit(cached)) = answers.try_recv().unwrap() else { panic!() };
        assert_eq!((n, read(&cached)), (expected, bytes()));
    }
}

#[test]
fn thousands_of_dropped_answers_are_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let first = download(&cache, blob(1));
    for _ in 0..20_000 {
        cache.claim_with(blob(1), drop);
    }
    let (answer, answered) = mpsc::channel();
    cache.claim_with(blob(1), move |claim| answer.send(claim).unwrap());
    drop(first);
    assert!(matches!(answered.try_recv(), Ok(Ok(Claim::Download(_)))));
}

#[test]
fn wrong_bytes_never_become_visible() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let refused = |size: u64, given: &[u8], announced: &[u8]| {
        let mut download = download(&cache, blob(1));
        download.start(0, size).unwrap();
        let written = download.write(given);
        let error = written.and_then(|()| download.finish(digest(announced))).unwrap_err();
        drop(download);
        assert!(cache.get(blob(1)).unwrap().is_none());
        assert_eq!(cache.layout().blobs().count(), 0);
        assert_eq!(unfinished(&cache), 0);
        match error {
            CacheError::Write { blob: of, source } if of == blob(1) => source,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(refused(4, b"abcx", b"abcd"), WriteError::Digest { .. }));
    assert!(matches!(refused(4, b"abc", b"abc"), WriteError::TooShort { size: 4, found: 3 }));
    assert!(matches!(refused(4, b"abcde", b"abcde"), WriteError::TooLong { size: 4, found: 5 }));

    let mut unstarted = download(&cache, blob(1));
    assert!(matches!(unstarted.finish(digest(b"")), Err(CacheError::NotStarted { .. })));
}

#[test]
fn a_restarted_download_starts_from_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut download = download(&cache, blob(1));
    download.start(0, 10).unwrap();
    download.write(b"half").unwrap();
    assert_eq!(read(&finish(download)), bytes());
    assert_eq!(unfinished(&cache), 0);
}

#[test]
fn a_blob_stays_readable_if_its_file_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let cached = finish(download(&cache, blob(1)));
    std::fs::remove_file(cached.path()).unwrap();
    assert!(cache.get(blob(1)).unwrap().is_none());
    assert_eq!(read(&cached), bytes());
    drop(download(&cache, blob(1)));
}

#[test]
fn a_bucket_is_locked_between_processes_only() {
    let dir = tempfile::tempdir().unwrap();
    let (here, elsewhere) = (open(dir.path()), open(dir.path()));
    let first = download(&here, blob(1));
    let second = download(&here, blob(2));

    let (answer, answered) = mpsc::channel();
    let claim = |cache: &Cache, n: u64| {
        let answer = answer.clone();
        cache.claim_with(blob(n), move |claim| answer.send((n, claim.unwrap())).unwrap());
    };
    claim(&elsewhere, 1);
    claim(&elsewhere, 3);
    assert_eq!(read(&finish(first)), bytes());
    assert!(answered.try_recv().is_err(), "the bucket is still locked");
    drop(second);

    // The thread that waited for the lock answers both now, in the order of the blobs.
    let (1, Claim::Hit(hit)) = answered.recv().unwrap() else { panic!() };
    assert_eq!(read(&hit), bytes());
    let (3, Claim::Download(third)) = answered.recv().unwrap() else { panic!() };

    claim(&here, 3);
    finish(third);
    assert!(matches!(answered.recv().unwrap(), (3, Claim::Hit(_))));
}

#[test]
fn a_lock_without_claims_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let (here, elsewhere) = (open(dir.path()), open(dir.path()));
    let first = download(&here, blob(1));
    let (answer, answered) = mpsc::channel();
    // Nothing receives the answer, so it is dropped, which `answered` reports.
    let (unwanted, receiver) = mpsc::channel();
    drop(receiver);
    elsewhere.claim_with(blob(1), move |claim| {
        drop(unwanted.send(claim));
        answer.send(()).unwrap();
    });
    drop(first);
    answered.recv().unwrap();
    drop(download(&here, blob(1)));
}
