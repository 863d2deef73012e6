//! One transaction of a client, with the files that it stores.

use std::fmt;
use std::sync::OnceLock;

use blobferry_protocol::{
    BlobInfo, Conflict, Digest, Oid, Phase, Reply, Request, RequestError, Tid, TxnId, TxnMeta, UsageError,
};

use crate::client::blob_source::{BlobSource, Taken, not_taken, take};
use crate::client::error::{CallError, Completion};
use crate::client::session::Session;
use crate::client::state::Queued;
use blobferry_cache::TransactionBuffer;
use blobferry_platform::blobdir::BlobWriter;
use blobferry_platform::os;
use blobferry_platform::pool::Strand;
use blobferry_platform::progress::OnProgress;
use blobferry_platform::sync::atomic::{AtomicBool, Ordering};
use blobferry_platform::sync::{Arc, Mutex, MutexGuard};

/// Why a transaction was not voted for, or not committed.
#[derive(Debug, thiserror::Error)]
pub enum VoteError {
    /// Other transactions have changed objects of this one meanwhile. It is still open: store what is resolved with
    /// `base` set to `committed`, and vote again.
    #[error("{} object(s) were changed by another transaction meanwhile; the first is object {}: it is at {}, and this \
             transaction was made from {}", .0.len(), first(.0).oid, first(.0).committed, first(.0).base)]
    Conflict(Vec<Conflict>),
    /// It failed; the transaction is over.
    #[error(transparent)]
    Call(#[from] CallError),
}

fn first(conflicts: &[Conflict]) -> Conflict {
    conflicts.first().copied().unwrap_or(Conflict { oid: Oid::ROOT, committed: Tid::ZERO, base: Tid::ZERO })
}

/// A transaction that is open. Dropped before it was finished, it is aborted.
pub struct Transaction {
    session: Session,
    txn: TxnId,
    shared: Arc<Shared>,
    /// What touches files, in the order of the calls; and behind that what the server is asked after it.
    lane: Strand,
    over: bool,
}

struct Shared {
    /// The files; `None` when they are the cache's, or gone.
    buffer: Mutex<Option<TransactionBuffer>>,
    /// Why it could not even begin: the cause of every error that follows from it.
    begin: OnceLock<NotBegun>,
    committed: AtomicBool,
}

/// Why a transaction could not begin.
#[derive(Clone)]
enum NotBegun {
    /// The server did not want it.
    Refused(RequestError),
    /// This side knew that the server would not.
    Usage(UsageError),
}

impl From<NotBegun> for CallError {
    fn from(cause: NotBegun) -> CallError {
        match cause {
            NotBegun::Refused(error) => CallError::Refused(error),
            NotBegun::Usage(error) => CallError::Usage(error),
        }
    }
}

impl Shared {
    fn buffer(&self) -> MutexGuard<'_, Option<TransactionBuffer>> {
        self.buffer.lock()
    }

    /// The cause, where an error is only the consequence of one; and one error for a doomed transaction, whether this
    /// side has heard of it yet or not.
    fn explain(&self, error: CallError) -> CallError {
        let error = match error {
            CallError::Usage(UsageError::WrongPhase { txn, phase: Phase::Doomed }) => {
                CallError::Refused(RequestError::Doomed { txn })
            }
            error => error,
        };
        match (&error, self.begin.get()) {
            (
                CallError::Refused(RequestError::NoSuchTransaction { .. } | RequestError::Doomed { .. })
                | CallError::Usage(UsageError::NoSuchTransaction(_)),
                Some(cause),
            ) => cause.clone().into(),
            _ => error,
        }
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transaction({})", self.txn)
    }
}

impl Session {
    /// Begins a transaction, without waiting for the server: should it refuse, the first call that follows says so.
    ///
    /// # Errors
    /// [`CallError::NoName`].
    pub fn begin(&self, meta: TxnMeta) -> Result<Transaction, CallError> {
        let mut name = [0; 16];
        os::random(&mut name).map_err(|error| CallError::NoName(error.to_string()))?;
        let txn = TxnId(name);
        let buffer = Mutex::new(Some(self.cache().buffer()));
        let shared = Arc::new(Shared { buffer, begin: OnceLock::new(), committed: AtomicBool::new(false) });
        let begun = shared.clone();
        let done: Completion<Reply> = Box::new(move |result| {
            let cause = match result {
                Err(CallError::Refused(error)) => NotBegun::Refused(error),
                Err(CallError::Usage(error)) => NotBegun::Usage(error),
                _ => return,
            };
            let _ = begun.begin.set(cause);
        });
        // Nobody waits for it, and something will follow.
        self.enqueue_without_wake(Queued::Call { request: Request::Begin { txn, meta }, done });
        let lane = Strand::new(self.workers());
        Ok(Transaction { session: self.clone(), txn, shared, lane, over: false })
    }
}

