//! Scripts: each thing that a server or a client does, in the same order each time.
//!
//! Each waits for a word before the part that is tried, and after it. What follows then is done when nothing fails any
//! more: what was promised must be there to be read.

use std::fs;
use std::path::Path;

use blobferry_protocol::{BlobId, Oid, Tid, TxnId};
use blobferry_store::{SqliteStore, Store};

use super::clerk::{Act, Clerk, End};
use super::reader::Reader;
use super::{Role, Tell, cache, config, pause, server};
use crate::contents::{Kind, bytes};
use crate::ledger::{Change, Said};
use crate::wrong::{OrWrong, Wrong};

/// The blobs that a client downloads: as if a server had committed them long ago.
const BLOBS: usize = 10;

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
pub(crate) fn prepare(role: Role, dir: &Path, tell: Tell<'_>) -> Result<(), Wrong> {
    match role {
        Role::Client => prepare_cache(dir, tell),
        _ => prepare_store(dir, tell),
    }
}

fn prepare_store(dir: &Path, tell: Tell<'_>) -> Result<(), Wrong> {
    let dir = server(dir);
    let store = SqliteStore::open(&dir, config()).or_wrong("could not make a store")?;
    let mut clerk = Clerk::new(&store, &dir, 1, tell);
    let oids = clerk.new_oids(6).or_wrong("could not have oids")?;
    for round in 0..4 {
        let large = Act::Store(100, Some(10_000 + round));
        let acts: Vec<_> =
            oids.iter().enumerate().map(|(n, oid)| (*oid, if n % 2 == 0 { large } else { SMALL })).collect();
        clerk.commit(&acts).or_wrong("could not prepare a store")?;
    }
    let gone: Vec<_> = oids.iter().take(2).map(|oid| (*oid, Act::Delete)).collect();
    clerk.commit(&gone).or_wrong("could not prepare a store")?;
    store.close();
    Ok(())
}

const SMALL: Act = Act::Store(10, Some(1000));
/// Larger than the database, and its log at first: a limit for files can be between.
const LARGE: Act = Act::Store(10, Some(123_456));

fn prepare_cache(dir: &Path, tell: Tell<'_>) -> Result<(), Wrong> {
    for n in 0..BLOBS {
        let (txn, BlobId { oid, tid }) = (txn(n), blob(n));
        tell(Said::Intends { txn, changes: vec![Change { oid, record: Some(0), blob: Some(size(n)) }] });
        tell(Said::Committed { txn, tid });
    }
    let dir = cache(dir);
    let reader = Reader::open(&dir, tell).or_wrong("could not make a cache")?;
    reader.have(blob(0), &content(0)).or_wrong("could not prepare a cache")?;
    reader.begin(blob(1), &content(1), true).or_wrong("could not prepare a cache")?;
    // A power cut may leave a part of the right length, with nothing in it.
    reader.begin(blob(7), &vec![0; size(7)], true).or_wrong("could not prepare a cache")?;
    drop(reader);
    let dead = dir.join("tmp/blobferry-dead");
    fs::create_dir(&dead).or_wrong("could not prepare a cache")?;
    fs::write(dead.join(".lock"), "").or_wrong("could not prepare a cache")?;
    fs::write(dead.join("blob-half"), "half").or_wrong("could not prepare a cache")
}

/// What a server does. Whatever is refused is told by the clerk: the script goes on.
pub(super) fn serve(dir: &Path, closes: bool, tell: Tell<'_>) {
    let dir = server(dir);
    let store = match SqliteStore::open(&dir, config()) {
        Ok(store) => store,
        Err(error) => return tell(Said::Failed { what: error.to_string() }),
    };
    let mut clerk = Clerk::new(&store, &dir, 2, tell);
    _ = clerk.fence(); // by the committer, which therefore runs, and has its name
    pause(tell);
    let oids = clerk.new_oids(8).unwrap_or_default();
    if let [record, small, large, shared, other, ..] = oids[..] {
        let plain = Act::Store(3000, None);
        _ = clerk.commit(&[(large, LARGE)]);
        _ = clerk.commit(&[(record, plain), (small, SMALL)]);
        _ = clerk.commit(&[(shared, Act::Share(10, 12_345)), (other, LARGE)]);
        _ = clerk.commit(&[(record, LARGE), (small, Act::Delete), (large, plain)]);
        _ = clerk.transact(&[(record, LARGE), (shared, SMALL)], End::Abort);
        _ = clerk.transact(&[(other, LARGE)], End::AbortVoted);
        _ = clerk.fence();
    }
    if closes {
        store.close();
    }
    pause(tell);
    look(&store, &clerk, tell);
}

