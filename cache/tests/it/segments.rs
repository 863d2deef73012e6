//! Small blobs that are loaded into memory: written to segments in the background, and found by all
//! processes.

use crate::processes::{Children, next_command, report};
use crate::quota::taken_at_once;
use crate::util::{content, digest, open, open_limited, read};
use blobferry_cache::{Cache, CacheError, Claim, Download, SmallClaim, WriteError};
use blobferry_protocol::{BlobId, Oid, Tid};
use bytes::Bytes;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

const SIZE: usize = 10 << 10;

/// Returns a blob. Each is of another bucket.
fn blob(n: u64) -> BlobId {
    BlobId { oid: Oid(n), tid: Tid(7) }
}

fn whole(n: u64) -> Bytes {
    content(blob(n), SIZE).into()
}

fn to_download(cache: &Cache, n: u64) -> Download {
    match cache.claim_small(blob(n)).unwrap() {
        SmallClaim::Download(download) => download,
        other => panic!("{n}: {other:?}"),
    }
}

/// Loads a small blob. Returns whether it was in the cache.
fn load(cache: &Cache, n: u64) -> bool {
    match cache.claim_small(blob(n)).unwrap() {
        SmallClaim::Bytes(bytes) => assert_eq!(bytes, whole(n), "{n}"),
        SmallClaim::File(cached) => assert_eq!(read(&cached), whole(n), "{n}"),
        SmallClaim::Download(download) => {
            download.finish_small(&whole(n), digest(&whole(n)), |write| write()).unwrap();
            return false;
        }
    }
    true
}

fn segment_paths(cache: &Cache) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(cache.layout().root().join("packs")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|kind| kind == "pack")).collect();
    segments.sort();
    segments
}

/// Returns the number of files.
fn files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
}

fn claim_later(cache: &Cache, n: u64) -> Receiver<Result<SmallClaim, CacheError>> {
    let (answer, answered) = channel();
    cache.claim_small_with(blob(n), move |claim| answer.send(claim).unwrap());
    answered
}

/// The role of a child: loads small blobs one after the other, and reports their number.
pub(crate) fn packer(dir: &Path) {
    let cache = open(dir);
    for n in 0.. {
        load(&cache, n);
        if n % 100 == 99 {
            report(&format!("{}", n + 1));
            next_command();
        }
    }
}

#[test]
fn a_thousand_small_loads_create_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, other) = (open(dir.path()), open(dir.path()));
    // The first use of a bucket creates its lock file.
    (0..BlobId::BUCKETS).for_each(|bucket| drop(to_download(&cache, bucket)));
    assert!(!load(&cache, 2000));
    let before = files(dir.path());
    (0..1000).for_each(|n| assert!(!load(&cache, n)));
    assert_eq!(files(dir.path()), before);
    for cache in [&other, &cache, &open(dir.path())] {
        (0..1000).for_each(|n| assert!(load(cache, n)));
        assert_eq!(cache.packed(blob(1)), Some(whole(1)));
        assert!(cache.get(blob(1)).unwrap().is_none(), "it has no file");
    }
    assert_eq!(segment_paths(&cache).len(), 1);
    let listed: Vec<BlobId> = cache.packed_blobs().map(|entry| entry.unwrap().blob).collect();
    assert_eq!(listed.len(), 1001);
    assert!(listed.contains(&blob(999)));
}

#[test]
fn a_claim_writes_the_file_without_a_download() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    (0..3).for_each(|n| assert!(!load(&cache, n)));
    let Claim::Hit(cached) = cache.claim(blob(0)).unwrap() else { panic!("it is there") };
    assert_eq!((read(&cached), cached.size()), (whole(0).to_vec(), SIZE as u64));
    assert_eq!(fs::read(cached.path()).unwrap(), whole(0));
    let mut followed = Vec::new();
    cache.follow(blob(1)).unwrap().read_to_end(&mut followed).unwrap();
    assert_eq!(followed, whole(1));
    assert!(matches!(cache.claim(blob(3)).unwrap(), Claim::Download(_)));
    // If the segment is removed, the file is left.
    fs::remove_file(&segment_paths(&cache)[0]).unwrap();
    assert!(matches!(cache.claim_small(blob(0)).unwrap(), SmallClaim::File(_)));
    assert!(matches!(cache.claim_small(blob(2)).unwrap(), SmallClaim::Download(_)));
}

