//! A session's lock, and what every part of the client does under it: queue requests, and unlock.

use std::fmt;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use blobferry_cache::{Cache, CachedBlob};
use blobferry_platform::pool::BlockingPool;
use blobferry_platform::sync::{Arc, Mutex, MutexGuard};
use blobferry_protocol::{BlobId, RequestError};

use crate::client::config::ClientConfig;
use crate::client::error::CallError;
use crate::client::queue::Queued;
use crate::client::state::Inner;

/// A client's life over one connection after the other. Clones are the same session.
///
/// Without a connection calls wait. When a connection is lost, everything pending goes on with the next one: reads are
/// sent again, downloads resume at the byte that they had reached, and so do open transactions and their uploads. The
/// server is asked for the outcome of a commit that was sent. [`Reconnect`](super::Reconnect) says how long calls wait.
///
/// Every call takes a completion, which receives the one result of the call. The session runs completions with no lock
/// held, on the thread that drives the connection, on a thread of its pool, or on the caller's. A completion may make
/// further calls; it must not block for long.
#[derive(Clone)]
pub struct Session(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) cache: Cache,
    pub(super) workers: BlockingPool,
    pub(super) config: ClientConfig,
    pub(super) inner: Mutex<Inner>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("cache", &self.0.cache.layout().root()).finish_non_exhaustive()
    }
}

impl Session {
    /// Returns the cache that blobs are loaded into.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Returns the session's pool of threads for blocking work.
    #[must_use]
    pub fn workers(&self) -> &BlockingPool {
        &self.0.workers
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock()
    }

    /// Unlocks, runs the deferred callbacks, and with `wake` wakes the transport if there is something to send.
    pub(super) fn unlock(&self, mut inner: MutexGuard<'_, Inner>, wake: bool) {
        let wake = (wake && inner.connection.backlog() > 0).then(|| inner.state.wake.clone()).flatten();
        let deferred = inner.state.take_deferred();
        drop(inner);
        for act in deferred {
            act();
        }
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Unlocks after the handler was driven. If the driver wants to run callbacks itself, they are left to it.
    pub(super) fn unlock_driven(&self, mut inner: MutexGuard<'_, Inner>) {
        if !inner.state.leave_to_driver() {
            self.unlock(inner, false);
        }
    }

    /// Queues a request, and wakes the transport.
    pub(super) fn enqueue(&self, queued: Queued) {
        let mut inner = self.lock();
        inner.state.enqueue(queued);
        inner.pump();
        self.unlock(inner, true);
    }

    /// Queues a request without waking the transport. It is sent with the next one.
    pub(super) fn enqueue_without_wake(&self, queued: Queued) {
        let mut inner = self.lock();
        inner.state.enqueue(queued);
        inner.pump();
        self.unlock(inner, false);
    }
}

/// Returns the part of a range that lies in a blob of `size` bytes.
pub(super) fn clamp(blob: BlobId, size: u64, range: Range<u64>) -> Result<Range<usize>, CallError> {
    let (from, upto) = (range.start, range.end.min(size));
    if from > upto {
        return Err(RequestError::BadRange { blob, size, from, upto: range.end }.into());
    }
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    Ok(place(from)..place(upto))
}

/// Reads a range of a cached file.
pub(super) fn read_range(cached: &CachedBlob, range: Range<u64>) -> Result<Vec<u8>, CallError> {
    let range = clamp(cached.blob(), cached.size(), range)?;
    let mut bytes = vec![0; range.len()];
    let read = cached.file().read_exact_at(&mut bytes, range.start as u64);
    read.map_err(|source| CallError::File { path: cached.path().to_owned(), source })?;
    Ok(bytes)
}
