//! The client: one connection, shared by any number of tasks.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use blobferry_cache::client::{CallError, Completion, Invalidation, Notice, Session};
use blobferry_cache::{Cache, CachedBlob};
use blobferry_protocol::{
    BlobId, Config, HistoryEntry, Oid, Outcome, Packed, Reply, Request, RequestError, Revision, Tid, TxnId,
    TxnMeta,
};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::Progress;
use crate::drive::{Clock, Ended, drive, prepare};
use crate::invalidations::Invalidations;
use crate::transaction::Transaction;

/// How a client behaves.
#[derive(Clone, Debug, Default)]
pub struct ClientConfig {
    /// How its connection behaves.
    pub connection: Config,
    /// What proves to the server who this is. Servers ask for nothing today.
    pub credentials: Vec<u8>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there, or the address is none.
    #[error("can not connect: {0}")]
    Connect(#[from] io::Error),
    /// Somebody listens, but no conversation came about.
    #[error("the server ended the connection before it began: {0}")]
    Handshake(String),
}

/// A connection to a server, and a cache. Clones share both, and may be used by any number of tasks at once.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    session: Session,
    listeners: Arc<Listeners>,
    driver: Mutex<Option<JoinHandle<()>>>,
    woken: Arc<Notify>,
}

/// Who wants to hear of commits.
#[derive(Debug, Default)]
struct Listeners(Mutex<Vec<mpsc::UnboundedSender<Invalidation>>>);

impl Listeners {
    fn with<T>(&self, act: impl FnOnce(&mut Vec<mpsc::UnboundedSender<Invalidation>>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How far the handshake is.
#[derive(Clone, Debug)]
enum Handshake {
    Waiting,
    Connected,
    Ended(String),
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
        prepare(&stream)?;
        let clock = Clock::start();
        let woken = Arc::new(Notify::new());
        let listeners = Arc::new(Listeners::default());
        let (handshake, mut shaken) = watch::channel(Handshake::Waiting);
        let handshake = Arc::new(handshake);
        let session = {
            let (woken, listeners, handshake) = (woken.clone(), listeners.clone(), handshake.clone());
            Session::new(cache, clock.now(), config.connection, &config.credentials, move |notice| {
                match notice {
                    Notice::Wake => woken.notify_one(),
                    Notice::Connected => drop(handshake.send_replace(Handshake::Connected)),
                    Notice::Invalidated(invalidation) => listeners.with(|listeners| {
                        listeners.retain(|listener| listener.send(invalidation.clone()).is_ok());
                    }),
                    Notice::Goodbye => tracing::info!("the server is stopping"),
                }
            })
        };
        let driver =
            tokio::spawn(run(stream, clock, session.clone(), woken.clone(), listeners.clone(), handshake));
        let client = Client(Arc::new(Inner { session, listeners, driver: Mutex::new(Some(driver)), woken }));
        let shaken = shaken.wait_for(|handshake| !matches!(handshake, Handshake::Waiting)).await;
        match shaken.as_deref() {
            Ok(Handshake::Ended(reason)) => Err(ConnectError::Handshake(reason.clone())),
            Ok(_) => Ok(client.clone()),
            Err(_) => Err(ConnectError::Handshake("its task was ended".into())),
        }
    }

    /// The cache that blobs are loaded into.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        self.0.session.cache()
    }

    /// The last transaction that this client has heard of. Everything up to it can be read: a good moment to read
    /// many objects as of.
    #[must_use]
    pub fn last_tid(&self) -> Tid {
        self.0.session.last_tid()
    }

    async fn call<T>(
        &self,
        request: Request,
        answer: impl FnOnce(Reply) -> Option<T>,
    ) -> Result<T, CallError> {
        let reply = wait(|done| self.0.session.call(request, done)).await?;
        // The machine lets no answer of another kind through.
        answer(reply)
            .ok_or_else(|| CallError::Disconnected { reason: "the answer was of another kind".into() })
    }

    /// Exactly `count` unused oids.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn new_oids(&self, count: u32) -> Result<Vec<Oid>, CallError> {
        let mut oids = Vec::new();
        while (oids.len() as u64) < u64::from(count) {
            let missing = count - oids.len() as u32;
            let (first, given) = self
                .call(Request::NewOids { count: missing }, |reply| match reply {
                    Reply::Oids { first, count } => Some((first, count)),
                    _ => None,
                })
                .await?;
            if given == 0 {
                return Err(RequestError::Failed { detail: "it has no oids left".into() }.into());
            }
            oids.extend((0..u64::from(given.min(missing))).map(|n| Oid(first.0.saturating_add(n))));
        }
        Ok(oids)
    }

