//! The limit of a cache: no process exceeds it, and none that dies keeps its space.

use crate::processes::{Children, next_command, report};
use crate::util::{blob, bytes, content, download, load, open, open_limited, read, unfinished};
use blobferry_cache::{Cache, CacheError, Take, WriteError};
use blobferry_protocol::{BlobId, Oid, Tid};
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The number of `filler` processes, with four threads each, and the limit that they fill.
pub(crate) const FILLERS: usize = 4;
pub(crate) const FILLED: u64 = 8 * MIB;

/// Returns the bytes that the files below a directory occupy.
pub(crate) fn taken(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().map(Result::unwrap);
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => taken(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0, // it has just gone
    };
    entries.map(of).sum()
}

/// Returns the bytes that a cache occupies at one moment: the lock keeps all processes from taking
/// or freeing space meanwhile. A file that becomes a blob meanwhile is not counted.
pub(crate) fn taken_at_once(cache: &Cache) -> u64 {
    let account = File::options().write(true).open(cache.layout().tmp().join(".room")).unwrap();
    account.lock().unwrap();
    let buckets = (0..BlobId::BUCKETS).map(|bucket| taken(&cache.layout().bucket_path(bucket)));
    buckets.sum::<u64>()
        + taken(cache.layout().tmp())
        + taken(&cache.layout().root().join("packs"))
        + fs::metadata(cache.layout().root().join(".layout")).unwrap().blocks() * 512
}

/// Returns the most bytes that a cache occupies while `work` runs.
pub(crate) fn watched(cache: &Cache, work: impl FnOnce()) -> u64 {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(taken_at_once(cache));
            }
            most
        });
        work();
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    })
}

/// The role of a child: puts blobs of different sizes into the cache, with four threads.
pub(crate) fn filler(dir: &Path) {
    let cache = open(dir);
    let first = u64::from(std::process::id()) << 32;
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let cache = &cache;
            scope.spawn(move || {
                for n in 0..40_u64 {
                    let oid = thread * 1000 + n;
                    let blob = BlobId { oid: Oid(oid), tid: Tid(first) };
                    let size = 1 + oid.wrapping_mul(7919) % (300 * KIB);
                    let cached = load(cache, blob, usize::try_from(size).unwrap()).unwrap();
                    assert_eq!(cached.size(), size);
                    assert!(cached.path().exists());
                }
            });
        }
    });
    report("done");
}

/// The role of a child: reserves space, writes some of the bytes, and reports.
pub(crate) fn holder(dir: &Path) {
    let cache = open(dir);
    let mut download = download(&cache, blob(1));
    download.start(0, 3 * MIB).unwrap();
    download.write(&bytes()).unwrap();
    let file = dir.with_extension("user's");
    fs::write(&file, vec![1; usize::try_from(MIB / 2).unwrap()]).unwrap();
    let mut buffer = cache.buffer();
    buffer.take(Oid(5), &file, Take::Move).unwrap();
    report("holds");
    next_command();
}

fn size(size: u64) -> usize {
    usize::try_from(size).unwrap()
}

/// Returns which of the blobs 1 to 9 are in the cache.
fn there(cache: &Cache) -> Vec<u64> {
    (1..10).filter(|n| cache.layout().blob_path(blob(*n)).exists()).collect()
}

/// Sets a blob's last use to this number of minutes ago.
fn used(cache: &Cache, n: u64, minutes: u64) {
    let file = File::open(cache.layout().blob_path(blob(n))).unwrap();
    let then = SystemTime::now() - Duration::from_secs(60 * minutes);
    file.set_times(FileTimes::new().set_accessed(then)).unwrap();
}

/// Returns a cache of 4 MiB with the blobs 1 to 3 of 1 MiB, which were used in this order.
fn three_of_four(dir: &Path) -> Cache {
    let cache = open_limited(dir, 4 * MIB);
    for n in 1..4 {
        load(&cache, blob(n), size(MIB)).unwrap();
    }
    (1..4).for_each(|n| used(&cache, n, 10 - n));
    cache
}

fn refused<T>(result: Result<T, CacheError>) -> (u64, u64, u64) {
    match result.map(drop).unwrap_err() {
        CacheError::Write { source: WriteError::Full { needed, limit, in_use }, .. } => {
            (needed, limit, in_use)
        }
        other => panic!("{other}"),
    }
}

#[test]
fn processes_never_exceed_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_limited(dir.path(), FILLED);
    let most = watched(&cache, || {
        let children = Children::start(FILLERS, "filler", dir.path());
        children.wait_for(FILLERS, "done");
        children.join(&[]);
    });
    assert!(most <= FILLED, "{most}");
    assert!(most > FILLED * 3 / 4, "{most}: the space is used");
    let usage = cache.usage().unwrap();
    assert_eq!((usage.unfinished, usage.in_use, usage.limit), (0, 0, Some(FILLED)));
    assert!(usage.blobs > 20 && usage.bytes <= FILLED, "{usage:?}");
}

#[test]
fn space_of_a_killed_process_is_reclaimed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("cache");
    let cache = open_limited(&root, 4 * MIB);
    let mut children = Children::start(1, "holder", &root);
    children.wait_for(1, "holds");
    let other = BlobId { oid: Oid(4), ..blob(2) }; // of another bucket: the killed one's is locked
    let (needed, limit, in_use) = refused(load(&cache, other, size(3 * MIB)));
    assert!(needed > 3 * MIB && limit == 4 * MIB && in_use > 3 * MIB, "{needed} {in_use}");
    children.children[0].0.kill().unwrap();
    children.children[0].0.wait().unwrap();
    // No process opens the cache in between, which would remove leftovers: the next reservation
    // does.
    assert_eq!(read(&load(&cache, other, size(3 * MIB)).unwrap()), content(other, size(3 * MIB)));
    assert!(taken_at_once(&cache) < 3 * MIB + 64 * KIB);
    children.join(&[0]);
}

