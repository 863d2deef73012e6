//! A transaction whose calls are awaited.

use blobferry_protocol::{BlobInfo, Oid, Tid};
use blobferry_session::client;
use blobferry_session::client::{BlobSource, CallError};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::client::wait_on;

/// A transaction that is open; from [`Client::begin`](crate::Client::begin). Dropped before it was finished or
/// committed, it is aborted, and the files that were moved into it are gone.
#[derive(Debug)]
pub struct Transaction(client::Transaction);

/// Bytes read from a stream at once.
const READ: usize = 256 << 10;

impl Transaction {
    blobferry_session::transaction_methods!(wait_on, async, await);

    /// Stores an object's record with a blob, from anything that can be read to its end. It is written into the cache first, and is the cached blob
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
        let spooled = self.spool(reader).await.inspect_err(|_| self.0.doom())?;
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
                return blocking(move || Ok(BlobSource::spooled(writer.complete()?))).await;
            }
            let write = move || writer.write(&bytes).map(|()| (writer, bytes));
            (writer, bytes) = blocking(write).await?;
        }
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, blobferry_cache::WriteError> + Send + 'static,
) -> Result<T, CallError> {
    match tokio::task::spawn_blocking(job).await {
        Ok(result) => result.map_err(CallError::from),
        Err(error) => Err(CallError::Stream(std::io::Error::other(error))),
    }
}
