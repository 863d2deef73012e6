//! Who is out in the proxy: writers, who note down before what they do, and readers, who believe nothing that is not in
//! the ledger.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blobferry_protocol::{BlobId, Oid, RequestError, Tid};
use blobferry_session::client::{BlobSource, CallError, VoteError};

use super::ledger::{Fate, Ledger, Thing};
use super::random::Random;
use crate::conformance::transport::{Client, OnProgress, Transaction};

/// What they all share.
pub(super) struct Users {
    pub(super) ledger: Ledger,
    /// Where files are that are stored.
    pub(super) files: PathBuf,
    /// Objects that everybody writes to.
    pub(super) shared: Vec<Oid>,
    /// Counts starts and ends of servers.
    pub(super) era: AtomicU64,
    pub(super) over: AtomicBool,
    pub(super) tally: Tally,
}

/// What they have met with.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// How calls have ended, by what was asked for and what came of it.
    pub(super) ends: Mutex<BTreeMap<(&'static str, String), u64>>,
    pub(super) conflicts: AtomicU64,
    /// Uploads that went back to where the server was, which was not the beginning.
    pub(super) resumed_uploads: AtomicU64,
    pub(super) resumed_downloads: AtomicU64,
    pub(super) stored: AtomicU64,
    pub(super) loaded: AtomicU64,
}

/// Sizes of blobs: none, inside of the database, a file, and one that takes a while.
const SIZES: [usize; 6] = [0, 10 << 10, 10 << 10, 70 << 10, 70 << 10, 3_000_000];
/// More than any chunk, so that a transfer that is here has not just begun.
const WELL_ON: u64 = 300_000;

impl Users {
    /// Commits things as long as the proxy lasts.
    pub(super) fn write(&self, client: &dyn Client, mut random: Random) {
        let mut own = vec![client.new_oids(1).unwrap()[0]];
        while !self.over.load(Ordering::Relaxed) {
            let mut oids = client.new_oids(1 + u32::try_from(random.below(2)).unwrap()).unwrap();
            if random.below(3) == 0 {
                own.push(oids[0]);
            }
            oids.extend((random.below(2) == 0).then(|| *random.one_of(&own)));
            oids.extend((random.below(2) == 0).then(|| *random.one_of(&self.shared)));
            oids.sort();
            oids.dedup();
            self.transact(client, &oids, &mut random);
        }
    }

    fn transact(&self, client: &dyn Client, oids: &[Oid], random: &mut Random) {
        let era = self.era.load(Ordering::SeqCst);
        let transaction = client.begin();
        let number = self.ledger.begin(transaction.id());
        let ended = self.attempt(transaction, number, oids, random);
        let same_era = era == self.era.load(Ordering::SeqCst);
        let fate = ended.unwrap_or_else(|(step, error)| {
            self.note(step, &error);
            let lost = matches!(error, CallError::Disconnected { .. } | CallError::NotCommitted { .. });
            // Only what was voted for, and waited for, must not outlive its connection.
            let expected = matches!(step, "vote" | "finish") && lost;
            assert!(expected || !same_era, "attempt {number}: {step} ended in {error:?}");
            match error {
                CallError::OutcomeUnknown { .. } => Fate::Unknown,
                CallError::Disconnected { .. } | CallError::NotCommitted { .. } => Fate::Never,
                CallError::Refused(
                    RequestError::Stopping
                    | RequestError::Doomed { .. }
                    | RequestError::Aborted { .. }
                    | RequestError::NoSuchTransaction { .. },
                ) => Fate::Never,
                error => panic!("attempt {number}: {step} ended in {error:?}"),
            }
        });
        self.ledger.end(number, fate);
    }

    fn note(&self, step: &'static str, what: &impl std::fmt::Debug) {
        let text = format!("{what:?}");
        let kind = text.split([' ', '{', '(']).find(|word| !word.is_empty() && *word != "Refused");
        let kind = (step, kind.unwrap_or_default().to_owned());
        *self.tally.ends.lock().unwrap().entry(kind).or_default() += 1;
    }

    fn attempt(
        &self,
        mut transaction: Box<dyn Transaction>,
        number: usize,
        oids: &[Oid],
        random: &mut Random,
    ) -> Result<Fate, (&'static str, CallError)> {
        self.store_all(&*transaction, number, oids, random).map_err(|error| ("store", error))?;
        match random.below(10) {
            0 => drop(transaction),
            // Whatever comes of it: it is not committed.
            1 => drop(transaction.abort()),
            2..6 => {
                while let Err(error) = transaction.vote() {
                    self.resolve(&*transaction, number, error).map_err(|error| ("vote", error))?;
                }
                let tid = transaction.finish().map_err(|error| ("finish", error))?;
                self.note("finish", &"Ok");
                return Ok(Fate::Committed(tid));
            }
            _ => loop {
                match transaction.commit() {
                    Ok(tid) => {
                        self.note("commit", &"Ok");
                        return Ok(Fate::Committed(tid));
                    }
                    Err(error) => {
                        self.resolve(&*transaction, number, error).map_err(|error| ("commit", error))?
                    }
                }
            },
        }
        self.note("abort", &"Ok");
        Ok(Fate::Never)
    }

    /// Stores what a transaction is to hold, all at once.
    fn store_all(
        &self,
        transaction: &dyn Transaction,
        number: usize,
        oids: &[Oid],
        random: &mut Random,
    ) -> Result<(), CallError> {
        std::thread::scope(|scope| {
            let store = |&oid: &Oid| {
                let mut random = random.branch(oid.0);
                scope.spawn(move || self.store(transaction, number, oid, &mut random))
            };
            let storing: Vec<_> = oids.iter().map(store).collect();
            random.next();
            storing.into_iter().try_for_each(|storing| storing.join().unwrap())
        })
    }

