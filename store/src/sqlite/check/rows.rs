//! Checks of the database alone: SQLite's own check, rows that contradict each other, and totals.

use blobferry_protocol::{BlobId, Oid};
use rusqlite::Connection;

use crate::sqlite::schema::{oid, tid};
use crate::sqlite::totals;
use crate::sqlite::totals::Sums;

/// Returns the findings of SQLite's own check.
pub(super) fn integrity(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("PRAGMA integrity_check")?;
    let lines: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").collect())
}

/// Returns whether a line of SQLite's check is about an index, which can be rebuilt from its table.
pub(super) fn is_about_index(line: &str) -> bool {
    line.starts_with("wrong # of entries in index ")
        || line.starts_with("row ") && line.contains(" missing from index ")
}

/// Queries for impossible rows, each with a description. They select an object and a transaction.
/// No index is used, so that a damaged one hides no row.
const CONTRADICTIONS: [(&str, &str); 4] = [
    (
        "SELECT oid, tid FROM revisions NOT INDEXED WHERE tid NOT IN (SELECT tid FROM transactions)",
        "the revision is of a transaction that is not there",
    ),
    (
        "SELECT oid, tid FROM revisions NOT INDEXED WHERE coalesce(size, 0) <> length(data)",
        "the record is not as long as the row says",
    ),
    (
        "SELECT oid, tid FROM revisions NOT INDEXED
         WHERE (blob_size IS NULL) <> (blob_digest IS NULL) OR blob_size IS NULL AND in_file
            OR blob_size IS NOT NULL AND size IS NULL OR length(blob_digest) <> 32
            OR small_blob IS NOT NULL AND (blob_size IS NULL OR in_file)",
        "the row does not say clearly whether there is a blob",
    ),
    (
        "SELECT NULL, t.tid FROM transactions t JOIN fences f ON f.txn = t.txn",
        "the transaction is committed, and was said never to be",
    ),
];

/// An impossible row, with a description.
pub(super) struct Contradiction {
    pub(super) blob: Option<BlobId>,
    pub(super) detail: String,
}

/// Returns the rows that contradict others, or themselves.
pub(super) fn contradictions(connection: &Connection) -> rusqlite::Result<Vec<Contradiction>> {
    let mut found = Vec::new();
    for (sql, what) in CONTRADICTIONS {
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (object, transaction) = (row.get::<_, Option<i64>>(0)?.map(oid), tid(row.get(1)?));
            let blob = object.map(|oid| BlobId { oid, tid: transaction });
            found.push(Contradiction { blob, detail: format!("{what} (transaction {transaction})") });
        }
    }
    Ok(found)
}

/// Describes the saved totals that are wrong.
pub(super) fn wrong_totals(connection: &Connection, sums: &Sums) -> rusqlite::Result<Vec<String>> {
    let saved = totals::read(connection)?;
    let (kept, real) = (saved.totals, sums.totals);
    let numbers = [
        ("objects", kept.objects, real.objects),
        ("revisions", kept.revisions, real.revisions),
        ("blobs", kept.blobs, real.blobs),
        ("blob_bytes", kept.blob_bytes, real.blob_bytes),
    ];
    let wrong = numbers.into_iter().filter(|(_, saved, actual)| saved != actual);
    let mut wrong: Vec<String> =
        wrong.map(|(name, saved, actual)| format!("{name} is kept as {saved}, and is {actual}")).collect();
    if sums.last_oid > saved.last_oid {
        let (kept, used) = (Oid(saved.last_oid), Oid(sums.last_oid));
        wrong.push(format!("last_oid is kept as {kept}, and {used} is in use"));
    }
    Ok(wrong)
}
