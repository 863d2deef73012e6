//! The connections to the database: one that writes, a few that read.

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

/// How many reads go on at once; more wait for each other.
const READERS: usize = 4;
/// So many bytes may be in the log before they are moved to the database: few, as the next open writes them all again,
/// and many, as to move them takes three syncs.
const CHECKPOINT: u64 = 16 << 20;

pub(crate) struct Database {
    pub(super) path: PathBuf,
    pub(super) poison: Poison,
    pub(super) syncs: SyncCounter,
    /// How often the database has changed, or its log was moved into it: a view from before is an old one.
    changes: AtomicU64,
    /// The next commit begins the log wal_restart.
    wal_restart: AtomicBool,
    writer: Mutex<Writer>,
    readers: Mutex<Readers>,
    returned: Condvar,
}

/// The connections that read.
struct Readers {
    free: Vec<Reader>,
    /// So many wait for one.
    waiting: usize,
}

/// A connection that reads. Its view of the database stays open from one read to the next as long as that is not changed:
/// to open one costs as much as a small read.
struct Reader {
    connection: Connection,
    /// So many changes there had been when its view was opened.
    sees: Option<u64>,
}

impl Reader {
    fn new(connection: Connection) -> Reader {
        Reader { connection, sees: None }
    }

    /// Sees all of so many changes.
    fn begin_snapshot(&mut self, changes: u64) -> rusqlite::Result<()> {
        if self.sees != Some(changes) {
            self.end_snapshot();
            self.connection.prepare_cached("BEGIN")?.execute([])?;
            self.sees = Some(changes);
        }
        Ok(())
    }

    /// Keeps nothing of the log from being moved.
    fn end_snapshot(&mut self) {
        if self.sees.take().is_some() {
            // What was not open is not there to be ended.
            let _ = self.connection.prepare_cached("COMMIT").and_then(|mut end| end.execute([]));
        }
    }
}

/// The one connection that writes.
pub(super) struct Writer {
    pub(super) connection: Connection,
    /// No oid up to this one is given again, also after a crash.
    pub(super) last_oid: u64,
    /// About so many bytes were written since the last checkpoint.
    pub(super) written: u64,
}

