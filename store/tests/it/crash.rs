//! A store that is killed at any moment is consistent when it is opened again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use blobferry_protocol::{BlobId, Oid, Tid};
use blobferry_store::{Store, StoreConfig};

use crate::support::{StoreExt, open, role, spawn};

/// Objects in each transaction: a record, one with a small blob, one with a large one.
const OBJECTS: u64 = 3;

fn config() -> StoreConfig {
    StoreConfig { inline_max: 1000, ..StoreConfig::default() }
}

/// The bytes that an object's blob must have; none for every third object.
fn bytes(oid: Oid) -> Vec<u8> {
    let size = [0, 500, 150_000][(oid.0 % OBJECTS) as usize];
    (0..size).map(|n: u64| (n * 31 + oid.0) as u8).collect()
}

/// Commits, and prints what is finished, until the process is killed.
fn commit_for_ever(store: &dyn Store) {
    loop {
        let (first, _) = store.new_oids(2 * OBJECTS as u32).unwrap();
        let first = first.0.next_multiple_of(OBJECTS);
        let txn = store.begin_new();
        for oid in (first..first + OBJECTS).map(Oid) {
            match bytes(oid) {
                bytes if bytes.is_empty() => store.store(txn, oid, Tid::ZERO, oid.0.to_le_bytes().to_vec()),
                bytes => {
                    store.store_blob(txn, oid, Tid::ZERO, oid.0.to_le_bytes().to_vec(), store.staged(&bytes))
                }
            }
            .unwrap();
        }
        let tid = store.commit(txn);
        // One write, so that the lines of threads do not mix.
        let line = format!("\nfinished {tid} {first}\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }
}

/// Runs in the child process of the test below: not a test of its own.
#[test]
fn child() {
    let Some(dir) = role() else { return };
    let store = open(&dir, config());
    std::thread::scope(|scope| (0..3).for_each(|_| _ = scope.spawn(|| commit_for_ever(&*store))));
}

/// Starts the child, and kills it after a number of commits. Returns what was finished.
fn kill_after(commits: usize, dir: &Path) -> Vec<(Tid, Oid)> {
    let mut child = spawn("crash::child", dir);
    let mut finished = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let mut words = line.split(' ');
        if let (Some("finished"), Some(tid), Some(oid)) = (words.next(), words.next(), words.next()) {
            // The last line may be cut.
            if let (Ok(tid), Ok(oid)) = (tid.parse(), oid.parse()) {
                finished.push((tid, oid));
            }
        }
        if finished.len() == commits {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(finished.len() >= commits, "the child has failed by itself");
    finished
}

/// All revisions, by transaction.
fn transactions(store: &dyn Store) -> BTreeMap<Tid, Vec<Oid>> {
    let mut found: BTreeMap<Tid, Vec<Oid>> = BTreeMap::new();
    let mut after = None;
    loop {
        let page = store.revisions(after, 100).unwrap();
        let Some(last) = page.last() else { return found };
        after = Some((last.tid, last.oid));
        page.iter().for_each(|revision| found.entry(revision.tid).or_default().push(revision.oid));
    }
}

fn blob_files(dir: &Path) -> BTreeSet<BlobId> {
    (0..BlobId::BUCKETS)
        .filter_map(|bucket| Some((bucket, fs::read_dir(dir.join("blobs").join(bucket.to_string())).ok()?)))
        .flat_map(|(bucket, entries)| entries.map(move |entry| (bucket, entry.unwrap().file_name())))
        .map(|(bucket, name)| BlobId::from_file_name(bucket, name.to_str().unwrap()).unwrap())
        .collect()
}

#[test]
fn a_killed_store_has_whole_transactions_only() {
    let dir = tempfile::tempdir().unwrap();
    let mut finished = Vec::new();
    for commits in [1, 2, 5, 9, 14] {
        finished.extend(kill_after(commits, dir.path()));
        let store = open(dir.path(), config());
        let found = transactions(&*store);
        for (tid, first) in &finished {
            assert_eq!(found.get(tid).and_then(|oids| oids.first()), Some(first), "{tid} was finished");
        }
        let mut files = BTreeSet::new();
        for (tid, oids) in &found {
            assert_eq!(oids.len() as u64, OBJECTS, "{tid} is incomplete");
            for oid in oids {
                assert_eq!(store.load(*oid).unwrap().data, oid.0.to_le_bytes());
                let expected = bytes(*oid);
                if !expected.is_empty() {
                    assert_eq!(store.blob(oid.0, *tid).unwrap(), expected);
                }
                if expected.len() > 1000 {
                    files.insert(BlobId { oid: *oid, tid: *tid });
                }
            }
        }
        assert_eq!(blob_files(dir.path()), files, "there is a file for each large blob, and no other");
        assert_eq!(fs::read_dir(dir.path().join("blobs/tmp")).unwrap().count(), 0);
        assert_eq!(store.counts().damaged, 0);
        assert_eq!(store.counts().objects, found.len() as u64 * OBJECTS);
    }
}
