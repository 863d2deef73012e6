//! One connection's calls: who waits for which answer, and where which blob goes.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blobferry_protocol::{
    BlobId, Config, Digest, Oid, PeerError, Reply, Request, RequestError, RequestId, Slice, Tid, Time, TxnId,
    buffered, client,
};
use bytes::Bytes;

use super::call::{CallError, Completion};
use super::download::{ToCache, ToMemory};
use crate::carry::{Carrier, Endpoint, Inlets, OnProgress, Outlets, Progress, Report, Sink, Source};
use crate::workers::Workers;
use crate::{Cache, CachedBlob, Claim, Download};

/// A committed transaction, and what it changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// The transaction.
    pub tid: Tid,
    /// The objects that have a new revision or were deleted.
    pub oids: Arc<[Oid]>,
}

/// How a client behaves, whatever its transport.
#[derive(Clone, Debug, Default)]
pub struct ClientConfig {
    /// How its connection behaves.
    pub connection: Config,
    /// What proves to the server who this is; at most 2,048 bytes. Servers ask for nothing today.
    pub credentials: Vec<u8>,
}

/// Control bytes that may wait before calls have to.
const BACKLOG: usize = 1 << 20;

/// A client's conversation on one connection. Clones are the same session.
#[derive(Clone)]
pub struct Session(Arc<Shared>);

struct Shared {
    cache: Cache,
    workers: Workers,
    wake: Box<dyn Fn() + Send + Sync>,
    inner: Mutex<Inner>,
}

struct Inner {
    connection: client::Connection,
    state: State,
}

struct State {
    /// Transfers at once towards this side, as announced.
    downloads: usize,
    /// Calls that the server's limits do not allow yet, in order.
    waiting: VecDeque<Ask>,
    waiters: BTreeMap<RequestId, Waiter>,
    inlets: Inlets,
    outlets: Outlets,
    last_tid: Tid,
    /// Who waits for the handshake.
    greeters: Vec<Completion<()>>,
    /// Who wants to hear of commits.
    listeners: Vec<Listener>,
    closed: Option<String>,
    /// What to do as soon as the lock is free, in order.
    after: Vec<After>,
}

type After = Box<dyn FnOnce() + Send>;

/// Takes every commit; `false` when it wants no more.
pub type Listener = Box<dyn FnMut(&Invalidation) -> bool + Send>;

/// A call that is not sent yet.
enum Ask {
    Call {
        request: Request,
        done: Completion<Reply>,
    },
    Download {
        blob: BlobId,
        range: Range<u64>,
        sink: Box<dyn Sink>,
    },
    Upload {
        txn: TxnId,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        size: u64,
        source: Source,
        done: Completion<Digest>,
    },
}

/// Who waits for a reply. Who waits for a blob waits in its sink.
enum Waiter {
    Reply(Completion<Reply>),
    Upload { digest: Option<Digest>, done: Completion<Digest> },
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("cache", &self.0.cache.layout().root()).finish_non_exhaustive()
    }
}

