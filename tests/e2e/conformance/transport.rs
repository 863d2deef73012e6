//! The API that a transport offers to applications, as traits with blocking calls.
//!
//! The names are those of the transports, so each implementation only forwards.

use std::fs::File;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use blobferry_cache::{Cache, CachedBlob};
use blobferry_platform::progress::Progress;
use blobferry_protocol::{
    BlobId, BlobInfo, HistoryEntry, Oid, Outcome, Packed, Revision, Tid, TxnId, TxnMeta,
};
use blobferry_session::client::{
    BlobSource, CallError, ClientConfig, ConnectError, ConnectionEvent, Invalidation, VoteError,
};
use blobferry_session::server::ServerConfig;
use blobferry_store::Store;

/// Called with the progress of a blob.
pub(crate) type OnProgress = Box<dyn Fn(Progress) + Send + Sync>;

/// A transport of the project.
pub(crate) trait Transport: Sync {
    /// Starts a server on a free port.
    fn serve(&self, store: Arc<dyn Store>, config: ServerConfig) -> Box<dyn Server>;

    fn connect(
        &self,
        address: &str,
        cache: Cache,
        config: ClientConfig,
    ) -> Result<Box<dyn Client>, ConnectError>;
}

/// A running server. Dropping it stops it at once.
pub(crate) trait Server: Send + Sync {
    fn local_addr(&self) -> SocketAddr;
    fn stop(self: Box<Self>);
}

/// A connected client. Clones are the transport's own clones.
pub(crate) trait Client: Send + Sync {
    fn another(&self) -> Box<dyn Client>;
    fn cache(&self) -> &Cache;
    fn last_tid(&self) -> Tid;
    fn new_oids(&self, count: u32) -> Result<Vec<Oid>, CallError>;
    fn load(&self, oid: Oid) -> Result<Revision, CallError>;
    fn load_serial(&self, oid: Oid, tid: Tid) -> Result<Revision, CallError>;
    fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, CallError>;
    fn history(&self, oid: Oid, limit: u32) -> Result<Vec<HistoryEntry>, CallError>;
    fn status(&self) -> Result<Vec<(String, u64)>, CallError>;
    fn pack(&self, before: Tid) -> Result<Packed, CallError>;
    fn outcome(&self, txn: TxnId) -> Result<Outcome, CallError>;
    fn load_blob(&self, blob: BlobId) -> Result<CachedBlob, CallError>;
    fn load_blob_with(&self, blob: BlobId, progress: OnProgress) -> Result<CachedBlob, CallError>;
    fn load_bytes(&self, blob: BlobId) -> Result<Vec<u8>, CallError>;
    fn load_range(&self, blob: BlobId, range: Range<u64>) -> Result<Vec<u8>, CallError>;
    fn begin_with(&self, meta: TxnMeta) -> Result<Box<dyn Transaction>, CallError>;
    /// Returns the invalidations; the iterator ends with the connection.
    fn invalidations(&self) -> Box<dyn Iterator<Item = Invalidation> + Send>;
    /// Returns the connection events; the iterator ends with the client.
    fn connection_events(&self) -> Box<dyn Iterator<Item = ConnectionEvent> + Send>;
    fn close(self: Box<Self>);
}

/// An open transaction. Dropping it aborts it.
pub(crate) trait Transaction: Send + Sync {
    fn id(&self) -> TxnId;
    fn store(&self, oid: Oid, base: Tid, data: Vec<u8>) -> Result<(), CallError>;
    fn delete(&self, oid: Oid, base: Tid) -> Result<(), CallError>;
    fn store_blob(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: BlobSource,
    ) -> Result<BlobInfo, CallError>;
    fn store_blob_with(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: BlobSource,
        progress: OnProgress,
    ) -> Result<BlobInfo, CallError>;
    /// Stores a blob from a file or a pipe, since each transport has its own trait for readers.
    fn store_reader(&self, oid: Oid, base: Tid, data: Vec<u8>, reader: File) -> Result<BlobInfo, CallError>;
    fn vote(&mut self) -> Result<(), VoteError>;
    fn finish(self: Box<Self>) -> Result<Tid, CallError>;
    fn commit(&mut self) -> Result<Tid, VoteError>;
    fn abort(self: Box<Self>) -> Result<(), CallError>;
}

