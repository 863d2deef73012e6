//! What can be said of the database alone: whether SQLite finds it sound, whether its rows agree with each other, and
//! whether its totals are those of its rows.

use blobferry_protocol::{BlobId, Oid};
use rusqlite::Connection;

use crate::sqlite::schema::{oid, tid};
use crate::sqlite::totals;
use crate::sqlite::totals::Sums;

/// What SQLite's own check says; nothing where all is well.
pub(super) fn integrity(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("PRAGMA integrity_check")?;
    let lines: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").collect())
}

/// Whether a line of SQLite's check is about an index that can be made anew from its table.
pub(super) fn is_about_index(line: &str) -> bool {
    line.starts_with("wrong # of entries in index ")
        || line.starts_with("row ") && line.contains(" missing from index ")
}

/// What rows can not be like, each with what to say of it. They select an object and a transaction. Rows are found
/// without any index, so what is wrong with those hides nothing.
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

/// A row that can not be, and why.
pub(super) struct Contradiction {
    pub(super) blob: Option<BlobId>,
    pub(super) detail: String,
}

/// Rows that contradict others, or themselves.
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

/// What the database says that it adds up to, where that is something else.
pub(super) fn wrong_totals(connection: &Connection, sums: &Sums) -> rusqlite::Result<Vec<String>> {
    let said = totals::read(connection)?;
    let (kept, real) = (said.totals, sums.totals);
    let numbers = [
        ("objects", kept.objects, real.objects),
        ("revisions", kept.revisions, real.revisions),
        ("blobs", kept.blobs, real.blobs),
        ("blob_bytes", kept.blob_bytes, real.blob_bytes),
    ];
    let wrong = numbers.into_iter().filter(|(_, said, is)| said != is);
    let mut wrong: Vec<String> =
        wrong.map(|(name, said, is)| format!("{name} is kept as {said}, and is {is}")).collect();
    if sums.last_oid > said.last_oid {
        let (kept, used) = (Oid(said.last_oid), Oid(sums.last_oid));
        wrong.push(format!("last_oid is kept as {kept}, and {used} is in use"));
    }
    Ok(wrong)
}
