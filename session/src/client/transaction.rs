//! One transaction of a client, with the files that it stores.
//!
//! **A commit contains everything that was asked for, or it fails.** If a store or a delete fails on this side, the
//! session refuses every later vote, finish and commit of the transaction. If it fails on the server, the server does.

use std::fmt;
use std::sync::OnceLock;

use blobferry_cache::TransactionBuffer;
use blobferry_platform::blobdir::BlobWriter;
use blobferry_platform::os;
use blobferry_platform::pool::Strand;
use blobferry_platform::progress::OnProgress;
use blobferry_platform::sync::atomic::{AtomicBool, Ordering};
use blobferry_platform::sync::{Arc, Mutex, MutexGuard};
use blobferry_protocol::{
    BlobInfo, Conflict, Digest, Oid, Phase, Reply, Request, RequestError, Tid, TxnId, TxnMeta, UsageError,
};
use tracing::Span;

use crate::client::blob_source::{BlobSource, Taken, not_taken, take};
use crate::client::error::{CallError, Completion};
use crate::client::queue::{Queued, Upload};
use crate::client::shared::Session;

/// Why a vote or a commit failed. These are all cases: a caller must handle both.
#[derive(Debug, thiserror::Error)]
pub enum VoteError {
    /// Other transactions have changed objects of this one meanwhile. The transaction is still open. Store each resolved
    /// object with `base` set to `committed`, and vote again.
    #[error("{} object(s) were changed by another transaction meanwhile; the first is object {}: it is at {}, and this \
             transaction was made from {}", .0.len(), first(.0).oid, first(.0).committed, first(.0).base)]
    Conflict(Vec<Conflict>),
    /// The call failed. The transaction cannot be committed any more; it may still have to be aborted, which dropping
    /// it does.
    #[error(transparent)]
    Call(#[from] CallError),
}

fn first(conflicts: &[Conflict]) -> Conflict {
    conflicts.first().copied().unwrap_or(Conflict { oid: Oid::ROOT, committed: Tid::ZERO, base: Tid::ZERO })
}

/// An open transaction. If it is dropped before it was finished or committed, it is aborted.
///
/// Every call takes a completion. The calls take effect in the order in which they are made, and none of them waits
/// for the one before.
///
/// # Cancel safety
/// A call cannot be taken back: dropping what waits for its completion does not cancel it. A blob goes on being stored,
/// and a commit behind it includes it. A commit goes on as well; a second commit of the same transaction then fails with
/// [`UsageError::WrongPhase`] or [`UsageError::NoSuchTransaction`], and
/// [`Session::outcome`] says what became of the first. To cancel, abort or drop the transaction before the commit.
pub struct Transaction {
    session: Session,
    txn: TxnId,
    shared: Arc<Shared>,
    /// Runs what touches files, in the order of the calls, and requests behind it.
    strand: Strand,
    is_over: bool,
    span: Span,
}

struct Shared {
    /// The files; `None` when the cache has taken them over, or they are deleted.
    buffer: Mutex<Option<TransactionBuffer>>,
    /// Why the transaction could not begin. This is the cause of all errors that follow.
    begin: OnceLock<NotBegun>,
    committed: AtomicBool,
}

/// Why a transaction could not begin.
#[derive(Clone)]
enum NotBegun {
    /// The server refused it.
    Refused(RequestError),
    /// This side knew that the server would refuse it.
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

    /// Replaces an error that is only a consequence by its cause. A doomed transaction always has the same error, whether
    /// this side or the server has found it doomed.
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
    /// Begins a transaction, without waiting for the server. If the server refuses, the next call in the transaction
    /// fails with the server's reason.
    ///
    /// # Errors
    /// [`CallError::NoName`] if the operating system has no random numbers.
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
        // Without a wake-up: a request in the transaction follows.
        self.enqueue_without_wake(Queued::Call { request: Request::Begin { txn, meta }, done });
        let strand = Strand::new(self.workers());
        let span = tracing::debug_span!(target: "blobferry::client", "transaction", %txn);
        Ok(Transaction { session: self.clone(), txn, shared, strand, is_over: false, span })
    }
}