impl Clone for Box<dyn Client> {
    fn clone(&self) -> Box<dyn Client> {
        self.another()
    }
}

impl std::fmt::Debug for Box<dyn Client> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a client at tid {}", self.last_tid())
    }
}

/// Implements these traits for the crate `$transport` in the calling module.
///
/// `$wait` waits for the result of a call; `$readable` turns a file into the transport's reader.
macro_rules! implement_with {
    ($transport:ident, $wait:ident, $readable:expr) => {
        use std::fs::File;
        use std::net::SocketAddr;
        use std::ops::Range;
        use std::sync::Arc;

        use blobferry_cache::{Cache, CachedBlob};
        use blobferry_protocol::{
            BlobId, BlobInfo, HistoryEntry, Oid, Outcome, Packed, Revision, Tid, TxnId, TxnMeta, UsageError,
        };
        use blobferry_session::client::{
            BlobSource, CallError, ClientConfig, ConnectError, ConnectionEvent, Invalidation, VoteError,
        };
        use blobferry_session::server::ServerConfig;
        use blobferry_store::Store;

        use crate::conformance::transport::{Client, OnProgress, Server, Transaction, Transport};

        pub(super) struct TheTransport;
        pub(super) const TRANSPORT: TheTransport = TheTransport;

        impl Transport for TheTransport {
            fn serve(&self, store: Arc<dyn Store>, config: ServerConfig) -> Box<dyn Server> {
                Box::new($wait($transport::Server::bind("127.0.0.1:0", store, config)).unwrap())
            }

            fn connect(
                &self,
                address: &str,
                cache: Cache,
                config: ClientConfig,
            ) -> Result<Box<dyn Client>, ConnectError> {
                Ok(Box::new($wait($transport::Client::connect(address, cache, config))?))
            }
        }

        impl Server for $transport::Server {
            fn local_addr(&self) -> SocketAddr {
                self.local_addr()
            }

            fn stop(self: Box<Self>) {
                $wait((*self).stop());
            }
        }

        impl Client for $transport::Client {
            fn another(&self) -> Box<dyn Client> {
                Box::new(self.clone())
            }

            fn cache(&self) -> &Cache {
                self.cache()
            }

            fn last_tid(&self) -> Tid {
                self.last_tid()
            }

            fn new_oids(&self, count: u32) -> Result<Vec<Oid>, CallError> {
                $wait(self.new_oids(count))
            }

            fn load(&self, oid: Oid) -> Result<Revision, CallError> {
                $wait(self.load(oid))
            }

            fn load_serial(&self, oid: Oid, tid: Tid) -> Result<Revision, CallError> {
                $wait(self.load_serial(oid, tid))
            }

            fn load_before(&self, oid: Oid, before: Tid) -> Result<Option<Revision>, CallError> {
                $wait(self.load_before(oid, before))
            }

            fn history(&self, oid: Oid, limit: u32) -> Result<Vec<HistoryEntry>, CallError> {
                $wait(self.history(oid, limit))
            }

            fn status(&self) -> Result<Vec<(String, u64)>, CallError> {
                $wait(self.status())
            }

            fn pack(&self, before: Tid) -> Result<Packed, CallError> {
                $wait(self.pack(before))
            }

            fn outcome(&self, txn: TxnId) -> Result<Outcome, CallError> {
                $wait(self.outcome(txn))
            }

            fn load_blob(&self, blob: BlobId) -> Result<CachedBlob, CallError> {
                $wait(self.load_blob(blob))
            }

            fn load_blob_with(&self, blob: BlobId, progress: OnProgress) -> Result<CachedBlob, CallError> {
                $wait(self.load_blob_with(blob, progress))
            }

            fn load_bytes(&self, blob: BlobId) -> Result<Vec<u8>, CallError> {
                Ok($wait(self.load_bytes(blob))?.to_vec())
            }

            fn load_range(&self, blob: BlobId, range: Range<u64>) -> Result<Vec<u8>, CallError> {
                Ok($wait(self.load_range(blob, range))?.to_vec())
            }

            fn begin_with(&self, meta: TxnMeta) -> Result<Box<dyn Transaction>, CallError> {
                let transaction = self.begin(meta)?;
                Ok(Box::new(Open { id: transaction.id(), transaction: Some(transaction) }))
            }

            fn invalidations(&self) -> Box<dyn Iterator<Item = Invalidation> + Send> {
                let mut invalidations = self.invalidations();
                Box::new(std::iter::from_fn(move || $wait(invalidations.next())))
            }

            fn connection_events(&self) -> Box<dyn Iterator<Item = ConnectionEvent> + Send> {
                let mut events = self.connection_events();
                Box::new(std::iter::from_fn(move || $wait(events.next())))
            }

            fn close(self: Box<Self>) {
                $wait((*self).close());
            }
        }

        /// A transaction; `None` after a commit that did not give it back.
        struct Open {
            id: TxnId,
            transaction: Option<$transport::Transaction>,
        }

        impl Open {
            fn over(&self) -> CallError {
                UsageError::NoSuchTransaction(self.id).into()
            }

            fn get(&self) -> Result<&$transport::Transaction, CallError> {
                self.transaction.as_ref().ok_or_else(|| self.over())
            }
        }

        impl Transaction for Open {
            fn id(&self) -> TxnId {
                self.id
            }

            fn store(&self, oid: Oid, base: Tid, data: Vec<u8>) -> Result<(), CallError> {
                $wait(self.get()?.store(oid, base, data))
            }

            fn delete(&self, oid: Oid, base: Tid) -> Result<(), CallError> {
                $wait(self.get()?.delete(oid, base))
            }

            fn store_blob(
                &self,
                oid: Oid,
                base: Tid,
                data: Vec<u8>,
                source: BlobSource,
            ) -> Result<BlobInfo, CallError> {
                $wait(self.get()?.store_blob(oid, base, data, source))
            }

            fn store_blob_with(
                &self,
                oid: Oid,
                base: Tid,
                data: Vec<u8>,
                source: BlobSource,
                progress: OnProgress,
            ) -> Result<BlobInfo, CallError> {
                $wait(self.get()?.store_blob_with(oid, base, data, source, progress))
            }

            fn store_reader(
                &self,
                oid: Oid,
                base: Tid,
                data: Vec<u8>,
                reader: File,
            ) -> Result<BlobInfo, CallError> {
                $wait(self.get()?.store_reader(oid, base, data, $readable(reader)))
            }

            fn vote(&mut self) -> Result<(), VoteError> {
                let over = self.over();
                $wait(self.transaction.as_mut().ok_or(over)?.vote())
            }

            fn finish(mut self: Box<Self>) -> Result<Tid, CallError> {
                let transaction = self.transaction.take().ok_or_else(|| self.over())?;
                $wait(transaction.finish())
            }

            fn commit(&mut self) -> Result<Tid, VoteError> {
                let transaction = self.transaction.take().ok_or_else(|| self.over())?;
                $wait(transaction.commit()).map_err(|error| match error {
                    $transport::CommitError::Conflict { transaction, conflicts } => {
                        self.transaction = Some(*transaction);
                        VoteError::Conflict(conflicts)
                    }
                    $transport::CommitError::Call(error) => VoteError::Call(error),
                    error => unreachable!("{error}"),
                })
            }

            fn abort(mut self: Box<Self>) -> Result<(), CallError> {
                self.transaction.take().map_or(Ok(()), |transaction| $wait(transaction.abort()))
            }
        }
    };
}
