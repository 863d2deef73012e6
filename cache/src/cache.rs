//! The public front of the cache: how it is opened and what it has.

use std::fmt;
use std::path::Path;

use blobferry_platform::blobdir::Layout;
use blobferry_protocol::BlobId;

use crate::cache_dir::{CacheDir, Found};
use crate::cached_blob::CachedBlob;
use crate::error::CacheError;

/// The settings of a cache. The default is a private directory whose recorded limit stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheConfig {
    /// Whether the directory is the server's own directory of blobs, on a file system that both
    /// machines share. Default: `false`.
    ///
    /// Nothing is ever downloaded then: a file that is not there cannot be had elsewhere.
    pub shared: bool,
    /// The limit in bytes for all files of the cache on the disk, for all processes that use it.
    /// Default: `None`.
    ///
    /// The limit is recorded in the directory, and `None` keeps the recorded one.
    /// [`Cache::set_limit`] changes or removes it. Files that are in use or pinned are not evicted;
    /// a blob that does not fit beside them is refused.
    pub limit: Option<u64>,
}

/// A machine's cache of blobs. Many processes can have it open at once. Clones share one open
/// directory.
///
/// This process's unfinished files are safe from other processes as long as a clone lives, or
/// anything made from one. Afterwards the next process that opens the cache removes them.
#[derive(Clone)]
pub struct Cache(pub(crate) CacheDir);

impl Cache {
    /// Opens a cache, or creates it.
    ///
    /// Removes the unfinished files of processes that died. If the cache is larger than the limit,
    /// evicts the least recently used blobs.
    ///
    /// # Errors
    /// Returns [`CacheError::Layout`] if the directory is used for something else, is writable by
    /// other users, or has no working file locks (in shared mode: is missing);
    /// [`CacheError::Quota`]; [`CacheError::Io`].
    pub fn open(dir: impl AsRef<Path>, config: CacheConfig) -> Result<Cache, CacheError> {
        let dir = match config.shared {
            true => CacheDir::open_shared(dir.as_ref())?,
            false => CacheDir::open(dir.as_ref())?,
        };
        if config.limit.is_some() {
            dir.own_quota("limit its size")?.set_limit(config.limit).map_err(CacheError::Quota)?;
        }
        Ok(Cache(dir))
    }

    /// Returns the directory's layout.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        self.0.layout()
    }

    /// Returns whether the directory is a server's own, which this process only reads.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.0.is_shared()
    }

    /// Returns the blob if its file is in the cache and known to be undamaged. Never blocks, and
    /// never reads the file.
    ///
    /// `None` does not mean that the blob must be downloaded. The blob may still be in the cache in
    /// a form that takes time: as a file from before the machine's last start, which has to be
    /// verified, or in a segment of small blobs. [`Cache::claim`] handles both.
    ///
    /// # Errors
    /// Returns [`CacheError::Io`] if the file cannot be opened.
    pub fn get(&self, blob: BlobId) -> Result<Option<CachedBlob>, CacheError> {
        match self.0.lookup(blob)? {
            Found::Ready(cached) => Ok(Some(cached)),
            Found::Unverified(..) | Found::Missing => Ok(None),
        }
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("root", &self.layout().root()).finish_non_exhaustive()
    }
}