#[test]
fn bytes_are_handed_out_before_they_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, other) = (open(dir.path()), open(dir.path()));
    let download = to_download(&cache, 1);
    let (here, elsewhere) = (claim_later(&cache, 1), claim_later(&other, 1));
    let (answer, file) = channel();
    cache.claim_with(blob(1), move |claim| answer.send(claim).unwrap());
    let mut write = None;
    download.finish_small(&whole(1), digest(&whole(1)), |job| write = Some(job)).unwrap();
    let Ok(SmallClaim::Bytes(bytes)) = here.try_recv().unwrap() else { panic!("it is in memory") };
    assert_eq!(bytes, whole(1));
    assert!(load(&cache, 1), "also for later claims");
    assert!(elsewhere.try_recv().is_err() && file.try_recv().is_err());
    write.unwrap()();
    let Ok(SmallClaim::Bytes(bytes)) = elsewhere.recv().unwrap() else { panic!("it is written") };
    assert_eq!(bytes, whole(1));
    let Ok(Claim::Hit(cached)) = file.recv().unwrap() else { panic!("it is written") };
    assert_eq!(read(&cached), whole(1));
}

#[test]
fn wrong_or_too_many_bytes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let download = to_download(&cache, 1);
    let next = claim_later(&cache, 1);
    let refused = download.finish_small(&whole(2), digest(&whole(1)), |_| panic!("nothing is written"));
    assert!(
        matches!(refused, Err(CacheError::Write { source: WriteError::Digest { .. }, .. })),
        "{refused:?}"
    );
    let Ok(SmallClaim::Download(download)) = next.try_recv().unwrap() else { panic!("it is not there") };
    let large = Bytes::from(vec![0; Cache::SMALL as usize + 1]);
    let refused = download.finish_small(&large, digest(&large), |_| panic!("nothing is written"));
    assert!(
        matches!(refused, Err(CacheError::Write { source: WriteError::TooLong { .. }, .. })),
        "{refused:?}"
    );
    assert!(cache.packed(blob(1)).is_none());
    assert!(!load(&cache, 1));
}

#[test]
fn loads_wait_while_the_memory_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let (mut write, mut kept) = (None, 0);
    let (answer, answered) = channel();
    loop {
        let answer = answer.clone();
        cache.when_small_fits(move || answer.send(()).unwrap());
        if answered.try_recv().is_err() {
            break;
        }
        let whole = Bytes::from(vec![1; 60_000]);
        let download = to_download(&cache, kept);
        download.finish_small(&whole, digest(&whole), |job| write = Some(job)).unwrap();
        kept += 1;
    }
    assert!((10..100).contains(&kept), "{kept} blobs of 60,000 bytes are in memory");
    write.unwrap()();
    answered.recv().unwrap();
}

