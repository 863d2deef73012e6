//! Claims of small blobs' bytes, which are answered from memory or a segment instead of a file.
//!
//! They are claimed like all blobs, and downloaded once per machine. Bytes that have arrived are
//! handed out from memory at once, and written to a [segment](crate::segments) afterwards. The
//! claim ends when they are written, so that other processes find them there. A file is written
//! only if a claim wants one.

use blobferry_platform::blobdir::WriteError;
use blobferry_platform::os::Job;
use blobferry_platform::sync::mpsc;
use blobferry_protocol::planted::{Bug, planted};
use blobferry_protocol::{BlobId, Digest};
use bytes::Bytes;

use crate::cache::Cache;
use crate::cache_dir::{CacheDir, Found, Waiter};
use crate::cached_blob::CachedBlob;
use crate::claim::download::Download;
use crate::error::CacheError;
use crate::quota::reservation::CacheQuota;
use crate::segments::record::Head;
use crate::segments::{SMALL, Segments};

/// The answer to a claim of a blob's bytes.
#[derive(Debug)]
pub enum SmallClaim {
    /// The blob's bytes, compared with their digest.
    Bytes(Bytes),
    /// The blob's file.
    File(CachedBlob),
    /// The blob is not in the cache, and the owner of this value is to download it. All other
    /// claims wait for that. If the blob turns out to be small, [`Download::finish_small`] can end
    /// the download.
    Download(Download),
}

/// A claim of a blob's bytes: the callback that gets the answer.
struct BytesClaim<F>(F);

impl<F: FnOnce(Result<SmallClaim, CacheError>) + Send + 'static> Waiter for BytesClaim<F> {
    fn accepts_bytes(&self) -> bool {
        true
    }

    fn bytes(self: Box<Self>, _dir: &CacheDir, _blob: BlobId, bytes: Bytes) {
        (self.0)(Ok(SmallClaim::Bytes(bytes)));
    }

    fn hit(self: Box<Self>, cached: CachedBlob) {
        (self.0)(Ok(SmallClaim::File(cached)));
    }

    fn download(self: Box<Self>, dir: &CacheDir, blob: BlobId) {
        (self.0)(Ok(SmallClaim::Download(Download::new(dir.clone(), blob))));
    }

    fn fail(self: Box<Self>, error: CacheError) {
        (self.0)(Err(error));
    }

    fn claim_again(self: Box<Self>, dir: &CacheDir, blob: BlobId) {
        if let Some((bytes, _)) = dir.small(blob) {
            return (self.0)(Ok(SmallClaim::Bytes(bytes)));
        }
        match dir.lookup(blob) {
            Ok(Found::Ready(cached)) => (self.0)(Ok(SmallClaim::File(cached))),
            Ok(_) if dir.is_shared() => (self.0)(Err(CacheError::NotShared { blob })),
            Ok(_) => dir.enter(blob, self),
            Err(error) => (self.0)(Err(error)),
        }
    }
}

impl Cache {
    /// The largest blob, in bytes, that the cache keeps without a file of its own.
    pub const SMALL: u64 = SMALL;

    /// Returns a blob's bytes if they are in memory or in a segment, compared with their digest.
    /// Does not look for a file of the blob.
    #[must_use]
    pub fn packed(&self, blob: BlobId) -> Option<Bytes> {
        self.0.small(blob).map(|(bytes, _)| bytes)
    }

    /// Claims a blob's bytes, and waits while another thread or process downloads it: see
    /// [`Cache::claim`].
    ///
    /// # Errors
    /// As for [`Cache::claim`].
    pub fn claim_small(&self, blob: BlobId) -> Result<SmallClaim, CacheError> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.claim_small_with(blob, move |claim| _ = answer.send(claim));
        answered.recv().unwrap_or(Err(CacheError::Abandoned { blob }))
    }

    /// Claims a blob's bytes, and never waits for a download: see [`Cache::claim_with`]. If the
    /// bytes are in a segment, the calling thread reads them.
    pub fn claim_small_with(
        &self,
        blob: BlobId,
        done: impl FnOnce(Result<SmallClaim, CacheError>) + Send + 'static,
    ) {
        Box::new(BytesClaim(done)).claim_again(&self.0, blob);
    }

    /// Runs `load` as soon as memory has space for another small blob: before this returns, or on
    /// the thread that writes small blobs to a segment. `load` is expected to request the blob.
    pub fn when_small_fits(&self, load: impl FnOnce() + Send + 'static) {
        match self.0.segments() {
            Some(segments) => segments.pending.run_when_writable(Box::new(load)),
            None => load(),
        }
    }
}

impl Download {
    /// Ends the download of a small blob with all of its bytes, which are in memory.
    ///
    /// If the bytes have this digest, claims of the bytes in this process are answered at once. The
    /// bytes still have to be written to a segment. If no job is writing, this hands a job to
    /// `run`, which must execute it, on this thread or another one; the job blocks for disk writes.
    /// All other claims of the blob are answered when it is written.
    ///
    /// # Errors
    /// Returns [`CacheError::Write`] if the bytes have another digest, or are more than
    /// [`Cache::SMALL`]. The next waiting claim leads then.
    pub fn finish_small(
        self,
        bytes: &Bytes,
        digest: Digest,
        run: impl FnOnce(Job),
    ) -> Result<(), CacheError> {
        let found = Digest(*blake3::hash(bytes).as_bytes());
        let size = bytes.len() as u64;
        let source = match size {
            _ if found != digest && !planted(Bug::ForgetDigestCheck) => {
                WriteError::Digest { expected: digest, found }
            }
            _ if size > SMALL => WriteError::TooLong { size: SMALL, found: size },
            _ => {
                let (dir, blob) = self.into_leadership();
                add_small(&dir, Head { blob, size, digest }, bytes, run);
                return Ok(());
            }
        };
        Err(CacheError::Write { blob: self.blob(), source })
    }
}

/// Queues a small blob to be written, and answers the claims of its bytes.
fn add_small(dir: &CacheDir, head: Head, bytes: &Bytes, run: impl FnOnce(Job)) {
    // In shared mode nothing is downloaded.
    let Some(segments) = dir.segments() else { return dir.complete(head.blob) };
    let needs_writer = segments.pending.add(head, bytes.clone());
    let early = dir.in_flight(head.blob.bucket()).leave(head.blob, |waiter| waiter.accepts_bytes());
    early.into_iter().for_each(|waiter| waiter.bytes(dir, head.blob, bytes.clone()));
    if needs_writer {
        let dir = dir.clone();
        run(Box::new(move || write_pending(&dir)));
    }
}

/// Writes all small blobs that are queued, and answers the claims that wait for them.
fn write_pending(dir: &CacheDir) {
    let (Some(segments), Some(quota)) = (dir.segments(), dir.quota()) else { return };
    loop {
        let batch = segments.pending.next();
        if batch.is_empty() {
            return;
        }
        write_batch(segments, quota, &batch);
        let loads = segments.pending.done(&batch);
        batch.iter().for_each(|(head, _)| dir.complete(head.blob));
        loads.into_iter().for_each(|load| load());
    }
}

fn write_batch(segments: &Segments, quota: &CacheQuota, batch: &[(Head, Bytes)]) {
    if let Err(error) = segments.append(quota, batch) {
        // The next claim of such a blob downloads it again.
        tracing::warn!(blobs = batch.len(), %error, "small blobs did not get into the cache");
    }
}
