//! The cache's directory as this process has it open: lookup, publication, and what its threads
//! share.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blobferry_platform::blobdir::integrity::{self, BootId, Trust};
use blobferry_platform::blobdir::{Layout, TempFile, WriteError};
use blobferry_platform::sync::{Arc, Mutex, MutexGuard};
use blobferry_protocol::{BlobId, Digest};
use bytes::Bytes;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::blob_name::Name;
use crate::cached_blob::{CachedBlob, touch};
use crate::claim::in_flight::InFlight;
use crate::claim::verify_queue::VerifyQueue;
use crate::error::CacheError;
use crate::lock;
use crate::lock::FileLock;
use crate::quota::evict;
use crate::quota::reservation::CacheQuota;
use crate::quota::scratch::Scratch;
use crate::segments::Segments;
use crate::verified::VerifiedFiles;

/// The number of tables that the buckets share. It is a prime, so that blobs at any regular
/// distance use different tables.
const TABLES: usize = 31;

/// A claim that waits for its answer.
pub(crate) trait Waiter: Send {
    /// Returns whether the blob's bytes in memory are an answer.
    fn accepts_bytes(&self) -> bool;

    /// Answers with the blob's bytes. The caller has checked [`Waiter::accepts_bytes`].
    fn bytes(self: Box<Self>, dir: &CacheDir, blob: BlobId, bytes: Bytes);

    /// Answers with the blob's file.
    fn hit(self: Box<Self>, cached: CachedBlob);

    /// Answers with the right and the duty to download the blob.
    fn download(self: Box<Self>, dir: &CacheDir, blob: BlobId);

    /// Answers with an error.
    fn fail(self: Box<Self>, error: CacheError);

    /// Claims the blob again: it has just come into the cache.
    fn claim_again(self: Box<Self>, dir: &CacheDir, blob: BlobId);
}

/// The claims of some buckets that are in flight in this process.
pub(crate) type Claims = InFlight<FileLock, Box<dyn Waiter>>;

/// The open directory. Clones share it.
#[derive(Clone)]
pub(crate) struct CacheDir(Arc<Inner>);

struct Inner {
    layout: Layout,
    shared: bool,
    /// The root directory, open: blobs are opened relative to it.
    root: File,
    /// `None` in shared mode, where the server manages unfinished files and disk space.
    own: Option<Own>,
    boot: Option<BootId>,
    /// Each table has some of the buckets. Entering a bucket takes its file lock, which is a system
    /// call; only claims of the same table wait for it.
    in_flight: [Mutex<Claims>; TABLES],
    verify_queue: Mutex<VerifyQueue<Box<dyn Waiter>>>,
    verified: VerifiedFiles,
}

struct Own {
    quota: CacheQuota,
    segments: Segments,
    /// The directory of this process's unfinished files.
    scratch: Scratch,
}

/// What is under a blob's name.
pub(crate) enum Found {
    /// The blob.
    Ready(CachedBlob),
    /// A file that is the blob only if its bytes have this digest: a power cut may have damaged it.
    Unverified(File, Option<Digest>),
    /// No file.
    Missing,
}

impl CacheDir {
    /// Opens the directory of a cache, or creates it.
    pub(crate) fn open(path: &Path) -> Result<CacheDir, CacheError> {
        let boot = BootId::current();
        let layout = Layout::open(path)?;
        let (scratch, swept) = Scratch::create(layout.tmp())
            .map_err(CacheError::io("make a directory for unfinished files in", layout.tmp()))?;
        let quota = CacheQuota::new(&layout, scratch.path(), boot);
        // The partial download of a blob that is in the cache is useless.
        let partials = evict::remove_partials(&layout, |blob| layout.blob_path(blob).exists());
        if swept || partials > 0 {
            quota.set_inexact().map_err(CacheError::Quota)?;
        }
        let segments = Segments::new(&layout);
        CacheDir::new(layout, boot, Some(Own { quota, segments, scratch }))
    }

    /// Opens a server's own directory, which must exist.
    pub(crate) fn open_shared(path: &Path) -> Result<CacheDir, CacheError> {
        CacheDir::new(Layout::open_existing(path)?, BootId::current(), None)
    }

    fn new(layout: Layout, boot: Option<BootId>, own: Option<Own>) -> Result<CacheDir, CacheError> {
        let root = File::open(layout.root()).map_err(CacheError::io("open", layout.root()))?;
        Ok(CacheDir(Arc::new(Inner {
            layout,
            shared: own.is_none(),
            root,
            own,
            boot,
            in_flight: std::array::from_fn(|_| Mutex::new(InFlight::new())),
            verify_queue: Mutex::new(VerifyQueue::default()),
            verified: VerifiedFiles::default(),
        })))
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.0.layout
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.0.shared
    }

    /// Returns the boot of this machine, which the constructor determined.
    pub(crate) fn boot(&self) -> Option<BootId> {
        self.0.boot
    }

    /// Returns the quota; `None` in shared mode.
    pub(crate) fn quota(&self) -> Option<&CacheQuota> {
        self.0.own.as_ref().map(|own| &own.quota)
    }

    /// Returns the quota, or the error that only the server can do `operation`.
    pub(crate) fn own_quota(&self, operation: &'static str) -> Result<&CacheQuota, CacheError> {
        let root = || self.layout().root().to_owned();
        self.quota().ok_or_else(|| CacheError::ServersOwn { operation, root: root() })
    }

    /// Returns the segments of small blobs; `None` in shared mode.
    pub(crate) fn segments(&self) -> Option<&Segments> {
        self.0.own.as_ref().map(|own| &own.segments)
    }

