//! A client on mio: a session with one connection after the other, shared by any number of threads.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::ops::RangeBounds;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use blobferry_cache::{Cache, CachedBlob, Follow};
use blobferry_platform::sync::{Condvar, Mutex, MutexGuard};
#[cfg(doc)]
use blobferry_protocol::RequestError;
use blobferry_protocol::{BlobId, HistoryEntry, Oid, Outcome, Packed, Revision, Tid, TxnId, TxnMeta};
use blobferry_session::client::{Addresses, CallError, ClientConfig, ConnectError, Session, byte_range};
use blobferry_session::io::{CloseReason, Progress};
use bytes::Bytes;

use crate::leader::LeaderFollowers;
use crate::notifications::{ConnectionEvents, Invalidations, Notifications};
use crate::thread;
use crate::thread_context;
use crate::transaction::Transaction;
use crate::wait::{wait, wait_on};

/// A client of a server, with a cache. Clones share both, and may be used by any number of threads at once.
///
/// A lost connection is made again, and calls that are under way go on with the next one:
/// [`Reconnect`](blobferry_session::client::Reconnect) says for how long. The drop of the last clone closes the connection
/// at once; [`close`](Self::close) does it gracefully.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    session: Session,
    manager: Arc<ConnectionManager>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Client {
    /// Connects to the first of the addresses at which a server answers, and returns when the handshake is done.
    ///
    /// Each attempt takes at most `handshake_timeout` of [`ClientConfig::connection`]. This does not wait for a server
    /// that starts later.
    ///
    /// # Errors
    /// The error of the last address: see [`ConnectError`].
    pub fn connect(
        addresses: impl Into<Addresses>,
        cache: Cache,
        config: ClientConfig,
    ) -> Result<Client, ConnectError> {
        let addresses = addresses.into();
        let mut failed = ConnectError::no_address();
        for (place, address) in addresses.iter().enumerate() {
            let session = Session::new(cache.clone(), &config, addresses.clone(), place);
            match Client::start(session, address, config.connection.handshake_timeout) {
                Ok(client) => return Ok(client),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn start(session: Session, address: &str, timeout: Duration) -> Result<Client, ConnectError> {
        let manager = Arc::new(ConnectionManager::new(session.clone(), timeout));
        let failed = |source| ConnectError::Connect { address: address.to_owned(), source };
        let first = manager.connect(address).map_err(failed)?;
        let managing = manager.clone();
        let started = thread::start("blobferry-client", move || managing.run(first));
        let thread = Mutex::new(Some(started.map_err(failed)?));
        let client = Client(Arc::new(Inner { session, manager, thread }));
        wait(|done| client.session().connected(done))
            .map_err(|source| ConnectError::Handshake { address: address.to_owned(), source })?;
        Ok(client)
    }

    /// Returns the cache that blobs are loaded into.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        self.session().cache()
    }

    /// Returns the session below this client: the same calls with callbacks.
    ///
    /// Callbacks run on any thread that drives the connection, and must not block. A callback of an
    /// answer may still make a blocking call: other threads drive meanwhile.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.0.session
    }

    /// Subscribes to all later commits, this client's own included. Each arrives before any answer
    /// that reflects it.
    ///
    /// If the receiver falls too far behind, the queued entries are replaced by one with `oids:
    /// None`: any object may have changed.
    #[must_use]
    pub fn invalidations(&self) -> Invalidations {
        let (sender, invalidations) = Notifications::new();
        self.session().listen(Box::new(move |invalidation| sender.notify(invalidation)));
        invalidations
    }

    /// Subscribes to all later changes of the connection. If the receiver falls too far behind, the
    /// oldest are dropped.
    #[must_use]
    pub fn connection_events(&self) -> ConnectionEvents {
        let (sender, events) = Notifications::new();
        self.session().watch(Box::new(move |event| sender.notify(event)));
        events
    }

    /// Returns the newest transaction that this client knows of. Everything up to it, and including
    /// it, can be read: see [`load_at`](Self::load_at).
    #[must_use]
    pub fn last_tid(&self) -> Tid {
        self.session().last_tid()
    }

    /// Allocates exactly `count` unused oids.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn new_oids(&self, count: u32) -> Result<Vec<Oid>, CallError> {
        wait_on(self.session(), |done| self.session().new_oids(count, done))
    }

    /// Loads the current revision of an object.
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`] if there is no such object; see [`CallError`].
    pub fn load(&self, oid: Oid) -> Result<Revision, CallError> {
        wait_on(self.session(), |done| self.session().load(oid, done))
    }

    /// Loads exactly the revision of an object that the transaction `tid` has made.
    ///
    /// # Errors
    /// [`RequestError::NoSuchRevision`] if that transaction has not stored the object; see
    /// [`CallError`].
    pub fn load_serial(&self, oid: Oid, tid: Tid) -> Result<Revision, CallError> {
        wait_on(self.session(), |done| self.session().load_serial(oid, tid, done))
    }

    /// Loads the last revision of an object before the transaction `before`, which is excluded.
    /// Returns `None` if the object is younger.
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`] if there is no such object; see [`CallError`].
    pub fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, CallError> {
        wait_on(self.session(), |done| self.session().load_before(oid, before, done))
    }

    /// Loads the revision of an object that is current at the transaction `tid`, which is included.
    /// Returns `None` if the object is younger. With the same [`last_tid`](Self::last_tid) for all
    /// of them, many objects are read as of one moment.
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`] if there is no such object; see [`CallError`].
    pub fn load_at(&self, oid: Oid, tid: Tid) -> Result<Option<Revision>, CallError> {
        wait_on(self.session(), |done| self.session().load_at(oid, tid, done))
    }

    /// Lists the revisions of an object, newest first, at most `limit`. The server may return
    /// fewer.
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`] if there is no such object; see [`CallError`].
    pub fn history(&self, oid: Oid, limit: u32) -> Result<Vec<HistoryEntry>, CallError> {
        wait_on(self.session(), |done| self.session().history(oid, limit, done))
    }

    /// Returns the server's counters, by name.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn status(&self) -> Result<Vec<(String, u64)>, CallError> {
        wait_on(self.session(), |done| self.session().status(done))
    }

    /// Deletes the revisions that were replaced before the transaction `before`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn pack(&self, before: Tid) -> Result<Packed, CallError> {
        wait_on(self.session(), |done| self.session().pack(before, done))
    }

    /// Returns the outcome of a transaction. If it is not committed, it never will be.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn outcome(&self, txn: TxnId) -> Result<Outcome, CallError> {
        wait_on(self.session(), |done| self.session().outcome(txn, done))
    }

    /// Loads a blob as an open file in the cache. If it is not there, it is downloaded, or a
    /// download in progress on this machine is awaited.
    ///
    /// # Errors
    /// [`RequestError::NoSuchBlob`] if there is no such blob; [`CallError::Cache`]; see
    /// [`CallError`].
    pub fn load_blob(&self, blob: BlobId) -> Result<CachedBlob, CallError> {
        wait_on(self.session(), |done| self.session().load_blob(blob, None, done))
    }

    /// Loads a blob as [`load_blob`](Self::load_blob) does, and reports the progress of the
    /// download. Nothing is reported if nothing is downloaded. The callback must not block.
    ///
    /// # Errors
    /// As [`load_blob`](Self::load_blob).
    pub fn load_blob_with(
        &self,
        blob: BlobId,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<CachedBlob, CallError> {
        wait_on(self.session(), |done| self.session().load_blob(blob, Some(Arc::new(progress)), done))
    }

    /// Loads a whole blob into memory. Its digest is verified.
    ///
    /// Use this for small blobs, of at most [`Cache::SMALL`] bytes: the cache keeps them for all
    /// processes of the machine, without a file for each. A larger blob goes through a file, as
    /// with [`load_blob`](Self::load_blob).
    ///
    /// # Errors
    /// As [`load_blob`](Self::load_blob).
    pub fn load_bytes(&self, blob: BlobId) -> Result<Bytes, CallError> {
        wait_on(self.session(), |done| self.session().load_bytes(blob, done))
    }

    /// Reads a blob while it arrives, in whichever process of this machine downloads it. If none
    /// does, this client downloads it.
    ///
    /// The bytes come as they arrive. The end comes only after all of them were verified; if they
    /// cannot be, an error comes in its place. Reading blocks the thread.
    ///
    /// # Errors
    /// [`CallError::Cache`] if the cache cannot prepare for it. Errors of the download come from
    /// reading.
    pub fn follow_blob(&self, blob: BlobId) -> Result<Follow, CallError> {
        self.session().follow_blob(blob)
    }

    /// Loads a range of a blob into memory. **The bytes are not verified** if they come from the
    /// server, because the digest is that of the whole blob.
    ///
    /// The range is read from the cached file if there is one. Otherwise the server sends it, and
    /// it is not cached. The result is shorter than the range if the blob ends within it.
    ///
    /// # Errors
    /// [`RequestError::BadRange`] if the range begins behind the end of the blob; see
    /// [`CallError`].
    pub fn load_range(&self, blob: BlobId, range: impl RangeBounds<u64>) -> Result<Bytes, CallError> {
        let range = byte_range(&range);
        wait_on(self.session(), |done| self.session().load_range(blob, range, done)).map(Bytes::from)
    }

    /// Begins a transaction, without waiting for the server. If the server refuses it, the next
    /// call in the transaction fails with the server's reason.
    ///
    /// # Errors
    /// [`CallError::NoName`] if the operating system has no random numbers.
    pub fn begin(&self, meta: TxnMeta) -> Result<Transaction, CallError> {
        Ok(Transaction::new(self.session().begin(meta)?))
    }

    /// Closes the client gracefully: calls that are under way are answered first. Calls of other clones fail afterwards.
    pub fn close(self) {
        thread_context::give_up_leads();
        self.0.session.goodbye();
        self.0.manager.wake();
        self.0.join();
    }
}

