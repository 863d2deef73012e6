//! The connection to a server, as the subcommands use it.

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

use crate::causes::chain;
use crate::transport::{Link, Transport};

/// Why an operation on names failed.
pub(crate) type CatalogError = blobferry_catalog::CatalogError<RemoteError>;

/// Why a request to the server failed.
#[derive(Debug, Error)]
pub(crate) enum RemoteError {
    /// No process listens at the address.
    #[error(
        "no server at {server}: {reason}; start one with `blobferry serve --dir DIR`, or name another with --server"
    )]
    NoServer {
        /// The address.
        server: String,
        /// The system's error.
        reason: String,
    },
    /// The text is not an address.
    #[error("`{server}` is not an address of a server: it has the form HOST:PORT")]
    NoAddress {
        /// The text.
        server: String,
    },
    /// A process listens at the address, but the handshake failed.
    #[error("no handshake with {server}: {reason}")]
    Handshake {
        /// The address.
        server: String,
        /// Why the handshake failed.
        reason: String,
    },
    /// The cache directory cannot be used.
    #[error("the cache cannot be used")]
    Cache(#[source] CacheError),
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A file of the user cannot be sent, because it changed or cannot be read.
    #[error("{}: {detail}; nothing was published: put it again when no program writes to it", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// What happened to the file.
        detail: String,
    },
    /// The connection was lost during a commit, and the server has not committed the transaction.
    #[error("the connection to the server was lost, and nothing was changed: try again")]
    NotCommitted,
    /// The connection was lost during a commit, and the server cannot be reached to ask for the
    /// outcome.
    #[error(
        "the connection to {server} was lost in the commit ({reason}), and does not come back: everything was changed \
         or nothing, and `blobferry log NAME` will show which"
    )]
    OutcomeUnknown {
        /// The address of the server, which knows the outcome.
        server: String,
        /// Why the connection was lost.
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

/// A connection to the server. Dropping it without [`Remote::close`] abandons the requests under
/// way.
pub(crate) struct Remote {
    server: String,
    link: Link,
}

/// An open transaction of a [`Remote`]. Dropping it aborts it.
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
        ConnectError::Handshake { source, .. } => RemoteError::Handshake { server, reason: chain(&source) },
        error => RemoteError::NoServer { server, reason: chain(&error) },
    })
}

impl Remote {
    /// Connects to a server, with a cache for its blobs.
    pub(crate) async fn connect(
        transport: Transport,
        server: &str,
        cache: Cache,
    ) -> Result<Remote, RemoteError> {
        Ok(Remote { server: server.to_owned(), link: connect(transport, server, cache).await? })
    }

    /// Finishes the requests under way, and closes the connection.
    pub(crate) async fn close(self) {
        self.link.close().await;
    }

    /// Returns the session, for calls that `Remote` does not have.
    pub(crate) fn session(&self) -> &Session {
        self.link.session()
    }

    /// Makes another connection to the same server, with the same cache.
    pub(crate) async fn another(&self, transport: Transport) -> Result<Remote, RemoteError> {
        Remote::connect(transport, &self.server, self.session().cache().clone()).await
    }

    /// Opens a transaction. With `cached`, the files that it stores are copied into the cache.
    pub(crate) fn begin(&self, meta: TxnMeta, cached: bool) -> Result<RemoteTxn<'_>, RemoteError> {
        Ok(RemoteTxn { remote: self, transaction: self.session().begin(meta)?, cached })
    }

    /// Returns the revisions of an object, newest first.
    pub(crate) async fn history(&self, oid: Oid, limit: u32) -> Result<Vec<HistoryEntry>, RemoteError> {
        Ok(wait(|done| self.session().history(oid, limit, done)).await?)
    }

    /// Returns the server's counters.
    pub(crate) async fn status(&self) -> Result<Vec<(String, u64)>, RemoteError> {
        Ok(wait(|done| self.session().status(done)).await?)
    }

    /// Deletes the revisions that were replaced before a transaction.
    pub(crate) async fn pack(&self, before: Tid) -> Result<Packed, RemoteError> {
        Ok(wait(|done| self.session().pack(before, done)).await?)
    }

    /// Loads a blob of `size` bytes into the cache. Returns its path, and the open file, which
    /// keeps it from eviction.
    ///
    /// Calls `progress` with the number of downloaded bytes. If the cache has no space for the
    /// blob, no request is sent.
    pub(crate) async fn fetch(
        &self,
        blob: BlobId,
        size: u64,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<(PathBuf, File), RemoteError> {
        let progress = Arc::new(move |at: Progress| progress(at.done));
        let cache = self.session().cache().clone();
        // The cache's quota may be locked by another process.
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