    fn store(
        &self,
        transaction: &dyn Transaction,
        number: usize,
        oid: Oid,
        random: &mut Random,
    ) -> Result<(), CallError> {
        let size = (random.below(4) > 0).then(|| *random.one_of(&SIZES));
        let (base, thing) = (self.ledger.current(oid), self.ledger.put(number, oid, size));
        let data = thing.record.clone().into_bytes();
        if size.is_none() {
            return transaction.store(oid, base, data);
        }
        let path = self.files.join(format!("{number}-{oid}"));
        let (bytes, how) = (thing.bytes(), random.below(5));
        if how > 0 {
            std::fs::write(&path, &bytes).unwrap();
        }
        let source = match how {
            0 => BlobSource::bytes(bytes),
            1 => BlobSource::streamed(&path),
            2 => BlobSource::copied(&path),
            3 => BlobSource::moved(&path),
            _ => {
                let stored = transaction.store_reader(oid, base, data, File::open(&path).unwrap());
                std::fs::remove_file(&path).unwrap();
                return stored.map(|info| self.is_stored(&thing, info.size));
            }
        };
        let watched = Watched::default();
        let stored = transaction.store_blob_with(oid, base, data, source, watched.watch());
        watched.count(&self.tally.resumed_uploads);
        if path.exists() {
            std::fs::remove_file(&path).unwrap();
        }
        stored.map(|info| self.is_stored(&thing, info.size))
    }

    fn is_stored(&self, thing: &Thing, size: u64) {
        assert_eq!(thing.size, Some(usize::try_from(size).unwrap()));
        self.tally.stored.fetch_add(size, Ordering::Relaxed);
    }

    /// Stores anew what others were faster with; every other error is one.
    fn resolve(
        &self,
        transaction: &dyn Transaction,
        number: usize,
        error: VoteError,
    ) -> Result<(), CallError> {
        let conflicts = match error {
            VoteError::Conflict(conflicts) => conflicts,
            VoteError::Call(error) => return Err(error),
        };
        self.tally.conflicts.fetch_add(1, Ordering::Relaxed);
        for conflict in conflicts {
            let thing = self.ledger.put(number, conflict.oid, None);
            transaction.store(conflict.oid, conflict.committed, thing.record.into_bytes())?;
        }
        Ok(())
    }

    /// Reads as long as the proxy lasts. Nothing that reads may ever fail.
    pub(super) fn read(&self, client: &dyn Client, mut random: Random) {
        while !self.over.load(Ordering::Relaxed) {
            let Some((blob, thing)) = self.ledger.any(&mut random) else {
                std::thread::yield_now();
                continue;
            };
            match random.below(6) {
                0 => self.read_current(client, blob.oid),
                1 => self.read_history(client, blob.oid),
                2 => self.ledger.check(blob.oid, &client.load_serial(blob.oid, blob.tid).unwrap()),
                3 if thing.size.is_some() => self.read_range(client, blob, &thing, &mut random),
                _ if thing.size.is_some() => self.read_blob(client, blob, &thing),
                _ => {}
            }
            self.note("read", &"Ok");
        }
    }

    fn read_current(&self, client: &dyn Client, oid: Oid) {
        let known = self.ledger.current(oid);
        let revision = client.load(oid).unwrap();
        assert!(revision.tid >= known, "{oid} was at {known} before");
        self.ledger.check(oid, &revision);
    }

    fn read_history(&self, client: &dyn Client, oid: Oid) {
        let known = self.ledger.committed();
        let tids: Vec<Tid> = client.history(oid, 1000).unwrap().iter().map(|entry| entry.tid).collect();
        assert!(tids.is_sorted_by(|a, b| a > b), "{tids:?}");
        let missing = known.keys().find(|blob| blob.oid == oid && !tids.contains(&blob.tid));
        assert_eq!(missing, None);
    }

    fn read_blob(&self, client: &dyn Client, blob: BlobId, thing: &Thing) {
        let watched = Watched::default();
        let cached = client.load_blob_with(blob, watched.watch()).unwrap();
        watched.count(&self.tally.resumed_downloads);
        assert!(std::fs::read(cached.path()).unwrap() == thing.bytes(), "{blob:?} is not {thing:?}");
        self.tally.loaded.fetch_add(cached.size(), Ordering::Relaxed);
    }

    fn read_range(&self, client: &dyn Client, blob: BlobId, thing: &Thing, random: &mut Random) {
        let size = thing.size.unwrap_or(0) as u64;
        let from = random.below(size + 1);
        let upto = from + random.below(size - from + 100);
        let range = usize::try_from(from).unwrap()..usize::try_from(upto.min(size)).unwrap();
        let bytes = client.load_range(blob, from..upto).unwrap();
        assert!(bytes == thing.bytes()[range], "{from}..{upto} of {blob:?} is not {thing:?}");
        self.tally.loaded.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
}

/// How far a transfer got, and where it went on.
#[derive(Default)]
struct Watched(std::sync::Arc<Mutex<(u64, bool)>>);

impl Watched {
    fn watch(&self) -> OnProgress {
        let watched = self.0.clone();
        Box::new(move |progress| {
            let (done, resumed) = &mut *watched.lock().unwrap();
            *resumed |= progress.done <= *done && progress.done > WELL_ON;
            *done = progress.done;
        })
    }

    fn count(&self, resumed: &AtomicU64) {
        resumed.fetch_add(u64::from(self.0.lock().unwrap().1), Ordering::Relaxed);
    }
}
