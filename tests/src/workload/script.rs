//! Scripts: each thing that a server or a client does, in the same order in each run.
//!
//! A script pauses before the tried part and after it. After that no fault is injected, and what
//! was promised must be readable.

use std::fs;
use std::path::Path;

use blobferry_protocol::{BlobId, Oid, Tid, TxnId};
use blobferry_store::{SqliteStore, Store};

use super::committer::{Committer, End, Op};
use super::reader::Reader;
use super::{Emit, Role, cache, config, pause, server};
use crate::contents::{Kind, bytes};
use crate::failure::{Context, Problem};
use crate::ledger::{Change, Statement};

/// The number of blobs that a client downloads.
const BLOB_COUNT: usize = 10;

fn txn(n: usize) -> TxnId {
    TxnId([u8::try_from(n).unwrap_or(u8::MAX); 16])
}

fn size(n: usize) -> usize {
    30_000 + n * 1_111
}

/// Returns a blob's id. Two of each three are in one bucket.
fn blob(n: usize) -> BlobId {
    let n = n as u64;
    BlobId { oid: Oid(n * BlobId::BUCKETS + n % 3 / 2), tid: Tid(1000 + n) }
}

fn content(n: usize) -> Vec<u8> {
    bytes(txn(n), blob(n).oid, Kind::Blob, size(n))
}

/// Makes the state that a script starts from.
pub(crate) fn prepare(role: Role, dir: &Path, emit: Emit<'_>) -> Result<(), Problem> {
    match role {
        Role::Client => prepare_cache(dir, emit),
        _ => prepare_store(dir, emit),
    }
}

fn prepare_store(dir: &Path, emit: Emit<'_>) -> Result<(), Problem> {
    let dir = server(dir);
    let store = SqliteStore::open(&dir, config()).context("could not make a store")?;
    let mut committer = Committer::new(&store, &dir, 1, emit);
    let oids = committer.new_oids(6).context("could not have oids")?;
    for round in 0..4 {
        let large = Op::Store(100, Some(10_000 + round));
        let ops: Vec<_> =
            oids.iter().enumerate().map(|(n, oid)| (*oid, if n % 2 == 0 { large } else { SMALL })).collect();
        committer.commit(&ops).context("could not prepare a store")?;
    }
    let gone: Vec<_> = oids.iter().take(2).map(|oid| (*oid, Op::Delete)).collect();
    committer.commit(&gone).context("could not prepare a store")?;
    store.close();
    Ok(())
}

const SMALL: Op = Op::Store(10, Some(1000));
/// Larger than the database and its log at first: so a file size limit can be between.
const LARGE: Op = Op::Store(10, Some(123_456));

fn prepare_cache(dir: &Path, emit: Emit<'_>) -> Result<(), Problem> {
    for n in 0..BLOB_COUNT {
        let (txn, BlobId { oid, tid }) = (txn(n), blob(n));
        emit(Statement::Intends { txn, changes: vec![Change { oid, record: Some(0), blob: Some(size(n)) }] });
        emit(Statement::Committed { txn, tid });
    }
    let dir = cache(dir);
    let reader = Reader::open(&dir, emit).context("could not make a cache")?;
    reader.ensure_cached(blob(0), &content(0)).context("could not prepare a cache")?;
    reader.download_part(blob(1), &content(1), true).context("could not prepare a cache")?;
    // A power cut may leave a part of the right length without its contents.
    reader.download_part(blob(7), &vec![0; size(7)], true).context("could not prepare a cache")?;
    drop(reader);
    let dead = dir.join("tmp/blobferry-dead");
    fs::create_dir(&dead).context("could not prepare a cache")?;
    fs::write(dead.join(".lock"), "").context("could not prepare a cache")?;
    fs::write(dead.join("blob-half"), "half").context("could not prepare a cache")
}

