//! The right, and the duty, to download one blob.

use blobferry_protocol::{BlobId, Digest};

use crate::blob::CachedBlob;
use crate::cache::Cache;
use crate::error::CacheError;
use crate::writer::{BlobWriter, WriteError};

/// The right, and the duty, to download one blob, while everybody else on the machine waits for it.
///
/// Dropped before it is finished, it leaves nothing behind, and the next one who waits becomes the downloader, in this
/// process or another. The same happens when the process dies.
///
/// The calls on it write to disk, and may block for as long as that takes.
#[derive(Debug)]
pub struct Download {
    cache: Cache,
    blob: BlobId,
    writer: Option<BlobWriter>,
    published: bool,
}

impl Download {
    pub(crate) fn new(cache: Cache, blob: BlobId) -> Download {
        Download { cache, blob, writer: None, published: false }
    }

    /// The blob to download.
    #[must_use]
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// Begins the file, of which `size` bytes will come, and reserves room for them. Called again, it begins again
    /// from nothing.
    ///
    /// # Errors
    /// [`CacheError::Write`], with [`WriteError::Full`] where the cache's limit leaves no room, and
    /// [`WriteError::NoSpace`] where the disk is too full.
    pub fn start(&mut self, size: u64) -> Result<(), CacheError> {
        self.writer = None; // first: what it occupies may be needed
        let mut writer = self.cache.temporary().map(BlobWriter::over).map_err(self.failed())?;
        writer.expect(size).map_err(self.failed())?;
        self.writer = Some(writer);
        Ok(())
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// [`CacheError::Write`] where more bytes come than were announced, or the disk fails;
    /// [`CacheError::NotStarted`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        let failed = self.failed();
        let writer = self.writer.as_mut().ok_or(CacheError::NotStarted { blob: self.blob })?;
        writer.write(bytes).map_err(failed)
    }

    /// Ends the download: if all bytes are there, and have this digest, the file becomes the blob, and everybody who
    /// waits is given it.
    ///
    /// # Errors
    /// [`CacheError::Write`] where the bytes are not the blob's, or the disk fails; [`CacheError::NotStarted`]. The
    /// next one who waits becomes the downloader.
    pub fn finish(mut self, digest: Digest) -> Result<CachedBlob, CacheError> {
        let writer = self.writer.take().ok_or(CacheError::NotStarted { blob: self.blob })?;
        let complete = writer.complete_checked(digest).map_err(self.failed())?;
        let cached = self.cache.publish(self.blob, complete.file, Some(digest)).map_err(self.failed())?;
        self.published = true;
        Ok(cached)
    }

    fn failed(&self) -> impl FnOnce(WriteError) -> CacheError + use<> {
        let blob = self.blob;
        move |source| CacheError::Write { blob, source }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.writer = None; // before the next one begins: what it occupies may be needed
        match self.published {
            true => self.cache.settle(self.blob),
            false => self.cache.give_up(self.blob),
        }
    }
}
