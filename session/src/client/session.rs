//! A client's calls, whatever becomes of its connection: who waits for which answer, and where which blob goes.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use blobferry_protocol::{
    BlobId, Config, Digest, Oid, Reply, Request, RequestError, Tid, Time, TxnId, client,
};

use crate::client::dial::{Addresses, ConnectionEvent, Dial, Dialer, Reconnect};
use crate::client::download::DownloadTarget;
use crate::client::error::{CallError, Completion};
use crate::client::handler::Handler;
use crate::client::state::{Queued, SessionState};
use crate::io::{CloseReason, ConnectionIo, SinkEvent, Source};
use blobferry_cache::{Cache, CachedBlob, Claim, Follow};
use blobferry_platform::pool::BlockingPool;
use blobferry_platform::progress::OnProgress;
use blobferry_platform::sync::{Arc, Mutex, MutexGuard};

/// What has become of objects that a client may know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// A committed transaction.
    pub tid: Tid,
    /// The objects that have a new revision or were deleted. `None` where nobody knows: the connection was lost for a
    /// while, or too much had to wait to be heard; everything may have changed, up to and including the transaction.
    pub oids: Option<Arc<[Oid]>>,
}

/// How a client behaves, whatever its transport.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// How its connections behave.
    pub connection: Config,
    /// What proves to the server who this is; at most 2,048 bytes. Servers ask for nothing today.
    pub credentials: Vec<u8>,
    /// How it gets over the loss of a connection; `None`: it ends with its first one, and whatever waits fails then.
    pub reconnect: Option<Reconnect>,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        let (connection, credentials) = (Config::default(), Vec::new());
        ClientConfig { connection, credentials, reconnect: Some(Reconnect::default()) }
    }
}

/// A client's conversation with a server, on one connection after the other. Clones are the same session.
///
/// While there is no connection calls wait. When one is lost, what was under way goes on with the next: calls that read
/// are made again, downloads go on at the byte where they were, and so do open transactions and the uploads in them. What
/// became of a commit is asked for. See [`Reconnect`] for how long that may take.
#[derive(Clone)]
pub struct Session(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) cache: Cache,
    workers: BlockingPool,
    config: ClientConfig,
    inner: Mutex<Inner>,
}

pub(super) struct Inner {
    pub(super) connection: client::Connection,
    pub(super) state: SessionState,
}

/// Takes every invalidation; `false` when it wants no more.
pub type Listener = Box<dyn FnMut(&Invalidation) -> bool + Send>;

/// Takes everything that happens to the connection; `false` when it wants no more.
pub type Watcher = Box<dyn FnMut(&ConnectionEvent) -> bool + Send>;

/// Called from any thread, when there is something to send.
pub(super) type Wake = Arc<dyn Fn() + Send + Sync>;

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("cache", &self.0.cache.layout().root()).finish_non_exhaustive()
    }
}

impl Session {
    /// A session that has no connection yet. Its first one is to the address at the `place` of the addresses. With
    /// [`Addresses::none`] it ends with that one.
    #[must_use]
    pub fn new(cache: Cache, config: &ClientConfig, addresses: Addresses, place: usize) -> Session {
        let workers = BlockingPool::new(8);
        let addresses = if config.reconnect.is_some() { addresses } else { Addresses::none() };
        let mut dialer = Dialer::new(addresses, config.reconnect.unwrap_or_default());
        dialer.start_at(place);
        let connection = client::Connection::new(Time::ZERO, config.connection, &config.credentials);
        let state = SessionState::new(dialer, config.connection.limits.transfers as usize, &workers);
        let inner = Mutex::new(Inner { connection, state });
        Session(Arc::new(Shared { cache, workers, config: config.clone(), inner }))
    }

