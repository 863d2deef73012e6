//! The files of a transaction: taken, then blobs of the cache, or removed.

use crate::util::{bytes, digest, open, read, unfinished};
use blobferry_cache::{CacheError, Take};
use blobferry_platform::blobdir::BlobWriter;
use blobferry_protocol::{BlobId, Oid, Tid};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

#[test]
fn moved_copied_and_streamed_files_become_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir.path().join("cache"));
    let (moved, copied) = (dir.path().join("moved"), dir.path().join("copied"));
    fs::write(&moved, "moved").unwrap();
    fs::write(&copied, bytes()).unwrap();

    let mut buffer = cache.buffer();
    assert_eq!(buffer.take(Oid(1), &moved, Take::Move).unwrap().size(), 5);
    assert_eq!(buffer.take(Oid(2), &copied, Take::Copy).unwrap().size(), bytes().len() as u64);
    let mut writer = BlobWriter::create_unsized(buffer.tmp()).unwrap();
    writer.write(b"streamed").unwrap();
    let streamed = buffer.adopt(Oid(3), writer.complete().unwrap()).unwrap();
    assert_eq!(streamed.digest(), Some(digest(b"streamed")));
    assert!(!moved.exists());
    assert!(copied.exists());
    fs::write(&copied, "changed later").unwrap();

    assert_eq!(buffer.get(Oid(1)).unwrap().digest(), None);
    buffer.set_digest(Oid(1), digest(b"moved"));
    assert_eq!(buffer.get(Oid(1)).unwrap().digest(), Some(digest(b"moved")));
    assert!(buffer.get(Oid(4)).is_none());
    assert_eq!(cache.layout().blobs().count(), 0, "no blob is visible before finish");

    let cached = buffer.finish(Tid(9)).unwrap();
    let expected = [b"moved".to_vec(), bytes(), b"streamed".to_vec()];
    assert_eq!(cached.iter().map(read).collect::<Vec<_>>(), expected);
    for (oid, bytes) in (1..).zip(&expected) {
        let hit = cache.get(BlobId { oid: Oid(oid), tid: Tid(9) }).unwrap().unwrap();
        assert_eq!(read(&hit), *bytes);
        assert_eq!(fs::metadata(hit.path()).unwrap().permissions().mode() & 0o222, 0);
    }
    assert_eq!(unfinished(&cache), 0);
}

#[test]
fn an_aborted_transaction_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir.path().join("cache"));
    let file = dir.path().join("file");
    fs::write(&file, "aborted").unwrap();
    let mut buffer = cache.buffer();
    buffer.take(Oid(1), &file, Take::Copy).unwrap();
    buffer.take(Oid(2), &file, Take::Move).unwrap();
    assert_eq!(unfinished(&cache), 2);
    buffer.remove(Oid(1));
    assert_eq!(unfinished(&cache), 1);
    drop(buffer);
    assert_eq!(unfinished(&cache), 0);
    assert_eq!(cache.layout().blobs().count(), 0);
}

#[test]
fn the_last_file_for_an_object_counts() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir.path().join("cache"));
    let file = dir.path().join("file");
    let mut buffer = cache.buffer();
    for text in ["first", "last"] {
        fs::write(&file, text).unwrap();
        buffer.take(Oid(1), &file, Take::Copy).unwrap();
    }
    assert_eq!(unfinished(&cache), 1);
    let cached = buffer.finish(Tid(1)).unwrap();
    assert_eq!(read(&cached[0]), b"last");
}

#[test]
fn a_file_that_could_still_change_is_copied_not_moved() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir.path().join("cache"));
    let (original, link, second_name) =
        (dir.path().join("original"), dir.path().join("link"), dir.path().join("second name"));
    fs::write(&original, "before").unwrap();
    symlink(&original, &link).unwrap();
    fs::hard_link(&original, &second_name).unwrap();

    let mut buffer = cache.buffer();
    buffer.take(Oid(1), &link, Take::Move).unwrap();
    buffer.take(Oid(2), &second_name, Take::Move).unwrap();
    assert!(original.exists());
    assert!(!link.exists() && !second_name.exists());
    fs::write(&original, "after!").unwrap();
    for cached in buffer.finish(Tid(1)).unwrap() {
        assert_eq!(read(&cached), b"before");
    }
}

#[test]
fn only_regular_files_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(&dir.path().join("cache"));
    let mut buffer = cache.buffer();
    for how in [Take::Move, Take::Copy] {
        assert!(matches!(buffer.take(Oid(1), dir.path(), how), Err(CacheError::NotAFile { .. })));
        let missing = buffer.take(Oid(1), &dir.path().join("missing"), how);
        assert!(matches!(missing, Err(CacheError::Take { oid: Oid(1), .. })));
    }
}