/// Whether so many bytes of a log are moved to the database.
pub(super) fn is_much(written: u64) -> bool {
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
            changes: AtomicU64::new(0),
            wal_restart: AtomicBool::new(true),
            writer: Mutex::new(Writer { connection, last_oid, written: 0 }),
            readers: Mutex::new(Readers { free, waiting: 0 }),
            returned: Condvar::new(),
        })
    }

    /// Reads, without waiting for the writer.
    pub(super) fn read<T>(
        &self,
        operation: &str,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, RequestError> {
        let mut reader = self.take_reader();
        let began = reader.begin_snapshot(self.changes.load(Ordering::Acquire));
        let result = began.and_then(|()| read(&reader.connection));
        let mut readers = self.readers.lock();
        if result.is_err() || reader.sees != Some(self.changes.load(Ordering::Acquire)) {
            reader.end_snapshot();
        }
        readers.free.push(reader);
        let awaited = readers.waiting > 0;
        drop(readers);
        if awaited {
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

    /// Lends the writer out, unless nothing may be written any more.
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

    /// Makes a transaction durable. Where SQLite could not write, it has put no end mark into its log, and nothing has
    /// happened. If it fails in any other way, nobody knows whether it is: that is for the next open to find out.
    pub(super) fn commit(&self, transaction: Transaction<'_>) -> Result<(), RequestError> {
        self.syncs.add(1 + u64::from(self.wal_restart.swap(false, Ordering::Relaxed)));
        let committed = transaction.commit();
        self.changes.fetch_add(1, Ordering::Release);
        committed.map_err(|error| match error.sqlite_error().map(|error| error.extended_code) {
            Some(ffi::SQLITE_FULL | ffi::SQLITE_IOERR_WRITE) => self.error("commit", &error),
            _ => self.failed("commit", &error),
        })
    }

    /// What a client sees of a failed statement. A disk that fails ends all writing; one that is full, or was made
    /// read-only, may be mended while the server runs.
    pub(super) fn error(&self, operation: &str, error: &rusqlite::Error) -> RequestError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt) => self.failed(operation, error),
            Some(ErrorCode::SystemIoFailure) => match self.why(error) {
                Some(why) => disk_error(&format!("{operation} in"), &self.path, &why),
                None => self.failed(operation, error),
            },
            _ => database_error(operation, &self.path, error),
        }
    }

    /// Why SQLite could not write, where that is nothing that a sync has lost, and can be mended. It does not tell, but
    /// a file beside it does that is to become as long.
    fn why(&self, error: &rusqlite::Error) -> Option<io::Error> {
        let code = error.sqlite_error().map(|error| error.extended_code);
        if matches!(code, Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)) {
            return None;
        }
        let lengths =
            [self.path.clone(), log_path(&self.path)].map(|path| fs::metadata(path).map(|it| it.len()));
        let end = lengths.into_iter().flatten().max().unwrap_or(0);
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let grow = |file: fs::File| file.write_all_at(&[0; 8192], end);
        let why = tempfile::tempfile_in(dir).and_then(grow).err()?;
        let told = disk_error("write beside", &self.path, &why);
        matches!(told, RequestError::NoSpace { .. } | RequestError::ReadOnly { .. }).then_some(why)
    }

    /// Nothing is written any more.
    fn failed(&self, operation: &str, error: &rusqlite::Error) -> RequestError {
        let code = error.sqlite_error().map_or(0, |error| error.extended_code);
        let path = self.path.display();
        self.poison.set(&format!("could not {operation} in {path}: {error} (SQLite's code {code})"))
    }

    /// Moves what is in the log to the database, if it is much, so that the next commit begins the log wal_restart: to write over
    /// a file takes less than to have it grow.
    pub(super) fn checkpoint_if_large(&self) {
        let mut writer = self.writer.lock();
        if is_much(writer.written) {
            // What somebody still reads who has begun before the last commit is not moved; nobody reads for long.
            let _ = (0..3).any(|_| self.checkpoint(&mut writer, "PRAGMA wal_checkpoint(PASSIVE)"));
        }
    }

    /// Moves all that is in the log to the database, and empties it.
    pub(super) fn truncate_wal(&self) {
        let _ = self.checkpoint(&mut self.writer.lock(), "PRAGMA wal_checkpoint(TRUNCATE)");
    }

    /// Whether all was moved, or nothing can be.
    fn checkpoint(&self, writer: &mut Writer, pragma: &str) -> bool {
        if self.poison.check().is_err() {
            return true;
        }
        if std::mem::take(&mut writer.written) > 0 {
            self.syncs.add(2);
        }
        self.end_snapshot();
        let frames = |row: &Row<'_>| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
        match writer.connection.query_row(pragma, [], frames) {
            Ok((all, moved)) => {
                self.wal_restart.store(all == moved, Ordering::Relaxed);
                // Views that were opened meanwhile are of the log, and would keep it from being begun wal_restart.
                self.changes.fetch_add(1, Ordering::Release);
                self.end_snapshot();
                all == moved
            }
            Err(error) => {
                // Nothing is lost by it: the log just stays as it is.
                let error = self.error("move the log into the database", &error);
                tracing::warn!(%error, path = %self.path.display(), "the database's log stays as it is");
                true
            }
        }
    }

    /// Has nobody see anything who does not read at the moment.
    fn end_snapshot(&self) {
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
            let tidied = database.read("count", |connection| {
                let count = || connection.query_row("SELECT count(*) FROM fences", [], |row| row.get(0));
                assert_eq!(count(), Ok(n + 1));
                std::thread::scope(|scope| scope.spawn(|| database.checkpoint_if_large()).join().unwrap());
                count()
            });
            assert_eq!(tidied, Ok(n + 1));
        }
        // As SQLite writes its log: a page more where the database grows by one.
        assert!(lengths.iter().all(|length| *length < 2 * lengths[0]), "{lengths:?}");
    }
}
