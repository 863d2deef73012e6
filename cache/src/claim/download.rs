//! The right and the duty to download one blob.

use std::io::{self, ErrorKind};

use blobferry_platform::blobdir::{BlobWriter, WriteError};
use blobferry_protocol::{BlobId, Digest};

use crate::cache_dir::CacheDir;
use crate::cached_blob::CachedBlob;
use crate::claim::partial::Partial;
use crate::error::CacheError;

/// The right and the duty to download one blob, while all other claims on the machine wait for it.
///
/// The steps are: [`Download::resume`] (optional); request the bytes from [`Download::written`] on;
/// [`Download::start`]; [`Download::write`]; [`Download::finish`]. If the connection breaks, take
/// the same steps again on the next one. If a step returns [`CacheError::Stale`], the bytes in the
/// partial file were not the blob's and are gone: request the bytes from [`Download::written`] on,
/// which is then 0.
///
/// Dropped before it is finished, a download removes the bytes that it has worked on. The next
/// waiting claim, in this process or another, becomes the downloader. [`Download::leave`] leaves
/// the bytes to that claim. If the process dies, the bytes stay as well: [`Download::found`]
/// returns their number.
///
/// The methods write to disk, and block for as long as that takes.
#[derive(Debug)]
pub struct Download {
    dir: CacheDir,
    blob: BlobId,
    partial: Partial,
    found: u64,
    writer: Option<BlobWriter>,
    /// Whether `start` was called for the writer's bytes.
    started: bool,
    /// Whether the writer began with bytes that were found. They may not be the blob's.
    resumed: bool,
    /// Whether the blob is in the cache, or a job in this process writes it.
    finished: bool,
}

impl Download {
    pub(crate) fn new(dir: CacheDir, blob: BlobId) -> Download {
        let partial = Partial::of(dir.layout(), blob);
        let found = partial.len();
        Download { dir, blob, partial, found, writer: None, started: false, resumed: false, finished: false }
    }

    /// Returns the blob to download.
    #[must_use]
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// Returns the number of bytes that an earlier download of the blob left in the partial file.
    ///
    /// [`Download::resume`] continues with them. [`Download::start`] from offset 0 removes them.
    #[must_use]
    pub fn found(&self) -> u64 {
        self.found
    }

    /// Continues with the bytes that were found: reads the partial file, to hash it. Returns
    /// [`Download::written`].
    ///
    /// A partial file that cannot be used is removed, and 0 is returned: one that is unreadable,
    /// not a regular file, or writable under another name. After [`Download::start`], `resume` has
    /// no effect but to return [`Download::written`].
    ///
    /// # Errors
    /// Returns [`CacheError::Finished`] after [`Download::finish`].
    pub fn resume(&mut self) -> Result<u64, CacheError> {
        self.check_unfinished()?;
        if self.writer.is_none() && self.found > 0 {
            match self.partial.resume(self.dir.quota()) {
                Ok(writer) => {
                    self.writer = Some(writer);
                    self.resumed = true;
                }
                Err(error) => {
                    let path = self.partial.path().display();
                    tracing::warn!(blob = %self.blob, %path, %error, "cannot resume a partial download");
                    self.restart();
                }
            }
        }
        Ok(self.written())
    }

