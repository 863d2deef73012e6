//! The connections to the database: one writer, and [`READERS`] readers.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blobferry_platform::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use blobferry_platform::sync::{Condvar, Mutex};
use blobferry_protocol::RequestError;
use rusqlite::{Connection, ErrorCode, Row, Transaction, TransactionBehavior, ffi};

use crate::errors::{OpenError, disk_error};
use crate::sqlite::errors::{database_error, open_database_error};
use crate::sqlite::poison::Poison;
use crate::sqlite::schema;
use crate::sqlite::schema::log_path;
use crate::sqlite::sync_counter::SyncCounter;
use crate::sqlite::totals;

/// The most reads at once. Further ones wait.
const READERS: usize = 4;
/// The bytes in the log after which it is checkpointed. Fewer make the next open faster, since it
/// rewrites the log. More make commits cheaper, since a checkpoint takes three syncs.
const CHECKPOINT: u64 = 16 << 20;

pub(crate) struct Database {
    pub(super) path: PathBuf,
    pub(super) poison: Poison,
    pub(super) syncs: SyncCounter,
    /// How often the database has changed or was checkpointed. Snapshots of an earlier version are
    /// stale.
    version: AtomicU64,
    /// The next commit restarts the log.
    wal_restart: AtomicBool,
    writer: Mutex<Writer>,
    readers: Mutex<Readers>,
    returned: Condvar,
}

/// The connections that read.
struct Readers {
    free: Vec<Reader>,
    /// The number of threads that wait for one.
    waiting: usize,
}

/// A connection that reads. Its snapshot stays open from one read to the next while the database
/// does not change, since opening one costs as much as a small read.
struct Reader {
    connection: Connection,
    /// The version of its open snapshot.
    snapshot: Option<u64>,
}

impl Reader {
    fn new(connection: Connection) -> Reader {
        Reader { connection, snapshot: None }
    }

    /// Begins a snapshot of a version, unless it has one.
    fn begin_snapshot(&mut self, version: u64) -> rusqlite::Result<()> {
        if self.snapshot != Some(version) {
            self.end_snapshot();
            self.connection.prepare_cached("BEGIN")?.execute([])?;
            self.snapshot = Some(version);
        }
        Ok(())
    }

    /// Ends its snapshot, which would hold back a checkpoint.
    fn end_snapshot(&mut self) {
        if self.snapshot.take().is_some() {
            // If the transaction is not open, there is nothing to end.
            let _ = self.connection.prepare_cached("COMMIT").and_then(|mut end| end.execute([]));
        }
    }
}

/// The one connection that writes.
pub(super) struct Writer {
    pub(super) connection: Connection,
    /// No oid up to this one is allocated again, even after a crash.
    pub(super) last_oid: u64,
    /// The approximate bytes written since the last checkpoint.
    pub(super) written: u64,
}

