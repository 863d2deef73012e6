//! Downloads that continue with the bytes of an earlier one: in the same process, in another one,
//! after a kill.

use crate::processes::{Children, left_over, next_command, report};
use crate::util::{blob, bytes, digest, download, finish, open, read, send, size, unfinished};
use blobferry_cache::{Cache, CacheError, Claim, WriteError};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

fn partial(cache: &Cache) -> PathBuf {
    cache.layout().tmp().join(format!("partial/3.{}.part", blob(1).tid))
}

/// Downloads the first bytes, and leaves them.
fn half(cache: &Cache, to: usize) {
    let mut first = download(cache, blob(1));
    assert_eq!((first.found(), first.written()), (0, 0));
    first.start(0, size()).unwrap();
    send(&mut first, 0, to);
    assert_eq!(first.written(), to as u64);
    first.leave();
}

/// The role of a child: claims, downloads half or the missing bytes, and reports what it has found
/// and sent.
pub(crate) fn taker(dir: &Path) {
    let cache = open(dir);
    report("claims");
    let mut download = match cache.claim(blob(1)).unwrap() {
        Claim::Download(download) => download,
        Claim::Hit(hit) => panic!("{hit:?}"),
    };
    report(&format!("found {}", download.found()));
    let to = next_command().parse().unwrap();
    let from = download.resume().unwrap();
    download.start(from, size()).unwrap();
    send(&mut download, from as usize, to);
    report(&format!("sent {from}..{to}"));
    next_command();
    assert_eq!(read(&download.finish(digest(&bytes())).unwrap()), bytes());
    report("has it");
}

#[test]
fn bytes_of_a_killed_process_are_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Children::start(1, "taker", dir.path());
    first.wait_for(1, "claims");
    first.wait_for(1, "found 0");
    first.command(0, "123456");
    first.wait_for(1, "sent 0..123456");

    let mut second = Children::start(1, "taker", dir.path());
    second.wait_for(1, "claims");
    first.kill(0);
    second.wait_for(1, "found 123456");
    second.command(0, "300000");
    second.wait_for(1, "sent 123456..300000");
    second.command(0, "finish");
    second.wait_for(1, "has it");
    second.join(&[]);
    first.join(&[0]);
    assert!(left_over(dir.path()).is_empty());
}

#[test]
fn left_bytes_are_resumed_and_dropped_ones_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    half(&cache, 123_456);
    let first = download(&cache, blob(1));
    let (answer, answered) = mpsc::channel();
    for _ in 0..2 {
        let answer = answer.clone();
        cache.claim_with(blob(1), move |claim| answer.send(claim.unwrap()).unwrap());
    }
    drop(first); // it has not touched the bytes
    let Claim::Download(mut second) = answered.try_recv().unwrap() else { panic!() };
    assert_eq!((second.found(), second.written()), (123_456, 0));
    assert_eq!((second.resume().unwrap(), second.resume().unwrap()), (123_456, 123_456));
    second.start(123_456, size()).unwrap();
    send(&mut second, 123_456, 200_000);
    drop(second);
    let Claim::Download(third) = answered.try_recv().unwrap() else { panic!() };
    assert_eq!((third.found(), unfinished(&cache)), (0, 0));
    assert_eq!(read(&finish(third)), bytes());
}

#[test]
fn left_bytes_keep_no_reserved_space() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut download = download(&cache, blob(1));
    download.start(0, 64 << 20).unwrap();
    send(&mut download, 0, 300_000);
    assert_eq!(fs::metadata(partial(&cache)).unwrap().len(), 300_000, "its size is what was written");
    download.leave();
    assert!(fs::metadata(partial(&cache)).unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn a_download_continues_on_a_new_connection() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let mut download = download(&cache, blob(1));
    download.start(0, size()).unwrap();
    for (from, to) in [(0, 1), (1, 150_000), (150_000, 150_000), (150_000, 300_000), (300_000, 300_000)] {
        download.start(from as u64, size()).unwrap();
        send(&mut download, from, to);
    }
    let cached = download.finish(digest(&bytes())).unwrap();
    assert_eq!(read(&cached), bytes());
    for refused in [download.start(0, 1), download.resume().map(drop)] {
        assert!(matches!(refused, Err(CacheError::Finished { .. })));
    }
    assert_eq!((read(&cache.get(blob(1)).unwrap().unwrap()), unfinished(&cache)), (bytes(), 0));
}