impl Transaction {
    /// The transaction's name, under which its outcome can be asked for ever after.
    #[must_use]
    pub fn id(&self) -> TxnId {
        self.txn
    }

    /// The session that it is one of.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Puts an object without a file into it, behind files that are still being taken: what was stored last is what
    /// counts.
    fn put(&self, oid: Oid, request: Request, done: Completion<()>) {
        let (session, shared) = (self.session.clone(), self.shared.clone());
        self.lane.dispatch(move || {
            if let Some(buffer) = shared.buffer().as_mut() {
                buffer.remove(oid);
            }
            session.call(
                request,
                Box::new(move |result| done(result.map(drop).map_err(|error| shared.explain(error)))),
            );
        });
    }

    /// Stores an object's record, without a blob.
    pub fn store(&self, oid: Oid, base: Tid, data: Vec<u8>, done: Completion<()>) {
        self.put(oid, Request::Store { txn: self.txn, oid, base, data }, done);
    }

    /// Deletes an object; with [`Tid::ZERO`] as its base, takes back that it was stored in this transaction.
    pub fn delete(&self, oid: Oid, base: Tid, done: Completion<()>) {
        self.put(oid, Request::Delete { txn: self.txn, oid, base }, done);
    }

    /// A file to write a blob into that comes as a stream, for [`BlobSource::Spooled`]. Blocks.
    ///
    /// # Errors
    /// The cache's.
    pub fn spool(&self) -> Result<BlobWriter, CallError> {
        let buffer = self.shared.buffer();
        let buffer = buffer.as_ref().ok_or(CallError::Refused(self.ended()))?;
        buffer.writer().map_err(|source| not_taken(Oid::ROOT, source))
    }

    fn ended(&self) -> RequestError {
        RequestError::NoSuchTransaction { txn: self.txn }
    }

    /// Stores an object's record with a blob. Done when the server has it on disk.
    pub fn store_blob(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: BlobSource,
        progress: Option<OnProgress>,
        done: Completion<BlobInfo>,
    ) {
        let (session, shared, txn, ended) =
            (self.session.clone(), self.shared.clone(), self.txn, self.ended());
        let blocks = session.cache().is_shared() || !matches!(source, BlobSource::Bytes(_));
        let store = move || {
            let taken = match shared.buffer().as_mut() {
                Some(buffer) => take(buffer, oid, source, session.cache().is_shared()),
                None => Err(ended.into()),
            };
            match taken {
                Err(error) => done(Err(error)),
                Ok(Taken::Shared { name, info }) => {
                    let request = Request::StoreShared {
                        txn,
                        oid,
                        base,
                        data,
                        name,
                        size: info.size,
                        digest: info.digest,
                    };
                    let done: Completion<Reply> = Box::new(move |result| {
                        done(result.map(|_| info).map_err(|error| shared.explain(error)));
                    });
                    session.call(request, done);
                }
                Ok(Taken::Send { source, size }) => {
                    let done: Completion<Digest> = Box::new(move |result| {
                        if let (Ok(digest), Some(buffer)) = (&result, shared.buffer().as_mut()) {
                            buffer.set_digest(oid, *digest);
                        }
                        let info = result.map(|digest| BlobInfo { size, digest });
                        done(info.map_err(|error| shared.explain(error)));
                    });
                    session.upload(txn, oid, base, data, size, source.on_progress(progress), done);
                }
            }
        };
        match blocks {
            true => self.lane.post(store),
            false => self.lane.dispatch(store),
        }
    }

    /// Asks whether everything can be committed, and makes sure that it then can.
    pub fn vote(&mut self, done: Completion<(), VoteError>) {
        self.decide(
            Request::Vote { txn: self.txn },
            Box::new(move |result| {
                done(match result {
                    Ok(Reply::Conflicts(conflicts)) => Err(VoteError::Conflict(conflicts)),
                    result => result.map(drop).map_err(VoteError::Call),
                });
            }),
        );
    }

    /// Commits what was voted for.
    pub fn finish(mut self, done: Completion<Tid>) {
        self.over = true;
        self.decide(Request::Finish { txn: self.txn }, Box::new(move |result| done(result.map(finished))));
    }

