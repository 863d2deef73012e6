//! Recovery at open: locks the directory, and removes what a crash has left.
//!
//! The database decides what has happened. A blob file without a row belongs to a transaction that
//! did not happen, or to a revision that was packed away: it is removed. A row whose file is
//! missing or cut is damage that no crash explains: it is logged, and everything else is served.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blobferry_platform::blobdir::Layout;
use blobferry_platform::os::files::sync_names;
use blobferry_protocol::{BlobId, RequestError};
use rusqlite::{Connection, params};

use crate::errors::OpenError;
use crate::sqlite::database::Database;
use crate::sqlite::errors::open_io_error;
use crate::sqlite::schema::{key, log_path, oid, tid};

/// The name of lock files in `tmp` and in its directories, which belong to clients that share it.
const CLIENT_LOCK: &str = ".lock";
/// The file that a server or a check locks while it has the directory.
const STORE_LOCK: &str = "lock";

/// The lock of a store's directory. Dropping it releases the lock.
#[derive(Debug)]
pub(super) struct DirectoryLock(File);

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing the file is not enough: between fork and exec a child process has the same open
        // file, and would keep the lock.
        _ = self.0.unlock();
    }
}

/// Creates the directory if there is none, and locks it.
pub(super) fn lock(dir: &Path) -> Result<DirectoryLock, OpenError> {
    if !dir.exists() {
        let created = DirBuilder::new().mode(0o700).recursive(true).create(dir);
        created.map_err(open_io_error("create the directory", dir))?;
        if let Some(parent) = dir.canonicalize().map_err(open_io_error("find", dir))?.parent() {
            sync_names(parent).map_err(open_io_error("sync", parent))?;
        }
    }
    let path = dir.join(STORE_LOCK);
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    lock_file(file.map_err(open_io_error("open", &path))?, dir)
}

/// Locks a store's directory without changing it. Returns `None` if it has no lock file: it is a
/// copy.
pub(super) fn lock_existing(dir: &Path) -> Result<Option<DirectoryLock>, OpenError> {
    let path = dir.join(STORE_LOCK);
    match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        file => lock_file(file.map_err(open_io_error("open", &path))?, dir).map(Some),
    }
}

fn lock_file(file: File, dir: &Path) -> Result<DirectoryLock, OpenError> {
    if try_lock(&file).map_err(open_io_error("lock", &dir.join(STORE_LOCK)))? {
        Ok(DirectoryLock(file))
    } else {
        Err(OpenError::InUse { dir: dir.to_owned() })
    }
}

/// Tries to lock a file. Returns `false` if another open file has it locked.
fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Rewrites the database's log and syncs it, before the database is read.
///
/// If a sync of the log has failed, its bytes may exist only in memory, in pages that the system
/// treats as clean. No later sync would write them. Rewritten bytes reach the disk, or the sync
/// fails.
pub(super) fn rewrite_log(database: &Path) -> Result<(), OpenError> {
    let path = log_path(database);
    let file = match OpenOptions::new().read(true).write(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file.map_err(open_io_error("open", &path))?,
    };
    let (mut buffer, mut at) = (vec![0; 256 << 10], 0);
    loop {
        let n = file.read_at(&mut buffer, at).map_err(open_io_error("read", &path))?;
        let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
        file.write_all_at(bytes, at).map_err(open_io_error("write again", &path))?;
        at += n as u64;
    }
    if at > 0 {
        file.sync_data().map_err(open_io_error("sync", &path))?;
    }
    Ok(())
}

/// Removes all staged files. Returns how many files and directories were removed.
pub(super) fn empty_tmp(tmp: &Path) -> Result<u64, OpenError> {
    let leftovers = leftovers(tmp)?;
    for path in &leftovers {
        let is_dir = path.is_dir() && !path.is_symlink();
        let done = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        match done {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(open_io_error("remove", path)(error));
            }
            _ => {}
        }
    }
    Ok(leftovers.len() as u64)
}

