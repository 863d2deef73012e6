//! A store after a crash: it opens, has all that was committed, byte by byte, nothing else, and goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use blobferry_protocol::{BlobId, Oid, Outcome, Tid, TxnId};
use blobferry_store::{CheckOptions, OpenBlob, SqliteStore, Store, StoredRevision, check};

use crate::contents::{Kind, bytes};
use crate::ledger::{Change, Expected, Fate, Ledger, Presence, Said};
use crate::workload::{Act, Clerk, ask, config, server};
use crate::wrong::{OrWrong, Wrong, ensure};

/// Recovers the store in a directory, and compares it with what was promised. What was not known is known afterwards.
pub(crate) fn examine_server(dir: &Path, ledger: &mut Ledger) -> Result<(), Wrong> {
    let dir = server(dir);
    let store = SqliteStore::open(&dir, config()).or_wrong("the store can not be opened")?;
    let left = names(&dir.join("blobs/tmp"))?;
    ensure!(left.is_empty(), "recovery has left in the store's tmp: {left:?}");
    for txn in ledger.unknown() {
        let outcome = ask(|done| store.outcome(txn, done));
        let fate = match outcome.or_wrong(format!("the outcome of {txn} is not known"))? {
            Outcome::Committed { tid } => Fate::Committed(tid),
            Outcome::NotCommitted => Fate::NotCommitted,
        };
        ledger.decide(txn, fate)?;
    }
    compare(&store, ledger)?;
    let damaged = store.counts().damaged;
    ensure!(damaged == 0, "the store counts {damaged} blobs as damaged");
    go_on(&store, &dir, ledger)?;
    store.close();
    drop(store);
    let report =
        check(&dir, CheckOptions::default(), &mut |_| ()).or_wrong("the store can not be checked")?;
    ensure!(report.findings.is_empty(), "the store is not sound: {:?}", report.findings);
    Ok(())
}

fn names(dir: &Path) -> Result<BTreeSet<String>, Wrong> {
    let doing = || format!("could not list {}", dir.display());
    let entries = fs::read_dir(dir).or_wrong(doing())?;
    let name =
        |entry: std::io::Result<fs::DirEntry>| entry.map(|it| it.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<Result<_, _>>().or_wrong(doing())
}

fn revisions(store: &dyn Store) -> Result<BTreeMap<(Tid, Oid), StoredRevision>, Wrong> {
    let (mut all, mut after) = (BTreeMap::new(), None);
    loop {
        let page = store.revisions(after, 1000).or_wrong("revisions can not be listed")?;
        let Some(last) = page.last() else { return Ok(all) };
        after = Some((last.tid, last.oid));
        all.extend(page.into_iter().map(|revision| ((revision.tid, revision.oid), revision)));
    }
}

fn compare(store: &dyn Store, ledger: &Ledger) -> Result<(), Wrong> {
    let mut found = revisions(store)?;
    let mut newest: BTreeMap<Oid, (Tid, bool)> = BTreeMap::new();
    for Expected { tid, txn, change, presence } in ledger.revisions() {
        let oid = change.oid;
        match (presence, found.remove(&(tid, oid))) {
            (Presence::Must, None) => {
                return Err(Wrong(format!("object {oid} of {txn}, committed at {tid}, is lost")));
            }
            (Presence::MustNot, Some(_)) => {
                return Err(Wrong(format!("object {oid} at {tid} was packed away, and is there")));
            }
            (_, None) => {}
            (_, Some(revision)) => {
                newest.insert(oid, (tid, change.record.is_some()));
                compare_revision(store, &revision, txn, &change)?;
            }
        }
    }
    ensure!(found.is_empty(), "nobody has committed these: {:?}", found.keys());
    for (oid, (tid, exists)) in newest {
        let current = store.load(oid);
        let right = if exists { current.as_ref().is_ok_and(|it| it.tid == tid) } else { current.is_err() };
        ensure!(right, "object {oid} should be as of {tid}: {current:?}");
    }
    Ok(())
}

fn compare_revision(
    store: &dyn Store,
    revision: &StoredRevision,
    txn: TxnId,
    change: &Change,
) -> Result<(), Wrong> {
    let StoredRevision { tid, oid, .. } = *revision;
    let what = format!("object {oid} at {tid}");
    let sizes = (revision.size, revision.blob.map(|blob| blob.size));
    let expected = (change.record.map(|size| size as u64), change.blob.map(|size| size as u64));
    ensure!(sizes == expected, "{what} has the sizes {sizes:?}, not {expected:?}");
    if let Some(size) = change.record {
        let record = store.load_serial(oid, tid).or_wrong(format!("{what} can not be read"))?;
        ensure!(record.data == bytes(txn, oid, Kind::Record, size), "the record of {what} is torn");
    }
    if let Some(size) = change.blob {
        let blob =
            read(store, BlobId { oid, tid }).or_wrong(format!("the blob of {what} can not be read"))?;
        ensure!(blob == bytes(txn, oid, Kind::Blob, size), "the blob of {what} is torn");
    }
    Ok(())
}

fn read(store: &dyn Store, blob: BlobId) -> Result<Vec<u8>, Wrong> {
    match store.open_blob(blob).or_wrong("it can not be opened")? {
        OpenBlob::Small { bytes, .. } => Ok(bytes),
        OpenBlob::File { mut file, .. } => {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).or_wrong("its file can not be read")?;
            Ok(bytes)
        }
    }
}

/// A new object, of a later transaction than all others, shows that the store goes on.
fn go_on(store: &dyn Store, dir: &Path, ledger: &mut Ledger) -> Result<(), Wrong> {
    let said: Mutex<Vec<Said>> = Mutex::default();
    let tell = |it| said.lock().unwrap_or_else(PoisonError::into_inner).push(it);
    let mut clerk = Clerk::new(store, dir, 1 << 40 | ledger.told() as u64, &tell);
    let made = clerk.new_oids(2).and_then(|oids| {
        let acts: Vec<_> = oids.into_iter().zip([100, 5000]).collect();
        let acts: Vec<_> = acts.into_iter().map(|(oid, size)| (oid, Act::Store(10, Some(size)))).collect();
        clerk.commit(&acts)
    });
    let said: Vec<_> = std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner));
    said.into_iter().try_for_each(|it| ledger.hear(it))?;
    made.map(drop).or_wrong("a recovered store takes no transaction")
}
