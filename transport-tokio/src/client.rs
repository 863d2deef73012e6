//! The client: one connection, shared by any number of tasks.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use blobferry_cache::carry::{Clock, Progress, tune};
use blobferry_cache::client::{CallError, ClientConfig, Completion, ConnectError, Session};
use blobferry_cache::{Cache, CachedBlob};
#[cfg(doc)]
use blobferry_protocol::RequestError;
use blobferry_protocol::{BlobId, HistoryEntry, Oid, Outcome, Packed, Revision, Tid, TxnId, TxnMeta};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::drive::drive;
use crate::invalidations::Invalidations;
use crate::transaction::Transaction;

/// A connection to a server, and a cache. Clones share both, and may be used by any number of tasks at once.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    session: Session,
    driver: Mutex<Option<JoinHandle<()>>>,
    woken: Arc<Notify>,
}

impl Client {
    /// Connects, and returns when the handshake is done.
    ///
    /// # Errors
    /// Nobody is there, or it is not a server that speaks to us.
    pub async fn connect(
        addr: impl ToSocketAddrs,
        cache: Cache,
        config: ClientConfig,
    ) -> Result<Client, ConnectError> {
        let stream = TcpStream::connect(addr).await?;
        tune(&stream)?;
        let clock = Clock::start();
        let woken = Arc::new(Notify::new());
        let wake = woken.clone();
        let session = Session::new(cache, clock.now(), &config, move || wake.notify_one());
        let driver = Mutex::new(Some(tokio::spawn(run(stream, clock, session.clone(), woken.clone()))));
        let client = Client(Arc::new(Inner { session, driver, woken }));
        wait(|done| client.0.session.connected(done)).await.map_err(ConnectError::Handshake)?;
        Ok(client)
    }

    /// The cache that blobs are loaded into.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        self.0.session.cache()
    }

    /// The client without its transport: the same calls with callbacks, for who wants to be free of the runtime.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.0.session
    }

    /// The last transaction that this client has heard of. Everything up to it can be read: a good moment to read
    /// many objects as of.
    #[must_use]
    pub fn last_tid(&self) -> Tid {
        self.0.session.last_tid()
    }

    /// Exactly `count` unused oids.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn new_oids(&self, count: u32) -> Result<Vec<Oid>, CallError> {
        wait(|done| self.0.session.new_oids(count, done)).await
    }

    /// The current revision of an object.
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`]; see [`CallError`].
    pub async fn load(&self, oid: Oid) -> Result<Revision, CallError> {
        wait(|done| self.0.session.load(oid, done)).await
    }

    /// One exact revision of an object.
    ///
    /// # Errors
    /// [`RequestError::NoSuchRevision`]; see [`CallError`].
    pub async fn load_serial(&self, oid: Oid, tid: Tid) -> Result<Revision, CallError> {
        wait(|done| self.0.session.load_serial(oid, tid, done)).await
    }

    /// The last revision of an object before a transaction; `None` if it is younger than that.
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`]; see [`CallError`].
    pub async fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, CallError> {
        wait(|done| self.0.session.load_before(oid, before, done)).await
    }

    /// The revisions of an object, newest first, at most `limit` (the server may give fewer).
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`]; see [`CallError`].
    pub async fn history(&self, oid: Oid, limit: u32) -> Result<Vec<HistoryEntry>, CallError> {
        wait(|done| self.0.session.history(oid, limit, done)).await
    }

    /// The server's counters, by name.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn status(&self) -> Result<Vec<(String, u64)>, CallError> {
        wait(|done| self.0.session.status(done)).await
    }

    /// Forgets the revisions that were replaced before a transaction.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn pack(&self, before: Tid) -> Result<Packed, CallError> {
        wait(|done| self.0.session.pack(before, done)).await
    }

    /// What has become of a transaction; if it is not committed, it never will be.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn outcome(&self, txn: TxnId) -> Result<Outcome, CallError> {
        wait(|done| self.0.session.outcome(txn, done)).await
    }

    /// A blob, as an open file in the cache: it is there, or somebody on this machine is downloading it, or it is
    /// downloaded now. Dropping the future does not stop the download: it is of use to the next one.
    ///
    /// # Errors
    /// [`RequestError::NoSuchBlob`]; the cache's; see [`CallError`].
    pub async fn load_blob(&self, blob: BlobId) -> Result<CachedBlob, CallError> {
        wait(|done| self.0.session.load_blob(blob, None, done)).await
    }

    /// The same, telling how far the download is. Where there is nothing to download nothing is told.
    ///
    /// # Errors
    /// As [`load_blob`](Self::load_blob).
    pub async fn load_blob_with(
        &self,
        blob: BlobId,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<CachedBlob, CallError> {
        wait(|done| self.0.session.load_blob(blob, Some(Arc::new(progress)), done)).await
    }

    /// A part of a blob, in memory, without caching it; less than asked for where the blob ends.
    ///
    /// # Errors
    /// [`RequestError::BadRange`] if it begins behind the end; see [`CallError`].
    pub async fn load_range(&self, blob: BlobId, range: Range<u64>) -> Result<Vec<u8>, CallError> {
        wait(|done| self.0.session.load_range(blob, range, done)).await
    }

    /// Begins a transaction. Does not wait for the server: should it refuse, the next call in the transaction says so.
    ///
    /// # Errors
    /// [`CallError::NoName`].
    pub fn begin(&self, meta: TxnMeta) -> Result<Transaction, CallError> {
        Ok(Transaction::new(self.0.session.begin(meta)?))
    }

    /// The transactions that are committed from now on, this client's own among them. Each comes before any answer
    /// that exposes it.
    #[must_use]
    pub fn invalidations(&self) -> Invalidations {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.session.listen(Box::new(move |invalidation| sender.send(invalidation.clone()).is_ok()));
        Invalidations(receiver)
    }

    /// Says goodbye, waits until what is under way has come to its end, and closes the connection. Other clones can
    /// not use it any more either.
    pub async fn close(self) {
        self.0.session.goodbye();
        self.0.woken.notify_one();
        let driver = self.0.driver.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(driver) = driver {
            // A task that has panicked has ended, too.
            let _ = driver.await;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without goodbye: what is under way is given up, open transactions are aborted by the server.
        if let Some(driver) = self.driver.lock().unwrap_or_else(PoisonError::into_inner).take() {
            driver.abort();
        }
        self.session.close("the client was dropped");
    }
}

/// The task of a connection.
async fn run(stream: TcpStream, clock: Clock, session: Session, woken: Arc<Notify>) {
    let ended = drive(&stream, clock, &mut session.endpoint(), &woken).await;
    drop(stream);
    session.close(&ended.to_string());
}

/// Turns a callback into a future: for calls to a [`Session`], whoever drives it.
///
/// # Errors
/// The call's; [`CallError::Disconnected`] where nobody is left to answer.
pub async fn wait<T: Send + 'static, E: From<CallError> + Send + 'static>(
    start: impl FnOnce(Completion<T, E>),
) -> Result<T, E> {
    let (sender, receiver) = oneshot::channel();
    start(Box::new(move |result| drop(sender.send(result))));
    let lost = |_| Err(CallError::Disconnected { reason: "nobody is left to answer".into() }.into());
    receiver.await.unwrap_or_else(lost)
}
