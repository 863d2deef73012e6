//! Checks that apply to any implementation of `Store`, whatever it contains.

#![allow(dead_code, reason = "each test program uses some of them")]

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::mpsc;

use blobferry_protocol::{BlobId, Digest, Oid, RequestError, Tid, TxnId, TxnMeta};
use blobferry_store::{Done, OpenBlob, Staged, Store, StoredRevision};

fn wait<T: Send + 'static>(call: impl FnOnce(Done<T>)) -> Result<T, RequestError> {
    let (answer, answers) = mpsc::channel();
    call(Box::new(move |result| _ = answer.send(result)));
    answers.recv().expect("every call is answered")
}

/// Lists all revisions in pages of `limit`.
fn list(store: &dyn Store, limit: u32) -> Vec<StoredRevision> {
    let mut all: Vec<StoredRevision> = Vec::new();
    loop {
        let after = all.last().map(|last| (last.tid, last.oid));
        let page = store.revisions(after, limit).unwrap();
        assert!(page.len() <= limit as usize);
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// Checks that a store contains nothing.
pub(crate) fn is_empty(store: &dyn Store) {
    let missing = RequestError::NoSuchObject { oid: Oid(0) };
    assert_eq!(store.last_tid(), Tid::ZERO);
    assert_eq!(store.load(Oid(0)), Err(missing.clone()));
    assert_eq!(store.load_before(Oid(0), Tid::MAX), Err(missing.clone()));
    assert_eq!(store.history(Oid(0), 10), Err(missing));
    assert_eq!(store.revisions(None, 10), Ok(vec![]));
    let blob = BlobId { oid: Oid(0), tid: Tid(1) };
    assert_eq!(store.open_blob(blob).unwrap_err(), RequestError::NoSuchBlob { blob });
}

/// Checks that all reads of a store agree with each other, and that every blob has its digest.
pub(crate) fn reads_agree(store: &dyn Store) {
    let all = list(store, 1000);
    assert!(all.is_sorted_by(|one, next| (one.tid, one.oid) < (next.tid, next.oid)));
    assert!(all.iter().all(|revision| revision.tid <= store.last_tid()));
    for limit in [1, 2, 7] {
        assert_eq!(list(store, limit), all, "in pages of {limit}");
    }
    let mut objects: BTreeMap<Oid, Vec<StoredRevision>> = BTreeMap::new();
    all.into_iter().for_each(|revision| objects.entry(revision.oid).or_default().push(revision));
    for (oid, revisions) in objects {
        object_agrees(store, oid, &revisions);
    }
}

/// Checks one object, whose revisions are listed from the oldest to the newest.
fn object_agrees(store: &dyn Store, oid: Oid, revisions: &[StoredRevision]) {
    let history = store.history(oid, 1000).unwrap();
    let newest_first: Vec<_> = revisions.iter().rev().map(|r| (r.tid, r.size, r.blob)).collect();
    assert_eq!(history.iter().map(|e| (e.tid, e.size, e.blob)).collect::<Vec<_>>(), newest_first);
    assert_eq!(store.history(oid, 1).unwrap(), history[..1]);
    assert_eq!(store.history(oid, 0), Ok(vec![]));

    let missing = Err(RequestError::NoSuchObject { oid });
    for (n, listed) in revisions.iter().enumerate() {
        let next = revisions.get(n + 1).map(|next| next.tid);
        let found = store.load_serial(oid, listed.tid);
        match &found {
            Ok(revision) => {
                assert_eq!((revision.tid, revision.next), (listed.tid, next));
                assert_eq!(listed.size, Some(revision.data.len() as u64));
                assert_eq!(listed.blob, revision.blob);
            }
            _ => assert_eq!((&found, listed.size, listed.blob), (&missing, None, None)),
        }
        let just_before_next = next.unwrap_or(Tid::MAX);
        assert_eq!(store.load_before(oid, just_before_next), found.clone().map(Some));
        let after = Tid(listed.tid.0 + 1);
        assert_eq!(store.load_before(oid, after), found.clone().map(Some));
        if next.is_none() {
            assert_eq!(store.load(oid), found);
        }
        blob_agrees(store, listed);
    }
    assert_eq!(store.load_before(oid, revisions[0].tid), Ok(None));
    let tid = Tid(revisions[0].tid.0 - 1);
    assert_eq!(store.load_serial(oid, tid), Err(RequestError::NoSuchRevision { oid, tid }));
}

fn blob_agrees(store: &dyn Store, revision: &StoredRevision) {
    let blob = BlobId { oid: revision.oid, tid: revision.tid };
    let Some(expected) = revision.blob else {
        assert_eq!(store.open_blob(blob).unwrap_err(), RequestError::NoSuchBlob { blob });
        return;
    };
    let open = store.open_blob(blob).unwrap();
    assert_eq!(open.info(), expected);
    let bytes = match open {
        OpenBlob::Small { bytes, .. } => bytes,
        OpenBlob::File { mut file, .. } => {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        }
    };
    assert_eq!(
        (bytes.len() as u64, Digest(*blake3::hash(&bytes).as_bytes())),
        (expected.size, expected.digest)
    );
}

/// Checks that a read-only store refuses every call that would write.
pub(crate) fn writes_are_refused(store: &dyn Store) {
    let txn = TxnId([9; 16]);
    let digest = Digest(*blake3::hash(b"").as_bytes());
    let refused = [
        store.begin(txn, TxnMeta::default()),
        store.store(txn, Oid(1), Tid::ZERO, vec![]),
        store.delete(txn, Oid(1), Tid(1)),
        store.stage(1).map(drop),
        store.store_blob(txn, Oid(1), Tid::ZERO, vec![], Staged::from_bytes(vec![], digest)),
        store.store_shared(txn, Oid(1), Tid::ZERO, vec![], "file", 0, digest),
        store.new_oids(1).map(drop),
        store.pack(Tid::MAX).map(drop),
        wait(|done| store.vote(txn, done)).map(drop),
        wait(|done| store.finish(txn, done)).map(drop),
        wait(|done| store.outcome(txn, done)).map(drop),
    ];
    for (n, result) in refused.into_iter().enumerate() {
        assert!(matches!(result, Err(RequestError::ReadOnly { .. })), "call {n}: {result:?}");
    }
    store.abort(txn);
    store.close();
}