impl Transaction {
    /// Returns the transaction's name. The server knows its [outcome](Session::outcome) by this name for ever.
    #[must_use]
    pub fn id(&self) -> TxnId {
        self.txn
    }

    /// Returns the session that the transaction belongs to.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Makes every later vote, finish and commit fail with [`RequestError::Doomed`]. A caller needs this if a part of the
    /// transaction failed before it reached the session, for instance a stream that it was reading. Failed stores and
    /// deletes do it themselves.
    pub fn doom(&self) {
        self.session.lock().state.doom(self.txn);
    }

    /// Puts an object without a file into the transaction, behind files that are still being taken. Of several stores of
    /// one object the last one counts.
    fn put(&self, oid: Oid, request: Request, done: impl FnOnce(Result<(), CallError>) + Send + 'static) {
        let _entered = self.span.enter();
        let (session, shared) = (self.session.clone(), self.shared.clone());
        self.strand.dispatch(move || {
            if let Some(buffer) = shared.buffer().as_mut() {
                buffer.remove(oid);
            }
            session
                .call(request, move |result| done(result.map(drop).map_err(|error| shared.explain(error))));
        });
    }

    /// Stores an object's record, without a blob. `base` is the revision that the new one was made from, or
    /// [`Tid::ZERO`] for a new object. If it fails, so do the vote and the commit.
    pub fn store(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        done: impl FnOnce(Result<(), CallError>) + Send + 'static,
    ) {
        self.put(oid, Request::Store { txn: self.txn, oid, base, data }, done);
    }

    /// Deletes an object. With [`Tid::ZERO`] as its base, takes back what this transaction has stored of it. If it fails,
    /// so do the vote and the commit.
    pub fn delete(&self, oid: Oid, base: Tid, done: impl FnOnce(Result<(), CallError>) + Send + 'static) {
        self.put(oid, Request::Delete { txn: self.txn, oid, base }, done);
    }

    /// Returns a file to write a blob into that comes as a stream, for [`BlobSource::spooled`]. Blocks.
    ///
    /// If writing fails, call [`doom`](Self::doom): the session does not see the error.
    ///
    /// # Errors
    /// [`CallError::Cache`] if the cache cannot create the file. The transaction is doomed then.
    pub fn spool(&self) -> Result<BlobWriter, CallError> {
        let buffer = self.shared.buffer();
        let buffer = buffer.as_ref().ok_or(CallError::Refused(self.ended()))?;
        buffer.writer().map_err(|source| not_taken(Oid::ROOT, source)).inspect_err(|_| self.doom())
    }

    fn ended(&self) -> RequestError {
        RequestError::NoSuchTransaction { txn: self.txn }
    }

