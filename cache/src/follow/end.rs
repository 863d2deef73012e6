//! How a follower learns the end of a download: it waits in line like everybody who wants the blob, and is answered.

use std::error::Error;
use std::io;

use blobferry_protocol::BlobId;

use crate::cached_blob::CachedBlob;
use crate::follow::watch::EventFd;
use blobferry_platform::sync::{Arc, Mutex, MutexGuard};

/// Why a blob could not be read to its end while it was downloaded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FollowError {
    /// The download failed, or the cache did.
    #[error("blob {blob} can not be read to its end: {source}")]
    Failed {
        /// The blob.
        blob: BlobId,
        /// What went wrong.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// Whoever downloaded it has died or given up, or nobody has begun; and now it is this follower's turn.
    #[error("nobody here downloads blob {blob}: claim it, and download it")]
    Unattended {
        /// The blob.
        blob: BlobId,
    },
    /// The download began again from nothing, and what it had brought before was not the blob's.
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

/// A follower's place in the line of those who want the blob.
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
    /// The follower wants no answer any more.
    pub(crate) abandoned: bool,
}

/// Where the end of a download is told that was handed to a follower: see
/// [`Cache::follow_with`](crate::Cache::follow_with). Dropped, it tells the follower that nobody downloads.
#[derive(Debug)]
pub struct FollowEnd(pub(crate) Arc<FollowState>);

impl FollowEnd {
    /// The blob is in the cache, or the download has failed.
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

    /// The first answer counts.
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