#[test]
fn bytes_that_do_not_fit_are_stale() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let whole = size();
    // Another offset; another size; a size below the bytes that are there.
    for (from, size) in [(1, whole), (99_999, whole), (100_000, whole + 1), (100_000, 99_999)] {
        let mut download = download(&cache, blob(1));
        download.start(0, whole).unwrap();
        send(&mut download, 0, 100_000);
        assert!(matches!(download.start(from, size), Err(CacheError::Stale { .. })));
        assert_eq!((download.written(), unfinished(&cache)), (0, 0));
    }
    assert_eq!(read(&finish(download(&cache, blob(1)))), bytes());
}

#[test]
fn resumed_garbage_costs_one_more_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    half(&cache, 100_000);
    let mut garbage = bytes()[..100_000].to_vec();
    garbage[5] ^= 1;
    fs::write(partial(&cache), garbage).unwrap();

    let mut download = download(&cache, blob(1));
    assert_eq!(download.resume().unwrap(), 100_000);
    download.start(100_000, size()).unwrap();
    send(&mut download, 100_000, 300_000);
    assert!(matches!(download.finish(digest(&bytes())), Err(CacheError::Stale { .. })));
    assert!(matches!(download.write(b"x"), Err(CacheError::NotStarted { .. })));
    assert_eq!((download.written(), cache.layout().blobs().count(), unfinished(&cache)), (0, 0, 0));

    download.start(0, size()).unwrap();
    send(&mut download, 0, 299_999);
    download.write(b"x").unwrap();
    let mistaken = download.finish(digest(&bytes()));
    assert!(
        matches!(mistaken, Err(CacheError::Write { source: WriteError::Digest { .. }, .. })),
        "the server's"
    );
    assert_eq!(read(&finish(download)), bytes());
}

#[test]
fn too_many_resumed_bytes_are_stale() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    half(&cache, 300_000);
    fs::write(partial(&cache), vec![7; 300_001]).unwrap();
    let mut download = download(&cache, blob(1));
    assert_eq!(download.resume().unwrap(), 300_001);
    assert!(matches!(download.start(300_001, size()), Err(CacheError::Stale { .. })));
    assert_eq!(read(&finish(download)), bytes());
}

#[test]
fn a_foreign_partial_file_is_not_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let other = dir.path().join("other");
    half(&cache, 10);
    type Lay = fn(&Path, &Path);
    let lay: [Lay; 3] = [
        |other, partial| symlink(other, partial).unwrap(),
        |other, partial| fs::hard_link(other, partial).unwrap(),
        |_, partial| {
            rustix::fs::mknodat(rustix::fs::CWD, partial, rustix::fs::FileType::Fifo, 0o600.into(), 0)
                .unwrap();
        },
    ];
    for lay in lay {
        fs::write(&other, &bytes()[..10]).unwrap();
        _ = fs::remove_file(partial(&cache));
        lay(&other, &partial(&cache));
        let mut download = download(&cache, blob(1));
        assert_eq!(download.resume().unwrap(), 0);
        download.start(0, size()).unwrap();
        send(&mut download, 0, 20);
        assert_eq!(fs::read(&other).unwrap(), &bytes()[..10], "the other file is as it was");
    }
}

#[test]
fn a_download_without_resume_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    half(&cache, 10);
    fs::write(partial(&cache), "garbage").unwrap();
    let download = download(&cache, blob(1));
    assert_eq!(download.found(), 7);
    assert_eq!(read(&finish(download)), bytes());
}

#[test]
fn left_bytes_belong_to_one_blob_and_can_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    half(&cache, 10);
    assert_eq!(download(&cache, blob(2)).found(), 0);
    for resume in [true, false] {
        let mut found = download(&cache, blob(1));
        assert_eq!(found.found(), 10);
        if resume {
            found.resume().unwrap();
        }
        found.restart();
        assert_eq!((found.found(), found.written(), unfinished(&cache)), (0, 0, 0));
        drop(found);
        half(&cache, 10);
    }
}

#[test]
fn gc_removes_only_partials_without_a_downloader() {
    let dir = tempfile::tempdir().unwrap();
    let (here, elsewhere) = (open(dir.path()), open(dir.path()));
    half(&here, 1000);
    fs::write(partial(&here).with_file_name("stranger"), "x").unwrap();
    let mut download = download(&here, blob(2));
    download.start(0, size()).unwrap();
    send(&mut download, 0, 10);
    for cache in [&here, &elsewhere] {
        cache.gc(None).unwrap();
        assert!(partial(cache).exists(), "the bucket's lock is taken");
    }
    assert_eq!(read(&finish(download)), bytes());
    elsewhere.gc(None).unwrap();
    assert!(!partial(&here).exists());
    assert_eq!(unfinished(&here), 1, "the stranger is left");
    assert_eq!(crate::util::download(&here, blob(1)).found(), 0);
}
