//! The cache: a directory that is opened, looked into, and filled.
//!
//! How processes and threads agree on who fills it is told in `claim.rs`.

use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blobferry_protocol::{BlobId, Digest};

use crate::blob::CachedBlob;
use crate::buffer::TransactionBuffer;
use crate::check::Checks;
use crate::claim::Done;
use crate::error::CacheError;
use crate::layout::Layout;
use crate::lock::FileLock;
use crate::registry::Registry;
use crate::scratch::Scratch;
use crate::stamp::{self, Boot, Trust};
use crate::temporary::Temporary;
use crate::writer::WriteError;

/// How a cache is used.
#[derive(Clone, Debug, Default)]
pub struct CacheConfig {
    /// The directory is the server's own directory of blobs, on a file system that both share. Then nothing is ever
    /// downloaded: a file that is not there is nowhere.
    pub shared: bool,
}

/// A machine's cache of blobs, which many processes have open at once. Cheap to clone.
///
/// As long as a clone lives, or anything that was made from one, the unfinished files of this process are safe from
/// other processes that open the cache; after that, those are removed.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    layout: Layout,
    shared: bool,
    /// Where unfinished files of this process are; `None` in shared mode, where the server looks after them.
    scratch: Option<Scratch>,
    boot: Option<Boot>,
    registry: Mutex<Registry<FileLock, Done>>,
    checks: Mutex<Checks>,
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
    /// Opens a cache, and creates it where there is none. Unfinished files of processes that died are removed.
    ///
    /// # Errors
    /// [`CacheError::Layout`] where the directory is used for something else (or, in shared mode, is not there);
    /// [`CacheError::Io`].
    pub fn open(dir: impl AsRef<Path>, config: CacheConfig) -> Result<Cache, CacheError> {
        let (layout, scratch) = if config.shared {
            (Layout::open_existing(dir)?, None)
        } else {
            let layout = Layout::open(dir)?;
            let scratch = Scratch::create(layout.tmp());
            let scratch =
                scratch.map_err(CacheError::io("make a directory for unfinished files in", layout.tmp()))?;
            (layout, Some(scratch))
        };
        Ok(Cache(Arc::new(Inner {
            layout,
            shared: config.shared,
            scratch,
            boot: Boot::current(),
            registry: Mutex::new(Registry::new()),
            checks: Mutex::new(Checks::default()),
        })))
    }

    /// The directory.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// The blob, if it is there, and known to be undamaged. Never waits, never locks, never reads the file.
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
        let path = self.layout().blob_path(blob);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Missing),
            Err(error) => return Err(CacheError::io("open", &path)(error)),
        };
        if !self.is_shared() {
            let trust =
                stamp::trust(&file, self.boot()).map_err(CacheError::io("read the stamp of", &path))?;
            if let Trust::Unproven(digest) = trust
                && !self.checks().is_proven(blob)
            {
                return Ok(Found::Unproven(file, digest));
            }
        }
        let cached =
            CachedBlob::new(blob, path.clone(), file).map_err(CacheError::io("read the size of", &path))?;
        if !self.is_shared() {
            cached.touch();
        }
        Ok(Found::Ready(cached))
    }

    /// Makes a complete file the blob.
    ///
    /// Takes no lock: the rename is at once and whole, and where the blob is there already, its bytes are the same.
    /// To wait for the bucket's lock here would be to wait for somebody's download of another blob.
    pub(crate) fn publish(
        &self,
        blob: BlobId,
        file: Temporary,
        digest: Option<Digest>,
    ) -> Result<CachedBlob, WriteError> {
        let stamped = match (digest, self.boot()) {
            (Some(digest), Some(boot)) => stamp::write(file.file(), digest, boot).is_ok(),
            _ => false,
        };
        if !stamped {
            // A stamp of another cache, on a file that was moved here, would speak of other times.
            _ = stamp::remove(file.file());
            file.sync()?;
        }
        let bucket = blob.bucket();
        self.layout()
            .create_bucket(bucket)
            .map_err(WriteError::io("create", &self.layout().bucket_path(bucket)))?;
        let path = self.layout().blob_path(blob);
        let opened = file.persist(&path)?;
        CachedBlob::new(blob, path.clone(), opened).map_err(WriteError::io("read the size of", &path))
    }

    /// Where this process keeps unfinished files.
    pub(crate) fn tmp(&self) -> &Path {
        self.0.scratch.as_ref().map_or_else(|| self.layout().tmp(), Scratch::path)
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.0.shared
    }

    pub(crate) fn boot(&self) -> Option<Boot> {
        self.0.boot
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry<FileLock, Done>> {
        locked(&self.0.registry)
    }

    pub(crate) fn checks(&self) -> MutexGuard<'_, Checks> {
        locked(&self.0.checks)
    }

    /// The path of a bucket's lock file, in a bucket that is there.
    pub(crate) fn lock_path(&self, bucket: u64) -> std::io::Result<PathBuf> {
        self.layout().create_bucket(bucket)?;
        Ok(self.layout().lock_path(bucket))
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("root", &self.layout().root()).finish_non_exhaustive()
    }
}

/// Locks a mutex. What it guards is right even where a holder panicked: each change of it is one call.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
