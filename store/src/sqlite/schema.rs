//! The database: its tables, its settings, and how it stores ids.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blobferry_protocol::planted::{Bug, planted};
use blobferry_protocol::{Oid, Tid};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::errors::OpenError;
use crate::sqlite::errors::open_database_error;

/// The database's name in the store's directory.
pub(super) const DATABASE: &str = "store.sqlite";

/// Identifies a blobferry database: "bfry".
const APPLICATION_ID: i64 = 0x6266_7279;
/// The format that this program reads and writes. Older databases are upgraded to it.
const FORMAT: i64 = 2;

/// The tables.
///
/// Finding an object's current revision is one seek in `revisions_by_object`. Revisions get their
/// ids in the order of their transactions, so that order needs no index. A record and a small blob
/// come last in their row, so that histories, votes and lists read neither. Both are in the same
/// row, so that a commit writes few pages.
const TABLES: &str = "
    CREATE TABLE state(
        one INTEGER PRIMARY KEY CHECK (one = 1),
        last_oid INTEGER NOT NULL,      -- no oid up to this one is allocated again
        objects INTEGER NOT NULL,
        revisions INTEGER NOT NULL,
        blobs INTEGER NOT NULL,
        blob_bytes INTEGER NOT NULL,
        counted INTEGER NOT NULL        -- the sums are of the revisions up to this id
    ) STRICT;
    CREATE TABLE transactions(
        tid INTEGER PRIMARY KEY,
        txn BLOB NOT NULL UNIQUE,
        user BLOB NOT NULL,
        description BLOB NOT NULL
    ) STRICT;
    CREATE TABLE fences(
        txn BLOB PRIMARY KEY            -- never to be committed under
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE revisions(
        id INTEGER PRIMARY KEY,         -- in the order of (tid, oid)
        oid INTEGER NOT NULL,
        tid INTEGER NOT NULL,
        size INTEGER,                   -- of the record; NULL: the object was deleted
        blob_size INTEGER,              -- NULL: no blob
        blob_digest BLOB,
        in_file INTEGER NOT NULL,       -- whether the blob is in a file; if not, it is in small_blob
        data BLOB NOT NULL,
        small_blob BLOB
    ) STRICT;
    CREATE UNIQUE INDEX revisions_by_object ON revisions(oid, tid);
    CREATE INDEX blob_files ON revisions(oid, tid, blob_size) WHERE in_file;
";

/// Upgrades a database from format 1, which had small blobs in a table of their own, and saved the
/// totals with each commit.
const FROM_1_TO_2: &str = "
    ALTER TABLE revisions ADD COLUMN small_blob BLOB;
    UPDATE revisions SET small_blob = (SELECT bytes FROM small_blobs s WHERE s.id = revisions.id)
        WHERE blob_size IS NOT NULL AND NOT in_file;
    DROP TABLE small_blobs;
    DROP INDEX revisions_by_transaction;
    ALTER TABLE state ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;
    UPDATE state SET counted = (SELECT coalesce(max(id), 0) FROM revisions);
    PRAGMA user_version = 2;
";

/// Converts an unsigned 64-bit id to SQLite's signed integer, and keeps the order.
pub(crate) fn key(id: u64) -> i64 {
    (id ^ (1 << 63)).cast_signed()
}

/// Converts an integer of SQLite to an id: the inverse of [`key`].
pub(crate) fn id(key: i64) -> u64 {
    key.cast_unsigned() ^ (1 << 63)
}

/// Converts an integer of SQLite to an oid.
pub(crate) fn oid(key: i64) -> Oid {
    Oid(id(key))
}

/// Converts an integer of SQLite to a tid.
pub(crate) fn tid(key: i64) -> Tid {
    Tid(id(key))
}

/// Returns whether there is a database file that is not empty.
pub(crate) fn exists(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.len() > 0)
}

/// Returns the path of a database's write-ahead log.
pub(super) fn log_path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    path.into()
}

/// Opens the one connection that writes. Creates the database if there is none, and upgrades one of
/// an older format.
pub(crate) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    let mut connection =
        open(path, OpenFlags::SQLITE_OPEN_CREATE).map_err(open_database_error("open the database", path))?;
    let format = check_format(&connection, path)?;
    configure(&connection).map_err(open_database_error("set up the database", path))?;
    match format {
        None => create_tables(&mut connection).map_err(open_database_error("create the tables", path))?,
        Some(FORMAT) => {}
        Some(_) => upgrade(&mut connection).map_err(open_database_error("upgrade the format", path))?,
    }
    Ok(connection)
}

/// Opens a connection that only reads.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    open(path, OpenFlags::empty())
        .and_then(|connection| {
            connection.pragma_update(None, "query_only", true)?;
            connection.pragma_update(None, "cache_size", -1000)?;
            Ok(connection)
        })
        .map_err(open_database_error("open the database", path))
}

/// Opens a connection that does not change the database, which no other process has open. If the
/// log is empty, not even the log's index is created.
pub(crate) fn open_for_check(path: &Path) -> Result<Connection, OpenError> {
    let has_log = fs::metadata(log_path(path)).is_ok_and(|log| log.len() > 0);
    let name = uri(path) + if has_log { "" } else { "?immutable=1" };
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(name, flags)
        .and_then(|connection| {
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            Ok(connection)
        })
        .map_err(open_database_error("open the database", path))?;
    match check_format(&connection, path)? {
        Some(found) if found < FORMAT => {
            Err(OpenError::Older { path: path.to_owned(), found, needed: FORMAT })
        }
        _ => Ok(connection),
    }
}

/// Converts a path to a URI, to which options can be appended.
fn uri(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri
}