/// Lists staged files and directories that are not used any more. Lock files must stay, and so must
/// the directories that running clients have locked.
pub(super) fn leftovers(tmp: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let mut leftovers = Vec::new();
    for entry in fs::read_dir(tmp).map_err(open_io_error("list", tmp))? {
        let entry = entry.map_err(open_io_error("list", tmp))?;
        let path = entry.path();
        let is_dir = entry.file_type().map_err(open_io_error("inspect", &path))?.is_dir();
        if entry.file_name() != CLIENT_LOCK && !(is_dir && is_in_use(&path)) {
            leftovers.push(path);
        }
    }
    leftovers.sort();
    Ok(leftovers)
}

/// Returns whether a directory has a lock file that a process has locked.
fn is_in_use(dir: &Path) -> bool {
    File::open(dir.join(CLIENT_LOCK)).is_ok_and(|lock| try_lock(&lock).is_ok_and(|free| !free))
}

/// Removes blob files without a row. Returns how many.
pub(super) fn remove_orphans(layout: &Layout, database: &Database) -> Result<u64, OpenError> {
    let mut removed = 0;
    for blob in layout.blobs() {
        let (blob, path) = blob.map_err(open_io_error("list", layout.root()))?;
        let has_file = database.read("find a blob", |connection| has_file(connection, blob));
        if !has_file.map_err(failed(database))? {
            fs::remove_file(&path).map_err(open_io_error("remove", &path))?;
            tracing::info!(%blob, "removed a blob file that no transaction has committed");
            removed += 1;
        }
    }
    Ok(removed)
}

/// Returns whether a row has a blob in a file. Two indexes are searched: if one is damaged, the
/// other keeps the file.
pub(super) fn has_file(connection: &Connection, blob: BlobId) -> rusqlite::Result<bool> {
    const ROW: [&str; 2] = [
        "SELECT 1 FROM revisions INDEXED BY revisions_by_object WHERE oid = ?1 AND tid = ?2 AND in_file",
        "SELECT 1 FROM revisions INDEXED BY blob_files WHERE oid = ?1 AND tid = ?2 AND in_file",
    ];
    for row in ROW {
        if connection.prepare_cached(row)?.exists(params![key(blob.oid.0), key(blob.tid.0)])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Logs blobs whose file is missing or has the wrong length. Returns how many.
pub(super) fn count_damaged(layout: &Layout, database: &Database) -> Result<u64, OpenError> {
    let count = |connection: &Connection| {
        let mut damaged = 0;
        let mut statement = connection.prepare("SELECT oid, tid, blob_size FROM revisions WHERE in_file")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let blob = BlobId { oid: oid(row.get(0)?), tid: tid(row.get(1)?) };
            let size = row.get::<_, i64>(2)?.cast_unsigned();
            let path = layout.blob_path(blob);
            let found = match fs::metadata(&path) {
                Ok(metadata) if metadata.is_file() && metadata.len() == size => continue,
                Ok(metadata) => format!("it has {} bytes", metadata.len()),
                Err(error) => error.to_string(),
            };
            damaged += 1;
            tracing::error!(%blob, path = %path.display(), size, found, "a blob is damaged; restore its file from a backup");
        }
        Ok(damaged)
    };
    database.read("list the blobs", count).map_err(failed(database))
}

/// Makes an [`OpenError`] of a failed read.
pub(super) fn failed(database: &Database) -> impl FnOnce(RequestError) -> OpenError {
    let path = database.path.clone();
    move |error| OpenError::Io { operation: "read", path, source: io::Error::other(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child process between fork and exec has the same open file as its parent.
    #[test]
    fn directory_is_free_although_a_child_has_its_lock_file() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let inherited = held.0.try_clone().unwrap();
        assert!(matches!(lock(dir.path()), Err(OpenError::InUse { .. })));
        drop(held);
        assert!(lock(dir.path()).is_ok());
        drop(inherited);
    }

    #[test]
    fn a_rewritten_log_has_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("store.sqlite");
        rewrite_log(&database).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no log is created");
        let bytes: Vec<u8> = (0..700_001).map(|n| (n % 251) as u8).collect();
        fs::write(log_path(&database), &bytes).unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        OpenOptions::new().write(true).open(log_path(&database)).unwrap().set_modified(long_ago).unwrap();
        rewrite_log(&database).unwrap();
        assert!(fs::read(log_path(&database)).unwrap() == bytes);
        assert!(fs::metadata(log_path(&database)).unwrap().modified().unwrap() > long_ago, "it was written");
    }
}
