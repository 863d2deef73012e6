//! A transaction whose calls block.

use std::io::{ErrorKind, Read};

use blobferry_platform::aligned_buf::AlignedBuf;
use blobferry_protocol::{BlobInfo, Oid, Tid};
use blobferry_session::client;
use blobferry_session::client::{BlobSource, CallError};

use crate::parker::wait_on;

/// A transaction that is open; from [`Client::begin`](crate::Client::begin). Dropped before it was finished or
/// committed, it is aborted, and the files that were moved into it are gone.
#[derive(Debug)]
pub struct Transaction(client::Transaction);

/// Bytes read from a stream at once.
const READ: usize = 256 << 10;

impl Transaction {
    blobferry_session::transaction_methods!(wait_on);

    /// Stores an object's record with a blob, from anything that can be read to its end. It is written into the cache
    /// first, and is the cached blob when the transaction is finished.
    ///
    /// # Errors
    /// As [`store_blob`](Self::store_blob).
    pub fn store_reader(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        reader: impl Read,
    ) -> Result<BlobInfo, CallError> {
        let spooled = self.spool(reader).inspect_err(|_| self.0.doom())?;
        self.store_blob(oid, base, data, spooled)
    }

    fn spool(&self, mut reader: impl Read) -> Result<BlobSource, CallError> {
        let mut writer = self.0.spool()?;
        let mut bytes = AlignedBuf::new(READ);
        loop {
            match reader.read(&mut bytes) {
                Ok(0) => break,
                Ok(n) => writer.write(bytes.get(..n).unwrap_or_default())?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(CallError::Stream(error)),
            }
        }
        Ok(BlobSource::spooled(writer.complete()?))
    }
}
