//! Reading: revisions, histories, blobs.

use blobferry_protocol::{BlobId, BlobInfo, HistoryEntry, Oid, RequestError, Revision, Tid, TxnMeta};
use blobferry_store::{StoreConfig, StoredRevision};

use super::promises;
use crate::any_store;
use crate::support::{Make, StoreExt, digest, new_txn};

promises![
    a_new_store_is_empty,
    all_reads_agree,
    revisions_are_found_as_of_any_tid,
    a_deleted_object_has_only_a_history,
    a_history_has_users_and_descriptions_newest_first,
    revisions_are_listed_in_commit_order_by_page,
    blobs_of_all_sizes_read_back,
    the_last_store_decides_the_blob,
    blobs_that_are_not_as_announced_are_refused,
    ids_of_all_sizes_keep_their_order,
];

fn a_new_store_is_empty(make: Make) {
    any_store::is_empty(&*make(StoreConfig::default()).store);
}

/// After stores, deletions, and blobs in records and files.
fn all_reads_agree(make: Make) {
    let it = make(StoreConfig { inline_max: 10, ..StoreConfig::default() });
    let first = it.store.put(1, Tid::ZERO, b"one");
    let small = it.store.put_blob(2, Tid::ZERO, b"small");
    it.store.put_blob(2, small, &[3; 5000]);
    let changed = it.store.put(1, first, b"two");
    it.store.remove(1, changed);
    it.store.put(1, Tid::ZERO, b"again");
    let last = it.store.put(3, Tid::ZERO, b"");
    it.store.remove(3, last);
    any_store::reads_agree(&*it.store);
}

fn revisions_are_found_as_of_any_tid(make: Make) {
    let it = make(StoreConfig::default());
    let first = it.store.put(1, Tid::ZERO, b"one");
    let between = it.store.put(2, Tid::ZERO, b"other");
    let second = it.store.put(1, first, b"two");
    assert!(first < between && between < second);
    assert_eq!(it.store.last_tid(), second);

    let one = Revision { tid: first, next: Some(second), data: b"one".to_vec(), blob: None };
    let two = Revision { tid: second, next: None, data: b"two".to_vec(), blob: None };
    assert_eq!(it.store.load(Oid(1)), Ok(two.clone()));
    let before = |tid| it.store.load_before(Oid(1), tid).unwrap();
    assert_eq!(before(Tid::ZERO), None);
    assert_eq!(before(first), None);
    assert_eq!(before(Tid(first.0 + 1)), Some(one.clone()));
    assert_eq!(before(between), Some(one.clone()));
    assert_eq!(before(second), Some(one.clone()));
    assert_eq!(before(Tid(second.0 + 1)), Some(two.clone()));
    assert_eq!(before(Tid::MAX), Some(two.clone()));
    assert_eq!(it.store.load_serial(Oid(1), first), Ok(one));
    assert_eq!(it.store.load_serial(Oid(1), second), Ok(two));
    for tid in [between, Tid::ZERO, Tid::MAX] {
        let missing = RequestError::NoSuchRevision { oid: Oid(1), tid };
        assert_eq!(it.store.load_serial(Oid(1), tid), Err(missing));
    }
}

fn a_deleted_object_has_only_a_history(make: Make) {
    let it = make(StoreConfig::default());
    let stored = it.store.put(1, Tid::ZERO, b"data");
    let deleted = it.store.remove(1, stored);
    let missing = RequestError::NoSuchObject { oid: Oid(1) };
    assert_eq!(it.store.load(Oid(1)), Err(missing.clone()));
    assert_eq!(it.store.load_before(Oid(1), Tid::MAX), Err(missing.clone()));
    assert_eq!(it.store.load_serial(Oid(1), deleted), Err(missing));
    let before = it.store.load_before(Oid(1), deleted).unwrap().unwrap();
    assert_eq!((before.tid, before.next), (stored, Some(deleted)));
    let sizes: Vec<_> =
        it.store.history(Oid(1), 9).unwrap().iter().map(|entry| (entry.tid, entry.size)).collect();
    assert_eq!(sizes, [(deleted, None), (stored, Some(4))]);
    assert_eq!(it.store.counts().objects, 0);

    let again = it.store.put(1, Tid::ZERO, b"again");
    assert_eq!(it.store.load(Oid(1)).unwrap().tid, again);
    assert_eq!(it.store.counts().objects, 1);
}

fn a_history_has_users_and_descriptions_newest_first(make: Make) {
    let it = make(StoreConfig::default());
    let mut expected = Vec::new();
    let mut base = Tid::ZERO;
    for n in 0..4u8 {
        let meta = TxnMeta { user: vec![b'u', n], description: vec![n; 3] };
        let txn = new_txn();
        it.store.begin(txn, meta.clone()).unwrap();
        it.store.store_blob(txn, Oid(1), base, vec![0; n.into()], it.store.staged(&[n; 9])).unwrap();
        base = it.store.commit(txn);
        let blob = Some(BlobInfo { size: 9, digest: digest(&[n; 9]) });
        expected.insert(0, HistoryEntry { tid: base, meta, size: Some(n.into()), blob });
    }
    assert_eq!(it.store.history(Oid(1), u32::MAX), Ok(expected.clone()));
    expected.truncate(2);
    assert_eq!(it.store.history(Oid(1), 2), Ok(expected));
    assert_eq!(it.store.history(Oid(1), 0), Ok(vec![]));
}

