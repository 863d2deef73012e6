//! One download a machine: who wants a blob claims it, and is given it, or the duty to download it.
//!
//! Between processes the file lock of the blob's bucket decides, between threads of one process the
//! [`InFlight`](crate::claim::in_flight::InFlight). A claim goes this way:
//!
//! 1. The file is there: that is the answer.
//! 2. Else the claim enters the registry. If another claim of this process is in charge of the blob, it waits. If the
//!    bucket's file lock is held by another process, it waits, and one thread blocks in the lock for all claims of
//!    the bucket. Else it is in charge.
//! 3. Who is in charge looks again, since the file may have come meanwhile, and whether the blob is in a pack, of which
//!    its file can be made; else it gets the [`Download`].
//! 4. A download that ends well answers all who wait; one that ends badly hands its charge to the next of them.
//!
//! Nothing here polls, and no mutex is held while a callback runs.

pub(crate) mod download;
pub(crate) mod in_flight;
pub(crate) mod partial;
pub(crate) mod small;
pub(crate) mod trampoline;
pub(crate) mod verify_queue;

use std::io;

use blobferry_protocol::BlobId;
use blobferry_protocol::planted::{Bug, planted};

use crate::cache::{Cache, Found};
use crate::cached_blob::CachedBlob;
use crate::claim::download::Download;
use crate::claim::in_flight::Admission;
use crate::claim::small::SmallClaim;
use crate::error::CacheError;
use crate::lock::FileLock;
use blobferry_platform::sync::mpsc;

/// The answer to a claim.
#[derive(Debug)]
pub enum Claim {
    /// The blob is there.
    Hit(CachedBlob),
    /// The blob is not there, and whoever has this is to download it. All others wait for that.
    Download(Download),
}

/// What is called with the answer to a claim.
pub(crate) type Done<T> = Box<dyn FnOnce(Result<T, CacheError>) + Send>;

/// Somebody who wants a blob, as a file, or its bytes.
pub(crate) enum Waiter {
    File(Done<Claim>),
    Bytes(Done<SmallClaim>),
}

impl Waiter {
    pub(crate) fn hit(self, cached: CachedBlob) {
        match self {
            Waiter::File(done) => done(Ok(Claim::Hit(cached))),
            Waiter::Bytes(done) => done(Ok(SmallClaim::File(cached))),
        }
    }

    pub(crate) fn download(self, download: Download) {
        match self {
            Waiter::File(done) => done(Ok(Claim::Download(download))),
            Waiter::Bytes(done) => done(Ok(SmallClaim::Download(download))),
        }
    }

    pub(crate) fn fail(self, error: CacheError) {
        match self {
            Waiter::File(done) => done(Err(error)),
            Waiter::Bytes(done) => done(Err(error)),
        }
    }
}

impl Cache {
    /// Claims a blob, and waits while another thread or process downloads it.
    ///
    /// Who has a [`Download`] keeps others waiting, also for other blobs of its bucket. So it should not wait for
    /// anything but its bytes: not for another claim, for instance.
    ///
    /// # Errors
    /// [`CacheError::NotShared`] in shared mode, where the blob is not there; [`CacheError::Io`].
    pub fn claim(&self, blob: BlobId) -> Result<Claim, CacheError> {
        if let Some(claim) = self.at_once(blob) {
            return claim;
        }
        let (answer, answered) = mpsc::sync_channel(1);
        self.enter(blob, Waiter::File(Box::new(move |claim| _ = answer.send(claim))));
        answered.recv().unwrap_or(Err(CacheError::Abandoned { blob }))
    }

    /// Claims a blob, and never blocks: `done` is called with the answer. At once, where it can be had at once; else
    /// later, from another thread.
    ///
    /// `done` should be quick, and not wait for anything (least of all for another claim): send the answer to
    /// where it is wanted. An answer that nobody wants any more can just be dropped.
    pub fn claim_with(&self, blob: BlobId, done: impl FnOnce(Result<Claim, CacheError>) + Send + 'static) {
        match self.at_once(blob) {
            Some(claim) => done(claim),
            None => self.enter(blob, Waiter::File(Box::new(done))),
        }
    }