    /// Returns the number of bytes that this download has resumed or written: the offset of the
    /// next byte.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.writer.as_ref().map_or(0, BlobWriter::written)
    }

    /// Returns the digest of the bytes that this download has resumed or written so far.
    ///
    /// If a source tells no digest, `finish(download.digest())` accepts what came. Nothing is
    /// verified then; in particular, resumed bytes may be another blob's.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match &self.writer {
            Some(writer) => writer.digest(),
            None => Digest(*blake3::hash(b"").as_bytes()),
        }
    }

    /// Announces bytes: those of the blob from the offset `from` on.
    ///
    /// `size` is the size of the whole blob in bytes, or `None` if the source does not tell it.
    /// With a size, disk space for all of it is reserved now; without, space is reserved as the
    /// bytes come. From offset 0 the download begins again with nothing. Otherwise `from` must be
    /// [`Download::written`].
    ///
    /// # Errors
    /// Returns [`CacheError::Stale`] if `from` is neither 0 nor [`Download::written`], or the size
    /// differs from an earlier one; [`CacheError::Write`] with [`WriteError::Full`] if the cache's
    /// limit leaves no space, or with [`WriteError::NoSpace`] if the disk is too full;
    /// [`CacheError::Finished`] after [`Download::finish`].
    pub fn start(&mut self, from: u64, size: impl Into<Option<u64>>) -> Result<(), CacheError> {
        self.check_unfinished()?;
        let size = size.into();
        if from == 0 {
            self.restart(); // first: the new bytes may need the space
            let mut writer = self.partial.create(self.dir.quota()).map_err(self.failed())?;
            if let Some(size) = size {
                writer.expect(size).map_err(self.failed())?;
            }
            writer.announce();
            self.writer = Some(writer);
            self.started = true;
            return Ok(());
        }
        let failed = self.failed();
        match &mut self.writer {
            Some(writer) if writer.written() == from && fits(writer, size) => {
                if let Some(size) = size {
                    writer.expect(size).map_err(failed)?;
                }
                self.started = true;
                Ok(())
            }
            _ => {
                self.restart();
                Err(CacheError::Stale { blob: self.blob })
            }
        }
    }

    /// Removes all bytes of the partial file. Does nothing after [`Download::finish`].
    pub fn restart(&mut self) {
        if self.finished {
            return; // another download may own the file of that name now
        }
        let opened = self.writer.take().is_some();
        if !opened
            && self.found > 0
            && let Err(error) = self.partial.remove(self.dir.quota())
        {
            let path = self.partial.path().display();
            tracing::warn!(blob = %self.blob, %path, %error, "cannot remove a partial download");
        }
        self.found = 0;
        self.started = false;
        self.resumed = false;
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// Returns [`CacheError::Write`] if more bytes come than were announced, or if the disk fails,
    /// after which no bytes are left; [`CacheError::NotStarted`] before [`Download::start`];
    /// [`CacheError::Finished`] after [`Download::finish`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        self.check_unfinished()?;
        let written = match &mut self.writer {
            Some(writer) if self.started => writer.write(bytes),
            _ => return Err(CacheError::NotStarted { blob: self.blob }),
        };
        if let Err(WriteError::Full { .. } | WriteError::NoSpace { .. } | WriteError::Io { .. }) = written {
            self.restart();
        }
        written.map_err(self.failed())
    }

    /// Ends the download: if all bytes have come and have this digest, the partial file becomes the
    /// blob, and all waiting claims are answered with it.
    ///
    /// # Errors
    /// Returns [`CacheError::Stale`] if the digest differs and some bytes were resumed: the
    /// download can be started again. Returns [`CacheError::Write`] if the bytes are not the blob's
    /// or the disk fails; [`CacheError::NotStarted`] before [`Download::start`];
    /// [`CacheError::Finished`] if it has ended already. No bytes are left after an error. The next
    /// waiting claim leads when this value is dropped.
    pub fn finish(&mut self, digest: Digest) -> Result<CachedBlob, CacheError> {
        self.check_unfinished()?;
        if !std::mem::take(&mut self.started) {
            return Err(CacheError::NotStarted { blob: self.blob });
        }
        let writer = self.writer.take().ok_or(CacheError::NotStarted { blob: self.blob })?;
        let resumed = std::mem::take(&mut self.resumed);
        let complete = match writer.complete_checked(digest) {
            Err(WriteError::Digest { .. }) if resumed => return Err(CacheError::Stale { blob: self.blob }),
            complete => complete.map_err(self.failed())?,
        };
        let cached = self.dir.publish(self.blob, complete.file, Some(digest)).map_err(self.failed())?;
        self.finished = true;
        self.dir.complete(self.blob);
        Ok(cached)
    }

    /// Gives up the download, and leaves its bytes to the next download of the blob.
    pub fn leave(mut self) {
        if let Some(writer) = self.writer.take() {
            writer.retain_partial();
        }
    }

    /// Passes the leadership on to a job that writes the blob's bytes from memory.
    pub(crate) fn into_leadership(mut self) -> (CacheDir, BlobId) {
        self.restart();
        self.finished = true;
        (self.dir.clone(), self.blob)
    }

    fn check_unfinished(&self) -> Result<(), CacheError> {
        match self.finished {
            true => Err(CacheError::Finished { blob: self.blob }),
            false => Ok(()),
        }
    }

    fn failed(&self) -> impl FnOnce(WriteError) -> CacheError + use<> {
        let blob = self.blob;
        move |source| CacheError::Write { blob, source }
    }
}

/// Returns whether the written bytes can be the beginning of a blob of this size.
fn fits(writer: &BlobWriter, size: Option<u64>) -> bool {
    let Some(size) = size else { return true };
    writer.written() <= size && writer.expected().is_none_or(|expected| expected == size)
}

/// Writes all of the bytes, as [`Download::write`] does.
impl io::Write for Download {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match Download::write(self, bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error @ CacheError::Write { source: WriteError::NoSpace { .. }, .. }) => {
                Err(io::Error::new(ErrorKind::StorageFull, error))
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Does nothing: the bytes are in the file already.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.writer = None; // first: dropping the writer removes the file, which the next leader creates anew
        if !self.finished {
            self.dir.hand_over(self.blob);
        }
    }
}
