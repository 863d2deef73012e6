//! Opens a store: recovers its directory from a crash, then starts the threads.

use std::path::Path;
use std::sync::Once;

use blobferry_platform::blobdir::Layout;
use blobferry_platform::os;
use blobferry_platform::sync::atomic::AtomicBool;
use blobferry_platform::sync::{Arc, Mutex};

use crate::backend::Totals;
use crate::config::StoreConfig;
use crate::errors::OpenError;
use crate::sqlite::backend::SqliteBackend;
use crate::sqlite::database::Database;
use crate::sqlite::early_sync::EarlySync;
use crate::sqlite::errors::open_io_error;
use crate::sqlite::files::Staging;
use crate::sqlite::oids::Oids;
use crate::sqlite::schema::DATABASE;
use crate::sqlite::space::DiskSpace;
use crate::sqlite::{recover, schema, stage, totals};
use crate::transactions::coordinator;
use crate::transactions::coordinator::Coordinator;

/// The durable store in one directory, for one server process.
///
/// A commit survives a power cut. The bytes and names of its blobs are synced before the database
/// commits, and the transaction happens at that one moment.
pub type SqliteStore = Coordinator<SqliteBackend>;

impl SqliteStore {
    /// Opens the store in a directory. Creates the directory, with mode 0700, if there is none.
    ///
    /// What a crash has left is removed first: staged files, and blob files that no transaction has
    /// committed. Blobs whose file is missing or has the wrong length are logged, and counted in
    /// [`Counts::damaged`](crate::Counts::damaged).
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another server has the directory open. The other errors describe
    /// themselves.
    pub fn open(dir: impl AsRef<Path>, config: StoreConfig) -> Result<SqliteStore, OpenError> {
        warn_of_slow_sync();
        let dir = dir.as_ref();
        let lock = recover::lock(dir)?;
        let layout = Layout::open(dir.join("blobs"))?;
        let staged = recover::empty_tmp(layout.tmp())?;
        let database = dir.join(DATABASE);
        if !schema::exists(&database) && layout.blobs().next().is_some() {
            // With a new database, the blobs would be removed as orphans.
            return Err(OpenError::NoDatabase { path: database });
        }
        recover::rewrite_log(&database)?;
        let database = Database::open(&database)?;
        database.truncate_wal(); // it may be large after a crash
        let orphans = recover::remove_orphans(&layout, &database)?;
        let damaged = recover::count_damaged(&layout, &database)?;
        for made in [layout.root(), dir] {
            os::files::sync_names(made).map_err(open_io_error("sync", made))?;
        }
        let sums = database.read("read the totals", totals::read).map_err(recover::failed(&database))?;
        let last_oid = sums.last_oid;
        let tmp = stage::open_dir(layout.tmp()).map_err(open_io_error("open", layout.tmp()))?;
        let backend = SqliteBackend {
            space: DiskSpace::of(layout.tmp()),
            early_sync: EarlySync::new(config.sync_ahead, &database.syncs, &database.poison),
            staging: Arc::new(Staging::new(layout.tmp())),
            new_bucket: AtomicBool::new(false), // the directory of all buckets was synced above
            inline_max: config.inline_max.min(StoreConfig::INLINE_LIMIT),
            oids: Mutex::new(Oids::after(last_oid)),
            totals: Mutex::new(Totals { damaged, ..sums.totals }),
            database,
            layout,
            tmp,
            _lock: lock,
        };
        backend.try_to_save_totals();
        let last = backend.last_tid().map_err(recover::failed(&backend.database))?;
        tracing::info!(dir = %dir.display(), %last, staged, orphans, damaged, "opened the store");
        coordinator::start(backend, config, last)
    }
}

/// Returns whether SQLite syncs with `fdatasync`. Otherwise it uses `fsync`, which is slower.
///
/// SQLite does not list this among its compile options, so the flags of its build are read.
fn has_fdatasync() -> bool {
    option_env!("LIBSQLITE3_FLAGS").is_some_and(|flags| flags.contains("HAVE_FDATASYNC"))
}

/// Warns once per process if commits are slower than they need to be.
fn warn_of_slow_sync() {
    static WARNED: Once = Once::new();
    if !has_fdatasync() {
        WARNED.call_once(|| {
            tracing::warn!(
                "SQLite was built without fdatasync, so each commit takes longer: \
                 build with LIBSQLITE3_FLAGS=-DHAVE_FDATASYNC=1 in the environment"
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_workspace_builds_sqlite_with_fdatasync() {
        assert!(has_fdatasync());
    }
}
