//! Makes a batch of transactions durable with one commit of the database.
//!
//! **A row is committed only after its blob's bytes and name are durable.** The bytes were synced
//! when the blob was staged. Here its file gets its final name, then the directory is synced, then
//! the database commits. The transactions happen at that moment. A crash before it leaves files
//! without a row, which the next open removes.

use blobferry_platform::sync::Mutex;
use blobferry_protocol::{BlobId, BlobInfo, Conflict, Oid, Outcome, RequestError, Tid, TxnId, TxnMeta};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::backend::{Totals, now};
use crate::sqlite::backend::SqliteBackend;
use crate::sqlite::database::{Writer, needs_checkpoint};
use crate::sqlite::files::Files;
use crate::sqlite::schema::{key, tid};
use crate::sqlite::totals;
use crate::staging::StagedFile;
use crate::transactions::table::Work;
use crate::transactions::write_set::{Body, Bytes, Entry, WriteSet};

/// The current revision of an object, and whether it is a deletion.
pub(super) const CURRENT: &str =
    "SELECT tid, size IS NULL FROM revisions WHERE oid = ?1 ORDER BY tid DESC LIMIT 1";

/// The transaction of a name (1), or NULL if the name is fenced off.
const OUTCOME: &str =
    "SELECT tid FROM transactions WHERE txn = ?1 UNION ALL SELECT NULL FROM fences WHERE txn = ?1";

const NEW_TRANSACTION: &str = "INSERT INTO transactions(tid, txn, user, description) VALUES (?1, ?2, ?3, ?4)";

const NEW_REVISION: &str = "
    INSERT INTO revisions(oid, tid, size, blob_size, blob_digest, in_file, data, small_blob)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

/// The objects of a vote that are compared in one read.
const VOTE_STEP: usize = 256;

/// Returns what became of a name; `None` if it was neither committed nor fenced off.
fn find_outcome(connection: &Connection, txn: TxnId) -> rusqlite::Result<Option<Outcome>> {
    let known: Option<Option<i64>> =
        connection.prepare_cached(OUTCOME)?.query_row([&txn.0], |row| row.get(0)).optional()?;
    Ok(known.map(|committed| match committed {
        Some(committed) => Outcome::Committed { tid: tid(committed) },
        None => Outcome::NotCommitted,
    }))
}

/// Adds a conflict for each object that has changed since its base.
fn compare(
    connection: &Connection,
    bases: impl Iterator<Item = (Oid, Tid)>,
    conflicts: &mut Vec<Conflict>,
) -> rusqlite::Result<()> {
    let mut current = connection.prepare_cached(CURRENT)?;
    for (oid, base) in bases {
        let found = current
            .query_row([key(oid.0)], |row| Ok((tid(row.get(0)?), row.get::<_, bool>(1)?)))
            .optional()?;
        let committed = found.filter(|(_, deleted)| !deleted).map_or(Tid::ZERO, |(tid, _)| tid);
        if committed != base {
            conflicts.push(Conflict { oid, committed, base });
        }
    }
    Ok(())
}

/// Converts a number of bytes for SQLite. No disk holds 2^63.
fn number(n: u64) -> i64 {
    n.cast_signed()
}

/// Returns the highest oid that a batch uses; 0 if it uses none.
fn last_oid(batch: &[Work]) -> u64 {
    let last = batch.iter().filter_map(|work| match work {
        Work::Commit { changes, .. } => changes.lock().last_oid(),
        Work::Fence(_) => None,
    });
    last.max().map_or(0, |oid| oid.0)
}

impl SqliteBackend {
    /// Returns the conflicts of a transaction whose objects are locked.
    pub(super) fn find_conflicts(
        &self,
        txn: TxnId,
        changes: &WriteSet,
    ) -> Result<Vec<Conflict>, RequestError> {
        let known = self.database.read("check a vote", |connection| find_outcome(connection, txn))?;
        if known.is_some() {
            return Err(RequestError::TransactionExists { txn });
        }
        let (mut bases, mut conflicts) = (changes.bases().peekable(), Vec::new());
        while bases.peek().is_some() {
            // In steps, so that other reads get a connection in between.
            let step = bases.by_ref().take(VOTE_STEP);
            self.database.read("check a vote", |connection| compare(connection, step, &mut conflicts))?;
        }
        Ok(conflicts)
    }

