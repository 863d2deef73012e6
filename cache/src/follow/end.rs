//! How a follower learns the end of a download: it claims the blob, and the claim is answered.

use std::error::Error;
use std::io;

use blobferry_protocol::BlobId;

use crate::cached_blob::CachedBlob;
use crate::follow::watch::EventFd;
use blobferry_platform::sync::{Arc, Mutex, MutexGuard};

/// Why a blob could not be read to its end while it was downloaded.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// The download or the cache failed.
    #[error("blob {blob} cannot be read to its end: {source}")]
    Failed {
        /// The blob.
        blob: BlobId,
        /// The cause.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// No claim downloads the blob: the downloader has died or given up, or there was none. The
    /// follower's own claim leads now.
    #[error("no process of this machine downloads blob {blob}: claim it, and download it")]
    Unattended {
        /// The blob.
        blob: BlobId,
    },
    /// The download began again, and the bytes that were read before were not the blob's.
    #[error("the bytes that were read of blob {blob} are not its first ones: read it again")]
    Different {
        /// The blob.
        blob: BlobId,
    },
}

impl From<FollowError> for io::Error {
    fn from(error: FollowError) -> io::Error {
        io::Error::other(error)
    }
}

/// What a follower and the answer to its claim share.
#[derive(Debug)]
pub(crate) struct FollowState {
    blob: BlobId,
    pub(crate) answered: EventFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) has_answer: bool,
    pub(crate) answer: Option<Result<CachedBlob, FollowError>>,
    /// The follower needs no answer any more.
    pub(crate) abandoned: bool,
}

/// Reports the end of a download that a follower started: see
/// [`Cache::follow_with`](crate::Cache::follow_with). Dropped without [`FollowEnd::tell`], it
/// reports that no claim downloads.
#[derive(Debug)]
pub struct FollowEnd(pub(crate) Arc<FollowState>);

impl FollowEnd {
    /// Reports that the blob is in the cache, or that the download failed.
    pub fn tell(self, end: Result<CachedBlob, impl Into<Box<dyn Error + Send + Sync>>>) {
        self.0.answer(end.map_err(|error| failed(self.0.blob, error)));
    }
}

impl Drop for FollowEnd {
    fn drop(&mut self) {
        let blob = self.0.blob;
        self.0.answer(Err(FollowError::Unattended { blob }));
    }
}

impl FollowState {
    pub(crate) fn new(blob: BlobId) -> io::Result<FollowState> {
        Ok(FollowState { blob, answered: EventFd::new()?, state: Mutex::default() })
    }

    /// Sets the answer, unless there is one, and wakes the follower.
    pub(crate) fn answer(&self, answer: Result<CachedBlob, FollowError>) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.has_answer, true) {
            state.answer = Some(answer);
        }
        drop(state);
        self.answered.signal();
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

pub(crate) fn failed(blob: BlobId, error: impl Into<Box<dyn Error + Send + Sync>>) -> FollowError {
    FollowError::Failed { blob, source: error.into().into() }
}
