//! Claims: one download per machine.
//!
//! A claim of a blob is answered with the blob, or with the right and the duty to download it.
//! Between processes the file lock of the blob's bucket decides. Between threads of one process the
//! in-flight table ([`InFlight`](crate::claim::in_flight::InFlight)) decides. A claim takes these
//! steps:
//!
//! 1. It looks the file up. If the file is in the cache, that is the answer.
//! 2. Otherwise it enters the in-flight table. If another claim of this process leads the blob, it
//!    waits. If another process holds the bucket's file lock, it waits, and one thread blocks in
//!    the lock for all claims of the bucket. Otherwise it leads.
//! 3. The leader looks the file up again, because it may have come meanwhile. If the blob is in a
//!    segment, its file is written. Otherwise the leader gets the [`Download`].
//! 4. A download that succeeds answers all waiting claims. One that fails makes the next claim the
//!    leader.
//!
//! No step polls.

pub(crate) mod download;
pub(crate) mod in_flight;
pub(crate) mod lead;
pub(crate) mod partial;
pub(crate) mod small;
pub(crate) mod trampoline;
pub(crate) mod verify_queue;

use std::time::Duration;

use blobferry_platform::sync::mpsc;
use blobferry_protocol::BlobId;
use bytes::Bytes;

use crate::cache::Cache;
use crate::cache_dir::{CacheDir, Found, Waiter};
use crate::cached_blob::CachedBlob;
use crate::claim::download::Download;
use crate::error::CacheError;

/// The answer to a claim.
#[derive(Debug)]
pub enum Claim {
    /// The blob is in the cache.
    Hit(CachedBlob),
    /// The blob is not in the cache, and the owner of this value is to download it. All other
    /// claims wait for that.
    Download(Download),
}

/// A claim of a blob's file: the callback that gets the answer.
struct FileClaim<F>(F);

impl<F: FnOnce(Result<Claim, CacheError>) + Send + 'static> Waiter for FileClaim<F> {
    fn accepts_bytes(&self) -> bool {
        false
    }

    fn bytes(self: Box<Self>, dir: &CacheDir, blob: BlobId, _bytes: Bytes) {
        self.claim_again(dir, blob);
    }

    fn hit(self: Box<Self>, cached: CachedBlob) {
        (self.0)(Ok(Claim::Hit(cached)));
    }

    fn download(self: Box<Self>, dir: &CacheDir, blob: BlobId) {
        (self.0)(Ok(Claim::Download(Download::new(dir.clone(), blob))));
    }

    fn fail(self: Box<Self>, error: CacheError) {
        (self.0)(Err(error));
    }

    fn claim_again(self: Box<Self>, dir: &CacheDir, blob: BlobId) {
        match at_once(dir, blob) {
            Some(claim) => (self.0)(claim),
            None => dir.enter(blob, self),
        }
    }
}

/// Returns the answer to a claim if it needs no waiting.
fn at_once(dir: &CacheDir, blob: BlobId) -> Option<Result<Claim, CacheError>> {
    match dir.lookup(blob) {
        Ok(Found::Ready(cached)) => Some(Ok(Claim::Hit(cached))),
        Ok(_) if dir.is_shared() => Some(Err(CacheError::NotShared { blob })),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    }
}

impl Cache {
    /// Claims a blob, and waits while another thread or process downloads it.
    ///
    /// A thread that owns a [`Download`] must not wait for another claim. A claim of the same blob
    /// would wait for that very download, forever. In other processes even claims of different
    /// blobs wait if the blobs share a bucket: the directory has 997 buckets (object id modulo
    /// 997). The file lock of a bucket stays locked while this process downloads a blob of it. Use
    /// [`Cache::try_claim`] or [`Cache::claim_timeout`] to avoid waiting without end.
    ///
    /// # Errors
    /// Returns [`CacheError::NotShared`] if the blob is missing in shared mode; [`CacheError::Io`]
    /// if its file cannot be opened, or the bucket not be locked; [`CacheError::Abandoned`] if the
    /// answering thread panicked.
    pub fn claim(&self, blob: BlobId) -> Result<Claim, CacheError> {
        if let Some(claim) = at_once(&self.0, blob) {
            return claim;
        }
        let (answer, answered) = mpsc::sync_channel(1);
        self.0.enter(blob, Box::new(FileClaim(move |claim| _ = answer.send(claim))));
        answered.recv().unwrap_or(Err(CacheError::Abandoned { blob }))
    }

    /// Claims a blob, but does not wait for another thread or process.
    ///
    /// Returns `None` if another claim leads the blob, or another process has locked the blob's
    /// bucket. Verifying a file from before the machine's last start still blocks, because this
    /// thread's claim leads then.
    ///
    /// # Errors
    /// As for [`Cache::claim`].
    pub fn try_claim(&self, blob: BlobId) -> Result<Option<Claim>, CacheError> {
        if let Some(claim) = at_once(&self.0, blob) {
            return claim.map(Some);
        }
        if !self.0.try_enter(blob)? {
            return Ok(None);
        }
        let (answer, answered) = mpsc::sync_channel(1);
        self.0.lead(blob, Box::new(FileClaim(move |claim| _ = answer.send(claim))));
        answered.recv().unwrap_or(Err(CacheError::Abandoned { blob })).map(Some)
    }

    /// Claims a blob, and waits for at most `timeout`. Returns `None` if the time runs out.
    ///
    /// The claim stays in the queue then. When its turn comes, it leaves at once, and the next
    /// claim leads.
    ///
    /// # Errors
    /// As for [`Cache::claim`].
    pub fn claim_timeout(&self, blob: BlobId, timeout: Duration) -> Result<Option<Claim>, CacheError> {
        if let Some(claim) = at_once(&self.0, blob) {
            return claim.map(Some);
        }
        let (answer, answered) = mpsc::sync_channel(1);
        self.0.enter(blob, Box::new(FileClaim(move |claim| _ = answer.send(claim))));
        match answered.recv_timeout(timeout) {
            Ok(claim) => claim.map(Some),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(CacheError::Abandoned { blob }),
        }
    }

    /// Claims a blob, and never blocks. Calls `done` with the answer: before this returns if the
    /// answer is known, otherwise later, on another thread.
    ///
    /// `done` must return quickly and must not wait (above all not for another claim): let it pass
    /// the answer on. An answer that is not needed any more can be dropped.
    pub fn claim_with(&self, blob: BlobId, done: impl FnOnce(Result<Claim, CacheError>) + Send + 'static) {
        Box::new(FileClaim(done)).claim_again(&self.0, blob);
    }
}
