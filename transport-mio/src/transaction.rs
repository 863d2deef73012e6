//! A transaction whose calls block.

use std::error::Error;
use std::fmt;
use std::io::{ErrorKind, Read};
use std::sync::Arc;

use blobferry_platform::aligned_buf::AlignedBuf;
use blobferry_protocol::{BlobInfo, Conflict, Oid, Tid, TxnId};
use blobferry_session::client::{self, BlobSource, CallError, VoteError};
use blobferry_session::io::{OnProgress, Progress};

use crate::wait::wait_on;

/// Bytes that are read from a stream at once.
const READ_SIZE: usize = 256 << 10;

/// An open transaction; from [`Client::begin`](crate::Client::begin).
///
/// If it is dropped before it was finished or committed, it is aborted, and the files that were moved into it are deleted.
#[derive(Debug)]
pub struct Transaction(client::Transaction);

/// Why a commit failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum CommitError {
    /// Other transactions have changed objects of this one meanwhile.
    Conflict {
        /// The transaction, open as before. Store each resolved object with `base` set to `committed`, and commit again.
        transaction: Box<Transaction>,
        /// The objects that were changed.
        conflicts: Vec<Conflict>,
    },
    /// The call failed, and the transaction is over.
    Call(CallError),
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommitError::Conflict { conflicts, .. } => VoteError::Conflict(conflicts.clone()).fmt(f),
            CommitError::Call(error) => error.fmt(f),
        }
    }
}

impl Error for CommitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            CommitError::Conflict { .. } => None,
            CommitError::Call(error) => error.source(),
        }
    }
}

impl From<CallError> for CommitError {
    fn from(error: CallError) -> CommitError {
        CommitError::Call(error)
    }
}

impl Transaction {
    pub(crate) fn new(transaction: client::Transaction) -> Transaction {
        Transaction(transaction)
    }

    /// Returns the transaction's name. Its [outcome](crate::Client::outcome) can be asked for by
    /// this name for ever.
    #[must_use]
    pub fn id(&self) -> TxnId {
        self.0.id()
    }

    /// Stores an object's record, without a blob. `base` is the revision that the new one was made
    /// from, or [`Tid::ZERO`] for a new object.
    ///
    /// # Errors
    /// See [`CallError`]. The transaction cannot be committed any more; it can only be aborted.
    pub fn store(&self, oid: Oid, base: Tid, data: Vec<u8>) -> Result<(), CallError> {
        wait_on(&self.0.session().clone(), |done| self.0.store(oid, base, data, done))
    }

    /// Deletes an object. With [`Tid::ZERO`] as its base, takes back what this transaction has
    /// stored of it.
    ///
    /// # Errors
    /// See [`CallError`]. The transaction cannot be committed any more; it can only be aborted.
    pub fn delete(&self, oid: Oid, base: Tid) -> Result<(), CallError> {
        wait_on(&self.0.session().clone(), |done| self.0.delete(oid, base, done))
    }

    /// Stores an object's record with a blob, and returns when the server has the blob on disk.
    /// `base` is as for [`store`](Self::store). Many calls may run at once in one transaction; a
    /// vote waits for all of them.
    ///
    /// # Errors
    /// See [`CallError`]. The transaction cannot be committed any more; it can only be aborted.
    pub fn store_blob(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: BlobSource,
    ) -> Result<BlobInfo, CallError> {
        wait_on(&self.0.session().clone(), |done| self.0.store_blob(oid, base, data, source, None, done))
    }

    /// Stores as [`store_blob`](Self::store_blob) does, and reports the progress of the upload. The
    /// callback must not block.
    ///
    /// # Errors
    /// As [`store_blob`](Self::store_blob).
    pub fn store_blob_with(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: BlobSource,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<BlobInfo, CallError> {
        let progress: OnProgress = Arc::new(progress);
        wait_on(&self.0.session().clone(), |done| {
            self.0.store_blob(oid, base, data, source, Some(progress), done)
        })
    }

    /// Stores an object's record with a blob that is read from a stream to its end. The bytes are
    /// written into the cache first. They become the cached blob when the transaction is committed.
    ///
    /// # Errors
    /// [`CallError::Stream`] if the stream fails; otherwise as [`store_blob`](Self::store_blob).
    /// The transaction can only be aborted then.
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

    /// Writes a stream into the cache.
    fn spool(&self, mut reader: impl Read) -> Result<BlobSource, CallError> {
        let mut writer = self.0.spool()?;
        let mut bytes = AlignedBuf::new(READ_SIZE);
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

    /// Asks the server whether everything can be committed. After that, a [`finish`](Self::finish)
    /// succeeds unless the connection is lost for too long.
    ///
    /// # Errors
    /// [`VoteError::Conflict`] with the transaction open as before: store each resolved object, and
    /// vote again. After [`VoteError::Call`] the transaction can only be aborted.
    pub fn vote(&mut self) -> Result<(), VoteError> {
        wait_on(&self.0.session().clone(), |done| self.0.vote(done))
    }

    /// Commits what was voted for. At the tid that is returned everything in the transaction is
    /// durable, and visible to all clients.
    ///
    /// # Errors
    /// See [`CallError`]. [`CallError::NotCommitted`] is definite. After
    /// [`CallError::OutcomeUnknown`] ask for the [outcome](crate::Client::outcome).
    pub fn finish(self) -> Result<Tid, CallError> {
        wait_on(&self.0.session().clone(), |done| self.0.finish(done))
    }

    /// Votes and finishes in one round trip. At the tid that is returned everything in the
    /// transaction is durable, and visible to all clients.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] gives the open transaction back: store each resolved object, and
    /// commit again. With [`CommitError::Call`] the transaction is over. If that is
    /// [`CallError::OutcomeUnknown`], ask for the [outcome](crate::Client::outcome).
    pub fn commit(mut self) -> Result<Tid, CommitError> {
        match wait_on(&self.0.session().clone(), |done| self.0.commit(done)) {
            Ok(tid) => Ok(tid),
            Err(VoteError::Conflict(conflicts)) => {
                Err(CommitError::Conflict { transaction: Box::new(self), conflicts })
            }
            Err(VoteError::Call(error)) => Err(error.into()),
        }
    }

    /// Aborts the transaction. Files that were moved into it are deleted.
    ///
    /// # Errors
    /// See [`CallError`]. The transaction is over in any case.
    pub fn abort(self) -> Result<(), CallError> {
        wait_on(&self.0.session().clone(), |done| self.0.abort(done))
    }
}