    /// Begins a conversation on a stream: says hello, and goes on with everything that waits. `wake` is called from any
    /// thread, never while the session is locked, when there is something to send: drive the endpoint then.
    ///
    /// When the connection has ended, say so with [`lost`](Self::lost) before the carrier is dropped.
    ///
    /// # Errors
    /// The stream's socket can not be tuned.
    pub fn connect(
        &self,
        stream: &impl AsFd,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<ConnectionIo<Handler>> {
        ConnectionIo::begin(stream, |now| self.converse(now, wake))
    }

    /// The same without a stream, for who drives the endpoint with other means: it begins at the moment `now`.
    #[must_use]
    pub fn converse(&self, now: Time, wake: impl Fn() + Send + Sync + 'static) -> Handler {
        let wake: Wake = Arc::new(wake);
        let config = &self.0.config;
        let mut inner = self.lock();
        let generation = inner.state.begin_generation(wake);
        let weak = Arc::downgrade(&self.0);
        let report = move |report| {
            if let Some(shared) = weak.upgrade() {
                Session(shared).report(generation, report);
            }
        };
        inner.state.receive_with(&self.0.workers, Arc::new(report));
        let last = inner.connection.last_request();
        inner.connection = client::Connection::after(now, config.connection, &config.credentials, last);
        Handler::new(self.clone(), generation)
    }

    /// The cache that blobs are loaded into.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Threads for what blocks.
    #[must_use]
    pub fn workers(&self) -> &BlockingPool {
        &self.0.workers
    }

    /// The last transaction that this client has heard of: everything up to it can be read.
    #[must_use]
    pub fn last_tid(&self) -> Tid {
        self.lock().state.last_tid
    }

    /// Done when the handshake is, of this connection or the next: calls can be made before, and wait for it.
    pub fn connected(&self, done: Completion<()>) {
        let mut inner = self.lock();
        if let Some(reason) = inner.state.closed.clone() {
            inner.state.after(move || done(Err(CallError::Disconnected { reason })));
        } else if inner.state.is_alive() && inner.connection.is_connected() {
            inner.state.after(move || done(Ok(())));
        } else {
            inner.state.handshake_waiters.push(done);
        }
        self.unlock(inner, false);
    }

    /// Has every commit from now on told to a listener, in order, this client's own among them, and each before any
    /// answer that exposes it. The listener must not call back into the session; it is dropped when the session ends.
    pub fn listen(&self, listener: Listener) {
        let mut inner = self.lock();
        if inner.state.closed.is_none() {
            inner.state.listeners.push(listener);
        }
    }

    /// Has everything that happens to the connection from now on told to a watcher, which must not call back into the
    /// session; it is dropped when the session ends.
    pub fn watch(&self, watcher: Watcher) {
        let mut inner = self.lock();
        if inner.state.closed.is_none() {
            inner.state.watchers.push(watcher);
        }
    }

    /// Asks for something that is answered by a [`Reply`].
    pub fn call(&self, request: Request, done: Completion<Reply>) {
        self.enqueue(Queued::Call { request, done });
    }

    /// Loads a blob: from the cache, from whoever is downloading it already, or from the server. Hits are found by
    /// the calling thread; nothing else makes it wait.
    pub fn load_blob(&self, blob: BlobId, progress: Option<OnProgress>, done: Completion<CachedBlob>) {
        let session = self.clone();
        self.0.cache.claim_with(blob, move |claim| match claim {
            Ok(Claim::Hit(cached)) => done(Ok(cached)),
            Ok(Claim::Download(download)) => session.download(download, progress, done),
            Err(error) => done(Err(error.into())),
        });
    }

    /// Reads a blob while it arrives, whoever on this machine downloads it; if nobody does, this client does. See
    /// [`Follow`] for what is promised. Reading blocks.
    ///
    /// # Errors
    /// The cache's.
    pub fn follow_blob(&self, blob: BlobId) -> Result<Follow, CallError> {
        let session = self.clone();
        let follow = self.0.cache.follow_with(blob, move |download, end| {
            session.download(download, None, Box::new(move |result| end.tell(result)));
        });
        Ok(follow?)
    }

    /// Loads a part of a blob into memory: from the cached file where there is one, else from the server, without
    /// caching it. What is behind the blob's end is left out. A part from the server is not checked against the
    /// blob's digest, which is the whole's.
    pub fn load_range(&self, blob: BlobId, range: Range<u64>, done: Completion<Vec<u8>>) {
        match self.0.cache.get(blob) {
            Ok(Some(cached)) => self.0.workers.run(move || done(read_range(&cached, range))),
            Ok(None) => match self.0.cache.packed(blob) {
                Some(bytes) => {
                    let part = clamp(blob, bytes.len() as u64, range).map(|range| bytes.slice(range).into());
                    done(part);
                }
                None => DownloadTarget::memory(self.clone(), blob, range, done).enqueue(),
            },
            Err(error) => done(Err(error.into())),
        }
    }

    /// Stores an object with a blob of `size` bytes; gives its digest when the server has it on disk.
    #[expect(
        clippy::too_many_arguments,
        reason = "they are the fields of one message, and where its blob is"
    )]
    pub(super) fn upload(
        &self,
        txn: TxnId,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        size: u64,
        source: Source,
        done: Completion<Digest>,
    ) {
        let digest = (size == 0).then(|| Digest(*blake3::hash(&[]).as_bytes()));
        let source = (size > 0).then_some(source);
        self.enqueue(Queued::Upload { txn, oid, base, data, from: 0, size, digest, source, done });
    }

    /// Begins nothing new from here on; the endpoint is finished when all that is under way has come to its end.
    pub fn goodbye(&self) {
        let mut inner = self.lock();
        inner.state.leaving = true;
        if !inner.state.is_alive() || inner.connection.goodbye().is_err() {
            // There is nobody to take leave of.
            drop(inner);
            return self.close("the client was closed");
        }
        self.unlock(inner, true);
    }

    /// The session is over: everybody who waits is told so.
    pub fn close(&self, reason: &str) {
        let mut inner = self.lock();
        inner.state.close(reason);
        self.unlock(inner, false);
    }

    /// The connection was lost, or has not come about. What can go on with another does so, as soon as there is one:
    /// see [`next_dial`](Self::next_dial).
    pub fn lost(&self, ended: &CloseReason) {
        let mut inner = self.lock();
        let connected = inner.state.is_alive() && inner.connection.is_connected();
        inner.state.lost(ended, connected);
        self.unlock(inner, false);
    }

    /// What the transport does when a connection was lost: whom to call, and when. `None`: nobody, the session is over.
    #[must_use]
    pub fn next_dial(&self) -> Option<Dial> {
        self.lock().state.next_dial()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock()
    }

    /// Unlocks, then tells who is to be told: the transport only if there is something to send.
    pub(super) fn unlock(&self, mut inner: MutexGuard<'_, Inner>, wake: bool) {
        let wake = (wake && inner.connection.backlog() > 0).then(|| inner.state.wake.clone()).flatten();
        let after = inner.state.take_after();
        drop(inner);
        for act in after {
            act();
        }
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Has the callbacks of answers called by [`call_back`](Self::call_back) from here on, and not while the endpoint is
    /// being driven: for who drives it under a lock.
    pub fn defer_callbacks(&self) {
        self.lock().state.deferred.get_or_insert_default();
    }

    /// Calls the first of the callbacks that were [deferred](Self::defer_callbacks); `false` if there is none.
    pub fn call_back(&self) -> bool {
        let act = self.lock().state.deferred.as_mut().and_then(VecDeque::pop_front);
        act.map(|act| act()).is_some()
    }

    /// Wakes who drives the connection, as if there was something to send.
    pub fn ring(&self) {
        let wake = self.lock().state.wake.clone();
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Is an answer outstanding, whoever waits for it?
    #[must_use]
    pub fn awaits_answers(&self) -> bool {
        let inner = self.lock();
        inner.connection.requests_in_flight() > 0 || !inner.state.waiting.is_empty()
    }

    /// Unlocks after the endpoint was driven.
    pub(super) fn unlock_driven(&self, mut inner: MutexGuard<'_, Inner>) {
        if !inner.state.defer() {
            self.unlock(inner, false);
        }
    }

    /// Asks for something that can wait for what is asked next, to be sent with it.
    pub(super) fn enqueue_without_wake(&self, ask: Queued) {
        let mut inner = self.lock();
        inner.state.enqueue(ask);
        inner.pump();
        self.unlock(inner, false);
    }

    pub(super) fn enqueue(&self, ask: Queued) {
        let mut inner = self.lock();
        inner.state.enqueue(ask);
        inner.pump();
        self.unlock(inner, true);
    }

    /// A sink has got on. One of a connection before has nothing to say any more.
    fn report(&self, generation: u64, report: SinkEvent) {
        let mut inner = self.lock();
        if inner.state.is_generation(generation) {
            match report {
                SinkEvent::Stored { transfer, upto } => {
                    // The transfer may be over, and the connection dead: then nobody needs to know.
                    let _ = inner.connection.stored(transfer, upto);
                }
                SinkEvent::Failed { transfer } => {
                    inner.state.inlets.remove(transfer);
                    if inner.connection.cancel(transfer.into()).is_err() {
                        inner.connection.discard(transfer);
                    }
                }
            }
            inner.pump();
        }
        self.unlock(inner, true);
    }
}

/// The part of a range that is in a blob.
fn clamp(blob: BlobId, size: u64, range: Range<u64>) -> Result<Range<usize>, CallError> {
    let (from, upto) = (range.start, range.end.min(size));
    if from > upto {
        return Err(RequestError::BadRange { blob, size, from, upto: range.end }.into());
    }
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    Ok(place(from)..place(upto))
}

pub(super) fn read_range(cached: &CachedBlob, range: Range<u64>) -> Result<Vec<u8>, CallError> {
    let range = clamp(cached.blob(), cached.size(), range)?;
    let mut bytes = vec![0; range.len()];
    let read = cached.file().read_exact_at(&mut bytes, range.start as u64);
    read.map_err(|source| CallError::File { path: cached.path().to_owned(), source })?;
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use blobferry_protocol::{Limits, RequestId, server};
    use bytes::Bytes;
    use tempfile::TempDir;

    use super::*;
    use crate::io::ConnectionHandler;
    use blobferry_cache::CacheConfig;

    /// A session with a cache of its own, on a connection that a server has welcomed.
    pub(in super::super) fn welcomed(config: Config) -> (Session, Handler, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), CacheConfig::default()).unwrap();
        let config = ClientConfig { connection: config, ..ClientConfig::default() };
        let session = Session::new(cache, &config, Addresses::from("nobody:1"), 0);
        let mut endpoint = session.converse(Time::ZERO, || {});
        let mut server = server::Connection::new(Time::ZERO, Config::default());
        let mut said = Vec::new();
        endpoint.transmit(Time::ZERO, &mut said, usize::MAX, false);
        server.handle_control(Time::ZERO, &said).unwrap();
        server.welcome(Tid::ZERO).unwrap();
        let mut welcome = Vec::new();
        assert!(server.poll_transmit(Time::ZERO, &mut welcome).is_some());
        endpoint.receive(Time::ZERO, Bytes::from(welcome)).unwrap();
        (session, endpoint, dir)
    }

    #[test]
    fn a_download_waits_for_its_place_although_the_one_before_is_not_wanted_any_more() {
        let limits = Limits { transfers: 1, ..Limits::default() };
        let (session, _endpoint, _dir) = welcomed(Config { limits, ..Config::default() });
        // Of different buckets, so that they do not wait for each other in the cache.
        for oid in [1, 2] {
            let blob = BlobId { oid: Oid(oid), tid: Tid(1) };
            session.load_blob(blob, None, Box::new(|_| {}));
        }
        let generation = session.lock().state.generation;
        session.report(generation, SinkEvent::Failed { transfer: RequestId(1).into() });
        let inner = session.lock();
        assert_eq!((inner.connection.downloads(), inner.state.waiting.len()), (1, 1));
    }
}