    pub(super) fn commit_batch(&self, after: Tid, batch: &[Work]) -> Vec<Result<Outcome, RequestError>> {
        let last_oid = last_oid(batch);
        self.oids.lock().note_used(last_oid);
        let written = self.database.with_writer(|writer| self.write_batch(writer, after, last_oid, batch));
        written.unwrap_or_else(|error| {
            if matches!(error, RequestError::NoSpace { .. }) {
                // The log of the failed write would otherwise still take disk space.
                self.database.truncate_wal();
            }
            batch.iter().map(|work| self.not_written(work, &error)).collect()
        })
    }

    /// Returns the result of an item of a batch that was not written. Earlier outcomes are still
    /// known.
    fn not_written(&self, work: &Work, error: &RequestError) -> Result<Outcome, RequestError> {
        if let Work::Fence(txn) = work
            && let Ok(Some(outcome)) =
                self.database.read("find a transaction", |connection| find_outcome(connection, *txn))
        {
            return Ok(outcome);
        }
        Err(error.clone())
    }

    /// Returns the result of an item of a batch that may or may not have been written. An item that
    /// failed before stays failed.
    fn undecided(
        &self,
        work: &Work,
        result: Result<Outcome, RequestError>,
        error: &RequestError,
    ) -> Result<Outcome, RequestError> {
        match (work, result) {
            (Work::Commit { .. }, Err(failed)) => Err(failed),
            (Work::Commit { txn, .. }, Ok(_)) => {
                let reason = match error {
                    RequestError::ReadOnly { reason } => reason.clone(),
                    error => error.to_string(),
                };
                Err(RequestError::Undecided { txn: *txn, reason })
            }
            (Work::Fence(_), _) => self.not_written(work, error),
        }
    }

    fn write_batch(
        &self,
        writer: &mut Writer,
        after: Tid,
        last_oid: u64,
        batch: &[Work],
    ) -> Result<Vec<Result<Outcome, RequestError>>, RequestError> {
        let (last_oid, before) = (writer.last_oid.max(last_oid), writer.written);
        let transaction = self.database.begin(&mut writer.connection)?;
        let files = Files::new(&self.layout, &self.new_bucket);
        let mut state = BatchState { files, totals: *self.totals.lock(), written: 0 };
        let mut last = after;
        let mut results = Vec::with_capacity(batch.len());
        for work in batch {
            let result = match work {
                Work::Fence(txn) => self.fence(&transaction, *txn),
                Work::Commit { txn, meta, changes } => {
                    let tid = last.next(now());
                    let done = self.write_transaction(&transaction, &mut state, tid, (*txn, meta, changes));
                    done.inspect(|()| last = tid).map(|()| Outcome::Committed { tid })
                }
            };
            if transaction.is_autocommit() {
                // SQLite had to roll back the whole batch.
                return Err(result.err().unwrap_or(RequestError::Failed {
                    detail: "the database rolled back the whole batch".to_owned(),
                }));
            }
            results.push(result);
        }
        // The disk may have failed for one item in a way that concerns all.
        self.database.poison.check()?;
        state.files.sync(&self.database.syncs).map_err(|error| self.database.poison.set(&error))?;
        let BatchState { files, totals: sums, written } = state;
        if needs_checkpoint(before + written) {
            totals::write(&transaction, last_oid, sums)
                .map_err(|error| self.database.error("commit", &error))?;
        }
        match self.database.commit(transaction) {
            Ok(()) => files.keep(),
            Err(error) if self.database.poison.check().is_ok() => return Err(error),
            Err(error) => {
                files.keep(); // the next open finds out whether a row has them
                let results = results.into_iter().zip(batch);
                return Ok(results.map(|(result, work)| self.undecided(work, result, &error)).collect());
            }
        }
        *self.totals.lock() = sums;
        writer.last_oid = last_oid;
        writer.written += written;
        Ok(results)
    }