impl Session {
    /// A session that says hello as soon as its endpoint is driven. `wake` is called from any thread, never while the
    /// session is locked, when there is something to send: drive the endpoint then.
    #[must_use]
    pub fn new(
        cache: Cache,
        now: Time,
        config: &ClientConfig,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Session {
        let workers = Workers::new(8);
        Session(Arc::new_cyclic(|weak: &std::sync::Weak<Shared>| {
            let weak = weak.clone();
            let report = move |report| {
                if let Some(shared) = weak.upgrade() {
                    Session(shared).report(report);
                }
            };
            let state = State {
                downloads: config.connection.limits.transfers as usize,
                waiting: VecDeque::new(),
                waiters: BTreeMap::new(),
                inlets: Inlets::new(&workers, Arc::new(report)),
                outlets: Outlets::default(),
                last_tid: Tid::ZERO,
                greeters: Vec::new(),
                listeners: Vec::new(),
                closed: None,
                after: Vec::new(),
            };
            let connection = client::Connection::new(now, config.connection, &config.credentials);
            let inner = Mutex::new(Inner { connection, state });
            Shared { cache, workers, wake: Box::new(wake), inner }
        }))
    }

    /// A session on a stream, and what the transport drives. `wake` as in [`new`](Self::new).
    ///
    /// # Errors
    /// The stream's socket can not be tuned.
    pub fn open(
        stream: &impl AsFd,
        cache: Cache,
        config: &ClientConfig,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<(Session, Carrier<SessionEndpoint>)> {
        let begin = |now| Session::new(cache, now, config, wake).endpoint();
        let carrier = Carrier::begin(stream, begin)?;
        Ok((carrier.endpoint().0.clone(), carrier))
    }

    /// The cache that blobs are loaded into.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Threads for what blocks.
    #[must_use]
    pub fn workers(&self) -> &Workers {
        &self.0.workers
    }

    /// The last transaction that this client has heard of: everything up to it can be read.
    #[must_use]
    pub fn last_tid(&self) -> Tid {
        self.lock().state.last_tid
    }

    /// What the transport drives. Dropped, it [closes](Self::close) the session: nobody waits for what can not come.
    #[must_use]
    pub fn endpoint(&self) -> SessionEndpoint {
        SessionEndpoint(self.clone())
    }

    /// Done when the handshake is: calls can be made before, and wait for it.
    pub fn connected(&self, done: Completion<()>) {
        let mut inner = self.lock();
        if let Some(reason) = inner.state.closed.clone() {
            inner.state.after.push(Box::new(move || done(Err(CallError::Disconnected { reason }))));
        } else if inner.connection.is_connected() {
            inner.state.after.push(Box::new(move || done(Ok(()))));
        } else {
            inner.state.greeters.push(done);
        }
        self.unlock(inner, false);
    }

    /// Has every commit from now on told to a listener, in order, this client's own among them, and each before any
    /// answer that exposes it. The listener must not call back into the session; it is dropped with the connection.
    pub fn listen(&self, listener: Listener) {
        let mut inner = self.lock();
        if inner.state.closed.is_none() {
            inner.state.listeners.push(listener);
        }
    }

    /// Asks for something that is answered by a [`Reply`].
    pub fn call(&self, request: Request, done: Completion<Reply>) {
        self.ask(Ask::Call { request, done });
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

    fn download(&self, download: Download, progress: Option<OnProgress>, done: Completion<CachedBlob>) {
        let blob = download.blob();
        let moved = Progress { done: 0, total: 0 };
        let sink = Box::new(ToCache { download, progress, moved, done: Some(done) });
        self.ask(Ask::Download { blob, range: 0..u64::MAX, sink });
    }

    /// Loads a part of a blob into memory: from the cached file where there is one, else from the server, without
    /// caching it. What is behind the blob's end is left out. A part from the server is not checked against the
    /// blob's digest, which is the whole's.
    pub fn load_range(&self, blob: BlobId, range: Range<u64>, done: Completion<Vec<u8>>) {
        match self.0.cache.get(blob) {
            Ok(Some(cached)) => self.0.workers.run(move || done(read_range(&cached, range))),
            Ok(None) => {
                let sink = Box::new(ToMemory { bytes: Vec::new(), done });
                self.ask(Ask::Download { blob, range, sink });
            }
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
        self.ask(Ask::Upload { txn, oid, base, data, size, source, done });
    }

    /// Begins nothing new from here on; the endpoint is finished when all that is under way has come to its end.
    pub fn goodbye(&self) {
        let mut inner = self.lock();
        // A connection that is dead or was never alive needs no goodbye.
        let _ = inner.connection.goodbye();
        self.unlock(inner, true);
    }

    /// The connection is gone: everybody who waits is told so.
    pub fn close(&self, reason: &str) {
        let mut inner = self.lock();
        let state = &mut inner.state;
        state.closed.get_or_insert_with(|| reason.to_owned());
        state.listeners.clear();
        for greeter in std::mem::take(&mut state.greeters) {
            let reason = reason.to_owned();
            state.after.push(Box::new(move || greeter(Err(CallError::Disconnected { reason }))));
        }
        for (_, waiter) in std::mem::take(&mut state.waiters) {
            let reason = reason.to_owned();
            state.after.push(Box::new(move || waiter.fail(CallError::Disconnected { reason })));
        }
        for ask in std::mem::take(&mut state.waiting) {
            let reason = reason.to_owned();
            state.after.push(Box::new(move || ask.fail(CallError::Disconnected { reason })));
        }
        state.inlets.abort_all();
        self.unlock(inner, false);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unlocks, then tells who is to be told: the transport only if there is something to send.
    fn unlock(&self, mut inner: MutexGuard<'_, Inner>, wake: bool) {
        let wake = wake && inner.connection.backlog() > 0;
        let after = std::mem::take(&mut inner.state.after);
        drop(inner);
        for act in after {
            act();
        }
        if wake {
            (self.0.wake)();
        }
    }

    fn ask(&self, ask: Ask) {
        let mut inner = self.lock();
        if let Some(reason) = inner.state.closed.clone() {
            drop(inner);
            return ask.fail(CallError::Disconnected { reason });
        }
        inner.state.waiting.push_back(ask);
        inner.pump();
        self.unlock(inner, true);
    }

    /// A sink has got on.
    fn report(&self, report: Report) {
        let mut inner = self.lock();
        match report {
            Report::Stored { transfer, upto } => {
                // The transfer may be over, and the connection gone: then nobody needs to know.
                let _ = inner.connection.stored(transfer, upto);
            }
            Report::Failed { transfer } => {
                inner.state.inlets.remove(transfer);
                if inner.connection.cancel(transfer.into()).is_err() {
                    inner.connection.discard(transfer);
                }
            }
        }
        inner.pump();
        self.unlock(inner, true);
    }
}

fn read_range(cached: &CachedBlob, range: Range<u64>) -> Result<Vec<u8>, CallError> {
    let size = cached.size();
    let (from, upto) = (range.start, range.end.min(size));
    if from > upto {
        let blob = cached.blob();
        return Err(RequestError::BadRange { blob, size, from, upto: range.end }.into());
    }
    let mut bytes = vec![0; usize::try_from(upto - from).unwrap_or(usize::MAX)];
    let read = cached.file().read_exact_at(&mut bytes, from);
    read.map_err(|source| CallError::File { path: cached.path().to_owned(), source })?;
    Ok(bytes)
}

impl Waiter {
    fn fail(self, error: CallError) {
        match self {
            Waiter::Reply(done) => done(Err(error)),
            Waiter::Upload { done, .. } => done(Err(error)),
        }
    }
}

impl Ask {
    /// About how many bytes it queues.
    fn len(&self) -> usize {
        match self {
            Ask::Call {
                request: Request::Store { data, .. } | Request::StoreShared { data, .. }, ..
            }
            | Ask::Upload { data, .. } => data.len(),
            Ask::Call { .. } | Ask::Download { .. } => 0,
        }
    }

    fn fail(self, error: CallError) {
        match (self, error) {
            (Ask::Call { done, .. }, error) => done(Err(error)),
            (Ask::Upload { done, .. }, error) => done(Err(error)),
            (Ask::Download { sink, .. }, CallError::Refused(reason)) => sink.abort(Some(reason)),
            (Ask::Download { sink, .. }, _) => sink.abort(None),
        }
    }
}

impl Inner {
    /// Sends the calls that wait, as far as the server's limits allow.
    fn pump(&mut self) {
        while self.connection.is_connected() {
            let (limits, backlog) = (self.connection.peer_limits(), self.connection.backlog());
            let Some(ask) = self.state.waiting.front() else { return };
            let room = (backlog == 0 || backlog + ask.len() < BACKLOG)
                && self.connection.requests_in_flight() < limits.requests as usize
                && match ask {
                    Ask::Call { .. } => true,
                    Ask::Download { .. } => self.state.inlets.count() < self.state.downloads,
                    Ask::Upload { .. } => self.state.outlets.count() < limits.transfers as usize,
                };
            if !room {
                return;
            }
            let Some(ask) = self.state.waiting.pop_front() else { return };
            self.send(ask);
        }
    }

    fn send(&mut self, ask: Ask) {
        let (connection, state) = (&mut self.connection, &mut self.state);
        match ask {
            Ask::Call { request, done } => match connection.request(request) {
                Ok(id) => drop(state.waiters.insert(id, Waiter::Reply(done))),
                Err(error) => state.after.push(Box::new(move || done(Err(error.into())))),
            },
            Ask::Download { blob, range, sink } => {
                let request = Request::SendBlob { blob, from: range.start, upto: range.end };
                match connection.request(request) {
                    Ok(id) => state.inlets.expect(id.into(), sink),
                    Err(error) => {
                        let detail = error.to_string();
                        let reason = RequestError::Failed { detail };
                        state.after.push(Box::new(move || sink.abort(Some(reason))));
                    }
                }
            }
            Ask::Upload { txn, oid, base, data, size, source, done } => {
                let digest = (size == 0).then(|| Digest(*blake3::hash(&[]).as_bytes()));
                match connection.upload(txn, oid, base, data, size, digest) {
                    Ok(transfer) => {
                        if size > 0 {
                            state.outlets.insert(transfer, source);
                        }
                        state.waiters.insert(transfer.into(), Waiter::Upload { digest, done });
                    }
                    Err(error) => state.after.push(Box::new(move || done(Err(error.into())))),
                }
            }
        }
    }
}

impl State {
    fn event(&mut self, event: client::Event) {
        match event {
            client::Event::Connected(welcome) => {
                self.last_tid = self.last_tid.max(welcome.last_tid);
                let greeters = std::mem::take(&mut self.greeters);
                self.after.push(Box::new(|| greeters.into_iter().for_each(|greeter| greeter(Ok(())))));
            }
            // The connection is dead, and says why to who drives it.
            client::Event::Refused(_) => {}
            client::Event::Reply { id, result } => self.reply(id, result),
            client::Event::Invalidate { tid, oids } => {
                self.last_tid = self.last_tid.max(tid);
                let invalidation = Invalidation { tid, oids: oids.into() };
                self.listeners.retain_mut(|listener| listener(&invalidation));
            }
            client::Event::Transfer(event) => self.inlets.event(event),
            client::Event::Goodbye => tracing::info!("the server is stopping"),
        }
    }

    fn reply(&mut self, id: RequestId, result: Result<Reply, RequestError>) {
        if let Ok(Reply::Finished { tid }) = result {
            self.last_tid = self.last_tid.max(tid);
        }
        match (self.waiters.remove(&id), result) {
            (Some(Waiter::Reply(done)), result) => {
                self.after.push(Box::new(move || done(result.map_err(CallError::from))));
            }
            (Some(Waiter::Upload { digest: Some(digest), done }), Ok(_)) => {
                self.after.push(Box::new(move || done(Ok(digest))));
            }
            (Some(Waiter::Upload { done, .. }), result) => {
                self.outlets.remove(id.into());
                // Done without having had the digest can not be: the machine refuses such an answer.
                let error = result.err().unwrap_or(RequestError::Cancelled);
                self.after.push(Box::new(move || done(Err(error.into()))));
            }
            (None, Err(reason)) => self.inlets.abort(id.into(), Some(reason)),
            (None, Ok(_)) => {}
        }
    }
}

/// The end of a client's connection that its transport drives.
#[derive(Debug)]
pub struct SessionEndpoint(Session);

impl Endpoint for SessionEndpoint {
    fn transmit(&mut self, now: Time, out: &mut Vec<u8>, enough: usize) {
        let mut locked = self.0.lock();
        let inner = &mut *locked;
        loop {
            let outlets = &mut inner.state.outlets;
            buffered::transmit(&mut inner.connection, now, out, enough, |slice, into| {
                outlets.read(slice, into)
            });
            let drained = outlets.take_drained();
            for drained in &drained {
                let Some(digest) = drained.digest else { continue };
                let id: RequestId = drained.transfer.into();
                if let Some(Waiter::Upload { digest: waits, .. }) = inner.state.waiters.get_mut(&id) {
                    *waits = Some(digest);
                }
                // Over only if the server has refused the blob meanwhile, and that needs no digest.
                let _ = inner.connection.finish_blob(drained.transfer, digest);
            }
            inner.pump();
            if drained.is_empty() {
                break;
            }
        }
        self.0.unlock(locked, false);
    }

    fn receive(&mut self, now: Time, bytes: Bytes) -> Result<(), PeerError> {
        let mut locked = self.0.lock();
        let Inner { connection, state } = &mut *locked;
        let on_event = |state: &mut State, _: &mut client::Connection, event| state.event(event);
        let on_payload = |state: &mut State, slice: Slice, at| state.inlets.payload(slice, bytes.slice(at));
        let received = buffered::receive(connection, now, &bytes, state, on_event, on_payload);
        locked.pump();
        self.0.unlock(locked, false);
        received
    }

    fn wants_input(&self) -> bool {
        true
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.0.lock().connection.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Time) -> Result<(), PeerError> {
        let mut locked = self.0.lock();
        let handled = locked.connection.handle_timeout(now);
        while let Some(event) = locked.connection.poll_event() {
            locked.state.event(event);
        }
        locked.pump();
        self.0.unlock(locked, false);
        handled
    }

    /// Calls go to the machine on the threads that make them.
    fn catch_up(&mut self) {}

    fn error(&self) -> Option<PeerError> {
        self.0.lock().connection.error().cloned()
    }

    fn is_finished(&self) -> bool {
        let inner = self.0.lock();
        inner.connection.is_finished() && inner.state.waiting.is_empty()
    }
}

impl Drop for SessionEndpoint {
    fn drop(&mut self) {
        self.0.close("nobody drives it any more");
    }
}