/// Opening a store after a crash.
pub(super) fn recover(dir: &Path, tell: Tell<'_>) {
    pause(tell);
    match SqliteStore::open(server(dir), config()) {
        Ok(store) => {
            pause(tell);
            look(&store, &Clerk::new(&store, &server(dir), 2, tell), tell);
        }
        Err(error) => {
            tell(Said::Failed { what: error.to_string() });
            pause(tell);
        }
    }
}

/// Forgetting old revisions.
pub(super) fn pack(dir: &Path, tell: Tell<'_>) {
    let dir = server(dir);
    let store = match SqliteStore::open(&dir, config()) {
        Ok(store) => store,
        Err(error) => return tell(Said::Failed { what: error.to_string() }),
    };
    let clerk = Clerk::new(&store, &dir, 2, tell);
    pause(tell);
    // What fails is told.
    _ = clerk.pack(store.last_tid());
    store.close();
    pause(tell);
    look(&store, &clerk, tell);
}

/// Nothing fails any more, but perhaps something has: what was committed must be there to be read.
fn look(store: &dyn Store, clerk: &Clerk<'_>, tell: Tell<'_>) {
    for (tid, txn, change) in clerk.committed() {
        let Some(size) = change.record else { continue };
        match store.load_serial(change.oid, *tid) {
            Ok(revision) if revision.data == bytes(*txn, change.oid, Kind::Record, size) => {}
            other => {
                let what = format!("object {} at {tid} can not be read any more: {other:?}", change.oid);
                tell(Said::Wrong { what });
            }
        }
    }
}

/// What a downloading client does.
pub(super) fn download(dir: &Path, tell: Tell<'_>) {
    let dir = cache(dir);
    pause(tell);
    if let Ok(reader) = Reader::open(&dir, tell) {
        // What fails is told, and the rest is tried.
        _ = reader.have(blob(0), &content(0)); // of an earlier boot
        _ = reader.have(blob(1), &content(1)); // somebody else has begun
        _ = reader.have(blob(2), &content(2));
        _ = reader.pin(blob(2));
        _ = reader.begin(blob(3), &content(3), false);
        _ = reader.begin(blob(3), &content(3), true);
        _ = reader.have(blob(3), &content(3));
        _ = reader.write(blob(4), &content(4));
        let file = dir.with_file_name("a file");
        if fs::write(&file, content(5)).is_ok() {
            _ = reader.copy(blob(5), &file);
        }
        _ = reader.load(blob(8), &content(8));
        _ = reader.load(blob(9), &content(9));
        _ = reader.load(blob(8), &content(8));
        _ = reader.have(blob(9), &content(9)); // of a pack
        _ = reader.begin(blob(6), &content(6), true);
        _ = reader.have(blob(7), &content(7)); // what is there of it is torn
        _ = reader.make_room((0..BLOBS).map(blob));
        _ = reader.have(blob(0), &content(0));
    }
    pause(tell);
    let Ok(reader) = Reader::open(&dir, tell) else {
        return tell(Said::Wrong {
            what: "a cache can not be opened when nothing fails any more".to_owned(),
        });
    };
    for n in 8..BLOBS {
        if let Err(error) = reader.load(blob(n), &content(n)) {
            let what = format!("{} can not be loaded when nothing fails any more: {error}", blob(n));
            tell(Said::Wrong { what });
        }
    }
    for n in 0..BLOBS {
        if let Err(error) = reader.have(blob(n), &content(n)) {
            let what = format!("{} can not be had when nothing fails any more: {error}", blob(n));
            tell(Said::Wrong { what });
        }
    }
}
