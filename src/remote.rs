//! The server, as the subcommands see it.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blobferry_cache::{Cache, CacheError};
use blobferry_catalog::{Attempt, Objects, Writes, session};
use blobferry_protocol::{BlobId, BlobInfo, HistoryEntry, Oid, Packed, RequestError, Revision, Tid, TxnMeta};
use blobferry_session::client::{BlobSource, CallError, ConnectError, Session, Transaction};
use blobferry_session::io::Progress;
use blobferry_transport_tokio::wait;
use bytes::Bytes;
use thiserror::Error;
use tokio::task::spawn_blocking;

use crate::failure::chain;
use crate::transport::{Link, Transport};

/// Why an operation on names failed.
pub(crate) type CatalogError = blobferry_catalog::CatalogError<RemoteError>;

/// Why the server could not be asked, or what it answered instead.
#[derive(Debug, Error)]
pub(crate) enum RemoteError {
    /// Nobody listens there.
    #[error(
        "no server at {server}: {reason}; start one with `blobferry serve --dir DIR`, or name another with --server"
    )]
    NoServer {
        /// Where it was looked for.
        server: String,
        /// What the system says.
        reason: String,
    },
    /// What was given as an address is none.
    #[error("`{server}` is not an address of a server: it has the form HOST:PORT")]
    NoAddress {
        /// What was given.
        server: String,
    },
    /// Somebody listens there, but no conversation came about.
    #[error("no conversation with {server}: {reason}")]
    Handshake {
        /// Who was called.
        server: String,
        /// Why not.
        reason: String,
    },
    /// The cache directory can not be used.
    #[error("the cache can not be used")]
    Cache(#[source] CacheError),
    /// What was asked for did not come.
    #[error(transparent)]
    Call(#[from] CallError),
    /// One of the user's files can not be sent as it is.
    #[error("{}: {detail}; nothing was published: put it again when nobody writes to it", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// What happened to it.
        detail: String,
    },
    /// The connection was lost in a commit, and the server says that nothing came of it.
    #[error("the connection to the server was lost, and nothing was changed: try again")]
    NotCommitted,
    /// The connection was lost in a commit, and nobody can be asked what became of it.
    #[error(
        "the connection to {server} was lost in the commit ({reason}), and does not come back: everything was changed \
         or nothing, and `blobferry log NAME` will tell which"
    )]
    OutcomeUnknown {
        /// Who would know.
        server: String,
        /// Why it was lost.
        reason: String,
    },
}

/// An error of a request in a transaction.
pub(crate) trait TransactionError {
    /// Returns whether it only follows from another error in the same transaction.
    fn is_consequence(&self) -> bool;
}

impl TransactionError for RequestError {
    fn is_consequence(&self) -> bool {
        matches!(self, RequestError::Doomed { .. })
    }
}

impl TransactionError for RemoteError {
    fn is_consequence(&self) -> bool {
        matches!(self, RemoteError::Call(CallError::Refused(error)) if error.is_consequence())
    }
}

impl From<RequestError> for RemoteError {
    fn from(error: RequestError) -> RemoteError {
        RemoteError::Call(CallError::Refused(error))
    }
}

/// A connection to the server. Dropped without [`Remote::close`], what is under way is given up.
pub(crate) struct Remote {
    server: String,
    link: Link,
}

/// An open transaction of a [`Remote`]. Dropped, it is aborted.
pub(crate) struct RemoteTxn<'a> {
    remote: &'a Remote,
    transaction: Transaction,
    cached: bool,
}

async fn connect(transport: Transport, server: &str, cache: Cache) -> Result<Link, RemoteError> {
    let server = server.to_owned();
    Link::connect(transport, &server, cache).await.map_err(|error| match error {
        ConnectError::Connect { source, .. } if source.kind() == ErrorKind::InvalidInput => {
            RemoteError::NoAddress { server }
        }
        ConnectError::Connect { source, .. } => RemoteError::NoServer { server, reason: chain(&source) },
        ConnectError::Handshake { source, .. } => {
            RemoteError::Handshake { server, reason: chain(&source) }
        }
        error => RemoteError::NoServer { server, reason: chain(&error) },
    })
}

impl Remote {
    /// Connects to a server, with a cache on this side.
    pub(crate) async fn connect(
        transport: Transport,
        server: &str,
        cache: Cache,
    ) -> Result<Remote, RemoteError> {
        Ok(Remote { server: server.to_owned(), link: connect(transport, server, cache).await? })
    }

    /// Ends the conversation when what is under way has come to its end.
    pub(crate) async fn close(self) {
        self.link.close().await;
    }