fn open(path: &Path, create: OpenFlags) -> rusqlite::Result<Connection> {
    // Readers must be able to write too: into the index of the log, which they share with the
    // writer.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?; // another tool may have the database open
    // A checkpoint at close would not notice a failed sync, and would run even after one.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Query plans must not depend on parameters. Otherwise SQLite prepares a statement again when
    // they change, which takes longer than running it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    Ok(connection)
}

/// Returns the format of a database; `None` if it is empty. Refuses foreign databases and later
/// formats. Changes nothing.
fn check_format(connection: &Connection, path: &Path) -> Result<Option<i64>, OpenError> {
    let query = |sql| {
        connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(open_database_error("read", path))
    };
    if query("SELECT count(*) FROM sqlite_schema")? == 0 {
        return Ok(None);
    }
    if query("PRAGMA application_id")? != APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    match query("PRAGMA user_version")? {
        found @ 1..=FORMAT => Ok(Some(found)),
        found => Err(OpenError::Newer { path: path.to_owned(), found, known: FORMAT }),
    }
}

/// Applies the writer's settings.
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| {
        match row.get::<_, String>(0)?.as_str() {
            "wal" => Ok(()),
            _ => Err(rusqlite::Error::InvalidQuery),
        }
    })?;
    let synchronous = if planted(Bug::AcknowledgeBeforeCommit) { "OFF" } else { "FULL" };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    connection.pragma_update(None, "cache_size", -2000)
}

fn create_tables(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    transaction.execute("INSERT INTO state VALUES (1, ?1, 0, 0, 0, 0, 0)", [key(0)])?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()
}

/// All of it, or nothing.
fn upgrade(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(FROM_1_TO_2)?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    #[test]
    fn opening_for_a_check_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a %41?b#ä.db");
        let writer = open_writer(&path).unwrap();
        writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        drop(writer);
        fs::remove_file(dir.path().join("a %41?b#ä.db-shm")).unwrap();
        let names =
            || fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        let before = (names(), fs::read(&path).unwrap());
        let connection = open_for_check(&path).unwrap();
        assert_eq!(connection.query_row("SELECT count(*) FROM state", [], |row| row.get::<_, i64>(0)), Ok(1));
        assert!(connection.execute("DELETE FROM state", []).is_err());
        drop(connection);
        assert_eq!((names(), fs::read(&path).unwrap()), before);
    }

    #[test]
    fn keys_keep_the_order_of_ids() {
        let ids = [0, 1, (1 << 63) - 1, 1 << 63, u64::MAX];
        assert!(ids.map(key).is_sorted());
        assert_eq!(ids.map(key).map(id), ids);
    }

    #[test]
    fn foreign_and_newer_databases_are_left_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text");
        std::fs::write(&text, "not a database, but long enough to be inspected ".repeat(100)).unwrap();
        assert!(matches!(open_writer(&text), Err(OpenError::Foreign { .. })));

        let other = dir.path().join("other");
        Connection::open(&other).unwrap().execute_batch("CREATE TABLE diary(day TEXT)").unwrap();
        let before = std::fs::read(&other).unwrap();
        assert!(matches!(open_writer(&other), Err(OpenError::Foreign { .. })));
        assert_eq!(std::fs::read(&other).unwrap(), before);

        let newer = dir.path().join("newer");
        open_writer(&newer).unwrap().pragma_update(None, "user_version", FORMAT + 1).unwrap();
        assert!(matches!(open_writer(&newer), Err(OpenError::Newer { found: 3, known: 2, .. })));
    }

    #[test]
    fn statements_are_prepared_once_for_all_parameters() {
        let dir = tempfile::tempdir().unwrap();
        let connection = open_writer(&dir.path().join("db")).unwrap();
        for sql in [super::super::read::NEWEST, super::super::read::BLOB, super::super::commit::CURRENT] {
            let mut statement = connection.prepare(sql).unwrap();
            for n in 0..3_i64 {
                let parameters = vec![n * 5; statement.parameter_count()];
                assert!(!statement.exists(rusqlite::params_from_iter(parameters)).unwrap());
            }
            assert_eq!(statement.get_status(StatementStatus::RePrepare), 0, "{sql}");
        }
    }

    #[test]
    fn listing_revisions_neither_scans_nor_sorts() {
        let dir = tempfile::tempdir().unwrap();
        let connection = open_writer(&dir.path().join("db")).unwrap();
        let sql = format!("EXPLAIN QUERY PLAN {}", super::super::read::REVISIONS);
        let mut plan = connection.prepare(&sql).unwrap();
        let rows = plan.query_map([1_i64; 4], |row| row.get::<_, String>(3)).unwrap();
        let rows: Vec<String> = rows.map(Result::unwrap).collect();
        assert_eq!(rows[0], "SEARCH revisions USING INTEGER PRIMARY KEY (rowid>?)");
        assert!(rows.iter().all(|row| !row.contains("SCAN") && !row.contains("TEMP B-TREE")), "{rows:?}");
    }

    #[test]
    fn the_current_revision_is_found_by_one_index_search() {
        let dir = tempfile::tempdir().unwrap();
        let connection = open_writer(&dir.path().join("db")).unwrap();
        for sql in [super::super::read::NEWEST, super::super::commit::CURRENT] {
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let parameters = vec![1_i64; plan.parameter_count()];
            let rows = plan
                .query_map(rusqlite::params_from_iter(parameters), |row| row.get::<_, String>(3))
                .unwrap();
            for row in rows.map(Result::unwrap) {
                let search = row.starts_with("SEARCH") && row.contains("revisions_by_object (oid=? AND tid");
                let first = row.starts_with("SEARCH") && row.contains("revisions_by_object (oid=?)");
                assert!(search || first || row.starts_with("CORRELATED"), "{sql}: {row}");
            }
        }
    }
}
