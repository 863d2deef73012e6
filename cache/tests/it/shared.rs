//! Shared mode: the directory is the server's own.

use crate::util::{blob, read};
use blobferry_cache::{Cache, CacheConfig, CacheError, Claim, LayoutError, Take};
use blobferry_platform::blobdir::Layout;
use blobferry_protocol::{BlobId, Oid, Tid};
use std::fs;

fn shared() -> CacheConfig {
    CacheConfig { shared: true, ..CacheConfig::default() }
}

#[test]
fn a_missing_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let server = Layout::open(dir.path()).unwrap();
    let cache = Cache::open(dir.path(), shared()).unwrap();
    assert!(matches!(cache.claim(blob(1)), Err(CacheError::NotShared { blob: b }) if b == blob(1)));
    assert!(!server.bucket_path(3).exists(), "nothing is made or locked in the server's directory");

    server.create_bucket(3).unwrap();
    fs::write(server.blob_path(blob(1)), "served").unwrap();
    let Claim::Hit(cached) = cache.claim(blob(1)).unwrap() else { panic!() };
    assert_eq!(read(&cached), b"served");
    assert_eq!(cached.size(), 6);
}

#[test]
fn a_missing_directory_is_not_created() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("not mounted");
    let missing = Cache::open(&root, shared());
    assert!(matches!(missing, Err(CacheError::Layout(LayoutError::Missing { .. }))));
    assert!(!root.exists());
}

#[test]
fn stored_files_go_to_the_servers_tmp() {
    let dir = tempfile::tempdir().unwrap();
    let server = Layout::open(dir.path().join("blobs")).unwrap();
    let cache = Cache::open(server.root(), shared()).unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "stored").unwrap();

    let mut buffer = cache.buffer();
    for oid in [1, 2] {
        let path = buffer.take(Oid(oid), &file, Take::Copy).unwrap().path();
        assert_eq!(path.parent(), Some(server.tmp()));
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{name}");
    }
    // The server makes the first file a blob, and keeps the second one in its database.
    let blob = BlobId { oid: Oid(1), tid: Tid(5) };
    server.create_bucket(blob.bucket()).unwrap();
    fs::rename(buffer.get(Oid(1)).unwrap().path(), server.blob_path(blob)).unwrap();

    let cached = buffer.finish(Tid(5)).unwrap();
    assert_eq!(cached.len(), 1);
    assert_eq!((cached[0].blob(), read(&cached[0])), (blob, b"stored".to_vec()));
    assert_eq!(fs::read_dir(server.tmp()).unwrap().count(), 0);
}