    /// The calls that a transport has, for those who need more of them than stands here.
    pub(crate) fn session(&self) -> &Session {
        self.link.session()
    }

    /// Another connection to the same server, with the same cache.
    pub(crate) async fn another(&self, transport: Transport) -> Result<Remote, RemoteError> {
        Remote::connect(transport, &self.server, self.session().cache().clone()).await
    }

    /// Opens a transaction. With `cached`, the files that it stores are copied into the cache.
    pub(crate) fn begin(&self, meta: TxnMeta, cached: bool) -> Result<RemoteTxn<'_>, RemoteError> {
        Ok(RemoteTxn { remote: self, transaction: self.session().begin(meta)?, cached })
    }

    /// The revisions of an object, newest first.
    pub(crate) async fn history(&self, oid: Oid, limit: u32) -> Result<Vec<HistoryEntry>, RemoteError> {
        Ok(wait(|done| self.session().history(oid, limit, done)).await?)
    }

    /// The server's counters.
    pub(crate) async fn status(&self) -> Result<Vec<(String, u64)>, RemoteError> {
        Ok(wait(|done| self.session().status(done)).await?)
    }

    /// Forgets what was replaced before a transaction.
    pub(crate) async fn pack(&self, before: Tid) -> Result<Packed, RemoteError> {
        Ok(wait(|done| self.session().pack(before, done)).await?)
    }

    /// A blob of `size` bytes in the cache: where it is, and the open file, which keeps it there. `progress` is told how
    /// many bytes have come, where it has to be downloaded. What can have no room is not asked for.
    pub(crate) async fn fetch(
        &self,
        blob: BlobId,
        size: u64,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<(PathBuf, File), RemoteError> {
        let progress = Arc::new(move |at: Progress| progress(at.done));
        let cache = self.session().cache().clone();
        // To look into the account of the cache may be to wait for another process.
        let checked = spawn_blocking(move || match cache.get(blob)? {
            Some(_) => Ok(()),
            None => cache.check_space(blob, size),
        });
        match checked.await {
            Ok(checked) => checked.map_err(CallError::Cache)?,
            Err(_) => return Err(CallError::Unanswered.into()),
        }
        let cached = wait(|done| self.session().load_blob(blob, Some(progress), done)).await?;
        Ok((cached.path().to_owned(), cached.into_file()))
    }
}

impl Objects for Remote {
    type Error = RemoteError;

    fn last_tid(&self) -> Tid {
        self.session().last_tid()
    }

    async fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, RemoteError> {
        Ok(Objects::load_before(self.session(), oid, before).await?)
    }

    async fn new_oids(&self, count: u32) -> Result<Vec<Oid>, RemoteError> {
        Ok(Objects::new_oids(self.session(), count).await?)
    }
}

impl RemoteTxn<'_> {
    /// Stores a new object's record with bytes from memory.
    pub(crate) async fn store_bytes(&self, oid: Oid, data: Vec<u8>, bytes: Bytes) -> Result<(), RemoteError> {
        session::store_bytes(&self.transaction, oid, Tid::ZERO, data, bytes).await?;
        Ok(())
    }
}

impl Writes for RemoteTxn<'_> {
    type Error = RemoteError;

    async fn store(&self, oid: Oid, base: Tid, data: Vec<u8>) -> Result<(), RemoteError> {
        Ok(Writes::store(&self.transaction, oid, base, data).await?)
    }

    async fn store_file(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: &Path,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<BlobInfo, RemoteError> {
        let from = if self.cached { BlobSource::copied(source) } else { BlobSource::streamed(source) };
        let progress = Arc::new(move |at: Progress| progress(at.done));
        let stored =
            wait(|done| self.transaction.store_blob(oid, base, data, from, Some(progress), done)).await;
        stored.map_err(|error: CallError| match error {
            CallError::Refused(RequestError::Source { detail }) => {
                RemoteError::Source { path: source.to_owned(), detail }
            }
            error => error.into(),
        })
    }

    async fn delete(&self, oid: Oid, base: Tid) -> Result<(), RemoteError> {
        Ok(Writes::delete(&self.transaction, oid, base).await?)
    }

    async fn commit(&mut self) -> Result<Attempt, RemoteError> {
        Writes::commit(&mut self.transaction).await.map_err(|error| match error {
            CallError::NotCommitted { .. } => RemoteError::NotCommitted,
            CallError::OutcomeUnknown { reason, .. } => {
                RemoteError::OutcomeUnknown { server: self.remote.server.clone(), reason }
            }
            error => error.into(),
        })
    }
}
