//! The embedded store: SQLite for records, transactions and small blobs, files for large ones.
//!
//! ```text
//! DIR/lock             locked while a server has the directory open
//! DIR/store.sqlite     the database (and its log, store.sqlite-wal)
//! DIR/blobs/           the blob files, in the layout that caches have; its tmp/ is where blobs are staged
//! ```

mod check;
mod commit;
mod database;
mod early_sync;
mod files;
mod oids;
mod pack;
mod poison;
mod read;
mod recover;
mod schema;
mod space;
mod stage;
mod sync_counter;
mod totals;

use std::fs::File;
use std::path::Path;

use blobferry_platform::blobdir::Layout;
use blobferry_platform::os;
use blobferry_platform::sync::atomic::AtomicBool;
use blobferry_platform::sync::{Arc, Mutex};
use blobferry_protocol::{
    BlobId, BlobInfo, Conflict, HistoryEntry, Oid, Outcome, Packed, RequestError, Tid, TxnId,
};

pub use self::check::{CheckOptions, CheckReport, Finding, FindingKind, check};
use self::database::Database;
use self::early_sync::EarlySync;
use self::oids::Oids;
use self::space::DiskSpace;
use crate::backend::{Backend, Found, Totals};
use crate::config::StoreConfig;
use crate::errors::{OpenError, opening};
use crate::staging::{QuotaPermit, SmallStage, Stage, Staged, Staging};
use crate::store::{OpenBlob, StoredRevision};
use crate::transactions::coordinator;
use crate::transactions::coordinator::Coordinator;
use crate::transactions::table::Work;
use crate::transactions::write_set::{SPOOL_IN_MEMORY, Spool, WriteSet};

/// The database's name in the store's directory.
const DATABASE: &str = "store.sqlite";

/// The durable store in one directory, for one server process.
///
/// Committed is what survives a power cut: the bytes of blobs and their names are synced before the database
/// commits, and that commit is the only moment at which a transaction happens.
pub type SqliteStore = Coordinator<Disk>;

impl SqliteStore {
    /// Opens the store in a directory, and creates it (with mode 0700) if there is none.
    ///
    /// What a crash has left is put right first: staged files go, and so do blob files that no transaction has
    /// committed. Blobs whose file is damaged are reported, and counted in
    /// [`Counts::damaged`](crate::Counts::damaged).
    ///
    /// # Errors
    /// [`OpenError::InUse`] when another server has it open, and all others for what they say.
    pub fn open(dir: impl AsRef<Path>, config: StoreConfig) -> Result<SqliteStore, OpenError> {
        let dir = dir.as_ref();
        let claim = recover::claim(dir)?;
        let layout = Layout::open(dir.join("blobs"))?;
        let staged = recover::empty_tmp(layout.tmp())?;
        let database = dir.join(DATABASE);
        if !schema::exists(&database) && layout.blobs().next().is_some() {
            // A new one would know of none of them, and have them removed.
            return Err(OpenError::NoDatabase { path: database });
        }
        recover::renew_log(&database)?;
        let database = Database::open(&database)?;
        database.empty_log(); // what a large transaction before a crash has left there may be large
        let orphans = recover::remove_orphans(&layout, &database)?;
        let damaged = recover::count_damaged(&layout, &database)?;
        for made in [layout.root(), dir] {
            os::files::sync_names(made).map_err(opening("sync", made))?;
        }
        let sums = database.read("read the totals", totals::read).map_err(recover::failed(&database))?;
        let last_oid = sums.last_oid;
        let tmp = stage::open_dir(layout.tmp()).map_err(opening("open", layout.tmp()))?;
        let disk = Disk {
            space: DiskSpace::of(layout.tmp()),
            ahead: EarlySync::new(config.sync_ahead, &database.syncs, &database.poison),
            staging: Arc::new(Staging::new(layout.tmp())),
            new_bucket: AtomicBool::new(false), // the directory of all buckets was synced just now
            inline_max: config.inline_max.min(StoreConfig::INLINE_LIMIT),
            oids: Mutex::new(Oids { last: last_oid, reserved: last_oid }),
            totals: Mutex::new(Totals { damaged, ..sums.totals }),
            database,
            layout,
            tmp,
            _claim: claim,
        };
        disk.try_to_keep_totals();
        let last = disk.last_tid().map_err(recover::failed(&disk.database))?;
        tracing::info!(dir = %dir.display(), %last, staged, orphans, damaged, "opened the store");
        coordinator::start(disk, config, last)
    }
}