#[test]
fn torn_or_garbage_records_are_never_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    (0..20).for_each(|n| assert!(!load(&cache, n)));
    let [segment] = &segment_paths(&cache)[..] else { panic!("one segment") };
    let (whole, index) = (fs::read(segment).unwrap(), dir.path().join("packs/index"));
    let count = |cache: &Cache| {
        (0..20).filter(|n| cache.packed(blob(*n)).is_some_and(|found| found == self::whole(*n))).count()
    };
    let edit = OpenOptions::new().write(true).open(segment).unwrap();
    // Zeros, as after a power cut; a wrong byte; a missing end; all records at other offsets.
    edit.write_all_at(&[0; 4096], 8192).unwrap();
    assert!((18..20).contains(&count(&cache)), "{}", count(&cache));
    edit.write_all_at(&whole, 0).unwrap();
    edit.write_all_at(&[whole[30_000] ^ 1], 30_000).unwrap();
    assert_eq!(count(&cache), 19);
    edit.set_len(100_000).unwrap();
    assert!((8..10).contains(&count(&cache)), "{}", count(&cache));
    fs::write(segment, [b"x", &whole[..]].concat()).unwrap();
    assert_eq!(count(&cache), 0);
    fs::write(segment, &whole).unwrap();
    assert_eq!(count(&cache), 20);
    // Wrong hints everywhere.
    let hints = File::options().read(true).write(true).open(&index).unwrap();
    let mut garbage = vec![0; hints.metadata().unwrap().len() as usize];
    blake3::Hasher::new().finalize_xof().fill(&mut garbage);
    hints.write_all_at(&garbage, 0).unwrap();
    assert_eq!(count(&cache), 0);
    (0..20).for_each(|n| assert!(!load(&cache, n)));
    assert_eq!(count(&cache), 20);
}

#[test]
fn damage_is_removed_and_segments_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    (0..20).for_each(|n| assert!(!load(&cache, n)));
    let [segment] = &segment_paths(&cache)[..] else { panic!("one segment") };
    OpenOptions::new().write(true).open(segment).unwrap().write_all_at(b"damage", 30_000).unwrap();
    let verified = cache.verify(|_| {}).unwrap();
    assert_eq!((verified.proven, verified.bytes, verified.damaged.len()), (19, 19 * SIZE as u64, 1));
    let verified = cache.verify(|_| {}).unwrap();
    assert_eq!((verified.proven, verified.damaged.len()), (19, 0));
    let usage = cache.usage().unwrap();
    assert_eq!((usage.blobs, usage.segments, usage.unfinished), (0, 1, 0));
    assert!(usage.segment_bytes >= 20 * SIZE as u64, "{usage:?}");
    assert_eq!(cache.gc(None).unwrap().segments, 0);
    let removed = cache.clear().unwrap();
    assert_eq!((removed.blobs, removed.segments), (0, 1));
    assert!(removed.bytes >= 20 * SIZE as u64);
    assert_eq!(files(&dir.path().join("packs")), 0, "also the index");
    // No process must open the cache again for that.
    (0..20).for_each(|n| assert!(!load(&cache, n)));
    (0..20).for_each(|n| assert!(load(&open(dir.path()), n)));
}

#[test]
fn least_recently_read_segments_are_evicted_first() {
    const LIMIT: u64 = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let cache = open_limited(dir.path(), LIMIT);
    let mut most = 0;
    for n in 0..1000 {
        load(&cache, n);
        if n % 10 == 0 {
            most = most.max(taken_at_once(&cache));
        }
    }
    assert!(most <= LIMIT, "{most}");
    let there = (0..1000).filter(|n| cache.packed(blob(*n)).is_some()).count();
    assert!((250..400).contains(&there), "{there} blobs of 10 KiB in 4 MiB");
    assert!(segment_paths(&cache).len() >= 8, "small segments");
    // Blobs that are used stay.
    let used: Vec<u64> = (0..1000).filter(|n| cache.packed(blob(*n)).is_some()).take(5).collect();
    for segment in segment_paths(&cache) {
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        File::open(segment).unwrap().set_times(fs::FileTimes::new().set_accessed(long_ago)).unwrap();
    }
    used.iter().for_each(|n| assert!(cache.packed(blob(*n)).is_some()));
    (2000..2100).for_each(|n| assert!(!load(&cache, n)));
    used.iter().for_each(|n| assert!(cache.packed(blob(*n)).is_some(), "{n} was used"));
    // A large blob evicts small ones, if necessary all of them.
    let large = BlobId { oid: Oid(3), tid: Tid(1) };
    crate::util::load(&cache, large, 3 << 20).unwrap();
    assert!(taken_at_once(&cache) <= LIMIT);
    (3000..3200).for_each(|n| assert!(!load(&cache, n)));
    assert!(load(&cache, 3199));
    assert!(taken_at_once(&cache) <= LIMIT);
}