    /// The answer to a claim that nobody has to wait for.
    fn at_once(&self, blob: BlobId) -> Option<Result<Claim, CacheError>> {
        match self.look(blob) {
            Ok(Found::Ready(cached)) => Some(Ok(Claim::Hit(cached))),
            Ok(_) if self.is_shared() => Some(Err(CacheError::NotShared { blob })),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    }

    pub(crate) fn enter(&self, blob: BlobId, waiter: Waiter) {
        let bucket = blob.bucket();
        let entered = self.registry(bucket).enter(blob, waiter, || self.try_lock(bucket));
        match entered {
            Admission::InCharge(waiter) => self.in_charge(blob, waiter),
            Admission::Waits => {}
            Admission::WaitsForLock => self.wait_for_lock(bucket),
            Admission::Refused(waiter, error) => waiter.fail(self.no_lock(bucket, error)),
        }
    }

    /// Answers a claim that is in charge of its blob.
    pub(crate) fn in_charge(&self, blob: BlobId, waiter: Waiter) {
        let waiter = match waiter {
            Waiter::Bytes(done) => match self.in_memory_or_packed(blob) {
                Some(bytes) => {
                    self.settle(blob);
                    return done(Ok(SmallClaim::Bytes(bytes)));
                }
                None => Waiter::Bytes(done),
            },
            waiter => waiter,
        };
        match self.look(blob) {
            Ok(Found::Ready(cached)) => {
                self.settle(blob);
                waiter.hit(cached);
            }
            Ok(Found::Missing) if matches!(waiter, Waiter::File(_)) && self.may_be_packed(blob) => {
                self.prepare_later(blob, waiter);
            }
            Ok(Found::Missing) => waiter.download(Download::new(self.clone(), blob)),
            Ok(Found::Unproven(..)) => self.prepare_later(blob, waiter),
            Err(error) => self.fail(blob, waiter, error),
        }
    }

    /// The blob of which one was in charge is there: answers all who wait for it.
    pub(crate) fn settle(&self, blob: BlobId) {
        let mut waiting = self.registry(blob.bucket()).settle(blob);
        if planted(Bug::LoseWaiter) {
            waiting.pop_back();
        }
        for waiter in waiting {
            // Each opens the file for itself. Should somebody have removed it already, they begin again.
            match waiter {
                Waiter::File(done) => self.claim_with(blob, done),
                Waiter::Bytes(done) => self.claim_small_with(blob, done),
            }
        }
    }

    /// Who was in charge of the blob leaves without it: the next one is in charge.
    pub(crate) fn give_up(&self, blob: BlobId) {
        let next = self.registry(blob.bucket()).give_up(blob);
        if let Some(waiter) = next {
            let cache = self.clone();
            trampoline::run(move || cache.in_charge(blob, waiter));
        }
    }

    /// Who was in charge of the blob leaves with an error.
    pub(crate) fn fail(&self, blob: BlobId, waiter: Waiter, error: CacheError) {
        waiter.fail(error);
        self.give_up(blob);
    }

    /// Blocks one thread in the bucket's file lock, which another process holds.
    fn wait_for_lock(&self, bucket: u64) {
        let cache = self.clone();
        let waiting = FileLock::wait(self.layout().lock_path(bucket), move |locked| match locked {
            Ok(lock) => {
                // Nobody may want anything any more: then the lock is dropped right here.
                let in_charge = cache.registry(bucket).locked(bucket, lock);
                in_charge.into_iter().for_each(|(blob, waiter)| cache.in_charge(blob, waiter));
            }
            Err(error) => cache.lock_failed(bucket, &error),
        });
        if let Err(error) = waiting {
            self.lock_failed(bucket, &error);
        }
    }

    fn lock_failed(&self, bucket: u64, error: &io::Error) {
        let failed = self.registry(bucket).lock_failed(bucket);
        for (_, waiter) in failed {
            waiter.fail(self.no_lock(bucket, copy_of(error)));
        }
    }

    fn no_lock(&self, bucket: u64, error: io::Error) -> CacheError {
        CacheError::io("lock", &self.layout().lock_path(bucket))(error)
    }
}

/// One error, for several who are told.
pub(crate) fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