fn revisions_are_listed_in_commit_order_by_page(make: Make) {
    let it = make(StoreConfig::default());
    let mut expected = Vec::new();
    let mut base = Tid::ZERO;
    for _ in 0..3 {
        let txn = it.store.begin_new();
        for oid in [u64::MAX, 5, 0] {
            it.store.store(txn, Oid(oid), base, b"data".to_vec()).unwrap();
        }
        base = it.store.commit(txn);
        let revision = |oid| StoredRevision { tid: base, oid: Oid(oid), size: Some(4), blob: None };
        expected.extend([0, 5, u64::MAX].map(revision));
    }
    for limit in [1, 2, 4, 100] {
        let mut listed: Vec<StoredRevision> = Vec::new();
        loop {
            let after = listed.last().map(|last| (last.tid, last.oid));
            let page = it.store.revisions(after, limit).unwrap();
            assert!(page.len() <= limit as usize);
            if page.is_empty() {
                break;
            }
            listed.extend(page);
        }
        assert_eq!(listed, expected, "in pages of {limit}");
    }
    let gone = (expected[1].tid, expected[1].oid);
    it.store.pack(base).unwrap();
    assert_eq!(
        it.store.revisions(Some(gone), 100).unwrap(),
        expected[3..],
        "what a list had come to is gone"
    );
}

fn blobs_of_all_sizes_read_back(make: Make) {
    let it = make(StoreConfig { inline_max: 1000, ..StoreConfig::default() });
    for (oid, size) in (1..).zip([0, 1, 999, 1000, 1001, 300_000]) {
        let bytes: Vec<u8> = (0..size).map(|n: u32| (n * 7 % 251) as u8).collect();
        let tid = it.store.put_blob(oid, Tid::ZERO, &bytes);
        let blob = Some(BlobInfo { size: size.into(), digest: digest(&bytes) });
        assert_eq!(it.store.load(Oid(oid)).unwrap().blob, blob);
        assert_eq!(it.store.blob(oid, tid), Ok(bytes));
    }
    let counts = it.store.counts();
    assert_eq!((counts.blobs, counts.blob_bytes, counts.staged_bytes), (6, 303_001, 0));
}

fn the_last_store_decides_the_blob(make: Make) {
    let it = make(StoreConfig { inline_max: 10, ..StoreConfig::default() });
    let txn = it.store.begin_new();
    let large = [1; 100];
    for oid in [1, 2, 3, 4] {
        it.store.store_blob(txn, Oid(oid), Tid::ZERO, vec![], it.store.staged(&large)).unwrap();
    }
    it.store.store(txn, Oid(1), Tid::ZERO, b"no blob".to_vec()).unwrap();
    it.store.store_blob(txn, Oid(2), Tid::ZERO, vec![], it.store.staged(b"small")).unwrap();
    it.store.delete(txn, Oid(3), Tid::ZERO).unwrap();
    let tid = it.store.commit(txn);
    let blob = BlobId { oid: Oid(1), tid };
    assert_eq!(it.store.load(Oid(1)).unwrap().blob, None);
    assert_eq!(it.store.blob(1, tid), Err(RequestError::NoSuchBlob { blob }));
    assert_eq!(it.store.blob(2, tid), Ok(b"small".to_vec()));
    assert_eq!(it.store.load(Oid(3)), Err(RequestError::NoSuchObject { oid: Oid(3) }));
    assert_eq!(it.store.blob(4, tid), Ok(large.to_vec()));
}

fn blobs_that_are_not_as_announced_are_refused(make: Make) {
    let it = make(StoreConfig { inline_max: 10, ..StoreConfig::default() });
    for size in [5usize, 50] {
        let bytes = vec![3; size];
        let mismatch =
            |result: Result<_, RequestError>| assert!(matches!(result, Err(RequestError::Mismatch { .. })));
        let mut long = it.store.stage(size as u64).unwrap();
        long.write(&bytes).unwrap();
        mismatch(long.write(b"x"));
        let mut short = it.store.stage(size as u64).unwrap();
        short.write(&bytes[1..]).unwrap();
        mismatch(short.complete(digest(&bytes[1..])).map(drop));
        let mut other = it.store.stage(size as u64).unwrap();
        other.write(&bytes).unwrap();
        mismatch(other.complete(digest(b"else")).map(drop));
    }
    assert_eq!(it.store.counts().staged_bytes, 0);
}

fn ids_of_all_sizes_keep_their_order(make: Make) {
    let it = make(StoreConfig::default());
    let oids = [0, 1, i64::MAX as u64, 1 << 63, u64::MAX - 1];
    let txn = it.store.begin_new();
    for oid in oids {
        it.store.store(txn, Oid(oid), Tid::ZERO, oid.to_be_bytes().to_vec()).unwrap();
    }
    it.store.commit(txn);
    for oid in oids {
        assert_eq!(it.store.load(Oid(oid)).unwrap().data, oid.to_be_bytes());
    }
    let listed: Vec<u64> =
        it.store.revisions(None, 10).unwrap().iter().map(|revision| revision.oid.0).collect();
    assert_eq!(listed, oids);
    assert_eq!(it.store.new_oids(1), Ok((Oid(u64::MAX), 1)));
    assert!(matches!(it.store.new_oids(1), Err(RequestError::Limit { .. })));
}