    /// Stores an object's record with a blob. It is done when the server has the blob on disk. Many may run at once in
    /// one transaction; a vote waits for all of them. If one fails, so do the vote and the commit.
    pub fn store_blob(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: impl Into<BlobSource>,
        progress: Option<OnProgress>,
        done: impl FnOnce(Result<BlobInfo, CallError>) + Send + 'static,
    ) {
        let _entered = self.span.enter();
        let source = source.into();
        let (session, shared, txn, ended) =
            (self.session.clone(), self.shared.clone(), self.txn, self.ended());
        let blocks = session.cache().is_shared() || source.is_file();
        let store = move || {
            let taken = match shared.buffer().as_mut() {
                Some(buffer) => take(buffer, oid, source, session.cache().is_shared()),
                None => Err(ended.into()),
            };
            match taken {
                Err(error) => {
                    session.lock().state.doom(txn);
                    done(Err(error));
                }
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
                    session.call(request, move |result| {
                        done(result.map(|_| info).map_err(|error| shared.explain(error)));
                    });
                }
                Ok(Taken::Send { source, size }) => {
                    let done: Completion<Digest> = Box::new(move |result| {
                        if let (Ok(digest), Some(buffer)) = (&result, shared.buffer().as_mut()) {
                            buffer.set_digest(oid, *digest);
                        }
                        let info = result.map(|digest| BlobInfo { size, digest });
                        done(info.map_err(|error| shared.explain(error)));
                    });
                    let digest = (size == 0).then(|| Digest(*blake3::hash(&[]).as_bytes()));
                    let source = (size > 0).then(|| source.on_progress(progress));
                    let upload = Upload { txn, oid, base, data, size, digest, done };
                    session.enqueue(Queued::Upload { upload, from: 0, source });
                }
            }
        };
        match blocks {
            true => self.strand.post(store),
            false => self.strand.dispatch(store),
        }
    }

    /// Asks the server whether everything can be committed. If the answer is yes, the server promises that a finish
    /// succeeds.
    pub fn vote(&mut self, done: impl FnOnce(Result<(), VoteError>) + Send + 'static) {
        self.decide(Request::Vote { txn: self.txn }, move |result| {
            done(match result {
                Ok(Reply::Conflicts(conflicts)) => Err(VoteError::Conflict(conflicts)),
                result => result.map(drop).map_err(VoteError::Call),
            });
        });
    }

    /// Commits what was voted for.
    pub fn finish(mut self, done: impl FnOnce(Result<Tid, CallError>) + Send + 'static) {
        self.is_over = true;
        let (session, txn) = (self.session.clone(), self.txn);
        self.decide(Request::Finish { txn }, move |result| {
            // This side has refused to send the finish: the transaction still holds its locks.
            if matches!(result, Err(CallError::Refused(RequestError::Doomed { .. }))) {
                session.call(Request::Abort { txn }, |_| {});
            }
            done(result.map(finished));
        });
    }

    /// Votes and finishes in one round trip. The result comes when the transaction is durable on the server.
    pub fn commit(&mut self, done: impl FnOnce(Result<Tid, VoteError>) + Send + 'static) {
        self.decide(Request::Commit { txn: self.txn }, move |result| {
            done(match result {
                Ok(Reply::Conflicts(conflicts)) => Err(VoteError::Conflict(conflicts)),
                result => result.map(finished).map_err(VoteError::Call),
            });
        });
    }

    /// Sends a vote, finish or commit, behind files that are still being taken. After a commit, the cache takes over the
    /// files before the completion runs.
    fn decide(&self, request: Request, done: impl FnOnce(Result<Reply, CallError>) + Send + 'static) {
        let _entered = self.span.enter();
        let (session, shared, strand) = (self.session.clone(), self.shared.clone(), self.strand.clone());
        self.strand.dispatch(move || {
            session.call(request, move |result| match result {
                Ok(Reply::Finished { tid }) => {
                    shared.committed.store(true, Ordering::Relaxed);
                    // All files were taken before the commit was sent.
                    let Some(buffer) = shared.buffer().take() else {
                        return done(Ok(Reply::Finished { tid }));
                    };
                    let blocks = !buffer.is_empty();
                    let finish = move || {
                        if let Err(error) = buffer.finish(tid) {
                            // The commit stands, and the file can be loaded from the server.
                            tracing::warn!(
                                target: "blobferry::client",
                                %tid, %error, "a stored file did not get into the cache"
                            );
                        }
                        done(Ok(Reply::Finished { tid }));
                    };
                    match blocks {
                        true => strand.post(finish),
                        false => strand.dispatch(finish),
                    }
                }
                Ok(reply) => done(Ok(reply)),
                Err(error) => done(Err(shared.explain(error))),
            });
        });
    }

    /// Aborts the transaction.
    pub fn abort(mut self, done: impl FnOnce(Result<(), CallError>) + Send + 'static) {
        self.is_over = true;
        self.give_up(done);
    }

    fn give_up(&self, done: impl FnOnce(Result<(), CallError>) + Send + 'static) {
        let _entered = self.span.enter();
        let shared = self.shared.clone();
        // Behind files that are still being taken: then all of them are deleted.
        self.strand.post(move || drop(shared.buffer().take()));
        self.session.call(Request::Abort { txn: self.txn }, move |result| match result {
            // The transaction is over already: there is nothing to abort.
            Err(CallError::Usage(_)) => done(Ok(())),
            result => done(result.map(drop)),
        });
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.is_over && !self.shared.committed.load(Ordering::Relaxed) {
            self.give_up(|_| {});
        }
    }
}

