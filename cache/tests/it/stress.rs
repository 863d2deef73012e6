//! The cache under stress: 16 processes with 8 threads each load random blobs. The limit is a
//! quarter of the working set, and one process after the other is killed.
//!
//! It takes 8 seconds, or the number in BLOBFERRY_STRAIN_SECONDS.

use crate::processes::{Children, next_command, report};
use crate::quota::taken_at_once;
use crate::util::{content, digest, open, open_limited, read};
use blobferry_cache::{Cache, CacheError, Claim, WriteError};
use blobferry_protocol::{BlobId, Oid, Tid};
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PROCESSES: usize = 16;
const THREADS: u64 = 8;
const BLOBS: u64 = 1024;
const LIMIT: u64 = 8 << 20;

/// A load that takes longer than this hangs, however busy the machine is.
const HANGS: Duration = Duration::from_secs(120);

fn blob(n: u64) -> BlobId {
    BlobId { oid: Oid(n * 3), tid: Tid(1 + n % 2) }
}

/// Returns a size from 0 to 64 KiB, 32 KiB on average: the working set is four times the limit.
fn size(n: u64) -> usize {
    usize::try_from(n.wrapping_mul(40_503) % 65_536).unwrap()
}

/// A generator of pseudo-random numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) % sides
    }
}

/// The role of a child: loads random blobs, and compares all of their bytes, until the parent stops
/// it.
pub(crate) fn loader(dir: &Path) {
    let cache = open(&dir.join("cache"));
    let (stop, loads) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (cache, stop, loads) = (&cache, &stop, &loads);
            scope.spawn(move || {
                let mut dice = Dice(u64::from(std::process::id()) * THREADS + thread);
                while !stop.load(Ordering::Relaxed) {
                    load(cache, dir, dice.roll(BLOBS));
                    loads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        report("loads");
        next_command();
        stop.store(true, Ordering::Relaxed);
    });
    report(&format!("done {loads:?}"));
}

fn load(cache: &Cache, dir: &Path, n: u64) {
    let blob = blob(n);
    let expected = content(blob, size(n));
    let cached = match cache.claim(blob).unwrap() {
        Claim::Hit(cached) => cached,
        Claim::Download(mut download) => {
            // The server's part: no other claim downloads the blob, and it is not in the cache.
            let served = File::create(dir.join(format!("served-{n}"))).unwrap();
            served.try_lock().expect("another claim downloads it, too");
            assert!(!cache.layout().blob_path(blob).exists(), "it was there already");
            match download.start(0, expected.len() as u64) {
                // For a moment, everything in the cache may be in use.
                Err(CacheError::Write { source: WriteError::Full { in_use, .. }, .. }) if in_use > 0 => {
                    return;
                }
                started => started.unwrap(),
            }
            expected.chunks(10_000).for_each(|chunk| download.write(chunk).unwrap());
            drop(served);
            download.finish(digest(&expected)).unwrap()
        }
    };
    assert!(read(&cached) == expected, "{blob} is torn");
    assert!(cached.path().exists(), "{blob} was removed while it was in use");
}

#[test]
fn under_stress_the_limit_holds_and_no_load_hangs() {
    let seconds = std::env::var("BLOBFERRY_STRAIN_SECONDS").map_or(8, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("cache");
    let cache = open_limited(&root, LIMIT);
    let start = || Children::start(1, "loader", dir.path());
    let mut loaders: Vec<Children> = (0..PROCESSES).map(|_| start()).collect();
    let next_report =
        |loader: &Children| loader.reports.recv_timeout(HANGS).expect("it hangs, or has failed").1;
    for loader in &loaders {
        assert_eq!(next_report(loader), "loads");
    }
    let (mut dice, mut most, mut kills) = (Dice(1), 0, 0);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..10 {
            most = most.max(taken_at_once(&cache));
        }
        let unlucky = &mut loaders[usize::try_from(dice.roll(PROCESSES as u64)).unwrap()];
        let mut killed = std::mem::replace(unlucky, start());
        killed.children[0].0.kill().unwrap();
        killed.children[0].0.wait().unwrap();
        killed.join(&[0]);
        kills += 1;
        assert_eq!(next_report(unlucky), "loads");
    }
    let mut loads = 0;
    for mut loader in loaders {
        loader.command(0, "stop");
        let done = next_report(&loader);
        loads += done.strip_prefix("done ").unwrap().parse::<u64>().unwrap();
        loader.join(&[]);
    }
    most = most.max(taken_at_once(&cache));
    println!("{loads} loads by the survivors, {kills} killed, at most {most} of {LIMIT} bytes");
    assert!(most <= LIMIT, "{most}");
    assert!(most > LIMIT / 2 && loads > 0 && kills > 0);
    assert!(cache.verify(|_| ()).unwrap().damaged.is_empty());
    cache.gc(None).unwrap();
    let usage = cache.usage().unwrap();
    assert_eq!((usage.in_use, usage.unfinished), (0, 0), "{usage:?}");
    let scratch = fs::read_dir(cache.layout().tmp()).unwrap().map(|entry| entry.unwrap().file_name());
    let scratch = scratch.filter(|name| name.to_str().unwrap().starts_with("blobferry-"));
    assert_eq!(scratch.count(), 1, "this process's own");
}
