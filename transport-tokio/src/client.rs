//! A client on tokio: a session with one connection after the other, shared by any number of tasks.

use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::time::Duration;

use blobferry_cache::{Cache, CachedBlob};
use blobferry_platform::sync::Mutex;
#[cfg(doc)]
use blobferry_protocol::RequestError;
use blobferry_protocol::{BlobId, HistoryEntry, Oid, Outcome, Packed, Revision, Tid, TxnId, TxnMeta};
use blobferry_session::client::{
    Addresses, CallError, ClientConfig, ConnectError, Handler, Session, byte_range,
};
use blobferry_session::io::{CloseReason, ConnectionIo, Progress};
use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::driver::drive;
use crate::follow::Follow;
use crate::notifications::{ConnectionEvents, Invalidations, Notifications};
use crate::transaction::Transaction;
use crate::wait::{wait, wait_on};
use crate::wakeup::TaskWaker;

/// A client of a server, with a cache. Clones share both, and may be used by any number of tasks at once.
///
/// A lost connection is made again, and calls that are under way go on with the next one:
/// [`Reconnect`](blobferry_session::client::Reconnect) says for how long. The drop of the last clone closes the connection
/// at once; [`close`](Self::close) does it gracefully.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    session: Session,
    driver: Mutex<Option<JoinHandle<()>>>,
    waker: Arc<TaskWaker>,
}

impl Client {
    /// Connects to the first of the addresses at which a server answers, and returns when the handshake is done. The
    /// connection is driven by a task of its own, on the runtime of the caller.
    ///
    /// Each attempt takes at most `handshake_timeout` of [`ClientConfig::connection`]. This does not wait for a server
    /// that starts later.
    ///
    /// # Cancel safety
    /// A dropped future closes the connection.
    ///
    /// # Errors
    /// The error of the last address: see [`ConnectError`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with IO and time enabled.
    pub async fn connect(
        addresses: impl Into<Addresses>,
        cache: Cache,
        config: ClientConfig,
    ) -> Result<Client, ConnectError> {
        let addresses = addresses.into();
        let mut failed = ConnectError::no_address();
        for (place, address) in addresses.iter().enumerate() {
            let session = Session::new(cache.clone(), &config, addresses.clone(), place);
            match Client::start(session, address, config.connection.handshake_timeout).await {
                Ok(client) => return Ok(client),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn start(session: Session, address: &str, timeout: Duration) -> Result<Client, ConnectError> {
        let failed = |source| ConnectError::Connect { address: address.to_owned(), source };
        let stream = connect(address, timeout).await.map_err(failed)?;
        let waker = Arc::new(TaskWaker::default());
        let io = begin(&session, &stream, &waker).map_err(failed)?;
        let running = run(stream, io, session.clone(), waker.clone(), timeout);
        let driver = Mutex::new(Some(tokio::spawn(running)));
        let client = Client(Arc::new(Inner { session, driver, waker }));
        wait(|done| client.session().connected(done))
            .await
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
    /// Callbacks run on the thread that drives the connection, and must not block.
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
    /// # Cancel safety
    /// A dropped future abandons its oids. They stay unused for ever, which harms nothing.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn new_oids(&self, count: u32) -> Result<Vec<Oid>, CallError> {
        wait_on(self.session(), |done| self.session().new_oids(count, done)).await
    }

    /// Loads the current revision of an object.
    ///
    /// # Cancel safety
    /// A dropped future abandons the answer, and nothing else.
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`] if there is no such object; see [`CallError`].
    pub async fn load(&self, oid: Oid) -> Result<Revision, CallError> {
        wait_on(self.session(), |done| self.session().load(oid, done)).await
    }

    /// Loads exactly the revision of an object that the transaction `tid` has made.
    ///
    /// # Cancel safety
    /// A dropped future abandons the answer, and nothing else.
    ///
    /// # Errors
    /// [`RequestError::NoSuchRevision`] if that transaction has not stored the object; see
    /// [`CallError`].
    pub async fn load_serial(&self, oid: Oid, tid: Tid) -> Result<Revision, CallError> {
        wait_on(self.session(), |done| self.session().load_serial(oid, tid, done)).await
    }

    /// Loads the last revision of an object before the transaction `before`, which is excluded.
    /// Returns `None` if the object is younger.
    ///
    /// # Cancel safety
    /// A dropped future abandons the answer, and nothing else.
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`] if there is no such object; see [`CallError`].
    pub async fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, CallError> {
        wait_on(self.session(), |done| self.session().load_before(oid, before, done)).await
    }

    /// Loads the revision of an object that is current at the transaction `tid`, which is included.
    /// Returns `None` if the object is younger. With the same [`last_tid`](Self::last_tid) for all
    /// of them, many objects are read as of one moment.
    ///
    /// # Cancel safety
    /// A dropped future abandons the answer, and nothing else.
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`] if there is no such object; see [`CallError`].
    pub async fn load_at(&self, oid: Oid, tid: Tid) -> Result<Option<Revision>, CallError> {
        wait_on(self.session(), |done| self.session().load_at(oid, tid, done)).await
    }

    /// Lists the revisions of an object, newest first, at most `limit`. The server may return
    /// fewer.
    ///
    /// # Cancel safety
    /// A dropped future abandons the answer, and nothing else.
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`] if there is no such object; see [`CallError`].
    pub async fn history(&self, oid: Oid, limit: u32) -> Result<Vec<HistoryEntry>, CallError> {
        wait_on(self.session(), |done| self.session().history(oid, limit, done)).await
    }

    /// Returns the server's counters, by name.
    ///
    /// # Cancel safety
    /// A dropped future abandons the answer, and nothing else.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn status(&self) -> Result<Vec<(String, u64)>, CallError> {
        wait_on(self.session(), |done| self.session().status(done)).await
    }

