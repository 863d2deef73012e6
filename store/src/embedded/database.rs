//! The connections to the database: one that writes, a few that read.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blobferry_cache::sync::{Condvar, Mutex, PoisonError};
use blobferry_protocol::RequestError;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, ffi};

use super::poison::Poison;
use super::schema;
use crate::errors::{OpenError, database_error, disk_error};
use crate::lock;

/// How many reads go on at once; more wait for each other.
const READERS: usize = 4;
/// So many bytes may be in the log before they are moved to the database.
const CHECKPOINT: u64 = 4 << 20;

pub(crate) struct Database {
    pub(super) path: PathBuf,
    pub(super) poison: Poison,
    writer: Mutex<Writer>,
    readers: Mutex<Vec<Connection>>,
    returned: Condvar,
}

/// The one connection that writes.
pub(super) struct Writer {
    pub(super) connection: Connection,
    /// No oid up to this one is given again, also after a crash.
    pub(super) last_oid: u64,
    /// About so many bytes were written since the last checkpoint.
    pub(super) written: u64,
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Database, OpenError> {
        let connection = schema::open_writer(path)?;
        let last_oid = connection
            .query_row("SELECT last_oid FROM state", [], |row| row.get(0).map(schema::id))
            .map_err(schema::opening("read", path))?;
        let readers = (0..READERS).map(|_| schema::open_reader(path)).collect::<Result<_, _>>()?;
        Ok(Database {
            path: path.to_owned(),
            poison: Poison::default(),
            writer: Mutex::new(Writer { connection, last_oid, written: 0 }),
            readers: Mutex::new(readers),
            returned: Condvar::new(),
        })
    }

    /// Reads, without waiting for the writer.
    pub(super) fn read<T>(
        &self,
        operation: &str,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, RequestError> {
        let mut readers = lock(&self.readers);
        let reader = loop {
            match readers.pop() {
                Some(reader) => break reader,
                None => readers = self.returned.wait(readers).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(readers);
        let result = read(&reader);
        lock(&self.readers).push(reader);
        self.returned.notify_one();
        result.map_err(|error| database_error(operation, &self.path, &error))
    }

    /// No oid up to this one is given again.
    pub(super) fn last_oid(&self) -> u64 {
        lock(&self.writer).last_oid
    }

    /// Lends the writer out, unless nothing may be written any more.
    pub(super) fn with_writer<T>(
        &self,
        write: impl FnOnce(&mut Writer) -> Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        let mut writer = lock(&self.writer);
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
        transaction.commit().map_err(|error| match error.sqlite_error().map(|error| error.extended_code) {
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
    /// Moves what is in the log to the database, if it is much.
    pub(super) fn tidy(&self) {
        let mut writer = lock(&self.writer);
        if writer.written > CHECKPOINT && self.poison.check().is_ok() {
            writer.written = 0;
            self.checkpoint(&writer.connection, "PRAGMA wal_checkpoint(PASSIVE)");
        }
    }

    /// Moves all that is in the log to the database, and empties it.
    pub(super) fn empty_log(&self) {
        let writer = lock(&self.writer);
        if self.poison.check().is_ok() {
            self.checkpoint(&writer.connection, "PRAGMA wal_checkpoint(TRUNCATE)");
        }
    }

    fn checkpoint(&self, connection: &Connection, pragma: &str) {
        if let Err(error) = connection.query_row(pragma, [], |_| Ok(())) {
            // Nothing is lost by it: the log just stays as it is.
            let error = self.error("move the log into the database", &error);
            tracing::warn!(%error, path = %self.path.display(), "the database's log stays as it is");
        }
    }
}

/// Where SQLite keeps the log of a database.
pub(super) fn log_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    path.into()
}
