//! What must hold when all users have finished.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::sync::Arc;

use blobferry_cache::{Cache, CacheConfig, CacheError};
use blobferry_platform::sync::Mutex;
use blobferry_protocol::{BlobId, Oid, RequestError, Tid, TxnId, TxnMeta};
use blobferry_store::{CheckOptions, OpenBlob, Store, StoredRevision, Vote, check};

use super::cluster::Cluster;
use super::history;
use super::ledger::{TxnState, blob_bytes};
use super::users::FIRST_OID;
use super::world::Machine;
use super::{Report, Scenario};

/// Checks that every client was notified of every commit, in order, or that it may have missed
/// some. Must run when all commits are known.
pub(super) fn all_invalidations_arrived(cluster: &Cluster) -> Result<(), String> {
    let store = cluster.store().ok_or("there is no server, although no fault is left")?;
    let last = store.last_tid();
    for session in cluster.sessions() {
        let notified = session.last_tid();
        if notified > last {
            return Err(format!("a client was notified of {notified}, and the last commit is {last}"));
        }
    }
    let committed = cluster.ledger.borrow().commits();
    for invalidations in &cluster.invalidations {
        let invalidations = invalidations.lock();
        let mut before: Option<Tid> = None;
        for item in invalidations.iter() {
            if let Some(before) = before {
                if item.oids.is_some() && item.tid <= before {
                    return Err(format!("the invalidation of {} came after that of {before}", item.tid));
                }
                let between = |tid: &&Tid| **tid > before && **tid < item.tid;
                if let (Some(_), Some(missed)) = (&item.oids, committed.keys().find(between)) {
                    return Err(format!(
                        "a client was not notified of {missed}, but of {before} before it and of {} after it",
                        item.tid
                    ));
                }
            }
            if let (Some(named), Some(oids)) = (&item.oids, committed.get(&item.tid)) {
                let mut named: Vec<Oid> = named.to_vec();
                named.sort_unstable();
                if &named != oids {
                    return Err(format!("the invalidation of {} names {named:?}, not {oids:?}", item.tid));
                }
            }
            before = before.max(Some(item.tid));
        }
    }
    Ok(())
}

/// Returns all revisions in the order of their transactions, except packed ones.
fn revisions(store: &dyn Store) -> Result<Vec<StoredRevision>, String> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let some = store.revisions(after, 500).map_err(|error| format!("cannot list revisions: {error}"))?;
        let Some(last) = some.last() else { return Ok(all) };
        after = Some((last.tid, last.oid));
        all.extend(some);
    }
}

/// The vote of a transaction that locks all objects.
pub(super) struct LastVote(Arc<Mutex<Option<Result<Vote, RequestError>>>>);

impl LastVote {
    pub(super) fn is_decided(&self) -> bool {
        self.0.lock().is_some()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        match &*self.0.lock() {
            Some(Err(error)) => {
                Err(format!("a transaction still has locks, although all users have finished: {error}"))
            }
            Some(Ok(_)) | None => Ok(()),
        }
    }
}

/// Votes for every object with one more transaction. It cannot succeed while another transaction
/// holds a lock.
pub(super) fn vote_for_all_objects(cluster: &Cluster, scenario: &Scenario) -> Result<LastVote, String> {
    let store = cluster.store().ok_or("there is no server")?;
    let decided = Arc::new(Mutex::new(None));
    let decide = decided.clone();
    let txn = TxnId(*b"the last of them");
    let vote = || -> Result<(), RequestError> {
        store.begin(txn, TxnMeta::default())?;
        for oid in FIRST_OID..FIRST_OID + scenario.objects {
            store.store(txn, Oid(oid), Tid::ZERO, Vec::new())?;
        }
        let aborting = store.clone();
        store.vote(
            txn,
            Box::new(move |vote| {
                aborting.abort(txn);
                *decide.lock() = Some(vote);
            }),
        );
        Ok(())
    };
    let begun = cluster.run_as_server(vote).unwrap_or(Ok(()));
    begun.map_err(|error| format!("no transaction can begin, although no fault is left: {error}"))?;
    Ok(LastVote(decided))
}

/// Checks that the server has no open transaction and no staged data.
pub(super) fn server_is_empty(cluster: &Cluster) -> Result<(), String> {
    let store = cluster.store().ok_or("there is no server")?;
    let counts = store.counts();
    let left = [("open", counts.open), ("staged_bytes", counts.staged_bytes), ("uploads", counts.uploads)];
    match left.iter().find(|(_, count)| *count > 0) {
        Some((what, count)) => {
            Err(format!("all clients have left, and the server still has {what}: {count}"))
        }
        None => Ok(()),
    }
}

