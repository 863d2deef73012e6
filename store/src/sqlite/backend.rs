//! The back end on disk: its parts, and which of them does each of its duties.

use std::fs::File;

use blobferry_platform::blobdir::Layout;
use blobferry_platform::sync::atomic::AtomicBool;
use blobferry_platform::sync::{Arc, Mutex};
use blobferry_protocol::{
    BlobId, BlobInfo, Conflict, HistoryEntry, Oid, Outcome, Packed, RequestError, Tid, TxnId,
};

use crate::backend::{Backend, Found, Totals};
use crate::sqlite::database::Database;
use crate::sqlite::early_sync::EarlySync;
use crate::sqlite::files::Staging;
use crate::sqlite::oids::Oids;
use crate::sqlite::recover::DirectoryLock;
use crate::sqlite::schema;
use crate::sqlite::space::DiskSpace;
use crate::sqlite::totals;
use crate::staging::{QuotaPermit, SmallStage, Stage, Staged};
use crate::store::{OpenBlob, StoredRevision};
use crate::transactions::table::Work;
use crate::transactions::write_set::{Spool, WriteSet};

/// The bytes of a transaction's spool that stay in memory. A larger spool moves to the disk.
const SPOOL_IN_MEMORY: usize = 64 << 10;

/// The back end of a [`SqliteStore`](crate::SqliteStore): revisions on disk.
pub struct SqliteBackend {
    pub(super) database: Database,
    pub(super) layout: Layout,
    /// The directory where clients that share it put files.
    pub(super) tmp: File,
    pub(super) space: DiskSpace,
    pub(super) early_sync: EarlySync,
    pub(super) staging: Arc<Staging>,
    pub(super) inline_max: u64,
    /// See [`Files`](crate::sqlite::files::Files).
    pub(super) new_bucket: AtomicBool,
    /// A thread that needs both locks this one before the writer.
    pub(super) oids: Mutex<Oids>,
    /// Changes only while the writer is locked.
    pub(super) totals: Mutex<Totals>,
    /// Dropped last: it locks the directory until then.
    pub(super) _lock: DirectoryLock,
}

impl std::fmt::Debug for SqliteBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteBackend").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl Backend for SqliteBackend {
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
        self.oids.lock().allocate(count, &self.database)
    }

    fn spool(&self) -> Spool {
        Spool::new(SPOOL_IN_MEMORY, self.layout.tmp())
    }

    fn is_inline(&self, size: u64) -> bool {
        size <= self.inline_max
    }

    fn stage(&self, size: u64, permit: QuotaPermit) -> Result<Box<dyn Stage>, RequestError> {
        if self.is_inline(size) {
            return Ok(Box::new(SmallStage::new(size, permit)));
        }
        Ok(Box::new(self.stage_file(size, permit)?))
    }

    fn adopt(&self, name: &str, info: BlobInfo, permit: QuotaPermit) -> Result<Staged, RequestError> {
        self.adopt_file(name, info, permit)
    }

    fn check(&self, txn: TxnId, changes: &WriteSet) -> Result<Vec<Conflict>, RequestError> {
        self.find_conflicts(txn, changes)
    }

    fn commit(&self, after: Tid, batch: &[Work]) -> Vec<Result<Outcome, RequestError>> {
        self.commit_batch(after, batch)
    }

    fn checkpoint_if_large(&self) {
        self.database.checkpoint_if_large();
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
        self.try_to_save_totals();
        self.database.truncate_wal();
    }
}

impl SqliteBackend {
    /// Returns the last committed transaction.
    pub(super) fn last_tid(&self) -> Result<Tid, RequestError> {
        self.database.read("read the last transaction", |connection| {
            let last: Option<i64> =
                connection.query_row("SELECT max(tid) FROM transactions", [], |row| row.get(0))?;
            Ok(last.map_or(Tid::ZERO, schema::tid))
        })
    }

    /// Saves the totals if they are not up to date. If that fails, the next open counts again.
    pub(super) fn try_to_save_totals(&self) {
        if let Err(error) = self.save_totals() {
            tracing::debug!(%error, "the totals were not saved");
        }
    }

    fn save_totals(&self) -> Result<(), RequestError> {
        self.database.with_writer(|writer| {
            let failed = |error: rusqlite::Error| self.database.error("save the totals", &error);
            if totals::read(&writer.connection).map_err(failed)?.is_saved {
                return Ok(());
            }
            let transaction = self.database.begin(&mut writer.connection)?;
            totals::write(&transaction, writer.last_oid, *self.totals.lock()).map_err(failed)?;
            self.database.commit(transaction)
        })
    }
}