    /// The current revision of an object.
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`]; see [`CallError`].
    pub async fn load(&self, oid: Oid) -> Result<Revision, CallError> {
        self.revision(Request::Load { oid }).await
    }

    /// One exact revision of an object.
    ///
    /// # Errors
    /// [`RequestError::NoSuchRevision`]; see [`CallError`].
    pub async fn load_serial(&self, oid: Oid, tid: Tid) -> Result<Revision, CallError> {
        self.revision(Request::LoadSerial { oid, tid }).await
    }

    async fn revision(&self, request: Request) -> Result<Revision, CallError> {
        let answer = |reply| if let Reply::Revision(revision) = reply { Some(revision) } else { None };
        self.call(request, answer).await
    }

    /// The last revision of an object before a transaction; `None` if it is younger than that.
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`]; see [`CallError`].
    pub async fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, CallError> {
        let answer = |reply| if let Reply::RevisionBefore(revision) = reply { Some(revision) } else { None };
        self.call(Request::LoadBefore { oid, before }, answer).await
    }

    /// The revisions of an object, newest first, at most `limit` (the server may give fewer).
    ///
    /// # Errors
    /// [`RequestError::NoSuchObject`]; see [`CallError`].
    pub async fn history(&self, oid: Oid, limit: u32) -> Result<Vec<HistoryEntry>, CallError> {
        let answer = |reply| if let Reply::History(history) = reply { Some(history) } else { None };
        self.call(Request::History { oid, limit }, answer).await
    }

    /// The server's counters, by name.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn status(&self) -> Result<Vec<(String, u64)>, CallError> {
        let answer = |reply| if let Reply::Status(status) = reply { Some(status) } else { None };
        self.call(Request::Status, answer).await
    }

    /// Forgets the revisions that were replaced before a transaction.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn pack(&self, before: Tid) -> Result<Packed, CallError> {
        let answer = |reply| if let Reply::Packed(packed) = reply { Some(packed) } else { None };
        self.call(Request::Pack { before }, answer).await
    }

    /// What has become of a transaction; if it is not committed, it never will be.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn outcome(&self, txn: TxnId) -> Result<Outcome, CallError> {
        let answer = |reply| if let Reply::Outcome(outcome) = reply { Some(outcome) } else { None };
        self.call(Request::Outcome { txn }, answer).await
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
        self.0.listeners.with(|listeners| listeners.push(sender));
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
async fn run(
    stream: TcpStream,
    clock: Clock,
    session: Session,
    woken: Arc<Notify>,
    listeners: Arc<Listeners>,
    handshake: Arc<watch::Sender<Handshake>>,
) {
    let mut endpoint = session.endpoint();
    let reason = match drive(&stream, clock, &mut endpoint, &woken).await {
        Ended::Finished => "it was closed".to_owned(),
        ended => ended.to_string(),
    };
    drop(stream);
    session.close(&reason);
    handshake.send_replace(Handshake::Ended(reason));
    listeners.with(Vec::clear);
}

/// Turns a callback into a future.
pub(crate) async fn wait<T: Send + 'static>(start: impl FnOnce(Completion<T>)) -> Result<T, CallError> {
    let (sender, receiver) = oneshot::channel();
    start(Box::new(move |result| drop(sender.send(result))));
    let lost = |_| Err(CallError::Disconnected { reason: "nobody is left to answer".into() });
    receiver.await.unwrap_or_else(lost)
}
