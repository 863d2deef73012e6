//! Memory use does not grow with the size of a transaction.

use std::fs;

use blobferry_protocol::{Oid, Tid};
use blobferry_store::{Store, StoreConfig};

use crate::support::{StoreExt, open, role, spawn};

const SMALL_BLOBS: u64 = 20_000;
const LARGE_BLOB: u64 = 200 << 20;
/// The most memory that a server may need, in KiB.
const MAX_MEMORY: u64 = 32 << 10;

/// Returns the peak memory of this process, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

fn stage_large(store: &dyn Store) -> blobferry_store::Staged {
    let chunk = vec![5; 1 << 20];
    let mut hasher = blake3::Hasher::new();
    let mut stage = store.stage(LARGE_BLOB).unwrap();
    for _ in 0..LARGE_BLOB >> 20 {
        stage.write(&chunk).unwrap();
        hasher.update(&chunk);
    }
    stage.complete(blobferry_protocol::Digest(*hasher.finalize().as_bytes())).unwrap()
}

/// Runs in the child process of the test below: not a test of its own.
#[test]
fn child() {
    let Some(dir) = role() else { return };
    let store = open(&dir, StoreConfig::default());
    let txn = store.begin_new();
    store.store_blob(txn, Oid(1), Tid::ZERO, vec![], stage_large(&*store)).unwrap();
    for oid in 2..SMALL_BLOBS + 2 {
        store.store_blob(txn, Oid(oid), Tid::ZERO, vec![7; 100], store.staged(&[oid as u8; 4000])).unwrap();
    }
    store.commit(txn);
    store.close();
    assert_eq!(store.counts().objects, SMALL_BLOBS + 1);
    println!("\npeak {} KiB", peak());
    assert!(peak() < MAX_MEMORY, "{} KiB", peak());
}

#[test]
fn a_huge_transaction_takes_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let output = spawn("memory_use::child", dir.path()).wait_with_output().unwrap();
    let output_text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && output_text.contains("peak"), "{output_text}");
}
