//! Following a download in the same process or another one.

use crate::processes::{Children, left_over, report};
use crate::util::{blob, bytes, digest, download, finish, open, read, send, size, unfinished};
use blobferry_cache::{Cache, CacheConfig, CacheError, Claim, Download, Follow, FollowEnd, FollowError};
use blobferry_platform::blobdir::Layout;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{LazyLock, mpsc};

static BYTES: LazyLock<Vec<u8>> = LazyLock::new(bytes);

/// Reads the next bytes up to `to`, and compares them with the blob's.
fn read_up_to(follow: &mut Follow, from: usize, to: usize) {
    let mut part = vec![0; to - from];
    follow.read_exact(&mut part).unwrap();
    assert!(part == BYTES[from..to]);
}

/// Reads at the end of the blob.
fn at_end(follow: &mut Follow) -> io::Result<usize> {
    follow.read(&mut [0; 100])
}

fn follow_error(error: io::Error) -> FollowError {
    error.into_inner().unwrap().downcast_ref::<FollowError>().unwrap().clone()
}

/// Returns a follower that can download by itself, and the receiver of its download.
fn follow_and_take_over(cache: &Cache) -> (Follow, mpsc::Receiver<(Download, FollowEnd)>) {
    let (hand, handed) = mpsc::channel();
    let follow =
        cache.follow_with(blob(1), move |download, end| hand.send((download, end)).unwrap()).unwrap();
    (follow, handed)
}

/// The role of a child: follows, and reports its progress.
pub(crate) fn follower(dir: &Path) {
    let cache = open(dir);
    let mut follow = cache.follow(blob(1)).unwrap();
    report("follows");
    for (from, to) in [(0, 150_000), (150_000, 300_000)] {
        read_up_to(&mut follow, from, to);
        report(&format!("read {to}"));
    }
    match at_end(&mut follow) {
        Ok(n) => {
            assert_eq!(n, 0);
            assert!(
                cache.get(blob(1)).unwrap().is_some(),
                "the end is next_command when the blob is there, and not before"
            );
            report("end");
        }
        Err(error) => report(&follow_error(error).to_string()),
    }
}

/// The role of a child: follows, and claims the blob itself, to take over from the downloader,
/// which dies.
pub(crate) fn heir(dir: &Path) {
    let cache = open(dir);
    let (answer, answered) = mpsc::channel();
    cache.claim_with(blob(1), move |claim| answer.send(claim.unwrap()).unwrap());
    let mut follow = cache.follow(blob(1)).unwrap();
    read_up_to(&mut follow, 0, 123_456);
    report("read 123456");
    let Claim::Download(mut download) = answered.recv().unwrap() else { panic!() };
    go_on(&mut follow, &mut download);
    assert_eq!(read(&download.finish(digest(&bytes())).unwrap()), bytes());
    assert_eq!(at_end(&mut follow).unwrap(), 0);
    report("end");
}

/// The same without a claim of its own: the follower takes over.
pub(crate) fn heir_of_its_own(dir: &Path) {
    let (mut follow, handed) = follow_and_take_over(&open(dir));
    read_up_to(&mut follow, 0, 123_456);
    report("read 123456");
    let (mut download, end) = handed.recv().unwrap();
    go_on(&mut follow, &mut download);
    end.tell(download.finish(digest(&bytes())));
    assert_eq!(at_end(&mut follow).unwrap(), 0);
    report("end");
}

/// Downloads the rest, and follows it.
fn go_on(follow: &mut Follow, download: &mut Download) {
    assert_eq!(download.resume().unwrap(), 123_456);
    download.start(123_456, size()).unwrap();
    for (from, to) in [(123_456, 200_000), (200_000, 300_000)] {
        send(download, from, to);
        read_up_to(follow, from, to);
    }
}

