//! The read-only store does what every store promises, as far as a store without writes can.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

#[path = "../../store/tests/it/any_store.rs"]
mod any_store;
#[path = "../stores/read_only.rs"]
mod read_only;

use blobferry_protocol::Oid;
use blobferry_store::Store;

use read_only::{DirectoryStore, TID};

#[test]
fn a_client_reads_every_file_back() {
    read_only::main().unwrap();
}

#[test]
fn reads_keep_the_promises_of_every_store() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [("a", vec![]), ("b", vec![1; 10]), ("c", vec![2; 100_000])] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let store = DirectoryStore::open(dir.path()).unwrap();
    assert_eq!(store.load(Oid(2)).unwrap().data, b"b");
    assert_eq!(store.last_tid(), TID);
    any_store::reads_agree(&store);
}

#[test]
fn an_empty_directory_is_an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    any_store::is_empty(&DirectoryStore::open(dir.path()).unwrap());
}

#[test]
fn every_write_is_refused_as_read_only() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), "a").unwrap();
    any_store::writes_are_refused(&DirectoryStore::open(dir.path()).unwrap());
}
