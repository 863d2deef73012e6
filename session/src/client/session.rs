//! The public calls of a session: connections, notifications, and loading blobs.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use blobferry_cache::{Cache, CachedBlob, Claim, Follow};
use blobferry_platform::pool::BlockingPool;
use blobferry_platform::progress::OnProgress;
use blobferry_platform::sync::{Arc, Mutex};
use blobferry_protocol::{BlobId, Reply, Request, Tid, Time, client};

use crate::client::config::ClientConfig;
use crate::client::dial::{Addresses, Dial, Dialer};
use crate::client::download::MemoryTarget;
use crate::client::error::CallError;
use crate::client::events::{Listener, Wake, Watcher};
use crate::client::handler::Handler;
use crate::client::queue::Queued;
use crate::client::shared::{Session, Shared, clamp, read_range};
use crate::client::state::{Inner, SessionState};
use crate::io::{CloseReason, ConnectionIo, SinkEvent};

/// Threads of a session's pool, at most.
const WORKERS: usize = 8;

impl Session {
    /// Creates a session without a connection. Its first connection is to the address at index `place`. With
    /// [`Addresses::none`], or without [`ClientConfig::reconnect`], it ends with its first connection.
    #[must_use]
    pub fn new(cache: Cache, config: &ClientConfig, addresses: Addresses, place: usize) -> Session {
        let workers = BlockingPool::new(WORKERS);
        let addresses = if config.reconnect.is_some() { addresses } else { Addresses::none() };
        let mut dialer = Dialer::new(addresses, config.reconnect.unwrap_or_default());
        dialer.start_at(place);
        let connection = client::Connection::new(Time::ZERO, config.connection, &config.credentials);
        let downloads = config.connection.limits.transfers as usize;
        let state = SessionState::new(dialer, downloads, Cache::SMALL, &workers);
        let inner = Mutex::new(Inner { connection, state });
        Session(Arc::new(Shared { cache, workers, config: config.clone(), inner }))
    }

