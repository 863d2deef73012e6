//! Examines a store after a crash: it opens, has exactly what was committed, byte by byte, and
//! takes new transactions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::Path;

use blobferry_platform::sync::Mutex;
use blobferry_protocol::{BlobId, Oid, Outcome, Tid, TxnId};
use blobferry_store::{CheckOptions, OpenBlob, SqliteStore, Store, StoredRevision, check};

use crate::contents::{Kind, bytes};
use crate::failure::{Context, Problem, ensure};
use crate::ledger::{Change, Expected, Ledger, Presence, Statement, TxnState};
use crate::workload::{Committer, Op, config, server, wait_for};

/// Recovers the store in a directory, and compares it with the ledger. Outcomes that were unknown
/// are recorded.
pub(crate) fn examine_server(dir: &Path, ledger: &mut Ledger) -> Result<(), Problem> {
    let dir = server(dir);
    let store = SqliteStore::open(&dir, config()).context("the store cannot be opened")?;
    let left = names(&dir.join("blobs/tmp"))?;
    ensure!(left.is_empty(), "recovery has left in the store's tmp: {left:?}");
    for txn in ledger.unknown() {
        let outcome = wait_for(|done| store.outcome(txn, done));
        let state = match outcome.context(format!("the outcome of {txn} is not known"))? {
            Outcome::Committed { tid } => TxnState::Committed(tid),
            Outcome::NotCommitted => TxnState::NotCommitted,
        };
        ledger.decide(txn, state)?;
    }
    compare(&store, ledger)?;
    let damaged = store.counts().damaged;
    ensure!(damaged == 0, "the store counts {damaged} blobs as damaged");
    commit_one_more(&store, &dir, ledger)?;
    store.close();
    drop(store);
    let report = check(&dir, CheckOptions::default(), &mut |_| ()).context("the store cannot be checked")?;
    ensure!(report.findings.is_empty(), "the store is not sound: {:?}", report.findings);
    Ok(())
}

fn names(dir: &Path) -> Result<BTreeSet<String>, Problem> {
    let doing = || format!("could not list {}", dir.display());
    let entries = fs::read_dir(dir).context(doing())?;
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.map(|item| item.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect::<Result<_, _>>().context(doing())
}

fn revisions(store: &dyn Store) -> Result<BTreeMap<(Tid, Oid), StoredRevision>, Problem> {
    let (mut all, mut after) = (BTreeMap::new(), None);
    loop {
        let page = store.revisions(after, 1000).context("revisions cannot be listed")?;
        let Some(last) = page.last() else { return Ok(all) };
        after = Some((last.tid, last.oid));
        all.extend(page.into_iter().map(|revision| ((revision.tid, revision.oid), revision)));
    }
}

fn compare(store: &dyn Store, ledger: &Ledger) -> Result<(), Problem> {
    let mut found = revisions(store)?;
    let mut newest: BTreeMap<Oid, (Tid, bool)> = BTreeMap::new();
    for Expected { tid, txn, change, presence } in ledger.revisions() {
        let oid = change.oid;
        match (presence, found.remove(&(tid, oid))) {
            (Presence::Must, None) => {
                return Err(Problem(format!("object {oid} of {txn}, committed at {tid}, is lost")));
            }
            (Presence::MustNot, Some(_)) => {
                return Err(Problem(format!("object {oid} at {tid} was packed away, and is there")));
            }
            (_, None) => {}
            (_, Some(revision)) => {
                newest.insert(oid, (tid, change.record.is_some()));
                compare_revision(store, &revision, txn, &change)?;
            }
        }
    }
    ensure!(found.is_empty(), "these were never committed: {:?}", found.keys());
    for (oid, (tid, exists)) in newest {
        let current = store.load(oid);
        let right =
            if exists { current.as_ref().is_ok_and(|item| item.tid == tid) } else { current.is_err() };
        ensure!(right, "object {oid} should be as of {tid}: {current:?}");
    }
    Ok(())
}

fn compare_revision(
    store: &dyn Store,
    revision: &StoredRevision,
    txn: TxnId,
    change: &Change,
) -> Result<(), Problem> {
    let StoredRevision { tid, oid, .. } = *revision;
    let what = format!("object {oid} at {tid}");
    let sizes = (revision.size, revision.blob.map(|blob| blob.size));
    let expected = (change.record.map(|size| size as u64), change.blob.map(|size| size as u64));
    ensure!(sizes == expected, "{what} has the sizes {sizes:?}, not {expected:?}");
    if let Some(size) = change.record {
        let record = store.load_serial(oid, tid).context(format!("{what} cannot be read"))?;
        ensure!(record.data == bytes(txn, oid, Kind::Record, size), "the record of {what} is torn");
    }
    if let Some(size) = change.blob {
        let blob = read(store, BlobId { oid, tid }).context(format!("the blob of {what} cannot be read"))?;
        ensure!(blob == bytes(txn, oid, Kind::Blob, size), "the blob of {what} is torn");
    }
    Ok(())
}

fn read(store: &dyn Store, blob: BlobId) -> Result<Vec<u8>, Problem> {
    match store.open_blob(blob).context("it cannot be opened")? {
        OpenBlob::Small { bytes, .. } => Ok(bytes),
        OpenBlob::File { mut file, .. } => {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).context("its file cannot be read")?;
            Ok(bytes)
        }
    }
}

/// Commits one more transaction, to show that the store works.
fn commit_one_more(store: &dyn Store, dir: &Path, ledger: &mut Ledger) -> Result<(), Problem> {
    let statements: Mutex<Vec<Statement>> = Mutex::default();
    let emit = |item| statements.lock().push(item);
    let mut committer = Committer::new(store, dir, 1 << 40 | ledger.transactions() as u64, &emit);
    let made = committer.new_oids(2).and_then(|oids| {
        let ops: Vec<_> = oids.into_iter().zip([100, 5000]).collect();
        let ops: Vec<_> = ops.into_iter().map(|(oid, size)| (oid, Op::Store(10, Some(size)))).collect();
        committer.commit(&ops)
    });
    let statements: Vec<_> = std::mem::take(&mut *statements.lock());
    statements.into_iter().try_for_each(|item| ledger.record(item))?;
    made.map(drop).context("a recovered store takes no transaction")
}
