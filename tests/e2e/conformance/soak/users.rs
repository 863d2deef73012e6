//! Users of the soak test: writers record each store in the ledger first; readers compare with the
//! ledger.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blobferry_protocol::{BlobId, Oid, RequestError, Tid};
use blobferry_session::client::{BlobSource, CallError, VoteError};

use super::ledger::{Content, Ledger, Reported};
use super::random::Random;
use crate::conformance::transport::{Client, OnProgress, Transaction};

/// State that all users share.
pub(super) struct Users {
    pub(super) ledger: Ledger,
    /// Directory of the files that are stored.
    pub(super) files: PathBuf,
    /// Objects that all writers write to.
    pub(super) shared: Vec<Oid>,
    /// Number of starts and stops of the server.
    pub(super) restarts: AtomicU64,
    pub(super) over: AtomicBool,
    pub(super) counters: Counters,
}

/// Numbers of results and conflicts.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Number of results by call and kind.
    pub(super) ends: Mutex<BTreeMap<(&'static str, String), u64>>,
    pub(super) conflicts: AtomicU64,
    /// Uploads that resumed at the server's offset behind the beginning.
    pub(super) resumed_uploads: AtomicU64,
    pub(super) resumed_downloads: AtomicU64,
    pub(super) stored: AtomicU64,
    pub(super) loaded: AtomicU64,
}

/// Sizes of blobs in bytes: empty, inside the database, in a file, and long enough to be
/// interrupted.
const SIZES: [usize; 6] = [0, 10 << 10, 10 << 10, 70 << 10, 70 << 10, 3_000_000];
/// Offset in bytes beyond any first chunk: a transfer at this offset has been under way.
const RESUMED_BEYOND: u64 = 300_000;