    /// Begins a connection on a stream: sends hello, and goes on with everything pending. `wake` is called from any
    /// thread, never while the session is locked, when there is something to send; then the transport must drive the
    /// connection.
    ///
    /// When the connection has ended, call [`lost`](Self::lost) before the [`ConnectionIo`] is dropped.
    ///
    /// # Errors
    /// The stream's socket options cannot be set.
    pub fn connect(
        &self,
        stream: &impl AsFd,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<ConnectionIo<Handler>> {
        ConnectionIo::begin(stream, |now| self.converse(now, wake))
    }

    /// Begins a connection that needs no socket: the caller moves the bytes itself, through
    /// [`ConnectionHandler`](crate::io::ConnectionHandler). The connection begins at the moment `now`. See
    /// [`connect`](Self::connect) for `wake`.
    #[must_use]
    pub fn converse(&self, now: Time, wake: impl Fn() + Send + Sync + 'static) -> Handler {
        let wake: Wake = Arc::new(wake);
        let config = &self.0.config;
        let mut inner = self.lock();
        let generation = inner.state.begin_generation(wake);
        let weak = Arc::downgrade(&self.0);
        let report = move |event| {
            if let Some(shared) = weak.upgrade() {
                Session(shared).sink_event(generation, event);
            }
        };
        inner.state.receive_with(&self.0.workers, Arc::new(report));
        let last = inner.connection.last_request();
        inner.connection = client::Connection::after(now, config.connection, &config.credentials, last);
        Handler::new(self.clone(), generation, &inner.state.dialer.address())
    }

    /// Returns the newest transaction that this client knows of. Everything up to it, and including it, can be read:
    /// see [`load_at`](Self::load_at).
    #[must_use]
    pub fn last_tid(&self) -> Tid {
        self.lock().state.last_tid
    }

    /// Waits until the handshake of this connection, or of a later one, is done. Calls can be made before.
    pub fn connected(&self, done: impl FnOnce(Result<(), CallError>) + Send + 'static) {
        let mut inner = self.lock();
        if let Some(reason) = inner.state.closed().map(str::to_owned) {
            inner.state.defer(move || done(Err(CallError::Disconnected { reason })));
        } else if inner.state.is_up() && inner.connection.is_connected() {
            inner.state.defer(move || done(Ok(())));
        } else {
            inner.state.handshake_waiters.push(Box::new(done));
        }
        self.unlock(inner, false);
    }

    /// Registers a listener for all later commits, including this client's own. It is called in commit order, and before
    /// any answer that reflects the commit. It must not call into the session. It is dropped when the session ends.
    pub fn listen(&self, listener: Listener) {
        let mut inner = self.lock();
        if inner.state.closed().is_none() {
            inner.state.listeners.push(listener);
        }
    }

    /// Registers a watcher for all later changes of the connection. It must not call into the session. It is dropped
    /// when the session ends.
    pub fn watch(&self, watcher: Watcher) {
        let mut inner = self.lock();
        if inner.state.closed().is_none() {
            inner.state.watchers.push(watcher);
        }
    }

    /// Sends a request that is answered by a [`Reply`].
    pub fn call(&self, request: Request, done: impl FnOnce(Result<Reply, CallError>) + Send + 'static) {
        self.enqueue(Queued::Call { request, done: Box::new(done) });
    }

    /// Loads a blob into the cache: it is there, or it is downloaded, or a download already in progress is awaited. The
    /// calling thread finds a cached blob; otherwise the call does not block. A download that is no longer awaited goes
    /// on.
    pub fn load_blob(
        &self,
        blob: BlobId,
        progress: Option<OnProgress>,
        done: impl FnOnce(Result<CachedBlob, CallError>) + Send + 'static,
    ) {
        let session = self.clone();
        self.0.cache.claim_with(blob, move |claim| match claim {
            Ok(Claim::Hit(cached)) => done(Ok(cached)),
            Ok(Claim::Download(download)) => session.download(download, progress, Box::new(done)),
            Err(error) => done(Err(error.into())),
        });
    }

    /// Reads a blob while it arrives, in whichever process of this machine downloads it. If none does, this client
    /// downloads it. [`Follow`] says what is promised. Reading blocks.
    ///
    /// # Errors
    /// [`CallError::Cache`].
    pub fn follow_blob(&self, blob: BlobId) -> Result<Follow, CallError> {
        let session = self.clone();
        let follow = self.0.cache.follow_with(blob, move |download, end| {
            session.download(download, None, Box::new(move |result| end.tell(result)));
        });
        Ok(follow?)
    }

    /// **The bytes are not verified** if they come from the server, because the digest is that of the whole blob. Loads
    /// a range of a blob into memory: from the cached file if there is one, otherwise from the server without caching
    /// it.
    ///
    /// The result is shorter than the range if the blob ends within it. A range that begins behind the end fails with
    /// [`RequestError::BadRange`](blobferry_protocol::RequestError::BadRange).
    pub fn load_range(
        &self,
        blob: BlobId,
        range: Range<u64>,
        done: impl FnOnce(Result<Vec<u8>, CallError>) + Send + 'static,
    ) {
        match self.0.cache.get(blob) {
            Ok(Some(cached)) => self.0.workers.run(move || done(read_range(&cached, range))),
            Ok(None) => match self.0.cache.packed(blob) {
                Some(bytes) => {
                    let part = clamp(blob, bytes.len() as u64, range).map(|range| bytes.slice(range).into());
                    done(part);
                }
                None => MemoryTarget::request(self, blob, range, Box::new(done)),
            },
            Err(error) => done(Err(error.into())),
        }
    }

    /// Ends the session gracefully: nothing new begins, and the handler is finished when everything pending is done.
    pub fn goodbye(&self) {
        let mut inner = self.lock();
        inner.state.leaving = true;
        if !inner.state.is_up() || inner.connection.goodbye().is_err() {
            // There is no connection on which to say goodbye.
            drop(inner);
            return self.close("the client was closed");
        }
        self.unlock(inner, true);
    }

    /// Ends the session at once. Pending calls fail with this reason.
    pub fn close(&self, reason: &str) {
        let mut inner = self.lock();
        inner.state.close(reason);
        self.unlock(inner, false);
    }

    /// Reports that the connection was lost, or that an attempt to connect has failed. The transport calls this, then
    /// [`next_dial`](Self::next_dial).
    pub fn lost(&self, ended: &CloseReason) {
        let mut inner = self.lock();
        let connected = inner.state.is_up() && inner.connection.is_connected();
        inner.state.lost(ended, connected);
        self.unlock(inner, false);
    }

    /// Returns the address for the next connection, and the pause before it. With `None` the session is over.
    #[must_use]
    pub fn next_dial(&self) -> Option<Dial> {
        self.lock().state.next_dial()
    }

    /// Leaves the completions of answers to [`call_back`](Self::call_back) from now on. A transport that drives the
    /// connection under a lock of its own needs this.
    pub fn defer_callbacks(&self) {
        self.lock().state.for_driver.get_or_insert_default();
    }

    /// Runs the oldest of the [deferred](Self::defer_callbacks) completions. Returns `false` if there is none.
    pub fn call_back(&self) -> bool {
        let act = self.lock().state.for_driver.as_mut().and_then(VecDeque::pop_front);
        act.map(|act| act()).is_some()
    }

    /// Wakes the transport, as if there was something to send.
    pub fn wake(&self) {
        let wake = self.lock().state.wake.clone();
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Returns whether any request waits for its answer.
    #[must_use]
    pub fn awaits_answers(&self) -> bool {
        let inner = self.lock();
        inner.connection.requests_in_flight() > 0 || !inner.state.queued.is_empty()
    }

    /// Takes the progress of a sink. Leftovers of an earlier connection are ignored.
    fn sink_event(&self, generation: u64, event: SinkEvent) {
        let mut inner = self.lock();
        if inner.state.is_generation(generation) {
            match event {
                SinkEvent::Stored { transfer, upto } => {
                    // An error means that the transfer is over or the connection dead, and needs no credit.
                    let _ = inner.connection.stored(transfer, upto);
                }
                SinkEvent::Failed { transfer } => {
                    inner.state.incoming.remove(transfer);
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

#[cfg(test)]
pub(super) mod tests {
    use blobferry_cache::CacheConfig;
    use blobferry_protocol::{Config, Limits, Oid, RequestId, TxnId, TxnMeta, buffered, server};
    use bytes::Bytes;
    use tempfile::TempDir;

    use super::*;
    use crate::client::state::Link;
    use crate::io::ConnectionHandler;

    /// Returns a session with a cache of its own, on a connection that a server has welcomed.
    pub(in super::super) fn welcomed(config: Config) -> (Session, Handler, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), CacheConfig::default()).unwrap();
        let config = ClientConfig { connection: config, ..ClientConfig::default() };
        let session = Session::new(cache, &config, Addresses::from("server:1"), 0);
        let mut handler = session.converse(Time::ZERO, || {});
        let mut server = server::Connection::new(Time::ZERO, Config::default());
        let mut said = Vec::new();
        handler.transmit(Time::ZERO, &mut said, usize::MAX, false);
        server.handle_control(Time::ZERO, &said).unwrap();
        server.welcome(Tid::ZERO).unwrap();
        let mut welcome = Vec::new();
        assert!(server.poll_transmit(Time::ZERO, &mut welcome).is_some());
        handler.receive(Time::ZERO, Bytes::from(welcome)).unwrap();
        (session, handler, dir)
    }

    #[test]
    fn cancelled_download_keeps_its_slot_until_answered() {
        let limits = Limits { transfers: 1, ..Limits::default() };
        let (session, _handler, _dir) = welcomed(Config { limits, ..Config::default() });
        // Their buckets differ, so that they do not wait for each other in the cache.
        for oid in [1, 2] {
            let blob = BlobId { oid: Oid(oid), tid: Tid(1) };
            session.load_blob(blob, None, Box::new(|_| {}));
        }
        let Link::Up { generation } = session.lock().state.link else { panic!("it is connected") };
        session.sink_event(generation, SinkEvent::Failed { transfer: RequestId(1).into() });
        let inner = session.lock();
        assert_eq!((inner.connection.downloads(), inner.state.queued.len()), (1, 1));
    }

    /// Moves all bytes, both ways. Returns the requests that the server received.
    fn exchange(handler: &mut Handler, server: &mut server::Connection) -> Vec<Request> {
        let (mut up, mut down, mut requests) = (Vec::new(), Vec::new(), Vec::new());
        handler.transmit(Time::ZERO, &mut up, usize::MAX, false);
        let on_event = |requests: &mut Vec<Request>, server: &mut server::Connection, event| match event {
            server::Event::Hello { .. } => server.welcome(Tid::ZERO).unwrap(),
            server::Event::Request { id, request } => {
                let is_vote = matches!(request, Request::Vote { .. });
                server.reply(id, Ok(if is_vote { Reply::Voted } else { Reply::Done })).unwrap();
                requests.push(request);
            }
            _ => {}
        };
        buffered::receive(server, Time::ZERO, &up, &mut requests, on_event, |_, _, _| {}).unwrap();
        buffered::transmit(server, Time::ZERO, &mut down, usize::MAX, |_, _| Ok(()));
        handler.receive(Time::ZERO, Bytes::from(down)).unwrap();
        requests
    }

    #[test]
    fn commit_does_not_overtake_its_store_after_a_goodbye() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), CacheConfig::default()).unwrap();
        let session = Session::new(cache, &ClientConfig::default(), Addresses::from("server:1"), 0);
        let mut handler = session.converse(Time::ZERO, || {});
        let mut server = server::Connection::new(Time::ZERO, Config::default());
        exchange(&mut handler, &mut server);
        let [whole, part] = [1, 2].map(|n| TxnId([n; 16]));
        for txn in [whole, part] {
            session.call(Request::Begin { txn, meta: TxnMeta::default() }, Box::new(|_| {}));
        }
        assert_eq!(exchange(&mut handler, &mut server).len(), 2);
        server.goodbye().unwrap();
        exchange(&mut handler, &mut server);

        let store = Request::Store { txn: part, oid: Oid(1), base: Tid::ZERO, data: Vec::new() };
        for request in [store, Request::Commit { txn: part }, Request::Vote { txn: whole }] {
            session.call(request, Box::new(|_| {}));
        }
        assert_eq!(exchange(&mut handler, &mut server), [Request::Vote { txn: whole }]);
        assert_eq!(session.lock().state.queued.len(), 2, "they wait for the next connection");
    }
}
