//! Pack: forgetting revisions that were replaced long ago.
//!
//! It goes through all objects in small steps, each a commit of its own, so that transactions get in between. Files
//! are removed after the commit that removes their rows: a crash in between leaves files without rows, which the
//! next open removes. Nothing that a reader sees as current is ever touched.

use std::io::ErrorKind;

use blobferry_platform::os;
use blobferry_protocol::{BlobId, Oid, Packed, RequestError, Tid};
use rusqlite::{Connection, params};

use crate::sqlite::backend::SqliteBackend;
use crate::sqlite::schema::{key, oid, tid};
use crate::sqlite::totals;

/// Revisions in one step.
const STEP: u32 = 500;

/// Revisions behind an object (1) and its tid (2) that are of no use at a tid (3): those with a later one before it,
/// and deletions with no later one at all. In the order of objects and tids, so that what replaces a revision is
/// never removed before it. At most (4).
const USELESS: &str = "
    SELECT r.id, r.oid, r.tid, r.blob_size, r.in_file FROM revisions r
    WHERE (r.oid, r.tid) > (?1, ?2) AND r.tid < ?3 AND (
        EXISTS (SELECT 1 FROM revisions n WHERE n.oid = r.oid AND n.tid > r.tid AND n.tid < ?3)
        OR r.size IS NULL AND NOT EXISTS (SELECT 1 FROM revisions n WHERE n.oid = r.oid AND n.tid > r.tid)
    ) ORDER BY r.oid, r.tid LIMIT ?4";

struct Useless {
    row: i64,
    blob: BlobId,
    size: Option<u64>,
    in_file: bool,
}

fn find(connection: &Connection, after: (Oid, Tid), before: Tid) -> rusqlite::Result<Vec<Useless>> {
    let mut statement = connection.prepare_cached(USELESS)?;
    let parameters = params![key(after.0.0), key(after.1.0), key(before.0), STEP];
    let useless = statement.query_map(parameters, |row| {
        Ok(Useless {
            row: row.get(0)?,
            blob: BlobId { oid: oid(row.get(1)?), tid: tid(row.get(2)?) },
            size: row.get::<_, Option<i64>>(3)?.map(i64::cast_unsigned),
            in_file: row.get(4)?,
        })
    })?;
    useless.collect()
}

fn delete(connection: &Connection, useless: &[Useless]) -> rusqlite::Result<()> {
    let mut revision = connection.prepare_cached("DELETE FROM revisions WHERE id = ?1")?;
    for Useless { row, .. } in useless {
        revision.execute([row])?;
    }
    Ok(())
}

impl SqliteBackend {
    pub(super) fn pack_before(&self, before: Tid) -> Result<Packed, RequestError> {
        let mut all = Packed::default();
        let mut after = (Oid(0), Tid::ZERO);
        loop {
            let useless =
                self.database.read("look for old revisions", |connection| find(connection, after, before))?;
            let Some(last) = useless.last() else { return Ok(all) };
            after = (last.blob.oid, last.blob.tid);
            let packed = sum(&useless);
            self.remove_rows(&useless, packed)?;
            self.remove_files(&useless);
            all.revisions += packed.revisions;
            all.blobs += packed.blobs;
            all.bytes += packed.bytes;
        }
    }

    fn remove_rows(&self, useless: &[Useless], packed: Packed) -> Result<(), RequestError> {
        self.database.with_writer(|writer| {
            let transaction = self.database.begin(&mut writer.connection)?;
            let mut sums = *self.totals.lock();
            sums.subtract(packed);
            delete(&transaction, useless)
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

    fn remove_files(&self, useless: &[Useless]) {
        for blob in useless.iter().filter(|useless| useless.in_file).map(|useless| useless.blob) {
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

fn sum(useless: &[Useless]) -> Packed {
    let mut packed = Packed { revisions: useless.len() as u64, ..Packed::default() };
    for size in useless.iter().filter_map(|useless| useless.size) {
        packed.blobs += 1;
        packed.bytes += size;
    }
    packed
}
