//! A transaction whose calls are awaited.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

use blobferry_platform::blobdir::WriteError;
use blobferry_platform::sync::Mutex;
use blobferry_protocol::{BlobInfo, Conflict, Oid, Tid, TxnId};
use blobferry_session::client::{self, BlobSource, CallError, VoteError};
use blobferry_session::io::{OnProgress, Progress};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::spawn_blocking;

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
    /// # Cancel safety
    /// A dropped future does not take the record back: a commit includes it.
    ///
    /// # Errors
    /// See [`CallError`]. The transaction cannot be committed any more; it can only be aborted.
    pub async fn store(&self, oid: Oid, base: Tid, data: Vec<u8>) -> Result<(), CallError> {
        wait_on(&self.0.session().clone(), |done| self.0.store(oid, base, data, done)).await
    }

    /// Deletes an object. With [`Tid::ZERO`] as its base, takes back what this transaction has
    /// stored of it.
    ///
    /// # Cancel safety
    /// A dropped future does not take the deletion back: a commit includes it.
    ///
    /// # Errors
    /// See [`CallError`]. The transaction cannot be committed any more; it can only be aborted.
    pub async fn delete(&self, oid: Oid, base: Tid) -> Result<(), CallError> {
        wait_on(&self.0.session().clone(), |done| self.0.delete(oid, base, done)).await
    }

    /// Stores an object's record with a blob, and returns when the server has the blob on disk.
    /// `base` is as for [`store`](Self::store). Many calls may run at once in one transaction; a
    /// vote waits for all of them.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the upload: it goes on, and a commit includes the blob. To
    /// cancel, abort or drop the transaction.
    ///
    /// # Errors
    /// See [`CallError`]. The transaction cannot be committed any more; it can only be aborted.
    pub async fn store_blob(
        &self,
        oid: Oid,
        base: Tid,
        data: Vec<u8>,
        source: BlobSource,
    ) -> Result<BlobInfo, CallError> {
        wait_on(&self.0.session().clone(), |done| self.0.store_blob(oid, base, data, source, None, done))
            .await
    }

    /// Stores as [`store_blob`](Self::store_blob) does, and reports the progress of the upload. The
    /// callback must not block.
    ///
    /// # Cancel safety
    /// As [`store_blob`](Self::store_blob).
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
        let progress: OnProgress = Arc::new(progress);
        wait_on(&self.0.session().clone(), |done| {
            self.0.store_blob(oid, base, data, source, Some(progress), done)
        })
        .await
    }

    /// Stores an object's record with a blob that is read from a stream to its end. The bytes are
    /// written into the cache first. They become the cached blob when the transaction is committed.
    ///
    /// # Cancel safety
    /// If the future is dropped while the stream is read, nothing is stored, and a commit does not
    /// include the object. After that it is as with [`store_blob`](Self::store_blob).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// # Errors
    /// [`CallError::Stream`] if the stream fails; otherwise as [`store_blob`](Self::store_blob).
    /// The transaction can only be aborted then.
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

    /// Writes a stream into the cache. Reading and writing take turns, so one buffer of memory is enough.
    async fn spool(&self, mut reader: impl AsyncRead + Unpin) -> Result<BlobSource, CallError> {
        let mut writer = self.0.spool()?;
        let mut bytes = Vec::with_capacity(READ_SIZE);
        loop {
            bytes.clear();
            let n = reader.read_buf(&mut bytes).await.map_err(CallError::Stream)?;
            if n == 0 {
                return unblock(move || Ok(BlobSource::spooled(writer.complete()?))).await;
            }
            let write = move || writer.write(&bytes).map(|()| (writer, bytes));
            (writer, bytes) = unblock(write).await?;
        }
    }

    /// Asks the server whether everything can be committed. After that, a [`finish`](Self::finish)
    /// succeeds unless the connection is lost for too long.
    ///
    /// # Cancel safety
    /// If the future is dropped, the transaction can only be aborted. Another vote fails.
    ///
    /// # Errors
    /// [`VoteError::Conflict`] with the transaction open as before: store each resolved object, and
    /// vote again. After [`VoteError::Call`] the transaction can only be aborted.
    pub async fn vote(&mut self) -> Result<(), VoteError> {
        wait_on(&self.0.session().clone(), |done| self.0.vote(done)).await
    }

    /// Commits what was voted for. At the tid that is returned everything in the transaction is
    /// durable, and visible to all clients.
    ///
    /// # Cancel safety
    /// A dropped future does not take the commit back. The [outcome](crate::Client::outcome) says
    /// what has become of it.
    ///
    /// # Errors
    /// See [`CallError`]. [`CallError::NotCommitted`] is definite. After
    /// [`CallError::OutcomeUnknown`] ask for the [outcome](crate::Client::outcome).
    pub async fn finish(self) -> Result<Tid, CallError> {
        wait_on(&self.0.session().clone(), |done| self.0.finish(done)).await
    }

    /// Votes and finishes in one round trip. At the tid that is returned everything in the
    /// transaction is durable, and visible to all clients.
    ///
    /// # Cancel safety
    /// A dropped future does not take the commit back: it goes on. The
    /// [outcome](crate::Client::outcome) says what has become of it.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] gives the open transaction back: store each resolved object, and
    /// commit again. With [`CommitError::Call`] the transaction is over. If that is
    /// [`CallError::OutcomeUnknown`], ask for the [outcome](crate::Client::outcome).
    pub async fn commit(self) -> Result<Tid, CommitError> {
        let session = self.0.session().clone();
        // The completion owns the transaction, which would be aborted if it was dropped with the future.
        let committing = Arc::new(Mutex::new(Some(self)));
        let held = committing.clone();
        let answered: Result<_, CallError> = wait_on(&session, move |done| {
            if let Some(transaction) = committing.lock().as_mut() {
                transaction.0.commit(move |result| done(Ok((result, held))));
            }
        })
        .await;
        let (result, held) = answered?;
        let transaction = held.lock().take();
        match (result, transaction) {
            (Ok(tid), _) => Ok(tid),
            (Err(VoteError::Conflict(conflicts)), Some(transaction)) => {
                Err(CommitError::Conflict { transaction: Box::new(transaction), conflicts })
            }
            // This cannot happen: nothing else takes the transaction.
            (Err(VoteError::Conflict(_)), None) => Err(CallError::Unanswered.into()),
            (Err(VoteError::Call(error)), _) => Err(error.into()),
        }
    }

    /// Aborts the transaction. Files that were moved into it are deleted.
    ///
    /// # Cancel safety
    /// A dropped future does not stop the abort.
    ///
    /// # Errors
    /// See [`CallError`]. The transaction is over in any case.
    pub async fn abort(self) -> Result<(), CallError> {
        wait_on(&self.0.session().clone(), |done| self.0.abort(done)).await
    }
}

/// Runs a blocking job on the runtime's blocking pool.
async fn unblock<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, WriteError> + Send + 'static,
) -> Result<T, CallError> {
    match spawn_blocking(job).await {
        Ok(result) => result.map_err(CallError::from),
        Err(error) => Err(CallError::Stream(io::Error::other(error))),
    }
}
