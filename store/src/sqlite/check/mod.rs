//! Checks a store that no server has open: everything committed is there unchanged, and nothing
//! else.
//!
//! The order matters for a repair. The database comes first, since only a sound one is relied on.
//! Then come every byte of the blobs, files that no revision has, and the totals. A repair only
//! rebuilds what follows from intact data. It never invents bytes.

mod report;
mod rows;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use blobferry_platform::aligned_buf::AlignedBuf;
use blobferry_platform::blobdir::Layout;
use blobferry_platform::progress::Progress;
use blobferry_protocol::{BlobId, Digest};
use rusqlite::Connection;

pub use self::report::{CheckReport, Finding, FindingKind};
use crate::errors::OpenError;
use crate::sqlite::schema::{DATABASE, oid, tid};
use crate::sqlite::{recover, schema, totals};

/// How a store is checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Repairs what follows from intact data. Without this, a check changes nothing.
    pub repair: bool,
}

/// Checks the store in a directory that no server has open.
///
/// It runs SQLite's own check, compares rows with each other, reads every blob for its size and
/// digest, lists files that no revision has, and recounts the totals. It calls `progress` with the
/// bytes of blobs that were read.
///
/// # Errors
/// [`OpenError::InUse`] if a server has the directory open, and others if there is no store that
/// can be checked. Damage to the store is not an error: see [`CheckReport`].
pub fn check(
    dir: impl AsRef<Path>,
    options: CheckOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<CheckReport, OpenError> {
    let dir = dir.as_ref();
    let _lock = recover::lock_existing(dir)?;
    let layout = Layout::open_existing(dir.join("blobs"))?;
    let path = dir.join(DATABASE);
    if !schema::exists(&path) {
        return Err(OpenError::NoDatabase { path });
    }
    let connection = if options.repair {
        recover::rewrite_log(&path)?;
        schema::open_writer(&path)?
    } else {
        schema::open_for_check(&path)?
    };
    let report = CheckReport::default();
    let mut check = Check { path, layout, connection, repair: options.repair, report, progress };
    let sound = check.database();
    check.rows();
    check.blobs();
    if sound {
        check.orphans();
        check.totals();
    }
    check.leftovers()?;
    if options.repair {
        check.attempt("move the log into the database", |connection| {
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        });
    }
    Ok(check.report)
}

struct Check<'a> {
    /// The database.
    path: PathBuf,
    layout: Layout,
    connection: Connection,
    repair: bool,
    report: CheckReport,
    progress: &'a mut dyn FnMut(Progress),
}

/// A blob as the database knows it.
struct Known {
    row: i64,
    blob: BlobId,
    size: u64,
    digest: Vec<u8>,
    in_file: bool,
}