impl Users {
    /// Commits transactions until the test is over.
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
        let restarts = self.restarts.load(Ordering::SeqCst);
        let transaction = client.begin();
        let number = self.ledger.begin(transaction.id());
        let ended = self.attempt(transaction, number, oids, random);
        let same_server = restarts == self.restarts.load(Ordering::SeqCst);
        let outcome = ended.unwrap_or_else(|(step, error)| {
            self.note(step, &error);
            let lost = matches!(error, CallError::Disconnected { .. } | CallError::NotCommitted { .. });
            // Only a voted transaction may be lost with its connection.
            let expected = matches!(step, "vote" | "finish") && lost;
            assert!(expected || !same_server, "attempt {number}: {step} ended in {error:?}");
            match error {
                CallError::OutcomeUnknown { .. } => Reported::Unknown,
                CallError::Disconnected { .. } | CallError::NotCommitted { .. } => Reported::NotCommitted,
                CallError::Refused(
                    RequestError::Stopping
                    | RequestError::Doomed { .. }
                    | RequestError::Aborted { .. }
                    | RequestError::NoSuchTransaction { .. },
                ) => Reported::NotCommitted,
                error => panic!("attempt {number}: {step} ended in {error:?}"),
            }
        });
        self.ledger.end(number, outcome);
    }

    fn note(&self, step: &'static str, what: &impl std::fmt::Debug) {
        let text = format!("{what:?}");
        let kind = text.split([' ', '{', '(']).find(|word| !word.is_empty() && *word != "Refused");
        let kind = (step, kind.unwrap_or_default().to_owned());
        *self.counters.ends.lock().unwrap().entry(kind).or_default() += 1;
    }

    fn attempt(
        &self,
        mut transaction: Box<dyn Transaction>,
        number: usize,
        oids: &[Oid],
        random: &mut Random,
    ) -> Result<Reported, (&'static str, CallError)> {
        self.store_all(&*transaction, number, oids, random).map_err(|error| ("store", error))?;
        match random.below(10) {
            0 => drop(transaction),
            // Whatever the abort returns, the transaction is not committed.
            1 => drop(transaction.abort()),
            2..6 => {
                while let Err(error) = transaction.vote() {
                    self.resolve(&*transaction, number, error).map_err(|error| ("vote", error))?;
                }
                let tid = transaction.finish().map_err(|error| ("finish", error))?;
                self.note("finish", &"Ok");
                return Ok(Reported::Committed(tid));
            }
            _ => loop {
                match transaction.commit() {
                    Ok(tid) => {
                        self.note("commit", &"Ok");
                        return Ok(Reported::Committed(tid));
                    }
                    Err(error) => {
                        self.resolve(&*transaction, number, error).map_err(|error| ("commit", error))?
                    }
                }
            },
        }
        self.note("abort", &"Ok");
        Ok(Reported::NotCommitted)
    }

    /// Stores all objects of a transaction concurrently.
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
        let (base, content) = (self.ledger.current(oid), self.ledger.put(number, oid, size));
        let data = content.record.clone().into_bytes();
        if size.is_none() {
            return transaction.store(oid, base, data);
        }
        let path = self.files.join(format!("{number}-{oid}"));
        let (bytes, how) = (content.bytes(), random.below(5));
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
                return stored.map(|info| self.is_stored(&content, info.size));
            }
        };
        let watched = Watched::default();
        let stored = transaction.store_blob_with(oid, base, data, source, watched.watch());
        watched.count(&self.counters.resumed_uploads);
        if path.exists() {
            std::fs::remove_file(&path).unwrap();
        }
        stored.map(|info| self.is_stored(&content, info.size))
    }

    fn is_stored(&self, content: &Content, size: u64) {
        assert_eq!(content.size, Some(usize::try_from(size).unwrap()));
        self.counters.stored.fetch_add(size, Ordering::Relaxed);
    }

    /// Stores conflicting objects again; returns every other error.
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
        self.counters.conflicts.fetch_add(1, Ordering::Relaxed);
        for conflict in conflicts {
            let content = self.ledger.put(number, conflict.oid, None);
            transaction.store(conflict.oid, conflict.committed, content.record.into_bytes())?;
        }
        Ok(())
    }

    /// Reads until the test is over. No read may fail.
    pub(super) fn read(&self, client: &dyn Client, mut random: Random) {
        while !self.over.load(Ordering::Relaxed) {
            let Some((blob, content)) = self.ledger.any(&mut random) else {
                std::thread::yield_now();
                continue;
            };
            match random.below(6) {
                0 => self.read_current(client, blob.oid),
                1 => self.read_history(client, blob.oid),
                2 => self.ledger.check(blob.oid, &client.load_serial(blob.oid, blob.tid).unwrap()),
                3 if content.size.is_some() => self.read_range(client, blob, &content, &mut random),
                _ if content.size.is_some() => self.read_blob(client, blob, &content),
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

    fn read_blob(&self, client: &dyn Client, blob: BlobId, content: &Content) {
        let watched = Watched::default();
        let cached = client.load_blob_with(blob, watched.watch()).unwrap();
        watched.count(&self.counters.resumed_downloads);
        assert!(std::fs::read(cached.path()).unwrap() == content.bytes(), "{blob:?} is not {content:?}");
        self.counters.loaded.fetch_add(cached.size(), Ordering::Relaxed);
    }

    fn read_range(&self, client: &dyn Client, blob: BlobId, content: &Content, random: &mut Random) {
        let size = content.size.unwrap_or(0) as u64;
        let from = random.below(size + 1);
        let upto = from + random.below(size - from + 100);
        let range = usize::try_from(from).unwrap()..usize::try_from(upto.min(size)).unwrap();
        let bytes = client.load_range(blob, from..upto).unwrap();
        assert!(bytes == content.bytes()[range], "{from}..{upto} of {blob:?} is not {content:?}");
        self.counters.loaded.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
}

/// Progress of a transfer, and whether it resumed behind [`RESUMED_BEYOND`].
#[derive(Default)]
struct Watched(std::sync::Arc<Mutex<(u64, bool)>>);

impl Watched {
    fn watch(&self) -> OnProgress {
        let watched = self.0.clone();
        Box::new(move |progress| {
            let (done, resumed) = &mut *watched.lock().unwrap();
            *resumed |= progress.done <= *done && progress.done > RESUMED_BEYOND;
            *done = progress.done;
        })
    }

    fn count(&self, resumed: &AtomicU64) {
        resumed.fetch_add(u64::from(self.0.lock().unwrap().1), Ordering::Relaxed);
    }
}
