//! Traffic: several threads commit at once, and one thread downloads what they have committed,
//! until the end.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use blobferry_platform::sync::Mutex;
use blobferry_protocol::{BlobId, Oid, RequestError};
use blobferry_store::SqliteStore;
use fastrand::Rng;

use super::committer::{Committer, End, Op};
use super::reader::Reader;
use super::{Emit, cache, config, server};
use crate::contents::{Kind, bytes};
use crate::ledger::Statement;

const COMMITTERS: u64 = 3;
/// More bytes than the log of the store's database keeps: afterwards the log is written from its
/// beginning again.
const BULK: usize = 1_150_000;

/// Makes traffic until nothing works any more, which is how it is expected to end.
pub(super) fn run(dir: &Path, seed: u64, emit: Emit<'_>) {
    let store = match SqliteStore::open(server(dir), config()) {
        Ok(store) => store,
        Err(error) => return emit(Statement::Failed { what: error.to_string() }),
    };
    let (send, blobs) = mpsc::channel();
    let giving = Mutex::new(());
    thread::scope(|scope| {
        for n in 0..COMMITTERS {
            let stream = seed.wrapping_mul(COMMITTERS).wrapping_add(n);
            let (send, giving, rng) = (send.clone(), &giving, Rng::with_seed(stream));
            let committer = Committer::new(&store, &server(dir), stream, emit);
            scope.spawn(move || Worker { committer, rng, giving, send }.work(n == 0));
        }
        drop(send);
        // The reader states what cannot be read.
        scope.spawn(|| read(dir, Rng::with_seed(!seed), blobs, emit));
    });
}

/// A thread that commits.
struct Worker<'a> {
    committer: Committer<'a>,
    rng: Rng,
    /// Locked so that oids are stated in the order in which they are allocated.
    giving: &'a Mutex<()>,
    /// To the thread that downloads.
    send: Sender<(BlobId, Vec<u8>)>,
}

impl Worker<'_> {
    fn work(mut self, may_pack: bool) {
        // Commits that overwrite an old log leave the file system's journal nothing to do. Then
        // only explicit syncs make data safe.
        let mut next = if may_pack && self.rng.u8(..4) > 0 { self.bulk() } else { Ok(()) };
        while next.is_ok() {
            next = self.step(may_pack);
        }
    }

    fn step(&mut self, may_pack: bool) -> Result<(), RequestError> {
        let known = self.committer.objects();
        let some = |rng: &mut Rng| rng.choice(known.iter().copied());
        match self.rng.u8(..12) {
            0..5 => self.create(End::Commit),
            5..7 => match some(&mut self.rng) {
                Some(oid) => {
                    let op = op(&mut self.rng);
                    self.commit(&[(oid, op)])
                }
                None => self.create(End::Commit),
            },
            7 => match some(&mut self.rng) {
                Some(oid) => self.commit(&[(oid, Op::Delete)]),
                None => Ok(()),
            },
            8 => self.create(End::Abort),
            9 => self.create(End::AbortVoted),
            10 => self.committer.fence(),
            _ => match self.committer.committed().last() {
                Some((before, ..)) if may_pack => self.committer.pack(*before),
                _ => Ok(()),
            },
        }
    }

    fn create(&mut self, end: End) -> Result<(), RequestError> {
        let count = self.rng.u64(1..5);
        let oids = self.new_oids(count)?;
        let ops: Vec<_> = oids.into_iter().map(|oid| (oid, op(&mut self.rng))).collect();
        match end {
            End::Commit => self.commit(&ops),
            end => self.committer.transact(&ops, end).map(drop),
        }
    }

    fn bulk(&mut self) -> Result<(), RequestError> {
        let oids = self.new_oids(4)?;
        let ops = |op| oids.iter().map(|oid| (*oid, op)).collect::<Vec<_>>();
        self.committer.commit(&ops(Op::Store(BULK, None)))?;
        self.committer.commit(&ops(Op::Delete)).map(drop)
    }

    fn commit(&mut self, ops: &[(Oid, Op)]) -> Result<(), RequestError> {
        let tid = self.committer.commit(ops)?;
        for (_, txn, change) in self.committer.committed().iter().rev().take_while(|(of, ..)| *of == tid) {
            if let Some(size) = change.blob {
                let blob = BlobId { oid: change.oid, tid };
                // The thread that downloads may have stopped.
                _ = self.send.send((blob, bytes(*txn, change.oid, Kind::Blob, size)));
            }
        }
        Ok(())
    }

    fn new_oids(&self, count: u64) -> Result<Vec<Oid>, RequestError> {
        let _turn = self.giving.lock();
        self.committer.new_oids(u32::try_from(count).unwrap_or(1))
    }
}

/// Returns a record, with a blob of any kind or none.
fn op(rng: &mut Rng) -> Op {
    let record = rng.usize(..500);
    match rng.u8(..6) {
        0 => Op::Store(record, None),
        1 => Op::Store(record, Some(rng.usize(..4097))),
        2 => Op::Share(record, rng.usize(4097..24_000)),
        _ => Op::Store(record, Some(rng.usize(4097..24_000))),
    }
}

/// Caches the blobs that were committed, in various ways.
fn read(dir: &Path, mut rng: Rng, blobs: Receiver<(BlobId, Vec<u8>)>, emit: Emit<'_>) {
    let (cache, file) = (cache(dir), dir.join("a file"));
    let Ok(reader) = Reader::open(&cache, emit) else { return };
    for (blob, bytes) in blobs {
        let done = match rng.u8(..10) {
            0 => reader.write(blob, &bytes),
            1 => reader.download_part(blob, &bytes, true),
            2 => reader.download_part(blob, &bytes, true).and_then(|()| reader.ensure_cached(blob, &bytes)),
            3 | 4 if fs::write(&file, &bytes).is_ok() => reader.copy(blob, &file),
            5..8 => reader.load(blob, &bytes),
            _ => reader.ensure_cached(blob, &bytes),
        };
        if done.is_err() {
            return;
        }
    }
}
