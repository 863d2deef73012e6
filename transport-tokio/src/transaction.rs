//! A transaction whose calls are awaited.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use blobferry_cache::carry::OnProgress;
use blobferry_cache::client::{self, CallError, VoteError};
use blobferry_protocol::{BlobInfo, Oid, Tid, TxnId};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::Progress;
use crate::client::wait;

/// A transaction that is open; from [`Client::begin`](crate::Client::begin). Dropped before it was finished or
/// committed, it is aborted, and the files that were moved into it are gone.
#[derive(Debug)]
pub struct Transaction(client::Transaction);

/// Where the bytes of a blob come from that is to be stored.
pub struct BlobSource(From);

enum From {
    Given(client::BlobSource),
    Reader(Pin<Box<dyn AsyncRead + Send>>),
}

impl std::fmt::Debug for BlobSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            From::Given(source) => source.fmt(f),
            From::Reader(_) => f.write_str("Reader"),
        }
    }
}

impl BlobSource {
    /// A file that is moved into the cache, and is the cached blob when the transaction is finished. When it is
    /// aborted the file is gone.
    #[must_use]
    pub fn moved(path: impl Into<PathBuf>) -> BlobSource {
        BlobSource(From::Given(client::BlobSource::Moved(path.into())))
    }

    /// A file that stays; the cache keeps a copy, which shares its blocks where the file system can do that.
    #[must_use]
    pub fn copied(path: impl Into<PathBuf>) -> BlobSource {
        BlobSource(From::Given(client::BlobSource::Copied(path.into())))
    }

    /// A file that is sent from where it is; nothing is cached. Storing it fails if it changes meanwhile.
    #[must_use]
    pub fn streamed(path: impl Into<PathBuf>) -> BlobSource {
        BlobSource(From::Given(client::BlobSource::Streamed(path.into())))
    }

    /// Bytes in memory; nothing is cached.
    #[must_use]
    pub fn bytes(bytes: impl Into<Bytes>) -> BlobSource {
        BlobSource(From::Given(client::BlobSource::Bytes(bytes.into())))
    }

    /// Anything that can be read to its end. It is written into the cache first, and is the cached blob when the
    /// transaction is finished.
    #[must_use]
    pub fn reader(reader: impl AsyncRead + Send + 'static) -> BlobSource {
        BlobSource(From::Reader(Box::pin(reader)))
    }
}

/// Bytes read from a stream at once.
const READ: usize = 256 << 10;

impl Transaction {
    pub(crate) fn new(transaction: client::Transaction) -> Transaction {
        Transaction(transaction)
    }

    /// The transaction's name, under which its [outcome](crate::Client::outcome) can be asked for ever after.
    #[must_use]
    pub fn id(&self) -> TxnId {
        self.0.id()
    }

    /// Stores an object's record, without a blob. `base` is the revision that the new one was made from, or
    /// [`Tid::ZERO`] for a new object.
    ///
    /// # Errors
    /// See [`CallError`]. The transaction can only be aborted then.
    pub async fn store(&self, oid: Oid, base: Tid, data: Vec<u8>) -> Result<(), CallError> {
        wait(|done| self.0.store(oid, base, data, done)).await
    }

    /// Deletes an object; with [`Tid::ZERO`] as its base, takes back that it was stored in this transaction.
    ///
    /// # Errors
    /// See [`CallError`]. The transaction can only be aborted then.
    pub async fn delete(&self, oid: Oid, base: Tid) -> Result<(), CallError> {
        wait(|done| self.0.delete(oid, base, done)).await
    }

    /// Stores an object's record with a blob. Done when the server has it on disk. Many may run at once in one
    /// transaction; a vote waits for all of them.
    ///
    /// # Errors
    /// See [`CallError`]. The transaction can only be aborted then.
    pub async fn store_blob(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: BlobSource,
    ) -> Result<BlobInfo, CallError> {
        self.put_blob(oid, base, data, source, None).await
    }

    /// The same, telling how far it is.
    ///
    /// # Errors
    /// As [`store_blob`](Self::store_blob).
    pub async fn store_blob_with(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: BlobSource,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<BlobInfo, CallError> {
        self.put_blob(oid, base, data, source, Some(Arc::new(progress))).await
    }

    async fn put_blob(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: BlobSource,
        progress: Option<OnProgress>,
    ) -> Result<BlobInfo, CallError> {
        let source = match source.0 {
            From::Given(source) => source,
            From::Reader(reader) => self.spool(reader).await?,
        };
        wait(|done| self.0.store_blob(oid, base, data, source, progress, done)).await
    }

    /// Writes a stream into the cache. Reading and writing take turns: memory is one buffer.
    async fn spool(
        &self,
        mut reader: Pin<Box<dyn AsyncRead + Send>>,
    ) -> Result<client::BlobSource, CallError> {
        let mut writer = self.0.spool()?;
        let mut bytes = Vec::with_capacity(READ);
        loop {
            bytes.clear();
            let n = reader.read_buf(&mut bytes).await.map_err(CallError::Stream)?;
            if n == 0 {
                return blocking(move || Ok(client::BlobSource::Spooled(writer.complete()?))).await;
            }
            let write = move || writer.write(&bytes).map(|()| (writer, bytes));
            (writer, bytes) = blocking(write).await?;
        }
    }

    /// Asks whether everything can be committed, and makes sure that it then can.
    ///
    /// # Errors
    /// [`VoteError::Conflict`], with the transaction open as before; or [`VoteError::Call`], and it is over.
    pub async fn vote(&mut self) -> Result<(), VoteError> {
        let conflicts = wait(|done| self.0.vote(done)).await?;
        if conflicts.is_empty() { Ok(()) } else { Err(VoteError::Conflict(conflicts)) }
    }

    /// Commits what was voted for: everything in the transaction is durable, and visible to all, at the tid that this
    /// returns.
    ///
    /// # Errors
    /// See [`CallError`]. After [`CallError::Disconnected`] ask for the [outcome](crate::Client::outcome).
    pub async fn finish(self) -> Result<Tid, CallError> {
        wait(|done| self.0.finish(done)).await
    }

    /// Votes and finishes in one round trip, for who coordinates nothing else.
    ///
    /// # Errors
    /// [`VoteError::Conflict`], with the transaction open as before: store what is resolved, and commit again. Or
    /// [`VoteError::Call`], and it is over.
    pub async fn commit(&mut self) -> Result<Tid, VoteError> {
        wait(|done| self.0.commit(done)).await?.map_err(VoteError::Conflict)
    }

    /// Gives it up.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn abort(self) -> Result<(), CallError> {
        wait(|done| self.0.abort(done)).await
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, blobferry_cache::WriteError> + Send + 'static,
) -> Result<T, CallError> {
    match tokio::task::spawn_blocking(job).await {
        Ok(result) => result.map_err(|error| CallError::Stream(std::io::Error::other(error))),
        Err(error) => Err(CallError::Stream(std::io::Error::other(error))),
    }
}
