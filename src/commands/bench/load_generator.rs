//! Concurrent callers on one connection: tasks or threads, according to the transport.
//!
//! On tokio a caller is a task of the connection's runtime. On mio it is a thread that sleeps until
//! its answer arrives. Both make the same calls: see [`Work::begin`].

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use blobferry_protocol::{BlobId, Oid, Tid, TxnMeta};
use blobferry_session::client::{BlobSource, CallError, Completion, Session, Transaction, VoteError};
use blobferry_transport_mio as mio;
use blobferry_transport_tokio as tokio_transport;
use bytes::Bytes;
use hdrhistogram::Histogram;

use super::messages::CallTimes;
use crate::transport::Transport;

/// The work of callers, in numbered pieces.
pub(super) enum Work {
    /// Store a file, each time as another blob.
    StoreFile { path: PathBuf, oids: Vec<Oid> },
    /// Commit a small blob.
    CommitBlob { bytes: Bytes, oids: Vec<Oid> },
    /// Commit an object.
    CommitObject { record: Vec<u8>, oids: Vec<Oid> },
    /// Load a blob into a file of the cache.
    LoadBlob { blobs: Vec<BlobId> },
    /// Load a blob into memory.
    LoadBytes { blobs: Vec<BlobId> },
    /// Load an object.
    LoadObject { oids: Vec<Oid> },
    /// Load the same object repeatedly, until other work ends.
    Ping { oid: Oid },
}

type Done = Completion<Tid, VoteError>;

impl Work {
    /// Returns the number of pieces.
    fn count(&self) -> usize {
        match self {
            Work::StoreFile { oids, .. }
            | Work::CommitBlob { oids, .. }
            | Work::CommitObject { oids, .. }
            | Work::LoadObject { oids } => oids.len(),
            Work::LoadBlob { blobs } | Work::LoadBytes { blobs } => blobs.len(),
            Work::Ping { .. } => usize::MAX,
        }
    }

    /// Returns the object that a piece commits.
    fn commits(&self, piece: usize) -> Option<Oid> {
        match self {
            Work::StoreFile { oids, .. }
            | Work::CommitBlob { oids, .. }
            | Work::CommitObject { oids, .. } => oids.get(piece).copied(),
            Work::LoadBlob { .. } | Work::LoadBytes { .. } | Work::LoadObject { .. } | Work::Ping { .. } => {
                None
            }
        }
    }

    /// Begins a piece. The caller keeps the returned transaction until the piece is done.
    fn begin(&self, session: &Session, piece: usize, done: Done) -> Option<Transaction> {
        match self {
            Work::StoreFile { path, oids } => {
                let blob = BlobSource::streamed(path);
                commit(session, oid(oids, piece), Vec::new(), Some(blob), done)
            }
            Work::CommitBlob { bytes, oids } => {
                let blob = BlobSource::bytes(bytes.clone());
                commit(session, oid(oids, piece), Vec::new(), Some(blob), done)
            }
            Work::CommitObject { record, oids } => {
                commit(session, oid(oids, piece), record.clone(), None, done)
            }
            Work::LoadBlob { blobs } => {
                let blob = blob(blobs, piece);
                session.load_blob(blob, None, Box::new(|loaded| done(nothing_committed(loaded))));
                None
            }
            Work::LoadBytes { blobs } => {
                let blob = blob(blobs, piece);
                session.load_bytes(blob, Box::new(|loaded| done(nothing_committed(loaded))));
                None
            }
            Work::LoadObject { oids } => load(session, oid(oids, piece), done),
            Work::Ping { oid } => load(session, *oid, done),
        }
    }
}

/// Commits a new object in one round trip: sends the commit after the store, without waiting for
/// the store's answer. If the store fails, so does the commit.
fn commit(
    session: &Session,
    oid: Oid,
    record: Vec<u8>,
    blob: Option<BlobSource>,
    done: Done,
) -> Option<Transaction> {
    let mut transaction = match session.begin(TxnMeta::default()) {
        Ok(transaction) => transaction,
        Err(error) => {
            done(Err(error.into()));
            return None;
        }
    };
    match blob {
        Some(blob) => transaction.store_blob(oid, Tid::ZERO, record, blob, None, Box::new(|_| {})),
        None => transaction.store(oid, Tid::ZERO, record, Box::new(|_| {})),
    }
    transaction.commit(done);
    Some(transaction)
}

fn load(session: &Session, oid: Oid, done: Done) -> Option<Transaction> {
    session.load(oid, Box::new(|loaded| done(nothing_committed(loaded))));
    None
}

fn oid(oids: &[Oid], piece: usize) -> Oid {
    oids.get(piece).copied().unwrap_or_default()
}

fn blob(blobs: &[BlobId], piece: usize) -> BlobId {
    blobs.get(piece).copied().unwrap_or(BlobId { oid: Oid::ROOT, tid: Tid::ZERO })
}

/// Drops a loaded value, and converts its result.
fn nothing_committed<T>(loaded: Result<T, CallError>) -> Result<Tid, VoteError> {
    loaded.map(|_| Tid::ZERO).map_err(VoteError::Call)
}

