//! Maintenance: what is in a cache, what is evicted, what is pinned, and what is damaged.

use crate::util::{blob, content, load, open, read};
use blobferry_cache::{Cache, CacheError, Evicted, Verified};
use blobferry_protocol::BlobId;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tempfile::TempDir;

const SIZE: usize = 100_000;

/// Returns a cache with the blobs 1 to 3.
fn three() -> (TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    (1..4).for_each(|n| drop(load(&cache, blob(n), SIZE).unwrap()));
    (dir, cache)
}

fn there(cache: &Cache) -> Vec<BlobId> {
    cache.blobs().map(|entry| entry.unwrap().blob).collect()
}

/// Pins a blob. Returns `false`, and says so, if the file system cannot.
fn pinned(cache: &Cache, n: u64) -> bool {
    match cache.pin(blob(n)) {
        Err(error @ CacheError::NoPins { .. }) => {
            println!("skipped: {error}");
            false
        }
        done => {
            done.unwrap();
            true
        }
    }
}

/// Creates a partial download that a process has left.
fn left_part(cache: &Cache, n: u64) -> PathBuf {
    let dir = cache.layout().tmp().join("partial");
    fs::create_dir_all(&dir).unwrap();
    let part = dir.join(format!("3.{}.part", blob(n).tid));
    fs::write(&part, "half").unwrap();
    part
}

#[test]
fn blobs_are_listed_with_size_use_and_pins() {
    let (dir, cache) = three();
    let _in_use = open(dir.path()).get(blob(2)).unwrap().unwrap();
    let pins = pinned(&cache, 3);
    let entries: Vec<_> = cache.blobs().map(Result::unwrap).collect();
    assert_eq!(entries.iter().map(|entry| entry.blob).collect::<Vec<_>>(), [blob(1), blob(2), blob(3)]);
    assert_eq!(entries.iter().map(|entry| entry.in_use).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(entries.iter().map(|entry| entry.pinned).collect::<Vec<_>>(), [false, false, pins]);
    for entry in &entries {
        assert_eq!((entry.size, &entry.path), (SIZE as u64, &cache.layout().blob_path(entry.blob)));
        assert!(entry.on_disk >= entry.size && entry.used.elapsed().is_ok());
    }
    let usage = cache.usage().unwrap();
    let bytes: u64 = entries.iter().map(|entry| entry.on_disk).sum();
    assert_eq!((usage.blobs, usage.bytes, usage.limit), (3, bytes, None));
    assert_eq!(usage.in_use, entries[1].on_disk);
    assert_eq!(usage.pinned, if pins { entries[2].on_disk } else { 0 });
}

#[test]
fn clear_spares_blobs_in_use_and_pinned_blobs() {
    let (dir, cache) = three();
    let in_use = cache.get(blob(2)).unwrap().unwrap();
    if !pinned(&cache, 3) {
        return;
    }
    let other = open(dir.path());
    let removed = other.clear().unwrap();
    assert_eq!((removed.blobs, there(&cache)), (1, vec![blob(2), blob(3)]));
    drop(in_use);
    other.unpin(blob(3)).unwrap();
    assert_eq!(other.clear().unwrap().blobs, 2);
    assert!(there(&cache).is_empty());
    assert!(matches!(cache.pin(blob(1)), Err(CacheError::NotCached { blob: b }) if b == blob(1)));
}

#[test]
fn gc_evicts_to_a_size_and_spares_active_downloads() {
    let (dir, cache) = three();
    let working = crate::util::download(&cache, blob(9)); // it has the lock of all of these blobs' bucket
    let part = left_part(&cache, 8);
    let one = cache.usage().unwrap().bytes / 3;
    assert_eq!(open(dir.path()).gc(None).unwrap(), Evicted::default());
    assert!(part.exists(), "its bucket is locked");
    drop(working);
    assert_eq!(cache.gc(None).unwrap(), Evicted::default());
    assert!(!part.exists());
    let removed = cache.gc(Some(one * 2 + one / 2)).unwrap();
    assert_eq!(removed, Evicted { blobs: 1, segments: 0, bytes: one });
    assert_eq!(there(&cache).len(), 2);
}

#[test]
fn open_removes_partials_of_cached_blobs_only() {
    let (dir, cache) = three();
    let (needless, of_use) = (left_part(&cache, 1), left_part(&cache, 8));
    drop(open(dir.path()));
    assert!(!needless.exists());
    assert!(of_use.exists());
}

#[test]
fn verify_removes_damaged_blobs_only() {
    let (_dir, cache) = three();
    let path = |n| cache.layout().blob_path(blob(n));
    let before: Vec<_> = [1, 3].map(|n| fs::metadata(path(n)).unwrap().accessed().unwrap()).into();
    fs::set_permissions(path(2), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    OpenOptions::new().write(true).open(path(2)).unwrap().write_all_at(b"damage", 50_000).unwrap();
    fs::write(path(5), "python's").unwrap();
    let mut seen = Vec::new();
    let verified = cache.verify(|entry| seen.push(entry.blob)).unwrap();
    if verified.unverifiable == 4 {
        return println!("skipped: no extended attributes");
    }
    let expected = Verified { proven: 2, bytes: 2 * SIZE as u64, unverifiable: 1, damaged: vec![blob(2)] };
    assert_eq!(verified, expected);
    assert_eq!(seen, [1, 2, 3, 5].map(blob));
    assert!(!path(2).exists());
    let after: Vec<_> = [1, 3].map(|n| fs::metadata(path(n)).unwrap().accessed().unwrap()).into();
    assert_eq!(before, after, "verification is no use");
    assert_eq!(read(&load(&cache, blob(2), SIZE).unwrap()), content(blob(2), SIZE));
    assert!(cache.verify(|_| ()).unwrap().damaged.is_empty());
}

#[test]
fn a_cached_blob_keeps_its_file_if_published_again() {
    use std::os::unix::fs::MetadataExt;
    let (dir, cache) = three();
    let in_use = cache.get(blob(1)).unwrap().unwrap();
    let file = dir.path().with_extension("file");
    fs::write(&file, content(blob(1), SIZE)).unwrap();
    let mut buffer = cache.buffer();
    buffer.take(blob(1).oid, &file, blobferry_cache::Take::Move).unwrap();
    let again = buffer.finish(blob(1).tid).unwrap();
    let inode = |file: &File| file.metadata().unwrap().ino();
    assert_eq!(inode(again[0].file()), inode(in_use.file()));
    assert_eq!(fs::metadata(in_use.path()).unwrap().ino(), inode(in_use.file()));
}

#[test]
fn only_a_regular_file_is_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    cache.layout().create_bucket(3).unwrap();
    fs::create_dir(cache.layout().blob_path(blob(1))).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, cache.layout().blob_path(blob(2)), rustix::fs::Mode::RWXU).unwrap();
    for n in [1, 2] {
        let refused = cache.get(blob(n)).unwrap_err().to_string();
        assert!(refused.contains("it is not a regular file"), "{refused}");
        assert!(cache.claim(blob(n)).is_err());
    }
    assert_eq!(there(&cache), []);
}

#[test]
fn gc_spares_files_with_other_names() {
    let (_dir, cache) = three();
    let part = left_part(&cache, 8);
    let stranger = part.with_file_name(format!("+3.{}.part", blob(8).tid));
    fs::write(&stranger, "another program's").unwrap();
    cache.clear().unwrap();
    assert!(!part.exists() && stranger.exists());
}