/// Checks that exactly the committed data exists, with its bytes, and that the history is
/// serializable.
pub(super) fn committed_data_is_there(cluster: &Cluster) -> Result<Report, String> {
    let store = cluster.store().ok_or("there is no server")?;
    let mut found: BTreeMap<usize, (Tid, Vec<Oid>)> = BTreeMap::new();
    let look = || -> Result<(), String> {
        for StoredRevision { tid, oid, .. } in revisions(&*store)? {
            let revision = store.load_serial(oid, tid).map_err(|error| format!("{oid} at {tid}: {error}"))?;
            let whose = cluster.ledger.borrow_mut().check_revision(oid, &revision);
            let Some(writing) = whose else { break };
            found.entry(writing).or_insert((tid, Vec::new())).1.push(oid);
            if let Some(info) = revision.blob {
                let blob = BlobId { oid, tid };
                let bytes = read(&*store, blob).map_err(|error| format!("blob {blob}: {error}"))?;
                if bytes != blob_bytes(writing, oid, info.size) {
                    return Err(format!("blob {blob} has other bytes than were stored"));
                }
            }
        }
        Ok(())
    };
    let mut look = look;
    cluster.run_as_server(&mut look).unwrap_or(Ok(()))?;
    let ledger = cluster.ledger.borrow();
    if let Some(broken) = ledger.broken() {
        return Err(broken.clone());
    }
    for (place, writing) in ledger.writings.iter().enumerate() {
        let stored = found.get(&place);
        match (writing.state, stored) {
            (TxnState::Committed(tid), None) if !ledger.may_be_forgotten(tid) => {
                return Err(format!("transaction {} was committed at {tid}, and is not there", writing.txn));
            }
            (_, Some((tid, oids))) if !ledger.may_be_forgotten(*tid) => {
                let missing = writing.puts.keys().find(|oid| !oids.contains(oid));
                if let Some(missing) = missing {
                    return Err(format!(
                        "a part of transaction {} is there at {tid}, without object {missing}",
                        writing.txn
                    ));
                }
            }
            _ => {}
        }
    }
    ledger.check_bases()?;
    let history = ledger.history();
    history::check(&history)?;
    Ok(Report {
        seeds: 1,
        commits: ledger.commits().len() as u64,
        conflicts: ledger.conflicts,
        operations: history.len() as u64,
        blobs: ledger.blobs_read,
        messages: cluster.counts.messages,
        payload: cluster.counts.payload,
        resumed: cluster.counts.resumed,
        attached: cluster.counts.attached,
        deaths: cluster.deaths,
        ..Report::default()
    })
}

fn read(store: &dyn Store, blob: BlobId) -> Result<Vec<u8>, RequestError> {
    match store.open_blob(blob)? {
        OpenBlob::Small { bytes, .. } => Ok(bytes),
        OpenBlob::File { mut file, .. } => {
            let mut bytes = Vec::new();
            let read = file.read_to_end(&mut bytes);
            read.map(|_| bytes).map_err(|error| RequestError::Failed { detail: error.to_string() })
        }
    }
}

/// Checks the store, and that the caches have only valid blobs and no leftovers.
pub(super) fn disks_are_sound(cluster: &Cluster, scenario: &Scenario) -> Result<(), String> {
    let dir = cluster.server_dir();
    let report = check(&dir, CheckOptions::default(), &mut |_| {})
        .map_err(|error| format!("cannot check: {error}"))?;
    if let Some(finding) = report.findings.first() {
        return Err(format!("the store is not in order: {finding:?}"));
    }
    for machine in 1..=scenario.machines {
        let path = cluster.world.with_disk(|disk| disk.path(Machine(machine))).join("cache");
        if !path.exists() {
            continue;
        }
        // Verification removes what a power cut has torn.
        let pid = cluster.world.spawn(Machine(machine));
        let verified = cluster.world.run_as(pid, || -> Result<_, CacheError> {
            Cache::open(&path, CacheConfig::default())?.verify(|_| {})
        });
        let verified = verified.map_err(|error| format!("cannot verify a cache: {error}"))?;
        cluster.world.note(format_args!("m{machine} has in its cache: {verified:?}"));
        let staged = fs::read_dir(path.join("tmp")).map_err(|error| error.to_string())?;
        let left: Vec<String> = staged
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with('.'))
            .collect();
        if !left.is_empty() {
            return Err(format!("the cache of m{machine} has leftovers: {left:?}"));
        }
    }
    Ok(())
}
