//! Reads revisions and blobs.

use std::fs::File;
use std::io::ErrorKind;

use blobferry_protocol::{BlobId, BlobInfo, Digest, HistoryEntry, Oid, RequestError, Tid, TxnMeta};
use rusqlite::{Connection, OptionalExtension, Row};
use rustix::io::Errno;

use crate::backend::Found;
use crate::errors::disk_error;
use crate::sqlite::backend::SqliteBackend;
use crate::sqlite::schema::{key, oid, tid};
use crate::store::{OpenBlob, StoredRevision};

/// The last revision of an object (1) up to a tid (2), with the next one that is visible at (3).
pub(super) const NEWEST: &str = "
    SELECT r.tid, r.size, r.blob_size, r.blob_digest,
        (SELECT n.tid FROM revisions n WHERE n.oid = ?1 AND n.tid > r.tid AND n.tid <= ?3 ORDER BY n.tid LIMIT 1),
        r.data
    FROM revisions r WHERE r.oid = ?1 AND r.tid <= ?2 ORDER BY r.tid DESC LIMIT 1";

const HISTORY: &str = "
    SELECT r.tid, r.size, r.blob_size, r.blob_digest, t.user, t.description
    FROM revisions r JOIN transactions t ON t.tid = r.tid
    WHERE r.oid = ?1 AND r.tid <= ?2 ORDER BY r.tid DESC LIMIT ?3";

/// Revisions behind one (tid 1, oid 2) up to a tid (3), in order; at most (4). If that one was
/// packed away, the search starts at the first.
pub(super) const REVISIONS: &str = "
    SELECT tid, size, blob_size, blob_digest, oid
    FROM revisions WHERE id > coalesce((SELECT id FROM revisions WHERE oid = ?2 AND tid = ?1), 0)
        AND (tid, oid) > (?1, ?2) AND tid <= ?3 ORDER BY id LIMIT ?4";

pub(super) const BLOB: &str = "
    SELECT tid, size, blob_size, blob_digest, in_file, small_blob
    FROM revisions WHERE oid = ?1 AND tid = ?2";

/// Returns a number of bytes.
fn size(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(i64::cast_unsigned))
}

/// Returns the blob in columns 2 and 3.
fn blob(row: &Row<'_>) -> rusqlite::Result<Option<BlobInfo>> {
    match size(row, 2)? {
        Some(size) => Ok(Some(BlobInfo { size, digest: Digest(row.get(3)?) })),
        None => Ok(None),
    }
}

impl SqliteBackend {
    pub(super) fn read_newest(
        &self,
        of: Oid,
        upto: Tid,
        visible: Tid,
    ) -> Result<Option<Found>, RequestError> {
        let found = |row: &Row<'_>| {
            let exists = size(row, 1)?.is_some();
            Ok(Found {
                tid: tid(row.get(0)?),
                next: row.get::<_, Option<i64>>(4)?.map(tid),
                data: if exists { Some(row.get(5)?) } else { None },
                blob: blob(row)?,
            })
        };
        self.database.read("read a revision", |connection| {
            let keys = [key(of.0), key(upto.0), key(visible.0)];
            connection.prepare_cached(NEWEST)?.query_row(keys, found).optional()
        })
    }

    pub(super) fn read_history(
        &self,
        of: Oid,
        limit: u32,
        visible: Tid,
    ) -> Result<Vec<HistoryEntry>, RequestError> {
        let entry = |row: &Row<'_>| {
            let meta = TxnMeta { user: row.get(4)?, description: row.get(5)? };
            Ok(HistoryEntry { tid: tid(row.get(0)?), meta, size: size(row, 1)?, blob: blob(row)? })
        };
        self.database.read("read a history", |connection| {
            let parameters = [key(of.0), key(visible.0), limit.into()];
            connection.prepare_cached(HISTORY)?.query_map(parameters, entry)?.collect()
        })
    }

    pub(super) fn read_revisions(
        &self,
        after: (Tid, Oid),
        limit: u32,
        visible: Tid,
    ) -> Result<Vec<StoredRevision>, RequestError> {
        let revision = |row: &Row<'_>| {
            Ok(StoredRevision {
                tid: tid(row.get(0)?),
                oid: oid(row.get(4)?),
                size: size(row, 1)?,
                blob: blob(row)?,
            })
        };
        self.database.read("list revisions", |connection| {
            let parameters = [key(after.0.0), key(after.1.0), key(visible.0), limit.into()];
            connection.prepare_cached(REVISIONS)?.query_map(parameters, revision)?.collect()
        })
    }

    pub(super) fn read_blob(&self, id: BlobId) -> Result<OpenBlob, RequestError> {
        let (info, place) = self.find_blob(id)?;
        match place {
            BlobPlace::Small(bytes) if Digest(*blake3::hash(&bytes).as_bytes()) == info.digest => {
                Ok(OpenBlob::Small { info, bytes })
            }
            BlobPlace::Small(_) => {
                let detail = format!("its bytes in {} have another digest", self.database.path.display());
                Err(RequestError::Damaged { blob: id, detail })
            }
            BlobPlace::InFile => self.open_file(id, info),
        }
    }

    fn open_file(&self, id: BlobId, info: BlobInfo) -> Result<OpenBlob, RequestError> {
        let path = self.layout.blob_path(id);
        let damaged = |detail| Err(RequestError::Damaged { blob: id, detail });
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?, file)));
        match opened {
            Ok((metadata, file)) if metadata.is_file() && metadata.len() == info.size => {
                Ok(OpenBlob::File { info, file, path })
            }
            Ok((metadata, _)) => {
                damaged(format!("{} has {} bytes, not {}", path.display(), metadata.len(), info.size))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.find_blob(id)?; // fails if it was just packed away
                damaged(format!("{} is missing", path.display()))
            }
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => {
                damaged(format!("could not open {}: {error}", path.display()))
            }
            Err(error) => Err(disk_error("open", &path, &error)),
        }
    }

    fn find_blob(&self, id: BlobId) -> Result<(BlobInfo, BlobPlace), RequestError> {
        let find = |connection: &Connection| {
            let mut statement = connection.prepare_cached(BLOB)?;
            let found = statement.query_row([key(id.oid.0), key(id.tid.0)], |row| {
                let place = match row.get::<_, bool>(4)? {
                    true => BlobPlace::InFile,
                    false => BlobPlace::Small(row.get::<_, Option<Vec<u8>>>(5)?.unwrap_or_default()),
                };
                Ok(blob(row)?.map(|info| (info, place)))
            });
            found.optional()
        };
        let found = self.database.read("read a blob", find)?;
        found.flatten().ok_or(RequestError::NoSuchBlob { blob: id })
    }
}

/// Where the bytes of a blob are.
enum BlobPlace {
    Small(Vec<u8>),
    InFile,
}