#[test]
fn another_process_reads_bytes_as_they_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut download = download(&cache, blob(1));
    let children = Children::start(2, "follower", dir.path());
    children.wait_for(2, "follows");
    download.start(0, size()).unwrap();
    for (from, to) in [(0, 150_000), (150_000, 300_000)] {
        send(&mut download, from, to);
        children.wait_for(2, &format!("read {to}"));
    }
    // Another download of this process holds the bucket's lock: the end is reported in spite of it.
    let other = crate::util::download(&cache, blob(2));
    download.finish(digest(&bytes())).unwrap();
    children.wait_for(2, "end");
    children.join(&[]);
    drop(other);
}

#[test]
fn a_dropped_download_is_an_error_in_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut download = download(&cache, blob(1));
    download.start(0, size()).unwrap();
    let children = Children::start(1, "follower", dir.path());
    children.wait_for(1, "follows");
    send(&mut download, 0, 300_000);
    children.wait_for(1, "read 150000");
    children.wait_for(1, "read 300000");
    drop(download);
    children.wait_for(1, &FollowError::Unattended { blob: blob(1) }.to_string());
    children.join(&[]);
}

#[test]
fn followers_survive_a_killed_downloader() {
    for role in ["heir", "heir of its own"] {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Children::start(1, "taker", dir.path());
        first.wait_for(1, "claims");
        first.wait_for(1, "found 0");
        first.command(0, "123456");
        first.wait_for(1, "sent 0..123456");
        let heir = Children::start(1, role, dir.path());
        heir.wait_for(1, "read 123456");
        first.kill(0);
        heir.wait_for(1, "end");
        heir.join(&[]);
        first.join(&[0]);
        assert!(left_over(dir.path()).is_empty());
    }
}

#[test]
fn a_cached_blob_is_read_like_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    finish(download(&cache, blob(1)));
    let mut follow = cache.follow(blob(1)).unwrap();
    (0..300_000).for_each(|n| read_up_to(&mut follow, n, n + 1));
    assert_eq!(at_end(&mut follow).unwrap(), 0);

    let mut follow = cache.follow(blob(1)).unwrap();
    read_up_to(&mut follow, 0, 10);
    assert_eq!((follow.size(), follow.blob()), (Some(size()), blob(1)));
    assert_eq!(read(&follow.finish().unwrap()), bytes());
}

#[test]
fn single_bytes_are_read_as_they_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut download = download(&cache, blob(1));
    let mut follow = cache.follow(blob(1)).unwrap();
    assert_eq!((follow.read(&mut []).unwrap(), follow.size()), (0, None));
    download.start(0, 1000).unwrap();
    for n in 0..1000 {
        send(&mut download, n, n + 1);
        read_up_to(&mut follow, n, n + 1);
    }
    let cached = download.finish(digest(&bytes()[..1000])).unwrap();
    assert_eq!((at_end(&mut follow).unwrap(), at_end(&mut follow).unwrap()), (0, 0));
    assert_eq!(read(&follow.finish().unwrap()), read(&cached));
}

#[test]
fn the_size_is_known_during_the_download() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut download = download(&cache, blob(1));
    download.start(0, size()).unwrap();
    send(&mut download, 0, 10);
    let mut follow = cache.follow(blob(1)).unwrap();
    read_up_to(&mut follow, 0, 10);
    let probe = tempfile::tempfile_in(dir.path()).unwrap();
    let noted = rustix::fs::fsetxattr(probe, "user.probe", b"", rustix::fs::XattrFlags::empty());
    assert_eq!(follow.size(), noted.ok().map(|()| size()));
}

#[test]
fn finish_returns_the_blob_and_checks_what_was_read() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut download = download(&cache, blob(1));
    download.start(0, size()).unwrap();
    let mut follow = cache.follow(blob(1)).unwrap();
    send(&mut download, 0, 100);
    read_up_to(&mut follow, 0, 50);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| follow.finish().unwrap());
        send(&mut download, 100, 300_000);
        download.finish(digest(&bytes())).unwrap();
        assert_eq!(read(&waits.join().unwrap()), bytes());
    });
}

