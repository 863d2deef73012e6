//! Pack: removes revisions that were replaced before a given transaction.
//!
//! It goes through all objects in steps of [`STEP`] revisions, each with a commit of its own, so
//! that other transactions commit in between. **Files are removed after the commit that removes
//! their rows.** A crash in between leaves files without rows, which the next open removes. No
//! current revision is removed.

use std::io::ErrorKind;

use blobferry_platform::os;
use blobferry_protocol::{BlobId, Oid, Packed, RequestError, Tid};
use rusqlite::{Connection, params};

use crate::sqlite::backend::SqliteBackend;
use crate::sqlite::schema::{key, oid, tid};
use crate::sqlite::totals;

/// The revisions in one step.
const STEP: u32 = 500;

/// Revisions behind an object (1) and its tid (2) that are obsolete at a tid (3); at most (4).
///
/// Obsolete are those with a later revision before (3), and deletions with no later revision at
/// all. The order is by object and tid, so that a revision is removed before the one that replaced
/// it.
const OBSOLETE: &str = "
    SELECT r.id, r.oid, r.tid, r.blob_size, r.in_file FROM revisions r
    WHERE (r.oid, r.tid) > (?1, ?2) AND r.tid < ?3 AND (
        EXISTS (SELECT 1 FROM revisions n WHERE n.oid = r.oid AND n.tid > r.tid AND n.tid < ?3)
        OR r.size IS NULL AND NOT EXISTS (SELECT 1 FROM revisions n WHERE n.oid = r.oid AND n.tid > r.tid)
    ) ORDER BY r.oid, r.tid LIMIT ?4";

struct Obsolete {
    row: i64,
    blob: BlobId,
    size: Option<u64>,
    in_file: bool,
}

fn find(connection: &Connection, after: (Oid, Tid), before: Tid) -> rusqlite::Result<Vec<Obsolete>> {
    let mut statement = connection.prepare_cached(OBSOLETE)?;
    let parameters = params![key(after.0.0), key(after.1.0), key(before.0), STEP];
    let obsolete = statement.query_map(parameters, |row| {
        Ok(Obsolete {
            row: row.get(0)?,
            blob: BlobId { oid: oid(row.get(1)?), tid: tid(row.get(2)?) },
            size: row.get::<_, Option<i64>>(3)?.map(i64::cast_unsigned),
            in_file: row.get(4)?,
        })
    })?;
    obsolete.collect()
}

fn delete(connection: &Connection, obsolete: &[Obsolete]) -> rusqlite::Result<()> {
    let mut revision = connection.prepare_cached("DELETE FROM revisions WHERE id = ?1")?;
    for Obsolete { row, .. } in obsolete {
        revision.execute([row])?;
    }
    Ok(())
}

impl SqliteBackend {
    pub(super) fn pack_before(&self, before: Tid) -> Result<Packed, RequestError> {
        let mut all = Packed::default();
        let mut after = (Oid(0), Tid::ZERO);
        loop {
            let obsolete =
                self.database.read("find old revisions", |connection| find(connection, after, before))?;
            let Some(last) = obsolete.last() else { return Ok(all) };
            after = (last.blob.oid, last.blob.tid);
            let packed = sum(&obsolete);
            self.remove_rows(&obsolete, packed)?;
            self.remove_files(&obsolete);
            all.revisions += packed.revisions;
            all.blobs += packed.blobs;
            all.bytes += packed.bytes;
        }
    }

    fn remove_rows(&self, obsolete: &[Obsolete], packed: Packed) -> Result<(), RequestError> {
        self.database.with_writer(|writer| {
            let transaction = self.database.begin(&mut writer.connection)?;
            let mut sums = *self.totals.lock();
            sums.subtract(packed);
            delete(&transaction, obsolete)
                .and_then(|()| totals::write(&transaction, writer.last_oid, sums))
                .map_err(|error| self.database.error("remove old revisions", &error))?;
            self.database.commit(transaction)?;
            *self.totals.lock() = sums;
            writer.written += packed.revisions * 4096;
            Ok(())
        })?;
        self.database.checkpoint_if_large();
        Ok(())
    }

    fn remove_files(&self, obsolete: &[Obsolete]) {
        for blob in obsolete.iter().filter(|obsolete| obsolete.in_file).map(|obsolete| obsolete.blob) {
            let path = self.layout.blob_path(blob);
            match os::files::remove(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    tracing::warn!(%error, path = %path.display(), "could not remove a packed blob; the next start will");
                }
                _ => {}
            }
        }
    }
}

fn sum(obsolete: &[Obsolete]) -> Packed {
    let mut packed = Packed { revisions: obsolete.len() as u64, ..Packed::default() };
    for size in obsolete.iter().filter_map(|obsolete| obsolete.size) {
        packed.blobs += 1;
        packed.bytes += size;
    }
    packed
}
