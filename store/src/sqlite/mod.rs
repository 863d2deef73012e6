//! The store on disk: SQLite for records, transactions and small blobs, files for large blobs.
//!
//! ```text
//! DIR/lock             locked while a server has the directory open
//! DIR/store.sqlite     the database (and its log, store.sqlite-wal)
//! DIR/blobs/           the blob files, in the layout of caches; blobs are staged in its tmp/
//! ```

mod backend;
mod check;
mod commit;
mod database;
mod early_sync;
mod errors;
mod files;
mod oids;
mod open;
mod pack;
mod poison;
mod read;
mod recover;
mod schema;
mod space;
mod stage;
mod sync_counter;
mod totals;

pub use blobferry_platform::progress::Progress;

pub use self::backend::SqliteBackend;
pub use self::check::{CheckOptions, CheckReport, Finding, FindingKind, check};
pub use self::open::SqliteStore;

#[cfg(test)]
mod tests {
    use blobferry_protocol::{Oid, Outcome, RequestError, Tid, TxnId, TxnMeta};

    use crate::store::{Done, Store, Vote};
    use crate::{SqliteStore, StoreConfig};

    fn wait<T: Send + 'static>(call: impl FnOnce(Done<T>)) -> Result<T, RequestError> {
        let (answer, answers) = std::sync::mpsc::channel();
        call(Box::new(move |result| _ = answer.send(result)));
        answers.recv().unwrap()
    }

    #[test]
    fn after_a_failed_sync_only_reads_work() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), StoreConfig::default()).unwrap();
        let [committed, voted, open] = [1, 2, 3].map(|n| TxnId([n; 16]));
        for (txn, oid) in [(committed, 1), (voted, 2), (open, 3)] {
            store.begin(txn, TxnMeta::default()).unwrap();
            store.store(txn, Oid(oid), Tid::ZERO, b"data".to_vec()).unwrap();
        }
        assert_eq!(wait(|done| store.vote(committed, done)), Ok(Vote::Ready));
        let tid = wait(|done| store.finish(committed, done)).unwrap();
        assert_eq!(wait(|done| store.vote(voted, done)), Ok(Vote::Ready));
        let staged = store.stage(0).unwrap();

        let error = store.core.backend.database.poison.set(&"could not sync blobs/17: disk on fire");
        assert!(matches!(&error, RequestError::ReadOnly { reason } if reason.contains("disk on fire")));
        assert_eq!(store.begin(TxnId([4; 16]), TxnMeta::default()), Err(error.clone()));
        assert_eq!(store.store(open, Oid(4), Tid::ZERO, vec![]), Err(error.clone()));
        assert_eq!(store.delete(open, Oid(4), Tid::ZERO), Err(error.clone()));
        assert_eq!(store.stage(1).map(drop), Err(error.clone()));
        drop(staged);
        assert_eq!(wait(|done| store.vote(open, done)), Err(error.clone()));
        assert_eq!(wait(|done| store.finish(voted, done)), Err(error.clone()));
        assert_eq!(store.new_oids(1), Err(error.clone()));
        assert_eq!(store.pack(Tid::MAX), Err(error.clone()));
        assert_eq!(
            wait(|done| store.outcome(voted, done)),
            Err(error),
            "the outcome is unknown before the next start"
        );
        assert_eq!(wait(|done| store.outcome(committed, done)), Ok(Outcome::Committed { tid }));
        assert_eq!(store.load(Oid(1)).unwrap().data, b"data");

        drop(store);
        let store = SqliteStore::open(dir.path(), StoreConfig::default()).unwrap();
        assert_eq!(store.last_tid(), tid);
        assert_eq!(wait(|done| store.outcome(voted, done)), Ok(Outcome::NotCommitted));
    }
}
