//! The cache: a directory that is opened, looked into, and filled.
//!
//! How processes and threads agree on who fills it is told in `claim.rs`.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blobferry_protocol::{BlobId, Digest};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::blob_name::Name;
use crate::cached_blob::{CachedBlob, touch};
use crate::claim::Waiter;
use crate::claim::in_flight::InFlight;
use crate::claim::verify_queue::VerifyQueue;
use crate::error::CacheError;
use crate::lock;
use crate::lock::FileLock;
use crate::quota::evict;
use crate::quota::reservation::CacheQuota;
use crate::quota::scratch::Scratch;
use crate::segments::Segments;
use crate::transaction_buffer::TransactionBuffer;
use crate::verified::Known;
use blobferry_platform::blobdir::WriteError;
use blobferry_platform::blobdir::integrity;
use blobferry_platform::blobdir::integrity::{BootId, Trust};
use blobferry_platform::blobdir::layout::Layout;
use blobferry_platform::blobdir::temp_file::TempFile;
use blobferry_platform::sync::{Arc, Mutex, MutexGuard};

/// How a cache is used.
#[derive(Clone, Debug, Default)]
pub struct CacheConfig {
    /// The directory is the server's own directory of blobs, on a file system that both share. Then nothing is ever
    /// downloaded: a file that is not there is nowhere.
    pub shared: bool,
    /// The most bytes that the cache's files may take on the disk, from now on and for all processes that use it. It is
    /// recorded in the directory: `None` leaves it as it is. [`Cache::set_limit`] changes it, and takes it away.
    ///
    /// Files that are in use, or pinned, are kept. A blob that does not fit beside them is refused.
    pub limit: Option<u64>,
}

/// How many registries the buckets share: a prime, so that blobs at any regular distance have different ones.
const REGISTRIES: usize = 31;

/// A machine's cache of blobs, which many processes have open at once. Cheap to clone.
///
/// As long as a clone lives, or anything that was made from one, the unfinished files of this process are safe from
/// other processes that open the cache; after that, those are removed.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    layout: Layout,
    shared: bool,
    /// The directory, open: its blobs are opened from there.
    root: File,
    /// Of this process; `None` in shared mode, where the server looks after what is unfinished, and after room.
    own: Option<Own>,
    boot: Option<BootId>,
    /// Each of some of the buckets: to take a bucket's file lock is a system call, for which only those wait that want
    /// something of the same ones.
    registries: [Mutex<InFlight<FileLock, Waiter>>; REGISTRIES],
    checks: Mutex<VerifyQueue>,
    known: Known,
}

struct Own {
    room: CacheQuota,
    packs: Segments,
    /// Where unfinished files are.
    scratch: Scratch,
}

/// What is under a blob's name.
pub(crate) enum Found {
    /// The blob.
    Ready(CachedBlob),
    /// A file that is the blob only if its bytes have this digest: a power cut may have torn it.
    Unproven(File, Option<Digest>),
    /// Nothing.
    Missing,
}

impl Cache {
    /// Opens a cache, and creates it where there is none. Unfinished files of processes that died are removed. Where
    /// the cache is larger than the limit, blobs are removed, those first that were used longest ago.
    ///
    /// # Errors
    /// [`CacheError::Layout`] where the directory is used for something else, can not be trusted, or has no working
    /// locks (or, in shared mode, is not there); [`CacheError::Quota`]; [`CacheError::Io`].
    pub fn open(dir: impl AsRef<Path>, config: CacheConfig) -> Result<Cache, CacheError> {
        let boot = BootId::current();
        let (layout, own) = if config.shared {
            (Layout::open_existing(dir)?, None)
        } else {
            let layout = Layout::open(dir)?;
            let swept = Scratch::create(layout.tmp());
            let (scratch, swept) =
                swept.map_err(CacheError::io("make a directory for unfinished files in", layout.tmp()))?;
            let room = CacheQuota::new(&layout, scratch.path(), boot);
            // What is a blob already needs no part of it any more.
            let parts = evict::remove_partials(&layout, |blob| layout.blob_path(blob).exists());
            if swept || parts > 0 {
                room.set_doubt().map_err(CacheError::Quota)?;
            }
            let packs = Segments::new(&layout);
            (layout, Some(Own { room, packs, scratch }))
        };
        let root = File::open(layout.root()).map_err(CacheError::io("open", layout.root()))?;
        let cache = Cache(Arc::new(Inner {
            layout,
            shared: config.shared,
            root,
            own,
            boot,
            registries: std::array::from_fn(|_| Mutex::new(InFlight::new())),
            checks: Mutex::new(VerifyQueue::default()),
            known: Known::default(),
        }));
        if config.limit.is_some() {
            cache.set_limit(config.limit)?;
        }
        Ok(cache)
    }