/// Runs callers that share one work.
pub(super) struct LoadGenerator {
    session: Session,
    work: Work,
    next: AtomicUsize,
    begun: Instant,
    time: Duration,
    over: AtomicBool,
    log: Mutex<Log>,
}

/// The significant decimal digits of a time in a [`Log`].
const DIGITS: u8 = 3;

/// What callers have done.
#[derive(Default)]
struct Log {
    /// The time of each call in nanoseconds.
    took: Vec<u64>,
    committed: Vec<(Oid, Tid)>,
}

impl Log {
    fn note(&mut self, generator: &LoadGenerator, piece: usize, begun: Instant, tid: Tid) {
        self.took.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
        self.committed.extend(generator.work.commits(piece).map(|oid| (oid, tid)));
    }
}

impl LoadGenerator {
    /// Creates work whose time begins now.
    pub(super) fn new(session: &Session, work: Work, time: Duration) -> Arc<LoadGenerator> {
        Arc::new(LoadGenerator {
            session: session.clone(),
            work,
            next: AtomicUsize::new(0),
            begun: Instant::now(),
            time,
            over: AtomicBool::new(false),
            log: Mutex::default(),
        })
    }

    /// Lets callers begin no further piece.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Runs `callers` callers, and returns when all of them are done.
    ///
    /// # Errors
    /// The first error of any caller. The others then begin no further piece.
    pub(super) async fn run(
        self: Arc<LoadGenerator>,
        by: Transport,
        callers: usize,
    ) -> Result<CallTimes, VoteError> {
        let begin = |_| match by {
            Transport::Tokio => tokio::spawn(self.clone().caller_task()),
            Transport::Mio => {
                let generator = self.clone();
                tokio::task::spawn_blocking(move || generator.caller_thread())
            }
        };
        let callers: Vec<_> = (0..callers).map(begin).collect();
        let mut failed = None;
        for caller in callers {
            // A caller that panicked got no answer.
            let done = caller.await.unwrap_or_else(|_| Err(CallError::Unanswered.into()));
            failed = failed.or(done.err());
        }
        failed.map_or_else(|| self.ran(), Err)
    }

    async fn caller_task(self: Arc<LoadGenerator>) -> Result<(), VoteError> {
        let mut log = Log::default();
        while let Some(piece) = self.take() {
            let (mut kept, begun) = (None, Instant::now());
            let begin = |done| kept = self.work.begin(&self.session, piece, done);
            let tid = self.checked(tokio_transport::wait(begin).await)?;
            log.note(&self, piece, begun, tid);
            drop(kept);
        }
        self.add_to_log(log);
        Ok(())
    }

    fn caller_thread(self: Arc<LoadGenerator>) -> Result<(), VoteError> {
        let mut log = Log::default();
        while let Some(piece) = self.take() {
            let (mut kept, begun) = (None, Instant::now());
            let begin = |done| kept = self.work.begin(&self.session, piece, done);
            let tid = self.checked(mio::wait(begin))?;
            log.note(&self, piece, begun, tid);
            drop(kept);
        }
        self.add_to_log(log);
        Ok(())
    }

    fn take(&self) -> Option<usize> {
        if self.over.load(Ordering::Relaxed) || self.begun.elapsed() >= self.time {
            return None;
        }
        Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|piece| *piece < self.work.count())
    }

    fn checked(&self, done: Result<Tid, VoteError>) -> Result<Tid, VoteError> {
        if done.is_err() {
            self.end();
        }
        done
    }

    fn add_to_log(&self, log: Log) {
        let mut all = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        all.took.extend(log.took);
        all.committed.extend(log.committed);
    }

    fn ran(&self) -> Result<CallTimes, VoteError> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let Log { took, committed } =
            std::mem::take(&mut *self.log.lock().unwrap_or_else(PoisonError::into_inner));
        let times = histogram(&took).map_err(|error| CallError::Stream(io::Error::other(error)))?;
        let percentile = |quantile| times.value_at_quantile(quantile) as f64 / 1e9;
        Ok(CallTimes {
            done: took.len() as u64,
            seconds,
            p50: percentile(0.50),
            p99: percentile(0.99),
            committed,
        })
    }
}

/// Returns the distribution of times, with [`DIGITS`] significant digits.
fn histogram(nanoseconds: &[u64]) -> Result<Histogram<u64>, Box<dyn Error + Send + Sync>> {
    let mut times = Histogram::new(DIGITS)?;
    for time in nanoseconds {
        times.record(*time)?;
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_have_three_digits() {
        let times: Vec<u64> = (1..=100).map(|n| n * 1_234_567).collect();
        let times = histogram(&times).unwrap();
        for (quantile, expected) in [(0.50, 50.0 * 1_234_567.0), (0.99, 99.0 * 1_234_567.0)] {
            let found = times.value_at_quantile(quantile) as f64;
            assert!((found / expected - 1.0).abs() < 1e-3, "{quantile}: {found}");
        }
        assert_eq!(histogram(&[]).unwrap().value_at_quantile(0.5), 0);
    }
}