#[test]
fn bytes_that_do_not_fit_are_handed_out_anyway() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open_limited(dir.path(), 16 << 10);
    for _ in 0..2 {
        assert!(!load(&cache, 1));
    }
    assert!(cache.packed(blob(1)).is_none());
    assert!(taken_at_once(&cache) <= 16 << 10);
}

#[test]
fn links_and_pipes_in_the_way_do_no_harm() {
    /// Puts something at a path, or a link to another path.
    type Put = fn(&Path, &Path);
    let put: [(&str, Put); 6] = [
        ("index", |at, outside| symlink(outside, at).unwrap()),
        ("index", |at, _| fs::create_dir_all(at.join("full")).unwrap()),
        ("index", |at, _| rustix::fs::mkfifoat(rustix::fs::CWD, at, rustix::fs::Mode::RWXU).unwrap()),
        ("index", |at, _| fs::write(at, "short").unwrap()),
        ("00000001.pack", |at, _| rustix::fs::mkfifoat(rustix::fs::CWD, at, rustix::fs::Mode::RWXU).unwrap()),
        ("00000001.pack", |at, outside| symlink(outside, at).unwrap()),
    ];
    for (n, (name, put)) in put.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("cache"), dir.path().join("outside"));
        fs::write(&outside, vec![0; 1 << 20]).unwrap();
        let cache = open(&root);
        fs::create_dir_all(root.join("packs")).unwrap();
        put(&root.join("packs").join(name), &outside);
        assert!(!load(&cache, 1), "{n}");
        // Only a directory that is not empty stays in the way.
        assert_eq!(load(&cache, 1), n != 1, "{n}");
        cache.clear().unwrap();
        cache.verify(|_| {}).unwrap();
        assert!(fs::read(&outside).unwrap() == vec![0; 1 << 20], "{n}: a link was followed");
    }
    for link in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("cache"), dir.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        let cache = open(&root);
        match link {
            true => symlink(&outside, root.join("packs")).unwrap(),
            false => fs::write(root.join("packs"), "a file").unwrap(),
        }
        for _ in 0..2 {
            assert!(!load(&cache, 1));
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}

#[test]
fn segments_of_a_killed_process_are_read_and_continued() {
    let dir = tempfile::tempdir().unwrap();
    let mut loaded = 0;
    for _ in 0..3 {
        let mut child = Children::start(1, "packer", dir.path());
        let mut reports = String::new();
        for _ in 0..2 {
            reports = child.reports.recv().unwrap().1;
            child.command(0, "go on");
        }
        loaded = reports.parse::<u64>().unwrap().max(loaded);
        child.kill(0);
        child.join(&[0]);
        let cache = open(dir.path());
        (0..loaded).for_each(|n| assert!(load(&cache, n), "{n} of {loaded}"));
        assert_eq!(segment_paths(&cache).len(), 1);
    }
}

#[test]
fn concurrent_loads_download_once_and_lose_no_hint() {
    let dir = tempfile::tempdir().unwrap();
    let caches = [open(dir.path()), open(dir.path()), open(dir.path())];
    let downloads: usize = std::thread::scope(|scope| {
        let threads = caches.iter().enumerate().map(|(place, cache)| {
            // Each in another order.
            let order = move |n: u64| (n * [1, 7, 11][place] + 13 * place as u64) % 600;
            scope.spawn(move || (0..600).filter(|n| !load(cache, order(*n))).count())
        });
        threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(downloads, 600);
    (0..600).for_each(|n| assert!(caches[0].packed(blob(n)).is_some(), "{n}"));
}
