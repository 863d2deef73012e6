//! Traffic: several who commit at once, and one who downloads what they have committed, until the end.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use blobferry_protocol::{BlobId, Oid, RequestError};
use blobferry_store::SqliteStore;
use fastrand::Rng;

use super::clerk::{Act, Clerk, End};
use super::reader::Reader;
use super::{Tell, cache, config, server};
use crate::contents::{Kind, bytes};
use crate::ledger::Said;

const CLERKS: u64 = 3;
/// More than the store keeps in the log of its database: afterwards the log is written from its beginning again.
const BULK: usize = 1_150_000;

/// Does all of this until nothing works any more, which ends well where it was to be expected.
pub(super) fn run(dir: &Path, seed: u64, tell: Tell<'_>) {
    let store = match SqliteStore::open(server(dir), config()) {
        Ok(store) => store,
        Err(error) => return tell(Said::Failed { what: error.to_string() }),
    };
    let (send, blobs) = mpsc::channel();
    let giving = Mutex::new(());
    thread::scope(|scope| {
        for n in 0..CLERKS {
            let lane = seed.wrapping_mul(CLERKS).wrapping_add(n);
            let (send, giving, dice) = (send.clone(), &giving, Rng::with_seed(lane));
            let clerk = Clerk::new(&store, &server(dir), lane, tell);
            scope.spawn(move || Worker { clerk, dice, giving, send }.work(n == 0));
        }
        drop(send);
        // What can not be had is told.
        scope.spawn(|| read(dir, Rng::with_seed(!seed), blobs, tell));
    });
}

/// Someone at work.
struct Worker<'a> {
    clerk: Clerk<'a>,
    dice: Rng,
    /// Oids are told in the order in which they are given.
    giving: &'a Mutex<()>,
    /// To the one who downloads.
    send: Sender<(BlobId, Vec<u8>)>,
}

impl Worker<'_> {
    fn work(mut self, packs: bool) {
        // Commits that write over an old log leave the journal of the file system nothing to do: then nothing but what
        // is synced by itself is safe.
        let mut next = if packs && self.dice.u8(..4) > 0 { self.bulk() } else { Ok(()) };
        while next.is_ok() {
            next = self.step(packs);
        }
    }

    fn step(&mut self, packs: bool) -> Result<(), RequestError> {
        let known = self.clerk.objects();
        let some = |dice: &mut Rng| dice.choice(known.iter().copied());
        match self.dice.u8(..12) {
            0..5 => self.create(End::Commit),
            5..7 => match some(&mut self.dice) {
                Some(oid) => {
                    let act = act(&mut self.dice);
                    self.commit(&[(oid, act)])
                }
                None => self.create(End::Commit),
            },
            7 => match some(&mut self.dice) {
                Some(oid) => self.commit(&[(oid, Act::Delete)]),
                None => Ok(()),
            },
            8 => self.create(End::Abort),
            9 => self.create(End::AbortVoted),
            10 => self.clerk.fence(),
            _ => match self.clerk.committed().last() {
                Some((before, ..)) if packs => self.clerk.pack(*before),
                _ => Ok(()),
            },
        }
    }

    fn create(&mut self, end: End) -> Result<(), RequestError> {
        let count = self.dice.u64(1..5);
        let oids = self.new_oids(count)?;
        let acts: Vec<_> = oids.into_iter().map(|oid| (oid, act(&mut self.dice))).collect();
        match end {
            End::Commit => self.commit(&acts),
            end => self.clerk.transact(&acts, end).map(drop),
        }
    }

    fn bulk(&mut self) -> Result<(), RequestError> {
        let oids = self.new_oids(4)?;
        let acts = |act| oids.iter().map(|oid| (*oid, act)).collect::<Vec<_>>();
        self.clerk.commit(&acts(Act::Store(BULK, None)))?;
        self.clerk.commit(&acts(Act::Delete)).map(drop)
    }

    fn commit(&mut self, acts: &[(Oid, Act)]) -> Result<(), RequestError> {
        let tid = self.clerk.commit(acts)?;
        for (_, txn, change) in self.clerk.committed().iter().rev().take_while(|(of, ..)| *of == tid) {
            if let Some(size) = change.blob {
                let blob = BlobId { oid: change.oid, tid };
                // Who downloads may have stopped.
                _ = self.send.send((blob, bytes(*txn, change.oid, Kind::Blob, size)));
            }
        }
        Ok(())
    }

    fn new_oids(&self, count: u64) -> Result<Vec<Oid>, RequestError> {
        let _turn = self.giving.lock().unwrap_or_else(PoisonError::into_inner);
        self.clerk.new_oids(u32::try_from(count).unwrap_or(1))
    }
}

/// A record, with no blob, or one of any kind.
fn act(dice: &mut Rng) -> Act {
    let record = dice.usize(..500);
    match dice.u8(..6) {
        0 => Act::Store(record, None),
        1 => Act::Store(record, Some(dice.usize(..4097))),
        2 => Act::Share(record, dice.usize(4097..24_000)),
        _ => Act::Store(record, Some(dice.usize(4097..24_000))),
    }
}

/// Has the blobs of which it is told in a cache, in one way or another.
fn read(dir: &Path, mut dice: Rng, blobs: Receiver<(BlobId, Vec<u8>)>, tell: Tell<'_>) {
    let (cache, file) = (cache(dir), dir.join("a file"));
    let Ok(reader) = Reader::open(&cache, tell) else { return };
    for (blob, bytes) in blobs {
        let done = match dice.u8(..10) {
            0 => reader.write(blob, &bytes),
            1 => reader.begin(blob, &bytes, true),
            2 => reader.begin(blob, &bytes, true).and_then(|()| reader.have(blob, &bytes)),
            3 | 4 if fs::write(&file, &bytes).is_ok() => reader.copy(blob, &file),
            5..8 => reader.load(blob, &bytes),
            _ => reader.have(blob, &bytes),
        };
        if done.is_err() {
            return;
        }
    }
}
