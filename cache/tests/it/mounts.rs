//! Disks that are really full, and file systems without some features: small ones, mounted for the
//! test.
//!
//! Only root can mount. Other users skip these tests, with a message.

use crate::processes::Children;
use crate::quota::{FILLED, FILLERS, taken_at_once};
use crate::util::{blob, content, load, open, open_limited, read};
use blobferry_cache::{Cache, CacheError, WriteError};
use blobferry_protocol::{BlobId, Oid};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// A mounted file system. Dropped, it is unmounted.
struct Mount(TempDir);

impl Mount {
    fn new(kind: &str, options: &str) -> Option<Mount> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", kind, "-o", options, "blobferry-test"]).arg(dir.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(Mount(dir)),
            other => {
                println!("skipped: cannot mount a {kind}: {other:?}");
                None
            }
        }
    }

    fn cache(&self) -> std::path::PathBuf {
        self.0.path().join("cache")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

fn there(cache: &Cache) -> Vec<u64> {
    (1..10).filter(|n| cache.layout().blob_path(blob(*n)).exists()).collect()
}

fn no_space(result: Result<impl Sized, CacheError>) -> (u64, u64) {
    match result.map(drop).unwrap_err() {
        CacheError::Write { source: WriteError::NoSpace { needed, free, .. }, .. } => (needed, free),
        other => panic!("{other}"),
    }
}

fn fill_a_disk_of_8_mib(dir: &Path) {
    let cache = open(dir);
    let mut in_use = Vec::new();
    for n in 1..7 {
        in_use.push(load(&cache, blob(n), MIB).unwrap());
    }
    // 2 MiB are left, less the space of other files.
    let (needed, free) = no_space(load(&cache, blob(7), 3 * MIB));
    assert!(needed == 3 << 20 && free < 2 << 20, "{needed} {free}");
    assert_eq!(there(&cache), [1, 2, 3, 4, 5, 6]);
    drop(in_use.drain(..3));
    let loaded = load(&cache, blob(7), 4 * MIB).unwrap();
    assert_eq!(read(&loaded), content(blob(7), 4 * MIB));
    assert_eq!(there(&cache), [4, 5, 6, 7]);
    // A blob that can never fit is refused, and evicts nothing.
    drop((in_use, loaded));
    no_space(cache.check_space(blob(8), 9 << 20));
    no_space(load(&cache, blob(8), 9 * MIB));
    assert_eq!(there(&cache), [4, 5, 6, 7]);
    cache.check_space(blob(8), 7 << 20).unwrap();
    load(&cache, blob(8), 7 * MIB).unwrap();
    assert_eq!(there(&cache), [8]);
}

#[test]
fn on_a_full_disk_eviction_makes_space_or_fails() {
    let Some(mount) = Mount::new("tmpfs", "size=8m") else { return };
    fill_a_disk_of_8_mib(&mount.cache());
}

#[test]
fn the_limit_holds_without_fallocate() {
    let Some(mount) = Mount::new("ramfs", "mode=755") else { return };
    let cache = open_limited(&mount.cache(), 4 << 20);
    let other = open(&mount.cache());
    let mut download = crate::util::download(&cache, blob(1));
    download.start(0, 2 << 20).unwrap();
    // Nothing is written, but the space is taken, also after a recount by another process.
    other.gc(None).unwrap();
    let refused = load(&other, BlobId { oid: Oid(4), ..blob(2) }, 2 * MIB);
    assert!(matches!(refused, Err(CacheError::Write { source: WriteError::Full { .. }, .. })), "{refused:?}");
    let bytes = content(blob(1), 2 * MIB);
    download.write(&bytes).unwrap();
    download.finish(crate::util::digest(&bytes)).unwrap();
    for n in 2..7 {
        load(&other, blob(n), MIB).unwrap();
        assert!(taken_at_once(&other) <= 4 << 20);
    }
    assert_eq!(there(&cache).len(), 3);
    assert!(matches!(cache.pin(blob(6)), Err(CacheError::NoPins { .. })));
    let verified = cache.verify(|_| ()).unwrap();
    assert_eq!(
        (verified.proven, verified.unverifiable),
        (0, 3),
        "there are no attributes to tell the digest"
    );
}

#[test]
fn files_never_exceed_the_limit_on_a_real_disk() {
    // The kernel reports at any moment how much of this file system is used, whichever process
    // holds a lock.
    let Some(mount) = Mount::new("tmpfs", "size=64m") else { return };
    let cache = open_limited(&mount.cache(), FILLED);
    let root = mount.cache();
    let taken = || {
        let stat = rustix::fs::statvfs(&root).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    };
    // Directories may use space, too, and are no files of the cache.
    for bucket in 0..BlobId::BUCKETS {
        cache.layout().create_bucket(bucket).unwrap();
    }
    let (directories, done) = (taken(), AtomicBool::new(false));
    let most = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(taken());
            }
            most
        });
        // Processes instead of threads. If another test starts a child, the child has the files of
        // this process open for a moment, and removed ones would still use space.
        let children = Children::start(FILLERS, "filler", &root);
        children.wait_for(FILLERS, "done");
        children.join(&[]);
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    assert!(most <= directories + FILLED, "{most} {directories}");
    assert!(most > FILLED * 3 / 4, "{most}");
}
