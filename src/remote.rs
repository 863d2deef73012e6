//! The server, as the subcommands see it: the one place that knows the client of the transport.

use std::fs::File;
use std::path::{Path, PathBuf};

use blobferry_protocol::{
    BlobId, BlobInfo, Conflict, HistoryEntry, Oid, Packed, RequestError, Revision, Tid, TxnMeta,
};
use thiserror::Error;

use crate::catalog::{Attempt, Objects, Writes};

/// Why the server could not be asked, or what it answered instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum RemoteError {
    /// Nobody listens there.
    #[error(
        "no server at {server} ({reason}): start one with `blobferry serve --dir DIR`, or name another with --server"
    )]
    NoServer {
        /// Where it was looked for.
        server: String,
        /// What the system says.
        reason: String,
    },
    /// The server does not do it.
    #[error(transparent)]
    Refused(#[from] RequestError),
}

/// A connection to the server.
pub(crate) struct Remote {
    server: String,
}

/// An open transaction of a [`Remote`]. Dropped, it is aborted.
pub(crate) struct RemoteTxn {
    server: String,
}

/// Every call of this build ends here: it has no transport.
fn unavailable<T>(server: &str) -> Result<T, RemoteError> {
    Err(RemoteError::NoServer { server: server.into(), reason: "this build has no transport".into() })
}

impl Remote {
    /// Connects to a server, with a cache directory on this side.
    pub(crate) async fn connect(server: &str, _cache: &Path) -> Result<Remote, RemoteError> {
        match tokio::net::TcpStream::connect(server).await {
            Ok(_) => Ok(Remote { server: server.into() }),
            Err(error) => Err(RemoteError::NoServer { server: server.into(), reason: error.to_string() }),
        }
    }

    /// Opens a transaction. With `cached`, the files that it stores are copied into the cache.
    pub(crate) fn begin(&self, _meta: TxnMeta, _cached: bool) -> Result<RemoteTxn, RemoteError> {
        Ok(RemoteTxn { server: self.server.clone() })
    }

    /// The revisions of an object, newest first.
    pub(crate) async fn history(&self, _oid: Oid, _limit: u32) -> Result<Vec<HistoryEntry>, RemoteError> {
        unavailable(&self.server)
    }

    /// The server's counters.
    pub(crate) async fn status(&self) -> Result<Vec<(String, u64)>, RemoteError> {
        unavailable(&self.server)
    }

    /// Forgets what was replaced before a transaction.
    pub(crate) async fn pack(&self, _before: Tid) -> Result<Packed, RemoteError> {
        unavailable(&self.server)
    }

    /// A blob in the cache: where it is, and the open file. `progress` is told how many bytes have come, where it has
    /// to be downloaded.
    pub(crate) async fn fetch(
        &self,
        _blob: BlobId,
        _progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<(PathBuf, File), RemoteError> {
        unavailable(&self.server)
    }
}

impl Objects for Remote {
    fn last_tid(&self) -> Tid {
        Tid::ZERO
    }

    async fn load_before(&self, _oid: Oid, _before: Tid) -> Result<Option<Revision>, RemoteError> {
        unavailable(&self.server)
    }

    async fn new_oids(&self, _count: u32) -> Result<Vec<Oid>, RemoteError> {
        unavailable(&self.server)
    }
}

impl Writes for RemoteTxn {
    async fn store(&self, _oid: Oid, _base: Tid, _data: Vec<u8>) -> Result<(), RemoteError> {
        unavailable(&self.server)
    }

    async fn store_file(
        &self,
        _oid: Oid,
        _base: Tid,
        _data: Vec<u8>,
        _source: &Path,
        _progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<BlobInfo, RemoteError> {
        unavailable(&self.server)
    }

    async fn delete(&self, _oid: Oid, _base: Tid) -> Result<(), RemoteError> {
        unavailable(&self.server)
    }

    async fn commit(&mut self) -> Result<Attempt, RemoteError> {
        let answer: Result<Tid, Vec<Conflict>> = unavailable(&self.server)?;
        Ok(answer.map_or_else(Attempt::Conflicts, Attempt::Committed))
    }
}