    /// The directory.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// The blob, if it is there, and known to be undamaged. Never waits for a download, and never reads the file.
    ///
    /// `None` is not the last word: [`Cache::claim`] is, which also proves a file that was written before the
    /// machine was last started.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn get(&self, blob: BlobId) -> Result<Option<CachedBlob>, CacheError> {
        match self.look(blob)? {
            Found::Ready(cached) => Ok(Some(cached)),
            Found::Unproven(..) | Found::Missing => Ok(None),
        }
    }

    /// A place for the files of one transaction until it is committed.
    #[must_use]
    pub fn buffer(&self) -> TransactionBuffer {
        TransactionBuffer::new(self.clone())
    }

    pub(crate) fn look(&self, blob: BlobId) -> Result<Found, CacheError> {
        let Some((file, metadata)) = self.open_blob(blob)? else { return Ok(Found::Missing) };
        if !self.is_shared() {
            if !self.0.known.contains(&metadata) {
                let trust = integrity::trust(&file, self.boot());
                match trust.map_err(|error| self.io("read the stamp of", blob, error))? {
                    Trust::Trusted => self.0.known.insert(&metadata),
                    Trust::Unproven(_) if self.checks().is_proven(blob) => {}
                    Trust::Unproven(digest) => return Ok(Found::Unproven(file, digest)),
                }
            }
            touch(&file, &metadata);
        }
        Ok(Found::Ready(CachedBlob::new(blob, self.layout(), file, &metadata)))
    }

    /// Opens a blob's file. From then on it is in use, and is not removed, but by the server in shared mode.
    ///
    /// What is no regular file is none, whatever it is called; a pipe is not waited for.
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
            // It was removed before it was locked: another one may be there.
        }
    }

    /// Makes a complete file the blob.
    ///
    /// Does not take the bucket's lock, which would be to wait for somebody's download of another blob: the rename is
    /// at once and whole. Where the blob is there already, its bytes are the same, and it stays, as it may be in use.
    pub(crate) fn publish(
        &self,
        blob: BlobId,
        file: TempFile,
        digest: Option<Digest>,
    ) -> Result<CachedBlob, WriteError> {
        if let Ok(Found::Ready(cached)) = self.look(blob) {
            return Ok(cached);
        }
        let stamped = match (digest, self.boot()) {
            (Some(digest), Some(boot)) => integrity::write(file.file(), digest, boot).is_ok(),
            _ => false,
        };
        if !stamped {
            file.sync()?;
            // A stamp of another cache, on a file that was moved here, would speak of other times.
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
        touch(&opened, &metadata); // a file that was moved here was last used elsewhere
        Ok(CachedBlob::new(blob, self.layout(), opened, &metadata))
    }

    /// A new file for bytes, in which room can be reserved.
    pub(crate) fn temporary(&self) -> Result<TempFile, WriteError> {
        let Some(room) = self.room() else { return TempFile::create(self.tmp()) };
        loop {
            match TempFile::create(self.tmp()) {
                Err(WriteError::NoSpace { .. }) if room.relieve()? => {}
                created => {
                    let file = created?;
                    let reserved = room.held(file.file())?;
                    return Ok(file.with_reservation(reserved));
                }
            }
        }
    }

    /// `None` in shared mode.
    pub(crate) fn room(&self) -> Option<&CacheQuota> {
        self.0.own.as_ref().map(|own| &own.room)
    }

    /// `None` in shared mode.
    pub(crate) fn packs(&self) -> Option<&Segments> {
        self.0.own.as_ref().map(|own| &own.packs)
    }

    /// Where this process keeps unfinished files.
    pub(crate) fn tmp(&self) -> &Path {
        self.0.own.as_ref().map_or_else(|| self.layout().tmp(), |own| own.scratch.path())
    }

    /// Returns whether the directory is a server's own, which this process only reads.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.0.shared
    }

    pub(crate) fn boot(&self) -> Option<BootId> {
        self.0.boot
    }

    /// The registry of a bucket.
    pub(crate) fn registry(&self, bucket: u64) -> MutexGuard<'_, InFlight<FileLock, Waiter>> {
        self.0.registries[bucket as usize % REGISTRIES].lock()
    }

    /// Whether nobody in this process wants anything.
    #[cfg(test)]
    #[cfg(feature = "shuttle")]
    pub(crate) fn is_unwanted(&self) -> bool {
        self.0.registries.iter().all(|registry| registry.lock().is_empty())
    }

    pub(crate) fn checks(&self) -> MutexGuard<'_, VerifyQueue> {
        self.0.checks.lock()
    }

    /// Takes a bucket's lock where nobody has it. The bucket is made where there is none.
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

    /// What went wrong with a blob's file.
    fn io(&self, operation: &'static str, blob: BlobId, error: io::Error) -> CacheError {
        CacheError::io(operation, &self.layout().blob_path(blob))(error)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("root", &self.layout().root()).finish_non_exhaustive()
    }
}