impl Check<'_> {
    fn find(&mut self, kind: FindingKind, blob: Option<BlobId>, path: &Path, detail: String, mended: bool) {
        self.report.findings.push(Finding { kind, blob, path: path.to_owned(), detail, mended });
    }

    /// Queries the database. A failed query is one more finding.
    fn attempt<T>(
        &mut self,
        what: &str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Option<T> {
        match query(&self.connection) {
            Ok(answer) => Some(answer),
            Err(error) => {
                let path = self.path.clone();
                self.find(FindingKind::Database, None, &path, format!("could not {what}: {error}"), false);
                None
            }
        }
    }

    /// Checks the database, and rebuilds its indexes in a repair. Returns whether it is sound.
    fn database(&mut self) -> bool {
        let Some(lines) = self.attempt("check it", rows::integrity) else { return false };
        let only_indexes = lines.iter().all(|line| rows::is_about_index(line));
        let mended = self.repair && only_indexes && !lines.is_empty() && {
            let rebuilt = self.attempt("rebuild its indexes", |it| it.execute_batch("REINDEX"));
            rebuilt
                .and_then(|()| self.attempt("check it again", rows::integrity))
                .is_some_and(|it| it.is_empty())
        };
        let kind = if only_indexes { FindingKind::Index } else { FindingKind::Database };
        let (path, sound) = (self.path.clone(), lines.is_empty() || mended);
        for line in lines {
            self.find(kind, None, &path, line, mended);
        }
        sound
    }

    fn rows(&mut self) {
        let path = self.path.clone();
        let found = self.attempt("compare its rows", rows::contradictions);
        for rows::Contradiction { blob, detail } in found.into_iter().flatten() {
            self.find(FindingKind::Row, blob, &path, detail, false);
        }
    }

    fn blobs(&mut self) {
        let total = self.attempt("count its blobs", count_bytes).unwrap_or_default();
        let (mut done, mut after) = (0, i64::MIN);
        loop {
            let page = self.attempt("list its blobs", |connection| known_blobs(connection, after));
            let page = page.unwrap_or_default();
            let Some(last) = page.last() else { return };
            after = last.row;
            for known in page {
                let wrong = if known.in_file { self.file(&known, done, total) } else { self.small(&known) };
                if let Some((kind, path, detail)) = wrong {
                    self.find(kind, Some(known.blob), &path, detail, false);
                }
                done += known.size;
                (self.progress)(Progress { done, total });
                self.report.blobs += 1;
                self.report.bytes += known.size;
            }
        }
    }

    /// Returns what is wrong with a blob in a file.
    fn file(&mut self, known: &Known, done: u64, total: u64) -> Option<(FindingKind, PathBuf, String)> {
        let path = self.layout.blob_path(known.blob);
        let mut read = |bytes: u64| (self.progress)(Progress { done: done + bytes.min(known.size), total });
        match hash(&path, &mut read) {
            Ok((size, digest)) => Some((FindingKind::Damaged, path, difference(known, size, digest)?)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Some((FindingKind::Missing, path, format!("{} bytes are missing", known.size)))
            }
            Err(error) => Some((FindingKind::Damaged, path, format!("cannot be read: {error}"))),
        }
    }

    /// Returns what is wrong with a blob in the database.
    fn small(&mut self, known: &Known) -> Option<(FindingKind, PathBuf, String)> {
        let read = |connection: &Connection| {
            let mut bytes =
                connection.prepare_cached("SELECT small_blob FROM revisions NOT INDEXED WHERE id = ?1")?;
            bytes.query_row([known.row], |row| row.get::<_, Option<Vec<u8>>>(0))
        };
        let bytes = self.attempt("read a small blob", read)?;
        let missing =
            || (FindingKind::Missing, self.path.clone(), "its bytes are not in the database".to_owned());
        let Some(bytes) = bytes else { return Some(missing()) };
        let digest = Digest(*blake3::hash(&bytes).as_bytes());
        Some((FindingKind::Damaged, self.path.clone(), difference(known, bytes.len() as u64, digest)?))
    }

    /// Finds blobs that no revision has. A crash before a commit leaves such files.
    fn orphans(&mut self) {
        for blob in self.layout.clone().blobs() {
            let (blob, path) = match blob {
                Ok(found) => found,
                Err(error) => {
                    let root = self.layout.root().to_owned();
                    self.find(FindingKind::Damaged, None, &root, format!("cannot be listed: {error}"), false);
                    continue;
                }
            };
            let known = self.attempt("find a blob", |connection| recover::has_file(connection, blob));
            if known == Some(false) {
                let mended = self.repair && fs::remove_file(&path).is_ok();
                let detail = "no committed revision has this blob".to_owned();
                self.find(FindingKind::Orphan, Some(blob), &path, detail, mended);
            }
        }
    }

    fn totals(&mut self) {
        let Some(sums) = self.attempt("count its rows", totals::count) else { return };
        self.report.revisions = sums.totals.revisions;
        let wrong = self.attempt("read its totals", |connection| rows::wrong_totals(connection, &sums));
        let wrong = wrong.unwrap_or_default();
        let mended = self.repair
            && !wrong.is_empty()
            && self.attempt("write its totals", |it| totals::write(it, sums.last_oid, sums.totals)).is_some();
        let path = self.path.clone();
        for detail in wrong {
            self.find(FindingKind::Totals, None, &path, detail, mended);
        }
    }

    /// Finds staged files that a crash has left. They are harmless.
    fn leftovers(&mut self) -> Result<(), OpenError> {
        let tmp = self.layout.tmp().to_owned();
        let leftovers = match recover::leftovers(&tmp) {
            Err(OpenError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Vec::new(),
            leftovers => leftovers?,
        };
        if self.repair && !leftovers.is_empty() {
            recover::empty_tmp(&tmp)?;
        }
        for path in leftovers {
            self.find(
                FindingKind::Leftover,
                None,
                &path,
                "of a transaction that never was".into(),
                self.repair,
            );
        }
        Ok(())
    }
}

/// Returns the bytes of all blobs together.
fn count_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    const BYTES: &str = "SELECT coalesce(sum(blob_size), 0) FROM revisions NOT INDEXED";
    connection.query_row(BYTES, [], |row| row.get::<_, i64>(0).map(i64::cast_unsigned))
}

/// Returns the next blobs behind a row. No index is used, so that a damaged one hides none.
fn known_blobs(connection: &Connection, after: i64) -> rusqlite::Result<Vec<Known>> {
    const BLOBS: &str = "
        SELECT id, oid, tid, blob_size, coalesce(blob_digest, x''), in_file
        FROM revisions NOT INDEXED WHERE id > ?1 AND blob_size IS NOT NULL ORDER BY id LIMIT 1000";
    let known = |row: &rusqlite::Row<'_>| {
        Ok(Known {
            row: row.get(0)?,
            blob: BlobId { oid: oid(row.get(1)?), tid: tid(row.get(2)?) },
            size: row.get::<_, i64>(3)?.cast_unsigned(),
            digest: row.get(4)?,
            in_file: row.get(5)?,
        })
    };
    connection.prepare_cached(BLOBS)?.query_map([after], known)?.collect()
}

/// Describes how bytes differ from the committed ones.
fn difference(known: &Known, size: u64, digest: Digest) -> Option<String> {
    if size != known.size {
        return Some(format!("it has {size} bytes, not {}", known.size));
    }
    (digest.0[..] != known.digest[..]).then(|| "its bytes have another digest".to_owned())
}

/// Returns the size and digest of a file. Calls `progress` with the bytes read.
fn hash(path: &Path, progress: &mut dyn FnMut(u64)) -> io::Result<(u64, Digest)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), AlignedBuf::new(256 << 10));
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((hasher.count(), Digest(*hasher.finalize().as_bytes()))),
            Ok(n) => _ = hasher.update(buffer.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        progress(hasher.count());
    }
}
