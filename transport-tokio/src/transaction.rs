//! A transaction whose calls are awaited.

use std::sync::Arc;

use blobferry_cache::carry::Progress;
use blobferry_cache::client::{self, BlobSource, CallError, VoteError};
use blobferry_protocol::{BlobInfo, Oid, Tid, TxnId};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::client::wait;

/// A transaction that is open; from [`Client::begin`](crate::Client::begin). Dropped before it was finished or
/// committed, it is aborted, and the files that were moved into it are gone.
#[derive(Debug)]
pub struct Transaction(client::Transaction);

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
        wait(|done| self.0.store_blob(oid, base, data, source, None, done)).await
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
        wait(|done| self.0.store_blob(oid, base, data, source, Some(Arc::new(progress)), done)).await
    }

    /// The same, from anything that can be read to its end. It is written into the cache first, and is the cached blob
    /// when the transaction is finished.
    ///
    /// # Errors
    /// As [`store_blob`](Self::store_blob).
    pub async fn store_reader(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        reader: impl AsyncRead + Unpin,
    ) -> Result<BlobInfo, CallError> {
        let spooled = self.spool(reader).await?;
        self.store_blob(oid, base, data, spooled).await
    }

    /// Writes a stream into the cache. Reading and writing take turns: memory is one buffer.
    async fn spool(&self, mut reader: impl AsyncRead + Unpin) -> Result<BlobSource, CallError> {
        let mut writer = self.0.spool()?;
        let mut bytes = Vec::with_capacity(READ);
        loop {
            bytes.clear();
            let n = reader.read_buf(&mut bytes).await.map_err(CallError::Stream)?;
            if n == 0 {
                return blocking(move || Ok(BlobSource::Spooled(writer.complete()?))).await;
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
        wait(|done| self.0.vote(done)).await
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
        wait(|done| self.0.commit(done)).await
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