    /// Votes and finishes in one round trip.
    pub fn commit(&mut self, done: Completion<Tid, VoteError>) {
        self.decide(
            Request::Commit { txn: self.txn },
            Box::new(move |result| {
                done(match result {
                    Ok(Reply::Conflicts(conflicts)) => Err(VoteError::Conflict(conflicts)),
                    result => result.map(finished).map_err(VoteError::Call),
                });
            }),
        );
    }

    /// Sends a vote, finish or commit, behind files that are still being taken; when it was committed, its files become
    /// the cache's before that is told.
    fn decide(&self, request: Request, done: Completion<Reply>) {
        let (session, shared, lane) = (self.session.clone(), self.shared.clone(), self.lane.clone());
        self.lane.dispatch(move || {
            session.call(
                request,
                Box::new(move |result| match result {
                    Ok(Reply::Finished { tid }) => {
                        shared.committed.store(true, Ordering::Relaxed);
                        // Before the commit was sent all files were taken.
                        let Some(buffer) = shared.buffer().take() else {
                            return done(Ok(Reply::Finished { tid }));
                        };
                        let blocks = !buffer.is_empty();
                        let finish = move || {
                            if let Err(error) = buffer.finish(tid) {
                                // It is committed all the same, and can be loaded from the server.
                                tracing::warn!(%tid, %error, "a stored file did not get into the cache");
                            }
                            done(Ok(Reply::Finished { tid }));
                        };
                        match blocks {
                            true => lane.post(finish),
                            false => lane.dispatch(finish),
                        }
                    }
                    Ok(reply) => done(Ok(reply)),
                    Err(error) => done(Err(shared.explain(error))),
                }),
            );
        });
    }

    /// Gives it up.
    pub fn abort(mut self, done: Completion<()>) {
        self.over = true;
        self.give_up(done);
    }

    fn give_up(&self, done: Completion<()>) {
        let shared = self.shared.clone();
        // Files that are still being taken come first; then all of them go.
        self.lane.post(move || drop(shared.buffer().take()));
        self.session.call(
            Request::Abort { txn: self.txn },
            Box::new(move |result| match result {
                // Over already: there is nothing to abort.
                Err(CallError::Usage(_)) => done(Ok(())),
                result => done(result.map(drop)),
            }),
        );
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.over && !self.shared.committed.load(Ordering::Relaxed) {
            self.give_up(Box::new(|_| {}));
        }
    }
}

/// The machine lets no other answer to a finish through.
fn finished(reply: Reply) -> Tid {
    if let Reply::Finished { tid } = reply { tid } else { Tid::ZERO }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;

    use super::*;
    use crate::client::dial::Addresses;
    use crate::client::session::ClientConfig;
    use crate::client::state::Queued;
    use blobferry_cache::{Cache, CacheConfig};

    #[test]
    fn what_is_asked_behind_a_file_that_is_still_being_taken_is_sent_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), CacheConfig::default()).unwrap();
        let session = Session::new(cache, &ClientConfig::default(), Addresses::none(), 0);
        let mut transaction = session.begin(TxnMeta::default()).unwrap();
        let (go, wait) = mpsc::channel::<()>();
        transaction.lane.post(move || wait.recv().unwrap());
        let oid = Oid(1);
        let source = || BlobSource::Bytes(Bytes::from_static(b"bytes"));
        transaction.store_blob(oid, Tid::ZERO, Vec::new(), source(), None, Box::new(|_| {}));
        transaction.store(oid, Tid::ZERO, Vec::new(), Box::new(|_| {}));
        transaction.store_blob(oid, Tid::ZERO, Vec::new(), source(), None, Box::new(|_| {}));
        transaction.commit(Box::new(|_| {}));
        go.send(()).unwrap();
        let (done, all) = mpsc::channel();
        transaction.lane.post(move || done.send(()).unwrap());
        all.recv().unwrap();
        let asked: Vec<&str> = session.lock().state.waiting.iter().map(name).collect();
        assert_eq!(asked, ["begin", "blob", "store", "blob", "commit"]);
    }

    fn name(ask: &Queued) -> &'static str {
        match ask {
            Queued::Call { request: Request::Begin { .. }, .. } => "begin",
            Queued::Call { request: Request::Store { .. }, .. } => "store",
            Queued::Call { request: Request::Commit { .. }, .. } => "commit",
            Queued::Upload { .. } => "blob",
            _ => "something else",
        }
    }
}
