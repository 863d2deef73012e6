//! The totals of a store: saved in the database up to some revision, and counted from there at
//! open.
//!
//! Saving them with every commit would write one more page each time. So they are saved before a
//! checkpoint and at close. The revisions to count are never more than one log has.

use rusqlite::{Connection, params};

use crate::backend::Totals;
use crate::sqlite::schema::{id, key};

const SAVED: &str = "SELECT objects, revisions, blobs, blob_bytes, last_oid, counted FROM state";

/// The sums of the revisions after one (1). A revision adds an object if it did not exist before,
/// and a deletion subtracts one. No index finds the rows, so that a damaged one hides none.
const AFTER: &str = "
    SELECT coalesce(sum((r.size IS NOT NULL) - coalesce((
            SELECT n.size IS NOT NULL FROM revisions n WHERE n.oid = r.oid AND n.tid < r.tid ORDER BY n.tid DESC LIMIT 1
        ), 0)), 0), count(*), count(blob_size), coalesce(sum(blob_size), 0), max(oid)
    FROM revisions r NOT INDEXED WHERE r.id > ?1";

const SAVE: &str = "
    UPDATE state SET last_oid = max(last_oid, ?1), objects = ?2, revisions = ?3, blobs = ?4, blob_bytes = ?5,
        counted = (SELECT coalesce(max(id), 0) FROM revisions)";

/// The totals of a database.
pub(super) struct Sums {
    pub(super) totals: Totals,
    /// No oid up to this one is allocated again.
    pub(super) last_oid: u64,
    /// They are saved up to the last revision.
    pub(super) is_saved: bool,
}

/// Reads the saved totals, and adds the revisions that came after.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<Sums> {
    let (saved, counted) = connection.query_row(SAVED, [], |row| {
        let number = |n: usize| row.get::<_, i64>(n).map(i64::cast_unsigned);
        let (objects, revisions, blobs, blob_bytes) = (number(0)?, number(1)?, number(2)?, number(3)?);
        let totals = Totals { objects, revisions, blobs, blob_bytes, damaged: 0 };
        Ok((Sums { totals, last_oid: id(row.get(4)?), is_saved: true }, row.get(5)?))
    })?;
    add(connection, saved, counted)
}

/// Counts all revisions, whatever is saved.
pub(super) fn count(connection: &Connection) -> rusqlite::Result<Sums> {
    add(connection, Sums { totals: Totals::default(), last_oid: 0, is_saved: true }, i64::MIN)
}

/// Adds the revisions after a given one.
fn add(connection: &Connection, to: Sums, after: i64) -> rusqlite::Result<Sums> {
    connection.query_row(AFTER, [after], |row| {
        let sum = |n: usize, to: u64| row.get::<_, i64>(n).map(|more| to.wrapping_add_signed(more));
        let Totals { objects, revisions, blobs, blob_bytes, damaged } = to.totals;
        let totals = Totals {
            objects: sum(0, objects)?,
            revisions: sum(1, revisions)?,
            blobs: sum(2, blobs)?,
            blob_bytes: sum(3, blob_bytes)?,
            damaged,
        };
        let used = row.get::<_, Option<i64>>(4)?.map(id);
        Ok(Sums { totals, last_oid: to.last_oid.max(used.unwrap_or(0)), is_saved: used.is_none() })
    })
}

/// Saves the totals of all revisions. Reserved oids stay reserved.
pub(super) fn write(connection: &Connection, last_oid: u64, totals: Totals) -> rusqlite::Result<()> {
    let Totals { objects, revisions, blobs, blob_bytes, .. } = totals;
    // No disk holds 2^63 of anything.
    let [objects, revisions, blobs, blob_bytes] =
        [objects, revisions, blobs, blob_bytes].map(u64::cast_signed);
    connection
        .prepare_cached(SAVE)?
        .execute(params![key(last_oid), objects, revisions, blobs, blob_bytes])
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use blobferry_protocol::{Oid, Tid, TxnId, TxnMeta};

    use super::*;
    use crate::sqlite::schema::DATABASE;
    use crate::sqlite::{SqliteStore, schema};
    use crate::{Store, StoreConfig};

    /// Commits one change of one object.
    fn commit(store: &SqliteStore, oid: u64, base: Tid, data: Option<&[u8]>) -> Tid {
        let txn = TxnId((u128::from(oid) << 64 | u128::from(store.last_tid().0)).to_be_bytes());
        store.begin(txn, TxnMeta::default()).unwrap();
        match data {
            Some(data) => store.store(txn, Oid(oid), base, data.to_vec()).unwrap(),
            None => store.delete(txn, Oid(oid), base).unwrap(),
        }
        store.vote(txn, Box::new(|vote| _ = vote.unwrap()));
        let (answer, answers) = mpsc::channel();
        store.finish(txn, Box::new(move |tid| answer.send(tid).unwrap()));
        answers.recv().unwrap().unwrap()
    }

    fn saved(dir: &Path) -> Sums {
        read(&schema::open_for_check(&dir.join(DATABASE)).unwrap()).unwrap()
    }

    #[test]
    fn later_revisions_are_counted_and_a_close_saves_totals() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), StoreConfig::default()).unwrap();
        let sums = |sums: &Sums| (sums.totals.objects, sums.totals.revisions, sums.last_oid, sums.is_saved);
        assert_eq!(sums(&saved(dir.path())), (0, 0, 0, true));
        let first = commit(&store, 1, Tid::ZERO, Some(b"new"));
        let second = commit(&store, 1, first, Some(b"changed"));
        commit(&store, 7, Tid::ZERO, Some(b"another"));
        assert_eq!(sums(&saved(dir.path())), (2, 3, 7, false));
        let deleted = commit(&store, 1, second, None);
        assert_eq!(sums(&saved(dir.path())), (1, 4, 7, false));
        commit(&store, 1, Tid::ZERO, Some(b"again"));
        assert_eq!(sums(&saved(dir.path())), (2, 5, 7, false));
        store.pack(Tid(deleted.0 + 1)).unwrap();
        assert_eq!(sums(&saved(dir.path())), (2, 3, 7, true), "a pack saves the totals");
        commit(&store, 3, Tid::ZERO, Some(b"third"));
        assert_eq!(sums(&saved(dir.path())), (3, 4, 7, false));
        store.close();
        assert_eq!(sums(&saved(dir.path())), (3, 4, 7, true));
    }
}
