//! Small blobs, whose bytes are wanted rather than a file.
//!
//! They are claimed like all others, and downloaded once a machine. But what has arrived is handed out from memory at once,
//! and written to a [pack](crate::segments) behind that; the claim ends when it is written, so that other processes find it
//! there. A file is made only when somebody wants one.

use blobferry_protocol::planted::{Bug, planted};
use blobferry_protocol::{BlobId, Digest};
use bytes::Bytes;

use crate::cache::{Cache, Found};
use crate::cached_blob::CachedBlob;
use crate::claim::Waiter;
use crate::claim::download::Download;
use crate::error::CacheError;
use crate::quota::reservation::CacheQuota;
use crate::segments::record::Head;
use crate::segments::{SMALL, Segments};
use blobferry_platform::blobdir::BlobWriter;
use blobferry_platform::blobdir::WriteError;
use blobferry_platform::os::Job;
use blobferry_platform::sync::mpsc;

/// The answer to a claim of a blob's bytes.
#[derive(Debug)]
pub enum SmallClaim {
    /// They are there, and are the blob's.
    Bytes(Bytes),
    /// The blob is there, as a file.
    File(CachedBlob),
    /// The blob is not there, and whoever has this is to download it. All others wait for that. If it turns out to be
    /// small, it can be ended with [`Download::keep`].
    Download(Download),
}

impl Cache {
    /// No larger blob is kept without a file of its own.
    pub const SMALL: u64 = SMALL;

    /// A blob's bytes, if they are there, and not in a file of its own: they were loaded into memory by somebody. They are
    /// compared with their digest.
    #[must_use]
    pub fn packed(&self, blob: BlobId) -> Option<Bytes> {
        self.in_memory_or_packed(blob)
    }

    /// Claims a blob's bytes, and waits while another thread or process downloads it: see [`Cache::claim`].
    ///
    /// # Errors
    /// As for [`Cache::claim`].
    pub fn claim_small(&self, blob: BlobId) -> Result<SmallClaim, CacheError> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.claim_small_with(blob, move |claim| _ = answer.send(claim));
        answered.recv().unwrap_or(Err(CacheError::Abandoned { blob }))
    }

    /// Claims a blob's bytes, and never waits for a download: see [`Cache::claim_with`]. Those that are there are read by the
    /// calling thread.
    pub fn claim_small_with(
        &self,
        blob: BlobId,
        done: impl FnOnce(Result<SmallClaim, CacheError>) + Send + 'static,
    ) {
        if let Some(bytes) = self.in_memory_or_packed(blob) {
            return done(Ok(SmallClaim::Bytes(bytes)));
        }
        match self.look(blob) {
            Ok(Found::Ready(cached)) => done(Ok(SmallClaim::File(cached))),
            Ok(_) if self.is_shared() => done(Err(CacheError::NotShared { blob })),
            Ok(_) => self.enter(blob, Waiter::Bytes(Box::new(done))),
            Err(error) => done(Err(error)),
        }
    }

    /// Has something done as soon as there is room in memory for another small blob: at once, or on the thread that writes
    /// those that are there. Whoever downloads one asks for it behind this.
    pub fn when_small_fits(&self, load: impl FnOnce() + Send + 'static) {
        match self.packs() {
            Some(packs) => packs.pending.when_there_is_room(Box::new(load)),
            None => load(),
        }
    }

    pub(crate) fn in_memory_or_packed(&self, blob: BlobId) -> Option<Bytes> {
        self.small(blob).map(|(bytes, _)| bytes)
    }

    fn small(&self, blob: BlobId) -> Option<(Bytes, Digest)> {
        let packs = self.packs()?;
        match packs.pending.get(blob) {
            Some((head, bytes)) => Some((bytes, head.digest)),
            None => packs.read(blob),
        }
    }

    /// Whether there is a hint that a blob is in a pack.
    pub(crate) fn may_be_packed(&self, blob: BlobId) -> bool {
        self.packs().is_some_and(|packs| packs.knows(blob))
    }

    /// Makes a file of a blob that is in a pack; `false` where it is in none.
    pub(crate) fn unpack(&self, blob: BlobId) -> Result<bool, CacheError> {
        let Some((bytes, digest)) = self.small(blob) else { return Ok(false) };
        let write = || -> Result<(), WriteError> {
            let mut writer = BlobWriter::over(self.temporary()?);
            writer.expect(bytes.len() as u64)?;
            writer.write(&bytes)?;
            let complete = writer.complete_checked(digest)?;
            self.publish(blob, complete.file, Some(digest)).map(drop)
        };
        write().map_err(|source| CacheError::Write { blob, source })?;
        Ok(true)
    }

    /// Writes all small blobs that wait for it, and answers those who wait for them.
    fn write_small(&self) {
        let (Some(packs), Some(room)) = (self.packs(), self.room()) else { return };
        loop {
            let batch = packs.pending.next();
            if batch.is_empty() {
                return;
            }
            write_batch(packs, room, &batch);
            let loads = packs.pending.done(&batch);
            batch.iter().for_each(|(head, _)| self.settle(head.blob));
            loads.into_iter().for_each(|load| load());
        }
    }
}

fn write_batch(packs: &Segments, room: &CacheQuota, batch: &[(Head, Bytes)]) {
    if let Err(error) = packs.append(room, batch) {
        // Who wants one of them again downloads it again.
        tracing::warn!(blobs = batch.len(), %error, "small blobs did not get into the cache");
    }
}

impl Download {
    /// Ends the download of a small blob, all of whose bytes were brought to memory: if they have this digest, all
    /// threads of this process that want them are given them from now on. They are written to the cache behind that, by a job
    /// that `run` is given, unless one is at work already; it may block. All others who want the blob wait for that.
    ///
    /// # Errors
    /// [`CacheError::Write`] where these are not the blob's bytes, or too many. The next one who waits becomes the
    /// downloader.
    pub fn keep(self, bytes: &Bytes, digest: Digest, run: impl FnOnce(Job)) -> Result<(), CacheError> {
        let found = Digest(*blake3::hash(bytes).as_bytes());
        let size = bytes.len() as u64;
        let source = match size {
            _ if found != digest && !planted(Bug::ForgetDigestCheck) => {
                WriteError::Digest { expected: digest, found }
            }
            _ if size > SMALL => WriteError::TooLong { size: SMALL, found: size },
            _ => {
                let (cache, blob) = self.leave_to_writer();
                cache.keep(Head { blob, size, digest }, bytes, run);
                return Ok(());
            }
        };
        Err(CacheError::Write { blob: self.blob(), source })
    }
}

impl Cache {
    fn keep(&self, head: Head, bytes: &Bytes, run: impl FnOnce(Job)) {
        // In shared mode nothing is downloaded.
        let Some(packs) = self.packs() else { return self.settle(head.blob) };
        let nobody_writes = packs.pending.add(head, bytes.clone());
        let early =
            self.registry(head.blob.bucket()).leave(head.blob, |waiter| matches!(waiter, Waiter::Bytes(_)));
        for waiter in early {
            if let Waiter::Bytes(done) = waiter {
                done(Ok(SmallClaim::Bytes(bytes.clone())));
            }
        }
        if nobody_writes {
            let cache = self.clone();
            run(Box::new(move || cache.write_small()));
        }
    }
}