/// Returns whether a log with this number of bytes is checkpointed.
pub(super) fn needs_checkpoint(written: u64) -> bool {
    written > CHECKPOINT
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Database, OpenError> {
        let connection = schema::open_writer(path)?;
        let last_oid = totals::read(&connection).map_err(open_database_error("read", path))?.last_oid;
        let reader = |_| schema::open_reader(path).map(Reader::new);
        let free = (0..READERS).map(reader).collect::<Result<_, _>>()?;
        Ok(Database {
            path: path.to_owned(),
            poison: Poison::default(),
            syncs: SyncCounter::default(),
            version: AtomicU64::new(0),
            wal_restart: AtomicBool::new(true),
            writer: Mutex::new(Writer { connection, last_oid, written: 0 }),
            readers: Mutex::new(Readers { free, waiting: 0 }),
            returned: Condvar::new(),
        })
    }

    /// Reads from a snapshot of the latest version, without waiting for the writer.
    pub(super) fn read<T>(
        &self,
        operation: &str,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, RequestError> {
        let mut reader = self.take_reader();
        let began = reader.begin_snapshot(self.version.load(Ordering::Acquire));
        let result = began.and_then(|()| read(&reader.connection));
        let mut readers = self.readers.lock();
        if result.is_err() || reader.snapshot != Some(self.version.load(Ordering::Acquire)) {
            reader.end_snapshot();
        }
        readers.free.push(reader);
        let is_awaited = readers.waiting > 0;
        drop(readers);
        if is_awaited {
            self.returned.notify_one();
        }
        result.map_err(|error| database_error(operation, &self.path, &error))
    }

    fn take_reader(&self) -> Reader {
        let mut readers = self.readers.lock();
        loop {
            if let Some(reader) = readers.free.pop() {
                return reader;
            }
            readers.waiting += 1;
            readers = self.returned.wait(readers);
            readers.waiting -= 1;
        }
    }

    /// Locks the writer and calls `write`, unless a sync has failed before.
    pub(super) fn with_writer<T>(
        &self,
        write: impl FnOnce(&mut Writer) -> Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        let mut writer = self.writer.lock();
        self.poison.check()?;
        write(&mut writer)
    }

    pub(super) fn begin<'a>(&self, connection: &'a mut Connection) -> Result<Transaction<'a>, RequestError> {
        connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| self.error("begin to write", &error))
    }

    /// Makes a transaction durable.
    ///
    /// If SQLite could not write, there is no commit record in its log: the transaction has not
    /// happened. After any other failure, the next open finds out whether it has.
    pub(super) fn commit(&self, transaction: Transaction<'_>) -> Result<(), RequestError> {
        self.syncs.add(1 + u64::from(self.wal_restart.swap(false, Ordering::Relaxed)));
        let committed = transaction.commit();
        self.version.fetch_add(1, Ordering::Release);
        committed.map_err(|error| match error.sqlite_error().map(|error| error.extended_code) {
            Some(ffi::SQLITE_FULL | ffi::SQLITE_IOERR_WRITE) => self.error("commit", &error),
            _ => self.failed("commit", &error),
        })
    }

    /// Returns what a client sees of a failed statement. A failed disk ends all writing. A full or
    /// read-only one may be repaired while the server runs.
    pub(super) fn error(&self, operation: &str, error: &rusqlite::Error) -> RequestError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt) => self.failed(operation, error),
            Some(ErrorCode::SystemIoFailure) => match self.find_cause(error) {
                Some(cause) => disk_error(&format!("{operation} in"), &self.path, &cause),
                None => self.failed(operation, error),
            },
            _ => database_error(operation, &self.path, error),
        }
    }

    /// Finds out why SQLite could not write, if no sync has failed and the cause can be removed.
    ///
    /// SQLite does not report the cause. So this lets a file beside the database grow to its
    /// length.
    fn find_cause(&self, error: &rusqlite::Error) -> Option<io::Error> {
        let code = error.sqlite_error().map(|error| error.extended_code);
        if matches!(code, Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)) {
            return None;
        }
        let lengths =
            [self.path.clone(), log_path(&self.path)].map(|path| fs::metadata(path).map(|it| it.len()));
        let end = lengths.into_iter().flatten().max().unwrap_or(0);
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let grow = |file: fs::File| file.write_all_at(&[0; 8192], end);
        let cause = tempfile::tempfile_in(dir).and_then(grow).err()?;
        let reported = disk_error("write beside", &self.path, &cause);
        matches!(reported, RequestError::NoSpace { .. } | RequestError::ReadOnly { .. }).then_some(cause)
    }

    /// Ends all writing.
    fn failed(&self, operation: &str, error: &rusqlite::Error) -> RequestError {
        let code = error.sqlite_error().map_or(0, |error| error.extended_code);
        let path = self.path.display();
        self.poison.set(&format!("could not {operation} in {path}: {error} (SQLite's code {code})"))
    }

    /// Checkpoints the log if it has more than [`CHECKPOINT`] bytes, so that the next commit
    /// restarts it. Overwriting a file takes less than growing it.
    pub(super) fn checkpoint_if_large(&self) {
        let mut writer = self.writer.lock();
        if needs_checkpoint(writer.written) {
            // A read of an older snapshot holds it back. Reads are short, so this tries again.
            let _ = (0..3).any(|_| self.checkpoint(&mut writer, "PRAGMA wal_checkpoint(PASSIVE)"));
        }
    }

    /// Checkpoints the whole log, and truncates it.
    pub(super) fn truncate_wal(&self) {
        let _ = self.checkpoint(&mut self.writer.lock(), "PRAGMA wal_checkpoint(TRUNCATE)");
    }

    /// Returns whether everything was moved into the database, or nothing can be.
    fn checkpoint(&self, writer: &mut Writer, pragma: &str) -> bool {
        if self.poison.check().is_err() {
            return true;
        }
        if std::mem::take(&mut writer.written) > 0 {
            self.syncs.add(2);
        }
        self.end_snapshots();
        let frames = |row: &Row<'_>| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
        match writer.connection.query_row(pragma, [], frames) {
            Ok((all, moved)) => {
                self.wal_restart.store(all == moved, Ordering::Relaxed);
                // Snapshots that began in the meantime read the log, so they would prevent its
                // restart.
                self.version.fetch_add(1, Ordering::Release);
                self.end_snapshots();
                all == moved
            }
            Err(error) => {
                // Nothing is lost: the log stays as it is.
                let error = self.error("move the log into the database", &error);
                tracing::warn!(%error, path = %self.path.display(), "the database's log stays as it is");
                true
            }
        }
    }

    /// Ends the snapshots of all readers that are not reading.
    fn end_snapshots(&self) {
        self.readers.lock().free.iter_mut().for_each(Reader::end_snapshot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wal_restarts_despite_a_read_during_a_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = Database::open(&path).unwrap();
        database.truncate_wal();
        let log = || fs::metadata(log_path(&path)).unwrap().len();
        let mut lengths = Vec::new();
        for n in 0..5 {
            let write = |writer: &mut Writer| {
                let transaction = database.begin(&mut writer.connection)?;
                transaction.execute("INSERT INTO fences VALUES (?1)", [[n; 100_000]]).unwrap();
                database.commit(transaction)?;
                writer.written = CHECKPOINT + 1;
                Ok(())
            };
            database.with_writer(write).unwrap();
            lengths.push(log());
            let checkpointed = database.read("count", |connection| {
                let count = || connection.query_row("SELECT count(*) FROM fences", [], |row| row.get(0));
                assert_eq!(count(), Ok(n + 1));
                std::thread::scope(|scope| scope.spawn(|| database.checkpoint_if_large()).join().unwrap());
                count()
            });
            assert_eq!(checkpointed, Ok(n + 1));
        }
        // SQLite's log has one page more each time that the database grows by one.
        assert!(lengths.iter().all(|length| *length < 2 * lengths[0]), "{lengths:?}");
    }
}