    /// Deletes the revisions that were replaced before the transaction `before`.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the server: it goes on deleting.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn pack(&self, before: Tid) -> Result<Packed, CallError> {
        wait_on(self.session(), |done| self.session().pack(before, done)).await
    }

    /// Returns the outcome of a transaction. If it is not committed, it never will be.
    ///
    /// # Cancel safety
    /// A dropped future abandons the answer, and nothing else.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn outcome(&self, txn: TxnId) -> Result<Outcome, CallError> {
        wait_on(self.session(), |done| self.session().outcome(txn, done)).await
    }

    /// Loads a blob as an open file in the cache. If it is not there, it is downloaded, or a
    /// download in progress on this machine is awaited.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the download: it goes on, for the next caller.
    ///
    /// # Errors
    /// [`RequestError::NoSuchBlob`] if there is no such blob; [`CallError::Cache`]; see
    /// [`CallError`].
    pub async fn load_blob(&self, blob: BlobId) -> Result<CachedBlob, CallError> {
        wait_on(self.session(), |done| self.session().load_blob(blob, None, done)).await
    }

    /// Loads a blob as [`load_blob`](Self::load_blob) does, and reports the progress of the
    /// download. Nothing is reported if nothing is downloaded. The callback must not block.
    ///
    /// # Cancel safety
    /// As [`load_blob`](Self::load_blob).
    ///
    /// # Errors
    /// As [`load_blob`](Self::load_blob).
    pub async fn load_blob_with(
        &self,
        blob: BlobId,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<CachedBlob, CallError> {
        wait_on(self.session(), |done| self.session().load_blob(blob, Some(Arc::new(progress)), done)).await
    }

    /// Loads a whole blob into memory. Its digest is verified.
    ///
    /// Use this for small blobs, of at most [`Cache::SMALL`] bytes: the cache keeps them for all
    /// processes of the machine, without a file for each. A larger blob goes through a file, as
    /// with [`load_blob`](Self::load_blob).
    ///
    /// # Cancel safety
    /// As [`load_blob`](Self::load_blob).
    ///
    /// # Errors
    /// As [`load_blob`](Self::load_blob).
    pub async fn load_bytes(&self, blob: BlobId) -> Result<Bytes, CallError> {
        wait_on(self.session(), |done| self.session().load_bytes(blob, done)).await
    }

    /// Reads a blob while it arrives, in whichever process of this machine downloads it. If none
    /// does, this client downloads it.
    ///
    /// The bytes come as they arrive. The end comes only after all of them were verified; if they
    /// cannot be, an error comes in its place.
    ///
    /// # Errors
    /// [`CallError::Cache`] if the cache cannot prepare for it. Errors of the download come from
    /// reading.
    pub fn follow_blob(&self, blob: BlobId) -> Result<Follow, CallError> {
        self.session().follow_blob(blob).map(Follow::new)
    }

    /// Loads a range of a blob into memory. **The bytes are not verified** if they come from the
    /// server, because the digest is that of the whole blob.
    ///
    /// The range is read from the cached file if there is one. Otherwise the server sends it, and
    /// it is not cached. The result is shorter than the range if the blob ends within it.
    ///
    /// # Cancel safety
    /// A dropped future abandons the answer, and nothing else.
    ///
    /// # Errors
    /// [`RequestError::BadRange`] if the range begins behind the end of the blob; see
    /// [`CallError`].
    pub async fn load_range(&self, blob: BlobId, range: impl RangeBounds<u64>) -> Result<Bytes, CallError> {
        let range = byte_range(&range);
        wait_on(self.session(), |done| self.session().load_range(blob, range, done)).await.map(Bytes::from)
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
    ///
    /// # Cancel safety
    /// The drop of the future does not stop the close. If this was the last clone, calls that are under way fail then.
    pub async fn close(self) {
        self.0.session.goodbye();
        self.0.waker.wake();
        let driver = self.0.driver.lock().take();
        if let Some(driver) = driver {
            // A task that panicked has ended as well.
            let _ = driver.await;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without goodbye: calls that are under way fail.
        self.session.close("the client was dropped");
        if let Some(driver) = self.driver.lock().take() {
            driver.abort();
        }
    }
}

/// Drives one connection after the other until the session is over.
async fn run(
    mut stream: TcpStream,
    mut io: ConnectionIo<Handler>,
    session: Session,
    waker: Arc<TaskWaker>,
    connect_timeout: Duration,
) {
    loop {
        let reason = drive(&mut stream, &mut io, &waker, || session.expects_small_answer()).await;
        drop(stream);
        session.lost(&reason);
        drop(io);
        (stream, io) = loop {
            let Some(dial) = session.next_dial() else { return };
            tokio::select! {
                () = sleep(dial.pause) => {}
                // The client may have been closed.
                () = waker.woken() => continue,
            }
            let connected = connect(&dial.address, connect_timeout).await;
            match connected.and_then(|stream| Ok((begin(&session, &stream, &waker)?, stream))) {
                Ok((io, stream)) => break (stream, io),
                Err(error) => session.lost(&CloseReason::Stream(error)),
            }
        };
    }
}

async fn connect(address: &str, time: Duration) -> io::Result<TcpStream> {
    timeout(time, TcpStream::connect(address)).await.unwrap_or_else(|late| Err(late.into()))
}

fn begin(session: &Session, stream: &TcpStream, waker: &Arc<TaskWaker>) -> io::Result<ConnectionIo<Handler>> {
    let waker = waker.clone();
    session.connect(stream, move || waker.wake())
}