impl Inner {
    /// Waits for the end of the thread. A thread that is connecting is left alone: it may take long, and ends by itself.
    fn join(&self) {
        if self.manager.state().connecting {
            return;
        }
        let thread = self.thread.lock().take();
        thread.and_then(thread::join);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        thread_context::give_up_leads();
        // Without goodbye: calls that are under way fail.
        self.session.close("the client was dropped");
        self.manager.abort();
        self.join();
    }
}

/// Makes the connections of a client. Its thread drives the current one while no caller does, and replaces it when it is
/// lost.
#[derive(Debug)]
struct ConnectionManager {
    session: Session,
    /// How long an attempt to connect may take.
    connect_timeout: Duration,
    state: Mutex<ManagerState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct ManagerState {
    /// The thread is connecting.
    connecting: bool,
    /// The threads that drive the current connection.
    current: Option<Arc<LeaderFollowers>>,
    /// The thread has to check whether the session is over.
    woken: bool,
    /// Every connection ends at once.
    aborted: bool,
}

impl ConnectionManager {
    fn new(session: Session, connect_timeout: Duration) -> ConnectionManager {
        ConnectionManager { session, connect_timeout, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, ManagerState> {
        self.state.lock()
    }

    fn connect(&self, address: &str) -> io::Result<Arc<LeaderFollowers>> {
        self.state().connecting = true;
        let stream = connect(address, self.connect_timeout);
        self.state().connecting = false;
        let stream = stream?;
        stream.set_nonblocking(true)?;
        let stream = mio::net::TcpStream::from_std(stream);
        let connection = LeaderFollowers::new(self.session.clone(), stream)?;
        let mut state = self.state();
        if state.aborted {
            connection.abort();
        }
        state.current = Some(connection.clone());
        Ok(connection)
    }

    /// Drives one connection after the other until the session is over. The client's own thread runs this.
    fn run(&self, first: Arc<LeaderFollowers>) {
        thread_context::set_owns_connections();
        let mut next = Some(first);
        while let Some(connection) = next {
            let reason = connection.run_background();
            connection.end(&reason);
            self.state().current = None;
            next = self.reconnect();
        }
    }

    fn reconnect(&self) -> Option<Arc<LeaderFollowers>> {
        loop {
            let dial = self.session.next_dial()?;
            if self.pause(dial.pause) {
                match self.connect(&dial.address) {
                    Ok(connection) => return Some(connection),
                    Err(error) => self.session.lost(&CloseReason::Stream(error)),
                }
            }
        }
    }

    /// Pauses. Returns `false` if the pause was cut short by [`wake`](Self::wake).
    fn pause(&self, time: Duration) -> bool {
        let mut state = self.changed.wait_timeout_while(self.state(), time, |state| !state.woken);
        !std::mem::take(&mut state.woken)
    }

    /// Makes the thread check whether the session is over.
    fn wake(&self) {
        let mut state = self.state();
        state.woken = true;
        state.current.iter().for_each(|connection| connection.request_background_leader());
        drop(state);
        self.changed.notify_all();
    }

    /// Ends the connection at once, with everything under way.
    fn abort(&self) {
        let mut state = self.state();
        (state.aborted, state.woken) = (true, true);
        state.current.iter().for_each(|connection| connection.abort());
        drop(state);
        self.changed.notify_all();
    }
}

/// Connects to the first address of a name that accepts.
fn connect(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    for resolved in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&resolved, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}
