//! How a claim comes to lead its blob, what its leader does, and which claim leads next.
//!
//! The leader of a blob is the one claim of this process that looks the blob up again, has its file
//! verified, or downloads it. No mutex is held while a callback runs.

use std::fs::File;
use std::io;

use blobferry_platform::blobdir::{BlobWriter, WriteError, integrity};
use blobferry_platform::hash::digest_of;
use blobferry_platform::os;
use blobferry_protocol::planted::{Bug, planted};
use blobferry_protocol::{BlobId, Digest};
use bytes::Bytes;

use crate::cache_dir::{CacheDir, Found, Waiter};
use crate::claim::in_flight::Admission;
use crate::claim::trampoline;
use crate::error::CacheError;
use crate::lock::FileLock;

/// What the background thread has done about a blob's file.
enum Prepared {
    /// The leader must look the blob up again.
    Retry,
    /// There is no file, and the blob is in no segment.
    Nothing,
}

impl CacheDir {
    /// Lets a claim wait for its blob, or lead it.
    pub(crate) fn enter(&self, blob: BlobId, waiter: Box<dyn Waiter>) {
        let bucket = blob.bucket();
        let entered = self.in_flight(bucket).enter(blob, waiter, || self.try_lock(bucket));
        match entered {
            Admission::Leader(waiter) => self.lead(blob, waiter),
            Admission::Waiting => {}
            Admission::WaitingForLock => self.wait_for_lock(bucket),
            Admission::Refused(waiter, error) => waiter.fail(self.no_lock(bucket, error)),
        }
    }

    /// Lets a claim lead its blob if no other claim does. Returns `false` if it would have to wait.
    pub(crate) fn try_enter(&self, blob: BlobId) -> Result<bool, CacheError> {
        let bucket = blob.bucket();
        let entered = self.in_flight(bucket).try_enter(blob, || self.try_lock(bucket));
        entered.map_err(|error| self.no_lock(bucket, error))
    }

    /// Answers the claim that leads its blob.
    pub(crate) fn lead(&self, blob: BlobId, waiter: Box<dyn Waiter>) {
        if waiter.accepts_bytes()
            && let Some((bytes, _)) = self.small(blob)
        {
            self.complete(blob);
            return waiter.bytes(self, blob, bytes);
        }
        match self.lookup(blob) {
            Ok(Found::Ready(cached)) => {
                self.complete(blob);
                waiter.hit(cached);
            }
            Ok(Found::Missing) if !waiter.accepts_bytes() && self.may_be_in_segment(blob) => {
                self.prepare_later(blob, waiter);
            }
            Ok(Found::Missing) => waiter.download(self, blob),
            Ok(Found::Unverified(..)) => self.prepare_later(blob, waiter),
            Err(error) => self.fail(blob, waiter, error),
        }
    }

    /// Ends a leadership: the blob is in the cache. Answers all claims that wait for it.
    pub(crate) fn complete(&self, blob: BlobId) {
        let mut waiting = self.in_flight(blob.bucket()).complete(blob);
        if planted(Bug::LoseWaiter) {
            waiting.pop_back();
        }
        // Each claim opens the file by itself. If the file was evicted meanwhile, the claim starts
        // again.
        waiting.into_iter().for_each(|waiter| waiter.claim_again(self, blob));
    }

    /// Ends a leadership without the blob. The next claim leads.
    pub(crate) fn hand_over(&self, blob: BlobId) {
        let next = self.in_flight(blob.bucket()).hand_over(blob);
        if let Some(waiter) = next {
            let dir = self.clone();
            trampoline::run(move || dir.lead(blob, waiter));
        }
    }

    /// Ends a leadership with an error.
    fn fail(&self, blob: BlobId, waiter: Box<dyn Waiter>, error: CacheError) {
        waiter.fail(error);
        self.hand_over(blob);
    }

    /// Blocks one thread in the bucket's file lock, which another process holds.
    fn wait_for_lock(&self, bucket: u64) {
        let dir = self.clone();
        let waiting = FileLock::wait(self.layout().lock_path(bucket), move |locked| match locked {
            Ok(lock) => {
                // If no claim waits any more, the lock is dropped here.
                let leaders = dir.in_flight(bucket).locked(bucket, lock);
                leaders.into_iter().for_each(|(blob, waiter)| dir.lead(blob, waiter));
            }
            Err(error) => dir.lock_failed(bucket, &error),
        });
        if let Err(error) = waiting {
            self.lock_failed(bucket, &error);
        }
    }