#[test]
fn a_restart_with_other_bytes_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    for (n, changed) in [(0, None), (1, Some(0)), (2, Some(99_999)), (3, Some(100_000))] {
        let mut first = bytes();
        changed.into_iter().for_each(|at: usize| first[at] ^= 1);
        let mut download = download(&cache, blob(n));
        let mut follow = cache.follow(blob(n)).unwrap();
        download.start(0, size()).unwrap();
        download.write(&first[..150_000]).unwrap();
        let mut read = vec![0; 100_000];
        follow.read_exact(&mut read).unwrap();
        download.start(0, size()).unwrap();
        send(&mut download, 0, 300_000);
        download.finish(digest(&bytes())).unwrap();

        // The bytes of the first file may still be read; only the end tells whether they were
        // right.
        match follow.read_to_end(&mut read) {
            Ok(_) => assert!(changed.is_none() && read == bytes()),
            Err(error) => {
                assert!(changed.is_some());
                assert!(matches!(follow_error(error), FollowError::Different { blob: of } if of == blob(n)));
                assert!(follow.read(&mut [0]).is_err(), "what has failed stays failed");
            }
        }
    }
}

#[test]
fn a_follower_waits_for_a_restart_to_catch_up() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut download = download(&cache, blob(1));
    let mut follow = cache.follow(blob(1)).unwrap();
    download.start(0, size()).unwrap();
    send(&mut download, 0, 1000);
    read_up_to(&mut follow, 0, 1000);
    download.start(0, size()).unwrap();
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| read_up_to(&mut follow, 1000, 1001));
        (0..1001).for_each(|n| send(&mut download, n, n + 1));
        reads.join().unwrap();
    });
    send(&mut download, 1001, 300_000);
    download.finish(digest(&bytes())).unwrap();
    read_up_to(&mut follow, 1001, 300_000);
    assert_eq!(at_end(&mut follow).unwrap(), 0);
}

#[test]
fn without_a_downloader_the_follower_downloads_or_fails() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut alone = cache.follow(blob(1)).unwrap();
    assert!(matches!(follow_error(at_end(&mut alone).unwrap_err()), FollowError::Unattended { .. }));
    assert!(matches!(alone.finish(), Err(FollowError::Unattended { .. })));

    let (mut follow, handed) = follow_and_take_over(&cache);
    let (download, end) = handed.try_recv().unwrap();
    end.tell(Ok::<_, CacheError>(finish(download)));
    read_up_to(&mut follow, 0, 300_000);
    assert_eq!(at_end(&mut follow).unwrap(), 0);
}

#[test]
fn a_follower_gets_the_error_of_the_download() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let (mut follow, handed) = follow_and_take_over(&cache);
    let (mut download, end) = handed.try_recv().unwrap();
    download.start(0, size()).unwrap();
    send(&mut download, 0, 10);
    drop(download);
    end.tell(Err("the server is on fire"));
    for _ in 0..2 {
        let error = follow_error(at_end(&mut follow).unwrap_err());
        assert!(
            matches!(&error, FollowError::Failed { source, .. } if source.to_string().ends_with("on fire"))
        );
    }
    assert_eq!(unfinished(&cache), 0);
}

#[test]
fn a_dropped_follower_takes_no_download() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut first = download(&cache, blob(1));
    first.start(0, size()).unwrap();
    send(&mut first, 0, 10);
    let (follow, handed) = follow_and_take_over(&cache);
    drop(follow);
    drop(cache.follow(blob(1)).unwrap());
    let (answer, answered) = mpsc::channel();
    cache.claim_with(blob(1), move |claim| answer.send(claim.unwrap()).unwrap());
    first.leave();
    assert!(handed.recv().is_err());
    let Claim::Download(next) = answered.recv().unwrap() else { panic!() };
    assert_eq!(next.found(), 10);
}

#[test]
fn in_shared_mode_a_missing_blob_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    drop(Layout::open(dir.path()).unwrap());
    let cache = Cache::open(dir.path(), CacheConfig { shared: true, ..CacheConfig::default() }).unwrap();
    let mut follow = cache.follow(blob(1)).unwrap();
    let error = follow_error(at_end(&mut follow).unwrap_err());
    assert!(error.to_string().contains("is not in the server's directory"), "{error}");
}
