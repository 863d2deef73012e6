//! Files that clients put into the server's `tmp`: taken over only after checks (CVE-2009-2701).

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use blobferry_protocol::{Oid, RequestError, Tid};
use blobferry_store::StoreConfig;

use crate::support::{Fixture, StoreExt, digest, memory, sqlite};

fn tmp(it: &Fixture) -> PathBuf {
    it.dir.as_ref().unwrap().path().join("blobs/tmp")
}

/// Stores the file `name`, announced with `bytes`, in a transaction of its own.
fn store_shared(it: &Fixture, name: &str, bytes: &[u8]) -> Result<Tid, RequestError> {
    let txn = it.store.begin_new();
    let (size, digest) = (bytes.len() as u64, digest(bytes));
    let stored = it.store.store_shared(txn, Oid(1), Tid::ZERO, b"record".to_vec(), name, size, digest);
    match stored {
        Ok(()) => Ok(it.store.commit(txn)),
        Err(error) => {
            assert_eq!(it.store.vote_now(txn), Err(RequestError::Doomed { txn }));
            it.store.abort(txn);
            Err(error)
        }
    }
}

#[test]
fn a_file_in_tmp_is_taken_over_as_the_blob() {
    let it = sqlite(StoreConfig::default());
    fs::write(tmp(&it).join("blob-1.x"), b"shared").unwrap();
    let tid = store_shared(&it, "blob-1.x", b"shared").unwrap();
    assert_eq!(it.store.blob(1, tid), Ok(b"shared".to_vec()));
    assert_eq!(fs::read_dir(tmp(&it)).unwrap().count(), 0);
    let file = it.dir.as_ref().unwrap().path().join(format!("blobs/1/0.{tid}.blob"));
    assert_eq!(
        fs::metadata(file).unwrap().mode() & 0o222,
        0,
        "even a small one stays a file, and is read-only"
    );
}

#[test]
fn nothing_but_a_plain_file_is_taken_over() {
    let it = sqlite(StoreConfig::default());
    let dir = it.dir.as_ref().unwrap().path();
    fs::write(dir.join("secret"), b"secret").unwrap();
    fs::write(tmp(&it).join(".hidden"), b"secret").unwrap();
    fs::write(tmp(&it).join("one"), b"secret").unwrap();
    fs::hard_link(tmp(&it).join("one"), tmp(&it).join("two")).unwrap();
    fs::create_dir(tmp(&it).join("dir")).unwrap();
    symlink(dir.join("secret"), tmp(&it).join("link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, tmp(&it).join("pipe"), rustix::fs::Mode::RUSR).unwrap();
    let absolute = dir.join("secret").into_os_string().into_string().unwrap();
    let names = [
        "../../secret",
        &absolute,
        ".hidden",
        "one",
        "two",
        "dir",
        "link",
        "pipe",
        "",
        ".",
        "..",
        "missing",
        "a/b",
    ];
    for name in names {
        let refused = store_shared(&it, name, b"secret").unwrap_err();
        assert!(matches!(refused, RequestError::Mismatch { .. }), "{name}: {refused}");
    }
    assert_eq!(fs::read(dir.join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(tmp(&it)).unwrap().count(), 6, "everything is where it was");
}

#[test]
fn a_file_other_than_the_announced_one_is_refused() {
    let it = sqlite(StoreConfig::default());
    fs::write(tmp(&it).join("file"), b"longer").unwrap();
    assert!(matches!(store_shared(&it, "file", b"long"), Err(RequestError::Mismatch { .. })));
    assert!(tmp(&it).join("file").exists(), "it may still be written");
    assert!(matches!(store_shared(&it, "file", b"differ"), Err(RequestError::Mismatch { .. })));
    assert_eq!(fs::read_dir(tmp(&it)).unwrap().count(), 0);
    assert_eq!(it.store.counts().staged_bytes, 0);
}

#[test]
fn a_store_without_a_directory_shares_no_files() {
    let it = memory(StoreConfig::default());
    assert!(matches!(store_shared(&it, "file", b""), Err(RequestError::Unsupported { .. })));
}