    /// Writes one transaction completely, or not at all.
    fn write_transaction(
        &self,
        transaction: &Transaction<'_>,
        state: &mut BatchState<'_>,
        tid: Tid,
        (txn, meta, changes): (TxnId, &TxnMeta, &Mutex<WriteSet>),
    ) -> Result<(), RequestError> {
        let failed = |error: rusqlite::Error| self.database.error("write a transaction", &error);
        // Cached, unlike the library's savepoints: preparing these takes as long as what they
        // enclose.
        let run = |sql| -> Result<(), RequestError> {
            transaction.prepare_cached(sql).and_then(|mut it| it.execute([])).map(drop).map_err(failed)
        };
        run("SAVEPOINT one")?;
        let (before, files) = ((state.totals, state.written), state.files.count());
        let mut write = || {
            let parameters = params![key(tid.0), txn.0, meta.user, meta.description];
            transaction
                .prepare_cached(NEW_TRANSACTION)
                .and_then(|mut new| new.execute(parameters))
                .map_err(failed)?;
            let (mut changes, mut after) = (changes.lock(), None);
            while let Some(entry) = changes.entry_after(after)? {
                after = Some(entry.oid);
                let file = changes.take_file(entry.oid);
                self.write_revision(transaction, state, tid, entry, file)?;
            }
            Ok(())
        };
        let written = write().and_then(|()| run("RELEASE one"));
        if written.is_err() {
            // If SQLite had to roll back the whole batch, this fails and there is nothing to undo.
            let _ = run("ROLLBACK TO one").and_then(|()| run("RELEASE one"));
            (state.totals, state.written) = before;
            state.files.remove_from(files);
        }
        written
    }

    fn write_revision(
        &self,
        connection: &Connection,
        state: &mut BatchState<'_>,
        tid: Tid,
        entry: Entry,
        file: Option<StagedFile>,
    ) -> Result<(), RequestError> {
        let Entry { oid, base, body } = entry;
        let (size, Body { data, blob }) = match body {
            Some(body) => (Some(number(body.data.len() as u64)), body),
            None => (None, Body { data: Vec::new(), blob: None }),
        };
        let (info, small) = match blob {
            Some((info, Bytes::Small(bytes))) => (Some(info), Some(bytes)),
            Some((info, Bytes::InFile)) => (Some(info), None),
            None => (None, None),
        };
        if let Some(file) = file {
            state.files.name(file, BlobId { oid, tid })?;
        }
        let in_file = info.is_some() && small.is_none();
        let insert = || {
            let (blob_size, digest) = (info.map(|info| number(info.size)), info.map(|info| info.digest.0));
            let row = params![key(oid.0), key(tid.0), size, blob_size, digest, in_file, data, small];
            connection.prepare_cached(NEW_REVISION)?.execute(row)
        };
        insert().map_err(|error| self.database.error("write a revision", &error))?;
        state.count(base, size.is_none(), info, data.len() + small.map_or(0, |bytes| bytes.len()));
        Ok(())
    }

    fn fence(&self, transaction: &Transaction<'_>, txn: TxnId) -> Result<Outcome, RequestError> {
        let fence = || {
            if let Some(outcome) = find_outcome(transaction, txn)? {
                return Ok(outcome);
            }
            transaction.prepare_cached("INSERT INTO fences(txn) VALUES (?1)")?.execute([&txn.0])?;
            Ok(Outcome::NotCommitted)
        };
        fence().map_err(|error| self.database.error("answer for a transaction", &error))
    }
}

/// The state of a batch that is being written.
struct BatchState<'a> {
    files: Files<'a>,
    totals: Totals,
    /// The approximate bytes that it adds to the log.
    written: u64,
}

impl BatchState<'_> {
    fn count(&mut self, base: Tid, is_deletion: bool, blob: Option<BlobInfo>, bytes: usize) {
        const ROW: u64 = 512; // with its index entries
        self.totals.add(base == Tid::ZERO, is_deletion, blob);
        self.written += ROW + bytes as u64;
    }
}