    /// Returns the directory of this process's unfinished files.
    pub(crate) fn tmp(&self) -> &Path {
        self.0.own.as_ref().map_or_else(|| self.layout().tmp(), |own| own.scratch.path())
    }

    /// Locks the table that has a bucket's claims.
    pub(crate) fn in_flight(&self, bucket: u64) -> MutexGuard<'_, Claims> {
        self.0.in_flight[bucket as usize % TABLES].lock()
    }

    /// Locks the queue of blobs to verify.
    pub(crate) fn verify_queue(&self) -> MutexGuard<'_, VerifyQueue<Box<dyn Waiter>>> {
        self.0.verify_queue.lock()
    }

    /// Returns whether no claim of this process is in flight.
    #[cfg(test)]
    #[cfg(feature = "shuttle")]
    pub(crate) fn is_idle(&self) -> bool {
        self.0.in_flight.iter().all(|table| table.lock().is_empty())
    }

    /// Looks up a blob's file.
    pub(crate) fn lookup(&self, blob: BlobId) -> Result<Found, CacheError> {
        let Some((file, metadata)) = self.open_blob(blob)? else { return Ok(Found::Missing) };
        if !self.is_shared() {
            if !self.0.verified.contains(&metadata) {
                let trust = integrity::trust(&file, self.boot());
                match trust.map_err(|error| self.io("read the stamp of", blob, error))? {
                    Trust::Verified => self.0.verified.insert(&metadata),
                    Trust::Unverified(_) if self.verify_queue().is_verified(blob) => {}
                    Trust::Unverified(digest) => return Ok(Found::Unverified(file, digest)),
                }
            }
            touch(&file, &metadata);
        }
        Ok(Found::Ready(CachedBlob::new(blob, self.layout(), file, &metadata)))
    }

    /// Opens a blob's file. As long as it is open, no process evicts it (in shared mode the server
    /// may).
    ///
    /// Anything but a regular file is an error, whatever its name; a pipe does not block.
    pub(crate) fn open_blob(&self, blob: BlobId) -> Result<Option<(File, Metadata)>, CacheError> {
        let name = Name::of(blob);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        loop {
            let file = match openat(&self.0.root, name.as_c_str(), flags, Mode::empty()) {
                Ok(file) => File::from(file),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(self.io("open", blob, error.into())),
            };
            if !self.is_shared() {
                lock::share(&file).map_err(|error| self.io("lock", blob, error))?;
            }
            let metadata = file.metadata().map_err(|error| self.io("read the size of", blob, error))?;
            if !metadata.is_file() {
                let what = io::Error::new(ErrorKind::InvalidInput, "it is not a regular file");
                return Err(self.io("open", blob, what));
            }
            if self.is_shared() || metadata.nlink() > 0 {
                return Ok(Some((file, metadata)));
            }
            // It was removed before it was locked. Another file may have the name now.
        }
    }

    /// Makes a complete file the blob.
    ///
    /// Does not take the bucket's lock, which another blob's download may hold: the rename is
    /// atomic. If the blob is in the cache already, its file stays: it has the same bytes, and may
    /// be in use.
    pub(crate) fn publish(
        &self,
        blob: BlobId,
        file: TempFile,
        digest: Option<Digest>,
    ) -> Result<CachedBlob, WriteError> {
        if let Ok(Found::Ready(cached)) = self.lookup(blob) {
            return Ok(cached);
        }
        let stamped = match (digest, self.boot()) {
            (Some(digest), Some(boot)) => integrity::write(file.file(), digest, boot).is_ok(),
            _ => false,
        };
        if !stamped {
            file.sync()?;
            // A file that was moved here may have another cache's stamp, which means nothing here.
            _ = match digest {
                Some(digest) => integrity::write(file.file(), digest, BootId::ANY),
                None => integrity::remove(file.file()),
            };
        }
        let bucket = blob.bucket();
        self.layout()
            .create_bucket(bucket)
            .map_err(WriteError::io("create", &self.layout().bucket_path(bucket)))?;
        let path = self.layout().blob_path(blob);
        let opened = file.persist(&path)?;
        let metadata = opened.metadata().map_err(WriteError::io("read the size of", &path))?;
        touch(&opened, &metadata); // a moved file has the access time of its former place
        Ok(CachedBlob::new(blob, self.layout(), opened, &metadata))
    }

    /// Creates a temporary file, for which the quota can reserve space.
    pub(crate) fn create_temp_file(&self) -> Result<TempFile, WriteError> {
        let Some(quota) = self.quota() else { return TempFile::create(self.tmp()) };
        loop {
            match TempFile::create(self.tmp()) {
                Err(WriteError::NoSpace { .. }) if quota.evict_one()? => {}
                created => {
                    let file = created?;
                    let reservation = quota.reserve(file.file())?;
                    return Ok(file.with_reservation(reservation));
                }
            }
        }
    }

    /// Takes a bucket's lock if no process has it. Creates the bucket if it is missing.
    pub(crate) fn try_lock(&self, bucket: u64) -> io::Result<Option<FileLock>> {
        let path = self.layout().lock_path(bucket);
        match FileLock::try_existing(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.layout().create_bucket(bucket)?;
                FileLock::try_exclusive(&path)
            }
            locked => locked,
        }
    }

    /// Describes an error with a blob's file.
    fn io(&self, operation: &'static str, blob: BlobId, error: io::Error) -> CacheError {
        CacheError::io(operation, &self.layout().blob_path(blob))(error)
    }
}

impl std::fmt::Debug for CacheDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheDir").field("root", &self.layout().root()).finish_non_exhaustive()
    }
}