#[test]
fn eviction_takes_the_least_recently_used_only() {
    let dir = tempfile::tempdir().unwrap();
    let cache = three_of_four(dir.path());
    used(&cache, 1, 1);
    load(&cache, blob(4), size(MIB)).unwrap();
    assert_eq!(there(&cache), [1, 3, 4], "2 was used longest ago");
    drop(cache.get(blob(3)).unwrap().unwrap()); // that is a use
    load(&cache, blob(5), size(MIB)).unwrap();
    assert_eq!(there(&cache), [3, 4, 5]);
}

#[test]
fn eviction_skips_what_was_used_since_the_walk() {
    let dir = tempfile::tempdir().unwrap();
    let cache = three_of_four(dir.path());
    load(&cache, blob(4), size(MIB)).unwrap();
    assert_eq!(there(&cache), [2, 3, 4], "from here on 2 and 3 are remembered as the next ones");
    drop(open(dir.path()).get(blob(2)).unwrap().unwrap());
    load(&cache, blob(5), size(MIB)).unwrap();
    assert_eq!(there(&cache), [2, 4, 5]);
}

#[test]
fn blobs_in_use_stay_and_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = three_of_four(dir.path());
    let other = open(dir.path());
    let cached = cache.get(blob(1)).unwrap().unwrap();
    let file = other.get(blob(2)).unwrap().unwrap().into_file();
    let (needed, limit, in_use) = refused(load(&cache, blob(4), size(2 * MIB)));
    assert!((2 * MIB..2 * MIB + 64 * KIB).contains(&needed), "{needed}");
    assert_eq!(limit, 4 * MIB);
    assert!((2 * MIB..2 * MIB + 64 * KIB).contains(&in_use), "{in_use}");
    assert_eq!(there(&cache), [1, 2]);
    assert_eq!(unfinished(&cache), 0);
    drop(file);
    load(&cache, blob(4), size(2 * MIB)).unwrap();
    assert_eq!(there(&cache), [1, 4]);
    assert_eq!(read(&cached), content(blob(1), size(MIB)));
}

#[test]
fn a_blob_above_the_limit_evicts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = three_of_four(dir.path());
    let (needed, limit, in_use) = refused(load(&cache, blob(4), size(4 * MIB)));
    assert!(needed > 4 * MIB && (limit, in_use) == (4 * MIB, 0));
    assert_eq!(refused(cache.check_space(blob(4), 4 * MIB)), (needed, limit, in_use));
    cache.check_space(blob(4), 3 * MIB).unwrap();
    assert_eq!(there(&cache), [1, 2, 3]);
    let said = cache.check_space(blob(4), 4 * MIB).unwrap_err().to_string();
    assert!(said.contains("4194304") && said.contains("blobferry cache gc --limit"), "{said}");
    let huge = cache.set_limit(None).and_then(|_| cache.check_space(blob(4), 1 << 60)).unwrap_err();
    assert!(matches!(huge, CacheError::Write { source: WriteError::NoSpace { .. }, .. }), "{huge}");
}

#[test]
fn the_limit_is_recorded_for_all_processes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    assert_eq!(cache.limit().unwrap(), None);
    for n in 1..4 {
        load(&cache, blob(n), size(MIB)).unwrap();
        used(&cache, n, 10 - n);
    }
    open_limited(dir.path(), 2 * MIB);
    assert_eq!(there(&cache), [3], "what is too much goes at once");
    assert_eq!(open(dir.path()).limit().unwrap(), Some(2 * MIB));
    load(&cache, blob(4), size(MIB)).unwrap();
    assert_eq!(there(&cache), [4]);
    cache.set_limit(None).unwrap();
    load(&cache, blob(5), size(2 * MIB)).unwrap();
    assert_eq!(there(&cache), [4, 5]);
}

#[test]
fn the_files_of_transactions_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_limited(&dir.path().join("cache"), 4 * MIB);
    let file = dir.path().join("file");
    let write = || fs::write(&file, vec![1; size(3 * MIB)]).unwrap();
    write();
    let full = |result: Result<(), CacheError>| {
        matches!(result, Err(CacheError::Take { source: WriteError::Full { .. }, .. }))
    };
    for how in [Take::Move, Take::Copy] {
        let mut buffer = cache.buffer();
        buffer.take(Oid(1), &file, how).unwrap();
        write();
        assert!(full(buffer.take(Oid(2), &file, how).map(drop)));
        assert!(file.exists(), "it stays where it is");
        buffer.remove(Oid(1));
        buffer.take(Oid(2), &file, how).unwrap();
        drop(buffer);
        write();
    }
    let mut buffer = cache.buffer();
    let mut writer = buffer.writer().unwrap();
    let megabyte = vec![1; size(MIB)];
    (0..3).for_each(|_| writer.write(&megabyte).unwrap());
    assert!(matches!(writer.write(&megabyte), Err(WriteError::Full { .. })));
    drop(writer);
    let mut writer = buffer.writer().unwrap();
    (0..3).for_each(|_| writer.write(&megabyte).unwrap());
    buffer.adopt(Oid(3), writer.complete().unwrap()).unwrap();
    assert!(full(buffer.take(Oid(2), &file, Take::Copy).map(drop)));
    drop(buffer.finish(Tid(1)).unwrap());
    let mut buffer = cache.buffer();
    buffer.take(Oid(2), &file, Take::Copy).unwrap();
    assert_eq!(cache.layout().blobs().count(), 0, "the blob went for it");
}
