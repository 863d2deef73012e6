//! The promises of the store on disk: what it does at open, and with its files.

use std::fs;
use std::path::{Path, PathBuf};

use blobferry_protocol::{BlobId, Digest, Oid, Outcome, RequestError, Tid, TxnMeta};
use blobferry_store::{OpenBlob, OpenError, SqliteStore, StoreConfig, Vote};

use crate::support::{Fixture, Gate, StoreExt, new_txn, open, sqlite};

fn small_files() -> StoreConfig {
    StoreConfig { inline_max: 10, ..StoreConfig::default() }
}

/// Closes the store, and opens it again.
fn reopen(it: Fixture, config: StoreConfig) -> Fixture {
    let Fixture { store, dir } = it;
    drop(store);
    let store = open(dir.as_ref().unwrap().path(), config);
    Fixture { store, dir }
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.as_ref().unwrap().path().join(name)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Returns the path of a blob's file, computed independently of the store.
fn blob_path(it: &Fixture, oid: u64, tid: Tid) -> PathBuf {
    it.path(&format!("blobs/{}/{}.{:016x}.blob", oid % 997, oid / 997, tid.0))
}

#[test]
fn everything_committed_is_there_after_a_reopen() {
    let it = sqlite(small_files());
    let txn = it.store.begin_new();
    it.store.store_blob(txn, Oid(1), Tid::ZERO, b"1".to_vec(), it.store.staged(b"small")).unwrap();
    it.store.store_blob(txn, Oid(2000), Tid::ZERO, b"2".to_vec(), it.store.staged(&[7; 5000])).unwrap();
    let first = it.store.commit(txn);
    let fenced = it.store.voted(9, Tid::ZERO);
    assert_eq!(it.store.outcome_now(fenced), Ok(Outcome::NotCommitted));
    let deleted = it.store.remove(1, first);
    let counts = it.store.counts();
    it.store.close();

    let it = reopen(it, small_files());
    assert_eq!(it.store.last_tid(), deleted);
    assert_eq!(it.store.load(Oid(2000)).unwrap().tid, first);
    assert_eq!(it.store.blob(2000, first), Ok(vec![7; 5000]));
    assert_eq!(it.store.blob(1, first), Ok(b"small".to_vec()));
    assert_eq!(it.store.history(Oid(1), 9).unwrap().len(), 2);
    let again = it.store.counts();
    assert_eq!((again.objects, again.revisions, again.damaged), (counts.objects, counts.revisions, 0));
    assert_eq!((again.blobs, again.blob_bytes), (counts.blobs, counts.blob_bytes));
    assert_eq!(it.store.outcome_now(txn), Ok(Outcome::Committed { tid: first }));
    it.store.begin(fenced, TxnMeta::default()).unwrap();
    it.store.store(fenced, Oid(9), Tid::ZERO, vec![]).unwrap();
    assert_eq!(it.store.vote_now(fenced), Err::<Vote, _>(RequestError::TransactionExists { txn: fenced }));
    assert!(it.store.put(3, Tid::ZERO, b"next") > deleted);
}

#[test]
fn no_oid_is_allocated_again_after_a_reopen() {
    let it = sqlite(StoreConfig::default());
    let (mut last, _) = it.store.new_oids(1).unwrap();
    let mut it = it;
    for explicit in [0, 1 << 40, 5] {
        if explicit != 0 {
            it.store.put(explicit, Tid::ZERO, b"");
            last = last.max(Oid(explicit));
        }
        it = reopen(it, StoreConfig::default());
        let (next, _) = it.store.new_oids(1).unwrap();
        assert!(next > last, "{next} was allocated or used before {last}");
        last = next;
    }
    let tid = it.store.put(1 << 50, Tid::ZERO, b"");
    it.store.remove(1 << 50, tid);
    it.store.pack(Tid::MAX).unwrap();
    let it = reopen(it, StoreConfig::default());
    assert!(it.store.new_oids(1).unwrap().0 > Oid(1 << 50), "also when the object is gone altogether");
}

#[test]
fn an_open_directory_is_refused() {
    let it = sqlite(StoreConfig::default());
    let refused = SqliteStore::open(it.path(""), StoreConfig::default()).unwrap_err();
    assert!(matches!(&refused, OpenError::InUse { .. }), "{refused}");
    it.store.put(1, Tid::ZERO, b"the refused open has done no harm");
    reopen(it, StoreConfig::default());
}

#[test]
fn orphans_and_staged_files_are_removed_at_open() {
    let it = sqlite(small_files());
    let tid = it.store.put_blob(1, Tid::ZERO, &[1; 100]);
    let small = it.store.put_blob(2, Tid::ZERO, b"small");
    let orphans = [(1, Tid(tid.0 + 1)), (2, small), (3, tid)].map(|(oid, tid)| blob_path(&it, oid, tid));
    for orphan in &orphans {
        fs::create_dir_all(orphan.parent().unwrap()).unwrap();
        fs::write(orphan, "x").unwrap();
    }
    let other = it.path("blobs/1/.lock");
    fs::write(&other, "").unwrap();
    fs::write(it.path("blobs/tmp/left"), "x").unwrap();
    fs::create_dir_all(it.path("blobs/tmp/dir/dir")).unwrap();

    let it = reopen(it, small_files());
    assert!(orphans.iter().all(|orphan| !orphan.exists()));
    assert!(other.exists());
    assert_eq!(names(&it.path("blobs/tmp")), [""; 0]);
    assert_eq!(it.store.blob(1, tid), Ok(vec![1; 100]));
    assert_eq!(it.store.blob(2, small), Ok(b"small".to_vec()));
}

#[test]
fn lock_files_and_locked_directories_in_tmp_stay() {
    let it = sqlite(StoreConfig::default());
    for dir in ["living", "dead"] {
        fs::create_dir(it.path("blobs/tmp").join(dir)).unwrap();
        fs::write(it.path("blobs/tmp").join(dir).join(".lock"), "").unwrap();
    }
    fs::write(it.path("blobs/tmp/.lock"), "").unwrap();
    let lock = fs::File::open(it.path("blobs/tmp/living/.lock")).unwrap();
    lock.lock().unwrap();
    let it = reopen(it, StoreConfig::default());
    assert_eq!(names(&it.path("blobs/tmp")), [".lock", "living"]);
}

#[test]
fn a_damaged_file_is_reported_and_never_served() {
    let it = sqlite(small_files());
    let tids: Vec<Tid> = (1..=3).map(|oid| it.store.put_blob(oid, Tid::ZERO, &[1; 100])).collect();
    let it = reopen(it, small_files());
    fs::write(it.path("cut"), [1; 99]).unwrap();
    fs::rename(it.path("cut"), blob_path(&it, 1, tids[0])).unwrap();
    fs::remove_file(blob_path(&it, 2, tids[1])).unwrap();
    let check = |it: &Fixture| {
        for (oid, tid) in [(1, tids[0]), (2, tids[1])] {
            let damaged = it.store.blob(oid, tid).unwrap_err();
            assert!(
                matches!(damaged, RequestError::Damaged { blob: BlobId { oid: o, .. }, .. } if o == Oid(oid))
            );
        }
        assert_eq!(it.store.blob(3, tids[2]), Ok(vec![1; 100]));
        assert!(it.store.load(Oid(1)).is_ok());
    };
    check(&it);
    assert_eq!(it.store.counts().damaged, 0);
    let it = reopen(it, small_files());
    check(&it);
    assert_eq!(it.store.counts().damaged, 2);
}

#[test]
fn a_blob_is_synced_while_it_arrives() {
    let it = sqlite(StoreConfig { sync_ahead: 1000, ..small_files() });
    let before = it.store.counts().syncs;
    let mut stage = it.store.stage(2500).unwrap();
    stage.write(&[7; 999]).unwrap();
    assert_eq!(it.store.counts().syncs, before);
    stage.write(&[7; 1]).unwrap();
    while it.store.counts().syncs == before {
        std::thread::yield_now();
    }
    stage.write(&[7; 1500]).unwrap();
    let staged = stage.complete(Digest(*blake3::hash(&[7; 2500]).as_bytes())).unwrap();
    let synced = it.store.counts().syncs - before;
    assert_eq!(synced, 2, "the last bytes are left to the sync at the end");
    let txn = it.store.begin_new();
    it.store.store_blob(txn, Oid(1), Tid::ZERO, vec![], staged).unwrap();
    let tid = it.store.commit(txn);
    assert_eq!(it.store.blob(1, tid), Ok(vec![7; 2500]));
}

#[test]
fn staged_files_exist_until_commit_or_abort() {
    let it = sqlite(small_files());
    let staged = || names(&it.path("blobs/tmp")).len();
    let mut stage = it.store.stage(100).unwrap();
    stage.write(&[1; 50]).unwrap();
    assert_eq!(staged(), 1);
    drop(stage);
    assert_eq!(staged(), 0);
    drop(it.store.staged(&[1; 100]));
    assert_eq!(staged(), 0);
    let txn = it.store.begin_new();
    it.store.store_blob(txn, Oid(1), Tid::ZERO, vec![0; 1_000_000], it.store.staged(&[1; 100])).unwrap();
    it.store.store_blob(txn, Oid(1), Tid::ZERO, vec![], it.store.staged(&[2; 100])).unwrap();
    assert_eq!(staged(), 1);
    it.store.abort(txn);
    assert_eq!(staged(), 0);
    let tid = it.store.put_blob(1, Tid::ZERO, &[1; 100]);
    assert_eq!(staged(), 0);
    let packed = it.store.remove(1, tid);
    assert!(blob_path(&it, 1, tid).exists());
    it.store.pack(Tid(packed.0 + 1)).unwrap();
    assert!(!blob_path(&it, 1, tid).exists());
}

#[test]
fn an_open_blob_stays_readable_after_a_pack() {
    let it = sqlite(small_files());
    let tid = it.store.put_blob(1, Tid::ZERO, &[1; 100]);
    let OpenBlob::File { mut file, .. } = it.store.open_blob(BlobId { oid: Oid(1), tid }).unwrap() else {
        panic!("it is in a file");
    };
    it.store.remove(1, tid);
    it.store.pack(Tid::MAX).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    assert_eq!(bytes, [1; 100]);
}

#[test]
fn one_transaction_of_a_batch_can_fail_alone() {
    let it = sqlite(small_files());
    let gate = Gate::close(&*it.store);
    let held_up = it.store.ask_finish(it.store.voted(1, Tid::ZERO));
    gate.wait();
    // A file in place of a bucket: no blob can be renamed into it.
    fs::write(it.path("blobs/5"), "in the way").unwrap();
    let voted = |oids: &[u64]| {
        let txn = new_txn();
        it.store.begin(txn, TxnMeta::default()).unwrap();
        for oid in oids {
            it.store.store_blob(txn, Oid(*oid), Tid::ZERO, vec![], it.store.staged(&[1; 100])).unwrap();
        }
        assert_eq!(it.store.vote_now(txn), Ok(Vote::Ready));
        txn
    };
    let (before, failing, after) = (voted(&[2]), voted(&[3, 5]), voted(&[7]));
    let finishes = [before, failing, after].map(|txn| it.store.ask_finish(txn));
    gate.open();
    held_up.recv().unwrap().unwrap();
    let [before, failed, after] = finishes.map(|finish| finish.recv().unwrap());
    assert!(matches!(failed, Err(RequestError::Failed { .. })), "{failed:?}");
    assert_eq!(it.store.blob(2, before.unwrap()), Ok(vec![1; 100]));
    assert_eq!(it.store.blob(7, after.unwrap()), Ok(vec![1; 100]));
    assert!(it.store.load(Oid(3)).is_err());
    assert_eq!(names(&it.path("blobs/3")), [""; 0], "its other file has lost its name again");
    assert_eq!(it.store.outcome_now(failing), Ok(Outcome::NotCommitted));
    assert_eq!(it.store.counts().objects, 3);
    it.store.put(3, Tid::ZERO, b"the locks are free");
}
