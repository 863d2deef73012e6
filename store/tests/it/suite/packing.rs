//! Pack: the revision that was current at a time stays, with all later ones.

use blobferry_protocol::{BlobId, Oid, Packed, RequestError, Tid};
use blobferry_store::{Store, StoreConfig};

use super::promises;
use crate::support::{Make, StoreExt};

promises![
    a_pack_keeps_the_then_current_and_later_revisions,
    a_deleted_object_goes_altogether,
    a_deletion_with_later_revisions_stays,
    blobs_go_with_their_revisions,
    a_pack_of_many_revisions_is_complete,
];

fn tids(store: &dyn Store, oid: u64) -> Vec<Tid> {
    store.history(Oid(oid), 1000).unwrap_or_default().iter().rev().map(|entry| entry.tid).collect()
}

fn a_pack_keeps_the_then_current_and_later_revisions(make: Make) {
    let it = make(StoreConfig::default());
    let mut all = vec![it.store.put(1, Tid::ZERO, b"0")];
    let other = it.store.put(2, Tid::ZERO, b"never changed");
    for n in 1..5u8 {
        all.push(it.store.put(1, all[all.len() - 1], &[n]));
    }
    assert_eq!(it.store.pack(Tid::ZERO), Ok(Packed::default()));
    assert_eq!(it.store.pack(all[1]), Ok(Packed::default()), "the first was current until then");
    assert_eq!(tids(&*it.store, 1), all);
    assert_eq!(it.store.pack(all[3]), Ok(Packed { revisions: 2, ..Packed::default() }));
    assert_eq!(tids(&*it.store, 1), all[2..]);
    assert_eq!(tids(&*it.store, 2), [other]);
    let gone = RequestError::NoSuchRevision { oid: Oid(1), tid: all[1] };
    assert_eq!(it.store.load_serial(Oid(1), all[1]), Err(gone));
    assert_eq!(it.store.load_before(Oid(1), all[3]).unwrap().unwrap().tid, all[2]);
    assert_eq!(it.store.load_before(Oid(1), all[2]), Ok(None));
    assert_eq!(it.store.pack(Tid::MAX), Ok(Packed { revisions: 2, ..Packed::default() }));
    assert_eq!(it.store.load(Oid(1)).unwrap().data, [4]);
    assert_eq!(it.store.counts().revisions, 2);
}

fn a_deleted_object_goes_altogether(make: Make) {
    let it = make(StoreConfig::default());
    let stored = it.store.put(1, Tid::ZERO, b"data");
    let deleted = it.store.remove(1, stored);
    assert_eq!(it.store.pack(deleted), Ok(Packed::default()));
    assert_eq!(it.store.pack(Tid(deleted.0 + 1)), Ok(Packed { revisions: 2, ..Packed::default() }));
    let missing = RequestError::NoSuchObject { oid: Oid(1) };
    assert_eq!(it.store.history(Oid(1), 10), Err(missing.clone()));
    assert_eq!(it.store.load_before(Oid(1), stored), Err(missing));
    assert_eq!(it.store.counts().revisions, 0);
    let (next, _) = it.store.new_oids(1).unwrap();
    assert!(next > Oid(1), "its number is not used again");
}

fn a_deletion_with_later_revisions_stays(make: Make) {
    let it = make(StoreConfig::default());
    let stored = it.store.put(1, Tid::ZERO, b"data");
    let deleted = it.store.remove(1, stored);
    let again = it.store.put(1, Tid::ZERO, b"again");
    assert_eq!(it.store.pack(again), Ok(Packed { revisions: 1, ..Packed::default() }));
    assert_eq!(tids(&*it.store, 1), [deleted, again]);
    assert_eq!(it.store.load_before(Oid(1), again), Err(RequestError::NoSuchObject { oid: Oid(1) }));
    it.store.pack(Tid::MAX).unwrap();
    assert_eq!(tids(&*it.store, 1), [again]);
}

fn blobs_go_with_their_revisions(make: Make) {
    let it = make(StoreConfig { inline_max: 10, ..StoreConfig::default() });
    let small = it.store.put_blob(1, Tid::ZERO, b"small");
    let large = it.store.put_blob(1, small, &[1; 100]);
    let last = it.store.put_blob(1, large, &[2; 200]);
    assert_eq!(it.store.pack(Tid::MAX), Ok(Packed { revisions: 2, blobs: 2, bytes: 105 }));
    for tid in [small, large] {
        let blob = BlobId { oid: Oid(1), tid };
        assert_eq!(it.store.blob(1, tid), Err(RequestError::NoSuchBlob { blob }));
    }
    assert_eq!(it.store.blob(1, last), Ok(vec![2; 200]));
    let counts = it.store.counts();
    assert_eq!((counts.blobs, counts.blob_bytes, counts.objects), (1, 200, 1));
}

fn a_pack_of_many_revisions_is_complete(make: Make) {
    let it = make(StoreConfig::default());
    let mut base = Tid::ZERO;
    for round in 0..4u8 {
        let txn = it.store.begin_new();
        for oid in 1..=600 {
            it.store.store(txn, Oid(oid), base, vec![round]).unwrap();
        }
        base = it.store.commit(txn);
    }
    assert_eq!(it.store.pack(Tid::MAX), Ok(Packed { revisions: 1800, ..Packed::default() }));
    assert!((1..=600).all(|oid| tids(&*it.store, oid) == [base]));
}