/// Revisions on the disk.
pub struct Disk {
    database: Database,
    layout: Layout,
    /// Where clients who share the directory leave files.
    tmp: File,
    space: DiskSpace,
    ahead: EarlySync,
    staging: Arc<Staging>,
    inline_max: u64,
    /// See [`files::Files`].
    new_bucket: AtomicBool,
    /// Locked before the writer where both are needed.
    oids: Mutex<Oids>,
    /// Changed while the writer is locked only.
    totals: Mutex<Totals>,
    /// Dropped last: until then the directory is ours.
    _claim: File,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl Backend for Disk {
    fn last_tid(&self) -> Result<Tid, RequestError> {
        self.database.read("read the last transaction", |connection| {
            let last: Option<i64> =
                connection.query_row("SELECT max(tid) FROM transactions", [], |row| row.get(0))?;
            Ok(last.map_or(Tid::ZERO, schema::tid))
        })
    }

    fn check_writable(&self) -> Result<(), RequestError> {
        self.database.poison.check()
    }

    fn newest(&self, oid: Oid, upto: Tid, visible: Tid) -> Result<Option<Found>, RequestError> {
        self.read_newest(oid, upto, visible)
    }

    fn history(&self, oid: Oid, limit: u32, visible: Tid) -> Result<Vec<HistoryEntry>, RequestError> {
        self.read_history(oid, limit, visible)
    }

    fn revisions(
        &self,
        after: (Tid, Oid),
        limit: u32,
        visible: Tid,
    ) -> Result<Vec<StoredRevision>, RequestError> {
        self.read_revisions(after, limit, visible)
    }

    fn open_blob(&self, blob: BlobId) -> Result<OpenBlob, RequestError> {
        self.read_blob(blob)
    }

    fn new_oids(&self, count: u32) -> Result<Oid, RequestError> {
        self.give_oids(count)
    }

    fn spool(&self) -> Spool {
        Spool::new(SPOOL_IN_MEMORY, self.layout.tmp())
    }

    fn is_inline(&self, size: u64) -> bool {
        size <= self.inline_max
    }

    fn stage(&self, size: u64, room: QuotaPermit) -> Result<Box<dyn Stage>, RequestError> {
        if self.is_inline(size) {
            return Ok(Box::new(SmallStage::new(size, room)));
        }
        Ok(Box::new(self.stage_file(size, room)?))
    }

    fn adopt(&self, name: &str, info: BlobInfo, room: QuotaPermit) -> Result<Staged, RequestError> {
        self.adopt_file(name, info, room)
    }

    fn check(&self, txn: TxnId, changes: &WriteSet) -> Result<Vec<Conflict>, RequestError> {
        self.find_conflicts(txn, changes)
    }

    fn commit(&self, after: Tid, batch: &[Work]) -> Vec<Result<Outcome, RequestError>> {
        self.commit_batch(after, batch)
    }

    fn tidy(&self) {
        self.database.tidy();
    }

    fn pack(&self, before: Tid) -> Result<Packed, RequestError> {
        self.pack_before(before)
    }

    fn totals(&self) -> Totals {
        *self.totals.lock()
    }

    fn syncs(&self) -> u64 {
        self.database.syncs.get()
    }

    fn close(&self) {
        self.try_to_keep_totals();
        self.database.empty_log();
    }
}

#[cfg(test)]
mod tests {
    use blobferry_protocol::TxnMeta;

    use super::*;
    use crate::store::{Done, Store, Vote};

    fn wait<T: Send + 'static>(ask: impl FnOnce(Done<T>)) -> Result<T, RequestError> {
        let (answer, answers) = std::sync::mpsc::channel();
        ask(Box::new(move |result| _ = answer.send(result)));
        answers.recv().unwrap()
    }

    #[test]
    fn after_a_failed_sync_reads_go_on_and_every_write_is_refused_with_the_reason() {
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
            "nobody can be sure before the next start"
        );
        assert_eq!(wait(|done| store.outcome(committed, done)), Ok(Outcome::Committed { tid }));
        assert_eq!(store.load(Oid(1)).unwrap().data, b"data");

        drop(store);
        let store = SqliteStore::open(dir.path(), StoreConfig::default()).unwrap();
        assert_eq!(store.last_tid(), tid);
        assert_eq!(wait(|done| store.outcome(voted, done)), Ok(Outcome::NotCommitted));
    }
}