/// Returns the tid of the answer to a finish. The machine lets no other answer through.
fn finished(reply: Reply) -> Tid {
    if let Reply::Finished { tid } = reply { tid } else { Tid::ZERO }
}

#[cfg(test)]
mod tests {
    use blobferry_protocol::{Config, Time, buffered, server};
    use std::path::Path;
    use std::sync::mpsc;

    use blobferry_cache::{Cache, CacheConfig};
    use bytes::Bytes;

    use super::*;
    use crate::client::config::ClientConfig;
    use crate::client::dial::Addresses;
    use crate::client::handler::Handler;
    use crate::io::ConnectionHandler;

    #[test]
    fn requests_are_sent_behind_a_file_that_is_being_taken() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), CacheConfig::default()).unwrap();
        let session = Session::new(cache, &ClientConfig::default(), Addresses::none(), 0);
        let mut transaction = session.begin(TxnMeta::default()).unwrap();
        let (go, wait) = mpsc::channel::<()>();
        transaction.strand.post(move || wait.recv().unwrap());
        let oid = Oid(1);
        let source = || BlobSource::bytes(Bytes::from_static(b"bytes"));
        transaction.store_blob(oid, Tid::ZERO, Vec::new(), source(), None, |_| {});
        transaction.store(oid, Tid::ZERO, Vec::new(), |_| {});
        transaction.store_blob(oid, Tid::ZERO, Vec::new(), source(), None, |_| {});
        transaction.commit(|_| {});
        go.send(()).unwrap();
        let (done, all) = mpsc::channel();
        transaction.strand.post(move || done.send(()).unwrap());
        all.recv().unwrap();
        let sent: Vec<&str> = session.lock().state.queued.iter().map(name).collect();
        assert_eq!(sent, ["begin", "blob", "store", "blob", "commit"]);
    }

    fn name(queued: &Queued) -> &'static str {
        match queued {
            Queued::Call { request: Request::Begin { .. }, .. } => "begin",
            Queued::Call { request: Request::Store { .. }, .. } => "store",
            Queued::Call { request: Request::Commit { .. }, .. } => "commit",
            Queued::Upload { .. } => "blob",
            _ => "something else",
        }
    }

    /// A session on a connection to a server that answers every request, and has received these.
    struct Conversation {
        session: Session,
        handler: Handler,
        server: server::Connection,
        _dir: tempfile::TempDir,
    }

    impl Conversation {
        fn new() -> Conversation {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::open(dir.path(), CacheConfig::default()).unwrap();
            let session = Session::new(cache, &ClientConfig::default(), Addresses::from("server:1"), 0);
            let handler = session.converse(Time::ZERO, || {});
            let server = server::Connection::new(Time::ZERO, Config::default());
            Conversation { session, handler, server, _dir: dir }
        }

        /// Moves all bytes, both ways, until the call is answered.
        fn wait<T>(&mut self, answers: &mpsc::Receiver<T>) -> T {
            let on_event = |(): &mut (), server: &mut server::Connection, event| match event {
                server::Event::Hello { .. } => server.welcome(Tid::ZERO).unwrap(),
                server::Event::Request { id, request } => {
                    let reply = match request {
                        Request::Vote { .. } => Reply::Voted,
                        Request::Finish { .. } | Request::Commit { .. } => Reply::Finished { tid: Tid(7) },
                        _ => Reply::Done,
                    };
                    server.reply(id, Ok(reply)).unwrap();
                }
                _ => {}
            };
            loop {
                if let Ok(answer) = answers.try_recv() {
                    return answer;
                }
                let (mut up, mut down) = (Vec::new(), Vec::new());
                self.handler.transmit(Time::ZERO, &mut up, usize::MAX, false);
                buffered::receive(&mut self.server, Time::ZERO, &up, &mut (), on_event, |_, _, _| {})
                    .unwrap();
                buffered::transmit(&mut self.server, Time::ZERO, &mut down, usize::MAX, |_, _| Ok(()));
                self.handler.receive(Time::ZERO, Bytes::from(down)).unwrap();
                std::thread::yield_now();
            }
        }

        /// Commits a transaction in which `store` has stored something, and returns the error.
        fn commit(&mut self, store: impl FnOnce(&Transaction)) -> Result<Tid, VoteError> {
            let mut transaction = self.session.begin(TxnMeta::default()).unwrap();
            transaction.store(Oid(1), Tid::ZERO, vec![1], |_| {});
            store(&transaction);
            let (answer, answers) = mpsc::channel();
            transaction.commit(move |committed| answer.send(committed).unwrap());
            self.wait(&answers)
        }
    }

    fn is_doomed(committed: &Result<Tid, VoteError>) -> bool {
        matches!(committed, Err(VoteError::Call(CallError::Refused(RequestError::Doomed { .. }))))
    }

    fn commit_after_storing(source: impl FnOnce(&Path) -> BlobSource) -> Result<Tid, VoteError> {
        let (mut conversation, files) = (Conversation::new(), tempfile::tempdir().unwrap());
        let source = source(files.path());
        conversation.commit(|transaction| {
            transaction.store_blob(Oid(2), Tid::ZERO, Vec::new(), source, None, |stored| {
                assert!(stored.is_err());
            });
        })
    }

    #[test]
    fn commit_succeeds_if_nothing_failed() {
        assert_eq!(Conversation::new().commit(|_| {}).unwrap(), Tid(7));
    }

    #[test]
    fn commit_fails_if_a_source_is_missing() {
        for source in [BlobSource::streamed, BlobSource::moved, BlobSource::copied] {
            let committed = commit_after_storing(|dir| source(dir.join("missing")));
            assert!(is_doomed(&committed), "{committed:?}");
        }
    }

    #[test]
    fn commit_fails_if_a_source_is_a_directory() {
        for source in [BlobSource::streamed, BlobSource::moved, BlobSource::copied] {
            let committed = commit_after_storing(|dir| source(dir.to_owned()));
            assert!(is_doomed(&committed), "{committed:?}");
        }
    }

    #[test]
    fn commit_fails_if_a_record_is_too_large() {
        // Both before the handshake, with the commit right behind, and after it.
        let mut conversation = Conversation::new();
        for _ in 0..2 {
            let committed = conversation.commit(|transaction| {
                transaction.store(Oid(2), Tid::ZERO, vec![0; (16 << 20) + 1], |stored| {
                    assert!(stored.is_err());
                });
            });
            assert!(is_doomed(&committed), "{committed:?}");
        }
        let committed = conversation.commit(|transaction| {
            let (data, source) = (vec![0; (16 << 20) + 1], Bytes::from_static(b"bytes"));
            transaction.store_blob(Oid(2), Tid::ZERO, data, source, None, |stored| {
                assert!(stored.is_err());
            });
        });
        assert!(is_doomed(&committed), "{committed:?}");
    }

    #[test]
    fn commit_fails_if_the_caller_dooms_it() {
        let committed = Conversation::new().commit(Transaction::doom);
        assert!(is_doomed(&committed), "{committed:?}");
    }

    #[test]
    fn finish_of_a_doomed_transaction_fails_and_aborts() {
        let mut conversation = Conversation::new();
        let mut transaction = conversation.session.begin(TxnMeta::default()).unwrap();
        transaction.store(Oid(1), Tid::ZERO, vec![1], |_| {});
        let (answer, answers) = mpsc::channel();
        transaction.vote(move |voted| answer.send(voted).unwrap());
        conversation.wait(&answers).unwrap();
        transaction.store(Oid(2), Tid::ZERO, vec![2], |stored| assert!(stored.is_err()));
        let (answer, answers) = mpsc::channel();
        transaction.finish(move |finished| answer.send(finished).unwrap());
        let finished = conversation.wait(&answers);
        assert!(matches!(finished, Err(CallError::Refused(RequestError::Doomed { .. }))), "{finished:?}");
        assert!(conversation.session.lock().state.transactions.is_empty());
    }
}
