//! Scripts: each thing that a server or a client does, in the same order each time.
//!
//! Each waits for a word before the part that is tried, and after it. What follows then is done when nothing fails any
//! more: what was promised must be there to be read.

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

/// The blobs that a client downloads: as if a server had committed them long ago.
const BLOB_COUNT: usize = 10;

fn txn(n: usize) -> TxnId {
    TxnId([u8::try_from(n).unwrap_or(u8::MAX); 16])
}

fn size(n: usize) -> usize {
    30_000 + n * 1_111
}

/// Two of each three are of one bucket.
fn blob(n: usize) -> BlobId {
    let n = n as u64;
    BlobId { oid: Oid(n * BlobId::BUCKETS + n % 3 / 2), tid: Tid(1000 + n) }
}

fn content(n: usize) -> Vec<u8> {
    bytes(txn(n), blob(n).oid, Kind::Blob, size(n))
}

/// Makes what a script finds.
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
/// Larger than the database, and its log at first: a limit for files can be between.
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
    // A power cut may leave a part of the right length, with nothing in it.
    reader.download_part(blob(7), &vec![0; size(7)], true).context("could not prepare a cache")?;
    drop(reader);
    let dead = dir.join("tmp/blobferry-dead");
    fs::create_dir(&dead).context("could not prepare a cache")?;
    fs::write(dead.join(".lock"), "").context("could not prepare a cache")?;
    fs::write(dead.join("blob-half"), "half").context("could not prepare a cache")
}

/// What a server does. Whatever is refused is told by the committer: the script goes on.
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

/// Opening a store after a crash.
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

/// Forgetting old revisions.
pub(super) fn pack(dir: &Path, emit: Emit<'_>) {
    let dir = server(dir);
    let store = match SqliteStore::open(&dir, config()) {
        Ok(store) => store,
        Err(error) => return emit(Statement::Failed { what: error.to_string() }),
    };
    let committer = Committer::new(&store, &dir, 2, emit);
    pause(emit);
    // What fails is told.
    _ = committer.pack(store.last_tid());
    store.close();
    pause(emit);
    check_readable(&store, &committer, emit);
}

/// Nothing fails any more, but perhaps something has: what was committed must be there to be read.
fn check_readable(store: &dyn Store, committer: &Committer<'_>, emit: Emit<'_>) {
    for (tid, txn, change) in committer.committed() {
        let Some(size) = change.record else { continue };
        match store.load_serial(change.oid, *tid) {
            Ok(revision) if revision.data == bytes(*txn, change.oid, Kind::Record, size) => {}
            other => {
                let what = format!("object {} at {tid} can not be read any more: {other:?}", change.oid);
                emit(Statement::Violation { what });
            }
        }
    }
}

/// What a downloading client does.
pub(super) fn download(dir: &Path, emit: Emit<'_>) {
    let dir = cache(dir);
    pause(emit);
    if let Ok(reader) = Reader::open(&dir, emit) {
        // What fails is told, and the rest is tried.
        _ = reader.ensure_cached(blob(0), &content(0)); // of an earlier boot
        _ = reader.ensure_cached(blob(1), &content(1)); // somebody else has begun
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
        _ = reader.ensure_cached(blob(9), &content(9)); // of a pack
        _ = reader.download_part(blob(6), &content(6), true);
        _ = reader.ensure_cached(blob(7), &content(7)); // what is there of it is torn
        _ = reader.make_room((0..BLOB_COUNT).map(blob));
        _ = reader.ensure_cached(blob(0), &content(0));
    }
    pause(emit);
    let Ok(reader) = Reader::open(&dir, emit) else {
        return emit(Statement::Violation {
            what: "a cache can not be opened when nothing fails any more".to_owned(),
        });
    };
    for n in 8..BLOB_COUNT {
        if let Err(error) = reader.load(blob(n), &content(n)) {
            let what = format!("{} can not be loaded when nothing fails any more: {error}", blob(n));
            emit(Statement::Violation { what });
        }
    }
    for n in 0..BLOB_COUNT {
        if let Err(error) = reader.ensure_cached(blob(n), &content(n)) {
            let what = format!("{} can not be had when nothing fails any more: {error}", blob(n));
            emit(Statement::Violation { what });
        }
    }
}