    fn lock_failed(&self, bucket: u64, error: &io::Error) {
        let failed = self.in_flight(bucket).lock_failed(bucket);
        for (_, waiter) in failed {
            waiter.fail(self.no_lock(bucket, copy_of(error)));
        }
    }

    fn no_lock(&self, bucket: u64, error: io::Error) -> CacheError {
        CacheError::io("lock", &self.layout().lock_path(bucket))(error)
    }

    /// Returns the bytes and the digest of a blob that waits to be written to a segment, or is in
    /// one.
    pub(crate) fn small(&self, blob: BlobId) -> Option<(Bytes, Digest)> {
        let segments = self.segments()?;
        match segments.pending.get(blob) {
            Some((head, bytes)) => Some((bytes, head.digest)),
            None => segments.read(blob),
        }
    }

    /// Returns whether the index names a segment for the blob.
    fn may_be_in_segment(&self, blob: BlobId) -> bool {
        self.segments().is_some_and(|segments| segments.may_have(blob))
    }

    /// Verifies, removes or writes the blob's file on the background thread, which then answers the
    /// leader.
    ///
    /// Files from before the machine's last start are verified, which reads all of the file. A
    /// verified file gets a new stamp. A damaged file is removed, and the blob is downloaded again.
    /// A small blob that is only in a segment gets a file. One thread does this for the whole
    /// cache, because the disk limits it.
    fn prepare_later(&self, blob: BlobId, leader: Box<dyn Waiter>) {
        if !self.verify_queue().push(blob, leader) {
            return;
        }
        let dir = self.clone();
        if let Err(error) = os::spawn("blobferry-check", move || dir.prepare_queued()) {
            while let Some((blob, waiter)) = self.next_to_prepare() {
                let path = self.layout().blob_path(blob);
                self.fail(blob, waiter, CacheError::io("start a thread to check", &path)(copy_of(&error)));
            }
        }
    }

    fn prepare_queued(&self) {
        while let Some((blob, waiter)) = self.next_to_prepare() {
            match self.prepare(blob) {
                Ok(Prepared::Retry) => self.lead(blob, waiter),
                Ok(Prepared::Nothing) => waiter.download(self, blob),
                Err(error) => self.fail(blob, waiter, error),
            }
        }
    }

    fn next_to_prepare(&self) -> Option<(BlobId, Box<dyn Waiter>)> {
        self.verify_queue().next()
    }

    fn prepare(&self, blob: BlobId) -> Result<Prepared, CacheError> {
        match self.lookup(blob)? {
            Found::Ready(_) => Ok(Prepared::Retry),
            Found::Unverified(file, digest) => {
                self.verify_or_remove(blob, &file, digest)?;
                Ok(Prepared::Retry)
            }
            Found::Missing if self.extract_from_segment(blob)? => Ok(Prepared::Retry),
            Found::Missing => Ok(Prepared::Nothing),
        }
    }

    fn verify_or_remove(
        &self,
        blob: BlobId,
        file: &File,
        expected: Option<Digest>,
    ) -> Result<(), CacheError> {
        let path = self.layout().blob_path(blob);
        let (found, _) = digest_of(file).map_err(CacheError::io("read", &path))?;
        match expected {
            Some(digest) if digest == found => self.set_verified(blob, file, digest),
            _ => {
                tracing::warn!(%blob, path = %path.display(), "removed a file that was damaged by a power cut");
                if let Some(quota) = self.quota() {
                    quota.remove(&path).map_err(CacheError::Quota)?;
                }
            }
        }
        Ok(())
    }

    /// Stamps a verified file, or remembers the blob if that is impossible.
    pub(crate) fn set_verified(&self, blob: BlobId, file: &File, digest: Digest) {
        let stamped = self.boot().is_some_and(|boot| integrity::write(file, digest, boot).is_ok());
        if !stamped {
            self.verify_queue().set_verified(blob);
        }
    }

    /// Writes the file of a small blob that is in a segment. Returns `false` if it is in none.
    fn extract_from_segment(&self, blob: BlobId) -> Result<bool, CacheError> {
        let Some((bytes, digest)) = self.small(blob) else { return Ok(false) };
        let write = || -> Result<(), WriteError> {
            let mut writer = BlobWriter::new(self.create_temp_file()?);
            writer.expect(bytes.len() as u64)?;
            writer.write(&bytes)?;
            let complete = writer.complete_checked(digest)?;
            self.publish(blob, complete.file, Some(digest)).map(drop)
        };
        write().map_err(|source| CacheError::Write { blob, source })?;
        Ok(true)
    }
}

/// Copies an error that several claims are to report.
fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