/// Runs the server script. The committer states refusals, and the script continues.
pub(super) fn serve(dir: &Path, closes: bool, emit: Emit<'_>) {
    let dir = server(dir);
    let store = match SqliteStore::open(&dir, config()) {
        Ok(store) => store,
        Err(error) => return emit(Statement::Failed { what: error.to_string() }),
    };
    let mut committer = Committer::new(&store, &dir, 2, emit);
    _ = committer.fence(); // by the committer, which therefore runs, and has its name
    pause(emit);
    let oids = committer.new_oids(8).unwrap_or_default();
    if let [record, small, large, shared, other, ..] = oids[..] {
        let plain = Op::Store(3000, None);
        _ = committer.commit(&[(large, LARGE)]);
        _ = committer.commit(&[(record, plain), (small, SMALL)]);
        _ = committer.commit(&[(shared, Op::Share(10, 12_345)), (other, LARGE)]);
        _ = committer.commit(&[(record, LARGE), (small, Op::Delete), (large, plain)]);
        _ = committer.transact(&[(record, LARGE), (shared, SMALL)], End::Abort);
        _ = committer.transact(&[(other, LARGE)], End::AbortVoted);
        _ = committer.fence();
    }
    if closes {
        store.close();
    }
    pause(emit);
    check_readable(&store, &committer, emit);
}

/// Opens a store after a crash.
pub(super) fn recover(dir: &Path, emit: Emit<'_>) {
    pause(emit);
    match SqliteStore::open(server(dir), config()) {
        Ok(store) => {
            pause(emit);
            check_readable(&store, &Committer::new(&store, &server(dir), 2, emit), emit);
        }
        Err(error) => {
            emit(Statement::Failed { what: error.to_string() });
            pause(emit);
        }
    }
}

/// Forgets old revisions.
pub(super) fn pack(dir: &Path, emit: Emit<'_>) {
    let dir = server(dir);
    let store = match SqliteStore::open(&dir, config()) {
        Ok(store) => store,
        Err(error) => return emit(Statement::Failed { what: error.to_string() }),
    };
    let committer = Committer::new(&store, &dir, 2, emit);
    pause(emit);
    // The committer states a failure.
    _ = committer.pack(store.last_tid());
    store.close();
    pause(emit);
    check_readable(&store, &committer, emit);
}

/// Checks that what was committed is readable. No fault is injected now, but one may have been
/// before.
fn check_readable(store: &dyn Store, committer: &Committer<'_>, emit: Emit<'_>) {
    for (tid, txn, change) in committer.committed() {
        let Some(size) = change.record else { continue };
        match store.load_serial(change.oid, *tid) {
            Ok(revision) if revision.data == bytes(*txn, change.oid, Kind::Record, size) => {}
            other => {
                let what = format!("object {} at {tid} cannot be read any more: {other:?}", change.oid);
                emit(Statement::Violation { what });
            }
        }
    }
}

/// Runs the client script.
pub(super) fn download(dir: &Path, emit: Emit<'_>) {
    let dir = cache(dir);
    pause(emit);
    if let Ok(reader) = Reader::open(&dir, emit) {
        // The reader states each failure, and the script continues.
        _ = reader.ensure_cached(blob(0), &content(0)); // of an earlier boot
        _ = reader.ensure_cached(blob(1), &content(1)); // another process has begun
        _ = reader.ensure_cached(blob(2), &content(2));
        _ = reader.pin(blob(2));
        _ = reader.download_part(blob(3), &content(3), false);
        _ = reader.download_part(blob(3), &content(3), true);
        _ = reader.ensure_cached(blob(3), &content(3));
        _ = reader.write(blob(4), &content(4));
        let file = dir.with_file_name("a file");
        if fs::write(&file, content(5)).is_ok() {
            _ = reader.copy(blob(5), &file);
        }
        _ = reader.load(blob(8), &content(8));
        _ = reader.load(blob(9), &content(9));
        _ = reader.load(blob(8), &content(8));
        _ = reader.ensure_cached(blob(9), &content(9)); // from a segment
        _ = reader.download_part(blob(6), &content(6), true);
        _ = reader.ensure_cached(blob(7), &content(7)); // what is there of it is torn
        _ = reader.make_room((0..BLOB_COUNT).map(blob));
        _ = reader.ensure_cached(blob(0), &content(0));
    }
    pause(emit);
    let Ok(reader) = Reader::open(&dir, emit) else {
        return emit(Statement::Violation {
            what: "a cache cannot be opened although no fault is injected any more".to_owned(),
        });
    };
    for n in 8..BLOB_COUNT {
        if let Err(error) = reader.load(blob(n), &content(n)) {
            let what =
                format!("{} cannot be loaded although no fault is injected any more: {error}", blob(n));
            emit(Statement::Violation { what });
        }
    }
    for n in 0..BLOB_COUNT {
        if let Err(error) = reader.ensure_cached(blob(n), &content(n)) {
            let what = format!("{} cannot be had although no fault is injected any more: {error}", blob(n));
            emit(Statement::Violation { what });
        }
    }
}
